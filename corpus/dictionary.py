"""
Bilingual dictionaries, MUSE files as published or one's own, and the alignment table that is made of them.

    entries = read("dictionaries/en-de.txt").entries      # {"house": ["haus", "hause"], ...}
    entries = as_text_has_them(entries, counts, most=5)   # {"house": ["Haus", "Hause"], ...}: with German text's capitals, the most common first
    translations("House", entries)                        # ["Haus", "Hause"]

A line is a pivot word and a translation with a tab or, when both are single words, a space between them.
"""

import glob
import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass

import regex
import tiktoken

from runtime.config import Config
from runtime.errors import UserError
from corpus.readers import read_lines
from corpus.table import make_table
from corpus.tokenizer import encode

WORD = regex.compile(r"[\p{L}\p{M}]+")  # with the marks that some scripts combine with letters, as in the tokenizer's words
RARE = 0.05  # of the count of a word's most common translation: what is rarer is mostly another sense, or a slip of the dictionary

# Languages written without spaces between words: a translation spliced into running text brings none with it.
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo")
# Characters of languages in another script than the Latin one.
SCRIPTS = {"zh": "\u4e00-\u9fff", "ja": "\u3040-\u30ff\u4e00-\u9fff", "th": "\u0e00-\u0e7f", "lo": "\u0e80-\u0eff", "km": "\u1780-\u17ff",
           "my": "\u1000-\u109f", "bo": "\u0f00-\u0fff", "ko": "\uac00-\ud7af", "ar": "\u0600-\u06ff", "fa": "\u0600-\u06ff", "ur": "\u0600-\u06ff",
           "he": "\u0590-\u05ff", "el": "\u0370-\u03ff", "hi": "\u0900-\u097f", "ru": "\u0400-\u04ff", "uk": "\u0400-\u04ff", "bg": "\u0400-\u04ff"}


@dataclass(frozen=True)
class Dictionary:
    entries: dict[str, list[str]]  # pivot word -> translations, as they stand in the files, each once
    pairs: int                     # lines that were kept
    identical: int                 # lines left out because both words are the same: mostly names
    bad_lines: int = 0             # lines left out because they are no pairs


def without_variant(language: str) -> str:
    """ "zh" for "zh-hans". """
    return language.lower().split("-")[0]


def is_unspaced(language: str) -> bool:
    """Whether a language ("zh", "zh-hans", ...) is written without spaces between words."""
    return without_variant(language) in UNSPACED


def script_of(language: str) -> str | None:
    """The characters of a language's script, as in a regular expression's brackets; None where SCRIPTS has none, as for the Latin one."""
    return SCRIPTS.get(without_variant(language))


def dictionary_files(pattern: str) -> list[str]:
    """The files that a name or glob pattern stands for, sorted. Raises UserError when there is none."""
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"dictionary: no file is named {pattern!r}, and none matches it as a pattern")
    return paths


def read(pattern: str, target_first: bool = False, keep_identical: bool = False, allowed_bad_lines: int = 0) -> Dictionary:
    """
    The dictionary in one or several files (a name or a glob pattern; .gz, .xz and .zst too), NFC-normalised. `target_first`: the
    translation stands before the pivot word. Raises UserError, naming file and line, when more than `allowed_bad_lines` are no pairs.
    """
    entries: dict[str, dict[str, None]] = {}
    bad: list[str] = []
    pairs = identical = 0
    for path in dictionary_files(pattern):
        for number, line in read_lines(path):
            if not line.strip():
                continue
            line = unicodedata.normalize("NFC", line)
            pair = [part.strip() for part in line.strip("\r\n").split("\t")] if "\t" in line else line.split()
            if len(pair) != 2 or not all(pair):
                bad.append(f"{path}:{number}: expected a word and its translation with a tab between them (or a space, when both are single words), "
                           f"found {line.strip()[:60]!r}")
                if len(bad) > allowed_bad_lines:
                    raise UserError(bad[-1] if len(bad) == 1 else f"{bad[-1]}; of such lines {allowed_bad_lines} are left out, not more (--dictionary_bad_lines)")
                continue
            word, translation = reversed(pair) if target_first else pair
            if word == translation and not keep_identical:
                identical += 1
                continue
            pairs += translation not in entries.setdefault(word, {})
            entries[word][translation] = None
    if not pairs:
        raise UserError(f"dictionary: there is no pair of different words in {pattern}")
    if bad:
        print(f"left out {len(bad)} lines, the first: {bad[0]}")
    return Dictionary({word: list(those) for word, those in entries.items()}, pairs, identical, len(bad))


