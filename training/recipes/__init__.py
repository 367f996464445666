"""Recipes: TOML files that say what is trained on what, and how. Unknown keys and wrong types are errors.

A recipe names only what it changes; every key and its default stands in the classes below, for [model] in the
constructor of the model, for [task] in the task's function `pairs`. `--set section.key=value` changes one key.
"""

import dataclasses
import inspect
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import keras

from keras_attention.models import LanguageModel, Seq2Seq, Transformer
from keras_attention.models.language_model import POSITIONS as LANGUAGE_MODEL_POSITIONS
from keras_attention.models.pipeline import DecodingOptions
from keras_attention.models.seq2seq import ATTENTIONS, CONTEXTS, ONE_WIDTH, RNNS
from keras_attention.models.transformer import POSITIONS
from keras_attention.recurrent import ORDERS
from keras_attention.transformer import NORMALIZATIONS

from ..errors import InputError
from ..scores import TOKENIZERS as BLEU_TOKENIZERS
from ..tasks import TASKS, task_options

FOLDER = Path(__file__).parent
MODELS = {"seq2seq": Seq2Seq, "transformer": Transformer, "language_model": LanguageModel}
# The choices of a model's arguments.
MODEL_CHOICES = {
    "seq2seq": {"attention": (*ATTENTIONS, None), "cell": (*RNNS,), "order": ORDERS, "context": CONTEXTS},
    "transformer": {"position": (*POSITIONS, None), "normalization": (*NORMALIZATIONS,)},
    "language_model": {"position": (*LANGUAGE_MODEL_POSITIONS, None), "normalization": (*NORMALIZATIONS,)},
}
SCHEDULES = ("constant", "cosine", "inverse_square_root", "noam")
TOKENIZERS = ("characters", "bytes", "words", "wordpiece", "bpe", "unigram")
LOSSLESS = ("characters", "bytes", "bpe", "unigram")
SPLITS = ("words", "punctuation", "blanks")
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")
MONITORS = ("val_loss", "val_token_accuracy", "val_perplexity", "val_exact_match", "val_bleu", "val_chrf")
MONITORS += ("val_bleu_4", "val_cider")  # of captions
MINIMUMS = {
    **dict.fromkeys(("seed", "training.warmup_steps", "training.patience", "training.samples"), 0),
    **dict.fromkeys(("data.examples", "data.held_out", "data.max_source_length", "data.max_target_length"), 1),
    **dict.fromkeys(("source_tokenizer.vocabulary_size", "target_tokenizer.vocabulary_size"), 1),
    **dict.fromkeys(("model.embedding_width", "model.decoder_layers", "model.layers", "data.window"), 1),
    **dict.fromkeys(("model.encoder_layers", "training.doubly_stochastic", "training.self_critical"), 0),
    **dict.fromkeys(("training.epochs", "training.token_budget", "training.bucket_width", "training.average"), 1),
    **dict.fromkeys(("decoding.length_ratio", "decoding.length_offset", "training.r_drop"), 0),
    **dict.fromkeys(("training.weight_decay", "training.final_learning_rate"), 0),
    "training.gradient_accumulation": 1,
    **dict.fromkeys(("model.width", "model.num_heads", "model.feed_forward_units", "model.num_key_value_heads"), 1),
    "model.units": 2,
    "model.max_source_length": 1,
    "model.max_length": 1,
    "model.alignment_layer": 0,
}
POSITIVE = ("training.learning_rate", "training.clipnorm", "backbone.alpha")
SHARES = ("model.dropout", "model.attention_dropout", "model.activation_dropout", "training.label_smoothing")
SHARES += ("source_tokenizer.dropout", "target_tokenizer.dropout", "training.beta_2", "training.ema_momentum")
# Arguments of models that may be None beside their type, and those that no recipe gives: the data or Python code does.
OPTIONAL = {
    **dict.fromkeys(("embedding_width", "max_source_length", "num_key_value_heads", "alignment_layer"), int | None),
    **dict.fromkeys(("attention", "position"), str | None),
    "feed_forward_units": int | None,
    "max_length": int | None,
}
NOT_IN_RECIPES = ("source_width", "source_embedding", "target_embedding")


