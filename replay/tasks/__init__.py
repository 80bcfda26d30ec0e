"""Ready tasks for usual models: classification, regression, and language models of transformers."""

from replay.tasks.language import causal_lm, masked_lm, sequence_classification
from replay.tasks.pairs import classification, regression
from replay.tasks.tokens import by_token

__all__ = [
    "by_token",
    "causal_lm",
    "classification",
    "masked_lm",
    "regression",
    "sequence_classification",
]
