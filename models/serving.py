"""One SavedModel: text in, text and attention weights out, with nothing of ours needed to run it.

Signatures, all with the same input (`text` [B], or `tokens` [B, S] padded with 0, or `features` [B, S, F] with
`source_mask` [B, S], whose features must be finite, or `image` [B], the bytes of JPEG or PNG files):
    serving_default  the best answer, a plain graph without any XLA op (TensorFlow Serving switches XLA off)
    serving_xla      the same, its decode loop compiled by XLA
    serving_nbest    the W best answers: every output has an axis W behind B
    serving_sampled  (of a language model) an answer that is drawn; takes also `seed`, `temperature`, `top_k` (0: all),
                     `top_p` (1: all) and `max_length` (that of the pipeline at most), scalars, so that a server must
                     not merge its requests. Row i draws from (seed, i)
Outputs: `text`, `source_pieces`, `target_pieces` (where there is a tokenizer), `target_ids` [B, T], `score` [B],
`log_probability` [B] and `attention` [B, T, S] (where the model attends; of an image also `attention_map` [B, T, h,
w]; of a language model [B, T, S + T], a column for each piece of the prompt and then of the answer). Where there are
fewer than W answers, the others are empty and their `log_probability` is below -1e29.

A server may merge the requests of several callers, and one input that cannot be read fails the whole batch: one longer
than the model accepts, a file that is no JPEG or PNG or is damaged, an id that the model does not have, a language
model's prompt with a character that its vocabulary lacks. `Pipeline.check_inputs` finds the first of those.
"""

import contextlib
import os
import shutil
from pathlib import Path

import keras

from .ensemble import Ensemble
from .pipeline import sampling_signature
from .token_model import TokenModel

PER_SOURCE = ("source_pieces",)
INTERNAL = ("target_length", "source_length")
SMALL = 2**16  # weights of fewer numbers are packed


def export(pipeline, folder):
    """Writes a pipeline as SavedModel to folder/VERSION/, the next free version.

    Returns:
        The path of what was written.
    """
    import tensorflow as tf

    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"export expects a folder. Received: {folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    target = folder / str(max(versions, default=0) + 1)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        module, signatures = _module(pipeline)
        tf.saved_model.save(module, partial, signatures=signatures)
        os.replace(partial, target)
    except tf.errors.OpError as error:
        raise OSError(f"{target} could not be written: {error.message.splitlines()[0]}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _module(pipeline):
    """A tf.Module that owns every variable and table, and the signatures."""
    import tensorflow as tf

    width = pipeline.options.beam_width
    module = tf.Module()
    ours = isinstance(pipeline.model, TokenModel)  # of another model nothing is known but its verbs
    weights = _Weights(pipeline.model) if ours else contextlib.nullcontext
    module.model_variables = weights.variables if ours else [variable.value for variable in pipeline.model.variables]
    module.tokenizers = [
        tokenizer.trackable
        for tokenizer in (pipeline.source_tokenizer, pipeline.target_tokenizer)
        if tokenizer is not None
    ]
    longest = pipeline.options.max_length
    functions = {
        "serving_default": _best(_limited(pipeline.trace(width, 1, weights=weights), longest)),
        "serving_xla": _best(_limited(pipeline.trace(width, 1, jit_compile=True, weights=weights), longest)),
        "serving_nbest": _all(_limited(pipeline.trace(width, width, weights=weights), longest)),
    }
    given = dict.fromkeys(functions, pipeline.signature())
    if pipeline.continues:
        sampled = sampling_signature()
        del sampled["rows"]
        length = {"max_length": tf.TensorSpec([], tf.int32, "max_length")}
        given["serving_sampled"] = {**pipeline.signature(), **sampled, **length}
        functions["serving_sampled"] = _best(_numbered(pipeline.trace(1, 1, sampling=True, weights=weights), longest))
    signatures = {
        key: tf.function(call, autograph=False).get_concrete_function(**given[key]) for key, call in functions.items()
    }
    return module, signatures


class _Weights:
    """The weights of one of our models as its export holds them: the small ones in one vector for each dtype.

    TensorFlow spends some microseconds a call on every variable, more than a small model on its arithmetic. The output
    matrix (of an ensemble that of each model) stands beside them as decoding multiplies it, so that no call transposes
    it.
    """

    def __init__(self, model):
        import tensorflow as tf

        self.model = model
        small = [weight for weight in model.weights if weight.value.shape.num_elements() < SMALL]
        self.packed = {}  # dtype: (vector, its weights)
        for dtype in sorted({weight.dtype for weight in small}):
            group = [weight for weight in small if weight.dtype == dtype]
            vector = tf.concat([tf.reshape(weight.value, [-1]) for weight in group], axis=0)
            self.packed[dtype] = tf.Variable(vector, trainable=False, name=f"small_{dtype}"), group
        packed = {id(weight) for weight in small}
        # The variables themselves, not Keras's wrappers: session loaders, so TensorFlow Serving, find no others.
        self.variables = [variable.value for variable in model.variables if id(variable) not in packed]
        self.outputs = []  # a model, its matrix
        for each in model.models if isinstance(model, Ensemble) else [model]:
            matrix = each.output_memory()["output"]
            output = next((variable for variable in self.variables if _is_same(variable, matrix)), None)
            if output is None:
                output = tf.Variable(matrix, trainable=False, name="output")
                self.variables.append(output)
            self.outputs.append((each, output))
        self.variables += [vector for vector, _ in self.packed.values()]

    @contextlib.contextmanager
    def __call__(self):
        """Within it the model computes with these weights."""
        import tensorflow as tf

        values = []
        for vector, small in self.packed.values():
            parts = tf.split(vector, [variable.value.shape.num_elements() for variable in small])
            values += [(of, tf.reshape(part, of.shape)) for of, part in zip(small, parts, strict=True)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(keras.StatelessScope(values))
            for model, output in self.outputs:
                stack.enter_context(model.laid_out(tf.convert_to_tensor(output)))
            yield


def _is_same(variable, matrix):
    import tensorflow as tf

    alike = variable.shape == matrix.shape and variable.dtype == matrix.dtype
    return alike and bool(tf.reduce_all(variable == matrix))


def _limited(answer, max_length):
    """`answer` with a greatest length of its own."""
    import tensorflow as tf

    return lambda **inputs: answer(max_length=tf.constant(max_length), **inputs)


def _best(answer):
    """Outputs of the best hypothesis only."""

    def call(**inputs):
        outputs = answer(**inputs)
        return {
            name: output if name in PER_SOURCE else output[:, 0]
            for name, output in outputs.items()
            if name not in INTERNAL
        }

    return call


def _all(answer):
    def call(**inputs):
        return {name: output for name, output in answer(**inputs).items() if name not in INTERNAL}

    return call


def _numbered(answer, longest):
    """What `answer` draws, the rows numbered as they stand; a `max_length` is refused that no server would have memory
    for."""
    import tensorflow as tf

    def call(max_length, **inputs):
        message = f"max_length must be at most {longest}, the max_length that the model was exported with. Received:"
        check = tf.debugging.Assert(max_length <= longest, [message, max_length])
        with tf.control_dependencies([check] if check is not None else []):
            rows = tf.range(tf.shape(inputs["text" if "text" in inputs else "tokens"])[0])
        return answer(rows=rows, max_length=max_length, **inputs)

    return call
