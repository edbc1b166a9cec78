"""
Bins with alignment ids, and the rows of a step: text to memory-mapped token bins, codeswitching, batches.

    python data.py config/demo.py               # makes data/demo; does nothing when it is there and up to date

Everything is built in DATA_DIR.partial and renamed when whole; the same command goes on with what an interrupted one has
left there. Batches are stateless: every random choice is a hash of (seed, what it is for, where it is), so the rows of a
step are the same after a resume and for any number of processes, and nothing has to be saved or fast-forwarded.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import queue
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import tiktoken
import torch
from tqdm import tqdm

from corpus import dictionary
from corpus.build import (OURS, Texts, check_targets, count_pivot_surfaces, fit_to_text, in_share, is_made, made_from, move_into_place,
                          open_partial, read_dictionaries, summary, text_batches)
from corpus.folder import FORMAT, Folder, digest_of, text_language
from corpus.table import Table, ranges
from corpus.tokenizer import encode, load_tokenizer, token_byte_lengths, train_tokenizer
from corpus.words import CHUNK, aligned_surfaces, words_of_chunk
from runtime import config as configs
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import exclusive, remember, remembered, write_json
from runtime.hashing import LANGUAGE, SWITCH, TRANSLATION, file_digest, permute, uniform
from runtime.parallel import Workers
from tasks import facts as knowledge

Made = TypeVar("Made")
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


def prepare(config: Config) -> None:
    """
    Make config.data_dir, unless it is there and made from the same inputs with the same settings. Interrupted, it goes on where
    it stopped.
    """
    check_targets(config)
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")  # before the long part, as it may not be there
    origin = made_from(config)
    if is_made(config.data_dir, origin):
        print(f"{config.data_dir} is up to date")
        return
    # Read before the long part, so that what is wrong in them is told at once.
    by_hand = dictionary.read_table_tsv(config.table, config) if config.table else {}
    books = {} if config.table else read_dictionaries(config)
    with exclusive(config.data_dir):
        if not is_made(config.data_dir, origin):  # another process may have just made it
            make(config, origin, by_hand, books)


def make(config: Config, origin: dict, by_hand: dict[str, dict[str, list[str]]], books: dict[str, dictionary.Dictionary]) -> None:
    """All files of a data folder, from a table made by hand or from dictionaries."""
    partial = open_partial(config.data_dir, origin)
    if is_made(partial, origin):  # interrupted at its very end
        return move_into_place(partial, config.data_dir)
    work = os.path.join(partial, "work")
    texts = Texts(config, work)

    facts = knowledge.facts_of(config)
    stated = knowledge.in_training_order(facts, knowledge.FACT_SEED)
    statements = [knowledge.statement(fact, config.pivot) for fact in stated if text_language(fact.language, config.pivot) == config.pivot]
    print(f"counting words with {config.workers or os.cpu_count()} processes")
    counts = Counter(remembered(os.path.join(work, "counts.json"),
                                lambda: count_pivot_surfaces(config, texts.of(config.pivot, "train", f"words {config.pivot}"), statements)))
    dictionaries: dict[str, dictionary.Dictionary] = {}
    if config.table:  # an entry's number is its place by frequency, whatever was edited
        translated = {surface: by_hand[surface] for surface in sorted(by_hand, key=lambda s: (-counts[s], s)) if counts[surface]}
        print(f"{config.table}: {len(by_hand):,} words, of which the text has {len(translated):,}")
    else:
        dictionaries = fit_to_text(books, config, texts, work)
        translated = dictionary.translate_surfaces(aligned_surfaces(counts, config.min_count), dictionaries, config)
    if not translated:
        raise UserError(f"no word of the corpus that is seen more than min_count={config.min_count} times stands in {config.table or config.dictionary}; is it the right "
                        "one, and the right way round (--dictionary_target_first)?")

    tokenizer_path = os.path.join(partial, "tokenizer.tiktoken")
    if config.tokenizer == "train" and not os.path.exists(tokenizer_path):
        print(f"training a vocabulary of {config.vocab_size} tokens")
        sample = (text for language in config.written for text in texts.of(language, "train", f"vocabulary {language}")
                  if in_share(text, config.tokenizer_share.get(language, 1.0)))
        train_tokenizer(sample, config.vocab_size, tokenizer_path)
    encoding = load_tokenizer(config.tokenizer, tokenizer_path)
    V = encoding.n_vocab
    if config.tokenizer == "train" and V < config.vocab_size:
        print(f"the corpus makes only {V} of the {config.vocab_size} tokens asked for")
    offsets = {language: V if language == "clone" else 0 for language in (config.pivot, *config.targets)}
    vocab_size = V + max(offsets.values())
    dtype = smallest_dtype(vocab_size)
    splits: dict[str, dict[str, dict]] = {"train": {}, "val": {}}
    progress, surfaces_path = Progress(work), os.path.join(work, "surfaces.json")
    complete, translated = translated, dictionary.keep_short(translated, encoding, config.translation_tokens)
    dictionary.write_table(translated, counts, encoding, offsets, partial)
    surfaces = list(translated)
    write_json(surfaces_path, surfaces)
    with Workers(config.workers, start_worker, config.tokenizer, tokenizer_path, surfaces_path) as workers:
        for language in config.written:
            for split in splits:
                splits[split][language] = write_bins(texts.of(language, split, f"tokens {language} {split}"), language, split, config, partial, workers,
                                                     offsets, dtype, progress)
    if "clone" in config.targets:
        for split in splits:
            splits[split]["clone"] = splits[split][config.pivot] | {"aligned_words": 0}
    if stated:
        splits["facts"] = {config.pivot: write_facts(stated, Encoder(encoding, surfaces), config, partial, offsets, dtype)}

    files = [name for name in sorted(os.listdir(partial)) if OURS.fullmatch(name) and name != "meta.json"]
    meta = {
        "format": FORMAT, "made_from": origin, "V": V, "vocab_size": vocab_size,
        "end_of_text": encoding.eot_token, "dtype": dtype.str, "splits": splits, "entries": len(surfaces),
        "offsets": offsets, "coverage": dictionary.coverage(translated, complete, counts, dictionaries, config.written[1:]),
        "digests": {name: file_digest(os.path.join(partial, name), blocks=0) for name in tqdm(files, desc="digests", unit="file", disable=None)},
        "samples": {name: file_digest(os.path.join(partial, name)) for name in files},
    }
    write_json(os.path.join(partial, "meta.json"), meta | {"digest": digest_of(meta)})
    move_into_place(partial, config.data_dir)
    print(summary(config, meta))


def stream_of_rows(rows: np.ndarray, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """
    Deal global rows 0, 1, 2, ... out to streams by weight, evenly: after any number of rows each stream has had its share
    to within one row per stream.

    rows (n,) int64 -> (stream (n,), index of the row within its stream (n,)), both int64
    """
    stream = np.full(len(rows), -1)
    index = np.empty(len(rows), dtype=np.int64)
    rest, share_left = rows.astype(np.int64), 1.0
    for s, weight in enumerate(weights):
        open_ = stream < 0
        # Of the rows left over by the streams before, every (1 / share)-th is this stream's.
        share = min(1.0, weight / share_left) if s < len(weights) - 1 else 1.0
        before = np.floor(rest * share).astype(np.int64)
        mine = open_ & (np.floor((rest + 1) * share).astype(np.int64) > before)
        stream[mine], index[mine] = s, before[mine]
        rest = rest - before
        share_left = max(share_left - weight, 1e-12)
    return stream, index


def codeswitch(tokens: np.ndarray, align: np.ndarray, table: Table, ratio: float, rows: np.ndarray, seed: int,
               length: int, target: str, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Replace words of the pivot by translations (paper, section 3.3).

    Each word that lies wholly inside its row and has an entry is replaced with probability `ratio`: by one of the
    languages its entry has, and one of that language's translations, both drawn uniformly.

    tokens, align  (R, W) token and alignment ids as in the bins; W may exceed `length`, to have tokens to fill up with
                   where a translation is shorter than its word
    rows           (R,) global row numbers: with `seed` they key the random choices
    returns        (inputs, labels), both (R, length) int64: the spliced row, cut or padded with `pad`, and for each
                   position the same token as a *target*, -1 where it is not to be predicted. By `target`:
                   "input-only" (Eq. 6): no spliced-in token; "vanilla" (Eq. 5): every token;
                   "original": in place of the first spliced-in token the first token of the replaced word, then none.
    """
    R, W = tokens.shape
    position = np.broadcast_to(np.arange(W), (R, W))
    first = align > 0
    later = align < 0
    # Each token's word begins at start (R, W); a row that begins inside a word has -1 there.
    start = np.maximum.accumulate(np.where(first, position, -1), axis=1)
    in_word = later & (start >= 0)
    # A word may go on past the row's end only if its last token here is the row's last: leave that one alone.
    last_of_row = first[:, -1] | later[:, -1]
    ends_row = np.zeros((R, W), dtype=bool)
    ends_row[last_of_row, np.maximum(start[last_of_row, -1], 0)] = True

    picked = first & ~ends_row & (uniform(seed, SWITCH, rows[:, None], position) < ratio)
    r, p = np.nonzero(picked)  # (n,) each: row and first position of every picked word
    entry = align[r, p].astype(np.int64) - 1
    L = len(table.languages)
    sizes = np.diff(table.groups).reshape(len(table), L)[entry, 1:] if len(entry) else np.zeros((0, L - 1), dtype=np.int64)  # (n, L - 1)
    has = np.cumsum(sizes > 0, axis=1)
    language = 1 + np.argmax(has > np.floor(uniform(seed, LANGUAGE, rows[r], p) * has[:, -1])[:, None], axis=1) if len(entry) else entry
    group = entry * L + language
    number = np.diff(table.groups)[group] if len(entry) else entry
    word = table.groups[group] + np.floor(uniform(seed, TRANSLATION, rows[r], p) * number).astype(np.int64)
    exists = number > 0  # an entry without translations is left as it is
    r, p, word = r[exists], p[exists], word[exists]

    # How many tokens each position gives: 1, or a translation's length at its first token and 0 at its later ones.
    gives = np.ones((R, W), dtype=np.int64)
    word_length = table.offsets[word + 1] - table.offsets[word]
    switched = np.zeros((R, W), dtype=bool)
    switched[r, p] = True
    gone = in_word & switched[np.arange(R)[:, None], np.maximum(start, 0)]
    gives[gone] = 0
    gives[r, p] = word_length

    ends = np.cumsum(gives, axis=1)  # (R, W): output position after each
    begins = ends - gives
    out = np.full((R, length), pad, dtype=np.int64)
    labels = np.full((R, length), -1, dtype=np.int64)
    kept = ~switched & ~gone & (begins < length)
    to = np.nonzero(kept)[0], begins[kept]
    out[to] = labels[to] = tokens[kept]

    at = ranges(begins[r, p], word_length)
    spliced = table.tokens[ranges(table.offsets[word], word_length)].astype(np.int64)
    row = np.repeat(r, word_length)
    inside = at < length
    out[row[inside], at[inside]] = spliced[inside]
    if target == "vanilla":
        labels[row[inside], at[inside]] = spliced[inside]
    elif target == "original":
        visible = begins[r, p] < length
        labels[r[visible], begins[r, p][visible]] = tokens[r, p][visible]
    return out, labels


