"""
The paper's figures from the runs of a folder, and one that it lacks: where aligned words lie, in two principal components.

    python figures.py out/demo          # -> out/demo/figures/*.png; `python eval.py report out/demo` draws them too

Figures 4 and 5 are drawn from the dynamics.jsonl of the runs in OUT_DIR and OUT_DIR/dynamics, figure 6 from the eval.json of the runs in
OUT_DIR, the words from their checkpoints. A figure whose runs are not there is not drawn.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
import torch

from runtime import config as configs
from runtime import errors
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model
from runtime.config import Config
from runtime.errors import UserError
from corpus.folder import Folder
from model import GPT
from prealign import draw_keys, padded, word_representations
from report.tables import TOKEN_KINDS, dynamics_of, gather, has_read, in_any

matplotlib.use("Agg")  # files only, no window
import matplotlib.pyplot as plt  # noqa: E402

WORDS = 300  # drawn in the figure of words


@dataclass(frozen=True)
class Figure:
    file: str     # inside OUT_DIR
    title: str
    caption: str


def draw(out_dir: str) -> list[Figure]:
    """Draw every figure whose runs are in `out_dir`, as OUT_DIR/figures/NAME.png; say which cannot be drawn, and why."""
    drawn = []
    for name, make in FIGURES.items():
        try:
            made = make(out_dir)
        except UserError as e:
            print(f"{name} is not drawn: {e}")
            continue
        if made is None:
            continue
        figure, title, caption = made
        file = f"figures/{name}.png"
        os.makedirs(os.path.join(out_dir, "figures"), exist_ok=True)
        figure.savefig(os.path.join(out_dir, file), dpi=130)
        plt.close(figure)
        drawn.append(Figure(file, title, caption))
    return drawn


def over_steps(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Steps in order, and at each the mean of its values (over seeds)."""
    by_step = defaultdict(list)
    for step, value in points:
        by_step[step].append(value)
    return sorted(by_step), [float(np.mean(by_step[step])) for step in sorted(by_step)]


def figure_4(out_dir: str) -> tuple | None:
    records = dynamics_of(out_dir)
    pairs = list(dict.fromkeys(pair for runs in records.values() for r in runs for pairs in r["clka"].values() for pair in pairs))
    if not pairs:
        return None
    frequencies = sorted({int(n) for runs in records.values() for r in runs for n in r["clka"]})
    figure, axes = plt.subplots(len(frequencies), len(pairs), figsize=(2.6 * len(pairs) + 1, 2.3 * len(frequencies) + 0.6),
                                sharex=True, sharey=True, squeeze=False, layout="constrained")
    for row, frequency in zip(axes, frequencies):
        for axis, pair in zip(row, pairs):
            for method, runs in records.items():
                points = [(r["step"], 100 * r["clka"][str(frequency)][pair]["accuracy"]) for r in runs if pair in r["clka"].get(str(frequency), {})]
                axis.plot(*over_steps(points), marker=".", label=method)
            axis.axhline(25, color="grey", linewidth=0.8, linestyle=":")
            axis.set_ylim(0, 103)
            if axis in axes[0]:
                axis.set_title(pair.replace("->", " → "))
            if axis in axes[-1]:
                axis.set_xlabel("training step")
        row[0].set_ylabel(f"accuracy, %\nstated {frequency} times")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    facts = sorted({numbers["n"] for runs in records.values() for r in runs for cells in r["clka"].values() for numbers in cells.values()})
    return figure, "Figure 4: learning dynamics", (
        "CLKA right after the period of training that stated the facts, by language in which they were stated → language in which they are "
        f"asked. Every point is {' or '.join(map(str, facts))} facts per seed, too few to tell single points apart (the table has intervals); dotted: chance.")


