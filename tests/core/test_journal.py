"""The journal of finished items."""

from __future__ import annotations

import pytest

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.journal import Journal


def test_items_come_back(tmp_path):
    path = tmp_path / "a.journal.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", ["[happy]", None])
        journal.add("zwei\n\ud83d", "x")
    assert Journal.peek_key(path) == "k"
    with Journal(path, key="k") as journal:
        assert journal.entries == {"one": ["[happy]", None], "zwei\n\ud83d": "x"}
        journal.remove()
    assert not path.exists() and Journal.peek_key(path) is None


def test_another_key_begins_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", 1)
    with Journal(path, key="other") as journal:
        assert journal.entries == {}
        journal.add("two", 2)
    with Journal(path, key="other") as journal:
        assert journal.entries == {"two": 2}


def test_every_cut_keeps_the_whole_lines_before_it(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        for number in range(4):
            journal.add(f"n{number}", number)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        with Journal(path, key="k") as journal:
            assert list(journal.entries) == [f"n{i}" for i in range(max(lines - 1, 0))]
            journal.add("new", "item")
        with Journal(path, key="k") as journal:
            assert journal.entries["new"] == "item" and len(journal.entries) == max(lines - 1, 0) + 1


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"[1]\n", b"null\n", b'{"name": 3, "value": 1}\n', b'{"name": "x"}\n'])
def test_what_follows_a_damaged_line_is_dropped(tmp_path, junk):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", 1)
    good = path.read_bytes()
    path.write_bytes(good + junk + b'{"name": "two", "value": 2}\n')
    with Journal(path, key="k") as journal:
        assert journal.entries == {"one": 1}
    assert path.read_bytes() == good


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", 1)
        with pytest.raises(AffectGPTError, match="another process is writing"):
            Journal(path, key="k")
    with Journal(path, key="k") as journal:
        assert journal.entries == {"one": 1}
