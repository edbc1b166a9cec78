"""The report: its numbers are those of the runs, in tables that Markdown reads; beside the paper's; figures, notes."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest

import eval as evaluation
from report import tables as report
from runtime.errors import UserError
from conftest import run_command


def result_of(folder: Path, method: str, seed: int) -> dict:
    return json.loads((folder / method / f"seed{seed}" / "eval.json").read_text())


def tables_of(markdown: str) -> list[list[list[str]]]:
    """Tables, rows, cells; each table has its header, a rule, and rows with as many cells as the header."""
    tables, lines = [], [*markdown.splitlines(), ""]
    for before, line in zip(["", *lines], lines):
        if line.startswith("|"):
            assert line.endswith(" |")
            cells = [cell.strip() for cell in line[2:-2].split(" | ")]
            if not before.startswith("|"):
                assert before == ""  # Markdown wants an empty line before a table
                tables.append([])
            tables[-1].append(cells)
    for table in tables:
        assert len({len(row) for row in table}) == 1 and len(table) > 2
        assert all(set(cell) <= {"-", ":"} and "-" in cell for cell in table[1])
    return [[table[0], *table[2:]] for table in tables]


def cells_of(markdown: str) -> dict[tuple[str, str], dict[str, str]]:
    """Cells by their column's name, for every (method, seed): of the first two tables, perplexity and shares."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for header, *rows in tables_of(markdown)[:2]:
        for row in rows:
            cells.setdefault((row[0], row[1]), {}).update(zip(header, row))
    return cells


def test_perplexity_on_other_text_stands_beside_joint_trainings():
    def run(method: str, seed: int, ppl: float) -> dict:
        return {"method": method, "seed": seed, "tokens": 1, "lm": {"en": {"ppl": 2.0}}, "clka": {}, "similarity": [],
                "text": {"en": {"ppl": ppl, "bpb": 1.25}} if ppl else {}}

    tables = tables_of(report.report_tables([run("joint", 1, 80.0), run("joint", 2, 0), run("prealign", 1, 78.0), run("prealign", 2, 90.0)]))
    (table,) = [table for table in tables if table[0] == ["method", "seed", "ppl en", "bits/byte en"] and ["joint", "1", "80.0", "1.250"] in table]
    assert table[1:] == [["joint", "1", "80.0", "1.250"], ["joint", "2", "-", "-"], ["prealign", "1", "78.0 (-2.5%)", "1.250"], ["prealign", "2", "90.0", "1.250"]]


def test_report_has_the_numbers_of_the_runs(out_dir, capsys):
    evaluation.main(["report", str(out_dir)])
    printed = capsys.readouterr().out
    runs = [result_of(out_dir, "joint", 1), result_of(out_dir, "joint", 2), result_of(out_dir, "prealign", 1)]
    assert json.loads((out_dir / "report.json").read_text()) == {"runs": runs}
    tables, _, figures = printed.partition("\nAligned words in two principal components: ")
    assert tables.strip() in (out_dir / "report.md").read_text() and figures.strip() == str(out_dir / "figures" / "words.png")
    cells = cells_of(printed)
    assert list(cells) == [(run["method"], str(run["seed"])) for run in runs]
    for run, cell in zip(runs, cells.values()):
        assert cell["tokens"] == "0.00M"
        for language in ("en", "clone"):
            assert float(cell[f"ppl {language}"]) == pytest.approx(run["lm"][language]["ppl"], abs=0.051)
            assert float(cell[f"bits/byte {language}"]) == pytest.approx(run["lm"][language]["bpb"], abs=0.00051)
            accuracy = run["clka"][f"en->{language}"]["accuracy"]
            assert int(cell[f"CLKA en->{language} (95%)"].split("%")[0]) == pytest.approx(100 * accuracy, abs=0.51)
        assert float(cell["ppl clone in language"]) == pytest.approx(run["lm"]["clone"]["ppl_in_language"], abs=0.051)


