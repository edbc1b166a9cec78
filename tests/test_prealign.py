"""Stage 1 against the paper's equations as loops: rows of words, their representations, the loss, its batches."""

import math

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from conftest import LargestTensor
from corpus.table import Table, make_table
from model import GPT
from prealign import contrastive_loss, draw_entries, word_representations, word_rows
from runtime.config import Config

TABLE = make_table([  # pivot, then two targets; translations of one to four tokens, some missing
    [[np.array([1, 2])], [np.array([11])], [np.array([21]), np.array([22, 23, 24, 25])]],
    [[np.array([3])], [], [np.array([26])]],
    [[np.array([4, 5, 6])], [np.array([12, 13]), np.array([14]), np.array([15, 16])], []],
    [[np.array([7])], [np.array([17, 18])], [np.array([27])]],
], [10, 20, 30, 40], ("en", "de", "zh"))
ENTRY_OF_ROW = [4, 9, 7, 9, 4, 9, 7, 9, 7, 9]  # entries of 2, 3 and 5 words, out of order


# ---- the slow ways ----
def slow_rows(table: Table, entries) -> list[tuple[int, list[int]]]:
    """(entry, token ids) of every word in every language."""
    return [(entry, table.word(w).tolist()) for entry in entries for language in range(len(table.languages))
            for w in table.words(entry, language)]


@torch.no_grad()
def slow_representation(model: GPT, word) -> torch.Tensor:
    """The mean over a word's token ids in every layer, the word alone in its row. (L + 2, C)"""
    ids = torch.as_tensor(np.asarray(word), dtype=torch.long)[None]
    layers = [*model.layers(ids), model.lm_head.weight[ids]]
    return torch.stack([sum(layer[0]) / len(word) for layer in layers])


def slow_loss(representations, entry, tau):
    """Eq. 2 as it is printed, summed over layers (Eq. 3), over the number of its terms in a layer. -1 is no word."""
    loss, terms, words = 0.0, 0, [w for w in range(len(entry)) if entry[w] >= 0]
    for layer in representations:
        similarity = torch.cosine_similarity(layer[:, None], layer[None], dim=-1)
        for w in words:
            for p in words:
                if p != w and entry[p] == entry[w]:
                    denominator = sum(torch.exp(similarity[w, b] / tau) for b in words if b != w)
                    loss = loss - torch.log(torch.exp(similarity[w, p] / tau) / denominator)
                    terms += 1
    return loss * len(representations) / terms


def small() -> GPT:
    torch.manual_seed(0)
    return GPT(30, 8, n_layer=2, n_head=2, n_embd=8, tie_embeddings=False, init_std=0.3, embedding_init_std=1.0)


def tensors(entries) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    words = word_rows(TABLE, np.array(entries))
    return torch.from_numpy(words.ids), torch.from_numpy(words.length), torch.from_numpy(words.entry)


# ---- words and their representations ----
@pytest.mark.parametrize("entries, multiple_of", [([1], 1), ([0, 1, 2, 3], 1), ([3, 0], 2), ([2, 1, 3], 8)])
def test_every_word_of_every_entry_is_a_row(entries, multiple_of):
    words, expected = word_rows(TABLE, np.array(entries), multiple_of), slow_rows(TABLE, entries)
    n = len(expected)
    assert [(e, row[:length].tolist()) for e, row, length in zip(words.entry[:n], words.ids, words.length)] == expected
    assert len(words.ids) == len(words.entry) == len(words.length) == -(-n // multiple_of) * multiple_of
    assert (words.entry[n:] == -1).all() and (words.length >= 1).all()


def test_a_word_is_the_mean_over_its_tokens_in_every_layer():
    model = small()
    got = word_representations(model, *tensors(range(4))[:2])
    assert len(got) == 4 and got.dtype == torch.float32  # layers 0, 1, 2 and the output embedding
    expected = [slow_representation(model, word) for _, word in slow_rows(TABLE, range(4))]
    torch.testing.assert_close(got, torch.stack(expected, dim=1))
    # Padding, which is of token 0, gets no gradient.
    got.square().sum().backward()
    for embedding in (model.wte.weight, model.lm_head.weight):
        assert set(embedding.grad.abs().sum(1).nonzero().flatten().tolist()) == set(TABLE.tokens.tolist())


def test_words_in_pieces_are_the_same_and_keep_no_activations(monkeypatch):
    """Once in one piece, and once in pieces of 4 tokens, each of which is encoded again in the backward pass."""
    ids, length, _ = tensors([0, 2, 3, 1])
    monkeypatch.setattr("prealign.MULTIPLE", 1)
    results, tokens_at_once = [], []
    for piece in (100, 4):
        monkeypatch.setattr("prealign.PIECE", piece)
        model, seen = small(), []
        model.blocks[0].register_forward_hook(lambda _, x, y, seen=seen: seen.append(x[0].shape[0] * x[0].shape[1]))
        got = word_representations(model, ids, length)
        got.square().sum().backward()
        results.append([got, *(p.grad for p in model.parameters() if p.grad is not None)])
        tokens_at_once.append(seen)
    torch.testing.assert_close(*results)
    whole, pieces = tokens_at_once
    assert sum(pieces) == 2 * sum(whole) and max(pieces) == 4 < max(whole)


# ---- the loss ----
def layers_of_words(layers: int = 3, rows: int = len(ENTRY_OF_ROW), C: int = 6) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(layers, rows, C, dtype=torch.float64, requires_grad=True)


# Words without a positive are negatives only; rows of -1, which stand last, are padding.
@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("entry", [ENTRY_OF_ROW, [0, 0], [0, 0, 1, 1], [5] * 4, [1, 2, 2, 3], [0, 0, 1, 1, 2, -1, -1]])
def test_loss_and_gradient_are_those_of_the_double_loop(entry, tau):
    words = layers_of_words(rows=len(entry))
    mine, slow = contrastive_loss(words, torch.tensor(entry), tau), slow_loss(words, entry, tau)
    torch.testing.assert_close(mine, slow)
    gradient = torch.autograd.grad(1.7 * mine, words)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(1.7 * slow, words)[0])
    assert (gradient[:, torch.tensor(entry) < 0] == 0).all()


