"""What a metric is: numbers per sample that add up, and an aggregate of their sums.

That split gives a score, its bootstrap interval and a paired test with the same few lines: a resample only weighs the
summands differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from affectgpt.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

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
