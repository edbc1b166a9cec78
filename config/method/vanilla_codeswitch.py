"""Vanilla codeswitching (Table 4, Eq. 5): PreAlign, but the translations are predicted too."""

method = "vanilla_codeswitch"
init_from = "align"
codeswitch_target = "vanilla"
