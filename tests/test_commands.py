"""
What the scripts run and the documents show: programs that are there, with arguments that load. Folders import
downwards only.
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

DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
SOURCES = {path: path.read_text(encoding="utf-8")
           for pattern in ("*.py", "[a-z]*/*.py", "config/*/*.py", "results/*/*.py", "runs/*.sh")
           for path in ROOT.glob(pattern) if path.relative_to(ROOT).parts[0] not in ("bins", "out")}
LANGUAGES = ("en", "de", "zh", "ru", "ar")
# From the top down: a folder, or a file of the ground floor, imports itself and what stands after it.
FLOORS = ("tools", "eval", "prealign", "train", "data", "tasks", "corpus", "report", "runtime", "model")
# Arguments that are no knobs: of torchrun, tests/kill.py and runs/gpu.sh.
FOREIGN = "--(key|knob|nproc_per_node|nnodes|node_rank|master_addr|kills|processes|limit|out|device)=.*"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The scripts and configs, with Table 6's texts, beside programs that only print what they are called with."""
    bin = tmp_path / ".venv" / "bin"
    for file in ("requirements.txt", ".venv/installed.txt", ".venv/bin/activate",
                 *(f"texts/{l}/text.txt" for l in LANGUAGES), *(f"dictionaries/en-{l}.txt" for l in LANGUAGES)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for folder in ("runs", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    # These are tested on their own.
    for script in ("gpu", "wheels", "download"):
        (tmp_path / "runs" / f"{script}.sh").write_text("")
    for name in ("python", "torchrun", "pip", "lm_eval", "hf"):
        # The scripts read knobs by `python -c`; a new environment has the same programs.
        real = f'if [ "$1" = -c ]; then PYTHONPATH={ROOT} exec {shutil.which("python3")} "$@"; fi'
        real += '\nif [ "$2" = venv ]; then cp -r .venv "$3"; fi'
        (bin / name).write_text(f"#!/bin/bash\n{real}\nprintf '%q ' {name} \"$@\"; echo\n")
        (bin / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    return tmp_path


def calls(command: str) -> list[tuple[str, Config]]:
    """The programs of ours that a command calls, with the config that each makes of its arguments."""
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
    called = []
    assert result.returncode == 0, (command, result.stderr)
    for words in map(shlex.split, re.findall("^(?:python|torchrun) .*", result.stdout, re.M)):
        found = [i for i, word in enumerate(words) if word.endswith(".py") or words[i - 1] == "-m"]
        program, *arguments = words[found[0]:] if found else [""]
        assert not program or (ROOT / program).is_file() or find_spec(program), program
        if re.match(r"(data|prealign|train|eval)\.py|tools\.(?!tokens)", program) and "--help" not in arguments:
            called.append((program, load([a for a in arguments if a not in ("xnli", "sample", "dynamics")])))
    return called


@pytest.mark.parametrize("script", [
    "demo.sh", "all.sh 1.3b", "figures.sh small", "figures.sh hour", "tokens.sh", "table6.sh small"])
def test_scripts_prepare_and_align_before_they_train(project, script):
    prepared, aligned, trained = set(), set(), set()
    for program, config in calls(f'SEEDS="1 2" bash runs/{script}'):
        if program == "data.py":
            prepared.add(config.data_dir)
        elif program == "prealign.py":
            aligned.add(config.stage1_dir)
        elif program == "train.py":
            trained.add(config.run_dir)
            assert config.init_from != "align" or config.stage1_dir in aligned
        assert config.data_dir in prepared and config.data_dir.startswith("bins/")
        assert program in ("data.py", "prealign.py") or config.run_dir in trained
    assert all(script.split()[-1].removesuffix(".sh") in folder for folder in trained)
    # One of the tables, one of the learning dynamics, one of Table 6.
    assert len(prepared) == 3 or "all.sh" not in script


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_shows_is_there(project, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        (project / "config" / "mine.py").write_text(block, encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        calls(block)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
        if re.match(r"([A-Z_]+=\S+ )*(python|bash|torchrun)\s", span):
            calls(" ".join(span.split()))
        elif re.match(r"--\w+=", span):
            # Not where a word in capitals stands for something.
            load([word for word in shlex.split(span) if not re.fullmatch(f"{FOREIGN}|.*=.*[A-Z]{{2}}.*", word)])
        elif re.fullmatch(r"(config|runs|tests|docs|results|corpus|tasks|runtime|report|tools)/[\w./]+", span):
            assert (ROOT / span).exists() or (project / span).exists(), span
        elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span):
            assert span in FIELDS or any(re.search(rf"\b{span}\b", code) for code in SOURCES.values()), span


def test_folders_import_downwards_and_without_circles():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): code for path, code in SOURCES.items()}
    graph = {module: set() for module in modules if module.split(".")[0] in FLOORS}
    for module in graph:
        for node in ast.walk(ast.parse(modules[module])):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [source + alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            graph[module] |= {name for name in (source[:-1], *names) if name in graph}
        for name in graph[module]:
            assert FLOORS.index(module.split(".")[0]) <= FLOORS.index(name.split(".")[0]), f"{module} imports {name}"
    assert "model" in graph["train"] and "corpus.table" in graph["prealign"]
    graphlib.TopologicalSorter(graph).prepare()
