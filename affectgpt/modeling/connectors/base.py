"""From encoder outputs to tokens of the LLM (paper section 3): the base class and the registries.

A connector compresses Z ``[B, T, d]`` of one medium into K tokens ``[B, K, D]`` of the LLM's width D. The pre-fusion
takes Z_v and Z_a together. Notation: d_v, d_a encoder widths, m = max(d_v, d_a).

The connectors without a Q-Former are here: attention (the released models'), mean, and the projection of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from affectgpt.core.errors import ConfigError
from affectgpt.core.registry import Registry

CONNECTORS = Registry("fusion type", "affectgpt.modeling.connectors")
IMAGE_CONNECTORS = Registry("image fusion type", "affectgpt.modeling.connectors")
PREFUSIONS = Registry("pre-fusion type", "affectgpt.modeling.connectors")


@dataclass(frozen=True)
class QFormerShape:
    """Numbers of a Q-Former: those of BERT-base, but two layers."""

    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_hidden_layers: int = 2
    max_position_embeddings: int = 512  # only the length of the checkpoint's position_ids buffer


@dataclass(frozen=True)
class ConnectorShape:
    """Sizes and settings that the connector of one medium is built from."""

    width: int  # d, of the encoder's vectors
    llm_width: int  # D
    n_tokens: int  # K
    n_positions: int = 1  # frames or clips at most; read by the Q-Former alone
    qformer: QFormerShape = QFormerShape()


@dataclass(frozen=True)
class PreFusionShape:
    """Sizes and settings that a pre-fusion is built from."""

    video_width: int  # d_v
    audio_width: int  # d_a
    llm_width: int  # D
    n_tokens: int  # K
    n_positions: int = 1  # vectors of both modalities together at most; read by the Q-Former alone
    qformer: QFormerShape = QFormerShape()

    @property
    def width(self) -> int:
        """m, the common width of both modalities."""
        return max(self.video_width, self.audio_width)


class Connector(nn.Module):
    """A connector or a pre-fusion: all of it trains, and all of it is in a checkpoint.

    ``published``: where the model holds it (``image``, ``video``, ``audio``, ``multi``) → beginning of a parameter's
    name → what a published checkpoint has in its place. A class that the published code does not have leaves it empty:
    its parameters are saved as ``video.…``, ``multi.…`` under their own names.
    """

    published: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @classmethod
    def published_name(cls, place: str, name: str) -> str:
        """A parameter's name in a checkpoint, e.g. ``proj.weight`` of ``video`` → ``affectgpt_proj.weight`` (wire)."""
        for ours, theirs in cls.published.get(place, {}).items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return f"{place}.{name}"


def repeat_token(vector: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """``[B, D]`` → the same vector K times, ``[B, K, D]``."""
    return vector.unsqueeze(1).expand(-1, n_tokens, -1)


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
