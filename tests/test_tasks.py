"""What is asked of a model beside text: facts, inference, mixed script and kinds of token, each by its definition."""

import gzip
import itertools
import json
import lzma
import math
import re
import string
from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corpus.folder import Folder
from corpus.table import make_table
from corpus.tokenizer import encode
from report.results import wilson
from runtime.config import Config
from runtime.errors import UserError
from tasks.analysis import is_in, mixed_script, sample, token_kinds
from tasks.facts import (ENDINGS, LANGUAGES, RELATIONS, STOPLIST, in_training_order, make_facts, read_relations,
                         statement)
from tasks.nli import LABELS, OBJECTS, QUANTIFIERS, SUBJECTS, Pair, Statement, builtin, label, load, read

# ---- facts ----

# count, frequencies: one and several frequencies, 4 and 8 objects, few and all relations, even and uneven shares
SETTINGS = [(4, (1,)), (5, (3,)), (20, (1, 2, 4, 8)), (64, (1,)), (101, (1, 4, 16)), (128, (40,)), (256, (2, 5)),
            (512, (1, 2, 4, 8)), (1003, (1, 2, 3, 4, 5))]


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.pid)
def test_templates(relation):
    """In their language's script alone, with the object last, and a name as a word of its own."""
    script = {"en": r"[A-Za-z]", "de": r"[A-Za-zÄÖÜäöüß]", "zh": r"[\u4e00-\u9fff]", "ru": r"[А-Яа-яЁё]",
              "ar": r"[\u0621-\u0652]"}
    punctuation = {"zh": "", "ru": "—", "en": "-"}  # inside a sentence
    assert tuple(relation.templates) == LANGUAGES == tuple(script)
    for language, template in relation.templates.items():
        assert sorted(f for _, f, _, _ in string.Formatter().parse(template) if f is not None) == ["object", "subject"]
        mark = "。" if language == "zh" else "."
        assert template.endswith("{object}" + mark) and template.count(mark) == 1
        own = template[:-1].replace("{subject}", "").replace("{object}", "")
        own = own.replace("ـ", "") if language == "ar" else own  # the joiner after the preposition in "لـ X"
        allowed = f"(?:{script[language]}|[{re.escape(punctuation.get(language, ''))} ])+"
        assert re.fullmatch(allowed, own), own
        assert "  " not in template and template == template.strip()
        if language == "zh":
            assert " " not in template
        else:
            assert re.search(r"(^| )\{subject\} ", template) and " {object}" in template


def test_relations():
    assert len(RELATIONS) >= 30
    assert len({r.pid for r in RELATIONS}) == len({r.name for r in RELATIONS}) == len(RELATIONS)
    assert all(re.fullmatch(r"P[1-9]\d{0,4}", relation.pid) for relation in RELATIONS)
    for language in LANGUAGES:  # two relations are never stated in the same words
        assert len({r.templates[language] for r in RELATIONS}) == len(RELATIONS)


@pytest.mark.parametrize("line", [
    "P1\tname\tplace",
    "P1\tname\tstar\t{subject} is {object}.",
    "P1\tname\tplace\t{subject} is {subject}.",
    "P1\tname\tplace\t{subject} is {object} {0}.",
])
def test_a_bad_line_of_relations_is_named(tmp_path, line):
    path = tmp_path / "relations.tsv"
    good = "property\tname\tkind\ten\nP2\tother\tplace\t{subject} is {object}.\n"
    path.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="relations.tsv:3: expected"):
        read_relations(str(path))


def test_the_same_facts_everywhere():
    facts = make_facts(64, (1, 4), 1)
    assert facts[0].subject == "Glerzilo Tulbisk"
    assert (facts[0].object, facts[0].distractors) == ("Velmador", ("Zergador", "Grenkudor", "Farvador"))
    assert statement(facts[-1], "en") == "Birbolo Holbesk works in the field of Zolbov."
    assert [statement(fact, "en") for fact in in_training_order(facts, 1)[:2]] == [
        "Vorpulo Marbosk works in the field of Grelkov.", "Zenkolo Porposk was born in Zergador."]
    assert all(facts != make_facts(64, (1, 4), seed) for seed in (2, -1, 0))


