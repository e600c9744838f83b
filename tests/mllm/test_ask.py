"""``affectgpt ask`` against a real server on the loopback address: from clips to a score."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_llm_server import Answer, FakeServer, streamed
from small_benchmark import MER2023_TRUTH
from talking_clips import a_model, make_clips, parts_of

from affectgpt.cli import main as cli
from affectgpt.core.npz import read_npz

ROOT = Path(cli.__file__).resolve().parents[2]
DESCRIBED = "As an expert in the field of emotions, please focus on the facial expressions"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Clips and a working folder; no key, no proxy."""
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    make_clips(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def serve():
    servers = []

    def start(behave=lambda body, _: a_model(body)):
        servers.append(FakeServer(behave, whole=True))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server, *more, datasets="MER2023"):
    return cli.main(
        ["ask", "--base-url", server.url, "--model", "org/tiny-omni", "--datasets", datasets, "--dataset-root",
         "dataset", "--attempts", "2", "--timeout", "10", *more]
    )  # fmt: skip


def folder(world, run="tiny-omni_labels_video+audio+subtitle"):
    return world / "output" / "results-mer2023" / run


def test_from_clips_to_a_score(world, serve, capsys):
    server = serve()
    assert ask(server, "--price-prompt", "1000000") == 0
    printed = capsys.readouterr().out
    assert "4 answers, 0 clips without" in printed and "paid" in printed and "--extractor direct" in printed
    answers = read_npz(folder(world) / "seed_42.npz")["name2reason"]
    assert answers == {name: f"The person's emotional state is {emo}." for name, emo in MER2023_TRUTH.items()}
    record = json.loads((folder(world) / "seed_42-answers.meta.json").read_text())
    assert record["model"] == "org/tiny-omni" and record["media"] == ["video", "audio", "subtitle"]
    assert record["answers"] == 4 and record["failed"] == {} and record["tokens"] == 36
    assert record["senses"]["audio"]["answers_changed"] == 3 and record["deaf_or_blind"] == []
    assert "8 uniform frames" in record["sent"]["video"] and record["decoding"]["temperature"] == 0
    assert record["versions"]["av"] and len(record["prompt_hash"]) == 32
    arguments = ["--datasets", "MER2023", "--dataset-root", "dataset", "--lexicon", "builtin", "--bootstrap", "0"]
    assert cli.main(["evaluate", "--extractor", "direct", *arguments]) == 0
    assert "100.00" in capsys.readouterr().out
    assert cli.main(["score", *arguments]) == 0
    assert "100.00" in capsys.readouterr().out


def test_media_travel_as_separate_parts(world, serve):
    server = serve()
    assert ask(server, "--frames", "4", "--longest-side", "32") == 0
    parts = [parts_of(request["body"]) for request in server.requests]
    whole = [p for p in parts if "video" in p and "audio" in p]
    assert len(whole) == 7  # three of the check, four clips
    assert whole[0]["video"].shape == (4, 32, 32, 3) and len(whole[0]["audio"]) == 16_000
    texts = {p["text"].splitlines()[0] for p in whole}
    assert "What the person in this clip says: Said in m1." in texts
    assert any(text.startswith("Look at the face") for text in texts)  # m4 has no subtitle


def test_pictures_and_the_other_kind_of_sound(world, serve):
    server = serve()
    assert ask(server, "--as-frames", "--audio-part", "audio_url", "--frames", "3") == 0
    parts = [parts_of(request["body"]) for request in server.requests]
    assert max(p["images"] for p in parts) == 3 and not any("video" in p for p in parts)
    assert any(request["body"]["messages"][0]["content"][-2]["type"] == "audio_url" for request in server.requests)


def test_published_prompts_with_their_media_and_decoding(world, serve):
    server = serve()
    assert ask(server, "--prompt", "published:Otter", "--allow-deaf") == 0
    body = server.requests[-1]["body"]
    parts = [parts_of(request["body"]) for request in server.requests]
    assert not any("audio" in p for p in parts) and max(len(p["video"]) for p in parts if "video" in p) == 10
    assert body["temperature"] == 0
    assert f"Subtitle content of this video: Said in m1.; {DESCRIBED}" in "\n".join(p["text"] for p in parts)
    answers = read_npz(folder(world, "tiny-omni_otter_video+subtitle") / "seed_42.npz")["name2reason"]
    assert "\n" not in answers["m1"] and answers["m1"].startswith("The person's emotionalstate")  # as published


@pytest.mark.parametrize(("medium", "word", "organs"), [("audio", "deaf", "ears"), ("video", "blind", "eyes")])
def test_a_deaf_or_blind_model_is_refused(world, serve, capsys, medium, word, organs):
    server = serve(lambda body, _: a_model(body, **{organs: False}))
    assert ask(server) == 1
    said = capsys.readouterr().err
    assert f"{word}: the prompt has as many tokens without the {medium} as with it: m1" in said
    assert "--allow-deaf" in said
    assert not list(folder(world).glob("*.npz")) and len(server.requests) == 9
    assert ask(server, "--allow-deaf") == 0
    record = json.loads((folder(world) / "seed_42-answers.meta.json").read_text())
    assert record["deaf_or_blind"] == [medium] and record["allow_deaf"] is True
    assert f"does not take in {medium}" in capsys.readouterr().out


