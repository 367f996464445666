"""Exact attention of long sequences, block by block: no matrix of scores [T, S] exists, forward or backward.

A block of queries meets one block of keys after the other. Each meeting is ordinary attention; its context and the
log-sum-exp of its scores are merged with those of the blocks before, which makes the softmax over all keys exact
(Milakov and Gimelshein 2018; Rabe and Staats 2021). No weight is kept: the gradient computes each block's anew, from
the log-sum-exp of its rows (Dao et al. 2022, algorithm 4).

Inside, the axes are: G key-value heads, R = H / G query heads that share one, I blocks of P queries and J blocks of Q
keys, numbered i and j; a block of queries is [B, G, R * P, K], a block of keys [B, G, Q, K].
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.masks import as_mask, at_least_float32, combine_masks, zero_masked

LOWEST = float(np.finfo("float32").min)


def blockwise_attention(
    query,
    key,
    value,
    *,
    query_mask=None,
    key_mask=None,
    attention_mask=None,
    use_causal_mask=False,
    offset=0,
    sliding_window=None,
    bias=None,
    relative_bias=None,
    scale=None,
    block_size=None,
):
    """Scaled dot-product attention whose memory grows with T + S instead of T * S.

        context = softmax(scale * q . k + bias) v

    Numbers and gradients are those of the plain path, but for rounding: scores and sums in at least float32, masks
    ANDed, zeros (and finite gradients) for a query that may attend to nothing, and not even NaN passes from behind a
    padding mask. Blocks that lie wholly outside of a causal mask or a window cost nothing. There are no second
    derivatives.

    Args:
        query: [B, T, H, K].
        key: [B, S, G, K]; H is a multiple of G, and query head h uses the key-value head h // (H / G).
        value: [B, S, G, Kv].
        query_mask: [B, T], False where the query is padding.
        key_mask: [B, S], False where key and value are padding.
        attention_mask: [B, T, S] or [T, S], True where query t may attend to key s; itself as large as what this
            function avoids. Padding, causal masks and windows do not need it.
        use_causal_mask: query i then sees only the keys 0 ... i + offset.
        offset: the position of the first query, an integer or a scalar tensor: how many a cache holds before it.
        sliding_window: an integer w; query i then sees only the keys j with |i + offset - j| < w.
        bias: [H, T, S] or [B, H, T, S], added to the scaled scores; itself as large as what this function avoids.
        relative_bias: [H, T + S - 1], added to the scaled scores: entry T - 1 + j - i to that of query i and key j.
            `ALiBi` and `RelativeBias` give it by `by_distance(ops.arange(1 - T - offset, S - offset))`.
        scale: factor of the products q . k, 1 / sqrt(K) if None.
        block_size: how many queries, and how many keys, make a block; if None, 1,024 for one head and 512 for more.

    Returns:
        Context [B, T, H, Kv], in the dtype of value.

    Raises:
        ValueError: a shape does not fit, or a window or block size is no positive integer.
        TypeError: a mask holds floats.

    On PyTorch, what has no mask (other than `query_mask`, and a causal one without offset), window or bias is left to
    torch.nn.functional.scaled_dot_product_attention.

    Example:

    >>> query, memory = ops.ones((2, 5, 8, 4)), ops.ones((2, 7, 2, 4))
    >>> context = blockwise_attention(query, memory, memory, use_causal_mask=True, block_size=3)
    >>> tuple(context.shape)
    (2, 5, 8, 4)

    References:
        Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory", https://arxiv.org/abs/2112.05682
        Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", https://arxiv.org/abs/1805.02867
        Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135
    """
    query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
    query_mask, key_mask = as_mask(query_mask, "query_mask"), as_mask(key_mask, "key_mask")
    attention_mask = as_mask(attention_mask, "attention_mask")
    _check_numbers(sliding_window=sliding_window, block_size=block_size)
    _check_heads(query, key, value)
    _check_shape("query_mask", query_mask, (query.shape[:2],))
    _check_shape("key_mask", key_mask, (key.shape[:2],))
    lengths = query.shape[1], key.shape[1]
    _check_shape("attention_mask", attention_mask, (lengths, (query.shape[0], *lengths)))
    query, key, value = zero_masked(query, query_mask), zero_masked(key, key_mask), zero_masked(value, key_mask)
    bias, relative_bias = _checked_biases(query, key, bias, relative_bias)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    plain = all(x is None for x in (key_mask, attention_mask, sliding_window, bias, relative_bias))
    aligned = not use_causal_mask or (isinstance(offset, int) and offset == 0)
    if plain and aligned and keras.backend.backend() == "torch":
        context = _torch_attention(query, key, value, use_causal_mask, scale)
    else:
        block_size = block_size or (1024 if query.shape[2] == 1 else 512)
        rows, columns = _Cut.of(ops.shape(query)[1], block_size), _Cut.of(ops.shape(key)[1], block_size, least=2)
        mask = _Mask.of(rows, columns, key_mask, attention_mask, use_causal_mask, offset, sliding_window)
        kind = (_WholeBias if relative_bias is None else _DistanceBias)(rows, columns)
        bias = bias if relative_bias is None else relative_bias
        context = _attention(_Grid(rows, columns, mask, kind, scale), query, key, value, bias)
    return zero_masked(ops.cast(context, value.dtype), query_mask)


def _check_heads(query, key, value):
    shapes = [tuple(x.shape) for x in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes):
        expected = "a query [B, T, H, K], a key [B, S, G, K] and a value [B, S, G, Kv]"
    elif query.shape[-1] != key.shape[-1]:
        expected = "query and key of one width"
    elif key.shape[2] != value.shape[2] or query.shape[2] % key.shape[2]:
        expected = "as many heads in value as in key, and in query a multiple of that"
    elif None not in (key.shape[1], value.shape[1]) and key.shape[1] != value.shape[1]:
        expected = "key and value of one length"
    else:
        return
    names = ", ".join(f"{name}.shape={shape}" for name, shape in zip(("query", "key", "value"), shapes, strict=True))
    raise ValueError(f"blockwise_attention expects {expected}. Received: {names}")


def _check_numbers(**numbers):
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(
                f"blockwise_attention expects {name} to be a positive integer or None. Received: {name}={number!r}"
            )


def _check_shape(name, x, expected):
    """Refuses x unless its shape, where known, is one of the expected."""
    if x is None:
        return
    for shape in expected:
        pairs = zip(x.shape, shape, strict=False)
        if len(x.shape) == len(shape) and all(None in pair or pair[0] == pair[1] for pair in pairs):
            return
    wanted = " or ".join(str(tuple(shape)) for shape in expected)
    raise ValueError(f"blockwise_attention expects a {name} of shape {wanted}. Received: {name}.shape={tuple(x.shape)}")


def _torch_attention(query, key, value, causal, scale):
    """PyTorch's own kernel; its causal mask is aligned at the top left, as ours is without an offset."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    context = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)
    return ops.swapaxes(context, 1, 2)


