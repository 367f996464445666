"""The masked loss against NumPy and Keras. Sizes: B = 3, T = 5, V = 7."""

import keras
import numpy as np
import pytest
from helpers import gradients, to_numpy
from keras import ops

from keras_attention.masks import carry_mask
from keras_attention.models import Transformer
from keras_attention.training import losses
from keras_attention.training.losses import MaskedCrossEntropy, blockwise_cross_entropy, token_losses

pytestmark = pytest.mark.backends
TARGETS = np.array([[4, 2, 6, 0, 0], [1, 5, 3, 2, 6], [3, 0, 0, 0, 0]], "int32")
LOGITS = np.random.default_rng(11).normal(0, 3, (3, 5, 7)).astype("float32")
REAL = TARGETS != 0


def log_softmax(logits):
    logits = logits.astype("float64")
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def smoothed_targets(eps):
    return (1 - eps) * np.eye(7)[TARGETS] + eps / 7


def oracle_losses(eps):
    return -(smoothed_targets(eps) * log_softmax(LOGITS)).sum(-1) * REAL


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def with_nan_at_padding(logits):
    return np.where(REAL[..., None], logits, np.nan).astype("float32")


class AddTable(keras.layers.Layer):
    """x + table, so that the table's gradient is the gradient of the logits, summed over the batch."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape, initializer="zeros")

    def call(self, x):
        return x + self.table


def logits_gradient(loss, logits):
    """The loss's gradient with respect to the logits [B, T, V]: one step of plain gradient descent at rate 1."""
    layer = AddTable()
    inputs = keras.Input(batch_shape=logits.shape)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), loss)
    model.train_on_batch(logits, TARGETS)
    return -ops.convert_to_numpy(layer.table)


