"""The shell scripts: what they would run, with the commands replaced by ones that only say what they were called with."""

import os
import re
import shutil
import subprocess

import pytest

from runtime.config import load
from conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "runs").glob("*.sh"))


@pytest.fixture
def project(tmp_path):
    """The scripts and configs beside a `python` that prints its arguments, but for the one call that asks for a knob."""
    for folder in ("runs", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "installed.txt").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then PYTHONPATH={ROOT} exec {shutil.which("python3")} "$@"; fi\necho "python $@"\n')
    python.chmod(0o755)
    return tmp_path


def run(project, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", f"runs/{script}.sh", *arguments], cwd=project, capture_output=True, text=True, env={**os.environ, "PYTHON": shutil.which("python3"), **env})


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", ROOT / "runs" / script], check=True)


@pytest.mark.parametrize("script", [name[:-3] for name in SCRIPTS if re.match("table|figures|all|demo", name)])
@pytest.mark.parametrize("scale", ["demo", "small", "paper", "400m", "1.3b"])
def test_every_command_of_a_script_is_one_that_can_be(project, script, scale):
    """Config files exist and load, whatever the scale; what starts from stage 1 comes after it; the report comes last."""
    result = run(project, script, *([] if script == "demo" else [scale]), SEEDS="1 2")
    assert result.returncode == 0, result.stderr
    commands = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("python ")]
    aligned = set()
    for program, *arguments in commands:
        if program == "-m":
            continue
        config = load([a for a in arguments if a not in ("xnli", "dynamics")])
        assert os.path.exists(ROOT / program)
        if program == "prealign.py":
            aligned.add(config.stage1_dir)
        assert program != "train.py" or config.init_from != "align" or config.stage1_dir in aligned
    assert commands[-1][:2] == ["-m", "report"]


def test_dynamics_are_apart_from_the_other_runs(project):
    lines = run(project, "figures", "demo", "--out_dir=out/mine").stdout.splitlines()
    dynamics = [line for line in lines if "config/dynamics/demo.py" in line]
    assert dynamics and all("--out_dir=out/mine/dynamics --data_dir=data/demo_dynamics" in line for line in dynamics)
    assert lines[-1] == "python -m report out/mine"


def test_a_scale_that_is_not_there_is_one_line(project):
    result = run(project, "table1", "huge")
    assert result.returncode == 1 and "there is no config/huge.py; the first argument is a scale: paper 1.3b 150m 400m demo gpu small" in result.stderr
    result = run(project, "table6", "huge")
    assert "there is no config/table6_huge.py; the first argument is a scale: paper 1.3b 150m 400m demo small" in result.stderr
    result = run(project, "table1", "demo", "--max_step=3")
    assert result.returncode == 1 and result.stderr == "error: --max_step: there is no knob named 'max_step'; did you mean max_steps?\n"
