"""Scores of texts against sacrebleu and by hand, buckets of length, and `keras-attention evaluate`."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from test_cli import refusal, succeed

from keras_attention.models import CharacterTokenizer, Pipeline, Transformer
from keras_attention.models.pipeline import PRETRAINED
from keras_attention.training.errors import InputError
from keras_attention.training.evaluate import bleu_tokenizer, compare, evaluate
from keras_attention.training.scores import TOKENIZERS, length_edges, scores_by_length, source_lengths, text_scores

ANSWERS = ["a man rides a bike .", "two dogs play", "", "the girl, 3.5 years old", "어린 소녀가 달린다 ."]
REFERENCES = ["a man is riding a bike .", "two dogs play", "a cat", "the girl , 3.5 years old", "소녀가 달린다 ."]
SOURCES = ["20 November 2026", "2026년 11월 20일", "3 March 1999", "1 May 2001", "7. Juli 2012", "2. Mai 2001"]
TARGETS = ["2026-11-20", "2026-11-20", "1999-03-03", "2001-05-01", "2012-07-07", "2001-05-02"]


# Scores of texts


@pytest.mark.parametrize("tokenize", TOKENIZERS)
def test_text_scores_are_sacrebleu_s_own(tokenize):
    bleu, chrf = BLEU(tokenize=tokenize), CHRF()
    expected = {
        "bleu": bleu.corpus_score(ANSWERS, [REFERENCES]).score,
        "chrf": chrf.corpus_score(ANSWERS, [REFERENCES]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
    assert text_scores(ANSWERS, REFERENCES, tokenize) == expected
    assert f"|tok:{tokenize}|" in expected["bleu_signature"] and 10 < expected["bleu"] < 90


def test_a_target_that_the_model_could_not_write_is_told_before_the_work(tmp_path):
    letters = CharacterTokenizer("abc ", byte_fallback=False)
    sizes = {"width": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    model = Transformer(8, 8, position="learned", max_length=6, **sizes)
    (tmp_path / "a.txt").write_text("ab\nb\n")
    (tmp_path / "b.txt").write_text("ab\nabcabc\n")
    with pytest.raises(InputError, match="at most 5 pieces and END. Received: target 1 of 6 pieces"):
        evaluate(Pipeline(model, letters, letters), tmp_path / "a.txt", tmp_path / "b.txt", progress=None)


def test_text_scores_by_hand():
    # Of 7, 6, 5 and 4 n-grams 6, 4, 2 and 1 are right; 7 words for 8.
    scores = text_scores(["a b c d e f g"], ["a b c d x f g h"], tokenize="none")
    precisions = (6 / 7) * (4 / 6) * (2 / 5) * (1 / 4)
    assert scores["bleu"] == pytest.approx(100 * precisions**0.25 * np.exp(1 - 8 / 7), rel=1e-12)
    # chrF2 of "abc" for "abd": of its 1-, 2- and 3-grams 2/3, 1/2 and 0 are right, precision and recall alike.
    assert text_scores(["abc"], ["abd"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, rel=1e-12)


def test_perfect_disjoint_and_empty_answers():
    references = ["one two three four five", "six seven eight nine"]
    perfect = text_scores(references, references)
    assert (perfect["bleu"], perfect["chrf"]) == (pytest.approx(100), pytest.approx(100))
    for answers in (["zzz kkk ppp jjj", "zzz ppp jjj"], ["", ""]):
        scores = text_scores(answers, references)
        assert (scores["bleu"], scores["chrf"]) == (0, 0)


def test_tokenized_text_is_scored_in_silence_as_such_and_warned_of_otherwise(caplog):
    texts = ["a tokenized period ends this ."] * 100
    with caplog.at_level(logging.WARNING, logger="sacrebleu"):
        text_scores(texts, texts, tokenize="none")
        assert not caplog.records
        text_scores(texts, texts, tokenize="13a")
        assert "forgot to detokenize" in caplog.text


@pytest.mark.parametrize(("tokenize", "more"), [("moses", "'moses'."), ("flores200", "'flores200', which needs")])
def test_tokenizers_that_are_unknown_or_need_more(tokenize, more):
    with pytest.raises(InputError, match=f"one of none, 13a, intl, char, zh. Received: {more}"):
        text_scores(["a"], ["a"], tokenize)


@pytest.mark.parametrize(("answers", "references"), [([], []), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_lists_that_do_not_match(answers, references):
    expected = f"Received: {len(answers)} answers and {len(references)} references"
    with pytest.raises(InputError, match=expected):
        text_scores(answers, references)
    with pytest.raises(InputError, match=expected):
        scores_by_length([1] * len(answers), answers, references, "exact_match")


def test_without_sacrebleu_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(InputError, match=r'pip install "keras-attention-zoo\[train\]"'):
        text_scores(["a"], ["a"])
    assert scores_by_length([1], ["a"], ["a"], "exact_match")[0]["score"] == 1


# By length


def test_buckets_hold_the_pairs_above_one_edge_up_to_the_next():
    lengths = [5, 1, 6, 10, 2, 21, 20]
    answers = ["right", "right", "wrong", "right", "wrong", "right", "wrong"]
    buckets = scores_by_length(np.array(lengths), answers, ["right"] * 7, "exact_match", edges=[0, 5, 10, 15, 20, 25])
    assert buckets == [
        {"low": 1, "high": 5, "pairs": 3, "score": pytest.approx(2 / 3)},
        {"low": 6, "high": 10, "pairs": 2, "score": 0.5},
        {"low": 11, "high": 15, "pairs": 0, "score": None},
        {"low": 16, "high": 20, "pairs": 1, "score": 0.0},
        {"low": 21, "high": 25, "pairs": 1, "score": 1.0},
    ]
    assert json.loads(json.dumps(buckets)) == buckets


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_a_bucket_s_score_is_that_of_its_texts_alone(metric):
    buckets = scores_by_length([6, 3, 1, 5, 4], ANSWERS, REFERENCES, metric, edges=[0, 4, 9], tokenize="zh")
    for bucket, rows in zip(buckets, ([1, 2, 4], [0, 3]), strict=True):
        expected = text_scores([ANSWERS[i] for i in rows], [REFERENCES[i] for i in rows], "zh")[metric]
        assert bucket["score"] == expected > 0
    assert buckets[0]["score"] != buckets[1]["score"]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7] * 3, [6, 7]),
        ([1], [0, 1]),
        ([0, 0, 1], [-1, 1]),
        ([3] * 20 + [4] * 20, [2, 3, 4]),
        ([3] * 19 + [4] * 20, [2, 4]),  # too few of 3
        ([3] * 20 + [4] * 19, [2, 4]),  # too few of 4
        ([*range(1, 201)] * 9, [0, 25, 50, 75, 100, 125, 150, 175, 200]),
        ([*range(1, 51)] * 9, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]),
        ([*range(4, 26)] * 10 + [90], [0, 5, 10, 15, 20, 90]),  # one long source widens the last bucket only
    ],
)
def test_chosen_edges(lengths, expected):
    edges = length_edges(lengths[::-1])
    assert edges == expected


def test_chosen_edges_hold_every_length_and_enough_pairs():
    generator = np.random.default_rng(11)
    for count in (1, 19, 20, 41, 300, 3000):
        for scale in (0.3, 3, 30, 500):
            lengths = 1 + generator.geometric(1 / (1 + scale), size=count)
            buckets = scores_by_length(lengths, ["x"] * count, ["x"] * count, "exact_match")
            pairs = [bucket["pairs"] for bucket in buckets]
            assert sum(pairs) == count and len(buckets) <= 13
            assert len(pairs) == 1 or min(pairs) >= 20
            assert all(after["low"] == before["high"] + 1 for before, after in zip(buckets, buckets[1:], strict=False))


@pytest.mark.parametrize("edges", [[0, 3], [1, 4], [5], [], [0, 4, 4], [4, 0]])
def test_edges_that_leave_a_length_out_or_do_not_increase(edges):
    with pytest.raises(InputError, match="increasing integers|Every length must have a bucket"):
        scores_by_length([1, 4], ["a", "b"], ["a", "b"], "exact_match", edges)


def test_a_wrong_metric_and_lengths_that_do_not_match():
    with pytest.raises(InputError, match="one of bleu, chrf, exact_match. Received: 'ter'"):
        scores_by_length([1], ["a"], ["a"], "ter")
    with pytest.raises(InputError, match="Received: 2 for 1"):
        scores_by_length([1, 2], ["a"], ["a"], "bleu")


def test_lengths_are_words_or_characters():
    assert source_lengths(["a  b", "abc", "d e f", " g"]) == ([2, 1, 3, 1], "words")
    assert source_lengths(["a b", "abc", "가나다"]) == ([3, 3, 3], "characters")


# evaluate


@pytest.fixture(scope="module")
def dates():
    return Pipeline.from_preset("dates")


@pytest.fixture
def runs(tmp_path, dates, monkeypatch):
    """Two runs with the pretrained dates, loaded once."""
    for name in ("one", "two"):
        shutil.copytree(PRETRAINED / "dates", tmp_path / name)
    monkeypatch.setattr(Pipeline, "load", lambda folder: dates)
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def tsv(tmp_path):
    """Six pairs, of which the model is right about four."""
    targets = [*TARGETS[:4], "2012-07-08", "a day in May"]
    path = tmp_path / "some.tsv"
    path.write_text("".join(f"{s}\t{t}\n" for s, t in zip(SOURCES, targets, strict=True)), encoding="utf-8")
    return path


def test_evaluate_gives_every_score(dates, tsv):
    scores = evaluate(dates, tsv, tokenize="char", by_length="exact_match")
    rows = [line.split("\t")[1] for line in tsv.read_text(encoding="utf-8").splitlines()]
    assert [result.text for result in dates(SOURCES)] == TARGETS
    for name, value in text_scores(TARGETS, rows, "char").items():
        assert scores[name] == value
    assert scores["exact_match"] == pytest.approx(4 / 6) and 0 < scores["bleu"] < 100
    buckets = [{"low": 3, "high": 3, "pairs": 6, "score": pytest.approx(4 / 6)}]
    assert scores["by_length"] == {"metric": "exact_match", "unit": "words", "buckets": buckets}
    assert "by_length" not in evaluate(dates, tsv)


def test_evaluate_refuses_wrong_options_before_it_decodes(dates, tsv, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match="Received: 'moses'"):
        evaluate(dates, tsv, tokenize="moses")
    with pytest.raises(InputError, match="Received: 'ter'"):
        compare({"dates": dates}, tsv, by_length="ter")
    tsv.write_text("ab\tba\n" + "1" * 999 + "\tb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^second, .*some.tsv: This model accepts at most .* input 1 has 999"):
        compare({"second": dates}, tsv)


def test_the_tokenizer_comes_from_the_recipe(runs):
    one, two = runs
    assert bleu_tokenizer({"one": one}) == "13a"  # pretrained models have no recipe.json
    for data, expected in (({"bleu_tokenize": "none"}, "none"), ({"bleu_tokenize": None}, "none"), ({}, "13a")):
        recipe = {"data": data} if data else {}
        (one / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
        assert bleu_tokenizer({"one": one}) == expected
    for damage in ("{", "[]", '{"data": 3}'):
        (two / "recipe.json").write_text(damage, encoding="utf-8")
        with pytest.raises(InputError, match="recipe.json is damaged"):
            bleu_tokenizer({"two": two})


# keras-attention evaluate


def shown(output):
    """The lines "key value" of what evaluate prints."""
    return dict(line.split(maxsplit=1) for line in output.split("\n\n")[0].splitlines())


def test_one_run_with_its_signatures_and_a_picture(runs, tsv, tmp_path):
    picture = tmp_path / "new" / "length.png"
    output = succeed("evaluate", runs[0], tsv, "--by-length", picture, "--metric", "exact_match").stdout
    lines = shown(output)
    assert lines["exact_match"] == "0.6667"
    assert "|tok:13a|" in lines["bleu_signature"] and "|nc:6|" in lines["chrf_signature"]
    title, head, *rows = output.split("\n\n")[1].splitlines()
    assert title == "exact_match by length of the source"
    assert [line.split() for line in (head, *rows)] == [["words", "pairs", "exact_match"], ["3", "6", "0.6667"]]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_run_as_json_stays_flat(runs, tsv, tmp_path):
    plain = json.loads(succeed("evaluate", runs[0], tsv, "--json").stdout)
    keys = {"pairs", "skipped", "exact_match", "bleu", "chrf", "token_accuracy", "perplexity", "beam_width", "seconds"}
    assert set(plain) == keys | {"bleu_signature", "chrf_signature"}
    more = json.loads(succeed("evaluate", runs[0], tsv, "--json", "--by-length", tmp_path / "a.svg").stdout)
    assert more["by_length"]["metric"] == "bleu" and more["by_length"]["buckets"][0]["score"] == more["bleu"]
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_two_runs_stand_side_by_side(runs, tsv, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "keras_attention.training.plots.plot_scores_by_length", lambda *arguments: drawn.append(arguments)
    )
    monkeypatch.setattr("keras_attention.training.plots.save_figure", lambda *_: None)
    arguments = ("evaluate", runs[0], tsv, "--compare", runs[1], "--by-length", tmp_path / "a.png")
    output = succeed(*arguments).stdout
    head, *rest = [line.split() for line in output.split("\n\n")[0].splitlines()]
    assert head == ["one", "two"] and ["exact_match", "0.6667", "0.6667"] in rest
    bleu = next(row[1] for row in rest if row[0] == "bleu")
    rows = [line.split() for line in output.split("\n\n")[1].splitlines()[1:]]
    assert rows == [["words", "pairs", "one", "two"], ["3", "6", bleu, bleu]]

    runs_json = json.loads(succeed(*arguments, "--json").stdout)["runs"]
    assert list(runs_json) == ["one", "two"]
    buckets = {name: scores["by_length"]["buckets"] for name, scores in runs_json.items()}
    assert drawn == [(buckets, "bleu", "some.tsv", "words")] * 2


def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tsv, tmp_path):
    same = shutil.copytree(runs[0], tmp_path / "more" / "one")
    output = succeed("evaluate", f"{runs[0]}/", tsv, "--compare", same, "--compare", runs[1]).stdout
    assert output.splitlines()[0].split() == [str(runs[0]), str(same), "two"]
    assert "is given 2 times" in refusal("evaluate", runs[0], tsv, "--compare", f"{runs[0]}/")


def test_compared_runs_must_count_the_same_words(runs, tsv):
    (runs[1] / "recipe.json").write_text('{"data": {"bleu_tokenize": "none"}}', encoding="utf-8")
    message = refusal("evaluate", runs[0], tsv, "--compare", runs[1])
    assert "one: 13a, two: none" in message and message.endswith("choose by --tokenize.")
    assert "|tok:char|" in succeed("evaluate", runs[0], tsv, "--compare", runs[1], "--tokenize", "char").stdout
    assert "|tok:none|" in succeed("evaluate", runs[1], tsv).stdout


def test_what_is_wrong_is_told_before_the_work(runs, tsv, tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("decoded"))
    run, before = runs[0], sorted(tmp_path.rglob("*"))
    assert "must end in .png or .svg" in refusal("evaluate", run, tsv, "--by-length", tmp_path / "a.pdf")
    assert f"cannot be written in {tsv}" in refusal("evaluate", run, tsv, "--by-length", tsv / "a.png")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert "is a folder" in refusal("evaluate", run, tsv, "--by-length", folder)
    folder.rmdir()
    assert "'--metric': 'ter' is not one of" in refusal("evaluate", run, tsv, "--metric", "ter")
    assert "give --by-length OUT.png" in refusal("evaluate", run, tsv, "--metric", "chrf")
    assert "Received: 'moses'" in refusal("evaluate", run, tsv, "--tokenize", "moses")
    assert "is not there" in refusal("evaluate", run, tsv, "--compare", tmp_path / "none")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_told_before_the_work(runs, tsv, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("decoded"))
    for arguments in (("evaluate", runs[0], tsv, "--by-length"), ("plot", runs[0], "20 May 2001")):
        assert "/proc/a.png cannot be written in /proc" in refusal(*arguments, "/proc/a.png")
