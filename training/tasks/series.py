r"""A series of floats in, symbols out: name the wave forms that follow one another, in order.

    a sine           a square         a sawtooth       a triangle       a flat piece
       .-.            .---.               /|  /|          /\
      /   \           |   |              / | / |         /  \            .  .  .
    --     \     /        |   |        -/  |/  |        /    \    /      ~~~~~~~~
            '._.'         '---'                               \  /
    s                q                 w                t                f

A source is an array [S, 2]: two sensors look at one wave, the second a quarter of a period later. Each of its segments
has a shape, a length, a period, a phase and an amplitude of its own, and noise lies over all; neighbours differ in
shape. The answer has one letter a segment, so that a model that attends looks at one stretch of the series for each
letter it writes:

    [41 steps x 2]   ~~~~~ /|/|/| .-._.-.   ->   fws
"""

import numpy as np

from ..errors import InputError
from .drawing import check_draw, check_integers, generator

SHAPES = {"s": "sine", "q": "square", "w": "sawtooth", "t": "triangle", "f": "flat"}
FEATURES = 2
_PERIODS = (8.0, 14.0)  # steps
_AMPLITUDES = (0.6, 1.4)
_CHUNK = 4096  # examples drawn at a time, for the memory's sake


def pairs(count, *, seed, epoch=0, split="train", max_segments=4, min_steps=10, max_steps=16, noise=0.05):
    """Draws examples: a deterministic function of its arguments.

    Args:
        count: how many.
        seed: a non-negative integer.
        epoch: a non-negative integer; each gives other examples.
        split: "train", "val" or "test", each with random numbers of its own.
        max_segments: a series has 1 to this many segments.
        min_steps, max_steps: a segment's length is uniform between them, both included.
        noise: standard deviation of what is added to every number; the waves' amplitudes are 0.6 to 1.4.

    Returns:
        `(sources, targets)`: `count` arrays, float32 [S, 2], and `count` strings of letters of `SHAPES`.

    Raises:
        InputError: on an unknown split or a number out of range.

    Example:

    >>> sources, targets = pairs(2, seed=1, max_segments=1, min_steps=20, max_steps=20)
    >>> [source.shape for source in sources], [len(target) for target in targets]
    ([(20, 2), (20, 2)], [1, 1])
    """
    examples = draw(count, seed, epoch, split, max_segments, min_steps, max_steps, noise)
    return [source for source, _, _ in examples], [target for _, target, _ in examples]


def draw(count, seed, epoch, split, max_segments, min_steps, max_steps, noise):
    """The arguments, errors and examples of `pairs`, as `(source, target, ends)`; segment i ends before ends[i]."""
    _check(count, seed, epoch, split, max_segments, min_steps, max_steps, noise)
    rng = generator(seed, epoch, split)
    options = (max_segments, min_steps, max_steps, noise, rng)
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
    return [example for size in sizes for example in _draw_chunk(size, *options)]


def _draw_chunk(count, max_segments, min_steps, max_steps, noise, rng):
    segments = rng.integers(1, max_segments + 1, count)
    present = np.arange(max_segments) < segments[:, None]
    moves = rng.integers(1, len(SHAPES), (count, max_segments))  # from a shape to another one
    moves[:, 0] = rng.integers(0, len(SHAPES), count)
    shapes = moves.cumsum(axis=1)[present] % len(SHAPES)
    steps = rng.integers(min_steps, max_steps + 1, len(shapes))
    values = _waves(shapes, steps, rng)
    values += noise * rng.standard_normal(values.shape, "float32")
    stops = steps.cumsum()
    last = segments.cumsum()  # of an example, the number of the segment behind it
    sources = np.split(values, stops[last - 1][:-1])
    letters = np.array(list(SHAPES))[shapes]
    return [
        (source, "".join(named), lengths.cumsum())
        for source, named, lengths in zip(
            sources, np.split(letters, last[:-1]), np.split(steps, last[:-1]), strict=True
        )
    ]


def _waves(shapes, steps, rng):
    """The segments' waves behind one another, float32 [total, 2]."""
    count = len(shapes)
    periods, amplitudes = rng.uniform(*_PERIODS, count), rng.uniform(*_AMPLITUDES, count)
    phases, levels = rng.random(count), rng.uniform(-1, 1, (count, FEATURES))
    begins = np.repeat(steps.cumsum() - steps, steps)
    time = (np.arange(steps.sum()) - begins) / np.repeat(periods, steps) + np.repeat(phases, steps)
    turns = (time[:, None] - np.array([0.0, 0.25])) % 1.0  # the second sensor lags behind
    waves = np.stack(
        [
            np.sin(2 * np.pi * turns),
            np.where(turns < 0.5, 1.0, -1.0),
            2 * turns - 1,
            1 - 4 * np.abs(turns - 0.5),
            np.repeat(levels, steps, axis=0),
        ]
    )
    chosen = np.take_along_axis(waves, np.repeat(shapes, steps)[None, :, None], axis=0)[0]
    return (chosen * np.repeat(amplitudes, steps)[:, None]).astype("float32")


def _check(count, seed, epoch, split, max_segments, min_steps, max_steps, noise):
    check_draw("series", count, seed, epoch, split)
    check_integers("series", 1, max_segments=max_segments, min_steps=min_steps, max_steps=max_steps)
    if min_steps > max_steps:
        raise InputError(f"series: min_steps {min_steps} is greater than max_steps {max_steps}.")
    if not 0 <= noise < float("inf"):
        raise InputError(f"series: noise must be a number of at least 0; received: {noise!r}.")
