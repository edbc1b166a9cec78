"""
When PreAlign pays: what it and joint training reach, by En-Clone's tokens for each id.

    bash runs/tokens.sh && python -m tools.tokens out/demo/tokens      # every OUT_DIR/SHARE/METHOD/seedN in it

Prints a table, and writes it with two figures to OUT_DIR/report.md and OUT_DIR/figures/.
"""

import glob
import os
from pathlib import Path

import numpy as np

from corpus.folder import Folder
from data import Sampler
from report.figures import curves, log_scale, section
from report.results import distinct, runs_in, spread, value
from report.tables import gap_closed, table
from runtime.config import from_plain
from runtime.errors import UserError, run_main
from runtime.files import write_text

# What the two figures show: a column of runs -> its panel (row, column).
SHARES = {"gap closed": ("%", "gap closed"), "CLKA en->clone": ("%", "CLKA, en → clone")}
SIDES = {f"side {context}>{word}": (f"perplexity\ncontext: {context}", f"predicted: {word}")
         for context in ("en", "clone") for word in ("en", "clone")}


def tokens_per_id(run: dict) -> int:
    """How many En-Clone tokens a run has read for each id of the vocabulary."""
    config = from_plain(run["config"], "eval.json")
    folder = Folder(config.data_dir)
    if folder.fingerprint != run["data"]:
        raise UserError(f"{config.data_dir} is not the data that {config.run_dir} was trained on; train it again")
    sampler = Sampler(folder, config)
    stream, _ = sampler.place(np.arange(config.max_steps * config.batch_size))
    rows = np.count_nonzero(stream == sampler.streams.index("clone"))
    return round(rows * config.block_size / folder.V)


def points_in(out_dir: str) -> list[tuple[str, int, dict[str, float | None]]]:
    """Method, tokens for each id, and numbers by column, of every run of every folder in out_dir, joint first."""
    folders = {Path(path).parents[2] for path in glob.glob(os.path.join(glob.escape(out_dir), "*/*/seed*/eval.json"))}
    found = []
    for folder in folders:
        runs = runs_in(str(folder))
        joint = {run["seed"]: run for run in runs if run["method"] == "joint"}
        for run in runs:
            # Joint training itself closes nothing; without it there is no gap.
            closed = gap_closed(run, joint[run["seed"]]) if run["seed"] in joint else None
            values = {column: value(run, column) for column in ("ppl en", "ppl clone", "CLKA en->clone", *SIDES)}
            found.append((run["method"], tokens_per_id(run), {"gap closed": closed} | values))
    if not found:
        raise UserError(f"no evaluated run in {out_dir}; expected SHARE/METHOD/seedN/eval.json, of runs/tokens.sh")
    return sorted(found, key=lambda m: (m[0] != "joint", m[0], m[1]))


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python -m tools.tokens OUT_DIR")
    (out_dir,) = arguments
    found, rows = points_in(out_dir), []
    for method, tokens in distinct(m[:2] for m in found):
        seeds = [values for *at, values in found if at == [method, tokens]]
        means = {column.removeprefix("side "): spread([values[column] for values in seeds]) for column in seeds[0]}
        rows.append({"method": method, "tokens/id": str(tokens), "seeds": str(len(seeds))} | means)
    text = f"# {out_dir}\n\n{table(rows)}\n"
    print(text)
    for name, title, panels in (("tokens", "When PreAlign pays", SHARES), ("sides", "Where the loss is", SIDES)):
        points = [(*panels[column], method, tokens, y) for method, tokens, values in found
                  for column, y in values.items() if column in panels and y is not None]
        figure, axes = curves(points, "En-Clone tokens for each id", 3.6, 2.8)
        ticks = distinct(tokens for _, tokens, _ in found)
        for axis in axes.flat:
            axis.set_xscale("log")
            axis.set_xticks(ticks, ticks)
            axis.set_xticks([], minor=True)
            if panels is SIDES:
                log_scale(axis)
        text += section(Path(out_dir), name, figure, title, "Means over seeds, of one total budget of tokens.")
    write_text(f"{out_dir}/report.md", text)


if __name__ == "__main__":
    run_main(main)
