"""Text to bins: the tokenizer, alignment ids against a slow reading of the text, what is held out, and what is refused."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rustbpe
import tiktoken
from nltk.tokenize import NLTKWordTokenizer
from tiktoken.load import load_tiktoken_bpe

from corpus import readers as corpus
import data
from corpus import build
from runtime.errors import UserError
from tasks.facts import facts_of
from conftest import make_text, overrides, run_command
from data import Encoder, smallest_dtype
from data import prepare
from corpus.readers import file_digest
from corpus.folder import Folder, digest_of
from corpus.tokenizer import END_OF_TEXT, PATTERN, encode, load_tokenizer, token_byte_lengths, train_tokenizer

ODD_WORDS = ["naïve", "Straße", "日本語", "мир", "😀", "don't", "cannot", "it's", "I'll", "rock'n'roll", "o'clock", '"so"', "“so”",
             "``so''", "(b)", "e.g.", "3.14", "1,000", "...", "--", "well-known", "$5", "50%", "<|endoftext|>", "a/b", "\u00e9\u0301", "'", '"']
GAPS = [" "] * 12 + ["  ", "   ", "\n", "\n", "\t", " \t ", "\u00a0", "\u3000", "\r", "\u2028", "\x1c"]


def random_text(rng: random.Random, words: list[str], length: int = 60) -> str:
    """Words (capitalised, before punctuation, quoted) with all kinds of gaps between them."""
    text = ""
    for _ in range(rng.randint(1, length)):
        word = rng.choice(words)
        shape = rng.randrange(8)
        text += [word, word, word, word, word.capitalize(), word.upper(), f'"{word}",', f"({word})."][shape] + rng.choice(GAPS)
    return text if rng.randrange(2) else text.strip()


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def times(folder: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in [Path(folder), *Path(folder).iterdir()]}


def error(function, *arguments) -> str:
    with pytest.raises(UserError) as e:
        function(*arguments)
    assert "\n" not in str(e.value)
    return str(e.value)


def split_documents(ids: np.ndarray, end_of_text: int) -> list[list[int]]:
    """The ids of every document, without the end-of-text that ends it."""
    assert ids[-1] == end_of_text
    documents = [[]]
    for i in ids.tolist():
        if i == end_of_text:
            documents.append([])
        else:
            documents[-1].append(i)
    return documents[:-1]


def texts_of(dataset: Folder, split: str) -> list[str]:
    return [dataset.encoding.decode(ids) for ids in split_documents(dataset.tokens("en", split), dataset.end_of_text)]


# ---- the tokenizer ----

@pytest.fixture(scope="module")
def encodings(tmp_path_factory) -> dict[str, tiktoken.Encoding]:
    """Vocabularies of few and of many tokens, trained as data.py does, and one that ends its pieces elsewhere: don + 't."""
    made, rng = {}, random.Random(3)
    texts = [make_text(), *(random_text(rng, ODD_WORDS) for _ in range(30))]
    for size in (270, 500):
        path = str(tmp_path_factory.mktemp("vocabulary") / "tokenizer.tiktoken")
        train_tokenizer(texts, size, path)
        made[f"{size} tokens"] = load_tokenizer("train", path)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, 400)  # the pattern of GPT-4
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    made["other pattern"] = tiktoken.Encoding("other", pat_str=trainer.get_pattern(), mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 400})
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


def test_special_tokens_written_out_are_ordinary_text(encodings):
    encoding = encodings["500 tokens"]
    ids = encode(encoding, f"a{END_OF_TEXT}b")
    assert encoding.eot_token not in ids and encoding.decode(ids.tolist()) == f"a{END_OF_TEXT}b"


def test_bytes_of_every_token(encodings):
    for encoding in encodings.values():
        lengths = token_byte_lengths(encoding)
        assert lengths.shape == (encoding.n_vocab,) and lengths[encoding.eot_token] == 0
        assert all(lengths[i] == len(encoding.decode_single_token_bytes(i)) for i in range(encoding.n_vocab) if i != encoding.eot_token)


