"""ImageBind: frames, and sound as the mel spectrogram that Kaldi's filter bank makes, operation for operation.

The spectrogram is written in torch and float32: quiet bins hold rounding noise, so another order of operations or
another precision moves them by up to 4e-4. Where MKL's FFT takes a code path for another processor, they move as much;
with MKL_CBWR=COMPATIBLE the published values come out to 3e-7 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import pad

from affectgpt.config.paths import Weights
from affectgpt.core.errors import CheckpointError
from affectgpt.core.types import SAMPLE_RATE
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, CPU, FrozenEncoder, load_file_part

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


_HEAD_SIZE = 64  # of attention; the file does not say it
_PATCH, _STRIDE = 16, 10
_PATCHES = ((N_MELS - _PATCH) // _STRIDE + 1) * ((N_STEPS - _PATCH) // _STRIDE + 1)  # 12 · 19
_LOGIT_SCALE = 20.0  # of ImageBind's audio embedding, fixed
# Our module paths → names in imagebind_huge.pth, which holds all modalities.
_NAMES = {
    "cls_token": "modality_preprocessors.audio.cls_token",
    "pos_embed": "modality_preprocessors.audio.pos_embedding_helper.pos_embed",
    "stem.": "modality_preprocessors.audio.rgbt_stem.proj.",
    "stem_norm.": "modality_preprocessors.audio.rgbt_stem.norm_layer.",
    "blocks.": "modality_trunks.audio.blocks.",
    "norm.": "modality_heads.audio.0.",
    "head.": "modality_heads.audio.2.",
}


class Block(nn.Module):
    """A pre-norm transformer layer whose attention has one learnt key and value more."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.MultiheadAttention(width, width // _HEAD_SIZE, add_bias_kv=True, batch_first=True)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, tokens, width]`` → the same shape."""
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


@ACOUSTIC_ENCODERS.register("IMAGEBIND")
class ImageBindEncoder(FrozenEncoder):
    """ImageBind's embedding of each 2-second clip, as ImageBind gives it: of length 20; 1024 numbers.

    The weights are the file ``imagebind_huge.pth``, of which the audio part alone is read.
    """

    kind = "acoustic"
    weights = Weights("imagebind_huge.pth", "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth")
    architecture: ClassVar = {"width": 768, "hidden": 3072, "blocks": 12, "output": 1024}

    def __init__(self, *, width: int, hidden: int, blocks: int, output: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, kernel_size=_PATCH, stride=_STRIDE, bias=False)
        self.stem_norm = nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _PATCHES, width))
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, output, bias=False)
        self.width = output
        self.freeze()

    @classmethod
    def config_of(cls, source: str | Path | Mapping[str, Any], **_: Any) -> Mapping[str, int]:
        """Sizes of a weights file (or ``source`` itself, where it holds them)."""
        if isinstance(source, Mapping):
            return source
        names = [_NAMES["head."] + "weight", _NAMES["blocks."] + "0.mlp.fc1.weight"]
        head, fc1 = (tensor for _, tensor in load_file_part(source, names).items())
        count = 0
        while load_file_part(source, [f"{_NAMES['blocks.']}{count}.norm_1.weight"], may_miss=True):
            count += 1
        return {"width": head.shape[1], "hidden": fc1.shape[0], "blocks": count, "output": head.shape[0]}

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> ImageBindEncoder:
        with device:
            encoder = cls(**cls.config_of(folder)).to(dtype)
        names = {ours: _published_name(ours) for ours in encoder.state_dict()}
        found = load_file_part(folder, list(names.values()))
        try:
            encoder.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: not ImageBind's audio encoder: {str(error).splitlines()[-1]}") from error
        return encoder

    @classmethod
    def from_config(cls, config: Any) -> ImageBindEncoder:
        return cls(**config)

    @staticmethod
    def transform_of(source: str | Path | Mapping[str, Any], *, training: bool = False) -> MelSpectrogram:
        return MelSpectrogram()

    @torch.no_grad()
    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """``[B, T, 1, 128, 204]`` → Z_a ``[B, T, width]``."""
        B, T = mel.shape[:2]
        patches = self.stem(mel.flatten(0, 1).to(self.head.weight.dtype))  # [B·T, hidden, 12, 19]
        x = self.stem_norm(patches.flatten(2).transpose(1, 2))  # [B·T, 228, hidden]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed  # [B·T, 229, hidden]
        for block in self.blocks:
            x = block(x)
        embedding = self.head(self.norm(x)[:, 0])  # [B·T, width]
        return (_LOGIT_SCALE * F.normalize(embedding, dim=-1)).unflatten(0, (B, T))  # [B, T, width]


def _published_name(name: str) -> str:
    prefix = next(prefix for prefix in _NAMES if name.startswith(prefix))
    return _NAMES[prefix] + name.removeprefix(prefix)
