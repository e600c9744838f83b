"""Sampling whose every row draws from its own seed, so that a reply does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from affectgpt.textllm.base import Sampling

if TYPE_CHECKING:
    import torch


class SeededSampler:
    """A logits processor for greedy ``generate``: what it returns has its maximum at the sampled token.

    Repetition penalty over prompt and reply (padding left out), temperature, top-p, then Gumbel noise: the maximum of
    ``logits + noise`` is distributed as ``softmax(logits)``. ``generate`` itself would draw all rows from one
    generator, and a row's tokens would change with its neighbours and with what a resumed run leaves out.
    """

    def __init__(self, sampling: Sampling, *, seeds: Sequence[int], prompt_mask: torch.Tensor) -> None:
        """``seeds``: one per row; ``prompt_mask`` ``[B, L]``: 1 where the prompt is not padding."""
        import torch

        self._sampling = sampling
        self._prompt_mask = prompt_mask.bool()
        self._seen: torch.Tensor | None = None  # bool [B, V]
        self._generators = [torch.Generator(device=prompt_mask.device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids ``[B, L + t]``, scores ``[B, V]`` → scores ``[B, V]`` to take the maximum of."""
        scores = scores.float()
        if self._sampling.repetition_penalty != 1:
            scores = self._penalise(input_ids, scores)
        if self._sampling.temperature == 0:
            return scores
        scores = scores / self._sampling.temperature
        if self._sampling.top_p < 1:
            scores = self._nucleus(scores)
        return scores + self._noise(scores)

    def _penalise(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, (ids, mask) in enumerate(zip(input_ids, self._prompt_mask, strict=True)):
                self._seen[row, ids[mask]] = True
        else:
            self._seen.scatter_(1, input_ids[:, -1:], True)
        penalty = self._sampling.repetition_penalty
        return torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _nucleus(self, scores: torch.Tensor) -> torch.Tensor:
        """−inf but for the fewest tokens whose probabilities reach top_p, the most likely one always among them."""
        ordered, order = scores.sort(dim=-1, descending=True)  # [B, V]
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # what the tokens ahead sum up to
        ordered = ordered.masked_fill(before >= self._sampling.top_p, float("-inf"))
        return scores.scatter(1, order, ordered)

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        import torch

        draws = torch.empty_like(scores)
        for row, generator in zip(draws, self._generators, strict=True):
            row.exponential_(generator=generator)
        return -draws.log()
