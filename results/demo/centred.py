"""
The note on figure 5: cosine of each layer between a word and its clone when each language's mean vector is taken off, and the share of
words whose own clone is the nearest one, at the snapshots that `bash runs/figures.sh demo` leaves.

    PYTHONPATH=. python results/demo/centred.py out/demo/dynamics/align/seed1 out/demo/dynamics/prealign/seed1
"""

import glob
import os
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from runtime import config as configs
from runtime.checkpoint import load_checkpoint, load_trained
from corpus.folder import Dataset
from prealign import draw_keys, padded, word_representations

WORDS = 500

for folder in sys.argv[1:]:
    for path in sorted(glob.glob(os.path.join(folder, "snapshots", "*.pt"))):
        config = configs.from_plain(load_checkpoint(path)["config"], path)
        data = Dataset(config.data_dir)
        table, L = data.table, len(data.languages)
        model, state = load_trained(folder, data, "cpu", os.path.relpath(path, folder))
        entries = np.argsort(draw_keys(table, replace(config, seed=0), step=2**62))[:WORDS]
        sides = []
        for language in range(2):
            ids, length = padded(table, table.groups[entries * L + language])
            with torch.no_grad():
                h = word_representations(model, torch.from_numpy(ids), torch.from_numpy(length))
            sides.append(F.normalize(h - h.mean(1, keepdim=True), dim=-1))  # (L + 2, WORDS, C)
        cosine = (sides[0] * sides[1]).sum(-1).mean(1)
        nearest = (sides[0] @ sides[1].transpose(1, 2)).argmax(-1).eq(torch.arange(len(entries))).float().mean(1)
        print(f"step {state['step']}: cosine {[round(c, 2) for c in cosine.tolist()]}, nearest {[round(n, 2) for n in nearest.tolist()]}")
