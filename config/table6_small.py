"""
English to German, Chinese, Russian and Arabic at once, on one GPU: 25M parameters (without embeddings), 262M tokens, 2% of each target.

Reads the folders texts/LANGUAGE (en, de, zh, ru, ar) and dictionaries/en-LANGUAGE.txt (MUSE).
"""

data_dir = "data/table6_small"
out_dir = "out/table6_small"

source = "texts/{language}"
dictionary = "dictionaries/en-{language}.txt"
targets = ("de", "zh", "ru", "ar")
budget = {"en": "250M", "de": "6M", "zh": "6M", "ru": "6M", "ar": "6M"}
vocab_size = 32000
fact_count = 512
fact_frequencies = 100

mix = {"en": 0.92, "de": 0.02, "zh": 0.02, "ru": 0.02, "ar": 0.02}
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
align_entries = 512
nli_learning_rate = 1e-4
