"""DINOv2 and SigLIP: the mean over a vision tower's tokens, before its final norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import CPU, VISUAL_ENCODERS, files_read, load_pretrained
from affectgpt.encoders.clip import PixelEncoder


class MeanTokenEncoder(PixelEncoder):
    """Mean over all tokens (DINOv2's CLS token included) of the last layer, before the final norm.

    That is ``hidden_states[-1]`` of the published code. The layers are called directly: then nothing that a version of
    transformers puts behind them can get into the state.
    """

    model_class: str  # of transformers
    embeddings: Any
    encoder: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = getattr(model, "vision_model", model)  # SigLIP's sits one level down before transformers 5
        self.embeddings, self.encoder = tower.embeddings, tower.encoder
        self.width = model.config.hidden_size
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> MeanTokenEncoder:
        import transformers

        encoder = cls(load_pretrained(getattr(transformers, cls.model_class), folder, dtype=dtype, device=device))
        encoder.use_preprocessor(folder)
        return encoder

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        return files_read(folder)

    @classmethod
    def from_config(cls, config: Any) -> MeanTokenEncoder:
        import transformers

        return cls(getattr(transformers, cls.model_class)(getattr(config, "vision_config", config)))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        pixels = self.pixels(pixels, dtype=next(self.encoder.parameters()).dtype)  # [B·T, 3, H, W]
        tokens = self.encoder(self.embeddings(pixels)).last_hidden_state  # [B·T, tokens, width]
        return tokens.mean(dim=1).unflatten(0, (B, T))  # [B, T, width]


@VISUAL_ENCODERS.register("DINO2_LARGE")
class DinoEncoder(MeanTokenEncoder):
    """DINOv2: 1024 numbers per frame for the large one."""

    model_class = "Dinov2Model"
    weights = Weights("dinov2-large", "https://huggingface.co/facebook/dinov2-large")
    architecture: ClassVar = {
        "model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "mlp_ratio": 4, "patch_size": 14, "image_size": 518,
    }  # fmt: skip


@VISUAL_ENCODERS.register("SigLIP_SO")
class SiglipEncoder(MeanTokenEncoder):
    """SigLIP: 1152 numbers per frame for so400m. Its processor resizes the frames to 384 pixels."""

    model_class = "SiglipVisionModel"
    weights = Weights("siglip-so400m-patch14-384", "https://huggingface.co/google/siglip-so400m-patch14-384")
    architecture: ClassVar = {
        "model_type": "siglip",
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                          "num_attention_heads": 16, "patch_size": 14, "image_size": 384},
    }  # fmt: skip
