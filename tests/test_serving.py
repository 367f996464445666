"""One SavedModel: what every way to ask it answers, and what it needs (nothing of ours, no XLA)."""

import json
import os
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from helpers import randomize, run_python
from test_images import jpeg

from keras_attention.models import (
    CharacterTokenizer,
    ImageCaptioner,
    LanguageModel,
    Pipeline,
    SentencePieceTokenizer,
    Seq2Seq,
    Transformer,
    serving,
)
from keras_attention.training.cli import main
from keras_attention.training.tasks import dates, scenes

# Loads SavedModels where nothing of ours is installed; prints {name: {way: texts as hexadecimal}}.
ASK = """
import json, sys
models, ways = json.load(open(sys.argv[1])), sys.argv[2].split(",")
if "xla_off" in ways:
    import ctypes, importlib.util, os
    folder = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
    getattr(ctypes.CDLL(os.path.join(folder, "libtensorflow_cc.so.2")), "_ZN10tensorflow21DisableXlaCompilationEv")()
import numpy as np
import tensorflow as tf
import tensorflow_text
DRAWN = {"seed": np.int32(3), "temperature": np.float32(0.9), "top_k": np.int32(5), "top_p": np.float32(0.9),
         "max_length": np.int32(7)}
def ask(path, name, inputs):
    answers, inputs = {}, [bytes.fromhex(data) for data in inputs]
    given = {way: {name: inputs, **(DRAWN if way == "serving_sampled" else {})} for way in ways}
    if "session" in ways:
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
            for way in ("serving_default", "serving_sampled"):
                if way in meta.signature_def and way in ways:
                    signature = meta.signature_def[way]
                    feed = {signature.inputs[key].name: value for key, value in given[way].items()}
                    texts = session.run(signature.outputs["text"].name, feed)
                    answers["session, " + way] = [text.hex() for text in texts]
    loaded = tf.saved_model.load(path)
    for way in ways:
        if way in loaded.signatures:
            constants = {key: tf.constant(value) for key, value in given[way].items()}
            texts = loaded.signatures[way](**constants)["text"].numpy()
            answers[way] = [text.hex() for text in (texts[:, 0] if texts.ndim == 2 else texts)]
    if "xla_off" in ways:
        try:
            loaded.signatures["serving_xla"](**{name: tf.constant(inputs)})
            answers["xla"] = "on"
        except Exception as error:
            answers["xla"] = "off"
    return answers
answers = {name: ask(**model) for name, model in models.items()}
assert not [name for name in sys.modules if name.startswith("keras_attention")]
print(json.dumps({"version": tf.__version__, **answers}))
"""
PLAIN = ("session", "serving_default", "serving_sampled")
DRAWN = {"seed": 3, "temperature": 0.9, "top_k": 5, "top_p": 0.9, "max_length": 7}


def fifty_inputs():
    """Held-out dates, an empty text, and one with invalid UTF-8."""
    texts = [example.source.encode() for example in dates.draw(47, seed=11, split="test")]
    return [*texts, b"", b"20 \xff\xfe Nov 2026", "2026년 11월 20일".encode()]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """(pipeline, path of its SavedModel, file of the models to ask, the pipeline's texts as hexadecimal)."""
    folder = tmp_path_factory.mktemp("serving")
    pipeline = Pipeline.from_preset("dates")
    path, inputs = pipeline.export(folder / "dates"), fifty_inputs()
    models = {"dates": {"path": str(path), "name": "text", "inputs": [text.hex() for text in inputs]}}
    (folder / "models.json").write_text(json.dumps(models))
    return pipeline, path, folder / "models.json", hexadecimal(pipeline(inputs, batch_size=7))


def hexadecimal(results):
    return [result.text.encode().hex() for result in results]


def ask(models, *ways, **options):
    return json.loads(run_python(ASK, models, ",".join(ways), **options).splitlines()[-1])


