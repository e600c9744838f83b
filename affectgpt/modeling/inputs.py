"""What goes into the LLM's decoder: media in the place of their placeholders, rows of several samples, masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from affectgpt.core.errors import DataError
from affectgpt.core.layout import Layout, Rows
from affectgpt.core.types import Modality


def merge_multimodal_embeddings(
    *,
    input_ids: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    modality_embeds: Mapping[Modality, torch.Tensor],
    layout: Layout,
    names: Sequence[str] = (),
) -> torch.Tensor:
    """Token ids ``[B, L]`` and embeddings ``[B, K, D]`` of the media → ``inputs_embeds [B, L, D]``.

    A placeholder is looked up as token 0 (the embedding matrix is not resized, wire) and overwritten.
    Raises DataError naming the sample when the placeholders of a row are not exactly as many as its embeddings.
    """
    rows = len(input_ids)
    for modality in {**layout.counts, **modality_embeds}:
        media, counts = modality_embeds.get(modality), layout.counts.get(modality, [0] * rows)
        expected = 0 if media is None else media.shape[1]
        for row, count in enumerate(counts):
            if count != expected:
                holds = f"the batch holds no {modality.value}" if media is None else f"its embeddings are {expected}"
                raise DataError(
                    f"sample {name_of(names, row, rows=rows)}: its prompt has {count} {modality.placeholder} tokens, "
                    f"but {holds}"
                )
    ids = input_ids.flatten()
    for places in layout.places.values():
        ids = ids.index_fill(0, places, 0)
    embeds = embed_tokens(ids)  # [B·L, D]
    for modality, places in layout.places.items():
        media = modality_embeds[modality].flatten(0, 1).to(embeds.device, embeds.dtype)
        embeds = embeds.index_copy(0, places, media)
    return embeds.view(*input_ids.shape, -1)


def no_mask(llm: Any) -> dict[str, None] | None:
    """The argument ``attention_mask`` that means causal attention and nothing hidden.

    Given None, transformers looks into the positions for packed samples, which waits for the GPU; decoders with
    a mask for each kind of layer take prepared ones, and these kernels need none.
    """
    decoder = llm.get_decoder()
    ready = llm.config._attn_implementation in ("sdpa", "flash_attention_2")
    if ready and getattr(decoder, "has_sliding_layers", None) is False:
        return dict.fromkeys(decoder.config.layer_types)
    return None


def packed_inputs(llm: Any, inputs_embeds: torch.Tensor, rows: Rows) -> dict[str, Any]:
    """``inputs_embeds [B, L, D]`` as the decoder's arguments for rows ``[R, P, D]`` of several samples each."""
    R, P = rows.sample.shape
    packed: dict[str, Any] = {
        "inputs_embeds": inputs_embeds.flatten(0, 1)[rows.source].view(R, P, -1),
        "position_ids": rows.position_ids,
    }
    if llm.config._attn_implementation == "flash_attention_2":
        if rows.visible is not None:
            raise DataError("run.packing with flash_attention_2: a sample holds the pad token inside; use sdpa")
        # FlashAttention takes no mask. Left to itself, transformers looks for borders of samples in a batch of one
        # row alone, and would let the samples of several rows see each other.
        packed |= {f"cu_seq_lens_{side}": rows.cu_seq_lens for side in "qk"}
        packed |= {f"max_length_{side}": rows.max_length for side in "qk"}
        return {**packed, "attention_mask": no_mask(llm)}
    seen = rows.sample[:, :, None] == rows.sample[:, None, :]  # [R, P, P]
    if rows.visible is not None:
        seen &= rows.visible[:, None, :] | torch.eye(P, dtype=torch.bool, device=seen.device)  # no row sees nothing
    seen = seen.tril()
    hidden = torch.zeros((R, 1, P, P), dtype=inputs_embeds.dtype, device=seen.device)
    packed["attention_mask"] = hidden.masked_fill(~seen[:, None], torch.finfo(hidden.dtype).min)
    return packed


def name_of(names: Sequence[str], row: int, *, rows: int | None = None) -> str:
    """A row's sample for messages; with beams there are more rows than samples."""
    if not names:
        return f"in row {row}"
    return repr(names[row * len(names) // rows if rows else row])
