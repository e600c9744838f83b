"""docs/own-clips.md from raw clips to a score, line by line; what becomes of clips and answers that are missing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from drawn_clip import write_clip
from tiny_clone import FACE, add_run, make_clone, shell

from affectgpt.cli import check_data, evaluate, infer, preprocess, train
from affectgpt.cli.common import run_cli
from affectgpt.core.runtime import logger

ROOT = Path(__file__).resolve().parents[2]
RECIPE = FACE


@pytest.fixture(scope="module")
def clone(tiny_models, tmp_path_factory) -> Path:
    """A folder as a clone is, whose face recipe is a tiny one with a checkpoint, and raw clips beside it.

    Three people, a wall, and a file that is no video.
    """
    root = make_clone(tmp_path_factory.mktemp("own") / "clone", tiny_models)
    clips = root.parent / "dataset" / "mine" / "video"
    real = ROOT.parent / "shared" / "merunibench" / "demo" / "sample_00000000.mp4"
    for number, name in enumerate(("ann", "bob")):
        write_clip(clips / f"{name}.mp4", seed=number + 1)
    if real.is_file():
        shutil.copy(real, clips / "zoe.mp4")
    else:
        write_clip(clips / "zoe.mp4", seed=3)
    write_clip(clips / "wall.mp4", face=False)
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / "ann.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nI am so glad.\n")
    add_run(root, RECIPE, (11,))
    return root


def section(title: str) -> str:
    text = (ROOT / "docs" / "own-clips.md").read_text(encoding="utf-8")
    return re.split(r"^##+ ", text.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", section("From raw clips to a score"), flags=re.MULTILINE | re.DOTALL)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def write_rows(path: Path, rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)


def test_the_page_from_raw_clips_to_a_score(clone):
    first, then = blocks("bash")
    made = shell(clone, first)
    assert made.returncode == 1, made.stderr  # two clips failed, and are named
    mine = clone.parent / "dataset" / "mine"
    assert {row[0] for row in rows_of(mine / "failed.csv")[1:]} == {"broken", "wall"}
    header, *rows = rows_of(mine / "subtitle.csv")
    assert (header, [row[0] for row in rows]) == (["name", "english"], ["ann", "bob", "zoe"])
    truth = {"ann": "happy", "bob": "sad", "zoe": "worried"}
    write_rows(mine / "subtitle.csv", [[*header, "emotion"], *([*row, truth[row[0]]] for row in rows)])
    labelled = (mine / "subtitle.csv").read_bytes()
    assert shell(clone, first).returncode == 1
    assert (mine / "subtitle.csv").read_bytes() == labelled  # running it again keeps the column
    [block] = blocks("yaml")
    (clone / "mine.yaml").write_text(block)
    for line in then.splitlines():
        done = shell(clone, line)
        assert done.returncode == 0, (line, done.stderr, done.stdout)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["checkpoint", "mine", "mean", "of", "1"] in lines and ["HIT"] in lines
    assert ["clips", "3", "of", "3"] in lines
    assert any(line[:1] == ["checkpoint_000011_loss_0.110"] and 0 <= float(line[1]) <= 100 for line in lines)


@pytest.fixture(autouse=True)
def fresh_log_handler():
    """Commands in this process write their log to the present test's stderr."""
    logger.handlers.clear()
    yield
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture
def mine(clone, tmp_path, monkeypatch) -> Path:
    """A folder with ``mine.yaml`` over the tiny recipe, and clips that preprocess made."""
    root = tmp_path / "here"
    data = root / "dataset" / "mine"
    shutil.copytree(clone / "train_configs", root / "train_configs")
    data.mkdir(parents=True)
    source = clone.parent / "dataset" / "mine"
    if not (source / "openface_face").is_dir():
        assert preprocess.main(["--video-dir", str(source / "video"), "--out", str(source)]) == 1
    for folder in ("video", "audio", "openface_face"):
        (data / folder).symlink_to(source / folder)
    monkeypatch.chdir(root)
    return data


def configure(mine: Path, clone: Path, *, task: str, columns: str, path: str = "mine/all.csv", more: str = "") -> str:
    run = clone / "output" / RECIPE / f"{RECIPE}_20250110100"
    file = mine.parents[1] / "train_configs" / "mine.yaml"
    file.write_text(
        f"extends: {RECIPE}.yaml\n"
        f"datasets: {{mine: {{test_path: {path}, task: {task}, columns: {{{columns}}}, {more}\n"
        "  folders: {video: mine/video, audio: mine/audio, face: mine/openface_face}}}\n"
        f"inference: {{ckpt_root: {run}}}\n"
        f"paths: {{dataset_root: {mine.parent}}}\n"
    )
    return str(file)


