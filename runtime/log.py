"""What a run leaves to be understood later: run.json, metrics.jsonl; a line for people; Weights & Biases."""

import json
import os
import platform
import secrets
import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model import GPT
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import kept, write_json, write_text
from runtime.hardware import Hardware, matmul_rate


class Log:
    """The log of a run from `step` on."""

    def __init__(self, config: Config, hardware: Hardware, model: GPT, compiled: bool, step: int, last_step: int):
        os.makedirs(config.run_dir, exist_ok=True)
        self.config, self.flops = config, model.flops_per_token()
        # MFU is a share of what this machine's own matrix product makes.
        peak = matmul_rate(hardware)
        self.peak = peak * hardware.world
        write_json(os.path.join(config.run_dir, "run.json"), {
            "config": config.plain(), "command": sys.argv, "device": str(hardware.device), "dtype": str(hardware.dtype),
            "world": hardware.world, "compiled": compiled, "parameters": sum(p.numel() for p in model.parameters()),
            "matmul_flops": peak,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}})
        path = os.path.join(config.run_dir, "metrics.jsonl")
        # A run that was killed has left lines of steps that come again, and perhaps half a line.
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                whole = [line for line in f if line.endswith("\n")]
            write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))
        self.file = open(path, "a", encoding="utf-8")
        self.wandb: Any = None
        if config.wandb:
            import wandb
            # A resumed run goes on in its own one there.
            name = kept(os.path.join(config.run_dir, "wandb.json"), lambda: secrets.token_hex(8))
            try:
                self.wandb = wandb.init(project=config.wandb, name=f"{config.method}-seed{config.seed}", id=name,
                                        dir=config.run_dir, config=config.plain(), resume="allow")
            # No key, or no network.
            except wandb.errors.Error as e:
                raise UserError(f"--wandb={config.wandb}: {e}; wandb login, or train without it") from e
        self.bar = tqdm(total=last_step, initial=step, unit="step", desc=config.method, disable=None)
        self.step, self.time, self.last_step = step, time.perf_counter(), last_step

    def tick(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def line(self, step: int, lr: float, losses: dict[str, float], held_out: dict[str, float]) -> None:
        """`losses` are means in nats since the line before, `held_out` of held-out text by language, if measured."""
        # Over the steps since the line before, whatever they waited for.
        now, tokens_per_step = time.perf_counter(), self.config.batch_size * self.config.block_size
        speed = (step - self.step) * tokens_per_step / (now - self.time)
        self.step, self.time = step, now
        record: dict[str, Any] = {"step": step, "tokens": step * tokens_per_step, "lr": lr, **losses,
                                  "tokens_per_s": speed, "mfu": speed * self.flops / self.peak}
        if held_out:
            record["held_out"] = held_out
            self.bar.set_postfix({f"held-out {language}": f"{loss:.3f}" for language, loss in held_out.items()})
        # One line for programs, and below one for people.
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.wandb:
            self.wandb.log(record, step=step)
        parts = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in losses.items() if k != "loss"]
        parts += [f"held-out {language} {loss:.3f}" for language, loss in held_out.items()]
        self.tick(step)
        tqdm.write(f"{self.config.method} step {step}/{self.last_step} "
                   f"| loss {losses['loss']:.3f} ({', '.join(parts)}) "
                   f"| lr {lr:.2e} | {speed:,.0f} tok/s | mfu {100 * record['mfu']:.1f}%")

    def close(self) -> None:
        self.bar.close()
        self.file.close()
