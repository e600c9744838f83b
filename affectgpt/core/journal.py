"""Finished items of a long job, kept line by line, so that a killed job resumes where it stopped."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.files import close_locked, lock_descriptor, naming, parse_json, write_text
from affectgpt.core.runtime import logger

_SYNC_ITEMS = 64
_SYNC_SECONDS = 2.0
_LONGEST_HEADER = 1 << 16  # bytes


class Journal:
    """An append-only file of JSON lines: answers, replies, the index of stored features.

    The first line holds ``key``, a hash of everything the items depend on; a journal with another key is begun again.
    The last entry of a name counts. Each line has a checksum: one that was damaged is left out, with a log line, and
    its item is done again.
    Each item is written to the file at once (a killed process loses none) and fsynced in groups (a power cut loses
    the last two seconds). A line torn by the cut is dropped on opening. One process at a time: a lock is held where the
    file system has locks.
    """

    def __init__(self, path: str | os.PathLike[str], *, key: str) -> None:
        """Open or begin the journal; ``entries`` holds what an earlier job finished.

        Raises AffectGPTError when another process holds it.
        """
        self.path = Path(path)
        self.entries: dict[str, Any] = {}
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not lock_descriptor(self._fd, self.path, wait=False):
                raise AffectGPTError(
                    f"{self.path}: another process is writing this file; wait for it or end it, then run again"
                )
            self.entries, end, damaged = _parse(self.path.read_bytes(), key)
            if damaged:
                logger.warning("%s: line %d is damaged; what it held is done again", self.path, damaged)
            if end == 0 and self.path.stat().st_size:
                logger.info("%s: begun under other settings, starting again", self.path)
            os.ftruncate(self._fd, end)
            if end == 0:
                self._write(_header(key))
        except BaseException:
            close_locked(self._fd)
            raise

    @staticmethod
    def peek_key(path: str | os.PathLike[str]) -> str | None:
        """The key of the journal at ``path``, or None when there is no readable one."""
        try:
            with Path(path).open("rb") as handle:
                header = parse_json(handle.readline(_LONGEST_HEADER))
        except (OSError, ValueError):
            return None
        return header.get("key") if isinstance(header, dict) and header.get("journal") == 1 else None

    @staticmethod
    def read(path: str | os.PathLike[str], *, key: str, strict: bool = False) -> dict[str, Any]:
        """Return the content of the journal at ``path``, without a lock; nothing when there is none or it has another
        key.

        A damaged line is left out; with ``strict`` it raises ValueError naming the line, unless that is the last one,
        torn by a kill.
        """
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            return {}
        entries, _, damaged = _parse(data, key)
        if strict and damaged:
            raise ValueError(f"line {damaged}")
        return entries

    @staticmethod
    def write(path: str | os.PathLike[str], *, key: str, entries: Mapping[str, Any]) -> None:
        """Write a whole journal atomically."""
        lines = [_header(key), *(_record(name, value) for name, value in entries.items())]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _write(self, record: dict[str, Any]) -> None:
        data = (json.dumps(record) + "\n").encode()
        with naming(self.path):  # a full disk: the torn line is dropped when the journal is opened again
            while data:
                data = data[os.write(self._fd, data) :]

    def add(self, name: str, value: Any) -> None:
        """Keep one finished item (``value``: anything JSON holds)."""
        self._write(_record(name, value))
        self.entries[name] = value
        self._unsynced += 1
        if self._unsynced >= _SYNC_ITEMS or time.monotonic() - self._synced_at > _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        with naming(self.path):
            os.fsync(self._fd)
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close; the file stays for the next attempt."""
        if self._fd >= 0:
            try:
                self._sync()
            finally:
                close_locked(self._fd)
                self._fd = -1

    def remove(self) -> None:
        """Close and delete: the job is done and its file is written."""
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _header(key: str) -> dict[str, Any]:
    return {"journal": 1, "key": key}


def _record(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "crc": zlib.crc32(json.dumps([name, value]).encode())}


def _parse(data: bytes, key: str) -> tuple[dict[str, Any], int, int]:
    """The entries of the whole lines, the offset behind the last line (0: another key, or no journal), and the number
    of the first damaged line (0: none; the last one may be torn)."""
    entries: dict[str, Any] = {}
    end = damaged = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if number == 1:
            if not isinstance(record, dict) or record.get("journal") != 1 or record.get("key") != key:
                return {}, 0, 0
        elif isinstance(record, dict) and record == _record(record.get("name", ""), record.get("value")):
            entries[record["name"]] = record["value"]
        else:
            damaged = damaged or number
        end += len(line)
    return entries, end, damaged
