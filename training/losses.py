"""Cross-entropy over the real tokens of a batch of padded sequences, plain and block by block.

Shapes: B batch, T target length, D width of the features, V vocabulary, N = B*T tokens.
"""

from typing import Any, NamedTuple

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
    """The mean of values [B, T] under weights [B, T], a scalar; 0 where all weights are 0.

    Weights may be negative, for what is to become less probable; the sum is divided by that of their magnitudes. Under
    tf.distribute that is the sum of all devices', so that the mean is the sum of what the devices have.
    """
    return ops.divide_no_nan(ops.sum(values * weights), _over_devices(ops.sum(ops.abs(weights))))


def _over_devices(total):
    """The sum of a scalar over all devices of a tf.distribute strategy, whose losses and gradients Keras adds up."""
    if keras.backend.backend() != "tensorflow":
        return total
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return total
    return context.all_reduce(tf.distribute.ReduceOp.SUM, total)


class TokenStatistics(NamedTuple):
    """What the metrics of a step need, one value a token.

    Attributes:
        nll: [B, T], negative log-likelihoods without label smoothing, 0 at padding.
        hits: [B, T], 1 where no token is more probable than the target, else 0.
        real: [B, T], 1 for a token, 0 for padding.
        weights: [B, T], `real` times the sample weights.
    """

    nll: Any
    hits: Any
    real: Any
    weights: Any


def blockwise_cross_entropy(
    features, matrix, bias, y_true, sample_weight=None, label_smoothing=0.0, block=512, training=True, r_drop=0.0
):
    """The loss of logits = features . matrix^T [+ bias], of which no more exists than a block of tokens at a time.

    The numbers are those of `token_losses` and `weighted_mean` on the whole logits. With `training`, the gradient is
    made in the same pass: a block's softmax, minus the targets, is at once multiplied into the gradients of features
    and matrix (three products, where a pass that computes the logits anew has four). Without it the result has no
    gradient. Products are computed in the features' dtype, the rest in float32.

    Args:
        features: [B, T, D].
        matrix: [V, D], the output layer's weights, as an embedding holds them.
        bias: [V], or None.
        y_true: integer token ids [B, T], PAD carries no weight.
        sample_weight: optional, [B], [B, 1] or [B, T].
        label_smoothing: as in `token_losses`.
        block: tokens computed at a time.
        training: whether gradients will be asked for.
        r_drop: alpha of R-Drop, for `training` only. Every row then stands in the batch twice, row b and row B/2 + b,
            for which dropout draws different masks; what their distributions p and q disagree on is added to the
            losses of both, alpha/4 * (KL(p|q) + KL(q|p)). NaN where the two halves of y_true differ, as they do where
            replicas share a batch.

    Returns:
        (loss, TokenStatistics): the weighted mean, a scalar, and what metrics need.

    References:
        Liang et al. 2021, "R-Drop", https://arxiv.org/abs/2106.14448, equation 4, divided by the two passes.
        Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", https://arxiv.org/abs/2411.09009
        (section 4 computes by blocks what is here; it filters small gradients, which this function does not).
    """
    shape, width = ops.shape(y_true), features.shape[-1]
    weights = token_weights(y_true, sample_weight)
    features = ops.where((y_true != PAD)[:, :, None], features, ops.zeros_like(features))
    features = ops.reshape(features, (-1, width))
    # Only ratios of weights count. Of a greatest one of 1, nothing overflows or vanishes in float16.
    greatest = ops.max(ops.abs(weights))
    flat_weights = ops.reshape(ops.divide_no_nan(weights, greatest), (-1,))
    targets = ops.reshape(y_true, (-1,))
    alpha = r_drop if training else 0.0
    copies = 2 if alpha else 1
    block = max(copies, block - block % copies)
    if alpha and isinstance(y_true.shape[0], int) and y_true.shape[0] % 2:
        raise ValueError(
            "r_drop expects a batch that holds every row twice, so an even number of rows. Received: y_true.shape="
            f"{tuple(y_true.shape)}; Batches(copies=2) makes such."
        )
    count = ops.shape(targets)[0]
    features, targets, flat_weights = (_to_blocks(x, block, copies) for x in (features, targets, flat_weights))
    total_weight = ops.divide_no_nan(_over_devices(ops.sum(ops.abs(weights))), greatest)

    def forward(inputs, with_gradients):
        losses, nll, hits, gradients = _scan_blocks(
            *inputs, targets, flat_weights, label_smoothing, alpha, block, with_gradients
        )
        loss = ops.divide_no_nan(ops.sum(losses * flat_weights), total_weight)
        return ops.concatenate([loss[None], nll, hits]), gradients

    @ops.custom_gradient
    def with_gradient(*inputs):
        packed, gradients = forward((*inputs, None)[:3], True)

        def backward(*args, upstream=None):
            factor = (args[0] if upstream is None else upstream)[0]
            factor = ops.divide_no_nan(ops.cast(factor, "float32"), total_weight)
            return tuple(ops.cast(gradient * factor, x.dtype) for gradient, x in zip(gradients, inputs, strict=True))

        return packed, backward

    if training:
        # Tensors, not variables: TensorFlow's eager custom gradient would ask for the gradient of those by name.
        packed = with_gradient(features, *(weights + 0.0 for weights in (matrix, bias) if weights is not None))
    else:
        packed, _ = forward((features, matrix, bias), False)
    nll, hits = (ops.reshape(_from_blocks(x, count, block, copies), shape) for x in ops.split(packed[1:], 2))
    real = ops.cast(y_true != PAD, "float32")
    loss = packed[0]
    if alpha:
        first, second = ops.split(y_true, 2)
        loss = ops.where(ops.all(first == second), loss, float("nan"))
    return loss, TokenStatistics(nll * real, hits * real, real, weights)


