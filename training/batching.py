"""From sequences of tokens or features to batches: which pairs stand together, how wide, and in which order.

The plan is NumPy alone and a pure function of the lengths, the seed and the epoch, so that a resumed run sees
the batches of an uninterrupted one. `to_tf_dataset` and `to_py_dataset` are two thin readers of it.
Shapes: B rows of a batch, S source length, F features of a step, T target length (with START or END).
"""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_attention.models.tokenizers import END, PAD, START

from .errors import InputError


class _Sequences:
    """Sequences, one after another in one array; what TokenSequences and FeatureSequences have in common."""

    part = dtype = axes = noun = unit = None  # the array's name, dtype and number of axes; what messages call it

    def __init__(self, values, offsets):
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values) or np.any(np.diff(offsets) < 0):
            end = offsets[-1] if len(offsets) else "nothing"
            raise InputError(
                f"The offsets of {self.noun} sequences must rise from 0 to the number of {self.part}, {len(values)}, "
                f"and these {len(offsets)} offsets end at {end}."
            )
        self.values = values
        self.offsets = offsets

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} sequences. Received: index={index}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self):
        """The length of each sequence, int64 [n]."""
        return np.diff(self.offsets)

    def select(self, keep):
        """The sequences where the boolean array keep [n] is True."""
        lengths = self.lengths
        offsets = np.cumsum(np.append(0, lengths[keep]), dtype="int64")
        return type(self)(self.values[np.repeat(keep, lengths)], offsets)

    def save(self, stem):
        """Writes the array and the offsets as STEM.PART.npy, each first beside its place and then renamed."""
        for part, array in ((self.part, self.values), ("offsets", self.offsets)):
            path = _part_path(stem, part)
            beside = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                with open(beside, "wb") as file:
                    np.save(file, array)
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, stem, mmap=True):
        """Reads what `save` wrote; with mmap the array stays on disk until it is used.

        Raises:
            InputError: If a file is missing, damaged, or the two do not belong together.
        """
        values = _load_array(_part_path(stem, cls.part), cls.dtype, cls.axes, mmap)
        offsets = _load_array(_part_path(stem, "offsets"), "int64", 1, mmap=False)
        try:
            return cls(values, offsets)
        except InputError as error:
            raise InputError(
                f"{_part_path(stem, 'offsets')} does not fit {_part_path(stem, cls.part)}: delete both so that "
                f"they are written anew. ({error})"
            ) from None


class TokenSequences(_Sequences):
    """Sequences of token ids, one after another in a flat array.

    Args:
        ids: int32 [total], all sequences joined; may be memory-mapped.
        offsets: int64 [n + 1]; sequence i is `ids[offsets[i]:offsets[i + 1]]`.

    Raises:
        InputError: If the offsets do not begin at 0, fall, or do not end at the number of ids.

    Example:

    >>> sequences = TokenSequences.from_lists([[5, 6, 7], [], [8]])
    >>> len(sequences), sequences[0].tolist(), sequences.lengths.tolist()
    (3, [5, 6, 7], [3, 0, 1])
    """

    part, dtype, axes, noun, unit = "ids", "int32", 1, "token", "tokens"
    rows_each = 1

    @classmethod
    def from_lists(cls, sequences):
        """Joins sequences of ids (lists or arrays)."""
        arrays = [np.asarray(sequence, "int32") for sequence in sequences]
        offsets = np.cumsum([0] + [len(array) for array in arrays], dtype="int64")
        return cls(np.concatenate([np.zeros(0, "int32"), *arrays]), offsets)

    @property
    def ids(self):
        """All ids, int32 [total]."""
        return self.values

    def targets(self, indices, width):
        """(target, y) of a batch, int32 [B, T] each: START first, and one step on, END last."""
        targets, labels = np.full((2, len(indices), width), PAD, "int32")
        for row, index in enumerate(indices):
            if index >= 0:
                ids = self[index]
                targets[row, 0] = START
                targets[row, 1 : len(ids) + 1] = ids
                labels[row, : len(ids)] = ids
                labels[row, len(ids)] = END
        return targets, labels

    def inputs(self, indices, width):
        """What a model reads of a batch: {"source": int32 [B, S]}; padding and empty rows (-1) are PAD."""
        source = np.full((len(indices), width), PAD, "int32")
        for row, index in enumerate(indices):
            if index >= 0:
                ids = self[index]
                source[row, : len(ids)] = ids
        return {"source": source}


