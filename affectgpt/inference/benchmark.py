"""Answers of a checkpoint for a whole data set, written as the published result file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.load import to_dict
from affectgpt.config.paths import CheckpointFile
from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError
from affectgpt.core.files import write_json
from affectgpt.core.runtime import logger, pick_device
from affectgpt.core.types import Sample
from affectgpt.data.dataset import AffectDataset
from affectgpt.data.loader import FailureLog, question_loader
from affectgpt.data.readers import load_samples
from affectgpt.data.table import get_row
from affectgpt.inference.decoding import sample_seed
from affectgpt.inference.engines.base import ENGINES, Decoding
from affectgpt.inference.results import result_path, write_answers
from affectgpt.modeling.build import build_model, build_preparation, load_checkpoint
from affectgpt.prompts.modes import get_mode
from affectgpt.prompts.questions import render_question


def inference_device(config: Config) -> torch.device:
    """``run.device``, with ``inference.gpu`` where that names no GPU."""
    wanted = config.run.device
    return pick_device(f"cuda:{config.inference.gpu}" if wanted == "cuda" and config.inference.gpu else wanted)


def training_mode(config: Config) -> str:
    """The input mode of the training data in the file. Raises ConfigError when the sets differ or there is none."""
    modes = {spec.face_or_frame for spec in config.datasets.values()}
    if len(modes) != 1:
        raise ConfigError(
            f"{config.name}: the input mode is that of the training data, and datasets: names "
            f"{', '.join(sorted(modes)) or 'none'}; say which with --outside_face_or_frame"
        )
    return modes.pop()


class Asker:
    """A model and what belongs to it, ready to answer: shared by whole data sets and single clips."""

    def __init__(self, config: Config, *, device: torch.device, mode: str | None = None) -> None:
        self.config = config
        self.mode = get_mode(mode or training_mode(config)).name
        self.preparation = build_preparation(config)
        self.model = build_model(config, device=device, tokenizer=self.preparation.tokenizer)
        self.engine: Any = ENGINES.get("transformers")(
            self.model, tokenizer=self.preparation.tokenizer, decoding=Decoding.from_config(config.inference)
        )
        self.checkpoint: Path | None = None

    def dataset(self, samples: Sequence[Sample], *, question: str) -> AffectDataset:
        """Samples with a question, as the model takes them."""
        return AffectDataset(
            samples,
            mode=self.mode,
            tokenizer=self.preparation.tokenizer,
            transforms=self.preparation.transforms,
            n_tokens=self.preparation.n_tokens,
            question=question,
            max_new_tokens=self.config.inference.max_new_tokens,
            audio_clip_spacing=self.config.model.audio_clip_spacing,
        )

    def use(self, checkpoint: Path) -> None:
        """Lay a checkpoint over the model; nothing happens when it is the one in use."""
        if checkpoint != self.checkpoint:
            logger.info("%s: %s", checkpoint, load_checkpoint(self.model, checkpoint, complete=True))
            self.checkpoint = checkpoint


class Benchmark:
    """Runs checkpoints over data sets; the model is built once, at the first answer that is needed."""

    def __init__(
        self, config: Config, *, device: torch.device, mode: str | None = None, question: str | None = None
    ) -> None:
        self.config, self.device, self.mode = config, device, mode
        self.question = question or render_question("ovlabel")
        self.asker: Asker | None = None

    def run(self, dataset: str, checkpoint: CheckpointFile) -> Path:
        """The result file of one data set and checkpoint; computed only where it does not exist (wire)."""
        target = result_path(self.config.inference.base_root, dataset=dataset, checkpoint=checkpoint.path)
        if target.exists():
            logger.info("%s exists, kept", target)
            return target
        samples = load_samples(get_row(dataset), split="test", dataset_root=self.config.paths.dataset_root)
        if self.asker is None:
            self.asker = Asker(self.config, device=self.device, mode=self.mode)
        self.asker.use(checkpoint.path)
        started = time.perf_counter()
        failures = FailureLog(target.with_name(f"{target.stem}-failed.csv"))
        answers = self._answer(samples, dataset=dataset, checkpoint=checkpoint, failures=failures)
        write_answers(target, answers)
        write_json(
            target.with_suffix(".meta.json"),
            {
                "dataset": dataset,
                "checkpoint": str(checkpoint.path),
                "mode": self.asker.mode,
                "question": self.question,
                "decoding": self.config.inference.decoding,
                "seed": self.config.inference.seed,
                "seconds": round(time.perf_counter() - started, 2),
                "config": to_dict(self.config),
            },
        )
        logger.info("%s: %d answers", target, len(answers))
        return target

    def _answer(
        self, samples: Sequence[Sample], *, dataset: str, checkpoint: CheckpointFile, failures: FailureLog
    ) -> dict[str, str]:
        from tqdm import tqdm

        assert self.asker is not None
        loader = question_loader(
            self.asker.dataset(samples, question=self.question),
            batch_size=self.config.inference.batch_size,
            num_workers=self.config.run.num_workers,
            on_error=self.config.inference.on_error,
            failures=failures,
        )
        answers: dict[str, str] = {}
        with tqdm(total=len(samples), desc=f"{dataset} epoch {checkpoint.epoch}", unit="clip", disable=None) as bar:
            for batch in loader:
                seeds = [
                    sample_seed(self.config.inference.seed, dataset, name, self.question, checkpoint.path.name)
                    for name in batch.names
                ]
                replies = self.asker.engine.generate(batch, seeds=seeds)
                answers.update(zip(batch.names, replies, strict=True))
                bar.update(len(replies))
        if failures:
            logger.warning("%s: %d clips skipped, see %s", dataset, len(failures), failures.path)
        return answers
