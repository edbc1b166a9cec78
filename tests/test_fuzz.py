"""A short run of tests/fuzz.py: damaged files are read rightly or refused in one line."""

import io
import os
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import fuzz as fuzzing
import train as training
from fuzz import FORMATS, Format, formats, fuzz


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> dict[str, Format]:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        for name in ("StopSignal", "matmul_rate"):  # which it replaces
            patch.setattr(training, name, getattr(training, name))
        return formats(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_rightly_or_refused(everything, name):
    if name not in everything:
        pytest.skip("the package that reads it is not installed")
    counts, unclassified = fuzz(everything[name], name, 40, seed=1)
    assert not unclassified, unclassified[0]
    assert counts["read"] + counts["refused"] == 40
    assert counts["refused"] > 0 or name == "metrics"  # of which bad lines are dropped, as the steps come again


def test_what_is_unclassified_is_found(tmp_path, monkeypatch):
    """A reader that lets other exceptions out, reads wrongly, hangs, or ends the process."""
    bad = [lambda: 1 / 0, lambda: 1, lambda: os._exit(3), lambda: time.sleep(60)]

    def reader(path: Path) -> object:
        data = path.read_bytes()
        return 0 if data == b"whole" else bad[len(data) % 4]()

    path = tmp_path / "file"
    path.write_bytes(b"whole")
    monkeypatch.setattr(fuzzing, "SECONDS", 1)
    counts, unclassified = fuzz(Format(path, reader, guarded=True), "file", 12)
    assert counts["unclassified"] == len(unclassified) > 6
    reasons = " ".join(what for _, _, what in unclassified)
    for reason in ("ZeroDivisionError", "something else", "exit code 3", "more than 1 seconds"):
        assert reason in reasons, reason
