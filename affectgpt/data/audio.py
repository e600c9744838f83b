"""Sound: from a file to eight clips of two seconds, as the released models heard them (SPEC section 2.2, wire)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.types import CLIP_SAMPLES, CLIP_SECONDS, N_FRAMES, SAMPLE_RATE
from affectgpt.data.video import check_file, short_error

if TYPE_CHECKING:
    import numpy as np
    import torch

NO_AUDIO_TRACK = "no_audio_track"
FIRST_CHANNEL = "first_channel_of_several"  # a sound file of more than two channels
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff")  # what libsndfile opens; the rest goes through PyAV
_LARGEST_KERNEL = 20_000_000  # filter taps; unusual rates (44,101 Hz) would need gigabytes


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a sound file's header says."""

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
    samples = read_wave(path) if path.suffix.lower() in SOUND_SUFFIXES else read_track(path)
    if samples is None:
        return np.zeros((N_FRAMES, CLIP_SAMPLES), dtype=np.float32), (NO_AUDIO_TRACK,)
    return cut_clips(samples, spacing=spacing), wave_flags(path)


def read_wave(path: Path | str) -> np.ndarray:
    """Read a sound file as mono at 16 kHz: float32 ``[n]``.

    Two channels are averaged after resampling; of more than two the first is taken (wire), see ``wave_flags``.

    Raises DataError naming the file when it is no sound file, has no samples, or holds NaN or infinity.
    """
    import soundfile

    path = check_file(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [n, channels]
    except Exception as error:  # libsndfile, or memory for a length that the header makes up
        raise DataError(f"{path}: cannot be read as sound ({short_error(error)})") from error
    channels = samples.T[:1] if samples.shape[1] > 2 else samples.T  # [1 or 2, n]
    return _checked(resample(channels, rate=rate).mean(axis=0), path)


def wave_flags(path: Path | str) -> tuple[str, ...]:
    """``first_channel_of_several`` for a sound file of more than two channels; of a video FFmpeg mixes all channels."""
    if Path(path).suffix.lower() not in SOUND_SUFFIXES:
        return ()
    return (FIRST_CHANNEL,) if probe_audio(path).channels > 2 else ()


def read_track(path: Path | str) -> np.ndarray | None:
    """Decode the sound track of a video as mono at 16 kHz: float32 ``[n]``; None when there is no track.

    Goes through 16-bit samples: within one of their steps of the published wav files (float output of the same
    resampler comes out louder for stereo). Raises DataError naming the file.
    """
    import av
    import numpy as np

    path = check_file(path)
    chunks = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(container.streams.audio[0]):
                chunks += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            chunks += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except Exception as error:  # FFmpeg's many errors
        raise DataError(f"{path}: its sound track cannot be decoded ({short_error(error)})") from error
    samples = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)
    return _checked(samples.astype(np.float32) / 32768, path)


def cut_clips(samples: np.ndarray, *, spacing: int = 8) -> np.ndarray:
    """Mono samples at 16 kHz ``[n]`` → eight clips float32 ``[8, 32000]``, each with its own mean removed.

    Short sound is padded with zeros to two seconds first. The mean is torch's float32 mean, as published.
    """
    import numpy as np
    import torch

    if len(samples) < CLIP_SAMPLES:
        samples = np.pad(samples, (0, CLIP_SAMPLES - len(samples)))
    clips = np.stack([samples[at : at + CLIP_SAMPLES] for at in clip_starts(len(samples), spacing=spacing)])
    tensor = torch.from_numpy(clips.astype(np.float32, copy=False))  # [8, 32000]
    return (tensor - tensor.mean(dim=1, keepdim=True)).numpy()


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
    factor with 16,000 that filter needs gigabytes, and soxr does the work.
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
        import soxr

        out = soxr.resample(np.ascontiguousarray(samples.T), rate, SAMPLE_RATE).T
        return np.pad(out, ((0, 0), (0, max(0, length - out.shape[1]))))[:, :length]
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
    """What a sound file's header says. Raises DataError."""
    import soundfile

    path = check_file(path)
    try:
        info = soundfile.info(path)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as sound ({short_error(error)})") from error
    return AudioInfo(seconds=info.duration, sample_rate=info.samplerate, channels=info.channels)


def _checked(samples: np.ndarray, path: Path) -> np.ndarray:
    import numpy as np

    if len(samples) == 0:
        raise DataError(f"{path}: the sound has no samples")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: the sound holds NaN or infinite samples")
    return samples
