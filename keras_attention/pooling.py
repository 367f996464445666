"""Attention pooling: a sequence becomes one vector, the average that attention chooses."""

import keras
from keras import ops

from keras_attention import masks, recording
from keras_attention.additive import AdditiveAttention, ConcatAttention
from keras_attention.attention import Attention, scores_dtype
from keras_attention.multiplicative import (
    CosineAttention,
    DotProductAttention,
    GeneralAttention,
    ScaledDotProductAttention,
)
from keras_attention.self_attention import SelfAttention

# What a name stands for, given D, the width of the sequence.
NAMED = {
    "additive": AdditiveAttention,
    "concat": ConcatAttention,
    "cosine": lambda width, **options: CosineAttention(**options),
    "dot": lambda width, **options: DotProductAttention(**options),
    "general": lambda width, **options: GeneralAttention(**options),
    "scaled_dot": lambda width, **options: ScaledDotProductAttention(**options),
}


@keras.saving.register_keras_serializable(package="keras_attention")
class AttentionPooling(keras.layers.Layer):
    """Pools a sequence into one vector, as an average whose weights attention chooses.

        a = softmax over s of score(q, h_s)
        output = sum over s of a_s h_s

    It is what stands between a recurrent layer (or a Transformer's encoder) and a classifier, in the place of the last
    state or of `GlobalAveragePooling1D`. The query q is one learned vector, "what matters here?", or comes with the
    call. With the additive score and a learned query it is the word attention of Yang et al. 2016: W_q q is their
    b_w, and v their u_w.

    Args:
        attention: the score: "additive", "concat", "cosine", "dot", "general" or "scaled_dot" (additive and concat then
            have D units), or an `Attention` layer, as `AdditiveAttention(64, dropout=0.1)` or one of your own.
        query_initializer: initializer of the learned query.

    Call arguments:
        value: the sequence h, [B, S, D].
        query: [B, Dq], or None for the learned query [D]. The first call decides which of the two the layer has. D and
            Dq may differ where the score allows it.
        value_mask, mask: [B, S], False where the sequence is padding; both are ANDed. (Keras hands the implicit mask
            of an Embedding as `mask`, and as `value_mask` where `query` is given, too.)
        return_attention_scores: also return the weights.
        training: whether the attention's dropout is active.

    Returns:
        Output [B, D] (of the attention's own width where it projects values, as `CrossAttention` does); with
        `return_attention_scores`, the pair (output, weights [B, S] in float32).

    Masking: True means "may attend". Padding has the weight 0 and is replaced by zeros before any arithmetic, so that
    not even NaN leaks. A row that is padding alone gives zeros. The output carries no mask.

    Example, a classifier of sentences:

    >>> import numpy as np
    >>> ids = np.array([[3, 4, 0, 0], [5, 6, 7, 0], [3, 8, 9, 4], [6, 7, 0, 0]])  # 0 is padding
    >>> labels = np.array([1, 0, 1, 0])
    >>> inputs = keras.Input((None,), dtype="int32")
    >>> x = keras.layers.Embedding(10, 8, mask_zero=True)(inputs)
    >>> x = keras.layers.LSTM(8, return_sequences=True)(x)
    >>> x, weights = AttentionPooling()(x, return_attention_scores=True)
    >>> model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    >>> model.compile("adam", "binary_crossentropy")
    >>> history = model.fit(ids, labels, epochs=2, verbose=0)
    >>> tuple(keras.Model(inputs, weights)(ids).shape)
    (4, 4)

    Reference:
        Yang, Yang, Dyer, He, Smola, Hovy 2016, https://aclanthology.org/N16-1174, equations 5 to 7.
    """

    def __init__(self, attention="additive", query_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if isinstance(attention, SelfAttention) or not (isinstance(attention, Attention) or attention in tuple(NAMED)):
            raise ValueError(
                f"AttentionPooling expects attention to be one of {', '.join(NAMED)}, or a layer such as "
                f"AdditiveAttention(units). Received: attention={attention!r}"
            )
        self.attention = attention
        self.query_initializer = keras.initializers.get(query_initializer)
        self.supports_masking = True

    def build(self, value_shape, query_shape=None):
        width = value_shape[-1]
        if len(value_shape) != 3 or (query_shape is not None and len(query_shape) != 2):
            query_shape = query_shape and tuple(query_shape)
            raise ValueError(
                "AttentionPooling expects a value of shape [batch, length, width] and a query [batch, width] or None. "
                f"Received: value.shape={tuple(value_shape)}, query.shape={query_shape}"
            )
        self.scorer = self.attention
        if isinstance(self.attention, str):
            self.scorer = NAMED[self.attention](width, dtype=self.dtype_policy, name=self.attention)
        self.learned_query = None
        if query_shape is None:
            self.learned_query = self.add_weight(name="query", shape=(width,), initializer=self.query_initializer)
        if not self.scorer.built:
            query_width = width if query_shape is None else query_shape[-1]
            self.scorer.build((value_shape[0], 1, query_width), tuple(value_shape))

    def call(self, value, query=None, *, value_mask=None, mask=None, return_attention_scores=False, training=None):
        if (query is None) != (self.learned_query is not None):
            has, given = ("no learned query", "none") if query is None else ("a learned query", "a query, too")
            raise ValueError(
                f"AttentionPooling {self.name} was built with {has}, by its first call. Received: {given}; make one "
                "layer for layer(value) and another for layer(value, query)."
            )
        mask = masks.combine_masks(
            masks.as_mask(value_mask, "value_mask"), masks.as_mask(mask), masks.implicit_mask(value)
        )
        value = masks.zero_masked(value, mask)
        if query is None:
            query = ops.broadcast_to(self.learned_query, (ops.shape(value)[0], value.shape[-1]))
        context, weights = self.scorer.attend(
            query[:, None, :],
            self.scorer.project_value(value),
            self.scorer.project_key(value),
            None if mask is None else mask[:, None, :],
            training,
        )
        # An attention with a policy of its own may give another dtype.
        output = ops.cast(ops.squeeze(context, axis=1), self.compute_dtype)
        weights = ops.squeeze(weights, axis=1)
        recording.record(self, weights)
        return (output, weights) if return_attention_scores else output

    def compute_output_shape(self, value_shape, query_shape=None):
        if isinstance(self.attention, str):
            return (value_shape[0], value_shape[-1])
        query_width = (query_shape or value_shape)[-1]
        return (value_shape[0], self.attention.compute_output_shape((value_shape[0], 1, query_width), value_shape)[-1])

    def compute_output_spec(self, value, query=None, *, return_attention_scores=False, **kwargs):
        shape = self.compute_output_shape(value.shape, None if query is None else query.shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        return output, keras.KerasTensor(value.shape[:2], dtype=scores_dtype(self))

    def compute_mask(self, value, previous_mask=None):
        return None  # the output is no sequence

    def get_config(self):
        attention = self.attention
        if not isinstance(attention, str):
            attention = keras.saving.serialize_keras_object(attention)
        return {
            **super().get_config(),
            "attention": attention,
            "query_initializer": keras.initializers.serialize(self.query_initializer),
        }

    @classmethod
    def from_config(cls, config):
        if not isinstance(config.get("attention", ""), str):
            config = {**config, "attention": keras.saving.deserialize_keras_object(config["attention"])}
        return cls(**config)
