"""The HTTP API in OpenAI's form: ``/v1/chat/completions``, ``/v1/models`` and ``/health``.

The fields ``subtitle``, ``person`` and ``describe`` of a request, and ``affectgpt`` of a message, are ours.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.exceptions import HTTPException

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.files import parse_json
from affectgpt.core.runtime import logger
from affectgpt.serve.batcher import ShuttingDownError
from affectgpt.serve.media import TooLargeError
from affectgpt.serve.service import BusyError, Choice, PreparedQuestion, Question, Service

_MAX_TEXT = 10_000  # characters of a question or subtitle
# Fields of OpenAI's that change no answer.
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
    "prompt_cache_retention",
}  # fmt: skip
# Values with which any other field changes nothing either.
_NEUTRAL: tuple[Any, ...] = (None, False, 0, [], {}, {"type": "text"}, "none", "auto", ["text"])
_ACCEPTED_PARTS = "a question is a text, or a list of parts of type text, video_url, audio_url and input_audio"
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_FILE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.@+~-]+/)+[\w.@+~-]*")


_Events = asyncio.Queue[tuple[int, str | None]]  # index of a choice, its new text; None: one of its rows is answered


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Url(BaseModel):
    url: str


class _InputAudio(_Strict):
    data: str
    format: str = Field(default="wav", max_length=16)


class _Part(_Strict):
    """Part of a message; the field of its type's name holds its content."""

    type: Literal["text", "video_url", "audio_url", "input_audio"]
    text: str = Field(default="", max_length=_MAX_TEXT)
    video_url: _Url | None = None
    audio_url: _Url | None = None
    input_audio: _InputAudio | None = None

    @model_validator(mode="after")
    def _has_content(self) -> _Part:
        if self.model_fields_set != {"type", self.type} or getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} has the field {self.type} and no other")
        return self


class _Message(BaseModel):
    role: str = Field(max_length=32)
    content: list[_Part] = Field(min_length=1, max_length=16)

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        """Take a text as one part, and refuse other types of parts in words; pydantic's name no part."""
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise ValueError(f"found {_json_type(content)}; {_ACCEPTED_PARTS}")
        for number, part in enumerate(content[:17]):
            found = _json_type(part)
            if isinstance(part, dict):
                kind = part.get("type")
                if kind in ("text", "video_url", "audio_url", "input_audio"):
                    continue
                found = f"type {kind[:32]!r}" if isinstance(kind, str) else "no type"
            raise ValueError(f"part {number} has {found}; {_ACCEPTED_PARTS}")
        return content


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a bare string"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a list")


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=256)
    messages: list[_Message] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    subtitle: str | None = Field(default=None, max_length=_MAX_TEXT)
    person: str | int | None = None
    describe: bool = False

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name not in _IGNORED and value not in _NEUTRAL:
                raise ValueError(f"{name[:64]}: this server does not support it")
        roles = [message.role for message in self.messages]
        if roles != ["user"]:
            raise ValueError(
                f"messages: expected one user message, found {', '.join(roles)}. The model has one prompt and no "
                "memory: put the question into the user message"
            )
        types = [part.type for part in self.messages[0].content]
        for kinds in (("text",), ("video_url",), ("audio_url", "input_audio")):
            if sum(kind in kinds for kind in types) > 1:
                raise ValueError(
                    f"messages: more than one part of type {' or '.join(kinds)}; a question is about one clip"
                )
        return self

    def question(self) -> Question:
        """The request without OpenAI's form."""
        text, video, audio = "", None, None
        for part in self.messages[0].content:
            text = part.text or text
            if part.video_url is not None:
                video = part.video_url.url
            if part.audio_url is not None:
                audio = part.audio_url.url
            if part.input_audio is not None:
                audio = f"data:audio/{part.input_audio.format};base64,{part.input_audio.data}"
        return Question(
            video=video, audio=audio, subtitle=self.subtitle, text=text.strip() or None, person=self.person,
            describe=self.describe, n=self.n, seed=self.seed, temperature=self.temperature, top_p=self.top_p,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
        )  # fmt: skip


def build_api(service: Service) -> FastAPI:
    """The API of a service. What comes before it, and becomes of its exceptions, is in ``serve/server.py``."""
    app = FastAPI(title="AffectGPT", docs_url=None, redoc_url=None, openapi_url=None)
    model = {"id": service.model, "object": "model", "created": 0, "owned_by": "affectgpt"}

    @app.exception_handler(HTTPException)
    async def answer_in_json(_: Request, error: Exception) -> Response:
        return error_response(error)

    @app.get("/health")
    async def health() -> Response:
        state = {"status": "ok", "model": service.model, "requests": service.active}
        if service.batcher.lost is not None:
            state["status"] = "the GPU is lost; the server ends"
        return JSONResponse(state, 200 if service.batcher.lost is None else 503)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        return JSONResponse(model) if name == service.model else _unknown_model(service)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _chat(service, request)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(path: str) -> Response:  # otherwise the page, where it is mounted, answers in its own form
        raise HTTPException(405 if path == "chat/completions" else 404, "POST is expected here")

    return app


