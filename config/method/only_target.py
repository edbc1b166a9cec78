"""
Only target (Table 1): En-Clone's share of the data alone, as often as the budget has steps. It learns no facts, as they
are stated in English.
"""

method = "only_target"
init_from = "scratch"
codeswitch_ratio = 0.0
only = "clone"
