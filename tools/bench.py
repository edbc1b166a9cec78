"""
How fast it is on this machine, against the machine's own limits and against what people would use instead.

    python data.py config/bench.py && python -m tools.bench config/bench.py        # prints a table, writes OUT_DIR/bench.json
    python -m tools.bench profile config/bench.py                                  # what a training step spends its time on

Every variant has a process of its own, as a setting of ours (kept memory) would help the others too; they work in turns, a few steps at
a time, and rates are medians over the rounds. Peak memory is what a process held at most, less what it held before its model was made. Where
`transformers` is installed, its GPT2LMHeadModel of the same shape is trained on the same batches in a plain loop.
"""

import contextlib
import io
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from runtime import config as configs
from runtime import errors
import eval as evaluation
from data import Sampler, prefetch
from runtime.checkpoint import make_model
from runtime.config import Config
from runtime.errors import UserError
from corpus.build import documents
from data import prepare
from corpus.folder import Folder
from runtime.files import write_json, write_text
from runtime.hardware import Hardware, bf16_pays, matmul_rate, start, synchronize
from prealign import contrastive_loss
from report.tables import markdown_table
from train import set_up, take_step

ROUNDS = 7
SECONDS = 4.0  # of a round


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


def ours(config: Config, hardware: Hardware, data: Folder) -> Steps:
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


def theirs(config: Config, hardware: Hardware, data: Folder) -> Steps | None:
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
                inputs, labels = batch.inputs[rows].to(hardware.device), batch.targets[rows].to(hardware.device)
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


VARIANTS: dict[str, tuple[Callable[[Config, Hardware, Folder], Steps | None], Callable[[Config], Config]]] = {
    "step": (ours, lambda c: replace(c, codeswitch_ratio=0.0)),
    "step, codeswitching": (ours, lambda c: replace(c, codeswitch_ratio=c.codeswitch_ratio or 0.05)),
    "step of stage 1": (ours, lambda c: c.stage1()),
    "GPT2LMHeadModel": (theirs, lambda c: replace(c, codeswitch_ratio=0.0)),
}


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


def serve(name: str, config: Config, pipe: Connection) -> None:
    """
    A variant in a process of its own: for every number it is sent, the seconds that so many steps take; at the end (None) the bytes
    that its steps have added at most to what the process held before them. Before all that it sends whether the variant is there.
    """
    make, change = VARIANTS[name]
    hardware, data = start(config, keep_memory=make is ours), Folder(config.data_dir)  # a plain loop has the allocator as it comes
    torch.ones(256, 256, dtype=hardware.dtype, device=hardware.device) @ torch.ones(256, 256, dtype=hardware.dtype, device=hardware.device)  # libraries load
    forget_peak()
    before = peak_resident()
    steps = make(change(config), hardware, data)
    pipe.send(steps is not None)
    if steps is None:
        return
    while (number := pipe.recv()) is not None:
        steps(1)  # others have had the caches, and the GPU's memory
        begin = time.perf_counter()
        steps(number)
        pipe.send(time.perf_counter() - begin)
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()  # the GPU is shared with the other variants
    pipe.send(torch.cuda.max_memory_allocated() if hardware.device.type == "cuda" else peak_resident() - before)


