"""
Words as they stand in text, and the alignment table: pivot words and their translations, as flat arrays.

A word's *surface form* carries the space before it, if there is one: " house" and "house" are different token sequences,
so they are different entries, each with the translation that can stand in its place.
"""

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from nltk.tokenize import NLTKWordTokenizer

from config import UserError

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


def ranges(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """first[i], first[i] + 1, ..., first[i] + length[i] - 1 for every i, one after the other -> (length.sum(),) int64."""
    return np.repeat(first - np.cumsum(length) + length, length) + np.arange(length.sum())


@dataclass(frozen=True)
class Table:
    """
    The alignment table as flat arrays. Entry k (0-based here; k + 1 in alignment bins) has one pivot word, language 0,
    and any number of translations in languages 1..len(languages) - 1. The words of entry k in language l are

        groups[k * L + l] : groups[k * L + l + 1]      with L = len(languages)

    and the token ids of word w are tokens[offsets[w] : offsets[w + 1]].
    """

    languages: tuple[str, ...]  # pivot first
    frequency: np.ndarray       # (K,) int64, how often the pivot word stands in the corpus in this form
    groups: np.ndarray          # (K * L + 1,) int64
    offsets: np.ndarray         # (words + 1,) int64
    tokens: np.ndarray          # int32

    def __len__(self) -> int:
        return len(self.frequency)

    def word(self, w: int) -> np.ndarray:
        return self.tokens[self.offsets[w]:self.offsets[w + 1]]

    def words(self, entry: int, language: int) -> range:
        """The words of an entry in a language, for `word`."""
        group = entry * len(self.languages) + language
        return range(int(self.groups[group]), int(self.groups[group + 1]))

    def top(self, share: float) -> "Table":
        """The table of this share of its entries, the most frequent ones, which come first."""
        K = math.ceil(share * len(self))
        return replace(self, frequency=self.frequency[:K], groups=self.groups[:K * len(self.languages) + 1])

    def save(self, path: str) -> None:
        np.savez(path, languages=np.array(self.languages), frequency=self.frequency, groups=self.groups,
                 offsets=self.offsets, tokens=self.tokens)

    @staticmethod
    def load(path: str) -> "Table":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                table = Table(tuple(str(name) for name in arrays["languages"]), arrays["frequency"], arrays["groups"],
                              arrays["offsets"], arrays["tokens"])
        except (OSError, ValueError, KeyError, EOFError) as e:
            raise UserError(f"{path}: not an alignment table ({e}); run data.py again") from e
        except Exception as e:  # zipfile raises its own for a damaged archive
            raise UserError(f"{path}: damaged alignment table ({type(e).__name__}: {e}); run data.py again") from e
        flat = all(isinstance(a, np.ndarray) and a.ndim == 1 and np.issubdtype(a.dtype, np.integer) for a in (table.frequency, table.groups, table.offsets, table.tokens))
        fits = (flat and len(table.groups) == len(table) * len(table.languages) + 1 and len(table.offsets) == table.groups[-1] + 1
                and len(table.tokens) == table.offsets[-1] and table.groups[0] == table.offsets[0] == 0
                and (np.diff(table.groups) >= 0).all() and (np.diff(table.offsets) > 0).all()
                and (np.diff(table.groups)[::len(table.languages)] == 1).all())
        if not fits:
            raise UserError(f"{path}: the arrays of the alignment table do not fit each other; run data.py again")
        return table


def make_table(words: list[list[list[np.ndarray]]], frequency: list[int], languages: tuple[str, ...]) -> Table:
    """The table whose entry k has in language l the words `words[k][l]`, each an array of token ids."""
    flat = [word for entry in words for group in entry for word in group]
    return Table(
        languages=languages,
        frequency=np.array(frequency, dtype=np.int64),
        groups=np.cumsum([0] + [len(group) for entry in words for group in entry], dtype=np.int64),
        offsets=np.cumsum([0] + [len(word) for word in flat], dtype=np.int64),
        tokens=np.concatenate(flat).astype(np.int32),
    )


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
