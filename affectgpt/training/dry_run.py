"""Before a run: settings that cannot work, memory, time; and ``--dry-run``: two steps on real data.

Numbers of weights are counted of the model as it is built, on the meta device. Activations are counted of one and of
two of the LLM's layers, run on tensors without memory (FakeTensorMode) at the shape of a batch: whatever the family of
the LLM, LoRA and autocast keep for backward is in it.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from affectgpt.config.schema import Config, RunConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.runtime import available_memory, logger
from affectgpt.core.types import Batch
from affectgpt.modeling.build import build_empty_model, empty_llm, text_config, weight_dtype
from affectgpt.modeling.checkpoint import published_name
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.data import BatchStream
from affectgpt.training.distributed import sum_over_ranks, world
from affectgpt.training.loop import Prefetcher
from affectgpt.training.objectives.base import OBJECTIVES
from affectgpt.training.optim import get_schedule
from affectgpt.training.progress import memory_gb
from affectgpt.training.step import build_train_step

if TYPE_CHECKING:
    from affectgpt.training.objectives.grpo import Rollouts


def check_memory(config: Config, device: torch.device, *, encoders: bool = True) -> None:
    """Raise ConfigError when weights, gradients and optimizer are more than the free memory of ``device``.

    Where a batch of the expected length would not fit beside them on a GPU, a warning says so. ``encoders``: whether
    they are loaded.
    """
    model, on_gpu = config.model, device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
    if free is None:
        return
    memory = step_memory(config, device, encoders=encoders, activations=on_gpu)
    needed = memory.weights if config.run.evaluate else memory.states
    if needed > free:
        whole = memory if on_gpu else step_memory(config, device, encoders=encoders)
        loaded = [model.llama_model, *([model.visual_encoder, model.acoustic_encoder] if encoders else [])]
        where = f"model.llm_dtype {model.llm_dtype}" if on_gpu else "float32 on a CPU"
        raise ConfigError(
            f"weights, gradients and optimizer of a model of {', '.join(loaded)} need {needed / 1e9:.1f} GB in "
            f"{where}, and {free / 1e9:.1f} GB are free on {device}; a step takes about {whole}. "
            "Set model.llama_model to a smaller LLM, "
            + ("or spread it: run.parallel=fsdp2." if on_gpu else "use a GPU (run.device=cuda).")
        )
    if memory.total > free and not config.run.evaluate:
        logger.warning(
            "training takes about %s, and %.1f GB are free on %s. If memory runs out: lower run.batch_size_train (and "
            "raise run.accum_grad_iters), or set run.gradient_checkpointing=True",
            memory, free / 1e9, device,
        )  # fmt: skip


def check_precision(config: Config, device: torch.device) -> None:
    """Raises ConfigError when the LLM's weights have another half precision than the arithmetic on a GPU.

    Autocast would convert every weight at every use, and backward would keep the converted copies. Weights in float32
    are converted too, which is what somebody who asks for them wants.
    """
    run, dtype = config.run, config.model.llm_dtype
    if device.type == "cuda" and not run.amp and dtype == "float16":
        raise ConfigError(
            f"{config.where('run.amp')} is False, but model.llm_dtype is float16: without autocast nothing scales the "
            'loss, and small gradients vanish. Set --options "run.amp=True", or "model.llm_dtype=bfloat16"'
        )
    if device.type == "cuda" and run.amp and dtype not in ("float32", run.amp_dtype):
        raise ConfigError(
            f"{config.where('run.amp_dtype')} is {run.amp_dtype}, but model.llm_dtype is {dtype}: each use of a weight "
            "would convert it, and the copies (13 GB of a 7B LLM) would stay until backward. Set both alike: --options "
            f'"model.llm_dtype={run.amp_dtype}"'
        )


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Raises ConfigError when ``run.compile`` asks for code that no installed compiler can make.

    torch.compile calls a C++ compiler for a CPU, and Triton a C compiler for a GPU.
    """
    if not run.compile:
        return
    kind, variable, names = ("C", "CC", "gcc clang") if device.type == "cuda" else ("C++", "CXX", "g++ clang++")
    wanted = [os.environ[variable]] if os.environ.get(variable) else names.split()
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(
            f"run.compile is True, but there is no {kind} compiler (looked for {', '.join(wanted)}): install one "
            f"(Debian, Ubuntu: apt-get install {names.split()[0]}), or leave run.compile out"
        )


