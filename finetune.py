"""
Zero-shot cross-lingual transfer (ZS-CLT, the paper's Evaluation section): fine-tune a trained model on English natural
language inference, then test it in English and, without a single training pair of theirs, in the target languages.

    python eval.py xnli config/demo.py config/method/prealign.py                          # the built-in pairs of nli.py
    python eval.py xnli CONFIG... --nli_train=multinli.train.en.tsv --nli_dev=xnli.dev.tsv --nli_test=xnli.test.tsv
"""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel
from tqdm import tqdm

from tasks import nli
from runtime.config import Config
from runtime.errors import UserError
from corpus.folder import Folder, text_language
from runtime.hardware import Hardware
from model import ANY_SHAPE, GPT
from tasks.nli import Pair
from corpus.tokenizer import encode
from train import learning_rate


class Classifier(nn.Module):
    """The GPT with a linear layer on the final hidden state of the last token, which has seen the whole pair."""

    def __init__(self, model: GPT, labels: int):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.wte.embedding_dim, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """ids (B, T) int64, each row's tokens and then padding; length (B,) its tokens -> logits (B, labels)."""
        hidden = self.model(ids)  # (B, T, C); causal, so padding behind a row's tokens does not reach them
        return self.head(hidden[torch.arange(len(ids), device=ids.device), length - 1])


def encode_pairs(pairs: list[Pair], data: Folder, language: str, block_size: int) -> list[np.ndarray]:
    """Each pair as end-of-text, premise, end-of-text, hypothesis, end-of-text; En-Clone by id offset; the end kept when too long."""
    offset = data.offsets[language]
    eot = [data.end_of_text]
    rows = (np.concatenate([eot, encode(data.encoding, pair.premise), eot, encode(data.encoding, pair.hypothesis), eot]) for pair in pairs)
    return [(row + offset)[-block_size:] for row in rows]


def padded_batch(rows: list[np.ndarray], device: torch.device, fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) int64 of rows of unequal length, filled up behind with `fill`, and their lengths (B,)."""
    length = torch.tensor([len(row) for row in rows])
    ids = np.full((len(rows), int(length.max())), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = row
    return torch.from_numpy(ids).to(device), length.to(device)


@torch.no_grad()
def predict(classifier: Classifier, rows: list[np.ndarray], batch_size: int) -> np.ndarray:
    """The label (n,) of every row, in float32; rows of similar length share a batch."""
    device = classifier.head.weight.device
    order = np.argsort([len(row) for row in rows], kind="stable")
    labels = np.empty(len(rows), dtype=np.int64)
    for begin in range(0, len(rows), batch_size):
        batch = order[begin:begin + batch_size]
        labels[batch] = classifier(*padded_batch([rows[i] for i in batch], device)).argmax(1).cpu().numpy()
    return labels


def accuracy(predicted: np.ndarray, pairs: list[Pair]) -> float:
    return float((predicted == [pair.label for pair in pairs]).mean())


def fine_tune(model: GPT, rows: list[np.ndarray], pairs: list[Pair], labels: int, dev: tuple[list[np.ndarray], list[Pair]], config: Config,
              hardware: Hardware, seed: int) -> tuple[Classifier, float]:
    """
    A classifier fine-tuned on the pairs, as it was after the epoch that did best on dev, and its accuracy there. `model`
    is left as it is.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = Classifier(copy.deepcopy(model), labels).to(hardware.device)
    groups = [*classifier.model.parameter_groups(config.weight_decay), {"params": classifier.head.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.nli_learning_rate, betas=(config.beta1, config.beta2), fused=True)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)
    target = torch.tensor([pair.label for pair in pairs], device=hardware.device)
    per_epoch = math.ceil(len(rows) / config.nli_batch_size)
    schedule = replace(config, learning_rate=config.nli_learning_rate, max_steps=per_epoch * config.nli_epochs, align_steps="none")
    best, step = -1.0, 0
    best_state: dict[str, torch.Tensor] = {}
    with tqdm(total=per_epoch * config.nli_epochs, desc=f"fine-tuning, seed {seed}", unit="step", disable=None) as bar:
        for _ in range(config.nli_epochs):
            classifier.train()
            for batch in np.array_split(rng.permutation(len(rows)), per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, schedule)
                with hardware.autocast, sdpa_kernel(ANY_SHAPE):
                    logits = classifier(*padded_batch([rows[i] for i in batch], hardware.device))
                scaler.scale(F.cross_entropy(logits.float(), target[torch.from_numpy(batch).to(hardware.device)])).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(classifier.parameters(), config.grad_clip or math.inf)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                bar.update()
            score = accuracy(predict(classifier.eval(), dev[0], config.eval_batch_size), dev[1])
            bar.set_postfix(dev=f"{score:.3f}")
            if score > best:
                best, best_state = score, copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(best_state)
    return classifier, best


def pairs_of(config: Config, split: str, language: str, pivot: str, several: bool = False) -> tuple[list[Pair], tuple[str, ...]]:
    """
    The pairs of a split, "train", "dev" or "test", in a language that has text, and the names of their labels. When `several`
    languages are read from one file, it must say which pair is in which.
    """
    source = getattr(config, f"nli_{split}")
    if source == "builtin":
        if language != pivot:
            raise UserError(f"nli_{split}=builtin is in English only; for {language!r} give a file, such as xnli.test.tsv")
        return nli.builtin(split, config.nli_builtin if split == "train" else max(1, config.nli_builtin // 10)), nli.LABELS
    return nli.read(source.replace("{language}", language), language, several=several and "{language}" not in source)


def transfer(model: GPT, data: Folder, config: Config, hardware: Hardware) -> dict:
    """
    Accuracy of nli_seeds fine-tunings per language: {"train": ..., "pairs": ..., "languages": {language: {"accuracies", "n"}}}.

    Raises UserError when the splits have different labels.
    """
    splits = {split: pairs_of(config, split, data.pivot, data.pivot) for split in ("train", "dev")}
    texts = {language: text_language(language, data.pivot) for language in data.languages}
    several = len(set(texts.values())) > 1
    read = {text: pairs_of(config, "test", text, data.pivot, several) for text in dict.fromkeys(texts.values())}  # once each
    tests = {language: read[text] for language, text in texts.items()}
    labels = splits["train"][1]
    for name, (_, found) in (splits | tests).items():
        if found != labels:
            raise UserError(f"the labels of the {name} pairs are {', '.join(found)}, those of the training pairs {', '.join(labels)}")
    rows = {split: encode_pairs(pairs, data, data.pivot, config.block_size) for split, (pairs, _) in splits.items()}
    test_rows = {language: encode_pairs(pairs, data, language, config.block_size) for language, (pairs, _) in tests.items()}
    result: dict[str, Any] = {"train": config.nli_train, "test": config.nli_test, "pairs": len(rows["train"]), "labels": list(labels), "dev": [],
              "languages": {language: {"accuracies": [], "n": len(pairs)} for language, (pairs, _) in tests.items()}}
    for seed in range(1, config.nli_seeds + 1):
        classifier, dev = fine_tune(model, rows["train"], splits["train"][0], len(labels), (rows["dev"], splits["dev"][0]), config, hardware, seed)
        result["dev"].append(dev)
        for language, (pairs, _) in tests.items():
            result["languages"][language]["accuracies"].append(accuracy(predict(classifier, test_rows[language], config.eval_batch_size), pairs))
    return result
