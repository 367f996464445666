"""The attention weights of anybody's finished model, without rebuilding it."""

import contextlib
import contextvars

import keras

# Keras has no public way to ask whether a call is traced, and whether Keras itself runs it, to learn shapes.
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.utils.backend_utils import in_tf_graph
from keras.src.utils.jax_utils import is_in_jax_tracing_scope

_open_blocks = contextvars.ContextVar("keras_attention_record_scores", default=())
# Those of all threads: where none is open, torch.compile need not break its graph, as it does at a ContextVar.
_open_anywhere = []
ADVICE = "call the model directly, model(x), instead of predict, fit or a compiled function."


@contextlib.contextmanager
def record_scores():
    """Collects the attention weights of every layer of keras_attention that runs inside the `with` block.

    The layers may stand anywhere in any Keras model: functional, Sequential or subclassed, nested, reloaded. Nothing is
    rebuilt, and the outputs stay what they are, bit for bit. The model must run eagerly.

    The weights are those that `return_attention_scores=True` gives: before dropout, in at least float32. An
    `AttentiveRNN` records once a call, [B, T, S], after its loop, and the attention inside of it does not; its single
    steps, by which a decoder writes, are not recorded. Each entry is the backend's tensor, detached from gradients;
    `keras.ops.convert_to_numpy` makes an array of it.

    Blocks nest, and each collects what runs inside of it. A block belongs to its thread (or asyncio task) and sees
    nothing of the others.

    Returns:
        A context manager that gives a dict {layer path: [weights in call order]}, which fills as the model runs. The
        path is Keras's `layer.path`, such as "encoder/self_attention"; where several layers have one path, as two
        nested models with equal names do, the later ones get "_1", "_2", ... in the order of their first call.

    Raises:
        RuntimeError: a layer runs in a traced call (`predict`, `fit`, `tf.function`, jit), where weights are not
            numbers; or the block ends without any weights, as after a call with symbolic tensors or of a function
            that was compiled before. (On JAX an error inside of `predict` or `fit` would cost the model its weights,
            so that it comes at the end of the block. On PyTorch `predict` and `fit` run eagerly, and `torch.compile`
            breaks its graph, slowly, so that they are recorded.)

    Example:

    >>> from keras_attention import SelfAttention
    >>> model = keras.Sequential([keras.layers.Embedding(7, 4), SelfAttention(4, name="attention")], name="model")
    >>> with record_scores() as scores:
    ...     output = model(keras.ops.array([[1, 2, 3]]))
    >>> [(path, [tuple(weights.shape) for weights in calls]) for path, calls in scores.items()]
    [('model/attention', [(1, 3, 3)])]
    """
    block = _Block()
    token = _open_blocks.set((*_open_blocks.get(), block))
    _open_anywhere.append(block)
    try:
        yield block.scores
    finally:
        _open_anywhere.remove(block)
        _open_blocks.reset(token)
    if block.traced is not None:
        raise _traced_call(block.traced)
    if not block.scores:
        raise RuntimeError(
            "record_scores recorded nothing: no attention layer of keras_attention ran eagerly in its block. "
            f"If the model has such layers, {ADVICE}"
        )


def is_recording():
    """Whether weights are wanted now, although the caller of the layer may not have asked for them."""
    return bool(_open_anywhere) and bool(_open_blocks.get()) and not in_symbolic_scope()


def record(layer, weights):
    """Hands the weights of one call of a layer to every open block; without one it does nothing."""
    if _open_anywhere:
        _record(layer, weights)


def _record(layer, weights):
    if not is_recording():
        return
    traced = in_tf_graph() or is_in_jax_tracing_scope(weights)
    if traced and not in_stateless_scope():
        raise _traced_call(layer)
    for block in _open_blocks.get():
        if traced:  # Keras's trainers on JAX have taken the model's variables away and would not give them back
            block.traced = layer
        else:
            block.add(layer, keras.ops.stop_gradient(weights))


if keras.backend.backend() == "torch":
    import torch

    _record = torch.compiler.disable(_record)  # it runs between two compiled parts, on numbers


class _Block:
    """What one `with record_scores()` has collected."""

    def __init__(self):
        self.scores = {}
        self.keys = {}
        self.traced = None

    def add(self, layer, weights):
        if layer not in self.keys:
            key, number = layer.path, 0
            while key in self.scores:
                number += 1
                key = f"{layer.path}_{number}"
            self.keys[layer] = key
        self.scores.setdefault(self.keys[layer], []).append(weights)


def _traced_call(layer):
    return RuntimeError(
        f"record_scores expects a model that runs eagerly. Received: a traced call of {layer.path}; {ADVICE}"
    )
