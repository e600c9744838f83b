"""Decoding of video containers in a process of its own, under a time limit.

Native decoders may crash or hang on a damaged file. Here that ends a helper process and gives a DataError that names
the file; the loader's worker lives on, and the next file gets a fresh helper.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import AffectGPTError, DataError

if TYPE_CHECKING:
    import numpy as np

    from affectgpt.media.limits import Checked, MediaLimits
    from affectgpt.media.video import VideoInfo

_HEADER = struct.Struct("<Q")
_SECONDS_PER_MB = 2.0
_GRACE = 10  # seconds beyond the time limit after which a helper whose caller is gone ends by itself


class Decoder:
    """Calls ``media.video`` and ``media.audio`` in helper processes, started when first needed.

    ``time_limit``: seconds for one file, and two more for each megabyte of it, since a long clip may take minutes;
    ``memory``: bytes of address space that a helper may take, at most 3 GiB. May be shared
    between threads: a call has a helper to itself, so there are as many helpers as calls at once, and a file that
    crashes one or lets it hang costs the others nothing. May be pickled and forked: each process starts its own.
    """

    def __init__(self, *, time_limit: float = 60.0, memory: int | None = None) -> None:
        self.time_limit, self.memory = time_limit, memory or _memory_limit()
        self._idle: list[subprocess.Popen] = []  # taken and given back whole: list operations are atomic
        self._owner = os.getpid()

    def frames(self, path: Path | str, **options: Any) -> np.ndarray:
        """``read_frames`` under the time limit. Raises DataError, also for a crash and for a timeout."""
        return self._call("read_frames", path, options)

    def native_frames(self, path: Path | str, **options: Any) -> tuple[np.ndarray, int]:
        """``read_native_frames`` under the time limit."""
        return self._call("read_native_frames", path, options)

    def track(self, path: Path | str) -> np.ndarray | None:
        """``read_track`` under the time limit: mono float32 at 16 kHz, None when the video has no sound track."""
        return self._call("read_track", path, {})

    def probe(self, path: Path | str) -> VideoInfo:
        """``probe_video`` under the time limit."""
        return self._call("probe_video", path, {})

    def check(self, path: Path | str, *, limits: MediaLimits) -> Checked:
        """``check_media`` under the time limit."""
        return self._call("check_media", path, {"limits": limits})

    def sound(self, path: Path | str, *, limits: MediaLimits) -> np.ndarray | None:
        """``read_wave_within`` under the time limit: for files of strangers, whose sound no native code reads here."""
        return self._call("read_wave_within", path, {"limits": limits})

    def close(self) -> None:
        """End the helpers of this process that no call is using."""
        while self._idle:
            helper = self._idle.pop()
            if self._owner == os.getpid():  # else this is a forked child: they are the parent's
                _end(helper)

    def __getstate__(self) -> dict[str, Any]:
        return {"time_limit": self.time_limit, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def _call(self, function: str, path: Path | str, options: dict[str, Any]) -> Any:
        limit = self.time_limit
        with contextlib.suppress(OSError):
            limit += _SECONDS_PER_MB * Path(path).stat().st_size / 1e6
        request = pickle.dumps((function, str(path), options, limit))
        deadline = time.monotonic() + limit
        helper = self._take()
        try:
            helper.stdin.write(_HEADER.pack(len(request)) + request)  # type: ignore[union-attr]
            helper.stdin.flush()  # type: ignore[union-attr]
            (size,) = _HEADER.unpack(_read(helper, _HEADER.size, deadline))
            error, value = pickle.loads(_read(helper, size, deadline))
        except TimeoutError:
            _end(helper)
            raise DataError(
                f"{path}: decoding took more than {limit:.3g} s and was stopped; the file is damaged, or its place is "
                "too slow"
            ) from None
        except (EOFError, BrokenPipeError):
            status = helper.wait()
            _end(helper)
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            if status in (-signal.SIGKILL, -signal.SIGTERM):  # no decoder does this to itself
                raise AffectGPTError(
                    f"the process that decoded {path} was killed from outside ({how}): out of memory? The file is not "
                    "the reason. Use fewer workers (run.num_workers, --workers), then run the same command again to "
                    "resume"
                ) from None
            raise DataError(f"{path}: the decoder crashed on it ({how}); the file is damaged") from None
        except BaseException:  # Ctrl-C between request and answer: the next answer would be this one's
            _end(helper)
            raise
        self._idle.append(helper)
        if error is not None:
            raise DataError(error)
        return value

    def _take(self) -> subprocess.Popen:
        """A helper that no other call has: an idle one, or a new one."""
        if self._owner != os.getpid():  # forked: the helpers are the parent's
            self._idle, self._owner = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            package_root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
            return subprocess.Popen(
                [sys.executable, "-m", "affectgpt.media.guard", *([] if self.memory is None else [str(self.memory)])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends this one
            )  # fmt: skip


def _memory_limit() -> int:
    """Bytes of address space for one helper: 3 GiB, and less where several of them could take the machine's memory.

    Decoding 1080p takes half a gigabyte; a header can ask for more than any machine has.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = total // (2 * max(len(os.sched_getaffinity(0)), 1))
    return min(max(share, 3 << 29), 3 << 30)


def _end(helper: subprocess.Popen) -> None:
    helper.kill()
    helper.wait()
    with contextlib.suppress(BrokenPipeError):  # a request that it did not live to take
        helper.stdin.close()  # type: ignore[union-attr]
    helper.stdout.close()  # type: ignore[union-attr]


def _read(helper: subprocess.Popen, size: int, deadline: float) -> bytes:
    assert helper.stdout is not None
    descriptor = helper.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    parts, missing = [], size
    while missing:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _serve() -> None:
    """The helper's loop: requests on stdin, answers on stdout, until stdin ends."""
    from affectgpt.media.audio import read_track
    from affectgpt.media.limits import check_media, read_wave_within
    from affectgpt.media.video import probe_video, read_frames, read_native_frames

    for memory in map(int, sys.argv[1:]):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    known = (read_frames, read_native_frames, read_track, probe_video, check_media, read_wave_within)
    functions = {f.__name__: f for f in known}
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native libraries that print must not print into the answers
    while header := requests.read(_HEADER.size):
        function, path, options, time_limit = pickle.loads(requests.read(_HEADER.unpack(header)[0]))
        signal.alarm(math.ceil(time_limit) + _GRACE)  # ends it in whatever native code, should nobody be left to
        answer: tuple[str | None, Any]
        try:
            answer = (None, functions[function](path, **options))
        except DataError as error:
            answer = (str(error), None)
        except MemoryError:
            answer = (f"{path}: decoding it needs more memory than there is", None)
        signal.alarm(0)
        data = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        answers.write(_HEADER.pack(len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    _serve()
