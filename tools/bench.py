"""
How fast it is on this machine, against the machine's matrix products and against what people would use instead.

    python data.py config/bench.py && python -m tools.bench config/bench.py        # a table, and OUT_DIR/bench.jsonl
    python -m tools.bench config/paper.py config/size/1.3b.py       # each further file is a size on top of the first

What matters most is measured first, and printed and written at once, so that a run may be cut short. A step has SLICE
micro-batches, or the config's own batch if that is smaller; where a micro-batch does not fit the GPU it is halved.
Beside ours, transformers' GPT2LMHeadModel of the same shape is trained on the same batches in a plain loop. Peak memory
is measured on a GPU only.
"""

import contextlib
import gc
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

import eval as evaluation
from corpus.folder import Folder
from data import Sampler, prefetch
from prealign import Alignment
from report.tables import markdown_table
from runtime import config as configs
from runtime import errors
from runtime.checkpoint import make_model
from runtime.config import Config
from runtime.errors import UserError, is_out_of_memory
from runtime.hardware import Hardware, bf16_pays, matmul_rate, pinned, start, synchronize
from train import set_up, take_step

SLICE, WARM_UP = 4, 3    # micro-batches of a step, and steps before the measured ones
MOST, SECONDS = 10, 5.0  # measured steps, or fewer in so much time


class Ours:
    """Steps of train.py's loop, from the middle of a run."""

    def __init__(self, config: Config, hardware: Hardware, data: Folder, compiled: bool):
        torch.manual_seed(config.seed)
        with hardware.device:
            self.model = make_model(config, data.vocab_size)
        self.data, self.training = data, set_up(config, hardware, data, self.model, Alignment)
        self.compiled, self.make = self.training.compiled, self.training.batch

    def turn_to(self, config: Config) -> None:
        """Go on with another loss and other batches; the model and its compiled code stay."""
        training = self.training
        training.config, training.sampler = config, Sampler(self.data, config)
        training.objective = Alignment(config, training.sampler.table, training.hardware)

    def take(self, step: int, made: Any) -> None:
        batch, words = made
        take_step(self.training, step, batch, words, int((batch.targets >= 0).sum()))


