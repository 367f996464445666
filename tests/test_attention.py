"""The attention layers: contract, numbers, masks, errors."""

import inspect

import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, numpy_softmax, random, randomize, to_numpy
from keras import ops

from keras_attention import (
    AdditiveAttention,
    Attention,
    AttentiveRNN,
    ConcatAttention,
    CosineAttention,
    DotProductAttention,
    GeneralAttention,
    LocationAttention,
    ScaledDotProductAttention,
    additive_score,
    concat_score,
    cosine_score,
    dot_score,
    general_score,
    location_score,
    scaled_dot_score,
)

pytestmark = pytest.mark.backends
B, T, S, D, M, U, L, DK = 2, 3, 5, 7, 11, 13, 17, 19
QUERY, VALUE, KEY = random(B, T, D), random(B, S, M, seed=1), random(B, S, D, seed=2)
LAYERS = {
    "additive": lambda **options: AdditiveAttention(U, use_bias=True, **options),
    "concat": lambda **options: ConcatAttention(U, **options),
    "cosine": lambda **options: CosineAttention(initial_sharpness=3.0, **options),
    "dot": DotProductAttention,
    "general": lambda **options: GeneralAttention(kernel_initializer="he_normal", **options),
    "location": lambda **options: LocationAttention(L, **options),
    "scaled_dot": ScaledDotProductAttention,
}


@keras.saving.register_keras_serializable("test")
class DistanceAttention(Attention):
    """A user's own score, by the one verb."""

    def score(self, query, key):
        return -ops.sum(ops.square(query[:, :, None] - key[:, None]), axis=-1)


def every_layer():
    return pytest.mark.parametrize("make", [*LAYERS.values(), DistanceAttention], ids=[*LAYERS, "own"])


@every_layer()
def test_contract(make):
    layer = make()
    inputs = {"query": QUERY, "value": VALUE, "key": KEY}
    layer.build(*(x.shape for x in inputs.values()))
    assert layer.built
    arguments = set(inspect.signature(type(layer)).parameters) - {"kwargs"}
    assert arguments <= layer.get_config().keys()
    if layer.weights:
        check_layer(layer, inputs)
    else:
        clone = type(layer).from_config(layer.get_config())
        np.testing.assert_array_equal(to_numpy(clone(**inputs)), to_numpy(layer(**inputs)))


SCORES_BY_HAND = {
    "additive": (
        lambda q, k: additive_score(q, k, np.array([2.0, -1.0], "float32")),
        [2 * np.tanh(4) - np.tanh(1), 2 * np.tanh(1.5) - np.tanh(2)],
    ),
    "concat": (
        lambda q, k: concat_score(q, k, np.array([[1, 0], [0, 1], [2, 0], [0, 3]], "float32"), np.array([2.0, -1.0])),
        [2 * np.tanh(7) - np.tanh(-1), 2 * np.tanh(2) - np.tanh(2)],
    ),
    "cosine": (lambda q, k: cosine_score(q, k, 3.0), [3 / 50**0.5, 3 / 5**0.5]),
    "cosine_unsharpened": (cosine_score, [1 / 50**0.5, 1 / 5**0.5]),
    "dot": (dot_score, [1.0, 0.5]),
    "general": (lambda q, k: general_score(q, k, np.array([[1, 2], [3, 4]], "float32")), [4.0, 2.5]),
    "location": (lambda q, k: location_score(q, np.array([[1, 2, 9], [3, -4, 9]], "float32"), 2), [7.0, -6.0]),
    "scaled_dot": (scaled_dot_score, [1 / 2**0.5, 0.5 / 2**0.5]),
}


@pytest.mark.parametrize(("score", "expected"), SCORES_BY_HAND.values(), ids=SCORES_BY_HAND)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_scores_by_hand_in_at_least_float32(score, expected, dtype):
    query, key = np.array([[[1.0, 2.0]]], dtype), np.array([[[3.0, -1.0], [0.5, 0.0]]], dtype)
    result = score(ops.convert_to_tensor(query), ops.convert_to_tensor(key))
    np.testing.assert_allclose(to_numpy(result), [[expected]], rtol=1e-6)
    assert keras.utils.standardize_dtype(result.dtype) in ("float32", "float64")