class Batch(NamedTuple):
    """Rows of a step, as int64 tensors on the CPU."""

    inputs: torch.Tensor   # (R, T) token ids
    targets: torch.Tensor  # (R, T) token ids, -1 where none is to be predicted
    stream: torch.Tensor   # (R,) index into Sampler.streams


class Sampler:
    """
    The rows of every step. Windows of a language are visited without replacement: epoch after epoch, each in an order of
    its own. A window is block_size tokens and the one after it; windows do not overlap but for that one, and what is left
    at a bin's end, less than a window, is not visited.
    """

    def __init__(self, data: Folder, config: Config):
        self.config, self.data = config, data
        self.table = data.table.top(config.align_coverage)
        self.pad = data.end_of_text
        self.pivot = data.pivot
        weights = {language: config.mix[language] / sum(config.mix.values()) for language in config.mix if config.mix[language] > 0}
        self.bins = {language: data.tokens(language, "train") for language in weights}
        self.align = {self.pivot: data.align("train")} if self.pivot in weights else {}
        self.weights = list(weights.values())
        # Facts are stated in stage 2 only, once through, spread evenly over its rows, and codeswitched like any pivot text.
        self.facts_from = config.stage1_steps * config.batch_size
        self.stage2_rows = max(0, config.max_steps - config.stage1_steps) * config.batch_size
        self.fact_rows = 0
        if "facts" in data.splits and self.pivot in weights and self.stage2_rows:
            self.bins["facts"], self.align["facts"] = data.tokens(self.pivot, "facts"), data.align("facts")
            self.fact_rows = self._windows("facts")
            # Each period of stage 2 has the windows of its own facts, to within a window: row and window at which each ends, from 0.
            ends = data.splits["facts"][self.pivot]["period_ends"]
            self.fact_cuts = np.array([0, *(round(end / config.block_size) for end in ends[:-1]), self.fact_rows]).clip(max=self.fact_rows)
            self.row_cuts = -(-self.stage2_rows * np.arange(len(ends) + 1) // len(ends))
            if self.fact_rows > self.stage2_rows // 2:
                raise UserError(f"the facts fill {self.fact_rows} rows of the {self.stage2_rows} that stage 2 has; use fewer facts, lower "
                                "fact_frequencies or more max_steps")
        self.streams = tuple(self.bins)  # the languages of mix, then facts
        for name in self.streams:
            if self._windows(name) < 1:
                raise UserError(f"{data.dir}: the {name} text has {len(self.bins[name])} tokens, fewer than one row of block_size + 1 = "
                                f"{config.block_size + 1}; use {'more facts or higher fact_frequencies' if name == 'facts' else 'more text'} or a smaller block_size")
        # The global rows that are in the `only` language: a run of it alone has these, in as many passes as there are steps.
        self.rows_of_only = None
        if config.only:
            dealt, _ = self._deal(np.arange(config.max_steps * config.batch_size))
            self.rows_of_only = np.flatnonzero(dealt == self.streams.index(config.only))
            if not len(self.rows_of_only):
                raise UserError(f"only={config.only}: its share of mix is less than one of {config.max_steps * config.batch_size} rows")

    def _windows(self, name: str) -> int:
        return (len(self.bins[name]) - 1) // self.config.block_size

    def _deal(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream (an index into self.streams) and index within it, both (R,), of global rows (R,)."""
        if not self.fact_rows:
            return stream_of_rows(rows, self.weights)
        before = self._facts_before(rows)
        fact = self._facts_before(rows + 1) > before
        stream, index = stream_of_rows(rows - before, self.weights)
        return np.where(fact, len(self.weights), stream), np.where(fact, before, index)

    def _facts_before(self, rows: np.ndarray) -> np.ndarray:
        """How many of the global rows before each of these are facts': in every period of stage 2 they are spread evenly."""
        row = np.clip(rows - self.facts_from, 0, self.stage2_rows)
        p = np.clip(np.searchsorted(self.row_cuts, row, side="right") - 1, 0, len(self.row_cuts) - 2)
        return self.fact_cuts[p] + (row - self.row_cuts[p]) * (self.fact_cuts[p + 1] - self.fact_cuts[p]) // (self.row_cuts[p + 1] - self.row_cuts[p])

    def _fact_windows(self, index: np.ndarray, s: int) -> np.ndarray:
        """Periods one after the other; in a period, its windows in an order shuffled by the seed."""
        cuts = self.fact_cuts
        period = np.searchsorted(cuts, index, side="right") - 1
        window = np.empty_like(index)
        for p in np.unique(period):
            here = period == p
            window[here] = cuts[p] + permute(index[here] - cuts[p], int(cuts[p + 1] - cuts[p]), self.config.seed, s, p)
        return window

    def _place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where global rows (R,) stand: stream (R,), and window in that stream's bin (R,)."""
        stream, index = self._deal(rows if self.rows_of_only is None else self.rows_of_only[rows % len(self.rows_of_only)])
        window = np.empty_like(index)
        for s, name in enumerate(self.streams):
            here, n = np.flatnonzero(stream == s), self._windows(name)
            if name == "facts":
                window[here] = self._fact_windows(index[here], s)
            else:
                window[here] = permute(index[here] % n, n, self.config.seed, s, index[here] // n)
        return stream, window

    def windows_of_step(self, step: int) -> list[tuple[str, int]]:
        """The stream and the window in its bin of every row of a step."""
        stream, window = self._place(np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size))
        return [(self.streams[s], int(w)) for s, w in zip(stream, window)]

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of global rows (R,): row number = step * batch_size + place in the step."""
        T, seed = self.config.block_size, self.config.seed
        stream, windows = self._place(rows)
        inputs = np.empty((len(rows), T), dtype=np.int64)
        targets = np.empty((len(rows), T), dtype=np.int64)
        for s, name in enumerate(self.streams):
            here = np.flatnonzero(stream == s)
            if not len(here):
                continue
            bin_, window = self.bins[name], windows[here]
            switching = name in self.align and self.config.codeswitch_ratio > 0
            slack = T // 8 if switching else 0  # tokens to fill up with where translations are shorter than their words
            at = window[:, None] * T + np.arange(T + 1 + slack)  # (n, T + 1 + slack)
            at = np.minimum(at, len(bin_) - 1)  # beyond the end, more of the last token: end-of-text
            tokens = bin_[at].astype(np.int64)
            self.data.check_ids(tokens, name)
            if switching:
                align = self.align[name][at]
                align = np.where(np.abs(align) <= len(self.table), align, 0)
                row, labels = codeswitch(tokens, align, self.table, self.config.codeswitch_ratio, rows[here], seed, T + 1,
                                         self.config.codeswitch_target, self.pad)
            else:
                row = labels = tokens
            inputs[here], targets[here] = row[:, :-1], labels[:, 1:]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(stream))


def prefetch(make: Callable[[int], Made], steps: range) -> Generator[Made, None, None]:
    """make(step) for every step, each computed by a background thread while the one before is used."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    stop = threading.Event()

    def work() -> None:
        for step in steps:
            item: Made | BaseException
            try:
                item = make(step)
            except BaseException as e:  # handed over, and raised where the batch is awaited
                item = e
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def main(arguments: list[str]) -> None:
    prepare(configs.load(arguments, __doc__))


if __name__ == "__main__":
    errors.run(main)
