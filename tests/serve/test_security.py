"""Nobody gets in, nothing gets out: each promise with the request that would break it."""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from drawn_clip import write_clip
from served import data_url, message, running

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.media.guard import Decoder
from affectgpt.media.limits import MediaLimits
from affectgpt.serve import fetch as fetching
from affectgpt.serve.folders import PrivateFolders
from affectgpt.serve.settings import ServeSettings


def post(server, body, *, path: str = "/v1/chat/completions", **headers: str):
    """Status, headers and JSON of a request as it stands; nothing is added but its length."""
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("POST", path, content, given)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), json.loads(text) if text else {}


def ask(server, url: str, **more):
    return post(server, {"messages": message(url), "seed": 1, "max_tokens": 2, **more})


def words(answer) -> str:
    return answer[2]["error"]["message"]


def test_other_machines_need_a_key_or_no_auth():
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(ConfigError, match=r"--api-key-env NAME.*--no-auth"):
            ServeSettings(host=host)
        assert ServeSettings(host=host, no_auth=True) and ServeSettings(host=host, api_key="a-long-key")
    assert all(ServeSettings(host=host).is_loopback for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"))
    with pytest.raises(ConfigError, match="fewer than 8"):
        ServeSettings(api_key="short")


def test_a_key_is_asked_for(predictor, clips, client):
    import openai
    from served import client_of

    with running(predictor, api_key="correct horse") as server:
        for headers in ({}, {"Authorization": "Bearer wrong horse"}, {"Authorization": "Basic correct horse"},
                        {"Authorization": "Bearer "}, {"Authorization": "Bearer é"}):  # fmt: skip
            status, _, answer = post(server, {}, **headers)
            assert status == 401 and answer["error"]["type"] == "authentication_error"
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").models.list()
        assert [m.id for m in client_of(server, "correct horse").models.list()] == ["tiny"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a@127.0.0.1", "[::"]
)
def test_a_name_that_is_not_ours_is_refused(server, host):
    """A page of another site whose name server points at this machine (DNS rebinding)."""
    assert post(server, {}, Host=host)[0] in (400, 421)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Origin", "https://evil.example"), ("Origin", "null"), ("Origin", "file://"), ("Sec-Fetch-Site", "cross-site")],
)
def test_pages_of_other_sites_are_refused(server, name, value):
    assert post(server, {}, **{name: value})[0] == 403


def test_our_own_page_and_a_form_of_nobody(server):
    assert post(server, {}, Origin=server.address)[0] == 400  # let in, and then found empty
    assert post(server, {}, Content_Type="text/plain")[0] == 415  # what a form of another site could send


def test_hosts_by_name_or_address_where_others_may_come(predictor):
    with running(predictor, host="0.0.0.0", no_auth=True, allowed_hosts=("gpu.lab",)) as server:
        port = urlsplit(server.address).port
        server.address = f"http://127.0.0.1:{port}"
        for host in ("gpu.lab", f"gpu.lab:{port}", "192.0.2.7", f"127.0.0.1:{port}"):
            assert post(server, {}, Host=host)[0] == 400
        assert post(server, {}, Host="evil.example")[0] == 421


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.mp4", "https://example.org/a.mp4", "http://169.254.169.254/latest", "ftp://a/b", "a.mp4",
     "//a/b", "gopher://a", "", "http://[::1]/a"],
)  # fmt: skip
def test_other_media_are_off(server, url):
    status, _, answer = ask(server, url)
    assert status == 400 and ("operator allows" in answer["error"]["message"] or "begins with" in str(answer))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1", "fc00::1", "0.0.0.0",
                "::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1", "2002:7f00:1::"],
)  # fmt: skip
def test_an_allowed_host_at_a_private_address_is_refused(monkeypatch, address):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *a, **k: [public, *found])
    with pytest.raises(DataError, match="no public address"):
        list(fetching.fetch("http://media.example/a.mp4", hosts=["media.example"], largest=100))
    assert fetching.is_public("93.184.216.34") and fetching.is_public("2606:2800:220:1::1")


