"""
The speed of training on this machine, beside its matrix products and beside transformers' GPT-2.

    python data.py config/bench.py && python -m tools.bench config/bench.py        # a table, and OUT_DIR/bench.jsonl
    python -m tools.bench config/paper.py config/size/1.3b.py       # each further file is a size on top of the first
"""

import gc
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from corpus.folder import Folder
from data import Sampler
from prealign import Alignment
from runtime import config as configs
from runtime import errors
from runtime.checkpoint import make_model
from runtime.config import Config
from runtime.errors import UserError, is_out_of_memory
from runtime.hardware import Hardware, matmul_rate, start, synchronize, to_device
from runtime.parallel import prefetch
from train import set_up, take_step

# A step has so many micro-batches, or the config's own batch if that is smaller: a whole batch of the paper takes long.
SLICE = 4
# Steps before the measured ones, in which code is compiled and memory is allocated.
WARM_UP = 3
# Measured steps, or fewer in so many seconds.
MOST, SECONDS = 10, 5.0

# What is printed of a row, and how.
SHOWN = {"size": "{:6}", "row": "{:25}", "tokens_per_s": "{:>10,.0f} tokens/s", "mfu": "{:6.1%} of the matrix rate",
         "peak_gb": "{:6.2f} GB", "micro_batch_size": "{} rows at a time", "compiled": "compiled: {}", "error": "{}"}


class Ours:
    """Steps of train.py's loop."""

    def __init__(self, config: Config, hardware: Hardware, data: Folder):
        torch.manual_seed(config.seed)
        with hardware.device:
            self.model = make_model(config, data.vocab_size)
        self.data, self.training = data, set_up(config, hardware, data, self.model, Alignment)
        self.batch, self.compiled = self.training.batch, self.training.compiled

    # Another loss and other batches. The model and its compiled code stay: on a GPU to compile takes minutes.
    def turn_to(self, config: Config) -> None:
        training = self.training
        training.config, training.sampler = config, Sampler(self.data, config)
        training.objective = Alignment(config, training.sampler.table, training.hardware)

    def take(self, step: int, made: Any) -> None:
        batch, words = made
        take_step(self.training, step, batch, words, int((batch.targets >= 0).sum()))


