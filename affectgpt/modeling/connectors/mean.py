"""Mean over time, then a projection."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from affectgpt.modeling.connectors.base import CONNECTORS, Connector, ConnectorShape, repeat_token


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
