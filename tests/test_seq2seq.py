"""Seq2Seq: step = call, masks, fit with stock Keras, save and load."""

import sys

import keras
import numpy as np
import pytest
from helpers import randomize, to_numpy
from keras import ops

from keras_attention import AdditiveAttention
from keras_attention.models import Seq2Seq
from keras_attention.models.tokenizers import END, START

pytestmark = pytest.mark.backends
SOURCE = np.array([[5, 6, 7, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]])
TARGET = np.array([[2, 4, 5, 6], [2, 7, 8, 0], [2, 9, 4, 10]])
ATTENTIONS = ["additive", "dot", "scaled_dot", None]


def make(attention="additive", **options):
    return randomize(Seq2Seq(11, 13, units=8, embedding_width=6, attention=attention, **options), scale=0.8)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layers", [1, 2])
def test_steps_equal_one_call(attention, layers):
    model = make(attention, encoder_layers=layers)
    logits, weights = model({"source": SOURCE, "target": TARGET}, return_attention_scores=True)
    memory = model.encode({"source": SOURCE})
    tokens, state = model.initial_state(memory, 4)
    np.testing.assert_array_equal(to_numpy(tokens), [START] * 3)
    for t in range(4):
        stepped, state, attended = model.step(ops.convert_to_tensor(TARGET[:, t]), t, memory, state)
        real = TARGET[:, t] != 0
        np.testing.assert_allclose(to_numpy(stepped)[real], to_numpy(logits)[real, t], atol=1e-5)
        if attention:
            np.testing.assert_allclose(to_numpy(attended)[real], to_numpy(weights)[real, t], atol=1e-5)
        else:
            assert attended is None
            assert weights is None


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_call_is_logits_of_features_and_padding_changes_nothing(attention):
    model = make(attention)
    x = {"source": SOURCE, "target": TARGET}
    logits = to_numpy(model(x))
    np.testing.assert_array_equal(to_numpy(model.logits(model.features(x))), logits)
    np.testing.assert_array_equal(to_numpy(model(x, return_attention_scores=True)[0]), logits)
    wide = {"source": np.pad(SOURCE, ((0, 0), (0, 7))), "target": np.pad(TARGET, ((0, 0), (0, 5)))}
    np.testing.assert_allclose(to_numpy(model(wide))[:, :4], logits, atol=1e-6)
    for row in range(3):
        real = SOURCE[row] != 0
        alone = model({"source": SOURCE[row : row + 1, real], "target": TARGET[row : row + 1]})
        np.testing.assert_allclose(to_numpy(alone)[0], logits[row], atol=1e-5)


def test_weights_sum_to_one_over_real_source_positions_and_are_zero_on_padding():
    _, weights = make()({"source": SOURCE, "target": TARGET}, return_attention_scores=True)
    weights = to_numpy(weights)
    assert np.all(weights[np.broadcast_to((SOURCE == 0)[:, None], weights.shape)] == 0)
    np.testing.assert_allclose(weights.sum(-1), TARGET != 0, atol=1e-6)


def test_a_source_mask_hides_tokens():
    model = make()
    mask = np.array([[True] * 5, [True, True, True, False, False], [True] * 5])
    hidden = to_numpy(model({"source": SOURCE, "source_mask": mask, "target": TARGET}))
    cut = np.where(mask, SOURCE, 0)
    np.testing.assert_array_equal(hidden, to_numpy(model({"source": cut, "target": TARGET})))


def test_a_row_without_source_has_finite_logits():
    logits = make()({"source": np.zeros((1, 3), "int32"), "target": TARGET[:1]})
    assert np.all(np.isfinite(to_numpy(logits)))


def copying(count, seed=0):
    """Pairs where the target is the source, of lengths 2 to 5, as Seq2Seq wants them."""
    generator = np.random.default_rng(seed)
    source = np.zeros((count, 5), "int32")
    target, y = np.zeros((count, 6), "int32"), np.zeros((count, 6), "int32")
    for row, length in enumerate(generator.integers(2, 6, count)):
        source[row, :length] = generator.integers(4, 11, length)
        target[row, : length + 1] = [START, *source[row, :length]]
        y[row, : length + 1] = [*source[row, :length], END]
    return {"source": source, "target": target}, y


