"""Decoding: the compiled signature of this project's SavedModel beside CTranslate2, the same weights in float32.

    python benchmarks/decode.py [--run RUN [--text FILE]] [--cells 1,1 1,5 32,1 32,5 128,5] [--length 20] [--steps 30]
        [--repeats 5]

Without --run, Transformer-Tiny with random weights, V 9,700: sources of --length tokens, answers of --steps tokens.
Sentences per second at (batch, beam), medians, measured in turns in one process, both on all cores; and the share of
equal answers. A first call of each, which compiles, is not counted. The export's max_source_length is --length, so that
sources are not padded to a bucket, as those of other lengths are. It is exported by a process of its own, for a server
only loads a model.

With --text, the lines of a file, sorted by length, and answers that end where the model ends them, --steps at most (try
64): 256 lines, or one batch, drawn evenly from all; those of a shorter file more than once.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

CELLS = ["1,1", "1,5", "32,1", "32,5", "128,5"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run, whose Transformer is asked in place of a random one")
    parser.add_argument("--text", help="a file of sentences, in place of random tokens")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="BATCH,BEAM")
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.path.insert(0, str(Path(__file__).parent))
    from ctranslate2_model import to_ctranslate2

    model, lines = load_model(options)
    with tempfile.TemporaryDirectory() as folder:
        translator = to_ctranslate2(model, Path(folder) / "ctranslate2", intra_threads=os.cpu_count())
        print(f"{'batch':>6} {'beam':>5} {'ours/s':>8} {'CTranslate2/s':>14} {'ratio':>6} {'equal':>6}")
        for cell in options.cells:
            batch, beam = map(int, cell.split(","))
            ours = saved_model(model, beam, Path(folder) / f"beam{beam}", options)
            show(batch, beam, ours, translator, batches(lines, batch), options)


def load_model(options):
    """The model, and sources: lists of ids, sorted by length."""
    import keras
    import numpy as np

    from keras_attention.models import Pipeline, Transformer
    from keras_attention.training.cli import find_run

    if options.text and not options.run:
        sys.exit("--text FILE needs --run RUN, whose tokenizer reads it.")
    if options.run:
        pipeline = Pipeline.load(find_run(options.run))
        model = Transformer.from_config({**pipeline.model.get_config(), "dtype": "float32"})
        model.set_weights(pipeline.model.get_weights())
    else:
        keras.utils.set_random_seed(1)
        model = Transformer.tiny(9700, 9700, share_embeddings=True)
    if not options.text:
        shape = (256, options.length)
        return model, np.random.default_rng(0).integers(4, model.source_vocabulary, shape).tolist()
    lines = Path(options.text).read_text(encoding="utf-8").splitlines()
    if not any(line.strip() for line in lines):
        sys.exit(f"{options.text} holds no sentence.")
    lines = pipeline.source_tokenizer.tokenize([line.strip() for line in lines if line.strip()]).to_list()
    options.length = -(-max(map(len, lines)) // 16) * 16
    return model, sorted(lines, key=len)


def batches(lines, batch):
    """Up to 256 of the lines, evenly from all, in batches [B, S] padded with 0; of one batch size at least one."""
    import numpy as np

    count = max(batch, min(256, len(lines)) // batch * batch)
    lines = [lines[place] for place in np.linspace(0, len(lines) - 1, count).round().astype(int)]
    found = []
    for start in range(0, count, batch):
        rows = lines[start : start + batch]
        ids = np.zeros((batch, max(map(len, rows))), "int32")
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        found.append(ids)
    return found


def saved_model(model, beam, folder, options):
    """A function of ids [B, S] that asks the SavedModel's signature serving_xla."""
    import tensorflow as tf

    from keras_attention.models import Pipeline

    if not folder.exists():
        limits = {"max_length": options.steps, "length_ratio": 0.0, "length_offset": options.steps}
        saved = folder.with_suffix(".pipeline")
        Pipeline(model, beam_width=beam, max_source_length=options.length, **limits).save(saved)
        exporter = multiprocessing.get_context("spawn").Process(target=export, args=(saved, folder))
        exporter.start()
        exporter.join()
        if exporter.exitcode:
            sys.exit("The model could not be exported, see above.")
    loaded = tf.saved_model.load(folder / "1")
    signature = loaded.signatures["serving_xla"]

    def answer(ids):
        outputs = signature(tokens=tf.constant(ids))
        return [row[row > 0].tolist() for row in outputs["target_ids"].numpy()]

    answer.loaded = loaded  # its variables live as long as this function
    return answer


def export(saved, folder):
    from keras_attention.models import Pipeline

    Pipeline.load(saved).export(folder)


def show(batch, beam, ours, translator, batches, options):
    from ctranslate2_model import SUPPRESSED, piece

    names = [[[piece(token) for token in row if token] for row in ids] for ids in batches]

    def theirs(names):
        given = {"beam_size": beam, "max_decoding_length": options.steps, "min_decoding_length": 0}
        given |= {"suppress_sequences": SUPPRESSED}
        return [result.hypotheses[0] for result in translator.translate_batch(names, **given)]

    calls = {"ours": lambda: [ours(ids) for ids in batches], "theirs": lambda: [theirs(rows) for rows in names]}
    answers = {name: sum(call(), []) for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    count = batch * len(batches)
    speed = {name: count / sorted(values)[len(values) // 2] for name, values in seconds.items()}
    found = [[piece(token) for token in row] for row in answers["ours"]]
    equal = sum(one == two for one, two in zip(found, answers["theirs"], strict=True)) / count
    ratio = speed["ours"] / speed["theirs"]
    print(f"{batch:6} {beam:5} {speed['ours']:8.1f} {speed['theirs']:14.1f} {ratio:6.2f} {equal:6.2f}", flush=True)


if __name__ == "__main__":
    main()
