"""A configuration's data → batches: the training stream over one or several data sets, and questions in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.runtime import rank, world_size
from affectgpt.core.types import Batch, Modality
from affectgpt.data.collate import collate
from affectgpt.data.dataset import AffectDataset, Example, keep_fraction
from affectgpt.data.readers import candidate_labels, load_samples, value_range
from affectgpt.data.sampler import MixedBatches
from affectgpt.data.table import DatasetRow, get_row
from affectgpt.prompts.questions import HYBRID, Context, get_label_type


class Parts(torch.utils.data.Dataset):
    """Several data sets behind keys ``(part, epoch, index)``."""

    def __init__(self, parts: Sequence[AffectDataset]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, key: tuple[int, int, int]) -> Example:
        part, epoch, index = key
        return self.parts[part][epoch, index]


class TrainingBatches:
    """``batches(epoch)`` gives the batches of an epoch; ``counts`` says how many samples each set has."""

    def __init__(self, loader: torch.utils.data.DataLoader, sampler: MixedBatches, counts: Mapping[str, int]) -> None:
        self.loader, self.sampler, self.counts = loader, sampler, dict(counts)

    def __call__(self, epoch: int) -> Iterable[Batch]:
        self.sampler.set_epoch(epoch)
        return self.loader


def training_batches(
    config: Config,
    *,
    tokenizer: Any,
    transforms: Mapping[Modality, Callable[[np.ndarray], torch.Tensor]],
    n_tokens: Mapping[Modality, int],
) -> TrainingBatches:
    """The training data of a configuration. Raises DataError and ConfigError naming data set and key."""
    run, parts, counts = config.run, [], {}
    for name, spec in config.datasets.items():
        row = get_row(name)
        samples = keep_fraction(
            load_samples(row, split="train", dataset_root=config.paths.dataset_root), ratio=spec.ratio, seed=run.seed
        )
        if not samples:
            raise DataError(f"datasets.{name}: it has no training sample")
        types = row.label_types if spec.label_type == HYBRID else (get_label_type(spec.label_type).name,)
        parts.append(
            AffectDataset(
                samples,
                mode=spec.face_or_frame,
                tokenizer=tokenizer,
                transforms=transforms,
                n_tokens=n_tokens,
                label_types=types,
                context=_context(row, types, config.paths.dataset_root),
                seed=run.seed,
                max_length=config.model.max_length,
                audio_clip_spacing=config.model.audio_clip_spacing,
            )
        )
        counts[row.name] = len(samples)
    weights = [spec.sample_ratio for spec in config.datasets.values()]
    if any(w is not None for w in weights) and None in weights:
        raise ConfigError("datasets: give sample_ratio to all sets or to none")
    sampler = MixedBatches(
        [len(part) for part in parts],
        weights=None if None in weights else [float(w) for w in weights if w is not None],
        batch_size=run.batch_size_train,
        iters_per_epoch=run.iters_per_epoch * run.accum_grad_iters,
        seed=run.seed,
        rank=rank(),
        world_size=world_size(),
    )
    loader = torch.utils.data.DataLoader(
        Parts(parts),
        batch_sampler=sampler,
        num_workers=run.num_workers,
        collate_fn=partial(collate, pad_token_id=tokenizer.pad_token_id),
        persistent_workers=run.num_workers > 0,
    )
    return TrainingBatches(loader, sampler, counts)


def question_loader(dataset: AffectDataset, *, batch_size: int, num_workers: int) -> torch.utils.data.DataLoader:
    """Left-padded batches of a data set of questions, in order."""
    return torch.utils.data.DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=min(num_workers, len(dataset) // batch_size),
        collate_fn=partial(collate, pad_token_id=dataset.tokenizer.pad_token_id),
    )


def _context(row: DatasetRow, label_types: Sequence[str], dataset_root: str) -> Context:
    """What the questions of these label types need to know of the training split; nothing is read for others."""
    return Context(
        candidates=candidate_labels(row, dataset_root) if "onehot_w_candidates" in label_types else (),
        value_range=value_range(row, dataset_root) if "valence" in label_types else None,
    )
