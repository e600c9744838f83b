"""The model benchmark runs at its tiny size."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "model.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tiny():
    result = json.loads(run("--json", "--steps", "1", "--batch", "1").stdout)
    assert list(result["ms"]) == ["visual", "acoustic", "fusion", "merge", "LLM forward", "backward"]
    assert all(ms > 0 for ms in result["ms"].values())
    assert result["peak_MiB"] > 0


def test_the_real_size_needs_a_gpu():
    refused = run("--size", "real")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --size real needs a GPU")
