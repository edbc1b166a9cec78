"""On the fly (Table 2): the contrastive loss beside the language-model loss in every step, from scratch."""

method = "on_the_fly"
init_from = "scratch"
codeswitch_ratio = 0.0
align_when = "all"
