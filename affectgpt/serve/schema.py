"""What ``POST /v1/chat/completions`` takes and gives: OpenAI's form, and the fields that are ours."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

EXTENSION = "affectgpt"  # the field of a message that holds labels, groups, description and notes
MAX_TEXT = 10_000  # characters of a question or subtitle
_MAX_URL = 1 << 31  # the body's own limit comes first
# Fields of OpenAI's that change nothing here.
_WITHOUT_EFFECT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
    "prompt_cache_retention",
}  # fmt: skip
_AS_ALWAYS: tuple[Any, ...] = (None, False, 0, [], {}, {"type": "text"}, "none", "auto", ["text"])


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Url(BaseModel):
    url: str = Field(max_length=_MAX_URL)


class _InputAudio(_Strict):
    data: str = Field(max_length=_MAX_URL)
    format: str = Field(default="wav", max_length=16)


class TextPart(_Strict):
    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class VideoPart(_Strict):
    type: Literal["video_url"]
    video_url: _Url


class AudioPart(_Strict):
    type: Literal["audio_url"]
    audio_url: _Url


class InputAudioPart(_Strict):
    type: Literal["input_audio"]
    input_audio: _InputAudio


_TAKEN = "a question is a text, or a list of parts of type text, video_url, audio_url and input_audio"
Part = Annotated[TextPart | VideoPart | AudioPart | InputAudioPart, Field(discriminator="type")]


class Message(BaseModel):
    """A message; the model answers one question about one clip, so one user message is all there may be."""

    role: str = Field(max_length=32)
    content: Annotated[str, Field(max_length=MAX_TEXT)] | Annotated[list[Part], Field(min_length=1, max_length=16)]

    @field_validator("content", mode="before")
    @classmethod
    def _name_parts(cls, value: Any) -> Any:
        """Refuse other parts by number and type; a union's own error names neither."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise ValueError(f"found {_kind_of(value)}; {_TAKEN}")
        for number, part in enumerate(value[:17]):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("text", "video_url", "audio_url", "input_audio"):
                continue
            if not isinstance(part, dict):
                found = _kind_of(part)
            else:
                found = f"type {kind[:32]!r}" if isinstance(kind, str) else "no type"
            raise ValueError(f"part {number} has {found}; {_TAKEN}")
        return value


def _kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    words = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a bare string"}
    return words.get(type(value), "an object" if isinstance(value, dict) else "a list")


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """A request. ``subtitle``, ``person`` and ``describe`` are ours."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    subtitle: str | None = Field(default=None, max_length=MAX_TEXT)
    person: str | int | None = None
    describe: bool = False

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name not in _WITHOUT_EFFECT and value not in _AS_ALWAYS:
                raise ValueError(f"{name[:64]}: this server does not support it")
        roles = [message.role[:32] for message in self.messages]
        if roles != ["user"]:
            raise ValueError(
                f"messages: expected one user message, found {', '.join(roles)}. The model has one prompt and no "
                "memory: put the question into the user message"
            )
        parts = [part.type for part in self.parts]
        for kinds in (("text",), ("video_url",), ("audio_url", "input_audio")):
            if sum(part in kinds for part in parts) > 1:
                raise ValueError(
                    f"messages: more than one part of type {' or '.join(kinds)}; a question is about one clip"
                )
        return self

    @property
    def parts(self) -> list[Any]:
        """The parts of the message; a plain text is one."""
        content = self.messages[0].content
        return [TextPart(type="text", text=content)] if isinstance(content, str) else content

    @property
    def question(self) -> str | None:
        """The text of the message; None where there is none, and labels are asked for."""
        return next((part.text.strip() or None for part in self.parts if part.type == "text"), None)

    @property
    def video_url(self) -> str | None:
        return next((part.video_url.url for part in self.parts if part.type == "video_url"), None)

    @property
    def audio_url(self) -> str | None:
        """The sound as a URL; ``input_audio`` as a data URL."""
        for part in self.parts:
            if part.type == "audio_url":
                return part.audio_url.url
            if part.type == "input_audio":
                return f"data:audio/{part.input_audio.format};base64,{part.input_audio.data}"
        return None

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def explain(error: ValidationError) -> tuple[str, str | None]:
    """The first thing that is wrong with a request, in words without what was given, and its field."""
    # The one that goes deepest: a union also says what its other branches miss.
    first = max(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda e: len(e["loc"])
    )
    # The place as one writes it, without pydantic's names for the branches of a union.
    names = [place for place in first["loc"] if isinstance(place, int) or not re.search(r"[\[-]", place)]
    field = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in names).removeprefix(".")[:200]
    message = first["msg"].removeprefix("Value error, ")[:500]
    return (f"{field}: {message}" if field else message), field or None


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def completion(
    identity: str, model: str, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int], *, fingerprint: str
) -> dict[str, Any]:
    """A whole answer."""
    return {
        "id": identity, "object": "chat.completion", "created": int(time.time()), "model": model,
        "system_fingerprint": fingerprint, "choices": list(choices), "usage": dict(usage),
    }  # fmt: skip


def chunk(
    identity: str,
    model: str,
    choices: Sequence[Mapping[str, Any]],
    *,
    created: int,
    fingerprint: str,
    usage: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A piece of a streamed answer."""
    made = {
        "id": identity, "object": "chat.completion.chunk", "created": created, "model": model,
        "system_fingerprint": fingerprint, "choices": list(choices),
    }  # fmt: skip
    return made if usage is None else {**made, "usage": dict(usage)}
