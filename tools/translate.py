"""
A dictionary from a language model: the pivot's words translated by an OpenAI-compatible endpoint (paper, section 3.1).

    pip install openai && export OPENAI_API_KEY=...
    python -m tools.translate config/mine.py --dry_run=true       # how many words and requests, what it may cost
    python -m tools.translate config/mine.py                      # asks, and writes the files that `dictionary` names

Asks for the words that the alignment table can use: those seen more than min_count times, the most frequent first.
Every answer is appended to DICTIONARY.jsonl at once: the same command goes on, and asks only for what is missing.
"""

import json
import os
import re
import threading
import unicodedata
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from corpus.build import count_pivot_surfaces, documents
from corpus.words import seen_words
from runtime import config as configs
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError
from runtime.files import exclusive, write_text

WORDS = 20                  # of a request, fewer when answers are cut short
ROUNDS = 3                  # in which what has no usable answer is asked for again, in shorter requests
ATTEMPTS, TIMEOUT = 7, 120  # of a request, by the openai package, and seconds of each
FAILURES = 3                # of requests, one after the other, until the endpoint is given up
LONGEST = 80                # characters of a translation
PAIR = re.compile(r'("(?:[^"\\]|\\.)*")\s*:\s*(\[[^\[\]]*\])')   # "word": ["translation", ...]
NO_CHAT = (LookupError, AttributeError, TypeError, ValueError)    # what reading another kind of answer raises


def prompt(words: list[str], language: str, config: Config) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You write a bilingual dictionary. Languages are named by their ISO codes."},
            {"role": "user", "content": (
                f"For each word of this JSON list, of language {config.pivot!r}, give its {config.llm_translations} "
                f"most common translations into language {language!r}, the most common first; fewer when there are not "
                "so many. Each is one word, or a short phrase where that language needs one, as it stands in ordinary "
                "text, without explanations. Names get the form that it uses. Answer with one JSON object only: every "
                "word of the list, exactly as written here, to the list of its translations.\n"
                + json.dumps(words, ensure_ascii=False))}]


def usable(translations: Any, k: int) -> list[str]:
    """1 to k different short strings without control characters, or [] when they are not that."""
    if not isinstance(translations, list) or not all(isinstance(text, str) for text in translations):
        return []
    texts = list(dict.fromkeys(text.strip() for text in translations))
    has_control = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for text in texts for c in text)
    return [] if has_control or len(texts) > k or not all(0 < len(text) <= LONGEST for text in texts) else texts


def parse(answer: str, words: list[str], k: int) -> dict[str, list[str]]:
    """The words with usable translations in an answer, whatever thinking or prose stands around, or is cut off."""
    # Thinking may hold drafts, and begin before the answer does; without an end there is nothing else.
    found, answer = {}, re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).rpartition("</think>")[2]
    # Pairs are looked for, not one whole object, as an answer that is cut short has none.
    for pair in PAIR.findall(answer):
        try:
            word, translations = map(json.loads, pair)
        except ValueError:
            continue
        if word in words and (texts := usable(translations, k)):
            found[word] = texts
    return found


def read_answers(path: str, language: str, k: int) -> dict[str, list[str]]:
    """Word -> at most k translations, of the answers so far that k or more were asked for in."""
    known: dict[str, list[str]] = {}
    if not os.path.exists(path):
        return known
    with open(path, "r+b") as f:
        *lines, cut = f.read().split(b"\n")
        # A crash has cut off the last line: it goes, unless it is none of ours.
        lines += [] if b'{"word": '.startswith(cut[:9]) else [cut]
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                texts = usable(row["translations"][:k], k)
                if row["language"] != language or not isinstance(row["word"], str) or not texts:
                    raise ValueError
                if row["k"] >= k:
                    known[row["word"]] = texts
            except (ValueError, LookupError, TypeError, RecursionError) as e:
                raise UserError(f"{path}:{number}: expected an answer in {language!r} as translate.py writes it, found "
                                f"{line[:80]!r}; mend or delete the line, or name another --dictionary") from e
        f.truncate(sum(len(line) + 1 for line in lines))
    return known


