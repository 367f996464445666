"""Images with captions: what the files say, the images as one array, and a frozen backbone's grids, kept on disk."""

import errno
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_attention.models.files import atomic_write, locked

from .datasets import read_lines
from .errors import InputError

FORMS = ("{split}.captions.tsv", "{split}.tsv", "{split}.token.txt", "{split}.json")
OTHER_NAMES = {"val": ("val", "dev")}  # what a split may be called
CHUNK = 64  # images that are read, or go through a backbone, at a time
_NUMBER = re.compile(r"#\d+$")  # Flickr8k's token file: IMAGE#NUMBER, tab, caption


@dataclass(frozen=True)
class Captions:
    """Captions and the images that they belong to.

    Attributes:
        images: A list of m file names, each once.
        texts: A list of n captions.
        shown: A list of n integers, the place of each caption's image in `images`.
        note: What was left out, to be shown; "" if nothing was.
    """

    images: list
    texts: list
    shown: list
    note: str = ""

    def of_images(self):
        """A list of m lists: the captions of each image."""
        found = [[] for _ in self.images]
        for text, place in zip(self.texts, self.shown, strict=True):
            found[place].append(text)
        return found

    def without(self, names, why):
        """The captions of all other images; the note says how many were left out."""
        if not names:
            return self
        rows = [(self.images[place], text) for text, place in zip(self.texts, self.shown, strict=True)]
        kept = [row for row in rows if row[0] not in names]
        return _gathered(kept, f"{self.note} {len(names)} images {why} and were left out.".strip())


def read_captions(path):
    """Reads captions from one of three forms.

    A table of tabs, an image's file name and a caption in each line; Flickr8k's token file, the same with "#0", "#1"
    and so on behind the names; and COCO's JSON, a table of images (id, file_name) and annotations (image_id, caption).
    Empty captions are left out, counted and noted.

    Args:
        path: The file.

    Returns:
        Captions.

    Raises:
        InputError: If the file cannot be read, a line has not two columns, or no caption is left.
    """
    rows = _read_coco(path) if Path(path).suffix == ".json" else _read_table(path)
    kept = [(image, text.strip()) for image, text in rows if text.strip()]
    if not kept:
        raise InputError(f"{path} holds no caption: expected an image's file name, a tab and a caption in each line.")
    empty = len(rows) - len(kept)
    return _gathered(kept, f"{path}: {empty} empty captions were left out." if empty else "")


def _gathered(rows, note):
    images = list(dict.fromkeys(image for image, _ in rows))
    places = {image: place for place, image in enumerate(images)}
    return Captions(images, [text for _, text in rows], [places[image] for image, _ in rows], note)


def _read_table(path):
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 2 or not cells[0].strip():
            raise InputError(
                f"{path}, line {number}: expected an image's file name, a tab and a caption, received {len(cells)} "
                "columns."
            )
        rows.append((_NUMBER.sub("", cells[0].strip()), cells[1]))
    return rows


def _read_coco(path):
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in table["images"]}
        rows = [(each["image_id"], str(each["caption"] or "")) for each in table["annotations"]]
        return [(names.get(image, f"(no file_name for image_id {image})"), caption) for image, caption in rows]
    except OSError as error:
        raise InputError(f"Cannot read {path} ({error.strerror}): expected captions as COCO's JSON.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not COCO's JSON of captions, a table of images (id, file_name) and annotations (image_id, "
            f"caption): {type(error).__name__} {error}"
        ) from None


def find_captions(folder, split):
    """The path of a split's captions in a folder, or None; `val` may be called dev."""
    for name in OTHER_NAMES.get(split, (split,)):
        for form in FORMS:
            path = Path(folder) / form.format(split=name)
            if path.is_file():
                return path
    return None


def split_by_image(captions, seed, share=0.05):
    """(train, val): some images, with all their captions, are drawn and held out."""
    count = len(captions.images)
    held_out = min(max(1, round(share * count)), 1000)
    if count < 2:
        raise InputError(f"A validation split needs two images at least. Received: {count}.")
    drawn = set(np.random.default_rng(seed).permutation(count)[:held_out].tolist())
    rows = [
        (captions.images[place], text, place in drawn)
        for text, place in zip(captions.texts, captions.shown, strict=True)
    ]
    train, val = ([row[:2] for row in rows if row[2] == wanted] for wanted in (False, True))
    return _gathered(train, captions.note), _gathered(val, "")


def find_unreadable(folder, names, readable=None):
    """{name: why} of the images of a folder that are missing or cannot be decoded.

    Args:
        folder: Where the images lie.
        names: Their file names.
        readable: {name: [bytes, time of its last change]} of images that an earlier call could read: those that are
            still so are not read again. What this call finds is added.
    """
    from keras_attention.models.images import what_is_wrong

    readable, wrong = {} if readable is None else readable, {}
    for name in names:
        path = Path(folder) / name
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns]
            error = None if readable.get(name) == state else what_is_wrong(path.read_bytes())
        except OSError as problem:
            error = f"it cannot be read: {problem.strerror}."
        if error is None:
            readable[name] = state
        else:
            wrong[name] = error
    return wrong


