"""Train a model: the published ``train.py``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.cli.common import add_config_arguments, run_cli
from affectgpt.core.errors import ConfigError, DataError


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the published command."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train AffectGPT from a configuration; checkpoints go to output/<config name>/<job>/.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, run two steps on real data, print parameters, memory and hours, and leave",
    )
    return parser


def new_job_folder(root: Path, name: str) -> Path:
    """A new folder for a run: ``<config name>_<YYYYMMDDHHM>`` (11 digits, wire), with ``_2`` … where that is taken."""
    job = root / f"{name}_{datetime.now().strftime('%Y%m%d%H%M')[:11]}"
    folder, number = job, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = job.with_name(f"{job.name}_{number}")
        except OSError as error:
            raise ConfigError(f"paths.output_root or run.output_dir: cannot make {folder}: {error.strerror}") from error


def hold(folder: Path, held: ExitStack) -> None:
    """Lock a folder for this training until ``held`` is closed; the first rank does it for all.

    Raises ConfigError, on every rank, when another process has it.
    """
    from affectgpt.core.files import lock_holder, locked
    from affectgpt.core.runtime import rank
    from affectgpt.training.distributed import gather

    refused = None
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not held.enter_context(locked(folder, wait=False)):
            holder = lock_holder(folder)
            refused = (
                f"{folder}: another process{'' if holder is None else f' (pid {holder})'} trains there; wait for it or "
                "end it, or set another paths.output_root or run.output_dir"
            )
    refused = gather(refused)[0]
    if refused is not None:
        raise ConfigError(refused)


def check_writable(root: Path, *, key: str = "paths.output_root") -> None:
    """Raises ConfigError naming ``key`` when nothing can be written below ``root`` (which need not exist yet)."""
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: {root} cannot be written to ({there}: {error.strerror}); give another folder, or "
            "change its permissions"
        ) from error


def check_data_root(root: Path) -> None:
    """Raises DataError when there is no folder for data sets at all."""
    if not root.is_dir():
        if "demo" in root.parts:
            raise DataError(f"paths.dataset_root: no folder {root}; the demo's are made by `make demo`")
        raise DataError(
            f"paths.dataset_root: no folder {root}; the data sets go there, or set it to where they are (affectgpt "
            "check_data tells what is missing)"
        )


def main(argv: list[str] | None = None) -> int:
    """Parse, check what can be checked before weights are loaded, build, train."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config
    from affectgpt.core.runtime import logger, pick_device, rank, seed_everything, setup_logging, world_size

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    if not config.datasets:
        raise ConfigError(f"{args.cfg_path}: names no data set under datasets:")
    if config.run.train_splits != ("train",):
        raise ConfigError(f"run.train_splits is {list(config.run.train_splits)}; allowed: ['train']")
    device = pick_device(config.run.device)
    check_data_root(Path(config.paths.dataset_root))
    writes = not args.dry_run and not config.run.evaluate
    if writes:
        if config.run.output_dir:
            check_writable(Path(config.run.output_dir), key="run.output_dir")
        else:
            check_writable(Path(config.paths.output_root))

    import torch

    from affectgpt.cli.training_scores import training_scores
    from affectgpt.media.video import video_reader
    from affectgpt.modeling.build import build_model
    from affectgpt.processing.loader import training_batches
    from affectgpt.processing.processor import AffectGPTProcessor
    from affectgpt.processing.validation import validation_batches
    from affectgpt.training.distributed import lost_peer, process_group
    from affectgpt.training.evaluate import evaluate
    from affectgpt.training.interrupt import Interrupted
    from affectgpt.training.loop import train
    from affectgpt.training.optim import get_schedule
    from affectgpt.training.preflight import check_attention, check_compiler, check_memory, out_of_memory
    from affectgpt.training.progress import draw_training, tensorboard_writer
    from affectgpt.training.record import Record
    from affectgpt.training.rehearsal import rehearse
    from affectgpt.training.resume import find_resume, revisions_of

    get_schedule(config.run)
    check_compiler(config.run, device)
    check_attention(config.run, device)
    if config.run.tensorboard:
        tensorboard_writer()
    with process_group(config.run, device), ExitStack() as held:
        resumed = None
        if not args.dry_run:
            take = partial(hold, held=held) if writes else None
            resumed = find_resume(config, world_size=world_size(), hold=take)
        if writes and resumed is not None and resumed.position.epoch > config.run.max_epoch:
            done = (
                f"{resumed.path} is of epoch {resumed.position.epoch - 1}, and run.max_epoch is {config.run.max_epoch}"
            )
            if config.run.resume_ckpt_path != "auto":
                raise ConfigError(f"run.resume_ckpt_path: {done}: nothing is left to train")
            logger.info("%s: nothing is left to train", done)
            return 0
        processor = AffectGPTProcessor.from_config(config, training=True, augment=True)
        batches = training_batches(config, processor=processor)
        held_out = validation_batches(config, processor=AffectGPTProcessor.from_config(config, training=True))
        for name, count in batches.counts.items():
            logger.info("%s: %d training samples", name, count)
        for name, part in held_out.items():
            logger.info("%s: %d held-out samples", name, sum(part.counts.values()))
        scored = None
        if not args.dry_run:
            scored = training_scores(config, processor=AffectGPTProcessor.from_config(config), device=device)
        if config.run.evaluate and not held_out and scored is None:
            raise ConfigError(
                "run.evaluate: nothing to measure; set run.valid_splits, or run.score_every with run.score_datasets"
            )
        check_memory(config, device)
        seed_everything(config.run.seed)  # the same connectors on every rank
        place = torch.device("cpu") if config.run.parallel == "fsdp2" else None
        # With stored features for everything, the encoders are not even loaded.
        needed = batches.media.union(*(part.media for part in held_out.values()))
        model = build_model(
            config, device=device, tokenizer=processor.tokenizer, place=place,
            encoders=bool(needed) or config.run.score_every > 0,
        )  # fmt: skip
        seed_everything(config.run.seed + rank())
        score = scored(model) if scored is not None else None
        held_out_batches = {name: part.__iter__ for name, part in held_out.items()}
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info("%s on %s: %s trained parameters", config.name, device, f"{trained:,}")
        if args.dry_run:
            try:
                report = rehearse(model=model, config=config, batches=batches, device=device)
            except RuntimeError as error:
                if (told := out_of_memory(error)) is None:
                    raise
                raise told from error
            if rank() == 0:
                print(report)
            return 0
        if config.run.evaluate:
            values = evaluate(
                model=model, config=config, device=device, resumed=resumed, held_out=held_out_batches, score=score
            )
            if rank() == 0:
                print("\n".join(f"{name:<40} {value:.4f}" for name, value in values.items()))
            return 0

        output_dir = _job_folder(config, resumed, held)
        logger.info("writing to %s", output_dir)
        main_rank = rank() == 0
        # What run.on_error: skip leaves out; each rank has samples of its own.
        batches.failures.path = output_dir / ("failed.csv" if main_rank else f"failed.{rank()}.csv")
        record = Record(
            output_dir / "run.json" if main_rank else None,
            config=config, device=device, counts=batches.counts, video_reader=video_reader(), world_size=world_size(),
            revisions=revisions_of(resumed),
        )  # fmt: skip
        try:
            latest = train(
                model=model, config=config, batches=batches, output_dir=output_dir, device=device, resumed=resumed,
                held_out=held_out_batches, score=score,
            )  # fmt: skip
        except Interrupted as interrupted:
            record.end("stopped")
            logger.info("%s", interrupted)
            return interrupted.status
        except Exception as error:
            record.end("failed", error=str(error))
            told = (out_of_memory(error) or lost_peer(error)) if isinstance(error, RuntimeError) else None
            if told is None:
                raise
            raise told from error
        record.end("finished", checkpoint=latest.name)
        if main_rank:
            draw_training(output_dir)
        logger.info("done: %s", latest)
    return 0


def _job_folder(config: Any, resumed: Any, held: ExitStack) -> Path:
    """The folder of this run, locked, the same on every rank; holds the resolved configuration."""
    from affectgpt.config.paths import runs_folder
    from affectgpt.config.schema import to_dict
    from affectgpt.core.files import write_json
    from affectgpt.core.runtime import rank
    from affectgpt.training.distributed import gather

    folder = None if resumed is None else resumed.folder
    if folder is None:
        made = new_job_folder(runs_folder(config), config.name) if rank() == 0 else None
        folder = gather(made)[0]
        hold(folder, held)
    if rank() == 0:
        write_json(folder / "config.json", to_dict(config))
    return folder


if __name__ == "__main__":
    sys.exit(run_cli(main))
