"""Supervised fine-tuning: the cross-entropy of every learnt token."""

from __future__ import annotations

import torch

from affectgpt.core.types import Batch
from affectgpt.training.objectives.base import OBJECTIVES, Objective


@OBJECTIVES.register("sft")
class SupervisedObjective(Objective):
    """The sum of the token losses of a batch; its terms are the learnt tokens.

    Logits are made for learnt tokens alone: of a vocabulary of 152,000 they are most of the memory of a step.
    """

    @staticmethod
    def terms(batch: Batch | None) -> int:
        return 0 if batch is None else batch.layout.n_learnt

    def forward(self, batch: Batch | None) -> torch.Tensor:
        return self.nothing() if batch is None else self.model(**batch, num_items_in_batch=1).loss
