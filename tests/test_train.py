"""Runs: exact resume, early stopping across it, averaging, training without TensorFlow, scores."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import ANY

import keras
import numpy as np
import pytest
import sacrebleu
from helpers import ROOT, marked, run_python

from keras_attention.models import Pipeline, Result, SentencePieceTokenizer, Transformer
from keras_attention.models.tokenizers import bpe_dropout
from keras_attention.training import corpus
from keras_attention.training.callbacks import (
    Checkpoints,
    TextScores,
    average,
    better,
    read_checkpoint,
    write_checkpoint,
)
from keras_attention.training.datasets import Pairs
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import load_recipe, resolve
from keras_attention.training.tasks import scenes
from keras_attention.training.train import compile_model, read_run_recipe, train

SETTINGS = [
    "data.examples=200",
    "data.held_out=50",
    "task.locales=['en_US', 'ko_KR']",
    "model.units=16",
    "model.embedding_width=8",
    "model.dropout=0.3",
    "training.epochs=3",
    "training.token_budget=512",
    "training.samples=1",
]


def silent(text):
    pass


def recipe(*settings):
    return load_recipe("demo", [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(), out, say=silent)
    return out


def history(out):
    return json.loads((out / "history.json").read_text())


@pytest.mark.long
def test_a_killed_run_resumed_has_the_history_of_an_uninterrupted_one(uninterrupted, tmp_path):
    """SIGKILL between two checkpoints, in a process of its own; dropout 0.3, shuffling on."""
    out = tmp_path / "killed"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "keras_attention.training.cli", "train", "demo", "--out", str(out), *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "epoch-00000.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((out / "checkpoints").glob("epoch-*.npz")))
    assert 1 <= done < 3
    assert not (out / "metrics.json").exists()
    train(recipe(), out, resume=True, say=silent)
    assert history(out) == history(uninterrupted)
    one, two = (Pipeline.load(folder).model.get_weights() for folder in (out, uninterrupted))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.release
def test_dropout_matters_to_that_history(uninterrupted, tmp_path, no_export):
    """The test above would show nothing if the history did not depend on random numbers."""
    train(recipe("model.dropout=0.0", "training.epochs=1"), tmp_path / "dry", say=silent)
    found = history(uninterrupted)
    assert history(tmp_path / "dry")["loss"][0] != found["loss"][0]
    assert sorted(found) == sorted(
        f"{prefix}{name}" for name in ("loss", "token_accuracy", "perplexity", "exact_match") for prefix in ("", "val_")
    )
    assert found["loss"][-1] < found["loss"][0]


def test_a_run_holds_what_was_promised(uninterrupted):
    for name in (
        "recipe.json",
        "source.tokenizer.json",
        "target.tokenizer.json",
        "checkpoints/best.npz",
        "checkpoints/epoch-00002.npz",
        "history.json",
        "metrics.json",
        "logs/train",
        "plots/history.png",
        "plots/alignment.png",
        "model.keras",
        "pipeline.json",
        "export/1/saved_model.pb",
    ):
        assert (uninterrupted / name).exists(), name
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert metrics["epochs"] == 3
    assert metrics["val_perplexity"] == pytest.approx(min(history(uninterrupted)["val_perplexity"]), rel=0.5)


def test_settings_that_a_run_cannot_resume_with_change_nothing(uninterrupted):
    stored = (uninterrupted / "recipe.json").read_text()
    for setting in ("model.units=32", "data.examples=7", "seed=3"):
        with pytest.raises(InputError, match=f"takes settings of .training. and .decoding. only.*{setting}"):
            read_run_recipe(uninterrupted, [setting])
    assert (uninterrupted / "recipe.json").read_text() == stored
    assert read_run_recipe(uninterrupted, ["training.epochs=5"]).training.epochs == 5
    assert (uninterrupted / "recipe.json").read_text() == stored


@pytest.mark.long
def test_long_validation_lines_are_left_out_of_the_samples(tmp_path, no_export):
    folder = write_pairs(tmp_path / "data")
    long = "abcde" * 30
    (folder / "dev.tsv").write_text(f"{long}\tedcba\n" + (folder / "dev.tsv").read_text())
    said = []
    changed = recipe("data.task=none", f"data.folder='{folder}'", "training.epochs=1")
    train(changed, tmp_path / "run", say=said.append)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not any(long in text for text in said)


@pytest.mark.long
def test_what_a_task_draws_too_long_is_reported(tmp_path, no_export):
    said = []
    train(recipe("training.epochs=1", "data.max_source_length=16"), tmp_path / "run", say=said.append)
    assert any(text.startswith("train, epoch 1: Left out ") for text in said)
    assert any(text.startswith("val: Left out ") for text in said)


class Stopper(keras.callbacks.Callback):
    """Stops at an epoch's begin, like a power cut that Python survives."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def fit(folder, epochs, stop_at=None, resume=False):
    """A model that cannot learn (rate 0): its validation loss never improves, so patience runs out."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.0), "mse")
    model.optimizer.build(model.trainable_variables)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=3, mode="min")
    checkpoints = Checkpoints(folder, "val_loss", early_stopping=stopping)
    begin = checkpoints.restore(model) if resume else 0
    callbacks = [stopping, checkpoints, *([Stopper(stop_at)] if stop_at else [])]
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    try:
        model.fit(x, y, validation_data=(x, y), initial_epoch=begin, epochs=epochs, callbacks=callbacks, verbose=0)
    except KeyboardInterrupt:
        pass
    return checkpoints


def test_early_stopping_counts_on_after_a_resume(tmp_path):
    assert len(fit(tmp_path / "one", 20).seconds) == 4
    fit(tmp_path / "two", 20, stop_at=2)
    assert len(fit(tmp_path / "two", 20, resume=True).seconds) == 4


def test_the_last_checkpoints_are_kept_and_averaged(tmp_path):
    variables = [keras.Variable(np.zeros((2, 3)), dtype="float32"), keras.Variable(0, dtype="int32")]
    paths = []
    for value in (1.0, 2.0, 6.0):
        variables[0].assign(np.full((2, 3), value))
        variables[1].assign(int(value))
        paths.append(tmp_path / f"epoch-{int(value):05d}.npz")
        write_checkpoint(paths[-1], variables, {"epoch": int(value)})
    mean = average(paths, 2)
    np.testing.assert_allclose(mean[0], 3.0)
    assert mean[1] == 6  # what is counted, such as a seed's state, is that of the last one
    assert read_checkpoint(paths[2])[1] == {"epoch": 6}


@pytest.mark.parametrize(
    ("monitor", "greater"), [("val_exact_match", True), ("val_loss", False), ("perplexity", False)]
)
def test_better(monitor, greater):
    assert better(monitor, 2, 1) is greater
    assert better(monitor, 1, 2) is not greater
    assert not better(monitor, 1, 1)
    assert not better(monitor, float("nan"), 1)
    assert better(monitor, 1, float("nan"))
    assert not better(monitor, float("nan"), float("nan"))


def test_an_unknown_monitor_is_named(tmp_path):
    with pytest.raises(InputError, match="training.monitor must be one of .*val_loss.*'val_rouge'"):
        train(recipe("training.monitor=val_rouge", "training.epochs=1"), tmp_path / "run", say=silent)


def write_pairs(folder, count=120):
    """TSV files of a small task: a word and its letters reversed."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for split, rows in (("train", count), ("dev", 20)):
        words = ["".join(generator.choice(list("abcde"), generator.integers(2, 6))) for _ in range(rows)]
        (folder / f"{split}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    return folder


WITHOUT_TENSORFLOW = """
import sys
for name in ("tensorflow", "tensorflow_text", "tensorboard"):
    sys.modules[name] = None
from keras_attention.training.train import read_run_recipe, train
said = []
metrics = train(read_run_recipe(sys.argv[1]), sys.argv[1], resume=True, say=said.append)
import keras
print(keras.backend.backend(), metrics["epochs"], any("TensorFlow is missing" in text for text in said))
"""


@pytest.mark.backends
def test_a_run_with_stored_tokens_trains_without_tensorflow(tmp_path):
    """Prepared where TensorFlow is, trained where it is not, exported where it is."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        pytest.skip("KERAS_BACKEND is tensorflow: use `make test-backends`.")
    pytest.importorskip("tensorflow")
    changed = recipe("data.task=none", f"data.folder='{write_pairs(tmp_path / 'data')}'", "training.epochs=2")
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.json").write_text(json.dumps(changed.to_dict()))
    corpus.prepare(changed, out)
    assert (out / "tokens" / "train.source.ids.npy").exists()
    said = run_python(WITHOUT_TENSORFLOW, out, KERAS_BACKEND=backend)
    assert said.splitlines()[-1].split() == [backend, "2", "True"]
    assert (out / "model.keras").exists()
    finish = (
        "import sys; from keras_attention.training.train import *; train(read_run_recipe(sys.argv[1]), sys.argv[1], "
    )
    run_python(f"{finish}resume=True)", out, KERAS_BACKEND="tensorflow")
    assert (out / "export" / "1" / "saved_model.pb").exists()


@pytest.mark.skipif("KERAS_ATTENTION_DATA" not in os.environ, reason="KERAS_ATTENTION_DATA is not set")
def test_the_shipped_dates_read_the_third_party_set():
    """A set that the shipped model has never seen: exact match at least 0.995."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import dates_alignment
    finally:
        sys.path.pop(0)
    folder = os.path.join(os.environ["KERAS_ATTENTION_DATA"], "dates")
    if not os.path.isdir(folder):
        pytest.skip(f"{folder} is not there")
    right, count, wrong = dates_alignment.third_party(Pipeline.from_preset("dates"), folder)
    assert right / count >= 0.995, wrong


def test_the_shipped_dates_read_held_out_dates_and_look_at_them():
    """On dates that training never drew: exact match, and attention inside the span that names each part."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import dates_alignment
    finally:
        sys.path.pop(0)
    table = dates_alignment.by_locale(Pipeline.from_preset("dates"), 2500, "test", seed=77)
    assert len(table) >= 20
    count, right, characters, aligned = (sum(column) for column in zip(*table.values(), strict=True))
    assert right / count >= 0.99
    assert aligned / characters >= 0.8


@pytest.mark.long
def test_the_shipped_captioner_names_what_it_looks_at():
    """On scenes of combinations that training never draws."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scenes_pointing
    finally:
        sys.path.pop(0)
    drawn = scenes.draw(300, 77, split="test")
    results = Pipeline.from_preset("scenes")([scene.image for scene in drawn], batch_size=100)
    right = [result.text == scene.caption for scene, result in zip(drawn, results, strict=True)]
    assert sum(right) >= 0.93 * len(right)
    kinds = scenes_pointing.pointing(drawn, results, right)
    hits, words = (sum(column) for column in zip(*kinds.values(), strict=True))
    assert words == 4 * sum(right) and hits >= 0.85 * words


def write_tsv(folder, pairs, val):
    folder.mkdir()
    for name, rows in (("train", pairs), ("val", val)):
        (folder / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    return folder


@pytest.mark.long
def test_fine_tuning_adds_the_characters_that_a_vocabulary_lacks(uninterrupted, tmp_path, no_export):
    """The demonstration's answers have no full stop; new pairs do. Everything else begins as it was."""
    data = write_tsv(tmp_path / "data", [("1 May 1999", "01.05.1999")] * 8, [("2 May 1999", "02.05.1999")])
    more = recipe("training.learning_rate=1e-9", "training.epochs=1")
    more.data.folder = str(data)
    notes = []
    start = shutil.copytree(uninterrupted, tmp_path / "start")
    stored = json.loads((start / "pipeline.json").read_text())
    (start / "pipeline.json").write_text(json.dumps({**stored, "terms": "For research alone."}))
    train(more, tmp_path / "more", init=start, say=notes.append)
    assert Pipeline.load(tmp_path / "more").terms == "For research alone."
    shutil.rmtree(start)  # and a resumed run knows them by itself
    for name in ("metrics.json", "pipeline.json"):
        (tmp_path / "more" / name).unlink()
    train(read_run_recipe(tmp_path / "more"), tmp_path / "more", resume=True, say=silent)
    assert Pipeline.load(tmp_path / "more").terms == "For research alone."
    assert "The target vocabulary of --init lacked these characters, now added: ." in notes
    before, after = Pipeline.load(uninterrupted), Pipeline.load(tmp_path / "more")
    assert after.target_tokenizer.characters == before.target_tokenizer.characters + "."
    size = before.target_tokenizer.vocabulary_size
    assert after.model.target_vocabulary == size + 1
    for old, new in zip(before.model.weights, after.model.weights, strict=True):
        part = tuple(slice(length) for length in old.shape)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(new.value)[part], old.numpy(), atol=1e-6)
    assert after.model.target_embedding.embeddings.shape[0] == size + 1


@pytest.mark.long
def test_bleu_and_chrf_choose_the_weights_where_the_recipe_says_so(tmp_path, no_export):
    rows = [(word, f"{word} {word} ist {word} hier") for word in ("ab", "ba", "aab", "bba", "abab", "bab")]
    data = write_tsv(tmp_path / "data", rows * 6, rows)
    settings = ["training.epochs=4", "model.units=32", "training.learning_rate=0.01", "training.monitor=val_bleu"]
    settings += ["data.bleu_tokenize=none", "training.token_budget=256", "training.average=2", "training.samples=0"]
    bleu = load_recipe("pairs", settings)
    bleu.data.folder = str(data)
    metrics = train(bleu, tmp_path / "run", say=silent)
    found = history(tmp_path / "run")
    assert len(found["val_bleu"]) == len(found["val_chrf"]) == 4
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["val_bleu"], metrics["val_chrf"]) == (stored["val_bleu"], stored["val_chrf"])
    answers = [result.text for result in Pipeline.load(tmp_path / "run")([source for source, _ in rows])]
    bleu, chrf = sacrebleu_of(answers, [target for _, target in rows])
    assert (stored["val_bleu"], stored["val_chrf"]) == (pytest.approx(bleu), pytest.approx(chrf))
    assert chrf > 0
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.npz")[1]["best"] == max(found["val_bleu"])


