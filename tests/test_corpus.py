"""
From text to an alignment table: readers and their errors, the prose of documentation, words, the vocabulary,
dictionaries, and the whole preparation for two real languages at once.
"""

import gzip
import itertools
import json
import lzma
import os
import pickle
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import regex
from nltk.tokenize import NLTKWordTokenizer

import eval as evaluation
import prealign
import train as training
from conftest import make_text, overrides
from corpus import builtin, dictionary
from corpus import words as surface_words
from corpus.dictionary import as_text_has_them, coverage, keep_short, read, translations
from corpus.folder import Folder
from corpus.readers import documents, fingerprint
from corpus.table import Table, make_table
from corpus.tokenizer import PATTERN, encode
from corpus.words import CHUNK, aligned_surfaces, count_chunks, count_surfaces, words_of_chunk
from data import Sampler, prepare
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
try:
    from backports import zstd
    PACK[".zst"] = lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
except ImportError:  # optional
    pass


def write(path: Path, content: bytes | str) -> str:
    """`content` at `path`, compressed as the name asks; bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else PACK.get(path.suffix, bytes)(content.encode()))
    return str(path)


def rows(*texts: str) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def error(function, *arguments) -> str:
    """The one line with which a function refuses its arguments."""
    with pytest.raises(UserError) as e:
        function(*arguments)
    assert "\n" not in str(e.value)
    return str(e.value)


def read_error(source) -> str:
    return error(lambda: list(documents(str(source))))


# ---- files ----

@pytest.mark.parametrize("packed", PACK)
def test_both_formats_make_the_same_documents(tmp_path, packed):
    expected = ["One line.\n  And its second.", "Two."]
    txt = write(tmp_path / f"a.txt{packed}", "\n\nOne line.  \n  And its second.\n \t\n\n\nTwo.")
    jsonl = write(tmp_path / f"a.jsonl{packed}", rows("One line.\n\n\n  And its second.\n", " \n", "Two.  ") + "\n")
    assert list(documents(txt)) == list(documents(jsonl)) == expected


def test_windows_line_ends_byte_order_mark_and_nfc(tmp_path):
    txt = write(tmp_path / "a.txt", "\ufeffCafe\u0301\r\nau lait\r\n\r\n\ufeffnext\r\n".encode())
    jsonl = write(tmp_path / "a.jsonl", ("\ufeff" + rows("Cafe\u0301\r\n\r\nau lait")).encode())
    # A mark is one at the start of a file only.
    assert list(documents(txt)) == ["Caf\u00e9\nau lait", "\ufeffnext"]
    assert list(documents(jsonl)) == ["Caf\u00e9\nau lait"]


def test_files_are_read_in_order_of_their_names_or_shuffled(tmp_path):
    names = ["10.txt", "9.txt", "a.jsonl", "b/1.TXT", "b/2.txt.xz", "c/d/0.txt.gz"]
    for name in (*names[::-1], ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name, rows(name) if "jsonl" in name else name)
    write(tmp_path / "README.md", "no")
    write(tmp_path / "other/a[1].txt", "brackets")
    assert list(documents(str(tmp_path))) == list(documents(f"{tmp_path}/")) == [*names, "brackets"]
    assert list(documents(f"{tmp_path}/[0-9]*.txt")) == ["10.txt", "9.txt"]
    assert list(documents(f"{tmp_path}/**/*0.txt*")) == ["10.txt", "c/d/0.txt.gz"]
    # A file of that name comes before a pattern.
    assert list(documents(f"{tmp_path}/other/a[1].txt")) == ["brackets"]
    orders = [list(documents(str(tmp_path), shard_seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and {*orders[0]} == {*orders[2]} == {*names, "brackets"}


def test_files_are_streamed_and_other_encodings_refused(tmp_path):
    path = write(tmp_path / "a.txt", b"line\n\n" * 100_000 + b"un caf\xe9\n")
    reader = documents(path)
    # The last line is wrong, and has not been looked at yet.
    assert next(reader) == "line"
    with pytest.raises(UserError, match="a.txt:200001: .*utf-8"):
        list(reader)


def test_files_that_are_not_there(tmp_path):
    # Folders are not files, whatever they are called.
    (tmp_path / "sub.txt").mkdir()
    other = write(tmp_path / "b.csv", "no")
    for source in (str(tmp_path / "missing.txt"), str(tmp_path / "*.txt*"), str(tmp_path), other):
        assert source in read_error(source)
    write(tmp_path / "a.txt", "fine")
    os.symlink(tmp_path / "gone", tmp_path / "c.txt")
    for function in (read_error, lambda source: error(fingerprint, source)):
        assert f"{tmp_path}/c.txt" in function(str(tmp_path))


def parquet(path: Path, **columns: list) -> bytes:
    """A parquet file of these columns, and its bytes."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [".txt.gz", ".txt.xz", ".txt.zst", ".parquet"])
