"""Text → token ids and labels: one function for the prompt, in training and in inference (SPEC 3.4 and 3.5, wire)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from affectgpt.core.errors import DataError
from affectgpt.core.types import IGNORE_INDEX, Modality
from affectgpt.processing.render import repeat_placeholders

END_OF_ANSWER = "###"
GENERATION_LENGTH = 2000  # tokens, prompt and answer together
MAX_NEW_TOKENS = 1200


def encode_prompt(
    prompt: str, *, tokenizer: Any, n_tokens: Mapping[Modality, int], max_length: int, sample: str, limit: str = ""
) -> list[int]:
    """A prompt → its ids, each placeholder repeated ``n_tokens`` times, without bos, cut on the right.

    ``tokenizer`` knows the five placeholders. Raises DataError naming ``sample`` when the cut takes one of them;
    ``limit`` says what sets the length: a training's ``model.max_length`` where it is not given.
    """
    text = repeat_placeholders(prompt, dict(n_tokens))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    limit = limit or f"or raise model.max_length, which is {max_length}"
    return _cut(ids, ids[:max_length], tokenizer=tokenizer, sample=sample, limit=limit)


def encode_training(
    prompt: str, answer: str, *, tokenizer: Any, n_tokens: Mapping[Modality, int], max_length: int, sample: str
) -> tuple[list[int], list[int]]:
    """``[bos] prompt answer### [eos]`` and its labels: nothing of bos and prompt is learnt.

    Prompt and answer are tokenised apart and cut at ``max_length`` each. Raises DataError naming ``sample`` when both
    together (without bos and eos) are longer than that.
    """
    prompt_ids = encode_prompt(prompt, tokenizer=tokenizer, n_tokens=n_tokens, max_length=max_length, sample=sample)
    answer_ids = tokenizer(answer + END_OF_ANSWER, add_special_tokens=False).input_ids[:max_length]
    total = len(prompt_ids) + len(answer_ids)
    if total > max_length:
        raise DataError(
            f"sample {sample!r}: prompt ({len(prompt_ids)} tokens) and answer ({len(answer_ids)}) are {total} tokens, "
            f"model.max_length is {max_length}; shorten the text or raise it"
        )
    ids = [tokenizer.bos_token_id, *prompt_ids, *answer_ids, tokenizer.eos_token_id]
    labels = [IGNORE_INDEX] * (1 + len(prompt_ids)) + ids[1 + len(prompt_ids) :]
    return ids, labels


def encode_generation(
    prompt: str,
    *,
    tokenizer: Any,
    n_tokens: Mapping[Modality, int],
    sample: str,
    max_length: int = GENERATION_LENGTH,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[int]:
    """A prompt → ids to continue: no bos, cut on the right at ``max_length``, then on the left so that the answer fits.

    Raises DataError naming ``sample`` when a cut takes a placeholder or leaves no room.
    """
    room = max_length - max_new_tokens
    if room < 1:
        raise DataError(
            f"inference.max_new_tokens {max_new_tokens} leaves no room for a prompt: it must be below {max_length}"
        )
    limit = (
        f"or lower inference.max_new_tokens: prompt and answer share {max_length} tokens, and {max_new_tokens} of them "
        "are the answer's"
    )
    ids = encode_prompt(
        prompt, tokenizer=tokenizer, n_tokens=n_tokens, max_length=max_length, sample=sample, limit=limit
    )  # fmt: skip
    return _cut(ids, ids[-room:], tokenizer=tokenizer, sample=sample, limit=limit)


def _cut(ids: list[int], kept: list[int], *, tokenizer: Any, sample: str, limit: str) -> list[int]:
    if len(kept) == len(ids):
        return ids
    for modality in Modality:
        token = tokenizer.convert_tokens_to_ids(modality.placeholder)
        lost = ids.count(token) - kept.count(token)
        if lost:
            raise DataError(
                f"sample {sample!r}: its prompt has {len(ids)} tokens; cutting it to {len(kept)} removes {lost} of "
                f"its {modality.placeholder}. Shorten the subtitle or the question, {limit}."
            )
    return kept
