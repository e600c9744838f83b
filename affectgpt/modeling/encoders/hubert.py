"""HuBERT: the mean of its last four hidden states, averaged over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from affectgpt.modeling.encoders.base import ACOUSTIC_ENCODERS, FrozenEncoder, read_preprocessor
from affectgpt.modeling.pretrained import load_pretrained

_VARIANCE_FLOOR = 1e-7


class WaveNormalize:
    """float32 ``[T, samples]`` → the same shape, zero mean and unit variance over all clips of the sample together.

    Over the sample, not clip by clip, as the published extractor does with a block of clips (SPEC 2.2, wire), and
    never over a batch, so that nothing depends on batch mates.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __call__(self, clips: np.ndarray) -> torch.Tensor:
        wave = torch.from_numpy(np.ascontiguousarray(clips, dtype=np.float32))
        if not self.enabled:
            return wave
        variance = wave.var(correction=0)
        return (wave - wave.mean()) / torch.sqrt(variance + _VARIANCE_FLOOR)


@ACOUSTIC_ENCODERS.register("HUBERT_LARGE")
class HubertEncoder(FrozenEncoder):
    """1024 numbers per 2-second clip for HuBERT-large (SPEC 2.1)."""

    kind = "acoustic"

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype) -> HubertEncoder:
        from transformers import HubertModel

        return cls(load_pretrained(HubertModel, folder, dtype=dtype))

    @staticmethod
    def transform_of(folder: str | Path) -> WaveNormalize:
        return WaveNormalize(enabled=bool(read_preprocessor(folder).get("do_normalize", True)))

    @torch.no_grad()
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, T, samples]`` → Z_a ``[B, T, width]``. No attention mask, as published."""
        B, T = wave.shape[:2]
        wave = wave.flatten(0, 1).to(next(self.model.parameters()).dtype)  # [B·T, samples]
        output = self.model(input_values=wave, output_hidden_states=True)
        # The last of the four must be the state after the final layer norm. hidden_states[-1] is that only up to
        # transformers 5.14; last_hidden_state is it on every version.
        last_four = [*output.hidden_states[-4:-1], output.last_hidden_state]  # 4 × [B·T, time, width]
        return torch.stack(last_four).mean(dim=0).mean(dim=1).unflatten(0, (B, T))  # [B, T, width]
