"""What every command rests on: knobs, errors of one line, checkpoints, the machine, the log."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from conftest import error
from corpus.folder import Folder
from runtime import errors, hardware
from runtime.checkpoint import load_trained, make_model, save_checkpoint
from runtime.config import FIELDS, Config, load
from runtime.errors import UserError
from runtime.hardware import Hardware
from runtime.log import Log
from train import check_fits, train

CPU = Hardware(torch.device("cpu"), torch.float32, 0, 1, None)


# ---- knobs ----
def test_files_in_the_order_given_then_arguments(tmp_path):
    first, second = str(tmp_path / "first.py"), str(tmp_path / "second.py")
    Path(first).write_text('"""Why."""\n\nseed = 2\nn_layer = 2  # why\nmax_steps = 2000\nmax_steps = 3000\n')
    Path(second).write_text("seed = 4\n")
    assert load(["--seed=6", first, second, "--seed=5"]) == Config(seed=5, n_layer=2, max_steps=3000)
    assert load([second, first]).seed == 2


@pytest.mark.parametrize("argument, value", [
    ("--eval_tokens=200_000", 200_000), ("--learning_rate=2", 2.0), ("--tie_embeddings=False", False),
    ("--tie_embeddings=true", True), ("--method=12", "12"), ("--source=a=b", "a=b"), ("--fact_frequencies=3", (3,)),
    ("--fact_frequencies=1,2", (1, 2)), ("--targets=clone,de", ("clone", "de")), ("--targets=('clone',)", ("clone",)),
    ("--mix={'en': 1, 'clone': 0.5}", {"en": 1.0, "clone": 0.5}), ("--align_when=last", "last")])
def test_an_argument_has_the_type_of_its_knob(argument, value):
    found = getattr(load([argument]), argument[2:].partition("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("argument", [
    "--n-layer=1", "--seed=1.0", "--seed=True", "--learning_rate=nan", "--learning_rate=[1]", "--tie_embeddings=1",
    "--targets=", "--targets=(1, 2)", "--fact_frequencies=()", "--mix={1: 1.0}", "--mix={'en'", "--budget={'en': '9X'}",
    # Of the right type, and impossible.
    "--dtype=fp8", "--batch_size=0", "--batch_size=-1", "--n_embd=130", "--codeswitch_ratio=1.01", "--only=fr",
    "--learning_rate=1e999", "--learning_rate=1" + 400 * "0", "--targets=en", "--targets=../x", "--mix={'fr': 1}",
    "--mix={'en': 2, 'clone': -1}", "--mix={'en': 0}", "--method=a/b", "--max_steps=9", "--init_from=joint",
    "--align_when=last --stage1_steps=0", "--eval_tokens=1", "--vocab_size=256"])
def test_a_wrong_value_is_an_error_that_names_the_knob(argument):
    assert argument[2:].partition("=")[0] in error(load, re.split(" (?=--)", argument))


@pytest.mark.parametrize("code, line", [
    ("\nseed = __import__('os').mkdir({marker!r}) or 3", 2), ("data_dir = f'{{open({marker!r}, \"w\")}}'", 1),
    ("for seed in [1]:\n    open({marker!r}, 'w')", 1), ("seed = n_layer = 3", 1), ("# why\nblok_size = 8", 2),
    ("seed = 1\nlearning rate = 3", 2), ("seed = 1\0", 1), ("seed = " + 5000 * "[", 1), ("method = 3", 1)])
def test_what_is_no_plain_assignment_is_refused_with_its_line_and_never_run(tmp_path, code, line):
    path, marker = tmp_path / "c.py", tmp_path / "it ran"
    path.write_text(code.format(marker=str(marker)))
    assert error(load, [str(path)]).startswith(f"{path}:{line}: ") and not marker.exists()


def test_help_lists_every_knob(capsys):
    pytest.raises(SystemExit, load, ["config/missing.py", "--seed=wrong", "--help"], "\nHow to use it.\n")
    text = capsys.readouterr().out
    assert text.startswith("How to use it.\n") and re.findall(r"^    (\w+): .* = ", text, re.M) == [*FIELDS]


# ---- how commands end ----
@pytest.mark.parametrize("raised, code", [
    (UserError("what and where"), "error: what"), (FileNotFoundError(2, "No such file", "a.txt"), "error: a.txt: "),
    (MemoryError(), "error: out of memory"), (torch.OutOfMemoryError("on the GPU"), "error: out of memory"),
    (KeyboardInterrupt(), "130"), (KeyboardInterrupt(signal.SIGTERM), "143"), (ModuleNotFoundError("x"), "error: x")])
def test_a_command_ends_in_one_line_or_by_its_signal(raised, code):
    def main(arguments):
        raise raised

    with pytest.raises(SystemExit) as stopped:
        errors.run_main(main)
    assert str(stopped.value.code).startswith(code)


def test_signals_that_a_training_remembers_do_again_what_they_did_before_it():
    before = signal.getsignal(signal.SIGTERM)
    stop = errors.StopSignal()
    os.kill(os.getpid(), signal.SIGTERM)
    stop.close()
    assert stop.asked and stop.exit_code == 143 and signal.getsignal(signal.SIGTERM) == before


# ---- checkpoints ----
@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Config:
    config = replace(tiny, out_dir=str(tmp_path_factory.mktemp("out")), max_steps=9, stage1_steps=2)
    train(config, 9)
    return config


class Code:
    """Unpickled, this makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("code was run"),)


