"""Rows of a step and codeswitching: every vectorised routine beside a slow one, and no row depends on what came before."""

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from data import Sampler, codeswitch, prefetch, stream_of_rows
from runtime.hashing import LANGUAGE, SWITCH, TRANSLATION, hash64, permute, uniform
from runtime.errors import UserError
from tasks.facts import facts_of
from data import prepare
from corpus.folder import Folder
from corpus.table import Table, make_table

TARGETS = ("input-only", "vanilla", "original")
PAD = 999
FOREIGN = 1000  # token ids of translations in hand-made tables begin here


# ---- random numbers ----

def slow_hash(*keys: int) -> int:
    """splitmix64 in whole numbers, from its definition, once per key."""
    mask, h = 2**64 - 1, 0
    for key in keys:
        h = ((h ^ (key & mask)) + 0x9E3779B97F4A7C15) & mask
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & mask
        h = h ^ (h >> 31)
    return h


def test_hash64_never_changes():  # or runs that are resumed would go on with other rows
    assert hash64(0) == slow_hash(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 from seed 0
    assert hash64(1, 2, 3) == slow_hash(1, 2, 3) == 0xD0734750FDE362B3
    rows, columns = np.array([0, 5, 2**40, -1]), np.arange(3)
    found = hash64(7, rows[:, None], columns)
    assert found.dtype == np.uint64
    assert found.tolist() == [[slow_hash(7, row, column) for column in columns.tolist()] for row in rows.tolist()]


def test_every_key_and_its_place_matter():
    assert len({int(hash64(*keys)) for keys in ((1,), (2,), (1, 2), (2, 1), (1, 0), (0, 1), (1, 2, 0), (0, 1, 2))}) == 8


def test_uniform_is_uniform():
    u = uniform(3, np.arange(400)[:, None], np.arange(500))
    assert u.dtype == np.float64 and 0 <= u.min() and u.max() < 1
    n = u.size  # bounds are five standard deviations
    assert abs(u.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    for a, b in ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u, uniform(4, np.arange(400)[:, None], np.arange(500)))):  # neighbours, seeds
        assert abs(((a - 0.5) * (b - 0.5)).mean()) < 5 / 12 / np.sqrt(a.size)


# ---- permutations ----

@pytest.mark.parametrize("n", [*range(1, 36), 63, 64, 65, 255, 256, 257, 1000, 4096, 4097, 65537])
def test_permute_is_a_bijection(n):
    for keys in ((1, 0, 0), (1, 0, 1), (2, 0, 0)):
        found = permute(np.arange(n), n, *keys)
        assert found.dtype == np.int64 and np.array_equal(np.sort(found), np.arange(n))


def test_every_key_makes_another_order():
    orders = [permute(np.arange(200), 200, *keys).tolist() for keys in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 0, 2))]
    assert all(sum(a == b for a, b in zip(one, other)) < 10 for i, one in enumerate(orders) for other in orders[:i])
    assert orders[0] != list(range(200))


def test_permute_takes_keys_by_element():
    index, epoch = np.tile(np.arange(50), 4), np.repeat(np.arange(4), 50)
    together = permute(index, 50, 7, 1, epoch)
    assert together.tolist() == [i for e in range(4) for i in permute(np.arange(50), 50, 7, 1, e).tolist()]
    assert permute(index[::-1], 50, 7, 1, epoch[::-1]).tolist() == together[::-1].tolist()
    assert permute(np.arange(0), 50, 7).tolist() == []


@pytest.mark.parametrize("n", [33, 100, 256])
def test_every_place_is_as_likely_as_any_other(n):
    seeds = np.arange(4000)
    orders = permute(np.tile(np.arange(n), len(seeds)), n, np.repeat(seeds, n)).reshape(len(seeds), n)
    expected = len(seeds) / n
    for i in range(0, n, 10):
        chi_square = ((np.bincount(orders[:, i], minlength=n) - expected) ** 2 / expected).sum()
        assert chi_square < (n - 1) + 5 * np.sqrt(2 * (n - 1))  # its mean and five standard deviations
    steps = np.abs(np.diff(orders, axis=1)).mean()  # from one place to the next; (n + 1) / 3 in a random order
    assert abs(steps / ((n + 1) / 3) - 1) < 0.01


# ---- languages ----

