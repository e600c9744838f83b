"""Scores of a run: from its result files and the truth of each data set to one table.

In ``score_run``, ``pick_files`` chooses the run's files, ``Truth.load`` reads the labels of a data set, ``score_file``
gives one ``Score`` per checkpoint, and ``RunScores.add_dataset`` adds intervals, chance levels and the values without a
choice of the checkpoint. Reports (report.py) print a ``RunScores``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.core.runtime import logger
from affectgpt.datasets.label_files import load_labels
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import results, stats
from affectgpt.evaluation.chance import PERMUTATIONS, ChanceLevels, chance_levels
from affectgpt.evaluation.labels import POLARITIES
from affectgpt.evaluation.lexicon import NOT_COMPARABLE, Grouping, Lexicon, clean, grouping_of
from affectgpt.evaluation.metrics.base import METRICS, GroupMetric, Metric, summed
from affectgpt.evaluation.results import DIRECT, LLM, CheckpointChoice, ResultFile, results_folder

# Published results (paper, table 2): primary metric in percent, best of seven checkpoints for each data set
PUBLISHED_MODEL = "AffectGPT, audio + video + text (paper)"
PUBLISHED: Mapping[str, float] = {
    "MER2023": 78.54,
    "MER2024": 78.80,
    "MELD": 55.65,
    "IEMOCAPFour": 60.54,
    "CMUMOSI": 81.30,
    "CMUMOSEI": 80.90,
    "SIMS": 88.49,
    "SIMSv2": 86.18,
    "OVMERDPlus": 62.52,
}
PUBLISHED_MEAN = 74.77  # of all nine
PUBLISHED_EPOCHS = range(30, 61, 5)
FIRST = 5  # names that an error or a note lists
SHOWN = 3  # files that an error or a note lists
_EXTRACTED = {LLM: "by a language model", DIRECT: "directly"}  # else by the extractor of that name


def published_mean(datasets: Sequence[str]) -> float | None:
    """The published mean over these data sets in percent, None where one has no published number."""
    if set(datasets) == set(PUBLISHED):
        return PUBLISHED_MEAN
    values = [PUBLISHED[name] for name in datasets if name in PUBLISHED]
    return sum(values) / len(values) if values and len(values) == len(datasets) else None


@dataclass(frozen=True)
class Truth:
    """The test split of a data set: the samples that have a truth, in file order, and all names of the split."""

    row: DatasetRow
    values: dict[str, Any]
    names: frozenset[str]
    complete: bool  # the names are all names of the split, so that others are foreign

    @classmethod
    def load(cls, row: DatasetRow, *, dataset_root: str | Path) -> Truth:
        """Read the label files. Raises DataError for a data set that is not scored or has no truth here."""
        check_scored(row)
        root = Path(dataset_root) / row.root
        labels = load_labels(row, split="test", dataset_root=dataset_root)
        read = METRICS.get(row.task).truth
        values = {name: truth for name, label in labels.items() if (truth := read(label)) is not None}
        if not values:
            file = root / (row.openset_file or row.label_file or "")
            raise DataError(f"{row.name}: no sample of its test split has a truth in {file}")
        # without its subtitle file, OV-MERD+ has only the names that have labels
        guessed = row.names_from_subtitles and not (root / row.subtitle_file).exists()
        return cls(row, values, frozenset(labels), complete=not guessed)


@dataclass(frozen=True)
class ScoringPaths:
    """The folders of results and labels; both are read once."""

    base_root: Path  # folders are {base_root}-{data set, lower case}
    dataset_root: Path
    _runs: dict[str, dict[str, list[ResultFile]]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _truths: dict[str, Truth] = field(default_factory=dict, init=False, repr=False, compare=False)

    def runs(self, row: DatasetRow) -> dict[str, list[ResultFile]]:
        """Run → its result files on one data set, see results.list_runs."""
        if row.name not in self._runs:
            self._runs[row.name] = results.list_runs(self.base_root, row)
        return self._runs[row.name]

    def truth(self, row: DatasetRow) -> Truth:
        """The truth of a data set."""
        if row.name not in self._truths:
            self._truths[row.name] = Truth.load(row, dataset_root=self.dataset_root)
        return self._truths[row.name]


@dataclass
class Score:
    """One checkpoint on one data set."""

    dataset: str
    checkpoint: str
    epoch: int | None
    metric: Metric
    names: list[str]
    truth: list[Any]  # by sample, as the metric takes it
    items: list[str]  # what was extracted, by sample
    summands: np.ndarray  # [N, C], see metrics/base.py
    extractor: str
    source: Path
    task: str = ""
    split_size: int = 0  # samples of the whole split
    missing: tuple[str, ...] = ()  # samples with a truth that have no answer, and are left out
    unreadable: int = 0  # of these, those that inference could not read, by its own record
    foreign: int = 0  # names that are not in the split
    answers: Mapping[str, str] | None = None  # by name, where no result file holds them
    odd_items: int = 0  # polarity words other than positive, negative, neutral
    values: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: ChanceLevels | None = None  # where they were asked for

    @property
    def left_out(self) -> int:
        """The number of samples with a truth that could not be scored."""
        return len(self.missing)

    @property
    def primary(self) -> float:
        """The number that tables show, 0..1."""
        return self.values[self.metric.keys[0]]

    @property
    def above_chance(self) -> float | None:
        """The primary metric minus its higher chance level; None where there is none."""
        level = self.chance.higher(self.metric.keys[0]) if self.chance else None
        return None if level is None else self.primary - level


def check_scored(row: DatasetRow) -> None:
    """Raise DataError for a data set whose task is that of no metric."""
    if row.task not in METRICS:
        raise DataError(f"data set {row.name} is not scored (task {row.task!r}).{did_you_mean(row.task, METRICS)}")


def make_metric(row: DatasetRow, grouping: Grouping | None) -> Metric:
    """The metric of a data set's task."""
    return METRICS.get(row.task)(grouping)


