"""The published commands, flag by flag, and what is said when no checkpoint fits."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
import torch

from affectgpt.cli import infer
from affectgpt.core.errors import CheckpointError, ConfigError, DataError
from affectgpt.evaluation.results import beside, read_answers, read_meta
from affectgpt.inference.session import GenerationSession
from affectgpt.processing.questions import render_question

RUN = "tiny_20260101000"


def run(world, results, *arguments: str, options: tuple[str, ...] = ()) -> None:
    command = ["--zeroshot", "--dataset=OVMERDPlus", f"--cfg-path={world.yaml}", *arguments, "--options"]
    command += [f"inference.base_root={results}/results", "inference.max_new_tokens=6", *options]
    assert infer.main(command) == 0


def written(results) -> list[str]:
    return sorted(str(p.relative_to(results)) for p in results.rglob("*.npz"))


def test_several_checkpoints(world, tmp_path):
    run(world, tmp_path, options=("inference.test_epochs='11-12'", "inference.skip_epoch=1"))
    names = ("checkpoint_000011_loss_0.110", "checkpoint_000012_loss_0.120")
    assert written(tmp_path) == [f"results-ovmerdplus/{RUN}/{name}.npz" for name in names]


def test_skip_epoch_keeps_the_divisible_ones(world, tmp_path):
    run(world, tmp_path, options=("inference.test_epochs=7-17", "inference.skip_epoch=6"))
    assert written(tmp_path) == [f"results-ovmerdplus/{RUN}/checkpoint_000012_loss_0.120.npz"]


def test_one_epoch_another_question_and_mode(world, tmp_path):
    run(world, tmp_path, "--outside_user_message=Why?", "--outside_face_or_frame=audio_text",
        options=("inference.test_epoch=11",))  # fmt: skip
    (name,) = written(tmp_path)
    meta = read_meta(tmp_path / name)
    assert (meta["question"], meta["mode"], meta["checkpoint"]) == (
        "Why?", "audio_text", "checkpoint_000011_loss_0.110.pth",
    )  # fmt: skip


def test_checkpoint_by_folder_and_by_name(world, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(world.run_folder, elsewhere)
    run(world, tmp_path / "a", options=(f"inference.ckpt_root={elsewhere}", "inference.test_epoch=12"))
    run(world, tmp_path / "b", options=(f"inference.ckpt_name={elsewhere}/checkpoint_000012_loss_0.120.pth",))
    assert written(tmp_path / "a") == ["results-ovmerdplus/elsewhere/checkpoint_000012_loss_0.120.npz"]
    assert written(tmp_path / "b") == written(tmp_path / "a")


def test_both_questions_and_tables(world, tmp_path):
    run(world, tmp_path, "--both", "--export", "jsonl")
    name = f"{RUN}/checkpoint_000012_loss_0.120.npz"
    assert written(tmp_path) == [f"results-description-ovmerdplus/{name}", f"results-ovmerdplus/{name}"]
    for folder, question in (("results", "ovlabel"), ("results-description", "description")):
        target = tmp_path / f"{folder}-ovmerdplus" / name
        assert read_meta(target)["question"] == render_question(question)
        assert len(beside(target, ".jsonl").read_text("utf-8").splitlines()) == 10
    with pytest.raises(ConfigError, match="give one of them"):
        infer.main(["--both", "--outside_user_message=x", f"--cfg-path={world.yaml}"])


def test_inference_data_names_the_nine_sets(world, tmp_path):
    """The first whose files are not there ends the run before any model is loaded."""
    with pytest.raises(Exception, match=r"mer2023-dataset-process"):
        infer.main(["--zeroshot", "--dataset=inferenceData", f"--cfg-path={world.yaml}"])


def test_a_data_set_of_ones_own_is_answered_like_one_of_the_table(world, tmp_path):
    """Unlabelled clips under other headings and another name; greedy answers do not depend on the name."""
    data = world.root / "dataset"
    with (data / "ovmerdplus-process" / "subtitle_eng.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    with (data / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("clip", "said"), *reversed(rows)])
    own = world.root / "own.yaml"
    media = "audio: ovmerdplus-process/audio, face: ovmerdplus-process/openface_face"
    own.write_text(
        "extends: tiny.yaml\n"
        "datasets:\n"
        f"  mine: {{test_path: clips.csv, columns: {{name: clip, subtitle: said}}, folders: {{{media}}}}}\n"
        f"inference: {{ckpt_root: {world.run_folder}, decoding: greedy}}\n"
    )
    options = ["--options", f"inference.base_root={tmp_path}/results", "inference.max_new_tokens=6"]
    assert infer.main(["--dataset=MINE,OVMERDPlus", f"--cfg-path={own}", *options]) == 0
    theirs, ours = (read_answers(tmp_path / name) for name in reversed(written(tmp_path)))
    assert ours == theirs and list(ours) == [name for name, _ in reversed(rows)] and len(ours) == 10
    assert written(tmp_path)[0] == f"results-mine/{RUN}/checkpoint_000012_loss_0.120.npz"
    with pytest.raises(DataError, match=r"unknown data set 'mein'\. Did you mean 'mine'"):
        infer.main(["--dataset=mein", f"--cfg-path={own}"])
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        infer.main(["--dataset=mine", f"--cfg-path={own}", "--options", "datasets.mine.test_path=gone.csv"])


def test_shards_by_flag(world, tmp_path):
    run(world, tmp_path, "--shard", "1/2")
    assert written(tmp_path) == []
    run(world, tmp_path, "--shard", "0/2")
    (name,) = written(tmp_path)
    assert len(read_answers(tmp_path / name)) == 10
    for wrong in ("2/2", "x", "1"):
        with pytest.raises(ConfigError, match=r"--shard .*expected I/N"):
            infer.parse_shard(wrong)


def test_torchrun_says_the_shard(monkeypatch):
    assert infer.parse_shard(None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert infer.parse_shard(None) == (3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("inference.test_epochs=30-60", "inference.skip_epoch=5"),
            r"no checkpoint of the epochs 30, 35, 40, 45, 50, 55, 60, .*test_epochs=30-60 .*epochs there: 11, 12",
        ),
        (("inference.test_epoch=7",), r"test_epoch=7; epochs there: 11, 12"),
        (("inference.ckpt_name=gone.pth",), r"ckpt_name: no file .*gone\.pth"),
        (("inference.ckpt_root=gone",), r"ckpt_root: no folder gone"),
        (("paths.output_root={tmp}",), r"no checkpoint found: looked for .*tiny/tiny\*"),
        (("inference.ckpt_root={tmp}",), r"no checkpoint_\*_loss_\*\.pth in it"),
    ],
)
def test_no_checkpoint_says_what_was_looked_for_and_what_is_there(world, tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        run(world, tmp_path, options=tuple(option.replace("{tmp}", str(tmp_path)) for option in options))


def test_two_checkpoints_for_one_epoch(world, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(world.run_folder, folder)
    shutil.copy(folder / "checkpoint_000012_loss_0.120.pth", folder / "checkpoint_000012_loss_0.130.pth")
    with pytest.raises(CheckpointError, match=r"two checkpoints for epoch 12: .*0\.120\.pth and .*0\.130\.pth"):
        run(world, tmp_path, options=(f"inference.ckpt_root={folder}",))


def test_the_seven_released_epochs_are_chosen(world, tmp_path):
    from affectgpt.config.paths import select_checkpoints

    for epoch in range(61):
        (tmp_path / f"checkpoint_{epoch:06d}_loss_0.5.pth").write_bytes(b"")
    options = (f"inference.ckpt_root={tmp_path}", "inference.test_epochs=30-60", "inference.skip_epoch=5")
    assert [c.epoch for c in select_checkpoints(world.config(*options))] == [30, 35, 40, 45, 50, 55, 60]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("inference.temperature=0", "more than 0"),
        ("inference.top_p=1.5", "at most 1"),
        ("inference.batch_size=0", "at least 1"),
        ("inference.top_k=-1", "0 or more"),
    ],
)
def test_wrong_settings_are_refused(world, option, message):
    with pytest.raises(ConfigError, match=message):
        world.config(option)


def test_an_unknown_engine_is_refused_with_its_place(world):
    with pytest.raises(ConfigError, match=r"'inference\.engine=vlm': inference\.engine: unknown .*'vllm'"):
        GenerationSession.from_config(world.config("inference.engine=vlm"), device=torch.device("cpu"))


def test_unset_values_of_released_files(world):
    config = world.config("inference.batch_size=xxx", "inference.test_epoch=xxx", "inference.test_epochs=xxx-xxx")
    assert (config.inference.batch_size, config.inference.test_epoch, config.inference.test_epochs) == (None,) * 3


def test_a_command_line_says_the_error_in_one_line(world, tmp_path, capsys):
    from affectgpt.cli.common import run_cli

    assert run_cli(infer.main, [f"--cfg-path={world.yaml}", "--options", "inference.test_epoch=3"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: .*test_epoch=3", error)
