"""The Pipeline: what comes in, what comes out, however it is batched, padded or compiled."""

import json

import numpy as np
import pytest
from helpers import marked, randomize

from keras_attention.models import (
    CharacterTokenizer,
    Pipeline,
    SentencePieceTokenizer,
    Seq2Seq,
    Transformer,
    list_presets,
)
from keras_attention.training.tasks import dates


@pytest.fixture(scope="module")
def shipped():
    return Pipeline.from_preset("dates")


def tiny(attention="additive", **options):
    source = CharacterTokenizer.learn(["abcdefg äöü 가나다"])
    target = CharacterTokenizer("0123456789-", byte_fallback=False)
    model = Seq2Seq(source.vocabulary_size, target.vocabulary_size, units=16, attention=attention)
    return Pipeline(randomize(model, seed=1), source, target, **{"max_length": 9, **options})


@pytest.mark.long
def test_200_texts_shuffled_batched_over_padded_and_compiled_answer_alike(shipped):
    texts = [example.source for example in dates.draw(200, seed=3, split="test")]
    expected = shipped(texts, beam_width=3)
    assert len({result.text for result in expected}) > 150
    order = np.random.default_rng(0).permutation(200)
    for batch_size, jit_compile in ((1, True), (7, False), (200, True)):
        results = shipped([texts[i] for i in order], beam_width=3, batch_size=batch_size, jit_compile=jit_compile)
        for place, row in enumerate(order):
            assert results[place].text == expected[row].text
            assert abs(results[place].score - expected[row].score) < 1e-4


@pytest.mark.long
def test_over_padding_tenfold_changes_nothing(shipped):
    import tensorflow as tf

    texts = [example.source for example in dates.draw(31, seed=5, split="test")]
    ids = shipped.source_tokenizer.tokenize(texts).to_tensor(0)
    wide = tf.pad(ids, [[0, 0], [0, 9 * ids.shape[1]]])
    bare = Pipeline(shipped.model, None, shipped.target_tokenizer, **vars(shipped.options))
    for jit_compile in (False, True):
        answer = bare.function(3, 1, jit_compile)
        one, two = (answer(tokens=x, max_length=tf.constant(32)) for x in (ids, wide))
        np.testing.assert_array_equal(one["text"].numpy(), two["text"].numpy())
        np.testing.assert_allclose(one["score"].numpy(), two["score"].numpy(), atol=1e-4)
    # The model itself, too: decode with the padding left in.
    from keras_attention.models import beam_search

    one, two = (beam_search(shipped.model, shipped.model.encode({"source": x}), 12, beam_width=3) for x in (ids, wide))
    np.testing.assert_array_equal(one.ids.numpy(), two.ids.numpy())
    np.testing.assert_allclose(one.scores.numpy(), two.scores.numpy(), atol=1e-4)


def test_a_result_has_all_that_is_promised(shipped):
    result = shipped(["2026년 11월 20일"])[0]
    assert result.text == "2026-11-20"
    assert result.source_pieces == list("2026년 11월 20일")
    assert result.target_pieces == list("2026-11-20")
    assert result.attention.shape == (10, 13)
    np.testing.assert_allclose(result.attention.sum(-1), 1, atol=1e-5)
    assert result.score == pytest.approx(result.log_probability / 11)  # END counts
    assert -0.1 < result.log_probability < 0
    assert result.alternatives == []


def test_alternatives_are_ranked_and_distinct(shipped):
    result = shipped(["3 May 1999", "1 June 2001"], num_return=4)[0]
    answers = [result, *result.alternatives]
    assert len({answer.text for answer in answers}) == 4
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert answers[0].text == "1999-05-03"


def test_an_empty_text_has_an_empty_answer():
    pipeline = tiny()
    for jit_compile in (False, True):
        for texts in ([""], ["", "abc"]):
            result = pipeline(texts, num_return=2, jit_compile=jit_compile)[0]
            assert (result.text, result.score, result.log_probability) == ("", 0.0, 0.0)
            assert result.source_pieces == result.target_pieces == result.target_ids == result.alternatives == []
    assert pipeline([]) == []


@pytest.mark.parametrize("attention", ["additive", *marked("release", ("dot", None))])
def test_save_and_load(tmp_path, attention):
    pipeline = tiny(attention, beam_width=3, length_penalty=0.7)
    texts = ["abc", "가나다 äö", "€ unknown"]
    expected = pipeline(texts)
    pipeline.save(tmp_path / "full")
    pipeline.save(tmp_path / "half", half=True)
    loaded = Pipeline.load(tmp_path / "full")
    assert loaded.options == pipeline.options
    assert [r.text for r in loaded(texts)] == [r.text for r in expected]
    assert [r.score for r in loaded(texts)] == [r.score for r in expected]
    half = Pipeline.load(tmp_path / "half")
    for one, two in zip(half.model.weights, pipeline.model.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-3, atol=1e-4)
        assert one.dtype == "float32"
    if attention is None:
        assert expected[0].attention is None


def test_saving_over_another_pipeline_leaves_nothing_of_it(tmp_path):
    tiny().save(tmp_path)
    tiny("dot").save(tmp_path, half=True)
    assert type(Pipeline.load(tmp_path).model.decoder.attention).__name__ == "DotProductAttention"
    Pipeline(tiny().model, max_length=9).save(tmp_path)
    assert Pipeline.load(tmp_path).source_tokenizer is None


