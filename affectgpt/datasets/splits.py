"""Parts of a split: a seeded fraction of it, and what is kept out of training for a loss of samples never seen."""

from __future__ import annotations

from collections.abc import Sequence

from affectgpt.config.schema import Config
from affectgpt.core.seeds import seeded
from affectgpt.core.types import Sample


def hold_out(samples: Sequence[Sample], config: Config) -> tuple[list[Sample], list[Sample]]:
    """A training split → what is trained on, and the seeded ``run.valid_ratio`` of it that is held out."""
    if config.run.valid_ratio == 0 or len(samples) < 2:
        return list(samples), []
    held = keep_some(samples, count=round(len(samples) * config.run.valid_ratio), seed=config.run.seed + 1)
    names = {sample.name for sample in held}
    return [sample for sample in samples if sample.name not in names], held


def keep_fraction(samples: Sequence[Sample], *, ratio: float, seed: int) -> list[Sample]:
    """A seeded random fraction of the samples, ``int(n * ratio)`` (wire) but at least one, in their order."""
    return keep_some(samples, count=int(len(samples) * ratio), seed=seed)


def keep_some(samples: Sequence[Sample], *, count: int, seed: int) -> list[Sample]:
    """``count`` seeded random samples, at least one and at most all of them, in their order."""
    if count >= len(samples):
        return list(samples)
    kept = sorted(seeded("ratio", seed).sample(range(len(samples)), max(1, count)))
    return [samples[i] for i in kept]
