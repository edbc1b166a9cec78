"""
From text to an alignment table: readers and their errors, the prose of documentation, words, the vocabulary,
languages, dictionaries, and the whole preparation for ten languages of ten scripts at once.
"""

import itertools
import json
import random
import re
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import regex
import rustbpe
from nltk.tokenize import NLTKWordTokenizer
from tiktoken.load import load_tiktoken_bpe

import eval as evaluation
import prealign
import train as training
from conftest import PACK, error, make_text, overrides, write
from corpus import builtin, dictionary, languages
from corpus import words as surface_words
from corpus.dictionary import as_text_has_them, coverage, read, translations
from corpus.folder import Folder
from corpus.readers import documents, fingerprint, normalise
from corpus.table import COLUMNS, keep_short, read_table_tsv
from corpus.tokenizer import PATTERN, encode, load_tokenizer, train_tokenizer
from corpus.words import CHUNK, aligned_surfaces, count_chunks, count_surfaces, words_of_chunk
from data import prepare
from runtime.config import Config
from runtime.errors import UserError


def json_lines(*texts: str | None) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def read_error(source) -> str:
    return error(lambda: list(documents(str(source))))


# ---- files ----
@pytest.mark.parametrize("packed", PACK)
def test_all_formats_make_the_same_documents(tmp_path, packed):
    """Blank lines, spaces at the ends of lines, line ends of all kinds, invisible and decomposed letters go."""
    txt = "\ufeff\n\nOne cafe\u0301.  \r\n  And its\xad second.\u2028Third\n \t\n\n\n\ufeffTwo.\u200b\n\nA\x85b\u2029c"
    lines = json_lines("One cafe\u0301.\r\n\n\n  And its\xad second.\rThird\n", " \n", None, "\ufeffTwo.  \ud800")
    # JSON allows line ends of Unicode within strings as they are.
    lines += '{"text": "A\x85b\u2029c"}\n'
    for name, text in (("a.txt", txt), ("a.jsonl", "\ufeff" + lines), ("a.json", lines + "\n")):
        path = write(tmp_path / f"{name}{packed}", text)
        assert list(documents(path)) == ["One caf\u00e9.\n  And its second.\nThird", "Two.", "A\nb\nc"]


@pytest.mark.parametrize("text, expected", [
    # Joiners are letters of Persian and of Indic scripts and parts of signs, and nothing between Latin letters.
    *((text, text) for text in ("می\u200cخواهم", "ක්\u200dර", "\U0001f469\u200d\U0001f52c")),
    ("Auf\u200clage", "Auflage"), ("e\ufeff\u0301", "é"), ("a\u2067b\u2069", "ab"),
    ("a" + " " * 999 + "b\n", "a" + " " * 999 + "b\n"), ("a" + " \t" * 500 + "\nb", "a \nb"),
    ("“I’m”", "“I’m”")])
def test_what_is_no_text_goes(text, expected):
    assert normalise(text) == expected


def test_files_are_read_in_order_of_their_names_and_linked_folders_once(tmp_path, capsys):
    names = ["10.txt", "9.txt", "a.jsonl", "b/1.TXT", "b/2.txt.xz", "c/d/0.txt.gz", "other/a[1].txt"]
    for name in (*names[::-1], ".hidden.txt", ".git/x.txt", "README.md"):
        write(tmp_path / "text" / name, json_lines(name) if "jsonl" in name else name)
    text = str(tmp_path / "text")
    assert list(documents(text)) == list(documents(f"{text}/")) == names
    # A path of that name comes before a pattern.
    assert list(documents(f"{text}/other/a[1].txt")) == list(documents(f"{text}/*/a[1].*")) == names[-1:]
    assert list(documents(f"{text}/**/*0.txt*")) == ["10.txt", "c/d/0.txt.gz"]
    assert list(documents(f"{text}/[b]/*.TXT")) == ["b/1.TXT"]
    write(tmp_path / "far/z.txt", "far")
    for link, folder in (("p", "far"), ("q", "far"), ("text/r", "far"), ("text/c/s", "text")):
        (tmp_path / link).symlink_to(tmp_path / folder)
    assert list(documents(text)) == [*names, "far"] and list(documents(str(tmp_path))).count("far") == 1
    assert len(fingerprint(text)) == 8 and "README.md" in capsys.readouterr().out
    (tmp_path / "text/gone").symlink_to(tmp_path / "nowhere")
    assert read_error(text).startswith(f"{text}/gone: ") and f"{text}/gone" in error(fingerprint, text)


