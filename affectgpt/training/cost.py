"""What a training step costs, before anything is loaded: memory by part, and floating-point operations.

Numbers of weights are counted of the model as it is built, on the meta device. Activations are counted of one and of
two of the LLM's layers, run on tensors without memory (FakeTensorMode) at the shape of a batch: whatever the family of
the LLM, LoRA and autocast keep for backward is in it.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from affectgpt.config.schema import Config
from affectgpt.core.runtime import logger
from affectgpt.core.types import Batch
from affectgpt.modeling.build import build_empty_model, empty_llm, text_config, weight_dtype
from affectgpt.training.distributed import world

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
        """Of a configuration, before a batch has been seen."""
        run = config.run
        samples = run.batch_size_train
        if run.batch_tokens:
            samples = min(samples, max(1, run.batch_tokens // TOKENS))
        return cls.of(samples=samples, length=TOKENS, learnt=samples * LEARNT, run=run)

    @classmethod
    def of_batch(cls, batch: Batch, *, learnt: int) -> Shape:
        """Of a batch as it goes into the LLM; ``learnt``: tokens that scores are made for."""
        rows = batch.layout.rows
        shape = batch.input_ids.shape if rows is None else rows.sample.shape
        return cls(shape[0], shape[1], learnt)

    @classmethod
    def of(cls, *, samples: int, length: int, learnt: int, run: Any) -> Shape:
        """Of ``samples`` that are padded to ``length``, or packed where ``run`` says so."""
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
        """What every step needs, whatever its batch."""
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
    """What a step of ``run`` takes on ``device``; ``encoders``: whether they are loaded; ``shape``: of a micro-batch.

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
        """Of so many tokens, of which so many are learnt."""
        return self.token * tokens + self.learnt * learnt


def step_flop(model: Any) -> StepFlop:
    """Of a model, which may be on the meta device. Products of weights are counted, attention's (1 % at 200 tokens) and
    the recomputation of ``gradient_checkpointing`` are not.

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
