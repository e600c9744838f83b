"""A user's own data set: a block under ``datasets:`` instead of a row of the table.

```yaml
datasets:
  mine:                                    # any name that the table does not have
    path: mine/labels.csv                  # .csv, .xlsx, .json or .jsonl
    test_path: mine/test.csv
    task: fine-grained
    columns: {name: clip, subtitle: text, description: why, ovlabel: labels}
    folders: {video: mine/video, audio: mine/audio, face: mine/faces}
    label_type: hybird
```

Relative paths of a block start at ``paths.dataset_root``; absolute ones are taken as they are.
``test_path`` names a second file, with clips to answer (``--dataset mine``). Answering reads no label of it; scoring
reads the one that ``task`` (a metric of evaluation/metrics) takes as the truth.
Columns: ``name``, ``subtitle``; labels ``emotion``, ``ovlabel``, ``description``, ``valence``; ``question`` with
``answer``, taken verbatim, or ``dialogue``, a list of both; ``caption``, with a question of a few wordings. ``file``
names the media file where it is another (several questions about one image). Folders: ``video``, ``audio``, ``face``,
``image``. ``face_channels`` says how the face crops are stored, where their folder has no crops.json that does (see
core/crops).

The sets of the paper's table 3, from the files as they are published (each with ``path`` and a media folder):

| set | data_type, face_or_frame, label_type | columns |
|---|---|---|
| MiniGPT-4 (filter_cap.json) | image, image, qa | name: image_id, caption: caption |
| LLaVA, EmoVIT | image, image, qa | file: image, dialogue: conversations |
| VideoChat (videochat_instruct_11k.json) | video, frameonly, qa | file: video, dialogue: QA |
| WavCaps (json_files) | audio, audioonly, qa | name: id, caption: caption |
| MAFW (a table) | video, any with audio and face, description | name, description: their headings |
| MERR-Coarse, MERR-Fine | video, the same, description | description: caption, smp_reason_caption |
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.crops import AS_PUBLISHED, Crops, folder_crops
from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.core.names import check_below
from affectgpt.core.seeds import seeded
from affectgpt.core.types import SOUND_SUFFIXES, VIDEO_SUFFIXES, Labels, Sample
from affectgpt.datasets.annotations import DIALOGUE, read_annotations
from affectgpt.datasets.label_files import LABEL_READERS, Folder, without_collector
from affectgpt.datasets.table import CUSTOM, DatasetRow
from affectgpt.evaluation.labels import parse_item

if TYPE_CHECKING:
    from affectgpt.config.schema import DatasetConfig

_LABELS: Mapping[str, tuple[str, ...]] = {  # column → label types that it gives
    "emotion": ("onehot_w_candidates", "onehot_wo_candidates"),
    "ovlabel": ("ovlabel",),
    "description": ("description",),
    "valence": ("valence", "sentiment"),
    "answer": ("qa",),
    "caption": ("qa",),
    DIALOGUE: ("qa",),
}
_COLUMNS = ("name", "subtitle", "file", "question", *_LABELS)
_SUFFIXES = {
    "video": VIDEO_SUFFIXES,
    "audio": SOUND_SUFFIXES,
    "face": (".npy",),
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp"),
}
_ALL_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_DESCRIBE = {
    "image": (
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    ),
    "audio": (
        "Describe this audio in detail.",
        "Listen to this audio and describe what you hear.",
        "Please provide a detailed description of this audio.",
        "Could you describe the contents of this audio for me?",
    ),
    "video": (
        "Describe this video in detail.",
        "Watch this video and describe what you notice.",
        "Please provide a detailed description of the video.",
        "Could you describe the contents of this video for me?",
    ),
}


def custom_label_types(key: str, spec: DatasetConfig) -> tuple[str, ...]:
    """The label types that a block's columns give. Raises ConfigError naming the key where they give none."""
    types = tuple(dict.fromkeys(t for column in spec.columns for t in _LABELS.get(column, ())))
    if not types:
        raise ConfigError(f"datasets.{key}.columns: nothing to learn; give one of {', '.join(_LABELS)}")
    return types


def check_keys(key: str, spec: DatasetConfig, *, where: Callable[[str], str]) -> None:
    """Raise ConfigError for an unknown column or folder, or columns that do not go together.

    ``where``: dotted key → the key with its place, for messages (``Config.where``).
    """
    for kind, given, known in (("columns", spec.columns, _COLUMNS), ("folders", spec.folders, _SUFFIXES)):
        for name in given:
            if name not in known:
                place = where(f"datasets.{key}.{kind}.{name}")
                raise ConfigError(f"{place}: unknown {name!r}.{did_you_mean(name, known)}")
    if ("question" in spec.columns) != ("answer" in spec.columns):
        raise ConfigError(f"{where(f'datasets.{key}.columns')}: question and answer belong together")
    if len([role for role in ("answer", "caption", DIALOGUE) if role in spec.columns]) > 1:
        place = where(f"datasets.{key}.columns")
        raise ConfigError(f"{place}: give question and answer, or caption, or dialogue, not two of them")


def _columns(spec: DatasetConfig) -> dict[str, str]:
    """Role → heading."""
    return {"name": "name", **spec.columns}


