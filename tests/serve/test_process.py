"""The command itself: what it refuses to start, how it ends, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import FRAMES, client_of, data_url, message

from affectgpt.cli import serve as command
from affectgpt.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """``affectgpt serve`` of the tiny model, with its log read beside it."""

    def __init__(self, world, *arguments: str, work: Path) -> None:
        line = [sys.executable, "-m", "affectgpt.cli.main", "serve", "--cfg-path", str(world.yaml), "--mode", FRAMES,
                "--port", "0", "--work-dir", str(work), *arguments]  # fmt: skip
        self.process = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.lines: list[str] = []
        self._known = threading.Event()
        self.address = ""
        threading.Thread(target=self._read, daemon=True).start()
        assert self._known.wait(120), self.lines
        assert self.address, self.lines

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/v1", line):
                self.address = found[1]
                self._known.set()
        self._known.set()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def start(served_world, tmp_path):
    made = []

    def run(*arguments: str) -> Process:
        made.append(Process(served_world, *arguments, work=tmp_path / "work"))
        return made[-1]

    yield run
    for one in made:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()


def test_sigterm_finishes_what_runs_and_refuses_the_rest(start, clips, tmp_path):
    """Ended while an answer is streamed: that one comes whole, one that waits behind it is refused, nothing is left."""
    second = start("--max-batch", "1", "--options", "inference.max_new_tokens=600")
    assert len(list((tmp_path / "work").iterdir())) == 1
    client = client_of(second)
    asked = {"model": "tiny", "messages": message(clips / "0.mp4"), "seed": 1}
    stream = iter(client.chat.completions.create(**asked, stream=True))
    got = [next(stream), next(stream)]  # it runs
    waiting: dict[str, object] = {}

    def wait() -> None:
        import openai

        try:
            client.chat.completions.create(**asked)
        except openai.APIStatusError as error:
            waiting["status"], waiting["retry"] = error.status_code, error.response.headers.get("retry-after")

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 60
    while client.get("/../health", cast_to=object)["requests"] < 2:  # type: ignore[index]
        assert time.monotonic() < deadline
    second.process.send_signal(signal.SIGTERM)
    got += list(stream)
    assert got[-1].choices[0].finish_reason in ("stop", "length")
    thread.join(60)
    assert waiting == {"status": 503, "retry": "5"}
    assert second.process.wait(60) == 0
    assert list((tmp_path / "work").iterdir()) == []
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(second.address.rpartition(":")[2])), timeout=5)


def test_an_open_page_does_not_hold_up_the_end(start):
    """Its stream never ends by itself; it is closed without an error in the log."""
    pytest.importorskip("gradio", reason="the extra [page] is not installed")
    served = start("--ui")
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2]))) as page:
        page.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in page.recv(1000)
        assert served.end(signal.SIGTERM) == 0
    assert not [line for line in served.lines if "Traceback" in line or "Cancel" in line]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key-env NAME"),
        (["--api-key-env", "NO_SUCH_NAME"], "no environment variable"),
        (["--media-root", "/no/such/folder"], "no such folder"),
        (["--max-seconds", "-1"], "expected a positive number"),
        ([], "give --cfg-path FILE, or --hf DIR"),
        (["--hf", "x", "--checkpoint", "y"], "--hf has weights of its own"),
        (["--asr-language", "en", "--hf", "x"], "--asr FOLDER"),
    ],
)
def test_what_is_not_started(arguments, words):
    with pytest.raises(ConfigError, match=words):
        command.main(arguments)


@pytest.mark.parametrize(("package", "extra"), [("fastapi", "web"), ("gradio", "page")])
def test_a_missing_extra_is_named_before_a_model_is_loaded(monkeypatch, package, extra):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    with pytest.raises(ConfigError, match=rf"pip install 'affectgpt\[{extra}\]'"):
        command.main(["--hf", "no-such-folder", "--ui"])


def test_a_port_that_is_taken(predictor):
    from affectgpt.serve.server import Running
    from affectgpt.serve.service import ServeSettings, Service

    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = Service(predictor, ServeSettings(port=taken.getsockname()[1]), model="tiny")
        try:
            with pytest.raises(ConfigError, match="cannot listen there"):
                Running(service)
        finally:
            service.close()


def test_clients_that_go_away_cost_nothing(server, clips):
    """An answer that nobody waits for ends at its next token, and its place is free again."""
    client = client_of(server)
    stream = client.chat.completions.create(model="tiny", messages=message(clips / "0.mp4"), stream=True)
    next(iter(stream))
    stream.close()
    body = json.dumps({"messages": message(data_url(clips / "1.mp4"))}).encode()
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as gone:
        gone.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
    deadline = time.monotonic() + 30
    while server.service.active or list(server.service.folders.root.iterdir()):
        assert time.monotonic() < deadline


def test_who_was_just_answered_may_ask_again_before_the_next_batch(monkeypatch):
    """Else a row that comes late for a batch would be answered alone, and late again for each after it."""
    from affectgpt.serve.batcher import Batcher

    answered, late, done = [], threading.Event(), threading.Event()

    class Counting(Batcher):
        def _answer(self, rows):
            answered.append(len(rows))
            if len(answered) == 1:
                self.submit([row()])  # came while the batch ran
                late.set()
            else:
                done.set()

    def row():
        return SimpleNamespace(batch_key="same", answer=Future())

    monkeypatch.setattr("affectgpt.serve.batcher._PAUSE", 30)
    batcher = Counting(None, wait=30, max_rows=2)
    try:
        batcher.submit([row(), row()])
        assert late.wait(30)
        time.sleep(0.3)  # as long as a client takes that asks again
        batcher.submit([row()])
        assert done.wait(30)
    finally:
        batcher.close()
    assert answered == [2, 2]
