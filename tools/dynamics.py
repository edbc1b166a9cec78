"""
What a run had learned at each of its snapshots: similarity (the paper's Fig. 5), and CLKA by frequency (Fig. 4).

    python train.py CONFIG ... --snapshot_interval=250
    python -m tools.dynamics CONFIG ...             # -> dynamics.jsonl in the run's folder; `python -m report` draws it
"""

import glob
import json
import os

from tqdm import tqdm

from corpus.folder import Folder
from eval import clka, load_run, similarity
from runtime import config as configs
from runtime import errors
from runtime.checkpoint import load_trained
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import is_newer, write_text
from runtime.hardware import open_device
from tasks.facts import Fact, facts_of


def dynamics(config: Config) -> list[dict]:
    """A record for each snapshot of a finished run, stage 1's first; CLKA is on the facts of the period before it."""
    data, device, path = Folder(config.data_dir), open_device(config), os.path.join(config.run_dir, "dynamics.jsonl")
    # Raises UserError when the run is not finished, or not what the config says.
    load_run(config, data)
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        with open(path, encoding="utf-8") as f:
            records = [json.loads(line) for line in f]
        if all(record["eval_words"] == config.eval_words for record in records):
            return records
    folders = [config.stage1_dir] * (config.init_from == "align") + [config.run_dir]
    snapshots = [(folder, file) for folder in folders for file in sorted(glob.glob(f"{folder}/snapshots/*.pt"))]
    if not snapshots:
        raise UserError(f"{config.run_dir} has no snapshots; delete it and train it with --snapshot_interval=250 or so")
    records = []
    for folder, file in tqdm(snapshots, desc="snapshots", disable=None):
        model, state = load_trained(folder, data, device, os.path.relpath(file, folder))
        step, last_step = state["step"] - config.stage1_steps, config.max_steps - config.stage1_steps
        # Facts come after stage 1, in periods of equal length; the last one that has ended is asked about.
        period = step * data.settings.fact_periods // last_step
        facts: dict[int, list[Fact]] = {}
        for fact in facts_of(data.settings):
            if fact.period == period - 1:
                facts.setdefault(fact.frequency, []).append(fact)
        records.append({
            "method": config.method, "seed": config.seed, "step": state["step"], "tokens": state["tokens"],
            "eval_words": config.eval_words, "similarity": similarity(model, data, config), "period": period,
            "clka": {n: clka(model, data, facts[n], config) for n in sorted(facts)}})
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def main(arguments: list[str]) -> None:
    for record in dynamics(configs.load(arguments, __doc__)):
        cells = [(n, *cell) for n, pairs in record["clka"].items() for cell in pairs.items()]
        shares = [f"{pair} {n}x {result['accuracy']:.0%}" for n, pair, result in cells]
        print(f"step {record['step']}, period {record['period']}: {', '.join(shares) or 'no facts yet'}")


if __name__ == "__main__":
    errors.run(main)
