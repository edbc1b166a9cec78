"""
Text to bins and bins to rows. Slow readings first: each vectorised routine is compared with one that goes word by word.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rustbpe
import tiktoken
import torch
from conftest import ROOT, make_text, overrides, run_command
from nltk.tokenize import NLTKWordTokenizer
from tiktoken.load import load_tiktoken_bpe

from corpus import build, readers
from corpus.folder import Folder
from corpus.table import Table, make_table
from corpus.tokenizer import END_OF_TEXT, PATTERN, encode, load_tokenizer, train_tokenizer
from corpus.words import ABBREVIATED
from data import Batch, Encoder, Sampler, pick_words, prepare, splice, stream_of_rows
from runtime.errors import UserError
from runtime.files import exclusive, read_json, write_text
from runtime.hashing import LANGUAGE, SWITCH, TRANSLATION, hash64, permute, uniform
from runtime.parallel import AHEAD, Workers, prefetch
from tasks.facts import facts_of, statement

TARGETS = ("input-only", "vanilla", "original")
PAD = 999
FOREIGN = 1000  # token ids of translations in hand-made tables begin here


# ---- slow readings ----

def slow_words(text: str) -> list[tuple[int, int]]:
    """First character of every word, with the space before it, and the one after its last: read from left to right."""
    words, at = [], 0
    while at < len(text):
        end = at
        if text[at] == "\n":
            while end < len(text) and text[end] == "\n":
                end += 1
            words.append((at, end))
        elif text[at].isspace() and (text[at] != " " or at + 1 == len(text) or text[at + 1].isspace()):
            end += 1  # whitespace that belongs to no word
        else:
            end += 1
            while end < len(text) and not text[end].isspace():
                end += 1
            first = at  # the space belongs to the first word
            at += text[at] == " "
            # The full stop of an abbreviation stays with it.
            cut = end - (ABBREVIATED.search(text[first:end]) is not None)
            in_chunk = NLTKWordTokenizer().tokenize(text[at:cut])
            for word in [*in_chunk[:-1], in_chunk[-1] + text[cut:end]]:
                if word in ("``", "''") and not text.startswith(word, at):  # NLTK rewrites quotation marks
                    word = '"' if text[at] == '"' else text[at:at + 2]
                assert text.startswith(word, at)
                words.append((first, at + len(word)))
                first = at = at + len(word)
        at = end
    return words


def slow_align(encoding: tiktoken.Encoding, entries: dict[str, int], text: str) -> tuple[list[int], list[int]]:
    """Token and alignment ids of a text: every word is looked up between the tokens, each decoded alone."""
    ids = encoding.encode(text, disallowed_special=())
    begins, ends, position = {}, {}, 0
    for n, i in enumerate(ids):
        begins[position] = n
        position += len(encoding.decode_single_token_bytes(i))
        ends[position] = n
    align = [0] * len(ids)
    for start, stop in slow_words(text):
        first, last = begins.get(len(text[:start].encode())), ends.get(len(text[:stop].encode()))
        entry = entries.get(text[start:stop])
        if entry and first is not None and last is not None:
            for n in range(first, last + 1):
                align[n] = entry if n == first else -entry
    return ids, align


def codeswitch(tokens, align, table: Table, ratio, rows, seed, length, target, pad) -> tuple[np.ndarray, np.ndarray]:
    picked = pick_words(align, table, ratio, rows, seed)
    return splice(tokens, align, table, picked, length, target, pad)


def slow_codeswitch(tokens, align, table: Table, ratio, rows, seed, length, target, pad) -> tuple:
    """codeswitch, one row, one word and one token at a time."""
    inputs, labels = [], []
    for number, row, marks in zip(rows.tolist(), tokens.tolist(), align.tolist()):
        new, new_labels, i, W = [], [], 0, len(row)
        while i < W:
            end = i + 1
            while marks[i] > 0 and end < W and marks[end] < 0:
                end += 1
            choices = []
            if marks[i] > 0 and end < W and uniform(seed, SWITCH, number, i) < ratio:
                every = [table.words(marks[i] - 1, l) for l in range(1, len(table.languages))]
                languages = [words for words in every if len(words)]
                if languages:
                    choices = languages[int(uniform(seed, LANGUAGE, number, i) * len(languages))]
            if choices:
                translation = table.word(choices[int(uniform(seed, TRANSLATION, number, i) * len(choices))]).tolist()
                new += translation
                nothing = [-1] * len(translation)
                new_labels += {"input-only": nothing, "vanilla": translation,
                               "original": [row[i]] + nothing[1:]}[target]
            else:
                new += row[i:end]
                new_labels += row[i:end]
            i = end
        inputs.append((new + [pad] * length)[:length])
        labels.append((new_labels + [-1] * length)[:length])
    return np.array(inputs), np.array(labels)


def slow_hash(*keys: int) -> int:
    """splitmix64 in whole numbers, from its definition, once per key."""
    mask, h = 2**64 - 1, 0
    for key in keys:
        h = ((h ^ (key & mask)) + 0x9E3779B97F4A7C15) & mask
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & mask
        h = h ^ (h >> 31)
    return h


# ---- what tests share ----

ODD_WORDS = ["naïve", "Straße", "日本語", "мир", "😀", "don't", "cannot", "it's", "I'll", "rock'n'roll", "o'clock",
             '"so"', "“so”", "``so''", "(b)", "e.g.", "3.14", "1,000", "...", "--", "well-known", "$5", "50%",
             END_OF_TEXT, "a/b", "\u00e9\u0301", "'", '"']
GAPS = [" "] * 12 + ["  ", "   ", "\n", "\n", "\t", " \t ", "\u00a0", "\u3000", "\r", "\u2028", "\x1c"]


def random_text(rng: random.Random, words: list[str], length: int = 60) -> str:
    """Words (capitalised, before punctuation, quoted) with all kinds of gaps between them."""
    text = ""
    for _ in range(rng.randint(1, length)):
        word = rng.choice(words)
        shape = rng.randrange(8)
        shapes = [word, word, word, word, word.capitalize(), word.upper(), f'"{word}",', f"({word})."]
        text += shapes[shape] + rng.choice(GAPS)
    return text if rng.randrange(2) else text.strip()


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def error(function, *arguments) -> str:
    with pytest.raises(UserError) as e:
        function(*arguments)
    assert "\n" not in str(e.value)
    return str(e.value)


def texts_of(dataset: Folder, split: str) -> list[str]:
    *texts, after = dataset.encoding.decode(dataset.tokens("en", split).tolist()).split(END_OF_TEXT)
    assert after == ""
    return texts


# ---- the tokenizer ----

@pytest.fixture(scope="module")
def encodings(tmp_path_factory) -> dict[str, tiktoken.Encoding]:
    """Vocabularies of few and of many tokens, and one of another pattern, which cuts don + 't."""
    made, rng = {}, random.Random(3)
    texts = [make_text(), *(random_text(rng, ODD_WORDS) for _ in range(30))]
    for size in (270, 500):
        path = str(tmp_path_factory.mktemp("vocabulary") / "tokenizer.tiktoken")
        train_tokenizer(texts, size, path)
        made[f"{size} tokens"] = load_tokenizer("train", path)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, 400)  # the pattern of GPT-4
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    made["other pattern"] = tiktoken.Encoding("other", pat_str=trainer.get_pattern(), mergeable_ranks=ranks,
                                              special_tokens={END_OF_TEXT: 400})
    return made


