"""Files that are there whole or not at all, and folders in which one process works at a time."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from runtime.errors import UserError

T = TypeVar("T")


def unreadable(path: str, e: Exception) -> UserError:
    return UserError(f"{path}: cannot be read ({' '.join(str(getattr(e, 'strerror', None) or e).split())}); check that it is complete and yours to open")


def write_text(path: str, text: str) -> None:
    """Written beside its place and moved there, so that there is the whole file or the one before."""
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


def write_json(path: str, value: object) -> None:
    write_text(path, json.dumps(value, indent=1))


def read_json(path: str, again: str) -> Any:
    """Raises UserError, saying how to make the file `again`, when it is not JSON."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e}); {again}") from e


def is_newer(path: str, than: str) -> bool:
    """Whether both are there and `path` was written later, or at the same time."""
    return os.path.exists(path) and os.path.exists(than) and os.path.getmtime(path) >= os.path.getmtime(than)


def json_digest(value: object) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def remember(path: str, value: object) -> None:
    """Leave a value at `path` for `remembered`."""
    write_json(path, {"sha256": json_digest(value), "value": value})


def remembered(path: str, make: Callable[[], T]) -> T:
    """What an earlier, interrupted run has found and left at `path`, or else what `make()` finds, left there for a later one."""
    if os.path.exists(path):
        again = "delete it and run the same command again"
        found = read_json(path, again)
        if not isinstance(found, dict) or found.get("sha256") != json_digest(found.get("value")):
            raise UserError(f"{path}: not as it was written; {again}")
        return found["value"]
    value = make()
    remember(path, value)
    return value


@contextlib.contextmanager
def only_user(folder: str) -> Iterator[None]:
    """
    Raises UserError when another process is working in `folder`. The lock is the kernel's, on FOLDER.lock, and goes with the process,
    however it ends; where the file system has no locks there is none.
    """
    import fcntl

    path = folder.rstrip("/") + ".lock"

    def is_in_place(file: IO) -> bool:
        """Whether the file is still at `path`: whoever had the lock before may have removed it in between."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    while True:
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            file = open(path, "w")
        except OSError as e:
            raise UserError(f"cannot make {path} ({e.strerror})") from e
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.close()
            raise UserError(f"another process is working in {folder}; wait for it, or name another folder") from e
        except OSError:
            break  # a file system without locks
        if is_in_place(file):
            break
        file.close()
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)