class Windows:
    """Pieces in a row of one long text, for a language model: the target is what stands there, y one step on.

    Args:
        ids: int32 [total], the text; may be memory-mapped.
        starts: int64 [n], where each window begins.
        width: its length; one that comes to the end of the text is shorter.
        begins: booleans [n]: windows that are a beginning. START stands before them, and y begins with their first
            piece. None: none of them.

    Example:

    >>> windows = Windows(np.arange(4, 9, dtype="int32"), np.array([0, 3]), width=3, begins=np.array([False, True]))
    >>> [part.tolist() for part in windows.targets([0, 1], width=3)]
    [[[4, 5, 6], [2, 7, 0]], [[5, 6, 7], [7, 8, 0]]]
    """

    unit = "tokens"
    rows_each = 1

    def __init__(self, ids, starts, width, begins=None):
        self.ids = ids
        self.starts = starts
        self.width = width
        self.begins = np.zeros(len(starts), bool) if begins is None else begins

    def __len__(self):
        return len(self.starts)

    @property
    def lengths(self):
        """One less than what each window predicts at most, int64 [n]: as if START or END were still to come."""
        return np.minimum(self.width, len(self.ids) - self.starts) - 1

    def targets(self, indices, width):
        """(target, y) of a batch, int32 [B, T] each."""
        targets, labels = np.full((2, len(indices), width), PAD, "int32")
        for row, index in enumerate(indices):
            if index >= 0:
                begin = int(self.starts[index])
                ids = self.ids[begin : begin + self.width + 1]
                if self.begins[index]:
                    ids = np.concatenate([[START], ids[: self.width]])
                labels[row, : len(ids) - 1] = ids[1:]
                targets[row, : len(ids) - 1] = ids[:-1]
        return targets, labels


