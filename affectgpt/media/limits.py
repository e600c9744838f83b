"""Limits of length, size and rate for a clip of a stranger: by its header, and by what is really in the file.

Headers lie: a file of two seconds by its header may hold hours, and a small picture may turn into a huge one. So every
packet is counted, and every key frame decoded, before anything else touches the file. ``Decoder.check`` does it in a
process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import DataError
from affectgpt.core.types import SOUND_SUFFIXES
from affectgpt.media.video import check_file, local, picture_stream, short_error

if TYPE_CHECKING:
    import numpy as np

_SLACK = 1.0  # seconds: encoders pad, and phones cut not quite where they say
_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The most that is taken: seconds, pixels of the longer and the shorter side, frames per second."""

    seconds: float = 60.0
    longer_side: int = 1920
    shorter_side: int = 1080
    frames_per_second: float = 60.0

    @property
    def frames(self) -> int:
        """The most frames of a clip."""
        return int((self.seconds + _SLACK) * self.frames_per_second)


@dataclass(frozen=True, slots=True)
class Checked:
    """Content of a file within the limits."""

    has_video: bool
    has_sound: bool
    channels: int = 0  # of the sound


def check_media(path: Path | str, *, limits: MediaLimits) -> Checked:
    """Return what a file holds, when header, packets and key frames are within the limits.

    Raises DataError naming the file: beyond a limit (which one, found and allowed), or no readable video or sound.
    """
    import av

    path = check_file(path)
    try:
        with av.open(local(path)) as container:
            shown = picture_stream(container)
            pictures: list[Any] = [] if shown is None else [shown]
            sound: list[Any] = list(container.streams.audio[:1])
            if not pictures and not sound:
                raise DataError(f"{path}: neither a video nor a sound track")
            if container.format.name.endswith("_pipe"):
                raise DataError(f"{path}: a picture, expected a video or sound")
            if container.duration is not None:
                _at_most(
                    path, "is", container.duration / av.time_base, limits.seconds + _SLACK, limits.seconds, "s long"
                )
            for stream in pictures:
                _check_size(path, stream.width, stream.height, limits)
                if stream.frames and stream.average_rate:
                    rate, most = float(stream.average_rate), limits.frames_per_second
                    _at_most(path, "has", rate, most * 1.02, most, "frames per second")
                stream.codec_context.options = {"max_pixels": str(limits.longer_side * limits.shorter_side)}
                stream.codec_context.skip_frame = "NONKEY"
            for stream in sound:
                _at_most(path, "has", stream.codec_context.channels, _CHANNELS, _CHANNELS, "channels of sound")
            _count(path, container, pictures + sound, limits)
            channels = sound[0].codec_context.channels if sound else 0
            return Checked(bool(pictures), bool(sound), channels)
    except DataError:
        raise
    except Exception as error:  # FFmpeg's many errors
        raise DataError(f"{path}: no readable video or sound ({short_error(error)})") from error


def read_wave_within(path: Path | str, *, limits: MediaLimits) -> np.ndarray | None:
    """The sound of a file as mono at 16 kHz, float32 ``[n]``, None where it has no sound track. Raises DataError."""
    from affectgpt.media.audio import probe_audio, read_track, read_wave

    if Path(path).suffix.lower() in SOUND_SUFFIXES:
        _at_most(path, "is", probe_audio(path).seconds, limits.seconds + _SLACK, limits.seconds, "s long")
        return read_wave(path)
    return read_track(path, longest=limits.seconds + _SLACK)


def _count(path: Path, container: Any, streams: list[Any], limits: MediaLimits) -> None:
    """Walk through all packets; DataError at the first one beyond the limits."""
    import av

    frames = 0
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    heard = 0  # samples, of codecs whose packets have one size
    for packet in container.demux(streams):
        stream = packet.stream
        if packet.pts is not None and packet.time_base:
            at = float(packet.pts * packet.time_base)
            begin = first.setdefault(stream.index, at)
            first[stream.index] = min(begin, at)
            last[stream.index] = max(last.get(stream.index, at), at)
            seconds = last[stream.index] - first[stream.index]
            _at_most(path, "is", seconds, limits.seconds + _SLACK, limits.seconds, "s long")
        if stream.type == "audio":
            context = stream.codec_context
            heard += context.frame_size if packet.size else 0
            if context.sample_rate:
                seconds = heard / context.sample_rate
                _at_most(path, "is", seconds, limits.seconds + _SLACK, limits.seconds, "s long")
            continue
        frames += bool(packet.size)
        _at_most(path, "has", frames, limits.frames, limits.frames, "frames")
        if packet.size and not packet.is_keyframe:
            continue
        try:
            pictures = packet.decode()
        except av.FFmpegError as error:  # a broken key frame is for the reader to report; one too large is refused
            if "max_pixels" in str(error):
                raise
            continue
        for picture in pictures:
            _check_size(path, picture.width, picture.height, limits)
    for index in last:
        if streams[0].type == "video" and index == streams[0].index and frames > 30:
            span = max(last[index] - first[index], 1e-3)
            most = limits.frames_per_second
            _at_most(path, "has", (frames - 1) / span, most * 1.05, most, "frames per second")


def _check_size(path: Path, width: int, height: int, limits: MediaLimits) -> None:
    most = (limits.longer_side, limits.shorter_side)
    if max(width, height) > most[0] or min(width, height) > most[1]:
        raise DataError(
            f"{path}: its pictures have {width}x{height} pixels; at most {most[0]}x{most[1]} are taken. Scale it down"
        )


def _at_most(path: Path | str, has: str, found: float, bound: float, most: float, what: str) -> None:
    if found > bound:
        raise DataError(f"{path}: {has} {found:,.4g} {what}; at most {most:,.4g} are taken. Cut or convert it")
