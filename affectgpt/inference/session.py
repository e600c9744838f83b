"""The one place where samples become answers: data sets, single clips, scores during training are its callers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from affectgpt.config.load import default_config
from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import logger, pick_device
from affectgpt.core.types import Batch, Modality, Sample
from affectgpt.encoders.base import encode_medium
from affectgpt.encoders.llm import folder_generation_config, llm_folder
from affectgpt.inference.engines.base import (
    ENGINES,
    Answer,
    Decoding,
    Engine,
    OnToken,
    enough_memory,
    find_batch_size,
    sample_seed,
)
from affectgpt.modeling.build import build_model, exported_weights, load_exported, read_settings, use_attention
from affectgpt.processing.modes import get_mode
from affectgpt.processing.processor import AffectGPTProcessor, Example, FeatureOf

if TYPE_CHECKING:
    from affectgpt.inference.encode import DatasetFeatures

# What is odd about an answer. Odd answers are kept, and named in the result's meta file.
EMPTY = "empty"
UNFINISHED = "never_stopped"  # as long as it may be, and no stop rule met
REPEATING = "repeating"

_LONGEST_UNIT = 200  # characters
_LEAST_REPEATED = 24  # characters, all repetitions together
_LEAST_TIMES = 4
_MODE_FROM = ("mercaptionplus", "ovmerd")  # of several training sets, those whose input mode is that of inference


def inference_device(config: Config) -> torch.device:
    """``run.device``, with ``inference.gpu`` where that names no GPU."""
    wanted = config.run.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return pick_device(f"cuda:{config.inference.gpu}" if wanted == "cuda" and config.inference.gpu else wanted)


def training_mode(config: Config) -> str:
    """The input mode of the training data in the file: that of MER-Caption+ and OV-MERD where they are listed (as
    published), else of all sets. Raises ConfigError when these differ or there is none."""
    sets = {name.lower(): spec.face_or_frame for name, spec in config.datasets.items()}
    modes = {sets[name] for name in _MODE_FROM if name in sets} or set(sets.values())
    if len(modes) != 1:
        raise ConfigError(
            f"{config.name}: the input mode is that of the training data, and datasets: names "
            f"{', '.join(sorted(modes)) or 'none'}; say which with --outside_face_or_frame"
        )
    return modes.pop()


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """A sample's answer; ``flags``: what is odd about its media or the answer."""

    sample: Sample
    text: str
    tokens: int
    stopped: bool
    flags: tuple[str, ...] = ()


