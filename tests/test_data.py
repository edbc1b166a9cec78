"""Text to bins and bins to rows. Slow readings first: vectorised routines are compared with ones that go by words."""

import os
import random
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from conftest import error, make_text, write

from corpus import build, readers
from corpus.folder import Folder
from corpus.table import Table, make_table
from corpus.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer
from corpus.words import CHUNK, count_chunks, count_surfaces, words_of_chunk
from data import Batch, Encoder, Sampler, pick_words, prepare, splice, stream_of_rows
from runtime.errors import UserError
from runtime.files import exclusive, read_json, write_text
from runtime.hashing import LANGUAGE, SWITCH, TRANSLATION, hash64, permute, uniform
from runtime.parallel import AHEAD, Workers, prefetch
from tasks.facts import in_training_order, make_facts, statement

TARGETS = ("input-only", "vanilla", "original")
PAD = 999
FOREIGN = 1000  # token ids of translations in hand-made tables begin here


# ---- slow readings ----
def slow_align(encoding: tiktoken.Encoding, entries: dict[str, int], text: str) -> tuple[list[int], list[int]]:
    """Token and alignment ids of a text: every word is looked up between the tokens, each decoded alone."""
    ids = encoding.encode(text, disallowed_special=())
    begins, ends, position = {}, {}, 0
    for n, i in enumerate(ids):
        begins[position] = n
        position += len(encoding.decode_single_token_bytes(i))
        ends[position] = n
    align, start = [0] * len(ids), 0
    for chunk in CHUNK.findall(text):
        for first_byte, end, word in words_of_chunk(chunk):
            first, last = begins.get(start + first_byte), ends.get(start + end)
            if word in entries and first is not None and last is not None:
                align[first:last + 1] = [entries[word]] + [-entries[word]] * (last - first)
        start += len(chunk.encode())
    return ids, align


def slow_codeswitch(tokens, align, table: Table, ratio, rows, seed, length, target, pad) -> tuple:
    """splice with the words that pick_words picks, one row, one word and one token at a time."""
    inputs, labels = [], []
    for number, row, marks in zip(rows.tolist(), tokens.tolist(), align.tolist()):
        new, new_labels, i, W = [], [], 0, len(row)
        while i < W:
            end = i + 1
            while marks[i] > 0 and end < W and marks[end] < 0:
                end += 1
            word = predicted = row[i:end]
            languages = [table.words(marks[i] - 1, l) for l in range(1, len(table.languages)) if marks[i] > 0]
            languages = [words for words in languages if len(words)]
            if languages and end < W and uniform(seed, SWITCH, number, i) < ratio:
                words = languages[int(uniform(seed, LANGUAGE, number, i) * len(languages))]
                word = table.word(words[int(uniform(seed, TRANSLATION, number, i) * len(words))]).tolist()
                nothing = [-1] * len(word)
                predicted = {"input-only": nothing, "vanilla": word, "original": [row[i]] + nothing[1:]}[target]
            new += word
            new_labels += predicted
            i = end
        inputs.append((new + [pad] * length)[:length])
        labels.append((new_labels + [-1] * length)[:length])
    return np.array(inputs), np.array(labels)


# ---- alignment ids ----
ODD_WORDS = ["naïve", "Straße", "日本語", "мир", "😀", "don't", "cannot", "it's", "rock'n'roll", "o'clock", '"so"',
             "(b)", "“so”", "e.g.", "3.14", "1,000", "...", "--", "well-known", "$5", END_OF_TEXT, "\u00e9\u0301", "'"]
GAPS = [" "] * 12 + ["  ", "   ", "\n", "\n", "\t", " \t ", "\u00a0", "\u3000", "\r", "\u2028", "\x1c"]


def random_text(rng: random.Random, words: list[str]) -> str:
    """Words (capitalised, before punctuation, quoted) with all kinds of gaps between them."""
    text = ""
    for word in rng.choices(words, k=rng.randint(1, 60)):
        text += rng.choice([word, word, word.capitalize(), f'"{word}",', f"({word})."]) + rng.choice(GAPS)
    return text


