"""Tables of a user's own: a cell is the text that the file has, and what is wrong has file, line and sample."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affectgpt.core.errors import DataError
from affectgpt.datasets.annotations import read_annotations

COLUMNS = {"name": "clip", "subtitle": "said", "emotion": "mood"}
ROWS = [  # what a reader of numbers, dates or missing values would change
    ("00012", "None", "1e3"),
    ("12", "NA", "TRUE"),
    ("名字_1", "nan", " 2020-01-02 "),
    ("a", "", "-0.50"),
    ("b", 'He said "no", twice.', "N/A"),
    ("c", "two\nlines", "null"),
]


def read(path) -> list[tuple[str, ...]]:
    return [(name, cells["subtitle"], cells["emotion"]) for name, cells in read_annotations(path, COLUMNS)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_of_a_csv_file_are_text(tmp_path, encoding, end):
    path = tmp_path / "a.csv"
    with path.open("w", encoding=encoding, newline="") as handle:
        writer = csv.writer(handle, lineterminator=end)
        writer.writerow(("more", "clip", "said", "mood"))
        for row in ROWS:
            writer.writerow(("7", *row))
            handle.write(end)  # a blank line
        handle.write(f"7,d,x,y,,{end}")  # a spreadsheet's empty cells behind the last heading
    assert read(path) == [*ROWS, ("d", "x", "y")]


def test_cells_of_an_excel_file_are_text(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    for row in [(" clip", "said", "mood"), *ROWS, (None, None, None), (31, None, 0.5), ("e", "x", "y")]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert read(tmp_path / "a.xlsx") == [*ROWS, ("31", "", "0.5"), ("e", "x", "y")]


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")), min_size=1, max_size=5))
def test_any_text_is_read_as_the_csv_module_reads_it(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS.values(), *((f"s{i}", cell, "x") for i, cell in enumerate(cells))])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert [row[1] for row in read(path)] == cells


HEAD = "clip,said,mood\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + 'a,"two\nlines",x\nb,y\n', "a.csv, line 4: 2 cells where 3 are needed, sample 'b'"),
        (HEAD + "a,x,y\nb,Well, no.,sad\n", "a.csv, line 3: 4 cells under 3 headings, sample 'b'; put text"),
        (HEAD + 'a,x,y\n\nb,"no end,sad\n', "a.csv: cannot be read as CSV"),
        (HEAD + "a,x,y\n\na,x,y\n", "a.csv, line 4: sample 'a' is there twice; remove one"),
        (HEAD + "a,x,y\n../b,x,y\n", "a.csv, line 3: sample name '../b'"),
        (HEAD + ",x,y\n", "a.csv, line 2: sample name ''"),
        ("clip,said\na,x\n", "a.csv: no column 'mood'"),
        ("clip,said,mood,said\na,x,y,z\n", "a.csv: two columns are called 'said'"),
        ("", "a.csv: empty file"),
        (HEAD.encode() + b"a,\xff,y\n", "a.csv: not UTF-8 (byte 0xff"),
        (None, "a.csv: no such file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, message):
    path = tmp_path / "a.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as raised:
        read(path)
    assert message in str(raised.value)


def test_an_excel_file_with_a_doubled_heading(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    for row in [("clip", "said", "mood", "mood"), ("a", "x", "y", "z")]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"a\.xlsx: two columns are called 'mood'"):
        read(tmp_path / "a.xlsx")


def test_only_tables_of_ones_own_need_pandas(tmp_path):
    """Labels of the published sets, which scoring reads, and JSON do without its second of import."""
    (tmp_path / "a.jsonl").write_text('{"clip": "a", "said": "x", "mood": "y"}')
    (tmp_path / "a.csv").write_text(HEAD)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "import affectgpt.datasets.base, affectgpt.evaluation.score\n"
        "from affectgpt.datasets.annotations import read_annotations\n"
        f"for file in ('a.jsonl', 'a.csv'):\n    list(read_annotations(Path({str(tmp_path)!r}, file), {COLUMNS}))\n"
        "    print('pandas' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
