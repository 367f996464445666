"""The built-in tasks `reverse` and `series`: draws, splits, repeatability, refusals, and what a training reads."""

import importlib
import json
import time

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import ROOT, randomize

from keras_attention.models import Pipeline, Result, Seq2Seq
from keras_attention.models.tokenizers import CharacterTokenizer
from keras_attention.training import cli, corpus
from keras_attention.training.batching import FeatureSequences
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import resolve
from keras_attention.training.tasks import TASKS, drawing, reverse, series, task_options
from keras_attention.training.train import train

SPLITS = drawing.SPLITS


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Every task


@pytest.mark.parametrize("name", TASKS)
def test_a_draw_follows_from_its_arguments(name):
    def drawn(**changes):
        sources, targets = TASKS[name].pairs(17, **{"seed": 3, "epoch": 5, "split": "val", **changes})
        assert len(sources) == len(targets) == 17
        return [source if isinstance(source, str) else source.tolist() for source in sources], targets

    np.random.seed(3)  # noqa: NPY002  the global generator has no part in it
    first = drawn()
    np.random.seed(5)  # noqa: NPY002
    assert drawn() == first
    others = [drawn(seed=7), drawn(epoch=7), drawn(split="test"), drawn(split="train")]
    assert all(other != first for other in others)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"count": -1}, "count must be an integer of at least 0"),
        ({"seed": 1.5}, "seed must be an integer of at least 0"),
        ({"epoch": True}, "epoch must be an integer of at least 0"),
        ({"split": "valid"}, "must be one of train, val, test"),
    ],
)
def test_draws_that_cannot_be(name, wrong, expected):
    message = message_of(TASKS[name].pairs, **{"count": 3, "seed": 1, **wrong})
    assert name in message and expected in message and repr(next(iter(wrong.values()))) in message


@pytest.mark.parametrize("name", TASKS)
def test_nothing_is_drawn_of_nothing(name):
    sources, targets = TASKS[name].pairs(0, seed=1)
    assert len(sources) == 0 and targets == []


def test_a_task_s_options_are_its_own():
    assert list(task_options("dates")) == ["locales"]
    assert task_options("reverse") == {"operation": "reverse", "symbols": 26, "min_length": 5, "max_length": 50}


# Reverse


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("reverse", lambda text: text[::-1]),
        ("copy", lambda text: text),
        ("sort", lambda text: "".join(sorted(text, key=reverse.ALPHABET.index))),
    ],
)
@pytest.mark.parametrize("symbols", [2, 26, 62])
def test_operations(operation, answer, symbols):
    sources, targets = reverse.pairs(211, seed=1, operation=operation, symbols=symbols, min_length=13, max_length=37)
    assert [answer(source) for source in sources] == targets
    assert set("".join(sources)) == set(reverse.ALPHABET[:symbols])
    assert {len(source) for source in sources} <= set(range(13, 38))


def test_every_length_and_every_symbol_comes_as_often():
    sources, _ = reverse.pairs(10000, seed=1, symbols=5, min_length=3, max_length=12)
    lengths = np.bincount([len(source) for source in sources])[3:]
    assert len(lengths) == 10 and np.abs(lengths / 1000 - 1).max() < 0.15
    counts = np.unique(list("".join(sources)), return_counts=True)[1]
    assert len(counts) == 5 and np.abs(counts / counts.mean() - 1).max() < 0.05


def test_no_string_is_in_two_splits():
    options = {"symbols": 3, "min_length": 5, "max_length": 6}  # 972 strings: thousands of draws would collide
    seen = {split: set(reverse.pairs(3000, seed=1, split=split, **options)[0]) for split in SPLITS}
    together = len(set().union(*seen.values()))
    assert sum(map(len, seen.values())) == together > 0.9 * 972
    assert 0.8 < len(seen["train"]) / together < 0.97
    # The split belongs to the string, not to the seed or to the longest string drawn beside it.
    again = reverse.pairs(500, seed=2, split="val", symbols=3, min_length=5, max_length=9)[0]
    assert {text for text in again if len(text) < 7} <= seen["val"]


def test_one_length_and_a_long_one():
    sources, targets = reverse.pairs(23, seed=1, split="test", min_length=200, max_length=200)
    assert {len(text) for text in sources + targets} == {200}


