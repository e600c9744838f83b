"""Emotion labels, compared as groups: hit rate, and precision, recall and F of sets (paper, equations 9 to 13)."""

from __future__ import annotations

from typing import Any

import numpy as np

from affectgpt.core.types import Labels
from affectgpt.evaluation.lexicon import GroupSets
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
        hits, counted = np.split(sums, 2, axis=-1)  # [..., V] each
        with np.errstate(invalid="ignore"):  # 0 / 0 where a wheel knows no truth: NaN, which the caller reports
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


@METRICS.register("fine-grained")
class SetF(GroupMetric):
    """Per sample |pred ∩ truth| / |pred| and / |truth|; samples whose truth has no group are left out."""

    truth_column = "ovlabel"
    keys = ("f", "precision", "recall")
    titles = ("F_s", "precision", "recall")
    polarity = False

    @staticmethod
    def truth(labels: Labels) -> tuple[str, ...] | None:
        """The true labels of a sample, None where it has none."""
        return labels.ovlabels

    def compare(self, truth: GroupSets, predicted: GroupSets) -> np.ndarray:
        """``[..., 3V]`` for V views: precisions, recalls, samples counted."""
        shared = truth.shared(predicted)
        # an empty set has an empty intersection: dividing by 1 instead of 0 gives the 0 that is meant
        precision, recall = shared / np.maximum(predicted.sizes, 1), shared / np.maximum(truth.sizes, 1)
        return np.concatenate([precision, recall, np.broadcast_to(truth.sizes > 0, shared.shape)], axis=-1)

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        precision, recall, f = self._per_view(sums)
        return {"f": f.mean(axis=-1), "precision": precision.mean(axis=-1), "recall": recall.mean(axis=-1)}

    @staticmethod
    def _per_view(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        precisions, recalls, counted = np.split(sums, 3, axis=-1)
        with np.errstate(invalid="ignore"):
            precision, recall = precisions / counted, recalls / counted
        # F of the mean precision and recall, not the mean of the samples' F (equation 12)
        return precision, recall, _harmonic_mean(precision, recall)

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        """F of the sample's own precision and recall, mean over the wheels that know the truth."""
        precision, recall, counted = np.split(summands, 3, axis=1)
        with np.errstate(invalid="ignore"):
            return _harmonic_mean(precision, recall).sum(axis=1) / counted.sum(axis=1)

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        _, _, f = self._per_view(sums)
        counted = np.split(sums, 3)[2]
        return {"per_wheel": [float(x) for x in f], "counted": [int(c) for c in counted]}


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """2ab / (a + b); 0 where both are 0."""
    both = a + b
    return np.where(both == 0, 0.0, 2 * a * b / np.where(both == 0, 1.0, both))
