"""A language model in this process, through vLLM: the fast way on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


@CLIENTS.register("vllm")
class VLLMClient(TextLLM):
    """vLLM's offline engine. ``engine`` settings (``max_model_len``, ``limit_mm_per_prompt`` …) go to ``vllm.LLM``.

    Messages with images or audio go through, for a model that takes them.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        model: str | Path,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        **engine: Any,
    ) -> None:
        self.folder = Path(model)
        self._engine = {
            "dtype": dtype,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            **engine,
        }
        self._llm: Any = None

    def identity(self) -> dict[str, Any]:
        """The model, by its folder's name and small files."""
        return folder_identity(self.folder)

    def details(self) -> dict[str, Any]:
        """Folder, engine settings and version."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("vllm")
        except PackageNotFoundError:
            found = "not installed"
        return {"folder": str(self.folder), "engine": self._engine, "vllm": found}

    def _load(self) -> Any:
        if self._llm is None:
            check_folder(self.folder)
            try:
                from vllm import LLM
            except ImportError as error:
                raise TextLLMError(
                    f"vLLM cannot be imported ({error}). On a GPU machine: pip install 'affectgpt[vllm]'; "
                    "elsewhere use transformers, or openai with a server"
                ) from error
            self._llm = LLM(model=str(self.folder), **self._engine)
        return self._llm

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply each, in calls of 512 conversations."""
        if not conversations:
            return []
        llm = self._load()
        from vllm import SamplingParams

        replies: list[TextReply] = []
        for start in range(0, len(conversations), _CHUNK):
            chunk = [list(conversation) for conversation in conversations[start : start + _CHUNK]]
            params = [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    repetition_penalty=sampling.repetition_penalty,
                    max_tokens=sampling.max_tokens,  # vLLM's own default is 16
                    seed=seed_for(conversation, sampling.seed),
                )
                for conversation in chunk
            ]
            for output in llm.chat(chunk, sampling_params=params, use_tqdm=False):
                best = output.outputs[0]
                reply = TextReply(text=best.text, truncated=best.finish_reason == "length")
                replies.append(reply)
                if on_result:
                    on_result(len(replies) - 1, reply)
        return replies

    def close(self) -> None:
        """Drop the engine."""
        self._llm = None
