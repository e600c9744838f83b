"""One row per LLM name that a configuration may write: its tokens, where LoRA goes, its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affectgpt.core.errors import ConfigError, did_you_mean

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LLMRow:
    """One LLM family: any causal LM of transformers.

    Tokens: None is the tokenizer's own; pad is always set to eos. ``remote_code``: its model is code in its folder,
    which runs only with ``model.trust_remote_code: true``. ``architecture``: numbers of the default folder's
    config.json, for counting parameters without it.
    """

    name: str
    bos_token: str | None = None
    eos_token: str | None = None
    lora_targets: tuple[str, ...] = _ALL_LINEAR
    remote_code: bool = False
    architecture: Mapping[str, Any] | None = None


_QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
_ROWS = (
    LLMRow("Qwen25", bos_token="<|im_start|>", eos_token="<|im_end|>", architecture=_QWEN_7B),
    LLMRow("Qwen2", bos_token="<|im_start|>", eos_token="<|im_end|>", architecture=_QWEN_7B),
    LLMRow("Vicuna", architecture=_LLAMA_7B),
    LLMRow("LLaMA2", architecture=_LLAMA_7B),
    LLMRow(
        "LLaMA3",
        architecture={**_LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
    ),
    # Its query, key and value are one module, W_pack, which the published list of targets does not name (wire).
    LLMRow("Baichuan2", lora_targets=("o_proj", "gate_proj", "up_proj", "down_proj"), remote_code=True),
)
LLMS: Mapping[str, LLMRow] = {row.name: row for row in _ROWS}


def get_llm(name: str) -> LLMRow:
    """The row of an LLM; ConfigError with the nearest name otherwise."""
    try:
        return LLMS[name]
    except KeyError:
        raise ConfigError(f"model.llama_model: unknown LLM {name!r}.{did_you_mean(str(name), LLMS)}") from None
