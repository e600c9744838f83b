"""Sound: from a file to eight clips of two seconds, as the released models heard them (wire)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.types import CLIP_SAMPLES, CLIP_SECONDS, N_FRAMES, SAMPLE_RATE, SOUND_SUFFIXES
from affectgpt.media.video import check_file, local, short_error

if TYPE_CHECKING:
    import numpy as np
    import torch

NO_AUDIO_TRACK = "no_audio_track"
FIRST_CHANNEL = "first_channel_of_several"  # a sound file of more than two channels
RATES = (1_000, 768_000)  # Hz; outside no sound is recorded, and a header of 1 Hz asks for 16,000 times the samples
MAX_CHANNELS = 64
MAX_SAMPLES = 1 << 28  # of all channels, as stored and at 16 kHz: 1 GB of float32, 4.6 hours of mono
# Samples are within ±1. Some programs write 16-bit integers into float files as they are, which normalisation takes out
# again; what is beyond cannot be sound, and from 1e19 on its squares overflow.
PEAK = 32_768.0
_LARGEST_KERNEL = 20_000_000  # filter taps; unusual rates (44,101 Hz) would need gigabytes


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """Facts from a sound file's header."""

    seconds: float
    sample_rate: int  # Hz
    channels: int


def read_audio(path: Path | str, *, spacing: int = 8) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a sound file, or the sound track of a video, as the clips that the encoders take.

    Returns float32 ``[8, 32000]`` and flags: ``no_audio_track`` when a video has no sound (the clips are zeros), and
    those of ``wave_flags``. Raises DataError naming the file.
    """
    import numpy as np

    path = Path(path)
    samples = read_wave(path, channels=True) if path.suffix.lower() in SOUND_SUFFIXES else read_track(path)
    if samples is None:
        return np.zeros((N_FRAMES, CLIP_SAMPLES), dtype=np.float32), (NO_AUDIO_TRACK,)
    return cut_clips(samples, spacing=spacing), wave_flags(path)


def read_wave(path: Path | str, *, channels: bool = False) -> np.ndarray:
    """Read a sound file as mono at 16 kHz: float32 ``[n]``.

    Two channels are averaged after resampling; of more than two the first is taken (wire), see ``wave_flags``.
    ``channels``: of more than two give all, ``[channels, n]``, since ``cut_clips`` removes the mean of all.

    Raises DataError naming the file when it is no sound file, has no samples, is too long or of a rate outside
    ``RATES``, or holds NaN, infinity or samples beyond ``PEAK``.
    """
    import soundfile

    path = check_file(path)
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            _check_header(path, rate=rate, frames=file.frames, channels=file.channels)
            samples = file.read(dtype="float32", always_2d=True)  # [n, channels]
    except DataError:
        raise
    except Exception as error:  # libsndfile, or memory
        raise DataError(f"{path}: cannot be read as sound ({short_error(error)})") from error
    _check_samples(samples, path)
    if samples.shape[1] <= 2:
        return resample(samples.T, rate=rate).mean(axis=0)
    return resample(samples.T, rate=rate) if channels else resample(samples.T[:1], rate=rate)[0]


def wave_flags(path: Path | str) -> tuple[str, ...]:
    """``first_channel_of_several`` for a sound file of more than two channels; of a video FFmpeg mixes all channels."""
    if Path(path).suffix.lower() not in SOUND_SUFFIXES:
        return ()
    return (FIRST_CHANNEL,) if probe_audio(path).channels > 2 else ()


def read_track(path: Path | str, *, longest: float | None = None) -> np.ndarray | None:
    """Decode the sound track of a video as mono at 16 kHz: float32 ``[n]``; None when there is no track.

    Goes through 16-bit samples: within one of their steps of the published wav files (float output of the same
    resampler comes out louder for stereo). Raises DataError naming the file, as ``read_wave`` does, and when there are
    more than ``longest`` seconds.
    """
    import av
    import numpy as np

    path = check_file(path)
    chunks: list[np.ndarray] = []
    decoded = 0
    try:
        with av.open(local(path)) as container:
            if not container.streams.audio:
                return None
            resampler, form = None, None
            for frame in container.decode(container.streams.audio[0]):
                decoded += frame.samples
                if longest is not None and decoded > longest * frame.sample_rate:
                    raise DataError(f"{path}: the sound is more than {longest:g} s long")
                _check_header(path, rate=frame.sample_rate, frames=decoded, channels=len(frame.layout.channels))
                # floats are looked at here: 16 bits would clip them without a word
                if frame.samples and frame.format.name.startswith(("flt", "dbl")):
                    _check_samples(frame.to_ndarray(), path)
                if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    # recordings of television go from stereo to 5.1 and back within a track
                    chunks += [out.to_ndarray()[0] for out in resampler.resample(None)] if resampler else []
                    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
                assert resampler is not None
                chunks += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            chunks += [out.to_ndarray()[0] for out in resampler.resample(None)] if resampler else []
    except DataError:
        raise
    except Exception as error:  # FFmpeg's many errors
        raise DataError(f"{path}: its sound track cannot be decoded ({short_error(error)})") from error
    samples = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)
    if len(samples) == 0:
        raise DataError(f"{path}: the sound has no samples")
    return samples.astype(np.float32) / 32768


def cut_clips(samples: np.ndarray, *, spacing: int = 8) -> np.ndarray:
    """Samples at 16 kHz, ``[n]`` or ``[channels, n]`` → eight clips float32 ``[8, 32000]``, each with its mean removed.

    Short sound is padded with zeros to two seconds first. The mean is torch's float32 mean, as published: that over all
    channels, of which the first remains (wire).
    """
    import numpy as np
    import torch

    samples = np.atleast_2d(samples)  # [C, n]
    if samples.shape[1] < CLIP_SAMPLES:
        samples = np.pad(samples, ((0, 0), (0, CLIP_SAMPLES - samples.shape[1])))
    starts = clip_starts(samples.shape[1], spacing=spacing)
    clips = np.stack([samples[:, at : at + CLIP_SAMPLES] for at in starts])  # [8, C, 32000]
    tensor = torch.from_numpy(clips.astype(np.float32, copy=False))
    return (tensor - tensor.mean(dim=(1, 2), keepdim=True))[:, 0].numpy()


def clip_starts(n_samples: int, *, spacing: int = 8) -> list[int]:
    """First sample of each clip: clip i starts at ``i * max(duration - 2, 0) / spacing`` seconds, truncated.

    The duration is a float, everything after it exact rationals, as in the published environment (wire).
    ``spacing`` 8: as the released checkpoints were made; 7: as later releases of that library do.
    """
    last = max(Fraction(n_samples / SAMPLE_RATE) - CLIP_SECONDS, Fraction(0))
    return [int(last / spacing * i * SAMPLE_RATE) for i in range(N_FRAMES)]


def resample(samples: np.ndarray, *, rate: int) -> np.ndarray:
    """Resample float32 ``[channels, n]`` from ``rate`` Hz to 16 kHz: ``[channels, ceil(n * 16000 / rate)]``.

    A sinc windowed by a squared cosine (6 zero crossings, cut-off at 0.99 of the lower Nyquist rate), as the published
    values were made: they are met to 3e-8, where soxr or librosa are off by 1.5e-4. For rates that share no
    factor with 16,000 that filter needs gigabytes, and librosa does the work (imported there alone: it takes seconds).
    """
    import numpy as np
    import torch

    if rate == SAMPLE_RATE or samples.shape[1] == 0:
        return samples
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common
    length = math.ceil(new * samples.shape[1] / old)
    width = math.ceil(6 * old / (min(old, new) * 0.99))
    if new * (2 * width + old) > _LARGEST_KERNEL:
        import librosa

        resampled = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
        return librosa.util.fix_length(resampled, size=length)
    kernel = _sinc_kernel(old, new, width)  # [new, 1, 2 * width + old]
    padded = torch.nn.functional.pad(torch.from_numpy(np.ascontiguousarray(samples)), (width, width + old))
    out = torch.nn.functional.conv1d(padded[:, None], kernel, stride=old)  # [channels, new, steps]
    return out.transpose(1, 2).reshape(len(samples), -1)[:, :length].numpy()


def _sinc_kernel(old: int, new: int, width: int) -> torch.Tensor:
    """One filter per output phase, in float32 throughout as published: float64 gives other last digits."""
    import torch

    zero_crossings = 6
    cutoff = min(old, new) * 0.99
    at = torch.arange(0, -new, -1, dtype=torch.float32)[:, None, None] / new
    at = at + torch.arange(-width, width + old, dtype=torch.float32)[None, None] / old
    at = (at * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(at * math.pi / zero_crossings / 2) ** 2
    at = at * math.pi
    return torch.where(at == 0, torch.ones(()), at.sin() / at) * window * (cutoff / old)


def probe_audio(path: Path | str) -> AudioInfo:
    """Read a sound file's header. Raises DataError."""
    import soundfile

    path = check_file(path)
    try:
        info = soundfile.info(path)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as sound ({short_error(error)})") from error
    _check_header(path, rate=info.samplerate, frames=info.frames, channels=info.channels)
    return AudioInfo(seconds=info.duration, sample_rate=info.samplerate, channels=info.channels)


