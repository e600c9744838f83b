"""Frames, faces and sound equal what the published implementation made of the same files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from affectgpt.media.audio import clip_starts, cut_clips, read_audio, read_track, read_wave
from affectgpt.media.video import read_faces, read_frames, uniform_indices

pytestmark = pytest.mark.parity
PUBLISHED, LATER = "pypi_0.1.5", "main"
SPACING = {PUBLISHED: 8, LATER: 7}
SOUNDS = ("demo", "short_1s", "exact_2s", "odd_len", "stereo", "sr44100", "sr8000")


@pytest.fixture(scope="module")
def data(golden):
    return json.loads((golden / "data" / "data.json").read_text())


@pytest.fixture(scope="module")
def clip(merunibench):
    return merunibench / "demo" / "sample_00000000.mp4"


def sound_file(name, golden, merunibench):
    return merunibench / "demo" / "sample_00000000.wav" if name == "demo" else golden / "data" / f"audio_{name}.wav"


def test_uniform_indices(data):
    for n, indices in data["uniform_indices"].items():
        assert uniform_indices(int(n)) == indices, n


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_frames_of_a_real_clip(data, golden, clip, reader):
    if reader == "decord":
        decord = pytest.importorskip("decord")
        assert len(decord.VideoReader(str(clip))) == data["video"]["vlen"]
    frames = read_frames(clip, reader=reader)
    assert frames.shape == (8, 224, 224, 3) and frames.dtype == np.uint8
    published = np.load(golden / "data" / "video_demo.npz")["frames"]  # [3, 8, 224, 224]
    np.testing.assert_array_equal(frames.transpose(3, 0, 1, 2), published)
    as_float = np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).astype(np.float32)
    digests = {hashlib.sha256(a.tobytes()).hexdigest() for a in (as_float, as_float.astype(np.uint8))}
    assert data["video"]["sha"] in digests


@pytest.mark.parametrize("n", [5, 8, 50])
def test_faces(golden, tmp_path, n):
    stored = np.load(golden / "data" / "faces.npz")
    np.save(tmp_path / "clip.npy", stored[f"in{n}"])
    faces = read_faces(tmp_path / "clip.npy")
    np.testing.assert_array_equal(faces.transpose(3, 0, 1, 2), stored[f"out{n}"])


@pytest.mark.parametrize("release", [PUBLISHED, LATER])
@pytest.mark.parametrize("name", SOUNDS)
def test_clips_of_sound(data, golden, merunibench, name, release):
    published = data["audio"][name][release]
    samples = read_wave(sound_file(name, golden, merunibench))
    padded = np.pad(samples, (0, max(0, 32000 - len(samples))))
    starts = clip_starts(len(padded), spacing=SPACING[release])
    if published["starts_sample"] is not None:  # the published run noted no starts where it resampled
        assert starts == published["starts_sample"]
    raw = np.stack([padded[at : at + 32000] for at in starts])  # [8, 32000]
    exact = name not in ("sr44100", "sr8000")
    means = raw.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(means, published["clip_means"], rtol=0, atol=2e-8)
    assert abs(np.abs(raw.astype(np.float64)).sum() - published["sum_abs"]) <= (1e-9 if exact else 2e-4)
    if "sha256_i16_le" in published:
        assert hashlib.sha256((raw * 32768).astype("<i2").tobytes()).hexdigest() == published["sha256_i16_le"]
    clips, flags = read_audio(sound_file(name, golden, merunibench), spacing=SPACING[release])
    assert clips.shape == (8, 32000) and clips.dtype == np.float32 and flags == ()
    np.testing.assert_allclose(
        clips, raw - np.float32(published["clip_means"])[:, None], rtol=0, atol=0 if exact else 5e-8
    )


@pytest.mark.parametrize("name, tolerance", [("odd_len", 0), ("stereo", 0), ("sr44100", 5e-8), ("sr8000", 5e-8)])
def test_last_clip_before_its_mean_is_removed(golden, merunibench, name, tolerance):
    samples = read_wave(sound_file(name, golden, merunibench))
    last = samples[clip_starts(len(samples))[7] :][:32000:8]
    published = np.load(golden / "data" / "audio.npz")[f"{name}_raw_clip7_every8"][0]
    np.testing.assert_allclose(last, published, rtol=0, atol=tolerance)


def test_first_clip_after_its_mean_is_removed(golden, merunibench):
    clips = cut_clips(read_wave(sound_file("demo", golden, merunibench)))
    published = np.load(golden / "data" / "audio.npz")["demo_pypi_0.1.5_after_transform_clip0"]
    np.testing.assert_array_equal(clips[:1], published)


def test_means_are_removed_from_the_model_inputs(golden):
    stored = np.load(golden / "inputs" / "batch.npz")["raw_audios"]  # [2, 8, 1, 32000]
    assert np.abs(stored.mean(axis=-1)).max() < 1e-8


def test_sound_track_of_the_video_is_within_one_16_bit_step_of_the_published_wav(golden, merunibench, clip):
    track, wav = read_track(clip), read_wave(sound_file("demo", golden, merunibench))
    shared_length = min(len(track), len(wav))
    assert abs(len(track) - len(wav)) <= 1024
    assert np.abs(track[:shared_length] - wav[:shared_length]).max() <= 1 / 32768
