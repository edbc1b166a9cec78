"""
The report: every evaluated run of a folder, in tables that read well on GitHub and in a terminal.

    python -m report out/demo        # prints it, and writes out/demo/report.md and report.json
"""

import contextlib
import glob
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence

from runtime.errors import UserError
from runtime.files import is_newer, read_json, write_json, write_text
from report.paper import PAPER, SIZES


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson, 1927)."""
    z, p = 1.959964, correct / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


@contextlib.contextmanager
def as_eval_writes(path: str) -> Iterator[None]:
    """Raises UserError when what is told of a result that was read from `path` cannot be told, as it is not what eval.py writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not as eval.py writes it ({type(e).__name__}: {str(e)[:60]}); delete it and make it again with eval.py") from e


def check_result(run: dict, path: str) -> None:
    """Raises UserError when a run's result is not what eval.py writes: what cannot be reported alone."""
    with as_eval_writes(path):
        report_tables([run])


def gather(out_dir: str, needed: bool = True) -> list[dict]:
    """
    The results of every evaluated run in a folder, ordered by method and seed, joint first; under "nli" those of eval.py xnli.
    Raises UserError when they are `needed` and there is none.
    """
    runs: list[dict] = []
    for path in sorted(glob.glob(os.path.join(out_dir, "*", "seed*", "eval.json"))):
        checkpoint = os.path.join(os.path.dirname(path), "checkpoint.pt")
        if os.path.exists(checkpoint) and not is_newer(path, checkpoint):
            print(f"{path} is older than its run and left out; run eval.py again\n")
            continue
        runs.append(read_json(path, "delete it and make it again with eval.py"))
        check_result(runs[-1], path)
        transfer = os.path.join(os.path.dirname(path), "xnli.json")
        if os.path.exists(transfer) and (not os.path.exists(checkpoint) or is_newer(transfer, checkpoint)):
            runs[-1]["nli"] = read_json(transfer, "delete it and make it again with eval.py xnli")
            check_result(runs[-1], transfer)
    if not runs and needed:
        raise UserError(f"no evaluated run in {out_dir}; expected METHOD/seedN/eval.json, made by `python eval.py CONFIG ...`")
    return sorted(runs, key=lambda r: (r["method"] != "joint", r["method"], r["seed"]))


def percent(share: float, n: int) -> str:
    """A share of n with its 95% interval, "38% (25-52)"."""
    low, high = wilson(round(share * n), n)
    return f"{100 * share:.0f}% ({100 * low:.0f}-{100 * high:.0f})"


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and standard deviation of the values that there are, and how many when some are not there; "-" for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    sd = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{sd}{f' ({len(known)} of {len(values)})' if len(known) < len(values) else ''}"


def in_any(runs: list[dict], *path: str) -> list[str]:
    """The keys that any run has at `path`, in order: languages of "lm", pairs of "clka", ..."""
    found: dict[str, None] = {}
    for run in runs:
        for key in path:
            run = run.get(key) or {}
        found |= dict.fromkeys(run)
    return list(found)


def has_read(run: dict, language: str) -> bool:
    """Whether a language's text was in a run's mix."""
    config = run.get("config", {})
    return language == config["only"] if config.get("only") else config.get("mix", {language: 1.0}).get(language, 0) > 0


def lm_of(run: dict, language: str) -> dict:
    """What was measured on a language's text; nothing for a language that the run has never read."""
    return run["lm"].get(language, {}) if has_read(run, language) else {}


def perplexity(run: dict, language: str, which: str = "ppl") -> float | None:
    return lm_of(run, language).get(which)


def clka_percent(run: dict, pair: str) -> float | None:
    """CLKA in %."""
    return 100 * run["clka"][pair]["accuracy"] if pair in run["clka"] else None


def inference_of(run: dict, language: str) -> dict | None:
    """{"accuracies", "n"} of a run's fine-tunings in a language."""
    return run.get("nli", {"languages": {}})["languages"].get(language)


def inference(run: dict, language: str) -> float | None:
    """Accuracy in %, the mean over a run's fine-tunings."""
    numbers = inference_of(run, language)
    return 100 * statistics.mean(numbers["accuracies"]) if numbers else None


def cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def inference_cell(run: dict, language: str) -> str:
    """Accuracy with its interval over the pairs; of several fine-tunings the mean, and the range of their accuracies."""
    if (numbers := inference_of(run, language)) is None:
        return "-"
    accuracies = numbers["accuracies"]
    text = percent(statistics.mean(accuracies), numbers["n"])
    return text if len(accuracies) == 1 else text + f", {100 * min(accuracies):.0f} to {100 * max(accuracies):.0f} in {len(accuracies)} fine-tunings"


