"""Stepwise decoding: cached steps are the full pass, prefixes are shared, what is full says so."""

import keras
import numpy as np
import pytest
from helpers import random, randomize, to_numpy
from keras import ops

from keras_attention import ALiBi, MultiHeadAttention, RelativeBias, RotaryEmbedding, record_scores
from keras_attention.cache import grow

pytestmark = pytest.mark.backends
BACKEND = keras.backend.backend()
B, W, P, T, S, D, H, K, VD = 2, 3, 5, 7, 4, 11, 6, 4, 13
X, PROMPT, MEMORY = random(B * W, T, D), random(B, P, D, seed=1), random(B, S, D, seed=2)
PROMPT_MASK = np.arange(P) < np.array([[5], [3]])
MEMORY_MASK = np.array([[1, 1, 0, 1], [1, 0, 1, 1]], bool)
POSITIONS = {
    "none": lambda: None,
    "rotary": lambda: RotaryEmbedding(base=100.0),
    "alibi": lambda: ALiBi(H),
    "t5": lambda: RelativeBias(H, num_buckets=8, max_distance=9, embeddings_initializer="normal"),
    "clip": lambda: RelativeBias(H, kind="clip", max_distance=3, embeddings_initializer="normal"),
}
OPTIONS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "multi_query": {"num_key_value_heads": 1, "value_dim": VD},
    "window": {"sliding_window": 3},
    "gate": {"use_gate": True, "value_dim": VD},
    "fused": {"fused_projection": True, "num_key_value_heads": 3},
}
CASES = [("none", name) for name in OPTIONS] + [(kind, "grouped") for kind in POSITIONS if kind != "none"]


def built(position="none", name="plain", memory=None, **options):
    layer = MultiHeadAttention(H, K, position=POSITIONS[position](), **OPTIONS[name], **options)
    layer.build(X.shape, X.shape if memory is None else memory.shape)
    return randomize(layer)


def steps(layer, x, cache, sizes, start=0, **given):
    """Outputs and weights of a sequence that is fed in pieces of the given sizes, and the cache at the end."""
    outputs, scores = [], []
    for size in sizes:
        piece = x[:, start : start + size]
        options = {"use_causal_mask": True, "return_attention_scores": True, **given}
        output, weights, new = layer(piece, piece, cache=cache, cache_update_index=start, **options)
        cache = {**cache, **new}
        outputs.append(to_numpy(output))
        scores.append(to_numpy(weights))
        start += size
    return np.concatenate(outputs, axis=1), np.concatenate(scores, axis=2), cache


@pytest.mark.parametrize("sizes", [[1] * T, [3, 1, 3], [T]], ids=str)
@pytest.mark.parametrize(("position", "name"), CASES)
def test_cached_steps_are_the_full_pass(position, name, sizes):
    layer = built(position, name)
    expected, weights = layer(X, X, use_causal_mask=True, return_attention_scores=True)
    found, seen, _ = steps(layer, X, layer.initial_cache(B * W, T + 2), sizes)
    np.testing.assert_allclose(found, to_numpy(expected), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(seen[..., :T], to_numpy(weights), atol=1e-5, rtol=1e-5)
    assert not seen[..., T:].any()


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("position", "name"), CASES)
def test_hypotheses_share_the_prefix_of_their_row(position, name, side):
    """Prompts of several lengths, then W hypotheses a row: as each prompt and hypothesis alone, in one sequence."""
    layer = built(position, name)
    lengths = PROMPT_MASK.sum(1)
    mask = PROMPT_MASK if side == "right" else PROMPT_MASK[:, ::-1]
    prompts = np.full((B, P, D), np.nan, "float32")
    for row, length in enumerate(lengths):
        prompts[row, mask[row]] = PROMPT[row, :length]
    empty = layer.initial_cache(B, P)
    given = {"query_mask": mask, "value_mask": mask, "use_causal_mask": True}
    _, prefix = layer(*[ops.convert_to_tensor(prompts)] * 2, cache=empty, cache_update_index=0, **given)
    cache = {**layer.initial_cache(B * W, T), "prefix": prefix}
    found, seen, cache = steps(layer, X, cache, [1, 2, *[1] * (T - 3)])
    assert set(cache) == {"key", "value", "mask", "prefix"}
    for n in range(B * W):
        row = n // W
        alone = np.concatenate([PROMPT[row, : lengths[row]], X[n]])[None]
        expected, weights = layer(
            *[ops.convert_to_tensor(alone)] * 2, use_causal_mask=True, return_attention_scores=True
        )
        np.testing.assert_allclose(found[n], to_numpy(expected)[0, lengths[row] :], atol=1e-5, rtol=1e-5)
        seen_by_it = np.concatenate([seen[n][:, :, :P][:, :, mask[row]], seen[n][:, :, P:]], axis=-1)
        np.testing.assert_allclose(seen_by_it, to_numpy(weights)[0, :, lengths[row] :], atol=1e-5, rtol=1e-5)
    assert not seen[..., :P].reshape(B, W, H, T, P).transpose(0, 4, 1, 2, 3)[~mask].any()


