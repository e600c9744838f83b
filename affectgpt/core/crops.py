"""Storage of face crops in a folder, and the record in it that describes it.

Crops of the published data sets were written by OpenCV: blue, green, red. A folder whose crops are otherwise says so
in ``crops.json``, as ``affectgpt preprocess`` writes it: ``{"channels": "rgb", "framing": "loose"}``. Framing:
``loose`` and ``tight`` as ``affectgpt preprocess`` makes them, ``openface`` as OpenFace does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import DataError
from affectgpt.core.files import write_json

if TYPE_CHECKING:
    import numpy as np

RECORD = "crops.json"
CHANNELS = ("bgr", "rgb")
FRAMINGS = ("loose", "tight", "openface")
PUBLISHED = "bgr"  # the order of the published face arrays, which nothing else says
_OF_OLD = "preprocess.json"  # beside openface_face, where earlier versions of ``affectgpt preprocess`` left the record
_LARGEST = 1 << 16  # bytes of a record


@dataclass(frozen=True, slots=True)
class Crops:
    """How face crops are stored: channel order, framing (None: not known), and the folder they are in (if any)."""

    channels: str = PUBLISHED
    framing: str | None = None
    folder: Path | None = None


AS_PUBLISHED = Crops()


def folder_crops(folder: Path | str, *, claimed: str | None = None, claimed_by: str = "") -> Crops:
    """Return how a face folder stores its crops: by its record, else as ``claimed`` by the key ``claimed_by``, else
    BGR.

    Raises DataError when the record cannot be read, says a word that nobody knows, or contradicts the claim.
    """
    folder = Path(folder)
    path, record = read_record(folder)
    if record is None:
        return Crops(claimed or PUBLISHED, None, folder)
    if claimed is not None and claimed != record["channels"]:
        raise DataError(
            f"{path} says that the face crops are stored as {record['channels']}, {claimed_by} says {claimed}: correct "
            f"the record, or remove {claimed_by}"
        )
    return Crops(record["channels"], record.get("framing"), folder)


def file_crops(path: Path | str, *, claimed: str | None = None, claimed_by: str = "") -> Crops:
    """``folder_crops`` of the folder that one face file is in (``FOLDER/NAME.npy`` or ``FOLDER/NAME/NAME.npy``)."""
    path = Path(path)
    folder = path.parent
    if folder.name == path.stem and not (folder / RECORD).is_file():
        folder = folder.parent
    return folder_crops(folder, claimed=claimed, claimed_by=claimed_by)


def read_record(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """A folder's record and the file it was read from; None where there is none. Raises DataError naming the file."""
    path = folder / RECORD
    record = _read(path)
    if record is not None:
        _check(path, record)
        return path, record
    real = folder.resolve()  # a link to another data set's crops
    if real.name == "openface_face":
        old = _read(real.parent / _OF_OLD)
        if old is not None and "channels" in old:
            _check(real.parent / _OF_OLD, old)
            return real.parent / _OF_OLD, {"framing": "loose", **old}
    return path, None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a folder's record; it replaces the one that earlier versions left beside the folder."""
    write_json(folder / RECORD, dict(record))
    if folder.name == "openface_face":
        (folder.parent / _OF_OLD).unlink(missing_ok=True)


def in_order(crops: np.ndarray, *, stored: str, wanted: str) -> np.ndarray:
    """Crops ``[..., 3]`` with their channels in the wanted order."""
    import numpy as np

    return crops if stored == wanted else np.ascontiguousarray(crops[..., ::-1])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as handle:
            content = handle.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        record = json.loads(content)
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f'{path}: cannot be read as the record of a face folder ({error}); expected {{"channels": "bgr"}} or '
            '{"channels": "rgb"}'
        ) from error
    return record


def _check(path: Path, record: Mapping[str, Any]) -> None:
    for key, allowed, needed in (("channels", CHANNELS, True), ("framing", FRAMINGS, False)):
        if (needed or record.get(key) is not None) and record.get(key) not in allowed:
            found = f"is {record[key]!r}" if key in record else "is missing"
            raise DataError(f"{path}: {key} {found}; allowed: {', '.join(allowed)}")
