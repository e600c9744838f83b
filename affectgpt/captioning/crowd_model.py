"""One classifier of the crowd: attention fusion of face and voice, emotion and valence heads (MERBench; paper, 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

EMOTION, VALENCE = "emotion", "valence"


@dataclass(frozen=True)
class Head:
    """What one data set teaches: emotion words, or valence divided by ``scale`` (the set's largest absolute value)."""

    dataset: str
    task: str  # EMOTION or VALENCE
    classes: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def size(self) -> int:
        """How many numbers the head gives."""
        return len(self.classes) if self.task == EMOTION else 1


class CrowdClassifier(nn.Module):
    """visual ``[B, d_v]``, acoustic ``[B, d_a]`` → one output per head: logits ``[B, classes]``, or valence ``[B, 1]``.

    Each modality goes through a two-layer MLP; a softmax over modalities weighs the two; a linear head per data set
    reads the weighted sum. Inputs are standardised by the training clips' mean and deviation, kept as buffers.
    """

    visual_mean: Tensor
    visual_std: Tensor
    acoustic_mean: Tensor
    acoustic_std: Tensor

    def __init__(self, *, d_visual: int, d_acoustic: int, heads: tuple[Head, ...], hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.shape = {"d_visual": d_visual, "d_acoustic": d_acoustic, "hidden": hidden, "dropout": dropout}
        self.visual = _branch(d_visual, hidden, dropout)
        self.acoustic = _branch(d_acoustic, hidden, dropout)
        self.attention = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.weights = nn.Linear(hidden, 2)
        self.dropout = nn.Dropout(dropout)
        self.outputs = nn.ModuleList(nn.Linear(hidden, head.size) for head in heads)
        for name, width in (("visual", d_visual), ("acoustic", d_acoustic)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))

    def standardise_by(self, visual: Tensor, acoustic: Tensor) -> None:
        """Take mean and deviation of training clips ``[N, d]``; a constant dimension is only shifted."""
        for name, values in (("visual", visual), ("acoustic", acoustic)):
            std = values.std(dim=0, unbiased=False)
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def fuse(self, visual: Tensor, acoustic: Tensor) -> tuple[Tensor, Tensor]:
        """The fused clip ``[B, hidden]`` and the weights of face and voice ``[B, 2]``."""
        seen = self.visual((visual - self.visual_mean) / self.visual_std)  # [B, hidden]
        heard = self.acoustic((acoustic - self.acoustic_mean) / self.acoustic_std)  # [B, hidden]
        weights = self.weights(self.attention(torch.cat([seen, heard], dim=-1))).softmax(dim=-1)  # [B, 2]
        fused = (torch.stack([seen, heard], dim=1) * weights.unsqueeze(-1)).sum(dim=1)  # [B, hidden]
        return fused, weights

    def forward(self, visual: Tensor, acoustic: Tensor) -> list[Tensor]:
        """One tensor per head, in the order of ``heads``."""
        fused, _ = self.fuse(visual, acoustic)
        fused = self.dropout(fused)
        return [output(fused) for output in self.outputs]

    def as_file(self) -> dict[str, Any]:
        """Everything that ``from_file`` needs, in plain containers and tensors."""
        return {"shape": self.shape, "heads": [asdict(head) for head in self.heads], "state": self.state_dict()}

    @classmethod
    def from_file(cls, content: Mapping[str, Any]) -> CrowdClassifier:
        """A classifier as it was saved, in eval mode."""
        heads = tuple(Head(**{**head, "classes": tuple(head["classes"])}) for head in content["heads"])
        model = cls(heads=heads, **content["shape"])
        model.load_state_dict(content["state"])
        return model.eval()


def _branch(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()
    )  # fmt: skip
