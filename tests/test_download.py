"""runs/download.sh, from a folder that has files of the published names and layouts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from corpus import dictionary
from corpus.readers import documents
from runtime.config import load
from runtime.hashing import file_digest
from tasks import nli

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
LANGUAGES = ("de", "zh", "ru", "ar")
PAWSX = ("x-final/en/train.tsv", "x-final/en/dev_2k.tsv", "x-final/en/test_2k.tsv", "x-final/de/test_2k.tsv")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of files as their publishers have them."""
    site = tmp_path_factory.mktemp("site")
    xnli = "language\tgold_label\tsentence1\tsentence2\n" + "".join(
        f"{language}\tneutral\tA dog runs.\tIt is big.\n" for language in ("en", "de", "zh"))
    pair = {"gold_label": "neutral", "sentence1": "A dog runs.", "sentence2": "It is big."}
    texts = {
        **{f"muse/en-{language}.txt": "house \u623f\u5c4b\ndog \u72d7\n" for language in LANGUAGES},
        **{f"archives/XNLI-1.0/xnli.{split}.tsv": xnli for split in ("dev", "test")},
        "archives/multinli_1.0/multinli_1.0_train.jsonl": json.dumps(pair) + "\n",
        **{f"archives/{name}": "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n" for name in PAWSX}}
    for name, text in texts.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    for name, kind in (("xnli/XNLI-1.0", "zip"), ("multinli/multinli_1.0", "zip"), ("pawsx/x-final", "gztar")):
        shutil.make_archive(str(site / name), kind, site / "archives", Path(name).name)
    return site


@pytest.fixture
def download(site, tmp_path, monkeypatch):
    """download(WHAT ...) in a copy of the project, with curl from the folder."""
    for folder in ("runs", "corpus", "runtime", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("requirements.txt", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    shutil.copy(ROOT / "requirements.txt", tmp_path / ".venv" / "installed.txt")
    program(bin / "python", f'exec {sys.executable} "$@"')
    sha256 = {name: file_digest(str(site / path)) for name, path in (
        ("XNLI_SHA256", "xnli/XNLI-1.0.zip"), ("MULTINLI_SHA256", "multinli/multinli_1.0.zip"))}
    urls = {name: f"file://{site}/{name.lower()}" for name in ("MUSE", "XNLI", "MULTINLI", "PAWSX")}
    monkeypatch.chdir(tmp_path)

    def run(*what: str, **changes: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "runs/download.sh", *what], capture_output=True, text=True,
                              env={**os.environ, **urls, **sha256, **changes})

    return run


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def made() -> set[str]:
    """The files below the folders that configs read."""
    return {str(path) for name in ("texts", "dictionaries", "nli") for path in Path(name).rglob("*") if path.is_file()}


def test_dictionaries_and_pairs_are_there_and_can_be_read(download):
    for what in (("muse", "de", "zh"), ("xnli",), ("pawsx",)):
        result = download(*what)
        assert result.returncode == 0 and re.search(r"(txt|zip|gz): \d+ bytes", result.stdout), result.stderr
        # Again, nothing is asked for.
        assert download(*what, MUSE="file:///no", XNLI="file:///no", PAWSX="file:///no").returncode == 0
    assert made() == {"dictionaries/en-de.txt", "dictionaries/en-zh.txt", "nli/xnli.dev.tsv", "nli/xnli.test.tsv",
                      "nli/multinli_1.0_train.jsonl", *(f"nli/{name}" for name in PAWSX)}
    assert dictionary.read("dictionaries/en-zh.txt") == {"house": ["\u623f\u5c4b"], "dog": ["\u72d7"]}
    for knobs in (["--nli_train=nli/multinli_1.0_train.jsonl", "--nli_dev=nli/xnli.dev.tsv",
                   "--nli_test=nli/xnli.test.tsv"],
                  ["--nli_train=nli/x-final/en/train.tsv", "--nli_dev=nli/x-final/en/dev_2k.tsv",
                   "--nli_test=nli/x-final/{language}/test_2k.tsv"]):
        labels, train, dev, test = nli.load(load(knobs), ["en", "de"])
        assert len(train) == len(dev) == len(test["en"]) == len(test["de"]) == 1


def test_what_was_interrupted_goes_on(download, site):
    content = (site / "muse/en-de.txt").read_text(encoding="utf-8")
    # What is there already is not fetched again: it would have other letters.
    os.makedirs("dictionaries")
    Path("dictionaries/en-de.txt.part").write_text("HOUSE", encoding="utf-8")
    assert download("muse", "de").returncode == 0
    assert Path("dictionaries/en-de.txt").read_text(encoding="utf-8") == "HOUSE" + content[5:]


def test_what_is_not_as_published_or_not_there_is_one_line(download):
    result = download("xnli", XNLI_SHA256="0" * 64)
    assert result.returncode == 1 and "SHA-256" in result.stderr.splitlines()[-1] and not made()
    result = download("muse", "xx")
    assert result.returncode == 1 and "/muse/en-xx.txt cannot be had" in result.stderr.splitlines()[-1]
    for what in ((), ("all",), ("muse",), ("culturax", "en"), ("culturax", "en", "x")):
        result = download(*what)
        assert result.returncode == 1 and result.stderr.startswith("error: expected ")


def test_chinese_becomes_one_script(download):
    pytest.importorskip("opencc")
    os.makedirs("texts/zh")
    Path("texts/zh/a.txt").write_text("\u8a9e\u8a00\n\n\u8bed\u8a00", encoding="utf-8")
    os.makedirs("dictionaries")
    Path("dictionaries/en-zh.txt").write_text("language \u8a9e\u8a00\nlanguage \u8bed\u8a00\n", encoding="utf-8")
    for _ in range(2):
        assert download("simplified").returncode == 0
        assert list(documents("texts/zh")) == 2 * ["\u8bed\u8a00"] and os.path.exists("texts/zh_published/a.txt")
        assert Path("dictionaries/en-zh.txt").read_text(encoding="utf-8") == "language \u8bed\u8a00\n"


@pytest.mark.parametrize("scale, configs", [
    ("small", ["config/small.py"]), ("table6_paper", ["config/paper.py", "config/table6/paper.py"])])
def test_a_scale_has_all_that_its_configs_read(download, scale, configs):
    program(Path(".venv/bin/hf"), '[[ $* = *dry-run* ]] || { mkdir -p "texts/${3%/*}"; touch "texts/$3"; }')
    result = download(scale)
    assert result.returncode == 0, result.stderr
    config = load(configs)
    for language in config.written:
        assert list(Path(config.source_of(language)).glob("*.parquet"))
        assert language == "en" or not config.dictionary or os.path.exists(config.dictionary_of(language))
    assert {"nli/multinli_1.0_train.jsonl", "nli/xnli.dev.tsv", "nli/xnli.test.tsv"} <= made()
