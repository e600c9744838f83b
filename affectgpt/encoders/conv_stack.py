"""The wave convolutions of the wav2vec 2.0 family as matrix products, for CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


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
