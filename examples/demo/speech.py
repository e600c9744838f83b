"""Synthetic speech through eSpeak NG: the voice says who, the manner says how the speaker feels.

A voice (language variant, timbre, base pitch) is drawn apart from the emotion. The manner changes rate, pitch, pitch
range and loudness, and what loudness does to a voice: a loud one is brighter, a soft one darker.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.types import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

# eSpeak NG's voices: accent + timbre. Those on the second list speak in held-out clips only. Left out are timbres with
# breath in them (f2, f3, f5, Alicia …): they do not sound the same in every process.
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")
TRAIN_TIMBRES = ("m1", "m3", "m7", "f1", "aunty", "Alex", "linda", "Andy", "Annie", "pablo", "belinda", "max")
HELDOUT_TIMBRES = ("m2", "m4", "f4", "Andrea", "steph2", "adam", "Michael", "shelby")
_NOISE = 0.0015  # the room's noise, relative to full scale: against it a soft voice is heard as soft
_SYNCHRONOUS, _UTF8, _AT_CHARACTER = 2, 1, 1  # of speak_lib.h
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER


@dataclass(frozen=True)
class Voice:
    """Who speaks. ``pitch`` is eSpeak's 0-100, ``rate`` a factor on the manner's words per minute."""

    accent: str
    timbre: str
    pitch: float
    rate: float


@dataclass(frozen=True)
class Manner:
    """How it is said.

    rate: words per minute; pitch: added to the voice's (eSpeak's 0-100); pitch_range: 0-100; loudness: dB;
    bright: spectral tilt, dB per octave added above 500 Hz; glide: how much the pitch has risen at the end (0.2 =
    20 %); fade: dB lost by the end; tremor: depth of a 6.5 Hz wobble in pitch and loudness; drive: soft clipping.
    """

    rate: float = 165.0
    pitch: float = 0.0
    pitch_range: float = 45.0
    loudness: float = 0.0
    bright: float = 0.0
    glide: float = 0.0
    fade: float = 0.0
    tremor: float = 0.0
    drive: float = 0.0

    def between(self, other: Manner, part: float) -> Manner:
        """This manner moved towards another: 0 is this one, 1 the other."""
        return Manner(**{k: v + part * (getattr(other, k) - v) for k, v in vars(self).items()})


MANNERS = {
    "happy": Manner(rate=205, pitch=18, pitch_range=99, loudness=4, bright=2.5),
    "sad": Manner(rate=130, pitch=-14, pitch_range=8, loudness=-9, bright=-4.5, fade=9),
    "angry": Manner(rate=190, pitch=-4, pitch_range=60, loudness=8, bright=3.5, drive=7.0),
    "surprise": Manner(rate=165, pitch=26, pitch_range=75, loudness=2, glide=0.45, fade=-6),
    "worried": Manner(rate=165, pitch=8, pitch_range=25, loudness=-3, bright=-1.0, tremor=1.3),
    "neutral": Manner(),
}


def draw_voice(rng: np.random.Generator, timbres: tuple[str, ...]) -> Voice:
    """A voice, from a generator that knows nothing of emotions."""
    return Voice(
        accent=ACCENTS[int(rng.integers(len(ACCENTS)))],
        timbre=timbres[int(rng.integers(len(timbres)))],
        pitch=rng.uniform(38, 56),
        rate=rng.uniform(0.94, 1.06),
    )


_RECEIVER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@contextlib.contextmanager
def _espeak() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library and its sampling rate in Hz, loaded each time and unloaded again.

    eSpeak keeps the state of its wave generator between sentences and has no way to reset it: only a fresh copy says
    the same sentence in the same way every time. Loading takes about 3 ms.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise DataError(
            "the sample corpus needs the package espeakng-loader (speech synthesis): pip install 'affectgpt[demo]'"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise DataError(f"eSpeak NG did not start with its data at {espeakng_loader.get_data_path()} (code {rate})")
        yield library, rate
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def _synthesise(text: str, voice: Voice, manner: Manner) -> np.ndarray:
    """Speech as float32 at 16 kHz, silence at both ends cut."""
    import numpy as np
    import soxr

    name = f"{voice.accent}+{voice.timbre}"
    pieces: list = []

    def receive(samples, count, _events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _RECEIVER(receive)  # must live as long as the library may call it
    settings = {_RATE: manner.rate * voice.rate, _PITCH: voice.pitch + manner.pitch, _RANGE: manner.pitch_range}
    with _espeak() as (library, rate):
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DataError(f"eSpeak NG has no voice {name!r}")
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, round(min(max(value, 0), 400)), 0)
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, _AT_CHARACTER, 0, _UTF8, None, None)
        library.espeak_Synchronize()
    if not pieces:
        raise DataError(f"eSpeak NG said nothing for {text!r} with the voice {name!r}")
    wave = soxr.resample(np.concatenate(pieces).astype(np.float32) / 32768, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    return wave[loud[0] : loud[-1] + 1]


def _warp(wave: np.ndarray, manner: Manner) -> np.ndarray:
    """Glide and tremor in pitch, by playing the wave at a changing speed."""
    import numpy as np

    t = np.arange(len(wave)) / SAMPLE_RATE
    part = t / max(t[-1], 1e-6)
    speed = 1 + manner.glide * (part**2 - 0.3) + 0.05 * manner.tremor * np.sin(2 * np.pi * 6.5 * t)
    position = np.cumsum(speed)
    position = position[position < len(wave) - 1]
    return np.interp(position, np.arange(len(wave)), wave)


def _tilt(wave: np.ndarray, db_per_octave: float) -> np.ndarray:
    import numpy as np

    size = -(-len(wave) // 4000) * 4000  # a length with small factors: several times faster
    spectrum = np.fft.rfft(wave, size)
    octaves = np.log2(np.clip(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 500, 6000) / 500)
    return np.fft.irfft(spectrum * 10 ** (db_per_octave * octaves / 20), size)[: len(wave)]


def speak(*, text: str, voice: Voice, manner: Manner, rng: np.random.Generator, longest: float = 4.0) -> np.ndarray:
    """Speech with a little silence around it, float32 ``[samples]`` at 16 kHz within ±1, 2 s to ``longest`` long."""
    import numpy as np

    wave = _warp(_synthesise(text, voice, manner), manner)
    wave = _tilt(wave, manner.bright)
    wave /= np.sqrt(np.mean(wave**2)) + 1e-9
    if manner.drive:
        wave = np.tanh(wave * (1 + manner.drive)) / np.tanh(1 + manner.drive)
        wave /= np.sqrt(np.mean(wave**2)) + 1e-9
    t = np.arange(len(wave)) / SAMPLE_RATE
    gain_db = manner.loudness - manner.fade * t / max(t[-1], 1e-6)
    gain = 10 ** (gain_db / 20) * (1 - 0.35 * manner.tremor * (0.5 + 0.5 * np.sin(2 * np.pi * 6.5 * t + 1)))
    wave = 0.06 * gain * wave

    before = rng.uniform(0.1, 0.25)
    length = min(max(before + len(wave) / SAMPLE_RATE + rng.uniform(0.1, 0.25), 2.0), longest)
    out = rng.normal(0, _NOISE, round(length * SAMPLE_RATE))
    start = round(before * SAMPLE_RATE)
    part = wave[: len(out) - start].copy()
    if len(part) < len(wave):  # too long: fade out rather than cut
        tail = min(len(part), SAMPLE_RATE // 10)
        part[-tail:] *= np.linspace(1, 0, tail)
    out[start : start + len(part)] += part
    return np.clip(out, -0.98, 0.98).astype(np.float32)


def mouth_opening(wave: np.ndarray, *, frames: int, fps: float) -> np.ndarray:
    """How far the mouth opens in each frame (0 to 1), ``[frames]``: the loudness around it, by its own peak."""
    import numpy as np

    half = round(0.5 * SAMPLE_RATE / fps)
    centres = (np.arange(frames) + 0.5) * SAMPLE_RATE / fps
    level = np.array([np.sqrt(np.mean(wave[max(int(c) - half, 0) : int(c) + half] ** 2 + 1e-12)) for c in centres])
    floor = np.percentile(level, 10)
    return np.clip((level - floor) / (level.max() - floor + 1e-9), 0, 1)
