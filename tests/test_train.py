"""The training loop: one step by hand, schedules, resume to the bit, several processes, checkpoints that fail, initialisations."""

import json
import os
import pickle
import platform
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import prealign
import train as training
from data import Sampler
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model, save_checkpoint
from runtime.config import Config
from runtime.errors import UserError
from conftest import make_text, overrides, run_command
from data import prepare
from corpus.folder import Folder
from runtime.hardware import Hardware
from prealign import contrastive_loss, draw_entries, word_representations, word_rows
from train import learning_rate, train


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """One thread, so that sums are added in the same order everywhere; signal handlers as they were; no measuring of the machine."""
    threads, handlers = torch.get_num_threads(), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def small(tiny, tmp_path) -> Config:
    """Eight steps of stage 1 and eight of stage 2, in a folder of the test's own."""
    return replace(tiny, out_dir=str(tmp_path / "out"), max_steps=16, stage1_steps=8)


def stage1(config: Config, **changes) -> Config:
    """Run the command; the config of what it ran."""
    prealign.main(overrides(config, **changes))
    return replace(config, **changes).stage1()


def stage2(config: Config, method: str = "joint", **changes) -> Config:
    training.main(overrides(config, method=method, **changes))
    return replace(config, method=method, **changes)


PREALIGN = dict(method="prealign", init_from="align", codeswitch_ratio=0.3)


def state_of(config: Config) -> dict:
    return load_checkpoint(os.path.join(config.run_dir, "checkpoint.pt"))


def metrics_of(config: Config) -> list[dict]:
    return [json.loads(line) for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()]


def losses_of(config: Config) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "mfu")} for line in metrics_of(config)]


