"""Text to a vocabulary and an alignment table; what a folder is made from, and where it is made."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from corpus import dictionary, readers
from corpus.folder import FORMAT, Folder
from corpus.languages import is_known
from corpus.table import keep_short, read_table_tsv, write_table
from corpus.tokenizer import load_tokenizer, train_tokenizer
from corpus.words import aligned_surfaces, count_chunks, count_surfaces
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import exclusive, write_json
from runtime.hashing import file_digest
from runtime.parallel import Workers

# The knobs that decide what is made, beside the files read.
SETTINGS = ("budget", "pivot", "targets", "dictionary_translations", "translation_tokens", "tokenizer", "vocab_size",
            "tokenizer_share", "min_count", "val_fraction", "fact_count", "fact_frequencies", "fact_objects",
            "fact_languages", "fact_periods")
MOST_CHARACTERS_PER_TOKEN = 8  # on average, in any language
MAX_COUNTED = 20_000_000       # different words in memory: about 3 GB
BATCH_CHARACTERS = 500_000     # enough work for a process at a time


def documents(config: Config, language: str, progress: str = "") -> Iterator[str]:
    """A language's documents, no more than its budget can need, with those that will be held out."""
    room = config.budget.get(language, math.inf) * MOST_CHARACTERS_PER_TOKEN / max(1 - config.val_fraction, 1e-9)
    for text in readers.documents(config.source_of(language), progress, config.workers):
        yield text
        room -= len(text)
        if room < 0:
            return


def place(text: str) -> float:
    """A number between 0 and 1 that only the text decides."""
    # Documents below `held_out` of it are held out: the same text twice is never in both splits.
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


