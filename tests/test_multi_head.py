"""Multi-head attention: Keras's numbers, its mistakes put right, grouped heads, one projection, positions, blocks."""

import hypothesis
import keras
import numpy as np
import pytest
from helpers import ROOT, check_layer, gradients, marked, numpy_softmax, random, randomize, run_python, to_numpy
from hypothesis import strategies
from keras import ops

from keras_attention import MultiHeadAttention, multi_head, record_scores
from keras_attention.masks import implicit_mask
from keras_attention.position import ALiBi, RelativeBias, RotaryEmbedding

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
B, T, S, D, M, DK, H, K, VD, V = 2, 3, 5, 7, 11, 13, 6, 4, 17, 19
X, QUERY = random(B, S, D), random(B, T, D, seed=1)
VALUE, KEY = random(B, S, M, seed=2), random(B, S, DK, seed=3)
few = hypothesis.settings(deadline=None, derandomize=True, database=None)


def random_mask(*shape, seed=0):
    return np.random.default_rng(seed).random(shape) > 0.35


def built(*inputs, kind=MultiHeadAttention, seed=0, **options):
    """A layer with random weights, made for the shapes of query, value and key (self-attention to X if none)."""
    layer = kind(**{"num_heads": H, "key_dim": K, **options})
    layer.build(*(x.shape for x in inputs or (X, X)))
    return randomize(layer, seed)


def like(layer, *inputs, **changed):
    """The same layer with other options and the same weights."""
    other = MultiHeadAttention.from_config({**layer.get_config(), **changed})
    other.build(*(x.shape for x in inputs or (X, X)))
    other.set_weights(layer.get_weights())
    return other


def outputs_and_gradients(layer, inputs, **given):
    """Output and the gradients of a sum over it, by the inputs and by the weights; one input is self-attention."""

    def call(*x):
        return layer(*(x if len(x) > 1 else x * 2), **given)

    def loss(*x):
        return ops.sum(ops.sin(ops.cast(call(*x), "float32")))

    output = to_numpy(ops.cast(call(*map(ops.convert_to_tensor, inputs)), "float32"))
    return [output, *gradients(loss, inputs, layer.trainable_weights)]


def assert_all_close(one, two, atol=2e-5):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


# ------------------------------------------------------------------------------------------- the same as Keras

FREE = random(B, 3, T, D, seed=4), random(B, 3, S, M, seed=5)  # attention along the second axis of two
GRID = random(B, 3, 2, D, seed=6), random(B, 2, 5, M, seed=7)  # along both
KERAS_CASES = {
    "plain": ({}, (QUERY, VALUE)),
    "key": ({"value_dim": 5}, (QUERY, VALUE, KEY)),
    "self": ({}, (X, X)),
    "no_bias": ({"use_bias": False, "output_shape": 23}, (QUERY, VALUE)),
    "gate": ({"use_gate": True, "value_dim": 5}, (QUERY, VALUE)),
    "gate_no_bias": ({"use_gate": True, "use_bias": False}, (QUERY, VALUE, KEY)),
    "output_shape": ({"output_shape": (2, 3), "dropout": 0.5}, (QUERY, VALUE)),
    "window": ({"sliding_window": 2}, (QUERY, VALUE)),
    "axes": ({"attention_axes": 2}, FREE),
    "axes_gate_window": ({"attention_axes": (-2,), "use_gate": True, "output_shape": (2, 3)}, FREE),
    "first_axis": ({"attention_axes": (1,)}, (random(B, T, 3, D), random(B, S, 3, M))),
    "two_axes": ({}, GRID),
    "five_axes": ({"attention_axes": (2, 3)}, tuple(random(B, 3, *x.shape[1:]) for x in GRID)),
}


def keras_masks(name, inputs):
    """Masks that leave every query a key (where none is left, Keras is wrong)."""
    if len(inputs[0].shape) == 3:
        values, explicit = np.ones((B, S), bool), random_mask(B, inputs[0].shape[1], S)
        values[0, 3:], explicit[:, :, 0] = False, True
        explicit |= np.eye(explicit.shape[1], S, dtype=bool)
        heads = np.repeat(explicit[:, None], H, axis=1)
        heads[:, 2] |= True
        yield {"value_mask": values, "attention_mask": explicit}
        yield {"attention_mask": heads}
        yield {"value_mask": values.astype("int32"), "attention_mask": explicit[:1], "use_causal_mask": True}
        yield {"key_mask": values, "attention_mask": explicit[0].astype("int32")}
        yield {"use_causal_mask": True}
    elif name == "first_axis":
        yield {"use_causal_mask": True}
    elif "axes" in name and inputs is FREE:
        explicit, values = random_mask(B, 3, T, S), np.ones((B, 3, S), bool)
        explicit[..., 0], values[0, 1, 2:] = True, False
        yield {"attention_mask": explicit}
        yield {"attention_mask": explicit[0, 0], "value_mask": values}
        yield {"attention_mask": explicit[:, 1]}
    else:
        explicit = random_mask(B, 3, 2, 2, 5)
        explicit[..., 0] = True
        yield {"attention_mask": explicit}
        yield {"attention_mask": explicit[0]}


@pytest.mark.parametrize("name", KERAS_CASES)
def test_it_is_kerass_layer(name):
    options, inputs = KERAS_CASES[name]
    if BACKEND == "torch" and len(inputs[0].shape) == 5:
        pytest.skip("PyTorch's softmax in Keras takes one axis")
    theirs = built(*inputs, kind=keras.layers.MultiHeadAttention, **options)
    ours = built(*inputs, **options, seed=1)
    names = [[weight.path.split("/", 1)[-1] for weight in layer.weights] for layer in (ours, theirs)]
    assert names[0] == names[1]
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    assert {**theirs.get_config(), "name": ""}.items() <= {**ours.get_config(), "name": ""}.items()
    for source, target in ((theirs, ours), (ours, theirs)):
        randomize(source, 2)
        target.set_weights(source.get_weights())
        for given in ({}, *keras_masks(name, inputs)):
            expected = theirs(*inputs, **given, return_attention_scores=True)
            results = ours(*inputs, **given, return_attention_scores=True)
            assert_all_close(map(to_numpy, results), map(to_numpy, expected))
            np.testing.assert_allclose(to_numpy(ours(*inputs, **given)), to_numpy(expected[0]), atol=2e-5, rtol=1e-4)