def count_words(texts: list[str]) -> Counter:
    """How often each run of letters stands in the texts, in the case it stands in."""
    counts: Counter = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    return counts


def count_known(texts: list[str], known: frozenset[str]) -> Counter:
    """
    How often each of the `known` words stands in texts without spaces between words, which are cut into them from left to right, the
    longest that fits first.
    """
    longest: dict[str, int] = {}  # of the words with this first character
    for word in known:
        longest[word[0]] = max(longest.get(word[0], 0), len(word))
    counts: Counter = Counter()
    for text in texts:
        start = 0
        while start < len(text):
            most = longest.get(text[start], 0)
            length = next((n for n in range(most, 0, -1) if text[start:start + n] in known), 0)
            if length:
                counts[text[start:start + length]] += 1
            start += max(1, length)
    return counts


def capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def as_text_has_them(entries: dict[str, list[str]], counts: Counter, most: int = 0) -> dict[str, list[str]]:
    """
    Translations in the case in which the target's text has them more often, as dictionaries are often all in lower case: "haus" becomes
    "Haus" when that stands in it more often than "haus" does. The `most` (0: all) that are most common there, the most common first,
    without those that are rarer than RARE times the first; of several words, the rarest one counts.
    """
    def in_case(translation: str) -> str:
        return max(translation, capitalised(translation), key=counts.__getitem__)

    def count(translation: str) -> int:
        return counts[translation] or min((counts[word] for word in WORD.findall(translation)), default=0)

    kept = {}
    for word, those in entries.items():
        common = sorted(dict.fromkeys(map(in_case, those)), key=count, reverse=True)
        kept[word] = [t for t in common if count(t) >= RARE * count(common[0])][:most or None]
    return kept


def entry_of(word: str, entries: dict[str, list[str]]) -> str:
    """What a word is looked up as: as it stands, or else in lower case."""
    return word if word in entries else word.lower()


def translations(word: str, entries: dict[str, list[str]]) -> list[str]:
    """The translations of a word as it stands, or else of the word in lower case, which then get the word's capitals."""
    key = entry_of(word, entries)
    found = entries.get(key, [])
    if key == word or len(word) == 1:  # "A", "I": capital for other reasons
        return found
    if word.isupper():
        return [translation.upper() for translation in found]
    return [capitalised(translation) for translation in found]


def as_in_text(translation: str, surface: str, language: str) -> str:
    """The translation as it stands in running text in place of `surface`: with the space before it, where the language has one."""
    return " " + translation if surface.startswith(" ") and not is_unspaced(language) else translation


def translate_surfaces(surfaces: list[str], dictionaries: dict[str, Dictionary], config: Config) -> dict[str, dict[str, list[str]]]:
    """For every surface form that has any: its translations by language, as they stand in running text. En-Clone has them all."""
    table = {}
    for surface in surfaces:
        found = {}
        for language in config.targets:
            if language == "clone":
                found[language] = [surface]
            else:
                those = translations(surface.removeprefix(" "), dictionaries[language].entries)
                found[language] = list(dict.fromkeys(as_in_text(t, surface, language) for t in those))
        if any(found.values()):
            table[surface] = found
    return table


def keep_short(translated: dict[str, dict[str, list[str]]], encoding: tiktoken.Encoding, most: int) -> dict[str, dict[str, list[str]]]:
    """
    The table without translations of more than `most` tokens (0: with all of them) and without entries that then have none.
    En-Clone's words are kept whole: each of their tokens means one token of the pivot's. Raises UserError when nothing is left.
    """
    if not most:
        return translated
    short = {surface: {language: those if language == "clone" else [t for t in those if len(encode(encoding, t)) <= most] for language, those in found.items()}
             for surface, found in translated.items()}
    kept = {surface: found for surface, found in short.items() if any(found.values())}
    if not kept:
        raise UserError(f"no translation has translation_tokens={most} tokens or fewer; allow more, or use a larger vocab_size")
    return kept


COLUMNS = ("entry", "frequency", "pivot", "language", "translation")


