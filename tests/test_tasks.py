"""What is asked of a model beside text: facts, inference, mixed script and kinds of token, each by its definition."""

import gzip
import itertools
import json
import lzma
import math
import re
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
from tasks.facts import Fact, in_training_order, make_facts, read_relations, rows_of_facts, statement
from tasks.nli import LABELS, OBJECTS, QUANTIFIERS, SUBJECTS, Pair, Statement, builtin, label, load, read

# ---- facts ----
RELATIONS = read_relations()


def facts_of(count: int, frequencies: tuple[int, ...] = (1,), languages=("en",), periods=1, seed=0) -> list[Fact]:
    return make_facts(Config(fact_count=count, fact_frequencies=frequencies, fact_languages=languages,
                             fact_periods=periods), seed)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation["property"])
def test_a_sentence_is_in_its_script_alone_with_the_object_last_and_names_as_words_of_their_own(relation):
    script = {"en": r"[A-Za-z -]", "de": r"[A-Za-zÄÖÜäöüß ]", "zh": r"[\u4e00-\u9fff]", "ru": r"[А-Яа-яЁё— ]",
              "ar": r"[\u0621-\u0652 ]"}
    assert tuple(relation) == ("property", "name", "endings", *script)
    for language in script:
        template, mark = relation[language], "。" if language == "zh" else "."
        own = template.replace("{subject}", "", 1).replace("{object}" + mark, "", 1)
        # The joiner after the Arabic preposition in "لـ X".
        assert re.fullmatch(script[language] + "+", own.replace("ـ", "")), own
        assert template.endswith("{object}" + mark) and "  " not in template and template == template.strip()
        assert language == "zh" or re.search(r"(^| )\{subject\} ", template) and " {object}" in template
        assert [each[language] for each in RELATIONS].count(template) == 1


@pytest.mark.parametrize("line", ["P1\tname\tdor", "P1\tname\tdor\t{subject} is {subject}."])
def test_a_bad_line_of_relations_is_named(tmp_path, line):
    path = tmp_path / "relations.tsv"
    good = "property\tname\tendings\ten\nP2\tother\tdor\t{subject} is {object}.\n"
    path.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="relations.tsv:3: expected"):
        read_relations(str(path))


def test_the_same_facts_everywhere():
    facts = facts_of(64, (1, 4), seed=1)
    assert facts[0].subject == "Glerzilo Tulbisk"
    assert (facts[0].object, facts[0].distractors) == ("Velmador", ("Zergador", "Grenkudor", "Farvador"))
    assert statement(facts[-1], "en") == "Birbolo Holbesk works in the field of Zolbov."
    assert len({facts_of(64, (1, 4), seed=seed)[0].subject for seed in (1, 2, -1, 0)}) == 4


# One and several frequencies, 4 and 8 objects, few and all relations, even and uneven shares.
@pytest.mark.parametrize("count, frequencies", [
    (4, (1,)), (5, (3,)), (20, (1, 2, 4, 8)), (101, (1, 4, 16)), (128, (40,)), (256, (2, 5)), (1003, (1, 2, 3, 4, 5))])
def test_facts_are_balanced(count, frequencies):
    facts = facts_of(count, frequencies, seed=3)
    assert [fact.frequency for fact in facts] == [frequencies[i % len(frequencies)] for i in range(count)]
    assert len({fact.subject for fact in facts}) == count
    objects = defaultdict(set)
    for fact in facts:
        assert len({fact.object, *fact.distractors}) == 4
        objects[fact.relation["property"]] |= {fact.object, *fact.distractors}
    pool = set().union(*objects.values())
    # No object belongs to two relations.
    assert {len(of_relation) for of_relation in objects.values()} <= {4, 8}
    assert len(pool) == sum(map(len, objects.values()))
    for part in [facts] + [[f for f in facts if f.frequency == frequency] for frequency in frequencies]:
        answers, wrong = Counter(fact.object for fact in part), Counter(o for fact in part for o in fact.distractors)
        assert set(answers) == pool
        assert max(answers.values()) - min(answers.values()) <= 1
        assert max(wrong.values()) - min(wrong.values()) <= 3