def test_a_vocabulary_is_in_the_format_of_tiktoken(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # else tiktoken keeps a copy by path
    path = str(tmp_path / "tokenizer.tiktoken")
    train_tokenizer(iter([make_text()]), 350, path)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter([make_text()]), 349, pattern=PATTERN)
    ranks = load_tiktoken_bpe(path)
    assert ranks == {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    assert sorted(ranks.values()) == list(range(349))
    encoding = load_tokenizer("train", path)
    assert (encoding.n_vocab, encoding.eot_token, encoding.decode([349])) == (350, 349, END_OF_TEXT)
    rng = random.Random(0)
    for _ in range(100):
        text = random_text(rng, ODD_WORDS + make_text(2).split())
        ids = encode(encoding, text)
        assert ids.dtype == np.int64 and ids.tolist() == trainer.encode(text)
        assert encoding.decode(ids.tolist()) == text


def test_vocabularies_too_small_or_larger_than_the_text_makes(tmp_path):
    path = str(tmp_path / "tokenizer.tiktoken")
    assert "vocab_size must be at least 257" in error(train_tokenizer, ["abc"], 256, path)
    for size in (257, 300):
        train_tokenizer(["abab abab abab"], size, path)
        encoding = load_tokenizer("train", path)
        assert encoding.n_vocab <= size and encoding.eot_token == encoding.n_vocab - 1
        assert encoding.decode(encode(encoding, "abab é").tolist()) == "abab é"


@pytest.mark.parametrize("damage", [
    lambda lines: [],
    lambda lines: lines[:300] + [b"\xff\n"] + lines[301:],
    lambda lines: lines[:300] + [b"YWI= x\n"] + lines[301:],
], ids=["empty", "not text", "no rank"])
def test_a_damaged_vocabulary_is_refused(tmp_path, tiny, damage):
    path = tmp_path / "tokenizer.tiktoken"
    lines = Path(tiny.data_dir, "tokenizer.tiktoken").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(damage(lines)))
    message = error(load_tokenizer, "train", str(path))
    assert message.startswith(str(path)) and "run data.py again" in message