class _Cut(NamedTuple):
    """How an axis is cut into blocks of one size; zeros fill the last one. Tensors where the length is unknown."""

    length: Any
    blocks: Any
    size: Any

    @classmethod
    def of(cls, length, block_size, least=1):
        """As few blocks as possible, and those as small as possible. (Keras warns of a softmax over one number.)"""
        greater = max if isinstance(length, int) else ops.maximum
        block_size = max(block_size, least)
        blocks = greater(1, (length + block_size - 1) // block_size)
        return cls(length, blocks, greater(least, (length + blocks - 1) // blocks))

    @property
    def missing(self):
        return self.blocks * self.size - self.length

    def is_exact(self):
        return isinstance(self.length, int) and self.missing == 0

    def fill(self, x, axis, before=False):
        """x with zeros behind (or before), so that its axis is of whole blocks."""
        if self.is_exact():
            return x
        pair = (self.missing, 0) if before else (0, self.missing)
        return ops.pad(x, [pair if number == axis else (0, 0) for number in range(len(x.shape))])

    def stack(self, x):
        """x [B, length, heads, width] as [blocks, B, heads, size, width]."""
        batch, _, heads, width = ops.shape(x)
        x = ops.reshape(self.fill(x, axis=1), (batch, self.blocks, self.size, heads, width))
        return ops.transpose(x, (1, 0, 3, 2, 4))

    def unstack(self, x):
        """x [blocks, B, heads, size, width] as [B, length, heads, width]."""
        _, batch, heads, _, width = ops.shape(x)
        x = ops.reshape(ops.transpose(x, (1, 0, 3, 2, 4)), (batch, self.blocks * self.size, heads, width))
        return x if self.is_exact() else x[:, : self.length]


def _block(blocks, i):
    """Block i of blocks [I, ...]; TensorFlow slices without a copy."""
    shape = ops.shape(blocks)
    return ops.squeeze(ops.slice(blocks, (i, *[0] * (len(shape) - 1)), (1, *shape[1:])), axis=0)


class _Mask(NamedTuple):
    """Who may attend to whom, one block at a time."""

    rows: _Cut
    columns: _Cut
    keys: Any  # [J, 1 or B, 1, 1, 1, Q] or None
    explicit: Any  # [1 or B, I * P, J * Q] or None
    causal: bool
    offset: Any
    window: Any

    @classmethod
    def of(cls, rows, columns, key_mask, attention_mask, causal, offset, window):
        if key_mask is None and not columns.is_exact():
            key_mask = ops.ones((1, columns.length), dtype="bool")
        if key_mask is not None:
            key_mask = columns.fill(key_mask, axis=1)
            key_mask = ops.reshape(key_mask, (ops.shape(key_mask)[0], columns.blocks, columns.size))
            key_mask = ops.swapaxes(key_mask, 0, 1)[:, :, None, None, None]
        if attention_mask is not None:
            attention_mask = attention_mask if len(attention_mask.shape) == 3 else attention_mask[None]
            attention_mask = columns.fill(rows.fill(attention_mask, axis=1), axis=2)
        return cls(rows, columns, key_mask, attention_mask, causal, ops.cast(offset, "int32"), window)

    def columns_for(self, i):
        """The first block of keys that block i of the queries may see, and the one where it must end."""
        start, size = i * self.rows.size + self.offset, self.columns.size
        last = start + self.rows.size - 1
        first, end = ops.zeros_like(i), ops.zeros_like(i) + self.columns.blocks
        if self.window is not None:
            first = ops.maximum(first, (start - self.window + 1) // size)
            end = ops.minimum(end, (last + self.window - 1) // size + 1)
        if self.causal:
            end = ops.minimum(end, last // size + 1)
        return first, end

    def block(self, i, j):
        """Boolean, broadcastable to [B, G, R, P, Q], or None where everything may be attended."""
        near = explicit = None
        row, column = i * self.rows.size, j * self.columns.size
        if self.causal or self.window is not None:
            ahead = (ops.arange(self.columns.size) + column) - (ops.arange(self.rows.size) + row + self.offset)[:, None]
            near = combine_masks(
                ahead <= 0 if self.causal else None,
                None if self.window is None else ops.abs(ahead) < self.window,
            )
        if self.explicit is not None:
            shape = ops.shape(self.explicit)[0], self.rows.size, self.columns.size
            explicit = ops.slice(self.explicit, (0, row, column), shape)[:, None, None]
        return combine_masks(near, explicit, None if self.keys is None else ops.take(self.keys, j, axis=0))


class _WholeBias(NamedTuple):
    """A bias [1 or B, H, T, S] by blocks, and its gradient."""

    rows: _Cut
    columns: _Cut

    def prepare(self, bias):
        """The form that the other methods take: [1 or B, H, I * P, J * Q]."""
        return self.columns.fill(self.rows.fill(bias, axis=2), axis=3)

    def block(self, bias, i, j):
        """[1 or B, H, P, Q]."""
        rows, columns = self.rows.size, self.columns.size
        return ops.slice(bias, (0, 0, i * rows, j * columns), (*ops.shape(bias)[:2], rows, columns))

    def start(self, bias):
        """A gradient of zeros, [I * J, 1 or B, H, P, Q]."""
        shape = self.rows.blocks * self.columns.blocks, *ops.shape(bias)[:2], self.rows.size, self.columns.size
        return ops.zeros(shape, dtype=bias.dtype)

    def add(self, gradient, i, j, by_scores):
        """Puts the gradient of one block of scores [B, H, P, Q] in its place."""
        if gradient.shape[1] == 1:
            by_scores = ops.sum(by_scores, axis=0, keepdims=True)
        return ops.scatter_update(gradient, [[i * self.columns.blocks + j]], by_scores[None])

    def finish(self, gradient):
        """The gradient in the shape of what `prepare` gave."""
        _, batch, heads, rows, columns = ops.shape(gradient)
        gradient = ops.reshape(gradient, (self.rows.blocks, self.columns.blocks, batch, heads, rows, columns))
        shape = batch, heads, self.rows.blocks * rows, self.columns.blocks * columns
        return ops.reshape(ops.transpose(gradient, (2, 3, 0, 4, 1, 5)), shape)


class _DistanceBias(NamedTuple):
    """A bias [H, T + S - 1] by the distance j - i, as blocks, and its gradient.

    A block's bias [P, Q] has P + Q - 1 different numbers v, of which row p shows v[P - 1 - p : P - 1 - p + Q]. Rows
    that all hold v, of length L = P + Q, read as rows of length L - 1, are shifted by one place each.
    """

    rows: _Cut
    columns: _Cut

    def prepare(self, bias):
        """The form that the other methods take: [I * P + J * Q, H]."""
        bias = ops.pad(ops.transpose(bias), [(self.rows.missing, self.columns.missing + 1), (0, 0)])
        return bias

    def places(self, i, j):
        first = (self.rows.blocks - 1 - i) * self.rows.size + j * self.columns.size
        return ops.arange(self.rows.size + self.columns.size) + first

    def block(self, bias, i, j):
        """[1, H, P, Q]."""
        heads, rows, length = bias.shape[-1], self.rows.size, self.rows.size + self.columns.size
        values = ops.transpose(ops.take(bias, self.places(i, j), axis=0))
        values = ops.reshape(ops.repeat(values[:, None], rows, axis=1), (heads, rows * length))
        values = ops.reshape(values[:, : rows * (length - 1)], (heads, rows, length - 1))
        return values[None, :, :, rows - 1 :]

    def start(self, bias):
        return ops.zeros_like(bias)

    def add(self, gradient, i, j, by_scores):
        """Adds the gradient of one block of scores [B, H, P, Q], shifted back."""
        heads, rows, length = gradient.shape[-1], self.rows.size, self.rows.size + self.columns.size
        shifted = ops.pad(ops.sum(by_scores, axis=0), [(0, 0), (0, 0), (rows - 1, 0)])
        shifted = ops.pad(ops.reshape(shifted, (heads, rows * (length - 1))), [(0, 0), (0, rows)])
        values = ops.sum(ops.reshape(shifted, (heads, rows, length)), axis=1)
        return ops.scatter_update(gradient, self.places(i, j)[:, None], ops.transpose(values), reduction="add")

    def finish(self, gradient):
        return gradient


def _checked_biases(query, key, bias, relative_bias):
    """Both in at least float32, and the bias as [1 or B, H, T, S]."""
    (batch, target, heads, _), source = query.shape, key.shape[1]
    if bias is not None and relative_bias is not None:
        raise ValueError("blockwise_attention expects bias or relative_bias. Received: both; add one to the other.")
    if bias is not None:
        bias = at_least_float32(ops.convert_to_tensor(bias))
        _check_shape("bias", bias, [(*rows, heads, target, source) for rows in ((), (1,), (batch,))])
        bias = bias if len(bias.shape) == 4 else bias[None]
    if relative_bias is not None:
        relative_bias = at_least_float32(ops.convert_to_tensor(relative_bias))
        distances = None if None in (target, source) else target + source - 1
        _check_shape("relative_bias", relative_bias, ((heads, distances),))
    return bias, relative_bias


class _Grid(NamedTuple):
    """Blocks of queries (rows) by blocks of keys (columns)."""

    rows: _Cut
    columns: _Cut
    mask: _Mask
    bias: Any
    scale: float

    def query(self, blocks, i):
        """Block i of the queries, scaled: [B, G, R * P, K]."""
        return at_least_float32(_block(blocks, i)) * self.scale

    def scores(self, i, j, query, key, bias):
        """Scores [B, G, R * P, Q] of a block, the lowest number where nothing may be attended."""
        scores = ops.einsum("bgik,bgjk->bgij", query, key)
        mask = self.mask.block(i, j)
        if mask is None and bias is None:
            return scores
        shape = ops.shape(scores)
        scores = ops.reshape(scores, (*shape[:2], -1, self.rows.size, self.columns.size))  # [B, G, R, P, Q]
        if bias is not None:
            bias = self.bias.block(bias, i, j)
            scores = scores + ops.reshape(bias, (ops.shape(bias)[0], shape[1], -1, self.rows.size, self.columns.size))
        if mask is not None:
            scores = ops.where(mask, scores, LOWEST)
        return ops.reshape(scores, shape)


def _attention(grid, query, key, value, bias):
    """Context [B, T, H, Kv], in at least float32."""
    batch, _, heads, width = ops.shape(query)
    shape = grid.rows.blocks, batch, key.shape[2], heads // key.shape[2] * grid.rows.size, width
    query = ops.reshape(grid.rows.stack(query), shape)
    key, value = grid.columns.stack(key), grid.columns.stack(value)
    bias = [] if bias is None else [grid.bias.prepare(bias)]

    @ops.custom_gradient
    def attend(query, key, value, *bias):
        context, normalizer = _forward(grid, query, key, value, *bias)

        def backward(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return _backward(grid, upstream, context, normalizer, query, key, value, *bias)

        return context, backward

    context = attend(query, key, value, *bias)
    return grid.rows.unstack(ops.reshape(context, (*shape[:2], heads, grid.rows.size, value.shape[-1])))


def _forward(grid, query, key, value, bias=None):
    """Context [I, B, G, R * P, Kv] and the log-sum-exp of each row of scores [I, B, G, R * P, 1]."""

    def advance(i, *buffers):
        found = _forward_row(grid, i, grid.query(query, i), key, value, bias)
        buffers = [ops.scatter_update(x, [[i]], new[None]) for x, new in zip(buffers, found, strict=True)]
        return _after(i + 1, buffers[0]), *buffers

    shape, dtype = ops.shape(query)[:-1], keras.backend.result_type(query.dtype, "float32")
    start = [ops.zeros((*shape, width), dtype=dtype) for width in (value.shape[-1], 1)]
    return ops.while_loop(lambda i, *_: i < grid.rows.blocks, advance, (ops.zeros((), "int32"), *start))[1:]


def _forward_row(grid, i, query, key, value, bias):
    """Context [B, G, R * P, Kv] and log-sum-exp [B, G, R * P, 1] of block i of the queries."""
    first, end = grid.mask.columns_for(i)

    def advance(j, context, normalizer):
        k, v = (at_least_float32(_block(x, j)) for x in (key, value))
        weights, new = _softmax(grid.scores(i, j, query, k, bias))
        share = ops.sigmoid(new - normalizer)  # of this block
        context = context * (1 - share) + ops.matmul(weights, v) * share
        both = ops.maximum(normalizer, new) + ops.softplus(-ops.abs(new - normalizer))
        return _after(j + 1, context), context, both

    shape = ops.shape(query)[:-1]
    start = ops.zeros((*shape, value.shape[-1]), query.dtype), ops.full((*shape, 1), LOWEST, query.dtype)
    _, context, normalizer = ops.while_loop(lambda j, *_: j < end, advance, (first, *start))
    return ops.where(normalizer == LOWEST, 0.0, context), normalizer


def _softmax(scores):
    """Softmax over the last axis, and the log-sum-exp [..., 1] of its scores, without a second pass of exponentials."""
    weights = ops.softmax(scores, axis=-1)
    # The greatest weight is exp(greatest score - log-sum-exp).
    return weights, ops.max(scores, axis=-1, keepdims=True) - ops.log(ops.max(weights, axis=-1, keepdims=True))


def _backward(grid, upstream, context, normalizer, query, key, value, bias=None):
    """Gradients by query, key, value and, where there is one, bias."""

    def advance(i, by_query, *others):
        row = [_block(x, i) for x in (upstream, context, normalizer)]
        found, *others = _backward_row(grid, i, row, others, grid.query(query, i), key, value, bias)
        by_query = ops.scatter_update(by_query, [[i]], found[None] * grid.scale)
        return _after(i + 1, by_query), by_query, *others

    start = [ops.zeros(ops.shape(x), dtype=context.dtype) for x in (query, key, value)]
    start += [] if bias is None else [grid.bias.start(bias)]
    loop = ops.while_loop(lambda i, *_: i < grid.rows.blocks, advance, (ops.zeros((), "int32"), *start))
    found = [ops.cast(gradient, x.dtype) for gradient, x in zip(loop[1:4], (query, key, value), strict=True)]
    return (*found, *(grid.bias.finish(gradient) for gradient in loop[4:]))


def _backward_row(grid, i, row, buffers, query, key, value, bias):
    """The gradient by block i of the queries, and the buffers of the others with what this block adds."""
    upstream, context, normalizer = row
    upstream = ops.where(normalizer == LOWEST, 0.0, upstream)
    mean = ops.sum(upstream * context, axis=-1, keepdims=True)
    first, end = grid.mask.columns_for(i)

    def advance(j, by_query, by_key, by_value, *by_bias):
        k, v = (at_least_float32(_block(x, j)) for x in (key, value))
        weights = ops.exp(grid.scores(i, j, query, k, bias) - normalizer)
        by_scores = weights * (ops.einsum("bgiv,bgjv->bgij", upstream, v) - mean)
        by_query = by_query + ops.matmul(by_scores, k)
        found = ops.einsum("bgij,bgik->bgjk", by_scores, query), ops.einsum("bgij,bgiv->bgjv", weights, upstream)
        by_key = ops.scatter_update(by_key, [[j]], found[0][None], reduction="add")
        by_value = ops.scatter_update(by_value, [[j]], found[1][None], reduction="add")
        if by_bias:
            batch, rows, columns = ops.shape(query)[0], grid.rows.size, grid.columns.size
            by_bias = [grid.bias.add(*by_bias, i, j, ops.reshape(by_scores, (batch, -1, rows, columns)))]
        return _after(j + 1, by_value), by_query, by_key, by_value, *by_bias

    return ops.while_loop(lambda j, *_: j < end, advance, (first, ops.zeros_like(query), *buffers))[1:]


def _after(value, other):
    """The value, once the other is there: TensorFlow would compute several blocks at a time."""
    if keras.backend.backend() != "tensorflow":
        return value
    # keras.ops has no control dependency: a choice between the value and itself cannot be made before it is known.
    return ops.where(ops.isfinite(ops.reshape(other, (-1,))[0]), value, value)