def check_attention(run: RunConfig, device: torch.device) -> None:
    """Raises ConfigError when ``run.attention`` names a kernel that this machine lacks."""
    from transformers.utils import is_flash_attn_2_available

    if run.attention != "flash_attention_2":
        return
    if device.type != "cuda" or not run.amp:
        raise ConfigError("run.attention is flash_attention_2, which needs a GPU and run.amp: True; use sdpa")
    if not is_flash_attn_2_available():
        raise ConfigError(
            "run.attention is flash_attention_2, but flash-attn is not installed (pip install flash-attn); sdpa needs "
            "no package"
        )


# Of a sample of MER-Caption+, about, where no batch has been seen: prompt and answer, and what is learnt of them.
TOKENS, LEARNT = 200, 80
_SCORE = 12  # bytes per learnt token and word where backward begins: its logarithm, that one's gradient, the score's
_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense half precision, FLOP/s, as the makers give them


@dataclass(frozen=True)
class Shape:
    """Rows of a micro-batch as the LLM sees them, their length in tokens, and how many tokens are learnt."""

    rows: int
    length: int
    learnt: int

    @classmethod
    def expected(cls, config: Config) -> Shape:
        """Return the shape by a configuration, before a batch has been seen."""
        run = config.run
        samples = run.batch_size_train
        if run.batch_tokens:
            samples = min(samples, max(1, run.batch_tokens // TOKENS))
        return cls.of(samples=samples, length=TOKENS, learnt=samples * LEARNT, run=run)

    @classmethod
    def of_batch(cls, batch: Batch, *, learnt: int) -> Shape:
        """Return the shape of a batch as it goes into the LLM; ``learnt``: tokens that scores are made for."""
        rows = batch.layout.rows
        shape = batch.input_ids.shape if rows is None else rows.sample.shape
        return cls(shape[0], shape[1], learnt)

    @classmethod
    def of(cls, *, samples: int, length: int, learnt: int, run: Any) -> Shape:
        """Return the shape of ``samples`` that are padded to ``length``, or packed where ``run`` says so."""
        if not run.packing:
            return cls(samples, length, learnt)
        row = max(length, min(run.packing, samples * length))
        return cls(math.ceil(samples * length / row), row, learnt)


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept for backward; 0 where the LLM's code could not be traced
    scores: int  # of learnt tokens, where backward begins
    accumulates: bool  # gradients of earlier micro-batches are there while the last one runs
    shape: Shape

    @property
    def states(self) -> int:
        """Bytes that every step needs, whatever its batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The most that is held at once. Without accumulation, gradients come while activations go."""
        most = sum if self.accumulates else max
        return self.weights + self.optimizer + most((self.gradients, self.activations + self.scores))

    def __str__(self) -> str:
        parts = {
            "weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer,
            "activations": self.activations, "scores": self.scores,
        }  # fmt: skip
        shape = f"a batch of {self.shape.rows} × {self.shape.length} tokens, {self.shape.learnt} learnt"
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        return f"{self.total / 1e9:.2f} GB ({listed}; {shape})"


def step_memory(
    config: Config,
    device: torch.device,
    *,
    encoders: bool = True,
    shape: Shape | None = None,
    activations: bool = True,
) -> StepMemory:
    """Return the memory that a step of ``run`` takes on ``device``; ``encoders``: whether they are loaded; ``shape``:
    of a micro-batch.

    Not in it: activations of the frozen encoders, which are gone before those of the LLM are made, what CUDA itself
    takes (about 0.5 GB), and what ``run.compile`` saves. ``activations=False`` counts none, in a third of the time.
    """
    run = config.run
    shape = shape or Shape.expected(config)
    model = build_empty_model(config)
    sizes = {
        name: parameter.numel() * weight_dtype(config, name, parameter, device).itemsize
        for name, parameter in model.named_parameters()
        if encoders or not name.startswith(("visual_encoder.", "acoustic_encoder."))
    }
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights, ranks = sum(sizes.values()), world()
    if run.parallel == "fsdp2":
        # What is in no layer is gathered for the whole step, and of layers the one at work and the next.
        layers = [n for n in sizes if n.startswith("llm.") and ".layers." in n]
        in_layers = sum(sizes[name] for name in layers)
        at_work = 2 * in_layers // max(1, len(model.get_decoder().layers))
        weights = weights // ranks + (weights - in_layers) + at_work
        trained //= ranks
    copies = 2 if ranks > 1 and run.parallel == "ddp" else 1  # DDP's buckets
    return StepMemory(
        weights=weights,
        gradients=4 * copies * trained,
        optimizer=8 * trained,
        activations=_kept_for_backward(config, device, shape) if activations else 0,
        scores=_SCORE * shape.learnt * model.get_output_embeddings().weight.shape[0],
        accumulates=run.accum_grad_iters > 1,
        shape=shape,
    )


def _kept_for_backward(config: Config, device: torch.device, shape: Shape) -> int:
    """Bytes that the LLM's layers keep for backward; with ``gradient_checkpointing`` inputs, and one layer again."""
    text = text_config(config)
    try:
        one, two = (_trace(config, text, layers=n, device=device, shape=shape) for n in (1, 2))
    except Exception as error:  # transformers and torch raise many kinds for what cannot run without memory
        logger.warning("activations are not in the estimate of memory: this LLM cannot be traced (%s)", error)
        return 0
    layer, layers = two - one, text.num_hidden_layers
    if not config.run.gradient_checkpointing:
        return one + (layers - 1) * layer
    size = (torch.float32 if device.type == "cpu" else getattr(torch, config.model.llm_dtype)).itemsize
    return one + (layers - 1) * shape.rows * shape.length * text.hidden_size * size


class _FusedDropout(nn.Dropout):
    """Dropout as a GPU does it: a byte per value is kept for backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.native_dropout(x, self.p, True)[0]


def _trace(config: Config, text: Any, *, layers: int, device: torch.device, shape: Shape) -> int:
    """Bytes kept by an LLM of so many layers, the forward pass done; weights are not counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    run, on_gpu = config.run, device.type == "cuda"
    text = copy.deepcopy(text)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    dtype = getattr(torch, config.model.llm_dtype) if on_gpu else torch.float32
    amp = torch.autocast("cpu", dtype=getattr(torch, run.amp_dtype)) if on_gpu and run.amp else nullcontext()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    attention = "eager" if run.attention == "eager" else "sdpa"
    llm = empty_llm(config, text, dtype=dtype, attention=attention).train()
    with FakeTensorMode():  # of the CPU, where autocast computes as on a GPU; a meta tensor knows no autocast
        for module in list(llm.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                weight = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(weight, requires_grad=parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            for name, child in module.named_children():
                if on_gpu and isinstance(child, nn.Dropout) and child.p:
                    setattr(module, name, _FusedDropout(child.p))
        size = (shape.rows, shape.length)
        embeds = torch.empty(*size, text.hidden_size, dtype=dtype, requires_grad=True)
        positions = torch.arange(shape.length).expand(size)
        masked = run.packing and run.attention != "flash_attention_2"  # samples side by side; else causal is enough
        mask = torch.zeros(shape.rows, 1, shape.length, shape.length, dtype=dtype) if masked else None
        with amp, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # An output that has a gradient function holds what was kept.
            output = llm.get_decoder()(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
            )
        weights = {parameter.untyped_storage()._cdata for parameter in llm.parameters()}
        total = sum(storage.nbytes() for number, storage in kept.items() if number not in weights)
        del output
    return total


@dataclass(frozen=True)
class StepFlop:
    """Floating-point operations of the LLM's forward and backward pass: of a token, and of one that is learnt more."""

    token: int
    learnt: int

    def of(self, *, tokens: float, learnt: float) -> float:
        """Return the operations of so many tokens, of which so many are learnt."""
        return self.token * tokens + self.learnt * learnt


def step_flop(model: Any) -> StepFlop:
    """Count those of a model, which may be on the meta device. Products of weights are counted, attention's (1 % at 200
    tokens) and the recomputation of ``gradient_checkpointing`` are not.

    A multiplication and an addition for each weight in forward and for its input's gradient in backward; trained
    weights have a gradient themselves. The embedding is looked up, and the head computes for learnt tokens alone.
    """
    head = model.get_output_embeddings()
    layers = [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear) and m is not head]
    token = sum((6 if m.weight.requires_grad else 4) * m.weight.numel() for m in layers)
    return StepFlop(token=token, learnt=(6 if head.weight.requires_grad else 4) * head.weight.numel())


def peak_flop(device: torch.device) -> float | None:
    """FLOP/s that a GPU is made for; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flop for part, flop in _PEAK.items() if part in name), None)


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
