"""Every number of the evaluation against the same number computed the slow way, token by token or word by word."""

import itertools
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

import eval as evaluation
import train as training
from conftest import overrides
from corpus.folder import Folder
from corpus.table import make_table
from corpus.tokenizer import encode
from eval import Classifier, accuracy, encode_pairs, evaluate, fine_tune, language_model, similarity, windows
from model import GPT
from runtime.checkpoint import load_trained, make_golden, make_model
from runtime.config import Config
from runtime.errors import UserError
from runtime.hardware import start
from tasks.analysis import continuations, states, text_tokens
from tasks.facts import Fact, facts_of, make_facts, statement
from tasks.nli import LABELS, Pair
from train import learning_rate

PAIRS = [Pair("Lo ba der.", "Ba lo.", 0), Pair("In ta.", "Ta in ost, ken.", 1), Pair("So al u", "ba", 2),
         Pair("Ri ken so al.", "Lo", 0), Pair("Ost ost.", "Mer.", 1), Pair("u u u u u", "ken ken", 2)]


@pytest.fixture(scope="module")
def data(tiny) -> Folder:
    return Folder(tiny.data_dir)


def untrained(config: Config, data: Folder, seed: int = 0) -> GPT:
    """A model with opinions, though nothing has taught it any."""
    torch.manual_seed(seed)
    return make_model(replace(config, init_std=0.3, embedding_init_std=0.5), data.vocab_size).eval()


def in_language(folder: Folder, ids, language: str) -> list[int]:
    return [int(i) for i in folder.to_language(np.asarray(ids), language)]


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
    for inputs, targets in windows(np.arange(length), block_size, batch_size=3):
        assert inputs.shape == targets.shape and inputs.shape[1] == block_size and len(inputs) <= 3
        for context, target in zip(inputs.tolist(), targets.tolist()):
            for t, p in enumerate(target):  # tokens are their own positions
                if p >= 0:
                    assert context[:t + 1] == list(range(p - t - 1, p))
                    assert t + 1 >= min(p, block_size / 2)
                    predicted.append(p)
    assert predicted == list(range(1, length))


def nats_of_every_token(model: GPT, tokens: list[int], block_size: int, only: np.ndarray | None = None) -> float:
    """One token at a time: from all before it in the first window, then in windows half a block apart."""
    nats = 0.0
    for p in range(1, len(tokens)):
        start = 0
        while p - start > block_size:
            start += block_size // 2
        nats -= log_p(model, tokens[start:p], only)[tokens[p]].item()
    return nats


@pytest.mark.parametrize("language, number", [("en", 100), ("clone", 100), ("en", 12)])
def test_perplexity_and_bits_per_byte_token_by_token(tiny, data, language, number):
    config = replace(tiny, block_size=16, eval_tokens=number)
    model = untrained(config, data)
    tokens = data.tokens(language, "val")[:number].tolist()
    got = language_model(model, data, language, config)
    nats = nats_of_every_token(model, tokens, 16)
    own = nats_of_every_token(model, tokens, 16, data.ids_of(language))
    english = data.tokens("en", "val")[1:number].tolist()  # of which En-Clone is a copy
    n_bytes = sum(len(data.encoding.decode_single_token_bytes(t)) for t in english if t != data.end_of_text)
    expected = {"ppl": math.exp(nats / (number - 1)), "bpb": nats / math.log(2) / n_bytes,
                "ppl_in_language": math.exp(own / (number - 1)), "tokens": number - 1}
    assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert got["ppl_in_language"] < got["ppl"]


def test_a_model_without_opinions_by_hand(tiny, data):
    model = untrained(tiny, data)
    torch.nn.init.zeros_(model.lm_head.weight)
    tokens = data.tokens("en", "val")
    got = language_model(model, data, "en", replace(tiny, eval_tokens=0))
    assert got["ppl"] == pytest.approx(data.vocab_size) and got["ppl_in_language"] == pytest.approx(data.V)
    assert got["tokens"] == len(tokens) - 1
    documents = data.encoding.decode(tokens[1:].tolist()).replace("<|endoftext|>", "")
    assert got["bpb"] == pytest.approx((len(tokens) - 1) * math.log2(data.vocab_size) / len(documents.encode()))


def flat(result: dict) -> dict[str, float]:
    """The numbers of language_model, those of kinds of tokens too, by one name each."""
    kinds = {(kind, key): value for kind, numbers in result["kinds"].items() for key, value in numbers.items()}
    return {key: value for key, value in result.items() if key != "kinds"} | kinds


