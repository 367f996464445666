"""The captioner: a backbone's grid as source, the regulariser, stock Keras, and images as bytes."""

import io
import json

import keras
import numpy as np
import pytest
from helpers import randomize, run_python, to_numpy
from keras import ops

from keras_attention.models import (
    CharacterTokenizer,
    ImageCaptioner,
    Pipeline,
    Seq2Seq,
    Transformer,
    backbones,
    beam_search,
)
from keras_attention.models.backbones import make_backbone
from keras_attention.models.files import load_weights, save_weights
from keras_attention.models.tokenizers import START
from keras_attention.training.losses import MaskedCrossEntropy

backends = pytest.mark.backends
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="images are decoded by TensorFlow")
SIZE, C, V = (12, 8), 5, 14  # a grid of 3 x 2
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, *SIZE, 3)).astype("float32")
TARGET = np.array([[2, 4, 5, 6], [2, 7, 8, 0], [2, 9, 4, 10], [2, 5, 0, 0]])
Y = np.array([[4, 5, 6, 3], [7, 8, 3, 0], [9, 4, 10, 3], [5, 3, 0, 0]])
DECODERS = {
    "attention": lambda: Seq2Seq(None, V, units=8, encoder_layers=0, context_gate=True, source_width=C, cell="lstm"),
    "no attention": lambda: Seq2Seq(None, V, units=8, encoder_layers=0, attention=None, source_width=C),
    "transformer": lambda: Transformer(
        None, V, width=8, num_heads=2, feed_forward_units=12, encoder_layers=1, decoder_layers=2, source_width=C
    ),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)


def make(name="attention", trainable=True, **options):
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(C, 4, strides=4), keras.layers.BatchNormalization()]
    backbone = keras.Sequential([keras.Input((*SIZE, 3)), *layers])
    backbone.trainable = trainable
    return ImageCaptioner(backbone, randomize(DECODERS[name](), scale=0.8), image_size=SIZE, **options)


@backends
@every_decoder
def test_it_is_its_decoder_on_the_grid(name):
    model = make(name)
    grid = to_numpy(model.backbone(IMAGES))
    assert grid.shape == (4, 3, 2, C)
    np.testing.assert_allclose(to_numpy(model.grid(IMAGES))[:, 3], grid[:, 1, 1], atol=1e-6)
    expected = to_numpy(model.decoder({"source": grid.reshape(4, 6, C), "target": TARGET}))
    for x in ({"image": IMAGES}, {"image": IMAGES.round().astype("uint8")}, {"source": grid.reshape(4, 6, C)}):
        found = to_numpy(model({**x, "target": TARGET}))
        np.testing.assert_allclose(found, expected, atol=0.05 if x.get("image", IMAGES).dtype == "uint8" else 1e-5)


@backends
@every_decoder
def test_steps_equal_the_call(name):
    model = make(name)
    logits = to_numpy(model({"image": IMAGES, "target": TARGET}))
    memory = model.encode({"image": IMAGES})
    tokens, state = model.initial_state(memory, 4)
    assert to_numpy(tokens).tolist() == [START] * 4
    for position in range(4):
        step, state, attention = model.step(ops.convert_to_tensor(TARGET[:, position]), position, memory, state)
        real = TARGET[:, position] != 0
        np.testing.assert_allclose(to_numpy(step)[real], logits[real, position], atol=1e-5)
        assert attention is None if name == "no attention" else tuple(attention.shape) == (4, 6)


@pytest.mark.tensorflow_first
@backends
@pytest.mark.parametrize("name", ["attention", "transformer"])
def test_the_doubly_stochastic_term_is_equation_14(name):
    model = make(name, doubly_stochastic=0.7)
    target = np.concatenate([TARGET, np.zeros((1, 4), int)])  # a row of padding counts not
    x = {"image": IMAGES[[0, 1, 2, 3, 0]], "target": target}
    _, weights = model(x, return_attention_scores=True, training=True)
    if name == "transformer":
        weights = ops.mean(weights["cross"][0], axis=1)
    looked = to_numpy(weights)[:4].sum(axis=1)
    np.testing.assert_allclose(to_numpy(model.losses[0]), 0.7 * ((1 - looked) ** 2).sum(axis=1).mean(), rtol=1e-5)
    model(x, training=False)
    assert not model.losses


