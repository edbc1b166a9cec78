"""What a person can mend, said in one line; and how every command ends."""

import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the person at the keyboard can mend. Printed as one line, without a traceback."""


def is_out_of_memory(e: BaseException) -> bool:
    """Whether memory, the machine's or a GPU's, was not enough."""
    # Python, CUDA, the CPU's allocator, cuBLAS and cuDNN each say it in their way.
    signs = "MemoryError", "out of memory", "can't allocate memory", "ALLOC_FAILED"
    return any(sign in f"{type(e).__name__}: {e}" for sign in signs)


class StopSignal:
    """Remembers that SIGTERM or Ctrl-C came, so that the step under way can be finished and saved."""

    def __init__(self) -> None:
        self.asked, self.exit_code = False, 0
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, _: object) -> None:
        self.asked, self.exit_code = True, 128 + number
        # A second Ctrl-C does not wait for the step. SIGTERM often comes twice, from a scheduler and from torchrun.
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def close(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


def run_main(main: Callable[[list[str]], None]) -> None:
    """Calls `main(arguments)`. A UserError ends it with one line and exit code 1, Ctrl-C with 130, SIGTERM with 143."""
    # A scheduler's SIGTERM unwinds like Ctrl-C, so that files half written are removed.
    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}; pip install {e.name}")
    # A disk that is full, a file that is not theirs: the system's own words say it.
    except OSError as e:
        sys.exit(f"error: {e.filename or 'reading or writing a file'}: {e.strerror or e}")
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        sys.exit("error: out of memory; a smaller --micro_batch_size, --align_entries, --eval_batch_size or "
                 "--nli_batch_size needs less")
    except KeyboardInterrupt as e:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        sys.exit(128 + (e.args[0] if e.args else signal.SIGINT))
