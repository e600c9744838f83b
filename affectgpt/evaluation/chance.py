"""Chance levels: how many labels an answer gives, and the scores of answers that never met the clip.

HIT rises with every further label, so a score means little without these. *Permuted*: the same answers, each given to
another clip. *Constant*: the best answer of as many groups that is the same for every clip, chosen on one half of the
samples and scored on the other, both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.evaluation.labels import POLARITIES, parse_item
from affectgpt.evaluation.lexicon import clean
from affectgpt.evaluation.metrics.base import GroupMetric, Metric

PERMUTATIONS = 50
_BLOCK = 500_000  # pairs of a sample and a candidate that are compared at once
_CANDIDATES = 50  # of a metric without groups: its most frequent labels


@dataclass(frozen=True)
class ChanceLevels:
    """Chance levels of one score, with values as the metric's keys give them (0..1); None where there is no such
    number.

    ``labels``, ``groups``: mean number per answer, groups that the lexicon knows. ``precision``: mean share of an
    answer's groups that are true. ``answers``: the constant answers of the two halves, of ``size`` groups each.
    """

    labels: float | None
    groups: float | None
    precision: float | None
    permuted: dict[str, float] | None
    constant: dict[str, float] | None
    answers: tuple[tuple[str, ...], ...] = ()
    size: int = 1

    def higher(self, key: str) -> float | None:
        """The higher chance level of one of the metric's keys."""
        return max((level[key] for level in (self.permuted, self.constant) if level is not None), default=None)


def chance_levels(
    metric: Metric, truth: Sequence[Any], checkpoints: Sequence[Sequence[str]], *, permutations: int = PERMUTATIONS
) -> list[ChanceLevels]:
    """Chance levels of several checkpoints on the same N samples: their items ``[N]`` each, against one truth ``[N]``.

    The checkpoints share their permutations and constant answers.
    """
    coded: Any = metric if hasattr(metric, "encode_items") else _ObjectArrays(metric)
    encoded_truth = coded.encode_truth(truth)
    counts = [labels_and_groups(metric, items) for items in checkpoints]
    # groups of the constant answer: those of a mean answer, rounded
    group_counts = [groups if groups is not None else labels if labels is not None else 1 for labels, groups in counts]
    sizes = [max(1, round(number)) for number in group_counts]
    frequent = Counter(label for items in checkpoints for item in items for label in labels_of(metric, item))
    candidates = [label for label, _ in frequent.most_common(_CANDIDATES)]
    constants = ConstantAnswers(metric, truth, largest=max(sizes), candidates=candidates)
    # Permutations without a fixed point: an answer that is given to its own clip would be no chance.
    n, rng, orders = len(truth), np.random.default_rng(0), []
    for _ in range(permutations if n > 1 else 0):
        circle, order = rng.permutation(n), np.empty(n, dtype=np.int64)
        order[circle] = np.roll(circle, 1)  # each clip gets the answer of its neighbour in a random circle
        orders.append(order)
    levels = []
    # Only sums are needed: the aggregate of N pairs is that of their summed summands.
    for items, (labels, groups), size in zip(checkpoints, counts, sizes, strict=True):
        predicted = coded.encode_items(items)
        permuted = None
        if orders:
            sums = [coded.compare(encoded_truth, predicted[order]).sum(axis=0) for order in orders]
            values = metric.aggregate(np.array(sums))
            means = {key: float(np.mean(values[key])) for key in metric.keys}
            permuted = means if all(map(np.isfinite, means.values())) else None  # NaN: nothing counts
        precision = coded.precision(encoded_truth, predicted) if isinstance(metric, GroupMetric) else None
        constant, answers = constants.of(size)
        levels.append(ChanceLevels(labels, groups, precision, permuted, constant, answers, size))
    return levels


def labels_of(metric: Metric, item: str) -> tuple[str, ...]:
    """The labels of an extracted item; none for polarity words."""
    if metric.polarity:
        return ()
    return metric.grouping.item(item)[0] if isinstance(metric, GroupMetric) else parse_item(item)