def count_training(config: Config, language: str, count: Callable[[list[str]], Counter]) -> tuple[Counter, float]:
    """`count` of a language's documents that are not held out, and the place below which they are."""
    places = array("d")

    def training() -> Iterator[str]:
        for text in documents(config, language, f"words {language}"):
            places.append(place(text))
            if places[-1] >= config.val_fraction:
                yield text

    total: Counter = Counter()
    with Workers(config.workers) as workers:
        for counts in workers.map(count, text_batches(training())):
            total.update(counts)
            # Memory is bounded: the rarest are forgotten, which can matter only to words about as rare.
            if len(total) > MAX_COUNTED:
                total = Counter(dict(total.most_common(MAX_COUNTED // 2)))
    smallest, largest = min(places, default=0), max(places, default=0)
    if smallest == largest:
        raise UserError(f"{config.source_of(language)}: found fewer than 2 distinct documents, one to train on and one "
                        "to hold out (blank lines end a document in .txt)")
    # In a small text val_fraction may hold out nothing, or all: then at least the first document by place is held out,
    # though its words are counted, and at least the last is trained on.
    return total, min(max(config.val_fraction, math.nextafter(smallest, 1)), largest)


def make_table(config: Config, statements: list[str], folder: str) -> dict:
    """Makes tokenizer.tiktoken, table.npz and table.tsv of texts and `statements`; returns what meta.json says."""
    pivot, targets = config.pivot, config.written[1:]
    for language in config.written:
        if not is_known(language):
            print(f"{language} is no language's code in ISO 639: its words are taken to have spaces between them and "
                  "common capitals, and CLKA is asked in it only with templates under this name")
    # Files by other hands may be wrong: they are read before the long part.
    by_hand = read_table_tsv(config.table, config.targets) if config.table else []
    books = {language: {} if config.table else dictionary.read(config.dictionary_of(language)) for language in targets}
    counts, place_of_pivot = count_training(config, pivot, count_chunks)
    surfaces, held_out, common = count_surfaces(counts + count_chunks(statements)), {pivot: place_of_pivot}, {}
    for language, book in books.items():
        counts, held_out[language] = count_training(config, language, dictionary.counter(book, language))
        # The most common translations, each in the form in which the target's text has it.
        common[language] = dictionary.as_text_has_them(book, counts, language, config.dictionary_translations)

    # Entries are numbered by frequency.
    if config.table:
        rows = sorted((row for row in by_hand if surfaces[row[0]]),
                      key=lambda row: (-surfaces[row[0]], row[0], config.targets.index(row[1])))
        if len(rows) < len(by_hand):
            print(f"{config.table}: left out {len(by_hand) - len(rows)} lines whose word does not stand in the text")
    else:
        rows = [(surface, language, translation) for surface in aligned_surfaces(surfaces, config.min_count)
                for language in config.targets
                for translation in dictionary.translations(surface, language, common.get(language, {}), config.pivot)]
    if not rows and config.table:
        raise UserError(f"{config.table}: none of its words stands in the text")
    if not rows:
        found_in = f" and stands in {config.dictionary}" if targets else ""
        raise UserError(f"no word of the corpus is seen more than min_count={config.min_count} times{found_in}; use a "
                        "larger corpus or a smaller --min_count, or look whether a dictionary is the right way round")
    path = os.path.join(folder, "tokenizer.tiktoken")
    if config.tokenizer == "train" and not os.path.exists(path):
        sample = (text for language in config.written for text in documents(config, language, f"vocabulary {language}")
                  if place(text) >= held_out[language]
                  and place("share " + text) <= config.tokenizer_share.get(language, 1.0))
        train_tokenizer(sample, config.vocab_size, path)
    encoding = load_tokenizer(config.tokenizer, path)
    # What is added to an id of the vocabulary in each language: En-Clone has ids of its own.
    first_id = {language: encoding.n_vocab if language == "clone" else 0 for language in (pivot, *config.targets)}
    rows = keep_short(rows, encoding, config.translation_tokens)
    entries = write_table(rows, surfaces, encoding, first_id, folder)
    coverage = {language: dictionary.coverage(language, rows, surfaces, common[language]) for language in books}
    for language, numbers in coverage.items():
        share, never = numbers.values()
        print(f"{100 * share:.0f}% of {pivot}'s running words have an entry in {language}"
              + (f"; {never} translations never stand in its text: another spelling or kind of text?" if never else ""))
    return {"V": encoding.n_vocab, "vocab_size": encoding.n_vocab + max(first_id.values()), "first_id": first_id,
            "end_of_text": encoding.eot_token, "entries": entries, "held_out": held_out, "coverage": coverage}


# ---- what a folder is made from, and where ----

def made_from(config: Config, sentences: list[str]) -> dict:
    """What meta.json says of a folder's origin: settings, digests of the files read, and one fingerprint."""
    targets = config.written[1:]
    for key in ("source",) if config.table else ("source", "dictionary"):
        if targets and "{language}" not in getattr(config, key):
            raise UserError(f"targets: {targets[0]!r} needs text and a dictionary of its own (only \"clone\" needs "
                            f"none): expected {{language}} in {key}, found {getattr(config, key)!r}")
    # A tokenizer that cannot be had is found out before the long part.
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")
    inputs: dict[str, str] = {}
    for language in config.written:
        inputs |= readers.fingerprint(config.source_of(language), workers=config.workers)
    patterns = [config.table] if config.table else [config.dictionary_of(language) for language in targets]
    inputs |= {path: file_digest(path) for pattern in patterns for path in readers.matching(pattern)}
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
        return folder.fingerprint == fingerprint and all(folder.path(name) for name in folder.meta["sizes"])
    except UserError:
        return False


def write_meta(folder: str, meta: dict) -> None:
    """Writes meta.json, with the sizes of the files that programs read."""
    files = (file for file in sorted(Path(folder).iterdir()) if file.suffix in (".bin", ".npz", ".tiktoken"))
    sizes = {file.name: file.stat().st_size for file in files}
    write_json(os.path.join(folder, "meta.json"), meta | {"sizes": sizes})


@contextlib.contextmanager
def making(data_dir: str, fingerprint: str) -> Iterator[str]:
    """A folder to work in, whose files are moved to data_dir at the end. Other files in data_dir stay there."""
    if os.path.isfile(data_dir):
        raise UserError(f"data_dir: {data_dir} is a file")
    partial = data_dir.rstrip("/") + ".partial"
    work = os.path.join(partial, "work")
    with exclusive(data_dir):
        # What an interrupted preparation from the same has left is gone on with.
        if not os.path.exists(os.path.join(work, fingerprint)):
            shutil.rmtree(partial, ignore_errors=True)
            os.makedirs(os.path.join(work, fingerprint))
        yield partial
        shutil.rmtree(work)
        os.makedirs(data_dir, exist_ok=True)
        # meta.json goes first and comes last: there is none beside files of two preparations.
        Path(data_dir, "meta.json").unlink(missing_ok=True)
        for name in sorted(os.listdir(partial), key=lambda name: name == "meta.json"):
            os.replace(os.path.join(partial, name), os.path.join(data_dir, name))
        os.rmdir(partial)
