"""Every command answers --help at once, and a user's mistake gets one line that helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affectgpt.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(p.name for p in ROOT.glob("*.py"))


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_published_scripts_are_there():
    published = ["evaluation-scoreonly.py", "evaluation.py", "inference_hybird.py", "inference_sample.py", "train.py"]
    assert published == SCRIPTS


@pytest.mark.parametrize(
    "command", [*((s,) for s in SCRIPTS), *(("-m", f"affectgpt.cli.{m}") for m, _ in COMMANDS.values())]
)
def test_help_answers_within_a_second(command):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = run(*command, "--help")
        seconds.append(time.perf_counter() - started)
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout
    # the fastest of three: a busy machine must not fail the test, an import of torch (over 2 s) must
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.py", "--cfg-path", "train_configs/demo_cpuu.yaml"), "Did you mean 'demo_cpu.yaml'?"),
        (("train.py", "--cfg-path", "train_configs/demo_cpu.yaml", "--options", "run.max_epochs=3"), "'max_epoch'"),
        (("train.py", "--cfg-path", "train_configs/demo_cpu.yaml", "--options", "run.max_epoch=x"), "a whole number"),
        (("train.py", "--cfg-path", "train_configs/demo_cpu.yaml", "--options", "nonsense"), "section.key=value"),
        (
            ("inference_hybird.py", "--cfg-path", "train_configs/demo_cpu.yaml", "--dataset", "SIMZ"),
            "Did you mean 'SIMS'?",
        ),
    ],
)
def test_a_mistake_gets_one_line_that_helps(arguments, message):
    result = run(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_console_script_lists_and_finds_commands(capsys):
    from affectgpt.cli.main import main

    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_memory_of_a_gpu_grows_in_segments_unless_the_user_says_otherwise(monkeypatch, name):
    """torch reads it when it first takes memory of a GPU; it has not been imported then."""
    from affectgpt.cli.common import run_cli

    for known in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(known, "")  # so that it is taken away again
        monkeypatch.delenv(known)
    if name:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    found = []
    assert run_cli(lambda _: found.append({k: v for k, v in os.environ.items() if "ALLOC_CONF" in k}) or 0) == 0
    assert found == [
        {name: "max_split_size_mb:64"} if name else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    ]


_BROKEN = """
import contextlib, importlib, io, json, sys
from affectgpt.cli.common import run_cli
for module, arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = run_cli(importlib.import_module(f"affectgpt.cli.{module}").main, arguments)
    print(json.dumps([module, status, said.getvalue(), "torch" in sys.modules or "transformers" in sys.modules]))
"""


def test_a_broken_configuration_is_refused_before_torch_is_imported(tmp_path):
    """Which takes seconds, and many more on a network's file system."""
    path = tmp_path / "broken.yaml"
    path.write_text("run: {max_epochs: 3}\n")
    more = {
        "sample": ["--zeroshot", "--video_path", str(path)], "crowd": ["train"], "evaluate": [], "score": [],
        "export": ["--hf", "--checkpoint", "x.pth", "--out", str(tmp_path / "out")], "consensus": [],
        "ask": ["--model", "m", "--base-url", "http://127.0.0.1:9", "--datasets", "SIMS"], "train": [], "infer": [],
        "params": [], "extract_features": [], "doctor": [], "check_data": [], "caption": [],
    }  # fmt: skip
    calls = [(module, [*arguments, "--cfg-path", str(path)]) for module, arguments in more.items()]
    done = run("-c", _BROKEN, json.dumps(calls))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(more)
    for module, status, said, imported in lines:
        assert status == 1 and said.startswith("error: ") and "max_epoch" in said and not imported, (module, said)
