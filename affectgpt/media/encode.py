"""Decoded frames and sound → the bytes of small files, as servers of multimodal models take them."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.types import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

_JPEG_QUALITY = 88
_CRF = 18  # of H.264: hardly to be told from the frames
_STORED_AS_INTEGERS = 2.0  # a peak beyond: 16-bit integers that were written into a float file
_FPS = (0.001, 1000.0)  # frames per second that a container can say


def jpeg_of(frame: np.ndarray) -> bytes:
    """A JPEG picture of uint8 ``[H, W, 3]`` RGB. Raises DataError when it cannot be written."""
    import cv2

    good, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not good:
        raise DataError("a frame cannot be written as JPEG")
    return data.tobytes()


def mp4_of(frames: np.ndarray, *, fps: float) -> bytes:
    """An mp4 file (H.264, no sound) of uint8 ``[T, H, W, 3]`` RGB at ``fps`` frames per second.

    H.264 wants even sides: an odd last row or column is left out. Equal frames give equal bytes (one thread).
    Raises DataError for a picture of a single row or column.
    """
    import av
    import numpy as np

    height, width = (length - length % 2 for length in frames.shape[1:3])
    if not height or not width:
        raise DataError(f"frames of {frames.shape[2]} by {frames.shape[1]} pixels cannot be sent as a video")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(min(max(fps, _FPS[0]), _FPS[1])).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(_CRF)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def wav_of(samples: np.ndarray) -> bytes:
    """A wav file (mono, 16 kHz, 16 bits) of float32 ``[n]`` as ``within_one`` gives them."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def within_one(samples: np.ndarray) -> np.ndarray:
    """Samples float32 ``[n]`` scaled to ±1 where they go beyond: integers by 32768, others by their peak."""
    import numpy as np

    peak = float(np.abs(samples).max(initial=0.0))
    if peak > _STORED_AS_INTEGERS:
        samples, peak = samples / 32768, peak / 32768
    return samples / peak if peak > 1 else samples
