"""The story of one answer: text -> ids -> encode -> decode loop -> text. Python, CLI and SavedModel all use it."""

import json
import os
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from .decoding import RollOut, check_sampling, search_for, uniform_numbers
from .files import atomic_write, load_weights, save_weights
from .inputs import inputs_for
from .repetition import Repetition
from .stages import Stages, power_of_two
from .tokenizers import UNFINISHED, load_tokenizer, save_tokenizer

PRETRAINED = Path(__file__).parent / "pretrained"
_told = set()  # terms that were printed
BUCKET = 16  # compiled decoding rounds lengths up to multiples of this, and batches to powers of two


@dataclass(frozen=True)
class Result:
    """One answer.

    Attributes:
        text: the answer, of a language model what comes after the prompt; None without a target tokenizer.
        score: log_probability / length**length_penalty, END counted, plus the coverage penalty where there is one.
        log_probability: the model's own, of these pieces and END (see `beam_search` for repetition_penalty).
        source_pieces, target_pieces: what the model read and wrote, one label for each column and row of `attention`.
        attention: array [len(target_pieces), len(source_pieces)], or None if the model has no attention; a language
            model's has a column for each target piece behind those of the prompt.
        target_ids: the ids of the answer, without START and END.
        alternatives: the next best answers, best first (drawn ones as they were drawn), where more than one was asked
            for.
        attention_map: of an image's answer, `attention` as an array [len(target_pieces), h, w] over its grid.
        error: why there is no answer, in one sentence, where an image could not be read; text and ids are empty then.
    """

    text: str | None
    score: float
    log_probability: float
    source_pieces: list[str]
    target_pieces: list[str]
    attention: np.ndarray | None
    target_ids: list[int]
    alternatives: list["Result"] = field(default_factory=list)
    attention_map: np.ndarray | None = None
    error: str | None = None

    @property
    def column_pieces(self):
        """Labels of the columns of `attention`: source pieces, of a language model the target's too; [] of features."""
        both = [*self.source_pieces, *self.target_pieces]
        continued = self.source_pieces and self.attention is not None and self.attention.shape[1] == len(both)
        return both if continued else self.source_pieces