class CaptionSets:
    """Several captions of an image in place of one target: k rows of a batch, for which a backbone sees it once.

    Args:
        captions: TokenSequences.
        shown: int [n], the image that each caption belongs to.

    Attributes:
        images: int [m], the image of each set.
        rows: int [m, k], the captions of each set, -1 where there is none.
        rows_each: k, how many captions an image has on average, rounded. One with more has several sets.

    Example:

    >>> sets = CaptionSets(TokenSequences.from_lists([[5], [6, 7], [8], [9]]), shown=[0, 0, 3, 0])
    >>> sets.images.tolist(), sets.lengths.tolist(), sets.targets(np.array([2, 1]), 2)[0].tolist()
    ([0, 0, 3], [2, 1, 1], [[2, 8], [0, 0], [2, 9], [0, 0]])
    """

    unit = "tokens"

    def __init__(self, captions, shown):
        self.captions = captions
        images, image, counts = np.unique(shown, return_inverse=True, return_counts=True)
        each = round(len(image) / max(1, len(images))) or 1
        sets = -(-counts // each)  # of each image
        order = np.argsort(image, kind="stable")
        place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of its image
        self.images = np.repeat(images, sets)
        self.rows = np.full((len(self.images), each), -1, "int64")
        self.rows[(np.cumsum(sets) - sets)[image[order]] + place // each, place % each] = order

    def __len__(self):
        return len(self.rows)

    @property
    def rows_each(self):
        return self.rows.shape[1]

    @property
    def lengths(self):
        """The length of each image's longest caption, int64 [m]."""
        return np.where(self.rows >= 0, self.captions.lengths[self.rows], 0).max(axis=1)

    def targets(self, indices, width):
        """(target, y) of a batch of images, int32 [B * k, T] each."""
        rows = np.where(indices[:, None] >= 0, self.rows[indices], -1)
        return self.captions.targets(rows.reshape(-1), width)


class FeatureSequences(_Sequences):
    """Sequences of feature vectors, one after another in one array: sources that are not tokens.

    Args:
        features: float32 [total, F], all sequences joined; may be memory-mapped.
        offsets: int64 [n + 1]; sequence i is `features[offsets[i]:offsets[i + 1]]`, [S, F].

    Raises:
        InputError: If the offsets do not fit, features are not [total, F], or one of them is NaN or infinite.

    Example:

    >>> sequences = FeatureSequences.from_lists([[[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]], [[3.5, 4.0]]])
    >>> len(sequences), sequences.width, sequences[1].tolist(), sequences.lengths.tolist()
    (2, 2, [[3.5, 4.0]], [3, 1])
    """

    part, dtype, axes, noun, unit = "features", "float32", 2, "feature", "steps"

    def __init__(self, features, offsets):
        if features.ndim != 2 or features.dtype != "float32":
            raise InputError(
                "FeatureSequences are made of float32 features of shape [total, F]. "
                f"Received: {features.dtype} of shape {features.shape}."
            )
        super().__init__(features, offsets)
        finite = np.isfinite(features)
        if not finite.all():
            place, column = np.argwhere(~finite)[0].tolist()
            row = int(np.searchsorted(offsets, place, side="right")) - 1
            raise InputError(
                f"Features must be finite numbers. Received: {features[place, column]} in row {row} (counted from 0), "
                f"step {place - offsets[row]}, feature {column}; replace or leave out what was not measured."
            )

    @classmethod
    def from_lists(cls, sequences):
        """Joins sequences of shape [S, F] (lists or arrays), all of one F.

        Raises:
            InputError: If a row is no array [S, F], the rows differ in F, or a number is NaN or infinite.
        """
        arrays = [_as_features(number, sequence) for number, sequence in enumerate(sequences)]
        width = arrays[0].shape[1] if arrays else 0
        for number, array in enumerate(arrays):
            if array.shape[1] != width:
                raise InputError(f"Every row must have the {width} features of row 0. Row {number}: {array.shape[1]}.")
        offsets = np.cumsum([0] + [len(array) for array in arrays], dtype="int64")
        return cls(np.concatenate([np.zeros((0, width), "float32"), *arrays]), offsets)

    @property
    def features(self):
        """All features, float32 [total, F]."""
        return self.values

    @property
    def width(self):
        """F, the number of features of a step."""
        return self.values.shape[1]

    def inputs(self, indices, width):
        """What a model reads of a batch: {"source": float32 [B, S, F], "source_mask": bool [B, S]}.

        Padding and empty rows (-1) are zeros, and False in the mask.
        """
        source = np.zeros((len(indices), width, self.width), "float32")
        mask = np.zeros((len(indices), width), bool)
        for row, index in enumerate(indices):
            if index >= 0:
                features = self[index]
                source[row, : len(features)] = features
                mask[row, : len(features)] = True
        return {"source": source, "source_mask": mask}


class _Shown:
    """Rows that each show one of some arrays of one shape; what ImageSequences and GridSequences have in common."""

    name = dtype = None  # what a model calls them, and of which type it reads them
    unit = "images"

    def __len__(self):
        return len(self.shown)

    @property
    def lengths(self):
        """Zeros, int64 [n]: rows stand together by the lengths of their targets alone."""
        return np.zeros(len(self), "int64")

    def inputs(self, indices, width):
        """What a model reads of a batch, {name: [B, ...]}.

        Empty rows (-1) show the others' images once more, so that a batch normalization sees nothing but images.
        """
        array = np.zeros((len(indices), *self.shape), self.dtype)
        real = [index for index in indices if index >= 0]
        for row in range(len(indices) if real else 0):
            array[row] = self[indices[row] if indices[row] >= 0 else real[row % len(real)]]
        return {self.name: array}


class ImageSequences(_Shown):
    """Images as sources, which a model reads as "image" [B, H, W, 3]; several rows may show the same.

    Args:
        images: uint8 [m, H, W, 3]; may be memory-mapped.
        shown: int [n], the image that each row shows; row i shows image i if None.
        mirrored: bool [n], the rows that show it mirrored; none if None.
        boxes: float [n, 4], the part that each row shows, enlarged to the whole: left, top, right and bottom as shares
            of the image's sides, from 0 to 1; the whole image if None.

    Raises:
        InputError: If the images are no such array, or a row shows none of them.

    Example:

    >>> sequences = ImageSequences(np.zeros((2, 4, 6, 3), "uint8"), shown=[0, 0, 1])
    >>> len(sequences), sequences.size, sequences.inputs([2, -1], 0)["image"].shape
    (3, (4, 6), (2, 4, 6, 3))
    """

    name, dtype = "image", "uint8"

    def __init__(self, images, shown=None, mirrored=None, boxes=None):
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != "uint8":
            raise InputError(
                f"Images are uint8 arrays of shape [n, height, width, 3]. Received: {images.dtype} of shape "
                f"{images.shape}."
            )
        self.images = images
        self.shown = np.arange(len(images)) if shown is None else np.asarray(shown, "int64")
        if len(self.shown) and not 0 <= self.shown.min() <= self.shown.max() < len(images):
            raise InputError(f"There are {len(images)} images, and a row shows another one.")
        self.mirrored = np.zeros(len(self.shown), bool) if mirrored is None else mirrored
        self.boxes = boxes

    def __getitem__(self, index):
        image = self.images[self.shown[index]]
        if self.boxes is not None:
            image = _part(image, self.boxes[index])
        return image[:, ::-1] if self.mirrored[index] else image

    @property
    def size(self):
        """(height, width)."""
        return self.images.shape[1:3]

    @property
    def shape(self):
        return self.images.shape[1:]

    def select(self, keep):
        """The rows where the boolean array keep [n] is True."""
        boxes = None if self.boxes is None else self.boxes[keep]
        return ImageSequences(self.images, self.shown[keep], self.mirrored[keep], boxes)


class GridSequences(_Shown):
    """What a frozen backbone made of images, in their place: a model reads "source" [B, S, C], one view of an image.

    Args:
        grids: [m, views, S, C]; may be memory-mapped.
        shown: int [n], the image that each row shows.
        views: int [n], the view that each row shows.

    Example:

    >>> sequences = GridSequences(np.zeros((2, 1, 9, 5), "float16"), np.array([0, 0, 1]), np.array([0, 0, 0]))
    >>> sequences.inputs([2, -1], 0)["source"].shape
    (2, 9, 5)
    """

    name, dtype = "source", "float32"

    def __init__(self, grids, shown, views):
        self.grids = grids
        self.shown = shown
        self.views = views

    @property
    def shape(self):
        return self.grids.shape[2:]

    def __getitem__(self, index):
        return self.grids[self.shown[index], self.views[index]]


def _part(image, box):
    """The part of a uint8 image [H, W, 3] in a box (left, top, right, bottom: shares of its sides), of its size."""
    from PIL import Image

    height, width = image.shape[:2]
    pixels = [share * side for share, side in zip(box, (width, height, width, height), strict=True)]
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=pixels))


