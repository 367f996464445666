"""Callbacks of a run: checkpoints with exact resume, the epoch's order of batches, decoded samples."""

import json
import math
import time
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_attention.models.files import atomic_write

from .caption_scores import caption_scores
from .errors import InputError
from .scores import check_tokenizer, text_scores


class EpochOrder(keras.callbacks.Callback):
    """Tells the batches which epoch begins; everything about an epoch's order follows from its number.

    Of batches that a model draws itself, their mean score stands in the epoch's logs as "reward".
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None and getattr(self.batches, "mean_reward", None) is not None:
            logs["reward"] = self.batches.mean_reward


class Samples(keras.callbacks.Callback):
    """Decodes a few fixed validation samples after each epoch and shows them."""

    def __init__(self, pipeline, samples, count, say=print):
        super().__init__()
        self.pipeline = pipeline
        self.sources = samples.sources[:count]
        self.targets = samples.targets[:count]
        self.say = say

    def on_epoch_end(self, epoch, logs=None):
        if self.pipeline.continues:
            for source, result in zip(self.sources, self.pipeline(self.sources, max_length=80), strict=True):
                self.say(f"  {source!r} {result.text!r}")
            return
        results = self.pipeline(self.sources, beam_width=1)
        for source, target, result in zip(self.sources, self.targets, results, strict=True):
            targets = target if isinstance(target, list) else [target]
            mark = "=" if result.text in targets else "≠"
            self.say(f"  {_shown(source)} -> {result.text} {mark} {targets[0]}")


class TextScores(keras.callbacks.Callback):
    """Decodes validation samples by greedy search after each epoch and adds their scores to its logs.

    Those of texts are val_bleu and val_chrf; those of captions, several an image, val_bleu_4 and val_cider. Put
    it before the callbacks that read them.

    Args:
        pipeline: a Pipeline of text or of images.
        samples: Pairs; the targets of images are lists.
        tokenize: how BLEU finds words.
    """

    def __init__(self, pipeline, samples, tokenize):
        super().__init__()
        check_tokenizer(tokenize)
        self.pipeline = pipeline
        self.samples = samples
        self.tokenize = tokenize

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.scores(beam_width=1))

    def scores(self, beam_width=None):
        """{val_bleu, val_chrf}, or {val_bleu_4, val_cider}, of the samples' answers."""
        answers = [result.text for result in self.pipeline(self.samples.sources, beam_width, batch_size=64)]
        if isinstance(self.samples.targets[0], list):
            scores = caption_scores(answers, self.samples.targets)
            return {f"val_{name}": scores[name] for name in ("bleu_4", "cider")}
        scores = text_scores(answers, self.samples.targets, self.tokenize)
        return {f"val_{name}": scores[name] for name in ("bleu", "chrf")}


