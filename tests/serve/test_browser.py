"""The page in a real browser: Debian's Chromium, driven by playwright (``pytest -m browser``)."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from drawn_clip import picture, write_clip
from served import FACES, running

pytest.importorskip("gradio", reason="the extra [page] is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium, or CHROMIUM=FILE)"),
]
SHOTS = os.environ.get("SCREENSHOTS")  # folder to keep pictures in, to be looked at


@pytest.fixture(scope="module")
def site(served_world, clips):
    from affectgpt.inference.predictor import Predictor

    with running(
        Predictor.from_config(served_world.yaml, mode=FACES), page=True, examples=[(clips / "0.mp4", "Oh!")]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        made = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
        )
        yield made
        made.close()


@pytest.fixture
def tab(browser, site, request):
    """A tab that notes what is asked for elsewhere, and every error of the page's scripts."""
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 900}})
    context = browser.new_context(accept_downloads=True, permissions=["camera", "microphone"], **options)
    page = context.new_page()
    page.elsewhere, page.mistakes = [], []
    context.on("request", lambda r: None if _ours(r.url, site) else page.elsewhere.append(r.url))
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.goto(site.address)
    page.wait_for_selector("#ag-ask", timeout=60_000)
    yield page
    assert page.elsewhere == [] and page.mistakes == []
    context.close()


def _ours(url: str, site) -> bool:
    return url.startswith((site.address, "data:", "blob:"))


def drop(tab, path: Path) -> None:
    tab.set_input_files("#ag-video input[type=file]", str(path))
    tab.wait_for_selector("#ag-video video", timeout=30_000)


def ask(tab, wait: str = "#ag-json a") -> None:
    tab.click("#ag-ask")
    tab.wait_for_selector(wait, timeout=60_000)


def keep(tab, name: str) -> None:
    if SHOTS:
        tab.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def test_upload_answer_json(tab, clips, tmp_path):
    assert tab.locator("#ag-toy").is_visible()
    drop(tab, clips / "1.mp4")
    tab.fill("#ag-subtitle textarea, #ag-subtitle input", "I can't believe it!")
    ask(tab)
    assert tab.locator("#ag-seen h4").all_inner_texts()[0] == "The 8 faces"
    assert tab.locator("#ag-seen .ag-strip").count() == 2 and tab.locator("#ag-seen .ag-plot").count() == 1
    assert tab.locator("#ag-seen .ag-strip img").count() >= 13  # eight faces, and the five frames that there are
    with tab.expect_download() as download:
        tab.click("#ag-json a")
    download.value.save_as(tmp_path / "answer.json")
    found = json.loads((tmp_path / "answer.json").read_text("utf-8"))
    assert found["model"] == "tiny" and found["subtitle"] == "I can't believe it!" and "notes" in found
    shown = " ".join(tab.locator("#ag-answer .ag-answer").inner_text().split())
    assert " ".join(found["answer"].split())[:10] in shown
    keep(tab, "answer")


