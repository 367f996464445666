"""Boolean masks (True = may attend) and a softmax that respects them.

Masks combine with AND. `None` means "everything may attend" and costs nothing. Integers 0 and 1 are accepted where a
mask is expected; floats are refused, because additive masks (0 and -1e9) look the same and mean the opposite.
"""

import keras
import numpy as np
from keras import ops

# Keras keeps a layer's implicit mask on the tensor; it has no public way to read or set it.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.tensor_attributes import get_tensor_attr, set_tensor_attr

ZEROED_BY = "_keras_attention_zeroed_by"  # the attribute of a tensor that holds the mask under which it is zero


def as_mask(mask, name="mask"):
    """Checks one mask and returns it as boolean tensor; None stays None.

    Args:
        mask: tensor or array of any shape, boolean or of integers 0 and 1, or None.
        name: what to call it in an error.

    Raises:
        TypeError: the mask holds floats.

    >>> as_mask([[1, 0]]).shape[-1]
    2
    """
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    dtype = keras.utils.standardize_dtype(mask.dtype)
    if "float" in dtype:
        raise TypeError(
            f"{name} must be boolean (True = may attend) or hold the integers 0 and 1. Received dtype {dtype}: "
            f"write {name} > 0 for a mask of ones and zeros."
        )
    return mask if dtype == "bool" else ops.cast(mask, "bool")


def combine_masks(*masks):
    """ANDs masks of broadcastable shapes; None is left out, and None comes back where nothing is masked."""
    result, last = None, None
    for mask in masks:
        if mask is not None and mask is not last:  # blocks and their layers find one mask in several ways
            last = mask
            mask = as_mask(mask)
            result = mask if result is None else ops.logical_and(result, mask)
    return result


def padding_mask(lengths, max_length):
    """Mask [B, S] that is True on the first `lengths[b]` of `max_length` positions.

    >>> ops.convert_to_numpy(padding_mask([1, 3], 3)).tolist()
    [[True, False, False], [True, True, True]]
    """
    return ops.arange(max_length)[None, :] < ops.cast(ops.convert_to_tensor(lengths), "int32")[:, None]


def causal_mask(query_length, key_length, offset=0):
    """Mask [T, S] under which query i sees the keys 0 ... i + offset.

    `offset` is 0 without a cache (the meaning of `use_causal_mask`, for T != S too), and the number of positions that
    a cache already holds with one.

    >>> ops.convert_to_numpy(causal_mask(2, 3)).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    return ops.arange(key_length)[None, :] <= ops.arange(query_length)[:, None] + offset


def attention_mask(query_mask=None, key_mask=None, attention_mask=None, causal=None):
    """Combines padding, explicit and causal masks into one that broadcasts to [B, T, S], or None.

    Args:
        query_mask: [B, T], False where the query is padding (its row will attend to nothing).
        key_mask: [B, S], False where the key is padding.
        attention_mask: [B, T, S] or [T, S].
        causal: [T, S].
    """
    if query_mask is not None:
        query_mask = query_mask[:, :, None]
    if key_mask is not None:
        key_mask = key_mask[:, None, :]
    return combine_masks(query_mask, key_mask, attention_mask, causal)


def zero_masked(x, mask):
    """Sets x [B, L, ...] to zero where mask [B, L] is False, so that not even NaN or infinity passes.

    The mask may have further axes of x. What this function returns is not zeroed once more by the same mask: blocks and
    the layers in them each zero what they are given.
    """
    if mask is None or get_tensor_attr(x, ZEROED_BY) is mask:
        return x
    missing = len(x.shape) - len(mask.shape)
    zeroed = ops.where(ops.reshape(mask, (*ops.shape(mask), *(1,) * missing)), x, ops.zeros_like(x))
    set_tensor_attr(zeroed, ZEROED_BY, mask)
    return zeroed


def masked_softmax(scores, mask=None, training=False, never_empty=False):
    """Softmax over the last axis, in at least float32, with exact zeros where the mask is False.

    A row that may attend to nothing gives zeros, with finite gradients.

    Args:
        scores: [..., S].
        mask: boolean, broadcastable to scores, or None.
        training: whether gradients will be asked for. The numbers are the same; TensorFlow finds them sooner.
        never_empty: whether every row is known to attend to something, so that none need be looked for.

    Returns:
        Weights [..., S] that sum to 1, or to 0 where nothing may be attended.

    Raises:
        TypeError: the mask holds floats.

    >>> masked_softmax(ops.array([[1.0, 2.0]]), ops.array([[True, False]])).shape[-1]
    2
    """
    scores, mask = at_least_float32(scores), as_mask(mask)
    if mask is None:
        return _softmax(scores)
    if training and keras.backend.backend() == "tensorflow" and _is_within(mask.shape, scores.shape):
        return _masked_softmax_with_gradient(scores, mask)
    return _masked_softmax(scores, mask, never_empty)


def _masked_softmax(scores, mask, never_empty=False):
    weights = _softmax(ops.where(mask, scores, float(np.finfo("float32").min)))
    if never_empty:
        return weights
    return ops.where(ops.any(mask, axis=-1, keepdims=True), weights, 0.0)


def _masked_softmax_with_gradient(scores, mask):
    """The same on TensorFlow with a gradient that looks at empty rows only: it is 0 where the weight is."""

    @ops.custom_gradient
    def softmax(scores):
        weights = _masked_softmax(scores, mask)

        def backward(upstream):
            slopes = weights * ops.where(ops.any(mask, axis=-1, keepdims=True), upstream, 0.0)
            return slopes - weights * ops.sum(slopes, axis=-1, keepdims=True)

        return weights, backward

    return softmax(scores + 0.0)  # a tensor, where it is a variable


def _is_within(shape, other):
    """Whether a tensor of the first shape broadcasts to the other one; sizes that are unknown there are taken to."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(one == 1 or two is None or one == two for one, two in pairs)


def _softmax(scores):
    """Softmax over the last axis; of a single key it is 1 (where Keras would warn of it)."""
    return scores * 0 + 1 if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)


def at_least_float32(x):
    """Casts 16-bit floats to float32; float32 and float64 stay."""
    return x if keras.utils.standardize_dtype(x.dtype) in ("float32", "float64") else ops.cast(x, "float32")


def implicit_mask(x):
    """The mask that Keras carries on a tensor (from Embedding(mask_zero=True), Masking, ...), or None."""
    return get_keras_mask(x)


def carry_mask(x, mask):
    """Puts a mask on a tensor for the layers that follow, as Keras does for its own layers."""
    if mask is not None:
        set_keras_mask(x, mask)
    return x


def let_masks_pass(layer):
    """Makes a layer of Keras's accept masks without a warning: RMSNormalization, and from Keras 3.16 on every RNN."""
    for part in (layer, getattr(layer, "forward_layer", None), getattr(layer, "backward_layer", None)):
        if part is not None:
            part.supports_masking = True
    return layer
