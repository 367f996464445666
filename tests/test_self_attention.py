"""One head with its own projections: contract, numbers, permutations, masks, models, errors."""

import hypothesis
import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, marked, numpy_softmax, random, randomize, to_numpy
from hypothesis import strategies
from keras import ops

from keras_attention import (
    AdditiveAttention,
    AttentiveRNN,
    CrossAttention,
    DotProductAttention,
    MaskedSelfAttention,
    ScaledDotProductAttention,
    SelfAttention,
    dot_score,
    masked_softmax,
    scaled_dot_score,
)

pytestmark = pytest.mark.backends
B, T, S, D, M, U, DK, V = 2, 3, 5, 7, 11, 13, 17, 19
X = random(B, S, D)
QUERY, VALUE, KEY = random(B, T, D, seed=1), random(B, S, M, seed=2), random(B, S, DK, seed=3)
OPTIONS = [
    {"use_bias": use_bias, "output_projection": output} for use_bias in (False, True) for output in (False, True)
]
SELF = [SelfAttention, MaskedSelfAttention]
few = hypothesis.settings(max_examples=10, deadline=None, derandomize=True, database=None)
seeds = strategies.integers(0, 2**16)


def built(kind, **options):
    layer = kind(U, **options)
    if kind is CrossAttention:
        layer.build(QUERY.shape, VALUE.shape, KEY.shape)
    else:
        layer.build(X.shape)
    return randomize(layer)


def random_mask(*shape, seed=0):
    return np.random.default_rng(seed).random(shape) > 0.35


# ---------------------------------------------------------------------------------------------------- numbers

Q = np.array([[0.11, 0.21], [0.31, 0.41], [0.51, 0.61]])
K = np.array([[7.77, 0.22], [17.19, 0.42], [10.47, 0.62]])
V3 = np.array([[0.13, 0.23], [0.33, 0.43], [0.53, 0.63]])
# "나는 학교에 간다", computed with 50 digits: scores, weights, outputs.
BY_HAND = {
    "unscaled": (
        dot_score,
        DotProductAttention,
        [[0.9009, 1.9791, 1.2819], [2.4989, 5.5011, 3.4999], [4.0969, 9.0231, 5.7179]],
        [
            [0.185077857137, 0.544014872663, 0.270907270199],
            [0.041927358373, 0.843988237865, 0.114084403762],
            [0.006948651565, 0.957904054772, 0.035147293663],
        ],
        [[0.347165882612, 0.447165882612], [0.344431409078, 0.444431409078], [0.335639728420, 0.435639728420]],
    ),
    "scaled": (
        scaled_dot_score,
        ScaledDotProductAttention,
        [
            [0.637032499171, 1.399435030646, 0.906440182803],
            [1.766989135507, 3.889865113985, 2.474803023475],
            [2.896945771843, 6.380295197324, 4.043165864147],
        ],
        [
            [0.224587455543, 0.481385170430, 0.294027374027],
            [0.087837325954, 0.733892465814, 0.178270208231],
            [0.027236895743, 0.887068264785, 0.085694839472],
        ],
        [[0.343887983697, 0.443887983697], [0.348086576455, 0.448086576455], [0.341691588746, 0.441691588746]],
    ),
}


def test_three_words_by_hand_are_those_of_the_book():
    """The figures of the book, which rounds the unscaled second row."""
    scores, weights, outputs = BY_HAND["unscaled"][2:]
    assert scores[1] == [2.4989, 5.5011, 3.4999]
    assert np.round(weights[1], 3).tolist() == [0.042, 0.844, 0.114]
    assert np.round(outputs[1], 4).tolist() == [0.3444, 0.4444]


