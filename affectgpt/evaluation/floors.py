"""What a score is worth: how many labels were given for it, and what answers reach that never met the clip.

HIT rises with every further label, so a score means little without these. The *dealt floor*: the same answers, each
given to another clip. The *constant floor*: the best answer of as many groups that is the same for every clip, chosen
on one half of the samples and scored on the other, both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.evaluation.labels import parse_item
from affectgpt.evaluation.lexicon import clean
from affectgpt.evaluation.metrics.base import GroupMetric, Metric
from affectgpt.evaluation.metrics.sentiment import POLARITIES
from affectgpt.evaluation.score import Score

DEALS = 50
_BLOCK = 500_000  # pairs of a sample and a candidate that are compared at once
_CANDIDATES = 50  # of a metric without groups: its most frequent labels


@dataclass(frozen=True)
class Floors:
    """Of one score. Values as the metric's keys give them (0..1); None where there is no such number.

    ``labels``, ``groups``: mean number per answer, groups that the lexicon knows. ``precision``: mean share of an
    answer's groups that are true. ``answers``: the constant answers of the two halves, of ``size`` groups each.
    """

    labels: float | None
    groups: float | None
    precision: float | None
    dealt: dict[str, float] | None
    constant: dict[str, float] | None
    answers: tuple[tuple[str, ...], ...] = ()
    size: int = 1

    def higher(self, key: str) -> float | None:
        """The higher floor of one of the metric's keys."""
        return max((floor[key] for floor in (self.dealt, self.constant) if floor is not None), default=None)


def floors_of(score: Score) -> Floors:
    """The floors of a score that has some."""
    if score.floors is None:
        raise ValueError(f"{score.dataset}, {score.checkpoint}: floors were not asked for")
    return score.floors


def above(score: Score) -> float | None:
    """The primary metric minus its higher floor; None where there is no floor."""
    floor = score.floors.higher(score.metric.keys[0]) if score.floors else None
    return None if floor is None else score.primary - floor


def add_floors(scores: Sequence[Score], *, deals: int = DEALS) -> None:
    """Floors of one data set's scores; those on the same samples share their deals and constant answers."""
    by_names: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        by_names.setdefault(tuple(score.names), []).append(score)
    for same in by_names.values():
        first = same[0]
        coded: Any = first.metric if hasattr(first.metric, "encode_items") else _Plain(first.metric)
        truth = coded.encode_truth(first.truth)
        counts = [labels_and_groups(score) for score in same]
        sizes = [_size(labels, groups) for labels, groups in counts]
        constants = _Constants(first, coded, largest=max(sizes), labels=_frequent(same))
        orders = list(_deals(len(first.names), deals))
        for score, (labels, groups), size in zip(same, counts, sizes, strict=True):
            predicted = coded.encode_items(score.items)
            sums = np.array([coded.compare(truth, predicted[order]).sum(axis=0) for order in orders])
            constant, answers = constants.of(size)
            score.floors = Floors(
                labels=labels,
                groups=groups,
                precision=coded.precision(truth, predicted) if isinstance(coded, GroupMetric) else None,
                dealt=_mean(first.metric, sums),
                constant=constant,
                answers=answers,
                size=size,
            )


def _deals(n: int, deals: int, *, seed: int = 0) -> Sequence[np.ndarray]:
    """Seeded orders ``[n]`` in which no clip keeps its own answer; none for a single clip."""
    if n < 2:
        return []
    rng = np.random.default_rng(seed)
    orders = []
    for _ in range(deals):
        circle, order = rng.permutation(n), np.empty(n, dtype=np.int64)
        order[circle] = np.roll(circle, 1)  # each clip gets the answer of its neighbour in a random circle
        orders.append(order)
    return orders


def labels_and_groups(score: Score) -> tuple[float | None, float | None]:
    """Labels and known groups per answer; None each where the metric reads polarity words or has no groups."""
    if score.metric.polarity:
        return None, None
    labels = [_labels(score.metric, item) for item in score.items]
    per_answer = sum(map(len, labels)) / len(labels)
    if not isinstance(score.metric, GroupMetric):
        return per_answer, None
    return per_answer, sum(map(score.metric.grouping.count, labels)) / len(labels)


def _labels(metric: Metric, item: str) -> tuple[str, ...]:
    return metric.grouping.item(item)[0] if isinstance(metric, GroupMetric) else parse_item(item)


def _size(labels: float | None, groups: float | None) -> int:
    """Groups of the constant answer: those of a mean answer, rounded to whole ones, at least one."""
    known = groups if groups is not None else labels if labels is not None else 1
    return max(1, round(known))


def _mean(metric: Metric, sums: np.ndarray) -> dict[str, float] | None:
    """Mean of each key over sums ``[D, C]``; None where there are none, or where nothing counts."""
    if not len(sums):
        return None
    values = metric.aggregate(sums)
    means = {key: float(np.mean(values[key])) for key in metric.keys}
    return means if all(np.isfinite(value) for value in means.values()) else None


