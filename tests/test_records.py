"""Benchmarks leave records: full runs by themselves, others where they are told to."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import records

    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return records


def begin(records, *arguments: str):
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--root", default="output")
    parser.add_argument("--cfg-path")
    parser.add_argument("--of-a-child", help=argparse.SUPPRESS)
    records.add_out_argument(parser, "speed")
    return records.Run(
        parser, parser.parse_args(arguments), places=("root",), data=("cfg_path",), full={"predict": True}
    )


def test_a_full_run_is_recorded_with_what_made_it(records, tmp_path):
    run = begin(records, "--predict", "--root", "/somewhere/else")
    assert run.record("speed", {"wall_seconds": 1 / 3}, model="tiny")
    text = (tmp_path / "results" / "speed.json").read_text()
    found = json.loads(text)
    assert found["numbers"] == {"wall_seconds": 1 / 3} and found["name"] == "speed" and found["model"] == "tiny"
    assert found["settings"] == {"clips": 16, "predict": True, "cfg_path": None} and found["partial"] == []
    assert found["versions"].keys() == {"python", "torch", "transformers", "peft", "numpy"}
    assert found["machine"].keys() == {"processor", "cores", "memory_gb", "load"}
    assert found["versions"]["python"] == platform.python_version() and len(found["date"]) == 10
    for private in (str(tmp_path), "/somewhere/else", str(ROOT), f'"{platform.node()}"', f'"{getpass.getuser()}"'):
        assert private not in text


def test_a_partial_run_replaces_no_record(records, tmp_path, capsys):
    assert begin(records, "--predict").record("speed", {}, model="tiny")
    before = (tmp_path / "results" / "speed.json").read_bytes()
    assert not begin(records, "--clips", "2").record("speed", {"more": 1}, model="tiny")
    assert (tmp_path / "results" / "speed.json").read_bytes() == before
    assert "not a full run (--clips 2, --predict False); --out FILE" in capsys.readouterr().err
    out = tmp_path / "mine.json"
    other = begin(records, "--predict", "--cfg-path", "/private/x.yaml", "--out", str(out))
    assert other.record("speed", {}, model="tiny")
    assert json.loads(out.read_text())["partial"] == ["--cfg-path given"] and "private" not in out.read_text()


def test_the_commit_says_whether_code_was_changed(records, tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.git_commit() is None or "GIT_DIR" in os.environ
    git("init", "-q")
    for file in ("affectgpt/a.py", "benchmarks/results/x.json", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    git("add", ".")
    git("commit", "-qm", "x")
    head = git("rev-parse", "--short=8", "HEAD")
    for file in ("benchmarks/results/x.json", "README.md"):
        (tmp_path / file).write_text("2")
    assert records.git_commit() == head
    git("commit", "-qam", "another record")
    assert records.git_commit() == head
    (tmp_path / "affectgpt/a.py").write_text("2")
    assert records.git_commit() == f"{head}+changes"


def call(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


def test_reinforcement_learning_is_recorded_again_from_its_results(tmp_path):
    """Also results that were made in another folder: logs are found below ROOT."""
    good = {"stopped": "", "before": 50.0, "after": 62.0, "low": 5.0, "high": 9.0, "gain": 12.0, "gain_faces": 1.0,
            "gain_voices": 2.0, "labels": 1.0, "labels_before": 2.0, "precision": 60.0, "recall": 70.0, "minutes": 3.0,
            "seed": 0}  # fmt: skip
    rows = [{**good, "arm": "wheel"}, {**good, "arm": "random", "gain": 1.0}, {**good, "arm": "shuffled", "gain": 5.0}]
    root, out = tmp_path / "demo-rl", tmp_path / "record.json"
    folder = root / "seed0" / "wheel" / "run"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text('{"reward_wheel": 0.5, "labels_per_answer": 2, "kl": 0}\n')
    versions = dict.fromkeys(("python", "torch", "transformers", "peft", "numpy"), "1")
    made = {"git": "0123456789abcdef", "began": "2026-01-02T03:04:05+0000", "versions": versions, "host": "secret"}
    (folder / "run.json").write_text(json.dumps(made))
    curves = [["wheel, seed 0", "output/demo-rl/seed0/wheel/run/log.txt"]]
    (root / "results.json").write_text(json.dumps({"rows": rows, "curves": curves}))
    first = call("grpo_demo.py", "--report-only", "--root", str(root))
    assert first.returncode == 0 and "no results of recall yet" in first.stderr, first.stderr
    rows.append({**{k: good[k] for k in ("seed", "minutes", "before", "labels_before")}, "arm": "recall",
                 "stopped": "labels"})  # fmt: skip
    (root / "results.json").write_text(json.dumps({"rows": rows, "curves": curves}))
    before = (root / "results.json").read_bytes()
    done = call("grpo_demo.py", "--report-only", "--root", str(root), "--out", str(out))
    assert done.returncode == 0 and "kept: recall alone" in done.stdout, done.stderr
    assert (root / "results.json").read_bytes() == before and (root / "report.html").is_file()
    record = json.loads(out.read_text())
    assert (record["commit"], record["date"], record["versions"]["torch"]) == ("01234567", "2026-01-02", "1")
    assert record["numbers"]["mean_gains_points"]["shuffled"]["gain"] == 5.0 and "secret" not in out.read_text()
    nothing = call("grpo_demo.py", "--report-only", "--root", str(tmp_path / "none"))
    assert nothing.returncode == 1 and "nothing was trained there yet" in nothing.stderr


@pytest.mark.parity
def test_released_answers_are_recorded(merunibench: Path, tmp_path):
    out = tmp_path / "record.json"
    done = call("released_answers.py", "--root", str(merunibench), "--out", str(out))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())["numbers"]
    found = {d: [round(c[k]["percent"], 2) for k in ("best", "mean", "votes")] for d, c in numbers["datasets"].items()}
    assert found == {
        "mer2023": [78.54, 75.05, 77.59], "cmumosi": [81.30, 79.92, 81.36], "sims": [88.49, 86.85, 89.03],
        "ovmerdplus": [65.86, 64.49, 68.89],
    }  # fmt: skip
    low, high = numbers["datasets"]["mer2023"]["votes_minus_mean"]["interval_points"]
    assert 0 < low < 2.54 < high
    assert [f"{numbers['together'][k]['percent']:.2f}" for k in ("mean", "chosen_on_a_half")] == [
        "80.60",
        "81.45",
    ]
