"""What every engine is: batches in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import GenerationConfig

from affectgpt.config.schema import InferenceConfig
from affectgpt.core.registry import Registry
from affectgpt.core.types import Batch
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.processor import AffectGPTProcessor

ENGINES = Registry("inference engine", "affectgpt.inference.engines")
# A row's new token ids so far, after each of them → whether the row ends here. What follows the first stop in them is
# padding. An engine that gives ids at the end only calls it once for each row.
OnToken = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. ``top_k=None``: as the LLM's folder says (20 for Qwen2.5), else 50; 0: from all tokens."""

    greedy: bool = False
    max_new_tokens: int = 1200
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int | None = None

    @classmethod
    def from_config(cls, inference: InferenceConfig) -> Decoding:
        """The decoding that the ``inference`` section asks for."""
        return cls(
            greedy=inference.decoding == "greedy",
            max_new_tokens=inference.max_new_tokens,
            temperature=inference.temperature,
            top_p=inference.top_p,
            top_k=inference.top_k,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation: the cleaned text, its length in tokens (the stop included), and whether a stop rule ended it.

    ``ids``: these tokens; ``logprobs``: of each, what it was drawn with, where the engine keeps that.
    """

    text: str
    tokens: int
    stopped: bool
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class Engine(Protocol):
    """Answers left-padded batches whose encoder outputs are known (``batch.features``) or computed on the way.

    ``defaults``: the generation settings of the LLM's folder, of which the ids that end an answer and top-k are taken.
    ``preferred_batch``: rows to hand over at once; None: as many as the memory takes.
    """

    preferred_batch: int | None

    def __init__(
        self,
        model: AffectGPTForConditionalGeneration,
        *,
        processor: AffectGPTProcessor,
        decoding: Decoding,
        defaults: GenerationConfig,
        llm_folder: Path | None = None,
        tensor_parallel_size: int = 1,
    ) -> None: ...

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model; gives the report of what fitted.

        Raises CheckpointError when it does not fill the model: what another checkpoint left must not stay.
        """
        ...

    def generate(
        self,
        batch: Batch,
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> list[Answer]:
        """An answer per seed, which drives its sampling: one per row, or as many for each row, one after the other,
        whose prompt is then embedded once. ``decoding``: of this batch, instead of the engine's own; ``on_token``: one
        per answer."""
        ...

    def describe(self) -> dict[str, Any]:
        """The decoding in force, with what the LLM's folder decides, for the record."""
        ...
