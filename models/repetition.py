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
    """

    def __init__(self, penalty=1.0, ngram_size=0):
        if not penalty >= 1:
            raise ValueError(f"repetition_penalty is at least 1, which changes nothing. Received: {penalty!r}")
        if isinstance(ngram_size, bool) or not isinstance(ngram_size, int) or ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size is a number of tokens, or 0 for none. Received: {ngram_size!r}")
        self.penalty = penalty
        self.ngram_size = ngram_size
        self.active = penalty != 1 or ngram_size > 0

    def start(self, count, max_length, prompt=None):
        """What stands before the first step, {} where nothing is restricted.

        Args:
            count: N.
            max_length: T.
            prompt: [B, P] ids that stand before what is written, padded behind their end, or None.

        Returns:
            {"before": [N, P], the prompts, moved to the right so that what is written follows them, "written": [N, T]
            of PAD}.
        """
        if not self.active:
            return {}
        written = ops.full((count, max_length), PAD, dtype="int32")
        if prompt is None:
            return {"before": written[:, :0], "written": written}
        prompt = ops.cast(ops.convert_to_tensor(prompt), "int32")
        batch, length = ops.shape(prompt)
        places = ops.arange(length, dtype="int32")[None]
        ends = ops.max(ops.where(prompt != PAD, places + 1, 0), axis=1, keepdims=True)  # [B, 1]
        moved = places - (length - ends)
        before = ops.where(moved >= 0, ops.take_along_axis(prompt, ops.maximum(moved, 0), axis=1), PAD)
        return {"before": ops.reshape(ops.repeat(before, count // batch, axis=0), (count, length)), "written": written}

    def grow(self, history, max_length):
        """The history with room for max_length tokens, at least as many as it has now."""
        if not self.active:
            return history
        more = max_length - ops.shape(history["written"])[1]
        return {**history, "written": ops.pad(history["written"], [(0, 0), (0, more)], constant_values=PAD)}

    def __call__(self, logits, history, position):
        """Logits [N, V] of the step `position`, as what stands in the history allows."""
        if not self.active:
            return logits
        before = ops.shape(history["before"])[1]
        history = ops.concatenate([history["before"], history["written"]], axis=1)  # [N, P + T]
        if self.penalty != 1:
            seen = _marked(history, history != PAD, logits)
            logits = ops.where(seen, ops.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)
        if self.ngram_size:
            repeats = self._repeats(history, before + position)
            logits = ops.where(_marked(history, repeats, logits), FORBIDDEN, logits)
        return logits

    def write(self, history, position, tokens):
        """The history with the tokens [N] of the step `position`."""
        if not self.active:
            return history
        places = ops.arange(ops.shape(history["written"])[1], dtype="int32")[None]
        return {**history, "written": ops.where(places == position, tokens[:, None], history["written"])}

    def _repeats(self, history, now):
        """Where the n - 1 tokens before a place are the last n - 1 ones before the place `now`, [N, P + T]."""
        count, length = ops.shape(history)
        matches = history != PAD
        for back in range(1, self.ngram_size):
            before = ops.concatenate([ops.full((count, back), PAD, dtype="int32"), history], axis=1)[:, :length]
            last = ops.take(history, ops.maximum(now - back, 0), axis=1)[:, None]
            matches = ops.logical_and(matches, ops.logical_and(before == last, last != PAD))
            matches = ops.logical_and(matches, now - back >= 0)
        return matches


def _marked(history, chosen, logits):
    """Which tokens of the vocabulary stand at the chosen places of the history, [N, V]."""
    count, vocabulary = ops.shape(logits)[0], logits.shape[-1]
    rows = ops.arange(count, dtype="int32")[:, None] * vocabulary
    indices = ops.reshape(rows + history, (-1, 1))
    found = ops.scatter(indices, ops.reshape(ops.cast(chosen, "int32"), (-1,)), (count * vocabulary,))
    return ops.reshape(found, (count, vocabulary)) > 0
