"""peft's LoRA layer with half as many kernels: what training at small batches waits for."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional as F


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
