"""Multiplicative attention: dot and general (Luong et al. 2015), scaled dot (Vaswani 2017), cosine (Graves 2014)."""

import math

import keras
from keras import ops

from keras_attention.attention import Attention
from keras_attention.masks import at_least_float32
from keras_attention.scores import dot_score, scaled_dot_score, unit_vectors


@keras.saving.register_keras_serializable(package="keras_attention")
class DotProductAttention(Attention):
    """Dot-product attention: score(q, k) = q . k; queries and keys have one width.

    Args:
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`; query [B, T, D] and key [B, S, D].

    Example:

    >>> from keras import ops
    >>> tuple(DotProductAttention()(ops.ones((2, 3, 4)), ops.ones((2, 5, 4))).shape)
    (2, 3, 4)

    Reference:
        Luong, Pham, Manning 2015, https://arxiv.org/abs/1508.04025, equation 8 ("dot").
    """

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        _check_widths(self, query_shape[-1], (key_shape or value_shape)[-1])

    def score(self, query, key):
        return dot_score(query, key)


@keras.saving.register_keras_serializable(package="keras_attention")
class ScaledDotProductAttention(DotProductAttention):
    """Scaled dot-product attention: score(q, k) = q . k / sqrt(D); queries and keys have one width D.

    Args:
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`; query [B, T, D] and key [B, S, D].

    Example:

    >>> from keras import ops
    >>> tuple(ScaledDotProductAttention()(ops.ones((2, 3, 4)), ops.ones((2, 5, 4))).shape)
    (2, 3, 4)

    Reference:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1.
    """

    def score(self, query, key):
        return scaled_dot_score(query, key)


@keras.saving.register_keras_serializable(package="keras_attention")
class GeneralAttention(Attention):
    """General multiplicative attention: score(q, k) = q . W_a k; queries and keys may have different widths.

    Args:
        kernel_initializer: initializer of W_a.
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`; query [B, T, Dq] and key [B, S, Dk].

    Example:

    >>> from keras import ops
    >>> layer = GeneralAttention()
    >>> context, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(context.shape), tuple(weights.shape)
    ((2, 3, 6), (2, 3, 5))

    Reference:
        Luong, Pham, Manning 2015, https://arxiv.org/abs/1508.04025, equation 8 ("general"). The paper's W_a is the
        transpose of `kernel` [Dk, Dq].
    """

    def __init__(self, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        shape = ((key_shape or value_shape)[-1], query_shape[-1])
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)

    def project_key(self, key):
        return ops.matmul(key, self.kernel)

    def score(self, query, key):
        return dot_score(query, key)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_attention")
class CosineAttention(Attention):
    """Content-based addressing: score(q, k) = beta * cos(q, k); queries and keys have one width.

    The paper's controller gives a key strength beta at every step; here it is one learned number. beta =
    exp(`log_sharpness`) is always above 0, and a step of the optimizer changes it by a share of what it is. A zero
    vector has the cosine 0 with everything.

    Args:
        initial_sharpness: beta at the start of training. As |cos| <= 1, no key has more than exp(2 * beta) times the
            weight of another; from a beta of 1, whose weights are nearly flat, training starts slowly.
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`; query [B, T, D] and key [B, S, D].

    Example:

    >>> from keras import ops
    >>> tuple(CosineAttention()(ops.ones((2, 3, 4)), ops.ones((2, 5, 4))).shape)
    (2, 3, 4)

    Reference:
        Graves, Wayne, Danihelka 2014, https://arxiv.org/abs/1410.5401, equations 5 and 6.
    """

    def __init__(self, initial_sharpness=10.0, **kwargs):
        super().__init__(**kwargs)
        if initial_sharpness <= 0:
            raise ValueError(
                f"CosineAttention expects an initial_sharpness above 0. Received: initial_sharpness={initial_sharpness}"
            )
        self.initial_sharpness = initial_sharpness

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        _check_widths(self, query_shape[-1], (key_shape or value_shape)[-1])
        self.log_sharpness = self.add_weight(
            name="log_sharpness",
            shape=(),
            initializer=keras.initializers.Constant(math.log(self.initial_sharpness)),
            autocast=False,
        )

    def project_query(self, query):
        return unit_vectors(query)

    def project_key(self, key):
        return unit_vectors(key)

    def score(self, query, key):
        return dot_score(query, key) * ops.exp(at_least_float32(self.log_sharpness))

    def get_config(self):
        return {**super().get_config(), "initial_sharpness": self.initial_sharpness}


def _check_widths(layer, query_width, key_width):
    if query_width != key_width:
        raise ValueError(
            f"{type(layer).__name__} multiplies queries with keys and expects one width for both. Received: "
            f"query width {query_width}, key width {key_width}; GeneralAttention takes different widths."
        )
