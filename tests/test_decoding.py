"""Greedy search, beam search and sampling against oracles in NumPy, for models whose probabilities are known."""

import itertools
import math

import keras
import numpy as np
import pytest
from helpers import marked, randomize, to_numpy
from keras import ops

from keras_attention.cache import compiled
from keras_attention.models import Seq2Seq, Transformer, beam_search, decoding, greedy_search, sample, uniform_numbers
from keras_attention.models.decoding import NEVER
from keras_attention.models.tokenizers import END, PAD, START
from keras_attention.models.transformer import POSITIONS

pytestmark = pytest.mark.backends
V = 7


class Markov:
    """Not a Keras model at all: the next token depends on the last one, the row and the position."""

    def __init__(self, table):
        self.table = table  # [B, T, V, V] logits

    def initial_state(self, memory, max_length=None, beam_width=1):
        rows = ops.shape(memory)[0]
        return ops.full((rows * beam_width,), START, dtype="int32"), {
            "row": ops.repeat(ops.arange(rows, dtype="int32"), beam_width, axis=0)
        }

    def step(self, tokens, position, memory, state):
        logits = ops.take(ops.convert_to_tensor(self.table), position, axis=1)  # [B, V, V]
        flat = ops.reshape(logits, (-1, self.table.shape[-1]))
        return ops.take(flat, state["row"] * self.table.shape[2] + tokens, axis=0), state, None


def markov(rows=3, steps=5, vocabulary=V, seed=0, scale=1.5):
    table = np.random.default_rng(seed).normal(scale=scale, size=(rows, steps, vocabulary, vocabulary))
    return Markov(table.astype("float32")), ops.zeros((rows, 1))


def log_softmax(x):
    x = x.astype("float64")
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def log_probability(table, row, tokens):
    """Of a sequence of tokens (END included where it ends)."""
    total, last = 0.0, START
    for position, token in enumerate(tokens):
        total += log_softmax(table[row, position, last])[token]
        last = token
    return total


def exhaustive(table, row, steps, alpha):
    """Every sequence that ends, or fills all steps, with its score, best first."""
    tokens = [t for t in range(table.shape[-1]) if t not in (PAD, START)]
    found = []
    for length in range(1, steps + 1):
        for body in itertools.product([t for t in tokens if t != END], repeat=length - 1):
            for last in tokens if length == steps else [END]:
                sequence = [*body, last]
                pieces = [t for t in sequence if t != END]
                value = log_probability(table, row, sequence)
                found.append((value / len(sequence) ** alpha, value, pieces))
    return sorted(found, key=lambda item: -item[0])


def beam_oracle(table, row, steps, width, alpha):
    """An independent beam search: lists of hypotheses, one row at a time."""
    beam, finished = [(0.0, [])], []
    for position in range(steps):
        candidates = []
        for value, tokens in beam:
            gained = log_softmax(table[row, position, tokens[-1] if tokens else START])
            candidates += [(value + gained[t], [*tokens, t]) for t in range(table.shape[-1]) if t not in (PAD, START)]
        candidates = sorted(candidates, key=lambda item: -item[0])[: 2 * width]
        for rank, (value, tokens) in enumerate(candidates):
            if rank < width and (tokens[-1] == END or position == steps - 1):
                pieces = [t for t in tokens if t != END]
                finished.append((value / len(tokens) ** alpha, value, pieces))
        beam = [item for item in candidates if item[1][-1] != END][:width]
        if len(finished) >= width:
            break
    return sorted(finished, key=lambda item: -item[0])


def rows_of(result):
    """[[(score, log-probability, ids)]] of Hypotheses."""
    ids, lengths = to_numpy(result.ids), to_numpy(result.lengths)
    scores, values = to_numpy(result.scores), to_numpy(result.log_probabilities)
    for row, rank in np.ndindex(lengths.shape):
        assert np.all(ids[row, rank, lengths[row, rank] :] == PAD)
    return [
        [
            (scores[row, rank], values[row, rank], ids[row, rank, : lengths[row, rank]].tolist())
            for rank in range(lengths.shape[1])
            if values[row, rank] > -1e29
        ]
        for row in range(lengths.shape[0])
    ]


