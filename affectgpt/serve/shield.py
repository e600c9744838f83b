"""What stands before every request: who is let in, how much is read, how long it may take, what may leave."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from affectgpt.core.files import parse_json
from affectgpt.core.runtime import logger
from affectgpt.serve.schema import error_body
from affectgpt.serve.settings import ServeSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_DISCARD_SECONDS = 2.0
_LOGIN = b'Basic realm="AffectGPT: any name, and the key as password", charset="UTF-8"'
_SMALL_BODY = 1 << 20  # bytes of what the page sends beside uploads
# What the page needs of gradio's addresses; all others (proxies, stored runs, component servers, …) do not exist.
_PAGE = (
    "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/startup-events", "/gradio_api/startup-events",
    "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/info", "/gradio_api/app_id",
)  # fmt: skip
_PAGE_FOLDERS = ("/assets/", "/static/", "/svelte/", "/theme.css", "/gradio_api/heartbeat/", "/gradio_api/file=")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    # the page's own scripts stand in it; nothing is loaded from, or sent to, anywhere else
    b"content-security-policy": b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; "
    b"base-uri 'self'; frame-ancestors 'none'",
}


class Shield:
    """An ASGI application around another one.

    ``upload_folder``: what the page may name in its requests; None: there is no page. ``functions``: what it may call,
    number → how many inputs. ``draining``: whether the server takes nothing new.
    """

    def __init__(
        self,
        app: App,
        settings: ServeSettings,
        *,
        upload_folder: Path | None = None,
        functions: Mapping[int, int] | None = None,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.settings = app, settings
        self.upload_folder = None if upload_folder is None else upload_folder.resolve()
        self.functions = functions or {}
        self.draining = draining
        self.active = 0  # requests of the API that have no answer yet
        self._bytes = 0  # of bodies that were read and have no answer yet
        self._uploading = self._uploaded_bytes = 0  # of uploads on their way, and of those that are there
        self._hosts = {settings.host.lower(), *map(str.lower, settings.allowed_hosts)}
        if settings.is_loopback:
            self._hosts |= set(_LOOPBACK_NAMES)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        call = _Call(self, scope, receive, send)
        is_api = scope["path"].startswith("/v1/")
        self.active += is_api
        try:
            refused = self._refused(scope, call)
            if refused is not None:
                await call.refuse(*refused)
                return
            if not await call.reserve():
                return
            await self.app(scope, call.receive, call.send)
        except OSError:
            pass  # the client is gone
        except Exception as error:
            if call.broken is None:
                logger.error("a request failed", exc_info=error)
                if not call.started:
                    await call.refuse(500, "the server failed", "server_error")
        finally:
            self.active -= is_api
            self._bytes -= call.read
            if call.is_upload:
                self._uploading -= call.read
                self.count_uploads()
            if call.broken and not call.started:
                await call.refuse(*call.broken)
            call.log()

    def _refused(self, scope: MutableMapping[str, Any], call: _Call) -> tuple[Any, ...] | None:
        """Status and words for whom is not let in."""
        path, headers = scope["path"], call.headers
        host = _host_of(headers.get("host", ""))
        if host is None or not (host in self._hosts or (not self.settings.is_loopback and _is_address(host))):
            return 421, "this server is not known by that name (Host); its operator can allow the name"
        origin = headers.get("origin")
        if origin is not None and (
            urlsplit(origin).scheme not in ("http", "https") or urlsplit(origin).netloc != headers.get("host")
        ):
            return 403, "requests of other sites' pages are refused (Origin)"
        is_link = scope["method"] == "GET" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if headers.get("sec-fetch-site") == "cross-site" and not is_link:
            return 403, "requests of other sites' pages are refused (Sec-Fetch-Site)"
        if self.draining() and path != "/health":
            return 503, "the server is shutting down", "server_error", {b"retry-after": b"5", b"connection": b"close"}
        if path == "/health":
            return None
        if self.settings.api_key is not None and not self._has_key(headers.get("authorization", "")):
            # Without a key there is nothing but this answer, and no connection stays open.
            words = "a key is needed: Authorization: Bearer KEY; in a browser, any name with the key as its password"
            ask = {b"connection": b"close"} | ({} if path.startswith("/v1/") else {b"www-authenticate": _LOGIN})
            return 401, words, "authentication_error", ask
        if not path.startswith("/v1/") and not self._of_page(path):
            return 404, "no such address"
        return None

    def _has_key(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        key = key.strip()
        if kind.lower() == "basic":  # a browser's: name:password in base64
            try:
                key = base64.b64decode(key.encode(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        assert self.settings.api_key is not None
        return hmac.compare_digest(key.encode(), self.settings.api_key.encode())

    def _of_page(self, path: str) -> bool:
        if self.upload_folder is None:
            return False
        if path == "/" or path.rstrip("/") in _PAGE:
            return True
        if path.startswith("/gradio_api/file="):
            return self._uploaded(path.removeprefix("/gradio_api/file="))
        return path.startswith(_PAGE_FOLDERS) and ".." not in path

    def _uploaded(self, path: Any) -> bool:
        """Whether a path is one of a file that was uploaded, wherever links lead."""
        if not isinstance(path, str) or "\0" in path or len(path) > 4096:
            return False
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.upload_folder or Path("/none"))
        except (OSError, RuntimeError):
            return False

    def count_uploads(self) -> None:
        """See how much of uploads is there."""
        self._uploaded_bytes = 0
        for path in self.upload_folder.rglob("*") if self.upload_folder else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                self._uploaded_bytes += path.lstat().st_size

    def names_only_uploads(self, value: Any) -> bool:
        """Whether all files that a request of the page names were uploaded. Gradio reads any file."""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                if "path" in item and not (item["path"] in (None, "") or self._uploaded(item["path"])):
                    return False
                stack += item.values()
            elif isinstance(item, list):
                stack += item
        return True


class _Call:
    """One request on its way: what is read of it, and what is sent."""

    def __init__(self, shield: Shield, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.shield, self.scope, self._receive, self._send = shield, scope, receive, send
        self.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        self.began = time.monotonic()
        self.started = False
        self.status = 0
        self.read = 0
        self.broken: tuple[Any, ...] | None = None
        self._whole: list[Message] = []
        self._body_done = False
        path = scope["path"]
        small = path.startswith("/gradio_api/") and path.rstrip("/") != "/gradio_api/upload"
        self.is_page_json = small and scope["method"] == "POST"
        settings = shield.settings
        self.is_upload = path.rstrip("/") == "/gradio_api/upload"
        self.most = _SMALL_BODY if small else settings.media_bytes + 2**20 if self.is_upload else settings.body_bytes

    async def reserve(self) -> bool:
        """Whether there is room for the body; else the client has been answered."""
        if self.scope["method"] in ("GET", "HEAD"):
            return True
        length = self.headers.get("content-length")
        expected = int(length) if length is not None and length.isascii() and length.isdigit() else None
        if expected is not None and expected > self.most:
            await self.refuse(413, self._too_large())
            return False
        if self.is_upload:
            self.shield.count_uploads()
        full = self._full(expected or 0)
        if full is not None:
            await self.refuse(*full)
            return False
        return not self.is_page_json or await self._page_json()

    async def receive(self) -> Message:
        """The next part of the body, in time and within its limit; else the application sees a client that is gone."""
        if self._whole:
            return self._whole.pop(0)
        if self._body_done:
            return await self._receive()
        settings = self.shield.settings
        left = self.began + settings.body_timeout - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, min(settings.read_timeout, left)))
        except TimeoutError:
            self.broken = (408, "the request came too slowly")
            return {"type": "http.disconnect"}
        size = len(message.get("body", b""))
        self.read += size
        self.shield._bytes += size
        self.shield._uploading += size * self.is_upload
        self._body_done = not message.get("more_body", False)
        if self.read > self.most:
            self.broken = (413, self._too_large())
        else:
            self.broken = self._full(0)
        return message if self.broken is None else {"type": "http.disconnect"}

    def _full(self, expected: int) -> tuple[Any, ...] | None:
        """The answer where ``expected`` more bytes are too many. What was only promised by others counts for nothing:
        who sends slowly would shut everyone out."""
        shield, settings = self.shield, self.shield.settings
        if shield._bytes + expected > settings.memory_megabytes * 2**20:
            words = "too many requests are being read; try again in a moment"
            return 429, words, "rate_limit_error", {b"retry-after": b"2"}
        there = shield._uploaded_bytes + shield._uploading
        if self.is_upload and there + expected > settings.uploads_megabytes * 2**20:
            words = (
                f"the uploads of this server are full ({settings.uploads_megabytes:g} MB); try again in some minutes"
            )
            return 429, words, "rate_limit_error", {b"retry-after": b"60"}
        return None

    async def send(self, message: Message) -> None:
        """Send a part of the answer; a client that does not take it in time is gone."""
        if self.broken is not None and not self.started:
            return  # the shield's own words follow
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"], *((k, v) for k, v in _HEADERS.items() if k not in present),
            ]  # fmt: skip
        try:
            await asyncio.wait_for(self._send(message), self.shield.settings.read_timeout)
        except TimeoutError:
            raise ConnectionError("the client does not read") from None

    async def refuse(
        self, status: int, words: str, kind: str = "invalid_request_error", headers: dict[bytes, bytes] | None = None
    ) -> None:
        """Answer with an error in OpenAI's form. Some of a body that still comes is thrown away first: a client that
        writes to a closed connection would not see the answer."""
        if not self._body_done and self.broken is None and self.scope["method"] not in ("GET", "HEAD"):
            await self._discard()
        body = json.dumps(error_body(words, kind=kind)).encode()
        made = {b"content-type": b"application/json", b"content-length": str(len(body)).encode(), **_HEADERS}
        if status in (408, 413, 429):
            made[b"connection"] = b"close"
        self.started, self.status = True, status
        start = {"type": "http.response.start", "status": status, "headers": [*{**made, **(headers or {})}.items()]}
        for message in (start, {"type": "http.response.body", "body": body}):
            try:
                await asyncio.wait_for(self._send(message), self.shield.settings.read_timeout)
            except (TimeoutError, OSError):
                return

    async def _discard(self) -> None:
        if "expect" in self.headers:  # the client waits with the body
            return
        end, left = time.monotonic() + _DISCARD_SECONDS, 2 * self.shield.settings.body_bytes
        try:
            while left > 0 and (seconds := end - time.monotonic()) > 0:
                message = await asyncio.wait_for(self._receive(), seconds)
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
        except TimeoutError:
            return

    def log(self) -> None:
        """One line without media, names of files, or keys."""
        path = self.scope["path"]
        shown = path if path.startswith(("/v1/chat", "/v1/models")) or path == "/health" else "(page)"
        if shown != "(page)" or self.status >= 400:
            seconds = time.monotonic() - self.began
            logger.info("%s %s %d, %.2f s, %d bytes", self.scope["method"], shown[:64], self.status, seconds, self.read)

    async def _page_json(self) -> bool:
        """Read a small body of the page, and let it through when it names no file but uploaded ones."""
        parts = []
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return False
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = b"".join(parts)
        try:
            value = parse_json(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            await self.refuse(400, "the body must be a JSON object")
            return False
        if not self.shield.names_only_uploads(value):
            await self.refuse(403, "a request may name files only that were uploaded")
            return False
        if self.scope["path"].rstrip("/") == "/gradio_api/queue/join" and not self._is_call(value):
            await self.refuse(400, "the page has no such function (fn_index, data, session_hash)")
            return False
        self._whole = [{"type": "http.request", "body": body, "more_body": False}]
        return True

    def _is_call(self, value: Mapping[str, Any]) -> bool:
        """Whether a request calls a function that the page has, with as many inputs as it takes."""
        number, data = value.get("fn_index"), value.get("data")
        if type(number) is not int or not isinstance(data, list) or not isinstance(value.get("session_hash"), str):
            return False
        return self.shield.functions.get(number) == len(data)

    def _too_large(self) -> str:
        media = f"; media may have {self.shield.settings.megabytes:g} MB" if self.most > _SMALL_BODY else ""
        return f"the request is larger than {self.most / 2**20:.0f} MB{media}"


def _host_of(header: str) -> str | None:
    """The host of a Host header, without its port; None for what is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower() or None if "@" not in header else None
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    """An address in digits cannot be made to point here by another's name server."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
