"""Attention in blocks: the values and gradients of the plain path, whatever the shapes, masks and biases."""

import keras
import numpy as np
import pytest
from helpers import gradients, random, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_attention import ALiBi, RelativeBias, blockwise_attention, masked_softmax

pytestmark = pytest.mark.backends
B, T, S, G, R, K, KV = 2, 7, 11, 3, 2, 5, 13
H = G * R


def inputs(batch=B, target=T, source=S, groups=G, repeats=R, width=K, value_width=KV, seed=0):
    shapes = (target, groups * repeats, width), (source, groups, width), (source, groups, value_width)
    return [random(batch, *shape, seed=seed + number) for number, shape in enumerate(shapes)]


def allowed(target, source, options):
    """The whole mask, broadcastable to [B, H, T, S], from the words of the docstring."""
    row, column = np.arange(target)[:, None] + options.get("offset", 0), np.arange(source)[None, :]
    mask = np.ones((1, target, source), bool)
    if options.get("use_causal_mask"):
        mask = mask & (column <= row)
    if options.get("sliding_window"):
        mask = mask & (abs(row - column) < options["sliding_window"])
    if options.get("attention_mask") is not None:
        mask = mask & options["attention_mask"]
    if options.get("key_mask") is not None:
        mask = mask & options["key_mask"][:, None, :]
    if options.get("query_mask") is not None:
        mask = mask & options["query_mask"][:, :, None]
    return mask[:, None]


def plain(query, key, value, bias=None, relative_bias=None, scale=None, **options):
    """The whole matrix of scores at once."""
    repeats, (target, source) = query.shape[2] // key.shape[2], (query.shape[1], key.shape[1])
    key, value = (ops.repeat(x, repeats, axis=2) for x in (key, value))
    scores = ops.einsum("bthk,bshk->bhts", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if relative_bias is not None:
        distances = np.arange(source)[None, :] - np.arange(target)[:, None]
        bias = ops.take(relative_bias, distances + target - 1, axis=1)
    if bias is not None:
        scores = scores + bias
    weights = masked_softmax(scores, allowed(target, source, options))
    return ops.einsum("bhts,bshv->bthv", weights, value)


def compare(arrays, bias_name=None, bias=None, block_size=4, atol=3e-6, **options):
    """Checks values and gradients, that by the bias included."""
    upstream = random(*arrays[0].shape[:3], arrays[2].shape[-1], seed=9)
    biases = [] if bias is None else [bias]

    def call(function, **more):
        def of(query, key, value, *bias):
            named = {bias_name: bias[0]} if bias else {}
            return function(query, key, value, **named, **options, **more)

        return of

    results, found = [], []
    for function in (call(blockwise_attention, block_size=block_size), call(plain)):
        results.append(to_numpy(function(*map(ops.convert_to_tensor, [*arrays, *biases]))))
        scalar = lambda *x, f=function: ops.sum(ops.multiply(f(*x), upstream))  # noqa: E731
        found.append(gradients(scalar, [*arrays, *biases]))
    np.testing.assert_allclose(*results, atol=atol)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=4 * atol)
    return results[0], found[0]


def booleans(*shape, seed=3, share=0.6):
    return np.random.default_rng(seed).random(shape) < share


