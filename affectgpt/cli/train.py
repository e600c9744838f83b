"""Train a model: the published ``train.py``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.cli.common import add_config_arguments, run_cli
from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
    from affectgpt.processing.data import BatchStream, FailureLog
    from affectgpt.training.objectives.grpo import Rollouts
    from affectgpt.training.run_state import Resumed
    from affectgpt.training.validation import HeldOut, Score


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


def lock_folder(folder: Path, *, locks: ExitStack) -> None:
    """Lock a folder for this training until ``locks`` is closed; the first rank does it for all.

    Raises ConfigError, on every rank, when another process has it.
    """
    from affectgpt.core.files import lock_holder, locked
    from affectgpt.core.runtime import rank
    from affectgpt.training.distributed import gather

    refused = None
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not locks.enter_context(locked(folder, wait=False)):
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
    """Raise DataError when there is no folder for data sets at all."""
    if not root.is_dir():
        if "demo" in root.parts:
            raise DataError(f"paths.dataset_root: no folder {root}; the demo's are made by `make demo`")
        raise DataError(
            f"paths.dataset_root: no folder {root}; the data sets go there, or set it to where they are (docs/data.md "
            "says where each comes from; affectgpt check_data reports what is missing)"
        )


@dataclass
class Job:
    """Everything that a command needs, built."""

    config: Config
    device: torch.device
    dry_run: bool
    resumed: Resumed | None
    model: AffectGPTForConditionalGeneration
    batches: BatchStream | Rollouts
    counts: dict[str, int]  # data set → samples
    made_from: dict[str, Any]  # hashes of training rows and encoder weights
    failures: FailureLog
    held_out: HeldOut
    score: Score | None
    source: str = ""  # the configuration's file


def main(argv: list[str] | None = None) -> int:
    """Check, build, run."""
    args = build_parser().parse_args(argv)

    from affectgpt.config.load import load_config
    from affectgpt.core.runtime import setup_logging

    setup_logging()
    config = load_config(args.cfg_path, args.options)
    device = check(config, source=args.cfg_path, dry_run=args.dry_run)

    from affectgpt.training.distributed import process_group
    from affectgpt.training.stopping import explained

    with process_group(config.run, device), explained(), ExitStack() as locks:
        job = build(config, device=device, dry_run=args.dry_run, locks=locks)
        return run(replace(job, source=args.cfg_path), locks=locks) if job is not None else 0


def check(config: Config, *, source: str, dry_run: bool) -> torch.device:
    """Check what can be checked before anything is read; return the device to use. ``source``: the configuration's
    file.

    Raises ConfigError and DataError naming file or key.
    """
    from affectgpt.core.runtime import pick_device

    run = config.run
    if not config.datasets:
        raise ConfigError(f"{source}: names no data set under datasets:")
    if run.train_splits != ("train",):
        raise ConfigError(f"run.train_splits is {list(run.train_splits)}; allowed: ['train']")
    device = pick_device(run.device)
    check_data_root(Path(config.paths.dataset_root))
    if _writes(config, dry_run):
        if run.output_dir:
            check_writable(Path(run.output_dir), key="run.output_dir")
        else:
            check_writable(Path(config.paths.output_root))

    from affectgpt.training.dry_run import check_attention, check_compiler, check_precision
    from affectgpt.training.objectives.base import OBJECTIVES
    from affectgpt.training.optim import get_schedule
    from affectgpt.training.progress import tensorboard_writer

    get_schedule(run)
    check_precision(config, device)
    check_compiler(run, device)
    check_attention(run, device)
    with config.naming("run.objective"):
        draws = OBJECTIVES.get(run.objective).draws
    if draws:
        from affectgpt.training.objectives.grpo import check_rollouts

        check_rollouts(config)
    if run.tensorboard:
        tensorboard_writer()
    return device


def build(config: Config, *, device: torch.device, dry_run: bool, locks: ExitStack) -> Job | None:
    """Build what is resumed, the data and the model; return None when nothing is left to train.

    What can be wrong with files is found before the weights are loaded. Raises ConfigError, DataError, CheckpointError.
    """
    from affectgpt.core.runtime import logger, rank, seed_everything
    from affectgpt.modeling.build import build_model
    from affectgpt.processing.data import training_batches, validation_batches
    from affectgpt.processing.processor import AffectGPTProcessor
    from affectgpt.training.dry_run import check_memory
    from affectgpt.training.objectives.base import OBJECTIVES
    from affectgpt.training.run_state import check_made_from, made_from

    resumed = None if dry_run else _find_resume(config, locks=locks)
    if resumed is not None and not config.run.evaluate and _is_finished(config, resumed):
        return None
    data: BatchStream | Rollouts
    draws = OBJECTIVES.get(config.run.objective).draws
    if draws:
        from affectgpt.training.objectives.grpo import Rollouts

        data = Rollouts(config, lazy=dry_run)
        processor = data.processor
    else:
        processor = AffectGPTProcessor.from_config(config, training=True, augment=True)
        data = training_batches(config, processor=processor)
    made = made_from(config, data.samples)
    if resumed is not None:
        check_made_from(resumed, made)
    held_out = validation_batches(config, processor=AffectGPTProcessor.from_config(config, training=True))
    for name, count in data.counts.items():
        logger.info("%s: %d training samples", name, count)
    for name, part in held_out.items():
        logger.info("%s: %d held-out samples", name, sum(part.counts.values()))
    scored = None
    if not dry_run and config.run.score_every:
        from affectgpt.cli.training_scores import training_scores

        scored = training_scores(config, processor=AffectGPTProcessor.from_config(config), device=device)
    if config.run.evaluate and not held_out and scored is None:
        raise ConfigError(
            "run.evaluate: nothing to measure; set run.valid_splits, or run.score_every with run.score_datasets"
        )
    # With stored features for everything, the encoders are not even loaded.
    needed = data.media.union(*(part.media for part in held_out.values()))
    encoders = bool(needed) or config.run.score_every > 0
    check_memory(config, device, encoders=encoders)
    seed_everything(config.run.seed)  # the same connectors on every rank
    sharded = config.run.parallel == "fsdp2"
    model = build_model(config, device=device, tokenizer=processor.tokenizer, sharded=sharded, encoders=encoders)
    seed_everything(config.run.seed + rank())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s on %s: %s trained parameters", config.name, device, f"{trained:,}")
    batches: Any = data.bind(model, device) if draws else data  # type: ignore[union-attr]
    return Job(
        config=config, device=device, dry_run=dry_run, resumed=resumed, model=model, batches=batches,
        counts=data.counts, made_from=made, failures=data.failures,
        held_out={name: part.__iter__ for name, part in held_out.items()},
        score=scored(model) if scored is not None else None,
    )  # fmt: skip


def run(job: Job, *, locks: ExitStack) -> int:
    """Dry run, evaluation (``run.evaluate``) or training; the exit status."""
    from affectgpt.core.runtime import rank
    from affectgpt.training.dry_run import dry_run
    from affectgpt.training.validation import evaluate

    if job.dry_run:
        report = dry_run(model=job.model, config=job.config, batches=job.batches, device=job.device)
    elif job.config.run.evaluate:
        values = evaluate(
            model=job.model, config=job.config, device=job.device, resumed=job.resumed, held_out=job.held_out,
            score=job.score,
        )  # fmt: skip
        report = "\n".join(f"{name:<40} {value:.4f}" for name, value in values.items())
    else:
        return _train(job, output_dir=_job_folder(job.config, job.resumed, locks))
    if rank() == 0:
        print(report)
    return 0


def _train(job: Job, *, output_dir: Path) -> int:
    """Train, with a record of how it ended."""
    from affectgpt.core.runtime import logger, rank, world_size
    from affectgpt.media.video import video_reader
    from affectgpt.processing.data import BatchStream
    from affectgpt.training.loop import train
    from affectgpt.training.progress import draw_training
    from affectgpt.training.run_state import Record, revisions_of
    from affectgpt.training.stopping import Interrupted

    logger.info("writing to %s", output_dir)
    main_rank = rank() == 0
    # What run.on_error: skip leaves out; each rank has samples of its own.
    job.failures.write_to(output_dir / ("failed.csv" if main_rank else f"failed.{rank()}.csv"))
    if main_rank and not isinstance(job.batches, BatchStream):
        job.batches.notes = output_dir
    record = Record(
        output_dir / "run.json" if main_rank else None,
        config=job.config, device=job.device, counts=job.counts, video_reader=video_reader(),
        world_size=world_size(), revisions=revisions_of(job.resumed),
    )  # fmt: skip
    try:
        latest = train(
            model=job.model, config=job.config, batches=job.batches, output_dir=output_dir, device=job.device,
            resumed=job.resumed, held_out=job.held_out, score=job.score, made_from=job.made_from,
        )  # fmt: skip
    except Interrupted as interrupted:
        record.end("stopped")
        logger.info("%s", interrupted)
        return interrupted.status
    except Exception as error:
        record.end("failed", error=str(error))
        raise
    record.end("finished", checkpoint=latest.name)
    if main_rank:
        draw_training(output_dir)
    logger.info("done: %s", latest)
    if main_rank:
        picture = output_dir / "training.png"
        logger.info(
            "curves: %s; answers next: python inference_hybird.py --zeroshot --dataset=inferenceData --cfg-path=%s "
            "--options inference.ckpt_root=%s", picture, job.source, output_dir,
        )  # fmt: skip
    return 0


def _writes(config: Config, dry_run: bool) -> bool:
    """Return whether a command writes files, as training does."""
    return not dry_run and not config.run.evaluate


def _find_resume(config: Config, *, locks: ExitStack) -> Resumed | None:
    """Find what is resumed; from here on nobody else writes where training does."""
    from affectgpt.core.runtime import world_size
    from affectgpt.training.run_state import find_resume

    hold = partial(lock_folder, locks=locks) if _writes(config, dry_run=False) else None
    return find_resume(config, world_size=world_size(), hold=hold)


def _is_finished(config: Config, resumed: Resumed) -> bool:
    """Return whether nothing is left to train; raise ConfigError where a file was asked for by name."""
    from affectgpt.core.runtime import logger

    if resumed.position.epoch <= config.run.max_epoch:
        return False
    done = f"{resumed.path} is of epoch {resumed.position.epoch - 1}, and run.max_epoch is {config.run.max_epoch}"
    if config.run.resume_ckpt_path != "auto":
        raise ConfigError(f"run.resume_ckpt_path: {done}: nothing is left to train")
    logger.info("%s: nothing is left to train", done)
    return True


def _job_folder(config: Config, resumed: Resumed | None, locks: ExitStack) -> Path:
    """The folder of this run, locked, the same on every rank; holds the resolved configuration."""
    from affectgpt.config.paths import runs_folder
    from affectgpt.config.schema import to_dict
    from affectgpt.core.files import write_json
    from affectgpt.core.runtime import logger, rank
    from affectgpt.training.distributed import gather
    from affectgpt.training.run_state import unfinished_run

    folder = None if resumed is None else resumed.folder
    if folder is None:
        earlier = unfinished_run(config) if rank() == 0 else None
        if earlier is not None:
            logger.warning(
                "%s was stopped before its end and is left as it is: this is a new run. To resume it instead, end this "
                "one and add --options run.resume_ckpt_path=%s (or =auto, the newest run)", earlier, earlier,
            )  # fmt: skip
        made = new_job_folder(runs_folder(config), config.name) if rank() == 0 else None
        folder = gather(made)[0]
        lock_folder(folder, locks=locks)
    if rank() == 0:
        write_json(folder / "config.json", to_dict(config))
    return folder


if __name__ == "__main__":
    sys.exit(run_cli(main))