class Theirs:
    """Steps of a plain loop with transformers' GPT2LMHeadModel."""

    def __init__(self, config: Config, hardware: Hardware, data: Folder, compiled: bool):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(config.seed)
        shape = GPT2Config(vocab_size=data.vocab_size, n_positions=config.block_size, n_embd=config.n_embd,
                           n_layer=config.n_layer, n_head=config.n_head,
                           resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
                           tie_word_embeddings=config.tie_embeddings)
        with hardware.device:
            self.model: Any = GPT2LMHeadModel(shape).train()
        self.hardware, self.data, self.compiled = hardware, data, compiled
        self.network = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate,
                                           betas=(config.beta1, config.beta2), fused=True)

    def turn_to(self, config: Config) -> None:
        self.config, self.sampler = config, Sampler(self.data, config)

    def make(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        B, device = self.config.batch_size, self.hardware.device
        batch = self.sampler.batch(np.arange(step * B, (step + 1) * B))
        # It shifts the labels itself, and leaves out -100.
        labels = torch.full_like(batch.targets, -100)
        labels[:, 1:] = torch.where(batch.targets < 0, -100, batch.targets)[:, :-1]
        return pinned(batch.inputs, device), pinned(labels, device)

    def take(self, step: int, made: Any) -> None:
        B, size = self.config.batch_size, self.config.micro_batch_size
        for begin in range(0, B, size):
            inputs, labels = (x[begin:begin + size].to(self.hardware.device, non_blocking=True) for x in made)
            with self.hardware.autocast:
                loss = self.network(input_ids=inputs, labels=labels, use_cache=False).loss
            (loss * len(inputs) / B).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# ----------------------------------------------------------------------------------------------------------------------
# What is measured


def timed(model: Ours | Theirs, config: Config, hardware: Hardware, most: int, seconds: float,
          watch: contextlib.AbstractContextManager | None = None) -> tuple[int, float]:
    """
    How many steps were made after WARM_UP others, `most` or as many as take `seconds`, and the time that they took.
    `watch` is entered for them. A thread makes the batches, as in train.py.
    """
    first = config.stage1_steps + 1
    batches = prefetch(model.make, range(first, first + WARM_UP + most))
    for step in range(first, first + WARM_UP):
        synchronize(hardware.device)
        begin = time.perf_counter()
        model.take(step, next(batches))
    synchronize(hardware.device)
    count = max(1, round(min(most, seconds / (time.perf_counter() - begin))))
    with watch or contextlib.nullcontext():
        begin = time.perf_counter()
        for step in range(first + WARM_UP, first + WARM_UP + count):
            model.take(step, next(batches))
        synchronize(hardware.device)
        spent = time.perf_counter() - begin
    batches.close()
    return count, spent


def steps(model: Ours | Theirs, config: Config, hardware: Hardware) -> dict:
    count, seconds = timed(model, config, hardware, MOST, SECONDS)
    tokens = count * config.batch_size * config.block_size
    return {"steps": count, "seconds_per_step": seconds / count, "tokens_per_s": tokens / seconds}


def evaluate(model: Ours, config: Config, hardware: Hardware) -> dict:
    def predicted(number: int) -> int:
        some = replace(config, eval_tokens=number)
        return evaluation.language_model(model.model, model.data, model.data.pivot, some)["tokens"]

    predicted(1000)  # libraries load
    begin = time.perf_counter()
    tokens = predicted(65_536 if hardware.device.type == "cuda" else 4_096)
    return {"tokens_per_s": tokens / (time.perf_counter() - begin)}


def profile(model: Ours, config: Config, hardware: Hardware, number: int = 2, shown: int = 10) -> dict:
    """What steps spend most time on, kernels of a GPU or operators of a CPU, and the share of time without any."""
    on_gpu = hardware.device.type == "cuda"
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
    _, whole = timed(model, config, hardware, number, math.inf, profiler)
    spent: dict[str, list[float]] = {}  # seconds, of each time that it ran
    busy, end = 0.0, -math.inf          # microseconds
    for e in sorted(profiler.events(), key=lambda e: e.time_range.start):
        if on_gpu and (e.device_type != DeviceType.CUDA or e.is_user_annotation):
            continue
        microseconds = e.time_range.elapsed_us() if on_gpu else e.self_cpu_time_total
        spent.setdefault(e.name, []).append(microseconds / 1e6)
        # Kernels may overlap, in several streams; operators of a CPU hold others, of which only their own time counts.
        busy += max(0.0, e.time_range.end - max(e.time_range.start, end)) if on_gpu else microseconds
        end = max(end, e.time_range.end)
    top = sorted(spent, key=lambda name: -sum(spent[name]))[:shown]
    return {"idle_share": 1 - busy / 1e6 / whole, "kernels": [
        {"name": name, "calls_per_step": len(spent[name]) / number, "ms_per_step": 1000 * sum(spent[name]) / number,
         "share": sum(spent[name]) / whole} for name in top]}


class Row(NamedTuple):
    kind: type[Ours] | type[Theirs]
    measure: Callable[[Any, Config, Hardware], dict]
    change: Callable[[Config], Config] = lambda config: replace(config, codeswitch_ratio=0.0)
    compiled: bool = False  # of theirs; ours are as config.compile says


ROWS = {
    "step": Row(Ours, steps),
    "step, codeswitching": Row(Ours, steps, lambda c: replace(c, codeswitch_ratio=c.codeswitch_ratio or 0.05)),
    "step of stage 1": Row(Ours, steps, lambda c: c.stage1()),
    "evaluation": Row(Ours, evaluate),
    "profile": Row(Ours, profile),
    "GPT2LMHeadModel, compiled": Row(Theirs, steps, compiled=True),
    "GPT2LMHeadModel": Row(Theirs, steps),
}


def plan(sizes: list[str], on_gpu: bool) -> list[tuple[str, str]]:
    """(size, row), in the order of their worth: the first size, a step of the others, the first once more, the rest."""
    there = [name for name, row in ROWS.items()
             if row.kind is Ours or (find_spec("transformers") is not None and (on_gpu or not row.compiled))]
    again = ["step", *[name for name in there if ROWS[name].kind is Theirs][:1]]
    return [*((sizes[0], name) for name in there), *((size, "step") for size in sizes[1:]),
            *((sizes[0], name) for name in again),
            *((size, name) for size in sizes[1:] for name in there if name not in ("step", "profile"))]


def measured(size: str, config: Config, name: str, hardware: Hardware, data: Folder, kept: dict) -> dict:
    """
    A row, with the config's micro-batch or the largest half, quarter, ... of it that fits; or what went wrong. `kept`
    has the model of the row before, which is used again if it is the same, and gets this one's.
    """
    def free() -> None:
        kept.clear()
        torch._dynamo.reset()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()

    row, on_gpu = ROWS[name], hardware.device.type == "cuda"
    key = size, row.kind, row.compiled
    if key not in kept:
        free()
    rows = min(config.batch_size, SLICE * config.micro_batch_size)
    micro, model = kept.get(key, (min(rows, config.micro_batch_size), None))
    while micro:
        part = row.change(replace(config, batch_size=rows, micro_batch_size=micro))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            model = model or row.kind(part, hardware, data, row.compiled)
            kept[key] = micro, model
            model.turn_to(part)
            record = {"size": size, "row": name, "rows": rows, "micro_batch_size": micro, "compiled": model.compiled}
            record |= row.measure(model, part, hardware)
            return record | ({"peak_memory": torch.cuda.max_memory_allocated()} if on_gpu else {})
        except Exception as e:  # of whatever library: the other rows are worth having all the same
            if is_out_of_memory(e):
                micro, error = micro // 2, "does not fit, even with one row at a time"
            else:
                micro, error = 0, f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        # Here, as the exception holds what was on the GPU until its block ends.
        model = None
        free()
    return {"size": size, "row": name, "error": error}


# ----------------------------------------------------------------------------------------------------------------------
# The table


def sampler_rate(config: Config, data: Folder, rows: int = 64) -> float:
    """Tokens per second of making batches, by one core."""
    sampler, first, made = Sampler(data, config), config.stage1_steps * config.batch_size, 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < 1:
        sampler.batch(np.arange(first + made, first + made + rows))
        made += rows
    return made * config.block_size / (time.perf_counter() - begin)


def machine(config: Config, hardware: Hardware, data: Folder) -> dict:
    """What the rows were measured on, and its limits."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        name = next((line.partition(": ")[2].strip() for line in f if line.startswith("model name")), name)
    name += ", with bf16" if bf16_pays(torch.device("cpu")) else ", without bf16"
    packages = [name for name in ("torch", "numpy", "transformers") if find_spec(name)]
    return {
        "device": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else name,
        "threads": torch.get_num_threads(), "dtype": str(hardware.dtype), "ids": data.vocab_size,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "command": sys.argv, "matmul_flops": matmul_rate(hardware),
        "sampler_tokens_per_s": {name: sampler_rate(ROWS[name].change(config), data) for name in list(ROWS)[:2]}}


def completed(record: dict, config: Config, flops: float, peak: float, step: dict | None) -> dict:
    """
    A row with what follows from it: its share of the matrix rate `peak`, by the language model's operations alone, and
    how it stands to the last plain step of its size. Stage 1 has the entries of a whole batch beside a slice of its
    rows; so for it also the rate of a whole batch.
    """
    if "seconds_per_step" not in record or step is None:
        return record
    more = {"mfu": record["tokens_per_s"] * flops / peak, "by_step": record["tokens_per_s"] / step["tokens_per_s"]}
    slices = config.batch_size / record["rows"]
    if record["row"] == "step of stage 1" and slices > 1:
        seconds = record["seconds_per_step"] + (slices - 1) * step["seconds_per_step"]
        more["whole_batch_tokens_per_s"] = config.batch_size * config.block_size / seconds
    return record | more


HEADER = (f"| {'size':5} | {'row':25} | {'tokens/s':>9} | of the matrix rate | by the step | peak memory, GB | "
          "rows, at a time |")


def row_text(record: dict) -> str:
    """A row of the table, or the table of a profile."""
    if "kernels" in record:
        rows = [[k["name"][:80], f"{k['calls_per_step']:,.0f}", f"{k['ms_per_step']:,.1f}", f"{100 * k['share']:.1f}%"]
                for k in record["kernels"]]
        rows.append(["none", "", "", f"{100 * record['idle_share']:.1f}%"])
        return f"\n{markdown_table([record['size'] + ', one step', 'calls', 'ms', 'of the time'], rows)}\n"
    start = f"| {record['size']:5} | {record['row']:25} | "
    if "error" in record:
        return start + record["error"]
    mfu, by_step, memory = (record.get(key) for key in ("mfu", "by_step", "peak_memory"))
    cells = [f"{record['tokens_per_s']:9,.0f}", f"{'-' if mfu is None else f'{100 * mfu:.1f}%':>18}",
             f"{'-' if by_step is None else f'{by_step:.3f}':>11}",
             f"{'-' if memory is None else f'{memory / 1e9:.2f}':>15}",
             f"{record['rows']}, {record['micro_batch_size']}"]
    whole = record.get("whole_batch_tokens_per_s")
    return start + " | ".join(cells) + " |" + " compiled" * record["compiled"] + (
        f" whole batch: {whole:,.0f} tokens/s" if whole else "")


def main(arguments: list[str]) -> None:
    knobs = [a for a in arguments if a.startswith("--")]
    configs.load(knobs, __doc__)
    files = [a for a in arguments if not a.startswith("--")]
    sizes = {os.path.basename(path).removesuffix(".py"): configs.load([files[0], path, *knobs]) for path in files}
    if not sizes:
        raise UserError("expected: python -m tools.bench CONFIG ... [--knob=value ...]; config/bench.py is for a CPU")
    sizes = {size: replace(config, stage1_steps=max(1, config.stage1_steps)) for size, config in sizes.items()}
    first = next(iter(sizes.values()))
    hardware, data = start(first), Folder(first.data_dir)
    os.makedirs(first.out_dir, exist_ok=True)
    failed, kept, step = [], {}, {}  # type: ignore[var-annotated]
    with open(os.path.join(first.out_dir, "bench.jsonl"), "w", encoding="utf-8") as file:
        def write(record: dict, line: str) -> None:
            print(line, flush=True)
            file.write(json.dumps(record) + "\n")
            file.flush()

        limits = machine(first, hardware, data)
        plain, switching = limits["sampler_tokens_per_s"].values()
        write(limits | {"configs": {size: config.plain() for size, config in sizes.items()}},
              f"{limits['device']}, {limits['threads']} threads, torch {torch.__version__}, {limits['dtype']}, "
              f"{limits['ids']:,} ids\nmatrix products: {limits['matmul_flops'] / 1e9:,.0f} GFLOP/s; batches, by one "
              f"core: {plain:,.0f} tokens/s, with codeswitching {switching:,.0f}\n\n{HEADER}")
        for size, name in plan(list(sizes), hardware.device.type == "cuda"):
            record = measured(size, sizes[size], name, hardware, data, kept)
            if name == "step" and "error" not in record:
                step[size] = record  # the last plain step of each size
            with torch.device("meta"):
                flops = make_model(sizes[size], data.vocab_size).flops_per_token()
            record = completed(record, sizes[size], flops, limits["matmul_flops"], step.get(size))
            write(record, row_text(record))
            if not record.get("error", "does not fit").startswith("does not fit"):
                failed.append(f"{size} {name}")
    if failed:
        raise UserError(f"not measured: {', '.join(failed)}; the rows say why")


if __name__ == "__main__":
    errors.run(main)