def score_run(
    rows: Sequence[DatasetRow],
    paths: ScoringPaths,
    lexicon: Lexicon,
    *,
    run: str | None = None,
    choice: CheckpointChoice | None = None,
    extraction: str | None = None,
    grouping: str = "wheel",
    allow_missing: bool = False,
    optional: bool = False,
    draws: int = stats.DRAWS,
    permutations: int = PERMUTATIONS,
    flag: str = "--run",
) -> RunScores:
    """Score one run on data sets from labels that are already extracted.

    ``run``, ``choice``, ``optional``: see pick_files. ``extraction``: LLM, DIRECT or an extractor's name; None: LLM
    where there is any such file, else direct. ``draws``, ``permutations``: see RunScores.add_dataset. Raises DataError.
    """
    name, files, notes = pick_files(
        rows, paths, run=run, choice=choice or CheckpointChoice(), optional=optional, flag=flag
    )
    run_scores = RunScores(name, lexicon, grouping, notes=notes)
    # One extraction for the whole table: scores of two extractors must not stand in one mean.
    metrics = {row.name: make_metric(row, grouping_of(lexicon, grouping)) for row in rows if row.name in files}
    extraction = extraction or extraction_of(files, {dataset: metric.polarity for dataset, metric in metrics.items()})
    extracted = _EXTRACTED.get(extraction, f"by {extraction}")
    for row in rows:
        if row.name not in files:
            continue
        metric = metrics[row.name]
        ready = [file for file in files[row.name] if file.has(extraction, polarity=metric.polarity)]
        if len(ready) < len(files[row.name]):
            names = [file.stem for file in files[row.name] if file not in ready]
            run_scores.notes.append(
                f"{row.name}: {len(names)} of {len(files[row.name])} checkpoints have no labels extracted "
                f"({extracted}): {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}; "
                "evaluation.py extracts them, with --extractor direct without a language model"
            )
        if ready:
            truth = paths.truth(row)
            scores = [
                score_file(file, truth, metric, extraction=extraction, allow_missing=allow_missing) for file in ready
            ]
            run_scores.add_dataset(truth, scores, draws=draws, permutations=permutations)
    if not run_scores.scores:
        raise DataError(
            f"run {name}: no labels extracted yet ({extracted}). "
            "Run evaluation.py, which extracts and scores: with --extractor direct for answers of the trained form, "
            "which needs no language model, else with the folder of one (--model-path)"
        )
    return run_scores