def same(found, expected):
    assert [item[2] for item in found] == [item[2] for item in expected]
    np.testing.assert_allclose([i[:2] for i in found], [i[:2] for i in expected], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_beam_as_wide_as_all_sequences_is_exhaustive_search(alpha):
    model, memory = markov(rows=2, steps=3, vocabulary=6)
    everything = [exhaustive(model.table, row, 3, alpha) for row in range(2)]
    width = len(everything[0])
    result = beam_search(model, memory, 3, beam_width=width, num_return=11, length_penalty=alpha)
    for row in range(2):
        same(rows_of(result)[row], everything[row][:11])


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_narrow_beam_equals_an_independent_beam_search(width, alpha):
    for seed in range(4):
        model, memory = markov(rows=3, steps=5, seed=seed)
        result = rows_of(beam_search(model, memory, 5, beam_width=width, num_return=width, length_penalty=alpha))
        for row in range(3):
            same(result[row], beam_oracle(model.table, row, 5, width, alpha)[:width])


def test_beam_1_is_greedy_search():
    model, memory = markov(rows=23, steps=7, seed=5)
    limits = np.random.default_rng(0).integers(1, 8, 23)
    greedy = greedy_search(model, memory, 7, limits)
    beam = beam_search(model, memory, 7, limits, beam_width=1)
    for one, two in zip(greedy[:4], beam[:4], strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(two), atol=1e-5)


def test_each_row_has_its_own_greatest_length():
    model, memory = markov(rows=3, steps=5, seed=7)
    limits = [2, 0, 4]
    result = rows_of(beam_search(model, memory, 5, limits, beam_width=3, num_return=3))
    assert result[1] == []
    for row in (0, 2):
        same(result[row], beam_oracle(model.table, row, limits[row], 3, 1.0)[:3])


def test_a_probable_end_does_not_end_the_others():
    """END stands among the W best at once; the beam goes on with the next candidates."""
    table = np.full((1, 3, 6, 6), -9.0, "float32")
    table[0, :, :, END], table[0, :, :, 4], table[0, :, :, 5] = 2.0, 1.5, 1.0
    memory = ops.zeros((1, 1))
    result = rows_of(beam_search(Markov(table), memory, 3, beam_width=2, num_return=2, length_penalty=0.0))
    same(result[0], beam_oracle(table, 0, 3, 2, 0.0)[:2])
    assert result[0][0][2] == []


def test_pad_and_start_are_never_written_and_probabilities_stay_the_models_own():
    table = np.zeros((1, 3, 6, 6), "float32")
    table[..., PAD], table[..., START] = 20.0, 20.0
    for result in (
        greedy_search(Markov(table), ops.zeros((1, 1)), 3),
        beam_search(Markov(table), ops.zeros((1, 1)), 3),
    ):
        ((found,),) = rows_of(result)
        assert not {PAD, START} & set(found[2])
        tokens = found[2] if len(found[2]) == 3 else [*found[2], END]
        assert math.isclose(found[1], log_probability(table, 0, tokens), rel_tol=1e-5)
        assert found[1] < -20


ATTENTIONS = ["additive", "dot", "scaled_dot", None]
SOURCE = np.array([[5, 6, 7, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]], "int32")


def seq2seq(attention="additive"):
    return randomize(Seq2Seq(11, 13, units=8, embedding_width=6, attention=attention), scale=0.8, seed=3)


def transformer(position):
    sizes = {"width": 8, "num_heads": 2, "feed_forward_units": 11, "encoder_layers": 1, "decoder_layers": 2}
    first = position in ("rotary", "alibi")
    return randomize(Transformer(11, 13, **sizes, position=position, normalize_first=first), scale=0.6, seed=3)


def decoder(kind):
    return transformer(kind) if kind in POSITIONS else seq2seq(kind)


@pytest.mark.parametrize(
    "kind",
    [
        ATTENTIONS[0],
        *marked("tensorflow_first", ATTENTIONS[1:]),
        *marked("release", POSITIONS),
    ],
)
def test_each_hypothesis_has_the_models_own_log_probability_and_attention(kind):
    model = decoder(kind)
    memory = model.encode({"source": SOURCE})
    result = beam_search(model, memory, 6, beam_width=5, num_return=5)
    ids, lengths = to_numpy(result.ids), to_numpy(result.lengths)
    for row, rank in np.ndindex(lengths.shape):
        length = lengths[row, rank]
        tokens = ids[row, rank, :length].tolist() + ([END] if length < 6 else [])
        target = np.array([[START, *tokens[:-1]]])
        logits, weights = model({"source": SOURCE[row : row + 1], "target": target}, return_attention_scores=True)
        gained = log_softmax(to_numpy(logits)[0])[np.arange(len(tokens)), tokens]
        assert math.isclose(gained.sum(), to_numpy(result.log_probabilities)[row, rank], abs_tol=1e-4)
        if kind is None:
            assert result.attention is None
            continue
        weights = to_numpy(weights["cross"][0]).mean(1) if kind in POSITIONS else weights
        shown = to_numpy(result.attention)[row, rank]
        np.testing.assert_allclose(shown[:length], to_numpy(weights)[0, :length], atol=1e-5)
        assert np.all(shown[length:] == 0)
        assert np.all(shown[:, SOURCE[row] == 0] == 0)
        np.testing.assert_allclose(shown[:length].sum(-1), 1, atol=1e-5)


@pytest.mark.tensorflow_first
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_batch_decodes_as_each_row_alone_however_padded(attention):
    model = seq2seq(attention)
    together = rows_of(beam_search(model, model.encode({"source": SOURCE}), 6, beam_width=3, num_return=3))
    for row in range(3):
        alone = np.pad(SOURCE[row : row + 1], ((0, 0), (0, 11)))
        found = rows_of(beam_search(model, model.encode({"source": alone}), 6, beam_width=3, num_return=3))
        same(found[0], together[row])


def test_coverage_penalty_changes_the_ranking_as_its_formula_says():
    model = seq2seq()
    memory = model.encode({"source": SOURCE})
    plain = beam_search(model, memory, 6, beam_width=5, num_return=5)
    covered = beam_search(model, memory, 6, beam_width=5, num_return=5, coverage_penalty=0.7)
    attention, scores = to_numpy(covered.attention), to_numpy(covered.scores)
    complete = to_numpy(covered.lengths) == 6  # the attention of END is not returned, but counts
    assert complete.any()
    for row, rank in zip(*np.nonzero(complete), strict=True):
        sums = attention[row, rank].sum(0)[SOURCE[row] != 0]
        penalty = 0.7 * np.log(np.minimum(sums, 1)).sum()
        expected = to_numpy(covered.log_probabilities)[row, rank] / 6 + penalty
        assert math.isclose(scores[row, rank], expected, abs_tol=1e-4)
    assert np.all(np.diff(scores, axis=1) <= 0)
    assert np.abs(to_numpy(plain.scores) - scores).max() > 0.01
    with pytest.raises(ValueError, match="needs a model with attention"):
        beam_search(seq2seq(None), seq2seq(None).encode({"source": SOURCE}), 6, coverage_penalty=0.7)


def uniforms(rows, steps, seed=0):
    return np.random.default_rng(seed).random((rows, steps)).astype("float32")


def test_sampling_draws_from_the_models_distribution():
    model, memory = markov(rows=1, steps=1, vocabulary=V, scale=1.0)
    count = 20000
    result = sample(model, memory, uniforms(count, 1), num_samples=count)
    ids, lengths = to_numpy(result.ids)[0, :, 0], to_numpy(result.lengths)[0]
    drawn = np.where(lengths == 0, END, ids)
    probabilities = np.exp(log_softmax(model.table[0, 0, START]))
    probabilities[[PAD, START]] = 0
    expected = count * probabilities / probabilities.sum()
    observed = np.bincount(drawn, minlength=V)
    assert np.all(observed[expected == 0] == 0)
    real = expected > 0
    chi_squared = ((observed[real] - expected[real]) ** 2 / expected[real]).sum()
    assert chi_squared < 18.5  # 4 degrees of freedom: 0.001


def test_temperature_0_and_top_k_1_are_greedy_search():
    model, memory = markov(rows=11, steps=5)
    expected = to_numpy(greedy_search(model, memory, 5).ids)
    zero = ops.convert_to_tensor(0.0)
    for options in ({"temperature": 0}, {"temperature": zero}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}):
        np.testing.assert_array_equal(to_numpy(sample(model, memory, uniforms(11, 5), **options).ids), expected)


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize(("options", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.6}, 2), ({"top_p": 0.75}, 3), ({}, 4)])
def test_top_k_and_top_p_keep_the_smallest_set(options, kept, as_tensors):
    if as_tensors:
        options = {name: ops.convert_to_tensor(value) for name, value in options.items()}
    table = np.full((1, 1, 8, 8), -np.inf, "float32")
    table[0, 0, START, 4:8] = np.log([0.1, 0.4, 0.2, 0.3])
    count = 4000
    result = sample(
        Markov(np.maximum(table, -1e4)), ops.zeros((1, 1)), uniforms(count, 1), num_samples=count, **options
    )
    drawn, counts = np.unique(to_numpy(result.ids), return_counts=True)
    best = np.array([5, 7, 6, 4])[:kept]
    assert set(drawn) == set(best)
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])[:kept]
    shares = [counts[drawn == token][0] / count for token in best]
    np.testing.assert_allclose(shares, probabilities / probabilities.sum(), atol=0.03)
    values = to_numpy(result.log_probabilities)[0]
    np.testing.assert_allclose(np.unique(values.round(4)), np.sort(np.log([0.4, 0.3, 0.2, 0.1][:kept])), atol=1e-3)


