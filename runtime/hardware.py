"""The machine: device, precision, processes, how fast it multiplies matrices, and whether it compiles."""

import contextlib
import ctypes
import functools
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.utils.benchmark import Timer

from model import GPT, linear_cross_entropy
from runtime.config import Config
from runtime.errors import UserError, is_out_of_memory

# Parameters of mallopt(3), whose values are bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Hardware:
    device: torch.device
    # Of the matrix products; weights and optimizer are float32.
    dtype: torch.dtype
    rank: int
    # The number of processes.
    world: int
    # A gloo group for small integers on the CPU, so that counting never waits for the GPU. None without torchrun.
    control: dist.ProcessGroup | None

    @property
    def distributed(self) -> bool:
        return self.control is not None

    @property
    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def bf16_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices itself."""
    # From Ampere on.
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def open_device(config: Config, local_rank: int = 0) -> torch.device:
    """config.device, or for "auto" this process's GPU if there is one, else the CPU (with keep_freed_memory)."""
    if config.device == "cpu" or config.device == "auto" and not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"device={config.device}: this torch sees {torch.cuda.device_count()} CUDA devices; use "
                        "--device=cpu, or as many --nproc_per_node as there are")
    return torch.device("cuda", local_rank)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation; does nothing elsewhere than on Linux with glibc."""
    # By default it gives large blocks back to the kernel, which zeroes them anew: a third of a training step on a CPU.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions refuse more than 32 MB, and then answer 0.
        if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start(config: Config) -> Hardware:
    """Device and precision, and the process group when torchrun started this process."""
    world, rank, local_rank = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    device = open_device(config, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    control = None
    # torchrun has set these variables.
    if world:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        control = dist.new_group(backend="gloo")
    auto = torch.bfloat16 if bf16_pays(device) else torch.float32
    dtype = {"auto": auto, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.dtype]
    return Hardware(device, dtype, rank, max(1, world), control)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work, to measure how long that takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor in memory that a GPU copies from while the CPU goes on; itself if it is there, or without a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor, without waiting for the GPU."""
    return pinned(tensor, device).to(device, non_blocking=True)


@functools.cache
def matmul_rate(hardware: Hardware) -> float:
    """Floating-point operations per second of a large matrix product here in this precision: MFU is a share of it."""
    n = 8192 if hardware.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=hardware.device, dtype=hardware.dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    # The best of a second: what else a machine does only makes it slower.
    return 2 * n**3 / min(timer.blocked_autorange(min_run_time=1).times)


def compile_model(model: GPT, config: Config, hardware: Hardware) -> torch.nn.Module:
    """torch.compile(model) where config.compile says so and it works; else a message, and the model itself."""
    if config.compile == "off" or (config.compile == "auto" and hardware.device.type != "cuda"):
        return model
    try:
        # All gradients of a graph are there at once: they are summed over processes after the last backward pass.
        torch._dynamo.config.optimize_ddp = False
        # The loss stays outside: its loop over chunks would be unrolled into the graph, which would be free to hold all
        # of them at once, and older versions of torch may compile an autograd.Function that works in place wrongly.
        model.loss_function = torch.compiler.disable(linear_cross_entropy)
        network: torch.nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
        # It is compiled here, to see whether that works. Not `ids` twice: a graph for targets that are the inputs
        # themselves would fit no other batch.
        rows = min(config.batch_size // hardware.world, config.micro_batch_size)
        ids = torch.zeros(rows, config.block_size, dtype=torch.long, device=hardware.device)
        with hardware.autocast:
            loss, _ = network(ids, ids.clone())
        loss.backward()
        return network
    # A missing compiler, Triton or header, a kernel that does not fit: each has an exception of its own.
    except Exception as e:
        if is_out_of_memory(e):
            raise
        reason = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
        print(f"torch.compile does not work here ({reason}); process {hardware.rank} goes on without it")
        return model
    finally:
        model.zero_grad(set_to_none=True)
