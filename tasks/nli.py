"""
Natural language inference, the task of zero-shot transfer (ZS-CLT): readers of the published files, and a set that needs none.

    read("multinli.train.en.tsv")                # English MultiNLI as XNLI publishes it
    read("xnli.test.tsv.gz", language="de")      # one language of XNLI
    builtin("train", 3000), builtin("dev", 300), builtin("test", 300)

The built-in set comes from a small grammar in the words of the built-in text, programs and what they do with data:

    Every client sorted files. / Some program changed files.              entailment
    Every client sorted files. / Some program sent images.                neutral
    Every client sorted files. / Files were changed by no program.        contradiction

A sentence is a quantifier over a subject, a verb and an object. Each of the last three may be replaced by a more general
one, negative quantifiers negate positive ones, and the passive says the same as the active. `label` decides by these
rules alone. Each hypothesis comes with one premise for each label, so that it by itself says nothing about the label.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
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


# ---------------------------------------------------------------------------------------------------------------------
# Published files

# What the columns of a .tsv and the fields of a .jsonl are called in XNLI, MultiNLI, SNLI, SICK and PAWS-X.
PREMISE = ("premise", "sentence1", "sentence_A")
HYPOTHESIS = ("hypothesis", "hypo", "sentence2", "sentence_B")
LABEL = ("gold_label", "label", "entailment_label", "entailment_judgment")
SPELLINGS = {"contradictory": "contradiction"}


def read(path: str, language: str | None = None, several: bool = False) -> tuple[list[Pair], tuple[str, ...]]:
    """
    The pairs of a tab-separated file with a header, or of a .jsonl file, compressed or not; and the names of its labels:
    LABELS, or ("0", "1") as in PAWS-X.

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


def load(config: Config, languages: Sequence[str]) -> tuple[tuple[str, ...], list[Pair], list[Pair], dict[str, list[Pair]]]:
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


# ---------------------------------------------------------------------------------------------------------------------
# The built-in set

# Each word and the more specific ones under it.
SUBJECTS = {"program": ("server", "client", "parser", "script"), "user": ("developer", "author", "reader", "tester"),
            "function": ("method", "constructor", "generator", "wrapper")}
# Objects are plural, without an article.
OBJECTS = {"numbers": ("integers", "floats", "sizes", "limits"), "objects": ("strings", "lists", "tuples", "arrays"),
           "names": ("keys", "labels", "tags", "paths"), "files": ("images", "archives", "modules", "pages")}
VERBS = {"changed": ("sorted", "updated", "extended", "modified"), "checked": ("tested", "compared", "counted", "verified"),
         "moved": ("copied", "sent", "loaded", "pushed")}
# Positive quantifiers, each with the negative one that says the opposite. A number is spelled out.
NUMBERS = ("two", "three", "four", "five", "six")
QUANTIFIERS = {"every": "not every", "some": "no"} | {f"at least {n}": f"fewer than {n}" for n in NUMBERS}
# Premises drawn for a hypothesis before another is taken: what entails it may all be in another split. The test's hypotheses
# are therefore those that more sentences entail.
TRIES = 1000


