"""
Natural language inference, the task of zero-shot transfer (ZS-CLT): readers of the published files, and a set that
needs none.

    read("multinli.train.en.tsv")                # English MultiNLI as XNLI publishes it
    read("xnli.test.tsv.gz", language="de")      # one language of XNLI
    builtin("train", 3000), builtin("dev", 300), builtin("test", 300)

The built-in set comes from a small grammar in the words of the built-in text, programs and what they do with data:

    Every client kept the files. / Some program kept the images.               entailment
    Every client kept the images. / Every server kept the images.              neutral
    The images were removed by every client. / Every program kept the files.   contradiction

Subjects and objects may be replaced by more general or more specific ones, verbs by their opposites, and the passive
says the same as the active: `label` decides by these rules alone. Each hypothesis comes with one premise for each
label. The three have the same quantifier and share as many words with it, and what a premise looks like is balanced,
so that one sentence, the negations, or the quantifiers and the overlap do not tell the label.
"""

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from corpus.folder import text_language
from corpus.readers import read_lines
from runtime.config import Config
from runtime.errors import UserError

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Pair:
    premise: str
    hypothesis: str
    label: int  # index into the names of its set's labels


# ---- Published files ----

# What the columns of a .tsv and the fields of a .jsonl are called in XNLI, MultiNLI, SNLI, SICK and PAWS-X.
PREMISE = ("premise", "sentence1", "sentence_A")
HYPOTHESIS = ("hypothesis", "hypo", "sentence2", "sentence_B")
LABEL = ("gold_label", "label", "entailment_label", "entailment_judgment")
SPELLINGS = {"contradictory": "contradiction"}


def read(path: str, language: str | None = None, several: bool = False) -> tuple[list[Pair], tuple[str, ...]]:
    """
    The pairs of a tab-separated file with a header, or of a .jsonl file, compressed or not; and the names of its
    labels: LABELS, or ("0", "1") as in PAWS-X.

    `language` keeps the rows whose column `language` says so. A file without that column is in that language, unless
    it must hold `several`. Pairs without a gold label ("-") are left out, as their publishers advise.
    """
    pairs: list[Pair] = []
    labels: tuple[str, ...] = ()
    languages: set[str] = set()
    for number, row in _rows(path):
        where = f"{path}:{number}"
        if several and "language" not in row:
            raise UserError(f"{where}: expected a column \"language\" that says which pairs are in {language!r}, found "
                            f"{', '.join(row)}; for a file for each language put {{language}} into its name")
        languages.add(str(row.get("language", language)))
        if language is not None and row.get("language", language) != language:
            continue
        premise, hypothesis, label = (
            next((row[name] for name in names if isinstance(row.get(name), str | int)), None)
            for names in (PREMISE, HYPOTHESIS, LABEL))
        if not isinstance(premise, str) or not isinstance(hypothesis, str) or label is None:
            raise UserError(f"{where}: expected a premise ({', '.join(PREMISE)}), a hypothesis "
                            f"({', '.join(HYPOTHESIS)}) and a label ({', '.join(LABEL)}), found {', '.join(row)}")
        if label == "-":
            continue
        label = SPELLINGS.get(str(label).lower(), str(label).lower())
        labels = labels or (("0", "1") if label in ("0", "1") else LABELS)
        if label not in labels:
            raise UserError(f"{where}: expected one of the labels {', '.join(labels)}, found {label!r}")
        pairs.append(Pair(premise, hypothesis, labels.index(label)))
    if not pairs:
        raise UserError(f"{path}: no labelled pairs in {language or 'it'}; "
                        f"its languages are {', '.join(sorted(languages)) or 'none'}")
    return pairs, labels


