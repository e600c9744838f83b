"""The loss of held-out samples, after an epoch and as ``run.evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from affectgpt.config.schema import Config
from affectgpt.core.types import Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.training.distributed import sum_over_ranks
from affectgpt.training.run_state import Resumed
from affectgpt.training.step import TrainStep, build_train_step

HeldOut = Mapping[str, Callable[[], Iterable[Batch]]]  # split → its batches
Score = Callable[[Path], Mapping[str, float]]  # checkpoint → named scores of the model as it is


@torch.no_grad()
def mean_loss(train_step: TrainStep, batches: Iterable[Batch]) -> float:
    """Mean over all terms (learnt tokens) of the batches of all ranks, in eval mode. NaN without any."""
    objective = train_step.objective  # not the wrapped one: ranks may have different numbers of batches
    objective.eval()
    total, terms = 0.0, 0.0
    for batch in batches:
        with train_step.autocast():
            total += float(objective(batch.to(train_step.device)))
        terms += objective.terms(batch)
    objective.train()
    total, terms = sum_over_ranks(total, terms)
    return total / terms if terms else float("nan")


def held_out_losses(train_step: TrainStep, held_out: HeldOut) -> dict[str, float]:
    """``valid_loss_<split>`` of every split."""
    return {f"valid_loss_{split}": mean_loss(train_step, batches()) for split, batches in held_out.items()}


def evaluate(
    *,
    model: AffectGPTForConditionalGeneration,
    config: Config,
    device: torch.device,
    resumed: Resumed | None,
    held_out: HeldOut,
    score: Score | None,
) -> dict[str, float]:
    """Return what training measures after an epoch, of a model as it is: losses of held-out samples and scores, by
    name.

    The model is that of ``model.ckpt`` …, with ``resumed`` laid over; no weight changes and no file is written.
    """
    values = held_out_losses(build_train_step(model, config, device, resumed=resumed), held_out)
    if score is not None:
        settings = config.model
        last = settings.ckpt_3 or settings.ckpt_2 or settings.ckpt or "untrained"
        values |= score(resumed.path if resumed is not None else Path(last))
    return values
