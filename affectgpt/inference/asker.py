"""A model with all that belongs to it: clips in, encoder outputs and answers out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.schema import Config
from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import logger, pick_device
from affectgpt.core.types import Batch, Modality, Sample
from affectgpt.inference.engines.base import ENGINES, Answer, Decoding
from affectgpt.inference.memory import autocast, find_batch_size
from affectgpt.media.guard import Decoder
from affectgpt.modeling.build import build_model, build_preparation, weights_folder
from affectgpt.processing.collate import collate
from affectgpt.processing.dataset import AffectDataset, Example
from affectgpt.processing.modes import get_mode

_MODE_FROM = ("mercaptionplus", "ovmerd")  # of several training sets, those whose input mode is that of inference
# Encoder outputs of a sample's medium, and what was odd about the medium.
FeatureOf = Callable[[Sample], tuple[torch.Tensor, tuple[str, ...]]]
# Clips that are encoded together, and whose media are in memory at once, per worker (5 MB per clip and visual medium).
# One on a CPU: more gain nothing there, and their activations leave the cache.
ENCODE_BATCH = {"cuda": 8, "cpu": 1}


def inference_device(config: Config) -> torch.device:
    """``run.device``, with ``inference.gpu`` where that names no GPU."""
    wanted = config.run.device
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


class Asker:
    """A model and its engine, ready to answer: shared by whole data sets and single clips.

    ``lock`` is held by whoever uses the tokenizer, the model or the engine, none of which serves two threads at once;
    the methods here that do take it themselves.
    """

    def __init__(self, config: Config, *, device: torch.device, mode: str | None = None, encoders: bool = True) -> None:
        self.lock = threading.RLock()
        self.config = config
        self.device = device
        self.mode = get_mode(mode or training_mode(config)).name
        with config.naming("inference.engine"):  # before any weights are loaded
            engine = ENGINES.get(config.inference.engine)
        self.preparation = build_preparation(config)
        self.checkpoint: Path | None = None
        self._batch_size = config.inference.batch_size
        tokenizer = self.preparation.tokenizer
        self.has_encoders = encoders  # without them every clip must bring its features
        self.model = build_model(config, device=self.device, tokenizer=tokenizer, encoders=encoders)
        self.engine: Any = engine(
            self.model,
            tokenizer=tokenizer,
            decoding=Decoding.from_config(config.inference),
            llm_folder=weights_folder(config, "llama_model"),
            tensor_parallel_size=config.inference.tensor_parallel_size,
        )

    def use(self, checkpoint: Path) -> None:
        """Lay a checkpoint over the model; nothing happens when it is the one in use.

        Raises CheckpointError when it does not fill the model.
        """
        with self.lock:
            if checkpoint != self.checkpoint:
                self.checkpoint = None  # a load that fails leaves neither
                logger.info("%s: %s", checkpoint, self.engine.load(checkpoint))
                self.checkpoint = checkpoint

    def dataset(
        self,
        samples: Sequence[Sample],
        *,
        question: str,
        features: Mapping[Modality, FeatureOf] | None = None,
        decoder: Decoder | None = None,
    ) -> AffectDataset:
        """Samples with a question, as the model takes them; ``features`` in place of media where they are known."""
        model = self.config.model
        return AffectDataset(
            samples,
            mode=self.mode,
            tokenizer=self.preparation.tokenizer,
            transforms=self.preparation.transforms,
            n_tokens=self.preparation.n_tokens,
            question=question,
            max_new_tokens=self.config.inference.max_new_tokens,
            n_frames=self.config.inference_frames.n_frms,
            image_size=self.config.inference_frames.image_size,
            audio_clip_spacing=model.audio_clip_spacing,
            face_channels=model.face_channels,
            features=features,
            decoder=decoder,
        )

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[Example]:
        """A small batch with media → its examples with encoder outputs (on the CPU) instead."""
        with self.lock, autocast(self.device):
            features = self.model.encode(batch.to(self.device))
        features = {modality: z.cpu() for modality, z in features.items()}
        return [
            Example(
                name=name,
                dataset="",
                mode=batch.mode,
                prompt=batch.prompts[row],
                input_ids=batch.input_ids[row][batch.attention_mask[row]].tolist(),
                features={modality: z[row] for modality, z in features.items()},
                flags=batch.flags[row],
            )
            for row, name in enumerate(batch.names)
        ]

    def batch_size(self, longest_prompt: int) -> int:
        """How many clips are generated together: as configured, else as many as the memory takes."""
        if self._batch_size is None:
            self._batch_size = self.engine.preferred_batch or find_batch_size(
                self.model.llm,
                device=self.device,
                prompt_tokens=longest_prompt,
                max_new_tokens=self.config.inference.max_new_tokens,
            )
            logger.info("batches of %d clips (inference.batch_size sets another number)", self._batch_size)
        return self._batch_size

    def answer(self, examples: Sequence[Example], *, seeds: Sequence[int]) -> list[Answer]:
        """An answer per example. A batch that does not fit into memory is halved, and so are those that follow."""
        batch = collate(examples, pad_token_id=self.preparation.tokenizer.pad_token_id)
        try:
            with self.lock:
                return self.engine.generate(batch, seeds=seeds)
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
        first = self.answer(examples[:half], seeds=seeds[:half])
        return first + self.answer(examples[half:], seeds=seeds[half:])
