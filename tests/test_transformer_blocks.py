"""Feed-forward network, encoder and decoder block: the papers' equations, masks, cached steps."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, marked, random, randomize, to_numpy
from keras import ops

from keras_attention import (
    ALiBi,
    FeedForward,
    RelativeBias,
    RotaryEmbedding,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    record_scores,
    transformer,
)
from keras_attention.masks import implicit_mask
from keras_attention.transformer import LayerNormalization

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
B, W, T, S, D, M, H, F, P = 2, 3, 5, 7, 24, 9, 4, 17, 11
X, MEMORY, HYPOTHESES = random(B, T, D), random(B, S, M, seed=1), random(B * W, T, D, seed=2)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
MEMORY_MASK = np.array([[1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]], bool)
OPTIONS = {
    "paper": {},
    "pre_norm": {"normalize_first": True, "activation": "gelu"},
    "llama": {
        "normalize_first": True,
        "normalization": "rms",
        "gated": True,
        "activation": "silu",
        "use_bias": False,
        "num_key_value_heads": 2,
        "position": RotaryEmbedding(),
    },
    "t5": {
        "normalization": "rms",
        "position": RelativeBias(H, num_buckets=8, max_distance=9, embeddings_initializer="normal"),
        "key_dim": 5,
    },
    "alibi": {"position": ALiBi(H), "num_key_value_heads": 1},
}


def block(kind, name, seed=0, **options):
    """A block with random weights; the normalizations' too."""
    config = kind(H, F, **OPTIONS[name], **options).get_config()
    layer = kind.from_config(config)  # a position layer of its own
    layer.build(X.shape, *([MEMORY.shape] if kind is Decoder and layer.has_cross_attention else []))
    return randomize(layer, seed, scale=0.4)


def assert_close(found, expected):
    """Equal to 1e-5 of the greatest number."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


Encoder, Decoder = TransformerEncoderBlock, TransformerDecoderBlock
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_the_equation(activation, gated, bias):
    layer = FeedForward(F, activation=activation, gated=gated, use_bias=bias)
    layer.build(X.shape)
    randomize(layer)

    def dense(part, x):
        return x @ to_numpy(part.kernel).astype("float64") + (to_numpy(part.bias) if bias else 0)

    hidden = dense(layer.hidden_dense, X.astype("float64"))
    function = ACTIVATIONS[activation]
    hidden = function(dense(layer.gate_dense, X)) * hidden if gated else function(hidden)
    assert_close(to_numpy(layer(X)), dense(layer.output_dense, hidden))


def normalized(norm, x):
    """LayerNorm or RMSNorm in float64."""
    center = x.mean(-1, keepdims=True) if isinstance(norm, keras.layers.LayerNormalization) else 0
    scale = to_numpy(norm.gamma if hasattr(norm, "gamma") else norm.scale)
    shift = to_numpy(norm.beta) if hasattr(norm, "beta") else 0
    return (x - center) / np.sqrt(((x - center) ** 2).mean(-1, keepdims=True) + 1e-6) * scale + shift


def sublayers(layer, x, functions):
    """The residual connections of the papers in NumPy, around the block's own sublayers."""
    x = x.astype("float64")
    for name, function in functions:
        norm = getattr(layer, f"{name}_norm")
        if layer.normalize_first:
            x = x + to_numpy(function(normalized(norm, x).astype("float32")))
        else:
            x = normalized(norm, x + to_numpy(function(x.astype("float32"))))
    return x


@pytest.mark.parametrize("name", OPTIONS)
def test_blocks_are_the_equations(name):
    layer = block(Encoder, name)
    attention = layer.self_attention
    expected = sublayers(
        layer, X, [("self_attention", lambda x: attention(x, x)), ("feed_forward", layer.feed_forward)]
    )
    assert_close(to_numpy(layer(X)), expected)
    layer = block(Decoder, name)
    parts = [
        ("self_attention", lambda x: layer.self_attention(x, x, use_causal_mask=True)),
        ("cross_attention", lambda x: layer.cross_attention(x, MEMORY)),
        ("feed_forward", lambda x: layer.feed_forward(x)),
    ]
    assert_close(to_numpy(layer(X, MEMORY)), sublayers(layer, X, parts))
    layer = block(Decoder, name, cross_attention=False)
    assert_close(to_numpy(layer(X)), sublayers(layer, X, [parts[0], parts[2]]))