def keep_images(folder, names, size, path, progress=iter):
    """Decodes images by tf.data into one uint8 array [n, height, width, 3] on disk, from which batches are streamed.

    No more than some images are in memory at a time. The array is written beside its place and then renamed.

    Args:
        folder: Where the images lie.
        names: Their file names.
        size: (height, width).
        path: The .npy file; one of the same images and size is taken as it is, another one is made anew.
        progress: Called with a list of pieces of work, gives them back one by one.

    Returns:
        The array, memory-mapped.
    """
    import tensorflow as tf

    from keras_attention.models.images import read_resized

    def pixels_of(name):
        return tf.saturate_cast(tf.round(read_resized(tf.io.read_file(name), size)), tf.uint8)

    path = Path(path)
    about, what = path.with_suffix(".json"), json.dumps({"names": list(names), "size": list(size)})
    if not path.exists() or not about.exists() or about.read_text(encoding="utf-8") != what:
        about.unlink(missing_ok=True)
        beside = path.with_name(f"{path.name}.part")
        try:
            array = _new_array(beside, "uint8", (len(names), *size, 3))
            files = tf.data.Dataset.from_tensor_slices([os.fspath(Path(folder) / name) for name in names])
            chunks = files.map(pixels_of, num_parallel_calls=tf.data.AUTOTUNE).batch(CHUNK).prefetch(1)
            for start, pixels in zip(progress(range(0, len(names), CHUNK)), chunks, strict=True):
                array[start : start + CHUNK] = pixels
            array.flush()
            del array
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        atomic_write(about, lambda temporary: temporary.write_text(what, encoding="utf-8"))
    return np.load(path, mmap_mode="r")


def keep_grids(model, images, folder, mirror=False, progress=iter):
    """What a model's frozen backbone makes of images, float16 [n, views, S, C], on disk.

    The array lies in folder/KEY, KEY made of the backbone, its weights and the images, so that another run finds it. It
    is written in pieces; what an interrupted call has done is not done again. Of several processes that want the same
    one computes it, and the others wait.

    Args:
        model: An ImageCaptioner.
        images: uint8 [n, height, width, 3].
        folder: Where such arrays are kept.
        mirror: Whether a second view is the mirrored image.
        progress: Called with a list of pieces of work, gives them back one by one.

    Returns:
        The array, memory-mapped.
    """
    place = Path(folder) / _key(model, images, mirror)
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        return _fill_grids(place, model, images, mirror, progress)


def _fill_grids(place, model, images, mirror, progress):
    """The array of a folder; what is missing of it is computed."""
    path, done = place / "grids.npy", place / "done.json"
    views = [lambda batch: batch, lambda batch: batch[:, :, ::-1]][: 2 if mirror else 1]
    cells, width = model.grid_size[0] * model.grid_size[1], model.decoder.source_width
    begun = path.exists() and done.exists()
    first = json.loads(done.read_text())["images"] if begun else 0
    if first == len(images):
        return np.load(path, mmap_mode="r")
    shape = (len(images), len(views), cells, width)
    array = np.lib.format.open_memmap(path, "r+") if begun else _new_array(path, "float16", shape)
    for start in progress(range(first, len(images), CHUNK)):
        batch = np.asarray(images[start : start + CHUNK])
        for number, view in enumerate(views):
            grids = keras.ops.convert_to_numpy(model.grid(view(batch), training=False))
            if not np.abs(grids).max() < np.finfo("float16").max:
                raise InputError(
                    f"The backbone gives features up to {np.abs(grids).max():g}, too large to be kept in 16 bits: are "
                    "its weights those of this network?"
                )
            array[start : start + CHUNK, number] = grids
        array.flush()
        reached = min(start + CHUNK, len(images))
        atomic_write(done, lambda temporary, reached=reached: temporary.write_text(json.dumps({"images": reached})))
    del array
    return np.load(path, mmap_mode="r")


def _new_array(path, dtype, shape):
    """A new array on disk. Its room is taken at once, so that a full disk is told before anything is computed."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    path.unlink()
                    size = f"{array.nbytes / 1e6:,.0f} MB"
                    raise InputError(f"{path} needs {size} on disk, which are not free: {error.strerror}.") from None
    return array


def shown(what):
    """A function that gives pieces of work back one by one, and shows on standard output how far it is."""

    def progress(chunks):
        bar = keras.utils.Progbar(len(chunks), unit_name=f"pieces of {what}", verbose=1 if sys.stdout.isatty() else 2)
        for number, chunk in enumerate(chunks, start=1):
            yield chunk
            bar.update(number)

    return progress


def _key(model, images, mirror):
    """A name for what `keep_grids` keeps: another network, other weights or other images have another one."""
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.backbone.weights]
    shapes = [weight.shape for weight in weights]
    digest = hashlib.sha256(json.dumps([shapes, model.grid_size, images.shape, mirror]).encode())
    weights.append(keras.ops.convert_to_numpy(model.grid(np.array(images[:1]), training=False)))  # what it computes
    for array in weights:
        digest.update(np.ascontiguousarray(array))
    for start in range(0, len(images), CHUNK):
        digest.update(np.ascontiguousarray(images[start : start + CHUNK]))
    return digest.hexdigest()[:16]
