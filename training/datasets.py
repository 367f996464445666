"""Pairs of lines from text files, and their tokens."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .batching import FeatureSequences, ImageSequences, TokenSequences
from .errors import InputError

# What Anki writes at the top of an export, such as "#separator:tab" or "#tags column:3".
_ANKI_HEADER = re.compile(
    r"#(separator|html|columns|notetype|deck|tags|guid|(notetype|deck|tags|guid) column)\s*:", re.I
)
OTHER_NAMES = {"val": ("val", "dev"), "dev": ("dev", "val")}


@dataclass(frozen=True)
class Pairs:
    """Aligned lines.

    Attributes:
        sources: A list of n strings (or, drawn by a task, of n arrays [S, F]).
        targets: A list of n strings.
        skipped: How many pairs were left out because a side was empty.
        note: What was left out, with file and lines, to be shown; "" if nothing was.
    """

    sources: list
    targets: list
    skipped: int = 0
    note: str = ""

    def __len__(self):
        return len(self.sources)


def read_lines(path):
    r"""Reads the lines of a UTF-8 file, which end with "\n" or "\r\n" and with nothing else.

    A byte order mark at the very beginning is removed.

    Args:
        path: The file.

    Returns:
        A list of strings, without their line ends.

    Raises:
        InputError: If the file cannot be read, is empty, or is not UTF-8 (with the line's number).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path} ({error.strerror}): expected a text file in UTF-8.") from None
    if not data:
        raise InputError(f"{path} is empty: expected text.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: expected UTF-8, received byte 0x{data[error.start]:02x}: save the file as UTF-8."
        ) from None
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_parallel(source_path, target_path):
    """Reads two files of which line n of one belongs to line n of the other.

    Blanks at both ends of a line are removed. A pair with an empty side is left out, counted and noted.

    Args:
        source_path: The file of sources.
        target_path: The file of targets.

    Returns:
        Pairs.

    Raises:
        InputError: If the numbers of lines differ, every pair has an empty side, or a file cannot be read.
    """
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise InputError(
            f"{source_path} has {len(sources)} lines and {target_path} has {len(targets)}: expected line n "
            "of one to belong to line n of the other."
        )
    return _pairs_without_empty(zip(sources, targets, strict=True), f"{source_path} and {target_path}")


def read_tsv(path, columns=(1, 2)):
    """Reads source and target from two columns of a file separated by tabs.

    All rows have the number of columns of the first one. Columns beside the two are ignored (Anki's third says who
    wrote a sentence), and quotation marks mean nothing. What Anki writes at the top of an export, such as
    "#separator:tab", is left out and noted. Blanks at both ends of a column are removed. A pair with an empty side, an
    empty line included, is left out, counted and noted.

    Args:
        path: The file.
        columns: The numbers of the source's and the target's column, counted from 1; (2, 1) turns the file round.

    Returns:
        Pairs.

    Raises:
        InputError: If a row has too few columns or others than the first one, every pair has an empty side, or the
            file cannot be read.
    """
    lines = read_lines(path)
    begin = next((i for i, line in enumerate(lines) if not _ANKI_HEADER.match(line)), len(lines))
    rows, expected = [], None
    for number, line in enumerate(lines[begin:], start=begin + 1):
        if not line.strip():
            rows.append(("", ""))
            continue
        cells = line.split("\t")
        expected = expected or (number, len(cells))
        if len(cells) < max(columns):
            hint = "; sources alone need a second file, of their targets" if expected == (number, 1) else ""
            raise InputError(
                f"{path}, line {number}: expected {max(columns)} tab-separated columns, received {len(cells)}{hint}."
            )
        if len(cells) != expected[1]:
            raise InputError(
                f"{path}, line {number}: received {len(cells)} tab-separated columns, and line {expected[0]} has "
                f"{expected[1]}; give every line the same number."
            )
        rows.append((cells[columns[0] - 1], cells[columns[1] - 1]))
    pairs = _pairs_without_empty(rows, str(path), first=begin + 1)
    if not begin:
        return pairs
    header = f"Skipped the header that Anki wrote at the top of {path}: {begin} {'line' if begin == 1 else 'lines'}."
    return replace(pairs, note=f"{header} {pairs.note}".rstrip())


def _pairs_without_empty(rows, where, first=1):
    """Strips pairs of strings, the first of which stands in line `first`, and leaves out those with an empty side."""
    sources, targets, empty_lines = [], [], []
    for number, (source, target) in enumerate(rows, start=first):
        source, target = source.strip(), target.strip()
        if source and target:
            sources.append(source)
            targets.append(target)
        else:
            empty_lines.append(number)
    if not sources:
        raise InputError(f"{where}: expected at least one pair, and every line has an empty side.")
    return Pairs(sources, targets, len(empty_lines), _describe_skipped(empty_lines, where))


def _describe_skipped(lines, where):
    if not lines:
        return ""
    shown = _enumerate(map(str, lines), 5)
    pairs, line_word = ("1 pair", "line") if len(lines) == 1 else (f"{len(lines)} pairs", "lines")
    return f"Skipped {pairs} with an empty side in {where}: {line_word} {shown}."


def _enumerate(words, count):
    """The first words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return ", ".join(words[:count]) + more


def split_files(folder, split, pair=None):
    """Finds the files of one split of a data folder.

    Looks for SPLIT.X and SPLIT.Y when the pair "X-Y" is given, then for SPLIT.tsv. The splits "val" and "dev"
    stand for each other.

    Args:
        folder: The data folder.
        split: "train", "val", "dev" or "test".
        pair: Source and target suffix, such as "en-de", or None.

    Returns:
        A list of paths: a source and a target file, one TSV, or none where the folder has no such split.

    Raises:
        InputError: If the folder does not exist, pair is not of the form X-Y, or only one file of a pair is
            there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one with training data.")
    for name in OTHER_NAMES.get(split, (split,)):
        wanted = [folder / f"{name}.{suffix}" for suffix in _suffixes(pair)]
        found = [path for path in wanted if path.is_file()]
        if len(found) == 1:
            missing = next(path for path in wanted if path not in found)
            raise InputError(f"{found[0]} has no counterpart {missing}: expected both for the pair {pair}.")
        if found:
            return found
        if (folder / f"{name}.tsv").is_file():
            return [folder / f"{name}.tsv"]
    return []


def _suffixes(pair):
    if pair is None:
        return []
    suffixes = pair.split("-")
    if len(suffixes) != 2 or not all(suffixes) or suffixes[0] == suffixes[1]:
        raise InputError(f"data.pair should be two different suffixes such as en-de. Received: {pair!r}.")
    return suffixes


def find_pairs(folder, split, pair=None, columns=(1, 2)):
    """Reads one split of a data folder from the files that `split_files` finds.

    Args:
        folder: The data folder.
        split: "train", "val", "dev" or "test".
        pair: Source and target suffix, such as "en-de", or None.
        columns: Of a TSV, see `read_tsv`.

    Returns:
        Pairs.

    Raises:
        InputError: If there is no such split (with what was looked for and what is there), or a file is
            wrong.
    """
    paths = split_files(folder, split, pair)
    if not paths:
        raise InputError(_describe_missing(Path(folder), split, pair))
    return read_tsv(paths[0], columns) if len(paths) == 1 else read_parallel(*paths)


def _describe_missing(folder, split, pair):
    names = OTHER_NAMES.get(split, (split,))
    wanted = []
    for name in names:
        if pair is not None:
            wanted.append(" with ".join(f"{name}.{suffix}" for suffix in _suffixes(pair)))
        wanted.append(f"{name}.tsv")
    present = sorted(path.name for path in folder.iterdir())
    listing = _enumerate(present, 20) or "nothing"
    message = f"{folder} has no {split} data: looked for {' or '.join(wanted)}, found {listing}"
    suffixes = [name.split(".", 1)[1] for name in present if name.split(".")[0] in names and "." in name]
    if pair is None and len(suffixes) == 2:
        return f"{message}; give data.pair, for example {suffixes[0]}-{suffixes[1]}."
    return f"{message}."


def seeded_split(pairs, fraction=0.05, seed=0, maximum=1000):
    """Draws some pairs as validation data, always the same ones for the same seed.

    Args:
        pairs: Pairs.
        fraction: The share drawn, at least one pair.
        seed: The draw's seed.
        maximum: The most pairs drawn.

    Returns:
        (train, val): Pairs each, in the order of the file.

    Raises:
        InputError: If there are fewer than two pairs, or fraction is not between 0 and 1.

    Example:

    >>> train, val = seeded_split(Pairs(["a", "b", "c"], ["A", "B", "C"]), fraction=0.3, seed=1)
    >>> len(train), len(val)
    (2, 1)
    """
    if len(pairs) < 2:
        raise InputError(
            f"Drawing validation data needs at least 2 pairs. Received: {len(pairs)}; give more, or a validation file."
        )
    if not 0 < fraction < 1:
        raise InputError(f"The share of validation data must lie between 0 and 1. Received: {fraction}.")
    count = min(maximum, len(pairs) - 1, max(1, round(fraction * len(pairs))))
    is_val = np.zeros(len(pairs), bool)
    is_val[np.random.default_rng(seed).permutation(len(pairs))[:count]] = True
    parts = []
    for wanted in (False, True):
        chosen = np.flatnonzero(is_val == wanted)
        parts.append(Pairs([pairs.sources[i] for i in chosen], [pairs.targets[i] for i in chosen]))
    return tuple(parts)


def tokenize_lines(lines, tokenizer, chunk=4096):
    """Tokenizes lines, some at a time.

    Args:
        lines: A list of strings.
        tokenizer: Its `tokenize` makes a tf.RaggedTensor [B, (S)] of strings [B].
        chunk: How many lines are tokenized at once.

    Returns:
        TokenSequences, without START and END.
    """
    import tensorflow as tf

    ids, lengths = [np.zeros(0, "int32")], [np.zeros(1, "int64")]
    for start in range(0, len(lines), chunk):
        ragged = tokenizer.tokenize(tf.constant(lines[start : start + chunk], tf.string))
        ids.append(ragged.values.numpy().astype("int32"))
        lengths.append(ragged.row_lengths().numpy())
    return TokenSequences(np.concatenate(ids), np.cumsum(np.concatenate(lengths), dtype="int64"))


def tokenize_pairs(sources, targets, source_tokenizer, target_tokenizer, chunk=4096):
    """Tokenizes both sides of pairs, some lines at a time.

    Args:
        sources: A list of strings; without a source tokenizer, of arrays [S, F], or an array of images [n, H, W, 3].
        targets: A list of strings.
        source_tokenizer: Tokenizes the sources; None for features and images.
        target_tokenizer: Tokenizes the targets.
        chunk: How many lines are tokenized at once.

    Returns:
        (source, target): TokenSequences each, without START and END; FeatureSequences as source for features,
        ImageSequences for images.

    Raises:
        InputError: If features are not of one width, or not finite.
    """
    if source_tokenizer is None and isinstance(sources, np.ndarray):
        source = ImageSequences(sources)
    elif source_tokenizer is None:
        source = FeatureSequences.from_lists(sources)
    else:
        source = tokenize_lines(sources, source_tokenizer, chunk)
    return source, tokenize_lines(targets, target_tokenizer, chunk)
