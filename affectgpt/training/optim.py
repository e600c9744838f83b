"""Parameter groups, the optimizer and its saved state, learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.errors import CheckpointError, ConfigError, did_you_mean

_NO_DECAY = ("bias", "ln", "bn")


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], *, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW groups by published name: no weight decay on 1-D parameters and names with ``bias``, ``ln`` or ``bn``.

    Frozen parameters are in no group. The order within a group is the model's (an optimizer state refers to it).
    """
    decay: list[torch.nn.Parameter] = []
    no_decay: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(mark in name for mark in _NO_DECAY)
            (no_decay if exempt else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


def build_optimizer(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], *, run: RunConfig) -> torch.optim.AdamW:
    """AdamW over the groups; ``run.fused_adamw`` takes torch's one-kernel implementation."""
    groups = parameter_groups(named_parameters, weight_decay=run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.init_lr, betas=(0.9, run.beta2), fused=True if run.fused_adamw else None)


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
    # Learning rates, decay and kernels are this configuration's; the kernel decides where torch puts the step counts.
    groups = [
        {**group, "params": saved["params"]}
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": _sharded(state["state"], ours, order), "param_groups": groups})


def _sharded(state: Mapping[int, Any], parameters: list[Any], order: list[int]) -> dict[int, Any]:
    """An optimizer state of full tensors, sharded where its parameters are."""
    if not any(hasattr(p, "device_mesh") for p in parameters):
        return dict(state)
    from torch.distributed.tensor import distribute_tensor

    return {
        index: {
            key: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            if key != "step"
            else value
            for key, value in state[index].items()
        }
        for parameter, index in zip(parameters, order, strict=True)
        if index in state
    }


def published_cosine(run: RunConfig, epoch: int, step: int) -> float:
    """The published ``linear_warmup_cosine_lr``, step for step.

    Epochs count from 1 and the total step is epoch × iterations + step, so a warm-up no longer than one epoch never
    happens, and the cosine turns up again in the last epoch. Kept because released recipes name it.
    """
    total = epoch * run.iters_per_epoch + step
    if total < run.warmup_steps:
        return _warmup(run, step)
    return _cosine(run, total / (run.max_epoch * run.iters_per_epoch))


def warmup_cosine(run: RunConfig, epoch: int, step: int) -> float:
    """Warm-up over ``warmup_steps``, then one half cosine from init_lr down to min_lr at the last step."""
    done = (epoch - 1) * run.iters_per_epoch + step
    if done < run.warmup_steps:
        return _warmup(run, done)
    left = max(run.max_epoch * run.iters_per_epoch - run.warmup_steps, 1)
    return _cosine(run, (done - run.warmup_steps) / left)


def warmup_step(run: RunConfig, epoch: int, step: int) -> float:
    """Warm-up over ``warmup_steps``, then init_lr times lr_decay_rate for every finished epoch, min_lr at least."""
    done = (epoch - 1) * run.iters_per_epoch + step
    if done < run.warmup_steps:
        return _warmup(run, done)
    return max(run.min_lr, run.init_lr * run.lr_decay_rate ** (epoch - 1))


def _warmup(run: RunConfig, step: int) -> float:
    start = run.init_lr if run.warmup_lr == -1 else run.warmup_lr
    return min(run.init_lr, start + (run.init_lr - start) * step / max(run.warmup_steps, 1))


def _cosine(run: RunConfig, part: float) -> float:
    return (run.init_lr - run.min_lr) * 0.5 * (1.0 + math.cos(math.pi * part)) + run.min_lr


SCHEDULES: Mapping[str, Callable[[RunConfig, int, int], float]] = {
    "linear_warmup_cosine_lr": published_cosine,
    "linear_warmup_step_lr": warmup_step,
    "warmup_cosine": warmup_cosine,
}


def get_schedule(run: RunConfig) -> Callable[[int, int], float]:
    """``(epoch from 1, step from 0) → learning rate``. ConfigError with the nearest name for an unknown one."""
    if run.lr_sched not in SCHEDULES:
        raise ConfigError(f"run.lr_sched: unknown schedule {run.lr_sched!r}.{did_you_mean(run.lr_sched, SCHEDULES)}")
    schedule = SCHEDULES[run.lr_sched]
    return lambda epoch, step: schedule(run, epoch, step)
