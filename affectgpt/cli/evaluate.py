"""Labels out of a run's answers where they are missing, then scores: the published ``evaluation.py``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli import score as scoring
from affectgpt.cli.common import run_cli

if TYPE_CHECKING:
    from affectgpt.datasets.table import DatasetRow
    from affectgpt.evaluation.extract import Extractor
    from affectgpt.evaluation.score import ScoringPaths

LONGEST_ENDING = "-openset-direct-sentiment.meta.json"  # of the files that an answers file gets beside it


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="evaluation.py",
        description="Extract emotion labels from a run's answers where they are missing, then score them.",
        epilog="With labels extracted already, evaluation-scoreonly.py gives the same scores without any model.",
    )
    scoring.add_scoring_arguments(parser)
    extraction = parser.add_argument_group("extraction")
    extraction.add_argument(
        "--extractor",
        metavar="NAME",
        default="vllm" if importlib.util.find_spec("vllm") else "transformers",
        help="a language model through vllm (default where installed), transformers or an OpenAI-compatible server; "
        "direct: no model, for answers of the trained form (files …-openset-direct.npz); or your own (--imports)",
    )
    extraction.add_argument(
        "--model-path",
        default="models/Qwen2.5-7B-Instruct",
        metavar="DIR",
        help="folder of the language model, for vllm and transformers (models/Qwen2.5-7B-Instruct)",
    )
    extraction.add_argument("--base-url", metavar="URL", help="for openai: http://host:8000/v1")
    extraction.add_argument("--model", metavar="NAME", help="for openai: the model's name on that server")
    extraction.add_argument("--seed", type=int, default=42, help="of the sampling (42)")
    extraction.add_argument(
        "--batch-size", type=int, metavar="N", help="answers at once (openai: requests at once); default by extractor"
    )
    extraction.add_argument(
        "--overwrite", action="store_true", help="extract again where files made with other settings stand"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, extract what is missing, score, report."""
    args = build_parser().parse_args(argv)
    from dataclasses import replace

    from affectgpt.core.runtime import setup_logging
    from affectgpt.evaluation.extract import EXTRACTORS
    from affectgpt.evaluation.results import LLM

    setup_logging()
    rows, paths, lexicon = scoring.open_inputs(args)
    if args.answers:
        import_run(args, rows, paths)
        paths = replace(paths)
    with open_extractor(args) as extractor:
        for run in args.compare or args.seeds or [args.run]:
            extract_run(args, rows, paths, extractor, run=run)
    paths = replace(paths)  # look for result files again: labels have been added
    return scoring.score(args, rows, paths, lexicon, extraction=args.extractor if args.extractor in EXTRACTORS else LLM)


def open_extractor(args: argparse.Namespace) -> Extractor:
    """The extractor that the arguments name; no model is loaded yet."""
    from affectgpt.core.errors import ConfigError
    from affectgpt.evaluation.extract import get_extractor
    from affectgpt.textllm.base import CLIENTS, Sampling

    at_once = {"openai": "concurrency", "transformers": "batch_size", "vllm": "max_num_seqs"}
    settings = {}
    if args.extractor == "openai":
        if not (args.base_url and args.model):
            raise ConfigError("--extractor openai needs --base-url URL and --model NAME, as the server calls it")
        settings = {"base_url": args.base_url, "model": args.model}
    elif args.extractor in CLIENTS:
        settings = {"model": args.model_path}
    if args.batch_size is not None and args.extractor in at_once:
        settings[at_once[args.extractor]] = args.batch_size
    return get_extractor(args.extractor, sampling=Sampling(seed=args.seed), **settings)


def import_run(args: argparse.Namespace, rows: Sequence[DatasetRow], paths: ScoringPaths) -> None:
    """Put ``--answers FILE`` among the results as a run of its own, so that its labels are kept and can be compared."""
    from affectgpt.core.errors import ConfigError, DataError
    from affectgpt.core.names import check_name
    from affectgpt.core.runtime import logger
    from affectgpt.evaluation import results

    path, row = Path(args.answers), scoring.one_dataset(args, rows)
    if args.compare or args.seeds:
        raise ConfigError(
            "--answers and --compare or --seeds: score the answers first, then compare the run that this makes"
        )
    if results.holds_items(path):
        raise ConfigError(f"{path}: holds extracted labels already; score it with evaluation-scoreonly.py --answers")
    args.run = check_name(args.run or path.stem, source="--run" if args.run else path, what="run name", suffix="")
    stem = check_name(path.stem, source=path, what="file name", suffix=LONGEST_ENDING)
    target = results.results_folder(paths.base_root, row) / args.run / f"{stem}.npz"
    answers = results.read_answer_table(path)
    if not target.exists():
        results.write_answers(target, answers)
    elif results.read_answers(target) != answers:
        raise DataError(f"{target}: holds other answers; give these a name of their own with --run NAME")
    args.checkpoints = path.stem
    logger.info("answers of %s are kept as %s", path, target)


def extract_run(
    args: argparse.Namespace, rows: Sequence[DatasetRow], paths: ScoringPaths, extractor: Extractor, *, run: str | None
) -> None:
    """Extract labels of a run's answers, data set by data set, where they are missing."""
    from affectgpt.evaluation.compare import MEAN
    from affectgpt.evaluation.extract import extract_file
    from affectgpt.evaluation.results import CheckpointChoice
    from affectgpt.evaluation.score import pick_files

    checkpoints = args.checkpoints
    if (args.compare or args.seeds) and run:
        run, _, checkpoint = run.strip("/").partition("/")
        checkpoints = checkpoint if checkpoint not in ("", MEAN) else checkpoints
    _, files, _ = pick_files(
        rows, paths, run=run, choice=CheckpointChoice.parse(checkpoints), optional=not scoring.named_one_by_one(args)
    )
    for row in rows:
        for file in files.get(row.name, ()):
            if "" in file.kinds:  # of released results only the labels may have been downloaded
                extract_file(
                    file.answers, task=row.task, extractor=extractor, overwrite=args.overwrite,
                    allow_empty=args.allow_missing,
                )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_cli(main))
