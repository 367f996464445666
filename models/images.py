"""Image files, as bytes, to arrays, in the graph; and, row by row in Python, why one cannot be read."""

import functools

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
HEAD = 2**16  # bytes of a segment at most
EXPECTED = "Expected the bytes of a JPEG or PNG image."


def read_images(data, size):
    """Decodes images of any sizes and resizes them, without keeping their proportions.

    Args:
        data: string tensor [B], bytes of JPEG or PNG files. What is transparent becomes white; a JPEG whose camera
            noted how it was held (EXIF) is turned upright.
        size: (height, width).

    Returns:
        float32 [B, height, width, 3], numbers from 0 to 255.

    Raises:
        tf.errors.InvalidArgumentError: a row is no JPEG or PNG, or its data are damaged or cut short.

    Example:

    >>> import tensorflow as tf
    >>> picture = tf.io.encode_png(tf.zeros([5, 4, 3], tf.uint8))
    >>> read_images(picture[None], (8, 8)).shape
    TensorShape([1, 8, 8, 3])
    """
    import tensorflow as tf

    return tf.map_fn(lambda row: read_resized(row, size), data, fn_output_signature=tf.float32)


def read_resized(row, size):
    """One image as `read_images` gives it, float32 [height, width, 3]."""
    import tensorflow as tf

    return tf.ensure_shape(tf.image.resize(read_image(row), size, antialias=True), (*size, 3))


def read_image(row):
    """One image of its own size, float32 [height, width, 3]; see `read_images`."""
    import tensorflow as tf

    return tf.cond(_begins_with(row, PNG), lambda: _read_png(row), lambda: _read_jpeg(row))


def what_is_wrong(data):
    """Why bytes cannot be read as an image, in one sentence; None if they can."""
    import tensorflow as tf

    if not data:
        return f"The image is empty. {EXPECTED}"
    if not data.startswith((JPEG, PNG)):
        kind = "a GIF" if data.startswith(b"GIF8") else "something else"
        return f"{EXPECTED} Received: {kind}, which begins with {data[:8]!r}."
    try:
        image_reader(1, 1)(tf.constant([data]))
    except tf.errors.InvalidArgumentError:
        return "The image is damaged or cut short: its data cannot be decoded."
    return None


@functools.cache
def image_reader(height, width):
    """`read_images` as a graph, which outside of another one is much faster."""
    import tensorflow as tf

    return tf.function(lambda data: read_images(data, (height, width)), [tf.TensorSpec([None], tf.string)])


def _read_jpeg(row):
    import tensorflow as tf

    check = tf.debugging.Assert(_begins_with(row, JPEG), [EXPECTED, "Received bytes that begin with", _head(row)])
    with tf.control_dependencies([check] if check is not None else []):
        image = tf.cast(tf.io.decode_jpeg(row, channels=3, dct_method="INTEGER_ACCURATE"), tf.float32)
    return _upright(image, _orientation(row))


def _upright(image, orientation):
    """An image [height, width, 3] with the changes that the orientation, 1 to 8, asks for."""
    import tensorflow as tf

    def one_of(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    image = tf.cond(one_of(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _orientation(row):
    """How a JPEG is to be turned, as its EXIF segment says: 1 to 8; 1, as it is, where there is none or a damaged one.

    Exif 2.3, section 4.6.4: the tag 0x0112 of the first directory of a TIFF header.
    """
    import tensorflow as tf

    # Whatever a damaged file points to lies within the bytes, behind which there are zeros.
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(row, 0, 2 * HEAD), tf.uint8), tf.int32)
    data = tf.pad(data, [[0, 16]])
    last = tf.size(data) - 4

    def number(place, count, little=None):
        parts = tf.slice(data, [tf.clip_by_value(place, 0, last)], [count])
        if little is not None:
            parts = tf.where(little, parts[::-1], parts)
        return tf.reduce_sum(parts * tf.constant([256**i for i in reversed(range(count))]))

    def is_exif(place):
        return (number(place, 2) == 0xFFE1) & (number(place + 4, 3) == 0x457869)  # "Exi"

    def goes_on(place):
        is_segment = (number(place, 1) == 0xFF) & (number(place + 1, 1) != 0xDA)
        return is_segment & ~is_exif(place) & (place < last)

    (place,) = tf.while_loop(goes_on, lambda place: (place + 2 + number(place + 2, 2),), (tf.constant(2),))
    header = place + 10
    little = number(header, 2) == 0x4949  # "II"
    directory = header + tf.clip_by_value(number(header + 4, 4, little), 0, HEAD)
    count = tf.where(is_exif(place), tf.minimum(number(directory, 2, little), HEAD // 12), 0)
    entries = tf.clip_by_value(directory + 2 + 12 * tf.range(count), 0, last)
    tag = tf.where(little, [0x12, 0x01], [0x01, 0x12])
    found = tf.boolean_mask(entries, (tf.gather(data, entries) == tag[0]) & (tf.gather(data, entries + 1) == tag[1]))
    value = number(tf.concat([found, [0]], axis=0)[0] + 8, 2, little)
    return tf.where((tf.size(found) > 0) & (value >= 1) & (value <= 8), value, 1)


def _read_png(row):
    """A PNG on white."""
    import tensorflow as tf

    image = tf.cast(tf.io.decode_png(row, channels=4), tf.float32)
    opacity = image[:, :, 3:] / 255.0
    return image[:, :, :3] * opacity + 255.0 * (1.0 - opacity)


def _begins_with(row, head):
    import tensorflow as tf

    return tf.equal(tf.strings.substr(row, 0, len(head)), head)


def _head(row):
    import tensorflow as tf

    return tf.io.encode_base64(tf.strings.substr(row, 0, 8))
