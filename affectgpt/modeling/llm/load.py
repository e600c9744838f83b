"""A Hugging Face causal LM folder as the frozen LLM, with LoRA (paper section 3; SPEC 2.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.core.errors import CheckpointError
from affectgpt.encoders.pretrained import load_pretrained
from affectgpt.modeling.llm.rows import LLMRow

LORA_ALPHA = 32
LORA_DROPOUT = 0.05


def load_llm(
    folder: str | Path, *, row: LLMRow, dtype: torch.dtype, lora_r: int, trust_remote_code: bool = False
) -> nn.Module:
    """Load a causal LM, freeze it and add LoRA of rank ``lora_r`` (0: none).

    The folder's generation settings are moved to ``model.folder_generation_config``: decoding is ours to choose, and
    ``generate`` would otherwise fill gaps from them. Raises CheckpointError when the folder does not load.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype, trust_remote_code=trust_remote_code)
    folder_generation_config = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model = add_lora(model, row=row, rank=lora_r)
    except ValueError as error:  # peft: none of the target modules is in the model
        raise CheckpointError(f"{folder}: LoRA of the row {row.name} does not fit this model: {error}") from error
    model.folder_generation_config = folder_generation_config
    return model


def empty_llm(config: Any, *, row: LLMRow, lora_r: int, trust_remote_code: bool = False) -> nn.Module:
    """The LLM of a transformers configuration with LoRA, no weights read; for the meta device."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return add_lora(model, row=row, rank=lora_r)


def lora_config(row: LLMRow, rank: int) -> Any:
    """peft's configuration of our LoRA."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        target_modules=list(row.lora_targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_lora(model: nn.Module, *, row: LLMRow, rank: int) -> nn.Module:
    """Freeze ``model`` and wrap it with LoRA of rank ``rank``; rank 0: frozen, as it is."""
    model.requires_grad_(False)
    if rank == 0:
        return model
    from peft import get_peft_model

    return get_peft_model(model, lora_config(row, rank))
