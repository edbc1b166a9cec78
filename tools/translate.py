"""
A dictionary from a language model: the pivot's words translated by an OpenAI-compatible endpoint (paper, section 3.1).

    pip install openai language_data && export OPENAI_API_KEY=...
    python -m tools.translate config/mine.py --dry_run=true       # how many words and requests
    python -m tools.translate config/mine.py                      # asks, and adds to the files that `dictionary` names

Asks for the words that the alignment table can use: those seen more than min_count times, the most frequent first.
Every answer is appended at once: the same command goes on, and asks only for what the dictionary lacks.
"""

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

import langcodes
from tqdm import tqdm

from corpus.build import count_training
from corpus.dictionary import pair_of
from corpus.languages import is_known, lowercase
from corpus.readers import read_lines
from corpus.words import count_chunks, count_surfaces, seen_words
from runtime.config import Config, load
from runtime.errors import UserError, run_main
from runtime.files import exclusive

# Words of a request: those without a usable answer are asked for again, fewer at a time.
SIZES = (20, 5, 1)
# Requests at a time, attempts of each, seconds of an attempt, and how many in a row may bring nothing.
REQUESTS, ATTEMPTS, TIMEOUT, FAILURES = 8, 7, 300, 3
# Translations of a word, and characters of each, at most.
MOST, LONGEST = 5, 80
# "word": ["translation", ...], as JSON has it.
STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
PAIR = re.compile(rf"{STRING}\s*:\s*\[\s*{STRING}(?:\s*,\s*{STRING})*\s*\]")


def english_name(language: str) -> str:
    """ "Icelandic" for "is"; a name that is no language's as it stands. """
    return langcodes.Language.get(language).display_name() if is_known(language) else language


def prompt(words: list[str], pivot: str, language: str) -> str:
    return (f"Give the most common translations of each word of this JSON list from {english_name(pivot)} into "
            f"{english_name(language)}, at most {MOST}, the most common first. Each is one word, or a short phrase "
            "where that language needs one, as it stands in ordinary text, without explanations. Answer with one JSON "
            "object only: every word of the list, exactly as written here, to the list of its translations.\n"
            + json.dumps(words, ensure_ascii=False))


def parse(answer: str, words: list[str]) -> dict[str, list[str]]:
    """The words with their translations, whatever thinking or prose stands around them, or is cut off."""
    # Thinking may hold drafts, and begin before the answer does; without an end there is nothing else.
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).rpartition("</think>")[2]
    found = {}
    # Pairs are looked for, not one whole object, as an answer that is cut short has none.
    for pair in PAIR.findall(answer):
        for word, texts in json.loads("{" + pair + "}").items():
            # A dictionary has a line for each; and half a surrogate pair cannot be written.
            texts = dict.fromkeys(" ".join(text.encode(errors="ignore").decode().split()) for text in texts)
            found[word] = [text for text in texts if 0 < len(text) <= LONGEST][:MOST]
    return {word: found[word] for word in words if found.get(word)}


def words_to_ask(config: Config) -> list[str]:
    """The corpus's words with a letter that are seen more than min_count times, the most frequent first."""
    chunks, _ = count_training(config, config.pivot, count_chunks)
    counts = seen_words(count_surfaces(chunks), config.min_count)
    words = [word for word, _ in counts.most_common() if any(c.isalpha() for c in word)]
    # In lower case, where that is as frequent: "House" as "house", and "Polish" as it stands.
    small = {word: lowercase(word, config.pivot) for word in words}
    return list(dict.fromkeys(small[word] if counts[small[word]] >= counts[word] else word for word in words))


def connect(config: Config) -> Any:
    """The openai package's client: it asks again after 429, 5xx and timeouts, when Retry-After says."""
    import openai
    key = os.environ.get(config.llm_key, "").strip()
    if not key:
        raise UserError(f"set the environment variable {config.llm_key} to the endpoint's key, or to any word")
    url = config.llm_url.strip(" /").removesuffix("/chat/completions")
    try:
        # No proxy knows what listens on this machine, and a redirect would take the key elsewhere.
        local = re.fullmatch(r"localhost|127\.[\d.]+|0\.0\.0\.0|::1?", urlsplit(url).hostname or "")
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local)
        # Some hosts turn the package's own User-Agent away.
        return openai.OpenAI(api_key=key, base_url=url, timeout=TIMEOUT, max_retries=ATTEMPTS - 1, http_client=http,
                             default_headers={"User-Agent": "prealign"})
    # An address that is none, or a proxy that cannot be used: each has an exception of its own.
    except Exception as e:
        raise UserError(f"llm_url={config.llm_url!r}, or a proxy of the environment: {e}") from e


