"""Private folders of requests: for this user alone, gone with the request, and what a kill left with the next start."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affectgpt.core.errors import ConfigError
from affectgpt.core.files import close_locked, lock_descriptor, naming


class PrivateFolders:
    """The folder of one server process, in which each request has one of its own.

    A lock says that the process lives: what is found without one was left behind by a kill and is removed.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir()) / f"affectgpt-serve-{os.getuid()}"
        with naming(parent):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(
                f"{parent}: must be a folder that belongs to this user alone (mode 0700), for what is uploaded is "
                "there for a while; remove it, or name another with --work-dir"
            )
        self.removed = sum(_remove_unlocked(folder) for folder in parent.iterdir() if folder.is_dir())
        with naming(parent):
            self.root = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
            room = self.root / "room"  # a full disk shows now, not with the first upload
            room.write_bytes(bytes(4096))
            room.unlink()
        self._lock = os.open(self.root, os.O_RDONLY)
        lock_descriptor(self._lock, self.root, wait=False)

    @contextmanager
    def one(self) -> Iterator[Path]:
        """A folder for one request."""
        folder = Path(tempfile.mkdtemp(prefix="request-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.root, ignore_errors=True)
        close_locked(self._lock)


def _remove_unlocked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not lock_descriptor(descriptor, folder, wait=False):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        close_locked(descriptor)
