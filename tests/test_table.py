"""Words as they stand in text, which of them enter the alignment table, and the table on disk."""

import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest

from corpus import words as surface_words
from runtime.errors import UserError
from conftest import make_text
from corpus import words as surface_words
from corpus.table import Table, make_table
from corpus.words import CHUNK, aligned_surfaces, count_chunks, count_surfaces, words_of_chunk

# Letters of one, two, three and four bytes, digits, every quotation mark, punctuation, and whitespace of all kinds
ALPHABET = list("abn't12 .,-?!()$%") + list("éßжñ中文😀") + list("\"'`“”‘’«»„") + list(" \n\t\r\v\f\x1c\x85\xa0\u2003\u2028\u3000")


def random_text(rng: random.Random, length: int = 40) -> str:
    return "".join(rng.choices(ALPHABET, k=rng.randint(0, length)))


def surfaces(chunk: str) -> list[str]:
    return [surface for _, _, surface in words_of_chunk(chunk)]


# ---- chunks ----

def test_every_character_is_in_exactly_one_chunk():
    rng = random.Random(0)
    for _ in range(3000):
        text = random_text(rng)
        assert "".join(CHUNK.findall(text)) == text


@pytest.mark.parametrize("text, chunks", [
    ("", []),
    ("a b", ["a", " b"]),
    (" a  b ", [" a", " ", " b", " "]),
    ("a\n\n b\tc\n", ["a", "\n\n", " b", "\t", "c", "\n"]),
    ("a \n\nb", ["a", " ", "\n\n", "b"]),
    ("a\u00a0b", ["a", "\u00a0", "b"]),
])
def test_chunks(text, chunks):
    assert CHUNK.findall(text) == chunks
    assert count_chunks([text, text]) == {chunk: 2 * chunks.count(chunk) for chunk in chunks}


# ---- words ----

@pytest.mark.parametrize("chunk, words", [
    ("house", ["house"]),
    (" house", [" house"]),
    (" House,", [" House", ","]),
    (" don't", [" do", "n't"]),
    ("it's", ["it", "'s"]),
    (" cannot", [" can", "not"]),
    (' "so"', [' "', "so", '"']),
    (" ``so''", [" ``", "so", "''"]),
    ("“so”", ["“", "so", "”"]),
    ("(2.5%)", ["(", "2.5", "%", ")"]),
    ("...", ["..."]),
    ("\n", ["\n"]),
    ("\n\n\n", ["\n\n\n"]),
    (" ", []),
    ("\t", []),
    ("\u3000", []),
])
def test_words_of_a_chunk(chunk, words):
    assert surfaces(chunk) == words


def test_positions_are_bytes():
    assert words_of_chunk(" naïve,") == [(0, 7, " naïve"), (7, 8, ",")]
    assert words_of_chunk("«日本»,") == [(0, 2, "«"), (2, 8, "日本"), (8, 10, "»"), (10, 11, ",")]
    assert words_of_chunk(" 😀don't") == [(0, 7, " 😀do"), (7, 10, "n't")]


def test_words_are_the_bytes_they_say_in_order():
    rng = random.Random(1)
    for _ in range(1000):
        for chunk in CHUNK.findall(random_text(rng)):
            raw, last = chunk.encode(), 0
            for first, end, surface in words_of_chunk(chunk):
                assert last <= first < end
                assert raw[first:end].decode() == surface
                last = end
            if not chunk.isspace():
                assert "".join(surfaces(chunk)) == chunk  # nothing between words


def test_a_chunk_that_nltk_cannot_place_is_one_word(monkeypatch):
    class Unplaceable:
        def span_tokenize(self, text):
            raise ValueError("substring not found")
            yield

    monkeypatch.setattr(surface_words, "_nltk", Unplaceable())
    assert words_of_chunk(" é\"'") == [(0, 5, " é\"'")]
    assert words_of_chunk("é\"'") == [(0, 4, "é\"'")]


def test_plain_chunks_are_cut_as_nltk_cuts_them(monkeypatch):
    contractions = ["cannot", "gimme", "gonna", "gotta", "lemme", "wanna", "more'n", "d'ye", "'tis", "'twas"]
    words = [*make_text(3).split(), *contractions, *map(str.upper, contractions), "naïve", "日本", "Straße", "ἀρχή", "слово", "كتاب", "ﬁne", "İi", "e\u0301t",
             "well-known", "not-gonna-be", "mother-in-law", "-", "a-", "x--y", "v2", "snake_case", "it's", "U.S"]
    chunks = [space + word + mark for word in words for space in ("", " ") for mark in ("", *",.;:!?", "...", "?!", ".,", '"', "'")]
    parts = [*"aNntsI'-—’\"“”„()[],.;:!?»", "don", "won", "CAN", "it", "is", "n't", "N'T", "'s", "'S", "'ll", "'re", "'VE", "'d", "--", "...", "日本", "well-known", "été"]
    draw = random.Random(0)
    chunks += [space + "".join(draw.choices(parts, k=draw.randint(1, 6))) for space in ("", " ") for _ in range(10_000)]
    fast = [words_of_chunk(chunk) for chunk in chunks]
    assert sum(surface_words.PLAIN.fullmatch(chunk) is not None for chunk in chunks) > len(chunks) / 10
    monkeypatch.setattr(surface_words, "PLAIN", re.compile("(?!)"))
    assert fast == [words_of_chunk(chunk) for chunk in chunks]


def test_surfaces_are_counted_as_they_stand():
    counts = count_surfaces(count_chunks(["The house, the house.\nHouse", "house", "house, the house."]))
    assert counts == {"The": 1, " house": 3, ",": 2, " the": 2, ".": 2, "\n": 1, "House": 1, "house": 2}


