"""Multiplicative attention: dot (Luong et al. 2015) and scaled dot (Vaswani et al. 2017)."""

import keras

from keras_attention.attention import Attention
from keras_attention.scores import dot_score, scaled_dot_score


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
        key_width = (key_shape or value_shape)[-1]
        if query_shape[-1] != key_width:
            raise ValueError(
                f"{type(self).__name__} multiplies queries with keys and expects one width for both. Received: "
                f"query width {query_shape[-1]}, key width {key_width}; AdditiveAttention takes different widths."
            )

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
