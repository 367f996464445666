"""A search in stages, for TensorFlow's graphs: rows that have stopped leave, and buffers grow with what is written.

A stage computes steps until half of its rows have stopped, or its buffers are full. Between two stages the rows that
still run are taken together, and full buffers become twice as long. Compiled, the beginning with the first stage, every
other stage and the end are programs of their own: one for each number of rows and each length of the sources and of the
buffers, which TensorFlow compiles when it is first needed. The search of a row or two whose answers may not be longer
than the first buffers is one program.

Compiled, rows are searched in parts, several at once: most of such a program computes on one core only.
"""

import threading
from contextlib import contextmanager, nullcontext
from functools import partial

import keras
from keras import ops

from keras_attention.cache import compiled

from .decoding import Hypotheses, grow, room_of

ROOM = 16  # steps of the first stage, compiled
LEAST = 2  # so few rows stay together to the end
FEW = 8  # so few rows begin, compiled, with twice as many steps
PARTS = 4  # of the rows at most, compiled
PART = 16  # rows of a part, unless two parts have fewer or four have more
TREES = "rows", "hypotheses", "written"
TENSOR = object()  # stands for a tensor in a structure
TRACING = threading.RLock()
# The dtypes and ranks of Hypotheses.
FOUND = {
    "ids": ("int32", 3),
    "lengths": ("int32", 2),
    "log_probabilities": ("float32", 2),
    "scores": ("float32", 2),
    "attention": ("float32", 4),
}


