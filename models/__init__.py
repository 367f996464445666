"""The models that made attention famous, as plain Keras models, and what turns a trained one into text."""

if __name__ == "models":
    raise ImportError(
        "This folder is installed as keras_attention.models: write `from keras_attention.models import ...`."
    )

from .backbones import make_backbone
from .captioner import ImageCaptioner
from .decoding import Hypotheses, beam_search, greedy_search, sample, uniform_numbers
from .ensemble import Ensemble, ensemble
from .inspection import AttentionScores, attention_scores, word_similarity
from .language_model import LanguageModel
from .pipeline import Pipeline, Result, list_presets
from .seq2seq import Seq2Seq
from .tokenizers import CharacterTokenizer, SentencePieceTokenizer
from .transformer import Transformer
from .words import WordPieceTokenizer, WordTokenizer

__all__ = [
    "AttentionScores",
    "CharacterTokenizer",
    "Ensemble",
    "Hypotheses",
    "ImageCaptioner",
    "LanguageModel",
    "Pipeline",
    "Result",
    "SentencePieceTokenizer",
    "Seq2Seq",
    "Transformer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "attention_scores",
    "beam_search",
    "ensemble",
    "greedy_search",
    "list_presets",
    "make_backbone",
    "sample",
    "uniform_numbers",
    "word_similarity",
]
