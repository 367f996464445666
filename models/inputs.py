"""What a pipeline reads: texts, ids, features or images.

Each kind checks rows in Python, where a sentence can name what is wrong, makes tensors of them, and reads those in the
graph, where a SavedModel is alone. Shapes: B rows, S positions of the source, F features of a position.
"""

import os
from pathlib import Path

import numpy as np

from .images import read_images, what_is_wrong
from .language_model import started
from .tokenizers import PAD, UNK


def inputs_for(model, tokenizer, longest):
    """The kind that a model reads: texts, images (it has an `image_size`), features (a `source_width`) or ids.

    For a model that goes on writing what it reads (`reads_prompts`), texts and ids are prompts.

    Args:
        model: a model with the verbs of decoding.py.
        tokenizer: the source's, or None.
        longest: positions at most.
    """
    prompts = getattr(model, "reads_prompts", False)
    if tokenizer is not None:
        return Prompts(tokenizer, longest) if prompts else Texts(tokenizer, longest)
    if getattr(model, "image_size", None) is not None:
        return Images(model, longest)
    if getattr(model, "source_width", None) is not None:
        return Features(model.source_width, longest)
    return (PromptIds if prompts else Ids)(getattr(model, "source_vocabulary", None), longest)


class Texts:
    """Texts (str or UTF-8 bytes), tokenized in the graph."""

    def __init__(self, tokenizer, longest):
        self.tokenizer = tokenizer
        self.longest = longest

    def check(self, rows):
        """(rows as bytes, {}); TypeError or ValueError on what is no list of texts, or too long."""
        if isinstance(rows, (str, bytes)):
            raise TypeError("Pipeline expects a list of texts. Received one text: write pipeline([text]).")
        texts = []
        for number, text in enumerate(rows):
            if not isinstance(text, (str, bytes)):
                raise TypeError(f"Pipeline expects texts. Received: input {number} is a {type(text).__name__}.")
            texts.append(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
        self._check_lengths(texts)
        return texts, {}

    def _check_lengths(self, texts):
        # A byte makes three pieces at most (an invalid one, read as U+FFFD), and a blank may be put in front.
        for number, text in enumerate(texts):
            if 3 * len(text) + 1 > self.longest:
                length = int(self.tokenizer.tokenize([text]).row_lengths()[0])
                if length > self.longest:
                    raise ValueError(
                        f"This model accepts at most {self.longest} pieces. Received: input {number} has {length} "
                        f"({text[:40].decode('utf-8', 'ignore')!r}...); shorten or split it."
                    )

    def batch(self, rows):
        """Checked rows as tensors by the names of `signature`."""
        import tensorflow as tf

        return {"text": tf.constant(rows)}

    def signature(self):
        """What the graph takes, tensor specifications by name."""
        import tensorflow as tf

        return {"text": tf.TensorSpec([None], tf.string, "text")}

    def source(self):
        """Specifications of the x that `read` gives."""
        import tensorflow as tf

        return {"source": tf.TensorSpec([None, None], tf.int32)}

    def read(self, text):
        """x for `encode`, and where it is real, [B, S]."""
        ids = self.tokenizer.tokenize(text).to_tensor(PAD)
        return {"source": ids}, ids != PAD


class Prompts(Texts):
    """Texts to be gone on with; an empty one is START alone."""

    def check(self, rows):
        """As of texts; ValueError on characters that the tokenizer cannot read."""
        texts, wrong = super().check(rows)
        for number, text in enumerate(texts):
            ids = self.tokenizer.tokenize([text])[0].numpy()
            if UNK in ids:
                known = self.tokenizer.detokenize(ids[None]).numpy()[0].decode()
                unknown = sorted(set(text.decode("utf-8", "replace")) - set(known))
                raise ValueError(
                    f"This model's vocabulary lacks {', '.join(map(repr, unknown)) or 'a character'}. Received: input "
                    f"{number}, {text[:40].decode('utf-8', 'replace')!r}; leave that out, or train with byte fallback."
                )
        return texts, wrong

    def read(self, text):
        import tensorflow as tf

        ids = self.tokenizer.tokenize(text).to_tensor(PAD)
        unknown = tf.reduce_any(ids == UNK, axis=1)
        message = "This model's vocabulary lacks a character of these rows; leave it out:"
        check = tf.debugging.Assert(~tf.reduce_any(unknown), [message, tf.where(unknown)[:, 0]])
        with tf.control_dependencies([check] if check is not None else []):
            ids = tf.identity(ids)
        ids = started(tf.pad(ids, [[0, 0], [0, tf.maximum(1 - tf.shape(ids)[1], 0)]]))
        return {"source": ids}, ids != PAD


class Ids:
    """Rows of ids, padded with 0."""

    def __init__(self, vocabulary, longest):
        self.vocabulary = vocabulary or np.iinfo("int32").max
        self.longest = longest

    def check(self, rows):
        """(arrays [S] without the padding behind them, {}); TypeError or ValueError on other rows and unknown ids."""
        return [self._check(number, np.asarray(row)) for number, row in enumerate(rows)], {}

    def _check(self, number, ids):
        if ids.ndim != 1 or ids.size and ids.dtype.kind not in "iu":
            raise TypeError(
                "This pipeline has no source tokenizer: it expects rows of ids, each of one axis. "
                f"Received: input {number} is {ids.dtype} of shape {ids.shape}."
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError(
                f"This model knows the ids 0 to {self.vocabulary - 1}. Received: input {number} has {ids.tolist()}"
            )
        real = np.flatnonzero(ids != PAD)
        ids = ids[: real[-1] + 1] if len(real) else ids[:0]
        _check_length(number, ids, self.longest, "ids")
        return ids.astype("int32")

    def batch(self, rows):
        import tensorflow as tf

        return {"tokens": tf.constant(_side_by_side(rows, (), "int32"))}

    def signature(self):
        import tensorflow as tf

        return {"tokens": tf.TensorSpec([None, None], tf.int32, "tokens")}

    def source(self):
        import tensorflow as tf

        return {"source": tf.TensorSpec([None, None], tf.int32)}

    def read(self, tokens):
        tokens = self._known(tokens)
        return {"source": tokens}, tokens != PAD

    def _known(self, tokens):
        """The ids, once it is known that the model has them all: for others an embedding would take some of its own."""
        import tensorflow as tf

        check = tf.debugging.Assert(
            tf.reduce_all((tokens >= 0) & (tokens < self.vocabulary)),
            [f"This model knows the ids 0 to {self.vocabulary - 1}. Received:", tokens],
        )
        with tf.control_dependencies([check] if check is not None else []):
            return tf.identity(tokens)


class PromptIds(Ids):
    """Rows of ids to be gone on with; an empty one is START alone."""

    def read(self, tokens):
        import tensorflow as tf

        tokens = self._known(tokens)
        tokens = started(tf.pad(tokens, [[0, 0], [0, tf.maximum(1 - tf.shape(tokens)[1], 0)]]))
        return {"source": tokens}, tokens != PAD


class Features:
    """Arrays of features [S, F], padded with zeros beside a mask."""

    def __init__(self, width, longest):
        self.width = width
        self.longest = longest

    def check(self, rows):
        """(arrays [S, F], {}); TypeError or ValueError on other shapes, on NaN and infinity."""
        return [self._check(number, np.asarray(row)) for number, row in enumerate(rows)], {}

    def _check(self, number, features):
        if features.ndim != 2 or features.shape[1] != self.width or features.dtype.kind not in "fiu":
            raise TypeError(
                f"This model reads features: it expects arrays of numbers [length, {self.width}]. "
                f"Received: input {number} is {features.dtype} of shape {features.shape}."
            )
        with np.errstate(over="ignore"):
            features = features.astype("float32")
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise ValueError(
                f"Features must be finite numbers. Received: input {number} has NaN or infinity at position {bad[0]}."
            )
        _check_length(number, features, self.longest, "positions")
        return features

    def batch(self, rows):
        import tensorflow as tf

        features = _side_by_side(rows, (self.width,), "float32")
        mask = np.arange(features.shape[1]) < np.array([len(row) for row in rows])[:, None]
        return {"features": tf.constant(features), "source_mask": tf.constant(mask)}

    def signature(self):
        import tensorflow as tf

        return {
            "features": tf.TensorSpec([None, None, self.width], tf.float32, "features"),
            "source_mask": tf.TensorSpec([None, None], tf.bool, "source_mask"),
        }

    def source(self):
        signature = self.signature()
        return {"source": signature["features"], "source_mask": signature["source_mask"]}

    def read(self, features, source_mask):
        import tensorflow as tf

        real = tf.where(source_mask[:, :, None], features, 0.0)
        tf.debugging.assert_all_finite(real, "Features must be finite numbers.")
        return {"source": features, "source_mask": source_mask}, source_mask


class Images:
    """JPEG or PNG files, as bytes or paths, or arrays; what the model's backbone makes of them is its source."""

    def __init__(self, model, longest):
        self.model = model
        cells = model.grid_size[0] * model.grid_size[1]
        if cells > longest:
            raise ValueError(f"The model's grid has {cells} cells. Received: max_source_length={longest}")

    def check(self, rows):
        """(rows as bytes, {number: what is wrong with it}); TypeError on what is neither bytes nor a path."""
        if isinstance(rows, (str, bytes, os.PathLike)) or isinstance(rows, np.ndarray) and rows.ndim == 3:
            raise TypeError("Pipeline expects a list of images. Received one: write pipeline([image]).")
        images, wrong = [], {}
        for number, row in enumerate(rows):
            if isinstance(row, np.ndarray):
                data, error = _as_png(number, row), None
            elif isinstance(row, (str, bytes, os.PathLike)):
                data, error = (row, None) if isinstance(row, bytes) else _file(row)
                error = error or what_is_wrong(data)
            else:
                raise TypeError(
                    "This model reads images: the bytes of JPEG or PNG files, paths, or arrays uint8 [height, width, "
                    f"3]. Received: input {number} is a {type(row).__name__}."
                )
            images.append(data)
            if error is not None:
                wrong[number] = error
        return images, wrong

    def batch(self, rows):
        import tensorflow as tf

        return {"image": tf.constant(rows)}

    def signature(self):
        import tensorflow as tf

        return {"image": tf.TensorSpec([None], tf.string, "image")}

    def source(self):
        import tensorflow as tf

        return {
            "source": tf.TensorSpec([None, None, self.model.decoder.source_width], self.model.compute_dtype),
            "source_mask": tf.TensorSpec([None, None], tf.bool),
        }

    def read(self, image):
        import tensorflow as tf

        grid = self.model.grid(read_images(image, self.model.image_size), training=False)
        real = tf.ones(tf.shape(grid)[:2], tf.bool)
        return {"source": grid, "source_mask": real}, real


def _as_png(number, image):
    import tensorflow as tf

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != "uint8" or 0 in image.shape:
        raise TypeError(
            f"This model reads images: arrays are uint8 [height, width, 3]. Received: input {number} is {image.dtype} "
            f"of shape {image.shape}."
        )
    return tf.io.encode_png(image).numpy()


def _file(path):
    """(bytes of a file, None), or (None, why it cannot be read)."""
    try:
        return Path(path).read_bytes(), None
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror}."


def _check_length(number, row, longest, what):
    if len(row) > longest:
        raise ValueError(
            f"This model accepts at most {longest} {what}. Received: input {number} has {len(row)}; shorten or split "
            "it."
        )


def _side_by_side(rows, shape, dtype):
    """Rows [S, ...] of different lengths in one array [B, S, ...], at least one position wide, zeros behind them."""
    array = np.zeros((len(rows), max(1, *(len(row) for row in rows)), *shape), dtype)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array
