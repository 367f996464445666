"""Strings of random symbols, reversed, copied or sorted: what a network without attention cannot hold when they grow.

    reverse:  qkfza  ->  azfkq
    copy:     qkfza  ->  qkfza
    sort:     qkfza  ->  afkqz

A source belongs to one split for ever, by its hash, so that no string of one split is ever seen in another.
"""

import numpy as np

from ..errors import InputError
from .drawing import SPLITS, check_draw, check_integers, generator

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
OPERATIONS = ("reverse", "copy", "sort")
_CODES = np.array([ord(symbol) for symbol in ALPHABET], "uint32")
_SHARES = {"train": 18, "val": 1, "test": 1}  # of 20
_CHUNK = 1 << 22  # symbols drawn at a time
_ROUNDS = 200  # without one string of the split, after which there is none


def pairs(count, *, seed, epoch=0, split="train", operation="reverse", symbols=26, min_length=5, max_length=50):
    """Draws examples: a deterministic function of its arguments.

    Args:
        count: how many.
        seed: a non-negative integer.
        epoch: a non-negative integer; each gives other examples of the same split.
        split: "train", "val" or "test", which share no source (90 %, 5 % and 5 % of all strings).
        operation: "reverse", "copy" or "sort" (in the order of `ALPHABET`).
        symbols: how many symbols there are: the first of a-z, A-Z and 0-9, from 2 to 62.
        min_length, max_length: a source's length is uniform between them, both included.

    Returns:
        `(sources, targets)`: two lists of `count` strings, one character a symbol.

    Raises:
        InputError: on an unknown split or operation, a number out of range, or where the strings are so short that
            the split has none of them.

    Example:

    >>> sources, targets = pairs(3, seed=1, symbols=4, max_length=7)
    >>> all(5 <= len(source) <= 7 and set(source) <= set("abcd") for source in sources)
    True
    >>> [source[::-1] for source in sources] == targets
    True
    """
    _check(count, seed, epoch, split, operation, symbols, min_length, max_length)
    rng = generator(seed, epoch, split)
    chunks, missing, rounds = [], count, 0
    while missing:
        if rounds == _ROUNDS:
            raise InputError(
                f"reverse: no string of {symbols} symbols with lengths {min_length} to {max_length} belongs to the "
                f"split {split}; give more symbols or a greater max_length."
            )
        rows = min(int(1.1 * missing * 20 / _SHARES[split]) + 20, max(1, _CHUNK // max_length))
        lengths = rng.integers(min_length, max_length + 1, rows)
        ids = rng.integers(0, symbols, (rows, max_length))
        chosen = np.flatnonzero(_splits(ids, lengths) == SPLITS.index(split))[:missing]
        chunks.append((ids[chosen], lengths[chosen]))
        missing -= len(chosen)
        rounds = 0 if len(chosen) else rounds + 1
    if not chunks:
        return [], []
    ids, lengths = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return _texts(ids, lengths), _texts(_answers(ids, lengths, operation), lengths)


def _splits(ids, lengths):
    """The index in SPLITS of the split that each string [n, L] belongs to, by a hash of its first `length` symbols."""
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    with np.errstate(over="ignore"):
        factors = _mixed(np.arange(1, ids.shape[1] + 1, dtype="uint64"))
        terms = _mixed(ids.astype("uint64") * np.uint64(0x9E3779B97F4A7C15) + factors)
        bucket = _mixed(np.where(inside, terms, 0).sum(axis=1, dtype="uint64")) % np.uint64(20)
    return np.where(bucket == 0, SPLITS.index("val"), np.where(bucket == 1, SPLITS.index("test"), 0))


def _mixed(x):
    """The finalizer of splitmix64: every bit of x changes half of the bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _answers(ids, lengths, operation):
    if operation == "copy":
        return ids
    places = np.arange(ids.shape[1])
    if operation == "reverse":
        return np.take_along_axis(ids, np.maximum(lengths[:, None] - 1 - places, 0), axis=1)
    return np.sort(np.where(places < lengths[:, None], ids, len(ALPHABET)), axis=1)


def _texts(ids, lengths):
    """Strings of ids [n, L]: NumPy leaves out the zeros behind a string's end."""
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    codes = np.where(inside, _CODES[np.minimum(ids, len(ALPHABET) - 1)], np.uint32(0))
    return np.ascontiguousarray(codes).view(f"U{ids.shape[1]}")[:, 0].tolist()


def _check(count, seed, epoch, split, operation, symbols, min_length, max_length):
    check_draw("reverse", count, seed, epoch, split)
    if operation not in OPERATIONS:
        raise InputError(f"reverse: operation must be one of {', '.join(OPERATIONS)}; received: {operation!r}.")
    check_integers("reverse", 1, min_length=min_length, max_length=max_length)
    check_integers("reverse", 2, symbols=symbols)
    if symbols > len(ALPHABET):
        raise InputError(f"reverse: symbols must be at most {len(ALPHABET)}; received: {symbols}.")
    if min_length > max_length:
        raise InputError(f"reverse: min_length {min_length} is greater than max_length {max_length}.")
