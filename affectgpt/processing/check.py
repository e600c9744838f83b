"""Is a data set complete and readable? Every file of every sample is looked at before anybody trains on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from affectgpt.config.schema import DatasetConfig
from affectgpt.core.errors import DataError
from affectgpt.core.tables import read_table
from affectgpt.core.types import Sample
from affectgpt.datasets.custom import load_own_samples, own_crops, own_label_types
from affectgpt.datasets.label_files import load_labels, place_samples, stored_crops
from affectgpt.datasets.table import DatasetRow
from affectgpt.media.audio import probe_audio, read_wave
from affectgpt.media.guard import Decoder
from affectgpt.media.video import probe_faces, probe_image, read_faces, read_image
from affectgpt.processing.features import stored_problems
from affectgpt.processing.questions import HYBRID, get_label_type, render_answer

MEDIA = ("video", "audio", "face", "image")
FEATURES = "features"  # stored encoder outputs, looked at where there are any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``sample`` is empty where it concerns the whole data set."""

    dataset: str
    split: str
    sample: str
    what: str  # files, count, label, subtitle, video, audio, face, image, features
    kind: str  # missing, zero bytes, unreadable; of a count: wrong
    reason: str


@dataclass
class SplitReport:
    """What was found in one split: counts, durations in seconds, and problems."""

    dataset: str
    split: str
    expected: int | None
    found: int = 0
    seconds: list[float] = field(default_factory=list)
    without_audio: list[str] = field(default_factory=list)  # videos without a sound track: no error
    problems: list[Problem] = field(default_factory=list)
    media: tuple[str, ...] = MEDIA  # what was looked at

    def count(self, what: str, kind: str | None = None) -> int:
        """How many problems of one medium (and kind) there are."""
        return sum(p.what == what and kind in (None, p.kind) for p in self.problems)


@dataclass(frozen=True)
class Look:
    """How to look: at which ``media``, how deep (``decode``: as training reads them, else headers only), how many at
    once; ``features_root``: where stored features are; ``progress`` wraps an iterable and its length."""

    media: tuple[str, ...] = MEDIA
    features_root: Path | str | None = None
    decode: bool = False
    workers: int = 4
    progress: Callable[[Iterable, int], Iterable] | None = None


def check_split(
    row: DatasetRow,
    *,
    split: str,
    dataset_root: Path | str,
    counts: bool = True,
    face_channels: str | None = None,
    look: Look | None = None,
) -> SplitReport:
    """Check one split of a data set of the table. ``counts``: compare with the published number of samples;
    ``face_channels``: how its crops are stored, by the configuration."""
    look = look or Look()
    expected = row.counts.get(split) if counts else None
    report = SplitReport(row.name, split, expected=expected, media=tuple(m for m in look.media if m != "image"))
    if "face" in look.media:
        _check_crops(report, lambda: stored_crops(row, dataset_root=dataset_root, face_channels=face_channels))
    samples = _samples(row, split, Path(dataset_root), report)
    if split == "train":
        check_answers(samples, row.label_types, report)
    return _checked(report, samples, look)


def check_own(
    key: str, spec: DatasetConfig, *, split: str, dataset_root: Path | str, look: Look | None = None
) -> SplitReport:
    """Check a user's own data set: its file, and what its media folders hold for it. Raises ConfigError."""
    look = look or Look()
    report = SplitReport(key, split, expected=None, media=tuple(m for m in look.media if m in spec.folders))
    samples: list[Sample] = []
    folders = dict(spec.folders)
    if "face" in folders and not _check_crops(report, lambda: own_crops(key, spec, dataset_root=dataset_root)):
        folders.pop("face")
    spec = replace(spec, folders=folders)
    try:
        samples = load_own_samples(key, spec, dataset_root=dataset_root, split=split, labels=split == "train")
    except DataError as error:
        kind = "missing" if str(error).endswith("no such file") else "unreadable"
        report.problems.append(Problem(key, split, "", "label", kind, str(error)))
    if split == "train":
        types = own_label_types(key, spec)
        check_answers(samples, types if spec.label_type == HYBRID else (spec.label_type,), report)
    root = Path(dataset_root)
    there = {medium for medium, folder in spec.folders.items() if (root / folder).is_dir()}
    for medium in report.media:
        if medium in spec.folders and medium not in there:  # once, not for every sample
            reason = f"datasets.{key}.folders.{medium}: no folder {root / spec.folders[medium]}"
            report.problems.append(Problem(key, split, "", medium, "missing", reason))
    report.media = tuple(medium for medium in report.media if medium in there)
    return _checked(report, samples, look)


def _check_crops(report: SplitReport, read: Callable[[], object]) -> bool:
    """Whether a face folder's record and the configuration agree on how its crops are stored; a problem otherwise."""
    try:
        read()
    except DataError as error:
        report.problems.append(Problem(report.dataset, report.split, "", "face", "unreadable", str(error)))
        return False
    return True