SPOILED = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte": lambda path: path.write_bytes(path.read_bytes().replace(b"fused", b"fuses", 1)),
    "with code": lambda path: torch.save({**torch.load(path), "config": Code()}, path),
    "another program's": lambda path: torch.save({"model": {}, "step": 3}, path),
    "unfinished": lambda path: torch.save(torch.load(path) | {"step": 3}, path),
    "other data": lambda path: torch.save(torch.load(path) | {"data": "other"}, path),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_is_an_error_that_names_it_and_runs_no_code(finished, tmp_path, monkeypatch, how):
    path, data = tmp_path / "checkpoint.pt", Folder(finished.data_dir)
    monkeypatch.chdir(tmp_path)
    path.write_bytes(Path(finished.run_dir, "checkpoint.pt").read_bytes())
    assert load_trained(str(tmp_path), data)[1]["step"] == 9
    SPOILED[how](path)
    assert str(path) in error(load_trained, str(tmp_path), data) and os.listdir() == ["checkpoint.pt"]


def test_whatever_happens_there_is_a_whole_checkpoint(tmp_path, monkeypatch):
    path, save = str(tmp_path / "checkpoint.pt"), torch.save
    save_checkpoint(path, {"n": 0})

    def full_disk(state, file):
        assert torch.load(path) == {"n": 0}
        save(state, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    assert path in error(save_checkpoint, path, {"n": 1})
    assert torch.load(path) == {"n": 0} and os.listdir(tmp_path) == ["checkpoint.pt"]


# ---- the machine ----
def test_a_machine_that_does_not_suit_the_config_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "device=cuda" in error(hardware.open_device, Config(device="cuda"))
    assert "batch_size" in error(check_fits, tiny, replace(CPU, world=3), Folder(tiny.data_dir))


def test_without_a_compiler_the_model_is_used_as_it_is(tiny, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: 1 / 0)
    assert hardware.compile_model(model := make_model(tiny, 10), replace(tiny, compile="on"), CPU) is model
    assert "torch.compile does not work here" in capsys.readouterr().out


# ---- the log ----
def test_run_json_and_metrics(tiny, tmp_path):
    """Lines of steps that come again are dropped, and so is half a line."""
    config, model = replace(tiny, out_dir=str(tmp_path)), make_model(tiny, 100)
    path = Path(config.run_dir, "metrics.jsonl")
    for first, last in ((0, 4), (2, 6)):
        log = Log(config, CPU, model, False, first, last)
        for step in range(first + 1, last + 1):
            log.line(step, 0.1, {"loss": 2.0, "loss_en": 1.0}, {"en": 1.5} if step == 3 else {})
        log.close()
        text = path.read_text()
        path.write_text(text + '{"step": 5, "tok')
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    expected = {"step": 3, "tokens": 3 * 8 * 32, "lr": 0.1, "loss": 2.0, "loss_en": 1.0, "held_out": {"en": 1.5}}
    assert expected.items() <= lines[2].items() and lines[2]["tokens_per_s"] > 0 and lines[2]["mfu"] > 0
    about = json.loads(Path(config.run_dir, "run.json").read_text())
    assert about["config"] == config.plain() and about["versions"]["torch"] == torch.__version__
    assert about["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_resumed_run_goes_on_in_its_own_one_at_wandb(tiny, tmp_path, monkeypatch):
    # The package need not be installed.
    wandb = MagicMock(**{"errors.Error": ConnectionError})
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config, model = replace(tiny, out_dir=str(tmp_path), wandb="mine"), make_model(tiny, 100)
    for step in (1, 2):
        Log(config, CPU, model, False, step - 1, step).line(step, 0.1, {"loss": 2.0}, {})
        assert wandb.init.return_value.log.call_args.kwargs == {"step": step}
    first, again = (call.kwargs for call in wandb.init.call_args_list)
    assert first["project"] == "mine" and first["id"] == again["id"]
    wandb.init.side_effect = ConnectionError("no key")
    assert "no key" in error(Log, config, CPU, model, False, 2, 3)
