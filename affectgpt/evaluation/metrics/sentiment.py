"""Sentiment polarity: weighted-average F1 and accuracy of "positive or not", see docs/scores.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from affectgpt.core.types import Labels
from affectgpt.evaluation.metrics.base import METRICS

POSITIVE = "positive"


@METRICS.register("sentiment")
class Polarity:
    """Samples whose true value is 0 are left out; any word but ``positive``, exactly, counts as not positive."""

    truth_column = "valence"
    keys = ("waf", "acc")
    titles = ("WAF", "ACC")
    polarity = True

    def __init__(self, grouping: object = None) -> None:
        del grouping  # polarity words need no lexicon

    @staticmethod
    def truth(labels: Labels) -> float | None:
        """The true value of a sample, None where it has none."""
        return labels.valence

    def encode_truth(self, truth: Sequence[float]) -> np.ndarray:
        """The true values ``[N]``."""
        return np.asarray(truth, dtype=np.float64)

    def encode_items(self, items: Sequence[str]) -> np.ndarray:
        """True for each word ``positive``, ``[N]``."""
        return np.array([word == POSITIVE for word in items], dtype=bool)

    def compare(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """``[..., 4]``: true positive, false positive, false negative, true negative."""
        positive, negative = truth > 0, truth < 0
        return np.stack(
            [positive & predicted, negative & predicted, positive & ~predicted, negative & ~predicted], axis=-1
        ).astype(np.float64)

    def summands(self, truth: Sequence[float], predicted: Sequence[str]) -> np.ndarray:
        """``[N, 4]``, see ``compare``."""
        return self.compare(self.encode_truth(truth), self.encode_items(predicted))

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp, fn, tn = np.moveaxis(sums, -1, 0)
        total = tp + fp + fn + tn
        with np.errstate(invalid="ignore", divide="ignore"):
            # F1 of each class, weighted by how often the class is true, as sklearn's weighted average
            f_positive = np.where(2 * tp + fp + fn > 0, 2 * tp / (2 * tp + fp + fn), 0.0)
            f_negative = np.where(2 * tn + fp + fn > 0, 2 * tn / (2 * tn + fp + fn), 0.0)
            waf = ((tp + fn) * f_positive + (tn + fp) * f_negative) / total
            return {"waf": waf, "acc": (tp + tn) / total}

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        """1 where the polarity is right, else 0."""
        with np.errstate(invalid="ignore"):
            return (summands[:, 0] + summands[:, 3]) / summands.sum(axis=1)

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        return {
            "counted": [int(sums.sum())],
            "confusion": dict(zip(("tp", "fp", "fn", "tn"), map(int, sums), strict=True)),
        }
