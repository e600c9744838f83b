"""Decoding with transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from affectgpt.core.types import Batch
from affectgpt.inference.decoding import SampleByRow, StopSequences, clean_answer
from affectgpt.inference.engines.base import ENGINES, Decoding
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.tokenizer import stop_sequences


@ENGINES.register("transformers")
class TransformersEngine:
    """One model, one process; batches are left-padded, every row stops by itself."""

    def __init__(self, model: AffectGPT, *, tokenizer: Any, decoding: Decoding) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.decoding = decoding
        folder = model.llm.folder_generation_config
        also = folder.eos_token_id if isinstance(folder.eos_token_id, list) else [folder.eos_token_id]
        self.eos_ids = [tokenizer.eos_token_id, *(i for i in also if i not in (None, tokenizer.eos_token_id))]
        self.top_k = decoding.top_k if decoding.top_k is not None else (folder.top_k or 0)
        self.stop = StopSequences(stop_sequences(tokenizer))

    @torch.inference_mode()
    def generate_ids(self, batch: Batch, *, seeds: Sequence[int]) -> torch.Tensor:
        """New token ids ``[B, n]``; a finished row is filled up with the pad token."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        device = self.model.device
        decoding = self.decoding
        processors = LogitsProcessorList()
        if not decoding.greedy:
            processors.append(
                SampleByRow(
                    seeds,
                    max_new_tokens=decoding.max_new_tokens,
                    top_k=self.top_k,
                    top_p=decoding.top_p,
                    temperature=decoding.temperature,
                )
            )
        # Encoders and connectors run under fp16 autocast on a GPU, as the released checkpoints were trained and scored.
        autocast = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()
        batch = batch.to(device)
        with autocast:
            embeds = self.model.embed(batch).to(self.model.llm.get_input_embeddings().weight.dtype)
        return self.model.llm.generate(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask.long(),
            generation_config=GenerationConfig(
                max_new_tokens=decoding.max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=self.eos_ids,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([self.stop]),
        )

    def generate(self, batch: Batch, *, seeds: Sequence[int]) -> list[str]:
        """The cleaned answer of each row."""
        new_ids = self.generate_ids(batch, seeds=seeds)
        return [self.clean(row) for row in new_ids.tolist()]

    def clean(self, new_ids: Sequence[int]) -> str:
        """New token ids of one row → its answer."""
        text = self.tokenizer.decode(new_ids, skip_special_tokens=False)
        eos_tokens = self.tokenizer.convert_ids_to_tokens(self.eos_ids)
        return clean_answer(text, bos=self.tokenizer.bos_token, eos_tokens=eos_tokens)