def _to_blocks(x, block, copies):
    """x [N, ...], filled with zeros so that it is made of whole blocks; each has as many tokens of every copy of the
    batch, in the same order, one copy behind the other."""
    rest, share = x.shape[1:], block // copies
    x = ops.reshape(x, (copies, -1, *rest))
    missing = -ops.shape(x)[1] % share
    x = ops.concatenate([x, ops.zeros((copies, missing, *rest), dtype=x.dtype)], axis=1)
    if copies > 1:
        x = ops.swapaxes(ops.reshape(x, (copies, -1, share, *rest)), 0, 1)
    return ops.reshape(x, (-1, *rest))


def _from_blocks(x, count, block, copies):
    """The values [N] of the N = `count` tokens in the batch's order."""
    if copies > 1:
        x = ops.swapaxes(ops.reshape(x, (-1, copies, block // copies)), 0, 1)
    return ops.reshape(ops.reshape(x, (copies, -1))[:, : count // copies], (-1,))


def _scan_blocks(features, matrix, bias, targets, weights, label_smoothing, alpha, block, with_gradients):
    """Losses, nll and hits [N] and, of sum(losses * weights), the gradients by features, matrix and bias (if any).

    The loss of a token is lse - (1 - eps) * logit[target] - eps * mean(logits), and R-Drop's term. That and lse need
    the whole row; the gradients of the other two are added for all tokens at once, as sums over rows of the matrix.
    """
    compute_dtype = features.dtype
    table = ops.cast(matrix, compute_dtype)
    in_blocks = [ops.reshape(x, (-1, block, *x.shape[1:])) for x in (features, targets, weights)]
    blocks, (vocabulary, width) = ops.shape(in_blocks[0])[0], matrix.shape

    def advance(number, statistics, by_features, by_matrix, *by_bias):
        x, target, weight = (ops.take(part, number, axis=0) for part in in_blocks)
        logits = ops.cast(ops.matmul(x, ops.transpose(table)), "float32")  # [block, V]
        if bias is not None:  # `add` of a vector is one operation with the product
            logits = ops.add(logits, ops.cast(bias, "float32"))
        slopes = ops.softmax(logits, axis=-1)
        target_logit, probability = (ops.take_along_axis(x, target[:, None], axis=-1)[:, 0] for x in (logits, slopes))
        hits = ops.cast(ops.equal(probability, ops.max(slopes, axis=-1)), "float32")
        nll = _negative_log(probability, logits, target_logit, weight)
        apart, share = ops.zeros_like(nll), weight[:, None]
        if alpha:
            apart, by_apart = _disagreement(logits, slopes)
            both_weights = ops.tile(sum(ops.split(weight, 2)), 2)
            slopes = slopes * share + 0.25 * alpha * both_weights[:, None] * by_apart
            share = ops.ones_like(share)
        found = ops.stack([nll, hits, target_logit, apart])
        statistics = ops.scatter_update(statistics, [[number]], found[None])
        if with_gradients:
            slopes = ops.cast(slopes, compute_dtype)
            gradient = ops.cast(ops.matmul(slopes, table), "float32") * share
            by_features = ops.scatter_update(by_features, [[number]], gradient[None])
            scaled = ops.cast(ops.cast(x, "float32") * share, compute_dtype)
            by_matrix = by_matrix + ops.cast(ops.matmul(ops.transpose(slopes), scaled), "float32")
            by_bias = [x + ops.matmul(ops.transpose(share), ops.cast(slopes, "float32"))[0] for x in by_bias]
        after = _after(number + 1, statistics, by_features, by_matrix, *by_bias)
        return after, statistics, by_features, by_matrix, *by_bias

    rows, columns = (blocks * block, vocabulary) if with_gradients else (0, 0)
    start = (
        ops.zeros((), dtype="int32"),
        ops.zeros((blocks, 4, block)),
        ops.zeros((rows // block, block, width)),
        ops.zeros((columns, width)),
        *([] if bias is None else [ops.zeros((columns,))]),
    )
    _, statistics, *gradients = ops.while_loop(lambda number, *_: number < blocks, advance, start)
    nll, hits, target_logits, apart = (ops.reshape(x, (-1,)) for x in ops.unstack(statistics, axis=1))
    mean_row = ops.mean(ops.cast(matrix, "float32"), axis=0)
    losses = nll + 0.25 * alpha * apart
    if label_smoothing:
        mean_logits = ops.matmul(ops.cast(features, "float32"), mean_row[:, None])[:, 0]
        mean_logits = mean_logits if bias is None else mean_logits + ops.mean(ops.cast(bias, "float32"))
        losses = losses + label_smoothing * (target_logits - mean_logits)
    if with_gradients:
        gradients = _add_targets(gradients, features, matrix, mean_row, targets, weights, label_smoothing)
    return losses, nll, hits, gradients


def _negative_log(probability, logits, target_logit, weight):
    """-log p of the targets [N]; from the logits [N, V] where a p that counts is too small for a float."""
    smallest = 1e-30
    return ops.cond(
        ops.any(ops.logical_and(probability < smallest, weight != 0)),
        lambda: ops.logsumexp(logits, axis=-1) - target_logit,
        lambda: -ops.log(ops.maximum(probability, smallest)),
    )


def _disagreement(logits, probabilities):
    """KL(p|q) + KL(q|p) of the block's first half p and its second half q, once for each half [block], and its
    gradient by the logits [block, V]: with d the difference of their logits, it is sum((p - q) * d)."""
    first, second = ops.split(logits, 2)
    p, q = ops.split(probabilities, 2)
    difference = first - second
    under_p, under_q = (ops.sum(x * difference, axis=-1, keepdims=True) for x in (p, q))
    slopes = [p * (difference - under_p + 1) - q, q * (under_q - difference + 1) - p]
    return ops.tile((under_p - under_q)[:, 0], 2), ops.concatenate(slopes)


def _after(value, *others):
    """The value, once the others are there: TensorFlow would compute several blocks at a time."""
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    with tf.control_dependencies(others):
        return tf.identity(value)


def _add_targets(gradients, features, matrix, mean_row, targets, weights, label_smoothing):
    """Adds the gradients of -(1 - eps) * logit[target] - eps * mean(logits)."""
    by_features, by_matrix, *by_bias = gradients
    vocabulary, width = matrix.shape
    rows = ops.cast(ops.take(matrix, targets, axis=0), "float32")
    kept = 1.0 - label_smoothing
    by_features = ops.reshape(by_features, (-1, width)) - weights[:, None] * (kept * rows + label_smoothing * mean_row)
    weighted = ops.cast(features, "float32") * weights[:, None]
    by_matrix = by_matrix - kept * ops.segment_sum(weighted, targets, vocabulary)
    by_bias = [x - kept * ops.segment_sum(weights, targets, vocabulary) for x in by_bias]
    if label_smoothing:
        by_matrix = by_matrix - (label_smoothing / vocabulary) * ops.sum(weighted, axis=0)
        by_bias = [x - (label_smoothing / vocabulary) * ops.sum(weights) for x in by_bias]
    return by_features, by_matrix, *by_bias


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
    3. The result is the weighted mean, 0 for a batch without any real token; where weights are below 0, the divisor is
       the sum of their magnitudes. Under `tf.distribute` it is the mean over the tokens of all devices, of which each
       has its share; of other Keras losses it is the mean of the devices' means.

    Only the targets say what is padding: an implicit Keras mask on the logits is not applied a second time,
    and the sum is divided by the real tokens, where Keras's default reduction divides by all of them.

    Args:
        label_smoothing: eps, at least 0 and below 1; the papers below use 0.1.
        name: The loss's name.
        r_drop: alpha of R-Drop, 0 for none; the paper translates with 5. For models of `keras_attention.models` in
            `fit`, on batches that hold every row twice (`training.batching.Batches(copies=2)`); `evaluate` and
            `validation_data` take plain batches and have the loss without it. See `blockwise_cross_entropy`.

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
        Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", https://arxiv.org/abs/2106.14448
    """

    def __init__(self, label_smoothing=0.0, name="masked_cross_entropy", r_drop=0.0):
        super().__init__(name=name)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must be at least 0 and below 1. Received: label_smoothing={label_smoothing!r}"
            )
        if r_drop < 0:
            raise ValueError(f"`r_drop` must be at least 0. Received: r_drop={r_drop!r}")
        self.label_smoothing = float(label_smoothing)
        self.r_drop = float(r_drop)

    def call(self, y_true, y_pred):
        """The loss of every token [B, T], 0 at padding."""
        y_true, y_pred = check_token_shapes(type(self).__name__, y_true, y_pred)
        return token_losses(y_true, y_pred, self.label_smoothing)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The mean loss over real tokens, a scalar."""
        if self.r_drop:
            raise ValueError(
                f"MaskedCrossEntropy(r_drop={self.r_drop}) is for models of keras_attention.models, compiled with it "
                "as their only loss. Received: logits alone, which do not say whether dropout was on."
            )
        return self.without_r_drop(y_true, y_pred, sample_weight)

    def without_r_drop(self, y_true, y_pred, sample_weight=None):
        """The mean loss of logits that were made without dropout, a scalar."""
        losses = self.call(y_true, y_pred)
        return weighted_mean(losses, token_weights(y_true, sample_weight, losses.dtype))

    def from_features(self, features, matrix, bias, y_true, sample_weight=None, training=True):
        """The same mean loss without the logits, and what metrics need: see `blockwise_cross_entropy`.

        A model of `keras_attention.models` that is compiled with this loss calls it for every step of fit.
        """
        y_true = ops.cast(ops.convert_to_tensor(y_true), "int32")
        return blockwise_cross_entropy(
            features, matrix, bias, y_true, sample_weight, self.label_smoothing, training=training, r_drop=self.r_drop
        )

    def get_config(self):
        return {"label_smoothing": self.label_smoothing, "name": self.name, "r_drop": self.r_drop}