@pytest.mark.parametrize("frequencies, languages, periods", [
    ((40,), ("en",), 1), ((1, 2, 4, 8), ("en",), 1), ((1, 5), ("en", "clone"), 3)])
def test_of_every_kind_a_model_that_ignores_the_subject_knows_one_in_four(frequencies, languages, periods):
    facts = facts_of(192, frequencies, languages, periods, seed=5)
    last_seen = {fact.object: i for i, fact in enumerate(facts)}
    for kind in itertools.product(frequencies, languages, range(periods)):
        part = [fact for fact in facts if (fact.frequency, fact.language, fact.period) == kind]
        assert len(part) * len(frequencies) * len(languages) * periods == 192
        for liking in (str, lambda o: o[::-1], lambda o: (len(o), o[1:]), last_seen.__getitem__):
            right = sum(all(liking(fact.object) > liking(o) for o in fact.distractors) for fact in part)
            assert right * 4 == len(part)


def test_no_two_names_are_a_letter_apart_and_small_sets_of_facts_share_no_part_of_a_subject():
    facts = facts_of(300, seed=6)
    words = {w for f in facts for name in (f.subject, f.object, *f.distractors) for w in name.split()}
    assert len(words) > 550 and all(re.fullmatch(r"[A-Z][a-z]{4,9}", word) for word in words)
    near = Counter(shape for word in words for shape in {word} | {word[:i] + word[i + 1:] for i in range(len(word))})
    assert max(near.values()) == 1
    for fact in facts:
        names = zip(fact.object.split(), fact.relation["endings"].split(), strict=True)
        assert all(name.endswith(ending) for name, ending in names)
    # As many as there are parts of names.
    few = [fact.subject.split() for fact in facts_of(200, seed=7)]
    assert len({given for given, _ in few}) == len({family for _, family in few}) == 200
    many = facts_of(20_000, (1, 2, 4, 8), seed=8)
    assert len({f.subject for f in many}) == 20_000 and len({f.relation["name"] for f in many}) == len(RELATIONS)


def test_a_statement_differs_from_its_distractors_in_the_object_alone():
    fact = facts_of(32)[5]
    for language in ("en", "de", "zh", "ru", "ar"):
        true = statement(fact, language)
        assert true.count(fact.subject) == true.count(fact.object) == 1
        for other in fact.distractors:
            assert statement(fact, language, other) == true.replace(fact.object, other)
    with pytest.raises(UserError, match="relations.tsv: .* 'fr'"):
        statement(fact, "fr")


def test_statements_of_a_fact_are_spread_evenly_over_its_period():
    facts = facts_of(120, (1, 3, 12), periods=2)
    order = in_training_order(facts)
    assert Counter(order) == {fact: fact.frequency for fact in facts}
    assert [fact.period for fact in order] == sorted(fact.period for fact in order)
    # One in every n-th, give or take what the others' places allow.
    for fact in facts:
        places = [2 * i / len(order) - fact.period for i, stated in enumerate(order) if stated is fact]
        assert all(abs(place - (k + 0.5) / fact.frequency) <= 0.5 / fact.frequency + 0.05
                   for k, place in enumerate(places))


def test_rows_of_facts_by_hand():
    """Stage 2 is rows 4 to 23. Seven windows in three periods of facts, which end near the windows 2, 2 and 7."""
    config = Config(batch_size=2, stage1_steps=2, max_steps=12, block_size=10)
    rows, windows = rows_of_facts(config, 7, [22, 19, 70], 1)
    # The periods begin with the rows 4, 11 and 18 (a third of 20 is 6.7): two facts in 7 rows, none, five in 6.
    assert rows.tolist() == [7, 10, 19, 20, 21, 22, 23]
    assert sorted(windows[:2]) == [0, 1] and sorted(windows[2:]) == [2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="facts fill 11 rows of the 20"):
        rows_of_facts(config, 11, [110], 1)


@pytest.mark.parametrize("count, frequencies", [(3, (1,)), (15, (1, 2, 4, 8)), (40_001, (1,)), (16, (4, 0))])
def test_impossible_settings(count, frequencies):
    with pytest.raises(UserError, match="fact_frequencies: .* fact_count: "):
        facts_of(count, frequencies)


