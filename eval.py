"""
What the trained models can do: perplexity, knowledge across languages (CLKA), similarity of aligned words; and the report.

    python eval.py config/demo.py config/method/prealign.py     # -> out/demo/prealign/seed1/eval.json
    python eval.py report out/demo                              # every run found there, in one table

Everything is computed in float32. One function turns hidden states into log-likelihoods: token_log_likelihoods.
"""

import datetime
import glob
import json
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import config as configs
from config import Config, UserError
from data import Dataset, encode, token_byte_lengths
from knowledge import Fact, statement
from model import GPT, linear_cross_entropy
from prealign import draw_keys, padded, word_representations
from train import SHAPE, check_matches, choose_device, load_trained


def token_log_likelihoods(model: GPT, hidden: torch.Tensor, targets: torch.Tensor, vocabulary: tuple[int, int] | None = None) -> torch.Tensor:
    """
    log p(target) in nats, float32, of every position; 0 where the target is -1.

    hidden (B, T, C) as model(inputs) gives it, targets (B, T). With `vocabulary` = (first id, id after the last) the
    softmax is over those ids only: the probability given that the language is known.
    """
    weight = model.lm_head.weight
    if vocabulary is not None:
        first, end = vocabulary
        weight, targets = weight[first:end], torch.where(targets >= 0, targets - first, -1)
    return -linear_cross_entropy(hidden, weight, targets)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Perplexity


