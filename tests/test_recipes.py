"""Recipes: what is filled in, what --set makes of a text, and every refusal."""

import dataclasses

import pytest

from keras_attention.training import recipes
from keras_attention.training.errors import InputError
from keras_attention.training.recipes import load_recipe, resolve

MINIMAL = {"name": "tiny"}


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return write


# What is filled in


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_every_shipped_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipes.list_recipes()[name]


def test_defaults():
    recipe = resolve(MINIMAL)
    assert recipe.seed == 1
    assert recipe.model["kind"] == "seq2seq"
    assert {"units", "attention", "dropout", "embedding_width"} < set(recipe.model)
    assert recipe.training == recipes.Training()
    assert recipe.decoding == recipes.DecodingOptions()
    assert recipe.source_tokenizer.kind == recipe.target_tokenizer.kind == "characters"


def test_a_recipe_changes_what_it_names_only(write):
    path = write('# Mine.\nseed = 7\n[data]\ntask = "dates"\n[model]\nunits = 14\n[training]\nepochs = 3\n')
    recipe = load_recipe(path)
    assert (recipe.name, recipe.seed, recipe.data.task, recipe.model["units"]) == ("mine", 7, "dates", 14)
    assert recipe.training == dataclasses.replace(recipes.Training(), epochs=3)
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(("name", "pair", "pieces"), [("koen", "ko-en", 1000), ("enko", "en-ko", 1500)])
def test_korean_and_english_are_translated_as_anybody_s_files_are(name, pair, pieces):
    settings = [f"data.pair={pair}", f"target_tokenizer.vocabulary_size={pieces}"]
    assert load_recipe(name).to_dict() == {**load_recipe("translation_rnn", settings).to_dict(), "name": name}


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_resolved_recipe_resolves_to_itself(name):
    width = {"seq2seq": "embedding_width"}.get(load_recipe(name).model["kind"], "num_key_value_heads")
    recipe = load_recipe(name, [f"model.{width}=none", "training.clipnorm=none"])
    table = recipe.to_dict()
    assert resolve(table) == recipe
    assert resolve(table).to_dict() == table


# The options of a task


def test_a_task_s_options_are_filled_in():
    recipe = resolve({**MINIMAL, "data": {"task": "reverse"}, "task": {"symbols": 7}}, ["task.max_length=30"])
    assert recipe.task == {"operation": "reverse", "symbols": 7, "min_length": 5, "max_length": 30}
    assert resolve({**MINIMAL, "data": {"task": "series"}}, ["task.noise=1"]).task["noise"] == 1.0
    assert resolve(MINIMAL).task == {}


def test_the_locales_of_dates_are_a_task_s_option():
    table = {**MINIMAL, "data": {"task": "dates"}}
    assert resolve(table, ['task.locales=["de_DE", "ko_KR"]']).task == {"locales": ["de_DE", "ko_KR"]}
    assert len(resolve(table).task["locales"]) == 25
    assert "data.locales" not in {f"data.{name}" for name in resolve(table).to_dict()["data"]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["task.length=3"], "unknown key 'length' in [task]; known: operation, symbols, min_length, max_length."),
        (["task.max_length=long"], "task.max_length must be int. Received: 'long' (str)"),
        (["task=3"], "task must be a section. Received: 3"),
        (["data.task=times", "task.symbols=3"], "data.task must be one of dates, reverse, scenes, series, none."),
    ],
)
def test_options_that_the_task_does_not_have(settings, expected):
    assert expected in message_of(resolve, {**MINIMAL, "data": {"task": "reverse"}}, settings)


def test_options_without_a_task():
    message = message_of(resolve, MINIMAL, ["task.symbols=3"])
    assert message.endswith("[task] has the options of a built-in task; name it by data.task.")
    assert resolve({**MINIMAL, "data": {"task": "reverse"}, "task": {"symbols": 7}}, ["data.task=none"]).task == {}


