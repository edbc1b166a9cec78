"""The report's tables, in Markdown that also reads well in a terminal."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from report.paper import PAPER, PaperTable
from report.results import (TOKEN_KINDS, asked_in, by_method, columns, cosines_in, distinct, kinds_of, percent, spread,
                            value)

Row = dict[str, str]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = ["-" * (w - (i > 0)) + ":" * (i > 0) for i, w in enumerate(widths)]
    lines = [[c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths))] for r in [header, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def table(rows: list[Row]) -> str:
    """A Markdown table of rows {column: cell}, with "-" where a row lacks a column; "" of no rows."""
    header = distinct(column for row in rows for column in row)
    return markdown_table(header, [[row.get(column, "-") for column in header] for row in rows]) if rows else ""


def report_tables(runs: list[dict], dynamics: Sequence[dict] = ()) -> str:
    """Everything that was measured of these runs: each table that has something to say, under its title."""
    return "\n\n".join(f"## {title}\n\n{body}" for title, body in sections(runs, dynamics) if body)


def sections(runs: list[dict], dynamics: Sequence[dict]) -> Iterator[tuple[str, str]]:
    """Title and body of each section; the body is empty where the runs have nothing to say."""
    def rows(cells: Callable[[dict], Row]) -> list[Row]:
        """A row for each run with cells."""
        return [{"method": run["method"], "seed": str(run["seed"])} | row for run in runs if (row := cells(run))]

    def shown(*kinds: str) -> str:
        return table(rows(lambda run: {column: measured.text for column, measured in columns(run, *kinds).items()}))

    methods, joint = by_method(runs), {run["seed"]: run for run in runs if run["method"] == "joint"}
    yield "Perplexity", shown("tokens", "ppl", "in-language ppl", "bits/byte")
    yield "Perplexity on other text (eval_text)", shown("other ppl", "other bits/byte")
    chances = sorted({m["chance"] for run in runs for m in run["clka"].values()})
    notes = [f"By chance CLKA is {100 * chance:.0f}%." for chance in chances]
    for test, labels in sorted({(run["nli"]["test"], len(run["nli"]["labels"])) for run in runs if "nli" in run}):
        pairs = "the built-in pairs" if test == "builtin" else test
        notes.append(f"NLI is measured on {pairs}; by chance it is {100 / labels:.0f}%.")
    yield ("Knowledge across languages (CLKA), inference (NLI), mixed script, with 95% intervals",
           "\n\n".join(filter(None, (shown("CLKA", "NLI", "mixed"), " ".join(notes)))))
    if len(methods) < len(runs):
        means = distinct(column for run in runs for column in columns(run, "ppl", "CLKA", "NLI"))
        yield "Mean and standard deviation over seeds, CLKA and NLI in %", table([
            {"method": method, "seeds": str(len(group))} | {c: spread([value(run, c) for run in group]) for c in means}
            for method, group in methods.items()])
    yield "Against joint training of the same seed", table(rows(lambda run: against(run, joint)))
    yield "Beside the paper", "\n\n".join(paper_tables(methods))
    yield ("Perplexity of words that were aligned (seen), of others, and of what is no word; in brackets against joint",
           table(seen_and_unseen(methods, joint)))
    languages = distinct(language for run in runs for language in run["lm"])
    for language in languages:
        body = rows(lambda run: {kind: f"{m['ppl']:.1f}" for kind, m in kinds_of(run, language).items()})
        # Every run has the same held-out tokens.
        counts = rows(lambda run: {kind: f"{m['tokens']:,}" for kind, m in kinds_of(run, language).items()})[:1]
        yield f"Perplexity by kind of token, {language}", table(
            body + [row | {"method": "held-out tokens", "seed": ""} for row in counts])
    for kind, what in (("words", "words encoded alone"), ("text", "held-out text and its clone, position by position")):
        for language in languages:
            yield f"Cosine of {language} with the pivot, {what}", table(rows(lambda run: {
                layer: f"{cosine:.3f}" for *at, layer, cosine in cosines_in(run) if at == [language, kind]}))
    yield ("Learning dynamics: CLKA right after the period that stated the facts, in the second half of training",
           dynamics_table(dynamics))


def change(run: dict, joint: dict[int, dict], number: Callable[[dict], float | None]) -> float | None:
    """By what share a number of a run is above joint training's of the same seed; None for joint itself."""
    base = joint.get(run["seed"], run)
    ours, theirs = number(run), number(base)
    return ours / theirs - 1 if ours and theirs and base is not run else None


def against(run: dict, joint: dict[int, dict]) -> Row:
    """Changes of perplexity; and how much is closed of joint's gap between En-Clone and the pivot, the same text."""
    changes = {c: change(run, joint, lambda run: value(run, c)) for c in columns(run, "ppl", "other ppl")}
    row = {column: f"{100 * share:+.1f}%" for column, share in changes.items() if share is not None}
    if "ppl clone" in row:
        ours, theirs = value(run, "ppl clone"), value(joint[run["seed"]], "ppl clone")
        floor = value(joint[run["seed"]], f"ppl {run['config']['pivot']}")
        if ours and theirs and floor and floor < theirs > ours:
            row["gap closed"] = f"{100 * (theirs - ours) / (theirs - floor):.0f}%"
    return row


