"""What may come back from an address instead of a short reply, and how asking ends then."""

from __future__ import annotations

import gzip
import json
import threading
import time

import pytest
from fake_llm_server import Answer

from affectgpt.textllm.base import ConversationsFailedError, Sampling, TextLLMError
from affectgpt.textllm.messages import user_message

SAMPLING = Sampling(max_tokens=7)


def _conversations(*texts):
    return [[user_message(text)] for text in texts]


def _body(content, **more):
    return json.dumps({"choices": [{"message": {"content": content, **more}, "finish_reason": "stop"}]}).encode()


SLOW = {
    "drips": Answer(text="x", drip=0.05),
    "drips headers": Answer(drip_head=0.05),
    "drips packed": Answer(body=gzip.compress(_body("x" * 50)), headers={"Content-Encoding": "gzip"}, drip=0.05),
    "stalls": Answer(text="x", delay=3),
}


@pytest.mark.parametrize("bad", SLOW.values(), ids=SLOW)
def test_one_limit_holds_for_a_whole_request(serve, bad):
    """However the server spends the time: each single byte of a drip arrives well within any limit for a read."""
    _, client = serve(lambda *_: bad, timeout=0.4, attempts=1)
    start = time.monotonic()
    with pytest.raises(TextLLMError, match=r"no (whole )?reply in 0\.4 s"):
        client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert time.monotonic() - start < 2


PARTS = {
    "one": ([{"type": "text", "text": "[happy]"}], "[happy]"),
    "several": ([{"type": "text", "text": "[happy,"}, {"type": "text", "text": " sad]"}], "[happy, sad]"),
    "with thoughts": (
        [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "[sad]"}, {"type": "image_url"}],
        "[sad]",
    ),
    "half a character": ("a\ud83d", "a\ufffd"),
    "a whole one": ("a\ud83d\ude00", "a😀"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "text"), PARTS.values(), ids=PARTS)
def test_content_may_be_a_list_of_parts(serve, content, text):
    server, client = serve(lambda *_: Answer(body=_body(content)))
    (reply,) = client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert reply.text == text and server.asked["a"] == 1


@pytest.mark.parametrize("content", [[], [{"type": "reasoning", "text": "x"}], [1, None], {"text": "x"}])
def test_parts_without_text_are_no_reply(serve, content):
    _, client = serve(lambda *_: Answer(body=_body(content)))
    with pytest.raises(TextLLMError, match=r"holds no text but (list|dict).*3 attempts"):
        client.chat_many(_conversations("a"), sampling=SAMPLING)


PAGE = b"<!DOCTYPE html>\n<html><title>Log in</title></html>"
PAGES = {
    "without a kind": Answer(body=b"\n<HTML lang=en><title>Log in</title>", headers={"Content-Type": "text/plain"}),
    "by its kind": Answer(body=b"<html>Log in</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
    "by its text": Answer(body=PAGE),
    "sent on to it": Answer(status=302, body=b"", headers={"Location": "https://login.example/?next=\x9b2J"}),
    "sent on for good": Answer(status=307, body=PAGE, headers={"Location": "/login"}),
    "proxy": Answer(status=407, body=PAGE),
    "network": Answer(status=511, body=PAGE),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_login_page_ends_it_at_once(serve, page):
    server, client = serve(lambda *_: page, concurrency=1)
    with pytest.raises(TextLLMError, match=r"(login page|Log in).*/v1") as caught:
        client.chat_many(_conversations(*"abc"), sampling=SAMPLING)
    assert server.asked.total() == 1 and "\x9b" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_page_of_a_server_that_is_down_may_pass(serve):
    page = Answer(status=503, body=PAGE, headers={"Content-Type": "text/html"})
    server, client = serve(lambda _, attempt: page if attempt == 0 else Answer(text="fine"))
    assert client.chat_many(_conversations("a"), sampling=SAMPLING)[0].text == "fine" and server.asked["a"] == 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Answer(hang_up=True), r"the server closed the connection before it answered .*\(3 attempts\)"),
        (Answer(text="half", break_off=True), r"closed the connection after \d+ bytes of a reply .*\(3 attempts\)"),
    ],
    ids=["before", "within"],
)
def test_a_closed_connection_is_told_in_words(serve, bad, words):
    server, client = serve(lambda *_: bad)
    with pytest.raises(TextLLMError, match=words):
        client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert server.asked["a"] == 3


TOO_LONG = {
    "plain": Answer(text="x" * 2**21),
    "packed": Answer(body=gzip.compress(_body("x" * 2**24)), headers={"Content-Encoding": "gzip"}),
    "an error": Answer(status=500, body=b"x" * 2**21),
}


@pytest.mark.parametrize("reply", TOO_LONG.values(), ids=TOO_LONG)
def test_a_reply_has_no_more_bytes_than_its_tokens_can_have(serve, reply):
    server, client = serve(lambda text, _: reply if text == "a" else Answer(text=text))
    seen = {}
    with pytest.raises(ConversationsFailedError, match=r"a reply of more than \d+ bytes") as caught:
        client.chat_many(
            _conversations("a", "b"), sampling=SAMPLING, on_result=lambda i, reply: seen.update({i: reply.text})
        )
    assert seen == {1: "b"} and not caught.value.failed[0].again and server.asked["a"] == 1


def test_a_packed_reply_is_read(serve):
    _, client = serve(lambda *_: Answer(body=gzip.compress(_body("[sad]")), headers={"Content-Encoding": "gzip"}))
    assert client.chat_many(_conversations("a"), sampling=SAMPLING)[0].text == "[sad]"


def test_a_reply_of_brackets_is_no_crash(serve):
    _, client = serve(lambda *_: Answer(body=b"[" * 500_000))
    with pytest.raises(TextLLMError, match=r"not a chat completion.*\(3 attempts\)"):
        client.chat_many(_conversations("a"), sampling=SAMPLING)


def test_a_closed_client_opens_again_and_leaves_no_thread(serve):
    _, client = serve(lambda text, _: Answer(text=text))
    for _ in range(2):
        assert client.chat_many(_conversations("a"), sampling=SAMPLING)[0].text == "a"
        client.close()
    deadline = time.monotonic() + 5
    while any(t.name == "openai-client" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "openai-client"]