@pytest.mark.parametrize("count, frequencies", SETTINGS)
def test_facts_are_balanced(count, frequencies):
    facts = make_facts(count, frequencies, 3)
    assert [fact.index for fact in facts] == list(range(count))
    assert [fact.frequency for fact in facts] == [frequencies[i % len(frequencies)] for i in range(count)]
    assert len({fact.subject for fact in facts}) == count
    objects: dict[str, set[str]] = {}  # P number -> its objects
    for fact in facts:
        assert len({fact.object, *fact.distractors}) == 4
        objects.setdefault(fact.relation.pid, set()).update((fact.object, *fact.distractors))
    assert all(len(pool) in (4, 8) for pool in objects.values())
    pool = set().union(*objects.values())
    assert len(pool) == sum(map(len, objects.values()))  # no object belongs to two relations
    for part in [facts] + [[f for f in facts if f.frequency == frequency] for frequency in frequencies]:
        answers = Counter(fact.object for fact in part)
        wrong = Counter(o for fact in part for o in fact.distractors)
        assert set(answers) == pool
        assert max(answers.values()) - min(answers.values()) <= 1
        assert max(wrong.values()) - min(wrong.values()) <= 3


@pytest.mark.parametrize("count, frequencies", [(128, (40,)), (512, (1, 2, 4, 8)), (120, (1, 2))])
def test_blind_model_is_at_chance(count, frequencies):
    """Whatever a model prefers among objects, if it does not see the subject it is right in exactly one of four."""
    facts = make_facts(count, frequencies, 5)
    last_seen = {fact.object: fact.index for fact in facts}
    for frequency in frequencies:
        part = [fact for fact in facts if fact.frequency == frequency]
        for liking in (str, lambda o: o[::-1], lambda o: (len(o), o[1:]), last_seen.__getitem__):
            right = sum(all(liking(fact.object) > liking(o) for o in fact.distractors) for fact in part)
            assert right * 4 == len(part)


def test_names():
    """Words of their own kind, no two of them a letter apart; small sets of facts share no part of a subject."""
    facts = make_facts(300, (1,), 6)
    words = sorted({w for f in facts for name in (f.subject, f.object, *f.distractors) for w in name.split()})
    assert len(words) > 550
    for word in words:
        assert re.fullmatch(r"[A-Z][a-z]{4,9}", word) and word not in STOPLIST
        assert word.endswith(tuple(ENDINGS.values()))
    near = Counter(shape for word in words for shape in {word} | {word[:i] + word[i + 1:] for i in range(len(word))})
    assert max(near.values()) == 1
    assert all(len(f.object.split()) == (2 if f.relation.kind == "person" else 1) for f in facts)
    few = [fact.subject.split() for fact in make_facts(200, (1,), 7)]
    assert len({given for given, _ in few}) == len({family for _, family in few}) == 200
    many = make_facts(20_000, (1, 2, 4, 8), 8)
    assert len({fact.subject for fact in many}) == 20_000 and {fact.relation for fact in many} == set(RELATIONS)


def test_a_statement_differs_from_its_distractors_in_the_object_alone():
    fact = make_facts(32, (1,), 9)[5]
    for language in LANGUAGES:
        true = statement(fact, language)
        assert true.count(fact.subject) == true.count(fact.object) == 1
        for other in fact.distractors:
            assert statement(fact, language, other) == true.replace(fact.object, other)
    with pytest.raises(UserError, match="'fr'.* en, de, zh, ru, ar"):
        statement(fact, "fr")


def test_statements_of_a_fact_are_spread_evenly_over_training():
    facts = make_facts(60, (1, 3, 12), 11)
    order = in_training_order(facts, 2)
    assert order == in_training_order(facts, 2) != in_training_order(facts, 1) and in_training_order([], 3) == []
    assert Counter(order) == {fact: fact.frequency for fact in facts}
    for fact in facts:  # one in every n-th, give or take what the others' places allow
        places = [i / len(order) for i, stated in enumerate(order) if stated is fact]
        assert all(k / fact.frequency - 0.05 <= place <= (k + 1) / fact.frequency + 0.05
                   for k, place in enumerate(places))


def test_kinds_of_facts_are_languages_and_periods_too():
    facts = make_facts(96, (1, 5), 2, languages=("en", "clone"), periods=3)
    kinds = Counter((fact.frequency, fact.language, fact.period) for fact in facts)
    assert kinds == dict.fromkeys(itertools.product((1, 5), ("en", "clone"), range(3)), 8)
    for kind in kinds:  # the four choices of a fact are each the answer of one of them
        part = [fact for fact in facts if (fact.frequency, fact.language, fact.period) == kind]
        for fact in part:
            choices = {fact.object, *fact.distractors}
            same = [f.object for f in part if {f.object, *f.distractors} == choices]
            assert Counter(same) == dict.fromkeys(choices, 1)
    order = in_training_order(facts, 1)
    assert [fact.period for fact in order] == sorted(fact.period for fact in order)


