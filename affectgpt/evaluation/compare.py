"""Two runs on the same samples, and one recipe under several training seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.floors import labels_and_groups
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.results import CheckpointChoice
from affectgpt.evaluation.run_scores import RunScores, ScoringPaths, score_run
from affectgpt.evaluation.score import Score, Truth, shared_summands
from affectgpt.evaluation.stats import Comparison, Spread, compare, spread

MEAN = "mean"  # RUN/mean: all checkpoints of a run, each counting the same
MORE_GROUPS = 0.5  # known groups per answer by which two sides may differ without a note


@dataclass
class Side:
    """A run that is compared, and the checkpoints that it stands with."""

    scores: RunScores
    checkpoints: list[str]

    @property
    def name(self) -> str:
        """``RUN/CHECKPOINT``, or ``RUN/mean of N``."""
        what = self.checkpoints[0] if len(self.checkpoints) == 1 else f"{MEAN} of {len(self.checkpoints)}"
        return f"{self.scores.run}/{what}"

    def of(self, dataset: str) -> list[Score]:
        """The scores on one data set."""
        if dataset not in self.scores.scores:
            return []
        found = (self.scores.cell(dataset, checkpoint) for checkpoint in self.checkpoints)
        return [score for score in found if score is not None]


@dataclass
class PairedResult:
    """A paired comparison: names of both sides, a result per data set, and what a reader must know.

    ``groups``: known groups per answer of both sides, where the metric has any.
    """

    a: str
    b: str
    datasets: dict[str, Comparison] = field(default_factory=dict)
    groups: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class SeedResult:
    """Training seeds of one recipe: a result per data set, and the mean over data sets of each run."""

    runs: list[str]
    datasets: dict[str, Spread] = field(default_factory=dict)
    mean: Spread | None = None  # over several data sets
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sources:
    """What every side of a comparison is scored from."""

    rows: Sequence[DatasetRow]
    places: ScoringPaths
    lexicon: Lexicon
    checkpoints: str | None = None
    extraction: str | None = None
    grouping: str = "wheel"
    allow_missing: bool = False
    optional: bool = False
    truths: dict[str, Truth] = field(default_factory=dict)

    def score(self, text: str, *, flag: str) -> tuple[RunScores, str]:
        """The scores of ``RUN`` or ``RUN/CHECKPOINT``, and what stands behind the dash, if anything."""
        run, _, checkpoint = text.strip("/").partition("/")
        named = checkpoint if checkpoint != MEAN else None
        scores = score_run(
            self.rows, self.places, self.lexicon, run=run, choice=CheckpointChoice.parse(named or self.checkpoints),
            extraction=self.extraction, grouping=self.grouping, allow_missing=self.allow_missing,
            optional=self.optional, draws=0, deals=0, flag=flag, truths=self.truths,
        )  # fmt: skip
        return scores, checkpoint


def compare_runs(wanted: Sequence[str], sources: Sources) -> PairedResult:
    """Compare two of ``RUN``, ``RUN/CHECKPOINT`` or ``RUN/mean``. A run alone stands with its best checkpoint.

    Raises DataError.
    """
    sides: list[Side] = []
    notes: list[str] = []
    for text in wanted:
        scores, named = sources.score(text, flag="--compare")
        full = [c for c in scores.checkpoints if len(scores.of_checkpoint(c)) == len(scores.datasets)]
        best = scores.best_single
        if best is None:
            raise DataError(f"run {scores.run}: no checkpoint has scores on every data set; name one: RUN/CHECKPOINT")
        if named == MEAN:
            sides.append(Side(scores, full))
            left_out = [c for c in scores.checkpoints if c not in full]
            notes += [f"{scores.run}: {checkpoint} lacks some data set and is left out" for checkpoint in left_out]
            continue
        if len(scores.checkpoints) > 1:
            notes.append(f"{scores.run} stands with {best}, the best of {len(scores.checkpoints)} on these test sets")
        sides.append(Side(scores, [best]))
    a, b = sides
    result = PairedResult(a.name, b.name, notes=notes)
    _add_caveats(result.notes, sides)
    for dataset in a.scores.datasets:
        if scores_a := a.of(dataset):
            scores_b = b.of(dataset)
            if not scores_b:
                continue
            kept = _shared([*scores_a, *scores_b])
            result.datasets[dataset] = compare(scores_a[0].metric, kept[: len(scores_a)], kept[len(scores_a) :])
            groups = [_groups(scores) for scores in (scores_a, scores_b)]
            if groups[0] is not None and groups[1] is not None:
                result.groups[dataset] = groups[0], groups[1]
    result.notes += _more_groups(result)
    if not result.datasets:
        raise DataError(f"{result.a} and {result.b} have no data set in common")
    return result


def compare_seeds(wanted: Sequence[str], sources: Sources, *, draws: int) -> SeedResult:
    """Mean and deviation over ``RUN``, ``RUN/CHECKPOINT`` or ``RUN/mean`` of several training seeds, paired by clip.

    A run alone stands with its last checkpoint, as a choice by score would be one on the test set. ``draws``:
    bootstrap resamples. Raises ConfigError and DataError.
    """
    if len(wanted) < 2:
        raise ConfigError("--seeds takes two or more runs, one per training seed")
    sides: list[Side] = []
    notes: list[str] = []
    for text in wanted:
        scores, named = sources.score(text, flag="--seeds")
        full = [c for c in scores.checkpoints if len(scores.of_checkpoint(c)) == len(scores.datasets)]
        if not full:
            raise DataError(f"run {scores.run}: no checkpoint has scores on every data set; name one: RUN/CHECKPOINT")
        if named != MEAN and len(full) > 1:
            notes.append(f"{scores.run} stands with {full[-1]}, the last of {len(full)}")
        sides.append(Side(scores, full if named == MEAN else full[-1:]))
    names = [side.name for side in sides]
    if len(set(names)) < len(names):
        raise ConfigError(f"--seeds: the same run twice among {', '.join(names)}")
    result = SeedResult(names, notes=notes)
    _add_caveats(result.notes, sides)
    for dataset in sides[0].scores.datasets:
        by_side = [side.of(dataset) for side in sides]
        lacking = [side.name for side, found in zip(sides, by_side, strict=True) if not found]
        if lacking:
            result.notes.append(f"{dataset}: left out, without results of {', '.join(lacking)}")
            continue
        kept = iter(_shared([score for found in by_side for score in found]))
        result.datasets[dataset] = spread(
            by_side[0][0].metric, [[next(kept) for _ in found] for found in by_side], draws=draws
        )
    if not result.datasets:
        raise DataError(f"{', '.join(names)} have no data set in common")
    if len(result.datasets) > 1:
        result.mean = Spread.mean_of(list(result.datasets.values()))
    return result


def _shared(scores: Sequence[Score]) -> list[np.ndarray]:
    found = shared_summands(scores)
    if not len(found[0]):
        raise DataError(f"{' and '.join(dict.fromkeys(str(score.source) for score in scores))} share no sample")
    return found


def _add_caveats(notes: list[str], sides: Iterable[Side]) -> None:
    """What makes the sides other than the paper's, each said once, and whether their labels were made alike."""
    made: dict[str, None] = {}
    for side in sides:
        notes += [words for words in side.scores.caveats() if words not in notes and "best of" not in words]
        made.update(dict.fromkeys(side.scores.extractors))
    if len(made) > 1:
        notes.append(f"labels were extracted in different ways: {'; '.join(sorted(made))}")


def _groups(scores: Sequence[Score]) -> float | None:
    """Known groups per answer, mean over the checkpoints."""
    found = [groups for score in scores if (groups := labels_and_groups(score)[1]) is not None]
    return sum(found) / len(found) if found else None


def _more_groups(result: PairedResult) -> list[str]:
    """Notes on data sets where one side answers with more groups than the other."""
    notes = []
    for dataset, (a, b) in result.groups.items():
        if abs(a - b) > MORE_GROUPS:
            (more, x), (fewer, y) = sorted(((result.a, a), (result.b, b)), key=lambda side: -side[1])
            notes.append(
                f"{dataset}: {more} answers with {x:.2f} known groups, {fewer} with {y:.2f}. Further groups raise "
                "HIT and recall whether or not they are right, so the difference is not one of quality alone"
            )
    return notes
