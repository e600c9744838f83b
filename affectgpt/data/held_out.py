"""Samples of the training sets that are kept out of training, for a loss of samples never seen."""

from __future__ import annotations

from collections.abc import Sequence

from affectgpt.config.schema import Config
from affectgpt.core.types import Sample
from affectgpt.data.dataset import keep_some


def hold_out(samples: Sequence[Sample], config: Config) -> tuple[list[Sample], list[Sample]]:
    """A training split → what is trained on, and the seeded ``run.valid_ratio`` of it that is held out."""
    if config.run.valid_ratio == 0 or len(samples) < 2:
        return list(samples), []
    held = keep_some(samples, count=round(len(samples) * config.run.valid_ratio), seed=config.run.seed + 1)
    names = {sample.name for sample in held}
    return [sample for sample in samples if sample.name not in names], held
