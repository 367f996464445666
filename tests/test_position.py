"""Positions: against the papers' formulas in float64, and what they promise about distances and lengths."""

import math

import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, random, randomize, to_numpy
from keras import ops

from keras_attention import (
    ALiBi,
    PositionEmbedding,
    RelativeBias,
    RotaryEmbedding,
    SinusoidalEncoding,
    sinusoidal_encoding,
)
from keras_attention.masks import implicit_mask

pytestmark = pytest.mark.backends
B, T, S, D, H, K = 2, 3, 5, 7, 11, 6
ROWS = np.array([[4, 0, 9], [1, 2, 3]], "int32")


# Sinusoids.


def sinusoids(position, width):
    """Section 3.5 of the paper, number by number."""
    return [
        (math.cos if column % 2 else math.sin)(position / 10000 ** ((column - column % 2) / width))
        for column in range(width)
    ]


@pytest.mark.parametrize("width", [1, 6, 7])
def test_sinusoids_are_those_of_the_paper(width):
    expected = np.array([sinusoids(position, width) for position in range(50)])
    result = sinusoidal_encoding(50, width)
    np.testing.assert_allclose(to_numpy(result), expected, atol=5e-6)
    assert keras.utils.standardize_dtype(result.dtype) == "float32"
    by_row = sinusoidal_encoding(ROWS, width)
    np.testing.assert_allclose(to_numpy(by_row), to_numpy(result)[ROWS], atol=1e-6)


def test_sinusoids_far_out():
    expected = np.array(sinusoids(100_000, 6))
    np.testing.assert_allclose(to_numpy(sinusoidal_encoding(np.array([100_000]), 6))[0], expected, atol=0.01)


ADDED = {"sinusoidal": SinusoidalEncoding, "learned": lambda **options: PositionEmbedding(max_length=13, **options)}


def every_added():
    return pytest.mark.parametrize("make", ADDED.values(), ids=ADDED)


@every_added()
def test_offset_and_positions_choose_the_rows(make):
    layer, x = make(), random(B, T, D)
    layer.build(x.shape)
    randomize(layer)
    table = to_numpy(layer(np.zeros((1, 13, D), "float32")))[0]
    for call, positions in [
        ({}, [0, 1, 2]),
        ({"offset": 4}, [4, 5, 6]),
        ({"offset": ops.convert_to_tensor(4)}, [4, 5, 6]),
        ({"positions": ROWS}, ROWS),
        ({"positions": ROWS[0]}, ROWS[0]),
    ]:
        np.testing.assert_allclose(to_numpy(layer(x, **call)), x + table[positions], atol=1e-6)


@every_added()
def test_wrong_inputs_of_added_positions(make):
    layer, x = make(), random(B, T, D)
    with pytest.raises(ValueError, match=r"either by offset or by positions.*offset=2"):
        layer(x, offset=2, positions=ROWS)
    with pytest.raises(TypeError, match="positions must be integers. Received: dtype float32"):
        layer(x, positions=ROWS.astype("float32"))
    with pytest.raises(ValueError, match=r"expects x of shape \[batch, length, width\].*\(2, 3\)"):
        make()(random(B, T))


@every_added()
@pytest.mark.parametrize("with_positions", [False, True])
def test_an_embeddings_mask_is_carried_on(make, with_positions):
    ids = np.array([[3, 1, 0], [2, 0, 0]])
    x = keras.layers.Embedding(5, D, mask_zero=True)(ids)
    result = make()(x, **({"positions": ROWS} if with_positions else {}))
    np.testing.assert_array_equal(to_numpy(implicit_mask(result)), ids != 0)


def test_contract_of_the_learned_embedding():
    layer = PositionEmbedding(max_length=T, embeddings_initializer="he_normal")
    check_layer(layer, {"x": random(B, T, D)})
    assert tuple(layer.embeddings.shape) == (T, D)


@pytest.mark.parametrize("layer", [SinusoidalEncoding(), RotaryEmbedding(base=500.0, scaling=2.0)])
def test_contract_of_layers_without_weights(layer):
    x = random(B, T, H, K) if isinstance(layer, RotaryEmbedding) else random(B, T, D)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(clone) is type(layer)
    assert clone.get_config() == layer.get_config()
    assert not clone.weights
    inputs = keras.Input((None, *x.shape[2:])), keras.Input((None,), dtype="int32")
    for symbols, values in ((inputs[:1], [x]), (inputs, [x, ROWS])):
        model = keras.Model(symbols, clone(symbols[0], positions=symbols[1] if len(symbols) > 1 else None))
        expected = layer(x, positions=values[1] if len(values) > 1 else None)
        np.testing.assert_array_equal(to_numpy(model(values)), to_numpy(expected))
        assert model.output_shape == (None, None, *x.shape[2:])
    half = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    assert keras.utils.standardize_dtype(half(x).dtype) == "bfloat16"
    assert np.abs(to_numpy(ops.cast(half(x), "float32")) - to_numpy(layer(x))).max() < 0.05


