"""
What a trained model can do: the three metrics of the paper (section 4.2), and how similar aligned words are.

    language_model  LM: perplexity of held-out text
    clka            CLKA: facts stated in one language, asked in another
    xnli            ZS-CLT, zero-shot transfer: fine-tuned on inference (NLI) in English, tested in every language

    python eval.py config/demo.py config/method/prealign.py           # -> out/demo/prealign/seed1/eval.json
    python eval.py xnli CONFIG ...                                    # -> xnli.json beside it
    python eval.py sample CONFIG ... --prompt="The" --sample_count=3  # how the model goes on
"""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from corpus.folder import Folder, text_language
from corpus.languages import code_of
from corpus.tokenizer import encode, token_byte_lengths
from model import ANY_SHAPE, GPT, linear_cross_entropy
from prealign import draw_keys, padded, word_representations
from report.results import TOKEN_KINDS, has_read
from report.tables import report_tables
from runtime.checkpoint import FIXED, check_matches, load_trained
from runtime.config import Config, load
from runtime.errors import UserError, run_main
from runtime.files import is_newer, read_json, write_json
from runtime.hardware import Hardware, open_device, start
from tasks import nli
from tasks.analysis import (continuations, layers_of, mixed_script, parallel_passages, precision_at_1, running_text,
                            text_tokens, token_kinds)
from tasks.facts import Fact, make_facts, statement_rows
from train import learning_rate


