"""Media of requests: private folders, and files that are checked before anything in this process reads them."""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.files import close_locked, lock_descriptor, naming
from affectgpt.core.types import SAMPLE_RATE, SOUND_SUFFIXES
from affectgpt.media.audio import FIRST_CHANNEL
from affectgpt.media.given import as_file, named
from affectgpt.media.guard import Decoder
from affectgpt.media.limits import MediaLimits


class TooLargeError(DataError):
    """A medium has more bytes than the server takes."""


class RequestMedia:
    """Writes the media of requests into their folders and checks them. Errors name the medium, never a path."""

    def __init__(self, decoder: Decoder, limits: MediaLimits, *, max_megabytes: float, root: Path | None) -> None:
        self.decoder, self.limits, self.max_megabytes = decoder, limits, max_megabytes
        self.max_bytes = int(max_megabytes * 2**20)
        self.root = None if root is None else root.resolve(strict=True)

    def save(self, medium: str | Path, *, folder: Path, stem: str) -> tuple[Path, tuple[str, ...]]:
        """Write ``folder/stem.SUFFIX`` from a URL, or from an upload of the page (Path). Returns its path and flags.

        Raises DataError for what is no readable medium within the limits.
        """
        with named({Path("<bytes>"): f"the {stem}"}):
            path = as_file(self._content(medium), folder=folder, stem=stem)
        with named({path: f"the {stem}"}):
            checked = self.decoder.check(path, limits=self.limits)
            if path.suffix.lower() not in SOUND_SUFFIXES:
                return path, ()
            samples = self.decoder.sound(path, limits=self.limits)
        # Sound files are kept as plain samples, so that no native code decodes a client's sound in this process.
        import soundfile

        plain = folder / f"{stem}-plain.wav"
        soundfile.write(plain, samples, SAMPLE_RATE, subtype="FLOAT")
        return plain, (FIRST_CHANNEL,) if checked.channels > 2 else ()

    def _content(self, medium: str | Path) -> bytes:
        if isinstance(medium, Path):
            with medium.open("rb") as file:
                content = file.read(self.max_bytes + 1)
        elif medium[:5].lower() == "data:":
            head, _, text = medium.partition(",")
            if not head.endswith(";base64"):
                raise DataError("a data: URL of media reads data:TYPE;base64,CONTENT")
            try:
                content = base64.b64decode(text.encode("ascii"), validate=True)
            except (binascii.Error, UnicodeEncodeError):
                raise DataError("the content of a data: URL is not base64") from None
        elif medium[:5].lower() == "file:":
            content = self._file_below_root(medium)
        else:
            raise DataError(
                "a media URL begins with data: or file:; send the content of other media as data:TYPE;base64,…"
            )
        if len(content) > self.max_bytes:
            raise TooLargeError(f"the media are larger than {self.max_megabytes:g} MB")
        return content

    def _file_below_root(self, url: str) -> bytes:
        refused = DataError(
            "file: media are taken below the server's media folder only, and there is no such file there"
        )
        if self.root is None:
            raise refused
        try:
            parts = urlsplit(url)
            path = Path(unquote(parts.path)).resolve(strict=True)
            if parts.netloc not in ("", "localhost") or not path.is_relative_to(self.root):
                raise refused
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError, RuntimeError):  # ValueError: "file://[", and names with a null byte
            raise refused from None
        # Asked again of what is open: a folder on the way may have become a link in between.
        link = Path(f"/proc/self/fd/{descriptor}")
        opened = link.readlink() if link.parent.is_dir() else path
        if not opened.is_relative_to(self.root) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise refused
        with os.fdopen(descriptor, "rb") as file:
            return file.read(self.max_bytes + 1)


class PrivateFolders:
    """The folder of one server process, in which each request has one of its own. Raises ConfigError, DataError.

    A lock on the folder shows that its process lives; folders without one were left behind by a kill and are removed.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir()) / f"affectgpt-serve-{os.getuid()}"
        with naming(parent):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = parent.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ConfigError(
                f"{parent}: must be a folder that belongs to this user alone (mode 0700), for what is uploaded is "
                "there for a while; remove it, or name another with --work-dir"
            )
        self.removed = sum(_remove_unlocked(folder) for folder in parent.iterdir() if folder.is_dir())
        with naming(parent):
            self.root = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
            probe = self.root / "probe"  # a full disk shows now, not with the first upload
            probe.write_bytes(bytes(4096))
            probe.unlink()
        self._lock = os.open(self.root, os.O_RDONLY)
        lock_descriptor(self._lock, self.root, wait=False)

    @contextmanager
    def one(self) -> Iterator[Path]:
        """A folder for one request, removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="request-", dir=self.root, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

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
