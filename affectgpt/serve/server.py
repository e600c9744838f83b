"""Running a server: checks before every request, the socket, signals, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import logger
from affectgpt.serve.api import build_api, error_body, error_response
from affectgpt.serve.page import UPLOAD, MountedPage, add_page
from affectgpt.serve.service import Service

_POLL_SECONDS = 0.1
_LOST_SECONDS = 5.0  # between the loss of the GPU and the end, in which whoever watches /health sees why
_SMALL_BODY = 1 << 20  # bytes of a request of the page that is no upload
_LOGIN = 'Basic realm="AffectGPT: any name, and the key as password", charset="UTF-8"'
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    # The page holds its own scripts; nothing is loaded from, or sent to, anywhere else.
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; "
    "base-uri 'self'; frame-ancestors 'none'",
}


class RequestGuard:
    """Middleware of the API and the page: who may ask, how much is read and how long, one log line, errors in JSON."""

    def __init__(self, service: Service, page: MountedPage | None) -> None:
        self.settings, self.page = service.settings, page
        self.body_bytes = 0  # of all requests that have no answer yet
        self._uploading = 0  # of them, bytes of uploads that are being written
        self._hosts = {self.settings.host.lower(), *map(str.lower, self.settings.allowed_hosts)}
        if self.settings.is_loopback:
            self._hosts |= {"localhost", "127.0.0.1", "::1"}

    async def __call__(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Answer one request."""
        began, size, path = time.monotonic(), 0, request.scope["path"]
        is_upload = path == UPLOAD
        try:
            self._check_access(request)
            if request.method not in ("GET", "HEAD"):
                # Read here, within all limits: until its body has arrived, a request takes nobody else's place.
                most = self._max_body(path)
                if int(request.headers.get("content-length", "0")) > most:
                    raise self._too_large(most)
                parts = []
                try:
                    async with asyncio.timeout(self.settings.body_timeout):
                        async for part in request.stream():
                            size += len(part)
                            self.body_bytes += len(part)
                            self._uploading += len(part) * is_upload
                            if size > most:
                                raise self._too_large(most)
                            if self.body_bytes > self.settings.memory_megabytes * 2**20:
                                raise _busy("too many requests are being read; try again in a moment", seconds=2)
                            parts.append(part)
                except TimeoutError:
                    raise HTTPException(408, "the request came too slowly") from None
                request._body = b"".join(parts)  # BaseHTTPMiddleware hands it on
                del parts
                if self.page is not None:
                    self._check_page_request(path, request._body, self.page)
            response = await call_next(request)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:
            response = error_response(error)
        finally:
            self.body_bytes -= size
            self._uploading -= size * is_upload
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        # Neither media nor questions, names of files or keys are logged.
        is_api = path in ("/v1/chat/completions", "/v1/models", "/health")
        if is_api or response.status_code >= 400:
            seconds = time.monotonic() - began
            shown = path if is_api else "(page)"
            logger.info("%s %s %d, %.2f s, %d bytes", request.method, shown, response.status_code, seconds, size)
        return response

    def _check_access(self, request: Request) -> None:
        """Host and origin, then the key, then whether there is such an address. Raises HTTPException."""
        settings, headers, path = self.settings, request.headers, request.scope["path"]
        host = _host_name(headers.get("host", ""))
        # Another site's name may point here (DNS rebinding); an address in digits cannot.
        if host not in self._hosts and (settings.is_loopback or not _is_address(host)):
            raise HTTPException(421, "this server is not known by that name (Host); its operator can allow the name")
        # Browsers send these two with requests of other sites' pages, which could use a login or the loopback address.
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{headers['host']}", f"https://{headers['host']}"):
            raise HTTPException(403, "requests of other sites' pages are refused (Origin)")
        is_link = request.method == "GET" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if headers.get("sec-fetch-site") == "cross-site" and not is_link:
            raise HTTPException(403, "requests of other sites' pages are refused (Sec-Fetch-Site)")
        if path == "/health":
            return
        if settings.api_key is not None and not _has_key(headers.get("authorization", ""), settings.api_key):
            raise HTTPException(
                401, "a key is needed: Authorization: Bearer KEY; in a browser, any name with the key as its password",
                headers=None if path.startswith("/v1/") else {"WWW-Authenticate": _LOGIN},
            )  # fmt: skip
        if not path.startswith("/v1/") and (self.page is None or not self.page.has_address(path)):
            raise HTTPException(404)

    def _max_body(self, path: str) -> int:
        if path == UPLOAD:
            return int(self.settings.megabytes * 2**20) + _SMALL_BODY  # with its multipart headers
        return _SMALL_BODY if path.startswith("/gradio_api/") else self.settings.body_bytes

    def _too_large(self, most: int) -> HTTPException:
        media = "" if most == _SMALL_BODY else f"; media may have {self.settings.megabytes:g} MB"
        return HTTPException(413, f"the request is larger than {most / 2**20:.0f} MB{media}")

    def _check_page_request(self, path: str, body: bytes, page: MountedPage) -> None:
        if path != UPLOAD:
            page.check_call(path, body)
            return
        most = self.settings.uploads_megabytes
        if page.upload_bytes() + self._uploading > most * 2**20:
            raise _busy(f"the uploads of this server are full ({most:g} MB); try again in some minutes", seconds=60)


