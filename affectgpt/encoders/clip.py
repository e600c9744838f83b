"""CLIP's vision tower with its projection."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import VISUAL_ENCODERS
from affectgpt.encoders.pixels import PixelEncoder
from affectgpt.encoders.pretrained import CPU, files_read, load_pretrained, read_config


@VISUAL_ENCODERS.register("CLIP_VIT_LARGE")
class ClipEncoder(PixelEncoder):
    """Projected image embedding of each frame, not normalised to unit length."""

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
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> ClipEncoder:
        from transformers import CLIPVisionModelWithProjection

        config = _of_tower(read_config(folder))  # the text tower is not read
        encoder = cls(load_pretrained(CLIPVisionModelWithProjection, folder, dtype=dtype, device=device, config=config))
        encoder.use_preprocessor(folder)
        return encoder

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        return files_read(folder)

    @classmethod
    def from_config(cls, config: Any) -> ClipEncoder:
        from transformers import CLIPVisionModelWithProjection

        return cls(CLIPVisionModelWithProjection(_of_tower(config)))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        pixels = self.pixels(pixels, dtype=self.visual_projection.weight.dtype)  # [B·T, 3, H, W]
        pooled = self.vision_model(pixel_values=pixels).pooler_output  # [B·T, hidden]
        return self.visual_projection(pooled).unflatten(0, (B, T))  # [B, T, width]


def _of_tower(config: Any) -> Any:
    """The vision tower's configuration, with the width of the projection, which CLIP keeps beside both towers."""
    tower = copy.deepcopy(config.vision_config)
    tower.projection_dim = config.projection_dim
    return tower
