"""Registries of the connectors: what turns encoder outputs into tokens of the LLM (paper section 3; SPEC 2.3).

A branch compresses Z ``[B, T, d]`` of one medium into K tokens ``[B, K, D]`` of the LLM's width D. The pre-fusion
takes Z_v and Z_a together. Notation: d_v, d_a encoder widths, m = max(d_v, d_a).
"""

from __future__ import annotations

import torch

from affectgpt.core.registry import Registry

BRANCHES = Registry("fusion type of a branch", "affectgpt.modeling.fusion")
IMAGE_BRANCHES = Registry("image fusion type", "affectgpt.modeling.fusion")
PREFUSIONS = Registry("pre-fusion type", "affectgpt.modeling.fusion")


def repeat_token(vector: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """``[B, D]`` → the same vector K times, ``[B, K, D]``."""
    return vector.unsqueeze(1).expand(-1, n_tokens, -1)
