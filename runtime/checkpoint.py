"""
Models on disk: what a checkpoint holds, when one may be gone on with, and what a run begins with.

A checkpoint is written beside its place and moved there, so that whatever happens there is a whole one, and read without
running code from it.
"""

import contextlib
import os
import zipfile
from typing import Any

import torch

from runtime import config as configs
from runtime.config import Config
from runtime.errors import UserError, is_out_of_memory
from runtime.gpt2 import load_gpt2
from model import GPT

SHAPE = ("block_size", "n_layer", "n_head", "n_embd", "tie_embeddings")
# Knobs that change how a run is carried out, not what it computes: they may differ when it is resumed.
FREE = ("data_dir", "out_dir", "workers", "micro_batch_size", "device", "compile", "log_interval", "checkpoint_interval",
        "snapshot_interval", "max_skipped_steps", "wandb", "tensorboard", "prompt", "dry_run", *(k for k in configs.FIELDS if k.startswith(("eval_", "sample_", "nli_", "llm_"))))
FIXED = tuple(k for k in configs.FIELDS if k not in FREE)
FIXED_IN_STAGE_1 = tuple(k for k in FIXED if k != "init_from")  # what stage 1 began with is its own affair


def make_model(config: Config, vocab_size: int) -> GPT:
    return GPT(vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd, config.tie_embeddings,
               config.init_std, config.embedding_init_std)


@torch.no_grad()
def make_golden(model: GPT, data: Any) -> None:
    """Give every token of En-Clone the embeddings of its English twin: perfect alignment, the upper bound of stage 1."""
    if "clone" not in data.languages:
        raise UserError(f"init_from=golden copies English's embeddings to En-Clone's, and {data.dir} has no En-Clone")
    for weight in {model.wte.weight, model.lm_head.weight}:
        weight[data.offsets["clone"]:data.vocab_size] = weight[:data.V]


