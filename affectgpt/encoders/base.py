"""What every frozen encoder is, and the two registries."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from affectgpt.config.paths import Weights, model_folder
from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.registry import Registry
from affectgpt.core.types import Modality
from affectgpt.encoders.pretrained import CPU, read_config

VISUAL_ENCODERS = Registry("visual encoder", "affectgpt.encoders")
ACOUSTIC_ENCODERS = Registry("acoustic encoder", "affectgpt.encoders")
ENCODERS = {"visual_encoder": VISUAL_ENCODERS, "acoustic_encoder": ACOUSTIC_ENCODERS}  # by key of the model section

# A transform runs in the loader's workers: uint8 [T, H, W, 3] or float32 [T, samples] → what ``forward`` takes.
Transform = Callable[[np.ndarray], torch.Tensor]
_MODEL_FILES = (".safetensors", ".bin", ".pth", ".pt", ".json")


class FrozenEncoder(nn.Module):
    """A pretrained encoder that never trains: no gradients, and eval mode also under ``model.train()``.

    ``width`` is the size of its output vectors. ``forward`` takes a batch of transformed media ``[B, T, …]`` and gives
    ``Z [B, T, width]`` (``[B, T, Q, width]`` where an encoder gives Q vectors per frame) in one call over all clips; a
    sample's result does not depend on its batch mates. ``architecture`` holds the numbers of the published model, as
    its config.json has them, for whatever must know them without its folder. ``weights`` says where its weights are
    (None: only where ``paths.folders.NAME`` of a configuration says so).
    """

    width: int = 0  # the class sets it
    kind: ClassVar[str]  # visual or acoustic
    architecture: ClassVar[Mapping[str, Any] | None] = None
    weights: ClassVar[Weights | None] = None

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: torch.dtype, device: torch.device = CPU) -> FrozenEncoder:
        """Load the weights of a Hugging Face folder to ``device`` (a class whose method lacks that is moved there).

        Raises CheckpointError when it does not load or lacks some.
        """
        raise NotImplementedError  # abstract

    @classmethod
    def files(cls, folder: str | Path) -> list[Path]:
        """The files of a folder that decide what this encoder gives, and stored features are of: the configuration
        and whatever could be weights, where the class does not know better."""
        return sorted(path for path in Path(folder).iterdir() if path.suffix in _MODEL_FILES)

    @classmethod
    def from_config(cls, config: Any) -> FrozenEncoder:
        """The encoder of a transformers configuration with fresh weights (none on the meta device)."""
        raise NotImplementedError  # abstract

    @classmethod
    def config_of(cls, source: str | Path | Mapping[str, Any], **options: Any) -> Any:
        """What ``from_config`` takes, of a folder or of ``architecture``."""
        return read_config(source, **options)

    @staticmethod
    def transform_of(source: str | Path | Mapping[str, Any], *, training: bool = False) -> Transform:
        """The picklable transform that belongs to a folder; reads its preprocessor_config.json, no weights.

        ``source`` is the folder, or the content of that file. ``training`` matters only to an encoder that sees
        augmented frames in training.
        """
        raise NotImplementedError  # abstract

    def use_preprocessor(self, source: str | Path | Mapping[str, Any]) -> None:
        """Take from a folder's preprocessor_config.json (or its content) what ``forward`` needs; most need nothing."""

    def freeze(self) -> FrozenEncoder:
        """Take all parameters out of training."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode: dropout, layer drop and SpecAugment would make features random."""
        return super().train(False)


def encoder_class(config: Config, key: str) -> type[FrozenEncoder]:
    """The class that ``model.<key>`` (visual_encoder or acoustic_encoder) names. Raises ConfigError naming the key."""
    with config.naming(f"model.{key}"):
        return ENCODERS[key].get(getattr(config.model, key))


def encoder_folder(config: Config, key: str) -> Path:
    """Folder (or file) of that encoder's weights. Raises CheckpointError saying what to download."""
    kind = encoder_class(config, key)
    return model_folder(config, getattr(config.model, key), key=f"model.{key}", weights=kind.weights)


def load_encoder(kind: type[FrozenEncoder], folder: Path, *, dtype: torch.dtype, device: torch.device) -> FrozenEncoder:
    """The encoder of a folder on ``device``, if it can without all of its weights in the memory of the host."""
    takes = "device" in inspect.signature(kind.from_folder).parameters
    loaded = kind.from_folder(folder, dtype=dtype, **({"device": device} if takes else {})).to(device)
    for name, tensor in loaded.named_parameters() if device.type != "meta" else ():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{folder}: {name} holds NaN or infinity: download these weights again")
    return loaded


def read_preprocessor(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """preprocessor_config.json of a model folder (content is returned as it is).

    Raises CheckpointError when it is missing or not a JSON object.
    """
    if isinstance(source, Mapping):
        return source
    path = Path(source) / "preprocessor_config.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{source} is incomplete, it has no preprocessor_config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(spec).__name__}")
    return spec


def encode_medium(encoder: nn.Module, modality: Modality, media: torch.Tensor) -> torch.Tensor:
    """One medium of a batch (see ``Batch``) → its encoder's output Z ``[B, T, d]``, in the encoder's dtype."""
    if modality is Modality.IMAGE:
        media = media.unsqueeze(1)  # [B, 1, 3, H, W]
    # HuBERT draws for its layer drop even where nothing is dropped. Left alone, dropout in the LLM would draw other
    # numbers than with stored features.
    with (
        torch.random.fork_rng(devices=[media.device] if media.is_cuda else []),
        torch.autocast(media.device.type, enabled=False),
    ):
        z = encoder(media)
    if z.ndim not in (3, 4) or z.shape[:2] != media.shape[:2] or z.shape[-1] != encoder.width:
        raise ConfigError(
            f"{type(encoder).__name__} gives {list(z.shape)} for {modality.value} {list(media.shape)}; expected [B, T, "
            f"width] (or [B, T, Q, width]) with B, T = {list(media.shape[:2])} and its width, {encoder.width}"
        )
    return z


def make_encoders(config: Any) -> tuple[FrozenEncoder, FrozenEncoder]:
    """The encoders that a model's configuration names, with fresh weights (none on the meta device)."""
    made = []
    for registry, name, numbers, preprocessor in (
        (VISUAL_ENCODERS, config.visual_encoder, config.visual_config, config.visual_preprocessor),
        (ACOUSTIC_ENCODERS, config.acoustic_encoder, config.acoustic_config, config.acoustic_preprocessor),
    ):
        kind = registry.get(name)
        encoder = kind.from_config(kind.config_of(numbers or kind.architecture))
        if preprocessor:
            encoder.use_preprocessor(preprocessor)
        made.append(encoder)
    return made[0], made[1]
