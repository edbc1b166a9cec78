"""Files that are whole or not there; folders with one user."""

import os
import subprocess
import sys

import pytest

from runtime.errors import UserError
from conftest import ROOT
from runtime.files import exclusive, read_json, remembered, write_text


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
    hold = "import sys, os; from runtime.files import exclusive\nwith exclusive(sys.argv[1]):\n    print('in', flush=True); sys.stdin.readline(); os._exit(9)"
    other = subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process is working in .*run; wait for it, or name another folder"), exclusive(folder):
        pass
    other.communicate("\n")  # it dies inside
    with exclusive(folder):
        pass
    assert os.listdir(tmp_path) == ["run.lock"]


def test_json_nested_too_deep_is_an_error(tmp_path):
    (tmp_path / "deep.json").write_text(200_000 * "[")
    with pytest.raises(UserError, match="not JSON .*make it again"):
        read_json(str(tmp_path / "deep.json"), "make it again")
