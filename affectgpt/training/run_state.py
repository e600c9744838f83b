"""A run on disk: checkpoints, ``last.state`` from which it resumes, and ``run.json`` that says what made it.

``last.state`` holds a run between two steps: weights, optimizer, scaler, every random stream, and the position. A
checkpoint of the published layout (.pth) can be resumed too, at the epoch that follows it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from affectgpt.config.paths import checkpoint_name, list_checkpoints, runs_folder
from affectgpt.config.schema import Config, DatasetConfig, ModelConfig, to_dict
from affectgpt.core.errors import AffectGPTError, CheckpointError, ConfigError
from affectgpt.core.files import write_json
from affectgpt.core.provenance import REVISIONS, device_name, installed_versions
from affectgpt.core.runtime import logger
from affectgpt.core.types import Sample
from affectgpt.encoders.base import encoder_class, encoder_folder
from affectgpt.modeling.checkpoint import face_channels_unknown, read_checkpoint, trained_state, write_checkpoint
from affectgpt.processing.features import weights_hash
from affectgpt.training.distributed import full_tensor, gather, is_main

STATE = "last.state"
# What the weights' shapes and meaning depend on; the rest of the model section may change between runs.
_SAME_MODEL = [
    "llama_model", "acoustic_encoder", "visual_encoder", "multi_fusion_type", "video_fusion_type", "audio_fusion_type",
    "image_fusion_type", "num_audio_query_token", "num_video_query_token", "num_multi_query_token",
    "num_image_query_token", "lora_r", "audio_clip_spacing", "face_channels",
    "frozen_video_proj", "frozen_video_Qformer", "frozen_audio_Qformer", "frozen_audio_proj", "frozen_multi_Qformer",
    "frozen_multi_llama_proj", "frozen_llm",
]  # fmt: skip
# What the order of the samples depends on: a position means nothing without it.
_SAME_ORDER = ["batch_size_train", "iters_per_epoch", "accum_grad_iters", "seed", "valid_ratio"]
# What may change, with a warning.
# The same of reinforcement learning: all of its section but what watches over it.
_MAY_CHANGE_GRPO = ("guard_labels", "guard_precision", "guard_window", "answers_at_once", "reader")
# Keys that change nothing that is learnt; a change of any other that is not named above is logged.
_NO_MATTER = {
    "task", "num_workers", "log_freq", "resume_ckpt_path", "evaluate", "output_dir", "on_error", "save_state_every",
    "keep_last", "tensorboard", "valid_every", "score_datasets", "score_every", "score_samples", "device", "runner",
    "test_splits", "world_size", "dist_url", "distributed", "batch_size_eval", "trust_remote_code", "ckpt", "ckpt_2",
    "ckpt_3", "model_type", "text_processor",
}  # fmt: skip


@dataclass
class Position:
    """Between two steps: ``step`` steps of ``epoch`` are done. Sums are of the finite losses of the epoch so far."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    bad_steps: int = 0  # so many last losses were not numbers

    def advance(self, loss: float) -> None:
        """One more step is done."""
        self.step += 1
        if math.isfinite(loss):
            self.loss_sum, self.loss_count, self.bad_steps = self.loss_sum + loss, self.loss_count + 1, 0
        else:
            self.bad_steps += 1

    @property
    def mean_loss(self) -> float:
        """Mean loss of the epoch so far; 0 if no loss was a number."""
        return self.loss_sum / max(self.loss_count, 1)


