"""Work spread over processes: results in order, memory bounded, no worker waited for in vain and none left behind."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from runtime.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items under way or done for each process


def _begin(start: Callable | None, arguments: tuple) -> None:
    """Leave Ctrl-C and SIGTERM to the process that this one works for, and end with it, even when it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


class Workers:
    """`number` processes (0: one per core) that each begin with start(*arguments). A context manager."""

    def __init__(self, number: int = 0, start: Callable | None = None, *arguments: object):
        self.number = number or os.cpu_count() or 1
        self.executor = ProcessPoolExecutor(self.number, initializer=_begin, initargs=(start, arguments))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """
        work(item) of each item, in order. Items are read only as fast as results are taken, so that memory is bounded.
        Raises what `work` raises, and UserError when a process has died.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self.executor.submit(work, item))
                if len(waiting) >= AHEAD * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as e:
            raise UserError("a worker process was killed, perhaps for want of memory; run the same command again, it goes on where it stopped "
                            "(--workers=N with a smaller N needs less memory)") from e
        finally:
            for future in waiting:
                future.cancel()
