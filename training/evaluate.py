"""Scores of trained models on two aligned files, one TSV, images with captions, or one text."""

import json
import time
from pathlib import Path

import numpy as np

from .batching import Batches
from .caption_scores import caption_scores
from .captions import find_unreadable, read_captions
from .datasets import read_parallel, read_tsv, tokenize_lines, tokenize_pairs
from .errors import InputError
from .metrics import Perplexity, TokenAccuracy
from .scores import check_metric, check_tokenizer, scores_by_length, source_lengths, text_scores
from .texts import all_windows, read_text, tokenize_text, unknown_characters

CHUNK = 512  # texts decoded between two signs of progress


def evaluate(
    pipeline,
    source,
    target=None,
    beam_width=None,
    batch_size=64,
    progress=iter,
    tokenize="13a",
    by_length=None,
    columns=(1, 2),
):
    """Decodes the sources and compares with the targets.

    Args:
        pipeline: a Pipeline of text.
        source, target: two aligned files; or one TSV as source, and None.
        beam_width: W, or None for the pipeline's own.
        batch_size: texts decoded together.
        progress: called with a list of pieces of work, gives them back one by one.
        tokenize: how BLEU finds words, see `text_scores`.
        by_length: "bleu", "chrf" or "exact_match": that metric by length of the source, too.
        columns: numbers of the source's and the target's column of a TSV, counted from 1.

    Returns:
        A dict: pairs; skipped, pairs with an empty side; exact_match, the share of texts that equal their target; bleu
        and chrf, from 0 to 100; token_accuracy and perplexity, given the true tokens before each; beam_width;
        seconds, of decoding; bleu_signature and chrf_signature. With by_length also by_length: a dict of its metric,
        the unit of lengths (`source_lengths`) and the buckets of `scores_by_length`.

    Raises:
        InputError: a file or an option is wrong, in one sentence.
    """
    pairs = _read(source, target, columns)
    _check_options(tokenize, by_length)
    _check_sources(pipeline, pairs, source)
    return _evaluate(pipeline, pairs, beam_width, batch_size, progress, tokenize, by_length)


def evaluate_captions(pipeline, folder, captions, beam_width=None, batch_size=64, progress=iter):
    """Captions the images of a folder and compares with what people wrote.

    Args:
        pipeline: a Pipeline of images.
        folder: where the images lie.
        captions: a file of captions, see `read_captions`.
        beam_width, batch_size, progress: see `evaluate`.

    Returns:
        A dict: images, captions; the scores of `caption_scores`; beam_width; seconds, of decoding; and, where captions
        were left out, a note.

    Raises:
        InputError: a file is wrong or an image cannot be read, in one sentence.
    """
    found = read_captions(captions)
    if wrong := find_unreadable(folder, found.images):
        first, why = next(iter(wrong.items()))
        raise InputError(
            f"{len(wrong)} of the {len(found.images)} images in {folder} cannot be used, first {first}: {why}"
        )
    paths = [Path(folder) / name for name in found.images]
    began = time.perf_counter()
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    answers = [r.text for chunk in progress(chunks) for r in pipeline(chunk, beam_width, batch_size=batch_size)]
    seconds = time.perf_counter() - began
    return {
        "images": len(paths),
        "captions": len(found.texts),
        **caption_scores(answers, found.of_images()),
        "beam_width": beam_width or pipeline.options.beam_width,
        "seconds": round(seconds, 2),
        **({"note": found.note} if found.note else {}),
    }


def evaluate_text(pipeline, path, window, progress=iter):
    """How well a language model predicts a text, each piece from those before it in its window.

    Args:
        pipeline: a Pipeline of a language model and its tokenizer.
        path: the text's file.
        window: pieces in a row; windows stand one behind the other, so that every piece but the first is predicted
            once.
        progress: as in `evaluate`.

    Returns:
        A dict: characters and tokens (pieces that are predicted) of the text; loss, in nats a piece;
        nats_per_character; perplexity and token_accuracy, of pieces; window; seconds.

    Raises:
        InputError: the file is wrong, in one sentence.
    """
    began, text = time.perf_counter(), read_text(path)
    ids = tokenize_text(text, pipeline.target_tokenizer)
    if unknown := unknown_characters(text, ids, pipeline.target_tokenizer):
        raise InputError(f"{path} has characters that the model's vocabulary lacks: {unknown}. Leave them out.")
    metrics = [TokenAccuracy(), Perplexity()]
    for x, y in progress(Batches(*all_windows(ids, window), token_budget=4096, bucket_width=1, shuffle=False)):
        logits = pipeline.model(x, training=False)
        for metric in metrics:
            metric.update_state(y, logits)
    scores = {metric.name: float(metric.result()) for metric in metrics}
    loss = float(np.log(scores["perplexity"]))
    return {
        "characters": len(text),
        "tokens": len(ids) - 1,
        "loss": loss,
        "nats_per_character": loss * (len(ids) - 1) / len(text),
        **scores,
        "window": window,
        "seconds": round(time.perf_counter() - began, 2),
    }


