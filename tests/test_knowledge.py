"""Facts for CLKA: templates, names, the balance that makes chance 25%, and how repetitions are spread."""

import itertools
import re
import string
from collections import Counter

import pytest

from runtime.errors import UserError
from tasks.facts import ENDINGS, LANGUAGES, RELATIONS, STOPLIST, Fact, in_training_order, make_facts, statement

# count, frequencies: one and several frequencies, 4 and 8 objects, few and all relations, even and uneven shares
SETTINGS = [(4, (1,)), (5, (3,)), (20, (1, 2, 4, 8)), (64, (1,)), (101, (1, 4, 16)), (128, (40,)), (256, (2, 5)),
            (512, (1, 2, 4, 8)), (1003, (1, 2, 3, 4, 5))]


def distance(a: str, b: str) -> int:
    """Levenshtein's, from the definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def names(facts) -> list[str]:
    """Every different word of the facts' names."""
    words = set()
    for fact in facts:
        for name in (fact.subject, fact.object, *fact.distractors):
            words.update(name.split())
    return sorted(words)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.pid)
def test_templates(relation):
    script = {"en": r"[A-Za-z]", "de": r"[A-Za-zÄÖÜäöüß]", "zh": r"[\u4e00-\u9fff]", "ru": r"[А-Яа-яЁё]",
              "ar": r"[\u0621-\u0652]"}
    punctuation = {"zh": "", "ru": "—", "en": "-"}  # inside a sentence
    assert tuple(relation.templates) == LANGUAGES == tuple(script)
    for language, template in relation.templates.items():
        assert sorted(f for _, f, _, _ in string.Formatter().parse(template) if f is not None) == ["object", "subject"]
        text = template.format(subject="Velkolo Tanzisk", object="Brinpodor")
        assert text.count("Velkolo Tanzisk") == text.count("Brinpodor") == 1
        mark = "。" if language == "zh" else "."
        assert template.endswith("{object}" + mark) and template.count(mark) == 1
        own = template[:-1].replace("{subject}", "").replace("{object}", "")
        own = own.replace("ـ", "") if language == "ar" else own  # the joiner after the preposition in "لـ X"
        allowed = f"(?:{script[language]}|[{re.escape(punctuation.get(language, ''))} ])+"
        assert re.fullmatch(allowed, own), own
        assert "  " not in template and template == template.strip()
        if language == "zh":
            assert " " not in template
        else:  # a name is a word of its own
            assert re.search(r"(^| )\{subject\} ", template) and " {object}" in template


def test_relations():
    assert len(RELATIONS) >= 30
    assert len({r.pid for r in RELATIONS}) == len({r.name for r in RELATIONS}) == len(RELATIONS)
    for relation in RELATIONS:
        assert re.fullmatch(r"P[1-9]\d{0,4}", relation.pid)
        assert relation.kind == "person" or relation.kind in ENDINGS
    for language in LANGUAGES:  # two relations are never stated in the same words
        assert len({r.templates[language] for r in RELATIONS}) == len(RELATIONS)


def training_statements(facts: list[Fact], language: str, seed: int) -> list[str]:
    return [statement(fact, language) for fact in in_training_order(facts, seed)]


def test_the_same_facts_everywhere():
    facts = make_facts(64, (1, 4), 1)
    assert facts == make_facts(64, [1, 4], 1)
    assert facts[0].subject == "Glerzilo Tulbisk"
    assert (facts[0].object, facts[0].distractors) == ("Velmador", ("Zergador", "Grenkudor", "Farvador"))
    assert statement(facts[-1], "en") == "Birbolo Holbesk works in the field of Zolbov."
    assert training_statements(facts, "en", 1)[:2] == [
        "Vorpulo Marbosk works in the field of Grelkov.", "Zenkolo Porposk was born in Zergador."]
    for seed in (2, -1, 0):
        assert facts != make_facts(64, (1, 4), seed)


