"""
The prose inside installed documentation: English text that needs no download.

Every string in the source of the standard library and of PACKAGES is read as documentation, and its paragraphs that are
English sentences are kept: about 6 MB. The wording follows the installed versions.
"""

import ast
import functools
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from runtime.errors import UserError
from runtime.parallel import Workers

# Named, so that other installed packages do not change the corpus.
PACKAGES = ("torch", "numpy", "matplotlib", "nltk", "sympy", "networkx")
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}

BULLET = re.compile(r"^(\.\. ?\w+::|:[^:`]+:|[-*+•]|\(?\w[.)]|\[\d+\])(\s+|$)")
UNDERLINE = re.compile(r"([-=~^*#\"'])\1{2,}")
# A line shorter than this before an indented one is a header; a longer one was wrapped.
FULL_LINE = 60
# `code`, ``code``, :role:`text <target>`, `text <url>`_, *emphasis* and **strong** -> the text.
MARKUP = re.compile(r"(?::[\w:+.-]+:)?([`*]+)~?([^`*<]+?)(?:\s*<[^`]*>)?\1_{0,2}")
CODE = re.compile(r"[\\{}|$^<>=@~`*]|://|%[sdr(.]|--\w|[+/]{2}|\w[(\[]\w*[,)\]]|\.\.\. |::|\]_")
SENTENCES = re.compile(r"[\"'(]?[A-Z].*[.!?][\"')]*")
PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z][a-z]*(['’/-][A-Za-z]?[a-z]+)*[)\"'.,;:!?]*")


def _paragraphs(text: str) -> Iterator[str]:
    # Wrapped lines are joined, bullets taken off.
    paragraph: list[str] = []
    indent, hangs = 0, False
    for line in [*inspect.cleandoc(text).split("\n"), ""]:
        item = "" if UNDERLINE.fullmatch(line.strip()) else line.strip()
        content = BULLET.sub("", item)
        deeper = len(line) - len(line.lstrip()) - indent
        # Another indentation ends a paragraph, unless it hangs from its first line.
        if not item or content != item or deeper < 0 or (deeper > 0 and not hangs):
            yield " ".join(paragraph)
            paragraph = []
        hangs = not paragraph and (len(line) >= FULL_LINE or content != item)
        paragraph.append(content)
        indent += deeper


def _is_prose(text: str) -> bool:
    # Whole sentences, without code, of words that are mostly plain ones.
    words = text.split(" ")
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    return len(words) >= 6 and plain >= 0.8 * len(words) and bool(SENTENCES.fullmatch(text)) and not CODE.search(text)


def prose(text: str) -> list[str]:
    """The paragraphs of a documentation string that are English prose, without markup, a line each."""
    plain = (" ".join(MARKUP.sub(r"\2", paragraph).split()) for paragraph in _paragraphs(text))
    return [paragraph for paragraph in plain if _is_prose(paragraph)]


def _module_prose(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            # About escapes in other people's strings.
            warnings.simplefilter("ignore")
            nodes = ast.walk(ast.parse(path.read_bytes()))
    # Templates and files in other encodings.
    except (SyntaxError, ValueError):
        return []
    strings = [(node.lineno, node.col_offset, node.value) for node in nodes
               if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value]
    return [paragraph for _, _, text in sorted(strings) for paragraph in prose(text)]


def harvest(folders: list[str], workers: int = 0) -> list[str]:
    """
    The prose in the Python files of folders: a document for each file that has some, a paragraph a line. No paragraph
    occurs twice, letters being all that counts. `workers` is a number of processes, 0 for one per core.
    """
    # Sorted, so that the order is the same on every machine.
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))
             if not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts)]
    result, seen = [], set()
    with Workers(workers) as pool:
        found = pool.map(_module_prose, paths)
        for paragraphs in tqdm(found, "builtin corpus", len(paths), unit=" files", disable=None):
            kept = []
            for paragraph in paragraphs:
                key = re.sub("[^a-z]", "", paragraph.lower())
                if key not in seen:
                    seen.add(key)
                    kept.append(paragraph)
            # Less is mostly a licence or a line of usage.
            if sum(map(len, kept)) >= 200:
                result.append("\n".join(kept))
    return result


# Who asks for the documents asks for their digest too.
@functools.cache
def documents(workers: int = 0) -> list[str]:
    """The documents of the corpus. Raises UserError when a package is missing."""
    folders = [sysconfig.get_path("stdlib")]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"builtin: the package {name} is missing; run `pip install -r requirements.txt`")
        folders.append(spec.submodule_search_locations[0])
    return harvest(folders, workers)
