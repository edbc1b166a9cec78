"""What tools/bench.py measures on a CPU: 12M parameters, 32k ids (half of them En-Clone's), 8 x 256 tokens a step."""

data_dir = "bins/bench"
out_dir = "out/bench"

vocab_size = 16384
min_count = 5
fact_count = 0

mix = {"en": 0.975, "clone": 0.025}
batch_size = 8
micro_batch_size = 8
block_size = 256
codeswitch_ratio = 0.05

n_layer = 4
n_head = 4
n_embd = 256
