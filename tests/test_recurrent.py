"""The attending decoder: loop = steps, numbers, masks, errors."""

import keras
import numpy as np
import pytest
from helpers import check_layer, gradients, marked, numpy_softmax, random, randomize, to_numpy
from keras import ops

from keras_attention import AdditiveAttention, AttentiveRNN, DotProductAttention, ScaledDotProductAttention

pytestmark = pytest.mark.backends
B, T, S, E, M, U, R = 2, 3, 5, 7, 11, 11, 13
SEQUENCE, MEMORY, STATE = random(B, T, E), random(B, S, M, seed=1), random(B, U, seed=2)
MASK = np.array([[True, True, True, False, False], [True, False, True, True, True]])
ATTENTIONS = {
    "additive": lambda: AdditiveAttention(17),
    "dot": DotProductAttention,
    "scaled_dot": ScaledDotProductAttention,
    "none": lambda: None,
}


CONFIGURATIONS = [
    {"name": name, "cell": cell, "layers": layers, "order": order}
    for name in ("additive", "none", "no memory")
    for cell, layers in (("gru", 1), ("lstm", 2), ("simple_rnn", 1), ("gru", 2))
    for order in ("bahdanau", "luong")
] + [{"name": name} for name in ("dot", "scaled_dot")]
CONFIGURATIONS += [{"name": "additive", "order": order, "context_gate": True} for order in ("bahdanau", "luong")]
CONFIGURATIONS += [{"name": "additive", "order": order, "lexical_units": 4} for order in ("bahdanau", "luong")]
CONFIGURATIONS += [{"name": "additive", "cell": "lstm", "layers": 2, "order": "luong", "lexical_units": 4}]


def identity(options):
    return "-".join(str(value).replace(" ", "_") for value in options.values())


def make(name="additive", **options):
    return AttentiveRNN(U, attention=ATTENTIONS.get(name, lambda: None)(), readout_units=R, **options)


def memory_of(name):
    return {"none": MEMORY[:, 0], "no memory": None}.get(name, MEMORY)


def built(name, **options):
    layer, memory = make(name, **options), memory_of(name)
    layer.build(SEQUENCE.shape, None if memory is None else memory.shape)
    return randomize(layer)


@pytest.mark.parametrize(
    "options", [CONFIGURATIONS[0], *marked("tensorflow_first", CONFIGURATIONS[3::3])], ids=identity
)
def test_contract(options):
    layer, memory = make(**options), memory_of(options["name"])
    state = random(B, layer.state_width, seed=2)
    inputs = {"sequence": SEQUENCE, "memory": memory, "initial_state": state}
    if memory is None:
        del inputs["memory"], inputs["initial_state"]
    check_layer(layer, inputs)


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=identity)
def test_the_loop_equals_its_steps(options):
    name = options["name"]
    layer, memory = built(**options), memory_of(name)
    start = random(B, layer.state_width, seed=2)
    mask = MASK if layer.attention is not None else None
    output, weights = layer(SEQUENCE, memory, start, memory_mask=mask, return_attention_scores=True)
    alone = layer(SEQUENCE, memory, start, memory_mask=mask)
    np.testing.assert_array_equal(to_numpy(alone), to_numpy(output))
    prepared = layer.prepare(None if memory is None else ops.convert_to_tensor(memory), mask)
    state = layer.begin(ops.convert_to_tensor(start))
    for t in range(T):
        stepped, state, attention = layer.step(ops.convert_to_tensor(SEQUENCE[:, t]), state, prepared)
        np.testing.assert_allclose(to_numpy(stepped), to_numpy(output)[:, t], atol=1e-5)
        if layer.attention is None:
            assert attention is None
            assert weights is None
        else:
            np.testing.assert_allclose(to_numpy(attention), to_numpy(weights)[:, t], atol=1e-5)


def test_several_hypotheses_share_one_memory():
    layer, wide = built("additive"), 3
    prepared = layer.prepare(ops.convert_to_tensor(MEMORY), MASK)
    inputs, states = random(B * wide, E, seed=5), random(B * wide, U, seed=6)
    together = layer.step(ops.convert_to_tensor(inputs), ops.convert_to_tensor(states), prepared)
    for w in range(wide):
        own = np.arange(B) * wide + w
        alone = layer.step(ops.convert_to_tensor(inputs[own]), ops.convert_to_tensor(states[own]), prepared)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(many)[own], atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def read(layer, seen, context):
    """The output of what a readout has seen beside the context, by the definition."""
    words = layer.lexical_units
    seen = np.concatenate([seen, context[:, : context.shape[1] - words]], -1)
    output = np.tanh(seen @ to_numpy(layer.readout.kernel) + to_numpy(layer.readout.bias))
    if not words:
        return output
    met = np.tanh(context[:, -words:])
    beside = np.tanh(met @ to_numpy(layer.lexical.kernel) + to_numpy(layer.lexical.bias)) + met
    return np.concatenate([output, beside], -1)


