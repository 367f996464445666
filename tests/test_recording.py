"""The attention weights of finished models: which are collected, under which names, and what is refused."""

import threading

import keras
import numpy as np
import pytest
from helpers import gradients, numpy_softmax, random, randomize, to_numpy
from keras import ops

from keras_attention import (
    AdditiveAttention,
    Attention,
    AttentionPooling,
    AttentiveRNN,
    ConcatAttention,
    CosineAttention,
    CrossAttention,
    DotProductAttention,
    GeneralAttention,
    LocationAttention,
    MaskedSelfAttention,
    ScaledDotProductAttention,
    SelfAttention,
    record_scores,
)

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
B, T, S, D, U, V = 2, 3, 5, 7, 11, 13
IDS = np.array([[4, 5, 6, 0, 0], [7, 8, 9, 10, 0]])
X, MEMORY = random(B, T, D), random(B, S, D, seed=1)


@keras.saving.register_keras_serializable("test_recording")
class DistanceAttention(Attention):
    """A user's own score."""

    def score(self, query, key):
        return -ops.sum(ops.square(query[:, :, None] - key[:, None]), axis=-1)


# Each layer, its inputs, and what its weights measure.
LAYERS = {
    "additive": (lambda: AdditiveAttention(U), (X, MEMORY), (B, T, S)),
    "concat": (lambda: ConcatAttention(U), (X, MEMORY), (B, T, S)),
    "cosine": (CosineAttention, (X, MEMORY), (B, T, S)),
    "dot": (DotProductAttention, (X, MEMORY), (B, T, S)),
    "general": (GeneralAttention, (X, MEMORY), (B, T, S)),
    "location": (lambda: LocationAttention(U), (X, MEMORY), (B, T, S)),
    "scaled_dot": (ScaledDotProductAttention, (X, MEMORY), (B, T, S)),
    "own": (DistanceAttention, (X, MEMORY), (B, T, S)),
    "cross": (lambda: CrossAttention(U), (X, MEMORY), (B, T, S)),
    "self": (lambda: SelfAttention(U), (X,), (B, T, T)),
    "masked": (lambda: MaskedSelfAttention(U), (X,), (B, T, T)),
    "pooling": (AttentionPooling, (X,), (B, T)),
    "pooling_of_a_layer": (lambda: AttentionPooling(CrossAttention(U)), (X,), (B, T)),
    "bahdanau": (lambda: AttentiveRNN(U, attention=AdditiveAttention(U)), (X, MEMORY), (B, T, S)),
    "luong": (lambda: AttentiveRNN(D, attention=DotProductAttention(), order="luong"), (X, MEMORY), (B, T, S)),
}