@pytest.mark.tensorflow_first
def test_samples_depend_on_their_own_numbers_only():
    model = seq2seq()
    numbers = uniforms(3 * 2, 6)
    together = sample(model, model.encode({"source": SOURCE}), numbers, num_samples=2)
    for row in range(3):
        memory = model.encode({"source": SOURCE[row : row + 1]})
        alone = sample(model, memory, numbers[2 * row : 2 * row + 2], num_samples=2)
        np.testing.assert_array_equal(to_numpy(alone.ids)[0], to_numpy(together.ids)[row])


def test_one_seed_gives_one_text_in_batches_of_any_size_and_buffers_of_any_length():
    whole = to_numpy(uniform_numbers(5, 7, 11, num_samples=3)).reshape(7, 3, 11)
    for row in range(7):
        alone = to_numpy(uniform_numbers(5, 1, 4, num_samples=3, first_row=row))
        np.testing.assert_array_equal(alone, whole[row, :, :4])
    assert len(np.unique(whole)) > 225  # of 231: all differ, but for chance
    assert np.abs(to_numpy(uniform_numbers(6, 7, 11, num_samples=3)) - whole.reshape(21, 11)).mean() > 0.2
    assert whole.min() >= 0
    assert whole.max() < 1
    assert abs(whole.mean() - 0.5) < 0.06


