"""
English to En-Clone on a laptop: about a quarter of an hour on two cores, no GPU, no download.

Scaled down from the paper: 0.8M parameters (without embeddings) for 150M, 4.9M tokens for 10.1B. What changes with the scale, and why:
  mix                 3% of En-Clone, not 1%, which would be 49,000 tokens.
  codeswitch_ratio    10%, not 5%: with so few tokens most words would hardly ever be switched.
  stage1_steps        a quarter of the steps: stage 1 has to bring every entry together, and steps are few.
  min_count           5, not 20: in 6 MB of text, words seen 20 times leave a quarter of the tokens without an entry.
  embedding_init_std  larger than GPT-2's 0.02: the embeddings turn more slowly in stage 2 and stay aligned.
  fact_frequencies    every fact often enough that the vocabulary has its names whole, as a large vocabulary would.
  beta2               a long memory for the gradients of rare tokens, which most of En-Clone's are.
"""

data_dir = "data/demo"
out_dir = "out/demo"

source = "builtin"
vocab_size = 2048
min_count = 5
fact_count = 48
fact_frequencies = 450

mix = {"en": 0.97, "clone": 0.03}
batch_size = 16
block_size = 256
codeswitch_ratio = 0.1

n_layer = 4
n_head = 4
n_embd = 128
tie_embeddings = True
embedding_init_std = 0.1

max_steps = 1200
learning_rate = 2e-3
beta2 = 0.999

stage1_steps = 300
stage1_learning_rate = 4e-3
stage1_align_weight = 1.0
align_entries = 512
align_tau = 0.1
align_power = 0.5
