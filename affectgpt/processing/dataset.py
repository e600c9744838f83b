"""A data set's samples as model inputs: text encoded, media read and transformed. Nothing is drawn unseeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from affectgpt.core.crops import PUBLISHED
from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.seeds import seeded
from affectgpt.core.types import IMAGE_SIZE, N_FRAMES, Modality, Sample
from affectgpt.media.guard import Decoder
from affectgpt.media.reader import MediaReader, tell_conversion
from affectgpt.processing.encode import GENERATION_LENGTH, MAX_NEW_TOKENS, encode_generation, encode_training
from affectgpt.processing.modes import get_mode
from affectgpt.processing.questions import Context, get_label_type, render_answer, render_question
from affectgpt.processing.render import render_prompt

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(slots=True)
class Example:
    """One encoded sample, before it is collated.

    ``media``: face, frame ``[8, 3, 224, 224]``, audio ``[8, 32000]``, image ``[3, 224, 224]``; ``features``: encoder
    outputs in their place. ``labels`` is None for generation.
    """

    name: str
    dataset: str
    mode: str
    prompt: str
    input_ids: list[int]
    labels: list[int] | None = None
    media: dict[Modality, torch.Tensor] = field(default_factory=dict)
    features: dict[Modality, torch.Tensor] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class AffectDataset:
    """A map-style data set: ``dataset[index]`` or ``dataset[epoch, index]`` → Example.

    For training ``label_types`` gives the questions: one, or several of which each sample draws one by (seed, epoch,
    index) among those that it has labels for. For generation ``question`` is asked of every sample instead.
    ``transforms`` are the encoders' own, from uint8 ``[8, 224, 224, 3]`` or float32 ``[8, 32000]`` to tensors; only the
    media that ``mode`` needs are read. ``features`` may give encoder outputs in their place.
    Raises DataError naming data set and sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        mode: str,
        tokenizer: Any,
        transforms: Mapping[Modality, Callable[[np.ndarray], torch.Tensor]],
        n_tokens: Mapping[Modality, int],
        label_types: Sequence[str] = (),
        question: str | None = None,
        context: Context | None = None,
        seed: int = 42,
        max_length: int = 1024,
        max_new_tokens: int = MAX_NEW_TOKENS,
        n_frames: int = N_FRAMES,
        image_size: int = IMAGE_SIZE,
        audio_clip_spacing: int = 8,
        face_channels: str = PUBLISHED,
        decoder: Decoder | None = None,
        features: Mapping[Modality, Callable[[Sample], tuple[torch.Tensor, tuple[str, ...]]]] | None = None,
    ) -> None:
        if (question is None) == (not label_types):
            raise ConfigError("give label_types (training) or a question (generation), not both")
        for label_type in label_types:
            get_label_type(label_type)
        self.samples = samples
        self.mode = get_mode(mode)
        self.tokenizer = tokenizer
        self.n_tokens = n_tokens
        self.label_types = tuple(label_types)
        self.question = question
        self.context = context
        self.seed = seed
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.media = MediaReader(
            transforms,
            n_frames=n_frames,
            image_size=image_size,
            audio_clip_spacing=audio_clip_spacing,
            face_channels=face_channels,
            decoder=decoder,
        )
        self.features = features or {}
        for modality in self.mode.media:
            if modality not in self.features and modality not in transforms:
                raise ConfigError(f"mode {mode} needs {modality.value}, but no transform for it was handed in")
        if Modality.FACE in self.mode.media and Modality.FACE not in self.features:
            tell_conversion(samples, wanted=face_channels)

    def __len__(self) -> int:
        return len(self.samples)

    def sample_of(self, key: int | tuple[int, int]) -> Sample:
        """The sample behind a key."""
        return self.samples[key if isinstance(key, int) else key[1]]

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        epoch, index = (0, key) if isinstance(key, int) else key
        example = self.text(index, epoch=epoch)
        with self._own_stream(self.samples[index], epoch):
            self.fill(example, self.samples[index])
        return example

    @contextmanager
    def _own_stream(self, sample: Sample, epoch: int) -> Iterator[None]:
        """What transforms draw in training depends on seed, epoch and sample, not on how many workers there are."""
        import torch

        if not self.label_types or all(modality in self.features for modality in self.mode.media):
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeded(self.seed, epoch, sample.dataset, sample.name).getrandbits(63))
            yield

    def fill(self, example: Example, sample: Sample) -> None:
        """Add the media that the mode needs to a sample's text, or their features, and what is odd about them."""
        for modality in self.mode.media:
            if modality in self.features:
                example.features[modality], flags = self.features[modality](sample)
            else:
                example.media[modality], flags = self.media(sample, modality)
            example.flags += tuple(flag for flag in flags if flag not in example.flags)

    def text(self, index: int, *, epoch: int = 0) -> Example:
        """A sample without its media. Tokenizers are not for several threads at once; all else here may be."""
        sample = self.samples[index]
        label_type = self._draw(sample, epoch, index)
        answer = None
        if label_type is None:
            question = str(self.question)
        else:
            answer = render_answer(label_type, sample)  # first: a sample without an answer may lack the question too
            question = render_question(label_type, self.context, sample.labels)
        name = f"{sample.dataset}/{sample.name}"
        prompt = render_prompt(self.mode.name, subtitle=sample.subtitle, question=question, sample=name)
        shared = {"tokenizer": self.tokenizer, "n_tokens": self.n_tokens, "sample": name}
        labels = None
        if answer is None:
            input_ids = encode_generation(
                prompt, max_length=GENERATION_LENGTH, max_new_tokens=self.max_new_tokens, **shared
            )
        else:
            input_ids, labels = encode_training(prompt, answer, max_length=self.max_length, **shared)
        return Example(
            name=sample.name, dataset=sample.dataset, mode=self.mode.name, prompt=prompt, input_ids=input_ids,
            labels=labels,
        )  # fmt: skip

    def _draw(self, sample: Sample, epoch: int, index: int) -> str | None:
        if len(self.label_types) < 2:
            return self.label_types[0] if self.label_types else None
        known = [t for t in self.label_types if get_label_type(t).answer(sample.labels) is not None]
        if not known:
            raise DataError(
                f"{sample.dataset}: sample {sample.name!r} has none of the labels {', '.join(self.label_types)} (an "
                "empty cell is none): no answer to learn"
            )
        return seeded(self.seed, epoch, index).choice(known)