def test_two_entries_of_two_words_by_hand():
    # Cosine 0.6 within; across 0, 0.8, -0.8 and 0.
    words, entry, e = torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1], [-0.8, 0.6]]]), torch.tensor([0, 0, 1, 1]), math.exp
    expected = (math.log((e(.6) + e(0) + e(-.8)) / e(.6)) + math.log((e(.6) + e(.8) + e(0)) / e(.6))) / 2
    assert contrastive_loss(words, entry, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_one_word_costs_nothing_and_large_similarities_stay_finite():
    assert contrastive_loss(layers_of_words(rows=1), torch.tensor([3]), 0.1).item() == 0
    words = torch.tensor([[[1.0, 0], [-1, 0], [1, 0], [1, 0]]], requires_grad=True)
    loss = contrastive_loss(words, torch.tensor([0, 0, 1, 1]), 0.001)
    # The first word's positive is 2 / 0.001 below two negatives; the second's is level with two; the others' with one.
    assert loss.item() == pytest.approx((2000 + math.log(2) + math.log(3) + 2 * math.log(2)) / 4, rel=1e-6)
    assert torch.autograd.grad(loss, words)[0].isfinite().all()


def test_the_largest_tensor_is_one_layers_similarities_in_float32():
    """However many layers there are: none is kept for the backward pass. Autocast does not reach it."""
    words, entry, kept = torch.randn(9, 512, 4, requires_grad=True), torch.arange(512) // 2, [0]
    keep = saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor)
    with LargestTensor() as largest:
        with torch.autocast("cpu", torch.bfloat16), keep:
            loss = contrastive_loss(words, entry, 0.1)
        loss.backward()
    assert largest.nbytes == 4 * 512**2 > 4 * max(kept)


# ---- the entries of a step ----
def draws(frequency: list[int], steps: int, **knobs) -> np.ndarray:
    """The entries of every step, (steps, N)."""
    words = [[[np.array([k])], [np.array([k + 100])]] for k in range(len(frequency))]
    table = make_table(words, frequency, ("en", "clone"))
    return np.stack([draw_entries(table, Config(**knobs), step) for step in range(steps)])


def test_entries_of_a_step_are_distinct_and_a_function_of_seed_and_step():
    drawn, again, other = (draws([5] * 50, 10, align_entries=20, seed=seed) for seed in (1, 1, 2))
    assert drawn.shape == (10, 20) and (np.diff(drawn) > 0).all() and len(np.unique(drawn, axis=0)) == 10
    assert np.array_equal(drawn, again) and not np.array_equal(drawn, other)
    # A small table is drawn whole.
    assert draws([1, 1000, 3, 7], 1, align_entries=5).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("frequency, power", [([1, 2, 3, 4], 1.0), ([1, 4, 9, 16], 0.5)])
def test_an_entry_is_drawn_in_proportion_to_a_power_of_its_frequency(frequency, power):
    expected = 2000 * np.array([0.1, 0.2, 0.3, 0.4])
    times = np.bincount(draws(frequency, 2000, align_entries=1, align_power=power).ravel())
    assert (abs(times - expected) < 5 * np.sqrt(expected)).all()
