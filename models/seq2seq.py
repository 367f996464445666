"""RNN sequence-to-sequence with attention (Bahdanau et al. 2015), or without it."""

import keras
from keras import ops

from keras_attention import AdditiveAttention, AttentiveRNN, DotProductAttention, ScaledDotProductAttention

from .tokenizers import PAD, START


@keras.saving.register_keras_serializable(package="keras_attention")
class Seq2Seq(keras.Model):
    """A bidirectional GRU encoder and a GRU decoder that attends to it: ids in, logits out.

    Train it with plain Keras on x = {"source": [B, S], "target": [B, T], START first} and y = [B, T], the target one
    step on. PAD = 0 is masked in source and target. Generate with `Pipeline(model)` or the functions of
    `keras_attention.models.decoding`, which use `encode`, `initial_state` and `step`.

    Args:
        source_vocabulary: number of source ids.
        target_vocabulary: V, number of target ids.
        units: U, width of the decoder's state and of the memory (each direction of the encoder gives half of it).
        embedding_width: E, width of both embeddings; `units` when None.
        encoder_layers: number of bidirectional layers.
        attention: "additive", "dot", "scaled_dot", any `keras_attention.Attention` layer, or None. None is the fixed
            context network: the encoder's last states make the decoder's first state and enter at every step.
        dropout: share dropped of embeddings, memory and readout in training.
        tie_embeddings: the output layer uses the target embeddings' matrix (Press and Wolf 2017); the readout then has
            the embeddings' width.

    Call arguments:
        x: a dict of "source" ids [B, S], "target" ids [B, T] and, optionally, "source_mask" [B, S].
        return_attention_scores: also return the weights.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, (logits, weights [B, T, S]; None without attention).

    Example:

    >>> model = Seq2Seq(source_vocabulary=11, target_vocabulary=13, units=8)
    >>> x = {"source": ops.array([[5, 6, 7]]), "target": ops.array([[2, 4]])}
    >>> logits, weights = model(x, return_attention_scores=True)
    >>> tuple(logits.shape), tuple(weights.shape)
    ((1, 2, 13), (1, 2, 3))

    Reference:
        Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473; Cho et al. 2014, https://arxiv.org/abs/1406.1078.
    """

    def __init__(
        self,
        source_vocabulary,
        target_vocabulary,
        units=256,
        embedding_width=None,
        encoder_layers=1,
        attention="additive",
        dropout=0.0,
        tie_embeddings=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if units % 2 or units < 2:
            raise ValueError(f"Seq2Seq expects an even number of units (half a direction). Received: units={units}")
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.units = units
        self.embedding_width = embedding_width or units
        self.encoder_layers = encoder_layers
        self.dropout = dropout
        self.tie_embeddings = tie_embeddings
        policy = {"dtype": self.dtype_policy}
        self.source_embedding = keras.layers.Embedding(
            source_vocabulary, self.embedding_width, name="source_embedding", **policy
        )
        self.target_embedding = keras.layers.Embedding(
            target_vocabulary, self.embedding_width, name="target_embedding", **policy
        )
        self.encoders = [
            keras.layers.Bidirectional(
                # cuDNN's kernel asks for right-padded rows, none of them empty, and would bind an export to a GPU.
                keras.layers.GRU(units // 2, return_sequences=True, return_state=True, use_cudnn=False, **policy),
                name=f"encoder_{number}",
                **policy,
            )
            for number in range(encoder_layers)
        ]
        self.bridge = keras.layers.Dense(units, activation="tanh", name="bridge", **policy)
        self.decoder = AttentiveRNN(
            units,
            attention=_attention_layer(attention, units, self.dtype_policy),
            readout_units=self.embedding_width if tie_embeddings else units,
            name="decoder",
            **policy,
        )
        self.dropout_layer = keras.layers.Dropout(dropout, **policy)
        if not tie_embeddings:
            self.output_layer = keras.layers.Dense(target_vocabulary, name="output", **policy)
        self.build({"source": (None, None), "target": (None, None)})

    def build(self, input_shape=None):
        if self.built:
            return
        width, memory = (None, None, self.embedding_width), (None, None, self.units)
        self.source_embedding.build((None, None))
        self.target_embedding.build((None, None))
        for number, encoder in enumerate(self.encoders):
            encoder.build(memory if number else width)
        self.bridge.build((None, self.units))
        self.decoder.build(width, (None, self.units) if self.decoder.attention is None else memory)
        if self.tie_embeddings:
            self.output_bias = self.add_weight(name="output_bias", shape=(self.target_vocabulary,), initializer="zeros")
        else:
            self.output_layer.build((None, None, self.units))
        self.built = True

    # Fit: call = logits(features).

    def call(self, x, return_attention_scores=False, training=None):
        if not return_attention_scores:
            return self.logits(self.features(x, training=training))
        features, weights = self.features(x, return_attention_scores=True, training=training)
        return self.logits(features), weights

    def features(self, x, return_attention_scores=False, training=None):
        """Readouts [B, T, D], what `logits` takes; with `return_attention_scores`, also the weights [B, T, S]."""
        _check_input(x, ("source", "target"))
        memory, mask, summary = self._encode(x, training)
        target = ops.convert_to_tensor(x["target"])
        embedded = self.dropout_layer(self.target_embedding(target), training=training)
        features = self.decoder(
            embedded,
            memory,
            self.bridge(summary),
            sequence_mask=target != PAD,
            memory_mask=mask,
            return_attention_scores=return_attention_scores,
        )
        if not return_attention_scores:
            return self.dropout_layer(features, training=training)
        return self.dropout_layer(features[0], training=training), features[1]

    def logits(self, features):
        """Logits [..., V] of features [..., D]."""
        if not self.tie_embeddings:
            return self.output_layer(features)
        matrix = ops.cast(self.target_embedding.embeddings, features.dtype)
        return ops.matmul(features, ops.transpose(matrix)) + ops.cast(self.output_bias, features.dtype)

    def _encode(self, x, training=None):
        """Memory [B, S, U] (without attention [B, U]), its mask [B, S] (None) and the last states [B, U]."""
        source = ops.convert_to_tensor(x["source"])
        mask = source != PAD
        if x.get("source_mask") is not None:
            mask = ops.logical_and(mask, ops.cast(x["source_mask"], "bool"))
        states = self.dropout_layer(self.source_embedding(source), training=training)
        for encoder in self.encoders:
            states, forward, backward = encoder(states, mask=mask)
            states = self.dropout_layer(states, training=training)
        summary = ops.concatenate([forward, backward], axis=-1)
        return (states, mask, summary) if self.decoder.attention is not None else (summary, None, summary)

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x):
        """What stays constant while decoding, axis B: projected keys, values and mask of the source, first state.

        Args:
            x: a dict with "source" ids [B, S] and, optionally, "source_mask" [B, S].
        """
        _check_input(x, ("source",))
        memory, mask, summary = self._encode(x, training=False)
        return {**self.decoder.prepare(memory, mask), "first_state": self.bridge(summary)}

    def initial_state(self, memory, max_length=None, beam_width=1):
        """The first tokens [N] and the state of N = B*W hypotheses; a GRU needs no buffer of max_length."""
        state = ops.repeat(memory["first_state"], beam_width, axis=0)
        tokens = ops.full((ops.shape(state)[0],), START, dtype="int32")
        return tokens, {"hidden": state}

    def step(self, tokens, position, memory, state):
        """Logits [N, V], new state and attention [N, S] (or None) after tokens [N]; position is not needed."""
        features, hidden, attention = self.decoder.step(self.target_embedding(tokens), state["hidden"], memory)
        return self.logits(features), {"hidden": hidden}, attention

    def get_config(self):
        attention = self.decoder.attention
        return {
            **super().get_config(),
            "source_vocabulary": self.source_vocabulary,
            "target_vocabulary": self.target_vocabulary,
            "units": self.units,
            "embedding_width": self.embedding_width,
            "encoder_layers": self.encoder_layers,
            "attention": None if attention is None else keras.saving.serialize_keras_object(attention),
            "dropout": self.dropout,
            "tie_embeddings": self.tie_embeddings,
        }

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("attention"), dict):
            config = {**config, "attention": keras.saving.deserialize_keras_object(config["attention"])}
        return cls(**config)


ATTENTIONS = {
    "additive": lambda units, policy: AdditiveAttention(units, dtype=policy),
    "dot": lambda units, policy: DotProductAttention(dtype=policy),
    "scaled_dot": lambda units, policy: ScaledDotProductAttention(dtype=policy),
}


def _attention_layer(attention, units, policy):
    """The layer that a name stands for; layers and None stay."""
    if not isinstance(attention, str):
        return attention
    if attention not in ATTENTIONS:
        raise ValueError(
            f"Seq2Seq expects attention to be one of {', '.join(ATTENTIONS)}, a layer or None. "
            f"Received: attention={attention!r}"
        )
    return ATTENTIONS[attention](units, policy)


def _check_input(x, names):
    missing = [name for name in names if not isinstance(x, dict) or name not in x]
    if missing:
        given = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise ValueError(f"Seq2Seq expects x to be a dict with {' and '.join(names)}. Received: {given}")
