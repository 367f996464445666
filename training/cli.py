"""The command line: keras-attention VERB ..."""

import functools
import json
import os
import shlex
import sys
import unicodedata
from pathlib import Path

import click

from .errors import InputError
from .scores import METRICS

SHADES = " ░▒▓█"


class _Group(click.Group):
    """Shows what is wrong with the user's input as one sentence, with exit status 2 and without a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.UsageError(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keras-attention-zoo")
def main():
    """Attention for Keras: train, ask, look at and serve models that attend.

    RUN is a run's folder if it has a path separator (./dates), otherwise the name of a pretrained model.
    """


@main.command()
def recipes():
    """List the recipes."""
    from .recipes import list_recipes

    for name, line in list_recipes().items():
        click.echo(f"{name:20} {line}")


@main.command()
@click.argument("name", required=False)
def models(name):
    """List the pretrained models; with NAME, show its card."""
    from keras_attention.models import list_presets
    from keras_attention.models.pipeline import PRETRAINED

    if name is None:
        for preset in list_presets():
            card = (PRETRAINED / preset / "card.md").read_text(encoding="utf-8").splitlines()
            size = sum(path.stat().st_size for path in (PRETRAINED / preset).iterdir()) / 1e6
            scores = next((line for line in card if line.startswith("Scores: ")), "")
            click.echo(f"{preset:20} {size:4.1f} MB  {card[2]} {scores}")
        return
    if name not in list_presets():
        raise InputError(f"There is no pretrained model {name!r}; known: {', '.join(list_presets()) or 'none'}.")
    click.echo((PRETRAINED / name / "card.md").read_text(encoding="utf-8"))


@main.command()
@click.argument("recipe")
@click.option(
    "--data",
    type=click.Path(),
    help="Folder with SPLIT.X and SPLIT.Y, SPLIT.tsv, SPLIT.txt, or SPLIT.captions.tsv and images/.",
)
@click.option("--out", type=click.Path(), help="The run's folder; runs/RECIPE unless given, numbered if taken.")
@click.option("--init", metavar="RUN", help="Begin with the weights and tokenizers of a run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key, such as model.units=64.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the run in --out.")
def train(recipe, data, out, init, settings, resume):
    """Train RECIPE: a name that `recipes` lists, or a path to a .toml."""
    from .recipes import load_recipe
    from .train import read_run_recipe
    from .train import train as train_recipe

    name = Path(recipe).stem if recipe.endswith(".toml") else recipe
    out = Path(out) if out else default_out(name, resume)
    if resume:
        resolved = read_run_recipe(out, settings)
        if resolved.name != name:
            raise InputError(f"The run in {out} was trained by the recipe {resolved.name}, not {name}.")
    else:
        resolved = load_recipe(recipe, settings)
    if data is not None:
        if not Path(data).is_dir():
            raise InputError(f"--data expects a folder. Received: {data}, which is {_what(Path(data))}.")
        if resume and resolved.data.folder != str(data):
            raise InputError(f"The run in {out} was begun with --data {resolved.data.folder}, not {data}.")
        if resolved.data.source:
            raise InputError(f"--data {data} and data.source={resolved.data.source} exclude each other: give one.")
        resolved.data.folder = str(data)
    if not resume:
        if init and resolved.init:
            raise InputError(f"--init {init} and init={resolved.init} of the recipe exclude each other: give one.")
        init = init or resolved.init
    try:
        metrics = train_recipe(resolved, out, init and find_run(init), resume, click.echo)
    except KeyboardInterrupt:
        again = shlex.join(["keras-attention", "train", recipe, "--out", str(out), "--resume"])
        click.echo(f"\nStopped. Go on with: {again}", err=True)
        sys.exit(130)
    for key, value in metrics.items():
        click.echo(f"{key:20} {value}")


@main.command()
@click.argument("run")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path(), required=False)
@click.option("--beam", type=click.IntRange(1), help="Beam width.")
@click.option("--tokenize", metavar="NAME", help="Words of BLEU: 13a (the default), intl, none, char or zh.")
@click.option("--by-length", "picture", metavar="OUT.png", type=click.Path(), help="Score by source length; draw it.")
@click.option("--metric", type=click.Choice(METRICS), help="Of --by-length; bleu unless given.")
@click.option("--compare", "others", metavar="RUN", multiple=True, help="Another run, beside this one; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(run, source, target, beam, tokenize, picture, metric, others, as_json):
    """Score RUN on two aligned files, SOURCE and TARGET, or on one TSV.

    For a RUN that reads images, SOURCE is their folder and TARGET a file of captions: image, tab, caption. For a
    language model SOURCE is one text: nats a piece and a character.

    The recipe of a run may name the words of BLEU (data.bleu_tokenize).
    """
    from .evaluate import bleu_tokenizer, compare, tsv_columns
    from .evaluate import evaluate as score
    from .plots import check_picture

    if picture:
        check_picture(picture)
    elif metric:
        raise InputError(f"--metric {metric} says what --by-length draws: give --by-length OUT.png, too.")
    runs = _names([run, *others])
    folders = {name: find_run(each) for name, each in runs.items()}
    options = {
        "beam_width": beam,
        "progress": _progress,
        "tokenize": tokenize or bleu_tokenizer(folders),
        "columns": (1, 2) if target else tsv_columns(folders),
        "by_length": (metric or "bleu") if picture else None,
    }
    pipelines = {name: _load_reader(each) for name, each in runs.items()}
    if any(pipeline.continues for pipeline in pipelines.values()):
        given = {"TARGET": target, "--beam": beam, "--tokenize": tokenize, "--by-length": picture}
        _print_scores_or_json(_score_text(pipelines, folders, source, given), others, as_json)
        return
    for name, pipeline in pipelines.items():
        if pipeline.source_width is not None:
            raise InputError(
                f"{name} reads features, arrays [steps, {pipeline.source_width}], and evaluate reads texts: ask it by "
                "keras-attention predict, with .npy files, or score it in Python."
            )
    if any(pipeline.source_tokenizer is None for pipeline in pipelines.values()):
        given = {"--by-length": picture, "--tokenize": tokenize}
        scores = {name: _score_captions(each, source, target, beam, given) for name, each in pipelines.items()}
    elif others:
        scores = compare(pipelines, source, target, **options)
    else:
        scores = {name: score(pipeline, source, target, **options) for name, pipeline in pipelines.items()}
    _print_scores_or_json(scores, others, as_json)
    if picture:
        _draw_by_length(scores, picture, title=Path(source).name)


def _print_scores_or_json(scores, others, as_json):
    if as_json:
        click.echo(json.dumps({"runs": scores} if others else next(iter(scores.values())), ensure_ascii=False))
    else:
        _print_scores(scores)


def _score_text(pipelines, folders, source, given):
    """What language models get on one text."""
    from .evaluate import evaluate_text, window_of

    if wrong := [name for name, value in given.items() if value]:
        raise InputError(f"A language model is scored on one text, SOURCE: leave {wrong[0]} out.")
    if other := [name for name, pipeline in pipelines.items() if not pipeline.continues]:
        raise InputError(f"{other[0]} is no language model: compare it with runs of its own kind.")
    return {
        name: evaluate_text(pipeline, source, window_of(pipeline, folders[name]), _progress)
        for name, pipeline in pipelines.items()
    }


def _score_captions(pipeline, folder, captions, beam, given):
    """What a run that reads images gets on a folder of them."""
    from .evaluate import evaluate_captions

    if pipeline.source_tokenizer is not None or captions is None:
        raise InputError("A run that reads images is scored on a folder of images and a file of their captions.")
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} is for texts, and this run reads images: leave {name} out.")
    return evaluate_captions(pipeline, folder, captions, beam, progress=_progress)


def _names(runs):
    """{name: RUN}: the last part of each path where that tells the runs apart, otherwise RUN as it was given."""
    names = [os.path.basename(os.path.abspath(run)) for run in runs]
    names = [name if names.count(name) == 1 else run.rstrip(os.sep) for name, run in zip(names, runs, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given {names.count(name)} times: --compare expects other runs.")
    return dict(zip(names, runs, strict=True))


def _draw_by_length(scores, picture, title):
    from .plots import plot_scores_by_length, save_figure

    curves = {name: of_run["by_length"]["buckets"] for name, of_run in scores.items()}
    drawn = next(iter(scores.values()))["by_length"]
    save_figure(plot_scores_by_length(curves, drawn["metric"], title, drawn["unit"]), picture)


def _print_scores(scores):
    """A column for each run, headed by its name where there are several; then a table by length."""
    first = next(iter(scores.values()))
    once = [key for key in ("bleu_signature", "chrf_signature", "words") if key in first]  # the same for all runs
    rows = [[key, *(each[key] for each in scores.values())] for key in first if key not in (*once, "by_length")]
    _print_table([["", *scores], *rows] if len(scores) > 1 else rows, widths=[20])
    for key in once:
        click.echo(f"{key:20} {first[key]}")
    if "by_length" in first:
        drawn = first["by_length"]
        columns = [each["by_length"]["buckets"] for each in scores.values()]
        rows = [_bucket_row(buckets) for buckets in zip(*columns, strict=True)]
        heads = list(scores) if len(scores) > 1 else [drawn["metric"]]
        click.echo(f"\n{drawn['metric']} by length of the source")
        _print_table([[drawn["unit"], "pairs", *heads], *rows], widths=[10, 8])


def _bucket_row(buckets):
    """Range, pairs, and each run's score of one bucket."""
    low, high = buckets[0]["low"], buckets[0]["high"]
    scores = ["-" if bucket["score"] is None else bucket["score"] for bucket in buckets]
    return [f"{low}-{high}" if low < high else low, buckets[0]["pairs"], *scores]