def _general(tree: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {specific: general for general, specifics in tree.items() for specific in specifics}


GENERAL = _general(SUBJECTS) | _general(OBJECTS) | _general(VERBS)


@dataclass(frozen=True)
class Statement:
    quantifier: str  # a key of QUANTIFIERS
    subject: str
    verb: str
    object: str
    negated: bool    # says the opposite: the quantifier's negative is written
    passive: bool    # only how it is written

    def __str__(self) -> str:
        quantifier = QUANTIFIERS[self.quantifier] if self.negated else self.quantifier
        subject = f"{quantifier} {self.subject}{'s' if self._at_least() > 1 else ''}"
        text = f"{self.object} were {self.verb} by {subject}" if self.passive else f"{subject} {self.verb} {self.object}"
        return text.capitalize() + "."

    def _at_least(self) -> int:
        """How many of its subject a positive statement says there are: 1 for `some` and `every`."""
        return NUMBERS.index(self.quantifier.split()[-1]) + 2 if self.quantifier.startswith("at least") else 1


def _is(a: str, b: str) -> bool:
    """Whether every a is a b."""
    return a == b or GENERAL.get(a) == b


def _follows(a: Statement, b: Statement) -> bool:
    """Whether b follows from a, both read without their negation. There are some of every subject, but nothing says how many."""
    if not (_is(a.verb, b.verb) and _is(a.object, b.object)):
        return False
    if a.quantifier == "every":
        if b.quantifier == "every":
            return _is(b.subject, a.subject)
        # All of them did, so at least one did; and so did one of the more general kind.
        return b.quantifier == "some" and (_is(a.subject, b.subject) or _is(b.subject, a.subject))
    return b.quantifier != "every" and a._at_least() >= b._at_least() and _is(a.subject, b.subject)


def label(premise: Statement, hypothesis: Statement) -> int:
    """Index into LABELS."""
    # From "not a" follows "not b" when from b follows a; and what follows from a is contradicted by its negation.
    a, b = (hypothesis, premise) if premise.negated else (premise, hypothesis)
    if not _follows(a, b):
        return 1
    return 0 if premise.negated == hypothesis.negated else 2


def _choice(rng: random.Random, items: Sequence[str]) -> str:
    """Of a generator's methods, Python promises only random() to give the same numbers in every version."""
    return items[int(rng.random() * len(items))]


def _any(rng: random.Random, tree: Mapping[str, tuple[str, ...]]) -> str:
    general = _choice(rng, tuple(tree))
    return _choice(rng, (general, *tree[general]))


def _near(rng: random.Random, word: str, tree: Mapping[str, tuple[str, ...]]) -> str:
    """Mostly the word itself, the general one, or another specific one of the same kind; else any."""
    general = GENERAL.get(word, word)
    return _choice(rng, (word, word, general, _choice(rng, tree[general]), _any(rng, tree)))


def _hypothesis(rng: random.Random) -> Statement:
    return Statement(_choice(rng, tuple(QUANTIFIERS)), _any(rng, SUBJECTS), _any(rng, VERBS), _any(rng, OBJECTS),
                     rng.random() < 0.5, rng.random() < 0.3)


def _premise(rng: random.Random, hypothesis: Statement) -> Statement:
    """Something close to the hypothesis, so that the label hangs on what is different and not on how much is."""
    return Statement(_choice(rng, (hypothesis.quantifier, *QUANTIFIERS)), _near(rng, hypothesis.subject, SUBJECTS), _near(rng, hypothesis.verb, VERBS),
                     _near(rng, hypothesis.object, OBJECTS), rng.random() < 0.5, rng.random() < 0.3)


def _split(statement: Statement) -> str:
    """Which split a sentence belongs to, by its hash: 80% train, 10% dev, 10% test."""
    return ("dev", "test", *["train"] * 8)[hashlib.sha256(str(statement).encode()).digest()[0] % 10]


def builtin(split: str, count: int) -> list[Pair]:
    """
    `count` hypotheses of the split "train", "dev" or "test", each with three premises, one per label, in a fixed order.
    No sentence is in two splits, and no hypothesis comes with two triples. Raises UserError when there are not so many.
    """
    rng = random.Random(f"nli {split}")
    pairs: list[Pair] = []
    used: set[Statement] = set()
    in_vain = 0
    while len(pairs) < len(LABELS) * count:
        hypothesis = _hypothesis(rng)
        if hypothesis in used or _split(hypothesis) != split:
            in_vain += 1
            if in_vain > 10_000:
                raise UserError(f"the built-in pairs have only {len(pairs) // len(LABELS)} {split} hypotheses, not {count}; use a smaller nli_builtin")
            continue
        in_vain = 0
        used.add(hypothesis)
        premises: dict[int, Statement] = {}
        for _ in range(TRIES):
            premise = _premise(rng, hypothesis)
            if premise != hypothesis and _split(premise) == split:
                premises.setdefault(label(premise, hypothesis), premise)
            if len(premises) == len(LABELS):
                pairs += [Pair(str(premises[i]), str(hypothesis), i) for i in range(len(LABELS))]
                break
    return [pair for _, pair in sorted(((rng.random(), pair) for pair in pairs), key=lambda item: item[0])]
