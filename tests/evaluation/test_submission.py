"""The CSV files of the challenge, as ``affectgpt submission`` writes them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from small_benchmark import Bench, write_items

from affectgpt.cli.common import run_cli
from affectgpt.cli.submission import main
from affectgpt.core.npz import write_npz
from affectgpt.datasets.label_files import load_labels
from affectgpt.datasets.table import get_row

STEM = "checkpoint_000030_loss_0.1"


@pytest.fixture
def result(bench: Bench) -> Path:
    row = get_row("MER2025OV")
    (bench.root / "dataset" / row.root).mkdir()
    (bench.root / "dataset" / row.root / str(row.label_file)).write_text("name\nb\na\nc\n")
    path = bench.folder("MER2025OV", "run") / f"{STEM}.npz"
    write_npz(path, name2reason={"a": 'He smiles,\n\tand says "yes".', "b": "Calm.", "c": "Sad."})
    write_items(path.with_name(f"{STEM}-openset.npz"), {"a": "[happy, calm]", "b": "[]", "c": "['sad']"})
    return path


def call(capsys, bench: Bench, *arguments: str) -> tuple[int, str, str]:
    status = run_cli(main, [*arguments, "--dataset-root", str(bench.root / "dataset")])
    out, err = capsys.readouterr()
    return status, out, err


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def test_track_2_has_every_candidate_in_order(bench: Bench, result: Path, capsys, tmp_path: Path) -> None:
    target = tmp_path / "track2.csv"
    status, out, err = call(capsys, bench, str(result), "--track", "2", "--out", str(target))
    assert (status, err) == (0, "") and "3 rows" in out
    assert rows(target) == [["name", "openset"], ["b", "[]"], ["a", "['happy', 'calm']"], ["c", "['sad']"]]
    # it is read as the challenge's own table is
    row = get_row("MER2025OV")
    (bench.root / "dataset" / row.root / str(row.openset_file)).write_bytes(target.read_bytes())
    found = load_labels(row, split="test", dataset_root=bench.root / "dataset")
    assert found["a"].ovlabels == ("happy", "calm") and found["b"].ovlabels == ()


def test_track_3_keeps_a_description_on_one_line(bench: Bench, result: Path, capsys, tmp_path: Path) -> None:
    target = tmp_path / "track3.csv"
    status, _, _ = call(capsys, bench, str(result), "--track", "3", "--out", str(target))
    assert status == 0 and rows(target)[2] == ["a", 'He smiles, and says "yes".']
    assert len(target.read_text().splitlines()) == 4


def test_what_lacks_is_an_error_by_name_and_writes_nothing(bench: Bench, result: Path, capsys, tmp_path: Path) -> None:
    target = tmp_path / "t.csv"
    write_items(result.with_name(f"{STEM}-openset.npz"), {"a": "[happy]", "c": "  ", "zz": "[sad]"})
    arguments = [str(result), "--track", "2", "--out", str(target)]
    status, _, err = call(capsys, bench, *arguments)
    assert status == 1 and "2 candidates have no answer (first: b, c)" in err and "1 names are not in" in err
    assert not target.exists()
    status, out, _ = call(capsys, bench, *arguments, "--allow-missing")
    assert status == 0 and "2 candidates have an empty cell (first: b, c)" in out and "zz" in out
    assert rows(target)[1:] == [["b", "[]"], ["a", "['happy']"], ["c", "[]"]]
    status, _, err = call(capsys, bench, *arguments, "--extractor", "direct")
    assert status == 1 and "evaluation.py extracts the labels" in err


def test_without_candidates_the_rows_are_those_of_the_file(bench: Bench, result: Path, capsys, tmp_path: Path) -> None:
    (bench.root / "dataset/mer2025-dataset/track_all_candidates.csv").unlink()
    target = tmp_path / "t.csv"
    labels = str(result.with_name(f"{STEM}-openset.npz"))
    status, out, _ = call(capsys, bench, labels, "--track", "2", "--out", str(target))
    assert status == 0 and "nothing says whether every candidate has a row" in out and len(rows(target)) == 4
