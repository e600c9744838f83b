"""Names of others that become paths, and text of others that a terminal shows."""

from __future__ import annotations

import json

import pytest

from affectgpt.core.errors import ConfigError, DataError, printable
from affectgpt.core.names import check_below, check_name


@pytest.mark.parametrize("name", ["00012", "Wait...what", ".hidden", "-x", "情感\u3000一", "a b", "x" * 250, "名" * 83])
def test_names_that_files_may_have(name):
    assert check_name(name, source="file") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\n", "\x9b2J", "\ud83d", "\u202etxt"])
def test_names_that_are_refused(name):
    with pytest.raises(DataError, match=r"labels\.csv, line 3: sample name .* is not a file stem") as caught:
        check_name(name, source="labels.csv", line=3)
    assert printable(str(caught.value)) == str(caught.value)


def test_long_names_are_measured_in_bytes_with_their_ending():
    with pytest.raises(DataError, match=r"sample name 'x+…' has 256 bytes with \.jpeg; file systems take 255"):
        check_name("x" * 251, source="file")
    with pytest.raises(ConfigError, match=r"run name .* has 258 bytes; file systems"):
        check_name("名" * 86, source="--run", what="run name", suffix="", error=ConfigError)


def test_files_below_a_folder():
    for file in ("a.jpg", "part1/0001.jpg", "./part1//0001.jpg"):
        assert check_below(file, source="x", folder="the folder") == file
    for file in ("", "/a", "a/../../b", "..", "a/b\x1b"):
        with pytest.raises(DataError):
            check_below(file, source="x", folder="the folder")


def test_terminals_get_no_control_characters():
    assert printable("a\x1b[2Jb\x9b1m\x07\n\t\r\x7f\u202e\ud83d") == (
        "a\\u001b[2Jb\\u009b1m\\u0007\\n\\t\\r\\u007f\\u202e\\ud83d"
    )
    assert printable("one\n\ttwo\r\x1b", lines=True) == "one\n\ttwo\\r\\u001b"
    for text in ("happy, 开心 — “été” 👩\u200d🎤\u3000.", ""):
        assert printable(text) == text
    value = {"answer": "\x1b]0;title\x07\x9b31m\u202e\n"}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value
