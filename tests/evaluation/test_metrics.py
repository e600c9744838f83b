"""Metrics: hand-worked examples and what must hold for any labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt.evaluation.lexicon import Grouping, Lexicon, grouping_of, load_builtin
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.evaluation.metrics.emotions import HitRate, SetF
from affectgpt.evaluation.metrics.sentiment import Polarity

GROUPING = grouping_of(load_builtin())
WORDS = [
    "happy",
    "Joy",
    "angry",
    "furious",
    "sad",
    "worried",
    "surprise",
    "calm",
    "disgust",
    "proud",
    "neutral",
    "xyzzy",
]
label_sets = st.lists(st.sampled_from(WORDS), max_size=6)


def item(labels: list[str]) -> str:
    return f"[{', '.join(labels)}]"


def value(metric, truth, predicted) -> dict[str, float]:
    return {k: float(v) for k, v in metric.aggregate(metric.summands(truth, predicted).sum(axis=0)).items()}


def test_every_scored_task_has_a_metric() -> None:
    from affectgpt.datasets.table import DATASETS

    assert {row.task for row in DATASETS.values()} - {"train"} <= set(METRICS.names())


def test_hit_rate_by_hand(lexicon: Lexicon) -> None:
    metric = HitRate(grouping_of(lexicon))
    truth = [("happy",), ("angry",), ("smug",), ("neutral",)]
    predicted = ["[anger, merry]", "[blue]", "[happy]", "[happy]"]
    # wheels 1 to 4: hit, miss, hit, left out: 2/3; wheel 5: hit, hit (angry and sad share a sector), smug unknown: 1
    sums = metric.summands(truth, predicted).sum(axis=0)
    assert metric.detail(sums) == {"per_wheel": pytest.approx([2 / 3] * 4 + [1]), "counted": [3, 3, 3, 3, 2]}
    assert metric.aggregate(sums)["hit"] == pytest.approx((4 * 2 / 3 + 1) / 5)
    assert metric.per_sample(metric.summands(truth, predicted)).tolist()[:3] == pytest.approx([1, 0.2, 1])


def test_set_f_by_hand(lexicon: Lexicon) -> None:
    metric = SetF(grouping_of(lexicon))
    truth = [("happy", "angry"), ("sad",), ("odd",)]
    found = value(metric, truth, ["[happy]", "[sad, happy]", "[happy]"])
    assert found == pytest.approx({"precision": 0.75, "recall": 0.75, "f": 0.75})
    # wheels 1 to 4: nothing right; wheel 5: precision (1 + 0) / 2, recall (0.5 + 0) / 2, F 1/3
    found = value(metric, truth, ["[sad]", "[]", "[]"])
    assert found == pytest.approx({"precision": 0.5 / 5, "recall": 0.25 / 5, "f": 1 / 3 / 5})


def test_f_is_the_mean_of_the_wheels_not_of_the_means(lexicon: Lexicon) -> None:
    # wheels 1 to 4: precision = recall = F = 1/4; wheel 5 (no smug): precision 1/2, recall 1/4, F 1/3
    found = value(SetF(grouping_of(lexicon)), [("happy", "angry"), ("sad",)], ["[sad, smug]", "[]"])
    p, r = found["precision"], found["recall"]
    assert found["f"] == pytest.approx((4 / 4 + 1 / 3) / 5) and found["f"] != pytest.approx(2 * p * r / (p + r))


def test_polarity_by_hand() -> None:
    metric = Polarity()
    truth = [0.8, -0.4, 0.0, 1.0, -1.0]
    rows = metric.summands(truth, ["negative", "positive", "positive", "positive", "mixed"])
    assert rows.sum(axis=0).tolist() == [1, 1, 1, 1]  # the true 0 is left out
    assert value(metric, truth, ["negative", "positive", "positive", "positive", "mixed"]) == {"waf": 0.5, "acc": 0.5}
    for word in ("Positive", " positive", "positive."):
        assert Polarity().summands([1.0], [word]).tolist() == [[0, 0, 1, 0]], word  # the word must match exactly


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, -0.2, 0.0, 0.4, 3.0]), st.sampled_from(["positive", "negative", "?"])))
)
def test_polarity_is_the_weighted_f1_of_sklearn(pairs: list[tuple[float, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    kept = [(value > 0, word == "positive") for value, word in pairs if value != 0]
    if not kept:
        return
    truth, guess = zip(*kept, strict=True)
    found = value(Polarity(), [v for v, _ in pairs], [w for _, w in pairs])
    assert found["waf"] == pytest.approx(f1_score(truth, guess, average="weighted"))
    assert found["acc"] == pytest.approx(accuracy_score(truth, guess))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS[:6]), label_sets), min_size=1, max_size=8), st.randoms())
def test_order_case_and_repeats_never_matter(samples: list[tuple[str, list[str]]], random) -> None:
    shuffled = []
    for _, labels in samples:
        other = [random.choice([str.upper, str.title, str.lower])(label) for label in labels] + labels[:1]
        random.shuffle(other)
        shuffled.append(f"[{', '.join(repr(label) for label in other)}]")
    plain = [item(labels) for _, labels in samples]
    for metric in (HitRate(GROUPING), SetF(GROUPING)):
        truth = [(word,) for word, _ in samples]
        assert (metric.summands(truth, plain) == metric.summands(truth, shuffled)).all()


@settings(deadline=None)
@given(st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=8))
def test_scores_lie_between_zero_and_one(samples: list[tuple[list[str], list[str]]]) -> None:
    truth, predicted = [tuple(t) for t, _ in samples], [item(p) for _, p in samples]
    for metric, true in ((SetF(GROUPING), truth), (HitRate(GROUPING), [t[:1] for t in truth])):
        for found in value(metric, true, predicted).values():
            assert np.isnan(found) or 0 <= found <= 1
        values = metric.per_sample(metric.summands(true, predicted))
        assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), label_sets, st.sampled_from(WORDS))
def test_a_wrong_label_never_raises_precision(truth: list[str], labels: list[str], wrong: str) -> None:
    if GROUPING.mask([wrong]) & GROUPING.mask(truth):
        return  # right in some wheel
    metric = SetF(GROUPING)
    before = metric.summands([tuple(truth)], [item(labels)])[0]
    after = metric.summands([tuple(truth)], [item([*labels, wrong])])[0]
    views = len(GROUPING.views)
    assert (after[:views] <= before[:views]).all()
    assert (after[views:] == before[views:]).all()  # recall and counting are untouched


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS[:6]), label_sets), min_size=1, max_size=6), label_sets)
def test_one_more_label_never_lowers_a_hit(samples: list[tuple[str, list[str]]], more: list[str]) -> None:
    metric = HitRate(GROUPING)
    truth = [(word,) for word, _ in samples]
    before = metric.summands(truth, [item(labels) for _, labels in samples])
    after = metric.summands(truth, [item(labels + more) for _, labels in samples])
    assert (after >= before).all()


def test_a_fresh_grouping_agrees_with_set_arithmetic(lexicon: Lexicon) -> None:
    # The bits stand for sets: the same numbers by Python's own sets.
    grouping = Grouping(lexicon)
    labels = ["happy", "merry", "irate", "blue", "smug", "odd", "annoyed", "irked"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (list(rng.choice(labels, rng.integers(0, 5))) for _ in range(2))
        both = grouping.mask(a) & grouping.mask(b)
        for view in range(5):
            sets = [{grouping.groups(x)[view] for x in side} - {None} for side in (a, b)]
            assert grouping.sizes(both)[view] == len(sets[0] & sets[1])
            assert grouping.members(grouping.mask(a))[view] == sets[0]