def test_perplexity_does_not_depend_on_the_batch_size(tiny, data):
    model = untrained(tiny, data)
    results = [language_model(model, data, "en", replace(tiny, eval_batch_size=n)) for n in (1, 3, 32)]
    for result in results[1:]:
        assert flat(result) == pytest.approx(flat(results[0]), rel=1e-5)


def test_perplexity_by_kind_adds_up_to_the_whole(tiny, data):
    model = untrained(tiny, data)
    for language in ("en", "clone"):
        result = language_model(model, data, language, tiny)
        assert sum(k["tokens"] for k in result["kinds"].values()) == result["tokens"]
        nats = sum(k["tokens"] * math.log(k["ppl"]) for k in result["kinds"].values())
        assert math.exp(nats / result["tokens"]) == pytest.approx(result["ppl"])


def test_golden_model_reads_the_clone_as_well_as_english(tiny, data):
    model = untrained(tiny, data)
    make_golden(model, data)
    clone, english = (flat(language_model(model, data, language, tiny)) for language in ("clone", "en"))
    assert clone == pytest.approx(english, rel=1e-5)


# ---- CLKA ----

def rows_of_facts(data: Folder, facts: list[Fact], language: str) -> list[list[int]]:
    return [in_language(data, [data.end_of_text, *encode(data.encoding, statement(fact, "en"))], language)
            for fact in facts]


def is_known(model: GPT, data: Folder, fact: Fact, language: str) -> bool:
    """The true sentence is more likely than each other one, token by token from the end of the text before it."""
    likelihood = []
    for object_ in (fact.object, *fact.distractors):
        tokens = [data.end_of_text, *encode(data.encoding, statement(fact, "en", object_))]
        tokens = in_language(data, tokens, language)
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
        assert (got["accuracy"], got["n"], got["chance"]) == (sum(known) / 24, 24, 0.25)
        assert got["interval"][0] < got["accuracy"] < got["interval"][1]


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
    layers = ("word embedding", "block 1", "block 2", "output embedding")
    assert [(row["language"], row["layer"]) for row in got] == [*itertools.product(("de", "zh"), layers)]
    for l in (1, 2):
        there = [k for k in range(4) if len(table.words(k, l))]
        pairs = [(table.word(table.words(k, 0)[0]), table.word(table.words(k, l)[0])) for k in there]
        sides = [(layers_in_a_loop(model, a), layers_in_a_loop(model, b)) for a, b in pairs]
        for layer in range(4):
            row = got[4 * (l - 1) + layer]
            assert row["words"] == pytest.approx(np.mean([cosine(a[layer], b[layer]) for a, b in sides]), abs=1e-5)
            assert row["text"] is None
            others = [cosine(a[layer], b[layer]) for (a, _), (_, b) in itertools.permutations(sides, 2)]
            assert min(others) - 1e-5 <= row["random"] <= max(others) + 1e-5


def test_similarity_of_text_position_by_position(tiny, data):
    model, T = untrained(tiny, data), tiny.block_size
    tokens = data.tokens("en", "val").astype(np.int64)
    sums, positions = np.zeros(4), 0
    with torch.no_grad():
        for start in range(0, len(tokens) - T + 1, T):
            sides = (tokens[start:start + T], data.to_language(tokens[start:start + T], "clone"))
            mine, clone = ([*model.layers(x), model(x)] for x in (torch.from_numpy(side)[None] for side in sides))
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


def test_similarity_is_measured_on_as_many_words_as_asked_for(tiny, data):
    model, languages = untrained(tiny, data), range(2)
    for asked, n in ((7, 7), (10**6, len(data.table))):
        assert evaluation.word_vectors(model, data, tiny, languages, asked).shape == (4, 2, n, tiny.n_embd)


# ---- zero-shot transfer ----

def test_a_pair_is_two_documents(data):
    eot = data.end_of_text
    expected = [eot, *encode(data.encoding, "Lo ba der."), eot, *encode(data.encoding, "Ba lo."), eot]
    for language in ("en", "clone"):
        (row,), labels = encode_pairs(PAIRS[:1], data, language, 32)
        assert row.tolist() == in_language(data, expected, language) and labels.tolist() == [0]
    assert encode_pairs(PAIRS[:1], data, "en", 4)[0][0].tolist() == expected[-4:]


