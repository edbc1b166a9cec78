"""Documents to memory-mapped bins: token ids, and beside the pivot's the alignment ids; in parallel, and resumable."""

import contextlib
import functools
import itertools
import json
import math
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import tiktoken

import knowledge
from config import Config, UserError
from dataset import text_language
from files import remember, remembered
from processes import Workers
from table import CHUNK, ranges, words_of_chunk
from tokenizer import encode, load_tokenizer, token_byte_lengths

MAX_CHUNKS = 1_000_000     # remembered by each process: about 130 MB
BATCHES_PER_SAVE = 128     # of about 500,000 characters: what is done again after an interruption


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits, else uint32. Raises UserError beyond 2**31 ids, which the table's int32 could not hold."""
    if vocab_size <= 2**31:
        return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    raise UserError(f"{vocab_size:,} token ids do not fit in 31 bits; use a smaller vocabulary or fewer cloned languages")


class Chunks(dict[str, int]):
    """Every chunk met, numbered from 0, and as flat arrays the words of the table that stand in each."""

    def __init__(self, surfaces: list[str]):
        super().__init__()
        self.entry = {surface: k for k, surface in enumerate(surfaces, 1)}
        self.clear()

    def clear(self) -> None:
        super().clear()
        self.length, self.words = array("q"), array("q", [0])  # of each chunk its bytes, and the words of all chunks up to it
        self.spans = array("q")                                # of each word its first byte in the chunk, the byte after its last, its entry

    def __missing__(self, chunk: str) -> int:
        for first, end, surface in words_of_chunk(chunk):
            if (entry := self.entry.get(surface)) is not None:
                self.spans.extend((first, end, entry))
        self.length.append(len(chunk.encode()))
        self.words.append(len(self.spans) // 3)
        self[chunk] = len(self)
        return len(self) - 1

    def spans_of(self, text: str) -> np.ndarray:
        """(first byte, byte after the last, entry) of every word of a text that is in the table, (words, 3) int64."""
        if len(self) > MAX_CHUNKS:
            self.clear()
        chunks = CHUNK.findall(text)
        number = np.fromiter(map(self.__getitem__, chunks), np.int64, len(chunks))
        length, words, spans = (np.frombuffer(flat, np.int64) if flat else np.zeros(0, np.int64) for flat in (self.length, self.words, self.spans))
        first, count = words[number], words[number + 1] - words[number]
        start = np.cumsum(length[number]) - length[number]  # of each chunk in the text
        found = spans.reshape(-1, 3)[ranges(first, count)]
        found[:, :2] += np.repeat(start, count)[:, None]
        return found


class Encoder:
    """Text to token ids and alignment ids. Remembers the words of every chunk it has seen."""

    def __init__(self, encoding: tiktoken.Encoding, surfaces: list[str]):
        self.encoding = encoding
        self.token_bytes = token_byte_lengths(encoding)
        self.chunks = Chunks(surfaces)

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Token ids (n,) int64 and alignment ids (n,) int32 of a document, without end-of-text.

        A word is marked when tokens begin and end exactly where it does: +k on its first token, -k on the others.
        """
        ids = encode(self.encoding, text)
        align = np.zeros(len(ids), dtype=np.int32)
        first, end, entry = self.chunks.spans_of(text).T  # (words,) each
        n_bytes = self.token_bytes[ids]
        token_end = np.cumsum(n_bytes)  # (n,)
        total = int(token_end[-1]) if len(ids) else 0
        starting, ending = np.full(total + 1, -1), np.full(total + 1, -1)  # the token that starts, or ends, at a byte
        starting[token_end - n_bytes] = ending[token_end] = np.arange(len(ids))
        i, j = starting[first], ending[end]
        whole = (i >= 0) & (j >= 0)
        i, j, entry = i[whole], j[whole], entry[whole]
        length = j - i + 1
        align[ranges(i, length)] = -np.repeat(entry, length)  # every token of every word
        align[i] = entry
        return ids, align


_encoder: Encoder  # of a worker process


def start_worker(tokenizer: str, tokenizer_path: str, surfaces_path: str) -> None:
    global _encoder
    with open(surfaces_path, encoding="utf-8") as f:
        _encoder = Encoder(load_tokenizer(tokenizer, tokenizer_path), json.load(f))


def encode_documents(texts: list[str], aligned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Of documents, each ended by end-of-text (no entry): token ids (n,), alignment ids (n,) int32 (0 when not `aligned`), where each
    document ends in them (documents,), and its bytes and words (separated by white space) (documents, 2).
    """
    ids, align = [], []
    for text in texts:
        i, a = _encoder(text) if aligned else (plain := encode(_encoder.encoding, text), np.zeros(len(plain), dtype=np.int32))
        ids.append(np.append(i, _encoder.encoding.eot_token))
        align.append(np.append(a, np.int32(0)))
    return np.concatenate(ids), np.concatenate(align), np.cumsum([len(i) for i in ids]), np.array([(len(text.encode()), len(text.split())) for text in texts])


def text_batches(texts: Iterable[str], size: int = 500_000) -> Iterator[list[str]]:
    """Lists of documents of about `size` characters: enough work for a process at a time."""
    batch, length = [], 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


class Progress:
    """How far the bins of a preparation are, in a file of its folder, so that an interrupted one goes on where it stopped."""

    def __init__(self, folder: str):
        self.path = os.path.join(folder, "progress.json")
        self.bins: dict[str, dict] = remembered(self.path, dict)

    def save(self, name: str, batches: int, counts: dict[str, int], files: Iterable[BinaryIO], finished: bool) -> None:
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.bins[name] = {"batches": batches, "counts": counts, "finished": finished}
        remember(self.path, self.bins)


def write_bins(texts: Iterable[str], language: str, split: str, config: Config, folder: str, workers: Workers, offsets: dict[str, int], dtype: np.dtype,
               progress: Progress) -> dict:
    """
    LANGUAGE_SPLIT.bin, of whole documents up to the language's budget; for the pivot also its .align.bin and the bin of
    En-Clone. Goes on after the last batch of documents that `progress` has. Returns the counts for meta.json.
    """
    name, is_pivot = f"{language}_{split}", language == config.pivot
    budget = config.budget.get(language, math.inf) if split == "train" else math.inf
    before = progress.bins.get(name, {"batches": 0, "counts": {"documents": 0, "bytes": 0, "words": 0, "tokens": 0, "aligned_words": 0}, "finished": False})
    count, number, done = dict(before["counts"]), before["batches"], before["batches"]

    def create(name: str, bytes_per_token: int) -> BinaryIO:
        path = os.path.join(folder, name)
        file = files.enter_context(open(path, "r+b" if done else "wb"))
        file.truncate(count["tokens"] * bytes_per_token)
        file.seek(0, os.SEEK_END)
        return file

    def batches() -> Iterator[list[str]]:
        for batch in itertools.islice(text_batches(texts), done, None):
            if count["tokens"] >= budget:
                return
            yield batch

    with contextlib.ExitStack() as files:
        bins = {language: create(f"{name}.bin", dtype.itemsize)}
        if is_pivot:
            alignment = create(f"{name}.align.bin", 4)
            bins |= {clone: create(f"{clone}_{split}.bin", dtype.itemsize) for clone in config.targets if clone == "clone"}
        everything = [*bins.values(), alignment] if is_pivot else list(bins.values())
        if before["finished"]:
            return count
        for ids, align, ends, sizes in workers.map(functools.partial(encode_documents, aligned=is_pivot), batches()):
            enough = int(np.searchsorted(count["tokens"] + ends, budget)) + 1  # documents until the budget is reached
            ids, align, sizes = ids[:ends[:enough][-1]], align[:ends[:enough][-1]], sizes[:enough]
            for of_language, file in bins.items():
                (ids + offsets[of_language]).astype(dtype).tofile(file)
            if is_pivot:
                align.astype("<i4").tofile(alignment)
            count["documents"] += len(sizes)
            count["bytes"] += int(sizes[:, 0].sum())
            count["words"] += int(sizes[:, 1].sum())
            count["tokens"] += len(ids)
            count["aligned_words"] += int((align > 0).sum())
            number += 1
            if number % BATCHES_PER_SAVE == 0:
                progress.save(name, number, count, everything, finished=False)
            if count["tokens"] >= budget:
                break
        progress.save(name, number, count, everything, finished=True)
    return count


def write_facts(stated: list[knowledge.Fact], encoder: Encoder, config: Config, folder: str, offsets: dict[str, int], dtype: np.dtype) -> dict:
    """
    PIVOT_facts.bin and PIVOT_facts.align.bin: statements as documents, in the order in which they are stated, each in its
    fact's language (only words of the pivot have entries); returns the counts for meta.json.
    """
    known = {}
    for fact in stated:
        if fact.index not in known:
            text = knowledge.statement(fact, text_language(fact.language, config.pivot))
            ids, align = encoder(text)
            ids, align = np.append(ids, encoder.encoding.eot_token), np.append(align, 0)
            if fact.language != config.pivot:
                ids, align = ids + offsets[fact.language], np.zeros_like(align)
            known[fact.index] = ids, align, len(text.encode())
    ids, align, sizes = zip(*(known[fact.index] for fact in stated))
    ids, align = np.concatenate(ids), np.concatenate(align)
    ids.astype(dtype).tofile(os.path.join(folder, f"{config.pivot}_facts.bin"))
    align.astype("<i4").tofile(os.path.join(folder, f"{config.pivot}_facts.align.bin"))
    lengths, periods = np.array([len(known[fact.index][0]) for fact in stated]), np.array([fact.period for fact in stated])
    return {"documents": len(stated), "bytes": sum(sizes), "tokens": len(ids), "aligned_words": int((align > 0).sum()),
            "period_ends": [int(lengths[periods <= period].sum()) for period in range(config.fact_periods)]}
