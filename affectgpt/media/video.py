"""Frames, face crops and images: from a file to uint8 arrays, sampled and resized as the released models saw them.

Pixels depend on the reader: decord 0.6 scales bilinearly, decord2 bicubically, ``frame.reformat`` of PyAV differs from
both; PyAV's filter graph as used here equals decord 0.6. So runs record ``video_reader()``. Videos that phones mark as
turned are turned upright by either.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import IMAGE_SIZE, N_FRAMES

if TYPE_CHECKING:
    import numpy as np


# What decord writes before its words: the time, the place in its source, what failed there, the path again.
_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: (?:Check failed: .*?\(-?\d+ vs\. -?\d+\) ?)?(?:\[[^\]]*\] )?")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts that a container says of itself, without decoding. ``frames`` is the container's count (0: it has none)."""

    seconds: float
    width: int  # pixels, as stored: a video that is shown turned by a quarter has them swapped
    height: int
    frames: int
    frames_per_second: float
    audio_tracks: int
    format: str = ""  # FFmpeg's name of the container


def uniform_indices(n: int, *, n_frames: int = N_FRAMES) -> list[int]:
    """Indices of ``n_frames`` of ``n`` frames: ``arange(0, n, n / n_frames)`` truncated; the last repeated if too few.

    (Wire.) Raises ValueError when there is no frame.
    """
    import numpy as np

    if n < 1:
        raise ValueError(f"cannot sample from {n} frames")
    if n <= n_frames:
        return list(range(n)) + [n - 1] * (n_frames - n)
    return np.arange(0, n, n / n_frames).astype(int)[:n_frames].tolist()


