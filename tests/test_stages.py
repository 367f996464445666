"""A search in stages against the same search in one piece: rows that leave, buffers that grow, plain and compiled."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import marked, to_numpy
from keras import ops
from tensorflow.python.ops import control_flow_util_v2

from keras_attention.models import stages
from keras_attention.models.decoding import BeamSearch, Hypotheses, RollOut
from keras_attention.models.repetition import Repetition
from keras_attention.models.stages import Stages
from keras_attention.models.tokenizers import END, START

V, STEPS, WIDTH = 7, 9, 3
SOURCE = {"source": tf.TensorSpec([None, 1])}
DRAWN = {
    "uniforms": tf.TensorSpec([None, None]),
    "limits": {"temperature": tf.TensorSpec([]), "top_k": tf.TensorSpec([], tf.int32), "top_p": tf.TensorSpec([])},
}


class Remembering:
    """Not a Keras model at all: what comes next depends on the row's number and on all that was written, in a buffer
    that grows, which is its attention, too."""

    def __init__(self, end, asked=None):
        self.end = end  # logit of END
        self.asked = asked  # a list that takes the number of rows of each step, in a graph

    def encode(self, x):
        return {"numbers": x["source"][:, 0], "name": "of no tensor", "nothing": None}

    def take_rows(self, memory, rows):
        return {**memory, "numbers": ops.take(memory["numbers"], rows, axis=0)}

    def initial_state(self, memory, max_length, beam_width=1):
        count = ops.shape(memory["numbers"])[0] * beam_width
        return ops.full((count,), START, dtype="int32"), {"written": ops.zeros((count, max_length))}

    def grow(self, state, max_length):
        more = max_length - ops.shape(state["written"])[1]
        return {"written": ops.pad(state["written"], [(0, 0), (0, more)])}

    def step(self, tokens, position, memory, state):
        rows, count = ops.shape(memory["numbers"])[0], ops.shape(tokens)[0]
        if self.asked is not None:
            tf.numpy_function(lambda rows: self.asked.append(int(rows)), [rows], [])
        here = ops.arange(ops.shape(state["written"])[1]) == position
        written = ops.where(here[None, :], ops.cast(tokens, "float32")[:, None], state["written"])
        read = ops.sum(written, axis=1) + 0.3 * ops.cast(position, "float32")
        own = ops.repeat(memory["numbers"], count // rows)
        places = ops.arange(V, dtype="float32")
        logits = ops.sin(read * 0.7)[:, None] * ops.cos(places) + own[:, None] * ops.cos(2 * places)
        return ops.where(ops.arange(V) == END, self.end, 2 * logits), {"written": written}, written


class OfSourceOnly(Remembering):
    """Without a buffer that grows and without take_rows: one stage for all."""

    grow = take_rows = property(lambda self: self.missing)  # hasattr is False


def search(kind, model):
    repetition = {"restricted": Repetition(1.3, 0), "n-grams": Repetition(1.0, 2)}.get(kind, Repetition())
    if kind in ("greedy", "n-grams"):
        return RollOut(model, 1, 0.6, repetition)
    if kind == "drawn":
        return RollOut(model, WIDTH, 1.0, repetition)
    return BeamSearch(model, WIDTH, 2, 1.0, 0.2 if kind == "restricted" else 0.0, repetition)


def traced(decode, drawn):
    return tf.function(decode, [SOURCE, tf.TensorSpec([None], tf.int32), drawn], autograph=False)


def given(kind, rows):
    numbers = np.random.default_rng(1).uniform(size=(rows * WIDTH, STEPS)).astype("float32")
    limits = {"temperature": tf.constant(0.8), "top_k": tf.constant(4), "top_p": tf.constant(0.9)}
    return {"uniforms": tf.constant(numbers), "limits": limits} if kind == "drawn" else {}


def same(found, expected):
    """Equal Hypotheses, but for the room behind the answers."""
    steps = to_numpy(expected.lengths).max()
    for name in ("ids", "lengths", "log_probabilities", "scores"):
        one, two = to_numpy(getattr(found, name)), to_numpy(getattr(expected, name))
        one, two = (one[..., :steps], two[..., :steps]) if name == "ids" else (one, two)
        np.testing.assert_allclose(one, two, atol=1e-5)
    one, two = (to_numpy(each.attention)[:, :, :steps, :steps] for each in (found, expected))
    np.testing.assert_allclose(one, two, atol=1e-5)


KINDS = ["greedy", "n-grams", "drawn", "beam", "restricted"]
LIMITS = [[1, 0, 2, 9, 2, 1, 3, 2], [0] * 8, [9], [*range(1, 10), 9, 9, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize(("kind", "model"), [*((kind, Remembering) for kind in KINDS), ("beam", OfSourceOnly)])
@pytest.mark.parametrize(
    ("limits", "jit_compile"),
    [
        *((limits, False) for limits in LIMITS[:2]),
        *(pytest.param(limits, False, marks=pytest.mark.release) for limits in LIMITS[2:]),
        pytest.param(LIMITS[2], True, marks=pytest.mark.release),
        pytest.param(LIMITS[3], True, marks=pytest.mark.long),
    ],
)
def test_stages_find_the_same(kind, model, limits, jit_compile, monkeypatch):
    monkeypatch.setattr(stages, "ROOM", 2)
    monkeypatch.setattr(stages, "LEAST", 1)
    model, rows = model(-9.0 if sum(limits) % 2 else 0.5), len(limits)  # answers as long as they may be, or shorter
    x = {"source": ops.reshape(ops.arange(rows, dtype="float32") % 5, (-1, 1))}
    limits, drawn = tf.constant(limits), given(kind, rows)
    decode = Stages(search(kind, model), SOURCE, DRAWN if drawn else {}, jit_compile=jit_compile)
    expected = search(kind, model)(model.encode(x), STEPS, limits, **drawn)
    found = traced(decode, DRAWN if drawn else {})(x, limits, drawn)
    same(found, expected)
    if jit_compile and hasattr(model, "grow") and rows == 1:  # to the end of 9 steps
        assert found.ids.shape[2] == 16


@pytest.mark.parametrize(("kind", "least"), [("drawn", 2), ("beam", 0)])
@pytest.mark.parametrize("limits", [[3, 2], *marked("long", [[9, 2, 1, 2, 0]])])
def test_compiled_rows_are_searched_in_parts(kind, least, limits, monkeypatch):
    """Of one row each, or of two, two and one, with buffers of up to 16 and down to 2 steps in the end."""
    monkeypatch.setattr(stages, "ROOM", 2)
    monkeypatch.setattr(stages, "PART", 1)
    monkeypatch.setattr(stages, "LEAST", least)  # a part whose answers fit is one program, or none is
    model, x = Remembering(-9.0), {"source": ops.reshape(ops.arange(len(limits), dtype="float32"), (-1, 1))}
    limits, drawn = tf.constant(limits), given(kind, len(limits))
    expected = search(kind, model)(model.encode(x), STEPS, limits, **drawn)
    decode = Stages(search(kind, model), SOURCE, DRAWN if drawn else {}, jit_compile=True)
    same(traced(decode, DRAWN if drawn else {})(x, limits, drawn), expected)


@pytest.mark.parametrize(
    "kind", ["greedy", "beam", *(pytest.param(kind, marks=pytest.mark.release) for kind in ("drawn", "restricted"))]
)
@pytest.mark.parametrize("longest", [STEPS, 0])
def test_a_row_with_a_short_answer_is_one_program(kind, longest, monkeypatch):
    nothing = Hypotheses(*(tf.zeros([0] * rank, dtype) for dtype, rank in stages.FOUND.values()))
    monkeypatch.setattr(Stages, "_in_stages", lambda *_: nothing)
    model, x, limits = Remembering(-9.0), {"source": tf.constant([[3.0]])}, tf.constant([longest])
    drawn = given(kind, 1)
    decode = Stages(search(kind, model), SOURCE, DRAWN if drawn else {}, jit_compile=True)
    found = traced(decode, DRAWN if drawn else {})(x, limits, drawn)
    same(found, search(kind, model)(model.encode(x), STEPS, limits, **drawn))


def test_what_is_not_run_is_not_part_of_the_compiled_graph():
    before = control_flow_util_v2._DISABLE_LOWER_USING_SWITCH_MERGE
    decode = traced(Stages(search("beam", Remembering(0.5)), SOURCE, {}, jit_compile=True), {}).get_concrete_function()
    graph = decode.graph.as_graph_def().SerializeToString()
    assert b"If" in graph and b"While" in graph
    assert b"_lower_using_switch_merge" not in graph
    assert control_flow_util_v2._DISABLE_LOWER_USING_SWITCH_MERGE is before


def test_rows_leave_once_half_of_them_have_stopped():
    model = Remembering(-9.0, asked=[])
    x = {"source": tf.reshape(tf.range(32.0) % 5, (-1, 1))}
    limits = tf.constant([*range(1, 9), *range(1, 9), *[9] * 14, 12, 12])
    found = traced(Stages(search("beam", model), SOURCE, {}), {})(x, limits, {})
    assert model.asked[1:] == [32] * 8 + [16] + [2] * 3  # the first asks for the attention's width
    np.testing.assert_array_equal(found.lengths[:, 0], limits)


@pytest.mark.parametrize(
    ("model", "rows", "longest", "room"),
    [
        *((OfSourceOnly, 2, longest, 16) for longest in (1, 4, 16)),
        (OfSourceOnly, 2, 17, 32),
        (OfSourceOnly, 64, 50, 64),
        (Remembering, 64, 4, 16),
        (Remembering, 64, 50, 16),
        (Remembering, 8, 4, 16),
        (Remembering, 8, 17, 32),
        (Remembering, 8, 50, 32),
    ],
)
def test_compiled_programs_begin_with_few_lengths_of_buffers(model, rows, longest, room):
    decode = Stages(search("beam", model(0.5)), SOURCE, {}, jit_compile=True)
    assert int(decode._first_room(tf.fill([rows], longest))) == room
