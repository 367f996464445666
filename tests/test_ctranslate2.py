"""Beam search beside CTranslate2's, with the same weights: the same rules give the same answers."""

import sys

import keras
import numpy as np
import pytest
from helpers import ROOT

from keras_attention.models import Pipeline, Transformer
from keras_attention.models.tokenizers import END, PAD, START

pytest.importorskip("ctranslate2")
sys.path.insert(0, str(ROOT / "benchmarks"))
from ctranslate2_model import SUPPRESSED, piece, to_ctranslate2

pytestmark = pytest.mark.long
SIZES = {"width": 24, "num_heads": 2, "feed_forward_units": 32, "encoder_layers": 2, "decoder_layers": 2}
LONGEST = 9


class Writer(Transformer):
    """A Transformer that gives PAD and START no probability. CTranslate2 takes them out before the softmax and this
    project after it, so that with any probability of them the two would rank near ties differently."""

    def output_weights(self):
        matrix, _ = super().output_weights()
        never = np.zeros(self.target_vocabulary, "float32")
        never[[PAD, START]] = -1e4
        return matrix, never


def batch(count, seed):
    """Sources of 1 to 9 ids, and as targets the same ones reversed."""
    generator = np.random.default_rng(seed)
    source, target = np.zeros((count, LONGEST), "int32"), np.zeros((count, LONGEST + 2), "int32")
    for row, length in enumerate(generator.integers(1, LONGEST + 1, count)):
        ids = generator.integers(4, 15, length)
        source[row, :length] = ids
        target[row, : length + 2] = [START, *ids[::-1], END]
    return source, target


@pytest.fixture(
    scope="module", params=[False, pytest.param(True, marks=pytest.mark.release)], ids=["post_norm", "pre_norm"]
)
def model(request):
    """Trained, so that some hypotheses are far better than others and lengths differ."""
    keras.utils.set_random_seed(1)
    model = Writer(15, 15, normalize_first=request.param, dropout=0.0, **SIZES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.01), loss)
    source, target = batch(8000, seed=2)
    model.fit({"source": source, "target": target[:, :-1]}, target[:, 1:], batch_size=80, epochs=5, verbose=0)
    return model


@pytest.mark.parametrize("beam_width", [1, 4])
def test_both_find_the_same_hypotheses(model, tmp_path, beam_width):
    """The same ones with the same log-probabilities, but for one row where the rounding of a near tie may decide."""
    steps, penalty = 13, 0.8
    pipeline = Pipeline(model, length_penalty=penalty, max_length=steps, length_ratio=0.0, length_offset=steps)
    sources = [row[row > 0].tolist() for row in batch(60, seed=3)[0]]
    translator = to_ctranslate2(model, tmp_path / "model", inter_threads=1, intra_threads=1)
    theirs = translator.translate_batch(
        [[piece(token) for token in source] for source in sources],
        beam_size=beam_width,
        num_hypotheses=beam_width,
        length_penalty=penalty,
        max_decoding_length=steps,
        min_decoding_length=0,  # it would refuse an empty answer
        return_scores=True,
        suppress_sequences=SUPPRESSED,
    )
    ours = pipeline(sources, beam_width=beam_width, num_return=beam_width)
    assert len({len(result.target_ids) for result in ours}) > 4
    assert len({tuple(result.target_ids) for result in ours}) > 20
    same = 0
    for one, two in zip(ours, theirs, strict=True):
        found = {" ".join(map(piece, each.target_ids)): each.log_probability for each in (one, *one.alternatives)}
        expected = {
            " ".join(pieces): score * min(len(pieces) + 1, steps) ** penalty  # END counts where there was room for it
            for pieces, score in zip(two.hypotheses, two.scores, strict=True)
        }
        both = [text for text in found if text in expected]
        np.testing.assert_allclose([found[text] for text in both], [expected[text] for text in both], atol=1e-4)
        same += found.keys() == expected.keys()
    assert same >= len(ours) - 1
    best = [[piece(token) for token in result.target_ids] for result in ours]
    assert sum(one == two.hypotheses[0] for one, two in zip(best, theirs, strict=True)) >= len(ours) - 1
