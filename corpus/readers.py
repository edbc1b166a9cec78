"""
Text in, documents out.

A source is a file, a folder or a glob pattern of .txt (blank lines end a document), .jsonl or .json (a document a line,
field "text"), each also .gz, .xz or .zst, and .parquet (column "text", as CulturaX is published). Or it is "builtin":
see builtin.py. Every document has no blank lines, no spaces at the end of a line, and "\\n" for line ends.
"""

import glob
import gzip
import hashlib
import importlib
import itertools
import json
import lzma
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import regex
from tqdm import tqdm

from corpus import builtin
from runtime.errors import UserError
from runtime.hashing import file_digest

# Invisible characters that would hide the word beside them: soft hyphens, spaces without width, marks of direction and
# of byte order, halves of surrogate pairs. Joiners are text, but not after letters that do not join.
HIDDEN = "\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
NO_TEXT = regex.compile(rf"[{HIDDEN}]|(?<=[\p{{Latin}}\p{{Greek}}\p{{Cyrillic}}])[\u200c\u200d]")
LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")
# The patterns of tokenizers fail at a million spaces in a row. So many are no text.
GAP = re.compile(r"(?<![^\S\n])[^\S\n]{1000,}")
ODD = re.compile(f"[{HIDDEN}\u200c\u200d\r\x85\u2028\u2029]")


def normalise(text: str) -> str:
    """The text in NFC, with "\\n" for line ends, without characters that are no text."""
    # Whatever becomes tokens passes here: words of a dictionary are then the same characters as in text.
    if ODD.search(text):
        text = NO_TEXT.sub("", LINE_END.sub("\n", text))
    return unicodedata.normalize("NFC", GAP.sub(" ", text))


def _open_zst(file: BinaryIO) -> Any:
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    # By default files that `zstd --long` wrote with a large window are refused.
    return zstd.open(file, options={zstd.DecompressionParameter.window_log_max: 31})


UNPACK: dict[str, Callable[[BinaryIO], Any]] = {"": iter, ".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}


def _unreadable(path: str, e: Exception) -> UserError:
    why = " ".join(str(getattr(e, "strerror", None) or e).split())
    advice = ("pip install pyarrow (for .parquet) or backports.zstd (for .zst)" if isinstance(e, ImportError)
              else "check that it is complete and yours to open")
    return UserError(f"{path}: cannot be read ({why}); {advice}")


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a file, which may be packed, with their numbers from 1."""
    number, unpack = 1, UNPACK.get(os.path.splitext(path)[1].lower(), iter)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(unpack(file), start=1):
                if number == 1 and line.startswith(b"version https://git-lfs"):
                    raise ValueError("it is a pointer of Git LFS; run `git lfs pull`")
                yield number, normalise(line.decode())
    # Each kind of packing has errors of its own for a file that is cut short or damaged.
    except Exception as e:
        raise _unreadable(f"{path}:{number}", e) from e


def _read_txt(path: str) -> Iterator[str]:
    for _, lines in itertools.groupby(read_lines(path), key=lambda numbered: bool(numbered[1].strip())):
        yield "".join(line for _, line in lines)


def _read_jsonl(path: str) -> Iterator[str]:
    for number, line in read_lines(path):
        try:
            # Not strict: some line ends of Unicode may stand in JSON strings, and are line ends by now.
            text = json.loads(line, strict=False)["text"] if line.strip() else ""
            yield "" if text is None else normalise(text)
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            raise UserError(f'{path}:{number}: expected {{"text": "..."}} on each line, found {line[:60]!r}') from e


def _read_parquet(path: str) -> Iterator[str]:
    try:
        with importlib.import_module("pyarrow.parquet").ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column("text").to_pylist():
                    # Some programs that write parquet do not say that their bytes are text.
                    yield normalise(text.decode() if isinstance(text, bytes) else "" if text is None else text)
    except Exception as e:
        raise _unreadable(f'{path} (of strings in a column "text")', e) from e


READERS = {kind + packed: read for kind, read in ((".txt", _read_txt), (".jsonl", _read_jsonl), (".json", _read_jsonl))
           for packed in UNPACK} | {".parquet": _read_parquet}


def matching(pattern: str) -> list[str]:
    """The paths that a name or glob pattern stands for, sorted. Raises UserError when there is none."""
    # A path of this very name comes before a pattern, and brackets in names before those of patterns.
    paths = [pattern] if os.path.exists(pattern) else glob.glob(pattern.replace("[", "[[]"), recursive=True)
    paths = paths or glob.glob(pattern, recursive=True)
    if not paths:
        raise UserError(f"no file is named {pattern!r}, and none matches it as a pattern")
    return sorted(paths)


def _inside(root: str) -> Iterator[str]:
    """The paths of all files of a folder that are not hidden, linked folders once each."""
    # os.walk passes over folders that it cannot read, unless this stops it.
    def stop(e: OSError) -> None:
        raise e

    seen = set()
    for folder, folders, names in os.walk(root, onerror=stop, followlinks=True):
        # A link may lead to a folder around it.
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for path in (os.path.join(folder, name) for name in names if name[0] != "."):
            # It may have stood for a folder with half the text.
            if not os.path.exists(path):
                raise UserError(f"{path}: what this link stands for is not there")
            yield path


def _files(source: str) -> tuple[list[str], list[str]]:
    """The files of text that `source` stands for, sorted, and what stands beside them."""
    paths = [*_inside(source)] if os.path.isdir(source) else matching(source)
    texts = [path for path in paths if path.lower().endswith(tuple(READERS)) and not os.path.isdir(path)]
    if not texts:
        raise UserError(f'{source}: expected "builtin" or files named *{", *".join(READERS)}; found none')
    return sorted(texts), sorted({*paths} - {*texts})


def documents(source: str, progress: str = "", workers: int = 0) -> Iterator[str]:
    """
    The documents of `source`, with a bar named `progress` over its files, which come in the order of their names.
    Raises UserError when there is none.
    """
    # Memory holds one document at a time.
    def texts() -> Iterator[str]:
        for path in tqdm(_files(source)[0], progress, unit=" files", disable=None if progress else True):
            read = next(read for ending, read in READERS.items() if path.lower().endswith(ending))
            yield from read(path)

    empty = True
    for text in builtin.documents(workers) if source == "builtin" else texts():
        lines = [line.rstrip() for line in text.split("\n") if line.strip()]
        if lines:
            yield "\n".join(lines)
            empty = False
    if empty:
        raise UserError(f"{source}: there is no text in it; expected at least one document")


def fingerprint(source: str, workers: int = 0) -> dict[str, str]:
    """{path: digest of the file} for the files of `source`, sorted, or {"builtin": SHA-256 of its documents}."""
    if source == "builtin":
        return {source: hashlib.sha256("\n\n".join(documents(source, workers=workers)).encode()).hexdigest()}
    texts, others = _files(source)
    if others:
        print(f"{source}: left out {len(others)} files that are none of {', '.join(READERS)}, as {others[0]}")
    return {path: file_digest(path) for path in texts}
