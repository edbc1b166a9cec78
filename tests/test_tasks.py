"""What is asked of a model beside text: facts, inference, mixed script and kinds of token, each by its definition."""

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import error, write

from corpus.folder import Folder
from corpus.languages import code_of
from corpus.table import make_table
from corpus.tokenizer import encode
from runtime.config import Config
from tasks.analysis import is_in, mixed_script, sample, token_kinds
from tasks.facts import Fact, in_training_order, make_facts, read_relations, rows_of_facts, statement
from tasks.nli import LABELS, OBJECTS, QUANTIFIERS, SUBJECTS, Pair, Statement, builtin, label, load, read

# ---- facts ----
RELATIONS = read_relations()
SCRIPTS = {"en": r"[A-Za-z -]", "de": r"[A-Za-zÄÖÜäöüß ]", "zh": r"[\u4e00-\u9fff ]", "ru": r"[А-Яа-яЁё— ]",
           "ar": r"[\u0621-\u0652 ]"}


def facts_of(count: int, frequencies: tuple[int, ...] = (1,), languages=("en",), periods=1) -> list[Fact]:
    return make_facts(Config(fact_count=count, fact_frequencies=frequencies, fact_languages=languages,
                             fact_periods=periods))


def test_sentences_are_in_their_script_alone_with_the_object_last_and_names_as_words_of_their_own():
    assert tuple(RELATIONS[0]) == ("property", "name", *SCRIPTS)
    for relation, (language, script) in itertools.product(RELATIONS, SCRIPTS.items()):
        sentence, mark = relation[language], "。" if language == "zh" else "."
        own = sentence.replace("{subject}", "", 1).replace("{object}" + mark, "", 1)
        # The joiner after the Arabic preposition in "لـ X".
        assert re.fullmatch(script + "+", own.replace("ـ", "")), own
        assert sentence.endswith("{object}" + mark) and "  " not in sentence and sentence == sentence.strip()
        assert re.search(r"(^| )\{subject\} ", sentence) and " {object}" in sentence
        assert [each[language] for each in RELATIONS].count(sentence) == 1


def test_the_same_facts_everywhere():
    first = facts_of(64, (1, 4))[0]
    assert (first.subject, first.object, first.distractors) == ("Ganbulo Bonbisk", "time", ("day", "way", "man"))
    software = make_facts(Config(fact_count=64, fact_frequencies=(1, 4), fact_objects="software"))
    assert (software[0].object, statement(software[-1], "en")) == ("name", "Dangilo Trenzusk works for tree.")


# One and several frequencies, 4 and 8 objects, few and all relations, several languages and periods, uneven shares.
@pytest.mark.parametrize("count, frequencies, languages, periods", [
    (4, (1,), ("en",), 1), (101, (1, 4, 16), ("en",), 1), (192, (1, 5), ("en", "clone"), 3),
    (1003, (1, 2, 3, 4, 5), ("en",), 1)])
def test_facts_of_every_kind_have_their_objects_equally_often(count, frequencies, languages, periods):
    facts = facts_of(count, frequencies, languages, periods)
    kinds = list(itertools.product(range(periods), languages, frequencies))
    assert [(f.period, f.language, f.frequency) for f in facts] == [kinds[i % len(kinds)] for i in range(count)]
    assert len({fact.subject for fact in facts}) == count
    # An object of one relation is another thing than the same word as an object of another.
    pairs = {(o, fact.relation["property"]) for fact in facts for o in (fact.object, *fact.distractors)}
    assert set(Counter(relation for _, relation in pairs).values()) <= {4, 8}
    for some in [facts] + [facts[k::len(kinds)] for k in range(len(kinds))]:
        answers = Counter((fact.object, fact.relation["property"]) for fact in some)
        assert len(answers) == len(pairs) and max(answers.values()) - min(answers.values()) <= 1
        # A model that ignores the subject, and likes some objects better than others, knows one in four.
        for liking in (str, lambda o: o[::-1], lambda o: (len(o), o[1:])):
            right = sum(all(liking(fact.object) > liking(o) for o in fact.distractors) for fact in some)
            assert abs(right - len(some) / 4) < 1 + (count % (4 * len(kinds)) > 0) * len(pairs) / 4