def check_file(path: Path | str) -> Path:
    """The path, when a non-empty regular file lies there; DataError naming it otherwise."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: " + ("no regular file" if path.exists() else "no such file"))
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    return path


@cache
def video_reader() -> str:
    """Name and version of the frame reader used here: ``decord 0.6.0``, ``decord2 …`` or ``pyav …``."""
    if importlib.util.find_spec("decord") is not None:
        for package in ("decord", "decord2", "eva-decord"):
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return "decord (unknown version)"
    if importlib.util.find_spec("av") is not None:
        return f"pyav {importlib.metadata.version('av')}"
    raise ConfigError("no video reader: install decord (Linux x86-64) or av")


def read_frames(
    path: Path | str,
    *,
    n_frames: int = N_FRAMES,
    size: int = IMAGE_SIZE,
    reader: str | None = None,
    at: float | None = None,
) -> np.ndarray:
    """Read uniformly sampled frames, decoded straight to a square (aspect ratio not kept).

    Returns uint8 ``[n_frames, size, size, 3]``, RGB. ``at``: the one frame at this part of the clip instead, from 0 up
    to but not 1. ``reader``: ``decord`` or ``pyav``; default ``video_reader()``.
    Raises DataError naming the file when it is no video or cannot be decoded.
    """
    pick = partial(_uniform, n_frames=n_frames) if at is None else partial(_single, at=at)
    frames, _ = _read(check_file(path), width=size, height=size, reader=reader, pick=pick)
    return frames


def read_native_frames(
    path: Path | str, *, n_frames: int, start: int, count: int, longest_side: int
) -> tuple[np.ndarray, int]:
    """Part of a clip at its own aspect ratio: of ``n_frames`` uniform frames (0: all), those from ``start`` on.

    Returns uint8 ``[at most count, H, W, 3]`` RGB, scaled down where a side is longer than ``longest_side``, and how
    many frames there are to be read in all. Raises DataError naming the file.
    """
    info = probe_video(path)
    scale = min(1.0, longest_side / max(info.width, info.height, 1))
    width, height = (max(2, round(length * scale)) for length in (info.width, info.height))
    if "transpose" in _orientation_of_file(path):
        width, height = height, width
    pick = partial(_window, n_frames=n_frames, start=start, count=count)
    return _read(Path(path), width=width, height=height, reader=None, pick=pick)


def read_faces(path: Path | str, *, n_frames: int = N_FRAMES, size: int = IMAGE_SIZE) -> np.ndarray:
    """Read uniformly sampled face crops; only those are touched on disk.

    The file holds uint8 or float32 ``[N, H, W, 3]``, the latter from 0 to 255. Returns uint8
    ``[n_frames, size, size, 3]``, channels as stored.
    Raises DataError naming the file: no npy, pickled objects (never unpickled), another shape or dtype, no face, a
    float that is not from 0 to 255.
    """
    try:
        return sample_faces(_open_faces(path), n_frames=n_frames, size=size)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def sample_faces(crops: np.ndarray, *, n_frames: int = N_FRAMES, size: int = IMAGE_SIZE) -> np.ndarray:
    """Uniformly sampled and resized crops of uint8 or float32 ``[N, H, W, 3]``: uint8 ``[n_frames, size, size, 3]``.

    A memory map is read only where needed. Floats are resized as such and then truncated, for an encoder sees uint8.
    Raises ValueError when one of them is not from 0 to 255, or when none is above 1: those were scaled, and would all
    be black.
    """
    import cv2
    import numpy as np

    indices = uniform_indices(len(crops), n_frames=n_frames)
    faces = np.empty((len(indices), size, size, 3), np.uint8)
    highest = 0.0
    for position, i in enumerate(indices):
        if position and i == indices[position - 1]:  # the last of a short clip is repeated, and resized once
            faces[position] = faces[position - 1]
            continue
        crop = np.ascontiguousarray(crops[i])
        if crop.dtype != np.uint8:
            if not (crop.min() >= 0 and crop.max() <= 255):  # false for NaN too
                raise ValueError(
                    f"crop {i} of {crop.dtype} has values from {crop.min()} to {crop.max()}, expected 0 to 255"
                )
            highest = max(highest, crop.max())
        faces[position] = cv2.resize(crop, (size, size))  # bilinear
    if crops.dtype != np.uint8 and 0 < highest <= 1:
        raise ValueError(
            f"its {crops.dtype} crops have values up to {highest}, expected 0 to 255: multiply them by 255"
        )
    return faces


def read_image(path: Path | str, *, size: int = IMAGE_SIZE) -> np.ndarray:
    """Read an image as RGB, resized to a square (bicubic): uint8 ``[size, size, 3]``. Raises DataError."""
    import numpy as np
    from PIL import Image

    path = check_file(path)
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plugins raise whatever they like on damaged files
        raise DataError(f"{path}: cannot be read as an image ({short_error(error)})") from error


def probe_video(path: Path | str) -> VideoInfo:
    """Read the container's header. Raises DataError when it is no container or has no video track."""
    import av

    path = check_file(path)
    try:
        with av.open(local(path)) as container:
            stream = picture_stream(container)
            if stream is None:
                raise DataError(f"{path}: no video track")
            if not stream.width or not stream.height:
                raise DataError(
                    f"{path}: its pictures cannot be read (format {container.format.name}); convert it to mp4"
                )
            if container.duration is not None:
                seconds = container.duration / av.time_base
            else:
                seconds = float((stream.duration or 0) * (stream.time_base or 0))
            return VideoInfo(
                seconds=float(seconds), width=stream.width, height=stream.height, frames=stream.frames,
                frames_per_second=float(stream.average_rate or 0), audio_tracks=len(container.streams.audio),
                format=container.format.name,
            )  # fmt: skip
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: no readable video container ({short_error(error)})") from error


def probe_faces(path: Path | str) -> tuple[int, int, int]:
    """Count, height and width of the crops in a face file; nothing but the header is read. Raises DataError."""
    n, height, width, _ = _open_faces(path).shape
    return n, height, width


def probe_image(path: Path | str) -> tuple[int, int]:
    """Width and height of an image, by its header. Raises DataError."""
    from PIL import Image

    path = check_file(path)
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image ({short_error(error)})") from error


