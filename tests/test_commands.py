"""
Every command that the scripts run and the documents show has arguments that load, and names files that are there. And
folders import downwards only.
"""

import ast
import graphlib
import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec

import pytest

from conftest import ROOT
from runtime.config import FIELDS, Config, load

SCRIPTS = sorted(path.stem for path in (ROOT / "runs").glob("*.sh"))
SCALES = ["demo", "small", "paper", "400m", "1.3b"]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
SOURCES = [path for pattern in ("*.py", "*/*.py", "config/*/*.py", "results/*/*.py", "runs/*.sh")
           for path in ROOT.glob(pattern) if path.relative_to(ROOT).parts[0] not in ("out", "bins", "texts")]
VERBS = ("xnli", "dynamics", "sample")
# From the top down: a folder, or a file of the ground floor, imports itself and what stands after it.
FLOORS = ["tools", "eval", "prealign", "train", "data", "tasks", "corpus", "report", "runtime", "model"]
# Options that are no knobs: of torchrun, tests/kill.py and runs/gpu.sh.
FOREIGN = "nproc_per_node|nnodes|node_rank|master_addr|kills|processes|limit|out"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The scripts and configs, with the texts of Table 6, beside programs that only print what they are called with."""
    for folder in ("runs", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    programs = tmp_path / ".venv" / "bin"
    for path in (programs, tmp_path / "dictionaries", *(tmp_path / "texts" / x for x in "en de zh ru ar".split())):
        path.mkdir(parents=True)
    for path in ("requirements.txt", ".venv/installed.txt", ".venv/bin/activate",
                 *(f"dictionaries/en-{x}.txt" for x in ("de", "zh", "ru", "ar"))):
        (tmp_path / path).touch()
    # The scripts read knobs with `python -c`.
    real = f'if [ "$1" = -c ]; then PYTHONPATH={ROOT} exec {shutil.which("python3")} "$@"; fi'
    for name in ("python", "torchrun", "pytest", "pip", "git", "lm_eval", "nvidia-smi"):
        (programs / name).write_text(f"#!/bin/bash\n{real}\nprintf '%q ' {name} \"$@\"; echo\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", str(programs / "python"))
    return tmp_path


def run(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)


def called(command: str) -> list[tuple[str, Config]]:
    """The programs of ours that a command calls, in order, with the config of each."""
    result = run(command)
    assert result.returncode == 0, (command, result.stderr)
    lines = (line for line in result.stdout.splitlines() if re.match("(python|torchrun) ", line))
    return [call for words in map(shlex.split, lines) if (call := program_and_config(words))]


def program_and_config(words: list[str]) -> tuple[str, Config] | None:
    """Of `python PROGRAM ARGUMENTS`, whose program must be there and take these; None where it takes no config."""
    while words[0] == "torchrun" and not words[1].endswith(".py"):
        del words[1]
    program, *arguments = words[2:] if words[1] == "-m" else words[1:]
    assert find_spec(program) if words[1] == "-m" else (ROOT / program).is_file(), program
    if program.split(".")[0] not in ("data", "prealign", "train", "eval", "tools") or "--help" in arguments:
        return None
    return program, load([a for a in arguments if a not in VERBS])


@pytest.mark.parametrize("script, scale", [("demo", ""), *(("all", scale) for scale in SCALES)])
def test_scripts_prepare_and_align_before_they_train(project, script, scale):
    prepared, aligned, trained = set(), set(), set()
    for program, config in called(f'SEEDS="1 2" bash runs/{script}.sh {scale}'):
        if program == "data.py":
            prepared.add(config.data_dir)
        elif program == "prealign.py":
            aligned.add(config.stage1_dir)
        elif program == "train.py":
            trained.add(config.run_dir)
            assert config.init_from != "align" or config.stage1_dir in aligned
        else:
            assert config.run_dir in trained
        assert config.data_dir in prepared and config.data_dir.startswith("bins/")
    if script == "all":
        assert any("table6" in folder for folder in prepared) and any("dynamics" in folder for folder in prepared)
        assert all(scale in folder for folder in trained)


def test_what_a_script_cannot_do_is_one_line(project):
    (project / "texts" / "ru").rmdir()
    assert "Table 6 is left out: it needs texts/ru/" in run("bash runs/all.sh").stdout
    for command, error in (("table1.sh huge", "there is no config/huge.py; the first argument is a scale: "),
                           ("table6.sh gpu", "there is no config/table6/gpu.py; the first argument is a scale: "),
                           ("table1.sh demo --max_step=3", "--max_step: there is no knob named 'max_step'")):
        result = run(f"bash runs/{command}")
        assert result.returncode == 1 and result.stderr.startswith(f"error: {error}") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_shows_is_there(project, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        (project / "config" / "mine.py").write_text(block, encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        called(block)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
        span = " ".join(span.split())
        if re.match(r"([A-Z_]+=\S+ )*(python|bash|torchrun) ", span):
            called(span)
        elif (knob := re.match(r"--(\w+)=", span)) and not re.fullmatch(FOREIGN, knob[1]):
            assert knob[1] in FIELDS and (re.search(r"\b[A-Z]{2,}\b", span) or load([span])), span
        elif re.fullmatch(r"(config|runs|tests|docs|results|corpus|tasks|runtime|report|tools)/[\w./]+", span):
            assert (ROOT / span).exists() or (project / span).exists(), span
        elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span):
            assert re.search(rf"\b{span}\b", code), span


def test_folders_import_downwards_and_without_circles():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES
               if path.suffix == ".py" and path.relative_to(ROOT).with_suffix("").parts[0] in FLOORS}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {name for node in nodes if isinstance(node, ast.ImportFrom) and node.module
                  for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))}
        graph[module] = names & modules.keys()
        for name in graph[module]:
            floor, below = (FLOORS.index(x.split(".")[0]) for x in (module, name))
            assert floor <= below, f"{module} imports {name}"
    assert len(graph) > 20
    graphlib.TopologicalSorter(graph).prepare()


def test_no_line_is_longer_than_120_characters():
    wide = [f"{path.relative_to(ROOT)}:{i}" for path in SOURCES
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120]
    assert not wide
