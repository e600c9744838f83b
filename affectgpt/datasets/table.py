"""One row per data set: where its files are, what its labels are, and how it is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.core.registry import Registry

MELD_EMOTIONS = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
IEMOCAP_EMOTIONS = ("happy", "sad", "neutral", "anger")
ONEHOT = ("onehot_w_candidates", "onehot_wo_candidates")
VALENCE = ("valence", "sentiment")
CUSTOM = "custom"  # label_kind of a user's own set
OPEN = ("description", "ovlabel")


HYBRID = "hybird"  # label_type of a block, in the published spelling: one of the set's types, drawn for each sample


@dataclass(frozen=True)
class DatasetRow:
    """The files of one data set (relative to its root) and what they hold.

    ``label_kind`` names the reader (``datasets.label_files.LABEL_READERS``, where others can be added): ``npz_word``
    (``emo`` is a word), ``npz_index`` (``emo`` indexes ``classes``), ``npz_valence`` (``val``), ``csv_open``
    (name/openset and name/reason tables), ``names_only``, ``custom`` (a user's).
    ``splits`` maps a split to the key in the label file (npz) or is unused (CSV); ``counts`` to its expected size.
    """

    name: str
    root: str
    task: str  # basic, sentiment, fine-grained or another metric's, which scores it; train: nothing does
    label_kind: str
    label_types: tuple[str, ...]  # what label_type hybird draws from
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    label_file: str | None = None
    classes: tuple[str, ...] = ()
    openset_file: str | None = None  # CSV with name, openset
    reason_file: str | None = None  # CSV with name, reason
    subtitle_file: str = "transcription-engchi-polish.csv"  # empty: the set has no subtitles
    subtitle_column: str = "english"
    names_from_subtitles: bool = False  # the subtitle file gives the names and their order
    video_dir: str = "video"
    video_suffixes: tuple[str, ...] = (".mp4",)
    audio_dir: str = "audio"
    face_dir: str = "openface_face"
    split_rule: Mapping[str, str] = field(default_factory=dict)  # IEMOCAP: split → allowed 5th characters of the name
    without: tuple[str, ...] = ()  # data sets whose test clips are no part of the training split, by name and by file
    custom_columns: Mapping[str, str] = field(default_factory=dict)  # of a user's set: role → heading


def _npz(
    name: str, root: str, kind: str, test: str, count: int, task: str, types: tuple[str, ...], **more
) -> DatasetRow:
    return DatasetRow(
        name=name, root=root, task=task, label_kind=kind, label_types=types,
        splits={"train": "train_corpus", "test": test}, counts={"test": count}, **{"label_file": "label.npz", **more},
    )  # fmt: skip


_MER2025: dict[str, Any] = {
    "root": "mer2025-dataset",
    "subtitle_file": "subtitle_chieng.csv",
    "label_kind": "csv_open",
    "label_types": OPEN,
}
_ROWS = (
    _npz("MER2023", "mer2023-dataset-process", "npz_word", "test1_corpus", 411, "basic", ONEHOT,
         label_file="label-6way.npz", video_suffixes=(".mp4", ".avi")),
    _npz("MER2024", "mer2024-dataset-process", "npz_word", "test1_corpus", 1169, "basic", ONEHOT,
         label_file="label-6way.npz", video_suffixes=(".mp4", ".avi"),
         subtitle_file="transcription_merge.csv", subtitle_column="chinese"),
    _npz("MELD", "meld-process", "npz_index", "test_corpus", 2610, "basic", ONEHOT,
         classes=MELD_EMOTIONS, video_dir="subvideo", audio_dir="subaudio"),
    DatasetRow(
        name="IEMOCAPFour", root="iemocap-process", task="basic", label_kind="npz_index", label_types=ONEHOT,
        splits={"train": "whole_corpus", "test": "whole_corpus"}, counts={"test": 1241},
        label_file="label_4way.npz", classes=IEMOCAP_EMOTIONS, split_rule={"train": "1234", "test": "5"},
        video_dir="subvideo-tgt", video_suffixes=(".avi",), audio_dir="subaudio"),
    _npz("CMUMOSI", "cmumosi-process", "npz_valence", "test_corpus", 686, "sentiment", VALENCE,
         video_dir="subvideo", audio_dir="subaudio"),
    _npz("CMUMOSEI", "cmumosei-process", "npz_valence", "test_corpus", 4659, "sentiment", VALENCE,
         video_dir="subvideo_new", audio_dir="subaudio"),
    _npz("SIMS", "sims-process", "npz_valence", "test_corpus", 457, "sentiment", VALENCE),
    _npz("SIMSv2", "simsv2-process", "npz_valence", "test_corpus", 1034, "sentiment", VALENCE, video_dir="video_new"),
    DatasetRow(
        name="OVMERDPlus", root="ovmerdplus-process", task="fine-grained", label_kind="csv_open",
        label_types=("ovlabel",), splits={"test": "all"}, counts={"test": 532}, openset_file="ovlabel.csv",
        subtitle_file="subtitle_eng.csv", subtitle_column="sentence", names_from_subtitles=True),
    DatasetRow(name="MERCaption", task="train", splits={"train": "all"}, counts={"train": 115_595}, **_MER2025),
    DatasetRow(
        name="MERCaptionPlus", task="train", splits={"train": "all"}, counts={"train": 31_327},
        openset_file="track2_train_mercaptionplus.csv", reason_file="track3_train_mercaptionplus.csv", **_MER2025),
    DatasetRow(
        name="OVMERD", task="train", splits={"train": "all"}, counts={"train": 332},
        openset_file="track2_train_ovmerd.csv", reason_file="track3_train_ovmerd.csv", **_MER2025),
    DatasetRow(
        name="MER2025OV", task="fine-grained", splits={"train": "human", "test": "all"}, counts={"test": 20_000},
        without=("OVMERDPlus",),  # its human-labelled clips: 1,200, of which OV-MERD+ tests on 200
        label_file="track_all_candidates.csv", openset_file="track2_test.csv",
        **{**_MER2025, "label_kind": "names_only", "label_types": ("ovlabel",)}),
)  # fmt: skip

DATASETS = Registry("data set", any_case=True)
for _row in _ROWS:
    DATASETS.register(_row.name)(_row)
MER_UNIBENCH = ("MER2023", "MER2024", "MELD", "IEMOCAPFour", "CMUMOSI", "CMUMOSEI", "SIMS", "SIMSv2", "OVMERDPlus")


def get_row(name: str, *, others: Iterable[str] = ()) -> DatasetRow:
    """The row of a data set, by its name in any case; DataError with the nearest name (or of ``others``) otherwise."""
    if name in DATASETS:
        return DATASETS.get(name)
    known = [*(row.name for row in DATASETS.values()), *others]
    raise DataError(f"unknown data set {name!r}.{did_you_mean(name.strip(), known)}")


def parse_names(text: str, *, custom: Iterable[str] = ()) -> list[str]:
    """Data set names from ``A,B`` or ``inferenceData`` (the nine of MER-UniBench), in canonical spelling.

    ``custom``: names that the table lacks and that are taken as they are. Raises DataError with the nearest name.
    """
    custom = list(custom)
    others = {name.lower(): name for name in custom if name.lower() not in DATASETS}
    names: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        if part.lower() in ("inferencedata", "all"):
            names += [n for n in MER_UNIBENCH if n not in names]
        elif part:
            name = others.get(part.lower()) or get_row(part, others=custom).name
            names += [n for n in [name] if n not in names]
    if not names:
        raise DataError("no data set named; give names separated by commas, or inferenceData")
    return names
