"""
The speed of training on this machine, beside its matrix products and beside transformers' GPT-2.

    python data.py config/bench.py && python -m tools.bench config/bench.py    # adds to OUT_DIR/bench.jsonl
"""

import gc
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from corpus.folder import Folder
from data import Sampler
from prealign import Alignment
from runtime.checkpoint import make_model
from runtime.config import Config, load
from runtime.errors import run_main
from runtime.hardware import Hardware, matmul_rate, start, synchronize, to_device
from runtime.parallel import prefetch
from train import set_up, take_step

# A step has so many micro-batches, or the config's own batch if that is smaller: a whole batch of the paper takes long.
SLICE = 4
# Steps before the measured ones, in which code is compiled and memory is allocated.
WARM_UP = 3
# Measured steps, or fewer in so many seconds.
MOST, SECONDS = 10, 5.0

# The name of what is measured, batch(step), and take(step, batch).
Row = tuple[str, Callable[[int], Any], Callable[[int, Any], None]]


def ours(config: Config, hardware: Hardware, data: Folder) -> Iterator[Row]:
    """Steps of train.py's loop."""
    torch.manual_seed(config.seed)
    with hardware.device:
        model = make_model(config, data.vocab_size)
    training = set_up(config, hardware, data, model, Alignment)

    def take(step: int, made: Any) -> None:
        batch, words = made
        take_step(training, step, batch, words, int((batch.targets >= 0).sum()))

    # Another loss and other batches. The model and its compiled code stay: on a GPU to compile takes minutes.
    for name, part in (("step", replace(config, codeswitch_ratio=0.0)),
                       ("step, codeswitching", replace(config, codeswitch_ratio=config.codeswitch_ratio or 0.05)),
                       ("step of stage 1", config.stage1())):
        training.config, training.sampler = part, Sampler(data, part)
        training.objective = Alignment(part, training.sampler.table, hardware)
        yield name, training.batch, take


def theirs(config: Config, hardware: Hardware, data: Folder) -> Iterator[Row]:
    """Steps of a plain loop with transformers' GPT2LMHeadModel, of our shape and on our batches."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(config.seed)
    # Ours has no dropout.
    shape = GPT2Config(vocab_size=data.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
                       n_layer=config.n_layer, n_head=config.n_head, tie_word_embeddings=config.tie_embeddings,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    with hardware.device:
        model: Any = GPT2LMHeadModel(shape).train()
    # It is compiled where ours is.
    compiles = config.compile == "on" or config.compile == "auto" and hardware.device.type == "cuda"
    network: Any = torch.compile(model) if compiles else model
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, (config.beta1, config.beta2), fused=True)
    sampler, B = Sampler(data, replace(config, codeswitch_ratio=0.0)), config.batch_size

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        made = sampler.batch(np.arange(step * B, (step + 1) * B))
        # It shifts the labels itself, and leaves out -100.
        labels = torch.full_like(made.targets, -100)
        labels[:, 1:] = torch.where(made.targets < 0, -100, made.targets)[:, :-1]
        return made.inputs, labels

    # As nanoGPT's loop does it: gradients add up over micro-batches, and are clipped once.
    def take(step: int, made: Any) -> None:
        for rows in zip(*(x.split(config.micro_batch_size) for x in made)):
            inputs, labels = (to_device(x, hardware.device) for x in rows)
            with hardware.autocast:
                loss = network(input_ids=inputs, labels=labels, use_cache=False).loss
            (loss * len(inputs) / B).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield "GPT2LMHeadModel", batch, take


def speed(batch: Callable, take: Callable, config: Config, hardware: Hardware) -> float:
    """The tokens/s of at most MOST steps, made after WARM_UP others."""
    # Steps of stage 2, which also has facts.
    first = config.stage1_steps + 1
    # A thread makes the batches, as in train.py.
    batches = prefetch(batch, range(first, first + WARM_UP + MOST))
    for step in range(first, first + WARM_UP):
        synchronize(hardware.device)
        begin = time.perf_counter()
        take(step, next(batches))
    synchronize(hardware.device)
    # The last step of the warm-up says how many there is time for.
    count = max(1, round(min(MOST, SECONDS / (time.perf_counter() - begin))))
    # From here to the end nothing waits for the GPU, as in training.
    begin = time.perf_counter()
    for step in range(first + WARM_UP, first + WARM_UP + count):
        take(step, next(batches))
    synchronize(hardware.device)
    seconds = time.perf_counter() - begin
    batches.close()
    return count * config.batch_size * config.block_size / seconds


def main(arguments: list[str]) -> None:
    config = load(arguments, __doc__)
    config = replace(config, batch_size=min(config.batch_size, SLICE * config.micro_batch_size))
    hardware, data = start(config), Folder(config.data_dir)
    on_gpu, rate = hardware.device.type == "cuda", matmul_rate(hardware)
    # The operations of the language model alone, in stage 1 too. On "meta" nothing is allocated.
    with torch.device("meta"):
        flops = make_model(config, data.vocab_size).flops_per_token()
    machine = {"device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
               "threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": str(hardware.dtype),
               "matmul_gflops": round(rate / 1e9), "ids": data.vocab_size}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    models = [ours, theirs]
    if not find_spec("transformers"):
        print("GPT2LMHeadModel is not measured: pip install transformers")
        models = [ours]
    os.makedirs(config.out_dir, exist_ok=True)
    # Line by line, when it is measured: the run may be cut short.
    with open(os.path.join(config.out_dir, "bench.jsonl"), "a", encoding="utf-8", buffering=1) as file:
        file.write(json.dumps(machine | {"config": config.plain()}) + "\n")
        for model in models:
            for name, batch, take in model(config, hardware, data):
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                tokens_per_s = speed(batch, take, config, hardware)
                record = {"row": name, "tokens_per_s": tokens_per_s, "mfu": tokens_per_s * flops / rate}
                line = f"{name:20} {tokens_per_s:10,.0f} tokens/s  {record['mfu']:6.1%} of the matrix rate"
                if on_gpu:
                    record["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
                    line += f"  {record['peak_gb']:6.2f} GB"
                print(line, flush=True)
                file.write(json.dumps(record) + "\n")
            # The model goes before another one comes, its compiled code too.
            del batch, take
            torch._dynamo.reset()
            gc.collect()


if __name__ == "__main__":
    run_main(main)