@pytest.mark.skipif(BACKEND != "torch", reason="compares with torch.nn")
@pytest.mark.parametrize("first", [False, True])
def test_blocks_equal_pytorchs(first):
    import torch

    options = {"dim_feedforward": F, "dropout": 0.0, "batch_first": True, "norm_first": first, "layer_norm_eps": 1e-6}
    memory = random(B, S, D, seed=1)
    ours, theirs = Decoder(H, F, normalize_first=first), torch.nn.TransformerDecoderLayer(D, H, **options).cpu()
    ours.build(X.shape, memory.shape)
    randomize(ours)
    with torch.no_grad():
        for name, part in (("self_attention", theirs.self_attn), ("cross_attention", theirs.multihead_attn)):
            copy_attention(getattr(ours, name), part)
        for name, part in zip(("self_attention", "cross_attention", "feed_forward"), (1, 2, 3), strict=True):
            norm, source = getattr(theirs, f"norm{part}"), getattr(ours, f"{name}_norm")
            norm.weight.copy_(source.gamma.value), norm.bias.copy_(source.beta.value)
        for dense, linear in (
            (ours.feed_forward.hidden_dense, theirs.linear1),
            (ours.feed_forward.output_dense, theirs.linear2),
        ):
            linear.weight.copy_(dense.kernel.value.T), linear.bias.copy_(dense.bias.value)
        expected = theirs(
            torch.tensor(X),
            torch.tensor(memory),
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(T),
            tgt_is_causal=True,
            memory_key_padding_mask=torch.tensor(~MEMORY_MASK),
        )
    found = ours(X, memory, memory_mask=MEMORY_MASK)
    assert_close(to_numpy(found), expected.numpy())


def copy_attention(ours, theirs):
    """The weights of our attention into one of torch.nn."""
    import torch

    parts = [getattr(ours, f"_{name}_dense") for name in ("query", "key", "value")]
    theirs.in_proj_weight.copy_(torch.cat([part.kernel.value.reshape(D, D).T for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias.value.reshape(D) for part in parts]))
    theirs.out_proj.weight.copy_(ours._output_dense.kernel.value.reshape(D, D).T)
    theirs.out_proj.bias.copy_(ours._output_dense.bias.value)