class Saver:
    """Writes a run's files to ``folder``; of several ranks the first one does. All ranks must call its methods."""

    def __init__(
        self,
        folder: Path,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        config: Mapping[str, Any],
        keep_last: int,
        device: torch.device,
        batches: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.batches = batches  # the state of data that depends on the model in training
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.config = dict(config)
        self.keep_last = keep_last
        self.device = device
        if is_main():
            for leftover in folder.glob(".*.tmp*"):  # of a save that was killed
                leftover.unlink()

    def epoch(self, epoch: int, loss: float) -> Path:
        """The checkpoint of a finished epoch (wire); older ones go as ``run.keep_last`` says, epoch 0 never."""
        path = self.folder / checkpoint_name(epoch, loss)
        content = {**self._content(), "epoch": epoch}
        if is_main():
            self._write(path, content)
            for file in list_checkpoints(self.folder):
                if self.keep_last and 0 < file.epoch <= epoch - self.keep_last:
                    file.path.unlink()
        return path

    def state(self, position: Position) -> Path:
        """``last.state``: everything that the next step depends on."""
        path = self.folder / STATE
        content = {
            **self._content(),
            "epoch": position.epoch,
            "position": asdict(position),
            "random": gather(random_state(self.device)),
            **({} if self.batches is None else {"batches": gather(self.batches())}),
        }
        if is_main():
            self._write(path, content)
        return path

    def _content(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        return {
            "model": {name: full_tensor(tensor).detach().cpu() for name, tensor in trained_state(self.model).items()},
            "optimizer": {
                **optimizer,
                "state": {i: {k: full_tensor(v) for k, v in s.items()} for i, s in optimizer["state"].items()},
            },
            "config": self.config,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        """To a temporary name, fsynced, renamed. Raises AffectGPTError when the disk does not take it."""
        try:
            write_checkpoint(path, content)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__ or error
            free = shutil.disk_usage(self.folder).free / 1e9
            kept = [file.path.name for file in list_checkpoints(self.folder)][-1:]
            kept += [STATE] if (self.folder / STATE).exists() else []
            raise AffectGPTError(
                f"{path} could not be written ({cause}); {free:.2f} GB are free there. No partial file is left, and "
                f"no earlier file has changed (there: {', '.join(kept) or 'none'}). Make room (run.keep_last=2 keeps "
                "fewer checkpoints), then resume with run.resume_ckpt_path=auto."
            ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """All random streams of this process, as plain data."""
    kind, keys, at, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), at, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Undo ``random_state``."""
    random.setstate(state["python"])
    kind, keys, at, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), at, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@dataclass
class Resumed:
    """A file to resume, read and found to fit the configuration. ``folder``: where to resume, None for a new one."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    folder: Path | None

    @property
    def position(self) -> Position:
        """The position from which training resumes."""
        if "position" in self.content:
            return Position(**self.content["position"])
        return Position(epoch=int(self.content["epoch"]) + 1)

    def restore_random_state(self, device: torch.device) -> None:
        """Set this rank's random streams as they were; a checkpoint of the published layout has none."""
        if "random" in self.content:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            set_random_state(self.content["random"][rank], device)

    def restore_batches(self, batches: Any) -> None:
        """Give this rank's batches the state that they had; a checkpoint of the published layout has none."""
        if "batches" in self.content:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            batches.load_state_dict(self.content["batches"][rank])


def find_resume(config: Config, *, world_size: int, hold: Callable[[Path], None] | None = None) -> Resumed | None:
    """The file that ``run.resume_ckpt_path`` means, read and checked; None: a new run.

    ``auto`` resumes in the newest folder of this configuration that has a ``last.state`` or else a checkpoint. ``hold``
    is called with each folder that must not change from then on: for ``auto`` that of the configuration's runs, and the
    run's own, before it is read. All ranks must call this.
    Raises ConfigError and CheckpointError when the file is missing, damaged, or of another recipe.
    """
    asked = config.run.resume_ckpt_path
    if not asked:
        return None
    folder = None
    if asked == "auto":
        root = runs_folder(config)
        if hold is not None:
            hold(root)
        path = gather(_newest(config))[0]
        if path is None:
            logger.info("run.resume_ckpt_path: auto: nothing to resume in %s, a new run begins", root)
            return None
        folder = path.parent
    else:
        path = Path(asked)
        if path.is_dir():
            path = _of_folder(path) or path / STATE
        if path.name == STATE:
            folder = path.parent
    if hold is not None and folder is not None and folder.is_dir():
        hold(folder)
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        advice = "" if folder is None else _instead(path)
        raise CheckpointError(f"run.resume_ckpt_path: {error}{advice}") from error
    if "position" not in content and not isinstance(content.get("epoch"), int):
        raise CheckpointError(f"run.resume_ckpt_path: {path} has no epoch; load it with model.ckpt instead")
    _check_recipe(path, content, config, world_size=world_size)
    return Resumed(path, content, folder)


def _newest(config: Config) -> Path | None:
    found = [path for path in map(_of_folder, runs_folder(config).glob(f"{config.name}*")) if path is not None]
    return max(found, key=lambda path: (path.stat().st_mtime, path.parent.name), default=None)


def unfinished_run(config: Config) -> Path | None:
    """The newest run's folder of a configuration, where that run was stopped and can be resumed."""
    path = _newest(config)
    if path is None:
        return None
    try:
        record = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return path.parent if record.get("state") in ("stopped", "running", "failed") else None


def _of_folder(folder: Path) -> Path | None:
    """The file of a run's folder to resume."""
    state = folder / STATE
    if state.is_file():
        return state
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1].path if checkpoints else None


def _instead(damaged: Path) -> str:
    """Which whole checkpoint of a run's folder can be resumed in place of a damaged file, and how."""
    for file in reversed(list_checkpoints(damaged.parent)):
        if file.path != damaged:
            try:
                read_checkpoint(file.path)
            except CheckpointError:
                continue
            return (
                f". The checkpoint of epoch {file.epoch} there is whole; resume it in a new folder: --options "
                f"run.resume_ckpt_path={file.path}"
            )
    return ". No other checkpoint there is whole: start again without run.resume_ckpt_path"


def _check_recipe(path: Path, content: Mapping[str, Any], config: Config, *, world_size: int) -> None:
    theirs, ours = content.get("config") or {}, to_dict(config)
    defaults = asdict(ModelConfig())
    differences = []
    if "model" in theirs:
        for key in _SAME_MODEL:
            old = theirs["model"].get(key, defaults[key])
            if key not in theirs["model"] and key == "face_channels" and face_channels_unknown(theirs):
                logger.warning(
                    "%s: made by an earlier version, which gave face crops to the encoder as they were stored; from "
                    "here on it gets them as %s (model.face_channels)", path, ours["model"][key],
                )  # fmt: skip
            elif old != ours["model"][key]:
                differences.append(f"model.{key} was {old!r}, is {ours['model'][key]!r}")
    then = theirs.get("revisions") or {}
    otherwise = [step for step, number in REVISIONS.items() if then.get(step, 1) != number]
    if otherwise and "audio_clip_spacing" in theirs.get("model", {}):
        logger.warning(
            "%s was made by a version of this package that took these steps otherwise: %s", path, ", ".join(otherwise)
        )
    if "position" in content:
        for key in _SAME_ORDER:
            if theirs["run"][key] != ours["run"][key]:
                differences.append(f"run.{key} was {theirs['run'][key]!r}, is {ours['run'][key]!r}")
        if theirs["run"].get("objective", "sft") != ours["run"]["objective"]:
            old = theirs["run"].get("objective", "sft")
            differences.append(f"run.objective was {old!r}, is {ours['run']['objective']!r}")
        elif "batches" in content:
            changed = {k for k, v in ours["grpo"].items() if k not in _MAY_CHANGE_GRPO and theirs["grpo"].get(k) != v}
            differences += [f"grpo.{k} was {theirs['grpo'].get(k)!r}, is {ours['grpo'][k]!r}" for k in sorted(changed)]
        if _blocks(theirs) != _blocks(ours):
            differences.append(f"datasets were {theirs['datasets']}, are {ours['datasets']}")
        if len(content["random"]) != world_size:
            differences.append(f"it was made by {len(content['random'])} processes, now there are {world_size}")
        frames = [(m.get("vis_processor") or {}).get("train") for m in (theirs["model"], ours["model"])]
        if None not in frames and frames[0] != frames[1]:
            differences.append(f"model.vis_processor.train was {frames[0]}, is {frames[1]}")
        checked = {*_SAME_MODEL, *_SAME_ORDER, *_NO_MATTER, "objective", "vis_processor"}
        for section in ("model", "run"):
            for key, old in theirs[section].items():
                if key not in checked and key in ours[section] and old != ours[section][key]:
                    logger.warning("%s.%s was %r and is %r from here on", section, key, old, ours[section][key])
    if differences:
        raise ConfigError(
            f"run.resume_ckpt_path: {path} was made by another recipe: {'; '.join(differences)}. Set these keys as "
            "they were"
            + (", or resume an epoch's checkpoint_*.pth" if "position" in content else "")
            + ", or start again without run.resume_ckpt_path."
        )


def made_from(config: Config, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Hashes of what a run learns from: the rows of each data set (names, subtitles, labels), the encoders' weights."""
    rows = {}
    for dataset, listed in samples.items():
        text = "\n".join(repr((sample.name, sample.subtitle, sample.labels)) for sample in listed)
        rows[dataset] = {"samples": len(listed), "sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()}
    weights = {}
    for key in ("visual_encoder", "acoustic_encoder"):
        folder = encoder_folder(config, key)
        if folder.exists():
            weights[key] = weights_hash(folder, files=encoder_class(config, key).files(folder))
    return {"rows": rows, "weights": weights}


def check_made_from(resumed: Resumed, current: Mapping[str, Any]) -> None:
    """Raise ConfigError where a run would resume with other training rows or other encoders than it began with.

    Files that say neither (published ones, earlier versions) pass; so does a checkpoint of the published layout, which
    is no point between two steps: there a warning says what differs.
    """
    before = (resumed.content.get("config") or {}).get("made_from") or {}
    differences = []
    for dataset, rows in before.get("rows", {}).items():
        now = current["rows"].get(dataset)
        if now is not None and now != rows:
            counts = f"{rows['samples']} then, {now['samples']} now"
            differences.append(f"the training rows of {dataset} were others ({counts})")
    for key, digest in before.get("weights", {}).items():
        if current["weights"].get(key, digest) != digest:
            differences.append(f"the weights of model.{key} were others")
    if not differences:
        return
    text = f"{resumed.path}: {'; '.join(differences)}"
    if "position" not in resumed.content:
        logger.warning("%s", text)
        return
    raise ConfigError(
        f"run.resume_ckpt_path: {text}. Put the files back, or resume an epoch's checkpoint_*.pth, or start again "
        "without run.resume_ckpt_path."
    )


def _blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The data sets' blocks, with defaults for keys that an earlier version did not know; how faces are stored may
    be said later."""
    defaults = asdict(DatasetConfig())
    return {name: {**defaults, **block, "face_channels": None} for name, block in config["datasets"].items()}


def revisions_of(resumed: Resumed | None) -> dict[str, int]:
    """The revision of each step in a run's records: the current one, or that of an earlier version that began it."""
    config = (resumed and resumed.content.get("config")) or {}
    if "audio_clip_spacing" not in (config.get("model") or {}):  # a new run; a published file, whose steps are ours
        return dict(REVISIONS)
    then = config.get("revisions") or {}
    return {step: min(then.get(step, 1), number) for step, number in REVISIONS.items()}


class Record:
    """``run.json``: what a run was made with, so that it can be made again.

    Written when a run begins and again when it ends, however it ends. ``path`` None: nothing is written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        config: Config,
        device: torch.device,
        counts: Mapping[str, int],
        video_reader: str,
        revisions: Mapping[str, int],
        world_size: int,
    ) -> None:
        self.path = path
        self.started = time.time()
        self.values: dict[str, Any] = {
            "command": sys.argv,
            "config": to_dict(config),
            "versions": installed_versions(),
            "revisions": dict(revisions),
            "video_reader": video_reader,  # pixels differ between readers
            "git": _git_revision(),
            "data": dict(counts),
            "seeds": {"run": config.run.seed, "ranks": [config.run.seed + number for number in range(world_size)]},
            "device": device_name(device),
            "processes": world_size,
            "host": platform.node(),
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.end("running")

    def end(self, how: str, **more: Any) -> None:
        """Note how the run ended: finished, stopped, failed."""
        if self.path is not None:
            self.values |= {"state": how, "seconds": round(time.time() - self.started, 1), **more}
            write_json(self.path, self.values)


def _git_revision() -> str | None:
    """The revision of the code that runs, with ``+changes`` where files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()  # fmt: skip

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
