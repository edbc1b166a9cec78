"""
How fast it is on this machine, against the machine's own limits and against what people would use instead.

    python data.py config/bench.py && python bench.py config/bench.py        # prints a table, writes OUT_DIR/bench.json

Variants are run in turns in one process, a few steps at a time; rates are medians over the rounds. Peak memory is that of a process
of its own that makes a few steps, less what it had before them. Where `transformers` is installed, its GPT2LMHeadModel of the same
shape is trained on the same batches in a plain loop.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import config as configs
import eval as evaluation
from batches import Sampler, prefetch
from bins import Encoder
from checkpoint import make_model
from config import Config
from corpus import documents
from dataset import Dataset
from hardware import Hardware, matmul_rate, start
from prealign import stage1_config
from report import markdown_table
from train import set_up, take_step

ROUNDS = 7
SECONDS = 4.0  # of a round


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of copying a large array on the device."""
    a = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    b, best = torch.empty_like(a), float("inf")
    for _ in range(10):
        synchronize(device)
        begin = time.perf_counter()
        b.copy_(a)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * a.numel() * a.element_size() / best


Steps = Callable[[int], None]  # make so many steps


def ours(config: Config, hardware: Hardware, data: Dataset) -> Steps:
    """Steps of train.py's loop, batches made ahead by its thread, from the middle of a run."""
    torch.manual_seed(config.seed)
    training = set_up(config, hardware, data, make_model(config, data.vocab_size))
    state = {"step": config.stage1_steps + 1}

    def steps(number: int) -> None:
        first = state["step"]
        for step, (batch, words) in zip(range(first, first + number), prefetch(training.batch, range(first, first + number))):
            take_step(training, step, batch, words, int((batch.targets >= 0).sum()))
        state["step"] += number
        synchronize(hardware.device)

    return steps


def theirs(config: Config, hardware: Hardware, data: Dataset) -> Steps | None:
    """The same model and batches with transformers' GPT2LMHeadModel in a plain loop; None where it is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    torch.manual_seed(config.seed)
    model: Any = GPT2LMHeadModel(GPT2Config(
        vocab_size=data.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=config.tie_embeddings))
    model = model.to(hardware.device).train()
    if hardware.device.type == "cuda" and config.compile != "off":
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    sampler, state = Sampler(data, config), {"step": config.stage1_steps + 1}

    def steps(number: int) -> None:
        for step in range(state["step"], state["step"] + number):
            batch = sampler.batch(np.arange(step * config.batch_size, (step + 1) * config.batch_size))
            for begin in range(0, config.batch_size, config.micro_batch_size):
                rows = slice(begin, begin + config.micro_batch_size)
                inputs, labels = torch.from_numpy(batch.inputs[rows]).to(hardware.device), torch.from_numpy(batch.targets[rows]).to(hardware.device)
                labels = torch.cat([torch.full_like(labels[:, :1], -100), torch.where(labels < 0, -100, labels)[:, :-1]], dim=1)  # it shifts them itself
                with hardware.autocast:
                    loss = model(input_ids=inputs, labels=labels, use_cache=False).loss
                (loss * len(inputs) / config.batch_size).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += number
        synchronize(hardware.device)

    return steps


VARIANTS: dict[str, tuple[Callable[[Config, Hardware, Dataset], Steps | None], Callable[[Config], Config]]] = {
    "step": (ours, lambda c: replace(c, codeswitch_ratio=0.0)),
    "step, codeswitching": (ours, lambda c: replace(c, codeswitch_ratio=c.codeswitch_ratio or 0.05)),
    "step of stage 1": (ours, stage1_config),
    "GPT2LMHeadModel": (theirs, lambda c: replace(c, codeswitch_ratio=0.0)),
}


def in_turns(variants: dict[str, Steps], tokens: int) -> dict[str, float]:
    """Tokens per second of each, the median over rounds in which all take their turns."""
    number = {}
    for name, steps in variants.items():
        steps(3)  # warm-up, and compiling
        begin = time.perf_counter()
        steps(2)
        number[name] = max(2, round(SECONDS / ((time.perf_counter() - begin) / 2)))
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(ROUNDS), desc="rounds", disable=None):
        for name, steps in variants.items():
            begin = time.perf_counter()
            steps(number[name])
            rates[name].append(number[name] * tokens / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def peak_resident() -> int:
    """The most bytes of main memory that this process has held since `forget_peak`, or, where there is no /proc, ever."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """A process inherits the peak of the one that started it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def peak_memory(name: str, config: Config, queue: multiprocessing.Queue) -> None:
    """Run in a process of its own: bytes that three steps add to what it holds before them."""
    hardware, data = start(config), Dataset(config.data_dir)
    make, change = VARIANTS[name]
    torch.ones(256, 256, dtype=hardware.dtype, device=hardware.device) @ torch.ones(256, 256, dtype=hardware.dtype, device=hardware.device)  # libraries load
    forget_peak()
    before = peak_resident()
    steps = make(change(config), hardware, data)
    assert steps is not None  # or it would not have been timed
    steps(3)
    if hardware.device.type == "cuda":
        queue.put(torch.cuda.max_memory_allocated())
    else:
        queue.put(peak_resident() - before)


