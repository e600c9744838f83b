"""One optimizer step: forward and backward over its micro-batches, on one process or on several."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.modeling.build import use_attention
from affectgpt.modeling.checkpoint import load_state, trained_parameters
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.training.distributed import last_backward, shard, sum_over_ranks, world, wrap
from affectgpt.training.objectives.base import OBJECTIVES, Objective
from affectgpt.training.optim import build_optimizer, load_optimizer
from affectgpt.training.run_state import Resumed


@dataclass
class Step:
    """The result of one optimizer step, over all ranks."""

    loss: float  # mean over all terms of the objective (learnt tokens) of the step
    grad_norm: float  # of the mean's gradient, before clipping
    samples: int
    tokens: int  # of prompt and answer, padding not counted
    stop: bool  # some rank was asked to stop
    metrics: dict[str, float] = field(default_factory=dict)  # what else the objective measured


class TrainStep:
    """Takes optimizer steps. ``wrapped``: the objective as several ranks need it; not given: the objective itself."""

    def __init__(
        self,
        objective: Objective,
        *,
        optimizer: torch.optim.Optimizer,
        run: RunConfig,
        device: torch.device,
        wrapped: nn.Module | None = None,
    ) -> None:
        self.objective = objective
        self.wrapped = objective if wrapped is None else wrapped
        self.optimizer = optimizer
        self.device = device
        self.clip = math.inf if run.clip_grad_norm is None else run.clip_grad_norm
        self.amp_dtype = amp_dtype(run, device)
        self.scaler = torch.amp.GradScaler("cuda") if self.amp_dtype is torch.float16 else None
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._looks_for_hidden = run.parallel != "fsdp2"  # with the first loss; FSDP2 computes with copies

    def autocast(self) -> Any:
        """The arithmetic of a forward pass."""
        return autocast_of(self.device, self.amp_dtype)

    def run(
        self,
        fetched: Sequence[Batch | None],
        *,
        lr: float,
        stop: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> Step:
        """Run forward and backward over the micro-batches, then one optimizer step.

        The loss is the mean over all terms of the global batch (learnt tokens), whatever the ranks and micro-batches
        that they are in. A step whose loss or gradient is not a number changes no weight. ``meanwhile`` is called when
        all is queued on the GPU, which is then waited for once (and by the GradScaler).
        """
        terms, samples, tokens, stops = sum_over_ranks(
            sum(self.objective.terms(batch) for batch in fetched),
            sum(len(batch.names) for batch in fetched if batch is not None),
            sum(batch.layout.n_tokens for batch in fetched if batch is not None),
            int(stop),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for number, batch in enumerate(fetched):
            if batch is None and world() == 1:
                continue
            with last_backward(self.wrapped, number + 1 == len(fetched)):
                with self.autocast():
                    loss = self.wrapped(None if batch is None else batch.to(self.device))
                leaves = self._unknown_leaves(loss) if self._looks_for_hidden else []
                self._looks_for_hidden = False
                # Wrappers average gradients over ranks; the mean over terms needs their sum.
                scaled = loss * (world() / max(terms, 1))
                (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
            losses.append(loss.detach())
            del loss, scaled  # the graph and what it alone kept
            self._refuse_hidden(leaves)
        if meanwhile is not None:
            meanwhile()
        norm = self._norm() if terms else torch.zeros((), device=self.device)
        *totals, length = torch.stack([*losses, norm]).tolist()  # the one wait for the GPU
        (total,) = sum_over_ranks(sum(totals))
        mean = total / terms if terms else 0.0
        if terms:
            self._update(mean, length)
        self.optimizer.zero_grad(set_to_none=True)
        return Step(
            loss=mean, grad_norm=length, samples=int(samples), tokens=int(tokens), stop=stops > 0,
            metrics=self.objective.take_metrics(),
        )  # fmt: skip

    def _unknown_leaves(self, loss: torch.Tensor) -> list[weakref.ref[torch.Tensor]]:
        """Tensors that a loss has a gradient for, other than the trained parameters."""
        mine, seen, nodes, found = {id(p) for p in self.parameters}, set(), [loss.grad_fn], []
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)  # of AccumulateGrad nodes alone
            if leaf is not None and id(leaf) not in mine:
                found.append(weakref.ref(leaf))
            nodes.extend(edge for edge, _ in node.next_functions)
        return found

    def _refuse_hidden(self, leaves: Sequence[weakref.ref[torch.Tensor]]) -> None:
        """Raise ConfigError for a tensor that outlives its graph and that no optimizer changes and no checkpoint saves.

        An objective may keep one where ``named_parameters`` does not look: in a list, a dict, a module-level variable.
        Recomputed activations are leaves too, but are gone with the graph.
        """
        for leaf in filter(None, (leaf() for leaf in leaves)):
            raise ConfigError(
                f"run.objective: {type(self.objective).__name__} computes its loss with a tensor of shape "
                f"{list(leaf.shape)} that requires a gradient but belongs to no trained part of the model: it "
                "would be neither trained nor saved. Make it a constant (requires_grad=False)"
            )

    def _norm(self) -> torch.Tensor:
        """The length of the gradient, which is clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm: Any = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _update(self, loss: float, length: float) -> None:
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # skips a step whose gradients overflowed; update() then lowers the scale
            self.scaler.update()
        elif math.isfinite(loss) and math.isfinite(length):
            self.optimizer.step()


