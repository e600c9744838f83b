"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from affectgpt.core.runtime import logger

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL}
_held: set[int] = set()  # descriptors of this process's locks


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success fsync it and rename it to ``path``, on failure remove it.

    The temporary name keeps the suffix (writers such as numpy look at it) and holds the process id.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
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

    The lock ends with the process, however that ends: forked children, such as a loader's workers, have no part in it.
    Where the system has no such locks (Windows, some network file systems), nobody waits for anybody.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    _keep_from_children()
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        yield _lock(fcntl.flock, descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), folder)
    finally:
        if descriptor in _held:  # else this is a forked child, which has closed it
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(flock: Callable[[int, int], None], descriptor: int, how: int, folder: str | os.PathLike[str]) -> bool:
    try:
        flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: its file system has no locks (%s): run one process at a time there", folder, error.strerror)
    return True


@cache
def _keep_from_children() -> None:
    def close() -> None:
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=close)


def lock_holder(folder: str | os.PathLike[str]) -> int | None:
    """The id of the process that holds a folder's lock; None where the system does not say."""
    try:
        place = Path(folder).stat()
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}:{place.st_ino}"
    for line in lines:
        match line.split():
            case [_, "FLOCK", _, _, pid, where, *_] if where == wanted and int(pid) > 0:
                return int(pid)
    return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented UTF-8 JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")
