"""What a person can mend, said in one line; and how every command ends."""

import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the person at the keyboard can mend. Printed as one line, without a traceback."""


def is_out_of_memory(e: BaseException) -> bool:
    """Whether memory, of the machine or of a GPU, was not enough. torch, not imported here, says so by a RuntimeError."""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main(arguments)`; a UserError becomes one line and exit code 1, Ctrl-C and SIGTERM one line and exit codes 130 and 143."""
    def terminate(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
    except BrokenPipeError:  # `| head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:
        sys.exit(f"error: {e.filename or 'reading or writing a file'}: {e.strerror or e}")
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        sys.exit("error: out of memory; a smaller --micro_batch_size, --align_entries or --eval_batch_size needs less")
    except KeyboardInterrupt as e:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(e, Terminated) else signal.SIGINT))
