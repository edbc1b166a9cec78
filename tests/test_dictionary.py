"""Real languages: dictionaries as published, translations as they stand in text, and the pipeline on several targets at once."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpus import dictionary
import eval as evaluation
import prealign
import train as training
from data import Sampler
from runtime.config import Config
from runtime import errors
from runtime.errors import UserError
from conftest import make_text, overrides
from data import in_share, prepare
from corpus.folder import Folder
from corpus.dictionary import Dictionary, as_in_text, as_text_has_them, coverage, keep_short, read, translate_surfaces, translations
from eval import is_in
from corpus.tokenizer import encode


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- files ----

def test_muse_files_with_spaces_and_tables_with_tabs(tmp_path):
    write(tmp_path / "1.txt", "house haus\nhouse\thause\nhouse haus\n\nsea salt\tMeersalz\ntaxi taxi\n")
    with gzip.open(tmp_path / "2.txt.gz", "wt", encoding="utf-8") as f:
        f.write("small klein\r\n")
    book = read(str(tmp_path / "*"))
    assert book == Dictionary({"house": ["haus", "hause"], "sea salt": ["Meersalz"], "small": ["klein"]}, pairs=4, identical=1)


def test_the_other_way_round(tmp_path):
    path = write(tmp_path / "de-en.txt", "haus house\ngebäude\thouse\n")
    assert read(path, target_first=True).entries == {"house": ["haus", "gebäude"]}


@pytest.mark.parametrize("line", ["house", "a house haus", "house\thaus\tbuilding", "house\t"])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    path = write(tmp_path / "bad.txt", "small klein\n" + line + "\n")
    with pytest.raises(UserError, match=r"bad.txt:2: expected a word and its translation .* found " + re.escape(repr(line.strip()))):
        read(path)


def test_some_bad_lines_are_told_and_left_out(tmp_path, capsys):
    path = write(tmp_path / "bad.txt", "small klein\nhouse\nsea salt Meersalz\nhotel hotel\n")
    book = read(path, keep_identical=True, allowed_bad_lines=2)
    assert book == Dictionary({"small": ["klein"], "hotel": ["hotel"]}, 2, 0, 2)
    assert f"left out 2 lines, the first: {path}:2: " in capsys.readouterr().out
    with pytest.raises(UserError, match="bad.txt:3: .* of such lines 1 are left out, not more"):
        read(path, allowed_bad_lines=1)


def test_dictionaries_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="dictionary: no file is named"):
        read(str(tmp_path / "missing.txt"))
    with pytest.raises(UserError, match="no pair of different words"):
        read(write(tmp_path / "names.txt", "taxi taxi\n"))


# ---- translations as they stand in text ----

def test_case_is_that_of_the_targets_text():
    counts = dictionary.count_words(["Das Haus ist klein. Ein Haus, zwei Häuser; Kleine Häuser sind klein."])
    entries = {"house": ["haus"], "houses": ["häuser"], "small": ["klein", "winzig"]}
    assert as_text_has_them(entries, counts) == {"house": ["Haus"], "houses": ["Häuser"], "small": ["klein"]}  # the text has no "winzig"


def test_marks_belong_to_their_word():
    assert dictionary.count_words(["हिन्दी भाषा, हिन्दी"]) == {"हिन्दी": 2, "भाषा": 1}


def test_words_without_spaces_are_cut_off_longest_first():
    known = frozenset({"时间", "时", "间谍", "他"})
    assert dictionary.count_known(["时间谍时, 他他们", "时间"], known) == {"时间": 2, "时": 1, "他": 2}
    assert as_text_has_them({"time": ["时", "时间"]}, dictionary.count_known(["时间时时间"], known)) == {"time": ["时间", "时"]}


def test_the_most_common_translations_are_kept():
    counts = Counter({"die": 90, "der": 80, "den": 30, "des": 4, "Haus": 40, "altes": 10})
    entries = {"the": ["den", "der", "die", "dem", "des"], "old house": ["altes haus", "altes Haus", "haus"], "tree": ["baum", "Baum"]}
    assert as_text_has_them(entries, counts, most=2) == {"the": ["die", "der"], "old house": ["Haus", "altes Haus"], "tree": ["baum", "Baum"]}
    assert as_text_has_them(entries, counts)["the"] == ["die", "der", "den"]  # "des" is below a twentieth of "die"
    assert as_text_has_them({"the": ["b", "a", "c"]}, Counter(), most=2) == {"the": ["b", "a"]}  # where nothing is counted, the dictionary's order


@pytest.mark.parametrize("word, expected", [
    ("house", ["Haus"]), ("House", ["Haus"]), ("HOUSE", ["HAUS"]), ("small", ["klein"]), ("Small", ["Klein"]), ("May", ["Mai"]), ("may", ["dürfen"]),
    ("i", ["ich"]), ("I", ["ich"]), ("tree", []), ("Tree", [])])
def test_capitals_are_those_of_the_word(word, expected):
    assert translations(word, {"house": ["Haus"], "small": ["klein"], "May": ["Mai"], "may": ["dürfen"], "i": ["ich"]}) == expected


@pytest.mark.parametrize("surface, language, expected", [
    (" house", "de", " Haus"), ("house", "de", "Haus"), (" house", "zh", "Haus"), (" house", "zh-hans", "Haus"), (" house", "ar", " Haus")])
def test_space_is_that_of_the_language(surface, language, expected):
    assert as_in_text("Haus", surface, language) == expected


def test_the_table_and_its_coverage_by_hand():
    config = Config(targets=("de", "zh", "clone"))
    books = {"de": Dictionary({"house": ["Haus", "Heim"], "Mr": ["Herr"], "tree": ["Baum"]}, 7, 2), "zh": Dictionary({"small": ["小"]}, 1, 0)}
    surfaces = [" house", "House", " Mr", " small", " of", "."]
    table = translate_surfaces(surfaces, books, config)
    assert table[" house"] == {"de": [" Haus", " Heim"], "zh": [], "clone": [" house"]}
    assert table["House"]["de"] == ["Haus", "Heim"] and table[" small"]["zh"] == ["小"] and list(table) == surfaces
    assert list(translate_surfaces(surfaces, books, replace(config, targets=("de", "zh")))) == [" house", "House", " Mr", " small"]

    counts = Counter({" house": 30, "House": 10, " Mr": 10, " small": 30, " of": 20, ".": 99})  # 100 with letters
    numbers = coverage(table, table, counts, books, ("de", "zh"))["de"]
    assert numbers["running_words"] == pytest.approx(0.5) and numbers["running_words_as_they_stand"] == pytest.approx(0.4)
    assert (numbers["pairs"], numbers["pairs_in_the_table"], numbers["rarer_pairs_left_out"], numbers["pairs_of_no_entry"]) == (7, 3, 3, 1)
    assert (numbers["identical_pairs_left_out"], numbers["bad_lines"], numbers["longer_pairs_left_out"]) == (2, 0, 0)

    shorter = {surface: found | {"de": [t for t in found["de"] if t.strip() != "Haus"]} for surface, found in table.items() if surface != "House"}
    numbers = coverage(shorter, table, counts, books, ("de",))["de"]
    assert (numbers["pairs_in_the_table"], numbers["longer_pairs_left_out"], numbers["pairs_of_no_entry"]) == (2, 1, 1)
    assert numbers["running_words"] == pytest.approx(0.4)  # " house", as "Heim", and " Mr"
    assert coverage(shorter, shorter, counts, {}, ("de",)) == {"de": {"running_words": pytest.approx(0.4)}}


# ---- the pipeline ----

def german(word: str) -> str:
    return word[::-1] + "en"


def chinese(word: str) -> str:
    return "".join(chr(0x4E00 + ord(c)) for c in word)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Config:
    """English with two targets: every word has a translation, German nouns (every third word) have capitals in text and none in the dictionary."""
    folder = tmp_path_factory.mktemp("world")
    english = make_text(80)
    words = sorted({w.lower() for w in re.findall(r"[A-Za-z]+", english)})
    nouns = set(words[::3])

    def translated(seed: int, translate_word, separator: str) -> str:
        text = make_text(80, seed)
        documents = []
        for document in text.split("\n\n"):
            documents.append(separator.join(translate_word(w.lower()) for w in re.findall(r"[A-Za-z]+", document)) + ".")
        return "\n\n".join(documents)

    (folder / "texts").mkdir()
    write(folder / "texts" / "en.txt", english)
    write(folder / "texts" / "de.txt", translated(1, lambda w: german(w).capitalize() if w in nouns else german(w), " "))
    write(folder / "texts" / "zh.txt", translated(2, chinese, ""))
    write(folder / "en-de.txt", "".join(f"{w} {german(w)}\n" for w in words))
    write(folder / "en-zh.txt", "".join(f"{w}\t{chinese(w)}\n" for w in words))
    config = Config(
        data_dir=str(folder / "data"), out_dir=str(folder / "out"), source=str(folder / "texts" / "{language}.txt"), targets=("de", "zh"),
        dictionary=str(folder / "en-{language}.txt"), vocab_size=500, min_count=3, val_fraction=0.1, workers=1, fact_count=8, fact_frequencies=(3,),
        mix={"en": 0.5, "de": 0.25, "zh": 0.25}, batch_size=8, micro_batch_size=8, block_size=64, n_layer=1, n_head=2, n_embd=32, max_steps=12,
        stage1_steps=4, align_entries=16, device="cpu", dtype="fp32", eval_words=50, sample_count=4)
    prepare(config)
    return config


def test_every_language_has_its_bins_and_all_share_a_vocabulary(world):
    data = Folder(world.data_dir)
    assert data.languages == ("en", "de", "zh") and set(data.offsets.values()) == {0} and data.vocab_size == data.V
    for language in data.languages:
        held_out = data.encoding.decode(data.tokens(language, "val").tolist()).split("<|endoftext|>")[:-1]
        trained = data.encoding.decode(data.tokens(language, "train").tolist()).split("<|endoftext|>")[:-1]
        documents = Path(world.source_of(language)).read_text(encoding="utf-8").split("\n\n")
        assert sorted(held_out + trained) == sorted(documents) and held_out
    with pytest.raises(UserError, match="has no facts text in 'de'"):
        data.tokens("de", "facts")


def test_table_has_translations_as_they_stand_in_text(world):
    data = Folder(world.data_dir)
    texts = {language: Path(world.source_of(language)).read_text(encoding="utf-8") for language in ("de", "zh")}
    seen = Counter()
    for entry in range(len(data.table)):
        (w,) = data.table.words(entry, 0)
        surface = data.encoding.decode(data.table.word(w).tolist())
        for l, language in enumerate(("de", "zh"), 1):
            for t in data.table.words(entry, l):
                translation = data.encoding.decode(data.table.word(t).tolist())
                assert translation.startswith(" ") == (surface.startswith(" ") and language == "de")
                pattern = rf"(?<!\w){translation.strip()}(?!\w)" if language == "de" else translation
                seen[language, (surface.strip().islower() and re.search(pattern, texts[language])) is not None] += 1
    assert seen["de", True] > 100 and seen["zh", True] > 100
    lower = [json.loads(line.split("\t")[2]).strip() for line in Path(world.data_dir, "table.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert len(lower) > len(data.table)  # a line for each translation


def test_coverage_is_told(world, capsys):
    again = replace(world, data_dir=world.data_dir + "2")
    prepare(again)
    share = Folder(again.data_dir).meta["coverage"]["de"]
    assert 0.5 < share["running_words_as_they_stand"] < share["running_words"] <= 1
    assert f"{100 * share['running_words']:.0f}% of en's running words have an entry" in capsys.readouterr().out
    digests = [Folder(c.data_dir).meta["digests"] for c in (world, again)]
    assert digests[0] == digests[1]
    prepare(again)
    assert "is up to date" in capsys.readouterr().out
    path = Path(world.dictionary_of("de"))
    before = path.read_text()
    path.write_text(before + "unheard ungehört\n")
    prepare(again)
    path.write_text(before)
    assert "is up to date" not in capsys.readouterr().out


def test_an_edited_table_takes_the_place_of_dictionaries(world, tmp_path):
    """Unedited, it makes the same data. A line taken out is a translation less; one more is one more."""
    original = Path(world.data_dir, "table.tsv").read_text(encoding="utf-8")
    made = replace(world, dictionary="", table=write(tmp_path / "table.tsv", original), data_dir=str(tmp_path / "same"))
    prepare(made)
    assert Folder(made.data_dir).meta["digests"] == Folder(world.data_dir).meta["digests"]
    header, first, *lines = original.splitlines(keepends=True)
    fields = first.split("\t")
    lines.insert(0, "\t".join([*fields[:3], "zh", '"新"\n']))
    edited = replace(made, table=write(tmp_path / "edited.tsv", header + "".join(lines)), data_dir=str(tmp_path / "edited"))
    prepare(edited)
    before, after = Folder(world.data_dir).table, Folder(edited.data_dir).table
    assert fields[3] == "de" and [len(before.words(0, l)) for l in (1, 2)] == [1, 1] and [len(after.words(0, l)) for l in (1, 2)] == [0, 2]


def test_long_translations_can_be_left_out(world, tmp_path, capsys):
    """What is left is the whole table's translations of one token, and the entries that have any, in the same order."""
    short = replace(world, translation_tokens=1, data_dir=str(tmp_path / "short"))
    prepare(short)
    rows = [Path(c.data_dir, "table.tsv").read_text(encoding="utf-8").splitlines()[1:] for c in (short, world)]
    encoding = Folder(world.data_dir).encoding
    expected = [row.split("\t")[1:] for row in rows[1] if len(encode(encoding, json.loads(row.split("\t")[4]))) == 1]
    assert [row.split("\t")[1:] for row in rows[0]] == expected and 0 < len(rows[0]) < len(rows[1])
    data = Folder(short.data_dir)
    assert len(data.table) == len({row[1] for row in expected})
    for l in (1, 2):
        assert all(len(data.table.word(w)) == 1 for k in range(len(data.table)) for w in data.table.words(k, l))
    numbers = data.meta["coverage"]["de"]
    assert numbers["longer_pairs_left_out"] > 0
    assert f"{numbers['longer_pairs_left_out']:,} longer ones than translation_tokens allows" in capsys.readouterr().out


