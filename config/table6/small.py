"""
On top of config/small.py: English to German, Chinese, Russian and Arabic at once, 2% of each.

Reads the folders texts/LANGUAGE (en, de, zh, ru, ar) and dictionaries/en-LANGUAGE.txt (MUSE), as
`bash runs/download.sh table6_small` makes them.
"""

data_dir = "bins/table6_small"
out_dir = "out/table6_small"

source = "texts/{language}"
dictionary = "dictionaries/en-{language}.txt"
targets = ("de", "zh", "ru", "ar")
budget = {"en": 250e6, "de": 6e6, "zh": 6e6, "ru": 6e6, "ar": 6e6}
vocab_size = 32000

mix = {"en": 0.92, "de": 0.02, "zh": 0.02, "ru": 0.02, "ar": 0.02}
align_entries = 512
