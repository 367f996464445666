"""Cross-entropy over the real tokens of a batch of padded sequences.

Shapes: B batch, T target length, V vocabulary.
"""

import keras
from keras import ops

from keras_attention.models.tokenizers import PAD


def token_weights(y_true, sample_weight=None, dtype="float32"):
    """The weight of every target token: 0 for padding, else its sample weight (1 without one).

    Args:
        y_true: Token ids [B, T]; PAD (0) carries no weight.
        sample_weight: Optional weights, [B] or [B, 1] for whole rows or [B, T] for single tokens.
        dtype: The type of the result.

    Returns:
        Weights [B, T].
    """
    real = ops.not_equal(y_true, PAD)
    if sample_weight is None:
        return ops.cast(real, dtype)
    sample_weight = ops.cast(ops.convert_to_tensor(sample_weight), dtype)
    if len(sample_weight.shape) == 1:
        sample_weight = ops.expand_dims(sample_weight, -1)
    return ops.where(real, sample_weight, ops.zeros((), dtype))


def token_losses(y_true, logits, label_smoothing=0.0):
    """The cross-entropy of every token, 0 where the target is padding.

        loss = (1 - eps) * (-log p[target]) + eps / V * sum over v of (-log p[v])

    computed in at least float32 and without one-hot vectors. Logits at padded positions are never used: not
    even NaN there reaches a loss or a gradient.

    Args:
        y_true: Integer token ids [B, T].
        logits: Unnormalized log-probabilities [B, T, V] in any float type.
        label_smoothing: eps, the share of the probability spread evenly over all V classes.

    Returns:
        Losses [B, T].
    """
    real = ops.not_equal(y_true, PAD)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    logits = ops.where(ops.expand_dims(real, -1), logits, ops.zeros_like(logits))
    logits = logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    log_normalizer = ops.log(ops.sum(ops.exp(logits), axis=-1))
    target_logits = ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(y_true, -1), axis=-1), -1)
    losses = log_normalizer - target_logits
    if label_smoothing:
        uniform_losses = log_normalizer - ops.mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform_losses
    return ops.where(real, losses, ops.zeros_like(losses))


def weighted_mean(values, weights):
    """The mean of values [B, T] under weights [B, T], a scalar; 0 where all weights are 0."""
    return ops.divide_no_nan(ops.sum(values * weights), ops.sum(weights))


def check_token_shapes(name, y_true, y_pred):
    """Converts targets and logits to tensors; raises ValueError unless they are [B, T] and [B, T, V]."""
    y_true = ops.cast(ops.convert_to_tensor(y_true), "int32")
    y_pred = ops.convert_to_tensor(y_pred)
    if len(y_true.shape) != 2 or len(y_pred.shape) != 3:
        raise ValueError(
            f"{name} expects target ids [B, T] and logits [B, T, V]. "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )
    return y_true, y_pred


@keras.saving.register_keras_serializable(package="keras_attention")
class MaskedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of integer targets with label smoothing, averaged over the real tokens.

    1. Each token's loss is `(1 - eps) * (-log p[target]) + eps / V * sum over v of (-log p[v])`.
    2. Padding (id 0 in the targets) has weight 0, a real token 1 or its sample weight.
    3. The result is the weighted mean, 0 for a batch without any real token.

    Only the targets say what is padding: an implicit Keras mask on the logits is not applied a second time,
    and the sum is divided by the real tokens, where Keras's default reduction divides by all of them.

    Args:
        label_smoothing: eps, at least 0 and below 1; the papers below use 0.1.
        name: The loss's name.

    Call arguments:
        y_true: Integer token ids [B, T], 0 being padding.
        y_pred: Logits [B, T, V]; computed in at least float32.
        sample_weight: Optional, [B], [B, 1] or [B, T].

    Returns:
        A scalar. The method `call(y_true, y_pred)` gives the losses of the single tokens, [B, T].

    Example:

    >>> import numpy as np
    >>> loss = MaskedCrossEntropy(label_smoothing=0.1)
    >>> logits = np.zeros((1, 3, 8), "float32")
    >>> round(float(loss(np.array([[5, 3, 0]]), logits)), 4)  # log 8; the third token is padding
    2.0794

    References:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7.
        Vaswani et al. 2017, "Attention Is All You Need", section 5.4.
    """

    def __init__(self, label_smoothing=0.0, name="masked_cross_entropy"):
        super().__init__(name=name)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must be at least 0 and below 1. Received: label_smoothing={label_smoothing!r}"
            )
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true, y_pred):
        """The loss of every token [B, T], 0 at padding."""
        y_true, y_pred = check_token_shapes(type(self).__name__, y_true, y_pred)
        return token_losses(y_true, y_pred, self.label_smoothing)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The mean loss over real tokens, a scalar."""
        losses = self.call(y_true, y_pred)
        return weighted_mean(losses, token_weights(y_true, sample_weight, losses.dtype))

    def get_config(self):
        return {"label_smoothing": self.label_smoothing, "name": self.name}
