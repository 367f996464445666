"""BLEU, chrF and exact match of answers, of all and by length of the source. sacrebleu does the arithmetic."""

import numpy as np

from .errors import InputError

METRICS = ("bleu", "chrf", "exact_match")
TOKENIZERS = ("none", "13a", "intl", "char", "zh")  # sacrebleu's others need an extra or a download
STEPS = (1, 5, 10, 25, 50, 100, 250, 500, 1000)  # the widths of buckets of length
MOST_BUCKETS = 12


def text_scores(answers, references, tokenize="13a"):
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus, as sacrebleu (Post 2018) computes them.

    BLEU is 0 where no answer shares four tokens in a row with its reference: for answers of single words, count
    characters by tokenize="char", or read chrF.

    Args:
        answers: A list of n strings, at least one.
        references: A list of n strings.
        tokenize: How BLEU finds words: "13a" or "intl" for text as people write it, "none" for text that is tokenized
            already, "char" or "zh".

    Returns:
        A dict: bleu and chrf, from 0 to 100, and bleu_signature and chrf_signature, sacrebleu's own strings, to be
        reported with the numbers.

    Raises:
        InputError: If sacrebleu is missing, the tokenizer is none of these, or the lists are empty or do not match.

    Example:

    >>> scores = text_scores(["a b c d e"], ["a b c d f"], tokenize="none")
    >>> round(scores["bleu"], 2)  # the fourth root of 4/5 * 3/4 * 2/3 * 1/2
    66.87
    >>> scores["bleu_signature"].rpartition("|")[0]
    'nrefs:1|case:mixed|eff:no|tok:none|smooth:exp'
    """
    scores = {}
    for name in ("bleu", "chrf"):
        metric = _sacrebleu(name, tokenize)
        scores[name] = _corpus_score(metric, answers, references)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return {name: scores[name] for name in ("bleu", "chrf", "bleu_signature", "chrf_signature")}


def scores_by_length(lengths, answers, references, metric, edges=None, tokenize="13a"):
    """One metric of the pairs of each bucket of source length.

    Args:
        lengths: n integers, the lengths of the sources.
        answers: A list of n strings, at least one.
        references: A list of n strings.
        metric: "bleu" or "chrf", from 0 to 100, or "exact_match", the share of answers equal to their reference.
        edges: Increasing integers: a bucket holds the lengths above one edge, up to and including the next. All
            lengths must have a bucket. None for `length_edges(lengths)`.
        tokenize: Of BLEU, as for `text_scores`.

    Returns:
        A list of dicts, one a bucket: low and high, the lengths that it spans; pairs, how many it holds; score, None
        where it holds none.

    Raises:
        InputError: If metric, tokenizer or edges are wrong, or the lists are empty or do not match.

    Example:

    >>> scores_by_length([1, 3, 5], ["a", "b", "c"], ["a", "x", "c"], "exact_match", edges=[0, 4, 6])
    [{'low': 1, 'high': 4, 'pairs': 2, 'score': 0.5}, {'low': 5, 'high': 6, 'pairs': 1, 'score': 1.0}]
    """
    lengths = np.asarray(lengths)
    if len(lengths) != len(answers):
        raise InputError(f"Expected one length for each answer. Received: {len(lengths)} for {len(answers)}.")
    check_metric(metric)
    _check_pairs(answers, references)
    edges = length_edges(lengths) if edges is None else list(edges)
    _check_edges(edges, lengths)
    buckets = []
    for below, high in zip(edges, edges[1:], strict=False):
        rows = np.flatnonzero((below < lengths) & (lengths <= high))
        score = None
        if len(rows):
            score = _score(metric, [answers[i] for i in rows], [references[i] for i in rows], tokenize)
        buckets.append({"low": int(below) + 1, "high": int(high), "pairs": len(rows), "score": score})
    return buckets


def length_edges(lengths, minimum=20):
    """Edges of buckets of length for `scores_by_length`: round numbers, and a minimum of pairs between two of them.

    Neighbours are merged until they hold the minimum; a few very long sources widen the last bucket only.

    Args:
        lengths: n integers from 0 on, at least one.
        minimum: Of pairs in a bucket.

    Returns:
        A list of at least two integers.

    Example:

    >>> length_edges([*range(4, 30)] * 5 + [61])
    [0, 10, 15, 20, 25, 65]
    """
    lengths = np.sort(lengths)
    span = lengths[-min(minimum, len(lengths))] - lengths[0] + 1  # without the few longest
    step = next((step for step in STEPS if step * MOST_BUCKETS >= span), STEPS[-1])
    first, last = (int(length - 1) // step * step for length in (lengths[0], lengths[-1]))
    edges = [max(first, -1)]
    for edge in range(first + step, last + 2 * step, step):
        if np.sum((edges[-1] < lengths) & (lengths <= edge)) >= minimum:
            edges.append(edge)
    if len(edges) > 1 and edges[-1] < last + step:  # too few are left for a bucket of their own
        edges.pop()
    return edges if edges[-1] == last + step else [*edges, last + step]


def source_lengths(sources):
    """Lengths of sources that do not depend on a model's tokenizer, so that several models fit in one picture.

    Returns:
        (lengths [n], unit): in "words", separated by blanks; or in "characters" where fewer than half of the sources
        have a blank inside.

    Example:

    >>> source_lengths(["two words", "and three words"])
    ([2, 3], 'words')
    >>> source_lengths(["abc", "今日は"])
    ([3, 3], 'characters')
    """
    words = [len(source.split()) for source in sources]
    if 2 * sum(count > 1 for count in words) >= len(words):
        return words, "words"
    return [len(source) for source in sources], "characters"


def check_metric(metric):
    if metric not in METRICS:
        raise InputError(f"The metric must be one of {', '.join(METRICS)}. Received: {metric!r}.")


def check_tokenizer(tokenize):
    """Raises InputError if `text_scores` could not count with this tokenizer, or sacrebleu is missing."""
    _sacrebleu("bleu", tokenize)


def _score(metric, answers, references, tokenize):
    if metric == "exact_match":
        return sum(map(str.__eq__, answers, references)) / len(answers)
    return _corpus_score(_sacrebleu(metric, tokenize), answers, references)


def _corpus_score(metric, answers, references):
    _check_pairs(answers, references)
    return float(metric.corpus_score(list(answers), [list(references)]).score)


def _sacrebleu(name, tokenize):
    """sacrebleu's object for "bleu" or "chrf"."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise InputError('BLEU and chrF need sacrebleu: pip install "keras-attention-zoo[train]".') from error
    if name == "chrf":
        return CHRF()
    if tokenize not in TOKENIZERS:
        reason = ", which needs an extra or a download" if tokenize in BLEU.TOKENIZERS else ""
        known = ", ".join(TOKENIZERS)
        raise InputError(f"The tokenizer of BLEU must be one of {known}. Received: {tokenize!r}{reason}.")
    return BLEU(tokenize=tokenize, force=tokenize == "none")  # force: no warning of text that is tokenized already


def _check_pairs(answers, references):
    if not answers or len(answers) != len(references):
        raise InputError(
            "Scores expect at least one answer, and a reference for each. "
            f"Received: {len(answers)} answers and {len(references)} references."
        )


def _check_edges(edges, lengths):
    if len(edges) < 2 or any(after <= before for before, after in zip(edges, edges[1:], strict=False)):
        raise InputError(f"Edges of length must be at least two increasing integers. Received: {edges}.")
    if not edges[0] < lengths.min() <= lengths.max() <= edges[-1]:
        raise InputError(
            f"Every length must have a bucket, above the first edge and up to the last. Received: edges {edges} "
            f"for lengths from {lengths.min()} to {lengths.max()}."
        )
