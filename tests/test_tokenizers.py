import base64
import io
import json
import subprocess
import sys
import textwrap
import unicodedata

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from keras_attention.models import tokenizers
from keras_attention.models.tokenizers import (
    END,
    PAD,
    START,
    UNK,
    CharacterTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    save_tokenizer,
)
from keras_attention.models.words import WordPieceTokenizer, WordTokenizer


def corpus():
    """72 short sentences in four languages."""
    german = [f"Die {a} {b} geht über die Straße." for a in ("alte", "grüne", "kleine") for b in GERMAN]
    french = [f"Le {a} mange {b} à l'école." for a in ("garçon", "père", "chat") for b in FRENCH]
    korean = [f"{a}는 {b}에 갑니다." for a in ("나", "친구", "어머니") for b in KOREAN]
    english = [f"The {a} cat sees {b}." for a in ("old", "green", "small") for b in ENGLISH]
    return german + french + korean + english


GERMAN = ("Katze", "Frau", "Lehrerin", "Schülerin", "Gräfin", "Maus")
FRENCH = ("du pain", "une pomme", "des pâtes", "du fromage", "un gâteau", "une crêpe")
KOREAN = ("학교", "서울", "시장", "병원", "바다", "도서관")
ENGLISH = ("a house", "the river", "a bird", "the moon", "nothing", "everything")

TEXTS = {
    "korean sentence": "나는 고양이가 좋다",
    "korean question": "안녕하세요, 어떻게 지내세요?",
    "korean": "나는 2026년 11월 20일에 뷁을 봤다",
    "german": "Süße Äpfel kosten 3,50 € – Grüße!",
    "french": "L'œuvre naïve coûte « cher » à l’été",
    "emoji family": "a👨‍👩‍👧‍👦b🏳️‍🌈",
    "decomposed": "e\u0301 u\u0308 \u1112\u1161\u11ab",
    "right to left": "שלום עולם — السلام عليكم",
    "blanks": "  two  blanks   ",
    "one blank": " ",
    "three blanks": "   ",
    "empty": "",
    "line ends": "\n\r\n\ta\tb\n",
    "null": "\0a\0",
    "byte order mark": "\ufeffa\ufeff",
    "noncharacters": "\ufffe\uffff\ufdd0\U0010ffff",
    "replacement": "a\ufffdb",
    "block signs": "\u2581 \u2581\u2581a\u2581",
    "escapes": "\x10 \x10\x11\x10\x12\x11\x12\u2581\x10",
    "odd blanks": "\u3000\xa0\u2028\x85 a\u200b",
    "names of pieces": "<s></s><unk><pad><0x41> ⁇ ",
}

MAKERS = {
    "characters": lambda: CharacterTokenizer.learn(corpus()),
    "bytes": lambda: CharacterTokenizer(""),
    "bpe": lambda: SentencePieceTokenizer.learn(corpus(), 367),
    "unigram": lambda: SentencePieceTokenizer.learn(corpus(), 347, kind="unigram"),
}
SIZES = {"characters": 260 + len(set("".join(corpus()))), "bytes": 260, "bpe": 367, "unigram": 347}


WORD_MAKERS = {
    "words": lambda: WordTokenizer.learn(corpus()),
    "punctuation": lambda: WordTokenizer.learn(corpus(), split="punctuation"),
    "blanks": lambda: WordTokenizer.learn(corpus(), split="blanks"),
    "wordpiece": lambda: WordPieceTokenizer.learn(corpus(), 251),
}


@pytest.fixture(scope="module")
def made():
    return {name: maker() for name, maker in MAKERS.items()}


@pytest.fixture(scope="module")
def made_words():
    return {name: maker() for name, maker in WORD_MAKERS.items()}


@pytest.fixture(params=MAKERS)
def tokenizer(request, made):
    """One that gives back exactly what went in."""
    return made[request.param]


@pytest.fixture(params=WORD_MAKERS)
def word_tokenizer(request, made_words):
    """One that gives it back up to a normalisation."""
    return made_words[request.param]


@pytest.fixture(params=[*MAKERS, *WORD_MAKERS])
def any_tokenizer(request, made, made_words):
    return (made | made_words)[request.param]


UNICODE = strategies.characters(exclude_categories=["Cs"])
PLAIN = strategies.sampled_from(
    " \t\n\u3000aÉé한글ß漢\u0301\u200d\u200c\u200b\xad0.39,:;!?'’-_()[]{}¿¡€…\"👨👩🏽\ufe0f\u2581\0İΣ"
)


def batches_of_strings(characters, strings_each):
    text = strategies.text(characters, max_size=12)
    return strategies.lists(text, min_size=strings_each, max_size=strings_each)


def property_test(batches, examples):
    def decorate(test):
        options = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, *SLOW],
        )
        return options(hypothesis.given(batches)(test))

    return decorate


SLOW = (
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.data_too_large,
    hypothesis.HealthCheck.large_base_example,
)


def strings(tensor):
    return [text.decode() for text in tensor.numpy()]


def byte_ids(data):
    return [4 + byte for byte in data]


# Characters and SentencePiece; most of it holds for words and WordPiece, too


@pytest.mark.parametrize("name", TEXTS)
def test_gives_back_exactly_what_went_in(tokenizer, name):
    ids = tokenizer.tokenize([TEXTS[name]])
    assert strings(tokenizer.detokenize(ids)) == [TEXTS[name]]


def test_gives_back_random_unicode(tokenizer):
    random = np.random.default_rng(7)
    points = np.r_[0:0x80, 0:0x80, 0x80:0xD800:97, 0xE000:0x110000:997, [0x20, 0x2581, 0x10, 0x11, 0x12] * 50]
    texts = ["".join(map(chr, random.choice(points, random.integers(0, 41)))) for _ in range(307)]
    assert strings(tokenizer.detokenize(tokenizer.tokenize(texts))) == texts


