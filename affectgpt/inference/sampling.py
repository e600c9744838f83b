"""How an answer is drawn: the one top-k, top-p and temperature (wire)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch


class SampleByRow:
    """Top-k, then top-p sampling in which each row has its own stream of random numbers.

    A logits processor for ``generate(do_sample=False)``: of scores ``[B, V]`` it leaves the drawn token of each row.
    A row's draw depends on its own numbers alone, so answers do not depend on batch mates, order or restarts.
    ``keep``: log-probabilities of what was drawn, of each step ``[B]``, are kept in ``kept``.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        top_k: int,
        top_p: float,
        temperature: float,
        keep: bool = False,
    ) -> None:
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.keep = keep
        self.kept: list[torch.Tensor] = []
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniform = torch.stack([torch.rand(max_new_tokens, generator=g, dtype=torch.float64) for g in streams])
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        k = min(self.top_k, scores.shape[-1]) if self.top_k else scores.shape[-1]
        values, tokens = scores.to(torch.float64).topk(k, dim=-1)  # [B, k], falling
        probabilities = (values / self.temperature).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)  # the first is always kept
        cumulative = probabilities.cumsum(dim=-1)
        if self.uniform.device != scores.device:  # copied once, not for every token: a copy waits for the device
            self.uniform = self.uniform.to(scores.device)
        draw = self.uniform[:, self.step, None] * cumulative[:, -1:]  # [B, 1]
        choice = (cumulative <= draw).sum(dim=-1, keepdim=True).clamp(max=k - 1)
        self.step += 1
        if self.keep:
            self.kept.append((probabilities.gather(1, choice) / cumulative[:, -1:]).log()[:, 0])
        return torch.full_like(scores, float("-inf")).scatter(1, tokens.gather(1, choice), 0.0)


def sample_seed(*parts: object) -> int:
    """A seed that depends on ``parts`` alone (run seed, data set, sample, question, checkpoint)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def top_k_of(asked: int | None, folder_generation_config: Any) -> int:
    """Of how many tokens sampling draws: as ``asked``, else as the model folder says, else 50 (transformers' default,
    which it leaves to be filled in from version 5 on); 0: of all."""
    if asked is not None:
        return asked
    named = folder_generation_config.top_k
    return 50 if named is None else named
