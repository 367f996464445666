"""Looking inside of a trained Transformer: the weights of all layers and heads, and the states of words."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from .tokenizers import PAD, START
from .transformer import Transformer


@dataclass(frozen=True)
class AttentionScores:
    """The weights of every layer and head for one input and what was written for it.

    Attributes:
        encoder: [layers, H, S, S], of the source's pieces to each other; None where there is no encoder.
        decoder: [layers, H, T, T], row t of the piece written at t, column 0 of START, column t of piece t - 1; of a
            language model [layers, H, S + T, S + T], a row and a column for each piece of prompt and answer.
        cross: [layers, H, T, S], of the written pieces to the source's; None of a language model.
        source_pieces, target_pieces: S and T strings.
    """

    encoder: np.ndarray | None
    decoder: np.ndarray
    cross: np.ndarray | None
    source_pieces: list[str]
    target_pieces: list[str]

    @property
    def kinds(self):
        """{name: weights} of those that the model has."""
        kinds = {kind: getattr(self, kind) for kind in ("encoder", "decoder", "cross")}
        return {kind: weights for kind, weights in kinds.items() if weights is not None}

    def labels(self, kind):
        """(names of the rows, names of the columns) of "encoder", "decoder" or "cross"."""
        if self.cross is None:
            return ([*self.source_pieces, *self.target_pieces],) * 2
        read = ["<s>", *self.target_pieces[:-1]]
        return {
            "encoder": (self.source_pieces, self.source_pieces),
            "decoder": (self.target_pieces, read),
            "cross": (self.target_pieces, self.source_pieces),
        }[kind]


def attention_scores(pipeline, source, target=None, beam_width=None, max_length=None):
    """The weights of all layers and heads while `target` is written for `source`.

    Args:
        pipeline: a Pipeline of a Transformer or a language model.
        source: one input: a text, or ids or features where the pipeline reads those.
        target: a text (ids, for a pipeline without target tokenizer); None for the pipeline's own answer.
        beam_width, max_length: of that answer.

    Returns:
        AttentionScores.

    Raises:
        ValueError: there is nothing to look at: the model has one alignment only, or source or target are empty.

    Example:

    >>> from keras_attention.models import Pipeline, Transformer, attention_scores
    >>> pipeline = Pipeline(Transformer.tiny(11, 11), max_length=5)
    >>> scores = attention_scores(pipeline, [4, 5, 6], target=[7, 8])
    >>> scores.encoder.shape, scores.cross.shape
    ((4, 4, 3, 3), (4, 4, 2, 3))
    """
    source_pieces, x = _read(pipeline, source)
    if target is None:
        result = pipeline([source], beam_width, max_length=max_length)[0]
        ids, target_pieces = result.target_ids, result.target_pieces
    elif pipeline.target_tokenizer is None:
        ids, target_pieces = _known(target, pipeline.model.target_vocabulary), []
    else:
        ids = _target_ids(pipeline, source, target, len(source_pieces))
        target_pieces = [piece.decode() for piece in pipeline.target_tokenizer.pieces(np.array(ids, "int32")).numpy()]
    if not ids:
        raise ValueError(f"Nothing is written for {source!r}: there are no weights to look at.")
    target_pieces = target_pieces or [str(token) for token in ids]
    if pipeline.continues:
        return _of_language_model(pipeline.model, x["source"][0].numpy(), ids, source_pieces, target_pieces)
    written = np.array([[START, *ids[:-1]]], "int32")
    _, weights = pipeline.model({**x, "target": written}, return_attention_scores=True)
    if not isinstance(weights, dict):
        raise ValueError(
            f"A {type(pipeline.model).__name__} has one alignment, Result.attention, and no layers and heads: expected "
            "the pipeline of a Transformer."
        )
    stacked = {kind: _stacked(layers) if layers else None for kind, layers in weights.items()}
    return AttentionScores(**stacked, source_pieces=source_pieces, target_pieces=target_pieces)


def _known(ids, vocabulary):
    """Ids of an answer as a list, each of which stands for a piece."""
    ids = [int(token) for token in ids]
    if wrong := [token for token in ids if not PAD < token < vocabulary]:
        raise ValueError(f"attention_scores expects a target of ids from 1 to {vocabulary - 1}. Received: {wrong[0]}")
    return ids


def _target_ids(pipeline, source, target, length):
    """The ids of a given answer; a language model's are cut as one text with the prompt, whose `length` pieces go."""
    if not pipeline.continues or not source:
        return pipeline.target_tokenizer.tokenize([target])[0].numpy().tolist()
    return pipeline.target_tokenizer.tokenize([source + target])[0].numpy()[length:].tolist()