@pytest.mark.parametrize(
    "kind",
    [
        ATTENTIONS[0],
        pytest.param("relative", marks=pytest.mark.long),
        *marked("release", (*ATTENTIONS[1:], "learned")),
    ],
)
def test_compiled_decoding_gives_the_same(kind):
    model = decoder(kind)
    backend = keras.backend.backend()

    def decode(source, numbers):
        memory = model.encode({"source": source})
        searched = beam_search(model, memory, 6, beam_width=3, num_return=2)
        return searched, greedy_search(model, memory, 6), sample(model, memory, numbers, temperature=0.8, top_k=5)

    numbers = uniforms(3, 6)
    expected = decode(ops.convert_to_tensor(SOURCE), ops.convert_to_tensor(numbers))
    if backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(decode, autograph=False, jit_compile=True)
    elif backend == "jax":
        import jax

        compiled = jax.jit(decode)
    else:
        pytest.skip("the loop runs eagerly on PyTorch")
    for one, two in zip(compiled(SOURCE, numbers), expected, strict=True):
        np.testing.assert_array_equal(to_numpy(one.ids), to_numpy(two.ids))
        np.testing.assert_allclose(to_numpy(one.scores), to_numpy(two.scores), atol=1e-4)
        if kind:
            np.testing.assert_allclose(to_numpy(one.attention), to_numpy(two.attention), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: beam_search(*m, 3, beam_width=2, num_return=3), "num_return=3, beam_width=2"),
        (lambda m: beam_search(*m, 3, beam_width=0), "beam_width=0"),
        (lambda m: sample(*m, uniforms(3, 3), temperature=-1), "temperature of at least 0.*temperature=-1"),
        (lambda m: sample(*m, uniforms(3, 3), top_k=0), "top_k of at least 1.*top_k=0"),
        (lambda m: sample(*m, uniforms(3, 3), top_p=1.5), "top_p above 0.*top_p=1.5"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(markov())


@pytest.mark.parametrize("vocabulary", [7, 600, 4099, 6100])  # 4,099 is prime
@pytest.mark.parametrize("different", [3, 10**6])
def test_candidates_by_blocks_are_the_best_of_all(vocabulary, different):
    """With few different numbers nearly all are equal to others, and the first ones count."""
    if different < vocabulary and keras.backend.backend() == "torch":
        pytest.skip("torch.topk does not say which of equal numbers it takes")
    rows, width = 5, 3
    generator = np.random.default_rng(vocabulary)
    logits = generator.integers(0, different, (rows * width, vocabulary)) * 1e-5
    before = np.sort(-generator.exponential(size=(rows, width)), axis=1)
    gained = before - np.log(np.exp(logits).sum(axis=1)).reshape(rows, width)
    total = logits + gained.reshape(-1, 1)
    total[:, [PAD, START]] = -np.inf
    total = total.reshape(rows, -1)
    order = np.argsort(-total, axis=1, kind="stable")[:, : 2 * width]
    arrays = (ops.convert_to_tensor(x.astype("float32")) for x in (logits, gained))
    values, tokens, parents = (to_numpy(x) for x in decoding._candidates(*arrays, rows, width))
    np.testing.assert_array_equal(parents * vocabulary + tokens, order)
    np.testing.assert_allclose(values, np.take_along_axis(total, order, axis=1), atol=1e-5)


@pytest.mark.parametrize("vocabulary", [7, 600, 4099])
@pytest.mark.parametrize("different", [3, 10**6])
def test_the_most_probable_by_blocks_is_the_best_of_all(vocabulary, different):
    if different < vocabulary and keras.backend.backend() == "torch":
        pytest.skip("torch.argmax does not say which of equal numbers it takes")
    logits = np.random.default_rng(vocabulary).integers(0, different, (40, vocabulary)).astype("float32")
    logits[:, [PAD, START]] = 2 * different
    logits[0], logits[0, 4] = -np.inf, 0
    possible = logits.copy()
    possible[:, [PAD, START]] = -np.inf
    found = decoding._most_probable(ops.convert_to_tensor(logits), 0)
    np.testing.assert_array_equal(to_numpy(found), possible.argmax(axis=1))


def test_where_only_one_token_is_possible_no_other_is_found():
    logits = np.full((3, 4099), -np.inf, "float32")
    logits[:, END] = 1.0
    gained = np.array([[-1.0, NEVER, NEVER]], "float32")
    values, tokens, _ = decoding._candidates(ops.convert_to_tensor(logits), ops.convert_to_tensor(gained), 1, 3)
    assert to_numpy(tokens)[0, 0] == END and to_numpy(values)[0, 0] == 0.0
    assert to_numpy(tokens).max() < 4099


class Remembering(Markov):
    """What comes next also depends on all that was written, in a buffer which may grow; the attention shows it."""

    def initial_state(self, memory, max_length, beam_width=1):
        tokens, state = super().initial_state(memory, max_length, beam_width)
        count = ops.shape(tokens)[0]
        return tokens, {**state, "written": ops.zeros((count, max_length)), "steps": ops.zeros((count,))}

    def grow(self, state, max_length):
        more = max_length - state["written"].shape[1]
        return {**state, "written": ops.pad(state["written"], [(0, 0), (0, more)])}

    def step(self, tokens, position, memory, state):
        here = ops.arange(state["written"].shape[1]) == position
        written = ops.where(here[None, :], ops.cast(tokens, "float32")[:, None], state["written"])
        logits, _, _ = super().step(tokens, position, memory, state)
        logits = logits + ops.sin(ops.sum(written, axis=1) * 0.7)[:, None] * ops.cos(ops.arange(V, dtype="float32"))
        return logits, {**state, "written": written, "steps": state["steps"] + 1}, written


@pytest.mark.parametrize("steps", [*marked("tensorflow_first", (1, 2, 3, 6)), 7])
def test_a_search_whose_buffers_grow_finds_the_same(steps):
    table = markov(steps=steps, seed=steps)[0].table
    table[..., END] -= 2.0  # so that most answers are long
    model, memory = Remembering(table), ops.zeros((3, 1))
    numbers = ops.convert_to_tensor(uniforms(3, steps))

    def decode():
        beams = beam_search(model, memory, steps, beam_width=3, num_return=2)
        return beams, greedy_search(model, memory, steps), sample(model, memory, numbers)

    def decode_compiled():
        with compiled():
            return decode()

    if keras.backend.backend() == "jax":  # as others would call it
        import jax

        decode_compiled = jax.jit(decode_compiled)
    expected, found = decode(), decode_compiled()
    for one, two in zip(found, expected, strict=True):
        for part, other in zip(one, two, strict=True):
            np.testing.assert_allclose(to_numpy(part), to_numpy(other), atol=1e-5)
    assert to_numpy(expected[0].lengths).max() == steps


# What must not come again


def repetition_oracle(logits, read, penalty, ngram_size):
    """Logits [V] of the next token after the tokens `read`, by the definitions."""
    logits = logits.astype("float64")
    for token in set(read):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token in range(len(logits)) if ngram_size else ():
        grams = [tuple(read[i : i + ngram_size]) for i in range(len(read) - ngram_size + 1)]
        if tuple(([*read, token])[-ngram_size:]) in grams and len(read) >= ngram_size:
            logits[token] = -np.inf
    logits[[PAD, START]] = -np.inf
    return logits


RESTRICTIONS = [(1.3, 0), (1.0, 1), (1.0, 2), (1.5, 3)]
PROMPT = np.array([[4, 5, 4, 0], [6, 6, 6, 6], [5, 0, 0, 0]])


@pytest.mark.parametrize(("penalty", "ngram_size"), RESTRICTIONS)
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_what_must_not_come_again(penalty, ngram_size, prompt):
    """Greedy search against a loop in NumPy over lists."""
    model, memory = markov(steps=9, seed=4)
    given = {"repetition_penalty": penalty, "no_repeat_ngram_size": ngram_size, "prompt": prompt}
    found = greedy_search(model, memory, 9, **given)
    plain = to_numpy(greedy_search(model, memory, 9).ids)
    assert np.any(to_numpy(found.ids) != plain)
    for row in range(3):
        read = [] if prompt is None else [int(token) for token in prompt[row] if token]
        written, last, total = [], START, 0.0
        for position in range(9):
            own = model.table[row, position, last]
            last = int(np.argmax(repetition_oracle(own, read + written, penalty, ngram_size)))
            total += log_softmax(own)[last]
            if last == END:
                break
            written.append(last)
        length = int(to_numpy(found.lengths)[row, 0])
        assert to_numpy(found.ids)[row, 0, :length].tolist() == written
        np.testing.assert_allclose(to_numpy(found.log_probabilities)[row, 0], total, atol=1e-4)


@pytest.mark.parametrize("ngram_size", [1, 2])
def test_no_hypothesis_of_a_beam_repeats_itself(ngram_size):
    model, memory = markov(rows=3, steps=7, seed=2)
    model.table[..., END] -= 3.0
    found = beam_search(model, memory, 7, beam_width=4, num_return=4, no_repeat_ngram_size=ngram_size, prompt=PROMPT)
    assert to_numpy(found.lengths).max() >= 3
    for row in range(3):
        for rank in range(4):
            ids = [int(token) for token in to_numpy(found.ids)[row, rank] if token]
            whole = [int(token) for token in PROMPT[row] if token] + ids
            grams = [tuple(whole[i : i + ngram_size]) for i in range(len(whole) - ngram_size + 1)]
            new = grams[len(grams) - len(ids) :]
            assert all(gram not in grams[: len(grams) - len(ids) + place] for place, gram in enumerate(new))
    # The probabilities of what is allowed are the model's own.
    best = [int(token) for token in to_numpy(found.ids)[0, 0] if token]
    best = best if to_numpy(found.lengths)[0, 0] == 7 else [*best, END]
    np.testing.assert_allclose(
        to_numpy(found.log_probabilities)[0, 0], log_probability(model.table, 0, best), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.5}, "repetition_penalty is at least 1.*0.5"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is a number of tokens.*-1"),
    ],
)
def test_restrictions_that_make_no_sense(options, message):
    for search in (greedy_search, beam_search):
        with pytest.raises(ValueError, match=message):
            search(*markov(), 3, **options)
