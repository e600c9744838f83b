"""The HTTP API, as OpenAI's clients speak it: ``/v1/chat/completions``, ``/v1/models``, ``/health``."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.core.files import parse_json
from affectgpt.core.runtime import logger
from affectgpt.serve.batcher import RefusedError
from affectgpt.serve.intake import TooLargeError
from affectgpt.serve.schema import EXTENSION, ChatRequest, chunk, completion, error_body, explain
from affectgpt.serve.service import Ask, Asked, BusyError, Choice, Piece, Service, usage

RETRY_AFTER = 2  # seconds
_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.@+~-]+/)+[\w.@+~-]*")


def words_for_strangers(error: Exception) -> str:
    """What an error says, without any path of this machine."""
    return _PATH.sub("(a file)", str(error))[:1000]


def build_api(service: Service) -> FastAPI:
    """The API of a service. Whom it lets in, and how much it reads, is the shield's to say (``serve/shield.py``)."""
    app = FastAPI(title="AffectGPT", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        state = {"status": "ok", "model": service.model, "requests": service.inside}
        if service.batcher.lost is not None:
            state["status"] = "the GPU is lost; the server ends"
        return JSONResponse(state, status_code=200 if service.batcher.lost is None else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(_model(service)) if name == service.model else _unknown_model(service)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        try:
            return await _chat(service, request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return error_response(error)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def other(path: str) -> Response:  # else the page, where it is mounted, answers in its own form
        return error_response(HTTPException(405 if path == "chat/completions" else 404, "POST is expected here"))

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: Exception) -> Response:
        return error_response(error)

    return app


async def _chat(service: Service, request: Request) -> Response:
    body = await _body(request)  # a slow one must not take the place of another request
    with ExitStack() as stack:
        stack.enter_context(service.admitted())
        asked, streams = None, False
        try:
            async with asyncio.timeout(service.settings.request_timeout):
                wanted = await _parsed(body)
                if wanted.model not in (None, service.model):
                    return _unknown_model(service)
                asked = await asyncio.wrap_future(service.read(_ask(wanted)))
                if await request.is_disconnected():
                    return Response(status_code=499)
                events = _Events()
                if wanted.stream:
                    service.answer(asked, events.put, stream=True)
                    streams = True
                    return _Stream(_streamed(service, wanted, asked, events), asked, stack.pop_all())
                service.answer(asked, events.put)
                return await _whole(service, request, asked, events)
        finally:
            if asked is not None and not streams:
                asked.cancel()


def error_response(error: Exception) -> Response:
    """An error in OpenAI's form: what the client did wrong in words, what failed here without any."""
    if isinstance(error, ValidationError):
        message, param = explain(error)
        return _error(400, message, param=param)
    if isinstance(error, BusyError):
        return _error(429, str(error), kind="rate_limit_error", code="queue_full", retry=RETRY_AFTER)
    if isinstance(error, RefusedError):
        return _error(503, str(error), kind="server_error", code="shutting_down", retry=5)
    if isinstance(error, DataError | ConfigError):
        return _error(413 if isinstance(error, TooLargeError) else 400, words_for_strangers(error))
    if isinstance(error, TimeoutError):
        return _error(504, "the answer took too long", kind="server_error", code="timeout")
    if isinstance(error, HTTPException):
        return _error(error.status_code, "no such address" if error.status_code == 404 else str(error.detail))
    number = uuid.uuid4().hex[:12]
    logger.error("request %s failed", number, exc_info=error)
    return _error(500, f"the server failed; its log says more under {number}", kind="server_error", code="internal")


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    retry: int | None = None,
) -> Response:
    headers = {} if retry is None else {"Retry-After": str(retry)}
    return JSONResponse(error_body(message, kind=kind, code=code, param=param), status, headers=headers)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.model, "object": "model", "created": 0, "owned_by": "affectgpt"}


