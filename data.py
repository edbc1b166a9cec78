"""
Text to training data: splits, tokenizer, alignment table, and memory-mapped bins of token and alignment ids.

    python data.py config/demo.py               # makes data/demo; does nothing when it is there and up to date

What it writes is described in the README, "Files". Everything is built in DATA_DIR.partial and renamed when whole.
"""

import base64
import binascii
import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import Pool

import numpy as np
import tiktoken
from tqdm import tqdm

import config as configs
import corpus
import knowledge
from config import Config, UserError
from table import CHUNK, Table, aligned_surfaces, count_chunks, count_surfaces, make_table, words_of_chunk

FORMAT = 2
SETTINGS = ("source", "pivot", "targets", "tokenizer", "vocab_size", "min_count", "val_fraction", "fact_count", "fact_frequencies",
            "fact_languages", "fact_periods")
FACT_SEED = 0  # facts belong to the data, not to a run: every seed of every method is asked the same ones
END_OF_TEXT = "<|endoftext|>"

# Pre-tokenisation of a vocabulary trained here: pieces end where NLTK's words end (don't = do + n't, every punctuation
# mark alone), so that the words of the alignment table are whole tokens. A word carries the space before it, as in GPT-2.
PATTERN = (r" ?\p{L}+(?=n't(?!\p{L}))|n't(?!\p{L})|'(?:s|m|d|ll|ve|re)(?!\p{L})| ?\p{L}+| ?\p{N}{1,3}"
           r"| ?\.{2,}| ?-{2,}| ?[^\s\p{L}\p{N}]|\n+|[^\S\n]+(?=\S)|[^\S\n]+")


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer: always a tiktoken.Encoding


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str) -> None:
    """Train a byte-pair vocabulary of `vocab_size` tokens (end-of-text included) and save it in tiktoken's format."""
    import rustbpe

    if vocab_size < 257:
        raise UserError(f"vocab_size must be at least 257 (256 bytes and end-of-text), found {vocab_size}")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
    with open(path, "wb") as f:
        for token, rank in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1]):
            f.write(base64.b64encode(bytes(token)) + b" " + str(rank).encode() + b"\n")


