"""Weights of all layers and heads, likeness of words' states, and their pictures. Sizes: H = 2, layers 2 + 3."""

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import randomize, to_numpy

from keras_attention.models import (
    Pipeline,
    SentencePieceTokenizer,
    Seq2Seq,
    Transformer,
    WordPieceTokenizer,
    attention_scores,
    inspection,
    word_similarity,
)
from keras_attention.training import cli, plots

LINES = ["ein Hund rennt durch den Garten", "der Hund schläft", "eine Bank im Garten", "die Bank ist zu", "ein Hund"]
RIVER, MONEY = "eine Bank im Garten", "die Bank ist zu"


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = SentencePieceTokenizer.learn(LINES, 310)
    sizes = {"width": 8, "num_heads": 2, "feed_forward_units": 11, "encoder_layers": 2, "decoder_layers": 3}
    model = randomize(Transformer(310, 310, **sizes, share_embeddings=True), scale=0.4)
    return Pipeline(model, tokenizer, tokenizer, max_length=7, max_source_length=40)


@pytest.fixture
def folder(pipeline, tmp_path, monkeypatch):
    """A run's folder, read without the seconds that loading takes."""
    pipeline.save(tmp_path / "run")
    monkeypatch.setattr(Pipeline, "load", lambda path: pipeline)
    return tmp_path / "run"


def ask(*arguments):
    return CliRunner().invoke(cli.main, ["plot", *map(str, arguments)])


def test_the_weights_of_an_answer_are_those_that_decoding_used(pipeline):
    scores = attention_scores(pipeline, RIVER)
    result = pipeline([RIVER])[0]
    assert scores.source_pieces == result.source_pieces and scores.target_pieces == result.target_pieces
    size, length = len(scores.source_pieces), len(scores.target_pieces)
    assert scores.encoder.shape == (2, 2, size, size)
    assert scores.decoder.shape == (3, 2, length, length)
    assert scores.cross.shape == (3, 2, length, size)
    aligned = scores.cross[pipeline.model.alignment_layer].mean(axis=0)
    np.testing.assert_allclose(aligned, result.attention, atol=1e-5)
    assert np.all(np.triu(scores.decoder, 1) == 0)
    for kind in ("encoder", "decoder", "cross"):
        np.testing.assert_allclose(getattr(scores, kind).sum(-1), 1, atol=1e-5)
        rows, columns = scores.labels(kind)
        assert getattr(scores, kind).shape[2:] == (len(rows), len(columns))
    assert scores.labels("decoder")[1] == ["<s>", *scores.target_pieces[:-1]]


def test_a_given_target_is_looked_at_in_place_of_the_answer(pipeline):
    scores = attention_scores(pipeline, RIVER, target="der Hund schläft")
    ids = pipeline.target_tokenizer.tokenize(["der Hund schläft"])[0].numpy()
    assert "".join(scores.target_pieces).replace("\u2581", " ").strip() == "der Hund schläft"
    source = pipeline.source_tokenizer.tokenize([RIVER]).to_tensor()
    x = {"source": source, "target": np.array([[2, *ids[:-1]]])}
    expected = pipeline.model(x, return_attention_scores=True)[1]["cross"][1]
    np.testing.assert_allclose(scores.cross[1], to_numpy(expected)[0], atol=1e-6)


def test_ids_in_and_out_are_their_own_labels():
    scores = attention_scores(Pipeline(Transformer.tiny(11, 11)), [4, 5, 6], target=[7, 8])
    assert (scores.source_pieces, scores.target_pieces) == (["4", "5", "6"], ["7", "8"])


def test_likeness_is_the_cosine_of_states(pipeline):
    similarity, pieces = word_similarity(pipeline, "Bank", RIVER, MONEY)
    assert similarity.shape == (3, len(pieces)) and np.all(np.abs(similarity) <= 1 + 1e-5)
    assert "".join(pieces).replace("\u2581", " ").strip() == MONEY

    def states(text):
        ids = pipeline.source_tokenizer.tokenize([text]).to_tensor()
        return [to_numpy(layer)[0] for layer in pipeline.model.encode({"source": ids}, return_hidden_states=True)[1]]

    own = [
        piece.decode()
        for piece in pipeline.source_tokenizer.pieces(pipeline.source_tokenizer.tokenize([RIVER]))[0].numpy()
    ]
    place = slice(
        *next(
            (i, j)
            for i in range(len(own))
            for j in range(i + 1, len(own) + 1)
            if "".join(own[i:j]).strip("\u2581") == "Bank"
        )
    )
    for row, one, two in zip(similarity, states(RIVER), states(MONEY), strict=True):
        word = one[place].mean(axis=0)
        cosines = two @ word / np.linalg.norm(two, axis=1) / np.linalg.norm(word)
        np.testing.assert_allclose(row, cosines, atol=1e-5)


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("Bank", "eine Bank im Garten", "Bank"),
        ("Garten", "der Hund rennt durch den Garten.", "Garten"),
        ("ein", "eine Bank, ein Hund", "ein"),  # not the beginning of another word
        ("im", "schlimm im Garten", "im"),  # nor the end
        ("und", "ein Hund", None),
        ("Garten", "ein  Garten", "Garten"),
        ("고양이", "한 고양이", "고양이"),  # in bytes
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_word_is_found_as_a_whole(word, text, found, kind):
    learn = {"bpe": SentencePieceTokenizer.learn, "wordpiece": WordPieceTokenizer.learn}[kind]
    tokenizer = learn([*LINES, text], 310)
    ids = tokenizer.tokenize([text])[0].numpy()
    place = inspection._find(word, ids, tokenizer)
    assert (place is None) == (found is None)
    if place is not None:
        until = [tokenizer.detokenize([ids[:end].tolist()]).numpy()[0].decode() for end in (place.start, place.stop)]
        assert until[1][len(until[0]) :].strip() == found
        assert until[0] == "" or until[1][len(until[0])] == " " or not until[0][-1].isalnum()


