"""Attention pooling: contract, numbers, masks, models, errors."""

import hypothesis
import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, numpy_softmax, random, randomize, to_numpy
from hypothesis import strategies
from keras import ops

from keras_attention import (
    AdditiveAttention,
    AttentionPooling,
    CrossAttention,
    DotProductAttention,
    LocationAttention,
    SelfAttention,
)

pytestmark = pytest.mark.backends
B, S, D, DQ, U, V = 3, 5, 7, 11, 13, 17
X, QUERY = random(B, S, D), random(B, DQ, seed=1)
MASK = np.array([[True, True, True, False, False], [True, False, True, True, True], [False] * 5])
NAMES = ["additive", "concat", "cosine", "dot", "general", "scaled_dot"]
LAYERS = {
    "additive_layer": lambda: AdditiveAttention(U, use_bias=True),
    "location": lambda: LocationAttention(U),
    "cross": lambda: CrossAttention(U, use_bias=True),
}
few = hypothesis.settings(max_examples=10, deadline=None, derandomize=True, database=None)


def attention_of(name):
    return LAYERS[name]() if name in LAYERS else name


def built(name="additive", query=None, seed=0, **options):
    layer = AttentionPooling(attention_of(name), **options)
    layer.build(X.shape, None if query is None else query.shape)
    return randomize(layer, seed)


def every_attention():
    return pytest.mark.parametrize("name", [*NAMES, *LAYERS])


# ------------------------------------------------------------------------------------------ contract, numbers


@pytest.mark.parametrize("name", [*NAMES, "location", "cross_without_bias"])
def test_contract(name):
    attention = CrossAttention(U) if name == "cross_without_bias" else attention_of(name)
    check_layer(AttentionPooling(attention, query_initializer="ones"), {"value": X})


@pytest.mark.parametrize("name", ["additive", "concat", "general", "location"])
def test_contract_with_a_given_query(name):
    check_layer(AttentionPooling(attention_of(name)), {"value": X, "query": QUERY})


def kernel(layer):
    return to_numpy(layer.kernel.value).astype("float64")


def additive(layer, q, k):
    bias = to_numpy(layer.key_projection.bias.value) if layer.use_bias else 0
    hidden = q @ kernel(layer.query_projection) + k @ kernel(layer.key_projection) + bias
    return np.tanh(hidden) @ to_numpy(layer.score_vector.value)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def dense(layer, x):
    return x @ kernel(layer) + to_numpy(layer.bias.value)


# Scores [B, S] of queries [B, 1, Dq] and keys [B, S, D], in float64.
ORACLES = {
    "additive": additive,
    "additive_layer": additive,
    "concat": lambda layer, q, k: (
        np.tanh(np.concatenate([np.repeat(q, S, axis=1), k], axis=-1) @ kernel(layer))
        @ to_numpy(layer.score_vector.value)
    ),
    "cosine": lambda layer, q, k: np.exp(to_numpy(layer.log_sharpness.value)) * (unit(q) * unit(k)).sum(-1),
    "dot": lambda layer, q, k: (q * k).sum(-1),
    "general": lambda layer, q, k: (q * (k @ kernel(layer))).sum(-1),
    "location": lambda layer, q, k: (q @ kernel(layer))[:, 0, :S],
    "scaled_dot": lambda layer, q, k: (q * k).sum(-1) / D**0.5,
    "cross": lambda layer, q, k: (dense(layer.query_dense, q) * dense(layer.key_dense, k)).sum(-1) / U**0.5,
}