def assert_same_run(a: Config, b: Config) -> None:
    """Equal to the bit: weights, optimizer, losses."""
    mine, theirs = state_of(a), state_of(b)
    assert mine["step"] == theirs["step"]
    for name, weight in mine["model"].items():
        assert torch.equal(weight, theirs["model"][name]), name
    for number, moments in mine["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, theirs["optimizer"]["state"][number][name]), (number, name)
    assert losses_of(a) == losses_of(b)


def assert_close_run(a: Config, b: Config) -> None:
    """Equal but for the order in which sums were added."""
    for mine, theirs in zip(losses_of(a), losses_of(b), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    mine, theirs = state_of(a)["model"], state_of(b)["model"]
    for name in mine:
        x, y = mine[name], theirs[name]
        if name.endswith("qkv.bias"):  # a bias of all keys changes no attention: its gradient is rounding only, which Adam makes steps of
            x, y = (torch.cat([q, v]) for q, _, v in (x.chunk(3), y.chunk(3)))
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")


# ---- schedule and arithmetic of a step ----

def test_learning_rate_by_hand():
    config = Config(learning_rate=2.0, warmup_ratio=0.1, min_learning_rate_ratio=0.1, max_steps=100)
    lr = [learning_rate(step, config) for step in range(101)]
    assert lr[0] == pytest.approx(0.2) and lr[4] == pytest.approx(1.0)  # a tenth of the peak more at each of 10 steps
    assert lr[9] == lr[10] == 2.0
    assert lr[55] == pytest.approx(1.1)  # half way down: between 2 and 0.2
    assert lr[99] == pytest.approx(0.2, rel=0.01) and lr[100] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(lr[10:], lr[11:]))


def test_learning_rate_without_warm_up_begins_at_the_peak():
    config = Config(learning_rate=2.0, warmup_ratio=0.0, min_learning_rate_ratio=0.0, max_steps=10)
    assert learning_rate(0, config) == 2.0 and learning_rate(5, config) == pytest.approx(1.0)


def test_one_schedule_runs_through_both_stages(small):
    small = replace(small, warmup_ratio=0.5, learning_rate=8e-4, min_learning_rate_ratio=0.5)
    assert [line["lr"] for line in metrics_of(stage1(small))] == pytest.approx(1e-4 * np.arange(1, 9))
    down = [8 * (0.75 + 0.25 * np.cos(np.pi * i / 8)) for i in range(8)]  # between 8 and 4
    assert [line["lr"] for line in metrics_of(stage2(small, **PREALIGN))] == pytest.approx(1e-4 * np.array(down))


def test_stage_2_goes_on_where_stage_1_stopped(small):
    """Both stages with the same loss are one run without a seam: weights, moments of the optimizer, rows, learning rate."""
    stage1(small)
    seam = stage2(small, "seam", init_from="align", align_steps="all")
    one = stage2(small, "on_the_fly", align_steps="all")
    mine, theirs = state_of(seam), state_of(one)
    for name, weight in mine["model"].items():
        assert torch.equal(weight, theirs["model"][name]), name
    for number, moments in mine["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, theirs["optimizer"]["state"][number][name]), (number, name)
    assert losses_of(seam) == losses_of(one)[8:]


def test_gradient_of_a_step_is_that_of_equation_4(small):
    """Mean cross-entropy and the weighted contrastive loss, with full logits and in one piece, clipped."""
    config = replace(small, seed=2, stage1_steps=0, align_steps="all", align_tau=0.5, codeswitch_ratio=0.3, micro_batch_size=3, grad_clip=0.5)
    train(config, 0, 1)

    data = Folder(config.data_dir)
    torch.manual_seed(config.seed)
    model = make_model(config, data.vocab_size)
    batch = Sampler(data, config).batch(np.arange(8))
    inputs, targets, stream = batch
    assert (targets < 0).any()
    losses = F.cross_entropy((model(inputs) @ model.lm_head.weight.T).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none").view(8, -1)
    words = word_rows(data.table, draw_entries(data.table, config, 0))
    representations = word_representations(model, torch.from_numpy(words.ids), torch.from_numpy(words.length))
    align_loss = contrastive_loss(representations, torch.from_numpy(words.entry), 0.5)
    loss = losses.sum() / (targets >= 0).sum()
    (loss + 0.1 * align_loss).backward()

    line = metrics_of(config)[0]
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5) and line["align_loss"] == pytest.approx(align_loss.item(), rel=1e-5)
    for s, name in enumerate(("en", "clone")):
        mean = losses[stream == s].sum() / (targets[stream == s] >= 0).sum()
        assert line[f"loss_{name}"] == pytest.approx(mean.item(), rel=1e-5)

    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert norm > 0.5  # so that clipping had something to do
    moments = state_of(config)["optimizer"]["state"]
    parameters = [p for group in model.parameter_groups(0.1) for p in group["params"]]
    assert len(moments) == len(parameters)
    for number, p in enumerate(parameters):  # after one step, Adam's first moment is (1 - beta1) times the gradient
        torch.testing.assert_close(moments[number]["exp_avg"], (1 - config.beta1) * p.grad, rtol=1e-3, atol=1e-6)


def test_gradient_accumulation_changes_nothing(small):
    assert_close_run(stage1(small, micro_batch_size=2), stage1(replace(small, out_dir=small.out_dir + "2"), micro_batch_size=8))
    assert_close_run(stage2(small, "two", micro_batch_size=2, codeswitch_ratio=0.3), stage2(small, "eight", micro_batch_size=8, codeswitch_ratio=0.3))


def test_loss_goes_down(small):
    losses = [line["loss"] for line in metrics_of(stage2(small, max_steps=40))]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_alignment_loss_goes_down(small):
    losses = [line["align_loss"] for line in metrics_of(stage1(small, stage1_steps=30, max_steps=40, align_weight=1.0))]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 3


# ---- what a run leaves behind ----

def test_run_json_and_metrics(small, monkeypatch):
    monkeypatch.undo()  # with the machine's speed measured
    config = stage1(small)
    about = json.loads(Path(config.run_dir, "run.json").read_text())
    assert about["config"] == config.plain() and about["config"]["seed"] == 1
    assert about["versions"] == {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    assert about["parameters"] == sum(p.numel() for p in load_trained(config.run_dir, Folder(config.data_dir))[0].parameters())
    lines = metrics_of(config)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert set(line) == {"step", "tokens", "lr", "loss", "loss_en", "loss_clone", "align_loss", "tokens_per_s", "mfu"}
        assert line["tokens"] == line["step"] * 8 * 32
        assert min(line["loss_en"], line["loss_clone"]) <= line["loss"] <= max(line["loss_en"], line["loss_clone"])
        assert line["tokens_per_s"] > 0 and line["mfu"] > 0


def test_a_line_is_the_mean_since_the_line_before(small):
    every, fifth = (metrics_of(stage2(small, f"every{n}", align_steps="all", log_interval=n)) for n in (1, 5))
    assert [line["step"] for line in every] == list(range(1, 17))
    assert [line["step"] for line in fifth] == [5, 10, 15, 16]
    for first, line in zip((0, 5, 10, 15), fifth):
        since = every[first:line["step"]]
        assert line["align_loss"] == pytest.approx(np.mean([one["align_loss"] for one in since]), rel=1e-5)
        assert line["loss"] == pytest.approx(np.mean([one["loss"] for one in since]), rel=1e-5)  # every step predicts as many tokens
        assert line["lr"] == since[-1]["lr"]


def test_lines_go_to_other_logs_too(small, monkeypatch):
    """Stand-ins for the two packages, which need not be installed."""
    logged, scalars = [], []
    wandb = SimpleNamespace(init=lambda **about: logged.append(about) or SimpleNamespace(log=lambda record, step: logged.append((step, record))))
    writer = SimpleNamespace(add_scalar=lambda *scalar: scalars.append(scalar), flush=lambda: None)
    board = SimpleNamespace(SummaryWriter=lambda folder, purge_step: scalars.append((folder, purge_step)) or writer)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    config = stage2(small, wandb="mine", tensorboard=True, log_interval=8, checkpoint_interval=8)
    lines = metrics_of(config)
    assert logged[0]["project"] == "mine" and logged[0]["config"]["seed"] == 1 and logged[1:] == [(line["step"], line) for line in lines]
    assert scalars[0] == (os.path.join(config.run_dir, "tensorboard"), 1) and ("loss", lines[0]["loss"], 8) in scalars
    os.remove(os.path.join(config.run_dir, "checkpoint.pt"))
    stage2(small, wandb="mine", log_interval=8, checkpoint_interval=8)
    assert len({about["id"] for about in logged if isinstance(about, dict)}) == 1  # it goes on in the same one
    wandb.init = lambda **about: 1 / 0
    os.remove(os.path.join(config.run_dir, "checkpoint.pt"))
    with pytest.raises(UserError, match="^wandb: division by zero; train without"):
        stage2(small, wandb="mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        stage2(small, "other", wandb="mine")


def test_facts_are_in_stage_2_only(small):
    assert not any("loss_facts" in line for line in metrics_of(stage1(small)))
    assert any("loss_facts" in line for line in metrics_of(stage2(small, **PREALIGN)))


def test_finished_run_is_left_alone(small, capsys):
    config = stage2(small)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(config.run_dir).iterdir()}
    stage2(small)
    assert "is finished (16 steps)" in capsys.readouterr().out
    assert files == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(config.run_dir).iterdir()}


# ---- resume ----

class Killed(Exception):
    """In place of SIGKILL: nothing after it is run."""


def killed_after(step: int, monkeypatch, how=Killed):
    """From here on, runs are interrupted when the line of `step` has been written."""
    write = training.Log.line

    def line(self, at, *rest, **more):
        write(self, at, *rest, **more)
        if at == step:
            if how is Killed:
                raise Killed
            os.kill(os.getpid(), how)
    monkeypatch.setattr(training.Log, "line", line)


def run_stage(number: int, config: Config) -> Config:
    """Stage 1, or stage 2 with codeswitching, from the stage 1 that is there."""
    return stage1(config) if number == 1 else stage2(config, **PREALIGN)


@pytest.mark.parametrize("stage, step", [(1, 6), (2, 14)])  # checkpoints are at 5, 8, 10, 15 and 16
@pytest.mark.parametrize("how", [Killed, signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_goes_on_as_if_nothing_had_happened(small, monkeypatch, capsys, stage, step, how):
    broken = replace(small, out_dir=small.out_dir + "-broken")
    for earlier in range(1, stage):
        run_stage(earlier, small), run_stage(earlier, broken)
    straight = run_stage(stage, small)
    with monkeypatch.context() as patch:
        killed_after(step, patch, how)
        with pytest.raises(Killed if how is Killed else SystemExit) as stopped:
            run_stage(stage, broken)
    if how is not Killed:
        assert stopped.value.code == 128 + how
        path = Path(broken.out_dir, "align" if stage == 1 else "prealign", "seed1", "checkpoint.pt")
        assert f"stopped at step {step + 1} of {8 * stage}, saved to {path}; run the same command to go on" in capsys.readouterr().out
        assert load_checkpoint(str(path))["step"] == step + 1
    resumed = run_stage(stage, broken)
    assert_same_run(straight, resumed)
    assert [line["step"] for line in metrics_of(resumed)] == list(range(8 * stage - 7, 8 * stage + 1))


COMMAND_THAT_IS_KILLED = """
import os, train
from runtime import config
write = train.Log.line

def line(self, step, *rest, **more):
    write(self, step, *rest, **more)
    if step == 13:
        os.kill(os.getpid(), {})

train.Log.line = line
config.run(train.main)
"""


@pytest.mark.parametrize("how, code, last_line", [(signal.SIGTERM, 143, 14), (signal.SIGKILL, -9, 13)])
def test_killed_command_goes_on_as_if_nothing_had_happened(small, how, code, last_line):
    straight, broken = stage2(small, codeswitch_ratio=0.3), replace(small, method="broken", codeswitch_ratio=0.3)
    result = run_command("-c", COMMAND_THAT_IS_KILLED.format(int(how)), *overrides(broken))
    assert result.returncode == code and "Traceback" not in result.stderr
    assert metrics_of(broken)[-1]["step"] == last_line
    if how == signal.SIGTERM:
        assert "stopped at step 14 of 16, saved to " in result.stdout.splitlines()[-1]
    assert_same_run(straight, stage2(broken, "broken"))


def test_signals_are_the_callers_again_after_a_run(small, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stage2(small)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    killed_after(7, monkeypatch, signal.SIGTERM)
    pytest.raises(SystemExit, stage2, small, "stopped")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_half_a_line_of_metrics_is_dropped(small, monkeypatch):
    straight = stage2(small)
    with monkeypatch.context() as patch:
        killed_after(13, patch)
        with pytest.raises(Killed):
            stage2(small, "broken")
    with open(Path(small.out_dir, "broken", "seed1", "metrics.jsonl"), "a") as f:
        f.write('{"step": 14, "tok')
    assert_same_run(straight, stage2(small, "broken"))


def test_knobs_that_do_not_change_the_result_may_differ_on_resume(small, monkeypatch):
    straight = stage2(small)
    with monkeypatch.context() as patch:
        killed_after(13, patch)
        with pytest.raises(Killed):
            stage2(small, "broken")
    changes = dict(micro_batch_size=2, checkpoint_interval=3, eval_tokens=5, eval_words=7, eval_batch_size=9, workers=3)
    assert_close_run(straight, stage2(small, "broken", **changes))


# ---- several processes ----

def in_two_processes(program: str, config: Config) -> Config:
    result = run_command("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program, *overrides(config))
    assert result.returncode == 0, result.stderr
    return config


def test_two_processes_compute_what_one_does(small):
    """Rows, accumulated gradients, and words of the contrastive loss spread over processes: 2 of each process's 4 rows at a time."""
    one = replace(small, micro_batch_size=2, codeswitch_ratio=0.3, align_weight=0.5, align_steps="all", align_entries=17)
    two = in_two_processes("prealign.py", replace(one, out_dir=small.out_dir + "2"))
    assert_close_run(stage1(one), two.stage1())
    assert_close_run(stage2(two, "one", init_from="align"), in_two_processes("train.py", replace(two, method="two", init_from="align")))


def test_batch_that_cannot_be_shared_evenly_is_an_error(small):
    with pytest.raises(UserError, match=r"batch_size \(8\) must be a multiple of the number of processes \(3\)"):
        training.run(small, 0, 1, Hardware(torch.device("cpu"), torch.float32, 0, 3, None))


# ---- snapshots ----

def test_snapshots_are_the_weights_of_their_steps_and_change_nothing(small):
    kept = stage2(small, "kept", snapshot_interval=6)
    plain = stage2(small, "kept", out_dir=small.out_dir + "2")
    assert_same_run(kept, plain)
    folder = Path(kept.run_dir, "snapshots")
    assert sorted(os.listdir(folder)) == ["00000006.pt", "00000012.pt"] and not Path(plain.run_dir, "snapshots").exists()
    data = Folder(small.data_dir)
    train(replace(small, method="six", out_dir=small.out_dir + "3", checkpoint_interval=6), 0, 6)
    model, state = load_trained(kept.run_dir, data, snapshot="snapshots/00000006.pt")
    six = state_of(replace(small, method="six", out_dir=small.out_dir + "3"))
    assert (state["step"], state["tokens"]) == (6, 6 * 8 * 32)
    assert all(torch.equal(weight, six["model"][name]) for name, weight in model.state_dict().items())


def test_a_run_that_ends_before_its_checkpoint_is_written_makes_the_snapshot_again(small, monkeypatch):
    """Of the same step: were the checkpoint first, the run would go on after it without the snapshot."""
    save, written = training.save_checkpoint, []

    def killed_at_once(path, state):
        written.append(os.path.basename(path))
        save(path, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", killed_at_once)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(replace(small, method="kept", snapshot_interval=6, checkpoint_interval=6), 0, 12)
    assert written == ["00000006.pt", "00000006.pt"]


# ---- what a run begins with ----

def initial(config: Config) -> torch.nn.Module:
    data = Folder(config.data_dir)
    torch.manual_seed(config.seed)
    model = make_model(config, data.vocab_size)
    initial_state(model, config, data)
    return model


@pytest.mark.parametrize("tie", [True, False])
def test_golden_initialisation_makes_a_sentence_and_its_clone_alike(small, tie):
    data, model = Folder(small.data_dir), initial(replace(small, init_from="golden", tie_embeddings=tie))
    ids = torch.from_numpy(data.tokens("en", "val")[:64].astype(np.int64)).view(2, 32)
    for en, clone in zip(model.layers(ids), model.layers(torch.from_numpy(data.to_language(ids.numpy(), "clone")))):
        assert torch.equal(en, clone)
    assert torch.equal(model.lm_head.weight[:data.V], model.lm_head.weight[data.ids_of("clone")])
    assert torch.equal(model.wte.weight[:data.V], initial(small).wte.weight[:data.V])  # English is as from scratch


def test_stage_2_begins_with_the_weights_of_stage_1(small):
    aligned = state_of(stage1(small))["model"]
    for name, weight in initial(replace(small, init_from="align")).state_dict().items():
        assert torch.equal(weight, aligned[name]), name


def test_stage_1_of_a_part_of_the_table_is_a_run_of_its_own(small):
    part = replace(small, align_coverage=0.25)
    stage1(part), stage1(small)
    assert set(os.listdir(small.out_dir)) == {"align", "align25"}
    assert stage2(part, "coverage25", init_from="align", codeswitch_ratio=0.3).stage1_dir.endswith("align25/seed1")
    assert not torch.equal(state_of(part.stage1())["model"]["wte.weight"], state_of(small.stage1())["model"]["wte.weight"])


@pytest.mark.parametrize("by_name", [True, False])
def test_init_from_another_run(small, by_name):
    joint = stage2(small)
    origin = "joint" if by_name else joint.run_dir
    for name, weight in initial(replace(small, init_from=origin)).state_dict().items():
        assert torch.equal(weight, state_of(joint)["model"][name]), name
    further = stage2(small, "further", init_from=origin, max_steps=20)
    assert [line["step"] for line in metrics_of(further)] == list(range(1, 21))  # a schedule and an optimizer of its own
    assert state_of(further)["tokens"] == (16 + 20) * 8 * 32


def test_tokens_of_both_stages_are_counted(small):
    assert state_of(stage1(small))["tokens"] == 8 * 8 * 32
    assert state_of(stage2(small, **PREALIGN))["tokens"] == state_of(stage2(small))["tokens"] == 16 * 8 * 32


def test_seeds_differ_and_repeat(small):
    a, b = initial(small).wte.weight, initial(replace(small, seed=2)).wte.weight
    assert not torch.equal(a, b) and torch.equal(a, initial(small).wte.weight)


def test_every_method_sees_the_same_rows_at_the_same_step(small, monkeypatch):
    seen = {}

    class Recorder(Sampler):
        def batch(self, rows):
            seen[self.config.method, rows[0] // 8] = super().batch(rows)
            return seen[self.config.method, rows[0] // 8]

    monkeypatch.setattr(training, "Sampler", Recorder)
    stage1(small), stage2(small, "prealign", init_from="align"), stage2(small, "joint")
    steps = {method: sorted(step for m, step in seen if m == method) for method in ("align", "prealign", "joint")}
    assert steps == {"align": list(range(8)), "prealign": list(range(8, 16)), "joint": list(range(16))}
    for step in range(16):
        mine = seen["align" if step < 8 else "prealign", step]
        assert np.array_equal(mine.inputs, seen["joint", step].inputs) and np.array_equal(mine.targets, seen["joint", step].targets)


def test_alignment_on_the_fly(small):
    lines = metrics_of(stage2(small, "on-the-fly", align_steps="all"))
    assert len(lines) == 16 and all(line["align_loss"] > 0 for line in lines)
    assert not any("align_loss" in line for line in metrics_of(stage2(small)))


def test_post_alignment_is_joint_training_and_then_alignment(small):
    """Until the alignment begins it is joint training of that many steps; then the schedule begins again. The rows are joint's."""
    post = metrics_of(stage2(small, "post", align_steps="last", stage1_steps=6, log_interval=4, checkpoint_interval=100))
    joint = metrics_of(stage2(small, "joint", stage1_steps=6, log_interval=4, checkpoint_interval=100))
    assert [line["step"] for line in post] == [4, 8, 12, 16]
    assert ["align_loss" in line for line in post] == [False, False, True, True]
    schedule = Config(max_steps=10, stage1_steps=6, learning_rate=small.learning_rate)
    assert [line["lr"] for line in post[:2]] == [learning_rate(step, schedule) for step in (3, 7)]
    assert [line["lr"] for line in post[2:]] == [learning_rate(step, replace(schedule, max_steps=6, stage1_steps=0)) for step in (1, 5)]
    assert [line["tokens"] for line in post] == [line["tokens"] for line in joint]


def test_a_line_of_steps_with_and_without_alignment_has_the_mean_of_those_with_it(small):
    every, fourth = (metrics_of(stage2(small, f"post{n}", align_steps="last", stage1_steps=6, log_interval=n, checkpoint_interval=100)) for n in (1, 4))
    assert fourth[2]["align_loss"] == pytest.approx(np.mean([line["align_loss"] for line in every[10:12]]), rel=1e-5)


# ---- runs that cannot be ----

@pytest.mark.parametrize("changes", [
    dict(learning_rate=2e-3), dict(codeswitch_ratio=0.1), dict(max_steps=20), dict(stage1_steps=4), dict(dtype="bf16"), dict(n_layer=1),
    dict(tie_embeddings=False), dict(mix={"en": 0.5, "clone": 0.5}), dict(batch_size=16)])
@pytest.mark.parametrize("finished", [True, False])
def test_another_value_of_a_knob_names_it(small, monkeypatch, changes, finished):
    with monkeypatch.context() as patch:
        killed_after(16 if finished else 7, patch, signal.SIGTERM)
        stage2(small) if finished else pytest.raises(SystemExit, stage2, small)
    (knob, value), = changes.items()
    with pytest.raises(UserError) as error:
        stage2(small, **changes)
    here, there = (json.loads(json.dumps(v)) for v in (value, getattr(small, knob)))
    assert f"was made with another {knob} (there {there!r}, here {here!r});" in str(error.value)
    assert str(Path(small.run_dir, "checkpoint.pt")) in str(error.value)


@pytest.fixture(scope="module")
def other_data(tiny, tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("other")
    (folder / "text.txt").write_text(make_text(seed=1), encoding="utf-8")
    config = replace(tiny, data_dir=str(folder / "data"), source=str(folder / "text.txt"))
    prepare(config)
    return config


def test_other_data_is_an_error(small, other_data):
    joint = stage2(small)
    with pytest.raises(UserError, match="made from other data than"):
        stage2(small, data_dir=other_data.data_dir)
    with pytest.raises(UserError, match="made from other data than"):
        load_trained(joint.run_dir, Folder(other_data.data_dir))
    stage1(small)
    with pytest.raises(UserError, match="made from other data than"):
        stage2(small, "prealign", init_from="align", data_dir=other_data.data_dir)


def test_stage_2_needs_a_finished_stage_1_of_the_same_model(small, monkeypatch):
    with pytest.raises(UserError, match=r"there is no checkpoint .*align/seed1/checkpoint.pt; run `python prealign.py`"):
        stage2(small, **PREALIGN)
    with monkeypatch.context() as patch:
        killed_after(4, patch, signal.SIGTERM)
        pytest.raises(SystemExit, stage1, small)
    with pytest.raises(UserError, match="stopped at step 5 of 8; finish that run first"):
        stage2(small, **PREALIGN)
    stage1(small)
    for knob, value in (("n_embd", 16), ("block_size", 24), ("stage1_steps", 4), ("align_tau", 0.5), ("mix", {"en": 1.0})):
        with pytest.raises(UserError, match=rf"made with another .*{knob} \(there"):
            stage2(small, **PREALIGN, **{knob: value})
    with pytest.raises(UserError, match="there is no checkpoint .*align/seed2/checkpoint.pt"):
        stage2(small, seed=2, **PREALIGN)
    stage2(small, **PREALIGN)


def test_init_from_nowhere_says_what_it_may_be(small, tmp_path):
    with pytest.raises(UserError, match='expected "scratch", "align", "golden", "hf:FOLDER", a method with a finished run in out_dir, or the folder of a run'):
        stage2(small, init_from=str(tmp_path / "nowhere"))


def test_stage_2_without_steps_is_an_error(small):
    with pytest.raises(UserError, match=r"max_steps \(8\) must exceed stage1_steps \(8\)"):
        stage2(small, max_steps=8, init_from="align")
    with pytest.raises(UserError, match="facts are stated after"):
        stage2(small, max_steps=8)


def test_a_users_mistake_is_one_line(small):
    result = run_command("train.py", *overrides(small, **PREALIGN))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: init_from=align: there is no checkpoint") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("device, message", [("cuda", "this torch sees no CUDA devices"), ("gpu", "expected auto, cpu, cuda or cuda:N, found 'gpu'")])
def test_a_device_that_is_not_there_is_an_error(small, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        stage2(small, device=device)


def spoil_steps(monkeypatch, bad: set[int]) -> None:
    """Gradients of these steps are not finite."""
    take_step = training.take_step

    def spoiled(state, step, *rest):
        hook = state.model.ln_f.bias.register_hook(lambda grad: grad * float("nan")) if step in bad else None
        take_step(state, step, *rest)
        if hook is not None:
            hook.remove()

    monkeypatch.setattr(training, "take_step", spoiled)


def test_a_step_whose_gradient_is_not_finite_changes_nothing(small, monkeypatch):
    """Weights, moments and the optimizer's own count of steps stay as they were, and its loss is in no line."""
    spoil_steps(monkeypatch, {15})
    skipped = stage2(small, "skipped", max_skipped_steps=1, checkpoint_interval=15)
    monkeypatch.undo()
    plain = stage2(small, "plain")
    mine, theirs = state_of(skipped), state_of(plain)
    assert losses_of(skipped)[:15] == losses_of(plain)[:15] and "loss" not in metrics_of(skipped)[15] and metrics_of(plain)[15]["loss"] > 0
    assert mine["step"] == 16 and {float(moments["step"]) for moments in mine["optimizer"]["state"].values()} == {15.0}
    assert {float(moments["step"]) for moments in theirs["optimizer"]["state"].values()} == {16.0}
    before = stage2(small, "before", max_skipped_steps=1, snapshot_interval=15)
    kept = torch.load(Path(before.run_dir, "snapshots", "00000015.pt"), weights_only=True)["model"]
    assert all(torch.equal(weight, kept[name]) for name, weight in mine["model"].items())


def test_skipped_steps_are_counted_over_interruptions(small, monkeypatch):
    """One skipped before the checkpoint and one after it are two."""
    spoil_steps(monkeypatch, {3, 12})
    config = replace(small, max_skipped_steps=1, checkpoint_interval=5, log_interval=5)
    with pytest.raises(UserError, match="not finite in 2 steps, last in step 12"):
        stage2(config)
    with pytest.raises(UserError, match="not finite in 2 steps, last in step 12"):
        stage2(config)


def test_float16_without_any_finite_gradient_stops(small, monkeypatch):
    spoil_steps(monkeypatch, set(range(100)))
    with pytest.raises(UserError, match="not finite at any scale of the loss"):
        stage2(small, dtype="fp16", max_steps=40, log_interval=10, checkpoint_interval=40)


def test_too_many_such_steps_stop_the_run_and_say_where_the_rows_are(small, monkeypatch):
    spoil_steps(monkeypatch, {5, 7})
    config = replace(small, max_skipped_steps=1, log_interval=2, checkpoint_interval=6)
    with pytest.raises(UserError, match=r"not finite in 2 steps, last in step 7, whose rows are the windows .*; these steps changed nothing; the last checkpoint is") as e:
        stage2(config)
    windows = Sampler(Folder(small.data_dir), small).windows_of_step(7)
    assert ", ".join(f"{name} {window}" for name, window in windows) in str(e.value)
    state = state_of(replace(small, method="joint"))
    assert state["step"] == 6 and all(weight.isfinite().all() for weight in state["model"].values())


def test_a_loss_that_explodes_stops_the_run_and_is_not_saved(small):
    with pytest.raises(UserError, match="not finite .*smaller learning_rate"):
        stage2(small, learning_rate=1e30, checkpoint_interval=3, log_interval=100)
    path = Path(small.run_dir, "checkpoint.pt")
    assert not path.exists() or all(weight.isfinite().all() for weight in load_checkpoint(str(path))["model"].values())


# ---- checkpoints ----

class Code:
    """Unpickled, this makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def spoil(path: Path, how: str, marker: Path) -> None:
    whole = path.read_bytes()
    if how == "zip with code":
        torch.save({**torch.load(path), "config": Code(marker)}, path)
    elif how == "another program's":
        torch.save({"model": {}, "step": 3}, path)
    elif how == "a list":
        torch.save([1, 2, 3], path)
    else:
        path.write_bytes({"empty": b"", "garbage": b"not a checkpoint\n" * 99, "half": whole[:len(whole) // 2], "but the last byte": whole[:-1],
                          "pickle with code": pickle.dumps(Code(marker))}[how])


@pytest.mark.parametrize("how", ["empty", "garbage", "half", "but the last byte", "pickle with code", "zip with code", "another program's", "a list"])
def test_a_spoiled_checkpoint_is_an_error_and_runs_no_code(small, tmp_path, how):
    config, marker = stage2(small, max_steps=9, stage1_steps=2), tmp_path / "code was run"
    path = Path(config.run_dir, "checkpoint.pt")
    spoil(path, how, marker)
    spoiled = path.read_bytes()
    for read in (lambda: stage2(config), lambda: load_trained(config.run_dir, Folder(config.data_dir)),
                 lambda: stage2(config, "other", init_from=config.run_dir)):
        with pytest.raises(UserError) as error:
            read()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not marker.exists()
    assert path.read_bytes() == spoiled  # nobody's work is written over


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(small, monkeypatch):
    straight = stage2(small, "straight")

    def full_disk(state, file):
        if state["step"] < 10:
            return save(state, file)
        file.write(b"PK" * 1000)
        raise OSError(28, "No space left on device")

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(UserError, match="cannot write .*No space left on device.*the checkpoint before it is whole"):
            stage2(small)
    assert sorted(os.listdir(small.run_dir)) == ["checkpoint.pt", "metrics.jsonl", "run.json"]
    assert state_of(small)["step"] == 5
    assert_same_run(straight, stage2(small))


def test_a_checkpoint_is_replaced_in_one_go(tmp_path, monkeypatch):
    """Whatever is at the path while another one is written can be read."""
    path, save, seen = str(tmp_path / "checkpoint.pt"), torch.save, []

    def watched(state, file):
        save(state, file)
        seen.append(torch.load(path)["n"] if os.path.exists(path) else None)

    monkeypatch.setattr(torch, "save", watched)
    for n in range(3):
        save_checkpoint(path, {"n": n})
    assert seen == [None, 0, 1] and torch.load(path)["n"] == 2 and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_load_trained_gives_the_model_in_eval_mode(small):
    config = stage2(small)
    model, state = load_trained(config.run_dir, Folder(config.data_dir))
    assert not model.training and state["step"] == 16
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state["model"][name])


def test_load_trained_refuses_an_unfinished_run(small, monkeypatch):
    data = Folder(small.data_dir)
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_trained(small.run_dir, data)
    killed_after(7, monkeypatch, signal.SIGTERM)
    pytest.raises(SystemExit, stage2, small)
    with pytest.raises(UserError, match="the run stopped at step 8 of 16; run its command again"):
        load_trained(small.run_dir, data)


# ---- precision and compilation ----

@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.02), ("fp16", 0.005)])
def test_half_precision_trains_like_full_precision(small, dtype, tolerance):
    small = replace(small, stage1_steps=2, max_steps=9)
    for run in (stage1, stage2):
        full, half = run(small), run(replace(small, out_dir=small.out_dir + dtype), dtype=dtype)
        assert [line["loss"] for line in metrics_of(half)] == pytest.approx([line["loss"] for line in metrics_of(full)], rel=tolerance)
        assert all(weight.dtype == torch.float32 for weight in state_of(half)["model"].values())


class NothingIsRead(TorchDispatchMode):
    """
    While it is entered, it is an error that a tensor's value becomes a number, an array or a shape: on a GPU the CPU would wait
    for it; so it would where a number is copied into a tensor. Tensors of the types `but` may be read.
    """

    def __init__(self, but: tuple[torch.dtype, ...] = ()):
        super().__init__()
        self.but = but

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in ("tolist", "cpu", "numpy"):
            self.patch.setattr(torch.Tensor, name, self.checked(name, getattr(torch.Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def checked(self, name, method):
        def call(tensor, *args, **kwargs):
            self.check(name, [tensor])
            return method(tensor, *args, **kwargs)
        return call

    def check(self, name, read):
        if any(tensor.dtype not in self.but for tensor in read):
            raise AssertionError(f"{name} in a step")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = ("_local_scalar_dense", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
                 "repeat_interleave", "lift_fresh")
        if func.name().split("::")[1].split(".")[0] in reads:
            self.check(func.name(), [args[0]])
        if func.name().startswith("aten::index") and isinstance(args[1], (list, tuple)):  # a mask is searched for what it selects
            self.check(func.name(), [index for index in args[1] if index is not None and index.dtype == torch.bool])
        return func(*args, **(kwargs or {}))


def put_zero(x):
    x[x.long() - 1] = 0


@pytest.mark.parametrize("read", [
    lambda x: x.item(), lambda x: bool(x > 0), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.numpy(),
    lambda x: x.unique(), lambda x: x.long().bincount(), lambda x: x.repeat_interleave(x.long()), lambda x: torch.tensor(1.0), put_zero])
def test_what_would_wait_is_noticed(read):
    with NothingIsRead(), pytest.raises(AssertionError, match="in a step"):
        read(torch.ones(1))


@pytest.mark.parametrize("aligned", [False, True])
def test_a_step_waits_for_nothing(small, aligned):
    """Nothing that a GPU computes is read. What stage 1 reads are the words of the batch, integers on the CPU."""
    config = replace(small, align_steps="all" if aligned else "none", codeswitch_ratio=0.3)
    data, hardware = Folder(config.data_dir), Hardware(torch.device("cpu"), torch.bfloat16, 0, 1, None)
    state = training.set_up(config, hardware, data, make_model(config, data.vocab_size))
    for step in range(4, 6):  # in the first one libraries load, and the optimizer makes its moments
        batch, words = state.batch(step)
        with NothingIsRead(but=(torch.int64, torch.bool) if aligned else ()):
            training.take_step(state, step, batch, words, 100)


@pytest.mark.parametrize("reason", [RuntimeError("no compiler\nin four lines"), AssertionError()])
def test_without_a_compiler_training_goes_on(small, monkeypatch, capsys, reason):
    def broken(*_, **__):
        raise reason

    monkeypatch.setattr(torch, "compile", broken)
    plain, compiled = stage2(small), stage2(small, "compiled", compile="on")
    assert f"torch.compile does not work here ({type(reason).__name__}" in capsys.readouterr().out
    assert_same_run(plain, compiled)


def test_a_compiled_run_is_like_one_that_is_not(small, capsys):
    """And the step that tries the compiler leaves nothing behind, and nothing is compiled after it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    small = replace(small, micro_batch_size=3, dtype="bf16")  # micro-batches of three, three and two rows; of three and one in two processes
    plain, compiled = stage2(small), stage2(small, "compiled", compile="on")
    if "does not work here" in capsys.readouterr().out:
        pytest.skip("no compiler here")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    two = in_two_processes("train.py", replace(compiled, out_dir=small.out_dir + "2"))
    assert [line["loss"] for line in losses_of(two)] == pytest.approx([line["loss"] for line in losses_of(plain)], rel=1e-3)
    assert [line["loss"] for line in losses_of(compiled)] == pytest.approx([line["loss"] for line in losses_of(plain)], rel=1e-3)


def test_measured_speed_is_that_of_a_matrix_product(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < training.matmul_rate(Hardware(torch.device("cpu"), torch.float32, 0, 1, None)) < 1e14
