"""The API as OpenAI's own client and curl speak it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import client_of, data_url, message, running

from affectgpt.processing.questions import render_question


def ask(client, video, text=None, *, seed=1, **more):
    extra = {key: more.pop(key) for key in ("subtitle", "person", "describe") if key in more}
    return client.chat.completions.create(
        model="tiny", messages=message(video, text), seed=seed, extra_body=extra, **more
    )


def test_models_and_health(client, server):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    done = subprocess.run(["curl", "-sf", f"{server.address}/health"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["status"] == "ok"


def test_an_answer_has_its_labels_groups_description_and_notes(client, clips):
    reply = ask(client, clips / "0.mp4", subtitle="Oh no!", describe=True)
    (choice,) = reply.choices
    found = choice.message.affectgpt
    assert choice.message.role == "assistant" and choice.message.content
    assert set(found) == {"labels", "groups", "lexicon", "question", "subtitle", "description", "notes"}
    assert found["question"] == render_question("ovlabel") and found["subtitle"] == "Oh no!"
    assert found["description"] and set(found["groups"]) == set(found["labels"])
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens > 0 and reply.usage.prompt_tokens > 100  # two prompts


def test_groups_are_those_of_the_wheels(server):
    groups = server.service.groups(["happy", "xyzzy"])
    assert groups["happy"]["Plutchik"] == "joy" and groups["xyzzy"] == {}


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client, clips):
    first, again, other = (ask(client, clips / "0.mp4", seed=s).choices[0].message.content for s in (3, 3, 4))
    assert first == again != other


def test_the_answer_depends_on_the_clip_the_subtitle_and_the_question(client, clips):
    texts = [
        ask(client, clips / "0.mp4", subtitle="Oh!").choices[0].message.content,
        ask(client, clips / "1.mp4", subtitle="Oh!").choices[0].message.content,
        ask(client, clips / "0.mp4", subtitle="No, never.").choices[0].message.content,
        ask(client, clips / "0.mp4", "Who is it?", subtitle="Oh!").choices[0].message.content,
    ]
    assert len(set(texts)) == 4


def test_several_choices_are_drawn_apart_and_the_first_is_that_of_one(client, clips):
    one = ask(client, clips / "0.mp4", seed=7).choices[0].message.content
    three = ask(client, clips / "0.mp4", seed=7, n=3).choices
    assert [choice.index for choice in three] == [0, 1, 2] and three[0].message.content == one
    assert len({choice.message.content for choice in three}) == 3


def test_temperature_0_is_greedy_and_max_tokens_cuts(client, clips):
    a, b = (ask(client, clips / "0.mp4", seed=s, temperature=0).choices[0].message.content for s in (1, 2))
    assert a == b
    short = ask(client, clips / "0.mp4", temperature=0, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert a.startswith(short.choices[0].message.content.rstrip("\ufffd"))


def test_a_stream_is_the_answer_in_pieces(client, clips):
    whole = ask(client, clips / "0.mp4", seed=5, n=2)
    chunks = list(ask(client, clips / "0.mp4", seed=5, n=2, stream=True, stream_options={"include_usage": True}))
    text, pieces, ends = {0: "", 1: ""}, 0, {}
    for chunk in chunks:
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            pieces += bool(choice.delta.content)
            if choice.finish_reason:
                ends[choice.index] = choice.delta.affectgpt
    assert [text[0], text[1]] == [choice.message.content for choice in whole.choices]
    assert pieces > 3 * len(whole.choices)  # token by token, not answer by answer
    assert [ends[0], ends[1]] == [choice.message.affectgpt for choice in whole.choices]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_sound_of_its_own_replaces_that_of_the_video(client, clips):
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(24_000) / 9), 16_000, format="WAV")
    sound = base64.b64encode(buffer.getvalue()).decode()
    parts = message(clips / "silent.mp4")[0]["content"]
    input_audio = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    audio_url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}}

    def reply(more):
        made = [{"role": "user", "content": parts + more}]
        return client.chat.completions.create(model="tiny", messages=made, seed=1).choices[0].message

    silent, heard, same = reply([]), reply([input_audio]), reply([audio_url])
    assert any("no audio track" in note for note in silent.affectgpt["notes"])
    assert not any("audio track" in note for note in heard.affectgpt["notes"])
    assert heard.content == same.content != silent.content


def test_curl_with_a_file_below_the_media_root(server, clips, client):
    body = {"messages": message(f"file://{clips}/0.mp4"), "seed": 1}
    command = [
        "curl",
        "-s",
        "-H",
        "Content-Type: application/json",
        "-d",
        "@-",
        f"{server.address}/v1/chat/completions",
    ]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True)
    content = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert content == ask(client, clips / "0.mp4").choices[0].message.content


def test_together_the_answers_are_those_of_one_by_one(predictor, clips):
    """Eight clients at once share batches, and nobody's answer changes; another temperature gets a batch of its own."""
    with running(predictor, batch_wait=5.0) as server:
        client = client_of(server)
        wanted = [(clips / f"{i}.mp4", i, 1.0 if i % 4 else 0.5, 20 - i) for i in range(8)]

        def one(item):
            video, seed, temperature, tokens = item
            reply = ask(client, video, seed=seed, temperature=temperature, max_tokens=tokens, subtitle="So " * seed)
            return reply.choices[0].message.content, reply.usage.completion_tokens

        alone = [one(item) for item in wanted]
        assert max(server.service.batcher.batches) == 1
        batcher = server.service.batcher
        batcher.batches.clear()
        waiting, submit = threading.Semaphore(0), batcher.submit
        batcher.submit = lambda rows: (submit(rows), waiting.release())
        with ThreadPoolExecutor(8) as pool:
            with server.service.session.lock:  # whatever is taken first waits for the rest to be there
                answers = [pool.submit(one, item) for item in wanted]
                assert all(waiting.acquire(timeout=60) for _ in wanted)
            together = [answer.result() for answer in answers]
        assert together == alone and max(batcher.batches) >= 3


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "Hello?"}]}, 400, "video_url"),
        ({"messages": "x"}, 400, "messages"),
        ({"temperature": 9}, 400, "temperature"),
        ({"n": 99}, 400, "at most 8"),
        ({"max_tokens": 10**6}, 400, "at most"),
        ({"model": "gpt-4"}, 404, "tiny"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"subtitle": ["a"]}, 400, "subtitle"),
        ({"person": "left"}, 400, "person"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
            400,
            "one user",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_errors_have_openais_form(client, clips, change, status, words):
    import openai

    body = {"model": "tiny", "messages": message("data:video/mp4;base64,AAAA"), **change}
    known = {key: body.pop(key) for key in ("model", "messages")}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**known, extra_body=body)
    assert caught.value.status_code == status and words in caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"messages": NaN}', b"\xff\xfe"])
