"""Train a model: the published ``train.py``."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from affectgpt.cli.common import add_config_arguments, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train AffectGPT from a configuration; checkpoints go to output/<config name>/<job>/.",
    )
    add_config_arguments(parser)
    return parser


def new_job_folder(root: Path, name: str) -> Path:
    """A new folder for a run: ``<config name>_<YYYYMMDDHHM>`` (11 digits, wire), with ``_2`` … where that is taken."""
    job = root / f"{name}_{datetime.now().strftime('%Y%m%d%H%M')[:11]}"
    folder, number = job, 1
    while folder.exists():
        number += 1
        folder = job.with_name(f"{job.name}_{number}")
    folder.mkdir(parents=True)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Parse, check what can be checked before weights are loaded, build, train."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config, to_dict
    from affectgpt.core.errors import ConfigError
    from affectgpt.core.files import write_json
    from affectgpt.core.runtime import logger, pick_device, seed_everything, setup_logging, world_size

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    device = pick_device(config.run.device)
    if world_size() > 1:
        raise ConfigError(
            f"started as one of {world_size()} processes, but training runs in one: start it without torchrun"
        )
    if not config.datasets:
        raise ConfigError(f"{args.cfg_path}: names no data set under datasets:")

    from affectgpt.data.loader import training_batches
    from affectgpt.modeling.build import build_model, build_preparation
    from affectgpt.training.loop import train

    preparation = build_preparation(config, training=True)
    batches = training_batches(
        config,
        tokenizer=preparation.tokenizer,
        transforms=preparation.transforms,
        n_tokens=preparation.n_tokens,
    )
    for name, count in batches.counts.items():
        logger.info("%s: %d training samples", name, count)
    seed_everything(config.run.seed)
    model = build_model(config, device=device, tokenizer=preparation.tokenizer)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s on %s: %s trained parameters", config.name, device, f"{trained:,}")

    output_dir = new_job_folder(Path(config.paths.output_root) / config.name, config.name)
    write_json(output_dir / "config.json", to_dict(config))
    batches.failures.path = output_dir / "failed.csv"  # what run.on_error: skip leaves out
    latest = train(model=model, config=config, batches=batches, output_dir=output_dir, device=device)
    logger.info("done: %s", latest)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