def figure_5(out_dir: str) -> tuple | None:
    records = dynamics_of(out_dir)
    if not records:
        return None
    languages = list(dict.fromkeys(s["language"] for runs in records.values() for r in runs for s in r["similarity"]))
    measured = [(language, kind) for language in languages for kind in ("words", "text")
                if any(s[kind] is not None for runs in records.values() for r in runs for s in r["similarity"] if s["language"] == language)]
    layers = list(dict.fromkeys(s["layer"] for runs in records.values() for r in runs for s in r["similarity"]))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(layers)))
    figure, axes = plt.subplots(len(measured), len(records), figsize=(3.6 * len(records) + 1.5, 2.5 * len(measured) + 0.6),
                                sharex=True, sharey=True, squeeze=False, layout="constrained")
    for row, (language, kind) in zip(axes, measured):
        for axis, (method, runs) in zip(row, records.items()):
            for layer, colour in zip(layers, colours):
                points = [(r["step"], s[kind]) for r in runs for s in r["similarity"] if (s["language"], s["layer"]) == (language, layer)]
                last = kind == "text" and layer == layers[-1]
                axis.plot(*over_steps(points), color=colour, linestyle="--" if layer == layers[-1] else "-", marker=".", markersize=3,
                          label="final hidden state" if last else layer)
            if axis in axes[0]:
                axis.set_title(method)
            if axis in axes[-1]:
                axis.set_xlabel("training step")
        row[0].set_ylabel(f"cosine, {language}\n{'words alone' if kind == 'words' else 'running text'}")
        row[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, "Figure 5: similarity over training", (
        "Mean cosine between a word and its translation, each encoded alone, in every layer; for En-Clone also between held-out text and "
        "its clone, position by position. Where the embeddings are tied, word and output embedding are one line. The first point of a run with "
        "stage 1 is the end of it. The runs are those of figure 4, which read facts in every language.")


def kinds_of(run: dict, language: str) -> dict[str, dict]:
    return run["lm"].get(language, {}).get("kinds", {})


def figure_6(out_dir: str) -> tuple | None:
    runs: dict[str, list[dict]] = defaultdict(list)
    for run in gather(out_dir, needed=False):
        if run["method"] in ("joint", "prealign") or run["method"].startswith("coverage"):
            runs[run["method"]].append(run)
    if not any(method.startswith("coverage") and kinds_of(run, "en") for method, group in runs.items() for run in group):
        return None
    methods = sorted(runs, key=lambda m: (m != "joint", m == "prealign", m))  # by what they have aligned
    languages = [language for language in in_any([run for group in runs.values() for run in group], "lm")
                 if any(kinds_of(run, language) for group in runs.values() for run in group)]
    seeds = set.intersection(*({run["seed"] for run in group} for group in runs.values()))
    if seeds:  # of runs with different seeds tokens do not compare as well
        runs = {method: [run for run in group if run["seed"] in seeds] for method, group in runs.items()}
    colours = plt.get_cmap("viridis")(np.linspace(0.9, 0, len(methods)))
    figure, axes = plt.subplots(1, len(languages), figsize=(4.6 * len(languages), 3.6), sharey=True, squeeze=False, layout="constrained")
    for axis, language in zip(axes[0], languages):
        for method, colour in zip(methods, colours):
            values = [np.mean([kinds_of(r, language).get(kind, {"ppl": np.nan})["ppl"] for r in runs[method]]) for kind in TOKEN_KINDS]
            axis.plot(range(len(TOKEN_KINDS)), values, marker="o", markersize=4, color=colour, label=method, linestyle=":" if method == "joint" else "-")
        axis.set_yscale("log")
        axis.set_xticks(range(len(TOKEN_KINDS)), TOKEN_KINDS, rotation=30, ha="right")
        axis.set_xlabel("kind of token, by its word's place in the table")
        axis.set_title(language)
    axes[0, 0].set_ylabel("perplexity per token (log scale)")
    axes[0, -1].legend(fontsize="small")
    return figure, "Figure 6: perplexity of seen and unseen words", (
        "Perplexity by quarter of the table, the most frequent words first: a run with 25% of the table has aligned only the first kind. "
        "The other words have no entry in any run.")


# ---------------------------------------------------------------------------------------------------------------------
# Words in two principal components


def embeddings(model: GPT, data: Folder, words: np.ndarray) -> np.ndarray:
    """The word embedding (layer 0) of words (R,) of the table -> (R, C) float32."""
    ids, length = padded(data.table, words)
    with torch.no_grad():
        return word_representations(model, torch.from_numpy(ids), torch.from_numpy(length))[0].numpy()


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """Vectors (R, C), centred, in the two directions of largest variance -> (R, 2)."""
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


def states_of(config: Config, data: Folder) -> dict[str, Callable[[], GPT]]:
    """The models to draw for a run: at first, after stage 1 where it has one, and at its end."""
    def first() -> GPT:
        torch.manual_seed(config.seed)
        model = make_model(config, data.vocab_size)
        if config.init_from == "golden" or config.pretrained:
            initial_state(model, config, data)
        return model

    states = {"at initialisation": first}
    if config.init_from == "align":
        states["after stage 1"] = lambda: load_trained(config.stage1_dir, data)[0]
    return states | {"after pretraining": lambda: load_trained(config.run_dir, data)[0]}


def runs_with_weights(out_dir: str) -> Iterator[Config]:
    """
    The configs of the first seed of every method that reads several languages, but not those of coverage; joint first; where it is
    finished, with the out_dir that they are in now.
    """
    first: dict[str, str] = {}
    for path in sorted(glob.glob(os.path.join(out_dir, "*", "seed*", "checkpoint.pt"))):
        first.setdefault(os.path.relpath(path, out_dir).split(os.sep)[0], path)
    for method, path in sorted(first.items(), key=lambda item: (item[0] != "joint", item[0] != "prealign", item[0])):
        if not method.startswith(("align", "coverage")):
            state = load_checkpoint(path)
            if state["step"] == state["last_step"] and all(has_read(state, language) for language in (state["config"]["pivot"], *state["config"]["targets"])):
                yield replace(configs.from_plain(state["config"], path), out_dir=out_dir)


def figure_words(out_dir: str) -> tuple | None:
    runs = list(runs_with_weights(out_dir))
    if not runs:
        return None
    columns = ["at initialisation", "after stage 1", "after pretraining"]
    figure, axes = plt.subplots(len(runs), len(columns), figsize=(3.2 * len(columns), 3 * len(runs) + 0.4), squeeze=False, layout="constrained")
    for row, config in zip(axes, runs):
        data = Folder(config.data_dir)
        L = len(data.languages)
        drawn = np.argsort(draw_keys(data.table, config, step=2**62))
        drawn = drawn[(np.diff(data.table.groups).reshape(-1, L)[drawn] > 0).all(1)][:WORDS]  # those with a word in every language
        if len(drawn) < 3:
            return None
        words = data.table.groups[drawn[:, None] * L + np.arange(L)].T  # (L, WORDS)
        states = states_of(config, data)
        for axis, column in zip(row, columns):
            axis.set_xticks([]), axis.set_yticks([])
            if column not in states:
                axis.set_axis_off()
                continue
            at = principal_components(embeddings(states[column](), data, words.ravel())).reshape(L, -1, 2)
            for l in range(1, L):
                axis.plot(*np.stack([at[0], at[l]]).transpose(2, 0, 1), color="grey", linewidth=0.3, alpha=0.5)
            for l, language in enumerate(data.languages):
                axis.scatter(*at[l].T, s=6 if l else 14, label=language, zorder=2 + l, linewidths=0)
            axis.set_xlabel("first component", fontsize="small"), axis.set_ylabel("second component", fontsize="small")
            axis.set_title(f"{config.method}, {column}", fontsize="medium")
        row[0].legend(fontsize="small", markerscale=2)
    return figure, "Aligned words in two principal components", (
        f"The word embeddings of {len(drawn)} words and their translations, drawn by frequency; a grey line joins a word to its translations. Each "
        "panel has components of its own, without a unit.")


FIGURES = {"figure4": figure_4, "figure5": figure_5, "figure6": figure_6, "words": figure_words}


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python figures.py OUT_DIR")
    drawn = draw(arguments[0])
    for figure in drawn:
        print(f"{figure.title}: {os.path.join(arguments[0], figure.file)}")
    if not drawn:
        raise UserError(f"{arguments[0]}: no figure can be drawn from what is there; runs/figures.sh makes the runs")


if __name__ == "__main__":
    errors.run(main)
