"""Golden alignment, meant as the upper bound of stage 1: En-Clone's embeddings start as copies of English's."""

method = "golden"
init_from = "golden"
codeswitch_target = "input-only"
