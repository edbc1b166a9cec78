"""Work spread over processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from runtime.errors import UserError
from conftest import ROOT
from runtime.parallel import AHEAD, Workers


def square(x: int) -> int:
    return x * x


def slow_for_even(x: int) -> int:
    time.sleep(0.01 * (x % 2 == 0))
    return x


def end_at_three(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise UserError("three")
    return x


_base = 0


def set_base(base: int) -> None:
    global _base
    _base = base


def add_base(x: int) -> int:
    return _base + x


@pytest.mark.parametrize("number", [1, 2, 3])
def test_results_come_in_order(number):
    with Workers(number) as workers:
        assert list(workers.map(square, range(50))) == [x * x for x in range(50)]
        assert list(workers.map(slow_for_even, range(30))) == list(range(30))
        assert list(workers.map(square, [])) == []


def test_every_process_begins_with_start():
    with Workers(2, set_base, 100) as workers:
        assert list(workers.map(add_base, range(20))) == list(range(100, 120))


def test_items_are_read_no_faster_than_results_are_taken():
    read = []
    with Workers(2) as workers:
        results = workers.map(square, (read.append(x) or x for x in range(1000)))
        for taken in range(1, 21):
            next(results)
            assert len(read) <= taken + 2 * AHEAD
        results.close()


def test_a_process_that_dies_is_an_error_and_not_waited_for():
    with Workers(2) as workers, pytest.raises(UserError, match="was killed"):
        list(workers.map(end_at_three, range(100)))


def test_what_the_work_raises_is_raised():
    with Workers(2) as workers, pytest.raises(UserError, match="^three$"):
        list(workers.map(fail_at_three, range(100)))


def test_the_processes_end_with_the_one_they_work_for(tmp_path):
    """Also when that is killed."""
    (tmp_path / "work.py").write_text("import os, time\nfrom runtime import parallel\n\n\ndef pid(_):\n    time.sleep(0.2)\n    return os.getpid()\n\n\n"
                                      "if __name__ == '__main__':\n    with parallel.Workers(3) as workers:\n"
                                      "        for number in workers.map(pid, range(10**6)):\n            print(number, flush=True)\n")
    process = subprocess.Popen([sys.executable, str(tmp_path / "work.py")], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    pids = {int(process.stdout.readline()) for _ in range(9)}
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while (alive := {pid for pid in pids if running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 3 and not alive


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_a_command_says_so_and_leaves_nothing_behind(tmp_path, number, code):
    """The signal goes to all its processes, as a terminal or a scheduler sends it."""
    (tmp_path / "work.py").write_text("import os, time\nfrom runtime import errors, parallel\n\n\ndef pid(_):\n    time.sleep(0.1)\n    return os.getpid()\n\n\n"
                                      "def main(arguments):\n    with parallel.Workers(2) as workers:\n"
                                      "        for number in workers.map(pid, range(10**6)):\n            print(number, flush=True)\n\n\n"
                                      "if __name__ == '__main__':\n    errors.run(main)\n")
    process = subprocess.Popen([sys.executable, str(tmp_path / "work.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    pids = {int(process.stdout.readline()) for _ in range(8)}
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (code, "stopped; run the same command to go on")
    assert len(pids) == 2 and not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if os.path.exists(f"/proc/{pid}/stat"):  # one that has ended and that nobody has asked about is still listed
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    return True