@dataclass
class Data:
    """[data]: a built-in task, or files (`--data DIR`, or source and target)."""

    task: str | None = None  # a built-in task, drawn anew every epoch
    examples: int = 20000  # drawn for an epoch: pairs of a task, windows of a language model's text
    window: int = 256  # of a language model: how many pieces in a row it is trained on
    held_out: int = 1000  # drawn for validation
    folder: str | None = None  # what --data sets: SPLIT.X and SPLIT.Y, or SPLIT.tsv
    pair: str | None = None  # X-Y, such as en-de
    source: str | None = None  # two aligned files, one text a line; a source alone is a TSV, or a language model's text
    target: str | None = None
    val_source: str | None = None
    val_target: str | None = None
    images: str | None = None  # a folder of images: source is a file of their captions, the folder may lie in --data
    image_size: list = field(default_factory=lambda: [224, 224])  # height and width that images are resized to
    mirror: bool = False  # of images: every caption is shown with the mirrored image in half of the epochs
    crop: float = 1.0  # of images, for a trained backbone: every epoch shows a random part, at least this of each side
    unreadable: str = "stop"  # what an image that is missing or damaged does; "skip" leaves it out, named
    columns: list = field(default_factory=lambda: [1, 2])  # of a TSV: source and target, counted from 1
    joint_vocabulary: bool = False  # one tokenizer for both sides, learned from both as [source_tokenizer] says
    max_source_length: int = 256  # in pieces (steps of features); longer pairs are left out, counted and reported
    max_target_length: int = 256
    bleu_tokenize: str | None = "13a"  # sacrebleu's tokenizer for BLEU: none (texts are tokenized), 13a, intl, char, zh

    def __post_init__(self):
        self.bleu_tokenize = self.bleu_tokenize or "none"  # what --set makes of none


@dataclass
class Tokenizer:
    """[source_tokenizer] and [target_tokenizer]."""

    kind: str = "characters"  # characters, bytes, words, wordpiece, bpe or unigram
    vocabulary_size: int = 8000  # of all kinds but characters and bytes; at most, of words and wordpiece
    byte_fallback: bool = True  # characters: what is not in the vocabulary is read byte by byte
    split: str = "words"  # words: without punctuation; "punctuation": with it; "blanks": text that is tokenized already
    lower: bool = False  # words and wordpiece: whether texts are lowercased first
    dropout: float = 0.0  # bpe: the share of merges left out at random, anew in every epoch (files only)


@dataclass
class Backbone:
    """[backbone]: what makes a grid of features of an image, for captions; see `make_backbone`."""

    name: str = "small"  # or a network of keras.applications, such as MobileNet
    weights: str | None = None  # a .h5 file with its weights, without the top, or imagenet, which Keras downloads
    layer: str | None = None  # whose output is the grid; the last one if none
    trainable: bool = True
    alpha: float | None = None  # the width of a MobileNet


@dataclass
class Training:
    """[training]"""

    epochs: int = 10
    token_budget: int = 4096  # positions of a batch, padding included, on its longer side
    bucket_width: int = 8  # lengths are rounded up to multiples of this
    gradient_accumulation: int = 1  # batches whose gradients make one step
    dtype: str = "float32"  # mixed_bfloat16 and mixed_float16 are for hardware that computes in 16 bits
    learning_rate: float = 0.001  # of noam: its factor
    schedule: str = "constant"
    final_learning_rate: float = 0.0  # of cosine: where it ends
    warmup_steps: int = 0  # counted in batches
    beta_2: float = 0.999  # of Adam; the Transformer's paper takes 0.98
    weight_decay: float = 0.0  # of AdamW, for matrices alone; 0.1 is usual for language models
    clipnorm: float | None = 1.0
    label_smoothing: float = 0.0
    r_drop: float = 0.0  # weight of R-Drop, which runs every pair twice; its paper translates with 5
    doubly_stochastic: float = 0.0  # of captions: the weight of looking at every place (Xu et al. 2015)
    self_critical: int = 0  # captions of an image that a model of --init draws itself and learns by their score
    ema_momentum: float | None = None  # of an average of the weights that moves at every batch; 0.999 is usual
    monitor: str = "val_exact_match"  # what chooses the best checkpoint and stops early
    patience: int = 0  # epochs without a better one before training stops; 0: never
    average: int = 1  # how many of the last checkpoints are averaged
    samples: int = 3  # validation samples shown after every epoch