def interval_cell(numbers: dict | None, share: str) -> str:
    return percent(numbers[share], numbers["n"]) if numbers else "-"


def report_tables(runs: list[dict]) -> str:
    """Markdown that also reads well in a terminal."""
    return "\n\n".join(f"## {title}\n\n{body}" for title, body in sections(runs))


def sections(runs: list[dict]) -> Iterator[tuple[str, str]]:
    """Title and body of each section of the report."""
    languages, by_method = in_any(runs, "lm"), group_by_method(runs)
    clones = [l for l in languages if l == "clone"]
    header = ["method", "seed", "tokens"] + [f"ppl {l}" for l in languages] + [f"ppl {l} in language" for l in clones] + [f"bits/byte {l}" for l in languages]
    yield "Perplexity", markdown_table(header, [
        [r["method"], str(r["seed"]), f"{r['tokens'] / 1e6:.2f}M"] + [cell(perplexity(r, l), 1) for l in languages]
        + [cell(perplexity(r, l, "ppl_in_language"), 1) for l in clones] + [cell(perplexity(r, l, "bpb"), 3) for l in languages] for r in runs])
    if languages_of_text := in_any(runs, "text"):
        yield "Perplexity on other text (eval_text); in brackets against joint training", text_table(runs, languages_of_text)
    if table := shares(runs):
        yield "Knowledge across languages (CLKA), inference (NLI), mixed script", table
    if any(len(group) > 1 for group in by_method.values()):
        yield "Mean and standard deviation over seeds", over_seeds(by_method)
    if table := comparison(runs):
        yield "Against joint training", table
    if tables := [f"### {name}\n\n{table}" for name, table in paper_tables(by_method)]:
        yield "Beside the paper", "\n\n".join(tables)
    if table := seen_and_unseen(by_method):
        yield "Perplexity of words that were aligned (seen), of the other words, and of what is no word; in brackets against joint training", table
    for l in languages:
        if those := [(r, found) for r in runs if (found := lm_of(r, l).get("kinds"))]:
            kinds = in_any(runs, "lm", l, "kinds")
            number = ["held-out tokens", ""] + [f"{max(found.get(kind, {}).get('tokens', 0) for _, found in those):,}" for kind in kinds]
            yield f"Perplexity by kind of token, {l}", markdown_table(["method", "seed", *kinds], [
                [r["method"], str(r["seed"])] + [cell(found.get(kind, {}).get("ppl"), 1) for kind in kinds] for r, found in those] + [number])
    layers = list(dict.fromkeys(s["layer"] for r in runs for s in r["similarity"]))
    for kind, what in (("words", "words encoded alone"), ("text", "held-out text and its clone, position by position")):
        header = ["method", "seed", "language", *(layers if kind == "words" else [*layers[:-1], "final hidden state"])]
        rows = []
        for language in languages[1:]:
            for r in runs:
                values = {s["layer"]: s[kind] for s in r["similarity"] if s["language"] == language and s[kind] is not None}
                rows += [[r["method"], str(r["seed"]), language] + [cell(values.get(layer), 3) for layer in layers]] if values else []
        if rows:
            yield f"Cosine with {languages[0]}, {what}", markdown_table(header, rows)


def text_table(runs: list[dict], languages: list[str]) -> str:
    """What was measured on eval_text, perplexities against those of joint training with the same seed."""
    joint = {r["seed"]: r for r in runs if r["method"] == "joint"}

    def number(r: dict, language: str, which: str) -> float | None:
        return r.get("text", {}).get(language, {}).get(which) if has_read(r, language) else None

    rows = []
    for r in runs:
        row = [r["method"], str(r["seed"])]
        for language in languages:
            own, other = number(r, language, "ppl"), number(joint.get(r["seed"], {}), language, "ppl")
            row.append(cell(own, 1) + (f" ({100 * (own / other - 1):+.1f}%)" if own and other and r["method"] != "joint" else ""))
        rows.append(row + [cell(number(r, language, "bpb"), 3) for language in languages])
    return markdown_table(["method", "seed"] + [f"ppl {l}" for l in languages] + [f"bits/byte {l}" for l in languages], rows)


