"""PreAlign: from stage 1's weights, with input-only codeswitching (paper, sections 3.2 and 3.3)."""

method = "prealign"
init_from = "align"
codeswitch_target = "input-only"
