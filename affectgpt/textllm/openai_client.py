"""A language model behind any OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama), through the OpenAI SDK.

The SDK sends, times out, retries (connection errors, 408, 409, 429 and 5xx, with Retry-After) and parses. What is added
here: many conversations at a time, and which failures concern one conversation and which the whole server.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from affectgpt.core.errors import DataError, printable
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
from affectgpt.textllm.messages import text_of

_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_OWN_FIELDS = {"model", "messages", "n", *_STREAMED}
_FAILED_IN_A_ROW = 8  # failed conversations without a good one between them: give up


class ConversationError(Exception):
    """One conversation has no reply; others may have. ``again``: another run may get one."""

    def __init__(self, reason: str, *, again: bool = False, by_server: bool = True) -> None:
        super().__init__(reason)
        self.again = again
        self.by_server = by_server


@CLIENTS.register("openai")
class OpenAIClient(TextLLM):
    """Concurrent requests to ``{base_url}/chat/completions``.

    The API key is read from the environment variable ``key_variable``, if it is set, and written nowhere.
    ``requests_per_minute``: no more are begun, retries among them. ``timeout``: seconds that the server may be silent.
    ``attempts``: requests per conversation. A repetition penalty other than 1 is sent as ``repetition_penalty``, which
    vLLM and SGLang know and OpenAI refuses. ``request_fields``: further fields of a request (``mm_processor_kwargs``,
    ``modalities``). ``stream``: ask for replies in pieces; done anyway once a server says that it does nothing else.
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
        self._key_variable = key_variable
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0  # seconds between two requests
        self._next_turn = 0.0  # time.monotonic() of the next request
        self._turns = threading.Lock()
        self._request_fields = dict(request_fields or {})
        self._stream: dict[str, Any] = _STREAMED if stream else {}
        self._client: Any = None
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
        finished: queue.SimpleQueue[tuple[int, TextReply | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        # One for each request on its way or reply not yet taken in: a killed program loses no more than these.
        slots = threading.Semaphore(self._concurrency)

        def work() -> None:
            while slots.acquire() and not stop.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    finished.put((index, self._ask(conversations[index], sampling)))
                except DataError as error:  # of a lazy conversation: a clip that cannot be read
                    finished.put((index, ConversationError(str(error), again=True, by_server=False)))
                except Exception as error:  # handed to the calling thread, which decides
                    finished.put((index, error))

        # Daemons: a request that hangs must not keep an interrupted program alive.
        for number in range(min(self._concurrency, len(conversations))):
            threading.Thread(target=work, name=f"request-{number}", daemon=True).start()
        replies: dict[int, TextReply] = {}
        failed: dict[int, Unanswered] = {}
        in_a_row = 0
        try:
            while len(replies) + len(failed) < len(conversations) and in_a_row < _FAILED_IN_A_ROW:
                index, result = finished.get()
                if isinstance(result, TextReply):
                    replies[index] = result
                    in_a_row = 0
                    if on_result:
                        on_result(index, result)
                elif isinstance(result, ConversationError):
                    failed[index] = Unanswered(str(result), again=result.again)
                    in_a_row += result.by_server
                else:
                    raise result
                slots.release()
        finally:
            stop.set()
            slots.release(self._concurrency)
        if failed:
            unasked = len(conversations) - len(replies) - len(failed)
            gave_up = f" Gave up after {in_a_row} failures in a row." if unasked else ""
            first = "; ".join(f"conversation {index}: {failed[index].reason}" for index in sorted(failed)[:3])
            raise ConversationsFailedError(
                f"{self._shown_url}: {len(failed)} of {len(conversations)} conversations have no reply, {len(replies)} "
                f"have. First: {first}.{gave_up} Finished ones are kept; run again to ask for the others",
                failed,
            )
        return [replies[index] for index in range(len(conversations))]

    def _open(self) -> None:
        if self._client is None:
            import openai

            http = openai.DefaultHttpxClient(
                follow_redirects=False,  # a redirect leads to a login page, not to a model
                event_hooks={"request": [lambda _: self._wait_for_turn()]},
                limits=openai.DEFAULT_CONNECTION_LIMITS,
            )
            self._client = openai.OpenAI(
                base_url=self.base_url,
                api_key=os.environ.get(self._key_variable, "").strip() or "none",  # the SDK wants one
                timeout=self._timeout,
                max_retries=self._attempts - 1,
                http_client=http,
            )

    def _wait_for_turn(self) -> None:
        if self._gap:
            with self._turns:
                turn = max(self._next_turn, time.monotonic())
                self._next_turn = turn + self._gap
            time.sleep(max(turn - time.monotonic(), 0))

    def _ask(self, conversation: Conversation, sampling: Sampling) -> TextReply:
        """One reply. ConversationError where only this conversation failed, TextLLMError where none will do better."""
        import openai

        fields = dict(self._request_fields)
        if sampling.repetition_penalty != 1:
            fields["repetition_penalty"] = sampling.repetition_penalty
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(conversation),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed_for(conversation, sampling.seed),
            "extra_body": fields,
        }
        stream = self._stream
        began = time.monotonic()
        try:
            completion = self._client.chat.completions.create(**request, **stream)
            return (_join_pieces if stream else _read_completion)(completion, began)
        except openai.APITimeoutError as error:
            raise ConversationError(
                f"no reply in {self._timeout:g} s ({self._attempts} attempts)", again=True
            ) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if "connect" in type(cause).__name__.lower():
                raise TextLLMError(
                    f"{self._shown_url}: cannot be reached ({cause}); is the server running there?"
                ) from error
            raise ConversationError(
                f"the server closed the connection ({type(cause).__name__}: {cause}; {self._attempts} attempts)",
                again=True,
            ) from error
        except openai.APIStatusError as error:
            reason = f"status {error.status_code}: {_shown(error.response.text) or 'an empty body'}"
            if error.status_code in (400, 422) and "stream" in reason.lower():
                if not stream:
                    self._stream = _STREAMED
                elif "stream_options" in reason:
                    self._stream = {"stream": True}
                if self._stream != stream:
                    return self._ask(conversation, sampling)
            if "repetition_penalty" in reason:
                raise TextLLMError(
                    f"{self._shown_url}: {reason}. Ask with a repetition penalty of 1, which is not sent"
                ) from error
            if hint := self._hint(error.status_code):
                raise TextLLMError(f"{self._shown_url}: {reason}. {hint}") from error
            again = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
            attempts = f" ({self._attempts} attempts)" if again else ""
            raise ConversationError(reason + attempts, again=again) from error
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ConversationError(f"the reply is not a chat completion ({_shown(str(error))})", again=True) from error

    def _hint(self, status: int) -> str:
        """Tell what to do where the server refuses everything; empty for other statuses."""
        page = "a login page or a proxy in between? The base URL is the server's own and usually ends in /v1"
        hints = {
            401: f"set {self._key_variable} to a key the server knows",
            403: "the key may not use this model",
            404: f"is the base URL right (it usually ends in /v1), and does the server serve {self.model!r}?",
        }
        return hints.get(status, page if status < 400 or status in (405, 407, 511) else "")

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _read_completion(completion: Any, began: float) -> TextReply:
    if isinstance(completion, str):  # the SDK hands on what is not marked as JSON
        raise ValueError(f"it begins {completion[:200]!r}; is the base URL right? It usually ends in /v1")
    choice = completion.choices[0]
    text = text_of(choice.message.content)
    _refuse(choice.message.refusal, choice.finish_reason)
    if text is None:
        raise ValueError(f"its message holds no text: {choice.message.content!r}")
    return _reply(text, choice.finish_reason, completion.usage, began)


def _join_pieces(stream: Any, began: float) -> TextReply:
    pieces: list[str] = []
    refusal, finish, usage = "", None, None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices[:1]:
            pieces.append(text_of(choice.delta.content) or "")
            refusal += choice.delta.refusal or ""
            finish = choice.finish_reason or finish
    _refuse(refusal, finish)
    if finish is None:
        raise ValueError(f"the stream ended before the reply did, after {''.join(pieces)!r}")
    return _reply("".join(pieces), finish, usage, began)


def _refuse(refusal: Any, finish: Any) -> None:
    if refusal or finish == "content_filter":
        raise ConversationError(f"the model refused: {_shown(str(refusal or 'content filter'))}")


def _reply(text: str, finish: Any, usage: Any, began: float) -> TextReply:
    return TextReply(
        text=text,
        truncated=finish == "length",
        prompt_tokens=usage.prompt_tokens if usage else None,
        reply_tokens=usage.completion_tokens if usage else None,
        seconds=time.monotonic() - began,
    )


def _shown(text: str) -> str:
    """Words of a server on one line, at most 300 characters."""
    return printable(" ".join(text[:2000].split()))[:300]
