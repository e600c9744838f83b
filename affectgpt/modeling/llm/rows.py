"""One row per LLM name that a configuration may write: its tokens and where LoRA goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affectgpt.core.errors import ConfigError, did_you_mean

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LLMRow:
    """Tokens of one LLM family. None: the tokenizer's own. pad is always set to eos."""

    name: str
    bos_token: str | None = None
    eos_token: str | None = None
    lora_targets: tuple[str, ...] = _ALL_LINEAR


_ROWS = (LLMRow("Qwen25", bos_token="<|im_start|>", eos_token="<|im_end|>"),)
LLMS: Mapping[str, LLMRow] = {row.name: row for row in _ROWS}


def get_llm(name: str) -> LLMRow:
    """The row of an LLM; ConfigError with the nearest name otherwise."""
    try:
        return LLMS[name]
    except KeyError:
        raise ConfigError(f"model.llama_model: unknown LLM {name!r}.{did_you_mean(str(name), LLMS)}") from None
