"""PreAlign: from stage 1's weights, with input-only codeswitching (paper, sections 3.1 and 3.2)."""

method = "prealign"
init_from = "align"
codeswitch_target = "input-only"
