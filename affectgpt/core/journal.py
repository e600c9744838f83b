"""Finished items of a long job, kept line by line, so that a killed job resumes where it stopped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.files import naming
from affectgpt.core.runtime import logger

_SYNC_ITEMS = 64
_SYNC_SECONDS = 2.0


class Journal:
    """An append-only file of JSON lines beside the file that the job will write.

    The first line holds ``key``, a hash of everything the items depend on; a journal with another key is begun again.
    Each item is written to the file at once (a killed process loses none) and fsynced in groups (a power cut loses
    the last two seconds). A line torn by the cut is dropped on opening. One process at a time: a lock is held.
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
            self._lock()
            end = self._load(key)
            os.ftruncate(self._fd, end)
            if end == 0:
                self._write({"journal": 1, "key": key})
        except BaseException:
            os.close(self._fd)
            raise

    @staticmethod
    def peek_key(path: str | os.PathLike[str]) -> str | None:
        """The key of the journal at ``path``, or None when there is no readable one."""
        try:
            with Path(path).open("rb") as handle:
                header = json.loads(handle.readline())
        except (OSError, ValueError):
            return None
        return header.get("key") if isinstance(header, dict) else None

    @staticmethod
    def read(path: str | os.PathLike[str], *, key: str) -> dict[str, Any]:
        """What the journal at ``path`` holds, without a lock; nothing when there is none or it has another key."""
        try:
            return _parse(Path(path).read_bytes(), key)[0]
        except FileNotFoundError:
            return {}

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AffectGPTError(
                f"{self.path}: another process is writing this file; wait for it or end it, then run again"
            ) from None

    def _load(self, key: str) -> int:
        """Read the whole lines into ``entries``; the offset behind the last good one (0: begin again)."""
        self.entries, end = _parse(self.path.read_bytes(), key)
        if end == 0 and self.path.stat().st_size:
            logger.info("%s: begun under other settings, starting again", self.path)
        return end

    def _write(self, record: dict[str, Any]) -> None:
        data = (json.dumps(record) + "\n").encode()
        with naming(self.path):  # a full disk: the torn line is dropped when the journal is opened again
            while data:
                data = data[os.write(self._fd, data) :]

    def add(self, name: str, value: Any) -> None:
        """Keep one finished item (``value``: anything JSON holds)."""
        self._write({"name": name, "value": value})
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
            self._sync()
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close and delete: the job is done and its file is written."""
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _parse(data: bytes, key: str) -> tuple[dict[str, Any], int]:
    """The entries in whole lines and the offset behind the last good one (0: another key, or no journal)."""
    entries: dict[str, Any] = {}
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        if end == 0:
            if record.get("journal") != 1 or record.get("key") != key:
                return {}, 0
        elif isinstance(record.get("name"), str) and "value" in record:
            entries[record["name"]] = record["value"]
        else:
            break
        end += len(line)
    return entries, end