def words_to_ask(config: Config) -> list[str]:
    """
    The corpus's words with a letter that are seen more than min_count times, most frequent first; in lower case, where
    that is as frequent: "House" as "house", and "Polish" as it stands.
    """
    texts = documents(config, config.pivot, f"words {config.pivot}")
    counts = seen_words(count_pivot_surfaces(config, texts, []), config.min_count)
    words = [word for word, _ in counts.most_common() if any(c.isalpha() for c in word)]
    return list(dict.fromkeys(word.lower() if counts[word.lower()] >= counts[word] else word for word in words))


def cost(used: Counter, config: Config) -> str:
    dollars = (used["in"] * config.llm_price_in + used["out"] * config.llm_price_out) / 1e6
    return f"{used['in']:,.0f} tokens in, {used['out']:,.0f} out" + f", ${dollars:,.2f}" * (dollars > 0)


def connect(config: Config, key: str) -> Any:
    """The openai package's client: it asks again after 429, 5xx and timeouts, when Retry-After says."""
    try:
        import openai
    except ImportError as e:
        raise UserError("to ask a language model, install the openai package: pip install openai") from e
    # No proxy knows what listens on this machine, and a redirect would take the key elsewhere.
    local = urlsplit(config.llm_url).hostname in ("localhost", "127.0.0.1", "::1")
    return openai.OpenAI(api_key=key, base_url=config.llm_url, timeout=TIMEOUT, max_retries=ATTEMPTS - 1,
                         http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local))


def ask(client: Any, words: list[str], language: str, config: Config) -> tuple[str, bool, Counter]:
    """The answer's text, whether it is cut short, and the tokens used."""
    import openai
    url = str(client.base_url)
    try:
        reply = client.chat.completions.create(model=config.llm_model, messages=prompt(words, language, config))
        choice, usage = reply.choices[0], reply.usage
        text, is_cut = choice.message.content or "", choice.finish_reason == "length"
    except (openai.NotFoundError, *NO_CHAT):
        # A base URL that leads nowhere may lack its /v1.
        if "/v1" in url:
            raise
        client.base_url = url.rstrip("/") + "/v1"
        return ask(client, words, language, config)
    tokens = {"in": getattr(usage, "prompt_tokens", 0), "out": getattr(usage, "completion_tokens", 0)}
    return text, is_cut, Counter({name: count or 0 for name, count in tokens.items()})


