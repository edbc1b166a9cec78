"""
When PreAlign pays, and when joint training is enough: what both reach, by En-Clone's tokens for each id.

    bash runs/tokens.sh && python -m report.tokens out/demo/tokens      # every OUT_DIR/SHARE/METHOD/seedN in it

Prints a table, and writes it with a figure: OUT_DIR/report.md and OUT_DIR/figures/tokens.png.
"""

import glob
import os
from pathlib import Path
from statistics import mean

from report.figures import log_scale, plt, section
from report.results import by_method, distinct, runs_in, spread, value
from report.tables import gap_closed, table
from runtime.errors import UserError, run
from runtime.files import write_text

# What is drawn: by the name of a panel, the column that has it. The gap closed is a matter of two runs.
PANELS = {"gap closed, %": "", "CLKA, English to En-Clone, %": "CLKA en->clone"} | {
    f"perplexity {side}": f"side {side}" for side in ("en>en", "en>clone", "clone>en", "clone>clone")}

# Method, En-Clone's tokens for each id, and of each panel every seed's value.
Point = tuple[str, float, dict[str, list[float | None]]]


def points_of(runs: list[dict]) -> list[Point]:
    """A point for each method of a folder's runs."""
    joint = {run["seed"]: run for run in runs if run["method"] == "joint"}
    points = []
    for method, group in by_method(runs).items():
        values = {panel: [value(run, column) for run in group] for panel, column in PANELS.items() if column}
        if method != "joint":
            values["gap closed, %"] = [gap_closed(run, joint[run["seed"]]) for run in group if run["seed"] in joint]
        points.append((method, mean(run["tokens_per_id"]["clone"] for run in group), values))
    return points


def figure_of(points: list[Point]) -> plt.Figure:
    """A panel for each of PANELS, in it a line for each method through the means over seeds."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), sharex=True, layout="constrained")
    for axis, panel in zip(axes.flat, PANELS):
        for i, method in enumerate(distinct(method for method, *_ in points)):
            # What was not measured, as joint training's own gap, is no point.
            known = {tokens: [y for y in values.get(panel, []) if y is not None]
                     for name, tokens, values in points if name == method}
            line = [(tokens, mean(known[tokens])) for tokens in sorted(known) if known[tokens]]
            axis.plot([x for x, _ in line], [y for _, y in line], color=f"C{i}", label=method, marker=".",
                      linestyle="--" if method == "joint" else "-")
        axis.set(ylabel=panel, xscale="log")
        if "perplexity" in panel:
            log_scale(axis)
    ticks = sorted({round(tokens) for _, tokens, _ in points})
    for axis in axes[-1]:
        axis.set_xlabel("En-Clone tokens for each id")
        axis.set_xticks(ticks, ticks)
        axis.set_xticks([], minor=True)
    axes[0, 1].legend()
    return figure


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python -m report.tokens OUT_DIR")
    (out_dir,) = arguments
    folders = {Path(path).parents[2] for path in glob.glob(os.path.join(glob.escape(out_dir), "*/*/seed*/eval.json"))}
    points = [point for folder in folders for point in points_of(runs_in(str(folder)))]
    if not points:
        raise UserError(f"no evaluated run in {out_dir}; expected SHARE/METHOD/seedN/eval.json, of runs/tokens.sh")
    points.sort(key=lambda point: (point[0] != "joint", point[:2]))
    text = f"# {out_dir}\n\n" + table([
        {"method": method, "tokens/id": f"{tokens:.0f}"} | {panel: spread(values.get(panel, [])) for panel in PANELS}
        for method, tokens, values in points])
    print(f"{text}\n")
    caption = "Each perplexity is by language of context > predicted token, among the ids of that token's language."
    figure = section(Path(out_dir), "tokens", figure_of(points), "When PreAlign pays", caption)
    write_text(f"{out_dir}/report.md", f"{text}\n{figure}")


if __name__ == "__main__":
    run(main)