class Stages:
    """A search of decoding.py as a function of x, to be called in a graph of TensorFlow.

    Args:
        search: a `Search`, whose model has `encode`. Rows leave if the model has `take_rows`, and compiled buffers grow
            if it has `grow`.
        source: the specification of x.
        drawn: that of `uniforms` and `limits`, see `Search.begin`; {} where nothing is drawn.
        prompted: whether x holds prompts, which the answers continue.
        weights: makes a context in which the model computes with other weights than its own.
        jit_compile: compile with XLA. It compiles least if the numbers of rows are powers of two.
    """

    def __init__(self, search, source, drawn, prompted=False, weights=nullcontext, jit_compile=False):
        import tensorflow as tf

        self.search = search
        self.prompted = prompted
        self.weights = weights
        self.jit_compile = jit_compile
        self.grows = jit_compile and hasattr(search.model, "grow")
        self.shrinks = getattr(search.model, "take_rows", None) is not None
        if jit_compile:
            options = {"autograph": False, "jit_compile": True}
            lengths = tf.TensorSpec([None], tf.int32)
            given = [source, lengths, tf.TensorSpec([None, 0], tf.float32), drawn]
            self._at_once = tf.function(self._at_once, given, **options)
            self._begin = tf.function(self._begin, given, **options)
            leaves = self._begin.get_concrete_function().structured_outputs
            self._go_on = tf.function(self._go_on, [[tf.TensorSpec(x.shape, x.dtype) for x in leaves]], **options)
            self._finish = tf.function(self._finish, **options)
            self._compiled = tf.function(self._compiled, [source, lengths, drawn], autograph=False)  # traced once

    def __call__(self, x, max_lengths, drawn):
        """Hypotheses of T steps, for which there was room at the end; compiled, in the part that had most.

        Args:
            x: what `encode` takes.
            max_lengths: [B], steps at most.
            drawn: {"uniforms": [N, steps], "limits": a dict}, or {}.
        """
        if self.jit_compile:
            with _called():
                return Hypotheses(**{"attention": None, **self._in_parts(x, max_lengths, drawn)})
        return self._in_stages(x, max_lengths, drawn)

    def _in_parts(self, x, max_lengths, drawn):
        import tensorflow as tf

        rows, width = tf.shape(max_lengths)[0], self.search.width
        size = tf.maximum(-(-rows // PARTS), tf.minimum(-(-rows // 2), PART))

        def part(begin):
            mine, limits = tf.nest.map_structure(lambda leaf: leaf[begin : begin + size], (x, max_lengths))
            numbers = {**drawn, "uniforms": drawn["uniforms"][begin * width :][: size * width]} if drawn else {}
            return self._compiled(mine, limits, numbers)

        def nothing():
            return {name: tf.zeros([0] * rank, dtype) for name, (dtype, rank) in FOUND.items() if self._has(name)}

        def parts():
            found = [tf.cond(n * size < rows, partial(part, n * size), nothing) for n in range(PARTS)]
            return {name: _joined([one[name] for one in found]) for name in found[0]}

        return tf.cond(size < rows, parts, lambda: self._compiled(x, max_lengths, drawn))

    def _compiled(self, x, max_lengths, drawn):
        import tensorflow as tf

        room = self._first_room(max_lengths)
        ends = tf.logical_and(tf.shape(max_lengths)[0] <= LEAST, tf.reduce_max(max_lengths) <= room)
        return tf.cond(
            ends,
            lambda: self._at_once(x, max_lengths, tf.zeros([room, 0]), drawn),
            lambda: self._fields(self._in_stages(x, max_lengths, drawn)),
        )

    def _has(self, name):
        """Whether Hypotheses will have a field."""
        return name != "attention" or name in self._structure["written"]

    def _fields(self, hypotheses):
        return {name: getattr(hypotheses, name) for name in FOUND if self._has(name)}

    def _in_stages(self, x, max_lengths, drawn):
        import tensorflow as tf

        leaves = self._begin(x, max_lengths, tf.zeros([self._first_room(max_lengths), 0]), drawn)
        result = self._result(self._tree(leaves))
        variables = leaves, tf.range(tf.shape(max_lengths)[0]), result
        shapes = tf.nest.map_structure(lambda leaf: leaf.shape, variables)

        def stage(*variables):
            leaves, order, result = self._shrunk(*variables) if self.shrinks else variables
            leaves = self._go_on(self._grown(leaves) if self.grows else leaves)
            return tf.nest.map_structure(tf.ensure_shape, (leaves, order, result), shapes)

        leaves, order, result = tf.while_loop(
            lambda leaves, *_: tf.reduce_any(self._tree(leaves)["rows"]["running"]), stage, variables, shapes
        )
        return self._finish(self._tree(leaves)["position"], self._put_back(leaves, order, result))

    def _first_room(self, max_lengths):
        """Steps that the first buffers have room for; compiled one of few numbers."""
        import tensorflow as tf

        longest = tf.maximum(tf.reduce_max(max_lengths), 1)
        if not self.jit_compile:
            return longest
        longest = -(-longest // ROOM) * ROOM
        if not self.grows:
            return longest
        # Few rows are computed faster than a further stage begins.
        return tf.where(tf.shape(max_lengths)[0] > FEW, ROOM, tf.minimum(longest, 2 * ROOM))

    # What is compiled. Between the programs go lists of tensors, the leaves of a progress.

    def _at_once(self, x, max_lengths, space, drawn):
        with self.weights(), self._context():
            progress = self.search.go_on(self._beginning(x, max_lengths, space, drawn))
            return self._fields(self.search.finish(progress))

    def _begin(self, x, max_lengths, space, drawn):
        with self.weights(), self._context():
            return self._stage(self._beginning(x, max_lengths, space, drawn))

    def _beginning(self, x, max_lengths, space, drawn):
        memory = self.search.model.encode(x)
        prompt = x["source"] if self.prompted else None
        return self.search.begin(memory, ops.shape(space)[0], max_lengths, prompt, **drawn)

    def _go_on(self, leaves):
        with self.weights(), self._context():
            progress = self._tree(leaves)
            if self._has_output:
                progress["memory"] = self.search.model.with_output(progress["memory"])
            return self._stage(progress)

    def _finish(self, position, trees):
        return self.search.finish({"position": position, **trees})

    def _context(self):
        return compiled() if self.jit_compile else nullcontext()

    def _stage(self, progress):
        """The leaves behind a stage, but what need not be carried from one to the next."""
        rows = ops.shape(progress["rows"]["running"])[0]
        progress = self.search.go_on(progress, ops.where(rows > LEAST, rows // 2, 0) if self.shrinks else 0)
        memory = progress["memory"]
        if hasattr(self.search.model, "without_output"):
            progress = {**progress, "memory": self.search.model.without_output(memory)}
        self._has_output = progress["memory"] is not memory
        self._structure = keras.tree.map_structure(lambda leaf: TENSOR if ops.is_tensor(leaf) else leaf, progress)
        return _leaves(progress)

    def _tree(self, leaves):
        """The progress that these are the leaves of."""
        leaves = iter(leaves)
        found = [next(leaves) if leaf is TENSOR else leaf for leaf in keras.tree.flatten(self._structure)]
        return keras.tree.pack_sequence_as(self._structure, found)

    # What stands between two of them.

    def _result(self, progress):
        """What `finish` reads of all rows."""
        parts = {tree: {name: progress[tree][name] for name in names} for tree, names in self.search.makes.items()}
        return {**parts, "written": progress["written"]}

    def _grown(self, leaves):
        """Leaves with buffers that are not full."""
        import tensorflow as tf

        progress = self._tree(leaves)
        room = room_of(progress)
        is_full = progress["position"] >= room
        return tf.cond(is_full, lambda: _leaves(self.search.grow(progress, 2 * room)), lambda: leaves)

    def _shrunk(self, leaves, order, result):
        """Of the rows that run alone, where no more than half do; their numbers among all, and the result so far."""
        import tensorflow as tf

        progress = self._tree(leaves)
        running = progress["rows"]["running"]
        count = tf.reduce_sum(tf.cast(running, tf.int32))
        size = tf.maximum(power_of_two(count) if self.jit_compile else count, LEAST)

        def shrink():
            taken = tf.argsort(tf.where(running, 0, 1), stable=True)[:size]
            trees = {name: _taken(progress[name], taken, *self._axis(name)) for name in TREES}
            memory = self.search.model.take_rows(progress["memory"], taken)
            left = _leaves({**progress, "memory": memory, **trees})
            return left, tf.gather(order, taken), self._put_back(leaves, order, result)

        return tf.cond(size < tf.shape(running)[0], shrink, lambda: (leaves, order, result))

    def _put_back(self, leaves, order, result):
        """The result with what the rows `order` have come to."""
        import tensorflow as tf

        progress = self._tree(leaves)
        new = self._result(progress)
        if not self.shrinks:
            return new
        count = tf.shape(order)[0]
        rows = tf.shape(keras.tree.flatten(result["written"])[0])[1] // self.search.width

        def put_back():
            more = room_of(progress) - room_of(result)
            old = {**result, "written": grow(result["written"], more, more * progress["widening"])}
            places = tf.tensor_scatter_nd_update(tf.fill([rows], count), order[:, None], tf.range(count))
            return {name: _put(new[name], old[name], places, count, *self._axis(name)) for name in TREES}

        return tf.cond(count < rows, put_back, lambda: new)

    def _axis(self, tree):
        """How many entries of a tree stand for a row, and along which axis."""
        return {"rows": (1, 0), "hypotheses": (self.search.width, 0), "written": (self.search.width, 1)}[tree]


@contextmanager
def _called():
    """Within it, what tf.cond and tf.while_loop are given are functions that are called.

    TensorFlow would make them parts of the graph, of which it visits also what is not run, with a node for each tensor
    that goes in: some tenths of a millisecond a search. It has no public way to say so; what another thread traces
    meanwhile is called, too. Where there is a GPU all is as ever, for there it was not tried.
    """
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util_v2 as control_flow

    with TRACING:
        before = control_flow._DISABLE_LOWER_USING_SWITCH_MERGE
        control_flow._DISABLE_LOWER_USING_SWITCH_MERGE = before or not tf.config.list_physical_devices("GPU")
        try:
            yield
        finally:
            control_flow._DISABLE_LOWER_USING_SWITCH_MERGE = before


def _leaves(progress):
    return [leaf for leaf in keras.tree.flatten(progress) if ops.is_tensor(leaf)]


def _joined(parts):
    """Tensors below each other, with zeros behind those that are smaller along other axes."""
    import tensorflow as tf

    size = tf.reduce_max(tf.stack([tf.shape(one)[1:] for one in parts]), axis=0)
    missing = [tf.pad((size - tf.shape(one)[1:])[:, None], [[1, 0], [1, 0]]) for one in parts]
    return tf.concat([tf.pad(one, more) for one, more in zip(parts, missing, strict=True)], axis=0)


def power_of_two(count):
    """The least power of two that is not below a scalar; from 2^14 on the scalar itself."""
    import tensorflow as tf

    sizes = tf.constant([2**power for power in range(15)])
    return tf.maximum(count, tf.reduce_min(tf.where(sizes >= count, sizes, sizes[-1])))


def _entries(rows, width):
    """The numbers of the W entries of each row [R]: [R * W]."""
    return ops.reshape(rows[:, None] * width + ops.arange(width, dtype="int32"), (-1,))


def _taken(tree, rows, width, axis):
    """What belongs to some rows [R] of a tree with W entries a row along an axis."""
    entries = _entries(rows, width)
    return keras.tree.map_structure(lambda leaf: ops.take(leaf, entries, axis=axis), tree)


def _put(new, old, places, count, width, axis):
    """The tree `old` with the `count` rows of `new`, which stand at `places` [B] of it where that is less."""
    entries = _entries(places, width)
    inside, entries = entries < count * width, ops.minimum(entries, count * width - 1)

    def put(new, old):
        shown = ops.reshape(inside, (1,) * axis + (-1,) + (1,) * (len(old.shape) - axis - 1))
        return ops.where(shown, ops.take(new, entries, axis=axis), old)

    return keras.tree.map_structure(put, new, old)
