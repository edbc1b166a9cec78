"""The report's tables, in Markdown that also reads well in a terminal."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from report.results import by_method, columns, cosines_in, distinct, kinds_of, spread, value

Row = dict[str, str]

# What is encoded where similarity is measured.
KINDS = {"words": "words alone", "text": "held-out text", "other text": "texts of eval_text"}


def table(rows: list[Row]) -> str:
    """A Markdown table of rows {column: cell}, with "-" where a row lacks a column; "" of no rows."""
    if not rows:
        return ""
    header = distinct(column for row in rows for column in row)
    cells = [header, *([row.get(column, "-") for column in header] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    # Text to the left, and numbers to the right.
    lines = [[c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))] for row in cells]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def report_tables(runs: list[dict]) -> str:
    """Everything that was measured of these runs: each table that has something to say, under its title."""
    return "\n\n".join(f"## {title}\n\n{body}" for title, body in sections(runs) if body)


def sections(runs: list[dict]) -> Iterator[tuple[str, str]]:
    """Title and body of each section; the body is empty where the runs have nothing to say."""
    def of_runs(cells: Callable[[dict], Row]) -> str:
        """A table with a row for each run that has cells."""
        return table([{"method": run["method"], "seed": str(run["seed"])} | row for run in runs if (row := cells(run))])

    def shown(*kinds: str) -> str:
        return of_runs(lambda run: {column: measured.text for column, measured in columns(run, *kinds).items()})

    # ---- Language modelling, and what is asked of a model ----
    methods, joint = by_method(runs), {run["seed"]: run for run in runs if run["method"] == "joint"}
    yield "Perplexity", shown("tokens", "ppl", "bits/byte")
    yield "Perplexity on other text (eval_text)", shown("other ppl", "other bits/byte")
    body = shown("CLKA", "NLI", "mixed")
    tests = sorted({(run["nli"]["test"], len(run["nli"]["labels"])) for run in runs if "nli" in run})
    chances = ["CLKA is 25%", *(f"NLI on {test} is {100 / labels:.0f}%" for test, labels in tests)]
    yield ("Knowledge across languages (CLKA), inference (NLI), mixed script, with 95% intervals",
           f"{body}\n\nBy chance {', '.join(chances)}." if body else "")
    yield ("Where the loss is: perplexity by language of context > predicted token, among that language's ids",
           shown("side"))
    yield "Where knowledge is lost: CLKA by language of subject, sentence, object, with 95% intervals", shown("part")
    # ---- Methods beside each other, and beside the paper ----
    if len(methods) < len(runs):
        names = distinct(column for run in runs for column in columns(run, "ppl", "CLKA", "NLI"))
        yield "Mean and standard deviation over seeds, CLKA and NLI in %", means(methods, names)
    yield "Against joint training of the same seed", of_runs(lambda run: against(run, joint.get(run["seed"])))
    yield "Beside the paper", "\n\n".join(paper_tables(methods))
    # ---- By kind of token, and by layer ----
    languages = distinct(language for run in runs for language in run["lm"])
    for language in languages:
        yield f"Perplexity by kind of token, {language}", of_runs(lambda run: {
            kind: f"{m['ppl']:.1f}" for kind, m in kinds_of(run, language).items()})
    # The cosine alone may be one direction that all words of a language share; retrieval takes that off.
    for language, kind in itertools.product(languages, ("words", "text", "other text")):
        yield f"Cosine of {language} with the pivot, {KINDS[kind]}", of_runs(lambda run: {
            layer: f"{cosine:.3f}" for *at, layer, cosine in cosines_in(run) if at == [language, kind]})
        yield f"Retrieval from the pivot to {language}, precision at 1, {KINDS[kind]}", of_runs(lambda run: {
            m["layer"]: f"{100 * m['share']:.0f}%" for m in run.get("retrieval", [])
            if (m["language"], m["kind"]) == (language, kind)})


def means(methods: dict[str, list[dict]], names: list[str]) -> str:
    """A table of columns, a row for each method: the mean over its seeds."""
    return table([{"method": method, "seeds": str(len(group))} | {c: spread([value(run, c) for run in group])
                                                                  for c in names} for method, group in methods.items()])


def gap_closed(run: dict, joint: dict) -> float | None:
    """How much is closed, in %, of joint training's gap between En-Clone and the pivot, which are the same text."""
    ours, theirs = value(run, "ppl clone"), value(joint, "ppl clone")
    floor = value(joint, f"ppl {run['config']['pivot']}")
    if not (ours and theirs and floor and floor < theirs):
        return None
    return 100 * (theirs - ours) / (theirs - floor)


