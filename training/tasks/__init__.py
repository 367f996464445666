"""The built-in tasks: each a module whose `pairs` draws aligned sources and targets."""

from types import ModuleType

from ..errors import InputError
from . import dates

TASKS = {"dates": dates}


def get_task(name: str) -> ModuleType:
    """The task's module, which offers `pairs(count, *, seed, epoch, split, **options)`.

    Args:
        name: a key of `TASKS`.

    Returns:
        The module; its `pairs` gives `(sources, targets)`, two lists of `count` strings.

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