def _as_features(number, sequence):
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused with its place
            array = np.asarray(sequence).astype("float32")
    except (TypeError, ValueError) as error:
        raise InputError(f"Row {number} should be an array of numbers of shape [S, F] and is none: {error}.") from None
    if array.ndim != 2:
        raise InputError(f"Row {number} should be of shape [S, F]. Received: shape {array.shape}.")
    return array


def _part_path(stem, part):
    return Path(f"{os.fspath(stem)}.{part}.npy")


def _load_array(path, dtype, axes, mmap):
    advice = "delete it and its sister file so that they are written anew"
    try:
        array = np.load(path, mmap_mode="r" if mmap else None)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: expected an array of {dtype}; delete {path.parent} so that it is made again."
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}): {advice}.") from None
    if array.dtype != dtype or array.ndim != axes:
        expected = "one row" if axes == 1 else "a table"
        raise InputError(
            f"{path} should hold {expected} of {dtype} and holds {array.dtype} of shape {array.shape}: {advice}."
        )
    return array


class Batch(NamedTuple):
    """Which pairs form one batch, and how wide it is.

    Attributes:
        indices: int64 [B], positions in the token sequences; -1 is an empty row.
        source_width: S, 0 where there is no source.
        target_width: T.
    """

    indices: np.ndarray
    source_width: int
    target_width: int