async def _chat(service: Service, request: Request) -> Response:
    """Answer one request: check it, read its media, generate. A place is held from here to the end of the answer."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form on another site can send anything else without asking
        raise HTTPException(415, "expected Content-Type: application/json")
    body = await request.body()  # which the middleware has read
    deadline = asyncio.get_running_loop().time() + service.settings.request_timeout
    with ExitStack() as held:
        held.enter_context(service.admitted())
        async with asyncio.timeout_at(deadline):
            wanted = await asyncio.to_thread(_parse, body)  # tens of megabytes: not in the event loop
            if wanted.model not in (None, service.model):
                return _unknown_model(service)
            prepared = await asyncio.wrap_future(service.read(wanted.question()))
            held.callback(prepared.cancel)
            if await request.is_disconnected():  # reading takes seconds: do not generate for nobody
                return Response(status_code=499)
            if not wanted.stream:
                service.answer(prepared)
                return await _whole_answer(service, request, prepared)
            loop, events = asyncio.get_running_loop(), _Events()

            def on_text(index: int, text: str | None) -> None:
                loop.call_soon_threadsafe(events.put_nowait, (index, text))

            def on_answer(index: int, _: Any) -> None:
                on_text(index, None)

            service.answer(prepared, on_text)
            for choice in prepared.choices:
                for row in choice.rows:
                    row.answer.add_done_callback(partial(on_answer, choice.index))
            # From here on the response holds the place, as long as it is sent.
            usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return _StreamedAnswer(_chunks(service, prepared, events, deadline, usage=usage), deadline, held.pop_all())


def _parse(body: bytes) -> ChatRequest:
    try:
        value = parse_json(body)
    except ValueError:
        raise DataError("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise DataError("the body must be a JSON object")
    return ChatRequest.model_validate(value)


async def _whole_answer(service: Service, request: Request, prepared: PreparedQuestion) -> Response:
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.create_task(disconnected())
    answered = asyncio.gather(*(asyncio.wrap_future(row.answer) for row in prepared.rows))
    try:
        await asyncio.wait((gone, answered), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            return Response(status_code=499)  # nobody reads it; the rows are cancelled
        await answered  # raises the error of a row
    finally:
        gone.cancel()
        answered.cancel()
    choices = [
        {
            "index": choice.index, "finish_reason": _finish_reason(choice), "logprobs": None,
            "message": {
                "role": "assistant", "content": choice.row.answer.result().text, "refusal": None,
                "affectgpt": service.explained(prepared, choice),
            },
        }
        for choice in prepared.choices
    ]  # fmt: skip
    return JSONResponse(_envelope(service, "chat.completion") | {"choices": choices, "usage": prepared.usage()})


async def _chunks(
    service: Service, prepared: PreparedQuestion, events: _Events, deadline: float, *, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of a streamed answer. An error is the last one: the status was sent long before."""
    envelope = _envelope(service, "chat.completion.chunk")

    def event(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return f"data: {json.dumps(envelope | {'choices': [choice]}, ensure_ascii=False)}\n\n"

    try:
        for choice in prepared.choices:
            yield event(choice.index, {"role": "assistant", "content": ""})
        waiting = [len(choice.rows) for choice in prepared.choices]  # rows of each choice without an answer
        while any(waiting):
            async with asyncio.timeout_at(deadline):
                index, text = await events.get()
            if text is not None:
                yield event(index, {"content": text})
                continue
            waiting[index] -= 1
            if not waiting[index]:
                choice = prepared.choices[index]
                yield event(index, {"affectgpt": service.explained(prepared, choice)}, _finish_reason(choice))
        if usage:
            yield f"data: {json.dumps(envelope | {'choices': [], 'usage': prepared.usage()})}\n\n"
    except Exception as error:
        yield f"data: {bytes(error_response(error).body).decode()}\n\n"
    yield "data: [DONE]\n\n"


class _StreamedAnswer(StreamingResponse):
    """A streamed answer that releases what its request holds, also where nobody reads it to the end."""

    def __init__(self, chunks: AsyncIterator[str], deadline: float, held: ExitStack) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._deadline, self._held = deadline + 5, held  # seconds in which the last events are sent

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._held, suppress(TimeoutError):  # of a client that does not read
            async with asyncio.timeout_at(self._deadline):
                await super().__call__(scope, receive, send)


def _envelope(service: Service, kind: str) -> dict[str, Any]:
    """Fields that every answer and every chunk begins with."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": service.model,
        "system_fingerprint": service.fingerprint,
    }  # fmt: skip


def _finish_reason(choice: Choice) -> str:
    return "stop" if choice.row.answer.result().stopped else "length"


def error_response(error: Exception) -> JSONResponse:
    """An error in OpenAI's form: the text of what the client did wrong, a number in the log for what failed here."""
    if isinstance(error, ValidationError):
        message, field = _explain(error)
        return _error(400, message, param=field)
    if isinstance(error, BusyError):
        return _error(429, str(error), code="queue_full", headers={"Retry-After": "2"})
    if isinstance(error, ShuttingDownError):
        return _error(503, str(error), code="shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, DataError | ConfigError):
        return _error(413 if isinstance(error, TooLargeError) else 400, without_paths(error))
    if isinstance(error, TimeoutError):
        return _error(504, "the answer took too long", code="timeout")
    if isinstance(error, HTTPException):
        message = "no such address" if error.detail == "Not Found" else error.detail
        return _error(error.status_code, message, headers=error.headers)
    number = uuid.uuid4().hex[:12]
    logger.error("request %s failed", number, exc_info=error)
    return _error(500, f"the server failed; its log says more under {number}", code="internal")


def without_paths(error: Exception) -> str:
    """The message of an error without any path of this machine."""
    return _FILE_PATH.sub("(a file)", str(error))[:1000]


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error(status: int, message: str, *, headers: Any = None, **fields: str | None) -> JSONResponse:
    return JSONResponse(error_body(status, message, **fields), status, headers=headers)


def _unknown_model(service: Service) -> Response:
    return _error(404, f"this server has one model: {service.model}", code="model_not_found", param="model")


def _explain(error: ValidationError) -> tuple[str, str | None]:
    """Message of the first fault in a request, without the value that was given, and its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in first["loc"])[1:201]
    message = first["msg"].removeprefix("Value error, ")[:500]
    return (f"{field}: {message}" if field else message), field or None
