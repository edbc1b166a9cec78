"""Natural language inference: the published formats, and the built-in set's labels, balance and splits."""

import gzip
import itertools
import json
import lzma
from collections import Counter

import pytest
import torch

from tasks import nli
from runtime.errors import UserError
from tasks.nli import LABELS, OBJECTS, QUANTIFIERS, SUBJECTS, VERBS, Pair, Statement, builtin, label, read

# ---- published files ----

XNLI = "language\tgold_label\tsentence1\tsentence2\tgenre\nde\tneutral\tEin Hund.\tEin Tier.\tx\nen\tcontradiction\tA dog.\tNo dog.\tx\nen\tentailment\tA \"dog.\tAn animal.\tx\n"


def write(path, text):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as f:
        f.write(text)
    return str(path)


@pytest.mark.parametrize("name", ["xnli.dev.tsv", "xnli.dev.tsv.gz", "xnli.dev.tsv.xz"])
def test_xnli(tmp_path, name):
    path = write(tmp_path / name, XNLI)
    assert read(path, "en") == ([Pair("A dog.", "No dog.", 2), Pair('A "dog.', "An animal.", 0)], LABELS)
    assert read(path, "de")[0] == [Pair("Ein Hund.", "Ein Tier.", 1)]
    with pytest.raises(UserError, match="no labelled pairs in 'fr'; its languages are de, en"):
        read(path, "fr")


def test_the_other_formats(tmp_path):
    multinli = write(tmp_path / "multinli.train.en.tsv", "premise\thypo\tlabel\na b\tc\tcontradictory\r\nd\te\tneutral\n")
    assert read(multinli, "en")[0] == [Pair("a b", "c", 2), Pair("d", "e", 1)]
    sick = write(tmp_path / "SICK_train.txt", "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\ta\tb\t4.5\tENTAILMENT\n")
    assert read(sick)[0] == [Pair("a", "b", 0)]
    paws = write(tmp_path / "dev_2k.tsv", "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n2\tc\td\t1\n")
    assert read(paws, "de") == ([Pair("a", "b", 0), Pair("c", "d", 1)], ("0", "1"))
    rows = [{"gold_label": "-", "sentence1": "x", "sentence2": "y"}, {"gold_label": "entailment", "sentence1": "x", "sentence2": "y"}]
    snli = write(tmp_path / "snli.jsonl.gz", "\n".join(map(json.dumps, rows)))
    assert read(snli)[0] == [Pair("x", "y", 0)]


