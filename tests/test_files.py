"""Files that are whole or not there; folders with one user."""

import os
import subprocess
import sys

import pytest

from config import UserError
from conftest import ROOT
from files import only_user, read_json, remembered, write_text


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
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="a.json: not JSON .*; make it again"):
        read_json(path, "make it again")


def test_a_folder_has_one_user_and_a_dead_one_is_forgotten(tmp_path):
    folder = str(tmp_path / "run")
    hold = "import sys, os; from files import only_user\nwith only_user(sys.argv[1]):\n    print('in', flush=True); sys.stdin.readline(); os._exit(9)"
    other = subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process is working in .*run; wait for it, or name another folder"), only_user(folder):
        pass
    other.communicate("\n")  # it dies inside
    with only_user(folder):
        pass
    assert os.listdir(tmp_path) == []
