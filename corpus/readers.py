"""
Text in, documents out.

A source is a file, a folder or a glob pattern of .txt (blank lines end a document), .jsonl (a document a line, field
"text"), each also .gz, .xz or .zst, and .parquet (column "text", as CulturaX is published). Or it is "builtin": see
builtin.py. Every document has no blank lines, no spaces at the end of a line, and "\\n" for line ends.
"""

import glob
import gzip
import hashlib
import importlib
import itertools
import json
import lzma
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from tqdm import tqdm

from corpus import builtin
from runtime.errors import UserError
from runtime.files import unreadable
from runtime.hashing import file_digest


def normalise(text: str) -> str:
    """The text in NFC, the one form in which the rest of the project sees it."""
    # All that is read passes through here.
    return unicodedata.normalize("NFC", text)


def _open_zst(file: BinaryIO) -> Any:
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    # By default files that `zstd --long` wrote with a large window are refused.
    return zstd.open(file, options={zstd.DecompressionParameter.window_log_max: 31})


UNPACK: dict[str, Callable[[BinaryIO], Any]] = {"": iter, ".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a file, which may be packed, with their numbers from 1."""
    number, unpack = 1, UNPACK.get(os.path.splitext(path)[1].lower(), iter)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(unpack(file), start=1):
                # Some editors begin a file with a byte order mark.
                yield number, normalise(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    # Each kind of packing has errors of its own for a file that is cut short or damaged.
    except Exception as e:
        raise unreadable(f"{path}:{number}", e) from e


def _read_txt(path: str) -> Iterator[str]:
    for _, lines in itertools.groupby(read_lines(path), key=lambda numbered: bool(numbered[1].strip())):
        yield "".join(line for _, line in lines)


def _read_jsonl(path: str) -> Iterator[str]:
    for number, line in read_lines(path):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
            # Half of a surrogate pair is JSON but no character, and cannot be encoded.
            text.encode()
        except Exception as e:
            raise UserError(f'{path}:{number}: expected {{"text": "..."}} on each line, found {line[:60]!r}') from e
        yield text


def _read_parquet(path: str) -> Iterator[str]:
    try:
        with importlib.import_module("pyarrow.parquet").ParquetFile(path) as file:
            types = {field.name: str(field.type) for field in file.schema_arrow}
            if types.get("text") not in ("string", "large_string"):
                raise TypeError(f'expected a column "text" of strings, found {types}')
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except Exception as e:
        raise unreadable(path, e) from e


READERS = {kind + packed: read for kind, read in ((".txt", _read_txt), (".jsonl", _read_jsonl)) for packed in UNPACK}
READERS[".parquet"] = _read_parquet


def _files(source: str) -> list[str]:
    """The files that `source` stands for, sorted."""
    # os.walk passes over folders that it cannot read, unless this stops it.
    def stop(e: OSError) -> None:
        raise unreadable(e.filename, e) from e

    if os.path.isdir(source):
        root = os.path.join(source, "")
        inside = (os.path.join(folder, name) for folder, _, names in os.walk(root, onerror=stop) for name in names)
        paths = [path for path in inside if "/." not in path[len(root) - 1:]]
    else:
        # A file of this very name comes before a pattern.
        paths = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
    # Hidden files and those of other kinds do not count.
    paths = [path for path in paths if path.lower().endswith(tuple(READERS)) and not os.path.isdir(path)]
    if not paths:
        raise UserError(f'{source}: expected "builtin" or files named *{", *".join(READERS)}; found none')
    return sorted(paths)


def documents(source: str, progress: str = "", workers: int = 0) -> Iterator[str]:
    """
    The documents of `source`, with a bar named `progress` over its files, which come in the order of their names.
    Raises UserError when there is none.
    """
    # Memory holds one document at a time.
    def texts() -> Iterator[str]:
        for path in tqdm(_files(source), progress, unit=" files", disable=None if progress else True):
            read = next(read for ending, read in READERS.items() if path.lower().endswith(ending))
            yield from read(path)

    empty = True
    for text in builtin.documents(workers) if source == "builtin" else texts():
        lines = [line.rstrip() for line in text.split("\n") if line.strip()]
        if lines:
            yield normalise("\n".join(lines))
            empty = False
    if empty:
        raise UserError(f"{source}: there is no text in it; expected at least one document")


def fingerprint(source: str, workers: int = 0) -> dict[str, str]:
    """{path: digest of the file} for the files of `source`, sorted, or {"builtin": SHA-256 of its documents}."""
    if source == "builtin":
        return {source: hashlib.sha256("\n\n".join(documents(source, workers=workers)).encode()).hexdigest()}
    # All of a file up to 64 MiB, and samples of a larger one.
    return {path: file_digest(path) for path in _files(source)}
