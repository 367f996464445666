"""Pictures of attention, training and scores: from arrays and labels to a matplotlib Figure.

They use matplotlib's objects without pyplot, so they need no display and leave no state behind. Each
character is drawn from the first font that has it, so that Hangul shows beside Latin, Greek and Cyrillic.
"""

import functools
import importlib.util
import tempfile
import textwrap
import unicodedata
import warnings
from pathlib import Path

import numpy as np

from keras_attention.models.files import atomic_write

from .errors import InputError

# Fonts that have what matplotlib's own DejaVu Sans lacks, the Korean ones first.
_FAMILIES = (
    "NanumGothic",
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans KR",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Microsoft YaHei",
    "PingFang SC",
)
_SCORES = {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match"}
_MARKERS = "os^Dv"
_VISIBLE = str.maketrans({" ": "␣", "\u00a0": "␣", "\u3000": "␣", "\t": "⇥", "\n": "↵", "\r": "↵"})
_REMEDIES = {
    "Hangul": "koreanize-matplotlib with pip, or Debian's fonts-nanum",
    "Chinese and Japanese": "Noto Sans CJK (Debian's fonts-noto-cjk)",
}


def plot_alignment(weights, source_pieces, target_pieces, title=None, axis_names=("source", "target")):
    """Draws attention weights as a heat map, the source along the top and the target down the side.

    Args:
        weights: Array [T, S], the weight that each target piece gives to each source piece, from 0 to 1.
        source_pieces: S strings, or bytes in UTF-8. Blanks are shown as "␣".
        target_pieces: T strings, or bytes in UTF-8.
        title: Text above the picture.
        axis_names: What stands along the top and down the side.

    Returns:
        A `matplotlib.figure.Figure`; its size grows with the number of pieces.

    Raises:
        ValueError: If the weights are not [T, S], or nothing is there to draw.

    Example:

    >>> weights = [[0.1, 0.9, 0.0], [0.0, 0.2, 0.8]]
    >>> figure = plot_alignment(weights, ["ein", "altes", "Haus"], ["old", "house"])
    >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    ['old', 'house']
    """
    weights = np.asarray(weights, dtype="float64")
    sources, targets = _visible(source_pieces), _visible(target_pieces)
    if weights.shape != (len(targets), len(sources)) or weights.size == 0:
        raise ValueError(
            "plot_alignment expects weights of shape [target pieces, source pieces], at least one of each; "
            f"received shape {weights.shape} for {len(targets)} target and {len(sources)} source pieces."
        )
    cell = 0.3 if max(weights.shape) <= 40 else min(0.22, 60 / max(weights.shape))  # in inches
    width = cell * len(sources) + 0.09 * _columns(targets) + 1.3
    height = cell * len(targets) + (0.09 * _columns(sources) if _columns(sources) > 2 else 0.1) + 0.8
    figure = _new_figure(max(width, 3.2), max(height, 2.0), title)
    axes = figure.add_subplot()
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="weight", fraction=0.6 / width, pad=0.2 / width, aspect=5 * height)
    _label_cells(axes, sources, targets, min(10, 36 * cell), axis_names)
    return figure


