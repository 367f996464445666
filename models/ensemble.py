"""Several trained models that write together: one model to search with, to score, to export."""

import keras
from keras import ops

from .token_model import TokenModel
from .tokenizers import START


@keras.saving.register_keras_serializable(package="keras_attention")
class Ensemble(TokenModel):
    """The mean of several models' logits, so the normalised geometric mean of their probabilities at every step.

    Of some runs of one recipe that differ in their seed, the ensemble is usually better than each, for as many times
    the work. It is a TokenModel: its features are those of its models side by side, divided by their number, its output
    matrix is theirs side by side.

    Args:
        models: two or more Seq2Seq and Transformer with the same ids, or features of the same width, as source, and the
            same target ids. Sizes and kinds may differ.

    Call arguments:
        x: what the models take.
        return_attention_scores: also return a list of what each model returns.

    Returns:
        Logits [B, T, V]; with `return_attention_scores`, (logits, list of weights). The attention of `step` and of
        answers is the mean of that of the models which attend.

    Raises:
        ValueError: the models are too few, or do not read and write the same.

    Example:

    >>> from keras_attention.models import Pipeline, Seq2Seq, Transformer
    >>> model = Ensemble([Seq2Seq(11, 13, units=8), Transformer.tiny(11, 13)])
    >>> result = Pipeline(model, max_length=5, beam_width=2)([[4, 5, 6]])[0]
    >>> result.attention.shape == (len(result.target_ids), 3)
    True

    References:
        Hansen and Salamon 1990, https://doi.org/10.1109/34.58871; Sutskever, Vinyals, Le 2014,
        https://arxiv.org/abs/1409.3215, table 1.
    """

    def __init__(self, models, **kwargs):
        super().__init__(**kwargs)
        _check_models(models)
        self.models = list(models)
        self.source_vocabulary, self.source_width = models[0].source_vocabulary, models[0].source_width
        self.target_vocabulary = models[0].target_vocabulary
        self.share_embeddings = any(getattr(model, "share_embeddings", False) for model in models)
        self.max_source_length, self.max_target_length = (
            min((longest for model in models if (longest := getattr(model, name, None)) is not None), default=None)
            for name in ("max_source_length", "max_target_length")
        )
        self.built = True

    def features(self, x, return_attention_scores=False, training=None):
        """Features [B, T, sum of D]; with `return_attention_scores`, also a list of each model's weights."""
        found = [model.features(x, return_attention_scores, training=training) for model in self.models]
        features, weights = zip(*found, strict=True) if return_attention_scores else (found, None)
        features = ops.concatenate([ops.cast(each, self.compute_dtype) for each in features], axis=-1)
        features = features / len(self.models)
        return (features, list(weights)) if return_attention_scores else features

    def output_weights(self):
        matrices, biases = zip(*(model.output_weights() for model in self.models), strict=True)
        biases = [ops.cast(bias, "float32") for bias in biases if bias is not None]
        bias = sum(biases) / len(self.models) if biases else None
        return ops.concatenate([ops.cast(matrix, "float32") for matrix in matrices], axis=1), bias

    # Generation: the three verbs that decoding.py knows.

    def encode(self, x):
        """What stays constant while decoding: a list of what each model keeps."""
        return [model.encode(x) for model in self.models]

    def take_rows(self, memory, rows):
        """The part of a memory that belongs to some rows, their numbers [R]."""
        return [model.take_rows(own, rows) for model, own in zip(self.models, memory, strict=True)]

    def without_output(self, memory):
        """The models' memories without their matrices."""
        return [model.without_output(own) for model, own in zip(self.models, memory, strict=True)]

    def with_output(self, memory):
        """What `without_output` made, with the matrices again."""
        return [model.with_output(own) for model, own in zip(self.models, memory, strict=True)]

    def initial_state(self, memory, max_length, beam_width=1):
        """The first tokens [N] and a list of each model's state."""
        begun = [
            model.initial_state(own, max_length, beam_width) for model, own in zip(self.models, memory, strict=True)
        ]
        return ops.full_like(begun[0][0], START), [state for _, state in begun]

    def room(self, memory):
        """How many tokens may be written for each source [B], the least of the models; None for no limit."""
        rooms = [model.room(own) for model, own in zip(self.models, memory, strict=True) if hasattr(model, "room")]
        rooms = [room for room in rooms if room is not None]
        return ops.min(ops.stack(rooms), axis=0) if rooms else None

    def grow(self, state, max_length):
        """The state with room for `max_length` tokens, for the models that need it."""
        return [
            model.grow(own, max_length) if hasattr(model, "grow") else own
            for model, own in zip(self.models, state, strict=True)
        ]

    def step(self, tokens, position, memory, state):
        """Logits [N, V], the new states and the mean attention [N, S] (None where no model attends)."""
        given = zip(self.models, memory, state, strict=True)
        logits, states, weights = zip(*(model.step(tokens, position, *own) for model, *own in given), strict=True)
        weights = [ops.cast(each, "float32") for each in weights if each is not None]
        mean = sum(ops.cast(each, "float32") for each in logits) / len(self.models)
        return mean, list(states), sum(weights) / len(weights) if weights else None

    def get_config(self):
        models = [keras.saving.serialize_keras_object(model) for model in self.models]
        for model in models:
            model.pop("compile_config", None)  # it is the ensemble that may be compiled
        return {**super().get_config(), "models": models}

    @classmethod
    def from_config(cls, config):
        models = [keras.saving.deserialize_keras_object(model) for model in config["models"]]
        return cls(**{**config, "models": models})


