"""One head of attention with its own projections: to another sequence, to itself, to its own past."""

import keras

from keras_attention import masks
from keras_attention.attention import Attention, check_units, describe_call, scores_dtype
from keras_attention.scores import scaled_dot_score


@keras.saving.register_keras_serializable(package="keras_attention")
class CrossAttention(Attention):
    """One head of attention from one sequence to another.

        Q = X W_q,  K = M W_k,  V = M W_v
        CrossAttention(X, M) = softmax(Q K^T / sqrt(U)) V  [W_o]

    Queries come from one sequence X, keys and values from another, M: a decoder that reads an encoder's output, words
    that look at the regions of an image.

    Args:
        units: U, the width of Q, K and V, and of the output.
        use_bias: add a bias to each projection.
        output_projection: multiply by W_o, which gives an output as wide as the query, so that it may be added to it.
        kernel_initializer: initializer of W_q, W_k, W_v and W_o.
        dropout, seed: as in `Attention`.

    Call arguments: as in `Attention`; query [B, T, Dq], value [B, S, Dv] and key [B, S, Dk] (value where it is None),
        of any widths.

    Returns:
        Output [B, T, U], or [B, T, Dq] with the output projection; with `return_attention_scores`, the pair (output,
        weights [B, T, S] in float32).

    Masking: see `Attention`. Textbooks add -infinity to the scores that a query may not see, because exp(-infinity) is
    0: before the softmax, so that the weights that remain still sum to 1 (zeros written after it would not give that).
    But a row of -infinities alone is 0 / 0, NaN, and with -1e9 in its place such a row averages what it may not see.
    Here the softmax runs over the allowed keys only, so that all other weights are exactly 0, and a row without any
    allowed key is all zeros (an output projection still adds its bias).

    Example:

    >>> from keras import ops
    >>> layer = CrossAttention(8)
    >>> output, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 3, 8), (2, 3, 5))

    Reference:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1 and section 3.2.3, first item; with one head,
        MultiHead of section 3.2.2. Its d_k and d_v are U.
    """

    def __init__(self, units, use_bias=False, output_projection=False, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units = check_units(self, units)
        self.use_bias = use_bias
        self.output_projection = output_projection
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.query_dense = self._dense(units, "query")
        self.key_dense = self._dense(units, "key")
        self.value_dense = self._dense(units, "value")

    def _dense(self, units, name):
        return keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.query_dense.build(query_shape)
        self.key_dense.build(key_shape or value_shape)
        self.value_dense.build(value_shape)
        if self.output_projection:
            self.output_dense = self._dense(query_shape[-1], "output")
            self.output_dense.build((*query_shape[:-1], self.units))

    def project_query(self, query):
        return self.query_dense(query)

    def project_key(self, key):
        return self.key_dense(key)

    def project_value(self, value):
        return self.value_dense(value)

    def score(self, query, key):
        return scaled_dot_score(query, key)

    def context(self, weights, value, training=None):
        context = super().context(weights, value, training)
        return self.output_dense(context) if self.output_projection else context

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return tuple(query_shape) if self.output_projection else (*query_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "output_projection": self.output_projection,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_attention")
class SelfAttention(CrossAttention):
    """One head of attention from a sequence to itself.

        Q = X W_q,  K = X W_k,  V = X W_v
        SelfAttention(X) = softmax(Q K^T / sqrt(U)) V  [W_o]

    Every position looks at all positions, itself included, and nothing in it knows where a position stands: permuting
    the sequence permutes the output in the same way, SelfAttention(P X) = P SelfAttention(X) for each permutation
    matrix P, because the softmax's sums do not depend on the order of their terms. Without positions (such as
    `SinusoidalEncoding` before it) a sentence is a bag of words to it.

    Args:
        units, use_bias, output_projection, kernel_initializer: as in `CrossAttention`.
        dropout, seed: as in `Attention`.

    Call arguments:
        query: the sequence X, [B, T, D].
        query_mask, mask: [B, T], False where the sequence is padding; both are ANDed. (Keras hands the implicit mask
            of an Embedding as `mask`, and as `query_mask` where `attention_mask` is given, too.)
        attention_mask: [B, T, T] or [T, T], True where query t may attend to key s.
        return_attention_scores: also return the weights.
        training: whether dropout is active.

    Returns:
        Output [B, T, U], or [B, T, D] with the output projection; with `return_attention_scores`, the pair (output,
        weights [B, T, T] in float32).

    Masking: see `CrossAttention`. Padding is neither looked at nor does it look at anything: its weights are zero.

    Example:

    >>> from keras import ops
    >>> layer = SelfAttention(8)
    >>> output, weights = layer(ops.ones((2, 3, 4)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 3, 8), (2, 3, 3))

    Reference:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1 and section 3.2.3, second item. That it sees
        no order: section 3.5.
    """

    causal = False

    def _check_call(self, args, kwargs):
        given = [*args, *(kwargs[name] for name in ("query", "value", "key") if kwargs.get(name) is not None)]
        if len(given) != 1 or isinstance(given[0], (list, tuple)):
            raise TypeError(
                f"{type(self).__name__} is called as layer(x, ...) with one tensor of shape [batch, length, width]. "
                f"Received: {describe_call(args, kwargs)}; CrossAttention attends from one tensor to another."
            )

    def build(self, query_shape):
        super().build(query_shape, query_shape)

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
        mask = masks.combine_masks(masks.as_mask(query_mask, "query_mask"), masks.as_mask(mask))
        return super().call(
            query,
            query,
            query_mask=mask,
            value_mask=mask,
            attention_mask=attention_mask,
            use_causal_mask=self.causal,
            return_attention_scores=return_attention_scores,
            training=training,
        )

    def compute_output_shape(self, query_shape):
        return super().compute_output_shape(query_shape, query_shape)

    def compute_output_spec(self, query, *, return_attention_scores=False, **kwargs):
        output = keras.KerasTensor(self.compute_output_shape(query.shape), dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        return output, keras.KerasTensor((*query.shape[:2], query.shape[1]), dtype=scores_dtype(self))


@keras.saving.register_keras_serializable(package="keras_attention")
class MaskedSelfAttention(SelfAttention):
    """One head of attention from each position of a sequence to itself and those before it.

        MaskedSelfAttention(X) = softmax(Q K^T / sqrt(U) + C) V  [W_o],  C[t, s] = 0 where s <= t, else -infinity

    So position t is computed from the positions 0 ... t alone, and a model that predicts the next token can be trained
    on all positions at once without seeing what it is to predict. The causal mask also breaks the symmetry of
    `SelfAttention`: permuting the sequence does more than permute the output.

    Args:
        units, use_bias, output_projection, kernel_initializer: as in `CrossAttention`.
        dropout, seed: as in `Attention`.

    Call arguments, returns: as in `SelfAttention`; other masks are ANDed with the causal one.

    Masking: see `CrossAttention`, also for what stands here in place of the -infinity.

    Example:

    >>> from keras import ops
    >>> _, weights = MaskedSelfAttention(8)(ops.ones((1, 3, 4)), return_attention_scores=True)
    >>> (6 * ops.convert_to_numpy(weights[0])).round().astype(int).tolist()
    [[6, 0, 0], [3, 3, 0], [2, 2, 2]]

    Reference:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1 and section 3.2.3, third item.
    """

    causal = True
