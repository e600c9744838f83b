"""A small OpenAI-compatible server on the loopback address that can misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server does with one request."""

    text: str | None = None  # a good reply
    finish: str = "stop"
    status: int = 200
    body: bytes | None = None  # instead of a chat completion
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before anything is sent
    break_off: bool = False  # promise more bytes than are sent
    hang_up: bool = False  # close the connection instead of answering
    usage: dict[str, int] | None = None  # tokens that the server says it took


def streamed(*pieces: str, usage: dict[str, int] | None = None, end: bool = True, finish: str = "stop") -> Answer:
    """A reply in pieces, as server-sent events; without ``end`` the stream stops in the middle."""
    events: list[Any] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if end:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        events += [{"choices": [], "usage": usage}] if usage else []
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"] * end
    body = (": keep alive\n\n" + "".join(lines)).encode()
    return Answer(body=body, headers={"Content-Type": "text/event-stream; charset=utf-8"})


class FakeServer:
    """``behave(text, attempt)`` decides each answer; ``text``: the last message; attempts count from 0."""

    def __init__(self, behave: Callable[[Any, int], Answer], *, whole: bool = False) -> None:
        """``whole``: ``behave`` gets the whole request instead of its text."""
        self.behave = behave
        self.whole = whole
        self.asked: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.block_on_close = False
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = body["messages"][-1]["content"]
                text = content if isinstance(content, str) else content[-1]["text"]
                with server._lock:
                    attempt = server.asked[text]
                    server.asked[text] += 1
                    server.requests.append(
                        {
                            "path": self.path,
                            "headers": {name.title(): value for name, value in self.headers.items()},
                            "body": body,
                        }
                    )
                    server.times.append(time.monotonic())
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    self._send(server.behave(body if server.whole else text, attempt))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with server._lock:
                        server._now -= 1

            def _send(self, answer: Answer) -> None:
                time.sleep(answer.delay)
                if answer.hang_up:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = answer.body
                if data is None:
                    message = {"role": "assistant", "content": answer.text}
                    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
                    completion = {"object": "chat.completion", "choices": [choice]}
                    data = json.dumps({**completion, **({"usage": answer.usage} if answer.usage else {})}).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) + (100 if answer.break_off else 0)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                if answer.break_off:
                    self.close_connection = True
                    self.connection.close()

        return Handler
