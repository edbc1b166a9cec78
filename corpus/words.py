"""
Words as they stand in text. A word's *surface form* carries the space before it, if there is one: " house" and "house" are
different token sequences, so they are different entries, each with the translation that can stand in its place.
"""

import itertools
import re
from collections import Counter

import numpy as np
from nltk.tokenize import NLTKWordTokenizer

from runtime.errors import UserError

CHUNK = re.compile(r"\n+| ?\S+|\s")  # every character falls in exactly one chunk
# Nearly all different chunks: words, with a quotation mark or bracket before, contractions, dashes between, and marks after. NLTK cuts these
# (but for CONTRACTION) where PIECE does, which takes a fortieth of its time.
LETTERS = r"[^\W\d_]+"
NOT, SHORT = "n't|N'T", "'(?:[sSmMdD]|ll|LL|re|RE|ve|VE)"
UNIT = rf"{LETTERS}(?:-{LETTERS})*(?:{NOT}|{SHORT})?"
PLAIN = re.compile(rf" ?[\"“„(\[]?{UNIT}(?:(?:--|—|’){UNIT})*(?:--|—|’)?(?:[,.;:!?]?[\"”)\]]?|[\"”)\]][,.;:!?])")
PIECE = re.compile(rf" ?(?:{NOT}|{SHORT}|--|{LETTERS}?(?:-{LETTERS}?)*?(?={NOT}|--|[^-\w]|$)|.)")
CONTRACTION = re.compile("cannot|gimme|gonna|gotta|lemme|wanna", re.IGNORECASE)
_nltk = NLTKWordTokenizer()


def words_of_chunk(chunk: str) -> list[tuple[int, int, str]]:
    """
    The words of one whitespace-delimited chunk of text, as (first byte, byte after the last, surface form).

    Words are NLTK's (paper, section 3.1), found one chunk at a time, so that no sentence splitter has to be downloaded
    and each distinct chunk is split once. A surface form is the word as it stands in text: with the space before it,
    if there is one. A run of line ends is a word too: En-Clone translates everything that stands in the text.
    """
    if chunk[0] == "\n":
        return [(0, len(chunk), chunk)]
    if chunk.isspace():
        return []
    if PLAIN.fullmatch(chunk) and not CONTRACTION.search(chunk):
        pieces = PIECE.findall(chunk)
        ends = list(itertools.accumulate(len(piece.encode()) for piece in pieces))
        return list(zip([0, *ends], ends, pieces))
    space = chunk[0] == " "
    bare = chunk[space:]
    try:
        spans = list(_nltk.span_tokenize(bare))
    except (ValueError, RuntimeError):  # NLTK cannot place the quotation marks it rewrote: the chunk is one word
        spans = [(0, len(bare))]
    byte_at = np.cumsum([0] + [len(c.encode()) for c in bare])  # byte offset of every character
    words = []
    for start, end in spans:
        surface = (" " if space and start == 0 else "") + bare[start:end]
        first = 0 if start == 0 else space + int(byte_at[start])
        words.append((first, space + int(byte_at[end]), surface))
    return words


def count_chunks(texts: list[str]) -> Counter:
    """How often each chunk stands in the texts."""
    counts: Counter = Counter()
    for text in texts:
        counts.update(CHUNK.findall(text))
    return counts


def count_surfaces(chunks: Counter) -> Counter:
    """How often each surface form stands in the text that `chunks` counts."""
    surfaces: Counter = Counter()
    for chunk, count in chunks.items():
        for _, _, surface in words_of_chunk(chunk):
            surfaces[surface] += count
    return surfaces


def aligned_surfaces(surfaces: Counter, min_count: int) -> list[str]:
    """
    The surface forms of every word seen more than `min_count` times, all its forms counted together, most frequent
    form first. Raises UserError when there is none.
    """
    words = seen_words(surfaces, min_count)
    return sorted((s for s in surfaces if s.removeprefix(" ") in words), key=lambda s: (-surfaces[s], s))


def seen_words(surfaces: Counter, min_count: int) -> Counter:
    """Words seen more than `min_count` times, all their surface forms counted together. Raises UserError when there is none."""
    counts: Counter = Counter()
    for surface, count in surfaces.items():
        counts[surface.removeprefix(" ")] += count
    words = Counter({word: count for word, count in counts.items() if count > min_count})
    if not words:
        word, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
        raise UserError(f"no word of the corpus is seen more than min_count={min_count} times (the most frequent, {word!r}, {count} times); "
                        "use a larger corpus or a smaller --min_count")
    return words
