"""Steps alone and together, through servers: clues of real media, merging, filters, output; resumed after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_llm_server import Answer
from small_annotation import description, write_media

from affectgpt.cli import caption
from affectgpt.config.captioning import AUDIO_PROMPT, MERGE_PROMPT, VISUAL_PROMPT
from affectgpt.core.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
USAGE = {"prompt_tokens": 50, "completion_tokens": 20}


def served(server, *more: str) -> list[str]:
    """Options that send every question to one server."""
    options = []
    for step, model in (("audio", "hears"), ("visual", "sees"), ("merge", "writes")):
        settings = {"client": "openai", "base_url": server.url, "model": model, "attempts": 2, "timeout": 5}
        options += [f"captioning.{step}.{key}={value}" for key, value in settings.items()]
    return [*options, *more]


def run(world, *options: str, flags: tuple[str, ...] = ()) -> int:
    return caption.main(["--cfg-path", str(world.yaml), *flags, *(["--options", *options] if options else [])])


def behave(truth):
    """Clues, and for a merge the true description of the clip whose subtitle stands in it."""

    def answer(text: str, _: int) -> Answer:
        if text.startswith(MERGE_PROMPT[:40]):
            name = text.rsplit("This is ", 1)[1].rstrip(".")
            return Answer(text=description(truth[name]), usage=USAGE)
        return Answer(text="A clue of the voice." if text == AUDIO_PROMPT else "A clue of the face.", usage=USAGE)

    return answer


SIX = ("--limit", "6")
FIRST = "-first6"  # what such a run puts behind the names of its files


def test_six_clips_from_media_to_a_training_set(world, serve, capsys):
    server = serve(behave(world.truth))
    assert run(world, *served(server), flags=SIX) == 0
    by_model = Counter(request["body"]["model"] for request in server.requests)
    assert by_model == {"hears": 6, "sees": 6, "writes": 6}
    (heard,) = {len(r["body"]["messages"][0]["content"]) for r in server.requests if r["body"]["model"] == "hears"}
    assert heard == 2  # sound and prompt
    seen = next(r for r in server.requests if r["body"]["model"] == "sees")["body"]["messages"][0]["content"]
    assert [part["type"] for part in seen] == ["image_url"] * 8 + ["text"] and seen[-1]["text"] == VISUAL_PROMPT
    merged = next(r for r in server.requests if r["body"]["model"] == "writes")["body"]["messages"][0]["content"]
    assert merged.startswith(MERGE_PROMPT) and "Acoustic clues: A clue of the voice." in merged
    assert "Visual clues: A clue of the face." in merged and "Subtitle: This is clip000" in merged
    rows = world.read("clips.csv", suffix=FIRST)
    assert len(rows) == 6 and {row["verdict"] for row in rows.values()} <= {"kept", "dropped"}
    kept = [name for name, row in rows.items() if row["verdict"] == "kept"]
    assert len(kept) >= 4
    folder = world.work / "dataset-first6" / "mer2025-dataset"
    with (folder / "track2_train_mercaptionplus.csv").open(newline="") as handle:
        labels = list(csv.reader(handle))
    assert labels[0] == ["name", "openset"] and [row[0] for row in labels[1:]] == kept
    assert all(row[1].startswith("[") for row in labels[1:])
    assert (folder / "audio" / f"{kept[0]}.wav").is_file() and (folder / "video" / f"{kept[0]}.mp4").is_file()
    counts = json.loads((world.work / "counts-first6.json").read_text())
    assert counts["counts"]["kept"] == len(kept) and counts["costs"]["merge"]["prompt_tokens"] == 300
    assert "6 requests, 300 + 120 tokens" in capsys.readouterr().out


def test_a_second_run_asks_nothing_and_writes_the_same(world, serve):
    server = serve(behave(world.truth))
    run(world, *served(server), flags=SIX)
    asked = len(server.requests)
    names = ("clips-first6.csv", "failed-first6.csv", "dataset-first6/mer2025-dataset/track3_train_mercaptionplus.csv")
    before = [(world.work / name).read_bytes() for name in names]
    assert run(world, *served(server), flags=SIX) == 0
    assert len(server.requests) == asked == 18
    assert [(world.work / name).read_bytes() for name in names] == before


def test_steps_run_alone(world, serve):
    server = serve(behave(world.truth))
    options = served(server)
    assert run(world, *options, flags=(*SIX, "--steps", "merge")) == 0
    assert not server.requests  # no clue is there yet
    with (world.work / "failed-merge-first6.csv").open(newline="") as handle:
        waiting = [row["reason"] for row in csv.DictReader(handle) if row["step"] == "merge"]
    assert waiting == ["no acoustic and no visual clue yet"] * 6
    assert run(world, *options, flags=(*SIX, "--steps", "describe")) == 0
    assert len(server.requests) == 12
    assert run(world, *options, flags=(*SIX, "--steps", "merge")) == 0
    assert len(server.requests) == 18 and not list(world.work.glob("dataset*"))
    server.close()  # filters and output need no server
    assert run(world, *options, flags=(*SIX, "--steps", "low_level", "high_level", "output")) == 0
    assert (world.work / "dataset-first6" / "mer2025-dataset" / "subtitle_chieng.csv").is_file()
    assert world.read("failed.csv", suffix=FIRST) == {}


def test_a_run_of_fewer_clips_or_steps_replaces_nothing_of_a_whole_one(world):
    assert run(world) == 0
    before = {p: p.read_bytes() for p in world.work.rglob("*") if p.is_file() and not p.is_symlink()}
    assert run(world, flags=("--limit", "3")) == 0
    assert run(world, flags=("--steps", "describe")) == 0
    assert run(world, flags=("--steps", "low_level", "--limit", "3")) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert len(world.read("clips", suffix="-first3")) == 3 and len(world.read("clips", suffix="-describe")) == 30
    assert (world.work / "report-low_level-first3.html").is_file()


def test_a_dry_run_counts_and_does_nothing(world, serve, capsys):
    server = serve(behave(world.truth))
    assert run(world, *served(server), flags=(*SIX, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "acoustic         6 requests" in out and "merge            0 requests" in out and "6 cannot be asked" in out
    assert not server.requests and not world.work.exists()


def test_missing_and_unreadable_clips_are_told_by_name(world, serve, tmp_path, small_world):
    """Clips after the sixth have no media at all."""
    server = serve(behave(world.truth))
    assert run(world, *served(server), flags=("--limit", "8")) == 0
    failed = world.read("failed.csv", suffix="-first8")
    assert set(failed) == {"clip0006", "clip0007"}
    with (world.work / "failed-first8.csv").open(newline="") as handle:
        reasons = [row for row in csv.DictReader(handle) if row["name"] == "clip0006"]
    assert {row["step"] for row in reasons} == {"acoustic", "visual", "merge"}
    assert any("clip0006.wav: no such file" in row["reason"] for row in reasons)
    assert all(row["tried again"] == "next run" for row in reasons)
    asked = len(server.requests)
    write_media(world.input, "clip0006")
    try:
        assert run(world, *served(server), flags=("--limit", "8")) == 0
    finally:
        for folder, suffix in (("audio", ".wav"), ("video", ".mp4"), ("openface_face", ".npy")):
            (world.input / folder / f"clip0006{suffix}").unlink()
    assert len(server.requests) == asked + 3 and set(world.read("failed.csv", suffix="-first8")) == {"clip0007"}


def test_a_wrong_key_stops_the_run_with_status_1_and_keeps_all(world, serve, capsys):
    good = behave(world.truth)

    def locked(text, attempt):
        return good(text, attempt) if not text.startswith(MERGE_PROMPT[:40]) else Answer(status=401, body=b"who?")

    server = serve(locked)
    assert run(world, *served(server), flags=SIX) == 1
    assert "set OPENAI_API_KEY" in capsys.readouterr().err
    assert (
        len(world.read("failed.csv", suffix=FIRST)) == 6
        and "Not finished" in (world.work / "report-first6.html").read_text()
    )
    server.behave = good
    before = len(server.requests)
    assert run(world, *served(server), flags=SIX) == 0
    assert len(server.requests) == before + 6


def test_a_killed_run_goes_on_where_it_was(world, serve):
    """SIGKILL in the middle: what was answered is not asked again, beyond the requests that were on their way."""
    good = behave(world.truth)
    server = serve(lambda text, attempt: Answer(text=good(text, attempt).text, delay=0.15))
    command = [sys.executable, "-m", "affectgpt.cli.caption", "--cfg-path", str(world.yaml), *SIX]
    options = served(server, *(f"captioning.{step}.concurrency=2" for step in ("audio", "visual", "merge")))
    process = subprocess.Popen(
        [*command, "--options", *options], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.requests) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before the kill"
    answered = sum(len(path.read_text().splitlines()) - 1 for path in (world.work / "cache").glob("*.jsonl"))
    assert 0 < answered < 18
    time.sleep(0.2)
    first = len(server.requests)
    assert run(world, *options, flags=SIX) == 0
    assert len(server.requests) - first == 18 - answered
    assert first - answered <= 2  # lost: those on their way
    assert world.read("failed.csv", suffix=FIRST) == {}


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("captioning.merge.client=openai", ConfigError, "captioning.merge: needs base_url"),
        ("captioning.merge.file=nowhere.csv", DataError, r"nowhere\.csv: no such file"),
        ("captioning.input.root=nowhere", DataError, "affectgpt preprocess"),
        ("captioning.input.subtitles=none.csv", DataError, r"none\.csv: no such file"),
        ("captioning.audio.client=transformers captioning.merge.client=openai", ConfigError, "text only"),
        ("captioning.crowd.models=4", Exception, "holds an ensemble of other settings: models is 3"),
        ("captioning.agreement.rule=X", ConfigError, "allowed: one of E, S"),
        ("captioning.audio.modle=x", ConfigError, "Did you mean 'model'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(world, option, error, message):
    if "crowd" in option:
        run(world)
    with pytest.raises(error, match=message):
        run(world, *option.split())


def test_a_data_set_that_was_not_made_here_is_not_overwritten(world, tmp_path):
    theirs = tmp_path / "theirs" / "mer2025-dataset" / "track2_train_mercaptionplus.csv"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("name,openset\n")
    with pytest.raises(DataError, match="did not make"):
        run(world, f"captioning.output={tmp_path / 'theirs'}")
    assert theirs.read_text() == "name,openset\n"
    assert run(world) == 0 and run(world) == 0  # its own may be written again


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_the_report_shows_faces_in_their_colours(channels, world, tmp_path):
    import base64
    import io
    import re
    import shutil

    import numpy as np
    from PIL import Image

    root = tmp_path / "clips"
    shutil.copytree(world.input, root)
    faces = root / "openface_face"
    for path in faces.glob("*.npy"):
        crops = np.zeros((20, 32, 32, 3), np.uint8)
        crops[..., channels.index("r")] = 220
        np.save(path, crops)
    if channels == "rgb":
        (faces / "crops.json").write_text('{"channels": "rgb"}')
    options = (f"captioning.input.root={root}", f"captioning.merge.file={root}/descriptions.csv")
    assert run(world, *options, flags=("--steps", "low_level", "--limit", "3")) == 0
    page = (world.work / "report-low_level-first3.html").read_text()
    [first, *_] = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", page)
    red, _, blue = np.asarray(Image.open(io.BytesIO(base64.b64decode(first)))).mean(axis=(0, 1))
    assert red > 180 and blue < 40
