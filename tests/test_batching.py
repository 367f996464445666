"""Token sequences, the plan of batches, and its two readers."""

import keras
import numpy as np
import pytest

from keras_attention.training import batching
from keras_attention.training.batching import Batch, Batches, FeatureSequences, TokenSequences
from keras_attention.training.errors import InputError


def random_sequences(rng, lengths):
    return TokenSequences.from_lists([rng.integers(4, 97, length) for length in lengths])


@pytest.fixture
def lengths():
    """Lengths of 1009 pairs whose sides resemble each other, with one long outlier."""
    rng = np.random.default_rng(23)
    source = rng.poisson(13, 1009) + 1
    target = np.maximum(1, source + rng.integers(-5, 6, 1009))
    source[7] = 67
    return source, target


@pytest.fixture
def pairs(lengths):
    rng = np.random.default_rng(29)
    return tuple(random_sequences(rng, side) for side in lengths)


# Token sequences


def test_sequences_give_back_what_went_in():
    sequences = TokenSequences.from_lists([[5, 6, 7], np.zeros(0, "int32"), [11]])
    assert [sequence.tolist() for sequence in sequences] == [[5, 6, 7], [], [11]]
    assert len(sequences) == 3
    assert sequences.lengths.tolist() == [3, 0, 1]
    assert (sequences.ids.dtype, sequences.offsets.dtype) == ("int32", "int64")
    with pytest.raises(IndexError, match="index=3"):
        sequences[3]
    with pytest.raises(IndexError, match="index=-1"):
        sequences[-1]
    assert len(TokenSequences.from_lists([])) == 0


def test_select():
    sequences = TokenSequences.from_lists([[5, 6, 7], [], [11], [13, 17]])
    kept = sequences.select(np.array([True, True, False, True]))
    assert [sequence.tolist() for sequence in kept] == [[5, 6, 7], [], [13, 17]]


@pytest.mark.parametrize("offsets", [[], [1, 5], [0, 4], [0, 3, 2, 5]])
def test_offsets_must_fit_the_ids(offsets):
    with pytest.raises(InputError, match="must rise from 0 to the number of ids, 5"):
        TokenSequences(np.arange(5, dtype="int32"), np.array(offsets, "int64"))


@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(tmp_path, mmap):
    sequences = TokenSequences.from_lists([[5, 6, 7], [], [11]])
    sequences.save(tmp_path / "train.source")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.source.ids.npy", "train.source.offsets.npy"]
    loaded = TokenSequences.load(tmp_path / "train.source", mmap=mmap)
    assert isinstance(loaded.ids, np.memmap) == mmap
    assert [sequence.tolist() for sequence in loaded] == [[5, 6, 7], [], [11]]


@pytest.mark.parametrize("mmap", [False, True])
def test_no_sequences_at_all_can_be_saved_and_loaded(tmp_path, mmap):
    TokenSequences.from_lists([[], []]).save(tmp_path / "empty")
    assert TokenSequences.load(tmp_path / "empty", mmap=mmap).lengths.tolist() == [0, 0]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    TokenSequences.from_lists([[5, 6]]).save(tmp_path / "kept")

    def fail(file, array):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        TokenSequences.from_lists([[7, 8, 9]]).save(tmp_path / "kept")
    monkeypatch.undo()
    assert TokenSequences.load(tmp_path / "kept")[0].tolist() == [5, 6]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", ["ids", "offsets"])
@pytest.mark.parametrize("size", [0, 5, 100, -3])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_cut_short_is_named(tmp_path, part, size, mmap):
    TokenSequences.from_lists([np.arange(4, 41)] * 3).save(tmp_path / "cut")
    path = tmp_path / f"cut.{part}.npy"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"cut\.{part}\.npy is damaged or cut short .*: delete it"):
        TokenSequences.load(tmp_path / "cut", mmap=mmap)


def test_files_that_do_not_fit_are_named(tmp_path):
    TokenSequences.from_lists([[5, 6, 7]]).save(tmp_path / "one")
    TokenSequences.from_lists([[5, 6]]).save(tmp_path / "two")
    (tmp_path / "one.ids.npy").replace(tmp_path / "two.ids.npy")
    with pytest.raises(InputError, match=r"two\.offsets\.npy does not fit .*two\.ids\.npy: delete both"):
        TokenSequences.load(tmp_path / "two")
    with pytest.raises(InputError, match=r"one\.ids\.npy does not exist"):
        TokenSequences.load(tmp_path / "one")
    np.save(tmp_path / "one.ids.npy", np.zeros((3, 1)))
    with pytest.raises(
        InputError, match=r"one\.ids\.npy should hold one row of int32 and holds float64 of shape \(3, 1"
    ):
        TokenSequences.load(tmp_path / "one")


