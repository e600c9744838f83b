"""A server that misbehaves, and the client that asks it."""

from __future__ import annotations

import pytest
from fake_llm_server import FakeServer

from affectgpt.textllm.base import open_client


@pytest.fixture
def serve(monkeypatch):
    """Start a server that behaves as told; its client makes short waits."""
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    servers = []

    def start(behave, **settings):
        server = FakeServer(behave)
        client = open_client(
            "openai",
            **{"base_url": server.url, "model": "tiny", "attempts": 3, "timeout": 5, **settings},
        )
        servers.append((server, client))
        return server, client

    yield start
    for server, client in servers:
        client.close()
        server.close()
