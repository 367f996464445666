"""The command line, in process: one tiny run that most tests ask, a few trainings, and every refusal."""

import errno
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from keras_attention.models import CharacterTokenizer, Pipeline, Result, Seq2Seq, list_presets
from keras_attention.models.pipeline import PRETRAINED
from keras_attention.models.tokenizers import load_tokenizer, save_tokenizer
from keras_attention.training import cli
from keras_attention.training.callbacks import Checkpoints
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import list_recipes
from keras_attention.training.train import _begin_with

RECIPE = """# Short strings, reversed.
seed = 3

[source_tokenizer]
byte_fallback = false

[target_tokenizer]
byte_fallback = false

[model]
units = 8
dropout = 0.1

[training]
epochs = 2
token_budget = 256
learning_rate = 0.01
patience = 5

[decoding]
max_length = 7
max_source_length = 23
"""


def words(count, seed):
    generator = random.Random(seed)
    return ["".join(generator.choices("abc", k=generator.randint(3, 6))) for _ in range(count)]


def write_tsv(path, sources):
    path.write_text("".join(f"{source}\t{source[::-1]}\n" for source in sources), encoding="utf-8")


def ask(*arguments, **options):
    """What `keras-attention ARGUMENTS` does; an exception that it does not show as a sentence is raised here."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(*arguments, **options):
    """The one sentence with which bad input is refused."""
    result = ask(*arguments, **options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    last = result.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("Error: ") and len(last) > 20
    return last


def succeed(*arguments, **options):
    result = ask(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def snapshot(folder):
    """Every file's bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def history_of(run):
    return json.loads((run / "history.json").read_text(encoding="utf-8"))


