"""LoRA of the LLM in all its states: added, under the published names, merged, exported as peft's adapter.

Its layers are injected into a plain causal LM: a parameter is ``llm.….q_proj.lora_A.default.weight`` in the model,
``llama_model.base_model.model.….q_proj.lora_A.default.weight`` in a published checkpoint (wire), and
``base_model.model.….q_proj.lora_A.weight`` in an adapter of peft. A layer has half as many kernels as peft's, which
training at small batches waits for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional as F

from affectgpt.core.errors import CheckpointError
from affectgpt.core.files import atomic_path, write_json
from affectgpt.encoders.base import folder_tensors
from affectgpt.encoders.llm import LLMRow


class LoraLinear(Linear):
    """``y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ`` with W frozen; names, states and merging are peft's.

    Where one adapter trains on top of a plain linear layer, this is one autograd function. In half precision peft casts
    the input to float32 for LoRA and the result back, and autocast undoes it: 4 of 11 kernels of a layer. Any other use
    is peft's own forward.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``[…, in]`` → ``[…, out]``."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        base = self.base_layer
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or self.active_adapters != ["default"]
            or self.lora_variant
            or type(base) is not nn.Linear
            or base.weight.requires_grad
            or not (autocast or self.lora_A["default"].weight.dtype == dtype)  # LoRA is computed in its own dtype
        ):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout["default"]
        p = dropout.p if isinstance(dropout, nn.Dropout) and self.training else 0.0
        A, B = self.lora_A["default"].weight, self.lora_B["default"].weight
        return _LowRank.apply(x, base.weight, base.bias, A, B, self.scaling["default"], p, dtype)


class _LowRank(torch.autograd.Function):
    """``x [N…, in]``, frozen ``W [out, in]`` and ``b``, trained ``A [r, in]`` and ``B [out, r]`` → ``[N…, out]``.

    Kernels besides the frozen layer's: 6 forward, 8 backward, both weights' casts included.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
        p: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        flat, weight = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
        base = F.linear(flat, weight, None if bias is None else bias.to(dtype))
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        kept = None
        dropped = flat
        if p:  # the numbers that F.dropout draws; its factor 1 / (1 - p) is part of the scaling
            kept = torch.empty_like(flat, dtype=torch.bool).bernoulli_(1 - p)
            dropped = flat * kept
        ctx.factor = scaling / (1 - p)
        low = torch.mm(dropped, a.t())  # [N, r]
        # The input is one tensor for all layers that share it: less to keep than what each has dropped of it.
        ctx.save_for_backward(weight, a, b, flat, low, kept)
        ctx.x = x.shape, x.dtype
        ctx.lora = lora_a.dtype, lora_b.dtype
        return torch.addmm(base, low, b.t(), alpha=ctx.factor).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        weight, a, b, flat, low, kept = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        grad = gradients[0].reshape(-1, weight.shape[0])
        of_x = of_a = of_b = None
        if needs_b:
            of_b = torch.addmm(b, grad.t(), low, beta=0, alpha=ctx.factor).to(ctx.lora[1])
        of_low = torch.addmm(low, grad, b, beta=0, alpha=ctx.factor)  # [N, r]
        if needs_a:
            of_a = torch.mm(of_low.t(), flat if kept is None else flat * kept).to(ctx.lora[0])
        if needs_x:
            of_x = torch.mm(grad, weight)
            of_x = torch.addmm(of_x, of_low, a) if kept is None else torch.addcmul(of_x, of_low @ a, kept)
            shape, dtype = ctx.x
            of_x = of_x.view(shape).to(dtype)
        return of_x, None, None, of_a, of_b, None, None, None


LORA_ALPHA = 32
LORA_DROPOUT = 0.05
PUBLISHED = "llama_model."  # what the LLM's names begin with in a published checkpoint
PEFT = "base_model.model."
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_HERE, _IN_PEFT = (".lora_A.default.", ".lora_B.default."), (".lora_A.", ".lora_B.")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SHARD = 1 << 30  # bytes of a file of merged weights


def lora_config(targets: Sequence[str], rank: int) -> Any:
    """peft's configuration of our LoRA."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_lora(model: nn.Module, *, row: LLMRow, rank: int) -> nn.Module:
    """Freeze a causal LM and put float32 LoRA of rank ``rank`` into it, in place; rank 0: frozen, as it is.

    Raises CheckpointError when none of the row's target modules is in the model.
    """
    model.requires_grad_(False)
    if rank == 0:
        return model
    from peft import inject_adapter_in_model

    from affectgpt.modeling.lora import LoraLinear

    config = lora_config(row.lora_targets, rank)
    config._register_custom_module({nn.Linear: LoraLinear})
    try:
        model = inject_adapter_in_model(config, model)
    except ValueError as error:
        raise CheckpointError(f"LoRA of the row {row.name} does not fit this model: {error}") from error
    for name, parameter in model.named_parameters():
        if ".lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    return model


def has_lora(model: nn.Module) -> bool:
    """Return whether a model has LoRA layers (not merged)."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def lora_state(llm: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA of an LLM under published names."""
    return {f"{PUBLISHED}{name}": tensor for name, tensor in llm.state_dict().items() if ".lora_" in name}


def drop_base_weights(llm: nn.Module) -> None:
    """Give back the memory of all weights but LoRA and the input embeddings, in place, where another engine has the
    LLM. Their shapes stay, on the meta device; LoRA moves to the CPU."""
    kept = llm.get_input_embeddings().weight  # type: ignore[operator]
    for prefix, module in llm.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter is not kept:
                place = "cpu" if ".lora_" in f"{prefix}." else "meta"
                module._parameters[name] = nn.Parameter(parameter.to(place), requires_grad=parameter.requires_grad)


