"""The files that the MER2025 challenge takes, from a result file: the form of the challenge's own label tables.

Track 2 (fine-grained emotions): ``name, openset`` with cells as ``['happy', 'excited']``. Track 3 (descriptions):
``name, reason``. Every candidate has a row, in the order of ``track_all_candidates.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.core.errors import DataError
from affectgpt.core.files import atomic_path
from affectgpt.core.tables import read_table
from affectgpt.evaluation import extraction_file as files
from affectgpt.evaluation.consensus import is_empty
from affectgpt.evaluation.labels import parse_item
from affectgpt.evaluation.results import SUFFIXES

COLUMNS = {2: "openset", 3: "reason"}  # by track
FIRST = 5  # names that an error lists


@dataclass(frozen=True)
class Submission:
    """What was written: rows, and which names have an empty cell because the result file has nothing for them."""

    rows: int
    empty: tuple[str, ...]
    foreign: tuple[str, ...]  # names of the result file that are no candidates, left out
    source: Path


def write_submission(
    result: Path, target: Path, *, track: int, names: Path | None, extraction: str, allow_missing: bool = False
) -> Submission:
    """Write the CSV of one track from ``X.npz`` (track 2: the labels ``extraction`` beside it, or such a file itself).

    ``names``: a table with the column ``name``, whose rows are those of the submission; None: those of the result file.
    ``allow_missing``: candidates without an answer get an empty list or text, names that are no candidates are left
    out. Raises DataError naming file and samples.
    """
    source = result
    if track == 2:
        if "-openset" not in result.stem:
            source = files.labels_path(result, SUFFIXES[extraction])
            if not source.exists():
                raise DataError(
                    f"{source}: no such file; evaluation.py extracts the labels (--extractor direct: without an LLM)"
                )
        cells = {name: _label_cell(item) for name, item in files.read_items(source).items()}
    else:
        cells = {name: " ".join(answer.split()) for name, answer in files.read_answers(result).items()}
    wanted = list(read_table(names, key="name", columns=())) if names is not None else list(cells)
    empty = tuple(name for name in wanted if not cells.get(name))
    known = set(wanted)
    foreign = tuple(name for name in cells if name not in known)
    if (empty or foreign) and not allow_missing:
        wrong = [
            f"{len(which)} {what} (first: {', '.join(which[:FIRST])})"
            for which, what in ((empty, "candidates have no answer"), (foreign, f"names are not in {names}"))
            if which
        ]
        raise DataError(
            f"{source}: {'; '.join(wrong)}. Answer these, or write empty cells and leave other names out with "
            "--allow-missing"
        )
    blank = "[]" if track == 2 else ""
    _write(target, COLUMNS[track], [(name, cells.get(name) or blank) for name in wanted])
    return Submission(len(wanted), empty, foreign, source)


def _label_cell(item: str) -> str:
    """``[happy, calm]`` → ``['happy', 'calm']``; the empty text where there is no item, which ``[]`` is not."""
    if is_empty(item):
        return ""
    return "[" + ", ".join(f"'{label}'" for label in parse_item(item)) + "]"


def _write(target: Path, column: str, rows: Sequence[tuple[str, str]]) -> None:
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("name", column))
        writer.writerows(rows)