def load_tokenizer(name: str, path: str) -> tiktoken.Encoding:
    """The tiktoken encoding `name`, or for "train" the one saved at `path`. Raises UserError when it cannot be had."""
    if name != "train":
        if name not in tiktoken.list_encoding_names():
            raise UserError(f"tokenizer: there is no tiktoken encoding named {name!r}; there are {', '.join(tiktoken.list_encoding_names())}, "
                            "or \"train\" to make a vocabulary from the corpus")
        try:
            return tiktoken.get_encoding(name)
        except Exception as e:  # tiktoken raises whatever its HTTP library raises
            raise UserError(f"tokenizer {name}: its vocabulary file cannot be downloaded ({type(e).__name__}); set TIKTOKEN_CACHE_DIR to a "
                            "folder that has it, or use --tokenizer=train to make a vocabulary from the corpus") from e
    ranks = {}
    try:
        with open(path, "rb") as f:
            for line in f:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("ranks are not 0, 1, 2, ... or a byte is missing")
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); run data.py again") from e
    except (ValueError, binascii.Error) as e:
        raise UserError(f"{path}: not a tiktoken vocabulary ({e}); delete its folder and run data.py again") from e
    return tiktoken.Encoding("trained", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Token ids (n,) int64 of a text; special tokens written out in it are ordinary text."""
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)


def token_byte_lengths(encoding: tiktoken.Encoding) -> np.ndarray:
    """How many bytes of text each token id stands for, (V,) int64; 0 for special tokens and unused ids."""
    lengths = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token in encoding.token_byte_values():
        lengths[encoding.encode_single_token(token)] = len(token)
    return lengths


# ---------------------------------------------------------------------------------------------------------------------
# Writing the table and the bins


def write_table(surfaces: list[str], counts: Counter, encoding: tiktoken.Encoding, config: Config, folder: str) -> None:
    """table.npz and table.tsv for En-Clone: a word's translation is its own token ids + V."""
    V = encoding.n_vocab
    words = []
    for surface in surfaces:
        ids = encode(encoding, surface)
        words.append([[ids]] + [[ids + V] for _ in config.targets])
    make_table(words, [counts[s] for s in surfaces], (config.pivot, *config.targets)).save(os.path.join(folder, "table.npz"))
    with open(os.path.join(folder, "table.tsv"), "w", encoding="utf-8") as f:
        f.write("entry\tfrequency\tpivot\tlanguage\ttranslation\n")
        for k, surface in enumerate(surfaces, 1):
            for language in config.targets:  # quoted, so that leading spaces and line ends show
                quoted = json.dumps(surface, ensure_ascii=False)
                f.write(f"{k}\t{counts[surface]}\t{quoted}\t{language}\t{quoted}\n")


class Encoder:
    """Text to token ids and alignment ids. Remembers the words of every chunk it has seen."""

    def __init__(self, encoding: tiktoken.Encoding, surfaces: list[str]):
        self.encoding = encoding
        self.token_bytes = token_byte_lengths(encoding)
        self.entry = {surface: k for k, surface in enumerate(surfaces, 1)}
        self.chunks: dict[str, tuple[int, list[tuple[int, int, int]]]] = {}

    def chunk(self, chunk: str) -> tuple[int, list[tuple[int, int, int]]]:
        """(length in bytes, [(first byte, byte after the last, entry), ...]) of a chunk's words in the table."""
        known = self.chunks.get(chunk)
        if known is None:
            words = [(a, b, self.entry[s]) for a, b, s in words_of_chunk(chunk) if s in self.entry]
            if len(self.chunks) > 1_000_000:
                self.chunks.clear()  # bounded, whatever the corpus
            known = self.chunks[chunk] = (len(chunk.encode()), words)
        return known

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Token ids (n,) int64 and alignment ids (n,) int32 of a document, without end-of-text.

        A word is marked when tokens begin and end exactly where it does: +k on its first token, -k on the others.
        """
        ids = encode(self.encoding, text)
        align = np.zeros(len(ids), dtype=np.int32)
        spans, position = [], 0
        for chunk in CHUNK.findall(text):
            length, words = self.chunk(chunk)
            for first, end, entry in words:
                spans.append((position + first, position + end, entry))
            position += length
        if not spans or not len(ids):
            return ids, align
        first, end, entry = np.array(spans).T  # (words,) each
        token_end = np.cumsum(self.token_bytes[ids])  # (n,)
        token_start = token_end - self.token_bytes[ids]
        i, j = np.searchsorted(token_start, first), np.searchsorted(token_end, end)
        whole = (i < len(ids)) & (j < len(ids))
        whole[whole] = (token_start[i[whole]] == first[whole]) & (token_end[j[whole]] == end[whole])
        i, j, entry = i[whole], j[whole], entry[whole]
        length = j - i + 1
        inside = np.repeat(i - np.cumsum(length) + length, length) + np.arange(length.sum())  # every token of every word
        align[inside] = -np.repeat(entry, length)
        align[i] = entry
        return ids, align


_encoder: Encoder  # of a worker process


def _start_worker(tokenizer: str, folder: str) -> None:
    global _encoder
    with open(os.path.join(folder, "surfaces.json"), encoding="utf-8") as f:
        _encoder = Encoder(load_tokenizer(tokenizer, os.path.join(folder, "tokenizer.tiktoken")), json.load(f))


def _encode_documents(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and alignment ids of documents, each ended by end-of-text (no entry)."""
    ids, align = [], []
    for text in texts:
        i, a = _encoder(text)
        ids += [i, [_encoder.encoding.eot_token]]
        align += [a, [0]]
    return np.concatenate(ids).astype(np.int64), np.concatenate(align).astype(np.int32)


def _batches(texts: Iterable[str], size: int = 500_000) -> Iterator[list[str]]:
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


def write_bins(texts: Iterable[str], split: str, config: Config, folder: str, pool, V: int, dtype: np.dtype, bar) -> dict:
    """PIVOT_SPLIT.bin, PIVOT_SPLIT.align.bin and the bins of En-Clone; returns the counts for meta.json."""
    count = {"documents": 0, "bytes": 0, "tokens": 0, "aligned_words": 0}

    def counted() -> Iterator[list[str]]:
        for batch in _batches(texts):
            count["documents"] += len(batch)
            count["bytes"] += sum(len(text.encode()) for text in batch)
            yield batch

    def create(name: str):
        return files.enter_context(open(os.path.join(folder, name), "wb"))

    with contextlib.ExitStack() as files:
        tokens, alignment = create(f"{config.pivot}_{split}.bin"), create(f"{config.pivot}_{split}.align.bin")
        clones = [create(f"{language}_{split}.bin") for language in config.targets]
        for ids, align in pool.imap(_encode_documents, counted()):
            ids.astype(dtype).tofile(tokens)
            align.astype("<i4").tofile(alignment)
            for i, clone in enumerate(clones, 1):
                (ids + i * V).astype(dtype).tofile(clone)
            count["tokens"] += len(ids)
            count["aligned_words"] += int((align > 0).sum())
            bar.update(len(ids))
    return count


def facts_of(settings: dict) -> list[knowledge.Fact]:
    """The facts of a data folder, by its settings."""
    if not settings["fact_count"]:
        return []
    return knowledge.make_facts(settings["fact_count"], settings["fact_frequencies"], FACT_SEED, settings["fact_languages"], settings["fact_periods"])


def text_language(language: str, pivot: str) -> str:
    """The language whose text is behind `language`: En-Clone's is the pivot's."""
    return pivot if language == "clone" else language


def write_facts(stated: list[knowledge.Fact], encoder: Encoder, config: Config, folder: str, V: int, dtype: np.dtype) -> dict:
    """
    PIVOT_facts.bin and PIVOT_facts.align.bin: statements as documents, in the order in which they are stated, each in its
    fact's language (only words of the pivot have entries); returns the counts for meta.json.
    """
    languages, known = (config.pivot, *config.targets), {}
    for fact in stated:
        if fact.index not in known:
            text = knowledge.statement(fact, text_language(fact.language, config.pivot))
            ids, align = encoder(text)
            ids, align = np.append(ids, encoder.encoding.eot_token), np.append(align, 0)
            if fact.language != config.pivot:
                ids, align = ids + V * languages.index(fact.language), np.zeros_like(align)
            known[fact.index] = ids, align, len(text.encode())
    ids, align, sizes = zip(*(known[fact.index] for fact in stated))
    ids, align = np.concatenate(ids), np.concatenate(align)
    ids.astype(dtype).tofile(os.path.join(folder, f"{config.pivot}_facts.bin"))
    align.astype("<i4").tofile(os.path.join(folder, f"{config.pivot}_facts.align.bin"))
    return {"documents": len(stated), "bytes": sum(sizes), "tokens": len(ids), "aligned_words": int((align > 0).sum())}


# ---------------------------------------------------------------------------------------------------------------------
# The whole preparation


def _settings(config: Config) -> dict:
    plain = config.plain()
    return {key: plain[key] for key in SETTINGS}


def prepare(config: Config) -> None:
    """Make config.data_dir, unless it is there and made from the same inputs with the same settings."""
    for language in config.targets:
        if language != "clone":
            raise UserError(f"targets: {language!r} needs text and a dictionary of its own; the target that needs neither is \"clone\"")
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")  # before the long part, as it may not be there
    inputs = corpus.fingerprint(config.source, progress=True, workers=config.workers)
    made_from = {"format": FORMAT, "settings": _settings(config), "inputs": inputs}
    try:
        dataset = Dataset(config.data_dir)
        if dataset.meta["made_from"] == made_from and all(dataset.intact(name) for name in dataset.meta["digests"]):
            print(f"{config.data_dir} is up to date")
            return
    except (UserError, KeyError, TypeError, AttributeError):
        pass  # absent, of another version or damaged: make it anew
    if os.path.lexists(config.data_dir) and not os.path.isdir(config.data_dir):
        raise UserError(f"data_dir: {config.data_dir} is a file")
    if os.path.isdir(config.data_dir) and os.listdir(config.data_dir) and not os.path.exists(os.path.join(config.data_dir, "meta.json")):
        raise UserError(f"data_dir: {config.data_dir} holds files that data.py did not make; name another folder, or empty it")
    partial = config.data_dir.rstrip("/") + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(partial)
    except OSError as e:
        raise UserError(f"data_dir: cannot make {partial} ({e.strerror})") from e
    workers = config.workers or os.cpu_count() or 1
    tokenizer_path = os.path.join(partial, "tokenizer.tiktoken")

    facts = facts_of(_settings(config))
    stated = knowledge.in_training_order(facts, FACT_SEED)
    statements = [knowledge.statement(fact, text_language(fact.language, config.pivot)) for fact in stated]
    held_out = choose_held_out(config)

    def texts(split: str) -> Iterator[str]:
        return (text for text in corpus.documents(config.source) if (_digest(text) in held_out) == (split == "val"))

    print(f"counting words with {workers} processes")
    chunks = count_chunks(statements)
    with Pool(workers) as pool, tqdm(unit="docs", desc="words", disable=None) as bar:
        for batch in pool.imap(count_chunks, _batches(_ticked(texts("train"), bar))):
            chunks.update(batch)
    counts = count_surfaces(chunks)
    surfaces = aligned_surfaces(counts, config.min_count)

    if config.tokenizer == "train":
        print(f"training a vocabulary of {config.vocab_size} tokens")
        with tqdm(unit="docs", desc="vocabulary", disable=None) as bar:
            train_tokenizer(_ticked(texts("train"), bar), config.vocab_size, tokenizer_path)
    encoding = load_tokenizer(config.tokenizer, tokenizer_path)
    V = encoding.n_vocab
    if config.tokenizer == "train" and V < config.vocab_size:
        print(f"the corpus makes only {V} of the {config.vocab_size} tokens asked for")
    vocab_size = V * (1 + len(config.targets))
    dtype = smallest_dtype(vocab_size)
    write_table(surfaces, counts, encoding, config, partial)
    surfaces_path = os.path.join(partial, "surfaces.json")
    with open(surfaces_path, "w", encoding="utf-8") as f:
        json.dump(surfaces, f)

    splits = {}
    with Pool(workers, _start_worker, (config.tokenizer, partial)) as pool, tqdm(unit="tok", unit_scale=True, desc="tokens", disable=None) as bar:
        for split in ("train", "val"):
            splits[split] = write_bins(texts(split), split, config, partial, pool, V, dtype, bar)
    if stated:
        splits["facts"] = write_facts(stated, Encoder(encoding, surfaces), config, partial, V, dtype)
    os.remove(surfaces_path)

    meta = {
        "format": FORMAT, "made_from": made_from, "tokenizer": config.tokenizer, "V": V, "vocab_size": vocab_size,
        "end_of_text": encoding.eot_token, "dtype": dtype.str, "splits": splits, "entries": len(surfaces),
        "offsets": {language: V * i for i, language in enumerate((config.pivot, *config.targets))},
        "digests": {name: digest(os.path.join(partial, name)) for name in sorted(os.listdir(partial))},
    }
    with open(os.path.join(partial, "meta.json"), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    old = config.data_dir.rstrip("/") + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(config.data_dir):
        os.replace(config.data_dir, old)  # a folder half deleted would look like someone else's
    os.replace(partial, config.data_dir)
    shutil.rmtree(old, ignore_errors=True)
    train = splits["train"]
    print(f"{config.data_dir}: {train['documents']:,} documents, {train['bytes'] / 1e6:.1f} MB, {train['tokens']:,} training tokens, "
          f"{splits['val']['tokens']:,} held out, V = {V}, {len(surfaces):,} entries, {len(facts)} facts")


def _ticked(texts: Iterable[str], bar: tqdm) -> Iterator[str]:
    for text in texts:
        bar.update(1)
        yield text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]


def choose_held_out(config: Config) -> set[bytes]:
    """Digests of the held-out documents: in the order of their digests, until val_fraction of the text is reached."""
    sizes = {_digest(text): len(text) for text in corpus.documents(config.source)}
    if len(sizes) < 2:
        raise UserError(f"{config.source}: found {len(sizes)} distinct documents; at least 2 are needed, one to train on and one to hold out "
                        "(blank lines separate documents in .txt)")
    held_out, budget = set(), config.val_fraction * sum(sizes.values())
    for digest in sorted(sizes)[:-1]:
        held_out.add(digest)
        budget -= sizes[digest]
        if budget <= 0:
            break
    return held_out


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits, else uint32. Raises UserError beyond 2**31 ids, which the table's int32 could not hold."""
    if vocab_size <= 2**31:
        return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    raise UserError(f"{vocab_size:,} token ids do not fit in 31 bits; use a smaller vocabulary or fewer cloned languages")


def digest(path: str, blocks: int = 64, block: int = 2**16) -> str:
    """
    SHA-256 of a file's size and of `blocks` blocks spread evenly over it: all of a small file, a sample of a large one,
    so that opening 40 GB of bins takes no longer than opening 4 MB.
    """
    size = os.path.getsize(path)
    sha = hashlib.sha256(str(size).encode())
    with open(path, "rb") as f:
        for start in range(0, size, block) if size <= blocks * block else np.linspace(0, size - block, blocks, dtype=np.int64):
            f.seek(int(start))
            sha.update(f.read(block))
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reading it back


def read_meta(data_dir: str) -> dict:
    path = os.path.join(data_dir, "meta.json")
    again = "run `python data.py` with the same config"
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
    except OSError as e:
        raise UserError(f"no prepared data in {data_dir} ({e.strerror}); {again}") from e
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e}); {again}") from e
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise UserError(f"{path}: expected data format {FORMAT}, found {found}; {again}")
    return meta


