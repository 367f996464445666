"""Training a Transformer: this project's model and loss beside the same architecture from keras.layers.

    python benchmarks/training.py [--vocabulary 8000] [--batch 128] [--length 32] [--dropout 0.3] [--steps 5]

Transformer-Tiny (4 + 4 layers, D 128, 4 heads, 256 feed-forward units, one matrix for both embeddings and the output),
Adam, the same batches for all, in turns in one process: medians of --repeats turns of --steps steps, on TensorFlow
without XLA, keras.layers' fastest setting on a CPU; the last column compares with the faster one of its two dtypes.
Keras has no label smoothing for integer targets, ours smooths by 0.1. mixed_bfloat16 gains where the processor
multiplies in bfloat16 (lscpu: avx512_bf16, amx_bf16).
"""

import argparse
import os
import time

DTYPES = ("float32", "mixed_bfloat16")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    runs = {(kind, dtype): trainer(kind, dtype, options) for dtype in DTYPES for kind in ("keras.layers", "ours")}
    seconds = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(options.steps):
                run()
            seconds[name].append((time.perf_counter() - began) / options.steps)
    tokens = options.batch * options.length
    print(f"V = {options.vocabulary:,}, {options.batch} x {options.length} tokens, dropout {options.dropout}")
    print(f"{'':>14} {'':>13} {'ms a step':>10} {'target tokens/s':>16} {'x keras.layers':>15} {'x its fastest':>14}")
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    fastest = min(median["keras.layers", dtype] for dtype in DTYPES)
    for (kind, dtype), value in median.items():
        ratios = f"{median['keras.layers', dtype] / value:15.2f} {fastest / value:14.2f}"
        print(f"{dtype:>14} {kind:>13} {value * 1000:10.0f} {tokens / value:16,.0f} {ratios}")


def trainer(kind, dtype, options):
    """A function that trains one step on the same batch."""
    import keras
    import numpy as np

    from keras_attention.models import Transformer
    from keras_attention.training.losses import MaskedCrossEntropy

    generator = np.random.default_rng(0)
    shape = options.batch, options.length
    source, target, y = (generator.integers(4, options.vocabulary, shape).astype("int32") for _ in range(3))
    if kind == "ours":
        sizes = {"share_embeddings": True, "dropout": options.dropout, "dtype": dtype}
        model = Transformer.tiny(options.vocabulary, options.vocabulary, **sizes)
        loss = MaskedCrossEntropy(label_smoothing=0.1)
    else:
        model = keras_model(options.vocabulary, options.dropout, dtype)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.Adam(0.001, beta_2=0.98), loss, jit_compile=False)
    x = {"source": source, "target": target}
    for _ in range(2):
        model.train_on_batch(x, y)
    return lambda: model.train_on_batch(x, y)


def keras_model(vocabulary, dropout, dtype, width=128, heads=4, units=256, depth=4):
    """Vaswani et al. 2017 from stock layers, post-norm, with their masks."""
    import keras
    from keras import layers, ops

    keras.config.set_dtype_policy(dtype)
    shared = layers.Embedding(vocabulary, width, mask_zero=True)
    shared.build((None, None))
    places = np_positions(512, width)

    class Embedded(layers.Layer):
        """Has the shared embedding as a layer of its own, so that it is trained."""

        def __init__(self):
            super().__init__()
            self.embedding = shared

    class Embed(Embedded):
        def call(self, ids):
            x = self.embedding(ids) * width**0.5
            return x + ops.cast(ops.convert_to_tensor(places)[: ops.shape(ids)[1]], x.dtype)

        def compute_output_shape(self, shape):
            return (*shape, width)

    class Output(Embedded):
        def call(self, x):
            return ops.matmul(x, ops.cast(ops.transpose(self.embedding.embeddings), x.dtype))

    def residual(x, change):
        return layers.LayerNormalization(epsilon=1e-6)(x + layers.Dropout(dropout)(change))

    def attend(x, memory, mask, **options):
        attention = layers.MultiHeadAttention(heads, width // heads)
        return residual(x, attention(x, memory, attention_mask=mask, **options))

    def feed_forward(x):
        return residual(x, layers.Dense(width)(layers.Dense(units, activation="relu")(x)))

    source, target = (
        keras.Input((None,), dtype="int32", name="source"),
        keras.Input((None,), dtype="int32", name="target"),
    )
    keys, past = (source != 0)[:, None, :], (target != 0)[:, None, :]
    states, x = (layers.Dropout(dropout)(Embed()(ids)) for ids in (source, target))
    for _ in range(depth):
        states = feed_forward(attend(states, states, keys))
    for _ in range(depth):
        x = attend(x, x, past, use_causal_mask=True)
        x = feed_forward(attend(x, states, keys))
    model = keras.Model({"source": source, "target": target}, Output()(x))
    keras.config.set_dtype_policy("float32")
    return model


def np_positions(length, width):
    import numpy as np

    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width).astype("float32")


if __name__ == "__main__":
    main()
