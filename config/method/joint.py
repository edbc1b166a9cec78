method = "joint"
init_from = "scratch"
codeswitch_ratio = 0.0