class Theirs:
    """Steps of a plain loop with transformers' GPT2LMHeadModel, of our shape and on our batches."""

    def __init__(self, config: Config, hardware: Hardware, data: Folder):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(config.seed)
        # Ours has no dropout.
        shape = GPT2Config(vocab_size=data.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
                           n_layer=config.n_layer, n_head=config.n_head, tie_word_embeddings=config.tie_embeddings,
                           resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
        with hardware.device:
            model: Any = GPT2LMHeadModel(shape).train()
        self.hardware, self.data, self.compiled = hardware, data, config.compile == "on"
        self.network: Any = torch.compile(model) if self.compiled else model
        self.optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, (config.beta1, config.beta2),
                                           fused=True)

    def turn_to(self, config: Config) -> None:
        self.config, self.sampler = config, Sampler(self.data, config)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        B = self.config.batch_size
        batch = self.sampler.batch(np.arange(step * B, (step + 1) * B))
        # It shifts the labels itself, and leaves out -100.
        labels = torch.full_like(batch.targets, -100)
        labels[:, 1:] = torch.where(batch.targets < 0, -100, batch.targets)[:, :-1]
        return batch.inputs, labels

    # As nanoGPT's loop does it: gradients add up over micro-batches, and are clipped once.
    def take(self, step: int, made: Any) -> None:
        for rows in zip(*(x.split(self.config.micro_batch_size) for x in made)):
            inputs, labels = (to_device(x, self.hardware.device) for x in rows)
            with self.hardware.autocast:
                loss = self.network(input_ids=inputs, labels=labels, use_cache=False).loss
            (loss * len(inputs) / self.config.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def speed(model: Ours | Theirs, config: Config, hardware: Hardware) -> float:
    """The tokens/s of at most MOST steps, made after WARM_UP others."""
    # Steps of stage 2, which also has facts.
    first = config.stage1_steps + 1
    # A thread makes the batches, as in train.py.
    batches = prefetch(model.batch, range(first, first + WARM_UP + MOST))
    for step in range(first, first + WARM_UP):
        synchronize(hardware.device)
        begin = time.perf_counter()
        model.take(step, next(batches))
    synchronize(hardware.device)
    # The last step of the warm-up says how many there is time for.
    count = max(1, round(min(MOST, SECONDS / (time.perf_counter() - begin))))
    # From here to the end nothing waits for the GPU, as in training.
    begin = time.perf_counter()
    for step in range(first + WARM_UP, first + WARM_UP + count):
        model.take(step, next(batches))
    synchronize(hardware.device)
    seconds = time.perf_counter() - begin
    batches.close()
    return count * config.batch_size * config.block_size / seconds


def plan(config: Config, on_gpu: bool) -> list[tuple[type, dict[str, Config]]]:
    """The models in their order, each with its rows: name -> config."""
    config = replace(config, batch_size=min(config.batch_size, SLICE * config.micro_batch_size),
                     stage1_steps=max(1, config.stage1_steps))
    plain = replace(config, codeswitch_ratio=0.0)
    switching = replace(config, codeswitch_ratio=config.codeswitch_ratio or 0.05)
    ours = (Ours, {"step": plain, "step, codeswitching": switching, "step of stage 1": config.stage1()})
    compiled = (Theirs, {"GPT2LMHeadModel, compiled": replace(plain, compile="on")})
    theirs = (Theirs, {"GPT2LMHeadModel": replace(plain, compile="off")})
    if not find_spec("transformers"):
        return [ours]
    # To compile takes minutes on a CPU. A GPU's clock moves: ours comes once more after theirs.
    return [ours, compiled, theirs, (Ours, {"step, again": plain})] if on_gpu else [ours, theirs]


def measured(config: Config, hardware: Hardware, data: Folder) -> Iterator[dict]:
    """A record for each row."""
    # With the config's micro-batch, or the largest half, quarter, ... of it that fits. Logits of a large vocabulary,
    # which ours never holds all at once, are the first that do not.
    on_gpu = hardware.device.type == "cuda"
    for make, rows in plan(config, on_gpu):
        model, micro = None, min(config.batch_size, config.micro_batch_size)
        for name, part in rows.items():
            while micro:
                part = replace(part, micro_batch_size=micro)
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                try:
                    model = model or make(part, hardware, data)
                    model.turn_to(part)
                    record = {"tokens_per_s": speed(model, part, hardware), "micro_batch_size": micro,
                              "compiled": model.compiled}
                    break
                except Exception as e:
                    if not is_out_of_memory(e):
                        raise
                # Not within `except`: until its end the exception holds what was on the GPU.
                micro //= 2
                free()
            else:
                record = {"error": "does not fit, even with one row at a time"}
            if on_gpu:
                record["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            yield {"row": name} | record
        model = None
        free()


# What nobody holds any more is given back, compiled code too.
def free() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def main(arguments: list[str]) -> None:
    configs.load(arguments, __doc__)
    files, knobs = ([a for a in arguments if a.startswith("--") == knob] for knob in (False, True))
    if not files:
        raise UserError("expected: python -m tools.bench CONFIG ... [--knob=value ...]; config/bench.py is for a CPU")
    sizes = {os.path.basename(path).removesuffix(".py"): configs.load([files[0], path, *knobs]) for path in files}
    first = next(iter(sizes.values()))
    hardware, data = start(first), Folder(first.data_dir)
    rate, name = matmul_rate(hardware), platform.processor() or platform.machine()
    machine = {"device": torch.cuda.get_device_name() if hardware.device.type == "cuda" else name,
               "threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": str(hardware.dtype),
               "matmul_gflops": round(rate / 1e9), "ids": data.vocab_size}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    os.makedirs(first.out_dir, exist_ok=True)
    # Line by line, when it is measured: the run may be cut short.
    with open(os.path.join(first.out_dir, "bench.jsonl"), "w", encoding="utf-8", buffering=1) as file:
        file.write(json.dumps(machine | {"configs": {size: config.plain() for size, config in sizes.items()}}) + "\n")
        for size, config in sizes.items():
            # The operations of the language model alone, in stage 1 too. On "meta" nothing is allocated.
            with torch.device("meta"):
                flops = make_model(config, data.vocab_size).flops_per_token()
            for record in measured(config, hardware, data):
                record = {"size": size} | record
                if "tokens_per_s" in record:
                    record["mfu"] = record["tokens_per_s"] * flops / rate
                print("  ".join(form.format(record[key]) for key, form in SHOWN.items() if key in record), flush=True)
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    errors.run(main)
