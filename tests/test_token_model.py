"""The step of fit without logits: the numbers of the step with them, on every backend."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import gradients, to_numpy
from keras import ops

from keras_attention.models import Seq2Seq
from keras_attention.training.losses import MaskedCrossEntropy
from keras_attention.training.metrics import ExactMatch, Perplexity, TokenAccuracy

pytestmark = pytest.mark.backends
V = 29


class Plain(keras.losses.Loss):
    """The same loss of the same class, which offers no way around the logits."""

    def __init__(self, label_smoothing):
        super().__init__()
        self.loss = MaskedCrossEntropy(label_smoothing)

    def __call__(self, *args, **kwargs):
        return self.loss(*args, **kwargs)


class Guesses(keras.metrics.Metric):
    """Somebody's own metric, which reads the logits."""

    def __init__(self):
        super().__init__(name="guesses")
        self.total = self.add_weight(shape=(), initializer="zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sum(ops.cast(ops.argmax(y_pred, axis=-1), "float32")))

    def result(self):
        return ops.convert_to_tensor(self.total)


def data():
    generator = np.random.default_rng(0)
    y = generator.integers(4, V, (12, 7)).astype("int32")
    y[::3, 4:], y[5] = 0, 0
    return {"source": y, "target": y}, y, generator.random(12).astype("float32")


def compiled(loss, seed_model=None, metrics=(), **options):
    model = Seq2Seq(V, V, units=8, **options)
    if seed_model is not None:
        model.set_weights(seed_model.get_weights())
    model.compile(
        keras.optimizers.SGD(0.5),
        loss,
        metrics=[TokenAccuracy(), Perplexity(), ExactMatch(), *metrics],
        weighted_metrics=[Perplexity("weighted_perplexity")],
    )
    return model


@pytest.mark.long
@pytest.mark.parametrize("tie", [pytest.param(True, marks=pytest.mark.release), False])
def test_a_fit_without_logits_has_the_history_of_one_with_them(tie):
    x, y, sample_weight = data()
    without = compiled(MaskedCrossEntropy(0.1), tie_embeddings=tie)
    with_logits = compiled(Plain(0.1), without, tie_embeddings=tie)
    histories = [
        model.fit(x, y, 5, epochs=3, sample_weight=sample_weight, shuffle=False, verbose=0, validation_data=(x, y))
        for model in (without, with_logits)
    ]
    one, two = (history.history for history in histories)
    assert one.keys() == two.keys()
    assert {"loss", "token_accuracy", "perplexity", "exact_match", "weighted_perplexity", "val_loss"} < set(one)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, err_msg=name)
    assert one["perplexity"] != one["weighted_perplexity"]
    for ours, plain in zip(without.trainable_weights, with_logits.trainable_weights, strict=True):
        np.testing.assert_allclose(to_numpy(ours.value), to_numpy(plain.value), atol=1e-5)


def test_the_logits_are_not_read_in_the_step(monkeypatch):
    """What the loss gets is the features; a plain loss on logits never runs."""
    x, y, _ = data()
    model = compiled(MaskedCrossEntropy(0.1))
    model.train_on_batch(x, y)  # a symbolic pass that builds metrics comes first on JAX and PyTorch
    monkeypatch.setattr(MaskedCrossEntropy, "call", lambda *args: pytest.fail("the logits were read"))
    model.fit(x, y, 5, epochs=1, verbose=0)
    model.evaluate(x, y, verbose=0)
    assert model._step.features is model._step.logits is None
    assert not model._step.metrics_are_updated


def test_nothing_is_kept_of_a_call_outside_of_fit(monkeypatch):
    x, y, _ = data()
    model = compiled(MaskedCrossEntropy(0.1))
    model.compile("sgd", MaskedCrossEntropy(0.1), run_eagerly=True)
    kept, original = [], Seq2Seq.features

    def features(self, *arguments, **options):
        found = original(self, *arguments, **options)
        kept.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Seq2Seq, "features", features)
    for use in (model, lambda x: model.predict(x, verbose=0), lambda x: model.evaluate(x, y, verbose=0)):
        use(x)
        gc.collect()
        assert kept and all(reference() is None for reference in kept)
        assert model._step.features is model._step.logits is None
    logits = model(x)  # features of other logits than those of the step are not its features
    np.testing.assert_allclose(
        to_numpy(model.compute_loss(y=ops.convert_to_tensor(y), y_pred=logits * 0)), np.log(V), rtol=1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.release)])
