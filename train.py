"""
Stage 2: language-model pretraining with input-only codeswitching. And the one training loop, which stage 1 uses too.

    python train.py config/demo.py config/method/joint.py
    torchrun --standalone --nproc_per_node=8 train.py config/demo.py config/method/prealign.py --codeswitch_ratio=0.1

Writes OUT_DIR/METHOD/seedSEED/: run.json (config, versions), metrics.jsonl, checkpoint.pt. Run the same command again and
it goes on where it stopped; a finished run is left alone. On several nodes, start the same torchrun on each with
--nnodes, --node_rank and --master_addr.
"""

import contextlib
import json
import math
import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from runtime import config as configs
from runtime import errors
from data import Batch, Sampler, prefetch
from runtime.checkpoint import FIXED, check_matches, initial_state, load_checkpoint, load_weights, make_model, save_checkpoint
from runtime.config import Config
from runtime.errors import UserError, is_out_of_memory
from corpus.folder import Folder
from runtime.files import exclusive, remembered, write_json, write_text
from runtime.hardware import Hardware, compiled, matmul_rate, pinned, start, to_device
from model import GPT
from prealign import Words, contrastive_loss, draw_entries, word_representations, word_rows


def learning_rate(step: int, config: Config) -> float:
    """
    Linear warm-up over warmup_ratio of the run's steps, then a cosine to min_learning_rate_ratio of the peak. Both stages
    are one run with one schedule: at the same step every method has the same rate. Only post-alignment has two, one for
    the pretraining and one for the alignment of what is then a finished model.
    """
    steps = config.max_steps
    if config.align_steps == "last":
        pretraining = config.max_steps - config.stage1_steps
        step, steps = (step, pretraining) if step < pretraining else (step - pretraining, config.stage1_steps)
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return config.learning_rate * (config.min_learning_rate_ratio + (1 - config.min_learning_rate_ratio) * cosine)


def aligns(step: int, config: Config) -> bool:
    """Whether a step has the contrastive loss beside the language-model loss."""
    return config.align_steps == "all" or (config.align_steps == "last" and step >= config.max_steps - config.stage1_steps)


def rows_of(step: int, config: Config, hardware: Hardware) -> np.ndarray:
    """The global rows of a step that are this process's."""
    return np.array_split(np.arange(step * config.batch_size, (step + 1) * config.batch_size), hardware.world)[hardware.rank]


def train(config: Config, first_step: int, last_step: int) -> None:
    """
    Steps first_step..last_step - 1 of a run, resumed from its checkpoint if it has one. Steps number the rows of the data:
    stage 2 of PreAlign begins where stage 1 stopped, and at the same step every method sees the same rows.
    """
    hardware = start(config)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with exclusive(config.run_dir) if hardware.rank == 0 else contextlib.nullcontext():
            exit_code = run(config, first_step, last_step, hardware)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if hardware.world > 1:
        dist.destroy_process_group()  # not after an error: NCCL would wait for the others here, and the message would never be seen
    if exit_code:
        raise SystemExit(exit_code)


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
    sums: torch.Tensor        # since the last log line: per stream the sum of losses and of predicted tokens; of the alignment loss and of its steps
    skipped: torch.Tensor     # steps that were left out because their gradient was not finite, and the last of them, -1 at first

    def batch(self, step: int) -> tuple[Batch, Words | None]:
        """This process's rows of a step, and the words of all processes in a step that aligns."""
        config, hardware = self.config, self.hardware
        words = word_rows(self.sampler.table, draw_entries(self.sampler.table, config, step), hardware.world) if aligns(step, config) else None
        batch = self.sampler.batch(rows_of(step, config, hardware))
        return Batch(*(pinned(x, hardware.device) for x in batch)), words


def set_up(config: Config, hardware: Hardware, data: Folder, model: GPT) -> Training:
    """Model, optimizer and loss scale on the device, nothing of them from a checkpoint yet."""
    model.to(hardware.device)
    optimizer = torch.optim.AdamW(model.parameter_groups(config.weight_decay), lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)
    network = compiled(model, config, hardware)
    is_compiled = network is not model
    if hardware.world > 1:
        network = DistributedDataParallel(network, device_ids=[hardware.device] if hardware.device.type == "cuda" else None, gradient_as_bucket_view=True)
    sampler = Sampler(data, config)
    return Training(config, hardware, sampler, model, network, is_compiled, optimizer, scaler, torch.zeros(2 * len(sampler.streams) + 2, device=hardware.device),
                    torch.tensor([0, -1], device=hardware.device))


