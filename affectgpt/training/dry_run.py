"""``--dry-run``: two steps on real data, and what they say of the whole run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from affectgpt.config.schema import Config
from affectgpt.modeling.checkpoint import published_name
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.data import BatchStream
from affectgpt.training.cost import Shape, peak_flop, step_flop, step_memory
from affectgpt.training.distributed import sum_over_ranks, world
from affectgpt.training.objectives.base import OBJECTIVES
from affectgpt.training.optim import get_schedule
from affectgpt.training.prefetch import Prefetcher
from affectgpt.training.progress import memory_gb
from affectgpt.training.step import build_train_step

if TYPE_CHECKING:
    from affectgpt.training.objectives.grpo import Rollouts

_STEPS = 2  # and one more where the first two may be compiled for


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """``(part, trained parameters, frozen parameters)`` of each part of the model; parts have published names."""
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        encoder = name.startswith(("visual_encoder.", "acoustic_encoder."))
        part = (name if encoder else published_name(model, name)).split(".")[0]
        rows.setdefault(part, [0, 0])[0 if parameter.requires_grad else 1] += parameter.numel()
    return [(part, trained, frozen) for part, (trained, frozen) in rows.items()]


def dry_run(
    *,
    model: AffectGPTForConditionalGeneration,
    config: Config,
    batches: BatchStream | Rollouts,
    device: torch.device,
) -> str:
    """Run two steps on real data and report what a run would take: parameters, memory, hours."""
    run = config.run
    table = parameter_table(model)
    train_step = build_train_step(model, config, device, resumed=None)
    schedule = get_schedule(run)
    model.train()
    live = OBJECTIVES.get(run.objective).draws
    micro_batches = Prefetcher(batches(1), count=run.accum_grad_iters, device=device, ahead=not live)
    lines = [f"{'part':<28}{'trained':>16}{'frozen':>18}"]
    lines += [f"{part:<28}{trained:>16,}{frozen:>18,}" for part, trained, frozen in table]
    lines.append(f"{'total':<28}{sum(r[1] for r in table):>16,}{sum(r[2] for r in table):>18,}")
    groups = [(group["weight_decay"], group["params"]) for group in train_step.optimizer.param_groups]
    for decay, parameters in groups:
        lines.append(
            f"weight decay {decay:g}: {len(parameters)} tensors, {sum(p.numel() for p in parameters):,} numbers"
        )
    waits_for = "roll-outs and rewards" if live else "data"
    seconds, shapes, tflops = [], [Shape(0, 0, 0)], 0.0
    flop = step_flop(model)
    for number in range(min(_STEPS + run.compile, run.iters_per_epoch)):
        began = time.perf_counter()
        fetched = micro_batches.next()
        waited = time.perf_counter() - began
        step = train_step.run(fetched, lr=schedule(1, number))
        seconds.append(time.perf_counter() - began)
        shapes += [
            Shape.of_batch(batch, learnt=train_step.objective.terms(batch)) for batch in fetched if batch is not None
        ]
        learnt = sum_over_ranks(sum(train_step.objective.terms(b) for b in fetched))[0]
        tflops = flop.of(tokens=step.tokens, learnt=learnt) / world() / (seconds[-1] - waited) / 1e12
        lines.append(
            f"step {number + 1}: loss {step.loss:.4f}, gradient {step.grad_norm:.3g}, {step.samples} samples, "
            f"{step.tokens} tokens, {seconds[-1]:.2f} s, of it {waited:.2f} s waiting for {waits_for}"
        )
    steps = run.max_epoch * run.iters_per_epoch
    encoders = model.visual_encoder is not None
    largest = max(shapes, key=lambda shape: shape.rows * shape.length)
    estimate = step_memory(config, device, encoders=encoders, shape=largest)
    lines.append(f"memory: {memory_gb(device):.2f} GB at most on {device}; estimated {estimate}")
    peak = peak_flop(device)
    lines.append(
        f"LLM: {tflops:.3g} TFLOP/s" + (f", {tflops * 1e12 / peak:.1%} of the GPU's {peak / 1e12:.0f}" if peak else "")
    )
    lines.append(
        f"{steps:,} steps at {seconds[-1]:.2f} s (the last one) are about {steps * seconds[-1] / 3600:.1f} hours; "
        "the first steps of a run are slow, so expect less"
    )
    return "\n".join(lines)
