"""
What eval.py leaves in OUT_DIR/METHOD/seedN, eval.json, xnli.json and dynamics.jsonl, read; and what is measured in it.

A new measure is one more line of COLUMNS, which a section of tables.py then names.
"""

import glob
import json
import math
import os
import statistics
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from runtime.errors import UserError
from runtime.files import is_newer

# Held-out tokens by their word's place in the table. The last two: part of a word without an entry, and of no word.
TOKEN_KINDS = ("words 0-25%", "25-50%", "50-75%", "75-100%", "other words", "not words")

# Facts asked in a line of dynamics: n that were stated `frequency` times, of a pair "STATED->ASKED".
Asked = namedtuple("Asked", "method seed step frequency pair accuracy n")


class Measured(NamedTuple):
    value: float  # shares in %
    text: str     # as it stands in a table


def read(path: str, use: Callable[[list[dict]], object]) -> list[dict]:
    """The value of a .json, or the lines of a .jsonl; a UserError where they are not such that `use` of them works."""
    try:
        with open(path, encoding="utf-8") as f:
            values = [json.loads(text) for text in (f if path.endswith(".jsonl") else [f.read()])]
        use(values)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        why = f"{type(e).__name__}: {str(e)[:80]}"
        raise UserError(f"{path}: not as eval.py writes it ({why}); delete it and make it again with eval.py") from e
    return values


def runs_in(out_dir: str, use: Callable[[list[dict]], object]) -> list[dict]:
    """The eval.json of every run in a folder, with its xnli.json as "nli", by method and seed, joint first."""
    runs = []
    for folder in sorted(glob.glob(os.path.join(out_dir, "*", "seed*", ""))):
        path, transfer, checkpoint = (folder + name for name in ("eval.json", "xnli.json", "checkpoint.pt"))
        # Results may also stand there without their checkpoint, as copied from another machine.
        current = [file for file in (path, transfer) if os.path.exists(file)
                   and (is_newer(file, checkpoint) or not os.path.exists(checkpoint))]
        if path in current:
            (run,) = read(path, use)
            # Checked with what it stands beside in a table, so that a damaged file is named.
            if transfer in current:
                (run["nli"],) = read(transfer, lambda values: use([run | {"nli": values[0]}]))
            runs.append(run)
        elif os.path.exists(path):
            print(f"{path} is older than its run and left out; run eval.py again\n")
    return sorted(runs, key=lambda run: (run["method"] != "joint", run["method"], run["seed"]))


def dynamics_in(out_dir: str, use: Callable[[list[dict]], object]) -> list[dict]:
    """The lines of every dynamics.jsonl in OUT_DIR/dynamics or else in OUT_DIR, joint first."""
    name = os.path.join("*", "seed*", "dynamics.jsonl")
    paths = glob.glob(os.path.join(out_dir, "dynamics", name)) or glob.glob(os.path.join(out_dir, name))
    lines = [line for path in sorted(paths) for line in read(path, use)]
    return sorted(lines, key=lambda line: (line["method"] != "joint", line["method"]))


# ---- What is measured in a run or in a line of dynamics ----


def asked_in(dynamics: Sequence[dict]) -> list[Asked]:
    return [Asked(line["method"], line["seed"], line["step"], int(frequency), pair, m["accuracy"], m["n"])
            for line in dynamics for frequency, pairs in line["clka"].items() for pair, m in pairs.items()]


def cosines_in(measured: dict) -> list[tuple[str, str, str, float]]:
    """(language, "words" or "text", layer, cosine with the pivot) of a run or of a line of dynamics."""
    # Text ends in the final hidden state, where words alone have the output embedding.
    last = {"words": "output embedding", "text": "final hidden state"}
    return [(s["language"], kind, last[kind] if s["layer"] == "output embedding" else s["layer"], s[kind])
            for s in measured["similarity"] for kind in last if s[kind] is not None]


def distinct(values: Iterable[Any]) -> list[Any]:
    """The values without repetition, as they come."""
    return list(dict.fromkeys(values))


def by_method(runs: list[dict]) -> dict[str, list[dict]]:
    return {method: [r for r in runs if r["method"] == method] for method in distinct(r["method"] for r in runs)}


def has_read(run: dict, language: str) -> bool:
    """Whether a language's text was in a run's mix; of another language its perplexity says nothing."""
    config = run["config"]
    return language == config["only"] if config["only"] else config["mix"].get(language, 0) > 0


def kinds_of(run: dict, language: str) -> dict[str, dict]:
    """TOKEN_KINDS -> {"ppl", "tokens"}, for a language that the run has read."""
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
    """Mean and standard deviation of the values that are known, and how many are when not all; "-" for none."""
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    counted = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.mean(known):.1f}{deviation}{counted}" if known else "-"


def of_text(run: dict, source: str, key: str, digits: int = 1) -> dict[str, Measured]:
    """A number of each language that the run has read, on held-out ("lm") or other text ("text")."""
    return {language: Measured(numbers[key], f"{numbers[key]:.{digits}f}")
            for language, numbers in run.get(source, {}).items() if has_read(run, language)}


# ---- The columns of tables ----

# Kind of column -> what a run has in columns of that kind, by language or by pair of languages, "STATED->ASKED".
COLUMNS: dict[str, Callable[[dict], dict[str, Measured]]] = {
    "tokens": lambda run: {"read": Measured(run["tokens"], f"{run['tokens'] / 1e6:.2f}M")},
    "ppl": lambda run: of_text(run, "lm", "ppl"),
    # Only En-Clone has ids of its own, over which alone the softmax can be taken.
    "in-language ppl": lambda run: {l: m for l, m in of_text(run, "lm", "ppl_in_language").items() if l == "clone"},
    "bits/byte": lambda run: of_text(run, "lm", "bpb", 3),
    "other ppl": lambda run: of_text(run, "text", "ppl"),
    "other bits/byte": lambda run: of_text(run, "text", "bpb", 3),
    "CLKA": lambda run: {pair: percent(m["accuracy"], m["n"]) for pair, m in run["clka"].items()},
    "NLI": lambda run: {l: percent(statistics.mean(m["accuracies"]), m["n"])
                        for l, m in (run["nli"]["languages"] if "nli" in run else {}).items()},
    "mixed": lambda run: {l: percent(m["share"], m["n"]) for l, m in run.get("mixed", {}).items()},
}


def columns(run: dict, *kinds: str) -> dict[str, Measured]:
    """What a run has in all columns of these kinds, by name, such as "ppl de"."""
    return {f"{kind} {of}": measured for kind in kinds for of, measured in COLUMNS[kind](run).items()}


def value(run: dict, column: str) -> float | None:
    """The number in one column; None where the run has none."""
    found = columns(run, column.rpartition(" ")[0]).get(column)
    return found.value if found else None
