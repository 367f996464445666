"""The task `scenes`: what is drawn is what the caption says; and a captioner trained on it by the command line."""

import json

import keras
import numpy as np
import pytest

from keras_attention.training.batching import Batches, ImageSequences, TokenSequences, to_py_dataset
from keras_attention.training.errors import InputError
from keras_attention.training.tasks import scenes

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="images are read by TensorFlow")


def test_a_draw_is_a_function_of_its_arguments():
    one, two = scenes.pairs(5, seed=3, epoch=2), scenes.pairs(5, seed=3, epoch=2)
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    others = [scenes.pairs(5, seed=4, epoch=2), scenes.pairs(5, seed=3), scenes.pairs(5, seed=3, epoch=2, split="val")]
    assert all(other[1] != one[1] for other in others)
    np.testing.assert_array_equal(scenes.pairs(3, seed=3, epoch=2)[0], one[0][:3])
    assert scenes.pairs(0, seed=1)[0].shape == (0, 64, 64, 3)


def test_no_combination_is_in_two_splits_and_every_part_is_in_training():
    seen = {}
    for split in ("train", "val", "test"):
        drawn = scenes.draw(600, 1, split=split, image_size=32)
        seen[split] = {(*scene.objects[0][1:3], scene.relation) for scene in drawn}
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    assert len(seen["train"]) > 60 and min(len(seen["val"]), len(seen["test"])) > 10
    for part in range(3):
        assert {each[part] for each in seen["val"] | seen["test"]} <= {each[part] for each in seen["train"]}


def test_pictures_show_what_captions_say():
    for scene in scenes.draw(60, 5, image_size=96):
        named = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.objects]
        assert scene.caption == f" {scene.relation} ".join(named)
        middles = []
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert (right - left > 0.3) == (thing.size == "large")
            middles.append(((left + right) / 2, (top + bottom) / 2))
            # The lower middle lies in every shape.
            pixel = scene.image[int((middles[-1][1] + 0.05 * (bottom - top)) * 96), int(middles[-1][0] * 96)]
            distances = {name: np.abs(pixel - np.array(rgb)).sum() for name, rgb in scenes.COLOURS.items()}
            assert min(distances, key=distances.get) == thing.colour
        (x, y), (other_x, other_y) = middles
        true = {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}
        assert true[scene.relation]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count must be an integer of at least 0"),
        ({"split": "dev"}, "split of the scenes task must be one of"),
        ({"image_size": 16}, "image_size must be an integer of at least 32; received: 16"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        scenes.pairs(**{"count": 1, "seed": 1, **options})


def test_batches_of_images():
    images = np.arange(3 * 4 * 6 * 3, dtype="uint8").reshape(3, 4, 6, 3)
    source = ImageSequences(images, shown=[2, 0, 0, 1])
    target = TokenSequences.from_lists([[5], [6, 7], [8], [9, 4, 5]])
    batches = Batches(source, target, token_budget=1000, bucket_width=4, shuffle=False)
    (x, y), *rest = list(batches)
    assert not rest and x["image"].dtype == np.uint8
    for row, ids in enumerate(y):
        place = [[5, 3], [6, 7, 3], [8, 3], [9, 4, 5, 3]].index(ids[ids != 0].tolist()) if ids.any() else None
        expected = x["image"][row % 4] if place is None else images[[2, 0, 0, 1][place]]  # a full row's once more
        np.testing.assert_array_equal(x["image"][row], expected)
    np.testing.assert_array_equal(source.select(np.array([True, False, False, True])).shown, [2, 1])
    assert to_py_dataset(batches)[1][0]["image"].shape[1:] == (4, 6, 3)  # which widens what has columns
    with pytest.raises(InputError, match="uint8 arrays of shape.*float64"):
        ImageSequences(np.zeros((1, 4, 4, 3)))
    with pytest.raises(InputError, match="There are 3 images"):
        ImageSequences(images, shown=[3])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from click.testing import CliRunner

    from keras_attention.training.cli import main

    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    run = tmp_path_factory.mktemp("runs") / "scenes"
    small = ["data.examples=64", "data.held_out=16", "task.image_size=32", "training.epochs=1", "model.width=16"]
    result = call("train", "scenes", "--out", run, *(part for each in small for part in ("--set", each)))
    assert result.exit_code == 0, result.output
    return call, run


@pytest.mark.long
@on_tensorflow
def test_a_run_holds_everything(trained):
    _, run = trained
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["plots"][-1].endswith("caption.png") and (run / "plots" / "caption.png").stat().st_size > 5000
    assert (run / "export" / "1" / "saved_model.pb").exists()


@pytest.mark.release
@on_tensorflow
def test_a_run_goes_on(trained):
    call, run = trained
    result = call("train", "scenes", "--out", run, "--resume", "--set", "training.epochs=2")
    assert result.exit_code == 0 and len(json.loads((run / "history.json").read_text())["loss"]) == 2


@pytest.mark.long
@on_tensorflow
def test_images_are_captioned_drawn_and_named_where_they_cannot_be(trained, tmp_path):
    from PIL import Image

    call, run = trained
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, scenes.pairs(2, seed=9)[0], strict=True):
        Image.fromarray(image).save(path)
    (tmp_path / "text.jpg").write_text("no image at all")
    result = call("predict", run, paths[0], tmp_path / "text.jpg", paths[1], tmp_path / "nowhere.png")
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 4 and result.stdout.splitlines()[1] == ""
    assert "text.jpg: Expected the bytes of a JPEG or PNG image" in result.stderr
    assert "nowhere.png cannot be read: No such file" in result.stderr
    captions = json.loads(call("predict", run, *paths, "--json").stdout)["results"]
    assert [c["text"] for c in captions] == [result.stdout.splitlines()[place] for place in (0, 2)]
    drawn = call("plot", run, paths[0], tmp_path / "caption.png")
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "caption.png") as picture:
        assert picture.size[0] > 300
    shape = np.array(captions[0]["attention_map"]).shape
    assert shape[0] == len(captions[0]["target_pieces"]) and shape[1] * shape[2] == len(captions[0]["attention"][0])
    word = captions[0]["text"].split()[0]
    overlay = call("plot", run, paths[0], tmp_path / "word.png", "--word", word)
    assert overlay.exit_code == 0 and (tmp_path / "word.png").stat().st_size > 1000, overlay.output
    for arguments, message in (
        (("plot", run, tmp_path / "text.jpg", tmp_path / "x.png"), "Expected the bytes of a JPEG or PNG"),
        (("predict", run), "this run reads images: give JPEG or PNG files"),
        (("predict", run, "-"), "INPUT is -, and this run reads images: give JPEG or PNG files"),
        (("plot", run, paths[0], tmp_path / "x.png", "--word", "no"), "--word must be one of the caption"),
        (("plot", run, paths[0], tmp_path / "x.png", "--word", "no", "--other", "x"), "--other is a text to compare"),
        (("evaluate", run, paths[0]), "a folder of images and a file of their captions"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and message in result.output, result.output
