"""What stands around the method: an endpoint's dictionary, Hugging Face both ways, snapshots, speed, runs/gpu.sh."""

import copy
import functools
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

import fuzz
import kill
import prealign
import train as training
from conftest import ROOT, error, make_text, overrides
from corpus.dictionary import read
from corpus.folder import Folder
from corpus.tokenizer import encode
from data import Sampler, prepare
from eval import clka, evaluate, similarity
from model import GPT
from runtime import gpt2
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import read_json, write_json
from tasks.facts import make_facts
from test_runtime import Code
from tools import bench, dynamics, export, tokens, translate

TEXT = "Lo ba der, it's 1234 — “naïve” 日本語 don't!\n\n  In ta."
KEY = "sk-secret-of-the-test"


# ---- a dictionary from a language model ----
class Endpoint:
    """Answers every word, unless `misbehave(number of the request, words)` returns another reply."""

    def __init__(self):
        self.requests: list[list[str]] = []
        self.misbehave = lambda number, words: None
        self.elsewhere = 404, "no such page", {}
        self.lock = threading.Lock()

    @property
    def words(self) -> Counter:
        return Counter(word for words in self.requests for word in words)

    def reply(self, request) -> tuple[int, str, dict]:
        """Status, text and headers; status 0 is a broken connection."""
        # As hosts behind Cloudflare do.
        if "OpenAI" in request.headers["User-Agent"]:
            return 403, "error code: 1010", {}
        if request.url.path != "/v1/chat/completions":
            return self.elsewhere
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        words = json.loads(json.loads(request.content)["messages"][-1]["content"].rsplit("\n", 1)[1])
        with self.lock:
            self.requests.append(words)
            number = len(self.requests)
        return self.misbehave(number, words) or chat(FORMS[number % 3](json.dumps(answer_to(words))))


def answer_to(words: list[str]) -> dict[str, list[str]]:
    return {word: list(dict.fromkeys((word.upper(), word[::-1]))) for word in words}


# An answer as models and servers send it: alone, with thinking and prose around it, in parts.
FORMS = [lambda answer: answer, lambda answer: f"<think>Draft: {{}}</think>Here:\n```json\n{answer}\n```\nMore?",
         lambda answer: [{"type": "thinking", "thinking": []}, {"type": "text", "text": answer[:9]},
                         {"type": "text", "text": answer[9:]}]]


def chat(content: object) -> tuple[int, str, dict]:
    """A reply without what some servers leave out: usage, the reason of the end, ids."""
    return 200, json.dumps({"choices": [{"message": {"content": content}}]}), {}


@pytest.fixture
def endpoint(monkeypatch) -> Endpoint:
    openai, endpoint = pytest.importorskip("openai"), Endpoint()
    # What openai's client is made with, from its version 3 on and before.
    httpx = sys.modules.get("httpx2") or sys.modules["httpx"]

    def handle(request):
        status, text, headers = endpoint.reply(request)
        if not status:
            raise httpx.ReadError(text)
        return httpx.Response(status, text=text, headers=headers)

    client = functools.partial(openai.DefaultHttpxClient, transport=httpx.MockTransport(handle))
    monkeypatch.setattr(openai, "DefaultHttpxClient", client)
    return endpoint


@pytest.fixture
def config(tmp_path, endpoint, monkeypatch) -> Config:
    monkeypatch.setenv("TEST_KEY", KEY + "\r\n")
    # Names come from an optional package, and this proxy is not there.
    monkeypatch.setattr(translate, "english_name", str.upper)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(translate, "REQUESTS", 1)
    (tmp_path / "en.txt").write_text(make_text(30), encoding="utf-8")
    return Config(source=str(tmp_path / "{language}.txt"), targets=("de", "clone"), min_count=3, workers=1,
                  dictionary=str(tmp_path / "made" / "en-{language}.tsv"), llm_key="TEST_KEY",
                  llm_url="http://127.0.0.1:9/v1")


def ask_all(config: Config, **changes) -> dict[str, list[str]]:
    translate.main(overrides(config, **changes))
    return read(config.dictionary_of("de"))


def expected(words: list[str]) -> dict[str, list[str]]:
    """Identical pairs are left out in reading a dictionary."""
    return {word: kept for word, texts in answer_to(words).items() if (kept := [t for t in texts if t != word])}


