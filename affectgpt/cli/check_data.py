"""Are the data sets complete and readable? Run before training."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli.common import run_cli

if TYPE_CHECKING:
    from affectgpt.data.check import SplitReport


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt check_data",
        description="Look at every label, subtitle, video, audio and face file of data sets; exit status 1 when "
        "something is missing, unreadable or not as many as published.",
    )
    parser.add_argument("--datasets", required=True, nargs="+", metavar="NAME", help="names, or all")
    parser.add_argument("--dataset-root", default="../dataset", metavar="DIR", help="default: ../dataset")
    parser.add_argument("--splits", nargs="+", choices=("train", "test"), default=["train", "test"])
    parser.add_argument(
        "--media", nargs="+", choices=("video", "audio", "face", "none"), default=["video", "audio", "face"]
    )
    parser.add_argument("--decode", action="store_true", help="read every file as training would, not its header only")
    parser.add_argument("--any-count", action="store_true", help="do not compare with the published sample counts")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="files looked at at once (default 4)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every problem, one a line")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check, print a table, write the CSV; 1 when something is wrong."""
    args = build_parser().parse_args(argv)

    from tqdm import tqdm

    from affectgpt.data.check import check_split
    from affectgpt.data.table import DATASETS, get_row

    words = [word for item in args.datasets for word in item.split(",") if word]
    if any(word.lower() == "all" for word in words):
        rows = [row for row in DATASETS.values() if row.label_file or row.openset_file or row.reason_file]
    else:
        rows = [get_row(word) for word in words]
    reports = []
    for row in rows:
        for split in (s for s in args.splits if s in row.splits):
            reports.append(
                check_split(
                    row,
                    split=split,
                    dataset_root=args.dataset_root,
                    media=[m for m in args.media if m != "none"],
                    decode=args.decode,
                    counts=not args.any_count,
                    workers=args.workers,
                    progress=lambda items, total, name=f"{row.name} {split}": tqdm(
                        items, total=total, desc=name, unit="clip", disable=None, leave=False
                    ),
                )
            )
    print_table(reports)
    problems = [problem for report in reports for problem in report.problems]
    if args.csv is not None:
        write_problems(args.csv, reports)
        print(f"every problem, one a line: {args.csv}")
    else:
        for problem in problems[:20]:
            print(f"{problem.dataset} {problem.split}: {problem.what} {problem.kind}: {problem.reason}")
        if len(problems) > 20:
            print(f"… and {len(problems) - 20} more; --csv FILE writes them all")
    print("everything is there" if not problems else f"problems: {len(problems)}")
    return 1 if problems else 0


def print_table(reports: list[SplitReport]) -> None:
    """One line per data set and split."""
    from rich.console import Console
    from rich.table import Table

    from affectgpt.data.check import MEDIA

    table = Table(title="Data sets: problems by medium (missing / zero bytes / unreadable)", title_justify="left")
    for heading in ("data set", "split", "expected", "found", "video", "audio", "face", "subtitle", "label"):
        table.add_column(heading, justify="left" if heading in ("data set", "split") else "right")
    for heading in ("no sound track", "seconds (min/mean/max)", "hours"):
        table.add_column(heading, justify="right")
    for report in reports:
        cells = []
        for what in ("video", "audio", "face", "subtitle", "label"):
            counts = [report.count(what, kind) for kind in ("missing", "zero bytes", "unreadable")]
            unknown = not report.found or (what in MEDIA and what not in report.media)
            cells.append(" / ".join(map(str, counts)) if any(counts) else "–" if unknown else "ok")
        times = report.seconds
        table.add_row(
            report.dataset,
            report.split,
            "–" if report.expected is None else f"{report.expected:,}",
            f"{report.found:,}",
            *cells,
            str(len(report.without_audio)),
            f"{min(times):.1f} / {sum(times) / len(times):.1f} / {max(times):.1f}" if times else "–",
            f"{sum(times) / 3600:.1f}" if times else "–",
        )
    # a file or pipe gets the whole width: nothing is cut
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def write_problems(path: Path, reports: list[SplitReport]) -> None:
    """Every problem and every clip without a sound track as CSV, written atomically."""
    from affectgpt.core.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("dataset", "split", "sample", "what", "kind", "reason"))
        for report in reports:
            for p in report.problems:
                writer.writerow((p.dataset, p.split, p.sample, p.what, p.kind, p.reason))
            for name in report.without_audio:
                writer.writerow((report.dataset, report.split, name, "video", "no sound track", ""))


if __name__ == "__main__":
    sys.exit(run_cli(main))
