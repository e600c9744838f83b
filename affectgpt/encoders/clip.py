"""CLIP's vision tower with its projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import VISUAL_ENCODERS
from affectgpt.encoders.pixels import PixelEncoder
from affectgpt.encoders.pretrained import load_pretrained


@VISUAL_ENCODERS.register("CLIP_VIT_LARGE")
class ClipEncoder(PixelEncoder):
    """Projected image embedding of each frame, not normalised to unit length (SPEC 2.1)."""

    weights = Weights("clip-vit-large-patch14", "https://huggingface.co/openai/clip-vit-large-patch14")
    architecture: ClassVar = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "patch_size": 14, "image_size": 224},
    }  # fmt: skip

    vision_model: Any
    visual_projection: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection
        self.width = model.config.projection_dim
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype) -> ClipEncoder:
        from transformers import CLIPModel

        encoder = cls(load_pretrained(CLIPModel, folder, dtype=dtype))
        encoder.use_preprocessor(folder)
        return encoder

    @classmethod
    def from_config(cls, config: Any) -> ClipEncoder:
        from transformers import CLIPModel

        return cls(CLIPModel(config))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        pixels = self.pixels(pixels, dtype=self.visual_projection.weight.dtype)  # [B·T, 3, H, W]
        pooled = self.vision_model(pixel_values=pixels).pooler_output  # [B·T, hidden]
        return self.visual_projection(pooled).unflatten(0, (B, T))  # [B, T, width]
