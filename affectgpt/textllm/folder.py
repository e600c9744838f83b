"""A model folder on this machine: is it one, and which one is it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from affectgpt.core.errors import CheckpointError

# They tell two models of one folder name apart; the weights themselves are too large to read for that.
_IDENTIFYING = ("config.json", "model.safetensors.index.json", "tokenizer_config.json")


def folder_identity(folder: str | Path) -> dict[str, Any]:
    """``model``, the folder's own name, and ``model_sha256``, a hash of its small files (None where it is absent)."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for name in _IDENTIFYING:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    known = (folder / "config.json").is_file()
    return {"model": folder.resolve().name, "model_sha256": digest.hexdigest() if known else None}


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds a language model with weights and a tokenizer; CheckpointError saying what lacks."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such model folder. Download the model there (for example Qwen2.5-7B-Instruct), "
            "or give the folder that has it"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: missing or unreadable ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{folder / 'config.json'}: has no model_type, so it is not a model's configuration")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder}: no weights in it (*.safetensors or *.bin); is the download complete?")
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{folder}: no tokenizer in it (tokenizer.json); is the download complete?")
    return folder
