"""The interface of text LLM clients: conversations in, replies out, each as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from affectgpt.core.errors import AffectGPTError, CheckpointError
from affectgpt.core.registry import Registry

# A message as OpenAI writes it: {"role": "user", "content": "…" or a list of parts}; see messages.py for the parts.
Message: TypeAlias = dict[str, Any]
Conversation: TypeAlias = Sequence[Message]

CLIENTS = Registry("text LLM client", "affectgpt.textllm")
# They tell two models of one folder name apart; the weights themselves are too large to read for that.
_IDENTIFYING = ("config.json", "model.safetensors.index.json", "tokenizer_config.json")


class TextLLMError(AffectGPTError):
    """A text LLM cannot be reached, refuses, or gives no usable reply."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why one conversation has no reply; ``again``: asking another time may help."""

    reason: str
    again: bool


class ConversationsFailedError(TextLLMError):
    """Some conversations failed for good; ``failed``: their indices and why. What is in neither was not asked."""

    def __init__(self, message: str, failed: dict[int, Unanswered]) -> None:
        super().__init__(message)
        self.failed = failed


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of replies. The defaults are those of label extraction as published. There is no top-k."""

    temperature: float = 0.7  # 0: always the most likely token
    top_p: float = 0.8
    repetition_penalty: float = 1.05  # over prompt and reply; 1: none
    max_tokens: int = 512  # of the reply
    seed: int = 42

    def __post_init__(self) -> None:
        bounds = {
            "temperature": 0 <= self.temperature <= 2,
            "top_p": 0 < self.top_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty <= 2,
            "max_tokens": self.max_tokens >= 1,
        }
        for name, good in bounds.items():
            if not good:
                raise TextLLMError(
                    f"sampling: {name} is {getattr(self, name)}; temperature must be in [0, 2], top_p in (0, 1], "
                    "repetition_penalty in (0, 2], max_tokens is 1 or more"
                )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a file that says how it was made."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TextReply:
    """The text of one reply; ``truncated`` when it ended at ``max_tokens`` and not by itself.

    What it cost, where the client knows: tokens of prompt and reply, seconds of the request that brought it.
    """

    text: str
    truncated: bool = False
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    seconds: float | None = None


OnResult: TypeAlias = Callable[[int, TextReply], None]


class TextLLM(ABC):
    """A client. Constructing one loads and contacts nothing; the first ``chat_many`` does."""

    name: str  # as users write it

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what decides the replies besides prompt and sampling (client, model), for comparing two runs."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Return what is worth recording but may differ between equal runs: folders, addresses, versions."""

    @abstractmethod
    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply per conversation, in their order.

        ``on_result(index, reply)`` is called in the calling thread as each is finished, in any order; what it was
        given is not lost when a later conversation fails. The reply to a conversation depends on it and on
        ``sampling`` alone, not on its neighbours, as far as the client can see to that (see ``seed_for``).

        Raises TextLLMError.
        """

    def close(self) -> None:  # noqa: B027 - most clients have nothing to do
        """Free the model or the connections."""

    def __enter__(self) -> TextLLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def seed_for(conversation: Conversation, seed: int) -> int:
    """The seed of one conversation, 31 bits: equal conversations draw alike in any batch, order or resumed run.

    One seed for all would draw the same random numbers for every conversation.
    """
    text = json.dumps([seed, list(conversation)], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def open_client(name: str, **settings: Any) -> TextLLM:
    """The client called ``name`` (transformers, vllm, openai), not loaded yet. ConfigError for an unknown name."""
    return CLIENTS.get(name)(**settings)


def folder_identity(folder: str | Path) -> dict[str, Any]:
    """``model``, the folder's own name, and ``model_sha256``, a hash of its small files (None where it is absent)."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for name in _IDENTIFYING:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    known = (folder / "config.json").is_file()
    return {"model": folder.resolve().name, "model_sha256": digest.hexdigest() if known else None}


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds a language model with weights and a tokenizer; CheckpointError saying what lacks."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such model folder. Download the model there (for example Qwen2.5-7B-Instruct), "
            "or give the folder that has it"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: missing or unreadable ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{folder / 'config.json'}: has no model_type, so it is not a model's configuration")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder}: no weights in it (*.safetensors or *.bin); is the download complete?")
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{folder}: no tokenizer in it (tokenizer.json); is the download complete?")
    return folder