class MediaHost(HTTPServer):
    """Serves bytes below /clip, and redirects below /to/."""

    def __init__(self, content: bytes) -> None:
        self.asked: list[tuple[str, str]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.headers["Host"], self.path))
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/to/"))
                    self.end_headers()
                    return
                self.send_response(200 if self.path == "/clip" else 404)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def media_host(clips, monkeypatch):
    host = MediaHost((clips / "0.mp4").read_bytes())
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")  # plays the internet
    real = socket.getaddrinfo
    names = {"media.example": "127.0.0.1", "inside.example": "10.0.0.1"}
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda name, *a, **k: real(names.get(name, name), *a, **k))
    yield host
    host.shutdown()
    host.server_close()


def test_media_of_an_allowed_host_are_fetched_and_each_redirect_is_looked_at(predictor, media_host):
    port = media_host.server_port
    base = f"http://media.example:{port}"
    with running(predictor, media_hosts=("media.example", "inside.example")) as server:
        assert ask(server, f"{base}/clip")[0] == 200
        assert media_host.asked == [(f"media.example:{port}", "/clip")]  # by address, under its name
        assert ask(server, f"{base}/to/{base}/clip")[0] == 200
        assert "no public address" in words(ask(server, f"{base}/to/http://inside.example:{port}/clip"))
        assert "operator allows" in words(ask(server, f"{base}/to/http://127.0.0.1:{port}/clip"))
        assert "plain http(s)" in words(ask(server, f"{base}/to/file:///etc/passwd"))
        assert "status 404" in words(ask(server, f"{base}/other"))
        loop = f"{base}/to/{base}/to/{base}/to/{base}/to/{base}/clip"
        assert "redirects more than" in words(ask(server, loop))
    with pytest.raises(DataError, match="larger than"):
        list(fetching.fetch(f"{base}/clip", hosts=["media.example"], largest=100))


def test_files_below_the_media_root_alone(predictor, tmp_path):
    root, outside = tmp_path / "root", write_clip(tmp_path / "outside.mp4")
    write_clip(root / "in.mp4")
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "good.mp4").symlink_to(root / "in.mp4")
    os.mkfifo(root / "pipe.mp4")
    with running(predictor, media_root=root) as server:
        assert ask(server, f"file://{root}/in.mp4")[0] == 200
        assert ask(server, f"file://localhost{root}/good.mp4")[0] == 200
        for url in (
            f"file://{outside}", f"file://{root}/../outside.mp4", f"file://{root}/link.mp4", f"file://{root}/pipe.mp4",
            f"file://{root}/folder/outside.mp4", f"file://{root}/%2e%2e/outside.mp4", f"file://{root}", "file:///",
            "file:///etc/passwd", "file:///proc/self/environ", f"file://other{root}/in.mp4", f"file://{root}/in.mp4%00",
            f"file://{root}/none.mp4", "file:in.mp4", "file://[",
        ):  # fmt: skip
            status, _, answer = ask(server, url)
            assert status == 400 and str(tmp_path) not in json.dumps(answer), url
    with running(predictor) as server:
        assert "media folder" in words(ask(server, f"file://{root}/in.mp4"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "known format"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 300, "known format"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 300, "no readable video"),
        (b"RIFF\x10\0\0\0WAVEfmt " + b"\xff" * 300, "the video"),
        (b"", "no bytes"),
    ],
)
def test_what_is_no_media_is_refused_without_a_path(server, content, expected):
    import base64

    status, _, answer = ask(server, f"data:video/mp4;base64,{base64.b64encode(content).decode()}")
    assert status == 400 and expected in answer["error"]["message"]
    assert "/" not in answer["error"]["message"].replace("and/or", "").split("base64")[0].replace("http(s)", "")


def drawn(
    path: Path, *, frames: int = 10, size: tuple[int, int] = (64, 64), rate: int = 10, change: bool = False
) -> Path:
    """A video of noise; with ``change`` its second half is larger."""
    import av
    import numpy as np

    def part(target, width, height, count):
        with av.open(target, "w", format="mpegts" if change else None) as container:
            stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    if not change:
        part(str(path), *size, frames)
        return path
    halves = []
    for one in ((64, 64), size):
        buffer = io.BytesIO()
        part(buffer, *one, frames // 2)
        halves.append(buffer.getvalue())
    path.write_bytes(b"".join(halves))
    return path


LIMITS = MediaLimits(seconds=2, longer_side=320, shorter_side=240, frames_per_second=30)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frames": 40}, "s long; at most 2"),
        ({"size": (400, 64)}, "400x64 pixels; at most 320x240"),
        ({"size": (300, 300)}, "300x300"),
        ({"frames": 60, "rate": 60}, "frames per second; at most 30"),
        ({"size": (640, 64), "change": True}, "640x64"),  # the header says 64x64
    ],
)
def test_limits_by_header_and_while_decoding(tmp_path, options, expected):
    with pytest.raises(DataError, match=expected):
        Decoder().check(drawn(tmp_path / ("a.ts" if options.get("change") else "a.mp4"), **options), limits=LIMITS)


