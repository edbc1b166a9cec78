"""
Full target (Table 1), the bound of En-Clone's perplexity: all tokens of the budget are En-Clone's. It learns no facts,
as they are stated in English.
"""

method = "full_target"
init_from = "scratch"
codeswitch_ratio = 0.0
mix = {"clone": 1.0}