def train(place, run, *more):
    return ["train", place / "tiny.toml", "--data", place / "data", "--out", run, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, a recipe, and `run`, trained by the command line."""
    place = tmp_path_factory.mktemp("cli")
    (place / "data").mkdir()
    write_tsv(place / "data" / "train.tsv", words(61, seed=1))
    write_tsv(place / "data" / "dev.tsv", words(11, seed=2))
    (place / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    (place / "log").write_text(succeed(*train(place, place / "run")).output, encoding="utf-8")
    return place


@pytest.fixture
def run(place, loaded, monkeypatch):
    """The trained run; nobody may change it, and it is loaded once."""
    original = Pipeline.load

    def load(folder):
        return loaded if Path(folder) == place / "run" else original(folder)

    monkeypatch.setattr(Pipeline, "load", load)
    return place / "run"


@pytest.fixture(scope="module")
def loaded(place):
    return Pipeline.load(place / "run")


@pytest.fixture
def copied(place, tmp_path):
    """A copy of the trained run, to be damaged."""
    return shutil.copytree(place / "run", tmp_path / "run")


# Training


def test_the_run_s_folder_holds_everything(place, run):
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    expected = {
        *("recipe.json", "source.tokenizer.json", "target.tokenizer.json", "model.keras", "pipeline.json"),
        *("history.json", "metrics.json", "plots/history.png", "plots/alignment.png", "logs/train", "logs/validation"),
        *("checkpoints/best.npz", "checkpoints/epoch-00000.npz", "checkpoints/epoch-00001.npz"),
        *("tokens/corpus.json", "tokens/train.source.ids.npy", "tokens/val.target.ids.npy"),
        *("export/1/saved_model.pb", "export/1/variables/variables.index"),
    }
    assert expected <= names
    assert not [name for name in names if "partial" in name or name.endswith((".tmp", ".part"))]


def test_recipe_history_and_metrics(place, run):
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["name"] == "tiny" and recipe["model"]["units"] == 8 and recipe["init"] is None
    assert recipe["data"]["folder"] == str(place / "data")
    history = history_of(run)
    assert {"loss", "val_loss", "val_exact_match", "val_token_accuracy", "val_perplexity"} <= set(history)
    assert {len(values) for values in history.values()} == {2}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["epochs"] == 2 and metrics["weights"] == "best"
    assert metrics["val_loss"] == pytest.approx(min(history["val_loss"]), rel=1e-5)


def test_what_training_says(place):
    log = (place / "log").read_text(encoding="utf-8")
    assert "parameters; vocabularies of 7 and 7; " in log and "batches an epoch" in log
    assert "val_exact_match" in log
    assert sum("->" in line for line in log.splitlines()) == 2 * 3  # samples after each epoch


def test_a_resumed_run_goes_on(copied, place, no_export):
    before = history_of(copied)
    recipe = place / "tiny.toml"
    succeed("train", recipe, "--out", copied, "--resume", "--set", "training.epochs=3", "--set", "training.samples=0")
    after = history_of(copied)
    assert {name: values[:2] for name, values in after.items()} == before
    assert {len(values) for values in after.values()} == {3}
    assert json.loads((copied / "recipe.json").read_text(encoding="utf-8"))["training"]["epochs"] == 3


def test_resuming_a_finished_run_trains_nothing(copied, place, no_export, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: pytest.fail("trained"))
    before = history_of(copied)
    succeed("train", place / "tiny.toml", "--out", copied, "--resume")
    assert history_of(copied) == before


def test_init_starts_from_a_run_s_weights(place, run, tmp_path, no_export):
    # At this learning rate one epoch moves nothing that float32 shows in the validation loss.
    settings = ("--set", "training.epochs=1", "--set", "training.learning_rate=1e-12", "--set", "model.dropout=0")
    succeed(*train(place, tmp_path / "more", "--init", run, *settings))
    best = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val_loss"]
    assert history_of(tmp_path / "more")["val_loss"] == pytest.approx([best], rel=1e-5)
    for side in ("source", "target"):
        name = f"{side}.tokenizer.json"
        assert (tmp_path / "more" / name).read_bytes() == (run / name).read_bytes()
    recipe = json.loads((tmp_path / "more" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["init"] == str(run)


def test_init_of_another_size(place, run, tmp_path):
    message = refusal(*train(place, tmp_path / "more", "--init", run, "--set", "model.units=10"))
    assert f"The weights in {run} do not fit this model" in message
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("model.attention=scaled_dot", "attention is AdditiveAttention there and ScaledDotProductAttention here"),
        ("model.bidirectional=false", "bidirectional is True there and False here"),
        ("model.order=luong", "order is bahdanau there and luong here"),
        ("model.encoder_layers=2", "encoder_layers is 1 there and 2 here"),
        ("model.cell=lstm", "cell is gru there and lstm here"),
    ],
)
def test_init_of_another_architecture(place, run, tmp_path, setting, difference):
    message = refusal(*train(place, tmp_path / "more", "--init", run, "--set", setting))
    assert f"The weights in {run} do not fit this model: {difference}." in message
    assert not (tmp_path / "more").exists()


def test_init_of_equal_shapes_but_another_score(place, tmp_path):
    """Dot and scaled dot have the same weights, none; only their names tell them apart."""
    sizes = {"source_vocabulary": 7, "target_vocabulary": 7, "units": 8}
    dot, scaled, dropped = (
        Seq2Seq(**sizes, attention=name, dropout=share) for name, share in (("dot", 0), ("scaled_dot", 0), ("dot", 0.5))
    )
    assert [w.shape for w in dot.weights] == [w.shape for w in scaled.weights]
    with pytest.raises(InputError, match="attention is DotProductAttention there and ScaledDotProductAttention here"):
        _begin_with(dot, scaled, tmp_path)
    _begin_with(dot, dropped, tmp_path)
    for ours, theirs in zip(dropped.trainable_weights, dot.trainable_weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


def test_init_with_other_ways_to_read(place, run, tmp_path):
    message = refusal(*train(place, tmp_path / "more", "--init", run, "--set", "target_tokenizer.byte_fallback=true"))
    assert "asks for target_tokenizer.byte_fallback=true, and the tokenizer of the run of --init has false" in message
    assert "give --set target_tokenizer.byte_fallback=false" in message
    assert not (tmp_path / "more").exists()


def test_init_as_a_setting_is_checked_like_the_option(place, run, tmp_path, monkeypatch):
    out = tmp_path / "more"
    assert "There is no pretrained model 'nonsense'" in refusal(*train(place, out, "--set", "init=nonsense"))
    assert "./nonsense is not there" in refusal(*train(place, out, "--set", "init=./nonsense"))
    both = ("--init", run, "--set", "init=dates")
    assert f"--init {run} and init=dates of the recipe exclude each other" in refusal(*train(place, out, *both))
    assert not out.exists()
    begun = []
    monkeypatch.setattr("keras_attention.training.train.train", lambda *arguments: begun.append(arguments[2]) or {})
    succeed(*train(place, out, "--set", f"init={run}"))
    succeed(*train(place, out, "--set", "init=dates"))
    assert begun == [run, PRETRAINED / "dates"]


def test_resuming_does_not_change_what_a_run_began_with(place, run, copied, no_export, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: pytest.fail("trained"))
    before = snapshot(copied)
    resume = ("train", place / "tiny.toml", "--out", copied, "--resume")
    message = refusal(*resume, "--init", run)
    assert f"The run in {copied} was begun without --init, not with {run}: give --resume without --init." in message
    assert snapshot(copied) == before
    recipe = json.loads((copied / "recipe.json").read_text(encoding="utf-8"))
    (copied / "recipe.json").write_text(json.dumps({**recipe, "init": str(run)}), encoding="utf-8")
    succeed(*resume, "--init", run)
    assert f"was begun with --init {run}, not with" in refusal(*resume, "--init", "dates")
    assert json.loads((copied / "recipe.json").read_text(encoding="utf-8"))["init"] == str(run)


@pytest.mark.long
def test_what_fails_after_training_loses_nothing(place, tmp_path, no_export, monkeypatch):
    out, evaluate = tmp_path / "run", keras.Model.evaluate

    def fail(*arguments, **options):
        if "_use_cached_eval_dataset" in options:  # of an epoch
            return evaluate(*arguments, **options)
        raise OSError("no memory left.")

    monkeypatch.setattr(keras.Model, "evaluate", fail)
    message = refusal(*train(place, out))
    assert f"Training is done and kept in {out}" in message and "no memory left. Put that right" in message
    assert len(history_of(out)["val_loss"]) == 2 and not (out / "metrics.json").exists()
    monkeypatch.setattr(keras.Model, "evaluate", evaluate)
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: pytest.fail("trained"))
    succeed("train", place / "tiny.toml", "--out", out, "--resume")
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["epochs"] == 2


def interrupt(monkeypatch, epoch, error):
    """Lets the checkpoint at an epoch's end raise an error; returns how to undo that."""
    original = Checkpoints.on_epoch_end

    def on_epoch_end(self, number, logs=None):
        if number == epoch:
            raise error
        original(self, number, logs)

    monkeypatch.setattr(Checkpoints, "on_epoch_end", on_epoch_end)
    return lambda: monkeypatch.setattr(Checkpoints, "on_epoch_end", original)


@pytest.mark.long
def test_an_interrupted_run_resumes_to_the_uninterrupted_history(place, run, tmp_path, monkeypatch, no_export):
    monkeypatch.chdir(tmp_path)
    undo = interrupt(monkeypatch, 1, KeyboardInterrupt)
    result = ask("train", place / "tiny.toml", "--data", place / "data")
    undo()
    assert result.exit_code == 130
    assert f"Stopped. Go on with: keras-attention train {place / 'tiny.toml'} --out runs/tiny --resume" in result.stderr
    assert not Path("runs/tiny/model.keras").exists()
    succeed("train", place / "tiny.toml", "--resume")
    assert history_of(tmp_path / "runs" / "tiny") == history_of(run)
    with (
        np.load("runs/tiny/checkpoints/epoch-00001.npz") as ours,
        np.load(run / "checkpoints" / "epoch-00001.npz") as theirs,
    ):
        names = [name for name in theirs.files if name != "state"]
        assert len(names) > 20 and all(np.array_equal(ours[name], theirs[name]) for name in names)


def test_a_full_disk_keeps_the_checkpoint_before(place, copied, monkeypatch, no_export):
    before = snapshot(copied)

    def savez(file, **arrays):
        file.write(b"PK, and then the disk is full")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    settings = ("--set", "training.epochs=3", "--set", "training.samples=0")
    message = refusal("train", place / "tiny.toml", "--out", copied, "--resume", *settings)
    assert "No space left on device" in message and str(copied / "checkpoints") in message and "--resume" in message
    after = snapshot(copied)
    del before[Path("recipe.json")], after[Path("recipe.json")]  # has the third epoch now
    logs = {path for path in after if path.parts[0] == "logs"}
    assert {path: content for path, content in after.items() if path not in logs} == {
        path: content for path, content in before.items() if path.parts[0] != "logs"
    }


def test_the_default_folder_is_numbered_if_taken(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []

    def note(recipe, out, *arguments):
        out.mkdir(parents=True)
        folders.append(out.as_posix())
        return {"epochs": 0}

    monkeypatch.setattr("keras_attention.training.train.train", note)
    for _ in range(3):
        succeed("train", place / "tiny.toml", "--data", place / "data")
    assert folders == ["runs/tiny", "runs/tiny-2", "runs/tiny-3"]
    assert cli.default_out("tiny", resume=True).as_posix() == "runs/tiny-3"
    assert cli.default_out("other", resume=True).as_posix() == "runs/other"


def test_a_folder_that_is_taken_stays_as_it_is(place, copied):
    before = snapshot(copied)
    message = refusal(*train(place, copied))
    assert str(copied) in message and "--resume" in message
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--set", "training.epoch=3"], "unknown key 'epoch' in [training]"),
        (["--set", "training.epochs=three"], "training.epochs must be int. Received: 'three'"),
        (["--set", "epochs"], "--set expects SECTION.KEY=VALUE"),
        (["--set", "data.source=x"], "exclude each other"),
        (["--set", "data.pair=en"], "data.pair should be two different suffixes"),
        (["--set", "source_tokenizer.kind=bpe"], "[source_tokenizer] vocabulary_size must be at "),
        (["--set", "data.max_source_length=1"], "raise the limits"),
        (["--init", "nonsense"], "There is no pretrained model 'nonsense'"),
        (["--init", "./nonsense"], "./nonsense is not there: expected the folder of a run"),
    ],
)
def test_bad_options_of_train_leave_no_folder_behind(place, tmp_path, more, expected):
    assert expected in refusal(*train(place, tmp_path / "new", *more))
    assert not (tmp_path / "new").exists()