def take_step(training: Training, step: int, batch: Batch, words: Words | None, predicted: int) -> None:
    """
    One step of the optimizer on Eq. 4: the language-model loss of `batch` and, with `words`, the contrastive loss, each weighted
    so that DDP's mean over processes is the loss of the global batch, in which `predicted` tokens are. A step whose gradient is not
    finite changes nothing and is counted, without waiting for the GPU to know.
    """
    config, hardware, scaler, sums = training.config, training.hardware, training.scaler, training.sums.clone()
    no_sync = training.network.no_sync if isinstance(training.network, DistributedDataParallel) else contextlib.nullcontext
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    if words is not None:
        mine = np.array_split(np.arange(len(words.ids)), hardware.world)[hardware.rank]
        with no_sync():
            with hardware.autocast:
                representations = word_representations(training.model, torch.from_numpy(words.ids[mine]), torch.from_numpy(words.length[mine]))
            align_loss = contrastive_loss(representations, torch.from_numpy(words.entry), config.align_tau)
            scaler.scale(config.align_weight * hardware.world * align_loss).backward()
        sums[-2] += align_loss.detach()
        sums[-1] += hardware.rank == 0
    micro_batches = range(0, len(batch.inputs), config.micro_batch_size)
    for begin in micro_batches:
        rows = slice(begin, begin + config.micro_batch_size)
        inputs, targets, stream = (to_device(x[rows], hardware.device) for x in batch)
        with contextlib.nullcontext() if begin == micro_batches[-1] else no_sync():
            with hardware.autocast:
                loss, losses = training.network(inputs, targets)
            scaler.scale(loss * (hardware.world / max(1, predicted))).backward()
        sums.index_add_(0, 2 * stream, losses.sum(1))
        sums.index_add_(0, 2 * stream + 1, (targets >= 0).sum(1).float())
    scaler.unscale_(training.optimizer)
    good = torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.grad_clip or math.inf).isfinite()
    training.sums.copy_(torch.where(good, sums, training.sums))
    if not scaler.is_enabled():  # float16's own scaler skips such steps: it finds its scale by them
        training.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # fused AdamW looks at this on the device
        number, last = training.skipped
        training.skipped.copy_(torch.where(good, training.skipped, torch.stack([number + 1, torch.full_like(last, step)])))
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad(set_to_none=True)


def restore(training: Training, state: dict, path: str) -> None:
    """Give the optimizer and the loss scale the state that they had in a checkpoint."""
    optimizer = training.optimizer
    try:
        optimizer.load_state_dict(state["optimizer"])
        training.scaler.load_state_dict(state["scaler"])
        fits = all(of[name].shape == p.shape for p, of in optimizer.state.items() for name in ("exp_avg", "exp_avg_sq"))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        if is_out_of_memory(e):
            raise
        raise UserError(f"{path}: its optimizer does not fit the model ({type(e).__name__}: {e}); delete its folder to train anew") from e
    if not fits:
        raise UserError(f"{path}: its optimizer does not fit the model; delete its folder to train anew")


@contextlib.contextmanager
def needs_others() -> Iterator[None]:
    """Raises UserError when another process is no longer there to talk to."""
    try:
        yield
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        raise UserError("another process has stopped; its own message says why") from e


def share_counts(batch: Batch, asked: bool, hardware: Hardware) -> tuple[int, bool]:
    """What all processes must know of a step: how many tokens are predicted, and whether someone was told to stop."""
    shared = torch.tensor([int((batch.targets >= 0).sum()), asked])
    if hardware.world > 1:
        with needs_others():
            dist.all_reduce(shared, group=hardware.control)
    predicted, stopping = shared.tolist()
    return predicted, stopping > 0


def check_same_everywhere(config: Config, step: int, data: Folder, hardware: Hardware) -> None:
    steps = [None] * hardware.world
    with needs_others():
        dist.all_gather_object(steps, (step, data.fingerprint), group=hardware.control)
    if len(set(steps)) > 1:
        raise UserError(f"the processes see different checkpoints in {config.run_dir} or different data in {config.data_dir}; "
                        "all nodes must share these folders")


def rows_of_step(training: Training, step: int) -> str:
    """Where in the data the rows of a step stand, for people; the first eight of them."""
    rows = [f"{name} {window}" for name, window in training.sampler.windows_of_step(step)]
    return f"step {step}, whose rows are the windows {', '.join(rows[:8])}{', ...' * (len(rows) > 8)} of their bins"


def check_finite(training: Training, step: int, save: bool, path: str) -> None:
    """Raises UserError when more steps than max_skipped_steps had a gradient that is not finite, or the weights are not."""
    saved = f"the last checkpoint is {path}" if os.path.exists(path) else "there is no checkpoint yet"
    if training.scaler.is_enabled() and training.scaler.get_scale() < 1:
        raise UserError(f"float16: the gradient was not finite at any scale of the loss, now in {rows_of_step(training, step - 1)}; {saved}; "
                        "try a smaller learning_rate, or --dtype=bf16")
    skipped, last = training.skipped.tolist()
    if skipped > training.config.max_skipped_steps:
        raise UserError(f"the gradient was not finite in {skipped} step{'s' * (skipped > 1)}, last in {rows_of_step(training, last)}; "
                        f"these steps changed nothing; {saved}; try a smaller learning_rate, or skip more with --max_skipped_steps")
    if not torch.isfinite(training.sums).all() or (save and not all(p.isfinite().all() for p in training.model.parameters())):
        raise UserError(f"the loss or the weights are not finite at step {step}; {saved}; try a smaller learning_rate")


