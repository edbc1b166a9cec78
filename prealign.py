"""
Stage 1: multilingual alignment before pretraining (section 3.1), and the contrastive loss that does it.

    python prealign.py config/demo.py           # -> out/demo/align/seed1
    torchrun --standalone --nproc_per_node=8 prealign.py config/demo.py

A batch is N entries of the alignment table. Each of their words, in every language, is one row, encoded alone. In
every layer, rows of the same entry are pulled together and all others apart (Eq. 2), summed over layers (Eq. 3). The
loop, and the language-model loss beside it (Eq. 4), are train.py's.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from corpus.table import Table, ranges
from model import ANY_SHAPE, GPT
from runtime.config import Config, load
from runtime.errors import UserError, run_main
from runtime.hardware import Hardware, to_device
from runtime.hashing import ENTRY, uniform
from train import train

# Tokens: groups of words are filled up to a multiple of it.
MULTIPLE = 128
# Tokens of words that go through the model at once: 20 GB of activations in the 1.3B model.
PIECE = 2**13


class Words(NamedTuple):
    """A batch of words as rows, padded to the longest."""

    ids: np.ndarray     # (R, W) int64
    length: np.ndarray  # (R,) int64, tokens of each word
    entry: np.ndarray   # (R,) int64; -1 = a row of padding


def draw_keys(table: Table, config: Config, step: int) -> np.ndarray:
    """A random key (K,) for every entry, a function of (seed, step): the N smallest are a draw of N entries."""
    # Without replacement, each in proportion to frequency ** align_power (Efraimidis and Spirakis, 2006).
    exponential = -np.log1p(-uniform(config.seed, ENTRY, step, np.arange(len(table))))
    return exponential / table.frequency.astype(np.float64) ** config.align_power


def draw_entries(table: Table, config: Config, step: int) -> np.ndarray:
    """The distinct entries (N,) of step `step`, in increasing order."""
    N = min(config.align_entries, len(table))
    return np.sort(np.argpartition(draw_keys(table, config, step), N - 1)[:N])


def padded(table: Table, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (R, W) int64 of words (R,) of the table, padded with 0 to the longest, and their lengths (R,)."""
    length = table.offsets[word + 1] - table.offsets[word]
    ids = np.zeros((len(word), length.max()), dtype=np.int64)
    ids[np.arange(length.max()) < length[:, None]] = table.tokens[ranges(table.offsets[word], length)]
    return ids, length


def word_rows(table: Table, entries: np.ndarray, multiple_of: int = 1) -> Words:
    """All words of `entries` (N,), in every language, as rows; padded to a multiple of `multiple_of` rows."""
    # The words of an entry stand one after another in the table, language by language.
    L = len(table.languages)
    first, end = table.groups[entries * L], table.groups[(entries + 1) * L]
    ids, length = padded(table, ranges(first, end - first))  # (R, W), (R,)
    extra = -len(length) % multiple_of
    return Words(np.pad(ids, ((0, extra), (0, 0))), np.pad(length, (0, extra), constant_values=1),
                 np.pad(np.repeat(entries, end - first), (0, extra), constant_values=-1))


