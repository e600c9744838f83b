"""What a metric is: numbers per sample that add up, and an aggregate of their sums.

That split gives a score, its bootstrap interval and a paired test with the same few lines: a resample only weighs the
summands differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from affectgpt.core.registry import Registry

if TYPE_CHECKING:
    from affectgpt.evaluation.grouping import Grouping, GroupSets

METRICS = Registry("metric", "affectgpt.evaluation.metrics")  # by task: basic, fine-grained, sentiment


class Metric(Protocol):
    """Scores one task. ``keys``: what it gives, primary first, with ``titles``. ``polarity``: reads polarity words.
    ``truth_column``: what a user's own table calls the truth (a role of datasets/custom)."""

    truth_column: str
    keys: tuple[str, ...]
    titles: tuple[str, ...]
    polarity: bool

    def summands(self, truth: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
        """Summands ``[N, C]`` (float64) of N samples; a sample that does not count is a row of zeros."""
        ...

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Sums ``[..., C]`` → each key's value ``[...]`` (0..1; NaN where nothing counts)."""
        ...

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        """How well each sample was met, ``[N]`` (0..1; NaN: it does not count), for showing the worst ones."""
        ...

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        """What a report may add for one checkpoint, from sums ``[C]``: per-view values and counts."""
        ...


class GroupMetric:
    """A metric on sets of groups: what its subclasses say is how two sets are compared.

    Both sides are encoded once, so that the same answers can be set against other truths (``floors``).
    """

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def encode_truth(self, truth: Sequence[tuple[str, ...]]) -> GroupSets:
        """The groups of N true label sets."""
        return self.grouping.sets(map(self.grouping.mask, truth))

    def encode_items(self, items: Sequence[str]) -> GroupSets:
        """The groups of N extracted items."""
        return self.grouping.sets(self.grouping.item(item)[1] for item in items)

    def compare(self, truth: GroupSets, predicted: GroupSets) -> np.ndarray:
        """Summands ``[..., C]`` of sets whose leading dimensions broadcast."""
        raise NotImplementedError

    def summands(self, truth: Sequence[tuple[str, ...]], predicted: Sequence[str]) -> np.ndarray:
        """``[N, C]``, see ``compare``."""
        return self.compare(self.encode_truth(truth), self.encode_items(predicted))

    def precision(self, truth: GroupSets, predicted: GroupSets) -> float:
        """Mean share of an answer's groups that are true, over the samples that count, mean over the views."""
        shares = truth.shared(predicted) / np.maximum(predicted.sizes, 1)
        counted = truth.sizes > 0
        with np.errstate(invalid="ignore"):
            return float(((shares * counted).sum(axis=0) / counted.sum(axis=0)).mean())