MASKS = {
    "none": {},
    "causal": {"use_causal_mask": True},
    "cached": {"use_causal_mask": True, "offset": 4},
    "window": {"sliding_window": 3},
    "causal_window": {"use_causal_mask": True, "sliding_window": 2, "offset": 4},
    "beyond": {"sliding_window": 2, "offset": 30},
    "explicit": {"attention_mask": booleans(B, T, S)},
    "empty_rows": {"attention_mask": booleans(B, T, S) & (np.arange(T) % 3 > 0)[:, None]},
    "one_explicit": {"attention_mask": booleans(T, S)},
    "padding": {"key_mask": booleans(B, S), "query_mask": booleans(B, T)},
    "all": {
        "use_causal_mask": True,
        "sliding_window": 6,
        "attention_mask": booleans(B, T, S, share=0.8),
        "key_mask": booleans(B, S),
        "query_mask": booleans(B, T),
    },
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_masks(options):
    context, _ = compare(inputs(), **options)
    empty = ~np.broadcast_to(allowed(T, S, options)[:, 0], (B, T, S)).any(-1)
    assert np.all(context[empty] == 0)
    assert np.all(np.abs(context[~empty]).max(axis=(-1, -2)) > 0.01)


@pytest.mark.parametrize("block_size", [1, 3, 7, 16, None])
def test_block_sizes(block_size):
    compare(inputs(), block_size=block_size, use_causal_mask=True, offset=2, key_mask=booleans(B, S))


@pytest.mark.tensorflow_first
@pytest.mark.parametrize(
    ("name", "shape"),
    [("bias", (H, T, S)), ("bias", (1, H, T, S)), ("bias", (B, H, T, S)), ("relative_bias", (H, T + S - 1))],
)
@pytest.mark.parametrize("options", [MASKS["none"], MASKS["all"]], ids=["none", "all"])
def test_biases(name, shape, options):
    compare(inputs(), name, random(*shape, seed=7), **options)


@pytest.mark.parametrize("make", [ALiBi, RelativeBias])
def test_position_layers_give_a_bias_by_distance(make):
    layer, offset, (query, key, value) = make(H), 4, inputs()
    layer.build()
    for weight in layer.weights:
        weight.assign(random(*weight.shape))
    by_distance = layer.by_distance(ops.arange(1 - T - offset, S - offset))
    whole = layer.bias(ops.arange(T) + offset, ops.arange(S))
    options = {"use_causal_mask": True, "offset": offset, "block_size": 3}
    expected = plain(*map(ops.convert_to_tensor, (query, key, value)), bias=whole, use_causal_mask=True, offset=offset)
    for named in ({"relative_bias": by_distance}, {"bias": whole}):
        result = blockwise_attention(query, key, value, **named, **options)
        np.testing.assert_allclose(to_numpy(result), to_numpy(expected), atol=3e-6)


@st.composite
def cases(draw):
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    sizes = dict(batch=number(1, 2), target=number(1, 9), source=number(1, 9), groups=number(1, 2))
    sizes |= dict(repeats=number(1, 3), width=number(1, 4), value_width=number(1, 4), seed=number(0, 99))
    batch, target, source, heads = (*list(sizes.values())[:3], sizes["groups"] * sizes["repeats"])
    options = {"offset": number(0, 9), "use_causal_mask": draw(st.booleans()), "block_size": number(1, 5)}
    shapes = {
        "key_mask": [(batch, source)],
        "query_mask": [(batch, target)],
        "attention_mask": [(target, source), (batch, target, source)],
    }
    for name, choices in shapes.items():
        shape = draw(st.sampled_from([None, *choices]))
        if shape is not None:
            options[name] = booleans(*shape, seed=sizes["seed"])
    options["sliding_window"] = draw(st.sampled_from([None, 1, 3, 8]))
    options["scale"] = draw(st.sampled_from([None, 0.3]))
    name = draw(st.sampled_from([None, "bias", "relative_bias"]))
    if name == "bias":
        options |= {"bias_name": name, "bias": random(heads, target, source)}
    elif name == "relative_bias":
        options |= {"bias_name": name, "bias": random(heads, target + source - 1)}
    return sizes, options


@pytest.mark.tensorflow_first
# JAX compiles every example.
@settings(max_examples=4 if keras.backend.backend() == "jax" else 20, deadline=None, derandomize=True, database=None)
@given(cases())
def test_any_shapes_masks_and_block_sizes(case):
    sizes, options = case
    compare(inputs(**sizes), **options)


def test_what_is_masked_changes_no_bit():
    arrays = inputs()
    options = MASKS["all"] | {"block_size": 4}
    upstream = random(B, T, H, KV, seed=9)

    def run(arrays):
        context = blockwise_attention(*map(ops.convert_to_tensor, arrays), **options)
        found = gradients(lambda *x: ops.sum(ops.multiply(blockwise_attention(*x, **options), upstream)), arrays)
        return [to_numpy(context), *found]

    expected = run(arrays)
    seen = allowed(T, S, options)[:, 0]
    for fill, unseen_queries, unseen_keys in (
        (np.nan, ~options["query_mask"], ~options["key_mask"]),
        (1e4, ~seen.any(2), ~seen.any(1)),
    ):
        dirty = [x.copy() for x in arrays]
        for x, unseen in zip(dirty, (unseen_queries, unseen_keys, unseen_keys), strict=True):
            x[unseen] = fill
        for one, two in zip(run(dirty), expected, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("masked", [True, False])
def test_16_bits(dtype, masked):
    arrays = [ops.cast(x, dtype) for x in inputs()]
    options = {"key_mask": booleans(B, S), "attention_mask": booleans(B, T, S)} if masked else {}
    if masked:
        options["attention_mask"][1, 3] = False
    context = blockwise_attention(*arrays, **options, block_size=4)
    assert keras.utils.standardize_dtype(context.dtype) == dtype
    rounded = [ops.cast(x, "float32") for x in arrays]
    tolerance = {"float16": 1e-3, "bfloat16": 1e-2}[dtype]
    context = to_numpy(ops.cast(context, "float32"))
    np.testing.assert_allclose(context, to_numpy(plain(*rounded, **options)), atol=tolerance, rtol=tolerance)
    weight = random(B, T, H, KV, seed=9)

    def loss(function):
        def of(*x):
            x = [ops.cast(y, dtype) for y in x]
            return ops.sum(ops.multiply(ops.cast(function(*x, **options), "float32"), weight))

        return of

    def in_float32(*x, **options):
        return plain(*[ops.cast(y, "float32") for y in x], **options)

    arrays = [to_numpy(x) for x in rounded]
    for one, two in zip(gradients(loss(blockwise_attention), arrays), gradients(loss(in_float32), arrays), strict=True):
        np.testing.assert_allclose(one, two, atol=10 * tolerance, rtol=10 * tolerance)


def test_scores_of_16_bits_do_not_overflow():
    query = np.full((1, 3, 1, 4), 300.0, "float16")  # products of 360,000 exceed float16
    key = np.stack([query[:, 0] * sign for sign in (1, -1, 1, -1, 1)], axis=1)
    value = random(1, 5, 1, 2, dtype="float16")
    context = blockwise_attention(query, key, value, block_size=2, key_mask=np.ones((1, 5), bool))
    np.testing.assert_allclose(to_numpy(context)[0, :, 0], [value[0, ::2, 0].mean(0)] * 3, atol=2e-3)


def test_great_scores():
    query, key = np.array([1e19, -1e19], "float32").reshape(1, 2, 1, 1), random(1, 5, 1, 1) * np.float32(1e19)
    value = random(1, 5, 1, 3)
    context = blockwise_attention(query, key, value, block_size=2, scale=1.0, key_mask=np.ones((1, 5), bool))
    chosen = [int(key.argmax()), int(key.argmin())]
    np.testing.assert_array_equal(to_numpy(context)[0, :, 0], value[0, chosen, 0])


def test_no_key_at_all():
    query, key, value = inputs(source=0)
    assert np.all(to_numpy(blockwise_attention(query, key, value, key_mask=np.ones((B, 0), bool))) == 0)


COMPILED = {"mixed": MASKS["all"], "cached": MASKS["cached"]}


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("compiler", ["plain", "xla"])
def test_compiled(options, compiler):
    arrays = inputs()
    upstream = random(B, T, H, KV, seed=9)
    if keras.backend.backend() == "torch" or (keras.backend.backend(), compiler) == ("jax", "plain"):
        pytest.skip("nothing to compile")
    relative = random(H, T + S - 1, seed=8)
    options = {name: ops.convert_to_tensor(x) if hasattr(x, "shape") else x for name, x in options.items()}

    def loss(query, key, value, relative_bias):
        context = blockwise_attention(query, key, value, relative_bias=relative_bias, block_size=3, **options)
        return ops.sum(ops.multiply(context, upstream))

    arrays = [*arrays, relative]
    expected = gradients(loss, arrays)
    if keras.backend.backend() == "jax":
        import jax

        found = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
    else:
        import tensorflow as tf

        unknown = [tf.TensorSpec([None, None, *x.shape[2:]], "float32") for x in arrays[:3]]
        unknown.append(tf.TensorSpec([H, None], "float32"))

        def step(*x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(*x)
            return tape.gradient(value, x)

        compiled = tf.function(step, jit_compile=compiler == "xla")
        if compiler == "plain":
            compiled = tf.function(step, input_signature=unknown)
            graph = compiled.get_concrete_function().graph.as_graph_def()
            nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
            assert not [node.op for node in nodes if node.op.startswith("Xla")]
        found = compiled(*map(tf.convert_to_tensor, arrays))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(to_numpy(one), two, atol=1e-5)


def test_an_offset_of_a_traced_step():
    query, key, value = inputs()
    expected = to_numpy(blockwise_attention(query, key, value, use_causal_mask=True, offset=4, block_size=3))

    def step(offset):
        return blockwise_attention(query, key, value, use_causal_mask=True, offset=offset, block_size=3)

    if keras.backend.backend() == "jax":
        import jax

        step = jax.jit(step)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        step = tf.function(step)
    np.testing.assert_allclose(to_numpy(step(ops.convert_to_tensor(4))), expected, atol=1e-6)


def test_cached_steps_equal_the_whole():
    query, key, value = inputs(target=S)
    options = {"use_causal_mask": True, "sliding_window": 5, "block_size": 4}
    whole = to_numpy(blockwise_attention(query, key, value, **options))
    for start, end in ((0, 1), (1, 4), (4, 11)):
        step = blockwise_attention(query[:, start:end], key, value, offset=start, **options)
        np.testing.assert_allclose(to_numpy(step), whole[:, start:end], atol=1e-6)


def test_no_matrix_of_scores_in_a_graph():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("reads a TensorFlow graph")
    import tensorflow as tf

    length = 60

    def step(query, key, value):
        with tf.GradientTape() as tape:
            tape.watch((query, key, value))
            context = blockwise_attention(query, key, value, use_causal_mask=True, sliding_window=40, block_size=6)
        return tape.gradient(context, (query, key, value))

    arrays = inputs(batch=1, target=length, source=length, groups=1, repeats=1)
    function = tf.function(step).get_concrete_function(*map(tf.constant, arrays))
    bodies = [function.graph]
    sizes = []
    while bodies:
        graph = bodies.pop()
        sizes += [x.shape.num_elements() or 0 for op in graph.get_operations() for x in op.outputs if x.shape.rank]
        bodies += [f.graph for f in (graph._get_function(name) for name in graph._functions) if hasattr(f, "graph")]
    assert len(sizes) > 100
    assert max(sizes) <= length * KV  # 60 x 60 scores are 3,600 numbers, the greatest array has 780


WRONG = {
    "rank": ({}, lambda q, k, v: (q[0], k, v), r"a query \[B, T, H, K\].*query.shape=\(7, 6, 5\)"),
    "width": ({}, lambda q, k, v: (q[..., :3], k, v), r"query and key of one width.*query.shape=\(2, 7, 6, 3\)"),
    "heads": ({}, lambda q, k, v: (q[:, :, :4], k, v), "in query a multiple of that"),
    "value_heads": ({}, lambda q, k, v: (q, k, v[:, :, :1]), "as many heads in value as in key"),
    "lengths": ({}, lambda q, k, v: (q, k, v[:, :4]), "key and value of one length"),
    "key_mask": ({"key_mask": booleans(B, T)}, None, r"key_mask of shape \(2, 11\). Received: key_mask.shape=\(2, 7\)"),
    "query_mask": ({"query_mask": booleans(B, 1, T)}, None, r"query_mask of shape \(2, 7\)"),
    "attention_mask": (
        {"attention_mask": booleans(S, T)},
        None,
        r"attention_mask of shape \(7, 11\) or \(2, 7, 11\). Received: attention_mask.shape=\(11, 7\)",
    ),
    "bias": ({"bias": random(G, T, S)}, None, r"bias of shape \(6, 7, 11\) or .*bias.shape=\(3, 7, 11\)"),
    "relative_bias": ({"relative_bias": random(H, T + S)}, None, r"relative_bias of shape \(6, 17\).*\(6, 18\)"),
    "window": (
        {"sliding_window": 0},
        None,
        "sliding_window to be a positive integer .*sliding_window=0",
    ),
    "block_size": ({"block_size": 2.5}, None, "block_size to be a positive integer .*block_size=2.5"),
    "both": ({"bias": random(H, T, S), "relative_bias": random(H, T + S - 1)}, None, "Received: both"),
}


@pytest.mark.parametrize(("options", "change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs(options, change, message):
    arrays = inputs()
    with pytest.raises(ValueError, match=f"blockwise_attention expects .*{message}"):
        blockwise_attention(*(change(*arrays) if change else arrays), **options)


def test_float_masks_are_refused():
    for name, shape in (("query_mask", (B, T)), ("key_mask", (B, S)), ("attention_mask", (T, S))):
        with pytest.raises(TypeError, match=f"{name} must be boolean"):
            blockwise_attention(*inputs(), **{name: np.ones(shape, "float32")})
