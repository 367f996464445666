"""From files or a task to tokenizers and token sequences, kept beside the run as NumPy files."""

import json
from dataclasses import dataclass, field

from keras_attention.models.files import atomic_write
from keras_attention.models.tokenizers import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    save_tokenizer,
)

from .batching import Batches, TokenSequences, filter_lengths
from .datasets import Pairs, find_pairs, read_parallel, seeded_split, split_files, tokenize_pairs
from .errors import InputError
from .tasks import get_task

VOCABULARY_EXAMPLES = 100000  # of a task, to learn tokenizers from
SIDES, SPLITS = ("source", "target"), ("train", "val")
MAX_LINES = 1000000  # of a file, to learn SentencePiece from: drawn by its seed
SAMPLES = 64  # validation texts that are kept as text, for samples and pictures


@dataclass
class Corpus:
    """What a training reads.

    Attributes:
        source_vocabulary, target_vocabulary: numbers of ids.
        train: a pair of TokenSequences, or a function of the epoch that draws one.
        val: a pair of TokenSequences.
        tokenizers: (source, target); (None, None) where TensorFlow is missing.
        samples: some validation pairs as text.
        notes: sentences about what was left out or drawn, to be shown.
    """

    source_vocabulary: int
    target_vocabulary: int
    train: object
    val: tuple
    tokenizers: tuple = (None, None)
    samples: Pairs = field(default_factory=lambda: Pairs([], []))
    notes: list = field(default_factory=list)

    def batches(self, training, seed):
        """(train, val) as `Batches`."""
        options = {"token_budget": training.token_budget, "bucket_width": training.bucket_width, "seed": seed}
        train = Batches(draw=self.train, **options) if callable(self.train) else Batches(*self.train, **options)
        return train, Batches(*self.val, **options, shuffle=False)


def prepare(recipe, folder, tokenizers=None):
    """Reads the data of a recipe; what the run's folder already holds is not made again.

    Args:
        recipe: a Recipe.
        folder: the run's folder (a Path).
        tokenizers: (source, target) of another run, or None to learn them.
    """
    if all(path.exists() for path in _kept_files(folder)):
        return _load(recipe, folder)
    tokenizers = tokenizers or _load_tokenizers(folder)
    if recipe.data.task and not (recipe.data.folder or recipe.data.source):
        return _from_task(recipe, folder, tokenizers)
    return _from_files(recipe, folder, tokenizers)


def _from_task(recipe, folder, tokenizers):
    task, data = get_task(recipe.data.task), recipe.data
    options = {} if data.locales is None else {"locales": tuple(data.locales)}
    if tokenizers is None:
        tokenizers = _learn(recipe, *task.pairs(VOCABULARY_EXAMPLES, seed=recipe.seed, split="train", **options))
    _save_tokenizers(tokenizers, folder)

    notes = []

    def draw(epoch):
        texts = task.pairs(data.examples, seed=recipe.seed, epoch=epoch, split="train", **options)
        sequences, note = _within(recipe, tokenize_pairs(*texts, *tokenizers))
        notes.extend([f"train, epoch {epoch + 1}: {note}"] if note else [])
        return sequences

    texts = Pairs(*task.pairs(data.held_out, seed=recipe.seed, split="val", **options))
    tokens = tokenize_pairs(texts.sources, texts.targets, *tokenizers)
    val, note = _within(recipe, tokens)
    notes.extend([f"val: {note}"] if note else [])
    sizes = [tokenizer.vocabulary_size for tokenizer in tokenizers]
    return Corpus(*sizes, draw, val, tokenizers, _samples(recipe, texts, tokens), notes)


def _from_files(recipe, folder, tokenizers):
    train, val, notes = read_pairs(recipe)
    if tokenizers is None:
        tokenizers = _learn(recipe, train.sources, train.targets)
    _save_tokenizers(tokenizers, folder)
    stored = folder / "tokens"
    stored.mkdir(parents=True, exist_ok=True)
    for name, pairs in zip(SPLITS, (train, val), strict=True):
        tokens = tokenize_pairs(pairs.sources, pairs.targets, *tokenizers)
        samples = _samples(recipe, pairs, tokens)  # those of the last split, val
        sequences, note = _within(recipe, tokens)
        notes += [f"{name}: {note}"] if note else []
        for side, tokens in zip(SIDES, sequences, strict=True):
            tokens.save(stored / f"{name}.{side}")
    description = {
        "source_vocabulary": tokenizers[0].vocabulary_size,
        "target_vocabulary": tokenizers[1].vocabulary_size,
        "samples": {"sources": samples.sources, "targets": samples.targets},
        "notes": notes,
    }
    text = json.dumps(description, ensure_ascii=False, indent=1)
    atomic_write(stored / "corpus.json", lambda path: path.write_text(text, encoding="utf-8"))
    return _load(recipe, folder)