# Feature sequences


def random_features(rng, lengths, width=3):
    return FeatureSequences.from_lists([rng.normal(size=(length, width)) for length in lengths])


def test_feature_sequences_give_back_what_went_in(tmp_path):
    rows = [np.arange(15.0).reshape(5, 3), np.zeros((0, 3)), np.ones((2, 3), "int64")]
    sequences = FeatureSequences.from_lists(rows)
    assert (len(sequences), sequences.width, sequences.lengths.tolist()) == (3, 3, [5, 0, 2])
    assert (sequences.features.shape, sequences.features.dtype) == ((7, 3), "float32")
    sequences.save(tmp_path / "train.source")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train.source.features.npy",
        "train.source.offsets.npy",
    ]
    for found in (sequences, FeatureSequences.load(tmp_path / "train.source")):
        assert [row.tolist() for row in found] == [row.tolist() for row in rows]
        assert [row.tolist() for row in found.select(np.array([True, True, False]))] == [r.tolist() for r in rows[:2]]
    assert len(FeatureSequences.from_lists([])) == 0


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e300, "inf"), (-1e39, "-inf")]
)
def test_features_that_are_not_finite_are_named(value, shown):
    rows = [np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((5, 2)), np.zeros((1, 2))]
    rows[2][4, 1] = value
    with pytest.raises(InputError, match=f"Received: {shown} in row 2 .*, step 4, feature 1;"):
        FeatureSequences.from_lists(rows)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (np.zeros(3), r"Row 1 should be of shape \[S, F\]. Received: shape \(3,\)"),
        (np.zeros((3, 4)), "the 2 features of row 0. Row 1: 4"),
        ([[1.0, 2.0], [3.0]], "Row 1 should be an array of numbers"),
        ("abc", "Row 1 should be an array of numbers"),
    ],
)
def test_rows_that_are_no_features(row, expected):
    with pytest.raises(InputError, match=expected):
        FeatureSequences.from_lists([np.zeros((5, 2)), row])


def test_features_must_fit_their_offsets_and_their_dtype(tmp_path):
    with pytest.raises(InputError, match="feature sequences must rise from 0 to the number of features, 5"):
        FeatureSequences(np.zeros((5, 2), "float32"), np.array([0, 4]))
    for features in (np.zeros((5, 2)), np.zeros(5, "float32")):
        with pytest.raises(InputError, match="float32 features of shape"):
            FeatureSequences(features, np.array([0, 5]))
    FeatureSequences.from_lists([np.zeros((5, 2))]).save(tmp_path / "one")
    np.save(tmp_path / "one.features.npy", np.zeros(10, "float32"))
    with pytest.raises(InputError, match=r"should hold a table of float32 and holds float32 of shape \(10,\)"):
        FeatureSequences.load(tmp_path / "one")


# The plan


def seen(plan):
    return sorted(index for batch in plan for index in batch.indices.tolist() if index >= 0)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("token_budget", [1, 40, 512, 100_000])
@pytest.mark.parametrize("bucket_width", [1, 5, 8])
def test_every_pair_stands_in_one_batch_that_is_wide_enough(lengths, token_budget, bucket_width, shuffle):
    source, target = lengths
    plan = batching.plan_batches(source, target, token_budget=token_budget, bucket_width=bucket_width, shuffle=shuffle)
    assert seen(plan) == list(range(1009))
    for indices, source_width, target_width in plan:
        chosen = indices[indices >= 0]
        assert len(chosen) > 0
        assert source[chosen].max() <= source_width
        assert target[chosen].max() + 1 <= target_width
        assert source_width % bucket_width == target_width % bucket_width == 0
        assert len(indices) == 1 or len(indices) * max(source_width, target_width) <= token_budget