@pytest.mark.parametrize("name, text, message", [
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\tmaybe\n", r"a.tsv:2: expected one of the labels entailment, neutral, contradiction, found 'maybe'"),
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\n", "a.tsv:2: expected 3 tab-separated fields as in the header, found 2"),
    ("a.tsv", "text\tlabel\nx\tneutral\n", r"a.tsv:2: expected a premise .* found text, label"),
    ("a.tsv", "premise\thypothesis\tlabel\n", "no labelled pairs"),
    ("a.tsv", "", "no labelled pairs"),
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\t0\nx\ty\tneutral\n", "a.tsv:3: expected one of the labels 0, 1, found 'neutral'"),
    ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
    ("a.jsonl", "[1]\n", "a.jsonl:1: expected a JSON object"),
    ("a.jsonl", '{"premise": 3, "hypothesis": "x", "label": "neutral"}\n', "a.jsonl:1: expected a premise"),
])
def test_bad_files(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(str(tmp_path / "none.tsv"))


# ---- the built-in set ----

def worlds():
    """
    Every world of one to four servers and up to three clients, programs both, in which each has sorted or updated integers
    or floats or nothing, as a list of (kind, deed): few enough to try all, enough of them to tell two from three.
    """
    deeds = ["nothing", "sorted integers", "updated integers", "sorted floats"]
    for servers, clients in itertools.product(range(1, 5), range(4)):
        for s, c in itertools.product(itertools.combinations_with_replacement(deeds, servers), itertools.combinations_with_replacement(deeds, clients)):
            yield [("server", deed) for deed in s] + [("client", deed) for deed in c]


def holds(s: Statement, world) -> bool:
    """Whether a statement is true in a world, by counting."""
    of_subject = [deed for kind, deed in world if s.subject in (kind, "program")]
    did = [deed for deed in of_subject if deed != "nothing"
           and s.verb in (deed.split()[0], "changed") and s.object in (deed.split()[1], "numbers")]
    n = nli.NUMBERS.index(s.quantifier.split()[-1]) + 2 if s.quantifier.startswith("at least") else 1
    true = len(did) == len(of_subject) if s.quantifier == "every" else len(did) >= n
    return true != s.negated


def test_labels_are_those_of_counting_in_every_small_world():
    every_world = list(worlds())
    statements = [Statement(q, s, v, o, negated, False) for q in ("every", "some", "at least two", "at least three") for s in ("program", "server")
                  for v in ("changed", "sorted") for o in ("numbers", "integers") for negated in (False, True)]
    truth = {s: [holds(s, world) for world in every_world] for s in statements}
    for premise, hypothesis in itertools.product(statements, repeat=2):
        cases = [h for p, h in zip(truth[premise], truth[hypothesis]) if p]
        expected = 0 if all(cases) else 2 if not any(cases) else 1
        assert label(premise, hypothesis) == expected, (str(premise), str(hypothesis))


def test_the_passive_says_the_same():
    active = Statement("at least two", "server", "sorted", "files", False, False)
    passive = Statement("at least two", "server", "sorted", "files", False, True)
    assert str(active) == "At least two servers sorted files." and str(passive) == "Files were sorted by at least two servers."
    assert label(active, passive) == label(passive, active) == 0
    assert str(Statement("at least four", "user", "moved", "names", True, False)) == "Fewer than four users moved names."
    assert str(Statement("some", "user", "moved", "names", True, True)) == "Names were moved by no user."


def test_words_have_one_place():
    for tree in (SUBJECTS, OBJECTS, VERBS):
        words = [w for general, specifics in tree.items() for w in (general, *specifics)]
        assert len(words) == len(set(words))
    assert len(set(QUANTIFIERS) | set(QUANTIFIERS.values())) == 2 * len(QUANTIFIERS)


def test_splits_share_no_sentence_and_labels_are_balanced():
    splits = {split: builtin(split, count) for split, count in (("train", 400), ("dev", 100), ("test", 100))}
    sentences = {split: {s for p in pairs for s in (p.premise, p.hypothesis)} for split, pairs in splits.items()}
    for a, b in itertools.combinations(splits, 2):
        assert not sentences[a] & sentences[b]
    for split, pairs in splits.items():
        assert Counter(p.label for p in pairs) == dict.fromkeys(range(3), len(pairs) // 3)
        by_hypothesis = Counter(p.hypothesis for p in pairs)
        for hypothesis in by_hypothesis:
            labels = Counter(p.label for p in pairs if p.hypothesis == hypothesis)
            assert len(set(labels.values())) == 1 and len(labels) == 3
    assert builtin("test", 100) == splits["test"] and [p.label for p in splits["test"][:6]] != [0, 1, 2] * 2


def test_the_hypothesis_alone_says_nothing():
    """A bag-of-words classifier trained on hypotheses, and one trained on both sides at once, on the test split."""
    train, test = builtin("train", 1500), builtin("test", 200)
    vocabulary = {w: i for i, w in enumerate(sorted({w for p in train for w in f"{p.premise} {p.hypothesis}".lower().replace(".", "").split()}))}

    def bag(text: str) -> torch.Tensor:
        counts = torch.zeros(len(vocabulary) + 1)
        counts[-1] = 1
        for w in text.lower().replace(".", "").split():
            counts[vocabulary.get(w, -1)] += 1
        return counts

    def accuracy(features) -> float:
        x, y = torch.stack([features(p) for p in train]), torch.tensor([p.label for p in train])
        weight = torch.zeros(x.shape[1], 3, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=50)

        def loss():
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weight, y) + 1e-4 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        predicted = (torch.stack([features(p) for p in test]) @ weight).argmax(1)
        return (predicted == torch.tensor([p.label for p in test])).float().mean().item()

    assert accuracy(lambda p: bag(p.hypothesis)) < 0.4
    assert accuracy(lambda p: bag(p.premise)) < 0.5
    assert accuracy(lambda p: torch.cat([bag(p.premise), bag(p.hypothesis)])) < 0.5


def test_a_file_that_does_not_say_what_language_a_pair_is_in_is_not_of_several(tmp_path):
    path = tmp_path / "test_2k.tsv"
    path.write_text("id\tsentence1\tsentence2\tlabel\n1\ta\tb\t1\n", encoding="utf-8")
    assert read(str(path), "de")[0] == [Pair("a", "b", 1)]
    with pytest.raises(UserError, match=r"test_2k.tsv:2: the file does not say which pairs are in 'de'.* put \{language\} into its name"):
        read(str(path), "de", several=True)
