"""
Bilingual dictionaries, MUSE files as published or one's own, and the alignment table that is made of them.

A line is a pivot word and a translation with a tab or, when both are single words, a space between them.
"""

import glob
import json
import os
from collections import Counter
from dataclasses import dataclass

import regex
import tiktoken

from corpus.readers import read_lines
from corpus.table import make_table
from corpus.tokenizer import encode
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import write_text

# Surface form of a pivot word -> language -> translations, as they stand in text.
Translated = dict[str, dict[str, list[str]]]

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


@dataclass(frozen=True)
class Dictionary:
    entries: dict[str, list[str]]  # pivot word -> translations, as they stand in the files, each once
    pairs: int                     # lines that were kept
    identical: int                 # lines left out because both words are the same: mostly names
    bad_lines: int = 0             # lines left out because they are no pairs


def code_of(language: str) -> str:
    """ "zh" for "zh-hans": the one name under which all that depends on a language is looked up. """
    return language.lower().split("-")[0]


def is_unspaced(language: str) -> bool:
    return code_of(language) in UNSPACED


def script_of(language: str) -> str | None:
    return SCRIPTS.get(code_of(language))


def capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def dictionary_files(pattern: str) -> list[str]:
    """The files that a name or glob pattern stands for, sorted. Raises UserError when there is none."""
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"dictionary: no file is named {pattern!r}, and none matches it as a pattern")
    return paths


def read(pattern: str, target_first: bool = False) -> Dictionary:
    """
    The dictionary in the files that a name or glob pattern stands for. `target_first`: the translation stands before
    the pivot word. Raises UserError, naming file and line, for more than BAD_LINES lines that are no pairs.
    """
    entries: dict[str, dict[str, None]] = {}
    bad: list[str] = []
    identical = 0
    for path in dictionary_files(pattern):
        for number, line in read_lines(path):
            if not line.strip():
                continue
            pair = [part.strip() for part in line.strip("\r\n").split("\t")] if "\t" in line else line.split()
            if len(pair) != 2 or not all(pair):
                bad.append(f"{path}:{number}: expected a word and its translation with a tab between them (or a space, "
                           f"when both are single words), found {line.strip()[:60]!r}")
                if len(bad) > BAD_LINES:
                    raise UserError(f"{bad[0]}; and {BAD_LINES} more such lines")
            elif pair[0] == pair[1]:
                identical += 1
            else:
                word, translation = reversed(pair) if target_first else pair
                entries.setdefault(word, {})[translation] = None
    if not entries:
        raise UserError(bad[0] if bad else f"dictionary: there is no pair of different words in {pattern}")
    if bad:
        print(f"left out {len(bad)} lines, the first: {bad[0]}")
    pairs = sum(map(len, entries.values()))
    return Dictionary({word: list(found) for word, found in entries.items()}, pairs, identical, len(bad))


def count_words(texts: list[str]) -> Counter:
    """How often each run of letters stands in the texts, in the case it stands in."""
    return Counter(word for text in texts for word in WORD.findall(text))


