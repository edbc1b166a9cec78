"""The benchmark's own sums, and that it measures every part once."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from tools import bench
from conftest import overrides
from corpus.folder import Folder
from runtime.hardware import Hardware


@pytest.fixture
def quick(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "SECONDS", 0.05)
    return replace(tiny, out_dir=str(tmp_path), max_steps=400, eval_tokens=500)


def test_every_part_is_measured(quick, monkeypatch, capsys):
    monkeypatch.setattr(bench, "matmul_rate", lambda hardware: 1e9)
    monkeypatch.setattr(bench, "copy_rate", lambda device: 2e9)
    bench.main(overrides(quick))
    with open(f"{quick.out_dir}/bench.json") as f:
        result = json.load(f)
    names = ["step", "step, codeswitching", "step of stage 1"] + ["GPT2LMHeadModel"] * (find_spec("transformers") is not None)
    assert list(result["tokens_per_s"]) == list(result["peak_memory"]) == list(result["mfu"]) == names
    flops = bench.make_model(quick, Folder(quick.data_dir).vocab_size).flops_per_token()
    assert all(result["mfu"][name] == pytest.approx(rate * flops / 1e9) and rate > 0 for name, rate in result["tokens_per_s"].items())
    assert all(0 < held < 2e9 for held in result["peak_memory"].values())
    rates = [result["evaluation_tokens_per_s"], *result["sampler_tokens_per_s"].values(), result["preparation_bytes_per_s"], *result["contrastive_seconds"].values()]
    assert len(rates) == 6 and all(rate > 0 for rate in rates)
    rounds = result["tokens_per_s_by_round"]
    assert all(len(rounds[name]) == 2 and result["tokens_per_s"][name] == pytest.approx(sum(rounds[name]) / 2) for name in names)
    assert result["codeswitching_against_plain"] == pytest.approx(sum(b / a for a, b in zip(rounds[names[0]], rounds[names[1]])) / 2)
    assert result["versions"]["torch"] == torch.__version__ and "bf16" in result["device"]
    printed = capsys.readouterr().out
    assert "matrix products 1 GFLOP/s, copying 2.0 GB/s" in printed and all(f"| {name} " in printed for name in names)


def test_the_profile_is_of_training_steps(quick):
    table = bench.profile(quick, Hardware(torch.device("cpu"), torch.float32, 0, 1, None), Folder(quick.data_dir), shown=1000)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    shares = {name: float(share.rstrip("%")) for name, calls, ms, share in rows}
    assert sum(shares.values()) == pytest.approx(100, abs=0.05 * len(rows)) and 0 <= shares.pop("none of them") < 50
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    # Two micro-batches of two blocks, each with its softmax, and one chunk of logits; one step of the optimizer.
    calls = {name: float(number) for name, number, *_ in rows}
    assert calls["aten::_softmax"] == 2 * (2 + 1) and calls["Optimizer.step#AdamW.step"] == 1


def test_a_rate_is_what_was_made_in_its_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def make() -> int:
        clock[0] += 0.25
        return 3

    assert bench.rate(make, seconds=2) == pytest.approx(12)
