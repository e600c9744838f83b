"""Samples side by side in one row instead of padding: the same loss, no wasted tokens (``run.packing``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from affectgpt.core.types import IGNORE_INDEX


@dataclass
class Packed:
    """Rows that hold several samples. Shapes: R rows, P tokens."""

    inputs_embeds: torch.Tensor  # [R, P, D]
    attention_mask: torch.Tensor  # bool [R, 1, P, P]: who may look at whom
    position_ids: torch.Tensor  # int64 [R, P], from 0 in each sample
    labels: torch.Tensor  # int64 [R, P]


def row_of_each(lengths: Sequence[int], room: int) -> list[int]:
    """The row that each sample goes to: longest first, into the first row with ``room`` left.

    A sample longer than ``room`` has a row of its own.
    """
    rows: list[int] = []  # tokens in each row
    chosen = [0] * len(lengths)
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (row for row, used in enumerate(rows) if used + lengths[sample] <= room)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] += lengths[sample]
        chosen[sample] = row
    return chosen


def pack(*, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, room: int) -> Packed:
    """Right-padded ``[B, L, D]``, ``[B, L]``, ``[B, L]`` → rows of about ``room`` tokens.

    A token sees the tokens of its own sample up to itself that ``attention_mask`` shows; each sample's positions begin
    at 0. As the first token of a sample is never learnt, no prediction reaches over from one sample to the next: the
    sum of the token losses is that of the padded batch.
    """
    device = inputs_embeds.device
    L = labels.shape[1]
    order = torch.arange(L, device=device)
    # The last token of a training sequence is its closing eos, which is learnt but (pad = eos) not attended to.
    ends = torch.where(attention_mask | (labels != IGNORE_INDEX), order + 1, 0).amax(dim=1)  # [B]
    lengths = ends.tolist()
    rows = row_of_each(lengths, room)
    members = [[i for i, row in enumerate(rows) if row == r] for r in range(max(rows) + 1)]
    P = max(sum(lengths[i] for i in row) for row in members)
    R, D = len(members), inputs_embeds.shape[2]
    embeds = inputs_embeds.new_zeros(R, P, D)
    sample_of = torch.full((R, P), -1, device=device)  # -1: padding
    positions = torch.zeros((R, P), dtype=torch.int64, device=device)
    visible = torch.zeros((R, P), dtype=torch.bool, device=device)
    targets = torch.full((R, P), IGNORE_INDEX, device=device)
    for r, row in enumerate(members):
        at = 0
        for i in row:
            here = slice(at, at + lengths[i])
            embeds[r, here] = inputs_embeds[i, : lengths[i]]
            sample_of[r, here] = i
            positions[r, here] = order[: lengths[i]]
            visible[r, here] = attention_mask[i, : lengths[i]]
            targets[r, here] = labels[i, : lengths[i]]
            at += lengths[i]
    column = torch.arange(P, device=device)
    mask = (sample_of[:, :, None] == sample_of[:, None, :]) & (column[:, None] >= column[None, :])  # [R, P, P]
    mask = (mask & visible[:, None, :]) | torch.eye(P, dtype=torch.bool, device=device)  # no row sees nothing at all
    return Packed(embeds, mask[:, None], positions, targets)