def seen_and_unseen(methods: dict[str, list[dict]], joint: dict[int, dict]) -> list[Row]:
    """
    A row for PreAlign with each share of the table (Fig. 6): it has seen the quarters of the table below its share. In
    brackets against joint training on the same tokens, as those of different rows differ.
    """
    def pooled(run: dict, language: str, kinds: Sequence[str]) -> float | None:
        """Perplexity over all tokens of some kinds."""
        parts = [m for kind, m in kinds_of(run, language).items() if kind in kinds]
        nats = sum(m["tokens"] * math.log(m["ppl"]) for m in parts)
        return math.exp(nats / sum(m["tokens"] for m in parts)) if parts else None

    rows = []
    for method, runs in methods.items():
        share = runs[0]["config"]["align_coverage"]
        if not (method.startswith("coverage") or method == "prealign") or 4 * share % 1:
            continue
        row, i = {"method": method, "share of the table": f"{100 * share:g}%"}, round(4 * share)
        parts = {"seen": TOKEN_KINDS[:i], "unseen": TOKEN_KINDS[i:-1], "not words": TOKEN_KINDS[-1:]}
        for language, part in itertools.product(runs[0]["lm"], parts):
            ours = [pooled(run, language, parts[part]) for run in runs]
            changes = [change(run, joint, lambda run: pooled(run, language, parts[part])) for run in runs]
            known = [100 * share for share in changes if share is not None]
            if any(ours):
                row[f"{language}: {part}"] = spread(ours) + (f" ({statistics.mean(known):+.0f}%)" if known else "")
        rows.append(row)
    return rows if len(rows) > 1 else []


def dynamics_table(dynamics: Sequence[dict]) -> str:
    """
    CLKA in the second half of training, over all its periods and seeds, by method, "STATED->ASKED" and frequency. All
    seeds are asked the same facts, so that the interval is that of one seed's.
    """
    asked, rows = asked_in(dynamics), []
    last = {a.method: a.step for a in sorted(asked, key=lambda a: a.step)}
    late = [a for a in asked if a.step > last[a.method] / 2]
    for method, pair in distinct((a.method, a.pair) for a in late):
        row = {"method": method, "stated -> asked": pair}
        for frequency in sorted({a.frequency for a in late}):
            facts = [a for a in late if (a.method, a.pair, a.frequency) == (method, pair, frequency)]
            if n := sum(a.n for a in facts):
                share = percent([sum(a.accuracy * a.n for a in facts) / n], n // len({a.seed for a in facts}))
                row[f"stated {frequency} times (95%)"] = share.text
        rows.append(row)
    return table(rows)


def paper_tables(methods: dict[str, list[dict]]) -> Iterator[str]:
    """Each of the paper's tables of which there are two methods or more, ours and the paper's numbers side by side."""
    def millions(run: dict) -> float:
        """Parameters without embeddings."""
        return 12e-6 * run["config"]["n_layer"] * run["config"]["n_embd"] ** 2

    def span(texts: list[str]) -> str:
        return " to ".join(distinct((texts[0], texts[-1])))

    for paper in PAPER:
        names = list(next(iter(paper.rows.values())))
        languages = {name.split()[1] for name in names if name.startswith("ppl")}
        here = {method: group for method in paper.rows if (group := methods.get(method))
                and all(languages <= set(run["lm"]) for run in group)}
        runs = [run for group in here.values() for run in group]
        # Of tables of one name, for several sizes, the one whose size is nearest.
        same = [other for other in PAPER if other.name == paper.name]
        if len(here) < 2 or paper is not min(same, key=lambda p: abs(math.log(p.millions / millions(runs[0])))):
            continue
        sizes = span([f"{size:.3g}M" for size in sorted(map(millions, runs))])
        tokens = span([f"{count / 1e6:.1f}M" for count in sorted(run["tokens"] for run in runs)])
        dates = span(sorted(run["date"] for run in runs))
        yield f"### {paper.name}"
        yield f"Ours at {sizes} parameters, {tokens} tokens ({dates}), the paper at {paper.scale}."
        # Five numbers, each beside the paper's, fill a terminal.
        for cut in (names[i:i + 5] for i in range(0, len(names), 5)):
            header = ["method", "seeds"] + [text for name in cut for text in (f"{name}, ours", "paper")]
            yield markdown_table(header, [[method, str(len(group))] + [text for name in cut for text in (
                spread([value(run, name) for run in group]), str(paper.rows[method][name] or "-"))]
                for method, group in here.items()])
        if against := list(disagreements(here, paper, names)):
            yield f"Not in the paper's order: {'; '.join(against)}."


def disagreements(methods: dict[str, list[dict]], paper: PaperTable, names: list[str]) -> Iterator[str]:
    """Where two methods come the other way round than in the paper, by means over the seeds that both have."""
    for name, (a, b) in itertools.product(names, itertools.combinations(methods, 2)):
        x, y = paper.rows[a][name], paper.rows[b][name]
        ours = [{run["seed"]: v for run in methods[m] if (v := value(run, name)) is not None} for m in (a, b)]
        differences = [ours[0][seed] - ours[1][seed] for seed in ours[0] if seed in ours[1]]
        if differences and x and y and (x - y) * statistics.mean(differences) < 0:
            yield f"{name} of {a} and {b}"
