"""Keys and values that are kept from step to step, and those that all hypotheses of a sentence share.

A cache is a dict. Its own part, {"key": [N, L, G, K], "value": [N, L, G, Kv], "mask": [N, L]}, has room for L tokens of
each of N hypotheses and grows by those of every call. Its "prefix", {"key": [B, P, G, K], "value": [B, P, G, Kv],
"mask": [B, P]}, is read only and shared by the W = N / B hypotheses of each row b, which are b W, ..., b W + W - 1: the
memory of an encoder, or a prompt. Either may be missing. The masks are True where a token stands.
"""

import operator
from typing import Any, NamedTuple

import keras
from keras import ops

PARTS = ("key", "value", "mask")


def empty(batch_size, max_length, key_shape, value_shape, dtype):
    """The own part of a cache without any token yet: room for max_length of them, [N, L, *shape]."""
    return {
        "key": ops.zeros((batch_size, max_length, *key_shape), dtype=dtype),
        "value": ops.zeros((batch_size, max_length, *value_shape), dtype=dtype),
        "mask": ops.zeros((batch_size, max_length), dtype="bool"),
    }


def write(cache, key, value, mask, index):
    """The own part with T new tokens at the places index ... index + T - 1, and nothing behind them.

    Args:
        cache: what `empty` or this function returned.
        key, value: of the new tokens, [N, T, G, K] and [N, T, G, Kv].
        mask: [N, T], False at padding, or None.
        index: an integer or a scalar tensor.
    """
    length = ops.shape(key)[1]
    mask = ops.ones((1, 1), dtype="bool") if mask is None else mask
    places = ops.arange(ops.shape(cache["key"])[1]) - index
    new = dict(zip(PARTS, (key, value, ops.broadcast_to(mask, ops.shape(key)[:2])), strict=True))
    written = {name: _put(cache[name], new[name], places) for name in PARTS}
    written["mask"] = ops.logical_and(written["mask"], (places < length)[None])
    return written


def fits(cache, length, index):
    """Whether the own part has room for `length` tokens at the place `index`, a boolean or a scalar tensor."""
    room = ops.shape(cache["key"])[1]
    if isinstance(index, int):
        return index + length <= room if index >= 0 else False
    return ops.logical_and(index >= 0, index + length <= room)


def _put(old, new, places):
    """`old` [N, L, ...] with new[:, places] where 0 <= places < T, by a `where`, which runs plain and compiled."""
    length = ops.shape(new)[1]
    inside = ops.logical_and(places >= 0, places < length)
    if new.shape[1] != 1:  # a single token is broadcast
        new = ops.take(new, ops.clip(places, 0, length - 1), axis=1)
    return ops.where(ops.reshape(inside, (1, -1, *[1] * (len(old.shape) - 2))), ops.cast(new, old.dtype), old)


class Part(NamedTuple):
    """Tokens that are attended: a prefix, or a hypothesis's own."""

    key: Any  # [N, L, G, K], or [B, L, G, K] where it is shared
    value: Any
    mask: Any  # [N, L]
    positions: Any  # [1, L], or [N, L] where they differ by row
    shared: bool


def start(cache, query):
    """The position of the first own token of each hypothesis, behind its prefix: [N, 1], or 0."""
    if "prefix" not in cache or "key" not in cache:
        return 0
    mask = cache["prefix"]["mask"]  # padding may stand on either side
    places = ops.arange(1, ops.shape(mask)[1] + 1, dtype="int32")
    return _for_hypotheses(ops.max(ops.where(mask, places, 0), axis=1, keepdims=True, initial=0), query)


def parts(own, prefix, start, query):
    """The parts that are attended, the prefix first.

    Args:
        own: the own part after writing, {} if there is none.
        prefix: a prefix, or None.
        start: what `start` gave, the position of the own part's first token.
        query: [N, T, H, K], for its number of rows.
    """
    found = []
    if prefix is not None:
        shared = prefix["key"].shape[0] is None or prefix["key"].shape[0] != query.shape[0]
        positions = ops.arange(ops.shape(prefix["key"])[1])[None]
        found.append(Part(prefix["key"], prefix["value"], _for_hypotheses(prefix["mask"], query), positions, shared))
    if own:
        found.append(Part(**own, positions=ops.arange(ops.shape(own["key"])[1])[None] + start, shared=False))
    return found


def _for_hypotheses(x, query):
    """x [B, L] for each hypothesis of its row, [N, L]."""
    batch, length = ops.shape(x)
    count = ops.shape(query)[0]
    return ops.reshape(ops.broadcast_to(x[:, None], (batch, _beam(count, batch), length)), (count, length))