def test_what_cannot_be_looked_at_says_so(pipeline):
    with pytest.raises(ValueError, match="source is empty"):
        attention_scores(pipeline, "")
    with pytest.raises(ValueError, match="Nothing is written for 'ein Hund'"):
        attention_scores(pipeline, "ein Hund", target="")
    with pytest.raises(ValueError, match="'Katze' does not stand in 'eine Bank"):
        word_similarity(pipeline, "Katze", RIVER, MONEY)
    rnn = Pipeline(Seq2Seq(11, 11, units=8))
    with pytest.raises(ValueError, match="A Seq2Seq has one alignment"):
        attention_scores(rnn, [4, 5], target=[6])
    with pytest.raises(ValueError, match="word_similarity expects the pipeline of a Transformer"):
        word_similarity(rnn, "a", "a", "b")
    with pytest.raises(ValueError, match="word_similarity expects the pipeline of a Transformer"):
        word_similarity(Pipeline.from_preset("dates"), "Nov", "20 Nov 2026", "3 Nov 1999")
    ids = Pipeline(Transformer.tiny(11, 11))
    for wrong in ([99], [7, 0, 8]):
        with pytest.raises(ValueError, match=r"ids from 1 to 10. Received: (99|0)"):
            attention_scores(ids, [4, 5], target=wrong)


@pytest.mark.parametrize(
    "options",
    [
        ["--heads"],
        ["--head", "cross.1.0"],
        ["--head", "decoder.2.1"],
        ["--positions"],
        ["--word", "Bank", "--other", MONEY],
    ],
)
def test_plot_draws_them(folder, tmp_path, options):
    result = ask(folder, RIVER, tmp_path / "a.png", *options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.splitlines()[-1] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "cross.3.0"], "encoder.0.0 to encoder.1.1, decoder.0.0 to decoder.2.1, cross.0.0 to cross.2.1"),
        (["--head", "self.0.0"], "Received: 'self.0.0'"),
        (["--head", "cross.0"], "Received: 'cross.0'"),
        (["--head", "cross.0.-1"], "Received: 'cross.0.-1'"),
        (["--heads", "--positions"], "One picture at a time"),
        (["--word", "Bank"], "--word and --other belong together"),
        (["--positions", "--beam", "2"], "--beam is for pictures of an answer"),
        (["--word", "Katze", "--other", MONEY], "'Katze' does not stand in"),
    ],
)
def test_plot_refuses(folder, tmp_path, options, message):
    result = ask(folder, RIVER, tmp_path / "a.png", *options)
    assert result.exit_code == 2 and message in result.stderr.splitlines()[-1], result.output
    assert not (tmp_path / "a.png").exists()


def test_models_without_added_positions_say_so(tmp_path):
    tokenizer = SentencePieceTokenizer.learn(LINES, 310)
    Pipeline(Transformer.tiny(310, 310, position="rotary"), tokenizer, tokenizer).save(tmp_path / "run")
    result = ask(tmp_path / "run", RIVER, tmp_path / "a.png", "--positions")
    assert result.exit_code == 2 and "add positions to embeddings" in result.stderr


def test_the_grid_has_a_cell_for_every_head(pipeline):
    figure = plots.plot_heads(attention_scores(pipeline, RIVER), title="a title")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == (2 + 3 + 3) * 2 and titles[0] == "encoder 0, head 0" and titles[-1] == "cross 2, head 1"
    for axes, weights in zip(figure.axes[-2:], attention_scores(pipeline, RIVER).cross[2], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    figure.canvas.draw()
    box = figure.get_tightbbox().padded(-0.01)
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()


def test_pictures_of_the_wrong_form_say_so():
    with pytest.raises(ValueError, match=r"encoding \[positions, D\]. Received: shape \(3,\)"):
        plots.plot_positions(np.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 1 pieces"):
        plots.plot_similarity(np.zeros((2, 2)), ["a"], "a")
