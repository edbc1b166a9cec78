"""
Table 6 with the paper's 1.3B model: 10B English tokens and 0.1B of each target, four targets aligned at once.

    LAUNCH="torchrun --standalone --nproc_per_node=8" bash runs/table6.sh 1.3b

Reads the folders texts/LANGUAGE (en, de, zh, ru, ar; CulturaX's parquet files as they are) and dictionaries/en-LANGUAGE.txt
(MUSE), or with --dictionary="dictionaries/en-{language}.tsv" what translate.py makes. Differs from table6_150m.py in out_dir,
micro_batch_size, n_layer, n_embd and learning_rate.
"""

data_dir = "data/table6_paper"
out_dir = "out/table6_1.3b"

source = "texts/{language}"
shard_seed = 1
budget = {"en": 10e9, "de": 100e6, "zh": 100e6, "ru": 100e6, "ar": 100e6}
dictionary = "dictionaries/en-{language}.txt"
targets = ("de", "zh", "ru", "ar")
vocab_size = 64000
tokenizer_share = {"en": 0.01, "de": 0.2, "zh": 0.1, "ru": 0.2, "ar": 0.2}
val_fraction = 0.0005
fact_count = 2048
fact_frequencies = 100

mix = {"en": 0.96, "de": 0.01, "zh": 0.01, "ru": 0.01, "ar": 0.01}
batch_size = 1024
micro_batch_size = 16
block_size = 1024
codeswitch_ratio = 0.05

n_layer = 24
n_head = 16
n_embd = 2048

max_steps = 9918
learning_rate = 2e-4
beta2 = 0.95

stage1_steps = 500
align_weight = 0.1
align_entries = 2048
checkpoint_interval = 500
eval_tokens = 2_000_000
eval_batch_size = 16
nli_learning_rate = 2e-5
