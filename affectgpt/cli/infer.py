"""Answers of checkpoints on data sets: the published ``inference_hybird.py``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.cli.common import add_config_arguments, run_cli

if TYPE_CHECKING:
    from affectgpt.config.schema import Config


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that both published inference commands have."""
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--hf", metavar="DIR",
        help="a folder that affectgpt export --hf wrote, instead of a checkpoint; --cfg-path is then needed "
        "for data sets of your own only",
    )  # fmt: skip
    parser.add_argument(
        "--zeroshot", action="store_true", help="ask for open-vocabulary labels (what happens anyway; as published)"
    )
    parser.add_argument("--outside_user_message", metavar="TEXT", help="ask this instead")
    parser.add_argument(
        "--outside_face_or_frame", metavar="MODE", help="input mode, instead of that of the training data in the file"
    )


def load_inference_config(args: argparse.Namespace, options: Sequence[str]) -> Config:
    """The configuration of ``--cfg-path``, or with ``--hf`` alone the defaults; options laid over."""
    from affectgpt.config.load import default_config, load_config
    from affectgpt.core.errors import ConfigError

    if args.cfg_path:
        return load_config(args.cfg_path, options)
    if not args.hf:
        raise ConfigError("give --cfg-path FILE, or --hf DIR")
    return default_config(Path(args.hf).resolve().name, options)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command, and ours."""
    parser = argparse.ArgumentParser(
        prog="inference_hybird.py",
        description="Answer every test clip of data sets with the chosen checkpoints; results that exist are kept, "
        "and a command that was ended resumes where it stopped.",
    )
    add_inference_arguments(parser)
    parser.add_argument(
        "--dataset",
        default="inferenceData",
        metavar="NAMES",
        help="data sets separated by commas, of the table or of datasets: in the configuration; inferenceData: the "
        "nine of MER-UniBench (default)",
    )
    parser.add_argument(
        "--both",
        action="store_true",
        help="ask for a description too; those results go to {inference.base_root}-description-{data set}",
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true",
        help="leave out clips whose files cannot be read (…-answers.failed.csv lists them, scores count them); the "
        "same as inference.on_error=skip. Without it the first one ends the run",
    )  # fmt: skip
    parser.add_argument("--export", choices=("csv", "jsonl"), help="write each result as a table too")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="be process I (from 0) of N that share the work; torchrun says so by itself",
    )
    return parser


def parse_shard(text: str | None) -> tuple[int, int]:
    """``I/N`` → rank and world size; without it those of torchrun. Raises ConfigError."""
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import rank, world_size

    if text is None:
        return rank(), world_size()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard {text}: expected I/N with I below N, e.g. 0/4, 1/4, 2/4 and 3/4")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> int:
    """Parse, then run every chosen checkpoint over every data set."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.paths import CheckpointFile, select_checkpoints
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.runtime import logger, setup_logging
    from affectgpt.datasets.table import parse_names

    setup_logging()
    if args.both and args.outside_user_message:
        raise ConfigError("--both asks the two published questions; --outside_user_message another: give one of them")
    skip = ["inference.on_error=skip"] if args.skip_unreadable else []
    config = load_inference_config(args, [*args.options, *skip])
    names = parse_names(args.dataset, custom=config.datasets)
    checkpoints = [] if args.hf else select_checkpoints(config)
    rank, world_size = parse_shard(args.shard)
    if config.inference.samples > 1 and config.inference.decoding == "greedy":
        raise ConfigError("inference.samples: greedy answers are all the same; set inference.decoding=sampling")
    draws = [None] if config.inference.samples == 1 else list(range(1, config.inference.samples + 1))

    from affectgpt.evaluation.results import export
    from affectgpt.inference.benchmark import Benchmark
    from affectgpt.inference.session import inference_device
    from affectgpt.processing.questions import check_asked, render_question

    if args.hf:
        from affectgpt.modeling.build import exported_weights

        checkpoints = [CheckpointFile(exported_weights(args.hf), epoch=0, loss=0.0)]
    base_root = config.results_root
    questions = [(args.outside_user_message or render_question("ovlabel"), base_root)]
    if args.both:
        questions.append((render_question("description"), f"{base_root}-description"))
    benchmark = Benchmark(
        config,
        device=inference_device(config),
        mode=args.outside_face_or_frame,
        hf=args.hf,
        rank=rank,
        world_size=world_size,
    )
    logger.info("%d checkpoints, data sets: %s", len(checkpoints), ", ".join(names))
    for name in names:
        if not args.outside_user_message:
            check_asked(config, name)
        benchmark.samples(name)  # what is missing shows before the model is loaded
    for checkpoint in checkpoints:
        for name in names:
            for question, root in questions:
                for draw in draws:
                    written = benchmark.run(name, checkpoint, question=question, base_root=root, draw=draw)
                    if written is not None and args.export:
                        logger.info("%s", export(written, args.export))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