def test_a_header_that_lies_about_its_length(tmp_path):
    """A hundred frames, and one second by all that the header says: what is in it is counted."""
    path = drawn(tmp_path / "a.mp4", frames=100)
    data = bytearray(path.read_bytes())
    for box, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        place = data.index(box) + at
        data[place : place + 4] = (1000 if box != b"mdhd" else 10240).to_bytes(4, "big")
    place = data.index(b"elst") + 12
    data[place : place + 4] = (1000).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(DataError, match="at most"):
        Decoder().check(path, limits=LIMITS)
    assert Decoder().check(drawn(tmp_path / "b.mp4"), limits=LIMITS).has_video


def test_sound_is_limited_too(tmp_path):
    import numpy as np
    import soundfile

    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(16_000 * 5), 16_000)
    with pytest.raises(DataError, match="at most 2"):
        Decoder().check(path, limits=LIMITS)
    with pytest.raises(DataError, match="at most 2"):
        Decoder().sound(path, limits=LIMITS)


def test_limits_reach_the_server(predictor, tmp_path):
    path = drawn(tmp_path / "a.mp4", frames=40)
    with running(predictor, media=LIMITS, megabytes=0.01) as server:
        refused = ask(server, data_url(path))
        assert refused[0] == 413 and "larger than 0.01 MB" in words(refused)
    with running(predictor, media=LIMITS) as server:
        assert "s long; at most 2" in words(ask(server, data_url(path)))


def test_a_body_that_is_too_large_is_not_read(predictor):
    with running(predictor, megabytes=1.0) as server, socket.create_connection(netloc(server)) as client:
        most = server.service.settings.body_bytes
        client.sendall(head(f"Content-Length: {most + 1}\r\n"))
        assert b" 413 " in client.recv(1000)
    with running(predictor, megabytes=1.0) as server, socket.create_connection(netloc(server)) as client:
        client.sendall(head("Transfer-Encoding: chunked\r\n"))
        client.settimeout(30)
        block, got = b"10000\r\n" + b"x" * 65536 + b"\r\n", b""
        try:
            for _ in range(most // 65536 + 20):
                client.sendall(block)
            got = client.recv(1000)
        except OSError:
            got = got or b" 413 "  # closed while we were still sending
        assert b" 413 " in got


def netloc(server) -> tuple[str, int]:
    return "127.0.0.1", urlsplit(server.address).port


def head(more: str) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + more + "\r\n"
    ).encode()


def test_slow_clients_are_shown_out(predictor, monkeypatch):
    from affectgpt.serve import server as module

    monkeypatch.setattr(module, "_HEADER_SECONDS", 0.5)
    with running(predictor, read_timeout=0.5) as server:
        body, silent, later = (socket.create_connection(netloc(server), timeout=20) for _ in range(3))
        with body, silent, later:
            silent.sendall(b"POST /v1/chat")  # never the rest of its head
            body.sendall(head("Content-Length: 1000\r\n") + b"{")
            later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 408 " in body.recv(1000) and b" 200 " in later.recv(1000)
            later.sendall(b"GET /hea")  # the second head on a connection
            assert silent.recv(1000) == b"" and later.recv(1000) == b""
        deadline = time.monotonic() + 20
        while server.service.inside:
            assert time.monotonic() < deadline


def test_a_full_house_answers_429_with_retry_after(predictor, clips):
    with running(predictor, waiting=2) as server:
        release = threading.Event()
        read = server.service._read
        server.service._read = lambda *a: release.wait(30) and read(*a)
        with ThreadPoolExecutor(2) as pool:
            url = data_url(clips / "0.mp4")
            first = [pool.submit(ask, server, url) for _ in range(2)]
            deadline = time.monotonic() + 20
            while server.service.inside < 2:
                assert time.monotonic() < deadline
            status, headers, answer = ask(server, url)
            release.set()
            assert [one.result()[0] for one in first] == [200, 200]
        assert status == 429 and int(headers["retry-after"]) > 0 and answer["error"]["type"] == "rate_limit_error"
        assert ask(server, url)[0] == 200


