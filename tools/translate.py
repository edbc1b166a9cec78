"""
A dictionary from a language model: the pivot's words translated by any OpenAI-compatible chat endpoint (paper, section 3.1).

    export OPENAI_API_KEY=...
    python -m tools.translate config/mine.py --dry_run=true       # how many words, how many requests, what it may cost
    python -m tools.translate config/mine.py                      # asks, and writes the files that `dictionary` names

Asks for the words that the alignment table can use: those of the corpus seen more than min_count times, most frequent first. Every
answer is appended to DICTIONARY.jsonl at once, so that the same command goes on where it stopped and asks only for what is missing.
"""

import contextlib
import http.client
import json
import os
import random
import re
import threading
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import BinaryIO

from tqdm import tqdm

from runtime import config as configs
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError
from corpus.build import count_pivot_surfaces, documents
from runtime.files import only_user, write_text
from corpus.words import seen_words

LANGUAGE_NAMES = {"ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "de": "German", "el": "Greek", "es": "Spanish", "fr": "French", "he": "Hebrew",
                  "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian",
                  "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese (simplified characters)"}
ATTEMPTS = 6        # of one request, when the endpoint is busy, failing or silent
ROUNDS = 3          # in which words whose answers could not be used are asked for again
LONGEST = 80        # characters of a translation
REFUSALS = 3        # of requests, none answered so far (or failures one after the other, or first answers without use), until it is given up
LONGEST_PAUSE = 600.0     # seconds, whatever the endpoint asks for
ENGLISH_CHARACTERS_PER_TOKEN = 4  # for the estimate before


def prompt(words: list[str], pivot: str, language: str, k: int) -> list[dict[str, str]]:
    source, target = (LANGUAGE_NAMES.get(name, {"en": "English"}.get(name, name)) for name in (pivot, language))
    return [
        {"role": "system", "content": f"You write a bilingual dictionary from {source} to {target}."},
        {"role": "user", "content":
            f"For each {source} word of this JSON list give its {k} most common translations into {target}, the most common first; fewer when there are not "
            f"so many. Each is one word, or a short phrase where {target} needs one, in the form in which it stands in ordinary text, without explanations. "
            f"Names get the form that {target} uses for them. Answer with one JSON object only: every word of the list, exactly as written here, to the list "
            f"of its translations.\n{json.dumps(words, ensure_ascii=False)}"}]


def is_text(string: str) -> bool:
    """Whether there is no control character, line end or half a character in it; joiners, which some scripts need, are text."""
    return not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in string)


def parse(answer: str, words: list[str], k: int) -> dict[str, list[str]]:
    """The words whose translations the answer gives as asked: 1 to k different short strings. Others are left out."""
    answer = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip())
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    result = {}
    for word in words:
        those = found.get(word) if isinstance(found, dict) else None
        if not isinstance(those, list) or not all(isinstance(t, str) for t in those):
            continue
        those = list(dict.fromkeys(t.strip() for t in those))
        if 1 <= len(those) <= k and all(0 < len(t) <= LONGEST and is_text(t) for t in those):
            result[word] = those
    return result


class Refusal(UserError):
    """The endpoint said no to one request."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    text: str
    tokens_in: int
    tokens_out: int


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is a refusal: the key is for the endpoint that was named, and for no other."""

    def redirect_request(self, *_: object) -> None:
        return None


_endpoint = urllib.request.build_opener(NoRedirects)


