"""The decoder-only language model of Radford et al. 2018 and 2019, from the blocks of keras_attention."""

import keras
from keras import ops

from keras_attention import ALiBi, PositionEmbedding, RelativeBias, RotaryEmbedding, TransformerDecoderBlock, cache
from keras_attention.dropout import Dropout
from keras_attention.transformer import normalization as normalization_layer

from .token_model import TokenModel, check_input
from .tokenizers import PAD, START

POSITIONS = ("learned", "rotary", "alibi", "relative")
# width, num_heads, layers, max_length
SIZES = {
    "nano": (48, 3, 3, 64),
    "micro": (128, 4, 4, 64),
    "mini": (192, 6, 6, 256),
    "small": (384, 6, 6, 256),
    "gpt": (768, 12, 12, 512),
    "gpt2": (768, 12, 12, 1024),
    "gpt2_medium": (1024, 16, 24, 1024),
    "gpt2_large": (1280, 20, 36, 1024),
    "gpt2_xl": (1600, 25, 48, 1024),
    "gpt3": (12288, 96, 96, 2048),
}


@keras.saving.register_keras_serializable(package="keras_attention")
class LanguageModel(TokenModel):
    """A decoder-only Transformer: ids in, for each of them the logits of the next one out.

    Train it with plain Keras on x = {"target": [B, T]} and y = [B, T], the target one step on; PAD = 0 is masked and
    carries no weight. Generate with `Pipeline(model)` or the functions of `keras_attention.models.decoding`: a prompt
    is processed once, all of its tokens together, each step then feeds one token, with a cache.

    A prompt without any token begins with START. The context ends: prompt and continuation together have `max_length`
    tokens at most, where every search stops. `Pipeline.stream` goes on from the last half of a context that is full.

    `LanguageModel.preset("gpt2", vocabulary)` has the sizes of a known model: nano, micro and mini (minGPT's; micro is
    nanoGPT's configuration for a CPU), small (nanoGPT's for one GPU), gpt, gpt2, gpt2_medium, gpt2_large, gpt2_xl
    and gpt3.

    Args:
        vocabulary: V, number of ids.
        width: D, of embeddings and all layers.
        num_heads: H; each is D / H wide.
        layers: number of blocks.
        feed_forward_units: width of the feed-forward networks' hidden layer; 4 D if None.
        dropout: share dropped of the embeddings and of each sublayer's output in training.
        attention_dropout, activation_dropout, activation, gated, normalization, normalize_first, num_key_value_heads,
            use_bias: of the blocks, see `TransformerDecoderBlock`. Pre-norm stacks end with one more normalization.
        position: "learned", added to the embeddings; "rotary", "alibi" or "relative", inside of the attention; None
            for none.
        max_length: the context, in tokens: the number of learned positions; of other positions, which have no end of
            their own, None for none. What lies beyond the lengths that training has shown is seldom good.
        tie_embeddings: the output layer uses the embeddings' matrix (Press and Wolf 2017).
        alignment_layer: the layer whose weights, averaged over its heads, `step` returns; the last one if None.

    Call arguments:
        x: a dict of "target", ids [B, T].
        return_attention_scores: also return the weights.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, the pair (logits, weights), weights a dict of "decoder", a
        list with [B, H, T, T] for each layer.

    Example:

    >>> model = LanguageModel(vocabulary=11, width=8, num_heads=2, layers=1, max_length=16)
    >>> logits, weights = model({"target": ops.array([[5, 6, 7]])}, return_attention_scores=True)
    >>> tuple(logits.shape), tuple(weights["decoder"][0].shape)
    ((1, 3, 11), (1, 2, 3, 3))

    References:
        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; Radford et al. 2019,
        "Language Models are Unsupervised Multitask Learners", section 2.3 (pre-norm, GPT-2's sizes); Brown et al. 2020,
        https://arxiv.org/abs/2005.14165, table 2.1 (GPT-3's).
    """

    reads_prompts = True  # what it is given is the beginning of what it writes

    def __init__(
        self,
        vocabulary,
        width=768,
        num_heads=12,
        layers=12,
        feed_forward_units=None,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation="gelu",
        gated=False,
        normalization="layer",
        normalize_first=True,
        num_key_value_heads=None,
        use_bias=True,
        position="learned",
        max_length=1024,
        tie_embeddings=True,
        alignment_layer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_arguments(vocabulary, layers, position, max_length, alignment_layer)
        self.vocabulary = vocabulary
        self.width = width
        self.num_heads = num_heads
        self.num_layers = layers
        self.feed_forward_units = 4 * width if feed_forward_units is None else feed_forward_units
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
        self.tie_embeddings = tie_embeddings
        self.alignment_layer = layers - 1 if alignment_layer is None else alignment_layer
        policy = {"dtype": self.dtype_policy}
        small = keras.initializers.RandomNormal(stddev=0.02)
        self.embedding = keras.layers.Embedding(vocabulary, width, small.clone(), name="embedding", **policy)
        self.added_position = None
        if position == "learned":
            self.added_position = PositionEmbedding(max_length, small.clone(), name="position", **policy)
        self.blocks = [self._block(f"block_{number}") for number in range(layers)]
        self.final_norm = None
        if normalize_first:
            self.final_norm = normalization_layer(normalization, name="final_norm", **policy)
        self.dropout_layer = Dropout(dropout, **policy)
        if not tie_embeddings:
            self.output_layer = keras.layers.Dense(vocabulary, use_bias=False, name="output", **policy)
        self.build()

    @classmethod
    def preset(cls, size, vocabulary, **options):
        """A model of a known size, such as "gpt2"; other arguments as in the constructor."""
        if size not in SIZES:
            raise ValueError(f"LanguageModel.preset expects a size of {', '.join(SIZES)}. Received: {size!r}")
        names = ("width", "num_heads", "layers", "max_length")
        return cls(vocabulary, **{**dict(zip(names, SIZES[size], strict=True)), **options})

    @property
    def source_vocabulary(self):
        """V: a prompt has the ids of what is written."""
        return self.vocabulary

    target_vocabulary = source_vocabulary

    @property
    def max_source_length(self):
        """The longest prompt, and the most tokens of prompt and continuation together; None for no limit."""
        return self.max_length

    def _block(self, name):
        inside = {
            "rotary": lambda: RotaryEmbedding(),
            "alibi": lambda: ALiBi(self.num_heads),
            "relative": lambda: RelativeBias(self.num_heads, bidirectional=False),
        }
        return TransformerDecoderBlock(
            self.num_heads,
            self.feed_forward_units,
            cross_attention=False,
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
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape=None):
        if self.built:
            return
        states = (None, None, self.width)
        self.embedding.build((None, None))
        if self.added_position is not None:
            self.added_position.build(states)
        for block in self.blocks:
            block.build(states)
        if self.normalize_first:
            self.final_norm.build(states)
        if not self.tie_embeddings:
            self.output_layer.build(states)
        self.built = True

    # The full pass.

    def features(self, x, return_attention_scores=False, training=None):
        """The last layer's output [B, T, D]; with `return_attention_scores`, also the weights, see the class."""
        check_input(self, x, ("target",))
        ids = ops.convert_to_tensor(x["target"])
        _check_ids(self, "target", ids)
        x, weights = self._embed(ids, training=training), []
        given = {"query_mask": ids != PAD, "training": training, "return_attention_scores": return_attention_scores}
        for block in self.blocks:
            x = block(x, **given)
            if return_attention_scores:
                x, found = x
                weights.append(found["self_attention"])
        x = x if self.final_norm is None else self.final_norm(x)
        return (x, {"decoder": weights}) if return_attention_scores else x

    def output_weights(self):
        matrix = self.embedding.embeddings if self.tie_embeddings else ops.transpose(self.output_layer.kernel)
        return matrix, None

    def _embed(self, ids, positions=None, training=None):
        """Embeddings [B, L, D] with their positions, after dropout."""
        x = self.embedding(ids)
        x = x if self.added_position is None else self.added_position(x, positions=positions)
        return self.dropout_layer(x, training=training)

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x):
        """Keys and values of each prompt without its last token, which is the first one fed. Axis B.

        Args:
            x: a dict with "source", ids [B, S]: the prompts, padded behind their end. An empty one is START alone. One
                that is longer than `max_source_length` has no room for an answer, and with learned positions all of
                its logits are NaN.
        """
        check_input(self, x, ("source",))
        ids = ops.convert_to_tensor(x["source"])
        _check_ids(self, "source", ids)
        ids = started(ids)
        batch, length = ops.shape(ids)
        places = ops.arange(length, dtype="int32")[None]
        last = ops.max(ops.where(ids != PAD, places, 0), axis=1, keepdims=True)  # [B, 1]
        before = ops.logical_and(ids != PAD, places < last)
        x, layers = self._embed(ids, self._learned(places)), []
        if self.added_position is not None:
            x = ops.where((last < self.max_length)[:, :, None], x, ops.cast(float("nan"), x.dtype))
        for block in self.blocks:
            empty = block.initial_cache(batch, length)
            x, prefix = block(x, query_mask=before, cache=empty, cache_update_index=0)
            layers.append(prefix)
        first = ops.take_along_axis(ids, ops.cast(last, ids.dtype), axis=1)
        return {"layers": layers, "tokens": ops.cast(first, "int32"), "positions": last, **self.output_memory()}

    def initial_state(self, memory, max_length, beam_width=1):
        """Each prompt's last token, for N = B*W hypotheses, and their empty caches of `max_length` tokens."""
        tokens = ops.repeat(memory["tokens"][:, 0], beam_width, axis=0)
        count = ops.shape(memory["tokens"])[0] * beam_width
        return tokens, {"layers": [block.initial_cache(count, max_length) for block in self.blocks]}

    def room(self, memory):
        """How many tokens the context still takes behind each prompt, [B], the last of which is not read any more; None
        without an end."""
        return None if self.max_length is None else self.max_length - memory["positions"][:, 0]

    def grow(self, state, max_length):
        """The state with caches of `max_length` tokens, at least as many as they have room for."""
        return {**state, "layers": [cache.grow(layer, max_length) for layer in state["layers"]]}

    def step(self, tokens, position, memory, state):
        """Logits [N, V], new state and attention [N, S + max_length] after tokens [N], the number `position` of each.

        The first S columns of the attention are those of the prompts without their last tokens, the others those of
        what was fed: a prompt's last token, then what was written.
        """
        x = self._embed(tokens[:, None], self._positions(tokens, position, memory))
        caches = []
        for number, block in enumerate(self.blocks):
            given = {"cache": {**state["layers"][number], "prefix": memory["layers"][number]}}
            aligned = number == self.alignment_layer
            x, *weights, grown = block(x, cache_update_index=position, return_attention_scores=aligned, **given)
            caches.append({name: grown[name] for name in cache.PARTS})
            if aligned:
                attention = ops.mean(weights[0]["self_attention"][:, :, 0], axis=1)
        x = x if self.final_norm is None else self.final_norm(x)
        return self.logits(x[:, 0], memory), {"layers": caches}, attention

    def _positions(self, tokens, position, memory):
        """Where the tokens [N] stand, [N, 1], counted from each prompt's begin."""
        batch = ops.shape(memory["positions"])[0]
        positions = ops.reshape(ops.cast(tokens, "int32"), (batch, -1)) * 0 + memory["positions"] + position
        return self._learned(ops.reshape(positions, (-1, 1)))

    def _learned(self, positions):
        """Positions within those that are learned: padding stands beyond them, and rows that have come to the end of
        their context and are stepped on with the others."""
        return None if self.added_position is None else ops.minimum(positions, self.max_length - 1)

    def get_config(self):
        names = ("vocabulary", "width", "num_heads", "feed_forward_units", "dropout", "attention_dropout", "gated")
        names += ("activation_dropout", "activation", "normalization", "normalize_first", "num_key_value_heads")
        names += ("use_bias", "position", "max_length", "tie_embeddings", "alignment_layer")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "layers": self.num_layers,
        }


