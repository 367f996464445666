"""Ensembles: the mean of logits, in a call, a loss, a search and from the command line; every refusal."""

import json
import shutil

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import randomize, to_numpy
from keras import ops

from keras_attention.models import (
    CharacterTokenizer,
    Ensemble,
    LanguageModel,
    Pipeline,
    Seq2Seq,
    Transformer,
    beam_search,
    ensemble,
)
from keras_attention.training import cli
from keras_attention.training.losses import MaskedCrossEntropy

X = {"source": np.array([[4, 5, 6], [7, 8, 0]]), "target": np.array([[2, 4, 5, 6], [2, 7, 0, 0]])}
Y = np.array([[4, 5, 6, 3], [7, 3, 0, 0]])
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="text")


def members():
    sizes = {"width": 8, "num_heads": 2, "feed_forward_units": 8, "encoder_layers": 1, "decoder_layers": 1}
    models = [
        Seq2Seq(11, 13, units=8),
        Seq2Seq(11, 13, units=4, embedding_width=6, tie_embeddings=False, order="luong"),
        Transformer(11, 13, position="learned", max_length=7, **sizes),
        Transformer(11, 13, share_embeddings=False, dtype="mixed_bfloat16", **sizes),
    ]
    return [randomize(model, scale=0.6) for model in models]


def log_probabilities(logits):
    return to_numpy(ops.log_softmax(ops.cast(logits, "float32"), axis=-1))


@pytest.mark.backends
def test_probabilities_are_the_normalised_geometric_mean():
    models = members()
    alone = [log_probabilities(model(X)) for model in models]
    for count, tolerance in ((3, 1e-5), (4, 2e-2)):  # the last one computes in bfloat16
        mean = np.mean(alone[:count], axis=0)
        expected = mean - np.log(np.exp(mean).sum(-1, keepdims=True))
        np.testing.assert_allclose(log_probabilities(Ensemble(models[:count])(X)), expected, atol=tolerance)


@pytest.mark.backends
def test_an_ensemble_of_copies_is_the_model():
    model = members()[0]
    copies = [keras.models.clone_model(model) for _ in range(3)]
    for copy in copies:
        copy.set_weights(model.get_weights())
    joined = Ensemble(copies)
    np.testing.assert_allclose(to_numpy(joined(X)), to_numpy(model(X)), atol=1e-5)
    one, all_three = (beam_search(m, m.encode({"source": X["source"]}), 6, beam_width=3) for m in (model, joined))
    np.testing.assert_array_equal(to_numpy(one.ids), to_numpy(all_three.ids))
    np.testing.assert_allclose(to_numpy(one.scores), to_numpy(all_three.scores), atol=1e-5)
    np.testing.assert_allclose(to_numpy(one.attention), to_numpy(all_three.attention), atol=1e-5)


