"""Where media enter the prompt: the one place, for training and inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality


def splice(
    *,
    input_ids: torch.Tensor,
    embed_tokens: torch.nn.Module,
    slots: Mapping[Modality, torch.Tensor],
    placeholder_ids: Mapping[Modality, int],
    names: Sequence[str],
) -> torch.Tensor:
    """Token ids ``[B, L]`` and a slot ``[B, K, D]`` per modality → ``inputs_embeds [B, L, D]``.

    A placeholder is looked up as token 0 (the embedding matrix is not resized, wire) and overwritten by its slot.
    Raises DataError naming the sample when the placeholders of a row are not exactly its slots.
    """
    is_placeholder = torch.zeros_like(input_ids, dtype=torch.bool)  # [B, L]
    positions = {}
    for modality, token_id in placeholder_ids.items():
        positions[modality] = input_ids == token_id  # [B, L]
        is_placeholder |= positions[modality]
    embeds = embed_tokens(input_ids.masked_fill(is_placeholder, 0))  # [B, L, D]
    for modality, where in positions.items():
        slot = slots.get(modality)
        expected = 0 if slot is None else slot.shape[1]
        counts = where.sum(dim=1)  # [B]
        if not torch.equal(counts, torch.full_like(counts, expected)):
            row = int((counts != expected).nonzero()[0])
            raise DataError(
                f"sample {names[row]!r}: its prompt has {int(counts[row])} {modality.placeholder} tokens, but "
                f"{'the batch holds no ' + modality.value if slot is None else f'its slot has {expected}'}"
            )
        if slot is not None:
            embeds = embeds.masked_scatter(where.unsqueeze(-1), slot.to(embeds.dtype))
    return embeds