@pytest.mark.long
def test_kerass_own_tests_pass():
    """But for those that benchmarks/keras_tests.py names, with the reason."""
    if BACKEND != "tensorflow":
        pytest.skip("once is enough")
    run_python(
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", ROOT / "benchmarks/keras_tests.py"
    )


def test_keras_builds_the_same_initial_weights():
    weights = []
    for kind in (keras.layers.MultiHeadAttention, MultiHeadAttention):
        keras.utils.set_random_seed(3)
        layer = kind(H, K, use_gate=True)
        layer.build(QUERY.shape, VALUE.shape)
        weights.append(layer.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, two)


# --------------------------------------------------------------------------------------------- independent numbers


def project(dense, x):
    kernel, *bias = (to_numpy(w.value).astype("float64") for w in dense.weights)
    return np.einsum("btd,dhk->bthk", x.astype("float64"), kernel) + (bias[0] if bias else 0)


def oracle(layer, query, value, key, mask, bias=0):
    """Output and weights [B, H, T, S] in float64, of a layer with or without grouped heads and gate."""
    repeats = layer.num_heads // layer.num_key_value_heads
    heads = project(layer.query_dense, query)
    keys, values = (
        np.repeat(project(dense, x), repeats, axis=2)
        for dense, x in ((layer.key_dense, key), (layer.value_dense, value))
    )
    weights = numpy_softmax(np.einsum("bthk,bshk->bhts", heads, keys) / layer.key_dim**0.5 + bias, mask)
    context = np.einsum("bhts,bshk->bthk", weights, values)
    if layer.get_config()["use_gate"]:
        context = context / (1 + np.exp(-project(layer._gate_dense, query)))
    kernel, *offset = (to_numpy(w.value).astype("float64") for w in layer.output_dense.weights)
    return np.einsum("bthk,hkd->btd", context, kernel) + (offset[0] if offset else 0), weights


@strategies.composite
def options_inputs_and_masks(draw):
    groups, sharing = draw(strategies.integers(1, 3)), draw(strategies.integers(1, 3))
    size = strategies.integers(1, 7)
    options = {
        "num_heads": groups * sharing,
        "num_key_value_heads": groups,
        "key_dim": draw(size),
        "value_dim": draw(size),
        "use_bias": draw(strategies.booleans()),
        "use_gate": draw(strategies.booleans()),
        "sliding_window": draw(strategies.none() | size),
    }
    batch, length, source = draw(strategies.integers(1, 3)), draw(size), draw(size)
    seed = draw(strategies.integers(0, 2**16))
    query, value, key = (random(batch, n, draw(size), seed=seed + i) for i, n in enumerate((length, source, source)))
    given = {
        "query_mask": random_mask(batch, length, seed=seed),
        "value_mask": random_mask(batch, source, seed=seed + 1),
        "key_mask": random_mask(batch, source, seed=seed + 2),
        "attention_mask": random_mask(batch, length, source, seed=seed + 3),
        "use_causal_mask": True,
    }
    kept = draw(strategies.sets(strategies.sampled_from(sorted(given))))
    return options, (query, value, key), {name: given[name] for name in sorted(kept)}


def allowed(layer, inputs, given):
    """The combined mask [B, 1, T, S]."""
    batch, length, source = inputs[0].shape[0], inputs[0].shape[1], inputs[1].shape[1]
    distance = np.arange(length)[:, None] - np.arange(source)
    mask = np.ones((batch, length, source), bool)
    if given.get("use_causal_mask"):
        mask &= distance >= 0
    if layer.get_config()["sliding_window"] is not None:
        mask &= abs(distance) < layer.get_config()["sliding_window"]
    mask &= given.get("query_mask", np.ones((batch, length), bool))[:, :, None]
    mask &= given.get("value_mask", np.ones((batch, source), bool))[:, None]
    mask &= given.get("key_mask", np.ones((batch, source), bool))[:, None]
    return (mask & given.get("attention_mask", True))[:, None]


@pytest.mark.tensorflow_first
@hypothesis.settings(few, max_examples=8 if BACKEND == "jax" else 25)  # JAX compiles for every shape
@hypothesis.given(options_inputs_and_masks())
def test_numbers_equal_numpys(drawn):
    options, inputs, given = drawn
    layer = built(*inputs, **options)
    mask = allowed(layer, inputs, given)
    output, weights = map(to_numpy, layer(*inputs, **given, return_attention_scores=True))
    expected = oracle(layer, *inputs, mask)
    assert_all_close((output, weights), expected, atol=5e-5)
    assert np.all(weights[~np.broadcast_to(mask, weights.shape)] == 0)
    np.testing.assert_array_equal(to_numpy(layer(*inputs, **given)), output)


