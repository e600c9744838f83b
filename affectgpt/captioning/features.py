"""Clip-level features for the classifiers: stored encoder outputs, averaged over time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config.schema import Config
from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.processing.features import FeatureReader, crops_of, device_type, feature_key, store_folder, without_crops

UNLABELLED = "unlabelled"  # the split under which features of the clips to annotate are stored
_REMAP = 4096  # samples after which the memory maps are opened again: touched pages count as this process's memory


@dataclass
class ClipFeatures:
    """Features of clips ``names``: visual ``[N, d_v]``, acoustic ``[N, d_a]``, float32; ``missing``: name → reason."""

    names: list[str]
    visual: np.ndarray
    acoustic: np.ndarray
    missing: dict[str, str]


def open_readers(
    config: Config, samples: Sequence[Sample], *, title: str, split: str, visual: Modality
) -> tuple[FeatureReader, FeatureReader]:
    """The stores of visual and acoustic features of the samples of one data set and split.

    Raises DataError naming the folder, and the key that differs, when they are absent or were made otherwise.
    """
    first, second = (
        FeatureReader(
            feature_folder(config, title=title, split=split, modality=modality),
            key=_key(config, split, modality, samples),
        )
        for modality in (visual, Modality.AUDIO)
    )
    return first, second


def _key(config: Config, split: str, modality: Modality, samples: Sequence[Sample]) -> dict[str, Any]:
    """The key under which features of a split are stored: splits but ``train`` are prepared as inference does."""
    processor = config.model.vis_processor.train if split == "train" else config.inference_frames
    return feature_key(
        config, modality, device_type=device_type(config), processor=processor, crops=crops_of(samples, modality)
    )


def feature_folder(config: Config, *, title: str, split: str, modality: Modality) -> Path:
    """Where the features of one data set, split and medium are stored."""
    encoder = config.model.acoustic_encoder if modality is Modality.AUDIO else config.model.visual_encoder
    return store_folder(config.paths.features_root, dataset=title, split=split, modality=modality, encoder=encoder)


def encoder_keys(config: Config, visual: Modality) -> dict[str, Any]:
    """What the features depend on: classifiers trained on some must not judge others."""
    return {
        modality.value: without_crops(feature_key(config, modality, device_type=device_type(config)))
        for modality in (visual, Modality.AUDIO)
    }


def load_features(
    config: Config, samples: Sequence[Sample], *, title: str, split: str, visual: Modality
) -> ClipFeatures:
    """Features of the samples, averaged over time (and query tokens). Samples without are in ``missing``."""
    readers = open_readers(config, samples, title=title, split=split, visual=visual)
    return pool(readers, samples)


def pool(readers: tuple[FeatureReader, FeatureReader], samples: Sequence[Sample]) -> ClipFeatures:
    """Averages over time. Memory is that of the averages: the stores stay on disk."""
    columns = [np.empty((len(samples), reader.width), dtype=np.float32) for reader in readers]
    missing: dict[str, str] = {}
    kept: list[int] = []
    opened = list(readers)
    for number, sample in enumerate(samples):
        if number % _REMAP == 0:
            opened = [copy.copy(reader) for reader in readers]
        try:
            for column, reader in zip(columns, opened, strict=True):
                feature, _ = reader(sample)  # [T, d] or [T, Q, d]
                column[number] = feature.reshape(-1, feature.shape[-1]).mean(dim=0).numpy()  # [d]
        except DataError as error:
            missing[sample.name] = str(error)
            continue
        kept.append(number)
    if missing:
        columns = [column[kept] for column in columns]
    bad = [i for i in range(len(kept)) if not all(np.isfinite(column[i]).all() for column in columns)]
    if bad:
        names = ", ".join(samples[kept[i]].name for i in bad[:3])
        raise DataError(f"{readers[0].folder.parent}: NaN or infinity in the features of {len(bad)} clips ({names} …)")
    return ClipFeatures([samples[i].name for i in kept], columns[0], columns[1], missing)


def unstored(config: Config, samples: Sequence[Sample], *, title: str, split: str, modality: Modality) -> list[str]:
    """Names of samples that the store knows nothing of; all of them where it is not there."""
    folder = feature_folder(config, title=title, split=split, modality=modality)
    if not (folder / "key.json").exists():
        return [sample.name for sample in samples]
    return FeatureReader(folder, key=_key(config, split, modality, samples)).missing(samples)
