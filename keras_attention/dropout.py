"""Dropout from fewer random numbers."""

import keras
from keras import ops

LEVELS = 2**16


@keras.saving.register_keras_serializable(package="keras_attention")
class Dropout(keras.layers.Dropout):
    """keras.layers.Dropout that draws 16 bits for each number rather than 32, which halves its time.

    The rate is rounded to a multiple of 1 / 65,536, and what is kept is scaled accordingly. On PyTorch, for an odd
    number of features and with a `noise_shape` it is Keras's own.

    Args:
        rate, noise_shape, seed: as in Keras.

    Example:

    >>> output = Dropout(0.5, seed=1)(ops.ones((3, 4, 8)), training=True)
    >>> sorted(set(ops.convert_to_numpy(output).ravel().tolist()))
    [0.0, 2.0]
    """

    def call(self, inputs, training=False):
        width = inputs.shape[-1] if len(inputs.shape) else None
        if not training or not self.rate:
            return inputs
        if keras.backend.backend() == "torch" or self.noise_shape is not None or width is None or width % 2:
            return super().call(inputs, training=training)
        shape = (*ops.shape(inputs)[:-1], width // 2)
        bits = keras.random.randint(shape, -(2**31), 2**31 - 1, seed=self.seed_generator)
        dropped = min(round(self.rate * LEVELS), LEVELS - 1)
        kept = ops.greater_equal(ops.view(bits, "uint16"), ops.cast(dropped, "uint16"))
        scale = ops.cast(LEVELS / (LEVELS - dropped), inputs.dtype)
        return inputs * ops.where(kept, scale, ops.zeros_like(scale))
