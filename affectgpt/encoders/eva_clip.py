"""EVA-CLIP-g, with and without its BLIP-2 Q-Former: vision model and Q-Former of a BLIP-2 folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import CPU, VISUAL_ENCODERS, Transform, files_read, load_part, read_config
from affectgpt.encoders.clip import PixelEncoder, RandomCrop

_LN_VISION_EPS = 1e-5  # torch's default, as published; the folder's config.json says another for its post_layernorm
_BLIP2 = {
    "model_type": "blip-2",
    "num_query_tokens": 32,
    "vision_config": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
                      "num_attention_heads": 16, "patch_size": 14, "image_size": 224},
    "qformer_config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                       "intermediate_size": 3072, "cross_attention_frequency": 2, "encoder_hidden_size": 1408},
}  # fmt: skip


@VISUAL_ENCODERS.register("EVA_CLIP_G_NO_QFORMER")
class EvaClipEncoder(PixelEncoder):
    """Mean over the tokens of ``ln_vision(vit(x))``, 1408 wide.

    ``ln_vision`` is a fresh LayerNorm here, as published: the folder's own (``post_layernorm``) is not used.
    """

    weights = Weights("blip2-flan-t5-xxl", "https://huggingface.co/Salesforce/blip2-flan-t5-xxl")
    architecture: ClassVar = _BLIP2

    embeddings: Any
    encoder: Any

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.embeddings, self.encoder = vision_model.embeddings, vision_model.encoder
        self.width = vision_model.config.hidden_size
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> EvaClipEncoder:
        with device:
            parts = cls._parts(read_config(folder))
        for prefix, part in parts.items():  # the folder's LLM (up to 11B parameters) is never read
            load_part(part.to(dtype), folder, prefix=prefix)
        encoder = cls(*parts.values())
        encoder.use_preprocessor(folder)
        return encoder

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        return files_read(folder)

    @classmethod
    def from_config(cls, config: Any) -> EvaClipEncoder:
        return cls(*cls._parts(config).values())

    @classmethod
    def _parts(cls, config: Any) -> dict[str, nn.Module]:
        """Prefix in a BLIP-2 file → the module that its tensors belong to."""
        from transformers import Blip2VisionModel

        return {"vision_model.": Blip2VisionModel(config.vision_config)}

    @staticmethod
    def transform_of(source: str | Path | Mapping[str, Any], *, training: bool = False) -> Transform:
        transform = PixelEncoder.transform_of(source)
        return RandomCrop(transform) if training else transform

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → the last layer's tokens ``[B·T, tokens, hidden]``."""
        pixels = self.pixels(pixels, dtype=next(self.encoder.parameters()).dtype)  # [B·T, 3, H, W]
        return self.encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        tokens = self.tokens(pixels)  # [B·T, tokens, width]
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=_LN_VISION_EPS)
        return tokens.mean(dim=1).unflatten(0, pixels.shape[:2])


class QueryTokens(nn.Module):
    """The learnt queries of a BLIP-2 folder, ``[1, 32, width]``."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, count, width))


@VISUAL_ENCODERS.register("EVA_CLIP_G")
class EvaClipQFormerEncoder(EvaClipEncoder):
    """32 query tokens per frame: vision model, ``ln_vision``, then BLIP-2's Q-Former."""

    def __init__(self, vision_model: Any, qformer: Any, queries: QueryTokens) -> None:
        super().__init__(vision_model)
        self.ln_vision = vision_model.post_layernorm
        self.ln_vision.eps = _LN_VISION_EPS
        self.qformer = qformer
        self.queries = queries
        self.width = qformer.config.hidden_size
        self.freeze()

    @classmethod
    def _parts(cls, config: Any) -> dict[str, nn.Module]:
        from transformers import Blip2QFormerModel

        queries = QueryTokens(config.num_query_tokens, config.qformer_config.hidden_size)
        return {**super()._parts(config), "qformer.": Blip2QFormerModel(config.qformer_config), "": queries}

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 or normalised ``[B, T, 3, H, W]`` → Z_v ``[B, T, 32, width]``."""
        tokens = self.ln_vision(self.tokens(pixels))  # [B·T, tokens, hidden]
        queries = self.queries.query_tokens.expand(tokens.shape[0], -1, -1)  # [B·T, 32, width]
        output = self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        return output.unflatten(0, pixels.shape[:2])  # [B, T, 32, width]