@pytest.mark.parametrize("count, frequencies", SETTINGS)
def test_facts(count, frequencies):
    facts = make_facts(count, frequencies, 3)
    assert [fact.index for fact in facts] == list(range(count))
    assert [fact.frequency for fact in facts] == [frequencies[i % len(frequencies)] for i in range(count)]
    assert len({fact.subject for fact in facts}) == count
    for fact in facts:
        assert len({fact.object, *fact.distractors}) == 4
    objects = {}  # P number -> its objects
    for fact in facts:
        objects.setdefault(fact.relation.pid, set()).update((fact.object, *fact.distractors))
    assert all(len(pool) in (4, 8) for pool in objects.values())
    together = [name for pool in objects.values() for name in pool]
    assert len(set(together)) == len(together)  # no object belongs to two relations


@pytest.mark.parametrize("count, frequencies", SETTINGS)
def test_objects_are_balanced(count, frequencies):
    facts = make_facts(count, frequencies, 4)
    pool = {o for fact in facts for o in (fact.object, *fact.distractors)}
    for part in [facts] + [[f for f in facts if f.frequency == frequency] for frequency in frequencies]:
        answers = Counter(fact.object for fact in part)
        wrong = Counter(o for fact in part for o in fact.distractors)
        assert set(answers) == pool
        assert max(answers.values()) - min(answers.values()) <= 1
        assert max(wrong.values()) - min(wrong.values()) <= 3
        if len(part) % len(pool) == 0:
            assert all(answers[o] * 3 == wrong[o] for o in pool)


@pytest.mark.parametrize("count, frequencies", [(128, (40,)), (512, (1, 2, 4, 8)), (120, (1, 2))])
def test_blind_model_is_at_chance(count, frequencies):
    """Whatever a model prefers among objects, if it does not see the subject it is right in exactly one of four."""
    facts = make_facts(count, frequencies, 5)
    preferences = [lambda o: o, lambda o: o[::-1], lambda o: (len(o), o[1:]),
                   Counter({f.object: f.index for f in facts}).__getitem__]  # the last: what it saw last
    for frequency in frequencies:
        part = [fact for fact in facts if fact.frequency == frequency]
        for liking in preferences:
            right = sum(all(liking(fact.object) > liking(o) for o in fact.distractors) for fact in part)
            assert right * 4 == len(part)


def test_every_object_answers_two_facts_before_another_relation_is_used():
    facts = make_facts(96, (1,), 1)
    assert len({fact.relation.pid for fact in facts}) == 6
    assert set(Counter(fact.object for fact in facts).values()) == {2}


def test_names():
    facts = make_facts(300, (1,), 6)
    words = names(facts)
    assert len(words) > 550
    for word in words:
        assert re.fullmatch(r"[A-Z][a-z]{4,9}", word) and word not in STOPLIST
        assert len(re.findall("[aeiou]+", word)) in (2, 3)
    persons = {name for fact in facts for name in (fact.subject, *(fact.distractors if fact.relation.kind == "person" else ()))}
    assert all(len(name.split()) == 2 for name in persons)
    assert all(len(fact.object.split()) == (2 if fact.relation.kind == "person" else 1) for fact in facts)
    by_length = {}
    for word in words:
        by_length.setdefault(len(word), []).append(word)
    for length, group in by_length.items():  # words whose lengths differ by two or more are two apart anyway
        others = by_length.get(length + 1, [])
        for i, a in enumerate(group):
            for b in group[i + 1:]:
                assert sum(x != y for x, y in zip(a, b)) > 1, (a, b)
            for b in others:
                assert all(b[:k] + b[k + 1:] != a for k in range(len(b))), (a, b)
    sample = words[::12]
    assert min(distance(a, b) for i, a in enumerate(sample) for b in sample[i + 1:]) > 1


def test_small_sets_share_no_part_of_a_subject():
    facts = make_facts(200, (1,), 7)
    assert len({fact.subject.split()[0] for fact in facts}) == len({fact.subject.split()[1] for fact in facts}) == 200


def test_many_facts():
    facts = make_facts(20_000, (1, 2, 4, 8), 8)
    assert len({fact.subject for fact in facts}) == 20_000
    assert {fact.relation.pid for fact in facts} == {relation.pid for relation in RELATIONS}


