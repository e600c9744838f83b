"""Media that a caller hands over: a path, bytes, or an open file. What is not a path becomes a private file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affectgpt.core.errors import ConfigError, DataError

LARGEST = 1 << 30  # bytes of a medium that is not a path
_HEAD = 256  # bytes by which a format is recognised
_CHUNK = 1 << 20
_BY_BEGINNING = (
    (b"\x1aE\xdf\xa3", ".mkv"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"FLV\x01", ".flv"),
    (b"GIF8", ".gif"), (b"0&\xb2u\x8ef\xcf\x11", ".wmv"), (b"\0\0\1\xba", ".mpg"), (b"\0\0\1\xb3", ".mpg"),
    (b"\x93NUMPY", ".npy"),
)  # fmt: skip
_RIFF = {b"WAVE": ".wav", b"AVI ": ".avi", b"AIFF": ".aiff", b"AIFC": ".aiff"}


def is_path(medium: Any) -> bool:
    """Return whether a medium is named by its path; bytes are content."""
    return isinstance(medium, str | os.PathLike)


def medium_name(medium: Any) -> str:
    """Return the name of a medium in messages: its path, the name of the open file, or what it is."""
    if is_path(medium):
        return os.fspath(medium)
    name = getattr(medium, "name", None)
    return name if isinstance(name, str) and name else "<bytes>" if _is_bytes(medium) else "<file>"


def media_suffix(head: bytes) -> str | None:
    """The suffix of the format that a file with these first bytes has; None for what no medium begins with.

    Known formats alone: FFmpeg takes text, too, and a playlist would make it open other files.
    """
    if head[:4] in (b"RIFF", b"RF64", b"FORM"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return ".m4a" if head[8:11] == b"M4A" else ".mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return ".mov"
    for beginning, suffix in _BY_BEGINNING:
        if head.startswith(beginning):
            return suffix
    if head[:1] == b"G" and head[188:189] == b"G":
        return ".ts"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return ".mp3" if head[1] & 0x06 else ".aac"
    return None


def as_file(medium: Any, *, folder: Path, stem: str) -> Path:
    """The path of a medium: its own, or that of ``folder/stem.SUFFIX``, to which bytes or an open file's rest go.

    Nothing is written of what is too large or of an unknown format; only decoders find whether the rest is sound.
    Raises DataError naming the medium, ConfigError for what is neither a path nor bytes nor a binary file.
    """
    if is_path(medium):
        return Path(medium)
    name = medium_name(medium)
    chunks = _chunks(medium, name=name, largest=LARGEST)
    first: Any = next(chunks, b"")
    while len(first) < _HEAD and (more := next(chunks, b"")):  # sockets and pipes give what they have
        first = bytes(first) + bytes(more)
    if not first:
        raise DataError(f"{name}: no bytes (a file that was read before has none left: seek(0) first)")
    suffix = media_suffix(bytes(first[:_HEAD]))
    if suffix is None:
        raise DataError(
            f"{name}: neither a video nor a sound file of a known format (it begins with {bytes(first[:12])!r}); "
            "expected mp4, mov, mkv, webm, avi, wmv, flv, mpg, gif, wav, flac, ogg, mp3, m4a, aac, aiff"
        )
    path = folder / f"{stem}{suffix}"
    with path.open("xb") as file:
        file.write(first)
        for chunk in chunks:
            file.write(chunk)
    return path


@contextmanager
def named(names: Mapping[Path, str]) -> Iterator[None]:
    """Let errors speak of media by their names where they speak of the files that were made of them."""
    try:
        yield
    except DataError as error:
        text = str(error)
        for path, name in names.items():
            text = text.replace(str(path), name)
        if text == str(error):
            raise
        raise DataError(text) from error


def _is_bytes(medium: Any) -> bool:
    return isinstance(medium, bytes | bytearray | memoryview)


def _chunks(medium: Any, *, name: str, largest: int) -> Iterator[Any]:
    """The content, part by part; DataError as soon as it is known to be too large."""
    too_large = DataError(
        f"{name}: larger than {largest / 2**20:.0f} MB, the most that is taken as bytes or from an open file; give a "
        "path"
    )
    if _is_bytes(medium):
        view = memoryview(medium).cast("B") if memoryview(medium).contiguous else memoryview(bytes(medium))
        if view.nbytes > largest:
            raise too_large
        yield view
        return
    if not callable(getattr(medium, "read", None)):
        raise ConfigError(
            f"{type(medium).__name__}: expected a path, the bytes of a video or sound file, or a file opened with 'rb'"
        )
    if _bytes_left(medium) > largest:
        raise too_large
    count = 0
    while True:
        chunk = medium.read(_CHUNK)
        if not _is_bytes(chunk) and chunk is not None:
            raise ConfigError(f"{name}: read() gave {type(chunk).__name__}, expected bytes: open the file with 'rb'")
        if not chunk:
            return
        count += len(chunk)
        if count > largest:
            raise too_large
        yield chunk


def _bytes_left(file: Any) -> int:
    """Return how much there is to be read; 0 where a file does not know."""
    try:
        at = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(at)
    except (AttributeError, OSError, ValueError):
        return 0
    return end - at if isinstance(end, int) else 0