# ---- which enter the table ----

def test_more_often_than_min_count():
    counts = Counter({" ten": 10, " eleven": 11})
    assert aligned_surfaces(counts, 10) == [" eleven"]
    assert aligned_surfaces(counts, 9) == [" eleven", " ten"]
    assert aligned_surfaces(counts, 0) == [" eleven", " ten"]


def test_forms_of_a_word_are_counted_together():
    assert aligned_surfaces(Counter({"so": 1, " so": 4, "So": 3, " So": 2, " it": 4}), 4) == [" so", "So", " So", "so"]


def test_most_frequent_first_then_by_letters_whatever_the_order_of_counting():
    counts = {"b": 5, " b": 5, "a": 5, " a": 7, "\n": 6, "é": 5}
    expected = [" a", "\n", " b", "a", "b", "é"]
    rng = random.Random(2)
    for _ in range(20):
        items = list(counts.items())
        rng.shuffle(items)
        assert aligned_surfaces(Counter(dict(items)), 4) == expected


@pytest.mark.parametrize("counts", [{}, {" rare": 2, "rare": 1, " once": 1}])
def test_no_word_is_frequent_enough(counts):
    with pytest.raises(UserError) as e:
        aligned_surfaces(Counter(counts), 3)
    message = str(e.value)
    assert "min_count=3" in message and "\n" not in message
    assert not counts or "'rare', 3 times" in message


# ---- the table ----

WORDS = [[[np.array([5, 6])], [np.array([15])], [np.array([25, 26, 27]), np.array([28])]],
         [[np.array([7])], [], [np.array([29])]],
         [[np.array([8])], [], []]]


def example() -> Table:
    return make_table(WORDS, [30, 20, 10], ("en", "de", "zh"))


def test_the_words_of_every_entry():
    made = example()
    assert len(made) == 3 and made.frequency.tolist() == [30, 20, 10]
    for k, entry in enumerate(WORDS):
        for language, group in enumerate(entry):
            found = [made.word(w).tolist() for w in made.words(k, language)]
            assert found == [word.tolist() for word in group]


def test_saved_and_loaded(tmp_path):
    path, made = str(tmp_path / "table.npz"), example()
    made.save(path)
    loaded = Table.load(path)
    assert loaded.languages == made.languages == ("en", "de", "zh")
    for name in ("frequency", "groups", "offsets", "tokens"):
        assert np.array_equal(getattr(loaded, name), getattr(made, name)) and getattr(loaded, name).dtype == getattr(made, name).dtype


def refused(path) -> str:
    with pytest.raises(UserError) as e:
        Table.load(str(path))
    message = str(e.value)
    assert message.startswith(str(path)) and "run data.py again" in message and "\n" not in message
    return message


def test_a_file_that_is_no_table(tmp_path):
    path = tmp_path / "table.npz"
    refused(path)
    example().save(str(path))
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(bytes(len(whole)))
    refused(path)
    path.write_text("entry\tfrequency\n")
    refused(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    refused(tmp_path / "one.npy")
    path.unlink()
    path.mkdir()
    refused(path)


def test_a_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "table.npz"
    example().save(str(path))
    whole = path.read_bytes()
    at = whole.index(example().tokens.tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    refused(path)


class Unsafe:
    ran = False

    def __reduce__(self):
        return setattr, (Unsafe, "ran", True)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "table.npz"
    path.write_bytes(pickle.dumps(Unsafe()))
    refused(path)
    arrays = {name: getattr(example(), name) for name in ("languages", "frequency", "groups", "offsets")}
    np.savez(path, **arrays, tokens=np.array([Unsafe()], dtype=object))
    refused(path)
    assert not Unsafe.ran


@pytest.mark.parametrize("changes", [
    {"tokens": None},
    {"languages": ["en", "de"]},
    {"languages": []},
    {"languages": "en"},
    {"frequency": [30, 20]},
    {"frequency": 30},
    {"groups": [0, 1, 2, 4, 5, 5, 6, 7, 7]},
    {"groups": [0, 1, 2, 4, 5, 5, 6, 7, 7, 8]},
    {"groups": [0, 2, 1, 4, 5, 5, 6, 7, 7, 7]},
    {"groups": [-1, 1, 2, 4, 5, 5, 6, 7, 7, 7]},
    {"groups": [0., 1, 2, 4, 5, 5, 6, 7, 7, 7]},
    {"groups": [[0], [1], [2], [4], [5], [5], [6], [7], [7], [7]]},
    {"groups": [0, 0, 2, 4, 5, 5, 6, 7, 7, 7]},  # the first entry has no pivot word
    {"offsets": [0, 2, 3, 6, 7, 8, 9]},
    {"offsets": [1, 2, 3, 6, 7, 8, 9, 10]},
    {"offsets": [0, 2, 3, 6, 7, 8, 8, 10]},
    {"offsets": [0., 2, 3, 6, 7, 8, 9, 10]},
    {"tokens": [5, 6, 15, 25, 26, 27, 28, 7, 29]},
    {"tokens": [5., 6, 15, 25, 26, 27, 28, 7, 29, 8]},
], ids=str)
def test_arrays_that_do_not_fit_each_other(tmp_path, changes):
    arrays = {name: getattr(example(), name) for name in ("languages", "frequency", "groups", "offsets", "tokens")}
    assert [len(np.atleast_1d(arrays[name])) for name in arrays] == [3, 3, 10, 8, 10]
    for name, values in changes.items():
        if values is None:
            del arrays[name]
        else:
            arrays[name] = np.array(values)
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    refused(path)
