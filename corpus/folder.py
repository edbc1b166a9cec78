"""A prepared folder, opened: what data.py wrote, by its meta.json, with the bins memory-mapped."""

import functools
import os

import numpy as np
import tiktoken

from corpus.table import Table
from corpus.tokenizer import load_tokenizer
from runtime.config import from_plain
from runtime.errors import UserError
from runtime.files import read_json

FORMAT = 13
AGAIN = "run `python data.py` with the same config"


def text_language(language: str, pivot: str) -> str:
    """The language whose text is behind `language`: En-Clone's is the pivot's."""
    return pivot if language == "clone" else language


class Folder:
    """A prepared folder. `fingerprint` is a digest of what it was made from, which checkpoints carry."""

    def __init__(self, data_dir: str):
        self.dir, path = data_dir, os.path.join(data_dir, "meta.json")
        meta = self.meta = read_json(path, AGAIN)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise UserError(f"{path}: expected data in format {FORMAT}; {AGAIN}")
        self.V, self.vocab_size, self.end_of_text = meta["V"], meta["vocab_size"], meta["end_of_text"]
        self.splits, self.fingerprint = meta["splits"], meta["fingerprint"]
        # What is added to an id of the vocabulary in each language: En-Clone has ids of its own, the others share them.
        self.first_id = meta["first_id"]
        self.languages = tuple(self.first_id)
        self.pivot = self.languages[0]
        # The smallest type that every id fits in.
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        # Of the settings only those of the folder count; the default mix may name a language that is not here.
        self.settings = from_plain(meta["settings"] | {"mix": {self.pivot: 1.0}}, path)

    def path(self, name: str) -> str:
        """The path of one of the folder's files. Raises UserError unless it has the size that meta.json says."""
        path, expected = os.path.join(self.dir, name), self.meta["sizes"][name]
        found = os.path.getsize(path) if os.path.exists(path) else "no file"
        if found != expected:
            raise UserError(f"{path}: expected {expected} bytes by meta.json, found {found}; {AGAIN}")
        return path

    def to_language(self, ids: np.ndarray, language: str) -> np.ndarray:
        """The ids of `language` for ids of the vocabulary: themselves, or in En-Clone id + V. All share end-of-text."""
        return np.where(ids == self.end_of_text, ids, ids + self.first_id[language])

    def ids_of(self, language: str) -> np.ndarray:
        """The id in `language` of every id of the vocabulary (V,) int64."""
        return self.to_language(np.arange(self.V), language)

    def check_ids(self, tokens: np.ndarray, name: str) -> None:
        """Raises UserError for an id beyond the vocabulary, from a damaged bin: a GPU would stop without a message."""
        if len(tokens) and tokens.max() >= self.vocab_size:
            raise UserError(f"{self.dir}: the text of {name} has the token id {tokens.max()}, and ids end at "
                            f"{self.vocab_size - 1}: it is damaged; delete the folder and run data.py again")

    def tokens(self, language: str, split: str) -> np.ndarray:
        """Token ids (n,), memory-mapped."""
        if language not in self.splits.get(split, ()):
            raise UserError(f"{self.dir} has no {split} text in {language!r}; it has {', '.join(self.languages)} and "
                            f"{', '.join(self.splits)}")
        return np.memmap(self.path(f"{language}_{split}.bin"), self.dtype, mode="r")

    def align(self, split: str) -> np.ndarray:
        """Alignment ids (n,) int32 of a split of the pivot's text, memory-mapped."""
        return np.memmap(self.path(f"{self.pivot}_{split}.align.bin"), np.dtype("<i4"), mode="r")

    @functools.cached_property
    def table(self) -> Table:
        return Table.load(self.path("table.npz"))

    @functools.cached_property
    def encoding(self) -> tiktoken.Encoding:
        name = self.settings.tokenizer
        return load_tokenizer(name, self.path("tokenizer.tiktoken") if name == "train" else "")
