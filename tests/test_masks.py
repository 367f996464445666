"""Mask algebra and the masked softmax."""

import keras
import numpy as np
import pytest
from helpers import gradients, numpy_softmax, random, to_numpy
from keras import ops

from keras_attention import causal_mask, combine_masks, masked_softmax, masks, padding_mask

pytestmark = pytest.mark.backends


def test_as_mask_takes_booleans_and_integers_only():
    assert masks.as_mask(None) is None
    for dtype in ("bool", "int32", "uint8", "int64"):
        np.testing.assert_array_equal(to_numpy(masks.as_mask(np.array([0, 1], dtype))), [False, True])
    for dtype in ("float32", "float16"):
        with pytest.raises(TypeError, match=f"value_mask must be boolean .* Received dtype {dtype}"):
            masks.as_mask(np.array([0, 1], dtype), "value_mask")


def test_masks_combine_with_and():
    assert combine_masks(None, None) is None
    one, two = np.array([[True, True, False]]), np.array([[1], [0]])
    np.testing.assert_array_equal(to_numpy(combine_masks(one, None, two)), one & two.astype(bool))


def test_padding_mask():
    expected = [[False] * 5, [True] * 3 + [False] * 2, [True] * 5]
    np.testing.assert_array_equal(to_numpy(padding_mask(np.array([0, 3, 5]), 5)), expected)


@pytest.mark.parametrize(("rows", "columns", "offset"), [(3, 5, 0), (5, 3, 0), (2, 7, 5)])
def test_causal_mask_is_aligned_at_the_top_left(rows, columns, offset):
    expected = np.tril(np.ones((rows, columns), bool), offset)
    np.testing.assert_array_equal(to_numpy(causal_mask(rows, columns, offset)), expected)


def test_attention_mask_joins_all_four():
    query, key = np.array([[True, True, False]]), np.array([[True, False, True, True, True]])
    explicit = np.ones((1, 3, 5), bool)
    explicit[0, 1, 0] = False
    causal = np.tril(np.ones((3, 5), bool))
    expected = query[:, :, None] & key[:, None, :] & explicit & causal
    result = masks.attention_mask(*map(ops.convert_to_tensor, (query, key, explicit, causal)))
    np.testing.assert_array_equal(to_numpy(result), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masked_softmax_equals_the_oracle_and_gives_zeros_for_empty_rows(dtype):
    scores = random(2, 3, 5) * 5
    mask = np.random.default_rng(1).random((2, 3, 5)) > 0.4
    mask[1, 2] = False
    weights = masked_softmax(ops.cast(scores, dtype), mask)
    rounded = to_numpy(ops.cast(ops.cast(scores, dtype), "float32"))
    np.testing.assert_allclose(to_numpy(weights), numpy_softmax(rounded, mask), atol=1e-6)
    assert np.all(to_numpy(weights)[~mask] == 0)
    assert "float32" in str(weights.dtype)


def test_masked_softmax_need_not_look_for_empty_rows():
    scores, mask = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]], "float32"), np.array([[1, 0, 1], [0, 0, 1]])
    found = to_numpy(masked_softmax(scores, mask, never_empty=True))
    np.testing.assert_array_equal(found, to_numpy(masked_softmax(scores, mask)))
    found = to_numpy(masked_softmax(scores, np.zeros_like(mask), never_empty=True))  # they are empty all the same
    np.testing.assert_allclose(found, 1 / 3, atol=1e-6)


def test_masked_softmax_refuses_an_additive_mask():
    with pytest.raises(TypeError, match="must be boolean"):
        masked_softmax(np.zeros((1, 2), "float32"), np.array([[0.0, -1e9]], "float32"))
    integers = masked_softmax(np.zeros((1, 2), "float32"), np.array([[1, 0]]))
    np.testing.assert_array_equal(to_numpy(integers), [[1, 0]])


def test_masked_softmax_survives_great_scores():
    scores = np.array([[3e38, -3e38, 1e30], [-3e38, -3e38, 3e38]], "float32")
    mask = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_array_equal(to_numpy(masked_softmax(scores, mask)), [[1, 0, 0], [0.5, 0.5, 0]])


def test_masked_softmax_has_finite_gradients_everywhere():
    scores = random(2, 3, 5)
    mask = np.ones((2, 3, 5), bool)
    mask[0, 1], mask[1, :, 2] = False, False
    weight = random(2, 3, 5, seed=3)
    (found,) = gradients(lambda x: ops.sum(ops.multiply(masked_softmax(x, mask), weight)), [scores])
    assert np.all(np.isfinite(found))
    assert np.all(found[~mask] == 0)
    assert np.abs(found[0, 0]).max() > 0.01


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (1, 1, 1, 5), (2, 4, 3, 1)])
def test_masked_softmax_has_the_gradient_of_its_equation(training, shape):
    """Also where the mask is greater than the scores."""
    scores, weight = random(*shape), ops.convert_to_tensor(random(2, 4, 3, shape[-1], seed=3))
    mask = np.random.default_rng(1).random((2, 1, 3, shape[-1])) > 0.4
    mask[1, 0, 2] = False
    mask = ops.convert_to_tensor(mask)

    def equation(x):
        powers = ops.where(mask, ops.exp(x), 0.0)
        return ops.sum(powers / ops.maximum(ops.sum(powers, axis=-1, keepdims=True), 1e-30) * weight)

    (found,) = gradients(lambda x: ops.sum(masked_softmax(x, mask, training=training) * weight), [scores])
    assert found.shape == scores.shape
    np.testing.assert_allclose(found, gradients(equation, [scores])[0], atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_nan_that_comes_back_to_a_row_without_keys_goes_no_further(training):
    mask = np.array([[True, True, False], [False] * 3])
    upstream = ops.convert_to_tensor(np.array([[1, 2, 3], [np.nan, np.inf, 1]], "float32"))

    def loss(x):
        return ops.sum(masked_softmax(x, mask, training=training) * upstream)

    (found,) = gradients(loss, [random(2, 3)])
    assert np.abs(found[0, :2]).min() > 0.01 and np.all(found[1] == 0) and found[0, 2] == 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX's functions take no variables")
def test_masked_softmax_takes_a_variable():
    scores = keras.Variable(random(2, 3))
    weights = [masked_softmax(scores, np.array([[True, True, False]]), training=training) for training in (False, True)]
    np.testing.assert_array_equal(to_numpy(weights[0]), to_numpy(weights[1]))


def test_one_mask_found_twice_is_computed_once():
    mask = ops.convert_to_tensor([[True, False]])
    assert combine_masks(mask, None, mask) is mask


def test_zero_masked_stops_nan_and_infinity():
    x = random(2, 3, 5, 7)
    x[0, 1], x[1, 2] = np.nan, np.inf
    mask = np.array([[True, False, True], [True, True, False]])
    result = to_numpy(masks.zero_masked(ops.convert_to_tensor(x), ops.convert_to_tensor(mask)))
    np.testing.assert_array_equal(result, np.where(mask[:, :, None, None], x, 0))


def test_what_is_zeroed_is_not_zeroed_once_more_by_the_same_mask():
    x, mask = ops.convert_to_tensor(random(2, 3, 5)), ops.convert_to_tensor([[True, False, True], [True, True, False]])
    zeroed = masks.zero_masked(x, mask)
    assert masks.zero_masked(zeroed, mask) is zeroed
    other = masks.zero_masked(zeroed, ops.logical_not(mask))
    assert other is not zeroed and not to_numpy(other).any()
    assert masks.zero_masked(zeroed + 1, mask) is not zeroed