def test_words_are_asked_for_in_the_case_that_they_mostly_have(config):
    text = "The Polish boat. Polish polish. The Polish house, the house.\n\nThe Polish house.\n\nPolish polish.\n"
    Path(config.source_of("en")).write_text(text, encoding="utf-8")
    assert set(translate.words_to_ask(replace(config, min_count=1))) == {"Polish", "polish", "The", "house"}


def test_a_model_reads_names_of_languages_and_not_codes():
    pytest.importorskip("language_data")
    assert "from English into Chinese (Simplified)" in translate.prompt(["house"], "en", "zh-Hans")
    assert [translate.english_name(name) for name in ("deu", "myown")] == ["German", "myown"]


@pytest.mark.parametrize("suffix, elsewhere", [
    ("/v1", None), ("/v1/chat/completions/", None), (" ", (404, "no such page", {})), ("", (200, "<html>", {})),
    ("/", (200, '{"error": "unexpected endpoint"}', {}))])
def test_every_word_is_asked_for_once_and_data_can_read_the_dictionary(config, endpoint, monkeypatch, suffix,
                                                                       elsewhere):
    """With the base URL in any of its forms; and the same command then asks for nothing."""
    monkeypatch.setattr(translate, "REQUESTS", 3)
    endpoint.elsewhere = elsewhere
    config = replace(config, llm_url=config.llm_url.removesuffix("/v1") + suffix)
    words = translate.words_to_ask(config)
    assert ask_all(config) == expected(words) and endpoint.words == Counter(words) and len(words) > 50
    assert len(endpoint.requests) == -(-len(words) // 20)
    assert ask_all(config) == expected(words) and endpoint.words == Counter(words)
    assert KEY not in "".join(path.read_text() for path in Path(config.dictionary).parent.iterdir())


SOON = {"Retry-After-Ms": "1"}


@pytest.mark.parametrize("reply", [(429, "slow down", SOON), (200, "<html>", {}), chat(None), chat([7]),
                                   (200, '{"error": "no room"}', {})])
def test_trouble_that_passes_costs_nothing(config, endpoint, reply):
    endpoint.misbehave = lambda number, words: reply if number in (2, 5) else None
    assert ask_all(config) == expected(translate.words_to_ask(config))


@pytest.mark.parametrize("reply, reason", [
    ((503, '{"error": "no room"}', SOON), "503: .*no room"), ((401, f"bad key {KEY}", {}), r"401: bad key \*\*\*"),
    ((200, '{"error": {"message": "no credits left"}}', {}), "no credits left"),
    ((302, "", {"Location": "http://localhost/"}), "302"), ((0, "closed", {}), "closed")])
def test_an_endpoint_that_stays_away_is_given_up_and_its_answers_are_kept(config, endpoint, reply, reason, monkeypatch):
    monkeypatch.setattr(translate, "ATTEMPTS", 1)
    endpoint.misbehave = lambda number, words: reply if number > 1 else None
    with pytest.raises(UserError, match=f"{reason}.*; what was answered is kept: the same command goes on") as e:
        ask_all(config)
    words = translate.words_to_ask(config)
    assert read(config.dictionary_of("de")) == expected(words[:20]) and KEY not in str(e.value)
    endpoint.misbehave = lambda number, words: None
    assert ask_all(config) == expected(words)


def test_what_is_answered_while_other_requests_are_refused_is_kept(config, endpoint, monkeypatch):
    monkeypatch.setattr(translate, "REQUESTS", 4)
    endpoint.misbehave = lambda number, words: (401, "bad key", {}) if number > 1 else time.sleep(0.5)
    with pytest.raises(UserError, match="bad key"):
        ask_all(config)
    assert read(config.dictionary_of("de")) == expected(endpoint.requests[0])


@pytest.mark.parametrize("place, reply", [(0, (400, "filtered", {})), (30, (500, "too much", SOON)), (30, chat("no"))])
def test_a_word_that_always_fails_costs_no_other(config, endpoint, capsys, place, reply):
    words = translate.words_to_ask(config)
    endpoint.misbehave = lambda number, asked: reply if words[place] in asked else None
    assert ask_all(config) == expected([word for word in words if word != words[place]])
    assert f"left to ask for: 1 {words[place]}\n" in capsys.readouterr().out
    assert endpoint.words[words[-1]] == 1 and endpoint.words[words[place]] >= len(translate.SIZES)


def test_answers_that_are_cut_short_make_shorter_requests(config, endpoint):
    """Answers to more than 7 words. What is whole in them is used."""
    endpoint.misbehave = lambda number, asked: (
        chat("<think>One</think>" + json.dumps(answer_to(asked[:7]))[:-1]) if len(asked) > 7 else None)
    words = translate.words_to_ask(config)
    assert ask_all(config) == expected(words)
    assert all(endpoint.words[word] == 1 + (i % 20 >= 7) for i, word in enumerate(words[:60]))


def test_a_model_of_no_use_is_given_up_early_and_a_few_words_left_over_end_nothing(config, endpoint):
    # Of some 25: a few are under way when the last of so many that failed is looked at.
    most = len(translate.SIZES) * (translate.FAILURES + 3)
    endpoint.misbehave = lambda number, asked: time.sleep(0.01) or chat("Here you are: Haus, Heim")
    with pytest.raises(UserError, match="Here you are: Haus, Heim"):
        ask_all(config)
    assert (asked := len(endpoint.requests)) <= most
    # Words are answered: the others may be what is wrong.
    endpoint.misbehave = lambda number, words: (
        time.sleep(0.01) or (400, "Model Not Exist", {}) if number > asked + 1 else None)
    ask_all(config)
    asked = len(endpoint.requests) - 1
    with pytest.raises(UserError, match="Model Not Exist"):
        ask_all(config)
    assert len(endpoint.requests) - asked - 1 <= most
    words, path = translate.words_to_ask(config), Path(config.dictionary_of("de"))
    path.write_text("".join(f"{word}\tx\n" for word in words[5:]))
    assert words[0] not in ask_all(config)


def test_a_dictionary_that_is_there_is_completed(config, endpoint, capsys, monkeypatch):
    words, path = translate.words_to_ask(config), Path(config.dictionary_of("de"))
    path.parent.mkdir()
    path.write_text(f"{words[0]}\tHaus\n{words[1]} Heim")
    assert ask_all(config) == expected(words) | {words[0]: ["Haus"], words[1]: ["Heim"]}
    assert endpoint.words == Counter(words[2:])
    # A dry run counts the words and asks for nothing.
    path.unlink()
    monkeypatch.delenv("TEST_KEY")
    translate.main(overrides(config, dry_run=True))
    assert f"0 of {len(words)} words seen " in capsys.readouterr().out and endpoint.words == Counter(words[2:])


@pytest.mark.parametrize("changes, names", [
    ({"llm_url": "http://127.0.0.1:port/v1"}, "llm_url="), ({"llm_url": "http://[::1/v1"}, "llm_url="),
    ({"llm_key": "NO_KEY"}, "environment variable NO_KEY"), ({"targets": ("clone",)}, "`dictionary`"),
    ({"dictionary": "en-de"}, "`dictionary`"), ({"dictionary": "*{language}"}, "`dictionary`")])
def test_a_config_without_endpoint_or_file_to_write_is_refused(config, changes, names):
    assert names in error(ask_all, replace(config, **changes))


@pytest.mark.parametrize("answer, found", [
    ('{"a": ["x", "y"], "b": ["z"]}', {"a": ["x", "y"], "b": ["z"]}), ('{"a": [" x ", "x"]}', {"a": ["x"]}),
    ('{"list": {"a": ["x"]}} {"b": ["z"]}', {"a": ["x"], "b": ["z"]}), ('{"a": ["x"], "b": ["y', {"a": ["x"]}),
    ('{"a":\n[\n "x",\n "y"\n]', {"a": ["x", "y"]}), ('draft {"b": ["n"]}</think> {"a": ["x"]}', {"a": ["x"]}),
    ('<think>{"a": ["x"]}', {}), ('{"a": []}', {}), ('{"a": "x"}', {}), ('{"a": [1]}', {}), ('{"a": ["x", null]}', {}),
    ('{"a": ["1", "2", "3", "4", "5", "6"]}', {"a": list("12345")}), ('{"a": ["x\\n\\ty"]}', {"a": ["x y"]}),
    ('{"a": ["", "\\ud800"]}', {}), ('{"a": ["می\u200cشود"]}', {"a": ["می\u200cشود"]}), ('["a"]', {}),
    ('{"a": ["' + 81 * "x" + '"]}', {}), ('{"a": ["\\q"]}', {}), ('{"A": ["x"], "c": ["x"]}', {}),
    (9999 * '{"a":', {})])
def test_answers_are_read_strictly(answer, found):
    assert translate.parse(answer, ["a", "b"]) == found


# ---- Hugging Face ----
@pytest.mark.parametrize("tie", [True, False])
def test_hugging_face_computes_the_same_from_an_export(tiny, tmp_path, tie, monkeypatch):
    transformers = pytest.importorskip("transformers")
    config = replace(tiny, out_dir=str(tmp_path), max_steps=12, stage1_steps=2, init_std=0.3, tie_embeddings=tie,
                     eval_words=20, sample_count=2)
    training.main(overrides(config))
    ppl = evaluate(config)["lm"]["clone"]["ppl"]
    export.main(overrides(config))
    folder = Path(config.run_dir, "huggingface")
    card = Path(folder, "README.md")
    assert '"max_steps": 12' in card.read_text() and f"{ppl:.1f}" in card.read_text().partition("## Perplexity")[2]
    # Older than the checkpoint: of a model that was here before.
    os.utime(Path(config.run_dir, "eval.json"), (0, 0))
    (folder / "of_an_earlier_export").write_text("")
    export.main(overrides(config))
    assert "Perplexity" not in card.read_text() and not (folder / "of_an_earlier_export").exists()
    data = Folder(config.data_dir)
    ours, _ = load_trained(config.run_dir, data)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, data.vocab_size, (2, config.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = torch.nn.functional.linear(ours(ids), ours.lm_head.weight)
        assert (theirs(ids).logits - logits).abs().max() < 1e-4 and logits.std() > 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    assert set(tokenizer(TEXT)) == {"input_ids", "attention_mask"}
    assert ids == encode(data.encoding, TEXT).tolist() and tokenizer.decode(ids) == TEXT
    assert tokenizer(9 * TEXT, truncation=True)["input_ids"] == encode(data.encoding, 9 * TEXT)[:32].tolist()
    # Stage 1 goes on from it.
    again = make_model(config, data.vocab_size)
    initial_state(again, continued := replace(config, init_from=f"hf:{folder}", method="continued"), data)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))
    prealign.main(overrides(continued))
    assert load_checkpoint(f"{continued.stage1_dir}/checkpoint.pt")["config"]["init_from"] == continued.init_from
    # A failure keeps the export before.
    monkeypatch.setitem(sys.modules, "transformers", None)
    files = sorted(os.listdir(config.run_dir))
    with pytest.raises(ModuleNotFoundError):
        export.export(config)
    assert card.exists() and sorted(os.listdir(config.run_dir)) == files


