"""
What a run had learned at each of its snapshots: similarity (the paper's Fig. 5), and CLKA by frequency (Fig. 4).

    python train.py CONFIG ... --snapshot_interval=250
    python -m tools.dynamics CONFIG ...             # -> dynamics.json in the run's folder; `python -m report` draws it
"""

import glob
import os

from tqdm import tqdm

from corpus.folder import Folder
from eval import clka, load_run, similarity
from runtime.checkpoint import load_trained
from runtime.config import load
from runtime.errors import UserError, run_main
from runtime.files import is_newer, write_json
from runtime.hardware import open_device
from tasks.facts import make_facts


def main(arguments: list[str]) -> None:
    config = load(arguments, __doc__)
    data, path = Folder(config.data_dir), os.path.join(config.run_dir, "dynamics.json")
    # The last weights are not measured here: this raises UserError when the run is not finished, or another.
    load_run(config, data)
    # runs/methods.sh goes through all methods again after an interruption.
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        print(f"{path} is up to date; delete it to measure again")
        return
    # Stage 1's snapshots come first: they are the same run's earlier steps.
    folders = [config.stage1_dir] * (config.init_from == "align") + [config.run_dir]
    snapshots = [(folder, name) for folder in folders for name in sorted(glob.glob("snapshots/*.pt", root_dir=folder))]
    if not snapshots:
        raise UserError(f"{config.run_dir} has no snapshots; delete it and train it with --snapshot_interval=250 or so")
    device, facts, records = open_device(config), make_facts(data.settings), []
    for folder, name in tqdm(snapshots, desc="snapshots", disable=None):
        model, state = load_trained(folder, data, device, name)
        # Facts come after stage 1, in periods of equal length; the last one that has ended is asked about.
        steps, all_steps = state["step"] - config.stage1_steps, config.max_steps - config.stage1_steps
        period = steps * data.settings.fact_periods // all_steps
        asked = [fact for fact in facts if fact.period == period - 1]
        records.append({
            "method": config.method, "seed": config.seed, "step": state["step"],
            "similarity": similarity(model, data, config), "period": period,
            "clka": [{"frequency": n, "pair": pair} | found for n in sorted({fact.frequency for fact in asked})
                     for pair, found in clka(model, data, [f for f in asked if f.frequency == n], config).items()]})
    write_json(path, records)
    print(path)


if __name__ == "__main__":
    run_main(main)
