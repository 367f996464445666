"""The story of a training: files -> tokens -> batches -> model -> loss -> fit -> scores."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_attention.models import ImageCaptioner, Pipeline, attention_scores
from keras_attention.models.backbones import make_backbone
from keras_attention.models.files import atomic_write, settle

from .batching import to_py_dataset, to_tf_dataset
from .callbacks import (
    Checkpoints,
    EpochOrder,
    Samples,
    TextScores,
    assign,
    average,
    better,
    read_checkpoint,
    variables_of,
)
from .corpus import prepare, with_grids
from .errors import InputError
from .losses import MaskedCrossEntropy
from .metrics import ExactMatch, Perplexity, TokenAccuracy
from .recipes import MODELS, Backbone, resolve
from .schedules import InverseSquareRoot, Noam
from .self_critical import SelfCritical


def train(recipe, out, init=None, resume=False, say=print):
    """Trains a recipe into a run's folder and returns the scores that metrics.json holds.

    Args:
        recipe: a Recipe.
        out: the run's folder: recipe.json, tokenizers, tokens/, checkpoints/, history.json, logs/, and, at the end,
            model.keras, pipeline.json, metrics.json, plots/ and export/1/.
        init: folder of a run (or of Pipeline.save) whose weights and tokenizers training begins with, or None.
        resume: go on from the last checkpoint.
        say: where sentences go.

    Raises:
        InputError: what the user gave is wrong, in one sentence.
    """
    if init:
        if resume:
            _check_begun_with(Path(out), init)
        recipe = replace(recipe, init=str(init))
    out = _open(recipe, Path(out), resume)
    keras.utils.set_random_seed(recipe.seed)
    try:
        corpus, model = _set_up(recipe, out)
        pipeline = _pipeline(model, corpus, recipe, out)
        texts = _text_scores(recipe, pipeline, corpus)
        train_batches, val_batches = corpus.batches(recipe.training, recipe.seed)
        if recipe.training.self_critical:
            train_batches = _self_critical(model, corpus, recipe)
    except (ValueError, OSError, ImportError):  # what a user can put right and try again under the same name
        if not resume:  # then all that stands there was written by this call
            shutil.rmtree(out, ignore_errors=True)
        raise
    for note in corpus.notes:
        say(note)
    compile_model(model, recipe, batches=len(train_batches))
    say(
        f"{model.name}: {model.count_params():,} parameters; {corpus.describe()}; {len(train_batches):,} batches an "
        f"epoch; run folder {out}"
    )

    checkpoints, callbacks = _callbacks(recipe, out, train_batches, pipeline, corpus, texts, say)
    epoch = checkpoints.restore(model) if resume else 0
    _write_json(out / "recipe.json", recipe.to_dict())  # with what --set changed, now that it is known to fit
    read = to_tf_dataset if keras.backend.backend() == "tensorflow" else to_py_dataset
    validation = read(val_batches)
    if epoch >= recipe.training.epochs or _stopped(checkpoints):
        if (finished := _finished(out)) is not None:
            say(f"The run in {out} is finished.")
            return finished
    else:
        model.fit(
            read(train_batches),
            validation_data=validation,
            initial_epoch=epoch,
            epochs=recipe.training.epochs,
            callbacks=callbacks,
            shuffle=False,
            verbose=1 if sys.stderr.isatty() else 2,
        )
    _write_json(out / "history.json", checkpoints.history)
    try:
        return _finish(recipe, out, model, pipeline, corpus, checkpoints, validation, texts, say)
    except (ValueError, OSError, ImportError) as error:
        raise InputError(
            f"Training is done and kept in {out}, but scores, pictures and export are not complete: "
            f"{str(error).rstrip('.')}. Put that right and finish the run with --resume."
        ) from error


def _set_up(recipe, out):
    """Corpus and model of a run; the weights and tokenizers of recipe.init as long as there is no checkpoint."""
    start, begun = None, sorted((out / "checkpoints").glob("epoch-*.npz"))
    if recipe.init and not begun:
        start = Pipeline.load(recipe.init)
        _write_json(out / "terms.json", start.terms)  # they bind what is made of those weights, too
        images = bool(recipe.data.images) and isinstance(start.model, ImageCaptioner)
        if start.target_tokenizer is None or start.source_tokenizer is None and not images:
            raise InputError(
                f"{recipe.init} lacks a tokenizer: a recipe's training can begin with models of texts, and with "
                "captioners where the recipe has data.images."
            )
    corpus = prepare(recipe, out, start and (start.source_tokenizer, start.target_tokenizer))
    model = build_model(recipe, corpus)
    if start:
        _begin_with(start.model, model, recipe.init)
    if recipe.data.images and not recipe.backbone.trainable:
        if begun:  # grids are what the run's own backbone sees
            assign(model.variables, read_checkpoint(begun[-1])[0][: len(model.variables)], begun[-1])
            settle(model)
        corpus = with_grids(corpus, model, recipe, out.parent / "features")
    return corpus, model


def _begin_with(start, model, where):
    """Assigns another model's weights; where fine-tuning has appended characters, their rows stay as they are drawn."""
    theirs, ours = _structure(start), _structure(model)
    if other := [name for name in ours if name in theirs and theirs[name] != ours[name]]:
        differences = ", ".join(f"{name} is {theirs[name]} there and {ours[name]} here" for name in other)
        raise InputError(
            f"The weights in {where} do not fit this model: {differences}. Train the same model, or without --init."
        )
    arrays = [keras.ops.convert_to_numpy(weight.value) for weight in start.weights]
    if len(arrays) == len(model.weights):
        sizes = [
            (getattr(start, name, None), getattr(model, name, None))
            for name in ("source_vocabulary", "target_vocabulary")
        ]
        arrays = [_grown(array, weight, sizes) for array, weight in zip(arrays, model.weights, strict=True)]
    assign(model.weights, arrays, where)
    settle(model)


