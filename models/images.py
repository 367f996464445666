"""Image files, as bytes, to arrays, in the graph; and, row by row in Python, why one cannot be read."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
EXPECTED = "Expected the bytes of a JPEG or PNG image."


def read_images(data, size):
    """Decodes images of any sizes and resizes them, without keeping their proportions.

    Args:
        data: string tensor [B], bytes of JPEG or PNG files. What is transparent becomes white. Pixels are taken as they
            are stored: a camera's note in the file that they are to be turned (EXIF) is not read, so turn such pictures
            before (`PIL.ImageOps.exif_transpose`).
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

    def read(row):
        image = tf.cond(_begins_with(row, PNG), lambda: _read_png(row), lambda: _read_jpeg(row))
        return tf.ensure_shape(tf.image.resize(image, size, antialias=True), (*size, 3))

    return tf.map_fn(read, data, fn_output_signature=tf.float32)


def what_is_wrong(data):
    """Why bytes cannot be read as an image, in one sentence; None if they can."""
    import tensorflow as tf

    if not data:
        return f"The image is empty. {EXPECTED}"
    if not data.startswith((JPEG, PNG)):
        kind = "a GIF" if data.startswith(b"GIF8") else "something else"
        return f"{EXPECTED} Received: {kind}, which begins with {data[:8]!r}."
    try:
        read_images(tf.constant([data]), (1, 1))
    except tf.errors.InvalidArgumentError:
        return "The image is damaged or cut short: its data cannot be decoded."
    return None


def _read_jpeg(row):
    import tensorflow as tf

    check = tf.debugging.Assert(_begins_with(row, JPEG), [EXPECTED, "Received bytes that begin with", _head(row)])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.cast(tf.io.decode_jpeg(row, channels=3, dct_method="INTEGER_ACCURATE"), tf.float32)


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