def words_in_order(count, seed):
    """Pairs of texts: some of ten words, and the same words from the last to the first."""
    generator = np.random.default_rng(seed)
    known = "haus baum fenster garten strasse lampe wagen blume wolke regen".split()
    rows = [generator.choice(known, generator.integers(2, 6)).tolist() for _ in range(count)]
    return [(" ".join(row), " ".join(reversed(row))) for row in rows]


TRANSFORMER = {
    "name": "small",
    "data": {"joint_vocabulary": True},
    "source_tokenizer": {"kind": "bpe", "vocabulary_size": 330, "dropout": 0.2},
    "model": {
        "kind": "transformer",
        "width": 16,
        "num_heads": 2,
        "feed_forward_units": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "share_embeddings": True,
        "dropout": 0.1,
    },
    "training": {
        "epochs": 3,
        "token_budget": 256,
        "gradient_accumulation": 2,
        "dtype": "mixed_float16",
        "learning_rate": 0.003,
        "schedule": "cosine",
        "warmup_steps": 2,
        "beta_2": 0.98,
        "r_drop": 5.0,
        "ema_momentum": 0.9,
        "average": 2,
        "label_smoothing": 0.1,
        "monitor": "val_loss",
        "samples": 0,
    },
}


SMALLER = {
    "transformer": ["width=16", "feed_forward_units=32", "encoder_layers=1", "decoder_layers=1"],
    "seq2seq": ["units=16", "embedding_width=16"],
}
TRANSLATIONS = ["multi30k", *marked("release", ("translation", "translation_rnn"))]