def by_length(rows: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
    """The indices of rows in batches, the shortest rows first, so that little of a batch is padding."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    return np.split(order, range(batch_size, len(rows), batch_size))


def pad(rows: Sequence[np.ndarray], filler: int = 0) -> torch.Tensor:
    """Rows of token ids as one tensor (R, T) int64, filled up to the longest."""
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=filler)


# ---- LM: perplexity -------------------------------------------------------------------------------------------------
def windows(tokens: np.ndarray, block_size: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets (B, block_size) that predict every token of a text but the first exactly once, in order."""
    # Windows start half a block apart, so that each token (but in the first window) has half a block of context.
    stride = max(1, block_size // 2)
    starts = np.arange(0, max(1, len(tokens) - 1 - (block_size - stride)), stride)
    for first in np.split(starts[:, None], range(batch_size, len(starts), batch_size)):
        at = first + np.arange(block_size + 1)  # (B, block_size + 1)
        rows = torch.from_numpy(tokens[np.minimum(at, len(tokens) - 1)].astype(np.int64))
        # -1 marks what the window before has predicted, and what is behind the end of the text.
        done = (first > 0) & (np.arange(block_size) < block_size - stride)
        yield rows[:, :-1], rows[:, 1:].masked_fill(torch.from_numpy(done | (at[:, 1:] >= len(tokens))), -1)


@torch.no_grad()
def perplexity(model: GPT, folder: Folder, language: str, tokens: np.ndarray, config: Config,
               kinds: np.ndarray | None = None) -> dict:
    """Perplexity per token and bits per byte of tokens (n,); by kind too where `kinds` (n,) are given."""
    device, weight = model.wte.weight.device, model.lm_head.weight
    # Beside the softmax over all ids, that over one language's, as if it were known in which language the text goes on:
    # for every language with the same text, as in a context of English the next word of English and of En-Clone.
    text = text_language(language, folder.pivot)
    same_text = [each for each in folder.languages if text_language(each, folder.pivot) == text]
    weights = {"": weight} | {each: weight[torch.from_numpy(folder.ids_of(each)).to(device)] for each in same_text}
    losses: dict[str, list[torch.Tensor]] = {each: [] for each in weights}
    batches = list(windows(tokens, config.block_size, config.eval_batch_size))
    for inputs, targets in tqdm(batches, desc=f"lm {language}", disable=None):
        real = targets >= 0
        hidden, target = model(inputs.to(device))[real][None], targets[real][None].to(device)  # (1, m, C), (1, m)
        for each, its_weight in weights.items():
            # Rows of a language's own weights are numbered as the vocabulary is.
            its_target = target % folder.V if each else target
            losses[each].append(linear_cross_entropy(hidden, its_weight, its_target)[1][0].cpu())
    # In the order of the text, as windows has it. A byte is the same for every vocabulary, a token is not.
    nats, *own_nats = (torch.cat(part).double().numpy() for part in losses.values())  # each (n - 1,)
    n_bytes = int(token_byte_lengths(folder.encoding)[tokens[1:].astype(np.int64) % folder.V].sum())
    predicting = {each: math.exp(x.mean()) for each, x in zip(same_text, own_nats)}
    result = {"ppl": math.exp(nats.mean()), "bpb": nats.sum() / math.log(2) / n_bytes,
              "tokens": len(nats), "predicting": predicting}
    if kinds is not None:
        of_kind = {name: nats[kinds[1:] == kind] for kind, name in enumerate(TOKEN_KINDS)}
        result["kinds"] = {k: {"ppl": math.exp(x.mean()), "tokens": len(x)} for k, x in of_kind.items() if len(x)}
    return result


def language_model(model: GPT, folder: Folder, language: str, config: Config) -> dict:
    """`perplexity` of the first eval_tokens held-out tokens (all if 0); for the pivot and En-Clone also by kind."""
    # Kinds of token come from the alignment ids, which the pivot's text has, and which fit its clone.
    tokens = folder.tokens(language, "val")
    tokens = tokens[:config.eval_tokens or len(tokens)]
    kinds = token_kinds(folder)[:len(tokens)] if language in (folder.pivot, "clone") else None
    return perplexity(model, folder, language, tokens, config, kinds)


# ---- CLKA: cross-lingual knowledge application ----------------------------------------------------------------------
@torch.no_grad()
def clka_in(model: GPT, folder: Folder, facts: list[Fact], parts: tuple[str, str, str], config: Config) -> dict:
    """The share of facts whose true statement is more likely, as a whole, than the three with another object."""
    # Subject, sentence and object are in the languages `parts`: where they differ, it tells which of them is not known.
    # The paper leaves open how distractors are drawn: here in fours with the same four choices, so that a model that
    # ignores the subject is right in one of four. It leaves open whether facts are codeswitched: here they are not,
    # unless codeswitch_facts says so.
    rows = [row for fact in facts for row in statement_rows(folder, fact, parts)]
    if (longest := max(map(len, rows)) - 1) > config.block_size:
        raise UserError(f"CLKA: expected statements of at most block_size={config.block_size} tokens, found one of "
                        f"{longest}; a larger vocab_size makes it shorter")
    scores = torch.empty(len(rows))
    for batch in tqdm(by_length(rows, config.eval_batch_size), desc=f"clka {', '.join(parts)}", disable=None):
        ids = pad([rows[i] for i in batch], -1).to(model.wte.weight.device)  # (B, T)
        hidden = model(ids[:, :-1].clamp(min=0))
        scores[batch] = -linear_cross_entropy(hidden, model.lm_head.weight, ids[:, 1:])[1].sum(1).cpu()
    # The true one of a fact's four comes first. A tie counts as wrong.
    right = int((scores.view(-1, 4)[:, :1] > scores.view(-1, 4)[:, 1:]).all(1).sum())
    return {"accuracy": right / len(facts), "n": len(facts)}


def clka(model: GPT, folder: Folder, facts: list[Fact], config: Config) -> dict[str, dict]:
    """`clka_in` for every language in which facts are stated and every one that has templates, by "STATED->ASKED"."""
    # Facts that are asked in the language that stated them show whether they were learned at all.
    result = {}
    for stated, asked in itertools.product(folder.languages, repeat=2):
        text = text_language(asked, folder.pivot)
        some = [fact for fact in facts if fact.language == stated and code_of(text) in fact.relation]
        if some:
            result[f"{stated}->{asked}"] = clka_in(model, folder, some, (asked,) * 3, config)
    return result


def clka_parts(model: GPT, folder: Folder, facts: list[Fact], whole: dict[str, dict], config: Config) -> dict:
    """For En-Clone, `clka_in` of facts stated in the pivot by "SUBJECT,SENTENCE,OBJECT", the languages of the parts."""
    # In other targets only the sentence is another: names have ids of their own in En-Clone alone.
    stated = [fact for fact in facts if fact.language == folder.pivot]
    if not stated or "clone" not in folder.languages:
        return {}
    # Statements in one language are among the results `whole` of `clka`.
    return {"clone": {",".join(parts): whole[f"{folder.pivot}->{parts[0]}"] if len(set(parts)) == 1
                      else clka_in(model, folder, stated, parts, config)
                      for parts in itertools.product((folder.pivot, "clone"), repeat=3)}}


# ---- ZS-CLT: zero-shot cross-lingual transfer, of inference ---------------------------------------------------------
class Classifier(nn.Module):
    """The GPT with a linear layer on the final hidden state of the last token, which has seen the whole pair."""

    def __init__(self, model: GPT, labels: int):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.wte.embedding_dim, labels)
        # All labels are equally likely at first.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """Rows of token ids, B of them: logits (B, labels)."""
        # Attention is causal, so the padding behind a row does not reach its tokens.
        hidden = self.model(pad(rows).to(self.head.weight.device))  # (B, T, C)
        return self.head(hidden[range(len(rows)), [len(row) - 1 for row in rows]])


def encode_pairs(pairs: list[nli.Pair], folder: Folder, language: str, block_size: int) -> tuple[list, np.ndarray]:
    """Token ids of premise and hypothesis in one row for each pair, of a long one the end; and the labels (n,)."""
    eot, rows = [folder.end_of_text], []
    for pair in pairs:
        premise, hypothesis = encode(folder.encoding, pair.premise), encode(folder.encoding, pair.hypothesis)
        # End-of-text before, between and behind: the last one is what the classifier reads.
        row = np.concatenate([eot, premise, eot, hypothesis, eot])[-block_size:]
        rows.append(folder.to_language(row, language))
    return rows, np.array([pair.label for pair in pairs])


@torch.no_grad()
def accuracy(classifier: Classifier, rows: list[np.ndarray], labels: np.ndarray, batch_size: int) -> float:
    """The share of rows whose label is predicted, in float32."""
    right = [classifier([rows[i] for i in batch]).argmax(1).cpu().numpy() == labels[batch]
             for batch in by_length(rows, batch_size)]
    return float(np.concatenate(right).mean())


def fine_tune(model: GPT, train: tuple[list, np.ndarray], dev: tuple[list, np.ndarray], classes: int, config: Config,
              hardware: Hardware, seed: int) -> tuple[Classifier, float]:
    """A classifier fine-tuned on rows and labels, as after the epoch that did best on dev, and its accuracy there."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    rows, labels = train[0], torch.from_numpy(train[1]).to(hardware.device)
    classifier = Classifier(copy.deepcopy(model), classes).to(hardware.device)
    groups = [*classifier.model.parameter_groups(config.weight_decay),
              {"params": classifier.head.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, config.nli_learning_rate, betas=(config.beta1, config.beta2), fused=True)
    # Float16 would need its gradients scaled; so short a training can do without it.
    autocast = torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.dtype == torch.bfloat16)
    per_epoch = math.ceil(len(rows) / config.nli_batch_size)
    # Every epoch in an order of its own.
    batches = [batch for _ in range(config.nli_epochs)
               for batch in np.array_split(rng.permutation(len(rows)), per_epoch)]
    # One schedule for every method, also for post-alignment, whose training has two.
    schedule = replace(config, learning_rate=config.nli_learning_rate, max_steps=len(batches), align_when="none")
    best, best_weights = -1.0, {}
    for step, batch in enumerate(tqdm(batches, desc=f"fine-tuning, seed {seed}", disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        # Pairs come in many lengths; see ANY_SHAPE in model.py.
        with autocast, sdpa_kernel(ANY_SHAPE):
            logits = classifier.train()([rows[i] for i in batch])
        F.cross_entropy(logits.float(), labels[batch]).backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), config.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % per_epoch == 0:
            # Later epochs may learn the pairs by heart: what counts is how it does on others.
            score = accuracy(classifier.eval(), *dev, config.eval_batch_size)
            if score > best:
                best, best_weights = score, copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(best_weights)
    return classifier, best


def xnli(config: Config, folder: Folder) -> dict[str, Any]:
    """Accuracies, per language, of nli_seeds fine-tunings of a finished run on pairs in the pivot."""
    hardware = start(config)
    model, _ = load_run(config, folder, hardware.device)
    labels, train, dev, tests = nli.load(config, folder.languages)
    train_rows, dev_rows = (encode_pairs(pairs, folder, folder.pivot, config.block_size) for pairs in (train, dev))
    test_rows = {l: encode_pairs(pairs, folder, l, config.block_size) for l, pairs in tests.items()}
    result: dict[str, Any] = {
        "train": config.nli_train, "test": config.nli_test, "pairs": len(train), "labels": list(labels), "dev": [],
        "languages": {l: {"accuracies": [], "n": len(pairs)} for l, pairs in tests.items()}}
    # Only the pivot's pairs are trained on: zero-shot transfer is what the other languages get right.
    for seed in range(1, config.nli_seeds + 1):
        classifier, score = fine_tune(model, train_rows, dev_rows, len(labels), config, hardware, seed)
        result["dev"].append(score)
        for l, rows in test_rows.items():
            result["languages"][l]["accuracies"].append(accuracy(classifier, *rows, config.eval_batch_size))
    return result


# ---- Similarity of aligned words ------------------------------------------------------------------------------------
@torch.no_grad()
def word_vectors(model: GPT, folder: Folder, config: Config, language: int) -> torch.Tensor:
    """Representations (L + 2, 2, n, C) of n <= eval_words entries: the pivot's word and its first translation."""
    table, columns = folder.table, np.array([[0], [language]])
    L = len(table.languages)
    # By frequency as in stage 1, but the same for every run.
    drawn = np.argsort(draw_keys(table, replace(config, seed=0), step=2**62))
    entries = drawn[(np.diff(table.groups)[drawn * L + columns] > 0).all(0)][:config.eval_words]
    words = table.groups[entries * L + columns]  # (2, n)
    if not words.size:
        return torch.empty(config.n_layer + 2, len(words), 0, config.n_embd)
    ids, length = padded(table, words.ravel())
    return word_representations(model, torch.from_numpy(ids), torch.from_numpy(length)).unflatten(1, words.shape)


@torch.no_grad()
def similarity(model: GPT, folder: Folder, config: Config) -> list[dict]:
    """Mean cosine between a pivot word and its first translation, per target and layer."""
    rows = []
    for l, language in enumerate(folder.table.languages[1:], 1):
        pivot, target = word_vectors(model, folder, config, l).unbind(1)  # each (L + 2, n, C)
        if not pivot.shape[1]:
            continue
        # `words`: encoded alone, as stage 1 sees them.
        words = F.cosine_similarity(pivot, target, dim=-1).mean(1).tolist()
        # `text`: position by position, where the target is a clone of the pivot's text.
        text = running_text(model, folder, language, config) if language == "clone" else [None] * len(words)
        rows += [{"language": language, "layer": name, "words": w, "text": t}
                 for name, w, t in zip(layers_of(config), words, text)]
    return rows


@torch.no_grad()
def retrieval(model: GPT, folder: Folder, config: Config) -> list[dict]:
    """How many words and passages have their own translation as the nearest one, per target, kind and layer."""
    rows = []
    for l, language in enumerate(folder.table.languages[1:], 1):
        found = {"words": [*word_vectors(model, folder, config, l).unbind(1)]}
        for kind, sides in parallel_passages(folder, language, config).items():
            # Each is encoded alone and averaged over its tokens, as a word is.
            found[kind] = [word_representations(model, pad(side), torch.tensor([len(ids) for ids in side]))
                           for side in sides]
        rows += [{"language": language, "kind": kind, "layer": name, "share": share, "n": pivot.shape[1]}
                 for kind, (pivot, target) in found.items() if pivot.shape[1]
                 for name, share in zip(layers_of(config), precision_at_1(pivot, target))]
    return rows


# ---- A run ----------------------------------------------------------------------------------------------------------
def load_run(config: Config, folder: Folder, device: torch.device | str = "cpu") -> tuple[GPT, dict]:
    """The model of this config's finished run, and its checkpoint. Raises UserError when they do not match."""
    model, state = load_trained(config.run_dir, folder, device)
    check_matches(state, os.path.join(config.run_dir, "checkpoint.pt"), config, folder, FIXED)
    return model, state


def measure(config: Config, folder: Folder) -> dict:
    """All that eval.json says of a finished run, measured in float32."""
    model, state = load_run(config, folder, open_device(config))
    facts, texts = make_facts(folder.settings), folder.languages if config.eval_text else ()
    whole = clka(model, folder, facts, config)
    # Mixed script needs continuations of the pivot's text, and so a run that has read some.
    return {"method": config.method, "seed": config.seed, "tokens": state["tokens"],
            "lm": {l: language_model(model, folder, l, config) for l in folder.languages},
            "text": {l: perplexity(model, folder, l, text_tokens(folder, l, config), config) for l in texts},
            "clka": whole, "clka_parts": clka_parts(model, folder, facts, whole, config),
            "similarity": similarity(model, folder, config), "retrieval": retrieval(model, folder, config),
            "mixed": mixed_script(model, folder, config) if has_read({"config": config.plain()}, folder.pivot) else {}}


def evaluate(config: Config, name: str = "eval.json", knobs: tuple[str, ...] = ("eval_", "sample_"),
             measured: Callable[[Config, Folder], dict] = measure) -> dict:
    """The result `name` in the run's folder: as it is if newer than the run, of its data and these knobs."""
    path, folder = os.path.join(config.run_dir, name), Folder(config.data_dir)
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        result = read_json(path, "delete it and run the same command again")
        # A knob that is newer than the file had its default then.
        then, now = Config().plain() | result["config"], config.plain()
        # Beside the knobs that make the run, these begin with `knobs`. Two that do change no result.
        others = ("eval_batch_size", "eval_interval")
        matter = [knob for knob in now if knob in FIXED or knob.startswith(knobs) and knob not in others]
        if result.get("data") == folder.fingerprint and all(then[knob] == now[knob] for knob in matter):
            print(f"{path} is up to date; delete it to measure again")
            return result
    result = measured(config, folder) | {"config": config.plain(), "data": folder.fingerprint}
    write_json(path, result)
    return result


def main(arguments: list[str]) -> None:
    verb = arguments[0] if arguments and arguments[0] in ("xnli", "sample") else ""
    config = load(arguments[1:] if verb else arguments, __doc__)
    if verb == "sample":
        folder = Folder(config.data_dir)
        model, _ = load_run(config, folder, open_device(config))
        for text in continuations(model, folder, config):
            print(f"{config.prompt}|{text}\n")
    elif verb == "xnli":
        for language, numbers in evaluate(config, "xnli.json", ("nli_",), xnli)["languages"].items():
            percent = 100 * np.mean(numbers["accuracies"])
            print(f"{config.method} seed {config.seed}: NLI {language} {percent:.1f}% of {numbers['n']} pairs")
    else:
        print(report_tables([evaluate(config)]))


if __name__ == "__main__":
    run_main(main)