@pytest.mark.parametrize(("length", "offset"), [(14, 0), (3, 11), (3, -1)])
def test_a_sequence_that_is_too_long_for_learned_positions(length, offset):
    with pytest.raises(ValueError, match=rf"max_length=13.*length {length} from offset {offset}; shorten it"):
        PositionEmbedding(max_length=13)(random(B, length, D), offset=offset)
    PositionEmbedding(max_length=13)(random(B, 3, D), offset=10)


# Rotary.


def rotated(x, position, base=10000.0):
    """x [K] as complex numbers, multiplied by exp(i m theta)."""
    half = len(x) // 2
    theta = base ** (-2 * np.arange(half, dtype="float64") / len(x))
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta)
    return np.concatenate([turned.real, turned.imag])


@pytest.mark.parametrize(("base", "scaling"), [(10000.0, 1.0), (500.0, 4.0)])
def test_rotary_turns_pairs_as_the_paper_says(base, scaling):
    x, layer = random(B, T, H, K), RotaryEmbedding(base, scaling)
    expected = np.stack(
        [[[rotated(h, p / scaling, base) for h in x[b, t]] for t, p in enumerate(ROWS[b])] for b in range(B)]
    )
    np.testing.assert_allclose(to_numpy(layer.rotate(x, ROWS)), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.rotate(x, ROWS[0]))[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(to_numpy(layer(x, positions=ROWS)), to_numpy(layer.rotate(x, ROWS)))
    np.testing.assert_array_equal(to_numpy(layer(x, offset=4)), to_numpy(layer.rotate(x, [4, 5, 6])))


def test_rotary_scores_depend_on_distances_only_and_lengths_are_kept():
    layer, query, key = RotaryEmbedding(), random(B, T, H, K), random(B, S, H, K, seed=1)

    def scores(shift):
        q, k = layer.rotate(query, np.arange(T) + shift), layer.rotate(key, np.arange(S) + shift)
        return np.einsum("bthk,bshk->bhts", to_numpy(q), to_numpy(k))

    np.testing.assert_allclose(scores(40), scores(0), atol=2e-4)
    assert np.abs(scores(0) - np.einsum("bthk,bshk->bhts", query, key)).max() > 0.5
    lengths = np.linalg.norm(to_numpy(layer.rotate(query, ROWS)), axis=-1)
    np.testing.assert_allclose(lengths, np.linalg.norm(query, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rotary_angles_are_not_rounded_to_16_bits(dtype):
    layer, x = RotaryEmbedding(), ops.cast(random(1, 1, 1, K), dtype)
    exact = layer.rotate(ops.cast(x, "float32"), [1001])
    result = layer.rotate(x, [1001])  # bfloat16 has no 1001
    assert keras.utils.standardize_dtype(result.dtype) == dtype
    np.testing.assert_array_equal(
        to_numpy(ops.cast(result, "float32")), to_numpy(ops.cast(ops.cast(exact, dtype), "float32"))
    )


def test_wrong_rotary():
    with pytest.raises(ValueError, match="even width. Received: width 7"):
        RotaryEmbedding()(random(B, T, H, 7))
    with pytest.raises(ValueError, match="even width. Received: width 7"):
        RotaryEmbedding().rotate(random(B, T, H, 7), ROWS)
    with pytest.raises(ValueError, match=r"\[batch, length, heads, width\].*\(2, 3, 6\)"):
        RotaryEmbedding()(random(B, T, K))
    for options in ({"base": 0}, {"scaling": -1.0}):
        with pytest.raises(ValueError, match="base and scaling above 0"):
            RotaryEmbedding(**options)


# Biases.


def slopes_of_the_authors(n):
    """get_slopes of https://github.com/ofirpress/attention_with_linear_biases (fairseq's transformer.py)."""

    def of_power(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return of_power(n)
    closest = 2 ** math.floor(math.log2(n))
    return of_power(closest) + slopes_of_the_authors(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 11, 12, 16])
def test_slopes_of_alibi(heads):
    np.testing.assert_allclose(ALiBi(heads).slopes, slopes_of_the_authors(heads), rtol=1e-6)


def test_slopes_of_8_and_12_heads_by_hand():
    eight = [2.0**-n for n in range(1, 9)]
    np.testing.assert_allclose(ALiBi(8).slopes, eight)
    np.testing.assert_allclose(ALiBi(12).slopes, eight + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6)


def bucket_of_t5(distance, buckets, max_distance, bidirectional):
    """One distance j - i after another, in words of the paper's code, with exact comparisons of powers."""
    bucket = 0
    if bidirectional:
        buckets //= 2
        bucket = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return bucket + distance
    step, last = 0, buckets - exact - 1  # steps of max_distance / exact to the power 1 / (buckets - exact)
    while step < last and distance ** (last + 1) * exact ** (step + 1) >= exact ** (last + 1) * max_distance ** (
        step + 1
    ):
        step += 1
    return bucket + exact + step


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (4, 3), (64, 1000)])
def test_buckets_of_t5(buckets, max_distance, bidirectional):
    layer = RelativeBias(2, num_buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    distances = np.arange(-1500, 1501)
    expected = [bucket_of_t5(int(d), buckets, max_distance, bidirectional) for d in distances]
    np.testing.assert_array_equal(to_numpy(layer.bucket(distances)), expected)
    assert set(expected) <= set(range(buckets))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_of_clipping(bidirectional):
    layer = RelativeBias(2, kind="clip", max_distance=4, bidirectional=bidirectional)
    distances = np.arange(-9, 10)
    expected = np.clip(distances, -4, 4 if bidirectional else 0) + 4
    np.testing.assert_array_equal(to_numpy(layer.bucket(distances)), expected)


BIASES = {
    "alibi": lambda: ALiBi(H),
    "t5": lambda: RelativeBias(H, num_buckets=8, max_distance=6),
    "t5_causal": lambda: RelativeBias(H, num_buckets=8, max_distance=6, bidirectional=False),
    "clip": lambda: RelativeBias(H, kind="clip", max_distance=2, embeddings_initializer="he_normal"),
}


def every_bias():
    return pytest.mark.parametrize("make", BIASES.values(), ids=BIASES)


def bias_oracle(layer, query_position, key_position):
    """The bias of every head for one query and one key."""
    distance = int(key_position) - int(query_position)
    if isinstance(layer, ALiBi):
        return -np.array(slopes_of_the_authors(H)) * abs(distance)
    if layer.kind == "clip":
        return to_numpy(layer.embeddings)[min(max(distance, -2), 2) + 2]
    return to_numpy(layer.embeddings)[bucket_of_t5(distance, 8, 6, layer.bidirectional)]


@every_bias()
def test_bias_of_every_pair(make):
    layer = make()
    layer.build()
    randomize(layer)
    query, key = ROWS, np.array([[0, 1, 2, 3, 4], [9, 7, 5, 3, 1]], "int32")
    expected = np.array([[[bias_oracle(layer, q, k) for k in key[b]] for q in query[b]] for b in range(B)])
    result = layer.bias(query, key)
    np.testing.assert_allclose(to_numpy(result), np.moveaxis(expected, -1, 1), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.bias(query[0], key[0])), np.moveaxis(expected[0], -1, 0), rtol=1e-6)
    assert keras.utils.standardize_dtype(result.dtype) == "float32"
    distances = to_numpy(layer.by_distance(np.arange(-3, 4)))
    np.testing.assert_array_equal(distances, to_numpy(layer.bias(np.array([3]), np.arange(7)))[:, 0])


@every_bias()
def test_contract_of_biases(make, tmp_path):
    layer = make()
    inputs = keras.Input((T,), dtype="int32"), keras.Input((S,), dtype="int32")
    model = keras.Model(inputs, layer(*inputs))
    assert model.output_shape == (None, H, T, S)
    assert layer.compute_output_shape((T,), (S,)) == (H, T, S)
    randomize(layer)
    values = [ROWS, np.array([[0, 1, 2, 3, 4], [9, 7, 5, 3, 1]], "int32")]
    expected = to_numpy(model(values))
    np.testing.assert_array_equal(expected, to_numpy(layer.bias(*values)))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(keras.saving.load_model(tmp_path / "model.keras")(values)), expected)
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    half = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    half(*values)
    half.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(half(*values)), expected)