@pytest.mark.parametrize("vocab_size", [270, 500])
def test_alignment_ids_are_those_of_a_slow_reading(tmp_path, vocab_size):
    rng, path = random.Random(vocab_size), str(tmp_path / "tokenizer.tiktoken")
    texts = [random_text(rng, ODD_WORDS + make_text(2).split()) for _ in range(60)]
    train_tokenizer([make_text(), *texts], vocab_size, path)
    encoding = load_tokenizer("train", path)
    surfaces = sorted(count_surfaces(count_chunks(texts)))
    surfaces = rng.sample(surfaces, len(surfaces) * 2 // 3)
    encoder, entries = Encoder(encoding, surfaces), {surface: k for k, surface in enumerate(surfaces, 1)}
    later = 0
    for text in ["", " ", "\n", *texts, *texts[:20]]:  # some twice: chunks are remembered
        ids, align = encoder(text)
        assert ids.dtype == np.int64 and align.dtype == np.int32
        assert (ids.tolist(), align.tolist()) == slow_align(encoding, entries, text)
        later += (align < 0).any()
    assert later > 30  # texts with words of several tokens


# ---- bins ----
def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def prepared(tiny, tmp_path, **changes) -> Folder:
    prepare(replace(tiny, data_dir=str(tmp_path / "data"), **changes))
    return Folder(str(tmp_path / "data"))


def texts_of(folder: Folder, split: str) -> list[str]:
    *texts, after = folder.encoding.decode(folder.tokens("en", split).tolist()).split(END_OF_TEXT)
    assert after == ""
    return texts


def test_bins_are_the_text_with_the_alignment_of_every_document_and_its_clone(tiny):
    folder, documents = Folder(tiny.data_dir), list(readers.documents(tiny.source))
    table = folder.table
    words = [table.word(table.words(k, 0)[0]) for k in range(len(table))]
    entries = {folder.encoding.decode(word.tolist()): k for k, word in enumerate(words, 1)}
    held_out = [text for text in documents if build.place(text) < 0.1]
    facts = [statement(fact, "en") for fact in in_training_order(make_facts(tiny))]
    for split, texts in (("facts", facts), ("val", held_out), ("train", [t for t in documents if t not in held_out])):
        assert texts_of(folder, split) == texts != []
        align = [mark for text in texts for mark in slow_align(folder.encoding, entries, text)[1] + [0]]
        assert folder.align(split).tolist() == align != [0] * len(align)
        if split == "facts":
            continue
        pivot, clone = folder.tokens("en", split), folder.tokens("clone", split)
        assert pivot.dtype == clone.dtype == np.dtype("<u2")
        # End-of-text, the last id, is the same one in both.
        assert clone.tolist() == [i + folder.V if i < folder.V - 1 else i for i in pivot.tolist()]
        assert folder.splits[split]["en"] == {"documents": len(texts), "tokens": len(align),
                                              "bytes": sum(len(text.encode()) for text in texts)}


@pytest.mark.parametrize("val_fraction", [0.0, 0.3, 0.9])
def test_a_document_that_stands_twice_is_not_in_both_splits(tiny, tmp_path, val_fraction):
    source = tmp_path / "twice.txt"
    source.write_text(make_text(5) + "\n\n" + make_text(5))
    folder = prepared(tiny, tmp_path, source=str(source), val_fraction=val_fraction)
    train, val = (texts_of(folder, split) for split in ("train", "val"))
    assert train and val and set(train).isdisjoint(val)
    assert Counter(train + val) == Counter(readers.documents(str(source)))


@pytest.mark.parametrize("budget", [100, 4000])
def test_a_budget_is_passed_by_less_than_a_document_whatever_the_workers(tiny, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1000)
    for workers in (1, 3):
        prepare(replace(tiny, data_dir=str(tmp_path / str(workers)), budget={"en": budget}, workers=workers))
    assert contents(str(tmp_path / "1")) == contents(str(tmp_path / "3"))
    tokens, n = Folder(str(tmp_path / "1")).tokens("en", "train"), len(Folder(tiny.data_dir).tokens("en", "train"))
    before_last = np.flatnonzero(tokens == 399)[:-1].max(initial=-1) + 1
    assert len(tokens) >= min(budget, n) and before_last < budget


# ---- odd texts ----
def test_a_million_letters_or_spaces_in_a_row_are_cut_into_tokens(tiny, tmp_path):
    source, letters, spaces = tmp_path / "text.txt", "ক\u09be" * 500_000, "\u00a0" * 1_000_000
    odd = [f"So {letters}.", f"Or {letters}'s."]
    source.write_text("\n\n".join([make_text(2), *odd, f"And{spaces}so."]), encoding="utf-8")
    folder = prepared(tiny, tmp_path, source=str(source), fact_count=0)
    assert {*odd, "And so."} < {*texts_of(folder, "train"), *texts_of(folder, "val")}


# ---- a folder is made once, and anew when what it is made from changes ----
def test_another_setting_or_text_makes_it_anew_and_another_place_does_not(tiny, tmp_path, capsys):
    source = tmp_path / "text.txt"
    source.write_text(make_text())
    config = replace(tiny, data_dir=str(tmp_path / "data") + "/", source=str(source))
    for changes in ({}, {"min_count": 4}, {"fact_frequencies": (2,)}):
        prepare(replace(config, **changes))
    # A file of the user's stays.
    (tmp_path / "data" / "notes.txt").write_text("mine")
    source.write_text(make_text() + "\n\nOne more.")
    prepare(config)
    assert "up to date" not in capsys.readouterr().out
    (tmp_path / "moved").mkdir()
    prepare(replace(config, source=str(source.rename(tmp_path / "moved" / "text.txt")), seed=9, workers=2))
    assert "up to date" in capsys.readouterr().out and (tmp_path / "data" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock", "moved"]


# In the last case it was another one, which leaves nothing.
@pytest.mark.parametrize("stop_after, changes", [
    ("tokenizer.tiktoken", {}), ("en_val.bin", {}), ("bins_en.json", {}), ("bins_en.json", {"vocab_size": 300})])
def test_an_interrupted_preparation_goes_on_with_what_is_whole(tiny, tmp_path, monkeypatch, stop_after, changes):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    prepare(replace(config, min_count=4))
    old, move, written, stops = contents(config.data_dir), os.replace, [], [stop_after]

    def interrupted(source, path):
        move(source, path)
        written.extend([os.path.basename(path)] if source.endswith(".tmp") else [])
        if written[-1:] == stops:
            stops.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(config, **changes))
    assert contents(config.data_dir) == old
    whole = {"tokenizer.tiktoken", "bins_en.json"}.intersection(written)
    written.clear()
    prepare(config)
    assert changes or whole.isdisjoint(written) and ("en_train.bin" in written) == (stop_after != "bins_en.json")
    assert contents(config.data_dir) == contents(tiny.data_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock"]


@pytest.mark.parametrize("text, changes, names", [
    ("\n \n\n", {}, "text.txt"),
    ("The same.\n\nThe same.\n\nThe same.", {}, "text.txt"),
    ("a" * 10**6, {}, "text.txt"),
    (make_text(4), {"min_count": 10**6}, "min_count"),
    (make_text(4), {"tokenizer": "gpt3"}, "tokenizer"),
    (make_text(4), {"targets": ("de",)}, "targets"),
    (make_text(4), {"source": "no/such/text.txt"}, "no/such/text.txt"),
    (make_text(4), {"data_dir": "text.txt"}, "text.txt")])
def test_what_cannot_be_prepared_says_why_in_one_line(tiny, tmp_path, monkeypatch, text, changes, names):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(text)
    config = replace(tiny, **{"data_dir": "data", "source": "text.txt", "fact_count": 0, **changes})
    assert names in error(prepare, config)
    assert not Path("data").exists() and Path("text.txt").read_text() == text


@pytest.mark.parametrize("name, damage", [
    ("meta.json", b"[1]"), ("en_train.bin", None), ("en_val.align.bin", b""), ("en_facts.align.bin", None),
    ("table.npz", b"cut")])
def test_a_damaged_folder_is_refused_and_data_py_mends_it(tiny, tmp_path, name, damage):
    path = tmp_path / "data" / name
    shutil.copytree(tiny.data_dir, path.parent)
    path.unlink() if damage is None else path.write_bytes(damage)
    assert str(path) in error(lambda: Folder(str(path.parent)).path(name))
    prepare(replace(tiny, data_dir=str(path.parent)))
    assert contents(str(path.parent)) == contents(tiny.data_dir)


# ---- random numbers, and the languages of rows ----
def test_hash64_never_changes():
    """Or a run that is resumed would get other rows."""
    assert hash64(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 from seed 0
    assert hash64(1, 2, 3) == 0xD0734750FDE362B3
    rows, columns = np.array([0, 5, 2**40, -1]), np.arange(3)
    expected = [[hash64(7, row, column) for column in columns.tolist()] for row in rows.tolist()]
    assert hash64(7, rows[:, None], columns).tolist() == expected


def test_permute_is_a_bijection_of_its_own_for_every_key():
    for n in (*range(1, 36), 1000, 4097):
        assert np.array_equal(np.sort(permute(np.arange(n), n, 1, 0)), np.arange(n))
    orders = [permute(np.arange(200), 200, *keys).tolist() for keys in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))]
    assert all(sum(map(int.__eq__, one, other)) < 10 for i, one in enumerate(orders) for other in orders[:i])
    # Keys may be arrays: each index is then of its own shuffle.
    assert permute(np.arange(400) % 200, 200, 1, 0, np.repeat([0, 1], 200)).tolist() == orders[0] + orders[1]


@pytest.mark.parametrize("weights", [[1.0], [0.01, 0.99], 3 * [1 / 3], [0.3, 0.7 - 1e-12, 1e-12]])
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


# ---- codeswitching ----
def random_table(rng: np.random.Generator, languages: int, entries: int = 12) -> Table:
    """Entries of one pivot word and 0 to 3 translations of 1 to 4 tokens in each language; some have none in any."""
    def word(start: int) -> np.ndarray:
        return start + rng.integers(0, 500, rng.integers(1, 5))

    words = [[[word(0)], *([word(FOREIGN * l) for _ in range(rng.integers(0, 4) * (k % 4 > 0))]
                           for l in range(1, languages + 1))] for k in range(entries)]
    return make_table(words, [1] * entries, ("en", *(f"t{l}" for l in range(1, languages + 1))))


def random_rows(rng: np.random.Generator, R: int, W: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and alignment ids as in a bin, cut out anywhere: words of 1 to 5 tokens, some tokens of no entry."""
    marks: list[int] = []
    while len(marks) < 2 * R * W + 10:
        entry = rng.integers(1, entries + 1)
        marks += [entry] + [-entry] * rng.integers(0, 5) if rng.random() < 0.7 else [0] * rng.integers(1, 4)
    return rng.integers(0, 500, (R, W)), np.array(marks)[rng.integers(0, len(marks) - W, R)[:, None] + np.arange(W)]


@pytest.mark.parametrize("languages", [1, 3])
def test_codeswitch_is_the_slow_one(languages):
    rng, last = np.random.default_rng(languages), []
    for trial in range(48):
        W = int(rng.integers(1, 40))
        length = (W, max(1, W - 4), max(1, W // 2), W + 3)[trial % 4]
        ratio = (0.0, 0.05, 0.5, 1.0)[trial // 4 % 4]
        table = random_table(rng, languages)
        tokens, align = random_rows(rng, 64, W, len(table))
        rows, target = rng.integers(0, 10**6, 64), TARGETS[trial // 16]
        found = splice(tokens, align, table, pick_words(align, table, ratio, rows, trial), length, target, PAD)
        expected = slow_codeswitch(tokens, align, table, ratio, rows, trial, length, target, PAD)
        assert found[0].dtype == found[1].dtype == np.int64 and np.array_equal(found, expected)
        last += found[0][:, -1].tolist()
    # Translations that are cut off and rows that are filled up did occur.
    assert sum(i >= FOREIGN for i in last) > 50 and last.count(PAD) > 50


def test_equations_5_and_6_by_example():
    example = make_table([[[np.array([1, 2])], [np.array([1001])]], [[np.array([3])], [np.array([1002, 1003, 1004])]],
                          [[np.array([4])], []]], [1, 1, 1], ("en", "t1"))
    tokens, align = np.array([[1, 2, 9, 3, 4, 9, 9]]), np.array([[1, -1, 0, 2, 3, 0, 0]])
    # Entry 3 has no translation.
    picked = pick_words(align, example, 1.0, np.array([0]), 0)
    spliced = [1001, 9, 1002, 1003, 1004, 4, 9, 9]
    for target, labels in (("input-only", [-1, 9, -1, -1, -1, 4, 9, 9]), ("vanilla", spliced),
                           ("original", [1, 9, 3, -1, -1, 4, 9, 9])):
        for length in (8, 4, 10):
            found = splice(tokens, align, example, picked, length, target, PAD)
            assert found[0][0].tolist() == (spliced + [PAD, PAD])[:length]
            assert found[1][0].tolist() == (labels + [-1, -1])[:length]


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


def test_every_window_once_in_an_epoch_and_another_order_in_the_next(tiny):
    n = len(Folder(tiny.data_dir).tokens("en", "train"))
    divisor = next(T for T in range(20, 200) if n % T == 0)  # the last window would lack the one token after it
    for changes in ({"mix": {"clone": 0.6, "en": 0.4}}, {"seed": 5, "block_size": divisor}):
        sampler = sampler_of(tiny, stage1_steps=40, **changes)  # no facts in stage 1
        batch = sampler.batch(np.arange(2400))
        for s, language in enumerate(sampler.streams):
            windows = windows_of(Folder(tiny.data_dir).tokens(language, "train"), sampler.config.block_size)
            visited = [windows.index(row) for row, stream in zip(whole_rows(batch), batch.stream) if stream == s]
            epochs = [visited[e:e + len(windows)] for e in range(0, len(visited), len(windows))]
            assert len(epochs) > 2 and epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
            assert all(sorted(epoch) == list(range(len(windows))) for epoch in epochs[:-1])


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
    rows = np.arange(24, 104)  # around the end of stage 1
    whole = sampler_of(tiny, codeswitch_ratio=ratio).batch(rows)
    for parts in ([rows[:1], rows[1:3], rows[3:]], [rows[rank::4] for rank in range(4)], [rows[::-1]]):
        sampler = sampler_of(tiny, codeswitch_ratio=ratio)  # another process knows nothing of this one
        batches, order = [sampler.batch(part) for part in parts], np.argsort(np.concatenate(parts))
        assert all(torch.equal(torch.cat(x)[order], expected) for x, expected in zip(zip(*batches), whole))
    assert not torch.equal(whole.inputs, sampler_of(tiny, codeswitch_ratio=ratio, seed=2).batch(rows).inputs)


@pytest.mark.parametrize("changes", [
    {"stage1_steps": 0}, {"mix": {"en": 1}, "batch_size": 3, "max_steps": 31, "block_size": 19},
    {"fact_count": 27, "fact_periods": 3, "max_steps": 124, "fact_languages": ("en", "clone")}])
def test_facts_are_stated_in_stage_2_once_through_evenly_and_in_their_period(tiny, tmp_path, changes):
    config, folder = replace(tiny, **changes), prepared(tiny, tmp_path, **changes)
    batch = Sampler(folder, config).batch(np.arange(config.max_steps * config.batch_size))
    tokens, ends = folder.tokens("en", "facts"), folder.splits["facts"]["en"]["period_ends"]
    order = in_training_order(make_facts(config))
    documents = np.split(np.c_[tokens, folder.align("facts")], 1 + np.flatnonzero(tokens == folder.end_of_text))[:-1]
    # Of each statement: its text, whether it is En-Clone, and whether words of it are marked.
    stated = [(folder.encoding.decode((ids[:-1] % folder.V).tolist()), bool((ids[:-1] >= folder.V).all()),
               bool(align.any())) for ids, align in (document.T for document in documents)]
    assert stated == [(statement(fact, "en"), fact.language == "clone", fact.language == "en") for fact in order]
    assert ends == np.cumsum(np.bincount([fact.period for fact in order], [len(ids) for ids in documents])).tolist()
    windows, rows = windows_of(tokens, config.block_size), np.flatnonzero(batch.stream == len(config.mix))
    visited = [windows.index(whole_rows(batch)[row]) for row in rows]
    cuts = [0, *(round(end / config.block_size) for end in ends[:-1]), len(windows)]
    steps = np.linspace(config.stage1_steps, config.max_steps, config.fact_periods + 1)
    for p in range(config.fact_periods):
        here = slice(cuts[p], cuts[p + 1])
        assert sorted(visited[here]) == list(range(cuts[p], cuts[p + 1])) != visited[here]
        # From the first row of its part of stage 2 to the last, the same number of rows between two, up to one.
        first, end = steps[p] * config.batch_size, steps[p + 1] * config.batch_size
        gaps = np.diff([first - 1, *rows[here]])
        assert rows[here][-1] == end - 1 and np.ptp(gaps) <= 1


@pytest.mark.parametrize("target, coverage, facts", [(t, c, f) for t in TARGETS for c in (1.0, 0.3) for f in (0, 1)])
def test_the_sampler_codeswitches_as_the_slow_one_does_and_the_pivot_alone(tiny, target, coverage, facts):
    folder, rows = Folder(tiny.data_dir), np.arange(320)
    # So long a row that the tokens which fill up the last window are not all there.
    T = next(T for T in range(24, 64) if (len(folder.tokens("en", "train")) - 1) % T < T // 8)
    plain = sampler_of(tiny, block_size=T).batch(rows)
    batch = sampler_of(tiny, block_size=T, codeswitch_ratio=0.4, codeswitch_target=target,
                       align_coverage=coverage, codeswitch_facts=bool(facts)).batch(rows)
    assert np.array_equal(batch.stream, plain.stream)
    switched = {0: "train", 2: "facts"} if facts else {0: "train"}
    for stream, split in switched.items():
        here, ids, align = np.flatnonzero(batch.stream == stream), folder.tokens("en", split), folder.align(split)
        starts = np.array([T * windows_of(ids, T).index(row) for row in whole_rows(Batch(*(x[here] for x in plain)))])
        assert split == "facts" or (starts + T + 1 + T // 8 > len(ids)).any()
        align = np.where(abs(align) <= np.ceil(coverage * len(folder.table)), align, 0)
        ids, align = np.append(ids.astype(np.int64), [folder.end_of_text] * T), np.append(align, [0] * T)
        at = starts[:, None] + np.arange(T + 1 + T // 8)
        inputs, labels = slow_codeswitch(ids[at], align[at], folder.table, 0.4, rows[here], tiny.seed, T + 1, target,
                                         folder.end_of_text)
        assert np.array_equal(batch.inputs[here], inputs[:, :-1]) and np.array_equal(batch.targets[here], labels[:, 1:])
        assert (inputs >= folder.V).any()
    # En-Clone's rows stay as they are, and by default those of facts.
    others = np.flatnonzero(~np.isin(batch.stream, list(switched)))
    assert set(batch.stream[others].tolist()) == {1, 2} - set(switched)
    assert all(torch.equal(one[others], other[others]) for one, other in zip(batch, plain))


@pytest.mark.parametrize("changes, names", [
    ({"block_size": 10_000}, "block_size"), ({"block_size": 800}, "facts"), ({"max_steps": 7}, "max_steps"),
    ({"mix": {"en": 0.5, "de": 0.5}, "targets": ("de",)}, "'de'")])
def test_too_little_text_too_many_facts_and_ids_beyond_the_vocabulary(tiny, changes, names):
    assert names in error(lambda: sampler_of(tiny, **changes))
    sampler = sampler_of(tiny)
    sampler.bins["en"] = np.full(5000, sampler.folder.vocab_size)
    assert str(sampler.folder.vocab_size) in error(sampler.batch, np.arange(8))


# ---- ahead of use, in other processes, and files ----
def test_prefetch_keeps_the_order_makes_the_next_while_one_is_used_and_raises_where_it_belongs():
    made = [threading.Event() for _ in range(10)]
    batches = prefetch(lambda step: made[step].set() or 12 // (4 - step), range(10))
    # The next is made without asking for it.
    assert next(batches) == 3 and made[1].wait(5)
    assert [next(batches) for _ in range(3)] == [4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_workers_give_results_in_order_and_read_no_faster_than_these_are_taken():
    with Workers(2) as workers:
        read: list[int] = []
        results = workers.map(abs, (read.append(x) or -x for x in range(1000)))
        for taken in range(1, 21):
            assert next(results) == taken - 1 and len(read) <= taken + 2 * AHEAD
        results.close()
        with pytest.raises(ValueError, match="invalid literal"):
            list(workers.map(int, ["1", "x"]))
        with pytest.raises(UserError, match="was killed"):
            list(workers.map(os._exit, range(100)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(path := write(tmp_path / "a.json", "before"), "{")
    assert "a.json: " in error(read_json, path, "make it again")
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(path, "after")
    assert Path(path).read_text() == "{"


def test_a_folder_has_one_user_at_a_time(tmp_path):
    for _ in range(2):
        with exclusive(str(tmp_path / "run")), pytest.raises(UserError, match="another process is working in .*run;"):
            exclusive(str(tmp_path / "run")).__enter__()
