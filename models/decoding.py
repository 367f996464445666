"""Greedy search, sampling and beam search over any model with the three verbs `encode`, `initial_state` and `step`.

    memory = model.encode(x)                                            axis B, constant while decoding
    tokens, state = model.initial_state(memory, max_length, beam_width) axis N = B*W
    logits, state, attention = model.step(tokens, position, memory, state)

Axis 0 of each part of a state is N. A model whose state has buffers of max_length may also have `grow(state,
max_length)`, which returns the state with longer ones: compiled searches then begin with short buffers.

A model may also have `room(memory)`, the steps [B] that its context still has, or None: no search goes beyond; and
`take_rows(memory, rows)`, the memory of some rows [R], and `grow`, by which a `Pipeline` searches in stages (see
stages.py): rows that have stopped leave.

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
    repetition = Repetition(repetition_penalty, no_repeat_ngram_size)
    return RollOut(model, 1, length_penalty, repetition)(memory, max_length, max_lengths, prompt)


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
    repetition = Repetition(repetition_penalty, no_repeat_ngram_size)
    search = RollOut(model, num_samples, length_penalty, repetition)
    if isinstance(temperature, (int, float)) and temperature == 0:
        return search(memory, ops.shape(uniforms)[1], max_lengths, prompt)
    limits = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return search(memory, ops.shape(uniforms)[1], max_lengths, prompt, uniforms, limits)


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
    repetition = Repetition(repetition_penalty, no_repeat_ngram_size)
    search = search_for(model, beam_width, num_return, length_penalty, coverage_penalty, repetition)
    return search(memory, max_length, max_lengths, prompt)


class Search:
    """A search that can be told to begin, to go on and to finish. What it goes on with is a tree, its progress:

    position: a scalar, the steps that were taken.
    widening: by how much the attention [N, S] of a step is wider for each further step that there is room for.
    memory: what `encode` returned.
    limits: what all rows share, such as a temperature.
    rows: a tree of [B, ...], with "running" [B], whether a row has more to write, and its "longest" answer [B].
    hypotheses: a tree of [N, ...], N = B*W, with the model's "state".
    written: a tree of [T, N, ...], T steps that there is room for.

    Args:
        model: anything with `initial_state` and `step`.
        width: W, hypotheses a row.
        length_penalty: alpha of the score.
        repetition: a `Repetition`.

    A subclass says what is there at `first`, what changes when a step `advance`s, how to `finish`, and of which parts
    of rows and hypotheses that `makes` the result.
    """

    def __init__(self, model, width, length_penalty, repetition):
        self.model = model
        self.width = width
        self.length_penalty = length_penalty
        self.repetition = repetition

    def __call__(self, memory, max_length, max_lengths=None, prompt=None, uniforms=None, limits=None):
        """Hypotheses for a memory, as the functions of this module say."""
        if max_lengths is None:
            max_lengths = max_length
        else:
            max_lengths = ops.minimum(ops.cast(ops.convert_to_tensor(max_lengths), "int32"), max_length)
        grows = is_compiled() and hasattr(self.model, "grow")
        room = (max_length + 1) // 2 if grows else max_length
        progress = self.go_on(self.begin(memory, room, max_lengths, prompt, uniforms, limits))
        if grows:
            progress = self.go_on(self.grow(progress, max_length))
        return self.finish(progress)

    def begin(self, memory, room, max_lengths, prompt=None, uniforms=None, limits=None):
        """The progress before the first step.

        Args:
            memory: what `encode` returned.
            room: T, steps that the buffers have room for; an answer may be longer, once they have grown.
            max_lengths: steps at most, an integer or one for each row [B].
            prompt: [B, P] ids that a `Repetition` counts, too, or None.
            uniforms: random numbers [N, all steps] to draw with, or None.
            limits: a dict of what else `draw` takes.
        """
        tokens, state = self.model.initial_state(memory, room, self.width)
        count = ops.shape(tokens)[0]  # N
        longest = self._longest(memory, max_lengths, count // self.width)
        attention, widening = self._attention(tokens, memory, state, room)
        hypotheses = {"state": state, "tokens": tokens, "history": self.repetition.start(count, room, prompt)}
        hypotheses |= {} if uniforms is None else {"uniforms": uniforms}
        rows, more_of_hypotheses, written = self.first(room, longest, attention)
        return {
            "position": ops.zeros((), dtype="int32"),
            "widening": widening,
            "memory": memory,
            "limits": limits or {},
            "rows": {"running": longest > 0, "longest": longest, **rows},
            "hypotheses": {**hypotheses, **more_of_hypotheses},
            "written": {**written, **({} if attention is None else {"attention": attention})},
        }

    def go_on(self, progress, few=0):
        """The progress after so many steps that no more than a few rows run, or that the buffers are full."""
        room = room_of(progress)
        names = "position", "rows", "hypotheses", "written"

        def goes_on(position, rows, *_):
            running = ops.sum(ops.cast(rows["running"], "int32"))
            return ops.logical_and(position < room, running > few)

        def advance(position, *trees):
            return position + 1, *self.advance(progress["memory"], progress["limits"], position, *trees)

        changed = ops.while_loop(goes_on, advance, tuple(progress[name] for name in names))
        return {**progress, **dict(zip(names, changed, strict=True))}

    def grow(self, progress, room):
        """The progress with room for `room` steps, at least as many as it has now."""
        more = room - room_of(progress)
        wider = more * progress["widening"]
        rows, hypotheses = progress["rows"], dict(progress["hypotheses"])
        hypotheses["history"] = self.repetition.grow(hypotheses["history"], room)
        if hasattr(self.model, "grow"):
            hypotheses["state"] = self.model.grow(hypotheses["state"], room)
        if "coverage" in rows:
            rows = {**rows, "coverage": ops.pad(rows["coverage"], [(0, 0), (0, 0), (0, wider)])}
        return {**progress, "rows": rows, "hypotheses": hypotheses, "written": grow(progress["written"], more, wider)}

    def _longest(self, memory, max_lengths, rows):
        """Steps at most for each row, [B] int32, never more than the model's context holds."""
        longest = ops.zeros((rows,), dtype="int32") + max_lengths
        room = self.model.room(memory) if hasattr(self.model, "room") else None
        longest = longest if room is None else ops.minimum(longest, ops.cast(room, "int32"))
        return ops.maximum(longest, 0)

    def _attention(self, tokens, memory, state, room):
        """Zeros [T, N, S] for the weights of T steps, None for a model that has none, and their `widening`."""
        first = ops.zeros((), dtype="int32")
        weights = self.model.step(tokens, first, memory, state)[2]
        if weights is None:
            return None, 0
        count, width = ops.shape(weights)
        widening = 0
        if is_compiled() and hasattr(self.model, "grow"):
            weights = self.model.step(tokens, first, memory, self.model.grow(state, room + 1))[2]
            widening = ops.shape(weights)[1] - width
        return ops.zeros((room, count, width)), widening


