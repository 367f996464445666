"""Keys and values that are kept from step to step, and those that all hypotheses of a sentence share.

A cache is a dict. Its own part, {"key": [N, G, K, L], "value": [N, G, L, Kv], "mask": [N, L]}, has room for L tokens of
each of N hypotheses and grows by those of every call. Its "prefix", {"key": [B, G, K, P], "value": [B, G, P, Kv],
"mask": [B, P]}, is read only and shared by the W = N / B hypotheses of each row b, which are b W, ..., b W + W - 1: the
memory of an encoder, or a prompt. Either may be missing. The masks are True where a token stands.

The heads stand before the tokens, and keys are columns, unlike in the layers' inputs, so that a step multiplies keys
and values as they lie.
"""

import contextlib
import contextvars
import operator
from typing import Any, NamedTuple

import keras
from keras import ops

PARTS = ("key", "value", "mask")
TOKENS = {"key": 3, "value": 2, "mask": 1}  # the axis of the tokens
_compiled = contextvars.ContextVar("compiled", default=False)


@contextlib.contextmanager
def compiled():
    """Within it, steps are computed in ways that XLA is fast at. For what XLA compiles, and for nothing else.

    Caches and what a search has written are written by `ops.slice_update`, which XLA does in place (and which in
    TensorFlow's graphs runs only with XLA), at places that are not checked, and `laid_out` lays out a matrix.
    """
    token = _compiled.set(True)
    try:
        yield
    finally:
        _compiled.reset(token)


def is_compiled():
    """Whether this is traced within `compiled`."""
    return _compiled.get()


def laid_out(matrix):
    """A reshaped matrix as a value of its own, which XLA computes once, before a loop.

    It multiplies one row by a matrix that is merely reshaped number by number, five times more slowly.
    """
    if not _compiled.get():
        return matrix
    half = keras.utils.standardize_dtype(matrix.dtype) == "float16"
    return ops.maximum(matrix, -65504.0 if half else -3e38)  # no finite number is changed that a weight can be


def empty(batch_size, max_length, heads, key_dim, value_dim, dtype):
    """The own part of a cache without any token yet: room for max_length of them."""
    return {
        "key": ops.zeros((batch_size, heads, key_dim, max_length), dtype=dtype),
        "value": ops.zeros((batch_size, heads, max_length, value_dim), dtype=dtype),
        "mask": ops.zeros((batch_size, max_length), dtype="bool"),
    }


def write(cache, key, value, mask, index):
    """The own part with T new tokens at the places index ... index + T - 1, and nothing behind them.

    Args:
        cache: what `empty` or this function returned.
        key, value: of the new tokens, [N, G, K, T] and [N, G, T, Kv].
        mask: [N, T], False at padding, or None.
        index: an integer or a scalar tensor.
    """
    count, _, length, _ = ops.shape(value)
    places = ops.arange(ops.shape(cache["mask"])[1]) - index
    mask = ops.broadcast_to(ops.ones((1, 1), dtype="bool") if mask is None else mask, (count, length))
    mask = ops.logical_and(_put(cache["mask"], mask, places, axis=1), (places < length)[None])
    written = {"mask": mask}
    for name, new in (("key", key), ("value", value)):
        old, axis = cache[name], TOKENS[name]
        if _compiled.get():
            start = ops.cast(ops.stack([index if at == axis else 0 for at in range(4)]), "int32")
            written[name] = ops.slice_update(old, start, ops.cast(new, old.dtype))
        else:
            written[name] = _put(old, new, places, axis)
    return written


def grow(cache, max_length):
    """The cache with room for max_length own tokens, at least as many as it has now."""
    more = max_length - ops.shape(cache["mask"])[1]

    def longer(x, tokens):
        return ops.pad(x, [(0, more if axis == tokens else 0) for axis in range(len(x.shape))])

    return {**cache, **{name: longer(cache[name], axis) for name, axis in TOKENS.items()}}


def fits(cache, length, index):
    """Whether the own part has room for `length` tokens at the place `index`, a boolean or a scalar tensor."""
    room = ops.shape(cache["mask"])[1]
    if isinstance(index, int):
        return index + length <= room if index >= 0 else False
    return ops.logical_and(index >= 0, index + length <= room)