@pytest.mark.parametrize("columns", ["[1]", "[1, 1]", "[0, 1]", "[1, 2, 3]", "[true, 2]", "['a', 'b']", "[]"])
def test_columns_are_two_different_numbers(columns):
    message = message_of(resolve, MINIMAL, [f"data.columns={columns}"])
    assert "data.columns must be two different numbers" in message and "Received: [" in message


def test_bleu_s_tokenizer_may_be_none():
    assert resolve(MINIMAL).data.bleu_tokenize == "13a"
    for name in ("none", "'none'"):
        recipe = resolve(MINIMAL, [f"data.bleu_tokenize={name}"])
        assert recipe.data.bleu_tokenize == "none" and resolve(recipe.to_dict()) == recipe


# Settings


@pytest.mark.parametrize(
    ("setting", "section", "key", "expected"),
    [
        ("training.epochs=17", "training", "epochs", 17),
        ("training.learning_rate=3e-4", "training", "learning_rate", 3e-4),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("training.clipnorm=none", "training", "clipnorm", None),
        ("training.clipnorm=2", "training", "clipnorm", 2.0),
        ("training.monitor=val_loss", "training", "monitor", "val_loss"),
        ("training.monitor='val_loss'", "training", "monitor", "val_loss"),
        ("source_tokenizer.byte_fallback=false", "source_tokenizer", "byte_fallback", False),
        ("data.columns=[3, 1]", "data", "columns", [3, 1]),
        ("data.source=some/file.en", "data", "source", "some/file.en"),
        ("data.source=C:\\texts\\a=b.en", "data", "source", "C:\\texts\\a=b.en"),
        ("decoding.beam_width=5", "decoding", "beam_width", 5),
    ],
)
def test_settings(setting, section, key, expected):
    value = getattr(getattr(resolve(MINIMAL, [setting]), section), key)
    assert value == expected and type(value) is type(expected)


def test_settings_of_the_model_and_the_top_level():
    recipe = resolve(MINIMAL, ["model.units=22", "model.attention=none", "model.dropout=0", "seed=23"])
    assert (recipe.model["units"], recipe.model["attention"], recipe.seed) == (22, None, 23)
    assert recipe.model["dropout"] == 0.0 and isinstance(recipe.model["dropout"], float)


def test_the_last_setting_wins_and_the_table_stays_as_it_is():
    table = {"name": "tiny", "training": {"epochs": 3}}
    assert resolve(table, ["training.epochs=5", "training.epochs=7"]).training.epochs == 7
    assert table == {"name": "tiny", "training": {"epochs": 3}}


@pytest.mark.parametrize("setting", ["epochs", "=3", ".epochs=3", "training.=3", ""])
def test_a_setting_that_is_none(setting):
    message = message_of(resolve, MINIMAL, [setting])
    assert "--set expects SECTION.KEY=VALUE" in message and repr(setting) in message


def test_a_setting_within_what_is_no_section():
    assert "seed is not a section" in message_of(resolve, {"name": "tiny", "seed": 3}, ["seed.units=3"])


def test_an_odd_number_of_units_suits_one_direction():
    assert resolve(MINIMAL, ["model.units=7", "model.bidirectional=false"]).model["units"] == 7


@pytest.mark.parametrize("name", ["source_width", "source_embedding"])
def test_what_the_data_or_python_decides_is_no_key(name):
    assert name not in resolve(MINIMAL).model
    assert f"unknown key '{name}' in [model]" in message_of(resolve, MINIMAL, [f"model.{name}=3"])


# Refusals


def test_an_unknown_recipe():
    message = message_of(load_recipe, "nonsense")
    assert "'nonsense'" in message
    for name in recipes.list_recipes():
        assert name in message


def test_a_recipe_s_file_that_is_missing(tmp_path):
    assert str(tmp_path / "mine.toml") in message_of(load_recipe, tmp_path / "mine.toml")


