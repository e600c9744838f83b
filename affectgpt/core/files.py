"""Writing files so that a reader never sees half of one, and so that an error of writing names its file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.runtime import logger

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL}
_held: set[int] = set()  # descriptors of this process's locks

_LONG_NAME = 230  # bytes: what is added to a name must fit into the 255 of a file system
# What a disk, its permissions or a limit of the system does; other errors of the system are not for the user to mend.
SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ELOOP, errno.EBUSY,
)  # fmt: skip
_SAID = {os.strerror(number): number for number in SYSTEM_ERRORS}
_WORDS = re.compile("|".join(map(re.escape, _SAID)) + "|out of shared memory")
_QUOTED = re.compile(r": '([^'\n]+)'")  # as an OSError names its file
SHARED_MEMORY = "/dev/shm"


def system_error(error: BaseException, *, context: bool = False) -> OSError | None:
    """The OSError that an error is, was raised from, or describes; None for any other.

    Libraries wrap errors of writing: torch and safetensors, a data loader's workers (as text), zipfile (as the error
    of closing, with the first one as its ``context``: to be asked for only where nothing but writing can fail).
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if isinstance(current, OSError) and current.errno in SYSTEM_ERRORS:
            return current
        words = str(current)
        if found := _WORDS.search(words):
            number = _SAID.get(found[0], errno.ENOSPC)
            name = _QUOTED.match(words, found.end())
            shared = "out of shared memory" in words or "</torch_" in words
            return OSError(number, os.strerror(number), SHARED_MEMORY if shared else name and name[1])
        current = current.__cause__ or (current.__context__ if context else None)
    return None


@contextmanager
def naming(path: str | os.PathLike[str], *, instead_of: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Around writing: an error of the system without a file name (or with ``instead_of``'s) is raised with ``path``."""
    try:
        yield
    except AffectGPTError:
        raise
    except Exception as error:
        found = system_error(error, context=True)
        if found is None or (found is error and found.filename not in (None, instead_of and os.fspath(instead_of))):
            raise
        raise OSError(found.errno, found.strerror, os.fspath(path)) from error


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
    with naming(path, instead_of=temporary):
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder or file; gives False, without waiting, when ``wait`` is off and another process has it.

    The lock ends with the process, however that ends: forked children, such as a loader's workers, have no part in it.
    Where the system has no such locks (Windows, some network file systems), nobody waits for anybody.
    """
    # network file systems lock a file only for who may write it
    descriptor = os.open(folder, os.O_RDONLY if Path(folder).is_dir() else os.O_RDWR)
    try:
        yield lock_descriptor(descriptor, folder, wait=wait)
    finally:
        close_locked(descriptor)


def lock_descriptor(descriptor: int, path: str | os.PathLike[str], *, wait: bool) -> bool:
    """``locked`` for a file that is open already; ``close_locked`` ends it. ``path``: its name, for a warning."""
    _keep_from_children()
    _held.add(descriptor)
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks(Path(path) if Path(path).is_dir() else Path(path).parent, str(error.strerror))
    return True


def close_locked(descriptor: int) -> None:
    """Close a descriptor of ``lock_descriptor``, and with it end the lock."""
    if descriptor in _held:  # else this is a forked child, which has closed it
        _held.remove(descriptor)
        os.close(descriptor)


@cache
def _warn_of_no_locks(folder: Path, why: str) -> None:
    logger.warning("%s: its file system has no locks (%s): run one process at a time there", folder, why)


@cache
def _keep_from_children() -> None:
    def close() -> None:
        while _held:
            os.close(_held.pop())

    if hasattr(os, "register_at_fork"):
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