@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.95, 0.05], [0.01, 0.99], [0.99, 0.01], [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3],
                                     [0.9, 0.025, 0.025, 0.025, 0.025], [0.001, 0.998, 0.001], [0.3, 0.7 - 1e-12, 1e-12]])
def test_rows_are_dealt_out_evenly_and_none_is_left_out(weights):
    stream, index = stream_of_rows(np.arange(5000), weights)
    seen = [0] * len(weights)
    for n, (s, i) in enumerate(zip(stream.tolist(), index.tolist()), 1):
        assert i == seen[s]
        seen[s] += 1
        assert all(abs(count - n * weight) < max(1, len(weights) - 1) + 1e-6 for count, weight in zip(seen, weights))
    order = np.random.default_rng(0).permutation(5000)[:300]  # any rows, in any order, are dealt out alike
    some_stream, some_index = stream_of_rows(order, weights)
    assert np.array_equal(some_stream, stream[order]) and np.array_equal(some_index, index[order])


def test_rows_far_on_are_dealt_out_too():
    stream, index = stream_of_rows(10**10 + np.arange(3000), [0.6, 0.3, 0.1])
    for s, weight in enumerate([0.6, 0.3, 0.1]):
        mine = index[stream == s]
        assert abs(len(mine) - 3000 * weight) < 3 and abs(mine[0] - 10**10 * weight) < 3
        assert np.array_equal(mine, mine[0] + np.arange(len(mine)))


# ---- codeswitching ----

def slow_codeswitch(tokens, align, table: Table, ratio, rows, seed, length, target, pad) -> tuple[np.ndarray, np.ndarray]:
    """The same, one row, one word and one token at a time."""
    inputs, labels = [], []
    for number, row, marks in zip(rows.tolist(), tokens.tolist(), align.tolist()):
        new, new_labels, i, W = [], [], 0, len(row)
        while i < W:
            end = i + 1
            while marks[i] > 0 and end < W and marks[end] < 0:
                end += 1
            choices = []
            if marks[i] > 0 and end < W and uniform(seed, SWITCH, number, i) < ratio:
                languages = [table.words(marks[i] - 1, l) for l in range(1, len(table.languages)) if len(table.words(marks[i] - 1, l))]
                if languages:
                    choices = languages[int(uniform(seed, LANGUAGE, number, i) * len(languages))]
            if choices:
                translation = table.word(choices[int(uniform(seed, TRANSLATION, number, i) * len(choices))]).tolist()
                new += translation
                nothing = [-1] * len(translation)
                new_labels += {"input-only": nothing, "vanilla": translation, "original": [row[i]] + nothing[1:]}[target]
            else:
                new += row[i:end]
                new_labels += row[i:end]
            i = end
        inputs.append((new + [pad] * length)[:length])
        labels.append((new_labels + [-1] * length)[:length])
    return np.array(inputs), np.array(labels)


def random_table(rng: np.random.Generator, languages: int, entries: int = 12) -> Table:
    """Entries of one pivot word and 0 to 3 translations of 1 to 4 tokens in each language; some have none in any."""
    def word(start: int) -> np.ndarray:
        return start + rng.integers(0, 500, rng.integers(1, 5))

    words = [[[word(0)]] + [[word(FOREIGN * l) for _ in range(rng.integers(0, 4) * (k % 4 > 0))] for l in range(1, languages + 1)]
             for k in range(entries)]
    return make_table(words, [1] * entries, ("en", *(f"t{l}" for l in range(1, languages + 1))))


