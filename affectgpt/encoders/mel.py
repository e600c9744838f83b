"""Sound → the mel spectrogram that ImageBind takes, operation for operation as Kaldi's filter bank does it.

Written in torch and float32: quiet bins hold rounding noise, so another order of operations or another precision moves
them by up to 4e-4. Where MKL's FFT takes a code path for another processor, they move as much; with MKL_CBWR=COMPATIBLE
the published values come out to 3e-7 everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import pad

from affectgpt.core.types import SAMPLE_RATE

N_MELS = 128
N_STEPS = 204  # columns of a 2-second clip, the last ones zeros
_WINDOW, _HOP, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the next power of two
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_MEAN, _STD = -4.268, 9.138


class MelSpectrogram:
    """float32 waves at 16 kHz ``[T, samples]`` → normalised log mel ``[T, 1, 128, 204]``.

    The waves are those of ``media/audio``, each clip's own mean removed; the published step removes it in place, which
    is why the speech encoder sees it removed too. 25 ms Hann windows every 10 ms, each with its mean removed and
    pre-emphasis, power spectrum, 128 triangles from 20 Hz to 8 kHz, natural logarithm, ``(x + 4.268) / 9.138``. Steps
    beyond the clip's end are zeros, short of the normalisation.
    """

    def __init__(self) -> None:
        self.window = torch.hann_window(_WINDOW, periodic=False)
        self.filters = mel_filters()  # [257, 128]

    def __call__(self, clips: np.ndarray) -> torch.Tensor:
        wave = torch.from_numpy(np.ascontiguousarray(clips, dtype=np.float32))
        return torch.stack([self._clip(clip) for clip in wave])

    def _clip(self, wave: torch.Tensor) -> torch.Tensor:
        frames = wave.unfold(0, _WINDOW, _HOP)[:N_STEPS]  # [steps, 400]
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = pad(frames.unsqueeze(0), (1, 0), mode="replicate").squeeze(0)[:, :-1]
        frames = (frames - _PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(pad(frames, (0, _FFT - _WINDOW))).abs().pow(2.0)  # [steps, 257]
        mel = (power @ self.filters).clamp_min(torch.finfo(torch.float32).eps).log()  # [steps, 128]
        mel = pad(mel.T, (0, N_STEPS - mel.shape[0]))  # [128, 204]
        return ((mel - _MEAN) / _STD).unsqueeze(0)


def mel_filters() -> torch.Tensor:
    """Triangles of equal width on the mel scale ``1127 ln(1 + f / 700)``: float32 ``[257, 128]``."""
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, SAMPLE_RATE / 2))
    step = (high - low) / (N_MELS + 1)
    number = torch.arange(N_MELS).unsqueeze(1)
    left, centre, right = low + number * step, low + (number + 1.0) * step, low + (number + 2.0) * step  # [128, 1]
    hertz = SAMPLE_RATE / _FFT * torch.arange(_FFT // 2)
    mel = (1127.0 * (1.0 + hertz / 700.0).log()).unsqueeze(0)  # [1, 256]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return pad(triangles, (0, 1)).T  # the bin of the highest frequency belongs to none