@pytest.mark.parametrize("learned", [True, False])
@every_attention()
def test_numbers_equal_an_oracle(name, learned):
    query = None if learned else QUERY[:, :D] if name in ("cosine", "dot", "scaled_dot") else QUERY
    layer = built(name, query)
    vector = to_numpy(layer.learned_query.value)[None].repeat(B, axis=0) if learned else query
    value = X.astype("float64")
    weights = numpy_softmax(ORACLES[name](layer.scorer, vector[:, None].astype("float64"), value), MASK)
    value = dense(layer.scorer.value_dense, value) if name == "cross" else value
    expected = np.einsum("bs,bsd->bd", weights, value)
    given = {} if learned else {"query": query}
    results = layer(X, **given, mask=MASK, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(results[0]), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(results[1]), weights, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(layer(X, **given, mask=MASK)), to_numpy(results[0]))
    assert np.all(to_numpy(results[1])[~MASK] == 0)
    assert results[0].shape == layer.compute_output_shape(X.shape, None if learned else query.shape)


def test_by_hand():
    """Two words, keys 0 and ln 3 for the query (1, 0): weights 1/4 and 3/4."""
    layer = AttentionPooling("dot")
    value = np.array([[[0.0, 8.0], [np.log(3), 4.0], [9.0, 9.0]]], "float32")
    output, weights = layer(
        value, np.array([[1.0, 0.0]], "float32"), mask=np.array([[1, 1, 0]]), return_attention_scores=True
    )
    np.testing.assert_allclose(to_numpy(weights), [[0.25, 0.75, 0]], atol=1e-7)
    np.testing.assert_allclose(to_numpy(output), [[0.75 * np.log(3), 5]], rtol=1e-6)


def test_it_has_the_weights_that_it_should_have():
    assert built("dot").count_params() == D
    assert built("additive").count_params() == 2 * D * D + D + D
    assert built("general", QUERY).count_params() == D * DQ
    assert built("additive_layer", QUERY).count_params() == DQ * U + D * U + U + U


@every_attention()
def test_symbolic_shapes(name):
    output, weights = AttentionPooling(attention_of(name))(keras.Input((None, D)), return_attention_scores=True)
    assert output.shape == (None, U if name == "cross" else D)
    assert weights.shape == (None, None)


# ------------------------------------------------------------------------------------------------------ masks


def outputs_and_gradients(layer, inputs, **given):
    def loss(*x):
        return ops.sum(ops.square(layer(*x, **given)))

    found = gradients(loss, inputs, layer.trainable_weights)
    return [to_numpy(layer(*inputs, **given)), *(x for x in found if x is not None)]


@pytest.mark.tensorflow_first
@few
@hypothesis.given(
    strategies.integers(0, 2**16),
    strategies.sampled_from([*NAMES, *LAYERS]),
    strategies.sampled_from([np.nan, np.inf, -1e30]),
    strategies.booleans(),
)
def test_nothing_leaks_from_behind_padding(seed, name, poison, learned):
    query = None if learned else random(B, D, seed=seed + 1)
    layer = built(name, query, seed)
    mask = np.random.default_rng(seed).random((B, S)) > 0.4
    x = random(B, S, D, seed=seed)
    inputs = [x] if learned else [x, query]
    poisoned = [np.where(mask[:, :, None], x, np.float32(poison)), *inputs[1:]]
    clean = outputs_and_gradients(layer, inputs, mask=mask)
    for one, two in zip(clean, outputs_and_gradients(layer, poisoned, mask=mask), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)
    assert np.all(clean[1][~mask] == 0)