def test_no_two_names_are_a_letter_apart_and_small_sets_of_facts_share_no_part_of_a_subject():
    facts = facts_of(300)
    words = {word for fact in facts for word in fact.subject.split()}
    assert len(words) == 400 and all(re.fullmatch(r"[A-Z][a-z]{4,6}(lo|sk)", word) for word in words)
    near = Counter(shape for word in words for shape in {word} | {word[:i] + word[i + 1:] for i in range(len(word))})
    assert max(near.values()) == 1
    # As many as there are parts of names.
    few = [fact.subject.split() for fact in facts_of(200)]
    assert len({given for given, _ in few}) == len({family for _, family in few}) == 200


def test_a_statement_differs_from_its_distractors_in_the_object_alone():
    fact = facts_of(32)[5]
    for language in SCRIPTS:
        true = statement(fact, language)
        assert true.count(fact.subject) == true.count(fact.object) == 1
        for other in fact.distractors:
            assert statement(fact, language, other) == true.replace(fact.object, other)
    assert statement(fact, "zho") == statement(fact, "zh")
    assert "'fr'" in error(statement, fact, "fra")


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
    assert "11 rows of the 20" in error(rows_of_facts, config, 11, [110], 1)


@pytest.mark.parametrize("count, frequencies", [(3, (1,)), (15, (1, 2, 4, 8)), (40_001, (1,)), (16, (4, 0))])
def test_impossible_settings_and_relations_are_refused(tmp_path, count, frequencies):
    assert "fact_frequencies: " in (text := error(facts_of, count, frequencies)) and "fact_count: " in text
    good = "property\tname\ten\nP2\tother\t{subject} is {object}.\n"
    for line in ("P1\tname", "P1\tname\t{subject} is {subject}."):
        assert "relations.tsv:3: " in error(read_relations, write(tmp_path / f"{len(line)}relations.tsv", good + line))


# ---- inference: published files ----
XNLI = ("language\tgold_label\tsentence1\tsentence2\tgenre\nde\tneutral\tEin Hund.\tEin Tier.\tx\n"
        "en\tcontradiction\tA dog.\tNo dog.\tx\nen\tentailment\tA \"dog.\tAn animal.\tx\n")
SNLI = "\n".join(json.dumps({"gold_label": label, "sentence1": "x", "sentence2": "y"}) for label in ("-", "entailment"))
HUB = "\n".join(json.dumps({"premise": premise, "hypothesis": "y", "label": label}) for premise, label in (
    ("a", 2), (None, 0), (" e\u0301 ", 1), ("b", -1), ("c", 0)))


@pytest.mark.parametrize("name, text, language, pairs", [
    ("xnli.dev.tsv", XNLI, "en", [Pair("A dog.", "No dog.", 2), Pair('A "dog.', "An animal.", 0)]),
    ("xnli.dev.tsv.gz", XNLI, "deu", [Pair("Ein Hund.", "Ein Tier.", 1)]),
    ("multinli.train.en.tsv.xz", "premise\thypo\tlabel\na b\tc\tcontradictory\r\nd\te\tneutral\n", "en",
     [Pair("a b", "c", 2), Pair("d", "e", 1)]),
    ("SICK.txt", "pair_ID\tsentence_A\tsentence_B\tentailment_judgment\n1\ta\tb\tENTAILMENT\n", "en",
     [Pair("a", "b", 0)]),
    ("snli.jsonl.gz", SNLI, "en", [Pair("x", "y", 0)]),
    # As the Hugging Face hub numbers labels; without a sentence, in NFD, and between spaces.
    ("hub.jsonl", HUB, "en", [Pair("a", "y", 2), Pair("é", "y", 1), Pair("c", "y", 0)]),
    ("paws.tsv", "id\tsentence1\tsentence2\tlabel\n1\tNS\tb\t0\n2\ta\tNS\t1\n3\ta\t \t1\n4\tNSA\tb\t1\n", "fr",
     [Pair("NSA", "b", 1)]),
])
def test_published_formats(tmp_path, capsys, name, text, language, pairs):
    labels = ("0", "1") if "id\t" in text else LABELS
    assert read(write(tmp_path / name, text), language) == (pairs, labels)
    left_out = {"hub.jsonl": "2 of 5", "paws.tsv": "3 of 4", "snli.jsonl.gz": "1 of 2"}.get(name, "")
    assert (f"{name}: {left_out} pairs" in capsys.readouterr().out) == bool(left_out)