def _rows(path: str) -> Iterator[tuple[int, dict]]:
    """The rows of a file by column name, with their line numbers."""
    header = None
    for number, line in read_lines(path):
        line = line.rstrip("\r\n")
        if not line:
            continue
        if ".jsonl" in path.lower():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise UserError(f"{path}:{number}: not JSON ({getattr(e, 'msg', e)})") from e
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, found {line[:60]!r}")
            yield number, row
        elif header is None:
            header = line.split("\t")
        else:
            fields = line.split("\t")
            if len(fields) != len(header):
                raise UserError(f"{path}:{number}: expected {len(header)} tab-separated fields as in the header, "
                                f"found {len(fields)}")
            yield number, dict(zip(header, fields))


def load(config: Config,
         languages: Sequence[str]) -> tuple[tuple[str, ...], list[Pair], list[Pair], dict[str, list[Pair]]]:
    """The names of the labels, the training and the dev pairs in the pivot, and the test pairs of each language."""
    texts = {language: text_language(language, config.pivot) for language in languages}
    several = len(set(texts.values())) > 1

    def pairs_of(split: str, text: str, several: bool = False) -> tuple[list[Pair], tuple[str, ...]]:
        source = getattr(config, f"nli_{split}")
        if source != "builtin":
            return read(source.replace("{language}", text), text, several and "{language}" not in source)
        if text != config.pivot:
            raise UserError(f"nli_{split}=builtin is in English only; for {text!r} give a file, such as xnli.test.tsv")
        return builtin(split, config.nli_builtin if split == "train" else max(1, config.nli_builtin // 10)), LABELS

    (train, labels), dev = pairs_of("train", config.pivot), pairs_of("dev", config.pivot)
    tests = {text: pairs_of("test", text, several) for text in dict.fromkeys(texts.values())}
    for name, (_, found) in {"dev": dev, **tests}.items():
        if found != labels:
            raise UserError(f"the {name} pairs: expected the labels of the training pairs ({', '.join(labels)}), found "
                            f"{', '.join(found)}")
    return labels, train, dev[0], {language: tests[text][0] for language, text in texts.items()}


# ---- The built-in set ----

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
# What a premise begins with: with any other, only two of the three labels could be right.
UNIVERSAL = ("every", "no")
# The premises of a hypothesis may together have forms so many times more used with their labels than with another.
IMBALANCE = 10

GENERAL = {word: general for tree in (SUBJECTS, OBJECTS) for general, words in tree.items() for word in words}
OPPOSITE = {a: b for pair in VERBS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True, order=True)
class Statement:
    quantifier: str  # a key of QUANTIFIERS
    subject: str
    verb: str
    object: str
    passive: bool    # only how it is written

    def __str__(self) -> str:
        subject = f"{self.quantifier} {self.subject}"
        text = f"{subject} {self.verb} the {self.object}"
        if self.passive:
            text = f"the {self.object} were {self.verb} by {subject}"
        return text.capitalize() + "."

    @property
    def words(self) -> tuple[str, str, str]:
        return self.subject, self.verb, self.object

    @property
    def form(self) -> tuple[str, bool, bool]:
        """What a premise looks like: its quantifier, and whether its subject and its object are general ones."""
        return self.quantifier, self.subject in GENERAL, self.object in GENERAL


def _is(a: str, b: str) -> bool:
    """Whether every a is a b."""
    return a == b or GENERAL.get(a) == b


def _comparable(a: str, b: str) -> bool:
    return _is(a, b) or _is(b, a)


def _exclude(a: Statement, a_negated: bool, b: Statement, b_negated: bool) -> bool:
    """Whether one subject cannot do what a says (or, negated, not do it) and what b says."""
    if a_negated != b_negated:
        done, not_done = (b, a) if a_negated else (a, b)
        return done.verb == not_done.verb and _is(not_done.object, done.object)
    if a.verb != OPPOSITE[b.verb]:
        return False
    # Not to have kept the files is to have removed some of them, and says nothing of any one kind.
    return a.object == b.object and a.object in GENERAL if a_negated else _comparable(a.object, b.object)


def label(premise: Statement, hypothesis: Statement) -> int:
    """Index into LABELS, for a premise with "every" or "no". There are subjects of every kind."""
    a, b = premise.quantifier == "no", hypothesis.quantifier in ("no", "not every")
    covers, meets = _is(hypothesis.subject, premise.subject), _comparable(hypothesis.subject, premise.subject)
    universal = hypothesis.quantifier in UNIVERSAL
    if _exclude(premise, a, hypothesis, not b) and (covers if universal else meets):
        return 0
    if _exclude(premise, a, hypothesis, b) and (meets if universal else covers):
        return 2
    return 1


def _sentences(topic: tuple[str, tuple[str, str], str]) -> list[Statement]:
    """All statements about a topic: a general subject, opposites, a general object."""
    subject, verbs, thing = topic
    words = (subject, *SUBJECTS[subject]), verbs, (thing, *OBJECTS[thing])
    return [Statement(*choice) for choice in itertools.product(QUANTIFIERS, *words, (False, True))]


def _premises(rng: random.Random, sentences: list[Statement], hypothesis: Statement, used: dict) -> list[Statement]:
    """
    A premise for each label; the three have one quantifier, one voice and as many words in common with the hypothesis.
    None where there are no such, or only of forms that are `used` more with one label than with another.
    """
    quantifier = "no" if rng.random() < QUANTIFIERS["no"] / (QUANTIFIERS["every"] + QUANTIFIERS["no"]) else "every"
    passive = rng.random() < 0.5
    groups: dict[int, list[list]] = defaultdict(lambda: [[], [], []])
    for premise in sentences:
        if (premise.quantifier, premise.passive) == (quantifier, passive) and premise != hypothesis:
            shared = sum(a == b for a, b in zip(premise.words, hypothesis.words))
            i, times = label(premise, hypothesis), used[premise.form]
            groups[shared][i].append((times[i] - min(times), rng.random(), premise))
    triples = [[min(of_label) for of_label in group] for group in groups.values() if all(group)]
    best = min(triples, key=lambda triple: sum(excess for excess, _, _ in triple), default=[])
    return [premise for _, _, premise in best] if sum(excess for excess, _, _ in best) <= IMBALANCE else []


def builtin(split: str, count: int) -> list[Pair]:
    """
    `count` hypotheses of the split "train", "dev" or "test", each with three premises, one per label, in a fixed order.
    Each topic belongs to one split, so that no sentence is in two. Raises UserError when there are not so many.
    """
    rng = random.Random(f"nli {split}")
    numbered = itertools.product(enumerate(SUBJECTS), enumerate(VERBS), enumerate(OBJECTS))
    places = {"dev": (0,), "test": (1,), "train": range(2, 10)}[split]
    topics = [_sentences((s, v, o)) for (i, s), (j, v), (k, o) in numbered if (7 * i + 3 * j + k) % 10 in places]
    drawn = [(sentences, hypothesis) for sentences in topics for hypothesis in sentences]
    # The largest of as many random numbers as a quantifier weighs: it comes first that many times as often.
    drawn.sort(key=lambda item: -max(rng.random() for _ in range(QUANTIFIERS[item[1].quantifier])))
    used: dict[tuple, list[int]] = defaultdict(lambda: [0, 0, 0])
    pairs: list[Pair] = []
    for sentences, hypothesis in drawn:
        for i, premise in enumerate(_premises(rng, sentences, hypothesis, used)):
            used[premise.form][i] += 1
            pairs.append(Pair(str(premise), str(hypothesis), i))
        if len(pairs) == len(LABELS) * count:
            return [pair for _, pair in sorted(((rng.random(), pair) for pair in pairs), key=lambda item: item[0])]
    raise UserError(f"nli_builtin: expected so few that {count} {split} hypotheses suffice, found "
                    f"{len(pairs) // len(LABELS)}; use a smaller one")
