"""The Transformer: its sizes, the paper's equations around its blocks, stock training, masks, errors."""

import functools

import keras
import numpy as np
import pytest
from helpers import randomize, to_numpy

from keras_attention import sinusoidal_encoding
from keras_attention.models import Pipeline, Transformer, beam_search, greedy_search
from keras_attention.models.tokenizers import END, START

pytestmark = pytest.mark.backends
SOURCE = np.array([[5, 6, 7, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]])
TARGET = np.array([[2, 4, 5, 6], [2, 7, 8, 0], [2, 9, 4, 10]])
X = {"source": SOURCE, "target": TARGET}
SIZES = {"width": 8, "num_heads": 2, "feed_forward_units": 11, "encoder_layers": 2, "decoder_layers": 2}


def make(**options):
    return randomize(Transformer(**{"source_vocabulary": 11, "target_vocabulary": 13, **SIZES, **options}), scale=0.6)


def count(vocabulary, width, units, layers):
    """Parameters with one shared matrix, by the equations: 4 D^2 + 4 D an attention, 2 D F + F + D, 2 D a norm."""
    attention, network, norm = 4 * width * (width + 1), 2 * width * units + units + width, 2 * width
    return vocabulary * width + layers * (3 * attention + 2 * network + 5 * norm)


@pytest.mark.parametrize(
    ("size", "vocabulary", "parameters", "published"),
    [
        ("tiny", 9_700, count(9_700, 128, 256, 4), 2.57),
        ("small", 9_700, count(9_700, 512, 1024, 6), 36.5),
        ("base", 37_000, count(37_000, 512, 2048, 6), 63),  # the paper says 65, and counts 63.1 in its own code
        ("big", 37_000, count(37_000, 1024, 4096, 6), 213),
    ],
)
def test_sizes_are_the_papers(size, vocabulary, parameters, published):
    with keras.StatelessScope(initialize_variables=False):
        model = getattr(Transformer, size)(vocabulary, vocabulary, share_embeddings=True)
    keras.utils.clear_session()  # or Keras makes up for the initialization at the next occasion
    found = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
    assert found == parameters
    assert abs(found / 1e6 - published) < 0.03 * published


def test_embeddings_are_scaled_and_hidden_states_come_out():
    model = make()
    memory, hidden = model.encode({"source": SOURCE}, return_hidden_states=True)
    assert len(hidden) == 3 and len(memory["layers"]) == 2
    embedded = to_numpy(model.source_embedding(SOURCE)) * np.sqrt(8) + to_numpy(sinusoidal_encoding(5, 8))
    np.testing.assert_allclose(to_numpy(hidden[0]), embedded, atol=1e-5)
    mask = SOURCE != 0
    states = model.encoder[1](model.encoder[0](hidden[0], query_mask=mask), query_mask=mask)
    np.testing.assert_allclose(to_numpy(hidden[2]), to_numpy(states), atol=1e-5)


def test_the_first_step_of_an_untrained_model_is_nearly_uniform():
    """What the initialisation is for: logits of unit scale at most."""
    model = Transformer.tiny(500, 500, share_embeddings=True, dropout=0.0)
    assert to_numpy(model(X)).std() < 1.5


@pytest.mark.parametrize("options", [{}, {"normalize_first": True, "position": "rotary"}], ids=str)
def test_padding_changes_nothing_and_rows_stand_alone(options):
    model = make(**options)
    logits = to_numpy(model(X))
    np.testing.assert_array_equal(to_numpy(model.logits(model.features(X))), logits)
    wide = {"source": np.pad(SOURCE, ((0, 0), (0, 7))), "target": np.pad(TARGET, ((0, 0), (0, 5)))}
    np.testing.assert_allclose(to_numpy(model(wide))[:, :4][TARGET != 0], logits[TARGET != 0], atol=1e-5)
    for row in range(3):
        alone = {"source": SOURCE[row : row + 1, SOURCE[row] != 0], "target": TARGET[row : row + 1]}
        np.testing.assert_allclose(
            to_numpy(model(alone))[0][TARGET[row] != 0], logits[row][TARGET[row] != 0], atol=1e-5
        )


def test_a_token_sees_only_those_before():
    model = make()
    changed = {**X, "target": np.where(np.arange(4) < 2, TARGET, 12)}
    np.testing.assert_array_equal(to_numpy(model(changed))[:, :2], to_numpy(model(X))[:, :2])