@pytest.mark.parametrize("name", BY_HAND)
def test_three_words_by_hand(name):
    score, layer, scores, weights, outputs = BY_HAND[name]
    query, key, value = (ops.convert_to_tensor(x[None]) for x in (Q, K, V3))
    exact = keras.backend.backend() == "tensorflow"  # JAX and Keras's matmul on PyTorch give float32 for float64
    close = {"rtol": 0, "atol": 1e-12 if exact else 1e-6}
    found = score(query, key)
    np.testing.assert_allclose(to_numpy(found)[0], scores, **close)
    np.testing.assert_allclose(to_numpy(masked_softmax(found))[0], weights, **close)
    dtype = "float64" if exact else "float32"
    results = layer(dtype=dtype)(query, value, key, return_attention_scores=True)
    for result, expected in zip(results, (outputs, weights), strict=True):
        np.testing.assert_allclose(to_numpy(result)[0], expected, **close)
    if name == "scaled":
        cross = CrossAttention(2, kernel_initializer="identity", dtype=dtype)
        np.testing.assert_allclose(to_numpy(cross(query, value, key))[0], outputs, **close)


def dense(layer, x):
    kernel, *bias = (to_numpy(w.value).astype("float64") for w in layer.weights)
    return x @ kernel + (bias[0] if bias else 0)


def oracle(layer, query, value, key=None, mask=None):
    """Output and weights in float64."""
    query, value, key = (x.astype("float64") for x in (query, value, value if key is None else key))
    query, keys = dense(layer.query_dense, query), dense(layer.key_dense, key)
    weights = numpy_softmax(query @ keys.swapaxes(1, 2) / U**0.5, mask)
    context = weights @ dense(layer.value_dense, value)
    return dense(layer.output_dense, context) if layer.output_projection else context, weights


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [CrossAttention, *SELF])
def test_numbers_equal_an_oracle(kind, options):
    layer = built(kind, **options)
    if kind is CrossAttention:
        query_mask, key_mask, inputs = random_mask(B, T), random_mask(B, S, seed=1), (QUERY, VALUE, KEY)
        explicit = random_mask(B, T, S, seed=2)
        given = {"query_mask": query_mask, "value_mask": key_mask, "attention_mask": explicit}
        mask = query_mask[:, :, None] & key_mask[:, None] & explicit
        expected = oracle(layer, *inputs, mask=mask)
    else:
        padding, inputs, explicit = random_mask(B, S), (X,), random_mask(S, S, seed=2)
        given = {"mask": padding, "attention_mask": explicit}
        mask = padding[:, :, None] & padding[:, None] & explicit
        mask &= np.tril(np.ones((S, S), bool)) if kind is MaskedSelfAttention else True
        expected = oracle(layer, X, X, mask=mask)
    results = layer(*inputs, **given, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(results[0]), expected[0], atol=2e-5)
    np.testing.assert_allclose(to_numpy(results[1]), expected[1], atol=1e-6)
    assert np.all(to_numpy(results[1])[~mask] == 0)
    np.testing.assert_array_equal(to_numpy(layer(*inputs, **given)), to_numpy(results[0]))


def test_it_has_the_weights_that_it_should_have():
    assert built(CrossAttention).count_params() == (D + DK + M) * U
    assert built(SelfAttention).count_params() == 3 * D * U
    everything = built(SelfAttention, use_bias=True, output_projection=True)
    assert everything.count_params() == 3 * (D + 1) * U + (U + 1) * D
    assert everything(X).shape == X.shape


# ------------------------------------------------------------------------------------------- contract, models


@pytest.mark.parametrize("output_projection", [*marked("tensorflow_first", [False]), True])
@pytest.mark.parametrize("kind", [CrossAttention, *SELF])
def test_contract(kind, output_projection):
    # Without biases: softmax does not see the key's, so that it does not move.
    layer = kind(U, output_projection=output_projection, kernel_initializer="he_normal", dropout=0.1, seed=1)
    inputs = {"query": QUERY, "value": VALUE, "key": KEY} if kind is CrossAttention else {"query": X}
    check_layer(layer, inputs)
    assert {"units", "use_bias", "output_projection", "kernel_initializer", "dropout", "seed"} <= set(
        layer.get_config()
    )


IDS = np.array([[4, 5, 0, 0, 0], [6, 7, 8, 9, 0]])


def functional(kind):
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    x = kind(U)(x, x) if kind is CrossAttention else kind(U)(x)
    return keras.Model(ids, keras.layers.Dense(V)(x))


