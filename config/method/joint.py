"""Joint training, the baseline: both languages in their shares, nothing else."""

method = "joint"
init_from = "scratch"
codeswitch_ratio = 0.0
