"""Initialisation only (Table 3): from stage 1's weights, without codeswitching."""

method = "init_only"
init_from = "align"
codeswitch_ratio = 0.0