# ---- alignment ids and bins ----

@pytest.mark.parametrize("name", ["270 tokens", "500 tokens", "other pattern"])
def test_alignment_ids_are_those_of_a_slow_reading(encodings, name):
    rng = random.Random(name)
    texts = [random_text(rng, ODD_WORDS + make_text(2).split()) for _ in range(100)]
    found = sorted({text[start:stop] for text in texts for start, stop in slow_words(text)})
    surfaces = rng.sample(found, len(found) * 2 // 3)
    encoder = Encoder(encodings[name], surfaces)
    entries = {surface: k for k, surface in enumerate(surfaces, 1)}
    several = between = 0
    for text in ["", " ", "\n", *texts, *texts[:20]]:  # some twice: chunks are remembered
        ids, align = encoder(text)
        assert ids.dtype == np.int64 and align.dtype == np.int32
        expected_ids, expected = slow_align(encodings[name], entries, text)
        assert ids.tolist() == expected_ids and align.tolist() == expected, text
        several += expected != [abs(a) for a in expected]
        between += sum(text[start:stop] in entries for start, stop in slow_words(text)) > sum(a > 0 for a in expected)
    assert several > 50  # texts with words of several tokens
    assert between > 10 or name == "270 tokens"  # texts with words that tokens straddle; so few tokens do not


def test_bins_hold_the_alignment_of_every_document(tiny):
    dataset = Folder(tiny.data_dir)
    entries = {}
    for k in range(len(dataset.table)):
        (w,) = dataset.table.words(k, 0)
        entries[dataset.encoding.decode(dataset.table.word(w).tolist())] = k + 1
    for split in ("train", "val"):
        expected = []
        for text in texts_of(dataset, split):
            expected += slow_align(dataset.encoding, entries, text)[1] + [0]
        assert dataset.align(split).tolist() == expected


def test_words_are_whole_tokens_of_a_vocabulary_made_here(tiny):
    dataset = Folder(tiny.data_dir)
    in_facts = Counter(text[start:stop] for text in texts_of(dataset, "facts") for start, stop in slow_words(text))
    aligned = Counter(a for a in dataset.align("train").tolist() if a > 0)
    in_train = Counter(text[start:stop] for text in texts_of(dataset, "train") for start, stop in slow_words(text))
    for k in range(len(dataset.table)):
        (w,) = dataset.table.words(k, 0)
        surface = dataset.encoding.decode(dataset.table.word(w).tolist())
        assert dataset.table.frequency[k] == in_train[surface] + in_facts[surface]
        assert aligned[k + 1] == in_train[surface]  # in this text tokens never straddle words


def test_bins_are_the_text_and_documents_end_with_end_of_text(tiny):
    dataset = Folder(tiny.data_dir)
    documents = list(readers.documents(tiny.source))
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert train and val and set(train).isdisjoint(val)
    assert train == [text for text in documents if text not in val]  # whole documents, in their order
    assert val == [text for text in documents if text not in train]
    for split, texts in (("train", train), ("val", val)):
        assert dataset.splits[split]["en"]["documents"] == len(texts)
        assert dataset.splits[split]["en"]["bytes"] == sum(len(text.encode()) for text in texts)
        assert dataset.splits[split]["en"]["tokens"] == len(dataset.tokens("en", split)) == len(dataset.align(split))
    assert val == [text for text in documents if build.place(text) < 0.1]


def test_clone_is_the_pivot_plus_V_but_for_the_end_of_text(tiny):
    dataset = Folder(tiny.data_dir)
    assert (dataset.languages, dataset.pivot, dataset.vocab_size) == (("en", "clone"), "en", 2 * dataset.V)
    assert dataset.offsets == {"en": 0, "clone": dataset.V}
    for split in ("train", "val"):
        pivot, clone = dataset.tokens("en", split), dataset.tokens("clone", split)
        assert pivot.dtype == clone.dtype == np.dtype("<u2")
        expected = [i if i == dataset.end_of_text else i + dataset.V for i in pivot.tolist()]
        assert pivot.max() < dataset.V and clone.tolist() == expected
    assert dataset.ids_of("clone").tolist() == [i + 400 if i != 399 else 399 for i in range(400)]


def test_facts_in_two_languages_and_two_periods(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), fact_count=16, fact_frequencies=(2,),
                     fact_languages=("en", "clone"), fact_periods=2)
    prepare(config)
    dataset = Folder(config.data_dir)
    ids, V = dataset.tokens("en", "facts").astype(np.int64), dataset.V
    ends = np.flatnonzero(ids == dataset.end_of_text)
    assert len(ends) == 32
    stated = []
    for start, end in zip([0, *(ends + 1)], ends):
        language = "clone" if ids[start] >= V else "en"
        assert (ids[start:end] // V == (language == "clone")).all()
        stated.append((language, dataset.encoding.decode((ids[start:end] % V).tolist())))
    expected = {(fact.language, statement(fact, "en")): fact for fact in facts_of(dataset.settings)}
    assert Counter(stated) == dict.fromkeys(expected, 2) and len(expected) == 16
    assert [expected[s].period for s in stated] == [0] * 16 + [1] * 16
    assert dataset.splits["facts"]["en"]["documents"] == 32 and dataset.splits["facts"]["en"]["tokens"] == len(ids)


def test_the_result_does_not_depend_on_the_number_of_workers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1000)
    made = []
    for workers in (1, 2, 3):
        config = replace(tiny, data_dir=str(tmp_path / str(workers)), workers=workers)
        prepare(config)
        made.append(contents(config.data_dir))
    assert made[0] == made[1] == made[2] == contents(tiny.data_dir)