def test_a_fresh_process_and_a_session_answer_like_the_pipeline(shipped):
    answers = ask(shipped[2], "session", "serving_default", "serving_xla", "serving_nbest")["dates"]
    assert len(shipped[3]) == 50
    for way in ("session, serving_default", "serving_default", "serving_xla", "serving_nbest"):
        assert answers[way] == shipped[3], way


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """(file of Transformers, captioners and a language model to ask, {name: {way: what is expected}})."""
    folder = tmp_path_factory.mktemp("every_kind")
    letters, digits = CharacterTokenizer.learn(["abcdefg äö 가나"]), CharacterTokenizer("0123456789-", False)
    sizes = {"width": 8, "num_heads": 2}
    transformer = {**sizes, "feed_forward_units": 11, "encoder_layers": 1, "decoder_layers": 1}
    backbone = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(5, 4, strides=4)]
    decoder = Seq2Seq(None, digits.vocabulary_size, units=8, encoder_layers=0, source_width=5)
    images = [np.full((7 + n, 9, 3), (255, 127 * n, 0), "uint8") for n in range(3)]
    images.append(jpeg(6))  # which is to be turned
    texts = ["abc", "", "가나 gf", "b"]
    size = letters.vocabulary_size
    lines = ["the dog sat on the mat", "der Hund saß auf der Matte", "가나 다라", "abc def"]
    pieces = SentencePieceTokenizer.learn(lines, vocabulary_size=310)
    shared = Transformer(pieces.vocabulary_size, pieces.vocabulary_size, share_embeddings=True, **transformer)
    pipelines = {
        "transformer": (Pipeline(Transformer(size, digits.vocabulary_size, **transformer), letters, digits), texts),
        "transformer of pieces": (Pipeline(shared, pieces, pieces), [*texts, "the Matte € abc", " dog  "]),
        "captioner": (Pipeline(ImageCaptioner(keras.Sequential(backbone), decoder, (8, 8)), None, digits), images),
        "language_model": (Pipeline(LanguageModel(size, **sizes, layers=2, max_length=16), letters, letters), texts),
    }
    models, expected = {}, {}
    for name, (pipeline, _) in pipelines.items():
        randomize(pipeline.model, seed=4, scale=0.6)
        pipeline = Pipeline(pipeline.model, pipeline.source_tokenizer, pipeline.target_tokenizer, max_length=9)
        pipelines[name] = pipeline, pipelines[name][1]
    # A backbone of keras.applications and a Transformer's decoder.
    pipelines["photographs"] = Pipeline.from_preset("flickr8k"), [*images, scenes.draw(1, seed=3)[0].image]
    for name, (pipeline, inputs) in pipelines.items():
        kind = "image" if hasattr(pipeline.model, "image_size") else "text"
        path, rows = pipeline.export(folder / name.replace(" ", "_")), pipeline.inputs.check(inputs)[0]
        models[name] = {"path": str(path), "name": kind, "inputs": [data.hex() for data in rows]}
        searched = hexadecimal(pipeline(inputs))
        assert len(set(searched)) > 1
        expected[name] = {"session, serving_default": searched, "serving_default": searched}
        if name == "language_model":
            drawn = hexadecimal(pipeline(inputs, **DRAWN))
            assert drawn != hexadecimal(pipeline(inputs, **{**DRAWN, "seed": 4}))
            expected[name] |= {"session, serving_sampled": drawn, "serving_sampled": drawn}
    (folder / "models.json").write_text(json.dumps(models))
    return folder / "models.json", expected


@pytest.mark.release
def test_every_kind_of_model_answers_in_a_fresh_process_like_its_pipeline(every_kind):
    models, expected = every_kind
    answers = ask(models, *PLAIN, "serving_xla", "serving_nbest")
    for name, ways in expected.items():
        assert answers[name] == {**ways, **dict.fromkeys(("serving_xla", "serving_nbest"), ways["serving_default"])}


@pytest.mark.release
def test_every_kind_of_model_answers_where_xla_is_switched_off(every_kind):
    models, expected = every_kind
    answers = ask(models, "xla_off", *PLAIN)
    assert {name: answers[name] for name in expected} == {
        name: {**ways, "xla": "off"} for name, ways in expected.items()
    }


@pytest.mark.serving
def test_the_older_tensorflow_answers_alike_for_every_kind_of_model(every_kind):
    python = os.environ.get("SERVING_PYTHON")
    if not python:
        pytest.skip("SERVING_PYTHON is not set: use `make test-serving`.")
    models, expected = every_kind
    answers = ask(models, *PLAIN, python=python)
    assert answers["version"].startswith("2.20.")
    assert {name: answers[name] for name in expected} == expected


def test_predict_and_a_reloaded_pipeline_answer_alike(shipped, tmp_path):
    pipeline, _, _, expected = shipped
    pipeline.save(tmp_path / "run")
    for run in ("dates", f"{tmp_path / 'run'}"):
        result = CliRunner().invoke(main, ["predict", run, "-"], input=b"\n".join(fifty_inputs()) + b"\n")
        assert result.exit_code == 0, result.output
        assert [line.encode().hex() for line in result.stdout.split("\n")[:-1]] == expected


