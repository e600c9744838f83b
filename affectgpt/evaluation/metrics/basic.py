"""Basic emotions: hit rate (paper, equation 13), mean over the wheels."""

from __future__ import annotations

from typing import Any

import numpy as np

from affectgpt.core.types import Labels
from affectgpt.evaluation.grouping import GroupSets
from affectgpt.evaluation.metrics.base import METRICS, GroupMetric


@METRICS.register("basic")
class HitRate(GroupMetric):
    """1 for a sample whose true group is among the predicted groups; samples whose truth has no group are left out."""

    truth_column = "emotion"
    keys = ("hit",)
    titles = ("HIT",)
    polarity = False

    @staticmethod
    def truth(labels: Labels) -> tuple[str, ...] | None:
        """The true labels of a sample, None where it has none."""
        return None if labels.emotion is None else (labels.emotion,)

    def compare(self, truth: GroupSets, predicted: GroupSets) -> np.ndarray:
        """``[..., 2V]`` for V views: hits per view, then samples counted per view."""
        hits = truth.shared(predicted)
        counted = np.broadcast_to(truth.sizes, hits.shape)
        # the truth is one label, so both numbers are 0 or 1
        return np.minimum(np.concatenate([hits, counted], axis=-1), 1.0)

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        hits, counted = np.split(sums, 2, axis=-1)
        with np.errstate(invalid="ignore"):
            return {"hit": (hits / counted).mean(axis=-1)}

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        """The share of the wheels that know the truth in which the sample is a hit."""
        hits, counted = np.split(summands, 2, axis=1)
        with np.errstate(invalid="ignore"):
            return hits.sum(axis=1) / counted.sum(axis=1)

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        hits, counted = np.split(sums, 2)
        return {
            "per_wheel": [h / c if c else None for h, c in zip(hits, counted, strict=True)],
            "counted": [int(c) for c in counted],
        }
