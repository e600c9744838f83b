"""HuBERT, WavLM, data2vec: the mean of the last four hidden states, averaged over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from affectgpt.config.paths import Weights
from affectgpt.encoders.base import (
    ACOUSTIC_ENCODERS,
    CPU,
    FrozenEncoder,
    files_read,
    load_pretrained,
    read_preprocessor,
)


class WaveConvolutions(nn.Module):
    """Takes the place of a transformers feature encoder, with its layers, parameter names and results (to 1e-5).

    A convolution with kernel k and stride s over ``[time, C]`` is a product of its windows ``[time', k·C]`` with the
    kernel. Channels come last, so layer norms need no transposition; clip by clip, since the activations of one
    2-second clip (13 MB) stay in the cache and in the allocator's reach. A whole forward pass of HuBERT-large takes
    0.75 of the original's time (4.1 s for 5.5 s; 8 clips of 2 seconds, float32, two threads, medians of 7 interleaved
    runs). Only without gradients and on a CPU; anything else, and layers of an unknown kind, goes through the original.
    """

    conv_layers: Any

    def __init__(self, feature_encoder: Any) -> None:
        super().__init__()
        self.conv_layers = feature_encoder.conv_layers
        self._original = [feature_encoder]  # in a list: as a child its parameters would be there twice
        self._known = all(_is_known(layer) for layer in self.conv_layers)

    @property
    def original(self) -> nn.Module:
        """transformers' own feature encoder with the same layers."""
        return self._original[0]

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """``[N, samples]`` → ``[N, C, time]``."""
        if wave.device.type != "cpu" or torch.is_grad_enabled() or not self._known:
            self.original.training = self.training
            return self.original(wave)
        return torch.stack([self._clip(clip) for clip in wave]).transpose(1, 2)

    def _clip(self, wave: torch.Tensor) -> torch.Tensor:
        x = wave[:, None]  # [time, 1]
        for layer in self.conv_layers:
            conv = layer.conv
            k, s = conv.kernel_size[0], conv.stride[0]
            kernel = conv.weight.transpose(1, 2).flatten(1)  # [C', k·C]
            windows = x.unfold(0, k, s).transpose(1, 2).flatten(1)  # [time', k·C]
            x = F.linear(windows, kernel, conv.bias)  # [time', C']
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):  # a group per channel: over time, as batch norm does it for a "batch"
                x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
            elif norm is not None:
                x = norm(x)
            x = layer.activation(x)
        return x


def _is_known(layer: nn.Module) -> bool:
    """Is a layer a plain convolution, an optional norm, and an activation?"""
    conv, norm = getattr(layer, "conv", None), getattr(layer, "layer_norm", None)
    plain = (
        isinstance(conv, nn.Conv1d)
        and (conv.padding, conv.dilation, conv.groups) == ((0,), (1,), 1)
        and conv.padding_mode == "zeros"
    )
    names = {name for name, _ in layer.named_children()}
    return (
        plain and names <= {"conv", "layer_norm", "activation"} and isinstance(norm, nn.LayerNorm | nn.GroupNorm | None)
    )


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