def pairs(query, key):
    """[q; k] of every query with every key: [B, T, S, Dq + Dk]."""
    shape = (*query.shape[:2], key.shape[1])
    query = np.broadcast_to(query[:, :, None], (*shape, query.shape[-1]))
    return np.concatenate([query, np.broadcast_to(key[:, None], (*shape, key.shape[-1]))], axis=-1)


def float64(x):
    return to_numpy(ops.convert_to_tensor(x)).astype("float64")


def additive_oracle(layer, query, key):
    query = query @ float64(layer.query_projection.kernel)
    key = key @ float64(layer.key_projection.kernel) + float64(layer.key_projection.bias)
    return np.tanh(query[:, :, None] + key[:, None]) @ float64(layer.score_vector)


def concat_oracle(layer, query, key):
    return np.tanh(pairs(query, key) @ float64(layer.kernel)) @ float64(layer.score_vector)


def cosine_oracle(layer, query, key):
    lengths = np.linalg.norm(query, axis=-1)[:, :, None] * np.linalg.norm(key, axis=-1)[:, None]
    return np.exp(float64(layer.log_sharpness)) * np.einsum("btd,bsd->bts", query, key) / lengths


# What each score is in float64, the width of its keys, and how many weights it has.
ORACLES = {
    "additive": (additive_oracle, DK, D * U + (DK + 1) * U + U),
    "concat": (concat_oracle, DK, (D + DK) * U + U),
    "cosine": (cosine_oracle, D, 1),
    "dot": (lambda layer, q, k: np.einsum("btd,bsd->bts", q, k), D, 0),
    "general": (lambda layer, q, k: np.einsum("btq,kq,bsk->bts", q, float64(layer.kernel), k), DK, DK * D),
    "location": (lambda layer, q, k: (q @ float64(layer.kernel))[:, :, :S], DK, D * L),
    "scaled_dot": (lambda layer, q, k: np.einsum("btd,bsd->bts", q, k) / D**0.5, D, 0),
}


@pytest.mark.parametrize("name", ORACLES)
def test_layers_equal_the_papers(name):
    oracle, width, count = ORACLES[name]
    key = random(B, S, width, seed=2)
    layer = LAYERS[name]()
    layer.build(QUERY.shape, VALUE.shape, key.shape)
    randomize(layer)
    expected = numpy_softmax(oracle(layer, QUERY.astype("float64"), key.astype("float64")))
    context, weights = layer(QUERY, VALUE, key, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(weights), expected, atol=1e-6)
    np.testing.assert_allclose(to_numpy(context), expected @ VALUE, atol=1e-5)
    assert layer.count_params() == count


@pytest.mark.parametrize("name", ["cosine", "dot", "location", "scaled_dot"])
def test_where_nothing_is_projected_16_bits_round_only_what_comes_in(name):
    layer = randomize_built(LAYERS[name](dtype="mixed_bfloat16"))
    query, key = (float64(ops.cast(ops.cast(x, "bfloat16"), "float32")) for x in (QUERY, KEY))
    weights = layer(QUERY, VALUE, KEY, return_attention_scores=True)[1]
    np.testing.assert_allclose(to_numpy(weights), numpy_softmax(ORACLES[name][0](layer, query, key)), atol=1e-6)


def randomize_built(layer):
    layer.build(QUERY.shape, VALUE.shape, KEY.shape)
    return randomize(layer)