@dataclass
class Recipe:
    """A resolved recipe."""

    name: str
    seed: int = 1
    init: str | None = None  # what --init sets: the folder of a run whose weights and tokenizers training begins with
    data: Data = field(default_factory=Data)
    task: dict = field(default_factory=dict)
    source_tokenizer: Tokenizer = field(default_factory=Tokenizer)
    target_tokenizer: Tokenizer = field(default_factory=Tokenizer)
    backbone: Backbone = field(default_factory=Backbone)
    model: dict = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    decoding: DecodingOptions = field(default_factory=DecodingOptions)

    def to_dict(self):
        return dataclasses.asdict(self)


def list_recipes():
    """{name: first comment line} of the recipes that are shipped."""
    recipes = {}
    for path in sorted(FOLDER.glob("*.toml")):
        recipes[path.stem] = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return recipes


def load_recipe(name, settings=()):
    """Reads a recipe by name, or from a path that ends in .toml, and applies settings such as "model.units=64".

    Raises:
        InputError: an unknown recipe, key or choice, or a wrong type.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"There is no recipe {str(name)!r}; known: {', '.join(list_recipes())}, or a path to a .toml.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    return resolve({"name": path.stem, **table}, settings, where=str(path))


def resolve(table, settings=(), where="the recipe"):
    """Makes a Recipe of nested dicts, settings applied on top."""
    for setting in settings:
        table = _with_setting(table, setting)
    if settings:
        where += "".join(f" with --set {setting}" for setting in settings)
    recipe = _read(Recipe, table, where, "")
    if recipe.data.joint_vocabulary:
        if recipe.target_tokenizer not in (Tokenizer(), recipe.source_tokenizer):
            raise InputError(
                f"{where}: with data.joint_vocabulary=true [source_tokenizer] is for both sides: leave "
                "[target_tokenizer] out."
            )
        recipe.target_tokenizer = recipe.source_tokenizer
    if recipe.model["kind"] == "language_model":
        if recipe.source_tokenizer not in (Tokenizer(), recipe.target_tokenizer):
            raise InputError(f"{where}: a language model has one tokenizer: leave [source_tokenizer] out.")
        recipe.source_tokenizer = recipe.target_tokenizer
    _check_choices(recipe, where)
    _check_ranges(recipe.to_dict(), where)
    return recipe


def _with_setting(table, setting):
    key, equals, text = setting.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not section or (dot and not name):
        raise InputError(f"--set expects SECTION.KEY=VALUE, such as model.units=64. Received: {setting!r}")
    value = _value(text)
    if not dot:
        return {**table, section: value}
    if not isinstance(table.get(section, {}), dict):
        raise InputError(f"--set {setting}: {section} is not a section.")
    return {**table, section: {**table.get(section, {}), name: value}}


def _value(text):
    """A TOML value; what is none is the text itself, so that paths and words need no quotes."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read(kind, table, where, section):
    """An instance of the dataclass `kind`, every key known and every value of its type."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        place = f"[{section}]" if section else "the top level"
        raise InputError(f"{where}: unknown key {unknown[0]!r} in {place}; known: {', '.join(hints)}.")
    values = {}
    for name, value in table.items():
        key = f"{section}.{name}" if section else name
        if not section and name in ("task", "model"):
            continue
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {key} must be a section. Received: {value!r}")
            values[name] = _read(hints[name], value, where, key)
        else:
            values[name] = _typed(value, hints[name], where, key)
    if kind is Recipe:
        values["model"] = _read_model(table.get("model", {}), where)
        values["task"] = _read_task(table.get("task", {}), table.get("data", {}), where)
    try:
        return kind(**values)
    except ValueError as error:
        raise InputError(f"{where}: [{section}] {error}") from error


def _read_model(table, where):
    """The [model] section: `kind`, and the arguments of that model's constructor, defaults filled in."""
    _check_section(table, where, "model")
    kind = table.get("kind", "seq2seq")
    if kind not in MODELS:
        raise InputError(f"{where}: model.kind must be one of {', '.join(MODELS)}. Received: {kind!r}")
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(MODELS[kind]).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in NOT_IN_RECIPES
    }
    expected = {name: OPTIONAL.get(name, type(default)) for name, default in known.items()}
    options = {name: value for name, value in table.items() if name != "kind"}
    return {"kind": kind, **known, **_read_options(options, expected, where, "model", ("kind",))}


