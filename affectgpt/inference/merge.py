"""LoRA folded into the LLM's weights, as a model folder that any engine can read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from affectgpt.core.files import atomic_path

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def merged_state(llm: Any) -> dict[str, torch.Tensor]:
    """The LLM's state dict with LoRA added in float32; names as without LoRA. The model itself is not changed."""
    if not hasattr(llm, "peft_config"):
        return dict(llm.state_dict())
    base = llm.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items() if ".lora_" not in name
    }
    with torch.no_grad():
        for name, module in base.named_modules():
            if hasattr(module, "get_delta_weight"):
                weight = module.base_layer.weight
                merged = weight.float() + module.get_delta_weight("default").float()
                state[f"{name}.weight"] = merged.to(weight.dtype)
    return state


def write_merged(llm: Any, *, llm_folder: Path, target: Path) -> Path:
    """Write a model folder: the small files of ``llm_folder``, the weights with LoRA merged into them."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for file in llm_folder.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    tied = getattr(llm.config, "tie_word_embeddings", False)
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in merged_state(llm).items()
        if not (tied and name == "lm_head.weight")
    }
    with atomic_path(target / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    return target