def test_without_smoothing_it_is_keras_own_loss_that_ignores_padding():
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    ours = number(losses.MaskedCrossEntropy()(TARGETS, LOGITS))
    assert ours == pytest.approx(number(keras_loss(TARGETS, LOGITS)), rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_numpy_oracle(eps):
    loss = losses.MaskedCrossEntropy(label_smoothing=eps)
    np.testing.assert_allclose(ops.convert_to_numpy(loss.call(TARGETS, LOGITS)), oracle_losses(eps), rtol=1e-5)
    expected = oracle_losses(eps).sum() / REAL.sum()
    assert number(loss(TARGETS, LOGITS)) == pytest.approx(expected, rel=1e-6)


def test_smoothing_spreads_over_all_classes():
    # One token, logits 0: every class costs log 7, however the probability is spread.
    loss = losses.MaskedCrossEntropy(label_smoothing=0.4)
    assert number(loss(np.array([[3]]), np.zeros((1, 1, 7), "float32"))) == pytest.approx(np.log(7), rel=1e-6)
    # Logits (log 2, 0): probabilities 2/3 and 1/3; the target, id 1, gets 0.6 + 0.2, the other 0.2.
    logits = np.array([[[np.log(2), 0.0]]], "float32")
    expected = 0.8 * np.log(3) + 0.2 * np.log(1.5)
    assert number(loss(np.array([[1]]), logits)) == pytest.approx(expected, rel=1e-6)


def test_more_padding_changes_nothing():
    loss = losses.MaskedCrossEntropy(label_smoothing=0.1)
    wide_targets = np.pad(TARGETS, ((0, 2), (0, 6)))
    wide_logits = np.pad(LOGITS, ((0, 2), (0, 6), (0, 0)), constant_values=3.0)
    expected = number(loss(TARGETS, LOGITS))
    assert number(loss(wide_targets, wide_logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_nan_at_padding_reaches_neither_loss_nor_gradient(eps):
    loss = losses.MaskedCrossEntropy(label_smoothing=eps)
    logits = with_nan_at_padding(LOGITS)
    assert number(loss(TARGETS, logits)) == pytest.approx(number(loss(TARGETS, LOGITS)), rel=1e-6)
    expected = (np.exp(log_softmax(LOGITS)) - smoothed_targets(eps)) * REAL[..., None] / REAL.sum()
    np.testing.assert_allclose(logits_gradient(loss, logits), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    loss = losses.MaskedCrossEntropy(label_smoothing=0.1)
    logits = ops.cast(LOGITS, dtype)
    rounded = ops.convert_to_numpy(ops.cast(logits, "float32"))
    value = loss(TARGETS, logits)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert number(value) == pytest.approx(number(loss(TARGETS, rounded)), rel=1e-6)


def test_large_half_precision_logits_stay_finite():
    # 7 * exp(60000) overflows every type; the target's share is 1/7.
    logits = ops.cast(np.full((1, 1, 7), 6e4), "float16")
    assert number(losses.MaskedCrossEntropy()(np.array([[2]]), logits)) == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize("shape", ["B", "B1", "BT"])
def test_sample_weights(shape):
    rows = np.array([0.5, 2.0, 3.0], "float32")
    tokens = np.random.default_rng(13).uniform(0.1, 2, (3, 5)).astype("float32")
    given, full = {
        "B": (rows, rows[:, None] * REAL),
        "B1": (rows[:, None], rows[:, None] * REAL),
        "BT": (tokens, tokens * REAL),
    }[shape]
    expected = (oracle_losses(0.1) * full).sum() / full.sum()
    loss = losses.MaskedCrossEntropy(label_smoothing=0.1)
    assert number(loss(TARGETS, LOGITS, sample_weight=given)) == pytest.approx(expected, rel=1e-6)


def test_weights_below_zero_are_divided_by_their_magnitude():
    """What they weigh is to become less probable, and the size of a step does not depend on how they cancel."""
    weights = np.array([1.0, -2.0, 0.5], "float32")[:, None] * REAL
    expected = (oracle_losses(0.1) * weights).sum() / np.abs(weights).sum()
    loss = losses.MaskedCrossEntropy(label_smoothing=0.1)
    assert number(loss(TARGETS, LOGITS, sample_weight=weights.astype("float32"))) == pytest.approx(expected, rel=1e-6)


def test_a_weight_at_padding_does_not_count():
    loss = losses.MaskedCrossEntropy()
    weights = np.where(REAL, 1.0, np.nan).astype("float32")
    assert number(loss(TARGETS, LOGITS, weights)) == pytest.approx(number(loss(TARGETS, LOGITS)), rel=1e-6)


def test_only_padding_costs_nothing():
    loss = losses.MaskedCrossEntropy(label_smoothing=0.1)
    assert number(loss(np.zeros_like(TARGETS), LOGITS)) == 0.0
    assert number(loss(TARGETS, LOGITS, sample_weight=np.zeros(3, "float32"))) == 0.0


def test_an_implicit_mask_is_not_applied_a_second_time():
    loss = losses.MaskedCrossEntropy()
    logits = ops.convert_to_tensor(LOGITS)
    carry_mask(logits, ops.convert_to_tensor(np.zeros((3, 5), bool)))
    assert number(loss(TARGETS, logits)) == pytest.approx(oracle_losses(0).sum() / REAL.sum(), rel=1e-6)


def test_targets_may_come_as_floats():
    loss = losses.MaskedCrossEntropy()
    assert number(loss(TARGETS.astype("float32"), LOGITS)) == number(loss(TARGETS, LOGITS))


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"MaskedCrossEntropy expects .*y_true.shape=\(3,\)"):
        losses.MaskedCrossEntropy()(TARGETS[:, 0], LOGITS)
    with pytest.raises(ValueError, match=r"y_pred.shape=\(3, 5\)"):
        losses.MaskedCrossEntropy()(TARGETS, LOGITS[..., 0])


@pytest.mark.parametrize("eps", [-0.1, 1.0, 1.5])
def test_wrong_label_smoothing(eps):
    with pytest.raises(ValueError, match=f"label_smoothing={eps}"):
        losses.MaskedCrossEntropy(label_smoothing=eps)


def test_config_round_trip():
    loss = losses.MaskedCrossEntropy(label_smoothing=0.2, name="mine", r_drop=3)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is losses.MaskedCrossEntropy
    assert again.get_config() == {"label_smoothing": 0.2, "name": "mine", "r_drop": 3.0}


def test_fit_learns_and_a_saved_model_keeps_the_loss(tmp_path):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Embedding(7, 11, mask_zero=True)(inputs)))
    model.compile(keras.optimizers.Adam(0.1), losses.MaskedCrossEntropy(label_smoothing=0.1))
    before = model.evaluate(TARGETS, TARGETS, verbose=0)
    model.fit(TARGETS, TARGETS, epochs=20, verbose=0)
    after = model.evaluate(TARGETS, TARGETS, verbose=0)
    # The best that smoothing allows is the entropy of the smoothed targets.
    entropy = -(0.9 + 0.1 / 7) * np.log(0.9 + 0.1 / 7) - 6 * 0.1 / 7 * np.log(0.1 / 7)
    assert entropy <= after < entropy + 0.1 < before

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is losses.MaskedCrossEntropy
    assert loaded.loss.label_smoothing == 0.1
    assert loaded.evaluate(TARGETS, TARGETS, verbose=0) == pytest.approx(after, rel=1e-6)


# Block by block: the numbers of the plain loss without the logits.

BLOCKS = [(0.0, 16), (0.1, 16), (0.1, 512)]


def block_case(dtype="float32"):
    generator = np.random.default_rng(5)
    features, matrix = generator.normal(size=(7, 11, 13)), generator.normal(size=(29, 13))
    y_true = generator.integers(1, 29, (7, 11)).astype("int32")
    y_true[:, 8:], y_true[3] = 0, 0
    arrays = [array.astype(dtype) for array in (features, matrix, generator.normal(size=29))]
    return arrays, y_true, generator.random((7, 11)).astype("float32")


def plain(features, matrix, bias):
    return ops.matmul(features, ops.transpose(matrix)) + bias


@pytest.mark.parametrize(("smoothing", "block"), BLOCKS)
@pytest.mark.parametrize("weights", ["none", "positive", "of both signs"])
def test_blockwise_values_and_gradients_equal_the_plain_loss(smoothing, block, weights):
    arrays, y_true, sample_weight = block_case()
    sample_weight = {"none": None, "positive": sample_weight, "of both signs": sample_weight - 0.6}[weights]
    loss, labels = MaskedCrossEntropy(smoothing), ops.convert_to_tensor(y_true)

    def whole(*x):
        return loss(labels, plain(*x), sample_weight)

    def by_blocks(*x):
        return blockwise_cross_entropy(*x, labels, sample_weight, smoothing, block=block)[0]

    tensors = [ops.convert_to_tensor(x) for x in arrays]
    np.testing.assert_allclose(float(by_blocks(*tensors)), float(whole(*tensors)), rtol=1e-6)
    value, _ = blockwise_cross_entropy(*tensors, labels, sample_weight, smoothing, block=block, training=False)
    np.testing.assert_allclose(float(value), float(whole(*tensors)), rtol=1e-6)
    for one, two in zip(gradients(by_blocks, arrays), gradients(whole, arrays), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_blockwise_without_a_bias(smoothing):
    (features, matrix, bias), y_true, _ = block_case()
    labels = ops.convert_to_tensor(y_true)

    def without(features, matrix):
        return blockwise_cross_entropy(features, matrix, None, labels, None, smoothing, block=16)[0]

    def of_zeros(features, matrix):
        zeros = ops.zeros(bias.shape)
        return blockwise_cross_entropy(features, matrix, zeros, labels, None, smoothing, block=16)[0]

    tensors = [ops.convert_to_tensor(x) for x in (features, matrix)]
    assert float(without(*tensors)) == pytest.approx(float(of_zeros(*tensors)), rel=1e-6)
    value, _ = blockwise_cross_entropy(*tensors, None, labels, None, smoothing, training=False)
    assert float(value) == pytest.approx(float(of_zeros(*tensors)), rel=1e-6)
    pairs = zip(gradients(without, (features, matrix)), gradients(of_zeros, (features, matrix)), strict=True)
    for one, two in pairs:
        assert np.abs(one).max() > 0.001
        np.testing.assert_allclose(one, two, atol=1e-7)


def r_drop_oracle(logits, labels, weights, smoothing, alpha):
    """Liang et al. 2021, equation 4, on whole logits, averaged over the tokens of both passes."""
    log_p, log_q = ops.split(ops.log_softmax(logits), 2)
    apart = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1) + ops.sum(ops.exp(log_q) * (log_q - log_p), axis=-1)
    losses = token_losses(labels, logits, smoothing) + 0.25 * alpha * ops.concatenate([apart, apart])
    return ops.sum(losses * weights) / ops.sum(weights)


@pytest.mark.parametrize(("smoothing", "block"), [*BLOCKS, (0.1, 15)])
@pytest.mark.parametrize("weighted", [False, True])
def test_r_drop_equals_the_equation_on_whole_logits(smoothing, block, weighted):
    (features, *output), y_true, sample_weight = block_case()
    arrays = [np.concatenate([features, features + 0.3 * features[::-1]]), *output]
    y_true, sample_weight = np.concatenate([y_true] * 2), np.random.default_rng(1).random((14, 11)).astype("float32")
    sample_weight = sample_weight if weighted else None
    weights = losses.token_weights(ops.convert_to_tensor(y_true), sample_weight)

    def whole(*x):
        return r_drop_oracle(plain(*x), ops.convert_to_tensor(y_true), weights, smoothing, 5.0)

    def by_blocks(*x):
        loss = MaskedCrossEntropy(smoothing, r_drop=5.0)
        given = {"block": block, "label_smoothing": smoothing, "r_drop": 5.0}
        found, statistics = blockwise_cross_entropy(*x, ops.convert_to_tensor(y_true), sample_weight, **given)
        np.testing.assert_array_equal(to_numpy(statistics.real), y_true != 0)
        expected = loss.from_features(*x, y_true, sample_weight)
        if keras.backend.backend() != "jax":  # whose values are traced here
            np.testing.assert_allclose(to_numpy(expected[0]), to_numpy(found), rtol=1e-5)
            nll = token_losses(ops.convert_to_tensor(y_true), plain(*x))
            np.testing.assert_allclose(to_numpy(statistics.nll), to_numpy(nll), atol=1e-5)
        return found

    for one, two in zip(gradients(by_blocks, arrays), gradients(whole, arrays), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)
    tensors = [ops.convert_to_tensor(x) for x in arrays]
    np.testing.assert_allclose(float(by_blocks(*tensors)), float(whole(*tensors)), rtol=1e-6)
    value = MaskedCrossEntropy(smoothing, r_drop=5.0).from_features(*tensors, y_true, sample_weight, training=False)[0]
    without = MaskedCrossEntropy(smoothing)(y_true, plain(*tensors), sample_weight)
    np.testing.assert_allclose(float(value), float(without), rtol=1e-6)


def test_r_drop_refuses_what_is_not_two_copies():
    (features, matrix, bias), y_true, _ = block_case()
    loss = MaskedCrossEntropy(r_drop=5.0)
    value, _ = loss.from_features(*[ops.convert_to_tensor(x) for x in (features[:6], matrix, bias)], y_true[:6])
    assert np.isnan(float(value))
    with pytest.raises(ValueError, match="an even number of rows"):
        loss.from_features(*[ops.convert_to_tensor(x) for x in (features, matrix, bias)], y_true)
    with pytest.raises(ValueError, match="models of keras_attention.models"):
        loss(y_true, plain(*[ops.convert_to_tensor(x) for x in (features, matrix, bias)]))
    with pytest.raises(ValueError, match="`r_drop` must be at least 0"):
        MaskedCrossEntropy(r_drop=-1)


def test_r_drop_fits_on_every_backend():
    """JAX has Keras build the loss from logits alone, without training, before the first step."""
    model = Transformer(11, 11, width=8, num_heads=2, encoder_layers=1, decoder_layers=1, dropout=0.2)
    model.compile("adam", MaskedCrossEntropy(r_drop=5.0), jit_compile=False)
    ids = np.tile(np.random.default_rng(0).integers(4, 11, (3, 5)).astype("int32"), (2, 1))
    x = {"source": ids, "target": ids}
    history = model.fit(x, ids, validation_data=(x, ids), epochs=2, batch_size=6, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"]).all()


def test_blockwise_statistics_equal_those_of_the_logits():
    arrays, y_true, _ = block_case()
    tensors, labels = [ops.convert_to_tensor(x) for x in arrays], ops.convert_to_tensor(y_true)
    _, statistics = blockwise_cross_entropy(*tensors, labels, label_smoothing=0.1, block=16)
    logits = plain(*tensors)
    np.testing.assert_allclose(to_numpy(statistics.nll), to_numpy(token_losses(labels, logits)), atol=1e-5)
    hits = (to_numpy(logits).argmax(-1) == y_true) & (y_true != 0)
    np.testing.assert_array_equal(to_numpy(statistics.hits) > 0, hits)
    assert hits.any()


def test_blockwise_ignores_nan_behind_padding():
    arrays, y_true, _ = block_case()
    labels = ops.convert_to_tensor(y_true)
    dirty = [np.where((y_true == 0)[:, :, None], np.nan, arrays[0]).astype("float32"), *arrays[1:]]

    def loss(*x):
        return blockwise_cross_entropy(*x, labels, block=16)[0]

    for clean_gradient, gradient in zip(gradients(loss, arrays), gradients(loss, dirty), strict=True):
        np.testing.assert_array_equal(gradient, clean_gradient)


def test_blockwise_on_padding_alone_is_zero_with_zero_gradients():
    arrays, y_true, _ = block_case()
    labels = ops.convert_to_tensor(y_true * 0)

    def loss(*x):
        return blockwise_cross_entropy(*x, labels, label_smoothing=0.1, block=16)[0]

    assert float(loss(*[ops.convert_to_tensor(x) for x in arrays])) == 0
    assert all(np.all(gradient == 0) for gradient in gradients(loss, arrays))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_blockwise_computes_sums_and_softmax_in_float32(dtype):
    arrays, y_true, _ = block_case()
    labels = ops.convert_to_tensor(y_true)
    half = [ops.cast(ops.convert_to_tensor(arrays[0]), dtype), *(ops.convert_to_tensor(x) for x in arrays[1:])]
    loss, _ = blockwise_cross_entropy(*half, labels, block=16)
    assert keras.utils.standardize_dtype(loss.dtype) == "float32"
    expected = MaskedCrossEntropy()(labels, plain(*[ops.convert_to_tensor(x) for x in arrays]))
    np.testing.assert_allclose(float(loss), float(expected), rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blockwise_losses_of_targets_too_improbable_for_a_float(dtype):
    """Logits hundreds apart: the probabilities of most targets are 0."""
    (features, matrix, bias), y_true, _ = block_case()
    arrays = [ops.cast(ops.convert_to_tensor(x), dtype) for x in (features * 100, matrix, bias)]
    labels = ops.convert_to_tensor(y_true)
    expected = to_numpy(token_losses(labels, plain(*(ops.cast(x, "float32") for x in arrays))))
    assert (expected > 110).any() and (to_numpy(ops.softmax(plain(*arrays))) == 0).any()
    for training in (True, False):
        _, statistics = blockwise_cross_entropy(*arrays, labels, block=16, training=training)
        # bfloat16 rounds a logit of 1,024 to 2,048 by 4 at most: as a product, and with the bias once more where a
        # processor does not add it before. A loss has two of them, the target's and the best.
        atol = 0 if dtype == "float32" else 8
        np.testing.assert_allclose(to_numpy(statistics.nll), expected, rtol=1e-5, atol=atol)


def test_blockwise_gradients_in_bfloat16():
    arrays, y_true, sample_weight = block_case()
    labels = ops.convert_to_tensor(y_true)
    half = [ops.cast(ops.convert_to_tensor(x), "bfloat16") for x in arrays]

    def by_blocks(*x):
        return blockwise_cross_entropy(*x, labels, sample_weight, 0.1, block=16)[0]

    def whole(*x):
        return MaskedCrossEntropy(0.1)(labels, plain(*(ops.cast(part, "float32") for part in x)), sample_weight)

    found = gradients(lambda *x: by_blocks(*(ops.cast(part, "bfloat16") for part in x)), arrays)
    expected = gradients(whole, [to_numpy(ops.cast(x, "float32")) for x in half])
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=0.02 * np.abs(two).max())
    np.testing.assert_allclose(float(by_blocks(*half)), float(whole(*half)), rtol=0.005)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_blockwise_gradients_in_float16_do_not_depend_on_the_scale_of_the_weights(scale):
    arrays, y_true, sample_weight = block_case()
    labels = ops.convert_to_tensor(y_true)

    def by_blocks(*x):
        return blockwise_cross_entropy(*x, labels, sample_weight * np.float32(scale), 0.1, block=16)[0]

    def whole(*x):
        return MaskedCrossEntropy(0.1)(labels, plain(*x), sample_weight)

    half = [array.astype("float16") for array in arrays]
    expected = gradients(whole, [array.astype("float32") for array in half])
    for one, two in zip(gradients(by_blocks, half), expected, strict=True):
        assert one.dtype == "float16" and np.abs(two).max() > 0.01
        np.testing.assert_allclose(one, two, atol=0.01 * np.abs(two).max())