def test_the_classifier_reads_the_last_token_whatever_shares_its_batch(tiny, data):
    classifier = Classifier(untrained(tiny, data), 3)
    torch.nn.init.normal_(classifier.head.weight)
    rows, labels = encode_pairs(PAIRS, data, "en", 32)
    together = classifier(rows)
    for row, logits in zip(rows, together):
        hidden = classifier.model(torch.from_numpy(row)[None])[0, -1]
        torch.testing.assert_close(logits, classifier.head(hidden), rtol=1e-4, atol=1e-5)
    share = (together.argmax(1).numpy() == labels).mean()
    assert [accuracy(classifier, rows, labels, batch_size) for batch_size in (1, 2, 100)] == pytest.approx([share] * 3)


def test_fine_tuning_learns_and_leaves_the_model_as_it_was(tiny, data):
    config = replace(tiny, nli_epochs=40, nli_batch_size=3, nli_learning_rate=3e-3)
    model, rows, hardware = untrained(tiny, data), encode_pairs(PAIRS, data, "en", 32), start(config)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    classifier, dev = fine_tune(model, rows, rows, 3, config, hardware, seed=1)
    assert dev == 1.0 == accuracy(classifier, *rows, 2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again, _ = fine_tune(model, rows, rows, 3, config, hardware, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(classifier.state_dict().values(), again.state_dict().values()))


def test_the_epoch_that_did_best_on_dev_is_kept(tiny, data, monkeypatch):
    """Dev accuracies 1/3, 2/3, 0: the classifier is that of the second of three epochs."""
    rows, seen, scores = encode_pairs(PAIRS, data, "en", 32), [], iter([1 / 3, 2 / 3, 0.0])

    def measured(classifier, *_):
        seen.append({name: weight.clone() for name, weight in classifier.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(evaluation, "accuracy", measured)
    config = replace(tiny, nli_epochs=3, nli_batch_size=4)
    classifier, dev = fine_tune(untrained(tiny, data), rows, rows, 3, config, start(tiny), seed=1)
    assert dev == 2 / 3 and len(seen) == 3
    assert all(torch.equal(weight, seen[1][name]) for name, weight in classifier.state_dict().items())


def test_the_schedule_of_fine_tuning_is_the_same_for_every_method(tiny, data, monkeypatch):
    """Post-alignment has two schedules in training; its fine-tuning has one, as every other."""
    config = replace(tiny, align_steps="last", stage1_steps=6, nli_learning_rate=1e-3, nli_batch_size=2, nli_epochs=4)
    seen: list[float] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_, **__: seen.append(self.param_groups[0]["lr"]))
    rows = encode_pairs(PAIRS, data, "en", 32)
    fine_tune(untrained(tiny, data), rows, rows, 3, config, start(config), 1)
    one = replace(Config(), learning_rate=1e-3, max_steps=12, warmup_ratio=config.warmup_ratio)
    assert seen == [learning_rate(step, one) for step in range(12)]


def test_transfer_of_a_run(tiny, tmp_path, capsys):
    config = replace(tiny, out_dir=str(tmp_path), max_steps=12, nli_builtin=20, nli_epochs=1, nli_seeds=2)
    training.main(overrides(config))
    for said in ("NLI clone", "is up to date"):
        evaluation.main(["xnli", *overrides(config)])
        assert said in capsys.readouterr().out
    result = json.loads(Path(config.run_dir, "xnli.json").read_text())
    assert (result["pairs"], result["labels"], len(result["dev"])) == (60, list(LABELS), 2)
    assert {language: (len(numbers["accuracies"]), numbers["n"]) for language, numbers in
            result["languages"].items()} == {"en": (2, 6), "clone": (2, 6)}


# ---- a run ----

def test_evaluation_of_a_run(tiny, data, out_dir):
    config = replace(tiny, out_dir=str(out_dir), max_steps=12, method="joint", seed=2)
    result = evaluation.measure(config)
    written = json.loads((out_dir / "joint" / "seed2" / "eval.json").read_text())
    assert {key: written[key] for key in result} == json.loads(json.dumps(result))
    assert written["config"] == config.plain()
    assert (result["method"], result["seed"], result["tokens"]) == ("joint", 2, 12 * 8 * 32)
    model, _ = load_trained(config.run_dir, data)
    assert result["lm"] == {language: language_model(model, data, language, config) for language in ("en", "clone")}
    assert result["clka"] == {f"en->{language}": clka(model, data, facts_of(data.settings), language, config)
                              for language in ("en", "clone")}
    assert result["similarity"] == similarity(model, data, config)
    text = replace(config, eval_text=tiny.source)
    assert evaluation.measure(text)["text"] == {
        language: evaluation.perplexity(model, data, language, text_tokens(data, language, text), text)
        for language in ("en", "clone")}


def test_a_result_is_used_again_if_it_is_newer_than_its_run_and_of_the_same_knobs(tiny, out_dir, tmp_path):
    config = replace(tiny, out_dir=str(tmp_path), max_steps=12, method="joint")
    shutil.copytree(out_dir / "joint", tmp_path / "joint")
    path, made = Path(config.run_dir, "eval.json"), []

    def reuse(config: Config) -> int:
        """How often a result was measured until now."""
        evaluation.reuse_or_measure("eval.json", config, ("eval_words",), lambda _: made.append(1) or {})
        return len(made)

    assert reuse(config) == reuse(replace(config, eval_tokens=5)) == 0
    assert reuse(replace(config, eval_words=5)) == reuse(replace(config, eval_words=5)) == 1
    os.utime(path, (0, 0))
    assert reuse(replace(config, eval_words=5)) == 2
    path.unlink()
    assert reuse(replace(config, eval_words=5)) == 3 and path.exists()


def test_components_of_a_run(tiny, data, out_dir):
    """Against the leading eigenvectors of the covariance of the mean embeddings of words."""
    config = replace(tiny, out_dir=str(out_dir), max_steps=12)
    joint, config = config, replace(config, method="prealign", init_from="align", codeswitch_ratio=0.3)
    got = evaluation.measure(config)["components"]
    assert list(got) == ["at initialisation", "after stage 1", "after pretraining"]
    torch.manual_seed(config.seed)
    first = make_model(config, data.vocab_size)
    for state, model in zip(got, (first, *(load_trained(d, data)[0] for d in (config.stage1_dir, config.run_dir)))):
        points = np.array([got[state][language] for language in ("en", "clone")])
        n = points.shape[1]
        assert points.shape == (2, min(300, len(data.table)), 2)
        vectors = evaluation.word_vectors(model, data, config, range(2), n)[0].flatten(0, 1).numpy()
        _, directions = np.linalg.eigh(np.cov(vectors.T))
        expected = (vectors - vectors.mean(0)) @ directions[:, :-3:-1]
        # A direction has no sign.
        np.testing.assert_allclose(np.abs(points.reshape(-1, 2)), np.abs(expected), atol=1e-3)
    assert list(evaluation.measure(joint)["components"]) == ["at initialisation", "after pretraining"]
    model, _ = load_trained(config.run_dir, data)
    for without in (dict(align_coverage=0.5), dict(only="clone"), dict(mix={"en": 1.0})):
        assert states(model, data, replace(config, **without)) == {}


def test_other_text_is_read_until_there_is_enough(tiny, data, tmp_path):
    (tmp_path / "en.txt").write_text("Lo ba der in.\n\nMer ta, ost.\n", encoding="utf-8")
    config = replace(tiny, eval_text=str(tmp_path / "{language}.txt"), eval_tokens=0)
    parts = [[*encode(data.encoding, text), data.end_of_text] for text in ("Lo ba der in.", "Mer ta, ost.")]
    for language in ("en", "clone"):
        expected = in_language(data, [data.end_of_text, *parts[0], *parts[1]], language)
        assert text_tokens(data, language, config).tolist() == expected
        assert text_tokens(data, language, replace(config, eval_tokens=6)).tolist() == expected[:6]


def test_continuations_of_a_prompt(tiny, out_dir, capsys):
    config = replace(tiny, out_dir=str(out_dir), max_steps=12, prompt="Lo ba", sample_count=3, sample_tokens=4)
    evaluation.main(["sample", *overrides(config)])
    printed = capsys.readouterr().out
    assert printed.count("Lo ba|") == 3
    data = Folder(tiny.data_dir)
    model, _ = load_trained(config.run_dir, data)
    assert printed[:-2].split("\n\n") == [f"Lo ba|{text}" for text in continuations(model, data, config)]


def test_only_the_finished_run_of_a_config_is_measured(tiny, out_dir, tmp_path):
    config = replace(tiny, out_dir=str(tmp_path), max_steps=12)
    with pytest.raises(UserError, match="joint/seed1/checkpoint.pt"):
        evaluate(config)
    shutil.copytree(out_dir / "joint", tmp_path / "joint")
    for knob in ("n_layer", "block_size"):
        with pytest.raises(UserError, match=f"another {knob} "):
            evaluate(replace(config, **{knob: 64}))
    checkpoint = Path(config.run_dir, "checkpoint.pt")
    torch.save(torch.load(checkpoint) | {"step": 11}, checkpoint)
    with pytest.raises(UserError, match="step 11 of 12"):
        evaluate(config)