@pytest.mark.long
@pytest.mark.parametrize("name", TRANSLATIONS)
def test_recipes_of_translations_train_on_two_files(name, tmp_path, no_export):
    """All that the recipe says but its sizes and lengths: its data's layout, tokenizers, loss, schedule and search."""
    settings = [
        "training.epochs=2",
        "training.samples=0",
        "training.warmup_steps=2",
        "source_tokenizer.vocabulary_size=330",
    ]
    usual = load_recipe(name)
    settings += [f"model.{size}" for size in SMALLER[usual.model["kind"]]]
    if not usual.data.joint_vocabulary:
        settings.append("target_tokenizer.vocabulary_size=330")
    pair = usual.data.pair or "en-de"
    languages = pair.split("-")
    for split, rows in (("train", words_in_order(200, 1)), ("val", words_in_order(20, 2))):
        for side, language in enumerate(languages):
            lines = "".join(f"{row[side]}\n" for row in rows)
            (tmp_path / f"{split}.{language}").write_text(lines, encoding="utf-8")
    small = load_recipe(name, [*settings, f"data.pair={pair}"])
    small.data.folder = str(tmp_path)
    train(small, tmp_path / "run", say=silent)
    found = history(tmp_path / "run")
    assert found["val_loss"][1] < found["val_loss"][0]
    assert np.isfinite(found[small.training.monitor]).all()
    answer = Pipeline.load(tmp_path / "run")(["haus baum"])[0]
    assert answer.attention.shape == (len(answer.target_pieces), len(answer.source_pieces))