def pick_files(
    rows: Sequence[DatasetRow],
    paths: ScoringPaths,
    *,
    run: str | None,
    choice: CheckpointChoice,
    optional: bool,
    flag: str = "--run",
) -> tuple[str, dict[str, list[ResultFile]], list[str]]:
    """The run, its chosen result files by data set, and notes on data sets without any.

    ``optional``: data sets without this run are noted, not an error (nobody asked for them by name).
    """
    runs = {row.name: paths.runs(row) for row in rows}
    if not any(runs.values()):
        looked = ", ".join(str(results_folder(paths.base_root, row)) for row in rows[:SHOWN])
        raise DataError(
            f"no result files in {looked}{' …' if len(rows) > SHOWN else ''}. Run inference first, or say where "
            "they are stored: --output-root DIR (or --base-root)"
        )
    # One run for all data sets, as the published script does: a table of several runs would be of no model.
    name = results.choose_run(runs, run, flag=flag)
    files: dict[str, list[ResultFile]] = {}
    absent: list[str] = []
    for row in rows:
        folder = results_folder(paths.base_root, row)
        if name in runs[row.name]:
            files[row.name] = choice.pick(runs[row.name][name], where=str(folder / name))
        elif optional:
            absent.append(row.name)
        else:
            raise DataError(f"{folder}: no run {name!r}; runs there: {', '.join(runs[row.name]) or 'none'}")
    return name, files, [f"no results of this run for {', '.join(absent)}"] if absent else []


def extraction_of(files: Mapping[str, Sequence[ResultFile]], polarity: Mapping[str, bool]) -> str:
    """LLM where any file (data set → files) has labels of it, else DIRECT where any has, else LLM."""

    def any_has(extraction: str) -> bool:
        return any(file.has(extraction, polarity=polarity[ds]) for ds, found in files.items() for file in found)

    return DIRECT if any_has(DIRECT) and not any_has(LLM) else LLM


def score_file(
    file: ResultFile, truth: Truth, metric: Metric, *, extraction: str, allow_missing: bool = False
) -> Score:
    """Score one result file from the labels of one ``extraction`` (results.LLM or DIRECT)."""
    path = file.extracted(extraction, polarity=metric.polarity)
    results.check_source(path, answers=file.answers)  # labels of answers that were replaced since are no score
    score = score_items(
        results.read_items(path), truth, metric, source=path, checkpoint=file.stem, allow_missing=allow_missing,
        unreadable=frozenset(map(str, results.read_meta(file.answers).get("failed", ()))),
    )  # fmt: skip
    score.epoch, score.extractor = file.epoch, results.describe(path)
    record = results.read_record(path)
    if record is not None and record.get("file_sha256", "") != results.file_sha256(path):
        score.extractor = f"unknown extractor ({results.record_path(path).name} is the record of another file)"
    return score


def score_items(
    items: Mapping[str, str],
    truth: Truth,
    metric: Metric,
    *,
    source: Path,
    checkpoint: str,
    allow_missing: bool = False,
    unreadable: Collection[str] = (),
) -> Score:
    """Score extracted items by name.

    Raises DataError naming ``source`` and the first names where samples are missing, empty, NaN or not of the split;
    ``allow_missing`` scores the others and counts those left out. ``unreadable``: samples that inference left out by
    its own record (--skip-unreadable); they are counted, too, and no error.
    """
    dataset = truth.row.name
    skipped = [name for name in truth.values if name not in items and name in unreadable]
    missing = [name for name in truth.values if name not in items and name not in unreadable]
    empty = [name for name in truth.values if items.get(name, "").strip().lower() == "nan"]
    foreign = [name for name in items if name not in truth.names]
    if not allow_missing:
        wrong = [
            f"{len(names)} {what} (first: {', '.join(names[:FIRST])})"
            for names, what in (
                (missing, "samples of the test split are missing"),
                (empty, "items are NaN"),
                (foreign if truth.complete else [], f"names are not in the test split of {dataset}"),
            )
            if names
        ]
        if wrong:
            raise DataError(
                f"{source}: {'; '.join(wrong)}. The split has {len(truth.values)} samples, the file "
                f"{len(items)}. Make the file again, or score what both share with --allow-missing"
            )
    # Samples without an answer are left out, never counted as wrong: the note says how many.
    gone = {*missing, *empty, *skipped}
    names = [name for name in truth.values if name not in gone]
    if not names:
        raise DataError(f"{source}: it shares no sample with the test split of {dataset}")
    guesses = [items[name] for name in names]
    true = [truth.values[name] for name in names]
    summands, values, detail = summed(truth.row.task, metric, true, guesses)  # [N, C], key → 0..1
    if not all(np.isfinite(value) for value in values.values()):
        why = f"{truth.row.task} has no value on the {len(true)} samples of {dataset}"
        if isinstance(metric, GroupMetric):
            why = f"no true label of {dataset} has a group in some wheel"
        raise DataError(f"{source}: no sample counts: {why}")
    return Score(
        dataset=dataset,
        checkpoint=checkpoint,
        epoch=None,
        metric=metric,
        names=names,
        truth=true,
        items=guesses,
        summands=summands,
        extractor="",
        source=source,
        task=truth.row.task,
        split_size=len(truth.names),
        missing=tuple(name for name in truth.values if name in gone),
        unreadable=len(skipped),
        foreign=len(foreign),
        odd_items=sum(word not in POLARITIES for word in guesses) if metric.polarity else 0,
        values=values,
        detail=detail,
    )


