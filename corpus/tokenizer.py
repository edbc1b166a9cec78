"""The tokenizer: always a tiktoken.Encoding, one that tiktoken knows by name or one trained here and saved in its format."""

import base64
import binascii
from collections.abc import Iterable

import numpy as np
import tiktoken

from runtime.errors import UserError
from runtime.files import write_text

END_OF_TEXT = "<|endoftext|>"

# Pre-tokenisation of a vocabulary trained here: pieces end where NLTK's words end (don't = do + n't, every punctuation
# mark alone), so that the words of the alignment table are whole tokens. A word carries the space before it, as in GPT-2.
# The marks of scripts that combine them with letters (\p{M}) belong to the word.
PATTERN = (r" ?[\p{L}\p{M}]+(?=n't(?![\p{L}\p{M}]))|n't(?![\p{L}\p{M}])|'(?:s|m|d|ll|ve|re)(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+| ?\p{N}{1,3}"
           r"| ?\.{2,}| ?-{2,}| ?[^\s\p{L}\p{M}\p{N}]|\n+|[^\S\n]+(?=\S)|[^\S\n]+")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str) -> None:
    """Train a byte-pair vocabulary of `vocab_size` tokens (end-of-text included) and save it in tiktoken's format."""
    import rustbpe

    if vocab_size < 257:
        raise UserError(f"vocab_size must be at least 257 (256 bytes and end-of-text), found {vocab_size}")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    write_text(path, "".join(f"{base64.b64encode(bytes(token)).decode()} {rank}\n" for token, rank in ranks))


def load_tokenizer(name: str, path: str) -> tiktoken.Encoding:
    """The tiktoken encoding `name`, or for "train" the one saved at `path`. Raises UserError when it cannot be had."""
    if name != "train":
        if name not in tiktoken.list_encoding_names():
            raise UserError(f"tokenizer: there is no tiktoken encoding named {name!r}; there are {', '.join(tiktoken.list_encoding_names())}, "
                            "or \"train\" to make a vocabulary from the corpus")
        try:
            return tiktoken.get_encoding(name)
        except Exception as e:  # tiktoken raises whatever its HTTP library raises
            raise UserError(f"tokenizer {name}: its vocabulary file cannot be downloaded ({type(e).__name__}); set TIKTOKEN_CACHE_DIR to a "
                            "folder that has it, or use --tokenizer=train to make a vocabulary from the corpus") from e
    ranks = {}
    try:
        with open(path, "rb") as f:
            for line in f:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("ranks are not 0, 1, 2, ... or a byte is missing")
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); run data.py again") from e
    except (ValueError, binascii.Error) as e:
        raise UserError(f"{path}: not a tiktoken vocabulary ({e}); delete its folder and run data.py again") from e
    return tiktoken.Encoding("trained", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Token ids (n,) int64 of a text; special tokens written out in it are ordinary text."""
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)


def token_byte_lengths(encoding: tiktoken.Encoding) -> np.ndarray:
    """How many bytes of text each token id stands for, (V,) int64; 0 for special tokens and unused ids."""
    lengths = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token in encoding.token_byte_values():
        lengths[encoding.encode_single_token(token)] = len(token)
    return lengths
