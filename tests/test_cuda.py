"""
What is different on a GPU: precision, compilation, waiting, memory, resuming, NCCL. With PREALIGN_TEST_DEVICE=cpu the
tests run on the CPU, so that they cannot rot where there is no GPU.

    python -m pytest -m cuda tests
    PREALIGN_TEST_DEVICE=cpu python -m pytest -m cuda tests
"""

import copy
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import eval as evaluation
import model as gpt
import train as training
from conftest import overrides, run_command
from corpus.folder import Folder
from corpus.table import make_table
from data import Sampler
from model import GPT
from prealign import Alignment
from runtime import errors
from runtime.checkpoint import make_model
from runtime.config import Config
from runtime.hardware import compile_model, start
from test_train import killed_after, losses_of, stage2

DEVICE = os.environ.get("PREALIGN_TEST_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(autouse=True)
def nothing_compiled():
    """No graph of another test is used."""
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def small(tiny, tmp_path) -> Config:
    """Eight steps of stage 1 and eight of stage 2 on the device, in a folder of the test's own."""
    return replace(tiny, out_dir=str(tmp_path / "out"), device=DEVICE, dtype="bf16", compile="off", n_embd=64,
                   max_steps=16, stage1_steps=8)


def ready(config: Config) -> training.Training:
    """A run of the config, which aligns, before its first step."""
    data = Folder(config.data_dir)
    torch.manual_seed(0)
    return training.set_up(config, start(config), data, make_model(config, data.vocab_size), Alignment)


def step_of(state: training.Training, step: int) -> None:
    batch, words = state.batch(step)
    training.take_step(state, step, batch, words, int((batch.targets >= 0).sum()))


def off_by(x: torch.Tensor, reference: torch.Tensor) -> float:
    """The length of the difference, as a share of the reference's."""
    x, reference = x.detach().cpu().double(), reference.detach().cpu().double()
    return ((x - reference).norm() / reference.norm()).item()


def gradients(network: torch.nn.Module, model: GPT, inputs: torch.Tensor, targets: torch.Tensor,
              dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The gradient of the summed losses of `network`, `model` or made from it, by parameter; the sum as "loss"."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
        loss, _ = network(inputs, targets)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


# ---- precision and compilation ----
# A number is rounded by up to 2**-24, 2**-11 and 2**-8 of itself; a gradient of two layers comes from several such.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("tie", [True, False])
def test_loss_and_gradients_are_those_of_float64(monkeypatch, dtype, tolerance, tie):
    """With full logits on the CPU. Four chunks of tokens, some not predicted; a vocabulary that no tile divides."""
    monkeypatch.setattr(gpt, "chunk_size", lambda *_: 128)
    torch.manual_seed(0)
    model = GPT(1003, 64, 2, 2, 128, tie, init_std=0.1, embedding_init_std=0.1)
    inputs, targets = torch.randint(1003, (2, 8, 64))
    targets[torch.rand(targets.shape) < 0.1] = -1
    exact = copy.deepcopy(model).double()
    logits = exact(inputs) @ exact.lm_head.weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    expected.backward()
    found = gradients(model.to(DEVICE), model, inputs.to(DEVICE), targets.to(DEVICE), dtype)
    assert off_by(found["loss"], expected) < tolerance / 10
    for name, p in exact.named_parameters():
        assert found[name].dtype == torch.float32 and off_by(found[name], p.grad) < tolerance, name


@pytest.mark.parametrize("tie", [True, False])
def test_compiled_gradients_are_the_eager_ones(small, monkeypatch, capsys, tie):
    """Trying the network leaves nothing behind, and nothing is compiled after it."""
    monkeypatch.setattr(gpt, "chunk_size", lambda *_: 64)  # two chunks
    config = replace(small, compile="on", tie_embeddings=tie)
    data, hardware = Folder(config.data_dir), start(config)
    torch.manual_seed(0)
    model = make_model(config, data.vocab_size).to(hardware.device)
    network = compile_model(model, config, hardware)
    printed = capsys.readouterr().out
    if not ON_GPU and "does not work here" in printed:
        pytest.skip("no compiler here")
    assert network is not model and printed == "" and (graphs := counters["stats"]["unique_graphs"]) > 0
    assert all(p.grad is None for p in model.parameters())
    for step in range(3):
        batch = Sampler(data, config).batch(np.arange(4 * step, 4 * step + 4))
        inputs, targets = (x.to(hardware.device) for x in batch[:2])
        eager = gradients(model, model, inputs, targets, hardware.dtype)
        fast = gradients(network, model, inputs, targets, hardware.dtype)
        for name in eager:  # a compiler keeps float32 between operations that are bf16 otherwise
            assert off_by(fast[name], eager[name]) < (3e-3 if name == "loss" else 3e-2), name
    assert counters["stats"]["unique_graphs"] == graphs


# ---- waiting ----
@pytest.mark.skipif(not ON_GPU, reason="a CPU has nothing to wait for")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_step_waits_for_nothing(small, dtype):
    """With and without the words of stage 1; after two steps, in which libraries load."""
    state = ready(replace(small, dtype=dtype, compile="on" if dtype == "bf16" else "off", align_when="all",
                          codeswitch_ratio=0.3))
    step_of(state, 0), step_of(state, 1)
    for step in (2, 3):
        batch, words = state.batch(step)
        assert all(x.is_pinned() for x in batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.take_step(state, step, batch, words if step == 2 else None, 100)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert state.totals.bad_step.item() == -1


# ---- memory ----
def test_stage_1_is_steady(small):
    """Words of many lengths, new ones at every step: no memory is added and nothing compiled."""
    entries, steps = (4096, 40) if ON_GPU else (64, 24)
    state = ready(replace(small, compile="on", align_when="all", align_entries=entries, max_steps=steps))
    # Of 1 to 24 tokens, short ones most often.
    rng = np.random.default_rng(0)
    lengths = rng.geometric(0.3, (3 * entries, 2)).clip(max=24)
    words = [[[rng.integers(1, len(state.model.wte.weight), n)] for n in pair] for pair in lengths]
    state.objective.table = make_table(words, list(range(3 * entries, 0, -1)), ("en", "clone"))
    graphs, held = counters["stats"]["unique_graphs"], []
    for step in range(steps):
        step_of(state, step)
        if ON_GPU:
            held.append(torch.cuda.memory_reserved())
    assert counters["stats"]["unique_graphs"] == graphs and state.totals.bad_step.item() == -1
    # A step has a few words more or less than another one.
    assert not ON_GPU or max(held[20:]) < 1.05 * max(held[10:20])


def test_out_of_memory_names_the_knob_and_spares_the_run(small, monkeypatch, capsys):
    """Wherever memory ends while a run goes on: in its weights, its optimizer, the compiler, a step, a checkpoint."""
    small = replace(small, dtype="fp32", align_when="all")
    undisturbed = losses_of(stage2(small, "undisturbed"))

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        killed_after(7, patch, signal.SIGTERM)
        pytest.raises(SystemExit, stage2, small)
    capsys.readouterr()
    for place, name in ((GPT, "load_state_dict"), (torch.optim.AdamW, "load_state_dict"), (torch, "compile"),
                        (GPT, "layers"), (torch, "save")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(place, name, too_much)
            patch.setattr(sys, "argv", ["train.py", *overrides(small, compile="on" if name == "compile" else "off")])
            errors.run_main(training.main)
        message = stopped.value.code
        assert message.startswith("error: out of memory; ") and "--micro_batch_size" in message, name
        assert "\n" not in message and "does not work here" not in capsys.readouterr().out, name
    # A GPU adds the gradients of embeddings in any order.
    for mine, theirs in zip(losses_of(stage2(small)), undisturbed, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3 if ON_GPU else 0)


def test_evaluation_is_that_of_the_cpu(small, capsys):
    """Perplexity and similarity are; facts, samples and pairs of sentences are got through on the device."""
    small = replace(small, method="joint", block_size=64, eval_tokens=300, eval_words=20, sample_count=8,
                    sample_tokens=4, nli_builtin=10, nli_epochs=1, nli_batch_size=30)
    stage2(small)
    results = []
    for device in (DEVICE, "cpu"):
        evaluation.main(overrides(small, device=device))
        results.append(json.loads(Path(small.run_dir, "eval.json").read_text()))
    mine, theirs = results
    for language in ("en", "clone"):
        assert mine["lm"][language]["ppl"] == pytest.approx(theirs["lm"][language]["ppl"], rel=1e-3)
    for a, b in zip(mine["similarity"], theirs["similarity"], strict=True):
        assert (a["words"], a["text"]) == pytest.approx((b["words"], b["text"]), abs=1e-3)
    evaluation.main(["xnli", *overrides(small)])
    assert "NLI clone" in capsys.readouterr().out


def test_torchrun_with_one_process_computes_what_none_does(small):
    """NCCL on a GPU: words are gathered and gradients summed over a group, as they would be over several processes."""
    small = replace(small, dtype="fp32", align_when="all")
    alone, config = stage2(small), replace(small, method="group", compile="auto")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
    result = run_command(*launch, "train.py", *overrides(config))
    assert result.returncode == 0, result.stderr
    for mine, theirs in zip(losses_of(config), losses_of(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    about = json.loads(Path(config.run_dir, "run.json").read_text())
    assert about["compiled"] == ON_GPU and about["device"].startswith(DEVICE)
