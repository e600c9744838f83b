"""Supervised fine-tuning: the cross-entropy of every learnt token (SPEC 4)."""

from __future__ import annotations

import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.types import IGNORE_INDEX, Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.training.objectives.base import OBJECTIVES, Objective
from affectgpt.training.packing import pack


@OBJECTIVES.register("sft")
class SupervisedObjective(Objective):
    """The sum of the token losses of a batch; its terms are the learnt tokens.

    Logits are made for learnt tokens alone: of a vocabulary of 152,000 they are most of the memory of a step.
    """

    def __init__(self, model: AffectGPTForConditionalGeneration, run: RunConfig) -> None:
        super().__init__(model, run)
        self.packing = run.packing
        self.attention = run.attention

    @staticmethod
    def terms(batch: Batch | None) -> int:
        return 0 if batch is None or batch.labels is None else int((batch.labels[:, 1:] != IGNORE_INDEX).sum())

    def forward(self, batch: Batch | None) -> torch.Tensor:
        if batch is None:
            return self.nothing()
        if not self.packing:
            return self.model(**batch, num_items_in_batch=1).loss
        packed = pack(
            inputs_embeds=self.model.embed(**batch),
            attention_mask=batch.attention_mask,
            labels=batch["labels"],
            room=self.packing,
        )
        # FlashAttention reads the borders of samples from the positions; the others take a mask to be added.
        mask = None
        if self.attention != "flash_attention_2":
            mask = _additive(packed.attention_mask, packed.inputs_embeds.dtype)
        return self.model(
            inputs_embeds=packed.inputs_embeds, attention_mask=mask, position_ids=packed.position_ids,
            labels=packed.labels, num_items_in_batch=1,
        ).loss  # fmt: skip


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
