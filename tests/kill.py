"""
Killed at random moments and started again, a run ends as if nothing had happened: the same data, weights and results.

    python tests/kill.py config/demo.py config/method/prealign.py --kills=12 --folder=out/kill

Runs the four verbs undisturbed, then in another folder with up to so many kill -9 each, and compares to the bit. Exit
code 1 when something differs, or when no kill came after a checkpoint. On a CPU, as a GPU adds up in any order.
"""

import argparse
import functools
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("data.py", "prealign.py", "train.py", "eval.py")


def steps(folder: Path) -> int:
    """The steps of all checkpoints below a folder."""
    return sum(torch.load(path, weights_only=True, mmap=True)["step"] for path in folder.rglob("checkpoint.pt"))


def content(path: Path, folder: Path) -> object:
    """What must be the same of a file in two folders: not times and the folder's own name."""
    if path.suffix == ".pt":
        return [(part.filename, part.CRC) for part in zipfile.ZipFile(path).infolist() if "/data/" in part.filename]
    return re.sub(rb'"(tokens_per_s|mfu|matmul_flops)": [^,}]*', b"",
                  path.read_bytes().replace(str(folder).encode(), b""))


def contents(folder: Path) -> dict[Path, object]:
    return {path.relative_to(folder): content(path, folder) for path in folder.rglob("*") if path.is_file()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("out/kill"))
    options, knobs = parser.parse_known_args(arguments)
    # What is finished in it would not run again.
    options.folder.mkdir(parents=True)
    rng, seconds, further = random.Random(0), {}, []
    whole, killed = options.folder.absolute() / "whole", options.folder.absolute() / "killed"
    for folder, verb in itertools.product((whole, killed), VERBS):
        command = [sys.executable, verb, *knobs, "--device=cpu", "--checkpoint_interval=20",
                   f"--data_dir={folder}/d", f"--out_dir={folder}/out"]
        start = functools.partial(subprocess.Popen, command, cwd=ROOT, start_new_session=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin, process = time.monotonic(), start()
        for number in range(options.kills if folder == killed else 0):
            before = steps(folder)
            time.sleep(rng.uniform(0.2, min(seconds[verb], 4 + 2 * seconds[verb] / options.kills)))
            # Every other kill of a training waits for a checkpoint, so that there is something to go on from.
            waits = verb in ("prealign.py", "train.py") and number % 2 == 0
            while waits and process.poll() is None and steps(folder) == before:
                time.sleep(0.05)
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            further.append(steps(folder) > before)
            process = start()
        if process.wait():
            sys.exit(f"failed; run it by hand to see why: {' '.join(command)}")
        seconds.setdefault(verb, time.monotonic() - begin)
    mine, theirs = contents(whole), contents(killed)
    different = sorted(str(name) for name in mine | theirs if mine.get(name) != theirs.get(name))
    print(f"{len(further)} kills, {sum(further)} of them after new checkpoints: {different or 'the same to the bit'}")
    return bool(different or not any(further))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
