"""Pairs of lines from files: what is read, what is left out, and what is refused with which sentence."""

import numpy as np
import pytest

from keras_attention.models.tokenizers import CharacterTokenizer
from keras_attention.models.words import WordPieceTokenizer, WordTokenizer
from keras_attention.training import corpus, datasets
from keras_attention.training.corpus import prepare, read_pairs
from keras_attention.training.datasets import Pairs, find_pairs, read_lines, read_parallel, read_tsv, seeded_split
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import resolve


@pytest.fixture
def write(tmp_path):
    """Writes a file of the given name from text or bytes and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\ntwo\n\n", ["one", "", "two", ""]),
        (b"\n", [""]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
        (b"a\rb\n", ["a\rb"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
        ("한국어\n日本\n".encode(), ["한국어", "日本"]),
    ],
)
def test_lines(write, content, expected):
    assert read_lines(write("text", content)) == expected


def test_an_undecodable_byte_names_file_and_line(write):
    path = write("text", b"one\ntwo\nthr\xe9e\nfour\n")
    message = message_of(read_lines, path)
    assert f"{path}, line 3" in message and "0xe9" in message and "UTF-8" in message


def test_an_undecodable_byte_in_the_first_line(write):
    assert "line 1:" in message_of(read_lines, write("text", b"\xff\xfeo\x00n\x00"))


def test_an_empty_file(write):
    path = write("text", b"")
    assert message_of(read_lines, path).startswith(f"{path} is empty")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    message = message_of(read_lines, tmp_path / name)
    assert str(tmp_path / name) in message and "expected a text file" in message


# Two aligned files


def test_aligned_files(write):
    pairs = read_parallel(write("x", "  one \ntwo\r\n"), write("y", "eins\n\tzwei "))
    assert pairs == Pairs(["one", "two"], ["eins", "zwei"])
    assert len(pairs) == 2 and pairs.skipped == 0 and pairs.note == ""


def test_a_pair_with_an_empty_side_is_left_out_and_counted(write):
    x, y = write("x", "a\n\nc\nd\n \n"), write("y", "A\nB\n\t\nD\n\n")
    pairs = read_parallel(x, y)
    assert (pairs.sources, pairs.targets, pairs.skipped) == (["a", "d"], ["A", "D"], 3)
    assert pairs.note == f"Skipped 3 pairs with an empty side in {x} and {y}: lines 2, 3, 5."


def test_the_note_names_five_lines_at_most_and_knows_the_singular(write):
    x = write("x", "a\n" + "\n" * 7)
    assert read_parallel(x, write("y", "A\n" * 8)).note.endswith(": lines 2, 3, 4, 5, 6 and 2 more.")
    assert read_parallel(write("x", "a\n\n"), write("y", "A\nB\n")).note.endswith(": line 2.")


def test_different_numbers_of_lines_name_both(write):
    x, y = write("x", "a\nb\nc\n"), write("y", "A\nB\n")
    message = message_of(read_parallel, x, y)
    assert f"{x} has 3 lines" in message and f"{y} has 2" in message


def test_only_empty_sides(write):
    x, y = write("x", "a\n\n"), write("y", "\nB\n")
    assert message_of(read_parallel, x, y).startswith(f"{x} and {y}: expected at least one pair")


def test_a_missing_target_file(write, tmp_path):
    assert str(tmp_path / "y") in message_of(read_parallel, write("x", "a\n"), tmp_path / "y")


# TSV


def test_tsv(write):
    path = write("pairs.tsv", '\ufeffa\tA\tnever read\r\nb \t B\tCC-BY 2.0 #1\r\n"c\tC"\t\n')
    assert read_tsv(path) == Pairs(["a", "b", '"c'], ["A", "B", 'C"'])


@pytest.mark.parametrize(
    ("columns", "sources", "targets"),
    [((2, 1), ["A", "B"], ["a", "b"]), ([1, 3], ["a", "b"], ["x", "y"]), ((3, 2), ["x", "y"], ["A", "B"])],
)
def test_columns_of_a_tsv(write, tmp_path, columns, sources, targets):
    path = write("train.tsv", "a\tA\tx\nb\tB\ty\n")
    assert read_tsv(path, columns) == find_pairs(tmp_path, "train", None, columns) == Pairs(sources, targets)


@pytest.mark.parametrize(
    ("content", "line", "received"),
    [
        ("a\tA\nb\tB\tC\n", 2, "received 3 tab-separated columns, and line 1 has 2"),
        ("\na\tA\tx\n\nb\tB\n", 4, "received 2 tab-separated columns, and line 2 has 3"),
        ("#separator:tab\na\tA\nb\tB\t\n", 3, "received 3 tab-separated columns, and line 2 has 2"),
    ],
)
def test_a_ragged_row_names_file_and_line(write, content, line, received):
    path = write("pairs.tsv", content)
    assert message_of(read_tsv, path).startswith(f"{path}, line {line}: {received}")


def test_a_column_that_is_not_there(write):
    path = write("pairs.tsv", "a\tA\n")
    assert f"{path}, line 1: expected 3 tab-separated columns, received 2." == message_of(read_tsv, path, (1, 3))


def test_a_file_of_sources_alone_is_told_what_it_lacks(write):
    message = message_of(read_tsv, write("pairs.txt", "a\nb\n"))
    assert "line 1: expected 2 tab-separated columns, received 1" in message and "a second file" in message


def test_what_anki_writes_at_the_top_is_left_out_and_noted(write):
    header = "#separator:tab\n#html:true\n#tags column:3\n#columns:Front\tBack\tTags\n"
    path = write("deck.txt", header + "#1\tnumber one\t\n\nGo.\t가.\tCC-BY 2.0\n#html:true\tB\t\n")
    pairs = read_tsv(path)
    assert pairs.sources == ["#1", "Go.", "#html:true"]  # at the top alone
    assert pairs.note == (
        f"Skipped the header that Anki wrote at the top of {path}: 4 lines. "
        f"Skipped 1 pair with an empty side in {path}: line 6."
    )
    assert read_tsv(write("deck.txt", "#separator:tab\na\tA\n")).note.endswith(": 1 line.")


def test_a_header_alone_is_no_pair(write):
    assert "at least one pair" in message_of(read_tsv, write("deck.txt", "#separator:tab\n#html:true\n"))


def test_a_line_separator_within_a_column_is_text(write):
    assert read_tsv(write("pairs.tsv", "a\u2028b\tA\n")).sources == ["a\u2028b"]


def test_a_missing_column_names_file_and_line(write):
    path = write("pairs.tsv", "a\tA\nb\n")
    assert message_of(read_tsv, path).startswith(f"{path}, line 2: expected 2 tab-separated columns, received 1")


def test_tsv_leaves_out_empty_sides_and_empty_lines(write):
    path = write("pairs.tsv", "a\tA\n\n\tB\nc\t\nd\tD\n")
    pairs = read_tsv(path)
    assert (pairs.sources, pairs.targets, pairs.skipped) == (["a", "d"], ["A", "D"], 3)
    assert pairs.note == f"Skipped 3 pairs with an empty side in {path}: lines 2, 3, 4."


def test_a_tsv_of_empty_lines(write):
    path = write("pairs.tsv", "\n\t\n")
    assert message_of(read_tsv, path).startswith(f"{path}: expected at least one pair")


# Splits of a folder


def test_two_files_come_before_one_tsv(write, tmp_path):
    write("train.tsv", "t\tT\n")
    write("train.en", "e\n")
    write("train.de", "d\n")
    assert find_pairs(tmp_path, "train", "en-de") == Pairs(["e"], ["d"])
    assert find_pairs(tmp_path, "train", "de-en") == Pairs(["d"], ["e"])
    assert find_pairs(tmp_path, "train") == Pairs(["t"], ["T"])
    assert find_pairs(tmp_path, "train", "ko-ja") == Pairs(["t"], ["T"])


@pytest.mark.parametrize(("there", "asked"), [("val", "dev"), ("dev", "val"), ("val", "val"), ("dev", "dev")])
def test_val_and_dev_stand_for_each_other(write, tmp_path, there, asked):
    write(f"{there}.tsv", "a\tA\n")
    assert find_pairs(tmp_path, asked) == Pairs(["a"], ["A"])


@pytest.mark.parametrize("split", ["val", "dev"])
def test_the_name_asked_for_comes_first(write, tmp_path, split):
    write("val.tsv", "val\tA\n")
    write("dev.tsv", "dev\tA\n")
    assert find_pairs(tmp_path, split).sources == [split]


def test_a_missing_split_says_what_was_looked_for_and_what_is_there(write, tmp_path):
    write("train.tsv", "a\tA\n")
    assert datasets.split_files(tmp_path, "val", "en-de") == []
    message = message_of(find_pairs, tmp_path, "val", "en-de")
    assert "has no val data" in message and "found train.tsv" in message
    for name in ("val.en with val.de", "val.tsv", "dev.en with dev.de", "dev.tsv"):
        assert name in message


def test_an_empty_folder(tmp_path):
    assert message_of(find_pairs, tmp_path, "train").endswith("found nothing.")


def test_a_crowded_folder(write, tmp_path):
    for number in range(23):
        write(f"{number:02}.txt", "a\n")
    assert message_of(find_pairs, tmp_path, "train").endswith("18.txt, 19.txt and 3 more.")


def test_two_suffixes_without_a_pair_are_suggested(write, tmp_path):
    write("train.en", "e\n")
    write("train.de", "d\n")
    message = message_of(find_pairs, tmp_path, "train")
    assert message.endswith("give data.pair, for example de-en.")


def test_half_a_pair(write, tmp_path):
    write("train.en", "e\n")
    message = message_of(find_pairs, tmp_path, "train", "en-de")
    assert str(tmp_path / "train.en") in message and str(tmp_path / "train.de") in message


@pytest.mark.parametrize("pair", ["en", "en-", "-de", "en-en", "en-de-fr", ""])
def test_a_pair_must_be_two_suffixes(tmp_path, pair):
    message = message_of(find_pairs, tmp_path, "train", pair)
    assert "data.pair" in message and repr(pair) in message


def test_a_folder_that_is_none(write, tmp_path):
    for path in (tmp_path / "missing", write("file", "a\n")):
        assert message_of(find_pairs, path, "train").startswith(f"{path} is not a folder")


# The seeded split


NUMBERED = Pairs([f"s{i}" for i in range(101)], [f"t{i}" for i in range(101)])


def test_the_split_is_a_partition_in_the_file_s_order():
    train, val = seeded_split(NUMBERED, fraction=0.1, seed=3)
    assert (len(train), len(val)) == (91, 10)
    assert set(train.sources) | set(val.sources) == set(NUMBERED.sources)
    for part in (train, val):
        numbers = [int(source[1:]) for source in part.sources]
        assert numbers == sorted(numbers)
        assert part.targets == [f"t{i}" for i in numbers]


def test_the_split_follows_from_the_seed():
    first, again, other = (seeded_split(NUMBERED, seed=seed)[1] for seed in (5, 5, 7))
    assert first == again
    assert first != other


def test_the_split_s_size():
    assert len(seeded_split(NUMBERED, fraction=0.001)[1]) == 1
    assert len(seeded_split(NUMBERED, fraction=0.999)[1]) == 100
    assert len(seeded_split(NUMBERED, fraction=0.5, maximum=7)[1]) == 7
    assert [len(part) for part in seeded_split(Pairs(["a", "b"], ["A", "B"]))] == [1, 1]


def test_splits_that_cannot_be():
    assert "at least 2 pairs. Received: 1" in message_of(seeded_split, Pairs(["a"], ["A"]))
    for fraction in (0, 1, -0.5, 1.5):
        assert f"Received: {fraction}" in message_of(seeded_split, NUMBERED, fraction)


# The files of a recipe


def recipe(*settings, folder=None):
    return resolve({"name": "tiny", "data": {"folder": folder and str(folder)}}, settings)


def test_one_tsv_is_source_and_target(write):
    path = write("pairs.tsv", "".join(f"s{i}\tt{i}\tcredit\n" for i in range(20)))
    train, val, notes = read_pairs(recipe(f"data.source={path}"))
    assert (len(train), len(val)) == (19, 1) and sorted(train.sources + val.sources) == sorted(NUMBERED.sources[:20])
    assert notes == ["No validation file: 1 of 20 pairs were drawn with seed 1."]
    train, val, notes = read_pairs(recipe(f"data.source={path}", f"data.val_source={path}", "data.columns=[2, 1]"))
    assert train == val == Pairs([f"t{i}" for i in range(20)], [f"s{i}" for i in range(20)]) and notes == []


def test_a_tsv_beside_two_validation_files(write):
    settings = [f"data.source={write('pairs.tsv', 'a' + chr(9) + 'A')}"]
    settings += [f"data.val_source={write('x', 'b')}", f"data.val_target={write('y', 'B')}"]
    assert read_pairs(recipe(*settings))[:2] == (Pairs(["a"], ["A"]), Pairs(["b"], ["B"]))


def test_a_folder_s_tsv_has_the_recipe_s_columns(write, tmp_path):
    write("train.tsv", "a\tA\tx\n")
    write("dev.tsv", "b\tB\ty\n")
    found = read_pairs(recipe("data.columns=[3, 1]", folder=tmp_path))
    assert found == (Pairs(["x"], ["a"]), Pairs(["y"], ["b"]), [])


@pytest.mark.parametrize(
    ("key", "other"), [("target", "source"), ("val_target", "val_source"), ("val_source", "source")]
)
def test_files_without_the_file_that_they_need(write, key, other):
    message = message_of(read_pairs, recipe(f"data.{key}={write('x', 'a')}"))
    assert message == f"data.{key} needs data.{other}: give both files."


def test_a_split_that_would_be_empty(write, tmp_path):
    one = write("pairs.tsv", "a\tA\n\tB\n")
    assert "at least 2 pairs. Received: 1; give more, or a validation file" in message_of(
        read_pairs, recipe(f"data.source={one}")
    )
    empty = write("empty.tsv", "\t\n")
    message = message_of(read_pairs, recipe(f"data.source={one}", f"data.val_source={empty}"))
    assert message.startswith(f"{empty}: expected at least one pair")
    long = write("long.tsv", "ab\tA\ncd\tB\n")
    settings = (f"data.source={one}", f"data.val_source={long}", "data.max_source_length=1")
    message = message_of(prepare, recipe(*settings), tmp_path)
    assert message.startswith("val: Left out 2 of 2 pairs") and message.endswith("None is left: raise the limits.")


def test_samples_for_scores_after_every_epoch(write, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SAMPLES", 7)
    path = write("pairs.tsv", "".join(f"{'s' * i}\tt{i}\n" for i in range(1, 21)))
    settings = (f"data.source={path}", f"data.val_source={path}", "decoding.max_source_length=19")
    samples = prepare(recipe(*settings), tmp_path).samples
    assert samples == Pairs(["s" * i for i in range(1, 8)], [f"t{i}" for i in range(1, 8)])


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        (["kind=words"], ["I", "don't", "Go"]),
        (["kind=words", "split=punctuation", "lower=true"], ["i", "don't", "go", "."]),
        (["kind=words", "split=blanks", "vocabulary_size=6"], ["I", None, "Go."]),
        (["kind=wordpiece", "vocabulary_size=400", "lower=true"], ["i", "don", "'", "t", "go", "."]),
        (["kind=bpe", "vocabulary_size=275"], None),
    ],
)
def test_kinds_of_tokenizers(write, tmp_path, settings, pieces):
    path = write("pairs.tsv", "I don't Go.\tA\n" + "I Go.\tB\n" * 7)
    keys = [f"source_tokenizer.{setting}" for setting in settings]
    tokenizer = prepare(recipe(f"data.source={path}", f"data.val_source={path}", *keys), tmp_path).tokenizers[0]
    assert isinstance(tokenizer, corpus.KINDS[settings[0].removeprefix("kind=")])
    if pieces is not None:
        found = tokenizer.pieces(tokenizer.tokenize(["I don't Go."])).to_list()[0]
        assert [None if piece == b"<unk>" else piece.decode() for piece in found] == pieces


def test_characters_of_another_run_are_extended(write, tmp_path):
    path = write("pairs.tsv", "abcd\tAB\n" * 3)
    begin_with = CharacterTokenizer("ba"), CharacterTokenizer("BA", byte_fallback=False)
    settings = [f"data.source={path}", f"data.val_source={path}", "target_tokenizer.byte_fallback=false"]
    found = prepare(recipe(*settings), tmp_path, begin_with)
    assert [tokenizer.characters for tokenizer in found.tokenizers] == ["bacd", "BA"]
    assert len(found.notes) == 1 and "source vocabulary" in found.notes[0] and "cd" in found.notes[0]


def test_tokenizers_of_another_kind(tmp_path):
    characters = CharacterTokenizer("abc")
    message = message_of(prepare, recipe("target_tokenizer.kind=bpe"), tmp_path, (characters, characters))
    assert "target tokenizer of the kind bpe" in message and "--init is characters" in message
    assert "--set target_tokenizer.kind=characters" in message


@pytest.mark.parametrize(
    ("kind", "make", "name", "asked", "found"),
    [
        ("characters", lambda: CharacterTokenizer("abc", byte_fallback=False), "byte_fallback", "true", "false"),
        ("words", lambda: WordTokenizer(["a"], split="blanks"), "split", "words", "blanks"),
        ("words", lambda: WordTokenizer(["a"], lower=True), "lower", "false", "true"),
        ("wordpiece", lambda: WordPieceTokenizer(["a"]), "lower", "true", "false"),
    ],
)
def test_tokenizers_that_read_in_another_way(tmp_path, kind, make, name, asked, found):
    settings = [f"source_tokenizer.kind={kind}", f"source_tokenizer.{name}={asked}"]
    message = message_of(prepare, recipe(*settings), tmp_path, (make(), CharacterTokenizer("abc")))
    assert f"source_tokenizer.{name}={asked}, and the tokenizer of the run of --init has {found}" in message
    assert f"give --set source_tokenizer.{name}={found}, or train without --init" in message
    assert not any(tmp_path.iterdir())


def test_words_of_another_run_are_not_learned_anew_which_is_said(write, tmp_path):
    path = write("pairs.tsv", "a b\tA\n" * 3)
    settings = [f"data.source={path}", f"data.val_source={path}", "source_tokenizer.kind=words"]
    begin_with = WordTokenizer(["b", "c"]), CharacterTokenizer("A")
    found = prepare(recipe(*settings), tmp_path, begin_with)
    assert list(found.tokenizers[0].words) == ["b", "c"]
    note = "The source tokenizer is that of --init, with 6 pieces: nothing is learned by [source_tokenizer]."
    assert found.notes == [note]


def test_columns_of_files_that_are_no_tsv(write, tmp_path):
    lines = "".join(f"{i}\n" for i in range(20))
    one, two = write("a.en", lines), write("a.de", lines)
    message = message_of(read_pairs, recipe(f"data.source={one}", f"data.target={two}", "data.columns=[2, 1]"))
    assert message.startswith(
        "data.columns=[2, 1] says which columns of a TSV are read, and the data are aligned files"
    )
    assert message.endswith("exchange data.source and data.target.")
    write("train.en", lines), write("train.de", lines)
    message = message_of(read_pairs, recipe("data.pair=en-de", "data.columns=[2, 1]", folder=tmp_path))
    assert message.endswith("exchange the suffixes in data.pair.")
    write("val.tsv", "x\ty\n")  # of which the columns are
    found = read_pairs(recipe("data.pair=en-de", "data.columns=[2, 1]", folder=tmp_path))
    assert (len(found[0]), found[1]) == (20, Pairs(["y"], ["x"]))


# Tokens


class Bytes:
    """Ids are byte values; counts the lines of each call."""

    def __init__(self):
        self.calls = []

    def tokenize(self, texts):
        import tensorflow as tf

        self.calls.append(int(texts.shape[0]))
        return tf.cast(tf.strings.unicode_decode(texts, "UTF-8"), tf.int32)


@pytest.mark.parametrize(("chunk", "calls"), [(3, [3, 3, 1]), (7, [7]), (4096, [7])])
def test_tokens_do_not_depend_on_the_chunk(chunk, calls):
    lines = ["a", "", "bcd", "é", "fg", "", "h"]
    targets = [line * 2 for line in lines]
    readers = Bytes(), Bytes()
    source, target = datasets.tokenize_pairs(lines, targets, *readers, chunk=chunk)
    assert [ids.tolist() for ids in source] == [[ord(character) for character in line] for line in lines]
    assert [ids.tolist() for ids in target] == [[ord(character) for character in line] for line in targets]
    assert [reader.calls for reader in readers] == [calls, calls]
    assert source.ids.dtype == np.int32 and source.offsets.dtype == np.int64


def test_tokens_of_nothing():
    tokens = datasets.tokenize_lines([], Bytes())
    assert len(tokens) == 0 and tokens.offsets.tolist() == [0]
