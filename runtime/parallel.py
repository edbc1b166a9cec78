"""Work spread over processes, and ahead of its use by a thread."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from runtime.errors import UserError

# Items under way or done for each process.
AHEAD = 4


def _in_order(submit: Callable[[Any], Future], items: Iterable, most: int) -> Generator[Any, None, None]:
    """The results of submitted items in their order, of which `most` are under way or done at a time."""
    ahead: deque[Future] = deque()
    try:
        # The oldest is waited for before another item is read.
        for item in items:
            ahead.append(submit(item))
            if len(ahead) == most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    # Who takes no more results does not wait for work that has not begun.
    finally:
        for future in ahead:
            future.cancel()


def _begin(start: Callable | None, arguments: tuple) -> None:
    # Ctrl-C and SIGTERM are for the process that this one works for.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    # End with that process, even when it is killed: the queue would be waited for forever, as other workers hold its
    # other end.
    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


class Workers(contextlib.AbstractContextManager):
    """`number` processes (0: one per core) that each begin with start(*arguments)."""

    def __init__(self, number: int = 0, start: Callable | None = None, *arguments: object):
        self.number = number or os.cpu_count() or 1
        self.executor = ProcessPoolExecutor(self.number, initializer=_begin, initargs=(start, arguments))

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)

    def map(self, work: Callable, items: Iterable) -> Iterator[Any]:
        """work(item) of each item, in order. Raises what `work` raises, and UserError when a process has died."""
        # Items are read only as fast as results are taken, so that memory is bounded.
        try:
            yield from _in_order(lambda item: self.executor.submit(work, item), items, AHEAD * self.number)
        except BrokenProcessPool as e:
            raise UserError("a worker process was killed, perhaps for want of memory; run the same command again "
                            "(--workers=N with a smaller N needs less memory)") from e


def prefetch(make: Callable[[int], Any], steps: range) -> Generator[Any, None, None]:
    """make(step) for every step, the next ones made by a thread while one is used."""
    # NumPy and pinned copies leave the interpreter to the training step.
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield from _in_order(lambda step: thread.submit(make, step), steps, 3)
