"""
Synthetic facts for CLKA, cross-lingual knowledge application (paper, section 4.2).

A fact is an artificial person, a relation of Wikidata, and an artificial object. It is stated in one language during
training. Asked in another language, a model that has it gives the true statement a higher likelihood than three
statements with another object of the same relation. Chance is 25%.

The sentences stand in relations.tsv, a column for each language; another column there is another language here.
En-Clone has none: its statements are the English ones in its token ids.
"""

import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from corpus.folder import Folder, text_language
from corpus.tokenizer import encode
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import replacing
from runtime.hashing import permute

TEMPLATES = os.path.join(os.path.dirname(__file__), "relations.tsv")

# Names are in Latin script in every language, so that a name is the same string wherever it stands: the sentence around
# it is what must transfer. A name is consonant, vowel, l/n/r, consonant, vowel, and the ending of its kind: "Velko" +
# "dor" is a place. These endings hardly ever make a word of English or German; STOPLIST has the exceptions.
SOUNDS = ("B Br D Dr F Fl G Gl Gr H K Kl Kr L M N P Pl R T Tr V Z".split(), "aeiou", "lnr", "bfgkmpvz", "aeiou")
ENDINGS = {"given": "lo", "family": "sk", "place": "dor", "country": "lan", "organisation": "x", "field": "v",
           "work": "ndo", "language": "za", "instrument": "lm", "award": "mond", "sport": "dak", "occupation": "p",
           "religion": "dan", "disease": "ff", "people": "ta", "rank": "mir", "office": "vik"}
STOPLIST = set("Gonzalo Hengelo Kolkata Konkav Konvex Linkup Markov Markup Tangelo Tinkoff Venkata".split())
FACT_SEED = 0  # facts belong to the data, not to a run: every seed of every method is asked the same ones
PARTS = 200  # given names, and as many family names, that subjects are made of
CHOICES = 4  # statements that are compared: the true one and three distractors
MAX_OBJECTS = 8  # of a relation: few, so that a model learns each as a word and the fact is what is hard
FACTS_PER_OBJECT = 2  # before another relation is used, so that an object's embedding alone cannot hold its fact


@dataclass(frozen=True)
class Relation:
    pid: str                    # Wikidata's number of the property, "P19"
    name: str                   # its English label there, "place of birth"
    kind: str                   # of object, a key of ENDINGS or "person"
    templates: dict[str, str] = field(hash=False)  # language -> sentence with one {subject} and one {object}


@dataclass(frozen=True)
class Fact:
    index: int                  # place in the list of make_facts
    subject: str                # in no other fact
    relation: Relation
    object: str
    distractors: tuple[str, ...]  # three other objects of the same relation
    frequency: int              # how many times it is stated in training
    language: str               # in which it is stated there
    period: int                 # of training, in which it is stated; from 0


def read_relations(path: str = TEMPLATES) -> tuple[Relation, ...]:
    """The relations of a tab-separated file, checked: its header names the languages behind property, name and kind."""
    with open(path, encoding="utf-8") as f:
        header, *lines = [line.rstrip("\n").split("\t") for line in f]
    relations = []
    for number, fields in enumerate(lines, 2):
        if len(fields) != len(header):
            raise UserError(f"{path}:{number}: expected {len(header)} tab-separated fields, found {len(fields)}")
        pid, name, kind, *templates = fields
        relation = Relation(pid, name, kind, dict(zip(header[3:], templates)))
        if relation.kind != "person" and relation.kind not in ENDINGS:
            raise UserError(f"{path}:{number}: expected person or one of {', '.join(ENDINGS)}, found {relation.kind!r}")
        for template in relation.templates.values():
            if (template.count("{subject}"), template.count("{object}"), template.count("{")) != (1, 1, 2):
                raise UserError(f"{path}:{number}: expected one {{subject}} and one {{object}}, found {template!r}")
        relations.append(relation)
    return tuple(relations)


