"""What depends on the language: its one code, its script, spaces between words, and its capitals."""

import functools
import unicodedata

import langcodes
import regex

# Letters and the marks that many scripts combine with them, for the regex package.
LETTERS = r"[\p{L}\p{M}]"
FIRST = regex.compile(r"\X?")
# Scripts whose text has no spaces between words, by ISO 15924.
UNSPACED = ("Hans", "Hant", "Hani", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Talu")
# Codes that stand for several of Unicode's scripts.
MIXED = {"Hans": ("Hani",), "Hant": ("Hani",), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani")}
# These have two letters i, with a dot and without.
DOTTED = ("tr", "az", "crh", "gag")


@functools.cache
def _tag(name: str) -> langcodes.Language | None:
    """The language of a name such as "zh", "zho", "cmn", "zh_CN" or "zh-Hans", if it is one."""
    try:
        tag = langcodes.Language.get(name)
        return tag.prefer_macrolanguage() if tag.is_valid() else None
    except ValueError:
        return None


def is_known(name: str) -> bool:
    return _tag(name) is not None


@functools.cache
def code_of(name: str) -> str:
    """The one code of a language that has many names: "zh" for all of the above. An unknown name stands for itself."""
    tag = _tag(name)
    return tag.language if tag and tag.language else name.lower()


@functools.cache
def script_of(name: str) -> str:
    """The script that a language is mostly written in, as in ISO 15924, or "" for an unknown one."""
    tag = _tag(name)
    return tag.maximize().script or "" if tag else ""


def in_script(name: str) -> str:
    """A class of characters for the regex package: those of a known language's script."""
    script = script_of(name)
    return "[" + "".join(rf"\p{{Script={part}}}" for part in MIXED.get(script, (script,))) + "]"


def has_spaces(name: str) -> bool:
    return script_of(name) not in UNSPACED


# ---- capitals: Python's, which are Unicode's, but for two letters i and for Greek ----

def lowercase(word: str, language: str) -> str:
    if code_of(language) in DOTTED:
        word = word.replace("İ", "i").replace("I", "ı")
    return unicodedata.normalize("NFC", word.lower())


def _dotted(word: str, language: str) -> str:
    # A dot above a small i, which wrong hands leave there, is a part of it.
    return word.replace("i\u0307", "i").replace("i", "İ") if code_of(language) in DOTTED else word


def uppercase(word: str, language: str) -> str:
    # Greek words in capitals have no accents.
    if code_of(language) == "el":
        word = unicodedata.normalize("NFD", word).replace("\u0301", "")
    return unicodedata.normalize("NFC", _dotted(word, language).upper())


def titlecase(word: str, language: str) -> str:
    """The word with a capital at its beginning."""
    # What a reader sees as the first letter: with its marks.
    first = FIRST.match(word)[0]
    return unicodedata.normalize("NFC", _dotted(first, language).title() + word[len(first):])