def test_equal_answers_are_deafness_where_nobody_counts_tokens(world, serve, capsys):
    server = serve(lambda body, _: Answer(text="The person's emotional state is calm."))
    assert ask(server, "--media", "audio,subtitle") == 1
    assert "the answers to 3 clips are the same without the audio as with it" in capsys.readouterr().err


def test_a_server_that_only_streams(world, serve):
    def behave(body, _):
        if not body.get("stream"):
            return Answer(status=400, body=b'{"error": {"message": "This model only supports streaming."}}')
        if "stream_options" in body:
            return Answer(status=400, body=b'{"error": {"message": "unknown field stream_options"}}')
        whole = a_model(body)
        return streamed(whole.text[:9], whole.text[9:], usage=whole.usage)

    assert ask(serve(behave)) == 0
    answers = read_npz(folder(world) / "seed_42.npz")["name2reason"]
    assert answers["m2"] == "The person's emotional state is angry."


def test_what_goes_wrong_is_recorded_by_clip_and_asked_again(world, serve, capsys):
    faults = {
        "m1": Answer(status=413, body=b"too large"), "m2": Answer(text="  "), "m3": Answer(text="I'm sorry, I can't."),
        "none": Answer(hang_up=True),
    }  # fmt: skip
    broken = True

    def behave(body, _):
        name = next((n for n in faults if f"Said in {n}." in parts_of(body)["text"]), "none")
        if broken and body["max_tokens"] != 64:  # the check's own
            return faults[name]
        return a_model(body)

    server = serve(behave)
    assert ask(server) == 1
    said = capsys.readouterr().err
    assert "4 of 4 clips have no answer" in said and "status 413: too large" in said
    assert not (folder(world) / "seed_42.npz").exists()
    with (folder(world) / "seed_42-answers.failed.csv").open() as handle:
        reasons = {row["sample"]: row["reason"] for row in csv.DictReader(handle)}
    assert "413" in reasons["m1"] and reasons["m2"] == "the reply is empty" and "refused" in reasons["m3"]
    assert "closed the connection" in reasons["m4"]
    assert ask(server, "--skip-failed") == 1  # nothing at all is no result
    del faults["m1"], faults["m3"]
    faults["none"] = a_model({"messages": [{"content": "?"}]})
    assert ask(server, "--skip-failed") == 0
    record = json.loads((folder(world) / "seed_42-answers.meta.json").read_text())
    assert record["answers"] == 3 and list(record["failed"]) == ["m2"]
    before = len(server.requests)
    assert ask(server) == 0 and len(server.requests) == before  # kept


def test_a_run_resumes_where_the_server_went_down(world, serve, capsys):
    down = True

    def behave(body, _):
        asks = "Said in m2." in parts_of(body)["text"]
        if down and asks and body["max_tokens"] != 64:
            return Answer(status=401, body=b"no more credit")
        return a_model(body)

    server = serve(behave)
    assert ask(server, "--concurrency", "1") == 1
    assert "no more credit" in capsys.readouterr().err
    assert not (folder(world) / "seed_42.npz").exists()
    down, before = False, len(server.requests)
    assert ask(server, "--concurrency", "1") == 0
    asked = [parts_of(r["body"])["text"] for r in server.requests[before:] if r["body"]["max_tokens"] != 64]
    assert len(asked) == 3 and not any("Said in m1." in text for text in asked)


def test_other_settings_do_not_take_over_a_result_file(world, serve, capsys):
    server = serve()
    assert ask(server) == 0
    assert ask(server, "--frames", "2") == 1
    assert "made with other settings" in capsys.readouterr().err
    assert ask(server, "--frames", "2", "--run", "two") == 0
    assert (folder(world, "two") / "seed_42.npz").exists()


def test_a_damaged_clip_is_named(world, serve):
    broken = next((world / "dataset").glob("*/video/m3.mp4"))
    broken.write_bytes(b"no video at all")
    server = serve()
    assert ask(server) == 1
    with (folder(world) / "seed_42-answers.failed.csv").open() as handle:
        (row,) = csv.DictReader(handle)
    assert row["sample"] == "m3" and "m3.mp4" in row["reason"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompt", "published:gpt"], "unknown published prompt"),
        (["--prompt", "nowhere.txt"], "published:MODEL"),
        (["--media", "smell"], "none of video, audio, subtitle"),
        (["--frames", "0"], "--frames"),
        (["--model-path", "x"], "one of the two"),
        (["--request-fields", '{"messages": []}'], "cannot be set"),
        (["--request-fields", "[1]"], "expected an object"),
        (["--temperature", "9"], "temperature"),
        (["--run", "../up"], "run name"),
    ],
)
def test_wrong_arguments_say_what_to_do(world, serve, capsys, more, words):
    server = serve()
    assert ask(server, *more) == 1
    assert words in capsys.readouterr().err and not server.requests


