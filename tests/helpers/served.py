"""A server in a thread of the test's process, and what its clients send."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FRAMES = "multiframe_audio_frame_text"
FACES = "multiface_audio_face_text"


@contextmanager
def running(predictor, *, page: bool = False, examples=(), **settings) -> Iterator:
    """A server in a thread of this process: ``address``, ``service``, ``guard``, ``page``."""
    from affectgpt.serve.server import Running
    from affectgpt.serve.service import ServeSettings, Service

    service = Service(predictor, ServeSettings(port=0, **settings), model="tiny")
    try:
        server = Running(service, page=page, examples=examples)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()
    finally:
        service.close()
        assert not service.folders.root.exists()


def client_of(server, key: str = "none"):
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=60)


def data_url(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def message(video: Path | str, text: str | None = None) -> list[dict]:
    url = video if isinstance(video, str) else data_url(video)
    parts: list[dict] = [{"type": "video_url", "video_url": {"url": url}}]
    return [{"role": "user", "content": parts + ([{"type": "text", "text": text}] if text else [])}]


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def call(server, method: str, path: str, body=None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of a request as it stands; ``body``: bytes, or what is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, content, {**given, **{k.replace("_", "-"): v for k, v in headers.items()}})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), text
