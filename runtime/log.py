"""What a run leaves to be understood later: run.json, metrics.jsonl; a line for people; wandb and TensorBoard."""

import json
import math
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from model import GPT
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import read_json, write_json, write_text
from runtime.hardware import Hardware, matmul_rate


class Log:
    """
    The log of a run from `step` on. Lines of later steps, left by a run that was killed, are dropped: they come again.
    """

    def __init__(self, config: Config, hardware: Hardware, model: GPT, compiled: bool, step: int, last_step: int):
        os.makedirs(config.run_dir, exist_ok=True)
        self.config, self.flops = config, model.flops_per_token()
        peak = matmul_rate(hardware)
        self.peak = peak * hardware.world
        write_json(os.path.join(config.run_dir, "run.json"), {
            "config": config.plain(), "command": sys.argv, "device": str(hardware.device), "dtype": str(hardware.dtype),
            "world": hardware.world, "compiled": compiled, "parameters": sum(p.numel() for p in model.parameters()),
            "matmul_flops": peak,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}})
        path = os.path.join(config.run_dir, "metrics.jsonl")
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                write_text(path, "".join(line for line in f if step_of(line) <= step))
        self.file = open(path, "a", encoding="utf-8")
        self.others = other_logs(config, step)
        self.bar = tqdm(total=last_step, initial=step, unit="step", desc=config.method, disable=None)
        self.step, self.time, self.last_step = step, time.perf_counter(), last_step

    def tick(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def line(self, step: int, lr: float, losses: dict[str, float]) -> None:
        """`losses` are means in nats since the line before."""
        now, tokens_per_step = time.perf_counter(), self.config.batch_size * self.config.block_size
        speed = (step - self.step) * tokens_per_step / (now - self.time)
        self.step, self.time = step, now
        record = {"step": step, "tokens": step * tokens_per_step, "lr": lr, **losses,
                  "tokens_per_s": speed, "mfu": speed * self.flops / self.peak}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for log in self.others:
            log(record)
        parts = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in losses.items() if k != "loss"]
        self.tick(step)
        tqdm.write(f"{self.config.method} step {step}/{self.last_step} "
                   f"| loss {losses['loss']:.3f} ({', '.join(parts)}) "
                   f"| lr {lr:.2e} | {speed:,.0f} tok/s | mfu {100 * record['mfu']:.1f}%")

    def close(self) -> None:
        self.bar.close()
        self.file.close()


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for one that was cut off while it was written."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, LookupError, TypeError):
        return math.inf


def other_logs(config: Config, step: int) -> list[Callable[[dict], None]]:
    """Where else the lines of metrics.jsonl after `step` go. Raises UserError when that cannot be had."""
    logs: list[Callable[[dict], None]] = []
    try:
        if config.wandb:
            import wandb

            # The same run of theirs when ours is resumed.
            path = os.path.join(config.run_dir, "wandb.json")
            if not os.path.exists(path):
                write_json(path, secrets.token_hex(8))
            run = wandb.init(project=config.wandb, name=f"{config.method}-seed{config.seed}", dir=config.run_dir,
                             config=config.plain(), resume="allow", id=read_json(path, "delete it"))
            logs.append(lambda record: run.log(record, step=record["step"]))
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(os.path.join(config.run_dir, "tensorboard"), purge_step=step + 1)

            def write(record: dict) -> None:
                for name, value in record.items():
                    writer.add_scalar(name, value, record["step"])
                writer.flush()

            logs.append(write)
    except ImportError as e:
        raise UserError(f"logging needs a package that is not installed: pip install {e.name or 'tensorboard'}") from e
    except Exception as e:  # no key, no network: each has an exception of its own
        raise UserError(f"logging: {' '.join(str(e).split()) or type(e).__name__}; train without --wandb") from e
    return logs