def torch_oracle(layer, inputs, **options):
    """Output by torch.nn.functional.scaled_dot_product_attention in float64."""
    torch = pytest.importorskip("torch")
    denses = (layer.query_dense, layer.key_dense, layer.value_dense)
    heads = [
        torch.tensor(project(dense, x).swapaxes(1, 2))
        for dense, x in zip(denses, (inputs[0], inputs[2], inputs[1]), strict=True)
    ]
    options = {name: torch.tensor(x) if name == "attn_mask" else x for name, x in options.items()}
    context = torch.nn.functional.scaled_dot_product_attention(*heads, **options).numpy()
    kernel, bias = (to_numpy(w.value) for w in layer.output_dense.weights)
    return np.einsum("bhtk,hkd->btd", context, kernel) + bias


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_numbers_equal_pytorchs(groups):
    inputs = QUERY, VALUE, KEY
    layer = built(*inputs, num_key_value_heads=groups, value_dim=VD)
    mask = random_mask(B, T, S) | np.eye(T, S, dtype=bool)
    bias = random(H, T, S)[None]
    for given, options in (
        ({}, {}),
        ({"use_causal_mask": True}, {"is_causal": True}),
        ({"attention_mask": mask}, {"attn_mask": mask[:, None]}),
    ):
        expected = torch_oracle(layer, inputs, **options, enable_gqa=groups != H)
        np.testing.assert_allclose(to_numpy(layer(*inputs, **given)), expected, atol=5e-5)
    layer = built(*inputs, num_key_value_heads=groups, value_dim=VD, position=Table(bias[0]))
    bias = bias.astype("float64") * to_numpy(layer.position.scale.value)
    expected = torch_oracle(layer, inputs, attn_mask=bias, enable_gqa=groups != H)
    np.testing.assert_allclose(to_numpy(layer(*inputs)), expected, atol=5e-5)


# ---------------------------------------------------------------------------------------------- where Keras is wrong

IDS, OTHER = np.array([[4, 5, 0, 0, 0], [6, 7, 8, 9, 0]]), np.array([[3, 0, 0], [1, 2, 5]])


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_explicit_and_implicit_masks_are_anded(dtype):
    embedding, other = (keras.layers.Embedding(V, D, mask_zero=True) for _ in range(2))
    layer = MultiHeadAttention(H, K, dtype=dtype)
    layer.build((B, 3, D), (B, 5, D), (B, 5, D))
    randomize(layer)
    key_ids = IDS.copy()
    key_ids[1, 1] = 0
    more, most = random_mask(B, 3, seed=4), random_mask(B, 5, seed=6)
    explicit = random_mask(B, 3, 5, seed=5)
    query, value = OTHER != 0, IDS != 0
    for given, rows, columns, each in (
        ({}, query, value, True),
        ({"key": key_ids}, query, value & (key_ids != 0), True),
        ({"attention_mask": explicit}, query, value, explicit),
        ({"query_mask": more, "attention_mask": explicit}, query & more, value, explicit),
        ({"query_mask": more, "value_mask": most}, query & more, value & most, True),
        ({"key": key_ids, "key_mask": most}, query, value & (key_ids != 0) & most, True),
    ):
        keys = {"key": embedding(given["key"])} if "key" in given else {}
        given = {name: mask for name, mask in given.items() if name != "key"}
        output, weights = layer(other(OTHER), embedding(IDS), **keys, **given, return_attention_scores=True)
        mask = np.broadcast_to((rows[:, :, None] & columns[:, None] & each)[:, None], (B, H, 3, 5))
        assert np.array_equal(to_numpy(weights) > 0, mask)
        np.testing.assert_allclose(to_numpy(weights).sum(-1), mask.any(-1), atol=1e-6)
        assert np.array_equal(to_numpy(implicit_mask(output)), rows)


def test_implicit_masks_are_honored_in_models():
    ids, symbol = keras.Input((None,), dtype="int32"), keras.Input((None, None), dtype="bool")
    explicit = random_mask(B, S, S, seed=2)
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    layer = MultiHeadAttention(H, K)
    output, weights = layer(x, x, attention_mask=symbol, return_attention_scores=True)
    added = keras.layers.Add()([x, output])
    model = keras.Model([ids, symbol], [weights, added, keras.layers.GlobalAveragePooling1D()(added)])
    randomize(layer)
    weights, added, pooled = map(to_numpy, model([IDS, explicit]))
    real = IDS != 0
    mask = real[:, :, None] & real[:, None] & explicit
    assert np.array_equal(weights > 0, np.broadcast_to(mask[:, None], weights.shape))
    # The next layers still know what is padding.
    expected = [row[keep].mean(0) for row, keep in zip(added, real, strict=True)]
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_the_inputs_keep_their_masks():
    x = keras.layers.Embedding(V, D, mask_zero=True)(IDS)
    added = keras.layers.Add()([x, MultiHeadAttention(H, K)(x, x)])
    assert np.array_equal(to_numpy(implicit_mask(added)), IDS != 0)
    assert np.array_equal(to_numpy(implicit_mask(x)), IDS != 0)


def test_masks_of_inputs_with_more_axes():
    """Sentences of words of letters: attention among the letters of a word, then among all letters."""
    ids = np.random.default_rng(0).integers(0, 3, (B, 3, T))
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    real = ids != 0
    _, weights = MultiHeadAttention(H, K, attention_axes=2)(x, x, use_causal_mask=True, return_attention_scores=True)
    mask = real[:, :, :, None] & real[:, :, None] & np.tril(np.ones((T, T), bool))
    assert np.array_equal(to_numpy(weights) > 0, np.repeat(mask[:, :, None], H, axis=2))
    if BACKEND != "torch":
        _, weights = MultiHeadAttention(H, K)(x, x, return_attention_scores=True)
        mask = real[:, :, :, None, None] & real[:, None, None]
        assert np.array_equal(to_numpy(weights) > 0, np.repeat(mask[:, None], H, axis=1))
    _, weights = MultiHeadAttention(H, K, attention_axes=1)(x, x, return_attention_scores=True)
    mask = real.swapaxes(1, 2)
    mask = mask[:, :, :, None] & mask[:, :, None]
    assert np.array_equal(to_numpy(weights) > 0, np.repeat(mask[:, :, None], H, axis=2))


