"""How good a captioner of the task `scenes` is, and whether it looks at what it names.

    python benchmarks/scenes_pointing.py RUN [--count 2000] [--split test]

Exact match of the captions, and pointing accuracy: of the words for objects (colour and shape), the share whose largest
attention weight lies on a cell whose middle is inside of the object's box. The generator knows the boxes; val and test
hold combinations that training never shows. Only the words of right captions count.
"""

import argparse
import collections
import json

from keras_attention.models import Pipeline
from keras_attention.training.cli import find_run
from keras_attention.training.tasks import scenes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder (with a path separator), or a pretrained model's name")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    pipeline = Pipeline.load(find_run(options.run))
    drawn = scenes.draw(options.count, options.seed, split=options.split, image_size=pipeline.model.image_size[0])
    results = pipeline([scene.image for scene in drawn], batch_size=128)
    right = [result.text == scene.caption for scene, result in zip(drawn, results, strict=True)]
    report = {"split": options.split, "count": options.count, "exact_match": round(sum(right) / len(right), 4)}
    if results[0].attention_map is not None:
        hits = pointing(drawn, results, right)
        total = [sum(pair) for pair in zip(*hits.values(), strict=True)]
        report["pointing"] = round(total[0] / total[1], 4)
        report["by_kind"] = {kind: round(hit / words, 4) for kind, (hit, words) in hits.items()}
    print(json.dumps(report, indent=1))


def pointing(drawn, results, right):
    """{kind of word: [hits, words]} over the captions that are right."""
    hits = collections.defaultdict(lambda: [0, 0])
    for scene, result, correct in zip(drawn, results, right, strict=True):
        if correct:
            for kind, thing, weights in _words(scene, result):
                hits[kind][0] += _inside(thing.box, weights)
                hits[kind][1] += 1
    return hits


def _words(scene, result):
    """(kind, object, weights [h, w]) of each word for an object: colour and shape stand behind each "a SIZE"."""
    words = scene.caption.split()
    places = [i for i, word in enumerate(words) if word in scenes.RADII]
    for thing, place in zip(scene.objects, places, strict=True):
        yield f"{thing.size} colour", thing, result.attention_map[place + 1]
        yield f"{thing.size} shape", thing, result.attention_map[place + 2]


def _inside(box, weights):
    """Whether the middle of the cell with the greatest weight lies in the box (shares of width and height)."""
    height, width = weights.shape
    row, column = divmod(int(weights.argmax()), width)
    x, y = (column + 0.5) / width, (row + 0.5) / height
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


if __name__ == "__main__":
    main()