def sequential(kind):
    return keras.Sequential([keras.layers.Embedding(V, D, mask_zero=True), kind(U), keras.layers.Dense(V)])


@keras.saving.register_keras_serializable("test_self_attention")
class Subclassed(keras.Model):
    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.embedding = keras.layers.Embedding(V, D, mask_zero=True)
        self.attention = {"self": SelfAttention, "masked": MaskedSelfAttention, "cross": CrossAttention}[kind](U)
        self.last = keras.layers.Dense(V)

    def call(self, ids):
        x = self.embedding(ids)
        return self.last(self.attention(x, x) if self.kind == "cross" else self.attention(x))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


MODELS = {
    "functional_self": lambda: functional(SelfAttention),
    "functional_cross": lambda: functional(CrossAttention),
    "sequential_masked": lambda: sequential(MaskedSelfAttention),
    "subclassed_masked": lambda: Subclassed("masked"),
    "subclassed_cross": lambda: Subclassed("cross"),
}


def attention_of(model):
    return next(layer for layer in model._flatten_layers() if isinstance(layer, CrossAttention))


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_train_save_and_honor_the_embeddings_mask(make, tmp_path):
    model = make()
    output = model(IDS)
    layer = attention_of(model)
    before = layer.get_weights()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0))
    history = model.fit(IDS, IDS, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[1] < history[0]
    assert not any(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
    output = to_numpy(model(IDS))
    np.testing.assert_allclose(model.predict(IDS, verbose=0), output, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(IDS)), output, atol=1e-6)
    # What stands behind the padding is the padding's own vector: change it.
    embedding = model.layers[0] if isinstance(model, keras.Sequential) else None
    embedding = embedding or next(x for x in model._flatten_layers() if isinstance(x, keras.layers.Embedding))
    table = embedding.get_weights()[0]
    table[0] = 1e3
    embedding.set_weights([table])
    np.testing.assert_array_equal(to_numpy(model(IDS)), output)


@pytest.mark.parametrize("kind", SELF)
def test_clones_compute_the_same(kind):
    model = sequential(kind)
    output = to_numpy(model(IDS))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(to_numpy(clone(IDS)), output)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="compiles for minutes")
@pytest.mark.parametrize("kind", SELF)
def test_compiled_by_xla_it_computes_the_same(kind):
    model = sequential(kind)
    model.compile(jit_compile=True)
    np.testing.assert_allclose(model.predict(IDS, verbose=0), to_numpy(model(IDS)), atol=1e-5)


@pytest.mark.parametrize("kind", SELF)
def test_symbolic_shapes(kind):
    output, weights = kind(U)(keras.Input((None, D)), return_attention_scores=True)
    assert (output.shape, weights.shape) == ((None, None, U), (None, None, None))
    output, weights = kind(U, output_projection=True)(keras.Input((S, D)), return_attention_scores=True)
    assert (output.shape, weights.shape) == ((None, S, D), (None, S, S))
    output, weights = CrossAttention(U)(keras.Input((None, D)), keras.Input((S, M)), return_attention_scores=True)
    assert (output.shape, weights.shape) == ((None, None, U), (None, None, S))


@pytest.mark.parametrize("output_projection", [False, True])
@pytest.mark.parametrize("order", ["bahdanau", "luong"])
def test_cross_attention_serves_an_attending_decoder(order, output_projection):
    attention = CrossAttention(U, use_bias=True, output_projection=output_projection)
    layer = AttentiveRNN(DK, attention=attention, order=order)
    layer.build((B, T, D), (B, S, M))
    randomize(layer)
    mask = random_mask(B, S)
    output, weights = layer(QUERY, VALUE, memory_mask=mask, return_attention_scores=True)
    prepared, state = layer.prepare(ops.convert_to_tensor(VALUE), mask), layer.begin(ops.zeros((B, DK)))
    for t in range(T):
        stepped, state, attention = layer.step(ops.convert_to_tensor(QUERY[:, t]), state, prepared)
        np.testing.assert_allclose(to_numpy(stepped), to_numpy(output)[:, t], atol=1e-5)
        np.testing.assert_allclose(to_numpy(attention), to_numpy(weights)[:, t], atol=1e-5)