@pytest.mark.parametrize(("make", "inputs", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_layer_records_what_it_gives_on_request_once_a_call(make, inputs, shape):
    layer = make()
    layer(*inputs)
    randomize(layer)
    output, weights = layer(*inputs, return_attention_scores=True)
    assert tuple(weights.shape) == shape
    with record_scores() as scores:
        recorded = layer(*inputs)
        layer(*inputs, return_attention_scores=True)
    np.testing.assert_array_equal(to_numpy(recorded), to_numpy(output))
    assert list(scores) == [layer.path]
    assert len(scores[layer.path]) == 2
    for found in scores[layer.path]:
        assert ops.is_tensor(found) and not getattr(found, "requires_grad", False)
        np.testing.assert_array_equal(to_numpy(found), to_numpy(weights))


# ----------------------------------------------------------------------------------------------------- models


def functional():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    first, shared = MaskedSelfAttention(D, name="first"), SelfAttention(D, dropout=0.2, name="shared")
    x = shared(shared(first(x)))
    return keras.Model(ids, keras.layers.Dense(V)(AttentionPooling(name="pool")(x)), name="functional")


def sequential():
    return keras.Sequential(
        [
            keras.layers.Embedding(V, D, mask_zero=True),
            SelfAttention(D, name="one"),
            SelfAttention(D, name="two"),
            AttentionPooling(name="pool"),
        ],
        name="sequential",
    )


@keras.saving.register_keras_serializable("test_recording")
class Encoder(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = SelfAttention(D, name="attention")

    def call(self, x):
        return self.attention(x)


@keras.saving.register_keras_serializable("test_recording")
class Subclassed(keras.Model):
    """Two blocks whose layers have one name, two layers with one path, and a decoder that attends in its loop."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(V, D)
        self.blocks = [Encoder(name=f"block_{number}") for number in range(2)]
        self.twins = [CrossAttention(D, name="twin") for _ in range(2)]
        self.decoder = AttentiveRNN(D, attention=AdditiveAttention(U), name="decoder")

    def call(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        for twin in reversed(self.twins):
            x = twin(x, x)
        return self.decoder(x, x)


MODELS = {
    "functional": (functional, {"first": 1, "shared": 2, "pool": 1}),
    "sequential": (sequential, {"sequential/one": 1, "sequential/two": 1, "sequential/pool": 1}),
    "subclassed": (
        lambda: Subclassed(name="model"),
        {
            "model/block_0/attention": 1,
            "model/block_1/attention": 1,
            "model/twin": 1,
            "model/twin_1": 1,
            "model/decoder": 1,
        },
    ),
}


def counts(scores):
    return {path: len(calls) for path, calls in scores.items()}


@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_paths_and_calls_of_a_model_from_its_very_first_call_and_after_reloading(make, expected, tmp_path):
    model = make()
    with record_scores() as scores:  # a subclassed or Sequential model is built by this call, symbolically
        output = to_numpy(model(IDS))
    assert counts(scores) == expected
    assert list(scores) == list(expected)
    np.testing.assert_array_equal(to_numpy(model(IDS)), output)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    with record_scores() as again:
        loaded(IDS)
    assert list(counts(again).values()) == list(expected.values())
    for one, two in zip(scores.values(), again.values(), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_equal_paths_belong_to_the_layers_in_the_order_of_their_first_call():
    model = Subclassed(name="model")
    model(IDS)
    second, first = model.twins
    assert first.path == second.path == "model/twin"
    queries = random(B, S, D, seed=3)
    with record_scores() as scores:
        for layer in (first, second, first):
            layer(queries, queries)
    assert counts(scores) == {"model/twin": 2, "model/twin_1": 1}
    for path, layer in (("model/twin", first), ("model/twin_1", second)):
        expected = layer(queries, queries, return_attention_scores=True)[1]
        np.testing.assert_array_equal(to_numpy(scores[path][-1]), to_numpy(expected))


def test_two_models_in_one_have_paths_of_their_own():
    def tower():
        x = keras.Input((S, D))
        return keras.Model(x, SelfAttention(D, name="attention")(x))

    x = keras.Input((S, D))
    one, two = tower(), tower()
    model = keras.Model(x, two(one(one(x))))
    with record_scores() as scores:
        model(MEMORY)
    assert counts(scores) == {"attention": 2, "attention_1": 1}


def test_it_reads_a_trained_model_and_its_numbers_are_the_models_own():
    model = functional()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IDS, np.array([1, 2]), verbose=0)
    with record_scores() as scores:
        model(IDS)
    first = model.get_layer("first")
    embedded = to_numpy(model.layers[1](IDS)).astype("float64")
    query, key = (embedded @ to_numpy(dense.kernel.value) for dense in (first.query_dense, first.key_dense))
    real = (IDS != 0)[:, :, None] & (IDS != 0)[:, None] & np.tril(np.ones((S, S), bool))
    expected = numpy_softmax(query @ key.swapaxes(1, 2) / D**0.5, real)
    np.testing.assert_allclose(to_numpy(scores["first"][0]), expected, atol=1e-6)
    assert np.all(to_numpy(scores["pool"][0])[IDS == 0] == 0)


# --------------------------------------------------------------------------------- it changes nothing


@pytest.mark.parametrize("order", ["bahdanau", "luong"])
def test_recording_changes_neither_outputs_nor_gradients(order):
    layer = AttentiveRNN(D, attention=DotProductAttention(), order=order)
    layer.build(X.shape, MEMORY.shape)
    randomize(layer)

    def results():
        output = to_numpy(layer(X, MEMORY))
        if BACKEND == "jax":  # its gradients are traced
            return [output]
        return [
            output,
            *gradients(lambda *x: ops.sum(ops.square(layer(*x))), [X, MEMORY], layer.trainable_weights),
        ]

    plain = results()
    with record_scores():
        recorded = results()
    for one, two in zip(plain, recorded, strict=True):
        np.testing.assert_array_equal(one, two)


def test_recording_draws_no_random_numbers():
    layers = [SelfAttention(U, dropout=0.5, seed=1) for _ in range(2)]
    for layer in layers:
        layer.build(X.shape)
        randomize(layer)
    plain = [to_numpy(layers[0](X, training=True)) for _ in range(2)]
    with record_scores() as scores:
        recorded = [to_numpy(layers[1](X, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(recorded, plain)
    assert np.abs(plain[0] - plain[1]).max() > 0.01
    first, second = scores[layers[1].path]  # before dropout
    np.testing.assert_array_equal(to_numpy(first), to_numpy(second))


# -------------------------------------------------------------------------------------- blocks and threads


def test_blocks_nest_and_end():
    layer = SelfAttention(U, name="attention")
    with record_scores() as outer:
        layer(X)
        with record_scores() as inner:
            layer(MEMORY)
        assert counts(inner) == {"attention": 1}
        layer(X)
    layer(X)
    assert [tuple(weights.shape) for weights in outer["attention"]] == [(B, T, T), (B, S, S), (B, T, T)]
    assert [tuple(weights.shape) for weights in inner["attention"]] == [(B, S, S)]


def test_an_error_ends_the_block_and_is_not_hidden():
    layer = SelfAttention(U, name="attention")
    with pytest.raises(KeyError, match="mine"), record_scores() as scores:
        layer(X)
        raise KeyError("mine")
    layer(X)
    assert counts(scores) == {"attention": 1}
    with pytest.raises(KeyError, match="mine"), record_scores():
        raise KeyError("mine")


def test_threads_do_not_see_each_other():
    layers = [SelfAttention(U, name=f"attention_{number}") for number in range(3)]
    for layer in layers:
        layer(X)
    found, barrier = {}, threading.Barrier(2, timeout=60)

    def record(number):
        with record_scores() as scores:
            barrier.wait()
            for _ in range(number + 1):
                layers[number](X)
            barrier.wait()
        found[number] = counts(scores)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: {"attention_0": 1}, 1: {"attention_1": 2}}
    with record_scores() as scores:
        thread = threading.Thread(target=lambda: layers[0](X))
        thread.start()
        thread.join()
        layers[2](X)
    assert counts(scores) == {"attention_2": 1}


# ------------------------------------------------------------------------------------------- traced calls

TRACED = r"expects a model that runs eagerly. Received: a traced call of .*/one; call the model directly, model\(x\)"
NOTHING = r"recorded nothing: .* ran eagerly in its block. If the model .* call the model directly, model\(x\)"


@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile breaks its graph, and records")
def test_a_compiled_call_is_refused_and_leaves_the_model_as_it_was():
    if BACKEND == "tensorflow":
        from tensorflow import function as compiled
    else:
        from jax import jit as compiled
    model = keras.Sequential([SelfAttention(D, name="one")], name="model")
    output, x = to_numpy(model(X)), ops.convert_to_tensor(X)
    with pytest.raises(RuntimeError, match=TRACED), record_scores():
        compiled(model)(x)
    np.testing.assert_array_equal(to_numpy(model(X)), output)
    np.testing.assert_allclose(to_numpy(compiled(model)(x)), output, atol=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's compiler")
def test_where_nothing_is_recorded_torch_compiles_one_graph():
    import torch

    model = keras.Sequential([SelfAttention(D), AttentionPooling()])
    output = to_numpy(model(X))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    np.testing.assert_allclose(to_numpy(compiled(ops.convert_to_tensor(X))), output, atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="runs predict and fit eagerly, and records")
@pytest.mark.parametrize("verb", ["predict", "fit"])
def test_predict_and_fit_are_refused_and_leave_the_model_as_it_was(verb):
    model = keras.Sequential([SelfAttention(D, name="one")], name="model")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    output = to_numpy(model(X))
    run = {"predict": lambda: model.predict(X, verbose=0), "fit": lambda: model.fit(X, X, verbose=0)}[verb]
    with pytest.raises(RuntimeError, match=TRACED), record_scores():
        run()
    np.testing.assert_array_equal(to_numpy(model(X)), output)
    # What was traced before runs without Python, so that the end of the block tells.
    run()
    with pytest.raises(RuntimeError, match=NOTHING), record_scores():
        run()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's run_eagerly")
def test_an_eager_predict_is_recorded_batch_by_batch():
    model = keras.Sequential([SelfAttention(D, name="one")], name="model")
    model.compile(run_eagerly=True)
    with record_scores() as scores:
        model.predict(random(5, T, D), batch_size=2, verbose=0)
    assert [weights.shape[0] for weights in scores["model/one"]] == [2, 2, 1]


@pytest.mark.parametrize("make", [lambda: SelfAttention(D), lambda: AttentionPooling(), sequential], ids=range(3))
def test_a_symbolic_call_is_refused(make):
    layer = make()
    x = keras.Input((S,), dtype="int32") if isinstance(layer, keras.Model) else keras.Input((S, D))
    with pytest.raises(RuntimeError, match=NOTHING), record_scores():
        layer(x)


def test_a_model_may_be_made_inside_of_a_block():
    with record_scores() as scores:
        functional()(IDS)
    assert counts(scores) == MODELS["functional"][1]


def test_a_model_without_attention_is_said_to_have_none():
    layer = AttentiveRNN(U)
    with pytest.raises(RuntimeError, match=NOTHING), record_scores():
        layer(X)
