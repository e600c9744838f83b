"""One clip in four lines: ``Predictor.from_config(…)("clip.mp4", subtitle="…").labels``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config.load import load_config
from affectgpt.config.paths import select_checkpoints
from affectgpt.core.errors import DataError
from affectgpt.core.types import Modality, Sample
from affectgpt.data.collate import collate
from affectgpt.inference.asker import Asker, inference_device
from affectgpt.inference.decoding import sample_seed
from affectgpt.preprocess.faces import face_crops
from affectgpt.prompts.modes import get_mode
from affectgpt.prompts.questions import parse_labels, render_question


@dataclass
class Reply:
    """What the model says of one clip. ``description`` asks the second question when it is first looked at."""

    answer: str
    labels: list[str]
    question: str
    flags: tuple[str, ...] = ()
    _describe: Any = field(default=None, repr=False)

    @property
    def description(self) -> str:
        """The answer to the description question."""
        if callable(self._describe):
            self._describe = self._describe()
        return self._describe

    def as_dict(self) -> dict[str, Any]:
        """Question, answer, labels and notes, as plain containers."""
        return {"question": self.question, "answer": self.answer, "labels": self.labels, "notes": list(self.flags)}


class Predictor:
    """Answers for single clips. Build it once, call it often."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    @classmethod
    def from_config(
        cls,
        cfg_path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        options: Iterable[str] = (),
        mode: str | None = None,
    ) -> Predictor:
        """Build the model of a configuration and lay a checkpoint over it (default: the one inference would run)."""
        options = list(options)
        if checkpoint is not None:
            options += [f"inference.ckpt_name={checkpoint}"]
        config = load_config(cfg_path, options)
        chosen = select_checkpoints(config)[-1]
        asker = Asker(config, device=inference_device(config), mode=mode)
        asker.use(chosen.path)
        return cls(asker)

    def __call__(
        self,
        video: str | Path,
        *,
        subtitle: str = "",
        audio: str | Path | None = None,
        face: str | Path | None = None,
        question: str | None = None,
    ) -> Reply:
        """Answer about one video: open-vocabulary labels, or ``question``.

        The audio is the video's own track unless ``audio`` names a file; faces are detected unless ``face`` names an
        npy ``[N, H, W, 3]`` uint8. Raises DataError naming the file when something cannot be read or no face is found.
        """
        video = Path(video)
        if not video.is_file():
            raise DataError(f"--video_path {video}: no such file")
        if subtitle is None:
            raise DataError(f"{video}: the subtitle is None; give text, an empty one is fine")
        sample = Sample(
            name=video.stem,
            dataset="clip",
            subtitle=subtitle,
            video=video,
            audio=None if audio is None else Path(audio),
            face=None if face is None else Path(face),
        )
        asked = question or render_question("ovlabel")
        reply = self._ask(sample, asked)
        if question is None:
            reply._describe = lambda: self._ask(sample, render_question("description")).answer
        else:
            reply._describe = reply.answer
        return reply

    def _ask(self, sample: Sample, question: str) -> Reply:
        with tempfile.TemporaryDirectory(prefix="affectgpt-") as folder:
            if sample.face is None and Modality.FACE in get_mode(self.asker.mode).media:
                sample = replace(sample, face=Path(folder) / "faces.npy")
                np.save(sample.face, face_crops(sample.video))
            example = self.asker.dataset([sample], question=question)[0]
        batch = collate([example], pad_token_id=self.asker.preparation.tokenizer.pad_token_id)
        assert self.asker.checkpoint is not None
        seed = sample_seed(
            self.asker.config.inference.seed, sample.dataset, sample.name, question, self.asker.checkpoint.name
        )
        answer = self.asker.engine.generate(batch, seeds=[seed])[0]
        return Reply(answer=answer, labels=parse_labels(answer), question=question, flags=example.flags)
