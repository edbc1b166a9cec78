"""The authors' released variant: PreAlign, but the replaced word's first token is predicted for it."""

method = "original_codeswitch"
init_from = "align"
codeswitch_target = "original"