def test_few_shapes_and_little_padding(lengths):
    source, target = lengths
    plan = batching.plan_batches(source, target, token_budget=512)
    shapes = {(len(batch.indices), batch.source_width, batch.target_width) for batch in plan}
    assert len(shapes) <= 10
    assert len(shapes) == len({shape[1:] for shape in shapes})  # one number of rows for one pair of widths
    positions = sum(len(batch.indices) * (batch.source_width + batch.target_width) for batch in plan)
    assert (source.sum() + target.sum() + 1009) / positions > 0.7


def test_a_bucket_s_batches_are_about_equally_full():
    # 10 pairs of width 8 in batches of at most 9 rows: two of five, not nine and one.
    plan = batching.plan_batches([3] * 10, [3] * 10, token_budget=72)
    assert [(batch.indices >= 0).sum() for batch in plan] == [5, 5]
    assert [len(batch.indices) for batch in plan] == [8, 8]


def test_the_plan_follows_from_seed_and_epoch_alone(lengths):
    def flat(seed, epoch):
        plan = batching.plan_batches(*lengths, token_budget=512, seed=seed, epoch=epoch)
        return [(batch.indices.tolist(), *batch[1:]) for batch in plan]

    def shapes(plan):
        return sorted((len(batch[0]), *batch[1:]) for batch in plan)

    np.random.seed(3)  # noqa: NPY002  the global generator has no part in it
    first = flat(31, 4)
    np.random.seed(5)  # noqa: NPY002
    assert flat(31, 4) == first
    for other in (flat(31, 5), flat(37, 4)):
        assert other != first
        assert sorted(map(sorted, (batch[0] for batch in other))) != sorted(map(sorted, (b[0] for b in first)))
        assert shapes(other) == shapes(first)


def test_batches_of_all_lengths_are_mixed(lengths):
    plan = batching.plan_batches(*lengths, token_budget=512)
    widths = [batch.target_width for batch in plan]
    assert widths != sorted(widths)


def test_without_shuffling_the_order_is_that_of_the_buckets():
    plan = batching.plan_batches([2, 20, 3, 20, 4], [1, 20, 2, 20, 3], token_budget=24, shuffle=False)
    assert [batch.indices.tolist() for batch in plan] == [[0, 2, 4], [1], [3]]
    assert [batch[1:] for batch in plan] == [(8, 8), (24, 24), (24, 24)]


def test_a_language_model_has_no_source():
    plan = batching.plan_batches(None, [3, 15, 16], token_budget=48, shuffle=False)
    assert [(batch.indices.tolist(), *batch[1:]) for batch in plan] == [([0, 1], 0, 24), ([2, -1], 0, 24)]


def test_nothing_makes_no_batch():
    assert batching.plan_batches([], [], token_budget=64) == []


