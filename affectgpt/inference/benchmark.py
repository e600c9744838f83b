"""Answers of checkpoints for whole data sets, written as the published result files."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.paths import CheckpointFile
from affectgpt.config.schema import Config, to_dict
from affectgpt.core.errors import AffectGPTError, DataError, printable
from affectgpt.core.files import write_json
from affectgpt.core.local_vllm import EngineFailedError
from affectgpt.core.provenance import REVISIONS, device_name, file_hash, installed_versions, settings_hash
from affectgpt.core.runtime import logger
from affectgpt.core.types import Modality, Sample
from affectgpt.datasets.base import open_dataset
from affectgpt.evaluation.results import ResultShard, meta_path, read_meta, result_path
from affectgpt.inference.encode import DatasetFeatures
from affectgpt.inference.engines.base import Decoding
from affectgpt.inference.session import GenerationSession, training_mode
from affectgpt.media.video import video_reader
from affectgpt.modeling.build import exported_config
from affectgpt.processing.modes import check_image, get_mode
from affectgpt.processing.questions import render_question


class Benchmark:
    """Runs checkpoints over data sets; the model is built once, at the first answer that is needed.

    Encoders run once per clip, however many checkpoints and questions follow.
    ``hf``: a folder of ``affectgpt export --hf`` in place of the configured model and its checkpoints.
    ``rank`` of ``world_size`` processes answers its share of the samples.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        mode: str | None = None,
        hf: str | Path | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.hf = None if hf is None else Path(hf)
        if self.hf is not None:
            config, mode = exported_config(self.hf, config, mode=mode)
        self.config, self.device = config, device
        self.mode = get_mode(mode or training_mode(config)).name
        self.rank, self.world_size = rank, world_size
        self.session: GenerationSession | None = None
        self._samples: dict[str, list[Sample]] = {}
        self._features: dict[str, DatasetFeatures] = {}

    def samples(self, dataset: str) -> list[Sample]:
        """The test split. Raises DataError when it is empty."""
        if dataset not in self._samples:
            found = open_dataset(self.config, dataset).samples("test", labels=False)
            if not found:
                raise DataError(f"{dataset}: the test split is empty, there is nothing to answer")
            for sample in found:
                check_image(self.mode, sample)
            self._samples[dataset] = found
        return self._samples[dataset]

    def run(
        self,
        dataset: str,
        checkpoint: CheckpointFile,
        *,
        question: str | None = None,
        base_root: str | None = None,
        draw: int | None = None,
    ) -> Path | None:
        """The result file of one data set and checkpoint; computed only where it does not exist (wire).

        None when other processes still work on their shares of it. Default question: the one for open-vocabulary
        labels. ``draw``: one of ``inference.samples`` answers, which go to a run of their own. Raises AffectGPTError;
        what was answered so far is kept, and running again goes on there.
        """
        question = question or render_question("ovlabel")
        root = base_root or self.config.results_root
        target = result_path(root, dataset=dataset, checkpoint=checkpoint.path, draw=draw)
        if target.exists():
            lacking = read_meta(target).get("failed", {})
            logger.info("%s exists, kept", target)
            if lacking:
                logger.warning(
                    "%s lacks %d samples that could not be read; delete it to try again", target, len(lacking)
                )
            return target
        samples = self.samples(dataset)
        key = self._key(dataset, checkpoint, question, samples) | ({} if draw is None else {"draw": draw})
        order = _by_length(samples)
        started = time.perf_counter()
        with ResultShard(
            target, names=order, key=settings_hash(key), rank=self.rank, world_size=self.world_size
        ) as share:
            if share.pending:
                with _answers_kept(target):
                    self._answer(
                        share, order, dataset=dataset, checkpoint=checkpoint, question=question, draw=draw or 1
                    )

            def write_meta(entries: Mapping[str, Any]) -> None:
                write_json(
                    meta_path(target), self._meta(key, checkpoint, entries, seconds=time.perf_counter() - started)
                )

            complete = share.finish(dataset=dataset, order=[s.name for s in samples], write_meta=write_meta)
        if complete:
            logger.info("%s: written", target)
        return target if complete else None

    def _key(self, dataset: str, checkpoint: CheckpointFile, question: str, samples: Sequence[Sample]) -> dict:
        """Everything that an answer depends on, and so what answers of one journal must share."""
        inference = self.config.inference
        decoding = Decoding.from_config(inference)
        return {
            "dataset": dataset,
            "samples": settings_hash([(s.name, s.subtitle) for s in samples]),
            "checkpoint": checkpoint.path.name,
            "checkpoint_sha256": file_hash(checkpoint.path),
            "mode": self.mode,
            "question": question,
            "engine": inference.engine,
            "decoding": vars(decoding) | {"greedy": decoding.greedy},
            "seed": inference.seed,
            "model": to_dict(self.config)["model"],
            **({"face_crops": samples[0].crops.channels} if Modality.FACE in get_mode(self.mode).media else {}),
            "device": self.device.type,
            "revisions": dict(REVISIONS),
        }

    def _meta(
        self, key: Mapping[str, Any], checkpoint: CheckpointFile, entries: Mapping[str, Any], *, seconds: float
    ) -> dict[str, Any]:
        flags: dict[str, list[str]] = {}
        for name, entry in entries.items():
            for flag in entry.get("flags", ()):
                flags.setdefault(flag, []).append(name)
        made = {} if self.session is None else {"decoding": self.session.engine.describe()}
        return {
            **{name: value for name, value in key.items() if name != "model"},
            **made,
            "checkpoint_file": str(checkpoint.path),
            "answers": sum("answer" in entry for entry in entries.values()),
            "failed": {name: entry["failed"] for name, entry in entries.items() if "failed" in entry},
            "flags": flags,
            "tokens": sum(entry.get("tokens", 0) for entry in entries.values()),
            "seconds": round(seconds, 2),
            "processes": self.world_size,
            "device": device_name(self.device),
            "video_reader": video_reader(),
            "versions": installed_versions(),
            "config": to_dict(self.config),
        }

    def _answer(
        self,
        share: ResultShard,
        order: Sequence[str],
        *,
        dataset: str,
        checkpoint: CheckpointFile,
        question: str,
        draw: int,
    ) -> None:
        from tqdm import tqdm

        features = self._features.get(dataset)
        if features is None:  # kept for the checkpoints and questions that follow
            features = self._features[dataset] = DatasetFeatures(
                self.config, self.samples(dataset), dataset=dataset, mode=self.mode,
                policy=None if self.hf is None else "off",  # stored features are of encoders in folders of their own
            )  # fmt: skip
        if self.session is None or (features.needs_encoders and not self.session.has_encoders):
            self.session = None  # its memory is needed
            if self.hf is not None:
                self.session = GenerationSession.from_pretrained(
                    self.hf, config=self.config, device=self.device, mode=self.mode
                )
            else:
                self.session = GenerationSession.from_config(
                    self.config, device=self.device, mode=self.mode, encoders=features.needs_encoders
                )
        self.session.use(checkpoint.path)
        by_name = {sample.name: sample for sample in self.samples(dataset)}
        pending = [by_name[name] for name in order if name in share.pending]
        noted: set[str] = set()

        def note_failures() -> None:
            for sample in pending:
                if sample.name in features.unreadable and sample.name not in noted:
                    noted.add(sample.name)
                    share.fail(sample.name, features.unreadable[sample.name])

        with tqdm(
            total=len(pending), desc=printable(f"{dataset} {checkpoint.path.stem}"), unit="clip", disable=None
        ) as bar:
            for answers in self.session.answer_dataset(pending, question, features=features, draw=draw):
                note_failures()
                for answer in answers:
                    share.add(answer.sample.name, answer=answer.text, flags=answer.flags, tokens=answer.tokens)
                bar.update(len(answers))
            note_failures()


def _by_length(samples: Sequence[Sample]) -> list[str]:
    """Names by length of the text, longest first: rows of a batch are of one length, and a lack of memory shows early.

    Everything else in a prompt is the same for all samples, so the subtitle decides.
    """
    return [s.name for s in sorted(samples, key=lambda s: (-len(s.subtitle.encode()), s.name))]


@contextmanager
def _answers_kept(target: Path) -> Iterator[None]:
    """Turn what ends a run from outside (a full disk, a vanished GPU) into an error that says what is kept."""
    kept = f"The answers so far are kept beside {target}; run the same command again to go on."
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise AffectGPTError(f"{target}: {error.strerror}. {kept}") from error
    except EngineFailedError as error:
        raise AffectGPTError(f"{error}. {kept}") from error
    except RuntimeError as error:
        accelerator = getattr(torch, "AcceleratorError", ())
        if not (isinstance(error, accelerator) or "CUDA error" in str(error)):
            raise
        raise AffectGPTError(f"the GPU failed: {str(error).splitlines()[0]}. {kept}") from error
    except KeyboardInterrupt:
        logger.warning(kept)
        raise
