"""Every number of the evaluation against the same number computed word by word, and the report against the runs it reports."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import eval as evaluation
import prealign
import train as training
from runtime.checkpoint import load_trained, make_golden, make_model
from runtime.config import Config
from runtime.errors import UserError
from conftest import overrides
from data import prepare
from corpus.folder import Folder
from eval import dynamics, evaluate, language_model, mixed_script, other_text, sample, similarity, token_kinds, token_log_likelihoods, wilson, windows
from tasks.facts import Fact, make_facts, statement, facts_of
from model import GPT
from corpus.table import make_table
from corpus.tokenizer import encode


@pytest.fixture(scope="module")
def data(tiny) -> Folder:
    return Folder(tiny.data_dir)


def untrained(config: Config, data: Folder, seed: int = 0) -> GPT:
    """A model with opinions, though nothing has taught it any."""
    torch.manual_seed(seed)
    return make_model(replace(config, init_std=0.3, embedding_init_std=0.5), data.vocab_size).eval()


@torch.no_grad()
def log_p(model: GPT, context: list[int], vocabulary: slice = slice(None)) -> torch.Tensor:
    """log p of every token of the vocabulary after a context."""
    logits = model.lm_head.weight @ model(torch.tensor([context]))[0, -1]
    return torch.log_softmax(logits[vocabulary], dim=0)


# ---- log-likelihoods ----

@torch.no_grad()
@pytest.mark.parametrize("vocabulary", [None, (0, 400), (400, 800)])
def test_log_likelihoods_are_log_softmax_of_the_full_logits(tiny, data, vocabulary):
    model = untrained(tiny, data)
    first, end = vocabulary or (0, 800)
    inputs, targets = torch.randint(800, (3, 20)), torch.randint(first, end, (3, 20))
    targets[:, ::4] = -1
    got = token_log_likelihoods(model, model(inputs), targets, vocabulary)
    logits = (model(inputs) @ model.lm_head.weight.T)[:, :, first:end]
    for b in range(3):
        for t in range(20):
            expected = torch.log_softmax(logits[b, t], dim=0)[targets[b, t] - first] if targets[b, t] >= 0 else torch.tensor(0.0)
            torch.testing.assert_close(got[b, t], expected)


# ---- perplexity ----

@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("length", [2, 3, 4, 7, 8, 9, 10, 16, 17, 18, 25, 60])
def test_every_token_but_the_first_is_predicted_once_from_what_stands_before_it(block_size, length):
    predicted = []
    for inputs, targets in windows(np.arange(length), block_size, batch_size=3):
        assert inputs.shape == targets.shape and inputs.shape[1] == block_size and len(inputs) <= 3
        for context, target in zip(inputs, targets):
            for t in np.flatnonzero(target >= 0):
                p = int(target[t])  # tokens are their own positions
                assert context[:t + 1].tolist() == list(range(p - t - 1, p))
                assert t + 1 >= min(p, block_size / 2)
                predicted.append(p)
    assert sorted(predicted) == list(range(1, length))


def nats_of_every_token(model: GPT, tokens: list[int], block_size: int, vocabulary: slice) -> float:
    """One token at a time: from all before it in the first window, then in windows half a block apart."""
    nats = 0.0
    for p in range(1, len(tokens)):
        start = 0
        while p - start > block_size:
            start += block_size // 2
        nats -= log_p(model, tokens[start:p], vocabulary)[tokens[p] - (vocabulary.start or 0)].item()
    return nats


@pytest.mark.parametrize("language, number", [("en", 100), ("clone", 100), ("en", 12)])
def test_perplexity_and_bits_per_byte_token_by_token(tiny, data, language, number):
    config = replace(tiny, block_size=16, eval_tokens=number)
    model, offset = untrained(config, data), data.offsets[language]
    tokens = data.tokens(language, "val")[:number].tolist()
    got = language_model(model, data, language, config)
    nats = nats_of_every_token(model, tokens, 16, slice(None))
    own = nats_of_every_token(model, tokens, 16, slice(offset, offset + data.V))
    n_bytes = sum(len(data.encoding.decode_single_token_bytes(t - offset)) for t in tokens[1:] if t - offset != data.end_of_text)
    expected = {"ppl": math.exp(nats / (number - 1)), "bpb": nats / math.log(2) / n_bytes, "ppl_in_language": math.exp(own / (number - 1)),
                "tokens": number - 1}
    assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert got["ppl_in_language"] < got["ppl"]


def test_a_model_without_opinions_by_hand(tiny, data):
    model = untrained(tiny, data)
    torch.nn.init.zeros_(model.lm_head.weight)
    tokens = data.tokens("en", "val")
    got = language_model(model, data, "en", replace(tiny, eval_tokens=0))
    assert got["ppl"] == pytest.approx(800) and got["ppl_in_language"] == pytest.approx(400) and got["tokens"] == len(tokens) - 1
    documents = data.encoding.decode(tokens[1:].tolist()).replace("<|endoftext|>", "")
    assert got["bpb"] == pytest.approx((len(tokens) - 1) * math.log2(800) / len(documents.encode()))


def flat(result: dict) -> dict[str, float]:
    """The numbers of language_model, those of kinds of tokens too, by one name each."""
    kinds = {(kind, key): value for kind, numbers in result["kinds"].items() for key, value in numbers.items()}
    return {key: value for key, value in result.items() if key != "kinds"} | kinds


def test_perplexity_does_not_depend_on_the_batch_size(tiny, data):
    model = untrained(tiny, data)
    results = [language_model(model, data, "en", replace(tiny, eval_batch_size=n)) for n in (1, 3, 32)]
    for result in results[1:]:
        assert flat(result) == pytest.approx(flat(results[0]), rel=1e-5)


@pytest.fixture(scope="module")
def read_a_while(tiny, data, tmp_path_factory) -> GPT:
    """A model that has seen enough text to use what stands before a token."""
    config = replace(tiny, out_dir=str(tmp_path_factory.mktemp("while")), max_steps=200, learning_rate=3e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StopSignal", lambda: SimpleNamespace(asked=False))
        training.main(overrides(config))
    return load_trained(config.run_dir, data)[0]


@pytest.mark.parametrize("shift", [1, 5, 16, 21])
def test_perplexity_hardly_depends_on_how_documents_fall_on_blocks(data, read_a_while, tiny, monkeypatch, shift):
    """A text that begins some tokens later falls on other blocks; of tokens that both have, only the length of the context differs."""
    model, tokens = read_a_while, data.tokens("en", "val")
    monkeypatch.setattr(evaluation, "token_kinds", lambda _: np.zeros(len(tokens), dtype=np.int64))
    whole = language_model(model, data, "en", tiny)["ppl"]
    monkeypatch.setattr(data, "tokens", lambda *_: tokens[shift:])
    shifted = language_model(model, data, "en", tiny)
    assert shifted["tokens"] == len(tokens) - 1 - shift and shifted["ppl"] == pytest.approx(whole, rel=0.03)
    assert 1 < whole < 0.5 * data.V


def test_golden_model_reads_the_clone_as_well_as_english(tiny, data):
    model = untrained(tiny, data)
    make_golden(model, data)
    clone, english = (flat(language_model(model, data, language, tiny)) for language in ("clone", "en"))
    assert clone == pytest.approx(english, rel=1e-5)


# ---- CLKA ----

def rows_of_facts(data: Folder, facts: list[Fact], language: str) -> list[list[int]]:
    return [[t + data.offsets[language] for t in (data.end_of_text, *encode(data.encoding, statement(fact, "en")))] for fact in facts]


def is_known(model: GPT, data: Folder, fact: Fact, language: str) -> bool:
    """The true sentence is more likely than each other one, token by token from the end of the text before it."""
    likelihood = []
    for object_ in (fact.object, *fact.distractors):
        tokens = [int(t) + data.offsets[language] for t in (data.end_of_text, *encode(data.encoding, statement(fact, "en", object_)))]
        likelihood.append(sum(log_p(model, tokens[:i])[tokens[i]].item() for i in range(1, len(tokens))))
    return likelihood[0] > max(likelihood[1:])


def clka(model: GPT, data: Folder, facts: list[Fact], language: str, config: Config) -> dict:
    return evaluation.clka_in(model, data, facts, language, config)


@pytest.mark.parametrize("language", ["en", "clone"])
def test_statements_are_scored_as_whole_sentences(tiny, data, language):
    config, facts = replace(tiny, block_size=64), make_facts(24, (1,), 3)
    model = untrained(config, data)
    known = [is_known(model, data, fact, language) for fact in facts]
    assert [clka(model, data, [fact], language, config)["accuracy"] == 1 for fact in facts] == known
    assert 0 < sum(known) < 24
    for batch_size in (1, 5, 200):  # sentences of other lengths beside them, and padding, change nothing
        got = clka(model, data, facts, language, replace(config, eval_batch_size=batch_size))
        assert got == {"accuracy": sum(known) / 24, "n": 24, "chance": 0.25, "interval": wilson(sum(known), 24)}


@pytest.mark.parametrize("language", ["en", "clone"])
def test_an_untrained_model_is_near_chance(tiny, data, language):
    config = replace(tiny, block_size=64)
    got = clka(untrained(config, data), data, make_facts(320, (1,), 0), language, config)
    assert got["n"] == 320 and got["interval"][0] < 0.25 < got["interval"][1]


@pytest.mark.parametrize("language, other", [("en", "clone"), ("clone", "en")])
def test_a_model_that_has_learned_the_facts_knows_them_in_the_language_it_learned_them_in(tiny, data, language, other):
    model = untrained(tiny, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = rows_of_facts(data, facts_of(data.settings), language)
    ids = torch.tensor([row + [-1] * (max(map(len, rows)) - len(row)) for row in rows])
    for _ in range(150):
        optimizer.zero_grad()
        model(ids[:, :-1].clamp(min=0), ids[:, 1:])[0].backward()
        optimizer.step()
    assert len(facts_of(data.settings)) == 8
    assert clka(model, data, facts_of(data.settings), language, tiny)["accuracy"] == 1
    assert clka(model, data, facts_of(data.settings), other, tiny)["accuracy"] < 1


def test_a_tie_is_wrong(tiny, data):
    fact = replace(facts_of(data.settings)[0], distractors=(facts_of(data.settings)[0].object,) * 3)
    assert clka(untrained(tiny, data), data, [fact], "en", tiny)["accuracy"] == 0


def test_a_statement_longer_than_the_model_reads_is_an_error(tiny, data):
    config = replace(tiny, block_size=8)  # the object comes last: cut off, the four would be the same
    with pytest.raises(UserError, match="block_size"):
        clka(untrained(config, data), data, facts_of(data.settings), "en", config)


@pytest.mark.parametrize("correct, n, low, high", [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)])
def test_confidence_interval_by_hand(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_confidence_interval_stays_between_0_and_1():
    for n in range(1, 200):
        assert f"{wilson(0, n)[0]:.0f}" == "0" and wilson(n, n)[1] <= 1  # neither -0 nor 100.00000000000001%


# ---- similarity ----

@torch.no_grad()
def layers_in_a_loop(model: GPT, ids) -> torch.Tensor:
    """A word's vector in every layer, (L + 2, C)."""
    ids = torch.as_tensor(np.asarray(ids), dtype=torch.long)[None]
    return torch.stack([layer[0].mean(0) for layer in (*model.layers(ids), model.lm_head.weight[ids])])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("tie", [True, False])
