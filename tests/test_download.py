"""runs/download.sh, against a server that has files of the published names and layouts."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ROOT
from corpus import dictionary
from corpus.readers import documents
from runtime.config import load
from runtime.hashing import file_digest
from tasks import nli

pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
LANGUAGES = ("de", "zh", "ru", "ar")
PAWSX = ("x-final/en/train.tsv", "x-final/en/dev_2k.tsv", "x-final/en/test_2k.tsv", "x-final/de/test_2k.tsv")


def publish(site: Path) -> None:
    """Fills a folder with files as their publishers have them."""
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
    hub = site / "hub/datasets/uonlp/CulturaX/resolve/main/en"
    hub.mkdir(parents=True)
    for i in range(3):
        parquet.write_table(pyarrow.table({"text": [f"en {i}"], "url": ["u"]}), hub / f"en_part_{i:05}.parquet")


class Server(BaseHTTPRequestHandler):
    site, cut, asked = Path(), set(), []

    def do_GET(self):
        self.asked.append((self.command, self.path, self.headers.get("Range")))
        if not (file := self.site / self.path[1:]).is_file():
            return self.answer(404, b"")
        body = file.read_bytes()
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            return self.answer(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
        etag = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
        self.answer(200, body, etag)

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes, headers: dict | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            # The line breaks once.
            broken = self.path in self.cut
            self.cut.discard(self.path)
            self.wfile.write(body[:len(body) // 2] if broken else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    Server.site = tmp_path_factory.mktemp("site")
    publish(Server.site)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def download(server, tmp_path, monkeypatch):
    """download(WHAT ...) in a copy of the project, from the server; `asked` is what the server was asked for."""
    for folder in ("runs", "corpus", "runtime", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("requirements.txt", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    shutil.copy(ROOT / "requirements.txt", tmp_path / ".venv" / "installed.txt")
    program(bin / "python", f'exec {sys.executable} "$@"')
    sha256 = {name: file_digest(str(Server.site / path)) for name, path in (
        ("XNLI_SHA256", "xnli/XNLI-1.0.zip"), ("MULTINLI_SHA256", "multinli/multinli_1.0.zip"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    urls = {name: f"{server}/{name.lower()}" for name in ("MUSE", "XNLI", "MULTINLI", "PAWSX")}
    environment = {**os.environ, "HF_ENDPOINT": f"{server}/hub", "HF_HOME": str(tmp_path / "hf"), "PATH": path}
    monkeypatch.chdir(tmp_path)

    def run(*what: str, **changes: str) -> subprocess.CompletedProcess:
        Server.asked.clear()
        return subprocess.run(["bash", "runs/download.sh", *what], capture_output=True, text=True,
                              env=environment | urls | sha256 | changes)

    return run


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def made() -> set[str]:
    """The files below the folders that configs read."""
    return {str(path) for name in ("texts", "dictionaries", "nli") for path in Path(name).rglob("*")
            if path.is_file() and ".cache" not in path.parts}


def test_dictionaries_and_pairs_are_there_and_can_be_read(download):
    for what in (("muse", "de", "zh"), ("xnli",), ("pawsx",)):
        result = download(*what)
        assert result.returncode == 0 and re.search(r"(txt|zip|gz): \d+ bytes", result.stdout), result.stderr
        # Again, nothing is asked for.
        assert download(*what).returncode == 0 and not Server.asked
    assert made() == {"dictionaries/en-de.txt", "dictionaries/en-zh.txt", "nli/xnli.dev.tsv", "nli/xnli.test.tsv",
                      "nli/multinli_1.0_train.jsonl", *(f"nli/{name}" for name in PAWSX)}
    assert dictionary.read("dictionaries/en-zh.txt") == {"house": ["\u623f\u5c4b"], "dog": ["\u72d7"]}
    for knobs in (["--nli_train=nli/multinli_1.0_train.jsonl", "--nli_dev=nli/xnli.dev.tsv",
                   "--nli_test=nli/xnli.test.tsv"],
                  ["--nli_train=nli/x-final/en/train.tsv", "--nli_dev=nli/x-final/en/dev_2k.tsv",
                   "--nli_test=nli/x-final/{language}/test_2k.tsv"]):
        labels, train, dev, test = nli.load(load(knobs), ["en", "de"])
        assert len(train) == len(dev) == len(test["en"]) == len(test["de"]) == 1


def test_what_was_interrupted_goes_on(download):
    name = "/muse/en-de.txt"
    Server.cut.add(name)
    assert download("muse", "de").returncode == 1 and made() == {"dictionaries/en-de.txt.part"}
    half = len(content := (Server.site / name[1:]).read_bytes()) // 2
    assert download("muse", "de").returncode == 0 and ("GET", name, f"bytes={half}-") in Server.asked
    assert Path("dictionaries/en-de.txt").read_bytes() == content


def test_what_is_not_as_published_or_not_there_is_one_line(download):
    result = download("xnli", XNLI_SHA256="0" * 64)
    assert result.returncode == 1 and "SHA-256" in result.stderr.splitlines()[-1] and not made()
    result = download("muse", "xx")
    assert result.returncode == 1 and "/muse/en-xx.txt cannot be had" in result.stderr.splitlines()[-1]
    for what in ((), ("all",), ("muse",), ("culturax", "en"), ("culturax", "en", "x")):
        result = download(*what)
        assert result.returncode == 1 and result.stderr.startswith("error: expected ") and not Server.asked


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("hf", path=Path(sys.executable).parent), reason="no hf")
def test_files_of_culturax_by_the_program_of_the_hub(download):
    result = download("culturax", "en", "2")
    assert result.returncode == 0, result.stderr
    assert "en_part_00001.parquet" in result.stdout.partition("texts/en")[0]
    assert made() == {"texts/en/en_part_00000.parquet", "texts/en/en_part_00001.parquet"}
    assert list(documents("texts/en")) == ["en 0", "en 1"]
    assert download("culturax", "en", "3").returncode == 0
    assert [path for command, path, _ in Server.asked if command == "GET" and "resolve" in path] == [
        "/hub/datasets/uonlp/CulturaX/resolve/main/en/en_part_00002.parquet"]


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
    ("small", ["config/small.py"]), ("paper", ["config/paper.py"]),
    ("table6_small", ["config/small.py", "config/table6/small.py"]),
    ("table6_paper", ["config/paper.py", "config/table6/paper.py", "config/size/1.3b.py"])])
def test_a_scale_has_all_that_its_configs_read(download, scale, configs):
    # What comes from the hub is tested above.
    program(Path(".venv/bin/hf"), '[[ $* = *dry-run* ]] || { mkdir -p "texts/${3%/*}"; touch "texts/$3"; }')
    result = download(scale)
    assert result.returncode == 0, result.stderr
    config = load(configs)
    for language in config.written:
        assert list(Path(config.source_of(language)).glob("*.parquet"))
        assert language == "en" or not config.dictionary or os.path.exists(config.dictionary_of(language))
    assert {"nli/multinli_1.0_train.jsonl", "nli/xnli.dev.tsv", "nli/xnli.test.tsv"} <= made()