@pytest.mark.parametrize("options", [{}, {"context_gate": True}, {"lexical_units": 4}], ids=str)
def test_numbers_equal_an_oracle(options):
    layer = built("additive", **options)
    output, weights = layer(SEQUENCE, MEMORY, STATE, memory_mask=MASK, return_attention_scores=True)
    a = layer.attention
    kernel, recurrent = to_numpy(layer.cells[0].kernel), to_numpy(layer.cells[0].recurrent_kernel)
    bias, recurrent_bias = to_numpy(layer.cells[0].bias)
    state = STATE.astype("float64")
    for t in range(T):
        q, k = state @ to_numpy(a.query_projection.kernel), MEMORY @ to_numpy(a.key_projection.kernel)
        attention = numpy_softmax(np.tanh(q[:, None] + k) @ to_numpy(a.score_vector), MASK)
        context = np.einsum("bs,bsm->bm", attention, MEMORY)
        if layer.gate is not None:
            context *= sigmoid(state @ to_numpy(layer.gate.kernel) + to_numpy(layer.gate.bias))
        x = np.concatenate([SEQUENCE[:, t], context], -1) @ kernel + bias
        h = state @ recurrent + recurrent_bias
        z, r = sigmoid(x[:, :U] + h[:, :U]), sigmoid(x[:, U : 2 * U] + h[:, U : 2 * U])
        state = z * state + (1 - z) * np.tanh(x[:, 2 * U :] + r * h[:, 2 * U :])
        expected = read(layer, np.concatenate([SEQUENCE[:, t], state], -1), context)
        np.testing.assert_allclose(to_numpy(output)[:, t], expected, atol=1e-5)
        np.testing.assert_allclose(to_numpy(weights)[:, t], attention, atol=1e-5)


@pytest.mark.parametrize("words", [0, 4])
def test_luongs_order_equals_an_oracle(words):
    """LSTM, two layers, input feeding: Luong et al. 2015, section 3 (equation 5) and 3.3."""
    layer = built("dot", cell="lstm", layers=2, order="luong", lexical_units=words)
    start = random(B, 4 * U, seed=3)
    output, weights = layer(SEQUENCE, MEMORY, start, memory_mask=MASK, return_attention_scores=True)
    h, c = [start[:, :U], start[:, 2 * U : 3 * U]], [start[:, U : 2 * U], start[:, 3 * U :]]
    fed = np.zeros((B, R + words))
    for t in range(T):
        x = np.concatenate([SEQUENCE[:, t], fed], -1)
        for number, cell in enumerate(layer.cells):
            kernel, recurrent, bias = (to_numpy(w).astype("float64") for w in cell.weights)
            i, f, g, o = np.split(x @ kernel + h[number] @ recurrent + bias, 4, axis=-1)
            c[number] = sigmoid(f) * c[number] + sigmoid(i) * np.tanh(g)
            x = h[number] = sigmoid(o) * np.tanh(c[number])
        attention = numpy_softmax(np.einsum("bu,bsu->bs", x, MEMORY), MASK)
        context = np.einsum("bs,bsm->bm", attention, MEMORY)
        fed = read(layer, x, context)
        np.testing.assert_allclose(to_numpy(output)[:, t], fed, atol=1e-5)
        np.testing.assert_allclose(to_numpy(weights)[:, t], attention, atol=1e-5)


@pytest.mark.parametrize("order", ["bahdanau", "luong"])
def test_masks_of_memory_and_sequence(order):
    layer = built("additive", order=order)
    sequence_mask = np.array([[True, True, False], [True, True, True]])
    given = {"memory_mask": MASK, "sequence_mask": sequence_mask}
    output, weights = layer(SEQUENCE, MEMORY, STATE, **given, return_attention_scores=True)
    weights = to_numpy(weights)
    allowed = sequence_mask[:, :, None] & MASK[:, None, :]
    assert np.all(weights[~allowed] == 0)
    np.testing.assert_allclose(weights.sum(-1), sequence_mask, atol=1e-6)
    sequence, memory = SEQUENCE.copy(), MEMORY.copy()
    sequence[~sequence_mask], memory[~MASK] = np.nan, np.nan
    np.testing.assert_array_equal(to_numpy(layer(sequence, memory, STATE, **given)), to_numpy(output))
    found = gradients(
        lambda *x: ops.sum(ops.square(layer(*x, **given))), [sequence, memory, STATE], layer.trainable_weights
    )
    assert all(np.all(np.isfinite(x)) for x in found)
    assert np.all(found[1][~MASK] == 0)