# ---- inference: published files ----
XNLI = ("language\tgold_label\tsentence1\tsentence2\tgenre\nde\tneutral\tEin Hund.\tEin Tier.\tx\n"
        "en\tcontradiction\tA dog.\tNo dog.\tx\nen\tentailment\tA \"dog.\tAn animal.\tx\n")
SNLI = "\n".join(json.dumps({"gold_label": label, "sentence1": "x", "sentence2": "y"}) for label in ("-", "entailment"))
HUB = "\n".join(json.dumps({"premise": premise, "hypothesis": "y", "label": label}) for premise, label in (
    ("a", 2), (None, 0), (" e\u0301 ", 1), ("b", -1), ("c", 0)))


def write(path, text):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as f:
        f.write(text)
    return str(path)


@pytest.mark.parametrize("name, text, language, pairs", [
    ("xnli.dev.tsv", XNLI, "en", [Pair("A dog.", "No dog.", 2), Pair('A "dog.', "An animal.", 0)]),
    ("xnli.dev.tsv.gz", XNLI, "de", [Pair("Ein Hund.", "Ein Tier.", 1)]),
    ("multinli.train.en.tsv.xz", "premise\thypo\tlabel\na b\tc\tcontradictory\r\nd\te\tneutral\n", "en",
     [Pair("a b", "c", 2), Pair("d", "e", 1)]),
    ("SICK.txt", "pair_ID\tsentence_A\tsentence_B\tentailment_judgment\n1\ta\tb\tENTAILMENT\n", "en",
     [Pair("a", "b", 0)]),
    ("dev_2k.tsv", "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n2\tc\td\t1\n", "de",
     [Pair("a", "b", 0), Pair("c", "d", 1)]),
    ("snli.jsonl.gz", SNLI, "en", [Pair("x", "y", 0)]),
    # As the Hugging Face hub numbers labels; without a sentence, in NFD, and between spaces.
    ("hub.jsonl", HUB, "en",
     [Pair("a", "y", 2), Pair("é", "y", 1), Pair("c", "y", 0)]),
    ("paws.tsv", "id\tsentence1\tsentence2\tlabel\n1\tNS\tb\t0\n2\ta\tNS\t1\n3\ta\t \t1\n4\tNSA\tb\t1\n", "fr",
     [Pair("NSA", "b", 1)]),
])
def test_published_formats(tmp_path, capsys, name, text, language, pairs):
    labels = ("0", "1") if "id\t" in text else LABELS
    assert read(write(tmp_path / name, text), language) == (pairs, labels)
    left_out = {"hub.jsonl": "2 of 5", "paws.tsv": "3 of 4", "snli.jsonl.gz": "1 of 2"}.get(name, "")
    assert (f"{name}: {left_out} pairs" in capsys.readouterr().out) == bool(left_out)