@few
@hypothesis.given(
    strategies.integers(0, 2**16),
    strategies.sampled_from([name for name in (*NAMES, *LAYERS) if name != "location"]),
    strategies.permutations(range(S)),
)
def test_the_order_of_a_sequence_does_not_matter(seed, name, order):
    layer, x = built(name, seed=seed), random(B, S, D, seed=seed)
    output, weights = layer(x, mask=MASK, return_attention_scores=True)
    moved, moved_weights = layer(x[:, order], mask=MASK[:, order], return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(moved), to_numpy(output), atol=2e-5)
    np.testing.assert_allclose(to_numpy(moved_weights), to_numpy(weights)[:, order], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in (*NAMES, *LAYERS) for dtype in ("float32", "mixed_float16", "mixed_bfloat16")]
    + [(name, dtype) for name in ("additive", "scaled_dot", "cross") for dtype in ("float16", "bfloat16")],
)
def test_a_row_of_padding_alone_gives_zeros(name, dtype):
    attention = attention_of(name)
    if not isinstance(attention, str):
        attention = type(attention).from_config({**attention.get_config(), "dtype": dtype})
    layer = AttentionPooling(attention, dtype=dtype)
    layer.build(X.shape)
    randomize(layer)
    output, weights = layer(X, mask=MASK, return_attention_scores=True)
    assert "float32" in str(weights.dtype)
    for x in (output, weights):
        x = to_numpy(ops.cast(x, "float32"))
        assert np.isfinite(x).all() and np.all(x[2] == 0) and np.abs(x[:2]).max(-1).min() > 0
    found = gradients(
        lambda x: ops.sum(ops.square(ops.cast(layer(x, mask=MASK), "float32"))), [X], layer.trainable_weights
    )
    assert all(np.isfinite(x).all() for x in found)
    assert np.all(found[0][~MASK] == 0)


IDS = np.array([[3, 4, 0, 0, 0], [5, 6, 7, 8, 0], [0] * 5])


@pytest.mark.parametrize("query", [None, QUERY])
@pytest.mark.parametrize("explicit", ["mask", "value_mask"])
def test_the_mask_of_an_embedding_is_honored_beside_an_explicit_one(query, explicit):
    embedding, layer = keras.layers.Embedding(V, D, mask_zero=True), AttentionPooling()
    given, symbols, arrays = {}, {"ids": keras.Input((S,), dtype="int32", name="ids")}, {"ids": IDS}
    if query is not None:
        given, arrays["query"] = {"query": query}, query
        symbols["query"] = keras.Input((DQ,), name="query")
    more = np.array([[True, True, True, True, True], [True, False, True, True, True], [True] * 5])
    for masks, allowed in (
        ({}, IDS != 0),
        ({explicit: more}, (IDS != 0) & more),
        ({explicit: MASK}, (IDS != 0) & MASK),
    ):
        _, weights = layer(embedding(IDS), **given, **masks, return_attention_scores=True)
        assert np.array_equal(to_numpy(weights) > 0, allowed)
    symbolic = layer(embedding(symbols["ids"]), symbols.get("query"), return_attention_scores=True)
    model = keras.Model(symbols, symbolic[1])
    assert np.array_equal(to_numpy(model(arrays)) > 0, IDS != 0)


def test_both_names_of_the_mask_and_integers():
    layer, other = built(), np.array([[True, False, True, True, True]] * B)
    expected = to_numpy(layer(X, mask=MASK & other))
    assert np.abs(expected - to_numpy(layer(X))).max() > 1e-2
    for given in ({"mask": MASK, "value_mask": other}, {"value_mask": (MASK & other).astype("int32")}):
        np.testing.assert_array_equal(to_numpy(layer(X, **given)), expected)


def test_the_output_carries_no_mask():
    ids = keras.Input((S,), dtype="int32")
    x = AttentionPooling()(keras.layers.Embedding(V, D, mask_zero=True)(ids))
    again = keras.layers.RepeatVector(2)(keras.layers.Dense(U)(x))
    model = keras.Model(ids, keras.layers.LSTM(U)(again))
    assert model(IDS).shape == (B, U)
    pooled = AttentionPooling()(keras.layers.Embedding(V, D, mask_zero=True)(IDS))
    assert getattr(pooled, "_keras_mask", None) is None


# ----------------------------------------------------------------------------------------------------- models


def functional(**options):
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    x = keras.layers.GRU(U, return_sequences=True)(x)
    return keras.Model(ids, keras.layers.Dense(2)(AttentionPooling(**options)(x)))


def sequential(**options):
    return keras.Sequential(
        [keras.layers.Embedding(V, D, mask_zero=True), AttentionPooling(**options), keras.layers.Dense(2)]
    )


