"""A language model behind any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, OpenAI."""

from __future__ import annotations

import email.utils
import json
import os
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from affectgpt.core.errors import DataError
from affectgpt.textllm.base import (
    CLIENTS,
    Conversation,
    ConversationsFailedError,
    OnResult,
    Reply,
    Sampling,
    TextLLM,
    TextLLMError,
    Unanswered,
    seed_for,
)  # fmt: skip

_RETRIED = {408, 409, 425, 429}  # and every 5xx
_HOPELESS = {401, 403, 404, 405}  # no other conversation will fare better
_MAX_REPLY_BYTES = 32 * 2**20
_LONGEST_BACKOFF = 30.0  # seconds
_FAILED_IN_A_ROW = 8  # failed conversations without a good one between them: give up


class _AttemptError(Exception):
    """This attempt failed and another may not; ``wait``: what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _ConversationError(Exception):
    """This conversation failed; others may not. ``again``: it may fare better another time."""

    def __init__(self, reason: str, *, again: bool = False, by_server: bool = True) -> None:
        super().__init__(reason)
        self.again = again
        self.by_server = by_server  # the server had a say in it


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
        self._client: Any = None
        self._reached = False  # something answered there once
        self._resume_at = 0.0  # time.monotonic() before which no request is sent
        self._shown_url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # no password

    def identity(self) -> dict[str, Any]:
        """The model's name on the server."""
        return {"model": self.model}

    def details(self) -> dict[str, Any]:
        """The address."""
        return {"base_url": self._shown_url}

    def chat_many(
        self, conversations: Sequence[Conversation], *, sampling: Sampling, on_result: OnResult | None = None
    ) -> list[Reply]:
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
        finished: queue.SimpleQueue[tuple[int, Reply | None, Exception | None]] = queue.SimpleQueue()
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
                        raise _ConversationError(str(error), again=True, by_server=False) from error
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
        finished: queue.SimpleQueue[tuple[int, Reply | None, Exception | None]],
        slots: threading.Semaphore,
        on_result: OnResult | None,
    ) -> list[Reply]:
        replies: dict[int, Reply] = {}
        failed: dict[int, Unanswered] = {}
        in_a_row = 0
        for _ in range(total):
            index, reply, error = finished.get()
            if reply is not None:
                replies[index] = reply
                in_a_row = 0
                if on_result:
                    on_result(index, reply)
            elif isinstance(error, _ConversationError):
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
        if self._client is None:
            import httpx2

            key = os.environ.get(self._key_variable, "").strip()
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx2.Timeout(self._timeout, connect=min(self._timeout, 10.0), pool=None),
                limits=httpx2.Limits(max_connections=self._concurrency),
            )

    def _ask(self, conversation: Conversation, sampling: Sampling, stop: threading.Event) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(conversation),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed_for(conversation, sampling.seed),
        }
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        content = json.dumps(body).encode()
        for attempt in range(self._attempts):
            self._pause(stop)
            started = time.monotonic()
            try:
                return replace(self._attempt(content), seconds=time.monotonic() - started)
            except _AttemptError as error:
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
        raise _ConversationError(f"{reason} ({self._attempts} attempts)", again=True)

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

    def _attempt(self, content: bytes) -> Reply:
        """One request. ``_AttemptError`` if it is worth another, else ``_ConversationError`` or TextLLMError."""
        import httpx2

        deadline = time.monotonic() + self._timeout
        received = bytearray()
        try:
            with self._client.stream(
                "POST",
                f"{self.base_url}/chat/completions",
                content=content,
                headers={"Content-Type": "application/json"},
            ) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > deadline:  # the client's own timeout is per read: a drip never ends
                        raise _AttemptError(f"no whole reply in {self._timeout:g} s")
                    if len(received) > _MAX_REPLY_BYTES:
                        raise _ConversationError(f"a reply of more than {_MAX_REPLY_BYTES} bytes")
        except httpx2.TimeoutException as error:
            raise _AttemptError(f"no reply in {self._timeout:g} s ({type(error).__name__})") from error
        except httpx2.ConnectError as error:
            raise TextLLMError(
                f"{self._shown_url}: cannot be reached ({error}); is the server running there?"
            ) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _AttemptError(f"the connection broke ({type(error).__name__}: {error})") from error
        self._reached = True
        if response.status_code == 200:
            return _parse(bytes(received))
        return self._refused(response.status_code, bytes(received), response.headers.get("Retry-After"))

    def _refused(self, status: int, received: bytes, retry_after: str | None) -> Reply:
        reason = f"status {status}: {_error_text(received)}"
        if status in _RETRIED or status >= 500:
            raise _AttemptError(reason, wait=_seconds(retry_after))
        if status in _HOPELESS or status < 400:
            hint = {
                401: f"set {self._key_variable} to a key the server knows",
                403: "the key may not use this model",
                404: f"is the base URL right (it usually ends in /v1), and does the server serve {self.model!r}?",
            }.get(status, "the base URL should be the server's own, usually ending in /v1")
            raise TextLLMError(f"{self._shown_url}: {reason}. {hint}")
        if "repetition_penalty" in reason:
            raise TextLLMError(f"{self._shown_url}: {reason}. Ask with a repetition penalty of 1, which is not sent")
        raise _ConversationError(reason)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _parse(received: bytes) -> Reply:
    try:
        completion = json.loads(received)
        choice = completion["choices"][0]
        text = choice["message"]["content"]
        refusal = choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _AttemptError(f"the reply is no chat completion: {_error_text(received)}") from error
    if refusal or choice.get("finish_reason") == "content_filter":
        raise _ConversationError(f"the model refused: {_error_text(str(refusal or 'content filter').encode())}")
    if not isinstance(text, str):
        raise _AttemptError(f"the reply holds no text but {type(text).__name__}: {_error_text(received)}")
    usage = completion.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, reply_tokens = [count if isinstance(count, int) else None for count in counts]
    return Reply(
        text=text, truncated=choice.get("finish_reason") == "length", prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
    )  # fmt: skip


def _error_text(received: bytes) -> str:
    """A server's own words, cut short."""
    text = received[:2000].decode("utf-8", "replace").strip()
    return (text[:300] + "…" if len(text) > 300 else text) or "an empty body"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds from now: a number or an HTTP date; None when it is neither."""
    if not retry_after:
        return None
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return wait if 0 < wait < float("inf") else None
