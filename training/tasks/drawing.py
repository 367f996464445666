"""What the built-in tasks share: the splits, and the checks of what is asked for."""

import numpy as np

from ..errors import InputError

SPLITS = ("train", "val", "test")


def check_draw(task, count, seed, epoch, split):
    """Refuses negative numbers, what is no integer, and unknown splits.

    Raises:
        InputError: in one sentence.
    """
    check_integers(task, 0, count=count, seed=seed, epoch=epoch)
    if split not in SPLITS:
        raise InputError(f"split of the {task} task must be one of {', '.join(SPLITS)}; received: {split!r}.")


def check_integers(task, minimum, **numbers):
    """Refuses what is no integer of at least `minimum`, by its name.

    Raises:
        InputError: in one sentence.
    """
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < minimum:
            raise InputError(f"{task}: {name} must be an integer of at least {minimum}; received: {number!r}.")


def generator(seed, epoch, split):
    """A random number generator for one epoch of one split; no other has its numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, SPLITS.index(split)]))
