"""The published checkpoint file: names, what is in it, loading that reports (SPEC 2.3, 2.4, wire)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.core.errors import CheckpointError
from affectgpt.core.files import atomic_path

# Our module paths → published names. The longest matching prefix counts; order is that of the published file.
_WIRE_PREFIXES = {
    "llm.": "llama_model.",
    "image.proj.": "image_llama_proj.",
    "video.attention.": "video_attention_mlp.",
    "video.proj.": "affectgpt_proj.",
    "audio.attention.": "audio_attention_mlp.",
    "audio.proj.": "audio_llama_proj.",
    "multi.audio_in.": "multi_audio_embs.",
    "multi.video_in.": "multi_video_embs.",
    "multi.mix.": "attention_mlp.",
    "multi.weights.": "fc_att.",
    "multi.proj.": "multi_llama_proj.",
}
_NOT_SAVED = ("visual_encoder.", "acoustic_encoder.")


def wire_name(name: str) -> str:
    """A parameter's name in a published checkpoint, e.g. ``video.proj.weight`` → ``affectgpt_proj.weight``."""
    for ours, published in _WIRE_PREFIXES.items():
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise KeyError(f"{name} has no published name")


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the model: everything but frozen parameters and encoders, under published names."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {
        wire_name(name): tensor
        for name, tensor in model.state_dict().items()
        if name not in frozen and not name.startswith(_NOT_SAVED)
    }


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any,
    config: Mapping[str, Any],
    epoch: int,
) -> Path:
    """Write a checkpoint of the published layout: to a temporary name, fsynced, renamed."""
    content = {
        "model": {name: tensor.detach().cpu() for name, tensor in trained_state(model).items()},
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "config": dict(config),
        "scaler": None if scaler is None else scaler.state_dict(),
        "epoch": epoch,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    return Path(path)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint file as plain data; nothing in it is run. Raises CheckpointError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files; all of them mean the same to a user
        raise CheckpointError(
            f"{path}: damaged or no checkpoint ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise CheckpointError(f"{path}: expected a dict with the key 'model'; found {type(content).__name__}")
    return content


@dataclass
class LoadReport:
    """What a non-strict load did, in published names."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # trained here, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, unknown here
    wrong_shape: list[str] = field(default_factory=list)  # "name: file (…), model (…)"

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title in ("missing", "unexpected", "wrong_shape"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                parts.append(f"{len(names)} {title.replace('_', ' of ')}: {shown}")
        return "; ".join(parts)


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> LoadReport:
    """Copy tensors of published names into a model, non-strictly, and say what fitted.

    Raises CheckpointError when not one trained tensor of the model is in ``state`` with its shape.
    """
    report = LoadReport()
    targets = {wire_name(k): v for k, v in model.state_dict().items() if not k.startswith(_NOT_SAVED)}
    trained = set(trained_state(model))
    with torch.no_grad():
        for name, tensor in state.items():
            target = targets.get(name)
            if target is None:
                report.unexpected.append(name)
            elif target.shape != tensor.shape:
                report.wrong_shape.append(f"{name}: file {tuple(tensor.shape)}, model {tuple(target.shape)}")
            else:
                target.copy_(tensor)
                report.loaded.append(name)
    report.missing = sorted(trained - set(state))
    if not trained & set(report.loaded):
        raise CheckpointError(f"{source}: not one trained tensor fits this model ({report})")
    return report
