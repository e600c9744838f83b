"""Sound: clips, resampling, tracks of videos, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from affectgpt.core.errors import DataError
from affectgpt.data.audio import clip_starts, cut_clips, probe_audio, read_audio, read_track, read_wave, resample


def test_clips_have_no_mean_and_follow_their_starts(make, tmp_path):
    samples = np.linspace(-0.5, 0.5, 80_000, dtype=np.float32)
    clips = cut_clips(samples)
    assert clips.shape == (8, 32000) and clips.dtype == np.float32
    np.testing.assert_allclose(clips.mean(axis=1), 0, atol=1e-7)
    # 5 s: clips start every 3/8 s
    assert clip_starts(80_000) == [6000 * i for i in range(8)]
    assert clip_starts(80_000, spacing=7)[-1] == 48_000
    np.testing.assert_allclose(np.diff(clips[3]), np.diff(samples[18_000:50_000]), atol=1e-6)


def test_starts_are_exact_rationals_truncated():
    # 35,001 samples are not 35,001 / 16,000 s exactly in floating point: the last start falls one sample short
    assert clip_starts(35_001, spacing=7)[-1] == 3000


def test_short_sound_is_padded(make, tmp_path):
    clips, flags = read_audio(make.sound(tmp_path / "a.wav", seconds=0.5))
    assert flags == () and np.ptp(clips[0, 8000:]) == 0 and np.abs(clips[0, :8000]).max() > 0.2
    assert (clips == clips[0]).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 44101])
def test_a_sine_stays_a_sine(rate, make, tmp_path):
    samples = read_wave(make.sound(tmp_path / "a.wav", seconds=1.0, rate=rate, channels=2))
    assert len(samples) == 16_000
    expected = 0.3 * np.sin(np.arange(16_000) * 440 * 2 * np.pi / 16_000)
    np.testing.assert_allclose(samples[500:-500], expected[500:-500], atol=2e-3)


def test_resampling_one_channel_at_a_time_is_the_same():
    noise = np.random.default_rng(0).standard_normal((2, 4410)).astype(np.float32)
    both = resample(noise, rate=44100)
    np.testing.assert_allclose(both, np.concatenate([resample(c[None], rate=44100) for c in noise]), atol=1e-6)


def test_track_of_a_video(make, tmp_path):
    path = make.video(tmp_path / "clip.mp4", frames=30)
    track = read_track(path)
    assert track.dtype == np.float32 and 40_000 < len(track) < 60_000 and np.abs(track).max() > 0.2
    clips, flags = read_audio(path)
    assert clips.shape == (8, 32000) and flags == ()


def test_a_video_without_sound_gives_zeros_and_a_flag(make, tmp_path):
    clips, flags = read_audio(make.video(tmp_path / "clip.mp4", sound=False))
    assert flags == ("no_audio_track",) and clips.shape == (8, 32000) and not clips.any()


def test_probe(make, tmp_path):
    info = probe_audio(make.sound(tmp_path / "a.wav", seconds=1.5, rate=44100, channels=2))
    assert (info.seconds, info.sample_rate, info.channels) == (1.5, 44100, 2)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "header only", "no samples", "nan", "infinite"])
def test_damaged_sound(kind, make, tmp_path):
    path = tmp_path / "a.wav"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("RIFF? no.")
    elif kind == "header only":
        path.write_bytes(make.sound(path).read_bytes()[:20])
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0, np.float32), 16000)
    elif kind in ("nan", "infinite"):
        wave = np.zeros(40_000, np.float32)
        wave[7] = np.nan if kind == "nan" else np.inf
        soundfile.write(path, wave, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: "):
        read_audio(path)


def test_a_damaged_track_is_named(make, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make.video(path).read_bytes()[:200])
    with pytest.raises(DataError, match=r"clip\.mp4: its sound track cannot be decoded"):
        read_audio(path)
