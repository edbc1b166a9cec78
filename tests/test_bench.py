"""The benchmark: what it measures, in which order, and what it says of what does not fit."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tools import bench
from conftest import overrides
from corpus.folder import Folder
from runtime.hardware import Hardware

CPU = Hardware(torch.device("cpu"), torch.float32, 0, 1, None)
OURS = ["step", "step, codeswitching", "step of stage 1", "evaluation", "profile"]


@pytest.fixture
def quick(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.05)
    return replace(tiny, out_dir=str(tmp_path), max_steps=400, eval_tokens=500)


def test_every_row_is_measured_and_written(quick, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "matmul_rate", lambda hardware: 1e9)
    (tmp_path / "two.py").write_text("micro_batch_size = 2\n")
    (tmp_path / "one.py").write_text("")
    knobs = [knob for knob in overrides(quick) if "micro_batch_size" not in knob]
    bench.main([str(tmp_path / "one.py"), str(tmp_path / "two.py"), *knobs])
    machine, *rows = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert machine["versions"]["torch"] == torch.__version__ and "bf16" in machine["device"]
    assert machine["matmul_flops"] == 1e9 and all(rate > 0 for rate in machine["sampler_tokens_per_s"].values())
    assert [(row["size"], row["row"]) for row in rows] == bench.plan(["one", "two"], on_gpu=False)
    flops = bench.make_model(quick, Folder(quick.data_dir).vocab_size).flops_per_token()
    step: dict = {}
    for row in rows:
        assert row["compiled"] is False
        if row["row"] == "step":
            step[row["size"]] = row
        if "seconds_per_step" in row:
            assert row["tokens_per_s"] == pytest.approx(8 * 32 / row["seconds_per_step"])
            assert row["mfu"] == pytest.approx(row["tokens_per_s"] * flops / 1e9)
            assert row["by_step"] == pytest.approx(row["tokens_per_s"] / step[row["size"]]["tokens_per_s"])
    assert {row["size"]: row["micro_batch_size"] for row in rows} == {"one": 8, "two": 2}
    printed = capsys.readouterr().out
    assert "matrix products: 1 GFLOP/s" in printed and all(f"| {name} " in printed for name in OURS[:-1])


def test_what_matters_most_comes_first():
    rows = bench.plan(["150m", "1.3b", "400m"], on_gpu=True)
    theirs = ["GPT2LMHeadModel, compiled", "GPT2LMHeadModel"] if find_spec("transformers") else []
    first = [("150m", name) for name in OURS + theirs]
    assert rows[:len(first) + 2] == [*first, ("1.3b", "step"), ("400m", "step")]
    assert rows[len(first) + 2] == ("150m", "step")
    others = [("1.3b", name) for name in OURS + theirs if name != "profile"]
    assert sorted(row for row in rows if row[0] == "1.3b") == sorted(others)
    assert ("150m", "GPT2LMHeadModel, compiled") not in bench.plan(["150m"], on_gpu=False)


def test_a_step_is_a_slice_of_a_large_batch(quick):
    config = replace(quick, batch_size=64, micro_batch_size=2)
    rows = [bench.measured("", config, name, CPU, Folder(quick.data_dir), {}) for name in OURS[:3]]
    assert [row["rows"] for row in rows] == [8, 8, 8]
    plain, _, stage_1 = (bench.completed(row, config, 1.0, 1.0, rows[0]) for row in rows)
    seconds = stage_1["seconds_per_step"] + 7 * plain["seconds_per_step"]
    assert stage_1["whole_batch_tokens_per_s"] == pytest.approx(64 * 32 / seconds)
    assert "whole_batch_tokens_per_s" not in plain


def test_a_micro_batch_that_does_not_fit_is_halved(quick, monkeypatch):
    tried = []

    def fits(largest: int):
        def measure(model, config, hardware):
            tried.append(config.micro_batch_size)
            if config.micro_batch_size > largest:
                raise torch.OutOfMemoryError("too large")
            return {}
        return bench.Row(bench.Ours, measure)

    data, kept = Folder(quick.data_dir), {}
    config = replace(quick, batch_size=8, micro_batch_size=8)
    monkeypatch.setitem(bench.ROWS, "step", fits(2))
    row = bench.measured("", config, "step", CPU, data, kept)
    assert tried == [8, 4, 2] and row["micro_batch_size"] == 2 and row["rows"] == 8
    bench.measured("", config, "step", CPU, data, kept)
    assert tried == [8, 4, 2, 2]  # the same model again
    monkeypatch.setitem(bench.ROWS, "step", fits(0))
    row = bench.measured("", config, "step", CPU, data, kept)
    assert row == {"size": "", "row": "step", "error": "does not fit, even with one row at a time"} and not kept
    assert "does not fit" in bench.row_text(row)


def test_a_row_that_fails_does_not_end_the_others(quick, monkeypatch, tmp_path):
    def fail(model, config, hardware):
        raise ValueError("no such\nkernel")

    monkeypatch.setattr(bench, "matmul_rate", lambda hardware: 1e9)
    monkeypatch.setitem(bench.ROWS, "step, codeswitching", bench.Row(bench.Ours, fail))
    (tmp_path / "one.py").write_text("")
    with pytest.raises(bench.UserError, match="not measured: one step, codeswitching"):
        bench.main([str(tmp_path / "one.py"), *overrides(quick)])
    rows = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()][1:]
    assert [row.get("error") for row in rows[:3]] == [None, "ValueError: no such kernel", None]


def test_the_profile_is_of_training_steps(quick):
    data = Folder(quick.data_dir)
    model = bench.Ours(quick, CPU, data, False)
    model.turn_to(quick)
    result = bench.profile(model, quick, CPU, shown=1000)
    shares = [kernel["share"] for kernel in result["kernels"]]
    assert sum(shares) + result["idle_share"] == pytest.approx(1) and shares == sorted(shares, reverse=True)
    # Two micro-batches of two blocks, each with its softmax, and one chunk of logits; one step of the optimizer.
    calls = {kernel["name"]: kernel["calls_per_step"] for kernel in result["kernels"]}
    assert calls["aten::_softmax"] == 2 * (2 + 1) and calls["Optimizer.step#AdamW.step"] == 1


def test_the_plain_loop_predicts_the_same_tokens(quick):
    """GPT2LMHeadModel compares logits[:, :-1] with labels[:, 1:]."""
    theirs = bench.Theirs.__new__(bench.Theirs)
    theirs.hardware, theirs.data = CPU, Folder(quick.data_dir)
    theirs.turn_to(quick)
    inputs, labels = theirs.make(7)
    batch = bench.Sampler(theirs.data, quick).batch(np.arange(7 * 8, 8 * 8))
    assert (inputs.numpy() == batch.inputs).all()
    expected = batch.targets[:, :-1]
    assert (labels.numpy()[:, 1:] == np.where(expected < 0, -100, expected)).all() and (labels[:, 0] == -100).all()
