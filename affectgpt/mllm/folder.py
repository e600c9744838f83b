"""A multimodal LLM in this process, through transformers' AutoProcessor and its multimodal auto class."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from affectgpt.core.errors import CheckpointError, DataError
from affectgpt.core.runtime import pick_device
from affectgpt.core.types import SAMPLE_RATE
from affectgpt.textllm.base import (
    Conversation,
    ConversationsFailedError,
    OnResult,
    Sampling,
    TextLLMError,
    TextReply,
    Unanswered,
    check_folder,
    seed_for,
)
from affectgpt.textllm.transformers_client import TransformersClient, end_ids_of, torch_dtype

_AUTO = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM")
_REMOTE_AUTO = (*_AUTO, "AutoModelForCausalLM", "AutoModel")  # as the code of a model's own folder may register itself
_FAILED_IN_A_ROW = 8
_SEEN = ("image", "video")
_READERS = 4  # threads that wait for decoders


class MultimodalClient(TransformersClient):
    """Batched generation from conversations whose parts hold arrays (``clip.folder_conversation``).

    Conversations may be lazy: those of the next batch are built while the model works on this one. A conversation that
    cannot be built or that the processor refuses fails alone. ``trust_remote_code``: run the folder's own code.
    """

    name = "transformers-multimodal"

    def __init__(
        self,
        *,
        model: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 4,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model=model, device=device, dtype=dtype, batch_size=batch_size)
        self._trust = trust_remote_code

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply each, in their order, batch by batch. See ``TextLLM.chat_many``."""
        if not conversations:
            return []
        self._load()
        replies: dict[int, TextReply] = {}
        failed: dict[int, Unanswered] = {}
        in_a_row = 0
        for built in self._built(conversations):
            ready = {index: made for index, made in built.items() if not isinstance(made, DataError)}
            for index, made in built.items():
                if isinstance(made, DataError):
                    failed[index] = Unanswered(str(made), again=True)
            for index, answer in self._answer(ready, sampling):
                if isinstance(answer, Unanswered):
                    failed[index] = answer
                    in_a_row += 1
                else:
                    replies[index] = answer
                    in_a_row = 0
                    if on_result:
                        on_result(index, answer)
            if in_a_row >= _FAILED_IN_A_ROW:
                break
        if failed:
            first = "; ".join(f"conversation {index}: {failed[index].reason}" for index in sorted(failed)[:3])
            raise ConversationsFailedError(
                f"{self.folder}: {len(failed)} of {len(conversations)} conversations have no reply. First: {first}",
                failed,
            )
        return [replies[index] for index in range(len(conversations))]

    def _built(self, conversations: Sequence[Conversation]) -> Iterator[dict[int, Conversation | DataError]]:
        """Batches of index → conversation, or why there is none, each built while the one before is answered."""

        def build(index: int) -> Conversation | DataError:
            try:
                return conversations[index]
            except DataError as error:
                return error

        with ThreadPoolExecutor(_READERS) as pool:
            ahead: dict[int, Future[Conversation | DataError]] = {}
            start = 0
            while start < len(conversations):
                size = self.batch_size
                for index in range(start, min(start + 2 * size, len(conversations))):
                    if index not in ahead:
                        ahead[index] = pool.submit(build, index)
                batch = range(start, min(start + size, len(conversations)))
                start = batch.stop
                yield {index: ahead.pop(index).result() for index in batch}

    def _answer(
        self, conversations: Mapping[int, Conversation], sampling: Sampling
    ) -> list[tuple[int, TextReply | Unanswered]]:
        """Replies to a batch; where the processor or model refuses it, to each conversation by itself."""
        if not conversations:
            return []
        seeds = {index: seed_for(fingerprint(made), sampling.seed) for index, made in conversations.items()}
        try:
            return list(self._generate_or_halve(list(conversations), conversations, seeds, sampling))
        except (TextLLMError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            if _gpu_is_lost(error):
                raise
            if len(conversations) == 1:
                (index,) = conversations
                lines = str(error).strip().splitlines() or [""]
                return [(index, Unanswered(f"{type(error).__name__}: {lines[0][:300]}", again=False))]
        return [pair for index, made in conversations.items() for pair in self._answer({index: made}, sampling)]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from safetensors import SafetensorError
            from transformers import AutoConfig, AutoProcessor, GenerationConfig

            folder = check_folder(self.folder)
            device = pick_device(self._device)
            dtype = torch_dtype(self._dtype, device)
            trust = {"trust_remote_code": self._trust, "local_files_only": True}
            try:
                config = AutoConfig.from_pretrained(folder, **trust)
                processor = AutoProcessor.from_pretrained(folder, **trust)
                model = _auto_class(config, folder).from_pretrained(folder, torch_dtype=dtype, **trust)
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
                raise CheckpointError(f"{folder}: cannot be loaded as a multimodal model ({error})") from error
            tokenizer = getattr(processor, "tokenizer", None)
            if tokenizer is None:
                raise CheckpointError(
                    f"{folder}: its processor takes text only; give the folder of a multimodal model "
                    "(with preprocessor_config.json or processor_config.json)"
                )
            if not getattr(processor, "chat_template", None):
                raise CheckpointError(f"{folder}: its processor has no chat template; give an instruction-tuned model")
            tokenizer.padding_side = "left"
            ends = end_ids_of(model, tokenizer)
            if tokenizer.pad_token_id is None:
                if not ends:
                    raise CheckpointError(f"{folder}: neither its tokenizer nor its configuration names an end token")
                tokenizer.pad_token_id = ends[0]
            # The folder's own sampling must not act beside ours.
            model.generation_config = GenerationConfig(
                eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False
            )
            self._loaded = model.to(device).eval(), processor
        return self._loaded

    def _generate(self, prompts: list[Any], seeds: list[int], sampling: Sampling) -> list[TextReply]:
        import torch
        from transformers import LogitsProcessorList

        from affectgpt.textllm.sampler import SeededSampler

        model, processor = self._load()
        inputs = prepare(processor, prompts)
        length = inputs["input_ids"].shape[1]
        text_config = model.config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None)
        if limit and length + sampling.max_tokens > limit:
            raise TextLLMError(
                f"{length} tokens and {sampling.max_tokens} for the reply are more than the {limit} of "
                f"{self.folder.name}; send fewer or smaller frames, or lower --max-tokens"
            )
        inputs = inputs.to(model.device, model.dtype)  # numbers alone get the dtype, ids do not
        sampler = SeededSampler(sampling, seeds=seeds, prompt_mask=inputs["attention_mask"])
        accepted = inspect.signature(model.generate).parameters
        more = {"return_audio": False, "thinker_max_new_tokens": sampling.max_tokens}  # of models that speak, too
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=sampling.max_tokens,
                logits_processor=LogitsProcessorList([sampler]),
                **{key: value for key, value in more.items() if key in accepted},
            )  # [B, L + new]
        rows = output[0] if isinstance(output, tuple) else output
        ends = set(model.generation_config.eos_token_id)
        replies = []
        start = 0 if model.config.is_encoder_decoder else length
        for row, mask in zip(rows[:, start:].tolist(), inputs["attention_mask"], strict=True):
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            made = row[:stop]
            text = processor.tokenizer.decode(made, skip_special_tokens=True)
            replies.append(
                TextReply(text=text, truncated=stop is None, prompt_tokens=int(mask.sum()), reply_tokens=len(made))
            )
        return replies