def window_of(pipeline, folder):
    """The window that a run's language model was trained on, or its context where no recipe tells."""
    context = pipeline.model.max_source_length
    window = _recipe_data(Path(folder)).get("window") or context or 256
    return window if context is None else min(window, context)


def compare(
    pipelines,
    source,
    target=None,
    beam_width=None,
    batch_size=64,
    progress=iter,
    tokenize="13a",
    by_length=None,
    columns=(1, 2),
):
    """Evaluates several pipelines on the same files; each must accept every source before the first one decodes.

    Args:
        pipelines: a dict from a name to a Pipeline of text.
        source, target, beam_width, batch_size, progress, tokenize, by_length, columns: see `evaluate`.

    Returns:
        A dict from each name to what `evaluate` returns; lengths and buckets are the same for all.

    Raises:
        InputError: a file or an option is wrong, in one sentence.
    """
    pairs = _read(source, target, columns)
    _check_options(tokenize, by_length)
    for name, pipeline in pipelines.items():
        _check_sources(pipeline, pairs, f"{name}, {source}")
    return {
        name: _evaluate(pipeline, pairs, beam_width, batch_size, progress, tokenize, by_length)
        for name, pipeline in pipelines.items()
    }


def bleu_tokenizer(folders):
    """How BLEU finds words in the texts of some runs: data.bleu_tokenize of their recipes, "13a" where it is not set.

    Args:
        folders: a dict from a run's name to its folder.

    Raises:
        InputError: the runs disagree, or a recipe.json is damaged.
    """
    return _agreed(folders, "bleu_tokenize", "13a", "count BLEU in different words", "choose by --tokenize") or "none"


def tsv_columns(folders):
    """Source and target column of a TSV for some runs: data.columns of their recipes, [1, 2] where it is not set.

    Args:
        folders: a dict from a run's name to its folder.

    Raises:
        InputError: the runs disagree, or a recipe.json is damaged.
    """
    return _agreed(folders, "columns", [1, 2], "read different columns", "give two aligned files")


def _agreed(folders, key, default, difference, remedy):
    """The value of a key of [data] that the recipes of all runs have."""
    values = {name: _recipe_data(Path(folder)).get(key, default) for name, folder in folders.items()}
    first = next(iter(values.values()))
    if any(value != first for value in values.values()):
        listing = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise InputError(f"The recipes of these runs {difference} ({listing}): {remedy}.")
    return first


def teacher_forced(pipeline, pairs):
    """{token_accuracy, perplexity} of the targets, each token given the true ones before it."""
    tokens = tokenize_pairs(pairs.sources, pairs.targets, pipeline.source_tokenizer, pipeline.target_tokenizer)
    metrics = [TokenAccuracy(), Perplexity()]
    for x, y in Batches(*tokens, token_budget=4096, bucket_width=1, shuffle=False):
        logits = pipeline.model(x, training=False)
        for metric in metrics:
            metric.update_state(y, logits)
    return {metric.name: float(metric.result()) for metric in metrics}


def _read(source, target, columns):
    return read_tsv(source, columns) if target is None else read_parallel(source, target)


def _check_options(tokenize, by_length):
    check_tokenizer(tokenize)
    if by_length is not None:
        check_metric(by_length)


def _check_sources(pipeline, pairs, where):
    """Tells of a source that the pipeline refuses, or a target too long for it, before the work and by its number."""
    try:
        pipeline.check_inputs(pairs.sources)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    longest = getattr(pipeline.model, "max_target_length", None)
    lengths = [] if longest is None else tokenize_lines(pairs.targets, pipeline.target_tokenizer).lengths
    for number in np.flatnonzero(np.array(lengths) >= (longest or 0)):  # START stands before a target
        raise InputError(
            f"{where}: this model writes at most {longest - 1} pieces and END. Received: target {number} of "
            f"{lengths[number]} pieces; leave it out."
        )


def _evaluate(pipeline, pairs, beam_width, batch_size, progress, tokenize, by_length):
    began = time.perf_counter()
    chunks = [pairs.sources[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    answers = [r.text for chunk in progress(chunks) for r in pipeline(chunk, beam_width, batch_size=batch_size)]
    seconds = time.perf_counter() - began
    scores = text_scores(answers, pairs.targets, tokenize)
    result = {
        "pairs": len(pairs),
        "skipped": pairs.skipped,
        "exact_match": float(np.mean([answer == text for answer, text in zip(answers, pairs.targets, strict=True)])),
        "bleu": scores["bleu"],
        "chrf": scores["chrf"],
        **teacher_forced(pipeline, pairs),
        "beam_width": beam_width or pipeline.options.beam_width,
        "seconds": round(seconds, 2),
        "bleu_signature": scores["bleu_signature"],
        "chrf_signature": scores["chrf_signature"],
    }
    if by_length is not None:
        lengths, unit = source_lengths(pairs.sources)
        buckets = scores_by_length(lengths, answers, pairs.targets, by_length, tokenize=tokenize)
        result["by_length"] = {"metric": by_length, "unit": unit, "buckets": buckets}
    return result


def _recipe_data(folder):
    """The section [data] of a run's recipe; empty for a pretrained model and what Pipeline.save wrote."""
    path = folder / "recipe.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("data") or {})
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
