"""The client of OpenAI-compatible servers, against one that misbehaves."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from fake_llm_server import Answer, streamed

from affectgpt.core.errors import DataError
from affectgpt.textllm.base import ConversationsFailedError, Sampling, TextLLMError, open_client, seed_for
from affectgpt.textllm.messages import user_message

SAMPLING = Sampling(temperature=0.5, top_p=0.9, repetition_penalty=1.1, max_tokens=7, seed=3)


def _conversations(*texts):
    return [[user_message(text)] for text in texts]


def _body(content, **more):
    return json.dumps({"choices": [{"message": {"content": content, **more}, "finish_reason": "stop"}]}).encode()


def test_replies_come_in_order_and_are_streamed_as_they_finish(serve):
    server, client = serve(lambda text, _: Answer(text=text.upper(), delay=0.2 if text == "a" else 0.0), concurrency=3)
    seen = []
    thread = threading.get_ident()

    def on_result(index, reply):
        assert threading.get_ident() == thread
        seen.append(index)

    conversations = _conversations("a", "b", "c", "d")
    replies = client.chat_many(conversations, sampling=SAMPLING, on_result=on_result)
    assert [reply.text for reply in replies] == ["A", "B", "C", "D"]
    assert sorted(seen) == [0, 1, 2, 3] and seen[-1] == 0
    assert 1 < server.most_at_once <= 3
    assert client.chat_many([], sampling=SAMPLING) == []


def test_the_request_is_what_servers_expect(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key\n")
    server, client = serve(lambda *_: Answer(text="x", finish="length"))
    conversation = [{"role": "system", "content": "Be short."}, user_message("Grüße 你好 \ud83d")]
    (reply,) = client.chat_many([conversation], sampling=SAMPLING)
    assert reply.truncated
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer secret-key"
    assert request["body"] == {
        "model": "tiny", "messages": conversation, "temperature": 0.5, "top_p": 0.9, "max_tokens": 7,
        "repetition_penalty": 1.1, "seed": seed_for(conversation, 3),
    }  # fmt: skip
    assert "secret-key" not in json.dumps([client.identity(), client.details()])


def test_no_repetition_penalty_is_not_sent(serve):
    server, client = serve(lambda *_: Answer(text="x"))
    client.chat_many(_conversations("a"), sampling=Sampling(repetition_penalty=1.0))
    assert "repetition_penalty" not in server.requests[0]["body"]


def test_images_and_audio_travel_inside_the_message(serve, tmp_path):
    (tmp_path / "face.png").write_bytes(b"\x89PNG")
    (tmp_path / "voice.wav").write_bytes(b"RIFF")
    server, client = serve(lambda *_: Answer(text="x"))
    message = user_message("What is this?", images=[tmp_path / "face.png"], audio=tmp_path / "voice.wav")
    client.chat_many([[message]], sampling=SAMPLING)
    image, audio, text = server.requests[0]["body"]["messages"][0]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert audio == {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    assert text == {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize(
    "bad",
    [
        Answer(status=500, body=b"boom"),
        Answer(status=503, body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Answer(status=429, body=b"slow down", headers={"Retry-After": "0.05"}),
        Answer(text="half", break_off=True),
        Answer(hang_up=True),
        Answer(text="late", delay=1),
    ],
    ids=["500", "503", "429", "breaks off", "hangs up", "stalls"],
)
def test_what_may_pass_is_tried_again(serve, bad):
    server, client = serve(lambda _, attempt: bad if attempt < 2 else Answer(text="fine"), timeout=0.4)
    (reply,) = client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert reply.text == "fine" and server.asked["a"] == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Answer(body=b"a proxy's words"), "not a chat completion"),
        (Answer(body=b"a proxy's words", headers={"Content-Type": "text/plain"}), "proxy's words.*in /v1"),
        (Answer(body=b"<html>Log in</html>", headers={"Content-Type": "text/html"}), "Log in.*in /v1"),
        (Answer(body=b'{"choices": []}'), "not a chat completion"),
        (Answer(body=b'{"choices": 7}'), "not a chat completion"),
        (Answer(body=b"[]"), "not a chat completion"),
        (Answer(body=b"[" * 500_000), "not a chat completion"),
        (Answer(body=b"\xff\xfe"), "not a chat completion"),
        (Answer(text=None), "holds no text"),
        (Answer(body=_body([{"type": "reasoning", "text": "x"}])), "holds no text"),
        (Answer(text="late", delay=1), r"no reply in 0\.4 s \(3 attempts\)"),
        (Answer(hang_up=True), r"closed the connection.*3 attempts"),
    ],
)  # fmt: skip
def test_what_is_no_reply_costs_its_conversation_alone(serve, bad, words):
    _, client = serve(lambda text, _: bad if text == "a" else Answer(text=text), timeout=0.4)
    seen = {}
    with pytest.raises(ConversationsFailedError, match=words) as caught:
        client.chat_many(_conversations("a", "b"), sampling=SAMPLING, on_result=lambda i, r: seen.update({i: r.text}))
    assert seen == {1: "b"} and caught.value.failed[0].again and "\x9b" not in str(caught.value)


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


@pytest.mark.parametrize(("status", "words"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (403, "key"), (302, "base URL")])
def test_a_refusal_of_everything_ends_at_once(serve, status, words):
    server, client = serve(lambda *_: Answer(status=status, body=b"no such thing", delay=0.02), concurrency=2)
    with pytest.raises(TextLLMError, match=rf"no such thing.*{words}"):
        client.chat_many(_conversations(*"abcdefghijklmnop"), sampling=SAMPLING)
    assert server.asked.total() < 8


def test_one_bad_conversation_does_not_cost_the_others(serve):
    bad = Answer(status=400, body=b"context length exceeded")
    server, client = serve(lambda text, _: bad if text == "c" else Answer(text=text))
    seen = {}
    with pytest.raises(
        TextLLMError, match=r"1 of 5 conversations have no reply, 4 have.*conversation 2.*context length"
    ):
        client.chat_many(
            _conversations(*"abcde"), sampling=SAMPLING, on_result=lambda i, reply: seen.update({i: reply.text})
        )
    assert seen == {0: "a", 1: "b", 3: "d", 4: "e"} and server.asked["c"] == 1


def test_a_server_that_only_fails_is_given_up(serve):
    server, client = serve(lambda *_: Answer(status=500, body=b"out of memory"), concurrency=2, attempts=2)
    with pytest.raises(TextLLMError, match=r"8 of 100 .*out of memory \(2 attempts\).*Gave up after 8"):
        client.chat_many(_conversations(*(str(i) for i in range(100))), sampling=SAMPLING)
    assert server.asked.total() < 24


def test_a_server_that_knows_no_repetition_penalty(serve):
    _, client = serve(lambda *_: Answer(status=400, body=b"Unknown parameter: repetition_penalty"))
    with pytest.raises(TextLLMError, match="repetition penalty of 1"):
        client.chat_many(_conversations("a", "b"), sampling=SAMPLING)


def test_no_server_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        open_client("openai", base_url=f"http://user:pass@127.0.0.1:{port}/v1", model="m", attempts=1) as client,
        pytest.raises(TextLLMError, match=rf"^http://127.0.0.1:{port}/v1: cannot be reached") as caught,
    ):
        client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert "pass" not in str(caught.value)


def test_an_error_of_the_caller_stops_the_requests(serve):
    server, client = serve(lambda text, _: Answer(text=text, delay=0.02), concurrency=2)

    def on_result(index, reply):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        client.chat_many(_conversations(*(str(i) for i in range(100))), sampling=SAMPLING, on_result=on_result)
    time.sleep(0.1)
    assert server.asked.total() <= 6


def test_a_slow_caller_is_not_run_ahead_of(serve):
    """Replies that the caller has not taken count as requests on their way."""
    server, client = serve(lambda text, _: Answer(text=text), concurrency=2)
    taken = []

    def on_result(index, reply):
        time.sleep(0.03)
        assert server.asked.total() <= len(taken) + 2
        taken.append(index)

    client.chat_many(_conversations(*"abcdefgh"), sampling=SAMPLING, on_result=on_result)
    assert len(taken) == 8


def test_no_thread_outlives_the_call(serve):
    before = set(threading.enumerate())
    _, client = serve(lambda text, _: Answer(status=401) if text == "c" else Answer(text=text), concurrency=4)
    with pytest.raises(TextLLMError):
        client.chat_many(_conversations(*"abcdefgh"), sampling=SAMPLING)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [t for t in set(threading.enumerate()) - before if t.name.startswith("request-")]:
            return
        time.sleep(0.01)
    pytest.fail("request threads are still there")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", ""])
def test_a_base_url_that_is_none(url):
    with pytest.raises(TextLLMError, match="http://host:8000/v1"):
        open_client("openai", base_url=url, model="m")


def test_a_reply_tells_what_it_cost(serve):
    _, client = serve(lambda text, _: Answer(text="x", usage={"prompt_tokens": 12, "completion_tokens": 3}))
    (reply,) = client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert (reply.prompt_tokens, reply.reply_tokens) == (12, 3) and 0 < reply.seconds < 5
    _, silent = serve(lambda text, _: Answer(text="x"))
    (reply,) = silent.chat_many(_conversations("a"), sampling=SAMPLING)
    assert reply.prompt_tokens is None and reply.reply_tokens is None


def test_failed_conversations_are_told_one_by_one(serve):
    answers = {
        "refused": Answer(body=json.dumps({"choices": [{"message": {"content": None, "refusal": "no"}}]}).encode()),
        "filtered": Answer(text="x", finish="content_filter"),
        "bad": Answer(status=400, body=b"too long"),
        "down": Answer(status=500, body=b"oops"),
        "good": Answer(text="fine"),
    }
    server, client = serve(lambda text, _: answers[text])
    seen = []
    with pytest.raises(ConversationsFailedError) as caught:
        client.chat_many(_conversations(*answers), sampling=SAMPLING, on_result=lambda i, _: seen.append(i))
    assert seen == [4] and {i: why.again for i, why in caught.value.failed.items()} == {
        0: False, 1: False, 2: False, 3: True,
    }  # fmt: skip
    assert "refused: no" in caught.value.failed[0].reason and "too long" in caught.value.failed[2].reason
    assert dict(server.asked) == {
        "refused": 1, "filtered": 1, "bad": 1, "down": 3, "good": 1,
    }  # fmt: skip


def test_a_conversation_that_cannot_be_built_fails_alone(serve):
    class Lazy(list):
        def __getitem__(self, index):
            if index == 1:
                raise DataError("clip.mp4: damaged")
            return super().__getitem__(index)

    _, client = serve(lambda text, _: Answer(text=text.upper()))
    seen = {}
    with pytest.raises(ConversationsFailedError, match=r"clip\.mp4") as caught:
        client.chat_many(Lazy(_conversations("a", "b", "c")), sampling=SAMPLING, on_result=seen.__setitem__)
    assert set(seen) == {0, 2} and set(caught.value.failed) == {1} and caught.value.failed[1].again


def test_no_more_requests_are_begun_than_a_minute_may_have(serve):
    server, client = serve(lambda text, _: Answer(text="x"), concurrency=8, requests_per_minute=1200)
    client.chat_many(_conversations(*"abcdefg"), sampling=SAMPLING)
    assert server.times[-1] - server.times[0] >= 6 * 0.05 / 2  # a busy machine can hold up the first, not the last
    with pytest.raises(TextLLMError, match="requests_per_minute is 0"):
        open_client("openai", base_url="http://x", model="m", requests_per_minute=0)


def test_each_server_may_have_a_key_of_its_own(serve, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "two")
    server, client = serve(lambda text, _: Answer(text="x"), key_variable="OTHER_KEY")
    client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert server.requests[0]["headers"]["Authorization"] == "Bearer two"
    _, other = serve(lambda text, _: Answer(status=401, body=b"?"), key_variable="OTHER_KEY")
    with pytest.raises(TextLLMError, match="set OTHER_KEY"):
        other.chat_many(_conversations("a"), sampling=SAMPLING)


def test_pictures_may_be_given_as_bytes():
    part = user_message("x", images=[b"\xff\xd8"])["content"][0]
    assert part == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g="}}


def test_a_reply_in_pieces_is_joined(serve):
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    server, client = serve(lambda *_: streamed("hap", "py 你好", usage=usage, finish="length"), stream=True)
    (reply,) = client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert (reply.text, reply.truncated, reply.prompt_tokens, reply.reply_tokens) == ("happy 你好", True, 5, 2)
    assert server.requests[0]["body"]["stream"] is True


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (streamed("half", end=False), "the stream ended before"),
        (Answer(body=b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        (Answer(body=b"data: " + b"[" * 100_000 + b"\n\n"), "not a chat completion"),
        (Answer(body=b"data: [1]\n\ndata: [DONE]\n\n"), "not a chat completion"),
        (streamed("x", finish="content_filter"), "refused"),
    ],
)
def test_streams_that_are_no_reply_cost_their_conversation_alone(serve, answer, words):
    answer = replace(answer, headers={"Content-Type": "text/event-stream"})
    _, client = serve(lambda text, _: answer if text == "a" else streamed(text), stream=True)
    with pytest.raises(ConversationsFailedError, match=words) as caught:
        client.chat_many(_conversations("a", "b"), sampling=SAMPLING)
    assert set(caught.value.failed) == {0}


def test_a_server_that_only_streams_is_asked_so(serve):
    refusal = Answer(status=400, body=b'{"error": {"message": "This model only supports stream mode"}}')
    server, client = serve(
        lambda text, attempt: refusal if text == "a" and not attempt else streamed("fine"), concurrency=1
    )
    assert [r.text for r in client.chat_many(_conversations("a", "b"), sampling=SAMPLING)] == ["fine", "fine"]
    assert server.asked == {"a": 2, "b": 1}


def test_a_server_that_refuses_both_ways_is_not_asked_for_ever(serve):
    server, client = serve(lambda *_: Answer(status=400, body=b"stream is wrong"))
    with pytest.raises(ConversationsFailedError, match="stream is wrong"):
        client.chat_many(_conversations("a"), sampling=SAMPLING)
    assert server.asked["a"] == 2


def test_video_and_sound_of_bytes_travel_inside_the_message(serve):
    server, client = serve(lambda *_: Answer(text="x"), request_fields={"modalities": ["text"]})
    message = user_message("What?", video=b"mp4", audio=b"RIFF", audio_part="audio_url")
    client.chat_many([[message]], sampling=SAMPLING)
    video, audio, _ = server.requests[0]["body"]["messages"][0]["content"]
    assert video == {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,bXA0"}}
    assert audio == {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,UklGRg=="}}
    assert server.requests[0]["body"]["modalities"] == ["text"]
    with pytest.raises(TextLLMError, match="messages of a request cannot be set"):
        serve(lambda *_: Answer(text="x"), request_fields={"messages": []})
