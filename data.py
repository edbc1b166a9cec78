"""
Bins with alignment ids, codeswitching, and the rows of a step.

    python data.py config/demo.py     # prepares DATA_DIR; does nothing when it is there and up to date

Rows are stateless: every random choice is a hash of (seed, what it is for, where it is), so the rows of a step are
the same after a resume and for any number of processes, and nothing has to be saved or fast-forwarded.
"""

import contextlib
import functools
import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import tiktoken
import torch

from corpus import build
from corpus.folder import Folder, text_language
from corpus.table import Table, ranges
from corpus.tokenizer import encode, token_byte_lengths
from corpus.words import WordIndex
from runtime.config import Config, load
from runtime.errors import UserError, run_main
from runtime.files import kept, replacing
from runtime.hashing import LANGUAGE, SWITCH, TRANSLATION, permute, uniform
from runtime.parallel import Workers
from tasks import facts as knowledge


# ---- Preparing a folder: text to token ids and alignment ids ----

class Encoder:
    """Text to token ids and alignment ids."""

    def __init__(self, encoding: tiktoken.Encoding, surfaces: list[str]):
        self.encoding = encoding
        self.token_bytes = token_byte_lengths(encoding)
        self.words = WordIndex(surfaces)

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n,) int64 and alignment ids (n,) int32 of a document, without end-of-text."""
        ids = encode(self.encoding, text)
        align = np.zeros(len(ids), dtype=np.int32)
        first, end, entry = self.words.spans_of(text).T  # (words,) each
        n_bytes = self.token_bytes[ids]
        token_end = np.cumsum(n_bytes)  # (n,)
        # The token that starts, or ends, at each byte of the text; -1 where none does.
        starting, ending = np.full((2, n_bytes.sum() + 1), -1)
        starting[token_end - n_bytes] = ending[token_end] = np.arange(len(ids))
        # A word is marked when tokens begin and end exactly where it does.
        i, j = starting[first], ending[end]
        whole = (i >= 0) & (j >= 0)
        i, j, entry = i[whole], j[whole], entry[whole]
        # A word of entry k has +k on its first token and -k on the others: so two of the same in a row stay two.
        align[ranges(i, j - i + 1)] = -np.repeat(entry, j - i + 1)
        align[i] = entry
        return ids, align


_encoder: Encoder  # of a worker process


def encoder_of(folder: Folder) -> Encoder:
    """An encoder with the folder's vocabulary and the words of its table."""
    table, decode = folder.table, folder.encoding.decode
    return Encoder(folder.encoding, [decode(table.word(table.words(k, 0)[0]).tolist()) for k in range(len(table))])


def start_worker(data_dir: str) -> None:
    global _encoder
    _encoder = encoder_of(Folder(data_dir))


def encode_documents(texts: list[str], aligned: bool, held_out: float) -> list[tuple]:
    """For each document: token and, if `aligned`, alignment ids (n,) with end-of-text, bytes of its text, its split."""
    documents = []
    for text in texts:
        ids, align = _encoder(text) if aligned else (encode(_encoder.encoding, text), np.zeros(0, dtype=np.int32))
        split = "val" if build.place(text) < held_out else "train"
        documents.append((np.append(ids, _encoder.encoding.eot_token), np.append(align, 0), len(text.encode()), split))
    return documents


