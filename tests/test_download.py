"""runs/download.sh, from a folder that has files of the published names and layouts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, write
from corpus import dictionary
from corpus.readers import documents
from runtime.config import load
from runtime.hashing import file_digest
from tasks import nli

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
PAWSX = ("x-final/en/train.tsv", "x-final/en/dev_2k.tsv", "x-final/en/test_2k.tsv", "x-final/de/test_2k.tsv")
NLI = {"nli/multinli_1.0_train.jsonl", "nli/xnli.dev.tsv", "nli/xnli.test.tsv"}
# A program in place of the hub's own.
HF = """#!/bin/bash
[[ $* = "download uonlp/CulturaX $3 --repo-type=dataset --local-dir=texts"* ]] || exit 1
[[ $* = *--dry-run ]] || { mkdir -p "texts/${3%/*}"; touch "texts/$3"; }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with files as their publishers have them."""
    site, files = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("files")
    for language in ("de", "zh", "ru", "ar"):
        write(site / f"muse/en-{language}.txt", "house \u623f\u5c4b\ndog \u72d7\n")
    xnli = "".join(f"{language}\tneutral\tA dog runs.\tIt is big.\n" for language in ("en", "de", "zh"))
    for split in ("dev", "test"):
        write(files / f"XNLI-1.0/xnli.{split}.tsv", f"language\tgold_label\tsentence1\tsentence2\n{xnli}")
    pair = {"gold_label": "neutral", "sentence1": "A dog runs.", "sentence2": "It is big."}
    write(files / "multinli_1.0/multinli_1.0_train.jsonl", json.dumps(pair))
    for name in PAWSX:
        write(files / name, "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n")
    for name, kind in (("xnli/XNLI-1.0", "zip"), ("multinli/multinli_1.0", "zip"), ("pawsx/x-final", "gztar")):
        shutil.make_archive(str(site / name), kind, files, Path(name).name)
    return site


@pytest.fixture
def download(site, tmp_path, monkeypatch):
    """download(WHAT ...) in a copy of the project, from the site."""
    for folder in ("runs", "corpus", "runtime", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("requirements.txt", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / "requirements.txt", write(tmp_path / ".venv/installed.txt", ""))
    for name, script in (("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n'), ("hf", HF)):
        os.chmod(write(tmp_path / ".venv/bin" / name, script), 0o755)
    environment = {name: f"file://{site}/{name.lower()}" for name in ("MUSE", "XNLI", "MULTINLI", "PAWSX")}
    environment |= {"XNLI_SHA256": file_digest(str(site / "xnli/XNLI-1.0.zip")),
                    "MULTINLI_SHA256": file_digest(str(site / "multinli/multinli_1.0.zip"))}
    monkeypatch.chdir(tmp_path)

    def run(*what: str, **changes: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "runs/download.sh", *what], capture_output=True, text=True,
                              env=os.environ | environment | changes)

    return run


def made() -> set[str]:
    """The files below the folders that configs read."""
    return {str(path) for name in ("texts", "dictionaries", "nli") for path in Path(name).rglob("*") if path.is_file()}


def test_dictionaries_and_pairs_are_there_and_can_be_read(download):
    for what in (("muse", "de", "zh"), ("xnli",), ("pawsx",)):
        result = download(*what)
        assert result.returncode == 0 and re.search(r"(txt|zip|gz): \d+ bytes", result.stdout), result.stderr
        # Again, nothing is asked for.
        assert download(*what, **dict.fromkeys(("MUSE", "XNLI", "MULTINLI", "PAWSX"), "file:///gone")).returncode == 0
    assert made() == {"dictionaries/en-de.txt", "dictionaries/en-zh.txt", *NLI, *(f"nli/{name}" for name in PAWSX)}
    assert dictionary.read("dictionaries/en-zh.txt") == {"house": ["\u623f\u5c4b"], "dog": ["\u72d7"]}
    for knobs in (["--nli_train=nli/multinli_1.0_train.jsonl", "--nli_dev=nli/xnli.dev.tsv",
                   "--nli_test=nli/xnli.test.tsv"],
                  ["--nli_train=nli/x-final/en/train.tsv", "--nli_dev=nli/x-final/en/dev_2k.tsv",
                   "--nli_test=nli/x-final/{language}/test_2k.tsv"]):
        labels, train, dev, test = nli.load(load(knobs), ["en", "de"])
        assert len(train) == len(dev) == len(test["en"]) == len(test["de"]) == 1


def test_what_was_interrupted_goes_on(download, site):
    content = (site / "muse/en-de.txt").read_bytes()
    # In the middle, or before the whole file got its name.
    for part in (b"other" + content[5:9], content):
        write(Path("dictionaries/en-de.txt.part"), part)
        assert download("muse", "de").returncode == 0 and made() == {"dictionaries/en-de.txt"}
        path = Path("dictionaries/en-de.txt")
        assert path.read_bytes() == part[:9] + content[9:]
        path.unlink()


def test_what_is_not_as_published_or_not_there_is_one_line(download):
    result = download("xnli", XNLI_SHA256="0" * 64)
    assert result.returncode == 1 and "SHA-256" in result.stderr.splitlines()[-1] and not made()
    result = download("muse", "xx")
    assert result.returncode == 1 and "/muse/en-xx.txt cannot be had" in result.stderr.splitlines()[-1]
    for what in ((), ("all",), ("muse",), ("culturax", "en"), ("culturax", "en", "x")):
        result = download(*what)
        assert result.returncode == 1 and result.stderr.startswith("error: expected ") and not made()


def test_chinese_becomes_one_script(download):
    pytest.importorskip("opencc")
    write(Path("texts/zh/a.txt"), "\u8a9e\u8a00\n\n\u8bed\u8a00")
    write(Path("dictionaries/en-zh.txt"), "language \u8a9e\u8a00\nlanguage \u8bed\u8a00\n")
    for _ in range(2):
        assert download("simplified").returncode == 0
        assert list(documents("texts/zh")) == 2 * ["\u8bed\u8a00"] and os.path.exists("texts/zh_published/a.txt")
        assert Path("dictionaries/en-zh.txt").read_text(encoding="utf-8") == "language \u8bed\u8a00\n"


@pytest.mark.parametrize("scale, configs, files", [
    ("paper", ["config/paper.py"], 12), ("table6_small", ["config/small.py", "config/table6/small.py"], 1)])
def test_a_scale_has_all_that_its_configs_read(download, scale, configs, files):
    result = download(scale)
    assert result.returncode == 0, result.stderr
    config = load(configs)
    for language in config.written:
        found = sorted(Path(config.source_of(language)).glob("*.parquet"))
        assert len(found) == (files if language == "en" else 1) and found[0].name == f"{language}_part_00000.parquet"
        assert language == "en" or not config.dictionary or os.path.exists(config.dictionary_of(language))
        # What `simplified` has replaced is not fetched again.
        if language == "zh":
            Path("texts/zh").rename("texts/zh_published")
            assert download(scale).returncode == 0 and not Path("texts/zh").exists()
    assert made() >= NLI