def test_bodies_together_are_limited(predictor):
    with running(predictor, megabytes=4, memory_megabytes=8) as server:
        with socket.create_connection(netloc(server)) as slow:
            slow.sendall(head(f"Content-Length: {6 * 2**20}\r\n") + b"{")
            deadline = time.monotonic() + 20
            while not server.shield._bytes:
                assert time.monotonic() < deadline
            status, headers, _ = post(server, b" " * (4 * 2**20))
            assert status == 429 and "retry-after" in headers
        deadline = time.monotonic() + 20
        while server.shield._bytes:
            assert time.monotonic() < deadline


def test_an_answer_that_takes_too_long_ends(predictor, clips):
    with running(predictor, request_timeout=0.5) as server:
        server.service.session.lock.acquire()
        try:
            status, _, answer = ask(server, data_url(clips / "0.mp4"))
        finally:
            server.service.session.lock.release()
        assert status == 504 and answer["error"]["code"] == "timeout"


def test_a_mistake_of_ours_shows_nothing_of_itself(predictor, clips, monkeypatch, log_lines):
    with running(predictor) as server:

        def broken(*_):
            raise RuntimeError("secret /home/me/model.pth")

        monkeypatch.setattr(server.service, "_read", broken)
        status, _, answer = ask(server, data_url(clips / "0.mp4"))
    assert status == 500 and "secret" not in json.dumps(answer) and "Traceback" not in json.dumps(answer)
    number = answer["error"]["message"].split()[-1]
    assert any(number in line for line in log_lines)


def test_folders_are_private_and_gone(server, clips):
    seen = []
    read = server.service.reader.read

    def look(clip, **more):
        seen.append((clip.video, clip.video.parent.stat().st_mode & 0o777, clip.video.parent.parent))
        return read(clip, **more)

    server.service.reader.read = look
    try:
        assert ask(server, data_url(clips / "0.mp4"))[0] == 200
        assert ask(server, data_url(clips / "0.mp4"), person=3)[0] == 400
    finally:
        del server.service.reader.read
    assert seen[0][1] == 0o700 and seen[0][2] == server.service.folders.root
    assert list(server.service.folders.root.iterdir()) == []


def test_what_a_kill_left_is_removed_at_the_next_start_and_what_lives_is_not(tmp_path):
    import subprocess
    import sys

    place = tmp_path / "private"
    code = (
        "import sys, os, signal; from pathlib import Path; from affectgpt.serve.folders import PrivateFolders\n"
        f"made = PrivateFolders(Path({str(place)!r}))\n"
        "with made.one() as folder:\n    (folder / 'face.npy').touch(); print(made.root, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert left.is_dir() and list(left.rglob("face.npy"))
    living = PrivateFolders(place)
    assert living.removed == 1 and not left.exists()
    other = PrivateFolders(place)
    assert other.removed == 0 and living.root.is_dir()
    living.close(), other.close()
    assert list(place.iterdir()) == []


def test_a_folder_that_others_could_enter_is_not_used(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfigError, match="belongs to this user alone"):
        PrivateFolders(tmp_path / "open")


def test_logs_hold_neither_media_nor_keys(predictor, clips, log_lines):
    url = data_url(clips / "0.mp4")
    with running(predictor, api_key="correct horse") as server:
        ask_with = {"messages": message(url, "A private question?"), "subtitle": "Said in private.", "max_tokens": 2}
        assert post(server, ask_with, Authorization="Bearer correct horse")[0] == 200
        assert post(server, ask_with, Authorization="Bearer battery staple")[0] == 401
        post(server, {**ask_with, "messages": message(url[:-400] + "####", "x")}, Authorization="Bearer correct horse")
    text = "\n".join(log_lines)
    assert "POST /v1/chat/completions 200" in text and "POST /v1/chat/completions 401" in text
    for secret in ("correct horse", "battery staple", "private", url[40:80], "base64"):
        assert secret not in text
    assert logging.getLogger("uvicorn.access").handlers == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "text", "text": "How?"}, {"type": "image_url"}], "part 1 has type 'image_url'"),
        ([{"type": "video", "video": "x"}], "part 0 has type 'video'"),
        ([{"type": "file", "file": {}}], "part 0 has type 'file'"),
        ([{"text": "How?"}], "part 0 has no type"),
        ([{"type": 3}], "part 0 has no type"),
        (["How?"], "part 0 has a bare string"),
        ([None], "part 0 has null"),
        (None, "found null"),
        ({"type": "text", "text": "How?"}, "found an object"),
        (7, "found a number"),
    ],
)  # fmt: skip
def test_a_part_of_another_type_is_named_with_what_is_taken(server, content, words):
    status, _, answer = post(server, {"messages": [{"role": "user", "content": content}]})
    message = answer["error"]["message"]
    assert status == 400 and message.startswith("messages[0].content: ") and words in message
    assert "text, video_url, audio_url and input_audio" in message and answer["error"]["param"] == "messages[0].content"


