"""The two image branches: one projected vector, or one token per vector of the encoder."""

from __future__ import annotations

import torch
from torch import nn

from affectgpt.core.errors import ConfigError
from affectgpt.modeling.fusion.base import IMAGE_BRANCHES, BranchShape, repeat_token


@IMAGE_BRANCHES.register("mean")
class MeanImageBranch(nn.Module):
    """Mean over the image's vectors, then a projection, repeated K times."""

    def __init__(self, shape: BranchShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, 1, d]`` or ``[B, 1, Q, d]`` → ``[B, K, D]``."""
        vector = hidden_states.flatten(1, -2).mean(dim=1)  # [B, d]
        return repeat_token(self.proj(vector), self.n_tokens)


@IMAGE_BRANCHES.register("token")
class TokenImageBranch(MeanImageBranch):
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
