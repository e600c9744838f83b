"""HuBERT, WavLM, data2vec: the mean of the last four hidden states, averaged over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import ACOUSTIC_ENCODERS, FrozenEncoder, read_preprocessor
from affectgpt.encoders.conv_stack import WaveConvolutions
from affectgpt.encoders.pretrained import CPU, files_read, load_pretrained

_VARIANCE_FLOOR = 1e-7


class WaveNormalize:
    """float32 ``[T, samples]`` → the same shape, zero mean and unit variance over all clips of the sample together.

    Over the sample, not clip by clip, as the published extractor does with a block of clips (wire), and
    never over a batch, so that nothing depends on batch mates.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __call__(self, clips: np.ndarray) -> torch.Tensor:
        wave = np.ascontiguousarray(clips, dtype=np.float32)
        if self.enabled:  # in numpy, as the extractor does it: equal to the bit
            wave = ((wave - wave.mean()) / np.sqrt(wave.var() + _VARIANCE_FLOOR)).astype(np.float32, copy=False)
        return torch.from_numpy(wave)


class SpeechEncoder(FrozenEncoder):
    """One vector per 2-second clip, from a speech model of the wav2vec 2.0 family."""

    kind = "acoustic"
    model_class: str  # of transformers

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        model.feature_extractor = WaveConvolutions(model.feature_extractor)
        self.width = model.config.hidden_size
        self.freeze()

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> SpeechEncoder:
        import transformers

        return cls(load_pretrained(getattr(transformers, cls.model_class), folder, dtype=dtype, device=device))

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        return files_read(folder)

    @classmethod
    def from_config(cls, config: Any) -> SpeechEncoder:
        import transformers

        return cls(getattr(transformers, cls.model_class)(config))

    @staticmethod
    def transform_of(source: str | Path | Mapping[str, Any], *, training: bool = False) -> WaveNormalize:
        return WaveNormalize(enabled=bool(read_preprocessor(source).get("do_normalize", True)))

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


_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip


@ACOUSTIC_ENCODERS.register("HUBERT_LARGE")
class HubertEncoder(SpeechEncoder):
    """HuBERT; 1024 numbers per clip for the large one."""

    model_class = "HubertModel"
    weights = Weights("chinese-hubert-large", "https://huggingface.co/TencentGameMate/chinese-hubert-large")
    architecture: ClassVar = {"model_type": "hubert", "conv_bias": True, **_LARGE}


@ACOUSTIC_ENCODERS.register("WAVLM_LARGE")
class WavlmEncoder(SpeechEncoder):
    """WavLM; 1024 numbers per clip for the large one."""

    model_class = "WavLMModel"
    weights = Weights("wavlm-large", "https://huggingface.co/microsoft/wavlm-large")
    architecture: ClassVar = {"model_type": "wavlm", "conv_bias": False, **_LARGE}


@ACOUSTIC_ENCODERS.register("DATA2VEC_BASE")
class Data2VecEncoder(SpeechEncoder):
    """data2vec-audio; 768 numbers per clip for the base one."""

    model_class = "Data2VecAudioModel"
    weights = Weights("data2vec-audio-base-960h", "https://huggingface.co/facebook/data2vec-audio-base-960h")
    architecture: ClassVar = {
        "model_type": "data2vec-audio", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072,
    }  # fmt: skip
