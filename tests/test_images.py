"""Image files to arrays."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_attention.models.images import image_reader
from keras_attention.training.plots import read_picture

ORIENTATION = 0x0112


def picture(height=24, width=40):
    """Four corners that differ, smooth enough for JPEG."""
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    return Image.fromarray((250 * (rows * [1, 0, 0.5] + columns * [0, 1, 0.5])).astype("uint8"))


def jpeg(orientation=None, order="MM", before=b""):
    exif = Image.Exif()
    exif[0x010F] = "A camera"  # stands before the orientation
    exif.endian = "<" if order == "II" else ">"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    picture().save(file, "JPEG", quality=95, exif=exif)
    data = file.getvalue()
    return data[:2] + before + data[2:]


def read(data, size):
    return image_reader(*size)(tf.constant([data])).numpy()[0]


@pytest.mark.parametrize("order", ["MM", "II"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_note_turns_the_image_upright(orientation, order, tmp_path):
    """As Pillow does it; a comment that stands before the note is passed over."""
    data = jpeg(orientation, order, before=b"\xff\xfe\x00\x07Hello")
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == orientation
    assert (b"II*\x00" if order == "II" else b"MM\x00*") in data
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), "float32")
    found = read(data, expected.shape[:2])
    assert found.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    assert np.abs(found - expected).max() <= 4
    (tmp_path / "image.jpg").write_bytes(data)
    assert np.abs(read_picture(tmp_path / "image.jpg") - expected).max() <= 4  # what the attention is drawn on


@pytest.mark.parametrize("data", [jpeg(), jpeg(9), jpeg(0)], ids=["without", "9", "0"])
def test_an_image_without_a_note_or_with_nonsense_stays_as_it_is(data):
    np.testing.assert_array_equal(read(data, (24, 40)), read(jpeg(1), (24, 40)))


def test_no_byte_of_a_damaged_note_keeps_an_image_from_being_read():
    data = jpeg(6)
    place = data.index(b"Exif")
    expected = image_reader(8, 8)(tf.constant([jpeg(orientation) for orientation in range(1, 9)])).numpy()
    places = [changed for changed in range(place, place + 40) for _ in range(2)]
    damaged = [data[:at] + byte + data[at + 1 :] for at, byte in zip(places, [b"\0", b"\xff"] * 40, strict=True)]
    for at, found in zip(places, image_reader(8, 8)(tf.constant(damaged)).numpy(), strict=True):
        assert any(np.array_equal(found, image) for image in expected), at
