"""RNN sequence-to-sequence: with attention (Bahdanau et al. 2015, Luong et al. 2015), or without it."""

import keras
from keras import ops

from keras_attention import (
    AdditiveAttention,
    AttentiveRNN,
    ConcatAttention,
    CosineAttention,
    DotProductAttention,
    GeneralAttention,
    LocationAttention,
    ScaledDotProductAttention,
)
from keras_attention.dropout import Dropout
from keras_attention.masks import let_masks_pass

from .token_model import TokenModel, check_input, check_source_arguments, read_source
from .tokenizers import PAD, START

# What the names mean, for a width of states and memory, a longest source and a dtype policy.
ATTENTIONS = {
    "additive": lambda units, longest, policy: AdditiveAttention(units, dtype=policy),
    "dot": lambda units, longest, policy: DotProductAttention(dtype=policy),
    "scaled_dot": lambda units, longest, policy: ScaledDotProductAttention(dtype=policy),
    "general": lambda units, longest, policy: GeneralAttention(dtype=policy),
    "concat": lambda units, longest, policy: ConcatAttention(units, dtype=policy),
    "cosine": lambda units, longest, policy: CosineAttention(dtype=policy),
    "location": lambda units, longest, policy: LocationAttention(longest, dtype=policy),
}
RNNS = {"simple_rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}
CONTEXTS = ("every_step", "first_state")
ONE_WIDTH = ("dot", "scaled_dot", "cosine")  # attentions whose queries and keys have one width


@keras.saving.register_keras_serializable(package="keras_attention")
class Seq2Seq(TokenModel):
    """An RNN encoder and an RNN decoder that attends to it: ids (or features) in, logits out.

    Train it with plain Keras on x = {"source": [B, S] ids or [B, S, F] features, "target": [B, T], START first} and
    y = [B, T], the target one step on. PAD = 0 is masked in source ids and target; features come with "source_mask"
    [B, S]. Generate with `Pipeline(model)` or the functions of `keras_attention.models.decoding`, which use `encode`,
    `initial_state` and `step`.

    Args:
        source_vocabulary: number of source ids; None for features, and then `source_width` is their F.
        target_vocabulary: V, number of target ids.
        units: U, width of the decoder's state and of the memory (of a bidirectional encoder, each direction gives
            half of it).
        embedding_width: E, width of both embeddings; `units` when None.
        encoder_layers, decoder_layers: number of recurrent layers. With encoder_layers=0 the decoder attends to the
            embedded source (or the features) itself, and its first state comes from their mean, as it does where a grid
            of image features is the source (Xu et al. 2015).
        cell: "simple_rnn", "gru" or "lstm", of encoder and decoder.
        bidirectional: whether the encoder reads in both directions.
        attention: "additive", "dot", "scaled_dot", "general", "concat", "cosine", "location" (which needs
            `max_source_length`), any `keras_attention.Attention` layer, or None for a fixed context: the encoder's
            last states.
        order: "bahdanau" (attend, then recur) or "luong" (recur, then attend, with input feeding).
        context_gate: whether a scalar of the state scales each context (Xu et al. 2015); needs attention.
        lexical: whether the memory holds the embedded source, too, and what is attended to of it goes past the decoder
            to an output matrix of its own (Nguyen and Chiang 2018): better words where there are few sentences to learn
            from. Needs an encoder, and an attention whose keys may be wider than its queries.
        context: without attention, where the fixed context enters: at "every_step" and in the decoder's first state
            (Cho et al. 2014), or in the "first_state" alone (Sutskever et al. 2014).
        dropout: share dropped of embeddings, memory and readout in training.
        tie_embeddings: the output layer uses the target embeddings' matrix (Press and Wolf 2017); the readout then has
            the embeddings' width.
        source_width: F, where the source is features; they enter the encoder as they are, or through
            `source_embedding`.
        max_source_length: longest source, in positions; needed by location-based attention only.
        source_embedding, target_embedding: any Keras layer in place of the embeddings, [B, S] -> [B, S, E] and
            [B, T] -> [B, T, E], each position by itself in the target.

    Call arguments:
        x: a dict of "source", "target" ids [B, T] and, optionally, "source_mask" [B, S].
        return_attention_scores: also return the weights.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, (logits, weights [B, T, S]; None without attention).

    Example:

    >>> model = Seq2Seq(source_vocabulary=11, target_vocabulary=13, units=8)
    >>> x = {"source": ops.array([[5, 6, 7]]), "target": ops.array([[2, 4]])}
    >>> logits, weights = model(x, return_attention_scores=True)
    >>> tuple(logits.shape), tuple(weights.shape)
    ((1, 2, 13), (1, 2, 3))

    References:
        Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473; Luong, Pham, Manning 2015,
        https://arxiv.org/abs/1508.04025; Cho et al. 2014, https://arxiv.org/abs/1406.1078; Sutskever, Vinyals, Le
        2014, https://arxiv.org/abs/1409.3215; Xu et al. 2015, https://arxiv.org/abs/1502.03044; Nguyen and Chiang 2018,
        https://arxiv.org/abs/1710.01329.
    """

    def __init__(
        self,
        source_vocabulary,
        target_vocabulary,
        units=256,
        embedding_width=None,
        encoder_layers=1,
        decoder_layers=1,
        cell="gru",
        bidirectional=True,
        attention="additive",
        order="bahdanau",
        context="every_step",
        context_gate=False,
        lexical=False,
        dropout=0.0,
        tie_embeddings=True,
        source_width=None,
        max_source_length=None,
        source_embedding=None,
        target_embedding=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_arguments(units, encoder_layers, bidirectional, cell, context, lexical, attention)
        check_source_arguments(self, source_vocabulary, source_width)
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.units = units
        self.embedding_width = embedding_width or units
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.order = order
        self.context = context
        self.context_gate = context_gate
        self.lexical = lexical
        self.dropout = dropout
        self.tie_embeddings = tie_embeddings
        self.source_width = source_width
        self.max_source_length = max_source_length
        self._given = (source_embedding is not None, target_embedding is not None)
        policy = {"dtype": self.dtype_policy}
        if source_embedding is None and source_vocabulary is not None:
            source_embedding = self._embedding(source_vocabulary, "source_embedding")
        self.source_embedding = source_embedding  # None where features enter the encoder as they are
        self.target_embedding = target_embedding or self._embedding(target_vocabulary, "target_embedding")
        self.encoders = [self._encoder(number) for number in range(encoder_layers)]
        attention = _attention_layer(attention, units, max_source_length, self.dtype_policy)
        if max_source_length is None:
            self.max_source_length = getattr(attention, "max_length", None)  # of location-based attention
        words = 0
        if lexical:
            words = source_width if source_embedding is None else _built_shape(source_embedding, self._read_shape())[-1]
        decoder = AttentiveRNN(
            units,
            attention=attention,
            readout_units=self.embedding_width if tie_embeddings else units,
            cell=cell,
            layers=decoder_layers,
            order=order,
            context_gate=context_gate,
            lexical_units=words,
            name="decoder",
            **policy,
        )
        self.bridge = keras.layers.Dense(decoder.state_width, activation="tanh", name="bridge", **policy)
        self.decoder = decoder
        self.dropout_layer = Dropout(dropout, **policy)
        if not tie_embeddings:
            self.output_layer = keras.layers.Dense(target_vocabulary, name="output", **policy)
        self.build()

    def _embedding(self, vocabulary, name):
        # Keras's uniform(-0.05, 0.05) lets so little of a word through that learning begins several epochs later.
        initializer = keras.initializers.RandomNormal(stddev=0.1)
        return keras.layers.Embedding(vocabulary, self.embedding_width, initializer, name=name, dtype=self.dtype_policy)

    def _encoder(self, number):
        units = self.units // 2 if self.bidirectional else self.units
        options = {"return_sequences": True, "return_state": True, "dtype": self.dtype_policy}
        if self.cell != "simple_rnn":
            # cuDNN's kernel asks for right-padded rows, none of them empty, and would bind an export to a GPU.
            options["use_cudnn"] = False
        if not self.bidirectional:
            return let_masks_pass(RNNS[self.cell](units, name=f"encoder_{number}", **options))
        layer = RNNS[self.cell](units, **options)
        return let_masks_pass(keras.layers.Bidirectional(layer, name=f"encoder_{number}", dtype=self.dtype_policy))

    def build(self, input_shape=None):
        if self.built:
            return
        width = self._read_shape()
        if self.source_embedding is not None:
            width = _built_shape(self.source_embedding, width)
        memory = (None, None, self.units) if self.encoders else width
        embedded = _built_shape(self.target_embedding, (None, None))
        for number, encoder in enumerate(self.encoders):
            encoder.build(memory if number else width)
        self.bridge.build((None, memory[-1]))
        memory = (None, None, memory[-1] + self.decoder.lexical_units)
        if self.decoder.attention is None:
            memory = (None, memory[-1]) if self.context == "every_step" else None
        self.decoder.build(embedded, memory)
        if self.tie_embeddings:
            _check_tied(self.target_embedding, (self.target_vocabulary, self.embedding_width))
            self.output_bias = self.add_weight(name="output_bias", shape=(self.target_vocabulary,), initializer="zeros")
            if self.lexical:
                shape = (self.target_vocabulary, self.decoder.lexical_units)
                initializer = keras.initializers.RandomNormal(stddev=0.05)
                self.lexical_output = self.add_weight(name="lexical_output", shape=shape, initializer=initializer)
        else:
            self.output_layer.build((None, None, self.decoder.output_width))
        self.built = True

    def _read_shape(self):
        """The shape of what the source embedding reads, ids or features."""
        return (None, None) if self.source_vocabulary is not None else (None, None, self.source_width)

    def features(self, x, return_attention_scores=False, training=None):
        """Readouts [B, T, D], what `logits` takes; with `return_attention_scores`, also the weights [B, T, S]."""
        check_input(self, x, ("source", "target"))
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

    def output_weights(self):
        if self.tie_embeddings:
            matrix = self.target_embedding.embeddings
            if self.lexical:
                matrix = ops.concatenate([ops.convert_to_tensor(x) for x in (matrix, self.lexical_output)], axis=1)
            return matrix, self.output_bias
        return ops.transpose(self.output_layer.kernel), self.output_layer.bias

    def _encode(self, x, training=None):
        """Memory [B, S, M] (of a fixed context [B, M] or None), its mask [B, S] (None) and a summary [B, M]."""
        states, mask = self._read_source(x)
        if self.source_embedding is not None or not self.encoders:
            states = self.dropout_layer(states, training=training)
        words = states
        summary = None if self.encoders else _mean(states, mask)
        for encoder in self.encoders:
            states, *last = encoder(states, mask=mask)
            states = self.dropout_layer(states, training=training)
        if summary is None:
            hidden = last[:: 2 if self.cell == "lstm" else 1]  # of each direction
            summary = hidden[0] if len(hidden) == 1 else ops.concatenate(hidden, axis=-1)
        if self.decoder.attention is not None:
            return (ops.concatenate([states, words], axis=-1) if self.lexical else states), mask, summary
        return (summary if self.context == "every_step" else None), None, summary

    def _read_source(self, x):
        """Embedded source [B, S, E] (or features [B, S, F]) and its mask [B, S]."""
        source, mask = read_source(self, x)
        return (source if self.source_embedding is None else self.source_embedding(source)), mask

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x):
        """What stays constant while decoding: projected keys, values and mask of the source, first state; "output".

        Args:
            x: a dict with "source", ids [B, S] or features [B, S, F], and, optionally, "source_mask" [B, S].
        """
        check_input(self, x, ("source",))
        memory, mask, summary = self._encode(x, training=False)
        first = self.decoder.begin(self.bridge(summary))
        return {**self.decoder.prepare(memory, mask), "first_state": first, **self.output_memory()}

    def initial_state(self, memory, max_length=None, beam_width=1):
        """The first tokens [N] and the state of N = B*W hypotheses; an RNN needs no buffer of max_length."""
        state = ops.repeat(memory["first_state"], beam_width, axis=0)
        tokens = ops.full((ops.shape(state)[0],), START, dtype="int32")
        return tokens, {"hidden": state}

    def step(self, tokens, position, memory, state):
        """Logits [N, V], new state and attention [N, S] (or None) after tokens [N]; position is not needed."""
        embedded = self.target_embedding(tokens[:, None])[:, 0]
        features, hidden, attention = self.decoder.step(embedded, state["hidden"], memory)
        return self.logits(features, memory), {"hidden": hidden}, attention

    def get_config(self):
        names = ("units", "embedding_width", "encoder_layers", "decoder_layers", "cell", "bidirectional", "order")
        names += ("context", "context_gate", "lexical", "dropout", "tie_embeddings", "source_width")
        names += ("max_source_length", "source_vocabulary", "target_vocabulary")
        layers = {
            "attention": self.decoder.attention,
            "source_embedding": self.source_embedding if self._given[0] else None,
            "target_embedding": self.target_embedding if self._given[1] else None,
        }
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            **{k: None if layer is None else keras.saving.serialize_keras_object(layer) for k, layer in layers.items()},
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("attention", "source_embedding", "target_embedding"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _attention_layer(attention, units, longest, policy):
    """The layer that a name stands for; layers and None stay."""
    if not isinstance(attention, str):
        return attention
    if attention not in ATTENTIONS:
        raise ValueError(
            f"Seq2Seq expects attention to be one of {', '.join(ATTENTIONS)}, a layer or None. "
            f"Received: attention={attention!r}"
        )
    if attention == "location" and longest is None:
        raise ValueError("Seq2Seq expects max_source_length for attention='location': one weight for each position.")
    return ATTENTIONS[attention](units, longest, policy)


def _mean(states, mask):
    """The mean [B, M] of the states [B, S, M] that the mask [B, S] shows; 0 of none."""
    shown = ops.cast(mask, states.dtype)[:, :, None]
    return ops.sum(states * shown, axis=1) / ops.maximum(ops.sum(shown, axis=1), 1)


def _built_shape(layer, shape):
    """Builds an embedding where needed and returns what it makes of a shape."""
    if not layer.built:
        layer.build(shape)
    return tuple(layer.compute_output_shape(shape))


def _check_arguments(units, encoder_layers, bidirectional, cell, context, lexical, attention):
    if encoder_layers < 0:
        raise ValueError(f"Seq2Seq expects 0 or more encoder layers. Received: encoder_layers={encoder_layers}")
    if units < 1 or bidirectional and units % 2:
        raise ValueError(
            "Seq2Seq expects an even number of units, half for each direction of a bidirectional encoder. "
            f"Received: units={units}"
        )
    if lexical and (encoder_layers == 0 or attention is None or attention in ONE_WIDTH):
        raise ValueError(
            "Seq2Seq expects an encoder and attention for lexical=True, and keys that may be wider than queries (not "
            f"{', '.join(ONE_WIDTH)}). Received: encoder_layers={encoder_layers}, attention={attention!r}"
        )
    for name, value, known in (("cell", cell, RNNS), ("context", context, CONTEXTS)):
        if value not in known:
            raise ValueError(f"Seq2Seq expects {name} to be one of {', '.join(known)}. Received: {name}={value!r}")


def _check_tied(embedding, shape):
    found = getattr(embedding, "embeddings", None)
    if found is None or tuple(found.shape) != shape:
        raise ValueError(
            f"tie_embeddings=True needs a target_embedding with a matrix `embeddings` of shape {shape}; "
            f"received {embedding.name!r} with {None if found is None else tuple(found.shape)}. "
            "Set tie_embeddings=False."
        )
