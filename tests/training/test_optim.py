"""Schedules and parameter groups."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.training.optim import build_optimizer, get_schedule, load_optimizer, parameter_groups

RUN = replace(
    RunConfig(), init_lr=1e-3, min_lr=1e-5, warmup_lr=1e-4, warmup_steps=4, max_epoch=3, iters_per_epoch=10
)  # fmt: skip


def rates(name: str, **run) -> list[float]:
    schedule = get_schedule(replace(RUN, lr_sched=name, **run))
    return [schedule(epoch, step) for epoch in (1, 2, 3) for step in range(10)]


def test_warmup_cosine_rises_once_and_falls_to_the_end():
    curve = rates("warmup_cosine")
    assert curve[0] == pytest.approx(1e-4) and curve[4] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(curve[:5]))
    assert all(a > b for a, b in pairwise(curve[4:]))
    assert curve[-1] < 2e-5


def test_published_cosine_has_no_warm_up_within_an_epoch_and_turns_up_at_the_end():
    curve = rates("linear_warmup_cosine_lr")
    assert curve[0] > 5e-4 and curve[1] < curve[0]
    assert curve[-1] > curve[20]


def test_step_schedule_decays_by_epoch_down_to_the_least_rate():
    curve = rates("linear_warmup_step_lr", lr_decay_rate=0.1, min_lr=5e-5)
    assert curve[0] == pytest.approx(1e-4)
    assert (curve[5], curve[15], curve[25]) == (pytest.approx(1e-3), pytest.approx(1e-4), pytest.approx(5e-5))


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'warmup_cosine'"):
        get_schedule(replace(RUN, lr_sched="warmup_cosin"))


def test_no_decay_on_vectors_and_on_names_with_bias_ln_or_bn():
    make = torch.nn.Parameter
    named = {
        "proj.weight": make(torch.ones(2, 2)),
        "proj.bias": make(torch.ones(2, 2)),
        "ln_vision.weight": make(torch.ones(2, 2)),
        "scale": make(torch.ones(2)),
        "frozen": make(torch.ones(2, 2), requires_grad=False),
    }
    decay, rest = parameter_groups(named.items(), weight_decay=0.05)
    assert decay["params"] == [named["proj.weight"]] and decay["weight_decay"] == 0.05
    assert len(rest["params"]) == 3 and rest["weight_decay"] == 0.0


def test_fused_adamw_takes_the_same_step():
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        optimizer = build_optimizer(layer.named_parameters(), run=replace(RUN, fused_adamw=fused))
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        weights.append(layer.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("fused", [True, False])
def test_a_saved_state_takes_the_kernel_and_device_of_the_run_that_resumes(fused):
    """Meta tensors stand in for a GPU. The fused kernel counts steps beside the parameters, the plain one on the CPU,
    where reading a count waits for nothing."""
    layer = torch.nn.Linear(4, 3)
    saved = build_optimizer(layer.named_parameters(), run=replace(RUN, fused_adamw=not fused, init_lr=1.0))
    layer(torch.ones(2, 4)).sum().backward()
    saved.step()
    layer = torch.nn.Linear(4, 3, device="meta")
    optimizer = build_optimizer(layer.named_parameters(), run=replace(RUN, fused_adamw=fused))
    load_optimizer(optimizer, saved.state_dict(), source=Path("last.state"))
    for state in optimizer.state.values():
        assert state["exp_avg"].device.type == "meta"
        assert state["step"].device.type == ("meta" if fused else "cpu") and state["step"].dtype == torch.float32
    assert {bool(group["fused"]) for group in optimizer.param_groups} == {fused}
    assert {group["lr"] for group in optimizer.param_groups} == {RUN.init_lr}