def prepare(processor: Any, conversations: Sequence[Conversation]) -> Any:
    """A batch of conversations as the model's inputs, padded on the left: ``input_ids`` ``[B, L]`` and media.

    Frames are taken as they are: they were chosen before. Their pace goes along as the video's metadata. The chat
    template sees where media stand, not the media: that of transformers 4 takes no arrays.
    """
    parts = [[part for message in conversation for part in message["content"]] for conversation in conversations]
    texts = [
        processor.apply_chat_template(
            [{**message, "content": [_shown(part) for part in message["content"]]} for message in conversation],
            add_generation_prompt=True, tokenize=False,
        )
        for conversation in conversations
    ]  # fmt: skip
    start = processor.tokenizer.bos_token
    settings: dict[str, Any] = {"text_kwargs": {"padding": True, "padding_side": "left"}}
    if start is not None and texts[0].startswith(start):
        settings["text_kwargs"]["add_special_tokens"] = False  # the template has written it already
    pictures, videos = ([[p[kind] for p in of_one if p["type"] == kind] for of_one in parts] for kind in _SEEN)
    if any(pictures):
        settings["images"] = pictures
    if any(videos):
        settings["videos"] = videos
        settings["videos_kwargs"] = {
            "do_sample_frames": False,
            "video_metadata": [
                {"total_num_frames": len(p["video"]), "fps": p["fps"], "frames_indices": list(range(len(p["video"])))}
                for of_one in parts for p in of_one if p["type"] == "video"
            ],
        }  # fmt: skip
    if sounds := [part["audio"] for of_one in parts for part in of_one if part["type"] == "audio"]:
        settings["audio"] = sounds  # flat: processors of sound know no other form
        settings["audio_kwargs"] = {"sampling_rate": SAMPLE_RATE}
    return processor(text=texts, return_tensors="pt", **settings)


def _shown(part: dict[str, Any]) -> dict[str, Any]:
    """A part as the chat template sees it."""
    return part if part["type"] == "text" else {"type": part["type"], part["type"]: "clip"}


def fingerprint(conversation: Conversation) -> Conversation:
    """A conversation with a hash in the place of every array, which JSON can hold."""

    def plain(value: Any) -> Any:
        if not hasattr(value, "tobytes"):
            return value
        return f"sha256:{hashlib.sha256(value.tobytes()).hexdigest()} {value.shape} {value.dtype}"

    return [
        {**message, "content": [{key: plain(value) for key, value in part.items()} for part in message["content"]]}
        for message in conversation
    ]


def _auto_class(config: Any, folder: Path) -> Any:
    import transformers

    remote = getattr(config, "auto_map", None) or {}
    for name in _REMOTE_AUTO:
        auto = getattr(transformers, name, None)
        if auto is not None and (name in remote or (name in _AUTO and type(config) in auto._model_mapping)):
            return auto
    raise CheckpointError(
        f"{folder}: {config.model_type} is not a multimodal LLM that transformers {transformers.__version__} knows; "
        "serve it with another program and give --base-url"
    )


def _gpu_is_lost(error: Exception) -> bool:
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
