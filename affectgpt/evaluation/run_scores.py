"""One run on several data sets: what one table shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from affectgpt.config.paths import beside_answers
from affectgpt.core.errors import DataError
from affectgpt.core.runtime import logger
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import published, stats
from affectgpt.evaluation.floors import DEALS, above, add_floors, floors_of
from affectgpt.evaluation.grouping import grouping_of
from affectgpt.evaluation.lexicon import NOT_COMPARABLE, Lexicon
from affectgpt.evaluation.metrics.base import GroupMetric
from affectgpt.evaluation.results import (
    DIRECT,
    LLM,
    CheckpointChoice,
    ResultFile,
    choose_run,
    list_runs,
    results_folder,
)
from affectgpt.evaluation.score import FIRST, Score, Truth, make_metric, score_file, unknown_truths_note
from affectgpt.evaluation.selection import Selection, select

SHOWN = 3


@dataclass
class RunScores:
    """Scores of one run: data set → scores by checkpoint, with what a reader must know of them in ``notes``."""

    run: str
    lexicon: Lexicon
    grouping: str
    scores: dict[str, list[Score]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    selections: dict[str, Selection] = field(default_factory=dict)  # of data sets with several checkpoints

    def add_dataset(self, dataset: str, scores: list[Score], *, draws: int, deals: int) -> None:
        """Take in one data set's scores, with intervals, floors and what they are without a choice on the test set.

        ``draws``: bootstrap resamples, 0 for no intervals; ``deals``: of the dealt floor, 0 for no floors.
        """
        self.scores[dataset] = scores
        if draws:
            add_intervals(scores, draws=draws)
        if deals:
            add_floors(scores, deals=deals)
            self.notes += floor_notes(dataset, scores)
        if len(scores) > 1:
            self.selections[dataset] = select(scores, draws=draws)

    @property
    def datasets(self) -> list[str]:
        """Data sets with a score, in table order."""
        return list(self.scores)

    @property
    def checkpoints(self) -> list[str]:
        """All checkpoints, by epoch, then name."""
        keys = {(s.epoch is None, s.epoch or 0, s.checkpoint) for scores in self.scores.values() for s in scores}
        return [checkpoint for _, _, checkpoint in sorted(keys)]

    def cell(self, dataset: str, checkpoint: str) -> Score | None:
        """The score of one checkpoint on one data set; None where it was not scored."""
        return next((s for s in self.scores[dataset] if s.checkpoint == checkpoint), None)

    def of_checkpoint(self, checkpoint: str) -> list[Score]:
        """All scores of one checkpoint."""
        return [score for dataset in self.datasets if (score := self.cell(dataset, checkpoint)) is not None]

    def mean(self, checkpoint: str) -> tuple[float, int]:
        """The mean primary metric of one checkpoint (0..1), and over how many data sets."""
        scores = self.of_checkpoint(checkpoint)
        return sum(s.primary for s in scores) / len(scores), len(scores)

    @property
    def best(self) -> dict[str, Score]:
        """The best checkpoint of each data set, chosen on the test set itself: the paper's protocol."""
        return {dataset: max(scores, key=lambda s: s.primary) for dataset, scores in self.scores.items()}

    @property
    def mean_best(self) -> float:
        """Mean of the best numbers."""
        best = self.best.values()
        return sum(s.primary for s in best) / len(best)

    @property
    def best_single(self) -> str | None:
        """The checkpoint with the best mean among those scored on every data set; None where no one is."""
        full = [c for c in self.checkpoints if len(self.of_checkpoint(c)) == len(self.datasets)]
        return max(full, key=lambda c: self.mean(c)[0], default=None)

    @property
    def extractors(self) -> dict[str, list[str]]:
        """How labels were extracted → the data sets where they were."""
        found: dict[str, list[str]] = {}
        for dataset, scores in self.scores.items():
            for score in scores:
                if dataset not in found.setdefault(score.extractor, []):
                    found[score.extractor].append(dataset)
        return found

    @property
    def comparable(self) -> bool:
        """Whether published numbers may stand beside these: same lexicon, same grouping."""
        return self.lexicon.comparable and self.grouping == "wheel"

    def caveats(self) -> list[str]:
        """What makes these numbers other than the paper's, then the notes."""
        words = [] if self.lexicon.comparable else [NOT_COMPARABLE]
        if self.grouping != "wheel":
            words.append(f"grouping {self.grouping}: not the paper's main metric, not comparable with its table 2")
        epochs = {s.epoch for scores in self.scores.values() for s in scores}
        known = any(dataset in published.PRIMARY for dataset in self.scores)
        if self.comparable and known and None not in epochs and epochs != set(published.EPOCHS) and len(epochs) > 1:
            words.append(
                f"best of {len(epochs)} checkpoints; the paper's numbers are the best of seven "
                "(epochs 30 to 60, every fifth: --checkpoints 30-60/5)"
            )
        return words + self.notes