@pytest.mark.parametrize("content", ["[model\nunits = 3\n", "units = \n", b"# \xff\n", "a = 1\na = 2\n"])
def test_a_file_that_is_no_toml(write, content):
    path = write(content)
    assert f"{path} is not valid TOML" in message_of(load_recipe, path)


def test_a_folder_instead_of_a_file(tmp_path):
    (tmp_path / "mine.toml").mkdir()
    assert str(tmp_path / "mine.toml") in message_of(load_recipe, tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("setting", "place", "one_known"),
    [
        ("sed=3", "the top level", "seed"),
        ("data.tusk=dates", "[data]", "task"),
        ("model.unit=3", "[model]", "units"),
        ("training.epoch=3", "[training]", "epochs"),
        ("decoding.beam=3", "[decoding]", "beam_width"),
        ("source_tokenizer.knd=bpe", "[source_tokenizer]", "kind"),
        ("target_tokenizer.knd=bpe", "[target_tokenizer]", "kind"),
    ],
)
def test_unknown_keys(setting, place, one_known):
    message = message_of(resolve, MINIMAL, [setting], where="mine.toml")
    key = setting.partition("=")[0].rpartition(".")[2]
    assert message.startswith(f"mine.toml with --set {setting}: unknown key {key!r} in {place}; known: ")
    assert one_known in message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=one", "seed must be int. Received: 'one' (str)"),
        ("seed=true", "seed must be int. Received: True (bool)"),
        ("training.epochs=2.5", "training.epochs must be int. Received: 2.5 (float)"),
        ("training.epochs=true", "training.epochs must be int. Received: True (bool)"),
        ("training.epochs=none", "training.epochs must be int. Received: None (NoneType)"),
        ("training.learning_rate=true", "training.learning_rate must be float. Received: True (bool)"),
        ("training.clipnorm=small", "training.clipnorm must be float or none. Received: 'small' (str)"),
        ("target_tokenizer.byte_fallback=1", "target_tokenizer.byte_fallback must be bool. Received: 1 (int)"),
        ("data.columns=ko", "data.columns must be list. Received: 'ko' (str)"),
        ("data.source=3", "data.source must be str or none. Received: 3 (int)"),
        ("model.units=wide", "model.units must be int. Received: 'wide' (str)"),
        ("model.max_source_length=long", "model.max_source_length must be int or none. Received: 'long' (str)"),
        ("model.units=true", "model.units must be int. Received: True (bool)"),
        ("model.attention=3", "model.attention must be str or none. Received: 3 (int)"),
        ("decoding.beam_width=1.0", "decoding.beam_width must be int. Received: 1.0 (float)"),
    ],
)
def test_wrong_types(setting, expected):
    assert message_of(resolve, MINIMAL, [setting], where="mine.toml") == f"mine.toml with --set {setting}: {expected}"


@pytest.mark.parametrize("section", ["data", "model", "training", "decoding", "source_tokenizer"])
def test_a_section_that_is_none(section):
    message = message_of(resolve, {**MINIMAL, section: 3})
    assert f"{section} must be a section. Received: 3" in message


@pytest.mark.parametrize(
    ("setting", "one_known"),
    [
        ("training.schedule=linear", "cosine"),
        ("source_tokenizer.kind=letters", "characters"),
        ("target_tokenizer.kind=letters", "wordpiece"),
        ("target_tokenizer.split=commas", "punctuation"),
        ("model.kind=rnn", "seq2seq"),
        ("model.attention=multiply", "additive"),
        ("data.task=times", "dates"),
        ("training.monitor=loss", "val_bleu"),
        ("data.bleu_tokenize=moses", "13a"),
        ("model.cell=rnn", "lstm"),
        ("model.order=vaswani", "luong"),
        ("model.context=never", "first_state"),
    ],
)
def test_wrong_choices(setting, one_known):
    key, _, value = setting.partition("=")
    message = message_of(resolve, MINIMAL, [setting], where="mine.toml")
    assert message.startswith(f"mine.toml with --set {setting}: {key} must be one of ")
    assert one_known in message and message.endswith(f"Received: {value!r}")