def plan_batches(source_lengths, target_lengths, *, token_budget, bucket_width=8, seed=0, epoch=0, shuffle=True):
    """Groups pairs of like lengths into batches of few distinct shapes.

    1. Lengths are rounded up to multiples of bucket_width; a target's counts START or END too.
    2. Pairs are gathered by target width and, inside, by source width, until they fill a batch: a bucket.
       The target comes first because the output layer and the loss cost most.
    3. A bucket has one shape: its greatest widths, and at most token_budget // max(S, T) rows (at least 1),
       evened out so that all its batches are about equally full; what is missing are empty rows, -1.
    4. Each epoch shuffles the rows of a bucket and then all batches. No pair is ever dropped, and the shapes
       do not depend on seed or epoch.

    Args:
        source_lengths: Lengths [n] without START and END, or None without a source (a language model).
        target_lengths: Lengths [n] without START and END.
        token_budget: The number of positions, padding included, of a batch's longer side.
        bucket_width: What widths are multiples of.
        seed: The order's seed.
        epoch: The epoch's number; each has an order of its own.
        shuffle: False for the order of the buckets, and inside them of the pairs.

    Returns:
        A list of Batch.

    Raises:
        InputError: If token_budget or bucket_width is below 1, or the numbers of lengths differ.

    Example:

    >>> for batch in plan_batches([3, 9, 2], [4, 8, 2], token_budget=32, shuffle=False):
    ...     print(batch.indices.tolist(), batch.source_width, batch.target_width)
    [0, 2] 8 16
    [1, -1] 16 16
    """
    target_lengths = np.asarray(target_lengths, "int64")
    if source_lengths is None:
        source_lengths = np.zeros_like(target_lengths)
    source_lengths = np.asarray(source_lengths, "int64")
    if len(source_lengths) != len(target_lengths):
        raise InputError(
            f"Every source needs a target: received {len(source_lengths)} source lengths and "
            f"{len(target_lengths)} target lengths."
        )
    for name, value in (("token_budget", token_budget), ("bucket_width", bucket_width)):
        if value < 1:
            raise InputError(f"{name} must be at least 1. Received: {value}.")
    source_widths = _round_up(source_lengths, bucket_width)
    target_widths = _round_up(target_lengths + 1, bucket_width)
    generator = np.random.default_rng([seed, epoch]) if shuffle else None
    batches = []
    for bucket in _buckets(source_widths, target_widths, token_budget):
        batches += _split_bucket(bucket, token_budget, generator)
    return [batches[i] for i in generator.permutation(len(batches))] if shuffle else batches