@pytest.mark.parametrize("name", ["token_budget", "bucket_width"])
def test_numbers_below_one(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1. Received: 0."):
        batching.plan_batches([3], [3], **{"token_budget": 64, name: 0})


def test_numbers_of_lengths_differ():
    with pytest.raises(InputError, match="received 2 source lengths and 3 target lengths"):
        batching.plan_batches([3, 3], [3, 3, 3], token_budget=64)


# Arrays


def test_assemble_by_hand():
    source = TokenSequences.from_lists([[11, 12, 13], [14], []])
    target = TokenSequences.from_lists([[21], [22, 23, 24], [25, 26]])
    x, y = batching.assemble(Batch(np.array([1, -1, 0, 2]), 5, 4), source, target)
    assert x["source"].tolist() == [[14, 0, 0, 0, 0], [0] * 5, [11, 12, 13, 0, 0], [0] * 5]
    assert x["target"].tolist() == [[2, 22, 23, 24], [0] * 4, [2, 21, 0, 0], [2, 25, 26, 0]]
    assert y.tolist() == [[22, 23, 24, 3], [0] * 4, [21, 3, 0, 0], [25, 26, 3, 0]]
    assert {array.dtype.name for array in (*x.values(), y)} == {"int32"}


def test_assemble_without_source():
    x, y = batching.assemble(Batch(np.array([0]), 0, 3), None, TokenSequences.from_lists([[7, 8]]))
    assert {name: array.tolist() for name, array in x.items()} == {"target": [[2, 7, 8]]}
    assert y.tolist() == [[7, 8, 3]]


def test_assemble_features_by_hand():
    source = FeatureSequences.from_lists([[[1.5, 2.0]], [[3.0, 4.0], [5.0, 6.0]]])
    x, y = batching.assemble(Batch(np.array([1, -1, 0]), 3, 2), source, TokenSequences.from_lists([[7], [8]]))
    assert x["source"].tolist() == [[[3, 4], [5, 6], [0, 0]], [[0, 0]] * 3, [[1.5, 2], [0, 0], [0, 0]]]
    assert x["source_mask"].tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert x["target"].tolist() == [[2, 8], [0, 0], [2, 7]]
    assert y.tolist() == [[8, 3], [0, 0], [7, 3]]
    assert [x[name].dtype for name in ("source", "source_mask", "target")] == ["float32", "bool", "int32"]


# Batches


def as_lists(batches):
    return [({name: array.tolist() for name, array in x.items()}, y.tolist()) for x, y in batches]


def test_batches_follow_their_epoch(pairs):
    batches = Batches(*pairs, token_budget=512, seed=41)
    epochs = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        plan = batching.plan_batches(pairs[0].lengths, pairs[1].lengths, token_budget=512, seed=41, epoch=epoch)
        assert [batch.indices.tolist() for batch in batches.plan()] == [batch.indices.tolist() for batch in plan]
        assert as_lists(batches) == as_lists(batching.assemble(batch, *pairs) for batch in plan)
        assert len(batches) == len(plan)
        epochs.append(as_lists(batches))
    assert epochs[0] == epochs[2] != epochs[1]
    assert as_lists([batches[3]]) == epochs[2][3:4]


def test_drawn_batches_have_one_number_of_steps():
    asked = []

    def draw(epoch):
        asked.append(epoch)
        sequences = TokenSequences.from_lists([[epoch + 4] * 5] * [37, 23, 53][epoch])
        return sequences, sequences

    batches = Batches(draw=draw, token_budget=40)
    assert len(batches) == 8  # 37 pairs, 5 rows
    for epoch, ids in ((1, {5}), (2, {6}), (0, {4})):
        batches.epoch = epoch
        arrays = list(batches)
        assert len(arrays) == len(batches) == 8
        assert {int(token) for x, _ in arrays for token in x["source"].ravel() if token} == ids
    assert asked == [0, 1, 2, 0]


def test_batches_of_nothing():
    empty = TokenSequences.from_lists([])
    with pytest.raises(InputError, match="expected at least one pair"):
        Batches(empty, empty, token_budget=64)
    with pytest.raises(InputError, match="give one of them"):
        Batches(token_budget=64)
    with pytest.raises(InputError, match="give one of them"):
        Batches(None, empty, draw=lambda epoch: (empty, empty), token_budget=64)


# The two readers


class Recorder(keras.Model):
    """Keeps the batches that fit hands to it, and the shapes that it is traced with."""

    def __init__(self):
        super().__init__()
        self.batches = []
        self.traces = []
        self.dense = keras.layers.Dense(97)

    def call(self, x):
        self.traces.append(tuple(x["target"].shape))
        return self.dense(keras.ops.cast(x["target"], "float32")[..., None])

    def record(self, data):
        self.batches.append(keras.tree.map_structure(keras.ops.convert_to_numpy, data))
        return {"seen": keras.ops.zeros(())}

    def train_step(self, data):
        return self.record(data) if self.run_eagerly else super().train_step(data)


READERS = [batching.to_tf_dataset, batching.to_py_dataset]
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="train_step is TensorFlow's")


def fit(batches, reader, eager, epochs=2):
    model = Recorder()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile("sgd", loss, run_eagerly=eager)
    follow = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch))
    model.fit(reader(batches), epochs=epochs, shuffle=False, callbacks=[follow], verbose=0)
    return model


@on_tensorflow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bucket_width", [1, 8])
def test_fit_sees_the_plan_s_batches_in_order(pairs, reader, bucket_width):
    batches = Batches(*pairs, token_budget=900, bucket_width=bucket_width, seed=43)
    expected = []
    for epoch in (0, 1):
        batches.epoch = epoch
        expected += as_lists(batches)
    batches.epoch = 0
    assert as_lists(fit(batches, reader, eager=True).batches) == expected


@on_tensorflow
@pytest.mark.parametrize("reader", READERS)
def test_a_new_width_retraces_nothing(pairs, reader):
    one_shape = Batches(*pairs, token_budget=900, bucket_width=80, seed=47)
    many_shapes = Batches(*pairs, token_budget=900, seed=47)
    assert len({batch[1:] for batch in one_shape.plan()}) == 1
    assert len({batch[1:] for batch in many_shapes.plan()}) > 3
    assert fit(many_shapes, reader, eager=False).traces == fit(one_shape, reader, eager=False).traces


