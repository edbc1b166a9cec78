"""
Bilingual dictionaries, MUSE files as published or one's own, with translations as the target's text has them.

A line is a pivot word and a translation with a tab or, when both are single words, a space between them.
"""

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import regex

from corpus.languages import LETTERS, has_spaces, lowercase, titlecase, uppercase
from corpus.readers import matching, read_lines
from corpus.table import Row
from corpus.words import CURLY
from runtime.errors import UserError

# Pivot word -> translations, as they stand in a dictionary.
Entries = dict[str, list[str]]

# An apostrophe within a word, of all that keyboards have, is part of it.
APOSTROPHES = "'’‘ʻʼ׳"
WORD = regex.compile(f"{LETTERS}+(?:[{APOSTROPHES}]{LETTERS}+)*")
# A translation rarer than this share of the most common one is mostly another sense of the word, or a slip.
RARE = 0.05
# So many lines that are no pairs are left out of a dictionary; one with more is another kind of file.
BAD_LINES = 10
# Characters for the same: apostrophes, a cedilla in place of a comma, letters of Persian.
ALIKE = str.maketrans("’‘ʻʼ׳\u0327یک", "'''''\u0326يك")
# What some write and others do not: vowel points and hamzas of Arabic, points of Hebrew, the stress of Cyrillic words
# and the dots of Russian io; and the dot that a Turkish capital leaves on a small i in the wrong hands.
OPTIONAL = regex.compile(r"[\u0591-\u05bd\u05bf-\u05c7\u0640\u064b-\u0655\u0670]|(?<=\p{Cyrillic})[\u0300\u0301]"
                         r"|(?<=[еЕ])\u0308|(?<=i)\u0307")


class Translation(NamedTuple):
    """A translation as text has it: within a sentence, with a capital at its beginning, in capitals; and how often."""

    forms: tuple[str, str, str]
    seen: int


# ---- dictionaries ----

def pair_of(line: str) -> list[str]:
    """The two parts of a line; of what is no pair, one or more than two."""
    return [part.strip() for part in line.strip().split("\t" if "\t" in line else None)]


def read(pattern: str) -> Entries:
    """
    The entries in the files that a name or glob pattern stands for. Raises UserError, naming file and line, for more
    than BAD_LINES lines that are no pairs.
    """
    entries: dict[str, dict[str, None]] = {}
    bad_lines, first_bad = 0, ""
    for path in matching(pattern):
        for number, line in read_lines(path):
            pair = pair_of(line)
            # Pairs of the same word twice are mostly names.
            if len(pair) == 2 and pair[0] != pair[1]:
                entries.setdefault(pair[0].replace(CURLY, "'"), {})[pair[1]] = None
            elif len(pair) != 2 and line.strip():
                bad_lines += 1
                first_bad = first_bad or (f"{path}:{number}: expected a word and its translation with a tab between "
                                          f"them (or a space, if each is one word), found {line.strip()[:60]!r}")
    if bad_lines > BAD_LINES or not entries:
        raise UserError(first_bad or f"dictionary: there is no pair of different words in {pattern}")
    if bad_lines:
        print(f"left out {bad_lines} lines, the first: {first_bad}")
    return {word: list(found) for word, found in entries.items()}


def skeleton(word: str) -> str:
    """What all spellings of a word have in common."""
    return OPTIONAL.sub("", unicodedata.normalize("NFKD", word).translate(ALIKE))


def count_words(texts: list[str]) -> Counter:
    """How often each run of letters stands in the texts, in the case it stands in, and each word with apostrophes."""
    counts = Counter(word for text in texts for word in WORD.findall(text))
    for word in [word for word in counts if not word.isalpha()]:
        for part in regex.findall(f"{LETTERS}+", word):
            counts[part] += counts[word] if part != word else 0
    return counts


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


def counter(entries: Entries, language: str) -> Callable[[list[str]], Counter]:
    """The function that counts words in the texts of a language."""
    if has_spaces(language):
        return count_words
    return functools.partial(count_known, known=frozenset(itertools.chain.from_iterable(entries.values())))


def as_text_has_them(entries: Entries, counts: Counter, language: str, most: int = 0) -> dict[str, list[Translation]]:
    """
    Translations in the spelling and case in which the target's text, counted in `counts`, has them more often. The
    `most` (0: all) most common ones, the most common first, without the RARE ones.
    """
    # Of several spellings of a word the most common one, which comes last.
    spelled = {skeleton(word): word for word, _ in reversed(counts.most_common())}

    def count(words: str) -> int:
        # Of several words the rarest one counts.
        return counts[words] or min((counts[word] for word in WORD.findall(words)), default=0)

    def in_text(word: str) -> str:
        # Dictionaries are often all in lower case.
        cased = [word, titlecase(word, language)]
        found, other = (max(forms, key=counts.__getitem__)
                        for forms in (cased, [spelled.get(skeleton(form), form) for form in cased]))
        return other if counts[found] < RARE * counts[other] else found

    def with_capitals(translation: str) -> Translation:
        within = in_text(translation)
        if not count(within):
            within = WORD.sub(lambda word: in_text(word[0]), translation)
        capital, capitals = titlecase(within, language), uppercase(within, language)
        # A form that the text never has is no better than one that it has.
        if count(within):
            capital = capital if count(capital) else within
            capitals = capitals if count(capitals) else capital
        return Translation((within, capital, capitals), count(within))

    kept = {}
    for word, found in entries.items():
        # Two spellings may turn out as one.
        common = sorted(dict.fromkeys(map(with_capitals, found)), key=lambda t: t.seen, reverse=True)
        kept[word] = [t for t in common if t.seen >= RARE * common[0].seen][:most or None]
    return kept


# ---- the table ----

def translations(surface: str, language: str, entries: dict[str, list[Translation]], pivot: str) -> list[str]:
    """What can stand in the place of a surface form in running text."""
    if language == "clone":
        return [surface]
    # The word as it stands, or else its lower case, whose translations get the capitals of the word.
    word, form = surface.removeprefix(" ").replace(CURLY, "'"), 0
    found = entries.get(word)
    if found is None:
        found = entries.get(lowercase(word, pivot), [])
        # "A" and "I" have capitals for other reasons.
        form = 0 if len(word) == 1 else 2 if word.isupper() else 1
    # After a space with a space, where the language has spaces.
    space = " " if surface.startswith(" ") and has_spaces(language) else ""
    return list(dict.fromkeys(space + translation.forms[form] for translation in found))


def coverage(language: str, rows: list[Row], counts: Counter, common: dict[str, list[Translation]]) -> dict:
    """
    The share of the pivot's running words (with a letter in them) that have an entry, and how many of the dictionary's
    `common` pairs have a translation that the text never has.
    """
    running = Counter({surface: count for surface, count in counts.items() if any(map(str.isalpha, surface))})
    with_entry = {surface for surface, target, _ in rows if target == language}
    return {"running_words": sum(running[surface] for surface in with_entry) / max(1, running.total()),
            "pairs_never_in_the_text": sum(not pair.seen for found in common.values() for pair in found)}
