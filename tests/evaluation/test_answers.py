"""Answers of any model, from a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectgpt.core.errors import DataError
from affectgpt.core.npz import write_npz
from affectgpt.evaluation.answers import direct_items, holds_items, import_answers, read_answers

ANSWERS = {"a": 'She says "no",\nand is sad.', "b": "happy"}


def test_three_formats_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('answer,name\n"She says ""no"",\nand is sad.",a\nhappy,b\n', encoding="utf-8")
    (tmp_path / "x.jsonl").write_text(
        '{"name": "a", "answer": "She says \\"no\\",\\nand is sad."}\n\n{"answer": "happy", "name": "b", "time": 3}\n'
    )
    write_npz(tmp_path / "x.npz", name2reason=ANSWERS)
    for suffix in ("csv", "jsonl", "npz"):
        assert read_answers(tmp_path / f"x.{suffix}") == ANSWERS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "name,text\na,b\n", "no column 'answer'"),
        ("x.csv", "name,answer\na,b\na,c\n", r"line 3: sample 'a' is there twice"),
        ("x.jsonl", '{"name": "a", "answer": "b"}\n{"name": "a"', "line 2: not JSON"),
        ("x.jsonl", '{"name": "a", "answer": null}\n', "line 1: expected"),
        ("x.jsonl", '{"name": "a", "answer": "b"}\n' * 2, "line 2: sample 'a' is there twice"),
        ("x.jsonl", '{"name": "../a", "answer": "b"}\n', "not a file stem"),
        ("x.jsonl", "\n", "it holds no answer"),
        ("x.txt", "a", r"answers are read from \.csv, \.jsonl, \.npz, not from \.txt"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "absent.jsonl")


def test_direct_items() -> None:
    answers = {"a": "The character's emotional state is happy, calm.", "b": "It rains. Nobody knows.", "c": ""}
    assert direct_items(answers, polarity=False) == ({"a": "[happy, calm]", "b": "[]"}, ["b"])
    assert direct_items(answers, polarity=True)[0] == {"a": "positive", "b": "neutral"}


def test_importing_never_replaces_other_answers(tmp_path: Path) -> None:
    target = tmp_path / "run" / "x.npz"
    import_answers(ANSWERS, target)
    before = target.read_bytes()
    import_answers(ANSWERS, target)
    with pytest.raises(DataError, match="holds other answers"):
        import_answers({"a": "b"}, target)
    assert target.read_bytes() == before


def test_files_of_labels_are_told_from_files_of_answers(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", name2reason=ANSWERS)
    write_npz(tmp_path / "y.npz", filenames=np.array(["a"]), fileitems=np.array(["[b]"]))
    assert [holds_items(tmp_path / name) for name in ("x.npz", "y.npz", "z.csv")] == [False, True, False]