@property_test(batches_of_strings(UNICODE, 50), examples=200)
def test_gives_back_10000_strings_of_any_unicode(tokenizer, texts):
    assert strings(tokenizer.detokenize(tokenizer.tokenize(texts))) == texts


def test_ids_are_int32_ragged_and_hold_no_start_or_end(tokenizer):
    ids = tokenizer.tokenize([*TEXTS.values(), *corpus()])
    assert isinstance(ids, tf.RaggedTensor) and ids.dtype == tf.int32 and ids.shape[0] == len(TEXTS) + 72
    flat = ids.flat_values.numpy()
    assert flat.min() > END and flat.max() < tokenizer.vocabulary_size
    assert ids[list(TEXTS).index("empty")].shape == (0,)


def test_vocabulary_size(made):
    assert {name: tokenizer.vocabulary_size for name, tokenizer in made.items()} == SIZES


def test_no_texts_give_no_rows(any_tokenizer):
    ids = any_tokenizer.tokenize([])
    assert ids.nrows() == 0
    assert any_tokenizer.detokenize(ids).shape == (0,)
    assert strings(any_tokenizer.detokenize(np.zeros((3, 0), "int32"))) == ["", "", ""]


@pytest.mark.parametrize(
    "texts",
    [("Äa", "b"), np.array(["Äa", "b"]), np.array(["Äa", "b"], object), np.array(["Äa", "b"], "T")],
    ids=["tuple", "str array", "object array", "StringDType array"],
)
def test_tokenize_takes_lists_and_arrays(any_tokenizer, texts):
    assert any_tokenizer.tokenize(texts).to_list() == any_tokenizer.tokenize(tf.constant(["Äa", "b"])).to_list()


def test_invalid_utf8_is_replaced(tokenizer):
    texts = [b"a\xffb", b"\xe2\x82", "한".encode()[:2] + b"c", b"\xed\xa0\x80"]
    expected = ["a\ufffdb", "\ufffd", "\ufffdc", "\ufffd\ufffd\ufffd"]
    assert strings(tokenizer.detokenize(tokenizer.tokenize(texts))) == expected


def test_broken_bytes_of_a_model_are_replaced(tokenizer):
    ids = [byte_ids(b"ab\xe2\x82"), byte_ids(b"\xffab\xf0"), byte_ids("a€".encode())]
    assert strings(tokenizer.detokenize(ids)) == ["ab\ufffd", "\ufffdab\ufffd", "a€"]


def test_detokenize_drops_padding_start_and_end(tokenizer):
    texts = ["  Die Katze", "", "학교"]
    ids = tokenizer.tokenize(texts)
    dense = ids.to_tensor(PAD, shape=[None, 53])
    framed = [[START, *row[:2], PAD, *row[2:], END, PAD] for row in ids.to_list()]
    assert strings(tokenizer.detokenize(dense)) == texts
    assert strings(tokenizer.detokenize(dense.numpy().astype("int64"))) == texts
    assert strings(tokenizer.detokenize(tf.ragged.constant(framed, dtype=tf.int32))) == texts


def test_unk_is_written_as_the_replacement_character(tokenizer):
    assert strings(tokenizer.detokenize([[UNK, *byte_ids(b"a"), UNK, END]])) == ["\ufffda\ufffd"]


def test_pieces_have_the_shape_of_the_ids(tokenizer):
    ids = np.array([[[PAD, UNK, START], [END, 4 + 0xE2, 4 + 0x0A]]])
    expected = [[["", "<unk>", "<s>"], ["</s>", "<0xE2>", "<0x0A>"]]]
    pieces = tokenizer.pieces(ids)
    assert np.char.decode(pieces.numpy().astype("S")).tolist() == expected
    assert tokenizer.pieces(END).numpy() == b"</s>"


def test_joined_pieces_are_the_text(tokenizer, made):
    texts = ["", *corpus()]
    ids = tokenizer.tokenize(texts)
    pieces = tokenizer.pieces(ids)
    assert pieces.row_lengths().numpy().tolist() == ids.row_lengths().numpy().tolist()
    joined = [b"".join(row).decode() for row in pieces.to_list()]
    if isinstance(tokenizer, SentencePieceTokenizer):
        joined = [text.replace("\u2581", " ").removeprefix(" ") for text in joined]
    if tokenizer is made["bytes"]:
        texts = ["".join(f"<0x{byte:02X}>" for byte in text.encode()) for text in texts]
    assert joined == texts


@pytest.mark.parametrize("verb", ["pieces", "detokenize"])
@pytest.mark.parametrize("offset", [0, 1000, None])
def test_ids_outside_of_the_vocabulary_are_refused(any_tokenizer, verb, offset):
    bad = -1 if offset is None else any_tokenizer.vocabulary_size + offset
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"= {bad} is not in \[0, "):
        getattr(any_tokenizer, verb)([[5, bad]])


