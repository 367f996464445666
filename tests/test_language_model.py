"""The language model: its sizes, steps against the full pass, prompts of all lengths, masks, errors."""

import keras
import numpy as np
import pytest
from helpers import gradients, marked, randomize, to_numpy
from keras import ops

from keras_attention.models import LanguageModel, beam_search, greedy_search, sample, uniform_numbers
from keras_attention.models.language_model import SIZES
from keras_attention.models.tokenizers import START
from keras_attention.training.losses import MaskedCrossEntropy
from keras_attention.training.metrics import Perplexity, TokenAccuracy

pytestmark = pytest.mark.backends
V, L = 13, 7
CONFIGURATIONS = {
    "learned": {"max_length": L},
    "rotary, grouped, rms, gated": {
        "position": "rotary",
        "num_key_value_heads": 1,
        "normalization": "rms",
        "gated": True,
        "use_bias": False,
        "tie_embeddings": False,
    },
    "alibi, post-norm": {"position": "alibi", "normalize_first": False, "alignment_layer": 0},
    "relative": {"position": "relative", "layers": 1},
    "no position": {"position": None, "layers": 1, "activation": "relu", "feed_forward_units": 11},
}
MOST = "rotary, grouped, rms, gated"  # has the most options, and runs always
OTHERS = [name for name in CONFIGURATIONS if name != MOST]
every_configuration = pytest.mark.parametrize("name", [MOST, *marked("tensorflow_first", OTHERS)])
IDS = np.array([[2, 4, 5, 6, 7, 8, 9], [5, 6, 12, 4, 4, 11, 10], [9, 9, 4, 5, 6, 10, 12]])


def make(name="learned", **options):
    sizes = {"width": 8, "num_heads": 2, "layers": 2}
    return randomize(LanguageModel(**{"vocabulary": V, **sizes, **CONFIGURATIONS[name], **options}), scale=0.6)


def count(vocabulary, width, layers, length):
    """Parameters by the equations: 4 D^2 + 4 D an attention, 8 D^2 + 5 D a network, 2 D a norm."""
    return vocabulary * width + length * width + layers * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(
    ("size", "published"), [("gpt2", 124.4e6), ("gpt2_xl", 1557.6e6), ("gpt3", 174.6e9), ("micro", None)]
)
def test_sizes_are_the_papers(size, published):
    with keras.StatelessScope(initialize_variables=False):
        model = LanguageModel.preset(size, 50257)
    keras.utils.clear_session()  # or Keras makes up for the initialization at the next occasion, in all its size
    width, num_heads, layers, length = SIZES[size]
    found = sum(int(np.prod(weight.shape, dtype="int64")) for weight in model.trainable_variables)
    assert found == count(50257, width, layers, length)
    assert len(model.blocks) == layers and model.blocks[0].num_heads == num_heads
    if published:
        assert abs(found / published - 1) < 0.001


@every_configuration
@pytest.mark.parametrize("prompt", [0, 1, 3, 6])
def test_steps_equal_one_call(name, prompt):
    """A prompt of any length, then token by token, gives what one call gives."""
    model = make(name)
    ids = IDS if prompt else np.concatenate([np.full((3, 1), START), IDS[:, :-1]], axis=1)
    logits, weights = model({"target": ids}, return_attention_scores=True)
    np.testing.assert_array_equal(to_numpy(model({"target": ids})), to_numpy(logits))
    memory = model.encode({"source": np.pad(IDS[:, :prompt], ((0, 0), (0, 2)))})
    first, count = max(prompt, 1) - 1, L - max(prompt, 1) + 1
    tokens, state = model.initial_state(memory, count)
    np.testing.assert_array_equal(to_numpy(tokens), ids[:, first])
    expected = to_numpy(weights["decoder"][model.alignment_layer]).mean(1)
    for t in range(count):
        stepped, state, attended = model.step(ops.convert_to_tensor(ids[:, first + t]), t, memory, state)
        np.testing.assert_allclose(to_numpy(stepped), to_numpy(logits)[:, first + t], atol=1e-5)
        attended = to_numpy(attended)
        columns = prompt + 2  # of the memory
        np.testing.assert_allclose(attended[:, :first], expected[:, first + t, :first], atol=1e-5)
        np.testing.assert_allclose(
            attended[:, columns : columns + t + 1], expected[:, first + t, first : first + t + 1], atol=1e-5
        )
        assert np.all(attended[:, first:columns] == 0) and np.all(attended[:, columns + t + 1 :] == 0)


PROMPTS = np.tile([4, 7, 6, 10, 12, 5, 9], (L + 1, 1)) * (np.arange(L) < np.arange(L + 1)[:, None])  # none to L


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("name", [MOST, *marked("release", OTHERS)])
def test_a_batch_of_prompts_of_all_lengths_is_each_alone(name):
    model = make(name)
    together = beam_search(model, model.encode({"source": PROMPTS}), 4, beam_width=3, num_return=3)
    numbers = uniform_numbers(3, len(PROMPTS), 4, num_samples=2)
    drawn = sample(model, model.encode({"source": PROMPTS}), numbers, num_samples=2)
    assert len(set(map(tuple, to_numpy(drawn.ids).reshape(2 * len(PROMPTS), -1).tolist()))) > 5
    for row, prompt in enumerate(PROMPTS):
        alone = model.encode({"source": prompt[None, : max(1, np.count_nonzero(prompt))]})
        one = beam_search(model, alone, 4, beam_width=3, num_return=3)
        np.testing.assert_array_equal(to_numpy(one.ids)[0], to_numpy(together.ids)[row])
        np.testing.assert_allclose(to_numpy(one.scores)[0], to_numpy(together.scores)[row], atol=1e-4)
        one = sample(model, alone, uniform_numbers(3, 1, 4, num_samples=2, first_row=row), num_samples=2)
        np.testing.assert_array_equal(to_numpy(one.ids)[0], to_numpy(drawn.ids)[row])


