"""Media → encoder outputs in stores: the one place where clips are encoded, for inference and ``extract_features``."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import DataError
from affectgpt.core.files import naming
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.encoders.base import FrozenEncoder, encode_medium, encoder_class, load_encoder
from affectgpt.encoders.llm import loading
from affectgpt.media.reader import MediaReader, Source, media_source, tell_conversion
from affectgpt.processing.collate import share
from affectgpt.processing.data import Failure, loaded, loader_workers, quiet_worker
from affectgpt.processing.features import FeatureReader, FeatureWriter, features_policy, stored_features
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import FeatureOf

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


# Clips that are encoded together, and whose media are in memory at once, per worker (1 MB per clip and visual medium).
# One on a CPU: more gain nothing there, and their activations leave the cache.
ENCODE_BATCH = {"cuda": 8, "cpu": 1}
# A medium of some samples ``[B, …]`` and their names → the encoder's output ``[B, T, d]``.
Encode = Callable[[Modality, torch.Tensor, Sequence[str]], torch.Tensor]


class Encoders:
    """The frozen encoders of a configuration, each loaded when it is first needed."""

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self.config, self.device = config, device
        self._loaded: dict[str, FrozenEncoder] = {}

    @torch.inference_mode()
    def __call__(self, modality: Modality, media: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        key = "acoustic_encoder" if modality is Modality.AUDIO else "visual_encoder"
        if key not in self._loaded:
            dtype = torch.float32 if self.device.type == "cpu" else getattr(torch, self.config.model.encoder_dtype)
            with loading(self.config, key) as folder:
                kind = encoder_class(self.config, key)
                self._loaded[key] = load_encoder(kind, folder, dtype=dtype, device=self.device)
        return encode_medium(self._loaded[key], modality, media.to(self.device))


def encode_into(
    stores: Mapping[Modality, FeatureWriter | TemporaryStore],
    samples: Sequence[tuple[Sample, Sequence[Modality]]],
    *,
    reader: MediaReader,
    encode: Encode,
    batch_size: int,
    num_workers: int = 0,
    stop_at_failure: bool = False,
) -> Iterator[list[tuple[Sample, Mapping[Modality, str]]]]:
    """Read and encode media of samples, and keep the outputs in ``stores``.

    Gives, batch after batch and in order, each sample with the media that failed and why; all else of it is in the
    stores by then, while workers read on.
    """
    batches = media_batches(
        reader, samples, batch_size=batch_size, num_workers=num_workers, stop_at_failure=stop_at_failure
    )
    for items in batches:
        failed: list[dict[Modality, str]] = [
            {modality: failure.reason for modality, failure in item.failures.items()} for item in items
        ]
        for modality, store in stores.items():
            holders, media = stacked(items, modality)
            with naming(store.folder):
                for item, reasons in zip(items, failed, strict=True):
                    if modality in reasons:
                        store.fail(item.sample.name, reasons[modality])
                if media is None:
                    continue
            features = encode(modality, media, [item.sample.name for item in holders])  # [B, T, d]
            with naming(store.folder):
                for item, feature in zip(holders, features, strict=True):
                    written = store.write(
                        item.sample.name,
                        feature.float(),
                        flags=item.flags[modality],
                        source=item.sources[modality],
                    )
                    if not written:
                        failed[items.index(item)][modality] = store.failed[item.sample.name]
        yield [(item.sample, reasons) for item, reasons in zip(items, failed, strict=True)]


class TemporaryStore:
    """The store of one medium where nobody wants it kept: a nameless file that goes away with the process.

    Memory does not grow with clips: about 57 kB of disk per clip for the released recipes (0.7 GB for MER-UniBench).
    Values of any shape and dtype come back to the bit.
    """

    def __init__(self, folder: str | Path) -> None:
        # Of a folder that is not there yet, the one where it would be made: nothing is left behind.
        wanted = Path(folder).absolute()
        self.folder = next(place for place in (wanted, *wanted.parents) if place.is_dir())
        self._file = tempfile.TemporaryFile(dir=self.folder, prefix="features-")  # noqa: SIM115 - closed with the store
        self._end = 0
        self._index: dict[str, tuple[int, tuple[int, ...], torch.dtype, tuple[str, ...]]] = {}
        self.failed: dict[str, str] = {}

    def __contains__(self, sample: Sample) -> bool:
        return sample.name in self._index

    def write(
        self, name: str, feature: torch.Tensor, *, flags: Iterable[str] = (), source: Source | None = None
    ) -> bool:
        """Keep one sample's output; values that are not finite are noted as a failure, and False is the answer."""
        if not bool(feature.isfinite().all()):
            self.fail(name, "the encoder's output is not finite: the file or the encoder's weights are damaged")
            return False
        data = feature.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        self._index[name] = (self._end, tuple(feature.shape), feature.dtype, tuple(flags))
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, self._end)
            self._end += written
            view = view[written:]
        return True

    def fail(self, name: str, reason: str) -> None:
        """Note a sample that has no output, and why."""
        self.failed[name] = reason

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The output of a sample, and what was odd about the medium."""
        at, shape, dtype, flags = self._index[sample.name]
        data = bytearray(os.pread(self._file.fileno(), math.prod(shape) * dtype.itemsize, at))
        return torch.frombuffer(data, dtype=dtype).reshape(shape), flags


class DatasetFeatures:
    """Encoder outputs of one data set's clips: stored ones where they fit, else encoded once and kept for a while.

    Calling an entry of ``readers`` with a sample gives its output: what ``processor(…, features=…)`` takes.
    """

    def __init__(
        self,
        config: Config,
        samples: Sequence[Sample],
        *,
        dataset: str,
        mode: str,
        policy: str | None = None,
        split: str = "test",
    ) -> None:
        self.config, self.dataset = config, dataset
        self.media = get_mode(mode).media
        self.unreadable: dict[str, str] = {}  # sample → why
        self._kept: dict[Modality, TemporaryStore] = {}
        self.stored: dict[Modality, FeatureReader] = stored_features(
            config, samples, dataset=dataset, split=split, mode=mode,
            policy=policy or features_policy(config, dataset), processor=config.inference_frames,
        )  # fmt: skip
        if self.stored:
            logger.info("%s: stored features of %s", dataset, ", ".join(self.stored))

    @property
    def needs_encoders(self) -> bool:
        """True if some medium must be encoded."""
        return not set(self.media) <= set(self.stored)

    @property
    def readers(self) -> dict[Modality, FeatureOf]:
        """Modality → sample → its output and flags."""
        return {**self.stored, **self._kept}

    def ready(
        self, samples: Sequence[Sample], *, reader: MediaReader, encode: Encode, batch_size: int
    ) -> Iterator[Sample]:
        """The samples in order, each when its outputs can be read: at once where they are known, else encoded now.

        A sample that cannot be read is left out and in ``unreadable``, or, with ``inference.on_error=raise``, a
        DataError.
        """
        for modality in self.media:
            if modality not in self.stored and modality not in self._kept:
                self._kept[modality] = TemporaryStore(Path(self.config.results_root).parent)
        readable = [sample for sample in samples if sample.name not in self.unreadable]
        wanted = missing_media(readable, [*self._kept], self._kept)
        fresh = {sample.name for sample, _ in wanted}
        known = (sample for sample in readable if sample.name not in fresh)
        if not wanted:
            return known
        batches = encode_into(
            self._kept, wanted, reader=reader, encode=encode, batch_size=batch_size,
            num_workers=self.config.run.num_workers, stop_at_failure=True,
        )  # fmt: skip
        return itertools.chain(known, self._whole(batches))

    def _whole(self, batches: Iterable[Sequence[tuple[Sample, Mapping[Modality, str]]]]) -> Iterator[Sample]:
        for batch in batches:
            for sample, failed in batch:
                if not failed:
                    yield sample
                    continue
                reason = next(iter(failed.values()))
                if self.config.inference.on_error == "raise":
                    raise DataError(reason)
                self.unreadable[sample.name] = reason
                logger.warning("skipped sample %d: %s", len(self.unreadable), reason)
