"""The prose inside installed documentation: English text that needs no download."""

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from runtime.parallel import Workers

# Named, so that other packages beside those of requirements.txt do not change the corpus.
PACKAGES = (
    "_pytest", "charset_normalizer", "click", "cloudpickle", "defusedxml", "filelock", "fsspec", "functorch", "idna", "iniconfig",
    "jinja2", "joblib", "markupsafe", "mpmath", "networkx", "nltk", "numpy", "packaging", "pluggy", "pygments", "regex", "requests",
    "setuptools", "sympy", "tiktoken", "torch", "torchgen", "tqdm", "typing_extensions", "urllib3")
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPOUND = (*FUNCTION, ast.ClassDef, ast.If, ast.Try, ast.ExceptHandler)  # statements that hold others
FULL_LINE = 60  # characters; a shorter line before an indented one is a header, a longer one was wrapped

UNDERLINE = re.compile(r"([-=~^*#\"'])\1{2,}")
NOT_TEXT = r"(code |usage )?(examples?|references?|see also|usage|synopsis|doctests?)\b.{0,20}"
HIDDEN_TITLE = re.compile(NOT_TEXT, re.I)   # a title whose whole section is left out
ADMONITIONS = "note|warning|tip|caution|important|attention|hint|danger|admonition|topic|version\\w+|deprecated|seealso"
HIDDEN_HEADER = re.compile(rf"(?!\.\. ?({ADMONITIONS})::)({NOT_TEXT}:|.*::|\.\..*)", re.I)  # a line whose indented block is left out
MARKER = re.compile(r"\.\. ?\w+::\s*(v?\d[\w.]*)?\s*|:[^:`]+:(\s+|$)|@\w+(\s\w+:)?\s*|([-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\)|\[\d+\])\s+|")
NAME = re.compile(r"([`*\"']*[\w.]+[`*\"']*\s*(\(.*?\))?\s*(:|--|-)\s+)?")   # x (int): description
MARKUP = (
    (re.compile(r":[\w:+.-]+:`~[\w.]*?(\w+)`"), r"\1"),                         # :func:`~torch.relu` is shown as relu
    (re.compile(r"(?::[\w:+.-]+:)?`([^`<>]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),      # :ref:`text <target>` and `text <url>`_
    (re.compile(r"(?::[\w:+.-]+:)?(``?)([^`]+)\1_{0,2}"), r"\2"),               # :math:`n`, ``x`` and `x`
    (re.compile(r"(?<![\w*])(\*\*?)(\w[^*]*?)\1(?![\w*])"), r"\2"),             # *x* and **x**
    (re.compile(r"(\[[\w-]+\])_"), r"\1"),                                       # [1]_
    (re.compile(r"\s+"), " "),
)
CODE = re.compile(r"[\\{}|$^<>=@~`*]|://|%[sdr(.]|--\w|[+/]{2}|\w[(\[]\w*[,)\]]|\.\.\. ")
PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z][a-z]*(['’/-][A-Za-z]?[a-z]+)*[)\"'.,;:!?]*")
FIRST_WORD = re.compile(r"[\"'(]?([A-Z0-9]|(an?|the|if|when|whether) )")     # other small letters are mostly the middle of a sentence
LAST_WORD = re.compile(r"[.!?][\"')]*$")
COMMON_WORDS = frozenset("a an and are as at be by can for from has if in is it not of on or that the then this to was when which "
                         "will with".split())


def _is_prose(text: str) -> bool:
    words = text.split(" ")
    return (len(words) >= 6 and FIRST_WORD.match(text) is not None and LAST_WORD.search(text) is not None
            and not CODE.search(text)
            and sum(PLAIN_WORD.fullmatch(word) is not None for word in words) >= 0.8 * len(words)
            and sum(word.lower() in COMMON_WORDS for word in words) >= 0.15 * len(words))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _visible(lines: list[str]) -> Iterator[str]:
    """`lines` with an empty one in place of each that belongs to code, a title, a directive or a section of references."""
    hidden_below = None  # the indentation of a header whose block is left out
    hidden_section = doctest = False
    for line, after in zip(lines, lines[1:] + [""]):
        content = line.strip()
        if content and hidden_below is not None and _indent(line) <= hidden_below:
            hidden_below = None
        doctest = bool(content) and (doctest or content.startswith((">>>", "$ ")))
        title = not UNDERLINE.fullmatch(content) and UNDERLINE.fullmatch(after.strip())
        if content and title:
            hidden_section = HIDDEN_TITLE.fullmatch(content) is not None
        if title or doctest or hidden_section or hidden_below is not None or UNDERLINE.fullmatch(content):
            yield ""
        elif HIDDEN_HEADER.fullmatch(content):
            hidden_below = _indent(line)
            yield ""
        else:
            yield line


def _end_of_match(pattern: re.Pattern, text: str, start: int = 0) -> int:
    """Where a pattern that may match nothing ends."""
    match = pattern.match(text, start)
    return match.end() if match else start


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Wrapped lines joined; bullets, parameter names and the headers of indented descriptions taken off."""
    paragraph: list[str] = []
    start = body = 0        # the indentation of the first line, and of the others (-1: there are none yet)
    named = short = False   # the first line began with NAME; it is too short to have been wrapped
    for line in [*lines, ""]:
        content, indent = line.strip(), _indent(line)
        marker = _end_of_match(MARKER, content)
        text = content[_end_of_match(NAME, content, marker):]
        has_name = len(text) < len(content) - marker
        if body >= 0:
            fits = indent == body
        elif indent == start:
            fits = not has_name or not (named or short)
        else:
            fits = indent > start and not short
        if paragraph and content and fits and not marker:
            paragraph.append(content)
            body = indent
            continue
        if paragraph and not re.search(r"\S {3,}\S", "\n".join(paragraph)):  # columns of a table
            yield "\n".join(paragraph)
        paragraph = [text] if text else []
        start, body, named = indent, -1, has_name
        short = len(line) < FULL_LINE and (has_name or not marker)


def prose(docstring: str) -> list[str]:
    """The paragraphs of a docstring (reStructuredText, numpydoc or Google style) that are English sentences, one line each."""
    kept = []
    for text in _paragraphs(_visible(inspect.cleandoc(docstring).split("\n"))):
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
        if _is_prose(text.strip()):
            kept.append(text.strip())
    return kept


def _strings(node: ast.AST) -> Iterator[str]:
    """The docstrings below `node`, and every string outside functions: numpy and torch pass documentation to calls."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, FUNCTION) and not isinstance(child, (ast.Expr, ast.ClassDef, *FUNCTION)):
            continue
        if isinstance(child, COMPOUND):
            yield from _strings(child)
        elif isinstance(child, ast.stmt):
            parts = [(part.lineno, part.col_offset, part.value) for part in ast.walk(child) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            yield from (value for _, _, value in sorted(parts, key=lambda part: part[:2]))


def _module_prose(path: str) -> list[str]:
    with open(path, "rb") as file:
        source = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            return [paragraph for text in _strings(ast.parse(source.decode())) if " " in text for paragraph in prose(text)]
    except (SyntaxError, ValueError, RecursionError):
        return []


def _modules(place: str) -> list[str]:
    """The Python files of a package's folder (or of a module that is one file), in the same order on every machine."""
    if not os.path.isdir(place):
        return [place]
    paths = []
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return sorted(paths, key=lambda path: path.split(os.sep))


def harvest(places: list[str], progress: bool = False, workers: int = 0) -> list[str]:
    """
    The English prose in the documentation of Python packages: one document per module, one paragraph per line.

    No paragraph occurs twice, letters being all that counts. `places` are folders or files, read by `workers` processes
    (0 = one per core); the result does not depend on how many.
    """
    paths = [path for place in places for path in _modules(place)]
    with Workers(workers) as pool:
        found = list(tqdm(pool.map(_module_prose, paths), desc="builtin corpus", unit=" files", total=len(paths), disable=None if progress else True))
    result, seen = [], set()
    for paragraphs in found:
        kept = []
        for paragraph in paragraphs:
            key = re.sub("[^a-z]", "", paragraph.lower())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if len(kept) >= 2 and sum(map(len, kept)) >= 200:
            result.append("\n".join(kept))
    return result


_harvested: list[str] = []  # once per process: who asks for the documents asks for the fingerprint too


def documents(progress: bool, workers: int) -> list[str]:
    if not _harvested:
        specs = [spec for spec in map(importlib.util.find_spec, PACKAGES) if spec is not None]
        places = [spec.submodule_search_locations[0] if spec.submodule_search_locations else str(spec.origin) for spec in specs]
        _harvested.extend(harvest([sysconfig.get_path("stdlib"), *places], progress, workers))
    return _harvested