def memory_of(name: str, config: Config) -> int:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_memory, args=(name, config, queue))
    process.start()
    value = queue.get()
    process.join()
    return value


def rate(make: Callable[[], int], seconds: float = SECONDS) -> float:
    """How many a second, where make() makes some and says how many."""
    make()
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        made += make()
    return made / (time.perf_counter() - begin)


def sampler_rate(config: Config, data: Dataset, rows: int = 64) -> float:
    """Tokens per second of making batches, by one core."""
    sampler, first = Sampler(data, config), [config.stage1_steps * config.batch_size]

    def make() -> int:
        first[0] += rows
        return sampler.batch(np.arange(first[0] - rows, first[0])).inputs.size

    return rate(make)


def encoding_rate(config: Config, data: Dataset) -> float:
    """Bytes per second of text to token and alignment ids, by one core."""
    table, words = data.table, []
    for entry in range(len(table)):
        words.append(data.encoding.decode(table.word(table.words(entry, 0)[0]).tolist()))
    encoder, texts = Encoder(data.encoding, words), []
    for text in documents(config.source_of(config.pivot)):
        texts.append(text)
        if sum(map(len, texts)) > 2e6:
            break

    def make() -> int:
        encoder.chunks.clear()
        for text in texts:
            encoder(text)
        return sum(len(text.encode()) for text in texts)

    return rate(make)


def main(arguments: list[str]) -> None:
    config = configs.load(arguments, __doc__)
    config = replace(config, stage1_steps=max(1, config.stage1_steps))
    hardware, data = start(config), Dataset(config.data_dir)
    variants = {}
    for name, (make, change) in VARIANTS.items():
        if (steps := make(change(config), hardware, data)) is not None:
            variants[name] = steps
    model = make_model(config, data.vocab_size)
    matmul, copy = matmul_rate(hardware), copy_rate(hardware.device)
    rates = in_turns(variants, config.batch_size * config.block_size)
    memory = {name: memory_of(name, config) for name in tqdm(variants, desc="memory", disable=None)}
    model.to(hardware.device).eval()
    evaluated = replace(config, eval_tokens=min(20_000, data.splits["val"][data.pivot]["tokens"]))
    begin = time.perf_counter()
    tokens = evaluation.language_model(model, data, data.pivot, evaluated)["tokens"]
    result = {
        "device": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "dtype": str(hardware.dtype), "torch": torch.__version__, "command": sys.argv, "config": config.plain(),
        "parameters": sum(p.numel() for p in model.parameters()), "matmul_flops": matmul, "copy_bytes_per_s": copy,
        "tokens_per_s": rates, "mfu": {name: value * model.flops_per_token() / matmul for name, value in rates.items()}, "peak_memory": memory,
        "evaluation_tokens_per_s": tokens / (time.perf_counter() - begin),
        "sampler_tokens_per_s": {"plain": sampler_rate(replace(config, codeswitch_ratio=0.0), data),
                                 "codeswitching": sampler_rate(replace(config, codeswitch_ratio=config.codeswitch_ratio or 0.05), data)},
        "encoding_bytes_per_s": encoding_rate(config, data)}
    print(f"{result['device']}, {result['threads']} threads, torch {torch.__version__}, {hardware.dtype}; {result['parameters'] / 1e6:.1f}M parameters, "
          f"{config.batch_size} x {config.block_size} tokens a step, {data.vocab_size:,} ids\n"
          f"limits measured here: matrix products {matmul / 1e9:,.0f} GFLOP/s, copying {copy / 1e9:,.1f} GB/s\n")
    print(markdown_table(["", "tokens/s", "share of the matrix rate", "against the first", "peak memory, MB"], [
        [name, f"{value:,.0f}", f"{100 * result['mfu'][name]:.1f}%", f"{value / rates['step']:.2f}", f"{memory[name] / 1e6:,.0f}"] for name, value in rates.items()]))
    print(f"\nsampler, one core: {result['sampler_tokens_per_s']['plain']:,.0f} tokens/s, codeswitching {result['sampler_tokens_per_s']['codeswitching']:,.0f}; "
          f"text to ids, one core: {result['encoding_bytes_per_s'] / 1e6:.1f} MB/s; evaluation: {result['evaluation_tokens_per_s']:,.0f} tokens/s")
    os.makedirs(config.out_dir, exist_ok=True)
    with open(os.path.join(config.out_dir, "bench.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)


if __name__ == "__main__":
    configs.run(main)
