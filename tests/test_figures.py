"""Figures: the numbers they draw, from runs made here; and which are drawn from what is there."""

import json
from pathlib import Path

import numpy as np
import pytest

from report import figures
from runtime.errors import UserError
from report.figures import over_steps, principal_components
from test_report import write_dynamics, write_result


def lines_of(axis) -> dict[str, list[tuple[float, float]]]:
    """What a panel shows: the points of every line with a name."""
    return {line.get_label(): [(float(x), float(y)) for x, y in line.get_xydata()] for line in axis.lines if not line.get_label().startswith("_")}


def test_values_of_seeds_are_averaged_at_each_step():
    assert over_steps([(20, 1.0), (10, 0.5), (20, 3.0)]) == ([10, 20], [0.5, 2.0])
    assert over_steps([]) == ([], [])


def test_figure_4_shows_the_accuracies(tmp_path):
    write_dynamics(tmp_path, "prealign", 1, [0, 0.25, 0.5])
    write_dynamics(tmp_path, "prealign", 2, [0, 0.75, 1.0])
    write_dynamics(tmp_path, "joint", 1, [0, 0.125, 0.25])
    figure, _, caption = figures.figure_4(str(tmp_path))
    english, clone = figure.axes
    assert (english.get_title(), clone.get_title()) == ("en → en", "en → clone")
    assert lines_of(clone) == {"joint": [(20, 12.5), (30, 25)], "prealign": [(20, 50), (30, 75)]}
    assert set(lines_of(english)["joint"]) == {(20, 100), (30, 100)}
    assert english.get_ylabel() == "accuracy, %\nstated 5 times" and clone.get_xlabel() == "training step" and "8 facts per seed" in caption


def test_figure_5_shows_every_layer_for_words_and_for_text(tmp_path):
    write_dynamics(tmp_path, "joint", 1, [0, 0, 0])
    figure, _, _ = figures.figure_5(str(tmp_path))
    words, text = (lines_of(axis) for axis in figure.axes)
    assert list(words) == ["word embedding", "block 1", "output embedding"] and list(text) == ["word embedding", "block 1", "final hidden state"]
    assert words["block 1"] == [(10, 0), (20, 0.1), (30, 0.2)] and text["block 1"] == [(10, 0), (20, 0.05), (30, 0.1)]


def write_kinds(folder: Path, method: str, seed: int, ppl: list[float], coverage: float = 1.0) -> None:
    write_result(folder, method, seed, 10, 20, 0.5)
    path = folder / method / f"seed{seed}" / "eval.json"
    run = json.loads(path.read_text()) | {"config": {"align_coverage": coverage}}
    for language in ("en", "clone"):
        kinds = ("words 0-25%", "25-50%", "50-75%", "75-100%", "other words", "not words")
        run["lm"][language]["kinds"] = {kind: {"ppl": p, "tokens": n} for kind, p, n in zip(kinds, ppl, (1, 1, 2, 4, 8, 16))}
    path.write_text(json.dumps(run))


def test_figure_6_shows_perplexity_by_kind(tmp_path):
    write_kinds(tmp_path, "coverage25", 1, [2, 3, 4, 5, 6, 7])
    write_kinds(tmp_path, "coverage25", 2, [4, 3, 4, 5, 6, 7])
    write_kinds(tmp_path, "coverage25", 3, [9, 9, 9, 9, 9, 9])  # prealign has no such seed
    write_kinds(tmp_path, "prealign", 1, [1, 2, 3, 4, 5, 6])
    write_kinds(tmp_path, "prealign", 2, [3, 2, 3, 4, 5, 6])
    write_kinds(tmp_path, "init_only", 1, [1, 2, 3, 4, 5, 6])
    figure, _, _ = figures.figure_6(str(tmp_path))
    assert [axis.get_title() for axis in figure.axes] == ["en", "clone"]
    assert lines_of(figure.axes[1]) == {"coverage25": list(enumerate([3, 3, 4, 5, 6, 7])), "prealign": list(enumerate([2, 2, 3, 4, 5, 6]))}


def test_principal_components_are_the_eigenvectors_of_the_covariance():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 5)) * [5, 1, 3, 0.1, 0.2] + 7
    at = principal_components(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    expected = (vectors - vectors.mean(0)) @ directions[:, ::-1][:, :2]
    assert at.shape == (50, 2) and np.allclose(np.abs(at), np.abs(expected))
    assert np.allclose(at.var(0, ddof=1), values[::-1][:2])


def test_nothing_is_drawn_from_nothing(tmp_path):
    with pytest.raises(UserError, match="no evaluated run|no figure can be drawn"):
        figures.main([str(tmp_path)])
    with pytest.raises(UserError, match="expected: python figures.py OUT_DIR"):
        figures.main([])


def test_lines_that_are_not_those_of_dynamics_are_an_error(tmp_path):
    write_dynamics(tmp_path, "joint", 1, [0, 0.5])
    path = tmp_path / "dynamics" / "joint" / "seed1" / "dynamics.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="joint/seed1/dynamics.jsonl: not the lines of eval.py dynamics"):
        figures.figure_4(str(tmp_path))
