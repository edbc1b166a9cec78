"""tests/kill.py finds what differs; and a short run of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import kill
from conftest import overrides


def test_differences_are_found(out_dir, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(out_dir, tmp_path / name / "out")
    a, b = tmp_path / "a", tmp_path / "b"
    assert kill.differences(a, b) == []
    folder = b / "out" / "joint" / "seed1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line | {"tokens_per_s": 1.0}) + "\n" for line in lines))
    assert kill.differences(a, b) == []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line | {"loss": 1.0}) + "\n" for line in lines))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["model"]["wpe.weight"][0, 0] += 1e-6
    torch.save(state, folder / "checkpoint.pt")
    results = json.loads((folder / "eval.json").read_text())
    results["lm"]["en"]["ppl"] += 1e-9
    (folder / "eval.json").write_text(json.dumps(results))
    (b / "more").write_text("")
    assert kill.differences(a, b) == ["files ['more']", *(f"out/joint/seed1/{name}" for name in ("checkpoint.pt", "eval.json", "metrics.jsonl"))]


def test_a_killed_run_ends_as_if_nothing_had_happened(tiny, tmp_path, capsys):
    arguments = [a for a in overrides(tiny, max_steps=400, fact_count=0, snapshot_interval=100) if not a.startswith(("--data_dir", "--out_dir", "--checkpoint_interval"))]
    folder = tmp_path / "kill"
    assert kill.main([*arguments, "--kills=5", f"--folder={folder}"]) == 0
    printed = capsys.readouterr().out
    assert "the same to the bit" in printed and "kills (data.py" in printed
    assert Path(folder, "killed", "out", "prealign", "seed1", "eval.json").exists()
    with pytest.raises(SystemExit, match="is there"):
        kill.main([*arguments, f"--folder={folder}"])
