"""Answers, labels, replies and names of others through the commands: they cost little, and a terminal obeys none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_llm_server import Answer, FakeServer
from small_benchmark import GOOD, Bench

from affectgpt.cli import doctor, evaluate, sample, score
from affectgpt.cli.common import run_cli
from affectgpt.core.npz import read_npz, write_npz
from affectgpt.evaluation.results import items_path, record_path

ROOT = Path(__file__).resolve().parents[2]
ESC = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
SENTENCE = "The character's emotional state is {}."
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def run(capsys, main, *arguments: str) -> tuple[int, str, str]:
    status = run_cli(main, list(arguments))
    out, err = capsys.readouterr()
    assert not _OBEYED.search(out) and not _OBEYED.search(err)
    return status, out, err


@pytest.fixture
def asked(bench: Bench):
    """A run whose answers are not extracted yet, and the arguments that ask a server about it."""
    path = bench.folder("MER2023", "fresh") / "checkpoint_000030_loss_0.500.npz"
    write_npz(path, name2reason={name: SENTENCE.format(name) for name in GOOD["MER2023"]})

    def arguments(server: FakeServer) -> list[str]:
        return bench.arguments(
            "--extractor", "openai", "--base-url", server.url, "--model", "m", "--run", "fresh",
            "--datasets", "mer2023", "--seed", "1",
        )  # fmt: skip

    return path, arguments


def test_a_reply_of_many_megabytes_gives_no_label_and_is_named(capsys, serve, asked):
    path, arguments = asked
    huge = serve(lambda text, _: Answer(text="x" * 21_000_000 if " m2." in text else "[happy]"))
    assert run(capsys, evaluate.main, *arguments(huge))[0] == 0
    assert read_npz(items_path(path))["fileitems"].tolist().count("[]") == 1
    notes = json.loads(record_path(items_path(path)).read_text())["notes"]
    assert notes == {"reply not of the published form, read tolerantly": {"count": 1, "first": ["m2"]}}


def test_a_long_item_does_not_widen_the_file(capsys, serve, asked):
    path, arguments = asked
    server = serve(lambda text, _: Answer(text=f"[happy{', sad' * 100_000}]" if " m2." in text else "[happy]"))
    assert run(capsys, evaluate.main, *arguments(server))[0] == 0
    items = read_npz(items_path(path))["fileitems"]
    assert items.dtype.itemsize <= 4 * 8192 and items[1].startswith("[happy, sad")
    notes = json.loads(record_path(items_path(path)).read_text())["notes"]
    assert notes == {"item of more than 8192 characters, cut": {"count": 1, "first": ["m2"]}}


def test_answers_of_others_that_hold_endless_lists(capsys, bench, tmp_path):
    table = tmp_path / "theirs.jsonl"
    lists = {"m1": "happy", "m2": ", ".join(f"w{i}" for i in range(5000)), "m3": "a" * 30_000, "m4": "sad"}
    with table.open("w") as handle:
        for name, labels in lists.items():
            handle.write(json.dumps({"name": name, "answer": SENTENCE.format(labels)}) + "\n")
    arguments = bench.arguments("--answers", str(table), "--datasets", "mer2023", "--extractor", "direct")
    assert run(capsys, evaluate.main, *arguments)[0] == 0
    made = bench.folder("MER2023", "theirs") / "theirs-openset-direct.npz"
    assert read_npz(made)["fileitems"].dtype.itemsize <= 4 * 8192


def test_answers_of_others_that_take_long_to_read(capsys, bench, tmp_path):
    """Blanks, and statements inside statements: their cost grew with the square of their length, and more.

    These lengths would then outlast the suite's limit of a test."""
    answers = {
        "m1": f"The emotional state is x{' ' * 30_000}y", "m2": "emotion is " * 2900, "m3": "x" * 10**7,
        "m4": f"happy{' ' * 30_000}\n{'very ' * 500}sad",
    }  # fmt: skip
    write_npz(tmp_path / "theirs.npz", name2reason=answers)
    status, out, _ = run(
        capsys, score.main, *bench.arguments("--answers", str(tmp_path / "theirs.npz"), "--datasets", "mer2023")
    )
    assert status == 0 and "3 of 4 answers have no form" in out


