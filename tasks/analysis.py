"""
What is looked at beside the paper's three metrics: samples and mixed script (Table 4), kinds of token (Fig. 6), and how
alike a text and its translation are.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import regex
import torch
import torch.nn.functional as F
from tqdm import tqdm

from corpus.folder import Folder, text_language
from corpus.languages import LETTERS, in_script, lowercase, script_of
from corpus.readers import documents, normalise
from corpus.tokenizer import encode, token_byte_lengths
from model import GPT
from report.results import TOKEN_KINDS
from runtime.config import Config

PASSAGE = 32         # tokens of held-out text
MOST_PASSAGES = 500

# Tokens of held-out text before each continuation.
PROMPT_TOKENS = 16


@torch.no_grad()
def sample(model: GPT, prompts: np.ndarray, config: Config) -> np.ndarray:
    """sample_tokens more tokens (R, sample_tokens) for each prompt (R, T), drawn from softmax(logits)."""
    device, rows = model.wte.weight.device, []
    # A generator of its own: the same config draws the same texts.
    generator = torch.Generator(device).manual_seed(config.seed)
    batches = torch.from_numpy(prompts.astype(np.int64)).to(device).split(config.eval_batch_size)
    for ids in tqdm(batches, desc="sampling", disable=None):
        for _ in range(config.sample_tokens):
            logits = F.linear(model(ids[:, -model.block_size:])[:, -1], model.lm_head.weight)  # (B, vocab_size)
            drawn = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)  # (B, 1)
            ids = torch.cat([ids, drawn], dim=1)
        rows.append(ids[:, prompts.shape[1]:])
    return torch.cat(rows).cpu().numpy()


def decoder(folder: Folder) -> Callable[[np.ndarray], str]:
    """A function from token ids (n,) to their text; En-Clone is shown as the words it clones."""
    stands_for_text = token_byte_lengths(folder.encoding) > 0
    # Some encodings have ids that stand for nothing. End-of-text is shown.
    stands_for_text[folder.end_of_text] = True
    return lambda ids: folder.encoding.decode([i % folder.V for i in ids.tolist() if stands_for_text[i % folder.V]])


def continuations(model: GPT, folder: Folder, config: Config) -> list[str]:
    """sample_count texts with which a model goes on from `prompt`."""
    prompt = np.append(folder.end_of_text, encode(folder.encoding, normalise(config.prompt)))
    return list(map(decoder(folder), sample(model, np.tile(prompt, (config.sample_count, 1)), config)))


def is_in(language: str, folder: Folder) -> Callable[[np.ndarray], bool]:
    """Whether token ids (n,) of a continuation of pivot text have anything of a target in them."""
    # Any token of En-Clone.
    if language == "clone":
        own = np.setdiff1d(folder.ids_of("clone"), folder.ids_of(folder.pivot))
        return lambda ids: bool(np.isin(ids, own).any())
    text, table = decoder(folder), folder.table
    # Any character of the target's script that is not of the pivot's too.
    if "" not in (script_of(language), script_of(folder.pivot)) and script_of(language) != script_of(folder.pivot):
        foreign = f"(?!{in_script(folder.pivot)}){in_script(language)}"
        return lambda ids: regex.search(foreign, text(ids)) is not None

    def whole_words(ids: np.ndarray) -> set[str]:
        # The first word and the last may be cut.
        return {lowercase(word, language) for word in regex.findall(rf"(?<=\s){LETTERS}++(?=\W)", text(ids))}

    # In the pivot's script, any whole word that in the table only the target has and that does not stand in held-out
    # pivot text: a dictionary without "he" would make English German.
    pivot, target = ({lowercase(text(table.word(w)).strip(), language) for k in range(len(table))
                      for w in table.words(k, l)} for l in (0, folder.languages.index(language)))
    only_there = target - pivot - whole_words(folder.tokens(folder.pivot, "val"))
    return lambda ids: not whole_words(ids).isdisjoint(only_there)


def mixed_script(model: GPT, folder: Folder, config: Config) -> dict:
    """The share of continuations of held-out pivot text with anything of a target language in them (Table 4)."""
    text = folder.tokens(folder.pivot, "val")
    length = min(PROMPT_TOKENS, len(text))
    # From places all over the text.
    starts = np.linspace(0, len(text) - length, config.sample_count).astype(np.int64)
    rows = sample(model, text[starts[:, None] + np.arange(length)], config)
    return {language: {"share": sum(map(is_in(language, folder), rows)) / len(rows), "n": len(rows)}
            for language in folder.languages[1:]}


def other_documents(folder: Folder, language: str, config: Config) -> Iterator[str]:
    """The documents of a language's part of eval_text."""
    return documents(config.eval_text.replace("{language}", text_language(language, folder.pivot)))


