"""Captions that a model draws and learns by how much they score above each other, and images that are seen once."""

import keras
import numpy as np
import pytest
import sacrebleu
from helpers import randomize, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from keras_attention.models import ImageCaptioner, Transformer
from keras_attention.models.tokenizers import END, PAD, START, UNK
from keras_attention.training.batching import (
    Batches,
    CaptionSets,
    GridSequences,
    ImageSequences,
    TokenSequences,
    to_tf_dataset,
)
from keras_attention.training.caption_scores import cider_d
from keras_attention.training.losses import MaskedCrossEntropy
from keras_attention.training.recipes import load_recipe
from keras_attention.training.self_critical import SelfCritical, above_the_others

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
CAPTIONS = [[5, 6], [7], [5, UNK, 8], [9, 9, 9, 9, 9], [6], [10, 5, 6]]
SHOWN = [2, 0, 2, 1, 0, 2]
V = 14


def pairs():
    grids = np.random.default_rng(1).normal(size=(3, 1, 4, 5)).astype("float16")
    return GridSequences(grids, np.array(SHOWN), np.zeros(6, "int64")), TokenSequences.from_lists(CAPTIONS)


def captioner(scale=1.0, **options):
    backbone = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(5, 2, strides=2)])
    options = {"width": 8, "num_heads": 2, "feed_forward_units": 8, "encoder_layers": 0, "decoder_layers": 1, **options}
    decoder = Transformer(None, V, source_width=5, **options)
    return ImageCaptioner(backbone, randomize(decoder, scale=scale), (4, 4))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=20))
def test_sets_hold_every_caption_once_with_its_image(drawn):
    """What is missing is empty, widths are those of the longest, and an image with many captions has several sets."""
    shown, lengths = (list(column) for column in zip(*drawn, strict=True))
    captions = TokenSequences.from_lists([[10 + number] * length for number, length in enumerate(lengths)])
    sets = CaptionSets(captions, shown)
    assert sets.rows_each == max(1, round(len(shown) / len(set(shown))))
    found = [(int(image), rows[rows >= 0].tolist()) for image, rows in zip(sets.images, sets.rows, strict=True)]
    assert sorted((row, image) for image, rows in found for row in rows) == list(enumerate(shown))
    assert all(rows for _, rows in found)
    assert sets.lengths.tolist() == [max(lengths[row] for row in rows) for _, rows in found]
    target, y = sets.targets(np.array([-1, 0]), 8)
    assert target.shape == (2 * sets.rows_each, 8) and not target[: sets.rows_each].any()
    written = y[sets.rows_each :][: len(found[0][1])]
    assert [row[row > 9].tolist() for row in written] == [captions[row].tolist() for row in found[0][1]]


def test_a_batch_shows_every_image_once_beside_all_its_captions():
    images = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones((3, 4, 4, 3), "uint8")
    sets = CaptionSets(TokenSequences.from_lists(CAPTIONS), SHOWN)
    batches = Batches(ImageSequences(images, sets.images), sets, token_budget=48, bucket_width=4)
    seen = []
    for x, y in batches:
        assert len(x["target"]) == len(y) == 2 * len(x["image"]) and x["target"].size <= 48
        for image, rows in zip(x["image"], y.reshape(len(x["image"]), 2, -1), strict=True):
            seen += [
                (int(image[0, 0, 0]), [t for t in row.tolist() if t > END or t == UNK]) for row in rows if row.any()
            ]
    assert sorted(seen) == sorted((shown, caption) for shown, caption in zip(SHOWN, CAPTIONS, strict=True))


@pytest.mark.backends
def test_captions_of_one_image_are_computed_as_if_it_stood_there_for_each():
    model = captioner()
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    target = np.random.default_rng(1).integers(4, V, (6, 5))
    expected = to_numpy(model({"image": images.repeat(3, axis=0), "target": target}))
    np.testing.assert_allclose(to_numpy(model({"image": images, "target": target})), expected, atol=1e-5)
    grid = to_numpy(model.grid(images))
    np.testing.assert_allclose(to_numpy(model({"source": grid, "target": target})), expected, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"k of each, one behind the other. Received: 2 images and target.shape=\(5, 5\)"
    ):
        model({"image": images, "target": target[:5]})


def test_scores_are_compared_with_those_of_the_others():
    found = above_the_others(np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(found, [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]])
    assert not above_the_others(np.full((4, 7), 0.1)).any()  # or their sum's rounding would be what is learned


def worth(row, image, references):
    cider = cider_d([row if n == image else [] for n in range(len(references))], references)[image]
    texts = [" ".join(map(str, words)) for words in (row, *references[image])]
    return 100 * cider + 2 * sacrebleu.sentence_bleu(texts[0], texts[1:], tokenize="none").score


