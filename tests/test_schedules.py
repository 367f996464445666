"""Learning rates by hand."""

import keras
import numpy as np
import pytest

from keras_attention.training import schedules


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.003), (1, 0.003), (50, 0.15), (100, 0.3), (400, 0.15), (10_000, 0.03)]
)
def test_inverse_square_root_by_hand(step, rate):
    assert float(schedules.InverseSquareRoot(peak=0.3, warmup_steps=100)(step)) == pytest.approx(rate, rel=1e-6)


# 64**-0.5 is 1/8; with 25 steps of warm-up the peak is 1/8 * 1/5 = 0.025, and a fourth of the steps a fourth.
@pytest.mark.parametrize(("step", "rate"), [(0, 0.001), (1, 0.001), (10, 0.01), (25, 0.025), (100, 0.0125)])
def test_noam_by_hand(step, rate):
    assert float(schedules.Noam(model_width=64, warmup_steps=25)(step)) == pytest.approx(rate, rel=1e-6)
    assert float(schedules.Noam(64, 25, factor=2.0)(step)) == pytest.approx(2 * rate, rel=1e-6)


def test_noam_is_the_paper_s_equation():
    schedule = schedules.Noam(model_width=512, warmup_steps=4000)
    for step in (1, 17, 3999, 4000, 4001, 100_003):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_one_step_of_warm_up():
    schedule = schedules.InverseSquareRoot(peak=0.5, warmup_steps=1)
    assert [float(schedule(step)) for step in (0, 1, 4)] == pytest.approx([0.5, 0.5, 0.25])


@pytest.mark.parametrize("value", [0, -1.5, "3", None, True, float("nan")])
@pytest.mark.parametrize("name", ["peak", "warmup_steps"])
def test_inverse_square_root_refuses(name, value):
    with pytest.raises(ValueError, match=f"InverseSquareRoot expects a positive number as `{name}`.*={value!r}"):
        schedules.InverseSquareRoot(**{"peak": 0.1, "warmup_steps": 10, name: value})


@pytest.mark.parametrize("name", ["model_width", "warmup_steps", "factor"])
def test_noam_refuses(name):
    with pytest.raises(ValueError, match=f"Noam expects a positive number as `{name}`.*=0"):
        schedules.Noam(**{"model_width": 32, "warmup_steps": 10, name: 0})


@pytest.mark.parametrize(
    "schedule",
    [schedules.InverseSquareRoot(0.25, 30), schedules.Noam(model_width=37, warmup_steps=41, factor=3.0)],
)
def test_config_round_trip(schedule):
    serialized = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(serialized)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert float(again(7)) == float(schedule(7))


def test_an_optimizer_follows_it_and_a_saved_model_keeps_it(tmp_path):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs))
    model.compile(keras.optimizers.SGD(schedules.InverseSquareRoot(peak=0.5, warmup_steps=2)), loss="mae")
    # The gradient of |w * 1 - 100| is -1 throughout; updates see steps 0, 1, 2, 3, 4.
    weights = [0.0]
    for _ in range(5):
        model.train_on_batch(np.ones((1, 1)), np.full((1, 1), 100.0))
        weights.append(float(model.get_weights()[0][0, 0]))
    expected = [0.25, 0.25, 0.5, 0.5 * (2 / 3) ** 0.5, 0.5 * 0.5**0.5]
    assert np.diff(weights) == pytest.approx(expected, rel=1e-5)

    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert float(optimizer.learning_rate) == pytest.approx(0.5 * (2 / 5) ** 0.5, rel=1e-6)  # at step 5