def run(config: Config, first_step: int, last_step: int, hardware: Hardware) -> int:
    """`train` in one of its processes. Returns the exit code: 0, or that of the signal which stopped the run."""
    main_process = hardware.rank == 0
    if config.batch_size % hardware.world:
        raise UserError(f"batch_size ({config.batch_size}) must be a multiple of the number of processes ({hardware.world})")
    torch.manual_seed(config.seed)
    data = Folder(config.data_dir)
    if np.diff(data.table.offsets).max() > config.block_size:  # a row that stage 1 and the evaluation read
        raise UserError(f"a word of the alignment table has {np.diff(data.table.offsets).max()} tokens, more than block_size={config.block_size}; "
                        "use a larger vocab_size or block_size")
    model = make_model(config, data.vocab_size)
    path = os.path.join(config.run_dir, "checkpoint.pt")
    step = first_step
    state: dict | None = None
    before: dict | None = None
    if os.path.exists(path):
        before = state = load_checkpoint(path)
        check_matches(state, path, config, data, FIXED)
        load_weights(model, state, path)
        step = state["step"]
    else:
        before = initial_state(model, config, data)
    if hardware.world > 1:
        check_same_everywhere(config, step, data, hardware)
    if state is not None and step == last_step:
        if main_process:
            print(f"{config.run_dir} is finished ({step} steps)")
        return 0
    training = set_up(config, hardware, data, model)
    if before is not None and (state is not None or config.init_from == "align"):  # stage 2 goes on with stage 1's optimizer
        restore(training, before, path if state is not None else config.stage1_dir)
    # Tokens that the weights have seen, by the run they are from too.
    per_step = config.batch_size * config.block_size
    tokens_before = before["tokens"] - (step - first_step) * per_step if before is not None else 0
    log = Log(training, step, last_step) if main_process else None
    if state is not None:
        torch.set_rng_state(state["rng"])
        training.skipped.copy_(torch.tensor(state["skipped"]))
    del state, before

    stop = StopSignal()
    batches = prefetch(training.batch, range(step, last_step))
    for batch, words in batches:
        predicted, stopping = share_counts(batch, stop.asked, hardware)
        take_step(training, step, batch, words, predicted)
        step += 1

        save = step % config.checkpoint_interval == 0 or step == last_step or stopping
        if step % config.log_interval == 0 or save:
            if hardware.world > 1:
                with needs_others():
                    dist.all_reduce(training.sums)
            check_finite(training, step, save, path)  # only in steps that are logged or saved does the loop wait for the GPU
            if log is not None:
                log.line(step, learning_rate(step - 1, config), training.sums.tolist(), training.skipped.tolist()[0])
            training.sums.zero_()
        elif log is not None:
            log.tick(step)
        snapshot = config.snapshot_interval > 0 and step % config.snapshot_interval == 0
        if main_process and (save or snapshot):
            checkpoint = {
                "model": model.state_dict(), "optimizer": training.optimizer.state_dict(), "scaler": training.scaler.state_dict(),
                "rng": torch.get_rng_state(), "skipped": training.skipped.tolist(), "step": step, "last_step": last_step, "tokens": tokens_before + (step - first_step) * per_step,
                "config": config.plain(), "data": data.fingerprint, "vocab_size": data.vocab_size}
            if snapshot:  # before the checkpoint: a run that is killed in between makes both again
                os.makedirs(os.path.join(config.run_dir, "snapshots"), exist_ok=True)
                save_checkpoint(os.path.join(config.run_dir, "snapshots", f"{step:08}.pt"), checkpoint | {"optimizer": {}, "scaler": {}})
            if save:
                save_checkpoint(path, checkpoint)
        if stopping:
            break
    batches.close()
    if log is not None:
        log.close()
    if step == last_step:
        return 0
    if main_process:
        print(f"stopped at step {step} of {last_step}, saved to {path}; run the same command to go on")
    return stop.exit_code or 128 + signal.SIGTERM


class StopSignal:
    """Remembers that SIGTERM or Ctrl-C came, so that the step under way can be finished and saved."""

    def __init__(self) -> None:
        self.asked, self.exit_code = False, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: object) -> None:
        self.asked, self.exit_code = True, 128 + number
        if number == signal.SIGINT:  # a second Ctrl-C does not wait for the step; SIGTERM often comes twice, from scheduler and torchrun
            signal.signal(number, signal.SIG_DFL)


