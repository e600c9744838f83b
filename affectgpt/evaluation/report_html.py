"""The HTML report of a run: one page that needs nothing else, from the template report.html.

Beside the rows of the table it shows scores over checkpoints, and for one checkpoint of each data set the distribution
of labels, which label is taken for which, and the samples that were not fully met. Figures are SVG text in the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.figures import COLOURS, GREY, new_figure, short, svg
from affectgpt.evaluation.lexicon import GROUPINGS, Grouping, grouping_of
from affectgpt.evaluation.metrics.base import GroupMetric
from affectgpt.evaluation.report import CHANCE_TITLES, chance_cells, percent, render, summarise
from affectgpt.evaluation.results import read_answers
from affectgpt.evaluation.score import RunScores, Score

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN = 200  # mistakes listed per data set
NO_GROUP = "no group"


def page(run_scores: RunScores) -> str:
    """The whole page as text."""
    single, several = run_scores.best_single, len(run_scores.checkpoints) > 1
    # one score per data set: of the best single checkpoint; where there is none, the data set's best
    shown = run_scores.of_checkpoint(single) if single is not None else list(run_scores.best.values())
    chance_rows: dict[str, list[dict[str, Any]]] = {}
    for score in (score for scores in run_scores.scores.values() for score in scores):
        if score.chance is not None:
            chance_rows.setdefault(score.dataset, []).append({
                "checkpoint": score.checkpoint,
                "value": percent(score.primary),
                "cells": chance_cells(score),
                "low": (score.above_chance or 0.0) < 0,
                "answers": [", ".join(answer) for answer in dict.fromkeys(score.chance.answers)],
            })  # fmt: skip
    return render(
        TEMPLATE,
        run_scores=run_scores,
        grouping=GROUPINGS[run_scores.grouping],
        titles=[scores[0].metric.titles[0] for scores in run_scores.scores.values()],
        summary=summarise(run_scores),
        chance_titles=CHANCE_TITLES,
        chance_rows=chance_rows,
        several=several,
        over_checkpoints=_over_checkpoints(run_scores) if several else None,
        sections=[_section(run_scores, score) for score in shown],
        shown_limit=SHOWN,
    )


def _section(run_scores: RunScores, score: Score) -> dict[str, Any]:
    """The part of the page on one data set."""
    grouping = grouping_of(run_scores.lexicon, run_scores.grouping)
    shares, matrix = distribution(score, grouping), confusion(score, grouping)
    wrong = mistakes(score)
    frequent: list[tuple[str, int, bool]] = []  # label, how often, and known to the lexicon (where the metric asks it)
    if not score.metric.polarity:
        counts = Counter(label for item in score.items for label in grouping.item(item)[0]).most_common(20)
        uses_lexicon = isinstance(score.metric, GroupMetric)
        frequent = [(label, count, not uses_lexicon or bool(grouping.label_mask(label))) for label, count in counts]
    return {
        "score": score,
        "task": score.task,
        "view": "polarity" if score.metric.polarity else grouping.views[0],
        "metrics": [
            (title, percent(score.values[key]), [percent(b) for b in score.interval.get(key, ())])
            for key, title in zip(score.metric.keys, score.metric.titles, strict=True)
        ],
        "bars": _bars(*shares) if shares else None,
        "confusion": _heat_map(matrix) if matrix else None,
        "frequent": frequent,
        "mistakes": wrong[:SHOWN],
        "wrong": len(wrong),
        "counted": int(score.summands.any(axis=1).sum()),
        "has_answers": any(mistake.answer is not None for mistake in wrong[:SHOWN]),
    }


# Labels and samples


@dataclass(frozen=True)
class Matrix:
    """Shares ``[rows, columns]`` of each true label's predictions; ``counts``: samples per row."""

    rows: list[str]
    columns: list[str]
    shares: np.ndarray
    counts: list[int]


@dataclass(frozen=True)
class Mistake:
    """One sample that was not fully met."""

    name: str
    value: float  # 0..1, see Metric.per_sample
    truth: str
    labels: str
    answer: str | None


def _polarity(value: float) -> str:
    return "positive" if value > 0 else "negative" if value < 0 else "neutral"


def _true_labels(score: Score) -> list[tuple[str, ...]] | None:
    """The truth as words; None for a metric of one's own whose truth is neither labels nor a value with a polarity."""
    if score.metric.polarity:
        return [(_polarity(t),) for t in score.truth] if all(isinstance(t, Real) for t in score.truth) else None
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
    cells: dict[tuple[str, str], float] = {}
    totals: dict[str, float] = {}
    for (label,), groups in zip(true, _groups(score, grouping), strict=True):
        for group in groups or [NO_GROUP]:
            weight = 1 / max(len(groups), 1)
            cells[label, group] = cells.get((label, group), 0.0) + weight
            totals[group] = totals.get(group, 0.0) + weight
    counts = Counter(labels[0] for labels in true)
    rows = [label for label, _ in counts.most_common()]
    columns = sorted(totals, key=lambda group: (group == NO_GROUP, -totals[group]))
    shares = np.array([[cells.get((r, c), 0.0) / counts[r] for c in columns] for r in rows])
    return Matrix(rows, columns, shares, [counts[r] for r in rows])


