"""The alignment table: pivot words and their translations, as flat arrays, and as table.tsv for people."""

import itertools
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import tiktoken

from corpus.readers import normalise, read_lines
from corpus.tokenizer import encode
from runtime.errors import UserError
from runtime.files import write_text

# A row: surface form of a pivot word, language, translation, both words as they stand in text.
Row = tuple[str, str, str]
COLUMNS = ("entry", "frequency", "pivot", "language", "translation")


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
        np.savez(path, **vars(self))

    @staticmethod
    def load(path: str) -> "Table":
        """The table that `save` left at `path`."""
        with np.load(path, allow_pickle=False) as arrays:
            return Table(**{**arrays, "languages": tuple(arrays["languages"].tolist())})


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


# ---- table.tsv ----

def keep_short(rows: list[Row], encoding: tiktoken.Encoding, most: int) -> list[Row]:
    """Rows whose translation has at most `most` tokens (0: all rows). Raises UserError when nothing is left."""
    # En-Clone's words are kept whole: each of their tokens means one of the pivot's.
    short = [row for row in rows if not most or row[1] == "clone" or len(encode(encoding, row[2])) <= most]
    if not short:
        raise UserError(f"no translation has translation_tokens={most} tokens or fewer; allow more, or use a larger "
                        "vocab_size")
    return short


def write_table(rows: list[Row], counts: Counter, encoding: tiktoken.Encoding, offsets: dict[str, int],
                folder: str) -> int:
    """
    Writes table.npz, in which En-Clone's translations are a word's own token ids + V, and table.tsv for people, words
    quoted as in JSON, so that leading spaces and line ends show. Returns the number of entries.
    """
    targets = list(offsets)[1:]
    words: list[list[list[np.ndarray]]] = []
    frequency, lines = [], ["\t".join(COLUMNS)]
    for k, (surface, found) in enumerate(itertools.groupby(rows, key=lambda row: row[0]), 1):
        frequency.append(counts[surface])
        words.append([[encode(encoding, surface)], *([] for _ in targets)])
        for _, language, translation in found:
            words[-1][1 + targets.index(language)].append(encode(encoding, translation) + offsets[language])
            quoted = [json.dumps(word, ensure_ascii=False) for word in (surface, translation)]
            lines.append(f"{k}\t{counts[surface]}\t{quoted[0]}\t{language}\t{quoted[1]}")
    make_table(words, frequency, tuple(offsets)).save(os.path.join(folder, "table.npz"))
    write_text(os.path.join(folder, "table.tsv"), "\n".join(lines) + "\n")
    return len(words)


def read_table_tsv(path: str, targets: tuple[str, ...]) -> list[Row]:
    """The rows of a table.tsv that a person may have edited. Raises UserError for a wrong line."""
    rows: dict[Row, None] = {}
    for number, line in read_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or tuple(fields) == COLUMNS:
            continue
        try:
            # Entry and frequency do not count.
            _, _, surface, language, translation = fields
            surface, translation = normalise(json.loads(surface)), normalise(json.loads(translation))
            valid = language in targets and all(isinstance(word, str) and word for word in (surface, translation))
        except (ValueError, TypeError):
            valid = False
        # In En-Clone every word is its own translation.
        if not valid or language == "clone" and translation != surface:
            raise UserError(f"{path}:{number}: expected {', '.join(COLUMNS)} with tabs between them, both words quoted "
                            f"as in JSON, and a language of {', '.join(targets)}; found {line.strip()[:80]!r}")
        rows[surface, language, translation] = None
    if not rows:
        raise UserError(f"{path}: there is no translation in this table")
    return list(rows)
