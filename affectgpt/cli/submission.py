"""``affectgpt submission``: the CSV files of the MER2025 challenge, tracks 2 and 3, from a result file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from affectgpt.cli.common import run_cli

CANDIDATES = "track_all_candidates.csv"


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
    """Write the file, say what is in it."""
    args = build_parser().parse_args(argv)
    from affectgpt.core.errors import printable
    from affectgpt.datasets.table import get_row
    from affectgpt.evaluation.submission import write_submission

    names = Path(args.names) if args.names else Path(args.dataset_root) / get_row("MER2025OV").root / CANDIDATES
    checked = bool(args.names) or names.exists()
    found = write_submission(
        Path(args.result), Path(args.out), track=args.track, names=names if checked else None,
        extraction=args.extractor, allow_missing=args.allow_missing,
    )  # fmt: skip
    print(printable(f"{args.out}: {found.rows} rows from {found.source}"))
    if found.empty:
        print(
            printable(f"note: {len(found.empty)} candidates have an empty cell (first: {', '.join(found.empty[:5])})")
        )
    if found.foreign:
        print(printable(f"note: {len(found.foreign)} names are no candidates and left out ({found.foreign[0]} …)"))
    if not checked:
        print(printable(f"note: {names} is not there, so that nothing says whether every candidate has a row"))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
