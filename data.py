"""
Text to training data: splits, tokenizer, alignment table, and memory-mapped bins of token and alignment ids.

    python data.py config/demo.py               # makes data/demo; does nothing when it is there and up to date

What it writes is described in the README, "Files". Everything is built in DATA_DIR.partial and renamed when whole.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import Pool

import numpy as np
import tiktoken
from tqdm import tqdm

import config as configs
import corpus
import dictionary
import knowledge
from config import Config, UserError
from dataset import FACT_SEED, FORMAT, Dataset, digest, facts_of, text_language
from table import CHUNK, aligned_surfaces, count_chunks, count_surfaces, make_table, words_of_chunk
from tokenizer import encode, load_tokenizer, token_byte_lengths, train_tokenizer

SETTINGS = ("source", "pivot", "targets", "dictionary", "dictionary_target_first", "tokenizer", "vocab_size", "tokenizer_share", "min_count",
            "val_fraction", "fact_count", "fact_frequencies", "fact_languages", "fact_periods")


# ---------------------------------------------------------------------------------------------------------------------
# Writing the table and the bins


def translate(surfaces: list[str], dictionaries: dict[str, dictionary.Dictionary], config: Config) -> dict[str, dict[str, list[str]]]:
    """For every surface form that has any: its translations by language, as they stand in running text. En-Clone has them all."""
    table = {}
    for surface in surfaces:
        found = {}
        for language in config.targets:
            if language == "clone":
                found[language] = [surface]
            else:
                those = dictionary.translations(surface.removeprefix(" "), dictionaries[language].entries)
                found[language] = list(dict.fromkeys(dictionary.as_in_text(t, surface, language) for t in those))
        if any(found.values()):
            table[surface] = found
    return table


def write_table(translated: dict[str, dict[str, list[str]]], counts: Counter, encoding: tiktoken.Encoding, offsets: dict[str, int], folder: str) -> None:
    """table.npz and table.tsv. In En-Clone a word's translation is its own token ids + V."""
    words = [[[encode(encoding, surface)]] + [[encode(encoding, t) + offsets[language] for t in those] for language, those in found.items()]
             for surface, found in translated.items()]
    make_table(words, [counts[surface] for surface in translated], tuple(offsets)).save(os.path.join(folder, "table.npz"))
    with open(os.path.join(folder, "table.tsv"), "w", encoding="utf-8") as f:
        f.write("entry\tfrequency\tpivot\tlanguage\ttranslation\n")
        for k, (surface, found) in enumerate(translated.items(), 1):
            for language, those in found.items():
                for translation in those:  # quoted, so that leading spaces and line ends show
                    quoted = (json.dumps(s, ensure_ascii=False) for s in (surface, translation))
                    f.write("\t".join((str(k), str(counts[surface]), next(quoted), language, next(quoted))) + "\n")


def coverage(translated: dict[str, dict[str, list[str]]], counts: Counter, dictionaries: dict[str, dictionary.Dictionary]) -> dict[str, dict]:
    """
    By language with a dictionary: the share of the pivot's running words (with a letter in them) that have an entry, that share
    without the look-up in lower case, and the share of the dictionary's pairs whose pivot word is in no entry.
    """
    running = {surface: count for surface, count in counts.items() if any(c.isalpha() for c in surface)}
    result = {}
    for language, book in dictionaries.items():
        entries = {surface for surface, found in translated.items() if found[language]}
        used = {surface.removeprefix(" ") for surface in entries}
        used |= {word.lower() for word in used}
        result[language] = {
            "running_words": sum(running[s] for s in entries if s in running) / sum(running.values()),
            "running_words_as_they_stand": sum(running[s] for s in entries if s in running and s.removeprefix(" ") in book.entries) / sum(running.values()),
            "pairs": book.pairs, "identical_pairs_left_out": book.identical,
            "pairs_without_a_word_in_the_text": sum(len(those) for word, those in book.entries.items() if word not in used)}
    return result


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


