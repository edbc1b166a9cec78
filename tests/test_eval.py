"""Every number of the evaluation against the same number computed the slow way, token by token or word by word."""

import copy
import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as evaluation
import train as training
from conftest import overrides
from corpus.folder import Folder
from corpus.tokenizer import encode
from eval import (Classifier, accuracy, clka_in, encode_pairs, evaluate, fine_tune, language_model, perplexity,
                  retrieval, similarity, windows, word_vectors)
from model import GPT
from report.tables import report_tables
from runtime.checkpoint import load_trained, make_model
from runtime.config import Config
from runtime.errors import UserError
from runtime.hardware import start
from tasks.analysis import continuations, decoder, parallel_passages, precision_at_1, text_tokens
from tasks.facts import Fact, make_facts
from tasks.nli import Pair
from test_prealign import TABLE, slow_representation

PAIRS = [Pair("Lo ba der.", "Ba lo.", 0), Pair("In ta.", "Ta in ost, ken.", 1), Pair("So al u", "ba", 2),
         Pair("Ri ken so al.", "Lo", 0), Pair("Ost ost.", "Mer.", 1), Pair("u u u u u", "ken ken", 2)]
LANGUAGES = ("en", "clone")


@pytest.fixture(scope="module")
def data(tiny) -> Folder:
    return Folder(tiny.data_dir)


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory) -> Config:
    """A finished and evaluated run."""
    config = replace(tiny, out_dir=str(tmp_path_factory.mktemp("runs")), max_steps=12, seed=2)
    training.main(overrides(config))
    evaluation.main(overrides(config))
    return config


def untrained(config: Config, data: Folder, seed: int = 0) -> GPT:
    """A model with opinions, though nothing has taught it any."""
    torch.manual_seed(seed)
    return make_model(replace(config, init_std=0.3, embedding_init_std=0.5), data.vocab_size).eval()


def documents(folder: Folder, texts: list[str], language: str = "en") -> list[int]:
    """The tokens of texts with end-of-text before and between them, as they stand in a language."""
    ids = [i for text in texts for i in (folder.end_of_text, *encode(folder.encoding, text))]
    return folder.to_language(np.array(ids), language).tolist()


@torch.no_grad()
def log_p(model: GPT, context: list[int], only: np.ndarray | None = None) -> torch.Tensor:
    """log p of every token after a context; -inf for those that are not in `only`."""
    logits = model.lm_head.weight @ model(torch.tensor([context]))[0, -1]
    if only is not None:
        logits = logits.index_fill(0, torch.from_numpy(np.setdiff1d(np.arange(len(logits)), only)), -math.inf)
    return torch.log_softmax(logits, dim=0)


# ---- perplexity ----
@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("length", [2, 3, 4, 7, 8, 9, 10, 16, 17, 18, 25, 60])
def test_every_token_but_the_first_is_predicted_once_from_what_stands_before_it(block_size, length):
    predicted = []
    # The tokens are their own positions.
    for inputs, targets in windows(np.arange(length), block_size, batch_size=3):
        assert inputs.shape == targets.shape and inputs.shape[1] == block_size and len(inputs) <= 3
        for context, target in zip(inputs.tolist(), targets.tolist()):
            for t, p in enumerate(target):
                if p >= 0:
                    assert context[:t + 1] == list(range(p - t - 1, p))
                    assert t + 1 >= min(p, block_size / 2)
                    predicted.append(p)
    assert predicted == list(range(1, length))


def nats_of_every_token(model: GPT, tokens, predicted, block_size: int, only: np.ndarray | None = None) -> float:
    """One token at a time: from all before it in the first window, then in windows half a block apart."""
    nats = 0.0
    for p in range(1, len(tokens)):
        start = 0
        while p - start > block_size:
            start += block_size // 2
        nats -= log_p(model, tokens[start:p].tolist(), only)[predicted[p]].item()
    return nats