def test_hugging_face_has_the_ids_of_an_encoding_with_unused_ones(tiny, tmp_path):
    """As cl100k_base and o200k_base have them, before end-of-text."""
    transformers = pytest.importorskip("transformers")
    data = Folder(tiny.data_dir)
    own, data.end_of_text = data.encoding, data.V + 2
    data.encoding = tiktoken.Encoding("gaps", pat_str=own._pat_str, mergeable_ranks=own._mergeable_ranks,
                                      special_tokens={"<|endoftext|>": data.end_of_text})
    export.write_tokenizer(data, 32, str(tmp_path))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert tokenizer.eos_token_id == data.end_of_text and tokenizer(TEXT)["input_ids"] == encode(own, TEXT).tolist()


def hf_folder(path: Path, model: GPT, **config) -> str:
    """A folder as transformers writes it, with other values in its config.json."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2.gpt2_config(model)))
    theirs.load_state_dict(gpt2.gpt2_weights(model))
    theirs.save_pretrained(path)
    write_json(f"{path}/config.json", read_json(f"{path}/config.json", "") | config)
    return str(path)


@pytest.mark.parametrize("tie, padding", [(True, 3), (False, 0)])
def test_a_run_begins_with_the_weights_of_a_hugging_face_folder(tiny, tmp_path, tie, padding):
    """The pivot's embeddings, and all else, are the other model's, of longer rows; En-Clone's are random."""
    data, config = Folder(tiny.data_dir), replace(tiny, tie_embeddings=tie)
    theirs = make_model(replace(config, block_size=2 * config.block_size), data.V + padding)
    model = make_model(config, data.vocab_size)
    before = model.wte.weight[data.V:].clone()
    initial_state(model, replace(config, init_from=f"hf:{hf_folder(tmp_path / 'gpt2', theirs)}"), data)
    ids = torch.randint(0, data.V, (2, config.block_size), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids), theirs(ids))
    assert torch.equal(model.lm_head.weight[:data.V], theirs.lm_head.weight[:data.V])
    assert torch.equal(model.wte.weight[data.V:], before) and (model.lm_head.weight is model.wte.weight) == tie
    # An export of ours has En-Clone's rows too, however many they are.
    gpt2.load_gpt2(GPT(2200, 8, 2, 2, 16), hf_folder(tmp_path / "export", GPT(2200, 8, 2, 2, 16)), 1100)


