"""The translations of a trained Transformer beside those of CTranslate2 with the same weights.

    python benchmarks/ctranslate2_texts.py RUN SOURCE [--beam 5]

RUN is a run's folder, SOURCE a file of one text a line. Prints the share of texts that are equal, some that are not
(with both scores), all in float32, and the seconds of both decodes (ours as a plain graph and compiled by XLA, the
second call).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from ctranslate2_model import SUPPRESSED, piece, to_ctranslate2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("source")
    parser.add_argument("--beam", type=int, default=5)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import numpy as np

    from keras_attention.models import Pipeline

    pipeline = in_float32(Pipeline.load(options.run))
    texts = Path(options.source).read_text(encoding="utf-8").splitlines()
    limits = pipeline.options
    ids = [row.numpy().tolist() for row in pipeline.source_tokenizer.tokenize(texts)]
    with tempfile.TemporaryDirectory() as folder:
        translator = to_ctranslate2(pipeline.model, Path(folder) / "model", inter_threads=1, intra_threads=2)
        began = time.perf_counter()
        theirs = []
        for row in ids:  # one by one: the greatest length follows from each source
            steps = min(int(np.ceil(limits.length_ratio * len(row))) + limits.length_offset, limits.max_length)
            theirs += translator.translate_batch(
                [[piece(token) for token in row]],
                beam_size=options.beam,
                length_penalty=limits.length_penalty,
                max_decoding_length=steps,
                min_decoding_length=0,
                return_scores=True,
                suppress_sequences=SUPPRESSED,
            )
        print(f"CTranslate2, one by one: {time.perf_counter() - began:.1f} s")
    for compiled in (False, True):
        for _ in range(2):
            began = time.perf_counter()
            ours = pipeline(texts, beam_width=options.beam, jit_compile=compiled)
            seconds = time.perf_counter() - began
        print(f"ours, {'XLA' if compiled else 'a plain graph'}, batches of 32: {seconds:.1f} s")
    numbers = {piece(number): number for number in range(pipeline.model.target_vocabulary)}
    found = [[numbers[token] for token in each.hypotheses[0]] for each in theirs]
    written = pipeline.target_tokenizer.detokenize(
        np.array([row + [0] * (max(map(len, found)) - len(row)) for row in found], "int32")
    ).numpy()
    other = [text.decode() for text in written]
    differ = [row for row, (one, two) in enumerate(zip(ours, other, strict=True)) if one.text != two]
    for row in differ[:10]:
        print(f"  {ours[row].text!r} ({ours[row].score:.4f})\n  {other[row]!r} ({theirs[row].scores[0]:.4f})")
    print(f"{len(texts) - len(differ)} of {len(texts)} texts are equal: {1 - len(differ) / len(texts):.4f}")


def in_float32(pipeline):
    """The pipeline of the same weights, computing in float32 whatever it was trained in."""
    model = type(pipeline.model).from_config({**pipeline.model.get_config(), "dtype": "float32"})
    model.set_weights(pipeline.model.get_weights())
    return type(pipeline)(model, pipeline.source_tokenizer, pipeline.target_tokenizer, **vars(pipeline.options))


if __name__ == "__main__":
    main()
