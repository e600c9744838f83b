"""Media of many samples, without any text: what the frozen encoders are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.media.reader import MediaReader, Source, media_source, tell_conversion
from affectgpt.processing.collator import share
from affectgpt.processing.data import Failure, loaded, loader_workers, quiet_worker

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class SampleMedia:
    """The media of one sample that were asked for: what an encoder takes, flags, the file; or why there is none."""

    sample: Sample
    media: dict[Modality, torch.Tensor] = field(default_factory=dict)
    flags: dict[Modality, tuple[str, ...]] = field(default_factory=dict)
    sources: dict[Modality, Source | None] = field(default_factory=dict)
    failures: dict[Modality, Failure] = field(default_factory=dict)


def media_batches(
    reader: MediaReader,
    wanted: Sequence[tuple[Sample, Sequence[Modality]]],
    *,
    batch_size: int,
    num_workers: int = 0,
    stop_at_failure: bool = False,
) -> Iterator[list[SampleMedia]]:
    """The wanted media of every sample, in order, read by ``num_workers`` processes, ``batch_size`` samples at a time.

    ``stop_at_failure``: no further medium of a sample is read once one cannot be.
    """
    import torch

    faces = [sample for sample, media in wanted if Modality.FACE in media]
    if faces:
        tell_conversion(faces, wanted=reader.face_channels)
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        _Media(reader, wanted, stop_at_failure=stop_at_failure),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=loader_workers(min(num_workers, -(-len(wanted) // batch_size))),
        collate_fn=_collate,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),
    )
    yield from loaded(loader)


def stacked(items: Sequence[SampleMedia], modality: Modality) -> tuple[list[SampleMedia], torch.Tensor | None]:
    """Those of ``items`` that hold a medium, and it as one tensor ``[B, …]``."""
    import torch

    holders = [item for item in items if modality in item.media]
    return holders, torch.stack([item.media[modality] for item in holders]) if holders else None


def _collate(items: list[SampleMedia]) -> list[SampleMedia]:
    share(tensor for item in items for tensor in item.media.values())
    return items


class _Media:
    """Index → SampleMedia."""

    def __init__(
        self,
        reader: MediaReader,
        wanted: Sequence[tuple[Sample, Sequence[Modality]]],
        *,
        stop_at_failure: bool,
    ) -> None:
        self.reader, self.wanted, self.stop_at_failure = reader, wanted, stop_at_failure

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> SampleMedia:
        sample, modalities = self.wanted[index]
        item = SampleMedia(sample)
        for modality in modalities:
            try:
                item.media[modality], item.flags[modality] = self.reader(sample, modality)
                item.sources[modality] = media_source(sample, modality)
            except DataError as error:
                item.failures[modality] = Failure(dataset=sample.dataset, name=sample.name, reason=str(error))
                if self.stop_at_failure:
                    break
        return item


def missing_media(
    samples: Sequence[Sample], modalities: Sequence[Modality], stores: Mapping[Modality, object]
) -> list[tuple[Sample, list[Modality]]]:
    """Each sample with the media that its stores know nothing of; samples whose stores have all are left out."""
    lacking = [(s, [m for m in modalities if s not in stores[m]]) for s in samples]  # type: ignore[operator]
    return [(sample, media) for sample, media in lacking if media]
