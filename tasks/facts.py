"""
Synthetic facts for CLKA, cross-lingual knowledge application (paper, section 4.2).

A fact is an artificial person, a relation of Wikidata, and an artificial object. It is stated in one language during
training. Asked in another, a model that has it gives the true statement a higher likelihood than three with another
object of the same relation. Chance is 25%. The sentences stand in relations.tsv, a column for each language; En-Clone's
are the English ones in its token ids.
"""

import csv
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
# Names are in Latin script in every language, so that it is the sentence around a name that must transfer. A name is
# consonant, vowel, l/n/r, consonant, vowel, and the ending of its kind: "Velko" + "dor" is a place. These hardly ever
# make a word of English or German; STOPLIST has the exceptions.
SOUNDS = ("B Br D Dr F Fl G Gl Gr H K Kl Kr L M N P Pl R T Tr V Z".split(), "aeiou", "lnr", "bfgkmpvz", "aeiou")
ENDINGS = {"given": "lo", "family": "sk", "place": "dor", "country": "lan", "organisation": "x", "field": "v",
           "work": "ndo", "language": "za", "instrument": "lm", "award": "mond", "sport": "dak", "occupation": "p",
           "religion": "dan", "disease": "ff", "people": "ta", "rank": "mir", "office": "vik"}
STOPLIST = set("Gonzalo Hengelo Kolkata Konkav Konvex Linkup Markov Markup Tangelo Tinkoff Venkata".split())
# Facts belong to the data, not to a run: every seed of every method is asked the same ones.
FACT_SEED = 0
PARTS = 200  # given names, and as many family names, that subjects are made of
CHOICES = 4  # statements that are compared: the true one and three distractors
# A relation has few objects, so that a model learns each as a word and the fact is what is hard; and each is used twice
# before there is another relation, so that an object's embedding alone cannot hold its fact.
MAX_OBJECTS = 8
FACTS_PER_OBJECT = 2


@dataclass(frozen=True)
class Fact:
    index: int                    # place in the list of make_facts
    subject: str                  # in no other fact
    relation: dict[str, str] = field(hash=False)
    object: str
    distractors: tuple[str, ...]  # three other objects of the same relation
    frequency: int                # how many times it is stated in training
    language: str                 # in which it is stated there
    period: int                   # of training, in which it is stated; from 0


def read_relations(path: str = TEMPLATES) -> list[dict[str, str]]:
    """The relations of a file, each by its columns: property, name, kind of object, and a sentence per language."""
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def check_relations(relations: list[dict[str, str]], path: str = TEMPLATES) -> None:
    """Raises UserError, naming the line, when a language's sentence of a relation is missing or lacks its places."""
    for number, relation in enumerate(relations, 2):
        for language, sentence in list(relation.items())[3:]:
            if not sentence or (sentence.count("{subject}"), sentence.count("{object}")) != (1, 1):
                raise UserError(f"{path}:{number}: expected a sentence in {language} with one {{subject}} and one "
                                f"{{object}}, found {sentence!r}")


# A name must fit as it is, so no template asks for a case ending of it or knows its gender: Russian and Arabic avoid
# verbs that agree with the person ("place of birth of X: Y"), and German has no article that would have to. The object
# comes last: the statements of a comparison are the same up to it. Kinds of object are mixed along the list, as a small
# set of facts uses only the first relations.
RELATIONS = read_relations()
LANGUAGES = tuple(RELATIONS[0])[3:]


def _name(rng: random.Random, kind: str, taken: set[str]) -> str:
    """A new name of this kind, more than one letter away from every earlier one; two words for a person."""
    if kind == "person":
        return f"{_name(rng, 'given', taken)} {_name(rng, 'family', taken)}"
    while True:
        # Of a generator's methods, Python promises only random() to give the same numbers in every version.
        letters = [sounds[int(rng.random() * len(sounds))] for sounds in SOUNDS]
        name = "".join(letters) + ENDINGS[kind]
        # Two words one insertion, deletion or replacement apart have in common what one or both are without one letter.
        near = {name} | {name[:i] + name[i + 1:] for i in range(len(name))}
        # "Krirbedor" and "Flalkox" are hard to say.
        if letters[0][-1].lower() != letters[2] and name not in STOPLIST and near.isdisjoint(taken):
            taken |= near
            return name


