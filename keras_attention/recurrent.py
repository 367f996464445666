"""The attending decoder: a recurrent layer that attends at every step, inside its own loop."""

import keras
from keras import ops

from keras_attention import masks
from keras_attention.attention import Attention, scores_dtype


@keras.saving.register_keras_serializable(package="keras_attention")
class AttentiveRNN(keras.layers.Layer):
    """GRU that attends to a memory before each of its steps (Bahdanau et al. 2015: attend, then recur).

    With y the embedded previous outputs, s the states and h the memory:

        c_t = attention(query=s_{t-1}, value=h)       context
        s_t = GRU([y_t; c_t], s_{t-1})                state
        o_t = tanh(W_o [y_t; s_t; c_t] + b_o)         readout, the layer's output

    Here y_t is what the layer is fed at step t, so the token before the one that o_t predicts. The keys of the memory
    are projected once, before the loop. Weights are computed after the loop, in one batched step, and only if asked
    for. `step` does one step of the same computation, for decoding.

    Args:
        units: U, width of the state.
        attention: an `Attention` layer of any score, or None: the memory is then one fixed context vector per row
            that enters at every step (Cho et al. 2014, the network that attention was invented against).
        readout_units: R, width of the output; U when None.

    Call arguments:
        sequence: [B, T, E], what is fed at each step.
        memory: [B, S, M]; without attention the fixed context [B, M].
        initial_state: [B, U], or None for zeros.
        sequence_mask: [B, T]; at padding the state is held and the weights are zero.
        memory_mask: [B, S].
        return_attention_scores: also return the weights.

    Returns:
        Output [B, T, R]; with `return_attention_scores`, (output, weights [B, T, S] in float32), where the weights are
        None without attention.

    Example:

    >>> from keras_attention import AdditiveAttention
    >>> layer = AttentiveRNN(8, attention=AdditiveAttention(8))
    >>> output, weights = layer(ops.ones((2, 3, 4)), ops.ones((2, 5, 6)), return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 3, 8), (2, 3, 5))

    Reference:
        Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473, section A.2.2 (with tanh for the paper's maxout).
    """

    def __init__(self, units, attention=None, readout_units=None, **kwargs):
        super().__init__(**kwargs)
        if attention is not None and not isinstance(attention, Attention):
            raise TypeError(
                "AttentiveRNN expects attention to be a layer such as AdditiveAttention(units), or None. "
                f"Received: attention={attention!r}"
            )
        if attention is not None and attention.dropout:
            raise ValueError(
                "AttentiveRNN draws no random numbers inside its loop and expects an attention with dropout=0. "
                f"Received: dropout={attention.dropout}; drop out the memory or the output instead."
            )
        self.units = units
        self.attention = attention
        self.readout_units = readout_units or units
        self.cell = keras.layers.GRUCell(units, dtype=self.dtype_policy, name="cell")
        self.readout = keras.layers.Dense(
            self.readout_units, activation="tanh", dtype=self.dtype_policy, name="readout"
        )
        self.supports_masking = True

    def build(self, sequence_shape, memory_shape, initial_state_shape=None):
        expected = 2 if self.attention is None else 3
        if len(sequence_shape) != 3 or len(memory_shape) != expected:
            raise ValueError(
                f"AttentiveRNN expects a sequence [batch, length, width] and a memory of {expected} axes "
                f"({'[batch, width], as attention is None' if expected == 2 else '[batch, length, width]'}). "
                f"Received: sequence.shape={tuple(sequence_shape)}, memory.shape={tuple(memory_shape)}"
            )
        input_width, memory_width = sequence_shape[-1], memory_shape[-1]
        if self.attention is not None and not self.attention.built:
            self.attention.build((None, None, self.units), tuple(memory_shape))
        self.cell.build((None, input_width + memory_width))
        self.readout.build((None, None, input_width + self.units + memory_width))
        self.loop = keras.layers.RNN(
            _Loop(self, memory_width), return_sequences=True, dtype=self.dtype_policy, name="loop"
        )
        self.built = True

    def prepare(self, memory, memory_mask=None):
        """What every step needs of the memory, computed once.

        Args:
            memory: [B, S, M]; without attention [B, M].
            memory_mask: boolean [B, S], or None.

        Returns:
            A dict of values [B, S, M], keys [B, S, .] and mask [B, S]; without attention {"context": [B, M]}.
        """
        if self.attention is None:
            return {"context": memory}
        if memory_mask is None:
            memory_mask = ops.ones(ops.shape(memory)[:2], dtype="bool")
        memory = masks.zero_masked(memory, memory_mask)
        return {"values": memory, "keys": self.attention.project_key(memory), "mask": memory_mask}

    def step(self, inputs, state, prepared):
        """One step, for N = B*W hypotheses that share the B rows of a memory, W queries a row.

        Args:
            inputs: [N, E].
            state: [N, U].
            prepared: what `prepare` returned.

        Returns:
            Output [N, R], new state [N, U] and weights [N, S] (None without attention).
        """
        context, weights = self._attend(state, prepared)
        state = self._recur(inputs, state, context)
        return self.readout(ops.concatenate([inputs, state, context], axis=-1)), state, weights

    def _attend(self, state, prepared):
        """Context [N, M] and weights [N, S] for states [N, U]."""
        memory = prepared["context"] if self.attention is None else prepared["values"]
        query = ops.reshape(state, (ops.shape(memory)[0], -1, self.units))  # [B, W, U]
        if self.attention is None:
            context, weights = memory[:, None, :] + ops.zeros_like(query[:, :, :1]), None
        else:
            context, weights = self.attention.attend(query, memory, prepared["keys"], prepared["mask"][:, None, :])
            weights = ops.reshape(weights, (-1, ops.shape(weights)[-1]))
        return ops.reshape(context, (-1, memory.shape[-1])), weights

    def _recur(self, inputs, state, context):
        return self.cell(ops.concatenate([inputs, context], axis=-1), [state])[0]

    def call(
        self,
        sequence,
        memory,
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
        memory_mask = masks.combine_masks(masks.as_mask(memory_mask, "memory_mask"), masks.implicit_mask(memory))
        sequence = masks.zero_masked(sequence, sequence_mask)
        prepared = self.prepare(memory, memory_mask)
        if initial_state is None:
            initial_state = ops.zeros((ops.shape(sequence)[0], self.units), dtype=self.compute_dtype)
        states, contexts = self._run(sequence, initial_state, sequence_mask, prepared)
        output = self.readout(ops.concatenate([sequence, states, contexts], axis=-1))
        output = masks.carry_mask(output, sequence_mask)
        if not return_attention_scores:
            return output
        return output, self._weights(states, initial_state, sequence_mask, prepared)

    def _run(self, sequence, initial_state, sequence_mask, prepared):
        """The loop: states [B, T, U] and contexts [B, T, M]."""
        cell = self.loop.cell
        no_context = ops.zeros((ops.shape(sequence)[0], cell.state_size - self.units), dtype=self.compute_dtype)
        initial_state = ops.concatenate([ops.cast(initial_state, self.compute_dtype), no_context], axis=-1)
        cell.prepared = prepared
        try:
            outputs = self.loop(sequence, initial_state=[initial_state], mask=sequence_mask)
        finally:
            cell.prepared = None
        return outputs[..., : self.units], outputs[..., self.units :]

    def _weights(self, states, initial_state, sequence_mask, prepared):
        """All weights [B, T, S] at once, from the states that asked for them."""
        if self.attention is None:
            return None
        if sequence_mask is not None:  # steps before a row's first one hold the initial state; Keras writes zeros there
            begun = ops.cumsum(ops.cast(sequence_mask, "int32"), axis=1) > 0
            states = ops.where(begun[:, :, None], states, initial_state[:, None, :])
        queries = ops.concatenate([initial_state[:, None, :], states[:, :-1, :]], axis=1)
        mask = masks.attention_mask(sequence_mask, prepared["mask"])
        return self.attention.weights_for(queries, prepared["keys"], mask)

    def compute_output_shape(self, sequence_shape, memory_shape=None, initial_state_shape=None):
        return (*sequence_shape[:-1], self.readout_units)

    def compute_output_spec(self, sequence, memory, initial_state=None, *, return_attention_scores=False, **kwargs):
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
        }

    @classmethod
    def from_config(cls, config):
        attention = config.get("attention")
        if attention is not None:
            attention = keras.saving.deserialize_keras_object(attention)
        return cls(**{**config, "attention": attention})


class _Loop:
    """The cell that keras.layers.RNN steps; `prepared` is set by the decoder for the length of one call.

    Its one state is [state; context], which is its output, too: where a mask holds a step, Keras gives the first
    state for the output, and on JAX the two must have one width.
    """

    def __init__(self, decoder, memory_width):
        self.decoder = decoder
        self.state_size = decoder.units + memory_width
        self.compute_dtype = decoder.compute_dtype
        self.prepared = None

    def __call__(self, inputs, states):
        state = states[0][:, : self.decoder.units]
        context, _ = self.decoder._attend(state, self.prepared)
        state = self.decoder._recur(inputs, state, context)
        output = ops.concatenate([state, context], axis=-1)
        return output, [output]

    call = __call__