def ask(client: Any, text: str, model: str) -> tuple[int, str]:
    """The status of a request (0: none, or an error in spite of it) and the answer, or why there is none."""
    import openai
    url, body, messages = str(client.base_url), "", [{"role": "user", "content": text}]
    try:
        body = client.chat.completions.with_raw_response.create(model=model, messages=messages).http_response.text
        content = json.loads(body)["choices"][0]["message"]["content"] or "empty, as where thinking takes all"
        # Some send parts, of which thinking is one without "text".
        return 200, content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    except openai.APIStatusError as e:
        status, reason = e.status_code, e.response.text + e.response.headers.get("location", "")
    except openai.OpenAIError as e:
        status, reason = 0, str(e.__cause__ or e)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        status, reason = 0 if '"error"' in body else 200, body or str(e)
    # A base URL may lack its /v1: what is there instead says so, or answers with a page or an error in spite of a 200.
    if "/v1" not in url and (status in (404, 405) or (body and '"choices"' not in body)):
        other = client.copy(base_url=url.rstrip("/") + "/v1")
        answer = ask(other, text, model)
        if answer[0] not in (404, 405):
            client.base_url = other.base_url
            return answer
    return status, reason


def translate(words: list[str], known: set[str], language: str, client: Any, config: Config) -> None:
    """Ask for the words that are not `known`, which grows by what is found. Raises UserError when it is of no use."""
    path, lock, before = config.dictionary_of(language), threading.Lock(), len(known)

    def request(group: list[str]) -> tuple[int, str, int]:
        status, answer = ask(client, prompt(group, config.pivot, language), config.llm_model)
        found = parse(answer, group) if status == 200 else {}
        # In one piece, so that a kill leaves whole lines.
        with lock, open(path, "a", encoding="utf-8") as f:
            f.write("".join(f"\n{word}\t{text}" for word, texts in found.items() for text in texts))
            known.update(found)
        return status, " ".join(answer.replace(client.api_key, "***").split())[:300], len(found)

    for size in SIZES:
        left, failures = [word for word in words if word not in known], 0
        pool = ThreadPoolExecutor(REQUESTS)
        requests = [pool.submit(request, left[i:i + size]) for i in range(0, len(left), size)]
        try:
            for future in tqdm(as_completed(requests), f"{language}, {size} at a time", len(requests), disable=None):
                status, text, found = future.result()
                # A word that a content filter refuses (400), or that is answered oddly, ends nothing where others are
                # answered, or few were left; but a model's name misspelt is 400 too.
                others = len(known) > before or (known and len(left) <= SIZES[0])
                odd_word = size == 1 and status in (200, 400, 413, 422) and others
                failures = 0 if found or odd_word else failures + 1
                if status != 200:
                    tqdm.write(f"status {status}: {text}")
                # Answers to fewer words are not cut off before they begin.
                if failures == FAILURES and size > 1:
                    break
                if failures == FAILURES:
                    raise UserError(f"{client.base_url} {config.llm_model}: status {status}: {text}; what was answered "
                                    "is kept: the same command goes on")
        finally:
            # Requests under way are paid for: their answers are waited for and kept, whatever has happened.
            pool.shutdown(cancel_futures=True)


def main(arguments: list[str]) -> None:
    config = load(arguments, __doc__)
    if not config.written[1:] or "{language}" not in config.dictionary or any(c in config.dictionary for c in "*?["):
        raise UserError("translate.py writes the file that `dictionary` names for every target but En-Clone: expected "
                        f"{{language}} in it and no pattern; found {config.dictionary!r} and {config.targets}")
    client, words = None if config.dry_run else connect(config), words_to_ask(config)
    for language in config.written[1:]:
        path = config.dictionary_of(language)
        with exclusive(path):
            lines = read_lines(path) if os.path.exists(path) else ()
            known = {pair_of(line)[0] for _, line in lines if line.strip()}
            if client:
                translate(words, known, language, client, config)
        left = [word for word in words if word not in known]
        print(f"{path}: {len(words) - len(left):,} of {len(words):,} words seen more than min_count={config.min_count} "
              f"times; left to ask for: {len(left):,} {', '.join(left[:20])}")


if __name__ == "__main__":
    run_main(main)
