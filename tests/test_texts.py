"""A language model's text: files, windows, training and its resume, prompts, streaming, pictures, the command line."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import marked, randomize

from keras_attention.models import (
    CharacterTokenizer,
    LanguageModel,
    Pipeline,
    SentencePieceTokenizer,
    attention_scores,
    greedy_search,
    stages,
)
from keras_attention.models.pipeline import PRETRAINED
from keras_attention.models.tokenizers import START
from keras_attention.training import cli, texts
from keras_attention.training.batching import Batches, Windows
from keras_attention.training.corpus import Corpus
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import resolve
from keras_attention.training.train import compile_model, read_run_recipe, train

VERSE = "ein Hund rennt\ndurch den Garten,\nund im Garten   steht ein Baum.\n\n가 나 €\n"
DRAWN = {"temperature": 1.0, "seed": 5}


def ask(*arguments, **options):
    result = CliRunner().invoke(cli.main, list(map(str, arguments)), **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def recipe(path, **sections):
    table = {
        "name": "tiny",
        "data": {"source": str(path), "window": 16, "examples": 40},
        "target_tokenizer": {"kind": "characters"},
        "model": {"kind": "language_model", "width": 16, "num_heads": 2, "layers": 1, "max_length": 32, "dropout": 0.1},
        "training": {
            "epochs": 3,
            "token_budget": 128,
            "learning_rate": 0.02,
            "monitor": "val_loss",
            "samples": 1,
            "weight_decay": 0.1,
        },
        "decoding": {"max_length": 20},
    }
    for section, values in sections.items():
        table[section] = {**table[section], **values}
    return resolve(table)


# Texts and windows


@pytest.fixture(scope="module")
def pieces():
    return SentencePieceTokenizer.learn(VERSE.split("\n"), 310)


def test_a_text_is_tokenized_in_parts_as_it_is_whole(pieces, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 7)
    for tokenizer in (pieces, CharacterTokenizer.learn([VERSE]), CharacterTokenizer("")):
        ids = texts.tokenize_text(VERSE, tokenizer)
        assert tokenizer.detokenize(ids[None]).numpy()[0].decode() == VERSE
        np.testing.assert_array_equal(ids, tokenizer.tokenize([VERSE])[0].numpy())
        ends = set(texts.line_ends(tokenizer))
        assert sum(int(i) in ends for i in ids) == VERSE.count("\n")


def test_validation_windows_predict_every_piece_but_the_first_once():
    ids = np.arange(4, 27, dtype="int32")
    batches = Batches(*texts.all_windows(ids, 5), token_budget=20, bucket_width=1, shuffle=False)
    predicted = []
    for x, y in batches:
        assert set(x) == {"target"}
        real = y != 0
        np.testing.assert_array_equal(x["target"][real] + 1, y[real])
        predicted += y[real].tolist()
    assert sorted(predicted) == ids[1:].tolist()


def test_training_windows_are_drawn_anew_and_lines_begin_with_start():
    ids = np.arange(4, 504, dtype="int32")
    ends = [103, 203, 303]
    _, one = texts.draw_windows(ids, ends, 2000, 8, seed=1, epoch=0)
    _, same = texts.draw_windows(ids, ends, 2000, 8, seed=1, epoch=0)
    _, other = texts.draw_windows(ids, ends, 2000, 8, seed=1, epoch=1)
    np.testing.assert_array_equal(one.starts, same.starts)
    assert np.mean(one.starts != other.starts) > 0.9
    assert len(np.unique(one.starts)) > 460  # of 492 places
    target, y = one.targets(np.arange(2000), 8)
    begins = target[:, 0] == START
    assert set(y[begins, 0].tolist()) == {4, 104, 204, 304}  # what follows on the end of a line, and the text's begin
    np.testing.assert_array_equal(target[:, 1:], y[:, :-1])
    assert not begins.all() and (y != 0).all()


def test_windows_of_any_length_batch_without_padding():
    windows = Windows(np.arange(4, 200, dtype="int32"), np.arange(0, 100), 13)
    corpus = Corpus(None, 200, lambda epoch: (None, windows), (None, windows))
    training = recipe("text.txt", training={"token_budget": 130}).training
    assert {y.shape for batches in corpus.batches(training, 0) for _, y in batches} == {(10, 13)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n \n", "nothing but blanks"),
        (b"abc\xff\n", "line 1: expected UTF-8"),
        (b"a", "too short to hold its last tenth out"),
        (b"abcd " * 20, "too few for windows of 256"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        train(recipe(tmp_path / "text.txt", data={"window": 256}, model={"max_length": 256}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_a_folder_s_text_lies(tmp_path):
    def found(**data):
        wanted = recipe(None, data={"source": None, "folder": str(tmp_path), **data})
        return [text[:9] for text in texts.read_texts(wanted)[:2]]

    with pytest.raises(InputError, match="should hold train.txt, or one .txt alone; it has none"):
        found()
    (tmp_path / "input.txt").write_text("0123456789" * 10)
    assert found() == ["012345678", "012345678"]
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="it has input.txt, notes.txt"):
        found()
    (tmp_path / "notes.txt").rename(tmp_path / "test.txt")
    (tmp_path / "dev.txt").write_text("to validate")
    assert found() == ["012345678", "to valida"]
    (tmp_path / "train.txt").write_text("to train on")
    assert found() == ["to train ", "to valida"]
    assert found(val_source=str(tmp_path / "input.txt")) == ["to train ", "012345678"]
    (tmp_path / "train.txt").unlink()
    (tmp_path / "input.txt").unlink()
    with pytest.raises(InputError, match="it has none"):
        found()


def test_prompts_are_beginnings_that_a_model_can_read():
    tokenizer = CharacterTokenizer("abc \n", byte_fallback=False)
    text = "abcabc abc\n\nab z\n" + "b" * 999
    assert texts.beginnings(text, tokenizer, 6) == ["abcabc", "bbbbbb"]
    assert texts.beginnings("\n", tokenizer, 6) == []


def test_weight_decay_is_for_matrices(run):
    model = Pipeline.load(run[0]).model
    compile_model(model, recipe("text.txt"), batches=5)
    decayed = [w.path.split("/")[-1] for w in model.trainable_variables if model.optimizer._use_weight_decay(w)]
    assert set(decayed) == {"kernel", "embeddings"} and len(decayed) == 8


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"target_tokenizer": {"kind": "words"}}, "target_tokenizer.kind must be one of characters, bytes, bpe"),
        ({"model": {"max_length": 8}}, "model.max_length of at least data.window, 16. Received: 8"),
        ({"model": {"num_heads": 3}}, "model.width must be a multiple of model.num_heads"),
        ({"model": {"alignment_layer": 1}}, "a layer, 0 to 0. Received: 1"),
        ({"training": {"monitor": "val_bleu"}}, "of a language model must be val_loss"),
        ({"data": {"target": "x"}}, "reads one text; data.target=x is for pairs"),
        ({"training": {"r_drop": 1.0}}, "are for pairs"),
        (
            {"training": {"final_learning_rate": 1e-4}},
            "is where the schedule cosine ends. Received: .*schedule=constant",
        ),
        ({"training": {"schedule": "cosine", "final_learning_rate": 1.0}}, "must be at most training.learning_rate"),
        ({"data": {"window": 0}}, "data.window must be at least 1"),
        ({"decoding": {"temperature": -1.0}}, "temperature of at least 0"),
        ({"decoding": {"repetition_penalty": 0.0}}, "repetition_penalty is at least 1"),
    ],
)
def test_recipes_that_make_no_sense(sections, message):
    with pytest.raises(InputError, match=message):
        recipe("text.txt", **sections)


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(VERSE * 8, encoding="utf-8")
    said = []
    metrics = train(recipe(folder / "text.txt"), folder / "run", say=said.append)
    return folder / "run", metrics, said


def test_a_run_holds_what_was_promised_and_resumes(run):
    out, metrics, said = run
    assert {path.name for path in out.iterdir()} > {"model.keras", "export", "plots", "tokens", "metrics.json"}
    assert "the last 58 of 576 characters are held out" in said[0]
    assert "a text of" in said[1] and metrics["val_loss"] < 4.5
    assert np.isclose(np.exp(metrics["val_loss"]), metrics["val_perplexity"], rtol=1e-4)
    assert "exact_match" not in str(metrics)
    before = json.loads((out / "history.json").read_text())
    for path in ("checkpoints/epoch-00002.npz", "metrics.json"):
        (out / path).unlink()
    again = train(read_run_recipe(out), out, resume=True, say=lambda text: None)
    assert json.loads((out / "history.json").read_text()) == before
    assert again["val_loss"] == metrics["val_loss"]


@pytest.mark.long
def test_a_run_goes_on_by_another_metric_but_not_with_another_optimizer(tmp_path, no_export):
    given = recipe(write(tmp_path / "text.txt", VERSE * 8), training={"epochs": 2, "monitor": "val_token_accuracy"})
    out = tmp_path / "run"
    train(given, out, say=lambda text: None)
    changed = read_run_recipe(out, ["training.monitor=val_loss", "training.epochs=4"])
    metrics = train(changed, out, resume=True, say=lambda text: None)
    losses = json.loads((out / "history.json").read_text())["val_loss"]
    assert np.isclose(metrics["val_loss"], min(losses[1:]), rtol=1e-5)  # of those that were still there
    changed = read_run_recipe(out, ["training.ema_momentum=0.9", "training.epochs=5"])
    with pytest.raises(InputError, match="optimizer's state in .* does not fit training.ema_momentum"):
        train(changed, out, resume=True, say=lambda text: None)


def test_evaluate_gives_the_loss_of_the_run(run, tmp_path):
    out, metrics, _ = run
    text = VERSE * 8
    (tmp_path / "val.txt").write_text(text[int(0.9 * len(text)) :], encoding="utf-8")
    scores = json.loads(ask("evaluate", out, tmp_path / "val.txt", "--json").stdout)
    assert np.isclose(scores["loss"], metrics["val_loss"], rtol=1e-4)
    assert scores["window"] == 16 and scores["characters"] == 58
    assert np.isclose(scores["nats_per_character"], scores["loss"] * scores["tokens"] / 58)
    for wrong, message in ((["x.txt"], "leave TARGET out"), (["--beam", 2], "leave --beam out")):
        assert message in ask("evaluate", out, tmp_path / "val.txt", *wrong).stderr
    assert "is empty" in ask("evaluate", out, write(tmp_path / "empty.txt", "")).stderr
    assert "no language model" in ask("evaluate", out, tmp_path / "val.txt", "--compare", "dates").stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bytes", *marked("release", ("bpe", "unigram"))])
def test_texts_of_other_pieces_train_and_are_gone_on_with(kind, tmp_path, no_export):
    text = VERSE * 8
    tokenizer = {"kind": kind, **({} if kind == "bytes" else {"vocabulary_size": 286})}
    training = {"epochs": 1, "monitor": "val_perplexity"}
    given = recipe(write(tmp_path / "text.txt", text), target_tokenizer=tokenizer, training=training)
    train(given, tmp_path / "run", say=lambda text: None)
    asked = Pipeline.load(tmp_path / "run")
    held_out = text[int(0.9 * len(text)) :]
    ids = texts.tokenize_text(held_out, asked.target_tokenizer)
    assert asked.target_tokenizer.detokenize(ids[None]).numpy()[0].decode() == held_out
    scores = json.loads(ask("evaluate", tmp_path / "run", write(tmp_path / "val.txt", held_out), "--json").stdout)
    assert scores["tokens"] == len(ids) - 1 and scores["characters"] == len(held_out)
    answer = ask("predict", tmp_path / "run", "ein Hund", "--temperature", 1, "--max-length", 8).stdout
    assert answer == asked(["ein Hund"], temperature=1.0, max_length=8)[0].text + "\n"


def test_characters_that_the_vocabulary_lacks_are_told(tmp_path, no_export):
    given = recipe(
        write(tmp_path / "text.txt", "abc abd\n" * 40),
        data={"val_source": str(write(tmp_path / "val.txt", "abc aé가b\n" * 4))},
        target_tokenizer={"byte_fallback": False},
        training={"epochs": 1},
    )
    said = []
    train(given, tmp_path / "run", say=said.append)
    assert any("the vocabulary lacks 'é', '가', which are read as one" in line for line in said)
    result = ask("evaluate", tmp_path / "run", tmp_path / "val.txt")
    assert result.exit_code == 2 and "characters that the model's vocabulary lacks: 'é', '가'." in result.stderr


def test_a_run_that_writes_end_at_once_is_finished(tmp_path, monkeypatch):
    def nothing(*arguments, **options):
        raise ValueError("Nothing is written for 'ein': there are no weights to look at.")

    monkeypatch.setattr("keras_attention.training.train.attention_scores", nothing)
    monkeypatch.setattr("keras_attention.models.Pipeline.export", lambda self, folder: folder)
    said = []
    out = tmp_path / "run"
    metrics = train(recipe(write(tmp_path / "text.txt", VERSE * 8), training={"epochs": 1}), out, say=said.append)
    assert "Nothing is written for 'ein': there are no weights to look at." in said
    assert [Path(path).name for path in metrics["plots"]] == ["history.png"]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.long
def test_predict_streams_one_prompt_and_gives_a_line_for_each_of_several(run):
    out, _, _ = run
    given = ("--temperature", 0.9, "--seed", 3, "--max-length", 12)
    results = json.loads(ask("predict", out, "ein ", "und", *given, "--json").stdout)["results"]
    assert ask("predict", out, "ein ", *given).stdout == results[0]["text"] + "\n"
    lines = ask("predict", out, "-", *given, input="ein \nund\n").stdout.split("\n")
    assert lines[:2] == [result["text"].replace("\n", " ") for result in results]
    assert len(results[0]["target_pieces"]) == 12
    assert "\u23ce" in ask("predict", out, "\n", "--attention", "--max-length", 3).stdout
    for wrong, message in (
        (["--temperature", -1], "temperature of at least 0"),
        (["--top-k", 3], "give temperature=1.0"),
        (["--temperature", 1, "--beam", 2], "with a beam, or drawn"),
    ):
        result = ask("predict", out, "ein", *wrong)
        assert result.exit_code == 2 and message in result.stderr


@pytest.mark.long
def test_pictures_of_prompt_and_answer(run, tmp_path):
    out, _, _ = run
    for options in ([], ["--heads"], ["--head", "decoder.0.1"]):
        result = ask("plot", out, "ein", tmp_path / "a.png", "--max-length", 5, *options)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "a.png").stat().st_size > 5000
    assert "decoder.0.0 to decoder.0.1" in ask("plot", out, "ein", tmp_path / "a.png", "--head", "cross.0.0").stderr


# Prompts


def pipeline(tokenizer=None, seed=0, max_length=24, **options):
    tokenizer = tokenizer or CharacterTokenizer("abcdefg \n", byte_fallback=False)
    sizes = {"width": 8, "num_heads": 2, "layers": 2, "max_length": max_length}
    model = randomize(LanguageModel(tokenizer.vocabulary_size, **sizes), seed=seed, scale=0.6)
    return Pipeline(model, tokenizer, tokenizer, **{"max_length": 9, **options})


def test_what_is_written_goes_on_where_the_prompt_ends():
    """Pieces that begin with a blank, and bytes of a character, too: prompt and answer are one text."""
    tokenizer = SentencePieceTokenizer.learn(VERSE.split("\n"), 310)
    asked = pipeline(tokenizer, seed=3)
    for prompt, result in zip(["ein", "Garten ", ""], asked(["ein", "Garten ", ""], **DRAWN), strict=True):
        ids = tokenizer.tokenize([prompt])[0].numpy().tolist()
        whole = tokenizer.detokenize([ids + result.target_ids]).numpy()[0].decode()
        assert prompt + result.text == whole
    assert any(
        result.target_pieces[0].startswith("\u2581")
        for result in asked(["ein"] * 99, max_length=1, **DRAWN)
        if result.text
    )


def test_attention_has_a_column_for_each_piece():
    asked = pipeline()
    one, empty = asked(["ab cd", ""])
    assert one.source_pieces == list("ab cd") and empty.source_pieces == ["<s>"]
    for result in (one, empty):
        size = len(result.source_pieces)
        assert result.attention.shape == (len(result.target_pieces), size + len(result.target_pieces))
        np.testing.assert_allclose(result.attention.sum(-1), 1, atol=1e-5)
        assert np.all(np.triu(result.attention, size) == 0)
    scores = attention_scores(asked, "ab cd", max_length=5)
    assert scores.encoder is None and scores.cross is None and list(scores.kinds) == ["decoder"]
    assert scores.labels("decoder")[0] == one.source_pieces + one.target_pieces[:5]
    np.testing.assert_allclose(scores.decoder[-1].mean(0)[4:9], one.attention[:5, :10], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.release),
        pytest.param({"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_pipeline_answers_alike_in_every_batch_plain_and_compiled(options, monkeypatch):
    monkeypatch.setattr(stages, "ROOM", 4)  # buffers of 4, 8 and 16 steps
    monkeypatch.setattr(stages, "FEW", 2)  # where parts of 8 rows begin with 4
    asked, prompts = pipeline(**options), 4 * ["abc", "", "a b c d", "g"]
    for given in ({"beam_width": 3, "num_return": 2}, {**DRAWN, "top_k": 5, "top_p": 0.9, "num_return": 2}):
        expected = asked(prompts, **given)
        assert len({tuple(result.target_ids) for result in expected}) > 2
        for how in ({"batch_size": 1}, {"batch_size": 16, "jit_compile": bool(options)}):
            for one, two in zip(asked(prompts, **given, **how), expected, strict=True):
                for answer, other in zip([one, *one.alternatives], [two, *two.alternatives], strict=True):
                    assert answer.target_ids == other.target_ids
                    assert abs(answer.score - other.score) < 1e-4
                    np.testing.assert_allclose(answer.attention, other.attention, atol=1e-4)
    ids = asked.model.encode({"source": np.array([[4, 5, 6]])})
    plain = greedy_search(asked.model, ids, 9, prompt=np.array([[4, 5, 6]]), **options)
    assert asked(["abc"])[0].target_ids == plain.ids.numpy()[0, 0, : int(plain.lengths[0, 0])].tolist()


@pytest.mark.long
def test_temperature_0_is_greedy_and_seeds_differ():
    asked = pipeline(temperature=1.0, max_length=20)
    greedy = asked(["abc", "g"], beam_width=1)
    assert [r.text for r in asked(["abc", "g"], temperature=0.0)] == [r.text for r in greedy]
    assert [r.text for r in asked(["abc", "g"], temperature=1.0, top_k=1)] == [r.text for r in greedy]
    drawn = {seed: asked(["abc"], seed=seed)[0].text for seed in range(5)}  # the pipeline's own temperature
    assert len(set(drawn.values())) == 5
    assert asked(["g", "abc"], seed=3)[1].text != drawn[3] == asked(["abc", "g"], seed=3)[0].text


def test_a_prompt_of_the_whole_context_has_room_for_one_piece_more():
    asked = pipeline(max_length=24)
    longest = "ab" * 12
    prompts = [longest, longest[:20], "a"]
    lengths = [len(result.target_ids) for result in asked(prompts, max_length=100)]
    assert lengths == [1, 5, 24]  # END is never the most probable here
    roomy = pipeline(max_length=2048)
    assert int(roomy.limits(np.array([10]), 3000)[0]) == 2039
    with pytest.raises(ValueError, match="at most 24 pieces. Received: input 1 has 25"):
        asked(["a", longest + "a"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.long),
        pytest.param({"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}, marks=pytest.mark.release),
    ],
    ids=str,
)
def test_a_stream_is_the_drawn_answer(options):
    asked, counts = pipeline(**options), []
    for prompt in ("abc", ""):
        for given in (DRAWN, {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "seed": 2}):
            parts = list(asked.stream(prompt, **given))
            assert "".join(parts) == asked([prompt], **given)[0].text
            assert all(parts)
            counts.append(len(parts))
        assert "".join(asked.stream(prompt)) == asked([prompt])[0].text
    assert max(counts) > 6


@pytest.mark.long
def test_a_stream_goes_on_where_the_context_is_full():
    asked = pipeline(max_length=10)
    text = "".join(asked.stream("abc", max_length=60, **DRAWN))
    first = asked(["abc"], max_length=60, **DRAWN)[0].text  # which stops there
    assert len(first) <= 8 and text.startswith(first) and len(text) > 20
    # What follows is written behind the last half of the context.

    assert len(first) == 8
    greedy = "".join(asked.stream("abc", max_length=9))
    ids = asked.source_tokenizer.tokenize(["abc" + greedy[:8]])[0].numpy()[-5:]
    expected = greedy_search(asked.model, asked.model.encode({"source": ids[None]}), 1).ids.numpy()[0, 0, 0]
    assert asked.source_tokenizer.tokenize([greedy])[0].numpy()[8] == expected


def test_a_stream_never_gives_half_a_character():
    tokenizer = CharacterTokenizer("")  # bytes
    asked = pipeline(tokenizer, max_length=64)
    weights = asked.model.embedding.embeddings
    table = weights.numpy()
    korean = sorted({byte for character in "가나다라" for byte in character.encode()})
    others = np.setdiff1d(np.arange(260), np.array(korean) + 4)
    table[others] -= 3 * np.sign(table[others].mean(0))
    weights.assign(table)
    seen = ""
    for seed in range(6):
        parts = list(asked.stream("가", temperature=1.5, seed=seed, max_length=30))
        whole = asked(["가"], temperature=1.5, seed=seed, max_length=30)[0].text
        assert "".join(parts) == whole
        for place, part in enumerate(parts[:-1]):
            assert not part.endswith("\ufffd"), place
        seen += whole
    assert seen


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (b"a\xc3", b"\xa9b", "éb"),
        (b"a\xf0\x9f\x98", b"\x80b", "\U0001f600b"),
        (b"a\xf0\x9f\x98", b"b", "b"),  # the character is never completed
        (b"a\xff\xc3", b"\xa9b", "éb"),
        (b"a\xff", "가 나€".encode(), "가 나€"),
        (b"a", b"\xc3\xa9", "é"),
        (b"", b"b", "b"),
    ],
)
def test_an_answer_completes_a_prompt_of_ids_that_ends_inside_of_a_character(prompt, answer, expected):
    import tensorflow as tf

    from keras_attention.models.streaming import _Text

    asked = Pipeline(pipeline(CharacterTokenizer("")).model, None, CharacterTokenizer(""))
    ids, written = ([[byte + 4 for byte in data]] for data in (prompt, answer))
    found = asked._texts({"source": tf.constant(ids, tf.int32)}, tf.constant([written], tf.int32))
    assert found.numpy()[0].decode() == expected
    text = _Text(asked, ids[0])
    parts = [part for token in written[0] for part in text.more(token)]
    assert parts == list(expected) and not list(text.rest())  # whole characters, as soon as they are there


@pytest.mark.long
def test_a_stream_gives_only_what_is_new_after_a_damaged_prompt():
    tokenizer = CharacterTokenizer("")
    asked = pipeline(tokenizer, max_length=64)
    for prompt in (b"abc\xff", "abc\ufffd", "abc\x10"):
        assert "".join(asked.stream(prompt, **DRAWN)) == asked([prompt], **DRAWN)[0].text


@pytest.mark.release
def test_a_long_stream_is_the_whole_text():
    """Far longer than what is written anew for each token."""
    for tokenizer in (CharacterTokenizer(""), SentencePieceTokenizer.learn(VERSE.split("\n"), 310)):
        asked = pipeline(tokenizer, max_length=400)
        for prompt in ("", "가 나 € " * 9):
            given = {"temperature": 2.0, "seed": 1, "max_length": 250}
            assert "".join(asked.stream(prompt, **given)) == asked([prompt], **given)[0].text


def test_a_served_prompt_with_a_character_that_the_vocabulary_lacks_is_refused(tmp_path):
    import tensorflow as tf

    answer = pipeline().function()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"vocabulary lacks a character of these rows.*\[1\]"):
        answer(text=tf.constant(["abc", "abz"]), max_length=tf.constant(5))


@pytest.mark.long
def test_ids_in_and_out(tmp_path):
    import tensorflow as tf

    asked = Pipeline(pipeline().model, max_length=6)
    one, empty = asked([[4, 5, 6], []])
    assert one.source_pieces == [] and one.attention.shape == (len(one.target_ids), 3 + len(one.target_ids))
    assert list(asked.stream([4, 5, 6])) == one.target_ids
    served = tf.saved_model.load(str(asked.export(tmp_path / "ids")))
    outputs = served.signatures["serving_default"](tokens=tf.constant([[4, 5, 6], [0, 0, 0]]))
    assert [[i for i in row if i] for row in outputs["target_ids"].numpy().tolist()] == [
        one.target_ids,
        empty.target_ids,
    ]
    sampled = served.signatures["serving_sampled"]
    given = {"seed": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": 4}
    wrong = {"temperature": (-1.0, "temperature must be at least 0"), "top_k": (-2, "top_k must be at least 1")}
    wrong |= {"top_p": (0.0, "top_p must be above 0"), "max_length": (0, "max_length must be at least 1")}
    for name, (value, message) in [*wrong.items(), ("max_length", (7, "max_length must be at most 6"))]:
        constants = {key: tf.constant(number) for key, number in {**given, name: value}.items()}
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            sampled(tokens=tf.constant([[4, 5, 6]]), **constants)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p(["abz"]), ValueError, "vocabulary lacks 'z'. Received: input 0, 'abz'"),
        (lambda p: p(["a"], temperature=-1.0), ValueError, "temperature of at least 0"),
        (lambda p: p(["a"], temperature=float("nan")), ValueError, "temperature of at least 0"),
        (lambda p: p.stream("a", temperature=np.float32(-1)), ValueError, "temperature of at least 0"),
        (lambda p: p(["a"], temperature=1.0, beam_width=2), ValueError, "with a beam, or drawn at a temperature"),
        (lambda p: p(["a"], top_p=0.5), ValueError, "give temperature=1.0"),
        (lambda p: p(["a"], temperature=1.0, seed=2**31), ValueError, "a seed from 0 to 2147483647"),
        (lambda p: p(["a"], max_length=0), ValueError, "max_length of at least 1. Received: max_length=0"),
        (lambda p: p.stream("z"), ValueError, "vocabulary lacks 'z'"),
        (lambda p: p.stream("a", temperature=-1.0), ValueError, "temperature of at least 0"),
        (lambda p: Pipeline.from_preset("dates").stream("1"), TypeError, "for language models. Received: a Seq2Seq"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(pipeline())


@pytest.mark.long
def test_fine_tuning_goes_on_from_a_run(run, tmp_path, no_export):
    out, _, _ = run
    (tmp_path / "text.txt").write_text("Äpfel im Garten\n" * 30, encoding="utf-8")
    said = []
    train(recipe(tmp_path / "text.txt"), tmp_path / "tuned", init=out, say=said.append)
    assert any("lacked these characters, now added: flpÄ" in line for line in said)
    tuned = keras.saving.load_model(tmp_path / "tuned" / "model.keras")
    assert tuned.vocabulary == Pipeline.load(out).model.vocabulary + 4


@pytest.mark.long
def test_the_shipped_model_writes_speeches():
    shipped = Pipeline.from_preset("shakespeare_char")
    text = "".join(shipped.stream("ROMEO:", seed=1, max_length=300))  # four and more contexts
    assert len(text) == 300 and text.count("\n") > 3 and len(text.split()) > 30
    assert sum(path.stat().st_size for path in (PRETRAINED / "shakespeare_char").iterdir()) < 2_000_000


@pytest.mark.skipif("KERAS_ATTENTION_DATA" not in os.environ, reason="KERAS_ATTENTION_DATA is not set")
def test_the_shipped_model_predicts_the_last_tenth(tmp_path):
    text = (Path(os.environ["KERAS_ATTENTION_DATA"]) / "tinyshakespeare" / "input.txt").read_text()
    (tmp_path / "val.txt").write_text(text[int(0.9 * len(text)) :])
    scores = json.loads(ask("evaluate", "shakespeare_char", tmp_path / "val.txt", "--json").stdout)
    assert scores["characters"] == 111540 and scores["loss"] < 1.88
