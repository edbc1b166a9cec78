"""
Natural language inference, the task of zero-shot transfer (ZS-CLT): published files, and a set from a small grammar.

    Every client kept the files. / Some program kept the images.               entailment
    Every client kept the images. / Every server kept the images.              neutral
    The images were removed by every client. / Every program kept the files.   contradiction
"""

import functools
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from corpus.folder import text_language
from corpus.languages import code_of
from corpus.readers import normalise, read_lines
from runtime.config import Config
from runtime.errors import UserError

LABELS = ("entailment", "neutral", "contradiction")


class Pair(NamedTuple):
    premise: str
    hypothesis: str
    label: int  # index into the names of its set's labels


# ---- Published files ----

# What the premise, the hypothesis and the label are called in XNLI, MultiNLI, SNLI, SICK and PAWS-X.
COLUMNS = (("premise", "sentence1", "sentence_A"), ("hypothesis", "hypo", "sentence2", "sentence_B"),
           ("gold_label", "label", "entailment_label", "entailment_judgment"))
# MultiNLI writes "contradictory", and the Hugging Face hub numbers.
NUMBER = {"entailment": 0, "neutral": 1, "contradiction": 2, "contradictory": 2, "0": 0, "1": 1, "2": 2}


def read(path: str, language: str = "en", several: bool = False) -> tuple[list[Pair], tuple[str, ...]]:
    """The pairs of a file in a language, and the names of its labels: LABELS, or ("0", "1") as in PAWS-X."""
    pairs: list[Pair] = []
    seen, languages, left_out = set(), set(), 0
    for where, row in _rows(path):
        # Without such a column all are in the language asked for, unless the file must hold several.
        written_in = str(row.get("language", "an unnamed one" if several else language))
        languages.add(written_in)
        if code_of(written_in) != code_of(language):
            continue
        columns = [next((name for name in names if name in row), "") for names in COLUMNS]
        premise, hypothesis = (normalise(str(row.get(column) or "").strip()) for column in columns[:2])
        label = str(row.get(columns[2])).lower()
        # Pairs without a gold label are left out, as their publishers advise, and where PAWS-X lacks a translation.
        if "" not in columns and (label in ("-", "-1", "none") or {premise, hypothesis} & {"", "NS"}):
            left_out += 1
            continue
        if "" in columns or label not in NUMBER or not all(isinstance(row[column], str) for column in columns[:2]):
            raise UserError(f"{where}: expected a column of each of {COLUMNS}, with a label of {', '.join(NUMBER)}, "
                            f"found {row}")
        seen.add(label)
        pairs.append(Pair(premise, hypothesis, NUMBER[label]))
    if left_out:
        print(f"{path}: {left_out:,} of {len(pairs) + left_out:,} pairs in {language!r} have no label or a sentence "
              "missing, and are left out")
    if not pairs:
        raise UserError(f"{path}: expected pairs in {language!r}, found as languages {', '.join(sorted(languages))}; "
                        "where each language has a file of its own, put {language} into its name")
    return pairs, ("0", "1") if seen <= {"0", "1"} else LABELS


def _rows(path: str) -> Iterator[tuple[str, dict]]:
    """The rows of a tab-separated file with a header, or of a .jsonl file, by column, each with its FILE:LINE."""
    header: list[str] = []
    for number, line in read_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if ".jsonl" not in path.lower() and not header:
            header = fields
        elif line.strip():
            try:
                row = dict(zip(header, fields, strict=True)) if header else json.loads(line, strict=False)
                row.items()
            except (AttributeError, RecursionError, ValueError) as e:
                raise UserError(f"{path}:{number}: expected a JSON object, or as many fields with tabs between them as "
                                f"the header has, found {line[:60]!r}") from e
            yield f"{path}:{number}", row


