"""Score functions: how well does each key answer each query? Pure functions, [B, T, .] and [B, S, .] -> [B, T, S].

All of them compute in at least float32, whatever the dtype that comes in.
"""

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
    return ops.squeeze(ops.matmul(hidden, vector[:, None]), axis=-1)


def dot_score(query, key):
    """Dot score, Luong et al. 2015 (https://arxiv.org/abs/1508.04025), equation 8: score(q, k) = q . k.

    Args:
        query: [B, T, D].
        key: [B, S, D].

    Returns:
        Scores [B, T, S].
    """
    return ops.matmul(at_least_float32(query), ops.swapaxes(at_least_float32(key), 1, 2))


def scaled_dot_score(query, key):
    """Scaled dot score, Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), equation 1: q . k / sqrt(D).

    Args:
        query: [B, T, D].
        key: [B, S, D].

    Returns:
        Scores [B, T, S].
    """
    return dot_score(at_least_float32(query) * query.shape[-1] ** -0.5, key)
