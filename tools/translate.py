"""
A dictionary from a language model: the pivot's words translated by an OpenAI-compatible endpoint (paper, section 3.1).

    pip install openai && export OPENAI_API_KEY=...
    python -m tools.translate config/mine.py --dry_run=true       # how many words and requests, what it may cost
    python -m tools.translate config/mine.py                      # asks, and writes the files that `dictionary` names

Asks for the words that the alignment table can use: those seen more than min_count times, the most frequent first.
Every answer is appended to DICTIONARY.jsonl at once: the same command goes on, and asks only for what is missing.
"""

import contextlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from corpus.build import count_in, documents
from corpus.words import count_chunks, count_surfaces, seen_words
from runtime import config as configs
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import exclusive, write_text

ROUNDS = (20, 5, 1)         # words of a request: what got no usable answer is asked for again, in shorter requests
ATTEMPTS, TIMEOUT = 7, 120  # of a request, by the openai package, and seconds of each
FAILURES = 3                # of requests, one after the other, until the endpoint is given up
LONGEST = 80                # characters of a translation
STRING = r'"(?:[^"\\]|\\.)*"'
PAIR = re.compile(rf"{STRING}\s*:\s*\[\s*{STRING}(?:\s*,\s*{STRING})*\s*\]")  # "word": ["translation", ...]



def prompt(words: list[str], language: str, config: Config) -> str:
    return (f"For each word of this JSON list, of language {config.pivot!r} (an ISO code), give its most common "
            f"translations into language {language!r}, at most {config.llm_translations}, the most common first. Each "
            "is one word, or a short phrase where that language needs one, as it stands in ordinary text, without "
            "explanations. Answer with one JSON object only: every word of the list, exactly as written here, to the "
            f"list of its translations.\n{json.dumps(words, ensure_ascii=False)}")


def parse(answer: str, words: list[str], k: int) -> dict[str, list[str]]:
    """The words with at most k translations each, whatever thinking or prose stands around them, or is cut off."""
    # Thinking may hold drafts, and begin before the answer does; without an end there is nothing else.
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).rpartition("</think>")[2]
    found = {}
    # Pairs are looked for, not one whole object, as an answer that is cut short has none.
    for pair in PAIR.findall(answer):
        with contextlib.suppress(ValueError):
            for word, texts in json.loads("{" + pair + "}").items():
                # A dictionary has a line for each; and half a surrogate pair cannot be written.
                texts = dict.fromkeys(" ".join(text.encode(errors="ignore").decode().split()) for text in texts)
                found[word] = [text for text in texts if 0 < len(text) <= LONGEST][:k]
    return {word: found[word] for word in words if found.get(word)}


def read_answers(path: str, k: int) -> dict[str, list[str]]:
    """Word -> at most k translations, of the answers so far that k or more were asked for in."""
    known: dict[str, list[str]] = {}
    if not os.path.exists(path):
        return known
    with open(path, "r+b") as f:
        # A crash may have cut off the last line: it goes.
        *lines, cut = f.read().split(b"\n")
        f.truncate(f.tell() - len(cut))
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["k"] >= k:
                known[row["word"]] = row["translations"][:k]
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            raise UserError(f"{path}:{number}: expected an answer as translate.py writes it, found {line[:80]!r}; mend "
                            "or delete the line, or name another --dictionary") from e
    return known


def words_to_ask(config: Config) -> list[str]:
    """The corpus's words with a letter that are seen more than min_count times, the most frequent first."""
    texts = documents(config, config.pivot, f"words {config.pivot}")
    counts = seen_words(count_surfaces(count_in(config, count_chunks, texts)), config.min_count)
    words = [word for word, _ in counts.most_common() if any(c.isalpha() for c in word)]
    # In lower case, where that is as frequent: "House" as "house", and "Polish" as it stands.
    return list(dict.fromkeys(word.lower() if counts[word.lower()] >= counts[word] else word for word in words))


def missing(words: list[str], known: dict[str, list[str]], size: int) -> list[list[str]]:
    """The words that are not known, in requests of a size."""
    words = [word for word in words if word not in known]
    return [words[i:i + size] for i in range(0, len(words), size)]


def connect(config: Config) -> Any:
    """The openai package's client: it asks again after 429, 5xx and timeouts, when Retry-After says."""
    key = os.environ.get(config.llm_key, "").strip()
    if not key:
        raise UserError(f"the environment variable {config.llm_key} is empty; set it to the endpoint's key (any word, "
                        "if it needs none), or name another with --llm_key")
    try:
        import openai
    except ImportError as e:
        raise UserError("to ask a language model, install the openai package: pip install openai") from e
    # No proxy knows what listens on this machine, and a redirect would take the key elsewhere.
    local = urlsplit(config.llm_url).hostname in ("localhost", "127.0.0.1", "::1")
    return openai.OpenAI(api_key=key, base_url=config.llm_url, timeout=TIMEOUT, max_retries=ATTEMPTS - 1,
                         http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local))


