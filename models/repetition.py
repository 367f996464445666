"""What has been read and written already, and what it forbids to write again.

Shapes: N hypotheses, P length of the prompts, T steps, V vocabulary.
"""

from keras import ops

from .tokenizers import PAD

FORBIDDEN = -1e30


class Repetition:
    """Makes tokens less likely that stand in a hypothesis already, or excludes those that repeat an n-gram of it.

    Args:
        penalty: at least 1, which changes nothing. Logits of tokens that the prompt or the hypothesis holds are divided
            by it where they are positive, and multiplied where they are negative (Keskar et al. 2019, CTRL,
            https://arxiv.org/abs/1909.05858, section 4.1).
        ngram_size: n; no n tokens in a row come twice, those of the prompt included (Paulus et al. 2017,
            https://arxiv.org/abs/1705.04304, section 2.5). 0 allows all.
        prompt: [B, P] ids that stand before what is written, padded behind their end, or None.
    """

    def __init__(self, penalty=1.0, ngram_size=0, prompt=None):
        if not penalty >= 1:
            raise ValueError(f"repetition_penalty is at least 1, which changes nothing. Received: {penalty!r}")
        if isinstance(ngram_size, bool) or not isinstance(ngram_size, int) or ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size is a number of tokens, or 0 for none. Received: {ngram_size!r}")
        self.penalty = penalty
        self.ngram_size = ngram_size
        self.prompt = None if prompt is None else ops.cast(ops.convert_to_tensor(prompt), "int32")
        self.active = penalty != 1 or ngram_size > 0

    def start(self, count, max_length):
        """The ids before the first step, [N, P + T]: the prompts, moved to the right so that what is written follows
        them, and PAD. [N, 1] where nothing is restricted."""
        if not self.active:
            return ops.full((count, 1), PAD, dtype="int32")
        written = ops.full((count, max_length), PAD, dtype="int32")
        if self.prompt is None:
            return written
        batch, length = ops.shape(self.prompt)
        places = ops.arange(length, dtype="int32")[None]
        ends = ops.max(ops.where(self.prompt != PAD, places + 1, 0), axis=1, keepdims=True)  # [B, 1]
        moved = places - (length - ends)
        prompt = ops.take_along_axis(self.prompt, ops.maximum(moved, 0), axis=1)
        prompt = ops.where(moved >= 0, prompt, PAD)
        beam = count // batch
        prompt = ops.reshape(ops.repeat(prompt, beam, axis=0), (count, length))
        return ops.concatenate([prompt, written], axis=1)

    def __call__(self, logits, history, position):
        """Logits [N, V] of the step `position`, as what stands in `history` [N, P + T] allows."""
        if not self.active:
            return logits
        if self.penalty != 1:
            seen = _marked(history, history != PAD, logits)
            logits = ops.where(seen, ops.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)
        if self.ngram_size:
            logits = ops.where(_marked(history, self._repeats(history, position), logits), FORBIDDEN, logits)
        return logits

    def write(self, history, position, tokens):
        """The history with the tokens [N] of the step `position`."""
        if not self.active:
            return history
        places = ops.arange(ops.shape(history)[1], dtype="int32")[None]
        return ops.where(places == self._now(position), tokens[:, None], history)

    def _now(self, position):
        return position + (0 if self.prompt is None else ops.shape(self.prompt)[1])

    def _repeats(self, history, position):
        """Where the n - 1 tokens before a place are the last n - 1 ones, [N, P + T]."""
        count, length = ops.shape(history)
        matches = history != PAD
        for back in range(1, self.ngram_size):
            before = ops.concatenate([ops.full((count, back), PAD, dtype="int32"), history], axis=1)[:, :length]
            place = self._now(position) - back
            last = ops.take(history, ops.maximum(place, 0), axis=1)[:, None]
            matches = ops.logical_and(matches, ops.logical_and(before == last, last != PAD))
            matches = ops.logical_and(matches, place >= 0)
        return matches


def _marked(history, chosen, logits):
    """Which tokens of the vocabulary stand at the chosen places of the history, [N, V]."""
    count, vocabulary = ops.shape(logits)[0], logits.shape[-1]
    rows = ops.arange(count, dtype="int32")[:, None] * vocabulary
    indices = ops.reshape(rows + history, (-1, 1))
    found = ops.scatter(indices, ops.reshape(ops.cast(chosen, "int32"), (-1,)), (count * vocabulary,))
    return ops.reshape(found, (count, vocabulary)) > 0