@pytest.mark.parametrize("config, damage, message", [
    ({"model_type": "llama"}, None, "model_type='llama'"), ({"vocab_size": 50257}, None, "vocab_size=50257 .here 50"),
    ({"tie_word_embeddings": False}, None, "tie_word_embeddings=False"), ({"n_positions": None}, None, "NoneType"),
    # A weight is missing; and a file has code in it.
    ({}, {}, "transformer.ln_f.bias"), ({}, {"x": Code()}, "expected a GPT-2")])
def test_a_hugging_face_folder_of_another_kind_is_refused(tiny, tmp_path, monkeypatch, config, damage, message):
    monkeypatch.chdir(tmp_path)
    model = make_model(tiny, 50)
    before, folder = copy.deepcopy(model.state_dict()), hf_folder(tmp_path, model, **config)
    if damage is not None:
        (tmp_path / "model.safetensors").unlink()
        weights = gpt2.gpt2_weights(model)
        weights.pop("transformer.ln_f.bias")
        torch.save(weights | damage, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"init_from=hf:.*{message}"):
        gpt2.load_gpt2(model, folder, 50)
    assert all(map(torch.equal, model.state_dict().values(), before.values())) and not Path("code was run").exists()


# ---- learning dynamics ----
def test_dynamics_measures_each_snapshot_and_the_facts_of_the_period_before_it(tiny, tmp_path):
    config = replace(tiny, data_dir=str(tmp_path / "data"), out_dir=str(tmp_path), fact_count=32, fact_periods=2,
                     fact_frequencies=(1, 2), fact_languages=("en", "clone"), max_steps=44, snapshot_interval=12,
                     block_size=40)
    prepare(config)
    training.main(overrides(config))
    assert "there is no checkpoint" in error(dynamics.main, overrides(config, seed=2))
    dynamics.main(overrides(config))
    records = json.loads(Path(config.run_dir, "dynamics.json").read_text())
    # Periods end at steps 24 and 44.
    assert [(r["step"], r["period"]) for r in records] == [(12, 0), (24, 1), (36, 1)]
    data = Folder(config.data_dir)
    model, _ = load_trained(config.run_dir, data, snapshot="snapshots/00000024.pt")
    facts = [fact for fact in make_facts(data.settings) if (fact.period, fact.frequency) == (0, 2)]
    assert records[0]["clka"] == [] and {a["frequency"] for a in records[1]["clka"]} == {1, 2} and len(facts) == 8
    found = [{"frequency": 2, "pair": pair} | m for pair, m in clka(model, data, facts, config).items()]
    assert [asked for asked in records[1]["clka"] if asked["frequency"] == 2] == json.loads(json.dumps(found))
    assert records[1]["similarity"] == json.loads(json.dumps(similarity(model, data, config)))


