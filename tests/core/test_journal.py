"""The journal of finished items."""

from __future__ import annotations

import errno
import os

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
def test_a_damaged_line_is_left_out_and_named(tmp_path, junk, caplog):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", 1)
        journal.add("two", 2)
    first, one, two = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + one + junk + two)
    with caplog.at_level("WARNING", logger="affectgpt"), Journal(path, key="k") as journal:
        assert journal.entries == {"one": 1, "two": 2}
        journal.add("three", 3)
    assert "line 3 is damaged" in caplog.text and Journal.read(path, key="k") == {"one": 1, "two": 2, "three": 3}
    with pytest.raises(ValueError, match="line 3"):
        Journal.read(path, key="k", strict=True)


def test_no_flipped_bit_gives_another_item(tmp_path):
    """Each of all bits: the item is there as it was written, or it is not there."""
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("clip", {"answer": "The character's emotional state is happy.", "tokens": 12})
    whole, entries = path.read_bytes(), Journal.read(path, key="k")
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            assert Journal.read(path, key="k") in ({}, entries)


def test_the_last_entry_of_a_name_counts_and_a_journal_is_written_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    Journal.write(path, key="k", entries={"one": 1, "two": 2})
    with Journal(path, key="k") as journal:
        journal.add("one", 3)
    assert Journal.read(path, key="k", strict=True) == {"one": 3, "two": 2}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_keeps_nobody_from_writing(tmp_path, monkeypatch, number):
    import fcntl

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "a.jsonl"
    for name in ("one", "two"):
        with Journal(path, key="k") as journal:
            journal.add(name, 1)
    assert Journal.read(path, key="k") == {"one": 1, "two": 1}
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        Journal(path, key="k")


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, key="k") as journal:
        journal.add("one", 1)
        with pytest.raises(AffectGPTError, match="another process is writing"):
            Journal(path, key="k")
    with Journal(path, key="k") as journal:
        assert journal.entries == {"one": 1}