DECODING = ("decoding.beam_width", "decoding.max_length", "decoding.max_source_length")


@pytest.mark.parametrize(
    "setting",
    [
        *("training.epochs=0", "training.token_budget=0", "training.bucket_width=-1", "training.average=0"),
        *("training.learning_rate=0", "training.warmup_steps=-1", "training.patience=-1", "training.samples=-1"),
        *("training.label_smoothing=1", "training.clipnorm=0", "data.examples=0", "data.held_out=0"),
        *("data.max_source_length=0", "data.max_target_length=0", "source_tokenizer.vocabulary_size=0"),
        *(
            "model.units=0",
            "model.units=7",
            "model.encoder_layers=-1",
            "model.decoder_layers=0",
            "model.embedding_width=0",
            "model.dropout=1",
        ),
        *("decoding.beam_width=0", "decoding.max_length=0", "decoding.max_source_length=0"),
        *("decoding.length_ratio=-1", "decoding.length_offset=-1", "seed=-1"),
    ],
)
def test_numbers_out_of_range(setting):
    key, _, value = setting.partition("=")
    message = message_of(resolve, MINIMAL, [setting], where="mine.toml")
    # The decoding options check themselves and name their section.
    name = f"[decoding] Decoding expects {key.rpartition('.')[2]}" if key in DECODING else f"{key} must be "
    assert message.startswith(f"mine.toml with --set {setting}: {name}") and value in message.rpartition("Received")[2]


def test_location_needs_room_for_the_longest_source():
    """Widths of batches are rounded up, here from 50 to 56."""
    settings = ["model.attention=location", "data.max_source_length=50"]
    with pytest.raises(InputError, match="max_source_length of at least 56, .* Received: None"):
        load_recipe("pairs", settings)
    with pytest.raises(InputError, match="at least 56, .* Received: 50"):
        load_recipe("pairs", [*settings, "model.max_source_length=50"])
    assert load_recipe("pairs", [*settings, "model.max_source_length=56"]).model["max_source_length"] == 56


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.joint_vocabulary=false"], "model.share_embeddings needs one vocabulary for both"),
        (["model.alignment_layer=3"], "model.alignment_layer must be a layer of the decoder, 0 to 2. Received: 3"),
        (["model.position=learned", "model.max_length=100"], "model.max_length of at least 132, the longest text"),
        (["model.num_heads=3"], "model.width must be a multiple of model.num_heads. Received: 256 and 3"),
        (["model.position=rotary", "model.num_heads=256"], "model.position=rotary needs heads of even width"),
    ],
)
def test_what_does_not_fit_together_in_a_transformers_recipe(settings, message):
    with pytest.raises(InputError) as caught:
        load_recipe("translation", settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.attention=none", "model.context_gate=true"], "model.context_gate needs attention"),
        (["model.lexical=true", "model.attention=dot"], "them. Received: model.encoder_layers=1, model.attention=dot"),
        (["model.lexical=true", "model.encoder_layers=0"], "model.lexical needs an encoder, and an attention"),
        (["model.attention=none", "training.doubly_stochastic=1.0"], "training.doubly_stochastic needs attention"),
        (["backbone.alpha=0"], "backbone.alpha must be above 0"),
        (["data.mirror=true"], "data.mirror is for data.images"),
        (["data.images=pictures", "data.crop=0"], "data.crop must be above 0 and at most 1, the whole"),
        (["data.crop=0.8"], "data.crop is for data.images with a backbone that is trained"),
        (["data.images=pictures", "data.crop=0.8", "backbone.trainable=false"], "=pictures, backbone.trainable=false"),
        (["data.images=pictures", "data.task=scenes"], "data.images and data.task are two sources"),
        (["backbone.size=3"], "unknown key 'size' in [backbone]"),
    ],
)
def test_what_does_not_fit_together_in_a_captioners_recipe(settings, message):
    assert message in message_of(resolve, MINIMAL, settings, where="mine.toml")