def test_files_are_streamed_and_other_encodings_refused(tmp_path):
    reader = documents(write(tmp_path / "a.txt", b"line\n\n" * 100_000 + b"un caf\xe9\n"))
    # The last line is wrong, and has not been looked at yet.
    assert next(reader) == "line"
    with pytest.raises(UserError, match="a.txt:200001: .*utf-8"):
        list(reader)


@pytest.mark.parametrize("name, content, where", [
    *(("a.jsonl", json_lines("fine") + f"\n{line}\n", ":3: ") for line in (
        '{"text": "cut', '["text"]', "1", "{}", '{"text": 1}', "[" * 100_000)),
    ("a.txt", "version https://git-lfs.github.com/spec/v1\n", ":1: "), ("a.csv", "text of no kind", ": "),
    ("a.txt", " \n\n\t\n", ": "), ("a.jsonl", json_lines("", " \n "), ": "), ("a.txt.gz", "", ": ")])
def test_wrong_json_lines_and_what_is_no_text_are_named(tmp_path, name, content, where):
    path = write(tmp_path / name, content)
    assert read_error(path).startswith(f"{path}{where}") and len(read_error(path)) < len(path) + 300
    # A folder is no file, whatever it is called.
    (tmp_path / "sub.txt").mkdir()
    for source in (tmp_path / "sub.txt", tmp_path / "missing.txt", tmp_path / "s*.txt"):
        assert str(source) in read_error(source)


@pytest.mark.skipif(".zst" not in PACK, reason="needs backports.zstd")
def test_zst_in_several_frames_and_with_a_large_window(tmp_path):
    from backports import zstd
    large = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    frames = PACK[".zst"](b"one\n\ntwo\n"), PACK[".zst"](b"more of two\n\n"), large.compress(b"three") + large.flush()
    assert list(documents(write(tmp_path / "a.txt.zst", b"".join(frames)))) == ["one", "two\nmore of two", "three"]


