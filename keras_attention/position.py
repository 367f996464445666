"""Where a token stands: encodings that are added to it, a rotation of queries and keys, and biases of the scores.

Three kinds, three verbs: `SinusoidalEncoding` and `PositionEmbedding` are called on [B, T, D]; `RotaryEmbedding` has
`rotate(x, positions)`; `ALiBi` and `RelativeBias` have `bias(query_positions, key_positions)`. Positions are integers,
[T] for all rows alike or [B, T] for each row its own (left padding, prompts of different lengths).
"""

import math

import keras
import numpy as np
from keras import ops


def sinusoidal_encoding(positions, width):
    """The sinusoids of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5, interleaved as there.

        PE(pos, 2i) = sin(pos / 10000^(2i / D)),    PE(pos, 2i + 1) = cos(pos / 10000^(2i / D))

    Args:
        positions: integers of any shape [...]; or an integer L, for the positions 0 ... L - 1.
        width: D; where it is odd, the last column is a sine.

    Returns:
        Encoding [..., D] in float32.

    >>> ops.convert_to_numpy(sinusoidal_encoding(2, 4)).astype("float64").round(3).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.841, 0.54, 0.01, 1.0]]
    """
    positions = ops.arange(positions) if isinstance(positions, int) else ops.convert_to_tensor(positions)
    angles = _angles(positions, 10000.0 ** (-np.arange(0, width, 2) / width))
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # [..., D / 2, 2]
    return ops.reshape(pairs, (*ops.shape(angles)[:-1], 2 * angles.shape[-1]))[..., :width]


def _angles(positions, frequencies):
    """Positions [...] by frequencies [F] as angles [..., F]."""
    return ops.cast(positions, "float32")[..., None] * ops.convert_to_tensor(frequencies, dtype="float32")


def _positions(x, offset, positions):
    """The positions of x [B, T, ...], [T] or [B, T]: those given, or offset, offset + 1, ..."""
    if positions is None:
        return ops.arange(ops.shape(x)[1]) + offset
    if not (isinstance(offset, int) and offset == 0):
        raise ValueError(f"Positions are given either by offset or by positions. Received both: offset={offset}")
    positions = ops.convert_to_tensor(positions)
    if "float" in keras.utils.standardize_dtype(positions.dtype):
        raise TypeError(f"positions must be integers. Received: dtype {keras.utils.standardize_dtype(positions.dtype)}")
    return positions