def test_tokens_for_each_id_are_those_of_the_rows_that_training_reads(tiny):
    data = Folder(tiny.data_dir)
    stream = Sampler(data, tiny).batch(np.arange(tiny.max_steps * tiny.batch_size)).stream
    run = {"config": tiny.plain(), "data": data.fingerprint}
    assert tokens.tokens_per_id(run) == round((stream == 1).sum().item() * tiny.block_size / data.V) > 0
    assert "is not the data that" in error(tokens.tokens_per_id, run | {"data": "another"})


# ---- speed ----
def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_measured_and_of_the_steps_that_it_names(tiny, tmp_path, monkeypatch):
    """A step of eight micro-batches is cut to four."""
    pytest.importorskip("transformers")
    made, speed = [], bench.speed
    monkeypatch.setattr(bench, "speed", lambda batch, *others: made.append(batch(7)) or speed(batch, *others))
    monkeypatch.setattr(bench, "SECONDS", 0.05)
    monkeypatch.setattr(bench, "matmul_rate", lambda hardware: 1e9)
    config = replace(tiny, out_dir=str(tmp_path), max_steps=400, batch_size=16, micro_batch_size=2)
    bench.main(overrides(config))
    config = replace(config, batch_size=8)
    machine, *rows = lines_of(tmp_path / "bench.jsonl")
    assert machine["matmul_gflops"] == 1 and machine["config"] == config.plain()
    assert [row["row"] for row in rows] == ["step", "step, codeswitching", "step of stage 1", "GPT2LMHeadModel"]
    data = Folder(config.data_dir)
    flops = make_model(config, data.vocab_size).flops_per_token()
    assert all(row["mfu"] == pytest.approx(row["tokens_per_s"] * flops / 1e9) for row in rows)
    plain, (*ours, (inputs, labels)) = Sampler(data, config).batch(np.arange(7 * 8, 8 * 8)), made
    assert [torch.equal(batch.inputs, plain.inputs) for batch, _ in ours] == [True, False, True]
    assert [words is not None for _, words in ours] == [False, False, True]
    # GPT2LMHeadModel compares logits[:, :-1] with labels[:, 1:]. Nothing was switched, so that all is predicted.
    assert torch.equal(inputs, plain.inputs) and torch.equal(labels[:, 1:], plain.targets[:, :-1])


