"""The LLM's tokenizer with the five placeholder tokens appended (SPEC 3.1, wire)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectgpt.core.errors import CheckpointError
from affectgpt.core.types import Modality
from affectgpt.modeling.llm.rows import LLMRow


def load_tokenizer(folder: str | Path, row: LLMRow, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of an LLM folder: placeholders appended in order, bos and eos of the row, pad = eos.

    Raises CheckpointError when the folder has no tokenizer or lacks one of the row's tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise many kinds for damaged files
        raise CheckpointError(f"{folder}: no tokenizer could be read ({type(error).__name__}: {error})") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [m.placeholder for m in Modality]})
    for attribute, token in (("bos_token", row.bos_token), ("eos_token", row.eos_token)):
        if token is not None:
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise CheckpointError(f"{folder}: the tokenizer has no token {token!r}, which {row.name} needs")
            setattr(tokenizer, attribute, token)
    if tokenizer.eos_token is None or tokenizer.bos_token is None:
        raise CheckpointError(f"{folder}: the tokenizer names no bos or eos token; give them in the row of {row.name}")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def placeholder_ids(tokenizer: Any) -> dict[Modality, int]:
    """Modality → id of its placeholder token."""
    return {m: tokenizer.convert_tokens_to_ids(m.placeholder) for m in Modality}


def stop_sequences(tokenizer: Any) -> list[tuple[int, ...]]:
    """Token sequences that end an answer (SPEC 3.5): ``###``; (##, #) and (#, ##) as tokenised after a letter."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    three, two, one = ids("###")[0], ids("a##")[-1], ids("a#")[-1]
    return [(three,), (two, one), (one, two)]