def _check_header(path: Path, *, rate: int, frames: int, channels: int) -> None:
    """DataError where a rate or length is beyond the bounds, before anything of that size is allocated."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{path}: the sound has a rate of {rate} Hz; expected {RATES[0]:,} to {RATES[1]:,} Hz")
    if channels > MAX_CHANNELS:
        raise DataError(f"{path}: the sound has {channels} channels; at most {MAX_CHANNELS} are read")
    if max(frames, frames * SAMPLE_RATE // rate) * channels > MAX_SAMPLES:
        raise DataError(
            f"{path}: the sound is {frames / rate:,.0f} s long ({channels} channels, {rate} Hz); at most "
            f"{MAX_SAMPLES:,} samples are read, {MAX_SAMPLES / SAMPLE_RATE / 3600:.1f} hours at 16 kHz. Cut it up"
        )


def _check_samples(samples: np.ndarray, path: Path) -> None:
    """DataError for decoded samples that cannot be sound."""
    import numpy as np

    if samples.size == 0:
        raise DataError(f"{path}: the sound has no samples")
    peak = float(np.maximum(samples.max(), -samples.min()))  # NaN where a sample is
    if not math.isfinite(peak):
        raise DataError(f"{path}: the sound holds NaN or infinite samples")
    if peak > PEAK:
        raise DataError(
            f"{path}: the sound holds samples of {peak:.3g}; expected at most 1, or {PEAK:.0f} where 16-bit integers "
            "were stored as floats. The file is damaged, or was written without scaling"
        )
