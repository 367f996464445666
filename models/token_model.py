"""The base of every model that writes tokens: logits = features . matrix^T [+ bias], and a loss without the logits."""

import contextlib
import threading
import weakref

import keras
from keras import ops

from keras_attention.masks import as_mask, zero_masked

from .tokenizers import PAD


class _Step(threading.local):
    """What one step of fit hands on, from call to compute_loss to compute_metrics; each reader clears it.

    After a call outside of fit nobody reads: the features are let go together with the logits that were returned.
    Each device of tf.distribute.MirroredStrategy takes its step in a thread of its own, and has its own.
    """

    features = logits = None
    metrics_are_updated = False

    def keep(self, features, logits):
        self.features, self.logits = features, weakref.ref(logits, self._let_go)

    def _let_go(self, logits):
        self.features = self.logits = None

    def take(self, y_pred):
        """The features whose logits y_pred are; None if they are not the last call's."""
        kept = self.logits is not None and self.logits() is y_pred
        features, self.features, self.logits = self.features, None, None
        return features if kept else None


class TokenModel(keras.Model):
    """A Keras model on ids whose logits are a linear map of its features.

    A subclass defines `features(x, return_attention_scores, training)` [B, T, D] and `output_weights()`. One whose
    `encode` returns anything but a dict of [B, ...] and "output" defines `take_rows`, too, or sets it to None; an
    "output" that is not `output_memory()`'s needs a `without_output` that leaves it in, and `take_rows` gets none.

    Compiled with any Keras loss it is a plain Keras model. Compiled with a loss that has `from_features`, such as
    `keras_attention.training.losses.MaskedCrossEntropy`, loss, gradients and metrics are computed from the features
    in blocks of tokens, and the [B, T, V] logits, which then nobody reads, are pruned from the compiled step (on
    PyTorch, which runs eagerly, they still exist).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._step = _Step()
        self._laid_out = None

    def features(self, x, return_attention_scores=False, training=None):
        """Features [B, T, D], what `logits` takes; with `return_attention_scores`, also the weights."""
        raise NotImplementedError(f"{type(self).__name__} must define features(x) -> [B, T, D].")

    def output_weights(self):
        """The output layer's matrix [V, D] and bias [V], None where it has none."""
        raise NotImplementedError(
            f"{type(self).__name__} must define output_weights() -> matrix [V, D], bias [V] or None."
        )

    def logits(self, features, memory=None):
        """Logits [..., V] of features [..., D]; faster for few features with a memory, whose "output" is the matrix."""
        matrix, bias = self.output_weights()
        matrix = ops.transpose(ops.cast(matrix, features.dtype)) if memory is None else memory["output"]
        logits = ops.matmul(features, matrix)
        return logits if bias is None else logits + ops.cast(bias, features.dtype)

    def output_memory(self):
        """The output layer's matrix laid out as it is multiplied, [D, V]: a part of what `encode` returns."""
        if self._laid_out is not None:
            return {"output": self._laid_out}
        return {"output": ops.cast(ops.transpose(self.output_weights()[0]), self.compute_dtype)}

    def take_rows(self, memory, rows):
        """The part of a memory that belongs to some rows, their numbers [R]; what belongs to all of them stays."""
        own = {name: part for name, part in memory.items() if name != "output"}
        return {**memory, **keras.tree.map_structure(lambda leaf: ops.take(leaf, rows, axis=0), own)}

    def without_output(self, memory):
        """The memory without the matrix that `with_output` adds again, where it passes from program to program."""
        if not isinstance(memory, dict) or "output" not in memory:
            return memory
        return {name: part for name, part in memory.items() if name != "output"}

    def with_output(self, memory):
        """What `without_output` made, with the output layer's matrix again."""
        return {**memory, **self.output_memory()}

    @contextlib.contextmanager
    def laid_out(self, matrix):
        """A context in which `output_memory` gives this matrix, as an export holds it, and lays out none."""
        self._laid_out = matrix
        try:
            yield
        finally:
            self._laid_out = None

    def call(self, x, return_attention_scores=False, training=None):
        if return_attention_scores:
            features, weights = self.features(x, return_attention_scores=True, training=training)
            return self.logits(features), weights
        features = self.features(x, training=training)
        logits = self.logits(features)
        if self.compiled and hasattr(self.loss, "from_features"):
            self._step.keep(features, logits)
        return logits

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        features = self._step.take(y_pred)
        if features is None and not training and getattr(self.loss, "r_drop", 0):  # Keras builds it so, on JAX
            return self.loss.without_r_drop(y, y_pred, sample_weight)
        if features is None or self._compile_loss._user_loss_weights is not None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss, statistics = self.loss.from_features(
            features, *self.output_weights(), y, sample_weight, training=training
        )
        self._step.metrics_are_updated = self._update_metrics(y, y_pred, statistics)
        return loss + sum(self._aggregate_additional_loss(extra) for extra in self.losses) if self.losses else loss

    def _update_metrics(self, y, y_pred, statistics):
        """Hands the statistics of the loss's own pass to all compiled metrics, if all of them take such."""
        compiled = self._compile_metrics
        if compiled is None:
            return False
        if not compiled.built:
            compiled.build(y, y_pred)
        if not all(hasattr(metric, "add_statistics") for metric in compiled.metrics):
            return False
        # As in Keras, sample weights are for what was compiled as weighted_metrics.
        weighted = [id(metric) for metric in keras.tree.flatten(compiled._user_weighted_metrics or [])]
        for metric in compiled.metrics:
            metric.add_statistics(statistics, weighted=id(metric) in weighted)
        return True

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        updated, self._step.metrics_are_updated = self._step.metrics_are_updated, False
        return self.get_metrics_result() if updated else super().compute_metrics(x, y, y_pred, sample_weight)


def check_input(model, x, names):
    """Refuses an input that is no dict with these names."""
    missing = [name for name in names if not isinstance(x, dict) or name not in x]
    if missing:
        given = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise ValueError(f"{type(model).__name__} expects x to be a dict with {' and '.join(names)}. Received: {given}")


def check_source_arguments(model, source_vocabulary, source_width):
    """A source is ids or features."""
    if (source_vocabulary is None) == (source_width is None):
        raise ValueError(
            f"{type(model).__name__} expects source_vocabulary for ids, or source_vocabulary=None and source_width=F "
            f"for features [B, S, F]. Received: source_vocabulary={source_vocabulary}, source_width={source_width}"
        )


def read_source(model, x):
    """The source of x, ids [B, S] or features [B, S, F] (zero where they are masked), and its mask [B, S]."""
    source = ops.convert_to_tensor(x["source"])
    mask = as_mask(x.get("source_mask"), "source_mask")
    if model.source_vocabulary is None:
        if len(source.shape) != 3 or source.shape[-1] != model.source_width:
            raise ValueError(
                f"{type(model).__name__} expects source features [B, S, {model.source_width}]. Received: "
                f"source.shape={tuple(source.shape)}"
            )
        mask = ops.ones(ops.shape(source)[:2], dtype="bool") if mask is None else mask
        return ops.cast(zero_masked(source, mask), model.compute_dtype), mask
    if len(source.shape) != 2:
        raise ValueError(
            f"{type(model).__name__} expects source ids [B, S]. Received: source.shape={tuple(source.shape)}"
        )
    return source, source != PAD if mask is None else ops.logical_and(source != PAD, mask)
