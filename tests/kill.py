"""
Killed at random moments and started again, a run ends as if nothing had happened: the same data, weights and results.

    python tests/kill.py config/demo.py --kills=50 --folder=out/kill

Runs the four verbs undisturbed, then in another folder with kill -9, and compares to the bit. Exit code 1 when
something differs, or when no kill came after a checkpoint. Needs a CPU: a GPU adds up in any order. Other --knob=value
go on to every verb.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
METHOD = str(ROOT / "config/method/prealign.py")
VERBS = {"data.py": [], "prealign.py": [], "train.py": [METHOD], "eval.py": [METHOD]}
DIFFER = {"metrics.jsonl": ("tokens_per_s", "mfu"), "eval.json": ("config",)}


def start(verb: str, arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, verb, *arguments, *VERBS[verb]], cwd=ROOT, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps(folder: Path) -> int:
    """The steps of all checkpoints below a folder."""
    return sum(torch.load(path, weights_only=True, mmap=True)["step"] for path in folder.rglob("checkpoint.pt"))


def content(path: Path) -> object:
    """What must be the same of a file: not times, dates and the folder's own name. None of one that is not there."""
    if not path.exists():
        return None
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        values = tree_leaves([state["model"], state["optimizer"].get("state", {})])
        return state["step"], [torch.as_tensor(value).tolist() for value in values]
    if path.name in DIFFER:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [[item for item in json.loads(line).items() if item[0] not in DIFFER[path.name]] for line in lines]
    return path.name == "run.json" or path.read_bytes()


def differences(a: Path, b: Path) -> list[str]:
    """The files that are not the same in two folders."""
    names = {path.relative_to(folder) for folder in (a, b) for path in folder.rglob("*") if path.is_file()}
    return [str(name) for name in sorted(names) if content(a / name) != content(b / name)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("out/kill"))
    options, knobs = parser.parse_known_args(arguments)
    if options.folder.exists():
        sys.exit(f"{options.folder} is there, and what is finished would not run again: delete it")
    rng, seconds, kills, further = random.Random(0), {}, 0, 0
    for name in ("whole", "killed"):
        folder = options.folder.absolute() / name
        own = [*knobs, "--device=cpu", "--checkpoint_interval=20", f"--data_dir={folder}/d", f"--out_dir={folder}/out"]
        for verb in VERBS:
            begin, process, trains = time.monotonic(), start(verb, own), verb in ("prealign.py", "train.py")
            # In proportion to the time that each takes, at any moment from its start on.
            share = max(1, round(options.kills * seconds[verb] / sum(seconds.values()))) if name == "killed" else 0
            for number in range(share):
                before = steps(folder)
                time.sleep(rng.uniform(0.2, min(seconds[verb], 4 + 2 * seconds[verb] / share)))
                # Every other kill of a training waits for a checkpoint, so that there is something to go on from.
                while trains and number % 2 == 0 and process.poll() is None and steps(folder) == before:
                    time.sleep(0.05)
                if process.poll() is not None:
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills, further = kills + 1, further + (steps(folder) > before)
                process = start(verb, own)
            if process.wait():
                sys.exit(f"failed; run it by hand to see why: {' '.join(process.args)}")
            seconds.setdefault(verb, time.monotonic() - begin)
    different = differences(options.folder / "whole", options.folder / "killed")
    print(f"{kills} kills, {further} of them after new checkpoints: {', '.join(different) or 'the same to the bit'}")
    return bool(different) or not further


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
