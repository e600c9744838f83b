"""What turns encoder outputs into tokens of the LLM (paper section 3): the base class and the registries.

A connector compresses Z ``[B, T, d]`` of one medium into K tokens ``[B, K, D]`` of the LLM's width D. The pre-fusion
takes Z_v and Z_a together. Notation: d_v, d_a encoder widths, m = max(d_v, d_a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

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
    """What the connector of one medium is built from."""

    width: int  # d, of the encoder's vectors
    llm_width: int  # D
    n_tokens: int  # K
    n_positions: int = 1  # frames or clips at most; read by the Q-Former alone
    qformer: QFormerShape = QFormerShape()


@dataclass(frozen=True)
class PreFusionShape:
    """What a pre-fusion is built from."""

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