def decode(layer, x, cache, memory=None):
    """Outputs, cross-attention and self-attention of one step after the other."""
    outputs, scores = [], []
    for step in range(x.shape[1]):
        given = {"cache": cache, "cache_update_index": step, "return_attention_scores": True}
        output, weights, new = layer(x[:, step : step + 1], memory, **given)
        cache = {**cache, **new}
        outputs.append(to_numpy(output))
        scores.append({name: to_numpy(value) for name, value in weights.items()})
    joined = {name: np.concatenate([step[name] for step in scores], axis=2) for name in scores[0]}
    return np.concatenate(outputs, axis=1), joined


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_steps_are_the_full_pass(name):
    """W hypotheses of each row against its one memory; and with one call for all tokens."""
    layer = block(Decoder, name)
    repeated, mask = np.repeat(MEMORY, W, axis=0), np.repeat(MEMORY_MASK, W, axis=0)
    expected, weights = layer(HYPOTHESES, repeated, memory_mask=mask, return_attention_scores=True)
    memory = layer.project_memory(ops.convert_to_tensor(MEMORY), MEMORY_MASK)
    found, seen = decode(layer, HYPOTHESES, layer.initial_cache(B * W, T), memory)
    assert_close(found, to_numpy(expected))
    for part in ("self_attention", "cross_attention"):
        assert_close(seen[part], to_numpy(weights[part]))
    whole, cache = layer(HYPOTHESES, memory, cache=layer.initial_cache(B * W, T), cache_update_index=0)
    assert_close(to_numpy(whole), to_numpy(expected))
    assert to_numpy(cache["mask"]).all()


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("name", OPTIONS)
def test_a_decoder_alone_continues_prompts(name):
    layer = block(Decoder, name, cross_attention=False)
    prompts, mask = random(B, P, D, seed=3), np.arange(P) < np.array([[11], [2]])
    given = {"query_mask": mask, "cache": layer.initial_cache(B, P), "cache_update_index": 0}
    first, prefix = layer(prompts, **given)
    found, _ = decode(layer, HYPOTHESES, {**layer.initial_cache(B * W, T), "prefix": prefix})
    for n in range(B * W):
        prompt = prompts[n // W][mask[n // W]]
        expected = to_numpy(layer(np.concatenate([prompt, HYPOTHESES[n]])[None]))[0]
        assert_close(found[n], expected[len(prompt) :])
        assert_close(to_numpy(first)[n // W][: len(prompt)], expected[: len(prompt)])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_nothing_leaks_from_behind_padding(kind, name):
    """Not even NaN: outputs of real positions and all gradients are those of other padding, bit for bit."""
    layer = block(kind, name)

    def run(fill):
        inputs = [np.where(MASK[:, :, None], X, np.float32(fill))]
        given = {"query_mask": MASK}
        if kind is Decoder:
            inputs.append(np.where(MEMORY_MASK[:, :, None], MEMORY, np.float32(fill)))
            given["memory_mask"] = MEMORY_MASK

        def loss(*x):
            output = layer(*x, **given)
            return ops.sum(ops.where(MASK[:, :, None], ops.sin(output), 0.0))

        output = to_numpy(layer(*map(ops.convert_to_tensor, inputs), **given))
        return [output[MASK], *gradients(loss, inputs, layer.trainable_weights)]

    for one, two in zip(run(np.nan), run(3.0), strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.isfinite(one).all()


def test_the_mask_of_an_embedding_arrives_and_leaves():
    ids, source = np.array([[3, 4, 0, 0], [5, 6, 7, 8]]), np.array([[1, 2, 0], [3, 0, 0]])
    embed, other = keras.layers.Embedding(9, D, mask_zero=True), keras.layers.Embedding(9, M, mask_zero=True)
    encoder, decoder = block(Encoder, "paper"), block(Decoder, "paper")
    for given in ({}, {"attention_mask": np.ones((2, 4, 4), bool)}):
        output = encoder(embed(ids), **given)
        np.testing.assert_array_equal(to_numpy(implicit_mask(output)), ids != 0)
        expected = encoder(ops.stop_gradient(embed(ids)) * 1, query_mask=ids != 0, **given)
        np.testing.assert_array_equal(to_numpy(output), to_numpy(expected))
    output = decoder(embed(ids), other(source))
    np.testing.assert_array_equal(to_numpy(implicit_mask(output)), ids != 0)
    expected = decoder(to_numpy(embed(ids)), to_numpy(other(source)), query_mask=ids != 0, memory_mask=source != 0)
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["llama", *marked("tensorflow_first", sorted(set(OPTIONS) - {"llama"}))])
def test_contract(name):
    # Without biases: softmax does not see the key's, so that it does not move.
    options = {**block(Encoder, name).get_config(), "use_bias": False}
    check_layer(Encoder.from_config(options), {"query": X})
    check_layer(Decoder.from_config({**options, "name": "decoder"}), {"query": X, "memory": MEMORY})
    check_layer(Decoder.from_config({**options, "name": "alone", "cross_attention": False}), {"query": X})


def test_contract_of_feed_forward():
    check_layer(FeedForward(F, gated=True, activation="gelu"), {"x": X})


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_asking_for_weights_never_changes_the_output(kind):
    layer = block(kind, "llama")
    inputs = [X] if kind is Encoder else [X, MEMORY]
    expected = to_numpy(layer(*inputs))
    output, weights = layer(*inputs, return_attention_scores=True)
    np.testing.assert_array_equal(to_numpy(output), expected)
    with record_scores() as scores:
        np.testing.assert_array_equal(to_numpy(layer(*inputs)), expected)
    asked = [weights] if kind is Encoder else list(weights.values())
    for one, (two,) in zip(asked, scores.values(), strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))


def test_symbolic_shapes():
    x, memory = keras.Input((None, D)), keras.Input((S, M))
    output, weights = Encoder(H, F)(x, return_attention_scores=True)
    assert output.shape == (None, None, D) and weights.shape == (None, H, None, None)
    output, weights = Decoder(H, F)(x, memory, return_attention_scores=True)
    assert output.shape == (None, None, D)
    assert weights["self_attention"].shape[1] == H and weights["cross_attention"].shape[3] == S


def test_blocks_stack_in_a_sequential_model_that_learns():
    model = keras.Sequential(
        [
            keras.layers.Embedding(11, D, mask_zero=True),
            Encoder(H, F, dropout=0.1, normalize_first=True, seed=1),
            Encoder(H, F, attention_dropout=0.1, activation_dropout=0.1, seed=2),
            keras.layers.Dense(11),
        ]
    )
    ids = np.random.default_rng(0).integers(1, 11, (64, T))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.01
    losses = model.fit(ids, ids[:, ::-1], epochs=12, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_dropouts_of_one_seed_differ():
    """One for each sublayer: with the same seed they would drop the same places."""
    layer = Encoder(H, F, dropout=0.5, seed=7)
    layer.build(X.shape)
    parts = layer.self_attention_dropout, layer.feed_forward_dropout
    kept = [to_numpy(part(np.ones((B, T, D), "float32"), training=True)) for part in parts]
    assert not np.array_equal(*kept)
    again = Encoder(H, F, dropout=0.5, seed=7)
    again.build(X.shape)
    again.set_weights(layer.get_weights())
    fresh = Encoder(H, F, dropout=0.5, seed=7)
    fresh.build(X.shape)
    fresh.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(again(X, training=True)), to_numpy(fresh(X, training=True)))


PROJECTED = {"key": np.ones((B, S, H, 6)), "value": np.ones((B, S, H, 6)), "mask": MEMORY_MASK}


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_layer_normalization_is_keras_s(dtype):
    ours, theirs = (kind(epsilon=1e-3, dtype=dtype) for kind in (LayerNormalization, keras.layers.LayerNormalization))
    x, upstream = random(3, 5, 7), ops.convert_to_tensor(random(3, 5, 7, seed=1))
    found = []
    for layer, training in ((ours, {"training": True}), (theirs, {})):
        layer.build(x.shape)
        randomize(layer)
        output = layer(x, **training)
        assert keras.utils.standardize_dtype(output.dtype) == layer.compute_dtype
        found.append([to_numpy(ops.cast(output, "float32"))])

        def loss(x, layer=layer, training=training):
            return ops.sum(ops.cast(layer(x, **training), "float32") * upstream)

        found[-1] += gradients(loss, [x], layer.trainable_weights)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 if dtype == "float32" else 0.03)


def test_layer_normalization_takes_its_own_gradient(monkeypatch):
    """It once was passed by, which only the time of a step could tell."""
    taken = []
    monkeypatch.setattr(transformer, "_layer_normalization", lambda x, *_: taken.append(tuple(x.shape)) or x)
    block = Encoder(H, F)
    block(X)
    assert not taken
    block(X, training=True)
    assert taken == ([X.shape] * 2 if BACKEND == "tensorflow" else [])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the layer is Keras's own elsewhere")
@pytest.mark.parametrize("options", [{"axis": 1}, {"axis": [1, 2]}, {"center": False}, {"scale": False}, {"axis": 2}])
def test_layer_normalization_of_other_kinds_is_keras_s(options):
    x, upstream = random(3, 5, 7), random(3, 5, 7, seed=1)
    layers = [kind(**options) for kind in (LayerNormalization, keras.layers.LayerNormalization)]
    for layer in layers:
        layer.build(x.shape)
        randomize(layer)
    ours = gradients(lambda x: ops.sum(layers[0](x, training=True) * upstream), [x], layers[0].trainable_weights)
    theirs = gradients(lambda x: ops.sum(layers[1](x) * upstream), [x], layers[1].trainable_weights)
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs are TensorFlow's")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_block_has_the_same_gradients_in_a_graph_of_unknown_lengths(dtype):
    import tensorflow as tf

    block = Encoder(H, F, dtype=dtype)
    block.build(X.shape)
    randomize(block)

    def by_weights(x, mask):
        with tf.GradientTape() as tape:
            # What py_function gives has no shape, so that the gradient that comes back has none.
            output = tf.py_function(lambda y: y, [block(x, query_mask=mask, training=True)], block.compute_dtype)
            loss = tf.reduce_sum(tf.cast(output, "float32") ** 2)
        return tape.gradient(loss, [weight.value for weight in block.trainable_weights])

    kinds = tf.TensorSpec((None, None, D)), tf.TensorSpec((None, None), "bool")
    for one, two in zip(tf.function(by_weights, kinds)(X, MASK), by_weights(X, MASK), strict=True):
        atol = 1e-4 if dtype == "float32" else 0.05 * np.abs(two).max()
        np.testing.assert_allclose(one, two, atol=atol)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs are TensorFlow's")
def test_a_graph_for_inference_is_freed():
    """Custom gradients are kept for ever, with all that they hold."""
    import tensorflow as tf

    block = Encoder(H, F, dtype="mixed_bfloat16")
    block.build(X.shape)
    function = tf.function(block.call).get_concrete_function(tf.TensorSpec(X.shape, "bfloat16"), query_mask=MASK)
    graph = weakref.ref(function.graph)
    del function, block
    gc.collect()
    assert graph() is None


@pytest.mark.tensorflow_first
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_block_is_quantized_as_a_whole():
    query = keras.Input((T, D))
    block = Encoder(H, F)
    keras.Model(query, block(query)).quantize("int8")
    kernels = [weight for weight in block.weights if weight.name == "kernel"]
    assert len(kernels) == 6 and {keras.utils.standardize_dtype(kernel.dtype) for kernel in kernels} == {"int8"}
    assert np.isfinite(to_numpy(block(X))).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the layer is Keras's own elsewhere")
def test_a_bias_in_bfloat16_has_the_sum_of_many_rows():
    """Summed in bfloat16, more than 256 ones would be 256 ones."""
    layer = FeedForward(F, dtype="mixed_bfloat16")
    x = ops.ones((64, 128, D))
    layer.build(x.shape)

    def loss(x):
        return ops.sum(ops.cast(layer(x, training=True), "float32"))

    _, found = gradients(loss, [x], [layer.output_dense.bias])
    np.testing.assert_allclose(found, 64 * 128, rtol=0.01)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_dense_layers_of_the_feed_forward_network_are_keras_s(dtype):
    layer = FeedForward(F, activation="gelu", dtype=dtype)
    layer.build(X.shape)
    randomize(layer)
    ours = layer.hidden_dense
    theirs = keras.layers.Dense(F, activation="gelu", dtype=dtype)
    theirs.build(X.shape)
    theirs.set_weights(ours.get_weights())
    upstream, found = ops.convert_to_tensor(random(*X.shape[:2], F, seed=1)), []
    for dense in (ours, theirs):

        def loss(x, dense=dense):
            return ops.sum(ops.cast(dense(x, training=True), "float32") * upstream)

        found.append(gradients(loss, [X], dense.trainable_weights))
        found[-1].append(to_numpy(ops.cast(dense(X, training=True), "float32")))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=(1e-6 if dtype == "float32" else 0.02) * np.abs(two).max())