def _structure(model):
    """What the meaning of a model's weights depends on: its class and configuration, without settings such as dropout.

    Vocabularies may grow; their sizes and the longest lengths are compared with the weights themselves.
    """
    settings = ("name", "trainable", "dtype", "vocabulary", "source_vocabulary", "target_vocabulary")
    settings += ("max_source_length", "max_length", "alignment_layer", "doubly_stochastic", "image_size")
    config = {"model": type(model).__name__, **model.get_config()}
    if isinstance(model, ImageCaptioner):
        config |= {f"decoder.{name}": value for name, value in _structure(model.decoder).items()}
        config["backbone's number of layers"] = len(list(model.backbone._flatten_layers()))
    return {
        name: value["class_name"] if isinstance(value, dict) and "class_name" in value else value
        for name, value in config.items()
        if name not in settings and not name.endswith("dropout")
    }


def _grown(array, weight, sizes):
    """The array in the beginning of the weight's own values, if only a vocabulary has grown; else as it is."""
    changed = [pair for pair in zip(array.shape, weight.shape, strict=False) if pair[0] != pair[1]]
    if array.ndim != len(weight.shape) or not all(pair in sizes and pair[0] < pair[1] for pair in changed):
        return array
    values = np.array(keras.ops.convert_to_numpy(weight.value))
    values[tuple(slice(size) for size in array.shape)] = array
    return values


def build_model(recipe, corpus):
    """The recipe's model for the corpus's vocabularies, the width of its features, or the size of its images."""
    options = {name: value for name, value in recipe.model.items() if name != "kind"}
    options["dtype"] = recipe.training.dtype
    if corpus.source_width is not None:
        options["source_width"] = corpus.source_width
    if corpus.image_size is not None:
        return _captioner(recipe, corpus, options)
    if recipe.training.doubly_stochastic or recipe.backbone != Backbone():
        raise InputError("[backbone] and training.doubly_stochastic are for images, and these data have none.")
    if recipe.model["kind"] == "language_model":
        return MODELS["language_model"](corpus.target_vocabulary, **options)
    return MODELS[recipe.model["kind"]](corpus.source_vocabulary, corpus.target_vocabulary, **options)