@pytest.mark.long
def test_with_xla_switched_off_the_default_signature_still_answers(shipped):
    answers = ask(shipped[2], "xla_off", "session", "serving_default")["dates"]
    assert answers["serving_default"] == answers["session, serving_default"] == shipped[3]
    assert answers["xla"] == "off"  # else this test would show nothing


@pytest.mark.serving
def test_the_older_tensorflow_of_tensorflow_serving_answers_alike(shipped):
    python = os.environ.get("SERVING_PYTHON")
    if not python:
        pytest.skip("SERVING_PYTHON is not set: use `make test-serving`.")
    answers = ask(shipped[2], "session", "serving_default", "serving_xla", python=python)
    assert answers["version"].startswith("2.20.")
    for way in ("session, serving_default", "serving_default", "serving_xla"):
        assert answers["dates"][way] == shipped[3], way


def operations(function):
    """(name, operation) of every node of a concrete function, those of the functions it calls included."""
    definition = function.graph.as_graph_def()
    nodes = list(definition.node) + [node for f in definition.library.function for node in f.node_def]
    marked = [f.signature.name for f in definition.library.function if f.attr["_XlaMustCompile"].b]
    return nodes, marked


def test_the_default_signature_holds_no_xla(shipped):
    loaded = tf.saved_model.load(str(shipped[1]))
    for name, expected in (("serving_default", False), ("serving_nbest", False), ("serving_xla", True)):
        nodes, marked = operations(loaded.signatures[name])
        compiled = [node for node in nodes if node.op.startswith("Xla") or node.attr["_XlaMustCompile"].b]
        assert bool(compiled or marked) is expected, name
        assert not [node for node in nodes if node.op in ("PyFunc", "EagerPyFunc")]


def test_outputs_have_the_documented_names_types_and_shapes(shipped):
    loaded = tf.saved_model.load(str(shipped[1]))
    texts = tf.constant(["2026년 11월 20일", "20 Nov 2026", ""])
    outputs = loaded.signatures["serving_default"](text=texts)
    names = {"text", "source_pieces", "target_pieces", "target_ids", "score", "log_probability", "attention"}
    assert set(outputs) == names
    (b, s), (_, t) = outputs["source_pieces"].shape, outputs["target_pieces"].shape
    assert (b, s, t) == (3, 13, 10)
    assert outputs["attention"].shape == (3, t, s)
    assert outputs["target_ids"].dtype == tf.int32
    sums = outputs["attention"].numpy().sum(-1)
    np.testing.assert_allclose(sums[:2], 1, atol=1e-5)
    np.testing.assert_allclose(sums[2], 0)
    assert outputs["text"][2] == b""
    assert outputs["score"][2] == 0
    nbest = loaded.signatures["serving_nbest"](text=texts)
    width = shipped[0].options.beam_width
    assert nbest["text"].shape == (3, width)
    assert nbest["attention"].shape == (3, width, nbest["target_ids"].shape[2], s)


def test_the_pipelines_numbers_are_the_servers(shipped):
    loaded = tf.saved_model.load(str(shipped[1]))
    inputs = fifty_inputs()
    outputs = loaded.signatures["serving_default"](text=tf.constant(inputs))
    for row, result in enumerate(shipped[0](inputs)):
        np.testing.assert_allclose(outputs["score"][row], result.score, atol=1e-4)
        np.testing.assert_allclose(outputs["log_probability"][row], result.log_probability, atol=1e-4)
        found = outputs["attention"][row].numpy()[: len(result.target_pieces), : len(result.source_pieces)]
        np.testing.assert_allclose(found, result.attention, atol=1e-4)


