"""Nobody gets in, nothing gets out: each promise with the request that would break it."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from drawn_clip import write_clip
from served import call, client_of, data_url, message, running, wait_until

from affectgpt.core.errors import ConfigError, DataError
from affectgpt.media.guard import Decoder
from affectgpt.media.limits import MediaLimits
from affectgpt.serve.media import PrivateFolders
from affectgpt.serve.service import ServeSettings


def post(server, body, *, path: str = "/v1/chat/completions", **headers: str):
    """Status, headers and JSON of a request as it stands."""
    status, answered, text = call(server, "POST", path, body, **headers)
    return status, answered, json.loads(text) if text else {}


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

    with running(predictor, api_key="correct horse") as server:
        for headers in ({}, {"Authorization": "Bearer wrong horse"}, {"Authorization": "Basic correct horse"},
                        {"Authorization": "Bearer "}, {"Authorization": "Bearer é"}):  # fmt: skip
            status, _, answer = post(server, {}, **headers)
            assert status == 401 and answer["error"]["type"] == "authentication_error"
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").models.list()
        assert [m.id for m in client_of(server, "correct horse").models.list()] == ["tiny"]
        assert post(server, {}, path="/no/such/address")[0] == 401  # before anything else is said


def test_who_has_no_key_shuts_nobody_out(predictor):
    """Idle connections take no place of others, and what is refused holds none."""
    with running(predictor, api_key="correct horse") as server, ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(netloc(server), timeout=60)) for _ in range(600)]
        for one in opened[:300]:
            one.sendall(b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert all(one.recv(65536).startswith(b"HTTP/1.1 401 ") for one in opened[:300])
        opened += [stack.enter_context(socket.create_connection(netloc(server), timeout=60)) for _ in range(300)]
        assert [m.id for m in client_of(server, "correct horse").models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("name", "value", "statuses"),
    [
        *(("Host", host, (400, 421)) for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "",
                                                  "a@127.0.0.1", "[::")),  # DNS rebinding
        ("Origin", "https://evil.example", (403,)), ("Origin", "null", (403,)), ("Origin", "file://", (403,)),
        ("Sec-Fetch-Site", "cross-site", (403,)),
    ],
)  # fmt: skip
def test_names_and_pages_of_others_are_refused(server, name, value, statuses):
    assert post(server, {}, **{name: value})[0] in statuses


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
     "//a/b", "gopher://a", "", "http://[::1]/a", "HTTPS://a/b.mp4"],
)  # fmt: skip
def test_media_of_other_servers_are_not_fetched(server, url, monkeypatch):
    """The message says what is taken instead; nothing is resolved or connected to."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    with socket.socket() as client:  # by address, which is not looked up
        client.connect(netloc(server))
        body = json.dumps({"messages": message(url)}).encode()
        client.sendall(head(f"Connection: close\r\nContent-Length: {len(body)}\r\n") + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b" 400 " in answer[:20] and (b"begins with data: or file:" in answer or url == "") and asked == []


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
    status, _, answer = ask(server, f"data:video/mp4;base64,{base64.b64encode(content).decode()}")
    assert status == 400 and expected in answer["error"]["message"] and "/" not in answer["error"]["message"]


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


def test_slow_bodies_take_no_place_and_are_ended(predictor, clips):
    with running(predictor, waiting=1) as server, ExitStack() as stack:
        for _ in range(8):
            slow = stack.enter_context(socket.create_connection(netloc(server)))
            slow.sendall(head("Content-Length: 1000\r\n") + b"{")
        wait_until(lambda: server.guard.body_bytes == 8)
        assert ask(server, data_url(clips / "0.mp4"))[0] == 200
    with running(predictor, body_timeout=0.2) as server, socket.create_connection(netloc(server)) as slow:
        slow.sendall(head("Content-Length: 1000\r\n") + b"{")
        assert b" 408 " in slow.recv(1000)
        wait_until(lambda: not server.guard.body_bytes)


def test_a_full_house_answers_429_with_retry_after(predictor, clips):
    with running(predictor, waiting=2) as server:
        release = threading.Event()
        read = server.service._read
        server.service._read = lambda *a: release.wait(30) and read(*a)
        with ThreadPoolExecutor(2) as pool:
            url = data_url(clips / "0.mp4")
            first = [pool.submit(ask, server, url) for _ in range(2)]
            deadline = time.monotonic() + 20
            while server.service.active < 2:
                assert time.monotonic() < deadline
            status, headers, answer = ask(server, url)
            release.set()
            assert [one.result()[0] for one in first] == [200, 200]
        assert status == 429 and int(headers["retry-after"]) > 0 and answer["error"]["type"] == "rate_limit_error"
        assert ask(server, url)[0] == 200


def test_bodies_together_are_limited(predictor):
    """By what has arrived, not by what is promised."""
    with running(predictor, megabytes=4, memory_megabytes=8) as server:
        with socket.create_connection(netloc(server)) as promises, socket.create_connection(netloc(server)) as slow:
            promises.sendall(head(f"Content-Length: {6 * 2**20}\r\n") + b"{")
            assert post(server, b" " * (4 * 2**20))[0] == 400
            slow.sendall(head(f"Content-Length: {6 * 2**20}\r\n") + b" " * (5 * 2**20))
            wait_until(lambda: server.guard.body_bytes > 5 * 2**20)
            status, headers, _ = post(server, b" " * (4 * 2**20))
            assert status == 429 and "retry-after" in headers
            promises.sendall(b" " * (4 * 2**20))  # too many while it comes
            assert b" 429 " in promises.recv(1000)
        wait_until(lambda: not server.guard.body_bytes)


@pytest.mark.parametrize(
    "content",
    [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"],
    ids=["nonsense", "no host", "tls", "length"],
)  # fmt: skip
def test_what_is_no_http_is_answered_in_json(server, content):
    with socket.create_connection(netloc(server), timeout=30) as client:
        client.sendall(content)
        head_, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head_.startswith(b"HTTP/1.1 400 ") and b"application/json" in head_
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


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
        "import sys, os, signal; from pathlib import Path; from affectgpt.serve.media import PrivateFolders\n"
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


def test_a_fault_within_a_part_has_its_place(server):
    for part, field in (({"video_url": {"href": "x"}}, "messages[0].content[0].video_url.url"),
                        ({"text": "How?"}, "messages[0].content[0]"), ({}, "messages[0].content[0]")):  # fmt: skip
        answer = post(server, {"messages": [{"role": "user", "content": [{"type": "video_url", **part}]}]})[2]["error"]
        assert answer["message"].startswith(f"{field}: ") and answer["param"] == field and "video_url" in str(answer)


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


@pytest.mark.parametrize("what", ["the device", "a row"])
def test_a_lost_gpu_is_not_healthy_and_ends_the_server(predictor, monkeypatch, what):
    """As CUDA says it: the first error, and every call after it. An error of a row alone ends nothing."""
    words = "CUDA error: an illegal memory access was encountered" if what == "the device" else "a shape is wrong"
    with running(predictor) as server:
        assert call(server, "GET", "/health")[0] == 200
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
            status, _, state = call(server, "GET", "/health")
            assert status == 503 and "lost" in json.loads(state)["status"]
        else:
            assert not ended.is_set() and call(server, "GET", "/health")[0] == 200
