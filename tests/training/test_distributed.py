"""However samples are spread over processes and micro-batches, the loss is the mean over all of their learnt tokens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import folder_of
from training_processes import Trouble, run_ranks, run_train
from training_recipe import run_folder, write_recipe

from affectgpt.core.files import locked

ROOT = Path(__file__).resolve().parents[2]
QUIET = Trouble(no_dropout=True)


def curve(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_folder(path) / "log.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_models, training_set) -> Path:
    """One process, batches of four."""
    path = write_recipe(
        tmp_path_factory.mktemp("whole"), models=tiny_models, dataset=training_set, mode="face_text", batch_size_train=4
    )
    outcome = run_train("--cfg-path", str(path), trouble=QUIET)
    assert outcome.status == 0, outcome.stderr
    return path


def final_weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_folder(path) / "last.state", weights_only=True)["model"]


@pytest.mark.parametrize(
    ("ranks", "run"),
    [
        (1, {"batch_size_train": 2, "accum_grad_iters": 2}),
        (2, {"batch_size_train": 2}),
        (2, {"batch_size_train": 1, "accum_grad_iters": 2}),
        (2, {"batch_size_train": 2, "parallel": "fsdp2"}),
    ],
    ids=["accumulation", "ddp", "ddp-accumulation", "fsdp2"],
)
def test_curve_equals_that_of_one_process_with_the_whole_batch(recipe, whole, ranks, run):
    path = recipe(name="spread", mode="face_text", **run)
    for outcome in run_ranks(ranks, "--cfg-path", str(path), trouble=QUIET):
        assert outcome.status == 0, outcome.stderr
    assert len(curve(path)) == 10
    assert curve(path) == pytest.approx(curve(whole), abs=1e-5)
    ours, theirs = final_weights(path), final_weights(whole)
    assert ours.keys() == theirs.keys()
    # Adam divides by the gradient's size: where that is about 0, rounding decides the direction of a step of 1e-3.
    moved = torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs]).abs()
    assert moved.mean() < 1e-5


def test_an_llm_that_is_stored_in_another_precision_is_cast_when_it_is_sharded(tmp_path, tiny_models, training_set):
    """FSDP2 leaves its weights in their files until then; one process casts them as it loads them."""
    models = shutil.copytree(tiny_models, tmp_path / "models")
    weights = folder_of(models, "Qwen25") / "model.safetensors"
    save_file({n: t.to(torch.bfloat16) for n, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    short = {"models": models, "dataset": training_set, "mode": "face_text", "max_epoch": 1, "iters_per_epoch": 3}
    one = write_recipe(tmp_path, name="one", batch_size_train=4, **short)
    assert run_train("--cfg-path", str(one), trouble=QUIET).status == 0
    two = write_recipe(tmp_path, name="two", batch_size_train=2, parallel="fsdp2", **short)
    for outcome in run_ranks(2, "--cfg-path", str(two), trouble=QUIET):
        assert outcome.status == 0, outcome.stderr
    assert len(curve(one)) == 3 and curve(two) == pytest.approx(curve(one), abs=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_stop_together_and_resume(recipe, parallel):
    run = {"mode": "face_text", "batch_size_train": 2, "save_state_every": 0, "parallel": parallel}
    undisturbed = recipe(name="undisturbed", **run)
    assert [o.status for o in run_ranks(2, "--cfg-path", str(undisturbed))] == [0, 0]
    path = recipe(resume_ckpt_path="auto", **run)
    outcomes = run_ranks(2, "--cfg-path", str(path), trouble=Trouble(signal_in_step=(3, signal.SIGTERM)))
    assert [o.status for o in outcomes] == [143, 143], outcomes
    outcomes = run_ranks(2, "--cfg-path", str(path))
    assert [o.status for o in outcomes] == [0, 0], outcomes
    assert curve(path) == pytest.approx(curve(undisturbed), abs=1e-6) and len(curve(path)) == 10
    alone = run_train("--cfg-path", str(path), "--options", "run.max_epoch=3", "run.parallel=ddp")
    assert alone.status == 1 and "it was made by 2 processes, now there are 1" in alone.stderr


def test_a_rank_that_is_gone_is_reported_by_the_others(recipe):
    path = recipe(mode="face_text", batch_size_train=2, save_state_every=2)
    left, gone = run_ranks(2, "--cfg-path", str(path), of_last=Trouble(kill_after_step=3))
    assert (left.status, gone.status) == (1, -signal.SIGKILL)
    assert "error: another process of the group ended" in left.stderr and "Traceback" not in left.stderr
    assert json.loads((run_folder(path) / "run.json").read_text())["state"] == "failed"
    assert (run_folder(path) / "last.state").is_file()


def test_ranks_end_together_where_another_process_trains(recipe):
    path = recipe(mode="textonly", batch_size_train=2, max_epoch=1, iters_per_epoch=1, resume_ckpt_path="auto")
    assert [outcome.status for outcome in run_ranks(2, "--cfg-path", str(path))] == [0, 0]
    with locked(run_folder(path), wait=False) as held:
        assert held
        for outcome in run_ranks(2, "--cfg-path", str(path), "--options", "run.max_epoch=2"):
            assert outcome.status == 1 and "Traceback" not in outcome.stderr
            assert "another process" in outcome.stderr and "trains there" in outcome.stderr
    more = run_ranks(2, "--cfg-path", str(path), "--options", "run.max_epoch=2")
    assert [outcome.status for outcome in more] == [0, 0], more


@pytest.mark.slow
def test_killed_ranks_resume_as_if_nothing_had_happened(recipe):
    """Bit for bit, as one process does it."""
    run = {"mode": "face_text", "batch_size_train": 2, "save_state_every": 2, "resume_ckpt_path": "auto"}
    quiet, disturbed = recipe(name="quiet", **run), recipe(name="disturbed", **run)
    assert [outcome.status for outcome in run_ranks(2, "--cfg-path", str(quiet))] == [0, 0]
    for after in (3, 2, 4):  # steps of each process; the third is killed at step 8 of 10
        outcomes = run_ranks(2, "--cfg-path", str(disturbed), trouble=Trouble(kill_after_step=after))
        assert {outcome.status for outcome in outcomes} & {-signal.SIGKILL}, outcomes
    assert [outcome.status for outcome in run_ranks(2, "--cfg-path", str(disturbed))] == [0, 0]
    ours, theirs = final_weights(disturbed), final_weights(quiet)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert curve(disturbed) == curve(quiet)


def test_a_rank_that_fails_alone_says_why_and_ends(recipe):
    """It must not wait for the others, who wait for it: NCCL leaves a group in order only when all ranks do."""
    path = recipe(mode="face_text", batch_size_train=2)
    _, failed = run_ranks(2, "--cfg-path", str(path), of_last=Trouble(fails_in_step=2))
    assert failed.status == 1 and "error: clip_03: this rank alone cannot read it" in failed.stderr, failed


@pytest.mark.slow
def test_torchrun_takes_the_published_command(recipe):
    path = recipe(mode="face_text", batch_size_train=2, iters_per_epoch=3, max_epoch=1)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [sys.executable, *command, str(ROOT / "train.py"), f"--cfg-path={path}", "--options", "run.max_epoch=2"],
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(curve(path)) == 6
    record = json.loads((run_folder(path) / "run.json").read_text())
    assert record["processes"] == 2 and record["seeds"]["ranks"] == [42, 43]