def test_feed_forward_zeroes_padding():
    layer = FeedForward(F)
    layer.build(X.shape)
    x = ops.convert_to_tensor(np.where(MASK[:, :, None], X, np.nan))
    found = gradients(lambda x: ops.sum(layer(x, mask=MASK)), [x], layer.trainable_weights)
    assert all(np.isfinite(gradient).all() for gradient in found)


def test_a_position_with_weights_is_for_one_layer():
    position = RelativeBias(H)
    Encoder(H, F, position=position)(X)
    with pytest.raises(ValueError, match="belongs to another layer; make one for each"):
        Encoder(H, F, position=position)(X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Encoder(5, F)(X), ValueError, "a width that num_heads divides.*width 24, num_heads=5"),
        (
            lambda: Encoder(H, 0),
            ValueError,
            "feed_forward_units to be a positive integer. Received: feed_forward_units=0",
        ),
        (lambda: FeedForward(2.5), ValueError, "units to be a positive integer"),
        (lambda: Encoder(H, F, normalization="batch"), ValueError, "'layer' or 'rms'. Received: normalization='batch'"),
        (lambda: Encoder(H, F)(X[0]), ValueError, r"\[batch, length, width\]. Received: query.shape=\(5, 24\)"),
        (lambda: Decoder(H, F)(X), TypeError, r"block\(query, memory, ...\).*Received: \(2, 5, 24\)"),
        (lambda: Decoder(H, F, cross_attention=False)(X, MEMORY), TypeError, "without a memory"),
        (lambda: Decoder(H, F)([X, MEMORY]), TypeError, r"Received: \[\(2, 5, 24\), \(2, 7, 9\)\]"),
        (lambda: Encoder(H, F)(X, mask=MASK.astype("float32")), TypeError, "True = may attend"),
        (lambda: Encoder(H, F)(X, query_mask=MASK[:, :3]), ValueError, r"query_mask is \[batch, length\]"),
        (lambda: Decoder(H, F).initial_cache(2, 3), ValueError, "must be built before it decodes"),
        (
            lambda: block(Decoder, "paper", cross_attention=False).project_memory(MEMORY),
            ValueError,
            "cross_attention=True",
        ),
        (
            lambda: block(Decoder, "paper")(X, dict(PROJECTED), memory_mask=MEMORY_MASK),
            ValueError,
            "has its mask already",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