def started(ids):
    """Prompts [B, S], S at least 1, with START in the place of nothing."""
    empty = ops.logical_not(ops.any(ids != PAD, axis=1, keepdims=True))
    first = ops.arange(ops.shape(ids)[1])[None] == 0
    return ops.where(ops.logical_and(empty, first), ops.cast(START, ids.dtype), ids)


def _check_ids(model, name, ids):
    if len(ids.shape) != 2:
        raise ValueError(
            f"{type(model).__name__} expects {name} ids of shape [batch, length]. Received: shape {tuple(ids.shape)}"
        )


def _check_arguments(vocabulary, layers, position, max_length, alignment_layer):
    for name, value in (("vocabulary", vocabulary), ("layers", layers)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"LanguageModel expects {name} to be a positive integer. Received: {name}={value!r}")
    if position is not None and position not in POSITIONS:
        raise ValueError(
            f"LanguageModel expects position to be one of {', '.join(POSITIONS)}, or None. Received: {position=}"
        )
    if max_length is None and position == "learned" or max_length is not None and max_length < 1:
        raise ValueError(
            "LanguageModel expects max_length to be a positive integer, or None with positions that are not learned. "
            f"Received: {max_length=}, {position=}"
        )
    if alignment_layer is not None and not 0 <= alignment_layer < layers:
        raise ValueError(
            f"LanguageModel expects alignment_layer to be one of its layers, 0 to {layers - 1}. Received: "
            f"{alignment_layer=}"
        )
