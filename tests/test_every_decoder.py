"""Every score, cell and order, and sources of features: what holds for one decoder holds for all of them."""

import json
import os

import keras
import numpy as np
import pytest
from helpers import gradients, marked, randomize, run_python, to_numpy
from keras import ops

from keras_attention.models import CharacterTokenizer, Ensemble, Pipeline, Seq2Seq, Transformer, beam_search, stages
from keras_attention.models.seq2seq import ATTENTIONS
from keras_attention.models.tokenizers import START

LONGEST, F = 20, 3
CONFIGURATIONS = {
    **{name: {"attention": name} for name in ATTENTIONS},
    "additive, luong, lstm": {"order": "luong", "cell": "lstm", "decoder_layers": 2},
    "general, luong, simple_rnn": {"attention": "general", "order": "luong", "cell": "simple_rnn", "encoder_layers": 2},
    "location, luong": {"attention": "location", "order": "luong", "bidirectional": False},
    "cosine, lstm": {"attention": "cosine", "cell": "lstm", "tie_embeddings": False},
    "lexical, luong": {"order": "luong", "lexical": True},
    "lexical, lstm, features": {
        "source_vocabulary": None,
        "source_width": F,
        "cell": "lstm",
        "lexical": True,
        "tie_embeddings": False,
    },
    "concat, gru, 2 layers": {"attention": "concat", "decoder_layers": 2, "bidirectional": False},
    "context at every step": {"attention": None},
    "context at every step, luong, lstm": {"attention": None, "order": "luong", "cell": "lstm"},
    "context in the first state": {"attention": None, "context": "first_state", "cell": "lstm", "decoder_layers": 2},
    "features": {"source_vocabulary": None, "source_width": F},
    "features, luong": {"source_vocabulary": None, "source_width": F, "order": "luong", "attention": "dot"},
    "features, no attention": {"source_vocabulary": None, "source_width": F, "attention": None},
    "features, no encoder, gate": {
        "source_vocabulary": None,
        "source_width": F,
        "encoder_layers": 0,
        "context_gate": True,
        "cell": "lstm",
    },
    "no encoder": {"encoder_layers": 0, "order": "luong", "context_gate": True},
    "no encoder, no attention": {"encoder_layers": 0, "attention": None},
}
TRANSFORMERS = {
    "transformer": {},
    "transformer, shared, learned": {"source_vocabulary": 13, "share_embeddings": True, "position": "learned"},
    "transformer, pre-norm, rotary": {
        "normalize_first": True,
        "normalization": "rms",
        "gated": True,
        "position": "rotary",
        "num_key_value_heads": 1,
        "use_bias": False,
        "decoder_layers": 1,  # compiled and exported below: a layer takes seconds
    },
    "transformer, relative": {"position": "relative", "decoder_layers": 1, "tie_embeddings": False},
    "transformer, alibi": {"position": "alibi", "normalize_first": True, "alignment_layer": 1, "decoder_layers": 3},
    "transformer, features, no encoder": {"source_vocabulary": None, "source_width": F, "encoder_layers": 0},
    "transformer, features": {"source_vocabulary": None, "source_width": F, "position": None},
}
# Two or three of the above, of which one may not attend.
ENSEMBLES = {
    "ensemble": ["general, luong, simple_rnn", "transformer, relative", "context at every step"],
    "ensemble, features": ["features", "transformer, features"],
    "ensemble, no attention": ["context at every step", "no encoder, no attention"],
}
CONFIGURATIONS |= TRANSFORMERS | ENSEMBLES
# Under XLA, and as SavedModel in a fresh process: one of each kind, for the time that it takes.
COMPILED = ["location", "context in the first state", "features", "transformer, pre-norm, rotary", "ensemble"]
EXPORTED = ["features", "transformer, pre-norm, rotary", "ensemble"]  # an RNN that reads text is in test_serving.py
# Searches called eagerly: likewise. (On TensorFlow a pipeline searches with every configuration.)
SEARCHED = ["additive, luong, lstm", "context in the first state", "transformer, pre-norm, rotary"]
# And models called eagerly: on JAX and PyTorch these, the others there before a release.
ELSEWHERE = [*SEARCHED, "lexical, luong", "features, no encoder, gate", "ensemble"]
every_configuration = pytest.mark.parametrize(
    "name",
    [*ELSEWHERE, *marked("tensorflow_first", sorted(set(CONFIGURATIONS) - set(ELSEWHERE)))],
)
# Pipelines, plain and compiled: these in the ordinary tests, those by `make test-long`, all others before a release.
PIPED = ["context in the first state", "features", "transformer, pre-norm, rotary"]
PIPED_LONG = ["additive, luong, lstm", "location", "transformer", "ensemble"]
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="text and SavedModel")
LENGTHS = [5, 2, 7, 1]
MANY = 8  # times the rows, so that in a graph the last ones go on alone
MASK = np.arange(7) < np.array(LENGTHS)[:, None]
TARGET = np.array([[2, 4, 5, 6], [2, 7, 8, 0], [2, 9, 4, 10], [2, 5, 0, 0]])