def write_bins(language: str, config: Config, folder: Folder, workers: Workers) -> dict[str, dict[str, int]]:
    """Writes LANGUAGE_train.bin and LANGUAGE_val.bin, says what is in them, and returns the counts of each split."""
    is_pivot, held_out = language == folder.pivot, folder.meta["held_out"][language]
    budget = config.budget.get(language, math.inf)
    counts = {split: {"documents": 0, "bytes": 0, "tokens": 0} for split in ("train", "val")}
    # En-Clone's bins are written beside the pivot's, from the same text; the pivot's have alignment ids.
    languages = [each for each in folder.languages if text_language(each, folder.pivot) == language]
    names = [f"{each}_{split}.bin" for each in languages for split in counts]
    names += [f"{language}_{split}.align.bin" for split in counts if is_pivot]
    with contextlib.ExitStack() as stack:
        bins = {name: stack.enter_context(replacing(os.path.join(folder.dir, name))) for name in names}
        # When the budget is reached, only documents that are held out are read on.
        texts = (text for text in build.documents(config, language, f"tokens {language}")
                 if counts["train"]["tokens"] < budget or build.place(text) < held_out)
        work = functools.partial(encode_documents, aligned=is_pivot, held_out=held_out)
        for ids, align, n_bytes, split in itertools.chain.from_iterable(workers.map(work, build.text_batches(texts))):
            # Workers are some documents ahead.
            if split == "train" and counts["train"]["tokens"] >= budget:
                continue
            for each in languages:
                bins[f"{each}_{split}.bin"].write(folder.to_language(ids, each).astype(folder.dtype).tobytes())
            if is_pivot:
                bins[f"{language}_{split}.align.bin"].write(align.astype("<i4").tobytes())
            for name, added in (("documents", 1), ("bytes", n_bytes), ("tokens", len(ids))):
                counts[split][name] += added
    train, val = counts["train"], counts["val"]
    print(f"{language}: {train['documents']:,} documents, {train['bytes'] / 1e6:,.1f} MB, "
          f"{train['tokens']:,} training tokens; {val['tokens']:,} tokens held out")
    return counts


def prepare(config: Config) -> None:
    """Makes config.data_dir, unless it is there and made from the same texts with the same settings."""
    pivot, facts = config.pivot, knowledge.make_facts(config)
    sentences = [knowledge.statement(fact, text_language(fact.language, pivot)) for fact in facts]
    meta = build.made_from(config, sentences)
    if build.is_made(config.data_dir, meta["fingerprint"]):
        print(f"{config.data_dir} is up to date")
        return
    stated = knowledge.in_training_order(facts)
    statements = [knowledge.statement(fact, pivot) for fact in stated if text_language(fact.language, pivot) == pivot]
    # The work is done in DATA_DIR.partial until all is whole; an interrupted one goes on after its last whole bin.
    with build.making(config.data_dir, meta["fingerprint"]) as partial:
        meta |= {"splits": {}} | build.make_table(config, statements, partial)
        build.write_meta(partial, meta)
        folder, counts = Folder(partial), {}
        with Workers(config.workers, start_worker, partial) as workers:
            for language in config.written:
                done = os.path.join(partial, "work", f"bins_{language}.json")
                counts[language] = kept(done, lambda: write_bins(language, config, folder, workers))
        for split in ("train", "val"):
            meta["splits"][split] = {each: counts[text_language(each, pivot)][split] for each in folder.languages}
        if stated:
            meta["splits"]["facts"] = {pivot: knowledge.write_bin(stated, folder, encoder_of(folder))}
        build.write_meta(partial, meta)


# ---- Codeswitching (paper, section 3.2) ----

