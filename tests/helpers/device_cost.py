"""What a piece of code would cost on a GPU, counted on a CPU: kernels that it launches, and times that it waits."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Views and shapes: nothing is launched for them.
_FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "split",
    "detach", "alias", "reshape", "empty_like", "empty", "as_strided",
}  # fmt: skip
_WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2"}


class Kernels(TorchDispatchMode):
    """Counts dispatched operations that compute something, in ``launched``."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] not in _FREE:
            self.launched[func.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return self.launched.total()


class Waits(TorchDispatchMode):
    """Lists, in ``found``, what would make the CPU wait for the GPU: values read, shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._lists = _Lists(self.found)

    def __enter__(self) -> Any:
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> Any:
        super().__exit__(*exc)
        return self._lists.__exit__(*exc)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _WAITS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """``tolist`` of a CPU tensor reads memory, without an operation that a dispatch mode would see."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu"):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def narrow_qwen(layers: int) -> Any:
    """A Qwen2.5 of so many layers, narrow, in bfloat16, with the same random weights each time."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        Qwen2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=128,
        )
    ).to(torch.bfloat16)  # fmt: skip


def fake_flash_attention(monkeypatch: Any) -> list[int]:
    """Put a slow flash-attn of plain torch in place of the package, which needs a GPU; gives the lengths it is told.

    transformers' own code around it runs as it is.
    """
    import transformers.modeling_flash_attention_utils as utils

    told: list[int] = []

    def attend(q: Any, k: Any, v: Any, *, causal: bool, scale: float | None) -> Any:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, n, d]
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=True
        )  # fmt: skip
        return out[0].transpose(0, 1)

    def flash_attn_func(q: Any, k: Any, v: Any, *, causal: bool = False, softmax_scale: Any = None, **_: Any) -> Any:
        return torch.stack([attend(*row, causal=causal, scale=softmax_scale) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, *, cu_seqlens_q: Any, causal: bool = False, softmax_scale: Any = None, **_: Any
    ) -> Any:
        borders = cu_seqlens_q.tolist()
        told.extend(b - a for a, b in pairwise(borders))
        parts = [attend(q[a:b], k[a:b], v[a:b], causal=causal, scale=softmax_scale) for a, b in pairwise(borders)]
        return torch.cat(parts)

    package = ModuleType("flash_attn")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func  # type: ignore[attr-defined]
    package.flash_attn_with_kvcache = None  # type: ignore[attr-defined]
    padding = ModuleType("flash_attn.bert_padding")
    padding.pad_input = utils._pad_input  # type: ignore[attr-defined]
    padding.unpad_input = utils._unpad_input  # type: ignore[attr-defined]
    for name in (
        "_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn",
        "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn",
    ):  # fmt: skip
        monkeypatch.setattr(utils, name, None)
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    return told