def _print_table(rows, widths):
    """Rows of cells; columns beyond `widths` are as wide as what stands in them."""
    rows = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = widths + [max(map(_width, column)) for column in zip(*rows, strict=True)][len(widths) :]
    for row in rows:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo(" ".join(cells).rstrip())


def _progress(chunks):
    """Gives chunks one by one and shows a bar on a terminal."""
    with click.progressbar(chunks, label="decoding", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield from bar


@main.command()
@click.argument("run")
@click.argument("inputs", nargs=-1)
@click.option("--beam", type=click.IntRange(1), help="Beam width.")
@click.option("--nbest", type=click.IntRange(1), default=1, show_default=True, help="Answers for each input.")
@click.option("--temperature", type=float, help="Draw answers rather than search for them; 0: the most probable one.")
@click.option("--top-k", type=int, help="Draw from the k most probable pieces.")
@click.option("--top-p", type=float, help="Draw from the fewest pieces that have this probability together.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of drawing.")
@click.option("--max-length", type=click.IntRange(1), help="Pieces at most.")
@click.option("--attention", is_flag=True, help="Print the alignment as a shaded table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict(run, inputs, beam, nbest, temperature, top_k, top_p, seed, max_length, attention, as_json):
    """Answer each INPUT, one result a line; '-' reads standard input, and so does no INPUT at all.

    A RUN that reads features takes .npy files, arrays [steps, features]; one that reads images JPEG and PNG files. A
    language model's answer to one INPUT is written as it comes, line breaks included, and goes on from the last half of
    its context where that is full; other answers (of several INPUTs or standard input, a beam, --nbest, --json,
    --attention) end there.
    """
    pipeline = _load_reader(run)
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "max_length": max_length}
    ask = functools.partial(pipeline, beam_width=beam, num_return=nbest, **drawn)
    greedy = pipeline.options.beam_width == 1 or pipeline.sampling(beam, temperature, top_k, top_p, seed)
    streamed = pipeline.continues and beam is None and greedy and nbest == 1 and not (attention or as_json)
    show = functools.partial(_print_results, ranked=nbest > 1, attention=attention, as_json=as_json)
    if pipeline.source_tokenizer is None:
        results = ask(_read_files(pipeline, inputs))
        show(results)
        _tell_of_errors(inputs, results)
        return
    if not inputs and _on_terminal():
        _ask(lambda text: _stream(pipeline, text, drawn) if streamed else show(ask([text])))
        return
    if streamed and len(inputs) == 1 and inputs != ("-",):
        _stream(pipeline, inputs[0], drawn)
        return
    if not inputs or inputs == ("-",):
        lines = sys.stdin.buffer.read().split(b"\n")
        inputs = [line.removesuffix(b"\r") for line in (lines[:-1] if lines[-1] == b"" else lines)]
    show(ask(inputs))


def _stream(pipeline, prompt, drawn):
    for piece in pipeline.stream(prompt, **drawn):
        click.echo(piece, nl=False)
    click.echo()


def _on_terminal():
    return sys.stdin.isatty()


def _ask(answer):
    """Asks for line after line, until an empty one or the end of the input; a mistake does not end it."""
    while True:
        try:
            text = click.prompt("", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            click.echo()
            return
        if not text:
            return
        try:
            answer(text)
        except ValueError as error:
            click.echo(f"Error: {error}", err=True)


@main.command()
@click.argument("run")
@click.argument("text", metavar="INPUT")
@click.argument("picture", metavar="OUT.png", type=click.Path())
@click.option("--beam", type=click.IntRange(1), help="Beam width.")
@click.option("--heads", is_flag=True, help="Every layer and head of a Transformer, as one grid.")
@click.option("--head", metavar="KIND.LAYER.HEAD", help="One of them, such as cross.2.0, counted from 0.")
@click.option("--positions", is_flag=True, help="What INPUT's positions add to its embeddings.")
@click.option(
    "--word",
    help="A word of INPUT: how like its states are, layer by layer, to those of --other. For a RUN that reads images a "
    "word of the caption: where the model looked for it.",
)
@click.option("--other", metavar="TEXT", help="The text that --word is compared with.")
@click.option("--max-length", type=click.IntRange(1), help="Pieces of the answer at most.")
def plot(run, text, picture, beam, heads, head, positions, word, other, max_length):
    """Draw the alignment of INPUT and its answer to OUT.png or .svg, or what else the options ask for.

    A RUN that reads features takes a .npy file, an array [steps, features]; one that reads images a JPEG or PNG file,
    and the picture is of every word of its caption, or with --word of one. Of a language model the picture is of the
    prompt INPUT and of 40 pieces behind it, or --max-length.
    """
    from .plots import check_picture, save_figure

    if sum((heads, head is not None, positions, word is not None)) > 1:
        raise InputError("One picture at a time: give one of --heads, --head, --positions and --word.")
    check_picture(picture)
    pipeline = _load_reader(run)
    captions = getattr(pipeline.model, "image_size", None) is not None
    if captions and other is not None:
        raise InputError("--other is a text to compare a word of INPUT with, and this run reads images: leave it out.")
    if not captions and (word is None) != (other is None):
        raise InputError("--word and --other belong together: a word of INPUT, and the text to compare it with.")
    if beam and (positions or word is not None and not captions):
        raise InputError("--beam is for pictures of an answer: leave it out with --positions and --word.")
    inputs = [text] if pipeline.source_tokenizer is not None else _read_files(pipeline, [text])
    options = {"beam_width": beam, "max_length": max_length or (40 if pipeline.continues else None)}
    if heads or head is not None:
        figure, said = _draw_heads(pipeline, inputs[0], head, options)
    elif positions:
        figure, said = _draw_positions(pipeline, inputs[0])
    elif captions:
        figure, said = _draw_caption(pipeline, run, inputs[0], word, options)
    elif word is not None:
        figure, said = _draw_similarity(pipeline, word, text, other)
    else:
        figure, said = _draw_alignment(pipeline, run, inputs[0], text, options)
    save_figure(figure, picture)
    click.echo(f"{said}{picture}")


def _draw_caption(pipeline, run, path, word, options):
    """An image's caption, and where the model looked for each of its words, or for one alone."""
    from .plots import plot_caption, plot_overlay, read_picture

    pipeline.check_inputs([path])
    result = pipeline([path], **options)[0]
    if result.attention_map is None or not result.target_pieces:
        raise InputError(f"{run} has no attention to draw, or nothing to say of {path}: {result.text!r}")
    image, words = read_picture(path), [piece.strip() for piece in result.target_pieces]
    if word is None:
        figure = plot_caption(image, result.attention_map, result.target_pieces)
    elif word in words:
        figure = plot_overlay(image, result.attention_map[words.index(word)], word)
    else:
        raise InputError(f"--word must be one of the caption: {result.text!r}. Received: {word!r}")
    return figure, f"{result.text}\n"


def _draw_heads(pipeline, given, head, options):
    """The grid of all heads, or one of them."""
    from keras_attention.models import attention_scores

    from .plots import plot_alignment, plot_heads

    scores = attention_scores(pipeline, given, **options)
    said = " ".join(scores.target_pieces) + "\n"
    if head is None:
        return plot_heads(scores), said
    kind, *place = head.split(".")
    try:
        weights = dict(_kinds(scores))[kind]
        layer, number = (int(index) for index in place)
        if min(layer, number) < 0:
            raise ValueError
        weights = weights[layer, number]
    except (KeyError, ValueError, IndexError):
        sizes = (f"{name}.0.0 to {name}.{len(w) - 1}.{w.shape[1] - 1}" for name, w in _kinds(scores))
        raise InputError(f"--head expects KIND.LAYER.HEAD: {', '.join(sizes)}. Received: {head!r}") from None
    rows, columns = scores.labels(kind)
    names = {"encoder": ("source", "source"), "decoder": ("target", "target"), "cross": ("source", "target")}[kind]
    names = names if scores.cross is not None else ("text", "text")  # a language model's prompt and answer
    return plot_alignment(weights, columns, rows, f"{kind} {layer}, head {number}", names), said


def _kinds(scores):
    return list(scores.kinds.items())


def _draw_positions(pipeline, given):
    import numpy as np

    from .plots import plot_positions

    position = getattr(pipeline.model, "source_position", getattr(pipeline.model, "added_position", None))
    if position is None:
        raise InputError(
            "--positions is for models that add positions to embeddings, sinusoidal or learned: this one does not."
        )
    length = pipeline.read(**pipeline.inputs.batch(pipeline.check_inputs([given])))[1][0]
    encoding = position(np.zeros((1, max(1, int(length)), pipeline.model.width), "float32"))[0]
    return plot_positions(encoding), ""


def _draw_similarity(pipeline, word, text, other):
    from keras_attention.models import word_similarity

    from .plots import plot_similarity

    similarity, pieces = word_similarity(pipeline, word, text, other)
    return plot_similarity(similarity, pieces, word, title=f"“{word}” in: {text}"), ""


def _draw_alignment(pipeline, run, given, text, options):
    from .plots import plot_alignment, source_labels

    result = pipeline([given], **options)[0]
    if result.attention is None:
        raise InputError(f"{run} was trained without attention: there is no alignment to draw.")
    if not result.target_pieces:
        raise InputError(f"The answer to {text!r} is empty: there is no alignment to draw.")
    return plot_alignment(result.attention, source_labels(result), result.target_pieces), f"{result.text}\n"


@main.command()
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path())
def export(run, folder):
    """Write RUN as a SavedModel to DIR/VERSION/, the layout of TensorFlow Serving."""
    click.echo(_load(run).export(folder))


@main.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@click.argument("folder", metavar="DIR", type=click.Path())
def ensemble(runs, folder):
    """Join RUNs that have the same tokenizers, such as those of one recipe with several seeds, to one model in DIR.

    DIR is then a RUN that answers with the mean of their logits. How it decodes, and what `evaluate` counts as words
    and columns, is taken from the first of them.
    """
    from keras_attention.models import ensemble as join
    from keras_attention.models.files import atomic_write

    from .evaluate import bleu_tokenizer, tsv_columns

    place = Path(os.path.abspath(folder))
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise InputError(f"{folder} is there already: ensemble expects a new folder DIR behind the RUNs.")
    folders = {run: find_run(run) for run in runs}
    if len({each.resolve() for each in folders.values()}) < len(runs):
        raise InputError(f"ensemble expects different RUNs. Received: {' '.join(runs)}")
    joined = join([_load(run) for run in runs], runs)
    first = {runs[0]: folders[runs[0]]}
    data = {"bleu_tokenize": bleu_tokenizer(first), "columns": tsv_columns(first)}

    def write(path):
        joined.save(path)
        (path / "recipe.json").write_text(json.dumps({"data": data}), encoding="utf-8")  # what `evaluate` reads of it

    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, write)
    click.echo(folder)