@pytest.mark.parametrize("order", ["bahdanau", "luong"])
def test_steps_before_the_first_word_hold_the_first_state(order):
    layer = built("additive", order=order)
    shifted = np.concatenate([np.full((B, 2, E), np.nan, "float32"), SEQUENCE], axis=1)
    mask = np.concatenate([np.zeros((B, 2), bool), np.ones((B, T), bool)], axis=1)
    plain = layer(SEQUENCE, MEMORY, STATE, memory_mask=MASK, return_attention_scores=True)
    padded = layer(shifted, MEMORY, STATE, memory_mask=MASK, sequence_mask=mask, return_attention_scores=True)
    for one, two in zip(plain, padded, strict=True):
        np.testing.assert_allclose(to_numpy(two)[:, 2:], to_numpy(one), atol=1e-6)
    assert np.all(to_numpy(padded[1])[:, :2] == 0)


def test_a_memory_of_padding_only_gives_a_zero_context():
    layer = built("additive")
    mask = np.zeros((B, S), bool)
    output, weights = layer(SEQUENCE, MEMORY, STATE, memory_mask=mask, return_attention_scores=True)
    assert np.all(to_numpy(weights) == 0)
    np.testing.assert_array_equal(to_numpy(layer(SEQUENCE, MEMORY * 0, STATE, memory_mask=mask)), to_numpy(output))
    assert np.all(np.isfinite(to_numpy(output)))


def test_the_mask_of_an_embedding_reaches_the_memory_and_the_loop():
    layer = AttentiveRNN(U, attention=AdditiveAttention(17))
    source, target = np.array([[4, 5, 0, 0], [6, 7, 8, 0]]), np.array([[2, 9, 0], [2, 3, 4]])
    embedding = keras.layers.Embedding(11, M, mask_zero=True)
    _, weights = layer(embedding(target), embedding(source), return_attention_scores=True)
    allowed = (target != 0)[:, :, None] & (source != 0)[:, None, :]
    assert np.all(to_numpy(weights)[~allowed] == 0)
    np.testing.assert_allclose(to_numpy(weights).sum(-1), target != 0, atol=1e-6)


def test_without_a_first_state_it_begins_at_zero():
    layer = built("dot")
    np.testing.assert_array_equal(
        to_numpy(layer(SEQUENCE, MEMORY)), to_numpy(layer(SEQUENCE, MEMORY, np.zeros((B, U), "float32")))
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AttentiveRNN(U, attention="additive"), TypeError, "layer such as AdditiveAttention.*'additive'"),
        (
            lambda: AttentiveRNN(U, attention=AdditiveAttention(3, dropout=0.1)),
            ValueError,
            "dropout=0. Received.*0.1",
        ),
        (
            lambda: make()(SEQUENCE, MEMORY[:, 0]),
            ValueError,
            r"memory \[batch, length, width\].*memory.shape=\(2, 11\)",
        ),
        (
            lambda: make("none")(SEQUENCE, MEMORY),
            ValueError,
            r"memory \[batch, width\] or None.*memory.shape=\(2, 5, 11\)",
        ),
        (lambda: make()(SEQUENCE, None), ValueError, r"memory \[batch, length, width\].*memory.shape=None"),
        (lambda: make(cell="lstm")(SEQUENCE, MEMORY, STATE), ValueError, r"\[batch, 22\].*shape=\(2, 11\)"),
        (lambda: make(cell="rnn"), ValueError, "one of simple_rnn, gru, lstm. Received: cell='rnn'"),
        (lambda: make(order="keras"), ValueError, "one of bahdanau, luong. Received: order='keras'"),
        (lambda: make("none", context_gate=True), ValueError, "attention for context_gate=True"),
        (lambda: make("none", lexical_units=2), ValueError, "attention where there are any.*lexical_units=2"),
        (lambda: make(lexical_units=-1), ValueError, "0 or more.*lexical_units=-1"),
        (lambda: make(lexical_units=M)(SEQUENCE, MEMORY), ValueError, "wider than its lexical_units=11"),
        (lambda: make(layers=0), ValueError, "at least 1 layer. Received: layers=0"),
        (lambda: AttentiveRNN(3, attention=DotProductAttention())(SEQUENCE, MEMORY), ValueError, "query width 3, key"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