def ask(client: Any, text: str, model: str) -> tuple[int, str]:
    """The status of a request (0 for no answer at all), and the answer or the reason that there is none."""
    import openai
    url = str(client.base_url)
    try:
        reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
        return 200, reply.choices[0].message.content or ""
    except openai.APIStatusError as e:
        # A base URL that leads nowhere may lack its /v1.
        if e.status_code == 404 and "/v1" not in url:
            client.base_url = url.rstrip("/") + "/v1"
            return ask(client, text, model)
        return e.status_code, e.response.text
    except (openai.OpenAIError, LookupError, AttributeError, TypeError, ValueError) as e:
        return 0, str(e.__cause__ or e)


def translate(words: list[str], known: dict[str, list[str]], language: str, client: Any, config: Config) -> None:
    """Ask for the words that are not `known`, and keep the answers there. Raises UserError when it is of no use."""
    path, lock, failures = config.dictionary_of(language) + ".jsonl", threading.Lock(), 0

    def request(group: list[str]) -> tuple[int, str]:
        status, text = ask(client, prompt(group, language, config), config.llm_model)
        found = parse(text, group, config.llm_translations) if status == 200 else {}
        with lock, open(path, "a", encoding="utf-8") as f:
            for word, texts in found.items():
                row = {"word": word, "model": config.llm_model, "k": config.llm_translations, "translations": texts}
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
            known.update(found)
        return status, text

    for size in ROUNDS:
        pool = ThreadPoolExecutor(config.llm_requests)
        requests = [pool.submit(request, group) for group in missing(words, known, size)]
        try:
            bar = tqdm(as_completed(requests), f"{language}, {size} words at a time", len(requests), disable=None)
            for status, text in (future.result() for future in bar):
                text = " ".join(text.replace(client.api_key, "***").split())[:300]
                text = f"{config.llm_url}, {config.llm_model}: status {status}: {text}"
                # What a content filter refuses, and odd answers, stop nothing where others are answered.
                failures = 0 if status in (200, 400, 413, 422) and known else failures + 1
                if failures == FAILURES:
                    raise UserError(f"{text}; what was answered is kept: the same command goes on")
                if status != 200:
                    tqdm.write(text)
        finally:
            # Requests under way are paid for: their answers are waited for and kept, whatever has happened.
            pool.shutdown(cancel_futures=True)


def main(arguments: list[str]) -> None:
    config = configs.load(arguments, __doc__)
    if not config.written[1:] or "{language}" not in config.dictionary or any(c in config.dictionary for c in "*?["):
        raise UserError("translate.py writes the file that `dictionary` names for every target but En-Clone: expected "
                        f"{{language}} in it and no pattern; found {config.dictionary!r} and {config.targets}")
    client, words = None if config.dry_run else connect(config), words_to_ask(config)
    for language in config.written[1:]:
        path = config.dictionary_of(language)
        if os.path.exists(path) and not os.path.exists(path + ".jsonl"):
            raise UserError(f"{path} is there and not made by translate.py, which would replace it; use another name")
        with exclusive(path + ".jsonl"):
            known = read_answers(path + ".jsonl", config.llm_translations)
            requests = missing(words, known, ROUNDS[0])
            # English has some 4 characters a token; in other scripts a letter may be half a token.
            asked = sum(len(prompt(group, language, config)) / 4 for group in requests)
            answered = sum(len(word) / 4 + config.llm_translations * (len(word) / 2 + 2)
                           for group in requests for word in group)
            dollars = (asked * config.llm_price_in + answered * config.llm_price_out) / 1e6
            print(f"{language}: {sum(map(len, requests)):,} of {len(words):,} words to ask for in {len(requests):,} "
                  f"requests, some {asked:,.0f} tokens in, {answered:,.0f} out, ${dollars:,.2f} at llm_price_*")
            if config.dry_run:
                continue
            try:
                translate(words, known, language, client, config)
            finally:
                # Whatever ended it, there is a dictionary of what is known.
                if known:
                    write_text(path, "".join(f"{word}\t{text}\n" for word in words for text in known.get(word, ())))
                left = [word for word in words if word not in known]
                print(f"{path}: {len(words) - len(left):,} words; without a usable answer, and asked for again by the "
                      f"same command: {len(left):,} {', '.join(left[:20])}")


if __name__ == "__main__":
    errors.run(main)
