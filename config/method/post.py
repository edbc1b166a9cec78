"""Post-alignment (Table 2): joint training, with the contrastive loss in the last steps, as many as stage 1 has."""

method = "post"
init_from = "scratch"
codeswitch_ratio = 0.0
align_when = "last"
