"""The alignment table: pivot words and their translations, as flat arrays."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from runtime.errors import UserError


def ranges(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """first[i], first[i] + 1, ..., first[i] + length[i] - 1 for every i in turn -> (length.sum(),) int64."""
    return np.repeat(first - np.cumsum(length) + length, length) + np.arange(length.sum())


@dataclass(frozen=True)
class Table:
    """The alignment table: each entry has one pivot word, in language 0, and translations in languages 1, 2, ..."""

    # With the pivot first; L of them.
    languages: tuple[str, ...]
    # (K,) int64: how often the pivot word of each entry stands in the corpus in this form.
    frequency: np.ndarray
    # (K * L + 1,) int64: entry k (k + 1 in alignment bins) has in language l the words from groups[k * L + l] on, up to
    # groups[k * L + l + 1].
    groups: np.ndarray
    # (words + 1,) int64: word w has the tokens from offsets[w] on, up to offsets[w + 1].
    offsets: np.ndarray
    # int32
    tokens: np.ndarray

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
        """The table that `save` left at `path`. Raises UserError when it is missing or damaged."""
        try:
            # The archive has a checksum of each array.
            with np.load(path, allow_pickle=False) as arrays:
                loaded = {field.name: arrays[field.name] for field in fields(Table)}
            return Table(**loaded | {"languages": tuple(loaded["languages"].tolist())})
        # zipfile and zlib raise errors of their own for a damaged archive.
        except Exception as e:
            raise UserError(f"{path}: not an alignment table ({type(e).__name__}: {e}); run data.py again") from e


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
