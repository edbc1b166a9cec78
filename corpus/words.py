"""
Words as they stand in text. A word's *surface form* carries the space before it, if there is one: " house" and "house"
are different token sequences, so they are different entries, each with the translation that can stand in its place.
"""

import functools
import itertools
import re
from collections import Counter

import numpy as np
import regex
from nltk.tokenize import NLTKWordTokenizer

from corpus.languages import LETTERS

# Words are NLTK's (paper, appendix A), found one chunk at a time, so that no sentence splitter has to be downloaded and
# each distinct chunk is cut once. Every character falls in exactly one chunk.
CHUNK = re.compile(r"\n+| ?\S+|\s")
# An apostrophe is one, straight or curly, for NLTK and in dictionaries; the text keeps its own.
CURLY = "’"
# Nearly all different chunks: words, with a quotation mark or bracket before, contractions, dashes between, and marks
# after. NLTK cuts these (but for CONTRACTION) where PIECE does, which takes a fortieth of its time.
NOT, SHORT = "n't|N'T", "'(?:[sSmMdD]|ll|LL|re|RE|ve|VE)"
UNIT = rf"{LETTERS}+(?:-{LETTERS}+)*(?:{NOT}|{SHORT})?"
MARKS = r"(?:[,.;:!?]?[\"”)\]]?|[\"”)\]][,.;:!?])"
PLAIN = regex.compile(rf" ?[\"“„(\[]?{UNIT}(?:(?:--|—){UNIT})*(?:--|—)?{MARKS}")
PIECE = regex.compile(rf" ?(?:{NOT}|{SHORT}|--|{LETTERS}+?(?:-{LETTERS}+?)*?(?={NOT}|--|[^-\w]|$)|.)")
CONTRACTION = regex.compile("cannot|gimme|gonna|gotta|lemme|wanna", regex.IGNORECASE)
# Within a sentence NLTK keeps the full stop of an abbreviation, and takes off the one that ends the sentence. A chunk
# does not show which it is, so abbreviations that seldom end a sentence always keep theirs: these, capitals but for
# "I" (J. S. Bach), and letters with a full stop before them (U.S., e.g., Ph.D.).
SHORTENED = ("Mr Mrs Ms Mme Mlle Messrs Dr St Mt Rev Hon Prof Gen Col Capt Lt Sgt Maj Gov Sen Rep Jr Sr Bros Co Corp "
             "Inc Ltd Dept vs Fig Figs Vol Jan Feb Aug Sept Oct Nov Dec").split()
ABBREVIATED = regex.compile(rf"(?:\b(?:{'|'.join(SHORTENED)})|(?:^|[ \"“„(\[])[A-HJ-Z]|\.[A-Za-z])\.$")
NLTK = NLTKWordTokenizer()
# So many chunks whose words a process remembers take about 130 MB.
MAX_CHUNKS = 400_000
# What goes on for longer without a space is no text, and is one word: patterns take time by the square of its length.
LONGEST_CHUNK = 10_000


def words_of_chunk(chunk: str) -> list[tuple[int, int, str]]:
    """The words of one whitespace-delimited chunk of text, as (first byte, byte after the last, surface form)."""
    # A run of line ends is a word too: En-Clone translates all that stands in the text.
    if chunk.isspace():
        ends = [len(chunk)] if chunk[0] == "\n" else []
    elif chunk[-1] == "." and ABBREVIATED.search(chunk):
        ends = _ends(chunk[:-1])
        ends[-1] += 1
    else:
        ends = _ends(chunk)
    words = [chunk[start:end] for start, end in zip([0, *ends], ends)]
    last = list(itertools.accumulate(len(word.encode()) for word in words))
    return list(zip([0, *last], last, words))


def _ends(chunk: str) -> list[int]:
    # Where words end, in characters.
    if len(chunk) > LONGEST_CHUNK:
        return [len(chunk)]
    # The fast way, for nearly all:
    straight = chunk.replace(CURLY, "'")
    if PLAIN.fullmatch(straight) and not CONTRACTION.search(straight):
        return list(itertools.accumulate(map(len, PIECE.findall(straight))))
    space = chunk[0] == " "
    try:
        return [end + space for _, end in NLTK.span_tokenize(straight[space:])]
    # NLTK cannot place the quotation marks that it rewrote: the chunk is one word.
    except (ValueError, RuntimeError):
        return [len(chunk)]


def count_chunks(texts: list[str]) -> Counter:
    """How often each chunk stands in the texts."""
    return Counter(itertools.chain.from_iterable(map(CHUNK.findall, texts)))


def count_surfaces(chunks: Counter) -> Counter:
    """How often each surface form stands in the text that `chunks` counts."""
    surfaces: Counter = Counter()
    for chunk, count in chunks.items():
        for _, _, surface in words_of_chunk(chunk):
            surfaces[surface] += count
    return surfaces


def seen_words(surfaces: Counter, min_count: int) -> Counter:
    """How often each word seen more than `min_count` times stands in the text, all its surface forms together."""
    counts: Counter = Counter()
    for surface, count in surfaces.items():
        counts[surface.removeprefix(" ")] += count
    return Counter({word: count for word, count in counts.items() if count > min_count})


def aligned_surfaces(surfaces: Counter, min_count: int) -> list[str]:
    """The surface forms of every word seen more than `min_count` times, the most frequent form first."""
    words = seen_words(surfaces, min_count)
    return sorted((s for s in surfaces if s.removeprefix(" ") in words), key=lambda s: (-surfaces[s], s))


class WordIndex:
    """Where the words of a table stand in text. What stands in a chunk is remembered."""

    def __init__(self, surfaces: list[str]):
        self.entry = {surface: k for k, surface in enumerate(surfaces, 1)}
        self.spans = functools.lru_cache(MAX_CHUNKS)(self._spans)

    def _spans(self, chunk: str) -> tuple[int, list[tuple[int, int, int]]]:
        """How many bytes a chunk has, and first byte, byte after the last and entry of its words in the table."""
        return len(chunk.encode()), [(first, end, self.entry[surface]) for first, end, surface in words_of_chunk(chunk)
                                     if surface in self.entry]

    def spans_of(self, text: str) -> np.ndarray:
        """(words, 3) int64: first byte, byte after the last, and entry of every word of a text that is in the table."""
        spans, start = [], 0
        for length, words in map(self.spans, CHUNK.findall(text)):
            spans += [(start + first, start + end, entry) for first, end, entry in words]
            start += length
        return np.array(spans, dtype=np.int64).reshape(-1, 3)
