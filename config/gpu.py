"""
English to En-Clone on one GPU, Tables 1 and 3 in minutes (bash runs/gpu.sh reproduce): by arithmetic about a minute of
an H100 for each method; no GPU run has been made with it. Where it differs from config/small.py and demo.py, and why:
  n_layer, n_embd     10.6M parameters without embeddings. A token costs 108 MFLOPs, a third of them for the 16,384 ids.
                  384 is three tiles of a GPU's matrix product.
  max_steps, batch_size  3,800 steps of 32,768 tokens, 125M tokens: 1.3e16 operations, 55 s at 240 TFLOP/s. Larger
                  batches would be faster, and the steps too few.
  block_size          256: attention is a fifteenth of the operations, and what novels tell of a page is enough here.
  vocab_size          8,192, so that En-Clone's ids are seen often.
  mix                 2% of En-Clone, 2.5M tokens: 300 for each of its ids. With 24 for each, its output
                  embeddings, which input-only codeswitching never trains, are hardly learned.
  fact_count, fact_frequencies  2M tokens, 2% of all; every fact so often that it is learned early, as in demo.py.
  min_count           20, as in the paper: in 70 MB of text they make a table that covers nearly all words.
  stage1_steps, align_entries  5% of the steps, and so many entries that each of some 32,000 comes up a dozen
                  times. The similarities of 4,096 words are a few milliseconds for a GPU.
  align_weight, align_tau, align_power  demo.py's, as its stage 1 is short too.
  init_std, embedding_init_std  demo.py's, scaled by the square root of the width.
  learning_rate       between demo.py's at 192 wide and small.py's at 512.
  beta2               a memory of 3M tokens, as in small.py.
  eval_tokens, sample_count, checkpoint_interval  what takes seconds and not a minute.
"""

data_dir = "bins/gpu"
out_dir = "out/gpu/runs"

source = "texts/en"
vocab_size = 8192
min_count = 20
fact_count = 256
fact_frequencies = 400

mix = {"en": 0.98, "clone": 0.02}
batch_size = 128
micro_batch_size = 128
block_size = 256
codeswitch_ratio = 0.05

n_layer = 6
n_head = 6
n_embd = 384
tie_embeddings = True
init_std = 0.03
embedding_init_std = 0.06

max_steps = 3800
learning_rate = 1.5e-3
beta2 = 0.99
warmup_ratio = 0.02

stage1_steps = 190
align_weight = 0.25
align_entries = 2048
align_tau = 0.1
align_power = 0.5

log_interval = 50
checkpoint_interval = 2000
eval_tokens = 200_000
eval_batch_size = 128
sample_count = 128
