"""The block-wise loss beside the plain one: time, peak memory and numbers of loss and gradients.

    python benchmarks/blockwise_loss.py [--width 256] [--vocabularies 9700 32000] [--tokens 4096] [--repeats 5]

Plain are this project's `token_losses` on the whole logits (label smoothing 0.1) and
`keras.losses.SparseCategoricalCrossentropy` (which has no label smoothing for integer targets), each in a compiled
TensorFlow graph with its gradients by features, matrix and bias. Times are medians, measured in turns in one process;
memory is the peak of a process of its own minus that before its first step.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("plain", "keras", "blockwise")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="D, width of the features")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[9700, 32000])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.memory_of:
        print(peak_memory(options.memory_of, options))
        return
    print(f"{options.tokens:,} tokens, D = {options.width}, float32, label smoothing 0.1 (keras: none)")
    print(f"{'V':>7} {'loss':>10} {'ms':>7} {'ratio':>6} {'MB':>7} {'largest difference to plain':>28}")
    for vocabulary in options.vocabularies:
        times, differences = measure(vocabulary, options)
        for kind in KINDS:
            memory = ask_memory(kind, vocabulary, options)
            ratio = times[kind] / times["plain"]
            difference = f"{differences[kind]:.1e}" if kind in differences else ""
            print(f"{vocabulary:7,} {kind:>10} {times[kind] * 1000:7.0f} {ratio:6.2f} {memory:7.0f} {difference:>28}")


def steps(vocabulary, options):
    """Compiled functions, by name, from nothing to (loss, gradients); the inputs are constants of the process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_attention.training.losses import MaskedCrossEntropy, blockwise_cross_entropy

    generator = np.random.default_rng(0)
    rows = options.tokens // 32
    features = tf.constant(generator.normal(size=(rows, 32, options.width)).astype("float32"))
    matrix = tf.constant(0.05 * generator.normal(size=(vocabulary, options.width)).astype("float32"))
    bias = tf.zeros([vocabulary])
    labels = tf.constant(generator.integers(1, vocabulary, (rows, 32)).astype("int32"))
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    smoothed = MaskedCrossEntropy(0.1)

    def logits(features, matrix, bias):
        return keras.ops.matmul(features, keras.ops.transpose(matrix)) + bias

    losses = {
        "plain": lambda *x: smoothed(labels, logits(*x)),
        "keras": lambda *x: stock(labels, logits(*x)),
        "blockwise": lambda *x: blockwise_cross_entropy(*x, labels, label_smoothing=0.1)[0],
    }

    def step(loss):
        def function(*x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(*x)
            return value, tape.gradient(value, x)

        compiled = tf.function(function)
        return lambda: compiled(features, matrix, bias)

    return {name: step(loss) for name, loss in losses.items()}


def measure(vocabulary, options):
    """Median seconds by name, and the largest difference of loss and gradients to the plain loss."""
    import numpy as np

    functions = steps(vocabulary, options)
    results = {name: arrays(function()) for name, function in functions.items()}
    times = {name: [] for name in functions}
    for _ in range(options.repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            arrays(function())
            times[name].append(time.perf_counter() - began)
    pairs = zip(results["blockwise"], results["plain"], strict=True)
    difference = max(float(np.abs(one - two).max()) for one, two in pairs)
    return {name: float(np.median(values)) for name, values in times.items()}, {"blockwise": difference}


def arrays(result):
    value, gradients = result
    return [x.numpy() for x in (value, *gradients)]


def peak_memory(kind, options):
    """MB by which two steps raise this process's resident memory at their peak (Linux)."""
    (vocabulary,) = options.vocabularies
    function = steps(vocabulary, options)[kind]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    for _ in range(2):
        function()
    return (_status("VmHWM") - before) / 1024


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def ask_memory(kind, vocabulary, options):
    sizes = ["--vocabularies", vocabulary, "--width", options.width, "--tokens", options.tokens, "--memory-of", kind]
    command = [sys.executable, __file__, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
