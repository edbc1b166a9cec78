"""What stands around the method: a dictionary from an endpoint, Hugging Face folders both ways, a run's snapshots."""

import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import fuzz
import kill
import prealign
import train as training
from conftest import make_text, overrides
from corpus.dictionary import read
from corpus.folder import Folder
from corpus.tokenizer import encode
from data import prepare
from eval import clka, evaluate, similarity
from model import GPT
from runtime import gpt2
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model
from runtime.config import Config
from runtime.errors import UserError
from tasks.facts import facts_of
from tools import dynamics, export, translate

TEXT = "Lo ba der, it's 1234 — “naïve” 日本語 don't!\n\n  In ta."
KEY = "sk-secret-of-the-test"


# ---- a dictionary from a language model ----

class Endpoint(ThreadingHTTPServer):
    """Answers as asked, unless `misbehave(number of the request, words)` gives (status, body, headers) of its own."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.misbehave = lambda number, words: None
        self.lock = threading.Lock()

    @property
    def words(self) -> Counter:
        return Counter(word for request in self.requests for word in request["words"])


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = json.loads(body["messages"][-1]["content"].rsplit("\n", 1)[1])
        if not self.path.startswith("/v1/"):
            reply = (404, "no such page", {})
        else:
            with self.server.lock:
                self.server.requests.append({"key": self.headers["Authorization"], "body": body, "words": words})
                number = len(self.server.requests)
            reply = self.server.misbehave(number, words) or chat(answer_to(words))
        status, text, headers = reply
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in ({"Content-Length": len(text.encode())} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

    def handle(self):
        # A client that has gone, after a timeout for one, is no error of the test.
        try:
            super().handle()
        except OSError:
            pass


def answer_to(words: list[str]) -> dict[str, list[str]]:
    return {word: list(dict.fromkeys((word.upper(), word[::-1]))) for word in words}


def chat(answer: object, **other) -> tuple[int, str, dict]:
    content = answer if isinstance(answer, str) or answer is None else json.dumps(answer)
    return 200, json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"} | other],
                            "usage": {"prompt_tokens": 100, "completion_tokens": 50}}), {}


@pytest.fixture
def endpoint():
    pytest.importorskip("openai")
    server = Endpoint()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(tmp_path, endpoint, monkeypatch) -> Config:
    monkeypatch.setenv("TEST_KEY", KEY + "\r\n")
    # The endpoint is on this machine: a proxy, which nobody answers at, must not be asked.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    (tmp_path / "en.txt").write_text(make_text(30), encoding="utf-8")
    return Config(source=str(tmp_path / "{language}.txt"), targets=("de", "clone"), min_count=3, workers=1,
                  dictionary=str(tmp_path / "made" / "en-{language}.tsv"), llm_key="TEST_KEY", llm_requests=3,
                  llm_url=f"http://127.0.0.1:{endpoint.server_port}/v1")


def ask_all(config: Config, **changes) -> dict[str, list[str]]:
    translate.main(overrides(config, **changes))
    return read(config.dictionary_of("de")).entries


def expected(words: list[str]) -> dict[str, list[str]]:
    """Identical pairs are left out in reading a dictionary."""
    return {word: kept for word, texts in answer_to(words).items() if (kept := [t for t in texts if t != word])}


def test_words_are_asked_for_in_the_case_that_they_mostly_have(config):
    text = "The Polish boat. Polish polish. The Polish house, the house.\n\nThe Polish house.\n\nPolish polish.\n"
    Path(config.source_of("en")).write_text(text, encoding="utf-8")
    assert set(translate.words_to_ask(replace(config, min_count=1))) == {"Polish", "polish", "The", "house"}


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", ""])
def test_every_word_is_asked_for_once_and_data_can_read_the_dictionary(config, endpoint, capsys, suffix):
    """With the base URL in any of its forms; and the same command then asks for nothing."""
    config = replace(config, llm_url=config.llm_url.removesuffix("/v1") + suffix)
    words = translate.words_to_ask(config)
    assert ask_all(config) == expected(words) and endpoint.words == Counter(words) and len(words) > 50
    n = len(endpoint.requests)
    assert {request["key"] for request in endpoint.requests} == {f"Bearer {KEY}"} and n == -(-len(words) // 20)
    assert {request["body"]["model"] for request in endpoint.requests} == {config.llm_model}
    assert f"used {100 * n:,} tokens in, {50 * n:,} out" in capsys.readouterr().out
    assert ask_all(config) == expected(words) and len(endpoint.requests) == n
    assert KEY not in "".join(path.read_text() for path in Path(config.dictionary).parent.iterdir())


SOON = {"Retry-After-Ms": "1"}


@pytest.mark.parametrize("reply", [(429, "slow down", SOON), (500, "oops", SOON), (503, "", SOON), (200, "<html>", {}),
                                   (200, '{"choices": []}', {}), (200, "[]", {}), (200, "{", {}), chat(None), chat("")])
def test_trouble_that_passes_costs_nothing(config, endpoint, reply):
    endpoint.misbehave = lambda number, words: reply if number in (2, 5) else None
    assert ask_all(config) == expected(translate.words_to_ask(config))


def test_an_endpoint_is_left_alone_as_long_as_it_asks_to_be(config, endpoint):
    at: list[float] = []

    def misbehave(number, words):
        at.append(time.monotonic())
        return (429, "slow down", {"Retry-After": "1"}) if number == 1 else None

    endpoint.misbehave = misbehave
    assert ask_all(config, llm_requests=1, min_count=20) and at[1] - at[0] >= 1


def impatient(config: Config, **options) -> tuple[translate.Translation, object]:
    Path(config.dictionary).parent.mkdir(exist_ok=True)
    return translate.Translation("de", config), translate.connect(config, KEY).with_options(**options)


def test_an_endpoint_that_is_silent_for_once_is_asked_again(config, endpoint):
    endpoint.misbehave = lambda number, words: time.sleep(1) if number == 1 else None
    translation, client = impatient(config, timeout=0.3, max_retries=1)
    translation.run(client, ["house", "door"])
    assert translation.known == answer_to(["house", "door"]) and len(endpoint.requests) == 2


@pytest.mark.parametrize("trouble", ["silent", "away", "failing"])
def test_an_endpoint_that_stays_away_is_given_up_and_what_was_answered_is_kept(config, endpoint, trouble):
    config = replace(config, llm_requests=1)
    words = translate.words_to_ask(config)
    translation, client = impatient(config, timeout=0.3, max_retries=0)
    translation.run(client, words[:20])

    def misbehave(number, words):
        return (503, '{"error": {"message": "no room"}}', {}) if trouble == "failing" else time.sleep(1)

    endpoint.misbehave = misbehave
    if trouble == "away":
        endpoint.shutdown()
        endpoint.server_close()
    reason = {"silent": "timed out", "away": "refused", "failing": "no room"}[trouble]
    with pytest.raises(UserError, match=f"{reason}.*; what was answered is kept: the same command goes on"):
        translate.Translation("de", config).run(client, words)
    assert translate.Translation("de", config).known == answer_to(words[:20])


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_a_refusal_stops_at_once_and_says_why_but_not_the_key(config, endpoint, status):
    """A redirect is one too: the key is for the endpoint that was named."""
    there = {"Location": f"http://127.0.0.1:{endpoint.server_port}/v1/elsewhere"}
    endpoint.misbehave = lambda number, words: (status, json.dumps({"error": {"message": f"bad key {KEY}"}}), there)
    with pytest.raises(UserError, match=rf"status {status}: .*bad key \*\*\*") as e:
        ask_all(config)
    assert KEY not in str(e.value) and len(endpoint.requests) <= 4 and not os.path.exists(config.dictionary_of("de"))


def test_what_is_answered_while_another_request_is_refused_is_kept(config, endpoint, capsys):
    endpoint.misbehave = lambda number, words: (401, "bad key", {}) if number == 1 else time.sleep(0.3)
    with pytest.raises(UserError, match="bad key"):
        ask_all(config)
    assert len(translate.read_answers(config.dictionary_of("de") + ".jsonl", "de", 5)) == 40
    endpoint.misbehave = lambda number, words: None
    assert ask_all(config) == expected(translate.words_to_ask(config))
    assert "used 0 tokens" not in capsys.readouterr().out


@pytest.mark.parametrize("reply", [(400, "filtered", {}), (500, "too much", SOON), chat({"a": "x"}), chat("sorry")])
@pytest.mark.parametrize("place", [0, 30])
def test_a_word_that_always_fails_costs_no_other(config, endpoint, capsys, reply, place):
    words = translate.words_to_ask(config)
    endpoint.misbehave = lambda number, asked: reply if words[place] in asked else None
    known = ask_all(config, llm_requests=1)
    assert known == expected([word for word in words if word != words[place]])
    assert f"asked for again by the same command: 1 {words[place]}" in capsys.readouterr().out
    assert endpoint.words[words[-1]] == 1 and endpoint.words[words[place]] >= translate.ROUNDS


def test_answers_that_are_cut_short_make_shorter_requests(config, endpoint):
    """At most 7 words fit into an answer; what is whole in one that is cut is used."""
    def misbehave(number, asked):
        text = json.dumps(answer_to(asked[:7]))
        return chat(text[:-1], finish_reason="length") if len(asked) > 7 else None

    endpoint.misbehave = misbehave
    config = replace(config, min_count=1, llm_requests=1)
    words = translate.words_to_ask(config)
    assert ask_all(config) == expected(words)
    assert [len(request["words"]) for request in endpoint.requests][:4] == [20, 10, 5, 5]


def test_no_usage_and_thinking_and_prose_around(config, endpoint):
    def misbehave(number, asked):
        thinking = "<think>Perhaps " + json.dumps({word: ["draft"] for word in asked}) + "?</think>"
        content = f"{thinking}\nHere they are:\n```json\n{json.dumps(answer_to(asked), indent=2)}\n```\nAnything else?"
        return 200, json.dumps({"choices": [{"message": {"content": content}}]}), {}

    endpoint.misbehave = misbehave
    assert ask_all(config) == expected(translate.words_to_ask(config))


def test_a_model_that_does_not_answer_as_asked_is_given_up_early(config, endpoint):
    endpoint.misbehave = lambda number, asked: chat("Here you are: Haus, Heim")
    with pytest.raises(UserError, match="no usable answer: Here you are: Haus, Heim"):
        ask_all(config, llm_requests=1)
    assert len(endpoint.requests) == translate.FAILURES


def test_a_dictionary_of_ones_own_is_not_replaced(config, endpoint):
    path = Path(config.dictionary_of("de"))
    path.parent.mkdir()
    path.write_text("house\tHaus\n")
    with pytest.raises(UserError, match="is there and not made by translate.py"):
        ask_all(config)
    assert path.read_text() == "house\tHaus\n" and not endpoint.requests


def test_fewer_translations_need_no_new_answers_and_more_do(config, endpoint):
    words = translate.words_to_ask(config)
    for k, times in ((2, 1), (1, 1), (3, 2), (3, 2)):
        assert max(map(len, ask_all(config, llm_translations=k).values())) == min(k, 2)
        assert endpoint.words == Counter({word: times for word in words})


def test_a_line_that_a_crash_cut_off_is_asked_for_again_and_another_is_not_thrown_away(config, endpoint):
    ask_all(config)
    path = Path(config.dictionary_of("de") + ".jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-9])
    endpoint.requests.clear()
    ask_all(config)
    assert endpoint.words == Counter([json.loads(lines[-1])["word"]]) and path.read_bytes() == b"".join(lines)
    for line in (b"not ours\n", lines[0].replace(b'"de"', b'"fr"'), b'{"word": 1}\n', 9999 * b"[" + b"\n", b"cut"):
        path.write_bytes(lines[0] + line + lines[1] * line.endswith(b"\n"))
        with pytest.raises(UserError, match="jsonl:2: expected an answer in 'de'"):
            ask_all(config)
        assert path.read_bytes().startswith(lines[0] + line)


def test_a_dry_run_says_requests_and_cost_and_asks_for_nothing(config, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    translate.main(overrides(config, dry_run=True, llm_price_in=1.0, llm_price_out=2.0))
    n = len(translate.words_to_ask(config))
    printed = capsys.readouterr().out
    assert f"{n:,} to ask for in {-(-n // 20)} requests" in printed and "$0." in printed and not endpoint.requests
    with pytest.raises(UserError, match="the environment variable TEST_KEY is empty"):
        ask_all(config)
    used = Counter({"in": 2_000_000, "out": 500_000})
    priced = replace(config, llm_price_in=0.5, llm_price_out=2.0)
    assert translate.cost(used, priced) == "2,000,000 tokens in, 500,000 out, $2.00"


@pytest.mark.parametrize("changes", [
    dict(targets=("clone",)), dict(dictionary="en-de.txt"), dict(dictionary="d/*-{language}.txt"),
    dict(llm_url="localhost:1"), dict(llm_url="http://me:secret@localhost/v1"), dict(llm_key="gsk_the_secret_itself")])
def test_configs_that_cannot_be(config, endpoint, changes):
    with pytest.raises(UserError) as e:
        ask_all(config, **changes)
    assert "secret" not in str(e.value) and not endpoint.requests


@pytest.mark.parametrize("answer, found", [
    ('{"a": ["x", "y"], "b": ["z"]}', {"a": ["x", "y"], "b": ["z"]}), ('{"a": [" x ", "x"]}', {"a": ["x"]}),
    ('{"a": ["x"]} {"b": ["z"]}', {"a": ["x"], "b": ["z"]}), ('{"list": {"a": ["x"]}}', {"a": ["x"]}),
    ('{"a": ["x"], "b": ["y', {"a": ["x"]}), ('draft {"a": ["n"]}</think> {"a": ["x"]}', {"a": ["x"]}),
    ('<think>{"a": ["x"]}', {}), ('{"a": []}', {}), ('{"a": "x"}', {}), ('{"a": [1]}', {}), ('{"a": ["x", null]}', {}),
    ('{"a": ["1", "2", "3", "4"]}', {}), ('{"a": ["x\\ny"]}', {}), ('{"a": [""]}', {}), ('{"a": ["\\ud800"]}', {}),
    ('{"a": ["می\u200cشود"]}', {"a": ["می\u200cشود"]}), ('{"a": ["' + 81 * "x" + '"]}', {}), ('["a"]', {}),
    ("sorry", {}), ('{"A": ["x"], "c": ["x"]}', {}), (10000 * "[", {}), (10000 * '{"a":', {})])
def test_answers_are_read_strictly(answer, found):
    assert translate.parse(answer, ["a", "b"], 3) == found


# ---- Hugging Face ----

@pytest.fixture
def run(tiny, tmp_path):
    def make(**changes) -> Config:
        config = replace(tiny, out_dir=str(tmp_path), **dict(max_steps=24, stage1_steps=2, init_std=0.3) | changes)
        training.main(overrides(config))
        return config

    return make


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_computes_the_same_from_an_export(run, tie):
    transformers = pytest.importorskip("transformers")
    config = run(tie_embeddings=tie)
    export.main(overrides(config))
    Path(config.run_dir, "huggingface", "of_an_earlier_export").write_text("")
    export.main(overrides(config))
    folder = Path(config.run_dir, "huggingface")
    names = "README.md config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert sorted(os.listdir(folder)) == names.split()
    assert not os.path.exists(f"{folder}.tmp")
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
    assert tokenizer.eos_token_id == data.end_of_text and tokenizer.model_max_length == config.block_size
    # Every version of transformers knows this class.
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_card_has_the_config_and_what_was_measured_of_this_model(run):
    config = run(eval_words=20, sample_count=2)
    data = Folder(config.data_dir)
    _, state = load_trained(config.run_dir, data)
    assert '"max_steps": 24' in export.model_card(config, data, state)
    result = evaluate(config)
    assert f"{result['lm']['clone']['ppl']:.1f}" in export.model_card(config, data, state).partition("# Results")[2]
    # Older than the checkpoint: of a model that was here before.
    os.utime(Path(config.run_dir, "eval.json"), (0, 0))
    assert "# Results" not in export.model_card(config, data, state)


def test_an_export_that_fails_leaves_the_one_before(run, monkeypatch):
    pytest.importorskip("transformers")
    config = run()
    folder = Path(export.export(config))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(export, "write_tokenizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export(config)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers safetensors"):
        export.export(config)


def test_an_encoding_with_unused_ids_is_exported_with_its_own(tiny, tmp_path):
    """As cl100k_base and o200k_base have them, before end-of-text."""
    transformers = pytest.importorskip("transformers")
    import tiktoken
    data = Folder(tiny.data_dir)
    own = data.encoding
    data.end_of_text = own.n_vocab + 2
    data.__dict__["encoding"] = tiktoken.Encoding("gaps", pat_str=own._pat_str, mergeable_ranks=own._mergeable_ranks,
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
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(path)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_run_begins_with_gpt2s_weights(tiny, tmp_path, tie, padding):
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


def test_a_run_begins_with_an_export_and_both_stages_go_on_from_it(run):
    pytest.importorskip("transformers")
    first = run(method="first")
    folder = export.export(first)
    data = Folder(first.data_dir)
    model, trained = make_model(first, data.vocab_size), load_trained(first.run_dir, data)[0]
    initial_state(model, replace(first, init_from=f"hf:{folder}"), data)
    assert all(map(torch.equal, model.state_dict().values(), trained.state_dict().values()))
    continued = replace(first, init_from=f"hf:{folder}", method="continued")
    prealign.main(overrides(continued))
    aligned = run(init_from="align", method="prealign", codeswitch_ratio=0.3)
    stage1 = load_checkpoint(str(Path(aligned.stage1_dir, "checkpoint.pt")))
    assert stage1["config"]["init_from"] == f"hf:{folder}"


@pytest.mark.parametrize("config, message", [
    ({"model_type": "llama"}, "model_type='llama'"), ({"n_layer": 3}, "n_layer=3 .here 2"), ({"n_embd": 8}, "n_embd=8"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False"), ({"vocab_size": 7}, "vocab_size=7"),
    ({"n_positions": 5}, "n_positions=5"), ({"n_positions": None}, "NoneType"), ({"n_inner": 5}, "n_inner=5"),
    ({"activation_function": "relu"}, "activation_function='relu'")])
def test_a_model_of_another_kind_is_refused(tiny, tmp_path, config, message):
    data = Folder(tiny.data_dir)
    model = make_model(tiny, data.vocab_size)
    with pytest.raises(UserError, match=f"init_from=hf:.*{message}"):
        gpt2.load_gpt2(model, hf_folder(tmp_path / "gpt2", model, **config), data.V)


class Code:
    """Runs when it is unpickled by a reader that lets it."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TEST_FOLDER"],)


