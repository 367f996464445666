"""Multi-head attention: Keras's layer with masks that never leak, grouped heads, positions and long sequences."""

import math

import keras
from keras import ops

from keras_attention import cache as caches
from keras_attention import masks, recording
from keras_attention.attention import describe_call, scores_dtype
from keras_attention.blockwise import blockwise_attention
from keras_attention.scores import affine

LARGE = 4096 * 4096  # scores of one head, T * S, from which on attention is computed in blocks by itself


@keras.saving.register_keras_serializable(package="keras_attention")
class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention`, right where that is wrong, with more kinds of heads, positions and lengths.

        Q_h = X W_q^h + b_q^h,  K_h = M W_k^h + b_k^h,  V_h = M W_v^h + b_v^h        for each head h
        head_h = softmax(Q_h K_h^T / sqrt(key_dim) [+ position bias]) V_h
        output = [head_1; ...; head_H] W_o + b_o

    Change the import and working code goes on, with the same weights, in the same order, and the same numbers. They
    differ only where Keras 3.15 is wrong: an explicit `query_mask` is ANDed with the implicit mask of the query, not
    overwritten by it; the implicit masks of value and key are honoured, too, in every call; a query that may attend to
    nothing has zero weights and a zero context whether scores are asked for or not (the output projection still adds
    its bias), in 16-bit floats as well; not even NaN passes from behind a padding mask; scores and softmax are computed
    in float32 under mixed precision; symbolic scores of cross-attention have the shape [B, H, T, S].

    Args:
        num_heads: H, number of query heads.
        key_dim: K, width of a head of queries and keys.
        value_dim, dropout, use_bias, output_shape, attention_axes, sliding_window, kernel_initializer and the others,
            use_gate, seed: as in Keras, and in its order.
        flash_attention: whether to compute in blocks, without any [T, S] matrix (`blockwise_attention`). None: where
            T * S is at least 4096 * 4096 (lengths that are unknown when a graph is traced count as small). Dropout
            and `return_attention_scores` need the weights, so that None then takes the plain path, and True is an
            error, as in Keras; `record_scores` always takes the plain path. Unlike Keras's, it works on TensorFlow,
            and with all masks that are the same for all heads.
        num_key_value_heads: G, number of key and value heads, a divisor of H; each serves H / G query heads. H is
            multi-head, 1 multi-query attention (Shazeer 2019), between is grouped-query attention (Ainslie et al.
            2023).
        position: a `RotaryEmbedding`, `ALiBi` or `RelativeBias` layer, or any layer that has `rotate(x, positions)` or
            `bias(query_positions, key_positions)`, positions [T], or [B, T] with one row for all or one for each.
            One that has weights is for one layer.
        fused_projection: compute queries, keys and values of self-attention by one matrix product; the variables are
            then one kernel [D, H + 2 G, K] and one bias, each part initialised as if it stood alone.

    Call arguments:
        query: [B, T, Dq].
        value: [B, S, Dv].
        key: [B, S, Dk], or None for `value`.
        query_mask: [B, T]; value_mask, key_mask: [B, S], False at padding.
        attention_mask: [B, T, S], [B, 1, T, S] or [B, H, T, S], True where a query may attend to a key.
        use_causal_mask: query i then sees only the keys 0 ... i.
        return_attention_scores: also return the weights.
        training: whether dropout is active.
        cache: for stepwise decoding, a dict of what `initial_cache` or the call before returned ("key", "value" and
            "mask" of the tokens so far), and/or a "prefix" that all hypotheses of a sentence share, as `project_memory`
            makes it (query's axis is then N = B W; hypotheses b W ... b W + W - 1 belong to row b). A cache that was
            filled for prompts is a prefix, too. With a prefix alone it is cross-attention, layer(query, cache=...), and
            the cache stays what it is. Cached calls never compute in blocks.
        cache_update_index: how many tokens the cache holds already: the place of the first new one, an integer or a
            scalar tensor. Causal masks, windows and positions count from there (and from the end of the prefix).
            What the cache held from there on is forgotten. Beyond its end an integer is an error, and a tensor, whose
            number may not be known yet, gives NaN (but in compiled searches, which do not look).

    Returns:
        Output [B, T, Dq] (or `output_shape`); with `return_attention_scores` or a cache that grows, a tuple (output
        [, weights [B, H, T, S]] [, cache]). Weights of cached steps are [N, H, T, P + L], prefix and own tokens, zero
        where none stands yet.

    Masks are boolean, True = may attend, integers 0 and 1 are accepted, floats refused. Explicit and implicit ones are
    ANDed; the output carries the query's mask.

    Example:

    >>> layer = MultiHeadAttention(num_heads=8, key_dim=4, num_key_value_heads=2)
    >>> output, weights = layer(ops.ones((2, 5, 16)), ops.ones((2, 7, 16)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 5, 16), (2, 8, 5, 7))

    References:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2; Shazeer 2019,
        https://arxiv.org/abs/1911.02150; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        flash_attention=None,
        num_key_value_heads=None,
        position=None,
        fused_projection=False,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, *args, flash_attention=flash_attention, **kwargs)
        if num_key_value_heads is not None and (num_key_value_heads < 1 or num_heads % num_key_value_heads):
            raise ValueError(
                "MultiHeadAttention expects num_heads to be a multiple of num_key_value_heads. Received: "
                f"num_heads={num_heads}, num_key_value_heads={num_key_value_heads}"
            )
        if position is not None and not (hasattr(position, "rotate") or hasattr(position, "bias")):
            raise TypeError(
                "MultiHeadAttention expects position to be a layer with `rotate` or `bias`, such as RotaryEmbedding() "
                f"or ALiBi(num_heads). Received: position={position!r}; SinusoidalEncoding and PositionEmbedding are "
                "added to the inputs instead."
            )
        if getattr(position, "num_heads", num_heads) != num_heads:
            raise ValueError(
                "MultiHeadAttention expects a position with as many heads as its own. Received: "
                f"num_heads={num_heads}, position.num_heads={position.num_heads}"
            )
        if fused_projection and self.value_dim != key_dim:
            raise ValueError(
                "fused_projection=True expects value_dim to be key_dim: queries, keys and values are parts of one "
                f"kernel. Received: key_dim={key_dim}, value_dim={self.value_dim}"
            )
        self.flash_attention = flash_attention
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.position = position
        self.fused_projection = fused_projection

    def __call__(self, *args, **kwargs):
        self._check_call(args, kwargs)
        return super().__call__(*args, **kwargs)

    def _check_call(self, args, kwargs):
        names = ("query", "value", "key")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, value, key = (given.get(name) for name in names)
        alone = isinstance(given.get("cache"), dict) and list(given["cache"]) == ["prefix"]
        if isinstance(query, (list, tuple)) or query is None or (value is None and not alone):
            raise TypeError(
                f"{type(self).__name__} is called as layer(query, value, key=None, ...), each a tensor of shape "
                f"[batch, length, width]. Received: {describe_call(args, kwargs)}; write layer(query, value) instead "
                "of layer([query, value]), and layer(x, x) for self-attention."
            )
        if alone and (value is not None or not self.built):
            raise ValueError(
                "A cache of a prefix alone is for a layer that is built, called without a value: layer(query, cache="
                f"{{'prefix': ...}}). Received: value={'None' if value is None else 'a tensor'}, built={self.built}"
            )
        if self.fused_projection and not (query is value and (key is None or key is value)):
            raise ValueError(
                "fused_projection=True is for self-attention, layer(x, x): query, value and key are one tensor. "
                f"Received: several, {describe_call(args, kwargs)}; use fused_projection=False."
            )

    # Variables: Keras's names, shapes and order.

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        self._check_shapes(query_shape, value_shape, key_shape)
        if self.fused_projection:
            self._build_fused(query_shape)
        else:
            self._query_dense = self._projection("query", query_shape, self.num_heads, self.key_dim)
            self._key_dense = self._projection("key", key_shape, self.num_key_value_heads, self.key_dim)
        if self._use_gate:
            self._gate_dense = self._projection("gate", query_shape, self.num_heads, self.value_dim, "sigmoid")
        if not self.fused_projection:
            self._value_dense = self._projection("value", value_shape, self.num_key_value_heads, self.value_dim)
        self._build_attention(len(query_shape) + 1)
        if self.position is not None:
            self._build_position()
        self._output_dense = self._make_output_dense(
            query_shape, self._get_common_kwargs_for_sublayer(), "attention_output"
        )
        self._output_dense.build((*query_shape[:-1], self.num_heads, self.value_dim))
        self.built = True

    def _build_position(self):
        if not self.position.built:
            self.position.build((None, None, self.num_heads, self.key_dim))
        # Shared weights would be lost in a .keras file: Keras does not see that two layers hold one position.
        if self.position.weights and getattr(self.position, "_owner", id(self)) != id(self):
            raise ValueError(
                "MultiHeadAttention expects a position layer of its own, or one without weights. Received: "
                f"{self.position.name!r}, which belongs to another layer; make one for each."
            )
        self.position._owner = id(self)

    def _check_shapes(self, query_shape, value_shape, key_shape):
        named = zip(("query", "value", "key"), (query_shape, value_shape, key_shape), strict=True)
        shapes = ", ".join(f"{name}.shape={tuple(shape)}" for name, shape in named)
        if tuple(value_shape[1:-1]) != tuple(key_shape[1:-1]):
            raise ValueError(
                f"All dimensions of `value` and `key`, except the last one, must be equal. Received: {shapes}"
            )
        if len(query_shape) < 3 or not len(query_shape) == len(value_shape) == len(key_shape):
            raise ValueError(
                "MultiHeadAttention expects query, value and key of shape [batch, length, width], or with more axes "
                f"of which all three have as many. Received: {shapes}"
            )
        special = self.num_key_value_heads != self.num_heads or self.position is not None or self.fused_projection
        if special and (len(query_shape) != 3 or tuple(self._attention_axes or (1,)) not in ((1,), (-2,))):
            raise ValueError(
                "num_key_value_heads, position and fused_projection are for inputs [batch, length, width]. Received: "
                f"{shapes}, attention_axes={self._attention_axes}"
            )

    def _projection(self, name, shape, heads, width, activation=None):
        free = "abcdefg"[: len(shape) - 1]
        dense = _Projection(
            f"{free}x,xyz->{free}yz",
            output_shape=[None] * (len(shape) - 2) + [heads, width],
            bias_axes="yz" if self.use_bias else None,
            activation=activation,
            name=name,
            **self._get_common_kwargs_for_sublayer(),
        )
        dense.build(shape)
        return dense

    def _make_output_dense(self, query_shape, common_kwargs, name=None):
        free, new = "abcdefg"[: len(query_shape) - 1], self._output_shape or [query_shape[-1]]
        made = "uvw"[: len(new)]
        return _Projection(
            f"{free}yz,yz{made}->{free}{made}",
            output_shape=[None] * (len(query_shape) - 2) + list(new),
            bias_axes=made if self.use_bias else None,
            name=name,
            **common_kwargs,
        )

    def _build_fused(self, query_shape):
        heads = self.num_heads + 2 * self.num_key_value_heads
        options = self._get_common_kwargs_for_sublayer()
        options["kernel_initializer"] = _Parts(
            options["kernel_initializer"], [self.num_heads, self.num_key_value_heads, self.num_key_value_heads]
        )
        self._fused_dense = _Projection(
            "abx,xyz->abyz",
            output_shape=(None, heads, self.key_dim),
            bias_axes="yz" if self.use_bias else None,
            name="query_key_value",
            **options,
        )
        self._fused_dense.build(query_shape)

    # The computation.

    def call(
        self,
        query,
        value=None,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
        cache=None,
        cache_update_index=None,
    ):
        query_mask = masks.combine_masks(padding_mask_of("query_mask", query_mask, query), masks.implicit_mask(query))
        key_mask = None if value is None else self._key_mask(value, key, value_mask, key_mask)
        attention_mask = masks.as_mask(attention_mask, "attention_mask")
        gate = self._gate_dense(masks.zero_masked(query, query_mask)) if self._use_gate else None
        projected = self._project(query, value if key is None else key, value, query_mask, key_mask)
        given = query_mask, key_mask, attention_mask, use_causal_mask, training
        if cache is None:
            context, weights = self._attend(*projected, *given, return_attention_scores)
        else:
            context, weights, cache = self._attend_cached(cache, cache_update_index, projected, *given)
        output = self._output_dense(context if gate is None else context * gate)
        results = [masks.carry_mask(output, query_mask)]
        results += [weights] if return_attention_scores else []
        results += [cache] if cache else []
        return results[0] if len(results) == 1 else tuple(results)

    def _key_mask(self, value, key, value_mask=None, key_mask=None):
        """Explicit and implicit masks of value and key in one, or None."""
        return masks.combine_masks(
            padding_mask_of("value_mask", value_mask, value),
            padding_mask_of("key_mask", key_mask, value),
            masks.implicit_mask(value),
            None if key is None else masks.implicit_mask(key),
        )

    def _project(self, query, key, value, query_mask, key_mask):
        """Queries [B, T, H, K], keys [B, S, G, K] and values [B, S, G, Kv] of inputs without what padding holds.

        Inputs that are None stay None.
        """
        if not self.fused_projection:
            return (
                None if query is None else self._query_dense(masks.zero_masked(query, query_mask)),
                None if key is None else self._key_dense(masks.zero_masked(key, key_mask)),
                None if value is None else self._value_dense(masks.zero_masked(value, key_mask)),
            )
        heads, shared = self.num_heads, self.num_key_value_heads
        used = None if query_mask is None or key_mask is None else ops.logical_or(query_mask, key_mask)
        fused = self._fused_dense(masks.zero_masked(query, used))
        query, key, value = ops.split(fused, [heads, heads + shared], axis=2)
        return query, masks.zero_masked(key, key_mask), masks.zero_masked(value, key_mask)

    def _attend(self, query, key, value, query_mask, key_mask, attention_mask, causal, training, with_weights):
        """Context [B, T, H, Kv] and weights [B, H, T, S] (None where they are not wanted or never existed)."""
        query, key = self._rotate(query), self._rotate(key)
        if self._flash_attention and with_weights:
            raise ValueError(
                "Returning attention scores is not supported when flash attention is enabled. Please disable flash "
                "attention to access attention scores: flash_attention=None or False."
            )
        recording_now = recording.is_recording()
        if not recording_now and self._in_blocks(query, key, attention_mask, with_weights, training):
            return self._blocks(query, key, value, query_mask, key_mask, attention_mask, causal), None
        mask = self._mask(query, key, query_mask, key_mask, attention_mask, causal)
        context, weights = self._compute_attention(query, key, value, mask, training, with_weights or recording_now)
        if recording_now:
            recording.record(self, weights)
        return context, weights

    def _rotate(self, x, positions=None):
        """Heads [B, L, H, K] rotated by their positions, 0 ... L - 1 if None, where the position is of that kind."""
        if not hasattr(self.position, "rotate"):
            return x
        return self.position.rotate(x, ops.arange(ops.shape(x)[1]) if positions is None else positions)

    def _biased(self, scores, query_positions=None, key_positions=None):
        """Scores [B, H, T, S] and the bias of their positions, 0 ... T - 1 and 0 ... S - 1 if None."""
        if not hasattr(self.position, "bias"):
            return scores
        if query_positions is None:
            query_positions, key_positions = (ops.arange(length) for length in ops.shape(scores)[2:])
        return scores + ops.cast(self.position.bias(query_positions, key_positions), scores.dtype)

    def _in_blocks(self, query, key, attention_mask, with_weights, training):
        """Whether to compute without the weights, in blocks."""
        overridden = type(self)._compute_attention is not MultiHeadAttention._compute_attention
        if len(query.shape) != 4 or overridden or self.flash_attention is False:
            return False
        if self._flash_attention:
            return True
        lengths = query.shape[1], key.shape[1]
        if with_weights or self.dropout and training or not all(isinstance(length, int) for length in lengths):
            return False
        return lengths[0] * lengths[1] >= LARGE and not _differs_by_head(attention_mask)

    def _blocks(self, query, key, value, query_mask, key_mask, attention_mask, causal):
        bias, by_distance = None, None
        if hasattr(self.position, "bias"):
            lengths = ops.shape(query)[1], ops.shape(key)[1]
            if hasattr(self.position, "by_distance"):
                by_distance = self.position.by_distance(ops.arange(1 - lengths[0], lengths[1]))
            else:
                bias = masks.at_least_float32(self.position.bias(*(ops.arange(length) for length in lengths)))
        if _differs_by_head(attention_mask):
            raise ValueError(
                "flash_attention=True expects an attention_mask [B, T, S], the same for all heads. "
                f"Received: attention_mask.shape={tuple(attention_mask.shape)}; use flash_attention=False."
            )
        if attention_mask is not None:
            attention_mask = attention_mask[:, 0] if len(attention_mask.shape) == 4 else attention_mask
            if 1 in attention_mask.shape:
                shape = (ops.shape(query)[0], ops.shape(query)[1], ops.shape(key)[1])
                attention_mask = ops.broadcast_to(attention_mask, shape)
        return blockwise_attention(
            query,
            key,
            value,
            query_mask=query_mask,
            key_mask=key_mask,
            attention_mask=attention_mask,
            use_causal_mask=causal,
            sliding_window=self._sliding_window,
            bias=bias,
            relative_bias=by_distance,
            scale=self._inverse_sqrt_key_dim,
        )

    # Stepwise decoding.

    def initial_cache(self, batch_size, max_length):
        """An empty cache for `max_length` tokens of each of `batch_size` sequences (or hypotheses)."""
        sizes = self.num_key_value_heads, self.key_dim, self.value_dim
        return caches.empty(batch_size, max_length, *sizes, self.compute_dtype)

    def project_memory(self, value, key=None, value_mask=None, key_mask=None):
        """Keys and values of a memory [B, S, D], projected once: the "prefix" of caches. The layer must be built."""
        if not self.built or self.fused_projection:
            raise ValueError(
                f"project_memory expects a layer that is built, of three projections. Received: built={self.built}, "
                f"fused_projection={self.fused_projection}; call the layer once before, or build(query_shape, "
                "value_shape)."
            )
        mask = self._key_mask(value, key, value_mask, key_mask)
        _, keys, values = self._project(None, value if key is None else key, value, None, mask)
        mask = ops.ones(ops.shape(keys)[:2], dtype="bool") if mask is None else mask
        return {"key": _columns(self._rotate(keys)), "value": ops.swapaxes(values, 1, 2), "mask": mask}

    def _attend_cached(self, cache, index, projected, query_mask, key_mask, attention_mask, causal, training):
        """Context [N, T, H, Kv], weights [N, H, T, P + L] and the cache with the new tokens ({} if it takes none).

        One softmax runs over the prefix and the hypothesis's own tokens, which follow it.
        """
        if type(self)._compute_attention is not MultiHeadAttention._compute_attention:
            raise ValueError(
                f"{type(self).__name__} overrides _compute_attention, which has no cache. Received: a cache; override "
                "_scores instead."
            )
        index = None if index is None else caches.as_index(index)
        caches.check(self, cache, index, *projected)
        query, key, value = projected
        start = caches.start(cache, query)
        positions = (ops.arange(ops.shape(query)[1]) + (0 if index is None else index))[None] + start
        own, whole = {}, True
        if "key" in cache:
            whole = caches.is_compiled() or caches.fits(cache, ops.shape(key)[1], index)
            key, value = _columns(self._rotate(key, positions)), ops.swapaxes(value, 1, 2)
            own = caches.write(cache, key, value, key_mask, index)
        parts = caches.parts(own, cache.get("prefix"), start, query)
        query = masks.at_least_float32(self._rotate(query, positions)) * self._inverse_sqrt_key_dim
        scores = [self._part_scores(ops.swapaxes(query, 1, 2), part) for part in parts]
        scores = [self._biased(x, positions, part.positions) for x, part in zip(scores, parts, strict=True)]
        allowed = [self._allowed(part, positions, causal) for part in parts]
        mask = _joined_mask(allowed, scores, query_mask, attention_mask)
        scores = ops.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0]
        masked = any(x is not None for x in (key_mask, query_mask, attention_mask))
        never_empty = bool(own) and not masked  # a new token attends to itself
        weights = masks.masked_softmax(scores, mask, never_empty=never_empty)
        recording.record(self, weights)
        kept, context = self._dropped(weights, parts[0].value, training), 0
        for part in parts:
            length = ops.shape(part.value)[2]
            context = context + self._part_context(kept[..., :length], part)
            kept = kept[..., length:]
        context = context if whole is True else ops.where(whole, context, float("nan"))
        return ops.swapaxes(context, 1, 2), weights, {**cache, **own} if own else {}

    def _part_scores(self, query, part):
        """Scores [N, H, T, L] of scaled queries [N, H, T, K] and a part of a cache."""
        scores = ops.matmul(caches.by_key(query, part), masks.at_least_float32(part.key))
        return caches.by_query(scores, part, *ops.shape(query)[:3])

    def _part_context(self, weights, part):
        """What weights [N, H, T, L] take from a part, [N, H, T, Kv]."""
        context = ops.matmul(caches.by_key(weights, part), part.value)
        return caches.by_query(context, part, *ops.shape(weights)[:3])

    def _allowed(self, part, positions, causal):
        """Which tokens of a part each query may attend to, [N, 1 or T, L]."""
        return masks.combine_masks(part.mask[:, None], self._near(positions, part.positions, causal))

    def _mask(self, query, key, query_mask, key_mask, attention_mask, causal):
        """All masks in one, [B, T, S] (or [B, H, T, S] where attention_mask has heads), or None.

        With more axes: [B, other axes, attention axes of the queries, those of the keys], as Keras lays it out.
        """
        axes, rank = len(self._attention_axes), len(query.shape) - 2
        padding = masks.combine_masks(
            self._over_scores(query_mask, rank, (1,) * axes, ()),
            self._over_scores(key_mask, rank, (), (1,) * axes),
        )
        if attention_mask is not None:
            given = tuple(attention_mask.shape)
            if not 2 * axes <= len(given) <= rank + axes + 1:
                raise ValueError(
                    f"attention_mask is [B, T, S], [B, 1, T, S] or [B, H, T, S] (or [T, S] for all). Received: "
                    f"attention_mask.shape={given}"
                )
            for _ in range(rank + axes - len(given)):
                attention_mask = ops.expand_dims(attention_mask, -2 * axes - 1)
            if padding is not None and len(given) > rank + axes:
                padding = ops.expand_dims(padding, -2 * axes - 1)
        return masks.combine_masks(padding, self._near_in(query, key, causal), attention_mask)

    def _over_scores(self, mask, rank, after, before):
        """A padding mask of inputs with `rank` axes and a width, laid out as scores without heads."""
        if mask is None:
            return None
        shape = ops.shape(mask)
        free = [axis for axis in range(rank) if axis not in self._attention_axes]
        mask = ops.reshape(mask, (*shape, *(1,) * (rank - len(shape))))
        mask = ops.transpose(mask, (*free, *self._attention_axes))
        shape = ops.shape(mask)
        return ops.reshape(mask, (*shape[: len(free)], *before, *shape[len(free) :], *after))

    def _near_in(self, query, key, causal):
        """The causal mask and the window of whole sequences, [1, T, S], or None."""
        if not causal and self._sliding_window is None:
            return None
        if len(self._attention_axes) > 1:
            raise ValueError(
                "use_causal_mask and sliding_window expect attention over one axis. Received: "
                f"attention_axes={self._attention_axes}"
            )
        axis = self._attention_axes[0]
        return self._near(ops.arange(ops.shape(query)[axis])[None], ops.arange(ops.shape(key)[axis])[None], causal)

    def _near(self, query_positions, key_positions, causal):
        """The causal mask and the window of positions [B, T] and [B, S] (or [1, .] for all), [B, T, S], or None."""
        if not causal and self._sliding_window is None:
            return None
        ahead = key_positions[:, None, :] - query_positions[:, :, None]
        near = None if self._sliding_window is None else ops.abs(ahead) < self._sliding_window
        return masks.combine_masks(ahead <= 0 if causal else None, near)

    def _compute_attention(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        use_causal_mask=False,
    ):
        """Context and weights of projected heads; what a subclass overrides to invent another attention, as in Keras.

        Args:
            query: [B, T, H, K]; key: [B, S, G, K]; value: [B, S, G, Kv].
            attention_mask: boolean, broadcastable to [B, T, S], or [B, H, T, S].
        """
        if use_causal_mask:
            causal = masks.causal_mask(ops.shape(query)[1], ops.shape(key)[1])
            attention_mask = masks.combine_masks(attention_mask, causal)
        if attention_mask is not None:
            attention_mask = masks.as_mask(attention_mask, "attention_mask")
        scores = self._biased(self._scores(query, key))
        axes = len(self._attention_axes)
        if attention_mask is not None:
            for _ in range(len(scores.shape) - len(attention_mask.shape)):
                attention_mask = ops.expand_dims(attention_mask, -2 * axes - 1)
        weights = _softmax(scores, attention_mask, axes, training)
        return self._context(self._dropped(weights, value, training), value), weights

    def _dropped(self, weights, value, training):
        """Weights as they meet the values: after dropout, and in their dtype."""
        kept = self._dropout_layer(weights, training=training) if self.dropout else weights
        return ops.cast(kept, value.dtype)

    def _scores(self, query, key):
        """Scaled scores [B, H, T, S], in at least float32, without a position's bias."""
        query = masks.at_least_float32(query) * self._inverse_sqrt_key_dim
        key = masks.at_least_float32(key)
        if self.num_key_value_heads == self.num_heads:
            # Keras's equation names the key first; so computed, TensorFlow transposes the scores afterwards.
            inputs, output = self._dot_product_equation.split("->")
            keys, queries = inputs.split(",")
            return ops.einsum(f"{queries},{keys}->{output}", query, key)
        grouped = ops.einsum("btgrk,bsgk->bgrts", self._grouped(query), key)
        shape = ops.shape(grouped)
        return ops.reshape(grouped, (shape[0], self.num_heads, *shape[3:]))

    def _context(self, weights, value):
        """Averages values [B, S, G, Kv] by weights [B, H, T, S]: [B, T, H, Kv]."""
        if self.num_key_value_heads == self.num_heads:
            return ops.einsum(self._combine_equation, weights, value)
        batch, _, *lengths = ops.shape(weights)
        shared = self.num_key_value_heads
        weights = ops.reshape(weights, (batch, shared, self.num_heads // shared, *lengths))
        context = ops.einsum("bgrts,bsgk->btgrk", weights, value)
        return ops.reshape(context, (batch, lengths[0], self.num_heads, self.value_dim))

    def _grouped(self, query):
        """Queries [B, T, H, K] as [B, T, G, H / G, K]: query head h belongs to key-value head h // (H / G)."""
        shape, shared = ops.shape(query), self.num_key_value_heads
        return ops.reshape(query, (*shape[:2], shared, self.num_heads // shared, self.key_dim))

    def compute_output_spec(self, query, value=None, key=None, *args, cache=None, **kwargs):
        if cache is not None:
            return keras.Operation.compute_output_spec(self, query, value, key, *args, cache=cache, **kwargs)
        shape = self.compute_output_shape(query.shape, value.shape, None if key is None else key.shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not kwargs.get("return_attention_scores"):
            return output
        rank = len(query.shape)
        axes = [axis % rank if axis < 0 else axis for axis in self._attention_axes or range(1, rank - 1)]
        free = [query.shape[axis] for axis in range(rank - 1) if axis not in axes]
        lengths = [query.shape[axis] for axis in axes] + [value.shape[axis] for axis in axes]
        return output, keras.KerasTensor((*free, self.num_heads, *lengths), dtype=scores_dtype(self))

    def compute_mask(self, query, previous_mask=None):
        return previous_mask

    def get_config(self):
        position = None if self.position is None else keras.saving.serialize_keras_object(self.position)
        return {
            **super().get_config(),
            "flash_attention": self.flash_attention,
            "num_key_value_heads": self.num_key_value_heads,
            "position": position,
            "fused_projection": self.fused_projection,
        }

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("position"), dict):
            config = {**config, "position": keras.saving.deserialize_keras_object(config["position"])}
        return super().from_config(config)


class _Projection(keras.layers.EinsumDense):
    """An EinsumDense that contracts the last axes of its input, computed as a product of matrices plus a vector.

    Variables and numbers are the same. On TensorFlow the gradient of a bias [H, K] takes many times longer than that of
    a vector, and the product of matrices and the vector's addition become one operation.
    """

    def call(self, inputs, training=None):
        read, kept = self.equation.split("->")[0].split(",")
        contracted = sum(axis in read for axis in kept)
        kernel = ops.convert_to_tensor(self.kernel)
        width = math.prod(kernel.shape[:contracted])
        kernel = caches.laid_out(ops.reshape(kernel, (width, -1)))
        bias = None if self.bias is None else ops.reshape(self.bias, (-1,))
        x = affine(ops.reshape(inputs, (-1, width)), kernel, bias, training)
        x = ops.reshape(x, (*ops.shape(inputs)[: len(inputs.shape) - contracted], *self.kernel.shape[contracted:]))
        return x if self.activation is None else self.activation(x)

    def quantize(self, mode=None, type_check=True, **options):
        super().quantize(mode, type_check=False, **options)


def _columns(key):
    """Keys [N, L, G, K] as a cache holds them, [N, G, K, L]."""
    return ops.transpose(key, (0, 2, 3, 1))


class _Parts:
    """Initializes a kernel [D, heads, K] as several of fewer heads, so that each has its own fan-out."""

    def __init__(self, initializer, heads):
        self.initializer = initializer
        self.heads = heads

    def __call__(self, shape, dtype=None):
        parts = [self.initializer.clone()((shape[0], heads * shape[2]), dtype=dtype) for heads in self.heads]
        return ops.reshape(ops.concatenate(parts, axis=1), shape)


def padding_mask_of(name, mask, x):
    """A mask of x, checked, as boolean; None stays None."""
    mask = masks.as_mask(mask, name)
    if mask is None:
        return None
    pairs = zip(mask.shape, x.shape, strict=False)
    if not 2 <= len(mask.shape) < len(x.shape) or any(n not in (None, 1) and m not in (None, n) for n, m in pairs):
        raise ValueError(
            f"{name} is [batch, length], as the input that it masks. Received: {name}.shape={tuple(mask.shape)} for an "
            f"input of shape {tuple(x.shape)}"
        )
    return mask


def _joined_mask(allowed, scores, query_mask, attention_mask):
    """Masks [N, 1 or T, L] of the parts of a cache in one, [N, 1 or H, T, P + L], with the others."""
    if len(allowed) > 1:
        shapes = [ops.shape(x) for x in scores]
        allowed = [ops.broadcast_to(x, (n, t, s)) for x, (n, _, t, s) in zip(allowed, shapes, strict=True)]
        allowed = [ops.concatenate(allowed, axis=-1)]
    mask = masks.combine_masks(allowed[0], None if query_mask is None else query_mask[:, :, None])
    if attention_mask is None:
        return mask[:, None]
    places = [x.shape[-1] for x in scores]
    lengths = scores[0].shape[2], None if None in places else sum(places)
    if len(attention_mask.shape) not in (2, 3, 4) or None not in lengths and attention_mask.shape[-2:] != lengths:
        raise ValueError(
            "With a cache, attention_mask is [N, T, L] or [N, H, T, L] for T new tokens and the L places of the prefix "
            f"and the cache together. Received: attention_mask.shape={tuple(attention_mask.shape)}, {lengths} expected "
            "at its end"
        )
    rank = len(attention_mask.shape)
    return masks.combine_masks(mask[:, None], attention_mask[:, None] if rank == 3 else attention_mask)


def _differs_by_head(attention_mask):
    return attention_mask is not None and len(attention_mask.shape) == 4 and attention_mask.shape[1] != 1


def _softmax(scores, mask, axes, training):
    """Softmax over the last `axes` axes together, with zeros where the mask is False."""
    if axes == 1:
        return masks.masked_softmax(scores, mask, training)
    shape = ops.shape(scores)
    width = 1
    for size in shape[-axes:]:
        width = width * size
    if mask is not None:
        mask = ops.reshape(ops.broadcast_to(mask, shape), (-1, width))
    return ops.reshape(masks.masked_softmax(ops.reshape(scores, (-1, width)), mask, training), shape)