def short_error(error: BaseException) -> str:
    """The first line of a native library's error, without the places in its source and stack that decord tells."""
    text = getattr(error, "strerror", None) or _PLACE.sub("", str(error))
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _open_faces(path: Path | str) -> np.ndarray:
    import numpy as np

    path = check_file(path)
    try:
        crops = np.lib.format.open_memmap(path, mode="r")  # maps plain arrays only: nothing is ever unpickled
    except Exception as error:  # a damaged header is parsed as Python source: many kinds of error
        raise DataError(f"{path}: no plain npy array ({short_error(error)})") from error
    if crops.dtype not in (np.uint8, np.float32) or crops.ndim != 4 or crops.shape[-1] != 3:
        raise DataError(
            f"{path}: expected uint8 [N, H, W, 3], found {crops.dtype} {list(crops.shape)} (float32 from 0 to 255 is "
            "taken too)"
        )
    if 0 in crops.shape:
        raise DataError(f"{path}: holds no face crop (shape {list(crops.shape)})")
    return crops


def local(path: Path | str) -> str:
    """A path as FFmpeg takes it: absolute, for it would read ``13:19:57.mp4`` and ``pipe:0.mp4`` as protocols."""
    return str(Path(path).absolute())


def picture_stream(container: Any) -> Any:
    """The video stream of an open container that shows the clip, not a cover picture; None where there is none."""
    import av

    stream = container.streams.best("video")  # the one of most pictures, as FFmpeg and decord choose
    return None if stream is None or stream.disposition & av.stream.Disposition.attached_pic else stream


# What decord reads as FFmpeg's own decoding does: containers without breaks in their time stamps, common codecs.
_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "mjpeg", "msmpeg4v3", "msmpeg4v2")


def _is_plain(path: Path) -> bool:
    """Return whether decord shows a video as it is meant: one stream of pictures, none of them hidden by an edit list
    (as after cutting without encoding), turned or mirrored. decord counts hidden frames, and takes a cover for the
    clip."""
    import av

    try:
        with av.open(local(path)) as container:
            if container.format.name not in _CONTAINERS or len(container.streams.video) != 1:
                return False
            stream = container.streams.video[0]
            if stream is not picture_stream(container) or stream.codec_context.name not in _CODECS:
                return False
            if any(packet.is_discard for packet in container.demux(stream)):
                return False
        return _orientation_of_file(path) == ()
    except av.FFmpegError:  # whoever decodes it says what is wrong with it
        return True


def _uniform(total: int, *, n_frames: int) -> tuple[list[int], int]:
    return uniform_indices(total, n_frames=n_frames), n_frames


def _single(total: int, *, at: float) -> tuple[list[int], int]:
    return [int(at * total)], 1


def _window(total: int, *, n_frames: int, start: int, count: int) -> tuple[list[int], int]:
    chosen = uniform_indices(total, n_frames=n_frames) if 0 < n_frames < total else list(range(total))
    return chosen[start : start + count], len(chosen)


# Number of frames → indices to decode, and how many there are to be decoded in all.
Pick = Callable[[int], tuple[list[int], int]]


def _read(path: Path, *, width: int, height: int, reader: str | None, pick: Pick) -> tuple[np.ndarray, int]:
    """Frames uint8 ``[n, height, width, 3]`` that ``pick`` chooses, by the reader of this machine or the named one."""
    name = (reader or video_reader()).split()[0]
    if reader is None and name != "pyav" and not _is_plain(path):
        name = "pyav"
    read = _pyav_frames if name == "pyav" else _decord_frames
    try:
        return read(path, width, height, pick)
    except DataError:
        raise
    except Exception as error:  # native decoders raise whatever they like on damaged files
        kind = probe_video(path).format  # says in plain words what is no video at all
        # Frames that decord cannot count, of a gif or a browser's recording; the same pixels come from PyAV.
        if name != "pyav" and (kind == "gif" or kind.endswith("_pipe") or "frame-count" in str(error)):
            return _read(path, width=width, height=height, reader="pyav", pick=pick)
        raise DataError(f"{path}: its frames cannot be decoded by {name} ({short_error(error)})") from error


