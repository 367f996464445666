"""The attending RNN and the Transformer, trained on the same batches of Multi30k, in one table.

    python benchmarks/rnn_and_transformer.py --data DIR/multi30k/lc_norm_tok [--recipes multi30k_rnn multi30k_lc]

Tokens and batches are the last recipe's for both; model, learning rate and number of epochs are each recipe's own.
After every epoch the validation texts are translated by greedy search and scored with sacrebleu; that is not part of
the times. Curves are kept in --out, and a model whose curve with the same options is there is not trained again. Runs
on any backend, without TensorFlow too (KERAS_BACKEND=jax) where --out holds the prepared tokens.
"""

import argparse
import base64
import json
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipes", nargs="+", default=["multi30k_rnn", "multi30k_lc"])
    parser.add_argument("--out", type=Path, default=Path("build/rnn_and_transformer"), help="tokens and curves")
    parser.add_argument("--epochs", type=int, nargs="+", help="in place of the recipes', one number for each")
    parser.add_argument("--bucket", type=int, help="bucket_width; one bucket for all compiles once where XLA does it")
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    from keras_attention.training.corpus import prepare
    from keras_attention.training.recipes import load_recipe

    recipes = [load_recipe(name) for name in options.recipes]
    epochs = options.epochs or [recipe.training.epochs for recipe in recipes]
    if len(epochs) != len(recipes):
        parser.error(f"--epochs expects {len(recipes)} numbers. Received: {len(epochs)}.")
    recipes[-1].data.folder = options.data
    options.out.mkdir(parents=True, exist_ok=True)
    corpus = prepare(recipes[-1], options.out)
    batching = replace(recipes[-1].training, r_drop=0.0)
    batching.bucket_width = options.bucket or batching.bucket_width
    batching.token_budget = options.token_budget or batching.token_budget
    kept = options.out / "curves.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    for recipe, recipe.training.epochs in zip(recipes, epochs, strict=True):
        settings = [recipe.training.epochs, options.dtype, batching.bucket_width, batching.token_budget]
        if curves.get(recipe.name, {}).get("settings") == settings:
            continue
        recipe.training.dtype, recipe.training.r_drop = options.dtype, 0.0
        curve = train(recipe, corpus, batching, Scorer(options.out, corpus, recipe))
        curves[recipe.name] = {"settings": settings, **curve}
        kept.write_text(json.dumps(curves, indent=1))
    report({recipe.name: curves[recipe.name] for recipe in recipes})


class Scorer:
    """BLEU of greedy translations of the validation texts, without TensorFlow."""

    def __init__(self, folder, corpus, recipe):
        import sentencepiece

        stored = json.loads((folder / "target.tokenizer.json").read_text(encoding="utf-8"))
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(stored["config"]["model"]))
        self.samples, self.tokenize = corpus.samples, recipe.data.bleu_tokenize
        source = corpus.val[0]
        longest = int(source.lengths.max())
        self.chosen = np.flatnonzero(source.lengths <= recipe.decoding.max_source_length)[: len(self.samples.sources)]
        self.source = source.inputs(self.chosen, longest)["source"]
        options = recipe.decoding
        self.limits = np.minimum(
            np.ceil(options.length_ratio * source.lengths[self.chosen]) + options.length_offset, options.max_length
        ).astype("int32")
        self.decode = None

    def __call__(self, model, rows=256):
        import sacrebleu

        answers = []
        for start in range(0, len(self.chosen), rows):
            source, limits = self.source[start : start + rows], self.limits[start : start + rows]
            missing = rows - len(source)  # one shape for all
            source, limits = np.pad(source, [(0, missing), (0, 0)]), np.pad(limits, [(0, missing)])
            ids, lengths = self._decode(model, source, limits)
            for row, length in zip(ids[: rows - missing], lengths[: rows - missing], strict=True):
                answers.append(self.pieces.decode(row[:length].tolist()))
        self.answers = answers
        return sacrebleu.corpus_bleu(answers, [self.samples.targets], tokenize=self.tokenize, force=True).score

    def _decode(self, model, source, limits):
        self.decode = self.decode or compiled(model, int(self.limits.max()))
        return self.decode(source, limits)


def compiled(model, max_length):
    """A function (source [B, S], limits [B]) -> (ids [B, T], lengths [B]), NumPy, compiled by XLA or run by PyTorch."""
    from keras_attention import cache
    from keras_attention.models.decoding import greedy_search

    def search(source, limits):
        found = greedy_search(model, model.encode({"source": source}), max_length, limits)
        return found.ids[:, 0], found.lengths[:, 0]

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False, jit_compile=True)
        def function(source, limits):
            with cache.compiled():
                return search(source, limits)

        return lambda source, limits: [part.numpy() for part in function(tf.constant(source), tf.constant(limits))]
    if backend == "jax":
        import jax

        @jax.jit
        def pure(values, source, limits):
            with keras.StatelessScope(list(zip(model.variables, values, strict=True))):
                return search(source, limits)

        return lambda source, limits: [np.asarray(p) for p in pure([v.value for v in model.variables], source, limits)]
    return lambda source, limits: [keras.ops.convert_to_numpy(part) for part in search(source, limits)]


class Curve(keras.callbacks.Callback):
    """Seconds of training, and BLEU, after every epoch."""

    def __init__(self, batches, scorer):
        super().__init__()
        self.batches, self.scorer = batches, scorer
        self.seconds, self.bleu = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.bleu.append(self.scorer(self.model))
        print(f"  epoch {epoch + 1}: {self.seconds[-1]:.1f} s, BLEU {self.bleu[-1]:.2f}", flush=True)


def train(recipe, corpus, batching, scorer):
    """Trains a recipe's model; its curve as a dict."""
    from keras_attention.training.batching import to_py_dataset, to_tf_dataset
    from keras_attention.training.train import build_model, compile_model

    keras.utils.set_random_seed(recipe.seed)
    batches, _ = corpus.batches(batching, recipe.seed)
    model = build_model(recipe, corpus)
    compile_model(model, recipe, len(batches))
    curve = Curve(batches, scorer)
    read = to_tf_dataset if keras.backend.backend() == "tensorflow" else to_py_dataset
    print(f"{recipe.name}: {model.count_params():,} parameters, {len(batches)} batches an epoch", flush=True)
    model.fit(read(batches), epochs=recipe.training.epochs, callbacks=[curve], shuffle=False, verbose=0)
    tokens = int(sum((y != 0).sum() for _, y in batches))
    return {"parameters": model.count_params(), "tokens": tokens, "seconds": curve.seconds, "bleu": curve.bleu}


def report(curves):
    """One row for each model."""
    goal = max(next(iter(curves.values()))["bleu"])
    print(f"{'':>14} {'parameters':>11} {'target tokens/s':>16} {f'seconds to {goal:.2f}':>17} {'best':>6} {'last':>6}")
    for name, curve in curves.items():
        speed = curve["tokens"] / float(np.median(curve["seconds"]))
        reached = next((i for i, bleu in enumerate(curve["bleu"]) if bleu >= goal), None)
        when = "never" if reached is None else f"{sum(curve['seconds'][: reached + 1]):,.0f}"
        best, last = max(curve["bleu"]), curve["bleu"][-1]
        print(f"{name:>14} {curve['parameters']:11,} {speed:16,.0f} {when:>17} {best:6.2f} {last:6.2f}")


if __name__ == "__main__":
    main()
