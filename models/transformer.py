"""The Transformer of Vaswani et al. 2017, encoder and decoder, from the blocks of keras_attention."""

import keras
from keras import ops

from keras_attention import (
    ALiBi,
    PositionEmbedding,
    RelativeBias,
    RotaryEmbedding,
    SinusoidalEncoding,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    cache,
)
from keras_attention.dropout import Dropout
from keras_attention.masks import zero_masked
from keras_attention.transformer import normalization as normalization_layer

from .token_model import TokenModel, check_input, check_source_arguments, read_source
from .tokenizers import PAD, START

ADDED = ("sinusoidal", "learned")  # positions that are added to the embeddings
INSIDE = ("rotary", "alibi", "relative")  # those that act inside of self-attention
POSITIONS = (*ADDED, *INSIDE)


@keras.saving.register_keras_serializable(package="keras_attention")
class Transformer(TokenModel):
    """A Transformer: ids (or features) in, logits out.

    Train it with plain Keras on x = {"source": [B, S] ids or [B, S, F] features, "target": [B, T], START first} and
    y = [B, T], the target one step on. PAD = 0 is masked in source ids and target; features come with "source_mask"
    [B, S]. Generate with `Pipeline(model)` or the functions of `keras_attention.models.decoding`, which use `encode`,
    `initial_state` and `step`: the source is processed once, each step feeds one token, with a cache.

    `Transformer.tiny(...)`, `.small(...)`, `.base(...)` and `.big(...)` have the sizes of the papers and take the same
    arguments.

    Args:
        source_vocabulary: number of source ids; None for features, and then `source_width` is their F.
        target_vocabulary: V, number of target ids.
        width: D, of embeddings and all layers.
        num_heads: H; each is D / H wide.
        feed_forward_units: width of the feed-forward networks' hidden layer.
        encoder_layers, decoder_layers: number of blocks; without an encoder's the decoder attends to the embeddings
            (or to the features, D wide) themselves.
        dropout: share dropped of the embeddings and of each sublayer's output in training.
        attention_dropout, activation_dropout, activation, gated, normalization, normalize_first, num_key_value_heads,
            use_bias: of the blocks, see `TransformerEncoderBlock`. Pre-norm stacks end with one more normalization.
        position: "sinusoidal" or "learned", added to the embeddings; "rotary", "alibi" or "relative" (T5), inside of
            self-attention; None for none.
        max_length: number of learned positions.
        share_embeddings: one matrix for source and target, which then have one vocabulary.
        tie_embeddings: the output layer uses the target embeddings' matrix (Press and Wolf 2017).
        alignment_layer: the decoder layer whose cross-attention, averaged over its heads, `step` returns; the last
            but one (Garg et al. 2019) if None.
        source_width: F, where the source is features; a dense layer makes them D wide.
        source_embedding: any Keras layer in place of the source's embeddings or dense layer, giving [B, S, D]; its
            output, too, is multiplied by sqrt(D).

    Call arguments:
        x: a dict of "source", "target" ids [B, T] and, optionally, "source_mask" [B, S].
        return_attention_scores: also return the weights.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, the pair (logits, weights), weights a dict of lists with one
        entry a layer: "encoder" [B, H, S, S], "decoder" [B, H, T, T] and "cross" [B, H, T, S].

    Example:

    >>> model = Transformer(source_vocabulary=11, target_vocabulary=11, width=8, num_heads=2, feed_forward_units=16)
    >>> x = {"source": ops.array([[5, 6, 7]]), "target": ops.array([[2, 4]])}
    >>> logits, weights = model(x, return_attention_scores=True)
    >>> tuple(logits.shape), [tuple(layer.shape) for layer in weights["cross"]][-1]
    ((1, 2, 11), (1, 2, 2, 3))

    References:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Wu et al. 2021, https://arxiv.org/abs/2105.14462 (tiny
        and small); Garg et al. 2019, https://arxiv.org/abs/1909.02074, section 4.1 (which layer aligns).
    """

    def __init__(
        self,
        source_vocabulary,
        target_vocabulary,
        width=512,
        num_heads=8,
        feed_forward_units=2048,
        encoder_layers=6,
        decoder_layers=6,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation="relu",
        gated=False,
        normalization="layer",
        normalize_first=False,
        num_key_value_heads=None,
        use_bias=True,
        position="sinusoidal",
        max_length=1024,
        share_embeddings=False,
        tie_embeddings=True,
        alignment_layer=None,
        source_width=None,
        source_embedding=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_arguments(position, source_vocabulary, target_vocabulary, share_embeddings)
        if encoder_layers < 0 or decoder_layers < 1:
            raise ValueError(
                "Transformer expects at least 1 decoder layer, and 0 or more of the encoder. Received: "
                f"{encoder_layers=}, {decoder_layers=}"
            )
        if share_embeddings and source_embedding is not None:
            raise ValueError("Transformer expects share_embeddings or a source_embedding. Received: both")
        if alignment_layer is not None and not 0 <= alignment_layer < decoder_layers:
            raise ValueError(
                f"Transformer expects alignment_layer to be one of its decoder's layers, 0 to {decoder_layers - 1}. "
                f"Received: {alignment_layer=}"
            )
        check_source_arguments(self, source_vocabulary, source_width)
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.width = width
        self.num_heads = num_heads
        self.feed_forward_units = feed_forward_units
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.activation = activation
        self.gated = gated
        self.normalization = normalization
        self.normalize_first = normalize_first
        self.num_key_value_heads = num_key_value_heads
        self.use_bias = use_bias
        self.position = position
        self.max_length = max_length
        self.share_embeddings = share_embeddings
        self.tie_embeddings = tie_embeddings
        self.alignment_layer = max(decoder_layers - 2, 0) if alignment_layer is None else alignment_layer
        self.source_width = source_width
        self._given = source_embedding
        policy = {"dtype": self.dtype_policy}
        self.target_embedding = self._embedding(target_vocabulary, "target_embedding")
        self.source_embedding = source_embedding or self._source_embedding()
        self.source_position = self._added_position("source_position")
        self.target_position = self._added_position("target_position")
        self.encoder = [self._block(TransformerEncoderBlock, f"encoder_{i}") for i in range(encoder_layers)]
        self.decoder = [self._block(TransformerDecoderBlock, f"decoder_{i}") for i in range(decoder_layers)]
        if normalize_first:
            self.encoder_norm, self.decoder_norm = (
                normalization_layer(normalization, name=f"{side}_norm", **policy) for side in ("encoder", "decoder")
            )
        self.dropout_layer = Dropout(dropout, **policy)
        if not tie_embeddings:
            self.output_layer = keras.layers.Dense(target_vocabulary, use_bias=False, name="output", **policy)
        self.build()

    @property
    def max_source_length(self):
        """The longest source, in positions; None for no limit."""
        return self.max_length if self.position == "learned" else None

    max_target_length = max_source_length

    # The papers' sizes.

    @classmethod
    def tiny(cls, source_vocabulary, target_vocabulary, **options):
        """4 + 4 layers, D 128, 4 heads, 256 feed-forward units (Wu et al. 2021)."""
        sizes = {"width": 128, "num_heads": 4, "feed_forward_units": 256, "encoder_layers": 4, "decoder_layers": 4}
        return cls(source_vocabulary, target_vocabulary, **{**sizes, **options})

    @classmethod
    def small(cls, source_vocabulary, target_vocabulary, **options):
        """6 + 6 layers, D 512, 4 heads, 1,024 feed-forward units (Wu et al. 2021)."""
        return cls(source_vocabulary, target_vocabulary, **{"num_heads": 4, "feed_forward_units": 1024, **options})

    @classmethod
    def base(cls, source_vocabulary, target_vocabulary, **options):
        """6 + 6 layers, D 512, 8 heads, 2,048 feed-forward units (Vaswani et al. 2017)."""
        return cls(source_vocabulary, target_vocabulary, **options)

    @classmethod
    def big(cls, source_vocabulary, target_vocabulary, **options):
        """6 + 6 layers, D 1,024, 16 heads, 4,096 feed-forward units (Vaswani et al. 2017)."""
        sizes = {"width": 1024, "num_heads": 16, "feed_forward_units": 4096, "dropout": 0.3}
        return cls(source_vocabulary, target_vocabulary, **{**sizes, **options})

    # Its parts.

    def _embedding(self, vocabulary, name):
        # Multiplied by sqrt(D) below, its entries have a variance of 1; as output matrix they keep logits small.
        initializer = keras.initializers.RandomNormal(stddev=self.width**-0.5)
        return keras.layers.Embedding(vocabulary, self.width, initializer, name=name, dtype=self.dtype_policy)

    def _source_embedding(self):
        if self.source_vocabulary is None:
            return keras.layers.Dense(self.width, name="source_embedding", dtype=self.dtype_policy)
        if self.share_embeddings:
            return self.target_embedding
        return self._embedding(self.source_vocabulary, "source_embedding")

    def _added_position(self, name):
        if self.position == "learned":
            return PositionEmbedding(self.max_length, name=name, dtype=self.dtype_policy)
        return SinusoidalEncoding(name=name, dtype=self.dtype_policy) if self.position == "sinusoidal" else None

    def _block(self, kind, name):
        bidirectional = kind is TransformerEncoderBlock
        inside = {
            "rotary": lambda: RotaryEmbedding(),
            "alibi": lambda: ALiBi(self.num_heads),
            "relative": lambda: RelativeBias(self.num_heads, bidirectional=bidirectional),
        }
        return kind(
            self.num_heads,
            self.feed_forward_units,
            num_key_value_heads=self.num_key_value_heads,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            activation_dropout=self.activation_dropout,
            activation=self.activation,
            gated=self.gated,
            normalization=self.normalization,
            normalize_first=self.normalize_first,
            use_bias=self.use_bias,
            position=inside[self.position]() if self.position in inside else None,
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape=None):
        if self.built:
            return
        ids, states = (None, None), (None, None, self.width)
        if not self.source_embedding.built:
            self.source_embedding.build(ids if self.source_vocabulary is not None else (*ids, self.source_width))
        if not self.target_embedding.built:
            self.target_embedding.build(ids)
        for position in (self.source_position, self.target_position):
            if position is not None:
                position.build(states)
        for block in self.encoder:
            block.build(states)
        for block in self.decoder:
            block.build(states, states)
        if self.normalize_first:
            self.encoder_norm.build(states)
            self.decoder_norm.build(states)
        if not self.tie_embeddings:
            self.output_layer.build(states)
        self.built = True

    # The full pass.

    def features(self, x, return_attention_scores=False, training=None):
        """The decoder's output [B, T, D]; with `return_attention_scores`, also the weights, see the class."""
        check_input(self, x, ("source", "target"))
        states, mask, hidden, encoder_weights = self._encode(x, return_attention_scores, training)
        states = zero_masked(states, mask)
        target = ops.convert_to_tensor(x["target"])
        real = target != PAD
        x = self._embed(self.target_embedding(target), self.target_position, training)
        given = {"query_mask": real, "memory_mask": mask, "training": training}
        weights = {"encoder": encoder_weights, "decoder": [], "cross": []}
        for block in self.decoder:
            x = block(x, states, return_attention_scores=return_attention_scores, **given)
            if return_attention_scores:
                x, found = x
                weights["decoder"].append(found["self_attention"])
                weights["cross"].append(found["cross_attention"])
        x = self.decoder_norm(x) if self.normalize_first else x
        return (x, weights) if return_attention_scores else x

    def output_weights(self):
        matrix = self.target_embedding.embeddings if self.tie_embeddings else ops.transpose(self.output_layer.kernel)
        return matrix, None

    def _embed(self, x, position, training=None, offset=0):
        """Embeddings [B, L, D] scaled by sqrt(D), with their positions, after dropout."""
        x = x * self.width**0.5
        x = x if position is None else position(x, offset=offset)
        return self.dropout_layer(x, training=training)

    def _encode(self, x, return_attention_scores=False, training=None):
        """States [B, S, D], their mask [B, S], the embeddings and each layer's output, and each layer's weights."""
        source, mask = read_source(self, x)
        embedded = self.source_embedding(source)
        if embedded.shape[-1] != self.width:
            raise ValueError(
                f"Transformer expects a source_embedding of width {self.width}. Received: one that gives "
                f"{embedded.shape[-1]}"
            )
        states = self._embed(embedded, self.source_position, training)
        hidden, weights = [states], []
        for block in self.encoder:
            states = block(states, query_mask=mask, return_attention_scores=return_attention_scores, training=training)
            if return_attention_scores:
                states, found = states
                weights.append(found)
            hidden.append(states)
        return (self.encoder_norm(states) if self.normalize_first else states), mask, hidden, weights

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x, return_hidden_states=False):
        """What stays constant while decoding: each decoder layer's keys and values of the source, axis B, and "output".

        Args:
            x: a dict with "source", ids [B, S] or features [B, S, F], and, optionally, "source_mask" [B, S].
            return_hidden_states: also return a list of the embeddings and every encoder layer's output, [B, S, D].
        """
        check_input(self, x, ("source",))
        states, mask, hidden, _ = self._encode(x, training=False)
        memory = {"layers": [block.project_memory(states, mask) for block in self.decoder], **self.output_memory()}
        return (memory, hidden) if return_hidden_states else memory

    def initial_state(self, memory, max_length, beam_width=1):
        """The first tokens [N] and the empty caches of N = B*W hypotheses, of `max_length` tokens."""
        count = ops.shape(memory["layers"][0]["mask"])[0] * beam_width
        tokens = ops.full((count,), START, dtype="int32")
        return tokens, {"layers": [block.initial_cache(count, max_length) for block in self.decoder]}

    def room(self, memory):
        """How many tokens may be written for each source, [B]: as many as there are learned positions; else None."""
        if self.max_target_length is None:
            return None
        return ops.full((ops.shape(memory["layers"][0]["mask"])[0],), self.max_target_length, dtype="int32")

    def grow(self, state, max_length):
        """The state with caches of `max_length` tokens, at least as many as they have room for."""
        return {**state, "layers": [cache.grow(layer, max_length) for layer in state["layers"]]}

    def step(self, tokens, position, memory, state):
        """Logits [N, V], new state and attention [N, S] after tokens [N], which stand at `position`."""
        x = self._embed(self.target_embedding(tokens[:, None]), self.target_position, offset=position)
        caches = []
        for number, block in enumerate(self.decoder):
            given = {"cache": state["layers"][number], "cache_update_index": position}
            aligned = number == self.alignment_layer
            x, *weights, grown = block(x, memory["layers"][number], return_attention_scores=aligned, **given)
            caches.append(grown)
            if aligned:
                attention = ops.mean(weights[0]["cross_attention"][:, :, 0], axis=1)
        x = self.decoder_norm(x) if self.normalize_first else x
        return self.logits(x[:, 0], memory), {"layers": caches}, attention

    def get_config(self):
        names = ("source_vocabulary", "target_vocabulary", "width", "num_heads", "feed_forward_units", "gated")
        names += ("encoder_layers", "decoder_layers", "dropout", "attention_dropout", "activation_dropout")
        names += ("activation", "normalization", "normalize_first", "num_key_value_heads", "use_bias", "position")
        names += ("max_length", "share_embeddings", "tie_embeddings", "alignment_layer", "source_width")
        given = None if self._given is None else keras.saving.serialize_keras_object(self._given)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}, "source_embedding": given}

    @classmethod
    def from_config(cls, config):
        if isinstance(config.get("source_embedding"), dict):
            embedding = keras.saving.deserialize_keras_object(config["source_embedding"])
            config = {**config, "source_embedding": embedding}
        return cls(**config)


def _check_arguments(position, source_vocabulary, target_vocabulary, share_embeddings):
    if position is not None and position not in POSITIONS:
        raise ValueError(
            f"Transformer expects position to be one of {', '.join(POSITIONS)}, or None. Received: {position=}"
        )
    if share_embeddings and source_vocabulary != target_vocabulary:
        raise ValueError(
            "share_embeddings=True expects one vocabulary for source and target. Received: "
            f"{source_vocabulary=}, {target_vocabulary=}"
        )
