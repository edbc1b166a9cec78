"""Files that are whole or not there; folders with one user."""

import os
import subprocess
import sys

import pytest

from runtime.errors import UserError
from conftest import ROOT
from runtime.files import only_user, read_json, remembered, write_text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = str(tmp_path / "a.txt")
    write_text(path, "before")
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(path, "after")
    assert (tmp_path / "a.txt").read_text() == "before"


def test_what_was_found_is_found_again(tmp_path):
    path, asked = str(tmp_path / "a.json"), []
    for _ in range(2):
        assert remembered(path, lambda: asked.append(1) or {"a": [1, 2]}) == {"a": [1, 2]}
    assert asked == [1]
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("2", "3"))
    with pytest.raises(UserError, match="a.json: not as it was written; delete it and run the same command again"):
        remembered(path, dict)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="a.json: not JSON .*; make it again"):
        read_json(path, "make it again")


def test_a_folder_has_one_user_and_a_dead_one_is_forgotten(tmp_path):
    folder = str(tmp_path / "run")
    hold = "import sys, os; from runtime.files import only_user\nwith only_user(sys.argv[1]):\n    print('in', flush=True); sys.stdin.readline(); os._exit(9)"
    other = subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process is working in .*run; wait for it, or name another folder"), only_user(folder):
        pass
    other.communicate("\n")  # it dies inside
    with only_user(folder):
        pass
    assert os.listdir(tmp_path) == []


def test_json_nested_too_deep_is_an_error(tmp_path):
    (tmp_path / "deep.json").write_text(200_000 * "[")
    with pytest.raises(UserError, match="not JSON .*make it again"):
        read_json(str(tmp_path / "deep.json"), "make it again")


def test_a_lock_that_its_last_user_removed_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, the one before may end and remove it; a third would then lock another file."""
    import fcntl

    lock, path, calls = fcntl.flock, tmp_path / "run.lock", []

    def removed_first(file, how):
        calls.append(file)
        if len(calls) == 1:
            path.unlink()
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with only_user(str(tmp_path / "run")):
        assert len(calls) == 2 and path.exists()
        with pytest.raises(UserError, match="another process is working"), only_user(str(tmp_path / "run")):
            pass
    assert not path.exists()
