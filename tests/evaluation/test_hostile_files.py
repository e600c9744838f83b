"""Label and result files that would make numpy follow a pointer of theirs, given to the scoring commands."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hostile_pickles import ATTACKS, npy, npz, text
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


@pytest.mark.parametrize("command", ["doctor", "score"])
def test_an_answer_that_is_a_million_times_the_same_text(command: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    pickled = b"\x80\x03" + text("x" * 1_000_000) + b"q\x000}" + text("m1") + b"](" + b"h\x00" * 1_000_000 + b"es."
    npz(path, npy(pickled))
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))"
    arguments = ["--against", path, "--answers", path]
    if command == "score":
        arguments = bench.arguments("--answers", str(path), "--datasets", "MER2023")
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; from affectgpt.cli.main import main; sys.exit(main())", command, *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith(f"error: {path}: "), done.stderr
    assert "m1" in done.stderr and done.stderr.count("\n") == 1 and len(done.stderr) < 1000


def test_answers_nested_deeply(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"name": "m1", "answer": ' + "[" * 100_000 + "}\n")
    status, err = score(*bench.arguments("--answers", str(path), "--datasets", "MER2023"))
    assert (status, err) == (1, f"error: {path}, line 1: not JSON (nested too deeply)\n")