def find_run(run):
    """The folder of RUN: itself with a path separator, otherwise that of a pretrained model."""
    from keras_attention.models import list_presets
    from keras_attention.models.pipeline import PRETRAINED

    if os.sep in run or (os.altsep and os.altsep in run):
        if not Path(run).is_dir():
            raise InputError(f"{run} is {_what(Path(run))}: expected the folder of a run.")
        return Path(run)
    if run not in list_presets():
        hint = f" For the folder here write {os.path.join('.', run)}." if Path(run).exists() else ""
        known = ", ".join(list_presets()) or "none"
        raise InputError(f"There is no pretrained model {run!r}; known: {known}.{hint}")
    return PRETRAINED / run


def _load(run):
    from keras_attention.models import Pipeline

    return Pipeline.load(find_run(run))


def _load_reader(run):
    """The pipeline of a run that reads texts, features (then it has a source_width) or images, and writes texts."""
    pipeline = _load(run)
    kinds = pipeline.source_tokenizer, pipeline.source_width, getattr(pipeline.model, "image_size", None)
    if all(kind is None for kind in kinds) or pipeline.target_tokenizer is None:
        raise InputError(
            f"{find_run(run)} does not hold both tokenizers, source.tokenizer.json and target.tokenizer.json."
        )
    return pipeline


