"""The loss of held-out samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from affectgpt.core.types import Batch
from affectgpt.training.distributed import sum_over_ranks
from affectgpt.training.step import Stepper, learnt_tokens


@torch.no_grad()
def mean_loss(stepper: Stepper, batches: Iterable[Batch]) -> float:
    """Mean over all learnt tokens of this rank's batches and all other ranks', in eval mode. NaN without any."""
    objective = stepper.objective
    if isinstance(objective, nn.parallel.DistributedDataParallel):
        objective = objective.module  # ranks may have different numbers of batches
    objective.eval()
    total, learnt = 0.0, 0
    for batch in batches:
        with stepper.autocast():
            total += float(objective(batch.to(stepper.device)))
        learnt += learnt_tokens(batch)
    objective.train()
    total, learnt = sum_over_ranks(total, learnt)  # type: ignore[assignment]
    return total / learnt if learnt else float("nan")