@keras.saving.register_keras_serializable("test_pooling")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(V, D, mask_zero=True)
        self.pooling = AttentionPooling(AdditiveAttention(U))
        self.last = keras.layers.Dense(2)

    def call(self, ids):
        x = self.embedding(ids)
        return self.last(self.pooling(x, ops.mean(x, axis=1)))


MODELS = {
    "functional": functional,
    "sequential": sequential,
    "sequential_cross": lambda: sequential(attention=CrossAttention(U, dropout=0.1)),
    "subclassed": Subclassed,
}


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_train_save_and_honor_the_embeddings_mask(make, tmp_path):
    model = make()
    model(IDS)
    layer = next(layer for layer in model._flatten_layers() if isinstance(layer, AttentionPooling))
    before = layer.get_weights()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    labels = np.array([0, 1, 1])
    history = model.fit(IDS, labels, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]
    assert not any(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
    output = to_numpy(model(IDS))
    np.testing.assert_allclose(model.predict(IDS, verbose=0), output, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(IDS)), output, atol=1e-6)
    if not isinstance(model, Subclassed):
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        np.testing.assert_allclose(to_numpy(clone(IDS)), output, atol=1e-6)
        longer = np.concatenate([IDS, np.zeros((B, 2), int)], axis=1)
        np.testing.assert_allclose(to_numpy(model(longer)), output, atol=1e-5)


def test_it_learns_where_to_look():
    """The label is which of two words stands anywhere in a sentence: the weights must find it."""
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(0)
    ids = generator.integers(3, V, size=(256, S))
    labels = generator.integers(2, size=256)
    places = generator.integers(S, size=256)
    ids[np.arange(256), places] = 1 + labels
    inputs = keras.Input((S,), dtype="int32")
    x, weights = AttentionPooling()(keras.layers.Embedding(V, D)(inputs), return_attention_scores=True)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile(keras.optimizers.Adam(0.03), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(ids, labels, batch_size=64, epochs=40, verbose=0).history
    assert history["accuracy"][-1] == 1
    found = to_numpy(keras.Model(inputs, weights)(ids)).argmax(-1)
    assert np.mean(found == places) > 0.95


def test_the_attentions_dropout_acts_in_training_only():
    layer = AttentionPooling(AdditiveAttention(U, dropout=0.5, seed=1))
    layer.build(X.shape)
    randomize(layer)
    plain = to_numpy(layer(X))
    np.testing.assert_array_equal(to_numpy(layer(X)), plain)
    assert np.abs(to_numpy(layer(X, training=True)) - plain).max() > 0.01


# ----------------------------------------------------------------------------------------------------- errors


def with_both():
    layer = AttentionPooling()
    layer(X)
    layer(X, QUERY)


def with_none():
    layer = AttentionPooling(name="pool")
    layer(X, QUERY)
    layer(X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AttentionPooling("location"), ValueError, "one of additive, concat, .*Received: attention='location'"),
        (lambda: AttentionPooling(["dot"]), ValueError, r"Received: attention=\['dot'\]"),
        (lambda: AttentionPooling(DotProductAttention), ValueError, r"a layer such as AdditiveAttention\(units\)"),
        (lambda: AttentionPooling(SelfAttention(3)), ValueError, "Received: attention=<SelfAttention"),
        (lambda: AttentionPooling()(X[0]), ValueError, r"\[batch, length, width\] .*value.shape=\(5, 7\), query.*None"),
        (lambda: AttentionPooling()(X, X), ValueError, r"query \[batch, width\] or None.*query.shape=\(3, 5, 7\)"),
        (lambda: AttentionPooling("dot")(X, QUERY), ValueError, "query width 11, key width 7"),
        (with_both, ValueError, "was built with a learned query.*Received: a query, too; make one layer"),
        (with_none, ValueError, "AttentionPooling pool was built with no learned query.*Received: none"),
        (lambda: AttentionPooling()(X, mask=np.ones((B, S), "float32")), TypeError, "mask must be boolean"),
        (lambda: AttentionPooling()(X, value_mask=np.ones((B, S), "float32")), TypeError, "value_mask must be boolean"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
