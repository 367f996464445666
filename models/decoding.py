"""Greedy search, sampling and beam search over any model with the three verbs `encode`, `initial_state` and `step`.

    memory = model.encode(x)                                            axis B, constant while decoding
    tokens, state = model.initial_state(memory, max_length, beam_width) axis N = B*W
    logits, state, attention = model.step(tokens, position, memory, state)

Axis 0 of each part of a state is N. A model whose state has buffers of max_length may also have `grow(state,
max_length)`, which returns the state with longer ones: compiled searches then begin with short buffers.

A model may also have `room(memory)`, the steps [B] that its context still has, or None: no search goes beyond; and
`take_rows(memory, rows)`, the memory of some rows [R]: the last few rows of a batch then go on alone, within
`compiled` and in TensorFlow's graphs that are traced for batches of any size.

All is written for a compiler, with keras.ops: buffers of a fixed size, while_loops with an early exit. The same
code runs eagerly, as a plain graph and under XLA, on TensorFlow, JAX and PyTorch.

Rules (those of CTranslate2): log-probabilities are the model's own; PAD and START are excluded after the log-softmax.
The length that a score is divided by counts END, as `max_length` does; `Hypotheses.lengths` does not.
"""

import math
import numbers
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.cache import is_compiled

from .repetition import Repetition
from .tokenizers import END, PAD, START

NEVER = -1e30  # stands for a log-probability of minus infinity, without its NaNs
POSSIBLE = -1e29
SHARE = 4  # when no more than one in so many rows runs, those go on alone
BLOCK = 128  # about so many logits are looked at together in search of the greatest


class Hypotheses(NamedTuple):
    """What every search returns: R hypotheses a row, best first.

    Attributes:
        ids: [B, R, T] int32, without END, padded with PAD.
        lengths: [B, R] int32, number of pieces without END.
        log_probabilities: [B, R], the model's own, END included (in a beam search what a repetition_penalty leaves of
            them); below -1e29 where there are fewer than R hypotheses.
        scores: [B, R], what they are ranked by.
        attention: [B, R, T, S], row t belongs to piece t; zero behind the last piece. None if the model has none.
    """

    ids: Any
    lengths: Any
    log_probabilities: Any
    scores: Any
    attention: Any


def greedy_search(
    model,
    memory,
    max_length,
    max_lengths=None,
    length_penalty=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    prompt=None,
):
    """Takes the most probable token at every step.

    Args:
        model: anything with `initial_state` and `step`.
        memory: what `model.encode` returned.
        max_length: T, number of steps at most (the size of the buffers).
        max_lengths: [B] steps at most for each row, or None for `max_length`; never more than the model has room for.
        length_penalty: alpha of the score, log-probability / length**alpha, END counted.
        repetition_penalty, no_repeat_ngram_size, prompt: what must not come again, see `Repetition`; log-probabilities
            stay the model's own.

    Returns:
        Hypotheses with R = 1.
    """
    repetition = Repetition(repetition_penalty, no_repeat_ngram_size, prompt)
    return _roll_out(model, memory, max_length, max_lengths, length_penalty, 1, _most_probable, repetition)


def sample(
    model,
    memory,
    uniforms,
    max_lengths=None,
    num_samples=1,
    temperature=1.0,
    top_k=None,
    top_p=None,
    length_penalty=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    prompt=None,
):
    """Draws tokens from the model's distribution, cut to the top k and to the smallest set of probability p.

    Args:
        model, memory, max_lengths, length_penalty, repetition_penalty, no_repeat_ngram_size, prompt: as in
            `greedy_search`.
        uniforms: [N, T] random numbers in [0, 1), N = B * num_samples; T is the number of steps at most. Drawn by the
            caller (`uniform_numbers`), so that the same numbers give the same text, plain or compiled.
        num_samples: samples a row.
        temperature: divides the logits; 0 is greedy search. A number or a scalar tensor, as top_k and top_p.
        top_k: keep the k most probable tokens; None keeps all.
        top_p: of those, keep the smallest set whose probabilities sum to at least p; None keeps all. With both None
            nothing is sorted, and the same numbers give another text than with limits that keep all.

    Returns:
        Hypotheses with R = num_samples, in the order of the draws; log-probabilities are those of temperature 1.
    """
    check_sampling(temperature, top_k, top_p)
    max_length = ops.shape(uniforms)[1]
    if isinstance(temperature, (int, float)) and temperature == 0:
        choose = _most_probable
    else:

        def choose(logits, uniforms):
            return draw(logits, uniforms, temperature, top_k, top_p)

    repetition = Repetition(repetition_penalty, no_repeat_ngram_size, prompt)
    return _roll_out(model, memory, max_length, max_lengths, length_penalty, num_samples, choose, repetition, uniforms)