def test_data_that_is_wrong_leaves_no_folder_behind(place, tmp_path):
    recipe, out = place / "tiny.toml", ("--out", tmp_path / "new")
    assert "needs data: give --data DIR" in refusal("train", recipe, *out)
    assert "which is not there" in refusal("train", recipe, "--data", tmp_path / "missing", *out)
    assert "which is a file" in refusal("train", recipe, "--data", recipe, *out)
    assert "has no train data" in refusal("train", recipe, "--data", place, *out)
    half = ("--set", f"data.target={place / 'data' / 'train.tsv'}")
    assert "give both files" in refusal("train", recipe, *half, *out)
    (tmp_path / "train.tsv").write_text("a\tb\nc\n", encoding="utf-8")
    assert f"{tmp_path / 'train.tsv'}, line 2" in refusal("train", recipe, "--data", tmp_path, *out)
    assert not (tmp_path / "new").exists()


def test_recipes_that_are_wrong(tmp_path):
    assert "There is no recipe 'nonsense'; known: " in refusal("train", "nonsense")
    (tmp_path / "bad.toml").write_text("units = \n", encoding="utf-8")
    assert "is not valid TOML" in refusal("train", tmp_path / "bad.toml")


def test_resuming_what_cannot_be_resumed(place, copied, tmp_path):
    assert "nothing to resume" in refusal("train", place / "tiny.toml", "--out", tmp_path / "none", "--resume")
    assert "by the recipe tiny, not dates" in refusal("train", "dates", "--out", copied, "--resume")
    for damage in ("[]", '{"name": '):
        (copied / "recipe.json").write_text(damage, encoding="utf-8")
        message = refusal("train", place / "tiny.toml", "--out", copied, "--resume")
        assert f"{copied / 'recipe.json'} is damaged" in message


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("checkpoints/epoch-00001.npz", "Delete it"),
        ("tokens/train.source.ids.npy", "delete"),
        ("tokens/corpus.json", "delete"),
    ],
)
def test_resuming_from_a_truncated_file(place, copied, name, remedy):
    cut(copied / name)
    before = snapshot(copied)
    message = refusal("train", place / "tiny.toml", "--out", copied, "--resume")
    assert str(copied / name) in message and remedy in message
    assert snapshot(copied) == before


