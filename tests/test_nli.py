"""The built-in inference pairs: labels, balance and splits."""

import itertools
from collections import Counter

import torch

from tasks import nli
from tasks.nli import OBJECTS, QUANTIFIERS, SUBJECTS, VERBS, Statement, builtin, label

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
