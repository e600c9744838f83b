"""Supervised fine-tuning: the cross-entropy of every learnt token (SPEC 4)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from affectgpt.config.schema import RunConfig
from affectgpt.core.types import IGNORE_INDEX, Batch
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.training.objectives.base import OBJECTIVES, Objective
from affectgpt.training.packing import pack


@OBJECTIVES.register("sft")
class SupervisedObjective(Objective):
    """The sum of the token losses of a batch; its terms are the learnt tokens.

    Logits are made for learnt tokens alone: of a vocabulary of 152,000 they are most of the memory of a step.
    """

    def __init__(self, model: AffectGPT, run: RunConfig) -> None:
        super().__init__(model, run)
        self.packing = run.packing
        self.attention = run.attention

    @staticmethod
    def terms(batch: Batch | None) -> int:
        return 0 if batch is None or batch.labels is None else int((batch.labels[:, 1:] != IGNORE_INDEX).sum())

    def forward(self, batch: Batch | None) -> torch.Tensor:
        if batch is None:
            return self.nothing()
        assert batch.labels is not None
        embeds, mask, positions, labels = self.model.embed(batch), batch.attention_mask, None, batch.labels
        if self.packing:
            packed = pack(inputs_embeds=embeds, attention_mask=mask, labels=labels, room=self.packing)
            embeds, positions, labels = packed.inputs_embeds, packed.position_ids, packed.labels
            # FlashAttention reads the borders of samples from the positions; the others take a mask to be added.
            mask = None if self.attention == "flash_attention_2" else _additive(packed.attention_mask, embeds.dtype)
        llm = self.model.llm
        hidden = llm.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # [B, L, D]
        targets = labels[:, 1:]  # [B, L-1]: token t predicts t + 1
        learnt = targets != IGNORE_INDEX
        logits = llm.get_output_embeddings()(hidden[:, :-1][learnt])  # [learnt, V]
        return F.cross_entropy(logits.float(), targets[learnt], reduction="sum")


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
