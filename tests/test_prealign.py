"""Stage 1 against the paper's equation written as loops: words as rows, their representations, the contrastive loss, its batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

import prealign
from runtime.config import Config
from runtime.errors import UserError
from conftest import LiveBytes
from model import GPT
from prealign import contrastive_loss, draw_entries, word_representations, word_rows
from corpus.table import Table, make_table

TABLE = make_table([  # pivot, then two targets; translations of one to four tokens, some missing
    [[np.array([1, 2])], [np.array([11])], [np.array([21]), np.array([22, 23, 24, 25])]],
    [[np.array([3])], [], [np.array([26])]],
    [[np.array([4, 5, 6])], [np.array([12, 13]), np.array([14]), np.array([15, 16])], []],
    [[np.array([7])], [np.array([17, 18])], [np.array([27])]],
], [10, 20, 30, 40], ("en", "de", "zh"))


def small(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(**{"vocab_size": 30, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "tie_embeddings": False,
                  "init_std": 0.3, "embedding_init_std": 1.0} | changes)


# ---- words as rows ----

def rows_in_a_loop(table: Table, entries) -> list[tuple[int, list[int]]]:
    return [(entry, table.word(w).tolist()) for entry in entries for language in range(len(table.languages)) for w in table.words(entry, language)]


@pytest.mark.parametrize("entries", [[0], [1], [0, 1, 2, 3], [3, 0], [2, 1, 3]])
@pytest.mark.parametrize("multiple_of", [1, 2, 8])
def test_every_word_of_every_entry_is_a_row(entries, multiple_of):
    words, expected = word_rows(TABLE, np.array(entries), multiple_of), rows_in_a_loop(TABLE, entries)
    n = len(expected)
    assert [(e, row[:length].tolist()) for e, row, length in zip(words.entry[:n], words.ids, words.length)] == expected
    assert words.ids.shape == (len(words.entry), max(len(ids) for _, ids in expected))
    assert len(words.entry) == len(words.length) == -(-n // multiple_of) * multiple_of
    assert (words.entry[n:] == -1).all() and (words.length >= 1).all()
    assert words.ids.dtype == words.length.dtype == np.int64


# ---- representations ----

def representation_in_a_loop(model: GPT, ids: list[int]) -> torch.Tensor:
    layers = model.layers(torch.tensor([ids])) + [model.lm_head.weight[torch.tensor([ids])]]
    return torch.stack([sum(layer[0, t] for t in range(len(ids))) / len(ids) for layer in layers])


@pytest.mark.parametrize("tie", [True, False])
def test_a_word_is_the_mean_over_its_tokens_in_every_layer(tie):
    model, words = small(tie_embeddings=tie), word_rows(TABLE, np.arange(4))
    got = word_representations(model, torch.from_numpy(words.ids), torch.from_numpy(words.length))
    expected = torch.stack([representation_in_a_loop(model, ids) for _, ids in rows_in_a_loop(TABLE, range(4))], dim=1)
    assert got.shape == (4, len(words.ids), 8) and got.dtype == torch.float32  # layers 0, 1, 2 and the output embedding
    torch.testing.assert_close(got, expected)


def test_a_words_first_and_last_layers_are_its_input_and_output_embedding():
    model = small()
    got = word_representations(model, torch.tensor([[7, 0, 0]]), torch.tensor([1]))
    assert torch.equal(got[0, 0], model.wte.weight[7]) and torch.equal(got[-1, 0], model.lm_head.weight[7])
    assert not torch.equal(got[0], got[-1])


def test_padding_and_the_other_words_of_the_batch_change_nothing():
    model = small()
    alone = word_representations(model, torch.tensor([[4, 5]]), torch.tensor([2]))
    for padding in ([0, 0], [9, 8]):
        batch = torch.tensor([[4, 5, *padding], [1, 2, 3, 6]])
        torch.testing.assert_close(word_representations(model, batch, torch.tensor([2, 4]))[:, :1], alone)


def test_words_in_pieces_have_the_same_representations_and_gradients(monkeypatch):
    words = word_rows(TABLE, np.array([0, 2, 3, 1]))
    upstream = torch.randn(4, len(words.ids), 8)
    results = []
    for piece in (prealign.PIECE, 4):
        monkeypatch.setattr(prealign, "PIECE", piece)
        model = small()
        got = word_representations(model, torch.from_numpy(words.ids), torch.from_numpy(words.length))
        (got * upstream).sum().backward()
        results.append([got, *(p.grad for p in model.parameters() if p.grad is not None)])
    for whole, in_pieces in zip(*results, strict=True):
        torch.testing.assert_close(in_pieces, whole)


def test_words_in_pieces_keep_no_activations(monkeypatch):
    def held() -> int:  # most tokens that go through a block at once, in both passes
        model, seen = small(n_layer=1), []
        model.blocks[0].register_forward_hook(lambda _, x, y: seen.append(x[0].shape[0] * x[0].shape[1]))
        ids = torch.arange(24).view(24, 1)
        word_representations(model, ids, torch.ones(24, dtype=torch.long)).sum().backward()
        return sum(seen), max(seen)

    monkeypatch.setattr(prealign, "MULTIPLE", 1)
    assert held() == (24, 24)
    monkeypatch.setattr(prealign, "PIECE", 8)
    assert held() == (48, 8)  # each piece again in the backward pass


def test_padding_gets_no_gradient():
    model = small()
    word_representations(model, torch.tensor([[4, 5, 9, 9]]), torch.tensor([2])).square().sum().backward()
    for embedding in (model.wte.weight, model.lm_head.weight):
        assert set(embedding.grad.abs().sum(1).nonzero().flatten().tolist()) == {4, 5}


# ---- the loss ----

ENTRY_OF_ROW = [4, 9, 7, 9, 4, 9, 7, 9, 7, 9]  # entries of 2, 3 and 5 words, out of order


def loss_in_a_loop(representations, entry, tau):
    """Eq. 3 as it is printed, over the number of its terms in a layer."""
    loss, terms, words = 0.0, 0, [w for w in range(len(entry)) if entry[w] >= 0]
    for layer in representations:
        def similarity(a, b):
            return layer[a] @ layer[b] / (layer[a].norm() * layer[b].norm())
        for w in words:
            for p in words:
                if p != w and entry[p] == entry[w]:
                    denominator = sum(torch.exp(similarity(w, b) / tau) for b in words if b != w)
                    loss = loss - torch.log(torch.exp(similarity(w, p) / tau) / denominator)
                    terms += 1
    return loss * len(representations) / terms


def layers_of_words(layers: int = 3, rows: int = len(ENTRY_OF_ROW), C: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(layers, rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("entry", [ENTRY_OF_ROW, [0, 0], [0, 0, 1, 1], [5] * 4, [1, 2, 2, 3]])
def test_loss_and_gradient_are_those_of_the_double_loop(entry, tau):
    words = layers_of_words(rows=len(entry))
    mine, slow = contrastive_loss(words, torch.tensor(entry), tau), loss_in_a_loop(words, entry, tau)
    torch.testing.assert_close(mine, slow)
    torch.testing.assert_close(torch.autograd.grad(1.7 * mine, words)[0], torch.autograd.grad(1.7 * slow, words)[0])


def test_gradient_is_the_slope():
    entry = torch.tensor([0, 0, 1, 1, 1, -1])
    assert torch.autograd.gradcheck(lambda words: contrastive_loss(words, entry, 0.5), layers_of_words(2, 6, 3))


def test_two_entries_of_two_words_by_hand():
    # Cosine 1 within an entry and 0 across: every word has one positive, and log((e^(1/tau) + 2) / e^(1/tau)).
    words, entry = torch.tensor([[[1.0, 0], [0, 3], [2, 0], [0, 1]]]), torch.tensor([0, 1, 0, 1])
    assert contrastive_loss(words, entry, 1.0).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)
    assert contrastive_loss(words, entry, 0.5).item() == pytest.approx(math.log(1 + 2 / math.e**2), rel=1e-6)
    assert contrastive_loss(words.repeat(3, 1, 1), entry, 1.0).item() == pytest.approx(3 * math.log(1 + 2 / math.e), rel=1e-6)  # 3 layers
    # Cosine 0.6 within; across 0, 0.8, -0.8 and 0.
    words, entry = torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1], [-0.8, 0.6]]]), torch.tensor([0, 0, 1, 1])
    e = math.exp
    expected = (math.log((e(.6) + e(0) + e(-.8)) / e(.6)) + math.log((e(.6) + e(.8) + e(0)) / e(.6))) / 2
    assert contrastive_loss(words, entry, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_does_not_grow_with_the_number_of_translations():
    """Entries of n words each, all alike within an entry and at right angles across: -log(1 / (n - 1 + rest)) for every pair."""
    for n in (2, 3, 6):
        words, entry = torch.eye(2).repeat_interleave(n, 0)[None], torch.tensor([0, 1]).repeat_interleave(n)
        assert contrastive_loss(words, entry, 1.0).item() == pytest.approx(math.log(n - 1 + n / math.e), rel=1e-6)


def test_length_of_a_vector_does_not_matter():
    words, entry = layers_of_words(), torch.tensor(ENTRY_OF_ROW)
    scaled = words * torch.rand(words.shape[1], 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(contrastive_loss(scaled, entry, 0.1), contrastive_loss(words, entry, 0.1))


def test_padding_rows_change_nothing():
    words, entry = layers_of_words(rows=13), torch.tensor([*ENTRY_OF_ROW, -1, -1, -1])
    padded, plain = contrastive_loss(words, entry, 0.1), contrastive_loss(words[:, :10], entry[:10], 0.1)
    torch.testing.assert_close(padded, plain)
    of_padded, of_plain = torch.autograd.grad(padded, words)[0], torch.autograd.grad(plain, words)[0]
    torch.testing.assert_close(of_padded, of_plain)
    assert (of_padded[:, 10:] == 0).all()


def test_one_matrix_of_similarities_is_held():
    """For every layer some arrays of rows x width, and one of rows x rows however many layers there are."""
    def peak(layers: int, rows: int, C: int = 4) -> int:
        words, entry = torch.randn(layers, rows, C, requires_grad=True), torch.arange(rows) // 2
        with LiveBytes() as live:
            contrastive_loss(words, entry, 0.1).backward()
        return live.peak

    rows = 512
    assert rows * rows * 4 < peak(1, rows) < 1.2 * rows * rows * 4
    assert peak(9, rows) - peak(1, rows) < 8 * 8 * rows * 4 * 4


def test_a_word_without_a_positive_is_a_negative_only():
    words = layers_of_words(1, 3)
    loss = contrastive_loss(words, torch.tensor([0, 0, 1]), 1.0)
    torch.testing.assert_close(loss, loss_in_a_loop(words, [0, 0, 1], 1.0))
    assert (torch.autograd.grad(loss, words)[0][:, 2] != 0).any()


def test_a_batch_of_one_word_costs_nothing():
    words = layers_of_words(2, 2)
    loss = contrastive_loss(words, torch.tensor([3, -1]), 0.1)  # an entry without translations, and padding
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, words)[0] == 0).all()


def test_large_similarities_over_a_small_temperature_stay_finite():
    words = torch.tensor([[[1.0, 0], [-1, 0], [1, 0], [1, 0]]], requires_grad=True)
    loss = contrastive_loss(words, torch.tensor([0, 0, 1, 1]), 0.001)
    # The first word's positive is 2 / 0.001 below two negatives; the second's is level with them; the others' with one.
    assert loss.item() == pytest.approx((2000 + math.log(2) + math.log(3) + 2 * math.log(2)) / 4, rel=1e-6)
    assert torch.autograd.grad(loss, words)[0].isfinite().all()


def one_of_two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = layers_of_words(rows=12)[:, 6 * rank:6 * (rank + 1)].detach().requires_grad_()
    loss = contrastive_loss(mine, torch.tensor([*ENTRY_OF_ROW, -1, -1]), 0.1)
    (1.7 * loss).backward()
    torch.save({"loss": loss.detach(), "grad": mine.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    torch.multiprocessing.spawn(one_of_two_processes, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    words = layers_of_words(rows=12)
    whole = contrastive_loss(words, torch.tensor([*ENTRY_OF_ROW, -1, -1]), 0.1)
    torch.testing.assert_close(parts[0]["loss"] + parts[1]["loss"], whole)
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts], dim=1), torch.autograd.grad(1.7 * whole, words)[0])


def test_loss_falls_when_words_are_trained_on_it():
    model, words = small(), word_rows(TABLE, np.arange(4))
    ids, length, entry = (torch.from_numpy(x) for x in (words.ids, words.length, words.entry))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = contrastive_loss(word_representations(model, ids, length), entry, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- the entries of a step ----

def table_of(frequency: list[int]) -> Table:
    words = [[[np.array([k])], [np.array([k + 100])]] for k in range(len(frequency))]
    return make_table(words, frequency, ("en", "clone"))


def times_drawn(frequency: list[int], power: float, N: int, steps: int) -> np.ndarray:
    table, config = table_of(frequency), Config(align_entries=N, align_power=power)
    return np.bincount(np.concatenate([draw_entries(table, config, step) for step in range(steps)]), minlength=len(frequency))


def test_entries_of_a_step_are_distinct_and_drawn_anew_at_every_step():
    table, config = table_of([5] * 50), Config(align_entries=20)
    draws = [draw_entries(table, config, step) for step in range(10)]
    assert all(len(set(draw.tolist())) == 20 and 0 <= draw.min() and draw.max() < 50 for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 10
    assert np.array_equal(draw_entries(table, config, 3), draws[3])
    assert not np.array_equal(draw_entries(table, replace(config, seed=2), 3), draws[3])


@pytest.mark.parametrize("N", [4, 5, 1000])
def test_a_small_table_is_drawn_whole(N):
    assert draw_entries(table_of([1, 1000, 3, 7]), Config(align_entries=N), 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("frequency, power", [([1, 2, 3, 4], 1.0), ([1, 4, 9, 16], 0.5)])
def test_an_entry_is_drawn_in_proportion_to_its_weight(frequency, power):
    expected = 2000 * np.array([0.1, 0.2, 0.3, 0.4])
    assert (abs(times_drawn(frequency, power, 1, 2000) - expected) < 5 * np.sqrt(expected)).all()


def test_power_0_draws_all_alike_and_power_1_draws_frequent_ones_more():
    frequency = [1000] * 10 + [1] * 10
    alike = times_drawn(frequency, 0.0, 5, 400)  # each 100 times, to within sqrt(400 * 1/4 * 3/4) = 8.7
    assert alike.sum() == 2000 and (abs(alike - 100) < 5 * 8.7).all()
    assert times_drawn(frequency, 1.0, 5, 400)[10:].sum() < 0.02 * 2000


# ---- the command ----

def test_stage_1_is_the_loop_with_the_contrastive_loss_and_without_codeswitching():
    config = Config(method="prealign", seed=3, init_from="align", codeswitch_ratio=0.05, align_weight=0.2).stage1()
    assert (config.init_from, config.align_steps, config.align_weight, config.codeswitch_ratio) == ("scratch", "all", 0.2, 0)
    assert config.run_dir == config.stage1_dir == Config(seed=3).stage1_dir


def test_no_steps_are_an_error():
    with pytest.raises(UserError, match="stage1_steps is 0"):
        prealign.main(["--stage1_steps=0"])


def test_autocast_does_not_reach_the_loss():
    words, entry = torch.randn(3, 6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = contrastive_loss(words, entry, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(words, entry, 0.1), expected)