def test_statement():
    fact = make_facts(32, (1,), 9)[5]
    for language in LANGUAGES:
        true = statement(fact, language)
        assert true.count(fact.subject) == true.count(fact.object) == 1
        for other in fact.distractors:
            assert statement(fact, language, other) == true.replace(fact.object, other)
    assert statement(fact, "en", object=fact.object) == statement(fact, "en")


def test_training_statements_come_in_rounds():
    facts = make_facts(40, (7,), 10)
    statements = training_statements(facts, "de", 1)
    truth = sorted(statement(fact, "de") for fact in facts)
    rounds = [statements[i:i + 40] for i in range(0, len(statements), 40)]
    assert len(rounds) == 7 and all(sorted(part) == truth for part in rounds)
    assert len({tuple(part) for part in rounds}) == 7  # and every round has its own order
    seen = Counter()
    for position, text in enumerate(statements, 1):
        seen[text] += 1
        assert all(abs(seen[t] - position * 7 / len(statements)) <= 1 for t in truth)


def test_training_statements_of_several_frequencies():
    facts = make_facts(60, (1, 3, 12), 11)
    statements = training_statements(facts, "zh", 2)
    counts = Counter(statements)
    assert all(counts[statement(fact, "zh")] == fact.frequency for fact in facts) and len(counts) == 60
    for fact in facts:  # as far apart as they can be: one in every n-th, give or take what the others' places allow
        places = [i / len(statements) for i, text in enumerate(statements) if text == statement(fact, "zh")]
        assert all(k / fact.frequency - 0.05 <= place <= (k + 1) / fact.frequency + 0.05 for k, place in enumerate(places))


def test_training_statements_order():
    facts = make_facts(16, (1, 2), 12)
    english = training_statements(facts, "en", 3)
    assert english == training_statements(facts, "en", 3) != training_statements(facts, "en", 4)
    subject = {statement(f, language): f.subject for f in facts for language in ("en", "ar")}
    assert [subject[text] for text in english] == [subject[text] for text in training_statements(facts, "ar", 3)]
    assert training_statements([], "en", 3) == []


def test_kinds_of_facts_are_languages_and_periods_too():
    facts = make_facts(96, (1, 5), 2, languages=("en", "clone"), periods=3)
    kinds = Counter((fact.frequency, fact.language, fact.period) for fact in facts)
    assert kinds == dict.fromkeys(itertools.product((1, 5), ("en", "clone"), range(3)), 8)
    for kind in kinds:  # the four choices of a fact are each the answer of one of them
        part = [fact for fact in facts if (fact.frequency, fact.language, fact.period) == kind]
        for fact in part:
            choices = {fact.object, *fact.distractors}
            assert Counter(f.object for f in part if {f.object, *f.distractors} == choices) == dict.fromkeys(choices, 1)
    assert make_facts(96, (1, 5), 2) != facts and {f.subject for f in make_facts(96, (1, 5), 2)} == {f.subject for f in facts}
    order = in_training_order(facts, 1)
    assert [fact.period for fact in order] == sorted(fact.period for fact in order) and Counter(order) == {f: f.frequency for f in facts}
    with pytest.raises(UserError, match="at least 48"):
        make_facts(47, (1, 5), 2, languages=("en", "clone"), periods=3)


@pytest.mark.parametrize("count, frequencies, said", [
    (3, (1,), "at least 4"),
    (0, (1,), "at least 4"),
    (-4, (1,), "at least 4"),
    (15, (1, 2, 4, 8), "at least 16"),
    (40_001, (1,), "40000"),
    (16, (), "fact_frequencies"),
    (16, (4, 0), "fact_frequencies"),
    (16, (-1,), "fact_frequencies"),
    (16, (1.5,), "fact_frequencies"),
])
def test_impossible_settings(count, frequencies, said):
    with pytest.raises(UserError, match=said):
        make_facts(count, frequencies, 1)


def test_language_without_templates():
    facts = make_facts(8, (1,), 1)
    for attempt in (lambda: statement(facts[0], "fr"), lambda: training_statements(facts, "clone", 1)):
        with pytest.raises(UserError, match="en, de, zh, ru, ar"):
            attempt()
