"""Label and result files that would make numpy follow a pointer of theirs, given to the scoring commands."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hostile_pickles import ATTACKS
from small_benchmark import Bench

ROOT = Path(__file__).resolve().parents[2]


def score(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "evaluation-scoreonly.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("attack", ["array of pointers", "scalar of a pointer", "pointers in a label", "laughs"])
def test_label_files(attack: str, bench: Bench) -> None:
    path = bench.places.dataset_root / "mer2023-dataset-process" / "label-6way.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test1_corpus.npy", ATTACKS[attack])
    status, err = score(*bench.arguments())
    assert status == 1 and err.startswith(f"error: {path}: ") and err.count("\n") == 1, err


@pytest.mark.parametrize("attack", ["array of pointers", "scalar of a pointer", "pointers in an array of objects"])
def test_answers(attack: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name2reason.npy", ATTACKS[attack])
        archive.writestr("fileitems.npy", ATTACKS[attack])
    status, err = score(*bench.arguments("--answers", str(path), "--datasets", "MER2023"))
    assert status == 1 and err.startswith(f"error: {path}: ") and err.count("\n") == 1, err


def test_answers_nested_deeply(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"name": "m1", "answer": ' + "[" * 100_000 + "}\n")
    status, err = score(*bench.arguments("--answers", str(path), "--datasets", "MER2023"))
    assert (status, err) == (1, f"error: {path}, line 1: no JSON (nested too deeply)\n")
