"""One row per LLM name that a configuration may write: its tokens, where LoRA goes, its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.config.paths import Weights, default_folder, model_folder
from affectgpt.config.schema import Config
from affectgpt.core.registry import Registry

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LLMRow:
    """One LLM family: any causal LM of transformers.

    Tokens: None is the tokenizer's own; pad is always set to eos. ``remote_code``: its model is code in its folder,
    which runs only with ``model.trust_remote_code: true``. ``architecture``: numbers of the default folder's
    config.json, for counting parameters without it. ``weights`` says where its folder is by default (None: only where
    ``paths.folders.NAME`` of a configuration says so).
    """

    name: str
    bos_token: str | None = None
    eos_token: str | None = None
    lora_targets: tuple[str, ...] = _ALL_LINEAR
    remote_code: bool = False
    architecture: Mapping[str, Any] | None = None
    weights: Weights | None = None


_QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
LLMS = Registry("LLM")
for _row in (
    LLMRow(
        "Qwen25",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        architecture=_QWEN_7B,
        weights=Weights("Qwen2.5-7B-Instruct", "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct"),
    ),
    LLMRow(
        "Qwen2",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        architecture=_QWEN_7B,
        weights=Weights("Qwen2-7B-Instruct", "https://huggingface.co/Qwen/Qwen2-7B-Instruct"),
    ),
    LLMRow(
        "Vicuna",
        architecture=_LLAMA_7B,
        weights=Weights("vicuna-7b-v1.5", "https://huggingface.co/lmsys/vicuna-7b-v1.5"),
    ),
    LLMRow(
        "LLaMA2",
        architecture=_LLAMA_7B,
        weights=Weights("Llama-2-7b-chat-hf", "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf"),
    ),
    LLMRow(
        "LLaMA3",
        architecture={**_LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        weights=Weights("Meta-Llama-3-8B-Instruct", "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct"),
    ),
    # Its query, key and value are one module, W_pack, which the published list of targets does not name (wire).
    LLMRow(
        "Baichuan2",
        lora_targets=("o_proj", "gate_proj", "up_proj", "down_proj"),
        remote_code=True,
        weights=Weights("Baichuan2-7B-Chat", "https://huggingface.co/baichuan-inc/Baichuan2-7B-Chat"),
    ),
):
    LLMS.register(_row.name)(_row)


def get_llm(name: str) -> LLMRow:
    """The row of an LLM; ConfigError with the nearest name otherwise."""
    return LLMS.get(name)


def configured_llm(config: Config) -> LLMRow:
    """The row that ``model.llama_model`` names. Raises ConfigError naming the key."""
    with config.naming("model.llama_model"):
        return get_llm(config.model.llama_model)


def llm_folder(config: Config, *, key: str = "model.llama_model", must_exist: bool = True) -> Path:
    """The configured LLM's folder. Raises CheckpointError saying what to download where it must exist and does not."""
    row = configured_llm(config)
    folder = default_folder(config, row.name, row.weights)
    if folder is not None and not must_exist:
        return folder
    return model_folder(config, row.name, key=key, weights=row.weights)
