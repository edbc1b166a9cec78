"""
Killed at random moments and started again, a run ends as if nothing had happened: the same data, weights, losses and results, to the bit.

    python tests/kill.py config/demo.py                              # 50 kills over data.py, prealign.py, train.py and eval.py
    python tests/kill.py config/demo.py --kills=20 --processes=2     # of one process of two under torchrun, which starts them again

Runs everything once undisturbed, then again in another folder with kill -9, and compares; both with a checkpoint every 20 steps, so that there is
something to go on from. Exit code 1 when something differs, or when no killed training went on from a checkpoint. Needs a CPU; on a GPU sums are
not always added in the same order. More arguments, --knob=value, go to every command.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=1000", "--monitor-interval=0.2"]


def commands(processes: int) -> list[list[str]]:
    launch = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes > 1 else []
    method = str(ROOT / "config/method/prealign.py")
    return [["data.py"], [*launch, "prealign.py"], [*launch, "train.py", method], ["eval.py", method]]


def start(command: list[str], arguments: list[str]) -> subprocess.Popen:
    """Its standard error goes to a file, as nobody reads it while it runs."""
    at = next(i for i, part in enumerate(command) if part.endswith(".py"))  # config files in the order of the method last
    process = subprocess.Popen([sys.executable, *command[:at + 1], *arguments, *command[at + 1:]], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=(errors := tempfile.TemporaryFile("w+")))
    process.errors = errors
    return process


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        process.errors.seek(0)
        sys.exit(f"{' '.join(process.args)} ended with {process.returncode}:\n{process.errors.read()[-2000:]}")
    process.errors.close()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def kill(process: subprocess.Popen, rng: random.Random, rank_only: bool) -> bool:
    """kill -9 of the command and all that it started, or of one of torchrun's processes. Whether there was something to kill."""
    if process.poll() is not None:
        return False
    if rank_only:
        ranks = children(process.pid)
        if not ranks:
            return False
        os.kill(rng.choice(ranks), signal.SIGKILL)
        return True
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.errors.close()
    return True


def undisturbed(arguments: list[str], processes: int) -> list[float]:
    """Seconds of every command."""
    seconds = []
    for command in commands(processes):
        begin = time.monotonic()
        finish(start(command, arguments))
        seconds.append(time.monotonic() - begin)
    return seconds


def last_step(folder: Path) -> int:
    """Of all checkpoints of trainings below a folder, 0 when there is none."""
    return sum(torch.load(path, weights_only=True, mmap=True)["step"] for path in folder.rglob("checkpoint.pt"))


def disturbed(arguments: list[str], out_dir: Path, processes: int, seconds: list[float], kills: int, rng: random.Random) -> tuple[dict[str, int], int]:
    """The same with kills, shared out by what each command takes. How many there were, by command; and after how many there was more to go on from."""
    done: dict[str, int] = {}
    further = 0
    for number, command in enumerate(commands(processes)):
        name = next(part for part in command if part.endswith(".py"))
        ranks = processes > 1 and "torch.distributed.run" in command
        if processes > 1 and not ranks:
            share = 0
        else:
            of_these = sum(s for s, c in zip(seconds, commands(processes)) if processes == 1 or "torch.distributed.run" in c)
            share = max(1, round(kills * seconds[number] / of_these))
        done[name] = 0
        process = start(command, arguments)
        while done[name] < share:
            # At any moment: while it starts, and within what is left if kills came evenly.
            before = last_step(out_dir)
            time.sleep(rng.uniform(0.2, min(seconds[number], 4 + 2 * seconds[number] / share)))
            if process.poll() is not None:
                break
            if kill(process, rng, ranks):
                done[name] += 1
                further += last_step(out_dir) > before
                print(f"{name}: kill {done[name]} of {share}", flush=True)
                if not ranks:
                    process = start(command, arguments)
        finish(process)
    return done, further


def without(record: dict, *keys: str) -> dict:
    return {key: value for key, value in record.items() if key not in keys}


def differences(a: Path, b: Path) -> list[str]:
    """What is not the same in two folders with data/ and out/, but for times, dates and the folders' own names."""
    found = []
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in (a, b)]
    if names[0] != names[1]:
        found.append(f"files {sorted(set(names[0]) ^ set(names[1]))}")
    for name in sorted(set(names[0]) & set(names[1])):
        x, y = a / name, b / name
        if name.endswith(".pt"):
            mine, theirs = (torch.load(path, weights_only=True) for path in (x, y))
            same = all(torch.equal(value, theirs["model"][key]) for key, value in mine["model"].items()) and mine["step"] == theirs["step"]
            for moments, others in zip(*(state["optimizer"].get("state", {}).values() for state in (mine, theirs)), strict=True):
                same &= all(torch.equal(torch.as_tensor(value), torch.as_tensor(others[key])) for key, value in moments.items())
        elif name.endswith("metrics.jsonl"):
            mine, theirs = ([without(json.loads(line), "tokens_per_s", "mfu") for line in path.read_text().splitlines()] for path in (x, y))
            same = mine == theirs
        elif name.endswith("eval.json"):
            mine, theirs = (without(json.loads(path.read_text()), "config", "date") for path in (x, y))
            same = mine == theirs
        else:
            same = name.endswith("run.json") or x.read_bytes() == y.read_bytes()
        if not same:
            found.append(name)
    return found


def main(arguments: list[str]) -> int:
    options = {"kills": 50, "processes": 1, "seed": 0, "folder": "out/kill"}
    for argument in list(arguments):
        key, _, value = argument.removeprefix("--").partition("=")
        if key in options and argument.startswith("--"):
            options[key] = type(options[key])(value)
            arguments.remove(argument)
    if not arguments or "--help" in arguments:
        print(__doc__.strip())
        return 0
    folder, rng = Path(options["folder"]).absolute(), random.Random(options["seed"])
    if folder.exists():
        sys.exit(f"{folder} is there: delete it, or name another --folder, as what is finished would not run again")
    own = {name: [*arguments, "--checkpoint_interval=20", f"--data_dir={folder / name / 'data'}", f"--out_dir={folder / name / 'out'}"] for name in ("whole", "killed")}
    if options["processes"] > 1:
        own = {name: [*those, "--device=cpu"] for name, those in own.items()}
    print("undisturbed", flush=True)
    seconds = undisturbed(own["whole"], options["processes"])
    done, further = disturbed(own["killed"], folder / "killed" / "out", options["processes"], seconds, options["kills"], rng)
    different = differences(folder / "whole", folder / "killed")
    print(f"{sum(done.values())} kills ({', '.join(f'{name} {n}' for name, n in done.items())}), {further} of them after new checkpoints: "
          f"{'the same to the bit' if not different else 'different: ' + ', '.join(different)}")
    return bool(different) or not further


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
