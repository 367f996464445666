"""Decoding: the compiled signature of this project's SavedModel beside CTranslate2, the same weights in float32.

    python benchmarks/decode.py [--run RUN] [--cells 1,1 1,5 32,1 32,5 128,5] [--length 20] [--steps 30] [--repeats 5]

Without --run, Transformer-Tiny with random weights, V 9,700: sources of --length tokens, answers of --steps tokens.
Sentences per second at (batch, beam), medians, measured in turns in one process, both on all cores; and the share of
equal answers. A first call of each, which compiles, is not counted. The export's max_source_length is --length, so that
sources are not padded to a bucket, as those of other lengths are.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

CELLS = ["1,1", "1,5", "32,1", "32,5", "128,5"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run's folder, whose Transformer is asked in place of a random one")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="BATCH,BEAM")
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.path.insert(0, str(Path(__file__).parent))
    from ctranslate2_model import to_ctranslate2

    model = load_model(options.run)
    with tempfile.TemporaryDirectory() as folder:
        translator = to_ctranslate2(model, Path(folder) / "ctranslate2", intra_threads=os.cpu_count())
        print(f"{'batch':>6} {'beam':>5} {'ours/s':>8} {'CTranslate2/s':>14} {'ratio':>6} {'equal':>6}")
        for cell in options.cells:
            batch, beam = map(int, cell.split(","))
            ours = saved_model(model, beam, Path(folder) / f"beam{beam}", options)
            show(batch, beam, ours, translator, sources(model, batch, options), options)


def load_model(run):
    import keras

    from keras_attention.models import Pipeline, Transformer

    if run:
        trained = Pipeline.load(run).model
        model = Transformer.from_config({**trained.get_config(), "dtype": "float32"})
        model.set_weights(trained.get_weights())
        return model
    keras.utils.set_random_seed(1)
    return Transformer.tiny(9700, 9700, share_embeddings=True)


def sources(model, batch, options):
    import numpy as np

    return np.random.default_rng(0).integers(4, model.source_vocabulary, (batch, options.length)).astype("int32")


def saved_model(model, beam, folder, options):
    """A function of ids [B, S] that asks the SavedModel's signature serving_xla."""
    import tensorflow as tf

    from keras_attention.models import Pipeline

    if not folder.exists():
        limits = {"max_length": options.steps, "length_ratio": 0.0, "length_offset": options.steps}
        Pipeline(model, beam_width=beam, max_source_length=options.length, **limits).export(folder)
    loaded = tf.saved_model.load(folder / "1")
    signature = loaded.signatures["serving_xla"]

    def answer(ids):
        outputs = signature(tokens=tf.constant(ids))
        return [row[row > 0].tolist() for row in outputs["target_ids"].numpy()]

    answer.loaded = loaded  # its variables live as long as this function
    return answer


def show(batch, beam, ours, translator, ids, options):
    from ctranslate2_model import SUPPRESSED, piece

    names = [[piece(token) for token in row] for row in ids]

    def theirs():
        given = {"beam_size": beam, "max_decoding_length": options.steps, "min_decoding_length": 0}
        given |= {"suppress_sequences": SUPPRESSED}
        return [result.hypotheses[0] for result in translator.translate_batch(names, **given)]

    calls = {"ours": lambda: ours(ids), "theirs": theirs}
    answers = {name: call() for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    count = max(1, 64 // batch)
    for _ in range(options.repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(count):
                call()
            seconds[name].append((time.perf_counter() - began) / count)
    speed = {name: batch / sorted(values)[len(values) // 2] for name, values in seconds.items()}
    found = [[piece(token) for token in row] for row in answers["ours"]]
    equal = sum(one == two for one, two in zip(found, answers["theirs"], strict=True)) / batch
    ratio = speed["ours"] / speed["theirs"]
    print(f"{batch:6} {beam:5} {speed['ours']:8.1f} {speed['theirs']:14.1f} {ratio:6.2f} {equal:6.2f}", flush=True)


if __name__ == "__main__":
    main()
