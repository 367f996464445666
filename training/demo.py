"""What `make demo` runs: train a small reader of dates, then ask its SavedModel where nothing of ours is loaded."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from .cli import default_out

LOCALES_SHOWN = ("ko_KR", "en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "pl_PL", "ja_JP", "ko_KR", "ko_KR")

# Runs where only TensorFlow and tensorflow-text are imported.
ASK = """
import json, sys
import tensorflow as tf, tensorflow_text
answer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = json.loads(sys.argv[2])
answers = [text.decode() for text in answer(text=tf.constant(texts))["text"].numpy()]
ours = [name for name in sys.modules if name.startswith("keras_attention")]
print(json.dumps({"answers": answers, "ours": ours}))
"""


def main():
    """Trains, scores, draws, exports and asks."""
    from keras_attention.models import Pipeline

    from .recipes import load_recipe
    from .tasks import dates
    from .train import train

    began = time.perf_counter()
    recipe = load_recipe("demo")
    out = default_out("demo", resume=False)
    locales = recipe.task["locales"]
    click.echo(f"Training dates in {len(locales)} locales: {', '.join(locales)}")
    metrics = train(recipe, out, say=click.echo)

    pipeline = Pipeline.load(out)
    held_out = dates.draw(1000, seed=recipe.seed, split="test", locales=locales)
    results = pipeline([example.source for example in held_out], batch_size=128)
    right = sum(result.text == example.target for example, result in zip(held_out, results, strict=True))
    click.echo(f"\nExact match on 1,000 held-out dates: {right / 1000:.3f}\nTen of them:")
    samples = _samples(held_out, results)
    for example, result in samples:
        mark = "" if result.text == example.target else f"   (should be {example.target})"
        click.echo(f"  {example.source.strip():32} -> {result.text}{mark}")
    click.echo(f"\nAlignment:  {_draw(samples[0][1], out)}")
    click.echo(f"SavedModel: {metrics['export']}")
    _ask(metrics["export"], samples)
    click.echo(f"\nDone in {time.perf_counter() - began:.0f} seconds.")


def _samples(examples, results):
    """Ten pairs (example, result), Korean ones among them, a Korean one in words first."""
    pairs = list(zip(examples, results, strict=True))
    chosen = []
    for locale in LOCALES_SHOWN:
        chosen.append(next(p for p in pairs if p[0].locale == locale and p not in chosen and not _is_numeric(p[0])))
    return chosen


def _is_numeric(example):
    return not any(character.isalpha() for character in example.source.partition(": ")[2] or example.source)


def _draw(result, out):
    from . import plots

    path = out / "plots" / "alignment.png"
    plots.save_figure(plots.plot_alignment(result.attention, result.source_pieces, result.target_pieces), path)
    return path


def _ask(export, samples):
    """Asks the SavedModel in a fresh process and shows what it answers."""
    texts = [example.source for example, _ in samples]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", ASK, str(Path(export).resolve()), json.dumps(texts)]
    with tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.run(command, env=environment, cwd=elsewhere, capture_output=True, text=True)
    if process.returncode:
        raise click.ClickException(f"The SavedModel could not be asked:\n{process.stderr}")
    reply = json.loads(process.stdout.splitlines()[-1])
    same = reply["answers"] == [result.text for _, result in samples]
    click.echo(
        f"Asked in a fresh process that imports tensorflow and tensorflow_text only: {len(texts)} answers, "
        f"{'the same as above' if same else 'NOT the same as above'}; modules of this project loaded there: "
        f"{len(reply['ours'])}."
    )
    if not same or reply["ours"]:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        click.echo("\nStopped. The next `make demo` begins anew, in a folder of its own.", err=True)
        sys.exit(130)
