"""Rows of a step and codeswitching: every vectorised routine beside a slow one, and no row depends on what came before."""

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from batches import LANGUAGE, SWITCH, TRANSLATION, Sampler, codeswitch, hash64, permute, prefetch, stream_of_rows, uniform
from config import UserError
from data import Dataset
from table import Table, make_table

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


@pytest.mark.parametrize("n", [5, 10, 33])
def test_every_place_is_as_likely_as_any_other(n):
    orders = np.stack([permute(np.arange(n), n, seed) for seed in range(2000)])  # (2000, n)
    expected = len(orders) / n
    for i in range(n):
        chi_square = ((np.bincount(orders[:, i], minlength=n) - expected) ** 2 / expected).sum()
        assert chi_square < n - 1 + 5 * np.sqrt(2 * (n - 1)) + 5
    steps = np.abs(np.diff(orders, axis=1)).mean()  # of a random order: (n + 1) / 3
    assert abs(steps / ((n + 1) / 3) - 1) < 0.05


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
    R, W = tokens.shape
    draw = {use: uniform(seed, use, np.asarray(rows)[:, None], np.arange(W)).tolist() for use in (SWITCH, LANGUAGE, TRANSLATION)}
    inputs, labels = [], []
    for r, (row, marks) in enumerate(zip(tokens.tolist(), align.tolist())):
        new, new_labels, i = [], [], 0
        while i < W:
            end = i + 1
            while marks[i] > 0 and end < W and marks[end] < 0:
                end += 1
            choices = []
            if marks[i] > 0 and end < W and draw[SWITCH][r][i] < ratio:
                languages = [table.words(marks[i] - 1, l) for l in range(1, len(table.languages)) if len(table.words(marks[i] - 1, l))]
                if languages:
                    choices = languages[int(draw[LANGUAGE][r][i] * len(languages))]
            if choices:
                translation = table.word(choices[int(draw[TRANSLATION][r][i] * len(choices))]).tolist()
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


def test_codeswitch_is_at_least_ten_times_as_fast_as_the_slow_one():
    rng = np.random.default_rng(0)
    table = random_table(rng, 1, entries=1000)
    tokens, align = random_rows(rng, 256, 288, len(table))

    def seconds_per_row(function, R: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function(tokens[:R], align[:R], table, 0.5, np.arange(R), 0, 257, "input-only", PAD)
            times.append(time.perf_counter() - start)
        return min(times) / R

    print(seconds_per_row(slow_codeswitch, 32) , seconds_per_row(codeswitch, 256))
    assert seconds_per_row(slow_codeswitch, 32) > 10 * seconds_per_row(codeswitch, 256)
