"""
What runs and eval.py leave in OUT_DIR/METHOD/seedN, read; and what is measured in it.

A new measure is one more line of COLUMNS, which a section of tables.py then names.
"""

import glob
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from runtime.errors import UserError
from runtime.files import is_newer, read_json

# Held-out tokens by their word's place in the table. The last two: part of a word without an entry, and of no word.
TOKEN_KINDS = ("words 0-25%", "25-50%", "50-75%", "75-100%", "other words", "not words")


class Measured(NamedTuple):
    # A share is in %.
    value: float
    # As it stands in a table.
    text: str


# ---- Files ----
def runs_in(out_dir: str) -> list[dict]:
    """Every run in a folder: its eval.json, xnli.json as "nli" and held-out losses as "held_out", joint first."""
    runs = []
    for folder in glob.glob(os.path.join(glob.escape(out_dir), "*", "seed*", "")):
        found = {}
        for name in ("eval.json", "xnli.json"):
            path, checkpoint = folder + name, folder + "checkpoint.pt"
            # Results may also stand there without their checkpoint, as copied from another machine.
            if is_newer(path, checkpoint) or os.path.exists(path) and not os.path.exists(checkpoint):
                found[name] = read_json(path, "delete it and make it again with eval.py")
            elif os.path.exists(path):
                print(f"{path} is older than its run and left out; run eval.py again\n")
        if "eval.json" in found:
            run = found["eval.json"] | {"held_out": held_out_in(folder + "metrics.jsonl")}
            runs.append(run | ({"nli": found["xnli.json"]} if "xnli.json" in found else {}))
    if not runs:
        raise UserError(f"no evaluated run in {out_dir}; expected METHOD/seedN/eval.json, made by eval.py")
    return sorted(runs, key=lambda run: (run["method"] != "joint", run["method"], run["seed"]))


def held_out_in(path: str) -> dict[int, dict[str, float]]:
    """Step -> {language: held-out loss, nats per token} from the log of a run, metrics.jsonl, where it has any."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    return {line["step"]: line["held_out"] for line in lines if "held_out" in line}


def dynamics_in(out_dir: str) -> list[dict]:
    """The records of every dynamics.json in OUT_DIR/dynamics or else in OUT_DIR, joint first."""
    folders = [os.path.join(glob.escape(out_dir), *under, "*", "seed*") for under in (["dynamics"], [])]
    paths = glob.glob(f"{folders[0]}/dynamics.json") or glob.glob(f"{folders[1]}/dynamics.json")
    records = [record for path in sorted(paths) for record in read_json(path, "delete it and run tools.dynamics again")]
    return sorted(records, key=lambda record: (record["method"] != "joint", record["method"]))


# ---- What is measured in a run or in a record of dynamics ----
def cosines_in(measured: dict) -> list[tuple[str, str, str, float]]:
    """(language, "words" or "text", layer, cosine with the pivot) of a run or of a record of dynamics."""
    # Text ends in the final hidden state, where words alone have the output embedding.
    last = {"words": "output embedding", "text": "final hidden state"}
    return [(s["language"], kind, last[kind] if s["layer"] == "output embedding" else s["layer"], s[kind])
            for s in measured["similarity"] for kind in last if s[kind] is not None]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Without repetition, in the order in which they come."""
    return list(dict.fromkeys(values))


def by_method(runs: list[dict]) -> dict[str, list[dict]]:
    return {method: [r for r in runs if r["method"] == method] for method in distinct(r["method"] for r in runs)}


def has_read(run: dict, language: str) -> bool:
    """Whether a language's text was in a run's mix: of another, its perplexity says nothing."""
    config = run["config"]
    return language == config["only"] if config["only"] else config["mix"].get(language, 0) > 0


def kinds_of(run: dict, language: str) -> dict[str, dict]:
    """TOKEN_KINDS -> {"ppl", "tokens"}, or nothing for a language that the run has not read."""
    return run["lm"].get(language, {}).get("kinds", {}) if has_read(run, language) else {}


# ---- Numbers ----
def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson, 1927)."""
    z, p = 1.959964, correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def percent(share: float, n: int) -> Measured:
    """A share of n, as "38% (25-52)" with its 95% interval."""
    low, high = wilson(round(share * n), n)
    return Measured(100 * share, f"{100 * share:.0f}% ({100 * low:.0f}-{100 * high:.0f})")


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of the values that are known; "-" for none."""
    # Where not all are known, how many.
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    counted = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.mean(known):.1f}{deviation}{counted}" if known else "-"


def of_text(run: dict, source: str, key: str, digits: int = 1) -> dict[str, Measured]:
    """A number of each language that the run has read, on held-out ("lm") or other text ("text")."""
    return {language: Measured(numbers[key], f"{numbers[key]:.{digits}f}")
            for language, numbers in run.get(source, {}).items() if has_read(run, language)}


# ---- Columns of tables ----
# Kind of column -> what a run has in columns of that kind, by language or by pair of languages, "STATED->ASKED".
COLUMNS: dict[str, Callable[[dict], dict[str, Measured]]] = {
    "tokens": lambda run: {"read": Measured(run["tokens"], f"{run['tokens'] / 1e6:.2f}M")},
    "ppl": lambda run: of_text(run, "lm", "ppl"),
    "bits/byte": lambda run: of_text(run, "lm", "bpb", 3),
    "other ppl": lambda run: of_text(run, "text", "ppl"),
    "other bits/byte": lambda run: of_text(run, "text", "bpb", 3),
    "CLKA": lambda run: {pair: percent(m["accuracy"], m["n"]) for pair, m in run["clka"].items()},
    "NLI": lambda run: {l: percent(statistics.mean(m["accuracies"]), m["n"])
                        for l, m in (run["nli"]["languages"] if "nli" in run else {}).items()},
    # Only En-Clone has every combination: the same text in other ids.
    "side": lambda run: {f"{context}>{word}": Measured(ppl, f"{ppl:.1f}") for context, m in run["lm"].items()
                         for word, ppl in m.get("predicting", {}).items()
                         if len(m["predicting"]) > 1 and has_read(run, context) and has_read(run, word)},
    "part": lambda run: {part: percent(m["accuracy"], m["n"])
                         for parts in run.get("clka_parts", {}).values() for part, m in parts.items()},
    "mixed": lambda run: {l: percent(m["share"], m["n"]) for l, m in run.get("mixed", {}).items()},
}


def columns(run: dict, *kinds: str) -> dict[str, Measured]:
    """What a run has in all columns of these kinds, by name, such as "ppl de"."""
    return {f"{kind} {of}": measured for kind in kinds for of, measured in COLUMNS[kind](run).items()}


def value(run: dict, column: str) -> float | None:
    """The number in one column; None where the run has none."""
    found = columns(run, column.rpartition(" ")[0]).get(column)
    return found.value if found else None
