"""
Stage 2: language-model pretraining with input-only codeswitching (section 3.2). And the one loop of both stages.

    python train.py config/demo.py config/method/joint.py
    torchrun --standalone --nproc_per_node=8 train.py config/demo.py config/method/prealign.py --codeswitch_ratio=0.1

Writes OUT_DIR/METHOD/seedSEED/: run.json (config, versions), metrics.jsonl, checkpoint.pt. The same command resumes a
run that was stopped, and leaves a finished one alone.
"""

import contextlib
import importlib
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from corpus.folder import Folder
from corpus.table import Table
from data import Batch, Sampler
from model import GPT
from runtime.checkpoint import FIXED, check_matches, initial_state, load_checkpoint, make_model, save_checkpoint
from runtime.config import Config, load
from runtime.errors import StopSignal, UserError, run_main
from runtime.files import exclusive
from runtime.hardware import Hardware, compile_model, pinned, start, to_device
from runtime.log import Log
from runtime.parallel import prefetch

# Held-out loss is of the rows of so many steps in every language: every 250 steps, 1.3% of the demo's time.
HELD_OUT_STEPS = 4

# Makes a second objective, a loss beside the language model's, as prealign.Alignment does. Its words(step) are a batch
# for a step; loss(model, words) is this process's share of the loss, and the shares add up.
MakeObjective = Callable[[Config, Table, Hardware], Any] | None


@dataclass
class Totals:
    """Sums over the steps since the last line of the log."""

    # On the device, so that no step waits for their values.
    loss: torch.Tensor         # (streams,) nats
    tokens: torch.Tensor       # (streams,) predicted tokens
    align_loss: torch.Tensor   # ()
    bad_step: torch.Tensor     # () the first step whose gradient was not finite, for all processes; -1 for none
    align_steps: int = 0

    @staticmethod
    def zeros(streams: int, device: torch.device) -> "Totals":
        return Totals(*torch.zeros(2, streams, device=device), *torch.tensor([0.0, -1.0]).to(device))


@dataclass
class Training:
    """What the steps of a run work on."""

    config: Config
    hardware: Hardware
    sampler: Sampler
    model: GPT
    network: torch.nn.Module  # the model, compiled and wrapped for several processes
    compiled: bool
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Any
    totals: Totals
    step: int = 0  # steps made so far, stage 1's included

    def batch(self, step: int) -> tuple[Batch, Any]:
        """This process's rows of a step, and in a step that aligns the objective's batch."""
        words = self.objective.words(step) if aligns(step, self.config) else None
        rows = np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        batch = self.sampler.batch(np.array_split(rows, self.hardware.world)[self.hardware.rank])
        # A GPU copies from pinned memory while the CPU goes on.
        return Batch(*(pinned(x, self.hardware.device) for x in batch)), words


def learning_rate(step: int, config: Config) -> float:
    """The rate of a step: linear warm-up, then a cosine to min_learning_rate_ratio of the peak."""
    # Both stages are one run with one schedule: at the same step every method has the same rate. Only post-alignment
    # has two, one for the pretraining and one for the alignment of the model that it made.
    steps = config.max_steps
    if config.align_when == "last":
        pretraining = config.max_steps - config.stage1_steps
        step, steps = (step, pretraining) if step < pretraining else (step - pretraining, config.stage1_steps)
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return config.learning_rate * (config.min_learning_rate_ratio + (1 - config.min_learning_rate_ratio) * cosine)


def aligns(step: int, config: Config) -> bool:
    """Whether a step has the contrastive loss beside the language-model loss."""
    # The first step that does: none at all, all on the fly, the last ones after the pretraining.
    first = {"none": config.max_steps, "all": 0, "last": config.max_steps - config.stage1_steps}
    return step >= first[config.align_when]


def set_up(config: Config, hardware: Hardware, data: Folder, model: GPT, objective: MakeObjective) -> Training:
    """Model, optimizer and loss scale on the device, nothing of them from a checkpoint yet."""
    model.to(hardware.device)
    groups = model.parameter_groups(config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)
    network = compile_model(model, config, hardware)
    compiled = network is not model
    if hardware.distributed:
        devices = [hardware.device] if hardware.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    sampler = Sampler(data, config)
    return Training(config, hardware, sampler, model, network, compiled, optimizer, scaler,
                    objective(config, sampler.table, hardware) if objective else None,
                    Totals.zeros(len(sampler.streams), hardware.device))


