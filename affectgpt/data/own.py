"""A user's own data set: a block under ``datasets:`` instead of a row of the table.

```yaml
datasets:
  mine:                                    # any name that the table does not have
    path: mine/labels.csv                  # .csv, .json or .jsonl; relative to paths.dataset_root
    columns: {name: clip, subtitle: text, description: why, ovlabel: labels}
    folders: {video: mine/video, audio: mine/audio, face: mine/faces}
    label_type: hybird
```

``test_path`` names a second file, with clips to answer (``--dataset mine``): of it no label is read.
Columns: ``name`` (needed), ``subtitle``; labels ``emotion``, ``ovlabel``, ``description``, ``valence``; ``question``
with ``answer``, taken verbatim; ``caption``, with a question of a few wordings. ``file`` names the media file where it
is another (several questions about one image). Folders: ``video``, ``audio``, ``face``, ``image``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectgpt.config.schema import DatasetConfig
from affectgpt.core.errors import ConfigError, DataError, did_you_mean
from affectgpt.core.types import Labels, Sample
from affectgpt.data.csvfile import check_name, read_table
from affectgpt.data.readers import Folder, parse_label_list
from affectgpt.data.seeds import seeded

_LABELS: Mapping[str, tuple[str, ...]] = {  # column → label types that it gives
    "emotion": ("onehot_w_candidates", "onehot_wo_candidates"),
    "ovlabel": ("ovlabel",),
    "description": ("description",),
    "valence": ("valence", "sentiment"),
    "answer": ("qa",),
    "caption": ("qa",),
}
_COLUMNS = ("name", "subtitle", "file", "question", *_LABELS)
_SUFFIXES = {
    "video": (".mp4", ".avi", ".mkv", ".mov", ".webm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg"),
    "face": (".npy",),
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp"),
}
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
        "Please provide a detailed description of the sound.",
        "Could you describe the contents of this audio for me?",
    ),
    "video": (
        "Describe this video in detail.",
        "Watch this video and describe what you notice.",
        "Please provide a detailed description of the video.",
        "Could you describe the contents of this video for me?",
    ),
}


def own_label_types(key: str, spec: DatasetConfig) -> tuple[str, ...]:
    """The label types that a block's columns give, and a check of the block.

    Raises ConfigError naming the key: no path, unknown column or folder, no name, nothing to learn.
    """
    where = f"datasets.{key}"
    if not spec.path:
        raise ConfigError(f"{where}: is no data set of the table; give its label file as {where}.path")
    columns = _columns(where, spec)
    types = tuple(dict.fromkeys(t for column in columns for t in _LABELS.get(column, ())))
    if not types:
        raise ConfigError(f"{where}.columns: nothing to learn; give one of {', '.join(_LABELS)}")
    return types


def _columns(where: str, spec: DatasetConfig) -> dict[str, str]:
    """Role → heading, checked. Raises ConfigError naming the key."""
    check_name(where.partition(".")[2], source="datasets:")  # results and stored features have folders of this name
    for kind, given, known in (("columns", spec.columns, _COLUMNS), ("folders", spec.folders, _SUFFIXES)):
        for name in given:
            if name not in known:
                raise ConfigError(f"{where}.{kind}: unknown {name!r}.{did_you_mean(name, known)}")
    columns = {"name": "name", **spec.columns}
    if ("question" in columns) != ("answer" in columns):
        raise ConfigError(f"{where}.columns: question and answer belong together")
    if "answer" in columns and "caption" in columns:
        raise ConfigError(f"{where}.columns: give question and answer, or caption, not both")
    return columns


def load_own_samples(
    key: str, spec: DatasetConfig, *, dataset_root: Path | str, split: str = "train", labels: bool = True
) -> list[Sample]:
    """The samples of a block in file order: ``train`` those of ``path``, ``test`` of ``test_path`` (else ``path``).

    Without ``labels`` a file needs no column of them.
    Raises ConfigError naming the key, DataError naming file and sample.
    """
    columns = _columns(f"datasets.{key}", spec)
    if labels:
        own_label_types(key, spec)
    file = spec.path if split == "train" else spec.test_path or spec.path
    if not file:
        raise ConfigError(f"datasets.{key}: is no data set of the table; give its file as datasets.{key}.test_path")
    root = Path(dataset_root)
    path = root / file
    wanted = [role for role in columns if role != "name" and (labels or role in ("subtitle", "file"))]
    table = _read(path, key=columns["name"], columns=tuple(columns[role] for role in wanted))
    folders = {medium: Folder(root / folder, suffixes=_SUFFIXES[medium]) for medium, folder in spec.folders.items()}
    samples = []
    for name, values in table.items():
        cells = dict(zip(wanted, values, strict=True))
        where = f"{path}, sample {name!r}"
        stem = _stem(cells.get("file") or name, where)
        samples.append(
            Sample(
                name=name,
                dataset=key,
                subtitle=cells.get("subtitle", ""),
                labels=_labels(cells, spec.data_type, name, where),
                **{medium: folder.find(stem) for medium, folder in folders.items()},
            )
        )
    return samples


def _labels(cells: Mapping[str, str], data_type: str, name: str, where: str) -> Labels:
    """An empty cell is no label, but an empty ``ovlabel`` is the empty list (neutral)."""
    valence = None
    if cells.get("valence"):
        try:
            valence = float(cells["valence"])
        except ValueError:
            valence = math.nan
        if not math.isfinite(valence):
            raise DataError(f"{where}: valence is {cells['valence']!r}, expected a finite number")
    question, answer = cells.get("question"), cells.get("answer")
    if cells.get("caption"):
        question, answer = seeded("caption", name).choice(_DESCRIBE[data_type]), cells["caption"]
    return Labels(
        emotion=cells.get("emotion") or None,
        ovlabels=parse_label_list(cells["ovlabel"]) if "ovlabel" in cells else None,
        description=cells.get("description") or None,
        valence=valence,
        question=question or None,
        answer=answer or None,
    )


def _stem(file: str, where: str) -> str:
    """A file cell without its suffix; it may lie in a folder below, never above."""
    parts = Path(file).parts
    if not parts or Path(file).is_absolute() or ".." in parts:
        raise DataError(f"{where}: file {file!r} must lie below the media folder")
    known = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}
    return str(Path(file).with_suffix("")) if Path(file).suffix.lower() in known else file


def _read(path: Path, *, key: str, columns: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    if path.suffix.lower() == ".csv":
        return read_table(path, key=key, columns=columns)
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(f"{path}: expected a .csv, .json or .jsonl file")
    table: dict[str, tuple[str, ...]] = {}
    for number, record in enumerate(_records(path), start=1):
        for column in (key, *columns):
            if not isinstance(record, dict) or column not in record:
                known = record if isinstance(record, dict) else ()
                raise DataError(f"{path}, record {number}: no {column!r}.{did_you_mean(column, known)}")
        name = check_name(str(record[key]), source=f"{path}, record {number}")
        if name in table:
            raise DataError(f"{path}, record {number}: sample {name!r} is there twice; remove one")
        table[name] = tuple("" if record[c] is None else str(record[c]) for c in columns)
    return table


def _records(path: Path) -> list[Any]:
    """The objects of a JSON list, of ``{"annotations": [...]}``, or of one JSON text a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no UTF-8 JSON ({error})") from error
    content = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of objects, or an object with such a list under 'annotations'")
    return content