def test_a_vocabulary_may_fill_the_two_bytes_of_a_bin(tiny, data):
    """NumPy takes no uint16 modulo 65,536."""
    tokens = data.tokens("en", "val")[:20]
    full = SimpleNamespace(V=2**16, languages=("en",), pivot="en", encoding=data.encoding,
                           end_of_text=data.end_of_text, ids_of=lambda _: np.arange(2**16))
    assert tokens.dtype == np.uint16 and decoder(full)(tokens) == decoder(data)(tokens)
    assert perplexity(GPT(2**16, tiny.block_size, 1, 1, 8), full, "en", tokens, tiny)["tokens"] == 19


@pytest.mark.parametrize("language, number, batch_size", [("en", 100, 32), ("clone", 100, 2), ("en", 12, 1)])
def test_perplexity_and_bits_per_byte_token_by_token(tiny, data, language, number, batch_size):
    config = replace(tiny, block_size=16, eval_tokens=number, eval_batch_size=batch_size)
    model = untrained(config, data)
    tokens = data.tokens(language, "val")[:number].astype(np.int64)
    got = language_model(model, data, language, config)
    nats = nats_of_every_token(model, tokens, tokens, 16)
    # From the same context, the next word in either language among that language's alone.
    sides = {each: nats_of_every_token(model, tokens, data.tokens(each, "val"), 16, data.ids_of(each))
             for each in LANGUAGES}
    # En-Clone has as many bytes as the English text that it is a copy of.
    english = data.tokens("en", "val")[1:number].tolist()
    n_bytes = sum(len(data.encoding.decode_single_token_bytes(t)) for t in english if t != data.end_of_text)
    expected = {"ppl": math.exp(nats / (number - 1)), "bpb": nats / math.log(2) / n_bytes, "tokens": number - 1}
    assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert got["predicting"] == pytest.approx({e: math.exp(x / (number - 1)) for e, x in sides.items()}, rel=1e-4)
    # The kinds of token add up to the whole.
    assert sum(kind["tokens"] for kind in got["kinds"].values()) == number - 1
    assert sum(kind["tokens"] * math.log(kind["ppl"]) for kind in got["kinds"].values()) == pytest.approx(nats)


# ---- CLKA ----
def is_known(model: GPT, data: Folder, fact: Fact, parts: tuple[str, str, str]) -> bool:
    """The true sentence is more likely than each other one, token by token, each part in the ids of its language."""
    likelihood = []
    for object_ in (fact.object, *fact.distractors):
        tokens = [data.end_of_text]
        for piece in re.findall(r" ?\{\w+\}|[^{]*[^{ ]", fact.relation["en"]):
            language = parts[0 if "subject" in piece else 2 if "object" in piece else 1]
            ids = encode(data.encoding, piece.format(subject=fact.subject, object=object_))
            tokens += data.to_language(ids, language).tolist()
        likelihood.append(sum(log_p(model, tokens[:i])[tokens[i]].item() for i in range(1, len(tokens))))
    return likelihood[0] > max(likelihood[1:])


@pytest.mark.parametrize("parts", [("clone", "en", "en"), ("en", "clone", "en"), ("en", "en", "clone")])
def test_statements_are_scored_as_whole_sentences(tiny, data, parts):
    config, facts = replace(tiny, block_size=64), make_facts(Config(fact_count=24))
    model = untrained(config, data)
    known = [is_known(model, data, fact, parts) for fact in facts]
    assert [clka_in(model, data, [fact], parts, config)["accuracy"] == 1 for fact in facts] == known
    assert 0 < sum(known) < 24
    # Sentences of other lengths beside them, and padding, change nothing.
    for batch_size in (5, 200):
        got = clka_in(model, data, facts, parts, replace(config, eval_batch_size=batch_size))
        assert (got["accuracy"], got["n"]) == (sum(known) / 24, 24)


def test_a_tie_is_wrong_and_a_statement_longer_than_the_model_reads_an_error(tiny, data):
    model, fact = untrained(tiny, data), make_facts(data.settings)[0]
    three = ("en",) * 3
    assert clka_in(model, data, [replace(fact, distractors=(fact.object,) * 3)], three, tiny)["accuracy"] == 0
    with pytest.raises(UserError, match="block_size"):
        clka_in(model, data, [fact], three, replace(tiny, block_size=8))


