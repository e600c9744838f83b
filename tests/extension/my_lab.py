"""What a laboratory can add to AffectGPT from a file of its own: one of each kind. CONTRIBUTING points here.

A configuration names this file under ``imports:``. Nothing in the package knows any of these names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from affectgpt.config.paths import Weights
from affectgpt.core.types import Labels, Modality
from affectgpt.datasets.label_files import LABEL_READERS
from affectgpt.datasets.table import DATASETS, DatasetRow
from affectgpt.encoders.base import VISUAL_ENCODERS, FrozenEncoder
from affectgpt.encoders.llm import LLMS, LLMRow
from affectgpt.evaluation.extract import EXTRACTORS, DirectExtractor
from affectgpt.evaluation.metrics.base import METRICS
from affectgpt.modeling.connectors.base import (
    CONNECTORS,
    PREFUSIONS,
    Connector,
    ConnectorShape,
    PreFusionShape,
    repeat_token,
)
from affectgpt.processing.modes import AUDIO, FACE, MODES, MULTI, Mode
from affectgpt.processing.questions import LABEL_TYPES, LabelType
from affectgpt.training.objectives.base import OBJECTIVES
from affectgpt.training.objectives.sft import SupervisedObjective

CELLS = 4


class Scale:
    """uint8 RGB ``[T, H, W, 3]`` → float32 ``[T, 3, H, W]`` from 0 to 1. Runs in the loader's workers."""

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@VISUAL_ENCODERS.register("COLOUR_GRID")
class ColourGrid(FrozenEncoder):
    """An encoder: the mean colours of 4 × 4 cells of a frame, times a frozen matrix; 24 numbers per frame."""

    weights = Weights("colour-grid", "my laboratory's disk")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * CELLS * CELLS, width, bias=False)
        self.width = width
        self.freeze()

    @classmethod
    def config_of(cls, source: Any, **options: Any) -> dict:
        if isinstance(source, dict):
            return source
        return json.loads((Path(source) / "config.json").read_text())

    @classmethod
    def from_config(cls, config: dict) -> ColourGrid:
        return cls(config["width"])

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype) -> ColourGrid:
        encoder = cls.from_config(cls.config_of(folder))
        encoder.load_state_dict(torch.load(Path(folder) / "weights.pth", weights_only=True))
        return encoder.to(dtype)

    @staticmethod
    def transform_of(folder: str | Path, *, training: bool = False) -> Scale:
        return Scale()

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[B, T, 3, H, W]`` → Z_v ``[B, T, width]``."""
        B, T = pixels.shape[:2]
        cells = nn.functional.adaptive_avg_pool2d(pixels.flatten(0, 1), CELLS)  # [B·T, 3, 4, 4]
        return self.mix(cells.flatten(1).to(self.mix.weight.dtype)).unflatten(0, (B, T))  # [B, T, width]


@CONNECTORS.register("last")
class LastConnector(Connector):
    """A connector with trained weights: the last vector in time, normed and projected."""

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.norm = nn.LayerNorm(shape.width)
        self.proj = nn.Linear(shape.width, shape.llm_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Z ``[B, T, d]`` → ``[B, K, D]``."""
        return repeat_token(self.proj(self.norm(hidden_states[:, -1])), self.n_tokens)


@PREFUSIONS.register("gate")
class GatePreFusion(Connector):
    """A pre-fusion with trained weights: the sound decides how much of the face is heard."""

    def __init__(self, shape: PreFusionShape) -> None:
        super().__init__()
        self.n_tokens = shape.n_tokens
        self.gate = nn.Linear(shape.audio_width, shape.video_width)
        self.proj = nn.Linear(shape.video_width, shape.llm_width)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Z_v ``[B, T_v, d_v]`` and Z_a ``[B, T_a, d_a]`` → ``[B, K, D]``."""
        gated = video.mean(dim=1) * self.gate(audio.mean(dim=1)).sigmoid()  # [B, d_v]
        return repeat_token(self.proj(gated), self.n_tokens)


LLMS.register("MyQwen")(
    LLMRow(
        "MyQwen",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        lora_targets=("q_proj", "v_proj"),
        weights=Weights("my-qwen"),
    )
)

MODES.register("voice_first")(
    Mode("voice_first", (AUDIO, MULTI, FACE, "What was said: {subtitle}. "), Modality.FACE),
)

LABEL_TYPES.register("mood")(
    LabelType("mood", "In one word, what is this person's mood?", lambda labels: labels.emotion),
)


@LABEL_READERS.register("moods_json")
def read_moods(row: DatasetRow, split: str, root: Path) -> dict[str, Labels]:
    """``{"train": {name: word}, "test": {name: word}}`` → name → labels."""
    words = json.loads((root / str(row.label_file)).read_text())[row.splits[split]]
    return {name: Labels(emotion=word) for name, word in words.items()}


DATASETS.register("MyMoods")(
    DatasetRow(
        name="MyMoods",
        root="my-moods",
        task="same-letter",
        label_kind="moods_json",
        label_types=("mood",),
        splits={"train": "train", "test": "test"},
        counts={},
        label_file="moods.json",
        subtitle_file="subtitles.csv",
        subtitle_column="text",
    )
)


@METRICS.register("same-letter")
class SameLetter:
    """A metric: the share of clips whose first predicted label begins with the true mood's letter."""

    keys = ("letter",)
    titles = ("LETTER",)
    polarity = False
    truth_column = "emotion"  # of one's own clips, see docs/own-clips.md

    def __init__(self, grouping: object = None) -> None:
        del grouping

    @staticmethod
    def truth(labels: Labels) -> str | None:
        return labels.emotion

    def summands(self, truth: list[str], predicted: list[str]) -> np.ndarray:
        """``[N, 2]``: met, and counted."""
        met = [item.strip("[] '\"")[:1].lower() == word[:1] for word, item in zip(truth, predicted, strict=True)]
        return np.stack([np.array(met, float), np.ones(len(met))], axis=1)

    def aggregate(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"letter": sums[..., 0] / sums[..., 1]}

    def per_sample(self, summands: np.ndarray) -> np.ndarray:
        return summands[:, 0]

    def detail(self, sums: np.ndarray) -> dict[str, Any]:
        return {"counted": [int(sums[1])]}


@OBJECTIVES.register("smoothed")
class SmoothedObjective(SupervisedObjective):
    """An objective: supervised fine-tuning and a small pull of all connectors' projections towards zero."""

    pull: ClassVar[float] = 0.01

    def forward(self, batch):
        loss = super().forward(batch)
        return loss + self.pull * self.terms(batch) * self.model.multi.proj.weight.square().mean()


@EXTRACTORS.register("first_word")
class FirstWord(DirectExtractor):
    """An extractor: an answer's first word is its label."""

    name = "first_word"

    def settings(self, step: str) -> dict[str, Any]:
        return {"extractor": self.name, "step": step, "version": 1}

    def run(self, step: str, texts: Any, *, on_item: Any) -> None:
        for index, text in enumerate(texts):
            on_item(index, f"[{text.split()[0].lower()}]" if text.split() else "[]", None)