def uniform_numbers(seed, rows, max_length, num_samples=1, first_row=0):
    """Random numbers [N, T] for `sample`, N = B * num_samples; on TensorFlow in a graph, too.

    Sample w of row i draws from (seed, i, w) alone: the same seed gives the same text in batches of any size, if
    rows have the numbers that they have among all.

    Args:
        seed: an integer.
        rows: B, of rows that are numbered on from `first_row`; or the rows' own numbers [B].
        max_length: T; a smaller one gives the beginning of the same numbers.
        num_samples: samples a row.
        first_row: number of the first row.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        rows = tf.convert_to_tensor(rows)
        numbers = first_row + (tf.range(rows) if rows.shape.rank == 0 else rows)
        rows = tf.repeat(numbers, num_samples)
        keys = tf.stack(
            [tf.fill(tf.shape(rows), seed), rows * 65537 + tf.range(tf.shape(rows)[0]) % num_samples], axis=1
        )

        def draw(key):
            return tf.random.stateless_uniform([max_length], key, alg="philox")

        return tf.map_fn(draw, keys, fn_output_signature=tf.float32)
    generators = (
        np.random.Generator(np.random.Philox(key=[seed, (first_row + int(row)) * 65537 + sample]))
        for row in (range(rows) if np.ndim(rows) == 0 else rows)
        for sample in range(num_samples)
    )
    return ops.convert_to_tensor(np.stack([g.random(max_length, dtype="float32") for g in generators]))


def _most_probable(logits, uniforms=None):
    """Token [N] with the greatest logit, of equal ones the first: that of the best block."""
    blocks, greatest = _blocks(logits, 4 * BLOCK)
    best = ops.argmax(greatest, axis=1)[:, None]
    block = ops.take_along_axis(blocks, best[:, :, None], axis=1)  # [N, 1, b]
    place = ops.argmax(_possible(block, best * blocks.shape[2])[:, 0], axis=1)
    return ops.cast(best[:, 0] * blocks.shape[2] + place, "int32")


def _blocks(logits, least):
    """Logits [N, V] in blocks [N, C, b], and the greatest possible one of each block [N, C].

    Where V is less than `least`, each stands for itself, b = 1. PAD and START are still in the blocks, so that nothing
    of the size of many logits is written anew, but for a V without a divisor that would do.
    """
    vocabulary = logits.shape[-1]
    block = _block_size(vocabulary) if vocabulary >= least else 1
    count = -(-vocabulary // block)
    if count * block > vocabulary:
        logits = ops.pad(logits, [(0, 0), (0, count * block - vocabulary)], constant_values=-math.inf)
    blocks = ops.reshape(logits, (ops.shape(logits)[0], count, block))
    if block == 1:
        return blocks, _possible(logits)
    first = ops.max(_possible(blocks[:, 0]), axis=1, keepdims=True)  # that of PAD and START
    return blocks, ops.concatenate([first, ops.max(blocks, axis=2)[:, 1:]], axis=1)


def _block_size(vocabulary):
    """The divisor of V that is nearest to BLOCK, from half to twice of it; BLOCK where there is none."""
    divisors = [size for size in range(BLOCK // 2, 2 * BLOCK + 1) if vocabulary % size == 0]
    return min(divisors, key=lambda size: abs(size - BLOCK), default=BLOCK)


def check_sampling(temperature, top_k, top_p):
    """Refuses numbers that make no sense; None and tensors pass."""
    if isinstance(temperature, numbers.Real) and not temperature >= 0:
        raise ValueError(f"sample expects a temperature of at least 0. Received: temperature={temperature}")
    if isinstance(top_k, numbers.Integral) and top_k < 1:
        raise ValueError(f"sample expects top_k of at least 1, or None. Received: top_k={top_k}")
    if isinstance(top_p, numbers.Real) and not 0 < top_p <= 1:
        raise ValueError(f"sample expects top_p above 0 and at most 1, or None. Received: top_p={top_p}")


def draw(logits, uniform, temperature, top_k, top_p):
    """Token [N] where the cumulated probabilities of logits [N, V] pass uniform [N].

    They are cumulated from the most probable one on; in the vocabulary's order where top_k and top_p are both None, so
    that nothing need be sorted.
    """
    vocabulary = logits.shape[-1]
    temperature = ops.cast(temperature, "float32")
    uniform = ops.where(temperature > 0, uniform, 0.0)
    if top_k is None and top_p is None:
        logits = _possible(logits)
        probabilities = ops.softmax(logits / ops.maximum(temperature, 1e-9), axis=-1)
        drawn = ops.minimum(_passed(probabilities, uniform), vocabulary - 1)
        return ops.where(temperature > 0, drawn, ops.cast(ops.argmax(logits, axis=-1), "int32"))
    values, tokens = ops.top_k(_possible(logits), k=vocabulary)
    kept = values > POSSIBLE
    if top_k is not None:
        kept = ops.logical_and(kept, ops.arange(vocabulary) < top_k)
    # Of temperature 0 the first one is taken of several that are equal.
    values = (values - values[:, :1]) / ops.maximum(temperature, 1e-9)
    probabilities = ops.softmax(ops.where(kept, values, NEVER), axis=-1)
    if top_p is not None:
        before = ops.cumsum(probabilities, axis=-1) - probabilities
        probabilities = ops.where(before < top_p, probabilities, 0.0)
    last = ops.sum(ops.cast(probabilities > 0, "int32"), axis=-1) - 1
    place = ops.minimum(_passed(probabilities, uniform), last)
    return ops.cast(ops.take_along_axis(tokens, place[:, None], axis=-1)[:, 0], "int32")


def _passed(probabilities, uniform):
    """How many cumulated probabilities [N, V] are at or below uniform [N], a share of their sum: int32 [N]."""
    cumulated = ops.cumsum(probabilities, axis=-1)
    return ops.sum(ops.cast(cumulated <= uniform[:, None] * cumulated[:, -1:], "int32"), axis=-1)


def _possible(logits, first=None):
    """Logits [..., V] without PAD and START; `first` [...]: the token that the last axis begins with, 0 if None."""
    tokens = ops.arange(logits.shape[-1])
    tokens = tokens if first is None else first[..., None] + tokens
    return ops.where(ops.logical_or(tokens == PAD, tokens == START), NEVER, logits)


def _normalizer(logits):
    """The log of the sum of all exponentials [N]."""
    greatest = ops.max(logits, axis=-1)
    return greatest + ops.log(ops.sum(ops.exp(logits - greatest[:, None]), axis=-1))


def _roll_out(model, memory, max_length, max_lengths, length_penalty, num_samples, choose, repetition, uniforms=None):
    """One token a hypothesis and step, as `choose(logits [N, V], uniforms [N]) -> [N]` says."""
    rooms = _rooms(model, max_length)
    tokens, state = model.initial_state(memory, rooms[0], num_samples)
    count = ops.shape(tokens)[0]  # N
    rows = count // num_samples  # B
    limits = _limits(model, memory, max_lengths, max_length, rows)  # [B]
    limits = ops.reshape(ops.repeat(limits, num_samples, axis=0), (count,))  # [N]
    attention = _attention_buffer(model, rooms, tokens, memory, state, count)
    has_attention = len(attention.shape) == 3
    given = {"memory": memory, "rows": {}, "hypotheses": {"limits": limits}}
    given["hypotheses"] |= {} if uniforms is None else {"uniforms": uniforms}

    def any_of_row(running):
        return ops.any(ops.reshape(running, (-1, num_samples)), axis=1)

    def advance(given, position, rows, hypotheses, written):
        logits, state, weights = model.step(hypotheses["tokens"], position, given["memory"], hypotheses["state"])
        logits = ops.cast(logits, "float32")
        allowed = repetition(logits, hypotheses["history"], position)
        drawn = None if uniforms is None else ops.take(given["hypotheses"]["uniforms"], position, axis=1)
        tokens = choose(allowed, drawn)
        gained = ops.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - _normalizer(logits)
        running = hypotheses["running"]
        goes_on = ops.logical_and(running, tokens != END)
        written = {**written, "ids": _write(written["ids"], position, ops.where(goes_on, tokens, PAD))}
        if has_attention:
            weights = ops.where(goes_on[:, None], _widened(weights, written["attention"]), 0.0)
            written["attention"] = _write(written["attention"], position, weights)
        hypotheses = {
            "state": state,
            "tokens": tokens,
            "history": repetition.write(hypotheses["history"], position, tokens),
            "running": ops.logical_and(goes_on, position + 1 < given["hypotheses"]["limits"]),
            "total": ops.where(running, hypotheses["total"] + gained, hypotheses["total"]),
            "lengths": hypotheses["lengths"] + ops.cast(goes_on, "int32"),
            "steps": hypotheses["steps"] + ops.cast(running, "int32"),
        }
        return position + 1, {"running": any_of_row(hypotheses["running"])}, hypotheses, written

    hypotheses = {
        "state": state,
        "tokens": tokens,
        "history": repetition.start(count, max_length),
        "running": limits > 0,
        "total": ops.zeros((count,), dtype="float32"),
        "lengths": ops.zeros((count,), dtype="int32"),
        "steps": ops.zeros((count,), dtype="int32"),
    }
    written = {"ids": ops.full((max_length, count), PAD, dtype="int32")}
    written |= {"attention": attention} if has_attention else {}
    running = {"running": any_of_row(limits > 0)}
    start = ops.zeros((), dtype="int32")
    _, _, hypotheses, written = _loop(model, rooms, num_samples, advance, given, start, running, hypotheses, written)

    total, lengths, steps = (ops.reshape(hypotheses[x], (rows, num_samples)) for x in ("total", "lengths", "steps"))
    ids = ops.reshape(ops.transpose(written["ids"]), (rows, num_samples, max_length))
    if has_attention:
        attention = ops.transpose(written["attention"], (1, 0, 2))  # [T, N, S] -> [N, T, S]
        attention = ops.reshape(attention, (rows, num_samples, max_length, ops.shape(attention)[2]))
    else:
        attention = None
    return Hypotheses(ids, lengths, total, _score(total, steps, length_penalty), attention)


def _rooms(model, max_length):
    """Lengths of the buffers that a search goes through: what is not written yet need not be read and reordered."""
    if not (is_compiled() and hasattr(model, "grow")):
        return (max_length,)
    return (max_length + 1) // 2, max_length


def _few(model, count):
    """How many of B rows go on alone when the others have stopped; 0 where all are computed to the end.

    They do so where B is not known, in a graph of TensorFlow, and within `compiled`. Elsewhere a search may be eager,
    and would compile its steps once more.
    """
    known = isinstance(count, int)
    if getattr(model, "take_rows", None) is None or known and not is_compiled():
        return 0
    if known:
        return count // SHARE if count >= 2 * SHARE else 0
    return ops.where(count >= 2 * SHARE, count // SHARE, 0)


def _loop(model, rooms, width, advance, given, position, rows, hypotheses, written):
    """The loop of a search, in which `advance(given, position, rows, hypotheses, written)` gives the last four anew.

    There is one for each room. When a few rows still run (see `_few`), they go on in one of their own.

    Args:
        rooms: see `_rooms`.
        width: W, hypotheses a row.
        given: what no step changes: {"memory": what `encode` returned, "rows": a tree of [B, ...], "hypotheses": a tree
            of [N, ...]}.
        rows: a tree of [B, ...], with "running" [B], whether a row has more to write.
        hypotheses: a tree of [N, ...], with the model's "state".
        written: a tree of [T, N, ...].

    Returns:
        The position where the last row stopped, rows, hypotheses without "state", and written.
    """
    few = _few(model, ops.shape(rows["running"])[0])
    variables = position, rows, hypotheses, written
    for number, room in enumerate(rooms):
        position, rows, hypotheses, written = variables
        if number:
            hypotheses = {**hypotheses, "state": model.grow(hypotheses["state"], room)}
        variables = _until(few, room, advance, given, position, rows, hypotheses, written)
    position, *trees = variables
    if isinstance(few, int) and few == 0:
        return position, *_without_state(trees)

    size = few if isinstance(few, int) else ops.maximum(few, 1)  # of none that runs, one, with which no step is taken
    order = ops.argsort(ops.where(trees[0]["running"], 0, 1))
    taken = ops.cast(order[:size], "int32")
    axes = (1, 0), (width, 0), (width, 1)  # of each tree: how many stand for a row, along which axis
    given = {
        "memory": model.take_rows(given["memory"], taken),
        "rows": _taken(given["rows"], taken, 1, 0),
        "hypotheses": _taken(given["hypotheses"], taken, width, 0),
    }
    few_trees = [_taken(tree, taken, *axis) for tree, axis in zip(trees, axes, strict=True)]
    position, *few_trees = _until(0, rooms[-1], advance, given, position, *few_trees)
    places = ops.cast(ops.argsort(order), "int32")  # of all rows among those that were taken, less than `size` if there
    trees = [
        _put_back(new, old, places, size, *axis)
        for new, old, axis in zip(_without_state(few_trees), _without_state(trees), axes, strict=True)
    ]
    return position, *trees


def _until(few, room, advance, given, *variables):
    """Steps until so few rows run, or the room is full."""
    return ops.while_loop(
        lambda position, rows, *_: ops.logical_and(position < room, ops.sum(ops.cast(rows["running"], "int32")) > few),
        lambda *variables: advance(given, *variables),
        variables,
    )


def _without_state(trees):
    rows, hypotheses, written = trees
    return rows, {name: part for name, part in hypotheses.items() if name != "state"}, written


def _of_rows(rows, width):
    """The numbers of the hypotheses of rows [R], W each: [R * W]."""
    return ops.reshape(rows[:, None] * width + ops.arange(width, dtype="int32"), (-1,))


def _taken(tree, rows, width, axis):
    """What belongs to some rows [R] of a tree with W entries a row along an axis."""
    entries = _of_rows(rows, width)
    return keras.tree.map_structure(lambda leaf: ops.take(leaf, entries, axis=axis), tree)


def _put_back(new, old, places, size, width, axis):
    """The tree `old` with the rows of `new`, which are at `places` [B] of it where that is less than `size`."""
    places = _of_rows(places, width)
    inside, places = places < size * width, ops.minimum(places, size * width - 1)

    def put(new, old):
        shown = ops.reshape(inside, (1,) * axis + (-1,) + (1,) * (len(old.shape) - axis - 1))
        return ops.where(shown, ops.take(new, places, axis=axis), old)

    return keras.tree.map_structure(put, new, old)


def beam_search(
    model,
    memory,
    max_length,
    max_lengths=None,
    beam_width=5,
    num_return=1,
    length_penalty=1.0,
    coverage_penalty=0.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    prompt=None,
):
    """Keeps the W most probable hypotheses at every step.

    Every step looks at the 2W best continuations of a row. END finishes a hypothesis only where it stands among the
    first W of them; the others refill the beam. A row stops with W finished hypotheses, or at its own greatest length,
    where those that still run are taken as they are. Finished hypotheses rank by log-probability / length**alpha
    (END counts in the length) plus the coverage penalty. A beam of 1 is greedy search.

    Args:
        model, memory, max_length, max_lengths, length_penalty: as in `greedy_search`.
        beam_width: W.
        num_return: R, hypotheses returned a row, at most W.
        coverage_penalty: beta of Wu et al. 2016 (https://arxiv.org/abs/1609.08144), equation 14: adds
            beta * sum over source positions of log(min(sum over pieces of attention, 1)). Needs attention.
        repetition_penalty, no_repeat_ngram_size, prompt: as in `greedy_search`, but that hypotheses are ranked by what
            the penalty leaves, and their log-probabilities hold it.

    Returns:
        Hypotheses with R = num_return.
    """
    if not 1 <= num_return <= beam_width:
        raise ValueError(
            f"beam_search expects num_return between 1 and beam_width. Received: num_return={num_return}, "
            f"beam_width={beam_width}"
        )
    if beam_width == 1 and not coverage_penalty:
        repetition = repetition_penalty, no_repeat_ngram_size, prompt
        return greedy_search(model, memory, max_length, max_lengths, length_penalty, *repetition)
    repetition = Repetition(repetition_penalty, no_repeat_ngram_size, prompt)
    width = beam_width
    rooms = _rooms(model, max_length)
    tokens, state = model.initial_state(memory, rooms[0], width)
    count = ops.shape(tokens)[0]  # N = B*W
    rows = count // width  # B
    limits = _limits(model, memory, max_lengths, max_length, rows)  # [B]
    attention = _attention_buffer(model, rooms, tokens, memory, state, count)
    has_attention = len(attention.shape) == 3
    if coverage_penalty and not has_attention:
        raise ValueError("beam_search needs a model with attention for its coverage_penalty; set it to 0.")
    source_length = ops.shape(attention)[2] if has_attention else 1
    covered = source_length if coverage_penalty else 1  # positions whose coverage is kept

    def advance(given, position, beam, hypotheses, written):
        limits = given["rows"]["limits"]
        rows = ops.shape(limits)[0]
        logits, state, weights = model.step(hypotheses["tokens"], position, given["memory"], hypotheses["state"])
        coverage = beam["coverage"]
        if has_attention:
            weights = _widened(weights, written["attention"])
        if coverage_penalty:
            coverage = coverage + ops.reshape(weights, (rows, width, source_length))
        logits = ops.cast(logits, "float32")
        gained = beam["log_probabilities"] - ops.reshape(_normalizer(logits), (rows, width))
        logits = repetition(logits, hypotheses["history"], position)
        values, tokens, parents = _candidates(logits, gained, rows, width)  # [B, 2W]

        last = position + 1 >= limits  # [B]
        ends = tokens == END
        done = ops.logical_and(ops.logical_or(ends, last[:, None]), values > POSSIBLE)[:, :width]
        done = ops.logical_and(done, beam["running"][:, None])
        finished = _finish(
            beam["finished"], done, position, values[:, :width], tokens[:, :width], parents[:, :width],
            coverage if coverage_penalty else None, length_penalty, coverage_penalty,
        )  # fmt: skip

        # The beam goes on with the W best candidates that are not END, in their order.
        order = ops.where(ends, 2 * width, 0) + ops.arange(2 * width)  # [B, 2W]
        _, kept = ops.top_k(-order, k=width)  # [B, W]
        kept = ops.cast(kept, "int32")
        values, tokens, parents, ends = (ops.take_along_axis(x, kept, axis=1) for x in (values, tokens, parents, ends))
        values = ops.where(ends, NEVER, values)
        stopped = ops.logical_or(last, finished["count"] >= width)
        stopped = ops.logical_or(stopped, ops.all(values < POSSIBLE, axis=1))
        beam = {
            "running": ops.logical_and(beam["running"], ops.logical_not(stopped)),
            "log_probabilities": values,
            "coverage": ops.take_along_axis(coverage, parents[:, :, None], axis=1) if coverage_penalty else coverage,
            "finished": finished,
        }
        flat_parents = ops.reshape(ops.arange(rows)[:, None] * width + parents, (rows * width,))
        tokens, parents = (ops.reshape(x, (rows * width,)) for x in (tokens, parents))
        written = {
            "tokens": _write(written["tokens"], position, tokens),
            "parents": _write(written["parents"], position, parents),
            **({"attention": _write(written["attention"], position, weights)} if has_attention else {}),
        }
        before = hypotheses["history"]
        before = ops.take(before, flat_parents, axis=0) if repetition.active else before
        hypotheses = {
            "state": keras.tree.map_structure(lambda leaf: _reordered(leaf, flat_parents), state),
            "tokens": tokens,
            "history": repetition.write(before, position, tokens),
        }
        return position + 1, beam, hypotheses, written

    finished = {
        "scores": ops.full((rows, width), NEVER, dtype="float32"),
        "log_probabilities": ops.full((rows, width), NEVER, dtype="float32"),
        "steps": ops.full((rows, width), -1, dtype="int32"),  # when it finished
        "tokens": ops.full((rows, width), PAD, dtype="int32"),  # with which token
        "parents": ops.zeros((rows, width), dtype="int32"),  # from which hypothesis
        "count": ops.zeros((rows,), dtype="int32"),
    }
    beam = {
        "running": limits > 0,
        # All W hypotheses of a row start alike; only the first one counts. [B, W]
        "log_probabilities": ops.zeros((rows, 1)) + ops.where(ops.arange(width) == 0, 0.0, NEVER)[None, :],
        "coverage": ops.zeros((rows, width, covered)),
        "finished": finished,
    }
    hypotheses = {"state": state, "tokens": tokens, "history": repetition.start(count, max_length)}
    written = {
        "tokens": ops.full((max_length, count), PAD, dtype="int32"),
        "parents": ops.zeros((max_length, count), dtype="int32"),
        **({"attention": attention} if has_attention else {}),
    }
    given = {"memory": memory, "rows": {"limits": limits}, "hypotheses": {}}
    start = ops.zeros((), dtype="int32")
    steps, beam, _, written = _loop(model, rooms, width, advance, given, start, beam, hypotheses, written)
    best = {name: part[:, :num_return] for name, part in beam["finished"].items() if name != "count"}
    return _follow(best, written, steps, max_length, rows, width, num_return, source_length)


def _candidates(logits, gained, rows, width):
    """The 2W best continuations of each row: log-probabilities, tokens and parents, [B, 2W] each, best first.

    A continuation's log-probability is its logit [N, V] and what its hypothesis has `gained` [B, W], both added.

    They stand in the 2W blocks of logits whose maxima are the greatest: only those blocks are sorted, and the
    log-probabilities of all the others are never computed. Of equal ones the first counts, as in `top_k`.
    """
    wanted = 2 * width
    blocks, greatest = _blocks(logits, 4 * wanted * BLOCK)
    count, block = blocks.shape[1:]
    gained = ops.reshape(gained, (rows * width,))
    _, best = ops.top_k(ops.reshape(greatest + gained[:, None], (rows, width * count)), k=wanted)
    best = ops.sort(ops.cast(best, "int32"), axis=1)  # so that of equal numbers the first is found
    parents = best // count
    hypotheses = ops.arange(rows)[:, None] * width + parents  # [B, 2W]
    inside = ops.take(ops.reshape(blocks, (rows * width * count, block)), hypotheses * count + best % count, axis=0)
    inside = _possible(inside, best % count * block) + ops.take(gained, hypotheses)[:, :, None]
    values, places = ops.top_k(ops.reshape(inside, (rows, wanted * block)), k=wanted)
    places = ops.cast(places, "int32")
    parents, first = (ops.take_along_axis(x, places // block, axis=1) for x in (parents, best % count * block))
    return ops.maximum(values, NEVER), first + places % block, parents


def _reordered(leaf, parents):
    """leaf [N, ...] with the rows of `parents` [N], as a table of two axes, which XLA reads faster."""
    shape = ops.shape(leaf)
    if len(shape) < 3:
        return ops.take(leaf, parents, axis=0)
    width = math.prod(shape[1:]) if all(isinstance(size, int) for size in shape[1:]) else -1
    return ops.reshape(ops.take(ops.reshape(leaf, (shape[0], width)), parents, axis=0), shape)


def _finish(finished, done, position, values, tokens, parents, coverage, length_penalty, coverage_penalty):
    """Merges the candidates [B, W] that are done into the W best finished hypotheses [B, W]."""
    scores = _score(values, ops.zeros_like(tokens) + position + 1, length_penalty)
    if coverage is not None:
        covered = ops.take_along_axis(coverage, parents[:, :, None], axis=1)  # [B, W, S]
        # A source position that is padding has no attention and must not count; real ones have some.
        logs = ops.where(covered > 0, ops.log(ops.minimum(ops.maximum(covered, 1e-30), 1.0)), 0.0)
        scores = scores + coverage_penalty * ops.sum(logs, axis=-1)
    width = done.shape[1]
    merged = {
        "scores": ops.where(done, scores, NEVER),
        "log_probabilities": ops.where(done, values, NEVER),
        "steps": ops.where(done, position, -1),
        "tokens": tokens,
        "parents": parents,
    }
    merged = {name: ops.concatenate([finished[name], merged[name]], axis=1) for name in merged}  # [B, 2W]
    _, best = ops.top_k(merged["scores"], k=width)
    best = ops.cast(best, "int32")
    merged = {name: ops.take_along_axis(merged[name], best, axis=1) for name in merged}
    return {**merged, "count": finished["count"] + ops.sum(ops.cast(done, "int32"), axis=1)}


def _follow(best, written, steps, max_length, rows, width, num_return, source_length):
    """Reads the finished hypotheses back from their last step to the first, along the parents."""
    has_attention = "attention" in written

    def back(position, cursor, ids, attention):
        position = position - 1
        tokens, parents = (
            ops.reshape(ops.take(written[name], position, axis=0), (rows, width)) for name in ("tokens", "parents")
        )
        is_last = best["steps"] == position  # [B, R]
        inside = position < best["steps"]
        ended = ops.logical_and(is_last, best["tokens"] == END)
        at_cursor = ops.take_along_axis(tokens, cursor, axis=1)
        token = ops.where(inside, at_cursor, ops.where(is_last, best["tokens"], PAD))
        ids = _write(ids, position, ops.where(ended, PAD, token))
        parent = ops.take_along_axis(parents, cursor, axis=1)
        cursor = ops.where(inside, parent, ops.where(is_last, best["parents"], cursor))
        if has_attention:
            # The hypothesis that chose this token stands at its parent.
            chosen = ops.arange(rows)[:, None] * width + cursor
            weights = ops.take(ops.take(written["attention"], position, axis=0), chosen, axis=0)
            shown = ops.logical_and(ops.logical_or(inside, is_last), ops.logical_not(ended))
            attention = _write(attention, position, ops.where(shown[:, :, None], weights, 0.0))
        return position, cursor, ids, attention

    attention = ops.zeros((max_length, rows, num_return, source_length if has_attention else 1))
    _, _, ids, attention = ops.while_loop(
        lambda position, *_: position > 0,
        back,
        (
            steps,
            ops.zeros((rows, num_return), dtype="int32"),
            ops.full((max_length, rows, num_return), PAD, dtype="int32"),
            attention,
        ),
    )
    lengths = ops.where(best["steps"] >= 0, best["steps"] + ops.where(best["tokens"] == END, 0, 1), 0)
    return Hypotheses(
        ops.transpose(ids, (1, 2, 0)),
        lengths,
        best["log_probabilities"],
        best["scores"],
        ops.transpose(attention, (1, 2, 0, 3)) if has_attention else None,
    )


def _score(log_probabilities, steps, length_penalty):
    """log-probability / length**alpha, the length in steps, so that END counts, and at least 1."""
    return log_probabilities / ops.cast(ops.maximum(steps, 1), "float32") ** length_penalty


def _limits(model, memory, max_lengths, max_length, rows):
    """Steps at most for each row, [B] int32, never more than the buffers and the model's context hold."""
    limits = ops.zeros((rows,), dtype="int32") + max_length
    room = model.room(memory) if hasattr(model, "room") else None
    for other in (max_lengths, room):
        if other is not None:
            limits = ops.minimum(ops.cast(ops.convert_to_tensor(other), "int32"), limits)
    return ops.maximum(limits, 0)


def _write(buffer, position, values):
    """buffer [T, ...] with row `position` set to values [...]."""
    return ops.scatter_update(buffer, ops.reshape(position, (1, 1)), values[None])


def _attention_buffer(model, rooms, tokens, memory, state, count):
    """Zeros [T, N, S] for the weights of every step, S that of the last room; [T, 1] for a model that has none."""
    max_length = rooms[-1]
    state = model.grow(state, max_length) if len(rooms) > 1 else state
    weights = model.step(tokens, ops.zeros((), dtype="int32"), memory, state)[2]
    if weights is None:
        return ops.zeros((max_length, 1))
    return ops.zeros((max_length, count, ops.shape(weights)[1]))


def _widened(weights, buffer):
    """Weights [N, S] in float32, zeros behind them up to the buffer's S: a room's positions may be among them."""
    weights = ops.cast(weights, "float32")
    widths = weights.shape[1], buffer.shape[2]
    if not is_compiled() or None not in widths and widths[0] == widths[1]:
        return weights
    return ops.pad(weights, [(0, 0), (0, ops.shape(buffer)[2] - ops.shape(weights)[1])])