def _read_task(table, data, where):
    """The [task] section: the options of the built-in task, defaults filled in; `data.task=none` takes them away."""
    _check_section(table, where, "task")
    if table and "task" not in data:
        raise InputError(f"{where}: [task] has the options of a built-in task; name it by data.task.")
    if data.get("task") not in TASKS:  # what is no task's name is told with the other choices
        return {}
    defaults = {name: _plain(default) for name, default in task_options(data["task"]).items()}
    expected = {name: type(default) for name, default in defaults.items()}
    return {**defaults, **_read_options(table, expected, where, "task")}


def _plain(value):
    """A default as TOML and JSON know it."""
    return list(value) if isinstance(value, tuple) else value


def _check_section(table, where, section):
    if not isinstance(table, dict):
        raise InputError(f"{where}: {section} must be a section. Received: {table!r}")


def _read_options(table, expected, where, section, others=()):
    """The values of a section whose names and types a function's arguments tell."""
    unknown = sorted(set(table) - set(expected))
    if unknown:
        known = ", ".join((*others, *expected))
        raise InputError(f"{where}: unknown key {unknown[0]!r} in [{section}]; known: {known}.")
    return {name: _typed(value, expected[name], where, f"{section}.{name}") for name, value in table.items()}


def _typed(value, expected, where, key):
    """The value, if it is of the expected type; an integer may stand for a float."""
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if bool not in options and isinstance(value, bool) or not isinstance(value, options):
        names = " or ".join("none" if option is type(None) else option.__name__ for option in options)
        raise InputError(f"{where}: {key} must be {names}. Received: {value!r} ({type(value).__name__})")
    return value


def _check_choices(recipe, where):
    """Choices and ranges, so that a slip is told before anything is read, drawn or written."""
    choices = {
        "data.task": (recipe.data.task, (*TASKS, None)),
        "source_tokenizer.kind": (recipe.source_tokenizer.kind, TOKENIZERS),
        "target_tokenizer.kind": (recipe.target_tokenizer.kind, TOKENIZERS),
        "source_tokenizer.split": (recipe.source_tokenizer.split, SPLITS),
        "target_tokenizer.split": (recipe.target_tokenizer.split, SPLITS),
        "data.bleu_tokenize": (recipe.data.bleu_tokenize, BLEU_TOKENIZERS),
        "training.schedule": (recipe.training.schedule, SCHEDULES),
        "data.unreadable": (recipe.data.unreadable, ("stop", "skip")),
        "training.dtype": (recipe.training.dtype, DTYPES),
        "training.monitor": (recipe.training.monitor, MONITORS),
    }
    for name, known in MODEL_CHOICES[recipe.model["kind"]].items():
        choices[f"model.{name}"] = (recipe.model[name], known)
    for key, (value, known) in choices.items():
        if value not in known:
            names = ", ".join("none" if name is None else name for name in known)
            raise InputError(f"{where}: {key} must be one of {names}. Received: {value!r}")
    checks = {"seq2seq": _check_seq2seq, "transformer": _check_transformer, "language_model": _check_language_model}
    checks[recipe.model["kind"]](recipe, where)
    if recipe.training.self_critical > 0:
        _check_self_critical(recipe, where)
    for side in ("source", "target"):
        tokenizer = getattr(recipe, f"{side}_tokenizer")
        if tokenizer.dropout and (tokenizer.kind != "bpe" or recipe.data.task):
            what = f"data.task={recipe.data.task}" if recipe.data.task else f"{side}_tokenizer.kind={tokenizer.kind}"
            raise InputError(
                f"{where}: {side}_tokenizer.dropout={tokenizer.dropout} is for pieces of the kind bpe and for texts of "
                f"files. Received: {what}; give --set {side}_tokenizer.dropout=0."
            )
    training = recipe.training
    if training.final_learning_rate and training.schedule != "cosine":
        raise InputError(
            f"{where}: training.final_learning_rate={training.final_learning_rate} is where the schedule cosine ends. "
            f"Received: training.schedule={training.schedule}; give --set training.final_learning_rate=0."
        )
    if training.final_learning_rate > training.learning_rate:
        raise InputError(
            f"{where}: training.final_learning_rate must be at most training.learning_rate. Received: "
            f"{training.final_learning_rate} and {training.learning_rate}"
        )
    data = recipe.data
    if data.images and data.task:
        raise InputError(f"{where}: data.images and data.task are two sources of examples: set one of them to none.")
    if data.mirror and not data.images:
        raise InputError(f"{where}: data.mirror is for data.images.")
    if not 0 < data.crop <= 1:
        raise InputError(f"{where}: data.crop must be above 0 and at most 1, the whole image. Received: {data.crop}")
    if data.crop < 1 and not (data.images and recipe.backbone.trainable):
        raise InputError(
            f"{where}: data.crop is for data.images with a backbone that is trained: of a frozen one the whole images' "
            "grids are kept. Received: "
            f"data.images={data.images}, backbone.trainable={str(recipe.backbone.trainable).lower()}"
        )
    size = recipe.data.image_size
    if [type(number) for number in size] != [int, int] or min(size) < 1:
        raise InputError(f"{where}: data.image_size must be [height, width] in pixels. Received: {size!r}")
    columns = recipe.data.columns
    if [type(column) for column in columns] != [int, int] or min(columns) < 1 or columns[0] == columns[1]:
        raise InputError(
            f"{where}: data.columns must be two different numbers, of the source's and the target's column, "
            f"counted from 1. Received: {columns!r}"
        )