@pytest.mark.parametrize("name, text, where", [
    *(("a.tsv", text, "a.tsv:2: ") for text in (
        "premise\thypothesis\tlabel\nx\ty\tmaybe\n", "premise\thypothesis\tlabel\nx\ty\n", "text\tlabel\nx\t1\n")),
    ("a.tsv", "premise\thypothesis\tlabel\n", "a.tsv: "), ("a.tsv", XNLI.replace("en\t", "fr\t"), "de, fr"),
    *(("a.jsonl", text, "a.jsonl:1: ") for text in (
        "{\n", "[1]\n", '{"premise": 3, "hypothesis": "x", "label": "neutral"}\n'))])
def test_a_bad_line_of_pairs_is_named(tmp_path, name, text, where):
    assert where in error(read, write(tmp_path / name, text))


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
    for test, targets, why in (("builtin", ("de",), "nli_test=builtin"), (english, ("de",), "put {language} into"),
                               (paws, ("clone",), "labels of nli_train")):
        assert why in error(load, replace(config, nli_test=test), ("en", *targets))
    assert "nli_train=builtin" in error(load, replace(config, pivot="de"), ("de", "en"))


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
    assert "nli_builtin" in error(builtin, "dev", 5000)


def sees(pair: Pair) -> dict[str, object]:
    """What each of some shortcuts sees of a pair, by name."""
    (quantifier, *premise), (asked, *hypothesis) = words_of(pair.premise), words_of(pair.hypothesis)
    both, same = (quantifier, asked), [a == b for a, b in zip(premise, hypothesis)]
    return {"the premise": (quantifier, *premise[:2]), "the hypothesis": (asked, *hypothesis),
            "form of the premise": (quantifier, [word in SUBJECTS or word in OBJECTS for word in premise]),
            "quantifiers and voices": (*both, pair.premise.startswith("The "), pair.hypothesis.startswith("The ")),
            "overlap": (*both, sum(same)), "same verb": (*both, same[1]), "which words are the same": (*both, *same)}


def test_only_the_shortcut_that_is_part_of_the_task_tells_the_label(splits):
    """A table of the most frequent label for what a shortcut sees, from the training pairs, on the test pairs."""
    labels: dict = defaultdict(Counter)
    for pair in splits["train"]:
        for shortcut, seen in sees(pair).items():
            labels[shortcut, str(seen)][pair.label] += 1
    right: Counter = Counter()
    for pair in splits["test"]:
        for shortcut, seen in sees(pair).items():
            of_label = labels[shortcut, str(seen)]
            right[shortcut] += of_label.most_common(1)[0][0] == pair.label if of_label else 1 / 3
    shares = {shortcut: n / len(splits["test"]) for shortcut, n in right.items()}
    # As nli.py says.
    assert shares.pop("same verb") == pytest.approx(0.67, abs=0.01)
    assert shares.pop("which words are the same") == pytest.approx(0.87, abs=0.01)
    assert max(shares.values()) < 0.45, shares


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
        word = any(c.isalnum() or c == "\ufffd" for c in surface.decode("utf-8", "replace"))
        assert kind == (next(i for i, end in enumerate(quarters) if abs(a) <= end) if a else 4 if word else 5)


class Speaker:
    """A model: whatever it reads, it says the next of its tokens."""

    block_size = 8

    def __init__(self, vocab_size: int, says: list[int]):
        self.wte = self.lm_head = SimpleNamespace(weight=torch.eye(vocab_size))
        self.says = itertools.cycle(says)

    def __call__(self, ids):
        hidden = torch.zeros(*ids.shape, len(self.wte.weight))
        hidden[:, -1, next(self.says)] = 100.0
        return hidden


