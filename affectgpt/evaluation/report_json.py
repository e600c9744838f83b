"""Scores as JSON. ``version`` rises when a key changes its meaning or goes away; new keys may come.

``datasets``: data set in lower case → ``task``, ``metric`` (the primary key), ``samples``, ``checkpoints`` (file stem →
the metric keys as fractions, ``interval`` {key: [low, high]} 95 % bootstrap, ``extractor``, ``samples`` (scored),
``of`` (so many in the split), ``left_out`` and ``missing`` (how many, and which, have a truth and no answer),
``counted``, ``per_wheel`` …, and ``floors``: ``labels``, ``groups`` and their ``precision`` per answer, the metric keys
of ``dealt`` and ``constant``, the ``constant_answers`` of both halves, and the primary value ``above`` the higher one),
``selection`` (where there are several: ``mean`` of the checkpoints, and ``halves``: chosen on a half of the samples,
scored on the other; ``value`` and ``interval`` each) and ``best`` (``checkpoint`` and its metric keys: chosen on the
test set). ``mean_best``: mean of the best primary values, over ``mean_of`` data sets. ``single``: checkpoint → its
``mean`` and over how many data sets; ``best_single``: the best of those scored everywhere. ``selection``: the same two
over all data sets. ``published``: the paper's values in the same unit, present only when comparable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.core.errors import DataError
from affectgpt.core.files import parse_json
from affectgpt.evaluation import published
from affectgpt.evaluation.compare import PairedResult, SeedResult
from affectgpt.evaluation.floors import above
from affectgpt.evaluation.run_scores import RunScores
from affectgpt.evaluation.score import Score
from affectgpt.evaluation.selection import Estimate, mean_over
from affectgpt.evaluation.stats import Spread

VERSION = 1


def as_dict(run_scores: RunScores) -> dict[str, Any]:
    """The scores of a run as plain data, see above."""
    value: dict[str, Any] = {
        "version": VERSION,
        "affectgpt": __version__,
        "run": run_scores.run,
        "lexicon": {"source": run_scores.lexicon.source, "comparable": run_scores.lexicon.comparable},
        "grouping": run_scores.grouping,
        "extractors": run_scores.extractors,
        "datasets": {},
        "mean_best": run_scores.mean_best,
        "mean_of": len(run_scores.datasets),
        "single": {c: dict(zip(("mean", "mean_of"), run_scores.mean(c), strict=True)) for c in run_scores.checkpoints},
        "best_single": run_scores.best_single,
        "selection": _selection(run_scores),
        "notes": run_scores.caveats(),
    }
    for dataset, scores in run_scores.scores.items():
        metric, best = scores[0].metric, run_scores.best[dataset]
        value["datasets"][dataset.lower()] = {
            "task": scores[0].task,
            "metric": metric.keys[0],
            "checkpoints": {score.checkpoint: _score(score) for score in scores},
            "best": {"checkpoint": best.checkpoint, **best.values},
        }
        if dataset in run_scores.selections:
            found = run_scores.selections[dataset]
            value["datasets"][dataset.lower()]["selection"] = {
                "samples": found.samples, "mean": _estimate(found.mean), "halves": _estimate(found.halves),
            }  # fmt: skip
    if run_scores.comparable:
        known = {d.lower(): published.PRIMARY[d] / 100 for d in run_scores.datasets if d in published.PRIMARY}
        mean = published.mean_of(run_scores.datasets)
        value["published"] = {"model": published.MODEL, "datasets": known, "mean": None if mean is None else mean / 100}
    return value


def headline(path: Path, *, checkpoint: str) -> dict[str, str]:
    """Of a file of scores: data set → what a checkpoint (file stem) scored there, e.g. ``HIT 78.5``.

    Raises DataError when the file is not one of these, or says nothing of the checkpoint.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        found = {
            name: f"{entry['metric']} {100 * entry['checkpoints'][checkpoint][entry['metric']]:.2f}"
            for name, entry in value["datasets"].items()
            if checkpoint in entry["checkpoints"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not scores as affectgpt score --json writes them ({error})") from error
    if not found:
        raise DataError(f"{path}: has no score of {checkpoint}")
    return found


def _selection(run_scores: RunScores) -> dict[str, Any] | None:
    """The selection over all data sets; None where not every one has several checkpoints."""
    found = list(run_scores.selections.values())
    if not found or len(found) < len(run_scores.datasets):
        return None
    return {
        "mean": _estimate(mean_over([selection.mean for selection in found])),
        "halves": _estimate(mean_over([selection.halves for selection in found])),
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "interval": list(estimate.interval) if estimate.interval else None}


def _floors(score: Score) -> dict[str, Any] | None:
    found = score.floors
    if found is None:
        return None
    return {
        "labels": found.labels,
        "groups": found.groups,
        "precision": found.precision,
        "dealt": found.dealt,
        "constant": found.constant,
        "constant_answers": [list(answer) for answer in found.answers],
        "above": above(score),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        **score.values,
        "interval": {key: list(bounds) for key, bounds in score.interval.items()},
        "samples": len(score.names),
        "of": score.split_size,
        "left_out": score.left_out,
        "missing": list(score.missing),
        "extractor": score.extractor,
        "floors": _floors(score),
        **score.detail,
    }


def comparison(result: PairedResult) -> dict[str, Any]:
    """A paired comparison as plain data; values as fractions."""
    return {
        "version": VERSION,
        "a": result.a,
        "b": result.b,
        "datasets": {
            dataset.lower(): {
                "a": c.a, "b": c.b, "difference": c.difference, "interval": list(c.interval), "p": c.p, "samples": c.n,
                "groups": dict(zip("ab", result.groups[dataset], strict=True)) if dataset in result.groups else None,
            }
            for dataset, c in result.datasets.items()
        },
        "notes": result.notes,
    }  # fmt: skip


def seeds(result: SeedResult) -> dict[str, Any]:
    """The spread over training seeds as plain data; values as fractions."""
    return {
        "version": VERSION,
        "runs": result.runs,
        "datasets": {dataset.lower(): _spread(found) for dataset, found in result.datasets.items()},
        "mean": None if result.mean is None else _spread(result.mean),
        "notes": result.notes,
    }


def _spread(found: Spread) -> dict[str, Any]:
    return {
        "values": list(found.values),
        "mean": found.mean,
        "deviation": found.deviation,
        "interval": list(found.interval) if found.interval else None,
        "samples": found.n,
        "alike": found.same,
    }
