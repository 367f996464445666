"""Score functions: how well does each key answer each query? Pure functions, [B, T, .] and [B, S, .] -> [B, T, S].

All of them compute in at least float32, whatever the dtype that comes in. `concat_score` and `general_score` take the
weight matrix of their equation; their layers apply it in two parts, so that keys are projected once.
"""

import keras
from keras import ops

from keras_attention.masks import at_least_float32


def additive_score(query, key, vector):
    """Additive score, Bahdanau et al. 2015 (https://arxiv.org/abs/1409.0473), section A.1.2.

        score(q, k) = v . tanh(W_q q + W_k k + b)

    The paper writes W_a for W_q, U_a for W_k and v_a for v.

    Args:
        query: [B, T, U], already projected by W_q.
        key: [B, S, U], already projected by W_k (and with b added, where there is one).
        vector: v, [U].

    Returns:
        Scores [B, T, S].
    """
    query, key, vector = at_least_float32(query), at_least_float32(key), at_least_float32(vector)
    hidden = ops.tanh(query[:, :, None, :] + key[:, None, :, :])  # [B, T, S, U]
    return ops.squeeze(product(hidden, vector[:, None]), axis=-1)


def concat_score(query, key, kernel, vector):
    """Concat score, Luong et al. 2015 (https://arxiv.org/abs/1508.04025), equation 8 ("concat").

        score(q, k) = v . tanh(W_a [q; k])

    computed as v . tanh(W_q q + W_k k), where the rows of the kernel are those of W_q and then those of W_k.

    Args:
        query: [B, T, Dq].
        key: [B, S, Dk].
        kernel: [Dq + Dk, U], the transpose of the paper's W_a.
        vector: v, [U]; the paper's v_a.

    Returns:
        Scores [B, T, S].
    """
    query, key, kernel = at_least_float32(query), at_least_float32(key), at_least_float32(kernel)
    width = query.shape[-1]
    return additive_score(product(query, kernel[:width]), product(key, kernel[width:]), vector)


def cosine_score(query, key, sharpness=1.0):
    """Cosine score, Graves, Wayne, Danihelka 2014 (https://arxiv.org/abs/1410.5401), equations 5 and 6.

        score(q, k) = beta * q . k / (|q| |k|)

    Args:
        query: [B, T, D].
        key: [B, S, D].
        sharpness: beta (the paper's key strength), a number or a tensor that broadcasts to [B, T, S], above 0.

    Returns:
        Scores [B, T, S]; 0, with a gradient of 0, where the query or the key is a zero vector.
    """
    return dot_score(unit_vectors(query), unit_vectors(key)) * sharpness


def unit_vectors(x):
    """x [..., D] divided by its length; a vector shorter than 1e-6 becomes zeros, with a gradient of zero."""
    x = at_least_float32(ops.convert_to_tensor(x))
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    long = squares > 1e-12
    return ops.where(long, x * ops.rsqrt(ops.where(long, squares, 1.0)), 0.0)


def product(x, matrix):
    """x [..., D] . matrix [D, U] -> [..., U], by way of [N, D].

    `ops.matmul` goes another way on TensorFlow (tensordot), whose gradient XLA cannot compile where lengths are unknown
    and a loop runs around it, as in a decoder.
    """
    rows = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), matrix)
    return ops.reshape(rows, (*ops.shape(x)[:-1], ops.shape(matrix)[-1]))


def affine(rows, kernel, bias=None, training=False):
    """rows [N, D] . kernel [D, U] + bias [U].

    On TensorFlow, graphs make one operation of product and sum. In 16-bit floats a CPU takes twice the time for it that
    the two take, and sums the gradient of the bias in 16 bits: `training` keeps them apart there, with a gradient that
    is a product of matrices and so summed in float32.
    """
    result = ops.matmul(rows, kernel)
    if bias is None:
        return result
    half = keras.utils.standardize_dtype(result.dtype) in ("bfloat16", "float16")
    if not half or not training or keras.backend.backend() != "tensorflow":
        return ops.add(result, bias)

    @ops.custom_gradient
    def add(x, bias):
        def backward(upstream):
            return upstream, column_sums(upstream, bias.shape[0])

        return ops.add(x[None], bias)[0], backward  # of another shape, so that graphs leave it apart

    return add(result, ops.cast(bias, result.dtype))


def column_sums(x, width):
    """Sums of x [..., D] over all but the last axis, of this width: [D], as a product of matrices."""
    rows = ops.reshape(x, (-1, width))
    return ops.matmul(ops.ones((1, ops.shape(rows)[0]), x.dtype), rows)[0]


def dot_score(query, key):
    """Dot score, Luong et al. 2015 (https://arxiv.org/abs/1508.04025), equation 8: score(q, k) = q . k.

    Args:
        query: [B, T, D].
        key: [B, S, D].

    Returns:
        Scores [B, T, S].
    """
    return ops.matmul(at_least_float32(query), ops.swapaxes(at_least_float32(key), 1, 2))


def general_score(query, key, kernel):
    """General score, Luong et al. 2015 (https://arxiv.org/abs/1508.04025), equation 8 ("general"): q . W_a k.

    Args:
        query: [B, T, Dq].
        key: [B, S, Dk].
        kernel: [Dk, Dq], the transpose of the paper's W_a.

    Returns:
        Scores [B, T, S].
    """
    return dot_score(query, ops.matmul(at_least_float32(key), at_least_float32(kernel)))


def location_score(query, kernel, length):
    """Location score, Luong et al. 2015 (https://arxiv.org/abs/1508.04025), equation 7: W_a q, without looking at keys.

    Args:
        query: [B, T, Dq].
        kernel: [Dq, L], the transpose of the paper's W_a: one column for each of the first L source positions.
        length: S, how many columns to use; an integer, or a scalar tensor in a graph that does not know it.

    Returns:
        Scores [B, T, S].

    Raises:
        ValueError: a known length exceeds L. An unknown one that does so fails when the graph runs.
    """
    if not ops.is_tensor(length):
        check_source_length(length, kernel.shape[-1])
    # `slice` refuses what is not there; [:, :length] would silently give fewer columns.
    columns = ops.slice(ops.convert_to_tensor(kernel), (0, 0), (kernel.shape[0], length))
    return product(at_least_float32(query), at_least_float32(columns))


def check_source_length(length, max_length):
    """Refuses a source that is longer than a location score has columns for."""
    if length > max_length:
        raise ValueError(
            f"A location score expects a source of at most max_length={max_length} positions, padding included. "
            f"Received: length {length}; shorten the source or train with a greater max_length."
        )


def scaled_dot_score(query, key):
    """Scaled dot score, Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), equation 1: q . k / sqrt(D).

    Args:
        query: [B, T, D].
        key: [B, S, D].

    Returns:
        Scores [B, T, S].
    """
    return dot_score(at_least_float32(query) * query.shape[-1] ** -0.5, key)
