"""The paper's figures 4, 5 and 6, and the loss over training."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from report.results import TOKEN_KINDS, by_method, cosines_in, distinct, has_read, kinds_of

# Files only, no window.
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogFormatter  # noqa: E402

# What the function of a figure returns: the figure, its title and its caption, or None where there is nothing to draw.
Drawn = tuple[plt.Figure, str, str] | None


def curves(points: Sequence[tuple[str, str, str, float, float]], xlabel: str, width: float, height: float) -> tuple:
    """A figure and panels of lines through points (row, column, line, x, y): at each x the mean of y, over seeds."""
    rows, columns, lines = (distinct(point[i] for point in points) for i in range(3))
    # Width and height are a panel's, in inches; the legend and the title need some more.
    size = (width * len(columns) + 1, height * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False,
                                layout="constrained")
    colours = plt.get_cmap("turbo")(np.linspace(0.95, 0.05, len(lines)))
    for axis, (row, column) in zip(axes.flat, itertools.product(rows, columns)):
        for line, colour in zip(lines, colours):
            at: dict[float, list[float]] = {}
            for *place, x, y in points:
                if place == [row, column, line]:
                    at.setdefault(x, []).append(y)
            # What others are compared with is dashed: joint training, and the last layer.
            dashed = line in ("joint", "output embedding", "final hidden state")
            if at:
                axis.plot(sorted(at), [np.mean(at[x]) for x in sorted(at)], color=colour, label=line, marker=".",
                          markersize=3, linestyle="--" if dashed else "-")
    # The names of rows and columns stand at the margins.
    for panels, row in zip(axes, rows):
        panels[0].set_ylabel(row)
        # One legend a row, beside it: the lines are the same in all its panels.
        panels[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    for top, bottom, column in zip(axes[0], axes[-1], columns):
        top.set_title(column)
        bottom.set_xlabel(xlabel)
    return figure, axes


def log_scale(axis: plt.Axes) -> None:
    """Perplexities on a logarithmic axis, as 200 and not 2 x 10^2."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    # Between powers of ten only where there is room.
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))


def figure_loss(runs: list[dict]) -> Drawn:
    # Without the first tenth, where the loss falls so far that methods cannot be told apart later.
    points = [("held-out loss, nats per token", language, run["method"], step, loss)
              for run in runs for step, losses in run["held_out"].items() if step >= max(run["held_out"]) / 10
              for language, loss in losses.items() if has_read(run, language)]
    if not points:
        return None
    return curves(points, "training step", 3.6, 3)[0], "Held-out loss during training", (
        "Without the first tenth of the steps.")


def figure_4(dynamics: list[dict]) -> Drawn:
    # What was asked, in one language, of facts stated so often in another, with its record's method and step.
    asked = [record | asked for record in dynamics for asked in record["clka"]]
    asked.sort(key=lambda a: a["frequency"])
    if not asked:
        return None
    points = [(f"accuracy, %\nstated {a['frequency']} times", a["pair"].replace("->", " → "), a["method"], a["step"],
               100 * a["accuracy"]) for a in asked]
    figure, axes = curves(points, "training step", 2.6, 2.3)
    # The dotted line is chance.
    for axis in axes.flat:
        axis.axhline(25, color="grey", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, 103)
    return figure, "Figure 4: learning dynamics", (
        "CLKA right after the period of training that stated the facts, by language in which they were stated → "
        f"language in which they are asked, of {asked[0]['n']} facts per seed; dotted: chance.")


def figure_5(dynamics: list[dict]) -> Drawn:
    names = {"words": "words alone", "text": "running text"}
    points = [(f"cosine, {language}\n{names[kind]}", line["method"], layer, line["step"], cosine)
              for line in dynamics for language, kind, layer, cosine in cosines_in(line)]
    if not points:
        return None
    return curves(points, "training step", 3.6, 2.5)[0], "Figure 5: similarity over training", (
        "Mean cosine between a word and its translation, each encoded alone, in every layer; for En-Clone also between "
        "held-out text and its clone. A run with stage 1 begins at its end. The runs are those of figure 4.")


def figure_6(runs: list[dict]) -> Drawn:
    methods = {m: group for m, group in by_method(runs).items() if m in ("joint", "prealign") or "coverage" in m}
    if not any("coverage" in method for method in methods):
        return None
    # By the share of the table that is aligned: joint nothing, PreAlign everything.
    order = sorted(methods, key=lambda method: (method != "joint", method == "prealign", method))
    points = [("perplexity per token (log scale)", language, method, TOKEN_KINDS.index(kind), m["ppl"])
              for method in order for run in methods[method]
              for language in run["lm"] for kind, m in kinds_of(run, language).items()]
    if not points:
        return None
    figure, axes = curves(points, "kind of token, by its word's place in the table", 4.6, 3)
    for axis in axes.flat:
        log_scale(axis)
        axis.set_xticks(range(len(TOKEN_KINDS)), TOKEN_KINDS, rotation=30, ha="right")
    return figure, "Figure 6: perplexity of seen and unseen words", (
        "By quarter of the table, the most frequent words first: a run with 25% has aligned only the first kind.")


def section(folder: Path, name: str, figure: plt.Figure, title: str, caption: str) -> str:
    """A section of the report with a figure, which is written to figures/NAME.png."""
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", dpi=130)
    plt.close(figure)
    print(f"{title}: {folder}/figures/{name}.png")
    return f"\n## {title}\n\n![{title}](figures/{name}.png)\n\n{caption}\n"


def draw(folder: Path, runs: list[dict], dynamics: list[dict]) -> str:
    """A section for every figure that there is something to draw for."""
    figures = {"loss": figure_loss(runs), "figure4": figure_4(dynamics), "figure5": figure_5(dynamics),
               "figure6": figure_6(runs)}
    return "".join(section(folder, name, *drawn) for name, drawn in figures.items() if drawn)