def labels_and_groups(metric: Metric, items: Sequence[str]) -> tuple[float | None, float | None]:
    """Labels and known groups per answer; None each where the metric reads polarity words or has no groups."""
    if metric.polarity:
        return None, None
    labels = [labels_of(metric, item) for item in items]
    per_answer = sum(map(len, labels)) / len(labels)
    if not isinstance(metric, GroupMetric):
        return per_answer, None
    return per_answer, sum(map(metric.grouping.count, labels)) / len(labels)


class ConstantAnswers:
    """The best constant answers of 1 to ``largest`` groups on both halves of one data set's samples.

    Greedy: of all labels the one that adds most, then the one that adds most to it, and so on. Labels are those of the
    truth's groups, or the polarity words; ``candidates`` are for a metric that has neither.
    """

    def __init__(self, metric: Metric, truth: Sequence[Any], *, largest: int, candidates: Sequence[str] = ()) -> None:
        self.metric = metric
        coded: Any = metric if hasattr(metric, "encode_items") else _ObjectArrays(metric)
        self.coded = coded
        self.values: list[dict[str, float]] = []  # by number of groups, the mean of both directions
        self.answers: list[tuple[tuple[str, ...], ...]] = []
        # Equal truths are scored once, with weights: a data set of six emotions needs six comparisons per answer.
        unique: dict[str, int] = {}  # by text, as a metric's truth may be anything
        kinds = np.array([unique.setdefault(repr(value), len(unique)) for value in truth])
        truths = [truth[at] for at in np.unique(kinds, return_index=True)[1]]
        self.truth = coded.encode_truth(truths)
        weights = [np.bincount(kinds[side], minlength=len(unique)).astype(float) for side in _halves(kinds)]
        self.candidates = list(candidates)
        if metric.polarity:
            self.candidates, largest = list(POLARITIES), 1
        elif isinstance(metric, GroupMetric):
            self.candidates = _known_labels(metric, truths)
        largest = min(largest, len(self.candidates))
        counted = [self._values([self.candidates[:1]], side) for side in weights] if largest else []
        if not largest or not all(np.isfinite(value).all() for half in counted for value in half.values()):
            return  # a half without a sample that counts
        halves = [self._greedy(weights[side], weights[1 - side], largest) for side in (0, 1)]
        for (words, one), (others, two) in zip(*halves, strict=True):
            self.values.append({key: (one[key] + two[key]) / 2 for key in metric.keys})
            self.answers.append((words, others))

    def of(self, size: int) -> tuple[dict[str, float] | None, tuple[tuple[str, ...], ...]]:
        """Values and answers of ``size`` groups, or of as many as there are."""
        if not self.values:
            return None, ()
        at = min(size, len(self.values)) - 1
        return self.values[at], self.answers[at]

    def _values(self, answers: Sequence[Sequence[str]], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each key's value ``[K]`` of K constant answers on samples that occur ``weights`` times."""
        items = [answer[0] if self.metric.polarity else f"[{', '.join(answer)}]" for answer in answers]
        predicted = self.coded.encode_items(items)
        # compare [U, 1] truths with [1, K] answers to summands [U, K, C], which the weights [U] sum to [K, C]
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
        key, left, best = self.metric.keys[0], list(self.candidates), []
        answer: list[str] = []
        for _ in range(largest):
            # all answers with one label more at once; argmax takes the first of equal ones
            values = self._values([[*answer, label] for label in left], chosen_on)[key]
            answer.append(left.pop(int(np.argmax(values))))
            other = self._values([answer], scored_on)
            best.append((tuple(answer), {key: float(other[key][0]) for key in self.metric.keys}))
        return best


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
    true_groups = [set(view) - {None} for view in zip(*(grouping.groups(label) for label in own), strict=True)]
    labels: dict[int, str] = {}
    for label in (*own, *sorted(grouping.lexicon.forms)):
        if any(group in view for group, view in zip(grouping.groups(label), true_groups, strict=True)):
            labels.setdefault(grouping.label_mask(label), label)
    return list(labels.values())


class _ObjectArrays:
    """Adapts a metric that has ``summands`` alone: truths and items as arrays of objects that broadcast."""

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
