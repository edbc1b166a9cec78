"""The tokenizer: a tiktoken.Encoding, one that tiktoken knows by name or one trained here and saved in its format."""

import base64
from collections.abc import Iterable

import numpy as np
import tiktoken

from runtime.errors import UserError
from runtime.files import write_text

END_OF_TEXT = "<|endoftext|>"

# Pre-tokenisation of a vocabulary trained here: pieces end where NLTK's words end (don't = do + n't, every punctuation
# mark alone), so that the words of the alignment table are whole tokens. A word carries the space before it, the
# last one of several, as in GPT-2. The marks of scripts that combine them with letters (\p{M}) belong to the word.
# Words without an apostrophe after them come first, though a later kind has them too: nearly all words are found at
# once so, which takes half the time. Of a million letters in a row ++ gives none back: a pattern that may do so fails.
PATTERN = (r" ?[\p{L}\p{M}]++(?!['’])"
           r"| ?[\p{L}\p{M}]{1,999}(?=n['’]t(?![\p{L}\p{M}]))|n['’]t(?![\p{L}\p{M}])"
           r"|['’](?:s|m|d|ll|ve|re)(?![\p{L}\p{M}])| ?[\p{L}\p{M}]++"
           r"| ?\p{N}{1,3}| ?\.{2,}| ?-{2,}| ?[^\s\p{L}\p{M}\p{N}]|\n+|[^\S\n]+(?!\S)|[^\S\n]")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str) -> None:
    """Train a byte-pair vocabulary of `vocab_size` tokens (end-of-text included) and save it in tiktoken's format."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    write_text(path, "".join(f"{base64.b64encode(bytes(token)).decode()} {rank}\n" for token, rank in ranks))


def load_tokenizer(name: str, path: str) -> tiktoken.Encoding:
    """The tiktoken encoding `name`, or for "train" the one saved at `path`. Raises UserError when it cannot be had."""
    if name == "train":
        with open(path, "rb") as f:
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, f)}
        return tiktoken.Encoding("trained", pat_str=PATTERN, mergeable_ranks=ranks,
                                 special_tokens={END_OF_TEXT: len(ranks)})
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(f'tokenizer: expected "train" or one of {", ".join(known)}; found {name!r}')
    try:
        return tiktoken.get_encoding(name)
    # tiktoken raises whatever its HTTP library raises.
    except Exception as e:
        raise UserError(f"tokenizer {name}: its vocabulary cannot be downloaded ({type(e).__name__}); name a folder "
                        "that has it in TIKTOKEN_CACHE_DIR, or make one from the corpus: --tokenizer=train") from e


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Token ids (n,) int64 of a text; special tokens written out in it are ordinary text."""
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)


def token_byte_lengths(encoding: tiktoken.Encoding) -> np.ndarray:
    """How many bytes of text each token id stands for, (V,) int64; 0 for special tokens and unused ids."""
    lengths = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token in encoding.token_byte_values():
        lengths[encoding.encode_single_token(token)] = len(token)
    return lengths
