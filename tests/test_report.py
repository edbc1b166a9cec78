"""The report: numbers counted here by hand, in tables that Markdown reads; figures; and the files that it reads."""

import json
import math
import os
import re
from pathlib import Path

import matplotlib.image
import pytest

from conftest import run_command, write
from report import __main__ as report
from report import figures, results, tables
from runtime.errors import UserError
from tools import tokens as sweep

LAYERS = ("word embedding", "block 1", "output embedding")


def make_run(method: str, seed: int = 1, en: float = 20, clone: float = 40, accuracy: float = 0.3, **config) -> dict:
    """What an eval.json holds, with these perplexities and this CLKA."""
    config = {"pivot": "en", "only": "", "mix": {"en": 0.9, "clone": 0.1}, "align_coverage": 1.0, "n_layer": 1,
              "n_embd": 8} | config
    return {
        "method": method, "seed": seed, "tokens": 12_345_678, "config": config,
        "lm": {l: {"ppl": ppl, "bpb": 1.25} for l, ppl in (("en", en), ("clone", clone))},
        "text": {}, "mixed": {}, "similarity": similarity(0.5, 0.4), "held_out": {},
        "clka": {pair: {"accuracy": accuracy, "n": 100} for pair in ("en->en", "en->clone")}}


def similarity(words: float, text: float) -> list[dict]:
    return [{"language": "clone", "layer": layer, "words": words, "text": text} for layer in LAYERS]


def make_dynamics(method: str, accuracies: list[float], seed: int = 1) -> list[dict]:
    """Lines at steps 10, 20, ...: of facts stated 5 times in English, these accuracies in En-Clone; none at first."""
    return [{"method": method, "seed": seed, "step": 10 * (i + 1), "similarity": similarity(0.1 * i, 0.05 * i),
             "clka": [{"frequency": 5, "pair": pair, "accuracy": share, "n": 8}
                      for pair, share in (("en->en", 1.0), ("en->clone", accuracy)) if i]}
            for i, accuracy in enumerate(accuracies)]


def write_runs(folder: Path, values: list, name: str = "eval.json") -> None:
    """A file for each of these runs; or of a run's records, one file."""
    for value in values:
        run = value[0] if isinstance(value, list) else value
        write(folder / run["method"] / f"seed{run['seed']}" / name, json.dumps(value))


def tables_of(markdown: str, title: str = "") -> list[list[list[str]]]:
    """Tables below a title, as rows of cells, without the rule below the header."""
    # Markdown wants an empty line before a table, and a rule below its header.
    blocks = [block.splitlines() for block in markdown[markdown.index(title):].split("\n\n") if block[:1] == "|"]
    found = [[[cell.strip() for cell in line[2:-2].split(" | ")] for line in block] for block in blocks]
    for _, rule, *rows in found:
        assert all(set(cell) <= {"-", ":"} for cell in rule) and {len(row) for row in rows} == {len(rule)}
    return [[rows[0], *rows[2:]] for rows in found]


def rows_of(runs: list[dict], title: str) -> list[dict[str, str]]:
    """Rows {column: cell} of the first table below a title, in the report of these runs."""
    header, *rows = tables_of(tables.report_tables(runs), title)[0]
    return [dict(zip(header, row)) for row in rows]


def test_perplexity_of_a_language_that_was_never_read_is_not_shown():
    runs = [make_run("joint"), make_run("only_target", only="clone"), make_run("full_target", mix={"clone": 1.0})]
    joint, only, alone = rows_of(runs, "## Perplexity")
    assert joint == {"method": "joint", "seed": "1", "tokens read": "12.35M", "ppl en": "20.0", "ppl clone": "40.0",
                     "bits/byte en": "1.250", "bits/byte clone": "1.250"}
    assert (only["ppl en"], only["bits/byte en"], only["ppl clone"]) == ("-", "-", "40.0")
    assert (alone["ppl en"], alone["ppl clone"]) == ("-", "40.0")