def make(name, source_vocabulary=11, target_vocabulary=13):
    if name in ENSEMBLES:
        return Ensemble([make(each, source_vocabulary, target_vocabulary) for each in ENSEMBLES[name]])
    if name in TRANSFORMERS:
        sizes = {"width": 8, "num_heads": 2, "feed_forward_units": 11, "encoder_layers": 1, "decoder_layers": 2}
        options = {"source_vocabulary": source_vocabulary, "target_vocabulary": target_vocabulary, **sizes}
        return randomize(Transformer(**{**options, **TRANSFORMERS[name]}), scale=0.6)
    options = {"source_vocabulary": source_vocabulary, "units": 8, "embedding_width": 6, **CONFIGURATIONS[name]}
    if options.get("attention") == "location":
        options["max_source_length"] = LONGEST
    return randomize(Seq2Seq(target_vocabulary=target_vocabulary, **options), scale=0.8)


def has_attention(model):
    if isinstance(model, Ensemble):
        return any(map(has_attention, model.models))
    return isinstance(model, Transformer) or model.decoder.attention is not None


def alignment(model, weights):
    """What `step` returns, [B, T, S], from the weights of a call."""
    if isinstance(model, Ensemble):
        both = zip(model.models, weights, strict=True)
        return np.mean([alignment(each, own) for each, own in both if has_attention(each)], axis=0)
    if isinstance(model, Transformer):
        return to_numpy(weights["cross"][model.alignment_layer]).mean(1)
    return to_numpy(weights)


def source_of(model):
    """What `encode` takes: four rows of 5, 2, 7 and 1 positions."""
    generator = np.random.default_rng(0)
    if model.source_vocabulary is not None:
        return {"source": np.where(MASK, generator.integers(4, model.source_vocabulary, MASK.shape), 0)}
    features = generator.normal(size=(*MASK.shape, F)).astype("float32")
    return {"source": np.where(MASK[:, :, None], features, np.nan), "source_mask": MASK}


def rows_of(model):
    """The same as Pipeline takes it."""
    source = source_of(model)["source"]
    return [row[:length] for row, length in zip(source, LENGTHS, strict=True)]


@pytest.mark.backends
@every_configuration
def test_steps_equal_one_call(name):
    model = make(name)
    x = source_of(model)
    logits, weights = model({**x, "target": TARGET}, return_attention_scores=True)
    np.testing.assert_array_equal(to_numpy(model({**x, "target": TARGET})), to_numpy(logits))
    memory = model.encode(x)
    tokens, state = model.initial_state(memory, 4)
    np.testing.assert_array_equal(to_numpy(tokens), [START] * 4)
    for t in range(4):
        stepped, state, attended = model.step(ops.convert_to_tensor(TARGET[:, t]), t, memory, state)
        real = TARGET[:, t] != 0
        assert np.all(np.isfinite(to_numpy(stepped)))
        np.testing.assert_allclose(to_numpy(stepped)[real], to_numpy(logits)[real, t], atol=1e-5)
        if not has_attention(model):
            assert attended is None
            assert weights == ([None] * len(model.models) if isinstance(model, Ensemble) else None)
        else:
            expected = alignment(model, weights)[:, t]
            np.testing.assert_allclose(to_numpy(attended)[real], expected[real], atol=1e-5)
            assert np.all(expected[~MASK] == 0)


