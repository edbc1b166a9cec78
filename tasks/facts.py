"""
Synthetic facts for CLKA, cross-lingual knowledge application (paper, section 4.2).

A fact is an artificial person, a relation of Wikidata, and a word as its object, stated in one language in training.
Asked in another, a model that has it finds the true statement likelier than three with another object of the relation.
Chance is 25%. The sentences stand in relations.tsv by language; En-Clone's are the English ones in its token ids.
"""

import csv
import functools
import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from corpus.folder import Folder, text_language
from corpus.languages import code_of
from corpus.tokenizer import encode
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import replacing
from runtime.hashing import permute

# A name must fit as it is, so no sentence asks for a case ending of it or knows its gender. The object comes last: the
# statements that are compared are the same up to it.
RELATIONS = os.path.join(os.path.dirname(__file__), "relations.tsv")
# Names and objects are in Latin script in every language, with a space before an object, in Chinese too, so that it is
# the same tokens everywhere, and the sentence around it must transfer. A name is consonant, vowel, l/n/r, consonant,
# vowel, and an ending: "Velko" + "lo" is a given, "Velko" + "sk" a family name.
SOUNDS = ("B Br D Dr F Fl G Gl Gr H K Kl Kr L M N P Pl R T Tr V Z".split(), "aeiou", "lnr", "bfgkmpvz", "aeiou")
NAMES = 200   # given names, and as many family names, that subjects are made of
# An object is a word that the text has often: a language that has hardly learned to say it can hardly state the fact.
OBJECTS = {
    "prose": """time day way man life head hand night place house world face room side word name mind light child thing
        door kind woman end money part boy voice moment love girl air hour matter morning heart country business
        water sense question fire death rest nature case fact idea hope table hair year sort reason town point
        letter power friend eye sound book answer evening""".split(),
    "software": """name number list value object node string type path order state edge key point line result case time
        form group text size code test process error length part hand system index tree source shape weight
        version sequence memory root place word way field area table image color side space unit term rule base
        pair block scale range star paper book day step store flag""".split(),
}
CHOICES = 4   # statements that are compared: the true one and three distractors
# A relation has few objects, and each is used twice before there is another relation, so that an object's embedding
# alone cannot hold its fact.
MAX_OBJECTS = 8
FACTS_PER_OBJECT = 2


@dataclass(frozen=True)
class Fact:
    subject: str                  # in no other fact
    relation: dict[str, str] = field(hash=False)
    object: str
    distractors: tuple[str, ...]  # three other objects of the same relation
    period: int                   # of training, in which it is stated; from 0
    language: str                 # in which it is stated there
    frequency: int                # how many times


@functools.cache
def read_relations(path: str = RELATIONS) -> list[dict[str, str]]:
    """The relations of a file, by column: property, name, and a sentence for each language."""
    with open(path, encoding="utf-8", newline="") as f:
        relations = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, relation in enumerate(relations, 2):
        for language, sentence in list(relation.items())[2:]:
            if not sentence or (sentence.count("{subject}"), sentence.count("{object}")) != (1, 1):
                raise UserError(f"{path}:{number}: expected a sentence in {language} with one {{subject}} and one "
                                f"{{object}}, found {sentence!r}")
    return relations


def _name(rng: random.Random, ending: str, taken: set[str]) -> str:
    """A new name with this ending, more than one letter away from every earlier one."""
    while True:
        # Of a generator's methods, Python promises only random() to give the same numbers in every version.
        letters = [sounds[int(rng.random() * len(sounds))] for sounds in SOUNDS]
        name = "".join(letters) + ending
        # Two words one insertion, deletion or replacement apart have in common what one or both are without one letter.
        near = {name} | {name[:i] + name[i + 1:] for i in range(len(name))}
        # "Krirbelo" and "Flalkosk" are hard to say.
        if letters[0][-1].lower() != letters[2] and near.isdisjoint(taken):
            taken |= near
            return name