@dataclass(frozen=True)
class ScoringPaths:
    """Where results and labels are stored."""

    base_root: Path  # folders are {base_root}-{data set, lower case}
    dataset_root: Path


def find_runs(rows: Sequence[DatasetRow], places: ScoringPaths) -> dict[str, dict[str, list[ResultFile]]]:
    """Data set → run → result files."""
    return {row.name: list_runs(places.base_root, row) for row in rows}


def pick_files(
    rows: Sequence[DatasetRow],
    places: ScoringPaths,
    *,
    run: str | None,
    choice: CheckpointChoice,
    optional: bool,
    flag: str = "--run",
) -> tuple[str, dict[str, list[ResultFile]], list[str]]:
    """The run, its chosen result files by data set, and notes on data sets without any.

    ``optional``: data sets without this run are noted, not an error (nobody asked for them by name).
    """
    runs = find_runs(rows, places)
    if not any(runs.values()):
        looked = ", ".join(str(results_folder(places.base_root, row)) for row in rows[:SHOWN])
        raise DataError(
            f"no result files in {looked}{' …' if len(rows) > SHOWN else ''}. Run inference first, or say where "
            "they are stored: --output-root DIR (or --base-root)"
        )
    name = choose_run(runs, run, flag=flag)
    files: dict[str, list[ResultFile]] = {}
    absent: list[str] = []
    for row in rows:
        if name in runs[row.name]:
            files[row.name] = choice.pick(runs[row.name][name], where=str(results_folder(places.base_root, row) / name))
        elif optional:
            absent.append(row.name)
        else:
            there = ", ".join(runs[row.name]) or "none"
            raise DataError(f"{results_folder(places.base_root, row)}: no run {name!r}; runs there: {there}")
    notes = [f"no results of this run for {', '.join(absent)}"] if absent else []
    return name, files, notes


def score_run(
    rows: Sequence[DatasetRow],
    places: ScoringPaths,
    lexicon: Lexicon,
    *,
    run: str | None = None,
    choice: CheckpointChoice | None = None,
    extraction: str | None = None,
    grouping: str = "wheel",
    allow_missing: bool = False,
    optional: bool = False,
    draws: int = stats.DRAWS,
    deals: int = DEALS,
    flag: str = "--run",
    truths: dict[str, Truth] | None = None,
) -> RunScores:
    """Score one run on data sets from labels that are already extracted.

    ``run``, ``choice``, ``optional``: see pick_files. ``extraction``: results.LLM or DIRECT; None: LLM where there is
    any such file, else direct. ``draws``, ``deals``: see RunScores.add_dataset. ``truths`` keeps loaded truths.
    Raises DataError.
    """
    name, files, notes = pick_files(
        rows, places, run=run, choice=choice or CheckpointChoice(), optional=optional, flag=flag
    )
    chosen = [row for row in rows if row.name in files]
    run_scores = RunScores(name, lexicon, grouping, notes=notes)
    metrics = {row.name: make_metric(row, grouping_of(lexicon, grouping)) for row in chosen}
    extraction = extraction or extraction_of(files, {dataset: metric.polarity for dataset, metric in metrics.items()})
    truths = {} if truths is None else truths
    for row in chosen:
        metric = metrics[row.name]
        ready = [file for file in files[row.name] if file.has(extraction, polarity=metric.polarity)]
        if len(ready) < len(files[row.name]):
            names = [file.stem for file in files[row.name] if file not in ready]
            run_scores.notes.append(
                f"{row.name}: {len(names)} of {len(files[row.name])} checkpoints have no labels extracted "
                f"({_EXTRACTED[extraction]}): {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}; "
                "evaluation.py extracts them, with --extractor direct without a language model"
            )
        if not ready:
            continue
        if row.name not in truths:
            truths[row.name] = Truth.load(row, dataset_root=places.dataset_root)
        scores = [
            score_file(f, truths[row.name], metric, extraction=extraction, allow_missing=allow_missing) for f in ready
        ]
        run_scores.notes += sample_notes(row, truths[row.name], scores)
        run_scores.add_dataset(row.name, scores, draws=draws, deals=deals)
    if not run_scores.scores:
        raise DataError(
            f"run {name}: no labels extracted yet ({_EXTRACTED[extraction]}). "
            "Run evaluation.py, which extracts and scores: with --extractor direct for answers of the trained form, "
            "which needs no language model, else with the folder of one (--model-path)"
        )
    return run_scores


