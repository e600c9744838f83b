"""Core data types: Sample and Batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.crops import AS_PUBLISHED, Crops

if TYPE_CHECKING:
    import numpy as np
    import torch

    from affectgpt.processing.collate import Layout

IGNORE_INDEX = -100  # label of a token that is not learnt
N_FRAMES = 8  # frames per clip and audio clips per sample, as of the released models
IMAGE_SIZE = 224
SAMPLE_RATE = 16_000  # Hz
CLIP_SECONDS = 2
CLIP_SAMPLES = SAMPLE_RATE * CLIP_SECONDS
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif", ".3gp", ".3g2", ".ts",
    ".mts", ".m2ts", ".mxf", ".ogv", ".vob", ".asf",
)  # fmt: skip
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff")  # what libsndfile opens; the rest goes through PyAV


class Modality(StrEnum):
    """One placeholder of the prompt. The order is the order in which the special tokens are appended (wire)."""

    IMAGE = "image"
    AUDIO = "audio"
    FRAME = "frame"
    FACE = "face"
    MULTI = "multi"

    @property
    def placeholder(self) -> str:
        """The special token that stands for this modality in a prompt, e.g. ``<FaceHere>``."""
        return f"<{self.value.capitalize()}Here>"

    @property
    def features(self) -> str:
        """The key of this medium's encoder outputs in a batch, e.g. ``face_features``."""
        return f"{self.value}_features"


@dataclass(frozen=True, slots=True)
class Labels:
    """Whatever human or machine labels a sample has; what a data set lacks is None."""

    emotion: str | None = None  # one word (MER2023, MER2024, MELD, IEMOCAP)
    ovlabels: tuple[str, ...] | None = None  # open vocabulary (OV-MERD, MER-Caption+)
    description: str | None = None  # empty: its cell is missing, so that whoever asks for it refuses the sample
    valence: float | None = None  # CMU-MOSI/MOSEI [-3, 3], SIMS [-1, 1]; an int where the file has integers
    question: str | None = None  # instruction sets: taken verbatim
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip of a data set: where its media are and what is known of it. Nothing is read yet."""

    name: str
    dataset: str
    subtitle: str = ""
    labels: Labels = field(default_factory=Labels)
    video: Path | None = None
    audio: Path | None = None
    face: Path | None = None
    image: Path | None = None
    crops: Crops = AS_PUBLISHED  # how the file ``face`` is stored


@dataclass(frozen=True, slots=True)
class Grades:
    """Rewards of G drawn answers to each of C clips, by K kinds of reward, and what is watched beside them.

    ``weights`` ``[K, C]``: 0 where a kind says nothing of a clip. ``precision``, ``recall`` ``[C, G]``: of the groups
    on the wheels; NaN for a clip whose truth is no label.
    """

    kinds: tuple[str, ...]
    values: np.ndarray  # [K, C, G]
    weights: np.ndarray  # [K, C]
    labels: np.ndarray  # [C, G]: how many an answer has, known to a wheel or not
    precision: np.ndarray
    recall: np.ndarray
    readable: np.ndarray  # bool [C, G]

    @property
    def totals(self) -> np.ndarray:
        """The weighted sums ``[C, G]``."""
        return (self.values * self.weights[:, :, None]).sum(axis=0)

    def of_clip(self, c: int) -> Grades:
        """Return the rewards of one clip alone."""
        one = slice(c, c + 1)
        return Grades(
            self.kinds, self.values[:, one], self.weights[:, one], self.labels[one], self.precision[one],
            self.recall[one], self.readable[one],
        )  # fmt: skip


class Batch(dict[str, Any]):
    """The arguments of a model's forward, by keyword: ``model(**batch)``. Shapes: B samples, L tokens.

    ``input_ids`` int64 ``[B, L]``, ``attention_mask`` bool ``[B, L]``, ``labels`` int64 ``[B, L]`` (IGNORE_INDEX where
    nothing is learnt; absent for generation). Media by modality: ``face`` and ``frame`` ``[B, 8, 3, 224, 224]`` (uint8,
    or normalised numbers), ``audio`` ``[B, 8, 32000]``, ``image`` ``[B, 3, 224, 224]``. Or encoder outputs in their
    place, which need no encoder: ``face_features`` ``[B, 8, d_v]``, ``audio_features`` ``[B, 8, d_a]``, …
    ``prefusion``: FACE or FRAME, what is pre-fused with the audio. ``names``: of the samples, for messages. ``layout``:
    where all this is in the batch (``core.layout``), so that the model need not look.
    Of reinforcement learning also the answers to each prompt: see training/objectives/grpo.

    Not for the model, and so attributes: ``mode``, ``prompts`` (as rendered, placeholders once each), ``flags`` (what
    was odd about a sample, e.g. no_audio_track), ``more`` (the next batch is another part of the same draw).
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        media: Mapping[Modality, torch.Tensor] | None = None,
        features: Mapping[Modality, torch.Tensor] | None = None,
        mode: str = "",
        prompts: Sequence[str] = (),
        flags: Sequence[tuple[str, ...]] = (),
        more: bool = False,
        **values_by_name: Any,
    ) -> None:
        super().__init__(values or {})
        self.update({key: value for key, value in values_by_name.items() if value is not None})
        self.update({modality.value: tensor for modality, tensor in (media or {}).items()})
        self.update({modality.features: tensor for modality, tensor in (features or {}).items()})
        self.mode, self.prompts, self.flags, self.more = mode, list(prompts), list(flags), more

    @property
    def names(self) -> list[str]:
        """The samples' names."""
        return self["names"]

    @property
    def input_ids(self) -> torch.Tensor:
        """int64 ``[B, L]``."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> torch.Tensor:
        """bool ``[B, L]``."""
        return self["attention_mask"]

    @property
    def labels(self) -> torch.Tensor | None:
        """int64 ``[B, L]``; None for generation."""
        return self.get("labels")

    @property
    def layout(self) -> Layout:
        """Positions of media and learnt tokens. Raises KeyError for a batch that ``collate`` has not made."""
        return self["layout"]

    @property
    def prefusion(self) -> Modality | None:
        """FACE or FRAME: what is pre-fused with the audio."""
        return self.get("prefusion")

    @property
    def media(self) -> dict[Modality, torch.Tensor]:
        """Modality → what its encoder takes."""
        return {modality: self[modality.value] for modality in Modality if modality.value in self}

    @property
    def features(self) -> dict[Modality, torch.Tensor]:
        """Modality → its encoder's output, where the batch brings it."""
        return {modality: self[modality.features] for modality in Modality if modality.features in self}

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self.each(lambda tensor: tensor.pin_memory())

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with every tensor changed."""
        changed = copy.copy(self)
        for key, value in self.items():
            if hasattr(value, "is_floating_point"):
                changed[key] = change(value)
            elif hasattr(value, "each"):
                changed[key] = value.each(change)
        return changed