def text_tokens(folder: Folder, language: str, config: Config) -> np.ndarray:
    """The first eval_tokens token ids (n,) of the language's part of eval_text (all if 0)."""
    ids, most = [folder.end_of_text], config.eval_tokens or None
    for text in other_documents(folder, language, config):
        ids += [*encode(folder.encoding, text).tolist(), folder.end_of_text]
        if most and len(ids) >= most:
            break
    return folder.to_language(np.array(ids[:most]), language)


def parallel_passages(folder: Folder, language: str, config: Config) -> dict[str, tuple[list, list]]:
    """By their kind, token ids of passages in the pivot and, one by one, of the same passages in a target."""
    result = {}
    # En-Clone's text is the pivot's, token by token. Other targets need text that is a translation.
    if language == "clone":
        text = folder.tokens(folder.pivot, "val").astype(np.int64)
        rows = list(text[:len(text) // PASSAGE * PASSAGE].reshape(-1, PASSAGE)[:MOST_PASSAGES])
        result["text"] = rows, [folder.to_language(row, language) for row in rows]
    if config.eval_text:
        sides = []
        for each in (folder.pivot, language):
            texts = other_documents(folder, each, config)
            lines = itertools.islice((line for text in texts for line in text.split("\n")), MOST_PASSAGES + 1)
            some = (encode(folder.encoding, line)[:config.block_size] for line in lines)
            sides.append([folder.to_language(ids, each) for ids in some])
        # Texts of as many lines are taken for translations of each other; not where reading stopped before the end.
        if len(sides[0]) == len(sides[1]) <= MOST_PASSAGES:
            result["other text"] = sides[0], sides[1]
    return {kind: pair for kind, pair in result.items() if pair[0]}


def layers_of(config: Config) -> list[str]:
    return ["word embedding", *(f"block {i}" for i in range(1, config.n_layer + 1)), "output embedding"]


@torch.no_grad()
def running_text(model: GPT, folder: Folder, language: str, config: Config) -> list[float]:
    """Mean cosine of each layer between held-out text and its clone, by position; the final hidden state last."""
    tokens = folder.tokens(folder.pivot, "val").astype(np.int64)
    T = min(config.block_size, len(tokens))
    rows = tokens[:min(32, len(tokens) // T) * T].reshape(-1, T)
    sides = []
    for ids in (rows, folder.to_language(rows, language)):
        layers = model.layers(torch.from_numpy(ids).to(model.wte.weight.device))
        sides.append([*layers, model.ln_f(layers[-1])])
    return [F.cosine_similarity(a, b, dim=-1).mean().item() for a, b in zip(*sides)]


def precision_at_1(pivot: torch.Tensor, target: torch.Tensor) -> list[float]:
    """For each layer, the share of vectors (layers, n, C) of the pivot whose own translation is the nearest of all."""
    # One direction that all vectors of a language share says nothing of a word: each language's mean is taken off.
    pivot, target = (F.normalize(side - side.mean(1, keepdim=True), dim=-1) for side in (pivot, target))
    # A word that has the same translation as another one ties with it.
    return [(cosine.diagonal() >= cosine.amax(1) - 1e-6).double().mean().item()
            for cosine in (of_pivot @ of_target.T for of_pivot, of_target in zip(pivot, target))]  # each (n, n)


def token_kinds(folder: Folder) -> np.ndarray:
    """An index into TOKEN_KINDS (n,) for every held-out token of the pivot, and so of En-Clone (Fig. 6)."""
    align = np.abs(folder.align("val"))
    # Part of a word without an entry: a token with a letter, a digit, or a part of a character.
    wordlike, of_words = np.zeros(folder.V, dtype=bool), regex.compile(r"[\p{L}\p{M}\p{N}\uFFFD]")
    for token in folder.encoding.token_byte_values():
        found = of_words.search(token.decode("utf-8", "replace"))
        wordlike[folder.encoding.encode_single_token(token)] = found is not None
    # Quarters of the whole table by frequency: runs with a part of it are compared on the same tokens.
    cuts = [len(folder.table.top(share)) for share in (0.25, 0.5, 0.75)]
    without_entry = np.where(wordlike[folder.tokens(folder.pivot, "val")], len(TOKEN_KINDS) - 2, len(TOKEN_KINDS) - 1)
    return np.where(align > 0, np.searchsorted(cuts, align), without_entry)
