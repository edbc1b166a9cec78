"""Models on disk: checkpoints, whether they may be resumed, and what a run begins with."""

import os
import zipfile
from typing import Any

import torch

from model import GPT
from runtime.config import FIELDS, Config, from_plain
from runtime.errors import UserError, is_out_of_memory
from runtime.files import replacing
from runtime.gpt2 import load_gpt2

# What every checkpoint holds.
STATE = {"model", "optimizer", "scaler", "step", "last_step", "tokens", "config", "data", "vocab_size"}
# Knobs that change how a run is carried out, not what it computes: they may differ when it is resumed.
FREE = ("data_dir", "out_dir", "workers", "micro_batch_size", "device", "compile", "log_interval",
        "checkpoint_interval", "snapshot_interval", "wandb", "prompt", "dry_run",
        *(k for k in FIELDS if k.startswith(("eval_", "sample_", "nli_", "llm_"))))
FIXED = tuple(k for k in FIELDS if k not in FREE)


def make_model(config: Config, vocab_size: int) -> GPT:
    return GPT(vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd, config.tie_embeddings,
               config.init_std, config.embedding_init_std)


def save_checkpoint(path: str, state: dict) -> None:
    """Writes `state` so that whatever happens there is a whole checkpoint at `path`: this one or the one before."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(path) as f:
            torch.save(state, f)
    # torch has a RuntimeError of its own for a full disk.
    except (OSError, RuntimeError) as e:
        if is_out_of_memory(e):
            raise
        raise UserError(f"cannot write {path}: {e}; the checkpoint before it is whole: make room and run the same "
                        "command again") from e


def load_checkpoint(path: str, finished: bool = False) -> dict:
    """A checkpoint, on the CPU. Raises UserError for what is damaged, none of this version or not `finished`."""
    try:
        # torch.load does not look at the checksums that the zip format has.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        # Runs no code from the file.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or not STATE <= set(state):
            raise ValueError("not of this version of the project")
    except FileNotFoundError as e:
        raise UserError(f"there is no checkpoint {path}; run prealign.py or train.py first, with the same "
                        "config") from e
    # torch's unpickler and zip reader raise all kinds.
    except Exception as e:
        if is_out_of_memory(e):
            raise
        raise UserError(f"{path}: not a whole checkpoint ({type(e).__name__}: {' '.join(str(e).split())[:80]}); delete "
                        "its folder to train anew") from e
    if finished and state["step"] < state["last_step"]:
        raise UserError(f"{path}: the run stopped at step {state['step']} of {state['last_step']}; run its command "
                        "again to finish it")
    return state


def check_matches(state: dict, path: str, config: Config, data: Any, knobs: tuple[str, ...]) -> None:
    """Raises UserError for a checkpoint of other data than the folder `data`, or with other values of `knobs`."""
    if (state["data"], state["vocab_size"]) != (data.fingerprint, data.vocab_size):
        raise UserError(f"{path} was made from other data than {data.dir}; delete its folder to train anew, or point "
                        "data_dir to its own data")
    # A knob that is newer than the checkpoint had its default then.
    mine, theirs = config.plain(), Config().plain() | state["config"]
    different = [f"{k} (there {theirs[k]!r}, here {mine[k]!r})" for k in knobs if theirs[k] != mine[k]]
    if different:
        raise UserError(f"{path} was made with another {', '.join(different)}; use the same values, another "
                        "--method or --out_dir (one stage 1 serves every method of an out_dir), or delete its folder")


def load_trained(run_dir: str, data: Any, device: torch.device | str = "cpu", snapshot: str = "") -> tuple[GPT, dict]:
    """
    The model of a finished run, or as it was at a snapshot, in eval mode, and its checkpoint. Raises UserError when the
    run is unfinished or of other data.
    """
    # A snapshot is of a step on the way, and its run may have stopped since.
    path = os.path.join(run_dir, snapshot or "checkpoint.pt")
    state = load_checkpoint(path, finished=not snapshot)
    config = from_plain(state["config"], path)
    check_matches(state, path, config, data, ())
    model = make_model(config, data.vocab_size)
    model.load_state_dict(state["model"])
    return model.to(device).eval(), state


def initial_state(model: GPT, config: Config, data: Any) -> dict | None:
    """Sets the weights as init_from says. Returns the checkpoint that they are from, if any."""
    if config.init_from == "scratch":
        return None
    # Nothing but weights: the optimizer begins anew.
    if config.init_from == "golden":
        return make_golden(model, data)
    if config.pretrained:
        return load_gpt2(model, config.pretrained, data.V)
    path = os.path.join(config.stage1_dir, "checkpoint.pt")
    state = load_checkpoint(path, finished=True)
    # Here init_from is "align"; stage 1 began from scratch or from a model of Hugging Face's.
    check_matches(state, path, config.stage1(), data, tuple(k for k in FIXED if k != "init_from"))
    model.load_state_dict(state["model"])
    return state


@torch.no_grad()
def make_golden(model: GPT, data: Any) -> None:
    """Gives every token of En-Clone the embeddings of its English twin, meant as the upper bound of stage 1."""
    if "clone" not in data.languages:
        raise UserError(f"init_from=golden copies English's embeddings to En-Clone's, and {data.dir} has no En-Clone")
    # The two are one where embeddings are tied.
    for weight in {model.wte.weight, model.lm_head.weight}:
        weight[data.ids_of("clone")] = weight[data.ids_of(data.pivot)]