@pytest.mark.parametrize("damage", ["cut short", "damaged", "foreign"])
def test_a_broken_file_is_named(tmp_path, kind, damage):
    text, packed = os.urandom(50_000).hex(), os.path.splitext(kind)[1]
    if kind == ".parquet":
        data = parquet(tmp_path / "a.parquet", text=[text])
    else:
        data = PACK[packed](text.encode()) if packed in PACK else pytest.skip("needs backports.zstd")
    damaged = data[:9000] + bytes(b ^ 255 for b in data[9000:9200]) + data[9200:]
    content = {"cut short": data[:-2000], "damaged": damaged, "foreign": b"plain text\n"}[damage]
    if (kind, damage) == (".parquet", "damaged"):
        # In its description, which ends it: pages of text have no checksum.
        content = data[:-200] + bytes(b ^ 255 for b in data[-200:-8]) + data[-8:]
    path = write(tmp_path / f"a{kind}", content)
    assert read_error(path).startswith(path)


@pytest.mark.parametrize("line", ['{"text": "cut', '["text"]', "1", "{}", '{"text": null}', r'{"text": "\ud800"}',
                                  "[" * 100_000])
def test_wrong_json_lines(tmp_path, line):
    path = write(tmp_path / "a.jsonl", rows("fine") + "\n" + line + "\n" + rows("fine"))
    message = read_error(path)
    assert message.startswith(f"{path}:3: ") and len(message) < len(path) + 300


@pytest.mark.parametrize("name, content", [("a.txt", " \n\n\t\n"), ("a.jsonl", rows("", " \n ")), ("a.txt.gz", "")])
def test_empty_corpus(tmp_path, name, content):
    assert "no text" in read_error(write(tmp_path / name, content))


@pytest.mark.skipif(".zst" not in PACK, reason="needs backports.zstd")
def test_zst_in_several_frames_and_with_a_large_window(tmp_path):
    large = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    frames = PACK[".zst"](b"one\n\ntwo\n"), PACK[".zst"](b"more of two\n\n"), large.compress(b"three") + large.flush()
    assert list(documents(write(tmp_path / "a.txt.zst", b"".join(frames)))) == ["one", "two\nmore of two", "three"]


def test_parquet_as_culturax_has_it(tmp_path):
    path = tmp_path / "en_part_00000.parquet"
    parquet(path, text=["one\n\n still one ", None, "cafe\u0301"], url=["a", "b", "c"])
    assert list(documents(str(tmp_path))) == ["one\n still one", "caf\u00e9"]
    for columns in ({"text": [1, 2]}, {"content": ["a"]}):
        parquet(path, **columns)
        assert str(path) in read_error(tmp_path) and 'column "text"' in read_error(tmp_path)


