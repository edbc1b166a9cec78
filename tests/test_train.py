"""The loop against the definitions of its steps: Eq. 4, the schedule, two stages as one run, resume to the bit."""

import itertools
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prealign
import train as training
from conftest import error, overrides, run_command
from corpus.folder import Folder
from data import Sampler
from prealign import Alignment, contrastive_loss, draw_entries, word_representations, word_rows
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model
from runtime.config import Config
from runtime.errors import UserError
from train import aligns, learning_rate, train

PREALIGN = dict(method="prealign", init_from="align", codeswitch_ratio=0.3, codeswitch_facts=True)


# ---- the slow way ----
def slow_step(config: Config, model: torch.nn.Module) -> dict[str, float]:
    """
    The losses of step 0 in nats, by their names in the log, from full logits and in one piece. Leaves the gradient of
    Eq. 4, the mean cross-entropy and the weighted contrastive loss, in the model's parameters.
    """
    data = Folder(config.data_dir)
    sampler = Sampler(data, config)
    inputs, targets, stream = sampler.batch(np.arange(config.batch_size))  # (B, T), (B, T), (B,)
    logits = model(inputs) @ model.lm_head.weight.T  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    losses, predicted = losses.view_as(targets), targets >= 0
    words = word_rows(data.table, draw_entries(data.table, config, 0))
    representations = word_representations(model, torch.from_numpy(words.ids), torch.from_numpy(words.length))
    align_loss = contrastive_loss(representations, torch.from_numpy(words.entry), config.align_tau)
    loss = losses.sum() / predicted.sum()
    (loss + config.align_weight * align_loss).backward()
    by_stream = {f"loss_{name}": (losses[stream == s].sum() / predicted[stream == s].sum()).item()
                 for s, name in enumerate(sampler.streams) if (stream == s).any()}
    return {"loss": loss.item(), **by_stream, "align_loss": align_loss.item()}


# ---- runs, and what they leave ----
@pytest.fixture
def small(tiny, tmp_path) -> Config:
    """Eight steps of stage 1 and eight of stage 2, in a folder of the test's own."""
    return replace(tiny, out_dir=str(tmp_path / "out"), max_steps=16, stage1_steps=8, eval_interval=5)


def stage1(config: Config, **changes) -> Config:
    """Run the command; the config of what it ran."""
    prealign.main(overrides(config, **changes))
    return replace(config, **changes).stage1()


def stage2(config: Config, method: str = "joint", **changes) -> Config:
    training.main(overrides(config, method=method, **changes))
    return replace(config, method=method, **changes)


def initial(config: Config) -> torch.nn.Module:
    data = Folder(config.data_dir)
    torch.manual_seed(config.seed)
    model = make_model(config, data.vocab_size)
    initial_state(model, config, data)
    return model


def state_of(config: Config) -> dict:
    return load_checkpoint(os.path.join(config.run_dir, "checkpoint.pt"))


def metrics_of(config: Config) -> list[dict]:
    return [json.loads(line) for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()]


def losses_of(config: Config) -> list[dict]:
    """metrics.jsonl without what depends on the clock; held-out losses by name."""
    lines = metrics_of(config)
    for line in lines:
        del line["tokens_per_s"], line["mfu"]
        line |= {f"held-out {language}": loss for language, loss in line.pop("held_out", {}).items()}
    return lines


