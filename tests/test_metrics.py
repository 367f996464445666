"""Metrics against NumPy over batches of unequal size and width. V = 7."""

import keras
import numpy as np
import pytest

from keras_attention.training import losses, metrics

V = 7
ALL = [metrics.TokenAccuracy, metrics.Perplexity, metrics.ExactMatch]


def make_batch(rng, rows, width):
    """Targets [rows, width] of various lengths, the last row empty, and logits that are right in about 4 of 5."""
    lengths = rng.integers(1, width + 1, rows)
    lengths[-1] = 0
    targets = rng.integers(1, V, (rows, width)) * (np.arange(width) < lengths[:, None])
    guesses = np.where(rng.random((rows, width)) < 0.8, targets, rng.integers(0, V, (rows, width)))
    return targets.astype("int32"), (rng.normal(0, 0.5, (rows, width, V)) + 3 * np.eye(V)[guesses]).astype("float32")


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(17)
    return [make_batch(rng, rows, width) for rows, width in [(13, 3), (5, 11), (2, 5), (23, 2)]]


def oracle(targets, logits, weights):
    """(weighted hits, weighted negative log-likelihood, weight, matching rows' weight, rows' weight) of a batch."""
    logits = logits.astype("float64")
    weights = np.broadcast_to(weights, targets.shape) * (targets != 0)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    hits = logits.argmax(-1) == targets
    row_weights = weights.max(-1)
    matches = (hits | (weights == 0)).all(-1)
    sums = (hits * weights, nll * weights, weights, matches * row_weights, row_weights)
    return np.array([values.sum() for values in sums])


def expected_results(batches, weights):
    hits, nll, tokens, matches, rows = sum(oracle(*batch, w) for batch, w in zip(batches, weights, strict=True))
    return {"token_accuracy": hits / tokens, "perplexity": np.exp(nll / tokens), "exact_match": matches / rows}


@pytest.mark.parametrize("metric_class", ALL)
def test_numpy_over_unequal_batches(metric_class, batches):
    metric = metric_class()
    for targets, logits in batches:
        metric.update_state(targets, logits)
    expected = expected_results(batches, [1.0] * 4)[metric.name]
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    means = [expected_results([batch], [1.0])[metric.name] for batch in batches]
    assert abs(np.mean(means) - expected) > 1e-3  # so the batches tell a mean of means from the true one


@pytest.mark.parametrize("metric_class", ALL)
@pytest.mark.parametrize("kind", ["rows", "column", "tokens"])
def test_sample_weights(metric_class, kind, batches):
    rng = np.random.default_rng(19)
    metric, full = metric_class(), []
    for targets, logits in batches:
        rows = rng.integers(0, 3, len(targets)).astype("float32")
        tokens = rng.integers(0, 3, targets.shape).astype("float32")
        given, broad = {"rows": (rows, rows[:, None]), "column": (rows[:, None], rows[:, None])}.get(
            kind, (tokens, tokens)
        )
        full.append(broad)
        metric.update_state(targets, logits, sample_weight=given)
    assert float(metric.result()) == pytest.approx(expected_results(batches, full)[metric.name], rel=1e-5)


@pytest.mark.parametrize("metric_class", ALL)
def test_padding_and_empty_rows_change_nothing(metric_class, batches):
    targets, logits = batches[1]
    plain, padded = metric_class(), metric_class()
    plain.update_state(targets, logits)
    wide_logits = np.pad(logits, ((0, 3), (0, 2), (0, 0)), constant_values=np.nan)
    padded.update_state(np.pad(targets, ((0, 3), (0, 2))), wide_logits)
    assert float(padded.result()) == pytest.approx(float(plain.result()), rel=1e-6)


def test_exact_match_by_hand():
    metric = metrics.ExactMatch()
    guesses = np.array([[4, 2, 5], [3, 1, 1], [6, 6, 6], [1, 1, 1]])
    targets = np.array([[4, 2, 3], [3, 0, 0], [6, 6, 6], [0, 0, 0]])
    metric.update_state(targets, np.eye(V, dtype="float32")[guesses])
    assert float(metric.result()) == pytest.approx(2 / 3)  # rows 1 and 2 match, row 0 does not, row 3 is empty


@pytest.mark.parametrize(("metric_class", "nothing"), list(zip(ALL, [0.0, 1.0, 0.0], strict=True)))
def test_before_any_token_and_after_reset(metric_class, nothing, batches):
    metric = metric_class()
    assert float(metric.result()) == nothing
    metric.update_state(*batches[0])
    assert float(metric.result()) != nothing
    metric.reset_state()
    assert float(metric.result()) == nothing


@pytest.mark.parametrize("metric_class", ALL)
def test_wrong_shapes(metric_class):
    with pytest.raises(ValueError, match=f"{metric_class.__name__} expects"):
        metric_class().update_state(np.ones(3, "int32"), np.ones((3, V), "float32"))


@pytest.mark.parametrize("metric_class", ALL)
def test_config_round_trip(metric_class):
    again = keras.metrics.deserialize(keras.metrics.serialize(metric_class(name="mine")))
    assert type(again) is metric_class
    assert again.name == "mine"


def test_fit_reports_them_and_a_saved_model_keeps_them(tmp_path, batches):
    keras.utils.set_random_seed(5)
    targets = batches[1][0]
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.layers.Dense(V)(keras.layers.Embedding(V, 13, mask_zero=True)(inputs)))
    model.compile("adam", losses.MaskedCrossEntropy(), metrics=[metric() for metric in ALL])
    history = model.fit(targets, targets, batch_size=2, epochs=2, verbose=0).history
    assert {"loss", "token_accuracy", "perplexity", "exact_match"} == set(history)

    results = model.evaluate(targets, targets, batch_size=2, verbose=0, return_dict=True)
    logits = model.predict(targets, verbose=0)
    expected = expected_results([(targets, logits)], [1.0])
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, rel=1e-5)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(targets, targets, batch_size=2, verbose=0, return_dict=True) == pytest.approx(results)
