"""``run.evaluate``: what training measures after an epoch, of a model as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from affectgpt.config.schema import Config
from affectgpt.core.types import Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration as AffectGPT
from affectgpt.training.loop import build_stepper
from affectgpt.training.resume import Resumed
from affectgpt.training.validate import mean_loss


def evaluate(
    *,
    model: AffectGPT,
    config: Config,
    device: torch.device,
    resumed: Resumed | None,
    held_out: Mapping[str, Callable[[], Iterable[Batch]]],
    score: Callable[[Path], Mapping[str, float]] | None,
) -> dict[str, float]:
    """Losses of held-out samples and direct scores by name. The model is that of ``model.ckpt`` …, with ``resumed``
    laid over; no weight changes and no file is written."""
    stepper = build_stepper(model, config, device, resumed=resumed)
    values = {f"valid_loss_{split}": mean_loss(stepper, part()) for split, part in held_out.items()}
    if score is not None:
        settings = config.model
        last = settings.ckpt_3 or settings.ckpt_2 or settings.ckpt or "untrained"
        values |= score(resumed.path if resumed is not None else Path(last))
    return values