def _unknown_model(service: Service) -> Response:
    return _error(404, f"this server has one model: {service.model}", code="model_not_found", param="model")


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form on another site can send anything else without asking
        raise HTTPException(415, "expected Content-Type: application/json")
    return await request.body()


async def _parsed(body: bytes) -> ChatRequest:
    def parse() -> ChatRequest:
        try:
            value = parse_json(body)
        except ValueError:
            raise DataError("the body is not valid JSON") from None
        if not isinstance(value, dict):
            raise DataError("the body must be a JSON object")
        return ChatRequest.model_validate(value)

    return await asyncio.to_thread(parse)


def _ask(wanted: ChatRequest) -> Ask:
    return Ask(
        video=wanted.video_url, audio=wanted.audio_url, subtitle=wanted.subtitle, question=wanted.question,
        person=wanted.person, describe=wanted.describe, n=wanted.n, seed=wanted.seed, temperature=wanted.temperature,
        top_p=wanted.top_p, max_tokens=wanted.answer_tokens,
    )  # fmt: skip


class _Events:
    """From the batcher's thread to this request's task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Choice] = asyncio.Queue()
        self.get = self._queue.get

    def put(self, event: Piece | Choice) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


async def _whole(service: Service, request: Request, asked: Asked, events: _Events) -> Response:
    gone = asyncio.create_task(_disconnected(request))
    try:
        choices: list[Choice] = []
        while len(choices) < asked.ask.n:
            event = asyncio.create_task(events.get())  # type: ignore[arg-type]
            await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                return Response(status_code=499)  # nobody reads it
            found = event.result()
            if isinstance(found, Choice):
                if found.error is not None:
                    raise found.error
                choices.append(found)
    finally:
        gone.cancel()
    choices.sort(key=lambda choice: choice.index)
    made = [
        {
            "index": choice.index, "finish_reason": _finish(choice), "logprobs": None,
            "message": {
                "role": "assistant", "content": choice.answer.text, "refusal": None,  # type: ignore[union-attr]
                EXTENSION: service.explained(asked, choice),
            },
        }
        for choice in choices
    ]  # fmt: skip
    body = completion(_identity(), service.model, made, usage(asked, choices), fingerprint=service.fingerprint)
    return JSONResponse(body)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(service: Service, wanted: ChatRequest, asked: Asked, events: _Events) -> AsyncIterator[str]:
    identity, created = _identity(), int(time.time())

    def event(*choices: dict[str, Any], **more: Any) -> str:
        made = chunk(
            identity, service.model, choices, created=created, fingerprint=service.fingerprint, **more
        )  # fmt: skip
        return f"data: {json.dumps(made, ensure_ascii=False)}\n\n"

    def part(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}

    try:
        async with asyncio.timeout(service.settings.request_timeout):
            for index in range(asked.ask.n):
                yield event(part(index, {"role": "assistant", "content": ""}))
            choices: list[Choice] = []
            while len(choices) < asked.ask.n:
                found = await events.get()
                if isinstance(found, Piece):
                    if not found.described:
                        yield event(part(found.index, {"content": found.text}))
                    continue
                if found.error is not None:
                    raise found.error
                choices.append(found)
                yield event(part(found.index, {EXTENSION: service.explained(asked, found)}, _finish(found)))
            if wanted.stream_options is not None and wanted.stream_options.include_usage:
                yield event(usage=usage(asked, choices))
    except Exception as error:
        yield f"data: {bytes(error_response(error).body).decode()}\n\n"
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """A streamed answer that gives back what the request holds, also where nobody reads it to the end."""

    def __init__(self, content: AsyncIterator[str], asked: Asked, held: ExitStack) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._end: Callable[[], None] = held.close
        self._asked = asked

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asked.cancel()
            self._end()


def _finish(choice: Choice) -> str:
    return "stop" if choice.answer is not None and choice.answer.stopped else "length"


def _identity() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