def test_vocabularies_too_small_or_larger_than_the_text_makes(tmp_path):
    path = str(tmp_path / "tokenizer.tiktoken")
    assert "vocab_size must be at least 257" in error(train_tokenizer, ["abc"], 256, path)
    for size in (257, 300):
        train_tokenizer(["abab abab abab"], size, path)
        encoding = load_tokenizer("train", path)
        assert encoding.n_vocab <= size and encoding.eot_token == encoding.n_vocab - 1
        assert encoding.decode(encode(encoding, "abab é").tolist()) == "abab é"


def test_tokenizers_that_cannot_be_had(tmp_path, monkeypatch):
    message = error(load_tokenizer, "gpt3", "")
    assert "'gpt3'" in message and "gpt2" in message and "o200k_base" in message and '"train"' in message

    def offline(name):
        raise ConnectionError("Name or service not known\nMax retries exceeded")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    message = error(load_tokenizer, "gpt2", "")
    assert "gpt2" in message and "TIKTOKEN_CACHE_DIR" in message and "--tokenizer=train" in message
    assert "nowhere.tiktoken" in error(load_tokenizer, "train", str(tmp_path / "nowhere.tiktoken"))


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


# ---- alignment ids ----

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
            for word in NLTKWordTokenizer().tokenize(text[at:end]):
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
    for split in dataset.splits:
        expected = []
        for text in texts_of(dataset, split):
            expected += slow_align(dataset.encoding, entries, text)[1] + [0]
        assert dataset.align(split).tolist() == expected
        assert dataset.splits[split]["en"]["aligned_words"] == sum(a > 0 for a in expected)


def test_words_are_whole_tokens_of_a_vocabulary_made_here(tiny):
    dataset = Folder(tiny.data_dir)
    in_text = Counter(text[start:stop] for split in ("train", "facts") for text in texts_of(dataset, split) for start, stop in slow_words(text))
    aligned = Counter(a for split in ("train", "facts") for a in dataset.align(split).tolist() if a > 0)
    for k in range(len(dataset.table)):
        (w,) = dataset.table.words(k, 0)
        surface = dataset.encoding.decode(dataset.table.word(w).tolist())
        assert dataset.table.frequency[k] == in_text[surface]
        assert aligned[k + 1] == in_text[surface]  # in this text tokens never straddle words


def test_the_table_for_people_says_the_same(tiny):
    dataset = Folder(tiny.data_dir)
    header, *lines = Path(tiny.data_dir, "table.tsv").read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["entry", "frequency", "pivot", "language", "translation"]
    assert len(lines) == len(dataset.table) == dataset.meta["entries"]
    for k, line in enumerate(lines):
        entry, frequency, pivot, language, translation = line.split("\t")
        assert (int(entry), int(frequency), language) == (k + 1, dataset.table.frequency[k], "clone")
        assert pivot == translation
        pivot_ids, clone_ids = (dataset.table.word(w) for w in (*dataset.table.words(k, 0), *dataset.table.words(k, 1)))
        assert pivot_ids.tolist() == encode(dataset.encoding, json.loads(pivot)).tolist()
        assert clone_ids.tolist() == (pivot_ids + dataset.V).tolist()


# ---- bins ----

def test_bins_are_the_text_and_documents_end_with_end_of_text(tiny):
    dataset = Folder(tiny.data_dir)
    documents = list(corpus.documents(tiny.source))
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert train and val and set(train).isdisjoint(val)
    assert train == [text for text in documents if text not in val]  # whole documents, in their order
    assert val == [text for text in documents if text not in train]
    for split, texts in (("train", train), ("val", val)):
        assert dataset.splits[split]["en"]["documents"] == len(texts)
        assert dataset.splits[split]["en"]["bytes"] == sum(len(text.encode()) for text in texts)
        assert dataset.splits[split]["en"]["tokens"] == len(dataset.tokens("en", split)) == len(dataset.align(split))
    size = sum(map(len, documents))
    assert 0.1 * size <= sum(map(len, val)) < 0.1 * size + max(map(len, documents))


