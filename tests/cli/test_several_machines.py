"""Two torchrun agents on loopback, as two machines: training, answering, encoding; and what docs/cluster.md says."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_recipe import NAMES, run_folder, write_recipe, write_training_set

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def start(folder: Path, *command: str, machines: int = 2) -> list[subprocess.Popen]:
    """One agent per machine, each with one process; what they print goes to files in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines), "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", *command,
    ]  # fmt: skip
    agents = []
    for machine in range(machines):
        with (folder / f"machine{machine}.log").open("w") as log:
            outputs: dict = {"stdout": log, "stderr": log}
            agents.append(subprocess.Popen(agent, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **outputs))
    return agents


def finish(agents: list[subprocess.Popen]) -> list[int]:
    """Their exit statuses."""
    try:
        return [agent.wait(timeout=240) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("machine*.log")))


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_folder(path) / "log.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory) -> Path:
    """A recipe of one epoch, trained by two machines."""
    folder = tmp_path_factory.mktemp("machines")
    dataset = write_training_set(folder / "dataset")
    path = write_recipe(
        folder, models=tiny_models, dataset=dataset, mode="audio_text", batch_size_train=2, max_epoch=1,
        iters_per_epoch=3,
    )  # fmt: skip
    assert finish(start(folder, "train.py", "--cfg-path", str(path))) == [0, 0], logs(folder)
    return path


@pytest.mark.slow
def test_two_machines_train_as_one_group(trained):
    record = json.loads((run_folder(trained) / "run.json").read_text())
    assert record["processes"] == 2 and record["state"] == "finished" and len(losses(trained)) == 3


@pytest.mark.slow
def test_two_machines_answer_what_one_does(trained, tmp_path):
    def command(results: str) -> list[str]:
        return [
            "inference_hybird.py", "--cfg-path", str(trained), "--dataset", "OVMERDPlus", "--options",
            "inference.test_epoch=1", "inference.max_new_tokens=4", f"inference.base_root={tmp_path}/{results}",
        ]  # fmt: skip

    assert finish(start(tmp_path, *command("two"))) == [0, 0], logs(tmp_path)
    subprocess.run([sys.executable, *command("one")], cwd=ROOT, check=True, capture_output=True)
    import numpy as np

    def answers(results: str) -> dict:
        [path] = tmp_path.glob(f"{results}*/**/checkpoint_*[0-9].npz")
        return {key: value.tolist() for key, value in np.load(path, allow_pickle=True).items()}

    assert answers("two") == answers("one")


@pytest.mark.slow
def test_two_machines_encode_half_of_the_samples_each(trained, tmp_path):
    command = [
        "-m", "affectgpt.cli.extract_features", "--cfg-path", str(trained), "--options",
        f"paths.features_root={tmp_path}/features",
    ]  # fmt: skip
    assert finish(start(tmp_path, *command)) == [0, 0], logs(tmp_path)
    shards = sorted((tmp_path / "features").rglob("shard-*.jsonl"))
    named = [[json.loads(line)["name"] for line in path.read_text().splitlines()[1:]] for path in shards]
    assert [len(names) for names in named] == [6, 6] and {n for names in named for n in names} == set(NAMES)


@pytest.mark.slow
def test_two_machines_that_are_preempted_resume(trained, tiny_models, tmp_path):
    """SIGTERM to both agents in the middle of a run, as Slurm sends it."""
    dataset = trained.parent / "dataset"
    keys = {"models": tiny_models, "dataset": dataset, "mode": "audio_text", "batch_size_train": 2, "max_epoch": 1,
            "iters_per_epoch": 400, "save_state_every": 0, "resume_ckpt_path": "auto"}  # fmt: skip
    path = write_recipe(tmp_path, **keys)
    agents = start(tmp_path, "train.py", "--cfg-path", str(path))
    until = time.monotonic() + 120
    while not list(tmp_path.glob("output/tiny/*/log.txt")) or not losses(path):
        assert time.monotonic() < until and all(agent.poll() is None for agent in agents), logs(tmp_path)
        time.sleep(0.05)
    for agent in agents:
        agent.send_signal(signal.SIGTERM)
    assert all(finish(agents)), logs(tmp_path)
    done = len(losses(path))
    assert 0 < done < 400 and (run_folder(path) / "last.state").is_file(), logs(tmp_path)
    assert finish(start(tmp_path, "train.py", "--cfg-path", str(path))) == [0, 0], logs(tmp_path)
    assert "resuming from" in logs(tmp_path) and len(losses(path)) == 400


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_scripts_of_the_page_are_bash(block, tmp_path):
    (tmp_path / "job.sh").write_text(block)
    subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True)


def commands() -> list[list[str]]:
    """What the page starts, without sbatch and job.sh."""
    lines = "\n".join(BLOCKS[1:]).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[2])
def test_the_commands_of_the_page_parse(words):
    from torch.distributed.run import get_args_parser

    from affectgpt.cli import extract_features, infer, train
    from affectgpt.config.load import load_config

    script = BLOCKS[0].replace("\\\n", " ")
    torchrun = next(line for line in script.splitlines() if "torchrun" in line and line.startswith("srun"))
    known = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "first": "node1", "SLURM_JOB_ID": "1"}
    expanded = re.sub(r"\$\{(\w+):-0\}", "0", re.sub(r"\$(\w+)", lambda m: known[m[1]], torchrun.replace('"$@" &', "")))
    prefix = shlex.split(expanded)[2:] if words[0] == "sbatch" else []
    found = get_args_parser().parse_args([*prefix, *(words[2:] if words[0] == "sbatch" else words[1:])])
    assert (found.nnodes, found.rdzv_backend, found.nproc_per_node) == ("2", "c10d", "8")
    parsers = {
        "train.py": train, "inference_hybird.py": infer, "affectgpt.cli.extract_features": extract_features,
    }  # fmt: skip
    arguments = parsers[found.training_script].build_parser().parse_args(found.training_script_args)
    assert load_config(ROOT / arguments.cfg_path, arguments.options).run.device == "cuda"


@pytest.mark.parametrize("preempted", [True, False])
def test_the_job_hands_sigterm_on_and_is_queued_again(tmp_path, preempted):
    """With stand-ins of Slurm's commands: ``srun`` starts one machine's torchrun, which a SIGTERM stops."""
    bin_folder, venv = tmp_path / "bin", tmp_path / ".venv" / "bin"
    bin_folder.mkdir()
    venv.mkdir(parents=True)
    (venv / "activate").write_text("")
    trains = 'trap "echo saved >> told; exit 143" TERM; echo "$@" >> told; touch started; while :; do sleep 0.05; done'
    for name, code in {
        "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$@" >> told; fi',
        "srun": 'exec "$@"',
        "torchrun": trains if preempted else 'echo "$@" >> told; exit 3',
    }.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{code}\n")
        (bin_folder / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(BLOCKS[0])
    slurm = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77",
    }  # fmt: skip
    job = subprocess.Popen(["bash", "job.sh", "train.py"], cwd=tmp_path, env={**os.environ, **slurm})
    try:
        if preempted:
            until = time.monotonic() + 30
            while not (tmp_path / "started").exists():
                assert time.monotonic() < until
                time.sleep(0.02)
            job.send_signal(signal.SIGTERM)
        status = job.wait(timeout=30)
    finally:
        job.kill()
    first, *rest = (tmp_path / "told").read_text().splitlines()
    assert first.endswith("--rdzv-endpoint node1:29500 --rdzv-id 77-0 train.py")
    assert (status, rest) == ((0, ["saved", "requeue 77"]) if preempted else (3, []))
