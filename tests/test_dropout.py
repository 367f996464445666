"""Dropout from 8 bits a number: its rate, its scale, its gradient, and where it is Keras's own."""

import keras
import numpy as np
import pytest
from helpers import gradients, to_numpy
from keras import ops

from keras_attention.dropout import Dropout

pytestmark = pytest.mark.backends


@pytest.mark.parametrize("rate", [0.002, 0.1, 0.3, 0.75, 0.995])
@pytest.mark.parametrize("width", [64, 63])
def test_it_drops_at_its_rate_and_keeps_the_mean(rate, width):
    x = np.random.default_rng(0).uniform(1, 2, (50, 40, width)).astype("float32")
    layer = Dropout(rate, seed=3)
    first, second = (to_numpy(layer(x, training=True)) for _ in range(2))
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    for output in (first, second):
        assert abs((output == 0).mean() - rate) < 4 * deviation
        kept = output != 0
        np.testing.assert_allclose(output[kept], x[kept] / (1 - rate), rtol=1e-6)
        # Neighbours, which share the bits of one draw, are dropped independently of each other.
        both = (output[..., :-1] == 0) & (output[..., 1:] == 0)
        assert abs(both.mean() - rate**2) < 0.005
    assert abs(((first == 0) & (second == 0)).mean() - rate**2) < 0.005
    np.testing.assert_array_equal(to_numpy(Dropout(rate, seed=3)(x, training=True)), first)
    np.testing.assert_array_equal(to_numpy(layer(x)), x)
    np.testing.assert_array_equal(to_numpy(Dropout(0.0)(x, training=True)), x)


def test_a_rate_of_nearly_1_stays_finite():
    output = to_numpy(Dropout(0.999999, seed=0)(np.ones((9, 8), "float32"), training=True))
    assert np.all(np.isfinite(output)) and (output == 0).mean() > 0.9


def test_the_gradient_is_the_mask():
    x = ops.ones((3, 5, 8))
    output = to_numpy(Dropout(0.5, seed=1)(x, training=True))
    (found,) = gradients(lambda x: ops.sum(Dropout(0.5, seed=1)(x, training=True)), [x])
    np.testing.assert_allclose(to_numpy(found), output)
    assert set(np.unique(output)) == {0.0, 2.0}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_16_bit_floats_stay_what_they_are(policy):
    output = Dropout(0.25, dtype=policy)(ops.ones((2, 3, 10)), training=True)
    assert keras.utils.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    values = np.unique(to_numpy(output).astype("float32"))
    np.testing.assert_allclose(values, [0, 4 / 3], atol=0.005)


def test_a_noise_shape_is_kept():
    output = to_numpy(Dropout(0.5, noise_shape=(2, 1, 8), seed=0)(ops.ones((2, 5, 8)), training=True))
    assert np.all(output == output[:, :1]) and 0 < output.mean() < 2