def room_of(progress):
    """T, the steps that the buffers of a progress have room for."""
    return ops.shape(keras.tree.flatten(progress["written"])[0])[0]


def grow(written, more, wider):
    """A tree [T, N, ...] with room for more steps, and for attention that is wider."""

    def longer(name, part):
        after = [(0, more)] + [(0, 0)] * (len(part.shape) - 1)
        if name == "attention":
            after[2] = (0, wider)
        return ops.pad(part, after)  # PAD is 0

    return {name: longer(name, part) for name, part in written.items()}


class RollOut(Search):
    """One token a hypothesis and step: the most probable one, or where there are random numbers one that is drawn."""

    makes = {"rows": (), "hypotheses": ("total", "lengths", "steps")}

    def first(self, room, longest, attention):
        count = ops.shape(longest)[0] * self.width
        zeros = {"total": "float32", "lengths": "int32", "steps": "int32"}
        hypotheses = {name: ops.zeros((count,), dtype=dtype) for name, dtype in zeros.items()}
        hypotheses["running"] = _of_rows(longest, self.width) > 0
        return {}, hypotheses, {"ids": ops.full((room, count), PAD, dtype="int32")}

    def advance(self, memory, limits, position, rows, hypotheses, written):
        logits, state, weights = self.model.step(hypotheses["tokens"], position, memory, hypotheses["state"])
        logits = ops.cast(logits, "float32")
        tokens = self._choose(self.repetition(logits, hypotheses["history"], position), hypotheses, position, limits)
        gained = ops.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - _normalizer(logits)
        running = hypotheses["running"]
        goes_on = ops.logical_and(running, tokens != END)
        written = {**written, "ids": _write(written["ids"], position, ops.where(goes_on, tokens, PAD))}
        if "attention" in written:
            weights = ops.where(goes_on[:, None], ops.cast(weights, "float32"), 0.0)
            written["attention"] = _write(written["attention"], position, weights)
        hypotheses = {
            **hypotheses,
            "state": state,
            "tokens": tokens,
            "history": self.repetition.write(hypotheses["history"], position, tokens),
            "running": ops.logical_and(goes_on, position + 1 < _of_rows(rows["longest"], self.width)),
            "total": ops.where(running, hypotheses["total"] + gained, hypotheses["total"]),
            "lengths": hypotheses["lengths"] + ops.cast(goes_on, "int32"),
            "steps": hypotheses["steps"] + ops.cast(running, "int32"),
        }
        running = ops.any(ops.reshape(hypotheses["running"], (-1, self.width)), axis=1)
        return {**rows, "running": running}, hypotheses, written

    def _choose(self, logits, hypotheses, position, limits):
        if "uniforms" not in hypotheses:
            return _most_probable(logits)
        return draw(logits, ops.take(hypotheses["uniforms"], position, axis=1), **limits)

    def finish(self, progress):
        """Hypotheses with R = W."""
        made = progress["hypotheses"]
        by_row = {name: ops.reshape(made[name], (-1, self.width)) for name in self.makes["hypotheses"]}
        rows = ops.shape(by_row["total"])[0]
        ids = progress["written"]["ids"]
        ids = ops.reshape(ops.transpose(ids), (rows, self.width, ops.shape(ids)[0]))
        attention = progress["written"].get("attention")
        if attention is not None:  # [T, N, S] -> [B, W, T, S]
            steps, _, length = ops.shape(attention)
            attention = ops.reshape(ops.transpose(attention, (1, 0, 2)), (rows, self.width, steps, length))
        scores = _score(by_row["total"], by_row["steps"], self.length_penalty)
        return Hypotheses(ids, by_row["lengths"], by_row["total"], scores, attention)


