"""New token ids → the answer: where it ends, and what of the raw text it is (wire)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def end_ids(tokenizer: Any, folder_generation_config: Any) -> list[int]:
    """The ids that end an answer: the tokenizer's eos, and any eos of the model folder's generation_config."""
    also = folder_generation_config.eos_token_id
    also = also if isinstance(also, list) else [also]
    return [tokenizer.eos_token_id, *(i for i in also if i not in (None, tokenizer.eos_token_id))]


def cut_at_stop(
    ids: Sequence[int], *, sequences: Sequence[Sequence[int]], eos_ids: Sequence[int]
) -> tuple[list[int], bool]:
    """New ids up to and with the first stop (an eos or a stop sequence), and whether there is one."""
    ends = {(eos,) for eos in eos_ids} | {tuple(sequence) for sequence in sequences}
    lengths = {len(end) for end in ends}
    for end in range(1, len(ids) + 1):
        if any(length <= end and tuple(ids[end - length : end]) in ends for length in lengths):
            return list(ids[:end]), True
    return list(ids), False


def clean_answer(text: str, *, bos: str, eos_tokens: Sequence[str]) -> str:
    """The answer in a raw generation, special tokens not skipped.

    What stands between the first and a second bos, if there is one; what follows any eos is dropped; cut at the last
    ``###``; what follows ``Assistant:`` is kept; stripped.
    """
    if bos in text:
        text = text.split(bos)[1]
    for eos in eos_tokens:
        text = text.split(eos, 1)[0]
    if "###" in text:
        text = text[: text.rindex("###")]
    return text.split("Assistant:")[-1].strip()
