"""What a request brings → files in its private folder, within all limits, before anything decodes them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from affectgpt.core.errors import DataError
from affectgpt.core.types import SOUND_SUFFIXES
from affectgpt.media.audio import FIRST_CHANNEL
from affectgpt.media.given import as_file, named
from affectgpt.media.guard import Decoder
from affectgpt.serve.settings import ServeSettings

_DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII)
_CHUNK = 1 << 20


class TooLargeError(DataError):
    """Media are larger than the server takes."""


class Intake:
    """Writes media of URLs into a folder and checks them. Raises DataError naming the medium, never a path."""

    def __init__(self, settings: ServeSettings, decoder: Decoder) -> None:
        self.settings, self.decoder = settings, decoder
        self.root = None if settings.media_root is None else settings.media_root.resolve(strict=True)

    def __call__(self, medium: str | Path, *, folder: Path, stem: str) -> tuple[Path, tuple[str, ...]]:
        """The file of one medium (a URL, or an uploaded file, which is copied), checked, and what is odd about it.

        ``stem``: its name in messages. Sound files are decoded by a helper process and kept as plain samples, so that
        no native code reads a stranger's sound in this process.
        """
        chunks = self._chunks(medium) if isinstance(medium, str) else self._of_upload(medium)
        path = as_file(_Reader(chunks, stem), folder=folder, stem=stem)
        with named({path: f"the {stem}"}):
            found = self.decoder.check(path, limits=self.settings.media)
            if path.suffix.lower() not in SOUND_SUFFIXES:
                return path, ()
            samples = self.decoder.sound(path, limits=self.settings.media)
        import soundfile

        from affectgpt.core.types import SAMPLE_RATE

        plain = folder / f"{stem}-plain.wav"
        soundfile.write(plain, samples, SAMPLE_RATE, subtype="FLOAT")
        return plain, (FIRST_CHANNEL,) if found.channels > 2 else ()

    def _chunks(self, url: str) -> Iterator[bytes]:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return self._of_data(url)
        if scheme == "file":
            return self._of_file(url)
        raise DataError("a media URL begins with data: or file:; send the content of other media as data:TYPE;base64,…")

    def _of_data(self, url: str) -> Iterator[bytes]:
        head = _DATA.match(url[:512])
        if head is None:
            raise DataError("a data: URL of media reads data:TYPE;base64,CONTENT")
        if (len(url) - head.end()) * 3 // 4 > self.settings.media_bytes + 3:
            raise TooLargeError(f"the media are larger than {self.settings.megabytes:g} MB")
        try:
            yield base64.b64decode(url[head.end() :].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise DataError("the content of a data: URL is not base64") from None

    def _of_upload(self, path: Path) -> Iterator[bytes]:
        total = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > self.settings.media_bytes:
                    raise TooLargeError(f"the media are larger than {self.settings.megabytes:g} MB")
                yield chunk

    def _of_file(self, url: str) -> Iterator[bytes]:
        refused = DataError(
            "file: media are taken below the server's media folder only, and there is no such file there"
        )
        try:
            parts = urlsplit(url)
        except ValueError:
            raise refused from None
        if self.root is None or parts.netloc not in ("", "localhost") or "\0" in url or "%00" in url:
            raise refused
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise refused
            # what was resolved is opened, and asked again where it is: links may change in between
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        status = os.fstat(descriptor)
        opened = Path(f"/proc/self/fd/{descriptor}").readlink() if Path("/proc/self/fd").is_dir() else path
        if not opened.is_relative_to(self.root) or not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise refused
        with os.fdopen(descriptor, "rb") as file:
            if status.st_size > self.settings.media_bytes:
                raise TooLargeError(f"the media are larger than {self.settings.megabytes:g} MB")
            yield from iter(lambda: file.read(_CHUNK), b"")


class _Reader:
    """Chunks as an open file, for ``as_file``; ``name`` is what its messages say."""

    def __init__(self, chunks: Iterator[bytes], stem: str) -> None:
        self.name = f"the {stem}"
        self._chunks = chunks

    def read(self, _: int = -1) -> bytes:
        return next(self._chunks, b"")
