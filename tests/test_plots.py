import importlib.util
import re
import sys
import warnings

import numpy as np
import pytest

from keras_attention.training import plots
from keras_attention.training.errors import InputError

KOREAN = "2026년 11월 20일"
ISO = "2026-11-20"


def some_weights(targets, sources):
    weights = np.random.default_rng(7).random((targets, sources))
    return weights / weights.sum(axis=1, keepdims=True)


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def stands_on_its_page(figure):
    """Whether all that is drawn, titles and labels too, lies wholly on the page."""
    figure.canvas.draw()
    box = figure.get_tightbbox().padded(-0.01)  # in inches
    width, height = figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_an_alignment_s_axes_say_what_they_are():
    given = [[0.1, 0.9]], ["a", "b"], ["c"]
    for names, options in ((("source", "target"), {}), (("text", "text"), {"axis_names": ("text", "text")})):
        axes = plots.plot_alignment(*given, **options).axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == names


def test_alignment_shows_the_weights_and_one_label_a_piece():
    weights = some_weights(len(ISO), len(KOREAN))
    figure = plots.plot_alignment(weights, list(KOREAN), list(ISO), title="a title")
    axes, bar = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert axes.images[0].get_clim() == (0, 1)
    assert bar.get_ylim() == (0, 1)
    assert list(axes.get_xticks()) == list(range(13))
    assert list(axes.get_yticks()) == list(range(10))
    assert labels(axes.xaxis) == list("2026년␣11월␣20일")
    assert labels(axes.yaxis) == list(ISO)
    assert axes.xaxis.get_ticks_position() == "top"
    assert figure.get_suptitle() == "a title"
    top, bottom = axes.transData.transform([(0, 0), (0, 9)])[:, 1]
    assert top > bottom  # the first target piece stands highest


def test_blanks_and_bytes_and_dollars_are_shown_as_they_are():
    sources = [b"\xea\xb0\x80", "a b", "\t", "$x_2$", "\u3000"]
    figure = plots.plot_alignment(some_weights(2, 5), sources, ["\n", "_y"], title="$z$")
    axes = figure.axes[0]
    assert labels(axes.xaxis) == ["가", "a␣b", "⇥", "$x_2$", "␣"]
    assert labels(axes.yaxis) == ["↵", "_y"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    assert figure.get_suptitle() == "$z$"
    assert not figure._suptitle.get_parse_math()


def test_long_pieces_stand_upright_and_short_ones_do_not():
    upright = plots.plot_alignment(some_weights(2, 3), ["überquert", "die", "Straße"], ["the", "street"])
    assert {label.get_rotation() for label in upright.axes[0].get_xticklabels()} == {90}
    level = plots.plot_alignment(some_weights(2, 3), ["a", "b", "년"], ["the", "street"])
    assert {label.get_rotation() for label in level.axes[0].get_xticklabels()} == {0}


@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (11, 29), (61, 59)])
@pytest.mark.parametrize("piece", ["x", "Straßenbahn"])
def test_size_grows_and_nothing_is_cut_off_or_overlaps(targets, sources, piece):
    title = "ein langer Titel, der über mehr als eine Zeile geht: " + KOREAN
    figure = plots.plot_alignment(some_weights(targets, sources), [piece] * sources, [piece] * targets, title)
    width, height = figure.get_size_inches()
    assert width > 0.2 * sources and height > 0.2 * targets
    assert stands_on_its_page(figure)
    axes = figure.axes[0]
    for axis, low, high in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels()[::-1], "y0", "y1")):
        extents = [label.get_window_extent() for label in axis]
        assert all(getattr(a, high) < getattr(b, low) for a, b in zip(extents, extents[1:], strict=False))


def test_alignment_of_the_wrong_shape_says_so():
    with pytest.raises(ValueError, match=r"received shape \(3, 2\) for 2 target and 3 source pieces"):
        plots.plot_alignment(some_weights(3, 2), list("abc"), list("de"))
    with pytest.raises(ValueError, match=r"at least one of each; received shape \(0,\) for 0 target and 3 source"):
        plots.plot_alignment([], list("abc"), [])