@pytest.mark.parametrize("damage", ["lacks", "shape", "nan", "rubbish", "absent", "code", "no folder"])
def test_a_damaged_folder_is_refused_and_no_code_in_it_runs(tmp_path, damage, monkeypatch):
    model = GPT(50, 8, 2, 2, 16)
    folder, name = hf_folder(tmp_path / "gpt2", model), "transformer.ln_f.bias"
    weights = gpt2.gpt2_weights(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path / "code_ran"))
    os.remove(f"{folder}/model.safetensors")
    other = {"lacks": {}, "shape": {name: torch.zeros(9)}, "nan": {name: torch.full((16,), torch.nan)},
             "code": {name: weights[name], "x": Code()}}
    if damage in other:
        torch.save({key: value for key, value in weights.items() if key != name} | other[damage],
                   f"{folder}/pytorch_model.bin")
    elif damage == "rubbish":
        Path(folder, "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="init_from=hf:.*expected a folder with a GPT-2"):
        gpt2.load_gpt2(model, "openai/gpt2" if damage == "no folder" else folder, 50)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not os.path.exists(tmp_path / "code_ran")


# ---- learning dynamics ----

def test_dynamics_measures_each_snapshot_and_the_facts_of_the_period_before_it(run, tiny, tmp_path):
    changes = dict(data_dir=str(tmp_path / "data"), fact_count=32, fact_frequencies=(1, 2), fact_periods=2,
                   fact_languages=("en", "clone"), max_steps=44, stage1_steps=4, snapshot_interval=12)
    prepare(replace(tiny, **changes))
    config = run(**changes)
    with pytest.raises(UserError, match="another seed|there is no checkpoint"):
        dynamics.dynamics(replace(config, seed=2))
    records = dynamics.dynamics(config)
    # Periods end at steps 24 and 44.
    assert [(r["step"], r["period"]) for r in records] == [(12, 0), (24, 1), (36, 1)]
    data = Folder(config.data_dir)
    model, _ = load_trained(config.run_dir, data, snapshot="snapshots/00000024.pt")
    facts = [fact for fact in facts_of(data.settings) if (fact.period, fact.frequency) == (0, 2)]
    assert records[0]["clka"] == {} and set(records[1]["clka"]) == {1, 2} and len(facts) == 8
    assert records[1]["clka"][2] == clka(model, data, facts, config)
    assert records[1]["similarity"] == similarity(model, data, config)
    # The same again is read from the file, and with another knob it is measured again.
    assert dynamics.dynamics(config) == json.loads(json.dumps(records))
    assert dynamics.dynamics(replace(config, eval_words=10))[1]["similarity"] != records[1]["similarity"]


# ---- damaged files and killed runs ----

@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    pytest.importorskip("transformers")
    for name, form in fuzz.formats(str(tmp_path)).items():
        assert set(fuzz.fuzz(form, name, str(tmp_path), 40, seed=1)) == {"read", "refused"}, name
    # A reader that lets another exception out, or reads a damaged checkpoint as another, is found.
    form = fuzz.Format("checkpoint.pt", b"whole", lambda path: 1 / len(Path(path).read_bytes()))
    found = set(fuzz.fuzz(form, "checkpoint", str(tmp_path), 99))
    assert found >= {"read as another", "ZeroDivisionError: division by zero"}


def test_what_differs_after_a_kill_is_found(tmp_path):
    weights, moments = {"w": torch.ones(3)}, {"state": {0: {"exp_avg": torch.ones(3)}}}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.save({"model": weights, "step": 3, "optimizer": moments}, tmp_path / name / "checkpoint.pt")
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"loss": 2.0, "mfu": ord(name)}) + "\n")
        (tmp_path / name / "eval.json").write_text(json.dumps({"lm": 2.0, "date": name}))
        (tmp_path / name / "en.bin").write_bytes(b"12")
    a, b = tmp_path / "a", tmp_path / "b"
    assert kill.differences(a, b) == []
    moments["state"][0]["exp_avg"][1] += 1e-6
    torch.save({"model": weights, "step": 3, "optimizer": moments}, b / "checkpoint.pt")
    (b / "metrics.jsonl").write_text(json.dumps({"loss": 2.0 + 1e-9, "mfu": 7}) + "\n")
    (b / "en.bin").write_bytes(b"13")
    (b / "more").write_text("")
    assert kill.differences(a, b) == ["checkpoint.pt", "en.bin", "metrics.jsonl", "more"]


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(tiny, tmp_path, capsys):
    arguments = overrides(tiny, max_steps=400, fact_count=0, snapshot_interval=100)
    arguments = [a for a in arguments if not a.startswith(("--data_dir", "--out_dir", "--checkpoint_interval"))]
    assert kill.main([*arguments, "--kills=5", f"--folder={tmp_path / 'kill'}"]) == 0
    assert "the same to the bit" in capsys.readouterr().out
