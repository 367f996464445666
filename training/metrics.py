"""Metrics over the real tokens of a whole epoch.

Keras's own averages weigh every batch alike; these count tokens (or rows), so that an epoch's value does not
depend on how the tokens fell into batches. Shapes: B batch, T target length, V vocabulary.
"""

import keras
from keras import ops

from keras_attention.models.tokenizers import PAD

from .losses import check_token_shapes, token_losses, token_weights


def token_hits(y_true, logits):
    """Where no token is more probable than the target: booleans [B, T], False at padding.

    (Of equally probable ones, which are frequent in 16 bits, each counts: which of them is the first depends on the
    backend.)
    """
    of_target = ops.take_along_axis(logits, y_true[..., None], axis=-1)[..., 0]
    return ops.logical_and(of_target >= ops.max(logits, axis=-1), ops.not_equal(y_true, PAD))


@keras.saving.register_keras_serializable(package="keras_attention")
class WeightedMean(keras.metrics.Metric):
    """The base of this file's metrics: a weighted mean since the last reset, 0 before anything was added.

    Args:
        name: The metric's name in logs.
        dtype: The type of its two sums, by default `keras.config.floatx()`.
    """

    statistic = "hits"  # which part of TokenStatistics is averaged

    def __init__(self, name, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_weight(shape=(), initializer="zeros", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def add(self, values, weights):
        """Adds a batch of values [B, T] (losses or hits of tokens) and their weights [B, T]."""
        values, weights = ops.cast(values, self.dtype), ops.cast(weights, self.dtype)
        self.total.assign_add(ops.sum(values * weights))
        self.count.assign_add(ops.sum(ops.abs(weights)))

    def add_statistics(self, statistics, weighted=False):
        """Adds a batch from the TokenStatistics that the loss has found in its own pass."""
        self.add(getattr(statistics, self.statistic), statistics.weights if weighted else statistics.real)

    def result(self):
        return ops.divide_no_nan(ops.convert_to_tensor(self.total), ops.convert_to_tensor(self.count))


@keras.saving.register_keras_serializable(package="keras_attention")
class TokenAccuracy(WeightedMean):
    """The share of real target tokens than which no other is more probable, given the true tokens before them.

    Args:
        name: The metric's name in logs.
        dtype: The type of its sums.

    Call arguments:
        y_true: Integer token ids [B, T], 0 being padding.
        y_pred: Logits [B, T, V].
        sample_weight: Optional, [B], [B, 1] or [B, T].

    Example:

    >>> import numpy as np
    >>> accuracy = TokenAccuracy()
    >>> accuracy.update_state(np.array([[4, 2, 0]]), np.eye(5, dtype="float32")[[[4, 1, 0]]])
    >>> float(accuracy.result())
    0.5
    """

    def __init__(self, name="token_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch."""
        y_true, y_pred = check_token_shapes(type(self).__name__, y_true, y_pred)
        self.add(token_hits(y_true, y_pred), token_weights(y_true, sample_weight, self.dtype))


@keras.saving.register_keras_serializable(package="keras_attention")
class Perplexity(WeightedMean):
    """exp of the mean negative log-likelihood of all real tokens, without label smoothing.

    The mean runs over all tokens since the last reset, not over batches. It is 1 before any token was seen.

    Args:
        name: The metric's name in logs.
        dtype: The type of its sums.

    Call arguments:
        y_true: Integer token ids [B, T], 0 being padding.
        y_pred: Logits [B, T, V].
        sample_weight: Optional, [B], [B, 1] or [B, T].

    Example:

    >>> import numpy as np
    >>> perplexity = Perplexity()
    >>> perplexity.update_state(np.array([[4, 2, 0]]), np.zeros((1, 3, 8), "float32"))
    >>> round(float(perplexity.result()), 4)
    8.0
    """

    statistic = "nll"

    def __init__(self, name="perplexity", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch."""
        y_true, y_pred = check_token_shapes(type(self).__name__, y_true, y_pred)
        self.add(token_losses(y_true, y_pred), token_weights(y_true, sample_weight, self.dtype))

    def result(self):
        return ops.exp(super().result())


@keras.saving.register_keras_serializable(package="keras_attention")
class ExactMatch(WeightedMean):
    """The share of rows whose every real token is a most probable one.

    By induction over the positions this is the share of rows that greedy decoding gets wholly right: as long
    as all earlier tokens are right, the true tokens fed here are those that greedy decoding would have fed
    itself. Rows without a real token (which fill up a batch) do not count.

    Args:
        name: The metric's name in logs.
        dtype: The type of its sums.

    Call arguments:
        y_true: Integer token ids [B, T], 0 being padding.
        y_pred: Logits [B, T, V].
        sample_weight: Optional, [B], [B, 1] or [B, T]; of the last, tokens of weight 0 need not match, and a
            row weighs as much as the heaviest of its tokens.

    Example:

    >>> import numpy as np
    >>> match = ExactMatch()
    >>> logits = np.eye(5, dtype="float32")[[[4, 1], [3, 1], [1, 1]]]  # says 4 1, 3 1 and 1 1
    >>> match.update_state(np.array([[4, 2], [3, 0], [0, 0]]), logits)
    >>> float(match.result())
    0.5
    """

    def __init__(self, name="exact_match", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch."""
        y_true, y_pred = check_token_shapes(type(self).__name__, y_true, y_pred)
        self.add(token_hits(y_true, y_pred), token_weights(y_true, sample_weight, self.dtype))

    def add(self, values, weights):
        """Adds a batch from its hits, booleans [B, T], and their weights [B, T]."""
        matches = ops.all(ops.logical_or(ops.cast(values, "bool"), ops.equal(weights, 0)), axis=-1)
        super().add(matches, ops.max(weights, axis=-1))
