"""
Bins to batches: which rows make step s, and codeswitching, on whole batches with array operations.

Stateless: every random choice is a hash of (seed, what it is for, where it is), so the rows of a step are the same after
a resume and for any number of processes, and nothing has to be saved or fast-forwarded.
"""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from config import Config, UserError
from dataset import Dataset
from table import Table, ranges

Made = TypeVar("Made")

# What a random number is for. Part of its key, so that no two uses share one.
PERMUTE, SWITCH, LANGUAGE, TRANSLATION, ENTRY = range(1, 6)


def hash64(*keys: int | np.ndarray, state: int | np.ndarray = 0) -> np.ndarray:
    """
    A uniformly mixed uint64 for every combination of keys, arrays broadcast (splitmix64 over the keys in turn). It can be made
    in parts: hash64(a, b) is hash64(b, state=hash64(a)).
    """
    h = np.asarray(state, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            h = h ^ np.asarray(key).astype(np.uint64)
            h = h + np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """hash64 as float64 in [0, 1)."""
    return (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: np.ndarray, n: int, *keys: int | np.ndarray) -> np.ndarray:
    """
    Where the shuffle of range(n) that `keys` name puts each `index`: a bijection, computed without holding it.

    A four-round Feistel network over the smallest even number of bits that holds n, walked until it lands below n.
    """
    half = max(1, ((max(n - 1, 1)).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    rounds = [np.broadcast_to(hash64(PERMUTE, *keys, round_), index.shape) for round_ in range(4)]
    result = index.astype(np.uint64)
    todo = np.arange(len(index))
    while len(todo):
        left, right = result[todo] >> np.uint64(half), result[todo] & mask
        for state in rounds:
            left, right = right, left ^ (hash64(right, state=state[todo]) & mask)
        result[todo] = left << np.uint64(half) | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


def stream_of_rows(rows: np.ndarray, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """
    Deal global rows 0, 1, 2, ... out to streams by weight, evenly: after any number of rows each stream has had its share
    to within one row per stream.

    rows (n,) int64 -> (stream (n,), index of the row within its stream (n,)), both int64
    """
    stream = np.full(len(rows), -1)
    index = np.empty(len(rows), dtype=np.int64)
    rest, share_left = rows.astype(np.int64), 1.0
    for s, weight in enumerate(weights):
        open_ = stream < 0
        # Of the rows left over by the streams before, every (1 / share)-th is this stream's.
        share = min(1.0, weight / share_left) if s < len(weights) - 1 else 1.0
        before = np.floor(rest * share).astype(np.int64)
        mine = open_ & (np.floor((rest + 1) * share).astype(np.int64) > before)
        stream[mine], index[mine] = s, before[mine]
        rest = rest - before
        share_left = max(share_left - weight, 1e-12)
    return stream, index


def codeswitch(tokens: np.ndarray, align: np.ndarray, table: Table, ratio: float, rows: np.ndarray, seed: int,
               length: int, target: str, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Replace words of the pivot by translations (paper, section 3.3).

    Each word that lies wholly inside its row and has an entry is replaced with probability `ratio`: by one of the
    languages its entry has, and one of that language's translations, both drawn uniformly.

    tokens, align  (R, W) token and alignment ids as in the bins; W may exceed `length`, to have tokens to fill up with
                   where a translation is shorter than its word
    rows           (R,) global row numbers: with `seed` they key the random choices
    returns        (inputs, labels), both (R, length) int64: the spliced row, cut or padded with `pad`, and for each
                   position the same token as a *target*, -1 where it is not to be predicted. By `target`:
                   "input-only" (Eq. 6): no spliced-in token; "vanilla" (Eq. 5): every token;
                   "original": in place of the first spliced-in token the first token of the replaced word, then none.
    """
    R, W = tokens.shape
    position = np.broadcast_to(np.arange(W), (R, W))
    first = align > 0
    later = align < 0
    # Each token's word begins at start (R, W); a row that begins inside a word has -1 there.
    start = np.maximum.accumulate(np.where(first, position, -1), axis=1)
    in_word = later & (start >= 0)
    # A word may go on past the row's end only if its last token here is the row's last: leave that one alone.
    last_of_row = first[:, -1] | later[:, -1]
    ends_row = np.zeros((R, W), dtype=bool)
    ends_row[last_of_row, np.maximum(start[last_of_row, -1], 0)] = True

    picked = first & ~ends_row & (uniform(seed, SWITCH, rows[:, None], position) < ratio)
    r, p = np.nonzero(picked)  # (n,) each: row and first position of every picked word
    entry = align[r, p].astype(np.int64) - 1
    L = len(table.languages)
    sizes = np.diff(table.groups).reshape(len(table), L)[entry, 1:] if len(entry) else np.zeros((0, L - 1), dtype=np.int64)  # (n, L - 1)
    has = np.cumsum(sizes > 0, axis=1)
    language = 1 + np.argmax(has > np.floor(uniform(seed, LANGUAGE, rows[r], p) * has[:, -1])[:, None], axis=1) if len(entry) else entry
    group = entry * L + language
    number = np.diff(table.groups)[group] if len(entry) else entry
    word = table.groups[group] + np.floor(uniform(seed, TRANSLATION, rows[r], p) * number).astype(np.int64)
    exists = number > 0  # an entry without translations is left as it is
    r, p, word = r[exists], p[exists], word[exists]

    # How many tokens each position gives: 1, or a translation's length at its first token and 0 at its later ones.
    gives = np.ones((R, W), dtype=np.int64)
    word_length = table.offsets[word + 1] - table.offsets[word]
    switched = np.zeros((R, W), dtype=bool)
    switched[r, p] = True
    gone = in_word & switched[np.arange(R)[:, None], np.maximum(start, 0)]
    gives[gone] = 0
    gives[r, p] = word_length

    ends = np.cumsum(gives, axis=1)  # (R, W): output position after each
    begins = ends - gives
    out = np.full((R, length), pad, dtype=np.int64)
    labels = np.full((R, length), -1, dtype=np.int64)
    kept = ~switched & ~gone & (begins < length)
    to = np.nonzero(kept)[0], begins[kept]
    out[to] = labels[to] = tokens[kept]

    at = ranges(begins[r, p], word_length)
    spliced = table.tokens[ranges(table.offsets[word], word_length)].astype(np.int64)
    row = np.repeat(r, word_length)
    inside = at < length
    out[row[inside], at[inside]] = spliced[inside]
    if target == "vanilla":
        labels[row[inside], at[inside]] = spliced[inside]
    elif target == "original":
        visible = begins[r, p] < length
        labels[r[visible], begins[r, p][visible]] = tokens[r, p][visible]
    return out, labels


@dataclass(frozen=True)
class Batch:
    inputs: np.ndarray   # (R, T) int64
    targets: np.ndarray  # (R, T) int64, -1 = not predicted
    stream: np.ndarray   # (R,) int64, index into Sampler.streams


class Sampler:
    """
    The rows of every step. Windows of a language are visited without replacement: epoch after epoch, each in an order of
    its own. A window is block_size tokens and the one after it; windows do not overlap but for that one, and what is left
    at a bin's end, less than a window, is not visited.
    """

    def __init__(self, data: Dataset, config: Config):
        self.config, self.data = config, data
        self.table = data.table.top(config.align_coverage)
        self.pad = data.end_of_text
        self.pivot = data.pivot
        weights = {language: config.mix[language] / sum(config.mix.values()) for language in config.mix if config.mix[language] > 0}
        self.bins = {language: data.tokens(language, "train") for language in weights}
        self.align = {self.pivot: data.align("train")} if self.pivot in weights else {}
        self.weights = list(weights.values())
        # Facts are stated in stage 2 only, once through, spread evenly over its rows, and codeswitched like any pivot text.
        self.facts_from = config.stage1_steps * config.batch_size
        self.stage2_rows = max(0, config.max_steps - config.stage1_steps) * config.batch_size
        self.fact_rows = 0
        if "facts" in data.splits and self.pivot in weights and self.stage2_rows:
            self.bins["facts"], self.align["facts"] = data.tokens(self.pivot, "facts"), data.align("facts")
            self.fact_rows = self._windows("facts")
            # Each period of stage 2 has the windows of its own facts, to within a window: row and window at which each ends, from 0.
            ends = data.splits["facts"][self.pivot]["period_ends"]
            self.fact_cuts = np.array([0, *(round(end / config.block_size) for end in ends[:-1]), self.fact_rows]).clip(max=self.fact_rows)
            self.row_cuts = -(-self.stage2_rows * np.arange(len(ends) + 1) // len(ends))
            if self.fact_rows > self.stage2_rows // 2:
                raise UserError(f"the facts fill {self.fact_rows} rows of the {self.stage2_rows} that stage 2 has; use fewer facts, lower "
                                "fact_frequencies or more max_steps")
        self.streams = tuple(self.bins)  # the languages of mix, then facts
        for name in self.streams:
            if self._windows(name) < 1:
                raise UserError(f"{data.dir}: the {name} text has {len(self.bins[name])} tokens, fewer than one row of block_size + 1 = "
                                f"{config.block_size + 1}; use {'more facts or higher fact_frequencies' if name == 'facts' else 'more text'} or a smaller block_size")
        # The global rows that are in the `only` language: a run of it alone has these, in as many passes as there are steps.
        self.rows_of_only = None
        if config.only:
            dealt, _ = self._deal(np.arange(config.max_steps * config.batch_size))
            self.rows_of_only = np.flatnonzero(dealt == self.streams.index(config.only))
            if not len(self.rows_of_only):
                raise UserError(f"only={config.only}: its share of mix is less than one of {config.max_steps * config.batch_size} rows")

    def _windows(self, name: str) -> int:
        return (len(self.bins[name]) - 1) // self.config.block_size

    def _deal(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream (an index into self.streams) and index within it, both (R,), of global rows (R,)."""
        if not self.fact_rows:
            return stream_of_rows(rows, self.weights)
        before = self._facts_before(rows)
        fact = self._facts_before(rows + 1) > before
        stream, index = stream_of_rows(rows - before, self.weights)
        return np.where(fact, len(self.weights), stream), np.where(fact, before, index)

    def _facts_before(self, rows: np.ndarray) -> np.ndarray:
        """How many of the global rows before each of these are facts': in every period of stage 2 they are spread evenly."""
        row = np.clip(rows - self.facts_from, 0, self.stage2_rows)
        p = np.clip(np.searchsorted(self.row_cuts, row, side="right") - 1, 0, len(self.row_cuts) - 2)
        return self.fact_cuts[p] + (row - self.row_cuts[p]) * (self.fact_cuts[p + 1] - self.fact_cuts[p]) // (self.row_cuts[p + 1] - self.row_cuts[p])

    def _fact_windows(self, index: np.ndarray, s: int) -> np.ndarray:
        """Periods one after the other; in a period, its windows in an order shuffled by the seed."""
        cuts = self.fact_cuts
        period = np.searchsorted(cuts, index, side="right") - 1
        window = np.empty_like(index)
        for p in np.unique(period):
            here = period == p
            window[here] = cuts[p] + permute(index[here] - cuts[p], int(cuts[p + 1] - cuts[p]), self.config.seed, s, p)
        return window

    def _place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where global rows (R,) stand: stream (R,), and window in that stream's bin (R,)."""
        stream, index = self._deal(rows if self.rows_of_only is None else self.rows_of_only[rows % len(self.rows_of_only)])
        window = np.empty_like(index)
        for s, name in enumerate(self.streams):
            here, n = np.flatnonzero(stream == s), self._windows(name)
            if name == "facts":
                window[here] = self._fact_windows(index[here], s)
            else:
                window[here] = permute(index[here] % n, n, self.config.seed, s, index[here] // n)
        return stream, window

    def windows_of_step(self, step: int) -> list[tuple[str, int]]:
        """The stream and the window in its bin of every row of a step."""
        stream, window = self._place(np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size))
        return [(self.streams[s], int(w)) for s, w in zip(stream, window)]

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of global rows (R,): row number = step * batch_size + place in the step."""
        T, seed = self.config.block_size, self.config.seed
        stream, windows = self._place(rows)
        inputs = np.empty((len(rows), T), dtype=np.int64)
        targets = np.empty((len(rows), T), dtype=np.int64)
        for s, name in enumerate(self.streams):
            here = np.flatnonzero(stream == s)
            if not len(here):
                continue
            bin_, window = self.bins[name], windows[here]
            switching = name in self.align and self.config.codeswitch_ratio > 0
            slack = T // 8 if switching else 0  # tokens to fill up with where translations are shorter than their words
            at = window[:, None] * T + np.arange(T + 1 + slack)  # (n, T + 1 + slack)
            at = np.minimum(at, len(bin_) - 1)  # beyond the end, more of the last token: end-of-text
            tokens = bin_[at].astype(np.int64)
            self.data.check_ids(tokens, name)
            if switching:
                align = self.align[name][at]
                align = np.where(np.abs(align) <= len(self.table), align, 0)
                row, labels = codeswitch(tokens, align, self.table, self.config.codeswitch_ratio, rows[here], seed, T + 1,
                                         self.config.codeswitch_target, self.pad)
            else:
                row = labels = tokens
            inputs[here], targets[here] = row[:, :-1], labels[:, 1:]
        return Batch(inputs, targets, stream)


def prefetch(make: Callable[[int], Made], steps: range) -> Generator[Made, None, None]:
    """make(step) for every step, each computed by a background thread while the one before is used."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    stop = threading.Event()

    def work() -> None:
        for step in steps:
            item: Made | BaseException
            try:
                item = make(step)
            except BaseException as e:  # handed over, and raised where the batch is awaited
                item = e
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