def test_report_agrees_with_the_logs_of_the_runs(out_dir):
    """Tokens and method are those of the run's last line and config; and a model that has read English text predicts some of it."""
    report.report(str(out_dir))
    for run in json.loads((out_dir / "report.json").read_text())["runs"]:
        folder = out_dir / run["method"] / f"seed{run['seed']}"
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert run["tokens"] == last["tokens"] and last["step"] == json.loads((folder / "run.json").read_text())["config"]["max_steps"]
        assert math.log(run["lm"]["en"]["ppl"]) == pytest.approx(last["loss_en"], abs=0.5)


def test_report_json_is_what_other_programs_expect(out_dir):
    report.report(str(out_dir))
    runs = json.loads((out_dir / "report.json").read_text())["runs"]
    for run in runs:
        assert {"method": str, "seed": int, "tokens": int, "lm": dict, "clka": dict, "similarity": list} == {
            key: type(run[key]) for key in ("method", "seed", "tokens", "lm", "clka", "similarity")}
        assert list(run["lm"]) == ["en", "clone"] and list(run["clka"]) == ["en->en", "en->clone"]
        for numbers in run["lm"].values():
            assert all(type(numbers[key]) is float for key in ("ppl", "bpb", "ppl_in_language"))
        for numbers in run["clka"].values():
            assert 0 <= numbers["accuracy"] <= 1 and (numbers["n"], numbers["chance"]) == (8, 0.25)
        for row in run["similarity"]:
            assert {"language", "layer", "words", "random", "text"} == set(row)


def write_result(folder: Path, method: str, seed: int, en: float, clone: float, accuracy: float) -> None:
    """An eval.json with these numbers in it."""
    run = {"method": method, "seed": seed, "tokens": 12_345_678,
           "lm": {language: {"ppl": ppl, "bpb": 1.0, "ppl_in_language": ppl, "tokens": 100} for language, ppl in (("en", en), ("clone", clone))},
           "clka": {pair: {"accuracy": accuracy, "n": 100, "chance": 0.25, "interval": [0.1, 0.9]} for pair in ("en->en", "en->clone")},
           "similarity": [{"language": "clone", "layer": layer, "words": 0.5, "random": 0.1, "text": 0.4}
                          for layer in ("word embedding", "output embedding")]}
    (folder / method / f"seed{seed}").mkdir(parents=True)
    (folder / method / f"seed{seed}" / "eval.json").write_text(json.dumps(run))


def similarity_rows(words: float, text: float | None) -> list[dict]:
    return [{"language": "clone", "layer": layer, "words": words, "random": 0.0, "text": text} for layer in ("word embedding", "block 1", "output embedding")]