def _frequent(scores: Sequence[Score]) -> list[str]:
    """The most frequent labels of the answers: candidates where neither groups nor polarity give any."""
    if scores[0].metric.polarity or isinstance(scores[0].metric, GroupMetric):
        return []
    counts = Counter(label for score in scores for item in score.items for label in _labels(score.metric, item))
    return [label for label, _ in counts.most_common(_CANDIDATES)]


class _Constants:
    """The best constant answers of 1 to ``largest`` groups on both halves of one data set's samples.

    Greedy: of all labels the one that adds most, then the one that adds most to it, and so on.
    """

    def __init__(self, score: Score, coded: Any, *, largest: int, labels: Sequence[str]) -> None:
        self.metric, self.coded = score.metric, coded
        self.values: list[dict[str, float]] = []  # by number of groups, the mean of both ways
        self.answers: list[tuple[tuple[str, ...], ...]] = []
        unique: dict[str, int] = {}  # by text, as a metric's truth may be anything
        kinds = np.array([unique.setdefault(repr(truth), len(unique)) for truth in score.truth])
        truths = [score.truth[at] for at in np.unique(kinds, return_index=True)[1]]
        self.truth = coded.encode_truth(truths)
        weights = [np.bincount(kinds[side], minlength=len(unique)).astype(float) for side in _halves(kinds)]
        self.candidates = list(POLARITIES) if score.metric.polarity else list(labels)
        if isinstance(score.metric, GroupMetric):
            self.candidates = _known_labels(score.metric, truths)
        largest = 1 if score.metric.polarity else min(largest, len(self.candidates))
        if not largest or not all(self._counts(side) for side in weights):
            return
        found = [self._greedy(weights[side], weights[1 - side], largest) for side in (0, 1)]
        for (words, one), (others, two) in zip(*found, strict=True):
            self.values.append({key: (one[key] + two[key]) / 2 for key in self.metric.keys})
            self.answers.append((words, others))

    def of(self, size: int) -> tuple[dict[str, float] | None, tuple[tuple[str, ...], ...]]:
        """Values and answers of ``size`` groups, or of as many as there are."""
        if not self.values:
            return None, ()
        at = min(size, len(self.values)) - 1
        return self.values[at], self.answers[at]

    def _counts(self, weights: np.ndarray) -> bool:
        """Whether a half has a sample that counts, so that the metric has a value on it."""
        values = self._values([self.candidates[:1]], weights)
        return all(bool(np.isfinite(value).all()) for value in values.values())

    def _values(self, answers: Sequence[Sequence[str]], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each key's value ``[K]`` of K constant answers on samples that occur ``weights`` times."""
        items = [answer[0] if self.metric.polarity else f"[{', '.join(answer)}]" for answer in answers]
        predicted = self.coded.encode_items(items)
        block = max(1, _BLOCK // len(weights))
        sums = [
            np.tensordot(weights, self.coded.compare(self.truth[:, None], predicted[None, at : at + block]), axes=1)
            for at in range(0, len(items), block)
        ]
        return self.metric.aggregate(np.concatenate(sums))

    def _greedy(
        self, chosen_on: np.ndarray, scored_on: np.ndarray, largest: int
    ) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        """The answers of 1, 2, … groups that are best on one half, with their values on the other."""
        key, left, found = self.metric.keys[0], list(self.candidates), []
        answer: list[str] = []
        for _ in range(largest):
            values = self._values([[*answer, label] for label in left], chosen_on)[key]
            answer.append(left.pop(int(np.argmax(values))))
            other = self._values([answer], scored_on)
            found.append((tuple(answer), {key: float(other[key][0]) for key in self.metric.keys}))
        return found


def _halves(kinds: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of samples ``[N]`` that have each truth equally often, as marks ``[N]``.

    Plain halves of few samples differ by luck, and what one has more of, the other has less of.
    """
    common = np.bincount(kinds)[kinds] > 1
    order = np.lexsort((np.random.default_rng(seed).random(len(kinds)), np.where(common, kinds, -1)))
    half = np.zeros(len(kinds), dtype=bool)
    half[order[::2]] = True
    return half, ~half


def _known_labels(metric: GroupMetric, truth: Sequence[Sequence[str]]) -> list[str]:
    """A label of every group that the truth has in some view: one of the truth's own, else the lexicon's first."""
    grouping = metric.grouping
    own = dict.fromkeys(clean(label) for labels in truth for label in labels)
    wanted = [set(view) - {None} for view in zip(*(grouping.groups(label) for label in own), strict=True)]
    labels: dict[int, str] = {}
    for label in (*own, *sorted(grouping.lexicon.forms)):
        if any(group in view for group, view in zip(grouping.groups(label), wanted, strict=True)):
            labels.setdefault(grouping.label_mask(label), label)
    return list(labels.values())


class _Plain:
    """A metric that has summands alone, as one that can be asked for pairs."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def encode_truth(self, truth: Sequence[Any]) -> np.ndarray:
        """Truths as an array of objects ``[N]``."""
        return np.fromiter(truth, dtype=object, count=len(truth))

    encode_items = encode_truth

    def compare(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Summands ``[..., C]`` of arrays that broadcast."""
        truth, predicted = np.broadcast_arrays(truth, predicted)
        summands = self.metric.summands(truth.ravel().tolist(), predicted.ravel().tolist())
        return summands.reshape(*truth.shape, -1)