def test_parquet_with_all_types_of_strings(tmp_path, monkeypatch):
    path, pyarrow = tmp_path / "en_part_00000.parquet", pytest.importorskip("pyarrow")
    from pyarrow import parquet
    categories = pyarrow.dictionary(pyarrow.uint32(), pyarrow.large_string())
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), categories):
        texts = pyarrow.array(["one\n\n still one ", None, "cafe\u0301"])
        texts = texts.dictionary_encode().cast(kind) if kind == categories else texts.cast(kind)
        parquet.write_table(pyarrow.table({"text": texts, "id": [1, 2, 3]}), path, row_group_size=2)
        assert list(documents(str(tmp_path))) == ["one\n still one", "caf\u00e9"]
    for columns in ({"text": [1, 2]}, {"content": ["a"]}, {"text": [["a"]]}):
        parquet.write_table(pyarrow.table(columns), path)
        assert str(path) in read_error(tmp_path) and 'column "text"' in read_error(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert str(path) in read_error(tmp_path) and "pip install" in read_error(tmp_path)


# ---- the prose of documentation ----
DOCUMENTATION = """Return the ``parts`` of a path *that* the
    caller has asked :func:`~os.path.join` for.

    - The first of the `items <http://a.b>`_ is
      wrapped to two lines.
    2. The second of them has a number.

    Too short to keep.

    Title of the section to come
    ============================
    The FooBar and the BazQux of FOO_X and NewSpam2.

    a | b | the table of the things here.

    See https://example.com/ for a list of the values.

    Header:
        The line under it is a paragraph of its own.
    Another:
        So is the one under this header.

    >>> f(1)
    This is the output of an example.

    .. note:: This is something that the reader should know, even where it is
       longer than a line.
    """
PROSE = """Return the parts of a path that the caller has asked os.path.join for.
The first of the items is wrapped to two lines.
The second of them has a number.
The line under it is a paragraph of its own.
So is the one under this header.
This is something that the reader should know, even where it is longer than a line."""


def test_harvest_of_packages(tmp_path, monkeypatch):
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
    monkeypatch.setattr(builtin, "PACKAGES", ("no_such_package",))
    assert "no_such_package" in error(builtin.documents, 1)


# ---- words ----
# Letters of one to four bytes, digits, every quotation mark, punctuation, and whitespace of all kinds.
ALPHABET = [*"abn't12 .,-?!()$%", *"éßжñ中文😀", *"\"'`“”‘’«»„", *" \n\t\r\v\f\x1c\x85\xa0\u2003\u2028\u3000"]
GAPS = [" ", "  ", "   ", "\t", " \t ", "\n", "\n\n ", " \n"]
LONG = "a-" * 100_000


def surfaces(text: str) -> list[str]:
    return [surface for chunk in CHUNK.findall(text) for _, _, surface in words_of_chunk(chunk)]


@pytest.mark.parametrize("text, words", [
    (" House,", [" House", ","]), (" don't", [" do", "n't"]), ("(2.5%)", ["(", "2.5", "%", ")"]),
    (" cannot", [" can", "not"]), (" ``so''", [" ``", "so", "''"]), ("a \n\nb\t", ["a", "\n\n", "b"]),
    # A curly apostrophe is one, and stays in the text.
    (" won’t", [" wo", "n’t"]), (" O’Brien’s;", [" O’Brien", "’s", ";"]), ("they’LL", ["they", "’LL"]),
    # Full stops that end sentences, and those of abbreviations.
    (" end.", [" end", "."]), (" I.", [" I", "."]), (" etc.", [" etc", "."]), (" it'S.", [" it", "'S", "."]),
    (" Mr.,", [" Mr.", ","]), (" (Mr.", [" (", "Mr."]), (" ex-Gov.", [" ex-Gov."]), (" Mr..", [" Mr", ".."]),
    # NLTK would take minutes for what has no space for long: it is one word.
    pytest.param(f"It is {LONG}\nhere.", ["It", " is", f" {LONG}", "\n", "here", "."], id="long")])
def test_words_of_a_text(text, words):
    assert surfaces(text) == words


def test_words_are_the_bytes_they_say_and_pieces_of_the_vocabulary_end_where_words_do():
    """Every word, with the space before it, is whole pieces, however many spaces and line ends stand around it."""
    draw = random.Random(1)
    wild = ["".join(draw.choices(ALPHABET, k=draw.randint(0, 40))) for _ in range(1000)]
    plain = ["".join(word + draw.choice(GAPS) for word in make_text(1, seed).split()) for seed in range(200)]
    plain += [text.replace("'", "’") for text in plain[:100]]
    for text in wild + plain:
        assert "".join(CHUNK.findall(text)) == text
        ends, at = {0, *itertools.accumulate(len(piece.encode()) for piece in regex.findall(PATTERN, text))}, 0
        for chunk in CHUNK.findall(text):
            raw, last = chunk.encode(), 0
            for first, end, surface in words_of_chunk(chunk):
                assert last == first < end and raw[first:end].decode() == surface
                assert {at + first, at + end} <= ends or text in wild, (surface, text)
                last = end
            assert chunk.isspace() or last == len(raw)
            at += len(raw)
    assert regex.findall(PATTERN, "He came.  The dog \n\t ran.") == [
        "He", " came", ".", " ", " The", " dog", " ", "\n", "\t", " ran", "."]


def test_plain_chunks_are_cut_as_nltk_cuts_them(monkeypatch):
    words = [*make_text(3).split(), "cannot", "gimme", "gonna", "gotta", "LEMME", "wanna", "more'n", "d'ye", "'tis",
             "naïve", "日本", "слово", "كتاب", "ﬁne", "e\u0301t", "not-gonna-be", "-", "a-", "x--y", "v2", "snake_case"]
    chunks = [" " + word + mark for word in words for mark in ("", *",.;:!?", "...", "?!", ".,", '"', "'")]
    parts = [*"aNntsI'-—’\"“”„()[],.;:!?»", "don", "won", "CAN", "it", "is", "n't", "N'T", "'s", "'S", "'ll", "'re",
             "'VE", "'d", "--", "...", "日本", "well-known", "été"]
    draw = random.Random(0)
    chunks += [space + "".join(draw.choices(parts, k=draw.randint(1, 6))) for space in ("", " ") for _ in range(2000)]
    fast = [words_of_chunk(chunk) for chunk in chunks]
    assert sum(surface_words.PLAIN.fullmatch(chunk) is not None for chunk in chunks) > len(chunks) / 10
    monkeypatch.setattr(surface_words, "PLAIN", re.compile("(?!)"))
    assert fast == [words_of_chunk(chunk) for chunk in chunks]


@pytest.mark.parametrize("sentence", ["Mr. and Mrs. Brown met Dr. Jones in St. Ives, and Prof. C. S. Lewis too.",
    "The U.S. army came at 5 p.m. on Sept. 3, i.e. late, with J.R.R. Tolkien Jr. and Co. as in Fig. 2.",
    "He and I. Newton, Ph.D. and M.A. at once, said: --Mrs. Bell is here."])
def test_abbreviations_keep_their_full_stop_as_in_nltks_sentences(sentence):
    """NLTK sees the whole sentence, and takes off the full stop that ends it."""
    expected = ['"' if word in ("``", "''") else word for word in NLTKWordTokenizer().tokenize(sentence)]
    # Of a capital alone only "I" may end a sentence, so that "I." is always cut.
    whole = [part for word in expected for part in (("I", ".") if word == "I." else (word,))]
    assert [surface.strip() for surface in surfaces(sentence)] == whole


def test_words_seen_more_often_than_min_count_enter_the_table():
    counts = count_surfaces(count_chunks(["The house, the house.\nHouse", "house", "house, the house."]))
    assert counts == {"The": 1, " house": 3, ",": 2, " the": 2, ".": 2, "\n": 1, "House": 1, "house": 2}
    assert aligned_surfaces(Counter({" ten": 10, " eleven": 11}), 10) == [" eleven"]
    # All forms of a word are counted together, and the most frequent form comes first.
    assert aligned_surfaces(Counter({"so": 1, " so": 4, "So": 3, " So": 2, " it": 4}), 4) == [" so", "So", " So", "so"]
    assert aligned_surfaces(Counter({" rare": 2, "rare": 1, " once": 1}), 3) == []


# ---- the vocabulary ----
def test_a_vocabulary_is_in_the_format_of_tiktoken_and_encodes_as_its_trainer_does(tmp_path, monkeypatch):
    # Else tiktoken keeps a copy by path.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path, trainer = str(tmp_path / "tokenizer.tiktoken"), rustbpe.Tokenizer()
    train_tokenizer([make_text()], 350, path)
    trainer.train_from_iterator([make_text()], 349, pattern=PATTERN)
    encoding, draw = load_tokenizer("train", path), random.Random(0)
    assert (len(load_tiktoken_bpe(path)), encoding.n_vocab, encoding.eot_token) == (349, 350, 349)
    for text in (make_text(3, 7), *("".join(draw.choices(ALPHABET, k=40)) for _ in range(100))):
        assert encode(encoding, text).tolist() == trainer.encode(text)


# ---- languages ----
@pytest.mark.parametrize("code, names, spaces, letters", [
    ("zh", "zh zho chi cmn ZH zh-Hans zh_CN zh-Hant zh_TW", False, "水"), ("ja", "ja jpn ja_JP", False, "水みミ"),
    ("th", "th tha", False, "น้ำ"), ("my", "my bur", False, "ရေ"), ("de", "de ger", True, "ß")])
def test_a_language_has_many_names_and_one_script(code, names, spaces, letters):
    for name in names.split():
        assert languages.is_known(name) and languages.code_of(name) == code and languages.has_spaces(name) == spaces
        assert regex.fullmatch(f"{languages.in_script(name)}+", letters)
        assert not regex.search(languages.in_script(name), "1, я")
    assert languages.has_spaces("zh-Latn") and languages.script_of("sr_Latn") == "Latn"
    # An unknown one has spaces and stands for itself.
    assert not languages.is_known("my own") and languages.has_spaces("my own")
    assert (languages.code_of("my own"), languages.script_of("my own")) == ("my own", "")


@pytest.mark.parametrize("language, word, title, upper", [
    ("de", "straße", "Straße", "STRASSE"), ("tr", "iyi", "İyi", "İYİ"), ("az", "ısı", "Isı", "ISI"),
    ("tur", "i\u0307stanbul", "İstanbul", "İSTANBUL"), ("en", "i\u0307", "İ", "İ"), ("my own", "iij", "Iij", "IIJ"),
    ("nl", "ijs", "IJs", "IJS"), ("lt", "i\u0307\u0301", "Í", "Í"), ("hr", "ǆep", "ǅep", "ǄEP"),
    ("ka", "წყალი", "წყალი", "ᲬᲧᲐᲚᲘ"), ("el", "άνθρωπος", "Άνθρωπος", "ΑΝΘΡΩΠΟΣ"), ("el", "ή", "Ή", "Ή"),
    ("ell", "μάιος", "Μάιος", "ΜΑΪΟΣ"), ("el", "ευφυΐα", "Ευφυΐα", "ΕΥΦΥΪΑ"), ("hy", "և", "Եվ", "ԵՎ"),
    ("bn", "পানি", "পানি", "পানি"), ("fr", "l'été", "L'été", "L'ÉTÉ"), ("de", "", "", "")])
def test_capitals_are_those_of_the_language(language, word, title, upper):
    assert (languages.titlecase(word, language), languages.uppercase(word, language)) == (title, upper)


# ---- dictionaries ----
def test_muse_files_with_spaces_and_tables_with_tabs(tmp_path, capsys):
    write(tmp_path / "1.txt", "house haus\nhouse\thause\nhouse haus\n\nsea salt\tMeersalz\ntaxi taxi\n")
    # Composed, with a straight apostrophe, without invisible characters, as text is read.
    write(tmp_path / "2.txt.gz", "small klein\r\no’clock uhr\nbuilding geba\u0308u\xadde\n")
    assert read(str(tmp_path / "*")) == {"house": ["haus", "hause"], "sea salt": ["Meersalz"], "small": ["klein"],
                                         "o'clock": ["uhr"], "building": ["gebäude"]}
    # A few lines that are no pairs are counted and shown; with more the file is refused, and the first is named.
    bad = ["house", "a house haus", "house\thaus\tbuilding", "house\t"]
    path = write(tmp_path / "en-[de].txt", "small klein\n" + "\n".join(bad))
    assert read(path) == {"small": ["klein"]} and f"{path}:2" in capsys.readouterr().out
    assert error(read, write(Path(path), "small klein\n" + "\n".join(bad * 3))).startswith(f"{path}:2: ")
    for content in ("house\n", "taxi taxi\n"):
        assert path in error(read, write(Path(path), content))
    assert "missing.txt" in error(read, str(tmp_path / "missing.txt"))


def within(entries: dict, counts: Counter, language: str = "de", most: int = 0) -> dict[str, list[str]]:
    found = as_text_has_them(entries, counts, language, most)
    return {word: [translation.forms[0] for translation in translations] for word, translations in found.items()}


def test_translations_are_the_most_common_ones_as_the_targets_text_has_them():
    text = "Das Haus ist klein. Ein Haus, zwei Häuser; Kleine Häuser sind klein. हिन्दी भाषा"
    counts = dictionary.count_words([text])
    # Marks belong to their word.
    assert counts["हिन्दी"] == counts["भाषा"] == 1
    entries = {"house": ["haus"], "houses": ["häuser"], "small": ["klein", "winzig"]}
    assert within(entries, counts) == {"house": ["Haus"], "houses": ["Häuser"], "small": ["klein"]}
    counts = Counter({"die": 90, "der": 80, "den": 30, "des": 4, "Haus": 40, "altes": 10})
    entries = {"the": ["den", "der", "die", "dem", "des"], "old house": ["altes haus", "altes Haus", "haus"],
               "tree": ["baum", "Baum"]}
    assert within(entries, counts, most=2) == {
        "the": ["die", "der"], "old house": ["Haus", "altes Haus"], "tree": ["baum", "Baum"]}
    # "des" is below a twentieth of "die".
    assert within(entries, counts)["the"] == ["die", "der", "den"]
    # Texts without spaces are cut into the longest known words.
    count = dictionary.counter({"time": ["时间", "时"], "spy": ["间谍"], "he": ["他"]}, "zh_CN")
    assert count(["时间谍时, 他他们", "时间"]) == {"时间": 2, "时": 1, "他": 2}


@pytest.mark.parametrize("language, given, text, expected", [
    ("ro", "şi", "Și oț și apă", "și"), ("tr", "şu", "Şu su, şu", "şu"), ("fr", "l'eau", "de l’eau", "l’eau"),
    ("uk", "п'ять", "пʼять", "пʼять"), ("fa", "يك", "یک کتاب", "یک"), ("tr", "i̇stanbul", "İstanbul", "İstanbul"),
    ("fr", "eau", "L'eau", "eau"), ("ro", "şi", "oțel", "şi"), ("uz", "o'zbek", "o‘zbek", "o‘zbek"),
    ("ru", "вода\u0301", "вода", "вода"), ("ru", "ребёнок", "ребенок", "ребенок"), ("ar", "مَاء", "ماء", "ماء"),
    ("ar", "اخرى", "أخرى", "أخرى"), ("de", "altes haus", "Ein altes Haus", "altes Haus"), ("es", "año", "ano", "año"),
    ("hr", "ǆep", "Taj džep", "džep"),
    ("he", "מַיִם", "מים", "מים"), ("lt", "i\u0307\u0301", "i\u0307\u0301", "i\u0307\u0301")])
def test_a_translation_is_spelled_as_the_text_spells_it(language, given, text, expected):
    assert within({"x": [given]}, dictionary.count_words([text]), language) == {"x": [expected]}


@pytest.mark.parametrize("surface, expected", [
    ("house", ["Haus", "Heim"]), (" House", [" Haus", " Heim"]), ("HOUSE", ["HAUS", "HEIM"]), (" small", [" klein"]),
    ("Small", ["Klein"]), ("SMALL", ["Klein"]), ("May", ["Mai"]), ("may", ["dürfen"]), (" I", [" ich"]), ("tree", []),
    ("Tree", []), (" O’Clock", [" Uhr"]), ("GOOD", ["gut"])])
def test_a_translation_has_the_capitals_and_the_space_of_the_word(surface, expected):
    """Of forms that differ in capitals those that the text has are taken, if it has any."""
    entries = {"house": ["Haus", "Heim"], "small": ["klein"], "May": ["Mai"], "may": ["dürfen"], "i": ["ich"],
               "o'clock": ["Uhr"], "good": ["gut"]}
    known = as_text_has_them(entries, Counter({"klein": 9, "Klein": 1, "gut": 2}), "de")
    assert translations(surface, "de", known, "en") == expected
    known = as_text_has_them(entries, Counter({"klein": 9, "Klein": 1, "gut": 2}), "zho")
    assert translations(surface, "zh-Hans", known, "en") == [word.strip() for word in expected]
    assert translations(surface, "clone", {}, "en") == [surface]


def test_coverage_by_hand():
    """Of 100 words with letters 50 have an entry; "tree" is not in the text."""
    counts = Counter({" house": 30, "House": 10, " Mr": 10, " small": 30, " of": 20, ".": 99})
    entries = {"house": ["Haus", "Heim", "Bau", "Hof", "Stall"], "Mr": ["Herr"], "tree": ["Baum"]}
    common = as_text_has_them(entries, Counter({"Haus": 9, "Heim": 8, "Herr": 1}), "de")
    rows = [(surface, "de", word) for surface in counts for word in translations(surface, "de", common, "en")]
    assert coverage("de", rows, counts, common) == {"running_words": pytest.approx(0.5), "pairs_never_in_the_text": 1}
    assert coverage("zh", rows, counts, {}) == {"running_words": 0, "pairs_never_in_the_text": 0}


@pytest.mark.parametrize("line", [
    "1\t2\thouse\tde\tHaus", '1\t2\t"house"\tfr\t"maison"', '1\t2\t"house"\t"Haus"', '1\t2\t"a"\tclone\t"b"',
    '1\t2\t"a"\tde\t""', '1\t2\t["a"]\tde\t"b"'])
def test_a_line_that_is_none_of_a_table_is_named(tmp_path, line):
    path = write(tmp_path / "table.tsv", "\t".join(COLUMNS) + "\n" + line + "\n")
    assert error(read_table_tsv, path, ("de", "clone")).startswith(f"{path}:2: ")


# ---- English and ten languages of ten scripts, prepared ----
# The words "good", "water" and "house" of a dictionary, a text, and how " Good", " water", " WATER" and " House" are
# then translated: in forms that the text has. Capitals begin sentences in some, and Chinese and Thai have no spaces.
SCRIPTS = {"de": ("gut wasser haus", "Gut ist das Wasser im Haus, das Wasser ist gut.", " Gut, Wasser, Wasser, Haus"),
    "tur": ("iyi su ev", "İyi su evde. Su iyi, ev iyi, su, ev.", " İyi, su, Su, ev"),
    "el": ("καλό νερό σπίτι", "Καλό νερό στο σπίτι, ΝΕΡΟ καλό, νερό.", " Καλό, νερό, ΝΕΡΟ, σπίτι"),
    "ru": ("хорошо вода дом", "Дом, вода, хорошо. Хорошо! А вода и дом, дом?", " Хорошо, вода, вода, Дом"),
    "ar": ("جيد ماء بيت", "في بيت ماء جيد.", " جيد, ماء, ماء, بيت"),
    "bn": ("ভালো পানি বাড়ি", "এই বাড়ি ভালো. পানি ভালো", " ভালো, পানি, পানি, বাড়ি"),
    "tam": ("நல்ல நீர் வீடு", "வீடு நல்ல நீர்.", " நல்ல, நீர், நீர், வீடு"),
    "th": ("ดี น้ำ บ้าน", "น้ำดีในบ้าน", "ดี,น้ำ,น้ำ,บ้าน"),
    "zh_CN": ("好 水 房子", "房子里有好水。", "好,水,水,房子"),
    "ja": ("良い 水 家", "家に良い水があります。", "良い,水,水,家"),
}


def table_of(config: Config) -> list[tuple[int, str, str, str]]:
    """Entry, surface form, language and translation of every line of table.tsv."""
    lines = Path(config.data_dir, "table.tsv").read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines[1:]]
    return [(int(k), json.loads(surface), language, json.loads(word)) for k, _, surface, language, word in fields]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("world")
    english = " Good it is. The water of a House is good WATER, and the house is good."
    write(folder / "texts/en.txt", "\n\n".join(document + english for document in make_text(40).split("\n\n")))
    for language, (words, text, _) in SCRIPTS.items():
        write(folder / f"texts/{language}.txt", "\n\n".join(f"{text} {i}" for i in range(40)))
        pairs = zip(("good", "water", "house"), words.split())
        write(folder / f"en-{language}.txt", "".join(f"{word}\t{translation}\n" for word, translation in pairs))
    config = Config(
        data_dir=str(folder / "data"), out_dir=str(folder / "out"), source=str(folder / "texts" / "{language}.txt"),
        targets=tuple(SCRIPTS), dictionary=str(folder / "en-{language}.txt"), vocab_size=600, min_count=3,
        val_fraction=0.1, workers=1, fact_count=8, fact_frequencies=(3,), mix={"en": 0.5, "de": 0.25, "zh_CN": 0.25},
        batch_size=8, micro_batch_size=8, block_size=64, n_layer=1, n_head=2, n_embd=32, max_steps=12, stage1_steps=4,
        align_entries=4, device="cpu", dtype="fp32", eval_words=50, sample_count=4)
    prepare(config)
    return config