@pytest.mark.parametrize("attention", ["additive", None])
def test_stock_keras_trains_it(attention):
    keras.utils.set_random_seed(1)
    model = Seq2Seq(11, 11, units=32, attention=attention, dropout=0.1)
    x, y = copying(512)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.01), loss)
    history = model.fit(x, y, batch_size=64, epochs=4, verbose=0).history["loss"]
    assert history[-1] < 0.75 * history[0]
    assert np.isclose(
        model.evaluate(x, y, verbose=0), float(loss(y, model.predict(x, verbose=0))), rtol=1e-2
    )  # means of batches


@pytest.mark.parametrize("attention", [*ATTENTIONS, "own"])
@pytest.mark.parametrize("tie", [True, False])
def test_save_and_load_give_equal_outputs(attention, tie, tmp_path):
    model = make(AdditiveAttention(5, use_bias=True) if attention == "own" else attention, tie_embeddings=tie)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = {"source": SOURCE, "target": TARGET}
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))
    assert essence(loaded) == essence(model)


def essence(model):
    """The configuration, the attention's reduced to its own."""
    config = model.get_config()
    return {**config, "attention": config["attention"] and config["attention"]["config"]}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="cuDNN's kernel is TensorFlow's")
def test_a_gpu_does_not_change_the_encoder(monkeypatch):
    """cuDNN's kernel refuses empty rows and holes in the mask, and would bind an export to a GPU."""
    import tensorflow as tf

    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    model = make()
    function = tf.function(lambda source: model.encode({"source": source}), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec([None, None], tf.int32)).graph.as_graph_def()
    nodes = [node.op for node in graph.node] + [node.op for f in graph.library.function for node in f.node_def]
    assert nodes
    assert not [op for op in nodes if "Cudnn" in op]


def test_tied_embeddings_share_one_matrix():
    tied, untied = make(), make(tie_embeddings=False)
    assert untied.count_params() - tied.count_params() == 8 * 13 + 13 + (8 - 6) * (6 + 8 + 8 + 1) - 13
    before = to_numpy(tied({"source": SOURCE, "target": TARGET}))
    tied.target_embedding.embeddings.assign(to_numpy(tied.target_embedding.embeddings) * 0)
    after = to_numpy(tied({"source": SOURCE, "target": TARGET}))
    assert np.abs(before - after).max() > 0.1
    np.testing.assert_allclose(after, np.broadcast_to(to_numpy(tied.output_bias), after.shape), atol=1e-6)


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    x = {"source": SOURCE, "target": TARGET}
    np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(model(x)))
    assert np.abs(to_numpy(model(x, training=True)) - to_numpy(model(x))).max() > 0.1


def test_mixed_precision_keeps_weights_in_float32():
    model = Seq2Seq(11, 13, units=8, dtype="mixed_bfloat16")
    logits, weights = model({"source": SOURCE, "target": TARGET}, return_attention_scores=True)
    assert keras.utils.standardize_dtype(weights.dtype) == "float32"
    assert keras.utils.standardize_dtype(logits.dtype) == "bfloat16"
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Seq2Seq(11, 13, units=7), "even number of units.*units=7"),
        (lambda: Seq2Seq(11, 13, units=8, lexical=True, attention="dot"), "lexical=True.*Received.*attention='dot'"),
        (lambda: Seq2Seq(11, 13, units=8, lexical=True, encoder_layers=0), "lexical=True.*encoder_layers=0"),
        (lambda: Seq2Seq(11, 13, units=8, attention="luong"), "one of additive, dot, scaled_dot.*'luong'"),
        (lambda: make()({"source": SOURCE}), "dict with source and target. Received: .*source"),
        (lambda: make().encode({"src": SOURCE}), "dict with source. Received: .*src"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
