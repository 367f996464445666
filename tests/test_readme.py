"""The README's samples, run as they stand, and what they promise."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, randomize

import keras_attention
from keras_attention import AdditiveAttention
from keras_attention.models import Transformer


def sample(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(name):
        names = {"__name__": "sample"}
        exec(compile(sample(name), f"README: {name}", "exec"), names)
        return names

    return run


def test_the_layer_sample_and_its_promises(run):
    names = run("layer")
    model, ids, queries = names["model"], names["ids"], names["queries"]
    randomize(model)
    names["reloaded"].set_weights(model.get_weights())
    outputs, weights = model.predict([ids, queries], verbose=0)
    assert np.all(weights[np.broadcast_to((ids == 0)[:, None], weights.shape)] == 0)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    for one, two in zip(names["reloaded"].predict([ids, queries], verbose=0), (outputs, weights), strict=True):
        np.testing.assert_array_equal(one, two)

    # What padding is embedded to changes nothing, not even if it is NaN.
    (embedding,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Embedding))
    for value in (100.0, np.nan):
        matrix = embedding.embeddings.numpy()
        matrix[0] = value
        embedding.embeddings.assign(matrix)
        for one, two in zip(model.predict([ids, queries], verbose=0), (outputs, weights), strict=True):
            np.testing.assert_array_equal(one, two)

    # A row that may attend to nothing gives zeros.
    _, nothing = model.predict([ids * 0, queries], verbose=0)
    assert np.all(nothing == 0)
    (layer,) = (layer for layer in model.layers if isinstance(layer, AdditiveAttention))
    assert np.all(layer(queries, embedding(ids * 0)).numpy() == 0)


def test_the_sample_of_an_own_score(run):
    layer = run("own")["DistanceAttention"]()
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    context, weights = layer(x, x * 50, return_attention_scores=True)
    assert context.shape == (2, 3, 5)
    np.testing.assert_allclose(weights.numpy().sum(-1), 1, atol=1e-6)


def test_the_sample_of_recorded_scores(run):
    scores = run("record")["scores"]
    assert [tuple(weights[0].shape) for weights in scores.values()] == [(1, 2, 5, 5), (1, 5)]
    assert [path.split("/", 1)[1] for path in scores] == ["block/self_attention", "pooling"]


def test_what_to_write_instead_of_what_you_have():
    rows = re.findall(r"^\| `(.*?)`.*? \| `(.*?)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = [row for row in rows if "(" in row[1] and ("keras.layers." in row[0] or "Bahdanau" in row[0])]
    assert len(rows) == 5
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype("float32")
    names = {**vars(keras_attention), "keras": keras, "q": x[0, :, :3], "v": x[1], "k": x[2], "hidden": x[0, :, 0]}
    for theirs, ours in rows:
        found = eval(ours, names)
        if "Bahdanau" not in theirs:
            assert found.shape == eval(theirs, names).shape
        if "Multi" in theirs or "Group" in theirs:
            layers = [eval(code[: code.rindex("(")], names) for code in (theirs, ours)]
            for layer in layers:
                layer.build((2, 3, 7), (2, 5, 7))
            randomize(layers[0])
            layers[1].set_weights(layers[0].get_weights())
            outputs = [layer(names["q"], names["v"]) for layer in layers]
            np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


def test_the_seq2seq_sample_learns_saves_generates_and_exports(run, capsys):
    names = run("seq2seq")
    assert len([line for line in sample("seq2seq").splitlines() if line.strip()]) <= 20
    assert names["result"].target_ids == [9, 8, 7, 6, 5, 4]
    assert "[9, 8, 7, 6, 5, 4] (6, 6)" in capsys.readouterr().out
    # The alignment is the anti-diagonal: piece t of the answer is read around piece 5 - t of the source.
    assert np.abs(names["result"].attention.argmax(-1) - np.arange(5, -1, -1)).max() <= 1
    served = tf.saved_model.load("reverse/1").signatures["serving_default"]
    ids = served(tokens=tf.constant([[4, 5, 6, 7, 8, 9]]))["target_ids"].numpy()
    assert ids.tolist() == [[9, 8, 7, 6, 5, 4]]


@pytest.mark.long
def test_a_transformer_stands_in_the_place_of_the_seq2seq_sample_s_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    other = re.search(r"`(Transformer\(14, 14, .*?\))` may\s+stand in its place", text, re.DOTALL).group(1)
    code = re.sub(r"model = Seq2Seq\(.*?\)\n", f"model = {other}\n", sample("seq2seq"))
    names = {"Transformer": Transformer, "__name__": "sample"}
    keras.utils.set_random_seed(1)
    exec(compile(code, "README: seq2seq", "exec"), names)
    assert isinstance(names["model"], Transformer) and names["result"].target_ids == [9, 8, 7, 6, 5, 4]


@pytest.mark.long
def test_the_sample_of_a_language_model(run, capsys):
    keras.utils.set_random_seed(1)  # the sample draws its weights as they come
    names = run("language_model")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] in (" sat on the mat, the", ". the cat sat on the")  # both stand behind "the cat" in the text
    parts = list(names["pipeline"].stream("the rat", temperature=0.8, max_length=40))
    assert printed[-1] == "".join(parts) and len(printed[-1]) == 40
    assert set(names["text"].split()) & set(printed[-1].split()) >= {"the"}