def ask(messages: list[dict[str, str]], config: Config, key: str, stop: threading.Event) -> Answer:
    """
    One request, repeated after a growing pause while the endpoint is busy (429), failing (5xx), silent or not reached. Raises
    UserError when it refuses, or after ATTEMPTS. The key is in no message.
    """
    body = json.dumps({"model": config.llm_model, "messages": messages}).encode()
    request = urllib.request.Request(config.llm_url.rstrip("/") + "/chat/completions", body,
                                     {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
    for attempt in range(1, ATTEMPTS + 1):
        pause = 2 ** attempt * config.llm_backoff * (0.5 + random.random())
        try:
            deadline = time.monotonic() + config.llm_timeout  # of the whole answer; the timeout below is of each part
            received = b""
            with _endpoint.open(request, timeout=config.llm_timeout) as response:
                while part := response.read1(2**16):
                    received += part
                    if time.monotonic() > deadline:
                        raise TimeoutError("an answer that does not end")
            reply = json.loads(received)
            content, usage = reply["choices"][0]["message"]["content"], reply.get("usage") or {}
            # None is what a refusal or a filter gives: no usable answer
            return Answer(content if isinstance(content, str) else "", int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except urllib.error.HTTPError as e:
            problem = f"status {e.code}"
            if e.code not in (408, 429) and e.code < 500:
                detail = ""
                with contextlib.suppress(OSError, http.client.HTTPException):
                    detail = e.read(300).decode(errors="replace")
                detail = detail.replace(key, "***") if key else detail
                raise Refusal(f"{config.llm_url} refused the request ({problem}): {detail.strip()}", e.code) from None
            if (after := e.headers.get("Retry-After", "")).isdigit():
                pause = max(pause, min(int(after), LONGEST_PAUSE))
        except (OSError, http.client.HTTPException) as e:  # not reached, silent, cut off
            problem = str(getattr(e, "reason", e)) or type(e).__name__
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            problem = "an answer that is not a chat completion"
        if attempt < ATTEMPTS and stop.wait(pause):
            break
    raise UserError(f"{config.llm_url}: {problem}, {attempt} times; what was answered is kept: run the same command again")


class Cache:
    """
    Every usable answer ever given, one line each: {"word", "language", "model", "k", "translations"}, where k were asked for. A line cut
    off by a crash is dropped, and what was asked for with a smaller k is not known.
    """

    def __init__(self, path: str, language: str, k: int):
        self.path, self.language = path, language
        self.known: dict[str, list[str]] = {}
        whole = 0
        if os.path.exists(path):
            with open(path, "rb") as f:
                for number, line in enumerate(f, 1):
                    try:
                        row = json.loads(line)
                        if line.endswith(b"\n"):
                            if row["language"] != language:
                                raise UserError(f"{path}:{number}: an answer in {row['language']!r}, expected {language!r}; give each language a dictionary of its own")
                            if row["k"] >= k:
                                self.known |= parse(json.dumps({row["word"]: row["translations"][:k]}), [row["word"]], k)
                            whole += len(line)
                            continue
                    except (ValueError, LookupError, TypeError, RecursionError):
                        pass
                    if line.endswith(b"\n"):
                        raise UserError(f"{path}:{number}: not an answer of translate.py, found {line[:60]!r}; mend or delete the line")
        self.whole = whole
        self.file: BinaryIO | None = None

    def add(self, translations: dict[str, list[str]], model: str, k: int) -> None:
        if self.file is None:
            self.file = open(self.path, "ab")
            self.file.truncate(self.whole)
        for word, those in translations.items():
            self.known[word] = those
            line = json.dumps({"word": word, "language": self.language, "model": model, "k": k, "translations": those}, ensure_ascii=False)
            self.file.write(line.encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def groups(words: list[str], size: int) -> Iterator[list[str]]:
    return (words[i:i + size] for i in range(0, len(words), size))


def words_to_ask(config: Config) -> list[str]:
    """
    The corpus's words with a letter in them that are seen more than min_count times, most frequent first; in lower case, where that
    is as frequent: "House" as "house", and "Polish" as it stands.
    """
    counts = seen_words(count_pivot_surfaces(config, documents(config, config.pivot, f"words {config.pivot}"), []), config.min_count)
    words = [word for word, _ in counts.most_common() if any(c.isalpha() for c in word)]
    return list(dict.fromkeys(word.lower() if counts[word.lower()] >= counts[word] else word for word in words))


def cost(tokens_in: float, tokens_out: float, config: Config) -> str:
    text = f"{tokens_in:,.0f} tokens in, {tokens_out:,.0f} out"
    if config.llm_price_in or config.llm_price_out:
        text += f", ${(tokens_in * config.llm_price_in + tokens_out * config.llm_price_out) / 1e6:,.2f}"
    return text


@dataclass
class Used:
    """What the answers have cost so far."""

    tokens_in: int = 0
    tokens_out: int = 0


def translate(words: list[str], language: str, config: Config, key: str, cache: Cache, used: Used) -> list[str]:
    """Ask for all words, several requests at a time; answers go to the cache. Returns the words that have no usable one."""
    answered = refused = failed = 0
    stop = threading.Event()
    missing = [word for word in words if word not in cache.known]
    waiting: dict[Future, list[str]] = {}

    def take(future: Future, group: list[str]) -> None:
        nonlocal answered, refused, failed
        try:
            answer = future.result()
        except UserError as e:  # it may be for these words alone
            if isinstance(e, Refusal):
                refused += 1
                for_all = e.status not in (400, 422) or not (answered or cache.known or refused < REFUSALS)
            else:
                failed += 1
                for_all = not answered or failed == REFUSALS
            if for_all:
                raise
            tqdm.write(f"{e}; left out for now: {', '.join(group[:3])}{', ...' * (len(group) > 3)}")
            return
        answered += 1
        failed = 0
        found = parse(answer.text, group, config.llm_translations)
        cache.add(found, config.llm_model, config.llm_translations)
        used.tokens_in += answer.tokens_in
        used.tokens_out += answer.tokens_out
        bar.update(len(found))
        if not cache.known and answered == REFUSALS:
            raise UserError(f"{config.llm_url}: the first {answered} answers of {config.llm_model} cannot be used; expected one JSON object with the words, "
                            f"found {answer.text.strip()[:80]!r}; use another model")

    with ThreadPoolExecutor(config.llm_requests) as pool, tqdm(total=len(missing), desc=f"words {language}", unit="word", disable=None) as bar:
        try:
            for round_ in range(ROUNDS):  # the later ones with fewer words at a time: what is bad in one answer spoils less
                todo = groups(missing, max(1, config.llm_words // 4 ** round_))
                while True:
                    while len(waiting) < 2 * config.llm_requests and (group := next(todo, None)) is not None:
                        waiting[pool.submit(ask, prompt(group, config.pivot, language, config.llm_translations), config, key, stop)] = group
                    if not waiting:
                        break
                    for future in wait(waiting, return_when=FIRST_COMPLETED)[0]:
                        take(future, waiting.pop(future))
                missing = [word for word in missing if word not in cache.known]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)  # requests under way are paid for, so their answers are waited for
            for future, group in waiting.items():
                if not future.cancelled():
                    with contextlib.suppress(UserError):
                        take(future, group)
            raise
    return missing


def write_dictionary(path: str, words: list[str], known: dict[str, list[str]]) -> None:
    write_text(path, "".join(f"{word}\t{translation}\n" for word in words for translation in known.get(word, ())))


def main(arguments: list[str]) -> None:
    config = configs.load(arguments, __doc__)
    targets = config.written[1:]
    if not targets or "{language}" not in config.dictionary or any(c in config.dictionary for c in "*?["):
        raise UserError("translate.py writes the file that `dictionary` names, for every target but En-Clone: it must have {language} in it and no "
                        f"pattern; found {config.dictionary!r} and targets {', '.join(config.targets)}")
    key = os.environ.get(config.llm_key, "").strip()
    if not key and not config.dry_run:
        raise UserError(f"the environment variable {config.llm_key} is empty; set it to the endpoint's key (any word, if it needs none), or name another with --llm_key")
    words = words_to_ask(config)
    failed = []
    for language in targets:
        path = config.dictionary_of(language)
        if os.path.exists(path) and not os.path.exists(path + ".jsonl"):
            raise UserError(f"{path} is there and not made by translate.py, which would replace it; give another name with --dictionary")
        with only_user(path + ".jsonl"), contextlib.closing(Cache(path + ".jsonl", language, config.llm_translations)) as cache:
            missing = [word for word in words if word not in cache.known]
            requests = list(groups(missing, config.llm_words))
            characters = sum(len(message["content"]) for group in requests for message in prompt(group, config.pivot, language, config.llm_translations))
            # Of an answer: the word, and k translations of its length in letters, each of which may be a token in another script.
            out = sum(len(word) / ENGLISH_CHARACTERS_PER_TOKEN + config.llm_translations * (len(word) / 2 + 2) for word in missing)
            print(f"{language}: {len(words):,} words, {len(missing):,} to ask for in {len(requests):,} requests; estimated "
                  f"{cost(characters / ENGLISH_CHARACTERS_PER_TOKEN, out, config)}")
            if config.dry_run:
                continue
            used = Used()
            try:
                failed += [f"{word} ({language})" for word in translate(words, language, config, key, cache, used)]
                write_dictionary(path, words, cache.known)
            finally:
                print(f"{path}: {sum(word in cache.known for word in words):,} words; used {cost(used.tokens_in, used.tokens_out, config)}")
    if failed:
        print(f"without a usable answer after {ROUNDS} rounds: {len(failed):,} words: {', '.join(failed[:20])}{' ...' if len(failed) > 20 else ''}; "
              "the dictionary is written without them, the same command asks for them again")


if __name__ == "__main__":
    errors.run(main)
