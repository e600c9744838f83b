"""The training benchmark runs at its tiny size: three ways of taking one step, of one loss."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_tiny_compares_three_ways_of_one_loss():
    result = run("--size", "tiny", "--steps", "1")
    assert result.returncode == 0, result.stderr
    losses = re.search(r"ours (\S+), from the store (\S+), published way (\S+)", result.stdout)
    assert len({round(float(loss), 4) for loss in losses.groups()}) == 1
    for stage in ("encode video", "encode audio", "LLM forward", "backward", "optimizer"):
        assert re.search(rf"{stage} +\d+ +\d+\.\d", result.stdout), result.stdout
    speeds = re.findall(r"^(published way|ours, .*?) {2,}\S+ +(\S+) ", result.stdout, re.MULTILINE)
    assert [name for name, _ in speeds] == ["published way", "ours, encoders in the step", "ours, feature store"]
    assert float(speeds[2][1]) > float(speeds[0][1]) > 0


def test_the_real_size_needs_a_gpu():
    refused = run("--size", "real")
    assert refused.returncode == 1 and refused.stderr.startswith("error: --size real needs a GPU")