def test_shares_have_intervals():
    run = make_run("joint") | {"nli": {"test": "builtin", "labels": ["a", "b", "c"], "languages": {
        "en": {"accuracies": [0.2, 0.6], "n": 100}}}}
    (row,) = rows_of([run], "## Knowledge")
    assert row["NLI en"] == "40% (31-50)"
    # Wilson's interval is where |p - share| is 1.96 standard errors of p.
    for p in results.wilson(40, 100):
        assert abs(p - 0.4) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 100))
    assert "By chance CLKA is 25%, NLI on builtin is 33%." in tables.report_tables([run])


def test_seeds_have_a_mean_and_a_standard_deviation():
    runs = [make_run("joint", 1, 10, 20, 0.2), make_run("joint", 2, 10, 30, 0.3), make_run("joint", 3, 10, 40, 0.7)]
    joint, golden = rows_of([*runs, make_run("golden", 1, 10, 12, 0.9)], "## Mean")
    # Deviations of -10, 0, 10 and of -20, -10, 30: variances of 200 / 2 and 1400 / 2.
    assert joint == {"method": "joint", "seeds": "3", "ppl en": "10.0 ± 0.0", "ppl clone": "30.0 ± 10.0",
                     "CLKA en->en": "40.0 ± 26.5", "CLKA en->clone": "40.0 ± 26.5"}
    assert list(golden.values()) == ["golden", "1", "10.0", "12.0", "90.0", "90.0"]
    assert results.spread([1.0, None, 3.0]) == "2.0 ± 1.4 (2 of 3)" and results.spread([None]) == "-"


def test_methods_stand_against_joint_training_of_the_same_seed():
    runs = [make_run("joint", 1, 20, 40), make_run("joint", 2, 10, 30), make_run("prealign", 7),
            make_run("only_target", 1, 1e6, 90, only="clone"), make_run("prealign", 1, 19, 25)]
    runs[0]["text"], runs[4]["text"] = {"en": {"ppl": 80.0, "bpb": 1.25}}, {"en": {"ppl": 78.0, "bpb": 1.0}}
    assert [list(row.values()) for row in rows_of(runs, "## Against")] == [
        ["only_target", "1", "+125.0%", "-250%", "-", "-"], ["prealign", "1", "-37.5%", "75%", "-5.0%", "-2.5%"]]
    assert rows_of(runs, "## Perplexity on other text")[1] == {
        "method": "prealign", "seed": "1", "other ppl en": "78.0", "other bits/byte en": "1.000"}


def test_where_loss_and_knowledge_are_lost_is_told_of_languages_with_ids_of_their_own():
    sides = {"en": {"en": 20, "clone": 90.44}, "clone": {"en": 400, "clone": 39}, "de": {"de": 5}}
    lm = {context: {"ppl": 9, "bpb": 1, "predicting": predicting} for context, predicting in sides.items()}
    parts = {"clone": {"en,en,en": {"accuracy": 1, "n": 10}, "en,en,clone": {"accuracy": 0.3, "n": 10},
                       "clone,en,en": {"accuracy": 0, "n": 10}}}
    runs = [make_run("joint") | {"lm": lm, "clka_parts": parts}, make_run("only_target", only="clone") | {"lm": lm}]
    assert [[*row.values()][2:] for row in rows_of(runs, "## Where the loss")] == [
        ["20.0", "90.4", "400.0", "39.0"], ["-", "-", "-", "39.0"]]
    assert rows_of(runs, "## Where knowledge") == [{
        "method": "joint", "seed": "1", "part en,en,en": "100% (72-100)", "part en,en,clone": "30% (11-60)",
        "part clone,en,en": "0% (0-28)"}]


def test_similarity_has_a_table_for_each_language_and_kind_of_text():
    found = [{"language": "clone", "kind": kind, "layer": layer, "share": share, "n": 8}
             for kind, share in (("words", 0.5), ("other text", 0.25)) for layer in LAYERS]
    for kind, share in (("words alone", "50%"), ("texts of eval_text", "25%")):
        title = f"## Retrieval from the pivot to clone, precision at 1, {kind}"
        (row,) = rows_of([make_run("joint") | {"retrieval": found}], title)
        assert row == {"method": "joint", "seed": "1"} | dict.fromkeys(LAYERS, share)
    (row,) = rows_of([make_run("joint")], "## Cosine of clone with the pivot, held-out text")
    assert row == {"method": "joint", "seed": "1"} | dict.fromkeys((*LAYERS[:2], "final hidden state"), "0.400")