@backends
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("attention", True),
        pytest.param("no attention", False, marks=pytest.mark.tensorflow_first),
        pytest.param("transformer", False, marks=pytest.mark.release),
    ],
)
def test_keras_trains_it_and_a_frozen_backbone_stays(name, ours):
    model = make(name, trainable=False, doubly_stochastic=0.0 if name == "no attention" else 0.1)
    before = [to_numpy(weight) for weight in model.backbone.weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.02), MaskedCrossEntropy() if ours else loss)
    history = model.fit({"image": IMAGES, "target": TARGET}, Y, epochs=30, batch_size=4, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.5
    for weight, old in zip(model.backbone.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), old)


def test_a_trained_backbone_changes():
    model = make()
    before = [to_numpy(weight) for weight in model.backbone.weights]
    model.compile("adam", MaskedCrossEntropy())
    model.fit({"image": IMAGES, "target": TARGET}, Y, verbose=0)
    assert not any(np.array_equal(to_numpy(w), old) for w, old in zip(model.backbone.weights, before, strict=True))


@pytest.mark.tensorflow_first
@backends
@every_decoder
def test_saved_and_loaded_it_answers_alike(name, tmp_path):
    model = make(name, trainable=False)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x = {"image": IMAGES, "target": TARGET}
    np.testing.assert_allclose(to_numpy(loaded(x)), to_numpy(model(x)), atol=1e-6)
    assert not loaded.backbone.trainable_weights
    found, expected = (beam_search(m, m.encode(x), 5, beam_width=3) for m in (loaded, model))
    np.testing.assert_array_equal(to_numpy(found.ids), to_numpy(expected.ids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make()({"image": IMAGES[:, :6], "target": TARGET}), r"images \[B, 12, 8, 3\].*\(4, 6, 8, 3\)"),
        (lambda: make()({"target": TARGET}), "dict with image. Received: .'target'."),
        (
            lambda: ImageCaptioner(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]), None, (8, 8)),
            r"grid of features \[B, h, w, C\].*\(1, 192\)",
        ),
        (
            lambda: ImageCaptioner(make().backbone, Seq2Seq(None, V, units=8, source_width=3), SIZE),
            "source_width=5. Received: source_width=3",
        ),
        (
            lambda: make("no attention", doubly_stochastic=1.0)({"image": IMAGES, "target": TARGET}, training=True),
            "this decoder has no attention",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Images as bytes.


def picture(mode="RGB", size=(40, 30), form="JPEG", color=None):
    from PIL import Image

    image = Image.new(mode, size, color)
    if color is None:
        shape = (*size[::-1], len(image.getbands())) if len(image.getbands()) > 1 else size[::-1]
        image = Image.fromarray(np.random.default_rng(1).integers(0, 255, shape, dtype="uint8"))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def captioner(name="attention", **options):
    tokenizer = CharacterTokenizer("0123456789", byte_fallback=False)
    assert tokenizer.vocabulary_size == V
    return Pipeline(make(name), None, tokenizer, **{"max_length": 6, "length_ratio": 0.0, **options})


@pytest.fixture(scope="module")
def pictures():
    return {
        "jpeg": picture(),
        "png with alpha": picture("RGBA", form="PNG"),
        "grey": picture("L"),
        "1 x 1": picture(size=(1, 1), form="PNG"),
        "6000 x 4000": picture(size=(6000, 4000), color=(20, 90, 160)),
        "16 bits": picture("I;16", form="PNG", color=300),
    }


@on_tensorflow
def test_what_is_transparent_becomes_white_and_sizes_are_squeezed():
    import tensorflow as tf

    from keras_attention.models.images import read_images

    half = picture("RGBA", (10, 20), "PNG", (0, 100, 200, 51))
    found = read_images(tf.constant([half, picture("L", (3, 5), "PNG", 7)]), (4, 6)).numpy()
    np.testing.assert_allclose(found[0, 2, 3], [204, 224, 244], atol=0.01)
    np.testing.assert_allclose(found[1], 7)


@pytest.mark.long
@on_tensorflow
def test_images_of_all_kinds_get_captions_in_python_and_in_a_fresh_process(pictures, tmp_path):
    pipeline = captioner(beam_width=3)
    results = pipeline(list(pictures.values()))
    for result in results:
        assert result.attention.shape == (len(result.target_ids), 6)
        np.testing.assert_array_equal(result.attention_map.reshape(result.attention.shape), result.attention)
    for number, data in enumerate(pictures.values()):
        (tmp_path / f"{number}").write_bytes(data)
    paths = [tmp_path / f"{number}" for number in range(len(pictures))]
    assert [r.text for r in pipeline(paths)] == [r.text for r in results]
    code = """
import json, sys
import tensorflow as tf, tensorflow_text
loaded = tf.saved_model.load(sys.argv[1])
images = tf.constant([open(path, "rb").read() for path in sys.argv[2:]])
for name in ("serving_default", "serving_xla"):
    found = loaded.signatures[name](image=images)
    print(json.dumps({"text": [t.decode() for t in found["text"].numpy()], "map": list(found["attention_map"].shape)}))
    for bad in (b"GIF89a and so on", images[0].numpy()[:300], b"no image"):
        try:
            loaded.signatures[name](image=tf.stack([images[0], bad]))
            raise SystemExit("it was read")
        except tf.errors.InvalidArgumentError as error:
            assert "JPEG" in str(error), error
assert not any(name.startswith("keras_attention") for name in sys.modules)
"""
    found = run_python(code, pipeline.export(tmp_path / "served"), *paths).splitlines()
    for line in map(json.loads, found[-2:]):
        assert line["text"] == [result.text for result in results]
        assert line["map"][0] == len(results) and line["map"][2:] == [3, 2]


@on_tensorflow
def test_what_cannot_be_read_is_named_and_the_rest_is_captioned(pictures, tmp_path):
    import tensorflow as tf

    pipeline = captioner()
    bad = {
        "a GIF": picture("L", form="GIF"),
        "cut short": pictures["jpeg"][:300],
        "cut short too": pictures["grey"][:-20],
        "damaged": pictures["png with alpha"][:200],
        "begins with": b"%PDF-1.4 and so on",
        "empty": b"",
    }
    rows = [pictures["jpeg"], *bad.values(), pictures["grey"], tmp_path / "nowhere.jpg"]
    results = pipeline(rows)
    alone = pipeline([pictures["jpeg"], pictures["grey"]])
    assert [results[0].text, results[-2].text] == [result.text for result in alone]
    assert all(result.error is None for result in (results[0], results[-2]))
    for (word, _), result in zip(bad.items(), results[1:], strict=False):
        assert word.removesuffix(" too") in result.error and result.text == "" and result.attention is None
    assert "nowhere.jpg cannot be read" in results[-1].error
    with pytest.raises(ValueError, match="Input 1: .*a GIF"):
        pipeline.check_inputs(rows)
    function = pipeline.function()
    told = dict.fromkeys(bad, "Expected the bytes of a JPEG or PNG image") | {
        "cut short": "Invalid JPEG data",
        "cut short too": "Invalid JPEG data",
        "damaged": "Invalid PNG data",
    }
    for word, data in bad.items():  # a server's call fails as a whole
        with pytest.raises(tf.errors.InvalidArgumentError, match=told[word]):
            function(image=tf.constant([pictures["jpeg"], data]), max_length=tf.constant(4))
    with pytest.raises(TypeError, match="reads images: the bytes of.*input 0 is a int"):
        pipeline([3])
    with pytest.raises(TypeError, match=r"write pipeline\(\[image\]\)"):
        pipeline(pictures["jpeg"])


# Backbones


def test_backbones_by_name_scale_give_a_grid_and_freeze(tmp_path):
    own = make_backbone("small", (32, 48))
    assert own.output_shape == (None, 4, 6, 98)
    np.testing.assert_allclose(to_numpy(own(np.zeros((1, 32, 48, 3))))[0, 3, 0, -2:], [1, -1])
    theirs = make_backbone("MobileNet", [64, 64], alpha=0.25, trainable=False)
    assert theirs.output_shape == (None, 2, 2, 256) and not theirs.trainable_weights
    network = theirs.layers[-1]
    network.save_weights(tmp_path / "network.weights.h5")
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3))
    again = make_backbone("MobileNet", (64, 64), weights=str(tmp_path / "network.weights.h5"), alpha=0.25)
    np.testing.assert_allclose(to_numpy(again(image)), to_numpy(network(image / 127.5 - 1)), atol=1e-5)
    assert make_backbone("MobileNet", (64, 64), layer="conv_pw_11_relu", alpha=0.25).output_shape == (None, 4, 4, 128)
    again.layers[-1].layers[1].trainable = False
    again.save(tmp_path / "own.keras")
    tuned = make_backbone(str(tmp_path / "own.keras"), (64, 64), trainable=True)
    assert 0 < len(tuned.trainable_weights) == len(again.trainable_weights)
    assert not tuned.layers[-1].layers[1].trainable  # as its owner left it
    own = make_backbone(str(tmp_path / "own.keras"), (64, 64), trainable=False)
    assert not own.trainable_weights
    np.testing.assert_allclose(to_numpy(own(image)), to_numpy(again(image)), atol=1e-5)


