"""What a token costs while a language model writes: at the begin and at the end of 1,000 tokens, and in long calls.

    python benchmarks/generation.py [--tokens 1000] [--batch 1] [--repeats 3]

A model of 4 layers, 4 heads, D 128 with rotary positions writes behind a prompt of 16, greedily. First streamed, one
timed step after the other in buffers of --tokens: the mean of each hundred. Then in one call, plain and compiled:
its time divided by the tokens it wrote. A step reads the caches as long as they are allocated, so that only a longer
call can make a token dearer; their size stands beside the times (a compiled search begins with buffers of half of it).
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

    model = LanguageModel(69, width=128, num_heads=4, layers=4, position="rotary", max_length=None)
    table = model.embedding.embeddings.numpy()
    table[END] = 0  # END is never the most probable
    model.embedding.embeddings.assign(table)
    pipeline = Pipeline(model, max_length=options.tokens, max_source_length=16)
    prompt = np.arange(4, 20)

    runs = [np.diff([time.perf_counter(), *_times(pipeline, prompt)]) for _ in range(options.repeats + 1)][1:]
    each = np.median(runs, axis=0) * 1000
    print("streamed, ms a token:")
    for start in sorted({0, options.tokens // 2, options.tokens - 100}):
        part = each[max(start, 10) : start + 100]  # the first ones wait for the prompt
        print(f"{f'{start}-{start + 100}':>18} {part.mean():11.3f}")

    print(f"{'in one call':>18} {'ms a token':>11} {'MB of caches':>13}")
    rows = [prompt] * options.batch
    for compiled in (False, True):
        for length in (options.tokens // 10, options.tokens // 2, options.tokens):
            times = []
            for _ in range(options.repeats + 1):
                began = time.perf_counter()
                results = pipeline(rows, beam_width=1, max_length=length, jit_compile=compiled)
                times.append((time.perf_counter() - began) / length)
            assert all(len(result.target_ids) == length for result in results)
            size = options.batch * length * 4 * 128 * 2 * 4 / 1e6
            what = f"{'XLA' if compiled else 'plain'}, {length:,}"
            print(f"{what:>18} {sorted(times[1:])[len(times[1:]) // 2] * 1000:11.3f} {size:13.2f}")


def _times(pipeline, prompt):
    """When each token was there."""
    return [time.perf_counter() for _ in pipeline.stream(prompt.tolist())]


if __name__ == "__main__":
    main()
