"""
English to En-Clone on one GPU: 25M parameters (without embeddings), 262M tokens, 1% of them En-Clone.

Reads English text from texts/en/ (bash runs/download.sh small); 260M tokens, some 200M words, make one epoch.
"""

data_dir = "bins/small"
out_dir = "out/small"

source = "texts/en"
budget = {"en": 260e6}
vocab_size = 16384
fact_count = 512
fact_frequencies = 100

mix = {"en": 0.99, "clone": 0.01}
batch_size = 128
micro_batch_size = 64
block_size = 512
codeswitch_ratio = 0.05

n_layer = 8
n_head = 8
n_embd = 512
embedding_init_std = 0.05

max_steps = 4000
learning_rate = 1e-3
beta2 = 0.98

stage1_steps = 250
align_weight = 0.1
align_entries = 1024
nli_learning_rate = 1e-4