def _check_ranges(table, where, section=""):
    for name, value in table.items():
        key = f"{section}.{name}" if section else name
        if isinstance(value, dict):
            _check_ranges(value, where, key)
        elif key in MINIMUMS and value is not None and value < MINIMUMS[key]:
            raise InputError(f"{where}: {key} must be at least {MINIMUMS[key]}. Received: {value}")
        elif key in POSITIVE and value is not None and not value > 0:
            raise InputError(f"{where}: {key} must be above 0. Received: {value}")
        elif key in SHARES and value is not None and not 0 <= value < 1:
            raise InputError(f"{where}: {key} must be at least 0 and below 1. Received: {value}")


def _check_self_critical(recipe, where):
    """What training on the model's own captions needs."""
    options = recipe.training
    if options.self_critical < 2 or not recipe.data.images:
        raise InputError(
            f"{where}: training.self_critical is for data.images, and 2 captions of each at least are compared. "
            f"Received: training.self_critical={options.self_critical}, data.images={recipe.data.images}"
        )
    if options.label_smoothing or options.r_drop:
        raise InputError(
            f"{where}: training.self_critical has its own loss: set training.label_smoothing=0 and training.r_drop=0."
        )


def _check_seq2seq(recipe, where):
    """What fits together in [model] of an RNN."""
    model = recipe.model
    if model["bidirectional"] and model["units"] % 2:
        raise InputError(f"{where}: model.units must be even, half for each direction. Received: {model['units']}")
    if model["attention"] is None and recipe.decoding.coverage_penalty:
        raise InputError(f"{where}: decoding.coverage_penalty needs attention, and model.attention is none.")
    if model["attention"] is None and (model["context_gate"] or recipe.training.doubly_stochastic):
        key = "model.context_gate" if model["context_gate"] else "training.doubly_stochastic"
        raise InputError(f"{where}: {key} needs attention, and model.attention is none.")
    if model["lexical"] and (model["attention"] in (None, *ONE_WIDTH) or not model["encoder_layers"]):
        raise InputError(
            f"{where}: model.lexical needs an encoder, and an attention other than none, {', '.join(ONE_WIDTH)}. "
            "Set model.lexical=false, or change them. Received: "
            f"model.encoder_layers={model['encoder_layers']}, model.attention={model['attention'] or 'none'}"
        )
    if model["attention"] is not None and model["context"] != "every_step":
        raise InputError(f"{where}: model.context is for model.attention=none; received both.")
    if model["attention"] != "location" and model["max_source_length"] is not None:
        raise InputError(f"{where}: model.max_source_length is for model.attention=location only.")
    if model["attention"] == "location":
        width = recipe.training.bucket_width
        needed = -(-recipe.data.max_source_length // width) * width
        if (model["max_source_length"] or 0) < needed:
            raise InputError(
                f"{where}: model.attention=location has one weight a position and needs model.max_source_length of at "
                f"least {needed}, data.max_source_length rounded up to a multiple of training.bucket_width. "
                f"Received: {model['max_source_length']}"
            )


def _check_transformer(recipe, where):
    """What fits together in [model] of a Transformer."""
    model = recipe.model
    _check_heads(model, where)
    if model["share_embeddings"] and not recipe.data.joint_vocabulary:
        raise InputError(f"{where}: model.share_embeddings needs one vocabulary for both: data.joint_vocabulary=true.")
    if model["alignment_layer"] is not None and model["alignment_layer"] >= model["decoder_layers"]:
        raise InputError(
            f"{where}: model.alignment_layer must be a layer of the decoder, 0 to {model['decoder_layers'] - 1}. "
            f"Received: {model['alignment_layer']}"
        )
    longest = max(recipe.data.max_source_length, recipe.data.max_target_length + 1)
    needed = -(-longest // recipe.training.bucket_width) * recipe.training.bucket_width
    if model["position"] == "learned" and (model["max_length"] or 0) < needed:
        raise InputError(
            f"{where}: model.position=learned needs model.max_length of at least {needed}, the longest text of "
            f"[data] rounded up to a multiple of training.bucket_width. Received: {model['max_length']}"
        )


def _check_language_model(recipe, where):
    """What fits together in the recipe of a language model."""
    data, model = recipe.data, recipe.model
    _check_heads(model, where)
    if (model["max_length"] or 0) < data.window and (model["max_length"] or model["position"] == "learned"):
        raise InputError(
            f"{where}: a language model needs a context model.max_length of at least data.window, {data.window}. "
            f"Received: {model['max_length']}"
        )
    if model["alignment_layer"] is not None and model["alignment_layer"] >= model["layers"]:
        raise InputError(
            f"{where}: model.alignment_layer must be a layer, 0 to {model['layers'] - 1}. Received: "
            f"{model['alignment_layer']}"
        )
    if recipe.target_tokenizer.kind not in LOSSLESS:
        raise InputError(
            f"{where}: a language model goes on with a text as it stands: target_tokenizer.kind must be one of "
            f"{', '.join(LOSSLESS)}. Received: {recipe.target_tokenizer.kind}"
        )
    if recipe.training.monitor not in ("val_loss", "val_perplexity", "val_token_accuracy"):
        raise InputError(
            f"{where}: training.monitor of a language model must be val_loss, val_perplexity or val_token_accuracy. "
            f"Received: {recipe.training.monitor}"
        )
    for key in ("task", "images", "target", "val_target"):
        if given := getattr(data, key):
            raise InputError(
                f"{where}: a language model reads one text; data.{key}={given} is for pairs: set it to none."
            )
    if recipe.training.r_drop or recipe.target_tokenizer.dropout:
        raise InputError(f"{where}: training.r_drop and target_tokenizer.dropout are for pairs: leave them out.")


def _check_heads(model, where):
    """What fits together in the layers of Transformers."""
    if model["width"] % model["num_heads"]:
        raise InputError(
            f"{where}: model.width must be a multiple of model.num_heads. Received: {model['width']} and "
            f"{model['num_heads']}"
        )
    if model["num_heads"] % (model["num_key_value_heads"] or model["num_heads"]):
        raise InputError(
            f"{where}: model.num_heads must be a multiple of model.num_key_value_heads. Received: "
            f"{model['num_heads']} and {model['num_key_value_heads']}"
        )
    if model["position"] == "rotary" and model["width"] // model["num_heads"] % 2:
        raise InputError(f"{where}: model.position=rotary needs heads of even width, model.width / model.num_heads.")
    try:
        keras.activations.get(model["activation"])
    except ValueError:
        raise InputError(
            f"{where}: model.activation must be a name that Keras knows, such as relu or gelu. Received: "
            f"{model['activation']!r}"
        ) from None
