"""Every public layer inside models: functional, subclassed, Sequential; fit, reload, clone, export, 16-bit, masks."""

import json

import keras
import numpy as np
import pytest
from helpers import randomize, run_python, to_numpy
from keras import ops

import keras_attention as ka
from keras_attention.masks import implicit_mask

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
B, T, S, D, V, H = 3, 5, 7, 8, 11, 2
# Two sequences: layer(query, value).
PAIRS = {
    "AdditiveAttention": lambda **o: ka.AdditiveAttention(5, **o),
    "ConcatAttention": lambda **o: ka.ConcatAttention(5, **o),
    "CosineAttention": lambda **o: ka.CosineAttention(**o),
    "CrossAttention": lambda **o: ka.CrossAttention(5, output_projection=True, **o),
    "DotProductAttention": lambda **o: ka.DotProductAttention(**o),
    "GeneralAttention": lambda **o: ka.GeneralAttention(**o),
    "LocationAttention": lambda **o: ka.LocationAttention(max_length=S, **o),
    "MultiHeadAttention": lambda **o: ka.MultiHeadAttention(H, 4, position=ka.RelativeBias(H), **o),
    "ScaledDotProductAttention": lambda **o: ka.ScaledDotProductAttention(**o),
    "TransformerDecoderBlock": lambda **o: ka.TransformerDecoderBlock(H, 13, position=ka.RotaryEmbedding(), **o),
}
# One sequence: layer(x).
SINGLES = {
    "AttentionPooling": lambda **o: ka.AttentionPooling(**o),
    "FeedForward": lambda **o: ka.FeedForward(13, gated=True, **o),
    "MaskedSelfAttention": lambda **o: ka.MaskedSelfAttention(5, **o),
    "PositionEmbedding": lambda **o: ka.PositionEmbedding(max_length=S, **o),
    "SelfAttention": lambda **o: ka.SelfAttention(5, **o),
    "SinusoidalEncoding": lambda **o: ka.SinusoidalEncoding(**o),
    "TransformerEncoderBlock": lambda **o: ka.TransformerEncoderBlock(H, 13, **o),
}
# What is called otherwise: on [B, S, D] all the same.
OTHERS = {
    "ALiBi": lambda x, **o: ka.MultiHeadAttention(H, 4, position=ka.ALiBi(H, **o), **o)(x, x),
    "AttentiveRNN": lambda x, **o: ka.AttentiveRNN(6, ka.AdditiveAttention(5, **o), **o)(x, x),
    "RelativeBias": lambda x, **o: ka.MultiHeadAttention(H, 4, position=ka.RelativeBias(H, **o), **o)(x, x),
    "RotaryEmbedding": lambda x, **o: ops.reshape(
        ka.RotaryEmbedding(**o)(ops.reshape(x, (-1, S, H, D // H))), (-1, S, D)
    ),
}
ABSTRACT = {"Attention"}
QUERY = np.array([[4, 5, 6, 0, 0], [7, 8, 9, 10, 1], [2, 0, 0, 0, 0]])
VALUE = np.array([[3, 2, 1, 5, 0, 0, 0], [7, 3, 9, 4, 1, 2, 6], [9, 8, 0, 0, 0, 0, 0]])
INPUTS = {"query": QUERY, "value": VALUE}


def test_no_public_layer_is_left_out():
    layers = {name for name, x in vars(ka).items() if isinstance(x, type) and issubclass(x, keras.layers.Layer)}
    assert layers == {*PAIRS, *SINGLES, *OTHERS, *ABSTRACT}


def functional(name, dtype="float32"):
    """Ids -> embeddings with their mask -> the layer -> [B, 3]."""
    query, value = (keras.Input((n,), dtype="int32", name=k) for k, n in (("query", T), ("value", S)))
    embedding = keras.layers.Embedding(V, D, mask_zero=True, dtype=dtype, name="embedding")
    q, v = embedding(query), embedding(value)
    if name in PAIRS:
        x = PAIRS[name](dtype=dtype)(q, v)
    elif name in SINGLES:
        x = SINGLES[name](dtype=dtype)(v)
    else:
        x = OTHERS[name](v, dtype=dtype)
    if len(x.shape) == 3:
        x = keras.layers.GlobalAveragePooling1D(dtype=dtype)(x)
    x = keras.layers.Concatenate(dtype=dtype)([x, keras.layers.GlobalAveragePooling1D(dtype=dtype)(q)])
    return keras.Model([query, value], keras.layers.Dense(3, dtype="float32")(x), name=name)


class Subclassed(keras.Model):
    """The same, by a class."""

    def __init__(self, name):
        super().__init__()
        self.embedding = keras.layers.Embedding(V, D, mask_zero=True)
        self.attention = {**PAIRS, **SINGLES}[name]()
        self.pair = name in PAIRS
        self.head = keras.layers.Dense(3)

    def call(self, x):
        query, value = self.embedding(x["query"]), self.embedding(x["value"])
        x = self.attention(query, value) if self.pair else self.attention(value)
        return self.head(x if len(x.shape) == 2 else ops.mean(x, axis=1))


def learns(model, x, run_eagerly=False):
    """Two epochs of fit move all weights (but a key's bias, which softmax does not see); nothing becomes NaN."""
    model(x)
    model.compile("adam", "mse", run_eagerly=run_eagerly)
    before = [np.array(to_numpy(weight.value)) for weight in model.trainable_weights]
    loss = model.fit(x, np.ones((len(QUERY), 3), "float32"), epochs=2, batch_size=2, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        new = to_numpy(weight.value)
        assert np.isfinite(new).all()
        assert weight.path.endswith("key/bias") or not np.array_equal(old, new), weight.path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A functional model of each layer, fitted, with random weights, saved and (on TensorFlow) exported."""
    folder = tmp_path_factory.mktemp("layers")
    expected = {}
    for name in (*PAIRS, *SINGLES, *OTHERS):
        model = functional(name)
        learns(model, INPUTS, run_eagerly=name not in OTHERS)  # subclassed models of the rest learn in a graph
        randomize(model, scale=0.3)
        expected[name] = to_numpy(model(INPUTS)).tolist()
        model.save(folder / f"{name}.keras")
        if BACKEND == "tensorflow":
            model.export(folder / name, verbose=False)
    (folder / "expected.json").write_text(json.dumps(expected))
    (folder / "inputs.json").write_text(json.dumps({name: x.tolist() for name, x in INPUTS.items()}))
    return folder


RELOAD = """
import json, sys
from pathlib import Path
import keras
import numpy as np
import keras_attention  # registers the layers
folder = Path(sys.argv[1])
inputs = {name: np.array(x) for name, x in json.loads((folder / "inputs.json").read_text()).items()}
for name, expected in json.loads((folder / "expected.json").read_text()).items():
    model = keras.saving.load_model(folder / f"{name}.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(inputs)), expected, atol=1e-5, err_msg=name)
    print(name)
"""
ANSWER = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
folder = Path(sys.argv[1])
inputs = {name: tf.constant(x) for name, x in json.loads((folder / "inputs.json").read_text()).items()}
for name, expected in json.loads((folder / "expected.json").read_text()).items():
    serve = tf.saved_model.load(str(folder / name)).signatures["serving_default"]
    (found,) = serve(**{key: tf.cast(x, tf.int32) for key, x in inputs.items()}).values()
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    print(name)
assert not any(module.startswith("keras_attention") for module in sys.modules)
"""


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "tensorflow", reason="files are the same on every backend")
def test_models_reload_in_a_fresh_process(saved):
    assert len(run_python(RELOAD, saved).split()) == len({*PAIRS, *SINGLES, *OTHERS})


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is TensorFlow's")
def test_exports_answer_without_the_library(saved):
    assert len(run_python(ANSWER, saved).split()) == len({*PAIRS, *SINGLES, *OTHERS})


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("name", [*PAIRS, *SINGLES])
def test_subclassed_models(name):
    learns(Subclassed(name), INPUTS)


@pytest.mark.parametrize("name", SINGLES)
def test_sequential_models(name):
    layers = [keras.layers.Embedding(V, D, mask_zero=True), SINGLES[name]()]
    layers += [] if name == "AttentionPooling" else [keras.layers.GlobalAveragePooling1D()]
    learns(keras.Sequential([*layers, keras.layers.Dense(3)]), VALUE)


@pytest.mark.parametrize("name", [*PAIRS, *SINGLES, *OTHERS])
def test_clones(name):
    model = functional(name)
    clone = keras.models.clone_model(model)
    clone.set_weights(randomize(model).get_weights())
    np.testing.assert_allclose(to_numpy(clone(INPUTS)), to_numpy(model(INPUTS)), atol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param("mixed_float16", marks=pytest.mark.long), "mixed_bfloat16"])
@pytest.mark.parametrize("name", [*PAIRS, *SINGLES, *OTHERS])
def test_mixed_precision(name, dtype):
    whole, half = functional(name), functional(name, dtype)
    half.set_weights(randomize(whole, scale=0.3).get_weights())
    expected = to_numpy(whole(INPUTS))
    np.testing.assert_allclose(to_numpy(half(INPUTS)), expected, atol=0.05 * max(1, np.abs(expected).max()))
    if BACKEND == "tensorflow":  # Keras's fit is the same code elsewhere, and slow to compile
        learns(half, INPUTS, run_eagerly=True)


@pytest.mark.parametrize("name", [*PAIRS, *SINGLES])
def test_the_mask_of_an_embedding_arrives_and_leaves(name):
    embedding = keras.layers.Embedding(V, D, mask_zero=True)
    layer = {**PAIRS, **SINGLES}[name]()
    ids = [QUERY, VALUE] if name in PAIRS else [VALUE]
    layer(*(embedding(x) for x in ids))
    randomize(layer)
    outputs = []
    for fill in (0.5, np.nan):
        matrix = to_numpy(embedding.embeddings).copy()
        matrix[0] = fill
        embedding.embeddings.assign(matrix)
        output = layer(*(embedding(x) for x in ids))
        mask = implicit_mask(output)
        if name == "AttentionPooling":
            assert mask is None
            outputs.append(to_numpy(output))
        else:
            np.testing.assert_array_equal(to_numpy(mask), ids[0] != 0)
            outputs.append(to_numpy(output)[ids[0] != 0])
    assert np.isfinite(outputs[1]).all()
    np.testing.assert_array_equal(*outputs)