def test_what_is_not_a_request_is_refused(server, body):
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", "--data-binary", "@-",
         f"{server.address}/v1/chat/completions"], input=body, capture_output=True, check=True,
    )  # fmt: skip
    answer, status = done.stdout.decode().rsplit("\n", 1)
    assert status == "400" and json.loads(answer)["error"]["message"]


def test_fields_of_clients_that_change_nothing_are_taken(client, clips):
    reply = client.chat.completions.create(
        model="tiny", messages=message(clips / "0.mp4"), seed=1, user="me", metadata={"a": "b"}, presence_penalty=0,
        frequency_penalty=0, logprobs=False, response_format={"type": "text"}, max_completion_tokens=4,
    )  # fmt: skip
    assert reply.choices[0].finish_reason == "length"


def test_a_face_is_chosen_by_the_person_field(served_world, clips):
    """With a model that takes faces: the field is handed on, and nobody there is an error that says who is."""
    import openai

    from affectgpt.inference.predictor import Predictor

    with running(Predictor.from_config(served_world.yaml)) as server:
        client = client_of(server)
        assert ask(client, clips / "1.mp4", person=0, max_tokens=2).choices[0].message.content is not None
        with pytest.raises(openai.BadRequestError, match="nobody number 3"):
            ask(client, clips / "1.mp4", person=3)
        with pytest.raises(openai.BadRequestError, match="person"):
            ask(client, clips / "1.mp4", person="behind")
        assert data_url(clips / "1.mp4").startswith("data:")