def test_the_kernel_of_concat_is_initialized_as_one():
    layer = ConcatAttention(U, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    layer.build((B, T, D), (B, S, DK))
    one = keras.initializers.GlorotUniform(seed=1)((D + DK, U))
    np.testing.assert_array_equal(to_numpy(layer.kernel.value), to_numpy(one))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_cosine_is_finite_at_zero_vectors(dtype):
    layer = randomize_built(CosineAttention(dtype=dtype))
    query, key = QUERY.copy(), KEY.copy()
    query[0, 1], key[1, 2], key[0] = 0, 0, 0
    mask = np.array([[True] * S, [True, True, True, False, False]])
    weights = to_numpy(layer(query, VALUE, key, return_attention_scores=True)[1])
    np.testing.assert_allclose(weights[0], 1 / S, atol=1e-6)

    def loss(query, key):
        return ops.sum(ops.square(ops.cast(layer(query, VALUE, key, key_mask=mask), "float32")))

    by_query, by_key, by_sharpness = gradients(loss, [query, key], layer.trainable_weights)
    assert all(np.all(np.isfinite(x)) for x in (by_query, by_key, by_sharpness))
    assert np.all(by_query[0, 1] == 0) and np.all(by_key[1, 2:] == 0)
    assert np.abs(by_query[1]).max() > 1e-3 and np.abs(by_key[1, :2]).max() > 1e-3 and abs(by_sharpness) > 1e-3


def test_cosine_sees_directions_only():
    layer = CosineAttention()
    weights = layer(QUERY, VALUE, KEY, return_attention_scores=True)[1]
    scaled = layer(QUERY * 1e-3, VALUE, KEY * 1e3, return_attention_scores=True)[1]
    np.testing.assert_allclose(to_numpy(scaled), to_numpy(weights), atol=1e-5)
    np.testing.assert_allclose(np.exp(to_numpy(layer.log_sharpness.value)), 10, rtol=1e-6)


def test_location_reads_no_keys_and_takes_any_length_up_to_its_maximum():
    layer = randomize_built(LocationAttention(L))
    scores = QUERY @ to_numpy(layer.kernel.value)
    for length in (1, 2, L):
        value = random(B, length, M)
        _, weights = layer(
            QUERY, value, random(B, length, DK), attention_mask=np.ones((T, length), bool), return_attention_scores=True
        )
        np.testing.assert_allclose(to_numpy(weights), numpy_softmax(scores[:, :, :length]), atol=1e-5)


@pytest.mark.parametrize("maximum", [1, 4])
def test_location_refuses_a_longer_source(maximum):
    message = f"at most max_length={maximum} positions.*Received: length 5"
    with pytest.raises(ValueError, match=message):
        LocationAttention(maximum)(QUERY, VALUE)
    layer = LocationAttention(maximum)
    layer.build((None, None, D), (None, None, M))
    with pytest.raises(ValueError, match=message):
        layer(QUERY, VALUE)
    with pytest.raises(ValueError, match=message):
        layer.weights_for(ops.convert_to_tensor(QUERY), layer.project_key(ops.convert_to_tensor(KEY)))
    with pytest.raises(ValueError, match=message):
        LocationAttention(maximum)(keras.Input((None, D)), keras.Input((S, M)))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's graphs have unknown lengths")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("maximum", [1, S])
def test_location_fails_on_a_longer_source_in_a_graph_of_unknown_length(maximum, compiled):
    import tensorflow as tf

    layer = LocationAttention(maximum)
    layer.build((None, None, D), (None, None, M))
    mask = tf.ones((B, 1, 1), "bool")
    shapes = [tf.TensorSpec((None, None, width)) for width in (D, M)]
    function = tf.function(
        lambda query, value: layer.attend(query, value, layer.project_key(value), mask),
        input_signature=shapes,
        jit_compile=compiled,
    )
    value = random(B, S + 1, M)
    eager = layer(QUERY, value[:, :maximum], attention_mask=np.ones((T, maximum), bool))
    np.testing.assert_allclose(to_numpy(function(QUERY, value[:, :maximum])[0]), to_numpy(eager), atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\[0, {maximum}\], but got {S + 1}"):
        function(QUERY, value)


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's graphs have unknown lengths")
@every_layer()
def test_a_model_trains_under_xla_with_unknown_lengths_in_a_decoder_and_alone(make):
    """The gradient of a product of rank 3 within a loop is what XLA refused."""
    import tensorflow as tf

    source, target = (keras.Input((None,), dtype="int32", name=name) for name in ("source", "target"))
    embedding = keras.layers.Embedding(U, D, mask_zero=True)
    decoder, layer = AttentiveRNN(D, attention=make(), cell="simple_rnn"), make()
    model = keras.Model([source, target], layer(decoder(embedding(target), embedding(source)), embedding(source)))
    before = randomize(model).get_weights()
    generator = np.random.default_rng(5)
    x = tuple(generator.integers(1, U, (B, length)).astype("int32") for length in (L, T))
    ids = tf.TensorSpec((None, None), tf.int32)
    spec = (ids, ids), tf.TensorSpec((None, None, D))
    data = tf.data.Dataset.from_generator(lambda: [(x, random(B, T, D))], output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(1))
    after = {}
    for compiled in (False, True):
        model.set_weights(before)
        model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=compiled, run_eagerly=not compiled)
        model.fit(data, shuffle=False, verbose=0)
        after[compiled] = model.get_weights()
    for weight, old, plain, xla in zip(model.weights, before, after[False], after[True], strict=True):
        assert not np.array_equal(old, xla), weight.path
        np.testing.assert_allclose(xla, plain, atol=1e-5)


@every_layer()
def test_asking_for_weights_changes_nothing_and_keys_default_to_values(make):
    layer = randomize_built(make())
    alone = to_numpy(layer(QUERY, VALUE, KEY))
    np.testing.assert_array_equal(to_numpy(layer(QUERY, VALUE, KEY, return_attention_scores=True)[0]), alone)
    layer = make()
    np.testing.assert_array_equal(to_numpy(layer(QUERY, KEY)), to_numpy(layer(QUERY, KEY, KEY)))


@every_layer()
def test_keys_are_projected_once(make):
    layer = randomize_built(make())
    mask = np.random.default_rng(3).random((B, T, S)) > 0.3
    keys = layer.project_key(ops.convert_to_tensor(KEY))
    context, weights = layer.attend(ops.convert_to_tensor(QUERY), ops.convert_to_tensor(VALUE), keys, mask)
    again = layer(QUERY, VALUE, KEY, attention_mask=mask, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(context), to_numpy(again[0]), atol=1e-6)
    np.testing.assert_allclose(to_numpy(weights), to_numpy(again[1]), atol=1e-6)


MASKS = {
    "query_mask": np.array([[True, True, False], [True, False, True]]),
    "value_mask": np.array([[True, True, True, False, False], [True] * 4 + [False]]),
    "key_mask": np.array([[True, False, True, True, True], [True] * 5]),
    "attention_mask": np.random.default_rng(4).random((B, T, S)) > 0.3,
}


@every_layer()
def test_masks_combine_and_weights_are_exactly_zero(make):
    layer = randomize_built(make())
    _, weights = layer(QUERY, VALUE, KEY, **MASKS, use_causal_mask=True, return_attention_scores=True)
    allowed = (
        MASKS["query_mask"][:, :, None]
        & (MASKS["value_mask"] & MASKS["key_mask"])[:, None, :]
        & MASKS["attention_mask"]
        & np.tril(np.ones((T, S), bool))
    )
    weights = to_numpy(weights)
    assert np.all(weights[~allowed] == 0)
    np.testing.assert_allclose(weights.sum(-1), allowed.any(-1), atol=1e-6)
    integers = {name: mask.astype("int32") for name, mask in MASKS.items()}
    again = layer(QUERY, VALUE, KEY, **integers, use_causal_mask=True, return_attention_scores=True)[1]
    np.testing.assert_array_equal(to_numpy(again), weights)


@every_layer()
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e9])
def test_nothing_leaks_from_behind_padding(make, poison):
    layer = randomize_built(make())
    names = ("query_mask", "value_mask", "key_mask")
    given = {name: MASKS[name] for name in names}
    clean = to_numpy(layer(QUERY, VALUE, KEY, **given))
    query, value, key = QUERY.copy(), VALUE.copy(), KEY.copy()
    query[~MASKS["query_mask"]] = poison
    behind = ~(MASKS["value_mask"] & MASKS["key_mask"])
    value[behind], key[behind] = poison, poison
    np.testing.assert_array_equal(to_numpy(layer(query, value, key, **given)), clean)
    found = gradients(lambda *x: ops.sum(ops.square(layer(*x, **given))), [query, value, key], layer.trainable_weights)
    if isinstance(layer, LocationAttention):
        found.pop(2)  # it does not read the key
    assert all(np.all(np.isfinite(x)) for x in found)
    assert np.all(found[1][behind] == 0)


