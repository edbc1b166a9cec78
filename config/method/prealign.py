method = "prealign"
init_from = "align"
codeswitch_ratio = 0.05
