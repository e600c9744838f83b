"""Running it: the socket, signals, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from affectgpt.core.errors import AffectGPTError, ConfigError
from affectgpt.core.runtime import logger
from affectgpt.serve.api import build_api
from affectgpt.serve.schema import error_body
from affectgpt.serve.service import Service
from affectgpt.serve.shield import Shield

_HEADER_SECONDS = 10.0  # in which a request's head must be there
_POLL = 0.1  # seconds
_LOST_SECONDS = 5.0  # between the loss of the GPU and the end


class _Impatient(H11Protocol):
    """HTTP/1.1 with a time limit for a request's head: else connections that say nothing stay for ever. What is no HTTP
    is answered in JSON, too."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()  # of the next request on this connection
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(msg, kind="invalid_request_error")).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Takes nothing new after the first signal and ends when what runs has its answer; a second signal ends at once."""

    def __init__(self, config: uvicorn.Config, service: Service, shield: Shield) -> None:
        super().__init__(config)
        self.service, self.shield = service, shield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("shutting down: %d requests are being answered", self.service.inside)
        draining = asyncio.create_task(self._drain())
        await super().shutdown(sockets)
        draining.cancel()
        if self.force_exit:  # uvicorn leaves it out then
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        await asyncio.to_thread(self.service.drain)
        end = asyncio.get_running_loop().time() + self.service.settings.drain_timeout
        while (self.service.inside or self.shield.active) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL)
        await asyncio.sleep(_POLL)  # last bytes
        self.force_exit = True  # pages that are open would hold it for ever


class Running:
    """A server that listens. ``page``: adds the web page to the API's application and gives the folder of its uploads.

    Raises ConfigError when the port is taken.
    """

    def __init__(self, service: Service, *, page: Callable[[Any, Service], Any] | None = None) -> None:
        self.service = service
        settings = service.settings
        self._socket = _listen(settings.host, settings.port)
        app = build_api(service)
        folder, functions = (None, None) if page is None else page(app, service)
        self.shield = Shield(
            app, settings, upload_folder=folder, functions=functions, draining=lambda: self._server.should_exit
        )
        # No limit_concurrency: it counts idle connections, so that who only connects would shut everyone out.
        config = uvicorn.Config(
            self.shield, http=_Impatient, ws="none", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=15, h11_max_incomplete_event_size=1 << 16,
            timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
        )  # fmt: skip
        self._server = _Server(config, service, self.shield)
        # After a while, in which whoever watches /health sees why.
        service.batcher.on_lost = lambda: threading.Timer(_LOST_SECONDS, self.stop).start()
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}"
        what = f"and the page at {self.address}/" if page else "(--ui adds a page)"
        logger.info("%s: %s/v1 %s", service.model, self.address, what)
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


def run(service: Service, *, page: Callable[[Any, Service], Any] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; see Running."""
    running = Running(service, page=page)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises again what ended it
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
        listener.listen(2048)  # who comes before the first turn of the loop waits
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); name another --port, or 0 for any"
        ) from error
    return listener
