"""What a report shows beyond scores: where labels go, what is taken for what, and the samples that went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from affectgpt.evaluation import extraction_file as files
from affectgpt.evaluation.grouping import Grouping
from affectgpt.evaluation.metrics.base import GroupMetric
from affectgpt.evaluation.score import Score

NO_GROUP = "no group"


@dataclass(frozen=True)
class Matrix:
    """Shares ``[rows, columns]`` of each true label's predictions; ``counts``: samples per row."""

    rows: list[str]
    columns: list[str]
    shares: np.ndarray
    counts: list[int]


@dataclass(frozen=True)
class Mistake:
    """One sample that was not fully met, worst first."""

    name: str
    value: float  # 0..1, see Metric.per_sample
    truth: str
    labels: str
    answer: str | None


def polarity_word(value: float) -> str:
    """positive, negative or neutral for a true value."""
    return "positive" if value > 0 else "negative" if value < 0 else "neutral"


def _true_labels(score: Score) -> list[tuple[str, ...]] | None:
    """The truth as words; None for a metric of one's own whose truth is neither labels nor a value with a polarity."""
    if score.metric.polarity:
        return [(polarity_word(t),) for t in score.truth] if all(map(_is_number, score.truth)) else None
    labels = all(isinstance(t, tuple) and all(isinstance(word, str) for word in t) for t in score.truth)
    return score.truth if labels else None


def _groups(score: Score, grouping: Grouping) -> list[list[str]]:
    """Predicted groups of every sample in the grouping's first view; polarity words as they are."""
    if score.metric.polarity:
        return [[item.strip()] for item in score.items]
    return [sorted(grouping.members(grouping.item(item)[1])[0]) for item in score.items]


def distribution(score: Score, grouping: Grouping) -> tuple[list[str], list[float], list[float]] | None:
    """Groups, and the share of samples whose truth and whose prediction holds each, most frequent truth first.

    None where the truth is not labels.
    """
    truths = _true_labels(score)
    if truths is None:
        return None
    true: Counter[str] = Counter()
    for labels in truths:
        true.update(labels if score.metric.polarity else grouping.members(grouping.mask(labels))[0])
    predicted = Counter(group for groups in _groups(score, grouping) for group in groups)
    names = sorted({*true, *predicted}, key=lambda group: (-true[group], -predicted[group], group))[:16]
    n = len(score.items)
    return names, [true[g] / n for g in names], [predicted[g] / n for g in names]


def confusion(score: Score, grouping: Grouping) -> Matrix | None:
    """True label × predicted group in the first wheel. A sample's weight is shared by its predicted groups.

    None where a sample has several true labels, or the truth is not labels.
    """
    true = _true_labels(score)
    if true is None or any(len(labels) != 1 for labels in true):
        return None
    cells: Counter[tuple[str, str]] = Counter()
    for (label,), groups in zip(true, _groups(score, grouping), strict=True):
        for group in groups or [NO_GROUP]:
            cells[label, group] += 1 / max(len(groups), 1)  # type: ignore[assignment]
    counts = Counter(labels[0] for labels in true)
    rows = [label for label, _ in counts.most_common()]
    totals: Counter[str] = Counter()
    for (_, group), weight in cells.items():
        totals[group] += weight
    columns = [group for group, _ in totals.most_common() if group != NO_GROUP] + [NO_GROUP] * (NO_GROUP in totals)
    shares = np.array([[cells[r, c] / counts[r] for c in columns] for r in rows])
    return Matrix(rows, columns, shares, [counts[r] for r in rows])


def frequent_labels(score: Score, grouping: Grouping, *, first: int = 20) -> list[tuple[str, int, bool]]:
    """The most frequent predicted labels, how often, and whether the lexicon knows them (True where the metric does not
    ask it); none for polarity words."""
    if score.metric.polarity:
        return []
    counts = Counter(label for item in score.items for label in grouping.item(item)[0])
    asked = isinstance(score.metric, GroupMetric)
    return [(label, count, not asked or bool(grouping.label_mask(label))) for label, count in counts.most_common(first)]


def answers_of(score: Score) -> Mapping[str, str]:
    """The model's answers by name, empty where the answers file is not at hand."""
    if score.answers is not None:
        return score.answers
    path = score.source.with_name(f"{score.checkpoint}.npz")
    return files.read_answers(path) if path.exists() and path != score.source else {}


def mistakes(score: Score) -> list[Mistake]:
    """The samples that were not fully met, worst first, then in the split's order."""
    values = score.metric.per_sample(score.summands)
    answers = answers_of(score)
    order = [int(i) for i in np.argsort(np.where(np.isnan(values), 2.0, values), kind="stable") if values[i] < 1]
    return [
        Mistake(
            name=score.names[i],
            value=float(values[i]),
            truth=_truth_text(score.truth[i], polarity=score.metric.polarity),
            labels=score.items[i],
            answer=answers.get(score.names[i]),
        )
        for i in order
    ]


def _is_number(truth: Any) -> bool:
    return isinstance(truth, Real)


def _truth_text(truth: Any, *, polarity: bool) -> str:
    if isinstance(truth, tuple):
        return ", ".join(map(str, truth))
    return f"{polarity_word(truth)} ({truth:+.2f})" if polarity and _is_number(truth) else f"{truth}"
