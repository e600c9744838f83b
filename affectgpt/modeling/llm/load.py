"""A Hugging Face causal LM folder as the frozen LLM, with LoRA (paper section 3; SPEC 2.3)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from affectgpt.modeling.llm.rows import LLMRow
from affectgpt.modeling.pretrained import load_pretrained

LORA_ALPHA = 32
LORA_DROPOUT = 0.05


def load_llm(folder: str | Path, *, row: LLMRow, dtype: torch.dtype, lora_r: int) -> nn.Module:
    """Load a causal LM, freeze it and add LoRA of rank ``lora_r`` (0: none).

    The folder's generation settings are moved to ``model.folder_generation_config``: decoding is ours to choose, and
    ``generate`` would otherwise fill gaps from them. Raises CheckpointError when the folder does not load.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)
    folder_generation_config = model.generation_config
    model.generation_config = GenerationConfig()
    model.requires_grad_(False)
    if lora_r > 0:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=lora_r,
                lora_alpha=LORA_ALPHA,
                lora_dropout=LORA_DROPOUT,
                target_modules=list(row.lora_targets),
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    model.folder_generation_config = folder_generation_config
    return model
