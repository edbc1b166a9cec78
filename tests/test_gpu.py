"""runs/gpu.sh on the CPU at toy size: that every part of it runs, what it leaves, and what it says when it cannot."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from tools import bench
from conftest import ROOT

METHODS = ["joint", "prealign", "init_only", "codeswitch_only", "golden", "full_target"]


def gpu(*arguments: str, cwd=ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "runs/gpu.sh", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHON": sys.executable, **env})


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_check(tmp_path):
    result = gpu("check", "--device=cpu", "--limit=280", f"--out={tmp_path}")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    tests = lines_of(tmp_path / "check.jsonl")
    assert {test["outcome"] for test in tests} <= {"passed", "skipped"}
    assert sum(test["outcome"] == "passed" for test in tests) >= 15
    assert result.stdout == (tmp_path / "check.log").read_text()


def test_speed(tmp_path):
    result = gpu("speed", "--device=cpu", OUT=str(tmp_path))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    machine, *rows = lines_of(tmp_path / "bench.jsonl")
    assert machine["matmul_flops"] > 0 and machine["configs"]["bench"]["n_embd"] == 32
    assert [(row["size"], row["row"]) for row in rows] == bench.plan(["bench"], on_gpu=False)
    assert not any("error" in row for row in rows)
    assert all(f"| {row['row']} " in result.stdout for row in rows if row["row"] != "profile")


def test_reproduce(tmp_path):
    """Six methods in their order, the report of them, no weights."""
    result = gpu("reproduce", "--device=cpu", f"--out={tmp_path}")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    rows = lines_of(tmp_path / "reproduce.jsonl")
    assert [row["method"] for row in rows] == METHODS and all(row["seconds"] > 0 for row in rows)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("toy")}
    assert left == {"reproduce.log", "reproduce.jsonl", "report.md", "report.json", "runs.tar.gz"}
    table = (tmp_path / "report.md").read_text()
    assert all(f"| {method} " in table for method in METHODS)
    assert len(json.loads((tmp_path / "report.json").read_text())["runs"]) == len(METHODS)
    with tarfile.open(tmp_path / "runs.tar.gz") as tar:
        names = tar.getnames()
    assert "runs/prealign/seed1/metrics.jsonl" in names and "runs/align/seed1/run.json" in names
    assert not any(name.endswith(".pt") for name in names)


def test_time_ends(tmp_path):
    result = gpu("reproduce", "--device=cpu", "--limit=1", f"--out={tmp_path}")
    assert result.returncode == 124
    assert "the 1 seconds are over" in (tmp_path / "reproduce.log").read_text()


@pytest.mark.parametrize("arguments, message", [
    (("speeed",), "error: expected runs/gpu.sh check, speed or reproduce; found 'speeed'"),
    (("speed", "--limits=3"), "error: expected --limit=SECONDS, --out=FOLDER or --device=cpu, found --limits=3"),
    (("speed", "--limit=1m"), "error: --limit: expected whole seconds, found '1m'"),
])
def test_a_wrong_argument_is_one_line(arguments, message):
    result = gpu(*arguments)
    assert result.returncode == 1 and result.stderr == f"{message}\n" and result.stdout == ""


@pytest.fixture
def bare(tmp_path):
    """A folder with runs/ alone, and a Python that lacks two packages and has nothing to install them from."""
    shutil.copytree(ROOT / "runs", tmp_path / "runs")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in\n*find_spec*nltk*) echo nltk regex;;\n*find_spec*) ;;\n'
                      '*version_info*) echo 3.12;;\n"-m pip"*) echo "$*"; exit 1;;\nesac\n')
    python.chmod(0o755)
    return tmp_path


def test_only_what_is_missing_is_installed_and_from_no_network(bare):
    result = gpu("speed", "--device=cpu", cwd=bare, PYTHON=str(bare / "python"), OUT="out")
    pip, error, last = result.stdout.splitlines()
    assert result.returncode == 1 and "--no-index --find-links=wheels --no-deps" in pip and pip.endswith(" nltk regex")
    assert error.startswith("error: not installed: nltk regex; where there is a network, runs/wheels.sh fills wheels/")
    assert last.endswith("exit code 1, in out")