def test_short_translations_by_hand(world):
    encoding = Folder(world.data_dir).encoding
    one, long = "e", "q" * 9
    table = {"a": {"de": [long, one], "clone": []}, "b": {"de": [long], "clone": []}, long: {"de": [long], "clone": [long]}}
    assert keep_short(table, encoding, 1) == {"a": {"de": [one], "clone": []}, long: {"de": [], "clone": [long]}}
    assert keep_short(table, encoding, 0) == table
    with pytest.raises(UserError, match="no translation has translation_tokens=1 tokens or fewer"):
        keep_short({"b": {"de": [long]}}, encoding, 1)


@pytest.mark.parametrize("line, message", [
    ("1\t2\thouse\tde\tHaus", "both words quoted as in JSON"), ('1\t2\t"house"\tfr\t"maison"', "into 'fr', which is not among the targets"),
    ('1\t2\t"house"\t"Haus"', "expected entry, frequency, pivot, language, translation"), ('1\t2\t"a"\tclone\t"b"', "every word is its own translation")])
def test_a_line_that_is_none_of_a_table_is_named(tmp_path, line, message):
    path = write(tmp_path / "table.tsv", "\t".join(dictionary.COLUMNS) + "\n" + line + "\n")
    with pytest.raises(UserError, match="table.tsv:2: ") as e:
        dictionary.read_table_tsv(path, Config(targets=("de", "clone")))
    assert message in str(e.value)