_EXTRACTED = {LLM: "by a language model", DIRECT: "directly"}


def extraction_of(files: Mapping[str, Sequence[ResultFile]], polarity: Mapping[str, bool]) -> str:
    """LLM where any file (data set → files) has labels of it, else DIRECT where any has, else LLM."""

    def any_has(extraction: str) -> bool:
        return any(file.has(extraction, polarity=polarity[ds]) for ds, found in files.items() for file in found)

    return DIRECT if any_has(DIRECT) and not any_has(LLM) else LLM


def sample_notes(row: DatasetRow, truth: Truth, scores: Sequence[Score]) -> list[str]:
    """What was left out of a data set, in words."""
    notes = []
    if isinstance(scores[0].metric, GroupMetric):
        unknown = unknown_truths_note(list(truth.values.values()), scores[0].metric.grouping)
        if unknown is not None:
            logger.warning("%s: %s", row.name, unknown)
            notes.append(f"{row.name}: WARNING: {unknown}")
    expected = row.counts.get("test")
    if expected and len(truth.names) != expected:
        notes.append(f"{row.name}: {len(truth.names)} samples; the benchmark has {expected}")
    if len(truth.values) < len(truth.names):
        notes.append(
            f"{row.name}: {len(truth.values)} of {len(truth.names)} samples have a truth; the others are not scored"
        )
    gaps = [s for s in scores if s.left_out]
    if gaps:
        words = ", ".join(f"{s.left_out} in {s.checkpoint}" for s in gaps[:SHOWN])
        more = f" … ({len(gaps)} checkpoints)" if len(gaps) > SHOWN else ""
        most = max(gaps, key=lambda s: s.left_out)
        names = ", ".join(most.missing[:FIRST]) + (" …" if most.left_out > FIRST else "")
        notes.append(f"{row.name}: samples without an answer were left out: {words}{more}: {names}")
        if most.unreadable:
            notes.append(f"{row.name}: {most.unreadable} of them could not be read: {failures_of(most)} says why")
    foreign = max(s.foreign for s in scores)
    if foreign:
        notes.append(f"{row.name}: up to {foreign} names of the result files are not in the test split, left out")
    odd = sum(s.odd_items for s in scores)
    if odd:
        total = sum(len(s.items) for s in scores)
        notes.append(
            f"{row.name}: {odd} of {total} polarity words are not positive, negative or neutral; they count as neutral"
        )
    return notes


def floor_notes(dataset: str, scores: Sequence[Score]) -> list[str]:
    """A note where answers that never met the clips score as high as checkpoints do."""
    below = [score for score in scores if (margin := above(score)) is not None and margin <= 0]
    if not below:
        return []
    score = min(below, key=lambda score: above(score) or 0.0)
    title, key, floors = score.metric.titles[0], score.metric.keys[0], floors_of(score)
    what = "the same answers dealt to other clips"
    if floors.constant is not None and floors.constant[key] == floors.higher(key):
        what = f"one answer for every clip ({' or '.join(dict.fromkeys(', '.join(a) for a in floors.answers))})"
    reach = 100 * (floors.higher(key) or 0.0)
    count = "it does not exceed" if len(scores) == 1 else f"{len(below)} of {len(scores)} checkpoints do not exceed"
    return [
        f"{dataset}: {what} reaches {title} {reach:.2f}, which {count}. "
        "Compare runs at equal numbers of groups per answer only"
    ]


def failures_of(score: Score) -> Path:
    """The list of unreadable samples that inference left beside the answers."""
    stem = score.source.with_name(f"{score.checkpoint}.npz")
    return beside_answers(stem, ".failed.csv")


def add_intervals(scores: Sequence[Score], *, draws: int) -> None:
    """Bootstrap intervals of one data set's scores; those on the same samples share their resamples."""
    by_names: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        by_names.setdefault(tuple(score.names), []).append(score)
    for group in by_names.values():
        found = stats.intervals(group[0].metric, [score.summands for score in group], draws=draws)
        for score, interval in zip(group, found, strict=True):
            score.interval = interval