# ---- similarity ----
def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("tie", [True, False])
def test_similarity_of_words_entry_by_entry(tiny, tie):
    torch.manual_seed(0)
    model = make_model(replace(tiny, tie_embeddings=tie, init_std=0.3, embedding_init_std=0.5), 30)
    few = word_vectors(model, SimpleNamespace(table=TABLE), replace(tiny, eval_words=2), 2)
    assert few.shape == (4, 2, 2, tiny.n_embd)
    got = similarity(model, SimpleNamespace(table=TABLE), replace(tiny, eval_words=50))
    layers = ("word embedding", "block 1", "block 2", "output embedding")
    assert [(row["language"], row["layer"]) for row in got] == [*itertools.product(("de", "zh"), layers)]
    for l in (1, 2):
        there = [k for k in range(4) if len(TABLE.words(k, l))]
        pairs = [[TABLE.word(TABLE.words(k, language)[0]) for language in (0, l)] for k in there]
        sides = [[slow_representation(model, word) for word in pair] for pair in pairs]
        for layer in range(4):
            row = got[4 * (l - 1) + layer]
            assert row["words"] == pytest.approx(np.mean([cosine(a[layer], b[layer]) for a, b in sides]), abs=1e-5)
            assert row["text"] is None


@torch.no_grad()
def test_similarity_of_text_position_by_position(tiny, data):
    model, T = untrained(tiny, data), tiny.block_size
    tokens = data.tokens("en", "val").astype(np.int64)
    cosines = []
    for first in range(0, len(tokens) - T + 1, T):
        rows = (data.to_language(tokens[first:first + T], language) for language in LANGUAGES)
        sides = [[*model.layers(x), model(x)] for x in (torch.from_numpy(row)[None] for row in rows)]
        cosines += [[cosine(a[0, t], b[0, t]) for a, b in zip(*sides)] for t in range(T)]
    got = similarity(model, data, tiny)
    assert [row["text"] for row in got] == pytest.approx(np.mean(cosines, 0).tolist(), abs=1e-5)


# ---- retrieval ----
def nearest_is_own(pivot: list[torch.Tensor], target: list[torch.Tensor]) -> float:
    """The share of vectors whose own translation is the nearest, means taken off, one by one."""
    a, b = ([vector - sum(side) / len(side) for vector in side] for side in (pivot, target))
    return np.mean([max(range(len(b)), key=lambda j: cosine(a[i], b[j])) == i for i in range(len(a))])


def test_retrieval_with_the_mean_of_each_language_taken_off_by_hand():
    # Off by a shift that cosine would stumble over; then two words trade places; then two share a translation.
    pivot = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [0, -1]]])
    shifted, traded = pivot + torch.tensor([50.0, 70]), pivot[:, [1, 0, 2, 3]]
    assert precision_at_1(torch.cat([pivot, pivot]), torch.cat([shifted, traded])) == [1.0, 0.5]
    same = torch.tensor([[[1.0, 0], [1, 0], [-1, 1], [-1, -1]]])
    assert precision_at_1(same + 0.1 * pivot, same) == [1.0]


