"""Mean over time, then a projection; and the two image branches."""

from __future__ import annotations

import torch
from torch import nn

from affectgpt.modeling.fusion.base import BRANCHES, IMAGE_BRANCHES, repeat_token


@BRANCHES.register("mean")
class MeanBranch(nn.Module):
    """Mean over time, then a projection."""

    def __init__(self, *, width: int, llm_width: int, n_tokens: int, n_positions: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.proj = nn.Linear(width, llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, T, d]`` (``[B, T, Q, d]`` is averaged over its Q query tokens first) → ``[B, K, D]``."""
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.mean(dim=2)  # [B, T, d]
        return repeat_token(self.proj(hidden_states.mean(dim=1)), self.n_tokens)  # [B, K, D]


@IMAGE_BRANCHES.register("mean")
class MeanImageBranch(nn.Module):
    """Mean over the image's vectors, then a projection, repeated K times."""

    def __init__(self, *, width: int, llm_width: int, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.proj = nn.Linear(width, llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, 1, d]`` or ``[B, 1, Q, d]`` → ``[B, K, D]``."""
        vector = hidden_states.flatten(1, -2).mean(dim=1)  # [B, d]
        return repeat_token(self.proj(vector), self.n_tokens)
