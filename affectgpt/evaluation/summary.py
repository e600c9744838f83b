"""The rows of the score table, as every report prints them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from affectgpt.evaluation import published
from affectgpt.evaluation.floors import above, floors_of
from affectgpt.evaluation.run_scores import RunScores
from affectgpt.evaluation.score import Score
from affectgpt.evaluation.selection import Estimate, mean_over

BEST_PER_SET = "best per data set (paper's protocol)"
BEST_SINGLE = "best single checkpoint"
HALVES = "chosen on a half, scored on the other"
DEALT = "floor: answers dealt to other clips"
CONSTANT = "floor: one answer for all clips"
NONE = "–"
SUM, INTERVAL, PUBLISHED = "sum", "interval", "published"  # kinds of rows


@dataclass(frozen=True)
class Row:
    """One row: a number per data set and their mean, as text. ``best``: cells that are the data set's best."""

    name: str
    cells: list[str]
    mean: str
    best: tuple[bool, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Summary:
    """All rows of a run. None where there is no such row. ``foot``: those below the checkpoints, with intervals, in
    order; ``floors``: what the scores are worth, means over the checkpoints."""

    checkpoints: list[Row]
    mean: Row | None
    halves: Row | None
    single: Row | None
    best: Row
    foot: list[Row]
    floors: list[Row]


def percent(value: float | None) -> str:
    """A value of 0..1 in percent with two digits; what rounds to zero has no sign."""
    return NONE if value is None else f"{100 * value:z.2f}"


def cell(score: Score | None) -> str:
    """The primary metric; a star where samples were left out."""
    return NONE if score is None else percent(score.primary) + ("*" if score.left_out else "")


def summarise(run_scores: RunScores) -> Summary:
    """The rows of a run: checkpoints, what they score without and with a choice on the test set, and the floors."""
    datasets, best = run_scores.datasets, run_scores.best
    checkpoints = []
    for checkpoint in run_scores.checkpoints:
        scores = [run_scores.cell(dataset, checkpoint) for dataset in datasets]
        value, over = run_scores.mean(checkpoint)
        mean = percent(value) if over == len(datasets) else f"{percent(value)} of {over}"
        marks = tuple(score is not None and score is best[score.dataset] for score in scores)
        checkpoints.append(Row(checkpoint, [cell(score) for score in scores], mean, marks))
    foot: list[Row] = []
    means = halves = single = None
    if run_scores.selections and len(run_scores.selections) == len(datasets):
        found = run_scores.selections.values()
        counts = {len(scores) for scores in run_scores.scores.values()}
        name = f"mean of {counts.pop()} checkpoints" if len(counts) == 1 else "mean of the checkpoints"
        means = _with_interval(foot, name, [selection.mean for selection in found])
        halves = _with_interval(foot, HALVES, [selection.halves for selection in found])
    if run_scores.best_single is not None:
        chosen = run_scores.of_checkpoint(run_scores.best_single)
        overall = percent(run_scores.mean(run_scores.best_single)[0])
        single = Row(BEST_SINGLE, [cell(score) for score in chosen], overall, kind=SUM)
        foot.append(single)
        if all(score.interval for score in chosen):
            foot += _interval_rows([score.interval[score.metric.keys[0]] for score in chosen], None)
    oracle = Row(BEST_PER_SET, [cell(best[d]) for d in datasets], percent(run_scores.mean_best), kind=SUM)
    foot += [row for row in (oracle, _published(run_scores)) if row is not None]
    return Summary(checkpoints, means, halves, single, oracle, foot, _floors(run_scores))


def _with_interval(foot: list[Row], name: str, estimates: Sequence[Estimate | None]) -> Row:
    """A row of estimates, put with its interval at the end of ``foot``."""
    overall = mean_over(estimates)
    row = Row(
        name,
        [percent(estimate.value if estimate else None) for estimate in estimates],
        percent(overall.value if overall else None),
        kind=SUM,
    )
    foot.append(row)
    if any(estimate is not None and estimate.interval for estimate in estimates):
        bounds = [estimate.interval if estimate else None for estimate in estimates]
        foot += _interval_rows(bounds, overall.interval if overall else None)
    return row


def _interval_rows(
    bounds: Sequence[tuple[float, float] | None], overall: tuple[float, float] | None
) -> tuple[Row, Row]:
    low, high = (
        Row(
            name,
            [percent(bound[side]) if bound else NONE for bound in bounds],
            percent(overall[side]) if overall else "",
            kind=INTERVAL,
        )
        for side, name in enumerate(("  95 % interval, from", "  to"))
    )
    return low, high


def _floors(run_scores: RunScores) -> list[Row]:
    """Means over the checkpoints of each data set; no row where no score has floors."""
    per_set = [[s for s in scores if s.floors is not None] for scores in run_scores.scores.values()]
    if not any(per_set):
        return []

    def row(name: str, value: Callable[[Score], float | None], *, share: bool, mean: bool = True) -> Row:
        means = [_mean([value(score) for score in scores]) for scores in per_set]
        show = percent if share else _number
        return Row(name, [show(m) for m in means], show(_mean(means)) if mean else "")

    def floor(name: str) -> Callable[[Score], float | None]:
        def value(score: Score) -> float | None:
            found = getattr(score.floors, name)
            return found[score.metric.keys[0]] if found else None

        return value

    several = len(run_scores.checkpoints) > 1
    return [
        row("labels per answer", lambda score: floors_of(score).labels, share=False, mean=False),
        row("known groups per answer", lambda score: floors_of(score).groups, share=False, mean=False),
        row("precision of these groups", lambda score: floors_of(score).precision, share=True, mean=False),
        row(DEALT, floor("dealt"), share=True),
        row(CONSTANT, floor("constant"), share=True),
        row(f"{'mean' if several else 'score'} above the higher floor", above, share=True),
    ]


FLOOR_TITLES = ("labels", "groups", "precision", "dealt", "constant", "above")


def floor_cells(score: Score) -> list[str]:
    """What one score is worth, under FLOOR_TITLES; nothing where it has no floors."""
    found, key = score.floors, score.metric.keys[0]
    if found is None:
        return []
    return [
        _number(found.labels), _number(found.groups), percent(found.precision),
        *(percent(floor[key] if floor else None) for floor in (found.dealt, found.constant)), percent(above(score)),
    ]  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where there is no value, or not each has one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _published(run_scores: RunScores) -> Row | None:
    if not run_scores.comparable or not any(dataset in published.PRIMARY for dataset in run_scores.datasets):
        return None
    cells = [f"{published.PRIMARY[d]:.2f}" if d in published.PRIMARY else NONE for d in run_scores.datasets]
    mean = published.mean_of(run_scores.datasets)
    return Row(published.MODEL, cells, NONE if mean is None else f"{mean:.2f}", kind=PUBLISHED)
