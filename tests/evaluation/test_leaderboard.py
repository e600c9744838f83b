"""The leaderboard: every run that is there, beside the paper's tables, in one page without requests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from affectgpt.cli import main as cli
from affectgpt.core.errors import DataError
from affectgpt.evaluation.leaderboard import gather, holm, page, paper_tables, parse_modality
from affectgpt.evaluation.lexicon import find_lexicon
from affectgpt.evaluation.score import PUBLISHED, PUBLISHED_MEAN


def test_the_papers_tables_agree_with_themselves():
    tables = paper_tables()
    table2, others = tables["table2"], {table["title"]: table for table in tables["others"]}
    assert len(table2["rows"]) == 19 and len(others) == 4
    for _, letters, values, mean in table2["rows"]:
        assert letters in ("at", "vt", "avt") and len(values) == 9
        assert np.mean(values) == pytest.approx(mean, abs=0.0101)  # printed with two digits, cut or rounded
    ours = next(row for row in table2["rows"] if row[:2] == ["AffectGPT", "avt"])
    assert dict(zip(table2["datasets"], ours[2], strict=True)) == PUBLISHED
    assert ours[3] == PUBLISHED_MEAN
    assert all(len(row) == len(table["columns"]) for table in others.values() for row in table["rows"])
    # the recipe of the released model is in each of them
    for title, at, value in (
        ("Training sets", 2, "MER-Caption+"),
        ("Pre-fusion", 4, "attention"),
        ("Rank of LoRA", 2, "16"),
    ):
        assert next(row[at] for row in others[title]["rows"] if row[0] == value) == PUBLISHED_MEAN
    fine, basic, sentiment, mean = others["Pre-fusion"]["rows"][2][1:]
    assert (fine + 4 * basic + 4 * sentiment) / 9 == pytest.approx(mean, abs=0.02)


@pytest.fixture
def board(bench):
    from affectgpt.datasets.table import get_row

    record = bench.folder("MER2023", "run_b") / "checkpoint_000030_loss_0.700-answers.meta.json"
    record.write_text(json.dumps({"media": ["audio", "subtitle"], "deaf_or_blind": ["audio"]}))
    rows = [get_row(name) for name in ("MER2023", "SIMS", "OVMERDPlus")]

    def make(**settings):
        return gather(rows, bench.places, find_lexicon(str(bench.lexicon)), draws=50, permutations=20, **settings)

    return make


def test_runs_are_ordered_by_data_sets_and_mean(board):
    found = board()
    assert [entry.name for entry in found.entries] == ["run_a", "run_b"] and found.reference == "run_a"
    assert found.datasets == ["MER2023", "SIMS", "OVMERDPlus"] and found.titles == ["HIT", "WAF", "F_s"]
    assert found.clips == ["4 of 411", "5 of 457", "3 of 532"]
    a, b = found.entries
    by_set = a.scores.scores["MER2023"]
    assert a.estimates["MER2023"].value == pytest.approx(np.mean([score.primary for score in by_set]))
    assert a.best("MER2023") == max(score.primary for score in by_set)
    estimate, over = found.mean(a)
    assert over == 3 and estimate.interval[0] <= estimate.value <= estimate.interval[1]
    assert b.modality == "at" and b.marks == ["audio"] and a.modality is None
    comparison = found.tests["run_b"]["MER2023"].comparison
    assert comparison.difference == pytest.approx(b.estimates["MER2023"].value - a.estimates["MER2023"].value)
    assert list(found.tests) == ["run_b"] and board(against="run_b").reference == "run_b"
    assert [entry.name for entry in board(runs=["run_a", "run_a"], against="run_b").entries] == ["run_a", "run_b"]


def test_the_page_needs_nothing_else_and_escapes(board, bench):
    shutil.copytree(bench.folder("MER2023", "run_b"), bench.folder("MER2023", "<script>alert(1)"))
    broken = bench.folder("SIMS", "broken")
    broken.mkdir(parents=True)
    (broken / "x.npz").write_bytes(b"no archive")
    (broken / "x-openset-sentiment.npz").write_bytes(b"no archive")
    text = page(board(modality=["run_a=face,audio,subtitle"]))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", text)
    assert "left out: <code>broken</code>" in text
    with pytest.raises(DataError, match="--against broken: it could not be scored"):
        board(against="broken")
    assert '<tr data-modality="avt"><td>run_a' in text and "without audio" in text
    assert "The paper's table 2 is not shown" in text or "Emotion-LLaMA" in text
    assert "Rank of LoRA" in text and "Paired tests against run_a" in text


def test_the_command_writes_the_page(bench, tmp_path, capsys):
    arguments = ["leaderboard", *bench.arguments("--deals", "20", "--out", str(tmp_path / "board.html"))]
    assert cli.main(arguments) == 0
    assert "2 runs, 0 left out" in capsys.readouterr().out
    assert "MER-UniBench leaderboard" in (tmp_path / "board.html").read_text("utf-8")
    assert cli.main([*arguments, "--runs", "run_c"]) == 1
    assert "no run 'run_c'. Did you mean 'run_b'?" in capsys.readouterr().err
    assert cli.main([*arguments, "--modality", "run_a=smell"]) == 1
    assert "none of audio, video, text" in capsys.readouterr().err


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert parse_modality(["x=y=audio"], ["x=y"]) == {"x=y": "a"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
@pytest.mark.slow
def test_rows_are_chosen_and_sorted_in_a_browser(board, tmp_path):
    """Filter by input, then sort by the first data set, in a browser without a window."""
    script = """<script>
      form.a.value = "1"; form.t.value = "1"; form.kind.value = "best"; update();
      heads[2].querySelector("button").click(); heads[2].querySelector("button").click();
      document.title = [...body.rows].filter(r => !r.hidden).map(r => r.cells[0].firstChild.data.trim()).join("|")
        + "#" + document.documentElement.scrollWidth;
    </script>"""
    path = tmp_path / "board.html"
    path.write_text(page(board(modality=["run_a=audio,video,text"])).replace("</body>", f"{script}</body>"), "utf-8")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown, _, width = re.search(r"<title>(.*?)</title>", dom)[1].partition("#")
    names = shown.split("|")
    assert {"run_a", "run_b"} <= set(names) and "Otter" not in names and int(width) <= 500
