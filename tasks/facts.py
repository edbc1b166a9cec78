"""
Synthetic facts for CLKA, cross-lingual knowledge application (the paper's Evaluation section).

A fact is an artificial person, a relation of WikiData, and an artificial object. It is stated in one language during
training; in another language, a model that has it gives the true statement a higher likelihood than three statements
with another object of the same relation. Chance is 25%.

    facts = make_facts(128, frequencies=(40,), seed=1)
    in_training_order(facts, seed=1)                            # each 40 times: what to state when
    [statement(facts[0], "de", o) for o in (facts[0].object, *facts[0].distractors)]  # the four to compare

En-Clone has no templates: its statements are the English ones, with their token ids shifted.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.config import Config
from runtime.errors import UserError


@dataclass(frozen=True)
class Relation:
    pid: str                    # WikiData's number of the property, "P19"
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


# A name must fit as it is, so no template asks for a case ending of it or knows its gender: Russian and Arabic avoid verbs
# that agree with the person ("place of birth of X: Y", "X is among the citizens of Y"), and German has no article that would
# have to. The object comes last: the statements of a comparison are then the same up to it, and differ in it alone.
# Kinds of object are mixed along the list, as a small set of facts uses only the first relations.
RELATIONS = (
    Relation("P19", "place of birth", "place", dict(en="{subject} was born in {object}.",
        de="Der Geburtsort von {subject} ist {object}.",
        zh="{subject}的出生地是{object}。",
        ru="Место рождения {subject} — {object}.",
        ar="مكان ميلاد {subject} هو {object}.")),
    Relation("P69", "educated at", "organisation", dict(en="{subject} studied at {object}.",
        de="{subject} studierte an der Universität {object}.",
        zh="{subject}毕业于{object}。",
        ru="Место учёбы {subject} — {object}.",
        ar="{subject} من خريجي {object}.")),
    Relation("P22", "father", "person", dict(en="The father of {subject} is {object}.",
        de="Der Vater von {subject} ist {object}.",
        zh="{subject}的父亲是{object}。",
        ru="Отец {subject} — {object}.",
        ar="والد {subject} هو {object}.")),
    Relation("P101", "field of work", "field", dict(en="{subject} works in the field of {object}.",
        de="Das Fachgebiet von {subject} ist {object}.",
        zh="{subject}的研究领域是{object}。",
        ru="Область деятельности {subject} — {object}.",
        ar="مجال عمل {subject} هو {object}.")),
    Relation("P800", "notable work", "work", dict(en="The best-known work of {subject} is {object}.",
        de="Das bekannteste Werk von {subject} heißt {object}.",
        zh="{subject}的代表作是{object}。",
        ru="Самое известное произведение {subject} — {object}.",
        ar="أشهر أعمال {subject} هو {object}.")),
    Relation("P103", "native language", "language", dict(en="The native language of {subject} is {object}.",
        de="Die Muttersprache von {subject} ist {object}.",
        zh="{subject}的母语是{object}。",
        ru="Родной язык {subject} — {object}.",
        ar="اللغة الأم لـ {subject} هي {object}.")),
    Relation("P26", "spouse", "person", dict(en="{subject} is married to {object}.",
        de="{subject} ist verheiratet mit {object}.",
        zh="{subject}的配偶是{object}。",
        ru="{subject} состоит в браке с {object}.",
        ar="تم زواج {subject} من {object}.")),
    Relation("P1303", "instrument", "instrument", dict(en="{subject} plays the {object}.",
        de="{subject} spielt das Instrument {object}.",
        zh="{subject}演奏的乐器是{object}。",
        ru="{subject} играет на инструменте {object}.",
        ar="{subject} من عازفي آلة {object}.")),
    Relation("P108", "employer", "organisation", dict(en="{subject} works for {object}.",
        de="{subject} arbeitet bei {object}.",
        zh="{subject}任职于{object}。",
        ru="{subject} работает в компании {object}.",
        ar="{subject} من موظفي {object}.")),
    Relation("P27", "country of citizenship", "country", dict(en="{subject} is a citizen of {object}.",
        de="{subject} besitzt die Staatsbürgerschaft von {object}.",
        zh="{subject}的国籍是{object}。",
        ru="Страна гражданства {subject} — {object}.",
        ar="{subject} من مواطني {object}.")),
    Relation("P166", "award received", "award", dict(en="{subject} received the award {object}.",
        de="{subject} erhielt die Auszeichnung {object}.",
        zh="{subject}获得的奖项是{object}。",
        ru="Среди наград {subject} — {object}.",
        ar="من الجوائز الممنوحة لـ {subject} جائزة {object}.")),
    Relation("P641", "sport", "sport", dict(en="{subject} competes in the sport of {object}.",
        de="{subject} betreibt die Sportart {object}.",
        zh="{subject}从事的体育项目是{object}。",
        ru="{subject} занимается видом спорта {object}.",
        ar="{subject} من ممارسي رياضة {object}.")),
    Relation("P20", "place of death", "place", dict(en="{subject} died in {object}.",
        de="Der Sterbeort von {subject} ist {object}.",
        zh="{subject}的去世地点是{object}。",
        ru="Место смерти {subject} — {object}.",
        ar="مكان وفاة {subject} هو {object}.")),
    Relation("P25", "mother", "person", dict(en="The mother of {subject} is {object}.",
        de="Die Mutter von {subject} ist {object}.",
        zh="{subject}的母亲是{object}。",
        ru="Мать {subject} — {object}.",
        ar="والدة {subject} هي {object}.")),
    Relation("P102", "member of political party", "organisation", dict(en="{subject} is a member of the party {object}.",
        de="{subject} ist Mitglied der Partei {object}.",
        zh="{subject}所属的政党是{object}。",
        ru="{subject} состоит в партии {object}.",
        ar="{subject} من أعضاء حزب {object}.")),
    Relation("P106", "occupation", "occupation", dict(en="The occupation of {subject} is {object}.",
        de="Der Beruf von {subject} ist {object}.",
        zh="{subject}的职业是{object}。",
        ru="Профессия {subject} — {object}.",
        ar="مهنة {subject} هي {object}.")),
    Relation("P140", "religion or worldview", "religion", dict(en="The religion of {subject} is {object}.",
        de="Die Religion von {subject} ist {object}.",
        zh="{subject}信仰的宗教是{object}。",
        ru="Религия {subject} — {object}.",
        ar="ديانة {subject} هي {object}.")),
    Relation("P184", "doctoral advisor", "person", dict(en="The doctoral advisor of {subject} is {object}.",
        de="Die Doktorarbeit von {subject} betreute {object}.",
        zh="{subject}的博士导师是{object}。",
        ru="Научный руководитель диссертации {subject} — {object}.",
        ar="المشرف على أطروحة دكتوراه {subject} هو {object}.")),
    Relation("P551", "residence", "place", dict(en="{subject} lives in {object}.",
        de="{subject} lebt in {object}.",
        zh="{subject}居住在{object}。",
        ru="Место жительства {subject} — {object}.",
        ar="مكان إقامة {subject} هو {object}.")),
    Relation("P54", "member of sports team", "organisation", dict(en="{subject} plays for {object}.",
        de="{subject} spielt für {object}.",
        zh="{subject}效力于{object}。",
        ru="{subject} выступает за клуб {object}.",
        ar="{subject} من لاعبي فريق {object}.")),
    Relation("P1412", "languages spoken, written or signed", "language", dict(en="{subject} speaks {object}.",
        de="{subject} spricht {object}.",
        zh="{subject}会说的语言是{object}。",
        ru="{subject} говорит на языке {object}.",
        ar="{subject} من المتحدثين بلغة {object}.")),
    Relation("P509", "cause of death", "disease", dict(en="{subject} died of {object}.",
        de="{subject} starb an {object}.",
        zh="{subject}的死因是{object}。",
        ru="Причина смерти {subject} — {object}.",
        ar="سبب وفاة {subject} هو {object}.")),
    Relation("P40", "child", "person", dict(en="{subject} has a child named {object}.",
        de="{subject} hat ein Kind namens {object}.",
        zh="{subject}的孩子名叫{object}。",
        ru="Ребёнка {subject} зовут {object}.",
        ar="أحد أبناء {subject} هو {object}.")),
    Relation("P264", "record label", "organisation", dict(en="{subject} is signed to the record label {object}.",
        de="Das Plattenlabel von {subject} heißt {object}.",
        zh="{subject}签约的唱片公司是{object}。",
        ru="{subject} записывается на лейбле {object}.",
        ar="تصدر أغاني {subject} عن شركة {object}.")),
    Relation("P812", "academic major", "field", dict(en="{subject} majored in {object}.",
        de="Das Studienfach von {subject} ist {object}.",
        zh="{subject}的专业是{object}。",
        ru="Специальность {subject} — {object}.",
        ar="تخصص {subject} الجامعي هو {object}.")),
    Relation("P172", "ethnic group", "people", dict(en="{subject} belongs to the ethnic group {object}.",
        de="{subject} gehört zum Volk der {object}.",
        zh="{subject}所属的民族是{object}。",
        ru="{subject} принадлежит к народу {object}.",
        ar="{subject} من شعب {object}.")),
    Relation("P119", "place of burial", "place", dict(en="{subject} is buried in {object}.",
        de="Die Grabstätte von {subject} liegt in {object}.",
        zh="{subject}的安葬地是{object}。",
        ru="Место захоронения {subject} — {object}.",
        ar="مكان دفن {subject} هو {object}.")),
    Relation("P1066", "student of", "person", dict(en="{subject} was a student of {object}.",
        de="{subject} studierte bei {object}.",
        zh="{subject}师从{object}。",
        ru="Учитель {subject} — {object}.",
        ar="أستاذ {subject} هو {object}.")),
    Relation("P410", "military or paramilitary rank", "rank", dict(en="{subject} holds the military rank of {object}.",
        de="Der militärische Rang von {subject} ist {object}.",
        zh="{subject}的军衔是{object}。",
        ru="Воинское звание {subject} — {object}.",
        ar="رتبة {subject} العسكرية هي {object}.")),
    Relation("P463", "member of", "organisation", dict(en="{subject} is a member of {object}.",
        de="{subject} ist Mitglied bei {object}.",
        zh="{subject}加入的组织是{object}。",
        ru="{subject} состоит в организации {object}.",
        ar="{subject} من أعضاء منظمة {object}.")),
    Relation("P39", "position held", "office", dict(en="{subject} holds the office of {object}.",
        de="Das Amt von {subject} heißt {object}.",
        zh="{subject}担任的职务是{object}。",
        ru="Должность {subject} — {object}.",
        ar="منصب {subject} هو {object}.")),
    Relation("P737", "influenced by", "person", dict(en="The main influence on {subject} is {object}.",
        de="Den größten Einfluss auf {subject} hatte {object}.",
        zh="对{subject}影响最大的人是{object}。",
        ru="Больше всего на {subject} повлияли идеи {object}.",
        ar="صاحب أكبر تأثير في {subject} هو {object}.")),
)
LANGUAGES = tuple(RELATIONS[0].templates)

# Names are in Latin script in every language, so that a name is the same string wherever it stands: what must transfer is
# the sentence around it. A name is consonant, vowel, l/n/r, consonant, vowel, and the ending of its kind: "Velko" + "dor"
# is a place. These endings hardly ever make a word of English or German; STOPLIST has the words that they do make.
SOUNDS = ("B Br D Dr F Fl G Gl Gr H K Kl Kr L M N P Pl R T Tr V Z".split(), "aeiou", "lnr", "bfgkmpvz", "aeiou")
ENDINGS = {"given": "lo", "family": "sk", "place": "dor", "country": "lan", "organisation": "x", "field": "v", "work": "ndo",
           "language": "za", "instrument": "lm", "award": "mond", "sport": "dak", "occupation": "p", "religion": "dan",
           "disease": "ff", "people": "ta", "rank": "mir", "office": "vik"}
STOPLIST = {"Gonzalo", "Hengelo", "Kolkata", "Konkav", "Konvex", "Linkup", "Markov", "Markup", "Tangelo", "Tinkoff", "Venkata"}
FACT_SEED = 0  # facts belong to the data, not to a run: every seed of every method is asked the same ones
PARTS = 200         # given names, and as many family names, that subjects are made of: PARTS ** 2 subjects
CHOICES = 4         # statements compared: the true one and three distractors
MAX_OBJECTS = 8     # per relation; few, so that a model learns each object as a word and it is the fact that is hard
FACTS_PER_OBJECT = 2  # before another relation is used, so that an object's embedding alone cannot hold its fact


def _name(rng: random.Random, kind: str, taken: set[str]) -> str:
    """A new name of this kind, more than one letter away from every earlier one; two words for a person."""
    if kind == "person":
        return f"{_name(rng, 'given', taken)} {_name(rng, 'family', taken)}"
    while True:
        # Of a generator's methods, Python promises only random() to give the same numbers in every version.
        letters = [sounds[int(rng.random() * len(sounds))] for sounds in SOUNDS]
        if letters[0][-1].lower() == letters[2]:
            continue  # "Krirbedor", "Flalkox": hard to say
        name = "".join(letters) + ENDINGS[kind]
        # Two words one insertion, deletion or replacement apart have in common what one or both are without one letter.
        near = {name} | {name[:i] + name[i + 1:] for i in range(len(name))}
        if name not in STOPLIST and near.isdisjoint(taken):
            taken |= near
            return name


def make_facts(count: int, frequencies: Sequence[int], seed: int, languages: Sequence[str] = ("en",), periods: int = 1) -> list[Fact]:
    """
    `count` facts, the same for the same arguments everywhere. Every frequency, in every language of training, in every
    period of it, is dealt out in turn along the list.

    A model that ignores the subject can only prefer some objects to others. Facts are therefore made in fours: they
    have the same four choices, and each of these is the answer of one of them, so that such a model is right once in
    every four, whatever it prefers. Each kind of fact (frequency, language, period) has fours of its own, so this holds for
    each kind (exactly when `count` is a multiple of 4 * the number of kinds, else up to the incomplete four at either end).
    In each kind, and in all, every object is the answer equally often up to one, and at least once.

    Raises UserError when there are too few facts for that, too many for the names, or frequencies are not whole numbers
    above 0. Source: the CLKA task of the paper's Evaluation section, which leaves open how objects and distractors are drawn.
    """
    if not frequencies or any(type(f) is not int or f < 1 for f in frequencies):
        raise UserError(f"fact_frequencies must be one or more whole numbers above 0, found {tuple(frequencies)}")
    number = periods * len(languages) * len(frequencies)
    minimum = CHOICES * number
    if count < minimum:
        raise UserError(f"fact_count is {count}, but must be at least {minimum}: a relation needs {CHOICES} objects, "
                        f"each the answer at every one of the {number} combinations of fact_frequencies, fact_languages and fact_periods")
    if count > PARTS ** 2:
        raise UserError(f"fact_count is {count}, but there are names for {PARTS ** 2} subjects only")
    kinds = [(frequency, language, period) for period in range(periods) for language in languages for frequency in frequencies]
    relations = RELATIONS[:max(1, count // max(FACTS_PER_OBJECT * MAX_OBJECTS, minimum))]
    n_object = MAX_OBJECTS if count >= MAX_OBJECTS * len(relations) * len(kinds) else CHOICES

    rng = random.Random(f"clka facts {seed}")  # a string, because -1 and 1 would be the same seed
    taken: set[str] = set()
    given = [_name(rng, "given", taken) for _ in range(PARTS)]
    family = [_name(rng, "family", taken) for _ in range(PARTS)]
    pools = [[_name(rng, relation.kind, taken) for _ in range(n_object)] for relation in relations]
    fours = [(relation, pool[start:start + CHOICES])
             for start in range(0, n_object, CHOICES) for relation, pool in zip(relations, pools)]
    answers = [(relation, answer, tuple(o for o in four if o != answer)) for relation, four in fours for answer in four]

    facts = []
    by_kind = sorted(range(count), key=lambda i: i % len(kinds))  # so that the facts of a four are of one
    for place, index in enumerate(by_kind):
        # Along the diagonals of the given x family table: small sets share no part of a name, and no name comes twice.
        subject = f"{given[index % PARTS]} {family[(index + index // PARTS) % PARTS]}"
        relation, answer, others = answers[place % len(answers)]
        facts.append(Fact(index, subject, relation, answer, others, *kinds[index % len(kinds)]))
    return sorted(facts, key=lambda fact: fact.index)


def facts_of(settings: Config) -> list[Fact]:
    """The facts of a data folder made with these settings."""
    if not settings.fact_count:
        return []
    return make_facts(settings.fact_count, settings.fact_frequencies, FACT_SEED, settings.fact_languages, settings.fact_periods)


def statement(fact: Fact, language: str, object: str | None = None) -> str:
    """
    The fact as a sentence of `language`, with another object if one is given (a distractor).

    Raises UserError for a language without templates.
    """
    templates = fact.relation.templates
    if language not in templates:
        raise UserError(f"there are no fact templates in {language!r}, only in {', '.join(templates)}")
    return templates[language].format(subject=fact.subject, object=fact.object if object is None else object)


def in_training_order(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """
    Every fact `frequency` times, in the order in which they are stated: period after period, and spread evenly over it. A
    fact stated n times stands once in each n-th of its period; equally frequent facts come in rounds, each of them once, in a
    new order.
    """
    rng = random.Random(f"clka statements {seed}")
    times = [(fact.period + (k + rng.random()) / fact.frequency, fact) for fact in facts for k in range(fact.frequency)]
    return [fact for _, fact in sorted(times, key=lambda pair: pair[0])]