@every_bias()
def test_biases_learn_but_alibi(make):
    layer = make()
    layer.build()
    values = [ROWS, np.array([[0, 1, 2, 3, 4], [9, 7, 5, 3, 1]], "int32")]
    target = random(B, H, T, S)
    if isinstance(layer, ALiBi):
        assert not layer.weights
        return
    found = gradients(lambda: ops.sum(layer.bias(*values) * ops.convert_to_tensor(target)), [], layer.weights)
    buckets = to_numpy(layer.bucket(values[1][:, None, :] - values[0][:, :, None]))
    for bucket in range(found[0].shape[0]):
        expected = np.moveaxis(target, 1, -1)[buckets == bucket].sum(0)
        np.testing.assert_allclose(found[0][bucket], expected, atol=1e-5)


def test_wrong_biases():
    with pytest.raises(ValueError, match="ALiBi expects num_heads to be a positive integer. Received: num_heads=0"):
        ALiBi(0)
    with pytest.raises(ValueError, match="kind 't5' or 'clip'. Received: kind='shaw'"):
        RelativeBias(2, kind="shaw")
    with pytest.raises(ValueError, match=r"multiple of 4 \(bidirectional=True\).*num_buckets=6"):
        RelativeBias(2, num_buckets=6)
    with pytest.raises(ValueError, match=r"max_distance to exceed num_buckets / 4.*max_distance=8"):
        RelativeBias(2, num_buckets=32, max_distance=8)
    with pytest.raises(ValueError, match="max_length to be a positive integer. Received: max_length=2.5"):
        PositionEmbedding(2.5)