def _busy(message: str, *, seconds: int) -> HTTPException:
    return HTTPException(429, message, headers={"Retry-After": str(seconds)})


def _has_key(authorization: str, expected: str) -> bool:
    kind, _, key = authorization.partition(" ")
    key = key.strip()
    if kind.lower() == "basic":  # a browser's login: base64 of name:password
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(key.encode(), expected.encode())


def _host_name(header: str) -> str:
    """Host of a Host header, without its port; empty for an invalid one."""
    try:
        return "" if "@" in header else (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class _Protocol(H11Protocol):
    """HTTP/1.1 that answers what is no HTTP in JSON, too; uvicorn has no setting for it."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(400, msg)).encode()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """Refuse new requests after the first signal and end when running ones are answered; a second one ends at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("shutting down: %d requests are being answered", self.service.active)
        self.service.drain()
        end = time.monotonic() + self.service.settings.drain_timeout
        while self.service.active and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.sleep(_POLL_SECONDS)  # in which the last answers are written
        for connection in list(self.server_state.connections):
            connection.transport.close()  # open pages hold streams that never end
        await super().shutdown(sockets)


class Running:
    """A server that listens. ``page``: also serve the web page, with ``examples``: clips and what is said in them.

    Raises ConfigError when the port is taken.
    """

    def __init__(self, service: Service, *, page: bool = False, examples: Sequence[tuple[Path, str]] = ()) -> None:
        self.service = service
        settings = service.settings
        self._socket = _listen(settings.host, settings.port)
        self.app = build_api(service)
        self.page = add_page(self.app, service, examples=examples) if page else None
        self.guard = RequestGuard(service, self.page)
        self.app.add_middleware(BaseHTTPMiddleware, dispatch=self.guard)
        # No limit_concurrency: it counts idle connections, so that clients who only connect would shut out all others.
        config = uvicorn.Config(
            self.app, http=_Protocol, ws="none", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, h11_max_incomplete_event_size=1 << 16, timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = _Server(config, service)
        service.batcher.on_lost = lambda: threading.Timer(_LOST_SECONDS, self.stop).start()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.address = f"http://{host}:{self._socket.getsockname()[1]}"
        hint = f"and the page at {self.address}/" if page else "(--ui adds a page)"
        logger.info("%s: %s/v1 %s", service.model, self.address, hint)
        if not settings.is_loopback and settings.api_key is None:
            logger.warning("everybody who reaches %s may use it (--no-auth)", self.address)

    def serve(self) -> None:
        """Answer requests until ``stop``, or in the main thread SIGTERM or Ctrl-C."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Take nothing new, and end when what runs has its answer. From any thread."""
        self._server.should_exit = True


def run(service: Service, *, page: bool = False, examples: Sequence[tuple[Path, str]] = ()) -> None:
    """Serve until SIGTERM or Ctrl-C; see Running. Raises AffectGPTError when the GPU was lost."""
    running = Running(service, page=page, examples=examples)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again that ended it
    try:
        running.serve()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    if service.batcher.lost is not None:
        raise AffectGPTError(
            f"the GPU is lost ({service.batcher.lost}); start the server again, on another GPU if it stays so"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # clients that come before the first turn of the loop wait
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); name another --port, or 0 for any"
        ) from error
    return listener
