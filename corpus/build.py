"""Text to a vocabulary and an alignment table; what a folder is made from, and where it is made."""

import functools
import hashlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import tiktoken

from corpus import dictionary, readers
from corpus.folder import FORMAT, Folder
from corpus.tokenizer import load_tokenizer, train_tokenizer
from corpus.words import aligned_surfaces, count_chunks, count_surfaces
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import json_digest, kept, write_json, write_text
from runtime.hashing import file_digest
from runtime.parallel import Workers

PATHS = ("source", "dictionary", "table")
SETTINGS = (*PATHS, "budget", "shard_seed", "pivot", "targets", "dictionary_target_first",
            "dictionary_translations", "translation_tokens", "tokenizer", "vocab_size",
            "tokenizer_share", "min_count", "val_fraction", "fact_count", "fact_frequencies", "fact_languages",
            "fact_periods")
# The files of a prepared folder.
OURS = re.compile(r"meta\.json|table\.(npz|tsv)|tokenizer\.tiktoken|[A-Za-z0-9-]+_((train|val)(\.align)?|facts)\.bin")
MOST_CHARACTERS_PER_TOKEN = 8  # on average, in any language
MAX_COUNTED = 20_000_000       # different words in memory: about 3 GB
BATCH_CHARACTERS = 500_000     # enough work for a process at a time


# ---- which documents ----

def documents(config: Config, language: str, progress: str = "") -> Iterator[str]:
    """A language's documents, no more of them than its budget can need."""
    room = config.budget.get(language, math.inf) * MOST_CHARACTERS_PER_TOKEN / max(1 - config.val_fraction, 1e-9)
    for text in readers.documents(config.source_of(language), progress, config.workers, config.shard_seed):
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

def count_in(workers: Workers, count: Callable[[list[str]], Counter], texts: Iterable[str]) -> Counter:
    """
    `count` of all texts. Memory is bounded: beyond MAX_COUNTED different words the rarest are forgotten, which can
    matter only to words about as rare.
    """
    total: Counter = Counter()
    least = 1
    for counts in workers.map(count, text_batches(texts)):
        total.update(counts)
        while len(total) > MAX_COUNTED:
            least += 1
            total = Counter({word: n for word, n in total.items() if n >= least})
    return total


def count_pivot_surfaces(config: Config, texts: Iterable[str], statements: list[str]) -> Counter:
    """How often each surface form stands in the pivot's texts and in statements of facts."""
    with Workers(config.workers) as workers:
        return count_surfaces(count_chunks(statements) + count_in(workers, count_chunks, texts))


def count_target_words(config: Config, language: str, texts: Iterable[str], entries: dict[str, list[str]]) -> Counter:
    """How often the words of a dictionary's translations stand in the target's texts."""
    count = dictionary.count_words
    if dictionary.is_unspaced(language):
        known = frozenset(translation for translations in entries.values() for translation in translations)
        count = functools.partial(dictionary.count_known, known=known)
    with Workers(config.workers) as workers:
        return count_in(workers, count, texts)


def count_training(config: Config, language: str, work: str,
                   count: Callable[[Iterable[str]], Counter]) -> tuple[Counter, float]:
    """`count` of a language's documents that are not held out, and the place below which they are."""
    def make() -> list:
        smallest, largest = 1.0, 0.0

        def training() -> Iterator[str]:
            nonlocal smallest, largest
            for text in documents(config, language, f"words {language}"):
                at = place(text)
                smallest, largest = min(smallest, at), max(largest, at)
                if at >= config.val_fraction:
                    yield text

        return [count(training()), smallest, largest]

    counts, smallest, largest = kept(os.path.join(work, f"counts_{language}.json"), make)
    if smallest >= largest:
        raise UserError(f"{config.source_of(language)}: found one distinct document; at least 2 are needed, one to "
                        "train on and one to hold out (blank lines separate documents in .txt; a very small budget may "
                        "need but one)")
    # In a small text val_fraction may hold out nothing, or all: then at least the first document by place is held out,
    # though its words are counted, and at least the last is trained on.
    return Counter(counts), min(max(config.val_fraction, math.nextafter(smallest, 1)), largest)


# ---- what a folder is made from ----

