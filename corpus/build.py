"""Text to a vocabulary and an alignment table: what is held out, word counts, dictionaries in the text's forms."""

import functools
import hashlib
import heapq
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from corpus import dictionary, readers
from corpus.folder import FORMAT, Folder
from corpus.words import count_chunks, count_surfaces
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import remembered, write_json
from runtime.hashing import file_digest
from runtime.parallel import Workers

SETTINGS = ("source", "budget", "shard_seed", "pivot", "targets", "dictionary", "dictionary_target_first",
            "dictionary_translations", "translation_tokens", "table", "tokenizer", "vocab_size", "tokenizer_share",
            "min_count", "val_fraction", "fact_count", "fact_frequencies", "fact_languages", "fact_periods")
OURS = re.compile(r"meta\.json|table\.(npz|tsv)|tokenizer\.tiktoken|[A-Za-z0-9-]+_(train|val|facts)(\.align)?\.bin")  # the files of a data folder
MOST_CHARACTERS_PER_TOKEN = 8  # on average, in any language
MAX_COUNTED = 20_000_000       # different words in memory: about 3 GB


# ---------------------------------------------------------------------------------------------------------------------
# Which documents


def documents(config: Config, language: str, progress: str = "") -> Iterator[str]:
    """A language's documents, no more of them than its budget can need."""
    room = config.budget.get(language, math.inf) * MOST_CHARACTERS_PER_TOKEN / (1 - config.val_fraction) if config.val_fraction < 1 else math.inf
    for text in readers.documents(config.source_of(language), progress, config.workers, config.shard_seed):
        yield text
        room -= len(text)
        if room < 0:
            return


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def in_share(text: str, share: float) -> bool:
    """Whether a document is in a share of them, chosen by its digest (its last digits: the first choose what is held out)."""
    return int(_digest(text)[8:], 16) < share * 2**32


def choose_held_out(config: Config, language: str, spare: int = 50_000_000) -> list[str]:
    """
    Digests of the held-out documents: in the order of their digests, until val_fraction of the text is reached.

    Memory holds only the documents with the smallest digests, twice as much text as may be needed so far and `spare` characters.
    """
    sizes: dict[str, int] = {}
    largest_first: list[tuple[int, str]] = []
    total = kept = distinct = 0
    for text in documents(config, language, f"choosing {language}"):
        digest = _digest(text)
        if digest in sizes:
            continue
        distinct += 1
        total += len(text)
        kept += len(text)
        sizes[digest] = len(text)
        heapq.heappush(largest_first, (-int(digest, 16), digest))
        while kept - sizes[largest_first[0][1]] > 2 * config.val_fraction * total + spare:
            kept -= sizes.pop(heapq.heappop(largest_first)[1])
    if distinct < 2:
        raise UserError(f"{config.source_of(language)}: found {distinct} distinct documents; at least 2 are needed, one to train on and one to hold out "
                        "(blank lines separate documents in .txt; a very small budget may need but one)")
    held_out, needed = [], config.val_fraction * total
    for digest in sorted(sizes)[:distinct - 1]:
        held_out.append(digest)
        needed -= sizes[digest]
        if needed <= 0:
            break
    return held_out


class Texts:
    """The documents of every language, in training and held out."""

    def __init__(self, config: Config, folder: str):
        self.config = config
        self.held_out = {language: frozenset(remembered(os.path.join(folder, f"held_out_{language}.json"), lambda: choose_held_out(config, language)))
                         for language in config.written}

    def of(self, language: str, split: str, progress: str = "") -> Iterator[str]:
        held_out = self.held_out[language]
        return (text for text in documents(self.config, language, progress) if (_digest(text) in held_out) == (split == "val"))


# ---------------------------------------------------------------------------------------------------------------------
# Counting


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


def count_in(workers: Workers, count: Callable[[list[str]], Counter], texts: Iterable[str]) -> Counter:
    """
    `count` of all texts. Memory is bounded: beyond MAX_COUNTED different things those seen least are forgotten, which can
    matter only to what is about as rare as that.
    """
    total: Counter = Counter()
    least = 1
    for counts in workers.map(count, text_batches(texts)):
        total.update(counts)
        while len(total) > MAX_COUNTED:
            least += 1
            total = Counter({what: n for what, n in total.items() if n >= least})
    return total


def count_pivot_surfaces(config: Config, texts: Iterable[str], statements: list[str]) -> Counter:
    """How often each surface form stands in the pivot's texts and in statements of facts."""
    with Workers(config.workers) as workers:
        return count_surfaces(count_chunks(statements) + count_in(workers, count_chunks, texts))


def count_target_words(config: Config, language: str, texts: Iterable[str], entries: dict[str, list[str]]) -> Counter:
    """How often the words of a dictionary's translations stand in the target's texts."""
    known = frozenset(translation for those in entries.values() for translation in those)
    count = functools.partial(dictionary.count_known, known=known) if dictionary.is_unspaced(language) else dictionary.count_words
    with Workers(config.workers) as workers:
        return count_in(workers, count, texts)


def read_dictionaries(config: Config) -> dict[str, dictionary.Dictionary]:
    """Of every target but En-Clone, as they stand in the files."""
    return {language: dictionary.read(config.dictionary_of(language), config.dictionary_target_first)
            for language in config.written[1:]}