def check_sums(path: str) -> None:
    """Raises zipfile.BadZipFile, or what else its reader raises, unless every part of a checkpoint has the checksum written with it."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not as it was written")


def save_checkpoint(path: str, state: dict) -> None:
    """
    Write `state` so that whatever happens there is a whole checkpoint at `path`: this one, read back and compared with its checksums,
    or the one before.
    """
    try:
        with open(path + ".tmp", "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        check_sums(path + ".tmp")
        os.replace(path + ".tmp", path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as e:
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        if is_out_of_memory(e):
            raise
        raise UserError(f"cannot write {path}: {e}; the checkpoint before it is whole: make room and run the same command again") from e


FIELDS = {"model": dict, "optimizer": dict, "scaler": dict, "rng": torch.Tensor, "step": int, "last_step": int, "tokens": int, "config": dict, "data": str,
         "vocab_size": int, "skipped": list}  # what a checkpoint holds


def load_checkpoint(path: str) -> dict:
    """A checkpoint, on the CPU, its checksums and kinds compared. Never runs code from the file."""
    try:
        check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        wrong = [name for name, kind in FIELDS.items() if not isinstance(state.get(name), kind)]
        wrong += [name for name, value in state["model"].items() if not isinstance(value, torch.Tensor)] if not wrong else []
    except FileNotFoundError as e:
        raise UserError(f"there is no checkpoint {path}") from e
    except (PermissionError, IsADirectoryError) as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except Exception as e:  # torch.load raises what its unpickler and zip reader raise
        if is_out_of_memory(e):
            raise
        raise UserError(f"{path}: not a whole checkpoint ({type(e).__name__}); delete its folder to train anew") from e
    sound = not wrong and 0 <= state["step"] <= state["last_step"] and state["rng"].dtype == torch.uint8 and [type(n) for n in state["skipped"]] == [int, int]
    if not sound:
        raise UserError(f"{path}: not a checkpoint of this version of the project ({', '.join(map(str, wrong[:5])) or 'step, rng or skipped'} is missing or of the wrong kind); "
                        "delete its folder to train anew")
    return state


def check_matches(state: dict, path: str, config: Config, data: Any, knobs: tuple[str, ...]) -> None:
    """Refuse a checkpoint made from other data, or with other values of `knobs`."""
    if state["data"] != data.fingerprint or state["vocab_size"] != data.vocab_size:
        raise UserError(f"{path} was made from other data than {data.dir}; delete its folder to train anew, or point data_dir to its own data")
    mine, theirs = config.plain(), Config().plain() | state["config"]  # a knob that is newer than the checkpoint had its default then
    different = [f"{k} (there {theirs[k]!r}, here {mine[k]!r})" for k in knobs if theirs[k] != mine[k]]
    if different:
        another = "--out_dir" if config.method == config.stage1_method else "--method or --out_dir"
        raise UserError(f"{path} was made with another {', '.join(different)}; use the same values in both stages, another {another}, or delete its folder")


def load_trained(run_dir: str, data: Any, device: torch.device | str = "cpu", snapshot: str = "") -> tuple[GPT, dict]:
    """
    The model of a finished run, or as it was at a snapshot, in eval mode, and its checkpoint. Raises UserError when the run is
    unfinished or of other data.
    """
    path = os.path.join(run_dir, snapshot or "checkpoint.pt")
    state = load_checkpoint(path)
    if state["step"] < state["last_step"] and not snapshot:
        raise UserError(f"{path}: the run stopped at step {state['step']} of {state['last_step']}; run its command again to finish it")
    config = configs.from_plain(state["config"], path)
    check_matches(state, path, config, data, ())
    check_shape(state, config, path)
    model = make_model(config, data.vocab_size)
    load_weights(model, state, path)
    return model.to(device).eval(), state


def check_shape(state: dict, config: Config, path: str) -> None:
    """Before a model is made as a checkpoint's config says: whether its weights are of that size."""
    blocks = {name.split(".")[1] for name in state["model"] if name.startswith("blocks.")}
    found = len(blocks), *(tuple(state["model"][name].shape) if name in state["model"] else None for name in ("wte.weight", "wpe.weight"))
    expected = config.n_layer, (state["vocab_size"], config.n_embd), (config.block_size, config.n_embd)
    if found != expected:
        raise UserError(f"{path}: expected blocks, token and position embeddings {expected} by its config, found {found}")


def load_weights(model: GPT, state: dict, path: str) -> None:
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as e:
        if is_out_of_memory(e):
            raise
        raise UserError(f"{path}: its weights do not fit the model ({str(e).splitlines()[-1].strip()})") from e
    if not all(p.isfinite().all() for p in model.parameters()):
        raise UserError(f"{path}: some of its weights are not finite numbers")


def initial_state(model: GPT, config: Config, data: Any) -> dict | None:
    """Set the weights as init_from says. Returns the checkpoint that they are from, if any."""
    if config.init_from == "scratch":
        return None
    if config.init_from == "golden":
        return make_golden(model, data)
    if config.pretrained:
        return load_gpt2(model, config.pretrained, data.V)
    run_dir = config.stage1_dir if config.init_from == "align" else config.init_from
    if os.sep not in run_dir:  # another method's run
        run_dir = os.path.join(config.out_dir, run_dir, f"seed{config.seed}")
    path = os.path.join(run_dir, "checkpoint.pt")
    if not os.path.exists(path):
        hint = "run `python prealign.py` with the same config first" if config.init_from == "align" else \
            'expected "scratch", "align", "golden", "hf:FOLDER", a method with a finished run in out_dir, or the folder of a run'
        raise UserError(f"init_from={config.init_from}: there is no checkpoint {path}; {hint}")
    state = load_checkpoint(path)
    if state["step"] < state["last_step"]:
        raise UserError(f"{path}: stopped at step {state['step']} of {state['last_step']}; finish that run first")
    check_matches(state, path, *((config.stage1(), data, FIXED_IN_STAGE_1) if config.init_from == "align" else (config, data, SHAPE)))
    load_weights(model, state, path)
    return state