def test_the_papers_numbers_stand_in_a_table_below_ours():
    runs = [make_run("joint", 1, 20, 40, 0.3), make_run("joint", 2, 22, 44, 0.4), make_run("prealign", 1, 21, 25, 0.8)]
    text = tables.report_tables(runs)
    # There is one method of tables 2, 4 and 5 only; and table 6 has other languages.
    assert [line for line in text.splitlines() if line.startswith("### ")] == ["### Table 1", "### Table 3"]
    assert "Ours, at 0.000768M parameters, 12.3M tokens:" in text
    ours, paper = tables_of(text, "### Table 1")[:2]
    columns = ["ppl en", "ppl clone", "NLI en", "NLI clone", "CLKA en->clone"]
    assert ours == [["method", "seeds", *columns], ["joint", "2", "21.0 ± 1.4", "42.0 ± 2.8", "-", "-", "35.0 ± 7.1"],
                    ["prealign", "1", "21.0", "25.0", "-", "-", "80.0"]]
    assert paper == [["method", *columns], ["joint", "16.1", "21.6", "79.8", "74.9", "27.7"],
                     ["prealign", "15.9", "16.5", "80.1", "79.3", "90.3"]]
    # Of the three sizes of table 6 it is the nearest.
    runs = [make_run(method, n_layer=24, n_embd=2048) for method in ("joint", "prealign")]
    for run in runs:
        run["lm"] = dict.fromkeys(("en", "de", "zh", "ru", "ar"), run["lm"]["en"])
    assert re.findall("at (.*) parameters, 10.4B", tables.report_tables(runs)) == ["1300M"]


def test_an_order_that_is_not_the_papers_is_said():
    runs = [make_run(method, 1, 20, clone, accuracy) for method, clone, accuracy in (
        ("joint", 40, 0.3), ("codeswitch_only", 42, 0.4), ("init_only", 24, 0.7), ("prealign", 25, 0.8))]
    against = "Not in the paper's order: ppl clone of joint and codeswitch_only; ppl clone of init_only and prealign."
    assert against in tables.report_tables(runs)
    # By the seed that both have: with all of them PreAlign's mean, 40, would be above 30.
    runs = [make_run("init_only", 1, 20, 30), make_run("prealign", 1, 20, 20), make_run("prealign", 2, 20, 60)]
    assert "### Table 3" in tables.report_tables(runs) and "Not in the paper's" not in tables.report_tables(runs)


def lines_of(axis) -> dict[str, list[list[float]]]:
    """The points of every line of a panel that has a name."""
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines if line.get_label()[0] != "_"}


def test_figure_4_shows_the_mean_accuracies_over_seeds():
    lines = [*make_dynamics("joint", [0, 0.125, 0.25]), *make_dynamics("prealign", [0, 0.25, 0.5]),
             *make_dynamics("prealign", [0, 0.75, 1.0], 2)]
    figure, _, caption = figures.figure_4(lines)
    english, clone = figure.axes
    assert (english.get_title(), clone.get_title()) == ("en → en", "en → clone")
    assert lines_of(clone) == {"joint": [[20, 12.5], [30, 25]], "prealign": [[20, 50], [30, 75]]}
    assert lines_of(english)["joint"] == [[20, 100], [30, 100]] and "8 facts per seed" in caption
    assert english.get_ylabel() == "accuracy, %\nstated 5 times"


