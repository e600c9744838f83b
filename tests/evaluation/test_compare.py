"""Several runs on the same clips: the mean of checkpoints as a side, groups per answer, training seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_benchmark import GOOD, Bench

from affectgpt.cli import evaluate, score
from affectgpt.cli.common import run_cli


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    status = run_cli(score.main, list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_a_run_can_stand_with_the_mean_of_its_checkpoints(bench: Bench, capsys, tmp_path) -> None:
    target = tmp_path / "c.json"
    arguments = bench.arguments("--compare", "run_a/mean", "run_b", "--json", str(target))
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and "A  run_a/mean of 2" in out and "best of" not in out
    found = json.loads(target.read_text())["datasets"]["mer2023"]
    assert found["a"] == pytest.approx((1 + 1 / 3) / 2) and found["b"] == pytest.approx(1 / 3)
    status = run_cli(evaluate.main, [*arguments, "--extractor", "direct"])  # mean is no file that labels are asked of
    assert (status, capsys.readouterr().err) == (0, "")


def test_a_run_that_answers_with_more_groups_gets_a_note(bench: Bench, capsys) -> None:
    bench.add("MER2023", "run_c", "checkpoint_000030_loss_0.1", dict.fromkeys(GOOD["MER2023"], "[happy, angry, sad]"))
    status, out, _ = call(capsys, *bench.arguments("--compare", "run_b", "run_c", "--datasets", "mer2023"))
    assert status == 0 and "groups A  groups B" in out
    assert "note: MER2023: run_c/checkpoint_000030_loss_0.1 answers with 3.00 known groups" in out
    status, out, _ = call(capsys, *bench.arguments("--compare", "run_a", "run_b", "--datasets", "mer2023"))
    assert status == 0 and "known groups" not in out


@pytest.fixture
def seeds(bench: Bench) -> Bench:
    """Three runs on two data sets; the last lacks a clip."""
    for k, run in enumerate(("seed_0", "seed_1", "seed_2")):
        words = {f"s{i}": "positive" if i in (1, 4) else "negative" for i in range(1, 6)}
        words["s1"] = "negative" if k == 1 else "positive"
        items = {"m1": "[happy]", "m2": "[happy]" if k else "[angry]", "m3": "[blue]", "m4": "[]"}
        if k == 2:
            del items["m3"]
        for epoch in (30, 60):
            stem = f"checkpoint_{epoch:06d}_loss_0.{epoch}0"
            bench.add("SIMS", run, stem, words)
            bench.add("MER2023", run, stem, items if epoch == 60 else dict.fromkeys(items, "[]"))
    return bench


def test_seeds_are_paired_by_clip(seeds: Bench, capsys, tmp_path) -> None:
    target = tmp_path / "s.json"
    status, out, _ = call(
        capsys,
        *seeds.arguments("--seeds", "seed_0", "seed_1", "seed_2", "--allow-missing", "--json", str(target)),
        "--datasets", "mer2023,sims",
    )  # fmt: skip
    assert status == 0 and "stands with checkpoint_000060_loss_0.600, the last of 2" in out and "±" in out
    value = json.loads(target.read_text())
    mer = value["datasets"]["mer2023"]
    # without m3, which seed_2 lacks: m1 is met by all, m2 by the first alone, m4 has no truth that counts
    assert mer["samples"] == 3 and mer["values"] == pytest.approx([1, 0.5, 0.5])
    assert mer["mean"] == pytest.approx(2 / 3) and mer["deviation"] == pytest.approx(np.std([1, 0.5, 0.5], ddof=1))
    assert mer["alike"] == 0.5 and value["datasets"]["sims"]["alike"] == 0.75
    means = [(a + b) / 2 for a, b in zip(mer["values"], value["datasets"]["sims"]["values"], strict=True)]
    assert value["mean"]["values"] == pytest.approx(means)
    assert value["mean"]["deviation"] == pytest.approx(np.std(means, ddof=1)) and len(value["mean"]["interval"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "seed_0"], "--seeds takes two or more runs"),
        (["--seeds", "seed_0", "seed_0"], "the same run twice"),
        (["--seeds", "seed_0", "sed_1"], "no run 'sed_1'"),
        (["--seeds", "seed_0", "seed_1", "--compare", "seed_0", "seed_1"], "give one of the two"),
    ],
)
def test_errors_of_seeds_are_one_line(seeds: Bench, capsys, arguments: list[str], message: str) -> None:
    status, out, err = call(capsys, *seeds.arguments(*arguments, "--datasets", "sims"))
    assert status == 1 and out == "" and err.startswith("error: ") and message in err


def test_a_data_set_that_a_seed_lacks_is_left_out_by_name(seeds: Bench, capsys) -> None:
    status, out, _ = call(capsys, *seeds.arguments("--seeds", "run_a/mean", "seed_0", "--bootstrap", "0"))
    assert status == 0 and "OVMERDPlus: left out, without results of seed_0" in out and "mean of 2" in out