def _put(old, new, places, axis):
    """`old` with new[places] along an axis where 0 <= places < T, by a `where`, which runs plain and compiled."""
    length = ops.shape(new)[axis]
    inside = ops.logical_and(places >= 0, places < length)
    if new.shape[axis] != 1:  # a single token is broadcast
        new = ops.take(new, ops.clip(places, 0, length - 1), axis=axis)
    inside = ops.reshape(inside, (1,) * axis + (-1,) + (1,) * (len(old.shape) - axis - 1))
    return ops.where(inside, ops.cast(new, old.dtype), old)


class Part(NamedTuple):
    """Tokens that are attended: a prefix, or a hypothesis's own."""

    key: Any  # [N, G, K, L], or [B, G, K, L] where it is shared
    value: Any  # [N, G, L, Kv]
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
        positions = ops.arange(ops.shape(prefix["mask"])[1])[None]
        found.append(Part(prefix["key"], prefix["value"], _for_hypotheses(prefix["mask"], query), positions, shared))
    if own:
        found.append(Part(**own, positions=ops.arange(ops.shape(own["mask"])[1])[None] + start, shared=False))
    return found


def _for_hypotheses(x, query):
    """x [B, L] for each hypothesis of its row, [N, L]."""
    batch, length = ops.shape(x)
    count = ops.shape(query)[0]
    return ops.reshape(ops.broadcast_to(x[:, None], (batch, _beam(count, batch), length)), (count, length))


def _beam(count, batch):
    """W = N / B, where B may be 0."""
    return count // (max(batch, 1) if isinstance(batch, int) else ops.maximum(batch, 1))


def by_key(x, part):
    """x [N, H, T, width] as [N, G, R * T, width]: query heads that share a key are further query positions.

    Where the part is shared, so are the W hypotheses of a row: [B, G, W * R * T, width].
    """
    count, heads, length, width = ops.shape(x)
    groups, beam = part.key.shape[1], 1
    length = heads // groups * length
    if part.shared:
        batch = ops.shape(part.key)[0]
        beam = _beam(count, batch)
        x = ops.swapaxes(ops.reshape(x, (batch, beam, groups, length, width)), 1, 2)
        count = batch
    return ops.reshape(x, (count, groups, beam * length, width))


def by_query(x, part, count, heads, length):
    """What `by_key` made, of any width, as [N, H, T, width] again."""
    batch, groups, _, width = ops.shape(x)
    if part.shared:
        x = ops.reshape(x, (batch, groups, _beam(count, batch), heads // groups * length, width))
        x = ops.swapaxes(x, 1, 2)
    return ops.reshape(x, (count, heads, length, width))


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
    if own:
        _check_part(layer, "cache", cache, query.shape[0])
    if "prefix" in cache:
        _check_part(layer, "prefix", cache["prefix"], query.shape[0])
    room, length = cache["mask"].shape[1] if own else None, query.shape[1]
    if isinstance(index, int) and None not in (room, length) and not fits(cache, length, index):
        raise ValueError(
            f"The cache has room for {room} tokens. Received: {length} more at cache_update_index={index}; make it "
            "with a greater max_length."
        )


def _check_part(layer, name, part, batch):
    shapes = {name: tuple(part[name].shape) for name in PARTS if name in part}
    heads = layer.num_key_value_heads
    rows, room = shapes["mask"] if len(shapes.get("mask", ())) == 2 else (-1, -1)
    expected = {"key": (rows, heads, layer.key_dim, room), "value": (rows, heads, room, layer.value_dim)}
    expected["mask"] = (rows, room)
    if any(not _equal(shapes.get(name, ()), shape) for name, shape in expected.items()):
        raise ValueError(
            f"{type(layer).__name__} expects a {name} of key [batch, {heads}, {layer.key_dim}, length], value "
            f"[batch, {heads}, length, {layer.value_dim}] and mask [batch, length]. Received: {shapes}"
        )
    wrong = rows != batch if name == "cache" else rows and batch and batch % rows
    if None not in (rows, batch) and wrong:
        raise ValueError(
            f"{type(layer).__name__} expects a cache with the query's number of rows, and a prefix with a divisor of "
            f"it. Received: a {name} of {rows} rows, a query of {batch}"
        )


def _equal(shape, expected):
    """Whether two shapes are the same as far as both are known."""
    return len(shape) == len(expected) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, expected, strict=True)
    )
