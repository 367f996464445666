"""Location-based attention (Luong et al. 2015)."""

import keras
from keras import ops

from keras_attention.attention import Attention
from keras_attention.scores import check_source_length, location_score


@keras.saving.register_keras_serializable(package="keras_attention")
class LocationAttention(Attention):
    """Location-based attention: the query alone says which source positions it wants; the keys are not read.

        weights = softmax(W_a q)

    W_a has one row for each source position, of which the first S are used.

    Args:
        max_length: L, the longest source, padding included.
        kernel_initializer: initializer of W_a.
        dropout, seed: as in `Attention`.

    Call arguments, returns and masking: see `Attention`. query [B, T, Dq] and value [B, S, Dv] of any widths, S <= L.

    Raises:
        ValueError: S exceeds max_length. In a graph that learns S only when it runs, the backend's own error comes
            then (TensorFlow: InvalidArgumentError, "Expected size[1] in [0, L], but got S").

    Example:

    >>> from keras import ops
    >>> layer = LocationAttention(max_length=7)
    >>> context, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(context.shape), tuple(weights.shape)
    ((2, 3, 6), (2, 3, 5))

    Reference:
        Luong, Pham, Manning 2015, https://arxiv.org/abs/1508.04025, equation 7. The paper's W_a is the transpose of
        `kernel` [Dq, L].
    """

    def __init__(self, max_length, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"LocationAttention expects a max_length of at least 1. Received: max_length={max_length}")
        self.max_length = max_length
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if value_shape[1] is not None:
            check_source_length(value_shape[1], self.max_length)
        # W_a q is the score itself, so that a 16-bit policy must not round W_a.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(query_shape[-1], self.max_length),
            initializer=self.kernel_initializer,
            autocast=False,
        )

    def score(self, query, key):
        return location_score(query, self.kernel, ops.shape(key)[1])

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
