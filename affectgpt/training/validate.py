"""The loss of held-out samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from affectgpt.core.types import Batch
from affectgpt.training.distributed import sum_over_ranks
from affectgpt.training.step import Stepper


@torch.no_grad()
def mean_loss(stepper: Stepper, batches: Iterable[Batch]) -> float:
    """Mean over all terms (learnt tokens) of the batches of all ranks, in eval mode. NaN without any."""
    objective = stepper.objective  # not the wrapped one: ranks may have different numbers of batches
    objective.eval()
    total, terms = 0.0, 0
    for batch in batches:
        with stepper.autocast():
            total += float(objective(batch.to(stepper.device)))
        terms += objective.terms(batch)
    objective.train()
    total, terms = sum_over_ranks(total, terms)  # type: ignore[assignment]
    return total / terms if terms else float("nan")
