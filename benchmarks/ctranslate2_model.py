"""A Transformer of this project as a CTranslate2 model: the same weights for another decoder.

    translator = to_ctranslate2(model, folder)
    translator.translate_batch([[piece(i) for i in ids]], beam_size=5, ...)

Tokens are known there by `piece(id)`, so that nothing depends on a tokenizer.
"""

import numpy as np
from keras import ops

from keras_attention import sinusoidal_encoding

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
SUPPRESSED = [["<pad>"], ["<s>"]]  # what this project's decoding never writes
LONGEST = 512  # positions that the sinusoidal encoding is computed for


def piece(number):
    """The name of a token."""
    return SPECIAL[number] if number < len(SPECIAL) else f"t{number}"


def to_ctranslate2(model, folder, **options):
    """Writes the model's weights to a folder and opens it as a ctranslate2.Translator.

    Args:
        model: a Transformer with sinusoidal positions, LayerNorm, biases, ReLU, and tied output weights.
        folder: a path that does not exist yet.
        options: of ctranslate2.Translator, such as intra_threads.
    """
    import ctranslate2

    if (model.position, model.normalization, model.activation, model.gated) != ("sinusoidal", "layer", "relu", False):
        raise ValueError("to_ctranslate2 is written for the Transformer of the paper: sinusoidal, LayerNorm, ReLU.")
    spec = ctranslate2.specs.TransformerSpec.from_config(
        (model.encoder_layers, model.decoder_layers), model.num_heads, pre_norm=model.normalize_first
    )
    positions = _numpy(sinusoidal_encoding(LONGEST, model.width))
    spec.encoder.embeddings[0].weight = _numpy(model.source_embedding.embeddings)
    spec.decoder.embeddings.weight = _numpy(model.target_embedding.embeddings)
    spec.encoder.position_encodings.encodings = spec.decoder.position_encodings.encodings = positions
    matrix, bias = model.output_weights()
    spec.decoder.projection.weight = _numpy(matrix)
    if bias is not None:
        spec.decoder.projection.bias = _numpy(bias)
    for theirs, ours in zip(spec.encoder.layer, model.encoder, strict=True):
        _self_attention(theirs.self_attention, ours)
        _feed_forward(theirs.ffn, ours)
    for theirs, ours in zip(spec.decoder.layer, model.decoder, strict=True):
        _self_attention(theirs.self_attention, ours)
        attention = ours.cross_attention
        _norm(theirs.attention.layer_norm, ours.cross_attention_norm)
        _linear(theirs.attention.linear[0], [attention.query_dense])
        _linear(theirs.attention.linear[1], [attention.key_dense, attention.value_dense])
        _output(theirs.attention.linear[2], attention.output_dense)
        _feed_forward(theirs.ffn, ours)
    if model.normalize_first:
        _norm(spec.encoder.layer_norm, model.encoder_norm)
        _norm(spec.decoder.layer_norm, model.decoder_norm)
    spec.register_source_vocabulary([piece(i) for i in range(model.source_vocabulary)])
    spec.register_target_vocabulary([piece(i) for i in range(model.target_vocabulary)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.config.decoder_start_token = "<s>"
    spec.config.layer_norm_epsilon = model.encoder[0].epsilon
    spec.validate()
    spec.optimize(quantization=None)
    folder.mkdir(parents=True)
    spec.save(str(folder))
    return ctranslate2.Translator(str(folder), device="cpu", compute_type="float32", **options)


def _numpy(x):
    return np.ascontiguousarray(ops.convert_to_numpy(x), dtype="float32")


def _norm(theirs, ours):
    theirs.gamma, theirs.beta = _numpy(ours.gamma), _numpy(ours.beta)


def _linear(theirs, projections):
    """Rows are outputs; kernels [D, H, K] of several projections one below the other."""
    kernels = [_numpy(layer.kernel) for layer in projections]
    theirs.weight = np.concatenate([kernel.reshape(kernel.shape[0], -1).T for kernel in kernels])
    theirs.bias = np.concatenate([_numpy(layer.bias).reshape(-1) for layer in projections])


def _output(theirs, ours):
    """The kernel [H, K, D] of what joins the heads."""
    kernel = _numpy(ours.kernel)
    theirs.weight, theirs.bias = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T), _numpy(ours.bias)


def _self_attention(theirs, ours):
    attention = ours.self_attention
    _norm(theirs.layer_norm, ours.self_attention_norm)
    _linear(theirs.linear[0], [attention.query_dense, attention.key_dense, attention.value_dense])
    _output(theirs.linear[1], attention.output_dense)


def _feed_forward(theirs, ours):
    _norm(theirs.layer_norm, ours.feed_forward_norm)
    _linear(theirs.linear_0, [ours.feed_forward.hidden_dense])
    _linear(theirs.linear_1, [ours.feed_forward.output_dense])
