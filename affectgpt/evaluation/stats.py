"""Uncertainty of scores over samples: bootstrap intervals, a paired randomisation test, and the choice of a checkpoint.

All weigh the summands of a metric differently (metrics/base.py), so they hold for every metric. They say what other
clips would change, not what another training run or another extraction would.

The published row takes the best of seven checkpoints for each data set on its test set. ``select`` gives two values
without that choice: the mean of the checkpoints, and the checkpoint that is best on one half of the samples, scored on
the other half, both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from affectgpt.evaluation.metrics.base import Metric

DRAWS = 1000
TEST_DRAWS = 10_000
LEVEL = 0.95
SPLITS = 200  # random halves, whose mean is the value of the choice on a half
_BLOCK = 2_000_000  # numbers held at once


def resamples(n: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, in blocks ``[d, n]`` (float32) of ``draws`` resamples with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(n, 1))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        # one bincount for all resamples of a block: sample i of resample d is counted at d * n + i
        drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float32)


def _primary(metric: Metric, sums: np.ndarray, members: int) -> np.ndarray:
    """Sums ``[..., members * C]`` of several systems side by side → their primary metric ``[..., members]``."""
    sums = sums.reshape(*sums.shape[:-1], members, -1).astype(np.float64)
    return metric.aggregate(sums)[metric.keys[0]]


def intervals(
    metric: Metric, summands: list[np.ndarray], *, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, tuple[float, float]]]:
    """95 % percentile bootstrap intervals of several checkpoints on the same N samples, summands ``[N, C]`` each."""
    # all checkpoints in one matrix product, on the same resamples
    stacked = np.concatenate(summands, axis=1).astype(np.float32)  # [N, K * C]
    sums = np.concatenate([weights @ stacked for weights in resamples(len(stacked), draws=draws, seed=seed)])
    by_checkpoint = []
    for part in np.split(sums.astype(np.float64), len(summands), axis=1):
        values = metric.aggregate(part)
        by_checkpoint.append({key: interval_of(values[key]) for key in metric.keys})
    return by_checkpoint


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


def compare(
    metric: Metric, a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, draws: int = TEST_DRAWS, seed: int = 0
) -> Comparison:
    """Paired test of the primary metric on two systems, each of one or more members that count the same.

    ``a``, ``b``: summands ``[N, C]`` of the members. A system's value is the mean of its members' values.
    p: approximate randomisation (Noreen 1989): how often swapping the two systems' outputs on random samples moves
    them at least as far apart; of several members, every pair of one of each is swapped on the same samples.
    Interval: paired bootstrap.
    """
    n = len(a[0])

    def value(sums: np.ndarray, members: int) -> np.ndarray:
        return _primary(metric, sums, members).mean(axis=-1)

    pairs = [(one, other) for one in a for other in b]
    firsts, seconds = (np.concatenate([pair[side] for pair in pairs], axis=1) for side in (0, 1))

    def difference(sums_a: np.ndarray, sums_b: np.ndarray) -> np.ndarray:
        return value(sums_b, len(pairs)) - value(sums_a, len(pairs))

    total_a, total_b = firsts.sum(axis=0), seconds.sum(axis=0)
    observed = abs(float(difference(total_a, total_b)))
    rng = np.random.default_rng(seed)
    apart = seconds - firsts
    as_far = 0
    block = max(1, _BLOCK // max(n, 1))
    for start in range(0, draws, block):
        # swapping two systems on a sample moves the difference of their summands from one sum to the other
        swapped = rng.integers(0, 2, (min(block, draws - start), n), dtype=np.int8).astype(np.float32) @ apart
        as_far += int((np.abs(difference(total_a + swapped, total_b - swapped)) >= observed - 1e-9).sum())
    all_a, all_b = np.concatenate(a, axis=1), np.concatenate(b, axis=1)
    resampled = [value(w @ all_b, len(b)) - value(w @ all_a, len(a)) for w in resamples(n, seed=seed)]
    return Comparison(
        a=float(value(all_a.sum(axis=0), len(a))),
        b=float(value(all_b.sum(axis=0), len(b))),
        interval=interval_of(np.concatenate(resampled)),
        p=(as_far + 1) / (draws + 1),  # the observed assignment is one of them, so that p is never 0
        n=n,
    )


@dataclass(frozen=True)
class Estimate:
    """A value of 0..1, its 95 % bootstrap interval over samples where one was asked for, and the resamples ``[D]``."""

    value: float
    interval: tuple[float, float] | None = None
    draws: np.ndarray | None = None

    @classmethod
    def of(cls, value: float, blocks: Sequence[np.ndarray]) -> Estimate:
        """The estimate of a value with its resamples, in blocks; without blocks no interval."""
        if not blocks:
            return cls(value)
        draws = np.concatenate(blocks)
        # few samples: no resample may hold one that counts
        return cls(value, interval_of(draws) if np.isfinite(draws).any() else None, draws)

    @classmethod
    def mean_of(cls, estimates: Sequence[Estimate | None], *, seed: int = 0) -> Estimate | None:
        """The mean of several data sets' estimates; None where one has none.

        Data sets are independent samples: their resamples are paired at random for the interval of the mean.
        """
        parts = [estimate for estimate in estimates if estimate is not None]
        if not parts or len(parts) < len(estimates):
            return None
        value = float(np.mean([part.value for part in parts]))
        rng = np.random.default_rng(seed)
        draws = [part.draws for part in parts if part.draws is not None]
        if len(draws) < len(parts):
            return cls(value)
        return cls.of(value, [np.mean([rng.permutation(part) for part in draws], axis=0)])


@dataclass(frozen=True)
class Spread:
    """Several training seeds on the same samples, primary metric.

    ``mean``: over the seeds, with its interval by bootstrap over samples, the seeds as they are. ``same``: share of the
    samples that count on which all seeds do equally well.
    """

    values: tuple[float, ...]
    mean: Estimate
    n: int
    same: float | None = None

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std(self.values, ddof=1))

    @classmethod
    def mean_of(cls, parts: Sequence[Spread]) -> Spread:
        """The mean over data sets of each seed."""
        mean = Estimate.mean_of([part.mean for part in parts])
        assert mean is not None
        values = np.mean([part.values for part in parts], axis=0)
        return cls(tuple(map(float, values)), mean, sum(part.n for part in parts))


def spread(metric: Metric, runs: Sequence[Sequence[np.ndarray]], *, draws: int = DRAWS, seed: int = 0) -> Spread:
    """The spread of runs on the same samples; each has the summands ``[N, C]`` of one or more members."""
    n, starts = len(runs[0][0]), np.cumsum([0, *map(len, runs)])

    def value(sums: np.ndarray) -> np.ndarray:
        """Sums ``[..., all members * C]`` → the runs' values ``[..., R]``, means of their members."""
        members = _primary(metric, sums, starts[-1])
        return np.stack([members[..., a:b].mean(axis=-1) for a, b in pairwise(starts)], axis=-1)

    stacked = np.concatenate([member for run in runs for member in run], axis=1)
    blocks = [value(w @ stacked).mean(axis=-1) for w in resamples(n, draws=draws, seed=seed)] if draws else []
    met = np.stack([np.mean([metric.per_sample(member) for member in run], axis=0) for run in runs])
    counted = np.isfinite(met).all(axis=0)
    same = float((np.ptp(met[:, counted], axis=0) < 1e-9).mean()) if counted.any() else None
    values = tuple(map(float, value(stacked.sum(axis=0))))
    return Spread(values, Estimate.of(float(np.mean(values)), blocks), n, same)