# ----------------------------------------------------------------------------------------------- permutations


def table(length, width):
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5), [length, width]."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(width) // 2 * 2 / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype("float32")


@few
@hypothesis.given(seeds, strategies.permutations(range(S)), strategies.booleans(), strategies.booleans())
def test_permuting_the_inputs_permutes_the_outputs(seed, order, use_bias, masked):
    layer = randomize(built(SelfAttention, use_bias=use_bias, output_projection=True), seed)
    x, mask = random(B, S, D, seed=seed), random_mask(B, S, seed=seed) if masked else np.ones((B, S), bool)
    output, weights = map(to_numpy, layer(x, mask=mask, return_attention_scores=True))
    moved, moved_weights = layer(x[:, order], mask=mask[:, order], return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(moved), output[:, order], atol=2e-5)
    np.testing.assert_allclose(to_numpy(moved_weights), weights[:, order][:, :, order], atol=1e-5)


@few
@hypothesis.given(seeds, strategies.permutations(range(S)), strategies.booleans())
def test_with_positions_it_does_not(seed, order, use_bias):
    hypothesis.assume(list(order) != list(range(S)))
    layer = randomize(built(SelfAttention, use_bias=use_bias), seed)
    x = random(B, S, D, seed=seed)
    output, moved = (to_numpy(layer(ops.add(y, table(S, D)))) for y in (x, x[:, order]))
    assert np.abs(moved - output[:, order]).max() > 1e-2


def test_under_the_causal_mask_it_does_not_either():
    layer = built(MaskedSelfAttention)
    assert np.abs(to_numpy(layer(X[:, ::-1])) - to_numpy(layer(X))[:, ::-1]).max() > 1e-2
    (first,) = {tuple(row) for row in to_numpy(layer(X, return_attention_scores=True)[1])[:, 0]}
    assert abs(first[0] - 1) <= np.finfo("float32").eps and first[1:] == (0, 0, 0, 0)


# ------------------------------------------------------------------------------------------------------ masks


def outputs_and_gradients(layer, inputs, keep=None, **given):
    """Output and the gradients of a sum over its kept positions [B, T], by the inputs and by the weights."""
    keep = 1.0 if keep is None else keep[:, :, None].astype("float32")

    def loss(*x):
        return ops.sum(ops.multiply(ops.square(layer(*x, **given)), keep))

    return [to_numpy(layer(*inputs, **given)), *gradients(loss, inputs, layer.trainable_weights)]