@keras.saving.register_keras_serializable(package="keras_attention")
class SinusoidalEncoding(keras.layers.Layer):
    """Adds the sinusoids of `sinusoidal_encoding` to embeddings: no weights, sequences of any length.

        PE(pos, 2i) = sin(pos / 10000^(2i / D)),    PE(pos, 2i + 1) = cos(pos / 10000^(2i / D))

    The paper multiplies its embeddings by sqrt(D) before; this layer leaves them as they are.

    Call arguments:
        x: [B, T, D].
        offset: position of the first token, an integer or a scalar tensor: how many a cache holds already.
        positions: integers [T] or [B, T], instead of an offset.

    Returns:
        [B, T, D]. The mask of x is carried on.

    Example:

    >>> from keras import ops
    >>> layer = SinusoidalEncoding()
    >>> whole, last = layer(ops.ones((2, 5, 8))), layer(ops.ones((2, 1, 8)), offset=4)
    >>> bool(ops.max(ops.abs(whole[:, 4:] - last)) < 1e-6)
    True

    Reference:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, x_shape, positions_shape=None):
        _check_rank(self, x_shape, "[batch, length, width]", 3)
        self.built = True

    def call(self, x, offset=0, positions=None):
        return x + ops.cast(sinusoidal_encoding(_positions(x, offset, positions), x.shape[-1]), x.dtype)

    def compute_output_shape(self, x_shape, positions_shape=None):
        return tuple(x_shape)


@keras.saving.register_keras_serializable(package="keras_attention")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector for each position: x + E[pos].

    Args:
        max_length: L, the number of positions.
        embeddings_initializer: initializer of E [L, D].

    Call arguments:
        x: [B, T, D].
        offset: position of the first token, an integer or a scalar tensor: how many a cache holds already.
        positions: integers [T] or [B, T], instead of an offset.

    Returns:
        [B, T, D]. The mask of x is carried on.

    Raises:
        ValueError: the sequence needs more than max_length positions. Where that is known only when a graph runs, the
            backend does as it does (TensorFlow on CPU raises, JAX gives NaN).

    Example:

    >>> from keras import ops
    >>> tuple(PositionEmbedding(max_length=16)(ops.ones((2, 5, 8)), offset=11).shape)
    (2, 5, 8)

    References:
        Gehring et al. 2017, https://arxiv.org/abs/1705.03122, section 3.1.
        Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.
    """

    def __init__(self, max_length, embeddings_initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        _check_positive(self, max_length=max_length)
        self.max_length = max_length
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.supports_masking = True

    def build(self, x_shape, positions_shape=None):
        _check_rank(self, x_shape, "[batch, length, width]", 3)
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.max_length, x_shape[-1]), initializer=self.embeddings_initializer
        )

    def call(self, x, offset=0, positions=None):
        length = x.shape[1]
        if positions is None and isinstance(length, int) and isinstance(offset, int):
            self._check_length(length, offset)
        return x + ops.cast(ops.take(self.embeddings, _positions(x, offset, positions), axis=0), x.dtype)

    def _check_length(self, length, offset):
        if offset < 0 or length + offset > self.max_length:
            raise ValueError(
                f"PositionEmbedding has the positions 0 ... {self.max_length - 1} (max_length={self.max_length}). "
                f"Received: a sequence of length {length} from offset {offset}; shorten it, train with a greater "
                "max_length, or use SinusoidalEncoding, which has no limit."
            )

    def compute_output_shape(self, x_shape, positions_shape=None):
        return tuple(x_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_attention")
class RotaryEmbedding(keras.layers.Layer):
    """Rotates queries and keys by angles that grow with their position: scores then depend on distances only.

        (a_i, b_i) -> (a_i cos(m t_i) - b_i sin(m t_i), b_i cos(m t_i) + a_i sin(m t_i)),    t_i = base^(-2i / K)

    for position m and each of the K / 2 pairs of a head. A pair is made of number i of the first half and number i of
    the second (GPT-NeoX, Llama); the paper pairs neighbours, which is the same with the columns of W_q and W_k in
    another order. Angles are computed in float32. Lengths of vectors are kept.

    Args:
        base: the paper's 10000.
        scaling: positions are divided by it. A model that was trained on L positions is fine-tuned to scaling * L so
            (position interpolation, Chen et al. 2023, equation 4).

    Call arguments:
        x: queries or keys [B, T, H, K], K even.
        offset: position of the first, an integer or a scalar tensor: how many a cache holds already.
        positions: integers [T] or [B, T], instead of an offset.

    Returns:
        [B, T, H, K]. The mask of x is carried on.

    Example:

    >>> from keras import ops
    >>> rotary = RotaryEmbedding()
    >>> query, key = ops.ones((1, 1, 2, 8)), ops.ones((1, 1, 2, 8)) / 4
    >>> near = ops.sum(rotary.rotate(query, [5]) * rotary.rotate(key, [3]))
    >>> far = ops.sum(rotary.rotate(query, [105]) * rotary.rotate(key, [103]))
    >>> bool(ops.abs(near - far) < 1e-4)
    True

    References:
        Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, equations 14, 15 and 34.
        Chen et al. 2023, "Extending Context Window via Positional Interpolation", https://arxiv.org/abs/2306.15595.
    """

    def __init__(self, base=10000.0, scaling=1.0, **kwargs):
        super().__init__(**kwargs)
        if base <= 0 or scaling <= 0:
            raise ValueError(f"RotaryEmbedding expects base and scaling above 0. Received: {base=}, {scaling=}")
        self.base = base
        self.scaling = scaling
        self.supports_masking = True

    def build(self, x_shape, positions_shape=None):
        _check_rank(self, x_shape, "[batch, length, heads, width]", 4)
        self._check_width(x_shape[-1])
        self.built = True

    def rotate(self, x, positions):
        """Rotates x [B, T, H, K] as its positions, integers [T] or [B, T], say."""
        self._check_width(x.shape[-1])
        half = x.shape[-1] // 2
        frequencies = self.base ** (-np.arange(half) / half) / self.scaling
        angles = _angles(ops.convert_to_tensor(positions), frequencies)[..., None, :]  # [B or none, T, 1, K / 2]
        dtype = keras.backend.result_type(x.dtype, "float32")
        cosine, sine = (ops.cast(function(angles), dtype) for function in (ops.cos, ops.sin))
        first, second = ops.split(ops.cast(x, dtype), 2, axis=-1)
        rotated = ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
        return ops.cast(rotated, x.dtype)

    def call(self, x, offset=0, positions=None):
        return self.rotate(x, _positions(x, offset, positions))

    def _check_width(self, width):
        if width % 2:
            raise ValueError(f"RotaryEmbedding rotates pairs and expects heads of even width. Received: width {width}")

    def compute_output_shape(self, x_shape, positions_shape=None):
        return tuple(x_shape)

    def get_config(self):
        return {**super().get_config(), "base": self.base, "scaling": self.scaling}


class _DistanceBias(keras.layers.Layer):
    """A bias of scores that depends on head and distance: subclasses define `by_distance(distances)`."""

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        _check_positive(self, num_heads=num_heads)
        self.num_heads = num_heads

    def build(self, query_positions_shape=None, key_positions_shape=None):
        self.built = True

    def bias(self, query_positions, key_positions):
        """The bias [H, T, S] of positions [T] and [S], or [B, H, T, S] of positions [B, T] and [B, S]."""
        query_positions, key_positions = (ops.convert_to_tensor(x) for x in (query_positions, key_positions))
        bias = self.by_distance(key_positions[..., None, :] - query_positions[..., :, None])
        return ops.swapaxes(bias, 0, 1) if len(bias.shape) == 4 else bias

    def call(self, query_positions, key_positions):
        return self.bias(query_positions, key_positions)

    def compute_output_shape(self, query_positions_shape, key_positions_shape):
        lengths = self.num_heads, query_positions_shape[-1], key_positions_shape[-1]
        return (*query_positions_shape[:-1], *lengths)

    def compute_output_spec(self, query_positions, key_positions):
        shape = self.compute_output_shape(query_positions.shape, key_positions.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable(package="keras_attention")
class ALiBi(_DistanceBias):
    """Attention with linear biases: the score of a key falls with its distance, faster in one head than in another.

        score(q_i, k_j) = q_i . k_j / sqrt(K) - m_h |i - j|

    With n heads, n a power of two, the slopes m_h are 2^(-8/n), 2^(-16/n), ..., 2^-8. Otherwise they are those of the
    next smaller power of two, then every second one of twice that power, as in the authors' code. The paper has
    causal attention, where |i - j| = i - j; without a causal mask the bias is symmetric. No weights.

    Args:
        num_heads: H.

    Call arguments (and those of `bias`):
        query_positions, key_positions: integers, [T] and [S], or [B, T] and [B, S].

    Returns:
        Bias in float32, [H, T, S] or [B, H, T, S], to be added to the scores. `by_distance(distances)` gives it for
        differences j - i of any shape [...] as [H, ...].

    Example:

    >>> from keras import ops
    >>> layer = ALiBi(num_heads=8)
    >>> layer.slopes[:3].tolist()
    [0.5, 0.25, 0.125]
    >>> ops.convert_to_numpy(layer(ops.array([7]), ops.array([4, 5, 6])))[0].tolist()
    [[-1.5, -1.0, -0.5]]

    Reference:
        Press, Smith, Lewis 2022, https://arxiv.org/abs/2108.12409, section 3, and its code,
        https://github.com/ofirpress/attention_with_linear_biases.
    """

    @property
    def slopes(self):
        """m, an array of H numbers."""
        power = 2 ** int(math.log2(self.num_heads))
        slopes, finer = (2.0 ** (-8 / n * np.arange(1, n + 1)) for n in (power, 2 * power))
        return np.concatenate([slopes, finer[::2][: self.num_heads - power]]).astype("float32")

    def by_distance(self, distances):
        """The bias [H, ...] of differences j - i [...], integers."""
        distances = ops.cast(ops.abs(ops.convert_to_tensor(distances)), "float32")
        slopes = ops.reshape(ops.convert_to_tensor(self.slopes), (self.num_heads, *[1] * len(distances.shape)))
        return -slopes * distances


@keras.saving.register_keras_serializable(package="keras_attention")
class RelativeBias(_DistanceBias):
    """A learned bias of the scores for each head and each bucket of distances.

        score(q_i, k_j) = q_i . k_j / sqrt(K) + b_h[bucket(j - i)]

    kind="t5": half of the buckets are distances of their own, the others grow logarithmically up to max_distance, and
    the last one holds all that lies beyond; if bidirectional, one half of the buckets is for keys ahead. (T5 itself
    does not divide by sqrt(K).)

    kind="clip": every distance up to max_distance has its bucket, and what lies beyond belongs to the last one of its
    side. Shaw et al. clip so, but learn a vector for each distance, which is added to the keys; here it is one number.

    Args:
        num_heads: H.
        kind: "t5" or "clip".
        num_buckets: of kind "t5"; even if bidirectional.
        max_distance: the distance from which on all are alike; the papers have 128 (T5) and 16 (Shaw et al.).
        bidirectional: whether keys ahead have buckets of their own; otherwise they share that of distance 0.
        embeddings_initializer: initializer of b; with zeros, training begins without a bias.

    Call arguments (and those of `bias`):
        query_positions, key_positions: integers, [T] and [S], or [B, T] and [B, S].

    Returns:
        Bias in float32, [H, T, S] or [B, H, T, S], to be added to the scores. `by_distance(distances)` gives it for
        differences j - i of any shape [...] as [H, ...].

    Example:

    >>> from keras import ops
    >>> layer = RelativeBias(num_heads=2, kind="t5")
    >>> tuple(layer(ops.arange(3), ops.arange(5)).shape)
    (2, 3, 5)
    >>> ops.convert_to_numpy(layer.bucket(ops.array([-200, -9, -3, 0, 3, 9, 200]))).tolist()
    [15, 8, 3, 0, 19, 24, 31]

    References:
        Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1, and its code, the function
        `_relative_position_bucket` of https://github.com/tensorflow/mesh.
        Shaw, Uszkoreit, Vaswani 2018, https://arxiv.org/abs/1803.02155, equation 5 (clip).
    """

    def __init__(
        self,
        num_heads,
        kind="t5",
        num_buckets=32,
        max_distance=128,
        bidirectional=True,
        embeddings_initializer="zeros",
        **kwargs,
    ):
        super().__init__(num_heads, **kwargs)
        _check_positive(self, num_buckets=num_buckets, max_distance=max_distance)
        if kind not in ("t5", "clip"):
            raise ValueError(f"RelativeBias expects the kind 't5' or 'clip'. Received: {kind=}")
        sides = 2 if bidirectional else 1
        if kind == "t5" and (num_buckets % (2 * sides) or max_distance <= num_buckets // (2 * sides)):
            raise ValueError(
                f"RelativeBias of kind 't5' expects num_buckets to be a multiple of {2 * sides} (bidirectional="
                f"{bidirectional}) and max_distance to exceed num_buckets / {2 * sides}, the distances that have "
                f"buckets of their own. Received: {num_buckets=}, {max_distance=}"
            )
        self.kind = kind
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self._table = self._bucket_table()

    def build(self, query_positions_shape=None, key_positions_shape=None):
        # A 16-bit policy must not round what is added to scores in float32.
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(int(self._table.max()) + 1, self.num_heads),
            initializer=self.embeddings_initializer,
            autocast=False,
        )

    def _bucket_table(self):
        """The bucket of each distance from -max_distance to max_distance (to 0 if not bidirectional)."""
        distances = np.arange(-self.max_distance, self.max_distance + 1 if self.bidirectional else 1)
        if self.kind == "clip":
            return (distances + self.max_distance).astype("int32")
        buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        near, far = buckets // 2, np.abs(distances)
        logarithm = np.log(np.maximum(far, near) / near) / np.log(self.max_distance / near)
        # The small number keeps 16 = 8 * 2, of logarithm 1/4, from being rounded down.
        large = np.minimum(near + (logarithm * (buckets - near) + 1e-9).astype("int32"), buckets - 1)
        return (np.where(far < near, far, large) + buckets * (distances > 0)).astype("int32")

    def bucket(self, distances):
        """The bucket of each difference j - i, integers of any shape."""
        last = len(self._table) - 1
        places = ops.clip(ops.convert_to_tensor(distances) + self.max_distance, 0, last)
        return ops.take(ops.convert_to_tensor(self._table), places, axis=0)

    def by_distance(self, distances):
        """The bias [H, ...] of differences j - i [...], integers."""
        if not self.built:
            self.build()
        bias = ops.take(ops.convert_to_tensor(self.embeddings), self.bucket(distances), axis=0)
        return ops.moveaxis(bias, -1, 0)

    def get_config(self):
        return {
            **super().get_config(),
            "kind": self.kind,
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


def _check_rank(layer, shape, expected, rank):
    if len(shape) != rank:
        raise ValueError(f"{type(layer).__name__} expects x of shape {expected}. Received: x.shape={tuple(shape)}")


def _check_positive(layer, **numbers):
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"{type(layer).__name__} expects {name} to be a positive integer. Received: {name}={number!r}"
            )
