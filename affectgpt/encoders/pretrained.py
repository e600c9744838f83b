"""Loading Hugging Face folders, the same on every version of transformers in our range."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.core.errors import CheckpointError
from affectgpt.core.names import check_below

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
