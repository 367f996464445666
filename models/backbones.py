"""Backbones: Keras models from images [B, height, width, 3], numbers from 0 to 255, to grids [B, h, w, C]."""

from pathlib import Path

import keras
from keras import ops

OWN = "small"
# Families of keras.applications by what they want of numbers from 0 to 255.
_FROM_MINUS_1_TO_1 = ("MobileNet", "Xception", "Inception", "NASNet", "ResNet50V2", "ResNet101V2", "ResNet152V2")
_AS_THEY_ARE = ("EfficientNet", "ConvNeXt", "MobileNetV3")


@keras.saving.register_keras_serializable(package="keras_attention")
class GridPosition(keras.layers.Layer):
    """Adds two channels to a grid [B, h, w, C]: how far down and how far right each cell lies, from -1 to 1.

    Example:

    >>> tuple(GridPosition()(ops.zeros((1, 2, 3, 4))).shape)
    (1, 2, 3, 6)

    References:
        Liu et al. 2018, https://arxiv.org/abs/1807.03247 (CoordConv).
    """

    def call(self, grid):
        batch, height, width, _ = ops.shape(grid)
        down = ops.broadcast_to(ops.linspace(-1.0, 1.0, height)[None, :, None, None], (batch, height, width, 1))
        right = ops.broadcast_to(ops.linspace(-1.0, 1.0, width)[None, None, :, None], (batch, height, width, 1))
        return ops.concatenate([grid, ops.cast(down, grid.dtype), ops.cast(right, grid.dtype)], axis=-1)

    def compute_output_shape(self, grid_shape):
        return (*grid_shape[:-1], None if grid_shape[-1] is None else grid_shape[-1] + 2)


def small(image_size, widths=(32, 64, 96)):
    """A network for drawings, learned from nothing: three convolutions with strides of 2, and where each cell lies.

    A cell sees about a quarter of 64 pixels, so that what it knows is what lies there.
    """
    layers = [keras.Input((*image_size, 3)), keras.layers.Rescaling(1 / 127.5, -1.0)]
    for width in widths:
        layers += [
            keras.layers.Conv2D(width, 5 if width == widths[0] else 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([*layers, GridPosition()], name=OWN)


def make_backbone(name, image_size, weights=None, layer=None, trainable=True, alpha=None):
    """A backbone by name.

    Args:
        name: "small", or a network of keras.applications, such as "MobileNet".
        image_size: (height, width).
        weights: the path of a .h5 file with the weights (without the top), or None for random ones. Nothing is
            downloaded.
        layer: the layer whose output is the grid; the last one if None.
        trainable: False to freeze it.
        alpha: the width multiplier of a MobileNet.

    Raises:
        ValueError: an unknown name or layer, or weights that do not fit.

    Example:

    >>> make_backbone("small", (64, 64)).output_shape
    (None, 8, 8, 98)
    """
    image_size = tuple(image_size)
    if name == OWN and (weights, layer, alpha) != (None, None, None):
        raise ValueError(
            f"The backbone {OWN} takes no weights, layer or alpha. Received: {weights=}, {layer=}, {alpha=}"
        )
    backbone = small(image_size) if name == OWN else _application(name, image_size, weights, layer, alpha)
    backbone.trainable = trainable
    return backbone


def _application(name, image_size, weights, layer, alpha):
    build = getattr(keras.applications, name, None)
    scaled = name.startswith(_FROM_MINUS_1_TO_1) and not name.startswith(_AS_THEY_ARE)
    if not callable(build) or not (scaled or name.startswith(_AS_THEY_ARE)):
        known = sorted(
            each
            for each in dir(keras.applications)
            if callable(getattr(keras.applications, each)) and each.startswith((*_FROM_MINUS_1_TO_1, *_AS_THEY_ARE))
        )
        raise ValueError(f"backbone.name must be one of {OWN}, {', '.join(known)}. Received: {name!r}")
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"backbone.weights must be a file of {name}'s weights. Received: {weights}, which is none.")
    options = {} if alpha is None else {"alpha": alpha}
    try:
        network = build(input_shape=(*image_size, 3), include_top=False, weights=weights, **options)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The backbone {name} cannot be made with weights={weights} and {options}: {reason}"
        ) from error
    if layer is not None:
        names = [each.name for each in network.layers]
        if layer not in names:
            raise ValueError(f"backbone.layer must be a layer of {name}: {', '.join(names)}. Received: {layer!r}")
        network = keras.Model(network.inputs, network.get_layer(layer).output, name=network.name)
    if not scaled:
        return network
    return keras.Sequential(
        [keras.Input((*image_size, 3)), keras.layers.Rescaling(1 / 127.5, -1.0), network], name=name
    )
