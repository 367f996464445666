"""What several tests share. Sizes are distinct primes, so that no axis can be mistaken for another."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

ROOT = Path(__file__).resolve().parent.parent


def marked(mark, values):
    """Parameters of a test, each with the mark of that name: `[first, *marked("long", others)]`."""
    return [pytest.param(value, marks=getattr(pytest.mark, mark)) for value in values]


def to_numpy(x):
    return ops.convert_to_numpy(x)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def randomize(layer, seed=0, scale=0.7):
    """Gives every weight, biases included, random values: zeros hide mistakes."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.dtype.startswith("float"):
            weight.assign(generator.normal(scale=scale, size=tuple(weight.shape)))
    return layer


def gradients(function, inputs, weights=()):
    """Gradients of the scalar function(*inputs) by its inputs and by Keras variables, as NumPy arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        found = tape.gradient(value, [*tensors, *(w.value for w in weights)])
        found = [tf.convert_to_tensor(x) if isinstance(x, tf.IndexedSlices) else x for x in found]
    elif backend == "jax":
        import jax

        def pure(tensors, values):
            mapping = list(zip(weights, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return function(*tensors)

        by_inputs, by_weights = jax.grad(pure, argnums=(0, 1))(
            [ops.convert_to_tensor(x) for x in inputs], [w.value for w in weights]
        )
        found = [*by_inputs, *by_weights]
    else:
        tensors = [ops.convert_to_tensor(x).detach().requires_grad_() for x in inputs]
        for weight in weights:
            weight.value.grad = None
        function(*tensors).backward()
        found = [x.grad for x in tensors] + [w.value.grad for w in weights]
    return [None if x is None else to_numpy(x) for x in found]


def check_layer(layer, inputs, call=None):
    """The contract of every layer: configuration and .keras round trip, symbolic = eager, gradients, mixed precision.

    Args:
        layer: a fresh layer.
        inputs: dict of NumPy arrays, its tensor arguments by name.
        call: other keyword arguments.
    """
    call = call or {}
    output = layer(**inputs, **call)
    randomize(layer)
    expected = to_numpy(layer(**inputs, **call))

    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    clone(**inputs, **call)
    assert [tuple(w.shape) for w in clone.weights] == [tuple(w.shape) for w in layer.weights]
    clone.set_weights(layer.get_weights())
    np.testing.assert_allclose(to_numpy(clone(**inputs, **call)), expected, atol=1e-6)

    symbols = {name: keras.Input(x.shape[1:], dtype=str(x.dtype), name=name) for name, x in inputs.items()}
    symbolic = layer(**symbols, **call)
    assert tuple(symbolic.shape[1:]) == tuple(output.shape[1:])
    assert layer.compute_output_shape(*(x.shape for x in inputs.values())) == tuple(output.shape)
    model = keras.Model(symbols, symbolic)
    np.testing.assert_allclose(to_numpy(model(inputs)), expected, atol=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras")
    np.testing.assert_allclose(to_numpy(loaded(inputs)), expected, atol=1e-6)

    model.compile("sgd", "mse")
    before = layer.get_weights()
    model.fit(inputs, np.zeros(expected.shape, "float32"), epochs=1, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True)]
    assert all(moved), [w.path for w, m in zip(layer.weights, moved, strict=True) if not m]

    half = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    result = half(**inputs, **call)
    assert keras.utils.standardize_dtype(result.dtype) == "bfloat16"
    assert all(w.dtype == "float32" for w in half.weights)


def numpy_softmax(x, mask=None):
    """Softmax over the last axis in float64; zeros where the mask is False."""
    x = np.where(True if mask is None else mask, x.astype("float64"), -np.inf)
    top = np.max(x, axis=-1, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def run_python(code, *arguments, python=sys.executable, **environment):
    """Runs code in a fresh process, outside of the repository; returns its standard output."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [python, "-c", code, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