# A name must fit as it is, so no template asks for a case ending of it or knows its gender: Russian and Arabic avoid
# verbs that agree with the person ("place of birth of X: Y"), and German has no article that would have to. The object
# comes last: the statements of a comparison are the same up to it, and differ in it alone. Kinds of object are mixed
# along the list, as a small set of facts uses only the first relations.
RELATIONS = read_relations()
LANGUAGES = tuple(RELATIONS[0].templates)


def _name(rng: random.Random, kind: str, taken: set[str]) -> str:
    """A new name of this kind, more than one letter away from every earlier one; two words for a person."""
    if kind == "person":
        return f"{_name(rng, 'given', taken)} {_name(rng, 'family', taken)}"
    while True:
        # Of a generator's methods, Python promises only random() to give the same numbers in every version.
        letters = [sounds[int(rng.random() * len(sounds))] for sounds in SOUNDS]
        # "Krirbedor" and "Flalkox" are hard to say.
        if letters[0][-1].lower() == letters[2]:
            continue
        name = "".join(letters) + ENDINGS[kind]
        # Two words one insertion, deletion or replacement apart have in common what one or both are without one letter.
        near = {name} | {name[:i] + name[i + 1:] for i in range(len(name))}
        if name not in STOPLIST and near.isdisjoint(taken):
            taken |= near
            return name