def read_pairs(recipe):
    """(train, val, notes) of a recipe's files."""
    data = recipe.data
    notes = []
    if bool(data.source) != bool(data.target):
        raise InputError("data.source and data.target belong together: give both files.")
    if bool(data.val_source) != bool(data.val_target):
        raise InputError("data.val_source and data.val_target belong together: give both files.")
    if data.source:
        train, val = read_parallel(data.source, data.target), None
        if data.val_source:
            val = read_parallel(data.val_source, data.val_target)
    elif data.folder:
        train = find_pairs(data.folder, "train", data.pair)
        val = find_pairs(data.folder, "val", data.pair) if split_files(data.folder, "val", data.pair) else None
    else:
        raise InputError(
            f"The recipe {recipe.name} needs data: give --data DIR, or --set data.source=FILE --set data.target=FILE."
        )
    notes += [pairs.note for pairs in (train, val) if pairs is not None and pairs.note]
    if val is None:
        train, val = seeded_split(train, seed=recipe.seed)
        notes.append(
            f"No validation file: {len(val)} of {len(train) + len(val)} pairs were drawn with seed {recipe.seed}."
        )
    return train, val, notes


def _kept_files(folder):
    arrays = [f"{name}.{side}.{part}.npy" for name in SPLITS for side in SIDES for part in ("ids", "offsets")]
    return [folder / "tokens" / name for name in ("corpus.json", *arrays)]


def _load(recipe, folder):
    """The corpus of a run that is already prepared; works without TensorFlow."""
    stored = folder / "tokens"
    try:
        description = json.loads((stored / "corpus.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{stored / 'corpus.json'} is damaged: {error}; delete it so that it is made again."
        ) from error
    train, val = (tuple(TokenSequences.load(stored / f"{name}.{side}") for side in SIDES) for name in SPLITS)
    try:
        tokenizers = _load_tokenizers(folder)
    except ImportError:
        tokenizers = (None, None)
        description["notes"].append("TensorFlow is missing: training from the stored ids, without samples as text.")
    return Corpus(
        description["source_vocabulary"],
        description["target_vocabulary"],
        train,
        val,
        tokenizers,
        Pairs(**description["samples"]),
        description["notes"],
    )


def _learn(recipe, sources, targets):
    return (
        _learn_one("source_tokenizer", recipe.source_tokenizer, sources),
        _learn_one("target_tokenizer", recipe.target_tokenizer, targets),
    )


def _learn_one(section, options, lines):
    if options.kind == "characters":
        return CharacterTokenizer.learn(lines, byte_fallback=options.byte_fallback)
    try:
        return SentencePieceTokenizer.learn(lines, options.vocabulary_size, kind=options.kind, max_lines=MAX_LINES)
    except ValueError as error:
        raise InputError(f"[{section}] {error}") from error


def _save_tokenizers(tokenizers, folder):
    for side, tokenizer in zip(SIDES, tokenizers, strict=True):
        save_tokenizer(tokenizer, folder / f"{side}.tokenizer.json")


def _load_tokenizers(folder):
    paths = [folder / f"{side}.tokenizer.json" for side in SIDES]
    return tuple(load_tokenizer(path) for path in paths) if all(path.exists() for path in paths) else None


def _samples(recipe, pairs, tokens):
    """The first pairs that a pipeline accepts."""
    longest = min(recipe.data.max_source_length, recipe.decoding.max_source_length)
    chosen = [i for i in range(len(pairs)) if tokens[0].lengths[i] <= longest][:SAMPLES]
    return Pairs([pairs.sources[i] for i in chosen], [pairs.targets[i] for i in chosen])


def _within(recipe, sequences):
    """The pairs within the length limits, and a sentence about the others ("" if there are none)."""
    keep, report = filter_lengths(*sequences, recipe.data.max_source_length, recipe.data.max_target_length)
    if not report.dropped:
        return sequences, ""
    return tuple(side.select(keep) for side in sequences), report.describe()
