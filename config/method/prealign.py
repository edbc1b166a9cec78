"""PreAlign: from stage 1's weights, 5% of the aligned English words replaced in the input (paper, sections 3.2 and 3.3)."""

method = "prealign"
init_from = "align"
codeswitch_ratio = 0.05