def test_every_language_has_its_bins_and_the_forms_of_its_text_and_all_share_a_vocabulary(world):
    data = Folder(world.data_dir)
    assert data.languages == ("en", *SCRIPTS) and set(data.first_id.values()) == {0} and data.vocab_size == data.V
    for language in data.languages:
        tokens = np.concatenate([data.tokens(language, split) for split in ("val", "train")]).tolist()
        texts = data.encoding.decode(tokens).split("<|endoftext|>")[:-1]
        assert sorted(texts) == sorted(documents(world.source_of(language)))
    in_arrays = [(k + 1, data.encoding.decode(data.table.word(w).tolist())) for k in range(len(data.table))
                 for language in range(1, 11) for w in data.table.words(k, language)]
    assert in_arrays == [(k, translation) for k, _, _, translation in table_of(world)]
    for language, (_, _, expected) in SCRIPTS.items():
        table = {surface: translation for _, surface, target, translation in table_of(world) if target == language}
        forms = [table[surface] for surface in (" Good", " water", " WATER", " House")]
        assert ",".join(forms) == normalise(expected)
    # The words marked in the pivot's text are those of the table.
    marked = data.encoding.decode(data.tokens("en", "train")[data.align("train") != 0].tolist())
    assert set(marked.lower().split()) == {"good", "water", "house"}


