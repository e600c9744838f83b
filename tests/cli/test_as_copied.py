"""Commands that we print can be copied as they are, and an interpreter without the packages is told what to run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from affectgpt.cli import infer, sample, serve, train
from affectgpt.cli.common import command_line
from affectgpt.cli.main import COMMANDS
from affectgpt.config.load import load_config
from affectgpt.core.files import write_json
from examples.demo import pipeline as demo
from examples.demo.corpus import PartSpec, make_corpus

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ["--cfg-path", "train_configs/demo_cpu.yaml"]
ARGUMENTS = {
    "ask": ["--datasets", "MER2023", "--base-url", "http://localhost:8000/v1", "--model", "m"],
    "export_task": ["--lmms-eval", "tasks"],
    "submission": ["X.npz", "--track", "2", "--out", "a.csv"],
    "train": CONFIG, "infer": CONFIG, "sample": [*CONFIG, "--video_path", "train.py"], "evaluate": [],
    "score": [], "doctor": CONFIG, "check_data": CONFIG, "preprocess": ["--video-dir", "clips", "--out", "out"],
    "caption": ["--cfg-path", "train_configs/captioning.yaml"],
    "crowd": ["train", "--cfg-path", "train_configs/captioning.yaml"],
    "export": ["--checkpoint", "x y.pth", "--out", "out"], "params": CONFIG, "extract_features": CONFIG,
    "serve": CONFIG,
}  # fmt: skip
SCRIPTS = {"train.py": "train", "inference_hybird.py": "infer", "inference_sample.py": "sample",
           "evaluation.py": "evaluate", "evaluation-scoreonly.py": "score"}  # fmt: skip
WAYS = {
    **{script: [script, *ARGUMENTS[command]] for script, command in SCRIPTS.items()},
    **{f"affectgpt {name}": ["-m", "affectgpt.cli.main", name, *ARGUMENTS.get(name, [])] for name in COMMANDS},
    **{m: ["-m", f"affectgpt.cli.{m}", *ARGUMENTS.get(name, [])] for name, (m, _) in COMMANDS.items()},
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files of a clone whose .venv is a program that writes down what it was asked to run."""
    root = tmp_path_factory.mktemp("clones") / "a clone"
    shutil.copytree(ROOT / "affectgpt", root / "affectgpt", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("Makefile", "train_configs", *SCRIPTS):
        (shutil.copytree if (ROOT / file).is_dir() else shutil.copy)(ROOT / file, root / file)
    (root / "clips").mkdir()
    (root / "clips" / "a.mp4").touch()
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys, json; print(json.dumps(sys.argv[1:]))' \"$@\"\n"
    )
    python.chmod(0o755)
    return root


