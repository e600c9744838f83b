"""Examples → a batch: padded text, stacked media, and where everything is in it.

Positions are worked out on the CPU, so that a forward pass never waits for the GPU to say them. What does not belong
together is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from affectgpt.core.errors import DataError
from affectgpt.core.types import IGNORE_INDEX, Batch, Modality
from affectgpt.processing.modes import get_mode

if TYPE_CHECKING:
    import torch

    from affectgpt.processing.processor import Example


@dataclass(frozen=True)
class Rows:
    """Samples side by side in one row instead of padding (packing). Shapes: R rows, P tokens."""

    source: torch.Tensor  # int64 [R·P]: each token's place in the flattened batch [B·L]; 0 for padding
    sample: torch.Tensor  # int64 [R, P]: whose token it is; -1: padding
    position_ids: torch.Tensor  # int64 [R, P], from 0 in each sample
    visible: torch.Tensor | None  # bool [R, P]: tokens that others may look at; None: all
    cu_seq_lens: torch.Tensor  # int32 [S + 1]: where samples and paddings begin in the flattened rows, and the end
    max_length: int  # tokens of the longest of these


@dataclass(frozen=True)
class Layout:
    """The positions at which a batch ``[B, L]`` holds media, what is learnt of it, and who may look at whom.

    Positions are those of the flattened batch, ``row · L + column``, or with ``rows`` those of the flattened rows.
    """

    counts: Mapping[Modality, Sequence[int]]  # placeholders of each sample
    places: Mapping[Modality, torch.Tensor]  # int64 [all placeholders of the modality], sample after sample
    learnt: torch.Tensor | None  # int64 [n]: the positions that predict a learnt token; None: no labels were given
    targets: torch.Tensor | None  # int64 [n]: those tokens
    n_tokens: int  # that are attended to
    causal: bool  # nothing but padding on the right is hidden: training needs no mask
    rows: Rows | None = None

    @property
    def n_learnt(self) -> int:
        """Learnt tokens."""
        return 0 if self.learnt is None else len(self.learnt)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that it holds."""
        found: list[torch.Tensor] = []
        self.each(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Layout:
        """The same with every tensor changed: moved to a device, or into page-locked memory."""

        def changed(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {key: changed(value) for key, value in part.items()}
            if isinstance(part, Rows):
                return replace(part, **{field.name: changed(getattr(part, field.name)) for field in fields(part)})
            return change(part) if hasattr(part, "is_floating_point") else part

        return replace(self, **{field.name: changed(getattr(self, field.name)) for field in fields(self)})


def layout_of(
    *,
    input_ids: torch.Tensor,
    placeholder_ids: Mapping[Modality, int],
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    packing: int = 0,
) -> Layout:
    """The layout of token ids, mask and labels, ``[B, L]`` each, which may be on any device.

    ``packing``: put samples side by side in rows of up to so many tokens; 0: leave a row to each. A token sees the
    tokens of its own sample up to itself that the mask shows; each sample's positions begin at 0. As the first token of
    a sample is never learnt, no prediction reaches over from one sample to the next: the sum of the token losses is
    that of the padded batch.
    """
    import torch

    ids = input_ids.cpu()
    B, L = ids.shape
    mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    counts, places = {}, {}
    for modality, token_id in placeholder_ids.items():
        here = ids == token_id
        if bool(here.any()):
            counts[modality] = here.sum(dim=1).tolist()
            places[modality] = here.flatten().nonzero()[:, 0]
    learnt = targets = None
    is_learnt = torch.zeros_like(ids, dtype=torch.bool)
    if labels is not None:
        aims = labels.cpu()
        is_learnt = aims != IGNORE_INDEX
        predicts = torch.zeros_like(is_learnt)
        predicts[:, :-1] = is_learnt[:, 1:]
        learnt = predicts.flatten().nonzero()[:, 0]
        targets = aims.flatten()[learnt + 1]
    # The last token of a training sequence is its closing eos, which is learnt but (pad = eos) not attended to.
    order = torch.arange(L)
    lengths = torch.where(mask | is_learnt, order + 1, 0).amax(dim=1)  # [B]
    hidden = ~mask & (order < lengths[:, None] - 1)  # before the last token, which nobody looks at
    made = Layout(
        counts=counts,
        places=places,
        learnt=learnt,
        targets=targets,
        n_tokens=int(mask.sum()),
        causal=not bool(hidden.any()),
    )
    if not packing:
        return made
    rows = _pack(lengths.tolist(), L, room=packing, visible=None if made.causal else mask)
    moved = torch.empty(B * L, dtype=torch.int64)  # place in the batch → place in the rows
    real = rows.sample.flatten() >= 0
    moved[rows.source[real]] = real.nonzero()[:, 0]
    return replace(made, learnt=None if learnt is None else moved[learnt], rows=rows)


def row_of_each(lengths: Sequence[int], room: int) -> list[int]:
    """The row that each sample goes to: longest first, into the first row with ``room`` left.

    A sample longer than ``room`` has a row of its own.
    """
    rows: list[int] = []  # tokens in each row
    chosen = [0] * len(lengths)
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (row for row, used in enumerate(rows) if used + lengths[sample] <= room)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] += lengths[sample]
        chosen[sample] = row
    return chosen


def _pack(lengths: Sequence[int], padded: int, *, room: int, visible: torch.Tensor | None) -> Rows:
    """Rows of samples of such lengths, each of which has ``padded`` tokens in the batch."""
    import torch

    chosen = row_of_each(lengths, room)
    members = [[i for i, row in enumerate(chosen) if row == r] for r in range(max(chosen) + 1)]
    P = max(sum(lengths[i] for i in row) for row in members)
    R = len(members)
    source = torch.zeros((R, P), dtype=torch.int64)
    sample = torch.full((R, P), -1, dtype=torch.int64)
    positions = torch.zeros((R, P), dtype=torch.int64)
    borders = [0]
    for r, row in enumerate(members):
        at = 0
        for i in row:
            here = slice(at, at + lengths[i])
            source[r, here] = i * padded + torch.arange(lengths[i])
            sample[r, here] = i
            positions[r, here] = torch.arange(lengths[i])
            at += lengths[i]
            borders.append(r * P + at)
        if at < P:
            borders.append((r + 1) * P)
    shown = None
    if visible is not None:
        shown = visible.flatten()[source] & (sample >= 0)
    return Rows(
        source=source.flatten(),
        sample=sample,
        position_ids=positions,
        visible=shown,
        cu_seq_lens=torch.tensor(borders, dtype=torch.int32),
        max_length=max(b - a for a, b in pairwise(borders)),
    )


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
