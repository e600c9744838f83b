"""Samples with their questions, one example at a time: a map-style data set for a loader's workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.seeds import seeded
from affectgpt.core.types import Modality, Sample
from affectgpt.media.reader import tell_conversion
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import AffectGPTProcessor, Example, FeatureOf
from affectgpt.processing.questions import Context, get_label_type, render_answer, render_question


class ExampleDataset:
    """``dataset[index]`` or ``dataset[epoch, index]`` → Example.

    For training ``label_types`` gives the questions: one, or several of which each sample draws one by (seed, epoch,
    index) among those that it has labels for. For generation ``question`` is asked of every sample instead. Only the
    media that ``mode`` needs are read; ``features`` may give encoder outputs in their place.
    Raises DataError naming data set and sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: AffectGPTProcessor,
        *,
        mode: str | None = None,
        label_types: Sequence[str] = (),
        question: str | None = None,
        context: Context | None = None,
        features: Mapping[Modality, FeatureOf] | None = None,
        seed: int = 42,
    ) -> None:
        if (question is None) == (not label_types):
            raise ConfigError("give label_types (training) or a question (generation), not both")
        for label_type in label_types:
            get_label_type(label_type)
        self.samples, self.processor = samples, processor
        self.mode = get_mode(mode or processor.mode)
        self.label_types, self.question, self.context = tuple(label_types), question, context
        self.features = features or {}
        self.seed = seed
        for modality in self.mode.media:
            if modality not in self.features and modality not in processor.transforms:
                raise ConfigError(f"mode {mode} needs {modality.value}, but no transform for it was handed in")
        if Modality.FACE in self.mode.media and Modality.FACE not in self.features:
            tell_conversion(samples, wanted=processor.face_channels)

    def __len__(self) -> int:
        return len(self.samples)

    def sample_of(self, key: int | tuple[int, int]) -> Sample:
        """The sample behind a key."""
        return self.samples[key if isinstance(key, int) else key[1]]

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        epoch, index = (0, key) if isinstance(key, int) else key
        sample = self.samples[index]
        example = self.text(index, epoch=epoch)
        with self._own_stream(sample, epoch):
            return self.processor.fill(example, sample, features=self.features)

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

    def text(self, index: int, *, epoch: int = 0) -> Example:
        """A sample without its media."""
        sample = self.samples[index]
        label_type = self._draw(sample, epoch, index)
        if label_type is None:
            question, answer = str(self.question), None
        else:
            answer = render_answer(label_type, sample)  # first: a sample without an answer may lack the question too
            question = render_question(label_type, self.context, sample.labels)
        return self.processor.text(sample, question=question, answer=answer, mode=self.mode.name)

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
