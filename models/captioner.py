"""Images to captions: any Keras backbone gives a grid of features, and a decoder attends to its cells."""

import keras
from keras import ops

from keras_attention.masks import at_least_float32

from .token_model import TokenModel, check_input


@keras.saving.register_keras_serializable(package="keras_attention")
class ImageCaptioner(TokenModel):
    """A backbone that sees and a decoder that attends to what it sees: images in, logits of captions out.

    The grid of features [B, h, w, C] is the source of the decoder, row by row, S = h*w. With a Seq2Seq of
    `encoder_layers=0` and `context_gate=True` it is the network of Show, Attend and Tell: the first state comes from
    the mean of the features, and a scalar of the state scales each context. With a Transformer, its encoder lets the
    cells look at each other.

    Train it with plain Keras on x = {"image": [B, height, width, 3], "target": [B, T], START first} and y = [B, T], the
    target one step on. What `grid` once made of the images may stand in their place, {"source": [B, S, C]}: with a
    frozen backbone that saves its work in all epochs but the first.

    Args:
        backbone: a Keras model from images [B, height, width, 3], numbers from 0 to 255, to a grid of features
            [B, h, w, C]. With `backbone.trainable = False` it is frozen, its batch normalisation too.
        decoder: a `Seq2Seq` or `Transformer` with source_vocabulary=None and source_width=C.
        image_size: (height, width) that images are given in; those of a pipeline are resized to it.
        doubly_stochastic: lambda of Xu et al. 2015, equation 14: adds lambda * sum over cells of (1 - sum over steps of
            the weights)^2 to the loss, the mean of the rows, so that every cell is looked at. 0 for none. The paper
            adds it, with lambda 1, to the sum over a caption's words; a loss that is their mean takes 1 / T for that.

    Call arguments:
        x: a dict of "image" (or "source") and "target" ids [B, T]; or [B * k, T], k captions of every image, one
            behind the other, for which the backbone is run once (not where tf.distribute splits batches).
        return_attention_scores: also return the decoder's weights.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, (logits, weights) as the decoder gives them.

    Example:

    >>> from keras_attention.models import Seq2Seq
    >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 4, strides=4)])
    >>> decoder = Seq2Seq(None, 13, units=8, encoder_layers=0, context_gate=True, source_width=6)
    >>> model = ImageCaptioner(backbone, decoder, image_size=(8, 8))
    >>> x = {"image": ops.ones((1, 8, 8, 3)), "target": ops.array([[2, 4]])}
    >>> logits, weights = model(x, return_attention_scores=True)
    >>> tuple(logits.shape), tuple(weights.shape), model.grid_size
    ((1, 2, 13), (1, 2, 4), (2, 2))

    References:
        Xu et al. 2015, https://arxiv.org/abs/1502.03044, sections 3.1.2 and 4.2.
    """

    def __init__(self, backbone, decoder, image_size, doubly_stochastic=0.0, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.decoder = decoder
        self.image_size = tuple(image_size)
        self.doubly_stochastic = doubly_stochastic
        self.grid_size, width = self._grid_shape()
        if getattr(decoder, "source_width", None) != width:
            raise ValueError(
                f"ImageCaptioner expects a decoder of the backbone's features: source_vocabulary=None, "
                f"source_width={width}. Received: source_width={getattr(decoder, 'source_width', None)}"
            )
        self.source_vocabulary = None
        self.target_vocabulary = decoder.target_vocabulary
        self.built = True

    def _grid_shape(self):
        """(h, w) and C of the backbone's grid."""
        if len(self.image_size) != 2:
            raise ValueError(f"ImageCaptioner expects image_size=(height, width). Received: {self.image_size}")
        shape = tuple(self.backbone(ops.zeros((1, *self.image_size, 3))).shape)  # which builds it, too
        if len(shape) != 4:
            raise ValueError(
                "ImageCaptioner expects a backbone that gives a grid of features [B, h, w, C] (include_top=False, no "
                f"pooling). Received: one that makes {shape} of one image of size {self.image_size}"
            )
        return shape[1:3], shape[3]

    @property
    def max_target_length(self):
        """The longest caption, in tokens; None for no limit."""
        return getattr(self.decoder, "max_target_length", None)

    def grid(self, images, training=None):
        """The features [B, h*w, C] of images [B, height, width, 3], numbers from 0 to 255, row by row of the grid."""
        images = ops.convert_to_tensor(images)
        if tuple(images.shape[1:]) != (*self.image_size, 3):
            raise ValueError(
                f"ImageCaptioner expects images [B, {self.image_size[0]}, {self.image_size[1]}, 3]. Received: "
                f"image.shape={tuple(images.shape)}"
            )
        grid = self.backbone(ops.cast(images, "float32"), training=training and self.backbone.trainable)
        return ops.reshape(
            ops.cast(grid, self.compute_dtype), (-1, self.grid_size[0] * self.grid_size[1], grid.shape[-1])
        )

    def _source(self, x, training=None):
        """The decoder's part of x, its source the grid."""
        check_input(self, x, () if "source" in x else ("image",))
        given = {name: x[name] for name in ("source", "source_mask", "target") if name in x}
        source = given if "source" in x else {"source": self.grid(x["image"], training), **given}
        if "target" not in x:
            return source
        each = {name: _for_each(array, x["target"]) for name, array in source.items() if name != "target"}
        return {**each, "target": x["target"]}

    def features(self, x, return_attention_scores=False, training=None):
        check_input(self, x, ("target",))
        source = self._source(x, training)
        if not (self.doubly_stochastic and training):
            return self.decoder.features(source, return_attention_scores=return_attention_scores, training=training)
        features, weights = self.decoder.features(source, return_attention_scores=True, training=training)
        self.add_loss(self.doubly_stochastic * _unevenness(self._alignment(weights)))
        return (features, weights) if return_attention_scores else features

    def _alignment(self, weights):
        """Weights [B, T, S] of what the decoder returned."""
        if weights is None:
            raise ValueError("doubly_stochastic is a term of the attention weights, and this decoder has no attention.")
        if not isinstance(weights, dict):
            return weights
        return ops.mean(weights["cross"][self.decoder.alignment_layer], axis=1)

    def output_weights(self):
        return self.decoder.output_weights()

    def output_memory(self):
        return self.decoder.output_memory()

    def laid_out(self, matrix):
        return self.decoder.laid_out(matrix)

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x):
        """The decoder's memory of x = {"image": [B, height, width, 3]} or {"source": [B, S, C]}."""
        return self.decoder.encode(self._source(x, training=False))

    def take_rows(self, memory, rows):
        """The decoder's."""
        return self.decoder.take_rows(memory, rows)

    def without_output(self, memory):
        """The decoder's."""
        return self.decoder.without_output(memory)

    def with_output(self, memory):
        """The decoder's."""
        return self.decoder.with_output(memory)

    def initial_state(self, memory, max_length, beam_width=1):
        """The decoder's."""
        return self.decoder.initial_state(memory, max_length, beam_width)

    def room(self, memory):
        """The decoder's: how many tokens may be written, [B], or None without an end."""
        return self.decoder.room(memory) if hasattr(self.decoder, "room") else None

    def grow(self, state, max_length):
        """The state with room for `max_length` tokens; an RNN's needs none."""
        return self.decoder.grow(state, max_length) if hasattr(self.decoder, "grow") else state

    def step(self, tokens, position, memory, state):
        """The decoder's."""
        return self.decoder.step(tokens, position, memory, state)

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "image_size": self.image_size,
            "doubly_stochastic": self.doubly_stochastic,
        }

    @classmethod
    def from_config(cls, config):
        layers = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("backbone", "decoder")}
        return cls(**{**config, **layers})


def _for_each(array, target):
    """The array [B, ...] with every row once for each of its k captions in target [B * k, T]."""
    array = ops.convert_to_tensor(array)
    (rows, *rest), captions = ops.shape(array), ops.shape(ops.convert_to_tensor(target))[0]
    if rows is None or captions is None or isinstance(rows, int) and rows == captions:  # None: symbolic
        return array
    if isinstance(rows, int) and isinstance(captions, int) and captions % max(rows, 1):
        raise ValueError(
            "ImageCaptioner expects as many captions as images, or k of each, one behind the other. Received: "
            f"{rows} images and target.shape={tuple(target.shape)}"
        )
    each = ops.broadcast_to(array[:, None], (rows, captions // ops.maximum(rows, 1), *rest))
    return ops.reshape(each, (captions, *rest))


def _unevenness(weights):
    """The mean over rows of sum over cells of (1 - sum over steps of the weights [B, T, S])^2; empty rows count not."""
    looked = ops.sum(at_least_float32(weights), axis=1)
    real = ops.cast(ops.any(looked > 0, axis=1), looked.dtype)
    return ops.sum(ops.sum(ops.square(1 - looked), axis=1) * real) / ops.maximum(ops.sum(real), 1)