def _read_files(pipeline, paths):
    """The arrays [S, F] of .npy files for a run that reads features; for one of images their paths."""
    import numpy as np

    if pipeline.source_width is None:
        if not paths or "-" in paths:
            received = "No INPUT" if not paths else "INPUT is -"
            raise InputError(f"{received}, and this run reads images: give JPEG or PNG files.")
        return [Path(path) for path in paths]

    expected = f"this run reads features: give .npy files, each an array of numbers [steps, {pipeline.source_width}]"
    if not paths:
        raise InputError(f"No INPUT, and {expected}.")
    arrays = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is no .npy file ({error}): {expected}.") from error
        if array.ndim != 2 or array.shape[1] != pipeline.source_width or array.dtype.kind not in "fiu":
            raise InputError(f"{path} holds {array.dtype} of shape {array.shape}: {expected}.")
        arrays.append(array)
    return arrays


def _tell_of_errors(inputs, results):
    """Names the inputs that have no answer, after the others have been given, and exits with 2."""
    wrong = [(name, result.error) for name, result in zip(inputs, results, strict=True) if result.error]
    for name, error in wrong:
        click.echo(f"Error: {name}: {error}", err=True)
    if wrong:
        raise SystemExit(2)


def _what(path):
    return "a file" if path.exists() else "not there"