@torch.no_grad()
def test_retrieval_of_words_and_passages_one_by_one(tiny, data, tmp_path):
    (tmp_path / "en.txt").write_text("Lo ba der in.\nMer ta, ost.\n\nBa lo so in der ost al.\n", "utf-8")
    config = replace(tiny, eval_words=12, eval_text=str(tmp_path / "{language}.txt"))
    model = untrained(config, data, seed=1)
    text = data.tokens("en", "val").astype(np.int64)
    passages = {"text": [text[i:i + 32] for i in range(0, min(500 * 32, len(text) - 31), 32)],
                "other text": [encode(data.encoding, t) for t in
                               ("Lo ba der in.", "Mer ta, ost.", "Ba lo so in der ost al.")]}
    got = retrieval(model, data, config)
    assert [row["kind"] for row in got] == ["words"] * 4 + ["text"] * 4 + ["other text"] * 4
    assert [row["n"] for row in got] == [12] * 4 + [len(passages["text"])] * 4 + [3] * 4
    for kind, rows in passages.items():
        sides = [[slow_representation(model, data.to_language(row, l)) for row in rows] for l in LANGUAGES]
        expected = [nearest_is_own(*([vectors[layer] for vectors in side] for side in sides)) for layer in range(4)]
        assert [row["share"] for row in got if row["kind"] == kind] == pytest.approx(expected)
    drawn = word_vectors(model, data, config, 1)
    assert [row["share"] for row in got[:4]] == pytest.approx([nearest_is_own(*map(list, layer)) for layer in drawn])
    # Texts of different length are no translations of each other: this one has one line, and the English one three.
    (tmp_path / "de.txt").write_text("Lo ba.", "utf-8")
    several = SimpleNamespace(pivot="en", encoding=data.encoding, to_language=lambda ids, _: ids)
    assert parallel_passages(several, "de", config) == {}


# ---- zero-shot transfer ----
def test_a_pair_is_two_documents_and_of_a_long_one_the_end(data):
    for language in LANGUAGES:
        expected = [*documents(data, ["Lo ba der.", "Ba lo."], language), *documents(data, [""], language)]
        (row,), labels = encode_pairs(PAIRS[:1], data, language, 32)
        assert row.tolist() == expected and labels.tolist() == [0]
        assert encode_pairs(PAIRS[:1], data, language, 4)[0][0].tolist() == expected[-4:]


def test_the_classifier_reads_the_last_token_whatever_shares_its_batch(tiny, data):
    classifier = Classifier(untrained(tiny, data), 3)
    torch.nn.init.normal_(classifier.head.weight)
    rows, labels = encode_pairs(PAIRS, data, "en", 32)
    alone = torch.stack([classifier.head(classifier.model(torch.from_numpy(row)[None])[0, -1]) for row in rows])
    torch.testing.assert_close(classifier(rows), alone, rtol=1e-4, atol=1e-5)
    share = (alone.argmax(1).numpy() == labels).mean()
    assert [accuracy(classifier, rows, labels, batch_size) for batch_size in (1, 2, 100)] == pytest.approx([share] * 3)