@dataclass
class Inputs:
    """What a folder is made from: settings and digests of files; a table made by hand, or the targets' dictionaries."""

    settings: dict
    files: dict[str, str]
    by_hand: dict[str, dict[str, list[str]]]
    books: dict[str, dictionary.Dictionary]

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides what is made. Where the files lie does not."""
        settings = {key: value for key, value in self.settings.items() if key not in PATHS}
        files = [(os.path.basename(path), digest) for path, digest in self.files.items()]
        return json_digest([FORMAT, settings, files])


def read_inputs(config: Config) -> Inputs:
    """What a folder is made from. Raises UserError for what is wrong in it, before the long part."""
    targets = config.written[1:]
    for language in targets:
        for key in ("source",) if config.table else ("source", "dictionary"):
            if "{language}" not in getattr(config, key):
                raise UserError(f"targets: {language!r} needs text and a dictionary of its own: {key} must have "
                                f"{{language}} in it, as in \"texts/{{language}}\", found {getattr(config, key)!r}; "
                                "the target that needs neither is \"clone\"")
    if config.tokenizer != "train":
        load_tokenizer(config.tokenizer, "")
    files: dict[str, str] = {}
    for language in config.written:
        files |= readers.fingerprint(config.source_of(language), workers=config.workers)
    patterns = [config.table] if config.table else [config.dictionary_of(language) for language in targets]
    files |= {path: file_digest(path) for pattern in patterns for path in dictionary.dictionary_files(pattern)}
    by_hand = dictionary.read_table_tsv(config.table, config) if config.table else {}
    books = {} if config.table else {
        language: dictionary.read(config.dictionary_of(language), config.dictionary_target_first)
        for language in targets}
    plain = config.plain()
    return Inputs({key: plain[key] for key in SETTINGS}, files, by_hand, books)


# ---- vocabulary and table ----

def make_vocabulary(config: Config, held_out: dict[str, float], path: str) -> tiktoken.Encoding:
    """The tokenizer that config names, or one trained on the texts and kept at `path`."""
    if config.tokenizer == "train" and not os.path.exists(path):
        print(f"training a vocabulary of {config.vocab_size} tokens")
        sample = (text for language in config.written for text in documents(config, language, f"vocabulary {language}")
                  if place(text) >= held_out[language]
                  and place("share " + text) <= config.tokenizer_share.get(language, 1.0))
        train_tokenizer(sample, config.vocab_size, path)
    encoding = load_tokenizer(config.tokenizer, path)
    if config.tokenizer == "train" and encoding.n_vocab < config.vocab_size:
        print(f"the corpus makes only {encoding.n_vocab} of the {config.vocab_size} tokens asked for")
    return encoding


def make_table(config: Config, inputs: Inputs, statements: list[str], folder: str) -> None:
    """Makes tokenizer.tiktoken, table.npz and table.tsv, and begins meta.json. The words of `statements` count too."""
    work, held_out = os.path.join(folder, "work"), {}
    print(f"counting words with {config.workers or os.cpu_count()} processes")
    counts, held_out[config.pivot] = count_training(
        config, config.pivot, work, lambda texts: count_pivot_surfaces(config, texts, statements))
    dictionaries = {}
    for language in config.written[1:]:
        entries = inputs.books[language].entries if language in inputs.books else {}
        in_target, held_out[language] = count_training(
            config, language, work, lambda texts: count_target_words(config, language, texts, entries))
        if language in inputs.books:
            # The most common translations, each in the case in which the target's text has it.
            entries = dictionary.as_text_has_them(entries, in_target, config.dictionary_translations)
            dictionaries[language] = replace(inputs.books[language], entries=entries)
    if config.table:
        # An entry's number is its place by frequency, whatever was edited.
        in_text = sorted((surface for surface in inputs.by_hand if counts[surface]), key=lambda s: (-counts[s], s))
        translated = {surface: inputs.by_hand[surface] for surface in in_text}
        print(f"{config.table}: {len(inputs.by_hand):,} words, {len(translated):,} of them in the text")
    else:
        surfaces = aligned_surfaces(counts, config.min_count)
        translated = dictionary.translate_surfaces(surfaces, dictionaries, config)
    if not translated:
        raise UserError(f"no word of the corpus that is seen more than min_count={config.min_count} times stands in "
                        f"{config.table or config.dictionary}; is it the right one, and the right way round "
                        "(--dictionary_target_first)?")
    encoding = make_vocabulary(config, held_out, os.path.join(folder, "tokenizer.tiktoken"))
    V = encoding.n_vocab
    offsets = {language: V if language == "clone" else 0 for language in (config.pivot, *config.targets)}
    short = dictionary.keep_short(translated, encoding, config.translation_tokens)
    dictionary.write_table(short, counts, encoding, offsets, folder)
    write_meta(folder, {
        "format": FORMAT, "fingerprint": inputs.fingerprint, "settings": inputs.settings, "inputs": inputs.files,
        "V": V, "vocab_size": V + max(offsets.values()), "end_of_text": encoding.eot_token, "offsets": offsets,
        "entries": len(short), "splits": {}, "held_out": held_out,
        "coverage": dictionary.coverage(short, translated, counts, dictionaries, config.written[1:])})


def write_meta(folder: str, meta: dict) -> None:
    """Writes meta.json, with the sizes of all files that are there."""
    names = [name for name in sorted(os.listdir(folder)) if OURS.fullmatch(name) and name != "meta.json"]
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in names}
    write_json(os.path.join(folder, "meta.json"), meta | {"sizes": sizes})


# ---- where it is made ----

def is_made(data_dir: str, fingerprint: str) -> bool:
    """Whether the whole folder is there, made from the same. Raises UserError when its table was edited in place."""
    try:
        folder = Folder(data_dir)
    except UserError:
        return False
    if folder.fingerprint != fingerprint:
        return False
    paths = {name: os.path.join(data_dir, name) for name in folder.meta["sizes"]}
    different = [path for name, path in paths.items()
                 if not os.path.exists(path) or os.path.getsize(path) != folder.meta["sizes"][name]]
    if different == [paths["table.tsv"]] and os.path.exists(different[0]):
        raise UserError(f"{different[0]} was edited; to use it, move it out of {data_dir} and name it with --table; to "
                        "undo it, delete it")
    return not different


def open_partial(data_dir: str, fingerprint: str) -> str:
    """The folder to work in: the one that an interrupted preparation from the same has left, or a new one."""
    if os.path.lexists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is a file")
    there = sorted(os.listdir(data_dir)) if os.path.isdir(data_dir) else []
    if foreign := [name for name in there if not OURS.fullmatch(name)]:
        raise UserError(f"data_dir: {data_dir} holds files that data.py did not make ({', '.join(foreign[:3])}); name "
                        "another folder, or empty it")
    partial = data_dir.rstrip("/") + ".partial"
    mark = os.path.join(partial, "work", fingerprint)
    if os.path.exists(mark):
        print(f"going on with {partial}")
        return partial
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(os.path.dirname(mark))
    except OSError as e:
        raise UserError(f"data_dir: cannot make {partial} ({e.strerror})") from e
    write_text(mark, "")
    return partial


def move_into_place(partial: str, data_dir: str) -> None:
    shutil.rmtree(os.path.join(partial, "work"))
    old = data_dir.rstrip("/") + ".old"
    shutil.rmtree(old, ignore_errors=True)
    # The old folder is moved away first: half deleted, it would look like someone else's.
    if os.path.isdir(data_dir):
        os.replace(data_dir, old)
    os.replace(partial, data_dir)
    shutil.rmtree(old, ignore_errors=True)


def summary(folder: Folder) -> str:
    """A line for each language: what has been made."""
    meta, settings = folder.meta, folder.settings
    lines = [f"{folder.dir}: V = {folder.V:,}, {meta['entries']:,} entries, {settings.fact_count} facts"]
    for language, train in folder.splits["train"].items():
        line = (f"  {language}: {train['documents']:,} documents, {train['bytes'] / 1e6:,.1f} MB, "
                f"{train['tokens']:,} training tokens ({train['bytes'] / train['tokens']:.2f} bytes each), "
                f"{folder.splits['val'][language]['tokens']:,} held out")
        if train["tokens"] < settings.budget.get(language, 0):
            line += f", all there are of the {settings.budget[language]:,.0f} asked for"
        if share := meta["coverage"].get(language):
            line += f"; {100 * share['running_words']:.0f}% of {folder.pivot}'s running words have an entry"
        if share and "pairs" in share:
            line += f", {share['pairs_in_the_table']:,} of the dictionary's {share['pairs']:,} pairs are in the table"
        lines.append(line)
    return "\n".join(lines)