@dataclass
class RunScores:
    """Scores of one run: data set → scores by checkpoint, with what a reader must know of them in ``notes``."""

    run: str
    lexicon: Lexicon
    grouping: str
    scores: dict[str, list[Score]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    selections: dict[str, stats.Selection] = field(default_factory=dict)  # of data sets with several checkpoints

    def add_dataset(self, truth: Truth, scores: list[Score], *, draws: int, permutations: int) -> None:
        """Add one data set's scores, with intervals, chance levels and what they are without a choice on the test set.

        ``draws``: bootstrap resamples, 0 for no intervals; ``permutations`` of the answers, 0 for no chance levels.
        """
        dataset, metric = truth.row.name, scores[0].metric
        self.scores[dataset] = scores
        self.notes += _sample_notes(truth, scores)
        by_names: dict[tuple[str, ...], list[Score]] = {}
        for score in scores:
            by_names.setdefault(tuple(score.names), []).append(score)
        # Equal names mean equal order: names are in the order of the truth.
        for same in by_names.values():  # those on the same samples share their resamples and permutations
            if draws:
                intervals = stats.intervals(metric, [score.summands for score in same], draws=draws)
                for score, interval in zip(same, intervals, strict=True):
                    score.interval = interval
            if permutations:
                items = [score.items for score in same]
                levels = chance_levels(metric, same[0].truth, items, permutations=permutations)
                for score, level in zip(same, levels, strict=True):
                    score.chance = level
        self.notes += _chance_note(dataset, scores)
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

    @property
    def full_checkpoints(self) -> list[str]:
        """The checkpoints with scores on every data set."""
        return [c for c in self.checkpoints if len(self.of_checkpoint(c)) == len(self.datasets)]

    def cell(self, dataset: str, checkpoint: str) -> Score | None:
        """The score of one checkpoint on one data set; None where it was not scored."""
        return next((s for s in self.scores.get(dataset, ()) if s.checkpoint == checkpoint), None)

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
        return sum(score.primary for score in self.best.values()) / len(self.scores)

    @property
    def best_single(self) -> str | None:
        """The checkpoint with the best mean among those scored on every data set; None where no one is."""
        return max(self.full_checkpoints, key=lambda c: self.mean(c)[0], default=None)

    @property
    def extractors(self) -> dict[str, list[str]]:
        """Extractor in words → the data sets whose labels it extracted."""
        by_extractor: dict[str, list[str]] = {}
        for dataset, scores in self.scores.items():
            for score in scores:
                if dataset not in by_extractor.setdefault(score.extractor, []):
                    by_extractor[score.extractor].append(dataset)
        return by_extractor

    @property
    def comparable(self) -> bool:
        """True where published numbers may stand beside these: same lexicon, same grouping."""
        return self.lexicon.comparable and self.grouping == "wheel"

    def caveats(self) -> list[str]:
        """Reasons why these numbers are not comparable with the paper's, then the notes."""
        words = [] if self.lexicon.comparable else [NOT_COMPARABLE]
        if self.grouping != "wheel":
            words.append(f"grouping {self.grouping}: not the paper's main metric, not comparable with its table 2")
        epochs = {s.epoch for scores in self.scores.values() for s in scores}
        comparable = self.comparable and any(dataset in PUBLISHED for dataset in self.scores)
        if comparable and None not in epochs and epochs != set(PUBLISHED_EPOCHS) and len(epochs) > 1:
            words.append(
                f"best of {len(epochs)} checkpoints; the paper's numbers are the best of seven "
                "(epochs 30 to 60, every fifth: --checkpoints 30-60/5)"
            )
        return words + self.notes


def select(scores: Sequence[Score], *, draws: int) -> stats.Selection:
    """The values of one data set's checkpoints without a choice on the test set, see stats.select."""
    values = [score.primary for score in scores]
    return stats.select(scores[0].metric, values, shared_summands(scores), draws=draws)


def shared_summands(scores: Sequence[Score]) -> list[np.ndarray]:
    """Summands ``[N, C]`` of each score on the samples that all of them have, in one order."""
    if all(score.names == scores[0].names for score in scores):
        return [score.summands for score in scores]
    common = set(scores[0].names).intersection(*(score.names for score in scores))
    names = [name for name in scores[0].names if name in common]
    aligned = []
    for score in scores:
        at = {name: index for index, name in enumerate(score.names)}
        aligned.append(score.summands[np.array([at[name] for name in names], dtype=np.int64)])
    return aligned


def unknown_truths_note(truths: Iterable[Any], grouping: Grouping) -> str | None:
    """A sentence on true label sets that no wheel scores since the lexicon does not know their labels; None: no such.

    Labels that it knows and that no wheel holds (neutral) are left out by the published protocol: no fault.
    """
    truths, forms = list(truths), grouping.lexicon.forms
    unknown = Counter(
        truth
        for truth in truths
        if isinstance(truth, tuple) and not grouping.mask(truth)
        and any(clean(label) not in forms and clean(label) != "neutral" for label in truth)
    )  # fmt: skip
    if not unknown:
        return None
    listed = [f"{', '.join(labels)[:60]} ({count})" for labels, count in unknown.most_common(FIRST)]
    more = f" and {len(unknown) - FIRST} others" if len(unknown) > FIRST else ""
    return (
        f"{unknown.total()} of {len(truths)} truths are not in the lexicon and are not scored: {', '.join(listed)}"
        f"{more}. Truths are words of the lexicon, several of them parted by commas"
    )


def _sample_notes(truth: Truth, scores: Sequence[Score]) -> list[str]:
    """Notes on the samples of a data set that were left out, and on labels that do not count."""
    dataset, notes = truth.row.name, []
    metric = scores[0].metric
    if isinstance(metric, GroupMetric):
        unknown = unknown_truths_note(truth.values.values(), metric.grouping)
        if unknown is not None:
            logger.warning("%s: %s", dataset, unknown)
            notes.append(f"WARNING: {unknown}")
    expected = truth.row.counts.get("test")
    if expected and len(truth.names) != expected:
        notes.append(f"{len(truth.names)} samples; the benchmark has {expected}")
    if len(truth.values) < len(truth.names):
        notes.append(f"{len(truth.values)} of {len(truth.names)} samples have a truth; the others are not scored")
    gaps = [s for s in scores if s.left_out]
    if gaps:
        words = ", ".join(f"{s.left_out} in {s.checkpoint}" for s in gaps[:SHOWN])
        more = f" … ({len(gaps)} checkpoints)" if len(gaps) > SHOWN else ""
        most = max(gaps, key=lambda s: s.left_out)
        names = ", ".join(most.missing[:FIRST]) + (" …" if most.left_out > FIRST else "")
        notes.append(f"samples without an answer were left out: {words}{more}: {names}")
        if most.unreadable:
            listed = results.beside(most.source.with_name(f"{most.checkpoint}.npz"), ".failed.csv")
            notes.append(f"{most.unreadable} of them could not be read: {listed} says why")
    foreign = max(s.foreign for s in scores)
    if foreign:
        notes.append(f"up to {foreign} names of the result files are not in the test split, left out")
    odd = sum(s.odd_items for s in scores)
    if odd:
        total = sum(len(s.items) for s in scores)
        notes.append(f"{odd} of {total} polarity words are not positive, negative or neutral; they count as neutral")
    return [f"{dataset}: {note}" for note in notes]


def _chance_note(dataset: str, scores: Sequence[Score]) -> list[str]:
    """A note where answers that never met the clips score as high as checkpoints do."""
    below = [score for score in scores if score.above_chance is not None and score.above_chance <= 0]
    if not below:
        return []
    score = min(below, key=lambda score: score.above_chance or 0.0)
    title, key, chance = score.metric.titles[0], score.metric.keys[0], score.chance
    assert chance is not None
    what = "the same answers permuted among clips"
    if chance.constant is not None and chance.constant[key] == chance.higher(key):
        what = f"one answer for every clip ({' or '.join(dict.fromkeys(', '.join(a) for a in chance.answers))})"
    reach = 100 * (chance.higher(key) or 0.0)
    count = "it does not exceed" if len(scores) == 1 else f"{len(below)} of {len(scores)} checkpoints do not exceed"
    return [
        f"{dataset}: {what} reaches {title} {reach:.2f}, which {count}. "
        "Compare runs at equal numbers of groups per answer only"
    ]