def test_a_prompt_of_a_file_and_a_dry_run(world, serve, capsys):
    (world / "mine.txt").write_text("They say {subtitle}.\nWhat do they feel?\n")
    server = serve()
    assert ask(server, "--prompt", "mine.txt", "--request-fields", '{"modalities": ["text"]}', "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "They say Said in m1.." in printed and "MB" in printed and not server.requests
    assert ask(server, "--prompt", "mine.txt", "--request-fields", '{"modalities": ["text"]}') == 0
    assert server.requests[0]["body"]["modalities"] == ["text"]
    assert "What do they feel?" in [parts_of(r["body"])["text"] for r in server.requests]


def test_what_a_model_thinks_is_no_part_of_its_answer(world, serve, capsys):
    def behave(body, _):
        whole = a_model(body)
        if "Said in m2." in parts_of(body)["text"] and body["max_tokens"] != 64:
            return Answer(text="<think>They look", finish="length", usage=whole.usage)
        return Answer(text=f"<think>\nSad? No.\n</think>\n\n{whole.text}", usage=whole.usage)

    assert ask(serve(behave), "--skip-failed") == 0
    answers = read_npz(folder(world) / "seed_42.npz")["name2reason"]
    assert answers["m1"] == "The person's emotional state is happy." and "m2" not in answers
    record = json.loads((folder(world) / "seed_42-answers.meta.json").read_text())
    assert "--max-tokens" in record["failed"]["m2"] and record["flags"]["thoughts_left_out"] == ["m1", "m3", "m4"]


def test_requests_are_concurrent_up_to_the_limit(world, serve):
    def behave(body, _):
        answer = a_model(body)
        answer.delay = 0.2
        return answer

    server = serve(behave)
    assert ask(server, "--concurrency", "3") == 0
    assert 1 < server.most_at_once <= 3


def test_a_killed_run_resumes(world, serve):
    """SIGKILL after the first answers: none of them is asked for again."""
    hold = threading.Event()

    def behave(body, _):
        text = parts_of(body)["text"]
        if body["max_tokens"] != 64 and "Said in m3." in text:
            hold.wait(60)
        return a_model(body)

    server = serve(behave)
    command = [sys.executable, "-m", "affectgpt.cli.main", "ask", "--base-url", server.url, "--model", "org/tiny-omni",
               "--datasets", "MER2023", "--dataset-root", "dataset", "--attempts", "2", "--timeout", "100",
               "--concurrency", "1"]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = folder(world) / "seed_42-answers.part0.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_text().count('"answer"') == 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    hold.set()
    before = len(server.requests)
    assert ask(server, "--concurrency", "1") == 0
    asked = [parts_of(r["body"])["text"] for r in server.requests[before:] if r["body"]["max_tokens"] != 64]
    assert len(asked) == 2 and not any(f"Said in {name}." in text for text in asked for name in ("m1", "m2"))
    assert len(read_npz(folder(world) / "seed_42.npz")["name2reason"]) == 4


def test_a_prompt_and_more_of_ones_own_file(world, serve):
    (world / "lab.py").write_text(
        "from affectgpt.mllm.prompts import PROMPTS, Prompt\n"
        "PROMPTS.register('lab')(Prompt('lab', ('How do they sound?',), ('audio',)))\n"
    )
    server = serve(lambda body, _: Answer(text=f"calm {'audio' in parts_of(body)}"))
    assert ask(server, "--imports", "lab.py", "--prompt", "published:lab") == 0
    assert (folder(world, "tiny-omni_lab_audio") / "seed_42.npz").exists()


def test_frames_per_second_and_the_prompts_own_decoding(world, serve):
    server = serve()
    assert ask(server, "--prompt", "published:chat-univi") == 0
    assert ask(server, "--fps", "3.5", "--media", "video", "--allow-deaf") == 0
    whole = [(parts_of(r["body"]), r["body"]) for r in server.requests if r["body"]["max_tokens"] != 64]
    assert [len(parts["video"]) for parts, _ in whole] == [1] * 4 + [4] * 4  # clips of a second
    assert [body["temperature"] for _, body in whole] == [0.2] * 4 + [0.0] * 4


def test_clips_that_are_too_long_are_not_sent(world, serve, monkeypatch):
    monkeypatch.setattr("affectgpt.mllm.clip.MOST_SECONDS", 0.5)
    server = serve()
    assert ask(server, "--allow-deaf") == 1 and not server.requests
    with (folder(world) / "seed_42-answers.failed.csv").open() as handle:
        assert all("at most 0.5 s are sent" in row["reason"] for row in csv.DictReader(handle))


def test_a_silent_video_sends_no_sound_and_says_so(world, serve):
    """A clip without a sound file whose video has no track."""
    next((world / "dataset").glob("*/audio/m4.wav")).unlink()
    server = serve()
    assert ask(server) == 0
    record = json.loads((folder(world) / "seed_42-answers.meta.json").read_text())
    assert record["flags"] == {"no_audio_track": ["m4"]}
