"""Examples → a batch: padded text, stacked media. What does not belong together is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from affectgpt.core.errors import DataError
from affectgpt.core.layout import layout_of
from affectgpt.core.types import IGNORE_INDEX, Batch, Modality
from affectgpt.processing.modes import get_mode

if TYPE_CHECKING:
    import torch

    from affectgpt.processing.processor import Example


def collate(
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    placeholder_ids: Mapping[Modality, int],
    packing: int = 0,
    pad_to_multiple_of: int = 1,
) -> Batch:
    """Collate examples of one mode, all for training or all for generation.

    Training: padded on the right, attention mask "token is not pad"; as pad = eos, the closing eos is masked too
    (wire). Generation: padded on the left, every token of the prompt attended to. ``packing``: rows of up to
    so many tokens instead (see ``layout_of``); ``pad_to_multiple_of``: of training's lengths, as tensor cores like it.
    Raises DataError naming the samples when modes, media or shapes differ.
    """
    import torch

    if not examples:
        raise DataError("a batch needs at least one sample")
    first = examples[0]
    mode = get_mode(first.mode)
    training = first.labels is not None
    for example in examples:
        if example.mode != first.mode:
            raise DataError(
                f"a batch has one input mode: sample {first.name!r} is {first.mode}, sample {example.name!r} is "
                f"{example.mode}"
            )
        if (example.labels is not None) != training:
            raise DataError(f"samples {first.name!r} and {example.name!r}: one has labels to learn, the other has none")
        for modality in mode.media:
            if modality not in example.media and modality not in example.features:
                raise DataError(f"sample {example.name!r}: mode {mode.name} needs {modality.value}, which is missing")
    length = max(len(example.input_ids) for example in examples)
    if training:
        length = math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(examples), length), pad_token_id, dtype=torch.int64)  # [B, L]
    attention_mask = torch.zeros((len(examples), length), dtype=torch.bool)  # [B, L]
    labels = torch.full_like(input_ids, IGNORE_INDEX) if training else None
    for row, example in enumerate(examples):
        ids = torch.tensor(example.input_ids)
        if labels is not None:
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = torch.tensor(example.labels)
        else:
            input_ids[row, length - len(ids) :] = ids
            attention_mask[row, length - len(ids) :] = True
    if training:
        attention_mask = input_ids != pad_token_id
    return Batch(
        names=[example.name for example in examples],
        mode=mode.name,
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        prefusion=mode.prefusion,
        media=_stack(examples, "media"),
        features=_stack(examples, "features"),
        layout=layout_of(
            input_ids=input_ids,
            placeholder_ids=placeholder_ids,
            attention_mask=attention_mask,
            labels=labels,
            packing=packing if training else 0,
        ),
        prompts=[example.prompt for example in examples],
        flags=[example.flags for example in examples],
    )


def share(tensors: Iterable[torch.Tensor | None]) -> None:
    """In a loader's worker, put tensors into shared memory; anywhere else do nothing.

    The worker's queue would do it later, where a lack of shared memory is only printed and the main process waits for
    ever; here it is an error.
    """
    import torch

    if torch.utils.data.get_worker_info() is not None:
        for tensor in tensors:
            if tensor is not None:
                tensor.share_memory_()


def _stack(examples: Sequence[Example], kind: str) -> dict:
    """One tensor ``[B, …]`` per modality that the examples hold."""
    import torch

    first = getattr(examples[0], kind)
    stacked: dict[Modality, torch.Tensor] = {}
    for modality, tensor in first.items():
        for example in examples:
            other = getattr(example, kind).get(modality)
            if other is None or other.shape != tensor.shape:
                found = "none" if other is None else list(other.shape)
                raise DataError(
                    f"sample {example.name!r}: {modality.value} {kind} {found} do not fit those of sample "
                    f"{examples[0].name!r}, {list(tensor.shape)}"
                )
        stacked[modality] = torch.stack([getattr(example, kind)[modality] for example in examples])
    return stacked