def check_answers(samples: Iterable[Sample], label_types: Sequence[str], report: SplitReport) -> None:
    """Into the report: samples without an answer to learn, and answers that training would refuse."""
    for sample in samples:
        known = [name for name in label_types if get_label_type(name).answer(sample.labels) is not None]
        try:
            for name in known or label_types[:1]:
                render_answer(name, sample)
        except DataError as error:
            kind = "unreadable" if known else "missing"
            report.problems.append(Problem(report.dataset, report.split, sample.name, "label", kind, str(error)))


def _checked(report: SplitReport, samples: list[Sample], look: Look) -> SplitReport:
    """A report with what the samples' files are like."""
    report.found = len(samples)
    if samples and report.expected not in (None, report.found):
        reason = f"expected {report.expected} samples, found {report.found}"
        report.problems.append(Problem(report.dataset, report.split, "", "count", "wrong", reason))
    for problems, seconds, silent, name in _parallel(samples, report.split, report.media, look):
        report.problems += problems
        report.seconds += [seconds] if seconds is not None else []
        report.without_audio += [name] if silent else []
    if look.features_root is not None:
        found = stored_problems(look.features_root, samples, dataset=report.dataset, split=report.split)
        for name, reason in found:
            report.problems.append(Problem(report.dataset, report.split, name, FEATURES, "unreadable", reason))
    return report


def _samples(row: DatasetRow, split: str, dataset_root: Path, report: SplitReport) -> list[Sample]:
    """The samples; what is wrong with label and subtitle files goes into the report, every missing subtitle by name."""
    root = dataset_root / row.root
    if not root.is_dir():
        report.problems.append(Problem(row.name, split, "", "files", "missing", f"{root}: no such folder"))
        return []

    def problem(what: str, reason: str, *, sample: str = "", kind: str = "unreadable") -> None:
        kind = "missing" if reason.endswith("no such file") else kind
        report.problems.append(Problem(row.name, split, sample, what, kind, reason))

    try:
        labels = load_labels(row, split=split, dataset_root=dataset_root)
    except DataError as error:
        problem("label", str(error))
        return []
    path = root / row.subtitle_file
    try:
        table = read_table(path, key="name", columns=(row.subtitle_column,))
    except DataError as error:
        problem("subtitle", str(error))
    else:
        for name in labels:
            if name not in table:
                problem("subtitle", f"{path}: no row for it", sample=name, kind="missing")
    if row.openset_file and row.reason_file:
        for name, label in labels.items():
            for value, file in ((label.ovlabels, row.openset_file), (label.description, row.reason_file)):
                if value is None:
                    problem("label", f"{root / file}: no row for it", sample=name, kind="missing")
    return place_samples(row, labels, subtitles={}, dataset_root=dataset_root)


def _parallel(
    samples: list[Sample], split: str, media: tuple[str, ...], look: Look
) -> Iterator[tuple[list[Problem], float | None, bool, str]]:
    decoder = Decoder()

    def check(sample: Sample):
        return _check_sample(sample, split, media, look.decode, decoder)

    with ThreadPoolExecutor(max_workers=max(1, look.workers)) as pool:
        results: Iterable = pool.map(check, samples)
        yield from look.progress(results, len(samples)) if look.progress else results
    decoder.close()


def _check_sample(
    sample: Sample, split: str, media: tuple[str, ...], decode: bool, decoder: Decoder
) -> tuple[list[Problem], float | None, bool, str]:
    problems: list[Problem] = []
    seconds: float | None = None
    silent = False

    def look(what: str, path: Path | None, read: Callable[[Path], object]) -> object:
        if path is None or what not in media:
            return None
        kind = "missing" if not path.is_file() else "zero bytes" if path.stat().st_size == 0 else "unreadable"
        try:
            return read(path)
        except DataError as error:
            problems.append(Problem(sample.dataset, split, sample.name, what, kind, str(error)))
            return None

    info = look("video", sample.video, decoder.probe)
    if info is not None:
        seconds, silent = info.seconds, info.audio_tracks == 0  # type: ignore[attr-defined]
        if decode:
            look("video", sample.video, decoder.frames)
            if sample.audio is None and not silent:  # then the sound is the video's
                look("video", sample.video, decoder.track)
    if not (silent and sample.audio is not None and not sample.audio.exists()):  # no sound, no wav: nothing is lost
        sound = look("audio", sample.audio, probe_audio)
        if sound is not None:
            seconds = sound.seconds  # type: ignore[attr-defined]
            look("audio", sample.audio, read_wave if decode or seconds == 0 else probe_audio)
    look("face", sample.face, read_faces if decode else probe_faces)
    look("image", sample.image, read_image if decode else probe_image)
    return problems, seconds, silent, sample.name