@dataclass(frozen=True)
class DecodingOptions:
    """How a pipeline decodes.

    Attributes:
        beam_width: W; 1 is greedy search.
        length_penalty, coverage_penalty: see `beam_search`.
        max_length: steps at most, END included, whatever the source.
        length_ratio, length_offset: a row of s source pieces gets at most ceil(ratio * s) + offset steps.
        max_source_length: longest source, in pieces, that is accepted.
        temperature: where it is given, answers are sampled rather than searched for, see `sample`.
        top_k, top_p: of sampling; None keeps all.
        repetition_penalty, no_repeat_ngram_size: see `Repetition`.
    """

    beam_width: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    max_length: int = 256
    length_ratio: float = 2.0
    length_offset: int = 16
    max_source_length: int = 1024
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self):
        check_sampling(self.temperature, self.top_k, self.top_p)
        Repetition(self.repetition_penalty, self.no_repeat_ngram_size)
        for name in ("beam_width", "max_length", "max_source_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"Decoding expects {name} of at least 1. Received: {name}={getattr(self, name)}")


class Pipeline:
    """A trained model, its tokenizers and its decoding options: text in, text and attention weights out.

    Args:
        model: a Seq2Seq, or any Keras model with the verbs `encode`, `initial_state` and `step`.
        source_tokenizer: reads text; None for a model whose inputs are ids [B, S], padded with 0, features [B, S, F]
            (one with `source_width`) or images (one with `image_size`).
        target_tokenizer: writes text; None leaves ids.
        options: keyword arguments of `DecodingOptions`.

    Attributes:
        terms: what the data that the weights were trained on are for, or None; `save` keeps it, `load` prints it once.

    An empty input gives an empty answer with score 0. A language model's inputs are prompts, its answers what comes
    after them (an empty prompt is START alone); where its context ends, so does the answer.

    Example, ids in and out:

    >>> from keras_attention.models import Seq2Seq
    >>> pipeline = Pipeline(Seq2Seq(11, 13, units=8), max_length=5)
    >>> result = pipeline([[4, 5, 6], [7, 8]])[0]
    >>> result.attention.shape == (len(result.target_ids), 3)
    True
    """

    def __init__(self, model, source_tokenizer=None, target_tokenizer=None, **options):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "A Pipeline reads text and decodes with TensorFlow; Keras runs on "
                f"{keras.backend.backend()} here. Set KERAS_BACKEND=tensorflow, or use keras_attention.models.decoding."
            )
        self.model = model
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        unknown = sorted(set(options) - set(DecodingOptions.__dataclass_fields__))
        if unknown:
            raise TypeError(
                f"Pipeline expects decoding options among {', '.join(DecodingOptions.__dataclass_fields__)}. "
                f"Received: {', '.join(unknown)}"
            )
        self.options = _within(DecodingOptions(**options), model)
        self.inputs = inputs_for(model, source_tokenizer, self.options.max_source_length)
        self.terms = None
        self._functions = {}
        _check_vocabulary(model, "source", source_tokenizer)
        _check_vocabulary(model, "target", target_tokenizer)
        _check_shared(model, source_tokenizer, target_tokenizer)

    @property
    def source_width(self):
        """F of a model that reads features; None for any other."""
        return getattr(self.inputs, "width", None)

    def __call__(
        self,
        inputs,
        beam_width=None,
        num_return=1,
        batch_size=32,
        jit_compile=False,
        *,
        temperature=None,
        top_k=None,
        top_p=None,
        seed=0,
        max_length=None,
    ):
        """Answers each input.

        Answers are searched for, or, with a `temperature` (here, or the pipeline's own without a `beam_width`), drawn.

        Args:
            inputs: a list of texts (str or UTF-8 bytes); without a source tokenizer a list of lists of ids, of arrays
                of features [S, F], or of images (bytes or paths of JPEG or PNG files, or uint8 [height, width, 3]).
            beam_width: W, or None for the pipeline's own.
            num_return: how many answers for each input; the others stand in `alternatives`.
            batch_size: inputs decoded together, inputs of like length beside each other.
            jit_compile: compile the decode with XLA: slower the first time, then faster.
            temperature, top_k, top_p: of sampling, see `sample`; None for the pipeline's own.
            seed: of sampling. Answer w of input i depends on (seed, i, w), not on the others and the batches.
            max_length: steps at most, or None for the pipeline's own.

        Returns:
            A list of `Result`, one for each input, in order. An image that cannot be read has one with an `error`, and
            does not keep the others from their answers.
        """
        if min(num_return, batch_size, self.options.beam_width if beam_width is None else beam_width) < 1:
            raise ValueError(
                "Pipeline expects beam_width, num_return and batch_size of at least 1. Received: "
                f"beam_width={beam_width}, num_return={num_return}, batch_size={batch_size}"
            )
        drawn = self.sampling(beam_width, temperature, top_k, top_p, seed)
        longest = self._longest(max_length)
        width = num_return if drawn else max(num_return, beam_width or self.options.beam_width)
        inputs, wrong = self.inputs.check(inputs)
        answer = self.function(width, num_return, jit_compile, sampling=bool(drawn))
        order = sorted((i for i in range(len(inputs)) if i not in wrong), key=lambda i: len(inputs[i]))
        results = [_unread(wrong[i]) if i in wrong else None for i in range(len(inputs))]
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            given = {**drawn, "rows": np.array(rows, "int32")} if drawn else {}
            given = _as_tensors({**given, "max_length": longest})
            outputs = answer(**self.inputs.batch([inputs[row] for row in rows]), **given)
            outputs = {name: output.numpy() for name, output in outputs.items()}
            for place, row in enumerate(rows):
                results[row] = _result(outputs, place, num_return, self.continues)
        return results

    def stream(self, prompt, *, temperature=None, top_k=None, top_p=None, seed=0, max_length=None):
        """What a language model writes after a prompt, piece by piece, as it is written.

        The pieces are those of `pipeline([prompt], temperature=..., seed=...)`; without any temperature the most
        probable ones. Where the context is full, writing goes on from its last half.

        Args:
            prompt: a text (ids, without tokenizer).
            temperature, top_k, top_p, seed, max_length: as in `__call__`.

        Returns:
            An iterator over strings, none of which ends inside of a character (over ids, without tokenizer).

        >>> from keras_attention.models import LanguageModel
        >>> pipeline = Pipeline(LanguageModel(vocabulary=9, width=8, num_heads=2, layers=1))
        >>> len(list(pipeline.stream([4, 5, 6], temperature=1.0, max_length=3))) <= 3
        True
        """
        if not self.continues:
            kind = type(self.model).__name__
            raise TypeError(f"stream is for language models. Received: a {kind}; call the pipeline.")
        from .streaming import stream

        longest = self._longest(max_length)
        drawn = self.sampling(None, temperature, top_k, top_p, seed)
        drawn = drawn or {"seed": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0}
        drawn |= {name: np.float32(drawn[name]) for name in ("temperature", "top_p")}
        drawn["top_p"] = drawn["top_p"] if drawn["top_p"] < 1 else np.float32(2)
        drawn["top_k"] = np.int32(drawn["top_k"] or 2**31 - 1)
        row = self.check_inputs([prompt])[0]
        ids = row if self.source_tokenizer is None else self.source_tokenizer.tokenize([row])[0].numpy()
        return stream(self, ids.tolist(), longest, **drawn)

    @property
    def continues(self):
        """Whether answers go on where their inputs end: the model is a language model."""
        return getattr(self.model, "reads_prompts", False)

    def sampling(self, beam_width=None, temperature=None, top_k=None, top_p=None, seed=0):
        """{seed, temperature, top_k, top_p} as `trace` reads them, or {} where answers are searched for."""
        options = self.options
        if temperature is None and beam_width is None:
            temperature = options.temperature
        if temperature is None:
            if top_k is not None or top_p is not None:
                raise ValueError("top_k and top_p are of sampling. Received: no temperature; give temperature=1.0.")
            return {}
        if beam_width is not None:
            raise ValueError(
                f"Answers are searched for with a beam, or drawn at a temperature. Received: {beam_width=}, "
                f"{temperature=}"
            )
        top_k = options.top_k if top_k is None else top_k
        top_p = options.top_p if top_p is None else top_p
        check_sampling(temperature, top_k, top_p)
        if not 0 <= seed < 2**31:
            raise ValueError(f"Pipeline expects a seed from 0 to {2**31 - 1}. Received: {seed=}")
        return {"seed": seed, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 1.0}

    def _longest(self, max_length):
        if max_length is not None and max_length < 1:
            raise ValueError(f"Pipeline expects max_length of at least 1. Received: {max_length=}")
        longest = self.options.max_length if max_length is None else max_length
        return min(longest, getattr(self.model, "max_target_length", None) or longest)

    def function(self, beam_width=None, num_return=1, jit_compile=False, sampling=False):
        """The traced function that everything else uses: of what `signature` names, `max_length` and, where it samples,
        what `sampling_signature` names -> dict of tensors [B, R, ...]."""
        key = (beam_width or self.options.beam_width, num_return, jit_compile, sampling)
        if key not in self._functions:
            self._functions[key] = self.trace(*key)
        return self._functions[key]

    def trace(self, beam_width, num_return=1, jit_compile=False, sampling=False, weights=nullcontext):
        """What `function` gives, traced anew.

        Args:
            beam_width: W.
            num_return, jit_compile: as in `__call__`.
            sampling: draw `num_return` answers, rather than search for them.
            weights: makes a context in which the model computes with other weights than its own.
        """
        import tensorflow as tf

        settings = sampling_signature() if sampling else {}
        limits = {name: settings[name] for name in ("temperature", "top_k", "top_p") if sampling}
        drawn = {"uniforms": tf.TensorSpec([None, None], tf.float32), "limits": limits} if sampling else {}
        search = self._search(beam_width, num_return, sampling)
        decode = Stages(search, self.inputs.source(), drawn, self.continues, weights, jit_compile)

        def answer(max_length, rows=None, seed=None, temperature=None, top_k=None, top_p=None, **inputs):
            drawn = _checked(temperature, top_k, top_p, max_length) if sampling else {}
            with weights():  # an image goes through a backbone here; what is compiled has a context of its own
                x, lengths = self.read(**inputs)
            limits = self.limits(lengths, max_length)

            def decoded(x, limits, rows, steps):
                if not sampling:
                    return decode(x, limits, {})
                return decode(x, limits, {"uniforms": uniform_numbers(seed, rows, steps, num_return), "limits": drawn})

            if jit_compile:
                hypotheses = self._decoded_in_buckets(decoded, x, limits, rows)
            else:
                hypotheses = decoded(x, limits, rows, tf.maximum(tf.reduce_max(limits), 1))
            return self.write(x, lengths, hypotheses)

        signature = {**self.signature(), "max_length": tf.TensorSpec([], tf.int32, "max_length"), **settings}
        return tf.function(answer, autograph=False).get_concrete_function(**signature)

    def signature(self):
        """What `function()` and the SavedModel take, tensor specifications by name.

        `text` [B]; or without a source tokenizer `tokens` [B, S]; for a model of features `features` [B, S, F] and
        `source_mask` [B, S]; for one of images `image` [B], the bytes of JPEG or PNG files.
        """
        return self.inputs.signature()

    def read(self, **inputs):
        """Inputs -> x for `encode`, cut behind the last real position (S at least 1), and lengths [B]."""
        import tensorflow as tf

        x, real = self.inputs.read(**inputs)
        columns = tf.shape(real)[1]
        lengths = tf.reduce_max(tf.pad(tf.where(real, tf.range(1, columns + 1), 0), [[0, 0], [0, 1]]), axis=1)
        longest = self.options.max_source_length
        check = tf.debugging.Assert(
            tf.reduce_all(lengths <= longest),
            [
                f"An input is longer than the {longest} pieces that this model accepts; shorten or split it. Lengths:",
                lengths,
            ],
        )
        with tf.control_dependencies([check] if check is not None else []):
            width = tf.maximum(tf.reduce_max(lengths), 1)
            missing = tf.maximum(1 - columns, 0)
            return {name: _padded(part, 0, missing)[:, :width] for name, part in x.items()}, lengths

    def limits(self, lengths, max_length):
        """Steps at most for each row, from its own source length [B]; none for an empty source.

        A language model's prompt and answer together have the length of its context, at most.
        """
        import tensorflow as tf

        if self.continues:  # an empty prompt is START, one piece
            context = self.model.max_source_length or 2**31 - 2
            return tf.minimum(max_length, context - tf.maximum(lengths, 1) + 1)
        limits = tf.math.ceil(self.options.length_ratio * tf.cast(lengths, tf.float32))
        limits = tf.minimum(tf.cast(limits, tf.int32) + self.options.length_offset, max_length)
        return tf.where(lengths > 0, limits, 0)

    def _search(self, beam_width, num_return, sampling):
        options = self.options
        repetition = Repetition(options.repetition_penalty, options.no_repeat_ngram_size)
        if sampling:
            return RollOut(self.model, num_return, options.length_penalty, repetition)
        penalties = options.length_penalty, options.coverage_penalty
        return search_for(self.model, beam_width, num_return, *penalties, repetition)

    def _decoded_in_buckets(self, decoded, x, limits, rows):
        """Pads batch and source to a few sizes, so that few programs are compiled, and cuts the results."""
        import tensorflow as tf

        count, length = tf.shape(x["source"])[0], tf.shape(x["source"])[1]
        more_rows = power_of_two(count) - count
        more_columns = tf.minimum(_multiple(length), self.options.max_source_length) - length
        x = {name: _padded(part, more_rows, more_columns) for name, part in x.items()}
        rows = None if rows is None else tf.pad(rows, [[0, more_rows]])
        steps = _multiple(tf.maximum(tf.reduce_max(limits), 1))
        hypotheses = decoded(x, tf.pad(limits, [[0, more_rows]]), rows, steps)
        hypotheses = hypotheses._replace(
            **{name: part[:count] for name, part in hypotheses._asdict().items() if part is not None}
        )
        if (attention := hypotheses.attention) is None:
            return hypotheses
        kept = attention[..., :length]
        if self.continues:  # behind the prompt's columns stand those of what was written
            kept = tf.concat([kept, attention[..., length + more_columns :]], axis=-1)
        return hypotheses._replace(attention=kept)

    def write(self, x, lengths, hypotheses):
        """Ids -> text: the outputs, [B, R, ...], cut to the longest answer."""
        import tensorflow as tf

        steps = tf.maximum(tf.reduce_max(hypotheses.lengths), 1)
        target_ids = tf.pad(hypotheses.ids, [[0, 0], [0, 0], [0, 1]])[:, :, :steps]  # at least one column
        # An empty source has one empty answer, of score 0.
        empty = (lengths == 0)[:, None] & (tf.range(tf.shape(hypotheses.scores)[1]) == 0)
        outputs = {
            "target_ids": target_ids,
            "score": tf.where(empty, 0.0, hypotheses.scores),
            "log_probability": tf.where(empty, 0.0, hypotheses.log_probabilities),
            "target_length": hypotheses.lengths,
            "source_length": lengths,
        }
        if hypotheses.attention is not None:
            attention = tf.pad(hypotheses.attention, [[0, 0], [0, 0], [0, 1], [0, 0]])[:, :, :steps]
            if self.continues:
                attention = _beside_prompt(attention, lengths, tf.shape(x["source"])[1])
            outputs["attention"] = attention
            if (grid := getattr(self.model, "grid_size", None)) is not None:
                shape = tf.concat([tf.shape(outputs["attention"])[:3], grid], axis=0)
                outputs["attention_map"] = tf.reshape(outputs["attention"], shape)
        if self.source_tokenizer is not None:
            outputs["source_pieces"] = self.source_tokenizer.pieces(x["source"])
        if self.target_tokenizer is not None:
            outputs["target_pieces"] = self.target_tokenizer.pieces(target_ids)
            outputs["text"] = tf.reshape(self._texts(x, target_ids), tf.shape(target_ids)[:2])
        return outputs

    def _texts(self, x, target_ids):
        """The texts [B * R] of answers [B, R, T]; of a language model, what they add to their prompts."""
        import tensorflow as tf

        count, answers, steps = tf.unstack(tf.shape(target_ids))
        ids = tf.reshape(target_ids, [-1, steps])
        if not self.continues:
            return self.target_tokenizer.detokenize(ids)
        prompts = tf.repeat(x["source"], answers, axis=0)
        whole = self.target_tokenizer.detokenize(tf.concat([prompts, ids], axis=1))
        told = self.target_tokenizer.detokenize(prompts)
        lengths = tf.strings.length(whole)
        # A prompt of ids may end inside of a character, up to three bytes that the answer completes.
        for _ in range(3):
            begin = tf.strings.substr(whole, tf.zeros_like(lengths), tf.minimum(tf.strings.length(told), lengths))
            told = tf.where(begin == told, told, tf.strings.regex_replace(told, f"[{UNFINISHED}]$", ""))
        return tf.strings.substr(whole, tf.minimum(tf.strings.length(told), lengths), lengths)

    def check_inputs(self, inputs):
        """Inputs as a list of bytes, or of arrays; one sentence for anything that the model does not accept.

        Raises:
            TypeError, ValueError: no list of texts (of ids, of features, of images), a text that is too long, an
                unknown id, a feature that is not finite, an image that cannot be read.
        """
        rows, wrong = self.inputs.check(inputs)
        for number, error in wrong.items():
            raise ValueError(f"Input {number}: {error}")
        return rows

    # Files

    def save(self, folder, half=False):
        """Writes model, tokenizers and options to a folder; `half` stores float16 weights, as pretrained models do."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if half:
            save_weights(self.model, folder)
            (folder / "model.keras").unlink(missing_ok=True)
        else:
            atomic_write(folder / "model.keras", lambda path: self.model.save(path))
        for name, tokenizer in (("source", self.source_tokenizer), ("target", self.target_tokenizer)):
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder / f"{name}.tokenizer.json")
            else:
                (folder / f"{name}.tokenizer.json").unlink(missing_ok=True)
        terms = {"terms": self.terms} if self.terms else {}
        text = json.dumps({"decoding": vars(self.options), **terms}, indent=2)
        atomic_write(folder / "pipeline.json", lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, folder):
        """Loads what `save` or a training run wrote.

        Terms of the data that weights were trained on are printed once, to standard error.

        Raises:
            FileNotFoundError: the folder holds no pipeline.
            ValueError: a file is truncated, or tokenizer and model do not belong together.
        """
        folder = Path(folder)
        stored = _read_json(folder / "pipeline.json")
        options, terms = stored.get("decoding", {}), stored.get("terms")
        if terms and terms not in _told:
            _told.add(terms)
            print(f"{folder.name}: {terms}", file=sys.stderr)
        tokenizers = []
        for name in ("source", "target"):
            path = folder / f"{name}.tokenizer.json"
            tokenizers.append(load_tokenizer(path) if path.exists() else None)
        if (folder / "model.keras").exists():
            model = _load_keras(folder / "model.keras")
        elif (folder / "model.json").exists():
            model = load_weights(folder)
        else:
            raise FileNotFoundError(f"{folder} holds no model: expected model.keras, or model.json with weights.npz.")
        try:
            pipeline = cls(model, *tokenizers, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The files in {folder} do not fit together: {error}") from error
        pipeline.terms = terms
        return pipeline

    @classmethod
    def from_preset(cls, name):
        """Loads a pretrained model by name; `list_presets()` names them.

        >>> Pipeline.from_preset("dates")(["2026년 11월 20일"])[0].text
        '2026-11-20'
        """
        if name not in list_presets():
            raise ValueError(
                f"There is no pretrained model {name!r}; known: {', '.join(list_presets()) or 'none'}. "
                f"For a run's folder write Pipeline.load({os.path.join('.', str(name))!r})."
            )
        return cls.load(PRETRAINED / name)

    def export(self, folder):
        """Writes a SavedModel to folder/VERSION/, the next free version, and returns that path: see serving.py."""
        from .serving import export

        return export(self, folder)


def list_presets():
    """Names of the pretrained models that are shipped."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/pipeline.json"))


