"""Is a data set complete and readable? Every file of every sample is looked at before anybody trains on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from affectgpt.core.errors import DataError, shortened
from affectgpt.core.types import Sample
from affectgpt.datasets.base import EmotionDataset
from affectgpt.media.audio import probe_audio, read_wave
from affectgpt.media.guard import Decoder
from affectgpt.media.video import probe_faces, probe_image, read_faces, read_image
from affectgpt.processing.features import stored_problems
from affectgpt.processing.questions import get_label_type, render_answer

MEDIA = ("video", "audio", "face", "image")
_PARTING = ";；，、|"  # signs that people put between labels, but that do not part them
FEATURES = "features"  # stored encoder outputs, looked at where there are any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``sample`` is empty where it concerns the whole data set."""

    dataset: str
    split: str
    sample: str
    what: str  # files, count, label, label_types, subtitle, video, audio, face, image, features
    kind: str  # missing, zero bytes, unreadable; of a count: wrong; note
    reason: str

    @property
    def line(self) -> str:
        """All of it, for a reader."""
        where = " ".join(filter(None, (self.dataset, self.split, self.sample)))
        return f"{where}: {self.what} {self.kind}: {self.reason}"


@dataclass
class SplitReport:
    """The findings in one split: counts, durations in seconds, and problems."""

    dataset: str
    split: str
    expected: int | None
    found: int = 0
    seconds: list[float] = field(default_factory=list)
    without_audio: list[str] = field(default_factory=list)  # videos without a sound track: no error
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)  # what may be meant: no error
    media: tuple[str, ...] = MEDIA  # what was looked at
    labels: Counter[str] = field(default_factory=Counter)  # label, or sign of a valence → samples that have it

    def add(self, what: str, kind: str, reason: str, *, sample: str = "") -> None:
        """Note a problem."""
        self.problems.append(Problem(self.dataset, self.split, sample, what, kind, reason))

    def count(self, what: str, kind: str | None = None) -> int:
        """Number of problems of one medium (and kind)."""
        return sum(p.what == what and kind in (None, p.kind) for p in self.problems)


@dataclass(frozen=True)
class CheckOptions:
    """How to check: which ``media``, how deep (``decode``: as training reads them, else headers only), how many files
    at once; ``features_root``: where stored features are; ``progress`` wraps an iterable and its length."""

    media: tuple[str, ...] = MEDIA
    features_root: Path | str | None = None
    decode: bool = False
    workers: int = 4
    progress: Callable[[Iterable, int], Iterable] | None = None


def check_split(
    dataset: EmotionDataset, *, split: str, counts: bool = True, options: CheckOptions | None = None
) -> SplitReport:
    """Check one split of a data set: its label and subtitle files, its media folders, every file of every sample.

    ``counts``: compare with the published number of samples. Raises ConfigError for a wrong block.
    """
    options = options or CheckOptions()
    folders = dataset.folders()
    report = SplitReport(
        dataset.name,
        split,
        expected=dataset.expected(split) if counts else None,
        media=tuple(medium for medium in options.media if medium in folders),
    )
    if "face" in report.media:
        try:
            dataset.crops()
        except DataError as error:
            report.add("face", "unreadable", str(error))
    samples, faults = dataset.survey(split)
    for fault in faults:
        if fault.what not in MEDIA or fault.what in report.media:
            report.add(fault.what, fault.kind, fault.reason, sample=fault.sample)
    absent = {fault.what for fault in faults if not fault.sample}  # said once, not for every sample
    report.media = tuple(medium for medium in report.media if medium not in absent)
    note_joined_labels(((sample.name, sample.labels.ovlabels or ()) for sample in samples), report)
    if split == "train":
        check_answers(samples, dataset.learnt_types, report)
    for sample in samples:
        labels = sample.labels
        if labels.ovlabels is not None or labels.emotion is not None:
            report.labels.update(labels.ovlabels if labels.ovlabels is not None else (str(labels.emotion),))
        elif labels.valence is not None:
            report.labels["positive" if labels.valence > 0 else "negative" if labels.valence < 0 else "zero"] += 1
    report.found = len(samples)
    if samples and report.expected not in (None, report.found):
        report.add("count", "wrong", f"expected {report.expected} samples, found {report.found}")
    for problems, seconds, silent, name in _parallel(samples, split, report.media, options):
        report.problems += problems
        report.seconds += [seconds] if seconds is not None else []
        report.without_audio += [name] if silent else []
    if options.features_root is not None:
        for name, reason in stored_problems(options.features_root, samples, dataset=report.dataset, split=split):
            report.add(FEATURES, "unreadable", reason, sample=name)
    return report


def check_answers(samples: Iterable[Sample], label_types: Sequence[str], report: SplitReport) -> None:
    """Report samples without an answer to learn, answers that training would refuse, and label types that
    no sample can be asked for though others can."""
    taught: set[str] = set()
    for sample in samples:
        known = [name for name in label_types if get_label_type(name).answer(sample.labels) is not None]
        try:
            for name in known or label_types[:1]:
                render_answer(name, sample)
        except DataError as error:
            kind = "unreadable" if known else "missing"
            report.add("label", kind, str(error), sample=sample.name)
        taught.update(known)
    for name in label_types if taught else ():
        if name not in taught:
            report.add(
                "label_types", "missing", f"no sample of {report.split} has a label of type {name}: it is not taught"
            )


def note_joined_labels(labels: Iterable[tuple[str, Sequence[str]]], report: SplitReport) -> None:
    """Into the report's notes: the first label (of name and labels of each sample) that looks like several."""
    found = [(name, label, sign) for name, several in labels for label in several for sign in _PARTING if sign in label]
    if found:
        name, label, sign = found[0]
        more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
        reason = f"ovlabel {shortened(label)} holds {sign!r}: labels are parted by commas{more}"
        report.notes.append(Problem(report.dataset, report.split, name, "label", "note", reason))


def _parallel(
    samples: list[Sample], split: str, media: tuple[str, ...], options: CheckOptions
) -> Iterator[tuple[list[Problem], float | None, bool, str]]:
    decoder = Decoder()

    def check(sample: Sample):
        return _check_sample(sample, split, media, options.decode, decoder)

    with ThreadPoolExecutor(max_workers=max(1, options.workers)) as pool:
        results: Iterable = pool.map(check, samples)
        yield from options.progress(results, len(samples)) if options.progress else results
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