def reply(name: str, pipe: Connection) -> Any:
    """What `serve` sends. Raises UserError when it has ended instead."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError) as e:
        raise UserError(f"{name} has ended, perhaps for want of memory; its own message is above; a smaller --micro_batch_size needs less") from e


def in_turns(config: Config) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Tokens per second of each variant in every round, and its peak memory. Every other round goes backwards, so that all have other neighbours."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in VARIANTS:
        pipe, other = context.Pipe()
        process = context.Process(target=serve, args=(name, config, other), daemon=True)
        process.start()
        other.close()
        if reply(name, pipe):
            pipes[name] = pipe
            processes.append(process)

    def seconds(name: str, number: int) -> float:
        pipes[name].send(number)
        return reply(name, pipes[name])

    number: dict[str, int] = {}
    for name in pipes:
        seconds(name, 2)  # warm-up, and compiling
        number[name] = max(2, round(SECONDS / (seconds(name, 2) / 2)))
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for round_ in tqdm(range(ROUNDS), desc="rounds", disable=None):
        for name in reversed(pipes) if round_ % 2 else pipes:
            rates[name].append(number[name] * config.batch_size * config.block_size / seconds(name, number[name]))
    memory = {}
    for name, pipe in pipes.items():
        pipe.send(None)
        memory[name] = reply(name, pipe)
    for process in processes:
        process.join()
    return rates, memory


def processor() -> str:
    """The CPU's name, and whether it has instructions for bf16."""
    try:
        with open("/proc/cpuinfo") as f:
            fields = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines())
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        name = f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    except (OSError, LookupError, ValueError):
        name = platform.processor() or platform.machine()
    return f"{name}, {'with' if bf16_pays(torch.device('cpu')) else 'without'} bf16"


def rate(make: Callable[[], int], seconds: float = SECONDS) -> float:
    """How many a second, where make() makes some and says how many."""
    make()
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        made += make()
    return made / (time.perf_counter() - begin)


def sampler_rate(config: Config, data: Folder, rows: int = 64) -> float:
    """Tokens per second of making batches, by one core."""
    sampler, first = Sampler(data, config), [config.stage1_steps * config.batch_size]

    def make() -> int:
        first[0] += rows
        return sampler.batch(np.arange(first[0] - rows, first[0])).inputs.numel()

    return rate(make)


