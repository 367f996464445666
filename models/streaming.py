"""A language model's answer piece by piece, as it is written."""

import os

import keras
import numpy as np

from .decoding import draw, uniform_numbers
from .repetition import Repetition
from .tokenizers import END, PAD, START, UNFINISHED

TAIL = 32  # tokens that are written as text again for each new one
BUCKET = 64  # prompts and caches are rounded up to multiples of this, so that few shapes are traced


def stream(pipeline, ids, max_length, seed, temperature, top_k, top_p):
    """Yields strings (tokens, without a tokenizer), which together are the answer that `sample` draws for row 0.

    Where a context is full, it goes on from its last half.

    Args:
        pipeline: a Pipeline of a language model.
        ids: the prompt, a list.
        max_length: tokens at most.
        seed, temperature, top_k, top_p: as `Pipeline.sampling` gives them.
    """
    uniforms = uniform_numbers(seed, 1, max_length).numpy()
    begin, step = _traced(pipeline)
    longest = pipeline.model.max_source_length
    written, text = [], _Text(pipeline, ids)
    while len(written) < max_length:
        whole = [*ids, *written] or [START]
        read = whole if not written else whole[-max(1, longest // 2) :]
        room = max_length - len(written) if longest is None else min(max_length - len(written), longest - len(read) + 1)
        size = _multiple(room)
        tokens, memory, state = begin(_row(read), np.int32(size))
        history = _repetition(pipeline).start(1, size, _row(whole))
        for position in range(room):
            uniform = uniforms[:, len(written)]
            tokens, state, history = step(
                tokens, np.int32(position), memory, state, history, uniform, temperature, top_k, top_p
            )
            token = int(tokens[0])
            if token == END:
                yield from text.rest()
                return
            written.append(token)
            yield from text.more(token)
    yield from text.rest()


def _traced(pipeline):
    """(begin, step) of a pipeline, traced once for all streams."""
    import tensorflow as tf

    if "stream" in pipeline._functions:
        return pipeline._functions["stream"]
    model = pipeline.model

    def begin(source, size):
        memory = model.encode({"source": source})
        tokens, state = model.initial_state(memory, size)
        return tokens, memory, state

    def step(tokens, position, memory, state, history, uniform, temperature, top_k, top_p):
        logits, state, _ = model.step(tokens, position, memory, state)
        logits = keras.ops.cast(logits, "float32")
        repetition = _repetition(pipeline)
        tokens = draw(repetition(logits, history, position), uniform, temperature, top_k, top_p)
        return tokens, state, repetition.write(history, position, tokens)

    options = {"autograph": False, "reduce_retracing": True}
    pipeline._functions["stream"] = tf.function(begin, **options), tf.function(step, **options)
    return pipeline._functions["stream"]


def _repetition(pipeline):
    return Repetition(pipeline.options.repetition_penalty, pipeline.options.no_repeat_ngram_size)


def _row(ids):
    """Ids as a batch of one row, int32 [1, S], S a multiple of BUCKET."""
    row = np.full((1, _multiple(len(ids))), PAD, "int32")
    row[0, : len(ids)] = ids
    return row


def _multiple(length):
    return -(-length // BUCKET) * BUCKET


class _Text:
    """Tokens as they come, as text; what may still change is held back: the bytes of half a character, and a sign that
    the tokenizer has escaped.

    Of a long text only the last tokens are looked at, and of what they say `sent` is the part that is out.
    """

    def __init__(self, pipeline, ids):
        self.tokenizer = pipeline.target_tokenizer
        self.ids = list(ids)
        self.sent = self._whole()
        self._forget()

    def more(self, token):
        """Yields what the token adds."""
        self.ids.append(token)
        if self.tokenizer is None:
            yield token
            return
        whole = self._whole()
        self.sent = os.path.commonprefix([self.sent, whole])  # all, unless a prompt of ids ends inside of a character
        if added := whole[len(self.sent) :].rstrip(UNFINISHED):
            self.sent += added
            yield added
        self._forget()

    def rest(self):
        """Yields what was held back, at the end."""
        if self.tokenizer is not None and (added := self._whole()[len(self.sent) :]):
            yield added

    def _forget(self):
        """Drops all but the last tokens, where that does not cut a character."""
        if self.tokenizer is None or len(self.ids) < 2 * TAIL:
            return
        tail = self._written(self.ids[-TAIL:])
        if tail and self.sent.endswith(tail) and not tail.startswith(UNFINISHED[0]):
            self.ids, self.sent = self.ids[-TAIL:], tail

    def _whole(self):
        return self._written(self.ids)

    def _written(self, ids):
        if self.tokenizer is None or not ids:
            return ""
        return self.tokenizer.detokenize(np.array([ids], "int32")).numpy()[0].decode("utf-8")
