"""Two runs, or two checkpoints, on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from affectgpt.core.errors import DataError
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.results import CheckpointChoice
from affectgpt.evaluation.run_scores import RunScores, ScoringPaths, score_run
from affectgpt.evaluation.score import Score, Truth
from affectgpt.evaluation.stats import Comparison, compare


@dataclass
class PairedResult:
    """A paired comparison: names of both sides, a result per data set, and what a reader must know."""

    a: str
    b: str
    datasets: dict[str, Comparison] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare_runs(
    wanted: Sequence[str],
    rows: Sequence[DatasetRow],
    places: ScoringPaths,
    lexicon: Lexicon,
    *,
    checkpoints: str | None = None,
    extraction: str | None = None,
    grouping: str = "wheel",
    allow_missing: bool = False,
    optional: bool = False,
) -> PairedResult:
    """Compare two of ``RUN`` or ``RUN/CHECKPOINT``. A run stands with its best single checkpoint. Raises DataError."""
    truths: dict[str, Truth] = {}
    sides: list[tuple[RunScores, str]] = []
    notes: list[str] = []
    for text in wanted:
        run, _, checkpoint = text.strip("/").partition("/")
        run_scores = score_run(
            rows, places, lexicon, run=run, choice=CheckpointChoice.parse(checkpoint or checkpoints),
            extraction=extraction, grouping=grouping, allow_missing=allow_missing, optional=optional, draws=0, deals=0,
            flag="--compare", truths=truths,
        )  # fmt: skip
        best = run_scores.best_single
        if best is None:
            raise DataError(
                f"run {run_scores.run}: no checkpoint has scores on every data set; name one: RUN/CHECKPOINT"
            )
        if len(run_scores.checkpoints) > 1:
            notes.append(
                f"{run_scores.run} stands with {best}, the best of {len(run_scores.checkpoints)} on these test sets"
            )
        sides.append((run_scores, best))
    (scores_a, a), (scores_b, b) = sides
    result = PairedResult(f"{scores_a.run}/{a}", f"{scores_b.run}/{b}", notes=notes)
    for run_scores in (scores_a, scores_b):
        result.notes += [
            words for words in run_scores.caveats() if words not in result.notes and "best of" not in words
        ]
    made = {extractor for run_scores in (scores_a, scores_b) for extractor in run_scores.extractors}
    if len(made) > 1:
        result.notes.append(f"labels were extracted in different ways: {'; '.join(sorted(made))}")
    for dataset in scores_a.datasets:
        if dataset in scores_b.datasets:
            score_a, score_b = scores_a.cell(dataset, a), scores_b.cell(dataset, b)
            if score_a is not None and score_b is not None:
                result.datasets[dataset] = _paired(score_a, score_b)
    if not result.datasets:
        raise DataError(f"{result.a} and {result.b} have no data set in common")
    return result


def _paired(a: Score, b: Score) -> Comparison:
    """Compare on the samples that both have."""
    at = {name: index for index, name in enumerate(b.names)}
    shared = [(i, at[name]) for i, name in enumerate(a.names) if name in at]
    if not shared:
        raise DataError(f"{a.source} and {b.source} share no sample")
    return compare(a.metric, a.summands[[i for i, _ in shared]], b.summands[[j for _, j in shared]])
