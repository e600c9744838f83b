"""The page without a browser: what it serves, and the request by which gradio would read any file."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from pathlib import Path

import pytest
from served import FRAMES, call, running, wait_until
from tiny_whisper import make_tiny_whisper

pytest.importorskip("gradio", reason="the extra [page] is not installed")


@pytest.fixture(scope="module")
def page(predictor, clips):
    with running(predictor, page=True, examples=[(clips / "0.mp4", "Oh!")]) as made:
        yield made


@pytest.fixture(autouse=True)
def _its_uploads(request, monkeypatch):
    """Gradio has one folder of uploads per process, that of the latest page: this test's."""
    if "page" in request.fixturenames:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(request.getfixturevalue("page").page.upload_folder))


def endpoints(server) -> list[dict]:
    config = json.loads(call(server, "GET", "/config")[2])
    return config["dependencies"]


def upload(server, name: str, content: bytes) -> tuple[int, bytes]:
    edge = "edge0123"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: video/mp4\r\n\r\n"
    ).encode() + content + f"\r\n--{edge}--\r\n".encode()  # fmt: skip
    kind = f"multipart/form-data; boundary={edge}"
    status, _, text = call(server, "POST", "/gradio_api/upload", body, Content_Type=kind)
    return status, text


def file_data(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("wrapped", ["plain", "inside", "http", "link", "dots"])
def test_the_file_reading_hole_is_closed(page, tmp_path, wrapped):
    """Gradio mounted into another application takes any path that a request names for an upload, and serves it."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"a secret")
    uploads = page.page.upload_folder
    path = {"plain": str(secret), "inside": str(secret), "http": "http://127.0.0.1:1/a.mp4",
            "dots": f"{uploads}/../../../../{secret}"}.get(wrapped, str(uploads / "link.mp4"))  # fmt: skip
    if wrapped == "link":
        (uploads / "link.mp4").symlink_to(secret)
    data = [file_data(path), "", "Labels", "", "most prominent"]
    if wrapped == "inside":
        data[0] = {"video": file_data(path), "subtitles": None}
    names = {str(d.get("api_name")) for d in endpoints(page)} | {"run", "predict"}
    for name in names:
        for prefix in ("call", "run", "api"):
            status, _, _ = call(page, "POST", f"/gradio_api/{prefix}/{name}", {"data": data})
            assert status in (403, 404), (prefix, name)
    for number in range(len(endpoints(page))):
        body = {"data": data, "fn_index": number, "session_hash": "abc"}
        assert call(page, "POST", "/gradio_api/queue/join", body)[0] == 403
        assert call(page, "POST", "/gradio_api/run/predict", body)[0] in (403, 404)
    for asked in (str(secret), "/etc/passwd", str(uploads / "link.mp4"), f"{uploads}/../../{secret.name}"):
        assert call(page, "GET", f"/gradio_api/file={asked}")[0] in (403, 404)
    assert not [p for p in uploads.rglob("*") if p.is_file() and not p.is_symlink() and p.read_bytes() == b"a secret"]


def test_gradio_itself_refuses_it_too(page, tmp_path, monkeypatch):
    """What gradio does with a call that names a file that was not uploaded, where nothing stands before it."""
    monkeypatch.setattr("affectgpt.serve.page.MountedPage._is_upload", lambda *_: True)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"a secret")
    events = ask(page, [file_data(str(secret)), "", "Labels", "", "most prominent"])
    assert [one["success"] for one in events if one["msg"] == "process_completed"] == [False], events
    assert call(page, "GET", f"/gradio_api/file={secret}")[0] == 403
    uploads = page.page.upload_folder
    assert not [p for p in uploads.rglob("*") if p.is_file() and not p.is_symlink() and p.read_bytes() == b"a secret"]


def test_only_what_the_page_needs_is_there(page):
    for path in ("/monitoring", "/gradio_api/runs", "/gradio_api/proxy=http://a/", "/gradio_api/component_server",
                 "/gradio_api/openapi.json", "/docs", "/openapi.json", "/gradio_api/mcp/", "/robots.txt",
                 "/gradio_api/deep_link", "/gradio_api/process_recording", "/gradio_api/file=", "/static/../../x",
                 "/gradio_api/dev/reload", "/custom_component/x", "/pwa_icon"):  # fmt: skip
        assert call(page, "GET", path)[0] in (400, 404, 405), path
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        found = call(page, method, path)
        assert found[0] == status and b'"error"' in found[-1], found  # in the API's form, not the page's


def test_nothing_of_the_page_is_loaded_from_elsewhere(page):
    """Its HTML names no other host as a source; the browser's test looks at what is asked for."""
    status, headers, text = call(page, "GET", "/")
    html = text.decode()
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["'](https?:)?//([^/"']+)""", html)
    assert not [host for _, host in loaded if not host.startswith("127.0.0.1")]
    assert "fonts.googleapis" not in call(page, "GET", "/theme.css")[2].decode()
    assert "A toy is running" in json.dumps(json.loads(call(page, "GET", "/config")[2]))


def test_uploads_are_limited_private_and_removed(predictor, clips, monkeypatch):
    """The examples stay, and so does the service's folder."""
    monkeypatch.setattr("affectgpt.serve.page._SWEEP_SECONDS", 0.1)
    monkeypatch.setattr("affectgpt.serve.page._KEEP_SECONDS", 1.0)
    with running(predictor, page=True, megabytes=0.5, examples=[(clips / "0.mp4", "")]) as server:
        folder = server.page.upload_folder
        examples = {path for path in folder.rglob("*") if path.is_file()}
        content = (clips / "1.mp4").read_bytes()
        status, text = upload(server, "../../a b.mp4", content)
        (path,) = json.loads(text)
        assert status == 200 and Path(path).is_relative_to(folder) and folder.stat().st_mode & 0o777 == 0o700
        assert upload(server, "a.mp4", b"x" * (2**20))[0] == 413
        assert upload(server, "a.mp4", b"x" * (3 * 2**20))[0] == 413
        wait_until(lambda: not Path(path).exists())
        assert examples and examples == {path for path in folder.rglob("*") if path.is_file()}


def test_with_a_key_the_page_wants_it(predictor):
    """The browser asks for it, before anything of the page is there."""
    with running(predictor, page=True, api_key="correct horse") as server:
        for path in ("/", "/config", "/theme.css", "/gradio_api/heartbeat/a", "/gradio_api/app_id", "/nothing",
                     "/gradio_api/queue/data?session_hash=a", "/gradio_api/startup-events"):  # fmt: skip
            status, headers, _ = call(server, "GET", path)
            assert status == 401 and headers["www-authenticate"].startswith("Basic "), path
        for path in ("queue/join", "cancel", "reset", "upload"):
            assert call(server, "POST", f"/gradio_api/{path}", {"data": [], "session_hash": "abc"})[0] == 401
        assert upload(server, "a.mp4", b"x")[0] == 401
        for given, status in (("me:correct horse", 200), (":correct horse", 200), ("me:wrong", 401),
                              ("correct horse", 401)):  # fmt: skip
            login = f"Basic {base64.b64encode(given.encode()).decode()}"
            assert call(server, "GET", "/config", Authorization=login)[0] == status
            assert call(server, "GET", "/v1/models", Authorization=login)[0] == status
        assert call(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize("number", [999, -1, 10**30, None, "0", True, [0]])
def test_a_function_that_the_page_has_not_is_an_error_of_the_request(page, number):
    body = {"data": [], "fn_index": number, "session_hash": "abc"}
    status, _, text = call(page, "POST", "/gradio_api/queue/join", body)
    assert status == 400 and "no such function" in json.loads(text)["error"]["message"]
    assert call(page, "POST", "/gradio_api/run/predict", body)[0] == 404  # all goes through the queue


def test_other_inputs_than_a_function_takes_are_an_error_of_the_request(page, log_lines):
    for content in (b"{", b"[]", b"", {}, {"data": []}, {"fn_index": 0, "session_hash": "a"},
                    {"data": [1, 2, 3], "fn_index": endpoints(page)[-1]["id"], "session_hash": "a"},
                    {"data": [], "fn_index": 0, "session_hash": {}}):  # fmt: skip
        status, _, text = call(page, "POST", "/gradio_api/queue/join", content)
        assert status == 400 and json.loads(text)["error"]["message"], content
    assert not [line for line in log_lines if "Traceback" in line]


def test_an_example_is_shown_through_the_queue(page):
    """As all functions of the page."""
    number = next(one["id"] for one in endpoints(page) if len(one["outputs"]) == 2)
    events = events_of(page, number, [0])
    assert "process_completed" in str(events) and "Oh!" in json.dumps(events[-2]["output"]["data"])
    assert all(one["queue"] is not False for one in endpoints(page))


def test_uploads_together_are_limited(predictor):
    """Those that are there, and those on their way."""
    with running(predictor, page=True, megabytes=1) as server:
        most = server.service.settings.uploads_megabytes
        statuses = [upload(server, f"{i}.mp4", bytes([i]) * (2**20 - 1000))[0] for i in range(12)]
        assert statuses[:6] == [200] * 6 and statuses[-1] == 429
        kept = sum(path.stat().st_size for path in server.page.upload_folder.rglob("*") if path.is_file())
        assert kept <= most * 2**20
        assert "uploads" in json.loads(upload(server, "a.mp4", b"x" * 2**20)[1])["error"]["message"]


def ask(server, data) -> list[dict]:
    """What the page's button does: join the queue, read its events."""
    return events_of(server, next(d["id"] for d in endpoints(server) if len(d["inputs"]) == 5), data)


def events_of(server, number: int, data) -> list[dict]:
    body = {"data": data, "fn_index": number, "session_hash": f"s{time.monotonic_ns()}"}
    assert call(server, "POST", "/gradio_api/queue/join", body)[0] == 200
    text = call(server, "GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}")[2].decode()
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_an_answer_on_the_page_and_a_damaged_file(page, clips):
    (path,) = json.loads(upload(page, "a.mp4", (clips / "2.mp4").read_bytes())[1])
    events = ask(page, [{**file_data(path), "url": None}, "Oh!", "Labels", "", "most prominent"])
    text = json.dumps(events)
    assert events[-1]["msg"] == "close_stream" and "The 8 frames" in text and "image/svg+xml" in text
    assert "affectgpt.json" in text and "ag-error" not in text
    (path,) = json.loads(upload(page, "b.mp4", (clips / "2.mp4").read_bytes()[:900])[1])
    text = json.dumps(ask(page, [{**file_data(path), "url": None}, "", "Labels", "", "most prominent"]))
    assert "ag-error" in text and "the video: no readable video" in text and "Traceback" not in text
    text = json.dumps(ask(page, [None, "", "Own question", "", "most prominent"]))
    assert "type your question" in text


def test_what_nobody_typed_is_heard_by_speech_recognition(served_world, clips, tmp_path, monkeypatch):
    """A real Whisper (random weights) listens; what it hears is in the prompt and on the page."""
    from affectgpt.inference.predictor import Predictor
    from affectgpt.preprocess.asr import Transcriber

    listen = Transcriber(make_tiny_whisper(tmp_path), device="cpu")
    predictor = Predictor.from_config(served_world.yaml, mode=FRAMES, recognise=listen)
    with running(predictor, page=True) as server:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(server.page.upload_folder))
        assert "heard by speech recognition" in call(server, "GET", "/config")[2].decode()
        shown = []
        for typed in ("", "Oh!"):
            (path,) = json.loads(upload(server, "a.mp4", (clips / "2.mp4").read_bytes())[1])
            events = ask(server, [{**file_data(path), "url": None}, typed, "Labels", "", "most prominent"])
            shown.append(re.findall("What is said: “(.*?)”", json.dumps(events, ensure_ascii=False)))
        heard, typed = ({html.unescape(said) for said in part} for part in shown)
        assert heard == {listen(clips / "2.mp4")} != {""} and typed == {"Oh!"}