def test_words_are_spliced_from_both_languages(world):
    data = Folder(world.data_dir)
    batch = Sampler(data, replace(world, codeswitch_ratio=0.5, mix={"en": 1.0}, stage1_steps=4)).batch(np.arange(8))
    text = data.encoding.decode(batch.inputs.ravel().tolist())
    assert re.search("[\u4e00-\u9fff]", text)
    words = {german(w) for w in re.findall(r"[a-z]+", Path(world.source_of("en")).read_text())}
    assert len(words & set(re.findall("[a-z]+", text))) > 5
    plain = data.encoding.decode([t for t in batch.targets.ravel().tolist() if t >= 0])
    assert not re.search("[\u4e00-\u9fff]", plain)  # never predicted


def test_a_translation_of_several_words_is_spliced_whole(world, tmp_path):
    """A word, its German of two words and its Chinese, which has no spaces, all in one row."""
    word = max(Counter(re.findall(r"[a-z]{3,}", Path(world.source_of("en")).read_text())).items(), key=lambda pair: pair[1])[0]
    for language, translation in (("de", f"{german('ba')} {german('der')}"), ("zh", f"{chinese('ba')}{chinese('der')}")):
        write(tmp_path / f"en-{language}.txt", f"{word}\t{translation}\n")
    several = replace(world, dictionary=str(tmp_path / "en-{language}.txt"), data_dir=str(tmp_path / "data"))
    prepare(several)
    data = Folder(several.data_dir)
    batch = Sampler(data, replace(several, codeswitch_ratio=1.0, mix={"en": 1.0})).batch(np.arange(16))
    text = data.encoding.decode(batch.inputs.ravel().tolist())
    assert f" {german('ba')} {german('der')}" in text and re.search(rf"(?<! ){chinese('ba')}{chinese('der')}", text)


