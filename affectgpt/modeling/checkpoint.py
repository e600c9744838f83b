"""The published checkpoint file: names, what is in it, loading that reports (wire)."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.config.schema import ModelConfig
from affectgpt.core.errors import CheckpointError
from affectgpt.core.files import atomic_path
from affectgpt.core.provenance import REVISIONS
from affectgpt.core.runtime import logger
from affectgpt.modeling.configuration_affectgpt import INPUTS, RECIPE
from affectgpt.modeling.lora import ADAPTER_WEIGHTS, PEFT, PUBLISHED, from_peft

CONNECTORS = "connectors.safetensors"  # of an exported folder, see export.py
ADAPTER = "adapter"
_LAYOUT = ("model", "optimizer", "config", "scaler", "epoch")
_WRAPPER = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NOT_SAVED = ("visual_encoder.", "acoustic_encoder.")


def published_name(model: Any, name: str) -> str:
    """A parameter's name in a published checkpoint, e.g. ``video.proj.weight`` → ``affectgpt_proj.weight``.

    The connectors say theirs themselves; the LLM's begin with ``llama_model.``
    """
    place, _, rest = name.partition(".")
    if place == "llm":
        return f"{PUBLISHED}{PEFT if model.config.lora_r else ''}{rest}"
    return getattr(model, place).published_name(place, rest)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of the model: everything but frozen parameters and encoders, under published
    names.

    In the published order: the query tokens, which belong to no module there, stand first.
    """
    # A tied LLM has its embeddings under the name of lm_head as well, which named_parameters leaves out by default.
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    state = {
        published_name(model, name): tensor
        for name, tensor in model.state_dict().items()
        if name not in frozen and not name.startswith(_NOT_SAVED)
    }
    return {name: state[name] for name in sorted(state, key=_belongs_to_a_module)}


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Published name and parameter of everything that trains, in the order that a published optimizer state counts."""
    named = [(published_name(model, name), p) for name, p in model.named_parameters() if p.requires_grad]
    return sorted(named, key=lambda pair: _belongs_to_a_module(pair[0]))


def _belongs_to_a_module(name: str) -> bool:
    return "." in name  # sorting is stable: all else stays in its order


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write a checkpoint: to a temporary name, fsynced, renamed. What it lacks of the published layout is None."""
    # Through a Python file: torch's own writer ends the process when the disk is full.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save({**dict.fromkeys(_LAYOUT), **content}, handle)
    return Path(path)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint as plain data with the key ``model``; nothing in it is run.

    Takes a .pth of the published layout, a .safetensors with published names, and a folder written by ``export``.
    Raises CheckpointError naming the file.
    """
    path = Path(path)
    if path.is_dir():
        return _read_export(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = read_safetensors(path) if path.suffix == ".safetensors" else load_torch_file(path)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files; all mean the same to a user
        # torch's own text advises to load without its safety.
        why = "" if isinstance(error, pickle.UnpicklingError) else ": " + "".join(str(error).strip().splitlines()[:1])
        raise CheckpointError(f"{path}: damaged or no checkpoint ({type(error).__name__}{why})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        found = f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content)
        raise CheckpointError(f"{path}: expected a dict with the key 'model'; found {found}")
    odd = [name for name, value in content["model"].items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: 'model' must hold tensors by name; {odd[0]!r} is none")
    wrapped = [name for name in content["model"] if _WRAPPER.search(str(name))]
    if wrapped:  # saved from a model inside DistributedDataParallel or torch.compile
        names = [_WRAPPER.sub(r"\1", name) for name in content["model"]]
        if len(set(names)) < len(names):
            raise CheckpointError(f"{path}: holds {wrapped[0]!r} with and without its wrapper's prefix; keep one")
        content["model"] = dict(zip(names, content["model"].values(), strict=True))
        logger.info("%s: module. and _orig_mod. taken off the names of %d tensors", path, len(wrapped))
    return content


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote, as plain data. Every byte is compared with the checksums of the archive first:
    torch itself reads a flipped bit as another weight. Files of torch's old format, which are no archives, have none.

    Raises zipfile.BadZipFile for damage, and what ``torch.load`` raises.
    """
    with Path(path).open("rb") as handle:
        is_archive = handle.read(4) == b"PK\x03\x04"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {damaged} is wrong: bytes were changed after it was written")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_export(folder: str | Path) -> dict[str, Any]:
    """An exported folder as the content of a checkpoint file: ``model`` (published names), ``config``, ``epoch``.

    Of a merged folder: the connectors alone. Raises CheckpointError naming the file that is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / CONNECTORS).is_file():
        raise CheckpointError(f"{folder}: neither a checkpoint file nor an exported folder, it has no {CONNECTORS}")
    try:
        content = read_safetensors(folder / CONNECTORS)
        adapter = folder / ADAPTER / ADAPTER_WEIGHTS
        lora = read_safetensors(adapter)["model"] if adapter.is_file() else {}
    except Exception as error:  # safetensors has errors of its own for damaged files
        raise CheckpointError(f"{folder}: damaged ({type(error).__name__}: {error})") from error
    names = content.pop("names", [*content["model"], *map(from_peft, lora)])
    content["model"] |= {from_peft(name): tensor for name, tensor in lora.items()}
    content["model"] = {name: content["model"][name] for name in names if name in content["model"]}
    return content


def read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name as ``model``; ``config``, ``epoch`` and ``names`` where the file's metadata has them."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        content: dict[str, Any] = {"model": {name: opened.get_tensor(name) for name in opened.keys()}}  # noqa: SIM118
    for key in ("config", "epoch", "names"):
        if key in metadata:
            content[key] = json.loads(metadata[key])
    return content


@dataclass
class LoadReport:
    """The result of a non-strict load, in published names."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # trained here, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, unknown here
    wrong_shape: list[str] = field(default_factory=list)  # "name: file (…), model (…)"
    made_by: str = ""  # the configuration that made the file, and where its recipe differs
    revised: str = ""  # encoders that an earlier version of this package, which made the file, computed otherwise

    @property
    def complete(self) -> bool:
        """True if every trained tensor of the model came from the file."""
        return not (self.missing or self.wrong_shape)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title in ("missing", "unexpected", "wrong_shape"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                parts.append(f"{len(names)} {title.replace('_', ' of ')}: {shown}")
        return "; ".join(filter(None, [*parts, self.made_by, self.revised]))


def load_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, config: Mapping[str, Any] | None = None
) -> LoadReport:
    """Copy tensors of published names into a model, non-strictly, and say what fitted.

    ``config`` is that of the file; where the recipe differs, the report says so, and where the encoders were given
    something else, a warning does.
    Raises CheckpointError when not one trained tensor of the model is in ``state`` with its shape.
    """
    report = LoadReport()
    targets = {published_name(model, k): v for k, v in model.state_dict().items() if not k.startswith(_NOT_SAVED)}
    # A buffer (position_ids) is saved, but nothing is learnt in it: it may be missing.
    trained = [name for name, _ in trained_parameters(model)]
    with torch.no_grad():
        for name, tensor in state.items():
            target = targets.get(name)
            if target is None:
                report.unexpected.append(name)
            elif target.shape != tensor.shape:
                report.wrong_shape.append(f"{name}: file {tuple(tensor.shape)}, model {tuple(target.shape)}")
            else:
                _check_values(tensor, target, where=f"{source}: {name}")
                target.copy_(tensor)
                report.loaded.append(name)
    report.missing = [name for name in trained if name not in state]
    report.revised = _revised_encoders(config)
    if not report.complete or report.unexpected:
        report.made_by = _recipe_differences(config, getattr(model, "recipe", {}))
    if not set(trained) & set(report.loaded):
        raise CheckpointError(f"{source}: not one trained tensor fits this model ({report})")
    for difference in input_differences(config, getattr(model, "recipe", {})):
        logger.warning("%s: %s", source, difference)
    return report