@on_tensorflow
@pytest.mark.parametrize("reader", READERS)
def test_fit_on_drawn_data_of_a_language_model(reader):
    def draw(epoch):
        return None, random_sequences(np.random.default_rng(epoch), [3 + 5 * epoch, 11, 19 - epoch] * 7)

    batches = Batches(draw=draw, token_budget=64, seed=53)
    seen_batches = as_lists(fit(batches, reader, eager=True, epochs=3).batches)
    expected = []
    for epoch in range(3):
        batches.epoch = epoch
        expected += as_lists(batches)
    assert seen_batches == expected


@on_tensorflow
def test_the_dataset_knows_its_length_and_leaves_shapes_open(pairs):
    batches = Batches(*pairs, token_budget=900)
    dataset = batching.to_tf_dataset(batches)
    assert int(dataset.cardinality()) == len(batches)
    x, y = dataset.element_spec
    assert set(x) == {"source", "target"}
    assert {tuple(spec.shape) for spec in (*x.values(), y)} == {(None, None)}


@on_tensorflow
@pytest.mark.parametrize("reader", READERS)
def test_fit_sees_features_and_retraces_nothing(lengths, reader):
    rng = np.random.default_rng(59)
    pairs = random_features(rng, lengths[0][:300]), random_sequences(rng, lengths[1][:300])
    batches = Batches(*pairs, token_budget=900, seed=61)
    assert as_lists(fit(batches, reader, eager=True, epochs=1).batches) == as_lists(batches)
    one_shape = Batches(*pairs, token_budget=900, bucket_width=80, seed=61)
    assert fit(batches, reader, eager=False).traces == fit(one_shape, reader, eager=False).traces


@on_tensorflow
def test_the_dataset_of_features_knows_their_width():
    rng = np.random.default_rng(67)
    batches = Batches(random_features(rng, [3, 5]), random_sequences(rng, [2, 3]), token_budget=64)
    x, _ = batching.to_tf_dataset(batches).element_spec
    found = {name: (tuple(spec.shape), spec.dtype.name) for name, spec in x.items()}
    assert found == {
        "source": ((None, None, 3), "float32"),
        "source_mask": ((None, None), "bool"),
        "target": ((None, None), "int32"),
    }


def test_inside_an_epoch_the_py_dataset_is_the_batches(pairs):
    batches = Batches(*pairs, token_budget=900)
    dataset = batching.to_py_dataset(batches)
    dataset.on_epoch_begin()
    assert as_lists(dataset[i] for i in range(len(dataset))) == as_lists(batches)
    dataset.on_epoch_end()


# Lengths


def test_filter_lengths():
    source = TokenSequences.from_lists([[5] * n for n in (3, 7, 2, 9, 5)])
    target = TokenSequences.from_lists([[6] * n for n in (2, 3, 8, 9, 7)])
    keep, report = batching.filter_lengths(source, target, max_source_length=6, max_target_length=7)
    assert keep.tolist() == [True, False, False, False, True]
    assert (report.total, report.kept, report.dropped, report.long_sources, report.long_targets) == (5, 2, 3, 2, 2)
    assert report.describe() == (
        "Left out 3 of 5 pairs for their length: 2 with a source of more than 6 tokens and 2 with a target of more "
        "than 7 tokens."
    )


def test_lengths_of_features_are_steps():
    source = random_features(np.random.default_rng(71), [3, 7])
    _, report = batching.filter_lengths(source, TokenSequences.from_lists([[5], [6]]), max_source_length=5)
    assert report.describe() == "Left out 1 of 2 pairs for their length: 1 with a source of more than 5 steps."


def test_without_limits_all_is_kept():
    target = TokenSequences.from_lists([[6] * 101, [7]])
    keep, report = batching.filter_lengths(None, target, max_source_length=1)
    assert keep.tolist() == [True, True]
    assert report.describe() == "All 2 pairs are within the length limits."


def test_limits_that_leave_nothing():
    target = TokenSequences.from_lists([[6] * 11, [7] * 13])
    with pytest.raises(InputError, match="Left out 2 of 2 pairs .* more than 5 tokens. None is left: raise the limits"):
        batching.filter_lengths(target, target, max_target_length=5)