def ensemble(pipelines, names=None):
    """A pipeline whose model is the Ensemble of those of several pipelines, with the decoding options of the first.

    Args:
        pipelines: two or more, with the same tokenizers.
        names: what errors call them; their numbers, counted from 0, unless given.

    Raises:
        ValueError: the tokenizers or the models do not fit together.

    Example:

    >>> from keras_attention.models import Pipeline, Seq2Seq
    >>> both = ensemble([Pipeline(Seq2Seq(11, 13, units=8), beam_width=2) for _ in range(2)])
    >>> len(both.model.models), both.options.beam_width
    (2, 2)
    """
    from .pipeline import Pipeline

    first = pipelines[0] if pipelines else None
    for name, other in zip(names or range(len(pipelines)), pipelines, strict=True):
        for side in ("source", "target"):
            if _config(getattr(first, f"{side}_tokenizer")) != _config(getattr(other, f"{side}_tokenizer")):
                raise ValueError(
                    f"An ensemble expects pipelines with the same tokenizers. Received: {name} has another {side} "
                    "tokenizer than the first; train it on the same data and settings, or with --init."
                )
    model = Ensemble([pipeline.model for pipeline in pipelines])
    joined = Pipeline(model, first.source_tokenizer, first.target_tokenizer, **vars(first.options))
    joined.terms = "\n".join(dict.fromkeys(each.terms for each in pipelines if each.terms)) or None
    return joined


def _config(tokenizer):
    return None if tokenizer is None else (type(tokenizer).__name__, tokenizer.get_config())


def _check_models(models):
    if len(models) < 2:
        raise ValueError(f"Ensemble expects two or more models. Received: {len(models)}")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("Ensemble expects different models. Received: one of them more than once")
    for model in models:
        if not isinstance(model, TokenModel) or not hasattr(model, "source_width") or isinstance(model, Ensemble):
            raise ValueError(f"Ensemble expects Seq2Seq or Transformer models. Received: a {type(model).__name__}")
    for name in ("source_vocabulary", "source_width", "target_vocabulary"):
        values = [getattr(model, name) for model in models]
        if len(set(values)) > 1:
            raise ValueError(f"Ensemble expects models with the same {name}. Received: {name} of {values}")