@every_layer()
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_row_that_may_attend_to_nothing_is_zero(make, dtype):
    layer = randomize_built(make(dtype=dtype))
    mask = np.zeros((B, S), bool)
    mask[1, 2] = True
    context, weights = layer(QUERY, VALUE, KEY, value_mask=mask, return_attention_scores=True)
    assert np.all(to_numpy(ops.cast(context, "float32"))[0] == 0)
    assert np.all(to_numpy(weights)[0] == 0)
    assert np.all(to_numpy(weights)[1, :, 2] == 1)
    assert "float32" in str(weights.dtype)
    found = gradients(lambda q: ops.sum(ops.cast(layer(q, VALUE, KEY, value_mask=mask), "float32")), [QUERY])
    assert np.all(np.isfinite(found[0]))


@every_layer()
def test_the_mask_of_an_embedding_is_honored_beside_an_explicit_one_and_goes_on(make):
    ids = np.array([[4, 5, 0, 0, 0], [6, 7, 8, 9, 0]])
    embedded = keras.layers.Embedding(11, D, mask_zero=True)(ids)
    layer = randomize_built(make())
    explicit = np.array([[False, True, True, True, True], [True] * 5])
    for given in ({"value_mask": explicit}, {"attention_mask": np.repeat(explicit[:, None], 5, axis=1)}):
        context, weights = layer(embedded, embedded, **given, return_attention_scores=True)
        real = (ids != 0)[:, :, None] & ((ids != 0) & explicit)[:, None, :]
        assert np.all(to_numpy(weights)[~real] == 0)
        np.testing.assert_allclose(to_numpy(weights).sum(-1), real.any(-1), atol=1e-6)
    # The next layer still knows what is padding.
    pooled = keras.layers.GlobalAveragePooling1D()(layer(embedded, embedded))
    context = to_numpy(layer(embedded, embedded))
    np.testing.assert_allclose(to_numpy(pooled)[0], context[0, :2].mean(0), atol=1e-6)
    explicit_only = layer(QUERY, KEY, query_mask=MASKS["query_mask"])
    pooled = keras.layers.GlobalAveragePooling1D()(explicit_only)
    np.testing.assert_allclose(to_numpy(pooled)[0], to_numpy(explicit_only)[0, :2].mean(0), atol=1e-6)