@pytest.mark.parametrize("count, frequencies, knob", [
    (3, (1,), "fact_count"), (15, (1, 2, 4, 8), "fact_count"), (40_001, (1,), "fact_count"),
    (16, (), "fact_frequencies"), (16, (4, 0), "fact_frequencies")])
def test_impossible_settings(count, frequencies, knob):
    with pytest.raises(UserError, match=knob):
        make_facts(count, frequencies, 1)


# ---- inference: published files ----

XNLI = ("language\tgold_label\tsentence1\tsentence2\tgenre\nde\tneutral\tEin Hund.\tEin Tier.\tx\n"
        "en\tcontradiction\tA dog.\tNo dog.\tx\nen\tentailment\tA \"dog.\tAn animal.\tx\n")


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
    with pytest.raises(UserError, match="its languages are de, en"):
        read(path, "fr")


def test_the_other_formats(tmp_path):
    multinli = write(tmp_path / "multinli.en.tsv", "premise\thypo\tlabel\na b\tc\tcontradictory\r\nd\te\tneutral\n")
    assert read(multinli, "en")[0] == [Pair("a b", "c", 2), Pair("d", "e", 1)]
    sick = write(tmp_path / "SICK.txt", "pair_ID\tsentence_A\tsentence_B\tentailment_judgment\n1\ta\tb\tENTAILMENT\n")
    assert read(sick)[0] == [Pair("a", "b", 0)]
    paws = write(tmp_path / "dev_2k.tsv", "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n2\tc\td\t1\n")
    assert read(paws, "de") == ([Pair("a", "b", 0), Pair("c", "d", 1)], ("0", "1"))
    with pytest.raises(UserError, match=r"dev_2k.tsv:2: expected a column .*put \{language\} into its name"):
        read(paws, "de", several=True)
    rows = [{"gold_label": label, "sentence1": "x", "sentence2": "y"} for label in ("-", "entailment")]
    snli = write(tmp_path / "snli.jsonl.gz", "\n".join(map(json.dumps, rows)))
    assert read(snli)[0] == [Pair("x", "y", 0)]


@pytest.mark.parametrize("name, text, where", [
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\tmaybe\n", "a.tsv:2"),
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\n", "a.tsv:2"),
    ("a.tsv", "text\tlabel\nx\tneutral\n", "a.tsv:2"),
    ("a.tsv", "premise\thypothesis\tlabel\n", "a.tsv"),
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\t0\nx\ty\tneutral\n", "a.tsv:3"),
    ("a.jsonl", "{\n", "a.jsonl:1"),
    ("a.jsonl", "[1]\n", "a.jsonl:1"),
    ("a.jsonl", '{"premise": 3, "hypothesis": "x", "label": "neutral"}\n', "a.jsonl:1"),
])
def test_a_bad_line_of_pairs_is_named(tmp_path, name, text, where):
    with pytest.raises(UserError, match=where):
        read(write(tmp_path / name, text))


def test_pairs_of_each_language(tmp_path):
    """Of one file with a column of languages, or a file each; En-Clone's are the pivot's; all with the same labels."""
    config = Config(nli_builtin=10, nli_test=write(tmp_path / "xnli.tsv", XNLI))
    labels, train, dev, tests = load(config, ("en", "de", "clone"))
    assert (labels, len(train), len(dev)) == (LABELS, 30, 3)
    assert tests == {"en": read(config.nli_test, "en")[0], "de": read(config.nli_test, "de")[0], "clone": tests["en"]}
    write(tmp_path / "test.de.tsv", "premise\thypo\tlabel\na b\tc\tneutral\n")
    write(tmp_path / "test.en.tsv", "premise\thypo\tlabel\nd\te\tneutral\n")
    apart = load(replace(config, nli_test=str(tmp_path / "test.{language}.tsv")), ("en", "de"))[3]
    assert apart == {"en": [Pair("d", "e", 1)], "de": [Pair("a b", "c", 1)]}
    with pytest.raises(UserError, match="the en pairs: expected the labels of the training pairs"):
        load(replace(config, nli_test=write(tmp_path / "paws.tsv", "premise\thypo\tlabel\na\tb\t0\n")), ("en", "clone"))
    with pytest.raises(UserError, match="nli_test"):
        load(replace(config, nli_test="builtin"), ("en", "de"))


# ---- inference: the built-in pairs ----


