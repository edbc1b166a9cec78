"""Text to a vocabulary and an alignment table; what a folder is made from, and where it is made."""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import tiktoken

from corpus import dictionary, readers
from corpus.folder import FORMAT, Folder
from corpus.tokenizer import load_tokenizer, train_tokenizer
from corpus.words import aligned_surfaces, count_chunks, count_surfaces
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import kept, write_json, write_text
from runtime.hashing import file_digest
from runtime.parallel import Workers

# The knobs that decide what is made, beside the files read.
SETTINGS = ("budget", "pivot", "targets", "dictionary_translations", "translation_tokens", "tokenizer", "vocab_size",
            "tokenizer_share", "min_count", "val_fraction", "fact_count", "fact_frequencies", "fact_languages",
            "fact_periods")
MOST_CHARACTERS_PER_TOKEN = 8  # on average, in any language
MAX_COUNTED = 20_000_000       # different words in memory: about 3 GB
BATCH_CHARACTERS = 500_000     # enough work for a process at a time


# ---- which documents ----

def documents(config: Config, language: str, progress: str = "") -> Iterator[str]:
    """A language's documents, no more of them than its budget can need."""
    room = config.budget.get(language, math.inf) * MOST_CHARACTERS_PER_TOKEN / max(1 - config.val_fraction, 1e-9)
    for text in readers.documents(config.source_of(language), progress, config.workers):
        yield text
        room -= len(text)
        if room < 0:
            return


def place(text: str) -> float:
    """A number between 0 and 1 that only the text decides. Documents below `held_out` of it are held out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents, of about BATCH_CHARACTERS each."""
    batch, length = [], 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


# ---- counting ----