def test_a_damaged_file_is_explained(tab, clips, tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes((clips / "1.mp4").read_bytes()[:1500])
    tab.set_input_files("#ag-video input[type=file]", str(path))
    tab.wait_for_function("document.querySelector('#ag-video video, #ag-video .file-name, #ag-video [data-testid]')")
    ask(tab, ".ag-error")
    words = tab.locator(".ag-error").inner_text()
    assert "the video" in words and "/tmp" not in words and "Traceback" not in words
    keep(tab, "damaged")


def test_no_face_an_own_question_and_a_drawn_clip(tab, tmp_path):
    drop(tab, write_clip(tmp_path / "wall.mp4", face=False))
    ask(tab, ".ag-error")
    assert "no face" in tab.locator(".ag-error").inner_text()
    tab.get_by_text("Own question").click()
    tab.wait_for_selector("#ag-own textarea, #ag-own input")
    tab.fill("#ag-own textarea, #ag-own input", "Who is it?")
    tab.locator("table tr, .gallery button, button.gallery-item").last.click()  # the drawn clip
    tab.wait_for_function("document.querySelector('#ag-subtitle textarea, #ag-subtitle input').value == 'Oh!'")
    ask(tab)
    link = tab.locator("#ag-json a").get_attribute("href")
    assert json.loads(base64.b64decode(link.partition(",")[2]))["question"] == "Who is it?"


def test_one_of_two_people_is_chosen(tab, tmp_path):
    import numpy as np

    from affectgpt.media.encode import mp4_of

    both = np.concatenate([picture(seed=1), picture(seed=5)], axis=1)
    (tmp_path / "two.mp4").write_bytes(mp4_of(np.stack([both] * 6), fps=6))
    drop(tab, tmp_path / "two.mp4")
    ask(tab)
    tab.wait_for_selector("#ag-person label >> nth=2")
    assert "Who is there" in tab.locator("#ag-seen h4").all_inner_texts()
    first = tab.locator("#ag-seen .ag-strip img").first.get_attribute("src")
    tab.locator("#ag-person label").last.click()
    ask(tab)
    tab.wait_for_function(
        "src => { const i = document.querySelector('#ag-seen .ag-strip img'); return i && i.src != src }", arg=first
    )
    keep(tab, "people")


@pytest.mark.parametrize(
    "tab",
    [
        {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True},
        {"viewport": {"width": 400, "height": 800}, "color_scheme": "dark"},
    ],
    indirect=True,
    ids=["light", "dark"],
)
def test_phone_width(tab, clips, request):
    """Nothing is wider than the screen, and everything that is to be pressed can be."""
    drop(tab, clips / "2.mp4")
    ask(tab)
    keep(tab, f"phone-{request.node.callspec.id}")
    wide = tab.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > 401)"
        ".map(e => e.tagName + '.' + e.className)"
    )
    print(wide)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    box = tab.locator("#ag-ask").bounding_box()
    assert box["width"] > 250 and box["height"] >= 36
    wide = tab.evaluate(
        "[...document.querySelectorAll('#ag-seen img, #ag-wheel img, .ag-note, .ag-answer')]"
        ".filter(e => e.getBoundingClientRect().right > 401).length"
    )
    assert wide == 0
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = request.node.callspec.id == "dark"
    assert (sum(map(int, background.strip("rgba()").split(",")[:3])) < 200) == dark


@pytest.mark.parametrize("width", [1280, 400], ids=["desktop", "phone"])
def test_with_a_key_the_browser_asks_for_it_once(browser, predictor, clips, width, monkeypatch):
    """Without it there is no page; with it upload, streamed answer and download work."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # of the process: the other tests' page gets its own back
    with running(predictor, page=True, api_key="correct horse") as site:
        size = {"viewport": {"width": width, "height": 900}}
        stranger = browser.new_context(**size, http_credentials={"username": "me", "password": "a wrong horse"})
        answer = stranger.new_page().goto(site.address)
        assert answer.status == 401 and "a key is needed" in answer.text()
        stranger.close()
        context = browser.new_context(**size, http_credentials={"username": "me", "password": "correct horse"})
        tab = context.new_page()
        mistakes, refused = [], []
        tab.on("pageerror", lambda error: mistakes.append(str(error)))
        # A browser is asked once; its first request has no credentials.
        tab.on("response", lambda r: refused.append(r.url) if r.status == 401 else None)
        tab.goto(site.address)
        tab.wait_for_selector("#ag-ask", timeout=60_000)
        keep(tab, f"key-{width}-opened")
        drop(tab, clips / "1.mp4")
        tab.evaluate(
            "window.seen = []; new MutationObserver(() => window.seen.push(document.querySelector('#ag-answer')"
            ".innerText)).observe(document.querySelector('#ag-answer'), {childList: true, subtree: true,"
            " characterData: true})"
        )
        ask(tab)
        partial = {text for text in tab.evaluate("window.seen") if text.endswith("▌")}
        assert len(partial) > 2  # shown while it is generated
        assert tab.locator("#ag-seen .ag-strip img").count() == 8
        keep(tab, f"key-{width}-answer")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert mistakes == [] and len(refused) <= 1, (mistakes, refused)
        context.close()


def test_a_webcam_clip(tab):
    """Chromium's fake camera shows no face: the recording arrives, is read, and the answer says so."""
    tab.locator(
        "#ag-video button[aria-label='Capture from camera'], #ag-video button[data-testid='webcam']"
    ).first.click()
    tab.locator("#ag-video button:has-text('Click to Access Webcam'), #ag-video .access-webcam button").first.click()
    record = tab.locator("#ag-video button[aria-label*='record' i], #ag-video button:has-text('Record')").first
    record.click()
    tab.wait_for_timeout(4000)
    tab.locator("#ag-video button[aria-label*='stop' i], #ag-video button:has-text('Stop')").first.click()
    tab.wait_for_function("document.querySelector('#ag-video video')?.src.includes('/gradio_api/file=')")
    ask(tab, ".ag-error")
    assert "no face" in tab.locator(".ag-error").inner_text()
