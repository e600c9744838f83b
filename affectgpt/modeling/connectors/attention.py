"""Connectors without a Q-Former: attention (the released models'), mean, and the projection of an image."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from affectgpt.core.errors import ConfigError
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    IMAGE_CONNECTORS,
    PREFUSIONS,
    Connector,
    ConnectorShape,
    PreFusionShape,
    repeat_token,
)


@CONNECTORS.register("attention")
class AttentionConnector(Connector):
    """Weighted sum over time, then a projection. The weights are raw: there is no softmax (wire)."""

    published: ClassVar = {
        "video": {"attention.": "video_attention_mlp.", "proj.": "affectgpt_proj."},
        "audio": {"attention.": "audio_attention_mlp.", "proj.": "audio_llama_proj."},
    }

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.attention = nn.Linear(shape.width, 1)
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, T, d]`` (``[B, T, Q, d]`` is averaged over its Q query tokens first) → ``[B, K, D]``."""
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.mean(dim=2)  # [B, T, d]
        weights = self.attention(hidden_states)  # [B, T, 1]
        pooled = (hidden_states.transpose(1, 2) @ weights).squeeze(-1)  # [B, d]
        return repeat_token(self.proj(pooled), self.n_tokens)  # [B, K, D]


@PREFUSIONS.register("attention")
class AttentionPreFusion(Connector):
    """Pre-fusion by attention over the two modalities (paper section 3, equations of "pre-fusion operation")."""

    published: ClassVar = {
        "multi": {
            "audio_in.": "multi_audio_embs.",
            "video_in.": "multi_video_embs.",
            "mix.": "attention_mlp.",
            "weights.": "fc_att.",
            "proj.": "multi_llama_proj.",
        }
    }

    def __init__(self, shape: PreFusionShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.audio_in = nn.Linear(shape.audio_width, shape.width)
        self.video_in = nn.Linear(shape.video_width, shape.width)
        self.mix = nn.Linear(2 * shape.width, shape.width)
        self.weights = nn.Linear(shape.width, 2)
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Z_v ``[B, T_v, d_v]`` (or ``[B, T, Q, d_v]``, flattened) and Z_a ``[B, T_a, d_a]`` → ``[B, K, D]``."""
        if video.ndim == 4:
            video = video.flatten(1, 2)  # [B, T·Q, d_v]
        video = self.video_in(video.mean(dim=1))  # [B, m]
        audio = self.audio_in(audio.mean(dim=1))  # [B, m]
        weights = self.weights(self.mix(torch.cat([video, audio], dim=-1)))  # [B, 2], raw
        fused = (torch.stack([video, audio], dim=1) * weights.unsqueeze(-1)).sum(dim=1)  # [B, m]
        return repeat_token(self.proj(fused), self.n_tokens)  # [B, K, D]


@CONNECTORS.register("mean")
class MeanConnector(Connector):
    """Mean over time, then a projection."""

    published: ClassVar = {"video": {"proj.": "affectgpt_proj."}, "audio": {"proj.": "audio_llama_proj."}}

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, T, d]`` (``[B, T, Q, d]`` is averaged over its Q query tokens first) → ``[B, K, D]``."""
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.mean(dim=2)  # [B, T, d]
        return repeat_token(self.proj(hidden_states.mean(dim=1)), self.n_tokens)  # [B, K, D]


@IMAGE_CONNECTORS.register("mean")
class MeanImageConnector(Connector):
    """Mean over the image's vectors, then a projection, repeated K times."""

    published: ClassVar = {"image": {"proj.": "image_llama_proj."}}

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, 1, d]`` or ``[B, 1, Q, d]`` → ``[B, K, D]``."""
        vector = hidden_states.flatten(1, -2).mean(dim=1)  # [B, d]
        return repeat_token(self.proj(vector), self.n_tokens)


@IMAGE_CONNECTORS.register("token")
class TokenImageConnector(MeanImageConnector):
    """Every vector of the image is projected to a token of its own: 32 with EVA_CLIP_G, else one."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, 1, d]`` or ``[B, 1, Q, d]`` → ``[B, K, D]``; a single vector is repeated K times.

        Raises ConfigError when the encoder gives another number of vectors than K.
        """
        vectors = hidden_states.flatten(1, -2)  # [B, Q, d]
        if vectors.shape[1] not in (1, self.n_tokens):
            raise ConfigError(
                f"model.num_image_query_token is {self.n_tokens}, but image_fusion_type token gives one token per "
                f"vector of the visual encoder: set it to {vectors.shape[1]}, or image_fusion_type to mean"
            )
        return self.proj(vectors).expand(-1, self.n_tokens, -1)  # [B, K, D]