@pytest.mark.parametrize("name", ["reverse", "series"])
def test_an_epoch_is_drawn_in_no_time(name):
    began = time.process_time()
    TASKS[name].pairs(20000, seed=1)
    assert time.process_time() - began < 3  # 0.1 s and 0.4 s on a free core


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"operation": "shuffle"}, "operation must be one of reverse, copy, sort; received: 'shuffle'"),
        ({"symbols": 1}, "symbols must be an integer of at least 2; received: 1"),
        ({"symbols": 63}, "symbols must be at most 62; received: 63"),
        ({"min_length": 0}, "min_length must be an integer of at least 1; received: 0"),
        ({"min_length": 7, "max_length": 6}, "min_length 7 is greater than max_length 6"),
        ({"min_length": 1, "max_length": 1, "symbols": 2, "split": "val"}, "belongs to the split val"),
    ],
)
def test_strings_that_cannot_be_drawn(options, expected):
    assert expected in message_of(reverse.pairs, 3, seed=1, **options)


# Series


def examples(count=200, noise=0.0, **options):
    defaults = {"max_segments": 4, "min_steps": 15, "max_steps": 23}
    return series.draw(count, 1, 0, "train", **{**defaults, "noise": noise, **options})


def test_a_series_has_one_stretch_a_letter():
    for source, target, ends in examples():
        assert source.dtype == "float32" and source.shape == (ends[-1], series.FEATURES)
        assert 1 <= len(target) == len(ends) <= 4
        steps = np.diff([0, *ends])
        assert steps.min() >= 15 and steps.max() <= 23
        assert all(a != b for a, b in zip(target, target[1:], strict=False))


def test_every_shape_is_what_its_letter_says():
    seen = set()
    for source, target, ends in examples():
        for letter, wave in zip(target, np.split(source, ends[:-1]), strict=True):
            top = np.abs(wave).max()
            if letter == "f":
                assert np.ptp(wave, axis=0).max() < 1e-6
            elif letter == "q":
                np.testing.assert_allclose(np.abs(wave), top, rtol=1e-5)
            elif letter == "s":  # the second sensor is a quarter of a period behind: a circle
                np.testing.assert_allclose(np.hypot(*wave.T), np.hypot(*wave[0]), rtol=1e-4)
            elif letter == "t":  # and of the triangle a square that stands on its corner
                np.testing.assert_allclose(np.abs(wave).sum(1), np.abs(wave[0]).sum(), rtol=1e-4)
            else:  # a sawtooth rises evenly, and falls at once
                slopes = np.diff(wave[:, 0])
                rising = slopes[slopes > 0]
                assert len(rising) >= len(slopes) - 3
                np.testing.assert_allclose(rising, rising[0], rtol=1e-3)
            seen.add(letter)
    assert seen == set(series.SHAPES)


def test_shapes_and_numbers_of_segments_come_as_often():
    _, targets = series.pairs(5000, seed=1)
    letters = np.unique(list("".join(targets)), return_counts=True)[1]
    segments = np.bincount([len(target) for target in targets])[1:]
    assert (len(letters), len(segments)) == (5, 4)
    for counts in (letters, segments):
        assert np.abs(counts / counts.mean() - 1).max() < 0.1


def test_noise_is_what_was_asked_for():
    quiet, noisy = (np.concatenate([source for source, _, _ in examples(noise=noise)]) for noise in (0.0, 0.3))
    assert 0.28 < (noisy - quiet).std() < 0.32


def test_a_draw_of_several_chunks():
    many = series.pairs(series._CHUNK + 3, seed=1)
    assert len(many[0]) == len(many[1]) == series._CHUNK + 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_segments": 0}, "max_segments must be an integer of at least 1; received: 0"),
        ({"min_steps": 30}, "min_steps 30 is greater than max_steps 16"),
        ({"noise": -0.1}, "noise must be a number of at least 0; received: -0.1"),
        ({"noise": float("nan")}, "noise must be a number of at least 0; received: nan"),
    ],
)
def test_series_that_cannot_be_drawn(options, expected):
    assert expected in message_of(series.pairs, 3, seed=1, **options)


# What a training reads of them


def recipe(task, *settings):
    table = {"name": "tiny", "data": {"task": task, "examples": 60, "held_out": 30}}
    return resolve({**table, "target_tokenizer": {"byte_fallback": False}}, settings)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(corpus, "VOCABULARY_EXAMPLES", 200)


