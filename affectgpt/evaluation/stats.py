"""How sure a score is: bootstrap intervals and a paired randomisation test, over samples.

Both only weigh the summands of a metric differently (metrics/base.py), so they hold for every metric. They say what
another draw of clips would change, not what another training run or another extraction would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from affectgpt.evaluation.metrics.base import Metric

DRAWS = 1000
TEST_DRAWS = 10_000
LEVEL = 0.95
_BLOCK = 2_000_000  # numbers held at once


def resamples(n: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, in blocks ``[d, n]`` (float32) of ``draws`` resamples with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(n, 1))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float32)


def intervals(
    metric: Metric, summands: list[np.ndarray], *, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, tuple[float, float]]]:
    """95 % percentile bootstrap intervals of several checkpoints on the same N samples, summands ``[N, C]`` each."""
    stacked = np.concatenate(summands, axis=1).astype(np.float32)  # [N, K * C]
    sums = np.concatenate([weights @ stacked for weights in resamples(len(stacked), draws=draws, seed=seed)])
    found = []
    for part in np.split(sums.astype(np.float64), len(summands), axis=1):
        values = metric.aggregate(part)
        found.append({key: interval_of(values[key]) for key in metric.keys})
    return found


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values ``[D]``; NaN twice where none is finite."""
    values = values[np.isfinite(values)]  # a resample may hold no sample that counts
    if not len(values):
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """B minus A on the same samples: difference, its 95 % interval, two-sided p value, number of samples."""

    a: float
    b: float
    interval: tuple[float, float]
    p: float
    n: int

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a


def compare(metric: Metric, a: np.ndarray, b: np.ndarray, *, draws: int = TEST_DRAWS, seed: int = 0) -> Comparison:
    """Paired test of the primary metric on summands ``[N, C]`` of two systems.

    p: approximate randomisation (Noreen 1989): how often swapping the two systems' outputs on random samples moves
    them at least as far apart. Interval: paired bootstrap.
    """
    key = metric.keys[0]

    def difference(sums_a: np.ndarray, sums_b: np.ndarray) -> np.ndarray:
        return metric.aggregate(sums_b)[key] - metric.aggregate(sums_a)[key]

    total_a, total_b = a.sum(axis=0), b.sum(axis=0)
    observed = abs(float(difference(total_a, total_b)))
    rng = np.random.default_rng(seed)
    apart = b - a
    n, as_far = len(a), 0
    block = max(1, _BLOCK // max(n, 1))
    for start in range(0, draws, block):
        swapped = rng.integers(0, 2, (min(block, draws - start), n), dtype=np.int8).astype(np.float32) @ apart
        as_far += int((np.abs(difference(total_a + swapped, total_b - swapped)) >= observed - 1e-9).sum())
    pairs = [difference(w @ a, w @ b) for w in resamples(n, seed=seed)]
    interval = interval_of(np.concatenate(pairs))
    return Comparison(
        a=float(metric.aggregate(total_a)[key]),
        b=float(metric.aggregate(total_b)[key]),
        interval=interval,
        p=(as_far + 1) / (draws + 1),
        n=n,
    )
