"""Decoding with transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.inference.decoding import SampleByRow, StopSequences, clean_answer, cut_at_stop, end_ids, top_k_of
from affectgpt.inference.engines.base import ENGINES, Answer, Decoding
from affectgpt.inference.kv_cache import growing_cache
from affectgpt.inference.memory import autocast
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.build import load_checkpoint
from affectgpt.modeling.tokenizer import stop_sequences


@ENGINES.register("transformers")
class TransformersEngine:
    """One model, one process; batches are left-padded, every row stops by itself."""

    preferred_batch = None  # as many as the memory takes

    def __init__(
        self,
        model: AffectGPT,
        *,
        tokenizer: Any,
        decoding: Decoding,
        llm_folder: Path | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        if tensor_parallel_size != 1:
            logger.warning("inference.tensor_parallel_size is for the vllm engine; here each process has one GPU")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.decoding = decoding
        folder = model.llm.folder_generation_config
        self.eos_ids = end_ids(tokenizer, folder)
        self.top_k = top_k_of(decoding.top_k, folder)
        self.stops = stop_sequences(tokenizer)

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model."""
        return load_checkpoint(self.model, checkpoint, complete=True)

    def describe(self) -> dict[str, Any]:
        """The decoding in force."""
        return {"engine": "transformers", **asdict(self.decoding), "top_k": self.top_k}

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
        batch = batch.to(device)
        with autocast(device):
            embeds = self.model.embed(batch).to(self.model.llm.get_input_embeddings().weight.dtype)
        return self.model.llm.generate(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask.long(),
            past_key_values=growing_cache(self.model.llm.config),
            generation_config=GenerationConfig(
                max_new_tokens=decoding.max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=self.eos_ids,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([StopSequences(self.stops)]),
        )

    def generate(self, batch: Batch, *, seeds: Sequence[int]) -> list[Answer]:
        """An answer per row."""
        answers = []
        for row in self.generate_ids(batch, seeds=seeds).tolist():
            ids, stopped = cut_at_stop(row, sequences=self.stops, eos_ids=self.eos_ids)
            answers.append(Answer(text=self.clean(ids), tokens=len(ids), stopped=stopped))
        return answers

    def clean(self, new_ids: Sequence[int]) -> str:
        """New token ids of one row → its answer."""
        text = self.tokenizer.decode(new_ids, skip_special_tokens=False)
        eos_tokens = self.tokenizer.convert_ids_to_tokens(self.eos_ids)
        return clean_answer(text, bos=self.tokenizer.bos_token, eos_tokens=eos_tokens)