@pytest.mark.usefixtures("few")
def test_the_corpus_of_reverse_has_the_options_of_the_recipe(tmp_path):
    found = corpus.prepare(recipe("reverse", "task.max_length=7", "task.symbols=4", "task.operation=copy"), tmp_path)
    assert found.samples.sources == found.samples.targets and len(found.samples) == 30
    assert max(map(len, found.samples.sources)) == 7
    assert found.target_vocabulary == 4 + 4 and found.source_width is None
    assert found.train(0)[0].lengths.max() == 7
    assert found.describe() == "vocabularies of 264 and 8"


@pytest.mark.usefixtures("few")
def test_the_corpus_of_series_has_features(tmp_path):
    found = corpus.prepare(recipe("series", "task.max_segments=2"), tmp_path)
    assert found.tokenizers[0] is None and found.source_vocabulary is None
    assert (found.source_width, found.target_vocabulary) == (2, 4 + 5)
    assert found.describe() == "2 features a step and a vocabulary of 9"
    assert isinstance(found.val[0], FeatureSequences) and len(found.val[0]) == 30
    assert [source.tolist() for source in found.samples.sources] == [rows.tolist() for rows in found.val[0]]
    train, val = found.batches(recipe("series").training, seed=1)
    for x, y in (train[0], val[0]):
        assert x["source"].shape == (*x["source_mask"].shape, 2) and y.shape == x["target"].shape
    # A second look at the folder finds the tokenizer's ids as they were.
    again = corpus.prepare(recipe("series", "task.max_segments=2"), tmp_path)
    assert again.val[1].ids.tolist() == found.val[1].ids.tolist()


@pytest.mark.usefixtures("few")
def test_a_task_of_features_finds_its_tokenizer_again(tmp_path, monkeypatch):
    first = corpus.prepare(recipe("series"), tmp_path).tokenizers[1]
    monkeypatch.setattr(corpus, "_learn", lambda *arguments: pytest.fail("learned anew"))
    source, target = corpus.prepare(recipe("series"), tmp_path).tokenizers
    assert source is None and target.get_config() == first.get_config()


@pytest.mark.usefixtures("few")
def test_series_that_are_too_long_are_left_out_and_counted_in_steps(tmp_path):
    found = corpus.prepare(recipe("series", "data.max_source_length=40"), tmp_path)
    assert len(found.val[0]) < 30 and found.val[0].lengths.max() <= 40
    assert "with a source of more than 40 steps" in found.notes[0]
    assert max(map(len, found.samples.sources)) <= 40


@pytest.mark.usefixtures("few")
def test_a_task_of_features_does_not_begin_with_a_run_that_reads_text(tmp_path):
    text = CharacterTokenizer("abc"), CharacterTokenizer("abc")
    message = message_of(corpus.prepare, recipe("series"), tmp_path, text)
    assert "series gives features" in message and "--init" in message
    assert not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_a_run_on_features(tmp_path):
    """From arrays to a trained pipeline: samples shown, a picture drawn, the same answers after loading."""
    said = []
    settings = ("model.units=8", "model.embedding_width=4", "training.epochs=1", "training.samples=1")
    train(recipe("series", *settings, "training.token_budget=512"), tmp_path / "run", say=said.append)
    assert any("2 features a step and a vocabulary of 9" in text for text in said)
    sources, targets = series.pairs(30, seed=1, split="val")
    assert any(f"  [{len(sources[0])} x 2 features] -> " in text and text.endswith(targets[0]) for text in said)
    assert (tmp_path / "run" / "plots" / "alignment.png").exists()
    results = Pipeline.load(tmp_path / "run")(sources[:3])
    assert [result.attention.shape[1] for result in results] == [len(source) for source in sources[:3]]
    assert all(set(result.text) <= set(series.SHAPES) for result in results)