def small_worlds():
    """
    Every world of one or two servers and one or two clients, programs both, each of which has kept or removed the
    images, and kept or removed the archives, files both: enough to tell every from some.
    """
    deeds = list(itertools.product(("kept", "removed"), repeat=2))
    some = [list(group) for n in (1, 2) for group in itertools.combinations_with_replacement(deeds, n)]
    for servers, clients in itertools.product(some, repeat=2):
        yield [("server", deed) for deed in servers] + [("client", deed) for deed in clients]


def holds(s: Statement, world) -> bool:
    """Whether a statement is true in a world, by looking at everybody."""
    things = {"images": (0,), "archives": (1,), "files": (0, 1)}[s.object]
    did = [all(deed[i] == s.verb for i in things) for kind, deed in world if s.subject in (kind, "program")]
    return {"every": all(did), "some": any(did), "no": not any(did), "not every": not all(did)}[s.quantifier]


def test_labels_are_those_of_every_small_world():
    worlds = list(small_worlds())
    statements = [Statement(*words, False) for words in itertools.product(
        QUANTIFIERS, ("program", "server", "client"), ("kept", "removed"), ("files", "images", "archives"))]
    truth = {s: np.array([holds(s, world) for world in worlds]) for s in statements}
    found = Counter()
    for premise, hypothesis in itertools.product(statements, repeat=2):
        if premise.quantifier in ("every", "no"):
            cases = truth[hypothesis][truth[premise]]
            expected = 0 if cases.all() else 2 if not cases.any() else 1
            assert label(premise, hypothesis) == expected, (str(premise), str(hypothesis))
            found[expected] += 1
    assert min(found.values()) > 100


def test_the_passive_says_the_same():
    active, passive = (Statement("no", "server", "kept", "files", voice) for voice in (False, True))
    assert (str(active), str(passive)) == ("No server kept the files.", "The files were kept by no server.")
    assert label(active, passive) == label(passive, active) == 0


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Pair]]:
    return {split: builtin(split, count) for split, count in (("train", 1500), ("dev", 200), ("test", 250))}


def words_of(sentence: str) -> tuple[str, ...]:
    """Quantifier, subject, verb and object of a sentence, active or passive."""
    said = sentence.lower().rstrip(".")
    passive = re.fullmatch(r"the (\w+) were (\w+) by (not every|\w+) (\w+)", said)
    if passive:
        return passive[3], passive[4], passive[2], passive[1]
    return re.fullmatch(r"(not every|\w+) (\w+) (\w+) the (\w+)", said).groups()


def test_splits_share_no_sentence_and_every_hypothesis_has_each_label_once(splits):
    sentences = {split: {s for p in pairs for s in (p.premise, p.hypothesis)} for split, pairs in splits.items()}
    for a, b in itertools.combinations(splits, 2):
        assert not sentences[a] & sentences[b]
    known = {word for sentence in sentences["train"] for word in words_of(sentence)}
    for split, pairs in splits.items():
        assert Counter((p.hypothesis, p.label) for p in pairs) == dict.fromkeys(
            itertools.product({p.hypothesis for p in pairs}, range(3)), 1)
        assert {word for sentence in sentences[split] for word in words_of(sentence)} <= known
    assert builtin("test", 250) == splits["test"] and [p.label for p in splits["test"][:6]] != [0, 1, 2] * 2
    with pytest.raises(UserError, match="nli_builtin"):
        builtin("dev", 5000)


def is_general(word: str) -> bool:
    return word in SUBJECTS or word in OBJECTS


def overlap(pair: Pair) -> int:
    return len({*words_of(pair.premise)[1:]} & {*words_of(pair.hypothesis)[1:]})


def of_sentence(side: str) -> list:
    """All that a lookup table may know of one sentence: single words, pairs of words, its form."""
    parts = [lambda p, at=at: tuple(words_of(getattr(p, side))[i] for i in at)
             for n in (1, 2) for at in itertools.combinations(range(4), n)]
    return [*parts, lambda p: (words_of(getattr(p, side))[0], *map(is_general, words_of(getattr(p, side))[1:])),
            lambda p: getattr(p, side).startswith("The ")]


