"""However samples are spread over processes and micro-batches, the loss is the mean over all of their learnt tokens."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from training_processes import Trouble, run_ranks, run_train
from training_recipe import run_folder, write_recipe

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


def test_two_ranks_stop_together_and_go_on(recipe):
    path = recipe(mode="face_text", batch_size_train=2, resume_ckpt_path="auto", save_state_every=0)
    outcomes = run_ranks(2, "--cfg-path", str(path), trouble=Trouble(signal_in_step=(3, signal.SIGTERM)))
    assert [o.status for o in outcomes] == [143, 143], outcomes
    outcomes = run_ranks(2, "--cfg-path", str(path))
    assert [o.status for o in outcomes] == [0, 0], outcomes
    assert len(curve(path)) == 10
    alone = run_train("--cfg-path", str(path), "--options", "run.max_epoch=3")
    assert alone.status == 1 and "it was made by 2 processes, now there are 1" in alone.stderr