def assert_equal_bits(one, two):
    for a, b in zip(one, two, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@few
@hypothesis.given(
    seeds, strategies.sampled_from([np.nan, np.inf, -1e30]), strategies.booleans(), strategies.sampled_from(SELF)
)
def test_nothing_leaks_from_behind_padding(seed, poison, use_bias, kind):
    layer = randomize(built(kind, use_bias=use_bias), seed)
    x, mask = random(B, S, D, seed=seed), random_mask(B, S, seed=seed)
    poisoned = np.where(mask[:, :, None], x, np.float32(poison))
    clean = outputs_and_gradients(layer, [x], mask=mask)
    assert_equal_bits(clean, outputs_and_gradients(layer, [poisoned], mask=mask))
    assert np.all(clean[0][~mask] == 0) and np.all(clean[1][~mask] == 0)
    assert np.abs(clean[1][mask]).max() > 1e-4 if mask.any() else True


@few
@hypothesis.given(seeds, strategies.sampled_from([np.nan, np.inf, -1e30]), strategies.booleans())
def test_nothing_leaks_from_behind_padding_to_another_sequence(seed, poison, use_bias):
    layer = randomize(built(CrossAttention, use_bias=use_bias, output_projection=True), seed)
    query_mask, value_mask, key_mask = (random_mask(B, n, seed=seed + i) for i, n in enumerate((T, S, S)))
    given = {"query_mask": query_mask, "value_mask": value_mask, "key_mask": key_mask}
    hidden = ~(value_mask & key_mask)
    query, value, key = QUERY.copy(), VALUE.copy(), KEY.copy()
    query[~query_mask], value[hidden], key[hidden] = poison, poison, poison
    clean = outputs_and_gradients(layer, [QUERY, VALUE, KEY], **given)
    assert_equal_bits(clean, outputs_and_gradients(layer, [query, value, key], **given))
    assert np.all(clean[1][~query_mask] == 0) and np.all(clean[2][hidden] == 0) and np.all(clean[3][hidden] == 0)


@few
@hypothesis.given(seeds, strategies.integers(1, S - 1))
def test_the_past_does_not_see_the_future(seed, now):
    layer = randomize(built(MaskedSelfAttention, use_bias=True), seed)
    x, past = random(B, S, D, seed=seed), np.broadcast_to(np.arange(S) < now, (B, S))
    changed = x.copy()
    changed[:, now:] = random(B, S - now, D, seed=seed + 1) * 100
    clean, other = (outputs_and_gradients(layer, [y], keep=past) for y in (x, changed))
    clean[0], other[0] = clean[0][:, :now], other[0][:, :now]
    assert_equal_bits(clean, other)
    assert np.all(clean[1][:, now:] == 0) and np.abs(clean[1][:, :now]).max() > 1e-4


@few
@hypothesis.given(seeds, strategies.booleans())
def test_what_an_explicit_mask_hides_does_not_matter(seed, use_bias):
    layer = randomize(built(CrossAttention, use_bias=use_bias), seed)
    seen = random_mask(B, S, seed=seed)
    mask = random_mask(B, T, S, seed=seed + 1) & seen[:, None]
    value, key = (np.where(seen[:, :, None], x, 100 * x[:, ::-1]) for x in (VALUE, KEY))
    clean = outputs_and_gradients(layer, [QUERY, VALUE, KEY], attention_mask=mask)
    assert_equal_bits(clean, outputs_and_gradients(layer, [QUERY, value, key], attention_mask=mask))


DTYPES = ["float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [CrossAttention, *SELF])
def test_a_row_that_may_attend_to_nothing_is_zero(kind, dtype):
    layer = built(kind, use_bias=True, dtype=dtype)
    inputs = (QUERY, VALUE, KEY) if kind is CrossAttention else (X,)
    mask = np.ones((B, inputs[0].shape[1], S), bool)
    mask[0], mask[1, 1] = False, False
    output, weights = layer(*inputs, attention_mask=mask, return_attention_scores=True)
    assert "float32" in str(weights.dtype)
    for x in (output, weights):
        x = to_numpy(ops.cast(x, "float32"))
        assert np.isfinite(x).all() and np.all(x[0] == 0) and np.all(x[1, 1] == 0) and np.abs(x[1, 2]).max() > 0
    found = gradients(
        lambda *x: ops.sum(ops.square(ops.cast(layer(*x, attention_mask=mask), "float32"))),
        inputs,
        layer.trainable_weights,
    )
    assert all(np.isfinite(x).all() for x in found)


def test_an_output_projection_still_adds_its_bias_to_such_a_row():
    layer = built(SelfAttention, use_bias=True, output_projection=True)
    output = to_numpy(layer(X, mask=np.zeros((B, S), bool)))
    np.testing.assert_array_equal(output, np.broadcast_to(to_numpy(layer.output_dense.bias.value), (B, S, D)))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("kind", SELF)
def test_the_mask_of_an_embedding_is_honored_beside_an_explicit_one_and_goes_on(kind, dtype):
    embedding, layer = keras.layers.Embedding(V, D, mask_zero=True), kind(U, dtype=dtype)  # a float32 mask to float16
    real, explicit = IDS != 0, random_mask(B, S, S, seed=7)
    causal = np.tril(np.ones((S, S), bool)) if kind is MaskedSelfAttention else True
    ids, symbol = keras.Input((S,), dtype="int32"), keras.Input((S, S), dtype="bool")
    more = np.array([[True, True, True, True, True], [True, False, True, True, True]])
    for given, allowed in (
        ({}, real[:, :, None] & real[:, None]),
        ({"attention_mask": explicit}, real[:, :, None] & real[:, None] & explicit),
        ({"query_mask": more}, (real & more)[:, :, None] & (real & more)[:, None]),
        ({"mask": more}, (real & more)[:, :, None] & (real & more)[:, None]),
    ):
        allowed = allowed & causal
        _, weights = layer(embedding(IDS), **given, return_attention_scores=True)
        weights = to_numpy(weights)
        assert np.all(weights[~allowed] == 0) and np.all(weights[allowed] > 0)
        np.testing.assert_allclose(weights.sum(-1), allowed.any(-1), atol=1e-6)
    model = keras.Model([ids, symbol], layer(embedding(ids), attention_mask=symbol, return_attention_scores=True)[1])
    allowed = real[:, :, None] & real[:, None] & explicit & causal
    assert np.array_equal(to_numpy(model([IDS, explicit])) > 0, allowed)
    # The next layer still knows what is padding.
    output = layer(embedding(IDS), attention_mask=explicit)
    pooled = keras.layers.GlobalAveragePooling1D(dtype="float32")(output)
    output = to_numpy(ops.cast(output, "float32"))
    np.testing.assert_allclose(to_numpy(pooled)[0], output[0, :2].mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", SELF)
def test_both_names_of_the_mask_and_integers(kind):
    layer, one, two = built(kind), random_mask(B, S), random_mask(B, S, seed=1)
    expected = to_numpy(layer(X, mask=one & two))
    assert np.abs(expected - to_numpy(layer(X))).max() > 1e-2
    for given in ({"mask": one, "query_mask": two}, {"query_mask": (one & two).astype("int32")}):
        np.testing.assert_array_equal(to_numpy(layer(X, **given)), expected)
    pooled = keras.layers.GlobalAveragePooling1D()(layer(X, mask=one))
    output = to_numpy(layer(X, mask=one))
    expected = [row[keep].mean(0) for row, keep in zip(output, one, strict=True)]
    np.testing.assert_allclose(to_numpy(pooled), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------- dropout, errors


def test_dropout_acts_in_training_only_and_scores_are_those_before_it():
    layer = built(SelfAttention, dropout=0.5, seed=1)
    plain, expected = layer(X, return_attention_scores=True)
    dropped, weights = layer(X, training=True, return_attention_scores=True)
    assert np.abs(to_numpy(dropped) - to_numpy(plain)).max() > 0.01
    np.testing.assert_array_equal(to_numpy(weights), to_numpy(expected))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: SelfAttention(U)(X, X),
            TypeError,
            r"layer\(x, ...\) with one tensor .*7\), \(2, 5, 7\); Cross",
        ),
        (lambda: MaskedSelfAttention(U)([X]), TypeError, r"MaskedSelfAttention is called .*Received: \[\(2, 5, 7\)\]"),
        (lambda: SelfAttention(U)(X, value=X), TypeError, r"Received: \(2, 5, 7\), value=\(2, 5, 7\)"),
        (lambda: SelfAttention(U)(), TypeError, "Received: nothing"),
        (lambda: SelfAttention(U)(X[0]), ValueError, r"query of shape .* query.shape=\(5, 7\)"),
        (lambda: SelfAttention(0), ValueError, "SelfAttention expects units of at least 1. Received: units=0"),
        (lambda: SelfAttention(U)(X, mask=np.ones((B, S), "float32")), TypeError, "mask must be boolean"),
        (lambda: SelfAttention(U)(X, query_mask=np.ones((B, S), "float32")), TypeError, "query_mask must be boolean"),
        (lambda: CrossAttention(U)([QUERY, VALUE]), TypeError, r"layer\(query, value, key=None"),
        (lambda: CrossAttention(U)(QUERY), TypeError, r"write layer\(query, value\)"),
        (lambda: CrossAttention(U)(QUERY, VALUE[0]), ValueError, r"value of shape .* value.shape=\(5, 11\)"),
        (lambda: AttentiveRNN(U, attention=SelfAttention(3)), TypeError, "expects attention to be a layer such as"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_additive_attention_beside_it_still_serves_a_decoder():
    layer = AttentiveRNN(U, attention=AdditiveAttention(DK), readout_units=M)
    assert layer(QUERY, VALUE).shape == (B, T, M)
