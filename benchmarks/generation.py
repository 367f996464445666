"""What a token costs while a language model writes: the first ones beside the last ones.

    python benchmarks/generation.py [--tokens 1000] [--batch 1] [--repeats 3]

A model of 4 layers, 4 heads, D 128 with rotary positions writes --tokens tokens behind a prompt of 16, greedily, in one
call, plain and compiled by XLA. The time of a token at place t is the difference of calls that write t and t + 100,
divided by 100. A step reads the whole buffer of its caches, whose length is the number of tokens: what grows is the
buffer with --tokens, not the cost of a step within a call. Beside each stands the size of the caches.
"""

import argparse
import os
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
    import numpy as np

    from keras_attention.models import LanguageModel, Pipeline
    from keras_attention.models.tokenizers import END

    model = LanguageModel(69, width=128, num_heads=4, layers=4, position="rotary")
    table = model.embedding.embeddings.numpy()
    table[END] = 0  # END is never the most probable
    model.embedding.embeddings.assign(table)
    pipeline = Pipeline(model, max_length=options.tokens, max_source_length=16)
    rows = [np.arange(4, 20)] * options.batch
    places = [t for t in (100, 200, 500, 600, options.tokens - 100, options.tokens) if t <= options.tokens]
    print(f"{'':>8} {'tokens':>12} {'ms a token':>11} {'MB of caches':>13}")
    for compiled in (False, True):
        seconds = {}
        for length in sorted(set(places)):
            times = []
            for _ in range(options.repeats + 1):
                began = time.perf_counter()
                results = pipeline(rows, beam_width=1, max_length=length, jit_compile=compiled)
                times.append(time.perf_counter() - began)
            assert all(len(result.target_ids) == length for result in results)
            seconds[length] = sorted(times[1:])[len(times[1:]) // 2]
        for first, last in zip(places[::2], places[1::2], strict=True):
            each = (seconds[last] - seconds[first]) / (last - first)
            size = options.batch * last * 4 * 128 * 2 * 4 / 1e6
            print(f"{'XLA' if compiled else 'plain':>8} {f'{first}-{last}':>12} {each * 1000:11.3f} {size:13.2f}")


if __name__ == "__main__":
    main()
