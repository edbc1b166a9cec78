"""
What a trained model can do: perplexity, knowledge across languages (CLKA), similarity of aligned words, mixed script.

    python eval.py config/demo.py config/method/prealign.py          # -> out/demo/prealign/seed1/eval.json
    python eval.py xnli config/demo.py config/method/prealign.py     # zero-shot transfer (finetune.py) -> xnli.json beside it
    python eval.py dynamics CONFIG ...                               # CLKA and similarity at a run's snapshots -> dynamics.jsonl
    python eval.py sample CONFIG ... --prompt="The" --sample_count=3 # how the model goes on
    python eval.py report out/demo                                   # every run found there, in one table (report.py)

All but the fine-tuning is computed in float32. One function turns hidden states into log-likelihoods: token_log_likelihoods.
"""

import datetime
import glob
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from runtime import config as configs
from runtime import errors
from runtime.checkpoint import FIXED, check_matches, load_trained
from runtime.config import Config
from runtime.errors import UserError
from corpus.readers import documents
from corpus.folder import Folder, text_language
from corpus.dictionary import script_of
from runtime.files import is_newer, write_json, write_text
from finetune import padded_batch, transfer
from runtime.hardware import open_device, start
from tasks.facts import LANGUAGES, Fact, statement, facts_of
from model import GPT, linear_cross_entropy
from prealign import draw_keys, padded, word_representations
from report.__main__ import main as report
from report.results import TOKEN_KINDS, read, wilson
from report.tables import dynamics_table, report_tables
from corpus.tokenizer import encode, token_byte_lengths


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


def language_model(model: GPT, data: Folder, language: str, config: Config) -> dict:
    """
    `perplexity` of the first eval_tokens held-out tokens (all if 0). For the pivot and En-Clone also perplexity by kind of token
    (token_kinds).
    """
    tokens = data.tokens(language, "val")
    tokens = tokens[:config.eval_tokens or len(tokens)]
    return perplexity(model, data, language, tokens, config, token_kinds(data)[:len(tokens)] if language in (data.pivot, "clone") else None)


def other_text(model: GPT, data: Folder, language: str, config: Config) -> dict:
    """`perplexity` of the first eval_tokens tokens (all if 0) of the language's part of eval_text."""
    source = config.eval_text.replace("{language}", text_language(language, data.pivot))
    tokens, room = [np.array([data.end_of_text])], config.eval_tokens or math.inf
    for text in documents(source):
        tokens.append(np.append(encode(data.encoding, text), data.end_of_text))
        room -= len(tokens[-1])
        if room <= 0:
            break
    ids = np.concatenate(tokens)[:config.eval_tokens or None]
    return perplexity(model, data, language, ids + data.offsets[language], config)