def windows(tokens: np.ndarray, block_size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Inputs and targets (B, block_size) that predict every token of a text but the first exactly once, each (but in the first
    window) from at least half a block of context. Windows start half a block apart; -1 marks what another one predicts.
    """
    stride = max(1, block_size // 2)
    starts = np.arange(0, max(1, len(tokens) - 1 - (block_size - stride)), stride)
    for i in range(0, len(starts), batch_size):
        at = starts[i:i + batch_size, None] + np.arange(block_size + 1)  # (B, block_size + 1)
        row = np.where(at < len(tokens), tokens[np.minimum(at, len(tokens) - 1)], 0).astype(np.int64)
        inputs, targets = row[:, :-1], row[:, 1:].copy()
        targets[at[:, 1:] >= len(tokens)] = -1
        targets[(starts[i:i + batch_size, None] > 0) & (np.arange(block_size) < block_size - stride)] = -1
        yield inputs, targets


@torch.no_grad()
def language_model(model: GPT, data: Dataset, language: str, config: Config) -> dict:
    """
    Perplexity (per token), bits per byte, and perplexity with the softmax over the language's own ids, on the first
    eval_tokens held-out tokens (all if 0).
    """
    tokens = data.tokens(language, "val")
    tokens = tokens[:config.eval_tokens or len(tokens)]
    if len(tokens) < 2:
        raise UserError(f"{data.dir}: {len(tokens)} held-out tokens in {language!r}, nothing to predict; use a larger val_fraction")
    first = data.offsets[language]
    device = model.wte.weight.device
    nats = own_nats = count = 0.0
    total = math.ceil((len(tokens) - 1) / max(1, config.block_size // 2) / config.eval_batch_size)
    for inputs, targets in tqdm(windows(tokens, config.block_size, config.eval_batch_size), desc=f"lm {language}", total=total, disable=None):
        targets = torch.from_numpy(targets).to(device)
        hidden = model(torch.from_numpy(inputs).to(device))
        nats -= token_log_likelihoods(model, hidden, targets).double().sum().item()
        own_nats -= token_log_likelihoods(model, hidden, targets, (first, first + data.V)).double().sum().item()
        count += (targets >= 0).sum().item()
    n_bytes = int(token_byte_lengths(data.encoding)[tokens[1:].astype(np.int64) - first].sum())
    return {"ppl": math.exp(nats / count), "bpb": nats / math.log(2) / n_bytes, "ppl_in_language": math.exp(own_nats / count), "tokens": int(count)}


# ---------------------------------------------------------------------------------------------------------------------
# CLKA


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson, 1927)."""
    z, p = 1.959964, correct / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


@torch.no_grad()
def knowledge(model: GPT, data: Dataset, facts: list[Fact], language: str, config: Config) -> dict:
    """
    CLKA (paper, section 4.1): the share of facts whose true statement is more likely, as a whole sentence, than the three
    with another object of the same relation. Chance is 1/4; a tie counts as wrong.
    """
    offset, device = data.offsets[language], model.wte.weight.device
    sentences = [statement(fact, data.pivot, object_) for fact in facts for object_ in (fact.object, *fact.distractors)]
    rows = [np.concatenate([[data.end_of_text], encode(data.encoding, sentence)]) + offset for sentence in sentences]
    longest = max(map(len, rows))
    if longest > config.block_size + 1:
        raise UserError(f"CLKA: a statement has {longest - 1} tokens, more than block_size={config.block_size}; a larger vocab_size makes it shorter")
    likelihoods = []
    for i in tqdm(range(0, len(rows), config.eval_batch_size), desc=f"clka {language}", disable=None):
        group = rows[i:i + config.eval_batch_size]
        ids = np.full((len(group), max(map(len, group))), -1)
        for r, row in enumerate(group):
            ids[r, :len(row)] = row
        ids = torch.from_numpy(ids).to(device)
        hidden = model(ids[:, :-1].clamp(min=0))
        likelihoods.append(token_log_likelihoods(model, hidden, ids[:, 1:]).sum(1).cpu())
    scores = torch.cat(likelihoods).view(len(facts), 4)  # the true one first
    correct = int((scores[:, :1] > scores[:, 1:]).all(1).sum())
    return {"accuracy": correct / len(facts), "n": len(facts), "chance": 0.25, "interval": wilson(correct, len(facts))}


# ---------------------------------------------------------------------------------------------------------------------
# Similarity


def layer_names(config: Config) -> list[str]:
    return ["word embedding", *(f"block {i}" for i in range(1, config.n_layer + 1)), "output embedding"]


@torch.no_grad()
def similarity(model: GPT, data: Dataset, config: Config) -> list[dict]:
    """
    Mean cosine between a pivot word and its first translation, per target and layer.

    `words`: words encoded alone, as stage 1 sees them, drawn by frequency like stage 1's but with a seed of their own.
    `text` (En-Clone): held-out text and its clone, position by position; its last layer is the final hidden state.
    `random`: words alone with the translation of another word, for scale.
    """
    table, rows = data.table, []
    L = len(table.languages)
    drawn = np.argsort(draw_keys(table, replace(config, seed=0), step=2**62))  # the same words for every run
    for l, language in enumerate(table.languages[1:], 1):
        translated = np.diff(table.groups)[drawn * L + l] > 0
        entries = drawn[translated][:config.eval_words]
        if not len(entries):
            continue
        sides = []
        for side in (0, l):
            ids, length = padded(table, table.groups[entries * L + side])  # the first word of each entry in this language
            sides.append(word_representations(model, torch.from_numpy(ids), torch.from_numpy(length)))
        alone = F.cosine_similarity(*sides, dim=-1).mean(1)  # (L + 2,)
        other = F.cosine_similarity(sides[0], sides[1].roll(1, dims=1), dim=-1).mean(1)
        text = running_text(model, data, language, config) if language == "clone" else [None] * len(alone)
        rows += [{"language": language, "layer": name, "words": float(a), "random": float(o), "text": t}
                 for name, a, o, t in zip(layer_names(config), alone, other, text)]
    return rows


@torch.no_grad()
def running_text(model: GPT, data: Dataset, language: str, config: Config) -> list[float]:
    """Mean cosine of each layer between held-out text and its clone, position by position; the final hidden state last."""
    T, device = config.block_size, model.wte.weight.device
    tokens = data.tokens(data.pivot, "val")
    number = max(1, min(32, len(tokens) // T))
    ids = torch.from_numpy(tokens[:number * T].astype(np.int64)).view(-1, min(T, len(tokens))).to(device)
    sides = []
    for x in (ids, ids + data.offsets[language]):
        layers = model.layers(x)
        sides.append(layers + [model.ln_f(layers[-1])])
    return [float(F.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(*sides)]


# ---------------------------------------------------------------------------------------------------------------------
# One run


def evaluate(config: Config) -> dict:
    """Measure a finished run and write eval.json into its folder."""
    data = Dataset(config.data_dir)
    model, state = load_trained(config.run_dir, data, choose_device(config))
    check_matches(state, os.path.join(config.run_dir, "checkpoint.pt"), config, data, SHAPE + ("seed", "batch_size"))
    result = {
        "method": config.method, "seed": config.seed,
        "tokens": state["last_step"] * config.batch_size * config.block_size,
        "lm": {language: language_model(model, data, language, config) for language in data.languages},
        "clka": {f"{data.pivot}->{language}": knowledge(model, data, data.facts, language, config)
                 for language in data.languages} if data.facts else {},
        "similarity": similarity(model, data, config),
        "date": datetime.date.today().isoformat(),
    }
    path = os.path.join(config.run_dir, "eval.json")
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
    os.replace(path + ".tmp", path)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The report


def gather(out_dir: str) -> list[dict]:
    """The results of every evaluated run in a folder, ordered by method and seed, joint first."""
    runs = []
    for path in sorted(glob.glob(os.path.join(out_dir, "*", "seed*", "eval.json"))):
        try:
            with open(path, encoding="utf-8") as f:
                runs.append(json.load(f))
        except ValueError as e:
            raise UserError(f"{path}: not JSON ({e}); run eval.py for that method again") from e
    if not runs:
        raise UserError(f"no evaluated run in {out_dir}; expected METHOD/seedN/eval.json, made by `python eval.py CONFIG ...`")
    return sorted(runs, key=lambda r: (r["method"] != "joint", r["method"], r["seed"]))


def report_tables(runs: list[dict]) -> str:
    """Markdown that also reads well in a terminal."""
    languages = list(runs[0]["lm"])
    pairs = list(runs[0]["clka"])
    header = ["method", "seed", "tokens"] + [f"ppl {l}" for l in languages] + [f"ppl {l} in language" for l in languages[1:]]
    header += [f"bits/byte {l}" for l in languages] + [f"CLKA {p} (95%)" for p in pairs]

    def row(r: dict) -> list[str]:
        cells = [r["method"], str(r["seed"]), f"{r['tokens'] / 1e6:.2f}M"]
        cells += [f"{r['lm'][l]['ppl']:.1f}" for l in languages] + [f"{r['lm'][l]['ppl_in_language']:.1f}" for l in languages[1:]]
        cells += [f"{r['lm'][l]['bpb']:.3f}" for l in languages]
        return cells + [f"{100 * c['accuracy']:.0f}% ({100 * c['interval'][0]:.0f}-{100 * c['interval'][1]:.0f})" for c in (r["clka"][p] for p in pairs)]

    lines = [row(r) for r in runs]
    text = markdown_table(header, lines)
    by_method: dict[str, list[dict]] = {}
    for r in runs:
        by_method.setdefault(r["method"], []).append(r)
    if any(len(group) > 1 for group in by_method.values()):
        def spread(values: list[float], digits: int) -> str:
            sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{sd}"
        def pooled(results: list[dict]) -> str:
            n = sum(c["n"] for c in results)
            low, high = wilson(round(sum(c["accuracy"] * c["n"] for c in results)), n)
            return f"{spread([100 * c['accuracy'] for c in results], 1)}% ({100 * low:.0f}-{100 * high:.0f})"
        header = ["method", "seeds"] + [f"ppl {l}" for l in languages] + [f"CLKA {p} (95%)" for p in pairs]
        lines = [[m, str(len(g))] + [spread([r["lm"][l]["ppl"] for r in g], 1) for l in languages]
                 + [pooled([r["clka"][p] for r in g]) for p in pairs] for m, g in by_method.items()]
        text += "\n\nMean and standard deviation over seeds (CLKA's interval is that of all seeds' answers together):\n\n" + markdown_table(header, lines)
    if lines := comparison(runs):
        text += "\n\n" + lines
    layers = [s["layer"] for s in runs[0]["similarity"] if s["language"] == languages[-1]]
    for kind, what in (("words", "words encoded alone"), ("text", "held-out text and its clone, position by position; the last is the final hidden state")):
        rows = [[r["method"], str(r["seed"])] + [f"{s[kind]:.3f}" for s in r["similarity"] if s["language"] == languages[-1] and s[kind] is not None] for r in runs]
        if any(len(r) > 2 for r in rows):
            text += f"\n\nCosine of {languages[0]} and {languages[-1]}, {what}:\n\n" + markdown_table(["method", "seed", *layers], rows)
    return text


def comparison(runs: list[dict]) -> str:
    """One line per seed and method: what it changes against joint training, and the share of joint's gap to English it closes."""
    lines = []
    for joint in (r for r in runs if r["method"] == "joint"):
        pivot, *targets = joint["lm"]
        for r in runs:
            if r["seed"] != joint["seed"] or r is joint:
                continue
            for language in targets:
                if language not in r["lm"] or joint["lm"][language]["ppl"] <= joint["lm"][pivot]["ppl"]:
                    continue
                a, b, floor = joint["lm"][language]["ppl"], r["lm"][language]["ppl"], joint["lm"][pivot]["ppl"]
                lines.append(f"- {r['method']} against joint, seed {r['seed']}: {language} perplexity {100 * (b / a - 1):+.1f}%, "
                             f"{pivot} perplexity {100 * (r['lm'][pivot]['ppl'] / floor - 1):+.1f}%; "
                             f"{100 * (a - b) / (a - floor):.0f}% of the gap between joint's {language} and {pivot} closed")
    return "\n".join(lines)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(r[i]) if i < len(r) else 0 for r in [header, *rows]) for i in range(len(header))]
    rows = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths))] for r in [header, *rows]]
    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(r) + " |" for r in [rows[0], rule, *rows[1:]])


def report(out_dir: str) -> None:
    """Print the table of every evaluated run in `out_dir`; write report.md and report.json there."""
    runs = gather(out_dir)
    text = report_tables(runs)
    with open(os.path.join(out_dir, "report.json"), "w", encoding="utf-8") as f:
        json.dump({"runs": runs}, f, indent=1)
    with open(os.path.join(out_dir, "report.md"), "w", encoding="utf-8") as f:
        f.write(f"# {out_dir}\n\n{text}\n")
    print(text)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["report"]:
        if len(arguments) != 2:
            raise UserError("expected: python eval.py report OUT_DIR")
        return report(arguments[1])
    config = configs.load(arguments, __doc__)
    result = evaluate(config)
    print(report_tables([result]))


if __name__ == "__main__":
    configs.run(main)
