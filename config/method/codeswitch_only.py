"""Codeswitching only (Table 3): input-only codeswitching from scratch, without stage 1."""

method = "codeswitch_only"
init_from = "scratch"
codeswitch_target = "input-only"