def group_by_method(runs: list[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for r in runs:
        groups.setdefault(r["method"], []).append(r)
    return groups


def shares(runs: list[dict]) -> str:
    """What is measured as a share, with its 95% interval: CLKA, inference, mixed script."""
    pairs, tested, mixed = in_any(runs, "clka"), in_any(runs, "nli", "languages"), in_any(runs, "mixed")
    if not pairs + tested + mixed:
        return ""
    rows = []
    for r in runs:
        cells = [r["method"], str(r["seed"])] + [interval_cell(r["clka"].get(p), "accuracy") for p in pairs]
        cells += [inference_cell(r, l) for l in tested]
        rows.append(cells + [interval_cell((r.get("mixed") or {}).get(l), "share") for l in mixed])
    text = markdown_table(["method", "seed"] + [f"CLKA {p} (95%)" for p in pairs] + [f"NLI {l} (95%)" for l in tested] + [f"mixed {l} (95%)" for l in mixed], rows)
    notes = [f"By chance CLKA is {100 * chance:.0f}%." for chance in sorted({numbers["chance"] for r in runs for numbers in r["clka"].values()})]
    notes += [f"NLI is measured on {source.replace('builtin', 'the built-in pairs')}; by chance it is {100 / labels:.0f}%."
              for source, labels in sorted({(str(r["nli"].get("test")), len(r["nli"].get("labels", ()))) for r in runs if "nli" in r}) if labels]
    return text + ("\n\n" + " ".join(notes) if notes else "")


def over_seeds(by_method: dict[str, list[dict]]) -> str:
    runs = [r for group in by_method.values() for r in group]
    languages, pairs, tested = in_any(runs, "lm"), in_any(runs, "clka"), in_any(runs, "nli", "languages")
    return markdown_table(
        ["method", "seeds"] + [f"ppl {l}" for l in languages] + [f"CLKA {p} %" for p in pairs] + [f"NLI {l} %" for l in tested],
        [[method, str(len(group))] + [spread([perplexity(r, l) for r in group], 1) for l in languages]
         + [spread([clka_percent(r, p) for r in group], 1) for p in pairs] + [spread([inference(r, l) for r in group], 1) for l in tested]
         for method, group in by_method.items()])


# Of held-out tokens, by their word's place in the table; and the last two, part of a word without an entry, and of no word.
TOKEN_KINDS = ("words 0-25%", "25-50%", "50-75%", "75-100%", "other words", "not words")


def seen_and_unseen(by_method: dict[str, list[dict]]) -> str:
    """
    The coverage methods (the paper's Fig. 6): a run with a share of the table has seen the quarters of the table below it. In brackets
    against joint training's perplexity on the same tokens: those of different rows differ.
    """
    header: list[str] = []
    rows = []
    for method, runs in by_method.items():
        coverage = runs[0].get("config", {}).get("align_coverage")
        if not (method.startswith("coverage") or method == "prealign") or coverage is None or 4 * coverage % 1:  # tokens are counted by quarters
            continue
        cells = {}
        seen = round(4 * coverage)
        for language in in_any(runs, "lm"):
            if in_any(runs, "lm", language, "kinds"):
                for name, those in (("seen", TOKEN_KINDS[:seen]), ("unseen", TOKEN_KINDS[seen:-1]), ("not words", TOKEN_KINDS[-1:])):
                    ours, joint = (pooled(group, language, those) for group in (runs, by_method.get("joint", [])))
                    both = [r["seed"] for r in runs if r["seed"] in ours and r["seed"] in joint]
                    change = statistics.mean(ours[seed] / joint[seed] - 1 for seed in both) if both else None
                    cells[f"{language}: {name}"] = spread(list(ours.values()), 1) + ("" if change is None else f" ({100 * change:+.0f}%)")
        header = ["method", "share of the table", *cells]
        rows.append([method, f"{100 * coverage:g}%", *cells.values()])
    return markdown_table(header, rows) if len(rows) > 1 else ""


def pooled(runs: list[dict], language: str, kinds: Sequence[str]) -> dict[int, float]:
    """By seed: the perplexity of all tokens of some kinds together."""
    parts = {r["seed"]: [found[kind] for kind in kinds if kind in found] for r in runs if (found := lm_of(r, language).get("kinds"))}
    return {seed: pooled_perplexity(those) for seed, those in parts.items() if those}


def pooled_perplexity(parts: list[dict]) -> float:
    """The perplexity of several sets of tokens together, each {"ppl", "tokens"}."""
    return math.exp(sum(part["tokens"] * math.log(part["ppl"]) for part in parts) / sum(part["tokens"] for part in parts))


def dynamics_table(out_dir: str) -> str:
    """
    CLKA in the second half of training, by method, language of training and of the test, and frequency, over all its periods and
    seeds. All seeds are asked the same facts, so that the interval is that of one seed's.
    """
    rows, everything = [], dynamics_of(out_dir)
    frequencies = sorted({int(n) for records in everything.values() for r in records for n in r["clka"]})
    for method, records in everything.items():
        tested = [r for r in records if r["clka"]]
        late = [r for r in tested if r["step"] > max(r["step"] for r in tested) / 2]
        seeds = len({r["seed"] for r in late})
        for pair in dict.fromkeys(pair for r in late for pairs in r["clka"].values() for pair in pairs):
            cells = []
            for n in frequencies:
                parts = [r["clka"][str(n)][pair] for r in late if pair in r["clka"].get(str(n), {})]
                facts = sum(part["n"] for part in parts)
                cells.append(percent(sum(part["accuracy"] * part["n"] for part in parts) / facts, facts // seeds) if facts else "-")
            rows.append([method, pair, *cells])
    return markdown_table(["method", "stated -> asked", *(f"stated {n} times (95%)" for n in frequencies)], rows) if rows else ""


def read_dynamics(path: str) -> list[dict]:
    """The lines of a dynamics.jsonl."""
    with open(path, encoding="utf-8") as f:
        try:
            records = [json.loads(line) for line in f]
            for record in records:  # what tables and figures need
                cells = [cell for pairs in record["clka"].values() for cell in pairs.values()]
                names = [record["method"], *(s[key] for s in record["similarity"] for key in ("language", "layer"))]
                whole = [record["step"], record["seed"], *map(int, record["clka"]), *(cell["n"] for cell in cells)]
                numbers = [*(cell["accuracy"] for cell in cells), *(s[kind] for s in record["similarity"] for kind in ("words", "text") if s[kind] is not None)]
                for values, kind in ((names, str), (whole, int), (numbers, (int, float))):
                    if not all(isinstance(value, kind) for value in values):
                        raise TypeError("a name or a number is of another kind")
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise UserError(f"{path}: not the lines of eval.py dynamics ({e}); delete it and make it again") from e
    return records


def dynamics_of(out_dir: str) -> dict[str, list[dict]]:
    """
    The records of every dynamics.jsonl in OUT_DIR/dynamics, where runs/figures.sh makes them, or else in OUT_DIR, by method, all seeds
    together, joint first.
    """
    records: dict[str, list[dict]] = {}
    paths = glob.glob(os.path.join(out_dir, "dynamics", "*", "seed*", "dynamics.jsonl")) or glob.glob(os.path.join(out_dir, "*", "seed*", "dynamics.jsonl"))
    for record in (record for path in sorted(paths) for record in read_dynamics(path)):
        records.setdefault(record["method"], []).append(record)
    return dict(sorted(records.items(), key=lambda item: (item[0] != "joint", item[0])))


def comparison(runs: list[dict]) -> str:
    """One line per seed and method: what it changes against joint training, and the share of joint's gap to English it closes."""
    lines = []
    for joint in (r for r in runs if r["method"] == "joint"):
        pivot, *targets = joint["lm"]  # the pivot comes first
        floor = joint["lm"][pivot]["ppl"]
        for r in runs:
            if r["seed"] != joint["seed"] or r is joint:
                continue
            for language in targets:
                if (b := perplexity(r, language)) is None:
                    continue
                a, english = joint["lm"][language]["ppl"], perplexity(r, pivot)
                line = f"- {r['method']} against joint, seed {r['seed']}: {language} perplexity {100 * (b / a - 1):+.1f}%"
                if english is not None:
                    line += f", {pivot} perplexity {100 * (english / floor - 1):+.1f}%"
                if language == "clone" and floor < a > b:  # the same text, so that perplexities compare
                    line += f"; {100 * (a - b) / (a - floor):.0f}% of the gap between joint's {language} and {pivot} closed"
                lines.append(line)
    return "\n".join(lines)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(r[i]) if i < len(r) else 0 for r in [header, *rows]) for i in range(len(header))]
    rows = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths))] for r in [header, *rows]]
    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(r) + " |" for r in [rows[0], rule, *rows[1:]])


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python -m report OUT_DIR")
    report(arguments[0])