def test_an_edited_table_takes_the_place_of_dictionaries(world, tmp_path, capsys):
    """Unedited, it makes the same table. A line taken out is a translation less; one more is one more."""
    original = Path(world.data_dir, "table.tsv").read_text(encoding="utf-8")
    decomposed = unicodedata.normalize("NFD", original)
    made = replace(world, dictionary="", table=write(tmp_path / "a.tsv", decomposed), data_dir=str(tmp_path / "same"))
    prepare(made)
    assert Path(made.data_dir, "table.tsv").read_text(encoding="utf-8") == original
    header, first, *lines = original.splitlines(keepends=True)
    # The order of lines does not count.
    lines += ["\t".join([*first.split("\t")[:3], "ja", '"新"\n']), '0\t0\t"moon"\tja\t"月"\n']
    edited = replace(made, table=write(tmp_path / "b.tsv", header + "".join(lines)), data_dir=str(tmp_path / "edited"))
    prepare(edited)
    assert "left out 1 lines" in capsys.readouterr().out
    for config, expected in ((world, [1, 1]), (edited, [0, 2])):
        assert [len(Folder(config.data_dir).table.words(0, language)) for language in (1, 10)] == expected


def test_budget_share_and_length_reach_bins_vocabulary_and_table(world, tmp_path):
    """Only translations of one token are left, and the entries that have any, in the same order."""
    changed = replace(world, budget={"de": 300.0}, tokenizer_share={"el": 0.0}, translation_tokens=1,
                      data_dir=str(tmp_path / "data"))
    prepare(changed)
    before, after, rows = Folder(world.data_dir), Folder(changed.data_dir), [row[1:] for row in table_of(changed)]
    assert 300 <= len(after.tokens("de", "train")) < len(before.tokens("de", "train"))
    of_greek = [sum(regex.search(rb"[\xce\xcf].[\xce\xcf]", token) is not None
                    for token in data.encoding.token_byte_values()) for data in (before, after)]
    assert of_greek[0] > 5 and of_greek[1] == 0
    assert after.meta["coverage"]["de"]["running_words"] > 0.05
    assert rows == [row[1:] for row in table_of(world) if len(encode(after.encoding, row[3])) == 1] != []
    assert len(rows) < len(table_of(world)) and len(after.table) == len({surface for surface, _, _ in rows})
    # En-Clone's words are kept whole.
    rows = [("a", "de", "e"), ("b", "de", "q" * 9), ("q" * 9, "clone", "q" * 9)]
    assert keep_short(rows, after.encoding, 1) == [rows[0], rows[2]] and keep_short(rows, after.encoding, 0) == rows
    assert "translation_tokens=1" in error(keep_short, rows[1:2], after.encoding, 1)


