"""Two hundred requests from sixteen clients, some of them broken, hostile or impatient (``pytest -m slow``)."""

from __future__ import annotations

import gc
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import client_of, data_url, message, running

pytestmark = pytest.mark.slow
KINDS = ("good", "good", "stream", "damaged", "nonsense", "gone", "too large", "good")


def resident() -> float:
    """Memory of this process in MB."""
    line = next(x for x in Path("/proc/self/status").read_text("ascii").splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def test_load(predictor, clips, tmp_path):
    """Nothing is lost or mixed up, every broken request gets its error, memory stays, and no file is left."""
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    urls = [data_url(clips / f"{i}.mp4") for i in range(8)]
    content = (clips / "0.mp4").read_bytes()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content[:700] + b"\0" * 500 + content[1200:1500])

    with running(predictor, waiting=16, megabytes=2.0, work_dir=tmp_path / "work") as server:
        client = client_of(server).with_options(max_retries=5)

        def ask(number: int, **more) -> str:
            known = {"model": "tiny", "messages": message(urls[number % 8]), "seed": number % 24, "max_tokens": 12}
            reply = client.chat.completions.create(**known, **more)
            if more.get("stream"):
                return "".join(chunk.choices[0].delta.content or "" for chunk in reply)
            return reply.choices[0].message.content

        wanted = [ask(number) for number in range(24)]

        def one(number: int) -> str:
            kind = KINDS[random.Random(number).randrange(len(KINDS))]
            if kind in ("good", "stream"):
                assert ask(number, stream=kind == "stream") == wanted[number % 24], number
            elif kind == "gone":
                body = json.dumps({"messages": message(urls[number % 8])}).encode()
                with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as gone:
                    gone.sendall(
                        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n" % len(body) + body[: len(body) // (1 + number % 2)]
                    )
            else:
                given = {
                    "damaged": damaged, "nonsense": "data:video/mp4;base64,QUJD",
                    "too large": "data:video/mp4;base64," + "A" * (4 * 2**20),
                }[kind]  # fmt: skip
                with pytest.raises(openai.APIStatusError) as caught:
                    client.chat.completions.create(model="tiny", messages=message(given))
                assert caught.value.status_code == (413 if kind == "too large" else 400), kind
            return kind

        with ThreadPoolExecutor(16) as pool:
            kinds = list(pool.map(one, range(100)))
            gc.collect()
            halfway = resident()
            kinds += list(pool.map(one, range(100, 200)))
        assert len(kinds) == 200 and set(kinds) == set(KINDS)
        deadline = time.monotonic() + 60
        while server.service.active or server.guard.body_bytes or server.service.batcher._rows:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gc.collect()
        assert resident() - halfway < 80
        assert max(server.service.batcher.batches) > 1
        assert list(server.service.folders.root.iterdir()) == []
    assert list((tmp_path / "work").iterdir()) == []
