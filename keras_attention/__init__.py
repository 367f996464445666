"""Attention layers for Keras 3 that run on TensorFlow, JAX and PyTorch.

One alphabet of shapes is used throughout: B batch, T query (target) length, S key (source, memory) length, D model
width, H heads, K width of a head, V vocabulary, W beam width, N = B*W hypotheses.
"""

from keras_attention.additive import AdditiveAttention, ConcatAttention
from keras_attention.attention import Attention
from keras_attention.location import LocationAttention
from keras_attention.masks import causal_mask, combine_masks, masked_softmax, padding_mask
from keras_attention.multiplicative import (
    CosineAttention,
    DotProductAttention,
    GeneralAttention,
    ScaledDotProductAttention,
)
from keras_attention.recurrent import AttentiveRNN
from keras_attention.scores import (
    additive_score,
    concat_score,
    cosine_score,
    dot_score,
    general_score,
    location_score,
    scaled_dot_score,
)

__all__ = [
    "AdditiveAttention",
    "Attention",
    "AttentiveRNN",
    "ConcatAttention",
    "CosineAttention",
    "DotProductAttention",
    "GeneralAttention",
    "LocationAttention",
    "ScaledDotProductAttention",
    "additive_score",
    "causal_mask",
    "combine_masks",
    "concat_score",
    "cosine_score",
    "dot_score",
    "general_score",
    "location_score",
    "masked_softmax",
    "padding_mask",
    "scaled_dot_score",
]