def default_out(name, resume):
    """runs/NAME, numbered if taken; to resume, the newest of those."""
    base = Path("runs") / name
    taken = [base] if base.exists() else []
    number = 2
    while (path := base.with_name(f"{name}-{number}")).exists():
        taken.append(path)
        number += 1
    if resume:
        return taken[-1] if taken else base
    return path if taken else base


def _print_results(results, ranked, attention, as_json):
    if as_json:
        click.echo(json.dumps({"results": [_as_dict(result) for result in results]}, ensure_ascii=False))
        return
    for result in results:
        for answer in (result, *result.alternatives):
            text = answer.text.replace("\r", " ").replace("\n", " ")  # one result a line
            click.echo(f"{answer.score:.4f}\t{text}" if ranked else text)
        if attention and result.attention is not None:
            click.echo(shaded_table(result))


def _as_dict(result):
    return {
        "text": result.text,
        "score": result.score,
        "log_probability": result.log_probability,
        "source_pieces": result.source_pieces,
        "target_pieces": result.target_pieces,
        "attention": None
        if result.attention is None
        else [[round(float(w), 6) for w in row] for row in result.attention],
        **(
            {}
            if result.attention_map is None
            else {"attention_map": result.attention_map.astype("float64").round(6).tolist()}
        ),
        "alternatives": [_as_dict(answer) for answer in result.alternatives],
        **({"error": result.error} if result.error else {}),
    }


def shaded_table(result):
    """The alignment as text: a line for each target piece, a column for each source piece, darker is more."""
    steps = range(result.attention.shape[1])
    columns = [_shown(piece) for piece in result.column_pieces] or [str(step % 10) for step in steps]  # of features
    widths = [_width(column) for column in columns]
    labels = [_shown(piece) for piece in result.target_pieces]
    margin = max(map(_width, labels), default=0)
    lines = [" " * (margin + 1) + " ".join(columns)]
    for label, weights in zip(labels, result.attention, strict=True):
        shades = (SHADES[min(int(weight * len(SHADES)), len(SHADES) - 1)] for weight in weights)
        cells = " ".join(shade * width for shade, width in zip(shades, widths, strict=True))
        lines.append(label + " " * (margin - _width(label) + 1) + cells)
    return "\n".join(lines)


def _shown(piece):
    return piece.replace(" ", "␣").replace("\n", "⏎") or "∅"


def _width(text):
    """Columns of a terminal that a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


if __name__ == "__main__":
    main()
