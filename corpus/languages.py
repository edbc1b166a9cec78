"""What depends on the language: its one code, its script, spaces between words, and capitals by its own rules."""

import functools
import unicodedata

import langcodes
import regex

# Letters and the marks that many scripts combine with them, for the regex package.
LETTERS = r"[\p{L}\p{M}]"
# What a reader sees as the first letter: with its marks.
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


# ---- capitals: Python's, which are Unicode's, and the rules that Unicode has for a few languages ----

def lowercase(word: str, language: str) -> str:
    if code_of(language) in DOTTED:
        word = word.replace("İ", "i").replace("I", "ı")
    return unicodedata.normalize("NFC", word.lower())


def titlecase(word: str, language: str) -> str:
    """The word with a capital at its beginning."""
    code, first = code_of(language), FIRST.match(word)[0]
    if code == "nl" and word.startswith("ij"):
        return "IJ" + word[2:]
    # Greek keeps the accent of a single capital; Georgian has capitals, but for whole words only, which title() knows.
    capital = first.title() if code == "el" else uppercase(first, language, title=True)
    return unicodedata.normalize("NFC", capital + word[len(first):])


def uppercase(word: str, language: str, title: bool = False) -> str:
    """The word in capitals, or with `title` in those of a beginning."""
    code = code_of(language)
    if code in DOTTED:
        word = word.replace("i\u0307", "i").replace("i", "İ")
    elif code == "hy":
        word = word.replace("և", "եվ")
    # The dot that i and j keep under an accent is for small letters.
    elif code == "lt":
        word = regex.sub("(?<=[ij]\u0328?)\u0307", "", unicodedata.normalize("NFD", word))
    # Capitals have no accents, but a diaeresis where the accent told two vowels apart; "or" keeps its own.
    elif code == "el" and word != "ή":
        word = regex.sub("(?<=[αεηιουω])\u0301([ιυ])(?!\u0308)", "\\1\u0308", unicodedata.normalize("NFD", word))
        word = regex.sub(r"(?<=\p{Greek}\p{M}*)[\u0300\u0301\u0313\u0314\u0342]", "", word)
    return unicodedata.normalize("NFC", word.title() if title else word.upper())