def test_a_document_that_stands_twice_is_not_in_both_splits(tiny, tmp_path):
    source = write(tmp_path / "twice.txt", make_text(20) + "\n\n" + make_text(20))
    for val_fraction in (0.0, 0.3, 0.9):  # 0.0 holds out the first document by place
        config = replace(tiny, data_dir=str(tmp_path / "data"), source=source, val_fraction=val_fraction,
                         vocab_size=300, fact_count=0)
        prepare(config)
        train, val = (texts_of(Folder(config.data_dir), split) for split in ("train", "val"))
        assert train and val and set(train).isdisjoint(val)
        assert Counter(train + val) == Counter(readers.documents(source))


@pytest.mark.parametrize("budget", [100, 4000, 10**6])
def test_a_budget_is_reached_and_not_passed_by_more_than_a_document(tiny, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1000)
    made = []
    for workers in (1, 2):
        config = replace(tiny, data_dir=str(tmp_path / str(workers)), budget={"en": budget}, workers=workers,
                         vocab_size=300, fact_count=0)
        prepare(config)
        made.append(contents(config.data_dir))
    assert made[0] == made[1]
    folder = Folder(config.data_dir)
    ends = np.flatnonzero(folder.tokens("en", "train") == folder.end_of_text) + 1
    length = folder.splits["train"]["en"]["tokens"]
    assert length == ends[-1] == len(folder.tokens("clone", "train"))
    if budget < 10**6:
        assert length >= budget and (len(ends) == 1 or ends[-2] < budget)


# ---- a folder is made once, and anew when what it is made from changes ----

def test_the_command(tiny, tmp_path):
    arguments = overrides(tiny, data_dir=str(tmp_path / "data"))
    first, second = run_command("data.py", *arguments), run_command("data.py", *arguments, "--seed=9", "--workers=2")
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert "60 documents" in first.stdout and second.stdout == f"{tmp_path}/data is up to date\n"
    assert contents(str(tmp_path / "data")) == contents(tiny.data_dir)