def _beam(count, batch):
    """W = N / B, where B may be 0."""
    return count // (max(batch, 1) if isinstance(batch, int) else ops.maximum(batch, 1))


def by_row(query, batch):
    """Queries [N, T, H, K] as those of rows, [B, W * T, H, K]: hypotheses are further query positions."""
    count, length, *heads = ops.shape(query)
    return ops.reshape(query, (batch, _beam(count, batch) * length, *heads))


def weights_by_row(weights, batch):
    """Weights [N, H, T, L] as [B, H, W * T, L]."""
    count, heads, length, places = ops.shape(weights)
    beam = _beam(count, batch)
    weights = ops.transpose(ops.reshape(weights, (batch, beam, heads, length, places)), (0, 2, 1, 3, 4))
    return ops.reshape(weights, (batch, heads, beam * length, places))


def scores_by_hypothesis(scores, query):
    """Scores [B, H, W * T, L] of the queries [N, T, H, K] as [N, H, T, L]."""
    batch, heads, _, places = ops.shape(scores)
    count, length = ops.shape(query)[:2]
    scores = ops.reshape(scores, (batch, heads, _beam(count, batch), length, places))
    return ops.reshape(ops.transpose(scores, (0, 2, 1, 3, 4)), (count, heads, length, places))


def as_index(index):
    """cache_update_index as an integer, or as a scalar tensor of int32."""
    if ops.is_tensor(index):
        if len(index.shape) or "int" not in keras.utils.standardize_dtype(index.dtype):
            raise TypeError(
                "cache_update_index must be an integer or a scalar tensor of integers. Received: a tensor of shape "
                f"{tuple(index.shape)} and dtype {keras.utils.standardize_dtype(index.dtype)}"
            )
        return ops.cast(index, "int32")
    try:
        return operator.index(index)
    except TypeError:
        raise TypeError(f"cache_update_index must be an integer. Received: {index!r}") from None


def check(layer, cache, index, query, key, value):
    """Refuses what is no cache of this layer for its projected heads, with one sentence."""
    known = isinstance(cache, dict) and set(cache) <= {*PARTS, "prefix"} and cache
    own = known and [name for name in PARTS if name in cache]
    if not known or own not in ([], list(PARTS)) or not isinstance(cache.get("prefix", {}), dict):
        given = sorted(cache) if isinstance(cache, dict) else type(cache).__name__
        raise ValueError(
            f"{type(layer).__name__} expects a cache as initial_cache(batch_size, max_length) makes it, a dict of key, "
            f"value and mask, and/or a 'prefix' as project_memory(value) makes it. Received: {given}"
        )
    if own and index is None:
        raise ValueError(
            f"{type(layer).__name__} expects cache_update_index, the place of the first new token, beside a cache. "
            "Received: cache_update_index=None"
        )
    if own and (len(query.shape) != 4 or query.shape[1] != key.shape[1]):
        raise ValueError(
            f"{type(layer).__name__} with a cache expects new tokens that attend to themselves and those before, "
            f"layer(x, x, cache=...). Received: heads of query {tuple(query.shape)} and of key {tuple(key.shape)}"
        )
    room, length = cache["key"].shape[1] if own else None, query.shape[1]
    if isinstance(index, int) and None not in (room, length) and not fits(cache, length, index):
        raise ValueError(
            f"The cache has room for {room} tokens. Received: {length} more at cache_update_index={index}; make it "
            "with a greater max_length."
        )
    if own:
        _check_part(layer, "cache", cache, query.shape[0])
    if "prefix" in cache:
        _check_part(layer, "prefix", cache["prefix"], query.shape[0])


def _check_part(layer, name, part, batch):
    shapes = {name: tuple(part[name].shape) for name in PARTS if name in part}
    heads = layer.num_key_value_heads
    expected = {"key": (heads, layer.key_dim), "value": (heads, layer.value_dim), "mask": ()}
    if {name: shape[2:] for name, shape in shapes.items()} != expected or len({s[:2] for s in shapes.values()}) > 1:
        raise ValueError(
            f"{type(layer).__name__} expects a {name} of key [batch, length, {heads}, {layer.key_dim}], value "
            f"[batch, length, {heads}, {layer.value_dim}] and mask [batch, length]. Received: {shapes}"
        )
    rows = shapes["key"][0]
    wrong = rows != batch if name == "cache" else rows and batch and batch % rows
    if None not in (rows, batch) and wrong:
        raise ValueError(
            f"{type(layer).__name__} expects a cache with the query's number of rows, and a prefix with a divisor of "
            f"it. Received: a {name} of {rows} rows, a query of {batch}"
        )