def test_sentencepiece_on_both_sides(tmp_path):
    lines = ["der Hund läuft schnell", "die Katze schläft", "ein Vogel fliegt über das Haus"] * 5
    tokenizer = SentencePieceTokenizer.learn(lines, 320)
    model = randomize(Seq2Seq(tokenizer.vocabulary_size, tokenizer.vocabulary_size, units=16), seed=2)
    pipeline = Pipeline(model, tokenizer, tokenizer, max_length=7)
    pipeline.save(tmp_path)
    expected = pipeline(["der Vogel 새 😀"])[0]
    assert expected.text == Pipeline.load(tmp_path)(["der Vogel 새 😀"])[0].text
    assert expected.attention.shape == (len(expected.target_pieces), len(expected.source_pieces))


LIMITS = {"dates": 2e6, "multi30k_en_de": 6e6, "scenes": 2e6, "shakespeare_char": 6e6, "flickr8k": 6e6}


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_a_preset_is_listed_and_small_and_has_a_card(name, limit):
    from keras_attention.models.pipeline import PRETRAINED

    assert name in list_presets()
    assert sum(path.stat().st_size for path in (PRETRAINED / name).iterdir()) < limit
    assert (PRETRAINED / name / "card.md").exists()


@pytest.mark.long
def test_the_preset_of_captions_translates_and_tells_its_terms():
    pipeline = Pipeline.from_preset("multi30k_en_de")
    assert "research and education" in pipeline.terms
    result = pipeline(["A dog with a red collar is running through the snow."])[0]
    assert result.text == "Ein Hund mit einem roten Halsband rennt durch den Schnee."
    columns = result.attention.argmax(axis=1)
    looked_at = {piece: result.source_pieces[i] for piece, i in zip(result.target_pieces, columns, strict=True)}
    expected = {"Hund": "dog", "roten": "red", "Halsband": "collar", "Schnee": "snow"}
    assert {piece: looked_at[f"\u2581{piece}"].strip("\u2581") for piece in expected} == expected


def damage(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.keras", "source.tokenizer.json", "pipeline.json"])
def test_a_truncated_file_is_named(tmp_path, name):
    tiny().save(tmp_path)
    damage(tmp_path, name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "weights.npz"])
def test_a_truncated_file_of_a_half_size_model_is_named(tmp_path, name):
    tiny().save(tmp_path, half=True)
    damage(tmp_path, name)
    with pytest.raises(ValueError, match="is damaged or truncated"):
        Pipeline.load(tmp_path)


def test_wrong_arguments_are_one_sentence(tmp_path, shipped):
    with pytest.raises(TypeError, match=r"a list of texts. Received one text: write pipeline\(\[text\]\)"):
        shipped("3 May 1999")
    with pytest.raises(TypeError, match="input 1 is a int"):
        shipped(["3 May 1999", 5])
    with pytest.raises(ValueError, match="at most 128 pieces. Received: input 1 has 200"):
        shipped(["3 May 1999", "1" * 200])
    with pytest.raises(ValueError, match="beam_width=-1"):
        shipped(["3 May 1999"], beam_width=-1)
    with pytest.raises(ValueError, match="no pretrained model 'date'; known: .*dates"):
        Pipeline.from_preset("date")
    with pytest.raises(FileNotFoundError, match="holds no trained model, pipeline.json is missing"):
        Pipeline.load(tmp_path)
    with pytest.raises(TypeError, match="options among beam_width.*Received: beam"):
        tiny(beam=3)
    with pytest.raises(ValueError, match="beam_width of at least 1. Received: beam_width=0"):
        tiny(beam_width=0)
    with pytest.raises(ValueError, match="built for 15 ids, the tokenizer has 13"):
        Pipeline(tiny().model, None, CharacterTokenizer("012345678", byte_fallback=False))
    shared = Transformer(13, 13, width=8, num_heads=2, feed_forward_units=8, share_embeddings=True)
    one, other = (CharacterTokenizer(letters, byte_fallback=False) for letters in ("012345678", "abcdefghi"))
    assert Pipeline(shared, one, one).source_tokenizer is one
    with pytest.raises(ValueError, match="one vocabulary for source and target.*Received: two different ones"):
        Pipeline(shared, one, other)
    bare = Pipeline(tiny().model, max_source_length=5)
    for rows, error, message in (
        (["abc"], TypeError, "expects rows of ids.*input 0 is <U3"),
        ([[4], [4.7]], TypeError, "input 1 is float64"),
        ([[4, -1]], ValueError, r"input 0 has \[4, -1\]"),
        ([[4, 9999]], ValueError, r"knows the ids 0 to \d+. Received: input 0"),
        ([[4] * 6], ValueError, "at most 5 ids. Received: input 0 has 6"),
    ):
        with pytest.raises(error, match=message):
            bare(rows)
    with pytest.raises(ValueError, match="at most 128 pieces. Received: input 0 has 300"):
        shipped([b"\xff" * 100])


def test_the_terms_of_research_data_are_told_once(tmp_path, capsys):
    pipeline = Pipeline(Seq2Seq(11, 13, units=8))
    pipeline.save(tmp_path / "model")
    path = tmp_path / "model" / "pipeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "terms": "For research alone."}))
    for _ in range(2):
        loaded = Pipeline.load(tmp_path / "model")
    assert capsys.readouterr().err == "model: For research alone.\n"
    loaded.save(tmp_path / "copy", half=True)
    assert Pipeline.load(tmp_path / "copy").terms == "For research alone."