def merged_tensors(llm: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name (as without LoRA) and tensor of everything in an LLM, with LoRA added in float32; the model is not changed.

    One after another: what is merged is memory of its own, for as long as the caller keeps it.
    """
    merging = {f"{name}.base_layer.weight": m for name, m in llm.named_modules() if hasattr(m, "get_delta_weight")}
    for name, tensor in llm.state_dict().items():
        if ".lora_" in name:
            continue
        module = merging.get(name)
        if module is not None:
            with torch.no_grad():
                tensor = (tensor.float() + module.get_delta_weight("default").float()).to(tensor.dtype)
        yield name.replace(".base_layer.", "."), tensor


class MergedLora:
    """LoRA of one checkpoint after the other added to an LLM's weights, for answering: half as many kernels per token.

    The weights as they were are read again from the LLM's folder, so that no copy of them is kept; those that the
    folder does not have under their names are.
    """

    def __init__(self, llm: nn.Module, folder: Path) -> None:
        self.folder = folder
        self.layers = {f"{name}.weight": m for name, m in llm.named_modules() if hasattr(m, "get_delta_weight")}
        self._copies: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
    def merge(self) -> None:
        """Add LoRA in float32, rounded once to the dtype of the weights; its layers then do nothing."""
        if self._copies is None:
            try:
                there = {name for name, _ in folder_tensors(self.folder, self.layers)}
            except CheckpointError:  # weights that were not loaded from it
                there = set()
            kept = self.layers.keys() - there
            self._copies = {name: self.layers[name].get_base_layer().weight.to("cpu", copy=True) for name in kept}
        for layer in self.layers.values():
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight("default").float())
            layer.merged_adapters = ["default"]

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back as they were."""
        merged = [name for name, layer in self.layers.items() if layer.merged]
        copies = self._copies or {}
        for name, tensor in (*folder_tensors(self.folder, [n for n in merged if n not in copies]), *copies.items()):
            self.layers[name].get_base_layer().weight.copy_(tensor)
            self.layers[name].merged_adapters = []


def merge_lora(llm: nn.Module, *, add: bool = True) -> nn.Module:
    """Add LoRA to the weights in float32 and take its layers out, in place; the model is then a plain causal LM.

    ``add=False``: take them out and leave the weights as they are.
    """
    for name, module in list(llm.named_modules()):
        if hasattr(module, "get_delta_weight"):
            base = module.get_base_layer()
            if add:
                with torch.no_grad():
                    merged = base.weight.float() + module.get_delta_weight("default").float()
                    base.weight.copy_(merged.to(base.weight.dtype))
            parent, _, child = name.rpartition(".")
            setattr(llm.get_submodule(parent), child, base)
    if hasattr(llm, "peft_config"):
        del llm.peft_config
    return llm


def write_merged(llm: Any, *, llm_folder: Path, target: Path) -> Path:
    """Write a model folder: the small files of ``llm_folder``, the weights with LoRA merged into them.

    In shards, one in memory at a time.
    """
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for file in llm_folder.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(llm), start=1):
        file = target / f"model-{number:05d}.safetensors"
        with atomic_path(file) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file.name)
        shard.clear()  # before the next one is made
    if len(set(places.values())) == 1:
        file.rename(target / "model.safetensors")
    else:
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return target


def _shards(llm: Any) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of ``merged_tensors`` for files of about a gigabyte; tied output embeddings are left out."""
    tied = getattr(llm.config, "tie_word_embeddings", False)
    shard: dict[str, torch.Tensor] = {}
    for name, tensor in merged_tensors(llm):
        if tied and name == "lm_head.weight":
            continue
        shard[name] = tensor.detach().cpu().contiguous()
        if sum(t.nbytes for t in shard.values()) >= _SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


def write_adapter(folder: Path, lora: Mapping[str, torch.Tensor], *, llm: str | Path, prefix: str = "") -> None:
    """Write LoRA of published names as peft's adapter; ``prefix``: where the LLM is in the model it is for."""
    from safetensors.torch import save_file

    names = targets_of(lora)
    config = lora_config(names, rank_of(lora))
    # Alone, names would also match modules of the encoders.
    config.target_modules = names if not prefix else rf"{prefix.replace('.', chr(92) + '.')}.*\.({'|'.join(names)})"
    config.base_model_name_or_path = str(llm)
    config.inference_mode = True
    folder.mkdir()
    config.save_pretrained(str(folder))
    tensors = {to_peft(name, prefix=prefix): tensor.detach().clone().contiguous() for name, tensor in lora.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def rank_of(lora: Mapping[str, torch.Tensor]) -> int:
    """The rank of LoRA tensors."""
    return next(tensor.shape[0] for name, tensor in lora.items() if ".lora_A." in name)


def targets_of(lora: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules that LoRA tensors belong to, e.g. ``q_proj``."""
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in lora})


def to_peft(name: str, *, prefix: str = "") -> str:
    """A published name as peft's adapter files have it."""
    name = PEFT + prefix + name.removeprefix(PUBLISHED).removeprefix(PEFT)
    for here, there in zip(_HERE, _IN_PEFT, strict=True):
        name = name.replace(here, there)
    return name


def from_peft(name: str) -> str:
    """Undo ``to_peft`` (without a prefix)."""
    for here, there in zip(_HERE, _IN_PEFT, strict=True):
        name = name.replace(there, here)
    return PUBLISHED + name
