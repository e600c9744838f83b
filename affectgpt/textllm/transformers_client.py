"""A language model in this process, through transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.core.errors import CheckpointError
from affectgpt.core.runtime import logger, pick_device
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
from affectgpt.textllm.messages import text_only


@CLIENTS.register("transformers")
class TransformersClient(TextLLM):
    """Batched generation with left padding through the folder's chat template. Text only.

    ``dtype``: auto is the saved one on a GPU and float32 on a CPU. Every conversation draws from its own seed, so
    ``batch_size`` decides speed and memory, not replies (up to rounding); it is halved when the GPU's memory is short.
    """

    name = "transformers"

    def __init__(self, *, model: str | Path, device: str = "auto", dtype: str = "auto", batch_size: int = 16) -> None:
        if batch_size < 1:
            raise TextLLMError(f"batch_size is {batch_size}; it should be 1 or more")
        self.folder = Path(model)
        self.batch_size = batch_size
        self._device = device
        self._dtype = dtype
        self._loaded: tuple[Any, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """The model, by its folder's name and small files."""
        return folder_identity(self.folder)

    def details(self) -> dict[str, Any]:
        """Folder, device, dtype and versions."""
        import torch
        import transformers

        return {
            "folder": str(self.folder),
            "device": self._device,
            "dtype": self._dtype,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply each; the longest prompts first, so that a batch that does not fit shows at once."""
        text_only(conversations, client=self.name)
        if not conversations:
            return []
        model, tokenizer = self._load()
        prompts = [
            tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
            for conversation in conversations
        ]
        lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        self._check_lengths(lengths, sampling, model)
        seeds = [seed_for(conversation, sampling.seed) for conversation in conversations]
        order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
        replies: dict[int, TextReply] = {}
        for batch in self._batches(order):
            made = self._generate_or_halve(batch, prompts, seeds, sampling)
            for index, reply in made:
                replies[index] = reply
                if on_result:
                    on_result(index, reply)
        return [replies[index] for index in range(len(prompts))]

    def _batches(self, order: list[int]) -> Iterator[list[int]]:
        start = 0
        while start < len(order):
            batch = order[start : start + self.batch_size]
            start += len(batch)
            yield batch

    def _check_lengths(self, lengths: list[int], sampling: Sampling, model: Any) -> None:
        limit = getattr(model.config, "max_position_embeddings", None)
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if limit and lengths[longest] + sampling.max_tokens > limit:
            raise TextLLMError(
                f"conversation {longest}: {lengths[longest]} tokens and {sampling.max_tokens} for the reply are more "
                f"than the {limit} of {self.folder.name}; shorten the text or lower max_tokens"
            )

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from safetensors import SafetensorError
            from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

            folder = check_folder(self.folder)
            device = pick_device(self._device)
            dtype = torch_dtype(self._dtype, device)
            # Without them transformers looks on the network, or asks on the terminal whether to run the folder's code.
            own = {"trust_remote_code": False, "local_files_only": True}
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **own)
                model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype, **own)
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                raise CheckpointError(f"{folder}: cannot be loaded as a language model ({error})") from error
            if not tokenizer.chat_template:
                raise CheckpointError(f"{folder}: its tokenizer has no chat template; give an instruction-tuned model")
            ends = end_ids_of(model, tokenizer)
            if tokenizer.pad_token_id is None:
                if not ends:
                    raise CheckpointError(f"{folder}: neither its tokenizer nor its configuration names an end token")
                tokenizer.pad_token_id = ends[0]
            # The folder's own sampling (top-k 20, a repetition penalty …) must not act beside ours.
            model.generation_config = GenerationConfig(
                eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
            )
            self._loaded = model.to(device).eval(), tokenizer
        return self._loaded

    def _generate_or_halve(
        self,
        batch: list[int],
        prompts: Sequence[Any] | Mapping[int, Any],
        seeds: Sequence[int] | Mapping[int, int],
        sampling: Sampling,
    ) -> list[tuple[int, TextReply]]:
        """Replies to the prompts of these indices."""
        import torch

        try:
            return list(zip(batch, self._generate([prompts[i] for i in batch], [seeds[i] for i in batch], sampling),
                            strict=True))  # fmt: skip
        except torch.cuda.OutOfMemoryError as error:
            if len(batch) == 1:
                raise TextLLMError(
                    f"conversation {batch[0]}: the GPU's memory does not hold {self.folder.name} and this one "
                    "conversation; lower max_tokens, use a smaller model, or a server (openai client)"
                ) from error
        half = (len(batch) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        logger.warning("batches of %d do not fit the GPU's memory, going on with %d", len(batch), half)
        torch.cuda.empty_cache()
        parts = (batch[:half], batch[half:])
        return [pair for part in parts for pair in self._generate_or_halve(part, prompts, seeds, sampling)]

    def _generate(self, prompts: list[str], seeds: list[int], sampling: Sampling) -> list[TextReply]:
        import torch
        from transformers import LogitsProcessorList

        from affectgpt.textllm.sampler import SeededSampler

        model, tokenizer = self._load()
        # The chat template has written the special tokens already.
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        sampler = SeededSampler(sampling, seeds=seeds, prompt_mask=inputs["attention_mask"])
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],  # [B, L]
                attention_mask=inputs["attention_mask"],
                max_new_tokens=sampling.max_tokens,
                logits_processor=LogitsProcessorList([sampler]),
            )  # [B, L + new]
        ends = set(model.generation_config.eos_token_id)
        replies = []
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:stop], skip_special_tokens=True)
            replies.append(TextReply(text=text, truncated=stop is None))
        return replies

    def close(self) -> None:
        """Drop the model, so that its memory can be used again."""
        self._loaded = None


def torch_dtype(name: str, device: Any) -> Any:
    """The dtype to load a model in: ``auto`` is the saved one on a GPU, float32 on a CPU. Raises TextLLMError."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else name
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise TextLLMError(f"dtype {name!r} is none of auto, float32, float16, bfloat16")
    return getattr(torch, name)


def end_ids_of(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a reply: those of the generation config, else of the config, and the tokenizer's."""
    ends = _as_list(model.generation_config.eos_token_id) or _as_list(getattr(model.config, "eos_token_id", None))
    return sorted({*ends, *_as_list(tokenizer.eos_token_id)})


def _as_list(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
