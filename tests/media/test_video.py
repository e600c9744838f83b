"""Frames, faces and images: what is read, what is refused, and that probing is cheap."""

from __future__ import annotations

import pickle
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.media.video import (
    probe_faces,
    probe_video,
    read_faces,
    read_frames,
    read_image,
    read_native_frames,
    uniform_indices,
    video_reader,
)

READERS = ("decord", "pyav")


@pytest.mark.parametrize("n", [1, 3, 8, 9, 88, 1001])
def test_uniform_indices(n):
    indices = uniform_indices(n)
    assert len(indices) == 8 and indices == sorted(indices) and indices[0] == 0 and indices[-1] < n
    assert len(set(indices)) == min(n, 8)


def test_no_frame_is_no_sample():
    with pytest.raises(ValueError, match="0 frames"):
        uniform_indices(0)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_frames(reader, count, make, tmp_path):
    pytest.importorskip("decord" if reader == "decord" else "av")
    path = make.video(tmp_path / "clip.mp4", frames=count)
    frames = read_frames(path, reader=reader)
    assert frames.shape == (8, 224, 224, 3) and frames.dtype == np.uint8
    expected = [12 * i for i in uniform_indices(count)]  # green counts frames on the right half
    np.testing.assert_allclose(frames[:, 100, 180, 1], expected, atol=6)


def test_both_readers_give_the_same_pixels(make, tmp_path):
    pytest.importorskip("decord")
    path = make.video(tmp_path / "clip.mp4", frames=17, width=90, height=70)
    np.testing.assert_array_equal(read_frames(path, reader="decord"), read_frames(path, reader="pyav"))


