"""What made a result: hashes, versions, settings."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "vllm", "decord", "decord2", "av",
    "soundfile", "opencv-python-headless", "pillow",
)  # fmt: skip


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal; computed once per file while it does not change."""
    stat = Path(path).stat()
    return _hash(str(path), stat.st_size, stat.st_mtime_ns)


@cache
def _hash(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def settings_hash(settings: Any) -> str:
    """A short hash of anything JSON holds."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


def installed_versions() -> dict[str, str]:
    """Versions of this package, Python, and what results depend on; what is not installed is left out."""
    from affectgpt import __version__

    found = {"affectgpt": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