def test_budget_and_share_of_a_target_reach_its_bins_and_the_vocabulary(world, tmp_path):
    changed = replace(world, budget={"de": 500.0}, tokenizer_share={"zh": 0.0}, data_dir=str(tmp_path / "data"))
    prepare(changed)
    before, after = Folder(world.data_dir), Folder(changed.data_dir)
    longest = max(map(len, Path(world.source_of("de")).read_text(encoding="utf-8").split("\n\n")))
    assert 500 <= len(after.tokens("de", "train")) <= 500 + longest < len(before.tokens("de", "train"))
    of_chinese = [sum(re.search(rb"[\xe4-\xe9]", token) is not None and len(token) >= 3 for token in d.encoding.token_byte_values()) for d in (before, after)]
    assert of_chinese[0] > 20 and of_chinese[1] == 0


def test_both_stages_and_the_evaluation_run_on_several_targets(world, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "StopSignal", lambda: type("Never", (), {"asked": False})())
    config = replace(world, out_dir=str(tmp_path), method="prealign", init_from="align", codeswitch_ratio=0.3)
    joint = replace(world, out_dir=str(tmp_path), codeswitch_ratio=0.0)
    prealign.main(overrides(config))
    for run in (config, joint):
        training.main(overrides(run))
        result = evaluation.evaluate(run)
    assert list(result["lm"]) == ["en", "de", "zh"] and list(result["clka"]) == ["en->en", "en->de", "en->zh"]
    assert {s["language"] for s in result["similarity"]} == {"de", "zh"} and all(s["text"] is None for s in result["similarity"])
    assert set(result["mixed"]) == {"de", "zh"}
    assert result["lm"]["de"]["ppl"] == pytest.approx(result["lm"]["de"]["ppl_in_language"])
    text = evaluation.report_tables([result])
    assert "ppl zh" in text and "in language" not in text
    with pytest.raises(UserError, match="golden copies English's embeddings to En-Clone's"):
        training.main(overrides(joint, method="golden", init_from="golden"))
    with pytest.raises(UserError, match="builtin is in English only; for 'de' give a file"):
        evaluation.evaluate_transfer(joint)