def against(run: dict, joint: dict | None) -> Row:
    """Changes of perplexity, and the gap closed. Nothing without joint training of that seed; nor of itself."""
    row: Row = {}
    if joint is None or run is joint:
        return row
    for column in columns(run, "ppl", "other ppl"):
        ours, theirs = value(run, column), value(joint, column)
        if ours and theirs:
            row[column] = f"{100 * (ours / theirs - 1):+.1f}%"
    if (closed := gap_closed(run, joint)) is not None:
        row["gap closed"] = f"{closed:.0f}%"
    return row


# ---- The paper's tables, read from paper.md beside this file, which is what people read too ----
class PaperTable(NamedTuple):
    name: str
    scale: str  # as "150M parameters, 10.1B tokens"
    columns: list[str]
    rows: dict[str, dict[str, float | None]]  # method -> column -> number


def parse(section: str) -> PaperTable:
    """A section of paper.md: a heading "NAME: SCALE", and a Markdown table in which some cells are empty."""
    title, *lines = section.splitlines()
    name, scale = title.split(": ")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    numbers = {method: {column: float(cell) if cell else None for column, cell in zip(header[1:], cells)}
               for method, *cells in rows}
    return PaperTable(name, scale, header[1:], numbers)


# The first section is the page's own heading.
PAPER = [parse(part) for part in Path(__file__).with_name("paper.md").read_text(encoding="utf-8").split("\n## ")[1:]]


def paper_tables(methods: dict[str, list[dict]]) -> Iterator[str]:
    """Each of the paper's tables of which there are two methods or more: our numbers, then the paper's."""
    # Millions of parameters without embeddings, of which a folder's runs have the same number.
    shape = next(iter(methods.values()))[0]["config"]
    size = 12e-6 * shape["n_layer"] * shape["n_embd"] ** 2
    for name in distinct(paper.name for paper in PAPER):
        # Table 6 is there for several sizes: the nearest is shown.
        paper = min((p for p in PAPER if p.name == name),
                    key=lambda p: abs(math.log(float(p.scale.partition("M")[0]) / size)))
        languages = {column.removeprefix("ppl ") for column in paper.columns if column.startswith("ppl ")}
        here = {method: methods[method] for method in paper.rows if method in methods
                and all(languages <= set(run["lm"]) for run in methods[method])}
        # One method alone has nothing to compare.
        if len(here) < 2:
            continue
        tokens = max(run["tokens"] for group in here.values() for run in group) / 1e6
        yield f"### {name}"
        yield f"Ours, at {size:.3g}M parameters, {tokens:.1f}M tokens:"
        yield means(here, paper.columns)
        yield f"The paper's, at {paper.scale}:"
        yield table([{"method": method} | {c: str(paper.rows[method][c] or "-") for c in paper.columns}
                     for method in here])
        if against := list(disagreements(here, paper)):
            yield f"Not in the paper's order: {'; '.join(against)}."


def disagreements(methods: dict[str, list[dict]], paper: PaperTable) -> Iterator[str]:
    """Where two methods come the other way round than in the paper, by means over the seeds that both have."""
    for name, (a, b) in itertools.product(paper.columns, itertools.combinations(methods, 2)):
        x, y = paper.rows[a][name], paper.rows[b][name]
        ours = [{run["seed"]: v for run in methods[m] if (v := value(run, name)) is not None} for m in (a, b)]
        # Of the same seed, as the means over all may be of different seeds.
        differences = [ours[0][seed] - ours[1][seed] for seed in ours[0] if seed in ours[1]]
        if differences and x and y and (x - y) * statistics.mean(differences) < 0:
            yield f"{name} of {a} and {b}"