def test_similarity_of_words_entry_by_entry(tiny, tie):
    table = make_table([  # pivot, German, Chinese; the second has no German, the third no Chinese
        [[np.array([1, 2])], [np.array([11])], [np.array([21]), np.array([22, 23, 24, 25])]],
        [[np.array([3])], [], [np.array([26])]],
        [[np.array([4, 5, 6])], [np.array([12, 13]), np.array([14]), np.array([15, 16])], []],
        [[np.array([7])], [np.array([17, 18])], [np.array([27])]],
    ], [40, 10, 20, 30], ("en", "de", "zh"))
    torch.manual_seed(0)
    model = make_model(replace(tiny, tie_embeddings=tie, init_std=0.3, embedding_init_std=0.5), 30)
    got = similarity(model, SimpleNamespace(table=table), replace(tiny, eval_words=50))
    assert [(row["language"], row["layer"]) for row in got] == [
        (language, layer) for language in ("de", "zh") for layer in ("word embedding", "block 1", "block 2", "output embedding")]
    for l in (1, 2):
        pairs = [(table.word(table.words(k, 0)[0]), table.word(table.words(k, l)[0])) for k in range(4) if len(table.words(k, l))]
        sides = [(layers_in_a_loop(model, a), layers_in_a_loop(model, b)) for a, b in pairs]
        for layer in range(4):
            row = got[4 * (l - 1) + layer]
            assert row["words"] == pytest.approx(np.mean([cosine(a[layer], b[layer]) for a, b in sides]), abs=1e-5)
            assert row["text"] is None
            others = [cosine(a[layer], b[layer]) for i, (a, _) in enumerate(sides) for j, (_, b) in enumerate(sides) if i != j]
            assert min(others) - 1e-5 <= row["random"] <= max(others) + 1e-5