def other_logs(config: Config, step: int) -> list[Callable[[dict], None]]:
    """Where else the lines of metrics.jsonl after `step` go. Raises UserError when that cannot be had."""
    logs: list[Callable[[dict], None]] = []
    try:
        if config.wandb:
            import wandb

            number = remembered(os.path.join(config.run_dir, "wandb.json"), lambda: secrets.token_hex(8))
            try:
                run = wandb.init(project=config.wandb, name=f"{config.method}-seed{config.seed}", dir=config.run_dir, config=config.plain(), resume="allow", id=number)
            except Exception as e:  # no key, no network: each has an exception of its own
                raise UserError(f"wandb: {' '.join(str(e).split()) or type(e).__name__}; train without --wandb, or see its documentation") from e
            logs.append(lambda record: run.log(record, step=record["step"]))
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(os.path.join(config.run_dir, "tensorboard"), purge_step=step + 1)

            def write(record: dict) -> None:
                for name, value in record.items():
                    if name != "step":
                        writer.add_scalar(name, value, record["step"])
                writer.flush()

            logs.append(write)
    except ImportError as e:
        raise UserError(f"logging needs a package that is not installed: pip install {(e.name or 'tensorboard').partition('.')[0]}") from e
    return logs


class Log:
    """run.json, metrics.jsonl, the progress bar, and a line a person can read."""

    def __init__(self, training: Training, step: int, last_step: int):
        config, hardware, model = training.config, training.hardware, training.model
        os.makedirs(config.run_dir, exist_ok=True)
        self.config, self.streams = config, training.sampler.streams
        self.flops = model.flops_per_token()
        peak = matmul_rate(hardware)
        self.peak = peak * hardware.world
        write_json(os.path.join(config.run_dir, "run.json"), {
            "config": config.plain(), "command": sys.argv, "device": str(hardware.device), "dtype": str(hardware.dtype), "world": hardware.world,
            "compiled": training.compiled, "parameters": sum(p.numel() for p in model.parameters()), "matmul_flops": peak,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        })
        self.metrics = os.path.join(config.run_dir, "metrics.jsonl")
        self._drop_after(step)
        self.file = open(self.metrics, "a", encoding="utf-8")
        self.others = other_logs(config, step)
        self.bar = tqdm(total=last_step, initial=step, unit="step", desc=config.method, disable=None)
        self.step, self.time, self.last_step = step, time.perf_counter(), last_step

    def _drop_after(self, step: int) -> None:
        """Forget the lines of steps that a killed run made after its last checkpoint: they come again."""
        if os.path.exists(self.metrics):
            with open(self.metrics, encoding="utf-8", errors="replace") as f:
                lines = [line for line in f if self._step_of(line) <= step]
            write_text(self.metrics, "".join(lines))

    @staticmethod
    def _step_of(line: str) -> float:
        """The step of a line of metrics.jsonl; infinite for one that was cut off while it was written."""
        try:
            return json.loads(line)["step"] if line.endswith("\n") else math.inf
        except (ValueError, LookupError, TypeError):
            return math.inf

    def tick(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def line(self, step: int, lr: float, sums: list[float], skipped: int) -> None:
        now, T, steps = time.perf_counter(), self.config.block_size, step - self.step
        speed = steps * self.config.batch_size * T / (now - self.time)
        self.step, self.time = step, now
        losses, counts = sums[:-2:2], sums[1:-2:2]
        record = {"step": step, "tokens": step * self.config.batch_size * T, "lr": lr}
        if sum(counts):  # none when every step was skipped
            record["loss"] = sum(losses) / sum(counts)
        record |= {f"loss_{name}": loss / count for name, loss, count in zip(self.streams, losses, counts) if count}
        if sums[-1] > 0:
            record["align_loss"] = sums[-2] / sums[-1]
        if skipped:
            record["skipped"] = skipped
        record |= {"tokens_per_s": speed, "mfu": speed * self.flops / self.peak}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for log in self.others:
            log(record)
        parts = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in record.items() if k.startswith("loss_") or k == "align_loss"]
        self.tick(step)
        tqdm.write(f"{self.config.method} step {step}/{self.last_step} | loss {record.get('loss', math.nan):.3f} ({', '.join(parts)}) | lr {lr:.2e} | "
                   f"{speed:,.0f} tok/s | mfu {100 * record['mfu']:.1f}%" + f" | skipped {skipped}" * (skipped > 0))

    def close(self) -> None:
        self.bar.close()
        self.file.close()


def main(arguments: list[str]) -> None:
    config = configs.load(arguments, __doc__)
    first_step = config.stage1_steps if config.init_from == "align" else 0  # stage 1's tokens are part of the budget
    train(config, first_step, config.max_steps)


if __name__ == "__main__":
    errors.run(main)
