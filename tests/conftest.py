import contextlib
import dataclasses
import gzip
import lzma
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
with contextlib.suppress(ImportError):
    from backports import zstd
    PACK[".zst"] = lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import prepare  # noqa: E402
from runtime import log  # noqa: E402
from runtime.config import Config  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from tasks.facts import make_facts  # noqa: E402

HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
# Sums are added in the same order everywhere.
torch.set_num_threads(1)
# Runs do not measure the machine, which takes a second.
log.matmul_rate = lambda hardware: 1e9


def make_text(documents: int = 60, seed: int = 0) -> str:
    """English-like text: a few hundred words by Zipf's law, quotes, contractions, numbers, capitals, line ends."""
    rng = random.Random(seed)
    syllables = ["ba", "der", "in", "lo", "mer", "ta", "ost", "u", "ri", "ken", "so", "al"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(300)]
    weights = [1 / (i + 1) for i in range(len(words))]

    def sentence() -> str:
        s = rng.choices(words, weights, k=rng.randint(4, 12))
        s[0] = s[0].capitalize()
        extra = rng.choice(["", f", {s[1]}", f" {rng.randint(1, 3000)}", " don't", f" ({s[1]})", f' "{s[2]}"', " it's"])
        return " ".join(s) + extra + rng.choice(".?!")

    def line() -> str:
        return " ".join(sentence() for _ in range(rng.randint(1, 5)))

    return "\n\n".join("\n".join(line() for _ in range(rng.randint(1, 4))) for _ in range(documents))


@pytest.fixture(autouse=True)
def signals():
    """What runs do with signals is undone."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Config:
    """A prepared folder and the config of a run of seconds. Tests use replace(tiny, ...) with another out_dir."""
    folder = tmp_path_factory.mktemp("tiny")
    # The facts' names stand in the text too, or they would be a token for every letter, and too long for a row.
    facts = make_facts(Config(fact_count=8, fact_frequencies=(3,), fact_objects="software"))
    names = [name for fact in facts for name in (*fact.subject.split(), fact.object)]
    # In an order of its own each time: no two rows of the text are the same.
    lists = ["\n\n" + " ".join(random.Random(k).sample(names, len(names))) + "." for k in range(8)]
    (folder / "text.txt").write_text(make_text() + "".join(lists), encoding="utf-8")
    config = Config(
        data_dir=str(folder / "data"), out_dir=str(folder / "out"), source=str(folder / "text.txt"), vocab_size=400,
        min_count=3, val_fraction=0.1, workers=1, fact_count=8, fact_frequencies=(3,), fact_objects="software",
        mix={"en": 0.75, "clone": 0.25}, batch_size=8, micro_batch_size=4, block_size=32, codeswitch_ratio=0.0,
        n_layer=2, n_head=2, n_embd=32, embedding_init_std=0.1, max_steps=40, stage1_steps=4, align_entries=16,
        device="cpu", dtype="fp32", log_interval=1, checkpoint_interval=5, eval_tokens=0, eval_words=50)
    prepare(config)
    return config


def run_command(*command: str) -> subprocess.CompletedProcess:
    """A command of ours in the repository root, one thread, output captured."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def write(path: Path, content: bytes | str) -> str:
    """`content` at `path`, packed as its name asks; bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else PACK.get(path.suffix, bytes)(content.encode()))
    return str(path)


def error(function, *arguments) -> str:
    """The one line with which a function refuses its arguments."""
    with pytest.raises(UserError) as e:
        function(*arguments)
    assert "\n" not in str(e.value)
    return str(e.value)


def overrides(config: Config, **changes) -> list[str]:
    """The --key=value arguments that make `config` (with changes) from the defaults."""
    default, config = Config(), replace(config, **changes)
    return [f"--{k}={v}" for k, v in dataclasses.asdict(config).items() if v != getattr(default, k)]


class LargestTensor(TorchDispatchMode):
    """While it is entered: `nbytes`, of the largest tensor that was made in it."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.nbytes = max([self.nbytes, *(x.nbytes for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result
