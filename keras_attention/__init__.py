"""Attention layers for Keras 3 that run on TensorFlow, JAX and PyTorch.

One alphabet of shapes is used throughout: B batch, T query (target) length, S key (source, memory) length, D model
width, H heads, K width of a head, V vocabulary, W beam width, N = B*W hypotheses.
"""

from keras_attention.additive import AdditiveAttention, ConcatAttention
from keras_attention.attention import Attention
from keras_attention.blockwise import blockwise_attention
from keras_attention.location import LocationAttention
from keras_attention.masks import causal_mask, combine_masks, masked_softmax, padding_mask
from keras_attention.multi_head import MultiHeadAttention
from keras_attention.multiplicative import (
    CosineAttention,
    DotProductAttention,
    GeneralAttention,
    ScaledDotProductAttention,
)
from keras_attention.pooling import AttentionPooling
from keras_attention.position import (
    ALiBi,
    PositionEmbedding,
    RelativeBias,
    RotaryEmbedding,
    SinusoidalEncoding,
    sinusoidal_encoding,
)
from keras_attention.recording import record_scores
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
from keras_attention.self_attention import CrossAttention, MaskedSelfAttention, SelfAttention
from keras_attention.transformer import FeedForward, TransformerDecoderBlock, TransformerEncoderBlock

__all__ = [
    "ALiBi",
    "AdditiveAttention",
    "Attention",
    "AttentionPooling",
    "AttentiveRNN",
    "ConcatAttention",
    "CosineAttention",
    "CrossAttention",
    "DotProductAttention",
    "FeedForward",
    "GeneralAttention",
    "LocationAttention",
    "MaskedSelfAttention",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RelativeBias",
    "RotaryEmbedding",
    "ScaledDotProductAttention",
    "SelfAttention",
    "SinusoidalEncoding",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "additive_score",
    "blockwise_attention",
    "causal_mask",
    "combine_masks",
    "concat_score",
    "cosine_score",
    "dot_score",
    "general_score",
    "location_score",
    "masked_softmax",
    "padding_mask",
    "record_scores",
    "scaled_dot_score",
    "sinusoidal_encoding",
]
