"""The demo of reinforcement learning: its tables, its arms, its report. That it learns is shown by
benchmarks/grpo_demo.py, which takes minutes."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from affectgpt.config.load import load_config
from affectgpt.core.errors import AffectGPTError
from affectgpt.core.tables import read_table
from affectgpt.evaluation.labels import parse_item
from examples.demo import rl as demo_rl
from examples.demo.corpus import MARKER as CORPUS_MARKER
from examples.demo.rl_report import write_rl_report

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("happy", "sad", "angry", "surprised", "worried", "neutral")


@pytest.fixture
def place(tmp_path) -> demo_rl.Place:
    root = tmp_path / "dataset" / "mer2025-dataset"
    root.mkdir(parents=True)
    names = [f"clip{i:02}" for i in range(60)]
    for file, column, cell in (
        ("subtitle_chieng.csv", "english", lambda i: f"Line, {i}."),
        ("track2_train_mercaptionplus.csv", "openset", lambda i: f"[{WORDS[i % 6]}, pleased]"),
    ):
        with (root / file).open("w", newline="") as handle:
            csv.writer(handle).writerows([("name", column), *((n, cell(i)) for i, n in enumerate(names))])
    return demo_rl.Place(root=tmp_path, models=tmp_path / "models", recipes=ROOT / "train_configs", seed=3)


def labels(place: demo_rl.Place, file: str) -> dict[str, tuple[str, ...]]:
    table = read_table(place.dataset / file, key="name", columns=("subtitle", "ovlabel"))
    assert all(cells[0].startswith("Line, ") for cells in table.values())
    return {name: parse_item(cells[1]) for name, cells in table.items()}


def test_planted_labels_are_one_right_and_one_wrong_in_any_order(place):
    demo_rl.write_tables(place)
    planted, clean, shuffled = (labels(place, f) for f in ("planted-3.csv", "clean.csv", "shuffled-3.csv"))
    assert planted.keys() == clean.keys() == shuffled.keys() and len(clean) == 50  # neutral clips are left out
    for name, pair in planted.items():
        assert len(set(pair)) == 2 and clean[name][0] in pair and "neutral" not in pair
    first = sum(pair[0] == clean[name][0] for name, pair in planted.items())
    assert 10 < first < 40
    assert sorted(shuffled.values()) == sorted(clean.values()) and shuffled != clean
    again = (place.dataset / "planted-3.csv").read_text()
    demo_rl.write_tables(place)
    assert (place.dataset / "planted-3.csv").read_text() == again


@pytest.mark.parametrize("arm", demo_rl.ARMS)
def test_every_arm_is_a_configuration(place, arm):
    more = [item.format(seed=3) for item in demo_rl.ARMS[arm]]
    config = load_config(place.recipe(demo_rl.GRPO)[1], [*place.options(*more)[1:], "model.ckpt=x.pth"])
    trained = {name for name, weight in config.grpo.rewards.items() if weight and name != "format"}
    assert trained == {{"shuffled": "wheel"}.get(arm, arm)}
    assert config.datasets["clean"].path == ("shuffled-3.csv" if arm == "shuffled" else "clean.csv")
    assert config.run.objective == "grpo" and config.model.face_channels == "rgb"


def test_a_finished_training_is_used_again(place, monkeypatch):
    """By the benchmark after the demo, and after an interruption; other settings train again."""
    runs = place.root / "seed3" / "wheel"
    (place.dataset / CORPUS_MARKER).write_text("{}")
    start = place.root / "start.pth"
    start.write_bytes(b"weights")
    trained = []

    def train(arguments: list[str]) -> int:
        folder = runs / f"run{len(trained)}"
        folder.mkdir(parents=True)
        trained.append(arguments)
        if "run.init_lr=1" in arguments:
            raise AffectGPTError("answers have 4 labels: training stops")
        return 0

    monkeypatch.setattr("affectgpt.cli.train.main", train)

    def run(*more: str) -> tuple[str, str]:
        folder, record = demo_rl._trained(place, demo_rl.GRPO, place.options("model.ckpt=x.pth", *more), runs, start)
        return folder.name, record["stopped"]

    assert run() == run() == ("run0", "") and len(trained) == 1
    assert run("run.init_lr=1") == run("run.init_lr=1") == ("run1", "answers have 4 labels: training stops")
    assert run() == ("run0", "") and len(trained) == 2
    start.write_bytes(b"other weights")
    assert run() == ("run2", "")


def result(arm: str, f: float, *, stopped: str = "", log: Path | None = None) -> demo_rl.ArmResult:
    """160 clips of which the share ``f`` is met wholly."""
    met = (np.arange(160) < 160 * f).astype(float)[:, None] * np.ones(5)
    summands = np.concatenate([met, met, np.ones((160, 5))], axis=1)
    views = {} if stopped else dict.fromkeys(demo_rl.VIEWS, summands)
    return demo_rl.ArmResult(arm, 0, 60.0, stopped=stopped, log=log, summands=views, labels=dict.fromkeys(views, 1.5))


def test_rows_and_report(tmp_path):
    log = tmp_path / "log.txt"
    lines = [{"epoch": 1, "step": s, "reward_wheel": s / 9, "labels_per_answer": 2, "kl": 0.1} for s in range(1, 9)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = [result("wheel", 0.75, log=log), result("recall", 0, stopped="answers have 4.00 labels & more")]
    rows = demo_rl.table([result("supervised", 0.5)], arms)
    assert rows[0]["before"] == 50 and rows[0]["after"] == 75 and rows[0]["gain"] == pytest.approx(25)
    assert 10 < rows[0]["low"] < 25 < rows[0]["high"] < 40 and rows[0]["gain_faces"] == pytest.approx(25)
    assert "gain" not in rows[1]
    write_rl_report(tmp_path / "r.html", rows=rows, curves=demo_rl.curves(arms), notes=["kept: this"])
    page = (tmp_path / "r.html").read_text()
    for part in (
        "+25.0",
        "stopped by the guard",
        "4.00 labels &amp; more",
        "kept: this",
        "data:image/png;base64,iVBOR",
    ):
        assert part in page


def test_promises_are_judged():
    spec = importlib.util.spec_from_file_location("grpo_demo", ROOT / "benchmarks" / "grpo_demo.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    good = {"stopped": "", "low": 5.0, "gain_faces": 1.0, "gain_voices": 2.0}
    rows = [{"arm": "wheel", "gain": 12.0, **good}, {"arm": "random", "gain": 1.0, **good},
            {"arm": "shuffled", "gain": 5.0, **good}, {"arm": "recall", "stopped": "yes"}]  # fmt: skip
    assert all(holds(rows) for holds in bench.PROMISES.values())
    bad = [{**row, "gain": 7.0, "low": -1.0, "gain_faces": 8.0, "gain_voices": 9.0, "stopped": ""} for row in rows]
    assert not any(holds(bad) for holds in bench.PROMISES.values())