def test_text_of_a_target_is_recognised_in_a_continuation(world):
    data = Folder(world.data_dir)

    def found(language: str, text: str) -> bool:
        return is_in(language, data)(encode(data.encoding, text))

    (w,) = data.table.words(3, 0)
    word = data.encoding.decode(data.table.word(w).tolist()).strip().lower()
    assert found("zh", f"a {chinese(word)} b") and not found("zh", f"a {word} b")
    assert found("de", f"a {german(word)} b") and not found("de", f"a {word} b")
    assert not found("de", f"{german(word)} b")  # perhaps the end of a word that the prompt began


def test_a_pivot_word_without_an_entry_is_not_the_targets(world):
    data = Folder(world.data_dir)
    table, text = data.table, data.encoding.decode(data.tokens("en", "val").tolist())
    entries = {data.encoding.decode(table.word(table.words(k, 0)[0]).tolist()).strip().lower() for k in range(len(table))}
    others = [word for word in re.findall(r"(?<=\s)[a-z]+(?=\s)", text) if word not in entries]
    word, w = next((word, w) for word in others for k in range(len(table)) for w in table.words(k, 1)
                   if len(table.word(w)) == len(encode(data.encoding, " " + word)))
    assert is_in("de", data)(encode(data.encoding, f"a {data.encoding.decode(table.word(w).tolist()).strip()} b"))
    table.word(w)[:] = encode(data.encoding, " " + word)  # now it is a translation of another word, as "so" is in German
    assert not is_in("de", data)(encode(data.encoding, f"a {word} b"))


def test_a_language_without_text_or_dictionary_is_an_error(world):
    with pytest.raises(UserError, match="'de' needs text and a dictionary of its own: source must have {language} in it"):
        prepare(replace(world, source="builtin"))
    with pytest.raises(UserError, match="dictionary must have {language} in it"):
        prepare(replace(world, dictionary=""))
    with pytest.raises(UserError, match="is it the right one, and the right way round"):
        prepare(replace(world, data_dir=world.data_dir + "3", dictionary_target_first=True))
    assert not Path(world.data_dir + "3").exists()


def test_a_share_of_the_documents_trains_the_vocabulary():
    texts = [make_text(1, seed) for seed in range(400)]
    assert sum(in_share(text, 0.25) for text in texts) == pytest.approx(100, abs=30)
    assert all(in_share(text, 1.0) for text in texts) and not any(in_share(text, 0.0) for text in texts)