def test_similarity_of_text_position_by_position(tiny, data):
    model, T = untrained(tiny, data), tiny.block_size
    tokens = data.tokens("en", "val").astype(np.int64)
    sums, positions = np.zeros(4), 0
    with torch.no_grad():
        for start in range(0, len(tokens) - T + 1, T):
            en = torch.from_numpy(tokens[start:start + T])[None]
            mine, clone = ([*model.layers(x), model(x)] for x in (en, en + data.V))
            sums += [sum(cosine(a[0, t], b[0, t]) for t in range(T)) for a, b in zip(mine, clone)]
            positions += T
    got = similarity(model, data, tiny)
    assert [row["text"] for row in got] == pytest.approx((sums / positions).tolist(), abs=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_golden_model_holds_words_and_their_clones_for_the_same(tiny, data, tie):
    config = replace(tiny, tie_embeddings=tie)
    model = untrained(config, data)
    assert all(abs(row["words"]) < 0.9 for row in similarity(model, data, config))
    make_golden(model, data)
    for row in similarity(model, data, config):
        assert row["words"] == pytest.approx(1, abs=1e-5) and row["text"] == pytest.approx(1, abs=1e-5)
        assert row["random"] < 0.95


def test_similarity_is_measured_on_as_many_words_as_asked_for(tiny, data, monkeypatch):
    asked = []

    def watched(model, ids, length):
        asked.append(len(ids))
        return prealign.word_representations(model, ids, length)

    monkeypatch.setattr(evaluation, "word_representations", watched)
    similarity(untrained(tiny, data), data, replace(tiny, eval_words=7))
    similarity(untrained(tiny, data), data, replace(tiny, eval_words=10**6))
    assert asked == [7, 7, len(data.table), len(data.table)]


# ---- a run ----

def test_evaluation_of_a_run(tiny, data, out_dir):
    config = replace(tiny, out_dir=str(out_dir), max_steps=12, method="joint", seed=2, eval_text=tiny.source)
    result = evaluate(config)
    assert result["text"] == {language: other_text(load_trained(config.run_dir, data)[0], data, language, config) for language in ("en", "clone")}
    config = replace(config, eval_text="")
    result = evaluate(config)
    assert json.loads((out_dir / "joint" / "seed2" / "eval.json").read_text()) == json.loads(json.dumps(result))
    assert (result["method"], result["seed"], result["tokens"]) == ("joint", 2, 12 * 8 * 32)
    model, _ = load_trained(config.run_dir, data)
    assert result["lm"] == {language: language_model(model, data, language, config) for language in ("en", "clone")}
    assert result["clka"] == {f"en->{language}": clka(model, data, facts_of(data.settings), language, config) for language in ("en", "clone")}
    assert result["similarity"] == similarity(model, data, config)


def test_perplexity_of_other_text_is_that_of_its_tokens(tiny, data, tmp_path):
    """Beside full logits; En-Clone's text is the pivot's."""
    (tmp_path / "text.txt").write_text("Lo ba der in.\n\nMer ta, ost.\n", encoding="utf-8")
    config, model, end = replace(tiny, eval_text=str(tmp_path / "text.txt"), eval_tokens=0), untrained(tiny, data), [data.end_of_text]
    tokens = torch.tensor([*end, *encode(data.encoding, "Lo ba der in."), *end, *encode(data.encoding, "Mer ta, ost."), *end])
    assert len(tokens) <= tiny.block_size + 1
    for language in ("en", "clone"):
        ids = tokens + data.offsets[language]
        with torch.no_grad():
            nats = F.cross_entropy(model(ids[None, :-1])[0] @ model.lm_head.weight.T, ids[1:], reduction="none")
        got = other_text(model, data, language, config)
        assert got["ppl"] == pytest.approx(nats.mean().exp().item(), rel=1e-5) and got["tokens"] == len(tokens) - 1 and "kinds" not in got
        assert got["bpb"] == pytest.approx(nats.sum().item() / math.log(2) / len("Lo ba der in.Mer ta, ost."), rel=1e-5)
        assert other_text(model, data, language, replace(config, eval_tokens=6))["tokens"] == 5


def test_continuations_of_a_prompt(tiny, out_dir, capsys):
    config = replace(tiny, out_dir=str(out_dir), max_steps=12, prompt="Lo ba", sample_count=3, sample_tokens=4)
    evaluation.main(["sample", *overrides(config)])
    printed = capsys.readouterr().out
    assert printed.count("Lo ba|") == 3 and [f"Lo ba|{text}" for text in evaluation.continuations(config)] == printed[:-2].split("\n\n")


def test_a_run_that_is_missing_or_unfinished_is_an_error(tiny, out_dir, tmp_path):
    config = replace(tiny, out_dir=str(out_dir), max_steps=12)
    with pytest.raises(UserError, match="there is no checkpoint .*never-run/seed1/checkpoint.pt"):
        evaluate(replace(config, method="never-run"))
    unfinished = replace(config, out_dir=str(tmp_path))
    os.makedirs(unfinished.run_dir)
    state = torch.load(Path(config.run_dir, "checkpoint.pt"))
    torch.save({**state, "step": 11}, Path(unfinished.run_dir, "checkpoint.pt"))
    with pytest.raises(UserError, match="the run stopped at step 11 of 12; run its command again"):
        evaluate(unfinished)
    assert not Path(unfinished.run_dir, "eval.json").exists()


@pytest.mark.parametrize("changes", [dict(n_layer=3), dict(block_size=64)])
def test_a_run_is_not_measured_as_if_it_were_another(tiny, out_dir, tmp_path, changes):
    shutil.copytree(out_dir / "joint", tmp_path / "joint")
    (knob,) = changes
    with pytest.raises(UserError, match=f"another {knob} "):
        evaluate(replace(tiny, out_dir=str(tmp_path), max_steps=12, **changes))


# ---- over training ----

def test_dynamics_measures_each_snapshot_and_the_facts_of_the_period_before_it(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), out_dir=str(tmp_path / "out"), fact_count=32, fact_frequencies=(1, 2),
                     fact_languages=("en", "clone"), fact_periods=2, max_steps=44, snapshot_interval=12)
    prepare(config)
    training.main(overrides(config))
    with pytest.raises(UserError, match="another seed|there is no checkpoint"):
        dynamics(replace(config, seed=2))
    records = dynamics(config)
    assert [(r["step"], r["period"]) for r in records] == [(12, 0), (24, 1), (36, 1)]  # periods end at steps 24 and 44
    assert json.loads(json.dumps(records)) == [json.loads(line) for line in Path(config.run_dir, "dynamics.jsonl").read_text().splitlines()]
    data = Folder(config.data_dir)
    assert records[0]["clka"] == {} and set(records[1]["clka"]) == {1, 2}
    model, _ = load_trained(config.run_dir, data, snapshot="snapshots/00000024.pt")
    for training_language in ("en", "clone"):
        for test in ("en", "clone"):
            facts = [f for f in facts_of(data.settings) if (f.period, f.language, f.frequency) == (0, training_language, 2)]
            assert len(facts) == 4 and records[1]["clka"][2][f"{training_language}->{test}"] == clka(model, data, facts, test, config)
    assert records[1]["similarity"] == similarity(model, data, config)
    assert dynamics(config) == json.loads(json.dumps(records))  # which are up to date,
    assert dynamics(replace(config, eval_words=10))[1]["similarity"] != records[1]["similarity"]  # and now are not
    with pytest.raises(UserError, match="has no snapshots"):
        dynamics(without_snapshots(config))


