"""A checkpoint as files that transformers and peft load by themselves, and back.

A folder holds ``connectors.safetensors`` (published names; configuration and epoch in its metadata) and either
``adapter/`` (the LoRA as peft writes it) or ``llm/`` (the LLM with LoRA merged in).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from affectgpt.core.errors import CheckpointError
from affectgpt.core.files import naming
from affectgpt.encoders.llm import LLMRow
from affectgpt.modeling.build import load_llm
from affectgpt.modeling.checkpoint import ADAPTER, CONNECTORS
from affectgpt.modeling.lora import PEFT, PUBLISHED, rank_of, write_adapter, write_merged

MERGED_LLM = "llm"


def export_folder(content: Mapping[str, Any], out: str | Path, *, row: LLMRow, llm: str | Path, merge: bool) -> Path:
    """Write the content of a checkpoint file as a folder ``out``, which must not exist; it appears when it is complete.

    ``llm`` is the LLM's folder: with ``merge`` it is read and its weights are written with LoRA merged in, else it is
    only named in the adapter's configuration. Raises CheckpointError when the checkpoint holds no LoRA to merge.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"--out {out}: exists already; name a new folder")
    state = content["model"]
    lora = {name: tensor for name, tensor in state.items() if name.startswith(PUBLISHED)}
    if merge and not lora:
        raise CheckpointError(
            "the checkpoint holds no LoRA (names that begin with llama_model.), nothing can be merged"
        )
    temporary = out.with_name(f".{out.name}.tmp{os.getpid()}")
    try:
        with naming(out, instead_of=temporary):
            temporary.mkdir(parents=True)
            _write_all(temporary, content, lora, row=row, llm=llm, merge=merge)
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_all(
    folder: Path, content: Mapping[str, Any], lora: Mapping[str, torch.Tensor], *, row: LLMRow, llm: str | Path,
    merge: bool,
) -> None:  # fmt: skip
    _write_connectors(folder / CONNECTORS, content)
    if merge:
        _write_merged(folder / MERGED_LLM, lora, row=row, llm=llm)
    elif lora:
        write_adapter(folder / ADAPTER, lora, llm=llm)


def is_merged(folder: str | Path) -> bool:
    """Return whether an exported folder holds the merged LLM in the adapter's place."""
    return (Path(folder) / MERGED_LLM).is_dir()


def _write_connectors(path: Path, content: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors = {n: t.detach().clone().contiguous() for n, t in content["model"].items() if not n.startswith(PUBLISHED)}
    # Safetensors sorts names by itself; an optimizer state counts parameters in the order of the checkpoint.
    known = {"names": list(content["model"]), **{key: content[key] for key in ("config", "epoch") if key in content}}
    metadata = {key: json.dumps(value, default=str) for key, value in known.items()}
    save_file(tensors, path, metadata={"format": "pt", **metadata})


def _write_merged(folder: Path, lora: Mapping[str, torch.Tensor], *, row: LLMRow, llm: str | Path) -> None:
    from transformers import AutoConfig

    trust = row.remote_code  # whoever calls has been asked
    config = AutoConfig.from_pretrained(llm, local_files_only=True, trust_remote_code=trust)
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = load_llm(llm, row=row, dtype=dtype, lora_r=rank_of(lora), trust_remote_code=trust)
    targets = model.state_dict()
    for name, tensor in lora.items():
        target = targets.get(name.removeprefix(PUBLISHED).removeprefix(PEFT))
        if target is None or target.shape != tensor.shape:
            found = "no such tensor" if target is None else tuple(target.shape)
            raise CheckpointError(f"{name} {tuple(tensor.shape)} does not fit the LLM in {llm}: {found}")
        target.copy_(tensor)
    write_merged(model, llm_folder=Path(llm), target=folder)
