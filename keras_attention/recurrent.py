"""The attending decoder: recurrent cells that attend at every step, inside one loop."""

import keras
from keras import ops

from keras_attention import masks, recording
from keras_attention.attention import Attention, scores_dtype
from keras_attention.self_attention import SelfAttention

CELLS = {"simple_rnn": keras.layers.SimpleRNNCell, "gru": keras.layers.GRUCell, "lstm": keras.layers.LSTMCell}
ORDERS = ("bahdanau", "luong")


@keras.saving.register_keras_serializable(package="keras_attention")
class AttentiveRNN(keras.layers.Layer):
    """Recurrent layers that attend to a memory at each of their steps.

    With y_t what is fed at step t (so the token before the one that o_t predicts), s the states and h the memory, the
    order "bahdanau" attends, then recurs:

        c_t = attention(query=s_{t-1}, value=h)           context
        s_t = RNN([y_t; c_t], s_{t-1})                    state
        o_t = tanh(W_o [y_t; s_t; c_t] + b_o)             readout, the layer's output

    and the order "luong" recurs, then attends, and feeds its readout back ("input feeding"):

        s_t = RNN([y_t; o_{t-1}], s_{t-1})
        c_t = attention(query=s_t, value=h)
        o_t = tanh(W_c [s_t; c_t] + b_c)

    The query is the uppermost layer's hidden state. The keys of the memory are projected once, before the loop.
    Weights are computed after the loop, in one batched step, and only if asked for. `step` does one step of the same
    computation, for decoding.

    With `context_gate`, a scalar of the query scales every context: c_t = sigmoid(w_g q_t + b_g) attention(q_t, h) (Xu
    et al. 2015).

    With `lexical_units` L, the last L columns of the memory are the source's own words, such as their embeddings, and
    what is attended to of them reaches the output without the readout (Nguyen and Chiang 2018): with c_t = [v_t; w_t],
    v_t stands for c_t in the readout, beside which the output has a second part,

        l_t = tanh(w_t)
        o_t = [readout; tanh(W_l l_t + b_l) + l_t]

    so that an output layer finds the words themselves. It learns rare words from far fewer sentences.

    Args:
        units: U, width of each layer's hidden state.
        attention: an `Attention` layer of any score, or None for the networks that attention was invented against:
            the memory is then one context vector per row that enters at every step (Cho et al. 2014), or no memory
            is given and all that is known of the source is in the initial state (Sutskever et al. 2014).
        readout_units: R, width of the output; U when None.
        cell: "simple_rnn" (with tanh), "gru" or "lstm".
        layers: number of recurrent layers, each reading the hidden state of the one below.
        order: "bahdanau" or "luong".
        context_gate: whether a scalar of the query scales the context; needs attention.
        lexical_units: L, how many columns of the memory are words, 0 for none; needs attention.

    Call arguments:
        sequence: [B, T, E], what is fed at each step.
        memory: [B, S, M]; without attention the context [B, M], or None.
        initial_state: [B, P], or None for zeros; P (`state_width`) is U for each layer, 2 U for each of LSTM: hidden
            state and cell state, layer by layer.
        sequence_mask: [B, T]; at padding the state is held and the weights are zero.
        memory_mask: [B, S].
        return_attention_scores: also return the weights.

    Returns:
        Output [B, T, R + L]; with `return_attention_scores`, (output, weights [B, T, S] in float32), where the weights
        are None without attention.

    Example:

    >>> from keras_attention import AdditiveAttention
    >>> layer = AttentiveRNN(8, attention=AdditiveAttention(8), cell="lstm", layers=2, order="luong")
    >>> output, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape), layer.state_width
    ((2, 3, 8), (2, 3, 5), 32)

    References:
        Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473, section A.2.2 (with tanh for the paper's maxout);
        Luong, Pham, Manning 2015, https://arxiv.org/abs/1508.04025, sections 3 and 3.3; Xu et al.
        2015, https://arxiv.org/abs/1502.03044, section 4.2.1 (the gate); Nguyen and Chiang 2018,
        https://arxiv.org/abs/1710.01329, section 4 (the words; here with a bias, and seen
        by the keys, by input feeding and by the cells of Bahdanau's order, too).
    """

    def __init__(
        self,
        units,
        attention=None,
        readout_units=None,
        cell="gru",
        layers=1,
        order="bahdanau",
        context_gate=False,
        lexical_units=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_arguments(attention, cell, layers, order, context_gate, lexical_units)
        self.units = units
        self.attention = attention
        self.readout_units = readout_units or units
        self.cell = cell
        self.layers = layers
        self.order = order
        self.context_gate = context_gate
        self.lexical_units = lexical_units
        policy = {"dtype": self.dtype_policy}
        self.cells = [CELLS[cell](units, name=f"cell_{number}", **policy) for number in range(layers)]
        self.readout = keras.layers.Dense(self.readout_units, activation="tanh", name="readout", **policy)
        self.lexical = None
        if lexical_units:
            self.lexical = keras.layers.Dense(lexical_units, activation="tanh", name="lexical", **policy)
        self.gate = keras.layers.Dense(1, activation="sigmoid", name="gate", **policy) if context_gate else None
        self.supports_masking = True

    @property
    def state_width(self):
        """P, width of the state that `initial_state` gives."""
        return self.units * self.layers * (2 if self.cell == "lstm" else 1)

    @property
    def output_width(self):
        """Width of the output: R + L."""
        return self.readout_units + self.lexical_units

    def build(self, sequence_shape, memory_shape=None, initial_state_shape=None):
        self._check_shapes(sequence_shape, memory_shape, initial_state_shape)
        input_width, context_width = sequence_shape[-1], 0 if memory_shape is None else memory_shape[-1]
        if self.attention is not None:
            shapes = (None, None, self.units), tuple(memory_shape)
            if not self.attention.built:
                self.attention.build(*shapes)
            context_width = self.attention.compute_output_shape(*shapes)[-1]
        if self.gate is not None:
            self.gate.build((None, None, self.units))
        if self.lexical is not None:
            self._check_words(memory_shape[-1], context_width)
            self.lexical.build((None, None, self.lexical_units))
        extra = context_width if self.order == "bahdanau" else self.output_width
        for number, cell in enumerate(self.cells):
            cell.build((None, self.units if number else input_width + extra))
        read = self.units + context_width - self.lexical_units + (input_width if self.order == "bahdanau" else 0)
        self.readout.build((None, None, read))
        loop = keras.layers.RNN(_Loop(self, extra), return_sequences=True, dtype=self.dtype_policy, name="loop")
        self.loop = masks.let_masks_pass(loop)
        self.built = True

    def _check_shapes(self, sequence_shape, memory_shape, initial_state_shape):
        expected = "[batch, width] or None, as attention is None"
        good = memory_shape is None or len(memory_shape) == 2
        if self.attention is not None:
            expected, good = "[batch, length, width]", memory_shape is not None and len(memory_shape) == 3
        if len(sequence_shape) != 3 or not good:
            memory_shape = memory_shape and tuple(memory_shape)
            raise ValueError(
                f"AttentiveRNN expects a sequence [batch, length, width] and a memory {expected}. "
                f"Received: sequence.shape={tuple(sequence_shape)}, memory.shape={memory_shape}"
            )
        if initial_state_shape is not None and initial_state_shape[-1] != self.state_width:
            raise ValueError(
                f"AttentiveRNN expects an initial_state [batch, {self.state_width}], the states of all layers. "
                f"Received: initial_state.shape={tuple(initial_state_shape)}"
            )

    def _check_words(self, memory_width, context_width):
        if not self.lexical_units < memory_width == context_width:
            raise ValueError(
                f"AttentiveRNN expects a memory wider than its lexical_units={self.lexical_units}, which are its last "
                "columns, and an attention that gives back its columns as they stand. Received: a memory of width "
                f"{memory_width}, of which attention makes {context_width}."
            )

    def prepare(self, memory=None, memory_mask=None):
        """What every step needs of the memory, computed once.

        Args:
            memory: [B, S, M]; without attention [B, M] or None.
            memory_mask: boolean [B, S], or None.

        Returns:
            A dict of values [B, S, .], keys [B, S, .] and mask [B, S]; without attention {"context": [B, M]} or {}.
        """
        if self.attention is None:
            return {} if memory is None else {"context": memory}
        if memory_mask is None:
            memory_mask = ops.ones(ops.shape(memory)[:2], dtype="bool")
        memory = masks.zero_masked(memory, memory_mask)
        values, keys = self.attention.project_value(memory), self.attention.project_key(memory)
        return {"values": values, "keys": keys, "mask": memory_mask}

    def begin(self, initial_state):
        """The state that the first `step` takes: an initial state [N, P], and zeros where input feeding reads."""
        if self.order == "bahdanau":
            return initial_state
        return _join(initial_state, ops.zeros((ops.shape(initial_state)[0], self.output_width), initial_state.dtype))

    def step(self, inputs, state, prepared):
        """One step, for N = B*W hypotheses that share the B rows of a memory, W queries a row.

        Args:
            inputs: [N, E].
            state: what `begin` or the step before returned, [N, P], or [N, P + R + L] with input feeding.
            prepared: what `prepare` returned.

        Returns:
            Output [N, R + L], new state and weights [N, S] (None without attention).
        """
        if self.order == "bahdanau":
            state, context, weights = self._attend_and_recur(inputs, state, prepared)
            return self._read(inputs, self._query(state), context=context), state, weights
        state, output, weights = self._recur_and_attend(inputs, state, prepared)
        return output, _join(state, output), weights

    def _attend_and_recur(self, inputs, state, prepared):
        context, weights = self._attend(self._query(state), prepared)
        return self._recur(_join(inputs, context), state), context, weights

    def _recur_and_attend(self, inputs, state, prepared):
        state, fed = state[:, : self.state_width], state[:, self.state_width :]
        state = self._recur(_join(inputs, fed), state)
        query = self._query(state)
        context, weights = self._attend(query, prepared)
        return state, self._read(query, context=context), weights

    def _read(self, *parts, context):
        """The output [..., R + L] of parts [..., .] and a context [..., M] (None)."""
        if self.lexical is None:
            return self.readout(_join(*parts, context))
        words = ops.tanh(context[..., -self.lexical_units :])
        readout = self.readout(_join(*parts, context[..., : -self.lexical_units]))
        return _join(readout, self.lexical(words) + words)

    def _query(self, state):
        """The uppermost hidden state [..., U] of states [..., P]."""
        start = self.state_width - len(_sizes(self.cells[-1])) * self.units
        return state[..., start : start + self.units]

    def _attend(self, query, prepared):
        """Context [N, M] and weights [N, S] for queries [N, U]."""
        if self.attention is None:
            context = prepared.get("context")
            if context is None:
                return None, None
            query = ops.reshape(query, (ops.shape(context)[0], -1, self.units))  # [B, W, U]
            context = context[:, None, :] + ops.zeros_like(query[:, :, :1])
            return ops.reshape(context, (-1, context.shape[-1])), None
        values = prepared["values"]
        query = ops.reshape(query, (ops.shape(values)[0], -1, self.units))  # [B, W, U]
        context, weights = self.attention.attend(query, values, prepared["keys"], prepared["mask"][:, None, :])
        context = context if self.gate is None else context * self.gate(query)
        return ops.reshape(context, (-1, context.shape[-1])), ops.reshape(weights, (-1, ops.shape(weights)[-1]))

    def _recur(self, inputs, state):
        """The new state [N, P] of all layers."""
        start, states = 0, []
        for cell in self.cells:
            old = []
            for size in _sizes(cell):
                old.append(state[:, start : start + size])
                start += size
            inputs, new = cell(inputs, old)
            states += new
        return _join(*states)

    def call(
        self,
        sequence,
        memory=None,
        initial_state=None,
        *,
        sequence_mask=None,
        memory_mask=None,
        return_attention_scores=False,
        training=None,
    ):
        sequence_mask = masks.combine_masks(
            masks.as_mask(sequence_mask, "sequence_mask"), masks.implicit_mask(sequence)
        )
        memory_mask = masks.as_mask(memory_mask, "memory_mask")
        if memory is not None:
            memory_mask = masks.combine_masks(memory_mask, masks.implicit_mask(memory))
        sequence = masks.zero_masked(sequence, sequence_mask)
        prepared = self.prepare(memory, memory_mask)
        if initial_state is None:
            initial_state = ops.zeros((ops.shape(sequence)[0], self.state_width), dtype=self.compute_dtype)
        states, extra = self._run(sequence, initial_state, sequence_mask, prepared)
        if self.order == "bahdanau":
            output = self._read(sequence, self._query(states), context=extra if extra.shape[-1] else None)
        else:
            output = extra
        output = masks.carry_mask(output, sequence_mask)
        weights = None
        if self.attention is not None and (return_attention_scores or recording.is_recording()):
            weights = self._weights(states, initial_state, sequence_mask, prepared)
            recording.record(self, weights)
        return (output, weights) if return_attention_scores else output

    def _run(self, sequence, initial_state, sequence_mask, prepared):
        """The loop: states [B, T, P] and contexts [B, T, M] (with input feeding, readouts [B, T, R])."""
        cell = self.loop.cell
        nothing = ops.zeros((ops.shape(sequence)[0], cell.state_size - self.state_width), dtype=self.compute_dtype)
        initial_state = _join(ops.cast(initial_state, self.compute_dtype), nothing)
        cell.prepared = prepared
        try:
            outputs = self.loop(sequence, initial_state=[initial_state], mask=sequence_mask)
        finally:
            cell.prepared = None
        return outputs[..., : self.state_width], outputs[..., self.state_width :]

    def _weights(self, states, initial_state, sequence_mask, prepared):
        """All weights [B, T, S] at once, from the states that asked for them."""
        queries = self._query(states)
        if self.order == "bahdanau":
            first = self._query(initial_state)[:, None, :]
            if sequence_mask is not None:  # before a row's first step stands the initial state; Keras writes zeros
                begun = ops.cumsum(ops.cast(sequence_mask, "int32"), axis=1) > 0
                queries = ops.where(begun[:, :, None], queries, first)
            queries = ops.concatenate([first, queries[:, :-1, :]], axis=1)
        mask = masks.attention_mask(sequence_mask, prepared["mask"])
        return self.attention.weights_for(queries, prepared["keys"], mask)

    def compute_output_shape(self, sequence_shape, memory_shape=None, initial_state_shape=None):
        return (*sequence_shape[:-1], self.output_width)

    def compute_output_spec(
        self, sequence, memory=None, initial_state=None, *, return_attention_scores=False, **kwargs
    ):
        output = keras.KerasTensor(self.compute_output_shape(sequence.shape), dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        if self.attention is None:
            return output, None
        return output, keras.KerasTensor((*sequence.shape[:-1], memory.shape[1]), dtype=scores_dtype(self))

    def compute_mask(self, sequence, previous_mask=None):
        return previous_mask

    def get_config(self):
        attention = None if self.attention is None else keras.saving.serialize_keras_object(self.attention)
        return {
            **super().get_config(),
            "units": self.units,
            "attention": attention,
            "readout_units": self.readout_units,
            "cell": self.cell,
            "layers": self.layers,
            "order": self.order,
            "context_gate": self.context_gate,
            "lexical_units": self.lexical_units,
        }

    @classmethod
    def from_config(cls, config):
        attention = config.get("attention")
        if attention is not None:
            attention = keras.saving.deserialize_keras_object(attention)
        return cls(**{**config, "attention": attention})


class _Loop:
    """The cell that keras.layers.RNN steps; `prepared` is set by the decoder for the length of one call.

    Its one state is [state; context] (with input feeding [state; readout]), which is its output, too: where a mask
    holds a step, Keras gives the first state for the output, and on JAX the two must have one width.
    """

    def __init__(self, decoder, extra_width):
        self.decoder = decoder
        self.state_size = decoder.state_width + extra_width
        self.compute_dtype = decoder.compute_dtype
        self.prepared = None

    def __call__(self, inputs, states):
        decoder, state = self.decoder, states[0]
        if decoder.order == "bahdanau":
            state = state[:, : decoder.state_width]
            state, extra, _ = decoder._attend_and_recur(inputs, state, self.prepared)
        else:
            state, extra, _ = decoder._recur_and_attend(inputs, state, self.prepared)
        output = _join(state, extra)
        return output, [output]

    call = __call__


def _join(*parts):
    """Parts [..., .] side by side; None is left out."""
    parts = [part for part in parts if part is not None]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)


def _sizes(cell):
    """Widths of a cell's states, as a list."""
    return list(cell.state_size) if isinstance(cell.state_size, (list, tuple)) else [cell.state_size]


def _check_arguments(attention, cell, layers, order, context_gate, lexical_units):
    if attention is not None and (not isinstance(attention, Attention) or isinstance(attention, SelfAttention)):
        raise TypeError(
            "AttentiveRNN expects attention to be a layer such as AdditiveAttention(units), or None. "
            f"Received: attention={attention!r}"
        )
    if attention is not None and attention.dropout:
        raise ValueError(
            "AttentiveRNN draws no random numbers inside its loop and expects an attention with dropout=0. "
            f"Received: dropout={attention.dropout}; drop out the memory or the output instead."
        )
    if context_gate and attention is None:
        raise ValueError("AttentiveRNN expects attention for context_gate=True: the gate scales what is attended to.")
    if lexical_units < 0 or lexical_units and attention is None:
        raise ValueError(
            "AttentiveRNN expects lexical_units of 0 or more, and attention where there are any: they are columns that "
            f"are attended to. Received: lexical_units={lexical_units}, attention={attention!r}"
        )
    if layers < 1:
        raise ValueError(f"AttentiveRNN expects at least 1 layer. Received: layers={layers}")
    for name, value, known in (("cell", cell, CELLS), ("order", order, ORDERS)):
        if value not in known:
            raise ValueError(f"AttentiveRNN expects {name} to be one of {', '.join(known)}. Received: {name}={value!r}")
