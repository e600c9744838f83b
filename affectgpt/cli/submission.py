"""``affectgpt submission``: the CSV files of the MER2025 challenge, from a result file.

They have the form of the challenge's own label tables. Track 2 (fine-grained emotions): ``name, openset`` with cells as
``['happy', 'excited']``. Track 3 (descriptions): ``name, reason``. Every candidate has a row, in the order of
``track_all_candidates.csv``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from affectgpt.cli.common import run_cli

CANDIDATES = "track_all_candidates.csv"
COLUMNS = {2: "openset", 3: "reason"}  # by track
FIRST = 5  # names that a message lists


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``affectgpt submission``."""
    parser = argparse.ArgumentParser(
        prog="affectgpt submission",
        description="Write the CSV file of the MER2025 challenge from a result file: track 2 its extracted labels "
        "(name, openset), track 3 its descriptions (name, reason).",
    )
    parser.add_argument("result", metavar="X.npz", help="result file of MER2025OV, whose labels are beside it")
    parser.add_argument("--track", type=int, choices=(2, 3), required=True, help="2: labels, 3: descriptions")
    parser.add_argument("--out", required=True, metavar="FILE", help="the CSV file to write")
    parser.add_argument(
        "--names", metavar="FILE",
        help=f"table whose column name gives the rows (default: mer2025-dataset/{CANDIDATES} below --dataset-root, if "
        "it is there, else the rows of the result file)",
    )  # fmt: skip
    parser.add_argument("--dataset-root", default="../dataset", metavar="DIR", help="holds the data sets (../dataset)")
    parser.add_argument(
        "--extractor", choices=("llm", "direct"), default="llm", help="labels of which extraction (llm)"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="empty cells for candidates without an answer; leave out other names",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Read the cells, write a row per candidate, report what is in the file.

    Raises DataError naming file and samples.
    """
    args = build_parser().parse_args(argv)
    from affectgpt.core.errors import DataError, printable
    from affectgpt.core.files import atomic_path
    from affectgpt.core.tables import read_table
    from affectgpt.datasets.table import get_row
    from affectgpt.evaluation.consensus import is_empty
    from affectgpt.evaluation.labels import parse_item
    from affectgpt.evaluation.results import items_path, read_answers, read_items, suffix_of

    source, blank = Path(args.result), ""
    if args.track == 2:
        blank = "[]"
        if "-openset" not in source.stem:
            source = items_path(source, suffix_of(args.extractor))
            if not source.exists():
                raise DataError(
                    f"{source}: no such file; evaluation.py extracts the labels (--extractor direct: without an LLM)"
                )
        # [happy, calm] → ['happy', 'calm']; no cell where there is no item, which [] is not
        cells = {
            name: "" if is_empty(item) else "[" + ", ".join(f"'{label}'" for label in parse_item(item)) + "]"
            for name, item in read_items(source).items()
        }
    else:
        cells = {name: " ".join(answer.split()) for name, answer in read_answers(source).items()}
    names = Path(args.names) if args.names else Path(args.dataset_root) / get_row("MER2025OV").root / CANDIDATES
    checked = bool(args.names) or names.exists()
    candidates = list(read_table(names, key="name", columns=())) if checked else list(cells)
    empty = [name for name in candidates if not cells.get(name)]
    known = set(candidates)
    foreign = [name for name in cells if name not in known]
    if (empty or foreign) and not args.allow_missing:
        wrong = [
            f"{len(which)} {what} (first: {', '.join(which[:FIRST])})"
            for which, what in ((empty, "candidates have no answer"), (foreign, f"names are not in {names}"))
            if which
        ]
        raise DataError(
            f"{source}: {'; '.join(wrong)}. Answer these, or write empty cells and leave other names out with "
            "--allow-missing"
        )
    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("name", COLUMNS[args.track]))
        writer.writerows((name, cells.get(name) or blank) for name in candidates)
    lines = [f"{args.out}: {len(candidates)} rows from {source}"]
    if empty:
        lines.append(f"note: {len(empty)} candidates have an empty cell (first: {', '.join(empty[:FIRST])})")
    if foreign:
        lines.append(f"note: {len(foreign)} names are no candidates and left out ({foreign[0]} …)")
    if not checked:
        lines.append(f"note: {names} is not there, so that nothing says whether every candidate has a row")
    print("\n".join(map(printable, lines)))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
