"""All runs found beside the paper's tables, as one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
import sys

from affectgpt.cli.common import run_cli
from affectgpt.cli.score import add_place_arguments, add_statistics_arguments, open_inputs


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt leaderboard",
        description="Score every run that has extracted labels and write a page with all of them and the paper's "
        "tables: intervals, chance levels, paired tests; rows can be chosen by input in the browser.",
    )
    add_place_arguments(parser)
    what = parser.add_argument_group("what is shown")
    what.add_argument(
        "--datasets", metavar="A,B|all", help="data sets (default: your own of --cfg-path, else those with results)"
    )
    what.add_argument("--runs", nargs="+", metavar="RUN", help="only these (default: all that are found)")
    what.add_argument(
        "--against", metavar="RUN", help="run of the paired tests (default: most data sets, then the highest mean)"
    )
    what.add_argument(
        "--modality", nargs="+", default=[], metavar="RUN=audio,video,text",
        help="what a run was given, where no record beside its answers says it",
    )  # fmt: skip
    what.add_argument("--allow-missing", action="store_true", help="leave out samples without an answer, and say so")
    what.add_argument(
        "--extractor", choices=("llm", "direct"), help="labels of which extraction are scored (default: llm where a "
        "run has any)",
    )  # fmt: skip
    add_statistics_arguments(what)
    parser.add_argument("--out", default="leaderboard.html", metavar="FILE", help="page to write (leaderboard.html)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Find, score, write."""
    args = build_parser().parse_args(argv)
    from affectgpt.core.errors import printable
    from affectgpt.core.files import write_text
    from affectgpt.core.runtime import setup_logging
    from affectgpt.evaluation.leaderboard import gather, page
    from affectgpt.evaluation.report import percent

    setup_logging()
    rows, paths, lexicon = open_inputs(args)
    board = gather(
        rows, paths, lexicon, runs=args.runs, extraction=args.extractor, allow_missing=args.allow_missing,
        draws=args.bootstrap, permutations=args.permutations, modality=args.modality, against=args.against,
    )  # fmt: skip
    write_text(args.out, page(board))
    for entry in board.entries:
        estimate, over = board.mean(entry)
        print(printable(f"{percent(estimate.value if estimate else None):>7}  mean of {over}  {entry.name}"))
    print(printable(f"{args.out}: {len(board.entries)} runs, {len(board.left_out)} left out"))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
