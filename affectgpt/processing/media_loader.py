"""One medium of many samples, without any text: what the feature store encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.config.schema import Config, ProcessorSpec
from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.media.reader import MediaReader, Source, media_source, tell_conversion
from affectgpt.processing.collate import share
from affectgpt.processing.loader import Failure, loader_workers, quiet_worker


def media_batches(
    config: Config,
    samples: Sequence[Sample],
    *,
    modality: Modality,
    transform: Callable,
    batch_size: int,
    processor: ProcessorSpec | None = None,
) -> Iterator[MediaBatch]:
    """One medium of every sample in order, without text; ``processor``: sizes, those of training where not given."""
    import torch

    spec = processor or config.model.vis_processor.train
    reader = MediaReader(
        {modality: transform},
        n_frames=spec.n_frms,
        image_size=spec.image_size,
        audio_clip_spacing=config.model.audio_clip_spacing,
        face_channels=config.model.face_channels,
    )
    if modality is Modality.FACE:
        tell_conversion(samples, wanted=config.model.face_channels)
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        _Media(reader, samples, modality),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=loader_workers(min(config.run.num_workers, len(samples))),
        collate_fn=_collate,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),
    )
    for items in loader:
        good = [item for item in items if not isinstance(item, Failure)]
        yield MediaBatch(
            names=[name for name, _, _, _ in good],
            media=torch.stack([tensor for _, tensor, _, _ in good]) if good else None,
            flags=[flags for _, _, flags, _ in good],
            sources=[source for _, _, _, source in good],
            failures=[item for item in items if isinstance(item, Failure)],
        )


@dataclass(frozen=True, slots=True)
class MediaBatch:
    """One medium of some samples: tensor ``[B, …]``, per sample flags and the file it is of; and what failed."""

    names: list[str]
    media: Any
    flags: list[tuple[str, ...]]
    sources: list[Source | None]
    failures: list[Failure]


def _collate(items: list) -> list:
    share(item[1] for item in items if not isinstance(item, Failure))
    return items


class _Media:
    """Index → (name, tensor, flags, the file it is of), or Failure."""

    def __init__(self, reader: MediaReader, samples: Sequence[Sample], modality: Modality) -> None:
        self.reader, self.samples, self.modality = reader, samples, modality

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, Any, tuple[str, ...], Source | None] | Failure:
        sample = self.samples[index]
        try:
            return (sample.name, *self.reader(sample, self.modality), media_source(sample, self.modality))
        except DataError as error:
            return Failure(dataset=sample.dataset, name=sample.name, reason=str(error))
