"""BLEU and chrF of an exported model's answers, asked in this process, which knows TensorFlow and its text ops alone.

    python benchmarks/served_bleu.py EXPORT SOURCE TARGET [--signature serving_default] [--tokenize 13a]

EXPORT is a version's folder, such as served/1; SOURCE and TARGET are two aligned files.
"""

import argparse
import sys
import time
from pathlib import Path

import sacrebleu
import tensorflow as tf
import tensorflow_text  # noqa: F401


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--tokenize", default="13a")
    options = parser.parse_args()
    sources, targets = (Path(path).read_text("utf-8").splitlines() for path in (options.source, options.target))
    answer = tf.saved_model.load(options.export).signatures[options.signature]
    began, texts = time.perf_counter(), []
    for start in range(0, len(sources), 32):
        texts += [text.decode() for text in answer(text=tf.constant(sources[start : start + 32]))["text"].numpy()]
    seconds = time.perf_counter() - began
    assert not any(name.startswith("keras_attention") for name in sys.modules)
    bleu, chrf = sacrebleu.BLEU(tokenize=options.tokenize), sacrebleu.CHRF()
    for metric in (bleu, chrf):
        print(metric.corpus_score(texts, [targets]), "|", metric.get_signature())
    print(f"{len(texts)} texts in {seconds:.1f} s")


if __name__ == "__main__":
    main()
