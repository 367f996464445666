"""BLEU, CIDEr-D and ROUGE-L of captions, each against several references.

sacrebleu counts BLEU. For CIDEr-D and ROUGE-L there is pycocoevalcap, 100 MB that need Java for its other scores and
have not been kept since 2020; the definitions are short, and the tests compare with its numbers.
"""

import collections
import math
import re

import numpy as np

from .errors import InputError

WORDS = re.compile(r"[\w']+")
SIGMA = 6.0  # of CIDEr-D's penalty for another length, in words
BETA = 1.2  # of ROUGE-L: how much more recall counts than precision


def caption_scores(answers, references):
    r"""Scores of captions, lower-cased, their words found by the pattern [\w']+.

    Args:
        answers: A list of n strings.
        references: A list of n lists of strings, one list for each answer, none of them empty.

    Returns:
        A dict: bleu_1 to bleu_4, corpus BLEU with brevity penalty, from 0 to 100; bleu_4_without_penalty; cider, the
        mean of CIDEr-D times 10, as its authors report it (Vedantam et al. 2015); rouge_l, from 0 to 1 (Lin 2004; the
        best precision and the best recall of all references, as COCO's evaluation takes them); words, the pattern.

    Raises:
        InputError: If sacrebleu is missing, or the lists are empty or do not match.

    Example:

    >>> scores = caption_scores(["A dog runs."], [["a dog runs", "the dog is running"]])
    >>> round(scores["bleu_1"]), scores["rouge_l"]
    (100, 1.0)

    References:
        Papineni et al. 2002, https://aclanthology.org/P02-1040; Vedantam, Zitnick, Parikh 2015,
        https://arxiv.org/abs/1411.5726, section 3; Lin 2004, https://aclanthology.org/W04-1013.
    """
    if not answers or len(answers) != len(references) or not all(references):
        raise InputError(
            "caption_scores expects answers and for each of them one reference or more. Received: "
            f"{len(answers)} answers and {len(references)} lists of references."
        )
    answers = [_words(answer) for answer in answers]
    references = [[_words(reference) for reference in of_one] for of_one in references]
    return {
        **_bleu(answers, references),
        "cider": float(np.mean(cider_d(answers, references))),
        "rouge_l": float(np.mean([rouge_l(*pair) for pair in zip(answers, references, strict=True)])),
        "words": WORDS.pattern,
    }


def cider_d(answers, references):
    """CIDEr-D of each of n answers, times 10.

    Args:
        answers: n lists of words.
        references: n lists of lists of words; how rare an n-gram is, is counted in these.
    """
    cider = CiderD(references)
    return [cider.score(answer, number) for number, answer in enumerate(answers)]


class CiderD:
    """CIDEr-D of answers one by one, against references that are counted once.

    Args:
        references: n lists of lists of words (or of anything that is compared); how rare an n-gram is, is counted in
            these.

    Example:

    >>> cider = CiderD([[["a", "dog"]], [["a", "cat"]]])
    >>> round(float(cider.score(["a", "dog"], 0)), 1), float(cider.score(["a", "dog"], 1))
    (5.0, 0.0)
    """

    def __init__(self, references):
        references = [[_grams(words) for words in of_one] for of_one in references]
        images = collections.Counter(gram for of_one in references for gram in set().union(*of_one))
        self._unseen = math.log(len(references))
        self._rarity = {gram: self._unseen - math.log(count) for gram, count in images.items()}
        self._references = [[self._weigh(each) for each in of_one] for of_one in references]

    def score(self, answer, number):
        """CIDEr-D, times 10, of an answer (a list of words) against references number `number`."""
        weighted = self._weigh(_grams(answer))
        return 10 * np.mean([_likeness(weighted, each) for each in self._references[number]])

    def _weigh(self, grams):
        return _weighted(grams, self._rarity, self._unseen)


class SentenceBleu:
    """BLEU-4 of answers one by one, smoothed and, of less than four words, cut short as sacrebleu's sentence_bleu.

    Args:
        references: n lists of lists of words, or of anything that is compared by what it is written as.

    Raises:
        InputError: If sacrebleu is missing.

    Example:

    >>> bleu = SentenceBleu([[["a", "dog", "runs", "fast"]], [["a", "cat", "runs", "fast"]]])
    >>> [round(bleu.score(["a", "dog", "runs", "fast"], number)) for number in (0, 1)]
    [100, 35]
    """

    def __init__(self, references):
        self._metric = _bleu_metric(effective_order=True)
        self._references = [[_written(words) for words in of_one] for of_one in references]

    def score(self, answer, number):
        """BLEU-4, from 0 to 100, of an answer (a list of words) against references number `number`."""
        return self._metric.sentence_score(_written(answer), self._references[number]).score


def _written(words):
    return " ".join(map(str, words))


def rouge_l(answer, references):
    """ROUGE-L of one answer, a list of words, against lists of words."""
    if not answer:
        return 0.0
    common = [_common(answer, reference) for reference in references]
    precision = max(common) / len(answer)
    recall = max(same / max(1, len(words)) for same, words in zip(common, references, strict=True))
    if not precision * recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _words(text):
    return WORDS.findall(text.lower())


def _bleu(answers, references):
    most = max(map(len, references))
    streams = [
        [" ".join(of_one[i]) if i < len(of_one) else None for of_one in references] for i in range(most)
    ]  # the i-th reference of all; None where one has fewer
    texts = [" ".join(answer) for answer in answers]
    scores = {}
    for order in range(1, 5):
        found = _bleu_metric(smooth_method="none", max_ngram_order=order).corpus_score(texts, streams)
        scores[f"bleu_{order}"] = found.score
    scores["bleu_4_without_penalty"] = found.score / found.bp if found.bp else 0.0
    return scores


def _bleu_metric(**options):
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise InputError('Scores need sacrebleu: pip install "keras-attention-zoo[train]".') from error
    return BLEU(tokenize="none", force=True, **options)


def _grams(words):
    """{n-gram: how often}, n from 1 to 4."""
    return collections.Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _weighted(grams, rarity, unseen):
    """({n-gram: count times rarity}, the norm of each order's, the number of words)."""
    weights = {gram: count * rarity.get(gram, unseen) for gram, count in grams.items()}
    squares = [0.0] * 4
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    return (
        weights,
        [math.sqrt(total) for total in squares],
        sum(count for gram, count in grams.items() if len(gram) == 1),
    )


def _likeness(answer, reference):
    """The mean over n of the clipped cosine, times the penalty for another length."""
    (weights, norms, length), (others, other_norms, other_length) = answer, reference
    totals = [0.0] * 4
    for gram, weight in weights.items():
        if gram in others:
            totals[len(gram) - 1] += min(weight, others[gram]) * others[gram]
    products = [one * two for one, two in zip(norms, other_norms, strict=True)]
    cosines = [total / product if product else 0.0 for total, product in zip(totals, products, strict=True)]
    return np.mean(cosines) * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))


def _common(one, two):
    """The length of the longest common subsequence."""
    row = [0] * (len(two) + 1)
    for word in one:
        before = row[:]
        for place, other in enumerate(two, start=1):
            row[place] = before[place - 1] + 1 if word == other else max(before[place], row[place - 1])
    return row[-1]