def fit_to_text(books: dict[str, dictionary.Dictionary], config: Config, texts: Texts, folder: str) -> dict[str, dictionary.Dictionary]:
    """Dictionaries in the case in which the target's text has the words, and the most common of them."""
    dictionaries = {}
    for language, book in books.items():
        counts = Counter(remembered(os.path.join(folder, f"counts_{language}.json"),
                                    lambda: count_target_words(config, language, texts.of(language, "train", f"words {language}"), book.entries)))
        dictionaries[language] = replace(book, entries=dictionary.as_text_has_them(book.entries, counts, config.dictionary_translations))
    return dictionaries


# ---------------------------------------------------------------------------------------------------------------------
# The whole preparation


def check_targets(config: Config) -> None:
    for language in config.written[1:]:
        for key in ("source",) if config.table else ("source", "dictionary"):
            if "{language}" not in getattr(config, key):
                raise UserError(f"targets: {language!r} needs text and a dictionary of its own: {key} must have {{language}} in it, as in \"texts/{{language}}\", "
                                f"found {getattr(config, key)!r}; the target that needs neither is \"clone\"")


def made_from(config: Config) -> dict:
    """All that decides what is made: format, settings, and the files that are read."""
    inputs: dict[str, str] = {}
    for language in config.written:
        inputs |= readers.fingerprint(config.source_of(language), progress=True, workers=config.workers)
    translations = [config.table] if config.table else [path for language in config.written[1:] for path in dictionary.dictionary_files(config.dictionary_of(language))]
    inputs |= {path: file_digest(path, blocks=2**10) for path in translations}
    plain = config.plain()
    return {"format": FORMAT, "settings": {key: plain[key] for key in SETTINGS}, "inputs": inputs}


def is_made(data_dir: str, origin: dict) -> bool:
    """Whether a whole data folder is there that was made from the same. Raises UserError when its table was edited in its place."""
    try:
        dataset = Folder(data_dir)
        changed = [name for name in dataset.meta["digests"] if not dataset.intact(name)]
        if dataset.meta["made_from"] != origin or (changed and changed != ["table.tsv"]):
            return False
    except (UserError, KeyError, TypeError, AttributeError):
        return False  # absent, of another version or damaged
    path = os.path.join(data_dir, "table.tsv")
    if changed and os.path.exists(path):
        raise UserError(f"{path} was edited; to use it, move it out of {data_dir} and name it with --table; to undo it, delete it")
    return not changed


def open_partial(data_dir: str, origin: dict) -> str:
    """The folder to work in: the one of an interrupted preparation from the same, to go on with, or a new one."""
    if os.path.lexists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"data_dir: {data_dir} is a file")
    foreign = [name for name in sorted(os.listdir(data_dir)) if not OURS.fullmatch(name)] if os.path.isdir(data_dir) else []
    if foreign:
        raise UserError(f"data_dir: {data_dir} holds files that data.py did not make ({', '.join(foreign[:3])}); name another folder, or empty it")
    partial = data_dir.rstrip("/") + ".partial"
    work = os.path.join(partial, "work")
    try:
        with open(os.path.join(work, "made_from.json"), encoding="utf-8") as f:
            known = json.load(f)
    except (OSError, ValueError):
        known = None  # none, or one that had hardly begun
    if known == origin or is_made(partial, origin):
        print(f"going on with {partial}")
        return partial
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(work)
    except OSError as e:
        raise UserError(f"data_dir: cannot make {partial} ({e.strerror})") from e
    write_json(os.path.join(work, "made_from.json"), origin)
    return partial


def move_into_place(partial: str, data_dir: str) -> None:
    shutil.rmtree(os.path.join(partial, "work"), ignore_errors=True)
    old = data_dir.rstrip("/") + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(data_dir):
        os.replace(data_dir, old)  # a folder half deleted would look like someone else's
    os.replace(partial, data_dir)
    shutil.rmtree(old, ignore_errors=True)


def summary(config: Config, meta: dict) -> str:
    """What has been made, in a line for each language."""
    lines = [f"{config.data_dir}: V = {meta['V']:,}, {meta['entries']:,} entries, {config.fact_count} facts"]
    for language, train in meta["splits"]["train"].items():
        a_word = "" if dictionary.is_unspaced(language) else f", {train['tokens'] / max(1, train['words']):.2f} a word"
        line = (f"  {language}: {train['documents']:,} documents, {train['bytes'] / 1e6:,.1f} MB, {train['tokens']:,} training tokens "
                f"({train['bytes'] / train['tokens']:.2f} bytes each{a_word}), {meta['splits']['val'][language]['tokens']:,} held out")
        if train["tokens"] < config.budget.get(language, 0):
            line += f", all there are of the {config.budget[language]:,.0f} asked for"
        if share := meta["coverage"].get(language):
            line += f", {100 * share['running_words']:.0f}% of {config.pivot}'s running words have an entry"
        if share and "pairs" in share:
            line += (f" ({100 * share['running_words_as_they_stand']:.0f}% as they stand); of the dictionary's {share['pairs']:,} pairs "
                     f"{share['pairs_in_the_table']:,} are in the table, {share['rarer_pairs_left_out']:,} have translations rarer than those kept, "
                     f"{share['longer_pairs_left_out']:,} longer ones than translation_tokens allows, {share['pairs_of_no_entry']:,} are of words "
                     f"without an entry; left out before: {share['identical_pairs_left_out']:,} of the same word twice, {share['bad_lines']} lines "
                     "that are no pairs")
        lines.append(line)
    return "\n".join(lines)