def preparation_rate(config: Config) -> float:
    """Bytes per second of which data.py makes a data folder with one process: of a text file of some 8 million characters at most for each language."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for language in config.written:
            texts = documents(replace(config, budget={language: 1e6}), language)
            write_text(os.path.join(folder, f"{language}.txt"), "\n\n".join(texts))
        small = replace(config, data_dir=os.path.join(folder, "data"), source=os.path.join(folder, "{language}.txt"), workers=1, budget={})
        begin = time.perf_counter()
        prepare(small)
        seconds = time.perf_counter() - begin
        return sum(os.path.getsize(small.source_of(language)) for language in config.written) / seconds


def contrastive_times(config: Config, hardware: Hardware, rows: int = 2048) -> tuple[float, float]:
    """Seconds of the contrastive loss of so many words in entries of five, with its gradient, and of its matrix products alone; medians, in turns."""
    torch.manual_seed(config.seed)
    representations = torch.randn(config.n_layer + 2, rows, config.n_embd, device=hardware.device, requires_grad=True)
    entry = torch.arange(rows) // 5

    def loss() -> None:
        contrastive_loss(representations, entry, config.align_tau).backward()

    def products() -> None:
        for layer in representations.detach():
            similarity = layer @ layer.T
            similarity @ layer, similarity.T @ layer

    def seconds(work: Callable[[], None]) -> float:
        synchronize(hardware.device)
        begin = time.perf_counter()
        work()
        synchronize(hardware.device)
        return time.perf_counter() - begin

    times = [(seconds(loss), seconds(products)) for _ in range(ROUNDS + 2)][2:]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def profile(config: Config, hardware: Hardware, data: Folder, number: int = 5, shown: int = 12) -> str:
    """
    A table of what training steps spend most time on, each without what it calls: kernels of a GPU, operators of a CPU; and the
    time in which there was none of them.
    """
    on_gpu = hardware.device.type == "cuda"
    steps = ours(config, hardware, data)
    steps(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        steps(number)
        whole = 1e6 * (time.perf_counter() - begin)
    spent = [(event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key) for event in profiler.key_averages()]  # microseconds
    spent.sort(reverse=True)
    idle = whole - sum(microseconds for microseconds, _, _ in spent)
    return markdown_table(["", "calls a step", "ms a step", "share"], [
        [name[:80], f"{count / number:,.0f}", f"{microseconds / 1000 / number:,.1f}", f"{100 * microseconds / whole:.1f}%"]
        for microseconds, count, name in [*spent[:shown], (idle, 0, "none of them")]])


def main(arguments: list[str]) -> None:
    profiled = arguments[:1] == ["profile"]
    config = configs.load(arguments[profiled:], __doc__)
    config = replace(config, stage1_steps=max(1, config.stage1_steps))
    hardware, data = start(config), Folder(config.data_dir)
    if profiled:
        return print(profile(config, hardware, data))
    rounds, memory = in_turns(config)
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    switching = statistics.median(b / a for a, b in zip(rounds["step"], rounds["step, codeswitching"]))
    matmul, copy = matmul_rate(hardware), copy_rate(hardware.device)
    model = make_model(config, data.vocab_size)
    model.to(hardware.device).eval()
    evaluated = replace(config, eval_tokens=config.eval_tokens if hardware.device.type == "cuda" else 20_000)
    evaluation.language_model(model, data, data.pivot, replace(config, eval_tokens=1000))  # libraries load
    begin = time.perf_counter()
    tokens = evaluation.language_model(model, data, data.pivot, evaluated)["tokens"]
    result = {
        "device": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(), "dtype": str(hardware.dtype), "command": sys.argv, "config": config.plain(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy", "transformers") if find_spec(name)},
        "parameters": sum(p.numel() for p in model.parameters()), "matmul_flops": matmul, "copy_bytes_per_s": copy,
        "tokens_per_s_by_round": rounds, "tokens_per_s": rates, "codeswitching_against_plain": switching,
        "mfu": {name: value * model.flops_per_token() / matmul for name, value in rates.items()}, "peak_memory": memory,
        "evaluation_tokens_per_s": tokens / (time.perf_counter() - begin),
        "sampler_tokens_per_s": {"plain": sampler_rate(replace(config, codeswitch_ratio=0.0), data),
                                 "codeswitching": sampler_rate(replace(config, codeswitch_ratio=config.codeswitch_ratio or 0.05), data)},
        "preparation_bytes_per_s": preparation_rate(config), "contrastive_seconds": dict(zip(("loss", "products"), contrastive_times(config, hardware)))}
    print(f"{result['device']}, {result['threads']} threads, torch {torch.__version__}, {hardware.dtype}; {result['parameters'] / 1e6:.1f}M parameters, "
          f"{config.batch_size} x {config.block_size} tokens a step, {data.vocab_size:,} ids\n"
          f"limits measured here: matrix products {matmul / 1e9:,.0f} GFLOP/s, copying {copy / 1e9:,.1f} GB/s\n")
    print(markdown_table(["", "tokens/s", "share of the matrix rate", "against the first", "peak memory, MB"], [
        [name, f"{value:,.0f}", f"{100 * result['mfu'][name]:.1f}%", f"{value / rates['step']:.2f}", f"{memory[name] / 1e6:,.0f}"] for name, value in rates.items()]))
    print("\nThe share counts the language model's operations alone, in stage 1 too.")
    print(f"With codeswitching against without, in the same round: {switching:.3f} times the tokens/s (median of {ROUNDS} rounds).")
    print(f"sampler, one core: {result['sampler_tokens_per_s']['plain']:,.0f} tokens/s, codeswitching {result['sampler_tokens_per_s']['codeswitching']:,.0f}; "
          f"preparation, one process: {result['preparation_bytes_per_s'] / 1e6:.1f} MB/s of text; evaluation: {result['evaluation_tokens_per_s']:,.0f} tokens/s")
    loss, products = result["contrastive_seconds"].values()
    print(f"contrastive loss of 2,048 words, {config.n_layer + 2} layers, with gradient: {1000 * loss:.0f} ms, {loss / products:.2f} times its matrix products alone")
    os.makedirs(config.out_dir, exist_ok=True)
    write_json(os.path.join(config.out_dir, "bench.json"), result)


if __name__ == "__main__":
    errors.run(main)
