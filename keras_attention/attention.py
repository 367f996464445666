"""The base of every layer that scores keys against queries; override `score` to invent another attention."""

import keras
from keras import ops

from keras_attention import masks, recording
from keras_attention.dropout import Dropout


@keras.saving.register_keras_serializable(package="keras_attention")
class Attention(keras.layers.Layer):
    """Base layer: context = sum over s of softmax(score(query, key))[s] * value[s].

    1. `score(project_query(query), project_key(key))` gives scores [B, T, S], in at least float32.
    2. Masks combine with AND; a softmax over the keys that may be attended gives the weights.
    3. The weights average the values.

    A subclass defines one verb, `score`; `project_query`, `project_key` and `project_value` are there for weight
    matrices, so that keys and values are projected once and reused at every step of a decoder:

        keys, values = layer.project_key(key), layer.project_value(value)  # once
        context, weights = layer.attend(query, values, keys, mask)         # every step

    Args:
        dropout: share of the attention weights that is dropped in training.
        seed: seed of that dropout.

    Call arguments:
        query: [B, T, Dq].
        value: [B, S, Dv].
        key: [B, S, Dk], or None to use `value`.
        query_mask: [B, T], False where the query is padding.
        value_mask, key_mask: [B, S], False where value or key is padding.
        attention_mask: [B, T, S] or [T, S], True where query t may attend to key s.
        use_causal_mask: query i then sees only the keys 0 ... i.
        return_attention_scores: also return the weights.
        training: whether dropout is active.

    Returns:
        Context [B, T, Dv]; with `return_attention_scores`, the pair (context, weights [B, T, S] in float32).

    Masking: True means "may attend". Explicit masks and the implicit ones of `Embedding(mask_zero=True)` are ANDed.
    What stands behind a padding mask is replaced by zeros before any arithmetic, so that not even NaN leaks. A query
    that may attend to nothing gets zero weights and a zero context. The output carries the query's mask on.

    Example, a score of one's own:

    >>> @keras.saving.register_keras_serializable("example")
    ... class DistanceAttention(Attention):
    ...     def score(self, query, key):
    ...         return -ops.sum(ops.square(query[:, :, None] - key[:, None]), axis=-1)
    >>> layer = DistanceAttention()
    >>> context, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 4)), return_attention_scores=True)
    >>> tuple(context.shape), tuple(weights.shape)
    ((2, 3, 4), (2, 3, 5))
    """

    def __init__(self, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.dropout = dropout
        self.seed = seed
        self.dropout_layer = Dropout(dropout, seed=seed, dtype=self.dtype_policy)
        self.supports_masking = True

    def score(self, query, key):
        """Scores [B, T, S] of projected queries [B, T, .] and projected keys [B, S, .]: the verb to override."""
        raise NotImplementedError(f"{type(self).__name__} must define score(query, key) -> scores [B, T, S].")

    def project_query(self, query):
        """Queries [B, T, Dq] as `score` wants them; unchanged unless overridden."""
        return query

    def project_key(self, key):
        """Keys [B, S, Dk] as `score` wants them; unchanged unless overridden. Done once for a whole decode."""
        return key

    def project_value(self, value):
        """Values [B, S, Dv] as `context` averages them; unchanged unless overridden. Done once for a whole decode."""
        return value

    def attend(self, query, value, keys, mask=None, training=None):
        """Attends with keys that `project_key` gave and values that `project_value` gave.

        Args:
            query: [B, T, Dq].
            value: projected values [B, S, .]; the values themselves where the layer projects none.
            keys: projected keys [B, S, .].
            mask: boolean, broadcastable to [B, T, S], or None.

        Returns:
            Context [B, T, .] and weights [B, T, S].
        """
        weights = self.weights_for(query, keys, mask)
        return self.context(weights, value, training), weights

    def weights_for(self, query, keys, mask=None):
        """Weights [B, T, S] of queries [B, T, Dq] over projected keys."""
        return masks.masked_softmax(self.score(self.project_query(query), keys), mask)

    def context(self, weights, value, training=None):
        """Averages projected values [B, S, .] by weights [B, T, S]."""
        weights = self.dropout_layer(weights, training=training)
        return ops.matmul(ops.cast(weights, value.dtype), value)

    def __call__(self, *args, **kwargs):
        self._check_call(args, kwargs)
        return super().__call__(*args, **kwargs)

    def _check_call(self, args, kwargs):
        first = args[0] if args else kwargs.get("query")
        if isinstance(first, (list, tuple)) or (len(args) < 2 and kwargs.get("value") is None):
            raise TypeError(
                f"{type(self).__name__} is called as layer(query, value, key=None, ...), each a tensor of shape "
                f"[batch, length, width]. Received: {describe_call(args, kwargs)}; write layer(query, value) instead "
                "of layer([query, value])."
            )

    def build(self, query_shape, value_shape, key_shape=None):
        for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
            if shape is not None and len(shape) != 3:
                raise ValueError(
                    f"{type(self).__name__} expects a {name} of shape [batch, length, width]. "
                    f"Received: {name}.shape={tuple(shape)}"
                )
        self.built = True

    def call(
        self,
        query,
        value,
        key=None,
        *,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        use_causal_mask=False,
        return_attention_scores=False,
        training=None,
    ):
        query_mask = masks.combine_masks(masks.as_mask(query_mask, "query_mask"), masks.implicit_mask(query))
        key_mask = masks.combine_masks(
            masks.as_mask(value_mask, "value_mask"),
            masks.as_mask(key_mask, "key_mask"),
            masks.implicit_mask(value),
            None if key is None else masks.implicit_mask(key),
        )
        attention_mask = masks.as_mask(attention_mask, "attention_mask")
        causal = masks.causal_mask(ops.shape(query)[1], ops.shape(value)[1]) if use_causal_mask else None
        query = masks.zero_masked(query, query_mask)
        key = masks.zero_masked(value if key is None else key, key_mask)
        value = masks.zero_masked(value, key_mask)
        mask = masks.attention_mask(query_mask, key_mask, attention_mask, causal)
        context, weights = self.attend(query, self.project_value(value), self.project_key(key), mask, training)
        recording.record(self, weights)
        context = masks.carry_mask(context, query_mask)
        return (context, weights) if return_attention_scores else context

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return (*query_shape[:-1], value_shape[-1])

    def compute_output_spec(self, query, value, key=None, *, return_attention_scores=False, **kwargs):
        context = keras.KerasTensor(self.compute_output_shape(query.shape, value.shape), dtype=self.compute_dtype)
        if not return_attention_scores:
            return context
        weights = keras.KerasTensor((*query.shape[:-1], value.shape[1]), dtype=scores_dtype(self))
        return context, weights

    def compute_mask(self, query, previous_mask=None):
        return previous_mask

    def get_config(self):
        return {**super().get_config(), "dropout": self.dropout, "seed": self.seed}


def scores_dtype(layer):
    """The dtype of a layer's weights: float32, and float64 for a layer of float64."""
    return "float64" if layer.compute_dtype == "float64" else "float32"


def describe_call(args, kwargs):
    """The shapes of what a layer was called with, for an error."""
    given = [("", value) for value in args] + [(f"{name}=", value) for name, value in kwargs.items()]
    return ", ".join(f"{name}{_shapes(value)}" for name, value in given) or "nothing"


def _shapes(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_shapes(item) for item in value) + "]"
    return str(tuple(value.shape)) if hasattr(value, "shape") else repr(value)


def check_units(layer, units):
    """Refuses a width below 1 and returns the others."""
    if units < 1:
        raise ValueError(f"{type(layer).__name__} expects units of at least 1. Received: units={units}")
    return units