@pytest.mark.parametrize(
    ("task", "column", "cells", "metric"),
    [
        ("basic", "emotion", ("happy", "sad", "angry", "happy", "worried"), "HIT"),
        ("fine-grained", "ovlabel", ("[happy]", "['sad', 'tired']", "[angry]", "[happy]", "worried"), "F_s"),
        ("sentiment", "valence", ("1.5", "-0.5", "2", "-1", "0.25"), "WAF"),
    ],
)
def test_unreadable_clips_are_left_out_listed_and_counted(task, column, cells, metric, mine, clone, capsys):
    names = ("ann", "bob", "broken", "wall", "zoe")
    write_rows(mine / "all.csv", [["name", column], *zip(names, cells, strict=True)])
    yaml = configure(mine, clone, task=task, columns=f"{column}: {column}")
    ask = ["--cfg-path", yaml, "--dataset=mine"]
    assert run_cli(infer.main, ask) == 1
    assert "sample 'broken'" in capsys.readouterr().err.splitlines()[-1]  # as it is without the flag
    assert run_cli(infer.main, [*ask, "--skip-unreadable"]) == 0
    answers = next(Path("output").rglob("checkpoint_*_loss_0.110.npz"))
    listed = rows_of(answers.with_name(f"{answers.stem}-answers.failed.csv"))
    assert [row[1] for row in listed[1:]] == ["broken", "wall"]
    capsys.readouterr()
    score = ["--cfg-path", yaml, "--extractor", "direct", "--json", "score.json", "--html", "score.html"]
    assert run_cli(evaluate.main, score) == 0, capsys.readouterr().err  # --datasets: those of the file with a task
    told = capsys.readouterr().out
    assert metric in told.split() and re.search(r"^clips +3 of 5$", told, flags=re.MULTILINE)
    assert "samples without an answer were left out: 2 in checkpoint_000011_loss_0.110: broken, wall" in told
    assert "2 of them could not be read" in told and "failed.csv" in told
    numbers = json.loads(Path("score.json").read_text())["datasets"]["mine"]
    assert numbers["task"] == task
    [checkpoint] = numbers["checkpoints"].values()
    assert (checkpoint["samples"], checkpoint["of"], checkpoint["missing"]) == (3, 5, ["broken", "wall"])
    # missing for another reason: an error that names them
    record = next(answers.parent.glob("*-answers.meta.json"))
    record.unlink()
    assert run_cli(evaluate.main, score) == 1
    assert "2 samples of the test split are missing (first: broken, wall)" in capsys.readouterr().err


def test_absolute_paths_are_taken_as_they_are(mine, clone, tmp_path, capsys):
    write_rows(tmp_path / "elsewhere.csv", [["name", "emotion"], ["ann", "happy"]])
    yaml = configure(mine, clone, task="basic", columns="emotion: emotion", path=str(tmp_path / "elsewhere.csv"))
    assert run_cli(check_data.main, ["--cfg-path", yaml]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("task", "columns", "told"),
    [
        ("basics", "emotion: emotion", "datasets.mine.task: unknown 'basics'. Did you mean 'basic'?"),
        ("''", "emotion: emotion", "datasets.mine.task: say how its answers are scored; known: basic, fine-grained"),
        (
            "sentiment",
            "emotion: emotion",
            "which column of mine/all.csv holds the truth? Say so with datasets.mine.colu",
        ),
        ("sentiment", "valence: emotion", "all.csv, sample 'ann': valence is 'happy', expected a finite number"),
        ("basic", "emotion: feeling", "all.csv: no column 'feeling'"),
    ],
)
def test_what_is_wrong_with_a_block_is_said(task, columns, told, mine, clone, capsys):
    write_rows(mine / "all.csv", [["name", "emotion"], ["ann", "happy"]])
    (mine.parents[1] / "output" / "results-mine" / "run").mkdir(parents=True)
    yaml = configure(mine, clone, task=task, columns=columns)
    results = mine.parents[1] / "output/results-mine/run/checkpoint_000011_loss_0.110-openset-direct.npz"
    from affectgpt.core.npz import write_npz

    write_npz(results, name2reason={})
    results.with_name("checkpoint_000011_loss_0.110-openset-direct-sentiment.npz").write_bytes(results.read_bytes())
    assert run_cli(evaluate.main, ["--cfg-path", yaml, "--datasets", "mine", "--extractor", "direct"]) == 1
    assert told in capsys.readouterr().err