@pytest.mark.backends
@pytest.mark.parametrize("name", [SEARCHED[0], *marked("tensorflow_first", [SEARCHED[1]]), SEARCHED[2]])
def test_a_batch_decodes_like_each_row_alone(name):
    model = make(name)
    x = source_of(model)
    together = beam_search(model, model.encode(x), 6, beam_width=3, num_return=3)
    for row, length in enumerate(LENGTHS):
        alone = {key: part[row : row + 1, :length] for key, part in x.items()}
        one = beam_search(model, model.encode(alone), 6, beam_width=3, num_return=3)
        np.testing.assert_array_equal(to_numpy(one.ids)[0], to_numpy(together.ids)[row])
        np.testing.assert_allclose(to_numpy(one.scores)[0], to_numpy(together.scores)[row], atol=1e-4)
        if has_attention(model):
            expected = to_numpy(together.attention)[row, :, :, :length]
            np.testing.assert_allclose(to_numpy(one.attention)[0], expected, atol=1e-4)


@pytest.mark.backends
@every_configuration
def test_every_weight_has_a_gradient_and_save_and_load_give_equal_outputs(name, tmp_path):
    model = make(name)
    x = {**source_of(model), "target": TARGET}
    weights = model.trainable_weights
    found = gradients(lambda: ops.mean(ops.square(model(x))), [], weights)
    assert [w.path for w, gradient in zip(weights, found, strict=True) if gradient is None or not gradient.any()] == []
    assert all(np.all(np.isfinite(gradient)) for gradient in found)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))
    assert loaded.get_config().keys() == model.get_config().keys()


@on_tensorflow
@pytest.mark.parametrize(
    "name",
    [
        *PIPED,
        *marked("long", PIPED_LONG),
        *marked("release", sorted(set(CONFIGURATIONS) - {*PIPED, *PIPED_LONG})),
    ],
)
def test_the_pipeline_answers_alike_in_every_batch_plain_and_compiled(name, monkeypatch):
    monkeypatch.setattr(stages, "ROOM", 4)  # compiled buffers of 4 and 8 steps
    monkeypatch.setattr(stages, "FEW", 2)  # where parts of 8 rows begin with 4
    pipeline = Pipeline(make(name), max_length=6, beam_width=3, max_source_length=LONGEST)
    rows = rows_of(pipeline.model)
    rows = 2 * [*rows, rows[0][:0]]
    expected = pipeline(rows, num_return=2)
    assert expected[4].target_ids == []
    for batch_size, jit_compile in ((1, False), (32, True)) if name in COMPILED else ((1, False),):
        results = pipeline(rows, num_return=2, batch_size=batch_size, jit_compile=jit_compile)
        for one, two in zip(results, expected, strict=True):
            assert one.target_ids == two.target_ids
            assert abs(one.score - two.score) < 1e-4
            if two.attention is not None:
                np.testing.assert_allclose(one.attention, two.attention, atol=1e-4)


# Loads SavedModels where nothing of ours is installed, through a v1 session and by their signatures.
ASK = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text
def ask(path):
    inputs = dict(np.load(path + ".npz"))
    inputs = {k: (v.tolist() if v.dtype.kind == "S" else v) for k, v in inputs.items()}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = meta.signature_def["serving_default"]
        feed = {signature.inputs[k].name: v for k, v in inputs.items()}
        answers = {"session": session.run(signature.outputs["target_ids"].name, feed).tolist()}
    loaded = tf.saved_model.load(path)
    for way in ("serving_default", "serving_xla", "serving_nbest"):
        outputs = loaded.signatures[way](**{k: tf.constant(v) for k, v in inputs.items()})
        ids = outputs["target_ids"].numpy()
        answers[way] = (ids[:, 0] if ids.ndim == 3 else ids).tolist()
        answers[way + " names"] = sorted(outputs)
    return answers
