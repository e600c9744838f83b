"""A run that is killed at any moment: no answer is lost, and none is computed twice beyond the batch in flight."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affectgpt.evaluation.results import read_answers

ROOT = Path(__file__).resolve().parents[2]
BATCH = 2
N_CLIPS = 10
OPTIONS = (f"inference.batch_size={BATCH}", "inference.max_new_tokens=150", "inference.top_k=0", "inference.top_p=1.0")


def start(world, results: Path, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [
        sys.executable, "inference_hybird.py", "--zeroshot", "--dataset", "OVMERDPlus", f"--cfg-path={world.yaml}",
        *more, "--options", f"inference.base_root={results}/results", *OPTIONS, *options,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def journal_of(results: Path) -> list[str]:
    """The whole lines with answers that lie in the journals."""
    lines = []
    for path in results.rglob("*.part*.jsonl"):
        lines += [line for line in path.read_text("utf-8").splitlines(keepends=True)[1:] if line.endswith("\n")]
    return lines


def forks_of(pid: int) -> list[int]:
    """Children of a process that run its own program."""
    with contextlib.suppress(OSError):
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == program]
    return []


def kill_when(process: subprocess.Popen, results: Path, count: int, delay: float) -> bool:
    """SIGKILL as soon as the journal holds ``count`` answers, and a moment later; whether the process still ran."""
    deadline = time.monotonic() + 120
    while len(journal_of(results)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    benchmark = world.benchmark(tmp_path_factory.mktemp("undisturbed"), *OPTIONS)
    return read_answers(benchmark.run("OVMERDPlus", world.checkpoints()[0]))


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_random_samples(world, undisturbed, tmp_path, kills):
    draw = random.Random(kills)
    kept: list[str] = []
    landed = 0
    for _ in range(kills):
        process = start(world, tmp_path)
        more = draw.randint(1, BATCH + 1) if kills == 3 else draw.choice((0, 0, 1, 2))
        delay = draw.random() * (0.05 if more else 5)
        landed += kill_when(process, tmp_path, min(len(kept) + more, N_CLIPS - BATCH), delay)
        if list(tmp_path.rglob("*.npz")):  # it was faster than the kill
            break
        now = journal_of(tmp_path)
        assert now[: len(kept)] == kept  # nothing is lost or written again
        kept = now
    finished = bool(list(tmp_path.rglob("*.npz")))
    assert landed >= 3 and kept, f"{landed} of {kills} kills hit a run that was at work: nothing was tested"
    process = start(world, tmp_path)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert read_answers(next(tmp_path.rglob("*.npz"))) == undisturbed
    if kept and not finished:
        there = re.search(r"(\d+) of 10 answers are there already", log)
        assert there and int(there[1]) == len(kept)  # all of them are used
        names = [json.loads(line)["name"] for line in kept]
        assert len(set(names)) == len(names)
    assert not list(tmp_path.rglob("*.part*.jsonl"))


@pytest.mark.slow
def test_torchrun(world, undisturbed, tmp_path):
    """Two processes started by torchrun, at the same time."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517",
        "inference_hybird.py", "--dataset", "OVMERDPlus", f"--cfg-path={world.yaml}", "--options",
        f"inference.base_root={tmp_path}/results", *OPTIONS,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert read_answers(next(tmp_path.rglob("*.npz"))) == undisturbed


def test_shards_at_the_same_time(world, undisturbed, tmp_path):
    processes = [start(world, tmp_path, "--shard", f"{i}/2") for i in range(2)]
    for process in processes:
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
    assert read_answers(next(tmp_path.rglob("*.npz"))) == undisturbed
    assert not list(tmp_path.rglob("*.part*.jsonl"))


def test_a_loader_worker_that_is_killed_is_said_and_the_same_command_resumes(world, undisturbed, tmp_path):
    """As the kernel does where memory is short. No clip is blamed."""
    process = start(world, tmp_path, options=("run.num_workers=1",))
    workers: list[int] = []
    while not workers and process.poll() is None:
        candidates = forks_of(process.pid)
        time.sleep(0.05)
        workers = [pid for pid in candidates if pid in forks_of(process.pid)]  # not one that was about to call exec
    os.kill(workers[0], signal.SIGKILL)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 1 and "ended from outside (SIGKILL): out of memory?" in log, log
    assert "run.num_workers" in log and "running it again" in log and "Traceback" not in log and "damaged" not in log
    process = start(world, tmp_path)
    assert process.communicate(timeout=120) and process.returncode == 0
    assert read_answers(next(tmp_path.rglob("*.npz"))) == undisturbed