def _of_language_model(model, prompt, ids, prompt_pieces, pieces):
    """Those of a prompt and its answer, as far as the context goes (its last piece may stand behind that)."""
    count = len(ids) if model.max_source_length is None else model.max_source_length - len(prompt)
    read = np.array([[*prompt, *ids[:count]]], "int32")
    _, weights = model({"target": read}, return_attention_scores=True)
    return AttentionScores(None, _stacked(weights["decoder"]), None, prompt_pieces, pieces[:count])


def _stacked(layers):
    """Weights [1, H, T, S] of each layer as [layers, H, T, S]."""
    return np.stack([ops.convert_to_numpy(layer[0]) for layer in layers])


def word_similarity(pipeline, word, source, other):
    """How like a word's states in one text are to every piece's states in another, layer by layer.

    Args:
        pipeline: a Pipeline of a Transformer that reads text.
        word: a word of `source`; where it stands more than once, the first is meant. Pieces of one word are averaged.
        source, other: two texts.

    Returns:
        (similarity, pieces): cosines [layers + 1, S], the embeddings' first, and the S pieces of `other`.

    Raises:
        ValueError: the word does not stand in `source`, or the model has no states for each layer.
    """
    if pipeline.source_tokenizer is None or not isinstance(pipeline.model, Transformer):
        raise ValueError("word_similarity expects the pipeline of a Transformer that reads text.")
    pieces, x, states = _states(pipeline, source)
    place = _find(word, x["source"][0].numpy(), pipeline.source_tokenizer)
    if place is None:
        raise ValueError(f"The word {word!r} does not stand in {source!r}, whose pieces are {' '.join(pieces)}")
    other_pieces, _, other_states = _states(pipeline, other)
    query = _unit(states[:, place].mean(axis=1, keepdims=True))
    return (query @ _unit(other_states).swapaxes(1, 2))[:, 0], other_pieces


def _read(pipeline, source):
    """(pieces, x for the model) of one input."""
    rows = pipeline.check_inputs([source])
    x, lengths = pipeline.read(**pipeline.inputs.batch(rows))
    if not int(lengths[0]):
        raise ValueError("The source is empty: there is nothing to look at.")
    if pipeline.source_tokenizer is None:
        ids = pipeline.source_width is None and isinstance(rows[0], np.ndarray)  # the others are numbered
        return [str(label) for label in (rows[0].tolist() if ids else range(int(lengths[0])))], x
    return [piece.decode() for piece in pipeline.source_tokenizer.pieces(x["source"])[0].numpy()], x


def _states(pipeline, text):
    """(pieces, x for the model, states [layers + 1, S, D]) of one text."""
    pieces, x = _read(pipeline, text)
    _, states = pipeline.model.encode(x, return_hidden_states=True)
    return pieces, x, np.stack([ops.convert_to_numpy(layer[0]) for layer in states]).astype("float32")


def _find(word, ids, tokenizer):
    """The slice of the ids that spell a word, or None: no letter or digit stands right before or behind it."""
    word = _text(tokenizer, tokenizer.tokenize([word.strip()])[0].numpy())
    until = [_text(tokenizer, ids[:end]) for end in range(len(ids) + 1)]
    for last in range(1, len(ids) + 1):
        for first in reversed(range(last)):
            inside, behind = until[last][len(until[first]) :], until[-1][len(until[last]) :]
            apart = inside[:1].isspace() or not until[first][-1:].isalnum()
            if word and inside.strip() == word and apart and not behind[:1].isalnum():
                return slice(first, last)
    return None


def _text(tokenizer, ids):
    return tokenizer.detokenize(np.array([ids], "int32")).numpy()[0].decode()


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