def write_dynamics(folder: Path, method: str, seed: int, accuracies: list[float]) -> None:
    """A dynamics.jsonl with these accuracies at steps 10, 20, ... for facts stated 5 times in English; nothing at the first."""
    lines = []
    for i, accuracy in enumerate(accuracies):
        cells = {pair: {"accuracy": accuracy if pair == "en->clone" else 1.0, "n": 8, "chance": 0.25, "interval": [0, 1]} for pair in ("en->en", "en->clone")}
        lines.append({"method": method, "seed": seed, "step": 10 * (i + 1), "tokens": 100, "period": i, "similarity": similarity_rows(0.1 * i, 0.05 * i),
                      "clka": {"5": cells} if i else {}})
    path = folder / "dynamics" / method / f"seed{seed}"
    path.mkdir(parents=True)
    (path / "dynamics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_several_seeds_give_mean_and_standard_deviation(tmp_path, capsys):
    for seed, clone, accuracy in ((1, 20, 0.2), (2, 30, 0.3), (3, 40, 0.7)):
        write_result(tmp_path, "joint", seed, 10, clone, accuracy)
    write_result(tmp_path, "golden", 1, 10, 12, 0.9)
    report.report(str(tmp_path))
    text = capsys.readouterr().out
    header, *rows = tables_of(text[text.index("## Mean and standard deviation over seeds"):])[0]
    assert header == ["method", "seeds", "ppl en", "ppl clone", "CLKA en->en %", "CLKA en->clone %"]
    # deviations -10, 0, 10 and -20, -10, 30: variances 200 / 2 and 1400 / 2
    assert rows == [["joint", "3", "10.0 ± 0.0", "30.0 ± 10.0", "40.0 ± 26.5", "40.0 ± 26.5"], ["golden", "1", "10.0", "12.0", "90.0", "90.0"]]


def test_the_papers_order_is_looked_for_in_the_seeds_that_both_have(tmp_path, capsys):
    write_result(tmp_path, "init_only", 1, 10, 30, 0.5)
    for seed, clone in ((1, 20), (2, 60)):
        write_result(tmp_path, "prealign", seed, 10, clone, 0.8)
    report.report(str(tmp_path))
    text = capsys.readouterr().out
    assert "### Table 3" in text and "Not in the paper's order" not in text


def test_methods_are_compared_with_joint_of_the_same_seed(tmp_path, capsys):
    write_result(tmp_path, "joint", 1, 20, 40, 0.3)
    write_result(tmp_path, "joint", 2, 10, 30, 0.3)
    write_result(tmp_path, "prealign", 1, 19, 25, 0.8)
    report.report(str(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if "against joint" in line]
    assert lines == ["- prealign against joint, seed 1: clone perplexity -37.5%, en perplexity -5.0%; 75% of the gap between joint's clone and en closed"]


@pytest.mark.parametrize("config", [{"only": "clone", "mix": {"en": 0.9, "clone": 0.1}}, {"only": "", "mix": {"clone": 1.0}}])
def test_a_language_that_a_run_has_never_read_is_not_reported(tmp_path, capsys, config):
    write_result(tmp_path, "joint", 1, 20, 40, 0.3)
    write_result(tmp_path, "only_target", 1, 1e6, 90, 0.3)
    path = tmp_path / "only_target" / "seed1" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config | {"n_layer": 1, "n_embd": 8}}))
    report.report(str(tmp_path))
    text = capsys.readouterr().out
    cell = cells_of(text)["only_target", "1"]
    assert (cell["ppl en"], cell["bits/byte en"], cell["ppl clone"]) == ("-", "-", "90.0")
    assert "- only_target against joint, seed 1: clone perplexity +125.0%\n" in text and "1000000" not in text


def test_a_single_run_needs_no_spread_and_no_comparison(tmp_path, capsys):
    write_result(tmp_path, "prealign", 1, 19, 25, 0.8)
    report.report(str(tmp_path))
    text = capsys.readouterr().out
    assert "standard deviation" not in text and "against joint" not in text and "12.35M" in text
    tables_of(text)


def test_the_report_shows_figures_and_notes(out_dir, tmp_path, capsys):
    shutil.copytree(out_dir, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "report.*"))
    (tmp_path / "runs" / "notes.md").write_text("What we think of it.\n")
    evaluation.main(["report", str(tmp_path / "runs")])
    printed, written = capsys.readouterr().out, (tmp_path / "runs" / "report.md").read_text()
    assert "What we think of it." in printed and "What we think of it." in written
    for file in re.findall(r"!\[.*\]\((.*)\)", written):
        assert matplotlib.image.imread(tmp_path / "runs" / file).std() > 0.05  # of one colour all over, it would be 0
    assert "(figures/words.png)" in written and "runs/figures/words.png" in printed


def test_seen_and_unseen_words_by_hand():
    """Seen by a run with a quarter of the table: its first kind. Others together: their tokens' mean loss."""
    names, tokens = ("words 0-25%", "25-50%", "50-75%", "75-100%", "other words", "not words"), (3, 1, 2, 1, 4, 9)
    kinds = {kind: {"ppl": math.exp(loss), "tokens": n} for kind, loss, n in zip(names, (2, 3, 3, 4, 5, 1), tokens)}
    runs = {method: [{"seed": 1, "config": {"align_coverage": coverage}, "lm": {"clone": {"kinds": kinds}}}]
            for method, coverage in (("coverage25", 0.25), ("prealign", 1.0), ("init_only", 1.0))}
    header, quarter, whole = tables_of(report.seen_and_unseen(runs))[0]
    assert header == ["method", "share of the table", "clone: seen", "clone: unseen", "clone: not words"]
    assert quarter == ["coverage25", "25%", f"{math.exp(2):.1f}", f"{math.exp((3 + 6 + 4 + 20) / 8):.1f}", f"{math.e:.1f}"]
    assert whole == ["prealign", "100%", f"{math.exp((6 + 3 + 6 + 4) / 7):.1f}", f"{math.exp(5):.1f}", f"{math.e:.1f}"]


