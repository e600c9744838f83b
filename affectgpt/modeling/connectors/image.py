"""The two image connectors: one projected vector, or one token per vector of the encoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from affectgpt.core.errors import ConfigError
from affectgpt.modeling.connectors.base import IMAGE_CONNECTORS, Connector, ConnectorShape, repeat_token


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
