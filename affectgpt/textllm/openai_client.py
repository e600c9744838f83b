"""A language model behind any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, OpenAI."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from affectgpt.core.errors import DataError
from affectgpt.textllm.base import (
    CLIENTS,
    Conversation,
    ConversationsFailedError,
    OnResult,
    Sampling,
    TextLLM,
    TextLLMError,
    TextReply,
    Unanswered,
    seed_for,
)  # fmt: skip
from affectgpt.textllm.replies import (
    AttemptError,
    ConversationError,
    StreamingError,
    decoded,
    error_text,
    parse_reply,
    parse_stream,
    seconds_of,
    too_long,
)

_RETRIED = {408, 409, 425, 429}  # and every 5xx
_HOPELESS = {401, 403, 404, 405, 407, 511}  # no other conversation will fare better
_WEB_PAGE = ("text/html", "application/xhtml+xml")
_REPLY_BYTES, _TOKEN_BYTES = 2**20, 2**10  # the most that a reply may have: once, and for every token asked for
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_STREAM_END = b"\ndata: [DONE]"
_OWN_FIELDS = {"model", "messages", "n", *_STREAMED}
_LONGEST_BACKOFF = 30.0  # seconds
_FAILED_IN_A_ROW = 8  # failed conversations without a good one between them: give up


class _Stopped(Exception):  # noqa: N818
    """The caller has given up."""


@CLIENTS.register("openai")
class OpenAIClient(TextLLM):
    """Concurrent requests to ``{base_url}/chat/completions`` with retries.

    The API key is read from the environment variable ``key_variable``, if it is set, and written nowhere.
    ``requests_per_minute``: no more are begun, retries among them. ``timeout``: seconds for a whole request;
    ``attempts`` per conversation, with waits that double from ``backoff`` seconds, or as long as the server asks
    (Retry-After, up to ``longest_wait`` seconds; then all requests wait).
    A repetition penalty other than 1 is sent as ``repetition_penalty``, which vLLM and SGLang know and OpenAI refuses.
    ``request_fields``: what else a request holds (``mm_processor_kwargs``, ``modalities`` …).
    ``stream``: ask for replies in pieces. Without it, it is done once a server says that it does nothing else.
    """

    name = "openai"

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        concurrency: int = 16,
        timeout: float = 300.0,
        attempts: int = 6,
        backoff: float = 1.0,
        longest_wait: float = 300.0,
        requests_per_minute: float | None = None,
        key_variable: str = "OPENAI_API_KEY",
        request_fields: Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TextLLMError(f"base URL {base_url!r}: should look like http://host:8000/v1")
        if not model:
            raise TextLLMError("no model named; give the name under which the server serves it")
        if concurrency < 1 or attempts < 1 or timeout <= 0:
            raise TextLLMError("concurrency and attempts should be 1 or more, timeout more than 0 seconds")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise TextLLMError(f"requests_per_minute is {requests_per_minute}; it should be more than 0")
        if taken := sorted(_OWN_FIELDS & set(request_fields or {})):
            raise TextLLMError(f"request_fields: {', '.join(taken)} of a request cannot be set there")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._concurrency = concurrency
        self._timeout = timeout
        self._attempts = attempts
        self._backoff = backoff
        self._longest_wait = longest_wait
        self._key_variable = key_variable
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0  # seconds between two requests
        self._next_turn = 0.0  # time.monotonic() of the next request's turn
        self._turns = threading.Lock()
        self._request_fields = dict(request_fields or {})
        self._streaming: dict[str, Any] = _STREAMED if stream else {}
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resume_at = 0.0  # time.monotonic() before which no request is sent
        self._shown_url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # no password

    def identity(self) -> dict[str, Any]:
        """The model's name on the server, and what is sent besides."""
        return {"model": self.model, **({"request_fields": self._request_fields} if self._request_fields else {})}

    def details(self) -> dict[str, Any]:
        """The address."""
        return {"base_url": self._shown_url}

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[TextReply]:
        """One reply each, ``concurrency`` requests at a time.

        A conversation that fails for good does not stop the others; at the end ConversationsFailedError names the
        failed ones. ``conversations`` may be lazy: each is taken when its turn comes, and a DataError in taking it is
        a failure of that one. A server that cannot be reached or refuses everything stops all at once.
        """
        if not conversations:
            return []
        self._open()
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(conversations)):
            waiting.put(index)
        finished: queue.SimpleQueue[tuple[int, TextReply | None, Exception | None]] = queue.SimpleQueue()
        stop = threading.Event()
        # One for each request on its way or not yet taken in: a killed program loses no more than these.
        slots = threading.Semaphore(self._concurrency)

        def work() -> None:
            while slots.acquire() and not stop.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    try:
                        conversation = conversations[index]
                    except DataError as error:
                        raise ConversationError(str(error), again=True, by_server=False) from error
                    finished.put((index, self._ask(conversation, sampling, stop), None))
                except Exception as error:  # handed to the calling thread, which decides
                    finished.put((index, None, error))

        # Daemons: a request that hangs must not keep an interrupted program alive.
        for number in range(min(self._concurrency, len(conversations))):
            threading.Thread(target=work, name=f"request-{number}", daemon=True).start()
        try:
            return self._collect(len(conversations), finished, slots, on_result)
        finally:
            stop.set()
            slots.release(self._concurrency)

    def _collect(
        self,
        total: int,
        finished: queue.SimpleQueue[tuple[int, TextReply | None, Exception | None]],
        slots: threading.Semaphore,
        on_result: OnResult | None,
    ) -> list[TextReply]:
        replies: dict[int, TextReply] = {}
        failed: dict[int, Unanswered] = {}
        in_a_row = 0
        for _ in range(total):
            index, reply, error = finished.get()
            if reply is not None:
                replies[index] = reply
                in_a_row = 0
                if on_result:
                    on_result(index, reply)
            elif isinstance(error, ConversationError):
                failed[index] = Unanswered(str(error), again=error.again)
                in_a_row += error.by_server
                if in_a_row >= _FAILED_IN_A_ROW and len(replies) + len(failed) < total:
                    break
            else:
                assert error is not None
                raise error
            slots.release()
        if failed:
            first = "; ".join(f"conversation {index}: {failed[index].reason}" for index in sorted(failed)[:3])
            gave_up = f" Gave up after {in_a_row} failures in a row." if len(replies) + len(failed) < total else ""
            raise ConversationsFailedError(
                f"{self._shown_url}: {len(failed)} of {total} conversations have no reply, {len(replies)} have. "
                f"First: {first}.{gave_up} Finished ones are kept; run again to ask for the others",
                failed,
            )
        return [replies[index] for index in range(total)]

    def _open(self) -> None:
        """Start the thread that requests run in: only there can a whole one have a time limit, see ``_exchange``."""
        if self._client is None:
            import httpx2

            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), name="openai-client", daemon=True).start()
            key = os.environ.get(self._key_variable, "").strip()
            self._client = httpx2.AsyncClient(
                headers={"Accept-Encoding": "gzip", **({"Authorization": f"Bearer {key}"} if key else {})},
                timeout=httpx2.Timeout(self._timeout, connect=min(self._timeout, 10.0), pool=None),
                limits=httpx2.Limits(max_connections=self._concurrency),
            )

    def _ask(self, conversation: Conversation, sampling: Sampling, stop: threading.Event) -> TextReply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(conversation),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed_for(conversation, sampling.seed),
            **self._request_fields,
        }
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        most = _REPLY_BYTES + _TOKEN_BYTES * sampling.max_tokens
        for attempt in range(self._attempts):
            self._pause(stop)
            started = time.monotonic()
            try:
                return replace(self._send(body, most=most), seconds=time.monotonic() - started)
            except AttemptError as error:
                reason = error
            if reason.wait is not None and reason.wait > self._longest_wait:
                raise TextLLMError(
                    f"{self._shown_url}: asks to wait {reason.wait:.0f} s, longer than {self._longest_wait:.0f} s "
                    f"({reason}); run again later, finished conversations are kept"
                )
            if reason.wait is not None:  # it holds for everybody
                self._resume_at = max(self._resume_at, time.monotonic() + reason.wait)
            elif attempt + 1 < self._attempts:
                # Spread, so that requests refused together do not come back together.
                wait = min(self._backoff * 2**attempt, _LONGEST_BACKOFF) * random.uniform(0.75, 1.25)
                if stop.wait(wait):
                    raise _Stopped
        raise ConversationError(f"{reason} ({self._attempts} attempts)", again=True)

    def _pause(self, stop: threading.Event) -> None:
        """Wait for this request's turn, and as long as the server asked everybody to."""
        if self._gap:
            with self._turns:
                turn = max(self._next_turn, time.monotonic())
                self._next_turn = turn + self._gap
            stop.wait(turn - time.monotonic())
        while (left := self._resume_at - time.monotonic()) > 0:
            if stop.wait(left):
                break
        if stop.is_set():
            raise _Stopped

    def _send(self, body: Mapping[str, Any], *, most: int) -> TextReply:
        """One attempt, repeated at once where the server wants replies to be sent in another way."""
        while True:
            streaming = self._streaming
            try:
                return self._attempt(json.dumps({**body, **streaming}).encode(), most=most)
            except StreamingError as error:
                if not streaming:
                    self._streaming = _STREAMED
                elif "stream_options" in str(error) and "stream_options" in streaming:
                    self._streaming = {"stream": True}
                else:
                    raise ConversationError(str(error)) from error

    def _attempt(self, content: bytes, *, most: int) -> TextReply:
        """One request. ``AttemptError`` if it is worth another, else ``ConversationError`` or TextLLMError."""
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(self._exchange(content, most), self._loop)
        status, headers, received = asked.result()
        if status != 200:
            return self._refused(status, headers, received)
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in _WEB_PAGE or received[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise TextLLMError(
                f"{self._shown_url}: answers with a web page, not with a completion: {error_text(received)}. A login "
                "page or a proxy in between? Log in there, or give the server's own base URL, usually ending in /v1"
            )
        streamed = kind == "text/event-stream" or received[:200].lstrip().startswith(b"data:")
        return parse_stream(received) if streamed else parse_reply(received)

    async def _exchange(self, content: bytes, most: int) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; status, headers and body (of at most ``most`` bytes) of what comes back.

        The client's own timeouts are per read, so that a server which sends a byte a second would never meet them;
        this one is for the whole request, from the connection to the last byte.
        """
        import httpx2

        received = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(
                    "POST",
                    f"{self.base_url}/chat/completions",
                    content=content,
                    headers={"Content-Type": "application/json"},
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > most:
                        raise too_long(most)
                    if _STREAM_END in received[-2 * len(_STREAM_END) :]:  # some servers leave the connection open
                        break
        except TimeoutError as error:
            raise AttemptError(f"no whole reply in {self._timeout:g} s") from error
        except httpx2.TimeoutException as error:
            raise AttemptError(f"no reply in {self._timeout:g} s ({type(error).__name__})") from error
        except httpx2.ConnectError as error:
            raise TextLLMError(
                f"{self._shown_url}: cannot be reached ({error}); is the server running there?"
            ) from error
        except httpx2.TransportError as error:
            when = f"after {len(received)} bytes of a reply" if received else "before it answered"
            raise AttemptError(f"the server closed the connection {when} ({_words(error)})") from error
        body = decoded(bytes(received), response.headers.get("Content-Encoding", ""), most)
        return response.status_code, response.headers, body

    def _refused(self, status: int, headers: Mapping[str, str], received: bytes) -> TextReply:
        reason = f"status {status}: {error_text(received)}"
        hopeless = status in _HOPELESS or status < 400
        if not hopeless and (status in _RETRIED or status >= 500):
            raise AttemptError(reason, wait=seconds_of(headers.get("Retry-After")))
        if hopeless:
            hint = {
                401: f"set {self._key_variable} to a key the server knows",
                403: "the key may not use this model",
                404: f"is the base URL right (it usually ends in /v1), and does the server serve {self.model!r}?",
            }.get(status, "the base URL should be the server's own, usually ending in /v1")
            if headers.get("Location"):
                reason += f", sent on to {error_text(headers['Location'].encode())} (a login page?)"
            raise TextLLMError(f"{self._shown_url}: {reason}. {hint}")
        if "repetition_penalty" in reason:
            raise TextLLMError(f"{self._shown_url}: {reason}. Ask with a repetition penalty of 1, which is not sent")
        if status in (400, 422) and "stream" in reason.lower():
            raise StreamingError(reason)
        raise ConversationError(reason)

    def close(self) -> None:
        """End what is still asked, and close the connections."""
        if self._client is not None and self._loop is not None:
            loop, self._loop, client, self._client = self._loop, None, self._client, None

            async def end() -> None:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await client.aclose()
                loop.call_soon(loop.stop)

            asyncio.run_coroutine_threadsafe(end(), loop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _words(error: Exception) -> str:
    """What a library says of a failure, or at least its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
