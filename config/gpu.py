"""
English to En-Clone on one GPU: Tables 1, 3 and 4 in minutes (bash runs/gpu.sh reproduce), 28 to 65 seconds of an H100
for each method, evaluation included (results/gpu). The regime is config/demo.py's. What differs from it, and why:
  n_layer, n_embd     7.1M parameters without embeddings. 384 is three tiles of a GPU's matrix product.
  tie_embeddings      off, as it was measured; in the demo tied ones are better (docs/results.md, "What mattered").
  max_steps, batch_size  2,400 steps of 32,768 tokens, 79M tokens. A step of half as many takes as long (docs/speed.md).
  block_size          256: attention is a fourteenth of the operations, and a page of a novel is context enough.
  vocab_size, mix     4% of En-Clone, facts aside, among 4,096 ids is 730 target tokens for each id.
  fact_count, fact_frequencies  3.7M tokens, 4.7% of all; each stated twice as often as in the demo.
  fact_objects        the default, nouns of prose.
  min_count           20, as in the paper: in 66 MB of text that makes 25,000 entries.
  stage1_steps, align_entries  every entry about eight times.
  init_std, embedding_init_std  demo.py's, scaled by the square root of the width.
  beta2               a memory of 3M tokens, as in small.py.
  sample_count, checkpoint_interval  what takes seconds and not a minute.
"""

data_dir = "bins/gpu"
out_dir = "out/gpu/runs"

source = "texts/en"
vocab_size = 4096
min_count = 20
fact_count = 256
fact_frequencies = 800

mix = {"en": 0.96, "clone": 0.04}
batch_size = 128
micro_batch_size = 128
block_size = 256
codeswitch_ratio = 0.03

n_layer = 4
n_head = 6
n_embd = 384
tie_embeddings = False
init_std = 0.035
embedding_init_std = 0.07

max_steps = 2400
learning_rate = 2e-3
beta2 = 0.99
warmup_ratio = 0.02

stage1_steps = 200
align_weight = 0.25
align_entries = 1024
align_tau = 0.1
align_power = 0.5

log_interval = 50
checkpoint_interval = 3000
eval_batch_size = 128
sample_count = 128
