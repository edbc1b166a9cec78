"""
Bilingual dictionaries, MUSE files as published or one's own, and the alignment table that is made of them.

A line is a pivot word and a translation with a tab or, when both are single words, a space between them.
"""

import glob
import itertools
import json
import os
from collections import Counter

import numpy as np
import regex
import tiktoken

from corpus.readers import read_lines
from corpus.table import make_table
from corpus.tokenizer import encode
from runtime.errors import UserError
from runtime.files import write_text

# Pivot word -> translations, as they stand in a dictionary.
Entries = dict[str, list[str]]
# A row of the table: surface form of a pivot word, language, translation, both words as they stand in text.
Row = tuple[str, str, str]

# Letters with the marks that some scripts combine with them, as in the tokenizer's words.
WORD = regex.compile(r"[\p{L}\p{M}]+")
# A translation rarer than this share of the most common one is mostly another sense of the word, or a slip.
RARE = 0.05
# So many lines that are no pairs are left out of a dictionary; one with more is another kind of file.
BAD_LINES = 10

# Languages written without spaces between words: a translation spliced into running text brings none with it.
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo")
# Characters of languages in another script than the Latin one, as in a regular expression's brackets.
SCRIPTS = {"zh": "\u4e00-\u9fff", "ja": "\u3040-\u30ff\u4e00-\u9fff", "ko": "\uac00-\ud7af", "th": "\u0e00-\u0e7f",
           "lo": "\u0e80-\u0eff", "km": "\u1780-\u17ff", "my": "\u1000-\u109f", "bo": "\u0f00-\u0fff",
           "hi": "\u0900-\u097f", "he": "\u0590-\u05ff", "el": "\u0370-\u03ff",
           **dict.fromkeys(("ar", "fa", "ur"), "\u0600-\u06ff"), **dict.fromkeys(("ru", "uk", "bg"), "\u0400-\u04ff")}


def code_of(language: str) -> str:
    """ "zh" for "zh-hans": the one name under which all that depends on a language is looked up. """
    return language.lower().split("-")[0]


def script_of(language: str) -> str | None:
    return SCRIPTS.get(code_of(language))


def capitalised(word: str, whole: bool = False) -> str:
    """The word with a capital at its beginning, or in capitals as a whole."""
    return word.upper() if whole else word[:1].upper() + word[1:]


# ---- dictionaries ----

def dictionary_files(pattern: str) -> list[str]:
    """The files that a name or glob pattern stands for, sorted. Raises UserError when there is none."""
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"dictionary: no file is named {pattern!r}, and none matches it as a pattern")
    return paths


def read(pattern: str) -> Entries:
    """
    The entries in the files that a name or glob pattern stands for. Raises UserError, naming file and line, for more
    than BAD_LINES lines that are no pairs.
    """
    entries: dict[str, dict[str, None]] = {}
    bad_lines, first_bad = 0, ""
    for path in dictionary_files(pattern):
        for number, line in read_lines(path):
            pair = [part.strip() for part in line.strip().split("\t" if "\t" in line else None)]
            # Pairs of the same word twice are mostly names.
            if len(pair) == 2 and pair[0] != pair[1]:
                entries.setdefault(pair[0], {})[pair[1]] = None
            elif len(pair) != 2 and line.strip():
                bad_lines += 1
                first_bad = first_bad or (f"{path}:{number}: expected a word and its translation with a tab between "
                                          f"them (or a space, if each is one word), found {line.strip()[:60]!r}")
    if bad_lines > BAD_LINES or not entries:
        raise UserError(first_bad or f"dictionary: there is no pair of different words in {pattern}")
    if bad_lines:
        print(f"left out {bad_lines} lines, the first: {first_bad}")
    return {word: list(found) for word, found in entries.items()}


def count_words(texts: list[str]) -> Counter:
    """How often each run of letters stands in the texts, in the case it stands in."""
    return Counter(word for text in texts for word in WORD.findall(text))


def count_known(texts: list[str], known: frozenset[str]) -> Counter:
    """How often each of the `known` words stands in texts without spaces."""
    # The length of the longest word with this first character.
    longest: dict[str, int] = {}
    for word in known:
        longest[word[0]] = max(longest.get(word[0], 0), len(word))
    counts: Counter = Counter()
    for text in texts:
        start = 0
        # From left to right the longest known word that fits, or else one character.
        while start < len(text):
            ends = range(start + longest.get(text[start], 1), start, -1)
            end = next((end for end in ends if text[start:end] in known), start + 1)
            counts[text[start:end]] += 1
            start = end
    return Counter({word: counts[word] for word in known & counts.keys()})


def as_text_has_them(entries: Entries, counts: Counter, most: int = 0) -> Entries:
    """
    Translations in the case in which the target's text, counted in `counts`, has them more often. The `most` (0: all)
    most common ones, the most common first, without the RARE ones.
    """
    # Dictionaries are often all in lower case.
    def in_case(translation: str) -> str:
        return max(translation, capitalised(translation), key=counts.__getitem__)

    def count(translation: str) -> int:
        # Of several words the rarest one counts.
        return counts[translation] or min((counts[word] for word in WORD.findall(translation)), default=0)

    kept = {}
    for word, found in entries.items():
        common = sorted(dict.fromkeys(map(in_case, found)), key=count, reverse=True)
        kept[word] = [t for t in common if count(t) >= RARE * count(common[0])][:most or None]
    return kept