@pytest.mark.long
@pytest.mark.backends
def test_it_has_the_losses_of_its_logits_and_trains_all_models():
    joined = Ensemble(members()[1:3])
    expected = MaskedCrossEntropy()(Y, joined(X))
    before = [to_numpy(model.output_weights()[0]).copy() for model in joined.models]
    joined.compile(keras.optimizers.Adam(0.01), MaskedCrossEntropy(), jit_compile=False)
    assert abs(joined.evaluate(X, Y, verbose=0) - float(to_numpy(expected))) < 1e-5
    losses = joined.fit(X, Y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for model, old in zip(joined.models, before, strict=True):
        assert not np.array_equal(to_numpy(model.output_weights()[0]), old)


@pytest.mark.tensorflow_first
@pytest.mark.backends
def test_its_limits_are_the_least_of_its_models():
    models = members()
    joined = Ensemble(models)
    assert joined.max_target_length == joined.max_source_length == 7
    memory = joined.encode({"source": X["source"]})
    np.testing.assert_array_equal(to_numpy(joined.room(memory)), [7, 7])
    assert to_numpy(beam_search(joined, memory, 12, beam_width=2).lengths).max() <= 7
    free = Ensemble(models[:2])
    assert free.max_target_length is None and free.room(free.encode({"source": X["source"]})) is None


@pytest.mark.backends
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ensemble([]), "two or more models. Received: 0"),
        (lambda: Ensemble(members()[:1]), "two or more models. Received: 1"),
        (lambda: Ensemble([members()[0]] * 2), "one of them more than once"),
        (lambda: Ensemble([members()[0], Seq2Seq(11, 12, units=8)]), r"target_vocabulary of \[13, 12\]"),
        (lambda: Ensemble([members()[0], Seq2Seq(12, 13, units=8)]), r"source_vocabulary of \[11, 12\]"),
        (
            lambda: Ensemble([members()[0], LanguageModel(vocabulary=13, width=8, num_heads=2, layers=1)]),
            "Received: a LanguageModel",
        ),
        (lambda: Ensemble([members()[0], keras.Sequential()]), "Received: a Sequential"),
        (lambda: Ensemble([members()[0], Ensemble(members()[:2])]), "Received: a Ensemble"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.backends
def test_models_that_were_compiled_are_saved_without_that(tmp_path):
    joined = Ensemble(members()[1:3])
    for model in joined.models:
        model.compile("adam", MaskedCrossEntropy(), jit_compile=False)
    joined.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert [model.compiled for model in loaded.models] == [False, False]
    np.testing.assert_array_equal(to_numpy(loaded(X)), to_numpy(joined(X)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three pipelines' folders: two with the same tokenizers, one with another."""
    folder = tmp_path_factory.mktemp("runs")
    for number, letters in enumerate(["abc", "abc", "abd"]):
        tokenizer = CharacterTokenizer.learn([letters], byte_fallback=False)
        model = randomize(Seq2Seq(tokenizer.vocabulary_size, tokenizer.vocabulary_size, units=8), seed=number)
        pipeline = Pipeline(model, tokenizer, tokenizer, beam_width=2, max_length=6)
        pipeline.terms = f"Terms of {letters}."
        pipeline.save(folder / str(number))
    return folder


def ask(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.long
@on_tensorflow
def test_the_command_line_joins_runs(runs, tmp_path):
    out = tmp_path / "joined" / "both"
    result = ask("ensemble", runs / "0", runs / "1", out)
    assert result.exit_code == 0, result.output
    pipelines = [Pipeline.load(runs / name) for name in "01"]
    loaded, built = Pipeline.load(out), ensemble(pipelines)
    assert loaded.options == pipelines[0].options and loaded.terms == "Terms of abc."
    answers = [[(a.text, a.score) for a in pipeline(["abc", "cab"])] for pipeline in (loaded, built)]
    assert [text for text, _ in answers[0]] == [text for text, _ in answers[1]]
    np.testing.assert_allclose([s for _, s in answers[0]], [s for _, s in answers[1]], rtol=1e-5)
    predicted = json.loads(ask("predict", out, "abc", "--json").stdout)["results"][0]
    assert predicted["text"] == answers[0][0][0] and len(predicted["attention"][0]) == 3
    (tmp_path / "pairs.tsv").write_text("abc\tcba\nca\tac\n", encoding="utf-8")
    scores = json.loads(ask("evaluate", out, tmp_path / "pairs.tsv", "--json").stdout)
    assert scores["pairs"] == 2 and np.isfinite(scores["perplexity"])
    assert ask("plot", out, "abc", tmp_path / "picture.png").exit_code == 0
    assert list(tmp_path.joinpath("joined").iterdir()) == [out]  # nothing temporary is left
    beside = json.loads(ask("evaluate", out, tmp_path / "pairs.tsv", "--json", "--compare", runs / "0").stdout)
    assert set(beside["runs"]) == {"both", "0"}
    again = ask("train", "dates", "--resume", "--out", out)
    assert again.exit_code == 2 and "nothing to resume" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.long
@on_tensorflow
def test_words_and_columns_are_those_of_the_first_run(runs, tmp_path):
    for name in "01":
        shutil.copytree(runs / name, tmp_path / name)
        data = {"data": {"columns": [2, 1], "bleu_tokenize": "none"}}
        (tmp_path / name / "recipe.json").write_text(json.dumps(data), encoding="utf-8")
    assert ask("ensemble", tmp_path / "0", tmp_path / "1", tmp_path / "both").exit_code == 0
    (tmp_path / "pairs.tsv").write_text("abc\tcba\nca\tac\n", encoding="utf-8")
    (tmp_path / "turned.tsv").write_text("cba\tabc\nac\tca\n", encoding="utf-8")
    one = json.loads(ask("evaluate", tmp_path / "both", tmp_path / "turned.tsv", "--json").stdout)
    assert "tok:none" in one["bleu_signature"]
    other = json.loads(ask("evaluate", tmp_path / "both", tmp_path / "pairs.tsv", "--json").stdout)
    pipeline = Pipeline.load(tmp_path / "both")
    for scores, sources in ((one, ["abc", "ca"]), (other, ["cba", "ac"])):
        right = [answer.text == text[::-1] for answer, text in zip(pipeline(sources), sources, strict=True)]
        assert scores["exact_match"] == np.mean(right)
    assert one["perplexity"] != other["perplexity"]


@on_tensorflow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "new"], "two or more models. Received: 1"),
        (["0", "1", "2"], "2 is there already: ensemble expects a new folder DIR behind the RUNs"),
        (["0", "0", "new"], "ensemble expects different RUNs. Received: "),
        (["0", "1/../0", "new"], "ensemble expects different RUNs. Received: "),
        (["0", "2", "new/new"], "/2 has another source tokenizer than the first"),
        (["0", "3", "new"], "3 is not there: expected the folder of a run"),
    ],
)
def test_refusals_of_the_command_line(runs, arguments, message):
    before = sorted(path.name for path in runs.iterdir())
    result = ask("ensemble", *(runs / argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert sorted(path.name for path in runs.iterdir()) == before