@pytest.mark.parametrize(
    "verb, argument, error, message",
    [
        ("tokenize", "abc", ValueError, r"tokenize expects strings of shape \[B\]. Received: shape=\(\)"),
        ("tokenize", [["abc"]], ValueError, r"shape \[B\]. Received: shape=\(1, 1\)"),
        ("tokenize", [1, 2], TypeError, r"tokenize expects strings of shape \[B\]. Received: \[1, 2\]"),
        ("tokenize", ["a", None], TypeError, "tokenize expects strings"),
        (
            "detokenize",
            [4, 5],
            ValueError,
            r"detokenize expects ids of shape \[B, S\]. Received: shape=\(2,\)",
        ),
        ("detokenize", [[4.0]], TypeError, "ids must be integers. Received: dtype=float32"),
        ("pieces", [4.0], TypeError, "ids must be integers. Received: dtype=float32"),
    ],
)
def test_wrong_arguments_get_one_sentence(any_tokenizer, verb, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(any_tokenizer, verb)(argument)


def test_traced_with_any_batch_size(tokenizer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def there_and_back(texts):
        ids = tokenizer.tokenize(texts)
        return ids, tokenizer.detokenize(ids.to_tensor()), tokenizer.pieces(ids)

    for texts in (list(TEXTS.values()), ["a"], []):
        ids, back, pieces = there_and_back(tf.constant(texts, tf.string))
        assert ids.to_list() == tokenizer.tokenize(texts).to_list()
        assert strings(back) == texts
        assert pieces.to_list() == tokenizer.pieces(ids).to_list()
    assert there_and_back.experimental_get_tracing_count() == 1


def test_made_inside_a_traced_function(made):
    lost = {}

    @tf.function
    def build(texts):
        lost["characters"] = CharacterTokenizer("abc")
        lost["bpe"] = SentencePieceTokenizer(made["bpe"].model)
        return [lost[name].tokenize(texts).flat_values for name in lost]

    build(tf.constant(["cab"]))
    assert lost["characters"].tokenize(["cab"]).to_list() == [[262, 260, 261]]
    assert lost["bpe"].tokenize(["cab"]).to_list() == made["bpe"].tokenize(["cab"]).to_list()


def test_in_a_dataset(any_tokenizer):
    texts = list(TEXTS.values())
    data = tf.data.Dataset.from_tensor_slices(texts).batch(5).map(any_tokenizer.tokenize).unbatch()
    assert [row.numpy().tolist() for row in data] == any_tokenizer.tokenize(texts).to_list()


# Characters


def test_character_ids():
    tokenizer = CharacterTokenizer(["ß", "a", "👍"])
    assert tokenizer.tokenize(["👍aß", "€b"]).to_list() == [[262, 261, 260], byte_ids("€b".encode())]
    assert CharacterTokenizer("ba", byte_fallback=False).tokenize(["abc"]).to_list() == [[5, 4, UNK]]


def test_without_byte_fallback_unknown_characters_are_unk():
    tokenizer = CharacterTokenizer.learn(["cab", "", "bé"], byte_fallback=False)
    assert tokenizer.characters == "abcé" and tokenizer.vocabulary_size == 8
    ids = tokenizer.tokenize(["é€a", "", "\0", "👨‍👩"])
    assert ids.to_list() == [[7, UNK, 4], [], [UNK], [UNK, UNK, UNK]]
    assert strings(tokenizer.detokenize(ids)) == ["é\ufffda", "", "\ufffd", "\ufffd\ufffd\ufffd"]
    assert tokenizer.pieces(ids)[0].numpy().tolist() == ["é".encode(), b"<unk>", b"a"]


def test_vocabulary_without_any_character():
    tokenizer = CharacterTokenizer("", byte_fallback=False)
    assert tokenizer.vocabulary_size == 4
    assert tokenizer.tokenize(["ab", ""]).to_list() == [[UNK, UNK], []]


def test_null_and_replacement_characters_can_be_in_the_vocabulary():
    tokenizer = CharacterTokenizer("\0\ufffd \n", byte_fallback=False)
    ids = tokenizer.tokenize(["\n \ufffd\0"])
    assert ids.to_list() == [[7, 6, 5, 4]]
    assert strings(tokenizer.detokenize(ids)) == ["\n \ufffd\0"]


def test_learned_characters_do_not_depend_on_the_order_of_lines():
    lines = corpus()
    assert CharacterTokenizer.learn(lines).characters == CharacterTokenizer.learn(iter(lines[::-1])).characters
    assert CharacterTokenizer.learn(["라ba", "aé"]).characters == "abé라"


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_extended_appends_what_is_new(byte_fallback):
    tokenizer = CharacterTokenizer("cab", byte_fallback)
    first = tokenizer.vocabulary_size
    extended = tokenizer.extended(iter(["żab", "", "Żc"]))
    assert extended.characters == "cabŻż" and extended.vocabulary_size == first + 2
    assert extended.tokenize(["abcżŻ"]).to_list() == [[first - 2, first - 1, first - 3, first + 1, first]]
    assert extended.byte_fallback is byte_fallback and tokenizer.characters == "cab"
    texts = ["cab", "\U0010ffff"]
    assert extended.tokenize(texts).to_list() == tokenizer.tokenize(texts).to_list()
    assert extended.extended(["zż"]).characters == "cabŻżz"
    assert CharacterTokenizer.from_config(extended.get_config()).get_config() == extended.get_config()


def test_extended_by_nothing_new_is_itself():
    tokenizer = CharacterTokenizer("ab")
    assert tokenizer.extended(["aba", ""]) is tokenizer and tokenizer.extended([]) is tokenizer
    with pytest.raises(TypeError, match="lines must be an iterable of str.* Received: 'abc'"):
        tokenizer.extended("abc")
    with pytest.raises(ValueError, match="half a surrogate pair in item 1"):
        tokenizer.extended(["a\ud800"])


@pytest.mark.parametrize(
    "characters, message",
    [
        ("abca", "characters must not repeat. Received: 'a' twice"),
        (["a", "bc"], "characters must be single Unicode characters. Received: 'bc'"),
        (["a", ""], "Received: ''"),
        (["a", 5], "Received: 5"),
        ("a\ud83d", r"Received: '\\ud83d'"),
    ],
)
def test_wrong_characters_are_refused(characters, message):
    with pytest.raises(ValueError, match=message):
        CharacterTokenizer(characters)


# SentencePiece


@pytest.mark.parametrize("kind, size", [("bpe", 367), ("unigram", 347)])
def test_learning_twice_gives_equal_bytes(made, kind, size):
    assert SentencePieceTokenizer.learn(iter(corpus()), size, kind=kind).model == made[kind].model


def test_kinds_differ_and_learn_pieces_longer_than_a_character(made):
    rows = {kind: made[kind].tokenize(["Die alte Katze geht über die Straße."])[0] for kind in ("bpe", "unigram")}
    assert all(len(row) < 36 for row in rows.values())  # the text has 36 characters
    assert rows["bpe"].numpy().tolist() != rows["unigram"].numpy().tolist()


def test_word_has_the_same_pieces_at_the_start_and_inside(made):
    for kind in ("bpe", "unigram"):
        first, twice = made[kind].tokenize(["Katze", "Katze Katze"]).to_list()
        assert twice == first + first


def test_unknown_characters_become_bytes(made):
    for kind in ("bpe", "unigram"):
        row = made[kind].tokenize(["뷁"]).to_list()[0]
        assert row[-3:] == byte_ids("뷁".encode())


def test_a_first_piece_without_a_blank_keeps_its_text(made):
    """A model may begin with any piece; only one blank at the start is taken away."""
    for kind in ("bpe", "unigram"):
        assert strings(made[kind].detokenize([byte_ids(b"ab "), byte_ids(b"  a")])) == ["ab ", " a"]


def test_max_lines_draws_by_seed():
    def learn(**kwargs):
        return SentencePieceTokenizer.learn(corpus(), 317, character_coverage=0.98, **kwargs).model

    drawn = learn(max_lines=31, seed=5)
    assert drawn == learn(max_lines=31, seed=5) != learn(max_lines=31, seed=6)
    assert learn(max_lines=72) == learn() != drawn


def test_long_lines_are_learned_from():
    pieces = SentencePieceTokenizer.learn(["Gräfin " * 1009], 273).pieces(tf.range(273)).numpy().tolist()
    assert "\u2581Gräfin".encode() in pieces


@pytest.mark.parametrize(
    "lines, size, kind, message",
    [
        (corpus(), 100, "bpe", r"at least \d+ for this text .* Received: 100; raise it"),
        (corpus(), 100, "unigram", r"at least \d+ for this text .* Received: 100; raise it"),
        (corpus(), 9973, "bpe", r"at most \d+ for this text .* Received: 9973; lower it"),
        (corpus(), 9973, "unigram", r"at most \d+ for this text .* Received: 9973; lower it"),
        ([], 300, "bpe", "expects text to learn from. Received: no line with text"),
        (["", " \n"], 300, "unigram", "expects text to learn from. Received: no line with text"),
        (["a"], 300, "words", 'kind must be "bpe" or "unigram". Received: kind=\'words\''),
        (["a"], 0, "bpe", "vocabulary_size must be a positive int. Received: 0"),
        (["a"], 300.0, "bpe", "vocabulary_size must be a positive int. Received: 300.0"),
        (["a", "\ud800"], 300, "bpe", "valid Unicode. Received: half a surrogate pair in item 2"),
    ],
)
def test_what_cannot_be_learned_gets_one_sentence(lines, size, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        SentencePieceTokenizer.learn(lines, size, kind=kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_limits_that_the_errors_name_work(kind):
    with pytest.raises(ValueError, match="at least") as low:
        SentencePieceTokenizer.learn(corpus(), 100, kind=kind)
    with pytest.raises(ValueError, match="at most") as high:
        SentencePieceTokenizer.learn(corpus(), 9973, kind=kind)
    for error in (low, high):
        size = int(str(error.value).split(" for this text")[0].split()[-1])
        assert SentencePieceTokenizer.learn(corpus(), size, kind=kind).vocabulary_size == size


@pytest.mark.parametrize(
    "learn",
    [
        CharacterTokenizer.learn,
        lambda lines: SentencePieceTokenizer.learn(lines, 300),
        WordTokenizer.learn,
        lambda lines: WordPieceTokenizer.learn(lines, 300),
    ],
)
def test_lines_must_be_many_str(learn):
    with pytest.raises(TypeError, match="lines must be an iterable of str.* Received: 'a text'"):
        learn("a text")
    with pytest.raises(TypeError, match="lines must hold str only. Received: b'b' as item 2"):
        learn(["a", b"b"])


def test_character_coverage_out_of_range():
    with pytest.raises(ValueError, match="character_coverage must be from 0.98 to 1. Received: 0.5"):
        SentencePieceTokenizer.learn(corpus(), 367, character_coverage=0.5)


def test_no_characters_to_learn():
    with pytest.raises(ValueError, match="expects text to learn from. Received: no character at all"):
        CharacterTokenizer.learn(["", ""])


@pytest.mark.parametrize("model", [b"", b"no model", b"\xff" * 101, None])
def test_bad_model_bytes_get_one_sentence(made, model):
    model = made["bpe"].model[:997] if model is None else model
    with pytest.raises(ValueError, match=f"bytes of a SentencePiece model. Received: {len(model)} bytes") as error:
        SentencePieceTokenizer(model)
    assert "\n" not in str(error.value)


def test_model_must_be_bytes():
    with pytest.raises(TypeError, match="expects the bytes of a model. Received: 'spm.model'"):
        SentencePieceTokenizer("spm.model")


def test_model_with_other_special_ids_is_refused():
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=151, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match="ids 0 to 3 are <pad>, <unk>, <s>, </s> .* Received: .b'<unk>'"):
        SentencePieceTokenizer(model.getvalue())


def test_missing_packages_get_one_sentence(monkeypatch, made):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'needs sentencepiece: pip install "keras-attention-zoo\[train\]"'):
        SentencePieceTokenizer.learn(corpus(), 367)
    assert SentencePieceTokenizer(made["bpe"].model).vocabulary_size == 367
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match="needs tensorflow-text .* does not exist for Windows"):
        SentencePieceTokenizer(made["bpe"].model)
    with pytest.raises(ImportError, match="needs tensorflow-text"):
        SentencePieceTokenizer.learn(corpus(), 367)


# Words and WordPiece


def tokens(tokenizer, text):
    """What the tokenizer finds in a text: itself learned from it, so that nothing is unknown."""
    return [piece.decode() for piece in tokenizer.pieces(tokenizer.tokenize([text]))[0].numpy()]


CUT = {
    "korean": ("순이는 창문을 닫았다.", "순이는|창문을|닫았다", "순이는|창문을|닫았다|."),
    "contractions": ("Don't, l’été rock'n'roll", "Don't|l’été|rock'n'roll", "Don't|,|l’été|rock'n'roll"),
    "quoted": ("'ok' the dogs' '90s", "ok|the|dogs|90s", "'|ok|'|the|dogs|'|'|90s"),
    "numbers": ("3.50 1.000,5: 10:30.", "3.50|1.000,5|10:30", "3.50|1.000,5|:|10:30|."),
    "letters and numbers": ("B2B 1a.2b -5%", "B2B|1a|2b|5", "B2B|1a|.|2b|-|5|%"),
    "abbreviation": ("U.S. end.Next", "U|S|end|Next", "U|.|S|.|end|.|Next"),
    "hyphens": ("well-known -- Bier- und 3-4", "well-known|Bier|und|3-4", "well-known|-|-|Bier|-|und|3-4"),
    "combining": (
        "e\u0301a \u1112\u1161\u11ab नमस्ते",
        "e\u0301a|\u1112\u1161\u11ab|नमस्ते",
        "e\u0301a|\u1112\u1161\u11ab|नमस्ते",
    ),
    "inner": (
        "می\u200cخواهم so\xadfar a\u200bb \ufeffc",
        "می\u200cخواهم|so\xadfar|a|b|c",
        "می\u200cخواهم|so\xadfar|a|b|c",
    ),
    "brackets": ("(a) [b]… ¿c? «d»", "a|b|c|d", "(|a|)|[|b|]|…|¿|c|?|«|d|»"),
    "emoji": ("a👨‍👩‍👧b 👍🏽👍 3€", "a|b|3", "a|👨‍👩‍👧|b|👍🏽|👍|3|€"),
    "blanks": ("\t a\u3000b\xa0c\u2028d\x85\r\ne ", "a|b|c|d|e", "a|b|c|d|e"),
    "controls": ("a\0b \x07", "a|b", "a|b"),
}


@pytest.mark.parametrize("name", CUT)
def test_where_words_are_cut(name):
    text, words, signs = CUT[name]
    for split, expected in (("words", words), ("punctuation", signs), ("blanks", "|".join(text.split()))):
        tokenizer = WordTokenizer.learn([text], split=split)
        assert tokens(tokenizer, text) == expected.split("|"), split
        assert set(tokenizer.words) == set(expected.split("|"))


@property_test(batches_of_strings(UNICODE, 20), examples=20)
def test_blanks_cut_as_python_does(texts):
    tokenizer = WordTokenizer.learn([*texts, "a"], split="blanks")
    assert [tokens(tokenizer, text) for text in texts] == [text.split() for text in texts]


def runs_of_letters(text):
    """An oracle for texts without what may stand inside of a word."""
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return letters.split()


@property_test(batches_of_strings(strategies.characters(min_codepoint=0x20, max_codepoint=0x24F), 20), examples=20)
def test_words_are_runs_of_letters(texts):
    texts = [text.translate(dict.fromkeys(map(ord, ".,:'-·\xad"))) for text in texts]
    tokenizer = WordTokenizer.learn([*texts, "a"])
    assert [tokens(tokenizer, text) for text in texts] == [runs_of_letters(text) for text in texts]


LEARNERS = {
    **{
        f"{split}, lower={lower}": lambda lines, split=split, lower=lower: WordTokenizer.learn(
            lines, split=split, lower=lower
        )
        for split in ("words", "punctuation", "blanks")
        for lower in (False, True)
    },
    "wordpiece": lambda lines: WordPieceTokenizer.learn(lines, 317),
    "wordpiece, lower": lambda lines: WordPieceTokenizer.learn(lines, 317, lower=True),
}


@pytest.mark.parametrize("name", LEARNERS)
@property_test(batches_of_strings(strategies.one_of(PLAIN, PLAIN, UNICODE), 10), examples=60)
def test_what_is_written_is_read_as_the_same_ids(name, texts):
    tokenizer = LEARNERS[name]([*texts, "a"])
    ids = tokenizer.tokenize(texts)
    assert UNK not in ids.flat_values.numpy()  # learning cuts as the graph does
    assert tokenizer.tokenize(tokenizer.detokenize(ids)).to_list() == ids.to_list()


@pytest.mark.parametrize(
    "split, text, expected",
    [
        ("words", "Sie kommt (3,50), «ja»!", "Sie kommt 3,50 ja"),
        ("punctuation", "  Yes (3,50), don't !", "Yes (3,50), don't!"),
        ("punctuation", "a: b; [c] {d} ([e]) ¿f? ¡g! h… 3 . 5", "a: b; [c] {d} ([e]) ¿f? ¡g! h… 3. 5"),
        ("punctuation", '"a" – «b» x-', '" a " – « b » x -'),
        ("punctuation", "( \u0301 (", "( \u0301 ("),
        ("blanks", " a ,\tb  .\n c.", "a , b . c."),
        ("blanks", "<unk> <s> <0x41> </s>", "<unk> <s> <0x41> </s>"),
    ],
)
def test_how_words_are_joined(split, text, expected):
    tokenizer = WordTokenizer.learn([text], split=split)
    assert strings(tokenizer.detokenize(tokenizer.tokenize([text]))) == [expected]


def test_words_of_the_corpus_come_back(made_words):
    for name in ("punctuation", "blanks"):
        assert strings(made_words[name].detokenize(made_words[name].tokenize(corpus()))) == corpus()


def test_word_ids_go_down_by_frequency():
    lines = ["b a b", "c b a d", "d"]
    tokenizer = WordTokenizer.learn(iter(lines))
    assert tokenizer.words == ["b", "a", "d", "c"]
    assert tokenizer.tokenize(["a x b", "", " "]).to_list() == [[5, UNK, 4], [], []]
    assert WordTokenizer.learn(lines, vocabulary_size=6).words == ["b", "a"]
    assert WordTokenizer.learn(lines, min_count=2).words == ["b", "a", "d"]
    assert WordTokenizer.learn(lines, 5, 2).vocabulary_size == 5
    assert WordTokenizer.learn(lines, 100).vocabulary_size == 8


def test_more_lines_than_are_counted_at_once():
    assert WordTokenizer.learn(["a"] * 2001 + ["b"] * 2002).words == ["b", "a"]


@pytest.mark.parametrize("made_by", [WordTokenizer, WordPieceTokenizer])
def test_case_and_accents_are_kept_unless_lower(made_by):
    kept, lower = (made_by(["Été", "été", "ete", "한글", "e\u0301"], lower=lower) for lower in (False, True))
    assert kept.tokenize(["Été été ÉTÉ ete 한글 e\u0301"]).to_list() == [[4, 5, UNK, 6, 7, 8]]
    assert lower.tokenize(["Été été ÉTÉ ete 한글 E\u0301"]).to_list() == [[5, 5, 5, 6, 7, 8]]


def test_unk_padding_start_and_end_of_words(word_tokenizer):
    ids = word_tokenizer.tokenize(["Die alte Katze", "Die 뷁 Katze"])
    cat = word_tokenizer.tokenize(["Katze"])[0].numpy().tolist()
    assert ids[1].numpy().tolist() == [ids[0, 0], UNK, *cat]
    framed = [[START, PAD, *row, END, PAD, PAD] for row in ids.to_list()]
    assert strings(word_tokenizer.detokenize(framed)) == ["Die alte Katze", "Die \ufffd Katze"]
    assert strings(word_tokenizer.detokenize(tf.ragged.constant(framed, dtype=tf.int64))) == [
        "Die alte Katze",
        "Die \ufffd Katze",
    ]
    assert word_tokenizer.pieces([PAD, UNK, START, END]).numpy().tolist() == [b"", b"<unk>", b"<s>", b"</s>"]


def test_words_are_int32_ragged(word_tokenizer):
    ids = word_tokenizer.tokenize([*TEXTS.values(), *corpus()])
    assert isinstance(ids, tf.RaggedTensor) and ids.dtype == tf.int32 and ids.shape[0] == len(TEXTS) + 72
    flat = ids.flat_values.numpy()
    assert flat.min() >= UNK and flat.max() < word_tokenizer.vocabulary_size
    assert not {PAD, START, END} & set(flat.tolist())


def test_empty_texts_and_blanks_have_no_words(word_tokenizer):
    assert word_tokenizer.tokenize(["", " ", " \t\n\u3000", "\u2028"]).to_list() == [[], [], [], []]
    assert strings(word_tokenizer.detokenize(word_tokenizer.tokenize(["", "  "]))) == ["", ""]


def test_invalid_utf8_in_words(word_tokenizer):
    texts = [b"Katze \xff", b"Katze \xe2\x82", b"\xed\xa0\x80"]
    ids = word_tokenizer.tokenize(texts)
    assert ids.to_list() == word_tokenizer.tokenize([text.decode(errors="replace") for text in texts]).to_list()
    assert ids[0, 0] == word_tokenizer.tokenize(["Katze"])[0, 0]


def test_words_traced_with_any_batch_size(word_tokenizer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def there_and_back(texts):
        ids = word_tokenizer.tokenize(texts)
        return ids, word_tokenizer.detokenize(ids.to_tensor()), word_tokenizer.pieces(ids)

    for texts in (list(TEXTS.values()), ["a"], []):
        ids, back, pieces = there_and_back(tf.constant(texts, tf.string))
        expected = word_tokenizer.tokenize(texts)
        assert ids.to_list() == expected.to_list()
        assert strings(back) == strings(word_tokenizer.detokenize(expected))
        assert pieces.to_list() == word_tokenizer.pieces(expected).to_list()
    assert there_and_back.experimental_get_tracing_count() == 1


def test_words_made_inside_a_traced_function():
    made_here = {}

    @tf.function
    def build(texts):
        made_here["words"] = WordTokenizer(["a", "b"])
        made_here["wordpiece"] = WordPieceTokenizer(["a", "##b"])
        return [tokenizer.tokenize(texts).flat_values for tokenizer in made_here.values()]

    build(tf.constant(["ab b"]))
    assert made_here["words"].tokenize(["a b"]).to_list() == [[4, 5]]
    assert made_here["wordpiece"].tokenize(["ab b"]).to_list() == [[4, 5, UNK]]


def longest_match(word, pieces):
    """WordPiece as BERT's own code has it: ids of the longest pieces, from the left, or one UNK."""
    ids, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        found = next((p for end in ends if (p := ("##" if start else "") + word[start:end]) in pieces), None)
        if found is None:
            return [UNK]
        ids.append(4 + pieces.index(found))
        start += len(found) - (2 if start else 0)
    return ids


def test_wordpiece_takes_the_longest_piece_first(made_words):
    tokenizer = made_words["wordpiece"]
    pieces = tokenizer.get_config()["pieces"]
    words = {word for line in corpus() for word in line.split()} | {"Katzenfrau", "뷁", "도서관에서", "ThéX", "a" * 999}
    words = sorted(word for word in words if word.isalnum())
    expected = [longest_match(word, pieces) for word in words]
    assert tokenizer.tokenize(words).to_list() == expected
    assert [UNK] in expected and len(set(map(len, expected))) > 3


def test_wordpiece_reads_words_punctuation_and_chinese_characters():
    text = "Mann's Hut, der 3,50 漢字x (ok)"
    tokenizer = WordPieceTokenizer.learn([text], 100)
    back = strings(tokenizer.detokenize(tokenizer.tokenize([text])))
    assert back == ["Mann ' s Hut , der 3 , 50 漢 字 x ( ok )"]
    assert tokenizer.tokenize(["M" * 1000, "M" * 1001])[1].numpy().tolist() == [UNK]


def test_learned_wordpiece_has_the_size_and_knows_its_characters():
    for size in (125, 137, 251):
        tokenizer = WordPieceTokenizer.learn(iter(corpus()), size)
        assert tokenizer.vocabulary_size == size
        assert tokenizer.get_config() == WordPieceTokenizer.learn(corpus(), size).get_config()
        assert UNK not in tokenizer.tokenize([*corpus(), "eztaK 교학 Katzeurg"]).flat_values.numpy()
    pieces = WordPieceTokenizer.learn(["ab ab", "ab"], 100).get_config()["pieces"]
    assert pieces == ["a", "b", "##a", "##b", "##ab", "ab"]  # no more to merge
    many, few = (WordPieceTokenizer.learn(corpus(), size).tokenize(corpus()).flat_values for size in (251, 125))
    assert len(many) < len(few)


def test_the_limit_that_the_wordpiece_error_names_works():
    with pytest.raises(
        ValueError, match=r"vocabulary_size must be at least \d+ for this text .* Received: 50; raise it"
    ) as error:
        WordPieceTokenizer.learn(corpus(), 50)
    least = int(str(error.value).split(" for this text")[0].split()[-1])
    assert WordPieceTokenizer.learn(corpus(), least).vocabulary_size == least
    with pytest.raises(ValueError, match=f"at least {least}"):
        WordPieceTokenizer.learn(corpus(), least - 1)


WORDS, PIECES = WordTokenizer, WordPieceTokenizer


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: WORDS([]), ValueError, r"words must not be empty. Received: words=\[\]"),
        (lambda: WORDS(["a", "b", "a"]), ValueError, "words must not repeat. Received: 'a' 2 times"),
        (lambda: WORDS(["a", "b c"]), ValueError, "without blanks. Received: 'b c'"),
        (lambda: WORDS(["a", ""]), ValueError, "without blanks. Received: ''"),
        (lambda: WORDS(["a", 5]), ValueError, "words must be str .* Received: 5"),
        (lambda: WORDS(["a", "\ud800"]), ValueError, "valid Unicode"),
        (lambda: WORDS("abc"), TypeError, "words must be a list of str. Received: 'abc'"),
        (lambda: WORDS(["a"], split="word"), ValueError, 'split must be one of "words", "punctuation", "blanks". Rec'),
        (lambda: WORDS.learn(["a"], split="word"), ValueError, "split must be one of"),
        (lambda: WORDS.learn([]), ValueError, "expects text to learn from. Received: 0 words"),
        (lambda: WORDS.learn(["", " .\n"]), ValueError, "expects text to learn from. Received: 0 words"),
        (lambda: WORDS.learn(["a b"], min_count=2), ValueError, "Received: 2 words, none of them 2 times or more"),
        (lambda: WORDS.learn(["a"], min_count=0), ValueError, "min_count must be an int, at least 1. Received: 0"),
        (lambda: WORDS.learn(["a"], 4), ValueError, "vocabulary_size must be an int, at least 5. Received: 4"),
        (lambda: WORDS.learn(["a"], 8.0), ValueError, "vocabulary_size must be an int, at least 5. Received: 8.0"),
        (lambda: PIECES([]), ValueError, r"pieces must not be empty. Received: pieces=\[\]"),
        (lambda: PIECES(["a", "##a", "a"]), ValueError, "pieces must not repeat. Received: 'a' 2 times"),
        (lambda: PIECES(["a", "##"]), ValueError, "pieces must not be \"##\" or a special piece.* Received: '##'"),
        (lambda: PIECES(["<s>"]), ValueError, "special piece.* Received: '<s>'"),
        (lambda: PIECES(["a\0b"]), ValueError, r"control characters. Received: 'a\\x00b'"),
        (lambda: PIECES("abc"), TypeError, "pieces must be a list of str. Received: 'abc'"),
        (lambda: PIECES.learn([], 100), ValueError, "expects text to learn from. Received: no word at all"),
        (lambda: PIECES.learn([" \n"], 100), ValueError, "expects text to learn from. Received: no word at all"),
        (lambda: PIECES.learn(["a"], 4), ValueError, "vocabulary_size must be an int, at least 5. Received: 4"),
        (lambda: PIECES.learn(["a"], True), ValueError, "vocabulary_size must be an int, at least 5. Received: True"),
    ],
)
def test_wrong_words_get_one_sentence(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_words_need_no_tensorflow_text(monkeypatch, made_words):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'needs sentencepiece: pip install "keras-attention-zoo\[train\]"'):
        WordPieceTokenizer.learn(corpus(), 251)
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    assert WordTokenizer.learn(["a b"]).tokenize(["b"]).to_list() == [[5]]
    with pytest.raises(ImportError, match="WordPieceTokenizer needs tensorflow-text .* does not exist for Windows"):
        WordPieceTokenizer(["a"])
    with pytest.raises(ImportError, match="WordPieceTokenizer needs tensorflow-text"):
        WordPieceTokenizer.learn(["a"], 100)


