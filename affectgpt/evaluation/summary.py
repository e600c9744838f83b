"""The rows of the score table, as every report prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from affectgpt.evaluation import published
from affectgpt.evaluation.run_scores import RunScores
from affectgpt.evaluation.score import Score

BEST_PER_SET = "best per data set (paper's protocol)"
BEST_SINGLE = "best single checkpoint"
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One row: a number per data set and their mean, as text. ``best``: cells that are the data set's best."""

    name: str
    cells: list[str]
    mean: str
    best: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Summary:
    """All rows of a run. ``single`` and ``published`` are None where there is no such row."""

    checkpoints: list[Row]
    single: Row | None
    low: Row | None  # the interval of ``single``
    high: Row | None
    best: Row
    published: Row | None


def percent(value: float | None) -> str:
    """A value of 0..1 in percent with two digits."""
    return NONE if value is None else f"{100 * value:.2f}"


def cell(score: Score | None) -> str:
    """The primary metric; a star where samples were left out."""
    return NONE if score is None else percent(score.primary) + ("*" if score.left_out else "")


def summarise(run_scores: RunScores) -> Summary:
    """The rows of a run: checkpoints, the best single one, the oracle row and the published one."""
    datasets, best = run_scores.datasets, run_scores.best
    checkpoints = []
    for checkpoint in run_scores.checkpoints:
        scores = [run_scores.cell(dataset, checkpoint) for dataset in datasets]
        value, over = run_scores.mean(checkpoint)
        mean = percent(value) if over == len(datasets) else f"{percent(value)} of {over}"
        marks = tuple(score is not None and score is best[score.dataset] for score in scores)
        checkpoints.append(Row(checkpoint, [cell(score) for score in scores], mean, marks))
    single = low = high = None
    if run_scores.best_single is not None:
        found = run_scores.of_checkpoint(run_scores.best_single)
        single = Row(BEST_SINGLE, [cell(score) for score in found], percent(run_scores.mean(run_scores.best_single)[0]))
        if all(score.interval for score in found):
            low = Row("  95 % interval, from", _bounds(found, 0), "")
            high = Row("  to", _bounds(found, 1), "")
    return Summary(
        checkpoints=checkpoints,
        single=single,
        low=low,
        high=high,
        best=Row(BEST_PER_SET, [cell(best[dataset]) for dataset in datasets], percent(run_scores.mean_best)),
        published=_published(run_scores),
    )


def _bounds(scores: Iterable[Score], side: int) -> list[str]:
    return [percent(score.interval[score.metric.keys[0]][side]) for score in scores]


def _published(run_scores: RunScores) -> Row | None:
    if not run_scores.comparable or not any(dataset in published.PRIMARY for dataset in run_scores.datasets):
        return None
    cells = [f"{published.PRIMARY[d]:.2f}" if d in published.PRIMARY else NONE for d in run_scores.datasets]
    mean = published.mean_of(run_scores.datasets)
    return Row(published.MODEL, cells, NONE if mean is None else f"{mean:.2f}")