def test_clone_is_the_pivot_plus_V(tiny):
    dataset = Folder(tiny.data_dir)
    assert (dataset.languages, dataset.pivot, dataset.vocab_size) == (("en", "clone"), "en", 2 * dataset.V)
    assert dataset.offsets == {"en": 0, "clone": dataset.V}
    for split in ("train", "val"):
        pivot, clone = dataset.tokens("en", split), dataset.tokens("clone", split)
        assert pivot.dtype == clone.dtype == np.dtype("<u2")
        assert pivot.max() < dataset.V and clone.tolist() == [i + dataset.V for i in pivot.tolist()]


def test_every_fact_is_stated_as_often_as_it_should(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), fact_count=12, fact_frequencies=(1, 3, 7))
    prepare(config)
    dataset = Folder(config.data_dir)
    assert len(facts_of(dataset.settings)) == 12
    expected = {data.knowledge.statement(fact, "en"): fact.frequency for fact in facts_of(dataset.settings)}
    assert Counter(texts_of(dataset, "facts")) == expected and set(expected.values()) == {1, 3, 7}
    assert not any(text in "\n".join(texts_of(dataset, "train") + texts_of(dataset, "val")) for text in expected)


def test_facts_in_two_languages_and_two_periods(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), fact_count=16, fact_frequencies=(2,), fact_languages=("en", "clone"), fact_periods=2)
    prepare(config)
    dataset = Folder(config.data_dir)
    ids, align, V = dataset.tokens("en", "facts").astype(np.int64), dataset.align("facts"), dataset.V
    ends = np.flatnonzero(ids % V == dataset.end_of_text)
    assert len(ends) == 32
    stated = []
    for start, end in zip([0, *(ends + 1)], ends):
        language = "clone" if ids[start] >= V else "en"
        assert (ids[start:end + 1] // V == (language == "clone")).all()
        assert (align[start:end + 1] != 0).any() == (language == "en")  # a clone's words are not in the pivot's place
        stated.append((language, dataset.encoding.decode((ids[start:end] % V).tolist())))
    expected = {(fact.language, data.knowledge.statement(fact, "en")): fact for fact in facts_of(dataset.settings)}
    assert Counter(stated) == dict.fromkeys(expected, 2) and len(expected) == 16
    assert [expected[s].period for s in stated] == [0] * 16 + [1] * 16
    assert dataset.splits["facts"]["en"]["documents"] == 32 and dataset.splits["facts"]["en"]["tokens"] == len(ids)


def test_no_facts(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), fact_count=0)
    prepare(config)
    dataset = Folder(config.data_dir)
    assert facts_of(dataset.settings) == [] and list(dataset.splits) == ["train", "val"]
    assert "facts" in error(dataset.tokens, "en", "facts")


def test_the_result_does_not_depend_on_the_number_of_workers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build.text_batches, "__defaults__", (1000,))  # characters: many batches of this small text
    made = []
    for workers in (1, 2, 3):
        config = replace(tiny, data_dir=str(tmp_path / str(workers)), workers=workers)
        prepare(config)
        made.append(contents(config.data_dir))
    assert made[0] == made[1] == made[2] == contents(tiny.data_dir)


def test_the_files_are_these_and_meta_has_the_digest_of_each(tiny):
    names = {f"{language}_{split}.bin" for language in ("en", "clone") for split in ("train", "val")} | {"en_facts.bin"}
    names |= {f"en_{split}.align.bin" for split in ("train", "val", "facts")} | {"table.npz", "table.tsv", "tokenizer.tiktoken"}
    assert set(contents(tiny.data_dir)) == names | {"meta.json"}
    meta = Folder(tiny.data_dir).meta
    assert meta["digests"] == {name: file_digest(f"{tiny.data_dir}/{name}", blocks=0) for name in names}
    assert meta["samples"] == {name: file_digest(f"{tiny.data_dir}/{name}") for name in names}


def test_a_document_that_stands_twice_is_not_in_both_splits(tiny, tmp_path):
    source = write(tmp_path / "twice.txt", make_text(20) + "\n\n" + make_text(20))
    for val_fraction in (0.0, 0.3, 1.0):
        config = replace(tiny, data_dir=str(tmp_path / "data"), source=source, val_fraction=val_fraction)
        prepare(config)
        train, val = (texts_of(Folder(config.data_dir), split) for split in ("train", "val"))
        assert train and val and set(train).isdisjoint(val)
        assert Counter(train + val) == Counter(corpus.documents(source))