def report(out_dir: str) -> None:
    """
    Print the tables of every evaluated run in `out_dir`, write report.json and report.md there, with OUT_DIR/notes.md in it if there
    is one, and draw the figures into it.
    """
    from report.figures import draw  # here, as it takes a second to load

    runs = gather(out_dir)
    text = report_tables(runs)
    if table := dynamics_table(out_dir):
        text += "\n\n## Learning dynamics: CLKA right after the period that stated the facts, in the second half of training\n\n" + table
    notes = os.path.join(out_dir, "notes.md")
    if os.path.exists(notes):
        with open(notes, encoding="utf-8") as f:
            text += "\n\n" + f.read().strip()
    print(f"{text}\n")
    write_json(os.path.join(out_dir, "report.json"), {"runs": runs})
    pictures = []
    for figure in draw(out_dir):
        print(f"{figure.title}: {os.path.join(out_dir, figure.file)}")
        pictures.append(f"## {figure.title}\n\n![{figure.title}]({figure.file})\n\n{figure.caption}\n")
    write_text(os.path.join(out_dir, "report.md"), "\n".join([f"# {out_dir}\n\n{text}\n", *pictures]))


# ---------------------------------------------------------------------------------------------------------------------
# Beside the paper

def metric(run: dict, column: str) -> float | None:
    """What a column of the paper's tables, such as "ppl de", is in a run: a number, or None where the run has not got it. Accuracies in %."""
    kind, language = column.split(" ")
    if kind == "ppl":
        return perplexity(run, language)
    if kind == "NLI":
        return inference(run, language)
    if kind == "CLKA":
        return clka_percent(run, f"en->{language}")
    return 100 * run["mixed"][language]["share"] if run.get("mixed") else None