answers = [ask(path) for path in sys.argv[1:]]
assert not [name for name in sys.modules if name.startswith("keras_attention")]
print(json.dumps(answers))
"""


@pytest.mark.long
@on_tensorflow
def test_saved_models_answer_like_their_pipelines(tmp_path):
    source, target = CharacterTokenizer.learn(["abcdef"]), CharacterTokenizer("0123456789", byte_fallback=False)
    paths, expected, models = [], [], []
    for place, name in enumerate(EXPORTED):
        model = make(name, source.vocabulary_size, target.vocabulary_size)
        reader = None if model.source_vocabulary is None else source
        pipeline = Pipeline(model, reader, target, max_length=6, beam_width=3)
        if reader is None:
            rows = MANY * rows_of(model)
            features = np.nan_to_num(source_of(model)["source"])
            inputs = {"features": np.tile(features, (MANY, 1, 1)), "source_mask": np.tile(MASK, (MANY, 1))}
        else:
            rows = MANY * ["abc", "fedcba", "", "d"]
            inputs = {"text": np.array([row.encode() for row in rows])}
        paths.append(os.fspath(pipeline.export(tmp_path / str(place))))
        np.savez(paths[-1] + ".npz", **inputs)
        expected.append([result.target_ids for result in pipeline(rows)])
        models.append(model)
        assert len({tuple(ids) for ids in expected[-1]}) > 1
    found = json.loads(run_python(ASK, *paths).splitlines()[-1])
    for name, model, answers, ids in zip(EXPORTED, models, found, expected, strict=True):
        for way in ("session", "serving_default", "serving_xla", "serving_nbest"):
            assert [[i for i in row if i] for row in answers[way]] == ids, (name, way)
        names = answers["serving_default names"]
        assert ("attention" in names) == has_attention(model)
        assert ("source_pieces" in names) == (model.source_vocabulary is not None)


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "inputs", "error", "message"),
    [
        ("location", [[4] * (LONGEST + 1)], ValueError, f"at most {LONGEST} ids. Received: input 0 has {LONGEST + 1}"),
        ("features", [np.full((3, F), np.nan)], ValueError, "input 0 has NaN or infinity at position 0"),
        ("features", [np.ones((3, F + 1))], TypeError, rf"\[length, {F}\].*shape \(3, {F + 1}\)"),
        ("features", ["abc"], TypeError, rf"\[length, {F}\].*input 0"),
        ("features", [np.ones((2000, F))], ValueError, "at most 1024 positions.*has 2000"),
    ],
)
def test_bad_inputs_of_a_pipeline(name, inputs, error, message):
    with pytest.raises(error, match=message):
        Pipeline(make(name))(inputs)


@pytest.mark.backends
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Seq2Seq(11, 13, units=8, attention="location"), "expects max_source_length for attention='location'"),
        (lambda: Seq2Seq(None, 13, units=8), "source_vocabulary=None and source_width=F"),
        (lambda: Seq2Seq(11, 13, units=8, source_width=3), "source_vocabulary=11, source_width=3"),
        (lambda: Seq2Seq(11, 13, units=8, cell="elman"), "one of simple_rnn, gru, lstm. Received: cell='elman'"),
        (lambda: Seq2Seq(11, 13, units=8, context="once"), "one of every_step, first_state.*'once'"),
        (lambda: make("features").encode({"source": np.ones((2, 3, 5))}), r"features \[B, S, 3\].*\(2, 3, 5\)"),
        (lambda: make("dot").encode({"source": np.ones((2, 3, 5))}), r"source ids \[B, S\].*\(2, 3, 5\)"),
        (
            lambda: Seq2Seq(11, 13, units=8, target_embedding=keras.layers.Embedding(13, 5)),
            r"matrix `embeddings` of shape \(13, 8\); received .* with \(13, 5\). Set tie_embeddings=False",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.tensorflow_first
@pytest.mark.backends
def test_embeddings_may_be_any_layer(tmp_path):
    """A frozen matrix for the source, one of another width for the target."""
    source = keras.layers.Embedding(11, 5, trainable=False, embeddings_initializer="orthogonal")
    target = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(13, 4), keras.layers.Dense(7)])
    model = Seq2Seq(11, 13, units=8, source_embedding=source, target_embedding=target, tie_embeddings=False)
    randomize(model)
    x = source_of(model)
    logits = to_numpy(model({**x, "target": TARGET}))
    memory = model.encode(x)
    tokens, state = model.initial_state(memory, 4)
    stepped, _, _ = model.step(tokens, 0, memory, state)
    np.testing.assert_allclose(to_numpy(stepped), logits[:, 0], atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded({**x, "target": TARGET})), logits)
    assert len(model.trainable_weights) == len(loaded.trainable_weights) == len(model.weights) - 1  # the frozen matrix