DTYPES = ["float32", "mixed_float16", *marked("tensorflow_first", ["mixed_bfloat16", "float16", "bfloat16"])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"num_key_value_heads": 2}, {"flash_attention": True}, {"fused_projection": True}], ids=str
)
def test_a_query_that_may_attend_to_nothing_gets_the_output_bias(options, dtype):
    layer = built(**options, dtype=dtype)
    layer.set_weights(built(**options).get_weights())
    mask = np.ones((B, S, S), bool)
    mask[0], mask[1, 1] = False, False
    x, bias = ops.convert_to_tensor(X), to_numpy(ops.cast(layer.output_dense.bias.value, "float32"))
    outputs = [layer(x, x, attention_mask=mask)]
    if "flash_attention" not in options:
        output, weights = layer(x, x, attention_mask=mask, return_attention_scores=True)
        outputs.append(output)
        assert "float32" in str(weights.dtype)
        np.testing.assert_allclose(to_numpy(weights).sum(-1), np.repeat(mask.any(-1)[:, None], H, 1), atol=1e-5)
    for output in outputs:
        assert keras.utils.standardize_dtype(output.dtype) == layer.compute_dtype
        output = to_numpy(ops.cast(output, "float32"))
        assert np.isfinite(output).all()
        np.testing.assert_allclose(output[~mask.any(-1)], np.broadcast_to(bias, (S + 1, D)), rtol=1e-2)
        assert np.abs(output[1, 2] - bias).max() > 0.1
    found = outputs_and_gradients(layer, [X], attention_mask=mask)
    assert all(np.isfinite(np.asarray(x, "float32")).all() for x in found)


@pytest.mark.parametrize("groups", [6, 2])
@pytest.mark.parametrize("sizes", [(0, T, S), (B, T, 0)], ids=str)
def test_an_empty_batch_and_nothing_to_look_at(sizes, groups):
    batch, length, source = sizes
    layer = built(QUERY, VALUE, num_key_value_heads=groups)
    inputs = np.ones((batch, length, D), "float32"), np.ones((batch, source, M), "float32")
    output, weights = layer(*inputs, use_causal_mask=True, return_attention_scores=True)
    assert tuple(weights.shape) == (batch, H, length, source)
    bias = to_numpy(layer.output_dense.bias.value)
    expected = bias if not source else to_numpy(output)
    np.testing.assert_array_equal(to_numpy(output), np.broadcast_to(expected, (batch, length, D)))


LEAKS = {
    "plain": {},
    "gate": {"use_gate": True},
    "grouped": {"num_key_value_heads": 2, "use_bias": False},
    "window": {"sliding_window": 3},
    "blocks": {"flash_attention": True},
    "rotary": {"position": RotaryEmbedding()},
    "float16": {"dtype": "mixed_float16"},
}


@pytest.mark.parametrize("name", LEAKS)
def test_nothing_leaks_from_behind_padding(name):
    inputs = QUERY, VALUE, KEY
    layer = built(*inputs, **LEAKS[name])
    query_mask, value_mask, key_mask = (random_mask(B, n, seed=20 + i) for i, n in enumerate((T, S, S)))
    hidden = ~(value_mask & key_mask)
    assert not query_mask.all() and hidden.any() and not hidden.all(axis=1).any()
    given = {"query_mask": query_mask, "value_mask": value_mask, "key_mask": key_mask}
    clean = outputs_and_gradients(layer, inputs, **given)
    assert all(np.all(x[hidden] == 0) for x in clean[2:4]) and np.abs(clean[2]).max() > 1e-4
    for poison in (np.nan, np.inf, -1e30):
        poisoned = [x.copy() for x in inputs]
        poisoned[0][~query_mask], poisoned[1][hidden], poisoned[2][hidden] = poison, poison, poison
        for one, two in zip(clean, outputs_and_gradients(layer, poisoned, **given), strict=True):
            assert np.isfinite(one).all()
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["fused", *LEAKS])
def test_nothing_leaks_from_behind_padding_in_self_attention(name):
    layer = built(**({"fused_projection": True} if name == "fused" else LEAKS[name]))
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
    given = {"query_mask": mask, "value_mask": mask, "use_causal_mask": True}
    poisoned = np.where(mask[:, :, None], X, np.float32(np.nan))
    clean, other = (outputs_and_gradients(layer, [x], **given) for x in (X, poisoned))
    for one, two in zip(clean, other, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("options", [{}, {"flash_attention": True}], ids=str)
def test_what_an_explicit_mask_hides_does_not_matter(options):
    layer = built(QUERY, VALUE, **options)
    seen = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)
    mask = random_mask(B, T, S, seed=1) & seen[:, None]
    changed = np.where(seen[:, :, None], VALUE, 100 * VALUE[:, ::-1])
    clean, other = (outputs_and_gradients(layer, [QUERY, x], attention_mask=mask) for x in (VALUE, changed))
    for one, two in zip(clean, other, strict=True):
        np.testing.assert_array_equal(one, two)


# --------------------------------------------------------------------------------------------------- grouped heads