@every_configuration
def test_every_weight_has_a_gradient_and_save_and_load_give_equal_outputs(name, tmp_path):
    model = make(name)
    weights = model.trainable_weights
    # The square of the logits, as their sum has no gradient by what a normalization takes away.
    found = gradients(lambda: ops.mean(ops.square(model({"target": IDS}))), [], weights)
    assert [w.path for w, gradient in zip(weights, found, strict=True) if gradient is None or not gradient.any()] == []
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded({"target": IDS})), to_numpy(model({"target": IDS})))
    assert loaded.get_config().keys() == model.get_config().keys()


def test_a_token_sees_only_those_before_and_padding_changes_nothing():
    model = make("rotary, grouped, rms, gated")
    logits = to_numpy(model({"target": IDS}))
    changed = np.where(np.arange(L) < 4, IDS, 12)
    np.testing.assert_array_equal(to_numpy(model({"target": changed}))[:, :4], logits[:, :4])
    padded = np.pad(IDS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(to_numpy(model({"target": padded}))[:, :L], logits, atol=1e-5)


@pytest.mark.tensorflow_first
def test_a_context_that_is_full_disturbs_no_other_row():
    """The longest prompt has room for one token more; the shortest goes on."""
    model = make("learned")
    prompts = np.array([[4, 5, 6, 7, 8, 9, 10], [5, 0, 0, 0, 0, 0, 0]])
    found = greedy_search(model, model.encode({"source": prompts}), 7, max_lengths=np.array([1, 7]))
    alone = greedy_search(model, model.encode({"source": prompts[1:, :1]}), 7)
    np.testing.assert_array_equal(to_numpy(found.ids)[1], to_numpy(alone.ids)[0])
    assert np.all(np.isfinite(to_numpy(found.log_probabilities)))


@pytest.mark.tensorflow_first
def test_every_search_stops_where_the_context_ends():
    model = make("learned")
    prompts = np.array([[4, 5, 6, 7, 0, 0, 0, 0], [4, 5, 6, 7, 8, 9, 10, 0], [4, 5, 6, 7, 8, 9, 10, 11]])
    memory = model.encode({"source": prompts})
    assert to_numpy(model.room(memory)).tolist() == [4, 1, 0]
    searches = (
        greedy_search,
        lambda *given: beam_search(*given, beam_width=2),
        lambda model, memory, length: sample(model, memory, uniform_numbers(1, 3, 20)[:, :length]),
    )
    for search in searches:
        found = search(model, memory, 20)
        lengths = to_numpy(found.lengths)[:, 0]
        assert lengths[0] > 1 and np.all(lengths <= [4, 1, 0])
        assert not to_numpy(found.ids)[:, 0, 4:].any() and not to_numpy(found.ids)[2, 0].any()
        for row, room in ((0, 4), (1, 1)):
            expected = search(model, memory, room)
            np.testing.assert_array_equal(to_numpy(found.ids)[row, 0, :room], to_numpy(expected.ids)[row, 0])
            np.testing.assert_allclose(to_numpy(found.scores)[row, 0], to_numpy(expected.scores)[row, 0], atol=1e-5)
    assert make("rotary, grouped, rms, gated", max_length=None).room(memory) is None


def test_stock_keras_trains_it():
    keras.utils.set_random_seed(1)
    model = LanguageModel(12, width=16, num_heads=2, layers=1, dropout=0.0, max_length=8)
    ids = (np.arange(9)[None] + np.random.default_rng(0).integers(0, 8, (256, 1))) % 8 + 4  # it counts
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.01), loss)
    history = model.fit({"target": ids[:, :-1]}, ids[:, 1:], batch_size=32, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.1 < 1.5 < history[0]
    written = greedy_search(model, model.encode({"source": np.array([[9, 10], [5, 0]])}), 5)
    np.testing.assert_array_equal(to_numpy(written.ids)[:, 0], [[11, 4, 5, 6, 7], [6, 7, 8, 9, 10]])


def test_a_fit_without_logits_has_the_history_of_one_with_them():
    ids = np.random.default_rng(1).integers(4, V, (24, L + 1))
    ids[::3, 5:] = 0
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    losses = []
    for loss in (stock, MaskedCrossEntropy()):
        model = make("alibi, post-norm", dropout=0.0)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=[TokenAccuracy(), Perplexity()])
        history = model.fit({"target": ids[:, :-1]}, ids[:, 1:], batch_size=8, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history)
    for name in losses[0]:
        np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(max_length=None), "or None with positions that are not learned. Received: max_length=None"),
        (lambda: make(max_length=0), "max_length to be a positive integer.*Received: max_length=0"),
        (lambda: make(position="fourier"), "one of learned, rotary, alibi, relative, or None.*'fourier'"),
        (lambda: make(vocabulary=0), "vocabulary to be a positive integer. Received: vocabulary=0"),
        (lambda: make(alignment_layer=2), "0 to 1. Received: alignment_layer=2"),
        (lambda: make(num_heads=3), "a width that num_heads divides.*num_heads=3"),
        (lambda: LanguageModel.preset("gpt5", 11), "a size of nano, micro.*'gpt5'"),
        (lambda: make()({"source": IDS}), "expects x to be a dict with target. Received: .*source"),
        (lambda: make().encode({"source": IDS[0]}), r"source ids of shape \[batch, length\].*\(7,\)"),
        (lambda: make()({"target": np.ones((1, L + 1), int)}), "positions 0 ... 6 .*sequence of length 8"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
