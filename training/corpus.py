"""From files or a task to tokenizers and token sequences, kept beside the run as NumPy files."""

import base64
import json
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from keras_attention.models.files import atomic_write
from keras_attention.models.tokenizers import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    bpe_dropout,
    load_tokenizer,
    save_tokenizer,
)
from keras_attention.models.words import WordPieceTokenizer, WordTokenizer

from .batching import Batches, CaptionSets, GridSequences, ImageSequences, TokenSequences, filter_lengths
from .captions import find_captions, find_unreadable, keep_grids, keep_images, read_captions, shown, split_by_image
from .datasets import (
    Pairs,
    find_pairs,
    read_parallel,
    read_tsv,
    seeded_split,
    split_files,
    tokenize_lines,
    tokenize_pairs,
)
from .errors import InputError
from .tasks import get_task
from .texts import beginnings, line_ends, read_texts, tokenize_text, unknown_characters, windows

VOCABULARY_EXAMPLES = 100000  # of a task, to learn tokenizers from
KINDS = {
    "characters": CharacterTokenizer,
    "bytes": CharacterTokenizer,
    "words": WordTokenizer,
    "wordpiece": WordPieceTokenizer,
    "bpe": SentencePieceTokenizer,
    "unigram": SentencePieceTokenizer,
}
SIDES, SPLITS = ("source", "target"), ("train", "val")
MAX_LINES = 1000000  # of a file, to learn SentencePiece from: drawn by its seed
SAMPLES = 2000  # validation pairs at most that are kept as text, for samples, pictures, BLEU and chrF


@dataclass
class Corpus:
    """What a training reads.

    Attributes:
        source_vocabulary, target_vocabulary: numbers of ids; the source's is None for features, images, and where
            there is no source, for a language model.
        train: a pair of sequences (tokens, or features as the source), or a function of the epoch that draws one.
        val: a pair of sequences.
        tokenizers: (source, target); None for a source that is no text, and both where TensorFlow is missing.
        samples: some validation pairs as text; sources that are features are arrays [S, F], images uint8 [H, W, 3] or
            paths; of files of images, targets are lists of all captions.
        notes: sentences about what was left out or drawn, to be shown.
        source_width: F, where the source is features, or None.
        image_size: (height, width), where the source is images, or None.
    """

    source_vocabulary: int | None
    target_vocabulary: int
    train: object
    val: tuple
    tokenizers: tuple = (None, None)
    samples: Pairs = field(default_factory=lambda: Pairs([], []))
    notes: list = field(default_factory=list)
    source_width: int | None = None
    image_size: tuple | None = None

    @property
    def is_one_text(self):
        """Whether there are no sources at all: a language model's text."""
        return self.source_vocabulary is self.source_width is self.image_size is None

    def describe(self):
        """What the model reads and writes, in a few words."""
        if self.image_size is not None:
            height, width = self.image_size
            return f"images of {height} x {width} and a vocabulary of {self.target_vocabulary:,}"
        if self.source_width is not None:
            return f"{self.source_width} features a step and a vocabulary of {self.target_vocabulary:,}"
        if self.is_one_text:
            return f"a text of {len(self.train.args[0]):,} pieces and a vocabulary of {self.target_vocabulary:,}"
        return f"vocabularies of {self.source_vocabulary:,} and {self.target_vocabulary:,}"

    def batches(self, training, seed):
        """(train, val) as `Batches`."""
        options = {"token_budget": training.token_budget, "bucket_width": training.bucket_width, "seed": seed}
        if self.is_one_text:  # whose windows are alike
            options["bucket_width"] = 1
        arrays, draw = ((), self.train) if callable(self.train) else (self.train, None)
        train = Batches(*arrays, draw=draw, **options, copies=2 if training.r_drop else 1)
        return train, Batches(*self.val, **options, shuffle=False)