def test_history_draws_a_metric_beside_its_validation_twin():
    nan = float("nan")
    history = {
        "acc": [0.1, 0.2, 0.3],
        "val_loss": [4.0, 3.0, 3.5],
        "loss": [5.0, 3.0, 2.0],
        "val_bleu": [nan, 7.0, nan],
    }
    figure = plots.plot_history(history, title="run 한국")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "acc", "bleu"]
    loss, accuracy, bleu = ([line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes)
    assert loss == [[[1, 5.0], [2, 3.0], [3, 2.0]], [[1, 4.0], [2, 3.0], [3, 3.5]]]
    assert accuracy == [[[1, 0.1], [2, 0.2], [3, 0.3]]]
    assert bleu == [[[2, 7.0]]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training", "validation"]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["validation"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert stands_on_its_page(figure)


@pytest.mark.parametrize("values", [[1.0], [float("nan")] * 3, [1.0, float("inf"), float("nan")]])
def test_history_of_one_epoch_or_none_known_is_drawn(values, tmp_path):
    figure = plots.plot_history({"loss": values})
    plots.save_figure(figure, tmp_path / "loss.png")
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    assert len(figure.axes[0].lines[0].get_xdata()) == int(np.isfinite(values).sum())


def test_history_of_the_wrong_form_says_so():
    with pytest.raises(ValueError, match="at least one metric; received an empty history"):
        plots.plot_history({})
    with pytest.raises(ValueError, match="a list of numbers, one an epoch, for each metric; received 0.5 for 'loss'"):
        plots.plot_history({"loss": 0.5})


def buckets(scores, ranges=((1, 5), (6, 10), (11, 11), (12, 40)), pairs=(31, 1402, 0, 7)):
    rows = zip(ranges, pairs, scores, strict=True)
    return [{"low": low, "high": high, "pairs": count, "score": score} for (low, high), count, score in rows]


def overlap(texts):
    """Whether any of some texts that stand beside each other touch."""
    extents = [text.get_window_extent() for text in texts]
    return any(a.x1 >= b.x0 for a, b in zip(extents, extents[1:], strict=False))


def test_scores_by_length_draws_a_line_a_model_and_the_pairs_below():
    curves = {"_with": buckets([30.5, 41.0, None, 29.0]), "없이 $x$": buckets([30.0, 20.0, None, 8.0])}
    figure = plots.plot_scores_by_length(curves, "bleu", title="val.de 한국", unit="characters")
    above, below = figure.axes
    nan = float("nan")
    drawn = [line.get_xydata() for line in above.lines]
    np.testing.assert_allclose(drawn[0], [[-0.05, 30.5], [0.95, 41.0], [1.95, nan], [2.95, 29.0]])
    np.testing.assert_allclose(drawn[1], [[0.05, 30.0], [1.05, 20.0], [2.05, nan], [3.05, 8.0]])
    assert [text.get_text() for text in above.get_legend().get_texts()] == list(curves)
    assert len({line.get_marker() for line in above.lines}) == len({line.get_color() for line in above.lines}) == 2
    assert above.get_ylabel() == "BLEU" and above.get_ylim()[0] == 0 and 41 < above.get_ylim()[1] < 50
    assert labels(below.xaxis) == ["1–5", "6–10", "11", "12–40"]
    assert below.get_xlabel() == "length of the source (characters)"
    assert [bar.get_height() for bar in below.patches] == [31, 1402, 0, 7]
    assert [text.get_text() for text in below.texts] == ["31", "1,402", "0", "7"]
    assert stands_on_its_page(figure)


@pytest.mark.parametrize("count", [1, 2, 13])
@pytest.mark.parametrize("runs", [1, 6])
def test_scores_by_length_fit_their_page_and_nothing_overlaps(count, runs):
    ranges = [(1000 * i + 1, 1000 * (i + 1)) for i in range(count)]
    some = buckets([0.0] * count, ranges, [123456] * count)
    figure = plots.plot_scores_by_length({f"run {i}": some for i in range(runs)}, "exact_match", "a title " * 12)
    assert stands_on_its_page(figure)
    above, below = figure.axes
    assert above.get_ylim() == (0, 1.05)
    assert not overlap(below.get_xticklabels()) and not overlap(below.texts)
    legend, title = above.get_legend().get_window_extent(), figure._suptitle.get_window_extent()
    assert above.get_window_extent().y1 <= legend.y0 and legend.y1 <= title.y0
    assert all(text.get_window_extent().y1 < above.get_window_extent().y0 for text in below.texts)


def test_scores_by_length_of_no_or_unlike_buckets_say_so():
    for curves in ({}, {"a": []}):
        with pytest.raises(ValueError, match="at least one of them"):
            plots.plot_scores_by_length(curves, "bleu")
    unlike = {"a": buckets([1, 2, 3, 4]), "b": buckets([1, 2, 3, 4], pairs=(31, 1402, 0, 8))}
    with pytest.raises(ValueError, match="all with the same buckets"):
        plots.plot_scores_by_length(unlike, "bleu")


def test_a_picture_that_could_not_be_written_is_told_and_nothing_is_made(tmp_path, monkeypatch):
    plots.check_picture(tmp_path / "new" / "folder" / "a.png")
    plots.check_picture("a.SVG")
    (tmp_path / "file").write_text("x")
    for path, expected in (
        (tmp_path / "a.pdf", "must end in .png or .svg"),
        (tmp_path / "file" / "new" / "a.png", f"cannot be written in {tmp_path / 'file'}"),
    ):
        with pytest.raises(InputError, match=re.escape(expected)):
            plots.check_picture(path)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="Plots need matplotlib"):
        plots.check_picture(tmp_path / "a.png")


def test_saved_pictures_are_whole_and_of_their_kind(tmp_path):
    def save(folder):
        figure = plots.plot_alignment(some_weights(3, 5), list("가나다 a"), list("xyz"), KOREAN)
        return plots.save_figure(figure, folder / "a.PNG"), plots.save_figure(figure, str(folder / "a.svg"))

    png, svg = (path.read_bytes() for path in save(tmp_path / "new"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
    assert b"<svg" in svg and svg.rstrip().endswith(b"</svg>")
    assert b"<text" not in svg  # outlines, which show without the font
    assert [path.read_bytes() for path in save(tmp_path)] == [png, svg]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg", "new"]


def test_other_suffixes_are_refused_and_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    figure = plots.plot_history({"loss": [2.0, 1.0]})
    for name in ("a.pdf", "a", ".png"):
        with pytest.raises(InputError, match=r"must end in \.png or \.svg; received"):
            plots.save_figure(figure, tmp_path / name)
    old = plots.save_figure(figure, tmp_path / "a.png").read_bytes()

    def half_written(path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(figure, tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", old)]


@pytest.mark.skipif(
    not importlib.util.find_spec("koreanize_matplotlib"), reason="koreanize-matplotlib is not installed"
)
def test_the_chosen_fonts_have_hangul_kana_greek_and_cyrillic():
    from matplotlib import font_manager

    figure = plots.plot_alignment([[1.0]], ["한"], ["x"])
    label = figure.axes[0].get_xticklabels()[0]
    paths = [font_manager.findfont(name) for name in label.get_fontfamily()]
    charmaps = [font_manager.get_font(path).get_charmap() for path in paths]
    for character in KOREAN.replace(" ", "") + "힣日本語あアüßЖΩ␣▁□":
        assert any(ord(character) in charmap for charmap in charmaps), character
    assert "koreanize_matplotlib" not in sys.modules
    # What is drawn is the glyph: two syllables differ, while two missing ones would be the same box.
    pictures = []
    for syllable in "가힣":
        figure = plots.plot_alignment([[1.0]], [syllable], ["x"])
        figure.canvas.draw()
        pictures.append(bytes(figure.canvas.buffer_rgba()))
    assert pictures[0] != pictures[1]


@pytest.fixture
def only_dejavu(monkeypatch):
    fonts = {"DejaVu Sans": plots._fonts()["DejaVu Sans"]}
    monkeypatch.setattr(plots, "_fonts", lambda: fonts)
    plots._warn_of_script.cache_clear()
    yield
    plots._warn_of_script.cache_clear()


def test_a_missing_font_is_said_once_a_script_and_boxes_are_drawn(only_dejavu):
    with pytest.warns(UserWarning) as said:
        figure = plots.plot_alignment(some_weights(2, 3), ["한", "국", "あ"], ["中", "a"], "국\n한 ü")
    messages = sorted(str(warning.message) for warning in said)
    assert len(messages) == 2
    assert "Chinese and Japanese characters" in messages[0] and "fonts-noto-cjk" in messages[0]
    assert "Hangul characters" in messages[1] and "koreanize-matplotlib" in messages[1]
    assert {warning.filename for warning in said} == {__file__}
    assert labels(figure.axes[0].xaxis) == ["□", "□", "□"]
    assert labels(figure.axes[0].yaxis) == ["□", "a"]
    assert figure.get_suptitle() == "□ □ ü"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.plot_alignment(some_weights(2, 3), ["한", "\x10", "あ"], ["中", "a"])
        figure.canvas.draw()
    assert labels(figure.axes[0].xaxis) == ["□", "□", "□"]


def test_without_matplotlib_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install "keras-attention-zoo\[train\]"'):
        plots.plot_history({"loss": [1.0]})


def test_neither_pyplot_nor_settings_are_touched(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    before = dict(matplotlib.rcParams)
    plots.save_figure(plots.plot_alignment(some_weights(2, 3), list("가bc"), list("de")), tmp_path / "a.svg")
    plots.save_figure(plots.plot_history({"loss": [2.0, 1.0]}), tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before


# Captions of images


IMAGE = np.arange(12 * 8 * 3, dtype="uint8").reshape(12, 8, 3)


def test_a_caption_has_a_picture_for_every_word_dark_where_it_did_not_look():
    maps = np.zeros((7, 3, 2))
    maps[np.arange(7), np.arange(7) % 3, 1] = 0.8
    words = ["a", "dog", "runs", "in", "the", "snow", "개"]
    figure = plots.plot_caption(IMAGE, maps, words, columns=4, title="dogs")
    assert [axes.get_title() for axes in figure.axes] == ["", *words]
    assert len(figure.axes[0].images) == 1  # the picture itself
    for axes, weights in zip(figure.axes[1:], maps, strict=True):
        picture, shades = axes.images
        np.testing.assert_array_equal(picture.get_array(), IMAGE)
        np.testing.assert_allclose(shades.get_array(), weights / 0.8)  # the greatest weight is fully bright
        assert picture.get_extent() == shades.get_extent()
    figure = plots.plot_overlay(IMAGE, maps[1])
    np.testing.assert_allclose(figure.axes[0].images[1].get_array(), maps[1] / 0.8)


@pytest.mark.parametrize(
    ("image", "maps", "words"),
    [(IMAGE[0], np.ones((1, 2, 2)), ["a"]), (IMAGE, np.ones((2, 2)), ["a"]), (IMAGE, np.ones((2, 2, 2)), ["a"])],
)
def test_a_caption_that_does_not_fit_its_weights(image, maps, words):
    with pytest.raises(ValueError, match="weights .words, h, w.. Received: shapes"):
        plots.plot_caption(image, maps, words)


def test_what_is_transparent_is_read_as_white(tmp_path):
    from PIL import Image

    Image.new("RGBA", (3, 2), (0, 100, 200, 51)).save(tmp_path / "half.png")
    assert plots.read_picture(tmp_path / "half.png").tolist() == [[[204, 224, 244]] * 3] * 2