def _encode_documents(texts: list[str], aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids and alignment ids (0 when not `aligned`) of documents, each ended by end-of-text (no entry)."""
    ids, align = [], []
    for text in texts:
        i, a = _encoder(text) if aligned else (plain := encode(_encoder.encoding, text), np.zeros(len(plain), dtype=np.int32))
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


def write_bins(texts: Iterable[str], language: str, split: str, config: Config, folder: str, pool, offsets: dict[str, int], dtype: np.dtype, bar) -> dict:
    """LANGUAGE_SPLIT.bin; for the pivot also its .align.bin and the bin of En-Clone. Returns the counts for meta.json."""
    count = {"documents": 0, "bytes": 0, "tokens": 0, "aligned_words": 0}
    is_pivot = language == config.pivot

    def counted() -> Iterator[list[str]]:
        for batch in _batches(texts):
            count["documents"] += len(batch)
            count["bytes"] += sum(len(text.encode()) for text in batch)
            yield batch

    def create(name: str):
        return files.enter_context(open(os.path.join(folder, name), "wb"))

    with contextlib.ExitStack() as files:
        bins = {language: create(f"{language}_{split}.bin")}
        if is_pivot:
            alignment = create(f"{language}_{split}.align.bin")
            bins |= {clone: create(f"{clone}_{split}.bin") for clone in config.targets if clone == "clone"}
        for ids, align in pool.imap(functools.partial(_encode_documents, aligned=is_pivot), counted()):
            for name, file in bins.items():
                (ids + offsets[name]).astype(dtype).tofile(file)
            if is_pivot:
                align.astype("<i4").tofile(alignment)
            count["tokens"] += len(ids)
            count["aligned_words"] += int((align > 0).sum())
            bar.update(len(ids))
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
    return {"documents": len(stated), "bytes": sum(sizes), "tokens": len(ids), "aligned_words": int((align > 0).sum())}


# ---------------------------------------------------------------------------------------------------------------------
# The whole preparation


def _settings(config: Config) -> dict:
    plain = config.plain()
    return {key: plain[key] for key in SETTINGS}


def prepare(config: Config) -> None:
    """Make config.data_dir, unless it is there and made from the same inputs with the same settings."""
    for language in config.written[1:]:
        for key in ("source", "dictionary"):
            if "{language}" not in getattr(config, key):
                raise UserError(f"targets: {language!r} needs text and a dictionary of its own: {key} must have {{language}} in it, as in \"texts/{{language}}\", "
                                f"found {getattr(config, key)!r}; the target that needs neither is \"clone\"")
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")  # before the long part, as it may not be there
    inputs = {}
    for language in config.written:
        inputs |= corpus.fingerprint(config.source_of(language), progress=True, workers=config.workers)
    for language in config.written[1:]:
        inputs |= {path: corpus.file_digest(path) for path in dictionary.dictionary_files(config.dictionary_of(language))}
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
    statements = [knowledge.statement(fact, config.pivot) for fact in stated if text_language(fact.language, config.pivot) == config.pivot]
    held_out = {language: choose_held_out(config.source_of(language), config.val_fraction) for language in config.written}

    def texts(language: str, split: str) -> Iterator[str]:
        return (text for text in corpus.documents(config.source_of(language)) if (_digest(text) in held_out[language]) == (split == "val"))

    def counted(count: Callable[[list[str]], Counter], language: str) -> Counter:
        total: Counter = Counter()
        with tqdm(unit="docs", desc=f"words {language}", disable=None) as bar:
            for batch in pool.imap(count, _batches(_ticked(texts(language, "train"), bar))):
                total.update(batch)
        return total

    print(f"counting words with {workers} processes")
    dictionaries = {}
    with Pool(workers) as pool:
        counts = count_surfaces(count_chunks(statements) + counted(count_chunks, config.pivot))
        for language in config.written[1:]:
            book = dictionary.read(config.dictionary_of(language), config.dictionary_target_first)
            cased = {} if dictionary.is_unspaced(language) else counted(dictionary.count_words, language)
            dictionaries[language] = replace(book, entries=dictionary.with_case(book.entries, Counter(cased)))
    translated = translate(aligned_surfaces(counts, config.min_count), dictionaries, config)
    if not translated:
        raise UserError(f"no word of the corpus that is seen more than min_count={config.min_count} times stands in {config.dictionary}; is it the right "
                        "one, and the right way round (--dictionary_target_first)?")

    if config.tokenizer == "train":
        print(f"training a vocabulary of {config.vocab_size} tokens")
        with tqdm(unit="docs", desc="vocabulary", disable=None) as bar:
            sample = (text for language in config.written for text in texts(language, "train") if in_share(text, config.tokenizer_share.get(language, 1.0)))
            train_tokenizer(_ticked(sample, bar), config.vocab_size, tokenizer_path)
    encoding = load_tokenizer(config.tokenizer, tokenizer_path)
    V = encoding.n_vocab
    if config.tokenizer == "train" and V < config.vocab_size:
        print(f"the corpus makes only {V} of the {config.vocab_size} tokens asked for")
    offsets = {language: V if language == "clone" else 0 for language in (config.pivot, *config.targets)}
    vocab_size = V + max(offsets.values())
    dtype = smallest_dtype(vocab_size)
    write_table(translated, counts, encoding, offsets, partial)
    surfaces_path = os.path.join(partial, "surfaces.json")
    with open(surfaces_path, "w", encoding="utf-8") as f:
        json.dump(list(translated), f)

    splits = {"train": {}, "val": {}}
    with Pool(workers, _start_worker, (config.tokenizer, partial)) as pool, tqdm(unit="tok", unit_scale=True, desc="tokens", disable=None) as bar:
        for language in config.written:
            for split in splits:
                splits[split][language] = write_bins(texts(language, split), language, split, config, partial, pool, offsets, dtype, bar)
    if "clone" in config.targets:
        for split in splits:
            splits[split]["clone"] = splits[split][config.pivot] | {"aligned_words": 0}
    if stated:
        splits["facts"] = {config.pivot: write_facts(stated, Encoder(encoding, list(translated)), config, partial, offsets, dtype)}
    os.remove(surfaces_path)

    meta = {
        "format": FORMAT, "made_from": made_from, "tokenizer": config.tokenizer, "V": V, "vocab_size": vocab_size,
        "end_of_text": encoding.eot_token, "dtype": dtype.str, "splits": splits, "entries": len(translated),
        "offsets": offsets, "coverage": coverage(translated, counts, dictionaries),
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
    print(summary(config.data_dir, meta))


def summary(data_dir: str, meta: dict) -> str:
    """What has been made, in a line for each language."""
    lines = [f"{data_dir}: V = {meta['V']:,}, {meta['entries']:,} entries, {meta['made_from']['settings']['fact_count']} facts"]
    for language, train in meta["splits"]["train"].items():
        words = f", {100 * share['running_words']:.0f}% of running words have an entry" if (share := meta["coverage"].get(language)) else ""
        lines.append(f"  {language}: {train['documents']:,} documents, {train['bytes'] / 1e6:.1f} MB, {train['tokens']:,} training tokens "
                     f"({train['bytes'] / train['tokens']:.2f} bytes each), {meta['splits']['val'][language]['tokens']:,} held out{words}")
    return "\n".join(lines)


def _ticked(texts: Iterable[str], bar: tqdm) -> Iterator[str]:
    for text in texts:
        bar.update(1)
        yield text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]


def in_share(text: str, share: float) -> bool:
    """Whether a document is in a share of them, chosen by its digest (its last bytes: the first choose what is held out)."""
    return int.from_bytes(_digest(text)[4:]) < share * 2**32


def choose_held_out(source: str, val_fraction: float) -> set[bytes]:
    """Digests of the held-out documents: in the order of their digests, until val_fraction of the text is reached."""
    sizes = {_digest(text): len(text) for text in corpus.documents(source)}
    if len(sizes) < 2:
        raise UserError(f"{source}: found {len(sizes)} distinct documents; at least 2 are needed, one to train on and one to hold out "
                        "(blank lines separate documents in .txt)")
    held_out, budget = set(), val_fraction * sum(sizes.values())
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
