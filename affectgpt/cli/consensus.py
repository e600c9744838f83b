"""``affectgpt consensus``: several checkpoints, runs or sampled answers vote; the result is a run like any other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from affectgpt.cli.common import command_line, run_cli
from affectgpt.cli.score import add_place_arguments, add_selection_arguments, named_one_by_one, open_inputs

if TYPE_CHECKING:
    from affectgpt.datasets.table import DatasetRow
    from affectgpt.evaluation.consensus import Consensus
    from affectgpt.evaluation.results import ResultFile
    from affectgpt.evaluation.score import ScoringPaths


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``affectgpt consensus``."""
    parser = argparse.ArgumentParser(
        prog="affectgpt consensus",
        description="Write the labels that several result files agree on as a run of its own. Each file votes once for "
        "each emotion group that its labels name. No truth is read.",
        epilog="Of files named sample_1_CHECKPOINT, sample_2_CHECKPOINT … those of one checkpoint vote together. With "
        "--allow-missing, files and clips that are missing are left to the other voters, and listed.",
    )
    add_place_arguments(parser)
    what = add_selection_arguments(parser, "who votes")
    what.add_argument(
        "--voters", nargs="+", metavar="RUN[/CHECKPOINT]", help="several runs or files of runs, in the place of --run"
    )
    what.add_argument("--extractor", choices=("llm", "direct"), help="labels of which extraction vote (as in scoring)")
    votes = parser.add_argument_group("votes")
    votes.add_argument("--name", default="votes", metavar="RUN", help="the run that is written (votes)")
    votes.add_argument(
        "--at-least", type=int, metavar="T",
        help="votes that a group needs (default: the number with which answers have as many groups as single ones)",
    )  # fmt: skip
    votes.add_argument("--overwrite", action="store_true", help="replace votes of other files that stand there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Find the voters, vote, say how."""
    args = build_parser().parse_args(argv)
    from affectgpt.core.errors import ConfigError, printable
    from affectgpt.core.names import check_name
    from affectgpt.evaluation import consensus
    from affectgpt.evaluation.lexicon import grouping_of

    check_name(args.name, source="--name", what="run name", suffix="")
    if args.voters and (args.run or args.checkpoints):
        raise ConfigError("--voters names runs and files itself: leave out --run and --checkpoints")
    rows, paths, lexicon = open_inputs(args)
    by_set, extraction, notes = find_voters(args, rows, paths)
    results = [
        consensus.consensus(
            row, voters, grouping_of(lexicon),
            base_root=paths.base_root, name=args.name, stem=stem, extraction=extraction, at_least=args.at_least,
            allow_missing=args.allow_missing, overwrite=args.overwrite,
        )
        for row in rows if row.name in by_set for stem, voters in ballots(by_set[row.name], args.name).items()
    ]  # fmt: skip
    print(table(results, args.name))
    for words in notes:
        print(printable(f"note: {words}"))
    options = [
        word for flag in ("cfg_path", "output_root", "base_root", "dataset_root", "lexicon")
        if (value := getattr(args, flag)) for word in (f"--{flag.replace('_', '-')}", value)
    ]  # fmt: skip
    allowed = ["--allow-missing"] if args.allow_missing else []
    print(f"\nscore it: {command_line('evaluation-scoreonly.py', ['--run', args.name, *options, *allowed])}")
    return 0


def find_voters(
    args: argparse.Namespace, rows: Sequence[DatasetRow], paths: ScoringPaths
) -> tuple[dict[str, dict[str, ResultFile]], str, list[str]]:
    """Data set → ``RUN/CHECKPOINT`` → file with labels; which extraction; notes. Raises DataError."""
    from affectgpt.core.errors import ConfigError, DataError
    from affectgpt.evaluation.metrics.base import METRICS
    from affectgpt.evaluation.results import CheckpointChoice
    from affectgpt.evaluation.score import extraction_of, pick_files

    files: dict[str, dict[str, ResultFile]] = {}
    notes: list[str] = []
    flag = "--voters" if args.voters else "--run"
    for text in args.voters or [args.run]:
        run, _, checkpoint = (text or "").strip("/").partition("/")
        choice = CheckpointChoice.parse(checkpoint or args.checkpoints)
        name, picked, absent = pick_files(
            rows, paths, run=run or None, choice=choice, optional=not named_one_by_one(args), flag=flag
        )
        if name == args.name:
            raise ConfigError(f"--name {args.name}: is one of the voters' runs; give the votes a name of their own")
        notes += absent
        for dataset, of_set in picked.items():
            if lacking := choice.lacking(of_set):
                raise DataError(f"{dataset}, {name}: no result file of epoch {', '.join(map(str, lacking))}")
            files.setdefault(dataset, {}).update({f"{name}/{file.stem}": file for file in of_set})
    polarity = {row.name: METRICS.get(row.task).polarity for row in rows}
    extraction = args.extractor or extraction_of({d: list(of_set.values()) for d, of_set in files.items()}, polarity)
    everyone = list(dict.fromkeys(voter for of_set in files.values() for voter in of_set))
    lacking_labels = {
        dataset: [v for v in everyone if v not in of_set or not of_set[v].has(extraction, polarity=polarity[dataset])]
        for dataset, of_set in files.items()
    }
    words = [
        f"{dataset}: {len(voters)} of {len(everyone)} files are missing or have no extracted labels: "
        f"{', '.join(voters)}"
        for dataset, voters in lacking_labels.items()
        if voters
    ]
    if words and not args.allow_missing:
        raise DataError(
            f"{'; '.join(words)}. Answer and extract these (evaluation.py), choose others with --checkpoints, or let "
            "those vote that are there with --allow-missing"
        )
    ready = {d: {v: f for v, f in of_set.items() if v not in lacking_labels[d]} for d, of_set in files.items()}
    return ready, extraction, notes + words


def ballots(voters: Mapping[str, ResultFile], name: str) -> dict[str, dict[str, ResultFile]]:
    """Stem of the file to write → who votes for it: all together, or the samples of each checkpoint."""
    if not voters or any(file.sample_of is None for file in voters.values()):
        return {name: dict(voters)}
    by_stem: dict[str, dict[str, ResultFile]] = {}
    for voter, file in voters.items():
        by_stem.setdefault(f"{name}_{file.sample_of}", {})[voter] = file
    return by_stem


def table(results: Sequence[Consensus], name: str) -> str:
    """One line per file that was written, then the notes."""
    from affectgpt.core.errors import printable
    from affectgpt.evaluation.report import grid

    head = ["data set", "voters", "clips", "votes needed", "groups per answer", "single answers", "undecided", ""]
    rows = [
        [
            c.dataset, str(len(c.voters)), str(len(c.votes.items)),
            "most" if c.votes.at_least is None else str(c.votes.at_least),
            *("–" if value is None else f"{value:.2f}" for value in (c.votes.groups, c.votes.single)),
            str(len(c.votes.undecided)), "" if c.fresh else "was there",
        ]
        for c in results
    ]  # fmt: skip
    voters: dict[str, list[str]] = {}
    for run, _, stem in (voter.partition("/") for voter in dict.fromkeys(v for c in results for v in c.voters)):
        voters.setdefault(run, []).append(stem)
    lines = [f"run        {printable(name)}"]
    lines += [printable(f"voters     {run}: {', '.join(stems)}") for run, stems in voters.items()]
    lines += ["", *grid([[head], rows]), ""]
    lines.append(
        "groups per answer: those that the lexicon knows. undecided: clips where no group had enough votes (the first\n"
        "of those with most is kept), or the polarity was a tie (neutral)."
    )
    lines += [f"note: {c.dataset}: {printable(words)}" for c in results for words in c.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_cli(main))
