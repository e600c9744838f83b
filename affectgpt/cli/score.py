"""Scores from labels that are already extracted: the published ``evaluation-scoreonly.py``. Needs no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli.common import add_imports_argument, run_cli

if TYPE_CHECKING:
    from affectgpt.config.schema import Config
    from affectgpt.datasets.table import DatasetRow
    from affectgpt.evaluation.lexicon import Lexicon
    from affectgpt.evaluation.score import RunScores, ScoringPaths

ALL = "all"
ANSWERS_HELP = (
    "score the answers of any model on one data set (--datasets NAME): a .csv with the columns name,answer, a .jsonl "
    'with lines {"name": …, "answer": …}, or an .npz with name2reason or extracted labels; name: of the clip. '
    'evaluation-scoreonly.py reads labels directly (answers such as "happy, calm" or "The character\'s emotional state '
    'is happy."); evaluation.py with its --extractor, a language model unless it is direct'
)
FEWEST_PERMUTATIONS = 20  # below, the chance level depends on luck


def add_place_arguments(parser: argparse.ArgumentParser, *, lexicon: bool = True) -> None:
    """Add the folders of results, data sets and (for those that score) the lexicon; every command on result files."""
    where = parser.add_argument_group("where things are")
    where.add_argument(
        "--cfg-path", metavar="FILE", help="configuration whose datasets: describe your own sets (task: says how they "
        "are scored), and where data and results are",
    )  # fmt: skip
    where.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override any of its keys")
    where.add_argument("--output-root", metavar="DIR", help="holds results-<data set>/ (output)")
    where.add_argument(
        "--base-root", metavar="PATH",
        help="beginning of the result folders' names (default: OUTPUT_ROOT/results, or that of --cfg-path)",
    )  # fmt: skip
    where.add_argument(
        "--dataset-root", metavar="DIR", help="holds the data sets (default: that of --cfg-path, else ../dataset)"
    )
    add_imports_argument(where)
    if lexicon:
        where.add_argument(
            "--lexicon", metavar="DIR|builtin", help="default: emotion_wheel/ if it is there, else the built-in one"
        )


def add_selection_arguments(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Add the choice of data sets, run and checkpoints."""
    what = parser.add_argument_group(title)
    what.add_argument(
        "--datasets",
        metavar="A,B|all",
        help="data sets (default: your own of --cfg-path, else all: those of the nine with results)",
    )
    what.add_argument(
        "--run",
        metavar="NAME",
        help="folder under results-<data set> (default: the only one of --cfg-path's name, else that with most files)",
    )
    what.add_argument(
        "--checkpoints", metavar="30-60", help="epochs (30-60, 30-60/5, 45) or file names, separated by commas"
    )
    what.add_argument("--allow-missing", action="store_true", help="leave out samples without an answer, and say so")
    return what


