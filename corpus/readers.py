"""
Text in, documents out.

A source is a file, a folder or a glob pattern of .txt (blank lines end a document), .jsonl (a document a line, field
"text"), each also .gz, .xz or .zst, and .parquet (column "text", as CulturaX is published). Or it is "builtin": see
builtin.py. Every document has no blank lines, no spaces at the end of a line, and "\\n" for line ends.
"""

import contextlib
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

from tqdm import tqdm

from corpus import builtin
from runtime.errors import UserError
from runtime.files import unreadable
from runtime.hashing import file_digest


def normalise(text: str) -> str:
    """The text in NFC, the one form in which the rest of the project sees it. All that is read passes through here."""
    return unicodedata.normalize("NFC", text)


def _optional(package: str, path: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise UserError(f"{path}: to read this file, install {package}: pip install {package}") from e


def _open_zst(file: BinaryIO) -> Any:
    zstd = _optional("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", file.name)
    # By default files that `zstd --long` wrote with a large window are refused.
    return zstd.open(file, options={zstd.DecompressionParameter.window_log_max: 31})


UNPACK: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}
READABLE = (*(kind + packed for kind in (".txt", ".jsonl") for packed in ("", *UNPACK)), ".parquet")


def _files(source: str) -> list[str]:
    """The files that `source` stands for, sorted. In a folder hidden files and those of other kinds do not count."""
    def stop(e: OSError) -> None:
        raise unreadable(e.filename, e) from e

    if os.path.isdir(source):
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(source, onerror=stop) for name in names]
        hidden = re.compile(r"(^|/)\.")
        paths = [path for path in paths
                 if path.lower().endswith(READABLE) and not hidden.search(os.path.relpath(path, source))]
    else:
        # A file of this very name comes before a pattern.
        matches = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
        paths = [path for path in matches if not os.path.isdir(path)]
    others = [path for path in paths if not path.lower().endswith(READABLE)]
    if others or not paths:
        raise UserError(f'{source}: expected "builtin" or files named *{", *".join(READABLE)}; found '
                        f"{', '.join(others[:3]) or 'none'}")
    return sorted(paths)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Any error of a file that is missing, cut short or damaged as a UserError: each kind of packing has its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise unreadable(path, e) from e


def read_lines(path: str, bar: tqdm | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file, which may be packed, with their numbers from 1; `bar` advances by bytes on disk."""
    with _reading(path), open(path, "rb") as file:
        position = 0
        for number, line in enumerate(UNPACK.get(os.path.splitext(path)[1].lower(), iter)(file), start=1):
            # Some editors begin a file with a byte order mark.
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                yield number, normalise(line.decode())
            except UnicodeDecodeError as e:
                raise UserError(f"{path}:{number}: byte {e.start + 1} of the line (0x{line[e.start]:02x}) is not "
                                "UTF-8; convert the file first: iconv -f ITS-ENCODING -t UTF-8") from e
            if bar is not None:
                bar.update(file.tell() - position)
                position = file.tell()


def _document(text: str) -> str:
    return normalise("\n".join(line.rstrip() for line in text.split("\n") if line.strip()))


def _read_txt(path: str, bar: tqdm) -> Iterator[str]:
    for _, lines in itertools.groupby(read_lines(path, bar), key=lambda numbered: bool(numbered[1].strip())):
        yield _document("".join(line for _, line in lines))


def _read_jsonl(path: str, bar: tqdm) -> Iterator[str]:
    for number, line in read_lines(path, bar):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
            # Half of a surrogate pair is JSON but no character, and cannot be encoded.
            text.encode()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f'{path}:{number}: expected {{"text": "..."}} on each line, a string of Unicode '
                            f"characters, found {line.strip()[:60]!r}") from e
        yield _document(text)


def _read_parquet(path: str, bar: tqdm) -> Iterator[str]:
    _optional("pyarrow", path)
    with _reading(path), importlib.import_module("pyarrow.parquet").ParquetFile(path) as file:
        types = {field.name: str(field.type) for field in file.schema_arrow}
        if types.get("text") not in ("string", "large_string"):
            raise UserError(f'{path}: expected a column "text" of strings, found {types}')
        bytes_per_row = os.path.getsize(path) / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            yield from (_document(text or "") for text in batch.column(0).to_pylist())
            bar.update(int(len(batch) * bytes_per_row))


def documents(source: str, progress: str = "", workers: int = 0, shard_seed: int = 0) -> Iterator[str]:
    """
    The documents of `source`: files by name, or shuffled by a `shard_seed`, documents as they stand in them. `progress`
    names a bar over the bytes on disk. Memory holds one at a time. Raises UserError, while iterating, when there is
    none.
    """
    def read() -> Iterator[str]:
        if source == "builtin":
            yield from map(_document, builtin.documents(bool(progress), workers))
            return
        paths = _files(source)
        if shard_seed:
            paths.sort(key=lambda path: hashlib.sha256(f"{shard_seed} {os.path.basename(path)}".encode()).digest())
        size = sum(os.path.getsize(path) for path in paths if os.path.exists(path))
        with tqdm(desc=progress, unit="B", unit_scale=True, total=size, disable=None if progress else True) as bar:
            for path in paths:
                kind = os.path.splitext(re.sub(r"\.(gz|xz|zst)$", "", path.lower()))[1]
                yield from {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[kind](path, bar)

    empty = True
    for document in filter(None, read()):
        empty = False
        yield document
    if empty:
        raise UserError(f"{source}: there is no text in it; expected at least one document")


def fingerprint(source: str, progress: bool = False, workers: int = 0) -> dict[str, str]:
    """{path: digest of the file} for the files of `source`, sorted, or {"builtin": SHA-256 of its documents}."""
    if source == "builtin":
        text = "\n\n".join(map(_document, builtin.documents(progress, workers)))
        return {source: hashlib.sha256(text.encode()).hexdigest()}
    # All of a file up to 64 MiB, and samples of a larger one.
    return {path: file_digest(path, blocks=2**10) for path in _files(source)}
