"""
Text in, documents out.

A source is a file, a folder or a glob pattern of .txt (blank lines end a document), .jsonl (one document per line, field "text"),
each also .gz, .xz or .zst, and .parquet (column "text"; as CulturaX is published). Or it is "builtin", which needs no download: the
documentation inside the Python standard library and the packages of requirements.txt, cleaned to English prose. Its wording
follows the installed versions; `fingerprint` tells two of them apart.

Every document is NFC-normalised, has no blank lines, no spaces at the end of a line, and "\\n" for line ends.
"""

import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from tqdm import tqdm

from corpus import builtin
from runtime.errors import UserError
from runtime.files import unreadable
from runtime.hashing import file_digest

# ---- files ----

def _open_zst(file: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError as e:
        raise UserError(f"{file.name}: to read .zst files, install zstandard: pip install zstandard") from e
    return io.BufferedReader(_Zst(file, lambda: zstandard.ZstdDecompressor().decompressobj()))


class _Zst(io.RawIOBase):
    """What is in a .zst file, frame after frame. zstandard's own reader takes a file that is cut off for a whole one."""

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any]):
        self.file, self.new_frame = file, new_frame
        self.frame: Any = None
        self.packed, self.text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            self.packed = self.packed or self.file.read(2**16)
            if not self.packed and self.frame is None:
                return 0
            if not self.packed:
                raise EOFError("it ends within a frame")
            self.frame = self.frame or self.new_frame()
            self.text = memoryview(self.frame.decompress(self.packed))
            self.packed = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        number = min(len(buffer), len(self.text))
        buffer[:number], self.text = self.text[:number], self.text[number:]
        return number


COMPRESSION: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}
READABLE = (*(kind + packed for kind in (".txt", ".jsonl") for packed in ("", *COMPRESSION)), ".parquet")


def _files(source: str) -> list[str]:
    """The files that `source` stands for, sorted. In a folder only those that can be read count; hidden ones do not."""
    if os.path.isdir(source):
        def stop(e: OSError) -> None:
            raise unreadable(e.filename, e) from e

        paths = []
        for folder, folders, names in os.walk(source, onerror=stop):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths += [os.path.join(folder, name) for name in names
                      if name.lower().endswith(READABLE) and not name.startswith(".")]
        if not paths:
            raise UserError(f"{source}: nothing in this folder can be read; expected files named *{', *'.join(READABLE)}")
        return sorted(paths)
    matches = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
    paths = sorted(path for path in matches if not os.path.isdir(path))
    if not paths:
        raise UserError(f'{source}: no such file or folder, and no file matches it as a pattern; source may also be "builtin"')
    for path in paths:
        if not path.lower().endswith(READABLE):
            raise UserError(f"{path}: cannot tell how to read this file; expected a name like *{', *'.join(READABLE)}")
    return paths


def read_lines(path: str, bar: tqdm | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a file, which may be compressed, with their numbers from 1; `bar` advances by bytes on disk."""
    try:
        with open(path, "rb") as file:
            extension = os.path.splitext(path)[1].lower()
            position = 0
            for number, line in enumerate(COMPRESSION[extension](file) if extension in COMPRESSION else file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which some editors write
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as e:
                    raise UserError(f"{path}:{number}: byte {e.start + 1} of the line (0x{line[e.start]:02x}) is not UTF-8; "
                                    "convert the file first: iconv -f ITS-ENCODING -t UTF-8") from e
                if bar is not None:
                    bar.update(file.tell() - position)
                    position = file.tell()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:  # missing, forbidden, cut off or corrupt
        raise unreadable(path, e) from e
    except Exception as e:
        if type(e).__name__ == "ZstdError":
            raise unreadable(path, e) from e
        raise


def _document(lines: Iterable[str]) -> str:
    return unicodedata.normalize("NFC", "\n".join(line.rstrip() for line in lines if line.strip()))


def _read_txt(path: str, bar: tqdm) -> Iterator[str]:
    lines = []
    for _, line in read_lines(path, bar):
        if line.strip():
            lines.append(line)
        else:
            yield _document(lines)
            lines = []
    yield _document(lines)


def _read_jsonl(path: str, bar: tqdm) -> Iterator[str]:
    for number, line in read_lines(path, bar):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f'{path}:{number}: not JSON ({getattr(e, "msg", e)}); expected {{"text": "..."}} on each line, '
                            f"found {line.strip()[:60]!r}") from e
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):  # half of a pair, which is JSON but no character
            raise UserError(f'{path}:{number}: expected {{"text": "..."}} on each line, with a string of Unicode characters, '
                            f"found {line.strip()[:60]!r}")
        yield _document(text.split("\n"))


def _read_parquet(path: str, bar: tqdm) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"{path}: to read .parquet files, install pyarrow: pip install pyarrow") from e
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names or not pyarrow.types.is_string(file.schema_arrow.field("text").type) and not pyarrow.types.is_large_string(
                    file.schema_arrow.field("text").type):
                raise UserError(f'{path}: expected a column "text" of strings, found {", ".join(file.schema_arrow.names)}')
            size, rows = os.path.getsize(path), max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    yield _document((text or "").split("\n"))
                bar.update(size * len(batch) // rows)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as e:
        raise unreadable(path, e) from e


# ---- both ----

def _builtin(progress: bool, workers: int) -> list[str]:
    return [_document(text.split("\n")) for text in builtin.documents(progress, workers)]


def documents(source: str, progress: str = "", workers: int = 0, shard_seed: int = 0) -> Iterator[str]:
    """
    The documents of `source` in a fixed order: files sorted by name, or with a `shard_seed` shuffled; documents as they stand in
    them. `progress` names a bar over the bytes on disk; without it there is none.

    Files are streamed, so that memory holds one document at a time; "builtin" (about 6 MB) is made by `workers` processes.
    Raises UserError, while iterating, for a source that does not exist, cannot be read, is not UTF-8 or not the JSON
    expected (naming file and line), and for one without any document.
    """
    def read() -> Iterator[str]:
        paths = _files(source)
        if shard_seed:
            paths.sort(key=lambda path: hashlib.sha256(f"{shard_seed} {os.path.basename(path)}".encode()).digest())
        size = sum(os.path.getsize(path) for path in paths if os.path.exists(path))
        with tqdm(desc=progress, unit="B", unit_scale=True, total=size, disable=None if progress else True) as bar:
            for path in paths:
                kind = os.path.splitext(re.sub(r"\.(gz|xz|zst)$", "", path.lower()))[1]
                yield from {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_txt}[kind](path, bar)

    empty = True
    for document in _builtin(bool(progress), workers) if source == "builtin" else read():
        if document:
            empty = False
            yield document
    if empty:
        raise UserError(f"{source}: there is no text in it; expected at least one document")


def fingerprint(source: str, progress: bool = False, workers: int = 0) -> dict[str, str]:
    """
    {path: digest of the file} for the files of `source`, sorted by name, or {"builtin": sha256 of all its documents}. Raises UserError
    for files that cannot be found or read.
    """
    if source == "builtin":
        return {source: hashlib.sha256("\n\n".join(_builtin(progress, workers)).encode()).hexdigest()}
    return {path: file_digest(path, blocks=2**10) for path in _files(source)}  # all of a file up to 64 MiB
