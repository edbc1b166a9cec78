"""
English to En-Clone on a laptop: about a quarter of an hour on two cores, no GPU, no download.

Scaled down from the paper: 0.8M parameters (without embeddings) for 150M, 5.7M tokens for 10.1B. What changes with the
scale, and why:
  mix                 1.25% of En-Clone among the rows that are not facts, which is 49,000 tokens: facts, stated often,
                      are a third of all.
  stage1_steps        11% of the steps, not 2%: stage 1 has to bring every entry together, and steps are few.
  min_count           5, not 20: in 6 MB of text, words seen 20 times leave a quarter of the tokens without an entry.
  init_std, embedding_init_std  larger than GPT-2's 0.02, which is for rows 6 to 12 times as wide.
  fact_frequencies    every fact so often that it is learned early: late ones are shared less.
  codeswitch_ratio    3% of the words, not 5%: in so short a training they cost English more than they keep.
  beta2               a long memory for the gradients of rare tokens, which most of En-Clone's are.
"""

data_dir = "bins/demo"
out_dir = "out/demo"

source = "builtin"
vocab_size = 2048
min_count = 5
fact_count = 192
fact_frequencies = 400

mix = {"en": 0.9875, "clone": 0.0125}
batch_size = 8
block_size = 256
codeswitch_ratio = 0.03

n_layer = 4
n_head = 4
n_embd = 128
tie_embeddings = True
init_std = 0.05
embedding_init_std = 0.1

max_steps = 2800
learning_rate = 2e-3
beta2 = 0.999
warmup_ratio = 0.02

stage1_steps = 300
align_weight = 0.25
align_entries = 256
align_tau = 0.1
align_power = 0.5
