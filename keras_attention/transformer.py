"""The blocks that Transformers are made of: feed-forward network, encoder block, decoder block."""

import keras
from keras import ops

from keras_attention import masks
from keras_attention.attention import describe_call, scores_dtype
from keras_attention.dropout import Dropout
from keras_attention.multi_head import MultiHeadAttention, padding_mask_of
from keras_attention.scores import affine, column_sums, product


@keras.saving.register_keras_serializable(package="keras_attention")
class LayerNormalization(keras.layers.LayerNormalization):
    """keras.layers.LayerNormalization with a gradient of its own on TensorFlow, in training, for the last axis.

    Same numbers, of fewer operations; sums are products of matrices (in TF32 where TensorFlow multiplies so, on GPUs).
    JAX and PyTorch have kernels of their own.
    """

    def call(self, inputs, training=None):
        rank = len(inputs.shape)
        last = [axis % rank for axis in self.axis] == [rank - 1] and self.gamma is not None and self.beta is not None
        if not training or keras.backend.backend() != "tensorflow" or not last:
            return super().call(inputs)
        x = masks.at_least_float32(inputs)
        gamma, beta = (ops.cast(weight, x.dtype) + 0.0 for weight in (self.gamma, self.beta))
        return ops.cast(_layer_normalization(x, gamma, beta, self.epsilon), self.compute_dtype)


def _layer_normalization(x, gamma, beta, epsilon):
    width = gamma.shape[0]

    @ops.custom_gradient
    def normalize(x, gamma, beta):
        centered = x - ops.mean(x, axis=-1, keepdims=True)
        scale = ops.rsqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + epsilon)
        unit = centered * scale

        def backward(upstream):
            upstream = ops.reshape(upstream, ops.shape(x))  # a graph may have forgotten its shape
            along = upstream * unit
            by_gamma, by_beta = column_sums(along, width), column_sums(upstream, width)
            weights = gamma[:, None] / width  # the means over a row of what gamma multiplies
            slopes = upstream * gamma - product(upstream, weights) - unit * product(along, weights)
            return scale * slopes, by_gamma, by_beta

        return unit * gamma + beta, backward

    return normalize(x, gamma, beta)


NORMALIZATIONS = {"layer": LayerNormalization, "rms": keras.layers.RMSNormalization}


def normalization(kind, epsilon=1e-6, **options):
    """A layer of NORMALIZATIONS."""
    return masks.let_masks_pass(NORMALIZATIONS[kind](epsilon=epsilon, **options))