def test_batches_are_what_the_model_draws_weighted_by_its_scores():
    model = captioner()
    batches = SelfCritical(model, pairs(), samples=4, max_length=6, images=2, seed=3)
    references = [[[*CAPTIONS[row], END] for row in range(6) if SHOWN[row] == image] for image in range(3)]
    references = [[[-1 if token == UNK else token for token in words] for words in each] for each in references]
    grids, places = pairs()[0].grids[:, 0].astype("float32"), []
    assert len(batches) == 2
    for x, y, weights in batches:
        assert y.shape == x["target"].shape and len(y) == 8 and weights.shape == (8, 1)
        of = [int(np.flatnonzero((grids == grid).all(axis=(1, 2)))[0]) for grid in x["source"]]
        places += of
        words = [row[row != PAD].tolist() for row in y]
        assert all(END not in row[:-1] and (row[-1] == END or len(row) == 6) for row in words)
        for target, row in zip(x["target"], words, strict=True):
            assert target[: len(row)].tolist() == [START, *row[:-1]]
        scores = [worth(row, of[i // 4], references) for i, row in enumerate(words)]
        np.testing.assert_allclose(
            weights, above_the_others(np.reshape(scores, (2, 4))).reshape(8, 1), rtol=1e-5, atol=1e-3
        )
    assert set(places) == {0, 1, 2}


def test_draws_follow_from_seed_epoch_and_weights():
    model = captioner()
    one, two = (SelfCritical(model, pairs(), 3, 6, 2, seed=3) for _ in range(2))
    first = one[1]
    for mine, same in zip(keras.tree.flatten(first), keras.tree.flatten(two[1]), strict=True):
        np.testing.assert_array_equal(mine, same)
    two.epoch = 1
    other = two[1][1]
    assert other.shape != first[1].shape or (other != first[1]).any()
    one.epoch = 1
    np.testing.assert_array_equal(one[1][1], other)
    model.decoder.target_embedding.set_weights([w * -1 for w in model.decoder.target_embedding.get_weights()])
    assert one[1][1].shape != other.shape or (one[1][1] != other).any()


@pytest.mark.parametrize("boxes", [None, np.tile([0.0, 0.0, 1.0, 1.0], (4, 1))])
def test_images_whose_backbone_is_trained_are_drawn_for_once(boxes):
    """Of an image with two sets of captions, both are what its captions are scored against."""
    images = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones((3, 4, 4, 3), "uint8")
    sets = CaptionSets(TokenSequences.from_lists(CAPTIONS), SHOWN)
    assert sets.images.tolist() == [0, 1, 2, 2]
    pair = ImageSequences(images, sets.images, boxes=boxes), sets
    batches = SelfCritical(captioner(), pair, samples=2, max_length=6, images=3, seed=3)
    (x, y, weights), *others = batches
    assert not others and sorted(x["image"][:, 0, 0, 0].tolist()) == [0, 1, 2] and len(y) == len(weights) == 6
    references = batches._reward.references
    assert [len(of_one) for of_one in references] == [2, 1, 3]


def test_it_draws_with_the_probabilities_of_the_model():
    """First words of many captions of one image, against softmax; PAD and START are never drawn."""
    model = captioner(scale=0.5)
    batches = SelfCritical(model, pairs(), samples=2000, max_length=2, images=1, seed=0)
    x, y, _ = batches[0]
    logits = to_numpy(model({"source": x["source"], "target": np.array([[START]])}))[0, 0]
    logits[[PAD, START]] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.bincount(y[:, 0], minlength=V) / 2000, expected, atol=0.035)


@pytest.mark.long
@on_tensorflow
def test_training_raises_the_score_in_plain_fit():
    """A model that knows nothing learns what the references say of its three images from its own draws alone."""
    keras.utils.set_random_seed(2)
    model = captioner(scale=0.1, dropout=0.0)
    model.backbone.trainable = False
    batches = SelfCritical(model, pairs(), samples=16, max_length=6, images=3, seed=3)
    model.compile(optimizer=keras.optimizers.Adam(0.03), loss=MaskedCrossEntropy())
    list(batches)
    before = batches.mean_reward
    history = model.fit(to_tf_dataset(batches), epochs=60, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    list(batches)
    after = batches.mean_reward
    assert after > 3 * before and after > 300  # of a most of 100 * 10 + 2 * 100


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="there it works")
def test_other_backends_are_told():
    from keras_attention.training.errors import InputError

    with pytest.raises(InputError, match="needs TensorFlow as backend"):
        SelfCritical(captioner(), pairs(), samples=2, max_length=6, images=3, seed=3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flickr8k", ["training.self_critical=5"], "set training.label_smoothing=0 and training.r_drop=0"),
        ("flickr8k", ["training.self_critical=1"], "2 captions of each at least are compared. Received: .*=1"),
        ("dates", ["training.self_critical=5"], "is for data.images.*data.images=None"),
        ("flickr8k", ["training.self_critical=-1"], "training.self_critical must be at least 0"),
    ],
)
def test_recipes_that_ask_for_it_wrongly(name, settings, message):
    from keras_attention.training.errors import InputError

    with pytest.raises(InputError, match=message):
        load_recipe(name, settings)
