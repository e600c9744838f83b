"""Locks of folders: one holder at a time."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

from affectgpt.core.files import lock_holder, locked


def test_a_folder_has_one_holder_at_a_time(tmp_path):
    with locked(tmp_path) as first, locked(tmp_path, wait=False) as second:
        assert first and not second
    with locked(tmp_path, wait=False) as free:
        assert free


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path):
    """As a loader's workers, which live on for some seconds."""
    ready, child = (multiprocessing.get_context("fork").SimpleQueue() for _ in range(2))

    def hold() -> None:
        with locked(tmp_path, wait=False):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            child.put(pid)
            ready.put(lock_holder(tmp_path))
            time.sleep(60)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    known = ready.get()
    with locked(tmp_path, wait=False) as free:
        assert not free
    assert known == (holder.pid if Path("/proc/locks").exists() else None)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    left = child.get()
    try:
        os.kill(left, 0)
        with locked(tmp_path, wait=False) as free:
            assert free
        assert lock_holder(tmp_path) is None
    finally:
        os.kill(left, signal.SIGKILL)


def test_without_locks_nobody_waits(tmp_path, monkeypatch, log_lines):
    """As some network file systems answer."""
    import fcntl

    monkeypatch.setattr(logging.getLogger("affectgpt"), "propagate", True)

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, wait=False) as free:
        assert free
    assert "has no locks (No locks available)" in log_lines[0]
