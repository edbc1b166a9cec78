"""Files that are there whole or not at all, and folders in which one process works at a time."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import IO, Any

import filelock

from runtime.errors import UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write to. It is moved to `path` when all is written: there is a whole file, or the one before."""
    try:
        with open(path + ".tmp", "wb") as f:
            yield f
            # It is on the disk before it has its name, should the power go.
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + ".tmp", path)
    finally:
        # A disk that is full needs the room of what was not finished.
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")


def write_text(path: str, text: str) -> None:
    with replacing(path) as f:
        f.write(text.encode())


def write_json(path: str, value: object) -> None:
    write_text(path, json.dumps(value, indent=1))


def read_json(path: str, again: str) -> Any:
    """The value in a JSON file. Raises UserError, saying how to make the file `again`, when there is none."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read, or is not JSON ({e}); {again}") from e


def is_newer(path: str, than: str) -> bool:
    """Whether both are there and `path` was written later, or at the same time."""
    return os.path.exists(path) and os.path.exists(than) and os.path.getmtime(path) >= os.path.getmtime(than)


def kept(path: str, make: Callable[[], object]) -> Any:
    """The JSON value at `path`: made and left there, unless an interrupted command has left it."""
    # What is there is whole: it got its name when it was written.
    if not os.path.exists(path):
        write_json(path, make())
    return read_json(path, "delete it and run the same command again")


@contextlib.contextmanager
def exclusive(folder: str) -> Iterator[None]:
    """Holds a lock on `folder`. Raises UserError when another process has it."""
    # The lock stands beside the folder, which may not be there yet, and ends with the process, however that ends.
    os.makedirs(os.path.dirname(folder.rstrip("/")) or ".", exist_ok=True)
    try:
        with filelock.FileLock(folder.rstrip("/") + ".lock", blocking=False):
            yield
    except filelock.Timeout as e:
        raise UserError(f"another process is working in {folder}; wait for it, or name another folder") from e
