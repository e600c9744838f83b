"""Frames and sound as the bytes of files."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from affectgpt.core.errors import DataError
from affectgpt.media.encode import jpeg_of, mp4_of, wav_of, within_one


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [np.stack([rows * 3 + 10 * t, columns * 3, np.full_like(rows, 20 * t)], axis=-1) for t in range(frames)]
    ).astype(np.uint8)


@pytest.mark.parametrize(("count", "fps"), [(8, 2.0), (1, 0.2), (5, 29.97)])
def test_a_video_keeps_pictures_and_pace(count, fps):
    frames = smooth(count, 33, 48)
    data = mp4_of(frames, fps=fps)
    assert data == mp4_of(frames, fps=fps)
    with av.open(io.BytesIO(data)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == (count, 32, 48, 3)
    assert np.abs(decoded.astype(int) - frames[:, :32]).mean() < 6


def test_a_video_of_one_column_is_refused():
    with pytest.raises(DataError, match="1 by 40 pixels"):
        mp4_of(smooth(2, 40, 1), fps=1)


def test_a_picture():
    frame = smooth(1, 32, 32)[0]
    data = jpeg_of(frame)
    assert data[:2] == b"\xff\xd8"


def test_sound():
    samples = np.linspace(-1, 1, 1600, dtype=np.float32)
    back, rate = soundfile.read(io.BytesIO(wav_of(samples)))
    assert rate == 16_000 and np.abs(back - samples).max() < 1e-4
    assert within_one(samples) is samples
    assert np.abs(within_one(samples * 1.25) - samples).max() < 1e-6
    assert np.abs(within_one(samples * 16384) - samples / 2).max() < 1e-6
    assert within_one(np.zeros(0, np.float32)).size == 0
