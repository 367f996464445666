r"""Pictures of drawn shapes in, captions out; where every object lies is known.

    +----------------+
    |    ___         |
    |   |   |        |
    |   |___|    o   |      ->   a small red circle right of a large blue square
    |                |
    +----------------+

A scene has a small object and a large one, and its caption names the small one first: "a small COLOUR SHAPE RELATION
a large COLOUR SHAPE". One picture has one true caption. Colours vary, the ground is shaded and noisy, places and sizes
are drawn at random.

The splits share no combination of the small object's colour and shape with its relation (96): val and test have what
training never shows, made of parts that it shows.
"""

import itertools
from typing import NamedTuple

import numpy as np

from .drawing import check_draw, check_integers, generator

COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 70, 205),
    "yellow": (225, 200, 40),
    "purple": (145, 55, 170),
    "black": (25, 25, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}  # where the other one is: x, y
RADII = {"small": (0.09, 0.115), "large": (0.17, 0.215)}  # half of an object's size, as shares of the picture's
_HELD_OUT = 8  # one in so many combinations is val's, another one test's


class Object(NamedTuple):
    """What is drawn, and where: `box` is (left, top, right, bottom) as shares of the picture's width and height."""

    size: str
    colour: str
    shape: str
    box: tuple


class Scene(NamedTuple):
    """A picture, uint8 [S, S, 3], its caption, and what is in it."""

    image: np.ndarray
    caption: str
    objects: tuple
    relation: str


def pairs(count, *, seed, epoch=0, split="train", image_size=64):
    """Draws examples: a deterministic function of its arguments.

    Args:
        count: how many.
        seed: a non-negative integer.
        epoch: a non-negative integer; each gives other examples.
        split: "train", "val" or "test", each with combinations of its own.
        image_size: height and width in pixels, at least 32.

    Returns:
        `(images, captions)`: an array uint8 [count, S, S, 3] and a list of strings.

    Raises:
        InputError: on an unknown split or a number out of range.

    Example:

    >>> images, captions = pairs(2, seed=1)
    >>> images.shape, captions[1]
    ((2, 64, 64, 3), 'a small purple cross below a large blue cross')
    """
    scenes = draw(count, seed, epoch, split, image_size)
    images = np.zeros((count, image_size, image_size, 3), "uint8")
    for place, scene in enumerate(scenes):
        images[place] = scene.image
    return images, [scene.caption for scene in scenes]


def draw(count, seed, epoch=0, split="train", image_size=64):
    """The arguments, errors and examples of `pairs`, as a list of `Scene`."""
    check_draw("scenes", count, seed, epoch, split)
    check_integers("scenes", 32, image_size=image_size)
    rng = generator(seed, epoch, split)
    combinations = _combinations(split)
    return [_scene(combinations, image_size, rng) for _ in range(count)]


def split_of(colour, shape, relation):
    """The split that alone has this combination.

    >>> split_of("red", "circle", "above"), split_of("red", "circle", "left of")
    ('train', 'val')
    """
    colours, relations = list(COLOURS), list(RELATIONS)
    place = 5 * colours.index(colour) + 3 * SHAPES.index(shape) + 2 * relations.index(relation)
    return {0: "val", 1: "test"}.get(place % _HELD_OUT, "train")


def _combinations(split):
    """The (colour, shape, relation) of a split."""
    return [parts for parts in itertools.product(COLOURS, SHAPES, RELATIONS) if split_of(*parts) == split]


def _scene(combinations, image_size, rng):
    colour, shape, relation = combinations[rng.integers(len(combinations))]
    other = list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
    objects = tuple(
        Object(*parts, (x - radius, y - radius, x + radius, y + radius))
        for parts, (x, y, radius) in zip(
            [("small", colour, shape), ("large", *other)], _places(RELATIONS[relation], rng), strict=True
        )
    )
    named = (f"a {thing.size} {thing.colour} {thing.shape}" for thing in objects)
    return Scene(_picture(objects, image_size, rng), f" {relation} ".join(named), objects, relation)


def _places(direction, rng):
    """(x, y, radius) of a small object and a large one that lies in this direction from it, without doubt."""
    small, large = rng.uniform(*RADII["small"]), rng.uniform(*RADII["large"])
    along = 0 if direction[0] else 1
    while True:
        first, second = rng.uniform(small + 0.02, 0.98 - small, 2), rng.uniform(large + 0.02, 0.98 - large, 2)
        apart = (second - first)[along] * direction[along]
        aside = abs((second - first)[1 - along])
        if apart > small + large + 0.03 and apart > 1.5 * aside:
            return [(*first, small), (*second, large)]


def _picture(objects, image_size, rng):
    """uint8 [S, S, 3]: a shaded and noisy ground, and the objects with soft edges."""
    places = (np.arange(image_size, dtype="float32") + 0.5) / image_size
    x, y = places[None, :], places[:, None]
    slope, shade = rng.uniform(-25, 25, 2).astype("float32"), rng.uniform(190, 240, 3).astype("float32")
    ground = rng.standard_normal((image_size, image_size, 3), "float32") * 4
    ground += shade + (slope[0] * (x - 0.5) + slope[1] * (y - 0.5))[:, :, None]
    for thing in objects:
        left, top, right, bottom = np.array(thing.box, "float32")
        radius = (right - left) / 2
        columns, rows = (
            slice(max(0, int(first * image_size) - 1), int(last * image_size) + 2)
            for first, last in ((left, right), (top, bottom))
        )
        outside = _DISTANCES[thing.shape]((x[:, columns] - left) / radius - 1, (y[rows] - top) / radius - 1) * radius
        cover = np.clip(0.5 - outside * image_size, 0, 1)[:, :, None]
        colour = (np.array(COLOURS[thing.colour]) + rng.uniform(-22, 22, 3)).astype("float32")
        ground[rows, columns] += (colour - ground[rows, columns]) * cover
    return np.clip(ground, 0, 255, out=ground).astype("uint8")


def _triangle(x, y):
    """Upright, as high as wide: below zero inside."""
    return np.maximum(y - 1, (2 * np.abs(x) - y - 1) / np.sqrt(5))


def _cross(x, y):
    arms = np.maximum(np.abs(x) - 1, np.abs(y) - 0.32), np.maximum(np.abs(x) - 0.32, np.abs(y) - 1)
    return np.minimum(*arms)


# How far outside of a shape that fills [-1, 1] x [-1, 1] a place is, about; below zero inside.
_DISTANCES = {
    "circle": lambda x, y: np.sqrt(x * x + y * y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 1 + 0 * x * y,
    "triangle": _triangle,
    "cross": _cross,
}