def make_facts(count: int, frequencies: Sequence[int], seed: int, languages: Sequence[str] = ("en",),
               periods: int = 1) -> list[Fact]:
    """`count` facts, the same for the same arguments everywhere, of every frequency, language and period in turn."""
    check_relations(RELATIONS)
    kinds = [(frequency, language, p) for p in range(periods) for language in languages for frequency in frequencies]
    minimum = CHOICES * len(kinds)
    if min(frequencies) < 1 or not minimum <= count <= PARTS ** 2:
        raise UserError(f"fact_frequencies: expected numbers above 0, found {frequencies}; fact_count: expected "
                        f"{minimum} ({CHOICES} of each frequency, language and period) to {PARTS ** 2}, found {count}")
    relations = RELATIONS[:max(1, count // max(FACTS_PER_OBJECT * MAX_OBJECTS, minimum))]
    n_object = MAX_OBJECTS if count >= MAX_OBJECTS * len(relations) * len(kinds) else CHOICES

    # A string, because -1 and 1 would be the same seed.
    rng = random.Random(f"clka facts {seed}")
    taken: set[str] = set()
    given = [_name(rng, "given", taken) for _ in range(PARTS)]
    family = [_name(rng, "family", taken) for _ in range(PARTS)]
    pools = [[_name(rng, relation["kind"], taken) for _ in range(n_object)] for relation in relations]
    # A model that ignores the subject can only prefer some objects to others. Facts are therefore made in fours of one
    # kind that have the same four choices: each is the answer of one of them, so that such a model is right once in
    # four. In each kind, and in all, objects are the answer equally often up to one, at least once.
    answers = []
    for start in range(0, n_object, CHOICES):
        for relation, pool in zip(relations, pools):
            four = pool[start:start + CHOICES]
            answers += [(relation, answer, tuple(o for o in four if o != answer)) for answer in four]
    facts: list[Fact] = []
    for k, kind in enumerate(kinds):
        for index in range(k, count, len(kinds)):
            # Along the diagonals of the given x family table: small sets share no part of a name.
            subject = f"{given[index % PARTS]} {family[(index + index // PARTS) % PARTS]}"
            facts.append(Fact(index, subject, *answers[len(facts) % len(answers)], *kind))
    return sorted(facts, key=lambda fact: fact.index)


def facts_of(settings: Config) -> list[Fact]:
    """The facts of a data folder made with these settings."""
    count = settings.fact_count
    languages, periods = settings.fact_languages, settings.fact_periods
    return make_facts(count, settings.fact_frequencies, FACT_SEED, languages, periods) if count else []


def statement(fact: Fact, language: str, object: str | None = None) -> str:
    """The fact as a sentence of `language`, with another object if one is given (a distractor)."""
    if language not in LANGUAGES:
        raise UserError(f"there are no fact templates in {language!r}, only in {', '.join(LANGUAGES)}; "
                        f"add a column to {TEMPLATES}, or use fact_count=0")
    return fact.relation[language].replace("{subject}", fact.subject).replace("{object}", object or fact.object)


def in_training_order(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """Every fact `frequency` times, in the order in which they are stated: period after period, evenly over each."""
    rng = random.Random(f"clka statements {seed}")
    # Once in each n-th of its period, so equally frequent facts come in rounds, each of them once, in a new order.
    times = [(fact.period + (k + rng.random()) / fact.frequency, fact) for fact in facts for k in range(fact.frequency)]
    return [fact for _, fact in sorted(times, key=lambda pair: pair[0])]


def write_bin(stated: list[Fact], folder: Folder) -> dict:
    """The counts for meta.json of PIVOT_facts.bin, which it writes: statements as documents, in the order stated."""
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
