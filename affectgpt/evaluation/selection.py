"""What a run scores when no checkpoint is chosen on the samples that it is scored on.

The published row takes the best of seven checkpoints for each data set on its test set. Beside it belong the mean of
the checkpoints, and the checkpoint that is best on one half of the samples, scored on the other half, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.evaluation import stats
from affectgpt.evaluation.metrics.base import Metric
from affectgpt.evaluation.score import Score, shared_summands

SPLITS = 200  # random halves, whose mean is the value


@dataclass(frozen=True)
class Estimate:
    """A value of 0..1, its 95 % bootstrap interval over samples where one was asked for, and the resamples ``[D]``."""

    value: float
    interval: tuple[float, float] | None = None
    draws: np.ndarray | None = None


@dataclass(frozen=True)
class Selection:
    """One data set's checkpoints: their mean, and one chosen on a half and scored on the other, primary metric."""

    mean: Estimate
    halves: Estimate | None  # None: a single sample, or no half has a value
    samples: int  # that all checkpoints have


def select(scores: Sequence[Score], *, draws: int, seed: int = 0) -> Selection:
    """Both estimates for the checkpoints of one data set, on the samples that all of them have.

    The value of the halves is the mean over ``SPLITS`` random splits and both ways. ``draws``: bootstrap resamples, 0
    for no intervals; each resample has a split of its own, whose luck the interval covers, and a sample that it holds
    twice is in one half.
    """
    metric, key = scores[0].metric, scores[0].metric.keys[0]
    stacked = np.concatenate(shared_summands(scores), axis=1).astype(np.float32)  # [N, K * C]
    n, k = len(stacked), len(scores)
    mean = float(np.mean([score.primary for score in scores]))
    rng = np.random.default_rng(seed)
    if n < 2:
        return Selection(Estimate(mean), None, n)
    split = _halved(metric, key, stacked, k, np.ones((SPLITS, n), np.float32), rng)
    means, halves = [], []
    for weights in stats.resamples(n, draws=draws, seed=seed) if draws else ():
        means.append(_values(metric, key, weights @ stacked, k).mean(axis=1))
        halves.append(_halved(metric, key, stacked, k, weights, rng))
    value = float(np.nanmean(split)) if np.isfinite(split).any() else None
    return Selection(mean=_estimate(mean, means), halves=None if value is None else _estimate(value, halves), samples=n)


def mean_over(estimates: Sequence[Estimate | None], *, seed: int = 0) -> Estimate | None:
    """The mean of several data sets' estimates; None where one has none.

    Data sets are independent samples: their resamples are paired at random for the interval of the mean.
    """
    found = [estimate for estimate in estimates if estimate is not None]
    if not found or len(found) < len(estimates):
        return None
    value = float(np.mean([estimate.value for estimate in found]))
    rng = np.random.default_rng(seed)
    known = [estimate.draws for estimate in found if estimate.draws is not None]
    if len(known) < len(found):
        return Estimate(value)
    return _estimate(value, [np.mean([rng.permutation(draws) for draws in known], axis=0)])


def _estimate(value: float, draws: list[np.ndarray]) -> Estimate:
    if not draws:
        return Estimate(value)
    drawn = np.concatenate(draws)
    known = np.isfinite(drawn).any()  # few samples: no resample may hold one that counts
    return Estimate(value, stats.interval_of(drawn) if known else None, drawn)


def _values(metric: Metric, key: str, sums: np.ndarray, k: int) -> np.ndarray:
    """The primary metric ``[D, K]`` of sums ``[D, K * C]``."""
    return metric.aggregate(sums.reshape(len(sums), k, -1).astype(np.float64))[key]


def _halved(
    metric: Metric, key: str, stacked: np.ndarray, k: int, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """``[D]``: the best checkpoint of a random half on the other half, mean of both ways, for weights ``[D, N]``."""
    side = rng.random(weights.shape, dtype=np.float32).argsort(axis=1) < weights.shape[1] // 2
    one = (weights * side) @ stacked
    halves = [_values(metric, key, sums, k) for sums in (one, weights @ stacked - one)]  # [D, K] each
    rows = np.arange(len(weights))
    return (
        sum(other[rows, np.nan_to_num(chosen, nan=-1.0).argmax(axis=1)] for chosen, other in (halves, halves[::-1])) / 2
    )