def test_another_setting_or_text_makes_it_anew(tiny, tmp_path):
    source = write(tmp_path / "text.txt", make_text())
    config = replace(tiny, data_dir=str(tmp_path / "data") + "/", source=source)
    prepare(config)
    made = [contents(config.data_dir)]
    for changes in ({"vocab_size": 380}, {"min_count": 4}, {"val_fraction": 0.2}, {"fact_frequencies": (2,)},
                    {"fact_languages": ("clone",)}):
        prepare(replace(config, **changes))
        made.append(contents(config.data_dir))
    write(tmp_path / "text.txt", make_text() + "\n\nOne more.")
    prepare(config)
    made.append(contents(config.data_dir))
    assert all(one != other for i, one in enumerate(made) for other in made[:i])
    fingerprint = Folder(config.data_dir).fingerprint
    # The same text at another place makes the same folder.
    (tmp_path / "moved").mkdir()
    prepare(replace(config, source=str((tmp_path / "text.txt").rename(tmp_path / "moved" / "text.txt"))))
    assert Folder(config.data_dir).fingerprint == fingerprint and contents(config.data_dir) == made[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock", "moved"]


@pytest.mark.parametrize("before", ["old data", "nothing"])
@pytest.mark.parametrize("stop_after", ["counts_en.json", "tokenizer.tiktoken", "en_val.bin", "bins_en.json"])
def test_an_interrupted_preparation_goes_on_with_what_is_whole(tiny, tmp_path, monkeypatch, before, stop_after):
    config, old = replace(tiny, data_dir=str(tmp_path / "data")), {}
    if before == "old data":
        prepare(replace(config, min_count=4))
        old = contents(config.data_dir)
    move, moved, stopping = os.replace, [], True

    def interrupted(source, path):
        move(source, path)
        if source.endswith(".tmp"):
            moved.append(os.path.basename(path))
            if stopping and moved[-1] == stop_after:
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    if before == "old data":
        assert contents(config.data_dir) == old
    else:
        assert "meta.json" in error(Folder, config.data_dir)
    whole, stopping = set(moved), False
    moved.clear()
    prepare(config)
    assert contents(config.data_dir) == contents(tiny.data_dir)
    assert {"counts_en.json", "tokenizer.tiktoken", "bins_en.json"}.isdisjoint(whole & set(moved))
    assert ("en_train.bin" in moved) == (stop_after != "bins_en.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock"]


def test_files_of_others_are_never_deleted(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    prepare(config)
    write(tmp_path / "data" / "notes.txt", "mine")
    prepare(replace(config, min_count=4))
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("data_dir", ["text.txt", "text.txt/data"])
def test_a_file_where_a_folder_should_be(tiny, tmp_path, data_dir):
    source = write(tmp_path / "text.txt", make_text())
    assert "text.txt" in error(prepare, replace(tiny, source=source, data_dir=str(tmp_path / data_dir)))
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == make_text()


@pytest.mark.parametrize("text, changes, names", [
    ("\n \n\n", {}, "text.txt"),
    ("Only one document.\nOf two lines.", {}, "text.txt"),
    ("The same.\n\nThe same.\n\nThe same.", {}, "text.txt"),
    (make_text(4), {"min_count": 10**6}, "min_count"),
    (make_text(4), {"vocab_size": 256}, "vocab_size"),
    (make_text(4), {"tokenizer": "gpt3"}, "tokenizer"),
    (make_text(4), {"fact_count": 3}, "fact_count"),
    (make_text(4), {"targets": ("de",)}, "targets"),
    (make_text(4), {"source": "no/such/text.txt"}, "no/such/text.txt"),
])
def test_what_cannot_be_prepared_says_why_in_one_line(tiny, tmp_path, text, changes, names):
    source = write(tmp_path / "text.txt", text)
    config = replace(tiny, data_dir=str(tmp_path / "data"), **{"source": source, "fact_count": 0, **changes})
    assert names in error(prepare, config)
    assert not Path(config.data_dir).exists()


# ---- a folder, opened ----

def read_everything(data_dir: str) -> None:
    folder = Folder(data_dir)
    for split, counts in folder.splits.items():
        for language in counts:
            folder.tokens(language, split)
        if split != "facts":
            folder.align(split)
    folder.table, folder.encoding, facts_of(folder.settings)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("name, damage", [
    ("meta.json", lambda meta: meta.unlink()),
    ("meta.json", shorten),
    ("meta.json", lambda meta: meta.write_text("[1]")),
    ("meta.json", lambda meta: meta.write_text(meta.read_text().replace('"format": ', '"format": 9'))),
    ("en_train.bin", shorten),
    ("en_val.bin", lambda path: path.unlink()),
    ("clone_train.bin", lambda path: path.write_bytes(path.read_bytes() + b"\0\0")),
    ("en_val.align.bin", shorten),
    ("table.npz", shorten),
    ("tokenizer.tiktoken", shorten),
])
def test_a_damaged_folder_is_refused_and_data_py_mends_it(tiny, tmp_path, name, damage):
    folder = tmp_path / "data"
    shutil.copytree(tiny.data_dir, folder)
    read_everything(str(folder))
    damage(folder / name)
    message = error(read_everything, str(folder))
    assert str(folder) in message and "data.py" in message and name in message
    prepare(replace(tiny, data_dir=str(folder)))
    assert contents(str(folder)) == contents(tiny.data_dir)


def test_a_text_that_is_not_there_names_those_that_are(tiny):
    folder = Folder(tiny.data_dir)
    assert "en, clone" in error(folder.tokens, "fr", "train")
    assert "train, val, facts" in error(folder.tokens, "en", "test")


# ---- random numbers ----

def test_hash64_never_changes():  # or a run that is resumed would get other rows
    assert hash64(0) == slow_hash(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 from seed 0
    assert hash64(1, 2, 3) == slow_hash(1, 2, 3) == 0xD0734750FDE362B3
    rows, columns = np.array([0, 5, 2**40, -1]), np.arange(3)
    found = hash64(7, rows[:, None], columns)
    assert found.tolist() == [[slow_hash(7, row, column) for column in columns.tolist()] for row in rows.tolist()]
    assert len({int(hash64(*keys)) for keys in ((1,), (2,), (1, 2), (2, 1), (1, 0), (0, 1))}) == 6


def test_permute_is_a_bijection_of_its_own_for_every_key():
    for n in (*range(1, 36), 63, 64, 65, 256, 1000, 4097):
        for keys in ((1, 0, 0), (1, 0, 1), (2, 0, 0)):
            assert np.array_equal(np.sort(permute(np.arange(n), n, *keys)), np.arange(n))
    orders = [permute(np.arange(200), 200, *keys).tolist() for keys in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))]
    assert all(sum(map(int.__eq__, one, other)) < 10 for i, one in enumerate(orders) for other in orders[:i])
    index, epoch = np.tile(np.arange(50), 4), np.repeat(np.arange(4), 50)
    expected = [i for e in range(4) for i in permute(np.arange(50), 50, 7, 1, e).tolist()]
    assert permute(index, 50, 7, 1, epoch).tolist() == expected


# ---- the languages of rows ----

@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.95, 0.05], [0.01, 0.99], [0.7, 0.2, 0.1], 3 * [1 / 3],
                                     [0.9, 0.025, 0.025, 0.025, 0.025], [0.3, 0.7 - 1e-12, 1e-12]])
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


