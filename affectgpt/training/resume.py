"""Going on where a run stopped: what is kept for it, where it is found, and what does not fit.

``last.state`` holds a run between two steps: weights, optimizer, scaler, every random stream, and the position. A
checkpoint of the published layout (.pth) can be gone on with too, at the epoch that follows it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.config.paths import list_checkpoints, runs_folder
from affectgpt.config.schema import Config, DatasetConfig, ModelConfig, to_dict
from affectgpt.core.errors import CheckpointError, ConfigError
from affectgpt.core.provenance import REVISIONS
from affectgpt.core.runtime import logger
from affectgpt.modeling.checkpoint import face_channels_unknown, read_checkpoint
from affectgpt.training.distributed import gather

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


@dataclass
class Position:
    """Between two steps: ``step`` steps of ``epoch`` are done. Sums are of the finite losses of the epoch so far."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    bad_steps: int = 0  # the last so many losses were no numbers


@dataclass
class Resumed:
    """A file to go on from, read and found to fit the configuration. ``folder``: where to go on, None for a new one."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    folder: Path | None

    @property
    def position(self) -> Position:
        """Where training goes on."""
        if "position" in self.content:
            return Position(**self.content["position"])
        return Position(epoch=int(self.content["epoch"]) + 1)


def revisions_of(resumed: Resumed | None) -> dict[str, int]:
    """The revision of each step in a run's records: the current one, or that of an earlier version that began it."""
    config = (resumed and resumed.content.get("config")) or {}
    if "audio_clip_spacing" not in (config.get("model") or {}):  # a new run; a published file, whose steps are ours
        return dict(REVISIONS)
    then = config.get("revisions") or {}
    return {step: min(then.get(step, 1), number) for step, number in REVISIONS.items()}


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


def _newest(config: Config) -> Path | None:
    found = [path for path in map(_of_folder, runs_folder(config).glob(f"{config.name}*")) if path is not None]
    return max(found, key=lambda path: (path.stat().st_mtime, path.parent.name), default=None)


def _of_folder(folder: Path) -> Path | None:
    """The file of a run's folder to go on from."""
    state = folder / STATE
    if state.is_file():
        return state
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1].path if checkpoints else None


def _check_recipe(path: Path, content: Mapping[str, Any], config: Config, *, world_size: int) -> None:
    theirs, ours = content.get("config") or {}, to_dict(config)
    fresh = asdict(ModelConfig())
    differences = []
    if "model" in theirs:
        for key in _SAME_MODEL:
            old = theirs["model"].get(key, fresh[key])
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
        if _blocks(theirs) != _blocks(ours):
            differences.append(f"datasets were {theirs['datasets']}, are {ours['datasets']}")
        if len(content["random"]) != world_size:
            differences.append(f"it was made by {len(content['random'])} processes, now there are {world_size}")
        for key in ("init_lr", "min_lr", "warmup_lr", "max_epoch", "lr_sched", "warmup_steps", "weight_decay"):
            if theirs["run"][key] != ours["run"][key]:
                logger.warning("run.%s was %r and is %r from here on", key, theirs["run"][key], ours["run"][key])
    if differences:
        raise ConfigError(
            f"run.resume_ckpt_path: {path} is of another recipe: {'; '.join(differences)}. Set these keys as they were"
            + (", or go on from an epoch's checkpoint_*.pth" if "position" in content else "")
            + ", or start again without run.resume_ckpt_path."
        )


def _blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The data sets' blocks, with defaults for keys that an earlier version did not know; how faces are stored may
    be said later."""
    fresh = asdict(DatasetConfig())
    return {name: {**fresh, **block, "face_channels": None} for name, block in config["datasets"].items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None, *, source: Path) -> None:
    """Lay a saved optimizer state over a fresh one. Raises CheckpointError when it is of other parameters."""
    if not state or not state.get("state"):
        return
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in state["param_groups"]]
    if sizes != found:
        raise CheckpointError(f"{source}: its optimizer has groups of {found} parameters, this model of {sizes}")
    order = [index for group in state["param_groups"] for index in group["params"]]
    for parameter, index in zip(ours, order, strict=True):
        moment = state["state"].get(index, {}).get("exp_avg")
        if moment is not None and moment.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: the optimizer's parameter {index} has shape {list(moment.shape)}, the model's "
                f"{list(parameter.shape)}"
            )
    fresh = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(spread(state, ours, order))
    for group, settings in zip(optimizer.param_groups, fresh, strict=True):
        group.update(settings)  # learning rates, decay and kernels are this configuration's


def spread(state: Mapping[str, Any], parameters: list[Any], order: list[int]) -> dict[str, Any]:
    """An optimizer state of full tensors, sharded where its parameters are."""
    if not any(hasattr(p, "device_mesh") for p in parameters):
        return dict(state)
    from torch.distributed.tensor import distribute_tensor

    sharded = {}
    for parameter, index in zip(parameters, order, strict=True):
        if index in state["state"]:
            sharded[index] = {
                key: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                if key != "step"
                else value
                for key, value in state["state"][index].items()
            }
    return {**state, "state": sharded}
