"""A model that is not ours: our layers and the three verbs are all that fit, beam search and export ask for."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python
from keras import ops

from keras_attention import AdditiveAttention
from keras_attention.models import Pipeline, beam_search
from keras_attention.models.tokenizers import END, START


class Copier(keras.Model):
    """Writes what it attends to; the place of the next token is all that it asks with."""

    def __init__(self, vocabulary, width=32, longest=16):
        super().__init__()
        self.tokens = keras.layers.Embedding(vocabulary, width)
        self.places = keras.layers.Embedding(longest, width)
        self.attention = AdditiveAttention(width)
        self.out = keras.layers.Dense(vocabulary)

    def call(self, x):
        memory = self.encode(x)
        query = self.tokens(x["target"]) + self.places(ops.arange(ops.shape(x["target"])[1]))
        return self.answer(query, memory)[0]

    def answer(self, query, memory):
        mask = memory["mask"][:, None, :]
        context, weights = self.attention.attend(query, memory["value"], memory["keys"], mask)
        return self.out(context), weights

    def encode(self, x):
        value = self.tokens(x["source"]) + self.places(ops.arange(ops.shape(x["source"])[1]))
        if not self.attention.built:
            self.attention.build(value.shape, value.shape)
        return {"value": value, "keys": self.attention.project_key(value), "mask": x["source"] != 0}

    def initial_state(self, memory, max_length=None, beam_width=1):
        return ops.full((ops.shape(memory["mask"])[0] * beam_width,), START, dtype="int32"), {}

    def step(self, tokens, position, memory, state):
        query = self.tokens(tokens) + self.places(position)
        query = ops.reshape(query, (ops.shape(memory["mask"])[0], -1, query.shape[-1]))  # [B, W, D]
        logits, weights = self.answer(query, memory)
        return ops.reshape(logits, (-1, logits.shape[-1])), state, ops.reshape(weights, (-1, ops.shape(weights)[-1]))


def data(count):
    generator = np.random.default_rng(0)
    source, target, y = (np.zeros((count, 7), "int32") for _ in range(3))
    for row, length in enumerate(generator.integers(2, 7, count)):
        tokens = generator.integers(4, 11, length)
        source[row, : length + 1] = y[row, : length + 1] = [*tokens, END]
        target[row, : length + 1] = [START, *tokens]
    return {"source": source, "target": target}, y


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(1)
    model = Copier(11)
    x, y = data(2000)
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    )
    model.fit(x, y, batch_size=64, epochs=8, verbose=0)
    return model


def test_it_is_beam_searched(trained):
    source = np.array([[5, 6, 7, END, 0], [10, 4, END, 0, 0]])
    result = beam_search(trained, trained.encode({"source": source}), 7, beam_width=3, num_return=3)
    assert result.ids.numpy()[:, 0].tolist() == [[5, 6, 7, 0, 0, 0, 0], [10, 4, 0, 0, 0, 0, 0]]
    # It reads piece t where it stands.
    assert result.attention.numpy()[0, 0, :3].argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.long
def test_it_is_piped_and_exported(trained, tmp_path):
    pipeline = Pipeline(trained, max_length=7, beam_width=3)
    rows = [[5, 6, 7, END], [10, 4, END], []]
    assert [result.target_ids for result in pipeline(rows)] == [[5, 6, 7], [10, 4], []]
    path = pipeline.export(tmp_path)
    tokens = [[5, 6, 7, END], [10, 4, END, 0]]
    code = (
        "import sys, json, tensorflow as tf\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "for name in ('serving_default', 'serving_xla'):\n"
        "    print(loaded.signatures[name](tokens=tf.constant(json.loads(sys.argv[2])))['target_ids'].numpy().tolist())"
    )
    assert run_python(code, path, tokens).splitlines() == ["[[5, 6, 7], [10, 4, 0]]"] * 2
    assert tf.saved_model.load(str(path)).signatures["serving_default"] is not None
