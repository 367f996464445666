"""Training: tasks, data, batches, losses, metrics, schedules, recipes, scores, plots and the command line."""

if __name__ == "training":
    raise ImportError(
        "This folder is installed as keras_attention.training: write `from keras_attention.training import ...`."
    )

from .losses import MaskedCrossEntropy
from .metrics import ExactMatch, Perplexity, TokenAccuracy
from .schedules import InverseSquareRoot, Noam

__all__ = ["ExactMatch", "InverseSquareRoot", "MaskedCrossEntropy", "Noam", "Perplexity", "TokenAccuracy"]
