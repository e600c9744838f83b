"""The HTML report: one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.evaluation import analysis, plots
from affectgpt.evaluation.floors import above
from affectgpt.evaluation.grouping import GROUPINGS, grouping_of
from affectgpt.evaluation.run_scores import RunScores
from affectgpt.evaluation.score import Score
from affectgpt.evaluation.summary import FLOOR_TITLES, floor_cells, percent, summarise

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN = 200  # mistakes listed per data set


def page(run_scores: RunScores) -> str:
    """The whole page as text."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    several = len(run_scores.checkpoints) > 1
    return template.render(
        run_scores=run_scores,
        version=__version__,
        grouping=GROUPINGS[run_scores.grouping],
        titles=[scores[0].metric.titles[0] for scores in run_scores.scores.values()],
        summary=summarise(run_scores),
        floor_titles=FLOOR_TITLES,
        floor_rows=_floor_rows(run_scores),
        several=several,
        over_checkpoints=plots.over_checkpoints(run_scores) if several else None,
        sections=[_section(run_scores, shown) for shown in shown_scores(run_scores)],
        shown_limit=SHOWN,
    )


def _floor_rows(run_scores: RunScores) -> dict[str, list[dict[str, Any]]]:
    """Data set → every score with what it is worth, where floors were asked for."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for dataset, scores in run_scores.scores.items():
        for score in scores:
            if score.floors is not None:
                row = {
                    "checkpoint": score.checkpoint,
                    "value": percent(score.primary),
                    "cells": floor_cells(score),
                    "low": (above(score) or 0.0) < 0,
                    "answers": [", ".join(answer) for answer in dict.fromkeys(score.floors.answers)],
                }
                rows.setdefault(dataset, []).append(row)
    return rows


def shown_scores(run_scores: RunScores) -> list[Score]:
    """One score per data set: of the best single checkpoint; where there is none, the data set's best."""
    single = run_scores.best_single
    return run_scores.of_checkpoint(single) if single is not None else list(run_scores.best.values())


def _section(run_scores: RunScores, score: Score) -> dict[str, Any]:
    grouping = grouping_of(run_scores.lexicon, run_scores.grouping)
    distribution, matrix = analysis.distribution(score, grouping), analysis.confusion(score, grouping)
    wrong = analysis.mistakes(score)
    counted = int(score.summands.any(axis=1).sum())
    return {
        "score": score,
        "task": score.task,
        "view": "polarity" if score.metric.polarity else grouping.views[0],
        "metrics": [
            (title, percent(score.values[key]), [percent(b) for b in score.interval.get(key, ())])
            for key, title in zip(score.metric.keys, score.metric.titles, strict=True)
        ],
        "bars": plots.bars(*distribution) if distribution else None,
        "confusion": plots.heat(matrix) if matrix else None,
        "frequent": analysis.frequent_labels(score, grouping),
        "mistakes": wrong[:SHOWN],
        "wrong": len(wrong),
        "counted": counted,
        "has_answers": any(m.answer is not None for m in wrong[:SHOWN]),
    }