def test_a_fit_in_mixed_precision_learns_what_one_in_float32_does(policy):
    x, y, sample_weight = data()
    full = compiled(MaskedCrossEntropy(0.1))
    half = compiled(MaskedCrossEntropy(0.1), full, dtype=policy)
    full.compile(keras.optimizers.Adam(0.05), MaskedCrossEntropy(0.1))
    half.compile(keras.optimizers.Adam(0.05), MaskedCrossEntropy(0.1))
    assert isinstance(half.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    options = {"epochs": 4, "sample_weight": sample_weight * 1e6, "shuffle": False, "verbose": 0}
    one, two = (model.fit(x, y, 6, **options).history["loss"] for model in (half, full))
    np.testing.assert_allclose(one, two, rtol=0.03)
    assert one[-1] < 0.9 * one[0]
    assert all(weight.dtype == "float32" and np.all(np.isfinite(to_numpy(weight.value))) for weight in half.weights)


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_gradients_in_mixed_precision_are_finite_and_near_those_in_float32(policy):
    x, y, _ = data()
    full = compiled(MaskedCrossEntropy(0.1))
    half = compiled(MaskedCrossEntropy(0.1), full, dtype=policy)
    labels = ops.convert_to_tensor(y)
    found = []
    for model in (half, full):

        def loss(model=model):
            return MaskedCrossEntropy(0.1).from_features(model.features(x), *model.output_weights(), labels)[0] * 1024

        found.append(gradients(loss, [], model.trainable_weights))
    for weight, one, two in zip(full.trainable_weights, *found, strict=True):
        assert np.all(np.isfinite(one)), weight.path
        np.testing.assert_allclose(one, two, atol=0.05 * np.abs(two).max(), err_msg=weight.path)


def test_other_metrics_still_get_logits():
    x, y, _ = data()
    ours = compiled(MaskedCrossEntropy(), metrics=[Guesses()])
    plain = compiled(Plain(0.0), ours, metrics=[Guesses()])
    one, two = (model.evaluate(x, y, 5, return_dict=True, verbose=0) for model in (ours, plain))
    assert one["guesses"] == two["guesses"] > 0
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)


def test_regularisation_is_added():
    x, y, _ = data()
    model = compiled(MaskedCrossEntropy())
    before = model.evaluate(x, y, return_dict=True, verbose=0)["loss"]
    embedding = keras.layers.Embedding(V, 8, embeddings_regularizer=keras.regularizers.L2(0.5))
    other = Seq2Seq(V, V, units=8, source_embedding=embedding)
    other.set_weights(model.get_weights())
    other.compile("sgd", MaskedCrossEntropy())
    after = other.evaluate(x, y, return_dict=True, verbose=0)["loss"]
    expected = before + 0.5 * np.sum(to_numpy(embedding.embeddings) ** 2)
    np.testing.assert_allclose(after, expected, rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads TensorFlow's graph")
def test_no_tensor_of_the_size_of_the_logits_is_left_in_the_compiled_step():
    """Grappler prunes what nobody reads; here the same by walking back from the outputs."""
    import tensorflow as tf

    x, y, _ = data()
    model = compiled(MaskedCrossEntropy(0.1))
    model.train_on_batch(x, y)
    matrix = tf.TensorSpec([12, 7], tf.int32)
    step = tf.function(lambda source, target, y: model.train_step(({"source": source, "target": target}, y)))
    graph = step.get_concrete_function(matrix, matrix, matrix).graph
    reached, waiting = set(), [tensor.op for tensor in graph.outputs] + graph.control_outputs
    while waiting:
        operation = waiting.pop()
        if operation.name not in reached:
            reached.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    shapes = [tuple(t.shape) for o in graph.get_operations() if o.name in reached for t in o.outputs if t.shape.rank]
    assert (12, 7, V) not in shapes
    assert (12, 7, 8) in shapes  # features are


@pytest.mark.release
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends are asked for nothing else")
def test_an_eager_step_gives_the_same_numbers():
    x, y, _ = data()
    graph = compiled(MaskedCrossEntropy(0.1))
    eager = compiled(MaskedCrossEntropy(0.1), graph)
    eager.compile(keras.optimizers.SGD(0.5), MaskedCrossEntropy(0.1), run_eagerly=True)
    losses = [model.fit(x, y, 5, epochs=2, shuffle=False, verbose=0).history["loss"] for model in (graph, eager)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_loss_weights_are_honoured():
    x, y, _ = data()
    model = compiled(MaskedCrossEntropy())
    before = model.evaluate(x, y, return_dict=True, verbose=0)["loss"]
    model.compile("sgd", MaskedCrossEntropy(), loss_weights=0.25)
    np.testing.assert_allclose(model.evaluate(x, y, return_dict=True, verbose=0)["loss"], before / 4, rtol=1e-5)