@dataclass(frozen=True)
class Selection:
    """One data set's checkpoints: their mean, and one chosen on a half and scored on the other, primary metric."""

    mean: Estimate
    halves: Estimate | None  # None: a single sample, or no half has a value
    samples: int  # that all checkpoints have


def select(
    metric: Metric, values: Sequence[float], summands: Sequence[np.ndarray], *, draws: int, seed: int = 0
) -> Selection:
    """Both estimates for K checkpoints of one data set: primary ``values``, and summands ``[N, C]`` of shared samples.

    The value of the halves is the mean over ``SPLITS`` random splits and both ways. ``draws``: bootstrap resamples, 0
    for no intervals; each resample has a split of its own, whose luck the interval covers, and a sample that it holds
    twice is in one half.
    """
    k = len(summands)
    stacked = np.concatenate(summands, axis=1).astype(np.float32)  # [N, K * C]
    n, mean = len(stacked), float(np.mean(values))
    rng = np.random.default_rng(seed)
    if n < 2:
        return Selection(Estimate(mean), None, n)

    def on_halves(weights: np.ndarray) -> np.ndarray:
        """Weights ``[D, N]`` → ``[D]``: the best checkpoint of a random half on the other half, mean of both ways."""
        side = rng.random(weights.shape, dtype=np.float32).argsort(axis=1) < n // 2  # [D, N]: in the first half
        one = (weights * side) @ stacked
        a, b = _primary(metric, one, k), _primary(metric, weights @ stacked - one, k)  # [D, K] each
        rows = np.arange(len(weights))
        best_a, best_b = (np.nan_to_num(half, nan=-1.0).argmax(axis=1) for half in (a, b))
        return (b[rows, best_a] + a[rows, best_b]) / 2

    split = on_halves(np.ones((SPLITS, n), np.float32))
    means, halves = [], []
    for weights in resamples(n, draws=draws, seed=seed) if draws else ():
        means.append(_primary(metric, weights @ stacked, k).mean(axis=1))
        halves.append(on_halves(weights))
    value = float(np.nanmean(split)) if np.isfinite(split).any() else None
    return Selection(Estimate.of(mean, means), None if value is None else Estimate.of(value, halves), n)