class Dataset:
    """A prepared data folder, opened: sizes checked against meta.json, bins memory-mapped."""

    def __init__(self, data_dir: str):
        self.dir = data_dir
        self.meta = read_meta(data_dir)
        try:
            self.V, self.vocab_size, self.end_of_text = self.meta["V"], self.meta["vocab_size"], self.meta["end_of_text"]
            self.offsets, self.splits, self.dtype = self.meta["offsets"], self.meta["splits"], np.dtype(self.meta["dtype"])
            self.languages = tuple(self.offsets)
            self.pivot = self.languages[0]
            self.fingerprint = hashlib.sha256(json.dumps(self.meta["digests"], sort_keys=True).encode()).hexdigest()
            self.meta["made_from"]["settings"]
            {split: self.splits[split]["tokens"] + 0 for split in self.splits}
        except (LookupError, TypeError, AttributeError) as e:
            raise UserError(f"{data_dir}/meta.json: {e} is missing or of the wrong kind; run `python data.py` with the same config") from e

    def intact(self, name: str) -> bool:
        path = os.path.join(self.dir, name)
        return os.path.isfile(path) and digest(path) == self.meta["digests"].get(name)

    def _map(self, name: str, dtype: np.dtype, split: str) -> np.ndarray:
        path = os.path.join(self.dir, name)
        expected = self.splits[split]["tokens"] * dtype.itemsize
        try:
            found = os.path.getsize(path)
        except OSError as e:
            raise UserError(f"{path}: {e.strerror}; run `python data.py` with the same config") from e
        if found != expected:
            raise UserError(f"{path}: expected {expected} bytes by meta.json, found {found}; delete {self.dir} and run `python data.py` again")
        if digest(path) != self.meta["digests"].get(name):
            raise UserError(f"{path}: not the file that meta.json describes; delete {self.dir} and run `python data.py` again")
        return np.memmap(path, dtype, mode="r")

    def tokens(self, language: str, split: str) -> np.ndarray:
        """Token ids (n,), memory-mapped."""
        if split not in self.splits or language not in self.offsets or (split == "facts" and language != self.pivot):
            raise UserError(f"{self.dir} has no {split} text in {language!r}; it has {', '.join(self.languages)} and {', '.join(self.splits)}")
        return self._map(f"{language}_{split}.bin", self.dtype, split)

    def align(self, split: str) -> np.ndarray:
        """Alignment ids (n,) int32 of the pivot, memory-mapped."""
        return self._map(f"{self.pivot}_{split}.align.bin", np.dtype("<i4"), split)

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
        if self.meta["tokenizer"] == "train" and not self.intact("tokenizer.tiktoken"):
            raise UserError(f"{self.dir}/tokenizer.tiktoken: not the file that meta.json describes; run data.py again")
        return load_tokenizer(self.meta["tokenizer"], os.path.join(self.dir, "tokenizer.tiktoken"))

    @functools.cached_property
    def facts(self) -> list[knowledge.Fact]:
        return facts_of(self.meta["made_from"]["settings"])


def main(arguments: list[str]) -> None:
    prepare(configs.load(arguments, __doc__))


if __name__ == "__main__":
    configs.run(main)