def test_ids_that_need_four_bytes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "smallest_dtype", lambda vocab_size: np.dtype("<u4"))
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    prepare(config)
    wide, narrow = Folder(config.data_dir), Folder(tiny.data_dir)
    assert wide.dtype == np.dtype("<u4")
    for language in wide.languages:
        assert np.array_equal(wide.tokens(language, "train"), narrow.tokens(language, "train"))


def test_smallest_dtype():
    assert [smallest_dtype(n).str for n in (1, 65535, 65536, 65537, 2**31)] == ["<u2", "<u2", "<u2", "<u4", "<u4"]
    assert "8,589,934,592" in error(smallest_dtype, 2**33)
    error(smallest_dtype, 2**31 + 1)


# ---- made once, and made anew ----

def test_prepared_twice_does_nothing(tiny, capsys):
    before = times(tiny.data_dir)
    prepare(replace(tiny, seed=9, batch_size=1, workers=2, out_dir="elsewhere"))  # not what data are made from
    assert times(tiny.data_dir) == before
    assert capsys.readouterr().out == f"{tiny.data_dir} is up to date\n"


def test_the_command(tiny, tmp_path):
    arguments = overrides(tiny, data_dir=str(tmp_path / "data"))
    first, second = run_command("data.py", *arguments), run_command("data.py", *arguments)
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")  # no bars where nobody watches
    assert "59 documents" in first.stdout and second.stdout == f"{tmp_path}/data is up to date\n"
    assert contents(str(tmp_path / "data")) == contents(tiny.data_dir)