def test_check_data_finds_missing_truth_and_folders(mine, clone, capsys):
    write_rows(mine / "all.csv", [["name", "emotion"], ["ann", "happy"], ["bob", ""]])
    yaml = configure(mine, clone, task="basic", columns="emotion: emotion")
    (mine / "audio").unlink()
    assert run_cli(check_data.main, ["--cfg-path", yaml, "--csv", "p.csv"]) == 1
    found = {(row[2], row[3], row[4]) for row in rows_of(Path("p.csv"))[1:]}
    assert found == {("bob", "label", "missing"), ("", "audio", "missing")}
    assert "folders.audio: no folder" in Path("p.csv").read_text()


QUESTIONS = [["name", "q", "a"], ["ann", "What does she feel?", "She <FaceHere> is glad."], ["bob", "And he?", " "],
             ["zoe", "And Zoe?", "Nothing."]]  # fmt: skip
PAIRS = "label_type: qa, path: mine/train.csv,"


def test_check_data_finds_answers_that_cannot_be_learnt(mine, clone, capsys):
    write_rows(mine / "train.csv", QUESTIONS)
    yaml = configure(mine, clone, task="basic", columns="question: q, answer: a", more=PAIRS)
    assert run_cli(check_data.main, ["--cfg-path", yaml, "--splits", "train", "--csv", "p.csv"]) == 1
    found = {row[2]: row[3:] for row in rows_of(Path("p.csv"))[1:]}
    assert set(found) == {"ann", "bob"}
    assert (
        found["ann"][:2] == ["label", "unreadable"] and "its answer (label type qa) holds <FaceHere>" in found["ann"][2]
    )
    assert found["bob"][:2] == ["label", "missing"] and "no answer to learn" in found["bob"][2]


@pytest.mark.parametrize(
    ("name", "told"), [("ann", "its answer (label type qa) holds <FaceHere>"), ("bob", "no answer to learn")]
)
def test_training_names_the_answer(name, told, mine, clone, capsys):
    write_rows(mine / "train.csv", [QUESTIONS[0], *(row for row in QUESTIONS if row[0] == name)])
    yaml = configure(mine, clone, task="basic", columns="question: q, answer: a", more=PAIRS)
    assert run_cli(train.main, ["--cfg-path", yaml, "--options", "run.max_epoch=1", "run.iters_per_epoch=1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and f"sample '{name}'" in error and told in error


def test_a_set_of_ones_own_is_scored_during_training(mine, clone, capsys):
    write_rows(mine / "all.csv", [["name", "emotion"], ["ann", "happy"], ["bob", "sad"], ["zoe", "happy"]])
    more = "path: mine/all.csv, face_or_frame: textonly,"
    yaml = configure(mine, clone, task="basic", columns="emotion: emotion", more=more)
    options = ["run.max_epoch=1", "run.iters_per_epoch=1", "run.score_every=1", "run.score_datasets=[Mine]"]
    options.append("paths.output_root=scored")
    assert run_cli(train.main, ["--cfg-path", yaml, "--options", *options]) == 0, capsys.readouterr().err
    [log] = Path("scored").rglob("log.txt")
    scores = [line["score_mine"] for line in map(json.loads, log.read_text().splitlines()) if "score_mine" in line]
    assert len(scores) == 1 and 0 <= scores[0] <= 1


LONG = "n" * 300


@pytest.mark.parametrize("command", ["check_data", "infer", "train", "evaluate"])
def test_a_name_of_300_characters(command, mine, clone, capsys):
    write_rows(mine / "all.csv", [["name", "emotion"], ["ann", "happy"], [LONG, "sad"]])
    yaml = configure(mine, clone, task="basic", columns="emotion: emotion", more="path: mine/all.csv,")
    arguments = {
        "check_data": (check_data.main, []), "infer": (infer.main, ["--dataset=mine"]), "train": (train.main, []),
        "evaluate": (evaluate.main, ["--answers", "answers.csv", "--extractor", "direct"]),
    }  # fmt: skip
    write_rows(Path("answers.csv"), [["name", "answer"], ["ann", "x"], [LONG, "y"]])
    main, more = arguments[command]
    assert run_cli(main, ["--cfg-path", yaml, *more]) == 1
    printed = capsys.readouterr()
    shown = re.sub(r"\s+", " ", printed.err + printed.out)
    assert "Traceback" not in shown
    assert ("answers.csv" if command == "evaluate" else "all.csv") + ", line 3: sample name 'nnnn" in shown, shown


def test_a_file_with_a_name_of_300_characters(mine, clone, capsys):
    write_rows(mine / "all.csv", [["name", "emotion", "where"], ["ann", "happy", f"part/{LONG}.mp4"]])
    yaml = configure(mine, clone, task="basic", columns="emotion: emotion, file: where")
    for main, more in ((check_data.main, []), (infer.main, ["--dataset=mine"])):
        assert run_cli(main, ["--cfg-path", yaml, *more]) == 1
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and "nnnn" in printed.err + printed.out