def count_in(config: Config, count: Callable[[list[str]], Counter], texts: Iterable[str]) -> Counter:
    """`count` of all texts, by several processes."""
    total: Counter = Counter()
    with Workers(config.workers) as workers:
        for counts in workers.map(count, text_batches(texts)):
            total.update(counts)
            # Memory is bounded: the rarest are forgotten, which can matter only to words about as rare.
            if len(total) > MAX_COUNTED:
                total = Counter(dict(total.most_common(MAX_COUNTED // 2)))
    return total


def count_training(config: Config, language: str, work: str,
                   count: Callable[[list[str]], Counter]) -> tuple[Counter, float]:
    """`count` of a language's documents that are not held out, and the place below which they are."""
    def make() -> list:
        places = array("d")

        def training() -> Iterator[str]:
            for text in documents(config, language, f"words {language}"):
                places.append(place(text))
                if places[-1] >= config.val_fraction:
                    yield text

        return [count_in(config, count, training()), min(places), max(places)]

    counts, smallest, largest = kept(os.path.join(work, f"counts_{language}.json"), make)
    if smallest >= largest:
        raise UserError(f"{config.source_of(language)}: found one distinct document; at least 2 are needed, one to "
                        "train on and one to hold out (blank lines end a document in .txt)")
    # In a small text val_fraction may hold out nothing, or all: then at least the first document by place is held out,
    # though its words are counted, and at least the last is trained on.
    return Counter(counts), min(max(config.val_fraction, math.nextafter(smallest, 1)), largest)


# ---- vocabulary and table ----

def make_vocabulary(config: Config, held_out: dict[str, float], path: str) -> tiktoken.Encoding:
    """The tokenizer that config names, or one trained on the texts and kept at `path`."""
    if config.tokenizer == "train" and not os.path.exists(path):
        print(f"training a vocabulary of {config.vocab_size} tokens")
        sample = (text for language in config.written for text in documents(config, language, f"vocabulary {language}")
                  if place(text) >= held_out[language]
                  and place("share " + text) <= config.tokenizer_share.get(language, 1.0))
        train_tokenizer(sample, config.vocab_size, path)
    return load_tokenizer(config.tokenizer, path)


def make_table(config: Config, statements: list[str], folder: str) -> dict:
    """Makes tokenizer.tiktoken, table.npz and table.tsv of texts and `statements`; returns what meta.json says."""
    work, targets = os.path.join(folder, "work"), config.written[1:]
    # Files by other hands may be wrong: they are read before the long part.
    by_hand = dictionary.read_table_tsv(config.table, config.targets) if config.table else []
    books = {} if config.table else {language: dictionary.read(config.dictionary_of(language)) for language in targets}
    common = {}

    chunks, place_of_pivot = count_training(config, config.pivot, work, count_chunks)
    counts, held_out = count_surfaces(chunks + count_chunks(statements)), {config.pivot: place_of_pivot}
    for language in targets:
        count, entries = dictionary.count_words, books.get(language, {})
        if dictionary.code_of(language) in dictionary.UNSPACED:
            known = frozenset(word for found in entries.values() for word in found)
            count = functools.partial(dictionary.count_known, known=known)
        in_target, held_out[language] = count_training(config, language, work, count)
        # The most common translations, each in the case in which the target's text has it.
        common[language] = dictionary.as_text_has_them(entries, in_target, config.dictionary_translations)

    # Entries are numbered by frequency.
    if config.table:
        rows = sorted((row for row in by_hand if counts[row[0]]),
                      key=lambda row: (-counts[row[0]], row[0], config.targets.index(row[1])))
    else:
        rows = [(surface, language, translation) for surface in aligned_surfaces(counts, config.min_count)
                for language in config.targets
                for translation in dictionary.translations(surface, language, common.get(language, {}))]
    if not rows:
        raise UserError(f"no word of the corpus that is seen more than min_count={config.min_count} times stands in "
                        f"{config.table or config.dictionary}; is it the right one, and the right way round?")
    encoding = make_vocabulary(config, held_out, os.path.join(folder, "tokenizer.tiktoken"))
    V = encoding.n_vocab
    offsets = {language: V if language == "clone" else 0 for language in (config.pivot, *config.targets)}
    short = dictionary.keep_short(rows, encoding, config.translation_tokens)
    entries_made = dictionary.write_table(short, counts, encoding, offsets, folder)
    coverage = {language: dictionary.coverage(language, rows, short, counts, books.get(language, {}), entries)
                for language, entries in common.items()}
    for language, share in coverage.items():
        print(f"{100 * share['running_words']:.0f}% of {config.pivot}'s running words have an entry in {language}")
    return {"V": V, "vocab_size": V + max(offsets.values()), "end_of_text": encoding.eot_token, "offsets": offsets,
            "entries": entries_made, "held_out": held_out, "coverage": coverage}


# ---- what a folder is made from, and where ----

def made_from(config: Config, sentences: list[str]) -> dict:
    """What meta.json says of a folder's origin: settings, digests of the files read, and one fingerprint."""
    targets = config.written[1:]
    for language in targets:
        for key in ("source",) if config.table else ("source", "dictionary"):
            if "{language}" not in getattr(config, key):
                raise UserError(f"targets: {language!r} needs text and a dictionary of its own (only \"clone\" needs "
                                f"none): expected {{language}} in {key}, found {getattr(config, key)!r}")
    # A tokenizer that cannot be had is found out before the long part.
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")
    inputs: dict[str, str] = {}
    for language in config.written:
        inputs |= readers.fingerprint(config.source_of(language), workers=config.workers)
    patterns = [config.table] if config.table else [config.dictionary_of(language) for language in targets]
    inputs |= {path: file_digest(path) for pattern in patterns for path in dictionary.dictionary_files(pattern)}
    settings = {key: value for key, value in config.plain().items() if key in SETTINGS}
    # The same files in another folder make the same.
    digests = [(os.path.basename(path), digest) for path, digest in inputs.items()]
    text = json.dumps([FORMAT, settings, digests, sentences], sort_keys=True)
    return {"format": FORMAT, "fingerprint": hashlib.sha256(text.encode()).hexdigest(), "settings": settings,
            "inputs": inputs}


def is_made(data_dir: str, fingerprint: str) -> bool:
    """Whether the whole folder is there, made from the same."""
    try:
        folder = Folder(data_dir)
        for name in folder.meta["sizes"]:
            folder.path(name)
    except UserError:
        return False
    return folder.fingerprint == fingerprint


def open_partial(data_dir: str, fingerprint: str) -> str:
    """The folder to work in: the one that an interrupted preparation from the same has left, or a new one."""
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is a file")
    partial = data_dir.rstrip("/") + ".partial"
    mark = os.path.join(partial, "work", fingerprint)
    if not os.path.exists(mark):
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(os.path.dirname(mark))
        write_text(mark, "")
    return partial


def write_meta(folder: str, meta: dict) -> None:
    """Writes meta.json, with the sizes of the files that programs read."""
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))
             if name.endswith((".bin", ".npz", ".tiktoken"))}
    write_json(os.path.join(folder, "meta.json"), meta | {"sizes": sizes})


def move_into_place(partial: str, data_dir: str) -> None:
    """Moves the files of a finished preparation. Other files that are in data_dir stay there."""
    shutil.rmtree(os.path.join(partial, "work"))
    os.makedirs(data_dir, exist_ok=True)
    # meta.json goes first and comes last: there is none beside files of two preparations.
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(data_dir, "meta.json"))
    for name in sorted(os.listdir(partial), key=lambda name: name == "meta.json"):
        os.replace(os.path.join(partial, name), os.path.join(data_dir, name))
    os.rmdir(partial)