@pytest.mark.parametrize("name, text, where", [
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\tmaybe\n", "a.tsv:2"),
    ("a.tsv", "premise\thypothesis\tlabel\nx\ty\n", "a.tsv:2"),
    ("a.tsv", "text\tlabel\nx\tneutral\n", "a.tsv:2"),
    ("a.tsv", "premise\thypothesis\tlabel\n", "a.tsv: "),
    ("a.tsv", XNLI.replace("en\t", "fr\t"), "a.tsv: .*'en', .* de, fr"),
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
    english = write(tmp_path / "test.en.tsv", "premise\thypo\tlabel\nd\te\tneutral\n")
    apart = load(replace(config, nli_test=str(tmp_path / "test.{language}.tsv")), ("en", "de"))[3]
    assert apart == {"en": [Pair("d", "e", 1)], "de": [Pair("a b", "c", 1)]}
    paws = write(tmp_path / "paws.tsv", "premise\thypo\tlabel\na\tb\t0\n")
    for test, why in (("builtin", "nli_test=builtin is in English only"), (english, "put {language} into its name")):
        with pytest.raises(UserError, match=why):
            load(replace(config, nli_test=test), ("en", "de"))
    with pytest.raises(UserError, match="expected the labels of nli_train"):
        load(replace(config, nli_test=paws), ("en", "clone"))


# ---- inference: the built-in pairs ----
def holds(s: Statement, world) -> bool:
    """Whether a statement is true in a world, by looking at everybody."""
    things = {"images": (0,), "archives": (1,), "files": (0, 1)}[s.object]
    did = [all(deed[i] == s.verb for i in things) for kind, deed in world if s.subject in (kind, "program")]
    return {"every": all(did), "some": any(did), "no": not any(did), "not every": not all(did)}[s.quantifier]


def test_labels_are_those_of_every_small_world():
    # One or two servers, one or two clients, which are programs, and what each did to images and archives, both files.
    deeds = list(itertools.product(("kept", "removed"), repeat=2))
    groups = [group for n in (1, 2) for group in itertools.combinations_with_replacement(deeds, n)]
    worlds = [[("server", deed) for deed in servers] + [("client", deed) for deed in clients]
              for servers, clients in itertools.product(groups, repeat=2)]
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


def sees(pair: Pair) -> dict[str, object]:
    """What each of some shortcuts sees of a pair, by name."""
    sides = {"premise": words_of(pair.premise), "hypothesis": words_of(pair.hypothesis)}
    seen: dict[str, object] = {}
    for side, words in sides.items():
        # Single words and two of them, general or specific ones, active or passive.
        for at in [(i,) for i in range(4)] + list(itertools.combinations(range(4), 2)):
            seen[f"{side}, words {at}"] = [words[i] for i in at]
        seen[f"{side}, form"] = (words[0], [word in SUBJECTS or word in OBJECTS for word in words[1:]])
        seen[f"{side}, voice"] = getattr(pair, side).startswith("The ")
    quantifiers, subjects, verbs, objects = zip(*sides.values())
    seen["negations"] = [quantifier in ("no", "not every") for quantifier in quantifiers]
    seen["quantifiers"] = quantifiers
    seen["quantifiers, overlap"] = (quantifiers, sum(a == b for a, b in (subjects, verbs, objects)))
    spelled = [set(re.findall(r"\w+", sentence.lower())) for sentence in (pair.premise, pair.hypothesis)]
    seen["quantifiers, overlap of all words"] = (quantifiers, len(set.intersection(*spelled)))
    seen["quantifiers, same verb"] = (quantifiers, verbs[0] == verbs[1])
    return {name: str(value) for name, value in seen.items()}


def test_only_the_shortcut_that_is_part_of_the_task_tells_the_label(splits):
    """A table of the most frequent label for what a shortcut sees, from the training pairs, on the test pairs."""
    labels: dict = defaultdict(Counter)
    for pair in splits["train"]:
        for shortcut in sees(pair).items():
            labels[shortcut][pair.label] += 1
    right: Counter = Counter()
    for pair in splits["test"]:
        for name, seen in sees(pair).items():
            of_label = labels[name, seen]
            right[name] += of_label.most_common(1)[0][0] == pair.label if of_label else 1 / 3
    shares = {name: n / len(splits["test"]) for name, n in right.items()}
    # As the docstring of nli.py says.
    assert shares.pop("quantifiers, same verb") == pytest.approx(0.67, abs=0.01)
    assert len(shares) == 28 and max(shares.values()) < 0.45, shares


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


def test_samples_are_drawn_from_the_softmax_of_the_last_logits(tiny):
    config = replace(tiny, sample_tokens=5, eval_batch_size=4000)
    assert sample(Speaker(6, [3, 1, 4]), np.zeros((2, 3)), config).tolist() == [[3, 1, 4, 3, 1]] * 2
    speaker, logits = Speaker(4, [0]), torch.tensor([0.0, 1.0, 2.0, -1.0])
    speaker.forward = lambda ids: logits.expand(*ids.shape, 4)
    drawn = sample(speaker, np.zeros((4000, 5)), replace(config, sample_temperature=0.7, sample_tokens=1))[:, 0]
    p, shares = (logits / 0.7).softmax(0).numpy(), np.bincount(drawn, minlength=4) / 4000
    assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-3).all()


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
                              ids_of=lambda _: np.arange(folder.V), tokens=lambda *_: ids("a so b"))
    for language, text, there in (("zh", "a 猫 b", True), ("zh", "a lo b", False), ("de", "a Rat b", True),
                                  ("de", "a lo b", False), ("de", "a so b", False), ("de", "rat b", False)):
        assert is_in(language, several)(ids(text)) == there, (language, text)
