"""ImageBind's audio encoder: a vision transformer over patches of a mel spectrogram (Girdhar et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from affectgpt.config.paths import Weights
from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, FrozenEncoder
from affectgpt.encoders.mel import N_MELS, N_STEPS, MelSpectrogram
from affectgpt.encoders.pretrained import CPU, load_file_part

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
