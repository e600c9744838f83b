"""Decoding with transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.inference.engines.base import (
    ENGINES,
    Answer,
    Decoding,
    OnToken,
    SampleByRow,
    autocast,
    autocast_dtype,
    top_k_of,
)
from affectgpt.modeling.build import load_checkpoint
from affectgpt.modeling.lora import MergedLora, has_lora
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.processor import AffectGPTProcessor


class _Watched(StoppingCriteria):
    """Tells who waits for a row its new ids ``[B, n]`` after each step, and ends the rows that they have enough of."""

    def __init__(self, watchers: Sequence[OnToken]) -> None:
        self.watchers = watchers
        self.ended = [False] * len(watchers)
        self.mask: torch.Tensor | None = None  # ``ended`` on the device, copied where it has changed

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        before = list(self.ended)
        for i, ids in enumerate(input_ids.tolist()):
            self.ended[i] = self.ended[i] or self.watchers[i](ids)
        if self.mask is None or self.ended != before:
            self.mask = torch.tensor(self.ended).to(input_ids.device)
        return self.mask


@ENGINES.register("transformers")
class TransformersEngine:
    """One model, one process; batches are left-padded, every row stops by itself."""

    preferred_batch = None  # as many as the memory takes

    def __init__(
        self,
        model: AffectGPTForConditionalGeneration,
        *,
        processor: AffectGPTProcessor,
        decoding: Decoding,
        defaults: GenerationConfig,
        llm_folder: Path | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        if tensor_parallel_size != 1:
            logger.warning("inference.tensor_parallel_size is for the vllm engine; here each process has one GPU")
        self.model = model.eval()
        self.processor = processor
        self.decoding = decoding
        self.top_k = top_k_of(decoding.top_k, defaults)
        self.autocast_dtype: torch.dtype | None = autocast_dtype(model.llm.get_input_embeddings().weight.dtype)
        self.keeps_logprobs = False
        self._drawn: torch.Tensor | None = None  # [B, n]: log-probabilities of the last batch, where they are kept
        self._lora = None
        if llm_folder is not None and has_lora(model.llm):
            weight = model.get_input_embeddings().weight
            mapped = weight.device.type == "cpu" and weight.dtype != torch.float32  # a file; merging makes a copy of it
            self._lora = None if mapped else MergedLora(model.llm, llm_folder)

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model; its LoRA is added to the LLM's weights."""
        if self._lora is None:
            return load_checkpoint(self.model, checkpoint, complete=True)
        self._lora.undo()
        report = load_checkpoint(self.model, checkpoint, complete=True)
        self._lora.merge()
        return report

    def describe(self) -> dict[str, Any]:
        """The decoding in force."""
        return {"engine": "transformers", **asdict(self.decoding), "top_k": self.top_k}

    @torch.inference_mode()
    def generate_ids(
        self,
        batch: Batch,
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> torch.Tensor:
        """New token ids ``[B, n]``; a finished row is filled up with the pad token. B is the number of seeds."""
        decoding = decoding or self.decoding
        drawing: list[SampleByRow] = []
        if not decoding.greedy:
            drawing.append(
                SampleByRow(
                    seeds,
                    max_new_tokens=decoding.max_new_tokens,
                    top_k=self.top_k,
                    top_p=decoding.top_p,
                    temperature=decoding.temperature,
                    keep=self.keeps_logprobs,
                )
            )
        batch = batch.to(self.model.device)
        mask = batch.attention_mask.long()
        with autocast(self.model.device, self.autocast_dtype):
            embeds = self.model.embed(**batch).to(self.model.get_input_embeddings().weight.dtype)
        copies = len(seeds) // len(embeds)  # answers of each prompt
        if copies > 1:
            embeds, mask = embeds.repeat_interleave(copies, dim=0), mask.repeat_interleave(copies, dim=0)  # [B, L, D]
        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=decoding.max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=self.processor.eos_ids,
                pad_token_id=self.processor.tokenizer.pad_token_id,
            ),
            logits_processor=LogitsProcessorList(drawing),
            stopping_criteria=StoppingCriteriaList([] if on_token is None else [_Watched(on_token)]),
        )
        self._drawn = torch.stack(drawing[0].kept, dim=1).cpu() if self.keeps_logprobs and drawing else None
        return ids

    def generate(
        self,
        batch: Batch,
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> list[Answer]:
        """An answer per seed."""
        answers = []
        new_ids = self.generate_ids(batch, seeds=seeds, decoding=decoding, on_token=on_token)
        for number, row in enumerate(new_ids.tolist()):
            ids, stopped = self.processor.cut(row)
            drawn = () if self._drawn is None else tuple(self._drawn[number, : len(ids)].tolist())
            text = self.processor.decode(ids)
            answers.append(Answer(text=text, tokens=len(ids), stopped=stopped, ids=tuple(ids), logprobs=drawn))
        return answers
