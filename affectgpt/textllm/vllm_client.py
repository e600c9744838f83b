"""A language model in this process, through vLLM: the fast way on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.local_vllm import EngineFailedError, LocalVLLM, import_vllm, memory_settings, stored_dtype
from affectgpt.core.provenance import installed_version
from affectgpt.textllm.base import (
    CLIENTS,
    Conversation,
    OnResult,
    Sampling,
    TextLLM,
    TextLLMError,
    TextReply,
    check_folder,
    folder_identity,
    seed_for,
)

# Conversations per call: vLLM returns when all are finished, and what it returned is kept when a later call is killed.
_CHUNK = 512
_CACHE = 4 << 30  # bytes for keys and values on a CPU, where they fit
_SPARE = 1 << 29  # bytes of a GPU that are left free


@CLIENTS.register("vllm")
class VLLMClient(TextLLM):
    """vLLM's offline engine, in this process. ``engine`` settings (``max_model_len``, ``limit_mm_per_prompt`` …) go to
    ``vllm.LLM``.

    ``dtype``: auto is the folder's, which vLLM halves on a GPU where it is float32. ``gpu_memory_utilization``: what is
    free when the first reply is asked for. Messages with images or audio go through, for a model that takes them.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        model: str | Path,
        dtype: str = "auto",
        gpu_memory_utilization: float | None = None,
        tensor_parallel_size: int = 1,
        **engine: Any,
    ) -> None:
        self.folder = Path(model)
        self._engine = {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size, **engine}
        if gpu_memory_utilization is not None:
            self._engine["gpu_memory_utilization"] = gpu_memory_utilization
        self._local = LocalVLLM()

    def identity(self) -> dict[str, Any]:
        """The model, by its folder's name and small files."""
        return folder_identity(self.folder)

    def details(self) -> dict[str, Any]:
        """Folder, engine settings and version."""
        return {
            "folder": str(self.folder),
            "engine": self._engine,
            "vllm": installed_version("vllm") or "not installed",
        }

    def _load(self) -> Any:
        if self._local.llm is not None:
            return self._local.llm
        check_folder(self.folder)
        try:
            import_vllm()
        except ImportError as error:
            raise TextLLMError(
                f"vLLM cannot be imported ({error}). On a GPU machine: pip install 'affectgpt[vllm]'; "
                "elsewhere use transformers, or openai with a server"
            ) from error
        import torch

        settings = dict(self._engine)
        if settings["dtype"] == "auto" and not torch.cuda.is_available() and stored_dtype(self.folder) == "float32":
            settings["dtype"] = "float32"  # vLLM would round the weights
        if not {"gpu_memory_utilization", "kv_cache_memory_bytes"} & settings.keys():
            settings |= memory_settings(self.folder, dtype=settings["dtype"], wanted=_CACHE, spare=_SPARE)
        return self._local.start(model=str(self.folder), **settings)

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply each, in calls of 512 conversations."""
        if not conversations:
            return []
        replies: list[TextReply] = []
        try:
            llm = self._load()
            for start in range(0, len(conversations), _CHUNK):
                chunk = [list(conversation) for conversation in conversations[start : start + _CHUNK]]
                with self._local.at_work(f"replying to conversations {start + 1} to {start + len(chunk)}"):
                    outputs = llm.chat(chunk, sampling_params=self._params(chunk, sampling), use_tqdm=False)
                for output in outputs:
                    best = output.outputs[0]
                    reply = TextReply(text=best.text, truncated=best.finish_reason == "length")
                    replies.append(reply)
                    if on_result:
                        on_result(len(replies) - 1, reply)
        except EngineFailedError as error:
            raise TextLLMError(f"{error}. The replies so far are kept; the next call starts it again") from error
        return replies

    def _params(self, chunk: Sequence[Conversation], sampling: Sampling) -> list[Any]:
        return [
            import_vllm().SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=sampling.max_tokens,  # vLLM's own default is 16
                seed=seed_for(conversation, sampling.seed),
            )
            for conversation in chunk
        ]

    def close(self) -> None:
        """Drop the engine."""
        self._local.stop()