def make_facts(settings: Config) -> list[Fact]:
    """The facts of a data folder with these settings, of every frequency, language and period in turn."""
    # They belong to the data, not to a run: every seed of every method is asked the same ones.
    count, frequencies, objects = settings.fact_count, settings.fact_frequencies, OBJECTS[settings.fact_objects]
    kinds = list(itertools.product(range(settings.fact_periods), settings.fact_languages, frequencies))
    minimum = CHOICES * len(kinds)
    if count == 0:
        return []
    if min(frequencies) < 1 or not minimum <= count <= NAMES ** 2:
        raise UserError(f"fact_frequencies: expected numbers above 0, found {frequencies}; fact_count: expected "
                        f"{minimum} ({CHOICES} of each frequency, language and period) to {NAMES ** 2}, found {count}")
    # The file begins with sentences of the commonest words: small sets of facts depend on few others.
    relations = read_relations()[:max(1, count // max(FACTS_PER_OBJECT * MAX_OBJECTS, minimum))]
    n_object = MAX_OBJECTS if count >= MAX_OBJECTS * len(relations) * len(kinds) else CHOICES
    rng, taken = random.Random("clka facts 0"), set[str]()
    given, family = ([_name(rng, ending, taken) for _ in range(NAMES)] for ending in ("lo", "sk"))
    # A model that ignores the subject can only prefer some objects to others. Facts are therefore made in fours of one
    # kind that have the same four choices: each is the answer of one of them, so that such a model is right once in
    # four. In each kind, and in all, objects are the answer equally often up to one, at least once.
    answers = []
    for start in range(0, n_object, CHOICES):
        for r, relation in enumerate(relations):
            first = (MAX_OBJECTS * r + start) % len(objects)
            four = objects[first:first + CHOICES]
            answers += [(relation, answer, tuple(o for o in four if o != answer)) for answer in four]
    # Answers are dealt out kind after kind, while facts of all kinds come in turn.
    by_kind = sorted(range(count), key=lambda i: i % len(kinds))
    answer_of = dict(zip(by_kind, itertools.cycle(answers)))
    # Along the diagonals of the given x family table: small sets share no part of a name.
    subjects = [f"{given[i % NAMES]} {family[(i + i // NAMES) % NAMES]}" for i in range(count)]
    return [Fact(subject, *answer_of[i], *kinds[i % len(kinds)]) for i, subject in enumerate(subjects)]


def statement(fact: Fact, language: str, object: str | None = None) -> str:
    """The fact as a sentence of `language`, with another object if one is given (a distractor)."""
    sentence = fact.relation.get(code_of(language))
    if sentence is None:
        raise UserError(f"{RELATIONS}: expected a column {code_of(language)!r} with sentences that state facts; "
                        "add it, or use fact_count=0")
    return sentence.replace("{subject}", fact.subject).replace("{object}", object or fact.object)


def statement_rows(folder: Folder, fact: Fact, parts: tuple[str, str, str]) -> list[np.ndarray]:
    """Token ids of a fact's four statements, the true one first, each after end-of-text."""
    # Subject, sentence and object are in the ids of the languages `parts`.
    rows, (_, language, _) = [], parts
    for name in (fact.object, *fact.distractors):
        text = statement(fact, text_language(language, folder.pivot), name)
        ids = encode(folder.encoding, text)
        row = folder.to_language(ids, language)
        end = np.cumsum([len(folder.encoding.decode_single_token_bytes(i)) for i in ids.tolist()])  # in bytes
        for part, its_language in ((fact.subject, parts[0]), (name, parts[2])):
            # The tokens that end within a name or the space before it, which may be a token of its own.
            at = text.rindex(part)
            start, stop = len(text[:at].rstrip().encode()), len(text[:at + len(part)].encode())
            inside = (start < end) & (end <= stop)
            row[inside] = folder.to_language(ids[inside], its_language)
        rows.append(np.append(folder.end_of_text, row))
    return rows


def in_training_order(facts: Sequence[Fact]) -> list[Fact]:
    """Every fact `frequency` times, in the order in which they are stated: period after period, evenly over each."""
    rng = random.Random("clka statements 0")
    # Once in each n-th of its period, so equally frequent facts come in rounds, each of them once, in a new order.
    times = [(fact.period + (k + rng.random()) / fact.frequency, fact) for fact in facts for k in range(fact.frequency)]
    return [fact for _, fact in sorted(times, key=lambda pair: pair[0])]


def write_bin(stated: list[Fact], folder: Folder, encoder: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> dict:
    """
    The counts for meta.json of PIVOT_facts.bin, which it writes with its alignment ids: statements as documents, in the
    order stated. `encoder` makes token ids of a text, and their alignment ids if it is the pivot's: (n,) each.
    """
    ids, align = {}, {}
    for fact in dict.fromkeys(stated):
        tokens, marks = encoder(statement(fact, text_language(fact.language, folder.pivot)))
        ids[fact] = folder.to_language(np.append(tokens, folder.end_of_text), fact.language).astype(folder.dtype)
        # Facts stated in another language are no text of the pivot: nothing of them is codeswitched.
        align[fact] = np.append(marks * (fact.language == folder.pivot), 0).astype("<i4")
    for name, documents in (("facts.bin", ids), ("facts.align.bin", align)):
        with replacing(os.path.join(folder.dir, f"{folder.pivot}_{name}")) as f:
            np.concatenate([documents[fact] for fact in stated]).tofile(f)
    # Where the statements of each period end, in tokens.
    lengths = [len(ids[fact]) for fact in stated]
    ends = np.cumsum(np.bincount([fact.period for fact in stated], lengths)).astype(int).tolist()
    return {"documents": len(stated), "tokens": ends[-1], "period_ends": ends}


def rows_of_facts(config: Config, windows: int, period_ends: list[int], *keys: int) -> tuple[np.ndarray, np.ndarray]:
    """The global rows that state facts (windows,), evenly over stage 2, and the window of their bin in each of them."""
    n, first = (steps * config.batch_size for steps in (config.max_steps - config.stage1_steps, config.stage1_steps))
    if windows > n // 2:
        raise UserError(f"the facts fill {windows} rows of the {n} that stage 2 has; use fewer facts, lower "
                        "fact_frequencies or more max_steps")
    # Each period has an equal part of these rows (its first one rounded up), and begins at the window next to where
    # its facts begin.
    P = len(period_ends)
    starts = first + (n * np.arange(P + 1) + P - 1) // P
    cuts = [0, *(min(windows, round(end / config.block_size)) for end in period_ends[:-1]), windows]
    rows, order = [], []
    for p, count in enumerate(np.diff(cuts)):
        number = np.arange(count)
        rows.append(starts[p] + ((number + 1) * (starts[p + 1] - starts[p]) - 1) // max(1, count))
        # Its windows come in an order that the keys name.
        order.append(cuts[p] + permute(number, int(count), *keys, p))
    return np.concatenate(rows), np.concatenate(order)