def pick_words(align: np.ndarray, table: Table, ratio: float, rows: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """
    Which words of some rows are replaced, and by what: (row, first position, word of the table), (n,) int64 each.
    align (R, W) alignment ids; rows (R,) global row numbers, which with `seed` key the random choices.
    """
    position = np.arange(align.shape[1])
    begins = align > 0  # (R, W) a word
    # A word that reaches the end of the row may go on after it: it is left alone.
    last = np.where(begins, position, 0).max(axis=1)  # (R,) where the last word of each row begins
    reaches_end = np.flatnonzero(align[:, -1])
    begins[reaches_end, last[reaches_end]] = False
    # Every other word is picked with probability `ratio`.
    row, at = np.nonzero(begins & (uniform(seed, SWITCH, rows[:, None], position) < ratio))  # (n,)
    entry = align[row, at].astype(np.int64) - 1

    # How many translations each has in each language, and in how many languages it has any: words with none stay.
    L = len(table.languages)
    translations = np.diff(table.groups).reshape(-1, L)[entry, 1:]  # (n, languages without the pivot)
    languages = (translations > 0).sum(axis=1)
    some = languages > 0
    row, at, entry, translations, languages = (x[some] for x in (row, at, entry, translations, languages))
    # One of its languages is drawn uniformly: these first, in their order.
    drawn = np.floor(uniform(seed, LANGUAGE, rows[row], at) * languages).astype(np.int64)
    language = np.argsort(translations == 0, axis=1, kind="stable")[np.arange(len(row)), drawn]
    # Then one of its translations there.
    which = uniform(seed, TRANSLATION, rows[row], at) * translations[np.arange(len(row)), language]
    word = table.groups[entry * L + 1 + language] + np.floor(which).astype(np.int64)
    return row, at, word


def splice(tokens: np.ndarray, align: np.ndarray, table: Table, picked: tuple[np.ndarray, ...], length: int,
           target: str, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Rows with the `picked` words replaced, and their labels: both (R, length) int64, cut or padded with `pad`.
    labels[r, i] is the token that the model is to predict at position i of row r, from the positions before it, or -1
    for none. tokens, align (R, W) are as in the bins; W may exceed `length`.
    """
    (R, W), (row, at, word) = tokens.shape, picked
    size = table.offsets[word + 1] - table.offsets[word]  # (n,) tokens of the translations

    # A token is replaced when the last word that began is a picked one, and the token belongs to it.
    begins = np.zeros((R, W), dtype=bool)
    begins[row, at] = True
    start = np.maximum.accumulate(np.where(align > 0, np.arange(W), 0), axis=1)
    replaced = begins | ((align < 0) & np.take_along_axis(begins, start, axis=1))
    # How many tokens of the new row each position becomes; a translation stands for all of its word at the first one.
    new_length = (~replaced).astype(np.int64)
    new_length[row, at] = size
    place = np.cumsum(new_length, axis=1) - new_length  # (R, W) where they begin

    inputs = np.full((R, length), pad, dtype=np.int64)
    labels = np.full((R, length), -1, dtype=np.int64)
    r, i = np.nonzero(~replaced & (place < length))
    inputs[r, place[r, i]] = labels[r, place[r, i]] = tokens[r, i]

    spliced = table.tokens[ranges(table.offsets[word], size)]  # (size.sum(),) tokens of all translations
    # "vanilla", Eq. 5: every one is predicted. "input-only", Eq. 6: none is.
    predicted = spliced if target == "vanilla" else np.full_like(spliced, -1)
    # "original": where a translation begins, the first token of the word that it replaces is predicted.
    if target == "original":
        predicted[np.cumsum(size) - size] = tokens[row, at]
    row, column = np.repeat(row, size), ranges(place[row, at], size)
    fits = column < length
    inputs[row[fits], column[fits]] = spliced[fits]
    labels[row[fits], column[fits]] = predicted[fits]
    return inputs, labels


# ---- The rows of a step ----

class Batch(NamedTuple):
    """Rows of a step, as int64 tensors on the CPU."""

    inputs: torch.Tensor   # (R, T) token ids
    targets: torch.Tensor  # (R, T) token ids, -1 where none is to be predicted
    stream: torch.Tensor   # (R,) index into Sampler.streams


def stream_of_rows(rows: np.ndarray, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The stream of each global row, and the row's index within its stream: (R,) int64 each."""
    # Rows 0, 1, 2, ... are dealt out evenly: after any number of them each stream has had its share, to within one row
    # per stream.
    stream, index = np.full(len(rows), -1), np.empty(len(rows), dtype=np.int64)
    # What the streams before leave over: the rows, numbered anew from 0, and their share of all.
    rest, share_left = rows.astype(np.int64), 1.0
    for s, weight in enumerate(weights):
        # Every (1 / share)-th of these is this stream's: wherever share * row passes a whole number.
        share = min(1.0, weight / share_left) if s < len(weights) - 1 else 1.0
        before = np.floor(rest * share).astype(np.int64)
        mine = (stream < 0) & (np.floor((rest + 1) * share).astype(np.int64) > before)
        stream[mine], index[mine] = s, before[mine]
        rest = rest - before
        share_left = max(share_left - weight, 1e-12)
    return stream, index


class Sampler:
    """
    The rows of every step. A row is a window: block_size tokens of a bin, and the one after them as the last target.
    The windows of a language are visited without replacement, epoch after epoch, each in an order of its own.
    """

    # Not visited are the rest at a bin's end, less than a window, and what longer translations push off a row's end,
    # which is 0.5 to 0.9% of English in German and Russian runs.
    def __init__(self, folder: Folder, config: Config):
        self.folder, self.config, self.table = folder, config, folder.table.top(config.align_coverage)
        mix = {language: weight for language, weight in config.mix.items() if weight > 0}
        self.weights = [weight / sum(mix.values()) for weight in mix.values()]
        self.bins = {language: folder.tokens(language, "train") for language in mix}
        self.align = {folder.pivot: folder.align("train")}  # of what is codeswitched
        # Facts are stated in stage 2 only. By default nothing of a fact is seen in another language.
        if "facts" in folder.splits and folder.pivot in mix and config.max_steps > config.stage1_steps:
            self.bins["facts"] = folder.tokens(folder.pivot, "facts")
            if config.codeswitch_facts:
                self.align["facts"] = folder.align("facts")
        self.streams = tuple(self.bins)  # the languages of mix, then facts
        self.windows = {name: (len(tokens) - 1) // config.block_size for name, tokens in self.bins.items()}
        for name, windows in self.windows.items():
            if windows < 1:
                raise UserError(f"{folder.dir}: the {name} text has {len(self.bins[name])} tokens, fewer than one row "
                                f"of block_size + 1 = {config.block_size + 1}; use a smaller block_size or more text")
        self.fact_rows, self.fact_windows = np.empty((2, 0), dtype=np.int64)
        if "facts" in self.bins:
            ends = folder.splits["facts"][folder.pivot]["period_ends"]
            self.fact_rows, self.fact_windows = knowledge.rows_of_facts(config, self.windows["facts"], ends,
                                                                        config.seed, self.streams.index("facts"))
        # With `only`, the rows that joint training has in that language, over and over for as many steps.
        self.rows_of_only = None
        if config.only:
            n = config.max_steps * config.batch_size
            self.rows_of_only = np.flatnonzero(self.deal(np.arange(n))[0] == self.streams.index(config.only))
            if not len(self.rows_of_only):
                raise UserError(f"only={config.only}: its share of mix is less than one of {n} rows")

    def deal(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The stream of global rows (R,), and their index within it (R,)."""
        # The languages share the rows that state no facts.
        before = np.searchsorted(self.fact_rows, rows)
        states_facts = np.searchsorted(self.fact_rows, rows + 1) > before
        stream, index = stream_of_rows(rows - before, self.weights)
        return np.where(states_facts, len(self.weights), stream), np.where(states_facts, before, index)

    def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The stream of global rows (R,), and the window of its bin in which each stands (R,)."""
        if self.rows_of_only is not None:
            rows = self.rows_of_only[rows % len(self.rows_of_only)]
        stream, index = self.deal(rows)
        window = np.empty_like(index)
        for s, name in enumerate(self.streams):
            here = stream == s
            if name == "facts":
                window[here] = self.fact_windows[index[here]]
            else:
                epoch, visit = np.divmod(index[here], self.windows[name])
                window[here] = permute(visit, self.windows[name], self.config.seed, s, epoch)
        return stream, window

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows with these global numbers (R,): step * batch_size + place in the step."""
        config, T = self.config, self.config.block_size
        stream, window = self.place(rows)
        inputs, targets = np.empty((2, len(rows), T), dtype=np.int64)
        for s, name in enumerate(self.streams):
            here = np.flatnonzero(stream == s)
            switching = name in self.align and config.codeswitch_ratio > 0
            # Tokens to fill up with where translations are shorter than their words.
            slack = T // 8 if switching else 0
            at = window[here, None] * T + np.arange(T + 1 + slack)  # (rows of the stream, T + 1 + slack)
            # Beyond the bin's end, more of its last token, which is end-of-text.
            at = np.minimum(at, len(self.bins[name]) - 1)
            row = labels = tokens = self.bins[name][at].astype(np.int64)
            self.folder.check_ids(tokens, name)
            if switching:
                align = self.align[name][at]
                # The table may be cut to its most frequent entries.
                align = np.where(np.abs(align) <= len(self.table), align, 0)
                picked = pick_words(align, self.table, config.codeswitch_ratio, rows[here], config.seed)
                row, labels = splice(tokens, align, self.table, picked, T + 1, config.codeswitch_target,
                                     self.folder.end_of_text)
            # Position i is predicted from those before it: labels are shifted by one.
            inputs[here], targets[here] = row[:, :-1], labels[:, 1:]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(stream))


def main(arguments: list[str]) -> None:
    prepare(load(arguments, __doc__))


if __name__ == "__main__":
    run_main(main)