def add_statistics_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the numbers of resamples and permutations, see ``check_statistics``."""
    group.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals (1000; 0: none)"
    )
    group.add_argument(
        "--deals", type=int, default=50, metavar="N", dest="permutations",
        help="permutations of the answers among the clips, for the chance levels beside each score (50; 0: none)",
    )  # fmt: skip


def check_statistics(args: argparse.Namespace) -> None:
    """Raise ConfigError for numbers of resamples or permutations that give no statistics."""
    from affectgpt.core.errors import ConfigError

    if args.bootstrap < 0:
        raise ConfigError(f"--bootstrap {args.bootstrap}: the number of resamples cannot be negative")
    if args.permutations < 0 or 0 < args.permutations < FEWEST_PERMUTATIONS:
        raise ConfigError(f"--deals {args.permutations}: {FEWEST_PERMUTATIONS} or more, or 0 for no chance levels")


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that both evaluation commands have."""
    add_place_arguments(parser)
    what = add_selection_arguments(parser, "what is scored")
    what.add_argument("--answers", metavar="FILE", help=ANSWERS_HELP)
    what.add_argument(
        "--compare", nargs=2, metavar=("RUN_A", "RUN_B"),
        help="paired test; RUN (its best checkpoint), RUN/CHECKPOINT, or RUN/mean (the mean of its checkpoints)",
    )  # fmt: skip
    what.add_argument(
        "--seeds", nargs="+", metavar="RUN",
        help="mean and deviation over runs of several training seeds, paired by clip; RUN (its last checkpoint), "
        "RUN/CHECKPOINT or RUN/mean",
    )  # fmt: skip
    what.add_argument(
        "--grouping", default="wheel", metavar="NAME", help="wheel (default), wheel-level2, l1, l2 (no wheel)"
    )
    report = parser.add_argument_group("reports")
    report.add_argument("--json", metavar="FILE", help="all numbers")
    report.add_argument("--html", metavar="FILE", help="one page with table, plots and the samples that went wrong")
    report.add_argument("--latex", nargs="?", const="-", metavar="FILE", help="table rows (printed without FILE)")
    report.add_argument("--unknown-labels", metavar="FILE", help="CSV of labels that the lexicon does not know")
    report.add_argument("--all-metrics", action="store_true", help="print secondary metrics and intervals too")
    add_statistics_arguments(report)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="evaluation-scoreonly.py",
        description="Score labels that are already extracted from a run's answers (evaluation.py extracts them).",
    )
    add_scoring_arguments(parser)
    parser.add_argument(
        "--extractor",
        metavar="llm|direct|NAME",
        help="which extraction is scored (default: llm where there is any); NAME: of an extractor of your own",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, score, report."""
    args = build_parser().parse_args(argv)
    rows, paths, lexicon = open_inputs(args)
    if args.answers:
        return report(args, score_answers(args, rows, paths, lexicon))
    return score(args, rows, paths, lexicon, extraction=args.extractor)


def open_inputs(args: argparse.Namespace) -> tuple[list[DatasetRow], ScoringPaths, Lexicon]:
    """Check the arguments; the data set rows, folders and lexicon that they name."""
    from affectgpt.core.registry import import_files
    from affectgpt.datasets.table import get_row, parse_names
    from affectgpt.evaluation.lexicon import check_grouping, find_lexicon
    from affectgpt.evaluation.score import ScoringPaths, check_scored

    if "permutations" in args:
        check_statistics(args)
    if "grouping" in args:
        check_grouping(args.grouping)
    import_files(args.imports)
    config: Config | None = None
    base_root, dataset_root = f"{args.output_root or 'output'}/results", "../dataset"
    if args.cfg_path:  # only here: scoring takes half a second, reading configurations a tenth of that
        from affectgpt.config.load import load_config

        config = load_config(args.cfg_path, args.options)
        dataset_root = config.paths.dataset_root
        base_root = base_root if args.output_root else config.results_root
    blocks = config.datasets if config else {}
    if args.datasets is None:
        args.datasets = ",".join(name for name, block in blocks.items() if block.task) or ALL
    names = parse_names(args.datasets, custom=blocks)
    rows = [scored_row(config, name) if config else get_row(name) for name in names]
    for row in rows:
        check_scored(row)
    paths = ScoringPaths(Path(args.base_root or base_root), Path(args.dataset_root or dataset_root))
    if config and getattr(args, "run", "") is None and not getattr(args, "answers", None):
        # the run that a configuration of this name made, where there is one only
        of_name = re.compile(rf"{re.escape(config.name)}(_\d{{11}}(_\d+)?)?")  # the minute's last digit is left out
        runs = {run for row in rows for run in paths.runs(row) if of_name.fullmatch(run)}
        args.run = runs.pop() if len(runs) == 1 else None
    return rows, paths, find_lexicon(args.lexicon)


def scored_row(config: Config, name: str) -> DatasetRow:
    """A configuration's data set as a row with its truth. Raises ConfigError where its block names no truth."""
    from affectgpt.datasets.base import open_dataset
    from affectgpt.evaluation.metrics.base import METRICS

    return open_dataset(config, name).scored_row({task: METRICS.get(task).truth_column for task in METRICS.names()})


def named_one_by_one(args: argparse.Namespace) -> bool:
    """True where the user named data sets, so that one without results is an error."""
    return args.datasets.strip().lower() not in (ALL, "inferencedata")


def score(
    args: argparse.Namespace,
    rows: Sequence[DatasetRow],
    paths: ScoringPaths,
    lexicon: Lexicon,
    *,
    extraction: str | None,
) -> int:
    """Score a run, or compare several, and report."""
    if args.compare or args.seeds:
        return compare(args, rows, paths, lexicon, extraction=extraction)
    from affectgpt.evaluation.results import CheckpointChoice
    from affectgpt.evaluation.score import score_run

    run_scores = score_run(
        rows,
        paths,
        lexicon,
        run=args.run,
        choice=CheckpointChoice.parse(args.checkpoints),
        extraction=extraction,
        grouping=args.grouping,
        allow_missing=args.allow_missing,
        optional=not named_one_by_one(args),
        draws=args.bootstrap,
        permutations=args.permutations,
    )
    return report(args, run_scores)


def score_answers(
    args: argparse.Namespace, rows: Sequence[DatasetRow], paths: ScoringPaths, lexicon: Lexicon
) -> RunScores:
    """Score one file of answers without writing anything, labels read directly."""
    from affectgpt.evaluation import results
    from affectgpt.evaluation.extract import direct_items
    from affectgpt.evaluation.lexicon import grouping_of
    from affectgpt.evaluation.score import RunScores, make_metric, score_items

    path, row = Path(args.answers), one_dataset(args, rows)
    metric = make_metric(row, grouping_of(lexicon, args.grouping))
    truth = paths.truth(row)
    run_scores, answers = RunScores(path.name, lexicon, args.grouping), None
    if results.holds_items(path):
        items, extractor = results.read_items(path), results.describe(path)
    else:
        answers = results.read_answer_table(path)
        items, unread = direct_items(answers, polarity=metric.polarity)
        extractor = results.DIRECT
        if unread:
            run_scores.notes.append(
                f"{len(unread)} of {len(answers)} answers have no form that can be read directly and count as no "
                f"label (first: {', '.join(unread[:3])}); evaluation.py --answers … "
                "--model-path DIR reads them with a language model"
            )
    result = score_items(items, truth, metric, source=path, checkpoint=path.stem, allow_missing=args.allow_missing)
    result.extractor, result.answers = extractor, answers
    run_scores.add_dataset(truth, [result], draws=args.bootstrap, permutations=args.permutations)
    return run_scores


def one_dataset(args: argparse.Namespace, rows: Sequence[DatasetRow]) -> DatasetRow:
    """The data set that ``--answers`` belongs to."""
    from affectgpt.core.errors import ConfigError

    if len(rows) != 1:
        raise ConfigError("--answers holds the answers on one data set: say which with --datasets NAME")
    return rows[0]


def compare(
    args: argparse.Namespace,
    rows: Sequence[DatasetRow],
    paths: ScoringPaths,
    lexicon: Lexicon,
    *,
    extraction: str | None,
) -> int:
    """Paired test between two runs, or the spread over training seeds."""
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.files import write_json
    from affectgpt.evaluation import report
    from affectgpt.evaluation.compare import Sources, compare_runs, compare_seeds

    if args.compare and args.seeds:
        raise ConfigError("--compare and --seeds: give one of the two")
    sources = Sources(
        rows, paths, lexicon,
        checkpoints=args.checkpoints, extraction=extraction, grouping=args.grouping, allow_missing=args.allow_missing,
        optional=not named_one_by_one(args),
    )  # fmt: skip
    if args.compare:
        paired = compare_runs(args.compare, sources)
        text, value = report.comparison_table(paired), report.comparison_dict(paired)
    else:
        seeds = compare_seeds(args.seeds, sources, draws=args.bootstrap)
        text, value = report.seeds_table(seeds), report.seeds_dict(seeds)
    print(text)
    if args.json:
        write_json(args.json, value)
    return 0


def report(args: argparse.Namespace, run_scores: RunScores) -> int:
    """Print the table and write the files asked for."""
    from affectgpt.core.files import write_json, write_text
    from affectgpt.evaluation import report

    print(report.table(run_scores))
    if line := report.unknown_line(run_scores):
        print(line)
    if args.all_metrics:
        print(report.all_metrics(run_scores))
    if args.json:
        write_json(args.json, report.as_dict(run_scores))
    if args.html:
        from affectgpt.evaluation.report_html import page

        write_text(args.html, page(run_scores))
    if args.latex == "-":
        print("\n" + report.latex(run_scores))
    elif args.latex:
        write_text(args.latex, report.latex(run_scores) + "\n")
    if args.unknown_labels:
        write_text(args.unknown_labels, report.unknown_csv(run_scores))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