@pytest.mark.parametrize("options", [{}, {"use_gate": True, "value_dim": VD, "use_bias": False}], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_heads_are_repeated_ones(groups, options):
    inputs = QUERY, VALUE, KEY
    layer = built(*inputs, num_key_value_heads=groups, **options)
    whole = MultiHeadAttention(H, K, **options)
    whole.build(*(x.shape for x in inputs))
    for source, target in zip(layer.weights, whole.weights, strict=True):
        weight = to_numpy(source.value)
        shared = source.path.split("/")[-2] in ("key", "value")
        target.assign(np.repeat(weight, H // groups, axis=weight.ndim - 2) if shared else weight)
    given = {"value_mask": random_mask(B, S), "attention_mask": random_mask(B, H, T, S), "use_causal_mask": True}
    results, expected = (x(*inputs, **given, return_attention_scores=True) for x in (layer, whole))
    assert_all_close(map(to_numpy, results), map(to_numpy, expected), atol=1e-5)
    assert layer.key_dense.kernel.shape == (DK, groups, K)


# ------------------------------------------------------------------------------------------------ fused projection


def split(layer, **options):
    """The layer with three kernels in place of one."""
    heads, groups = layer.num_heads, layer.num_key_value_heads
    fused, rest = layer._fused_dense.weights, [w for w in layer.weights if "query_key_value" not in w.path]
    other = like_unfused(layer, **options)
    parts = [np.split(to_numpy(w.value), [heads, heads + groups], axis=len(w.shape) - 2) for w in fused]
    query, key, value = ([part[i] for part in parts] for i in range(3))
    count = len(fused)
    gate, output = ([to_numpy(w.value) for w in x] for x in (rest[:-count], rest[-count:]))
    other.set_weights([*query, *key, *gate, *value, *output])
    return other


def like_unfused(layer, **options):
    other = MultiHeadAttention.from_config({**layer.get_config(), "fused_projection": False, **options})
    other.build(X.shape, X.shape)
    return other


@pytest.mark.parametrize(
    "options",
    [{}, {"use_bias": False, "num_key_value_heads": 2}, {"use_gate": True, "num_key_value_heads": 1}],
    ids=str,
)
def test_one_projection_computes_what_three_do(options):
    layer = built(fused_projection=True, **options)
    assert sum("query_key_value" in w.path for w in layer.weights) == (1 if options.get("use_bias") is False else 2)
    three = split(layer)
    mask = random_mask(B, S)
    for given in ({}, {"query_mask": mask, "value_mask": mask, "use_causal_mask": True}, {"value_mask": mask}):
        results, expected = (x(X, X, **given, return_attention_scores=True) for x in (layer, three))
        assert_all_close(map(to_numpy, results), map(to_numpy, expected), atol=1e-5)
    x = keras.layers.Embedding(V, D, mask_zero=True)(IDS)
    np.testing.assert_allclose(to_numpy(layer(x, x)), to_numpy(three(x, x)), atol=1e-5)


def test_one_projection_serves_a_model():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    model = keras.Model(ids, MultiHeadAttention(H, K, fused_projection=True, dtype="mixed_bfloat16")(x, x))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(to_numpy(ops.cast(model(IDS), "float32")), to_numpy(ops.cast(clone(IDS), "float32")))


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("kind", ["glorot_uniform", "he_normal", "orthogonal"])
def test_parts_of_one_projection_are_initialized_as_if_alone(kind):
    width, heads, groups, size = 96, 8, 2, 12
    layer = MultiHeadAttention(heads, size, fused_projection=True, num_key_value_heads=groups, kernel_initializer=kind)
    layer.build((B, T, width), (B, T, width))
    alone = like_unfused(layer)
    alone = MultiHeadAttention(heads, size, num_key_value_heads=groups, kernel_initializer=kind)
    alone.build((B, T, width), (B, T, width))
    parts = np.split(to_numpy(layer._fused_dense.kernel.value), [heads, heads + groups], axis=1)
    for part, dense in zip(parts, (alone.query_dense, alone.key_dense, alone.value_dense), strict=True):
        assert part.shape == dense.kernel.shape
        expected = {"glorot_uniform": 2 / (width + part[0].size), "he_normal": 2 / width}
        np.testing.assert_allclose(part.var(), expected.get(kind, 1 / width), rtol=0.15)
        if kind in expected:
            np.testing.assert_allclose(part.var(), to_numpy(dense.kernel.value).var(), rtol=0.15)
    assert np.abs(parts[1] - parts[2]).max() > 1e-3


# -------------------------------------------------------------------------------------------------------- positions


@keras.saving.register_keras_serializable("test_multi_head")
class Table(keras.layers.Layer):
    """A bias given as a table [H, L, L]: a layer of somebody's own."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = np.array(table, "float32")

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def bias(self, query_positions, key_positions):
        table = ops.take(ops.take(ops.convert_to_tensor(self.table), query_positions, 1), key_positions, 2)
        return table * self.scale if self.built else table

    def get_config(self):
        return {**super().get_config(), "table": self.table.tolist()}


@pytest.mark.parametrize("groups", [6, 2])
def test_a_bias_is_added_to_the_scores(groups):
    inputs, table = (QUERY, VALUE, KEY), random(H, S, S)
    layer = built(*inputs, num_key_value_heads=groups, position=Table(table))
    scale = to_numpy(layer.position.scale.value)
    mask = random_mask(B, T, S)
    results = layer(*inputs, attention_mask=mask, return_attention_scores=True)
    expected = oracle(layer, *inputs, mask[:, None], table[:, :T] * scale)
    assert_all_close(map(to_numpy, results), expected, atol=5e-5)
    assert np.abs(to_numpy(layer(*inputs)) - to_numpy(like_without(layer, inputs)(*inputs))).max() > 0.01
    assert any(weight is layer.position.scale for weight in layer.trainable_weights)


def like_without(layer, inputs):
    other = MultiHeadAttention.from_config({**layer.get_config(), "position": None})
    other.build(*(x.shape for x in inputs))
    other.set_weights([to_numpy(w.value) for w in layer.weights if w is not getattr(layer.position, "scale", None)])
    return other


@pytest.mark.parametrize("groups", [6, 2])
@pytest.mark.parametrize("kind", [RotaryEmbedding, ALiBi, RelativeBias])
def test_scores_with_positions_depend_on_distances_only(kind, groups):
    """One key and query at every place: along diagonals the scores are equal, and elsewhere they are not."""
    layer = built(num_key_value_heads=groups, position=kind() if kind is RotaryEmbedding else kind(H))
    x = ops.convert_to_tensor(np.repeat(X[:, :1], S, axis=1))
    weights = np.log(to_numpy(layer(x, x, return_attention_scores=True)[1]))
    scores = weights - np.diagonal(weights, axis1=2, axis2=3)[..., None]
    for distance in range(1 - S, S):
        diagonal = np.diagonal(scores, distance, axis1=2, axis2=3)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[..., :1], diagonal.shape), atol=1e-4)
    assert np.abs(scores).max() > 0.1


def test_rotary_is_that_of_the_formula():
    layer = built(QUERY, VALUE, position=RotaryEmbedding(), num_heads=1)
    query, key = project(layer.query_dense, QUERY), project(layer.key_dense, VALUE)

    def rotated(x):
        """As multiplication of complex numbers."""
        numbers = x[..., : K // 2] + 1j * x[..., K // 2 :]
        angles = np.arange(x.shape[1])[:, None] * 10000 ** (-np.arange(K // 2) * 2 / K)
        numbers = numbers * np.exp(1j * angles)[:, None]
        return np.concatenate([numbers.real, numbers.imag], -1)

    scores = np.einsum("bthk,bshk->bhts", rotated(query), rotated(key)) / K**0.5
    weights = to_numpy(layer(QUERY, VALUE, return_attention_scores=True)[1])
    np.testing.assert_allclose(weights, numpy_softmax(scores), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- blocks

LONG, LONGER = random(B, 23, D, seed=8), random(B, 31, M, seed=9)
BLOCKS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "value_dim": 5},
    "one_key_head": {"num_key_value_heads": 1, "use_gate": True},
    "window": {"sliding_window": 5},
    "rotary": {"position": RotaryEmbedding()},
    "alibi": {"position": ALiBi(H)},
    "table": {"position": Table(random(H, 31, 31))},
}


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_the_same(name):
    layer = built(LONG, LONGER, **BLOCKS[name])
    blocks = like(layer, LONG, LONGER, flash_attention=True)
    masks = {
        "query_mask": random_mask(B, 23),
        "value_mask": random_mask(B, 31, seed=1),
        "attention_mask": random_mask(B, 23, 31),
        "use_causal_mask": True,
    }
    for given in ({}, masks):
        expected, found = (outputs_and_gradients(x, [LONG, LONGER], **given) for x in (layer, blocks))
        # Rounded differently; and the key's bias has no influence: its gradient is what rounding leaves of a sum.
        for one, two in zip(found, expected, strict=True):
            largest = np.abs(two).max()
            limit = 5e-5 if largest < 1e-4 else 2e-5 * max(1, largest)
            np.testing.assert_allclose(one, two, atol=limit)


def test_blocks_take_masks_of_every_shape():
    layer = built(LONG, LONGER)
    blocks = like(layer, LONG, LONGER, flash_attention=True)
    explicit = random_mask(B, 23, 31)
    for mask in (explicit, explicit[:, None], explicit[:, :1], explicit[:1], explicit[0]):
        given = {"attention_mask": mask, "key_mask": random_mask(B, 31)}
        expected, found = (to_numpy(x(LONG, LONGER, **given)) for x in (layer, blocks))
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.fixture
def calls(monkeypatch):
    """The calls of blockwise_attention."""
    calls, real = [], multi_head.blockwise_attention
    monkeypatch.setattr(multi_head, "blockwise_attention", lambda *x, **y: calls.append(1) or real(*x, **y))
    return calls


def test_blocks_are_chosen_by_size(calls, monkeypatch):
    layer = built(LONG, LONGER, dropout=0.5)
    expected = to_numpy(layer(LONG, LONGER))
    assert not calls
    monkeypatch.setattr(multi_head, "LARGE", 23 * 31)
    np.testing.assert_allclose(to_numpy(layer(LONG, LONGER)), expected, atol=2e-5)
    assert len(calls) == 1
    for other, given in (
        (layer, {"training": True}),
        (layer, {"return_attention_scores": True}),
        (layer, {"attention_mask": random_mask(B, H, 23, 31)}),
        (like(layer, LONG, LONGER, flash_attention=False), {}),
        (built(LONG[:, :22], LONGER), {}),
    ):
        inputs = (LONG[:, :22] if other is not layer and not other.dropout else LONG), LONGER
        other(*inputs, **given)
        assert len(calls) == 1
    layer(LONG, LONGER, attention_mask=random_mask(B, 1, 23, 31))
    assert len(calls) == 2


def test_blocks_give_way_to_a_recording(calls):
    layer = built(QUERY, VALUE, flash_attention=True)
    expected = to_numpy(layer(QUERY, VALUE))
    with record_scores() as scores:
        output = to_numpy(layer(QUERY, VALUE))
    np.testing.assert_allclose(output, expected, atol=1e-5)
    ((weights,),) = scores.values()
    plain = like(layer, QUERY, VALUE, flash_attention=False)
    np.testing.assert_array_equal(to_numpy(weights), to_numpy(plain(QUERY, VALUE, return_attention_scores=True)[1]))


def test_an_attention_of_ones_own_is_never_replaced_by_blocks(calls):
    class Uniform(MultiHeadAttention):
        def _compute_attention(self, query, key, value, attention_mask=None, training=None, return_scores=False):
            return ops.repeat(ops.mean(value, axis=1, keepdims=True), query.shape[1], axis=1), None

    layer = built(QUERY, VALUE, kind=Uniform, flash_attention=True)
    output = to_numpy(layer(QUERY, VALUE))
    np.testing.assert_allclose(output, np.repeat(output[:, :1], T, axis=1), atol=1e-6)
    assert not calls


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    "options",
    [
        {"use_gate": True, "value_dim": VD, "output_shape": (2, 3), "dropout": 0.1, "seed": 1},
        *marked(
            "tensorflow_first",
            [
                {
                    "num_key_value_heads": 2,
                    "position": RelativeBias(H, embeddings_initializer="ones"),
                    "sliding_window": 4,
                },
                {"num_key_value_heads": 3, "position": RotaryEmbedding(base=100.0), "flash_attention": True},
            ],
        ),
    ],
    ids=str,
)
def test_contract(options):
    # Without biases: softmax does not see the key's, so that it does not move.
    layer = MultiHeadAttention(H, K, use_bias=False, kernel_initializer="he_normal", **options)
    check_layer(layer, {"query": QUERY, "value": VALUE, "key": KEY})


@pytest.mark.parametrize(
    "options", [{}, {"num_key_value_heads": 2, "value_dim": 5}, {"use_gate": True, "position": ALiBi(H)}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_asking_for_weights_never_changes_the_output(options, dtype):
    layer = built(QUERY, VALUE, dtype=dtype, **options)
    for given in ({}, {"value_mask": random_mask(B, S), "use_causal_mask": True}):
        asked = layer(QUERY, VALUE, **given, return_attention_scores=True)[0]
        np.testing.assert_array_equal(to_numpy(layer(QUERY, VALUE, **given)), to_numpy(asked))
        with record_scores():
            np.testing.assert_array_equal(to_numpy(layer(QUERY, VALUE, **given)), to_numpy(asked))


def test_dropout_acts_in_training_only_and_scores_are_those_before_it():
    layer = built(dropout=0.5, seed=1)
    plain, expected = layer(X, X, return_attention_scores=True)
    dropped, weights = layer(X, X, training=True, return_attention_scores=True)
    assert np.abs(to_numpy(dropped) - to_numpy(plain)).max() > 0.01
    np.testing.assert_array_equal(to_numpy(weights), to_numpy(expected))
    np.testing.assert_array_equal(to_numpy(layer(X, X)), to_numpy(plain))


def test_symbolic_shapes():
    layer = MultiHeadAttention(H, K, output_shape=(2, 3))
    output, weights = layer(keras.Input((None, D)), keras.Input((S, M)), return_attention_scores=True)
    assert (output.shape, weights.shape) == ((None, None, 2, 3), (None, H, None, S))
    output, weights = MultiHeadAttention(H, K)(keras.Input((T, D)), keras.Input((S, M)), return_attention_scores=True)
    assert (output.shape, weights.shape) == ((None, T, D), (None, H, T, S))
    for options, query, value in (
        ({"attention_axes": -2}, (3, T, D), (3, S, M)),
        ({}, (3, 2, D), (2, 5, M)),
        ({"attention_axes": (1,), "dtype": "mixed_bfloat16"}, (T, 2, D), (S, 2, M)),
    ):
        if BACKEND == "torch" and not options:
            continue
        layer = MultiHeadAttention(H, K, **options)
        symbolic = layer(keras.Input(query), keras.Input(value), return_attention_scores=True)
        eager = layer(np.ones((B, *query)), np.ones((B, *value)), return_attention_scores=True)
        for one, two in zip(symbolic, eager, strict=True):
            assert one.shape[1:] == tuple(two.shape[1:])
            assert keras.utils.standardize_dtype(one.dtype) == keras.utils.standardize_dtype(two.dtype)


@pytest.mark.skipif(BACKEND == "torch", reason="compiles for minutes")
def test_compiled_it_computes_the_same():
    ids, other = keras.Input((None,), dtype="int32"), keras.Input((None, M))
    x = keras.layers.Embedding(V, D, mask_zero=True)(ids)
    x = MultiHeadAttention(H, K, fused_projection=True, position=ALiBi(H))(x, x, use_causal_mask=True)
    x = MultiHeadAttention(H, K, num_key_value_heads=2, sliding_window=3)(x, other)
    model = keras.Model([ids, other], x)
    expected = to_numpy(model([IDS, VALUE]))
    for compiled in (False, True):
        model.compile(jit_compile=compiled)
        np.testing.assert_allclose(model.predict([IDS, VALUE], verbose=0), expected, atol=1e-5)


def test_a_policy_for_each_part():
    policies = keras.dtype_policies.DTypePolicyMap()
    policies["mha/query"] = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    policies["mha/attention_output"] = keras.dtype_policies.DTypePolicy("bfloat16")
    layer = built(dtype=policies, name="mha")
    assert layer.query_dense.compute_dtype == "bfloat16" and layer.key_dense.compute_dtype == "float32"
    assert [w.dtype for w in layer.output_dense.weights] == ["bfloat16"] * 2
    theirs = built(kind=keras.layers.MultiHeadAttention, dtype=policies, name="mha")
    layer.set_weights(built().get_weights())
    theirs.set_weights(layer.get_weights())
    one, two = (to_numpy(ops.cast(x(X, X), "float32")) for x in (layer, theirs))
    np.testing.assert_allclose(one, two, atol=0.1)
    assert np.abs(one - to_numpy(built()(X, X))).max() > 1e-3


RELOAD = """
import sys, keras_attention, keras, numpy as np
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras")
data = np.load(f"{folder}/data.npz")
np.testing.assert_allclose(keras.ops.convert_to_numpy(model(data["x"])), data["y"], atol=1e-5)
print("equal")
"""


def test_a_saved_model_loads_where_the_library_is_imported(tmp_path):
    x = inputs = keras.Input((None, D))
    x = MultiHeadAttention(H, K, fused_projection=True, position=RelativeBias(H, kind="clip"))(x, x)
    x = MultiHeadAttention(H, K, num_key_value_heads=2, position=RotaryEmbedding(), flash_attention=True)(x, x)
    x = MultiHeadAttention(H, K, attention_axes=(1,), sliding_window=2, kernel_initializer="he_normal")(x, x)
    model = keras.Model(inputs, x)
    randomize(model)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=X, y=to_numpy(model(X)))
    assert run_python(RELOAD, tmp_path, KERAS_BACKEND=BACKEND).strip() == "equal"


def test_a_saved_model_of_kerass_layer_becomes_ours(tmp_path):
    x = keras.Input((S, D))
    model = keras.Model(x, keras.layers.MultiHeadAttention(H, K, use_gate=True)(x, x))
    randomize(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    ours = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"MultiHeadAttention": MultiHeadAttention})
    np.testing.assert_allclose(to_numpy(ours(X)), to_numpy(model(X)), atol=1e-5)
    x = keras.Input((S, D))
    ours = keras.Model(x, MultiHeadAttention(H, K, use_gate=True)(x, x))
    ours.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(to_numpy(ours(X)), to_numpy(model(X)), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- errors

FLOATS = np.ones((B, S), "float32")
FLASH = {"flash_attention": True}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MultiHeadAttention(H, K, num_key_value_heads=4),
            ValueError,
            "multiple of num_key_value_heads. Received: num_heads=6, num_key_value_heads=4",
        ),
        (lambda: MultiHeadAttention(H, K, num_key_value_heads=0), ValueError, "num_key_value_heads=0"),
        (lambda: MultiHeadAttention(0, K), ValueError, "expected a positive integer. Received: num_heads=0"),
        (lambda: MultiHeadAttention(H, K, position="rotary"), TypeError, "`rotate` or `bias`.*position='rotary'"),
        (
            lambda: MultiHeadAttention(H, K, position=ALiBi(4)),
            ValueError,
            "as many heads as its own. Received: num_heads=6, position.num_heads=4",
        ),
        (lambda: MultiHeadAttention(H, K, value_dim=5, fused_projection=True), ValueError, "key_dim=4, value_dim=5"),
        (lambda: MultiHeadAttention(H, K, **FLASH, dropout=0.1), ValueError, "Dropout is not supported when flash"),
        (
            lambda: MultiHeadAttention(H, K)([X, X]),
            TypeError,
            r"layer\(query, value, key=None.* Received: \[\(2, 5, 7\), \(2, 5, 7\)\]; write layer\(query, value\)",
        ),
        (lambda: MultiHeadAttention(H, K)(X), TypeError, r"Received: \(2, 5, 7\); write .* layer\(x, x\) for self"),
        (lambda: MultiHeadAttention(H, K)(query=X), TypeError, r"Received: query=\(2, 5, 7\); write"),
        (lambda: MultiHeadAttention(H, K)(X, key=X), TypeError, r"Received: \(2, 5, 7\), key=\(2, 5, 7\)"),
        (lambda: MultiHeadAttention(H, K)(X[0], X), ValueError, r"\[batch, length, width\].*query.shape=\(5, 7\)"),
        (lambda: MultiHeadAttention(H, K)(X, X[None]), ValueError, r"value.shape=\(1, 2, 5, 7\)"),
        (lambda: MultiHeadAttention(H, K)(X, X, X[:, :3]), ValueError, r"must be equal.*key.shape=\(2, 3, 7\)"),
        (
            lambda: MultiHeadAttention(H, K, num_key_value_heads=2)(GRID[0], GRID[0]),
            ValueError,
            r"are for inputs \[batch, length, width\]. Received: query.shape=\(2, 3, 2, 7\)",
        ),
        (lambda: MultiHeadAttention(H, K, position=RotaryEmbedding())(GRID[0], GRID[0]), ValueError, "attention_axes"),
        (
            lambda: MultiHeadAttention(H, K)(GRID[0], GRID[0], use_causal_mask=True),
            ValueError,
            r"expect attention over one axis. Received: attention_axes=\(1, 2\)",
        ),
        (
            lambda: MultiHeadAttention(H, K, fused_projection=True)(X, random(B, S, D)),
            ValueError,
            r"layer\(x, x\).*Received: several, \(2, 5, 7\), \(2, 5, 7\); use fused_projection=False",
        ),
        (lambda: MultiHeadAttention(H, K, fused_projection=True)(X, X, key=KEY), ValueError, r"key=\(2, 5, 13\)"),
        (lambda: built(**FLASH)(X, X, return_attention_scores=True), ValueError, "flash_attention=None or False"),
        (
            lambda: built(**FLASH)(X, X, attention_mask=random_mask(B, H, S, S)),
            ValueError,
            r"attention_mask \[B, T, S\], the same for all heads. Received: attention_mask.shape=\(2, 6, 5, 5\)",
        ),
        (lambda: built()(X, X, query_mask=FLOATS), TypeError, "query_mask must be boolean .* Received dtype float32"),
        (lambda: built()(X, X, value_mask=FLOATS), TypeError, "value_mask must be boolean"),
        (lambda: built()(X, X, key_mask=FLOATS), TypeError, "key_mask must be boolean"),
        (lambda: built()(X, X, attention_mask=FLOATS), TypeError, "attention_mask must be boolean"),
        (
            lambda: built()(X, X, value_mask=random_mask(B, 1, S)),
            ValueError,
            r"value_mask is \[batch, length\].*value_mask.shape=\(2, 1, 5\) for an input of shape \(2, 5, 7\)",
        ),
        (lambda: built()(QUERY, X, query_mask=random_mask(B, S)), ValueError, r"query_mask.shape=\(2, 5\) for .* 3, 7"),
        (lambda: built()(X, X, attention_mask=random_mask(S)), ValueError, r"attention_mask.shape=\(5,\)"),
        (lambda: built()(X, X, attention_mask=random_mask(1, B, H, S, S)), ValueError, r"shape=\(1, 2, 6, 5, 5\)"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call()