def without_packages(clone: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=clone, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_python_without_the_packages_is_told_what_to_run(way, clone):
    done = without_packages(clone, WAYS[way])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "is missing or does not fit" in done.stderr
    line = done.stderr.strip().partition("Run: ")[2]
    assert line.startswith(".venv/bin/python ")
    copied = subprocess.run(["bash", "-c", line], cwd=clone, capture_output=True, text=True, timeout=60)
    assert json.loads(copied.stdout) == WAYS[way]  # the same command, by the interpreter that has the packages


def test_without_an_environment_it_is_made_first(clone, tmp_path):
    shutil.copytree(clone, tmp_path / "bare", ignore=shutil.ignore_patterns(".venv"))
    told = without_packages(tmp_path / "bare", WAYS["train.py"]).stderr
    assert f"Run: make -C {tmp_path / 'bare'} env   (then: .venv/bin/python train.py --cfg-path" in told


def test_a_command_line_can_be_typed_where_one_is(monkeypatch, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr("affectgpt.cli.common.ROOT", tmp_path)
    (tmp_path / "train.py").touch()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert command_line("train.py", ["--options", "a=b c"]) == ".venv/bin/python train.py --options 'a=b c'"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert command_line("train.py", []) == f"{python} {tmp_path}/train.py"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(python.parent))  # activated
    assert command_line("train.py", []) == f"python {tmp_path}/train.py"


def test_what_the_demo_prints_fits_the_commands(tmp_path, monkeypatch):
    """Arguments that the commands take, a configuration that loads, files that are there (quick: nothing is run)."""
    monkeypatch.chdir(ROOT)
    place = demo.Place(root=tmp_path / "demo", models=tmp_path / "models", recipes=Path("train_configs"))
    clip = place.dataset / "mer2023-dataset-process" / "video" / "a.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    monkeypatch.setattr(demo, "_run", lambda place, name: tmp_path)  # a finished training run
    lines = [shlex.split(line) for line in demo.next_commands(place).splitlines() if line.startswith("  ")]
    assert [Path(line[1]).name for line in lines] == ["inference_sample.py", "train.py", "inference_hybird.py"]
    for (python, script, *arguments), command in zip(lines, (sample, train, infer), strict=True):
        assert Path(python).is_file() or shutil.which(python)
        assert Path(script).is_file()
        args = command.build_parser().parse_args(arguments)
        config = load_config(args.cfg_path, args.options)
        assert config.paths.dataset_root == str(place.dataset)
        if command is sample:
            assert [Path(video) for video in args.video_path] == [clip]
    (python, dash_m, module, name, *arguments) = shlex.split(demo.page_command(place).splitlines()[-1])
    assert (dash_m, module, name) == ("-m", "affectgpt.cli.main", "serve")
    args = serve.build_parser().parse_args(arguments)
    assert args.ui and load_config(args.cfg_path, args.options).inference.ckpt_root == str(tmp_path)
    for there in (True, False):
        monkeypatch.setattr(demo, "find_spec", lambda name, there=there: there or None)
        assert ("needs the extra [page]" in demo.page_command(place)) != there


@pytest.mark.slow
def test_the_commands_that_the_demo_prints(tiny_models, tmp_path, monkeypatch, capfd):
    """Its last lines, copied into a shell in the folder of the clone; recipe and models are smaller than its own."""
    monkeypatch.chdir(ROOT)
    place = demo.Place(root=tmp_path / "demo", models=tmp_path / "models", recipes=tmp_path / "recipes", workers=1)
    place.recipes.mkdir()
    (place.recipes / "demo_cpu.yaml").write_text(
        f"extends: {ROOT}/train_configs/demo_cpu.yaml\n"
        "run: {max_epoch: 2, iters_per_epoch: 1, batch_size_train: 2, num_workers: 0}\n"
        "inference: {test_epoch: 2, max_new_tokens: 4}\n"
    )
    for name, of in (
        ("clip", "clip-vit-large-patch14"),
        ("hubert", "chinese-hubert-large"),
        ("qwen2", "Qwen2.5-7B-Instruct"),
    ):
        shutil.copytree(tiny_models / of, place.models / f"demo-{name}")
        write_json(place.models / f"demo-{name}" / "demo_model.json", {"version": 0})
    parts = (
        PartSpec("MERCaptionPlus", "train", 2, ("happy", "sad"), False, "train"),
        PartSpec("MER2023", "test", 1, ("happy",), True, "basic"),
        PartSpec("OVMERDPlus", "test", 1, ("sad",), True, "open"),
    )
    make_corpus(place.dataset, parts=parts, workers=1)
    assert demo.train(place, "demo_cpu")
    printed = [line[2:] for line in capfd.readouterr().out.splitlines() if line.startswith("$ ")]
    assert len(printed) == 1 and re.search(r"python\S* train\.py --cfg-path", printed[0])
    lines = demo.next_commands(place).splitlines()
    commands = [line.strip() for line in lines if line.startswith("  ")]
    assert [re.search(r"(\w+)\.py", line)[1] for line in commands] == ["inference_sample", "train", "inference_hybird"]
    before = sorted(place.root.glob("demo_cpu/**"))
    for line in commands:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (line, done.stderr)
    assert sorted(place.root.glob("demo_cpu/**")) == before  # the demo's own runs are as they were
