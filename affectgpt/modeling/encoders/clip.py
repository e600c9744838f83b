"""CLIP's vision tower with its projection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from affectgpt.modeling.encoders.base import VISUAL_ENCODERS, FrozenEncoder, read_preprocessor
from affectgpt.modeling.pretrained import load_pretrained

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # the family's defaults
_STD = (0.26862954, 0.26130258, 0.27577711)


class PixelNormalize:
    """uint8 RGB ``[T, H, W, 3]`` → float32 ``[T, 3, H, W]``, ``(x / 255 − mean) / std``.

    A table of the 256 possible values per channel, computed as the image processor does (rescale in float64, normalise
    in float32), so that the result is equal to the processor's to the bit.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)[:, None]
        self.table = (levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)  # [256, 3]

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        out = np.empty((frames.shape[0], 3, *frames.shape[1:3]), np.float32)
        for channel in range(3):
            np.take(self.table[:, channel], frames[..., channel], out=out[:, channel])
        return torch.from_numpy(out)  # [T, 3, H, W]


@VISUAL_ENCODERS.register("CLIP_VIT_LARGE")
class ClipEncoder(FrozenEncoder):
    """Projected image embedding of each frame, not normalised to unit length (SPEC 2.1)."""

    kind = "visual"

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection
        self.width = model.config.projection_dim
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype) -> ClipEncoder:
        from transformers import CLIPModel

        return cls(load_pretrained(CLIPModel, folder, dtype=dtype))

    @staticmethod
    def transform_of(folder: str | Path) -> PixelNormalize:
        spec = read_preprocessor(folder)
        return PixelNormalize(spec.get("image_mean", _MEAN), spec.get("image_std", _STD))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(self.visual_projection.weight.dtype)  # [B·T, 3, H, W]
        pooled = self.vision_model(pixel_values=pixels).pooler_output  # [B·T, hidden]
        return self.visual_projection(pooled).unflatten(0, (B, T))  # [B, T, width]
