"""Models that answer, stall, break off, refuse or talk nonsense: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import threading
import time

import pytest
from fake_llm_server import Answer

from affectgpt.captioning.ask import CachedReply, ReplyCache, Request, ask, judge
from affectgpt.core.errors import DataError
from affectgpt.textllm.base import Sampling, TextReply, open_client
from affectgpt.textllm.messages import user_message

SAMPLING = Sampling(repetition_penalty=1.0, max_tokens=50)


def requests(*names: str, prompt: str = "Describe") -> list[Request]:
    return [Request(n, f"{prompt} {n}", lambda n=n: [user_message(f"{prompt} {n}")]) for n in names]


def run(server, wanted, folder, *, retry=False, dry_run=False, **settings):
    settings = {"attempts": 3, "timeout": 0.4, "concurrency": 4, **settings}
    with open_client("openai", base_url=server.url, model="tiny", **settings) as client:
        return ask("merge", wanted, client=client, sampling=SAMPLING, folder=folder, retry=retry, dry_run=dry_run)


FIRST = {  # what the server does with the first attempt at each clip
    "stalls": Answer(text="late", delay=0.8),
    "breaks": Answer(text="torn", break_off=True),
    "429": Answer(status=429, body=b"slow down", headers={"Retry-After": "0.05"}),
    "500": Answer(status=500, body=b"oops"),
    "nonsense": Answer(body=b"hello, not a completion"),
    "good": Answer(text="good"),
}


def test_every_misbehaviour_is_got_over_and_nothing_is_asked_again(serve, tmp_path):
    def behave(text, attempt):
        first = FIRST[text.split()[-1]]
        return first if attempt == 0 else Answer(text=f"reply to {text}")

    server = serve(behave)
    answers = run(server, requests(*FIRST), tmp_path)
    assert set(answers.texts) == set(FIRST) - {"nonsense"} == set(FIRST) - set(answers.failures)
    assert answers.asked == 6 and answers.reused == 0 and answers.stopped is None
    asked = {text.split()[-1]: n for text, n in server.asked.items()}
    assert asked == {**dict.fromkeys(FIRST, 2), "good": 1, "nonsense": 1}
    again = run(server, requests(*FIRST), tmp_path)  # what was no completion is asked for again
    assert set(again.texts) == set(FIRST) and again.asked == 1 and again.reused == 5
    assert again.texts.items() > answers.texts.items()
    before = dict(server.asked)
    assert run(server, requests(*FIRST), tmp_path).asked == 0 and dict(server.asked) == before


def test_another_prompt_model_or_sampling_is_asked_anew_and_the_old_replies_stay(serve, tmp_path):
    server = serve(lambda text, _: Answer(text=text.upper()))
    first = run(server, requests("a", "b"), tmp_path)
    assert run(server, requests("a", "b", prompt="Tell of"), tmp_path).asked == 2
    with open_client("openai", base_url=server.url, model="other") as client:
        other = ask("merge", requests("a"), client=client, sampling=SAMPLING, folder=tmp_path)
    assert other.asked == 1
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    back = run(server, requests("a", "b"), tmp_path)
    assert back.asked == 0 and back.texts == first.texts
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_server_that_goes_down_keeps_what_it_said(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="fine") if text[-1] in "abc" else Answer(status=401, body=b"no key"))
    answers = run(server, requests("a", "b", "c", "d", "e"), tmp_path, concurrency=1)
    assert set(answers.texts) == {"a", "b", "c"}
    assert "OPENAI_API_KEY" in str(answers.stopped)
    assert {name: failure.again for name, failure in answers.failures.items()} == {"d": True, "e": True}
    assert answers.failures["e"].reason.startswith("not asked: ")
    server.behave = lambda text, _: Answer(text="back")
    before = server.asked["Describe a"]
    healed = run(server, requests("a", "b", "c", "d", "e"), tmp_path)
    assert healed.texts["a"] == "fine" and healed.texts["e"] == "back" and not healed.failures
    assert server.asked["Describe a"] == before == 1


def test_a_server_that_is_not_there(serve, tmp_path):
    server = serve(lambda *_: Answer(text="x"))
    server.close()
    answers = run(server, requests("a", "b"), tmp_path)
    assert "cannot be reached" in str(answers.stopped) and not answers.texts
    assert all(failure.again for failure in answers.failures.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(text="  \n"), "empty"),
        (Answer(text="I'm sorry, but I can't assist with that."), "refused"),
        (Answer(text="As an AI language model, I cannot describe people."), "refused"),
        (Answer(text="x", finish="content_filter"), "refused"),
        (Answer(status=400, body=b"your prompt was flagged"), "flagged"),
    ],
    ids=["empty", "sorry", "as an AI", "content filter", "status 400"],
)
def test_what_asking_again_would_not_change_is_asked_again_only_on_demand(serve, tmp_path, answer, reason):
    server = serve(lambda text, _: answer if text.endswith("a") else Answer(text="fine"))
    for _ in range(2):
        answers = run(server, requests("a", "b"), tmp_path)
        assert answers.texts == {"b": "fine"}
        assert reason in answers.failures["a"].reason and not answers.failures["a"].again
    assert server.asked["Describe a"] == 1
    server.behave = lambda text, _: Answer(text="better")
    answers = run(server, requests("a", "b"), tmp_path, retry=True)
    assert answers.texts == {"a": "better", "b": "fine"} and not answers.failures
    assert run(server, requests("a", "b"), tmp_path).texts["a"] == "better"


def test_a_clip_that_cannot_be_read_fails_alone_and_is_looked_at_again(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="fine"))

    def unreadable():
        raise DataError("clip unreadable: x.mp4: damaged")

    wanted = [Request(f"bad{i}", "Describe", unreadable) for i in range(12)] + requests("a")
    for _ in range(2):
        answers = run(server, wanted, tmp_path)
        assert answers.texts == {"a": "fine"} and answers.stopped is None
        assert all(f.again and "damaged" in f.reason for f in answers.failures.values())
        assert len(answers.failures) == 12


def test_costs_are_those_of_all_runs(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="x", usage={"prompt_tokens": 100, "completion_tokens": 7}))
    run(server, requests("a"), tmp_path)
    costs = run(server, requests("a", "b", "c"), tmp_path).costs
    assert (costs["requests"], costs["prompt_tokens"], costs["reply_tokens"]) == (3, 300, 21)
    assert costs["seconds"] > 0


def test_a_dry_run_sends_nothing_and_writes_nothing(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="x"))
    answers = run(server, requests("a", "b"), tmp_path / "cache", dry_run=True)
    assert answers.asked == 2 and not server.requests and not (tmp_path / "cache").exists()
    assert {f.reason for f in answers.failures.values()} == set()


def test_the_rate_is_kept_and_requests_are_concurrent(serve, tmp_path):
    server = serve(lambda text, _: Answer(text="x", delay=0.15))
    run(server, requests(*"abcdef"), tmp_path / "free", timeout=5)
    assert server.most_at_once > 1
    server.times.clear()
    run(server, requests(*"abcdef"), tmp_path / "limited", timeout=5, requests_per_minute=600)
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 0.25  # six requests, a tenth of a second apart; the first can be held up


def test_conversations_are_built_when_their_turn_comes(serve, tmp_path):
    alive, most, lock = [0], [0], threading.Lock()

    def behave(text, _):
        time.sleep(0.01)
        with lock:
            alive[0] -= 1
        return Answer(text="x")

    server = serve(behave)

    def build():
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return [user_message("Describe")]

    run(server, [Request(f"c{i}", "Describe", build) for i in range(40)], tmp_path, timeout=5)
    assert most[0] <= 2 * 4


def test_a_reply_cut_short_is_kept_as_such(tmp_path):
    with ReplyCache(tmp_path, step="merge", settings={}) as cache:
        cache.put("a", "h", judge(TextReply("half a sen", truncated=True)))
        assert cache.get("a", "h") == CachedReply("half a sen", truncated=True)
        assert cache.get("a", "other") is None
