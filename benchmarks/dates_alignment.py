"""How good and how real is a model of the task `dates`: exact match and alignment, locale by locale.

    python benchmarks/dates_alignment.py dates            (a pretrained model, or ./RUN)
    python benchmarks/dates_alignment.py dates --third-party DIR

The alignment figure: of the output's year, month and day characters, the share whose largest attention weight lies
inside the span of the source that names that part. The generator knows the spans. With --third-party the exact match
on DIR/dev.tsv, its numeric forms with the prefix `en_US: `.
"""

import argparse
import collections
import json
from pathlib import Path

from keras_attention.models import Pipeline
from keras_attention.training.cli import find_run
from keras_attention.training.datasets import read_tsv
from keras_attention.training.tasks import dates


def by_locale(pipeline, count, split, seed):
    """{locale: [examples, exact matches, characters, characters aligned]} on a draw of the split."""
    examples = dates.draw(count, seed=seed, split=split)
    results = pipeline([example.source for example in examples], batch_size=256)
    table = collections.defaultdict(lambda: [0, 0, 0, 0])
    for example, result in zip(examples, results, strict=True):
        row = table[example.locale]
        row[0] += 1
        row[1] += result.text == example.target
        for part, (start, stop) in dates.PART_OF_TARGET.items():
            first, last = example.spans[part]
            for weights in result.attention[start:stop]:
                row[2] += 1
                row[3] += first <= _character(result.source_pieces, weights.argmax()) < last
    return table


def _character(pieces, place):
    """The code point that a piece begins at: an unknown character is several byte pieces."""
    if all(not piece.startswith("<0x") for piece in pieces):
        return place
    starts, position = [], -1
    for piece in pieces:
        if piece.startswith("<0x"):
            value = int(piece[3:5], 16)
            position += not 0x80 <= value < 0xC0
        else:
            position += 1
        starts.append(position)
    return starts[place]


def third_party(pipeline, folder):
    """(exact matches, examples, the wrong ones) on DIR/dev.tsv."""
    pairs = read_tsv(Path(folder) / "dev.tsv")
    texts = [text if any(c.isalpha() for c in text) else f"en_US: {text}" for text in pairs.sources]
    results = pipeline(texts, batch_size=256)
    rows = zip(texts, results, pairs.targets, strict=True)
    wrong = [(text, result.text, target) for text, result, target in rows if result.text != target]
    return len(pairs) - len(wrong), len(pairs), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=25000)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--third-party", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    pipeline = Pipeline.load(find_run(arguments.model))
    table = by_locale(pipeline, arguments.count, arguments.split, arguments.seed)
    rows = {name: {"examples": n, "exact_match": e / n, "alignment": a / c} for name, (n, e, c, a) in table.items()}
    sums = [sum(column) for column in zip(*table.values(), strict=True)]
    report = {
        "split": arguments.split,
        "examples": sums[0],
        "exact_match": sums[1] / sums[0],
        "alignment": sums[3] / sums[2],
        "locales": dict(sorted(rows.items())),
    }
    if arguments.third_party:
        right, count, wrong = third_party(pipeline, arguments.third_party)
        report["third_party"] = {"examples": count, "exact_match": right / count, "wrong": wrong[:20]}
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return
    print("| locale | examples | exact match | alignment |\n|---|---|---|---|")
    for name, row in report["locales"].items():
        print(f"| {name} | {row['examples']} | {row['exact_match']:.4f} | {row['alignment']:.4f} |")
    print(f"| all | {report['examples']} | {report['exact_match']:.4f} | {report['alignment']:.4f} |")
    if arguments.third_party:
        print(f"third-party dev.tsv: {right} of {count}, exact match {right / count:.4f}")
        for text, got, expected in wrong:
            print(f"  {text} -> {got}, expected {expected}")


if __name__ == "__main__":
    main()
