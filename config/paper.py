"""
English and En-Clone at the paper's scale: 151M parameters without embeddings, 10.1B tokens, 1% of them En-Clone, about
1M tokens a step. config/size/400m.py and config/size/1.3b.py on top of it make the paper's larger models.

    LAUNCH="torchrun --standalone --nproc_per_node=8" bash runs/table1.sh paper

Reads English text from texts/en/ (bash runs/download.sh paper). The learning rate is a usual one for the size (the
authors' released code has 2e-4 to 5e-4). Temperature and align_weight are their code's 0.1 and 0.1, but their weight
multiplies a mean over layers and ours a sum (Eq. 3), here 14 times as much. None of the three has been tuned at this
scale.
"""

data_dir = "bins/paper"
out_dir = "out/paper"

source = "texts/en"
budget = {"en": 10e9}
tokenizer = "gpt2"
val_fraction = 0.0005
fact_count = 2048
fact_frequencies = 100

mix = {"en": 0.99, "clone": 0.01}
batch_size = 1024
micro_batch_size = 32
block_size = 1024
codeswitch_ratio = 0.05

n_layer = 12
n_head = 16
n_embd = 1024

max_steps = 9632
learning_rate = 6e-4
beta2 = 0.95

stage1_steps = 500
align_weight = 0.1
align_entries = 4096
checkpoint_interval = 500
eval_tokens = 2_000_000
eval_batch_size = 16
nli_learning_rate = 2e-5