def _decord_frames(path: Path, width: int, height: int, pick: Pick) -> tuple[np.ndarray, int]:
    import decord
    import numpy as np

    # One thread: loader workers are processes already, and pixels do not depend on it.
    video = decord.VideoReader(local(path), ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    if len(video) == 0:
        raise DataError(f"{path}: the video has no frames")
    wanted, total = pick(len(video))
    if not wanted:
        return np.zeros((0, height, width, 3), dtype=np.uint8), total
    return video.get_batch(wanted).asnumpy(), total


def _pyav_frames(path: Path, width: int, height: int, pick: Pick) -> tuple[np.ndarray, int]:
    import av
    import numpy as np

    with av.open(local(path)) as container:
        if container.format.name.endswith("_pipe"):  # FFmpeg's word for single pictures
            kind = probe_video(path).format  # says what cannot be read at all
            raise DataError(f"{path}: a picture ({kind.removesuffix('_pipe')}), expected a video")
        stream = picture_stream(container)
        if stream is None:
            raise DataError(f"{path}: no video track")
        count = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
    if not count:
        raise DataError(f"{path}: the video has no frames")
    wanted, total = pick(count)
    frames, decoded = _pick_frames(path, set(wanted), width, height)
    if not decoded:
        raise DataError(f"{path}: none of its {count} video packets can be decoded")
    if decoded != count:  # packets that show no frame, or two: count what is shown
        wanted, total = pick(decoded)
        frames, decoded = _pick_frames(path, set(wanted), width, height)
    if not wanted:
        return np.zeros((0, height, width, 3), dtype=np.uint8), total
    return np.stack([frames[i] for i in wanted]), total


def _pick_frames(path: Path, wanted: set[int], width: int, height: int) -> tuple[dict[int, np.ndarray], int]:
    """Frames by number, and how many there are; everything is decoded once, only the wanted ones are scaled."""
    import av

    with av.open(local(path)) as container:
        stream = picture_stream(container)
        graph: av.filter.Graph | None = None
        frames: dict[int, np.ndarray] = {}
        decoded = 0
        for frame in container.decode(stream):
            if decoded in wanted:
                graph = graph or _scaler(stream, width, height, orientation=_orientation(frame))
                graph.push(frame)
                frames[decoded] = graph.pull().to_ndarray()
            decoded += 1
    return frames, decoded


def _scaler(stream: Any, width: int, height: int, *, orientation: tuple[str, ...]) -> Any:
    """A filter graph from frames of a stream to RGB pictures; this chain, not ``frame.reformat()``, is decord's."""
    import av

    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(template=stream),
        *(graph.add(name, "0" if name == "transpose" else None) for name in orientation),
        graph.add("scale", f"{width}:{height}:flags=bilinear"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for left, right in itertools.pairwise(nodes):
        left.link_to(right)
    graph.configure()
    return graph


def _orientation_of_file(path: Path | str) -> tuple[str, ...]:
    """``_orientation`` of a video's first picture; () where it cannot be decoded."""
    import av

    try:
        with av.open(local(path)) as container:
            return _orientation(next(container.decode(picture_stream(container))))
    except (av.FFmpegError, StopIteration, TypeError, AttributeError):  # whoever decodes it next says what is wrong
        return ()


def _orientation(frame: Any) -> tuple[str, ...]:
    """FFmpeg's filters that show a decoded frame as its display matrix says: phones turn, front cameras mirror.

    The matrix maps a stored pixel (x, y) to (a x + c y, b x + d y). Only the eight orientations by right angles are
    applied; any other matrix is left alone, as decord does.
    """
    import numpy as np

    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return ()
    a, b, _, c, d = (int(np.sign(round(value / 65536, 2))) for value in np.frombuffer(matrix, dtype=np.int32)[:5])
    if (a, d) != (0, 0) and (b, c) == (0, 0):
        return ("hflip",) * (a < 0) + ("vflip",) * (d < 0)
    if (a, d) == (0, 0) and 0 not in (b, c):  # transpose=0 exchanges x and y
        return ("transpose",) + ("hflip",) * (c < 0) + ("vflip",) * (b < 0)
    return ()