def take_step(training: Training, step: int, batch: Batch, words: Any, predicted: int) -> None:
    """One step of the optimizer on Eq. 4, of this process's `batch` and `words`; all processes predict `predicted`."""
    # Nothing here waits for the GPU.
    config, hardware, totals, scaler = training.config, training.hardware, training.totals, training.scaler
    # DDP divides gradients by the number of processes. Both losses below are shares of a sum: times it again.
    no_sync: Any = training.network.no_sync if hardware.distributed else contextlib.nullcontext
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(step, config)

    # The contrastive loss over all layers (Eq. 3). Its gradients are summed over processes with the last micro-batch's.
    if words is not None:
        with no_sync():
            align_loss = training.objective.loss(training.model, words)
            scaler.scale(config.align_weight * hardware.world * align_loss).backward()
        totals.align_loss += align_loss.detach()
        totals.align_steps += 1

    # The language-model loss (Eq. 1), averaged over the predicted tokens of the global batch. Gradients add up.
    micro_batches = range(0, len(batch.inputs), config.micro_batch_size)
    for begin in micro_batches:
        rows = slice(begin, begin + config.micro_batch_size)
        inputs, targets, stream = (to_device(x[rows], hardware.device) for x in batch)  # (b, T), (b, T), (b,)
        # Only the last micro-batch sums gradients over processes.
        with contextlib.nullcontext() if begin == micro_batches[-1] else no_sync():
            with hardware.autocast:
                loss, losses = training.network(inputs, targets)  # (), (b, T)
            scaler.scale(loss * (hardware.world / max(1, predicted))).backward()
        totals.loss.index_add_(0, stream, losses.sum(1))
        totals.tokens.index_add_(0, stream, (targets >= 0).sum(1).float())

    # The gradient of both losses, clipped to a norm.
    scaler.unscale_(training.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or math.inf)
    # float16 finds its loss scale by gradients that are not finite, and skips their steps; elsewhere they end the run.
    if not scaler.is_enabled():
        totals.bad_step.copy_(torch.where(~norm.isfinite() & (totals.bad_step < 0), step, totals.bad_step))
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad(set_to_none=True)


def check_fits(config: Config, hardware: Hardware, data: Folder) -> None:
    """Raises UserError when the number of processes or the words of the data do not suit the config."""
    if config.batch_size % hardware.world:
        raise UserError(f"batch_size ({config.batch_size}) must be a multiple of the {hardware.world} processes")
    longest = np.diff(data.table.offsets).max()
    if longest > config.block_size:
        raise UserError(f"a word of the alignment table has {longest} tokens, more than block_size="
                        f"{config.block_size}; use a larger vocab_size or block_size")


def resume(config: Config, last_step: int, hardware: Hardware, objective: MakeObjective) -> Training | None:
    """The run as its checkpoint left it, or as init_from says that it begins. None when it is finished."""
    torch.manual_seed(config.seed)
    data = Folder(config.data_dir)
    check_fits(config, hardware, data)
    model = make_model(config, data.vocab_size)
    state: dict | None
    path = os.path.join(config.run_dir, "checkpoint.pt")
    if os.path.exists(path):
        state = load_checkpoint(path)
        check_matches(state, path, config, data, FIXED)
        if state["step"] == last_step:
            return None
        model.load_state_dict(state["model"])
    else:
        state = initial_state(model, config, data)
    training = set_up(config, hardware, data, model, objective)
    # Stage 2 goes on where stage 1 stopped, with its optimizer. What else a run may begin from is weights alone. Steps
    # number the rows of the data: at the same step every method sees the same rows.
    if state:
        training.step = state["step"]
        training.optimizer.load_state_dict(state["optimizer"])
        training.scaler.load_state_dict(state["scaler"])
    return training


def state_of(training: Training, last_step: int) -> dict:
    """What a checkpoint holds; `data` is the folder's fingerprint."""
    # No state of random numbers: after the weights are drawn, every choice is a hash of the seed and where it is made.
    config, data = training.config, training.sampler.folder
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(), "step": training.step, "last_step": last_step,
            "tokens": training.step * config.batch_size * config.block_size, "config": config.plain(),
            "data": data.fingerprint, "vocab_size": data.vocab_size}


def share_counts(batch: Batch, asked: bool, hardware: Hardware) -> tuple[int, bool]:
    """How many tokens the global batch of a step predicts, and whether any process was asked to stop."""
    shared = torch.tensor([int((batch.targets >= 0).sum()), asked])
    if hardware.distributed:
        dist.all_reduce(shared, group=hardware.control)
    predicted, stopping = shared.tolist()
    return predicted, stopping > 0


def sum_over_processes(totals: list[torch.Tensor], hardware: Hardware) -> None:
    if hardware.distributed:
        for total in totals:
            dist.all_reduce(total)


def losses_of(training: Training) -> dict[str, float]:
    """The mean losses since the last line of the log, in nats, by name. A stream without rows has none."""
    loss, tokens = training.totals.loss.tolist(), training.totals.tokens.tolist()
    losses = {"loss": sum(loss) / max(1, sum(tokens))}
    losses |= {f"loss_{name}": nats / n for name, nats, n in zip(training.sampler.streams, loss, tokens) if n}
    if training.totals.align_steps:
        losses["align_loss"] = training.totals.align_loss.item() / training.totals.align_steps
    return losses