def build_train_step(
    model: AffectGPTForConditionalGeneration, config: Config, device: torch.device, *, resumed: Resumed | None
) -> TrainStep:
    """Model, optimizer and scaler, ready for steps: on one process or several, with what ``resumed`` holds laid over.

    Raises ConfigError and CheckpointError naming key or file.
    """
    run = config.run
    if resumed is not None:
        content = resumed.content
        report = load_state(model, content["model"], source=str(resumed.path), config=content.get("config"))
        if not report.complete:
            raise ConfigError(f"run.resume_ckpt_path: {resumed.path} was made by another recipe: {report}")
        logger.info("resuming from %s: %s", resumed.path, report)
    prepare_llm(model, run)
    with config.naming("run.objective"):
        objective = OBJECTIVES.get(run.objective).from_config(model, config)
    own = [
        name
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad and not name.startswith("model.")
    ]
    if own:
        raise ConfigError(
            f"{config.where('run.objective')}: {run.objective} has parameters of its own ({', '.join(own[:3])}), which "
            "are neither trained nor saved: an objective can train the model's parameters alone. Make them constants "
            "(requires_grad=False, or register_buffer)"
        )
    if run.parallel == "fsdp2":
        shard(objective, layers=model.get_decoder().layers, run=run, device=device)
    optimizer = build_optimizer(trained_parameters(model), run=run)
    train_step = TrainStep(objective, wrapped=wrap(objective, run, device), optimizer=optimizer, run=run, device=device)
    if resumed is not None:
        load_optimizer(optimizer, resumed.content.get("optimizer"), source=resumed.path)
        if train_step.scaler is not None and resumed.content.get("scaler"):
            train_step.scaler.load_state_dict(resumed.content["scaler"])
    return train_step


def autocast_of(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Autocast in ``dtype``; nothing for None."""
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def amp_dtype(run: RunConfig, device: torch.device) -> torch.dtype | None:
    """Return what autocast computes in; None on a CPU (everything is float32 there) and for ``amp: False``.

    Raises ConfigError when the GPU lacks bfloat16.
    """
    if not run.amp or device.type != "cuda":
        return None
    if run.amp_dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"run.amp_dtype is bfloat16, which {torch.cuda.get_device_name(device)} lacks; use float16")
    if run.amp_dtype == "float16" and torch.cuda.is_bf16_supported(including_emulation=False):
        logger.info("this GPU has bfloat16: run.amp_dtype=bfloat16 with model.llm_dtype=bfloat16 is recommended")
    return getattr(torch, run.amp_dtype)


def prepare_llm(model: AffectGPTForConditionalGeneration, run: RunConfig) -> None:
    """Attention kernel, recomputation and compilation of the LLM, as the configuration asks.

    Raises ConfigError when the kernel is not installed.
    """
    llm: Any = model.llm
    decoder = model.get_decoder()
    use_attention(model, run)
    if run.gradient_checkpointing:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if run.compile:
        for layer in decoder.layers:  # layer by layer: they are alike, so one compilation serves all
            layer.compile(dynamic=True)  # of any length: compiled once for all