def prepare(recipe, folder, tokenizers=None):
    """Reads the data of a recipe; what the run's folder already holds is not made again.

    Args:
        recipe: a Recipe.
        folder: the run's folder (a Path).
        tokenizers: (source, target) of another run, or None to learn them.
    """
    if recipe.data.images:
        return _from_captions(recipe, folder, tokenizers)
    if recipe.model["kind"] == "language_model":
        return _from_text(recipe, folder, tokenizers)
    if all(path.exists() for path in _kept_files(folder)):
        return _load(recipe, folder)
    if recipe.data.task and not (recipe.data.folder or recipe.data.source):
        return _from_task(recipe, folder, tokenizers)
    return _from_files(recipe, folder, tokenizers)


def _from_task(recipe, folder, begin_with):
    pairs, data = partial(get_task(recipe.data.task).pairs, seed=recipe.seed, **recipe.task), recipe.data
    texts = Pairs(*pairs(data.held_out, split="val"))
    no_text = not isinstance(texts.sources[0], str)
    notes = []
    if no_text and begin_with is not None:
        given = "images" if isinstance(texts.sources, np.ndarray) else "features"
        raise InputError(f"The task {data.task} gives {given} as sources, and the run of --init reads text.")
    _check_tokenizers(recipe, begin_with)
    tokenizers = _load_tokenizers(folder, no_text)
    if tokenizers is None:
        drawn = pairs(min(data.examples, 2000) if no_text else VOCABULARY_EXAMPLES, split="train")
        tokenizers = _extend(recipe, begin_with, drawn, notes) if begin_with else _learn(recipe, *drawn, no_text)
    _save_tokenizers(tokenizers, folder)

    def draw(epoch):
        drawn = tokenize_pairs(*pairs(data.examples, epoch=epoch, split="train"), *tokenizers)
        return _within(recipe, drawn, f"train, epoch {epoch + 1}", notes)

    tokens = tokenize_pairs(texts.sources, texts.targets, *tokenizers)
    val = _within(recipe, tokens, "val", notes)
    sizes = [tokenizer and tokenizer.vocabulary_size for tokenizer in tokenizers]
    kinds = getattr(tokens[0], "width", None), getattr(tokens[0], "size", None)
    return Corpus(*sizes, draw, val, tokenizers, _samples(recipe, texts, tokens), notes, *kinds)


def _from_files(recipe, folder, begin_with):
    _check_tokenizers(recipe, begin_with)
    train, val, notes = read_pairs(recipe)
    tokenizers = _load_tokenizers(folder)
    if tokenizers is None:
        texts = (train.sources, train.targets)
        tokenizers = _extend(recipe, begin_with, texts, notes) if begin_with else _learn(recipe, *texts)
    _save_tokenizers(tokenizers, folder)
    stored = folder / "tokens"
    stored.mkdir(parents=True, exist_ok=True)
    for name, pairs in zip(SPLITS, (train, val), strict=True):
        tokens = tokenize_pairs(pairs.sources, pairs.targets, *tokenizers)
        samples = _samples(recipe, pairs, tokens)  # those of the last split, val
        for side, sequences in zip(SIDES, _within(recipe, tokens, name, notes), strict=True):
            sequences.save(stored / f"{name}.{side}")
    description = {
        "source_vocabulary": tokenizers[0].vocabulary_size,
        "target_vocabulary": tokenizers[1].vocabulary_size,
        "samples": {"sources": samples.sources, "targets": samples.targets},
        "notes": notes,
    }
    _write_description(stored, description)
    return _load(recipe, folder)