def _shown(source):
    if isinstance(source, str):
        return source
    height, width = source.shape[:2]
    return f"[image of {height} x {width}]" if source.ndim == 3 else f"[{height} x {width} features]"


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint at each epoch's end, so that a resumed run has the history of an uninterrupted one.

    A checkpoint holds every variable (dropout's seed states, too), the optimizer's, the history, and the state of
    early stopping. The last ones are kept, as many as are averaged and at least two, and the best one's weights.
    Put this callback behind EarlyStopping, which forgets its state when training begins.

    Args:
        folder: where checkpoints lie.
        monitor: what chooses the best, such as "val_exact_match" (greater is better, but for losses and perplexity).
        keep: how many of the last are kept.
        early_stopping: the run's keras.callbacks.EarlyStopping, or None.
    """

    def __init__(self, folder, monitor, keep=2, early_stopping=None):
        super().__init__()
        self.folder = Path(folder)
        self.monitor = monitor
        self.keep = max(2, keep)
        self.early_stopping = early_stopping
        self.history = {}
        self.seconds = []
        self.best = None
        self.best_epoch = None
        self._restored = None

    def restore(self, model):
        """Restores the last checkpoint and returns how many epochs are done (0 where there is none)."""
        paths = self.paths()
        if not paths:
            return 0
        arrays, state = read_checkpoint(paths[-1])
        count = len(model.variables)
        assign(model.variables, arrays[:count], paths[-1])
        _assign_optimizer(model.optimizer, arrays[count:], paths[-1])
        self.history, self.seconds = state["history"], state["seconds"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        values = self.history.get(self.monitor)
        same = values is not None and values[self.best_epoch] == self.best  # the best one's by the same metric
        self._restored = state["early_stopping"] if same else None
        if same and self.best_path.exists():
            read_checkpoint(self.best_path)  # better found damaged now than after training
        else:
            self.best, self.best_epoch = (values[-1] if values else None), state["epoch"]
            best = {"best": self.best, "best_epoch": self.best_epoch}
            write_checkpoint(self.best_path, model.variables, {**state, **best})
        return state["epoch"] + 1

    def paths(self):
        """The checkpoints' paths, oldest first."""
        return sorted(self.folder.glob("epoch-*.npz"))

    @property
    def best_path(self):
        return self.folder / "best.npz"

    def on_train_begin(self, logs=None):
        if self.early_stopping is not None and self._restored:
            for name, value in self._restored.items():
                setattr(self.early_stopping, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.monitor not in logs:
            raise InputError(f"training.monitor must be one of {', '.join(sorted(logs))}. Received: {self.monitor!r}")
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.seconds.append(time.perf_counter() - self._began)
        # Of two equal ones the later is taken: it has seen more.
        is_best = self.best is None or not better(self.monitor, self.best, logs[self.monitor])
        if is_best:
            self.best, self.best_epoch = logs[self.monitor], epoch
        self._write(epoch, is_best)

    def _write(self, epoch, is_best):
        stopping = self.early_stopping
        state = {
            "epoch": epoch,
            "history": self.history,
            "seconds": self.seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "early_stopping": stopping and {k: _plain(getattr(stopping, k)) for k in ("wait", "best", "best_epoch")},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_best:
            write_checkpoint(self.best_path, self.model.variables, state)
        write_checkpoint(self.folder / f"epoch-{epoch:05d}.npz", variables_of(self.model), state)
        for path in self.paths()[: -self.keep]:
            path.unlink()


def better(monitor, value, other):
    """Whether a value of the monitored metric is better than another one; NaN is worse than anything."""
    if math.isnan(value) or math.isnan(other):
        return math.isnan(other) and not math.isnan(value)
    if "loss" in monitor or "perplexity" in monitor:
        return value < other
    return value > other


def variables_of(model):
    """All that training changes: the model's variables, seeds of dropout included, and the optimizer's."""
    return [*model.variables, *model.optimizer.variables]


def write_checkpoint(path, variables, state):
    """Writes variables and a JSON-able state; if that fails, say on a full disk, the older checkpoints survive."""
    arrays = {f"{i:05d}": keras.ops.convert_to_numpy(variable.value) for i, variable in enumerate(variables)}

    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)

    try:
        atomic_write(path, write)
    except OSError as error:
        raise InputError(
            f"The checkpoint {error.strerror}. The checkpoints before it are whole: make room and go on with --resume."
        ) from error


def read_checkpoint(path):
    """(list of arrays, state) of a checkpoint."""
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            state = json.loads(str(stored["state"]))
            return [stored[name] for name in sorted(stored.files) if name != "state"], state
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"The checkpoint {path} is damaged or truncated ({error}). Delete it to go on from the one before."
        ) from error


def assign(variables, arrays, path):
    """Assigns arrays to variables, all of which must fit."""
    if [tuple(variable.shape) for variable in variables] != [array.shape for array in arrays]:
        raise InputError(
            f"The weights in {path} do not fit this model: its vocabulary or its sizes are others than when they were "
            "written. Use the recipe and the tokenizers of that run."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _assign_optimizer(optimizer, arrays, path):
    if [tuple(variable.shape) for variable in optimizer.variables] != [array.shape for array in arrays]:
        raise InputError(
            f"The optimizer's state in {path} does not fit training.ema_momentum, training.gradient_accumulation and "
            "training.dtype as they are now: resume with those that the run began with."
        )
    assign(optimizer.variables, arrays, path)


def average(paths, count):
    """The mean of the first `count` arrays (a model's variables) of checkpoints; integers are the last one's."""
    total = None
    for path in paths:
        arrays = read_checkpoint(path)[0][:count]
        if total is None:
            total = [array.astype("float64") if array.dtype.kind == "f" else array for array in arrays]
        else:
            total = [t + a if a.dtype.kind == "f" else a for t, a in zip(total, arrays, strict=True)]
    return [array / len(paths) if array.dtype.kind == "f" else array for array in total]


def _plain(value):
    return None if value is None else float(value) if not isinstance(value, int) else value
