"""CSV files of labels and subtitles: read as text, exactly, and refused with a place when they are wrong.

Scoring reads them, and its whole run takes as long as pandas' import, so the csv module does it. In the published
tables a cell that pandas takes as missing is missing, as it was for the released models (``MISSING``).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Literal

from affectgpt.core.errors import DataError, did_you_mean
from affectgpt.core.names import check_name
from affectgpt.core.runtime import logger

# Cells that pandas' read_csv takes as missing.
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip


def read_header(path: Path) -> list[str]:
    """The headings of a CSV file that ``read_table`` can read."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return next(csv.reader(handle), [])


def check_headings(path: Path, headings: list[str], needed: tuple[str, ...] | None = None) -> None:
    """Raise DataError where a needed heading (of all, if none is named) is not there, or is there twice."""
    for heading in headings if needed is None else needed:
        if heading not in headings:
            raise DataError(f"{path}: no column {heading!r}.{did_you_mean(heading, headings)}")
        if headings.count(heading) > 1:
            raise DataError(f"{path}: two columns are called {heading!r}; rename or remove one")


def read_table(
    path: Path, *, key: str, columns: tuple[str, ...], doubled: Literal["refuse", "last"] = "refuse"
) -> dict[str, tuple[str, ...]]:
    """Read a UTF-8 CSV file (with or without a byte order mark): name → cells of ``columns``, in file order.

    ``doubled``: of a name that is there twice, the last row counts (as pandas' users do with published tables; a log
    line where the rows differ), or it is an error.

    Raises DataError naming file, line and sample: no such file, other encoding, missing or doubled column, short or
    long row, doubled name, a name that is not a file stem.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return _read(csv.reader(handle), path, key, columns, doubled)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        byte, offset = error.object[error.start], error.start
        raise DataError(
            f"{path}: not UTF-8 (byte 0x{byte:02x} near offset {offset} of a block read); save the file as UTF-8"
        ) from error


def _read(reader, path: Path, key: str, columns: tuple[str, ...], doubled: str) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    differing: list[str] = []
    try:
        header = next(reader, None)
        if header is None:
            raise DataError(f"{path}: empty file; expected the columns {', '.join((key, *columns))}")
        check_headings(path, header, (key, *columns))
        at, where = header.index(key), [header.index(column) for column in columns]
        width, full = max(at, *where, 0) + 1, len(header)
        for row in reader:
            if not row:  # a blank line
                continue
            if len(row) < width:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where {width} are needed, sample {row[0]!r}"
                )
            if len(row) > full and any(row[full:]):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under {full} headings, sample "
                    f"{row[at]!r}; put text that holds commas into quotes"
                )
            # interned: the same names stand in two or three files of a data set
            name = sys.intern(check_name(row[at], source=path, line=reader.line_num))
            cells = tuple([row[i] for i in where])
            if name in table and doubled == "refuse":
                raise DataError(f"{path}, line {reader.line_num}: sample {name!r} is there twice; remove one")
            if table.get(name, cells) != cells:
                differing.append(name)
            table[name] = cells
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    if differing:
        names = ", ".join(dict.fromkeys(differing))
        logger.warning("%s: names that are there twice with different cells, of which the last count: %s", path, names)
    return table