def test_what_is_reached_by_tokens_for_each_id(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "tokens_per_id", lambda run: run["tokens"])
    predicting = {"en": {"en": 20, "clone": 50}, "clone": {"en": 60, "clone": 40}}
    for tokens, closed in ((60, 0.3), (20, 0.1)):
        # Seed 1 closes this share of a gap of 100, and seed 2 twice as much of a gap of 200.
        for seed in (1, 2):
            for method, left in (("joint", 1), ("prealign", 1 - seed * closed)):
                run = make_run(method, seed, 20, 20 + seed * 100 * left, 0.5)
                for context in predicting:
                    run["lm"][context]["predicting"] = predicting[context]
                write_runs(tmp_path / str(tokens), [run | {"tokens": tokens}])
    sweep.main([str(tmp_path)])
    ((_, *rows),) = tables_of(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [[m, n, "2"] for m in ("joint", "prealign") for n in ("20", "60")]
    assert rows[2][3:] == ["15.0 ± 7.1", "20.0 ± 0.0", "145.0 ± 49.5", *(f"{y}.0 ± 0.0" for y in (50, 20, 50, 60, 40))]
    assert "(figures/tokens.png)" in (tmp_path / "report.md").read_text()


def test_perplexity_by_kind_of_token_in_a_table_and_in_figure_6():
    runs = [make_run("coverage25", 1), make_run("coverage25", 2), make_run("init_only"), make_run("prealign")]
    for run, first in zip(runs, (2, 6, 3, 3)):
        run["lm"]["clone"]["kinds"] = {k: {"ppl": ppl} for k, ppl in zip(results.TOKEN_KINDS, (first, 3, 3, 3, 3, 3))}
    rows = rows_of(runs, "## Perplexity by kind of token, clone")
    assert [row["words 0-25%"] for row in rows] == ["2.0", "6.0", "3.0", "3.0"]
    (axis,) = figures.figure_6(runs)[0].axes
    assert axis.get_title() == "clone" and list(lines_of(axis)) == ["coverage25", "prealign"]
    assert [y for _, y in lines_of(axis)["coverage25"]] == [4, 3, 3, 3, 3, 3]


def test_the_command_writes_tables_notes_and_figures_and_loads_no_torch(tmp_path):
    # A folder's name is no pattern.
    folder = tmp_path / "tau[0-1] *"
    write_runs(folder, [make_run("joint"), make_run("prealign")])
    write_runs(folder / "dynamics", [make_dynamics("joint", [0, 0.5])], "dynamics.json")
    write_runs(folder, [make_dynamics("prealign", [0, 0.5])], "dynamics.json")
    (folder / "notes.md").write_text("What we think of it.\n")
    (folder / "joint" / "seed1" / "metrics.jsonl").write_text('{"step": 5}\n{"step": 10, "held_out": {"en": 2.5}}\n')
    code = "import sys; from report.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = run_command("-c", code, str(folder))
    assert done.returncode == 0, done.stderr
    text = (folder / "report.md").read_text()
    assert "What we think of it." in text and "What we think of it." in done.stdout and len(tables_of(done.stdout)) >= 5
    # Runs for the dynamics have a folder of their own; others of the same methods are not mixed in.
    assert {record["method"] for record in results.dynamics_in(str(folder))} == {"joint"}
    assert results.runs_in(str(folder))[0]["held_out"] == {10: {"en": 2.5}}
    assert re.findall(r"^!\[.*\]\(figures/(.*)\.png\)", text, re.M) == ["loss", "figure4", "figure5"]
    for path in (folder / "figures").iterdir():
        # An image of one colour would have none.
        assert matplotlib.image.imread(path).std() > 0.02


def test_results_older_than_their_run_are_left_out(tmp_path, capsys):
    write_runs(tmp_path, runs := [make_run("joint", 1), make_run("joint", 2)])
    write_runs(tmp_path, runs, "xnli.json")
    for name in ("seed1/xnli.json", "seed2/eval.json"):
        os.utime(tmp_path / "joint" / name, (0, 0))
        (tmp_path / "joint" / name).with_name("checkpoint.pt").touch()
    os.utime(tmp_path / "joint" / "seed1" / "eval.json")
    assert [(run["seed"], "nli" in run) for run in results.runs_in(str(tmp_path))] == [(1, False)]
    printed = capsys.readouterr().out
    assert "joint/seed1/xnli.json is older than its run" in printed and "seed2/eval.json is older" in printed


@pytest.mark.parametrize("name", ["eval.json", "xnli.json", "dynamics.json"])
def test_no_run_or_a_file_cut_short_is_one_line_that_names_it(tmp_path, name):
    with pytest.raises(UserError, match="no evaluated run in .*expected METHOD/seedN/eval.json"):
        report.main([str(tmp_path)])
    write_runs(tmp_path, [make_run("joint")])
    (tmp_path / "joint" / "seed1" / name).write_text('{"method": "jo')
    with pytest.raises(UserError, match=f"joint/seed1/{name}: .*delete it and"):
        report.main([str(tmp_path)])