def test_all_weights_come_out_and_asking_changes_nothing():
    model = make()
    logits, weights = model(X, return_attention_scores=True)
    np.testing.assert_array_equal(to_numpy(logits), to_numpy(model(X)))
    shapes = {name: [tuple(layer.shape) for layer in layers] for name, layers in weights.items()}
    assert shapes == {"encoder": [(3, 2, 5, 5)] * 2, "decoder": [(3, 2, 4, 4)] * 2, "cross": [(3, 2, 4, 5)] * 2}
    for layer in weights["cross"]:
        np.testing.assert_allclose(to_numpy(layer).sum(-1), np.repeat((TARGET != 0)[:, None], 2, axis=1), atol=1e-5)


def reversing(rows):
    """Pairs where the target is the source backwards, of lengths 2 to 5."""
    generator = np.random.default_rng(0)
    source, target, y = (np.zeros((rows, n), "int32") for n in (5, 6, 6))
    for row, length in enumerate(generator.integers(2, 6, rows)):
        source[row, :length] = generator.integers(4, 11, length)
        answer = source[row, :length][::-1]
        target[row, : length + 1], y[row, : length + 1] = [START, *answer], [*answer, END]
    return {"source": source, "target": target}, y


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"normalize_first": True, "position": "relative", "gated": True}, marks=pytest.mark.release)],
    ids=str,
)
def test_stock_keras_trains_it(options):
    keras.utils.set_random_seed(1)
    sizes = {"width": 32, "num_heads": 4, "feed_forward_units": 64, "encoder_layers": 1, "decoder_layers": 1}
    model = Transformer(11, 11, **sizes, share_embeddings=True, dropout=0.1, **options)
    x, y = reversing(512)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.005), loss)
    history = model.fit(x, y, batch_size=64, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]


def test_tied_and_shared_embeddings():
    separate = make(target_vocabulary=11, tie_embeddings=False)
    shared = make(target_vocabulary=11, share_embeddings=True)
    assert separate.count_params() - shared.count_params() == 2 * 11 * 8
    assert shared.source_embedding is shared.target_embedding


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a Pipeline decodes with TensorFlow")
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.release)])
def test_no_answer_is_longer_than_the_learned_positions(jit_compile):
    model = make(position="learned", max_length=6)
    table = model.target_embedding.embeddings.numpy()
    table[3] = 0  # END is never the most probable
    model.target_embedding.embeddings.assign(table)
    memory = model.encode({"source": SOURCE})
    for search in (greedy_search, functools.partial(beam_search, beam_width=2)):
        found, expected = search(model, memory, 20), search(model, memory, 6)
        assert to_numpy(found.lengths).max() == 6
        np.testing.assert_array_equal(to_numpy(found.ids)[:, :, :6], to_numpy(expected.ids))
    pipeline = Pipeline(model, max_length=5)
    asked = {"beam_width": 2, "jit_compile": jit_compile}
    longest = pipeline(SOURCE.tolist(), max_length=20, **asked)
    assert [r.target_ids for r in longest] == [r.target_ids for r in pipeline(SOURCE.tolist(), max_length=6, **asked)]


def test_mixed_precision_keeps_weights_in_float32():
    model = make(dtype="mixed_bfloat16")
    logits, weights = model(X, return_attention_scores=True)
    assert keras.utils.standardize_dtype(logits.dtype) == "bfloat16"
    assert {keras.utils.standardize_dtype(layer.dtype) for layer in weights["cross"]} == {"float32"}
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)
    expected = make()
    expected.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(logits).astype("float32"), to_numpy(expected(X)), atol=0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(position="fourier"), "one of sinusoidal, learned, rotary.*position='fourier'"),
        (lambda: make(share_embeddings=True), "one vocabulary.*source_vocabulary=11, target_vocabulary=13"),
        (lambda: make(source_vocabulary=None), "Transformer expects source_vocabulary for ids, or"),
        (lambda: make(width=9), "a width that num_heads divides.*width 9, num_heads=2"),
        (lambda: make(alignment_layer=2), "alignment_layer.*0 to 1. Received: alignment_layer=2"),
        (lambda: make()({"source": SOURCE}), "Transformer expects x to be a dict with source and target"),
        (lambda: make().encode({"source": SOURCE[0]}), r"source ids \[B, S\]. Received: source.shape=\(5,\)"),
        (lambda: make(position="learned", max_length=3)(X), "positions 0 ... 2"),
        (
            lambda: make(source_embedding=keras.layers.Embedding(11, 5))(X),
            "a source_embedding of width 8. Received: one that gives 5",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