class Translation:
    """Words and their translations into one language, asked for in several requests at a time."""

    def __init__(self, language: str, config: Config):
        self.language, self.config, self.path = language, config, config.dictionary_of(language) + ".jsonl"
        self.known = read_answers(self.path, language, config.llm_translations)
        self.used: Counter[str] = Counter()
        self.failures, self.size, self.lock = 0, WORDS, threading.Lock()

    def request(self, client: Any, words: list[str]) -> tuple[int, bool, str]:
        """Ask, and keep what is answered: the status (0 for none), whether it is cut short, and the text."""
        import openai
        try:
            text, is_cut, tokens = ask(client, words, self.language, self.config)
        except openai.APIStatusError as e:
            return e.status_code, False, f"status {e.status_code}: {e.response.text}"
        except (openai.OpenAIError, *NO_CHAT) as e:
            return 0, False, str(e.__cause__ or e)
        found = parse(text, words, self.config.llm_translations)
        with self.lock, open(self.path, "a", encoding="utf-8") as f:
            for word, texts in found.items():
                row = {"word": word, "language": self.language, "model": self.config.llm_model,
                       "k": self.config.llm_translations, "translations": texts}
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.known.update(found)
            self.used.update(tokens)
        return 200, is_cut, f"no usable answer: {text}"

    def judge(self, answer: tuple[int, bool, str], words: list[str], key: str) -> None:
        """Raises UserError when a request's answer says that there is no use in asking on."""
        status, is_cut, text = answer
        if is_cut and len(words) > 1:
            self.size = min(self.size, len(words) // 2)
        elif status == 200 and self.known:
            self.failures = 0
        # A content filter says 400 or 422 of some words; it counts while there are no others.
        elif status not in (400, 413, 422) or not self.known:
            self.failures += 1
        text = f"{self.config.llm_url}, {self.config.llm_model}: {' '.join(text.replace(key, '***').split())[:300]}"
        if self.failures == FAILURES or 300 <= status < 400 or status in (401, 402, 403, 404, 405):
            raise UserError(f"{text}; what was answered is kept: the same command goes on")
        if status != 200:
            tqdm.write(f"{text}; left out for now: {', '.join(words[:3])} ...")

    def run(self, client: Any, words: list[str]) -> None:
        """Ask for the words that are not known, in ROUNDS rounds."""
        bar = tqdm(total=len(words), initial=len(self.known), desc=f"words {self.language}", unit="word", disable=None)
        # Leaving the pool waits for requests under way, which are paid for: their answers are kept whatever happens.
        with ThreadPoolExecutor(self.config.llm_requests) as pool, bar:
            for _ in range(ROUNDS):
                todo: deque[str] = deque(word for word in words if word not in self.known)
                running: dict[Future, list[str]] = {}
                while todo or running:
                    while todo and len(running) < self.config.llm_requests:
                        group = [todo.popleft() for _ in range(min(self.size, len(todo)))]
                        running[pool.submit(self.request, client, group)] = group
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self.judge(future.result(), running.pop(future), client.api_key)
                    bar.update(len(self.known) - bar.n)
                self.size = max(1, self.size // 4)


def main(arguments: list[str]) -> None:
    config = configs.load(arguments, __doc__)
    if not config.written[1:] or "{language}" not in config.dictionary or any(c in config.dictionary for c in "*?["):
        raise UserError("translate.py writes the file that `dictionary` names for every target but En-Clone: expected "
                        f"{{language}} in it and no pattern; found {config.dictionary!r} and {config.targets}")
    key = os.environ.get(config.llm_key, "").strip()
    if not key and not config.dry_run:
        raise UserError(f"the environment variable {config.llm_key} is empty; set it to the endpoint's key (any word, "
                        "if it needs none), or name another with --llm_key")
    client, words = None if config.dry_run else connect(config, key), words_to_ask(config)
    for language in config.written[1:]:
        path = config.dictionary_of(language)
        if os.path.exists(path) and not os.path.exists(path + ".jsonl"):
            raise UserError(f"{path} is there and not made by translate.py, which would replace it; use another name")
        with exclusive(path + ".jsonl"):
            translation = Translation(language, config)
            missing = [word for word in words if word not in translation.known]
            groups = [missing[i:i + WORDS] for i in range(0, len(missing), WORDS)]
            # English has some 4 characters a token; in other scripts a letter may be half a token.
            asked = sum(len(message["content"]) for group in groups for message in prompt(group, language, config)) / 4
            answer = sum(len(word) / 4 + config.llm_translations * (len(word) / 2 + 2) for word in missing)
            print(f"{language}: {len(words):,} words, {len(missing):,} to ask for in {len(groups):,} requests; "
                  f"estimated {cost(Counter({'in': asked, 'out': answer}), config)}")
            if config.dry_run:
                continue
            try:
                # Whatever ends it, there is a dictionary of what is known.
                translation.run(client, words)
            finally:
                known, left = translation.known, [word for word in words if word not in translation.known]
                if known:
                    write_text(path, "".join(f"{word}\t{text}\n" for word in words for text in known.get(word, ())))
                print(f"{path}: {len(words) - len(left):,} words; used {cost(translation.used, config)}; without a "
                      f"usable answer, and asked for again by the same command: {len(left):,} {', '.join(left[:20])}")


if __name__ == "__main__":
    errors.run(main)
