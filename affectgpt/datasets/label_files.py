"""A data set's label and subtitle files → labels and samples, in file order. No media file is opened here."""

from __future__ import annotations

import functools
import gc
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from affectgpt.core.crops import AS_PUBLISHED, Crops, folder_crops
from affectgpt.core.errors import DataError, did_you_mean, shortened
from affectgpt.core.names import check_name
from affectgpt.core.npz import read_npz
from affectgpt.core.registry import Registry
from affectgpt.core.runtime import logger
from affectgpt.core.tables import MISSING, read_table
from affectgpt.core.types import Labels, Sample
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.labels import parse_item

# label_kind of a row → function(row, split, its root folder) → name → labels, in file order
LABEL_READERS = Registry("label reader (label_kind)")
_TEXTS = ("emotion", "description", "question", "answer")  # fields of Labels


def without_collector(load: Callable) -> Callable:
    """Pause the garbage collector: it would walk hundreds of thousands of fresh, living objects again and again."""

    @functools.wraps(load)
    def paused(*args: Any, **options: Any) -> Any:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return load(*args, **options)
        finally:
            if was_on:
                gc.enable()

    return paused


@without_collector
def load_labels(row: DatasetRow, *, split: str, dataset_root: Path | str) -> dict[str, Labels]:
    """Name → labels of one split, in the order of the file that gives the names.

    Reads label files only (and, for OV-MERD+, the subtitle file, which gives the names there).
    Raises DataError naming the file, the sample and what to do; also where a reader gives another type than ``Labels``
    says, which would fail far from here.
    """
    root = Path(dataset_root) / row.root
    if split not in row.splits:
        raise DataError(f"{row.name} has no split {split!r}.{did_you_mean(split, row.splits)}")
    labels = LABEL_READERS.get(row.label_kind)(row, split, root)
    _check_labels(labels, f"{row.name}: what its label reader ({row.label_kind}) gives for {split}")
    return labels


@without_collector
def load_samples(
    row: DatasetRow, *, split: str, dataset_root: Path | str, face_channels: str | None = None
) -> list[Sample]:
    """Labels, subtitles and media paths of one split, in file order (IEMOCAP: by session, as published).

    Missing cells (``core.tables.MISSING``): no subtitle; no open-vocabulary label, which counts as neutral; an empty
    description, which whoever asks for it refuses by name.
    ``face_channels``: how the face crops are stored, by the configuration; None: as their folder's record says.

    Each media folder is listed once. A medium that is not there gets the path where it should be, so that whoever
    opens it names that place. Raises DataError as ``load_labels`` and ``stored_crops`` do, and for a sample without a
    subtitle row.
    """
    labels = load_labels(row, split=split, dataset_root=dataset_root)
    subtitles = _subtitles(row, Path(dataset_root) / row.root, labels)
    crops = stored_crops(row, dataset_root=dataset_root, face_channels=face_channels)
    return place_samples(row, labels, subtitles=subtitles, dataset_root=dataset_root, crops=crops)


def _check_labels(labels: Any, source: str) -> None:
    """DataError naming ``source`` and the sample where it is not name → ``Labels`` with values of their types."""
    if not isinstance(labels, Mapping):
        raise DataError(f"{source}: found {shortened(labels)}, expected a dict of name → Labels")
    for name, label in labels.items():
        if not isinstance(name, str) or not isinstance(label, Labels):
            raise DataError(f"{source}: found {shortened((name, label))}, expected a name and its Labels")
        check_name(name, source=source)
        texts = (label.emotion, label.description, label.question, label.answer)
        several, number = label.ovlabels, label.valence
        wrong: tuple[str, Any, str] | None = None
        for field, text in zip(_TEXTS, texts, strict=True):
            if text is not None and not isinstance(text, str):
                wrong = field, text, "a text"
        if several is not None and not (isinstance(several, tuple) and set(map(type, several)) <= {str}):
            wrong = "ovlabels", several, "a tuple of texts"
        if number is not None and (
            isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number)
        ):
            wrong = "valence", number, "a finite number"
        if wrong is not None:
            field, value, expected = wrong
            raise DataError(f"{source}: sample {name!r}: {field} is {shortened(value)}, expected {expected}, or None")


