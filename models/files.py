"""Files that are whole or not there: written beside, then renamed; and weights stored as float16."""

import contextlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np


def atomic_write(path, write):
    """Calls write(temporary path) and renames what it wrote to `path`; on any failure the old file stays.

    The temporary name keeps the suffix, because Keras and NumPy look at it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder):
    """A context that one process at a time is in, of all that name this folder; the others wait. (On Windows: all.)"""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(Path(folder) / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def save_weights(model, folder):
    """Writes model.json (its configuration) and weights.npz (float16) to a folder."""
    config = json.dumps(keras.saving.serialize_keras_object(model), indent=1)
    atomic_write(folder / "model.json", lambda path: path.write_text(config, encoding="utf-8"))
    arrays = {f"{i:04d}": _half(keras.ops.convert_to_numpy(v)) for i, v in enumerate(model.weights)}
    atomic_write(folder / "weights.npz", lambda path: np.savez_compressed(path, **arrays))


def load_weights(folder):
    """Builds the model that `save_weights` wrote."""
    try:
        config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        with open(folder / "weights.npz", "rb") as file, np.load(file) as stored:
            arrays = [stored[name] for name in sorted(stored.files)]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} holds no model: {Path(error.filename).name} is missing.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"The model in {folder} is damaged or truncated: {error}") from error
    model = keras.saving.deserialize_keras_object(config)
    shapes = [tuple(weight.shape) for weight in model.weights]
    if shapes != [array.shape for array in arrays]:
        raise ValueError(f"The weights in {folder} do not fit model.json: the files do not belong together.")
    for weight, array in zip(model.weights, arrays, strict=True):
        weight.assign(array.astype(weight.dtype))
    settle(model)
    return model


def settle(model):
    """Tells the layers that compute with more than their weights, Keras's Normalization, that those were assigned."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None and layer.built:
            layer.finalize_state()


def _half(array):
    return array.astype("float16") if array.dtype == np.float32 else array