def test_another_setting_or_text_makes_it_anew(tiny, tmp_path):
    source = write(tmp_path / "text.txt", make_text())
    config = replace(tiny, data_dir=str(tmp_path / "data") + "/", source=source)
    prepare(config)
    made = [contents(config.data_dir)]
    for changes in ({"vocab_size": 380}, {"min_count": 4}, {"val_fraction": 0.2}, {"fact_count": 4}, {"fact_frequencies": (2,)}, {"fact_languages": ("clone",)},
                    {"fact_periods": 2}):
        prepare(replace(config, **changes))
        made.append(contents(config.data_dir))
    write(tmp_path / "text.txt", make_text() + "\n\nOne more.")
    prepare(config)
    made.append(contents(config.data_dir))
    assert all(one != other for i, one in enumerate(made) for other in made[:i])
    write(tmp_path / "text.txt", make_text())
    prepare(config)
    assert contents(config.data_dir) == made[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock", "text.txt"]  # nothing is left behind


@pytest.mark.parametrize("before", ["old data", "nothing"])
@pytest.mark.parametrize("cause", ["disk full", "interrupted", "not UTF-8"])
def test_a_preparation_that_fails_leaves_no_broken_folder(tiny, tmp_path, monkeypatch, before, cause):
    source = write(tmp_path / "text.txt", make_text())
    config = replace(tiny, data_dir=str(tmp_path / "data"), source=source)
    if before == "old data":
        prepare(config)
        old = contents(config.data_dir)
    failure = {"disk full": OSError("No space left on device"), "interrupted": KeyboardInterrupt(), "not UTF-8": None}[cause]
    write_bins = data.write_bins

    def fail(texts, language, split, *arguments):
        if split == "val":
            raise failure
        return write_bins(texts, language, split, *arguments)

    with monkeypatch.context() as patch:
        if failure:
            patch.setattr(data, "write_bins", fail)
        else:
            (tmp_path / "text.txt").write_bytes(make_text().encode() + b"\n\nOne\xff more.\n")
        with pytest.raises(type(failure) if failure else UserError) as e:
            prepare(replace(config, min_count=4))
    if not failure:
        assert str(e.value).startswith(f"{source}:") and "UTF-8" in str(e.value) and "\n" not in str(e.value)
        write(tmp_path / "text.txt", make_text())
    if before == "old data":
        assert contents(config.data_dir) == old
    else:
        assert "no prepared data" in error(Folder, config.data_dir)
    prepare(replace(config, min_count=4))
    read_everything(config.data_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.lock", "text.txt"]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5, 8, 9])
def test_an_interrupted_preparation_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch, capsys, stop_after):
    """Interrupted after so many batches of documents, of which every second is a place to go on from; the result is the same."""
    monkeypatch.setattr(build.text_batches, "__defaults__", (2000,))  # characters: ten batches or so
    monkeypatch.setattr(data, "BATCHES_PER_SAVE", 2)
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    encoded = []

    class InThisProcess:  # so that what is encoded can be counted
        def __init__(self, number, start=None, *arguments):
            if start is not None:
                start(*arguments)

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def map(self, function, batches):
            for batch in batches:
                if getattr(function, "func", None) is data.encode_documents:
                    if len(encoded) == stop_after and not again:
                        raise KeyboardInterrupt
                    encoded.append(batch)
                yield function(batch)

    monkeypatch.setattr(data, "Workers", InThisProcess)
    again = False
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    # What a kill leaves behind the last place to go on from is not relied on.
    for path in (tmp_path / "data.partial").glob("*.bin"):
        path.write_bytes(path.read_bytes() + b"rubbish")
    before, again = len(encoded), True
    capsys.readouterr()
    prepare(config)
    assert "going on with" in capsys.readouterr().out
    assert contents(config.data_dir) == contents(tiny.data_dir)
    texts = [text for batch in encoded for text in batch]
    twice = len(encoded) - len({tuple(batch) for batch in encoded})
    assert twice <= 2 and set(texts) == set(corpus.documents(tiny.source)) and before == stop_after


def test_a_preparation_of_something_else_is_not_gone_on_with(tiny, tmp_path, monkeypatch, capsys):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    with monkeypatch.context() as patch:
        patch.setattr(data, "write_bins", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(replace(config, vocab_size=380))
    prepare(config)
    assert "going on with" not in capsys.readouterr().out and contents(config.data_dir) == contents(tiny.data_dir)


@pytest.mark.parametrize("budget", [100, 1500, 4000, 10**6])
def test_a_budget_is_reached_and_not_passed_by_more_than_a_document(tiny, tmp_path, monkeypatch, capsys, budget):
    monkeypatch.setattr(build.text_batches, "__defaults__", (1000,))
    made = []
    for workers in (1, 2):
        config = replace(tiny, data_dir=str(tmp_path / str(workers)), budget={"en": budget}, workers=workers, vocab_size=300, fact_count=0)
        prepare(config)
        made.append(contents(config.data_dir) | {"meta.json": None})
    assert made[0] == made[1]
    dataset = Folder(config.data_dir)
    tokens, length = dataset.tokens("en", "train"), dataset.splits["train"]["en"]["tokens"]
    ends = np.flatnonzero(tokens == dataset.end_of_text)
    assert len(tokens) == length == len(dataset.tokens("clone", "train")) and len(ends) == dataset.splits["train"]["en"]["documents"]
    if budget == 10**6:
        assert f"all there are of the {budget:,} asked for" in capsys.readouterr().out
    else:
        assert length >= budget and (len(ends) == 1 or ends[-2] + 1 < budget)
    documents, held_out = list(corpus.documents(tiny.source)), texts_of(dataset, "val")
    train = texts_of(dataset, "train")
    assert train == [text for text in documents if text not in held_out][:len(train)]


def test_files_are_read_in_an_order_of_the_shard_seed(tiny, tmp_path):
    """The same documents are trained on and held out, in another order."""
    documents = Path(tiny.source).read_text(encoding="utf-8").split("\n\n")
    (tmp_path / "texts").mkdir()
    for i in range(6):
        write(tmp_path / "texts" / f"{i}.txt", "\n\n".join(documents[i::6]))
    made = [replace(tiny, source=str(tmp_path / "texts"), shard_seed=seed, data_dir=str(tmp_path / f"data{seed}")) for seed in (0, 1, 2)]
    for config in made:
        prepare(config)
    read = [texts_of(Folder(config.data_dir), "train") for config in made]
    assert sorted(read[0]) == sorted(read[1]) == sorted(read[2]) and read[0] != read[1] != read[2]


def test_choosing_what_is_held_out_needs_no_memory_of_all(tiny, tmp_path):
    """With little spare room the choice is the same as with all digests in memory."""
    config = replace(tiny, source=write(tmp_path / "text.txt", make_text(600, seed=5)))
    for val_fraction in (0.01, 0.1):
        config = replace(config, val_fraction=val_fraction)
        assert build.choose_held_out(config, "en", spare=1000) == build.choose_held_out(config, "en")


def test_counting_forgets_the_rarest_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(build, "MAX_COUNTED", 10)
    monkeypatch.setattr(build.text_batches, "__defaults__", (1,))
    texts = [f"the house {i}" for i in range(50)]
    one_process = type("InThisProcess", (), {"map": staticmethod(map)})
    counts = build.count_in(one_process, lambda batch: Counter(batch[0].split()), texts)
    assert counts["the"] == counts["house"] == 50 and len(counts) <= 10


def test_a_folder_that_is_not_ours_is_never_deleted(tiny, tmp_path):
    write(tmp_path / "thesis.txt", make_text())
    (tmp_path / "notes").mkdir()
    message = error(prepare, replace(tiny, data_dir=str(tmp_path), source=str(tmp_path / "thesis.txt")))
    assert str(tmp_path) in message
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == make_text() and (tmp_path / "notes").is_dir()


def test_a_folder_with_something_of_its_owners_is_not_deleted(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    prepare(config)
    write(tmp_path / "data" / "notes.txt", "mine")
    assert "did not make (notes.txt)" in error(prepare, replace(config, min_count=4))
    (tmp_path / "data" / "notes.txt").unlink()
    prepare(replace(config, min_count=4))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "meta.json", '{"title": "my thesis"}')
    write(tmp_path / "other" / "thesis.txt", "mine")
    assert "did not make (thesis.txt)" in error(prepare, replace(config, data_dir=str(tmp_path / "other")))


def test_a_table_edited_in_its_place_is_not_thrown_away(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    prepare(config)
    table = tmp_path / "data" / "table.tsv"
    table.write_text(table.read_text() + "1\t1\t\"a\"\tclone\t\"a\"\n")
    assert "was edited; to use it, move it out" in error(prepare, config)
    table.unlink()
    prepare(config)
    assert contents(config.data_dir) == contents(tiny.data_dir)


def test_a_preparation_interrupted_at_its_very_end(tiny, tmp_path, monkeypatch, capsys):
    config = replace(tiny, data_dir=str(tmp_path / "data"))
    with monkeypatch.context() as patch:
        patch.setattr(data, "move_into_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config)
    monkeypatch.setattr(data, "write_bins", lambda *_: 1 / 0)
    prepare(config)
    assert contents(config.data_dir) == contents(tiny.data_dir) and "going on with" in capsys.readouterr().out


def test_an_empty_folder_is_filled(tiny, tmp_path):
    prepare(replace(tiny, data_dir=str(tmp_path)))
    assert contents(tmp_path) == contents(tiny.data_dir)


@pytest.mark.parametrize("data_dir", ["text.txt", "text.txt/data"])
def test_a_file_where_a_folder_should_be(tiny, tmp_path, data_dir):
    source = write(tmp_path / "text.txt", make_text())
    assert "text.txt" in error(prepare, replace(tiny, source=source, data_dir=str(tmp_path / data_dir)))
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == make_text()


@pytest.mark.parametrize("text, changes, names", [
    ("", {}, "text.txt"),
    ("\n \n\n", {}, "text.txt"),
    ("Only one document.\nOf two lines.", {}, "text.txt"),
    ("The same.\n\nThe same.\n\nThe same.", {}, "text.txt"),
    (make_text(4), {"min_count": 10**6}, "min_count"),
    (make_text(4), {"vocab_size": 256}, "vocab_size"),
    (make_text(4), {"tokenizer": "gpt3"}, "tokenizer"),
    (make_text(4), {"fact_count": 3}, "fact_count"),
    (make_text(4), {"fact_count": 8, "fact_frequencies": (0,)}, "fact_frequencies"),
    (make_text(4), {"fact_count": 8, "pivot": "xx", "fact_languages": ("xx",), "mix": {"xx": 1.0}}, "xx"),
    (make_text(4), {"targets": ("de",)}, "targets"),
    (make_text(4), {"source": "no/such/text.txt"}, "no/such/text.txt"),
])
def test_what_cannot_be_prepared_says_why_in_one_line(tiny, tmp_path, text, changes, names):
    source = write(tmp_path / "text.txt", text)
    config = replace(tiny, data_dir=str(tmp_path / "data"), **{"source": source, "fact_count": 0, **changes})
    assert names in error(prepare, config)
    assert not Path(config.data_dir).exists()


# ---- reading it back ----

def change(path: Path, new) -> None:
    path.write_bytes(new(path.read_bytes()))


def change_meta(folder: Path, **changes) -> None:
    """A meta.json that says something else, and is whole."""
    meta = json.loads((folder / "meta.json").read_text()) | changes
    meta = {key: value for key, value in meta.items() if value is not None}
    (folder / "meta.json").write_text(json.dumps(meta | {"digest": digest_of(meta)}))


def swap_two_tokens(raw: bytes) -> bytes:
    lines = [line.split() for line in raw.splitlines()]
    lines[300][0], lines[301][0] = lines[301][0], lines[300][0]
    return b"".join(b" ".join(line) + b"\n" for line in lines)


def another_table(folder: Path) -> None:
    table = Folder(str(folder)).table
    replace(table, tokens=table.tokens[::-1]).save(str(folder / "table.npz"))


DAMAGE = {
    "no folder": ("", lambda f: shutil.rmtree(f)),
    "meta of another format": ("meta.json", lambda f: change_meta(f, format=0)),
    "meta not JSON": ("meta.json", lambda f: (f / "meta.json").write_text("format 1")),
    "meta cut short": ("meta.json", lambda f: change(f / "meta.json", lambda b: b[:-5])),
    "meta not text": ("meta.json", lambda f: (f / "meta.json").write_bytes(b"\xff\xfe")),
    "meta edited": ("meta.json", lambda f: change(f / "meta.json", lambda b: b.replace(b'"V": 400', b'"V": 401'))),
    "meta a list": ("meta.json", lambda f: (f / "meta.json").write_text("[1]")),
    "meta without V": ("meta.json", lambda f: change_meta(f, V=None)),
    "meta without made_from": ("meta.json", lambda f: change_meta(f, made_from=None)),
    "meta without languages": ("meta.json", lambda f: change_meta(f, offsets={})),
    "meta with another dtype": ("meta.json", lambda f: change_meta(f, dtype="pear")),
    "meta with pointers for ids": ("meta.json", lambda f: change_meta(f, dtype="O")),
    "meta with negative ids": ("meta.json", lambda f: change_meta(f, dtype="<i2")),
    "meta with a V that is no number": ("meta.json", lambda f: change_meta(f, V="400")),
    "meta with an end of text beyond V": ("meta.json", lambda f: change_meta(f, end_of_text=400)),
    "meta with digests that are none": ("meta.json", lambda f: change_meta(f, digests=[])),
    "meta without counts": ("meta.json", lambda f: change_meta(f, splits={"train": {"en": {}}, "val": {}, "facts": {}})),
    "bin missing": ("en_train.bin", lambda f: (f / "en_train.bin").unlink()),
    "bin cut short": ("en_train.bin", lambda f: change(f / "en_train.bin", lambda b: b[:-2])),
    "bin too long": ("clone_val.bin", lambda f: change(f / "clone_val.bin", lambda b: b + b"\0\0")),
    "bin empty": ("clone_train.bin", lambda f: (f / "clone_train.bin").write_bytes(b"")),
    "foreign bin": ("en_val.bin", lambda f: change(f / "en_val.bin", lambda b: b[2:] + b[:2])),
    "one bit": ("en_train.bin", lambda f: change(f / "en_train.bin", lambda b: b[:999] + bytes([b[999] ^ 1]) + b[1000:])),
    "alignment missing": ("en_train.align.bin", lambda f: (f / "en_train.align.bin").unlink()),
    "alignment cut short": ("en_facts.align.bin", lambda f: change(f / "en_facts.align.bin", lambda b: b[:-4])),
    "foreign alignment": ("en_val.align.bin", lambda f: change(f / "en_val.align.bin", lambda b: b[4:] + b[:4])),
    "table missing": ("table.npz", lambda f: (f / "table.npz").unlink()),
    "table cut short": ("table.npz", lambda f: change(f / "table.npz", lambda b: b[:1000])),
    "foreign table": ("table.npz", another_table),
    "tokenizer missing": ("tokenizer.tiktoken", lambda f: (f / "tokenizer.tiktoken").unlink()),
    "tokenizer cut short": ("tokenizer.tiktoken", lambda f: change(f / "tokenizer.tiktoken", lambda b: b"".join(b.splitlines(True)[:-1]))),
    "tokenizer cut inside a line": ("tokenizer.tiktoken", lambda f: change(f / "tokenizer.tiktoken", lambda b: b[:-4])),
    "foreign tokenizer": ("tokenizer.tiktoken", lambda f: change(f / "tokenizer.tiktoken", swap_two_tokens)),
}


def read_everything(data_dir: str) -> None:
    dataset = Folder(data_dir)
    for split in ("train", "val", "facts"):
        dataset.tokens("en", split), dataset.align(split)
        if split != "facts":
            dataset.tokens("clone", split)
    dataset.table, dataset.encoding, facts_of(dataset.settings)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_and_what_the_message_says_mends_it(tiny, tmp_path, damage):
    folder = tmp_path / "data"
    shutil.copytree(tiny.data_dir, folder)
    read_everything(str(folder))
    name, do = DAMAGE[damage]
    do(folder)
    message = error(read_everything, str(folder))
    assert name in message and str(folder) in message and "data.py" in message
    if "delete" in message:
        shutil.rmtree(folder)
    prepare(replace(tiny, data_dir=str(folder)))
    read_everything(str(folder))
    assert contents(str(folder)) == contents(tiny.data_dir)


def test_a_bin_cut_short_says_how_many_bytes_there_should_be(tiny, tmp_path):
    shutil.copytree(tiny.data_dir, tmp_path / "data")
    size = (tmp_path / "data" / "en_train.bin").stat().st_size
    change(tmp_path / "data" / "en_train.bin", lambda raw: raw[:-2])
    assert f"expected {size} bytes by meta.json, found {size - 2}" in error(read_everything, f"{tmp_path}/data")


def test_files_without_meta_are_no_prepared_data(tiny, tmp_path):
    shutil.copytree(tiny.data_dir, tmp_path / "data")
    (tmp_path / "data" / "meta.json").unlink()
    assert error(Folder, f"{tmp_path}/data").startswith(f"no prepared data in {tmp_path}/data")


def test_a_text_that_is_not_there_names_those_that_are(tiny):
    dataset = Folder(tiny.data_dir)
    assert "en, clone" in error(dataset.tokens, "fr", "train")
    assert "train, val, facts" in error(dataset.tokens, "en", "test")
    assert "data.py" not in error(dataset.tokens, "clone", "facts")  # running it again would not help


def test_the_fingerprint_follows_the_contents(tiny, tmp_path):
    same, other = replace(tiny, data_dir=str(tmp_path / "same")), replace(tiny, data_dir=str(tmp_path / "other"), min_count=4)
    prepare(same)
    prepare(other)
    assert Folder(same.data_dir).fingerprint == Folder(tiny.data_dir).fingerprint != Folder(other.data_dir).fingerprint


def test_a_digest_reads_all_of_a_small_file_and_samples_a_large_one(tmp_path):
    path = tmp_path / "x.bin"
    digests = set()
    for size, at in ((1000, None), (1001, None), (1000, 0), (1000, 500), (1000, 999), (10_000, None), (10_000, 0), (10_000, 9999)):
        raw = bytearray(size)
        if at is not None:
            raw[at] = 1
        path.write_bytes(raw)
        digests.add(file_digest(str(path), blocks=10, block=100))
    assert len(digests) == 8
    with open(path, "wb") as f:
        f.truncate(100 * 2**30)  # sparse
    file_digest(str(path))
    whole = set()
    for at in range(0, 10_000, 997):  # some of them between the blocks
        raw = bytearray(10_000)
        raw[at] = 1
        path.write_bytes(raw)
        whole.add(file_digest(str(path), blocks=0))
    assert len(whole) == 11