def stored_crops(row: DatasetRow, *, dataset_root: Path | str, face_channels: str | None = None) -> Crops:
    """How a data set's face folder stores its crops. Raises DataError as ``folder_crops`` does."""
    return folder_crops(
        Path(dataset_root) / row.root / row.face_dir,
        claimed=face_channels,
        claimed_by=f"datasets.{row.name.lower()}.face_channels",
    )


def place_samples(
    row: DatasetRow,
    labels: Mapping[str, Labels],
    *,
    subtitles: Mapping[str, str],
    dataset_root: Path | str,
    crops: Crops = AS_PUBLISHED,
) -> list[Sample]:
    """Samples with the paths of their media; each media folder is listed once. No subtitle: the empty one."""
    root = Path(dataset_root) / row.root
    videos = Folder(root / row.video_dir, suffixes=row.video_suffixes)
    audios = Folder(root / row.audio_dir, suffixes=(".wav",))
    faces = Folder(root / row.face_dir, suffixes=(".npy",))
    return [
        Sample(
            name=name, dataset=row.name, subtitle=subtitles.get(name, ""), labels=label,
            video=videos.find(name), audio=audios.find(name), face=faces.find(name), crops=crops,
        )
        for name, label in labels.items()
    ]  # fmt: skip


class Folder:
    """A media folder, listed once: a folder of 132,171 files is not asked file by file."""

    def __init__(self, path: Path, *, suffixes: tuple[str, ...]) -> None:
        self.path, self.suffixes = path, suffixes
        self._below: dict[str, Folder] = {}
        try:
            files = os.listdir(path)  # noqa: PTH208 - names, not paths
        except OSError:  # absent or unreadable: whoever opens a file in it says so by name
            files = []
        # ._IMG.MP4 is what macOS leaves beside a file on other disks: no clip
        self.files = frozenset(file for file in files if not file.startswith("._"))
        # macOS writes names decomposed (NFD), cameras their suffixes in capitals; tables have neither
        self._by_form = {_form(file): file for file in sorted(self.files, reverse=True)}

    def find(self, name: str) -> Path:
        """``NAME.suffix`` in the order of the suffixes, or ``NAME/NAME.suffix``; the first if none is there.

        The name may be in a folder below (``part1/0001``), which is then listed once too.
        """
        below, _, leaf = name.rpartition("/")
        if below:
            if below not in self._below:
                self._below[below] = Folder(self.path / below, suffixes=self.suffixes)
            return self._below[below].find(leaf)
        for suffix in self.suffixes:
            if name + suffix in self.files:
                return self.path / (name + suffix)
            if file := self._by_form.get(_form(name + suffix)):
                return self.path / file
        folder = name if name in self.files else self._by_form.get(_form(name))
        if folder:
            return self.path / folder / (folder + self.suffixes[0])
        return self.path / (name + self.suffixes[0])


