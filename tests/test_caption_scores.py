"""BLEU, CIDEr-D and ROUGE-L of captions: against numbers of other implementations, and by hand."""

import math

import numpy as np
import pytest

from keras_attention.training.caption_scores import SentenceBleu, caption_scores, cider_d, rouge_l
from keras_attention.training.errors import InputError

ANSWERS = [
    "a brown dog runs over the snow",
    "two men in hats",
    "a child plays with a ball on the beach",
    "the the the the",
    "dog",
]
REFERENCES = [
    ["a dog runs through the snow", "a brown dog is running in deep snow"],
    ["two men wearing hats stand", "men in hats"],
    ["a child on the beach", "a little boy plays with his ball at the beach", "kid with a ball"],
    ["a cat on the mat", "the cat"],
    ["a dog sits", "dog"],
]


def test_numbers_of_pycocoevalcap():
    """Computed by pycocoevalcap 1.2 (cider.Cider, rouge.Rouge, bleu.Bleu) on these captions."""
    scores = caption_scores(ANSWERS, REFERENCES)
    assert scores["cider"] == pytest.approx(2.1808485052179423, abs=1e-9)
    assert scores["rouge_l"] == pytest.approx(0.7688883957565293, abs=1e-9)
    for order, expected in enumerate((0.799999999936, 0.7211102550315036, 0.5065797018640743), start=1):
        assert scores[f"bleu_{order}"] == pytest.approx(100 * expected, abs=1e-6)
    assert scores["bleu_4"] == 0  # no four words in a row; pycocoevalcap adds a tiny number
    words = [answer.split() for answer in ANSWERS], [[r.split() for r in of_one] for of_one in REFERENCES]
    each = [2.43529567, 4.17203275, 2.31408936, 0.15199791, 1.83082683]
    np.testing.assert_allclose(cider_d(*words), each, atol=1e-7)
    each = [0.78005115, 0.87980769, 0.82993197, 0.35465116, 1.0]
    np.testing.assert_allclose([rouge_l(*pair) for pair in zip(*words, strict=True)], each, atol=1e-7)


def test_ciders_equation_by_hand():
    """One word in two images: rarity ln 2 for "dog" and 0 for "a", which both have."""
    # Only the 1-gram "dog" weighs; "a dog" (2-gram) is as rare. Both orders match fully, the two others are empty.
    assert cider_d([["a", "dog"], ["a"]], [[["a", "dog"]], [["a", "cat"]]]) == pytest.approx([5.0, 0.0])
    # A length that differs by 6 words, sigma, costs exp(-1/2): seven words, of which one is seen.
    longer = ["dog", *"pqrstu"]
    cosine = math.log(2) ** 2 / (math.log(2) * math.sqrt(7) * math.log(2))
    found = cider_d([longer, ["a"]], [[["dog"]], [["cat"]]])[0]
    assert found == pytest.approx(10 / 4 * cosine * math.exp(-0.5))


def test_case_punctuation_and_numbers_of_references():
    scores = caption_scores(["A DOG, isn't it?", "Two cats!"], [["a dog isn't it"], ["two cats", "cats"]])
    assert scores["rouge_l"] == 1.0 and scores["bleu_1"] == pytest.approx(100) and scores["words"] == r"[\w']+"


def test_brevity_penalty():
    answers, references = ["a b c d e", "a b c d"], [["a b c d e f"], ["a b c d e"]]
    scores = caption_scores(answers, references)
    assert scores["bleu_4_without_penalty"] == pytest.approx(100)
    assert scores["bleu_4"] == pytest.approx(100 * math.exp(1 - 11 / 9))


def test_an_empty_answer_scores_nothing():
    scores = caption_scores(["", "a dog"], [["a dog"], ["a dog"]])
    assert 0 < scores["rouge_l"] == 0.5 and math.isfinite(scores["cider"])


@pytest.mark.parametrize(("answers", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_errors(answers, references):
    with pytest.raises(InputError, match="for each of them one reference or more. Received"):
        caption_scores(answers, references)


def test_bleu_of_single_answers_is_that_of_sacrebleu(caplog):
    """Of short ones too, and without a warning for each."""
    import sacrebleu

    words = [[answer.split() for answer in ANSWERS], [[each.split() for each in of_one] for of_one in REFERENCES]]
    bleu = SentenceBleu(words[1])
    for number, (answer, references) in enumerate(zip(ANSWERS, REFERENCES, strict=True)):
        expected = sacrebleu.sentence_bleu(answer, references, tokenize="none").score
        assert bleu.score(answer.split(), number) == pytest.approx(expected)
    assert SentenceBleu([[[5, 6, 3]]]).score([5, 6, 3], 0) == pytest.approx(100)
    assert not caplog.records
