"""Self-attention of long sequences: time and peak memory of ours, Keras's and PyTorch's multi-head attention.

    python benchmarks/attention.py [--lengths 128 ... 16384] [--repeats 5] [--memory-limit 8]

B 1, H 1, K 64, float32, without masks; forward, and forward with the gradients of inputs and weights. Ours and Keras's
are compiled TensorFlow graphs, PyTorch's is torch.nn.MultiheadAttention, eager (left out where torch is not installed).
Times are medians, measured in turns. Memory is the peak of a process of its own minus what it held after the layer was
built and, so that TensorFlow's kernels are loaded, called on two tokens. A process that asks for more than
--memory-limit GB ends, and its row shows "-" and, in parentheses, the MB of one [T, T] matrix, which are computed.
Linux only.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("ours", "keras", "torch")
KEY_DIM = 64
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-limit", type=float, default=8.0, help="GB for each process")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.worker:
        work(*options.worker, options)
        return
    kinds = [kind for kind in KINDS if kind != "torch" or has_torch()]
    print(f"{'T':>6} {'':>13} {'layer':>6} {'ms':>9} {'/ keras':>8} {'MB':>8} {'keras / it':>11}")
    for length in options.lengths:
        for task in ("forward", "gradients"):
            show(length, task, measure(kinds, length, task, options))


def has_torch():
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def show(length, task, results):
    """One line for each layer."""
    for kind, (seconds, memory) in results.items():
        times, peak = results["keras"]
        ratio = f"{seconds / times:8.2f}" if seconds and times else f"{'-':>8}"
        less = f"{peak / memory:11.1f}" if peak and memory else f"{'-':>11}"
        first = f"{seconds * 1000:9.2f}" if seconds else f"{'-':>9}"
        size = f"{memory:8.1f}" if memory else f"{f'({length * length * 4 / 1e6:.0f})':>8}"
        print(f"{length:6,} {task:>13} {kind:>6} {first} {ratio} {size} {less}", flush=True)


def measure(kinds, length, task, options):
    """{kind: (median seconds, MB)}, None for what did not fit."""
    memory = {kind: peak_memory(kind, length, task, options) for kind in kinds}
    workers = {kind: start(kind, length, task, options) for kind in kinds if memory[kind] is not None}
    times = {kind: [] for kind in workers}
    for _ in range(options.repeats):
        for kind, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            times[kind].append(float(worker.stdout.readline() or "nan"))
    for worker in workers.values():
        worker.communicate("end\n")
    return {
        kind: (sorted(times[kind])[len(times[kind]) // 2] if kind in times else None, memory[kind]) for kind in kinds
    }


def start(kind, length, task, options):
    # With this PyTorch's large buffers come 8 times faster.
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"} if kind == "torch" else {}
    command = [sys.executable, __file__, "--worker", kind, task, "--lengths", str(length)]
    command += ["--memory-limit", str(options.memory_limit)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    pipes["env"] = {**os.environ, **kept}
    return subprocess.Popen(command, **pipes)


def peak_memory(kind, length, task, options):
    """MB by which two calls raise the peak of a process of its own; None where they do not fit."""
    worker = start(kind, length, task, options)
    answer, _ = worker.communicate("memory\nend\n")
    return float(answer.split()[-1]) if worker.returncode == 0 and answer.split() else None


def work(kind, task, options):
    """A process that answers "go" with the seconds of some calls, and "memory" with the MB of its first two."""
    call = {"torch": torch_call}.get(kind, keras_call)(kind, task, options.lengths[0])
    limit = int(options.memory_limit * 1e9) + status("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    count = None
    for line in sys.stdin:
        if line.strip() == "end":
            return
        if line.strip() == "memory":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = status("VmRSS")
            call(), call()
            print((status("VmHWM") - before) / 1024, flush=True)
            continue
        if count is None:
            call()
            began = time.perf_counter()
            call()
            count = max(1, int(0.1 / (time.perf_counter() - began)))  # a tenth of a second at least
        began = time.perf_counter()
        for _ in range(count):
            call()
        print((time.perf_counter() - began) / count, flush=True)


def keras_call(kind, task, length):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_attention

    x = tf.constant(np.random.default_rng(0).normal(size=(1, length, KEY_DIM)).astype("float32"))

    def compiled(x, **options):
        layers = {"ours": keras_attention.MultiHeadAttention, "keras": keras.layers.MultiHeadAttention}
        layer = layers[kind](num_heads=1, key_dim=KEY_DIM, **options)
        layer.build(x.shape, x.shape)
        weights = [weight.value for weight in layer.trainable_weights]

        def gradients(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.square(layer(x, x)))
            return tape.gradient(loss, [x, *weights])

        function = tf.function(gradients if task == "gradients" else lambda x: layer(x, x))
        function.get_concrete_function(x)
        return lambda: tf.nest.map_structure(lambda result: result.numpy(), function(x))

    compiled(x[:, :2], **({"flash_attention": True} if kind == "ours" else {}))()
    return compiled(x)


def torch_call(kind, task, length):
    import torch

    layer = torch.nn.MultiheadAttention(KEY_DIM, 1, batch_first=True)
    x = torch.randn(1, length, KEY_DIM)

    def forward(x):
        with torch.no_grad():
            return layer(x, x, x, need_weights=False)[0]

    def gradients(x):
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        layer(inputs, inputs, inputs, need_weights=False)[0].square().sum().backward()

    (forward if task == "forward" else gradients)(x[:, :2])
    return lambda: (forward if task == "forward" else gradients)(x)


def status(name):
    """A line of this process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