def _check_values(tensor: torch.Tensor, target: torch.Tensor, *, where: str) -> None:
    """Raise CheckpointError where a tensor is none of plain finite numbers of the target's kind."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "without values" if tensor.is_meta else f"of {tensor.layout}, {tensor.dtype}"
        raise CheckpointError(f"{where} is a tensor {kind}; expected a dense one of {target.dtype}: save it densely")
    floats, expected = tensor.dtype in _FLOATS, target.dtype.is_floating_point
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if (expected and not floats) or (not expected and not whole):
        raise CheckpointError(
            f"{where} holds {tensor.dtype}, expected {target.dtype}: a quantised or otherwise converted file? Load the "
            "original one"
        )
    if expected and not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"{where} holds NaN or infinity ({count} of {tensor.numel()} values): its training diverged, or the file "
            "is damaged. Take an earlier checkpoint"
        )


def recipe_of(model_section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration's model section that decide which tensors a checkpoint holds; defaults filled in."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    return {key: model_section.get(key, defaults[key]) for key in RECIPE}


def inputs_of(model_section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model section that decide what the encoders are given; defaults filled in."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    return {key: model_section.get(key, defaults[key]) for key in INPUTS}


def input_differences(config: Mapping[str, Any] | None, model_section: Mapping[str, Any]) -> list[str]:
    """Tell where the encoders were given something else when a file was made (by its ``config``) than now, in words."""
    theirs = (config or {}).get("model")
    if not isinstance(theirs, Mapping):
        return []
    unknown = {"face_channels"} if face_channels_unknown(config) else set()
    return [
        f"was made with model.{key}={value}, this run has {model_section[key]}; to run it as it was made: --options "
        f"model.{key}={value}"
        for key, value in inputs_of(theirs).items()
        if key not in unknown and model_section.get(key, value) != value
    ]


def face_channels_unknown(config: Mapping[str, Any] | None) -> bool:
    """Return whether a file was made, or begun, by an earlier version of this project, which took face crops as they
    were stored: by its ``config``.

    Published files have none of this project's keys: they were made from BGR crops.
    """
    theirs = (config or {}).get("model")
    if not config or not isinstance(theirs, Mapping) or "audio_clip_spacing" not in theirs:
        return False
    return "face_channels" not in theirs or (config.get("revisions") or {}).get("face_channels") == 1


def _revised_encoders(config: Mapping[str, Any] | None) -> str:
    """Encoders whose numbers were others when this package trained the file; what the published code made is as ours.

    Only this package's configurations say how audio clips are spaced.
    """
    model = (config or {}).get("model")
    if not config or not isinstance(model, Mapping) or "audio_clip_spacing" not in model:
        return ""
    then = config.get("revisions") or {}
    encoders = [model.get("visual_encoder"), model.get("acoustic_encoder")]
    revised = [name for name in encoders if name in REVISIONS and then.get(name, 1) != REVISIONS[name]]
    if not revised:
        return ""
    return f"it was trained by an earlier version, whose {' and '.join(revised)} gave other numbers: train it again"


def _recipe_differences(config: Mapping[str, Any] | None, recipe: Mapping[str, Any]) -> str:
    if not config or not isinstance(config.get("model"), Mapping):
        return "the file does not say which configuration made it"
    name = f"configuration {config['name']!r}" if config.get("name") else "a configuration without a name"
    theirs = recipe_of(config["model"])
    different = [
        f"model.{key}: {theirs[key]} there, {recipe[key]} here"
        for key in theirs
        if key in recipe and theirs[key] != recipe[key]
    ]
    return f"the file was made by {name}; {', '.join(different) or 'its recipe is the same'}"