def _form(file: str) -> str:
    """A file's name as it is looked for: composed characters (NFC), the suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", file).rpartition(".")
    return stem + dot + suffix.lower()


def _subtitles(row: DatasetRow, root: Path, names: Iterable[str]) -> dict[str, str]:
    if not row.subtitle_file:
        return {}
    path = root / row.subtitle_file
    table = read_table(path, key="name", columns=(row.subtitle_column,), doubled="last")
    subtitles = {}
    for name in names:
        if name not in table:
            raise DataError(
                f"{path}: no row for sample {name!r} of {row.name}; add one (an empty cell means no subtitle)"
            )
        subtitles[name] = _present(table[name][0])
    return subtitles


def _present(cell: str) -> str:
    """A cell of a published table; empty where it is missing."""
    return "" if cell in MISSING else cell


@LABEL_READERS.register("npz_word", "npz_index", "npz_valence")
def _npz_labels(row: DatasetRow, split: str, root: Path) -> dict[str, Labels]:
    path, key = root / str(row.label_file), row.splits[split]
    corpus = read_npz(path, key=key).get(key)
    if not isinstance(corpus, Mapping):
        raise DataError(f"{path}: no split {key!r}; it holds {', '.join(read_npz(path)) or 'nothing'}")
    allowed = row.split_rule.get(split)
    labels = {}
    for raw_name, entry in corpus.items():
        name = check_name(str(raw_name), source=f"{path}, {key}")
        if allowed is not None and name[4:5] not in tuple(allowed):  # IEMOCAP: the session's digit
            continue
        labels[name] = _npz_label(row, entry, f"{path}, {key}, sample {name!r}")
    if allowed is None:
        return labels
    return dict(sorted(labels.items(), key=lambda item: allowed.index(item[0][4])))  # by session; stable


def _npz_label(row: DatasetRow, entry: Any, where: str) -> Labels:

    field = "val" if row.label_kind == "npz_valence" else "emo"
    if not isinstance(entry, Mapping) or field not in entry:
        raise DataError(f"{where}: expected a dict with {field!r}, found {shortened(entry)}")
    value = entry[field]
    if row.label_kind == "npz_word":
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: 'emo' is {shortened(value)}, expected a word")
        return Labels(emotion=str(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {field!r} is {shortened(value)}, expected a number") from None
    if row.label_kind == "npz_valence":
        if number != number or number in (float("inf"), float("-inf")):
            raise DataError(f"{where}: 'val' is {shortened(value)}, expected a finite number")
        return Labels(valence=int(number) if isinstance(value, int) else number)
    if number not in range(len(row.classes)):
        expected = f"0 to {len(row.classes) - 1} ({', '.join(row.classes)})"
        raise DataError(f"{where}: 'emo' is {shortened(value)}, expected {expected}")
    return Labels(emotion=row.classes[int(number)])


def _column(root: Path, file: str | None, column: str) -> dict[str, str]:
    if file is None:
        return {}
    table = read_table(root / file, key="name", columns=(column,), doubled="last")
    return {name: _present(cell) for name, (cell,) in table.items()}


def _ovlabels(root: Path, file: str | None) -> dict[str, tuple[str, ...]]:
    """Name → labels; equal label lists are one object."""
    parse = functools.cache(parse_item)
    return {name: parse(text) for name, text in _column(root, file, "openset").items()}


@LABEL_READERS.register("csv_open")
def _csv_labels(row: DatasetRow, split: str, root: Path) -> dict[str, Labels]:
    if row.openset_file is None and row.reason_file is None:
        raise DataError(
            f"{row.name} has no published label file name; give yours, a table with name and reason below {root}, in "
            f"its block of the configuration: datasets: {{{row.name.lower()}: {{path: FILE}}}}"
        )
    opensets = _ovlabels(root, row.openset_file)
    reasons = _column(root, row.reason_file, "reason")
    names = list(opensets if row.openset_file else reasons)
    left_out = len(reasons.keys() - opensets.keys()) if row.openset_file else 0
    if left_out:  # as published
        logger.info(
            "%s: %d names of %s that %s lacks are left out", row.name, left_out, row.reason_file, row.openset_file
        )
    if row.names_from_subtitles and row.subtitle_file and (root / row.subtitle_file).exists():
        names = _names_of_subtitles(row, root, names)
    return {name: Labels(ovlabels=opensets.get(name), description=reasons.get(name)) for name in names}


def _names_of_subtitles(row: DatasetRow, root: Path, labelled: list[str]) -> list[str]:
    subtitle_path = root / row.subtitle_file
    names = list(read_table(subtitle_path, key="name", columns=(row.subtitle_column,), doubled="last"))
    known, given = set(names), set(labelled)
    for name in names:
        if name not in given:
            raise DataError(
                f"{root / str(row.openset_file)}: no label for sample {name!r}, which {subtitle_path} lists"
            )
    for name in labelled:
        if name not in known:
            raise DataError(
                f"{root / str(row.openset_file)}: label for an unknown sample {name!r}; {subtitle_path} has no such row"
            )
    return names


@LABEL_READERS.register("names_only")
def _candidates(row: DatasetRow, split: str, root: Path) -> dict[str, Labels]:
    path, truth_path = root / str(row.label_file), root / str(row.openset_file)
    if split == "train":  # those that people have labelled
        return {name: Labels(ovlabels=labels) for name, labels in _ovlabels(root, row.openset_file).items()}
    names = read_table(path, key="name", columns=(), doubled="last")
    truth = _ovlabels(root, row.openset_file) if row.openset_file and truth_path.exists() else {}
    for name in truth:
        if name not in names:
            raise DataError(f"{truth_path}: label for an unknown sample {name!r}; {path} has no such row")
    return {name: Labels(ovlabels=truth.get(name)) for name in names}