@pytest.mark.parametrize(("position", "name"), [case for case in CASES if case[1] != "fused"])
def test_hypotheses_are_query_positions_of_one_memory(position, name):
    layer = built(position, name, MEMORY)
    mask = MEMORY_MASK.copy()
    mask[-1] = False  # a memory of nothing
    memory = layer.project_memory(ops.convert_to_tensor(MEMORY), value_mask=mask)
    assert tuple(memory["key"].shape) == (B, layer.num_key_value_heads, K, S)
    repeated, mask = np.repeat(MEMORY, W, axis=0), np.repeat(mask, W, axis=0)
    expected, weights = layer(X, repeated, value_mask=mask, return_attention_scores=True)
    output, seen = layer(X, cache={"prefix": memory}, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(seen), to_numpy(weights), atol=1e-5, rtol=1e-5)
    for step in range(T):
        output = layer(X[:, step : step + 1], cache={"prefix": memory}, cache_update_index=step)
        np.testing.assert_allclose(to_numpy(output), to_numpy(expected)[:, step : step + 1], atol=1e-5, rtol=1e-5)


def test_padding_in_the_cache_stays_unseen():
    """Padded pieces: what is behind a mask is not attended to by any later step, and not even its NaN leaks."""
    layer = built("none", "grouped")
    mask = np.ones((B * W, T), bool)
    mask[:, 2] = mask[1, 4] = False
    x = np.where(mask[:, :, None], X, np.nan)
    expected = layer(*[ops.convert_to_tensor(x)] * 2, query_mask=mask, value_mask=mask, use_causal_mask=True)
    cache = layer.initial_cache(B * W, T)
    for first, last in ((0, 3), (3, 5), (5, 7)):
        piece, seen = ops.convert_to_tensor(x[:, first:last]), mask[:, first:last]
        given = {"query_mask": seen, "value_mask": seen, "use_causal_mask": True}
        output, cache = layer(piece, piece, cache=cache, cache_update_index=first, **given)
        np.testing.assert_allclose(to_numpy(output), to_numpy(expected)[:, first:last], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(to_numpy(cache["mask"]), mask)


def test_a_mask_of_one_column_is_for_all_new_tokens():
    layer = built()
    seen = np.arange(B * W)[:, None] % 2 == 0
    piece = ops.convert_to_tensor(X[:, :3])
    _, cache = layer(piece, piece, value_mask=seen, cache=layer.initial_cache(B * W, T), cache_update_index=0)
    np.testing.assert_array_equal(to_numpy(cache["mask"]), seen & (np.arange(T) < 3))


def test_going_back_forgets_what_came_later():
    layer = built()
    _, _, full = steps(layer, X, layer.initial_cache(B * W, T), [T], use_causal_mask=False)
    piece = ops.convert_to_tensor(X[:, :2])
    wide = "int32" if BACKEND == "jax" else "int64"  # JAX has no int64 unless told so
    for index in (0, np.int64(0), ops.convert_to_tensor(0, dtype=wide)):
        again, cache = layer(piece, piece, cache=full, cache_update_index=index)
        np.testing.assert_allclose(to_numpy(again), to_numpy(layer(piece, piece)), atol=1e-5, rtol=1e-5)
        assert to_numpy(cache["mask"]).sum() == 2 * B * W


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("hypotheses", [1, W])
def test_a_prefix_may_be_empty(hypotheses):
    layer = built("rotary", "grouped")
    prefix = layer.project_memory(ops.zeros((B, 0, D)))
    x = X[: B * hypotheses]
    found, _, _ = steps(layer, x, {**layer.initial_cache(B * hypotheses, T), "prefix": prefix}, [1, T - 1])
    np.testing.assert_allclose(found, to_numpy(layer(x, x, use_causal_mask=True)), atol=1e-5, rtol=1e-5)


def test_the_cache_that_comes_back_goes_in_again():
    """Prefix and all."""
    layer = built()
    prefix = layer.project_memory(ops.convert_to_tensor(MEMORY))
    cache = {**layer.initial_cache(B * W, T), "prefix": prefix}
    expected, _, _ = steps(layer, X, cache, [T])
    for step in range(T):
        piece = ops.convert_to_tensor(X[:, step : step + 1])
        output, cache = layer(piece, piece, cache=cache, cache_update_index=step, use_causal_mask=True)
        np.testing.assert_allclose(to_numpy(output)[:, 0], expected[:, step], atol=1e-5, rtol=1e-5)


class Overriding(MultiHeadAttention):
    def _compute_attention(self, *args, **kwargs):
        return super()._compute_attention(*args, **kwargs)


def overriding():
    layer = Overriding(H, K)
    layer.build(X.shape, X.shape)
    return layer(X[:, :1], X[:, :1], cache=layer.initial_cache(B * W, T), cache_update_index=0)


def test_an_explicit_mask_covers_prefix_and_cache():
    layer = built()
    cache = {**layer.initial_cache(B * W, T), "prefix": layer.project_memory(ops.convert_to_tensor(MEMORY))}
    mask = np.random.default_rng(0).random((B * W, 2, S + T)) > 0.4
    piece = ops.convert_to_tensor(X[:, :2])
    _, weights, _ = layer(
        piece, piece, cache=cache, cache_update_index=1, attention_mask=mask, return_attention_scores=True
    )
    written = np.concatenate([np.ones(S, bool), np.isin(np.arange(T), [1, 2])])
    assert np.array_equal(to_numpy(weights) > 0, np.repeat((mask & written)[:, None], H, axis=1))


def compiled(function):
    """The function compiled by the backend, in every way that it has."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return [tf.function(function), tf.function(function, jit_compile=True)]
    if BACKEND == "jax":
        import jax

        return [jax.jit(function)]
    return [function]


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_steps_compile(position):
    """One graph for all steps: the index is a tensor."""
    layer = built(position, "grouped")
    prefix = layer.project_memory(ops.convert_to_tensor(MEMORY), value_mask=MEMORY_MASK)
    expected, _, _ = steps(layer, X, {**layer.initial_cache(B * W, T), "prefix": prefix}, [1] * T)

    def step(x, cache, prefix, index):
        cache = {**cache, "prefix": prefix}
        return layer(x, x, cache=cache, cache_update_index=index, use_causal_mask=True)

    for function in compiled(step):
        cache = layer.initial_cache(B * W, T)
        for index in range(T):
            number = ops.convert_to_tensor(index, dtype="int32")
            output, cache = function(ops.convert_to_tensor(X[:, index : index + 1]), cache, prefix, number)
            np.testing.assert_allclose(to_numpy(output)[:, 0], expected[:, index], atol=1e-5, rtol=1e-5)
        number = ops.convert_to_tensor(T, dtype="int32")
        assert np.isnan(to_numpy(function(ops.convert_to_tensor(X[:, :1]), cache, prefix, number)[0])).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sizes that a graph does not know are TensorFlow's")
def test_steps_of_unknown_sizes():
    import tensorflow as tf

    layer = built("alibi", "grouped")
    prefix = layer.project_memory(ops.convert_to_tensor(MEMORY), value_mask=MEMORY_MASK)
    expected, _, _ = steps(layer, X, {**layer.initial_cache(B * W, T), "prefix": prefix}, [T])
    shapes = [(None, None, D), (None, 2, K, None), (None, 2, None, K), (None, None)]
    specs = [tf.TensorSpec(shape, tf.bool if len(shape) == 2 else tf.float32) for shape in shapes]

    @tf.function(input_signature=specs)
    def run(x, key, value, mask):
        prefix = {"key": key, "value": value, "mask": mask}
        cache = {**layer.initial_cache(*tf.unstack(tf.shape(x)[:2])), "prefix": prefix}
        return layer(x, x, cache=cache, cache_update_index=0, use_causal_mask=True)[0]

    found = run(X, prefix["key"], prefix["value"], prefix["mask"])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
def test_a_cache_that_grows_keeps_what_was_written(position):
    layer = built(position)
    expected, _, _ = steps(layer, X, layer.initial_cache(B * W, T), [1] * T)
    before, _, cache = steps(layer, X, layer.initial_cache(B * W, 3), [1] * 3)
    behind, _, _ = steps(layer, X, grow(cache, T), [1] * (T - 3), start=3)
    np.testing.assert_allclose(np.concatenate([before, behind], axis=1), expected, atol=1e-5, rtol=1e-5)


def test_symbolic_steps():
    layer = MultiHeadAttention(H, K)
    x = keras.Input((1, D))
    cache = {
        "key": keras.Input((H, K, T)),
        "value": keras.Input((H, T, K)),
        "mask": keras.Input((T,), dtype="bool"),
    }
    output, weights, new = layer(x, x, cache=cache, cache_update_index=3, return_attention_scores=True)
    assert output.shape == (None, 1, D) and weights.shape == (None, H, 1, T)
    assert {name: x.shape for name, x in new.items()} == {name: x.shape for name, x in cache.items()}
    model = keras.Model([x, cache], [output, new])
    randomize(layer)
    values = layer.initial_cache(B, T)
    found, _ = model([ops.convert_to_tensor(X[:B, :1]), values])
    expected, _ = layer(*[ops.convert_to_tensor(X[:B, :1])] * 2, cache=values, cache_update_index=3)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), atol=1e-6)


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_caches_have_the_layers_dtype(dtype):
    layer = built(dtype=dtype)
    cache = layer.initial_cache(B * W, T)
    assert keras.utils.standardize_dtype(cache["key"].dtype) == dtype.removeprefix("mixed_")
    expected = layer(X, X, use_causal_mask=True)
    found, _, cache = steps(layer, X, cache, [3, 4])
    assert keras.utils.standardize_dtype(cache["value"].dtype) == dtype.removeprefix("mixed_")
    expected = to_numpy(ops.cast(expected, "float32"))
    np.testing.assert_allclose(found.astype("float32"), expected, atol=0.05 * np.abs(expected).max())


def test_steps_are_recorded():
    layer = built()
    piece = ops.convert_to_tensor(X[:, :1])
    with record_scores() as scores:
        layer(piece, piece, cache=layer.initial_cache(B * W, T), cache_update_index=0)
    assert [weights.shape for weights in scores[layer.path]] == [(B * W, H, 1, T)]


def wrong(**changed):
    layer = built()
    piece = ops.convert_to_tensor(X[:, :2])
    given = {"cache": layer.initial_cache(B * W, T), "cache_update_index": 0, **changed}
    return lambda: layer(piece, piece, **given)


PREFIX = {"key": np.ones((4, H, K, T)), "value": np.ones((4, H, T, K)), "mask": np.ones((4, T), bool)}
ERRORS = {
    "overridden": (overriding, ValueError, "overrides _compute_attention, which has no cache"),
    "float_index": (wrong(cache_update_index=1.0), TypeError, "must be an integer. Received: 1.0"),
    "index_of_rows": (wrong(cache_update_index=ops.arange(6)), TypeError, r"a tensor of shape \(6,\)"),
    "mask_of_one": (
        wrong(cache={**built().initial_cache(B * W, T), "mask": np.ones((B * W, 1), bool)}),
        ValueError,
        r"mask \[batch, length\]. Received",
    ),
    "full": (
        wrong(cache_update_index=T - 1),
        ValueError,
        "room for 7 tokens. Received: 2 more at cache_update_index=6",
    ),
    "negative": (wrong(cache_update_index=-1), ValueError, "cache_update_index=-1"),
    "no_index": (wrong(cache_update_index=None), ValueError, "expects cache_update_index"),
    "other_keys": (wrong(cache={"keys": X}), ValueError, r"initial_cache\(batch_size, max_length\).*\['keys'\]"),
    "no_dict": (wrong(cache=X), ValueError, "expects a cache as initial_cache"),
    "heads": (
        wrong(cache=MultiHeadAttention(H, K + 1).initial_cache(B * W, T)),
        ValueError,
        r"batch, 6, length, 4\].*7, 5\)",
    ),
    "rows": (wrong(cache=built().initial_cache(B, T)), ValueError, "cache of 2 rows, a query of 6"),
    "prefix_rows": (wrong(cache={**built().initial_cache(6, T), "prefix": PREFIX}), ValueError, "prefix of 4 rows"),
    "prefix_and_value": (wrong(cache={"prefix": PREFIX}), ValueError, "prefix alone.*value=a tensor"),
    "mask": (
        wrong(attention_mask=np.ones((B * W, 2, 2), bool)),
        ValueError,
        r"attention_mask.shape=\(6, 2, 2\), \(2, 7\)",
    ),
    "not_built": (lambda: MultiHeadAttention(H, K).project_memory(MEMORY), ValueError, "built=False"),
    "fused": (lambda: built(name="fused").project_memory(MEMORY), ValueError, "fused_projection=True"),
    "cross": (
        lambda: built()(X[:, :1], X, cache=built().initial_cache(B * W, 9), cache_update_index=0),
        ValueError,
        "attend to themselves and those before",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_expected(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
