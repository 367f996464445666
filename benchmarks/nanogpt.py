"""Training a small GPT: this project's language model beside nanoGPT's configuration for a CPU, in PyTorch.

    python benchmarks/nanogpt.py [--steps 50] [--repeats 5] [--batch 12] [--block 64]

4 layers, 4 heads, D 128, dropout 0, learned positions, tied embeddings, AdamW, a vocabulary of 65; the model in PyTorch
is written here after the papers (Radford et al. 2019), without biases, with its fused attention, run eagerly and, where
a compiler is found, under torch.compile. Each has a process of its own, in turns; PyTorch's keeps its memory (glibc's
mmap threshold off), which made it faster. Milliseconds a step, medians.
"""

import argparse
import json
import os
import subprocess
import sys
import time

KINDS = ("ours", "torch", "torch.compile")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    workers = {kind: start(kind) for kind in KINDS}
    seconds = {kind: [] for kind in KINDS}
    for _ in range(options.repeats):
        for kind, worker in workers.items():
            if worker.poll() is None:
                worker.stdin.write("go\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                seconds[kind] += [json.loads(line)] if line else []
    for kind, values in seconds.items():
        if workers[kind].poll() is None:
            workers[kind].communicate("")
        if not values:
            print(f"{kind:14} not measured: it is not installed, or failed")
            continue
        median = sorted(values)[len(values) // 2]
        tokens = options.batch * options.block / median
        print(f"{kind:14} {median * 1000:8.1f} ms a step {tokens:10,.0f} tokens a second")


def start(kind):
    kept = {} if kind == "ours" else {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, **pipes, env={**os.environ, **kept})


def work(options):
    step = (our_step if options.worker == "ours" else torch_step)(options)
    for _ in range(3):
        step()
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(options.steps):
            step()
        print(json.dumps((time.perf_counter() - began) / options.steps), flush=True)


def batches(options):
    import numpy as np

    ids = np.random.default_rng(0).integers(1, 65, (options.batch, options.block + 1)).astype("int32")
    return ids[:, :-1], ids[:, 1:]


def our_step(options):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    from keras_attention.models import LanguageModel
    from keras_attention.training.losses import MaskedCrossEntropy

    model = LanguageModel.preset("micro", 65, max_length=options.block, dropout=0.0, use_bias=False)
    model.compile(
        keras.optimizers.Adam(1e-3, beta_2=0.99, weight_decay=0.1, global_clipnorm=1.0),
        MaskedCrossEntropy(),
        jit_compile=False,
    )
    x, y = batches(options)
    return lambda: model.train_on_batch({"target": x}, y)


def torch_step(options):
    import torch
    from torch import nn

    width, heads, layers, vocabulary = 128, 4, 4, 65

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
            self.projected = nn.Linear(width, 3 * width, bias=False)
            self.output = nn.Linear(width, width, bias=False)
            self.network = nn.Sequential(
                nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
            )

        def forward(self, x):
            batch, length, _ = x.shape
            parts = (
                self.projected(self.norms[0](x)).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            )
            context = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + self.output(context.transpose(1, 2).reshape(batch, length, width))
            return x + self.network(self.norms[1](x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(options.block, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width, bias=False)

        def forward(self, ids):
            x = self.embedding(ids) + self.position.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.embedding.weight.T

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    forward = torch.compile(model) if options.worker == "torch.compile" else model
    x, y = (torch.tensor(array).long() for array in batches(options))

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(forward(x).view(-1, vocabulary), y.reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
