"""One long text, for a language model: its file, its tokens, and the windows that a training sees of it."""

import re
from functools import partial
from pathlib import Path

import numpy as np

from keras_attention.models.tokenizers import UNK, SentencePieceTokenizer

from .batching import Windows
from .datasets import OTHER_NAMES, read_lines
from .errors import InputError

HELD_OUT = 0.1  # of a text without a validation file: its end
CHUNK = 2**16  # characters tokenized at once


def read_texts(recipe):
    """(training text, validation text, notes) of a recipe's files.

    `data.source` is a file; a folder (`--data`) holds train.txt, and val.txt or dev.txt, or one .txt alone. Without a
    validation file the last tenth of the characters is held out.

    Raises:
        InputError: there is no such file, it is empty, too short to be divided, or not UTF-8.
    """
    data = recipe.data
    if data.source:
        paths = data.source, data.val_source
    elif data.folder:
        paths = _find(Path(data.folder), "train"), data.val_source or _find(Path(data.folder), "val")
    else:
        raise InputError(f"The recipe {recipe.name} needs a text: give --data DIR, or --set data.source=FILE.")
    train = read_text(paths[0])
    if paths[1]:
        return train, read_text(paths[1]), []
    end = int((1 - HELD_OUT) * len(train))
    if not train[:end].strip() or not train[end:].strip():
        raise InputError(f"{paths[0]} is too short to hold its last tenth out: it has {len(train)} characters.")
    note = f"No validation file: the last {len(train) - end:,} of {len(train):,} characters are held out."
    return train[:end], train[end:], [note]


def read_text(path):
    """A file's text; lines end with "\\n", and a byte order mark is taken away."""
    lines = read_lines(path)
    text = "\n".join(lines) + "\n"
    if not text.strip():
        raise InputError(f"{path} holds nothing but blanks: expected a text.")
    return text


def _find(folder, split):
    """The file of a split, or None for a missing validation file."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one with a text.")
    for name in OTHER_NAMES.get(split, (split,)):
        if (folder / f"{name}.txt").is_file():
            return folder / f"{name}.txt"
    if split != "train":
        return None
    texts = sorted(path for path in folder.glob("*.txt") if path.stem not in ("val", "dev", "test"))
    if len(texts) != 1:
        found = ", ".join(path.name for path in texts) or "none"
        raise InputError(f"{folder} should hold train.txt, or one .txt alone; it has {found}. --set data.source=FILE")
    return texts[0]


def tokenize_text(text, tokenizer):
    """The ids of a whole text, int32 [total], tokenized some thousand characters at a time.

    They are those of the text as one: SentencePiece puts a blank before what it is given, so that all parts but the
    first are cut before a blank, which is left out.
    """
    import tensorflow as tf

    if isinstance(tokenizer, SentencePieceTokenizer):
        cuts = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text)]
        chosen = np.searchsorted(cuts, np.arange(CHUNK, len(text), CHUNK))
        bounds = sorted({cuts[place] for place in chosen if place < len(cuts)})
        parts = [text[a:b] for a, b in zip([0, *(cut + 1 for cut in bounds)], [*bounds, len(text)], strict=True)]
    else:
        parts = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    ids = [tokenizer.tokenize(tf.constant([part])).values.numpy().astype("int32") for part in parts]
    return np.concatenate(ids)


def unknown_characters(text, ids, tokenizer):
    """Those of a text that its ids have lost, the first ten of them, to be shown; "" if there are none."""
    if not np.any(ids == UNK):
        return ""
    known = tokenizer.detokenize(ids[None]).numpy()[0].decode("utf-8")
    unknown = sorted(set(text) - set(known)) or ["\ufffd"]
    return ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")


def beginnings(text, tokenizer, longest, count=10):
    """The first lines of a text, cut to `longest` pieces, as prompts; those that the tokenizer cannot read are left
    out."""
    lines = [line for line in text.split("\n") if line.strip()][: 10 * count]
    rows = [row.numpy()[: max(1, longest)] for row in tokenizer.tokenize(lines)] if lines else []
    return [tokenizer.detokenize(row[None]).numpy()[0].decode() for row in rows if UNK not in row][:count]


def line_ends(tokenizer):
    """The ids whose pieces end with a line break."""
    pieces = tokenizer.detokenize(np.arange(tokenizer.vocabulary_size, dtype="int32")[:, None]).numpy()
    return [number for number, piece in enumerate(pieces) if piece.endswith(b"\n")]


def draw_windows(ids, ends, count, width, seed, epoch):
    """An epoch's windows, drawn at random places, the same for the same seed and epoch: (None, Windows).

    Before those that happen to begin where a line does stands START, so that the model knows how lines begin.
    """
    if len(ids) <= width:
        raise InputError(f"The training text has {len(ids)} pieces: too few for windows of {width} (data.window).")
    starts = np.random.default_rng([seed, epoch, len(ids)]).integers(0, len(ids) - width, count)
    begins = (starts == 0) | np.isin(ids[starts - 1], ends)
    return None, Windows(ids, starts, width, begins)


def all_windows(ids, width):
    """Windows one behind the other, so that every piece but the first is predicted once: (None, Windows)."""
    if len(ids) < 2:
        raise InputError(f"The validation text has {len(ids)} pieces: too few to predict one.")
    return None, Windows(ids, np.arange(0, len(ids) - 1, width), width)


def windows(train, val, ends, recipe):
    """(a function of the epoch that draws training windows, validation windows) of two texts' ids."""
    data = recipe.data
    draw = partial(draw_windows, train, ends, data.examples, data.window, recipe.seed)
    draw(0)  # a text that is too short is told of now
    return draw, all_windows(val, data.window)