def test_labels_are_shown_with_their_control_characters_written_out(capsys, serve, asked, bench, tmp_path):
    _, arguments = asked
    server = serve(lambda *_: Answer(text="Output: [happy, \x1b\x07\x9b31m\u202egloom]"))
    files = [str(tmp_path / name) for name in ("u.csv", "t.tex")]
    status, out, _ = run(
        capsys, evaluate.main, *arguments(server), "--all-metrics", "--latex", "--unknown-labels", files[0]
    )
    assert status == 0 and "\\u001b\\u0007\\u009b31m\\u202egloom (4)" in out
    assert not _OBEYED.search((tmp_path / "u.csv").read_text())


def test_a_server_s_error_is_shown_the_same_way(capsys, serve, asked):
    _, arguments = asked
    server = serve(lambda *_: Answer(status=400, body=f"bad {ESC}\nprompt".encode()))
    status, _, err = run(capsys, evaluate.main, *arguments(server))
    assert status == 1 and "bad \\u001b]0;title" in err and "prompt" in err


def test_names_of_folders_and_samples_are_shown_the_same_way(capsys, bench):
    run_name, stem = f"run_{ESC}", f"checkpoint_000030_loss_{ESC}"
    bench.add("MER2023", run_name, stem, {**GOOD["MER2023"], f"else{ESC}": "[sad]"})
    arguments = bench.arguments("--datasets", "mer2023", "--run", run_name)
    status, _, err = run(capsys, score.main, *arguments)
    assert status == 1 and "else\\u001b" in err
    status, out, _ = run(capsys, score.main, *arguments, "--allow-missing", "--all-metrics")
    assert status == 0 and "run        run_\\u001b" in out and "\\u009b31m" in out
    other = bench.arguments("--datasets", "mer2023", "--allow-missing", "--compare", run_name, "run_b")
    status, out, _ = run(capsys, score.main, *other)
    assert status == 0 and "A  run_\\u001b" in out


def test_log_lines_too(bench, tmp_path):
    write_npz(tmp_path / "theirs.npz", name2reason={f"m{ESC}": "He walks up and down.", "m1": "happy", "m2": "sad"})
    command = [sys.executable, "evaluation.py", *bench.arguments("--answers", str(tmp_path / "theirs.npz"))]
    done = subprocess.run(
        [*command, "--datasets", "mer2023", "--extractor", "direct", "--allow-missing"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "(first: m\\u001b]0;title" in done.stderr and not _OBEYED.search(done.stderr + done.stdout)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_answers_of_a_model_are_shown_the_same_way(capsys, monkeypatch, tmp_path, form):
    from affectgpt.inference.predictor import Predictor, Reply

    clip = tmp_path / "clip\x1b[2J.mp4"
    clip.write_bytes(b"")
    text = f"two\nlines {ESC}"
    reply = Reply(answer=text, labels=[f"sad{ESC}"], question="?", video=str(clip))

    class Answered:
        def use(self, checkpoint):
            pass

        def __call__(self, *_, **__):
            return reply

    monkeypatch.setattr(Predictor, "from_config", lambda *_, **__: Answered())
    (tmp_path / "checkpoint_000011_loss_0.500.pth").write_bytes(b"")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(f"datasets: {{mercaptionplus: {{}}}}\ninference: {{ckpt_root: {tmp_path}}}\n")
    status, out, _ = run(capsys, sample.main, "--cfg-path", str(recipe), "--video_path", str(clip), *form)
    assert status == 0 and "\\u001b]0;title" in out
    if form:
        assert json.loads(out)["answer"] == text
    else:
        assert out.startswith("answer: two\nlines \\u001b") and "labels: sad\\u001b" in out


def test_the_doctor_shows_answers_of_others_the_same_way(capsys, tmp_path):
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    write_npz(ours, name2reason={"a": SENTENCE.format("sad"), "b": "x"})
    write_npz(theirs, name2reason={"a": f"{ESC}happy", "b": "x", f"c{ESC}": "y"})
    status, out, _ = run(capsys, doctor.main, "--answers", str(ours), "--against", str(theirs))
    assert status == 1 and "only theirs: c\\u001b" in out and "theirs: \\u001b" in out
