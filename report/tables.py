"""The report's tables, in Markdown that also reads well in a terminal."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from report.paper import PAPER, PaperTable
from report.results import COLUMNS, asked_in, by_method, columns, cosines_in, distinct, kinds_of, percent, spread, value

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


def report_tables(runs: list[dict], dynamics: Sequence[dict] = ()) -> str:
    """Everything that was measured of these runs: each table that has something to say, under its title."""
    return "\n\n".join(f"## {title}\n\n{body}" for title, body in sections(runs, dynamics) if body)


def sections(runs: list[dict], dynamics: Sequence[dict]) -> Iterator[tuple[str, str]]:
    """Title and body of each section; the body is empty where the runs have nothing to say."""
    def of_runs(cells: Callable[[dict], Row]) -> str:
        """A table with a row for each run that has cells."""
        return table([{"method": run["method"], "seed": str(run["seed"])} | row for run in runs if (row := cells(run))])

    def shown(*kinds: str) -> str:
        return of_runs(lambda run: {column: measured.text for column, measured in columns(run, *kinds).items()})

    def shown_of(kind: str) -> str:
        return of_runs(lambda run: {of: measured.text for of, measured in COLUMNS[kind](run).items()})

    # ---- Language modelling, and what is asked of a model ----
    methods, joint = by_method(runs), {run["seed"]: run for run in runs if run["method"] == "joint"}
    yield "Perplexity", shown("tokens", "ppl", "bits/byte")
    yield "Perplexity on other text (eval_text)", shown("other ppl", "other bits/byte")
    body = shown("CLKA", "NLI", "mixed")
    chances = sorted({m["chance"] for run in runs for m in run["clka"].values()})
    notes = [f"By chance CLKA is {100 * chance:.0f}%." for chance in chances]
    for test, labels in sorted({(run["nli"]["test"], len(run["nli"]["labels"])) for run in runs if "nli" in run}):
        pairs = "the built-in pairs" if test == "builtin" else test
        notes.append(f"NLI is measured on {pairs}; by chance it is {100 / labels:.0f}%.")
    yield ("Knowledge across languages (CLKA), inference (NLI), mixed script, with 95% intervals",
           f"{body}\n\n{' '.join(notes)}".strip())
    yield ("Where the loss is: perplexity by language of context > predicted token, among that language's ids",
           shown_of("side"))
    yield "Where knowledge is lost: CLKA by language of subject, sentence, object, with 95% intervals", shown_of("part")
    # ---- Methods beside each other, and beside the paper ----
    if len(methods) < len(runs):
        means = distinct(column for run in runs for column in columns(run, "ppl", "CLKA", "NLI"))
        yield "Mean and standard deviation over seeds, CLKA and NLI in %", table([
            {"method": method, "seeds": str(len(group))} | {c: spread([value(run, c) for run in group]) for c in means}
            for method, group in methods.items()])
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
    yield ("Learning dynamics: CLKA right after the period that stated the facts, in the second half of training",
           dynamics_table(dynamics))


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


def dynamics_table(dynamics: Sequence[dict]) -> str:
    """CLKA over all periods and seeds in the second half of training, by method, "STATED->ASKED" and frequency."""
    asked, rows = asked_in(dynamics), []
    # Runs may differ in length: the second half is each method's own.
    last = {a["method"]: a["step"] for a in sorted(asked, key=lambda a: a["step"])}
    late = [a for a in asked if a["step"] > last[a["method"]] / 2]
    for method, pair in distinct((a["method"], a["pair"]) for a in late):
        row = {"method": method, "stated -> asked": pair}
        for frequency in sorted({a["frequency"] for a in late}):
            facts = [a for a in late if (a["method"], a["pair"], a["frequency"]) == (method, pair, frequency)]
            if n := sum(a["n"] for a in facts):
                share = sum(a["accuracy"] * a["n"] for a in facts) / n
                # All seeds are asked the same facts: the interval is that of one seed's.
                row[f"stated {frequency} times (95%)"] = percent(share, n // len({a["seed"] for a in facts})).text
        rows.append(row)
    return table(rows)


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
        # Five columns fill a terminal.
        for some in (paper.columns[i:i + 5] for i in range(0, len(paper.columns), 5)):
            yield f"Ours, at {size:.3g}M parameters, {tokens:.1f}M tokens:"
            yield table([{"method": method, "seeds": str(len(group))} | {
                c: spread([value(run, c) for run in group]) for c in some} for method, group in here.items()])
            yield f"The paper's, at {paper.scale}:"
            yield table([{"method": method} | {c: str(paper.rows[method][c] or "-") for c in some} for method in here])
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