def _round_up(values, multiple):
    return -(-values // multiple) * multiple


def _capacity(source_width, target_width, token_budget):
    return max(1, token_budget // max(source_width, target_width))


def _buckets(source_widths, target_widths, token_budget):
    """Lists of pairs to be cut into batches, as one over-full Batch each."""
    buckets = []
    waiting = np.zeros(0, "int64")  # pairs that did not fill a bucket go on to the next target width
    target_width = 0
    for target_width in np.unique(target_widths).tolist():
        waiting = np.concatenate([waiting, np.flatnonzero(target_widths == target_width)])
        group = waiting[:0]
        for source_width in np.unique(source_widths[waiting]).tolist():
            group = np.concatenate([group, waiting[source_widths[waiting] == source_width]])
            if len(group) >= _capacity(source_width, target_width, token_budget):
                buckets.append(Batch(group, source_width, target_width))
                group = waiting[:0]
        waiting = group
    if len(waiting):
        buckets.append(Batch(waiting, int(source_widths[waiting].max()), target_width))
    return buckets


def _split_bucket(bucket, token_budget, generator):
    """Cuts a bucket into batches with one number of rows, shuffled where a generator is given."""
    indices, source_width, target_width = bucket
    capacity = _capacity(source_width, target_width, token_budget)
    count = -(-len(indices) // capacity)
    rows = min(capacity, _round_up(-(-len(indices) // count), 8))
    order = generator.permutation(indices) if generator else np.sort(indices)
    batches = []
    for chosen in np.array_split(order, count):
        empty = np.full(rows - len(chosen), -1, "int64")
        batches.append(Batch(np.concatenate([chosen, empty]), source_width, target_width))
    return batches


def assemble(batch, source, target):
    """The arrays of one batch.

    Args:
        batch: A Batch of `plan_batches`.
        source: TokenSequences, FeatureSequences, ImageSequences, or None where there is no source.
        target: TokenSequences, Windows, or CaptionSets, whose k captions of a row stand one behind the other.

    Returns:
        (x, y): x = {"source": int32 [B, S], "target": int32 [B, T], START first} and y int32 [B, T], the target
        one step on, END last. Padding and empty rows are PAD. Features give "source" float32 [B, S, F], zeros
        behind their end, and "source_mask" bool [B, S]; images give "image" uint8 [B, H, W, 3] in place of "source".
        Without a source there is "target" alone; Windows say themselves what stands first and last.

    Example:

    >>> sequences = TokenSequences.from_lists([[7, 8]])
    >>> x, y = assemble(Batch(np.array([0]), 3, 4), sequences, sequences)
    >>> x["source"].tolist(), x["target"].tolist(), y.tolist()
    ([[7, 8, 0]], [[2, 7, 8, 0]], [[7, 8, 3, 0]])
    """
    sources = {} if source is None else source.inputs(batch.indices, batch.source_width)
    targets, labels = target.targets(batch.indices, batch.target_width)
    return {**sources, "target": targets}, labels


class Batches:
    """The batches of a data set, in the order of the current epoch.

    Set `epoch` at each epoch's begin (a callback does it); everything else follows from the arguments. Give
    either `target` (and `source`), or `draw`.

    Args:
        source: TokenSequences, FeatureSequences, ImageSequences, or None where there is no source (a language model).
        target: TokenSequences, or CaptionSets.
        draw: For data that is drawn anew for every epoch: a function of the epoch's number that returns
            (source, target), the same for the same number. Keras counts the steps of an epoch only once, so
            every epoch has as many batches as epoch 0: a longer one is cut, a shorter one begins again.
        token_budget: The number of positions, padding included, of a batch's longer side.
        bucket_width: What widths are multiples of.
        seed: The order's seed.
        shuffle: False for one fixed order, as for validation.
        copies: How often every row stands in its batch: all rows, then all of them again. R-Drop needs 2.

    Raises:
        InputError: If there is no pair at all, or source and target differ in number.

    Example:

    >>> sequences = TokenSequences.from_lists([[5, 6], [7], [8, 9, 4]])
    >>> batches = Batches(sequences, sequences, token_budget=24, seed=1)
    >>> batches.epoch = 3
    >>> len(batches), sorted(batches.plan()[0].indices.tolist())
    (1, [0, 1, 2])
    """

    ahead = 2  # batches that may be made before they are asked for

    def __init__(
        self, source=None, target=None, *, draw=None, token_budget, bucket_width=8, seed=0, shuffle=True, copies=1
    ):
        if (target is None) == (draw is None):
            raise InputError("Batches are made of target sequences or of a function `draw`: give one of them.")
        self._draw = draw or (lambda epoch: (source, target))
        self._token_budget = token_budget
        self._plan_options = {"bucket_width": bucket_width, "seed": seed, "shuffle": shuffle}
        self.epoch = 0
        self._copies = copies
        self._steps = None
        self._current = (None, None, None, None)
        self._steps = len(self.plan())

    def plan(self):
        """The current epoch's list of Batch."""
        return self._load()[-1]

    def _load(self):
        """(epoch, source, target, plan) of the current epoch, kept until the epoch changes."""
        epoch = self.epoch
        if self._current[0] != epoch:
            source, target = self._draw(epoch)
            if len(target) == 0:
                raise InputError("There is nothing to make batches of: expected at least one pair.")
            lengths = None if source is None else source.lengths
            budget = max(self._token_budget // target.rows_each, min(1, self._token_budget))
            plan = plan_batches(lengths, target.lengths, token_budget=budget, epoch=epoch, **self._plan_options)
            plan = [batch._replace(indices=np.tile(batch.indices, self._copies)) for batch in plan]
            plan = list(itertools.islice(itertools.cycle(plan), self._steps or len(plan)))
            self._current = (epoch, source, target, plan)
        return self._current

    def __len__(self):
        return self._steps

    def __getitem__(self, index):
        """Batch number index of the current epoch, (x, y) as `assemble` gives it."""
        _, source, target, plan = self._load()
        return assemble(plan[index], source, target)

    def __iter__(self):
        _, source, target, plan = self._load()
        for batch in plan:
            yield assemble(batch, source, target)


def to_tf_dataset(batches):
    """A tf.data.Dataset over Batches, for TensorFlow.

    Each iteration (Keras makes one an epoch) gives the batches of the epoch that `batches.epoch` names when
    it begins. Use it without `steps_per_epoch`, with which Keras would never begin a second iteration.

    Args:
        batches: Batches.

    Returns:
        A dataset of (x, y) whose widths are left open, so that a new width retraces nothing.
    """
    import tensorflow as tf

    def specification(array):
        widths = array.shape[1:] if _is_images(array) else (None, *array.shape[2:])
        return tf.TensorSpec([None, *widths], array.dtype)

    signature = keras.tree.map_structure(specification, batches[0])
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    if batches.ahead:
        return dataset.prefetch(batches.ahead)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


class BatchesPyDataset(keras.utils.PyDataset):
    """What `to_py_dataset` returns.

    Keras on TensorFlow looks at items 0 and 1 before the first epoch and fixes every width on which they
    agree; so outside an epoch item 1 is item 0 with one more column of padding.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches
        self._within_epoch = False

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        if index == 1 and not self._within_epoch and keras.backend.backend() == "tensorflow":
            return keras.tree.map_structure(_widened, self.batches[0])
        return self.batches[index]

    def on_epoch_begin(self):
        self._within_epoch = True

    def on_epoch_end(self):
        self._within_epoch = False


def _widened(array):
    """The array with one more column of padding; images have no columns."""
    return array if _is_images(array) else np.pad(array, ((0, 0), (0, 1), *[(0, 0)] * (array.ndim - 2)))


def _is_images(array):
    return array.ndim == 4


def to_py_dataset(batches):
    """A keras.utils.PyDataset over Batches, for JAX and PyTorch without TensorFlow.

    Call `fit(..., shuffle=False)`: by default Keras shuffles the batches of a PyDataset once more, without a
    seed.

    Args:
        batches: Batches.

    Returns:
        A PyDataset of (x, y).
    """
    return BatchesPyDataset(batches)


@dataclass(frozen=True)
class LengthReport:
    """How many pairs were left out for their length.

    Attributes:
        total: All pairs.
        kept: Those within both limits.
        long_sources: Those whose source is too long.
        long_targets: Those whose target is too long (some may be among the former, too).
        max_source_length: The limit of the source, or None.
        max_target_length: The limit of the target, or None.
        source_unit: What a source's length counts, "tokens" or "steps".
    """

    total: int
    kept: int
    long_sources: int
    long_targets: int
    max_source_length: int | None
    max_target_length: int | None
    source_unit: str = "tokens"

    @property
    def dropped(self):
        """The number of pairs left out."""
        return self.total - self.kept

    def describe(self):
        """One sentence for a person."""
        if not self.dropped:
            return f"All {self.total} pairs are within the length limits."
        reasons = []
        if self.long_sources:
            reasons.append(
                f"{self.long_sources} with a source of more than {self.max_source_length} {self.source_unit}"
            )
        if self.long_targets:
            reasons.append(f"{self.long_targets} with a target of more than {self.max_target_length} tokens")
        return f"Left out {self.dropped} of {self.total} pairs for their length: {' and '.join(reasons)}."


def filter_lengths(source, target, max_source_length=None, max_target_length=None):
    """Finds the pairs within length limits, which count tokens without START and END.

    Args:
        source: TokenSequences, FeatureSequences, or None where there is no source.
        target: TokenSequences.
        max_source_length: The longest source kept, or None for any.
        max_target_length: The longest target kept, or None for any.

    Returns:
        (keep, report): booleans [n] for `TokenSequences.select`, and a LengthReport to be shown.

    Raises:
        InputError: If no pair is within the limits.

    Example:

    >>> sequences = TokenSequences.from_lists([[5, 6], [7], [8, 9, 4]])
    >>> keep, report = filter_lengths(sequences, sequences, max_source_length=2)
    >>> keep.tolist(), report.describe()
    ([True, True, False], 'Left out 1 of 3 pairs for their length: 1 with a source of more than 2 tokens.')
    """
    long_source = _too_long(source, max_source_length, len(target))
    long_target = _too_long(target, max_target_length, len(target))
    keep = ~(long_source | long_target)
    report = LengthReport(
        total=len(target),
        kept=int(keep.sum()),
        long_sources=int(long_source.sum()),
        long_targets=int(long_target.sum()),
        max_source_length=max_source_length,
        max_target_length=max_target_length,
        source_unit="tokens" if source is None else source.unit,
    )
    if not report.kept:
        raise InputError(f"{report.describe()} None is left: raise the limits.")
    return keep, report


def _too_long(sequences, limit, count):
    if sequences is None or limit is None:
        return np.zeros(count, bool)
    return sequences.lengths > limit