def plot_heads(scores, title=None):
    """Draws the attention of every head of every layer as one grid: encoder, decoder and cross-attention, or a
    language model's.

    Args:
        scores: what `keras_attention.models.attention_scores` returns.
        title: Text above the picture.

    Returns:
        A `matplotlib.figure.Figure`: a row for each layer, a column for each head.
    """
    kinds = scores.kinds
    heads = max(weights.shape[1] for weights in kinds.values())
    rows = sum(len(weights) for weights in kinds.values())
    longest = max(max(weights.shape[2:]) for weights in kinds.values())
    side = min(2.6, max(1.5, 0.12 * longest))  # of one head, in inches
    margin = 0.08 * max(map(_columns, (scores.source_pieces, scores.target_pieces)))
    figure = _new_figure(side * heads + margin + 1.0, (side + 0.25) * rows + 3 * margin + 0.5, title)
    heights = [len(weights) * (side + 0.25) + margin for weights in kinds.values()]
    blocks = figure.subfigures(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, (kind, weights) in zip(blocks, kinds.items(), strict=True):
        cells = block.subplots(len(weights), weights.shape[1], squeeze=False)
        row_labels, column_labels = (_visible(labels) for labels in scores.labels(kind))
        fontsize = min(8, 72 * 0.8 * side / max(len(row_labels), len(column_labels)))
        for layer, head in np.ndindex(weights.shape[:2]):
            axes = cells[layer, head]
            axes.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_title(f"{kind} {layer}, head {head}", fontsize=8, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            if head == 0:
                texts, style = _drawable(row_labels)
                axes.set_yticks(range(len(texts)), texts, fontsize=fontsize, **style)
            if layer == len(weights) - 1:
                texts, style = _drawable(column_labels)
                axes.set_xticks(range(len(texts)), texts, rotation=90, fontsize=fontsize, **style)
            axes.tick_params(length=0)
    return figure


def plot_positions(encoding, title=None):
    """Draws what a position adds to an embedding, such as the sinusoidal encoding of Vaswani et al. 2017.

    Args:
        encoding: Array [positions, D].
        title: Text above the picture.

    Returns:
        A `matplotlib.figure.Figure`: a row for each position, a column for each dimension.

    Example:

    >>> from keras_attention import SinusoidalEncoding
    >>> encoding = SinusoidalEncoding()(np.zeros((1, 50, 64), "float32"))[0]
    >>> plot_positions(encoding).axes[0].get_ylabel()
    'position'
    """
    encoding = np.asarray(encoding, dtype="float64")
    if encoding.ndim != 2 or encoding.size == 0:
        raise ValueError(f"plot_positions expects an encoding [positions, D]. Received: shape {encoding.shape}")
    figure = _new_figure(7.0, 4.0, title)
    axes = figure.add_subplot()
    largest = np.abs(encoding).max() or 1.0
    image = axes.imshow(encoding, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)
    axes.set_xlabel("dimension")
    axes.set_ylabel("position")
    return figure


def plot_similarity(similarity, pieces, word, title=None):
    """Draws how like a word's states are to those of another text's pieces, layer by layer.

    Args:
        similarity: Array [layers + 1, S] of cosines, the embeddings' first, as `word_similarity` gives it.
        pieces: the S pieces of the other text.
        word: the word.
        title: Text above the picture.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:

    >>> figure = plot_similarity([[0.1, 0.9], [0.3, 0.7]], ["the", "dog"], "dog")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['embedding', 'layer 0']
    """
    similarity = np.asarray(similarity, dtype="float64")
    if similarity.ndim != 2 or similarity.shape[1] != len(pieces) or similarity.size == 0:
        raise ValueError(
            f"plot_similarity expects cosines [layers + 1, pieces]. Received: shape {similarity.shape} for "
            f"{len(pieces)} pieces."
        )
    layers = ["embedding", *(f"layer {number}" for number in range(len(similarity) - 1))]
    figure = _new_figure(0.5 * len(pieces) + 2.5, 0.4 * len(layers) + 0.09 * _columns(pieces) + 1.2, title)
    axes = figure.add_subplot()
    image = axes.imshow(similarity, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine")
    for row, column in np.ndindex(similarity.shape):
        value = similarity[row, column]
        color = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    _label_cells(axes, _visible(pieces), layers, 9, names=("", ""))
    texts, style = _drawable([f"likeness to “{word}”"])
    axes.set_xlabel(texts[0], **style)
    return figure


def plot_caption(image, attention_map, words, columns=5, title=None):
    """Draws where a captioner looked: the picture, then once for each word, bright where that word's weights lie.

    Args:
        image: Array [height, width, 3], uint8.
        attention_map: Array [T, h, w] of weights, as a Result has it.
        words: The T pieces of the caption.
        columns: Pictures in a row.
        title: Text above the picture.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: The shapes do not belong together, or there is no word.

    Example:

    >>> figure = plot_caption(np.zeros((8, 8, 3), "uint8"), np.full((2, 2, 2), 0.25), ["a", "dog"])
    >>> [axes.get_title() for axes in figure.axes]
    ['', 'a', 'dog']

    References:
        Xu et al. 2015, https://arxiv.org/abs/1502.03044, figures 2 and 3.
    """
    image, maps = np.asarray(image), np.asarray(attention_map, dtype="float64")
    if image.ndim != 3 or image.shape[2] != 3 or maps.ndim != 3 or len(maps) != len(words) or 0 in maps.shape:
        raise ValueError(
            "plot_caption expects an image [height, width, 3] and weights [words, h, w]. Received: shapes "
            f"{image.shape} and {maps.shape}, {len(words)} words."
        )
    columns = min(columns, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    height = 1.7 * image.shape[0] / image.shape[1]
    figure = _new_figure(1.7 * columns, (height + 0.3) * rows, title)
    texts, style = _drawable(["", *_visible(words)])
    for number, text in enumerate(texts):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_axis_off()
        axes.set_title(text, fontsize=9, pad=3, **style)
        _draw_overlay(axes, image, maps[number - 1] if number else None)
    return figure


def read_picture(path):
    """The pixels of a JPEG or PNG file as captioners read them, uint8 [height, width, 3], for `plot_caption`."""
    import tensorflow as tf

    from keras_attention.models.images import read_image

    image = read_image(tf.constant(Path(path).read_bytes())).numpy()
    return np.clip(np.rint(image), 0, 255).astype("uint8")


def plot_overlay(image, weights, title=None):
    """Draws one picture, bright where the weights [h, w] lie; see `plot_caption`."""
    image = np.asarray(image)
    figure = _new_figure(4, 4 * image.shape[0] / image.shape[1], title)
    axes = figure.add_subplot()
    axes.set_axis_off()
    _draw_overlay(axes, image, np.asarray(weights, dtype="float64"))
    return figure


def source_labels(result):
    """What labels the columns of a Result's attention: its pieces (of a language model, those of the answer too); of
    features the number of every tenth step."""
    steps = range(result.attention.shape[1])
    return result.column_pieces or ["" if step % 10 else str(step) for step in steps]


def plot_history(history, title=None):
    """Draws training curves: the loss first, then each other metric, each beside its `val_` twin.

    Args:
        history: A dict from a metric's name to its values, one an epoch, such as `model.fit(...).history`.
            Epochs without a value hold NaN and are left out.
        title: Text above the picture.

    Returns:
        A `matplotlib.figure.Figure` with one axes a metric.

    Raises:
        ValueError: If the history is empty or a metric is not a list of numbers.

    Example:

    >>> figure = plot_history({"loss": [2.0, 1.5], "val_loss": [2.1, 1.7], "bleu": [float("nan"), 21.0]})
    >>> [axes.get_title() for axes in figure.axes]
    ['loss', 'bleu']
    """
    curves = {name: np.asarray(values, dtype="float64") for name, values in history.items()}
    for name, values in curves.items():
        if values.ndim != 1:
            raise ValueError(
                "plot_history expects a list of numbers, one an epoch, for each metric; "
                f"received {history[name]!r} for {name!r}."
            )
    names = sorted({name.removeprefix("val_"): None for name in curves}, key=lambda name: name != "loss")
    if not names:
        raise ValueError("plot_history expects at least one metric; received an empty history.")
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    epochs = max(map(len, curves.values()))
    margin = 0.05 * (epochs - 1) or 0.5
    figure = _new_figure(4.0 * columns + 0.4, 2.8 * rows + 0.1, title)
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        _plot_curve(axes, curves.get(name), "training", "C0")
        _plot_curve(axes, curves.get(f"val_{name}"), "validation", "C1")
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_xlim(1 - margin, epochs + margin)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(color="0.9", linewidth=0.5)
        axes.legend(frameon=False)
    return figure


def plot_scores_by_length(curves, metric, title=None, unit="words"):
    """Draws a score against the length of the source, one line a model, above the number of pairs of each bucket.

    Args:
        curves: A dict from a model's name to its buckets, as `scores.scores_by_length` returns them: dicts with low,
            high, pairs and score. The buckets of all models must be the same.
        metric: What the scores are: "bleu", "chrf", "exact_match", or any other word.
        title: Text above the picture.
        unit: What lengths are counted in.

    Returns:
        A `matplotlib.figure.Figure` with an axes of scores and one of pairs.

    Raises:
        ValueError: If there is nothing to draw, or the buckets differ.

    Example:

    >>> buckets = [{"low": 1, "high": 5, "pairs": 31, "score": 30.7}, {"low": 6, "high": 10, "pairs": 43, "score": 29}]
    >>> figure = plot_scores_by_length({"additive": buckets}, "bleu")
    >>> [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
    ['1–5', '6–10']
    """
    ranges, pairs = _same_buckets(curves)
    size = 0.09 * max(map(_columns, ([label] for label in ranges))) + 0.15  # of a bucket, in inches
    width = max(4.8, max(size, 0.55) * len(ranges) + 1.2)
    figure = _new_figure(width, 3.9 + 0.25 * len(curves), title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    _draw_scores(above, curves)
    above.set_ylabel(_SCORES.get(metric, metric), parse_math=False)
    above.set_ylim(0, 1.05 if metric == "exact_match" else max(1, 1.08 * above.dataLim.ymax))
    _draw_pairs(below, pairs)
    below.set_xticks(range(len(ranges)), ranges)
    margin = max(0.6, 1.5 - len(ranges) / 2)
    below.set_xlim(-margin, len(ranges) - 1 + margin)
    below.set_xlabel(f"length of the source ({unit})", parse_math=False)
    return figure


def save_figure(figure, path):
    """Writes a figure as .png or .svg, whichever the path's suffix says; an SVG holds its text as outlines.

    The file is written beside its place and then renamed, so that no half-written picture is ever seen.
    Missing folders are made.

    Args:
        figure: A matplotlib Figure.
        path: Where to write; ends in .png or .svg.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        InputError: If the path has another suffix.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_figure(plot_history({"loss": [2.0, 1.5]}), folder + "/loss.png").name
    'loss.png'
    """
    path = Path(path)
    suffix = _suffix(path)
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither a date nor random ids: the same call gives the same bytes.
    settings = {"svg.fonttype": "path", "svg.hashsalt": path.name}
    options = {"format": suffix[1:], "dpi": 150, "metadata": {"Date": None} if suffix == ".svg" else None}
    with matplotlib.rc_context(settings):
        atomic_write(path, lambda beside: figure.savefig(beside, **options))
    return path


def check_picture(path):
    """Tells, before the work that it shows, of a picture that `save_figure` could not write; writes nothing.

    Args:
        path: Where the picture is to be written.

    Raises:
        InputError: If the path has another suffix than .png or .svg, matplotlib is missing, or the folder cannot be
            written.
    """
    path = Path(path)
    _suffix(path)
    _figure_class()
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the file name of a picture.")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written in {folder}: {error.strerror or error}.") from error


def _suffix(path):
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise InputError(f"A picture's file name must end in .png or .svg; received {str(path)!r}.")
    return suffix


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('Plots need matplotlib: pip install "keras-attention-zoo[train]".') from error
    return Figure


def _new_figure(width, height, title):
    """An empty Figure of a size in inches, higher by its title's lines, that makes room for its labels."""
    figure_class = _figure_class()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    title = title or ""
    lines = textwrap.wrap(title, max(1, int(9 * width * len(title) / max(1, _columns([title])))))  # 9 columns an inch
    lines, style = _drawable(lines)
    figure = figure_class(figsize=(width, height + 0.3 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    if lines:
        figure.suptitle("\n".join(lines), **style)
    return figure


def _label_cells(axes, sources, targets, fontsize, names):
    """One label a piece, the sources' along the top, and thin lines between the cells."""
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    texts, style = _drawable([*sources, *targets])
    style["fontsize"] = fontsize
    rotation = 90 if _columns(sources) > 2 else 0
    axes.set_xticks(range(len(sources)), texts[: len(sources)], rotation=rotation, **style)
    axes.set_yticks(range(len(targets)), texts[len(sources) :], **style)
    axes.set_xticks(np.arange(1, len(sources)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(targets)) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _draw_overlay(axes, image, weights=None):
    """The image on axes; with weights [h, w] grey and dark where they are small."""
    height, width = image.shape[:2]
    if weights is None:
        axes.imshow(image)
        return
    place = (-0.5, width - 0.5, height - 0.5, -0.5)
    shades = weights / max(weights.max(), 1e-9)
    axes.imshow(image, extent=place)
    axes.imshow(shades, cmap="gray", alpha=0.65, vmin=0, vmax=1, extent=place, interpolation="bilinear")


def _plot_curve(axes, values, label, color):
    if values is not None:
        epochs = np.arange(1, len(values) + 1)
        known = np.isfinite(values)
        axes.plot(epochs[known], values[known], color=color, marker=".", markersize=5, label=label)


def _same_buckets(curves):
    """(labels, pairs) of the buckets, which all curves must share."""
    shapes = [[(bucket["low"], bucket["high"], bucket["pairs"]) for bucket in buckets] for buckets in curves.values()]
    if not shapes or not shapes[0] or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "plot_scores_by_length expects one curve or more, all with the same buckets (low, high and pairs), at "
            f"least one of them. Received: {dict(zip(curves, shapes, strict=True))}."
        )
    return [f"{low}–{high}" if low < high else f"{low}" for low, high, _ in shapes[0]], [n for *_, n in shapes[0]]


def _draw_scores(axes, curves):
    """A line with markers for each curve, a little beside the others so that equal scores stay visible."""
    shifts = min(0.1, 0.5 / len(curves)) * (np.arange(len(curves)) - (len(curves) - 1) / 2)
    for index, (shift, buckets) in enumerate(zip(shifts, curves.values(), strict=True)):
        scores = [np.nan if bucket["score"] is None else bucket["score"] for bucket in buckets]
        style = {"color": f"C{index % 10}", "marker": _MARKERS[index % len(_MARKERS)], "clip_on": False, "zorder": 3}
        axes.plot(np.arange(len(scores)) + shift, scores, label=str(index), **style)
    axes.grid(color="0.9", linewidth=0.5)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    names, style = _drawable(list(curves))
    for text, name in zip(legend.get_texts(), names, strict=True):  # as labels, names that begin with "_" are hidden
        text.set(text=name, **style)


def _draw_pairs(axes, pairs):
    """Light bars with their numbers above them and no frame."""
    axes.bar(range(len(pairs)), pairs, width=0.6, color="0.85")
    for index, number in enumerate(pairs):
        place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{number:,}", (index, number), fontsize=8, color="0.4", **place)
    axes.set_ylabel("pairs", color="0.4")
    axes.set_ylim(0, 1.5 * max(1, *pairs))
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[["left", "right", "top"]].set_visible(False)


def _visible(pieces):
    """The pieces as texts with a sign for each blank."""
    texts = (piece.decode("utf-8", "replace") if isinstance(piece, bytes) else str(piece) for piece in pieces)
    return [text.translate(_VISIBLE) for text in texts]


def _columns(texts):
    """The width of the widest text in Latin characters; East Asian ones count twice."""
    return max(sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text) for text in texts)


def _drawable(texts):
    """Returns the texts, with "□" for what no font has, and the properties of matplotlib that draw them."""
    fonts = _fonts()
    lacking = set("".join(texts)).difference(*fonts.values())
    for character in sorted(lacking):
        if unicodedata.category(character)[0] != "C":  # no font shows a control character
            _warn_of_script(_script(character))
    boxes = str.maketrans(dict.fromkeys(lacking, "□"))
    return [text.translate(boxes) for text in texts], {"fontfamily": list(fonts), "parse_math": False}


@functools.cache
def _fonts():
    """The font families to draw from, in order, each with the characters that it has."""
    from matplotlib import font_manager

    _register_fonts(font_manager.fontManager)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    others = sorted(name for name in installed.difference(_FAMILIES) if name.startswith("Noto Sans"))
    fonts = {}
    for name in ("DejaVu Sans", *filter(installed.__contains__, _FAMILIES), *others):
        charmap = font_manager.get_font(font_manager.findfont(name)).get_charmap()
        fonts[name] = frozenset(map(chr, charmap))
    return fonts


def _register_fonts(manager):
    """Shows matplotlib the font inside koreanize-matplotlib and those installed since it last looked."""
    from matplotlib.font_manager import findSystemFonts

    paths = set(findSystemFonts())
    package = importlib.util.find_spec("koreanize_matplotlib")
    # Only looked into: to import it changes matplotlib's settings and needs distutils.
    for folder in package.submodule_search_locations if package else ():
        paths.update(map(str, Path(folder).glob("fonts/*.ttf")))
    for path in sorted(paths.difference(font.fname for font in manager.ttflist)):
        try:
            manager.addfont(path)
        except (OSError, RuntimeError):  # a font that FreeType cannot read, such as coloured bitmaps
            continue


def _script(character):
    """The script of a character: what its Unicode name begins with, or the name of its family of fonts."""
    word = unicodedata.name(character, "unnamed").split()[0]
    if word == "HANGUL":
        return "Hangul"
    if word in ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH"):
        return "Chinese and Japanese"
    return "rarer"


@functools.cache
def _warn_of_script(script):
    """Says once that no font was found for a script, and what to install."""
    remedy = _REMEDIES.get(script, "a Noto Sans font that has them (Debian's fonts-noto-core)")
    warnings.warn(f"No font here has some {script} characters; boxes stand for them: install {remedy}.", stacklevel=5)
