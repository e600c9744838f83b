"""Figures of the pages are what the records give, and no digit of them is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MADE = {
    "partial": [], "settings": {}, "model": "medium", "date": "2026-01-02", "commit": "abc12345",
    "machine": {"processor": "Chip", "cores": 2, "memory_gb": 24.0, "load": 0.1},
    "versions": {"torch": "2.13.0+cpu"},
}  # fmt: skip
SEED = {"seed": 0, "hit": 0.8061, "no_prefusion": 0.777, "text_only": 0.2, "shuffled_faces": 0.3,
        "shuffled_sounds": 0.5, "chance": 0.232, "labels": 1.0}  # fmt: skip
RATIO = {"wall_ratio": 3.14, "processor_ratio": 2.96}
SERVED = {**RATIO, "wall_seconds": {"one_by_one": 60.0, "together": 20.0}, "equal_answers": 24}


def estimate(value: float) -> dict[str, Any]:
    return {"percent": value, "interval_percent": [value - 1, value + 1]}


def released(*, labelled: bool) -> dict[str, Any]:
    names = [f"checkpoint_0000{epoch}_loss_0.5" for epoch in (30, 50)]
    return {
        "metric": "hit" if labelled else "waf", "clips": 411, "best": {"percent": 78.5387, "checkpoint": names[1]},
        "single_percent": dict(zip(names, (71.2, 78.5387), strict=True)), "chosen_on_a_half": estimate(77.22),
        "mean": estimate(75.05), "votes": {**estimate(77.59), "precision_percent": 66.07, "recall_percent": 72.06},
        "mean_of_others": {"precision_percent": 61.3, "recall_percent": 68.1} if labelled else {},
        "votes_minus_mean": {"points": 2.54, "interval_points": [0.75, 4.34], "p": 0.0001},
        "votes_minus_best": {"points": -0.947, "interval_points": [-4.02, 2.18], "p": 0.57},
        "groups_per_answer": {"single": 2.65, "votes": 2.56} if labelled else {"single": None, "votes": None},
        "votes_by_needed": [{"votes_needed": 1, "percent": 96.19, "groups_per_answer": 2.56}] if labelled else [],
        "floor_dealt_percent": 33.5, "floor_constant_percent": 81.0 if labelled else 42.3,
    }  # fmt: skip


STAGE = {"seconds": 700.0, "build_s": 8.4, "save_s": 3.0, "read_s": 0.0, "steps": 2, "step_s": 27.0,
         "samples_per_s": 0.037, "mfu": 0.41, "estimated_gb": 18.7, "peak_gb": 19.4}  # fmt: skip
LEARNT = {"seed": 0, "before": 60.0, "labels_before": 2.0}
GAIN = {"after": 80.0, "low": 15.0, "high": 25.0, "gain_faces": 1.0, "gain_voices": 2.0, "labels": 1.2}
NUMBERS: dict[str, dict[str, Any]] = {
    "demo_seeds": {"seeds": [SEED, {**SEED, "seed": 1, "hit": 0.6}]},
    "released_answers": {
        "datasets": {"mer2023": released(labelled=True), "sims": released(labelled=False)},
        "together": {
            "datasets": ["mer2023", "sims"], "best_mean_percent": 82.78, "mean": estimate(80.6),
            "best_single": {"checkpoint": "checkpoint_000050_loss_0.5", "mean_percent": 81.87},
            "chosen_on_a_half": estimate(81.45),
        },
    },
    "training": {"llm_parameters": 21_400_000, "ways": {"published way": RATIO, "ours, encoders in the step": RATIO,
                          "ours, feature store": {"wall_ratio": 18.46, "processor_ratio": 17.0}}},
    "inference": {"tokens": {"labels": 24, "description": 120}, "checkpoints": 7, "labels": RATIO,
                  "description": RATIO, "both_questions": RATIO, "labels_of_all_checkpoints": RATIO},
    "inference_memory": {"peaks": [{"clips": 64, "peak_mb": 541}, {"clips": 2610, "peak_mb": 557}]},
    "data": {
        "faces": {"ratio": 67.9, "processor_ratio": 60.0, "memory_mb": 0.21},
        "store": {"ratio": 1347.0, "processor_ratio": 1200.0}, "loader": {"ratio": 1.5},
        "table": {"rows": 132171, "seconds": 2.1, "processor_seconds": 2.0, "memory_mb": 247.0},
        "growth": {"epochs_growth_mb": 1.0, "opened": 5000, "decoder_growth_mb": 0.5},
    },
    "scoring": {"checkpoints": 7, "datasets": 9, "wall_ratio": 9.1, "scoring": {"wall_seconds": 0.891, "peak_mb": 130},
                "scoring_without_intervals_and_floors": {"wall_seconds": 0.652, "peak_mb": 86}},
    "captioning": {"epoch": {"classifiers": 5, "clips": 31000, "wall_seconds": 17.0, "processor_seconds": 16.0,
                             "peak_gb": 1.02}},
    "captioning_demo": {
        "planted_ratios": {"wrong": 0.2, "voice": 0.1, "short": 0.05}, "tuned_on": 0, "reported_seeds": [1, 2, 3],
        "ratios": {"E+S": {"crowd right kept": 0.926, "crowd recall": 0.968}},
        "hit_ratios": {"none": 0.705, "E+S": 0.828},
    },
    "grpo_demo": {"rows": [{**LEARNT, **GAIN, "arm": "wheel", "gain": 20.0},
                           {**LEARNT, **GAIN, "arm": "wheel", "gain": 23.4, "seed": 1},
                           {**LEARNT, **GAIN, "arm": "random", "gain": -3.0}, {**LEARNT, "arm": "recall"}]},
    "grpo": {"wall_seconds": {"roll-out": 3.0, "update": 1.0},
             "predicted_seconds": {"roll-out": 7500.0, "update": 9.0}},
    "serve": {"requests": 24, "clients": 8, "tokens": {"labels": 24, "description": 120}, "labels": SERVED,
              "description": SERVED},
    "real_size": {
        "layers": 28, "of_layers": 28, "batch": 1, "threads": 2, "free_gb": 23.0, "new_tokens": 8,
        "stages": {"make weights": {"seconds": 124.0, "gb": 17.2}, "train": STAGE,
                   "resume": {**STAGE, "read_s": 5.5},
                   "inference_sample": {"seconds": 158.0, "build_s": 8.0, "answer_s": 150.0, "peak_gb": 21.9}},
    },
}  # fmt: skip
SETTINGS = {"inference": {"clips": 16}, "grpo": {"clips": 16, "group": 8, "tokens": 50}}
# Block → words that it has, from the numbers above.
WORDS = {
    "demo_seeds": ("| 80.6 | 77.7 |", "| mean | 70.3 |", "*2 cores (Chip), torch 2.13.0, commit abc12345, 2026-01-02*"),
    "scores": ("| 78.54 (epoch 50) |", "77.22 [76.2, 78.2]", "**81.0**", "; 0.0001 |", "best of two", "| 2.65, 2.56 |"),
    "scores_votes": ("96.2 (chosen)", "gain -0.9 [-4.0, 2.2] points (p = 0.57)", "precision 66.1 and recall 72.1"),
    "speed": ("3.1 times as fast, with stored features 18.5 times | 3.0, 17.0 |", "1,350 times as fast | 1,200 |",
              "| 68 times as fast | 60 |", "0.65 s, 9.1 times", "132,171", "| 17 s | 16 s |",
              "answering 16 clips", "seven checkpoints on nine data sets"),
    "memory": ("| 541 and 557 MB |", "| 247 MB |", "| 1.0 GB |"),
    "real_size": ("28 of 28 layers", "| 12 min in all: building 8.4 s, 2 steps of 27 s", "reading 5.5 s", "| 21.9 GB |",
                  "19.4 GB (18.7 GB estimated before)"),
    "captioning": ("20 % wrong", "keeps 92.6 % of the right and drops 96.8 %", "82.8 % HIT", "70.5 %"),
    "rl": ("+20.0 [15.0, 25.0]", "wheel +20.0 to +23.4 (2 seeds); random rewards -3.0 (1 seed)",
           "stopped by the guard"),
    "rl_cost": ("| roll-out | 3.0 s (75.00 %) | 2.1 h (99.88 %) |", "16 clips x 8 answers of 50 tokens"),
    "serving": ("| 60 s | 20 s | 3.1 times as fast | 3.0 | 24 of 24 |", "8 clients together"),
    "headline": ("82.78", "80.60 [79.6, 81.6]", "| 70; 20; 23 |", "LLM of 21 million parameters",
                 "`benchmarks/grpo_demo.py`"),
}  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import figures

    return figures


@pytest.fixture
def place(tmp_path) -> Path:
    """A root with pages and records."""
    (tmp_path / "docs" / "more").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    for name, numbers in NUMBERS.items():
        record = {**MADE, "name": name, "settings": SETTINGS.get(name, {}), "numbers": numbers}
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def page(*names: str) -> str:
    return "# Page\n" + "".join(f"\n<!-- figures: {name} -->\nold\n<!-- /figures -->\n" for name in names) + "\nEnd.\n"


def call(figures, place: Path, *more: str) -> int:
    return figures.run_cli(figures.main, ["--root", str(place), "--results", str(place / "results"), *more])


def test_blocks_are_filled_on_every_page_and_checked(figures, place, capsys):
    (place / "README.md").write_text(page("demo_seeds", "speed"))
    (place / "docs" / "a.md").write_text(page("demo_seeds"))
    (place / "docs" / "more" / "b.md").write_text("```\n<!-- figures: nothing -->\n```\n" + page("rl"))
    assert call(figures, place, "--check") == 1 and "-old" in capsys.readouterr().out
    assert "old" in (place / "README.md").read_text()
    assert call(figures, place) == 0
    text = (place / "README.md").read_text()
    assert "old" not in text and text.startswith("# Page\n\n<!-- figures: demo_seeds -->\n\n| seed | HIT |")
    assert text.endswith("*\n\n<!-- /figures -->\n\nEnd.\n")
    assert "<!-- figures: nothing -->" in (place / "docs" / "more" / "b.md").read_text()
    capsys.readouterr()
    assert call(figures, place, "--check") == 0 and capsys.readouterr().out == ""

    # a hand-typed digit
    (place / "docs" / "a.md").write_text((place / "docs" / "a.md").read_text().replace("80.6", "80.7"))
    assert call(figures, place, "--check") == 1
    out, err = capsys.readouterr()
    assert any(line.startswith("-") and "80.7" in line for line in out.splitlines())
    assert "docs/a.md" in out and "README.md" not in out and "benchmarks/figures.py writes them" in err
    # a record that changed
    assert call(figures, place) == 0
    record = json.loads((place / "results" / "demo_seeds.json").read_text())
    record["numbers"]["seeds"][0]["hit"] = 0.9
    (place / "results" / "demo_seeds.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert call(figures, place, "--check") == 1
    out = capsys.readouterr().out
    assert "+++ README.md" in out and "+++ docs/a.md" in out and "90.0" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (page("no_such"), "line 3: no block 'no_such'; there are demo_seeds, scores"),
        ("<!-- figures: speed -->\n", "block 'speed' has no <!-- /figures -->"),
        ("x\n<!-- /figures -->\n", "line 2: <!-- /figures --> closes no block"),
        ("<!-- figures: speed -->\n<!-- figures: rl -->\n<!-- /figures -->\n", "block 'rl' begins before 'speed'"),
        ("<!-- figures speed -->\n<!-- /figures -->\n", "is not a mark; expected <!-- figures: NAME -->"),
    ],
)
def test_marks_that_are_wrong_are_errors_by_line(figures, place, capsys, text, said):
    (place / "README.md").write_text(page("demo_seeds"))
    (place / "docs" / "a.md").write_text(text)
    assert call(figures, place) == 1
    err = capsys.readouterr().err
    assert "docs/a.md" in err and said in err
    assert "old" in (place / "README.md").read_text()  # all pages or none


def test_a_missing_record_leaves_no_old_number_and_names_the_benchmark_to_run(figures, place, capsys):
    (place / "README.md").write_text(page("memory") + page("headline"))
    for name in ("inference_memory", "demo_seeds"):
        (place / "results" / f"{name}.json").unlink()
    assert call(figures, place) == 0
    text = (place / "README.md").read_text()
    said = "ot measured with this version yet: `python benchmarks/inference.py --memory`"
    assert f"N{said}" in text and f"n{said}" in capsys.readouterr().err and "old" not in text
    assert "benchmarks/training.py" in text and "demo_seeds" not in text  # the headline has its other rows


def test_a_record_of_another_shape_is_an_error_that_names_it(figures, place, capsys):
    (place / "README.md").write_text(page("serving"))
    path = place / "results" / "serve.json"
    path.write_text(path.read_text().replace("equal_answers", "equal answers"))
    assert call(figures, place) == 1
    err = capsys.readouterr().err
    assert "README.md, line 3: block 'serving'" in err and "'equal_answers'" in err and "serve" in err
    path.write_text("{")
    assert call(figures, place) == 1 and "serve.json" in capsys.readouterr().err


def test_every_block_says_its_numbers(figures, place):
    assert WORDS.keys() == figures.BLOCKS.keys()
    for name, make in figures.BLOCKS.items():
        records = figures.Records(place / "results")
        text = make(records)
        for words in WORDS[name]:
            assert words in text, (name, text)
        assert "None" not in text and "nan" not in text
        # a table's rows are as wide as its head
        widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, text


def test_what_was_measured_otherwise_is_said(figures, place):
    for name, change in {
        "training": {"machine": {**MADE["machine"], "load": 3.9}},
        "inference": {"commit": "ffff0000", "partial": ["--clips 1"]},
        "training_gpu": {"machine": {**MADE["machine"], "gpu": "NVIDIA H200"}, "numbers": {"ways": {
            "ours, feature store": {**RATIO, "samples_per_second": 45.2, "memory_gb": 30.0}}}},
    }.items():  # fmt: skip
        path = place / "results" / f"{name}.json"
        record = json.loads(path.read_text()) if path.is_file() else {**MADE, "name": name}
        path.write_text(json.dumps({**record, **change}))
    records = figures.Records(place / "results")
    text = figures.BLOCKS["speed"](records)
    assert "training, data, scoring, captioning: 2 cores (Chip), torch 2.13.0, commit abc12345" in text
    assert "load 0.1 to 3.9 at the beginning from other work" in text
    assert "commit ffff0000, 2026-01-02, not a full run: inference with --clips 1" in text
    assert "45.2 samples/s, 30.0 GB, 3.1 times as fast as the published way" in text
    assert "training_gpu: NVIDIA H200, 2 cores" in text and "training_gpu" in records.used


def test_the_pages_of_this_repository_are_what_the_records_give(figures):
    """And no record is kept for nothing."""
    pages, records = figures.pages_of(ROOT), figures.Records(figures.RESULTS)
    assert figures.update(pages, records, check=True) == []
    if any("<!-- figures: " in path.read_text(encoding="utf-8") for path in pages):
        assert records.there <= records.used


def test_every_record_of_this_repository_is_of_a_benchmark_that_can_be_run_again(figures):
    from figure_parts import COMMANDS

    for name in figures.Records(figures.RESULTS).there:
        record = json.loads((figures.RESULTS / f"{name}.json").read_text())
        assert record["name"] == name and record["partial"] == []
        if name != "grpo_demo":  # whose commits are those of its trainings
            assert not record["commit"].endswith("+changes")
        assert name.removesuffix("_gpu") in COMMANDS or name == "inference_throughput_gpu"
    for command in COMMANDS.values():
        assert (ROOT / command.split()[1]).is_file()