def without_snapshots(config: Config) -> Config:
    shutil.rmtree(Path(config.run_dir, "snapshots"))
    Path(config.run_dir, "dynamics.jsonl").unlink()
    return config


# ---- kinds of tokens ----

def test_kinds_of_tokens_are_those_of_the_table_and_of_their_text(tiny, data):
    align, text, kinds = data.align("val"), data.tokens("en", "val"), token_kinds(data)
    quarters = [math.ceil(q * len(data.table)) for q in (0.25, 0.5, 0.75, 1.0)]
    assert len(kinds) == len(text) and len(set(kinds)) == 6
    for kind, a, t in zip(kinds, align, text):
        surface = data.encoding.decode_single_token_bytes(int(t)) if t != data.end_of_text else b""
        word = any(chr(b).isalnum() or b > 127 for b in surface)
        assert kind == (next(i for i, end in enumerate(quarters) if abs(a) <= end) if a else 4 if word else 5)


def test_perplexity_by_kind_adds_up_to_the_whole(tiny, data):
    model = untrained(tiny, data)
    for language in ("en", "clone"):
        result = language_model(model, data, language, tiny)
        assert sum(k["tokens"] for k in result["kinds"].values()) == result["tokens"]
        nats = sum(k["tokens"] * math.log(k["ppl"]) for k in result["kinds"].values())
        assert math.exp(nats / result["tokens"]) == pytest.approx(result["ppl"])


