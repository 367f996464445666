"""Scores of a trained model on two aligned files or one TSV."""

import time

import numpy as np

from .batching import Batches
from .datasets import read_parallel, read_tsv, tokenize_pairs
from .errors import InputError
from .metrics import Perplexity, TokenAccuracy

CHUNK = 512  # texts decoded between two signs of progress


def evaluate(pipeline, source, target=None, beam_width=None, batch_size=64, progress=iter):
    """Decodes the sources and compares with the targets.

    Args:
        pipeline: a Pipeline of text.
        source, target: two aligned files; or one TSV as source, and None.
        beam_width: W, or None for the pipeline's own.
        batch_size: texts decoded together.
        progress: called with a list of pieces of work, gives them back one by one.

    Returns:
        A dict: pairs, exact_match (share of texts that equal their target), token_accuracy and perplexity (given the
        true tokens before each), beam_width, seconds (of decoding), and skipped, pairs with an empty side.

    Raises:
        InputError: a file is wrong, in one sentence.
    """
    pairs = read_tsv(source) if target is None else read_parallel(source, target)
    began = time.perf_counter()
    try:
        pipeline.check_inputs(pairs.sources)  # before the work, and with their own numbers
        chunks = [pairs.sources[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
        results = [r for chunk in progress(chunks) for r in pipeline(chunk, beam_width, batch_size=batch_size)]
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    seconds = time.perf_counter() - began
    right = [result.text == text for result, text in zip(results, pairs.targets, strict=True)]
    return {
        "pairs": len(pairs),
        "skipped": pairs.skipped,
        "exact_match": float(np.mean(right)),
        **teacher_forced(pipeline, pairs),
        "beam_width": beam_width or pipeline.options.beam_width,
        "seconds": round(seconds, 2),
    }


def teacher_forced(pipeline, pairs):
    """{token_accuracy, perplexity} of the targets, each token given the true ones before it."""
    tokens = tokenize_pairs(pairs.sources, pairs.targets, pipeline.source_tokenizer, pipeline.target_tokenizer)
    metrics = [TokenAccuracy(), Perplexity()]
    for x, y in Batches(*tokens, token_budget=4096, shuffle=False):
        logits = pipeline.model(x, training=False)
        for metric in metrics:
            metric.update_state(y, logits)
    return {metric.name: float(metric.result()) for metric in metrics}