def write_table_tsv(path: str, translated: dict[str, dict[str, list[str]]], counts: Counter) -> None:
    """The table for people: a line for each translation, words quoted as in JSON, so that leading spaces and line ends show."""
    with open(path, "w", encoding="utf-8") as f:
        f.write("\t".join(COLUMNS) + "\n")
        for k, (surface, found) in enumerate(translated.items(), 1):
            for language, those in found.items():
                for translation in those:
                    f.write(f"{k}\t{counts[surface]}\t{json.dumps(surface, ensure_ascii=False)}\t{language}\t{json.dumps(translation, ensure_ascii=False)}\n")


def write_table(translated: dict[str, dict[str, list[str]]], counts: Counter, encoding: tiktoken.Encoding, offsets: dict[str, int], folder: str) -> None:
    """table.npz and table.tsv. In En-Clone a word's translation is its own token ids + V."""
    words = [[[encode(encoding, surface)]] + [[encode(encoding, t) + offsets[language] for t in those] for language, those in found.items()]
             for surface, found in translated.items()]
    make_table(words, [counts[surface] for surface in translated], tuple(offsets)).save(os.path.join(folder, "table.npz"))
    write_table_tsv(os.path.join(folder, "table.tsv"), translated, counts)


def read_table_tsv(path: str, config: Config) -> dict[str, dict[str, list[str]]]:
    """
    A table that write_table_tsv wrote and a person may have edited: translations by language for every surface form, in the order
    of the lines. Entry and frequency are not looked at: they are made anew. Raises UserError, naming the line, for what is not such a table.
    """
    translated: dict[str, dict[str, list[str]]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        if number == 1 and tuple(fields) == COLUMNS:
            continue
        try:
            _, _, surface, language, translation = fields
            surface, translation = json.loads(surface), json.loads(translation)
        except ValueError:
            surface = translation = language = ""
        if not isinstance(surface, str) or not isinstance(translation, str) or not surface or not translation:
            raise UserError(f"{path}:{number}: expected {', '.join(COLUMNS)} with tabs between them, both words quoted as in JSON, found {line.strip()[:80]!r}")
        if language not in config.targets:
            raise UserError(f"{path}:{number}: a translation into {language!r}, which is not among the targets {', '.join(config.targets)}")
        if language == "clone" and translation != surface:
            raise UserError(f"{path}:{number}: in En-Clone every word is its own translation, found {translation!r} for {surface!r}")
        those = translated.setdefault(surface, {target: [] for target in config.targets})[language]
        if translation not in those:
            those.append(translation)
    if not translated:
        raise UserError(f"{path}: there is no translation in this table")
    return translated


def pairs_in(translated: dict[str, dict[str, list[str]]], language: str, entries: dict[str, list[str]]) -> set[tuple[str, str]]:
    """The pairs of a dictionary that stand in the table, with any capitals."""
    pairs = set()
    for surface, found in translated.items():
        word = surface.removeprefix(" ")
        key = entry_of(word, entries)
        for translation, form in zip(entries.get(key, []), translations(word, entries)):
            if as_in_text(form, surface, language) in found[language]:
                pairs.add((key, translation))
    return pairs


def coverage(translated: dict[str, dict[str, list[str]]], complete: dict[str, dict[str, list[str]]], counts: Counter, dictionaries: dict[str, Dictionary],
             languages: tuple[str, ...]) -> dict[str, dict]:
    """
    By language the share of the pivot's running words (with a letter in them) that have an entry. With a dictionary, that share
    without the look-up in lower case too, and of the dictionary's pairs how many are in the table `translated`, how many are left out as
    others of the same word are more common, how many as too long (they are in the `complete` table), and how many as their pivot word
    is in no entry.
    """
    running = {surface: count for surface, count in counts.items() if any(c.isalpha() for c in surface)}
    words = max(1, sum(running.values()))
    result: dict[str, dict] = {}
    for language in languages:
        entries = {surface for surface, found in translated.items() if found[language] and surface in running}
        result[language] = {"running_words": sum(running[s] for s in entries) / words}
        if (book := dictionaries.get(language)) is None:
            continue
        in_table, in_complete = len(pairs_in(translated, language, book.entries)), len(pairs_in(complete, language, book.entries))
        kept = sum(map(len, book.entries.values()))
        result[language] |= {
            "running_words_as_they_stand": sum(running[s] for s in entries if s.removeprefix(" ") in book.entries) / words,
            "pairs": book.pairs, "pairs_in_the_table": in_table, "rarer_pairs_left_out": book.pairs - kept,
            "longer_pairs_left_out": in_complete - in_table, "pairs_of_no_entry": kept - in_complete, "identical_pairs_left_out": book.identical, "bad_lines": book.bad_lines}
    return result
