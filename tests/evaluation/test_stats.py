"""Intervals and the paired test: against theory, and against what must hold."""

from __future__ import annotations

import numpy as np
import pytest

from affectgpt.evaluation.lexicon import grouping_of, load_builtin
from affectgpt.evaluation.metrics.emotions import HitRate
from affectgpt.evaluation.metrics.sentiment import Polarity
from affectgpt.evaluation.stats import compare, intervals, resamples, spread


def polarity_rows(right: list[bool]) -> np.ndarray:
    """Samples of alternating truth that are met or not."""
    truth = [1.0 if i % 2 else -1.0 for i in range(len(right))]
    words = ["positive" if (t > 0) == ok else "negative" for t, ok in zip(truth, right, strict=True)]
    return Polarity().summands(truth, words)


def test_resamples_draw_n_of_n() -> None:
    blocks = list(resamples(7, draws=100, seed=1))
    drawn = np.concatenate(blocks)
    assert drawn.shape == (100, 7) and (drawn.sum(axis=1) == 7).all()
    assert drawn.mean() == pytest.approx(1) and drawn.var() == pytest.approx(6 / 7, rel=0.15)
    assert (drawn == np.concatenate(list(resamples(7, draws=100, seed=1)))).all()
    assert (drawn != np.concatenate(list(resamples(7, draws=100, seed=2)))).any()


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    n, share = 400, 0.7
    rows = polarity_rows([i % 10 < 7 for i in range(n)])
    low, high = intervals(Polarity(), [rows], draws=2000)[0]["acc"]
    half = 1.96 * (share * (1 - share) / n) ** 0.5
    assert low == pytest.approx(share - half, abs=0.008) and high == pytest.approx(share + half, abs=0.008)


def test_checkpoints_together_or_alone_have_the_same_interval() -> None:
    a, b = (polarity_rows([i % k < 3 for i in range(60)]) for k in (4, 5))
    together = intervals(Polarity(), [a, b], draws=200)
    for rows, found in zip((a, b), together, strict=True):
        alone = intervals(Polarity(), [rows], draws=200)[0]
        assert all(found[key] == pytest.approx(alone[key]) for key in ("waf", "acc"))


def test_resamples_without_a_counted_sample_are_no_number() -> None:
    metric = HitRate(grouping_of(load_builtin()))
    rows = metric.summands([("happy",), ("neutral",), ("neutral",)], ["[happy]", "[]", "[]"])
    assert intervals(metric, [rows], draws=200)[0]["hit"] == (1.0, 1.0)


def test_a_system_does_not_differ_from_itself() -> None:
    rows = polarity_rows([True, False] * 30)
    found = compare(Polarity(), [rows], [rows])
    assert found.difference == 0 and found.p == 1 and found.interval == (0, 0) and found.n == 60


def test_p_is_that_of_the_sign_test() -> None:
    # 8 samples tell the two apart, all for b: under swapping 2 of 2^8 patterns are as far apart.
    a, b = polarity_rows([True] * 50 + [False] * 10), polarity_rows([True] * 58 + [False] * 2)
    found = compare(Polarity(), [a], [b])
    assert found.p == pytest.approx(2 / 256, abs=0.003)
    assert found.interval[0] > 0 and compare(Polarity(), [b], [a]).difference == pytest.approx(-found.difference)


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(3)
    found = [
        compare(Polarity(), *([polarity_rows(list(rng.random(120) < 0.7))] for _ in range(2)), draws=300).p
        for _ in range(120)
    ]
    assert 0.005 <= np.mean(np.array(found) < 0.05) <= 0.12 and 0.35 < np.mean(found) < 0.65


def test_the_mean_of_members_is_one_system() -> None:
    rng = np.random.default_rng(1)
    singles = [polarity_rows(list(rng.random(200) < 0.7)) for _ in range(5)]
    vote = polarity_rows(list(rng.random(200) < 0.85))
    found = compare(Polarity(), singles, [vote], draws=2000)
    each = [compare(Polarity(), [single], [vote], draws=2000) for single in singles]
    assert found.difference == pytest.approx(np.mean([c.difference for c in each]))
    assert found.a == pytest.approx(np.mean([c.a for c in each])) and found.p < 0.01
    # the mean of five is known better than one of them
    assert np.ptp(found.interval) < min(np.ptp(c.interval) for c in each)
    assert compare(Polarity(), singles, singles).p == 1 == compare(Polarity(), [vote] * 3, [vote]).p


def test_p_of_a_mean_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(120):
        three, one = ([polarity_rows(list(rng.random(100) < 0.7)) for _ in range(n)] for n in (3, 1))
        found.append(compare(Polarity(), three, one, draws=300).p)
    assert np.mean(np.array(found) < 0.05) <= 0.12 and 0.3 < np.mean(found) < 0.7


def test_the_interval_of_seeds_is_that_of_their_mean() -> None:
    rng = np.random.default_rng(2)
    runs = [[polarity_rows(list(rng.random(300) < 0.8))] for _ in range(3)]
    found = spread(Polarity(), runs)
    assert found.mean.interval[0] < found.mean.value < found.mean.interval[1]
    alone = spread(Polarity(), [runs[0], runs[0]])
    assert alone.deviation == 0 and alone.same == 1
    assert np.ptp(found.mean.interval) < np.ptp(alone.mean.interval)