def turned(path, degrees: int, *, width: int, height: int):
    """Mark an mp4 as to be shown turned clockwise, as phones do: the matrix of its track header."""
    one = 1 << 16
    turn_and_shift = {
        90: (0, one, 0, -one, 0, 0, height * one, 0),
        180: (-one, 0, 0, 0, -one, 0, width * one, height * one),
        270: (0, -one, 0, one, 0, 0, 0, width * one),
    }[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind the box's name, version 0
    data[at : at + 36] = struct.pack(">9i", *turn_and_shift, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_turned_upright_by_either_reader(degrees, make, tmp_path):
    upright = read_frames(make.video(tmp_path / "a.mp4", width=96, height=64), reader="pyav")
    path = turned(make.video(tmp_path / "b.mp4", width=96, height=64), degrees, width=96, height=64)
    frames = read_frames(path, reader="pyav")
    expected = np.rot90(upright, -degrees // 90, axes=(1, 2)).astype(int)
    assert np.abs(frames - expected)[:, 20:-20, 20:-20].mean() < 3 < np.abs(frames - upright.astype(int)).mean()
    part, _ = read_native_frames(path, n_frames=1, start=0, count=1, longest_side=1280)
    assert part.shape == ((1, 64, 96, 3) if degrees == 180 else (1, 96, 64, 3))  # a face in it keeps its shape
    pytest.importorskip("decord")
    np.testing.assert_array_equal(read_frames(path, reader="decord"), frames)


def test_frames_are_counted_not_timed(tmp_path):
    """Variable frame rate: both readers take frames by number, as the published loader does."""
    import av

    pytest.importorskip("decord")
    path, moment = tmp_path / "clip.mp4", 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 12 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            moment += 10 + 97 * i % 400
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(path, reader="pyav")
    np.testing.assert_array_equal(read_frames(path, reader="decord"), frames)
    np.testing.assert_allclose(frames[:, 100, 100, 1], [12 * i for i in uniform_indices(20)], atol=6)


def test_the_reader_is_recorded_with_its_version():
    name, version = video_reader().split()
    assert name in ("decord", "decord2", "eva-decord", "pyav") and version[0].isdigit()


def test_without_decord_pyav_reads(make, monkeypatch, tmp_path):
    """Machines that have no decord (it is for Linux on x86-64)."""
    import importlib.util

    path = make.video(tmp_path / "clip.mp4")
    expected = read_frames(path, reader="pyav")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "decord" else find(name))
    monkeypatch.setitem(sys.modules, "decord", None)  # importing it would fail
    video_reader.cache_clear()
    try:
        assert video_reader().split()[0] == "pyav"
        np.testing.assert_array_equal(read_frames(path), expected)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        video_reader.cache_clear()
        with pytest.raises(ConfigError, match="no video reader: install decord"):
            read_frames(path)
    finally:
        video_reader.cache_clear()


def test_native_frames_come_in_parts_at_their_own_aspect_ratio(make, tmp_path):
    path = make.video(tmp_path / "clip.mp4", frames=20, width=64, height=48)
    part, total = read_native_frames(path, n_frames=0, start=15, count=10, longest_side=1280)
    assert part.shape == (5, 48, 64, 3) and total == 20
    part, total = read_native_frames(path, n_frames=4, start=0, count=10, longest_side=32)
    assert part.shape == (4, 24, 32, 3) and total == 4
    part, total = read_native_frames(path, n_frames=4, start=4, count=10, longest_side=32)
    assert len(part) == 0 and total == 4


def test_probe(make, tmp_path):
    info = probe_video(make.video(tmp_path / "clip.mp4", frames=20, sound=False))
    assert (info.width, info.height, info.frames, info.frames_per_second) == (64, 48, 20, 10.0)
    assert info.seconds == pytest.approx(2.0, abs=0.1) and info.audio_tracks == 0
    assert probe_video(make.video(tmp_path / "sound.mp4")).audio_tracks == 1
    assert probe_faces(make.faces(tmp_path / "faces.npy", n=3)) == (3, 112, 112)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "no such file"), ("empty", "empty"), ("text", "no readable video container"),
        ("truncated", "no readable video container"), ("sound only", "no video track"), ("folder", "no regular file"),
    ],
)  # fmt: skip
def test_damaged_video(reader, kind, reason, make, tmp_path):
    pytest.importorskip("decord" if reader == "decord" else "av")
    path = tmp_path / "clip.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video")
    elif kind == "truncated":
        path.write_bytes(make.video(path).read_bytes()[:300])
    elif kind == "sound only":
        make.video(path, frames=0)
    elif kind == "folder":
        path.mkdir()
    for read in (read_frames, probe_video):
        with pytest.raises(DataError, match=rf"clip\.mp4: .*{reason}"):
            read(path, reader=reader) if read is read_frames else read(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_video_of_no_frames(reader, tmp_path):
    """A track is announced and no packet follows; the reason is told in words, without places in somebody's source."""
    import av

    pytest.importorskip("decord" if reader == "decord" else "av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "+frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match=r"clip\.mp4: (the video has no frames|its frames cannot be decoded)") as raised:
        read_frames(path, reader=reader)
    assert "Check failed" not in str(raised.value) and "Errno" not in str(raised.value)


def test_faces_are_sampled_and_resized(make, tmp_path):
    faces = read_faces(make.faces(tmp_path / "a.npy", n=50))
    assert faces.shape == (8, 224, 224, 3) and faces.dtype == np.uint8
    short = read_faces(make.faces(tmp_path / "b.npy", n=2))
    np.testing.assert_array_equal(short[1], short[7])
    assert not np.array_equal(short[0], short[1])


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((4, 112, 112), np.uint8), r"expected uint8 \[N, H, W, 3\], found uint8 \[4, 112, 112\]"),
        (np.zeros((4, 112, 112, 4), np.uint8), "found uint8"),
        (np.zeros((4, 112, 112, 3), np.float64), "found float64"),
        (np.zeros((0, 112, 112, 3), np.uint8), "holds no face crop"),
    ],
)
def test_face_files_of_another_form(array, message, tmp_path):
    np.save(tmp_path / "clip.npy", array)
    with pytest.raises(DataError, match=rf"clip\.npy: .*{message}"):
        read_faces(tmp_path / "clip.npy")


class _Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_pickled_faces_are_refused_unread(tmp_path):
    path = tmp_path / "clip.npy"
    np.save(path, np.array([_Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"clip\.npy: no plain npy array"):
        read_faces(path)
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match=r"clip\.npy: no plain npy array"):
        read_faces(path)


def test_truncated_faces(make, tmp_path):
    path = make.faces(tmp_path / "clip.npy")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"clip\.npy"):
        read_faces(path)


def test_image(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((30, 40, 4), (200, 10, 20, 255), np.uint8)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (224, 224, 3) and image[100, 100].tolist() == [200, 10, 20]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png: cannot be read as an image"):
        read_image(tmp_path / "b.png")


def test_a_browsers_recording_without_a_length_is_read(tmp_path):
    """Matroska as MediaRecorder writes it: a stream, whose header says neither length nor number of frames."""
    import av

    path = tmp_path / "webcam.webm"
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(12):
            picture = np.full((64, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = read_frames(path)
    assert frames.shape == (8, 224, 224, 3) and frames[-1].mean() > frames[0].mean() + 100
