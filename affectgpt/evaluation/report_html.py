"""The HTML report: one page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.data.table import get_row
from affectgpt.evaluation import analysis, plots, published
from affectgpt.evaluation.board import Board
from affectgpt.evaluation.grouping import GROUPINGS
from affectgpt.evaluation.report_text import BEST_PER_SET, BEST_SINGLE, NONE, percent
from affectgpt.evaluation.score import Score

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN = 200  # mistakes listed per data set


@dataclass(frozen=True)
class Row:
    """One row of the page's table."""

    name: str
    cells: list[str]
    mean: str
    kind: str = ""
    best: tuple[bool, ...] = ()


def page(board: Board) -> str:
    """The whole page as text."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    several = len(board.checkpoints) > 1
    return template.render(
        board=board,
        version=__version__,
        grouping=GROUPINGS[board.grouping],
        titles=[scores[0].metric.titles[0] for scores in board.scores.values()],
        rows=table_rows(board),
        several=several,
        over_checkpoints=plots.over_checkpoints(board) if several else None,
        sections=[_section(board, shown) for shown in shown_scores(board)],
        shown_limit=SHOWN,
    )


def table_rows(board: Board) -> list[Row]:
    """The rows of the terminal's table, for a page."""
    n = len(board.datasets)
    rows = []
    for checkpoint in board.checkpoints:
        scores = [board.cell(dataset, checkpoint) for dataset in board.datasets]
        value, over = board.mean(checkpoint)
        marks = tuple(s is not None and s is board.best[s.dataset] for s in scores)
        mean = percent(value) if over == n else f"{percent(value)} of {over}"
        rows.append(Row(checkpoint, [_cell(s) for s in scores], mean, best=marks))
    single = board.best_single
    if single is not None:
        scores = board.of_checkpoint(single)
        rows.append(Row(f"{BEST_SINGLE}: {single}", [_cell(s) for s in scores], percent(board.mean(single)[0]), "sum"))
    best = [_cell(score) for score in board.best.values()]
    rows.append(Row(BEST_PER_SET, best, percent(board.mean_best), "sum"))
    if board.comparable and any(dataset in published.PRIMARY for dataset in board.datasets):
        cells = [f"{published.PRIMARY[d]:.2f}" if d in published.PRIMARY else NONE for d in board.datasets]
        mean = published.mean_of(board.datasets)
        rows.append(Row(published.MODEL, cells, NONE if mean is None else f"{mean:.2f}", "published"))
    return rows


def _cell(score: Score | None) -> str:
    return NONE if score is None else percent(score.primary) + ("*" if score.left_out else "")


def shown_scores(board: Board) -> list[Score]:
    """One score per data set: of the best single checkpoint; where there is none, the data set's best."""
    single = board.best_single
    return board.of_checkpoint(single) if single is not None else list(board.best.values())


def _section(board: Board, score: Score) -> dict[str, Any]:
    grouping = board.lexicon.grouping(board.grouping)
    matrix = analysis.confusion(score, grouping)
    wrong = analysis.mistakes(score)
    counted = int((score.rows.sum(axis=1) > 0).sum())
    return {
        "score": score,
        "task": get_row(score.dataset).task,
        "view": "polarity" if score.metric.polarity else grouping.views[0],
        "metrics": [
            (title, percent(score.values[key]), [percent(b) for b in score.interval.get(key, ())])
            for key, title in zip(score.metric.keys, score.metric.titles, strict=True)
        ],
        "bars": plots.bars(*analysis.distribution(score, grouping)),
        "confusion": plots.heat(matrix) if matrix else None,
        "frequent": analysis.frequent_labels(score, grouping),
        "mistakes": wrong[:SHOWN],
        "wrong": len(wrong),
        "counted": counted,
        "has_answers": any(m.answer is not None for m in wrong[:SHOWN]),
    }