def assert_same_state(mine: dict, theirs: dict) -> None:
    """Equal to the bit."""
    for part in ("step", "tokens", "model", "scaler"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    torch.testing.assert_close(mine["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0)


# ---- the schedule ----
def test_learning_rate_by_hand():
    config = Config(learning_rate=2.0, warmup_ratio=0.1, min_learning_rate_ratio=0.1, max_steps=100)
    lr = [learning_rate(step, config) for step in range(101)]
    assert lr[0] == pytest.approx(0.2) and lr[4] == pytest.approx(1.0)  # a tenth of the peak more at each of 10 steps
    assert lr[9] == lr[10] == 2.0
    assert lr[55] == pytest.approx(1.1)  # half way down: between 2 and 0.2
    assert lr[100] == pytest.approx(0.2) and all(a > b for a, b in zip(lr[10:], lr[11:]))
    # Post-alignment is a run of 100 steps, and then one of 50 that align.
    post = replace(config, max_steps=150, stage1_steps=50, align_when="last")
    again = [learning_rate(step, replace(config, max_steps=50)) for step in range(50)]
    assert [learning_rate(step, post) for step in range(150)] == lr[:100] + again
    assert [aligns(step, post) for step in range(150)] == 100 * [False] + 50 * [True]


# ---- a step ----
def test_gradient_of_a_step_is_that_of_equation_4(small):
    config = replace(small, seed=2, stage1_steps=0, align_when="all", align_tau=0.5, codeswitch_ratio=0.3,
                     micro_batch_size=3, grad_clip=0.5)
    train(config, 1, Alignment)
    model = initial(config)
    losses, line = slow_step(config, model), metrics_of(config)[0]
    assert {name: line[name] for name in line if "loss" in name} == pytest.approx(losses, rel=1e-5)
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5  # so that clipping had something to do
    # After one step, Adam's first moment is (1 - beta1) times the gradient.
    moments = state_of(config)["optimizer"]["state"]
    for number, p in enumerate(p for group in model.parameter_groups(0.1) for p in group["params"]):
        torch.testing.assert_close(moments.pop(number)["exp_avg"], 0.1 * p.grad, rtol=1e-3, atol=1e-6)
    assert not moments


def test_losses_go_down_and_a_line_is_their_mean_since_the_line_before(small):
    every, seventh = (metrics_of(stage2(small, f"every{n}", log_interval=n, align_when="all", max_steps=40))
                      for n in (1, 7))
    loss, align_loss = (np.array([line[name] for line in every]) for name in ("loss", "align_loss"))
    assert loss[-5:].mean() < loss[:5].mean() - 0.3 and align_loss[-5:].mean() < align_loss[:5].mean() - 3
    # Checkpoints, of every fifth step, begin a line of their own.
    steps = [0, *(line["step"] for line in seventh)]
    assert steps == sorted({*range(0, 41, 5), *range(0, 41, 7)})
    for first, end, line in zip(steps, steps[1:], seventh):
        assert line["loss"] == pytest.approx(loss[first:end].mean(), rel=1e-5)  # steps predict equally many tokens
        assert line["align_loss"] == pytest.approx(align_loss[first:end].mean(), rel=1e-5)


def test_held_out_losses_and_snapshots_are_of_their_step_and_change_nothing(small, monkeypatch):
    """The losses are means over rows of the text."""
    monkeypatch.setattr(training, "HELD_OUT_STEPS", 1)  # 8 rows
    small = replace(small, micro_batch_size=3)
    without, config = stage2(small, "without", eval_interval=0), stage2(small, eval_interval=8, snapshot_interval=8)
    assert_same_state(state_of(without), state_of(config))
    data, T = Folder(config.data_dir), config.block_size
    held_out = {line["step"]: line["held_out"] for line in metrics_of(config) if "held_out" in line}
    assert list(held_out) == [8, 16]
    for step, language in itertools.product(held_out, ("en", "clone")):
        model, state = load_trained(config.run_dir, data, snapshot=f"snapshots/{step:08}.pt")
        tokens = torch.from_numpy(data.tokens(language, "val").astype(np.int64))
        windows, losses = tokens.unfold(0, T + 1, T), []  # (windows, T + 1)
        for row in (windows[i * len(windows) // 8] for i in range(8)):
            logits = model(row[None, :-1])[0] @ model.lm_head.weight.T  # (T, V)
            losses.append(F.cross_entropy(logits, row[1:]).item())
        assert state["step"] == step and held_out[step][language] == pytest.approx(np.mean(losses), rel=1e-5)


def test_half_precision_trains_like_full_precision(small):
    full, half = (stage2(small, dtype, dtype=dtype, align_when="all") for dtype in ("fp32", "fp16"))
    for mine, exact in zip(metrics_of(half), metrics_of(full), strict=True):
        assert mine["loss"] == pytest.approx(exact["loss"], rel=0.005)


# ---- two stages are one run ----
def test_stage_2_goes_on_where_stage_1_stopped(small):
    """Both stages with the same loss are one run without a seam: weights, optimizer, rows, learning rate, tokens."""
    stage1(small)
    seam = stage2(small, "seam", init_from="align", align_when="all")
    one = stage2(small, "on-the-fly", align_when="all")
    assert_same_state(state_of(seam), state_of(one))
    assert losses_of(seam) == losses_of(one)[8:] and state_of(one)["tokens"] == 16 * 8 * 32
    with_facts = ["loss_facts" in line for line in losses_of(one)]
    assert not any(with_facts[:8]) and any(with_facts[8:])


@pytest.mark.parametrize("tie", [True, False])
def test_golden_initialisation_gives_en_clone_the_embeddings_of_english(small, tie):
    data, model = Folder(small.data_dir), initial(replace(small, init_from="golden", tie_embeddings=tie))
    scratch = initial(replace(small, tie_embeddings=tie))
    for weight, as_before in ((model.wte.weight, scratch.wte.weight), (model.lm_head.weight, scratch.lm_head.weight)):
        assert torch.equal(weight[data.ids_of("clone")], weight[data.ids_of("en")])
        assert torch.equal(weight[data.ids_of("en")], as_before[data.ids_of("en")])


# ---- resume ----
class Killed(Exception):
    """In place of SIGKILL: nothing after it is run."""


def killed_after(step: int, monkeypatch, how=Killed):
    """From here on, runs are interrupted when the line of `step` has been written."""
    write = training.Log.line

    def line(self, at, *rest):
        write(self, at, *rest)
        if at == step and how is Killed:
            raise Killed
        if at == step:
            os.kill(os.getpid(), how)
    monkeypatch.setattr(training.Log, "line", line)


# Checkpoints are at 5, 8, 10, 15 and 16.
@pytest.mark.parametrize("stage, step, how", [(1, 6, Killed), (1, 6, signal.SIGINT), (2, 14, Killed),
                                              (2, 14, signal.SIGTERM)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(small, monkeypatch, capsys, stage, step, how):
    """To the bit, and with other values of knobs that change no result."""
    def run(config, **changes):
        return stage1(config, **changes) if stage == 1 else stage2(config, align_when="all", **PREALIGN, **changes)

    # float16 has a loss scale to go on with too.
    small = replace(small, dtype="fp16" if how is Killed else "fp32")
    broken = replace(small, out_dir=small.out_dir + "-broken")
    if stage == 2:
        stage1(small), stage1(broken)
    straight = run(small)
    with monkeypatch.context() as patch:
        killed_after(step, patch, how)
        with pytest.raises(Killed if how is Killed else SystemExit) as stopped:
            run(broken)
    if how is not Killed:
        assert stopped.value.code == 128 + how and f"stopped at step {step + 1}" in capsys.readouterr().out
    resumed = run(broken, checkpoint_interval=3, eval_tokens=5, workers=3)
    run(broken)
    assert "is finished" in capsys.readouterr().out
    assert_same_state(state_of(straight), state_of(resumed))
    assert losses_of(straight) == losses_of(resumed)


# ---- several processes ----
@pytest.mark.slow
def test_two_processes_compute_what_one_does(small):
    """Rows, gradients and words are spread, 2 of a process's 4 rows at a time: sums are added in another order."""
    one = replace(small, micro_batch_size=2, codeswitch_ratio=0.3, align_when="all", align_entries=17)
    two = replace(one, method="two")
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2 train.py".split()
    assert run_command(*launch, *overrides(two)).returncode == 0
    for mine, theirs in zip(losses_of(stage2(one)), losses_of(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, mine in state_of(one)["model"].items():
        # A bias of all keys changes no attention: its gradient is rounding only, which Adam makes steps of.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(mine, state_of(two)["model"][name], rtol=1e-3, atol=1e-4)


# ---- runs that stop, and runs that cannot be ----
def spoil_steps(monkeypatch, bad: set[int]) -> None:
    """Gradients of these steps are not finite."""
    take_step = training.take_step

    def spoiled(state, step, *rest):
        hook = state.model.ln_f.bias.register_hook(lambda grad: grad * math.nan if step in bad else grad)
        take_step(state, step, *rest)
        hook.remove()

    monkeypatch.setattr(training, "take_step", spoiled)


def test_a_step_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(small, monkeypatch):
    spoil_steps(monkeypatch, {7})
    said = error(lambda: stage2(small, log_interval=20, checkpoint_interval=6))
    assert "step 7" in said and small.run_dir in said and "learning_rate" in said
    assert state_of(small)["step"] == 6
    # Of a gradient that is finite come weights that are not.
    with pytest.raises(UserError, match="not finite .*there is no checkpoint yet"):
        stage2(small, "exploding", learning_rate=1e99, checkpoint_interval=1)


def test_the_scaler_of_float16_skips_such_a_step(small, monkeypatch):
    """It halves the loss scale and leaves weights and moments; only when no scale helps is it an error."""
    spoil_steps(monkeypatch, {15})
    skipped = state_of(stage2(small, "skipped", dtype="fp16", snapshot_interval=15))
    kept = load_checkpoint(os.path.join(small.out_dir, "skipped", "seed1", "snapshots", "00000015.pt"))
    assert skipped["step"] == 16 and skipped["scaler"]["scale"] == 2**15
    assert all(torch.equal(weight, kept["model"][name]) for name, weight in skipped["model"].items())
    spoil_steps(monkeypatch, set(range(40)))
    with pytest.raises(UserError, match="not finite .*--dtype=bf16"):
        stage2(small, "never", dtype="fp16", max_steps=40, checkpoint_interval=40)


def test_stage_2_needs_a_finished_stage_1_with_the_same_knobs(small, monkeypatch):
    def refused(**changes) -> str:
        return error(lambda: stage2(small, **PREALIGN | changes))

    assert small.stage1_dir in refused() and "prealign.py" in refused()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(6, patch)
        stage1(small)
    assert "step 5 of 8" in refused()
    stage1(small)
    for knob, value in (("n_embd", 16), ("stage1_steps", 4), ("align_tau", 0.5), ("mix", {"en": 1.0})):
        assert f"another {knob} " in refused(**{knob: value})
    assert "another align_tau " in error(lambda: stage1(small, align_tau=0.5))
    # It serves every method.
    stage2(small, **PREALIGN, codeswitch_target="vanilla", only="en")
