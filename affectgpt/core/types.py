"""The things that travel through the house: a sample, a batch, a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.crops import AS_PUBLISHED, Crops

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100  # label of a token that is not learnt
N_FRAMES = 8  # frames per clip and audio clips per sample (SPEC of the released models)
IMAGE_SIZE = 224
SAMPLE_RATE = 16_000  # Hz
CLIP_SECONDS = 2
CLIP_SAMPLES = SAMPLE_RATE * CLIP_SECONDS
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")
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


@dataclass(slots=True)
class Batch:
    """What a model step takes. Shapes: B samples, L tokens.

    ``media`` holds what the encoders take, by modality: face and frame ``[B, 8, 3, 224, 224]``, audio
    ``[B, 8, 32000]``, image ``[B, 3, 224, 224]``. ``features`` holds encoder outputs instead, where they are known:
    face and frame ``[B, 8, d_v]``, audio ``[B, 8, d_a]``; such a modality needs no encoder.
    """

    names: list[str]
    mode: str
    input_ids: torch.Tensor  # int64 [B, L]
    attention_mask: torch.Tensor  # bool [B, L]
    labels: torch.Tensor | None = None  # int64 [B, L], IGNORE_INDEX where not learnt
    prefusion: Modality | None = None  # FACE or FRAME: what is pre-fused with the audio
    media: dict[Modality, torch.Tensor] = field(default_factory=dict)
    features: dict[Modality, torch.Tensor] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)  # as rendered, placeholders once each
    flags: list[tuple[str, ...]] = field(default_factory=list)  # what was odd about a sample, e.g. no_audio_track

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""

        def move(t):
            return None if t is None else t.to(device, non_blocking=True)

        return Batch(
            names=self.names,
            mode=self.mode,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            labels=move(self.labels),
            prefusion=self.prefusion,
            media={k: move(v) for k, v in self.media.items()},
            features={k: move(v) for k, v in self.features.items()},
            prompts=self.prompts,
            flags=self.flags,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer for one sample."""

    name: str
    answer: str
    prompt: str = ""
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
