"""Learning rates that rise linearly and then fall with the inverse square root of the step."""

import keras
from keras import ops


def _check_positive(owner, **values):
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{owner} expects a positive number as `{name}`. Received: {name}={value!r}")


def _real_step(step):
    """The step as a float, at least 1: Keras's optimizers count from 0, where step**-0.5 is infinite."""
    return ops.maximum(ops.cast(step, "float32"), 1.0)


@keras.saving.register_keras_serializable(package="keras_attention")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to a peak, then decay with the inverse square root of the step.

        rate(step) = peak * min(step / warmup_steps, sqrt(warmup_steps / step))

    Step 0, the first of a Keras optimizer, counts as step 1.

    Args:
        peak: The highest rate, reached at step `warmup_steps`.
        warmup_steps: The number of steps of the linear rise.

    Raises:
        ValueError: If either is not a positive number.

    Example:

    >>> schedule = InverseSquareRoot(peak=0.5, warmup_steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 400)]
    [0.005, 0.25, 0.5, 0.25]
    """

    def __init__(self, peak, warmup_steps):
        _check_positive("InverseSquareRoot", peak=peak, warmup_steps=warmup_steps)
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = _real_step(step)
        return self.peak * ops.minimum(step / self.warmup_steps, ops.sqrt(self.warmup_steps / step))

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable(package="keras_attention")
class Noam(keras.optimizers.schedules.LearningRateSchedule):
    """The Transformer's schedule: InverseSquareRoot with a peak that follows from the model's width.

        rate(step) = factor * model_width**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)

    Step 0, the first of a Keras optimizer, counts as step 1.

    Args:
        model_width: D, the paper's d_model.
        warmup_steps: The number of steps of the linear rise; 4,000 in the paper.
        factor: A multiple of the paper's rate.

    Raises:
        ValueError: If any of them is not a positive number.

    Example:

    >>> schedule = Noam(model_width=256, warmup_steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 400)]
    [6.3e-05, 0.003125, 0.00625, 0.003125]

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 5.3, equation 3.
    """

    def __init__(self, model_width, warmup_steps, factor=1.0):
        _check_positive("Noam", model_width=model_width, warmup_steps=warmup_steps, factor=factor)
        self.model_width = model_width
        self.warmup_steps = warmup_steps
        self.factor = factor

    def __call__(self, step):
        step = _real_step(step)
        scale = self.factor * self.model_width**-0.5
        return scale * ops.minimum(1.0 / ops.sqrt(step), step * self.warmup_steps**-1.5)

    def get_config(self):
        return {"model_width": self.model_width, "warmup_steps": self.warmup_steps, "factor": self.factor}
