"""What every engine is: batches in, raw answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from affectgpt.config.schema import InferenceConfig
from affectgpt.core.registry import Registry
from affectgpt.core.types import Batch

ENGINES = Registry("inference engine", "affectgpt.inference.engines")


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. ``top_k=None``: as the LLM's folder says (20 for Qwen2.5)."""

    greedy: bool = False
    max_new_tokens: int = 1200
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int | None = None

    @classmethod
    def from_config(cls, inference: InferenceConfig) -> Decoding:
        """The decoding that the ``inference`` section asks for."""
        return cls(greedy=inference.decoding == "greedy", max_new_tokens=inference.max_new_tokens)


class Engine(Protocol):
    """Answers a left-padded batch; ``seeds`` (one per row) drive sampling."""

    def generate(self, batch: Batch, *, seeds: Sequence[int]) -> list[str]:
        """The cleaned answer of each row."""
        ...
