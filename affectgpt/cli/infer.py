"""Answers of checkpoints on data sets: the published ``inference_hybird.py``."""

from __future__ import annotations

import argparse
import sys

from affectgpt.cli.common import add_config_arguments, run_cli


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that both published inference commands have."""
    add_config_arguments(parser)
    parser.add_argument(
        "--zeroshot", action="store_true", help="ask for open-vocabulary labels (what happens anyway; as published)"
    )
    parser.add_argument("--outside_user_message", metavar="TEXT", help="ask this instead")
    parser.add_argument(
        "--outside_face_or_frame", metavar="MODE", help="input mode, instead of that of the training data in the file"
    )


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="inference_hybird.py",
        description="Answer every test clip of data sets with the chosen checkpoints; results that exist are kept.",
    )
    add_inference_arguments(parser)
    parser.add_argument(
        "--dataset",
        default="inferenceData",
        metavar="NAMES",
        help="data sets separated by commas, or inferenceData: the nine of MER-UniBench (default)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, then run every chosen checkpoint over every data set."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config
    from affectgpt.config.paths import select_checkpoints
    from affectgpt.core.runtime import logger, setup_logging
    from affectgpt.data.table import parse_names
    from affectgpt.inference.benchmark import Benchmark, inference_device

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    names = parse_names(args.dataset)
    checkpoints = select_checkpoints(config)
    device = inference_device(config)
    logger.info("%d checkpoints, data sets: %s", len(checkpoints), ", ".join(names))
    benchmark = Benchmark(config, device=device, mode=args.outside_face_or_frame, question=args.outside_user_message)
    for checkpoint in checkpoints:
        for name in names:
            benchmark.run(name, checkpoint)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