def _from_text(recipe, folder, begin_with):
    """One text, for a language model; its ids are kept beside the run."""
    stored = folder / "tokens"
    paths = [stored / f"{name}.target.ids.npy" for name in SPLITS]
    if not (stored / "corpus.json").exists() or not all(path.exists() for path in paths):
        given = begin_with and (None, begin_with[1])  # one for prompts and answers
        _check_tokenizers(recipe, given)
        train, val, notes = read_texts(recipe)
        tokenizers = _load_tokenizers(folder)
        if tokenizers is None and given:
            tokenizers = _extend(recipe, given, ([], [train]), notes)[1:] * 2
        elif tokenizers is None:
            characters = recipe.target_tokenizer.kind == "characters"  # the others learn lines
            lines = [train] if characters else train.split("\n")
            tokenizers = (_learn_one("target_tokenizer", recipe.target_tokenizer, lines),) * 2
        _save_tokenizers(tokenizers, folder)
        stored.mkdir(parents=True, exist_ok=True)
        for name, text in zip(SPLITS, (train, val), strict=True):
            ids = tokenize_text(text, tokenizers[1])
            if unknown := unknown_characters(text, ids, tokenizers[1]):
                notes.append(f"{name}: the vocabulary lacks {unknown}, which are read as one unknown piece.")
            TokenSequences.from_lists([ids]).save(stored / f"{name}.target")
        description = {
            "target_vocabulary": tokenizers[1].vocabulary_size,
            "line_ends": line_ends(tokenizers[1]),
            "samples": beginnings(val, tokenizers[1], min(recipe.data.window // 2, recipe.decoding.max_source_length)),
            "notes": notes,
        }
        _write_description(stored, description)
    description = _read_description(stored)
    ids = [TokenSequences.load(stored / f"{name}.target").ids for name in SPLITS]
    tokenizers = _loaded_tokenizers(folder, description)
    train, val = windows(*ids, description["line_ends"], recipe)
    samples = Pairs(description["samples"], [""] * len(description["samples"]))
    return Corpus(None, description["target_vocabulary"], train, val, tokenizers, samples, description["notes"])


def _from_captions(recipe, folder, begin_with):
    """Images are read and kept as arrays once; captions are read and tokenized in a second or two, every time."""
    if begin_with is not None and begin_with[0] is not None:
        raise InputError("data.images gives images as sources, and the run of --init reads text.")
    if begin_with is not None:
        _check_tokenizers(recipe, begin_with)
    checked = folder / "tokens" / "readable.json"
    readable = json.loads(checked.read_text(encoding="utf-8")) if checked.exists() else {}
    images_folder, found, notes = _find_captions(recipe, readable)
    tokenizers = _load_tokenizers(folder, no_text=True)
    if tokenizers is None:
        tokenizers = begin_with or _learn(recipe, [], found["train"].texts, no_text=True)
    _save_tokenizers(tokenizers, folder)
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    atomic_write(checked, lambda temporary: temporary.write_text(json.dumps(readable), encoding="utf-8"))
    sides = {}
    for name, captions in found.items():
        path = folder / "tokens" / f"{name}.images.npy"
        images = keep_images(images_folder, captions.images, recipe.data.image_size, path, shown("images"))
        tokens = ImageSequences(images, captions.shown), tokenize_lines(captions.texts, tokenizers[1])
        sides[name] = _within(recipe, tokens, name, notes)
    val = found["val"]
    chosen = val.images[:SAMPLES]
    samples = Pairs([os.fspath(Path(images_folder) / name) for name in chosen], val.of_images()[: len(chosen)])
    size, train = tokenizers[1].vocabulary_size, _augmented(sides["train"], recipe)
    return Corpus(None, size, train, sides["val"], tokenizers, samples, notes, None, tuple(recipe.data.image_size))


def _find_captions(recipe, readable):
    """(folder of the images, {train, val: Captions}, notes) of a recipe's files, every image known to be readable.

    `readable` is what an earlier call knew of them, as of `find_unreadable`, and becomes what this one knows.
    """
    data = recipe.data
    folder = Path(data.folder or ".")
    images = folder / data.images if (folder / data.images).is_dir() else Path(data.images)
    if not images.is_dir():
        raise InputError(f"data.images must be a folder of images, inside --data or by itself. Received: {data.images}")
    train = data.source or (data.folder and find_captions(data.folder, "train"))
    if not train:
        raise InputError(
            f"The recipe {recipe.name} needs captions: give --data DIR with train.captions.tsv (image, tab, caption), "
            "or --set data.source=FILE."
        )
    val = data.val_source or (None if data.source else find_captions(data.folder, "val"))
    found, notes = {"train": read_captions(train)}, []
    if val:
        found["val"] = read_captions(val)
    for name, captions in found.items():
        wrong = find_unreadable(images, captions.images, readable)
        if wrong and data.unreadable == "stop":
            first, why = next(iter(wrong.items()))
            raise InputError(
                f"{len(wrong)} of the {len(captions.images)} images of {name} in {images} cannot be used, first "
                f"{first}: {why} Put that right, or leave them out by --set data.unreadable=skip."
            )
        shown = ", ".join(list(wrong)[:5]) + (", ..." if len(wrong) > 5 else "")
        found[name] = captions.without(wrong, f"({shown}) are missing or damaged")
        if not found[name].texts:
            raise InputError(f"No image of {name} in {images} can be read.")
        if found[name].note:
            notes.append(f"{name}: {found[name].note}")
    if not val:
        found["train"], found["val"] = split_by_image(found["train"], recipe.seed)
        notes.append(f"No validation file: {len(found['val'].images)} images were drawn with seed {recipe.seed}.")
    return images, found, notes


def _augmented(pairs, recipe):
    """The pairs; where images are shown otherwise in every epoch, a function of the epoch that gives them.

    Where a backbone is trained, all captions of an image are one target.
    """
    data = recipe.data
    if recipe.backbone.trainable:
        source, target = pairs
        sets = CaptionSets(target, source.shown)
        pairs = ImageSequences(source.images, sets.images), sets
    return partial(_seen_anew, pairs, recipe.seed, data.mirror, data.crop) if data.mirror or data.crop < 1 else pairs


def _seen_anew(pairs, seed, mirror, crop, epoch):
    """The pairs of an epoch: with `mirror` half of them mirrored, with a `crop` below 1 a part of each image."""
    source, target = pairs
    draw = np.random.default_rng([seed, epoch, len(target)])
    views = draw.integers(0, 2 if mirror else 1, len(target))
    if isinstance(source, GridSequences):
        return GridSequences(source.grids, source.shown, views), target
    boxes = None
    if crop < 1:
        sides = draw.uniform(crop, 1, (len(target), 2))
        corners = draw.uniform(0, 1 - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1)
    return ImageSequences(source.images, source.shown, views.astype(bool), boxes), target


def with_grids(corpus, model, recipe, folder):
    """The corpus with what a frozen backbone makes of its images in their place, computed once and kept in a folder."""
    mirror = recipe.data.mirror

    def grids(pairs, mirror):
        source, target = pairs
        kept = keep_grids(model, source.images, folder, mirror, shown("grids"))
        return GridSequences(kept, source.shown, np.zeros(len(target), "int64")), target

    train = grids(corpus.train.args[0] if mirror else corpus.train, mirror)
    return replace(corpus, train=_augmented(train, recipe), val=grids(corpus.val, mirror=False))


def read_pairs(recipe):
    """(train, val, notes) of a recipe's files."""
    data = recipe.data
    notes = []
    for key, other in (("target", "source"), ("val_target", "val_source"), ("val_source", "source")):
        if getattr(data, key) and not getattr(data, other):
            raise InputError(f"data.{key} needs data.{other}: give both files.")

    def read(source, target=None):
        return read_parallel(source, target) if target else read_tsv(source, data.columns)

    if data.source:
        _check_columns(data, data.target, data.val_target if data.val_source else data.target)
        train = read(data.source, data.target)
        val = read(data.val_source, data.val_target) if data.val_source else None
    elif data.folder:
        files = {split: split_files(data.folder, split, data.pair) for split in SPLITS}
        _check_columns(data, *(len(paths) == 2 for paths in files.values() if paths))
        train = find_pairs(data.folder, "train", data.pair, data.columns)
        val = read(*files["val"]) if files["val"] else None
    else:
        raise InputError(
            f"The recipe {recipe.name} needs data: give --data DIR, --set data.source=TSV, or --set data.source=FILE "
            "--set data.target=FILE."
        )
    notes += [pairs.note for pairs in (train, val) if pairs is not None and pairs.note]
    if val is None:
        train, val = seeded_split(train, seed=recipe.seed)
        notes.append(
            f"No validation file: {len(val)} of {len(train) + len(val)} pairs were drawn with seed {recipe.seed}."
        )
    return train, val, notes


def _check_columns(data, *are_aligned):
    """Refuses columns where no TSV is read, of files of which each is one of two aligned ones or not."""
    if data.columns != [1, 2] and are_aligned and all(are_aligned):
        remedy = "exchange data.source and data.target" if data.source else "exchange the suffixes in data.pair"
        raise InputError(
            f"data.columns={data.columns} says which columns of a TSV are read, and the data are aligned files: leave "
            f"it out; for the other direction {remedy}."
        )


def _kept_files(folder):
    arrays = [f"{name}.{side}.{part}.npy" for name in SPLITS for side in SIDES for part in ("ids", "offsets")]
    return [folder / "tokens" / name for name in ("corpus.json", *arrays)]


def _load(recipe, folder):
    """The corpus of a run that is already prepared; works without TensorFlow."""
    stored = folder / "tokens"
    description = _read_description(stored)
    train, val = (tuple(TokenSequences.load(stored / f"{name}.{side}") for side in SIDES) for name in SPLITS)
    tokenizers = _loaded_tokenizers(folder, description)
    if recipe.source_tokenizer.dropout or recipe.target_tokenizer.dropout:
        train = partial(_cut_anew, train, recipe, folder)
    return Corpus(
        description["source_vocabulary"],
        description["target_vocabulary"],
        train,
        val,
        tokenizers,
        Pairs(**description["samples"]),
        description["notes"],
    )


def _write_description(stored, description):
    text = json.dumps(description, ensure_ascii=False, indent=1)
    atomic_write(stored / "corpus.json", lambda path: path.write_text(text, encoding="utf-8"))


def _read_description(stored):
    try:
        return json.loads((stored / "corpus.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{stored / 'corpus.json'} is damaged: {error}; delete it so that it is made again."
        ) from error


def _loaded_tokenizers(folder, description):
    """Those of a run; none where TensorFlow is missing, which is noted."""
    try:
        return _load_tokenizers(folder)
    except ImportError:
        description["notes"].append("TensorFlow is missing: training from the stored ids, without samples as text.")
        return None, None


def _cut_anew(train, recipe, folder, epoch):
    """The training pairs with the pieces that BPE dropout gives them in this epoch, as far as those fit."""
    sides = []
    for number, (side, sequences) in enumerate(zip(SIDES, train, strict=True)):
        dropout = getattr(recipe, f"{side}_tokenizer").dropout
        if dropout:
            stored = json.loads((folder / f"{side}.tokenizer.json").read_text(encoding="utf-8"))
            model = base64.b64decode(stored["config"]["model"])
            ids = [sequences[i].tolist() for i in range(len(sequences))]
            seed = np.random.SeedSequence((recipe.seed, epoch, number)).generate_state(1)
            longest = getattr(recipe.data, f"max_{side}_length")
            cut = zip(bpe_dropout(model, ids, dropout, int(seed[0])), ids, strict=True)
            sequences = TokenSequences.from_lists([new if len(new) <= longest else old for new, old in cut])
        sides.append(sequences)
    return tuple(sides)


def _learn(recipe, sources, targets, no_text=False):
    if recipe.data.joint_vocabulary:
        if no_text:
            raise InputError("data.joint_vocabulary=true is for texts on both sides, and the sources are none.")
        return (_learn_one("source_tokenizer", recipe.source_tokenizer, [*sources, *targets]),) * 2
    return (
        None if no_text else _learn_one("source_tokenizer", recipe.source_tokenizer, sources),
        _learn_one("target_tokenizer", recipe.target_tokenizer, targets),
    )


def _learn_one(section, options, lines):
    size = options.vocabulary_size
    try:
        if options.kind == "characters":
            return CharacterTokenizer.learn(lines, byte_fallback=options.byte_fallback)
        if options.kind == "bytes":
            return CharacterTokenizer("")
        if options.kind == "words":
            return WordTokenizer.learn(lines, size, split=options.split, lower=options.lower)
        if options.kind == "wordpiece":
            return WordPieceTokenizer.learn(lines, size, lower=options.lower)
        return SentencePieceTokenizer.learn(lines, size, kind=options.kind, max_lines=MAX_LINES)
    except ValueError as error:
        raise InputError(f"[{section}] {error}") from error


def _extend(recipe, tokenizers, texts, notes):
    """Another run's tokenizers; to characters those are appended that only the new texts (sources, targets) have."""
    found = []
    if recipe.data.joint_vocabulary:
        texts = ([*texts[0], *texts[1]],) * 2
    for side, tokenizer, lines in zip(SIDES, tokenizers, texts, strict=True):
        if tokenizer is None:
            pass
        elif isinstance(tokenizer, CharacterTokenizer) and tokenizer.characters:  # one of bytes stays so
            known, tokenizer = tokenizer.characters, tokenizer.extended(lines)
            if new := tokenizer.characters[len(known) :]:
                shown = new if len(new) <= 40 else f"{new[:40]}… ({len(new)} in all)"
                notes.append(f"The {side} vocabulary of --init lacked these characters, now added: {shown}")
        else:
            notes.append(
                f"The {side} tokenizer is that of --init, with {tokenizer.vocabulary_size:,} pieces: nothing is "
                f"learned by [{side}_tokenizer]."
            )
        found.append(tokenizer)
    return tuple(found)


def _check_tokenizers(recipe, tokenizers):
    """Refuses the tokenizers of another run where the recipe asks for another kind, or another way to read."""
    for side, tokenizer in zip(SIDES, tokenizers or (), strict=False):
        if tokenizer is None:  # of images
            continue
        options = getattr(recipe, f"{side}_tokenizer")
        kind = options.kind
        if not isinstance(tokenizer, KINDS[kind]):
            known = " or ".join(name for name, its_class in KINDS.items() if isinstance(tokenizer, its_class))
            raise InputError(
                f"The recipe asks for a {side} tokenizer of the kind {kind}, and that of the run of --init is {known}: "
                f"give --set {side}_tokenizer.kind={known.split()[0]}, or train without --init."
            )
        for name in ("byte_fallback", "split", "lower"):
            asked, found = getattr(options, name), getattr(tokenizer, name, None)
            if found is not None and found != asked:
                key, asked, found = f"{side}_tokenizer.{name}", str(asked).lower(), str(found).lower()
                raise InputError(
                    f"The recipe asks for {key}={asked}, and the tokenizer of the run of --init has {found}: give "
                    f"--set {key}={found}, or train without --init."
                )


def _save_tokenizers(tokenizers, folder):
    for side, tokenizer in zip(SIDES, tokenizers, strict=True):
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder / f"{side}.tokenizer.json")


def _load_tokenizers(folder, no_text=False):
    """(source, target) that a folder holds, or None; the source's is None where sources are no texts."""
    paths = [folder / f"{side}.tokenizer.json" for side in SIDES]
    if no_text:
        return (None, load_tokenizer(paths[1])) if paths[1].exists() else None
    return tuple(load_tokenizer(path) for path in paths) if all(path.exists() for path in paths) else None


def _samples(recipe, pairs, tokens):
    """The first pairs that a pipeline accepts."""
    longest = min(recipe.data.max_source_length, recipe.decoding.max_source_length)
    chosen = np.flatnonzero(tokens[0].lengths <= longest)[:SAMPLES]
    return Pairs([pairs.sources[i] for i in chosen], [pairs.targets[i] for i in chosen])


def _within(recipe, sequences, name, notes):
    """The pairs within the length limits; a sentence about the others is added to the notes."""
    try:
        keep, report = filter_lengths(*sequences, recipe.data.max_source_length, recipe.data.max_target_length)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not report.dropped:
        return sequences
    notes.append(f"{name}: {report.describe()}")
    return tuple(side.select(keep) for side in sequences)