def sampling_signature():
    """What a function that samples takes beside its inputs, tensor specifications by name; top_k 0 keeps all."""
    import tensorflow as tf

    numbers = {"seed": tf.int32, "temperature": tf.float32, "top_k": tf.int32, "top_p": tf.float32}
    return {
        **{name: tf.TensorSpec([], dtype, name) for name, dtype in numbers.items()},
        "rows": tf.TensorSpec([None], tf.int32, "rows"),
    }


def _checked(temperature, top_k, top_p, max_length):
    """Settings of sampling as `sample` takes them; what makes no sense fails with a sentence."""
    import tensorflow as tf

    checks = [
        tf.debugging.Assert(temperature >= 0, ["temperature must be at least 0. Received:", temperature]),
        tf.debugging.Assert(top_k >= 0, ["top_k must be at least 1, or 0 for all. Received:", top_k]),
        tf.debugging.Assert((top_p > 0) & (top_p <= 1), ["top_p must be above 0 and at most 1. Received:", top_p]),
        tf.debugging.Assert(max_length >= 1, ["max_length must be at least 1. Received:", max_length]),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        top_k = tf.where(top_k > 0, top_k, 2**31 - 1)
        return {"temperature": tf.identity(temperature), "top_k": top_k, "top_p": tf.where(top_p < 1, top_p, 2.0)}


def _as_tensors(values):
    """Python numbers as tensors of the dtypes that `sampling_signature` names."""
    import tensorflow as tf

    kinds = {float: tf.float32, int: tf.int32}
    floats = ("temperature", "top_p")
    return {
        name: tf.constant(value, tf.float32 if name in floats else kinds.get(type(value), tf.int32))
        for name, value in values.items()
    }


def _beside_prompt(attention, lengths, width):
    """A language model's attention [B, R, T, S + L] with a column for each piece of the prompt and of the answer.

    Of the columns behind the prompts' S, the first belongs to each prompt's last piece, which is fed as the answers
    are: it goes to its place. The result is [B, R, T, S + T].
    """
    import tensorflow as tf

    steps = tf.shape(attention)[2]
    prompt, own = attention[..., :width], attention[..., width:]
    last = tf.one_hot(lengths - 1, width)[:, None, None, :]
    written = tf.pad(own[..., 1:], [[0, 0], [0, 0], [0, 0], [0, 1]])[..., :steps]
    missing = steps - tf.shape(written)[3]
    written = tf.pad(written, [[0, 0], [0, 0], [0, 0], [0, missing]])
    return tf.concat([prompt + own[..., :1] * last, written], axis=-1)


def _result(outputs, row, num_return, continues):
    """The Result of one row, its alternatives inside."""
    source_length = int(outputs["source_length"][row])
    source_pieces = []
    if "source_pieces" in outputs:
        source_pieces = [_text(piece) for piece in outputs["source_pieces"][row][:source_length]]
    answers = []
    for rank in range(num_return):
        if rank and outputs["log_probability"][row, rank] < -1e29:
            break
        length = int(outputs["target_length"][row, rank])
        attention = None
        if "attention" in outputs:
            attention = outputs["attention"][row, rank, :length]
            behind = attention.shape[1] - outputs["target_ids"].shape[2] if continues else attention.shape[1]
            attention = np.concatenate([attention[:, :source_length], attention[:, behind : behind + length]], axis=1)
        pieces = outputs["target_pieces"][row, rank][:length] if "target_pieces" in outputs else []
        answers.append(
            dict(
                text=_text(outputs["text"][row, rank]) if "text" in outputs else None,
                score=float(outputs["score"][row, rank]),
                log_probability=float(outputs["log_probability"][row, rank]),
                source_pieces=source_pieces,
                target_pieces=[_text(piece) for piece in pieces],
                attention=attention,
                attention_map=outputs["attention_map"][row, rank, :length] if "attention_map" in outputs else None,
                target_ids=outputs["target_ids"][row, rank, :length].tolist(),
            )
        )
    return Result(**answers[0], alternatives=[Result(**answer) for answer in answers[1:]])


def _unread(error):
    return Result("", 0.0, 0.0, [], [], None, [], error=error)


def _text(value):
    return value.decode("utf-8", "replace")


def _within(options, model):
    """Options that hold a model's own longest source and target, where it has such."""
    for name, own in (("max_source_length", "max_source_length"), ("max_length", "max_target_length")):
        if (longest := getattr(model, own, None)) is not None:
            options = replace(options, **{name: min(getattr(options, name), longest)})
    return options


def _padded(x, rows, columns):
    """x [B, S, ...] with more rows and columns of zeros."""
    import tensorflow as tf

    return tf.pad(x, [[0, rows], [0, columns]] + [[0, 0]] * (len(x.shape) - 2))


def _multiple(length):
    return (length + BUCKET - 1) // BUCKET * BUCKET


def _check_vocabulary(model, side, tokenizer):
    expected = getattr(model, f"{side}_vocabulary", None)
    if tokenizer is not None and expected is not None and tokenizer.vocabulary_size != expected:
        raise ValueError(
            f"The {side} tokenizer does not belong to this model: the model was built for {expected} ids, "
            f"the tokenizer has {tokenizer.vocabulary_size}."
        )


def _check_shared(model, source_tokenizer, target_tokenizer):
    if not getattr(model, "share_embeddings", False) or source_tokenizer is None or target_tokenizer is None:
        return
    if source_tokenizer.get_config() != target_tokenizer.get_config():
        raise ValueError(
            "This model has one vocabulary for source and target (share_embeddings=True) and expects the same "
            "tokenizer for both. Received: two different ones"
        )


def _read_json(path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} holds no trained model, {path.name} is missing. Give a finished run (train --resume "
            "finishes one), or what Pipeline.save wrote."
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from error


def _load_keras(path):
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or truncated: expected a zip file, as Keras writes it.")
    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or was saved by other code: {str(error).splitlines()[0]}") from error
