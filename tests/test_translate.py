"""A dictionary from a language model: against a local endpoint that answers, and misbehaves in every way that real ones do."""

import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import translate
from runtime.config import Config
from runtime.errors import UserError
from conftest import make_text, overrides
from corpus.dictionary import read
from tools.translate import Cache, cost, parse, prompt, words_to_ask

KEY = "sk-secret-of-the-test"


class Endpoint(ThreadingHTTPServer):
    """Answers as asked, unless `misbehave(number of the request, words)` gives a reply (status, body, headers) of its own."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.words: Counter = Counter()
        self.misbehave = lambda number, words: None
        self.active = self.most_active = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = json.loads(body["messages"][-1]["content"].rsplit("\n", 1)[1])
        with server.lock:
            server.requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body, "words": words})
            number = len(server.requests)
            server.words.update(words)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            status, text, headers = server.misbehave(number, words) or (200, chat({word: [word.upper(), word[::-1]] for word in words}), {})
        finally:
            with server.lock:
                server.active -= 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in text if isinstance(text, list) else [text]:
                self.wfile.write(part.encode())
                time.sleep(0.1 * isinstance(text, list))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_):
        pass


def chat(answer: dict | str) -> str:
    content = answer if isinstance(answer, str) else json.dumps(answer)
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": {"prompt_tokens": 100, "completion_tokens": 50}})


@pytest.fixture
def endpoint():
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(tmp_path, endpoint, monkeypatch) -> Config:
    monkeypatch.setenv("TEST_KEY", KEY)
    (tmp_path / "en.txt").write_text(make_text(30), encoding="utf-8")
    return Config(source=str(tmp_path / "{language}.txt"), targets=("de", "clone"), dictionary=str(tmp_path / "made" / "en-{language}.tsv"), min_count=3, workers=1,
                  llm_url=f"http://127.0.0.1:{endpoint.server_port}/v1", llm_key="TEST_KEY", llm_words=10, llm_requests=3, llm_timeout=2.0, llm_backoff=0.001)


def run(config: Config, **changes) -> None:
    translate.main(overrides(config, **changes))


def expected(config: Config) -> dict[str, list[str]]:
    return {word: [t for t in dict.fromkeys((word.upper(), word[::-1])) if t != word] for word in words_to_ask(config)}


def test_words_are_those_of_the_corpus(config):
    words = words_to_ask(config)
    assert len(words) == len(set(words)) > 50 and all(any(c.isalpha() for c in word) for word in words)


def test_words_are_asked_for_in_the_case_that_they_mostly_have(config):
    Path(config.source_of("en")).write_text("The Polish boat. Polish polish. The Polish house, the house.\n\nThe Polish house.\n\nPolish polish.\n", encoding="utf-8")
    assert set(words_to_ask(replace(config, min_count=1))) == {"Polish", "polish", "The", "house"}


def test_every_word_is_asked_for_once_and_the_dictionary_is_what_data_reads(config, endpoint, capsys):
    run(config)
    words = words_to_ask(config)
    assert endpoint.words == Counter(words) and endpoint.most_active <= 3
    assert len(endpoint.requests) == -(-len(words) // 10)
    for request in endpoint.requests:
        assert (request["path"], request["key"]) == ("/v1/chat/completions", f"Bearer {KEY}") and request["body"]["model"] == config.llm_model
    assert read(config.dictionary_of("de")).entries == {word: those for word, those in expected(config).items() if those}
    printed = capsys.readouterr().out
    assert f"{len(words):,} words" in printed and f"used {cost(100 * len(endpoint.requests), 50 * len(endpoint.requests), config)}" in printed and KEY not in printed
    run(config)
    assert endpoint.words == Counter(words)  # nothing is asked again
    assert KEY not in "".join(path.read_text() for path in Path(config.dictionary).parent.iterdir())


@pytest.mark.parametrize("trouble", ["429", "500", "silence", "no JSON", "no chat", "cut off"])
def test_trouble_that_passes_is_waited_for(config, endpoint, trouble):
    def misbehave(number, words):
        if number % 3 != 1:
            return None
        if trouble == "silence":
            time.sleep(0.5)
        return {"429": (429, "slow down", {"Retry-After": "0"}), "500": (500, "oops", {}), "silence": (200, "", {}), "no JSON": (200, "<html>", {}),
                "no chat": (200, '{"choices": []}', {}), "cut off": (200, "{", {"Content-Length": "5000"})}[trouble]

    endpoint.misbehave = misbehave
    run(config, llm_timeout=0.3)
    assert read(config.dictionary_of("de")).entries == {word: those for word, those in expected(config).items() if those}


def test_an_endpoint_is_left_alone_as_long_as_it_asks_to_be(config, endpoint):
    """Longer than our own pause, which is milliseconds here."""
    at: list[float] = []

    def misbehave(number, words):
        at.append(time.monotonic())
        return (429, "slow down", {"Retry-After": "1"}) if number == 1 else None

    endpoint.misbehave = misbehave
    run(config, llm_requests=1, min_count=20)
    assert len(at) > 1 and at[1] - at[0] >= 1 and read(config.dictionary_of("de")).entries


def test_words_answered_badly_are_asked_again_in_smaller_groups_and_then_reported(config, endpoint, capsys):
    words = words_to_ask(config)
    never, late = words[3], words[7]

    def misbehave(number, asked):
        answer = {word: [word.upper(), word[::-1]] for word in asked}
        if never in asked:
            answer[never] = "a string and no list"
        if late in asked and len(asked) > 2:
            del answer[late]
        return 200, chat("```json\n" + json.dumps(answer) + "\n```"), {}

    endpoint.misbehave = misbehave
    run(config)
    known = read(config.dictionary_of("de")).entries
    assert never not in known and late in known and set(words) - set(known) == {never}
    assert endpoint.words[never] == 3 and endpoint.words[late] == 2 and endpoint.words[words[0]] == 1
    printed = capsys.readouterr().out
    assert f"without a usable answer after 3 rounds: 1 words: {never} (de)" in printed
    endpoint.misbehave = lambda number, asked: None
    run(config)
    assert never in read(config.dictionary_of("de")).entries and endpoint.words[never] == 4


def test_one_request_that_is_refused_costs_its_words_only(config, endpoint, capsys):
    """A content filter says 400 to whatever has one of the words in it; the first words too, and when there are no others to ask for."""
    words = words_to_ask(config)
    for filtered in (words[25], words[0]):
        endpoint.misbehave = lambda number, asked: (400, "filtered", {}) if filtered in asked else None
        for _ in range(2):
            run(config, llm_requests=1)
            known = read(config.dictionary_of("de")).entries
            assert filtered not in known and f"1 words: {filtered} (de)" in capsys.readouterr().out and len(known) > len(words) - 5
        for name in ("", ".jsonl"):
            Path(config.dictionary_of("de") + name).unlink()


def test_what_is_answered_while_another_request_fails_is_kept(config, endpoint, capsys):
    def misbehave(number, asked):
        if number == 1:
            return 401, "bad key", {}
        time.sleep(0.3)

    endpoint.misbehave = misbehave
    with pytest.raises(UserError, match="status 401"):
        run(config)
    assert len(Cache(config.dictionary_of("de") + ".jsonl", "de", 5).known) >= 20  # of the two others under way
    assert "used 0 tokens" not in capsys.readouterr().out


def test_a_redirect_does_not_take_the_key_elsewhere(config, endpoint):
    endpoint.misbehave = lambda number, asked: (302, "", {"Location": f"http://127.0.0.1:{endpoint.server_port}/elsewhere"})
    with pytest.raises(UserError, match="status 302"):
        run(config)
    assert {request["path"] for request in endpoint.requests} == {"/v1/chat/completions"}


def test_no_content_and_no_usage(config, endpoint):
    """What a refusal of the model looks like."""
    reply = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": None}}
    endpoint.misbehave = lambda number, asked: (200, json.dumps(reply), {}) if number == 1 else None
    run(config)
    assert read(config.dictionary_of("de")).entries == {word: those for word, those in expected(config).items() if those}


def test_a_dictionary_of_ones_own_is_not_replaced(config, endpoint):
    path = Path(config.dictionary_of("de"))
    path.parent.mkdir()
    path.write_text("house\tHaus\n")
    with pytest.raises(UserError, match="is there and not made by translate.py"):
        run(config)
    assert path.read_text() == "house\tHaus\n" and not endpoint.requests


def test_fewer_translations_need_no_new_answers_and_more_do(config, endpoint):
    run(config)
    asked = endpoint.words.total()
    run(config, llm_translations=1)
    assert endpoint.words.total() == asked and max(len(those) for those in read(config.dictionary_of("de")).entries.values()) == 1
    run(config, llm_translations=6)
    assert endpoint.words.total() == 2 * asked
    run(config, llm_translations=6)
    assert endpoint.words.total() == 2 * asked


def test_words_that_the_endpoint_always_fails_on_cost_no_others(config, endpoint, capsys):
    word = words_to_ask(config)[25]
    endpoint.misbehave = lambda number, asked: (500, "too much", {}) if word in asked else None
    run(config, llm_requests=1)
    known = read(config.dictionary_of("de")).entries
    assert word not in known and f"1 words: {word} (de)" in capsys.readouterr().out and len(known) > len(words_to_ask(config)) - 5


def test_a_model_that_does_not_answer_as_asked_is_given_up_early(config, endpoint):
    endpoint.misbehave = lambda number, asked: (200, chat("Here you are: Haus, Heim"), {})
    with pytest.raises(UserError, match="the first 3 answers of .* cannot be used; .* found 'Here you are: Haus, Heim'"):
        run(config, llm_requests=1)
    assert len(endpoint.requests) <= 5


def test_answers_in_another_language_are_not_taken(config, endpoint):
    run(config)
    with pytest.raises(UserError, match="jsonl:1: an answer in 'de', expected 'fr'"):
        Cache(config.dictionary_of("de") + ".jsonl", "fr", 5)


def test_a_key_with_a_line_end_is_used_without(config, endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY + "\r\n")
    run(config)
    assert {request["key"] for request in endpoint.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_stops_at_once_and_does_not_tell_the_key(config, endpoint, status):
    endpoint.misbehave = lambda number, words: (status, f"bad key {KEY}", {})
    with pytest.raises(UserError, match=rf"refused the request \(status {status}\): bad key \*\*\*") as e:
        run(config)
    assert KEY not in str(e.value) and len(endpoint.requests) <= 9  # those under way at the time


def test_an_endpoint_that_stays_away_is_given_up_and_what_was_answered_is_kept(config, endpoint):
    endpoint.misbehave = lambda number, words: (503, "", {}) if number > 2 else None
    with pytest.raises(UserError, match="status 503, 6 times; what was answered is kept: run the same command again"):
        run(config, llm_requests=1)
    answered = len(Cache(config.dictionary_of("de") + ".jsonl", "de", 5).known)
    assert answered == 20 and not os.path.exists(config.dictionary_of("de"))
    endpoint.misbehave = lambda number, words: None
    endpoint.words.clear()
    run(config)
    assert endpoint.words.total() == len(words_to_ask(config)) - answered


def test_an_endpoint_that_takes_requests_and_never_answers_is_given_up(config, endpoint):
    endpoint.misbehave = lambda number, words: time.sleep(1.0)
    start = time.monotonic()
    with pytest.raises(UserError, match="timed out, 6 times; what was answered is kept"):
        run(config, llm_requests=1, llm_timeout=0.1)
    assert 0.6 <= time.monotonic() - start < 5 and len(endpoint.requests) >= 6
    assert not os.path.exists(config.dictionary_of("de"))


def test_an_answer_that_drips_in_is_not_waited_for(config, endpoint):
    """Every byte comes before the timeout of one, all together after that of the whole."""
    endpoint.misbehave = lambda number, words: (200, list(chat({word: [word.upper()] for word in words})), {})
    begin = time.monotonic()
    with pytest.raises(UserError, match="an answer that does not end, [0-9]+ times"):
        run(config, llm_timeout=0.3, llm_requests=1)
    assert time.monotonic() - begin < 30


def test_nobody_there(config, endpoint):
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(UserError, match="6 times; what was answered is kept"):
        run(config)


def test_a_line_cut_off_by_a_crash_is_asked_for_again(config, endpoint):
    run(config)
    path = Path(config.dictionary_of("de") + ".jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    endpoint.words.clear()
    run(config)
    assert endpoint.words == Counter([json.loads(lines[-1])["word"]]) and sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    path.write_bytes(lines[0] + b"not ours\n" + lines[1])
    with pytest.raises(UserError, match="jsonl:2: not an answer of translate.py, found b'not ours"):
        run(config)
    assert path.read_bytes() == lines[0] + b"not ours\n" + lines[1]  # nothing is thrown away


def test_a_dry_run_asks_for_nothing(config, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    run(config, dry_run=True, llm_price_in=1.0, llm_price_out=2.0)
    printed = capsys.readouterr().out
    assert f"{len(words_to_ask(config)):,} to ask for" in printed and "$0." in printed and not endpoint.requests
    with pytest.raises(UserError, match="the environment variable TEST_KEY is empty"):
        run(config)


@pytest.mark.parametrize("changes, message", [
    (dict(targets=("clone",)), "writes the file that `dictionary` names"), (dict(dictionary="en-de.txt"), "it must have {language} in it"),
    (dict(dictionary="dictionaries/*-{language}.txt"), "no pattern"), (dict(llm_url="localhost:8000"), "llm_url: expected http://"),
    (dict(llm_key="gsk_the_key_itself"), "llm_key: expected the name of an environment variable"), (dict(llm_url="http://me:secret@localhost/v1"), "without a password")])
def test_configs_that_cannot_be(config, changes, message):
    with pytest.raises(UserError, match=message) as e:
        run(config, **changes)
    assert "sk-" not in str(e.value) and "secret" not in str(e.value)


@pytest.mark.parametrize("answer, usable", [
    ('{"a": ["x", "y"], "b": ["z"]}', {"a": ["x", "y"], "b": ["z"]}), ('```json\n{"a": ["x"]}\n```', {"a": ["x"]}), ('{"a": [" x ", "x"]}', {"a": ["x"]}),
    ('{"a": []}', {}), ('{"a": "x"}', {}), ('{"a": [1]}', {}), ('{"a": ["1", "2", "3", "4"]}', {}), ('{"a": ["x\\ny"]}', {}), ('{"a": [""]}', {}),
    ('{"a": ["\\ud800"]}', {}), ('{"a": ["\u0645\u06cc\u200c\u0634\u0648\u062f"]}', {"a": ["\u0645\u06cc\u200c\u0634\u0648\u062f"]}),
    ('{"a": ["' + 81 * "x" + '"]}', {}), ('["a"]', {}), ("sorry", {}), ('{"A": ["x"], "c": ["x"]}', {}), (10000 * "[", {})])
def test_answers_are_read_strictly(answer, usable):
    assert parse(answer, ["a", "b"], 3) == usable


def test_the_prompt_says_what_is_wanted():
    text = prompt(["house", "naïve"], "en", "zh", 5)[-1]["content"]
    assert "English" in text and "Chinese (simplified characters)" in text and "5 most common" in text and text.endswith('["house", "naïve"]')


def test_cost_by_hand():
    assert cost(2_000_000, 500_000, replace(Config(), llm_price_in=0.5, llm_price_out=2.0)) == "2,000,000 tokens in, 500,000 out, $2.00"