# Files


def test_save_and_load(any_tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("an older file")
    save_tokenizer(any_tokenizer, path)
    loaded = load_tokenizer(str(path))
    assert type(loaded) is type(any_tokenizer) and loaded.get_config() == any_tokenizer.get_config()
    texts = list(TEXTS.values())
    assert loaded.tokenize(texts).to_list() == any_tokenizer.tokenize(texts).to_list()
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_config_round_trip(any_tokenizer):
    config = json.loads(json.dumps(any_tokenizer.get_config()))
    assert type(any_tokenizer).from_config(config).get_config() == any_tokenizer.get_config()


def test_config_keeps_byte_fallback_and_order():
    config = CharacterTokenizer("ba\n\u2028", byte_fallback=False).get_config()
    assert config == {"characters": "ba\n\u2028", "byte_fallback": False}
    assert CharacterTokenizer.from_config(config).get_config() == config


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(CharacterTokenizer("ab"), path)
    monkeypatch.setattr(tokenizers.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_tokenizer(CharacterTokenizer("abc"), path)
    assert load_tokenizer(path).characters == "ab"
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


SOUND = '{"class_name": "CharacterTokenizer", "config": {"characters": "ab", "byte_fallback": true}}'


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is not a whole tokenizer file"),
        ("{nothing", "is not a whole tokenizer file"),
        (SOUND[:50], "is not a whole tokenizer file"),
        ("[1, 2]", "is not a whole tokenizer file"),
        ('{"class_name": "CharacterTokenizer"}', "is not a whole tokenizer file"),
        (SOUND.replace("CharacterT", "ByteT"), "expected a tokenizer class of .* Received: 'ByteTokenizer'"),
        ('{"class_name": "WordTokenizer", "config": {"words": []}}', "a WordTokenizer: words must not be empty"),
        ('{"class_name": "WordTokenizer", "config": {"words": "ab"}}', "a WordTokenizer: words must be a list"),
        ('{"class_name": "WordPieceTokenizer", "config": {"words": ["a"]}}', "does not make a WordPieceTokenizer"),
        ('{"class_name": "WordPieceTokenizer", "config": {"pieces": ["##"]}}', "a WordPieceTokenizer: pieces must"),
        (SOUND.replace("byte_", "bite_"), "does not make a CharacterTokenizer"),
        (SOUND.replace('"ab"', "5"), "does not make a CharacterTokenizer"),
        (SOUND.replace('"ab"', '"aa"'), "does not make a CharacterTokenizer: characters must not repeat"),
        ('{"class_name": "SentencePieceTokenizer", "config": {}}', "does not make a SentencePieceTokenizer"),
        ('{"class_name": "SentencePieceTokenizer", "config": {"model": "?"}}', "does not make a Sentence"),
        ('{"class_name": "SentencePieceTokenizer", "config": {"model": "YWJj"}}', "Received: 3 bytes"),
    ],
)
def test_bad_files_get_one_sentence_with_the_path(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(FileNotFoundError, match="save_tokenizer wrote, but there is no file") as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


# SavedModel

FRESH = """
    import base64, json, sys
    import tensorflow as tf
    import tensorflow_text

    folder, names = sys.argv[1], sys.argv[2].split(",")
    texts = [base64.b64decode(text) for text in json.load(open(f"{folder}/texts.json"))]
    encode = lambda values: [base64.b64encode(value).decode() for value in values.ravel()]
    results = {"modern": {}, "session": {}}

    loaded = tf.saved_model.load(f"{folder}/model")
    for name in names:
        got = loaded.signatures[name](text=tf.constant(texts))
        ids, back, pieces = (got[key].numpy() for key in ("ids", "back", "pieces"))
        results["modern"][name] = [ids.tolist(), encode(back), encode(pieces)]

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], f"{folder}/model")
        for name in names:
            signature = meta.signature_def[name]
            fetches = [signature.outputs[key].name for key in ("ids", "back", "pieces")]
            ids, back, pieces = session.run(fetches, {signature.inputs["text"].name: texts})
            results["session"][name] = [ids.tolist(), encode(back), encode(pieces)]

    assert not [name for name in sys.modules if name.startswith("keras_attention")]
    json.dump(results, open(f"{folder}/results.json", "w"))
"""


def save_model(made, folder):
    module = tf.Module()
    signatures = {}
    for name, tokenizer in made.items():
        setattr(module, name, tokenizer.trackable)

        def serve(text, tokenizer=tokenizer):
            ids = tokenizer.tokenize(text).to_tensor(PAD)
            return {"ids": ids, "back": tokenizer.detokenize(ids), "pieces": tokenizer.pieces(ids)}

        signatures[name] = tf.function(serve, autograph=False).get_concrete_function(
            tf.TensorSpec([None], tf.string, name="text")
        )
    tf.saved_model.save(module, str(folder), signatures=signatures)


def test_saved_model_in_a_fresh_process_and_in_a_session(made, made_words, tmp_path):
    """All tokenizers in one model, at least two of a kind: resources of one name would all become the last one's."""
    other = WordPieceTokenizer.learn(corpus()[::-2], 211, lower=True)
    made = {**made, **made_words, "other_wordpiece": other}
    save_model(made, tmp_path / "model")
    texts = [*TEXTS.values(), *corpus()]
    encoded = [base64.b64encode(text.encode()).decode() for text in texts]
    (tmp_path / "texts.json").write_text(json.dumps(encoded))
    command = [sys.executable, "-c", textwrap.dedent(FRESH), str(tmp_path), ",".join(made)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())

    for name, tokenizer in made.items():
        ids = tokenizer.tokenize(texts).to_tensor(PAD)
        back, pieces = (
            [base64.b64encode(value).decode() for value in tensor.numpy().ravel()]
            for tensor in (tokenizer.detokenize(ids), tokenizer.pieces(ids))
        )
        for loader in ("modern", "session"):
            assert results[loader][name] == [ids.numpy().tolist(), back, pieces], (loader, name)


def test_import_needs_no_tensorflow():
    """The module itself; what its package imports is another test's matter."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tokenizers", {tokenizers.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.PAD == 0
assert not {{"tensorflow", "keras", "tensorflow_text", "sentencepiece"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
