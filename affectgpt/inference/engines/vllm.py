"""Decoding with vLLM: our connectors make the prompt's embeddings, vLLM continues them.

LoRA is merged into the LLM's weights first: vLLM's own LoRA crashes under load together with prompt embeddings
(vLLM issue 51122). Rows are drawn by vLLM's sampler, so sampled answers are other than those of ``transformers``.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.types import Batch
from affectgpt.inference.engines.base import ENGINES, Answer, Decoding, OnToken
from affectgpt.inference.memory import autocast
from affectgpt.inference.sampling import top_k_of
from affectgpt.modeling.build import load_checkpoint
from affectgpt.modeling.lora import write_merged
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.processing.prompt import GENERATION_LENGTH

_MEMORY_SHARE = 0.8  # of the GPU for vLLM; encoders, connectors and one embedding matrix need the rest


@ENGINES.register("vllm")
class VLLMEngine:
    """The LLM lives in vLLM, once per checkpoint; encoders, connectors and the embedding matrix stay on the device."""

    preferred_batch = 512  # vLLM schedules rows by itself; a batch is what a kill may lose

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
        try:
            import vllm
        except ImportError:
            raise ConfigError("inference.engine=vllm needs vLLM: pip install 'affectgpt[vllm]'") from None
        self._vllm = vllm
        self.model = model.eval()
        self.device = model.device
        model.llm.to("cpu")  # to merge from; vLLM needs the device's memory
        model.llm.get_input_embeddings().to(self.device)
        if llm_folder is None:
            raise ConfigError("inference.engine=vllm needs the LLM's folder, whose small files vLLM reads")
        self.processor = processor
        self.decoding = decoding
        self.llm_folder = llm_folder
        self.tensor_parallel_size = tensor_parallel_size
        self.top_k = top_k_of(decoding.top_k, defaults)
        self._merged: tempfile.TemporaryDirectory[str] | None = None
        self._llm: Any = None

    def describe(self) -> dict[str, Any]:
        """The decoding in force."""
        return {"engine": f"vllm {self._vllm.__version__}", **asdict(self.decoding), "top_k": self.top_k}

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model, merge its LoRA and start vLLM on the result."""
        report = load_checkpoint(self.model, checkpoint, complete=True)
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._merged is not None:
            self._merged.cleanup()
        self._merged = tempfile.TemporaryDirectory(prefix="affectgpt-merged-")
        folder = write_merged(self.model.llm, llm_folder=self.llm_folder, target=Path(self._merged.name))
        embedding = self.model.llm.get_input_embeddings().weight
        self._llm = self._vllm.LLM(
            model=str(folder),
            dtype=str(embedding.dtype).removeprefix("torch."),
            tensor_parallel_size=self.tensor_parallel_size,
            gpu_memory_utilization=_MEMORY_SHARE,
            max_model_len=GENERATION_LENGTH + 1,
            enable_prompt_embeds=True,
            generation_config="vllm",  # the folder's settings are not the published ones
        )
        return report

    @torch.inference_mode()
    def generate(
        self,
        batch: Batch,
        *,
        seeds: Sequence[int],
        decoding: Decoding | None = None,
        on_token: Sequence[OnToken] | None = None,
    ) -> list[Answer]:
        """An answer per row."""
        decoding = decoding or self.decoding
        batch = batch.to(self.device)
        embedding = self.model.llm.get_input_embeddings().weight
        with autocast(self.device):
            embeds = self.model.embed(**batch).to(embedding.dtype)  # [B, L, D]
        if embeds.shape[2] != embedding.shape[1] or not torch.isfinite(embeds).all():  # vLLM would end with it
            raise DataError(f"batch of sample {batch.names[0]!r}: prompt embeddings are not finite [tokens, hidden]")
        prompts = [{"prompt_embeds": row[mask].cpu()} for row, mask in zip(embeds, batch.attention_mask, strict=True)]
        outputs = self._llm.generate(prompts, [self._sampling(seed, decoding) for seed in seeds], use_tqdm=False)
        rows = [list(output.outputs[0].token_ids) for output in outputs]
        for watch, ids in zip(on_token or (), rows, strict=False):
            watch(ids)
        return [self._answer(ids, decoding.max_new_tokens) for ids in rows]

    def _sampling(self, seed: int, decoding: Decoding) -> Any:
        drawn = {"temperature": 0.0} if decoding.greedy else {
            "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": self.top_k, "seed": seed,
        }  # fmt: skip
        return self._vllm.SamplingParams(
            **drawn,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=[
                *self.processor.eos_ids,
                *(stop[0] for stop in self.processor.stop_sequences if len(stop) == 1),
            ],
            detokenize=False,
        )

    def _answer(self, ids: list[int], most: int | None = None) -> Answer:
        """Stop pairs that vLLM does not know of are cut here: what follows them is never part of an answer."""
        finished = len(ids) < (most or self.decoding.max_new_tokens)  # a special stop token is not among the ids
        ids, stopped = self.processor.cut(ids)
        return Answer(text=self.processor.decode(ids), tokens=len(ids), stopped=stopped or finished)
