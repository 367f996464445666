"""The built-in tasks: each a module whose `pairs` draws aligned sources and targets."""

import inspect
from types import ModuleType

from ..errors import InputError
from . import dates, reverse, scenes, series

TASKS = {"dates": dates, "reverse": reverse, "scenes": scenes, "series": series}
DRAW = ("count", "seed", "epoch", "split")  # what a training asks of `pairs`; its other arguments are a recipe's [task]


def get_task(name: str) -> ModuleType:
    """The task's module, which offers `pairs(count, *, seed, epoch, split, **options)`.

    Args:
        name: a key of `TASKS`.

    Returns:
        The module; its `pairs` gives `(sources, targets)`, two lists of `count` strings; of a task whose sources are
        features, `sources` are float32 arrays [S, F]; of one of images, an array uint8 [count, H, W, 3].

    Raises:
        InputError: if no task has this name.

    Example:

    >>> get_task("dates").__name__.rsplit(".")[-1]
    'dates'
    """
    try:
        return TASKS[name]
    except (KeyError, TypeError):
        raise InputError(f"task must be one of {', '.join(sorted(TASKS))}; received: {name!r}.") from None


def task_options(name: str) -> dict:
    """The task's own options and their defaults: the arguments of its `pairs` beside those of `DRAW`.

    Example:

    >>> task_options("reverse")["max_length"]
    50
    """
    parameters = inspect.signature(get_task(name).pairs).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in DRAW}
