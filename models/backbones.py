"""Backbones: Keras models from images [B, height, width, 3], numbers from 0 to 255, to grids [B, h, w, C]."""

import re
from pathlib import Path

import keras
from keras import ops

OWN = "small"
# Families of keras.applications, by how their names begin, and what they want of numbers from 0 to 255: as they are, or
# a kind of ImageScaling. The longer name counts.
_FAMILIES = {
    **dict.fromkeys(("EfficientNet", "ConvNeXt", "MobileNetV3"), None),
    **dict.fromkeys(("MobileNet", "Xception", "Inception", "NASNet"), "symmetric"),
    **dict.fromkeys(("ResNet50V2", "ResNet101V2", "ResNet152V2"), "symmetric"),
    **dict.fromkeys(("VGG", "ResNet"), "caffe"),
    "DenseNet": "torch",
}


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


@keras.saving.register_keras_serializable(package="keras_attention")
class ImageScaling(keras.layers.Layer):
    """Images [..., 3], red, green and blue from 0 to 255, as networks of keras.applications were trained to read them.

    Args:
        kind: "symmetric", from -1 to 1; "caffe", blue, green and red minus their means on ImageNet; "torch", from 0 to
            1, minus the means and divided by the standard deviations on ImageNet.

    Example:

    >>> [round(float(x), 3) for x in ImageScaling("torch")(255 * ops.ones((1, 3)))[0]]
    [2.249, 2.429, 2.64]
    """

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        if kind not in ("symmetric", "caffe", "torch"):
            raise ValueError(f"ImageScaling expects kind to be symmetric, caffe or torch. Received: {kind=}")
        self.kind = kind

    def call(self, images):
        images = ops.cast(images, self.compute_dtype)
        if self.kind == "symmetric":
            return images / 127.5 - 1.0
        if self.kind == "caffe":
            return ops.flip(images, axis=-1) - ops.cast([103.939, 116.779, 123.68], images.dtype)
        mean, deviation = (ops.cast(x, images.dtype) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        return (images / 255.0 - mean) / deviation

    def compute_output_shape(self, images_shape):
        return tuple(images_shape)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


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
        name: "small"; a network of keras.applications, such as "MobileNet"; or the path of a .keras file with a model
            of your own, which reads numbers from 0 to 255 and has its weights already.
        image_size: (height, width).
        weights: the path of a .h5 file with the weights (without the top); "imagenet", which Keras downloads once; or
            None for random ones.
        layer: the layer whose output is the grid; the last one if None.
        trainable: False to freeze it; with True the layers of a model of your own stay frozen that are.
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
    if name.endswith(".keras"):
        backbone = _from_file(name, weights, layer, alpha)
    else:
        backbone = small(image_size) if name == OWN else _application(name, image_size, weights, layer, alpha)
    if not trainable:
        backbone.trainable = False
    return backbone


def _from_file(path, weights, layer, alpha):
    """A user's own model."""
    if weights is not None or alpha is not None:
        raise ValueError(f"{path} has its own weights: leave weights and alpha out. Received: {weights=}, {alpha=}")
    try:
        network = keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"The backbone {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return network if layer is None else _until(network, layer, path)


def _until(network, layer, name):
    """The network up to the output of one of its layers."""
    names = [each.name for each in network.layers]
    if layer not in names:
        raise ValueError(f"backbone.layer must be a layer of {name}: {', '.join(names)}. Received: {layer!r}")
    return keras.Model(network.inputs, network.get_layer(layer).output, name=network.name)


def _family(name):
    """The longest beginning of the name that is a family's, or None."""
    return max((family for family in _FAMILIES if name.startswith(family)), key=len, default=None)


def _application(name, image_size, weights, layer, alpha):
    build = getattr(keras.applications, name, None)
    if not callable(build) or _family(name) is None:
        known = [
            each for each in dir(keras.applications) if _family(each) and callable(getattr(keras.applications, each))
        ]
        raise ValueError(
            f"backbone.name must be one of {OWN}, {', '.join(sorted(known))}, or a .keras file. Received: {name!r}"
        )
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise ValueError(
            f"backbone.weights must be imagenet, or a file of {name}'s weights. Received: {weights}, which is none."
        )
    if weights not in (None, "imagenet") and re.fullmatch(r"EfficientNetB\d", name):
        raise ValueError(
            f"Keras scales the images of {name} as its weights want them for weights=imagenet alone. Received: "
            f"{weights}; take imagenet, an EfficientNetV2, or give the path of a .keras file of your own as the name."
        )
    options = {} if alpha is None else {"alpha": alpha}
    # Where Keras cannot download, it raises nothing narrower than Exception.
    failures = Exception if weights == "imagenet" else (OSError, ValueError, TypeError)
    try:
        network = build(input_shape=(*image_size, 3), include_top=False, weights=weights, **options)
    except failures as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The backbone {name} cannot be made with weights={weights} and {options}: {reason}"
        ) from error
    if layer is not None:
        network = _until(network, layer, name)
    kind = _FAMILIES[_family(name)]
    if kind is None:
        return network
    return keras.Sequential([keras.Input((*image_size, 3)), ImageScaling(kind), network], name=name)