def test_seen_and_unseen_words_stand_beside_joint_on_the_same_tokens():
    def run(loss: float, seed: int) -> dict:
        return {"seed": seed, "config": {"align_coverage": 0.5}, "lm": {"clone": {"kinds": {"words 0-25%": {"ppl": math.exp(loss), "tokens": 5}}}}}

    by_method = {"joint": [run(2, 1), run(9, 2)], "coverage50": [run(1, 1)], "prealign": [run(3, 1), run(3, 7)]}  # seed 7 has no joint
    header, half, whole = tables_of(report.seen_and_unseen(by_method))[0]
    assert half == ["coverage50", "50%", f"{math.e:.1f} ({100 * (1 / math.e - 1):+.0f}%)", "-", "-"]
    assert whole[2] == f"{math.exp(3):.1f} ± 0.0 (+172%)"


def test_seeds_that_a_value_is_missing_for_are_not_counted():
    assert report.spread([1.0, None, 3.0], 1) == "2.0 ± 1.4 (2 of 3)" and report.spread([1.0, None], 1) == "1.0 (1 of 2)" and report.spread([None], 1) == "-"


def test_several_fine_tunings_show_their_range():
    run = {"nli": {"languages": {"en": {"accuracies": [0.2, 0.6], "n": 100}, "clone": {"accuracies": [0.4], "n": 100}}}}
    assert report.inference_cell(run, "en") == "40% (31-50), 20 to 60 in 2 fine-tunings"
    assert report.inference_cell(run, "clone") == "40% (31-50)" and report.inference_cell(run, "de") == "-"


def test_dynamics_are_pooled_over_periods_of_the_second_half(tmp_path):
    write_dynamics(tmp_path, "joint", 1, [0, 0, 0.5, 1.0])  # steps 30 and 40 are in the second half: 4 + 8 of 16
    header, *rows = tables_of(report.dynamics_table(str(tmp_path)))[0]
    assert header == ["method", "stated -> asked", "stated 5 times (95%)"]
    assert rows == [["joint", "en->en", "100% (81-100)"], ["joint", "en->clone", "75% (51-90)"]]
    assert report.dynamics_table(str(tmp_path / "nowhere")) == ""


def test_seeds_are_asked_the_same_facts_and_count_once(tmp_path):
    write_dynamics(tmp_path, "joint", 1, [0, 0, 0.5, 1.0])
    one = report.dynamics_table(str(tmp_path))
    write_dynamics(tmp_path, "joint", 2, [0, 0, 0.5, 1.0])
    assert report.dynamics_table(str(tmp_path)) == one


def test_dynamics_of_other_runs_of_the_same_method_are_not_mixed_in(tmp_path):
    write_dynamics(tmp_path, "joint", 1, [0, 0.5])
    one = report.dynamics_of(str(tmp_path))
    shutil.copytree(tmp_path / "dynamics" / "joint", tmp_path / "joint")
    assert report.dynamics_of(str(tmp_path)) == one and len(one["joint"]) == 2
    shutil.rmtree(tmp_path / "dynamics")
    assert report.dynamics_of(str(tmp_path)) == one


def test_the_report_says_where_the_order_is_not_the_papers(tmp_path, capsys):
    for method, clone, accuracy in (("joint", 40, 0.3), ("codeswitch_only", 42, 0.4), ("init_only", 24, 0.7), ("prealign", 25, 0.8)):
        write_result(tmp_path, method, 1, 20, clone, accuracy)
    report.report(str(tmp_path))
    assert "Not in the paper's order: ppl clone of joint and codeswitch_only; ppl clone of init_only and prealign.\n" in capsys.readouterr().out