@keras.saving.register_keras_serializable(package="keras_attention")
class FeedForward(keras.layers.Layer):
    """The position-wise feed-forward network: two dense layers, the same at every position.

        FFN(x) = f(x W_1 + b_1) W_2 + b_2                      f: relu (Vaswani 2017), gelu (BERT, GPT), ...
        FFN(x) = (f(x W_g + b_g) * (x W_1 + b_1)) W_2 + b_2    gated: f = silu is SwiGLU, gelu GEGLU, sigmoid GLU

    Args:
        units: width of the hidden layer; the output is as wide as the input.
        activation: f, a name or a function of Keras.
        gated: multiply the hidden layer by a gate. With 2/3 of the units it has as many weights as without.
        dropout: share of the hidden layer dropped in training.
        use_bias: whether the dense layers add a bias.
        kernel_initializer: of W_1, W_g and W_2.
        seed: seed of the dropout.

    Call arguments:
        x: [..., D].
        mask: [...], False at padding, which is zeroed on entry.
        training: whether dropout is active.

    Returns:
        [..., D]. The mask of x is carried on.

    Example:

    >>> from keras import ops
    >>> layer = FeedForward(units=32, activation="silu", gated=True)
    >>> tuple(layer(ops.ones((2, 5, 8))).shape)
    (2, 5, 8)

    References:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 2; Shazeer 2020, "GLU Variants Improve
        Transformer", https://arxiv.org/abs/2002.05202, equations 5 and 6.
    """

    def __init__(
        self,
        units,
        activation="relu",
        gated=False,
        dropout=0.0,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_sizes(self, units=units)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.gated = gated
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.dropout_layer = Dropout(dropout, seed=seed, dtype=self.dtype_policy)
        self.supports_masking = True

    def _dense(self, units, name, activation=None):
        initializer = self.kernel_initializer.clone()
        options = {"activation": activation, "use_bias": self.use_bias, "kernel_initializer": initializer}
        return _Dense(units, name=name, dtype=self.dtype_policy, **options)

    def build(self, x_shape):
        if self.gated:
            self.gate_dense = self._dense(self.units, "gate", self.activation)
            self.gate_dense.build(x_shape)
        self.hidden_dense = self._dense(self.units, "hidden", None if self.gated else self.activation)
        self.hidden_dense.build(x_shape)
        self.output_dense = self._dense(x_shape[-1], "output")
        self.output_dense.build((*x_shape[:-1], self.units))
        self.built = True

    def call(self, x, mask=None, training=None):
        mask = masks.as_mask(mask)
        x = x if mask is None else ops.where(mask[..., None], x, ops.zeros_like(x))
        hidden = self.hidden_dense(x)
        if self.gated:
            hidden = self.gate_dense(x) * hidden
        return self.output_dense(self.dropout_layer(hidden, training=training))

    def compute_output_shape(self, x_shape):
        return tuple(x_shape)

    def get_config(self):
        names = ("units", "gated", "dropout", "use_bias", "seed")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class _Dense(keras.layers.Dense):
    """A Dense that TensorFlow computes over rows [N, D]: in graphs product, bias and relu are then one operation."""

    def call(self, inputs, training=None):
        if keras.backend.backend() != "tensorflow":
            return super().call(inputs, training)
        rows = affine(ops.reshape(inputs, (-1, inputs.shape[-1])), self.kernel, self.bias, training)
        rows = rows if self.activation is None else self.activation(rows)
        return ops.reshape(rows, (*ops.shape(inputs)[:-1], self.units))

    def quantize(self, mode=None, type_check=True, **options):
        super().quantize(mode, type_check=False, **options)


class _Block(keras.layers.Layer):
    """What encoder and decoder blocks share: their arguments, sublayers with residual connection, and errors."""

    def __init__(
        self,
        num_heads,
        feed_forward_units,
        key_dim=None,
        num_key_value_heads=None,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation="relu",
        gated=False,
        normalization="layer",
        normalize_first=False,
        use_bias=True,
        position=None,
        kernel_initializer="glorot_uniform",
        epsilon=1e-6,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_sizes(self, num_heads=num_heads, feed_forward_units=feed_forward_units)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"{type(self).__name__} expects normalization to be 'layer' or 'rms'. Received: {normalization=}"
            )
        self.num_heads = num_heads
        self.feed_forward_units = feed_forward_units
        self.key_dim = key_dim
        self.num_key_value_heads = num_key_value_heads
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.activation = keras.activations.get(activation)
        self.gated = gated
        self.normalization = normalization
        self.normalize_first = normalize_first
        self.use_bias = use_bias
        self.position = position
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.epsilon = epsilon
        self.seed = seed
        self._seeds = 0
        self.supports_masking = True

    # Each sublayer has its own normalization and dropout, so that nothing depends on how many there are.

    def _build_sublayer(self, name, layer, *shapes):
        layer.build(*shapes)
        norm = normalization(self.normalization, self.epsilon, name=f"{name}_norm", dtype=self.dtype_policy)
        norm.build(shapes[0])
        setattr(self, name, layer)
        setattr(self, f"{name}_norm", norm)
        dropout = Dropout(self.dropout, seed=self._next_seed(), dtype=self.dtype_policy)
        setattr(self, f"{name}_dropout", dropout)

    def _next_seed(self):
        """A seed for each dropout: with one for all, those of equal shapes would drop the same places."""
        self._seeds += 1
        return None if self.seed is None else 1000 * self.seed + self._seeds

    def _attention(self, name, width, position=None):
        if self.key_dim is None and width % self.num_heads:
            raise ValueError(
                f"{type(self).__name__} expects a width that num_heads divides, or key_dim. Received: a query of width "
                f"{width}, num_heads={self.num_heads}"
            )
        return MultiHeadAttention(
            self.num_heads,
            self.key_dim or width // self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            dropout=self.attention_dropout,
            use_bias=self.use_bias,
            position=position,
            kernel_initializer=self.kernel_initializer.clone(),
            seed=self._next_seed(),
            name=name,
            dtype=self.dtype_policy,
        )

    def _feed_forward(self):
        return FeedForward(
            self.feed_forward_units,
            activation=self.activation,
            gated=self.gated,
            dropout=self.activation_dropout,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            seed=self._next_seed(),
            name="feed_forward",
            dtype=self.dtype_policy,
        )

    def _residual(self, name, x, function, training):
        """x and what `function` makes of it, added and normalized, and whatever else `function` returns."""
        norm, dropout = getattr(self, f"{name}_norm"), getattr(self, f"{name}_dropout")
        change, *others = function(norm(x) if self.normalize_first else x)
        x = x + dropout(change, training=training)
        return x if self.normalize_first else norm(x), *others

    def _check_query(self, shape):
        if len(shape) != 3:
            raise ValueError(
                f"{type(self).__name__} expects a query of shape [batch, length, width]. Received: "
                f"query.shape={tuple(shape)}"
            )

    def get_config(self):
        names = ("num_heads", "feed_forward_units", "key_dim", "num_key_value_heads", "dropout", "attention_dropout")
        names += ("activation_dropout", "gated", "normalization", "normalize_first", "use_bias", "epsilon", "seed")
        position = None if self.position is None else keras.saving.serialize_keras_object(self.position)
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "activation": keras.activations.serialize(self.activation),
            "position": position,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("position"), dict):
            config = {**config, "position": keras.saving.deserialize_keras_object(config["position"])}
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_attention")
class TransformerEncoderBlock(_Block):
    """One layer of a Transformer's encoder: self-attention, then a feed-forward network, each with a residual.

        y = Norm(x + MultiHeadAttention(x, x));  z = Norm(y + FFN(y))            post-norm, the paper's
        y = x + MultiHeadAttention(Norm(x), Norm(x));  z = y + FFN(Norm(y))      pre-norm, normalize_first=True

    A stack of pre-norm blocks needs one more normalization at its end.

    Args:
        num_heads: H.
        feed_forward_units: width of the hidden layer of the feed-forward network.
        key_dim: K, width of a head; D / H when None.
        num_key_value_heads: G of `MultiHeadAttention`; H when None.
        dropout: share dropped of each sublayer's output in training.
        attention_dropout: share of the attention weights dropped.
        activation_dropout: share of the feed-forward network's hidden layer dropped.
        activation, gated: as in `FeedForward`.
        normalization: "layer" (LayerNorm) or "rms" (RMSNorm).
        normalize_first: pre-norm instead of post-norm.
        use_bias: whether the projections and dense layers add a bias.
        position: as in `MultiHeadAttention`.
        kernel_initializer: of all kernels.
        epsilon: of the normalizations.
        seed: seed of all dropout.

    Call arguments:
        query: x, [B, T, D].
        query_mask, mask: [B, T], False where x is padding; both are ANDed (Keras hands the implicit mask of an
            Embedding as one or the other).
        attention_mask: [B, T, T], [B, H, T, T] or [T, T], True where query t may attend to key s.
        return_attention_scores: also return the weights.
        training: whether dropout is active.

    Returns:
        z, [B, T, D]; with `return_attention_scores`, the pair (z, weights [B, H, T, T]). The mask is carried on.
        Padding is zeroed on entry, not looked at, and what comes out at its place means nothing.

    Example:

    >>> from keras import ops
    >>> block = TransformerEncoderBlock(num_heads=2, feed_forward_units=32)
    >>> output, weights = block(ops.ones((2, 5, 8)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 5, 8), (2, 2, 5, 5))

    References:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1; Xiong et al. 2020, "On Layer Normalization
        in the Transformer Architecture", https://arxiv.org/abs/2002.04745 (pre-norm); Zhang and Sennrich 2019,
        https://arxiv.org/abs/1910.07467 (RMSNorm).
    """

    def build(self, query_shape):
        self._check_query(query_shape)
        attention = self._attention("self_attention", query_shape[-1], self.position)
        self._build_sublayer("self_attention", attention, query_shape, query_shape)
        self._build_sublayer("feed_forward", self._feed_forward(), query_shape)
        self.built = True

    def call(
        self,
        query,
        *,
        query_mask=None,
        mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
    ):
        mask = masks.combine_masks(
            padding_mask_of("query_mask", query_mask, query),
            padding_mask_of("mask", mask, query),
            masks.implicit_mask(query),
        )

        def attend(x):
            given = {"query_mask": mask, "value_mask": mask, "attention_mask": attention_mask, "training": training}
            found = self.self_attention(x, x, return_attention_scores=return_attention_scores, **given)
            return found if return_attention_scores else (found,)

        x = masks.zero_masked(query, mask)
        x, *weights = self._residual("self_attention", x, attend, training)
        x = self._residual("feed_forward", x, lambda y: [self.feed_forward(y, training=training)], training)[0]
        x = masks.carry_mask(x, mask)
        return (x, *weights) if return_attention_scores else x

    def compute_output_shape(self, query_shape):
        return tuple(query_shape)

    def compute_output_spec(self, query, *, return_attention_scores=False, **kwargs):
        output = keras.KerasTensor(query.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        batch, length, _ = query.shape
        return output, keras.KerasTensor((batch, self.num_heads, length, length), dtype=scores_dtype(self))


@keras.saving.register_keras_serializable(package="keras_attention")
class TransformerDecoderBlock(_Block):
    """One layer of a Transformer's decoder: causal self-attention, attention to a memory, feed-forward network.

        y = Norm(x + MultiHeadAttention(x, x, causal))
        z = Norm(y + MultiHeadAttention(y, memory));  u = Norm(z + FFN(z))

    (post-norm; pre-norm as in `TransformerEncoderBlock`). Without the second sublayer, `cross_attention=False`, it is
    the block of a decoder-only language model.

    One implementation serves training and stepwise decoding: T calls with one token each and a cache give what one call
    with T tokens does.

        cache, memory = block.initial_cache(N, max_length), block.project_memory(states, mask)  # once
        x, cache = block(x, memory, cache=cache, cache_update_index=t)                          # every step

    Args:
        num_heads ... seed: as in `TransformerEncoderBlock`; `position` is that of the self-attention.
        cross_attention: whether there is a memory.

    Call arguments:
        query: x, [B, T, D]; in cached steps [N, T, D] for N = B W hypotheses.
        memory: [B, S, D'], or what `project_memory` made of it: its W hypotheses a row are then further query
            positions, and nothing is repeated for them. None without cross-attention.
        query_mask: [B, T]; memory_mask: [B, S], False at padding.
        attention_mask: [B, T, T], [B, H, T, T] or [T, T], for the self-attention (with a cache, see
            `MultiHeadAttention`).
        use_causal_mask: whether token t sees only the tokens 0 ... t, as it does unless told otherwise.
        return_attention_scores: also return the weights.
        training: whether dropout is active.
        cache, cache_update_index: as in `MultiHeadAttention`, for the self-attention; a prefix is the cache that the
            prompts have filled.

    Returns:
        u, [B, T, D], or a tuple (u [, weights] [, cache]): with `return_attention_scores` a dict of
        "self_attention" [B, H, T, T] (with a cache [N, H, T, P + L]) and "cross_attention" [B, H, T, S]; with a cache,
        that with the new tokens. The query's mask is carried on.

    Example:

    >>> from keras import ops
    >>> block = TransformerDecoderBlock(num_heads=2, feed_forward_units=32)
    >>> output, weights = block(ops.ones((2, 5, 8)), ops.ones((2, 7, 8)), return_attention_scores=True)
    >>> {name: tuple(x.shape) for name, x in weights.items()}
    {'self_attention': (2, 2, 5, 5), 'cross_attention': (2, 2, 5, 7)}

    References:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1; Radford et al. 2018, "Improving Language
        Understanding by Generative Pre-Training" (decoder-only).
    """

    def __init__(self, num_heads, feed_forward_units, *, cross_attention=True, **kwargs):
        super().__init__(num_heads, feed_forward_units, **kwargs)
        self.has_cross_attention = cross_attention

    def build(self, query_shape, memory_shape=None):
        self._check_query(query_shape)
        width = query_shape[-1]
        self._build_sublayer(
            "self_attention", self._attention("self_attention", width, self.position), query_shape, query_shape
        )
        if self.has_cross_attention:
            if memory_shape is None or isinstance(memory_shape, dict):
                raise ValueError(
                    f"{type(self).__name__} must be built with the shape of its memory: call block(x, memory) with "
                    "memory [batch, length, width] once, or build(query_shape, memory_shape). Received: "
                    f"memory_shape={memory_shape}"
                )
            attention = self._attention("cross_attention", width)
            self._build_sublayer("cross_attention", attention, query_shape, tuple(memory_shape))
        self._build_sublayer("feed_forward", self._feed_forward(), query_shape)
        self.built = True

    def initial_cache(self, batch_size, max_length):
        """An empty cache for `max_length` tokens of each of `batch_size` sequences (or hypotheses)."""
        self._check_built()
        return self.self_attention.initial_cache(batch_size, max_length)

    def project_memory(self, memory, memory_mask=None):
        """Keys and values of a memory [B, S, D'] for the cross-attention, projected once for a whole decode."""
        self._check_built()
        if not self.has_cross_attention:
            raise ValueError("project_memory is for a decoder block with cross_attention=True. Received: False")
        return self.cross_attention.project_memory(memory, value_mask=memory_mask)

    def _check_built(self):
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} must be built before it decodes: call it once, or build(query_shape, "
                "memory_shape)."
            )

    def __call__(self, *args, **kwargs):
        given = {**dict(zip(("query", "memory"), args, strict=False)), **kwargs}
        query, memory = given.get("query"), given.get("memory")
        if isinstance(query, (list, tuple)) or query is None or (memory is None) == self.has_cross_attention:
            form = "block(query, memory, ...)" if self.has_cross_attention else "block(query, ...), without a memory,"
            raise TypeError(
                f"{type(self).__name__}(cross_attention={self.has_cross_attention}) is called as {form} with tensors "
                f"[batch, length, width]. Received: {describe_call(args, kwargs)}"
            )
        return super().__call__(*args, **kwargs)

    def call(
        self,
        query,
        memory=None,
        *,
        query_mask=None,
        memory_mask=None,
        attention_mask=None,
        use_causal_mask=True,
        return_attention_scores=False,
        training=None,
        cache=None,
        cache_update_index=None,
    ):
        mask = masks.combine_masks(padding_mask_of("query_mask", query_mask, query), masks.implicit_mask(query))
        if isinstance(memory, dict) and memory_mask is not None and not isinstance(memory_mask, dict):
            raise ValueError(
                "A memory that project_memory made has its mask already. Received: memory_mask beside it; write "
                "project_memory(memory, memory_mask)."
            )
        given = {"query_mask": mask, "training": training, "return_attention_scores": return_attention_scores}

        def attend(x):
            options = {"value_mask": mask, "attention_mask": attention_mask, "use_causal_mask": use_causal_mask}
            options |= {"cache": cache, "cache_update_index": cache_update_index, **given}
            return _as_tuple(self.self_attention(x, x, **options))

        def attend_memory(x):
            if isinstance(memory, dict):
                options = {"cache": {"prefix": memory}, "cache_update_index": cache_update_index}
                return _as_tuple(self.cross_attention(x, **options, **given))
            return _as_tuple(self.cross_attention(x, memory, value_mask=memory_mask, **given))

        x, *others = self._residual("self_attention", masks.zero_masked(query, mask), attend, training)
        weights = {"self_attention": others.pop(0)} if return_attention_scores else {}
        if self.has_cross_attention:
            x, *found = self._residual("cross_attention", x, attend_memory, training)
            weights |= {"cross_attention": found[0]} if return_attention_scores else {}
        x = self._residual("feed_forward", x, lambda y: [self.feed_forward(y, training=training)], training)[0]
        results = masks.carry_mask(x, mask), *([weights] if return_attention_scores else []), *others
        return results if len(results) > 1 else results[0]

    def compute_output_shape(self, query_shape, memory_shape=None):
        return tuple(query_shape)

    def compute_output_spec(self, *args, **kwargs):
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self):
        return {**super().get_config(), "cross_attention": self.has_cross_attention}


def _as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def _check_sizes(layer, **sizes):
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"{type(layer).__name__} expects {name} to be a positive integer. Received: {name}={size!r}"
            )
