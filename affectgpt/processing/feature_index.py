"""The index of a shard of stored features: a journal of name → entry, and what earlier versions wrote in its place.

An entry has the number of its ``record`` in the data file, ``flags``, ``crc32``, and of which file it was computed
(``bytes``, ``mtime``, ``parts``); or ``failed``, why there is no record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.core.files import locked, parse_json
from affectgpt.core.journal import Journal

_INDEX = "features"  # key of the journal: what the features depend on is in key.json
LOST = None  # an entry whose record is not there any more: its sample is encoded again


def indices(folder: Path) -> list[Path]:
    """The indices of a folder's shards."""
    return sorted(folder.glob("shard-*.jsonl"))


def read_index(path: Path) -> dict[str, dict[str, Any]]:
    """Name → entry of a shard's index, in this or the earlier form; what a kill left of the last line is not one.

    Raises DataError naming the file.
    """
    try:
        is_journal = Journal.peek_key(path) is not None
        found = Journal.read(path, key=_INDEX, strict=True) if is_journal else _earlier_index(path)
        for name, entry in found.items():
            if entry is not LOST:
                _check_entry(name, entry)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove the shard and compute it again") from error
    return {name: entry for name, entry in found.items() if entry is not LOST}


def _check_entry(name: Any, entry: Any) -> None:
    if "failed" in entry:
        is_whole = isinstance(entry["failed"], str)
    else:
        is_whole = isinstance(entry["flags"], list) and isinstance(entry["record"], int) and entry["record"] >= 0
    numbers = isinstance(entry.get("bytes"), int | None) and isinstance(entry.get("crc32"), int | None)
    if not (is_whole and numbers and isinstance(name, str)):
        raise ValueError(f"the entry of {name!r}")


def _earlier_index(path: Path) -> dict[str, dict[str, Any]]:
    """An index as earlier versions wrote it, an object per line; its records are in the order of its lines."""
    entries: dict[str, dict[str, Any]] = {}
    record = 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = parse_json(line)
            name = entry.pop("name")
            if "failed" not in entry:
                entry["record"] = record
                record += 1
            _check_entry(name, entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"line {number}") from None
        if "failed" not in entry or name not in entries:  # as it was read: a record counts more than a failure
            entries[name] = entry
    return entries


def open_index(path: Path) -> Journal:
    """A shard's journal, to be added to; an index of an earlier version becomes one.

    Raises DataError naming a damaged file, AffectGPTError when another process writes it.
    """
    if path.exists():
        entries = read_index(path)  # a journal that is opened drops what follows a damaged line
        if Journal.peek_key(path) is None:
            with locked(path, wait=False) as is_alone:
                if is_alone:  # else the journal says that another process writes
                    Journal.write(path, key=_INDEX, entries=entries)
    return Journal(path, key=_INDEX)
