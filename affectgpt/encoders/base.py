"""Frozen encoders: registry, base class, loading of Hugging Face folders on every version of transformers in range."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from affectgpt.config.paths import Weights, model_folder
from affectgpt.config.schema import Config
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.names import check_below
from affectgpt.core.registry import Registry
from affectgpt.core.types import Modality

# Weights that a complete folder may lack: they are made, not learnt, or not used without masking.
_MAY_MISS = re.compile(r"(masked_spec_embed|position_ids|lm_head\.weight)$")
_INDEX = ".index.json"
# Of a folder that has several, transformers reads the first.
_WEIGHTS = (
    "model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}",
)  # fmt: skip
CPU = torch.device("cpu")


def load_pretrained(
    cls: Any,
    folder: str | Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device = CPU,
    config: Any = None,
    trust_remote_code: bool = False,
) -> Any:
    """``cls.from_pretrained`` of a local folder, tensor by tensor to ``device`` and ``dtype`` (None: as it is stored).

    Files are mapped: on a CPU, weights in the stored dtype take no memory of their own, and several processes share
    them. ``config``: instead of the folder's. Raises CheckpointError naming the folder when it does not load or lacks
    weights (which would be random).
    """
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    argument = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    options: dict[str, Any] = {
        argument: "auto" if dtype is None else dtype, "device_map": {"": device}, "local_files_only": True,
        "output_loading_info": True,
        "trust_remote_code": trust_remote_code,  # left out, transformers asks on the terminal
    }  # fmt: skip
    if config is not None:
        options["config"] = config
    try:
        with _quiet():
            model, info = cls.from_pretrained(folder, **options)
    except Exception as error:  # transformers, safetensors and torch raise many kinds for folders that do not fit
        raise CheckpointError(
            f"{folder} does not load as {cls.__name__} with transformers {transformers.__version__}: "
            f"{_first_line(error)}{_remote_code_hint(error)}"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not _MAY_MISS.search(key))
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of {cls.__name__}, first: {missing[:3]}")
    return model


def read_config(source: str | Path | Mapping[str, Any], *, trust_remote_code: bool = False) -> Any:
    """A transformers configuration: of a folder's config.json, or of the numbers of an architecture.

    Raises CheckpointError naming the folder when its config.json is not one that transformers knows.
    """
    from transformers import AutoConfig

    if isinstance(source, Mapping):
        with _quiet():
            return AutoConfig.for_model(**source)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{source}/config.json cannot be read: {_first_line(error)}{_remote_code_hint(error)}"
        ) from error


def load_part(part: nn.Module, folder: str | Path, *, prefix: str) -> None:
    """Fill one module with the tensors of a folder whose names begin with ``prefix``; nothing else is read.

    Takes safetensors and pickled weights (``weights_only``), in one file or sharded. Raises CheckpointError naming the
    folder and the first of the tensors that are missing or have another shape.
    """
    wanted = part.state_dict()
    files = _weight_files(Path(folder))
    found: dict[str, torch.Tensor] = {}
    for file, names in files.items():
        keys = [f"{prefix}{name}" for name in wanted if names is None or f"{prefix}{name}" in names]
        if keys:
            found.update((key.removeprefix(prefix), tensor) for key, tensor in _read_tensors(file, keys).items())
    missing = sorted(name for name in wanted if name not in found and not _MAY_MISS.search(name))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {type(part).__name__}, first: {prefix}{missing[0]}"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{folder}: {prefix}{name} is {tuple(tensor.shape)}, config.json makes it {tuple(wanted[name].shape)}"
            )
    part.load_state_dict(found, strict=False)


def folder_tensors(folder: str | Path, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of those of ``names`` that a folder's weights have; of safetensors nothing else is read.

    Raises CheckpointError naming a file that is damaged.
    """
    left = set(names)
    for file, there in _weight_files(Path(folder)).items() if left else ():
        keys = sorted(left if there is None else left & there)
        yield from _read_tensors(file, keys).items() if keys else ()
        left -= set(keys)


def load_file_part(file: str | Path, names: list[str], *, may_miss: bool = False) -> dict[str, torch.Tensor]:
    """Some tensors of one weights file, by name and in this order; nothing else is read into memory.

    Raises CheckpointError naming the file and the first that is missing (unless it ``may_miss``).
    """
    found = _read_tensors(Path(file), names)
    missing = [name for name in names if name not in found]
    if missing and not may_miss:
        raise CheckpointError(f"{file} lacks {len(missing)} weights, first: {missing[0]}")
    return found


def files_read(folder: str | Path) -> list[Path]:
    """The weight files that are read of a Hugging Face folder (not copies in other formats), and its JSON files.

    Raises CheckpointError where there are no weights.
    """
    weights = _weight_files(Path(folder))
    used = next(name for name in _WEIGHTS if (Path(folder) / name).is_file())
    others = [p for p in Path(folder).iterdir() if p.suffix == ".json" and not p.name.endswith(_INDEX)]
    index = [Path(folder) / used] if used.endswith(_INDEX) else []
    return sorted({*weights, *others, *index})


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight file → names of its tensors (None: not known before it is read)."""
    import json

    for path in (folder / name for name in _WEIGHTS):
        if not path.is_file():
            continue
        if not path.name.endswith(_INDEX):
            return {path: None}
        files: dict[Path, set[str] | None] = {}
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            below = check_below(str(file), source=path, folder="the model's folder")
            files.setdefault(folder / below, set()).add(name)  # type: ignore[union-attr]
        return files
    raise CheckpointError(f"{folder} is incomplete, it has none of {', '.join(_WEIGHTS)}")


def _read_tensors(file: Path, keys: list[str]) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                there = set(opened.keys())
                return {key: opened.get_tensor(key) for key in keys if key in there}
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {key: state[key] for key in keys if key in state}
    except Exception as error:  # both libraries raise many kinds for damaged files
        raise CheckpointError(f"{file}: missing or damaged: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no report of the weights that a part of a model leaves in its file."""
    from transformers.utils import logging as hf_logging

    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _remote_code_hint(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            ". Its model is code in the folder itself; read that code, then allow it: "
            '--options "model.trust_remote_code=True"'
        )
    return ""


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
        """Return what ``from_config`` takes, of a folder or of ``architecture``."""
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