@pytest.mark.parametrize("names", ["*", "corpus.json", "train.source.*"])
def test_tokens_that_are_deleted_are_made_again(place, copied, no_export, monkeypatch, names):
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: pytest.fail("trained"))
    before = snapshot(copied / "tokens")
    for path in list((copied / "tokens").glob(names)):
        path.unlink()
    assert snapshot(copied / "tokens") != before
    succeed("train", place / "tiny.toml", "--out", copied, "--resume")
    assert snapshot(copied / "tokens") == before


def test_without_its_best_checkpoint_the_last_one_is_taken(place, copied, no_export, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: pytest.fail("trained"))
    (copied / "checkpoints" / "best.npz").unlink()
    succeed("train", place / "tiny.toml", "--out", copied, "--resume")
    metrics = json.loads((copied / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["val_loss"] == pytest.approx(history_of(copied)["val_loss"][-1], rel=1e-5)
    assert metrics["val_exact_match"] == history_of(copied)["val_exact_match"][-1]


def test_a_run_stopped_before_its_first_checkpoint_still_begins_with_init(place, run, tmp_path, monkeypatch):
    seen = []

    def fit(model, *arguments, **options):
        seen.append([keras.ops.convert_to_numpy(weight) for weight in model.weights])
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", fit)
    first = ask(*train(place, tmp_path / "more", "--init", run))
    second = ask("train", place / "tiny.toml", "--out", tmp_path / "more", "--resume")
    assert (first.exit_code, second.exit_code) == (130, 130)
    theirs = Pipeline.load(run).model.weights
    for ours in seen:
        assert all(np.array_equal(a, keras.ops.convert_to_numpy(b)) for a, b in zip(ours, theirs, strict=True))
    assert len(seen) == 2


# Lists


def test_recipes():
    lines = succeed("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == list(list_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_models():
    lines = succeed("models").output.splitlines()
    assert [line.split()[0] for line in lines] == list_presets()
    for name in list_presets():
        assert succeed("models", name).output.startswith(f"# {name}")
    assert "There is no pretrained model 'nonsense'; known: " in refusal("models", "nonsense")


# Evaluating


def test_evaluate_one_tsv_and_two_files(place, run, tmp_path):
    tsv = place / "data" / "dev.tsv"
    scores = json.loads(succeed("evaluate", run, tsv, "--json").stdout)
    assert {"pairs", "exact_match", "token_accuracy", "perplexity"} <= set(scores)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert scores["pairs"] == 11 and scores["beam_width"] == 1
    for name in ("token_accuracy", "perplexity", "exact_match"):
        assert scores[name] == pytest.approx(metrics[f"val_{name}"], rel=1e-5)

    rows = [line.split("\t") for line in tsv.read_text(encoding="utf-8").splitlines()]
    for side in (0, 1):
        (tmp_path / f"side{side}").write_text("".join(f"{row[side]}\n" for row in rows), encoding="utf-8")
    again = json.loads(succeed("evaluate", run, tmp_path / "side0", tmp_path / "side1", "--json").stdout)
    assert {**again, "seconds": 0} == {**scores, "seconds": 0}


def test_evaluate_counts_texts_that_are_right(run, tmp_path):
    sources = words(5, seed=7)
    answers = succeed("predict", run, *sources).stdout.splitlines()
    targets = answers[:3] + ["not this", "nor this"]
    lines = [f"{source}\t{target}\n" for source, target in zip(sources, targets, strict=True)]
    (tmp_path / "some.tsv").write_text("".join([*lines, "\tempty\n"]), encoding="utf-8")
    output = succeed("evaluate", run, tmp_path / "some.tsv").stdout
    shown = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert (shown["pairs"], shown["skipped"], shown["exact_match"]) == ("5", "1", "0.6000")


def test_evaluate_refuses(place, run, tmp_path):
    tsv = place / "data" / "dev.tsv"
    assert str(tmp_path / "none") in refusal("evaluate", run, tmp_path / "none")
    (tmp_path / "short").write_text("one\n", encoding="utf-8")
    assert f"{tmp_path / 'short'} has 1" in refusal("evaluate", run, tsv, tmp_path / "short")
    (tmp_path / "long.tsv").write_text("ab\tba\n" + "a" * 29 + "\tb\n", encoding="utf-8")
    message = refusal("evaluate", run, tmp_path / "long.tsv")
    assert str(tmp_path / "long.tsv") in message and "at most 23 pieces" in message and "29" in message
    assert "--beam" in refusal("evaluate", run, tsv, "--beam", "0")


# Predicting


TEXTS = ["abc", "ca", "bbac"]


def test_predict_prints_a_line_for_each_input_in_order(run):
    lines = succeed("predict", run, *TEXTS).stdout.splitlines()
    assert lines == [result.text for result in Pipeline.load(run)(TEXTS)]
    assert [succeed("predict", run, text).stdout for text in TEXTS] == [f"{line}\n" for line in lines]


def test_predict_reads_standard_input(run):
    expected = succeed("predict", run, *TEXTS).stdout
    assert succeed("predict", run, "-", input="\n".join(TEXTS)).stdout == expected
    assert succeed("predict", run, "-", input="\r\n".join([*TEXTS, ""])).stdout == expected
    assert succeed("predict", run, input="\n".join([*TEXTS, ""])).stdout == expected


def test_an_empty_line_has_an_empty_answer(run):
    first, middle, last = succeed("predict", run, "-", input="abc\n\nabc\n").stdout.split("\n")[:3]
    assert first == last and middle == ""


def test_predict_without_any_line(run):
    assert succeed("predict", run, "-", input="").stdout == ""
    assert json.loads(succeed("predict", run, "--json", input="").stdout) == {"results": []}


def test_bytes_that_are_no_text_and_unknown_characters_get_an_answer(run):
    assert len(succeed("predict", run, "-", input=b"a\xff\nzz\xea\xb0\x80\n").stdout.splitlines()) == 2


def test_an_input_of_several_lines_is_one_input(run):
    assert len(json.loads(succeed("predict", run, "ab\ncd", "--json").stdout)["results"]) == 1
    assert len(succeed("predict", run, "ab\ncd").stdout.splitlines()) == 1


def test_an_answer_of_several_lines_is_printed_as_one(run, monkeypatch, capsys):
    result = Pipeline.load(run)(["abc"])[0]
    object.__setattr__(result, "text", "ab\r\ncd\n")
    cli._print_results([result, result], ranked=False, attention=False, as_json=False)
    assert capsys.readouterr().out == "ab  cd \n" * 2


def test_predict_as_json(run):
    answer = json.loads(succeed("predict", run, "abc", "한", "--json", "--nbest", "3").stdout)
    assert list(answer) == ["results"] and len(answer["results"]) == 2
    first = answer["results"][0]
    assert first["source_pieces"] == ["a", "b", "c"] and len(first["alternatives"]) == 2
    weights = np.array(first["attention"])
    assert weights.shape == (len(first["target_pieces"]), 3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_nbest(run):
    lines = succeed("predict", run, "abc", "--nbest", "3").stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    scores = [float(score) for score, _ in rows]
    assert len(rows) == 3 and rows[0][1] and scores == sorted(scores, reverse=True)
    assert len({text for _, text in rows}) == 3
    assert succeed("predict", run, "abc", "--beam", "3").stdout == f"{rows[0][1]}\n"


def test_attention_as_a_table(run):
    result = Pipeline.load(run)(["a b"])[0]
    lines = succeed("predict", run, "a b", "--attention").stdout.splitlines()
    assert lines[0] == result.text
    assert lines[1].split() == ["a", "<unk>", "b"] and len(lines) > 3
    assert [line.split(" ")[0] for line in lines[2:]] == [piece.replace(" ", "␣") for piece in result.target_pieces]


def test_the_shaded_table():
    attention = np.array([[0.0, 0.19, 0.81], [1.0, 0.4, 0.2]])
    answer = Result("x  ", 0.0, 0.0, ["a", "가", "bc"], ["x", "  "], attention, [4, 5])
    assert cli.shaded_table(answer).split("\n") == ["   a 가 bc", "x       ██", "␣␣ █ ▒▒ ░░"]
    of_features = Result("x ", 0.0, 0.0, [], ["x", " "], np.eye(2), [4, 5])  # as many steps as pieces
    assert cli.shaded_table(of_features).split("\n")[0] == "  0 1"


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(cli, "_on_terminal", lambda: True)


def test_a_terminal_is_asked_line_by_line(run, monkeypatch):
    on_a_terminal(monkeypatch)
    expected = succeed("predict", run, "abc", "ca").stdout.splitlines()
    shown = succeed("predict", run, input="abc\nca\n\nbb\n").stdout.splitlines()
    assert shown == ["> abc", expected[0], "> ca", expected[1], "> "]


def test_the_end_of_the_input_ends_the_questions_quietly(run, monkeypatch):
    on_a_terminal(monkeypatch)
    result = succeed("predict", run, input="abc\n")
    assert "Aborted" not in result.output and result.stderr == ""


def test_a_mistake_does_not_end_the_questions(run, monkeypatch):
    on_a_terminal(monkeypatch)
    result = succeed("predict", run, input="a" * 29 + "\nabc\n")
    assert "at most 23 pieces" in result.stderr
    assert succeed("predict", run, "abc").stdout in result.stdout


def test_predict_refuses(run):
    message = refusal("predict", run, "abc", "d" * 29)
    assert "at most 23 pieces" in message and "input 1 has 29" in message and "'ddd" in message
    for option in ("--beam", "--nbest"):
        assert option in refusal("predict", run, "abc", option, "0")


# Pictures and SavedModels


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("new/c.png", b"\x89PNG")])
def test_plot(run, tmp_path, name, begins):
    output = succeed("plot", run, "abc", tmp_path / name).stdout
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert output.splitlines() == [Pipeline.load(run)(["abc"])[0].text, str(tmp_path / name)]


def test_plot_refuses(run, tmp_path):
    for name in ("a.pdf", "png", "a.png.txt"):
        assert "must end in .png or .svg" in refusal("plot", run, "abc", tmp_path / name)
    assert "The answer to '' is empty" in refusal("plot", run, "", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.release
def test_export_counts_versions(run, tmp_path):
    assert succeed("export", run, tmp_path / "model").stdout == f"{tmp_path / 'model' / '1'}\n"
    assert succeed("export", run, tmp_path / "model").stdout == f"{tmp_path / 'model' / '2'}\n"
    assert (tmp_path / "model" / "2" / "saved_model.pb").exists()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file" in refusal("export", run, tmp_path / "file")


# Runs that are none, or damaged


def test_a_folder_that_is_no_run(tmp_path):
    message = refusal("predict", tmp_path, "abc")
    assert str(tmp_path) in message and "pipeline.json is missing" in message
    assert "is not there" in refusal("predict", tmp_path / "none", "abc")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file" in refusal("predict", tmp_path / "file", "abc")


def test_a_name_that_is_no_pretrained_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal("predict", "mine", "abc")
    assert "There is no pretrained model 'mine'; known: " in message and "./mine" not in message
    (tmp_path / "mine").mkdir()
    assert refusal("predict", "mine", "abc").endswith("For the folder here write ./mine.")


@pytest.mark.parametrize("name", ["model.keras", "source.tokenizer.json", "target.tokenizer.json", "pipeline.json"])
def test_a_truncated_file_is_named(copied, name):
    cut(copied / name)
    message = refusal("predict", copied, "abc")
    assert str(copied / name) in message and "not found" not in message.lower()


@pytest.mark.parametrize("name", ["model.keras", "source.tokenizer.json", "target.tokenizer.json", "pipeline.json"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    message = refusal("predict", copied, "abc")
    assert str(copied) in message and name in message


def test_a_tokenizer_of_another_vocabulary(copied):
    path = copied / "source.tokenizer.json"
    assert load_tokenizer(path).vocabulary_size == 7
    save_tokenizer(CharacterTokenizer("abcdefg", byte_fallback=False), path)
    message = refusal("predict", copied, "abc")
    assert (
        str(copied) in message
        and "source tokenizer does not belong to this model" in message
        and "7 ids" in message
        and "has 11" in message
    )


def test_decoding_options_that_are_unknown(copied):
    (copied / "pipeline.json").write_text('{"decoding": {"beams": 3}}', encoding="utf-8")
    message = refusal("predict", copied, "abc")
    assert "beams" in message and "beam_width" in message


# A fresh process


def test_help_in_a_fresh_process():
    command = [sys.executable, "-m", "keras_attention.training.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for verb in ("recipes", "models", "train", "evaluate", "predict", "plot", "export"):
        assert f"  {verb} " in result.stdout
