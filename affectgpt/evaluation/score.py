"""Scores of result files against the truth of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.datasets.label_files import load_labels
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation import extraction_file as files
from affectgpt.evaluation.grouping import Grouping
from affectgpt.evaluation.lexicon import Lexicon, clean
from affectgpt.evaluation.metrics.base import METRICS, GroupMetric, Metric, summed
from affectgpt.evaluation.metrics.sentiment import POLARITIES
from affectgpt.evaluation.results import ResultFile

if TYPE_CHECKING:
    from affectgpt.evaluation.floors import Floors

FIRST = 5  # names that an error lists


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
        guessed = row.names_from_subtitles and not (Path(dataset_root) / row.root / row.subtitle_file).exists()
        return cls(row, values, frozenset(labels), complete=not guessed)


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
    floors: Floors | None = None  # where they were asked for

    @property
    def left_out(self) -> int:
        """How many samples with a truth could not be scored."""
        return len(self.missing)

    @property
    def primary(self) -> float:
        """The number that tables show, 0..1."""
        return self.values[self.metric.keys[0]]


def unknown_truths(truths: Iterable[Any], grouping: Grouping) -> Counter[tuple[str, ...]]:
    """True label sets that no wheel scores since the lexicon does not know their labels, and how often each is there.

    Labels that it knows and that no wheel holds (neutral) are left out by the published protocol: no fault.
    """
    forms = grouping.lexicon.forms
    return Counter(
        truth
        for truth in truths
        if isinstance(truth, tuple) and not grouping.mask(truth)
        and any(clean(label) not in forms and clean(label) != "neutral" for label in truth)
    )  # fmt: skip


def unknown_truths_note(truths: Sequence[Any], grouping: Grouping) -> str | None:
    """A sentence on ``unknown_truths``; None where there are none."""
    unknown = unknown_truths(truths, grouping)
    if not unknown:
        return None
    listed = [f"{', '.join(labels)[:60]} ({count})" for labels, count in unknown.most_common(FIRST)]
    more = f" and {len(unknown) - FIRST} others" if len(unknown) > FIRST else ""
    return (
        f"{unknown.total()} of {len(truths)} truths are not in the lexicon and are not scored: {', '.join(listed)}"
        f"{more}. Truths are words of the lexicon, several of them parted by commas"
    )


def check_scored(row: DatasetRow) -> None:
    """DataError for a data set whose task is that of no metric."""
    if row.task not in METRICS:
        raise DataError(f"data set {row.name} is not scored (task {row.task!r}).{did_you_mean(row.task, METRICS)}")


def make_metric(row: DatasetRow, grouping: Grouping | None) -> Metric:
    """The metric of a data set's task."""
    return METRICS.get(row.task)(grouping)


def score_file(
    file: ResultFile, truth: Truth, metric: Metric, *, extraction: str, allow_missing: bool = False
) -> Score:
    """Score one result file from the labels of one ``extraction`` (results.LLM or DIRECT)."""
    path = file.extracted(extraction, polarity=metric.polarity)
    items = files.checked_items(path, answers=file.answers)
    score = score_items(
        items, truth, metric, source=path, checkpoint=file.stem, allow_missing=allow_missing,
        unreadable=files.unreadable(file.answers),
    )  # fmt: skip
    score.epoch, score.extractor = file.epoch, _made_by(path)
    return score


def _made_by(path: Path) -> str:
    """How a file was extracted; its record counts only as long as it is that of this file."""
    meta = files.read_meta(path)
    if meta is not None and meta.get("file_sha256", "") != files.file_sha256(path):
        return f"unknown extractor ({files.meta_path(path).name} is the record of another file)"
    return files.describe(path)


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
    skipped = [name for name in truth.values if name not in items and name in unreadable]
    missing = [name for name in truth.values if name not in items and name not in unreadable]
    empty = [name for name in truth.values if items.get(name, "").strip().lower() == "nan"]
    foreign = [name for name in items if name not in truth.names]
    if not allow_missing:
        wrong = [
            _problem(missing, "samples of the test split are missing"),
            _problem(empty, "items are NaN"),
            _problem(foreign if truth.complete else [], f"names are not in the test split of {truth.row.name}"),
        ]
        if any(wrong):
            raise DataError(
                f"{source}: {'; '.join(filter(None, wrong))}. The split has {len(truth.values)} samples, the file "
                f"{len(items)}. Make the file again, or score what both share with --allow-missing"
            )
    gone = {*missing, *empty, *skipped}
    names = [name for name in truth.values if name not in gone]
    if not names:
        raise DataError(f"{source}: it shares no sample with the test split of {truth.row.name}")
    guesses = [items[name] for name in names]
    true = [truth.values[name] for name in names]
    summands, values, detail = summed(truth.row.task, metric, true, guesses)
    if not all(np.isfinite(value) for value in values.values()):
        why = f"{truth.row.task} has no value on the {len(true)} samples of {truth.row.name}"
        if isinstance(metric, GroupMetric):
            why = f"no true label of {truth.row.name} has a group in some wheel"
        raise DataError(f"{source}: no sample counts: {why}")
    return Score(
        dataset=truth.row.name,
        checkpoint=checkpoint,
        epoch=None,
        metric=metric,
        names=names,
        truth=true,
        items=guesses,
        summands=summands,
        extractor=files.UNKNOWN,
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


def shared_summands(scores: Sequence[Score]) -> list[np.ndarray]:
    """Summands ``[N, C]`` of each score on the samples that all of them have, in one order."""
    if all(score.names == scores[0].names for score in scores):
        return [score.summands for score in scores]
    common = set(scores[0].names).intersection(*(score.names for score in scores))
    names = [name for name in scores[0].names if name in common]
    found = []
    for score in scores:
        at = {name: index for index, name in enumerate(score.names)}
        found.append(score.summands[np.array([at[name] for name in names], dtype=np.int64)])
    return found


def _problem(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what} (first: {', '.join(names[:FIRST])})" if names else ""


@dataclass(frozen=True)
class UnknownLabels:
    """Labels without a group: how often each occurs, by data set; ``total`` counts all labels."""

    counts: Counter[tuple[str, str]]  # (label, data set) → occurrences
    total: int

    @property
    def by_label(self) -> Counter[str]:
        """Label → occurrences over all data sets."""
        merged: Counter[str] = Counter()
        for (label, _), count in self.counts.items():
            merged[label] += count
        return merged


def unknown_labels(scores: Iterable[Score], grouping: Grouping) -> UnknownLabels:
    """Count the predicted labels that no view of the grouping knows, over scores that are made of groups."""
    counts: Counter[tuple[str, str]] = Counter()
    total = 0
    for score in scores:
        if not isinstance(score.metric, GroupMetric):
            continue
        for item in score.items:
            labels, _ = grouping.item(item)
            total += len(labels)
            for label in labels:
                if not grouping.label_mask(label):
                    counts[label, score.dataset] += 1
    return UnknownLabels(counts, total)


def why_unknown(label: str, lexicon: Lexicon) -> str:
    """At which stage a label is lost."""
    if label not in lexicon.forms:
        return "no word form"
    return "no synonym" if not lexicon.wheel_words(label) else "in no wheel"