def count_known(texts: list[str], known: frozenset[str]) -> Counter:
    """
    How often each of the `known` words stands in texts without spaces, which are cut from left to right into the
    longest known word that fits, or else one character.
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


def as_text_has_them(entries: dict[str, list[str]], counts: Counter, most: int = 0) -> dict[str, list[str]]:
    """
    Translations in the case in which the target's text, counted in `counts`, has them more often: dictionaries are
    often all in lower case. The `most` (0: all) most common ones, the most common first, without the RARE ones.
    """
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


def entry_of(word: str, entries: dict[str, list[str]]) -> str:
    """The form under which a word is looked up: as it stands, or else in lower case."""
    return word if word in entries else word.lower()


def translations(word: str, entries: dict[str, list[str]]) -> list[str]:
    """The translations of a word as it stands, or else of its lower case, which then get the capitals of the word."""
    key = entry_of(word, entries)
    found = entries.get(key, [])
    if key == word or len(word) == 1:  # "A", "I": capital for other reasons
        return found
    return [t.upper() if word.isupper() else capitalised(t) for t in found]


def as_in_text(translation: str, surface: str, language: str) -> str:
    """The translation as it stands in text in place of `surface`: with its space, where the language has spaces."""
    return " " + translation if surface.startswith(" ") and not is_unspaced(language) else translation


def with_any(translated: Translated) -> Translated:
    """The entries that have a translation."""
    return {surface: by_language for surface, by_language in translated.items() if any(by_language.values())}


def translate_surfaces(surfaces: list[str], dictionaries: dict[str, Dictionary], config: Config) -> Translated:
    """For every surface form that has any: its translations, as they stand in running text. En-Clone has them all."""
    def of(surface: str, language: str) -> list[str]:
        if language == "clone":
            return [surface]
        found = translations(surface.removeprefix(" "), dictionaries[language].entries)
        return list(dict.fromkeys(as_in_text(word, surface, language) for word in found))

    return with_any({surface: {language: of(surface, language) for language in config.targets} for surface in surfaces})


def keep_short(translated: Translated, encoding: tiktoken.Encoding, most: int) -> Translated:
    """
    The table without translations of more than `most` tokens (0: with all). En-Clone's words are kept whole: each of
    their tokens means one of the pivot's. Raises UserError when nothing is left.
    """
    def fits(translation: str, language: str) -> bool:
        return not most or language == "clone" or len(encode(encoding, translation)) <= most

    short = with_any({surface: {language: [t for t in found if fits(t, language)] for language, found in entry.items()}
                      for surface, entry in translated.items()})
    if not short:
        raise UserError(f"no translation has translation_tokens={most} tokens or fewer; allow more, or use a larger "
                        "vocab_size")
    return short


COLUMNS = ("entry", "frequency", "pivot", "language", "translation")


def write_table(translated: Translated, counts: Counter, encoding: tiktoken.Encoding, offsets: dict[str, int],
                folder: str) -> None:
    """
    table.npz, in which En-Clone's translations are a word's own token ids + V, and table.tsv for people: a line for
    each translation, words quoted as in JSON, so that leading spaces and line ends show.
    """
    words, lines = [], ["\t".join(COLUMNS) + "\n"]
    for k, (surface, by_language) in enumerate(translated.items(), 1):
        words.append([[encode(encoding, surface)]])
        for language, found in by_language.items():
            words[-1].append([encode(encoding, translation) + offsets[language] for translation in found])
            quoted = [json.dumps(word, ensure_ascii=False) for word in (surface, *found)]
            lines += [f"{k}\t{counts[surface]}\t{quoted[0]}\t{language}\t{target}\n" for target in quoted[1:]]
    frequency = [counts[surface] for surface in translated]
    make_table(words, frequency, tuple(offsets)).save(os.path.join(folder, "table.npz"))
    write_text(os.path.join(folder, "table.tsv"), "".join(lines))


def read_table_tsv(path: str, config: Config) -> Translated:
    """A table.tsv that a person may have edited; entry and frequency do not count. UserError for a wrong line."""
    translated: Translated = {}
    for number, line in read_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or tuple(fields) == COLUMNS:
            continue
        try:
            _, _, surface, language, translation = fields
            surface, translation = json.loads(surface), json.loads(translation)
            words_given = all(isinstance(word, str) and word for word in (surface, translation))
            valid = words_given and language in config.targets
        except ValueError:
            valid = False
        # In En-Clone every word is its own translation.
        if not valid or language == "clone" and translation != surface:
            raise UserError(f"{path}:{number}: expected {', '.join(COLUMNS)} with tabs between them, both words quoted "
                            f"as in JSON, and a language of targets ({', '.join(config.targets)}); "
                            f"found {line.strip()[:80]!r}")
        found = translated.setdefault(surface, {target: [] for target in config.targets})[language]
        if translation not in found:
            found.append(translation)
    if not translated:
        raise UserError(f"{path}: there is no translation in this table")
    return translated


def pairs_in(translated: Translated, language: str, entries: dict[str, list[str]]) -> int:
    """How many of a dictionary's pairs stand in the table, with any capitals."""
    pairs: set[tuple[str, str]] = set()
    for surface, by_language in translated.items():
        word = surface.removeprefix(" ")
        key = entry_of(word, entries)
        forms = (as_in_text(form, surface, language) for form in translations(word, entries))
        pairs.update((key, t) for t, form in zip(entries.get(key, []), forms) if form in by_language[language])
    return len(pairs)


def coverage(translated: Translated, complete: Translated, counts: Counter, dictionaries: dict[str, Dictionary],
             languages: tuple[str, ...]) -> dict[str, dict]:
    """
    By language the share of the pivot's running words (with a letter in them) that have an entry. With a dictionary,
    also that share without the look-up in lower case, and where the dictionary's pairs went: `complete` is the table
    before long translations were left out of it.
    """
    running = {surface: count for surface, count in counts.items() if any(c.isalpha() for c in surface)}
    words = max(1, sum(running.values()))
    result: dict[str, dict] = {}
    for language in languages:
        entries = {surface for surface, found in translated.items() if found[language] and surface in running}
        result[language] = {"running_words": sum(running[s] for s in entries) / words}
        if (book := dictionaries.get(language)) is None:
            continue
        as_they_stand = sum(running[s] for s in entries if s.removeprefix(" ") in book.entries)
        in_table, in_complete = (pairs_in(table, language, book.entries) for table in (translated, complete))
        kept = sum(map(len, book.entries.values()))
        result[language] |= {
            "running_words_as_they_stand": as_they_stand / words, "pairs": book.pairs, "pairs_in_the_table": in_table,
            "rarer_pairs_left_out": book.pairs - kept, "longer_pairs_left_out": in_complete - in_table,
            "pairs_of_no_entry": kept - in_complete, "identical_pairs_left_out": book.identical,
            "bad_lines": book.bad_lines}
    return result