def test_equations_5_and_6_by_example():
    example = make_table([[[np.array([1, 2])], [np.array([1001])]], [[np.array([3])], [np.array([1002, 1003, 1004])]],
                          [[np.array([4])], []]], [1, 1, 1], ("en", "t1"))

    def switch_all(tokens: list[int], align: list[int], length: int, target: str) -> tuple[list[int], list[int]]:
        inputs, labels = codeswitch(np.array([tokens]), np.array([align]), example, 1.0, np.array([0]), 0, length,
                                    target, PAD)
        return inputs[0].tolist(), labels[0].tolist()

    tokens, align = [1, 2, 9, 3, 4, 9, 9], [1, -1, 0, 2, 3, 0, 0]
    spliced = [1001, 9, 1002, 1003, 1004, 4, 9, 9]  # entry 3 has no translation
    assert switch_all(tokens, align, 8, "input-only") == (spliced, [-1, 9, -1, -1, -1, 4, 9, 9])
    assert switch_all(tokens, align, 8, "vanilla") == (spliced, spliced)
    assert switch_all(tokens, align, 8, "original") == (spliced, [1, 9, 3, -1, -1, 4, 9, 9])
    assert switch_all(tokens, align, 4, "original") == (spliced[:4], [1, 9, 3, -1])
    assert switch_all(tokens, align, 10, "vanilla") == (spliced + [PAD, PAD], spliced + [-1, -1])


def test_words_languages_and_translations_are_drawn_uniformly():
    one, two, three = ([np.array([FOREIGN + 10 * l + i]) for i in range(l)] for l in (1, 2, 3))
    word = [np.array([1])]
    entries = [[word, one, two, three], [word, [], two, three], [word, [], [], []]]
    table = make_table(entries, [1, 1, 1], ("en", "a", "b", "c"))
    R, W = 400, 301
    for entry, languages in ((1, (1, 2, 3)), (2, (2, 3)), (3, ())):
        for ratio in (0.05, 0.5):
            align = np.full((R, W), entry)
            inputs, _ = codeswitch(np.ones((R, W), dtype=np.int64), align, table, ratio, np.arange(R), 5, W, "vanilla",
                                   PAD)
            n = R * (W - 1)  # the last word of a row is left alone
            counts = Counter(inputs[inputs >= FOREIGN].tolist())
            for language in languages:
                for i in range(language):
                    p = ratio / len(languages) / language
                    assert abs(counts.pop(FOREIGN + 10 * language + i) - n * p) < 5 * np.sqrt(n * p * (1 - p))
            assert not counts


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
            parted = np.concatenate([getattr(batch, name) for batch in batches])[order]
            assert np.array_equal(parted, getattr(whole, name))
    other = sampler_of(tiny, codeswitch_ratio=ratio, seed=2).batch(rows)
    assert not np.array_equal(whole.inputs, other.inputs)


