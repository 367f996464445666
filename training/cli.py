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
@click.option("--data", type=click.Path(), help="Folder with SPLIT.X and SPLIT.Y, or SPLIT.tsv.")
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(run, source, target, beam, as_json):
    """Score RUN on two aligned files, SOURCE and TARGET, or on one TSV."""
    from .evaluate import evaluate as score

    scores = score(_load(run, of_text=True), source, target, beam, progress=_progress)
    if as_json:
        click.echo(json.dumps(scores))
        return
    for key, value in scores.items():
        click.echo(f"{key:20} {value:.4f}" if isinstance(value, float) else f"{key:20} {value}")


def _progress(chunks):
    """Gives chunks one by one and shows a bar on a terminal."""
    with click.progressbar(chunks, label="decoding", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield from bar


@main.command()
@click.argument("run")
@click.argument("inputs", nargs=-1)
@click.option("--beam", type=click.IntRange(1), help="Beam width.")
@click.option("--nbest", type=click.IntRange(1), default=1, show_default=True, help="Answers for each input.")
@click.option("--attention", is_flag=True, help="Print the alignment as a shaded table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict(run, inputs, beam, nbest, attention, as_json):
    """Answer each INPUT, one result a line; '-' reads standard input, and so does no INPUT at all."""
    pipeline = _load(run, of_text=True)
    show = functools.partial(_print_results, ranked=nbest > 1, attention=attention, as_json=as_json)
    if not inputs and _on_terminal():
        _ask(lambda text: show(pipeline([text], beam, nbest)))
        return
    if not inputs or inputs == ("-",):
        lines = sys.stdin.buffer.read().split(b"\n")
        inputs = [line.removesuffix(b"\r") for line in (lines[:-1] if lines[-1] == b"" else lines)]
    show(pipeline(inputs, beam, nbest))


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
def plot(run, text, picture, beam):
    """Draw the alignment of INPUT and its answer to OUT.png or .svg."""
    from .plots import plot_alignment, save_figure

    if not picture.lower().endswith((".png", ".svg")):
        raise InputError(f"A picture's file name must end in .png or .svg; received {picture!r}.")
    result = _load(run, of_text=True)([text], beam)[0]
    if result.attention is None:
        raise InputError(f"{run} was trained without attention: there is no alignment to draw.")
    if not result.target_pieces:
        raise InputError(f"The answer to {text!r} is empty: there is no alignment to draw.")
    save_figure(plot_alignment(result.attention, result.source_pieces, result.target_pieces), picture)
    click.echo(f"{result.text}\n{picture}")


@main.command()
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path())
def export(run, folder):
    """Write RUN as a SavedModel to DIR/VERSION/, the layout of TensorFlow Serving."""
    click.echo(_load(run).export(folder))


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


def _load(run, of_text=False):
    from keras_attention.models import Pipeline

    folder = find_run(run)
    pipeline = Pipeline.load(folder)
    if of_text and (pipeline.source_tokenizer is None or pipeline.target_tokenizer is None):
        raise InputError(f"{folder} does not hold both tokenizers, source.tokenizer.json and target.tokenizer.json.")
    return pipeline


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
        "alternatives": [_as_dict(answer) for answer in result.alternatives],
    }


def shaded_table(result):
    """The alignment as text: a line for each target piece, a column for each source piece, darker is more."""
    columns = [_shown(piece) for piece in result.source_pieces]
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
    return piece.replace(" ", "␣") or "∅"


def _width(text):
    """Columns of a terminal that a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


if __name__ == "__main__":
    main()