def make_facts(count: int, frequencies: Sequence[int], seed: int, languages: Sequence[str] = ("en",),
               periods: int = 1) -> list[Fact]:
    """
    `count` facts, the same for the same arguments everywhere. Every frequency, in every language of training, in every
    period of it, is dealt out in turn along the list.

    A model that ignores the subject can only prefer some objects to others. Facts are therefore made in fours that
    have the same four choices: each is the answer of one of them, so that such a model is right once in every four.
    Each kind of fact (frequency, language, period) has fours of its own, complete where `count` is a multiple of 4
    times the number of kinds. In each kind, and in all, objects are the answer equally often up to one, at least once.
    """
    if not frequencies or any(f < 1 for f in frequencies):
        raise UserError(f"fact_frequencies: expected one or more whole numbers above 0, found {tuple(frequencies)}")
    kinds = [(frequency, language, p) for p in range(periods) for language in languages for frequency in frequencies]
    minimum = CHOICES * len(kinds)
    if not minimum <= count <= PARTS ** 2:
        raise UserError(f"fact_count: expected {minimum} ({CHOICES} for each frequency, language and period) to "
                        f"{PARTS ** 2} (there are no more names), found {count}")
    relations = RELATIONS[:max(1, count // max(FACTS_PER_OBJECT * MAX_OBJECTS, minimum))]
    n_object = MAX_OBJECTS if count >= MAX_OBJECTS * len(relations) * len(kinds) else CHOICES

    # A string, because -1 and 1 would be the same seed.
    rng = random.Random(f"clka facts {seed}")
    taken: set[str] = set()
    given = [_name(rng, "given", taken) for _ in range(PARTS)]
    family = [_name(rng, "family", taken) for _ in range(PARTS)]
    pools = [[_name(rng, relation.kind, taken) for _ in range(n_object)] for relation in relations]
    fours = [(relation, pool[start:start + CHOICES])
             for start in range(0, n_object, CHOICES) for relation, pool in zip(relations, pools)]
    answers = [(relation, answer, tuple(o for o in four if o != answer)) for relation, four in fours for answer in four]

    facts = []
    # Kind by kind, so that the facts of a four are of one.
    by_kind = sorted(range(count), key=lambda i: i % len(kinds))
    for place, index in enumerate(by_kind):
        # Along the diagonals of the given x family table: small sets share no part of a name, and no name comes twice.
        subject = f"{given[index % PARTS]} {family[(index + index // PARTS) % PARTS]}"
        relation, answer, others = answers[place % len(answers)]
        facts.append(Fact(index, subject, relation, answer, others, *kinds[index % len(kinds)]))
    return sorted(facts, key=lambda fact: fact.index)


def facts_of(settings: Config) -> list[Fact]:
    """The facts of a data folder made with these settings."""
    s = settings
    if not s.fact_count:
        return []
    return make_facts(s.fact_count, s.fact_frequencies, FACT_SEED, s.fact_languages, s.fact_periods)


def statement(fact: Fact, language: str, object: str | None = None) -> str:
    """The fact as a sentence of `language`, with another object if one is given (a distractor)."""
    templates = fact.relation.templates
    if language not in templates:
        raise UserError(f"there are no fact templates in {language!r}, only in {', '.join(templates)}; "
                        f"add a column to {TEMPLATES}, or use fact_count=0")
    return templates[language].format(subject=fact.subject, object=fact.object if object is None else object)


def in_training_order(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """
    Every fact `frequency` times, in the order in which they are stated: period after period, once in each n-th of it.
    Equally frequent facts come in rounds, each of them once, in a new order.
    """
    rng = random.Random(f"clka statements {seed}")
    times = [(fact.period + (k + rng.random()) / fact.frequency, fact) for fact in facts for k in range(fact.frequency)]
    return [fact for _, fact in sorted(times, key=lambda pair: pair[0])]


def write_bin(stated: list[Fact], folder: Folder) -> dict:
    """
    Writes PIVOT_facts.bin: statements as documents, in the order in which they are stated, each in its fact's language.
    Returns the counts for meta.json.
    """
    ids = []
    for fact in stated:
        text = statement(fact, text_language(fact.language, folder.pivot))
        ids.append(folder.to_language(np.append(encode(folder.encoding, text), folder.end_of_text), fact.language))
    with replacing(os.path.join(folder.dir, f"{folder.pivot}_facts.bin")) as f:
        np.concatenate(ids).astype(folder.dtype).tofile(f)
    # Where the statements of each period end, in tokens.
    last = np.searchsorted([fact.period for fact in stated], range(folder.settings.fact_periods), side="right")
    ends = np.cumsum([0, *map(len, ids)])
    return {"documents": len(stated), "tokens": int(ends[-1]), "period_ends": ends[last].tolist()}


class FactRows:
    """
    Which rows state facts: rows of stage 2, evenly spread, the facts' bin once through. Period p has the rows
    rows[p] : rows[p + 1] of stage 2 and the windows windows[p] : windows[p + 1] of the bin, in an order of the seed's.
    """

    def __init__(self, config: Config, windows: int, period_ends: list[int]):
        self.first = config.stage1_steps * config.batch_size
        n, periods = max(0, config.max_steps * config.batch_size - self.first), len(period_ends)
        if windows > n // 2:
            raise UserError(f"the facts fill {windows} rows of the {n} that stage 2 has; use fewer facts, lower "
                            "fact_frequencies or more max_steps")
        self.rows = -(-n * np.arange(periods + 1) // periods)
        # A period begins at the window that is next to where its facts begin.
        cuts = [round(end / config.block_size) for end in period_ends[:-1]]
        self.windows = np.array([0, *cuts, windows]).clip(max=windows)

    def before(self, rows: np.ndarray) -> np.ndarray:
        """How many windows of facts are stated before each of the global rows (R,)."""
        row = np.clip(rows - self.first, 0, self.rows[-1])
        p = np.clip(np.searchsorted(self.rows, row, side="right") - 1, 0, len(self.rows) - 2)
        stated = (row - self.rows[p]) * np.diff(self.windows)[p] // np.diff(self.rows)[p]
        return self.windows[p] + stated

    def shuffled(self, number: np.ndarray, *keys: int) -> np.ndarray:
        """The window that is stated as number 0, 1, 2, ...: each period's in an order of its own."""
        window = np.empty_like(number)
        for p, (first, end) in enumerate(itertools.pairwise(self.windows.tolist())):
            here = (first <= number) & (number < end)
            window[here] = first + permute(number[here] - first, end - first, *keys, p)
        return window