def test_samples_are_drawn_from_the_softmax_of_the_last_logits(tiny):
    config = replace(tiny, sample_tokens=5, eval_batch_size=4000)
    assert sample(Speaker(6, [3, 1, 4]), np.zeros((2, 3)), config).tolist() == [[3, 1, 4, 3, 1]] * 2
    speaker, logits = Speaker(4, [0]), torch.tensor([0.0, 1.0, 2.0, -1.0])
    speaker.lm_head = SimpleNamespace(weight=logits[:, None] / 100 * speaker.wte.weight[0])
    drawn = sample(speaker, np.zeros((4000, 5)), replace(config, sample_tokens=1))[:, 0]
    p, shares = logits.softmax(0).numpy(), np.bincount(drawn, minlength=4) / 4000
    assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-3).all()


@pytest.mark.parametrize("in_clone, share", [(0, 0.0), (1, 1.0)])
def test_a_continuation_is_mixed_when_any_token_is_of_the_target(tiny, folder, in_clone, share):
    says = [5, folder.end_of_text, 9] + in_clone * [int(folder.ids_of("clone")[7])]
    result = mixed_script(Speaker(folder.vocab_size, says), folder, replace(tiny, sample_count=10, sample_tokens=8))
    assert result == {"clone": {"share": share, "n": 10}}


def words_folder(folder: Folder, pairs: dict[str, str], pivot: str, target: str, text: str) -> SimpleNamespace:
    """What is_in sees of a folder in two languages that share the ids of another one, with pairs of words as table."""
    table = make_table([[[encode(folder.encoding, f" {word}")] for word in pair] for pair in pairs.items()],
                       [1] * len(pairs), (pivot, target))
    return SimpleNamespace(V=folder.V, end_of_text=folder.end_of_text, encoding=folder.encoding, table=table,
                           languages=(pivot, target), pivot=pivot, tokens=lambda *_: encode(folder.encoding, text))


# In the languages of Table 6 that have another script than English, and in more.
CATS = {"zh": "猫", "ru": "кот", "ar": "قط", "el": "γάτα", "hi": "बिल्ली", "th": "แมว", "ja": "ねこ", "ko": "고양이"}


@pytest.mark.parametrize("language, own", [*CATS.items(), ("zh_Hans", "猫"), ("ben", "ি"), ("ja", "ネコ")])
def test_a_continuation_is_mixed_when_any_character_is_of_the_targets_script(folder, language, own):
    mixed = is_in(language, words_folder(folder, {"cat": own}, "en", language, "a cat"))
    assert mixed(encode(folder.encoding, own)) and mixed(encode(folder.encoding, f"The {own} 12"))
    # Japanese and Korean have Chinese characters too.
    code = code_of(language)
    others = [cat for other, cat in CATS.items() if other != code and (other != "zh" or code not in ("ja", "ko"))]
    assert not mixed(encode(folder.encoding, f"The “cat”, {others}: naïve… 12 €!"))


@pytest.mark.parametrize("pivot, language, pairs, text, texts", [("en", "de", {"rat": "der", "lo": "so"}, "a so b",
     {"a Rat b": False, "a DER b": True, "der b": False, "a der": False, "a so b": False, "a der7 b": False}),
    ("en", "tr", {"good": "iyi", "cat": "kedi"}, "it", {"a İyi b": True, "a iyi.": True, "a good b": False}),
    # In one script that joins marks to letters, only whole words count.
    ("hi", "mr", {"बिल्ली": "मांजर", "मैं": "मी"}, "मैं बिल्ली",
     {"क मांजर ख": True, "क मांजरा ख": False, "क मी, ख": True})])
def test_in_the_pivots_script_a_whole_word_must_be_the_targets_alone(folder, pivot, language, pairs, text, texts):
    mixed = is_in(language, words_folder(folder, pairs, pivot, language, text))
    assert {each: mixed(encode(folder.encoding, each)) for each in texts} == texts