def mistakes(score: Score) -> list[Mistake]:
    """The samples that were not fully met, worst first, then in the split's order."""
    values = score.metric.per_sample(score.summands)
    answers: Mapping[str, str] = score.answers or {}
    path = score.source.with_name(f"{score.checkpoint}.npz")
    if score.answers is None and path.exists() and path != score.source:
        answers = read_answers(path)

    def words(truth: Any) -> str:
        if isinstance(truth, tuple):
            return ", ".join(map(str, truth))
        if score.metric.polarity and isinstance(truth, Real):
            return f"{_polarity(float(truth))} ({float(truth):+.2f})"
        return f"{truth}"

    order = [int(i) for i in np.argsort(np.where(np.isnan(values), 2.0, values), kind="stable") if values[i] < 1]
    return [
        Mistake(score.names[i], float(values[i]), words(score.truth[i]), score.items[i], answers.get(score.names[i]))
        for i in order
    ]


# Figures


def _over_checkpoints(run_scores: RunScores) -> str:
    """Primary metric of every checkpoint, by data set, and the mean; intervals as bands.

    Only epochs have an order: other names get points with error bars.
    """
    figure, axes = new_figure(8.6, 3.6)
    checkpoints = run_scores.checkpoints
    epochs = [next(s.epoch for s in run_scores.of_checkpoint(c)) for c in checkpoints]
    by_epoch = None not in epochs
    at = dict(zip(checkpoints, epochs if by_epoch else range(len(checkpoints)), strict=True))
    for colour, (dataset, scores) in zip(COLOURS * 2, run_scores.scores.items(), strict=False):
        x = [at[s.checkpoint] for s in scores]
        axes.plot(x, [100 * s.primary for s in scores], "o-" if by_epoch else "o", color=colour, ms=4, label=dataset)
        bounds = [s.interval[s.metric.keys[0]] for s in scores if s.interval]
        if len(bounds) == len(x):
            low, high = ([100 * bound[side] for bound in bounds] for side in (0, 1))
            if by_epoch:
                axes.fill_between(x, low, high, color=colour, alpha=0.10, lw=0)
            else:
                axes.vlines(x, low, high, color=colour, alpha=0.5)
    full, n = run_scores.full_checkpoints, len(run_scores.datasets)
    if n > 1 and full:
        means = [100 * run_scores.mean(c)[0] for c in full]
        style = "--" if by_epoch else "_"
        axes.plot([at[c] for c in full], means, style, color="black", lw=1.4, label=f"mean of {n}")
    names = [str(e) if by_epoch else short(c) for c, e in zip(checkpoints, epochs, strict=True)]
    axes.set_xticks(list(at.values()), names)
    if not by_epoch:
        axes.margins(x=0.25)
        axes.tick_params(axis="x", rotation=12)
    axes.set_xlabel("epoch" if by_epoch else "", fontsize=9, color=GREY)
    axes.set_ylabel("primary metric, %", fontsize=9, color=GREY)
    axes.grid(axis="y", color="#e3e7ec", lw=0.8)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)


def _bars(names: Sequence[str], true: Sequence[float], predicted: Sequence[float]) -> str:
    """Share of samples whose truth, and whose prediction, holds each group."""
    figure, axes = new_figure(4.6, 0.9 + 0.34 * len(names))
    for offset, shares, colour, label in ((-0.19, true, GREY, "truth"), (0.19, predicted, COLOURS[0], "predicted")):
        axes.barh(np.arange(len(names)) + offset, [100 * v for v in shares], height=0.36, color=colour, label=label)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("% of samples", fontsize=9, color=GREY)
    axes.legend(fontsize=8.5, frameon=False)
    return svg(figure)


def _heat_map(matrix: Matrix) -> str:
    """A confusion matrix; each row sums to 100 %."""
    figure, axes = new_figure(1.6 + 0.62 * len(matrix.columns), 0.95 + 0.36 * len(matrix.rows))
    axes.imshow(matrix.shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(matrix.columns)), [short(c) for c in matrix.columns], rotation=35, ha="right")
    axes.set_yticks(range(len(matrix.rows)), [f"{r} ({n})" for r, n in zip(matrix.rows, matrix.counts, strict=True)])
    for (i, j), share in np.ndenumerate(matrix.shares):
        if share >= 0.005:
            colour = "white" if share > 0.55 else "black"
            axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted", fontsize=9, color=GREY)
    axes.set_ylabel("truth", fontsize=9, color=GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return svg(figure)
