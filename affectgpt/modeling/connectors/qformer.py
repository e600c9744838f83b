"""Q-Former: learnt queries attend to the encoder's vectors, through transformers' Blip2QFormerModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from affectgpt.core.errors import DataError
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    PREFUSIONS,
    Connector,
    ConnectorShape,
    PreFusionShape,
    QFormerShape,
)

# Inside a Q-Former: transformers' names → BLIP-2's, which published checkpoints have.
_PUBLISHED_PARTS = (
    ("bert.position_ids", "bert.embeddings.position_ids"),
    ("bert.model.layernorm.", "bert.embeddings.LayerNorm."),
    ("bert.model.", "bert."),
    ("attention.attention.", "attention.self."),  # crossattention's too
)


class QFormer(nn.Module):
    """K queries against vectors of width d: cross-attention in every layer, only the query path.

    ``position_ids`` is a buffer of the checkpoint file that nothing reads (wire).
    """

    def __init__(self, shape: QFormerShape, *, width: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.register_buffer("position_ids", torch.arange(shape.max_position_embeddings).unsqueeze(0))  # [1, P]
        self.model = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=shape.hidden_size,
                num_hidden_layers=shape.num_hidden_layers,
                num_attention_heads=shape.num_attention_heads,
                intermediate_size=shape.intermediate_size,
                max_position_embeddings=shape.max_position_embeddings,
                encoder_hidden_size=width,
                cross_attention_frequency=1,
                use_qformer_text_input=False,
                hidden_act="gelu",
                hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.1,
                initializer_range=0.02,
                layer_norm_eps=1e-12,
            )
        )

    def forward(self, query_tokens: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Queries ``[1, K, h]`` and vectors ``[B, T, d]`` → ``[B, K, h]``."""
        queries = query_tokens.expand(hidden_states.shape[0], -1, -1)  # [B, K, h]
        return self.model(query_embeds=queries, encoder_hidden_states=hidden_states).last_hidden_state


def fresh_queries(n_tokens: int, shape: QFormerShape) -> nn.Parameter:
    """K learnt queries ``[1, K, h]``, drawn with standard deviation 0.02."""
    return nn.Parameter(torch.empty(1, n_tokens, shape.hidden_size).normal_(std=0.02))


def positions_of(hidden_states: torch.Tensor, table: nn.Embedding) -> torch.Tensor:
    """The embeddings ``[T, d]`` of positions 0 … T − 1. Raises DataError when the table is shorter."""
    count = hidden_states.shape[1]
    if count > table.num_embeddings:
        raise DataError(f"{count} vectors, but the Q-Former has positions for {table.num_embeddings}")
    return table.weight[:count]


def _published(medium: str, *, positions: str, proj: str, **more: str) -> Mapping[str, Mapping[str, str]]:
    return {
        medium: {
            "query_tokens": f"{medium}_query_tokens",
            "position_embedding.": f"{positions}.",
            "qformer.": f"{medium}_Qformer.bert.",
            "proj.": f"{proj}.",
            **{f"{ours}.": f"{theirs}." for ours, theirs in more.items()},
        }
    }


class _WithQFormer(Connector):
    @classmethod
    def published_name(cls, place: str, name: str) -> str:
        published = super().published_name(place, name)
        if name.startswith("qformer."):
            for part, theirs in _PUBLISHED_PARTS:
                published = published.replace(part, theirs)
        return published


@CONNECTORS.register("qformer")
class QFormerConnector(_WithQFormer):
    """A position per frame is added, K queries attend to all vectors, a projection."""

    published: ClassVar = {
        **_published("video", positions="video_frame_position_embedding", proj="affectgpt_proj"),
        **_published("audio", positions="audio_position_embedding", proj="audio_llama_proj"),
    }

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__()
        self.query_tokens = fresh_queries(shape.n_tokens, shape.qformer)
        self.position_embedding = nn.Embedding(shape.n_positions, shape.width)
        self.qformer = QFormer(shape.qformer, width=shape.width)
        self.proj = nn.Linear(shape.qformer.hidden_size, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, T, d]`` or ``[B, T, Q, d]`` → ``[B, K, D]``. The Q vectors of a frame share its position."""
        positions = positions_of(hidden_states, self.position_embedding)  # [T, d]
        if hidden_states.ndim == 4:
            hidden_states = (hidden_states + positions.unsqueeze(1)).flatten(1, 2)  # [B, T·Q, d]
        else:
            hidden_states = hidden_states + positions  # [B, T, d]
        return self.proj(self.qformer(self.query_tokens, hidden_states))  # [B, K, D]


@PREFUSIONS.register("qformer")
class QFormerPreFusion(_WithQFormer):
    """Both modalities to one width, one after the other in time, positions added, K queries attend to all."""

    published: ClassVar = _published(
        "multi", positions="multi_position_embedding", proj="multi_llama_proj", audio_in="multi_audio_embs",
        video_in="multi_video_embs",
    )  # fmt: skip

    def __init__(self, shape: PreFusionShape) -> None:
        super().__init__()
        self.query_tokens = fresh_queries(shape.n_tokens, shape.qformer)
        self.audio_in = nn.Linear(shape.audio_width, shape.width)
        self.video_in = nn.Linear(shape.video_width, shape.width)
        self.position_embedding = nn.Embedding(shape.n_positions, shape.width)
        self.qformer = QFormer(shape.qformer, width=shape.width)
        self.proj = nn.Linear(shape.qformer.hidden_size, shape.llm_width)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Z_v ``[B, T_v, d_v]`` (or ``[B, T, Q, d_v]``, flattened) and Z_a ``[B, T_a, d_a]`` → ``[B, K, D]``."""
        if video.ndim == 4:
            video = video.flatten(1, 2)  # [B, T·Q, d_v]
        both = torch.cat([self.video_in(video), self.audio_in(audio)], dim=1)  # [B, T_v + T_a, m]
        both = both + positions_of(both, self.position_embedding)
        return self.proj(self.qformer(self.query_tokens, both))  # [B, K, D]
