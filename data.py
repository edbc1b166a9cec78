"""
Text to training data: splits, tokenizer, alignment table, and memory-mapped bins of token and alignment ids.

    python data.py config/demo.py               # makes data/demo; does nothing when it is there and up to date

What it writes is described in the README, "Files". Everything is built in DATA_DIR.partial and renamed when whole.
"""

import contextlib
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
from dataset import FACT_SEED, FORMAT, Dataset, digest, facts_of, text_language
from table import CHUNK, aligned_surfaces, count_chunks, count_surfaces, make_table, words_of_chunk
from tokenizer import encode, load_tokenizer, token_byte_lengths, train_tokenizer

SETTINGS = ("source", "pivot", "targets", "tokenizer", "vocab_size", "min_count", "val_fraction", "fact_count", "fact_frequencies",
            "fact_languages", "fact_periods")


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
    for document in sorted(sizes)[:-1]:
        held_out.add(document)
        budget -= sizes[document]
        if budget <= 0:
            break
    return held_out


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits, else uint32. Raises UserError beyond 2**31 ids, which the table's int32 could not hold."""
    if vocab_size <= 2**31:
        return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    raise UserError(f"{vocab_size:,} token ids do not fit in 31 bits; use a smaller vocabulary or fewer cloned languages")


def main(arguments: list[str]) -> None:
    prepare(configs.load(arguments, __doc__))


if __name__ == "__main__":
    configs.run(main)
