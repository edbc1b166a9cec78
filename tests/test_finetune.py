"""Zero-shot transfer: what the classifier reads, that it learns, and that the commands measure what they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
import train as training
from runtime.checkpoint import make_model
from runtime.config import Config
from runtime.errors import UserError
from conftest import overrides
from corpus.folder import Folder
from finetune import Classifier, accuracy, encode_pairs, fine_tune, padded_batch, predict, transfer
from runtime.hardware import Hardware, start
from tasks.nli import LABELS, Pair
from corpus.tokenizer import encode
from train import learning_rate

PAIRS = [Pair("Lo ba der.", "Ba lo.", 0), Pair("In ta.", "Ta in ost, ken.", 1), Pair("So al u", "ba", 2), Pair("Ri ken so al.", "Lo", 0),
         Pair("Ost ost.", "Mer.", 1), Pair("u u u u u", "ken ken", 2)]


@pytest.fixture(scope="module")
def data(tiny) -> Folder:
    return Folder(tiny.data_dir)


def model_of(config, data, seed=0):
    torch.manual_seed(seed)
    return make_model(replace(config, init_std=0.2), data.vocab_size).eval()


def test_a_pair_is_two_documents(data):
    eot = data.end_of_text
    expected = [eot, *encode(data.encoding, "Lo ba der."), eot, *encode(data.encoding, "Ba lo."), eot]
    assert encode_pairs(PAIRS[:1], data, "en", 32)[0].tolist() == expected
    assert encode_pairs(PAIRS[:1], data, "clone", 32)[0].tolist() == [t + data.V for t in expected]
    assert encode_pairs(PAIRS[:1], data, "en", 4)[0].tolist() == expected[-4:]


def test_the_classifier_reads_the_last_token_whatever_shares_its_batch(tiny, data):
    classifier = Classifier(model_of(tiny, data), 3)
    torch.nn.init.normal_(classifier.head.weight)
    rows = encode_pairs(PAIRS, data, "en", 32)
    together = classifier(*padded_batch(rows, torch.device("cpu")))
    for row, logits in zip(rows, together):
        hidden = classifier.model(torch.from_numpy(row)[None])[0, -1]
        torch.testing.assert_close(logits, classifier.head(hidden), rtol=1e-4, atol=1e-5)
    for batch_size in (1, 2, 100):
        assert (predict(classifier, rows, batch_size) == together.argmax(1).numpy()).all()


def test_accuracy_by_hand():
    assert accuracy(np.array([0, 1, 2, 1, 1, 0]), PAIRS) == pytest.approx(4 / 6)


def test_it_learns_and_leaves_the_model_as_it_was(tiny, data):
    config = replace(tiny, nli_epochs=40, nli_batch_size=3, nli_learning_rate=3e-3)
    model, rows = model_of(tiny, data), encode_pairs(PAIRS, data, "en", 32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hardware = start(config)
    classifier, dev = fine_tune(model, rows, PAIRS, 3, (rows, PAIRS), config, hardware, seed=1)
    assert dev == 1.0 and accuracy(predict(classifier, rows, 2), PAIRS) == 1.0
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again, _ = fine_tune(model, rows, PAIRS, 3, (rows, PAIRS), config, hardware, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(classifier.state_dict().values(), again.state_dict().values()))


def test_the_epoch_that_did_best_on_dev_is_kept(tiny, data, monkeypatch):
    """Dev accuracies 1/3, 2/3, 0: the classifier is that of the second of three epochs."""
    rows, seen, scores = encode_pairs(PAIRS, data, "en", 32), [], iter([1 / 3, 2 / 3, 0.0])
    monkeypatch.setattr("finetune.accuracy", lambda predicted, pairs: next(scores))
    monkeypatch.setattr("finetune.predict", lambda classifier, *_: seen.append({k: v.clone() for k, v in classifier.state_dict().items()}))
    classifier, dev = fine_tune(model_of(tiny, data), rows, PAIRS, 3, (rows, PAIRS), replace(tiny, nli_epochs=3, nli_batch_size=4), start(tiny), seed=1)
    assert dev == 2 / 3 and len(seen) == 3
    assert all(torch.equal(weight, seen[1][name]) for name, weight in classifier.state_dict().items())


def test_labels_must_be_the_same_everywhere(tiny, data, tmp_path):
    (tmp_path / "paws.tsv").write_text("id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n")
    config = replace(tiny, nli_builtin=4, nli_test=str(tmp_path / "paws.tsv"))
    with pytest.raises(UserError, match="labels of the en pairs are 0, 1, those of the training pairs entailment, neutral, contradiction"):
        transfer(model_of(tiny, data), data, config, start(config))


def test_command(tiny, data, tmp_path, capsys):
    config = replace(tiny, out_dir=str(tmp_path), max_steps=12, nli_builtin=20, nli_epochs=1, nli_seeds=2, block_size=64)
    training.main(overrides(config))
    evaluation.main(["xnli", *overrides(config)])
    result = json.loads(Path(config.run_dir, "xnli.json").read_text())
    assert (result["pairs"], result["labels"], len(result["dev"])) == (60, list(LABELS), 2)
    assert {language: (len(numbers["accuracies"]), numbers["n"]) for language, numbers in result["languages"].items()} == {"en": (2, 6), "clone": (2, 6)}
    assert "NLI clone" in capsys.readouterr().out
    evaluation.main(overrides(config))
    evaluation.main(["report", str(tmp_path)])
    assert "NLI clone (95%)" in capsys.readouterr().out


def test_the_schedule_is_the_same_for_every_method(tiny, monkeypatch):
    """Post-alignment has two schedules in training; its fine-tuning has one, as every other."""
    config = replace(tiny, align_steps="last", stage1_steps=6, nli_learning_rate=1e-3)
    seen: list[float] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_, **__: seen.append(self.param_groups[0]["lr"]))
    data = Folder(tiny.data_dir)
    pairs = [Pair("a b", "a", 0), Pair("a", "b", 1), Pair("b", "a", 2)] * 8
    rows = encode_pairs(pairs, data, "en", 32)
    hardware = Hardware(torch.device("cpu"), torch.float32, 0, 1, None)
    fine_tune(make_model(config, data.vocab_size), rows, pairs, 3, (rows, pairs), replace(config, nli_batch_size=2, nli_epochs=2), hardware, 1)
    assert len(seen) == 24 and seen == [learning_rate(step, replace(Config(), learning_rate=1e-3, max_steps=24, warmup_ratio=config.warmup_ratio)) for step in range(24)]
