"""
The note on figure 5: cosine of each layer between a word and its clone when each language's mean vector is taken off,
and the share of words whose own clone is the nearest one, at the snapshots that `bash runs/figures.sh demo` leaves.

    PYTHONPATH=. python results/demo_earlier/centred.py out/demo/dynamics/align/seed1 out/demo/dynamics/prealign/seed1
"""

import glob
import os
import sys

import torch
import torch.nn.functional as F

from corpus.folder import Folder
from eval import word_vectors
from runtime import config as configs
from runtime.checkpoint import load_checkpoint, load_trained

for folder in sys.argv[1:]:
    for path in sorted(glob.glob(os.path.join(folder, "snapshots", "*.pt"))):
        config = configs.from_plain(load_checkpoint(path)["config"], path)
        data = Folder(config.data_dir)
        model, state = load_trained(folder, data, "cpu", os.path.relpath(path, folder))
        h = word_vectors(model, data, config, (0, 1), count=500)  # (L + 2, languages, words, C)
        word, clone = F.normalize(h - h.mean(2, keepdim=True), dim=-1).unbind(1)  # each (L + 2, words, C)
        cosine = (word * clone).sum(-1).mean(1)
        nearest = (word @ clone.transpose(1, 2)).argmax(-1).eq(torch.arange(word.shape[1])).float().mean(1)
        print(f"step {state['step']}: cosine {[round(c, 2) for c in cosine.tolist()]}, "
              f"nearest {[round(n, 2) for n in nearest.tolist()]}")