@pytest.mark.long
def test_a_transformer_with_every_option_resumes_with_the_same_history(tmp_path, no_export):
    """BPE dropout, R-Drop, accumulated gradients, mixed precision with a scaled loss, a moving average."""
    data, out = write_tsv(tmp_path / "data", words_in_order(200, 1), words_in_order(20, 2)), tmp_path / "run"
    small = resolve(TRANSFORMER)
    small.data.folder = str(data)
    metrics, before = train(small, out, say=silent), history(out)
    loaded = Pipeline.load(out)
    assert loaded.source_tokenizer.model == loaded.target_tokenizer.model
    assert loaded.model.source_embedding is loaded.model.target_embedding
    assert loaded.model.compute_dtype == "float16"

    (out / "checkpoints" / "epoch-00002.npz").unlink()
    (out / "metrics.json").unlink()
    assert train(read_run_recipe(out), out, resume=True, say=silent) == {**metrics, "seconds": ANY}
    assert history(out) == before
    again = Pipeline.load(out)
    for one, two in zip(loaded.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize("accumulated", [1, pytest.param(4, marks=pytest.mark.release)])
def test_schedules_end_with_the_training(accumulated):
    settings = ["training.warmup_steps=4", "training.epochs=5", "training.dtype=float32"]
    small = resolve(TRANSFORMER, [*settings, f"training.gradient_accumulation={accumulated}", "training.r_drop=0"])
    model = Transformer(330, 330, 16, 2, 32, 1, 1)
    compile_model(model, small, batches=20)
    rates = [float(model.optimizer._learning_rate(step)) for step in (4, 52, 100)]
    np.testing.assert_allclose(rates, [0.003, 0.0015, 0.0], atol=1e-5)
    x = {name: np.full((2, 3), 5) for name in ("source", "target")}
    for _ in range(8):
        model.train_on_batch(x, x["target"])
    assert int(model.optimizer._iterations) == 8 and int(model.optimizer.iterations) == 8 // accumulated


@pytest.mark.long
def test_the_moving_average_is_one_of_the_candidates(tmp_path, monkeypatch, no_export):
    small = resolve(TRANSFORMER, ["training.dtype=float32", "training.gradient_accumulation=1"])
    small.data.folder = str(write_tsv(tmp_path / "data", words_in_order(100, 1), words_in_order(20, 2)))
    # Of equally good ones the last is taken, which the moving average is.
    monkeypatch.setattr("keras_attention.training.train.better", lambda monitor, value, other: False)
    assert train(small, tmp_path / "run", say=silent)["weights"] == "ema"
    arrays = read_checkpoint(tmp_path / "run" / "checkpoints" / "epoch-00002.npz")[0]
    model = Pipeline.load(tmp_path / "run").model
    count = len(model.variables)
    for weight in model.trainable_variables:
        same = [array for array in arrays[count:] if array.shape == tuple(weight.shape)]
        assert any(np.allclose(array, weight.numpy(), atol=1e-7) for array in same), weight.path
    trained = [array for array, weight in zip(arrays[:count], model.variables, strict=True) if weight.trainable]
    assert not any(np.allclose(a, w.numpy()) for a, w in zip(trained, model.trainable_variables, strict=True))


def test_bpe_dropout_cuts_the_same_texts_otherwise_in_every_epoch(tmp_path):
    import tensorflow as tf

    data = write_tsv(tmp_path / "data", words_in_order(50, 1), words_in_order(5, 2))
    small = resolve(TRANSFORMER)
    small.data.folder = str(data)
    (tmp_path / "run").mkdir()
    found = corpus.prepare(small, tmp_path / "run")
    (first, _), (second, _), (again, _) = found.train(0), found.train(1), found.train(0)
    whole = corpus.tokenize_pairs(*zip(*words_in_order(50, 1), strict=True), *found.tokenizers)[0]
    assert first.values.tolist() == again.values.tolist() != second.values.tolist()
    for cut in (first, second):
        assert len(cut.values) > 1.1 * len(whole.values)
        texts = found.tokenizers[0].detokenize(tf.RaggedTensor.from_row_splits(cut.values, cut.offsets)).numpy()
        assert [text.decode() for text in texts] == [source for source, _ in words_in_order(50, 1)]


def test_bpe_dropout_is_for_bpe():
    lines = [source for source, _ in words_in_order(50, 1)]
    tokenizer = SentencePieceTokenizer.learn(lines, 320)
    ids = tokenizer.tokenize(lines).to_list()
    assert bpe_dropout(tokenizer.model, ids, 0.0, seed=1) == ids
    with pytest.raises(ValueError, match="expects a SentencePiece model of kind bpe"):
        bpe_dropout(SentencePieceTokenizer.learn(lines, 285, kind="unigram").model, ids, 0.1, seed=1)


def test_pairs_that_do_not_fit_after_a_cut_keep_their_pieces(tmp_path):
    data = write_tsv(tmp_path / "data", words_in_order(50, 1), words_in_order(5, 2))
    small = resolve(TRANSFORMER, ["source_tokenizer.dropout=0.9", "data.max_source_length=6"])
    small.data.folder = str(data)
    (tmp_path / "run").mkdir()
    source, target = corpus.prepare(small, tmp_path / "run").train(0)
    assert len(source) == len(target) > 0 and 0 < source.lengths.max() <= 6


def test_r_drop_s_batches_hold_every_pair_twice(tmp_path):
    data = write_tsv(tmp_path / "data", words_in_order(50, 1), words_in_order(5, 2))
    small = resolve(TRANSFORMER)
    small.data.folder = str(data)
    (tmp_path / "run").mkdir()
    batches, validation = corpus.prepare(small, tmp_path / "run").batches(small.training, 1)
    x, y = batches[0]
    for array in (*x.values(), y):
        np.testing.assert_array_equal(*np.split(array, 2))
    assert sum(np.count_nonzero(y[:, 0]) for _, y in batches) == 100
    assert sum(np.count_nonzero(y[:, 0]) for _, y in validation) == 5


def test_bleu_needs_texts(tmp_path):
    with pytest.raises(InputError, match="training.monitor=val_bleu needs TensorFlow .* validation texts"):
        train(recipe("training.monitor=val_bleu", "decoding.max_source_length=1"), tmp_path / "run", say=silent)
    assert not (tmp_path / "run").exists()


def sacrebleu_of(answers, references):
    """By its functions; training uses its classes."""
    bleu = sacrebleu.corpus_bleu(answers, [references], tokenize="none", force=True)
    return bleu.score, sacrebleu.corpus_chrf(answers, [references]).score


def test_the_scores_of_an_epoch_are_those_of_the_greedy_answers():
    answers = {"a": "ein altes kleines haus steht hier", "b": "der hund schläft auf dem sofa", "c": "ja"}
    references = ["ein altes haus steht hier .", "der hund schläft auf dem sofa .", "nein ."]
    asked = []

    def pipeline(sources, beam_width, batch_size):
        asked.append((sources, beam_width))
        return [Result(answers[source], 0.0, 0.0, [], [], None, []) for source in sources]

    callback, logs = TextScores(pipeline, Pairs(list("abc"), references), "none"), {"loss": 1.0}
    callback.on_epoch_end(0, logs)
    bleu, chrf = sacrebleu_of(list(answers.values()), references)
    assert logs == {"loss": 1.0, "val_bleu": pytest.approx(bleu), "val_chrf": pytest.approx(chrf)}
    assert 30 < bleu < chrf < 90 and asked == [(["a", "b", "c"], 1)]
