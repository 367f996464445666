"""Where attention matters: exact match by the source's length, for runs of the recipe `reverse`.

    keras-attention train reverse --out runs/reverse-additive
    keras-attention train reverse --out runs/reverse-none --set model.attention=none
    python benchmarks/reverse_lengths.py runs/reverse-additive runs/reverse-none --picture reverse.png

The strings are of the task's split "test", which training never draws; each length has its own. Alignment is the share
of the answer's positions whose largest attention weight lies where the true symbol stands (for `reverse` on the
anti-diagonal), and, behind the stroke, there or one place beside it: the encoder reads both ways, and what it remembers
of a symbol stands in the neighbors' states, too.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from keras_attention.models import Pipeline
from keras_attention.training.plots import plot_scores_by_length, save_figure
from keras_attention.training.tasks import reverse

LENGTHS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 80, 100, 150, 200)


def measure(pipeline, options, lengths, count, seed):
    """A list of {length, pairs, exact_match, alignment, alignment_within_1}; the last two None without attention."""
    rows = []
    for length in lengths:
        here = {**options, "min_length": length, "max_length": length}
        sources, targets = reverse.pairs(count, seed=seed, split="test", **here)
        results = pipeline(sources, batch_size=100)
        right = [result.text == target for result, target in zip(results, targets, strict=True)]
        row = {"length": length, "pairs": count, "exact_match": float(np.mean(right))}
        rows.append({**row, **alignment(results, length, options["operation"])})
    return rows


def alignment(results, length, operation):
    """The shares of positions whose largest weight lies on the true symbol, and at most one place beside it."""
    shares = {"alignment": None, "alignment_within_1": None}
    if operation == "sort" or results[0].attention is None:
        return shares
    distances = []
    for result in results:
        positions = np.arange(min(length, len(result.attention)))
        true = positions if operation == "copy" else length - 1 - positions
        distances.append(np.abs(result.attention[: len(positions)].argmax(axis=1) - true))
    distances = np.concatenate(distances)
    if distances.size:
        shares = {name: float(np.mean(distances <= most)) for most, name in enumerate(shares)}
    return shares


def read_runs(folders):
    """{label: (folder, options of the task)}; a label is the run's attention, or its folder where two have the same."""
    recipes = {folder: json.loads((Path(folder) / "recipe.json").read_text(encoding="utf-8")) for folder in folders}
    for folder, recipe in recipes.items():
        if recipe["data"]["task"] != "reverse":
            raise SystemExit(f"{folder} was trained by the recipe {recipe['name']}: expected the task reverse.")
    labels = [str(recipe["model"]["attention"] or "none").lower() for recipe in recipes.values()]
    if len(set(labels)) < len(labels):
        labels = [Path(folder).name for folder in folders]
    return {label: (folder, recipes[folder]["task"]) for label, folder in zip(labels, folders, strict=True)}


def table(report):
    """The report as a Markdown table: a line for each length, a column or two for each run."""
    aligned = [label for label, rows in report.items() if any(row["alignment"] is not None for row in rows)]
    heads = ["length", *report, *(f"{label}: alignment" for label in aligned)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for rows in zip(*report.values(), strict=True):
        found = dict(zip(report, rows, strict=True))
        cells = [str(rows[0]["length"]), *(f"{row['exact_match']:.3f}" for row in rows)]
        for label in aligned:
            shares = [found[label][name] for name in ("alignment", "alignment_within_1")]
            cells.append("-" if shares[0] is None else " / ".join(f"{share:.3f}" for share in shares))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(report, trained):
    """The figure of all runs; `trained` are the least and the greatest length of training."""
    curves = {}
    for label, rows in report.items():
        curves[label] = [
            {"low": r["length"], "high": r["length"], "pairs": r["pairs"], "score": r["exact_match"]} for r in rows
        ]
    title = f"Reversing a string, trained at lengths {trained[0]} to {trained[1]}"
    return plot_scores_by_length(curves, "exact_match", title, unit="symbols")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--picture", metavar="OUT.png")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--count", type=int, default=200, help="strings of each length")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", metavar="OUT.json")
    arguments = parser.parse_args(arguments)
    report = {}
    for label, (folder, options) in read_runs(arguments.runs).items():
        report[label] = measure(Pipeline.load(folder), options, arguments.lengths, arguments.count, arguments.seed)
        print(f"{label}: done", flush=True)
    print(table(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    if arguments.picture:
        save_figure(picture(report, (options["min_length"], options["max_length"])), arguments.picture)


if __name__ == "__main__":
    main()
