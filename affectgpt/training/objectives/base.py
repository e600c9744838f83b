"""Objectives, which a training step minimises: the base class and the registry of ``run.objective``."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import nn

from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.registry import Registry
from affectgpt.core.types import Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration

OBJECTIVES = Registry("training objective", "affectgpt.training.objectives")


class Objective(nn.Module):
    """The model with what is to be minimised of it: a sum over the terms of a batch (learnt tokens, say).

    A step minimises the mean over all terms of the global batch: over micro-batches and ranks, whatever their sizes.
    ``draws``: its batches are answers of the model in training (reinforcement learning), not labelled ones.
    """

    draws: ClassVar[bool] = False

    def __init__(self, model: AffectGPTForConditionalGeneration, run: RunConfig) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(cls, model: AffectGPTForConditionalGeneration, config: Config) -> Self:
        """The objective of a configuration; one with a section of its own reads it here."""
        return cls(model, config.run)

    @staticmethod
    def terms(batch: Batch | None) -> int:
        """Return how many terms the sum of a batch has; None (nothing of it could be read) has none."""
        raise NotImplementedError  # abstract

    def forward(self, batch: Batch | None) -> torch.Tensor:
        """The sum over the batch, a scalar. None gives ``nothing()``."""
        raise NotImplementedError  # abstract

    def take_metrics(self) -> dict[str, float]:
        """Return what is to be logged of the forward passes since the last call; all ranks must call this."""
        return {}

    def nothing(self) -> torch.Tensor:
        """0, as a scalar that every trained parameter is part of: a rank without a batch keeps step with the others."""
        return sum(p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad)  # type: ignore[return-value]
