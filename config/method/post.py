"""Post-alignment (Table 2): joint training, then the contrastive loss beside it for as many steps as stage 1 has, at the end."""

method = "post"
init_from = "scratch"
codeswitch_ratio = 0.0
align_steps = "last"