class GenerationSession:
    """A model with its processor, engine and checkpoint: samples in, answers out, in batches, seeded per sample.

    May be called from any number of threads: media are read side by side, and ``lock`` is held by whoever uses the
    tokenizer, the model or the engine, none of which serves two at once.
    """

    def __init__(
        self,
        config: Config,
        *,
        processor: AffectGPTProcessor,
        model: Any,
        engine: Engine,
        device: torch.device,
        checkpoint: Path | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.config, self.device = config, device
        self.processor, self.model, self.engine = processor, model, engine
        self.checkpoint = checkpoint
        self._batch_size = config.inference.batch_size

    @classmethod
    def from_config(
        cls, config: Config, *, device: torch.device | None = None, mode: str | None = None, encoders: bool = True
    ) -> GenerationSession:
        """Build the model of a configuration; ``use`` lays a checkpoint over it.

        ``encoders=False``: every clip must bring its features. Raises ConfigError and CheckpointError naming the key.
        """
        device = device or inference_device(config)
        with config.naming("inference.engine"):  # before any weights are loaded
            engine = ENGINES.get(config.inference.engine)
        processor = AffectGPTProcessor.from_config(config, mode=mode or training_mode(config))
        with enough_memory(config, device, encoders=encoders):
            model = build_model(config, device=device, tokenizer=processor.tokenizer, encoders=encoders)
        use_attention(model, config.run)
        folder = llm_folder(config)
        made = engine(
            model,
            processor=processor,
            decoding=Decoding.from_config(config.inference),
            defaults=folder_generation_config(folder, trust_remote_code=config.model.trust_remote_code),
            llm_folder=folder,
            tensor_parallel_size=config.inference.tensor_parallel_size,
        )
        return cls(config, processor=processor, model=model, engine=made, device=device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        config: Config | None = None,
        device: torch.device | None = None,
        mode: str | None = None,
    ) -> GenerationSession:
        """The model of a folder that ``affectgpt export --hf`` wrote; its one set of weights is the checkpoint.

        ``config`` says how answers are drawn and where data are. Raises CheckpointError and ConfigError.
        """
        folder = Path(folder)
        read_settings(folder)
        config = config or default_config(folder.resolve().name)
        device = device or inference_device(config)
        with config.naming("inference.engine"):
            engine = ENGINES.get(config.inference.engine)
        processor = AffectGPTProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        processor.mode = get_mode(mode or processor.mode).name
        processor.max_new_tokens = config.inference.max_new_tokens
        dtype = torch.float32 if device.type == "cpu" else getattr(torch, config.model.llm_dtype)
        model: Any = load_exported(folder, dtype=dtype, device=device)
        defaults, model.generation_config = model.generation_config, GenerationConfig()
        made = engine(
            model,
            processor=processor,
            decoding=Decoding.from_config(config.inference),
            defaults=defaults,
            tensor_parallel_size=config.inference.tensor_parallel_size,
        )
        weights = exported_weights(folder)
        return cls(config, processor=processor, model=model, engine=made, device=device, checkpoint=weights)

    @property
    def mode(self) -> str:
        """The input mode."""
        return self.processor.mode

    @property
    def has_encoders(self) -> bool:
        """True if media can be encoded; without, every clip must bring its features."""
        return self.model.visual_encoder is not None

    def use(self, checkpoint: Path) -> None:
        """Lay a checkpoint over the model; nothing happens when it is the one in use.

        Raises CheckpointError when it does not fill the model.
        """
        with self.lock:
            if checkpoint != self.checkpoint:
                self.checkpoint = None  # a load that fails leaves neither
                logger.info("%s: %s", checkpoint, self.engine.load(checkpoint))
                self.checkpoint = checkpoint

    def seed(self, sample: Sample, question: str, *, draw: int = 1) -> int:
        """Return the seed that an answer is drawn with: run seed, data set, sample, question and checkpoint alone
        decide.

        ``draw``: the first of several answers is the one that a single answer is.
        """
        name = "" if self.checkpoint is None else self.checkpoint.name
        parts = (self.config.inference.seed, sample.dataset, sample.name, question, name)
        return sample_seed(*parts, *((draw,) if draw > 1 else ()))

    @torch.inference_mode()
    def encode(self, modality: Modality, media: torch.Tensor, names: Sequence[str] = ()) -> torch.Tensor:
        """One medium ``[B, …]`` → its encoder's output ``[B, T, d]``, on the CPU."""
        encoder = self.model.acoustic_encoder if modality is Modality.AUDIO else self.model.visual_encoder
        with self.lock:
            return encode_medium(encoder, modality, media.to(self.device)).cpu()

    def features(self, sample: Sample) -> tuple[dict[Modality, torch.Tensor], tuple[str, ...]]:
        """Encoder outputs of one clip's media, for any number of questions, and what was odd about the media.

        Raises DataError naming sample and file, also where an output holds values that no LLM can read.
        """
        example = self.read(sample)
        return self.encode_example(example), example.flags

    def read(self, sample: Sample) -> Example:
        """One clip's media as the encoders take them, and what was odd about them, without any text: neither the lock
        nor the tokenizer is needed. Raises DataError."""
        pad = self.processor.tokenizer.pad_token_id
        example = Example(name=sample.name, dataset=sample.dataset, mode=self.mode, prompt="", input_ids=[pad])
        return self.processor.fill(example, sample)

    @torch.inference_mode()
    def encode_example(self, example: Example) -> dict[Modality, torch.Tensor]:
        """Encoder outputs of a clip that was read. Raises DataError where they hold values that no LLM can read."""
        with self.lock:
            batch = self.processor.collate([example]).to(self.device)
            found = self.model.encode(**batch)
        return {modality: z[0].cpu() for modality, z in found.items()}

    def answer(
        self, samples: Iterable[Sample], question: str, *, features: Mapping[Modality, FeatureOf], draw: int = 1
    ) -> Iterator[list[SampleAnswer]]:
        """Answers to one question about samples whose encoder outputs are known, batch after batch, in their order.

        Samples sorted by the length of their prompts, longest first, waste least: what the first batch needs is enough
        for all.
        """
        group: list[tuple[Sample, Example]] = []
        for sample in samples:
            with self.lock:
                example = self.processor.text(sample, question=question)
            group.append((sample, self.processor.fill(example, sample, features=features)))
            if len(group) >= self.batch_size(len(group[0][1].input_ids)):
                yield self._answered(group, question, draw)
                group = []
        if group:
            yield self._answered(group, question, draw)

    def answer_dataset(
        self, samples: Sequence[Sample], question: str, *, features: DatasetFeatures, draw: int = 1
    ) -> Iterator[list[SampleAnswer]]:
        """The same of a data set's samples, which are encoded now where their outputs are not known."""
        from affectgpt.inference.encode import ENCODE_BATCH

        ready = features.ready(
            samples, reader=self.processor.media, encode=self.encode, batch_size=ENCODE_BATCH[self.device.type]
        )
        return self.answer(ready, question, features=features.readers, draw=draw)

    def batch_size(self, longest_prompt: int) -> int:
        """Return how many clips are generated together: as configured, else as many as the memory takes."""
        if self._batch_size is None:
            self._batch_size = self.engine.preferred_batch or find_batch_size(
                self.model.llm,
                device=self.device,
                prompt_tokens=longest_prompt,
                max_new_tokens=self.config.inference.max_new_tokens,
            )
            logger.info("batches of %d clips (inference.batch_size sets another number)", self._batch_size)
        return self._batch_size

    def generate(
        self,
        examples: Sequence[Example],
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> list[Answer]:
        """An answer per seed: one for each example, or as many for each, one after the other.

        ``decoding``: of these answers, instead of the session's; ``on_token``: one per answer, see engines/base. A
        batch that does not fit into memory is halved, and so are those that follow; its rows begin again, with the
        same tokens.
        """
        batch: Batch = self.processor.collate(examples)
        asked: dict[str, Any] = {"decoding": decoding, "on_token": on_token}
        try:
            with self.lock:
                return self.engine.generate(
                    batch, seeds=seeds, **{key: value for key, value in asked.items() if value is not None}
                )
        except torch.OutOfMemoryError as error:
            if len(examples) == 1:
                raise AffectGPTError(
                    f"sample {examples[0].name!r}: out of memory on {self.device} with a batch of one; free the GPU, "
                    f"use a larger one, or lower inference.max_new_tokens ({str(error).splitlines()[0]})"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(examples) // 2
        self._batch_size = max(1, min(self._batch_size or half, half))
        logger.warning("out of memory: batches of %d clips from now on", self._batch_size)
        cut = half * (len(seeds) // len(examples))  # answers of the first half
        answers = []
        for rows, row_answers in ((slice(half), slice(cut)), (slice(half, None), slice(cut, None))):
            watchers = None if on_token is None else on_token[row_answers]
            answers += self.generate(examples[rows], seeds=seeds[row_answers], decoding=decoding, on_token=watchers)
        return answers

    def _answered(self, group: Sequence[tuple[Sample, Example]], question: str, draw: int) -> list[SampleAnswer]:
        seeds = [self.seed(sample, question, draw=draw) for sample, _ in group]
        answers = self.generate([example for _, example in group], seeds=seeds)
        return [
            SampleAnswer(
                sample, answer.text, answer.tokens, answer.stopped,
                flags=(*example.flags, *answer_flags(answer.text, stopped=answer.stopped)),
            )
            for (sample, example), answer in zip(group, answers, strict=True)
        ]  # fmt: skip


def answer_flags(answer: str, *, stopped: bool) -> tuple[str, ...]:
    """Flags of a cleaned answer; ``stopped``: whether a stop rule ended it."""
    flags = []
    if not answer:
        flags.append(EMPTY)
    if not stopped:
        flags.append(UNFINISHED)
    if repeats(answer):
        flags.append(REPEATING)
    return tuple(flags)


def repeats(text: str) -> bool:
    """Return whether the text ends in the same piece again and again (a last incomplete piece does not matter)."""
    text = text.rstrip(" .\n")
    for size in range(1, min(_LONGEST_UNIT, len(text) // _LEAST_TIMES) + 1):
        span = max(_LEAST_REPEATED, size * _LEAST_TIMES)
        if span <= len(text) and text[-span:-size] == text[-span + size :]:
            return True
    return False
