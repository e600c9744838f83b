"""Annotate unlabelled clips: the MER-Caption+ pipeline from clips to a filtered training set and a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli.common import add_config_arguments, run_cli
from affectgpt.config.captioning import STEPS

if TYPE_CHECKING:
    from affectgpt.captioning.describe import Clip
    from affectgpt.captioning.filters import ClipVotes, Wheels
    from affectgpt.captioning.pipeline import Run, State
    from affectgpt.config.captioning import CaptioningFile


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt caption",
        description="Describe clips through audio and video LLMs, merge the clues into descriptions, filter them, and "
        "write a training set in the layout of MER-Caption+ with a report. Run it again to resume: what a model said "
        "is kept and not asked for again.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP",
        help=f"only these of {', '.join(STEPS)}; what comes before is taken as earlier runs left it",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N clips")
    parser.add_argument("--dry-run", action="store_true", help="count what would be asked; send and write nothing")
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again where a model refused or gave an empty reply"
    )
    parser.add_argument(
        "--review", action="store_true", help="write the most doubtful clips to a CSV for a person to fill in"
    )
    other = parser.add_argument_group("other instruction sets")
    other.add_argument(
        "--nonempty-labels", type=Path, metavar="FILE",
        help="instead: keep those records of a .csv, .json or .jsonl file whose text yields emotion labels",
    )  # fmt: skip
    other.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME", help="columns or keys that hold question and answer"
    )
    other.add_argument(
        "--dialogue", metavar="NAME", help="instead: the key of a list of turns, each question with its answer a pair"
    )
    other.add_argument("--out", type=Path, metavar="FILE", help="file to write, of the same kind")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the pipeline; 1 when a server stopped it."""
    args = build_parser().parse_args(argv)

    from affectgpt.captioning.pipeline import Run, annotate
    from affectgpt.config.captioning import CaptioningFile
    from affectgpt.config.load import load_config
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    config = load_config(args.cfg_path, args.options, kind=CaptioningFile)
    if args.nonempty_labels:
        return nonempty(args, config)
    if args.out or args.columns or args.dialogue:
        raise ConfigError(
            "--out, --columns and --dialogue go with --nonempty-labels FILE; captioning.work is the folder"
        )
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; give 1 or more")
    run = Run(steps=tuple(args.steps), limit=args.limit, dry_run=args.dry_run, retry=args.retry_failed)
    state = annotate(config, run, vote=lambda clips, wheels: ensemble_votes(config, clips, wheels))
    if args.dry_run:
        print(plan(config, state))
        return 0
    finish(config, run, state, review=args.review)
    return 1 if state.stopped is not None else 0


def ensemble_votes(
    config: CaptioningFile, clips: Sequence[Clip], wheels: Wheels
) -> tuple[dict[str, ClipVotes], dict[str, str]]:
    """The ensemble's votes on clips, and why some have none; an ensemble that is not trained yet is trained first."""
    from affectgpt.captioning.describe import samples
    from affectgpt.captioning.ensemble import UNLABELLED, encoder_keys, finished, load_ensemble, opinions
    from affectgpt.captioning.filters import tally
    from affectgpt.cli import crowd as classifiers

    folder = classifiers.ensemble_folder(config)
    if not finished(folder):
        classifiers.train_ensemble(config)
    ensemble, _ = load_ensemble(
        folder, spec=config.captioning.crowd, encoders=encoder_keys(config, classifiers.visual_of(config))
    )
    features = classifiers.features_of(config, config.name, UNLABELLED, samples(clips))
    if not features.names:
        return {}, features.missing
    votes = tally(
        opinions(ensemble, features.visual, features.acoustic),
        wheels,
        neutral_band=config.captioning.crowd.neutral_band,
    )
    return dict(zip(features.names, votes, strict=True)), features.missing


def plan(config: CaptioningFile, state: State) -> str:
    """Print what a run would ask, step by step."""
    from affectgpt.captioning.describe import work_folder

    lines = [f"{len(state.clips)} clips; nothing was sent or written. A run would ask:"]
    for answers in state.answers.values():
        waiting = sum(not failure.reason.startswith("not asked") for failure in answers.failures.values())
        lines.append(
            f"  {answers.step:10} {answers.asked:7} requests; {answers.reused} kept from before, "
            f"{waiting} cannot be asked now"
        )
    lines.append("A step that waits for an earlier one counts only what could be asked at once.")
    lines.append(f"work folder: {work_folder(config)}")
    return "\n".join(lines)


def finish(config: CaptioningFile, run: Run, state: State, *, review: bool) -> None:
    """Write tables, data set, review and report, and print the counts."""
    from affectgpt.captioning import review as reviews
    from affectgpt.captioning.describe import work_folder
    from affectgpt.captioning.output import write_dataset, write_tables
    from affectgpt.captioning.report import write_report

    work = work_folder(config)
    found = write_tables(config, state)
    for title, count in found["counts"].items():
        print(f"{title:40} {count:8}")
    for step, cost in found["costs"].items():
        price = f", price {cost['price']:.2f}" if cost.get("price") else ""
        print(
            f"{step + ' so far':40} {cost['requests']:8} requests, {cost['prompt_tokens']} + {cost['reply_tokens']} "
            f"tokens, {cost['seconds']:.0f} s{price}"
        )
    failed = len({failure.name for failure in state.failures})
    if failed:
        print(f"{'without a result':40} {failed:8} (see {work / f'failed{state.suffix}.csv'})")
    if review:
        path = reviews.file_of(config.captioning, work)
        rows = reviews.write_review(path, state, count=config.captioning.review.count)
        print(f"{'to review':40} {rows:8} new rows in {path}: fill in decision (keep, drop), run again")
    if "output" in run.steps:
        if state.kept:
            print(f"data set: {write_dataset(config, state)}")
        else:
            print("data set: not written, no clip was kept")
    path = work / f"report{state.suffix}.html"
    write_report(path, config, state, found)
    print(f"report:   {path}")
    if state.stopped is not None:
        print(f"error: stopped: {state.stopped}. Run again to resume", file=sys.stderr)


def nonempty(args: argparse.Namespace, config: CaptioningFile) -> int:
    """Table 3's filter on one file."""
    from affectgpt.captioning.describe import work_folder
    from affectgpt.captioning.labels import open_extractor
    from affectgpt.captioning.nonempty import keep_nonempty
    from affectgpt.core.errors import ConfigError

    if bool(args.columns) == bool(args.dialogue) or not args.out:
        raise ConfigError(
            "--nonempty-labels needs --out FILE, and --columns (those that hold question and answer) or --dialogue NAME"
        )
    with open_extractor(config.captioning.extractor) as extractor:
        outcome = keep_nonempty(
            args.nonempty_labels, args.out, extractor, columns=args.columns, dialogue=args.dialogue,
            folder=work_folder(config) / "cache", dry_run=args.dry_run,
        )  # fmt: skip
    counts = f"{outcome.kept} with emotion labels, {outcome.empty} without, {outcome.failed} not asked"
    print(f"{outcome.pairs} pairs: {counts}")
    if args.dry_run or outcome.failed:
        print(f"{args.out}: not written" + (f" ({outcome.stopped}); run again" if outcome.stopped else ""))
        return 0 if args.dry_run else 1
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
