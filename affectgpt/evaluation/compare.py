"""Two runs on the same samples, and one recipe under several training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.chance import labels_and_groups
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.results import CheckpointChoice
from affectgpt.evaluation.score import RunScores, Score, ScoringPaths, score_run, shared_summands
from affectgpt.evaluation.stats import Comparison, Spread, compare, spread

MEAN = "mean"  # RUN/mean: all checkpoints of a run, each counting the same
MORE_GROUPS = 0.5  # known groups per answer by which two sides may differ without a note


@dataclass
class Side:
    """A run that is compared, and the checkpoints that stand for it."""

    scores: RunScores
    checkpoints: list[str]

    @property
    def name(self) -> str:
        """``RUN/CHECKPOINT``, or ``RUN/mean of N``."""
        what = self.checkpoints[0] if len(self.checkpoints) == 1 else f"{MEAN} of {len(self.checkpoints)}"
        return f"{self.scores.run}/{what}"

    def of(self, dataset: str) -> list[Score]:
        """The scores on one data set."""
        cells = (self.scores.cell(dataset, checkpoint) for checkpoint in self.checkpoints)
        return [score for score in cells if score is not None]


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
    """The inputs that all sides of a comparison share."""

    rows: Sequence[DatasetRow]
    paths: ScoringPaths
    lexicon: Lexicon
    checkpoints: str | None = None
    extraction: str | None = None
    grouping: str = "wheel"
    allow_missing: bool = False
    optional: bool = False

    def sides(self, names: Sequence[str], *, flag: str, best: bool) -> tuple[list[Side], list[str]]:
        """The sides ``RUN``, ``RUN/CHECKPOINT`` or ``RUN/mean``, and notes.

        The ``best`` checkpoint stands for a run alone, or the last one, as a choice by score would be one on the test
        set.
        """
        sides: list[Side] = []
        notes: list[str] = []
        for text in names:
            run, _, checkpoint = text.strip("/").partition("/")
            choice = CheckpointChoice.parse(checkpoint if checkpoint not in ("", MEAN) else self.checkpoints)
            scores = score_run(
                self.rows, self.paths, self.lexicon, run=run, choice=choice, extraction=self.extraction,
                grouping=self.grouping, allow_missing=self.allow_missing, optional=self.optional, draws=0,
                permutations=0, flag=flag,
            )  # fmt: skip
            full = scores.full_checkpoints
            if not full:
                raise DataError(
                    f"run {scores.run}: no checkpoint has scores on every data set; name one: RUN/CHECKPOINT"
                )
            if checkpoint == MEAN:
                sides.append(Side(scores, full))
                if best:
                    left_out = [c for c in scores.checkpoints if c not in full]
                    notes += [f"{scores.run}: {c} lacks some data set and is left out" for c in left_out]
            elif best:
                if len(scores.checkpoints) > 1:
                    words = f"the best of {len(scores.checkpoints)} on these test sets"
                    notes.append(f"{scores.run} stands with {scores.best_single}, {words}")
                sides.append(Side(scores, [str(scores.best_single)]))
            else:
                if len(full) > 1:
                    notes.append(f"{scores.run} stands with {full[-1]}, the last of {len(full)}")
                sides.append(Side(scores, full[-1:]))
        extractors: dict[str, None] = {}
        for side in sides:  # what makes the sides other than the paper's, each said once
            notes += [words for words in side.scores.caveats() if words not in notes and "best of" not in words]
            extractors.update(dict.fromkeys(side.scores.extractors))
        if len(extractors) > 1:
            notes.append(f"labels were extracted in different ways: {'; '.join(sorted(extractors))}")
        return sides, notes


def compare_runs(names: Sequence[str], sources: Sources) -> PairedResult:
    """Compare two of ``RUN`` (its best checkpoint), ``RUN/CHECKPOINT`` or ``RUN/mean``. Raises DataError."""
    (a, b), notes = sources.sides(names, flag="--compare", best=True)
    result = PairedResult(a.name, b.name, notes=notes)
    for dataset in a.scores.datasets:
        scores_a, scores_b = a.of(dataset), b.of(dataset)
        if not scores_a or not scores_b:
            continue
        shared = _shared([*scores_a, *scores_b])
        result.datasets[dataset] = compare(scores_a[0].metric, shared[: len(scores_a)], shared[len(scores_a) :])
        x, y = _groups(scores_a), _groups(scores_b)
        if x is None or y is None:
            continue
        result.groups[dataset] = x, y
        if abs(x - y) > MORE_GROUPS:
            (more, x), (fewer, y) = sorted(((result.a, x), (result.b, y)), key=lambda side: -side[1])
            result.notes.append(
                f"{dataset}: {more} answers with {x:.2f} known groups, {fewer} with {y:.2f}. Further groups raise "
                "HIT and recall whether or not they are right, so the difference is not one of quality alone"
            )
    if not result.datasets:
        raise DataError(f"{result.a} and {result.b} have no data set in common")
    return result


def compare_seeds(names: Sequence[str], sources: Sources, *, draws: int) -> SeedResult:
    """Mean and deviation over ``RUN`` (its last checkpoint), ``RUN/CHECKPOINT`` or ``RUN/mean`` of several training
    seeds, paired by clip.

    ``draws``: bootstrap resamples. Raises ConfigError and DataError.
    """
    if len(names) < 2:
        raise ConfigError("--seeds takes two or more runs, one per training seed")
    sides, notes = sources.sides(names, flag="--seeds", best=False)
    runs = [side.name for side in sides]
    if len(set(runs)) < len(runs):
        raise ConfigError(f"--seeds: the same run twice among {', '.join(runs)}")
    result = SeedResult(runs, notes=notes)
    for dataset in sides[0].scores.datasets:
        by_side = [side.of(dataset) for side in sides]
        lacking = [side.name for side, scores in zip(sides, by_side, strict=True) if not scores]
        if lacking:
            result.notes.append(f"{dataset}: left out, without results of {', '.join(lacking)}")
            continue
        shared = iter(_shared([score for scores in by_side for score in scores]))
        members = [[next(shared) for _ in scores] for scores in by_side]
        result.datasets[dataset] = spread(by_side[0][0].metric, members, draws=draws)
    if not result.datasets:
        raise DataError(f"{', '.join(runs)} have no data set in common")
    if len(result.datasets) > 1:
        result.mean = Spread.mean_of(list(result.datasets.values()))
    return result


def _shared(scores: Sequence[Score]) -> list[np.ndarray]:
    """Summands of each score on the samples that all have. Raises DataError where there is none."""
    summands = shared_summands(scores)
    if not len(summands[0]):
        raise DataError(f"{' and '.join(dict.fromkeys(str(score.source) for score in scores))} share no sample")
    return summands


def _groups(scores: Sequence[Score]) -> float | None:
    """Known groups per answer, mean over the checkpoints."""
    counts = [groups for s in scores if (groups := labels_and_groups(s.metric, s.items)[1]) is not None]
    return sum(counts) / len(counts) if counts else None