@pytest.mark.parametrize("changes", [{}, {"stage1_steps": 0}, {"stage1_steps": 1, "max_steps": 7},
                                     {"block_size": 17, "max_steps": 41},
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
    """The windows of its facts, to within one, in an order of their own, evenly over its third of stage 2."""
    config = replace(tiny, data_dir=str(tmp_path), fact_count=25, fact_frequencies=(3,), fact_periods=3, max_steps=124)
    prepare(config)
    data = Folder(str(tmp_path))
    tokens = data.tokens("en", "facts")
    windows = windows_of(tokens, 32)
    statements = np.cumsum([3 * sum(fact.period == p for fact in facts_of(data.settings)) for p in range(3)])
    ends = np.flatnonzero(tokens == data.end_of_text)[statements - 1] + 1
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
def test_the_sampler_codeswitches_as_the_slow_one_does_and_the_pivot_alone(tiny, target, coverage):
    folder, rows = Folder(tiny.data_dir), np.arange(320)
    ids, align = folder.tokens("en", "train").astype(np.int64), folder.align("train")
    # So long a row that the tokens which fill up the last window are not all there.
    T = next(T for T in range(24, 64) if (len(ids) - 1) % T < T // 8)
    plain = sampler_of(tiny, block_size=T).batch(rows)
    batch = sampler_of(tiny, block_size=T, codeswitch_ratio=0.4, codeswitch_target=target,
                       align_coverage=coverage).batch(rows)
    assert np.array_equal(batch.stream, plain.stream)
    here = np.flatnonzero(batch.stream == 0)
    starts = np.array([T * windows_of(ids, T).index(row) for row in whole_rows(Batch(*(x[here] for x in plain)))])
    assert (starts + T + 1 + T // 8 > len(ids)).any()
    align = np.array([a if abs(a) <= np.ceil(coverage * len(folder.table)) else 0 for a in align])
    ids, align = np.append(ids, [folder.end_of_text] * T), np.append(align, [0] * T)
    at = starts[:, None] + np.arange(T + 1 + T // 8)
    inputs, labels = slow_codeswitch(ids[at], align[at], folder.table, 0.4, rows[here], tiny.seed, T + 1, target,
                                     folder.end_of_text)
    assert np.array_equal(batch.inputs[here], inputs[:, :-1]) and np.array_equal(batch.targets[here], labels[:, 1:])
    assert (inputs >= folder.V).any()
    # En-Clone's rows and those of facts stay as they are.
    others = np.flatnonzero(batch.stream != 0)
    assert set(batch.stream[others].tolist()) == {1, 2}
    assert torch.equal(batch.inputs[others], plain.inputs[others])
    assert torch.equal(batch.targets[others], plain.targets[others])


@pytest.mark.parametrize("target", TARGETS)
def test_no_token_of_a_target_language_is_in_a_row_of_facts_stated_in_english(tiny, target):
    batch = sampler_of(tiny, codeswitch_ratio=1.0, codeswitch_target=target).batch(np.arange(320))
    facts, english = batch.stream == 2, batch.stream == 0
    V = Folder(tiny.data_dir).V
    assert facts.sum() > 10 and (batch.inputs[facts] < V).all() and (batch.targets[facts] < V).all()
    assert (batch.inputs[english] >= V).float().mean() > 0.3  # while English text is all switched


def test_too_little_text_and_too_many_facts(tiny):
    for changes, names in (({"block_size": 10_000}, "block_size"), ({"block_size": 600}, "facts"),
                           ({"max_steps": 7}, "max_steps"),
                           ({"mix": {"en": 0.5, "de": 0.5}, "targets": ("de",)}, "'de'")):
        assert names in error(lambda: sampler_of(tiny, **changes))
    T = len(bins_of(tiny)[0]) - 1  # one window: all of the text
    sampler = sampler_of(tiny, block_size=T, mix={"en": 1.0}, max_steps=1, stage1_steps=1)
    assert whole_rows(sampler.batch(np.array([0]))) == [tuple(bins_of(tiny)[0].tolist())]


def test_an_id_beyond_the_vocabulary_is_an_error(tiny):
    folder = Folder(tiny.data_dir)
    sampler = Sampler(folder, tiny)
    sampler.bins["en"] = np.full(5000, folder.vocab_size)
    assert f"the text of en has the token id {folder.vocab_size}" in error(sampler.batch, np.arange(8))


# ---- ahead of use, and in other processes ----

def no_new_threads(before: set) -> bool:
    end = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


def test_prefetch_keeps_the_order_and_makes_the_next_while_one_is_used():
    before, made, next_made = set(threading.enumerate()), [], threading.Event()
    assert list(prefetch(lambda step: step * step, range(3, 50))) == [step * step for step in range(3, 50)]
    assert list(prefetch(lambda step: step, range(0))) == []

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            next_made.set()
        return step

    batches = prefetch(make, range(1000))
    assert next(batches) == 0 and next_made.wait(5)  # without asking for it
    time.sleep(0.1)
    assert len(made) < 6  # but not many ahead: batches take memory
    batches.close()
    assert no_new_threads(before)


@pytest.mark.parametrize("failure", [UserError("cannot read"), MemoryError(), KeyboardInterrupt()], ids=repr)
def test_prefetch_raises_what_the_thread_raised_where_it_belongs(failure):
    def make(step: int) -> int:
        if step == 4:
            raise failure
        return step

    before, found = set(threading.enumerate()), []
    with pytest.raises(type(failure)) as e:
        for item in prefetch(make, range(10)):
            found.append(item)
    assert found == [0, 1, 2, 3] and e.value is failure and no_new_threads(before)


def square(x: int) -> int:
    return x * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise UserError("three")
    return x


def die_at_three(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


_base = 0


def set_base(base: int) -> None:
    global _base
    _base = base


def add_base(x: int) -> int:
    time.sleep(0.01 * (x % 2 == 0))
    return _base + x


def test_workers_give_results_in_order_and_read_no_faster_than_these_are_taken():
    with Workers(2, set_base, 100) as workers:
        assert list(workers.map(add_base, range(20))) == list(range(100, 120)) and not list(workers.map(square, []))
        read = []
        results = workers.map(square, (read.append(x) or x for x in range(1000)))
        for taken in range(1, 21):
            assert next(results) == (taken - 1) ** 2 and len(read) <= taken + 2 * AHEAD
        results.close()
        with pytest.raises(UserError, match="^three$"):
            list(workers.map(fail_at_three, range(100)))
    with Workers(2) as workers, pytest.raises(UserError, match="was killed"):
        list(workers.map(die_at_three, range(100)))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_that_is_stopped_says_so_and_leaves_no_process_behind(tmp_path, number, code):
    """Ctrl-C and SIGTERM go to all its processes, as a terminal or a scheduler sends them; a kill to the first."""
    script = ("import os, time\nfrom runtime import errors, parallel\n\n\ndef pid(_):\n    time.sleep(0.1)\n"
              "    return os.getpid()\n\n\ndef main(arguments):\n    with parallel.Workers(2) as workers:\n"
              "        for number in workers.map(pid, range(10**6)):\n            print(number, flush=True)\n\n\n"
              "if __name__ == '__main__':\n    errors.run(main)\n")
    command = [sys.executable, write(tmp_path / "work.py", script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    pids = {int(process.stdout.readline()) for _ in range(8)}
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    stopped = "" if number == signal.SIGKILL else "stopped; run the same command to go on"
    assert len(pids) == 2 and (process.returncode, errors.strip()) == (code, stopped)
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in pids if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has asked about is still listed, as a zombie.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


# ---- files and locks ----

def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", "{")
    assert "a.json: " in error(read_json, path, "make it again")
    write_text(path, "before")
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(path, "after")
    assert Path(path).read_text() == "before"


def test_a_folder_has_one_user_and_a_dead_one_is_forgotten(tmp_path):
    folder = str(tmp_path / "run")
    hold = ("import sys, os; from runtime.files import exclusive\nwith exclusive(sys.argv[1]):\n"
            "    print('in', flush=True); sys.stdin.readline(); os._exit(9)")
    other = subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process is working in .*run; wait for it"), exclusive(folder):
        pass
    other.communicate("\n")  # it dies inside
    with exclusive(folder):
        pass