def test_an_input_that_is_too_long_is_refused_in_the_graph_too(shipped):
    loaded = tf.saved_model.load(str(shipped[1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="longer than the 128 pieces"):
        loaded.signatures["serving_default"](text=tf.constant(["1" * 129]))


def tiny(attention="additive", **options):
    source = CharacterTokenizer.learn(["abcdefg äöü 가나다"])
    target = CharacterTokenizer("0123456789-", byte_fallback=False)
    model = Seq2Seq(source.vocabulary_size, target.vocabulary_size, units=16, attention=attention)
    return Pipeline(randomize(model, seed=1), source, target, **{"max_length": 9, **options})


@pytest.mark.long
def test_versions_are_numbered_and_nothing_is_overwritten(tmp_path):
    pipeline = tiny()
    assert [pipeline.export(tmp_path / "m").name for _ in range(2)] == ["1", "2"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "2"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expects a folder.*is a file"):
        pipeline.export(tmp_path / "file")


@pytest.mark.long
def test_a_model_without_attention_exports_none(tmp_path):
    pipeline = tiny(None, beam_width=2)
    loaded = tf.saved_model.load(str(pipeline.export(tmp_path)))
    for name in ("serving_default", "serving_xla", "serving_nbest"):
        outputs = loaded.signatures[name](text=tf.constant(["abc", "가나"]))
        assert "attention" not in outputs
    assert [t.decode() for t in outputs["text"][:, 0].numpy()] == [r.text for r in pipeline(["abc", "가나"])]


@pytest.mark.long
def test_ids_in_and_out(tmp_path):
    pipeline = Pipeline(tiny().model, max_length=9, beam_width=2)
    rows = [[5, 6, 7], [8], []]
    padded = tf.constant([[5, 6, 7], [8, 0, 0], [0, 0, 0]])
    loaded = tf.saved_model.load(str(pipeline.export(tmp_path)))
    for name in ("serving_default", "serving_xla"):
        outputs = loaded.signatures[name](tokens=padded)
        assert set(outputs) == {"target_ids", "score", "log_probability", "attention"}
        for row, result in enumerate(pipeline(rows)):
            found = outputs["target_ids"][row].numpy()
            assert found[found != 0].tolist() == result.target_ids
        for unknown in (-1, pipeline.model.source_vocabulary):
            with pytest.raises(tf.errors.InvalidArgumentError, match="This model knows the ids 0 to"):
                loaded.signatures[name](tokens=tf.constant([[5, unknown]]))


@pytest.mark.parametrize("kind", ["source", "prompt"])
def test_unknown_ids_are_refused_in_the_graph(kind):
    prompted = LanguageModel(11, width=8, num_heads=2, layers=1, max_length=16)
    pipeline = Pipeline(prompted if kind == "prompt" else Seq2Seq(11, 13, units=8), max_length=4)
    read = tf.function(lambda tokens: pipeline.read(tokens=tokens)[1], autograph=False)
    assert read(tf.constant([[5, 10]])).numpy().tolist() == [2]
    for unknown in (-1, 11):
        with pytest.raises(tf.errors.InvalidArgumentError, match="This model knows the ids 0 to 10"):
            read(tf.constant([[5, unknown]]))


class Contrary(Seq2Seq):
    """Its memory is its own business."""

    def encode(self, x):
        memory = super().encode(x)
        return {**memory, "output": -memory["output"]}


def test_an_export_computes_with_the_models_own_memory(tmp_path):
    pipeline = Pipeline(randomize(Contrary(9, 11, units=16), seed=2), max_length=6)
    before = [result.target_ids for result in pipeline([[5, 6, 7], [8]])]
    loaded = tf.saved_model.load(str(pipeline.export(tmp_path)))
    ids = loaded.signatures["serving_default"](tokens=tf.constant([[5, 6, 7], [8, 0, 0]]))["target_ids"].numpy()
    assert [row[row != 0].tolist() for row in ids] == before
    assert [result.target_ids for result in pipeline([[5, 6, 7], [8]])] == before


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_matrix_is_held_as_it_is_multiplied_and_once(tied):
    model = Seq2Seq(9, 5000, units=16, embedding_width=16, tie_embeddings=tied)
    shapes = [tuple(variable.shape) for variable in serving._Weights(model).variables]
    assert shapes.count((5000, 16)) == 1 and shapes.count((16, 5000)) == 1  # the embedding, and the output matrix


def test_compiled_programs_are_reused(shipped):
    """Bucketed shapes: after the first call of a bucket, others of the same bucket compile nothing."""
    answer = shipped[0].function(1, 1, jit_compile=True)
    texts = [f"{day} May 1999" for day in range(1, 8)]
    answer(text=tf.constant(texts[:5]), max_length=tf.constant(32))
    began = time.perf_counter()
    for count in (6, 7, 8):
        answer(text=tf.constant((texts * 2)[:count]), max_length=tf.constant(32))
    assert time.perf_counter() - began < 1.0  # compiling once takes longer than three answers