def test_both_stages_and_the_evaluation_run_on_several_targets(world, tmp_path):
    config = replace(world, out_dir=str(tmp_path), method="prealign", init_from="align", codeswitch_ratio=0.3)
    prealign.main(overrides(config))
    training.main(overrides(config))
    result = evaluation.evaluate(config)
    assert list(result["lm"]) == ["en", *SCRIPTS] and {"en->en", "en->de"} <= {*result["clka"]}
    assert {s["language"] for s in result["similarity"]} == {*SCRIPTS} == {*result["mixed"]}


def test_a_language_without_text_or_dictionary_is_an_error_and_an_unknown_one_is_reported(world, capsys):
    rare = {"data_dir": world.data_dir + "3", "min_count": 1_000_000}
    table = write(Path(world.data_dir + ".tsv"), '1\t9\t"no such word"\tde\t"x"\n')
    for name, changes in (("source", {"source": "builtin"}), ("dictionary", {"dictionary": ""}), ("min_count", rare),
                          ("none of its words", {"table": str(table), "data_dir": world.data_dir + "4"})):
        assert name in error(prepare, replace(world, **changes))
    assert "ISO 639" not in capsys.readouterr().out
    write(Path(world.source_of("klingon")), "Qapla' je.\n\nQapla'!")
    write(Path(world.dictionary_of("klingon")), "good\tQapla'\n")
    error(prepare, replace(world, targets=("klingon",), mix={"en": 1.0}, **rare))
    assert capsys.readouterr().out.count("klingon is no language's code in ISO 639") == 1