def load(config: Config,
         languages: Sequence[str]) -> tuple[tuple[str, ...], list[Pair], list[Pair], dict[str, list[Pair]]]:
    """The names of the labels, the training and the dev pairs in the pivot, and the test pairs of each language."""
    texts = {language: text_language(language, config.pivot) for language in languages}

    def pairs_of(split: str, text: str) -> tuple[list[Pair], tuple[str, ...]]:
        source = getattr(config, f"nli_{split}")
        if source != "builtin":
            several = split == "test" and len(set(texts.values())) > 1 and "{language}" not in source
            return read(source.replace("{language}", text), text, several)
        if code_of(text) != "en":
            raise UserError(f"nli_{split}=builtin is in English only; for {text!r} give a file, such as xnli.test.tsv")
        return builtin(split, config.nli_builtin if split == "train" else max(1, config.nli_builtin // 10)), LABELS

    train, dev = pairs_of("train", config.pivot), pairs_of("dev", config.pivot)
    tests = {text: pairs_of("test", text) for text in dict.fromkeys(texts.values())}
    for split, (_, labels) in {"dev": dev, **tests}.items():
        if labels != train[1]:
            raise UserError(f"the {split} pairs: expected the labels of nli_train, {train[1]}, found {labels}")
    return train[1], train[0], dev[0], {language: tests[text][0] for language, text in texts.items()}


# ---- The built-in set ----
# Subjects and objects may be replaced by more general or more specific ones, verbs by their opposites, and the passive
# says the same as the active. Each hypothesis comes with one premise for each label, with the same quantifier and as
# many words of its own: one sentence, the negations, or the quantifiers and the overlap do not tell the label. The
# shortcut that remains is part of the task: quantifiers and whether the verb is the same tell it in 67% of the pairs,
# quantifiers and which of the three words are the same in 87% (chance is 33%).

# Each word and the more specific ones under it.
SUBJECTS = {"program": ("server", "client", "parser", "script"), "user": ("developer", "author", "reader", "tester"),
            "function": ("method", "constructor", "generator", "wrapper")}
OBJECTS = {"numbers": ("integers", "floats", "sizes", "limits"), "objects": ("strings", "lists", "tuples", "arrays"),
           "names": ("keys", "labels", "tags", "paths"), "files": ("images", "archives", "modules", "pages")}
# Opposites: every subject does one or the other with every specific kind of object.
VERBS = (("accepted", "rejected"), ("kept", "removed"), ("included", "excluded"), ("used", "ignored"),
         ("saved", "lost"), ("added", "omitted"))
# How often each is drawn: what has no negation is learned first.
QUANTIFIERS = {"every": 3, "some": 3, "no": 1, "not every": 1}
GENERAL = {word: general for tree in (SUBJECTS, OBJECTS) for general, words in tree.items() for word in words}
OPPOSITE = {a: b for pair in VERBS for a, b in (pair, pair[::-1])}


class Statement(NamedTuple):
    quantifier: str  # a key of QUANTIFIERS
    subject: str
    verb: str
    object: str
    passive: bool    # only how it is written

    def __str__(self) -> str:
        by = f"{self.quantifier} {self.subject}"
        said = f"the {self.object} were {self.verb} by {by}" if self.passive else f"{by} {self.verb} the {self.object}"
        return said.capitalize() + "."


@functools.cache
def _deeds(verb: str, object: str, negated: bool) -> set[tuple[str, ...]]:
    """What one subject may have done, a verb for each specific object, if it did (or negated, did not) as is said."""
    kinds = OBJECTS[GENERAL.get(object, object)]
    return {deeds for deeds in itertools.product((verb, OPPOSITE[verb]), repeat=len(kinds)) if negated != all(
        done == verb for done, kind in zip(deeds, kinds) if object in (kind, GENERAL[kind]))}


def label(premise: Statement, hypothesis: Statement) -> int:
    """Index into LABELS, for a premise with "every" or "no". There are subjects of every kind."""
    # "No" is every one not, and "not every" some one not.
    given, asked = (_deeds(s.verb, s.object, s.quantifier.startswith("no")) for s in (premise, hypothesis))
    covers = premise.subject in (hypothesis.subject, GENERAL.get(hypothesis.subject))
    meets = covers or hypothesis.subject == GENERAL.get(premise.subject)
    of_all = hypothesis.quantifier in ("every", "no")
    if given <= asked and (covers if of_all else meets):
        return 0
    if given.isdisjoint(asked) and (meets if of_all else covers):
        return 2
    return 1


def _premises(rng: random.Random, topic: list[Statement], hypothesis: Statement, used: dict) -> list[Statement]:
    """Premises of one quantifier and one voice, one for each label, that fit the hypothesis; or none."""
    # With "some" or "not every" only two of the three labels could be right.
    quantifier = "no" if rng.random() < 0.25 else "every"
    passive = rng.random() < 0.5
    # By how many words they share with the hypothesis, and by label.
    groups: dict[int, list[list]] = defaultdict(lambda: [[], [], []])
    for premise in topic:
        if (premise.quantifier, premise.passive) == (quantifier, passive) and premise != hypothesis:
            shared = sum(a == b for a, b in zip(premise[1:4], hypothesis[1:4]))
            # How often with each label this form was used: its quantifier, and whether its words are specific ones.
            times = used[premise.quantifier, premise.subject in GENERAL, premise.object in GENERAL]
            i = label(premise, hypothesis)
            groups[shared][i].append((times[i] - min(times), rng.random(), premise, times))
    # The three share as many words, and are of forms that were not used much more with their labels than with another.
    triples = [[min(of_label) for of_label in group] for group in groups.values() if all(group)]
    best = min(triples, key=lambda triple: sum(excess for excess, *_ in triple), default=[])
    if sum(excess for excess, *_ in best) > 10:
        return []
    for i, (_, _, _, times) in enumerate(best):
        times[i] += 1
    return [premise for _, _, premise, _ in best]


def builtin(split: str, count: int) -> list[Pair]:
    """`count` hypotheses of the split "train", "dev" or "test", each with three premises, one per label, shuffled."""
    rng = random.Random(f"nli {split}")
    # Each topic belongs to one split, so that no sentence is in two.
    places = {"dev": (0,), "test": (1,), "train": range(2, 10)}[split]
    drawn = []
    # A topic is a general subject, opposites, and a general object: all statements about them.
    for (i, s), (j, verbs), (k, o) in itertools.product(enumerate(SUBJECTS), enumerate(VERBS), enumerate(OBJECTS)):
        if (7 * i + 3 * j + k) % 10 in places:
            words = (s, *SUBJECTS[s]), verbs, (o, *OBJECTS[o])
            topic = [Statement(*choice) for choice in itertools.product(QUANTIFIERS, *words, (False, True))]
            drawn += [(topic, hypothesis) for hypothesis in topic]
    # The largest of as many random numbers as a quantifier weighs: it comes first that many times as often.
    drawn.sort(key=lambda item: -max(rng.random() for _ in range(QUANTIFIERS[item[1].quantifier])))
    used: dict[tuple, list[int]] = defaultdict(lambda: [0, 0, 0])
    pairs: list[Pair] = []
    for topic, hypothesis in drawn:
        premises = _premises(rng, topic, hypothesis, used)
        pairs += [Pair(str(premise), str(hypothesis), i) for i, premise in enumerate(premises)]
        if len(pairs) == len(LABELS) * count:
            return sorted(pairs, key=lambda _: rng.random())
    raise UserError(f"nli_builtin: expected so few that {count} {split} hypotheses suffice, found "
                    f"{len(pairs) // len(LABELS)}; use a smaller one")
