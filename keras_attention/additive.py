"""Additive attention (Bahdanau et al. 2015) and its twin, concat (Luong et al. 2015)."""

import keras
from keras import ops

from keras_attention.attention import Attention, check_units
from keras_attention.scores import additive_score, product


@keras.saving.register_keras_serializable(package="keras_attention")
class AdditiveAttention(Attention):
    """Additive attention with its own weights, as Bahdanau et al. 2015 define it.

        score(q, k) = v . tanh(W_q q + W_k k [+ b])

    Unlike `keras.layers.AdditiveAttention`, which has no W_q and W_k, queries and keys may have different widths.

    Args:
        units: U, the width of W_q q and W_k k.
        use_bias: add b inside the tanh (the paper has none).
        kernel_initializer: initializer of W_q, W_k and v.
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`. query [B, T, Dq] and key [B, S, Dk] of any widths.

    Example:

    >>> from keras import ops
    >>> layer = AdditiveAttention(8)
    >>> context, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(context.shape), tuple(weights.shape)
    ((2, 3, 6), (2, 3, 5))

    Reference:
        Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473, section A.1.2. The paper's W_a, U_a and v_a are
        `query_projection`, `key_projection` and `score_vector`.
    """

    def __init__(self, units, use_bias=False, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units = check_units(self, units)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.query_projection = self._dense("query_projection", use_bias=False)
        self.key_projection = self._dense("key_projection", use_bias=use_bias)

    def _dense(self, name, use_bias):
        return keras.layers.Dense(
            self.units,
            use_bias=use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.query_projection.build(query_shape)
        self.key_projection.build(key_shape or value_shape)
        self.score_vector = self.add_weight(
            name="score_vector", shape=(self.units,), initializer=_column(self.kernel_initializer, self.units)
        )

    def project_query(self, query):
        return _by_rows(self.query_projection, query)

    def project_key(self, key):
        return _by_rows(self.key_projection, key)

    def score(self, query, key):
        return additive_score(query, key, self.score_vector)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_attention")
class ConcatAttention(Attention):
    """Concat attention, as Luong et al. 2015 define it.

        score(q, k) = v . tanh(W_a [q; k])

    It computes what `AdditiveAttention` without a bias computes, as W_a [q; k] = W_q q + W_k k; no tensor of width
    Dq + Dk is made, and keys are projected once. The difference is in the parametrization: W_a is one kernel, which is
    initialized as one (Glorot sees a fan-in of Dq + Dk, and not of Dq and of Dk).

    Args:
        units: U, the width of W_a [q; k].
        kernel_initializer: initializer of W_a and v.
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`. query [B, T, Dq] and key [B, S, Dk] of any widths.

    Example:

    >>> from keras import ops
    >>> layer = ConcatAttention(8)
    >>> context, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(context.shape), tuple(weights.shape)
    ((2, 3, 6), (2, 3, 5))

    Reference:
        Luong, Pham, Manning 2015, https://arxiv.org/abs/1508.04025, equation 8 ("concat"). The paper's W_a is the
        transpose of `kernel` [Dq + Dk, U], and v_a is `score_vector`.
    """

    def __init__(self, units, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units = check_units(self, units)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.query_width = query_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.query_width + (key_shape or value_shape)[-1], self.units),
            initializer=self.kernel_initializer.clone(),
        )
        self.score_vector = self.add_weight(
            name="score_vector", shape=(self.units,), initializer=_column(self.kernel_initializer, self.units)
        )

    def project_query(self, query):
        return product(query, self.kernel[: self.query_width])

    def project_key(self, key):
        return product(key, self.kernel[self.query_width :])

    def score(self, query, key):
        return additive_score(query, key, self.score_vector)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _by_rows(dense, x):
    """A Dense layer on x [B, L, D] as on [B*L, D]: see `scores.product`."""
    rows = dense(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(rows, (*ops.shape(x)[:-1], dense.units))


def _column(initializer, units):
    """Initializes v [U] as the column [U, 1] that it is, so that Glorot sees a fan-in of U and a fan-out of 1."""
    return lambda shape, dtype=None: keras.ops.reshape(initializer.clone()((units, 1), dtype=dtype), shape)