@torch.no_grad()
def held_out_losses(training: Training) -> dict[str, float]:
    """The mean loss of held-out text in every language that has a row of it, in nats by language."""
    config, hardware, folder = training.config, training.hardware, training.sampler.folder
    T, losses = config.block_size, {}
    for language, counts in folder.splits["val"].items():
        windows = (counts["tokens"] - 1) // T
        if windows < 1:
            continue
        # Always the same rows, spread evenly over the text; each process has a part of them.
        rows = np.linspace(0, windows, min(windows, HELD_OUT_STEPS * config.batch_size), endpoint=False, dtype=np.int64)
        mine = rows[hardware.rank::hardware.world]
        tokens, loss = folder.tokens(language, "val"), torch.zeros((), device=hardware.device)
        for begin in range(0, len(mine), config.micro_batch_size):
            at = mine[begin:begin + config.micro_batch_size, None] * T + np.arange(T + 1)  # (b, T + 1)
            ids = torch.from_numpy(tokens[at].astype(np.int64)).to(hardware.device)
            with hardware.autocast:
                loss += training.model(ids[:, :-1], ids[:, 1:])[0]
        sum_over_processes([loss], hardware)
        losses[language] = loss.item() / (len(rows) * T)
    return losses


def check_finite(training: Training, path: str, save: bool) -> None:
    """Raises UserError when a gradient, or weights that are to be saved, are not finite."""
    scaler, bad = training.scaler, int(training.totals.bad_step)
    # A loss scale below 1 is as small as it gets: float16 cannot hold these gradients.
    too_large = scaler.is_enabled() and scaler.get_scale() < 1
    if bad < 0 and not too_large and (not save or all(p.isfinite().all() for p in training.model.parameters())):
        return
    saved = f"the last checkpoint is {path}" if os.path.exists(path) else "there is no checkpoint yet"
    step = bad if bad >= 0 else training.step - 1
    raise UserError(f"the loss or its gradient is not finite in step {step}; {saved}; try a smaller learning_rate"
                    + (", or --dtype=bf16" if scaler.is_enabled() else ""))


def run(config: Config, last_step: int, hardware: Hardware, objective: MakeObjective) -> int:
    """`train` in one of its processes. Returns the exit code: 0, or the code of the signal that stopped the run."""
    training = resume(config, last_step, hardware, objective)
    if training is None:
        if hardware.rank == 0:
            print(f"{config.run_dir} is finished ({last_step} steps)")
        return 0
    path = os.path.join(config.run_dir, "checkpoint.pt")
    # Process 0 alone writes.
    log = None
    if hardware.rank == 0:
        log = Log(config, hardware, training.model, training.compiled, training.step, last_step)
    stop = StopSignal()
    # A thread makes the next batches during a step.
    batches = prefetch(training.batch, range(training.step, last_step))
    for batch, words in batches:
        predicted, stopping = share_counts(batch, stop.asked, hardware)
        take_step(training, training.step, batch, words, predicted)
        training.step = step = training.step + 1
        save = step % config.checkpoint_interval == 0 or step == last_step or stopping
        snapshot = config.snapshot_interval > 0 and step % config.snapshot_interval == 0
        measure = config.eval_interval > 0 and step % config.eval_interval == 0
        # Only steps that are logged or saved wait for the GPU.
        if step % config.log_interval == 0 or save or snapshot or measure:
            totals = training.totals
            sum_over_processes([totals.loss, totals.tokens, totals.align_loss], hardware)
            check_finite(training, path, save or snapshot)
            held_out = held_out_losses(training) if measure else {}
            if log:
                log.line(step, learning_rate(step - 1, config), losses_of(training), held_out)
            training.totals = Totals.zeros(len(training.sampler.streams), hardware.device)
        elif log:
            log.tick(step)
        # The snapshot first: a run that is killed in between makes both again.
        if log and snapshot:
            weights = state_of(training, last_step) | {"optimizer": {}, "scaler": {}}
            save_checkpoint(os.path.join(config.run_dir, "snapshots", f"{step:08}.pt"), weights)
        if log and save:
            save_checkpoint(path, state_of(training, last_step))
        if stopping:
            break
    batches.close()
    stop.close()
    if log:
        log.close()
        if step < last_step:
            print(f"stopped at step {step} of {last_step}, saved to {path}; run the same command to go on")
    # Another process may have been asked to stop, not this one.
    return 0 if step == last_step else stop.exit_code or 128 + signal.SIGTERM


def train(config: Config, last_step: int, objective: MakeObjective = None) -> None:
    """Makes the steps of a run that are missing before `last_step`; SystemExit when a signal stops it."""
    hardware = start(config)
    with exclusive(config.run_dir) if hardware.rank == 0 else contextlib.nullcontext():
        exit_code = run(config, last_step, hardware, objective)
    # Not after an error: NCCL would wait for the other processes here, and the message would never be seen.
    if hardware.distributed:
        dist.destroy_process_group()
    if exit_code:
        raise SystemExit(exit_code)


def main(arguments: list[str]) -> None:
    config = load(arguments, __doc__)
    # prealign.py imports this file for the loop. Its objective is looked up, so that imports run one way.
    objective = importlib.import_module("prealign").Alignment if config.align_when != "none" else None
    train(config, config.max_steps, objective)


if __name__ == "__main__":
    run_main(main)