# ---- runs/gpu.sh on the CPU at toy size ----
def gpu(*arguments: str, code: int) -> subprocess.CompletedProcess:
    result = subprocess.run(["bash", "runs/gpu.sh", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "PYTHON": sys.executable})
    assert result.returncode == code, result.stdout[-3000:] + result.stderr
    return result


@pytest.mark.slow
def test_runs_check(tmp_path):
    result = gpu("check", "--device=cpu", "--limit=280", f"--out={tmp_path}", code=0)
    tests = lines_of(tmp_path / "check.jsonl")
    assert {test["outcome"] for test in tests} <= {"passed", "skipped"}
    assert sum(test["outcome"] == "passed" for test in tests) >= 12
    assert result.stdout == (tmp_path / "check.log").read_text()


@pytest.mark.slow
def test_runs_reproduce(tmp_path):
    """Seven methods in their order, their report, no weights; and first what ends with its time."""
    gpu("reproduce", "--device=cpu", "--limit=1", f"--out={tmp_path}", code=124)
    assert "the 1 seconds are over" in (tmp_path / "reproduce.log").read_text()
    gpu("reproduce", "--device=cpu", f"--out={tmp_path}", code=0)
    methods = " ".join(row["method"] for row in lines_of(tmp_path / "reproduce.jsonl"))
    assert methods == "joint prealign golden codeswitch_only init_only full_target vanilla_codeswitch"
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("toy")}
    assert left == {"reproduce.log", "reproduce.jsonl", "report.md", "report.json", "runs.tar.gz"}
    with tarfile.open(tmp_path / "runs.tar.gz") as tar:
        names = tar.getnames()
    assert "runs/prealign/seed1/metrics.jsonl" in names and "runs/align/seed1/run.json" in names
    assert not any(name.endswith(".pt") for name in names)


# ---- damaged files and killed runs ----
@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    pytest.importorskip("transformers")
    fuzz.fuzz(tmp_path, 40)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    """Preparation and joint training; tests/kill.py alone kills all four verbs, and more often."""
    monkeypatch.setattr(kill, "VERBS", ("data.py", "train.py"))
    arguments = overrides(tiny, max_steps=600, fact_count=0, snapshot_interval=100)
    assert kill.main([*arguments, "--kills=2", f"--folder={tmp_path / 'kill'}"]) == 0
