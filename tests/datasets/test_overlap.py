"""Clips that are tested on are not trained on: MER2025-OV by people, and what the guard against that sees."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from affectgpt.config.schema import Config, PathsConfig
from affectgpt.core.errors import DataError
from affectgpt.core.types import Sample
from affectgpt.datasets.base import open_dataset
from affectgpt.datasets.overlap import benchmark_clips, refuse_test_clips, shared_clips


def table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])


@pytest.fixture
def root(tmp_path) -> Path:
    """MER2025-OV with four human-labelled clips; OV-MERD+ tests on one of them, and on the file of another."""
    ours, tests = tmp_path / "mer2025-dataset", tmp_path / "ovmerdplus-process"
    opensets = [("a", "['happy', 'excited']"), ("b", "[]"), ("c", "['sad']"), ("d", "['angry']")]
    table(ours / "track2_test.csv", ("name", "openset"), opensets)
    table(ours / "track_all_candidates.csv", ("name",), [(n,) for n in "abcdefg"])
    table(ours / "subtitle_chieng.csv", ("name", "english"), [(n, "Well.") for n in "abcdefg"])
    table(tests / "ovlabel.csv", ("name", "openset"), [("c", "['sad']"), ("z", "['angry']")])
    table(tests / "subtitle_eng.csv", ("name", "sentence"), [("c", "Well."), ("z", "No.")])
    for folder, name, content in ((ours, "a", b"one"), (ours, "b", b"two"), (ours, "d", b"six"), (tests, "z", b"six")):
        (folder / "audio").mkdir(exist_ok=True)
        (folder / "audio" / f"{name}.wav").write_bytes(content)
    return tmp_path


def mer2025ov(root: Path):
    return open_dataset(Config(name="x", paths=PathsConfig(dataset_root=str(root))), "MER2025OV")


def test_the_training_split_is_what_people_labelled_without_what_is_tested(root, log_lines):
    samples = mer2025ov(root).samples("train")
    assert [(s.name, s.labels.ovlabels) for s in samples] == [("a", ("happy", "excited")), ("b", ())]
    assert any("2 clips left out: c, d" in line for line in log_lines)
    assert [s.name for s in mer2025ov(root).samples("test")] == list("abcdefg")


def test_without_the_tested_set_there_is_no_training_split(root):
    (root / "ovmerdplus-process" / "ovlabel.csv").unlink()
    with pytest.raises(DataError, match=r"leaves out the clips that OVMERDPlus tests on, whose label files are not"):
        mer2025ov(root).samples("train")


def test_only_files_of_one_size_are_read(root, monkeypatch):
    from affectgpt.datasets import overlap

    read = []
    plain = overlap.file_hash
    monkeypatch.setattr(overlap, "file_hash", lambda path: read.append(Path(path).name) or plain(path))
    (root / "ovmerdplus-process" / "audio" / "z.wav").write_bytes(b"another length")
    tested, _ = benchmark_clips(root, ("OVMERDPlus",))
    samples = [Sample(n, "x", audio=root / "mer2025-dataset" / "audio" / f"{n}.wav") for n in "abd"]
    assert shared_clips(samples, tested) == {} and read == []


def test_an_error_names_the_clips_and_a_warning_what_could_not_be_checked(root, log_lines):
    samples = [Sample("c", "mine"), Sample("e", "mine", audio=root / "mer2025-dataset" / "audio" / "d.wav")]
    with pytest.raises(DataError) as refused:
        refuse_test_clips({"mine": samples}, root)
    message = str(refused.value)
    assert "2 clips" in message and "mine/c (OVMERDPlus tests on a clip of this name)" in message
    assert "mine/e (its audio is that of OVMERDPlus/z)" in message
    assert any("not checked" in line and "MER2023" in line and "OVMERDPlus" not in line for line in log_lines)
    refuse_test_clips({"mine": [Sample("e", "mine")]}, root)