def custom_row(key: str, spec: DatasetConfig, *, task: str, truth: str) -> DatasetRow:
    """A block as a row of the table, whose test labels are the column ``truth`` (a role such as ``emotion``).

    Raises ConfigError naming the key when the block does not say which column that is.
    """
    columns = _columns(spec)
    file = _file_of(key, spec, "test")
    if truth not in columns:
        raise ConfigError(
            f"datasets.{key}.task is {task}: which column of {file} holds the truth? Say so with "
            f"datasets.{key}.columns.{truth}"
        )
    return DatasetRow(
        name=key, root="", task=task, label_kind=CUSTOM, label_types=(), splits={"test": "all"}, counts={},
        label_file=file, custom_columns={"name": columns["name"], truth: columns[truth]},
    )  # fmt: skip


@LABEL_READERS.register(CUSTOM)
def _custom_truth(row: DatasetRow, split: str, root: Path) -> dict[str, Labels]:
    """Name → the true label of the clips to answer, in file order; where the cell is empty, no label."""
    path = root / str(row.label_file)
    return {
        name: _labels(cells, "video", name, f"{path}, sample {name!r}")
        for name, cells in read_annotations(path, row.custom_columns)
    }


def _file_of(key: str, spec: DatasetConfig, split: str) -> str:
    file = spec.path if split == "train" else spec.test_path or spec.path
    if not file:
        wanted = "path" if split == "train" else "test_path"
        raise ConfigError(f"datasets.{key}: has no {split} split; name its file as datasets.{key}.{wanted}")
    return file


@without_collector
def load_custom_samples(
    key: str,
    spec: DatasetConfig,
    *,
    dataset_root: Path | str,
    split: str = "train",
    labels: bool = True,
    crops: Crops = AS_PUBLISHED,
) -> list[Sample]:
    """The samples of a block in file order: ``train`` those of ``path``, ``test`` of ``test_path`` (else ``path``).

    Without ``labels`` a file needs no column of them. One valence with a point makes all of them floats, as in a table.
    Raises ConfigError naming the key, DataError naming file and sample.
    """
    columns = _columns(spec)
    if labels:
        custom_label_types(key, spec)
    root = Path(dataset_root)
    path = root / _file_of(key, spec, split)
    wanted = {role: heading for role, heading in columns.items() if labels or role in ("name", "subtitle", "file")}
    folders = {medium: Folder(root / folder, suffixes=_SUFFIXES[medium]) for medium, folder in spec.folders.items()}
    samples = []
    for name, cells in read_annotations(path, wanted):
        where = f"{path}, sample {name!r}"
        stem = _stem(cells.get("file") or name, where)
        samples.append(
            Sample(
                name=name,
                dataset=key,
                subtitle=cells.get("subtitle", ""),
                labels=_labels(cells, spec.data_type, name, where),
                crops=crops,
                **{medium: folder.find(stem) for medium, folder in folders.items()},
            )
        )
    if any(isinstance(sample.labels.valence, float) for sample in samples):
        samples = [replace(s, labels=_with_float(s.labels)) for s in samples]
    return samples


def _with_float(labels: Labels) -> Labels:
    return labels if labels.valence is None else replace(labels, valence=float(labels.valence))


def custom_crops(key: str, spec: DatasetConfig, *, dataset_root: Path | str) -> Crops:
    """How a block's face folder stores its crops. Raises DataError as ``folder_crops`` does."""
    if "face" not in spec.folders:
        return AS_PUBLISHED
    folder = Path(dataset_root) / spec.folders["face"]
    return folder_crops(folder, claimed=spec.face_channels, claimed_by=f"datasets.{key}.face_channels")


def _labels(cells: Mapping[str, str], data_type: str, name: str, where: str) -> Labels:
    """An empty or blank cell is no label, but an empty ``ovlabel`` is the empty list (neutral)."""
    cells = {role: text if text.strip() else "" for role, text in cells.items()}
    valence: float | None = None
    if cells.get("valence"):
        try:
            whole = _INTEGER.fullmatch(cells["valence"].strip())
            valence = int(cells["valence"]) if whole else float(cells["valence"])
        except ValueError:
            valence = math.nan
        if not math.isfinite(valence):
            raise DataError(f"{where}: valence is {cells['valence']!r}, expected a finite number")
    question, answer = cells.get("question"), cells.get("answer")
    if cells.get("caption"):
        question, answer = seeded("caption", name).choice(_DESCRIBE[data_type]), cells["caption"]
    if answer and not question:
        raise DataError(f"{where}: an answer without a question")
    return Labels(
        emotion=cells.get("emotion") or None,
        ovlabels=parse_item(cells["ovlabel"].strip()) if "ovlabel" in cells else None,
        description=cells.get("description") or None,
        valence=valence,
        question=question or None,
        answer=answer or None,
    )


def _stem(file: str, where: str) -> str:
    """A file cell without its suffix; it may be in a folder below, never above."""
    stem, suffix = os.path.splitext(check_below(file, source=where, folder="the media folder"))  # noqa: PTH122 - 300,000 of them
    return stem if suffix.lower() in _ALL_SUFFIXES else file