def random_rows(rng: np.random.Generator, R: int, W: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and alignment ids as in a bin, cut out anywhere: words of 1 to 5 tokens, and tokens of no entry between some."""
    marks = []
    while len(marks) < R * W + W + 10:
        entry = rng.integers(1, entries + 1)
        marks += [entry] + [-entry] * rng.integers(0, 5) if rng.random() < 0.7 else [0] * rng.integers(1, 4)
    at = rng.integers(0, len(marks) - W, R)[:, None] + np.arange(W)
    return rng.integers(0, 500, (R, W)), np.array(marks)[at]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("languages", [1, 2, 3])
def test_codeswitch_is_the_slow_one(target, languages):
    rng = np.random.default_rng(languages)
    switched = cut = padded = 0
    for trial in range(24):
        W = int(rng.integers(1, 40))
        length = (W, max(1, W - 4), max(1, W // 2), W + 3)[trial % 4]
        ratio = (0.0, 0.05, 0.5, 1.0)[trial // 4 % 4]
        table = random_table(rng, languages)
        tokens, align = random_rows(rng, 64, W, len(table))
        rows = rng.integers(0, 10**6, 64)
        arguments = (tokens, align, table, ratio, rows, trial, length, target, PAD)
        before = tokens.copy(), align.copy()
        inputs, labels = codeswitch(*arguments)
        expected_inputs, expected_labels = slow_codeswitch(*arguments)
        assert inputs.shape == labels.shape == (64, length) and inputs.dtype == labels.dtype == np.int64
        assert np.array_equal(inputs, expected_inputs)
        assert np.array_equal(labels, expected_labels)
        assert np.array_equal(tokens, before[0]) and np.array_equal(align, before[1])
        switched += (inputs >= FOREIGN).any(axis=1).sum()
        cut += (inputs[:, -1] >= FOREIGN).sum()
        padded += (inputs[:, -1] == PAD).sum()
    assert switched > 300 and cut > 50 and padded > 50  # the cases that matter did occur


EXAMPLE = make_table([[[np.array([1, 2])], [np.array([1001])]], [[np.array([3])], [np.array([1002, 1003, 1004])]], [[np.array([4])], []]],
                     [1, 1, 1], ("en", "t1"))


def switch_all(tokens: list[int], align: list[int], length: int, target: str) -> tuple[list[int], list[int]]:
    inputs, labels = codeswitch(np.array([tokens]), np.array([align]), EXAMPLE, 1.0, np.array([0]), 0, length, target, PAD)
    return inputs[0].tolist(), labels[0].tolist()


def test_targets_by_example():
    tokens, align = [1, 2, 9, 3, 4, 9, 9], [1, -1, 0, 2, 3, 0, 0]
    spliced = [1001, 9, 1002, 1003, 1004, 4, 9, 9]  # entry 3 has no translation
    assert switch_all(tokens, align, 8, "input-only") == (spliced, [-1, 9, -1, -1, -1, 4, 9, 9])
    assert switch_all(tokens, align, 8, "vanilla") == (spliced, spliced)
    assert switch_all(tokens, align, 8, "original") == (spliced, [1, 9, 3, -1, -1, 4, 9, 9])
    assert switch_all(tokens, align, 4, "original") == (spliced[:4], [1, 9, 3, -1])
    assert switch_all(tokens, align, 10, "vanilla") == (spliced + [PAD, PAD], spliced + [-1, -1])


def test_words_at_the_ends_of_a_row():
    for target in TARGETS:
        assert switch_all([2, 9, 9], [-1, 0, 0], 3, target) == ([2, 9, 9], [2, 9, 9])          # began before the row
        assert switch_all([9, 1, 2], [0, 1, -1], 3, target) == ([9, 1, 2], [9, 1, 2])          # may go on after it
        assert switch_all([9, 9, 3], [0, 0, 2], 3, target) == ([9, 9, 3], [9, 9, 3])
        assert switch_all([2, 2, 2], [-1, -1, -1], 3, target) == ([2, 2, 2], [2, 2, 2])        # all of it inside one word
        assert switch_all([1, 2, 9], [1, -1, 0], 2, target)[0] == [1001, 9]
    assert switch_all([1, 2, 3, 9], [1, -1, 2, 0], 2, "vanilla") == ([1001, 1002], [1001, 1002])  # one word after the other; cut inside


def test_ratio_0_changes_nothing():
    rng = np.random.default_rng(0)
    tokens, align = random_rows(rng, 50, 30, 12)
    for target in TARGETS:
        inputs, labels = codeswitch(tokens, align, random_table(rng, 2), 0.0, np.arange(50), 0, 25, target, PAD)
        assert np.array_equal(inputs, tokens[:, :25]) and np.array_equal(labels, tokens[:, :25])


def test_input_only_never_asks_for_a_spliced_token():
    rng = np.random.default_rng(0)
    for ratio in (0.05, 0.5, 1.0):
        tokens, align = random_rows(rng, 200, 60, 12)
        inputs, labels = codeswitch(tokens, align, random_table(rng, 3), ratio, np.arange(200), 0, 51, "input-only", PAD)
        x, y = inputs[:, :-1], labels[:, 1:]
        assert (x >= FOREIGN).any() and not (y >= FOREIGN).any()
        assert (y == -1)[inputs[:, 1:] >= FOREIGN].all()
        own = (inputs[:, 1:] < FOREIGN) & (inputs[:, 1:] != PAD)
        assert np.array_equal(y[own], inputs[:, 1:][own])  # every other token is asked for


def test_words_languages_and_translations_are_drawn_uniformly():
    one, two, three = ([np.array([FOREIGN + 10 * l + i]) for i in range(l)] for l in (1, 2, 3))
    word = [np.array([1])]
    table = make_table([[word, one, two, three], [word, [], two, three], [word, [], [], []]], [1, 1, 1], ("en", "a", "b", "c"))
    R, W = 400, 301
    for entry, languages in ((1, (1, 2, 3)), (2, (2, 3)), (3, ())):
        for ratio in (0.05, 0.5):
            align = np.full((R, W), entry)
            inputs, _ = codeswitch(np.ones((R, W), dtype=np.int64), align, table, ratio, np.arange(R), 5, W, "vanilla", PAD)
            n = R * (W - 1)  # the last word of a row is left alone
            counts = Counter(inputs[inputs >= FOREIGN].tolist())
            for language in languages:
                for i in range(language):
                    p = ratio / len(languages) / language
                    assert abs(counts.pop(FOREIGN + 10 * language + i) - n * p) < 5 * np.sqrt(n * p * (1 - p))
            assert not counts


def test_codeswitch_depends_on_seed_and_row_number_only():
    rng = np.random.default_rng(0)
    table = random_table(rng, 2)
    tokens, align = random_rows(rng, 40, 30, len(table))
    rows = np.arange(100, 140)

    def switched(some: np.ndarray, seed: int = 1, shift: int = 0) -> list:
        return codeswitch(tokens[some], align[some], table, 0.5, rows[some] + shift, seed, 30, "vanilla", PAD)[0].tolist()

    everything = np.arange(40)
    whole = switched(everything)
    assert whole == switched(everything[:7]) + switched(everything[7:])
    assert whole[::-1] == switched(everything[::-1])
    assert whole != switched(everything, seed=2) and whole != switched(everything, shift=40)


# ---- the sampler ----

def sampler_of(tiny, **changes) -> Sampler:
    return Sampler(Folder(tiny.data_dir), replace(tiny, **changes))


def whole_rows(batch) -> list[tuple[int, ...]]:
    """The T + 1 tokens of every row, where targets are the inputs shifted by one."""
    assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    return [tuple(row) for row in np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1).tolist()]


def windows_of(ids: np.ndarray, T: int) -> list[tuple[int, ...]]:
    """Every window of T tokens and the one after it, in the order of the text; in these tests no two are the same."""
    windows = [tuple(ids[start:start + T + 1].tolist()) for start in range(0, len(ids) - T, T)]
    assert len(set(windows)) == len(windows)
    return windows


def bins_of(tiny) -> list[np.ndarray]:
    """The bins of the streams en, clone and facts."""
    data = Folder(tiny.data_dir)
    return [data.tokens("en", "train"), data.tokens("clone", "train"), data.tokens("en", "facts")]


def test_every_window_once_in_an_epoch_and_another_order_in_the_next(tiny):
    n = len(Folder(tiny.data_dir).tokens("en", "train"))
    divisor = next(T for T in range(20, 200) if n % T == 0)  # the last window would lack the one token after it
    for changes in ({}, {"mix": {"clone": 0.6, "en": 0.4}}, {"seed": 5, "block_size": divisor}):
        sampler = sampler_of(tiny, stage1_steps=40, **changes)  # no facts in stage 1
        batch = sampler.batch(np.arange(2400))
        assert batch.inputs.dtype == batch.targets.dtype == batch.stream.dtype == torch.int64
        rows = whole_rows(batch)
        assert sampler.streams == tuple(sampler.config.mix)
        for s, language in enumerate(sampler.streams):
            windows = windows_of(Folder(tiny.data_dir).tokens(language, "train"), sampler.config.block_size)
            visited = [windows.index(row) for row, stream in zip(rows, batch.stream) if stream == s]
            epochs = [visited[e:e + len(windows)] for e in range(0, len(visited), len(windows))]
            assert len(epochs) > 2
            for epoch in epochs[:-1]:
                assert sorted(epoch) == list(range(len(windows)))
            assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_shares_of_languages(tiny):
    sampler = sampler_of(tiny, stage1_steps=40)
    for first in (0, 8, 808):
        for rows in (8, 80, 800):
            share = (sampler.batch(np.arange(first, first + rows)).stream == 0).float().mean()
            assert abs(share - 0.75) < 1 / rows + 1e-9
    assert set(sampler_of(tiny, mix={"en": 3.0, "clone": 0.0}).batch(np.arange(30)).stream.tolist()) == {0}


def test_only_the_clone(tiny):
    sampler = sampler_of(tiny, mix={"clone": 1.0}, codeswitch_ratio=1.0)
    assert sampler.streams == ("clone",)  # facts are the pivot's
    assert set(whole_rows(sampler.batch(np.arange(100)))) <= set(windows_of(bins_of(tiny)[1], 32))


def test_only_one_language_is_its_share_of_rows_over_and_over(tiny):
    """The very rows that joint training has in it, with the facts' rows dealt in between."""
    joint = sampler_of(tiny, max_steps=12, batch_size=8).batch(np.arange(96))
    expected = [row for row, stream in zip(whole_rows(joint), joint.stream.tolist()) if stream == 1]
    assert 15 < len(expected) < 25 and (joint.stream == 2).any()  # less than a quarter of 96: facts have some
    batch = sampler_of(tiny, max_steps=12, batch_size=8, only="clone").batch(np.arange(96))
    assert (batch.stream == 1).all()
    assert whole_rows(batch) == (expected * 7)[:96]


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_rows_do_not_depend_on_how_they_are_split(tiny, ratio):
    sampler, rows = sampler_of(tiny, codeswitch_ratio=ratio), np.arange(24, 104)  # around the end of stage 1
    whole = sampler.batch(rows)
    splits = [rows.reshape(10, 8), [rows[:1], rows[1:3], rows[3:]], [rows[rank::4] for rank in range(4)], [rows[::-1]]]
    for parts in splits:
        again = sampler_of(tiny, codeswitch_ratio=ratio)  # another process knows nothing of this one
        batches = [again.batch(part) for part in parts]
        order = np.argsort(np.concatenate(parts))
        for name in ("inputs", "targets", "stream"):
            assert np.array_equal(np.concatenate([getattr(batch, name) for batch in batches])[order], getattr(whole, name))
    other = sampler_of(tiny, codeswitch_ratio=ratio, seed=2).batch(rows)
    assert not np.array_equal(whole.inputs, other.inputs)


@pytest.mark.parametrize("changes", [{}, {"stage1_steps": 0}, {"stage1_steps": 1, "max_steps": 7}, {"block_size": 17, "max_steps": 41},
                                     {"mix": {"en": 1.0}, "batch_size": 3, "max_steps": 30}])
def test_facts_are_stated_in_stage_2_once_through_and_evenly(tiny, changes):
    config = replace(tiny, **changes)
    sampler = sampler_of(tiny, **changes)
    batch = sampler.batch(np.arange(config.max_steps * config.batch_size))
    rows = whole_rows(batch)
    at = np.flatnonzero(batch.stream == sampler.streams.index("facts"))
    windows = windows_of(bins_of(tiny)[2], config.block_size)
    assert sorted(rows[row] for row in at) == sorted(windows)
    first, end = config.stage1_steps * config.batch_size, config.max_steps * config.batch_size
    assert first <= at[0] and at[-1] == end - 1
    gaps = np.diff([first - 1, *at])
    assert gaps.max() - gaps.min() <= 1  # the same number of rows between two, up to one
    for s, name in enumerate(config.mix):  # the other streams go on as if there were none
        plain = sampler_of(tiny, **{**changes, "stage1_steps": config.max_steps}).batch(np.arange(end - len(at)))
        assert [row for row, stream in zip(rows, batch.stream) if stream == s] == \
            [row for row, stream in zip(whole_rows(plain), plain.stream) if stream == s]


def test_every_period_has_its_own_facts_and_steps(tiny, tmp_path):
    """The windows of a period's facts, to within one, in an order of their own, evenly over the period's third of stage 2."""
    config = replace(tiny, data_dir=str(tmp_path), fact_count=25, fact_frequencies=(3,), fact_periods=3, max_steps=124)
    prepare(config)
    data = Folder(str(tmp_path))
    tokens = data.tokens("en", "facts")
    windows = windows_of(tokens, 32)
    ends = np.flatnonzero(tokens == data.end_of_text)[np.cumsum([3 * sum(fact.period == p for fact in facts_of(data.settings)) for p in range(3)]) - 1] + 1
    assert data.splits["facts"]["en"]["period_ends"] == ends.tolist() and ends[-1] == len(tokens)
    cuts = [0, round(ends[0] / 32), round(ends[1] / 32), len(windows)]
    assert cuts != [len(windows) * p // 3 for p in range(4)]  # periods are not equally long
    visited = {}
    for seed in (1, 2):
        batch = sampler_of(config, seed=seed).batch(np.arange(124 * 8))
        rows = np.flatnonzero(batch.stream == 2)
        visited[seed] = [windows.index(whole_rows(batch)[row]) for row in rows]
        for p in range(3):
            part, here = range(cuts[p], cuts[p + 1]), slice(cuts[p], cuts[p + 1])
            assert sorted(visited[seed][here]) == list(part) != visited[seed][here]
            assert ((4 + 40 * p) * 8 <= rows[here]).all() and (rows[here] < (4 + 40 * (p + 1)) * 8).all()
            assert np.ptp(np.diff(rows[here])) <= 1
    assert visited[1] != visited[2]


@pytest.mark.parametrize("target, coverage", [*((target, 1.0) for target in TARGETS), ("input-only", 0.3)])
def test_the_sampler_codeswitches_as_the_slow_one_does(tiny, target, coverage):
    data, rows = Folder(tiny.data_dir), np.arange(320)
    n = len(data.tokens("en", "train"))
    T = next(T for T in range(24, 64) if (n - 1) % T < T // 8)  # the tokens that fill up the last window are not all there
    slack, ends_of_bins = T // 8, 0
    plain = sampler_of(tiny, block_size=T).batch(rows)
    batch = sampler_of(tiny, block_size=T, codeswitch_ratio=0.4, codeswitch_target=target, align_coverage=coverage).batch(rows)
    assert np.array_equal(batch.stream, plain.stream)
    entries = np.ceil(coverage * len(data.table))
    for s, split in ((0, "train"), (2, "facts")):
        here = np.flatnonzero(batch.stream == s)
        ids, align = data.tokens("en", split).astype(np.int64), data.align(split)
        align = np.array([a if abs(a) <= entries else 0 for a in align])
        starts = [T * windows_of(ids, T).index(row) for row, stream in zip(whole_rows(plain), plain.stream) if stream == s]
        ends_of_bins += sum(start + T + 1 + slack > len(ids) for start in starts)
        ids, align = np.append(ids, [data.end_of_text] * slack), np.append(align, [0] * slack)
        at = np.array(starts)[:, None] + np.arange(T + 1 + slack)
        inputs, labels = slow_codeswitch(ids[at], align[at], data.table, 0.4, rows[here], tiny.seed, T + 1, target, data.end_of_text)
        assert np.array_equal(batch.inputs[here], inputs[:, :-1]) and np.array_equal(batch.targets[here], labels[:, 1:])
        assert (inputs >= data.V).any()
    assert ends_of_bins
    clone = batch.stream == 1
    assert np.array_equal(batch.inputs[clone], plain.inputs[clone]) and np.array_equal(batch.targets[clone], plain.targets[clone])


def test_targets_of_codeswitched_rows(tiny):
    V, rows = Folder(tiny.data_dir).V, np.arange(320)
    for target in TARGETS:
        batch = sampler_of(tiny, codeswitch_ratio=0.5, codeswitch_target=target).batch(rows)
        pivot = batch.stream != 1
        inputs, targets = batch.inputs[pivot].numpy(), batch.targets[pivot].numpy()
        spliced = inputs[:, 1:] >= V
        assert spliced.mean() > 0.2
        assert np.array_equal(targets[:, :-1][~spliced], inputs[:, 1:][~spliced])
        if target == "vanilla":
            assert np.array_equal(targets[:, :-1], inputs[:, 1:])
        else:
            assert (targets < V).all()
            assert ((targets[:, :-1] == -1)[spliced].all()) == (target == "input-only")


def test_too_little_text_and_too_many_facts(tiny):
    for changes, names in (({"block_size": 10_000}, "block_size"), ({"block_size": 600}, "facts"), ({"max_steps": 7}, "max_steps"),
                           ({"mix": {"en": 0.5, "de": 0.5}, "targets": ("de",)}, "'de'")):
        with pytest.raises(UserError) as e:
            sampler_of(tiny, **changes)
        assert names in str(e.value) and "\n" not in str(e.value)
    T = len(bins_of(tiny)[0]) - 1
    sampler = sampler_of(tiny, block_size=T, mix={"en": 1.0}, max_steps=1, stage1_steps=1)  # one window: all of the text
    assert whole_rows(sampler.batch(np.array([0]))) == [tuple(bins_of(tiny)[0].tolist())]


def test_an_id_beyond_the_vocabulary_is_an_error(tiny):
    """As damage between the blocks that the digest of a large bin has would make it."""
    data = Folder(tiny.data_dir)
    sampler = Sampler(data, tiny)
    sampler.bins["en"] = np.where(np.arange(len(sampler.bins["en"])) % 50 == 7, data.vocab_size, sampler.bins["en"])
    with pytest.raises(UserError, match=f"text of en has the token id {data.vocab_size}, .* delete the folder"):
        sampler.batch(np.arange(8))
    data.check_ids(np.array([data.V, data.vocab_size - 1]), "clone")
    data.check_ids(np.array([0, data.vocab_size - 1]), "facts")  # in any language
    for language, wrong in (("en", data.V), ("en", -1), ("clone", data.V - 1)):
        with pytest.raises(UserError, match=f"the text of {language} has the token id {wrong}, and its ids are"):
            data.check_ids(np.array([0 if language == "en" else data.V, wrong]), language)


def test_the_sampler_is_at_least_thirty_times_as_fast_as_the_slow_codeswitch(tiny):
    data, rows, T = Folder(tiny.data_dir), np.arange(512), 256
    sampler = sampler_of(tiny, block_size=T, mix={"en": 1.0}, codeswitch_ratio=0.5, stage1_steps=40)
    at = np.arange(8)[:, None] * T + np.arange(T + 1 + T // 8)
    ids, align = data.tokens("en", "train")[at], data.align("train")[at]

    def seconds(function, *arguments) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - start)
        return min(times)

    slow = seconds(slow_codeswitch, ids, align, data.table, 0.5, rows[:8], 1, T + 1, "input-only", data.end_of_text) / 8
    fast = seconds(sampler.batch, rows) / len(rows)
    assert slow > 30 * fast


# ---- prefetching ----

def no_new_threads(before: set, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


def test_prefetch_keeps_the_order_and_ends():
    before = set(threading.enumerate())
    assert list(prefetch(lambda step: step * step, range(3, 50))) == [step * step for step in range(3, 50)]
    assert list(prefetch(lambda step: step, range(0))) == []
    assert no_new_threads(before)


def test_prefetch_computes_the_next_while_one_is_used():
    made, next_made = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            next_made.set()
        return step

    batches = prefetch(make, range(1000))
    assert next(batches) == 0
    assert next_made.wait(5)  # without asking for it
    time.sleep(0.1)
    assert len(made) < 6  # but not many ahead: batches take memory
    batches.close()


@pytest.mark.parametrize("failure", [UserError("cannot read"), MemoryError(), KeyboardInterrupt()], ids=lambda failure: type(failure).__name__)
def test_prefetch_raises_what_the_thread_raised_where_it_belongs(failure):
    def make(step: int) -> int:
        if step == 4:
            raise failure
        return step

    before, found = set(threading.enumerate()), []
    with pytest.raises(type(failure)) as e:
        for item in prefetch(make, range(10)):
            found.append(item)
    assert found == [0, 1, 2, 3] and e.value is failure
    assert no_new_threads(before)


def test_the_thread_ends_when_the_consumer_stops_early():
    before = set(threading.enumerate())
    for item in prefetch(lambda step: step, range(10**6)):
        if item == 3:
            break
    assert no_new_threads(before)
    with pytest.raises(ZeroDivisionError):
        for item in prefetch(lambda step: step, range(10**6)):
            1 / 0
    assert no_new_threads(before)
    batches = prefetch(lambda step: step, range(10**6))
    next(batches)
    del batches
    assert no_new_threads(before)