def test_what_is_wrong_within_a_part_has_its_place(server):
    part = {"type": "video_url", "video_url": {"href": "x"}}
    answer = post(server, {"messages": [{"role": "user", "content": [part]}]})[2]
    assert (
        answer["error"]["message"].startswith("messages[0].content[0].video_url")
        and "url" in answer["error"]["message"]
    )


def test_no_message_to_a_caller_speaks_of_the_command_line(server):
    """A face recipe without a clip, a person that is no one, a file below no folder: words of the API alone."""
    asked = [
        {"messages": [{"role": "user", "content": "How?"}]},
        {"messages": [{"role": "user", "content": "How?"}], "person": "nobody"},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "file:///a.mp4"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://a.b/c.mp4"}}]}]},
    ]
    for request in asked:
        status, _, answer = post(server, request)
        assert status == 400 and "--" not in answer["error"]["message"], answer


def health(server) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*urlsplit(server.address).netloc.split(":"), timeout=30)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("what", ["the device", "a row"])
def test_a_lost_gpu_is_not_healthy_and_ends_the_server(predictor, monkeypatch, what):
    """As CUDA says it: the first error, and every call after it. An error of a row alone ends nothing."""
    words = "CUDA error: an illegal memory access was encountered" if what == "the device" else "a shape is wrong"
    with running(predictor) as server:
        assert health(server)[0] == 200
        broken = {"left": 10**6 if what == "the device" else 3}
        generate = server.service.batcher.session.generate

        def fail(*arguments, **options):
            broken["left"] -= 1
            if broken["left"] >= 0:
                raise RuntimeError(words)
            return generate(*arguments, **options)

        ended = threading.Event()
        monkeypatch.setattr(server.service.batcher.session, "generate", fail)
        monkeypatch.setattr(server.service.batcher, "on_lost", ended.set)
        assert post(server, {"messages": message(write_clip(server.service.folders.root / "a.mp4"), "How?")})[0] == 500
        if what == "the device":
            assert ended.wait(30)
            status, state = health(server)
            assert status == 503 and "lost" in state["status"]
        else:
            assert not ended.is_set() and health(server)[0] == 200


OPEN = partial(pytest.mark.xfail, strict=True)


def page_request(server, path: str, body: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*urlsplit(server.address).netloc.split(":"), timeout=5)
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, {"content-type": "application/json"})
    try:
        answer = connection.getresponse()
        return answer.status, answer.read()
    except TimeoutError:
        return 200, b""  # an open stream


@OPEN(reason="issue 26, 40: the page's heartbeat is open before a login")
def test_a_heartbeat_needs_a_login(predictor):
    pytest.importorskip("gradio")
    with running(predictor, page=True, api_key="a-long-secret") as server:
        assert page_request(server, "/gradio_api/heartbeat/abc")[0] in (401, 403)


@OPEN(reason="issue 26, 40: an unknown function of the page is a fault of the server")
def test_an_unknown_function_of_the_page_is_the_callers_fault(predictor):
    pytest.importorskip("gradio")
    with running(predictor, page=True) as server:
        asked = {"fn_index": 999, "data": [], "session_hash": "abc"}
        assert 400 <= page_request(server, "/gradio_api/queue/join", asked)[0] < 500


@OPEN(reason="issue 26, 40: what is no HTTP is answered without JSON")
def test_what_is_no_http_is_answered_in_json(server):
    host, port = urlsplit(server.address).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert b" 400 " in head and "error" in json.loads(body)
