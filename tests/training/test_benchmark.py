"""The training benchmark runs at its tiny size: three ways of taking one step, of one loss."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_tiny_compares_three_ways_of_one_loss(tmp_path):
    result = run("--size", "tiny", "--steps", "1", "--out", str(tmp_path / "record.json"))
    assert result.returncode == 0, result.stderr
    losses = re.search(r"ours (\S+), from the store (\S+), published way (\S+)", result.stdout)
    assert len({round(float(loss), 4) for loss in losses.groups()}) == 1
    for stage in ("encode video", "encode audio", "LLM forward", "backward", "optimizer"):
        assert re.search(rf"{stage} +\d+ +\d+\.\d", result.stdout), result.stdout
    speeds = re.findall(r"^(published way|ours, .*?) {2,}\S+ +(\S+) ", result.stdout, re.MULTILINE)
    assert [name for name, _ in speeds] == ["published way", "ours, encoders in the step", "ours, feature store"]
    assert float(speeds[2][1]) > float(speeds[0][1]) > 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["model"] == "tiny" and record["partial"] == ["--size tiny", "--steps 1"]
    ways = record["numbers"]["ways"]
    assert list(ways) == [name for name, _ in speeds]
    assert all(f"{way['samples_per_second']:.2f}" == said for way, (_, said) in zip(ways.values(), speeds, strict=True))


def test_the_real_size_needs_a_gpu():
    refused = run("--size", "real")
    assert refused.returncode == 1 and refused.stderr.startswith("error: --size real needs a GPU")


def rehearse(tmp_path: Path, *arguments: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / "real_size.py"), "--size", "tiny", "--layers", "2"]
    out, work = tmp_path / "out.json", tmp_path / "work"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(out), "--work", str(work), *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not work.exists()
    assert not out.with_suffix(".json.part").exists()
    return json.loads(out.read_text())["numbers"]


@pytest.mark.parametrize("weights", ["disk", pytest.param("memory", marks=pytest.mark.slow)])
def test_the_rehearsal_runs_every_stage_of_a_cpu(tmp_path, weights):
    """``memory``: weights made in place, as on a GPU."""
    found = rehearse(tmp_path, "--weights", weights, *(["--clips", "3"] if weights == "memory" else []))
    assert (found["layers"], found["of_layers"], found["device"]) == (2, 2, "cpu")
    stages = found["stages"]
    assert list(stages)[:4] == ["make weights", "train", "resume", "inference_sample"]
    assert (stages["make weights"]["gb"] > 0) == (weights == "disk")
    for name in ("train", "resume"):
        stage = stages[name]
        assert stage["steps"] == 2 and 0 < stage["samples_per_s"] < stage["tokens_per_s"]
        assert stage["peak_gb"] >= stage["private_gb"] > 0 and 0 < stage["mfu"] < 1 and stage["estimated_gb"] > 0
    assert stages["resume"]["read_s"] > 0 and stages["train"]["save_s"] > 0
    if weights == "memory":
        assert stages["answering"]["answers"] == 6


def test_the_rehearsal_takes_as_many_layers_as_fit():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from real_size import layers_that_fit
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    found = [layers_that_fit("real", free=free, batch=1) for free in (5e9, 10e9, 16e9, 24e9, 80e9)]
    assert found[0] == 0 and found == sorted(found) and 2 < found[1] < found[2] < 28 and found[3:] == [28, 28]
