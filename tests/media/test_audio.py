"""Sound: clips, resampling, tracks of videos, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from affectgpt.core.errors import DataError
from affectgpt.media.audio import clip_starts, cut_clips, probe_audio, read_audio, read_track, read_wave, resample


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


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, pytest.param(44101, marks=pytest.mark.slow)])
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


def write_track(path, samples, *, rate=16000):
    """A Matroska file with float samples ``[n]`` as they are, after 20 frames of a video."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        for i in range(20):
            image = np.full((64, 64, 3), 12 * i, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(np.asarray(samples, np.float32)[None], format="flt", layout="mono")
        frame.rate = rate
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize("value", [3e38, 1e300, -4e4, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "track", "m4a"])
def test_samples_that_are_no_sound_are_errors(kind, value, tmp_path):
    wave = 0.1 * np.sin(np.arange(40_000) / 9)
    wave[12_345] = value
    path = tmp_path / ("a.mkv" if kind == "track" else f"a.{kind}" if kind == "m4a" else "a.wav")
    with np.errstate(over="ignore"):
        if kind == "track":
            write_track(path, wave)
        else:  # whatever the name says, FFmpeg reads what it is
            soundfile.write(path, wave, 16000, subtype="DOUBLE" if kind == "m4a" else kind, format="WAV")
    with pytest.raises(DataError, match=r"a\.\w+: the sound holds (NaN or infinite samples|samples of)"):
        read_audio(path)


def test_integers_stored_as_floats_are_read(tmp_path):
    wave = np.sin(np.arange(40_000) / 9).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", wave * 32767, 16000, subtype="FLOAT")
    small, large = (read_audio(tmp_path / name)[0] for name in ("a.wav", "b.wav"))
    np.testing.assert_allclose(large / 32767, small, atol=1e-6)


@pytest.mark.parametrize("rate", [1, 999, 768_001])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_rates_are_bounded_before_anything_is_resampled(name, rate, tmp_path):
    """At 1 Hz these 4 KB would be 32 million samples."""
    path = tmp_path / name
    if name == "a.flac" and rate > 655_350:
        pytest.skip("no flac file has such a rate")
    soundfile.write(path, np.zeros(2_000), rate, format="FLAC" if name == "a.flac" else "WAV")
    with pytest.raises(DataError, match=r"the sound has a rate of [\d,]+ Hz; expected 1,000 to 768,000 Hz"):
        read_audio(path)
    if name != "a.m4a":
        with pytest.raises(DataError, match="rate of"):
            probe_audio(path)


def test_lengths_are_bounded_before_anything_is_read(tmp_path):
    """A header that claims 64 thousand million samples."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(2_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.flac: the sound is [\d,]+ s long .*; at most 268,435,456 samples"):
        read_audio(path)


def test_a_damaged_track_is_named(make, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make.video(path).read_bytes()[:200])
    with pytest.raises(DataError, match=r"clip\.mp4: its sound track cannot be decoded"):
        read_audio(path)
