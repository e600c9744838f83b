"""How sure a score is: bootstrap intervals and a paired randomisation test, over samples.

Both only weigh the summands of a metric differently (metrics/base.py), so they hold for every metric. They say what
another draw of clips would change, not what another training run or another extraction would.
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


def compare(
    metric: Metric, a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, draws: int = TEST_DRAWS, seed: int = 0
) -> Comparison:
    """Paired test of the primary metric on two systems, each of one or more members that count the same.

    ``a``, ``b``: summands ``[N, C]`` of the members. A system's value is the mean of its members' values.
    p: approximate randomisation (Noreen 1989): how often swapping the two systems' outputs on random samples moves
    them at least as far apart; of several members, every pair of one of each is swapped on the same samples.
    Interval: paired bootstrap.
    """
    key, n = metric.keys[0], len(a[0])

    def value(sums: np.ndarray, members: int) -> np.ndarray:
        """Sums ``[..., members * C]`` → the mean of the members' values ``[...]``."""
        return metric.aggregate(sums.reshape(*sums.shape[:-1], members, -1))[key].mean(axis=-1)

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
        swapped = rng.integers(0, 2, (min(block, draws - start), n), dtype=np.int8).astype(np.float32) @ apart
        as_far += int((np.abs(difference(total_a + swapped, total_b - swapped)) >= observed - 1e-9).sum())
    all_a, all_b = np.concatenate(a, axis=1), np.concatenate(b, axis=1)
    resampled = [value(w @ all_b, len(b)) - value(w @ all_a, len(a)) for w in resamples(n, seed=seed)]
    return Comparison(
        a=float(value(all_a.sum(axis=0), len(a))),
        b=float(value(all_b.sum(axis=0), len(b))),
        interval=interval_of(np.concatenate(resampled)),
        p=(as_far + 1) / (draws + 1),
        n=n,
    )


@dataclass(frozen=True)
class Spread:
    """Several training seeds on the same samples, primary metric.

    ``deviation``: sample standard deviation over the seeds. ``interval``: of the mean, 95 %, bootstrap over samples
    with the seeds as they are. ``draws`` ``[D]``: the resampled means. ``same``: share of the samples that count on
    which all seeds do equally well.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None
    draws: np.ndarray
    n: int
    same: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std(self.values, ddof=1))

    @classmethod
    def mean_of(cls, parts: Sequence[Spread], *, seed: int = 0) -> Spread:
        """The mean over data sets of each seed; data sets are independent samples."""
        rng = np.random.default_rng(seed)
        values = np.mean([part.values for part in parts], axis=0)
        draws = np.mean([rng.permutation(part.draws) for part in parts], axis=0)
        return cls(
            values=tuple(map(float, values)),
            interval=interval_of(draws) if len(draws) else None,
            draws=draws,
            n=sum(part.n for part in parts),
        )


def spread(metric: Metric, runs: Sequence[Sequence[np.ndarray]], *, draws: int = DRAWS, seed: int = 0) -> Spread:
    """The spread of runs on the same samples; each has the summands ``[N, C]`` of one or more members."""
    key, n = metric.keys[0], len(runs[0][0])

    def value(sums: np.ndarray) -> np.ndarray:
        """Sums ``[..., all members * C]`` → the runs' values ``[..., R]``."""
        members = metric.aggregate(sums.reshape(*sums.shape[:-1], sum(map(len, runs)), -1))[key]
        starts = np.cumsum([0, *map(len, runs)])
        return np.stack([members[..., a:b].mean(axis=-1) for a, b in pairwise(starts)], axis=-1)

    stacked = np.concatenate([member for run in runs for member in run], axis=1)
    blocks = [value(w @ stacked).mean(axis=-1) for w in resamples(n, draws=draws, seed=seed)] if draws else []
    drawn = np.concatenate(blocks) if blocks else np.zeros(0)
    met = np.stack([np.mean([metric.per_sample(member) for member in run], axis=0) for run in runs])
    counted = np.isfinite(met).all(axis=0)
    same = float((np.ptp(met[:, counted], axis=0) < 1e-9).mean()) if counted.any() else None
    values = tuple(map(float, value(stacked.sum(axis=0))))
    return Spread(values, interval_of(drawn) if len(drawn) else None, drawn, n, same)
