"""What the bytes of a server's answer say: a reply, a refusal, or why there is none. All of it is from outside."""

from __future__ import annotations

import email.utils
import json
import time
import zlib
from typing import Any

from affectgpt.core.printable import printable
from affectgpt.textllm.base import TextReply
from affectgpt.textllm.messages import text_of


class AttemptError(Exception):
    """This attempt failed and another may not; ``wait``: what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ConversationError(Exception):
    """This conversation failed; others may not. ``again``: it may fare better another time."""

    def __init__(self, reason: str, *, again: bool = False, by_server: bool = True) -> None:
        super().__init__(reason)
        self.again = again
        self.by_server = by_server  # the server had a say in it


class StreamingError(Exception):
    """The server refused this way of sending the reply: whole where it only streams, or with ``stream_options``."""


def parse_reply(received: bytes) -> TextReply:
    """A chat completion. AttemptError for anything else, ConversationError for a refusal."""
    try:
        completion = json.loads(received)
        choice = completion["choices"][0]
        text = text_of(choice["message"]["content"])
        refusal = choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise AttemptError(f"the reply is not a chat completion: {error_text(received)}") from error
    if text is None and not refusal and choice.get("finish_reason") != "content_filter":
        found = type(choice["message"]["content"]).__name__
        raise AttemptError(f"the reply holds no text but {found}: {error_text(received)}")
    return _reply(text or "", refusal=refusal, finish=choice.get("finish_reason"), usage=completion.get("usage"))


def parse_stream(received: bytes) -> TextReply:
    """A reply that was sent in pieces, as server-sent events: the pieces joined. Raises as ``parse_reply``."""
    texts: list[str] = []
    refusals: list[str] = []
    finish: Any = None
    usage: Any = None
    ended = False
    for line in received.splitlines():
        field, _, value = line.partition(b":")
        value = value.strip()
        if field.strip() != b"data" or not value:
            continue  # comments that keep the connection alive, names of events
        if value == b"[DONE]":
            ended = True
            break
        try:
            event = json.loads(value)
            if "error" in event:
                raise AttemptError(f"the server broke off its reply: {error_text(value)}")
            usage = event.get("usage") or usage
            for choice in (event.get("choices") or [])[:1]:
                delta = choice.get("delta") or {}
                texts.append(text_of(delta.get("content")) or "")
                refusals += [delta["refusal"]] if isinstance(delta.get("refusal"), str) else []
                finish = choice.get("finish_reason") or finish
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AttemptError(f"the stream holds no piece of a chat completion: {error_text(value)}") from error
    if not ended and finish is None:
        raise AttemptError(f"the stream ended before the reply was complete, after {len(received)} bytes")
    return _reply("".join(texts), refusal="".join(refusals), finish=finish, usage=usage)


def _reply(text: str, *, refusal: Any, finish: Any, usage: Any) -> TextReply:
    if refusal or finish == "content_filter":
        raise ConversationError(f"the model refused: {error_text(str(refusal or 'content filter').encode())}")
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, reply_tokens = [count if isinstance(count, int) else None for count in counts]
    return TextReply(
        text=text, truncated=finish == "length", prompt_tokens=prompt_tokens, reply_tokens=reply_tokens
    )  # fmt: skip


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """A body without its content encoding, of at most ``most`` bytes: packed, it can be a thousandth of that."""
    if encoding.strip().lower() in ("", "identity"):
        return body
    unpacker = zlib.decompressobj(wbits=47)  # gzip or deflate, whichever header there is
    try:
        plain = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise AttemptError(f"the reply is marked as {encoding}, and cannot be unpacked ({error})") from error
    if len(plain) > most:
        raise too_long(most)
    return plain


def too_long(most: int) -> ConversationError:
    return ConversationError(f"a reply of more than {most} bytes, which max_tokens does not allow")


def error_text(received: bytes) -> str:
    """A server's own words, cut short and on one line."""
    text = printable(" ".join(received[:2000].decode("utf-8", "replace").split()))
    return (text[:300] + "…" if len(text) > 300 else text) or "an empty body"


def seconds_of(retry_after: str | None) -> float | None:
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