def encode_words(model: GPT, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """word_representations (L + 2, r, C) of words of about one length, ids (r, w) and length (r,), all at once."""
    # A token's share in the mean over its word's tokens: 0 for padding.
    share = (torch.arange(ids.shape[1], device=ids.device) < length[:, None]) / length[:, None]  # (r, w), rows sum to 1
    with sdpa_kernel(ANY_SHAPE):
        layers = model.layers(ids) + [F.embedding(ids, model.lm_head.weight)]  # L + 2 of (r, w, C)
    return torch.stack([(layer.float() * share[:, :, None]).sum(1) for layer in layers])


def word_representations(model: GPT, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """
    Words at layers 0..L+1, word embedding, each block's output and output embedding: the mean over the tokens of a word
    (section 3.1). ids (R, W) int64, length (R,), on the CPU -> (L + 2, R, C) float32, on the model's device
    """
    device = model.wte.weight.device
    # Most words are far shorter than the longest: encode them in groups of 1, 2, 3-4, 5-8, ... tokens.
    group_of = length.float().log2().ceil().long()
    # What does not go through the model at once keeps no activations: they are computed again in the backward pass.
    recompute = torch.is_grad_enabled() and int((2**group_of).sum()) > PIECE
    order, parts = [], []
    for group in group_of.unique().tolist():
        for rows in (group_of == group).nonzero().squeeze(1).split(max(1, PIECE >> group)):
            # Filled up with the first word, so that few sizes come up: memory kept from one step then fits the next.
            filled = F.pad(rows, (0, -len(rows) % max(1, MULTIPLE >> group)))
            word, n = to_device(ids[filled, : 2**group], device), to_device(length[filled], device)  # (r, w), (r,)
            if recompute:
                part = checkpoint(encode_words, model, word, n, use_reentrant=False, preserve_rng_state=False)
            else:
                part = encode_words(model, word, n)
            parts.append(part[:, :len(rows)])
            order.append(rows)
    return torch.cat(parts, dim=1)[:, to_device(torch.cat(order).argsort(), device)]


def layer_loss(anchors: torch.Tensor, rows: torch.Tensor, entry: torch.Tensor, positives: torch.Tensor, first: int,
               tau: float) -> torch.Tensor:
    """
    Eq. 2, the loss of one layer, summed over some of its rows, in nats.

    anchors (A, C) and rows (R, C) are L2-normalised float32; anchor a is row first + a. entry (R,) numbers the entries
    of the batch from 0, positives (R,) float32 says how many other words the entry of each row has.
    """
    mine = slice(first, first + len(anchors))
    # Only other words stand in the denominator. The lowest number and not -inf: a word alone then has no NaN.
    similarity = (anchors / tau) @ rows.T  # (A, R) cosines over tau
    similarity.diagonal(first).fill_(torch.finfo(rows.dtype).min)
    log_denominator = similarity.logsumexp(1)  # (A,)
    # The positives of a word come in by their sum, not pair by pair: all words of its entry, without itself.
    others = torch.zeros_like(rows).index_add(0, entry, rows)[entry[mine]] - anchors  # (A, C)
    # -sum over positives of log(exp(s_p) / denominator) = number * log_denominator - sum over positives of s_p
    return (positives[mine] * log_denominator).sum() - (anchors * others).sum() / tau


class GatherRows(torch.autograd.Function):
    """All processes' rows along dim 1, with gradients flowing back to the process each row came from."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[1]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.rows, dim=1)[dist.get_rank()]


def contrastive_loss(representations: torch.Tensor, entry: torch.Tensor, tau: float) -> torch.Tensor:
    """
    This process's share of the multilingual contrastive loss, summed over layers (Eq. 3), in nats; the shares add up.

    representations (L + 2, rows of this process, C) float32; entry (rows of all processes,) on the CPU, -1 = padding
    """
    # Supervised contrastive (Khosla et al., 2020): the positives of a word are the other words of its entry, and its
    # denominator holds every other word of the global batch.
    anchors = F.normalize(representations, dim=-1)
    distributed = dist.is_initialized()
    rows = GatherRows.apply(anchors) if distributed else anchors
    first = dist.get_rank() * anchors.shape[1] if distributed else 0
    device = anchors.device
    # Padding stands last, and takes no part.
    R = int((entry >= 0).sum())
    anchors, rows = anchors[:, :max(0, R - first)], rows[:, :R]
    _, index, words = entry[:R].unique(return_inverse=True, return_counts=True)
    positives = (words - 1)[index]  # (R,)
    entry_there, positives_there = to_device(index, device), to_device(positives.to(anchors.dtype), device)
    # At tau = 0.1 a cosine's rounding error counts ten times: float32.
    with torch.autocast(device.type, enabled=False):
        # unbind: the gradient of indexing a layer would be zeros for all the others, once for each layer. A layer's
        # similarities are computed again in the backward pass: those of one layer are held at a time.
        total = sum(checkpoint(layer_loss, a, r, entry_there, positives_there, first, tau, use_reentrant=False,
                               preserve_rng_state=False) for a, r in zip(anchors.unbind(), rows.unbind()))
    # Over the number of (word, positive) pairs, which Eq. 2 lacks: align_weight then means the same for every batch.
    return total / max(1, positives.sum().item())


class Alignment:
    """The contrastive loss as the second objective of train.py's loop."""

    def __init__(self, config: Config, table: Table, hardware: Hardware):
        self.config, self.table, self.hardware = config, table, hardware

    def words(self, step: int) -> Words:
        """The words of all processes in a step: the same everywhere."""
        return word_rows(self.table, draw_entries(self.table, self.config, step), self.hardware.world)

    def loss(self, model: GPT, words: Words) -> torch.Tensor:
        """This process encodes its part of the rows, and compares them with all."""
        mine = np.array_split(np.arange(len(words.ids)), self.hardware.world)[self.hardware.rank]
        with self.hardware.autocast:
            ids, length = torch.from_numpy(words.ids[mine]), torch.from_numpy(words.length[mine])
            representations = word_representations(model, ids, length)
        return contrastive_loss(representations, torch.from_numpy(words.entry), self.config.align_tau)


def main(arguments: list[str]) -> None:
    config = load(arguments, __doc__)
    if config.stage1_steps == 0:
        raise UserError("stage1_steps is 0: there is no stage 1 to run")
    train(config.stage1(), config.stage1_steps, Alignment)


if __name__ == "__main__":
    run_main(main)
