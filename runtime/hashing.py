"""Random numbers and digests as pure functions of what they are for, so that nothing has to be saved to repeat them."""

import hashlib

import numpy as np

# What a random number is for. Part of its key, so that no two uses share one.
PERMUTE, SWITCH, LANGUAGE, TRANSLATION, ENTRY = range(1, 6)


def hash64(*keys: int | np.ndarray, state: int | np.ndarray = 0) -> np.ndarray:
    """A uniformly mixed uint64 for every combination of keys, arrays broadcast."""
    # It can be made in parts: hash64(a, b) is hash64(b, state=hash64(a)).
    h = np.asarray(state, dtype=np.uint64)
    # Products modulo 2**64 are what mixes.
    with np.errstate(over="ignore"):
        for key in keys:
            # A round of splitmix64 for each key.
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
    """The places (N,) that the shuffle of range(n) named by `keys` gives each `index` (N,), without holding it."""
    # A Feistel network of four rounds shuffles all numbers of an even number of bits, the fewest that hold n.
    half = max(1, ((max(n - 1, 1)).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    rounds = [np.broadcast_to(hash64(PERMUTE, *keys, round_), index.shape) for round_ in range(4)]
    result = index.astype(np.uint64)
    todo = np.arange(len(index))
    # A number that lands at n or above is shuffled on until it lands below.
    while len(todo):
        left, right = result[todo] >> np.uint64(half), result[todo] & mask
        for state in rounds:
            left, right = right, left ^ (hash64(right, state=state[todo]) & mask)
        result[todo] = left << np.uint64(half) | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


def file_digest(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