def test_fine_tuning_learns_and_leaves_the_model_as_it_was(tiny, data):
    config = replace(tiny, nli_epochs=40, nli_batch_size=3, nli_learning_rate=3e-3)
    model, rows = untrained(tiny, data), encode_pairs(PAIRS, data, "en", 32)
    before = copy.deepcopy(model.state_dict())
    classifier, dev = fine_tune(model, rows, rows, 3, config, start(config), seed=1)
    assert dev == 1.0 == accuracy(classifier, *rows, 2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_epoch_that_did_best_on_dev_is_kept_and_every_method_learns_the_same(tiny, data, monkeypatch):
    """Dev accuracies 1/3, 2/3, 0: the classifier is that of the second of three epochs."""
    rows, seen, scores = encode_pairs(PAIRS, data, "en", 32), [], itertools.cycle([1 / 3, 2 / 3, 0.0])

    def measured(classifier, *_):
        seen.append(copy.deepcopy(classifier.state_dict()))
        return next(scores)

    monkeypatch.setattr(evaluation, "accuracy", measured)
    # Post-alignment's schedule has two parts in training; in fine-tuning it has one, as every other.
    for align_when in ("none", "last"):
        config = replace(tiny, nli_epochs=3, nli_batch_size=4, align_when=align_when, stage1_steps=2)
        classifier, dev = fine_tune(untrained(tiny, data), rows, rows, 3, config, start(tiny), seed=1)
        assert dev == 2 / 3
        torch.testing.assert_close(classifier.state_dict(), seen[1], rtol=0, atol=0)
    assert len(seen) == 6


def test_xnli_of_a_run(evaluated, capsys):
    config = replace(evaluated, nli_builtin=20, nli_epochs=1, nli_seeds=2)
    for said in ("NLI clone", "is up to date"):
        evaluation.main(["xnli", *overrides(config)])
        assert said in capsys.readouterr().out
    result = json.loads(Path(config.run_dir, "xnli.json").read_text())
    assert (result["pairs"], len(result["dev"])) == (60, 2)
    for language in LANGUAGES:
        assert (result["languages"][language]["n"], len(result["languages"][language]["accuracies"])) == (6, 2)


# ---- a run ----
def test_evaluation_of_a_run(data, evaluated):
    config, result = evaluated, json.loads(Path(evaluated.run_dir, "eval.json").read_text())
    assert result["config"] == config.plain()
    assert (result["method"], result["seed"], result["tokens"]) == ("joint", 2, 12 * 8 * 32)
    model, _ = load_trained(config.run_dir, data)
    assert result["lm"] == {language: language_model(model, data, language, config) for language in LANGUAGES}
    facts = make_facts(data.settings)
    known = {parts: clka_in(model, data, facts, parts, config)["accuracy"]
             for parts in itertools.product(LANGUAGES, repeat=3)}
    assert {pair: numbers["accuracy"] for pair, numbers in result["clka"].items()} == {
        f"en->{language}": known[(language,) * 3] for language in LANGUAGES}
    assert {parts: numbers["accuracy"] for parts, numbers in result["clka_parts"]["clone"].items()} == {
        ",".join(parts): accuracy for parts, accuracy in known.items()}
    # The report finds all of it.
    titles = re.findall("^## (Perplexity by kind|Where|Cosine|Retrieval|Knowledge)", report_tables([result]), re.M)
    assert Counter(titles) == {"Perplexity by kind": 2, "Where": 2, "Cosine": 2, "Retrieval": 2, "Knowledge": 1}


def test_a_result_is_used_again_if_it_is_newer_than_its_run_and_of_the_same_knobs(evaluated, tmp_path):
    config = replace(evaluated, out_dir=str(tmp_path / "copy"))
    shutil.copytree(evaluated.out_dir, config.out_dir)
    made: list[int] = []

    def times_measured(**changes) -> int:
        evaluate(replace(config, **changes), "eval.json", ("eval_",), lambda *_: made.append(1) or {})
        return len(made)

    assert times_measured() == times_measured(nli_epochs=5, eval_batch_size=5, eval_interval=5) == 0
    assert times_measured(eval_words=5) == times_measured(eval_words=5) == 1
    os.utime(Path(config.run_dir, "eval.json"), (0, 0))
    assert times_measured(eval_words=5) == 2
    # What is measured is the run of the same config.
    with pytest.raises(UserError, match="another n_layer "):
        evaluate(replace(config, n_layer=64))


def test_other_text_is_read_until_there_is_enough(tiny, data, tmp_path):
    (tmp_path / "en.txt").write_text("Lo ba der in.\n\nMer ta, ost.\n", encoding="utf-8")
    config = replace(tiny, eval_text=str(tmp_path / "{language}.txt"), eval_tokens=0)
    for language in LANGUAGES:
        expected = documents(data, ["Lo ba der in.", "Mer ta, ost.", ""], language)
        assert text_tokens(data, language, config).tolist() == expected
        assert text_tokens(data, language, replace(config, eval_tokens=6)).tolist() == expected[:6]


def test_continuations_of_a_prompt(data, evaluated, capsys):
    config = replace(evaluated, prompt="Lo ba", sample_count=3, sample_tokens=4)
    evaluation.main(["sample", *overrides(config)])
    model, _ = load_trained(config.run_dir, data)
    texts = continuations(model, data, config)
    assert capsys.readouterr().out == "".join(f"Lo ba|{text}\n\n" for text in texts) and len(texts) == 3
    composed, decomposed = (continuations(model, data, replace(config, prompt=p)) for p in ("Ló", "Lo\u0301"))
    assert composed == decomposed != texts
