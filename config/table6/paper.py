"""
On top of config/paper.py: 10B English tokens and 0.1B each of German, Chinese, Russian and Arabic, all aligned at once.

    LAUNCH="torchrun --standalone --nproc_per_node=8" bash runs/table6.sh paper

Reads the folders texts/LANGUAGE (en, de, zh, ru, ar; CulturaX's parquet files as they are) and the dictionaries
dictionaries/en-LANGUAGE.txt (MUSE), as `bash runs/download.sh table6_paper` makes them, or with
--dictionary="dictionaries/en-{language}.tsv" what tools.translate wrote.
"""

data_dir = "bins/table6_paper"
out_dir = "out/table6_paper"

source = "texts/{language}"
budget = {"en": 10e9, "de": 100e6, "zh": 100e6, "ru": 100e6, "ar": 100e6}
dictionary = "dictionaries/en-{language}.txt"
targets = ("de", "zh", "ru", "ar")
tokenizer = "train"
vocab_size = 64000
tokenizer_share = {"en": 0.01, "de": 0.2, "zh": 0.1, "ru": 0.2, "ar": 0.2}

mix = {"en": 0.96, "de": 0.01, "zh": 0.01, "ru": 0.01, "ar": 0.01}
max_steps = 9918
align_entries = 2048