def nearest_size(run: dict) -> str:
    """Of the paper's model sizes, the nearest to the run's."""
    config = run.get("config", {"n_layer": 1, "n_embd": 1})
    parameters = 12 * config["n_layer"] * config["n_embd"] ** 2
    return min(SIZES, key=lambda size: abs(math.log(SIZES[size] / parameters)))


def paper_tables(by_method: dict[str, list[dict]]) -> Iterator[tuple[str, str]]:
    """Each of the paper's tables of which there are two methods or more: (name, ours and the paper's in columns of their own)."""
    for name, rows in PAPER.items():
        columns = list(dict.fromkeys(column for row in sorted(rows.values(), key=len, reverse=True) for column in row))
        languages = {column.split(" ")[1] for column in columns}
        here = {method: by_method[method] for method in rows if method in by_method and all(languages <= set(r["lm"]) for r in by_method[method])}
        size = name.partition(", ")[2]
        if len(here) < 2 or (size and size != nearest_size(next(iter(here.values()))[0])):
            continue
        tables = []
        kinds = [[column for column in columns if column.startswith(kind)] for kind in ("ppl", "NLI", "CLKA")]
        for part in kinds if len(columns) > 6 else [columns]:
            lines = []
            for method, runs in here.items():
                cells = [method, str(len(runs))]
                for column in part:
                    theirs = rows[method].get(column)
                    cells += [spread([metric(r, column) for r in runs], 1), "-" if theirs is None else str(theirs)]
                lines.append(cells)
            tables.append(markdown_table(["method", "seeds"] + [text for column in part for text in (f"{column}, ours", "paper")], lines))
        tokens = sorted({r["tokens"] for runs in here.values() for r in runs})
        dates = sorted({r["date"] for runs in here.values() for r in runs if "date" in r})
        scale = " to ".join(f"{t / 1e6:.1f}M" for t in dict.fromkeys((tokens[0], tokens[-1])))
        table = "\n\n".join(tables)
        if against := disagreements(here, rows, columns):
            table += "\n\nNot in the paper's order: " + "; ".join(against) + "."
        sizes = {f"{12 * c['n_layer'] * c['n_embd'] ** 2 / 1e6:.3g}M parameters, " for runs in here.values() for r in runs if (c := r.get("config"))}
        tokens_and_date = f"{scale} tokens ({' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'undated'})"
        yield name, f"Ours at {''.join(sizes) if len(sizes) == 1 else ''}{tokens_and_date}, the paper at {'10.4B' if size else '10.1B'}.\n\n{table}"


def disagreements(runs: dict[str, list[dict]], paper: dict[str, dict[str, float]], columns: list[str]) -> list[str]:
    """Where two methods that differ in the paper come the other way round in ours, by means over the seeds that both have."""
    found = []
    for column in columns:
        ours = {method: {r["seed"]: v for r in those if (v := metric(r, column)) is not None} for method, those in runs.items() if column in paper[method]}
        for a, b in itertools.combinations(ours, 2):
            differences = [ours[a][seed] - ours[b][seed] for seed in ours[a] if seed in ours[b]]
            if differences and (paper[a][column] - paper[b][column]) * statistics.mean(differences) < 0:
                found.append(f"{column} of {a} and {b}")
    return found
