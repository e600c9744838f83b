"""Decoding with vLLM: our connectors make the prompt's embeddings, vLLM continues them.

Where vLLM serves LoRA beside prompt embeddings (``_ADAPTED``), it reads the LLM's own folder once, and a checkpoint is
an adapter that is handed to it in milliseconds. Other LLMs' LoRA is merged into a folder that is there while vLLM reads
it: the models that name ``embedding_modules`` (Llama, Qwen3) crash under load with LoRA and prompt embeddings together
(vLLM issue 51122); Qwen2's names none. Rows are drawn by vLLM's sampler, so sampled answers are other than those of
``transformers``; greedy answers in float32 are the same.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.files import locked
from affectgpt.core.local_vllm import LocalVLLM, import_vllm, memory_settings
from affectgpt.core.types import Batch
from affectgpt.inference.engines.base import ENGINES, Answer, Decoding, OnToken
from affectgpt.inference.memory import autocast, autocast_dtype, cache_bytes
from affectgpt.inference.sampling import top_k_of
from affectgpt.modeling.build import load_checkpoint
from affectgpt.modeling.lora import drop_base_weights, has_lora, lora_state, write_adapter, write_merged
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.processor import AffectGPTProcessor
from affectgpt.processing.prompt import GENERATION_LENGTH

_ADAPTED = ("qwen2",)  # model types of transformers
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
_SPARE = 3 << 30  # bytes of the GPU that encoders and connectors work in
_ROWS = 64  # of full length that keys and values are kept for on a CPU; most rows are far shorter


@ENGINES.register("vllm")
class VLLMEngine:
    """The LLM lives in vLLM; encoders, connectors and the embedding matrix stay on the device."""

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
            self._vllm = import_vllm()
        except ImportError as error:
            raise ConfigError(f"inference.engine=vllm needs vLLM: pip install 'affectgpt[vllm]' ({error})") from None
        if llm_folder is None:
            raise ConfigError("inference.engine=vllm needs the LLM's folder, which vLLM reads")
        self.model = model.eval()
        self.device = model.device
        if self.device.type == "cuda" and self.device.index not in (None, 0):
            raise ConfigError(
                f"inference.engine=vllm runs on the first GPU it sees, not on {self.device}: set CUDA_VISIBLE_DEVICES "
                "to the one it shall have (with --shard i/n for a process on each of several)"
            )
        self.processor = processor
        self.decoding = decoding
        self.llm_folder = llm_folder
        self.tensor_parallel_size = tensor_parallel_size
        self.top_k = top_k_of(decoding.top_k, defaults)
        self._stops = {(eos,) for eos in processor.eos_ids} | {tuple(stop) for stop in processor.stop_sequences}
        kind = getattr(getattr(model.llm, "config", None), "model_type", None)
        self._lora = has_lora(model.llm)
        self._merges = self._lora and kind not in _ADAPTED
        if self._merges:
            model.llm.to("cpu")  # to merge from; vLLM needs the device's memory
            model.llm.get_input_embeddings().to(self.device)
        else:
            drop_base_weights(model.llm)
        self._local = LocalVLLM()
        self._loads = 0  # vLLM tells adapters apart by number
        self._adapter: Any = None
        self._requests = 0

    def describe(self) -> dict[str, Any]:
        """The decoding in force."""
        return {"engine": f"vllm {self._vllm.__version__}", **asdict(self.decoding), "top_k": self.top_k}

    def load(self, checkpoint: Path) -> Any:
        """Lay a checkpoint over the model and hand its LoRA to vLLM."""
        report = load_checkpoint(self.model, checkpoint, complete=True)
        self._adapter = None
        if self._merges:
            self._local.stop()
        self._ready()
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
        """An answer per row. ``on_token`` gets the row's new ids after each; where it gives True, the row ends."""
        batch = batch.to(self.device)
        embedding = self.model.llm.get_input_embeddings().weight
        with autocast(self.device, autocast_dtype(embedding.dtype)):
            embeds = self.model.embed(**batch).to(embedding.dtype)  # [B, L, D]
        if embeds.shape[2] != embedding.shape[1] or not torch.isfinite(embeds).all():  # vLLM would end with it
            raise DataError(f"batch of sample {batch.names[0]!r}: prompt embeddings are not finite [tokens, hidden]")
        prompts = [row[mask].cpu() for row, mask in zip(embeds, batch.attention_mask, strict=True)]
        prompts = [prompt for prompt in prompts for _ in range(len(seeds) // len(prompts))]  # answers of each
        del embeds
        llm = self._ready()
        with self._local.at_work(f"answering sample {batch.names[0]!r} and {len(prompts) - 1} more"):
            rows = self._rows(
                llm.llm_engine, prompts, [self._sampling(seed, decoding or self.decoding) for seed in seeds], on_token
            )
        return [self._answer(ids, ended=ended) for ids, ended in rows]

    def _rows(
        self, engine: Any, prompts: Sequence[torch.Tensor], params: Sequence[Any], on_token: Sequence[OnToken] | None
    ) -> list[tuple[list[int], bool]]:
        """New ids of each row, and whether it ended by a stop. Stops of two tokens, which vLLM does not know, end it
        as soon as they are seen."""
        places: dict[str, int] = {}
        for row, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
            name, self._requests = str(self._requests), self._requests + 1
            engine.add_request(name, {"prompt_embeds": prompt}, wanted, lora_request=self._adapter)
            places[name] = row
        ids: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        try:
            while places:
                if not engine.has_unfinished_requests():
                    raise RuntimeError(f"{len(places)} requests are gone")
                for output in engine.step():
                    place = places.get(output.request_id)
                    if place is None:  # ended here, while vLLM worked at its next token
                        continue
                    new, done = ids[place], output.finished
                    for token in output.outputs[0].token_ids[len(new) :]:
                        new.append(token)
                        ended[place] = (token,) in self._stops or tuple(new[-2:]) in self._stops
                        enough = on_token is not None and on_token[place](list(new))
                        if ended[place] or enough:
                            done = True
                            break
                    if done:
                        del places[output.request_id]
                        if not output.finished:
                            engine.abort_request([output.request_id])
        finally:
            if places:  # whoever waits for a row has given up
                engine.abort_request(list(places))
        return list(zip(ids, ended, strict=True))

    def _sampling(self, seed: int, decoding: Decoding) -> Any:
        drawn = {"temperature": 0.0} if decoding.greedy else {
            "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": self.top_k, "seed": seed,
        }  # fmt: skip
        return self._vllm.SamplingParams(
            **drawn,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=sorted(stop[0] for stop in self._stops if len(stop) == 1),
            ignore_eos=True,  # of the folder's configuration: the processor's end an answer
            detokenize=False,
        )

    def _answer(self, ids: list[int], *, ended: bool) -> Answer:
        return Answer(text=self.processor.decode(ids), tokens=len(ids), stopped=ended, ids=tuple(ids))

    def _ready(self) -> Any:
        """vLLM with the checkpoint in force: as it is, or started, again where it had failed."""
        llm = self._local.llm
        if llm is None:
            self._adapter = None
            if self._merges:
                with _scratch() as place:
                    llm = self._start(write_merged(self.model.llm, llm_folder=self.llm_folder, target=place / "llm"))
            else:
                llm = self._start(self.llm_folder)
        if self._lora and not self._merges and self._adapter is None:
            self._adapter = self._add_adapter(llm)
        return llm

    def _start(self, folder: Path) -> Any:
        dtype = str(self.model.llm.get_input_embeddings().weight.dtype).removeprefix("torch.")
        row = cache_bytes(self.model.llm, tokens=GENERATION_LENGTH + 1)
        adapted = {}
        if self._lora and not self._merges:
            rank = self.model.config.lora_r
            room = next((number for number in _RANKS if number >= rank), None)
            if room is None:
                raise ConfigError(f"model.lora_r: {rank} is more than vLLM takes ({_RANKS[-1]}); use transformers")
            adapted = {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
        return self._local.start(
            model=str(folder),
            dtype=dtype,
            tensor_parallel_size=self.tensor_parallel_size,
            max_model_len=GENERATION_LENGTH + 1,
            enable_prompt_embeds=True,
            enable_prefix_caching=False,  # no two prompts begin alike: media come first
            generation_config="vllm",  # the folder's settings are not the published ones
            **memory_settings(folder, dtype=dtype, wanted=_ROWS * row, least=row, spare=_SPARE),
            **adapted,
        )

    def _add_adapter(self, llm: Any) -> Any:
        from vllm.lora.request import LoRARequest

        self._loads += 1
        lora = lora_state(self.model.llm)
        with _scratch() as place, self._local.at_work("taking a checkpoint's LoRA"):
            write_adapter(place / "adapter", lora, llm=self.llm_folder)
            request = LoRARequest(f"checkpoint-{self._loads}", self._loads, str(place / "adapter"))
            llm.llm_engine.add_lora(request)
        return request


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder below the system's temporary one, for what vLLM reads only once; gone afterwards.

    Its name is fixed (vLLM keeps its compiled code by the model's path), and another number is taken while another
    process has it: what a killed process has left there is cleared away by the next one that uses it.
    """
    user = os.getuid()
    home = Path(tempfile.gettempdir()) / f"affectgpt-vllm-{user}"
    for number in itertools.count():
        home.mkdir(exist_ok=True, mode=0o700)
        if home.is_symlink() or home.stat().st_uid != user:
            raise ConfigError(f"{home}: is not this user's folder; remove it, or set TMPDIR to a folder of your own")
        place = home / str(number)
        with ExitStack() as stack:
            try:
                place.mkdir(exist_ok=True)
                known = place.stat().st_ino
                if not stack.enter_context(locked(place, wait=False)) or place.stat().st_ino != known:
                    continue
            except FileNotFoundError:  # its owner has removed it just now
                continue
            try:
                for left in place.iterdir():
                    shutil.rmtree(left)
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
                with suppress(OSError):  # where others have folders in it
                    home.rmdir()
            return