@pytest.mark.parametrize("name, package", [("a.parquet", "pyarrow"), ("a.txt.zst", "backports.zstd")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    write(tmp_path / name, b"something")
    for module in (package, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    assert f"{name}" in read_error(tmp_path) and "pip install" in read_error(tmp_path)


def test_fingerprint_follows_the_bytes_of_files(tmp_path):
    b, a = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.txt.gz", "a")
    first = fingerprint(str(tmp_path))
    assert list(first) == [a, b] and fingerprint(str(tmp_path)) == first
    write(tmp_path / "b.txt", "c")
    second = fingerprint(str(tmp_path))
    assert second[a] == first[a] and second[b] != first[b]


# ---- the prose of documentation ----

DOCUMENTATION = """Return the ``parts`` of a path *that* the
    caller has asked :func:`~os.path.join` for.

    Parameters
    ----------
    x : array_like, optional
        The values to be sorted, which
        may be in any order.

    Args:
        dim (int): The description of a name in the same line is left out.

    - The first of the `items <http://a.b>`_ is
      wrapped to two lines.
    2. The second of them has a number.
    :param name: The name that the new file is given.

    >>> f(1)
    This is the output of an example.

    x = f(a) is the result of that.
    This has no end and is not a sentence

    .. note:: This is something that the reader should know, even where it is
       longer than a line.
    """
PROSE = """Return the parts of a path that the caller has asked os.path.join for.
The values to be sorted, which may be in any order.
The first of the items is wrapped to two lines.
The second of them has a number.
The name that the new file is given.
This is something that the reader should know, even where it is longer than a line."""


@pytest.mark.parametrize("other", [
    "Too short to keep.", "The FooBar and the BazQux of FOO_X and NewSpam2.", "a | b | the table of the things here.",
    r"The value of \alpha is a part of the model.", "See https://example.com/ for a list of the values.",
    "Title of the section to come\n============="])
def test_what_is_not_prose_goes(other):
    assert "\n".join(builtin.prose(DOCUMENTATION)) == PROSE
    text = f"The text before it is a sentence.\n\n{other}\n\nNotes\n-----\nThe text after it is another sentence."
    assert builtin.prose(text) == ["The text before it is a sentence.", "The text after it is another sentence."]


def test_harvest_of_packages(tmp_path):
    """A document for each file, in order, and each paragraph once; tests and broken files do not count."""
    call = b'add_docstr(f, r"""f(x) -> y\n\nThe documentation of a function is passed to a call.""")\n'
    long = b'"""%s"""\n' % " ".join(["This is a long paragraph of a module, which makes it long enough."] * 4).encode()
    write(tmp_path / "p/a.py", b'"""' + DOCUMENTATION.encode() + b'"""\n' + call)
    write(tmp_path / "p/b/__init__.py", call + long)
    write(tmp_path / "p/c.py", b'"""This is the only paragraph of a module, and it is short."""')
    write(tmp_path / "p/tests/d.py", long.replace(b"long", b"tested"))
    write(tmp_path / "p/e.py", b"def broken(")
    folder = str(tmp_path / "p")
    found = builtin.harvest([folder], workers=1)
    assert found == [PROSE + "\nThe documentation of a function is passed to a call.", long.decode().strip('\n"')]
    assert builtin.harvest([folder, folder], workers=2) == found


@pytest.mark.slow
def test_builtin_is_large_enough_and_prose():
    found = list(documents("builtin"))
    paragraphs = [paragraph for text in found for paragraph in text.split("\n")]
    assert sum(len(text.encode()) for text in found) > 5_000_000 and len(set(paragraphs)) == len(paragraphs) > 40_000
    words = re.findall(r"[a-z]+", " ".join(paragraphs).lower())
    assert 0.05 < words.count("the") / len(words) < 0.12
    assert not any(re.search(r">>>|::|``|:param|^\s|\s$|  ", paragraph) for paragraph in paragraphs)


# ---- words ----

# Letters of one to four bytes, digits, every quotation mark, punctuation, and whitespace of all kinds.
ALPHABET = [*"abn't12 .,-?!()$%", *"éßжñ中文😀", *"\"'`“”‘’«»„", *" \n\t\r\v\f\x1c\x85\xa0\u2003\u2028\u3000"]


def surfaces(text: str) -> list[str]:
    return [surface for chunk in CHUNK.findall(text) for _, _, surface in words_of_chunk(chunk)]


@pytest.mark.parametrize("text, words", [
    (" house", [" house"]), (" House,", [" House", ","]), (" don't", [" do", "n't"]), ("it's", ["it", "'s"]),
    (" cannot", [" can", "not"]), (' "so"', [' "', "so", '"']), (" ``so''", [" ``", "so", "''"]), ("...", ["..."]),
    ("“so”", ["“", "so", "”"]), ("(2.5%)", ["(", "2.5", "%", ")"]), ("a \n\nb", ["a", "\n\n", "b"]), (" \t\u3000", []),
    # Full stops that end sentences, and those of abbreviations.
    (" end.", [" end", "."]), (" no.", [" no", "."]), (" I.", [" I", "."]), (" MCMR.", [" MCMR", "."]),
    (" etc.", [" etc", "."]), (" first.", [" first", "."]), (" it'S.", [" it", "'S", "."]), (" Mr.,", [" Mr.", ","]),
    (" (Mr.", [" (", "Mr."]), (" ex-Gov.", [" ex-Gov."]), (" Mr..", [" Mr", ".."]), (" 1.b.", [" 1.b."])])
def test_words_of_a_text(text, words):
    assert surfaces(text) == words


def test_words_are_the_bytes_they_say_in_order_with_nothing_between():
    draw = random.Random(1)
    for _ in range(1000):
        text = "".join(draw.choices(ALPHABET, k=draw.randint(0, 40)))
        assert "".join(CHUNK.findall(text)) == text
        for chunk in CHUNK.findall(text):
            raw, last = chunk.encode(), 0
            for first, end, surface in words_of_chunk(chunk):
                assert last == first < end and raw[first:end].decode() == surface
                last = end
            assert chunk.isspace() or last == len(raw)


def test_plain_chunks_are_cut_as_nltk_cuts_them(monkeypatch):
    contractions = ["cannot", "gimme", "gonna", "gotta", "lemme", "wanna", "more'n", "d'ye", "'tis", "'twas"]
    words = [*make_text(3).split(), *contractions, *map(str.upper, contractions), "naïve", "日本", "Straße", "слово",
             "كتاب", "ﬁne", "e\u0301t", "well-known", "not-gonna-be", "mother-in-law", "-", "a-", "x--y", "v2",
             "snake_case", "it's", "U.S"]
    chunks = [" " + word + mark for word in words for mark in ("", *",.;:!?", "...", "?!", ".,", '"', "'")]
    parts = [*"aNntsI'-—’\"“”„()[],.;:!?»", "don", "won", "CAN", "it", "is", "n't", "N'T", "'s", "'S", "'ll", "'re",
             "'VE", "'d", "--", "...", "日本", "well-known", "été"]
    draw = random.Random(0)
    chunks += [space + "".join(draw.choices(parts, k=draw.randint(1, 6))) for space in ("", " ") for _ in range(5000)]
    fast = [words_of_chunk(chunk) for chunk in chunks]
    assert sum(surface_words.PLAIN.fullmatch(chunk) is not None for chunk in chunks) > len(chunks) / 10
    monkeypatch.setattr(surface_words, "PLAIN", re.compile("(?!)"))
    assert fast == [words_of_chunk(chunk) for chunk in chunks]


@pytest.mark.parametrize("sentence", [
    "Mr. and Mrs. Brown met Dr. Jones in St. Ives, and Prof. C. S. Lewis too.",
    '"Mr. Brown," said Capt. Ahab (Sgt. Pepper did not).',
    "The U.S. army came at 5 p.m. on Sept. 3, i.e. late, with J.R.R. Tolkien Jr. and Co. as in Fig. 2.",
    "He and I. Newton, Ph.D. and M.A. at once, said: --Mrs. Bell is here."])
def test_abbreviations_keep_their_full_stop_as_in_nltks_sentences(sentence):
    """NLTK sees the whole sentence, and takes off the full stop that ends it."""
    expected = ['"' if word in ("``", "''") else word for word in NLTKWordTokenizer().tokenize(sentence)]
    # Of a capital alone only "I" may end a sentence, so that "I." is always cut.
    whole = [part for word in expected for part in (("I", ".") if word == "I." else (word,))]
    assert [surface.strip() for surface in surfaces(sentence)] == whole


def test_surfaces_are_counted_as_they_stand():
    counts = count_surfaces(count_chunks(["The house, the house.\nHouse", "house", "house, the house."]))
    assert counts == {"The": 1, " house": 3, ",": 2, " the": 2, ".": 2, "\n": 1, "House": 1, "house": 2}


def test_words_seen_more_often_than_min_count_enter_the_table():
    assert aligned_surfaces(Counter({" ten": 10, " eleven": 11}), 10) == [" eleven"]
    # All forms of a word are counted together, and the most frequent form comes first.
    assert aligned_surfaces(Counter({"so": 1, " so": 4, "So": 3, " So": 2, " it": 4}), 4) == [" so", "So", " So", "so"]
    counts = [("b", 5), (" b", 5), ("a", 5), (" a", 7), ("\n", 6), ("é", 5)]
    for order in (counts, counts[::-1]):
        assert aligned_surfaces(Counter(dict(order)), 4) == [" a", "\n", " b", "a", "b", "é"]
    assert "min_count=3" in error(aligned_surfaces, Counter({" rare": 2, "rare": 1, " once": 1}), 3)


# ---- the vocabulary ----

def test_pieces_end_where_words_do():
    """Every word, with the space before it, is whole pieces, however many spaces and line ends stand around it."""
    assert regex.findall(PATTERN, "He came.  The dog \n\t ran.") == [
        "He", " came", ".", " ", " The", " dog", " ", "\n", "\t", " ran", "."]
    draw = random.Random(0)
    for _ in range(200):
        gaps = iter(lambda: draw.choice([" ", "  ", "   ", "\t", " \t ", "\n", "\n\n ", " \n"]), None)
        text = "".join(word + next(gaps) for word in make_text(1, draw.random()).split())
        ends = set(itertools.accumulate(map(len, regex.findall(PATTERN, text))))
        at = 0
        for chunk in CHUNK.findall(text):
            for first, end, surface in words_of_chunk(chunk):
                assert at + first in ends | {0} and at + end in ends, (surface, text[:at + end][-40:])
            at += len(chunk)


# ---- the table ----

WORDS = [[[np.array([5, 6])], [np.array([15])], [np.array([25, 26, 27]), np.array([28])]],
         [[np.array([7])], [], [np.array([29])]],
         [[np.array([8])], [], []]]


def example() -> Table:
    return make_table(WORDS, [30, 20, 10], ("en", "de", "zh"))


def test_the_words_of_every_entry(tmp_path):
    path = str(tmp_path / "table.npz")
    example().save(path)
    for table, K in ((example(), 3), (Table.load(path), 3), (example().top(1.0), 3), (example().top(0.5), 2)):
        assert table.languages == ("en", "de", "zh") and table.frequency.tolist() == [30, 20, 10][:K]
        for k, entry in enumerate(WORDS[:K]):
            for language, group in enumerate(entry):
                assert [table.word(w).tolist() for w in table.words(k, language)] == [word.tolist() for word in group]


class Unsafe:
    ran = False

    def __reduce__(self):
        return setattr, (Unsafe, "ran", True)


@pytest.mark.parametrize("damage", ["missing", "cut short", "damaged", "foreign", "code inside"])
def test_a_file_that_is_no_table(tmp_path, damage):
    path = tmp_path / "table.npz"
    example().save(str(path))
    whole, at = path.read_bytes(), path.read_bytes().index(example().tokens.tobytes())
    if damage == "missing":
        path.unlink()
    elif damage == "code inside":
        arrays = {name: getattr(example(), name) for name in ("languages", "frequency", "groups", "offsets")}
        np.savez(path, **arrays, tokens=np.array([Unsafe()], dtype=object))
    else:
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:]
        path.write_bytes({"cut short": whole[:-1], "damaged": changed, "foreign": pickle.dumps(Unsafe())}[damage])
    assert str(path) in error(Table.load, str(path))
    assert not Unsafe.ran


# ---- dictionaries ----

def test_muse_files_with_spaces_and_tables_with_tabs(tmp_path):
    write(tmp_path / "1.txt", "house haus\nhouse\thause\nhouse haus\n\nsea salt\tMeersalz\ntaxi taxi\n")
    write(tmp_path / "2.txt.gz", "small klein\r\n")
    assert read(str(tmp_path / "*")) == {"house": ["haus", "hause"], "sea salt": ["Meersalz"], "small": ["klein"]}
    path = write(tmp_path / "de-en.txt", "haus house\ngeba\u0308ude\thouse\n")
    # Composed, as text is.
    assert read(path, target_first=True) == {"house": ["haus", "gebäude"]}


def test_lines_that_are_no_pairs(tmp_path, capsys):
    """A few are counted and shown; with more the file is refused, and the first is named."""
    bad = ["house", "a house haus", "house\thaus\tbuilding", "house\t"]
    path = write(tmp_path / "some.txt", "small klein\n" + "\n".join(bad) + "\n")
    assert read(path) == {"small": ["klein"]}
    assert f"left out 4 lines, the first: {path}:2: " in capsys.readouterr().out
    path = write(tmp_path / "many.txt", "small klein\n" + "\n".join(bad * 3) + "\n")
    assert error(read, path).startswith(f"{path}:2: ")
    for content in ("house\n", "taxi taxi\n"):
        assert "none.txt" in error(read, write(tmp_path / "none.txt", content))
    assert "missing.txt" in error(read, str(tmp_path / "missing.txt"))


def test_case_is_that_of_the_targets_text():
    counts = dictionary.count_words(["Das Haus ist klein. Ein Haus, zwei Häuser; Kleine Häuser sind klein. हिन्दी भाषा"])
    # Marks belong to their word.
    assert counts["हिन्दी"] == counts["भाषा"] == 1
    entries = {"house": ["haus"], "houses": ["häuser"], "small": ["klein", "winzig"]}
    assert as_text_has_them(entries, counts) == {"house": ["Haus"], "houses": ["Häuser"], "small": ["klein"]}


def test_words_without_spaces_are_cut_off_longest_first():
    known = frozenset({"时间", "时", "间谍", "他"})
    assert dictionary.count_known(["时间谍时, 他他们", "时间"], known) == {"时间": 2, "时": 1, "他": 2}


def test_the_most_common_translations_are_kept():
    counts = Counter({"die": 90, "der": 80, "den": 30, "des": 4, "Haus": 40, "altes": 10})
    entries = {"the": ["den", "der", "die", "dem", "des"], "old house": ["altes haus", "altes Haus", "haus"],
               "tree": ["baum", "Baum"]}
    assert as_text_has_them(entries, counts, most=2) == {
        "the": ["die", "der"], "old house": ["Haus", "altes Haus"], "tree": ["baum", "Baum"]}
    # "des" is below a twentieth of "die".
    assert as_text_has_them(entries, counts)["the"] == ["die", "der", "den"]
    assert as_text_has_them({"the": ["b", "a", "c"]}, Counter(), most=2) == {"the": ["b", "a"]}


@pytest.mark.parametrize("surface, expected", [
    ("house", ["Haus", "Heim"]), (" House", [" Haus", " Heim"]), ("HOUSE", ["HAUS", "HEIM"]), (" small", [" klein"]),
    ("Small", ["Klein"]), ("May", ["Mai"]), ("may", ["dürfen"]), (" I", [" ich"]), ("tree", []), ("Tree", [])])
def test_a_translation_has_the_capitals_and_the_space_of_the_word(surface, expected):
    entries = {"house": ["Haus", "Heim"], "small": ["klein"], "May": ["Mai"], "may": ["dürfen"], "i": ["ich"]}
    assert translations(surface, "de", entries) == expected
    assert translations(surface, "zh-Hans", entries) == [word.strip() for word in expected]
    assert translations(surface, "clone", {}) == [surface]


def test_coverage_by_hand():
    """Of 100 words with letters 50 have an entry; of 7 pairs 3 are rarer, "tree" is not in the text, "Haus" long."""
    counts = Counter({" house": 30, "House": 10, " Mr": 10, " small": 30, " of": 20, ".": 99})
    common = {"house": ["Haus", "Heim"], "Mr": ["Herr"], "tree": ["Baum"]}
    entries = common | {"house": ["Haus", "Heim", "Bau", "Hof", "Stall"]}
    rows = [(surface, "de", word) for surface in counts for word in translations(surface, "de", common)]
    rows.insert(0, (" small", "zh", "小"))
    short = [row for row in rows if row[2].strip() != "Haus"]
    assert coverage("de", rows, short, counts, entries, common) == {
        "running_words": pytest.approx(0.5), "pairs": 7, "pairs_in_the_table": 2, "rarer_pairs_left_out": 3,
        "pairs_of_no_entry": 1, "longer_pairs_left_out": 1}
    assert coverage("zh", rows, rows, counts, {}, {}) == {"running_words": pytest.approx(0.3)}


@pytest.mark.parametrize("line", [
    "1\t2\thouse\tde\tHaus", '1\t2\t"house"\tfr\t"maison"', '1\t2\t"house"\t"Haus"', '1\t2\t"a"\tclone\t"b"',
    '1\t2\t"a"\tde\t""', '1\t2\t["a"]\tde\t"b"'])
def test_a_line_that_is_none_of_a_table_is_named(tmp_path, line):
    path = write(tmp_path / "table.tsv", "\t".join(dictionary.COLUMNS) + "\n" + line + "\n")
    assert error(dictionary.read_table_tsv, path, ("de", "clone")).startswith(f"{path}:2: ")


# ---- two real languages, prepared ----

def german(word: str) -> str:
    return word[::-1] + "en"


def chinese(word: str) -> str:
    return "".join(chr(0x4E00 + ord(c)) for c in word)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Config:
    """English with two targets: every word has a translation; every third German word has a capital in text alone."""
    folder = tmp_path_factory.mktemp("world")
    english = make_text(80)
    words = sorted({w.lower() for w in re.findall(r"[A-Za-z]+", english)})
    nouns = set(words[::3])

    def translated(seed: int, translate_word, separator: str) -> str:
        documents = ([translate_word(w.lower()) for w in re.findall(r"[A-Za-z]+", document)]
                     for document in make_text(80, seed).split("\n\n"))
        return "\n\n".join(separator.join(document) + "." for document in documents)

    write(folder / "texts/en.txt", english)
    write(folder / "texts/de.txt", translated(1, lambda w: german(w).capitalize() if w in nouns else german(w), " "))
    write(folder / "texts/zh.txt", translated(2, chinese, ""))
    write(folder / "en-de.txt", "".join(f"{w} {german(w)}\n" for w in words))
    write(folder / "en-zh.txt", "".join(f"{w}\t{chinese(w)}\n" for w in words))
    config = Config(
        data_dir=str(folder / "data"), out_dir=str(folder / "out"), source=str(folder / "texts" / "{language}.txt"),
        targets=("de", "zh"), dictionary=str(folder / "en-{language}.txt"), vocab_size=500, min_count=3,
        val_fraction=0.1, workers=1, fact_count=8, fact_frequencies=(3,), mix={"en": 0.5, "de": 0.25, "zh": 0.25},
        batch_size=8, micro_batch_size=8, block_size=64, n_layer=1, n_head=2, n_embd=32, max_steps=12, stage1_steps=4,
        align_entries=16, device="cpu", dtype="fp32", eval_words=50, sample_count=4)
    prepare(config)
    return config


def text_of(config: Config, language: str) -> str:
    return Path(config.source_of(language)).read_text(encoding="utf-8")


def lines_of_table(config: Config) -> list[list[str]]:
    lines = Path(config.data_dir, "table.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]


def test_every_language_has_its_bins_and_all_share_a_vocabulary(world):
    data = Folder(world.data_dir)
    assert data.languages == ("en", "de", "zh") and set(data.offsets.values()) == {0} and data.vocab_size == data.V
    for language in data.languages:
        held_out, trained = (data.encoding.decode(data.tokens(language, split).tolist()).split("<|endoftext|>")[:-1]
                             for split in ("val", "train"))
        assert sorted(held_out + trained) == sorted(text_of(world, language).split("\n\n")) and held_out
    assert "'de'" in error(data.tokens, "de", "facts")


def test_table_has_translations_as_they_stand_in_text(world):
    data = Folder(world.data_dir)
    texts = {"de": set(re.findall(r"\w+", text_of(world, "de"))), "zh": text_of(world, "zh")}
    lower = {word.lower() for word in texts["de"]}
    seen = Counter()
    for _, _, surface, language, translation in lines_of_table(world):
        surface, translation = json.loads(surface), json.loads(translation)
        assert translation.startswith(" ") == (surface.startswith(" ") and language == "de")
        # Words at the beginning of a sentence have its capital instead.
        if surface.strip().islower() and (language == "zh" or translation.strip().lower() in lower):
            seen[language, translation.strip() in texts[language]] += 1
    assert seen["de", True] > 50 and not seen["de", False] and seen["zh", True] > 100
    in_arrays = [(k + 1, data.encoding.decode(data.table.word(w).tolist())) for k in range(len(data.table))
                 for language in (1, 2) for w in data.table.words(k, language)]
    assert in_arrays == [(int(line[0]), json.loads(line[4])) for line in lines_of_table(world)]


def test_another_dictionary_makes_the_folder_anew(world, tmp_path, capsys):
    again = replace(world, data_dir=str(tmp_path / "data"))
    prepare(again)
    share = Folder(again.data_dir).meta["coverage"]["de"]["running_words"]
    assert share > 0.5 and f"{100 * share:.0f}% of en's running words have an entry" in capsys.readouterr().out
    prepare(again)
    assert "is up to date" in capsys.readouterr().out
    for language in ("de", "zh"):
        lines = Path(world.dictionary_of(language)).read_text(encoding="utf-8")
        write(tmp_path / f"en-{language}.txt", lines + "unheard ungehört\n")
    prepare(replace(again, dictionary=str(tmp_path / "en-{language}.txt")))
    assert "is up to date" not in capsys.readouterr().out


def test_an_edited_table_takes_the_place_of_dictionaries(world, tmp_path):
    """Unedited, it makes the same table. A line taken out is a translation less; one more is one more."""
    original = Path(world.data_dir, "table.tsv").read_text(encoding="utf-8")
    made = replace(world, dictionary="", table=write(tmp_path / "table.tsv", original), data_dir=str(tmp_path / "same"))
    prepare(made)
    assert Path(made.data_dir, "table.tsv").read_text(encoding="utf-8") == original
    header, first, *lines = original.splitlines(keepends=True)
    fields = first.split("\t")
    assert fields[3] == "de"
    # At the end of the file: the order of lines does not count.
    lines.append("\t".join([*fields[:3], "zh", '"新"\n']))
    edited = replace(made, table=write(tmp_path / "edited.tsv", header + "".join(lines)),
                     data_dir=str(tmp_path / "edited"))
    prepare(edited)
    before, after = Folder(world.data_dir).table, Folder(edited.data_dir).table
    assert [len(before.words(0, l)) for l in (1, 2)] == [1, 1] and [len(after.words(0, l)) for l in (1, 2)] == [0, 2]


def test_long_translations_can_be_left_out(world, tmp_path):
    """Only translations of one token are left, and the entries that have any, in the same order."""
    short = replace(world, translation_tokens=1, data_dir=str(tmp_path / "short"))
    prepare(short)
    data = Folder(short.data_dir)
    found, whole = ([line[1:] for line in lines_of_table(config)] for config in (short, world))
    assert found == [line for line in whole if len(encode(data.encoding, json.loads(line[3]))) == 1]
    assert 0 < len(found) < len(whole) and len(data.table) == len({line[1] for line in found})
    assert data.meta["coverage"]["de"]["longer_pairs_left_out"] > 0
    # En-Clone's words are kept whole.
    rows = [("a", "de", "e"), ("b", "de", "q" * 9), ("q" * 9, "clone", "q" * 9)]
    assert keep_short(rows, data.encoding, 1) == [rows[0], rows[2]] and keep_short(rows, data.encoding, 0) == rows
    assert "translation_tokens=1" in error(keep_short, rows[1:2], data.encoding, 1)


def test_translations_are_spliced_whole_and_never_predicted(world, tmp_path):
    """The most common word, its German of two words and its Chinese, which has no spaces, in the rows of a step."""
    word = Counter(re.findall(r"[a-z]{3,}", text_of(world, "en"))).most_common(1)[0][0]
    two = {"de": f"{german('ba')} {german('der')}", "zh": f"{chinese('ba')}{chinese('der')}"}
    for language, translation in two.items():
        write(tmp_path / f"en-{language}.txt", f"{word}\t{translation}\n")
    config = replace(world, dictionary=str(tmp_path / "en-{language}.txt"), data_dir=str(tmp_path / "data"),
                     codeswitch_ratio=1.0, mix={"en": 1.0})
    prepare(config)
    data = Folder(config.data_dir)
    batch = Sampler(data, config).batch(np.arange(16))
    text = data.encoding.decode(batch.inputs.ravel().tolist())
    assert f" {two['de']}" in text and re.search(rf"(?<! ){two['zh']}", text)
    predicted = data.encoding.decode([t for t in batch.targets.ravel().tolist() if t >= 0])
    assert two["de"] not in predicted and not re.search("[\u4e00-\u9fff]", predicted)


def test_budget_and_share_of_a_target_reach_its_bins_and_the_vocabulary(world, tmp_path):
    changed = replace(world, budget={"de": 500.0}, tokenizer_share={"zh": 0.0}, data_dir=str(tmp_path / "data"))
    prepare(changed)
    before, after = Folder(world.data_dir), Folder(changed.data_dir)
    longest = max(map(len, text_of(world, "de").split("\n\n")))
    assert 500 <= len(after.tokens("de", "train")) <= 500 + longest < len(before.tokens("de", "train"))
    of_chinese = [sum(re.search(rb"[\xe4-\xe9]", token) is not None and len(token) >= 3
                      for token in data.encoding.token_byte_values()) for data in (before, after)]
    assert of_chinese[0] > 20 and of_chinese[1] == 0


def test_both_stages_and_the_evaluation_run_on_several_targets(world, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "StopSignal", lambda: SimpleNamespace(asked=False))  # pytest's own handlers stay
    config = replace(world, out_dir=str(tmp_path), method="prealign", init_from="align", codeswitch_ratio=0.3)
    prealign.main(overrides(config))
    training.main(overrides(config))
    result = evaluation.evaluate(config)
    assert list(result["lm"]) == ["en", "de", "zh"] and list(result["clka"]) == ["en->en", "en->de", "en->zh"]
    assert {s["language"] for s in result["similarity"]} == {"de", "zh"} == set(result["mixed"])
    assert result["lm"]["de"]["ppl"] == pytest.approx(result["lm"]["de"]["ppl_in_language"])
    assert "golden" in error(training.main, overrides(replace(config, method="golden", init_from="golden")))


def test_a_language_without_text_or_dictionary_is_an_error(world):
    assert "source" in error(prepare, replace(world, source="builtin"))
    assert "dictionary" in error(prepare, replace(world, dictionary=""))
    turned = replace(world, data_dir=world.data_dir + "3", dictionary_target_first=True)
    assert "dictionary_target_first" in error(prepare, turned)
    assert not Path(turned.data_dir).exists()