def _captioner(recipe, corpus, options):
    """The recipe's backbone, and its model, with these options, as the decoder of what it sees."""
    chosen = recipe.backbone
    own = chosen.name == "small" or chosen.name.endswith(".keras")
    if not (chosen.trainable or chosen.weights or own or recipe.init):
        raise InputError(
            f"A frozen {chosen.name} needs its weights: --set backbone.weights=FILE.h5 or imagenet (which Keras "
            "downloads), or --set backbone.trainable=true."
        )
    backbone = make_backbone(image_size=corpus.image_size, **vars(chosen))
    options["source_width"] = backbone.output_shape[-1]
    decoder = MODELS[recipe.model["kind"]](None, corpus.target_vocabulary, **options)
    weight = recipe.training.doubly_stochastic
    captioner = ImageCaptioner(backbone, decoder, corpus.image_size, weight, dtype=recipe.training.dtype)
    cells = math.prod(captioner.grid_size)
    if cells > recipe.decoding.max_source_length:
        raise InputError(
            f"The backbone's grid has {cells} cells: give --set decoding.max_source_length={cells}, smaller images, or "
            f"a later layer. Received: decoding.max_source_length={recipe.decoding.max_source_length}"
        )
    return captioner


def compile_model(model, recipe, batches):
    """Adam, the recipe's schedule and loss, and the metrics; `batches` is the number of an epoch's batches."""
    options = recipe.training
    # Keras shows schedules and moving averages every batch, whether or not it makes a step.
    accumulated = options.gradient_accumulation
    average = {} if options.ema_momentum is None else {"use_ema": True, "ema_momentum": options.ema_momentum}
    optimizer = keras.optimizers.Adam(
        _schedule(recipe, steps=batches * options.epochs),
        beta_2=options.beta_2,
        clipnorm=options.clipnorm,
        weight_decay=options.weight_decay or None,
        gradient_accumulation_steps=accumulated if accumulated > 1 else None,
        **average,
    )
    if options.weight_decay:
        kept = [w for w in model.trainable_variables if len(w.shape) < 2 or w.name in ("bias", "gamma", "beta")]
        optimizer.exclude_from_weight_decay(kept)
    model.compile(
        optimizer=optimizer,
        loss=MaskedCrossEntropy(label_smoothing=options.label_smoothing, r_drop=options.r_drop),
        metrics=[TokenAccuracy(), Perplexity(), *([] if recipe.model["kind"] == "language_model" else [ExactMatch()])],
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    model.optimizer.build(model.trainable_variables)


def _self_critical(model, corpus, recipe):
    """Batches of what the model draws itself: as many images as captions of the data's mean length fill a batch."""
    options = recipe.training
    if not recipe.init:
        raise InputError("training.self_critical goes on from a captioner that knows captions: give it by --init RUN.")
    _, captions = corpus.train(0) if callable(corpus.train) else corpus.train
    usual = 1 + np.mean(getattr(captions, "captions", captions).lengths)
    images = max(1, int(options.token_budget / (options.self_critical * usual)))
    longest = recipe.decoding.max_length
    return SelfCritical(model, corpus.train, options.self_critical, longest, images, recipe.seed)


def _schedule(recipe, steps):
    options = recipe.training
    rate, warmup = options.learning_rate, options.warmup_steps
    if options.schedule == "inverse_square_root":
        return InverseSquareRoot(rate, max(1, warmup))
    if options.schedule == "noam":
        return Noam(recipe.model.get("width") or recipe.model["units"], max(1, warmup), factor=rate)
    if options.schedule == "cosine":
        warm = {"initial_learning_rate": rate / 100, "warmup_target": rate, "warmup_steps": warmup}
        return keras.optimizers.schedules.CosineDecay(
            decay_steps=max(1, steps - warmup),
            alpha=options.final_learning_rate / rate,
            **(warm if warmup else {"initial_learning_rate": rate}),
        )
    return rate


def _text_scores(recipe, pipeline, corpus):
    """What computes val_bleu and val_chrf, where the recipe's monitor is one of them."""
    of_captions = bool(recipe.data.images)
    if recipe.training.monitor not in ("val_bleu", "val_chrf", "val_bleu_4", "val_cider"):
        return None
    if of_captions != (recipe.training.monitor in ("val_bleu_4", "val_cider")):
        expected = "val_bleu_4 or val_cider" if of_captions else "val_bleu or val_chrf"
        raise InputError(f"training.monitor={recipe.training.monitor} is not for these data: set {expected}.")
    if pipeline is None or not corpus.samples.sources:
        raise InputError(
            f"training.monitor={recipe.training.monitor} needs TensorFlow as backend and validation texts within the "
            "length limits: set another one, such as val_loss."
        )
    return TextScores(pipeline, corpus.samples, recipe.data.bleu_tokenize)


def _callbacks(recipe, out, train_batches, pipeline, corpus, texts, say):
    options = recipe.training
    stopping = None
    if options.patience:
        mode = "min" if better(options.monitor, 0, 1) else "max"
        stopping = keras.callbacks.EarlyStopping(options.monitor, patience=options.patience, mode=mode)
    checkpoints = Checkpoints(out / "checkpoints", options.monitor, options.average, stopping)
    callbacks = [EpochOrder(train_batches), texts, stopping, checkpoints]
    if keras.backend.backend() == "tensorflow":
        try:
            callbacks.append(keras.callbacks.TensorBoard(out / "logs", write_graph=False))
        except ImportError:
            say("TensorBoard is missing: no logs are written.")
    if pipeline is not None and options.samples and corpus.samples.sources:
        callbacks.append(Samples(pipeline, corpus.samples, options.samples, say))
    return checkpoints, [callback for callback in callbacks if callback is not None]


def _stopped(checkpoints):
    """Whether early stopping had ended the run that is resumed."""
    state, stopping = checkpoints._restored, checkpoints.early_stopping
    return bool(stopping and state and state["wait"] >= stopping.patience)


def _pipeline(model, corpus, recipe, out):
    """The pipeline of the model in training, or None where TensorFlow is not the backend."""
    if keras.backend.backend() != "tensorflow":
        return None
    pipeline = Pipeline(model, *corpus.tokenizers, **vars(recipe.decoding))
    if (terms := out / "terms.json").exists():
        pipeline.terms = json.loads(terms.read_text(encoding="utf-8"))
    return pipeline


def _finished(out):
    """The scores of a run that has been written whole, or None: without an export TensorFlow was missing."""
    metrics = out / "metrics.json"
    stored = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
    return stored if "export" in stored else None


def _finish(recipe, out, model, pipeline, corpus, checkpoints, validation, texts, say):
    """Chooses the weights on the validation data, then writes model, scores, pictures and the SavedModel."""
    monitor, candidates = recipe.training.monitor, {"best": read_checkpoint(checkpoints.best_path)[0]}
    if recipe.training.average > 1:
        last = checkpoints.paths()[-recipe.training.average :]
        candidates["average"] = average(last, len(model.variables))
    if recipe.training.ema_momentum is not None:
        assign(variables_of(model), read_checkpoint(checkpoints.paths()[-1])[0], checkpoints.folder)
        model.optimizer.finalize_variable_values(model.trainable_variables)
        candidates["ema"] = [keras.ops.convert_to_numpy(variable.value) for variable in model.variables]
    scores = {}
    for name, arrays in candidates.items():
        assign(model.variables, arrays, checkpoints.folder)
        results = model.evaluate(validation, return_dict=True, verbose=0)
        scores[name] = {f"val_{key}": float(value) for key, value in results.items()}
        if texts is not None:
            scores[name] |= texts.scores()
    chosen = "best"
    for name in scores:  # of equally good ones an average
        if not better(monitor, scores[chosen][monitor], scores[name][monitor]):
            chosen = name
    assign(model.variables, candidates[chosen], checkpoints.folder)

    metrics = {
        **scores[chosen],
        "weights": chosen,
        "epochs": len(checkpoints.seconds),
        "seconds": round(sum(checkpoints.seconds), 1),
        "parameters": model.count_params(),
    }
    if pipeline is None:
        atomic_write(out / "model.keras", model.save)
    else:
        pipeline.save(out)
        metrics["plots"] = _plots(out, pipeline, corpus, checkpoints.history, say)
        shutil.rmtree(out / "export", ignore_errors=True)  # of a run that was killed before its scores were written
        metrics["export"] = str(pipeline.export(out / "export"))
    _write_json(out / "metrics.json", metrics)
    return metrics


def _plots(out, pipeline, corpus, history, say):
    """Training curves and one alignment, as PNG; nothing where matplotlib is missing."""
    from . import plots

    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    try:
        figures = {"history.png": plots.plot_history(history)}
        if pipeline.continues:
            prompt = next(iter(corpus.samples.sources), "")
            try:
                figures["heads.png"] = plots.plot_heads(attention_scores(pipeline, prompt, max_length=20))
            except ValueError as error:  # END at once
                say(str(error))
            return _saved(figures, folder)
        sources = corpus.samples.sources[:8]  # of which one, at least, should have an answer that is not empty
        results = zip(sources, pipeline(sources), strict=True)
        source, result = next((pair for pair in results if _attends(pair[1])), (None, None))
        if result is not None and result.attention_map is not None:
            image = source if isinstance(source, np.ndarray) else plots.read_picture(source)
            figures["caption.png"] = plots.plot_caption(image, result.attention_map, result.target_pieces)
        elif result is not None:
            labels = plots.source_labels(result)
            figures["alignment.png"] = plots.plot_alignment(result.attention, labels, result.target_pieces)
        return _saved(figures, folder)
    except InputError as error:
        say(str(error))
        return []


def _saved(figures, folder):
    from .plots import save_figure

    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [str(folder / name) for name in figures]


def _attends(result):
    return result.attention is not None and result.attention.size > 0


def _check_begun_with(out, init):
    """Refuses to go on with a run as if it had begun with the weights of another one."""
    begun = read_run_recipe(out).init
    if begun is None or Path(begun).resolve() != Path(init).resolve():
        how = f"with --init {begun}" if begun else "without --init"
        raise InputError(f"The run in {out} was begun {how}, not with {init}: give --resume without --init.")


def _open(recipe, out, resume):
    """The run's folder with its resolved recipe; a folder that holds something else is left alone."""
    stored = out / "recipe.json"
    if resume:
        if not stored.exists():
            raise InputError(f"There is nothing to resume in {out}: it holds no recipe.json.")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already: choose another --out, or go on with that run by --resume.")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(stored, recipe.to_dict())
    return out


def read_run_recipe(out, settings=()):
    """The resolved recipe of a run's folder, settings applied on top."""
    stored = Path(out) / "recipe.json"
    try:
        table = json.loads(stored.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is nothing to resume in {out}: it holds no recipe.json.") from None
    except ValueError as error:
        raise InputError(f"{stored} is damaged: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{stored} is damaged: expected a JSON object. Received: a {type(table).__name__}.")
    if "name" not in table:
        raise InputError(f"There is nothing to resume in {out}: {stored.name} is no recipe of a training.")
    for setting in settings:
        if not setting.startswith(("training.", "decoding.")):
            raise InputError(f"--resume takes settings of [training] and [decoding] only. Received: --set {setting}")
    return resolve(table, settings, where=str(stored))


def _write_json(path, value):
    text = json.dumps(value, ensure_ascii=False, indent=2)
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