# ---- the table ----

def translations(surface: str, language: str, entries: Entries) -> list[str]:
    """What can stand in the place of a surface form in running text."""
    if language == "clone":
        return [surface]
    # The word as it stands, or else its lower case, whose translations get the capitals of the word.
    word = surface.removeprefix(" ")
    found = entries.get(word)
    if found is None:
        found = entries.get(word.lower(), [])
        # "A" and "I" have capitals for other reasons.
        if len(word) > 1:
            found = [capitalised(translation, whole=word.isupper()) for translation in found]
    # After a space with a space, where the language has spaces.
    space = " " if surface.startswith(" ") and code_of(language) not in UNSPACED else ""
    return list(dict.fromkeys(space + translation for translation in found))


def keep_short(rows: list[Row], encoding: tiktoken.Encoding, most: int) -> list[Row]:
    """Rows whose translation has at most `most` tokens (0: all rows). Raises UserError when nothing is left."""
    # En-Clone's words are kept whole: each of their tokens means one of the pivot's.
    short = [row for row in rows if not most or row[1] == "clone" or len(encode(encoding, row[2])) <= most]
    if not short:
        raise UserError(f"no translation has translation_tokens={most} tokens or fewer; allow more, or use a larger "
                        "vocab_size")
    return short


COLUMNS = ("entry", "frequency", "pivot", "language", "translation")


def write_table(rows: list[Row], counts: Counter, encoding: tiktoken.Encoding, offsets: dict[str, int],
                folder: str) -> int:
    """
    Writes table.npz, in which En-Clone's translations are a word's own token ids + V, and table.tsv for people, words
    quoted as in JSON, so that leading spaces and line ends show. Returns the number of entries.
    """
    targets = list(offsets)[1:]
    words: list[list[list[np.ndarray]]] = []
    frequency, lines = [], ["\t".join(COLUMNS)]
    for k, (surface, found) in enumerate(itertools.groupby(rows, key=lambda row: row[0]), 1):
        frequency.append(counts[surface])
        words.append([[encode(encoding, surface)], *([] for _ in targets)])
        for _, language, translation in found:
            words[-1][1 + targets.index(language)].append(encode(encoding, translation) + offsets[language])
            quoted = [json.dumps(word, ensure_ascii=False) for word in (surface, translation)]
            lines.append(f"{k}\t{counts[surface]}\t{quoted[0]}\t{language}\t{quoted[1]}")
    make_table(words, frequency, tuple(offsets)).save(os.path.join(folder, "table.npz"))
    write_text(os.path.join(folder, "table.tsv"), "\n".join(lines) + "\n")
    return len(words)


def read_table_tsv(path: str, targets: tuple[str, ...]) -> list[Row]:
    """The rows of a table.tsv that a person may have edited. Raises UserError for a wrong line."""
    rows: dict[Row, None] = {}
    for number, line in read_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or tuple(fields) == COLUMNS:
            continue
        try:
            # Entry and frequency do not count.
            _, _, surface, language, translation = fields
            surface, translation = json.loads(surface), json.loads(translation)
            valid = language in targets and all(isinstance(word, str) and word for word in (surface, translation))
        except ValueError:
            valid = False
        # In En-Clone every word is its own translation.
        if not valid or language == "clone" and translation != surface:
            raise UserError(f"{path}:{number}: expected {', '.join(COLUMNS)} with tabs between them, both words quoted "
                            f"as in JSON, and a language of {', '.join(targets)}; found {line.strip()[:80]!r}")
        rows[surface, language, translation] = None
    if not rows:
        raise UserError(f"{path}: there is no translation in this table")
    return list(rows)


def coverage(language: str, rows: list[Row], short: list[Row], counts: Counter, entries: Entries,
             common: Entries) -> dict:
    """
    The share of the pivot's running words (with a letter in them) that have an entry, and how many of the dictionary's
    pairs were left out: for more `common` ones, for want of their word in `rows`, and for length.
    """
    def pairs_in(table: list[Row]) -> int:
        # Forms of a word that differ in capitals and spaces are one pair.
        return len({(word.strip().casefold(), translation.strip().casefold())
                    for word, target, translation in table if target == language})

    running = Counter({surface: count for surface, count in counts.items() if any(map(str.isalpha, surface))})
    with_entry = {surface for surface, target, _ in short if target == language}
    result = {"running_words": sum(running[surface] for surface in with_entry) / max(1, running.total())}
    # A table made by hand has no dictionary behind it.
    if entries:
        made, in_table = pairs_in(rows), pairs_in(short)
        given, kept = (sum(map(len, book.values())) for book in (entries, common))
        result |= {"pairs_in_the_table": in_table, "rarer_pairs_left_out": given - kept,
                   "pairs_of_no_entry": kept - made, "longer_pairs_left_out": made - in_table}
    return result