SHORTCUTS = {
    "the hypothesis": of_sentence("hypothesis"),
    "the premise": of_sentence("premise"),
    "one negation": [lambda p: tuple(words_of(s)[0] in ("no", "not every") for s in (p.premise, p.hypothesis))],
    "quantifiers": [lambda p: (words_of(p.premise)[0], words_of(p.hypothesis)[0])],
    "quantifiers and overlap": [
        lambda p: (words_of(p.premise)[0], words_of(p.hypothesis)[0], overlap(p)),
        lambda p: (words_of(p.premise)[0], words_of(p.hypothesis)[0],
                   len({*re.findall(r"\w+", p.premise.lower())} & {*re.findall(r"\w+", p.hypothesis.lower())}))],
}


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_no_shortcut_tells_the_label(splits, shortcut):
    """A table of the most frequent label for what the shortcut sees, from the training pairs, on the test pairs."""
    for sees in SHORTCUTS[shortcut]:
        seen: dict = defaultdict(Counter)
        for pair in splits["train"]:
            seen[sees(pair)][pair.label] += 1
        right = sum(seen[sees(p)].most_common(1)[0][0] == p.label if sees(p) in seen else 1 / 3 for p in splits["test"])
        assert right / len(splits["test"]) < 0.45


# ---- kinds of token, mixed script ----


@pytest.fixture(scope="module")
def folder(tiny) -> Folder:
    return Folder(tiny.data_dir)


def test_kinds_of_tokens_are_those_of_the_table_and_of_their_text(folder):
    align, text, kinds = folder.align("val"), folder.tokens("en", "val"), token_kinds(folder)
    quarters = [math.ceil(q * len(folder.table)) for q in (0.25, 0.5, 0.75, 1.0)]
    assert len(kinds) == len(text) and len(set(kinds)) == 6
    for kind, a, t in zip(kinds, align, text):
        surface = folder.encoding.decode_single_token_bytes(int(t)) if t != folder.end_of_text else b""
        word = any(chr(b).isalnum() or b > 127 for b in surface)
        assert kind == (next(i for i, end in enumerate(quarters) if abs(a) <= end) if a else 4 if word else 5)


class Speaker(torch.nn.Module):
    """Whatever it reads, it says the next of its tokens."""

    def __init__(self, vocab_size: int, says: list[int]):
        super().__init__()
        self.wte = torch.nn.Embedding(vocab_size, vocab_size)
        self.lm_head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        torch.nn.init.eye_(self.lm_head.weight)
        self.says, self.block_size = itertools.cycle(says), 8

    def forward(self, ids):
        hidden = torch.zeros(*ids.shape, self.wte.num_embeddings)
        hidden[:, -1, next(self.says)] = 100.0
        return hidden


def test_samples_are_drawn_from_the_softmax_of_the_last_logits():
    said = sample(Speaker(6, [3, 1, 4]), torch.zeros(2, 3).long(), 5, 1.0, torch.Generator())
    assert said.tolist() == [[3, 1, 4, 3, 1]] * 2
    speaker, logits = Speaker(4, [0]), torch.tensor([0.0, 1.0, 2.0, -1.0])
    speaker.forward = lambda ids: logits.expand(*ids.shape, 4)
    drawn = sample(speaker, torch.zeros(4000, 5).long(), 1, 0.7, torch.Generator().manual_seed(0))[:, 0]
    p, shares = (logits / 0.7).softmax(0), torch.bincount(drawn, minlength=4) / 4000
    assert ((shares - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("in_clone, share", [(0, 0.0), (1, 1.0)])
def test_a_continuation_is_mixed_when_any_token_is_of_the_target(tiny, folder, in_clone, share):
    says = [5, folder.end_of_text, 9] + in_clone * [int(folder.ids_of("clone")[7])]
    result = mixed_script(Speaker(folder.vocab_size, says), folder, replace(tiny, sample_count=10, sample_tokens=8))
    assert result == {"clone": {"share": share, "n": 10, "interval": wilson(int(10 * share), 10)}}


def test_words_of_a_target_are_recognised(folder):
    """By script; in the pivot's script by whole words that only the target has, in the table and in held-out text."""
    def ids(text: str) -> np.ndarray:
        return encode(folder.encoding, text)

    table = make_table([[[ids(" lo")], [ids(" rat")], [ids("猫")]], [[ids(" der")], [ids(" so")], []]], [2, 1],
                       ("en", "de", "zh"))
    known = dict(V=folder.V, vocab_size=folder.V, end_of_text=folder.end_of_text, encoding=folder.encoding)
    several = SimpleNamespace(**known, table=table, languages=table.languages, pivot="en",
                              tokens=lambda *_: ids("a so b"))
    for language, text, there in (("zh", "a 猫 b", True), ("zh", "a lo b", False), ("de", "a Rat b", True),
                                  ("de", "a lo b", False), ("de", "a so b", False), ("de", "rat b", False)):
        assert is_in(language, several)(ids(text)) == there, (language, text)