def ask(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command_line_on_features(tmp_path):
    letters = CharacterTokenizer("".join(series.SHAPES), byte_fallback=False)
    model = randomize(Seq2Seq(None, letters.vocabulary_size, units=8, source_width=2), seed=3)
    pipeline = Pipeline(model, None, letters, max_length=7)
    run, files = tmp_path / "run", [tmp_path / f"{number}.npy" for number in range(3)]
    pipeline.save(run)
    sources, _ = series.pairs(3, seed=1)
    results = pipeline(sources)
    assert results[0].text
    for path, source in zip(files, sources, strict=True):
        np.save(path, source)
    assert ask("predict", run, *files).stdout.splitlines() == [result.text for result in results]
    table = ask("predict", run, files[0], "--attention").stdout.splitlines()
    assert "".join(table[1].split()) == ("0123456789" * 9)[: len(sources[0])]
    output = ask("plot", run, files[0], tmp_path / "a.png").stdout
    assert output.splitlines() == [results[0].text, str(tmp_path / "a.png")]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    np.save(tmp_path / "wide.npy", np.ones((5, 3)))
    (tmp_path / "pairs.tsv").write_text("a\tb\n", encoding="utf-8")
    expected = "give .npy files, each an array of numbers [steps, 2]"
    refused = [
        (("predict", run, "abc"), ("abc is no .npy file", expected)),
        (("predict", run, "-"), ("- is no .npy file", expected)),
        (("predict", run), ("No INPUT", expected)),
        (("predict", run, tmp_path / "wide.npy"), ("wide.npy holds float64 of shape (5, 3)", expected)),
        (("plot", run, tmp_path / "pairs.tsv", tmp_path / "b.png"), ("pairs.tsv is no .npy file", expected)),
        (
            ("evaluate", run, tmp_path / "pairs.tsv"),
            ("reads features, arrays [steps, 2], and evaluate reads texts",),
        ),
    ]
    for arguments, parts in refused:
        result = ask(*arguments)
        last = result.stderr.rstrip("\n").splitlines()[-1]
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
        assert all(part in last for part in parts), last
    assert not (tmp_path / "b.png").exists()


# The benchmark of lengths


@pytest.fixture
def reverse_lengths(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("reverse_lengths")


def reader(shift=0, attends=True):
    """Stands for a pipeline: answers strings of up to 6 symbols, and looks `shift` places beside the true one."""

    def answer(sources, batch_size):
        for source in sources:
            text = source[::-1] if len(source) <= 6 else source
            places = np.clip(np.arange(len(source))[::-1] + shift, 0, len(source) - 1)
            weights = np.eye(len(source))[places] if attends else None
            yield Result(text, 0.0, 0.0, list(source), list(text), weights, [])

    return lambda *arguments, **options: list(answer(*arguments, **options))


def test_the_benchmark_of_lengths(reverse_lengths, tmp_path):
    options = task_options("reverse")
    found = {
        label: reverse_lengths.measure(pipeline, options, (5, 10), 7, seed=1)
        for label, pipeline in {"exact": reader(), "beside": reader(1), "none": reader(attends=False)}.items()
    }
    assert [row["exact_match"] for row in found["exact"]] == [1.0, 0.0]
    assert [[row["alignment"], row["alignment_within_1"]] for row in found["exact"]] == [[1.0, 1.0]] * 2
    assert [row["alignment"] for row in found["beside"]] == [0.2, 0.1]  # the first place is clipped
    assert [row["alignment_within_1"] for row in found["beside"]] == [1.0, 1.0]
    assert [row["alignment"] for row in found["none"]] == [None, None]
    lines = reverse_lengths.table(found).splitlines()
    assert lines[0] == "| length | exact | beside | none | exact: alignment | beside: alignment |"
    assert lines[2] == "| 5 | 1.000 | 1.000 | 1.000 | 1.000 / 1.000 | 0.200 / 1.000 |"
    ticks = reverse_lengths.picture(found, (5, 50)).axes[1].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["5", "10"]


def test_the_runs_of_the_benchmark(reverse_lengths, tmp_path):
    for name, task, attention in (("a", "reverse", "additive"), ("b", "reverse", None), ("c", "series", "dot")):
        resolved = recipe(task, f"model.attention={attention}")
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps(resolved.to_dict()), encoding="utf-8")
    a, b, c = (str(tmp_path / name) for name in "abc")
    options = task_options("reverse")
    assert reverse_lengths.read_runs([a, b]) == {"additive": (a, options), "none": (b, options)}
    with pytest.raises(SystemExit, match="expected the task reverse"):
        reverse_lengths.read_runs([a, c])