def test_the_table_of_the_most_frequent_entries(data):
    top = data.table.top(0.25)
    assert len(top) == math.ceil(len(data.table) / 4) and (np.diff(top.frequency) <= 0).all()
    for k in range(len(top)):
        for l in (0, 1):
            assert [top.word(w).tolist() for w in top.words(k, l)] == [data.table.word(w).tolist() for w in data.table.words(k, l)]
    assert len(data.table.top(1.0)) == len(data.table)


# ---- mixed script ----

class Speaker(torch.nn.Module):
    """Whatever it reads, it says the next of its tokens."""

    def __init__(self, vocab_size: int, says: list[int]):
        super().__init__()
        self.wte = torch.nn.Embedding(vocab_size, vocab_size)
        self.lm_head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        torch.nn.init.eye_(self.lm_head.weight)
        self.says, self.block_size, self.said = says, 8, 0

    def forward(self, ids):
        hidden = torch.zeros(*ids.shape, self.wte.num_embeddings)
        hidden[:, -1, self.says[self.said % len(self.says)]] = 100.0
        self.said += 1
        return hidden


def test_samples_are_drawn_from_the_softmax_of_what_stands_before(tiny, data):
    model, prompt = untrained(tiny, data), torch.randint(400, (1, 5))
    p = (log_p(model, prompt[0].tolist()) / 0.7).softmax(0)
    drawn = sample(model, prompt.repeat(4000, 1), 1, 0.7, torch.Generator().manual_seed(0))[:, 0]
    shares = torch.bincount(drawn, minlength=800) / 4000
    assert ((shares - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()
    assert sample(Speaker(6, [3, 1, 4]), torch.zeros(2, 3, dtype=torch.int64), 5, 1.0, torch.Generator()).tolist() == [[3, 1, 4, 3, 1]] * 2


@pytest.mark.parametrize("says, share", [([5, 7, 9], 0.0), ([5, 7, 9, 405], 1.0)])
def test_a_continuation_is_mixed_when_any_token_is_of_the_target(tiny, data, says, share):
    config = replace(tiny, sample_count=10, sample_tokens=8)
    result = mixed_script(Speaker(data.vocab_size, says), data, config)
    assert result == {"clone": {"share": share, "n": 10, "interval": wilson(int(10 * share), 10)}}