class BeamSearch(Search):
    """The W most probable hypotheses of a row, of which the R best are kept, see `beam_search`."""

    makes = {"rows": ("finished",), "hypotheses": ()}

    def __init__(self, model, width, num_return, length_penalty, coverage_penalty, repetition):
        super().__init__(model, width, length_penalty, repetition)
        self.num_return = num_return
        self.coverage_penalty = coverage_penalty

    def first(self, room, longest, attention):
        rows, width = ops.shape(longest)[0], self.width
        if self.coverage_penalty and attention is None:
            raise ValueError("beam_search needs a model with attention for its coverage_penalty; set it to 0.")
        finished = {
            "scores": ops.full((rows, width), NEVER, dtype="float32"),
            "log_probabilities": ops.full((rows, width), NEVER, dtype="float32"),
            "steps": ops.full((rows, width), -1, dtype="int32"),  # when it finished
            "tokens": ops.full((rows, width), PAD, dtype="int32"),  # with which token
            "parents": ops.zeros((rows, width), dtype="int32"),  # from which hypothesis
            "count": ops.zeros((rows,), dtype="int32"),
        }
        beam = {
            # All W hypotheses of a row start alike; only the first one counts. [B, W]
            "log_probabilities": ops.zeros((rows, 1)) + ops.where(ops.arange(width) == 0, 0.0, NEVER)[None, :],
            "finished": finished,
        }
        if self.coverage_penalty:
            beam["coverage"] = ops.zeros((rows, width, ops.shape(attention)[2]))
        written = {
            "tokens": ops.full((room, rows * width), PAD, dtype="int32"),
            "parents": ops.zeros((room, rows * width), dtype="int32"),
        }
        return beam, {}, written

    def advance(self, memory, limits, position, beam, hypotheses, written):
        width, rows = self.width, ops.shape(beam["longest"])[0]
        logits, state, weights = self.model.step(hypotheses["tokens"], position, memory, hypotheses["state"])
        if "attention" in written:
            weights = ops.cast(weights, "float32")
            written = {**written, "attention": _write(written["attention"], position, weights)}
        coverage = None
        if self.coverage_penalty:
            coverage = beam["coverage"] + ops.reshape(weights, (rows, width, ops.shape(weights)[1]))
        logits = ops.cast(logits, "float32")
        gained = beam["log_probabilities"] - ops.reshape(_normalizer(logits), (rows, width))
        logits = self.repetition(logits, hypotheses["history"], position)
        values, tokens, parents = _candidates(logits, gained, rows, width)  # [B, 2W]

        last = position + 1 >= beam["longest"]  # [B]
        ends = tokens == END
        done = ops.logical_and(ops.logical_or(ends, last[:, None]), values > POSSIBLE)[:, :width]
        done = ops.logical_and(done, beam["running"][:, None])
        finished = _finish(
            beam["finished"], done, position, values[:, :width], tokens[:, :width], parents[:, :width],
            coverage, self.length_penalty, self.coverage_penalty,
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
            **beam,
            "running": ops.logical_and(beam["running"], ops.logical_not(stopped)),
            "log_probabilities": values,
            "finished": finished,
        }
        if self.coverage_penalty:
            beam["coverage"] = ops.take_along_axis(coverage, parents[:, :, None], axis=1)
        flat_parents = ops.reshape(ops.arange(rows)[:, None] * width + parents, (rows * width,))
        tokens, parents = (ops.reshape(x, (rows * width,)) for x in (tokens, parents))
        written = {
            **written,
            "tokens": _write(written["tokens"], position, tokens),
            "parents": _write(written["parents"], position, parents),
        }
        state, history = keras.tree.map_structure(
            lambda leaf: _reordered(leaf, flat_parents), (state, hypotheses["history"])
        )
        history = self.repetition.write(history, position, tokens)
        return beam, {**hypotheses, "state": state, "tokens": tokens, "history": history}, written

    def finish(self, progress):
        """Hypotheses: the finished ones read back from their last step to the first, along the parents."""
        written, steps = progress["written"], progress["position"]
        best = {n: part[:, : self.num_return] for n, part in progress["rows"]["finished"].items() if n != "count"}
        rows, found = ops.shape(best["steps"])
        width, room = self.width, room_of(progress)
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

        length = ops.shape(written["attention"])[2] if has_attention else 1
        _, _, ids, attention = ops.while_loop(
            lambda position, *_: position > 0,
            back,
            (
                steps,
                ops.zeros((rows, found), dtype="int32"),
                ops.full((room, rows, found), PAD, dtype="int32"),
                ops.zeros((room, rows, found, length)),
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


def search_for(model, beam_width, num_return, length_penalty, coverage_penalty, repetition):
    """The search of a beam, which is a greedy one where it keeps one hypothesis."""
    if not 1 <= num_return <= beam_width:
        raise ValueError(
            f"beam_search expects num_return between 1 and beam_width. Received: num_return={num_return}, "
            f"beam_width={beam_width}"
        )
    if beam_width == 1 and not coverage_penalty:
        return RollOut(model, 1, length_penalty, repetition)
    return BeamSearch(model, beam_width, num_return, length_penalty, coverage_penalty, repetition)


def _of_rows(x, width):
    """What each of W hypotheses has of its row: x [B] as [N]."""
    return x if width == 1 else ops.reshape(ops.repeat(x, width, axis=0), (ops.shape(x)[0] * width,))


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


def _score(log_probabilities, steps, length_penalty):
    """log-probability / length**alpha, the length in steps, so that END counts, and at least 1."""
    return log_probabilities / ops.cast(ops.maximum(steps, 1), "float32") ** length_penalty


def _write(buffer, position, values):
    """buffer [T, ...] with row `position` set to values [...]."""
    if is_compiled():
        start = ops.stack([position] + [0] * (len(buffer.shape) - 1))
        return ops.slice_update(buffer, start, ops.cast(values, buffer.dtype)[None])
    return ops.scatter_update(buffer, ops.reshape(position, (1, 1)), values[None])