@every_layer()
def test_causal_outputs_do_not_see_the_future(make):
    layer = randomize_built(make())
    later = KEY.copy()
    later[:, 3:] += 1
    one, two = (to_numpy(layer(x, x, use_causal_mask=True)) for x in (KEY, later))
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert np.abs(one[:, 3:] - two[:, 3:]).max() > 0.01


def test_dropout_acts_in_training_only_and_scores_are_those_before_it():
    layer = randomize_built(AdditiveAttention(U, dropout=0.5, seed=1))
    plain = to_numpy(layer(QUERY, VALUE, KEY))
    context, weights = layer(QUERY, VALUE, KEY, training=True, return_attention_scores=True)
    assert np.abs(to_numpy(context) - plain).max() > 0.01
    np.testing.assert_allclose(to_numpy(weights).sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(to_numpy(weights) @ VALUE, plain, atol=1e-5)


@every_layer()
def test_symbolic_shapes_of_scores(make):
    query, value = keras.Input((None, D)), keras.Input((S, D))
    context, weights = make()(query, value, return_attention_scores=True)
    assert context.shape == (None, None, D)
    assert weights.shape == (None, None, S)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AdditiveAttention(U)([QUERY, VALUE]), TypeError, r"layer\(query, value, key=None.*\[\(2, 3, 7\)"),
        (lambda: AdditiveAttention(U)(QUERY), TypeError, r"Received: \(2, 3, 7\); write layer\(query, value\)"),
        (lambda: AdditiveAttention(U)(QUERY[0], VALUE), ValueError, r"expects a query .* query.shape=\(3, 7\)"),
        (lambda: DotProductAttention()(QUERY, VALUE), ValueError, "query width 7, key width 11; GeneralAttention"),
        (lambda: CosineAttention()(QUERY, VALUE), ValueError, "CosineAttention .* query width 7, key width 11"),
        (lambda: AdditiveAttention(0), ValueError, "AdditiveAttention expects units of .* Received: units=0"),
        (lambda: ConcatAttention(0), ValueError, "ConcatAttention expects units of .* Received: units=0"),
        (lambda: CosineAttention(0), ValueError, "initial_sharpness above 0. Received: initial_sharpness=0"),
        (lambda: LocationAttention(0), ValueError, "max_length of at least 1. Received: max_length=0"),
        (
            lambda: AdditiveAttention(U)(QUERY, VALUE, value_mask=np.ones((B, S), "float32")),
            TypeError,
            "value_mask must be boolean",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
