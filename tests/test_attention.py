"""The attention layers: contract, numbers, masks, errors."""

import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, numpy_softmax, random, randomize, to_numpy
from keras import ops

from keras_attention import (
    AdditiveAttention,
    Attention,
    DotProductAttention,
    ScaledDotProductAttention,
    additive_score,
    dot_score,
    scaled_dot_score,
)

pytestmark = pytest.mark.backends
B, T, S, D, M, U = 2, 3, 5, 7, 11, 13
QUERY, VALUE, KEY = random(B, T, D), random(B, S, M, seed=1), random(B, S, D, seed=2)
LAYERS = {
    "additive": lambda **options: AdditiveAttention(U, use_bias=True, **options),
    "dot": DotProductAttention,
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
    if layer.weights:
        check_layer(layer, inputs)
    else:
        clone = type(layer).from_config(layer.get_config())
        np.testing.assert_array_equal(to_numpy(clone(**inputs)), to_numpy(layer(**inputs)))


def test_scores_by_hand():
    query, key = np.array([[[1.0, 2.0]]], "float32"), np.array([[[3.0, -1.0], [0.5, 0.0]]], "float32")
    np.testing.assert_allclose(to_numpy(dot_score(query, key)), [[[1.0, 0.5]]], rtol=1e-6)
    np.testing.assert_allclose(to_numpy(scaled_dot_score(query, key)), np.array([[[1.0, 0.5]]]) / 2**0.5, rtol=1e-6)
    vector = np.array([2.0, -1.0], "float32")
    expected = [[[2 * np.tanh(4) - np.tanh(1), 2 * np.tanh(1.5) - np.tanh(2)]]]
    np.testing.assert_allclose(to_numpy(additive_score(query, key, vector)), expected, rtol=1e-6)


def test_additive_equals_the_paper():
    layer = randomize_built(LAYERS["additive"]())
    q = QUERY.astype("float64") @ to_numpy(layer.query_projection.kernel)
    k = KEY.astype("float64") @ to_numpy(layer.key_projection.kernel) + to_numpy(layer.key_projection.bias)
    scores = np.tanh(q[:, :, None] + k[:, None]) @ to_numpy(layer.score_vector)
    context, weights = layer(QUERY, VALUE, KEY, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(weights), numpy_softmax(scores), atol=1e-6)
    np.testing.assert_allclose(to_numpy(context), numpy_softmax(scores) @ VALUE, atol=1e-5)
    assert layer.count_params() == D * U + (D + 1) * U + U


def randomize_built(layer):
    layer.build(QUERY.shape, VALUE.shape, KEY.shape)
    return randomize(layer)


@pytest.mark.parametrize("scale", [1.0, D**-0.5])
def test_dot_products_equal_the_oracle(scale):
    layer = DotProductAttention() if scale == 1 else ScaledDotProductAttention()
    expected = numpy_softmax(np.einsum("btd,bsd->bts", QUERY, KEY) * scale)
    context, weights = layer(QUERY, VALUE, KEY, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(weights), expected, atol=1e-6)
    np.testing.assert_allclose(to_numpy(context), expected @ VALUE, atol=1e-5)


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


def test_the_mask_of_an_embedding_is_honored_beside_an_explicit_one_and_goes_on():
    ids = np.array([[4, 5, 0, 0, 0], [6, 7, 8, 9, 0]])
    embedded = keras.layers.Embedding(11, D, mask_zero=True)(ids)
    layer = randomize_built(AdditiveAttention(U))
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


def test_causal_outputs_do_not_see_the_future():
    layer = randomize_built(AdditiveAttention(U))
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


def test_symbolic_shapes_of_scores():
    query, value = keras.Input((None, D)), keras.Input((S, D))
    context, weights = AdditiveAttention(U)(query, value, return_attention_scores=True)
    assert context.shape == (None, None, D)
    assert weights.shape == (None, None, S)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AdditiveAttention(U)([QUERY, VALUE]), TypeError, r"layer\(query, value, key=None.*\[\(2, 3, 7\)"),
        (lambda: AdditiveAttention(U)(QUERY), TypeError, r"Received: \(2, 3, 7\); write layer\(query, value\)"),
        (lambda: AdditiveAttention(U)(QUERY[0], VALUE), ValueError, r"expects a query .* query.shape=\(3, 7\)"),
        (lambda: DotProductAttention()(QUERY, VALUE), ValueError, "query width 7, key width 11"),
        (lambda: AdditiveAttention(0), ValueError, "units of at least 1. Received: units=0"),
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