@torch.no_grad()
def perplexity(model: GPT, data: Folder, language: str, tokens: np.ndarray, config: Config, kinds: np.ndarray | None = None) -> dict:
    """
    Of a text, tokens (n,): perplexity (per token), bits per byte, and perplexity with the softmax over the language's own ids; with
    `kinds` (n,), an index into TOKEN_KINDS for each token, also perplexity by kind.
    """
    if len(tokens) < 2:
        raise UserError(f"{data.dir}: {len(tokens)} tokens in {language!r} to measure perplexity on, nothing to predict; use a larger val_fraction or eval_tokens")
    first = data.offsets[language]
    device = model.wte.weight.device
    by_kind, kinds = kinds is not None, np.zeros(len(tokens), dtype=np.int64) if kinds is None else kinds
    own_nats = 0.0
    nats, count = np.zeros(len(TOKEN_KINDS)), np.zeros(len(TOKEN_KINDS), dtype=np.int64)  # of each kind
    total = math.ceil((len(tokens) - 1) / max(1, config.block_size // 2) / config.eval_batch_size)
    batches = zip(windows(tokens, config.block_size, config.eval_batch_size), windows(kinds, config.block_size, config.eval_batch_size))
    for (inputs, targets), (_, kind) in tqdm(batches, desc=f"lm {language}", total=total, disable=None):
        predicted, targets = targets >= 0, torch.from_numpy(targets).to(device)
        hidden = model(torch.from_numpy(inputs).to(device))
        likelihoods = token_log_likelihoods(model, hidden, targets)
        own = likelihoods if data.V == data.vocab_size else token_log_likelihoods(model, hidden, targets, (first, first + data.V))
        own_nats -= own.double().sum().item()
        losses = -likelihoods.double().cpu().numpy()
        nats += np.bincount(kind[predicted], losses[predicted], minlength=len(TOKEN_KINDS))
        count += np.bincount(kind[predicted], minlength=len(TOKEN_KINDS))
    n_bytes = int(token_byte_lengths(data.encoding)[tokens[1:].astype(np.int64) - first].sum())
    result = {"ppl": math.exp(nats.sum() / count.sum()), "bpb": nats.sum() / math.log(2) / n_bytes,
              "ppl_in_language": math.exp(own_nats / count.sum()), "tokens": int(count.sum())}
    if by_kind:
        result["kinds"] = {kind: {"ppl": math.exp(n / c), "tokens": int(c)} for kind, n, c in zip(TOKEN_KINDS, nats, count) if c}
    return result


def token_kinds(data: Folder) -> np.ndarray:
    """
    An index into TOKEN_KINDS (n,) for every held-out token of the pivot, and so of En-Clone: part of a word with an entry in this
    quarter of the table, the most frequent first; part of a word without one; neither. The same for every run, so that
    what a run with a part of the table had seen in stage 1 and what not (the paper's Fig. 6) are compared on the same tokens.
    """
    align = np.abs(data.align("val"))
    wordlike = np.zeros(data.V, dtype=bool)
    for token in data.encoding.token_byte_values():
        wordlike[data.encoding.encode_single_token(token)] = re.search(rb"[0-9A-Za-z\x80-\xff]", token) is not None
    cuts = [len(data.table.top(share)) for share in (0.25, 0.5, 0.75)]
    return np.where(align > 0, np.searchsorted(cuts, align), np.where(wordlike[data.tokens(data.pivot, "val")], 4, 5))


# ---------------------------------------------------------------------------------------------------------------------
# CLKA


@torch.no_grad()
def clka_in(model: GPT, data: Folder, facts: list[Fact], language: str, config: Config) -> dict:
    """
    CLKA (paper, section 4.1): the share of facts whose true statement is more likely, as a whole sentence, than the three
    with another object of the same relation. Chance is 1/4; a tie counts as wrong.
    """
    offset, device = data.offsets[language], model.wte.weight.device
    sentences = [statement(fact, text_language(language, data.pivot), object_) for fact in facts for object_ in (fact.object, *fact.distractors)]
    rows = [np.concatenate([[data.end_of_text], encode(data.encoding, sentence)]) + offset for sentence in sentences]
    longest = max(map(len, rows))
    if longest > config.block_size + 1:
        raise UserError(f"CLKA: a statement has {longest - 1} tokens, more than block_size={config.block_size}; a larger vocab_size makes it shorter")
    likelihoods = torch.empty(len(rows))
    order = np.argsort([len(row) for row in rows], kind="stable")  # rows of one length in a batch
    for i in tqdm(range(0, len(rows), config.eval_batch_size), desc=f"clka {language}", disable=None):
        group = order[i:i + config.eval_batch_size]
        ids, _ = padded_batch([rows[row] for row in group], device, fill=-1)
        hidden = model(ids[:, :-1].clamp(min=0))
        likelihoods[group] = token_log_likelihoods(model, hidden, ids[:, 1:]).sum(1).cpu()
    scores = likelihoods.view(len(facts), 4)  # the true one first
    correct = int((scores[:, :1] > scores[:, 1:]).all(1).sum())
    return {"accuracy": correct / len(facts), "n": len(facts), "chance": 0.25, "interval": wilson(correct, len(facts))}


def clka(model: GPT, data: Folder, facts: list[Fact], config: Config) -> dict[str, dict]:
    """`clka_in` for every language of training and every language of the test that has templates, by "TRAINING->TEST"."""
    stated = {language: [fact for fact in facts if fact.language == language] for language in data.languages}
    return {f"{training}->{test}": clka_in(model, data, those, test, config)
            for training, those in stated.items() if those for test in data.languages if text_language(test, data.pivot) in LANGUAGES}


# ---------------------------------------------------------------------------------------------------------------------
# Similarity


def layer_names(config: Config) -> list[str]:
    return ["word embedding", *(f"block {i}" for i in range(1, config.n_layer + 1)), "output embedding"]


@torch.no_grad()
def similarity(model: GPT, data: Folder, config: Config) -> list[dict]:
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
        alone = F.cosine_similarity(sides[0], sides[1], dim=-1).mean(1)  # (L + 2,)
        other = F.cosine_similarity(sides[0], sides[1].roll(1, dims=1), dim=-1).mean(1)
        text = running_text(model, data, language, config) if language == "clone" else [None] * len(alone)
        rows += [{"language": language, "layer": name, "words": float(a), "random": float(o), "text": t}
                 for name, a, o, t in zip(layer_names(config), alone, other, text)]
    return rows


@torch.no_grad()
def running_text(model: GPT, data: Folder, language: str, config: Config) -> list[float]:
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
# Mixed script

@torch.no_grad()
def sample(model: GPT, ids: torch.Tensor, count: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """`count` more tokens for each row of ids (B, T), each drawn from softmax(logits / temperature) -> (B, count) int64."""
    T = ids.shape[1]
    for _ in range(count):
        logits = F.linear(model(ids[:, -model.block_size:])[:, -1], model.lm_head.weight)  # (B, V)
        ids = torch.cat([ids, torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)], dim=1)
    return ids[:, T:]


def decoder(data: Folder) -> Callable[[np.ndarray], str]:
    """The text of token ids (n,), without those of En-Clone and those that stand for nothing, as some encodings have."""
    known = np.zeros(data.vocab_size, dtype=bool)
    known[:data.V] = token_byte_lengths(data.encoding) > 0
    known[data.end_of_text] = True
    return lambda ids: data.encoding.decode(ids[known[ids]].tolist())


def is_in(language: str, data: Folder) -> Callable[[np.ndarray], bool]:
    """
    Whether token ids (n,) of a pivot text's continuation have anything of a target in them: any token of En-Clone; any character
    of the target's script; for a target in the pivot's script, any whole word that in the table only the target has and that does
    not stand in held-out pivot text either (a dictionary without "he" would make English German).
    """
    if language == "clone":
        return lambda ids: bool((ids >= data.offsets["clone"]).any())

    text = decoder(data)
    if (script := script_of(language)) is not None:
        return lambda ids: re.search(f"[{script}]", text(ids)) is not None
    table, l = data.table, data.languages.index(language)

    def words(which: int) -> set[str]:
        return {text(table.word(w)).strip().lower() for entry in range(len(table)) for w in table.words(entry, which)}

    whole_word = re.compile(r"(?<=\s)[^\W\d_]+(?=\W)")  # the first and the last may be cut
    only_there = words(l) - words(0) - {word.lower() for word in whole_word.findall(text(data.tokens(data.pivot, "val")))}
    return lambda ids: any(word.lower() in only_there for word in whole_word.findall(text(ids)))


def mixed_script(model: GPT, data: Folder, config: Config) -> dict:
    """The share of sampled continuations of held-out English text with anything of a target language in it (the paper's Table 4)."""
    device, text = model.wte.weight.device, data.tokens(data.pivot, "val")
    length = min(config.sample_prompt, len(text))
    starts = np.linspace(0, len(text) - length, config.sample_count).astype(np.int64)
    prompts = torch.from_numpy(text[starts[:, None] + np.arange(length)].astype(np.int64)).to(device)
    generator = torch.Generator(device).manual_seed(config.seed)
    rows = [row for batch in tqdm(prompts.split(config.eval_batch_size), desc="sampling", disable=None)
            for row in sample(model, batch, config.sample_tokens, config.sample_temperature, generator).cpu().numpy()]
    result = {}
    for language in data.languages[1:]:
        mixed = sum(map(is_in(language, data), rows))
        result[language] = {"share": mixed / len(rows), "n": len(rows), "interval": wilson(mixed, len(rows))}
    return result


def continuations(config: Config) -> list[str]:
    """sample_count texts with which a finished run goes on from `prompt`; ids of En-Clone are shown as the words that they clone."""
    data, device = Folder(config.data_dir), open_device(config)
    model, _ = load_run(config, data, device)
    ids = np.concatenate([[data.end_of_text], encode(data.encoding, config.prompt)])
    generator = torch.Generator(device).manual_seed(config.seed)
    prompts = torch.from_numpy(np.tile(ids, (config.sample_count, 1))).to(device)
    text = decoder(data)
    return [text(row % data.V) for batch in prompts.split(config.eval_batch_size)
            for row in sample(model, batch, config.sample_tokens, config.sample_temperature, generator).cpu().numpy()]


# ---------------------------------------------------------------------------------------------------------------------
# One run


def load_run(config: Config, data: Folder, device: torch.device | str = "cpu") -> tuple[GPT, dict]:
    """The model of this config's finished run, and its checkpoint. Raises UserError when the run is not what the config says."""
    model, state = load_trained(config.run_dir, data, device)
    check_matches(state, os.path.join(config.run_dir, "checkpoint.pt"), config, data, FIXED)
    return model, state


def evaluate(config: Config) -> dict:
    """Measure a finished run and write eval.json into its folder."""
    data = Folder(config.data_dir)
    model, state = load_run(config, data, open_device(config))
    result = {
        "method": config.method, "seed": config.seed,
        "tokens": state["tokens"], "config": config.plain(),
        "lm": {language: language_model(model, data, language, config) for language in data.languages},
        "text": {language: other_text(model, data, language, config) for language in data.languages} if config.eval_text else {},
        "clka": clka(model, data, facts_of(data.settings), config),
        "similarity": similarity(model, data, config),
        "mixed": mixed_script(model, data, config) if not config.only and config.mix.get(data.pivot, 0) > 0 else {},  # of those that write English
        "date": datetime.date.today().isoformat(),
    }
    write_json(os.path.join(config.run_dir, "eval.json"), result)
    return result


def evaluate_transfer(config: Config) -> dict:
    """Fine-tune a finished run on natural language inference, test it in every language, and write xnli.json into its folder."""
    data = Folder(config.data_dir)
    hardware = start(config)
    model, _ = load_run(config, data, hardware.device)
    result = transfer(model, data, config, hardware) | {"config": config.plain(), "date": datetime.date.today().isoformat()}
    write_json(os.path.join(config.run_dir, "xnli.json"), result)
    return result


def dynamics(config: Config) -> list[dict]:
    """
    Measure a finished run at each of its snapshots, those of its stage 1 first, and write dynamics.jsonl into its folder:
    similarity (the paper's Fig. 5), and CLKA by frequency on the facts of the period that ended last (Fig. 4).
    """
    data, device = Folder(config.data_dir), open_device(config)
    load_run(config, data)  # or raises
    path = os.path.join(config.run_dir, "dynamics.jsonl")
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        records = read(path, dynamics_table)
        if records and all(r.get("eval_words") == config.eval_words for r in records):
            print(f"{path} is up to date")
            return records
    folders = [config.run_dir] if config.init_from != "align" else [config.stage1_dir, config.run_dir]
    snapshots = [(folder, os.path.relpath(file, folder)) for folder in folders for file in sorted(glob.glob(os.path.join(folder, "snapshots", "*.pt")))]
    if not snapshots:
        raise UserError(f"{config.run_dir} has no snapshots; delete its folder and train it with --snapshot_interval=250 or so")
    periods = data.settings.fact_periods
    records = []
    for folder, snapshot in tqdm(snapshots, desc="snapshots", disable=None):
        model, state = load_trained(folder, data, device, snapshot)
        ended = (state["step"] - config.stage1_steps) * periods // (config.max_steps - config.stage1_steps)
        facts = [fact for fact in facts_of(data.settings) if fact.period == ended - 1]
        frequencies = sorted({fact.frequency for fact in facts})
        records.append({
            "method": config.method, "seed": config.seed, "step": state["step"], "tokens": state["tokens"], "eval_words": config.eval_words,
            "similarity": similarity(model, data, config),
            "period": ended, "clka": {n: clka(model, data, [fact for fact in facts if fact.frequency == n], config) for n in frequencies}})
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def transfer_lines(result: dict) -> str:
    """What evaluate_transfer has measured, a line for each language."""
    plain = result["config"]
    return "\n".join(f"{plain['method']} seed {plain['seed']}: NLI {language} {100 * statistics.mean(numbers['accuracies']):.1f}% of {numbers['n']} pairs"
                     for language, numbers in result["languages"].items())


def told(config: Config, name: str, knobs: tuple[str, ...], make: Callable[[Config], dict], tell: Callable[[dict], str]) -> str:
    """
    tell(result) of what an earlier evaluation left at `name` in the run's folder, if it is newer than the run and was made with the same
    values of `knobs`, or else of make(config). Raises UserError when that file is not what eval.py writes.
    """
    path = os.path.join(config.run_dir, name)
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        (result,), plain = read(path, lambda values: tell(values[0]) + values[0]["config"]["method"]), config.plain()
        known = Config().plain() | result["config"]  # a knob that is newer than the file had its default then
        if all(known[knob] == plain[knob] for knob in knobs):
            print(f"{path} is up to date")
            return tell(result)
    return tell(make(config))


def main(arguments: list[str]) -> None:
    verb = arguments[0] if arguments[:1] in (["report"], ["xnli"], ["dynamics"], ["sample"]) else None
    if verb == "report":
        return report(arguments[1:])
    config = configs.load(arguments[1:] if verb else arguments, __doc__)
    if verb == "sample":
        for text in continuations(config):
            print(f"{config.prompt}|{text}\n")
    elif verb == "xnli":
        knobs = (*FIXED, *(k for k in configs.FIELDS if k.startswith("nli_")))
        print(told(config, "xnli.json", knobs, evaluate_transfer, transfer_lines))
    elif verb == "dynamics":
        for record in dynamics(config):
            shares = [f"{pair} {n}x {100 * numbers['accuracy']:.0f}%" for n, pairs in record["clka"].items() for pair, numbers in pairs.items()]
            print(f"step {record['step']}, period {record['period']}: {', '.join(shares) or 'no facts yet'}")
    else:
        knobs = (*FIXED, *(k for k in configs.FIELDS if k.startswith(("eval_", "sample_")) and k != "eval_batch_size"))
        print(told(config, "eval.json", knobs, evaluate, lambda result: report_tables([result])))


if __name__ == "__main__":
    errors.run(main)
