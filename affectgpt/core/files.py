"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONG_NAME = 230  # bytes: what is added to a name must fit into the 255 of a file system


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success fsync it and rename it to ``path``, on failure remove it.

    The temporary name keeps the suffix (writers such as numpy look at it) and holds the process id. It is no longer
    than a file's name may be, whatever the length of the path's own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.stem
    if len(os.fsencode(path.name)) > _LONG_NAME:
        stem = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    temporary = path.with_name(f".{stem}.tmp{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder; gives False, without waiting, when ``wait`` is off and another process has it.

    Where the system has no such locks, nobody waits for anybody.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes, **options: Any) -> Any:
    """``json.loads``, whose every failure is a ValueError: also of text that is nested too deeply for it."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented UTF-8 JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")