def test_weights_by_name_are_those_that_keras_knows(monkeypatch):
    asked, build = [], keras.applications.MobileNet

    def mobile_net(weights, **options):
        asked.append(weights)
        return build(weights=None, **options)

    monkeypatch.setattr(keras.applications, "MobileNet", mobile_net)
    make_backbone("MobileNet", (64, 64), weights="imagenet", alpha=0.25)
    assert asked == ["imagenet"]


def test_an_adapted_normalization_is_kept(tmp_path):
    """Its weights alone do not say that it was adapted."""
    normalize = keras.layers.Normalization(mean=None)
    normalize.build((None, *SIZE, 3))
    normalize.adapt(IMAGES)
    backbone = keras.Sequential([keras.Input((*SIZE, 3)), normalize, keras.layers.Conv2D(C, 4, strides=4)])
    model = ImageCaptioner(backbone, DECODERS["attention"](), SIZE)
    save_weights(model, tmp_path)
    loaded = load_weights(tmp_path)
    np.testing.assert_allclose(to_numpy(loaded.grid(IMAGES)), to_numpy(model.grid(IMAGES)), atol=0.02)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("VGG19", "vgg19"),
        ("ResNet50", "resnet50"),
        ("ResNet101V2", "resnet_v2"),
        ("DenseNet121", "densenet"),
        ("MobileNetV2", "mobilenet_v2"),
        ("MobileNetV3Small", "mobilenet_v3"),
        ("EfficientNetV2B0", "efficientnet_v2"),
        ("ConvNeXtTiny", "convnext"),
        ("InceptionV3", "inception_v3"),
        ("NASNetMobile", "nasnet"),
    ],
)
def test_every_family_reads_images_as_it_was_trained_to(name, module):
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 3)).astype("float32")
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    kind = backbones._FAMILIES[backbones._family(name)]
    found = images if kind is None else to_numpy(backbones.ImageScaling(kind)(images))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "RegNet"}, "backbone.name must be one of small, .*MobileNet.*Received: 'RegNet'"),
        ({"name": "nowhere.keras"}, "The backbone nowhere.keras cannot be loaded"),
        ({"name": "own.keras", "alpha": 0.5}, "own.keras has its own weights: .*alpha=0.5"),
        ({"name": "MobileNet", "weights": "nowhere.h5"}, "a file of MobileNet.s weights. Received: nowhere.h5"),
        (
            {"name": "MobileNet", "alpha": 0.3, "weights": None, "layer": "conv"},
            "a layer of MobileNet: .*Received: 'conv'",
        ),
        ({"name": "Xception", "alpha": 0.5}, "Xception cannot be made with .*alpha"),
    ],
)
def test_errors_of_backbones(options, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(image_size=(72, 72), **options)


def test_a_fresh_process_knows_the_layers_of_backbones(tmp_path):
    make_backbone("small", (32, 32)).save(tmp_path / "b.keras")
    code = "import sys, keras, keras_attention.models; print(keras.saving.load_model(sys.argv[1]).output_shape)"
    assert run_python(code, tmp_path / "b.keras").splitlines()[-1] == "(None, 4, 4, 98)"
