"""A prepared data folder, opened: what data.py wrote, checked against its meta.json, bins memory-mapped."""

import functools
import os

import numpy as np
import tiktoken

from runtime import config as configs
from runtime.errors import UserError
from runtime.files import json_digest, read_json
from runtime.hashing import file_digest
from corpus.table import Table
from corpus.tokenizer import load_tokenizer

FORMAT = 7
DTYPES: dict[str, np.dtype] = {"<u2": np.dtype("<u2"), "<u4": np.dtype("<u4")}  # of token ids in bins: a file does not choose any other


def text_language(language: str, pivot: str) -> str:
    """The language whose text is behind `language`: En-Clone's is the pivot's."""
    return pivot if language == "clone" else language


def digest_of(meta: dict) -> str:
    """SHA-256 of all else in meta.json."""
    return json_digest({key: value for key, value in meta.items() if key != "digest"})


def read_meta(data_dir: str) -> dict:
    path = os.path.join(data_dir, "meta.json")
    again = "run `python data.py` with the same config"
    try:
        meta = read_json(path, again)
    except OSError as e:
        raise UserError(f"no prepared data in {data_dir} ({e.strerror}); {again}") from e
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise UserError(f"{path}: expected data format {FORMAT}, found {found}; {again}")
    if meta.get("digest") != digest_of(meta):
        raise UserError(f"{path}: not as data.py wrote it; delete {data_dir} and {again}")
    return meta


class Folder:
    """A prepared data folder, opened: sizes checked against meta.json, bins memory-mapped."""

    def __init__(self, data_dir: str):
        self.dir = data_dir
        self.meta = read_meta(data_dir)
        try:
            self.V, self.vocab_size, self.end_of_text = self.meta["V"], self.meta["vocab_size"], self.meta["end_of_text"]
            self.offsets, self.splits, self.dtype = self.meta["offsets"], self.meta["splits"], DTYPES[self.meta["dtype"]]
            self.languages = tuple(self.offsets)
            self.pivot = self.languages[0]
            self.fingerprint = json_digest(self.meta["digests"])
            settings = self.meta["made_from"]["settings"]
            self.settings = configs.from_plain(settings | {"mix": {settings["pivot"]: 1.0}}, os.path.join(data_dir, "meta.json"))
            ends = self.splits["facts"][self.pivot]["period_ends"] if "facts" in self.splits else []
            numbers = [self.V, self.end_of_text, *self.offsets.values(), *(counts["tokens"] for split in self.splits.values() for counts in split.values()), *ends]
            fits = (isinstance(self.meta["digests"], dict) and all(type(n) is int and n >= 0 for n in numbers) and self.end_of_text < self.V
                    and self.vocab_size == self.V + max(self.offsets.values())
                    and isinstance(self.meta["samples"], dict) and ends == sorted(ends)
                    and (ends[-1] == self.splits["facts"][self.pivot]["tokens"] if ends else "facts" not in self.splits))
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{data_dir}/meta.json: {e} is missing or of the wrong kind; run `python data.py` with the same config") from e
        if not fits:
            raise UserError(f"{data_dir}/meta.json: V, vocab_size, end_of_text, offsets, counts of tokens and period_ends do not fit each other; "
                            "run `python data.py` with the same config")

    def intact(self, name: str) -> bool:
        path = os.path.join(self.dir, name)
        return os.path.isfile(path) and file_digest(path) == self.meta["samples"].get(name)

    def _map(self, name: str, dtype: np.dtype, tokens: int) -> np.ndarray:
        path = os.path.join(self.dir, name)
        expected = tokens * dtype.itemsize
        try:
            found = os.path.getsize(path)
        except OSError as e:
            raise UserError(f"{path}: {e.strerror}; run `python data.py` with the same config") from e
        if found != expected:
            raise UserError(f"{path}: expected {expected} bytes by meta.json, found {found}; delete {self.dir} and run `python data.py` again")
        if file_digest(path) != self.meta["samples"].get(name):
            raise UserError(f"{path}: not the file that meta.json describes; delete {self.dir} and run `python data.py` again")
        return np.memmap(path, dtype, mode="r")

    def to_language(self, ids: np.ndarray, language: str) -> np.ndarray:
        """The token ids that stand in `language` for ids of the vocabulary: themselves, or in En-Clone id + V."""
        return ids + self.offsets[language]

    def ids_of(self, language: str) -> np.ndarray:
        """The id in `language` of every id of the vocabulary (V,) int64."""
        return self.to_language(np.arange(self.V), language)

    def check_ids(self, tokens: np.ndarray, name: str) -> None:
        """
        Raises UserError for an id that is not one of the language's (of the vocabulary, for "facts" in several languages): in a
        large bin a damage may lie between the blocks that its digest has.
        """
        first = self.offsets.get(name, 0)
        end = first + self.V if name in self.offsets else self.vocab_size
        if len(tokens) and not first <= tokens.min() <= tokens.max() < end:
            wrong = tokens.min() if tokens.min() < first else tokens.max()
            raise UserError(f"{self.dir}: the text of {name} has the token id {wrong}, and its ids are {first} to {end - 1}: it is damaged; "
                            "delete the folder and run data.py again")

    def tokens(self, language: str, split: str) -> np.ndarray:
        """Token ids (n,), memory-mapped. Those of held-out text are checked; of the rest, which may be very long, whoever reads a part checks that."""
        if language not in self.splits.get(split, ()):
            raise UserError(f"{self.dir} has no {split} text in {language!r}; it has {', '.join(self.languages)} and {', '.join(self.splits)}")
        tokens = self._map(f"{language}_{split}.bin", self.dtype, self.splits[split][language]["tokens"])
        if split == "val":
            self.check_ids(tokens, language)
        return tokens

    def align(self, split: str) -> np.ndarray:
        """Alignment ids (n,) int32 of the pivot, memory-mapped."""
        return self._map(f"{self.pivot}_{split}.align.bin", np.dtype("<i4"), self.splits[split][self.pivot]["tokens"])

    @functools.cached_property
    def table(self) -> Table:
        table = Table.load(os.path.join(self.dir, "table.npz"))
        if not self.intact("table.npz"):
            raise UserError(f"{self.dir}/table.npz: not the file that meta.json describes; run data.py again")
        if table.languages != self.languages or (len(table.tokens) and not 0 <= table.tokens.min() <= table.tokens.max() < self.vocab_size):
            raise UserError(f"{self.dir}/table.npz: its languages or token ids are not those of meta.json; run data.py again")
        return table

    @functools.cached_property
    def encoding(self) -> tiktoken.Encoding:
        if self.settings.tokenizer == "train" and not self.intact("tokenizer.tiktoken"):
            raise UserError(f"{self.dir}/tokenizer.tiktoken: not the file that meta.json describes; run data.py again")
        encoding = load_tokenizer(self.settings.tokenizer, os.path.join(self.dir, "tokenizer.tiktoken"))
        if (encoding.n_vocab, encoding.eot_token) != (self.V, self.end_of_text):
            raise UserError(f"{self.dir}: its tokenizer has {encoding.n_vocab} ids and end-of-text {encoding.eot_token}, meta.json says {self.V} and {self.end_of_text}; "
                            "run data.py again")
        return encoding