def test_runs_of_different_languages_and_tasks_share_a_table(tmp_path, capsys):
    write_result(tmp_path, "joint", 1, 20, 40, 0.3)
    write_result(tmp_path, "german", 1, 20, 40, 0.3)
    path = tmp_path / "german" / "seed1" / "eval.json"
    run = json.loads(path.read_text())
    run |= {"lm": {"en": run["lm"]["en"], "de": run["lm"]["clone"]}, "clka": {}, "mixed": {"de": {"share": 0.5, "n": 10}}}
    path.write_text(json.dumps(run))
    report.report(str(tmp_path))
    cells = cells_of(capsys.readouterr().out)
    joint, german = cells["joint", "1"], cells["german", "1"]
    assert (joint["ppl clone"], joint["ppl de"], german["ppl clone"], german["ppl de"]) == ("40.0", "-", "-", "40.0")
    assert german["CLKA en->en (95%)"] == "-" and joint["mixed de (95%)"] == "-" and german["mixed de (95%)"].startswith("50%")


def test_a_run_that_is_not_finished_costs_a_figure_and_not_the_report(out_dir, tmp_path, capsys):
    shutil.copytree(out_dir, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "report.*"))
    checkpoint = tmp_path / "runs" / "prealign" / "seed1" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    os.utime(checkpoint, (0, 0))
    report.report(str(tmp_path / "runs"))
    printed = capsys.readouterr().out
    assert "words is not drawn: " in printed and "not a whole checkpoint" in printed and len(tables_of(printed)) >= 4
    assert (tmp_path / "runs" / "report.md").exists() and not (tmp_path / "runs" / "figures").exists()


def test_results_older_than_their_run_are_left_out(out_dir, tmp_path, capsys):
    shutil.copytree(out_dir, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "report.*"))
    os.utime(tmp_path / "runs" / "joint" / "seed2" / "checkpoint.pt")
    report.report(str(tmp_path / "runs"))
    printed = capsys.readouterr().out
    assert "joint/seed2/eval.json is older than its run and left out" in printed and len(tables_of(printed)[0]) == 3


def test_reports_that_cannot_be(out_dir, tmp_path):
    with pytest.raises(UserError, match="no evaluated run in .*expected METHOD/seedN/eval.json"):
        report.report(str(tmp_path))
    with pytest.raises(UserError, match="expected: python -m report OUT_DIR"):
        evaluation.main(["report"])
    shutil.copytree(out_dir, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "report.*"))
    damaged = tmp_path / "runs" / "prealign" / "seed1" / "eval.json"
    damaged.write_text(damaged.read_text()[:50])
    with pytest.raises(UserError, match="prealign/seed1/eval.json: not JSON .*delete it and make it again with eval.py"):
        report.report(str(tmp_path / "runs"))


def test_report_from_the_command_line(out_dir, tmp_path):
    result = run_command("eval.py", "report", str(out_dir))
    assert result.returncode == 0 and len(tables_of(result.stdout)) >= 4
    result = run_command("eval.py", "report", str(tmp_path))
    assert result.returncode == 1 and result.stderr.startswith("error: no evaluated run in ") and result.stderr.count("\n") == 1


def test_the_papers_numbers_stand_in_columns_of_their_own(tmp_path, capsys):
    for method, seed, en, clone, accuracy in (("joint", 1, 20, 40, 0.3), ("joint", 2, 22, 44, 0.4), ("prealign", 1, 21, 25, 0.8), ("mine", 1, 1, 1, 1.0)):
        write_result(tmp_path, method, seed, en, clone, accuracy)
    report.report(str(tmp_path))
    text = capsys.readouterr().out
    assert "Table 2" not in text and "Table 4" not in text  # of which there is one method only
    header, joint, prealign = tables_of(text[text.index("### Table 1\n\nOurs at 12.3M tokens (undated), the paper at 10.1B.\n"):])[0]
    assert header == ["method", "seeds"] + [part for name in ("ppl en", "ppl clone", "NLI en", "NLI clone", "CLKA clone") for part in (f"{name}, ours", "paper")]
    assert joint == ["joint", "2", "21.0 ± 1.4", "16.1", "42.0 ± 2.8", "21.6", "-", "79.8", "-", "74.9", "35.0 ± 7.1", "27.7"]
    assert prealign == ["prealign", "1", "21.0", "15.9", "25.0", "16.5", "-", "80.1", "-", "79.3", "80.0", "90.3"]
